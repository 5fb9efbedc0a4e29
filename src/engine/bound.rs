//! Secrets that never enter a sandbox: inside there is a placeholder, and the proxy puts the value in its place in the headers of requests to
//! the hosts that the secret is bound to. Values live in the memory of the shim and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{OnceLock, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::memmem;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::authority::Authority;
use super::client;
use super::egress::EgressHost;
use super::error::EngineError;
use super::lifecycle::Engine;
use super::proto::{Reply, Request};
use super::spec::{BoxSpec, Network};

/// The authorities that programs inside trust: the system's, and that of this sandbox's proxy.
pub const ROOTS: &str = "/run/pocketenv-roots.pem";
/// The variables by which programs are told to trust them.
const ROOTS_VARIABLES: [&str; 10] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
];
/// The most bytes of a value: it has to fit into a header.
const MAX_VALUE: usize = 16 * 1024;
/// The most bytes of a header with values in it.
const MAX_HEADER: usize = 64 * 1024;
/// The most bytes of all values of a sandbox on their way to the shim.
const MAX_VALUES: u64 = 4 * 1024 * 1024;

/// A secret that is bound to hosts, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundSecret {
    /// Its name.
    pub name: String,
    /// What stands for the value inside.
    pub placeholder: String,
    /// Who gets the value.
    pub hosts: Vec<BoundHost>,
}

/// A host that gets the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundHost {
    /// Its name, or the names below one.
    pub host: EgressHost,
    /// Its port.
    pub port: u16,
    /// It is spoken to without TLS.
    #[serde(default)]
    pub plain: bool,
}

impl BoundHost {
    fn is(&self, host: &str, port: u16, plain: bool) -> bool {
        self.port == port && self.plain == plain && self.host.names(host)
    }
}

/// The value of a bound secret.
#[derive(Debug)]
pub struct BoundValue {
    /// The secret's name.
    pub name: String,
    /// What the value is told from others by; told to whoever looks at the sandbox.
    pub digest: String,
    /// The value.
    pub value: SecretString,
}

/// Why a request is not sent on.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfilled {
    /// The value of this secret is not here.
    Missing(String),
    /// It would be too long.
    TooLong,
}

impl fmt::Display for Unfilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfilled::Missing(name) => write!(
                f,
                "the value of secret `{name}` is not here, as after a start by somebody who does not have it; `pocketenv apply` brings it"
            ),
            Unfilled::TooLong => write!(f, "a header would be longer than {MAX_HEADER} bytes"),
        }
    }
}

/// The bound secrets of a running sandbox.
#[derive(Debug)]
pub struct Bound {
    secrets: Vec<BoundSecret>,
    values: RwLock<BTreeMap<String, BoundValue>>,
    /// Signs for the hosts; absent where none is spoken to by TLS.
    pub authority: Option<Authority>,
    trust: Trust,
    client: OnceLock<std::sync::Arc<rustls::ClientConfig>>,
}

impl Bound {
    /// These secrets, without values.
    pub fn new(secrets: Vec<BoundSecret>, authority: Option<Authority>, trust: Trust) -> Bound {
        Bound { secrets, values: RwLock::default(), authority, trust, client: OnceLock::new() }
    }

    /// Whether requests to this host may get a value.
    pub fn has(&self, host: &str, port: u16, plain: bool) -> bool {
        self.secrets.iter().any(|secret| secret.hosts.iter().any(|bound| bound.is(host, port, plain)))
    }

    /// The value of a header with every value in it that this host gets; `None` if there is none. Logins of the scheme Basic are looked into.
    ///
    /// # Errors
    /// [`Unfilled`].
    pub fn fill(
        &self,
        host: &str,
        port: u16,
        plain: bool,
        header: &[u8],
    ) -> Result<Option<Vec<u8>>, Unfilled> {
        let scheme = header.get(..6).filter(|scheme| scheme.eq_ignore_ascii_case(b"basic "));
        if let Some(scheme) = scheme
            && let Ok(login) = BASE64.decode(header[6..].trim_ascii())
        {
            let filled = self.replace(host, port, plain, &login)?;
            return Ok(filled.map(|login| [scheme, BASE64.encode(&login).as_bytes()].concat()));
        }
        self.replace(host, port, plain, header)
    }

    fn replace(&self, host: &str, port: u16, plain: bool, text: &[u8]) -> Result<Option<Vec<u8>>, Unfilled> {
        let mut filled: Option<Vec<u8>> = None;
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        for secret in &self.secrets {
            // Of `text` and not of what is filled already: a value is nobody's placeholder.
            if memmem::find(text, secret.placeholder.as_bytes()).is_none()
                || !secret.hosts.iter().any(|bound| bound.is(host, port, plain))
            {
                continue;
            }
            let known = values.get(&secret.name);
            let value = &known.ok_or_else(|| Unfilled::Missing(secret.name.clone()))?.value;
            let replaced = substitute(
                filled.as_deref().unwrap_or(text),
                secret.placeholder.as_bytes(),
                value.expose_secret().as_bytes(),
            );
            filled = Some(replaced.ok_or(Unfilled::TooLong)?);
        }
        Ok(filled)
    }

