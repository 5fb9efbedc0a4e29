//! Where the daemon listens: the setting `providers.docker.host`, `DOCKER_HOST`, the context of the `docker` command, the usual places.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::sha256_hex;
use crate::provider::{GuestStream, ProviderContext, ProviderError};

/// The longest file of the `docker` command's settings that is read, in bytes.
const SETTINGS_LIMIT: u64 = 1 << 20;

/// The address of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    /// A socket of this machine.
    Unix(PathBuf),
    /// `HOST:PORT`, without encryption.
    Http(String),
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// What of `~/.docker/config.json` matters here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    current_context: String,
}

/// What of a context's `meta.json` matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Meta {
    endpoints: Endpoints,
}

#[derive(Deserialize)]
struct Endpoints {
    docker: Endpoint,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    host: String,
}

fn invalid(message: String) -> ProviderError {
    ProviderError::Invalid { message }
}

impl Daemon {
    /// The daemon that a user of the `docker` command would get.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] if an address is named that cannot be, or none is named and there is no socket in the usual places.
    pub fn find(context: &ProviderContext) -> Result<Self, ProviderError> {
        let var = |name: &str| context.vars.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let host = context.setting("docker", "host").or(var("DOCKER_HOST"));
        if let Some(host) = host {
            // A setting that the manifest does not have is read from its variable.
            let from = if var("DOCKER_HOST") == Some(host) { "DOCKER_HOST" } else { "providers.docker.host" };
            if from == "DOCKER_HOST" && var("DOCKER_TLS_VERIFY").is_some() && !host.starts_with("unix:") {
                return Err(no_tls("DOCKER_TLS_VERIFY"));
            }
            return Self::parse(host, from);
        }
        let settings =
            var("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(Path::new(var("HOME")?).join(".docker")));
        let chosen = match (var("DOCKER_CONTEXT"), &settings) {
            (Some(name), _) => name.to_owned(),
            (None, Some(settings)) => {
                read::<Config>(&settings.join("config.json"))?.unwrap_or_default().current_context
            }
            (None, None) => String::new(),
        };
        if let (false, Some(settings)) = (chosen.is_empty() || chosen == "default", &settings) {
            return Self::of_context(settings, &chosen);
        }
        Self::usual(var("XDG_RUNTIME_DIR")).ok_or_else(|| {
            invalid(
                "there is no Docker here: start its daemon, or name its address by `providers.docker.host` or DOCKER_HOST"
                    .to_owned(),
            )
        })
    }

    fn of_context(settings: &Path, name: &str) -> Result<Self, ProviderError> {
        let file = settings.join("contexts/meta").join(sha256_hex(name.as_bytes())).join("meta.json");
        let meta: Meta = read(&file)?.ok_or_else(|| {
            invalid(format!("the docker context `{name}` does not exist: {}", file.display()))
        })?;
        Self::parse(&meta.endpoints.docker.host, &format!("the docker context `{name}`"))
    }

    /// The first socket that exists: Docker's, a user's own Docker's, Podman's.
    fn usual(runtime_dir: Option<&str>) -> Option<Self> {
        let mut places = vec![PathBuf::from("/var/run/docker.sock")];
        if let Some(dir) = runtime_dir.map(Path::new) {
            places.extend([dir.join("docker.sock"), dir.join("podman/podman.sock")]);
        }
        places.push(PathBuf::from("/run/podman/podman.sock"));
        places.into_iter().find(|place| place.exists()).map(Self::Unix)
    }

    /// Reads an address as `DOCKER_HOST` has it. `from` is where it stands, for messages.
    fn parse(text: &str, from: &str) -> Result<Self, ProviderError> {
        let bad = |why: &str| invalid(format!("{from}: `{text}` {why}"));
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) => {
                let address = address.trim_end_matches('/');
                let (host, port) = address.rsplit_once(':').unwrap_or((address, "2375"));
                let fine = |b: u8| b.is_ascii_alphanumeric() || b".-_[]:".contains(&b);
                if host.is_empty() || !host.bytes().all(fine) || port.parse::<u16>().is_err() {
                    return Err(bad("is not `tcp://HOST:PORT`"));
                }
                Ok(Self::Http(format!("{host}:{port}")))
            }
            Some(("https", _)) => Err(no_tls(from)),
            Some(("ssh", _)) => Err(ProviderError::Unsupported {
                message: format!(
                    "{from}: `ssh://` is not spoken here; forward the socket, `ssh -L /tmp/docker.sock:/var/run/docker.sock HOST`, and name it by `unix:///tmp/docker.sock`"
                ),
            }),
            _ => Err(bad("is not an address; expected `unix:///PATH` or `tcp://HOST:PORT`")),
        }
    }

    /// A connection to it.
    pub async fn stream(&self) -> std::io::Result<Box<dyn GuestStream>> {
        Ok(match self {
            Self::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
            Self::Http(address) => Box::new(tokio::net::TcpStream::connect(address).await?),
        })
    }

    /// Whether the loopback of the machine that it runs on is ours.
    pub fn is_here(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Http(address) => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

fn no_tls(from: &str) -> ProviderError {
    ProviderError::Unsupported {
        message: format!(
            "{from}: Docker over TLS is not spoken here; use its socket, or an SSH forward of it"
        ),
    }
}

/// A JSON file; `None` if it does not exist.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ProviderError> {
    use std::io::Read as _;
    let unreadable = |why: String| invalid(format!("{}: {why}", path.display()));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let mut text = Vec::new();
    file.take(SETTINGS_LIMIT).read_to_end(&mut text).map_err(|error| unreadable(error.to_string()))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn context(vars: &[(&str, &str)], host: Option<&str>) -> ProviderContext {
        let settings = host.map(|host| BTreeMap::from([("host".to_owned(), host.to_owned())]));
        ProviderContext {
            data_dir: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            executable: PathBuf::new(),
            vars: vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            settings: settings.into_iter().map(|s| ("docker".to_owned(), s)).collect(),
            credentials: BTreeMap::new(),
        }
    }

    #[test]
    fn addresses_are_read_as_docker_reads_them() {
        let parse = |text| Daemon::parse(text, "X");
        assert_eq!(parse("unix:///a/b.sock").unwrap(), Daemon::Unix("/a/b.sock".into()));
        assert_eq!(parse("tcp://127.0.0.1:2375").unwrap(), Daemon::Http("127.0.0.1:2375".to_owned()));
        assert_eq!(parse("tcp://box").unwrap(), Daemon::Http("box:2375".to_owned()));
        for text in [
            "",
            "unix://",
            "unix://rel",
            "tcp://",
            "tcp://a:b",
            "tcp://a/b:1",
            "ftp://x",
            "https://x:1",
            "ssh://x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("tcp://127.0.0.1:1").unwrap().is_here() && parse("tcp://[::1]:1").unwrap().is_here());
        assert!(!parse("tcp://example.com:1").unwrap().is_here());
    }

    #[test]
    fn the_setting_beats_the_variable_beats_the_context() {
        let home = tempfile::tempdir().unwrap();
        let meta = home.path().join(".docker/contexts/meta").join(sha256_hex(b"mine"));
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(home.path().join(".docker/config.json"), r#"{"currentContext":"mine","auths":{}}"#)
            .unwrap();
        std::fs::write(
            meta.join("meta.json"),
            r#"{"Name":"mine","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///c.sock","SkipTLSVerify":false}}}"#,
        )
        .unwrap();
        let home = home.path().to_str().unwrap();
        let find = |vars: &[(&str, &str)], host| Daemon::find(&context(vars, host)).map(|d| d.to_string());
        assert_eq!(find(&[("HOME", home)], None).unwrap(), "unix:///c.sock");
        let vars = [("HOME", home), ("DOCKER_HOST", "unix:///v.sock")];
        assert_eq!(find(&vars, None).unwrap(), "unix:///v.sock");
        assert_eq!(find(&vars, Some("unix:///s.sock")).unwrap(), "unix:///s.sock");
        let gone = find(&[("HOME", home), ("DOCKER_CONTEXT", "gone")], None).unwrap_err().to_string();
        assert!(gone.contains("`gone` does not exist"), "{gone}");
        assert!(find(&[("DOCKER_HOST", "tcp://h:1"), ("DOCKER_TLS_VERIFY", "1")], None).is_err());
    }
}
