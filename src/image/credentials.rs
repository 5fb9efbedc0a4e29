//! Credentials for registries, as Docker keeps them: `config.json` of its client, in `$DOCKER_CONFIG` or `~/.docker`, and the helpers
//! `docker-credential-NAME` that it names (Docker's documentation: "docker login", "Credential helpers").

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::error::ImageError;

/// The most bytes of the file, and of what a helper says.
const MAX: u64 = 1 << 20;
/// How long a helper may take; some ask a person.
const HELPER: Duration = Duration::from_secs(60);
/// The name under which Docker keeps the credentials of its own registry.
const DOCKER_IO: &str = "index.docker.io";

/// A user and a password.
#[derive(Clone)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password, or a token in its place.
    pub password: SecretString,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Option<SecretString>,
    username: Option<String>,
    password: Option<SecretString>,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: SecretString,
}

/// Docker's file, as this process is set up; `None` where there is no place for one.
pub fn config_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker"))).map(|dir| dir.join("config.json"))
}

/// Credentials for this registry from Docker's file; `None` where there are none, which is no mistake: most images are public.
///
/// # Errors
/// [`ImageError::File`] when the file cannot be understood; [`ImageError::Unauthorised`] when a helper fails.
pub async fn find(path: &Path, registry: &str, reference: &str) -> Result<Option<Credentials>, ImageError> {
    let Some(config) = read(path)? else { return Ok(None) };
    let names: &[&str] = if registry == "docker.io" { &["docker.io", DOCKER_IO] } else { &[registry] };
    let is_it = |key: &str| names.contains(&host(key));
    let helper = config.cred_helpers.iter().find(|(key, _)| is_it(key)).map(|(_, helper)| helper.clone());
    if let Some(helper) = helper.or(config.creds_store) {
        let server = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
        if let Some(found) = ask(&helper, server, reference).await? {
            return Ok(Some(found));
        }
    }
    let Some((key, auth)) = config.auths.into_iter().find(|(key, _)| is_it(key)) else { return Ok(None) };
    decode(auth).map_err(|()| {
        let why = format!("`auth` of `{}` is not a user and a password in base64", key.escape_debug());
        ImageError::file("understand", path)(io::Error::new(io::ErrorKind::InvalidData, why))
    })
}

fn read(path: &Path) -> Result<Option<Config>, ImageError> {
    let mut text = Zeroizing::new(Vec::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(ImageError::file("read", path))?,
    };
    // What the parser says of a mistake might repeat a part of the file; the place is enough.
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let why = format!("line {}, column {}", error.line(), error.column());
        ImageError::file("understand", path)(io::Error::new(io::ErrorKind::InvalidData, why))
    })
}

/// The registries that Docker's file has something to say of, as it names them.
///
/// # Errors
/// [`ImageError::File`] when the file cannot be understood.
pub fn registries(path: &Path) -> Result<BTreeSet<String>, ImageError> {
    let config = read(path)?.unwrap_or_default();
    let named = config.auths.keys().chain(config.cred_helpers.keys());
    let name =
        |key: &String| if host(key) == DOCKER_IO { "docker.io".to_owned() } else { host(key).to_owned() };
    Ok(named.map(name).collect())
}

/// The host and port in a key, which may be a whole URL.
fn host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// What an entry holds; nothing where a helper keeps it. What cannot be decoded is not shown: it may be most of a password.
fn decode(auth: Auth) -> Result<Option<Credentials>, ()> {
    let Some(encoded) = auth.auth.filter(|auth| !auth.expose_secret().is_empty()) else {
        let pair = auth.username.zip(auth.password);
        return Ok(pair.map(|(user, password)| Credentials { user, password }));
    };
    let plain = Zeroizing::new(STANDARD.decode(encoded.expose_secret().trim()).map_err(drop)?);
    let text = std::str::from_utf8(&plain).map_err(drop)?;
    let (user, password) = text.split_once(':').ok_or(())?;
    Ok(Some(Credentials { user: user.to_owned(), password: password.trim_end_matches('\0').into() }))
}

async fn ask(helper: &str, server: &str, reference: &str) -> Result<Option<Credentials>, ImageError> {
    let failed = |why: String| {
        ImageError::Unauthorised(
            reference.to_owned(),
            format!("the credential helper `{}` {why}", helper.escape_debug()),
        )
    };
    if helper.is_empty() || !helper.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    {
        return Err(failed("has a name that no program has".to_owned()));
    }
    let program = format!("docker-credential-{helper}");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        let mut said = Zeroizing::new(Vec::new());
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX).read_to_end(&mut said).await?;
        }
        Ok::<_, io::Error>((child.wait().await?, said))
    };
    let (status, said) = tokio::time::timeout(HELPER, talk)
        .await
        .map_err(|_elapsed| failed(format!("did not answer within {} s", HELPER.as_secs())))?
        .map_err(|error| failed(format!("cannot be talked to: {error}")))?;
    if !status.success() {
        // The words are part of the protocol.
        let text = String::from_utf8_lossy(&said);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("failed ({status})")));
    }
    let helped: Helped = serde_json::from_slice(&said)
        .map_err(|_| failed("answered something that is not understood".to_owned()))?;
    if helped.username == "<token>" {
        return Err(failed(
            "has an identity token, which is not supported; log in with a password or an access token"
                .to_owned(),
        ));
    }
    Ok(Some(Credentials { user: helped.username, password: helped.secret }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_are_hosts_or_urls() {
        assert_eq!(host("https://index.docker.io/v1/"), DOCKER_IO);
        assert_eq!(host("localhost:5000"), "localhost:5000");
    }

    #[test]
    fn a_password_may_have_colons_and_a_broken_entry_is_no_absent_one() {
        let auth = |text: &str| Auth { auth: Some(STANDARD.encode(text).into()), ..Auth::default() };
        let found = decode(auth("ann:a:b")).unwrap().unwrap();
        assert_eq!((found.user.as_str(), found.password.expose_secret()), ("ann", "a:b"));
        assert!(decode(auth("ann")).is_err());
        assert!(decode(Auth { auth: Some("%".into()), ..Auth::default() }).is_err());
        assert!(decode(Auth::default()).unwrap().is_none());
    }
}