    /// Takes the values that come in a memory file, and forgets others.
    ///
    /// # Errors
    /// What reading it reports.
    pub fn take(&self, payload: OwnedFd) -> io::Result<()> {
        let mut bytes = Zeroizing::new(Vec::new());
        File::from(payload).take(MAX_VALUES).read_to_end(&mut bytes)?;
        let given: Vec<(String, String, String)> = serde_json::from_slice(&bytes)?;
        let values = given.into_iter().map(|(name, digest, value)| {
            (name.clone(), BoundValue { name, digest, value: SecretString::from(value) })
        });
        *self.values.write().unwrap_or_else(PoisonError::into_inner) = values.collect();
        Ok(())
    }

    /// The digests of the values that are here.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        values.iter().map(|(name, value)| (name.clone(), value.digest.clone())).collect()
    }

    /// How the hosts are spoken to.
    ///
    /// # Errors
    /// What `rustls` reports.
    pub fn client(&self) -> io::Result<std::sync::Arc<rustls::ClientConfig>> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let client = std::sync::Arc::new(self.trust.client()?);
        Ok(self.client.get_or_init(|| client).clone())
    }
}

/// `text` with another one in every place of `old`, unless that is too long.
fn substitute(text: &[u8], old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memmem::find(rest, old) {
        result.extend([&rest[..at], new].concat());
        rest = &rest[at + old.len()..];
        if result.len() > MAX_HEADER {
            return None;
        }
    }
    result.extend(rest);
    Some(result)
}

/// Whose certificates are believed outside: what the system of whoever started the sandbox believes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Trust {
    file: Option<PathBuf>,
    dir: Option<PathBuf>,
}

impl Trust {
    /// By the variables of this process, where they say anything.
    pub fn from_environment() -> Trust {
        let path = |name| std::env::var_os(name).and_then(|path| std::path::absolute(path).ok());
        Trust { file: path("SSL_CERT_FILE"), dir: path("SSL_CERT_DIR") }
    }

    fn client(&self) -> io::Result<rustls::ClientConfig> {
        let found = match self {
            Trust { file: None, dir: None } => rustls_native_certs::load_native_certs(),
            Trust { file, dir } => {
                rustls_native_certs::load_certs_from_paths(file.as_deref(), dir.as_deref())
            }
        };
        for error in &found.errors {
            eprintln!("trusted certificates: {error}");
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(client)
    }
}

/// Whether the proxy of such a sandbox ends TLS for any host.
pub fn ends_tls(spec: &BoxSpec) -> bool {
    let tls = |secret: &BoundSecret| secret.hosts.iter().any(|bound| !bound.plain);
    spec.network == Network::Isolated && spec.bound.iter().any(tls)
}

/// The variables that make programs believe it.
pub fn environment() -> impl Iterator<Item = (&'static str, String)> {
    ROOTS_VARIABLES.into_iter().map(|name| (name, ROOTS.to_owned()))
}

/// What is wrong with bound secrets.
///
/// # Errors
/// [`EngineError::Invalid`].
pub fn check(spec: &BoxSpec) -> Result<(), EngineError> {
    for (index, secret) in spec.bound.iter().enumerate() {
        let name = secret.name.escape_debug();
        let visible = secret.placeholder.bytes().all(|byte| byte.is_ascii_graphic());
        if secret.placeholder.len() < 16 || !visible {
            return Err(EngineError::Invalid(format!("secret `{name}` has no usable placeholder")));
        }
        if secret
            .hosts
            .iter()
            .any(|bound| matches!(bound.host, EgressHost::Network { .. }) || bound.port == 0)
        {
            return Err(EngineError::Invalid(format!("secret `{name}` can be bound to names only")));
        }
        let same = |other: &BoundSecret| other.name == secret.name || other.placeholder == secret.placeholder;
        if spec.bound[..index].iter().any(same) {
            return Err(EngineError::Invalid(format!("secret `{name}` is bound twice")));
        }
    }
    Ok(())
}

impl Engine {
    /// Gives the proxy of a running sandbox the values of its bound secrets, and takes those that are not among them away.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for what no header can hold, [`EngineError::NotRunning`], [`EngineError::NotFound`], [`EngineError::Control`].
    pub async fn bind(&self, id: &str, values: &[BoundValue]) -> Result<(), EngineError> {
        for BoundValue { name, value, .. } in values {
            let value = value.expose_secret();
            let legal = |byte: u8| byte == b'\t' || !byte.is_ascii_control();
            if value.is_empty() || value.len() > MAX_VALUE || !value.bytes().all(legal) {
                let name = name.escape_debug();
                return Err(EngineError::Invalid(format!(
                    "secret `{name}` cannot be put into a header: it needs 1 to {MAX_VALUE} bytes without line breaks and other control characters"
                )));
            }
        }
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        let payload = packed(values).map_err(control)?;
        let connection = self.reach(id).await?;
        match client::ask(id, &connection, &Request::Bind, &[payload.as_fd()]).await?.0 {
            Reply::Done => Ok(()),
            Reply::Failed { errno, .. } => Err(control(io::Error::from_raw_os_error(errno))),
            _ => Err(control(io::ErrorKind::InvalidData.into())),
        }
    }

