//! Where the daemon listens: the setting `providers.docker.host`, `DOCKER_HOST`, the context of the `docker` command, the usual places.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::sha256_hex;
use crate::provider::{ProviderContext, ProviderError};

/// The longest file of the `docker` command's settings that is read, in bytes.
const SETTINGS_LIMIT: u64 = 1 << 20;

/// The address of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    /// A socket of this machine.
    Unix(PathBuf),
    /// `HOST:PORT`, without encryption.
    Http(String),
    /// `HOST:PORT`, with TLS.
    Tls(String, Material),
    /// Another machine, by `ssh`.
    Ssh(Host),
}

/// What TLS with a daemon needs: files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Material {
    /// Who vouches for the daemon.
    pub ca: PathBuf,
    /// The certificate and the key of whoever asks.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A machine as `ssh` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub user: Option<String>,
    pub name: String,
    pub port: Option<u16>,
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(address) | Self::Tls(address, _) => write!(f, "tcp://{address}"),
            Self::Ssh(Host { user, name, port }) => {
                let user = user.as_ref().map_or_else(String::new, |user| format!("{user}@"));
                let port = port.map_or_else(String::new, |port| format!(":{port}"));
                write!(f, "ssh://{user}{name}{port}")
            }
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
    #[serde(default, rename = "SkipTLSVerify")]
    skip_tls_verify: bool,
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
            let daemon = Self::parse(host, from)?;
            if var("DOCKER_TLS_VERIFY").is_none() && !host.starts_with("https:") {
                return Ok(daemon);
            }
            let directory = var("DOCKER_CERT_PATH").map(PathBuf::from).or_else(|| settings_dir(context));
            return daemon.with_tls(directory.as_deref(), from);
        }
        let settings = settings_dir(context);
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
        let from = format!("the docker context `{name}`");
        let Endpoint { host, skip_tls_verify } = meta.endpoints.docker;
        let daemon = Self::parse(&host, &from)?;
        let directory = settings.join("contexts/tls").join(sha256_hex(name.as_bytes())).join("docker");
        match skip_tls_verify {
            true if directory.exists() => Err(invalid(format!(
                "{from} does not verify who the daemon is (`skip-tls-verify`); give it the certificate of the daemon's authority (`ca`)"
            ))),
            _ if directory.exists() || host.starts_with("https:") => daemon.with_tls(Some(&directory), &from),
            _ => Ok(daemon),
        }
    }

    /// The same with TLS where it is reached by TCP. `directory` has the files that `docker` wants there.
    fn with_tls(self, directory: Option<&Path>, from: &str) -> Result<Self, ProviderError> {
        let Self::Http(address) = self else { return Ok(self) };
        let directory = directory.ok_or_else(|| {
            invalid(format!("{from}: TLS needs a directory with `ca.pem`: set DOCKER_CERT_PATH"))
        })?;
        let file = |name: &str| directory.join(name);
        let there = |name: &str| Some(file(name)).filter(|path| path.exists());
        let ca = there("ca.pem").ok_or_else(|| {
            invalid(format!(
                "{from}: TLS needs the certificate of the daemon's authority, {}",
                file("ca.pem").display()
            ))
        })?;
        let own = match (there("cert.pem"), there("key.pem")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(invalid(format!("{from}: {} is missing", file("key.pem").display())));
            }
            (None, Some(_)) => {
                return Err(invalid(format!("{from}: {} is missing", file("cert.pem").display())));
            }
        };
        Ok(Self::Tls(address, Material { ca, own }))
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
            Some((scheme @ ("tcp" | "http" | "https"), address)) => {
                let address = address.trim_end_matches('/');
                let (host, port) = address
                    .rsplit_once(':')
                    .unwrap_or((address, if scheme == "https" { "2376" } else { "2375" }));
                let fine = |b: u8| b.is_ascii_alphanumeric() || b".-_[]:".contains(&b);
                if host.is_empty() || !host.bytes().all(fine) || port.parse::<u16>().is_err() {
                    return Err(bad("is not `tcp://HOST:PORT`"));
                }
                Ok(Self::Http(format!("{host}:{port}")))
            }
            Some(("ssh", host)) => Host::parse(host.trim_end_matches('/'))
                .map(Self::Ssh)
                .ok_or_else(|| bad("is not `ssh://[USER@]HOST[:PORT]`")),
            _ => {
                Err(bad("is not an address; expected `unix:///PATH`, `tcp://HOST:PORT` or `ssh://USER@HOST`"))
            }
        }
    }

    /// Whether the loopback of the machine that it runs on is ours.
    pub fn is_here(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Ssh(_) => false,
            Self::Http(address) | Self::Tls(address, _) => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl Host {
    /// Reads `[USER@]HOST[:PORT]`. What begins with a dash would be taken for an option.
    fn parse(text: &str) -> Option<Self> {
        let (user, rest) = text.rsplit_once('@').map_or((None, text), |(user, rest)| (Some(user), rest));
        let (name, port) = match rest.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (rest, None),
        };
        let fine = |word: &str| {
            !word.is_empty()
                && !word.starts_with('-')
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let all = fine(name) && user.is_none_or(fine);
        all.then(|| Self { user: user.map(str::to_owned), name: name.to_owned(), port })
    }
}

/// Where the `docker` command keeps its settings.
pub(super) fn settings_dir(context: &ProviderContext) -> Option<PathBuf> {
    let var = |name: &str| context.vars.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("DOCKER_CONFIG").or_else(|| Some(var("HOME")?.join(".docker")))
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
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://-l@x",
            "ssh://x:y",
            "ssh://x/run/docker.sock",
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
    }

    #[test]
    fn tls_needs_an_authority_and_is_never_left_out_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().to_str().unwrap();
        let vars = [
            ("DOCKER_HOST", "tcp://h:1"),
            ("DOCKER_TLS_VERIFY", "1"),
            ("DOCKER_CERT_PATH", certs),
            ("HOME", certs),
        ];
        let find = |vars: &[(&str, &str)], host| Daemon::find(&context(vars, host));
        let error = find(&vars, None).unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
        for name in ["ca.pem", "cert.pem"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let error = find(&vars, None).unwrap_err().to_string();
        assert!(error.contains("key.pem is missing"), "{error}");
        std::fs::write(dir.path().join("key.pem"), "").unwrap();
        assert!(matches!(find(&vars, None).unwrap(), Daemon::Tls(address, _) if address == "h:1"));
        assert!(
            matches!(find(&vars[1..], Some("https://h")).unwrap(), Daemon::Tls(address, _) if address == "h:2376")
        );
        assert!(matches!(find(&vars, Some("unix:///s")).unwrap(), Daemon::Unix(_)));
        let host = find(&vars, Some("ssh://me@box:22")).unwrap();
        assert_eq!(host.to_string(), "ssh://me@box:22");
    }
}