    /// The digests of the values that the proxy of a sandbox has; one that ended meanwhile has none.
    ///
    /// # Errors
    /// [`EngineError::Control`] where it cannot be asked.
    pub(super) async fn bound(&self, id: &str) -> Result<BTreeMap<String, String>, EngineError> {
        let connection = match self.reach(id).await {
            Err(EngineError::NotRunning(_) | EngineError::NotFound(_)) => return Ok(BTreeMap::new()),
            other => other?,
        };
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        match self.ask(id, &connection, &Request::Bound).await?.0 {
            Reply::Bound(digests) => Ok(digests),
            Reply::Failed { errno, .. } => Err(control(io::Error::from_raw_os_error(errno))),
            _ => Err(control(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// A memory file with values: they travel in no message, which might be shown.
fn packed(values: &[BoundValue]) -> io::Result<OwnedFd> {
    let plain: Vec<_> = values.iter().map(|v| (&v.name, &v.digest, v.value.expose_secret())).collect();
    let bytes = Zeroizing::new(serde_json::to_vec(&plain)?);
    let mut file = File::from(rustix::fs::memfd_create("values", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(name: &str, placeholder: &str, hosts: &[(&str, u16, bool)]) -> BoundSecret {
        let hosts = hosts.iter().map(|(host, port, plain)| BoundHost {
            host: match host.strip_prefix("*.") {
                Some(below) => EgressHost::Subdomains(below.into()),
                None => EgressHost::Name((*host).into()),
            },
            port: *port,
            plain: *plain,
        });
        BoundSecret { name: name.into(), placeholder: placeholder.into(), hosts: hosts.collect() }
    }

    fn bound() -> Bound {
        let secrets = vec![
            secret("A", "placeholder-of-aaaa", &[("a.org", 443, false), ("*.b.org", 8443, false)]),
            secret("B", "placeholder-of-bbbb", &[("a.org", 443, false), ("plain.org", 80, true)]),
        ];
        let bound = Bound::new(secrets, None, Trust::default());
        let value = |name: &str, value: &str| BoundValue {
            name: name.into(),
            digest: format!("digest of {name}"),
            value: value.into(),
        };
        let values = [value("A", "placeholder-of-bbbb"), value("B", "hunter2")];
        bound.take(packed(&values).unwrap()).unwrap();
        bound
    }

    #[test]
    fn only_the_named_host_gets_the_value() {
        let bound = bound();
        let filled = |host: &str, port, plain| {
            bound.fill(host, port, plain, b"Bearer placeholder-of-aaaa").unwrap().is_some()
        };
        for (host, port, plain, gets) in [
            ("a.org", 443, false, true),
            ("A.org.", 443, false, true),
            ("a.org", 443, true, false),
            ("a.org", 444, false, false),
            ("x.a.org", 443, false, false),
            ("b.org", 8443, false, false),
            ("x.b.org", 8443, false, true),
            ("a.org.evil.com", 443, false, false),
            ("evila.org", 443, false, false),
            ("plain.org", 80, true, false),
        ] {
            assert_eq!(filled(host, port, plain), gets, "{host}:{port} {plain}");
        }
        let text = b"x placeholder-of-bbbb, placeholder-of-bbbb";
        assert_eq!(bound.fill("plain.org", 80, true, text).unwrap().unwrap(), b"x hunter2, hunter2");
    }

    #[test]
    fn a_login_is_looked_into_and_a_value_is_nobodys_placeholder() {
        let bound = bound();
        let login = format!("bAsic {}", BASE64.encode("me:placeholder-of-bbbb"));
        let filled = bound.fill("a.org", 443, false, login.as_bytes()).unwrap().unwrap();
        assert_eq!(filled, format!("bAsic {}", BASE64.encode("me:hunter2")).into_bytes());
        let filled = bound.fill("a.org", 443, false, b"placeholder-of-aaaa").unwrap().unwrap();
        assert_eq!(filled, b"placeholder-of-bbbb");
        assert_eq!(bound.fill("a.org", 443, false, b"Basic of nothing").unwrap(), None);
        let long = "placeholder-of-bbbb ".repeat(1 + MAX_HEADER / "hunter2 ".len());
        assert_eq!(bound.fill("a.org", 443, false, long.as_bytes()), Err(Unfilled::TooLong));
    }

    #[test]
    fn without_the_value_nothing_goes_out() {
        let bound = bound();
        bound.take(packed(&[]).unwrap()).unwrap();
        let missing = bound.fill("a.org", 443, false, b"placeholder-of-aaaa").unwrap_err();
        assert_eq!(missing, Unfilled::Missing("A".into()));
        assert_eq!(bound.fill("a.org", 443, false, b"nothing of it").unwrap(), None);
        assert_eq!(bound.fill("c.org", 443, false, b"placeholder-of-aaaa").unwrap(), None);
    }
}
