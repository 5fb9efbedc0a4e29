//! The way out of an isolated sandbox: an HTTP and SOCKS5 proxy in the shim that refuses whatever is the host itself, and whatever the
//! sandbox's rules do not allow.
//!
//! Names are resolved on the host, every address is checked after that, and the connection goes to the checked address. A TLS client on a
//! connection that is allowed by name must ask for that very name, or servers of many names would lead to all of them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::ReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::bound::Bound;
use super::destination::{self, Refused};
use super::egress::{Account, Outcome, Policy, Verdict};
use super::hello::{self, Hello};

/// The port of the sandbox's loopback on which it listens: above the ephemeral range.
pub const PORT: u16 = 61080;

/// The proxies that the host itself must use.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Upstream {
    /// For `http://` destinations, as `http://[user:password@]host:port`.
    pub http: Option<String>,
    /// For everything else.
    pub https: Option<String>,
    /// Names and suffixes reached directly.
    pub no_proxy: Vec<String>,
}

impl Upstream {
    /// What this process's environment says.
    pub fn from_environment() -> Upstream {
        let get = |lower: &str, upper: &str| {
            let value = std::env::var(lower).or_else(|_| std::env::var(upper)).ok()?;
            Some(value).filter(|value| !value.is_empty())
        };
        let list = get("no_proxy", "NO_PROXY").unwrap_or_default();
        let no_proxy =
            list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        Upstream { http: get("http_proxy", "HTTP_PROXY"), https: get("https_proxy", "HTTPS_PROXY"), no_proxy }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // the URLs may hold a password
        f.debug_struct("Upstream")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .finish()
    }
}

/// The variables that make programs use it.
pub fn environment() -> Vec<(&'static str, String)> {
    // SOCKS is served on the same port, but named in no variable: HTTP libraries without it fail at the mere sight.
    let proxy = format!("http://127.0.0.1:{PORT}");
    let mut variables: Vec<_> =
        ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
            .map(|name| (name, proxy.clone()))
            .into();
    variables.extend(["no_proxy", "NO_PROXY"].map(|name| (name, "localhost,127.0.0.1,::1".to_owned())));
    variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    variables
}

/// The most bytes of a request's head.
const MAX_HEAD: usize = 32 * 1024;
/// How long a client may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection to the outside may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;

/// The proxy of one sandbox.
#[derive(Debug)]
pub struct Proxy {
    upstream: Upstream,
    policy: Arc<Policy>,
    pub(super) bound: Arc<Bound>,
    account: Arc<Account>,
    named: watch::Receiver<Named>,
}

/// Ports of other sandboxes, by name, and where they are. They are no destinations outside: no rule is asked, and no other proxy.
pub type Named = BTreeMap<(String, u16), SocketAddr>;

/// Why a client gets no connection.
#[derive(Debug)]
enum Denied {
    /// It is the host itself, or the like.
    Refused(Refused),
    /// No rule allows this host and port.
    NoRule(String, u16),
    /// By circumstance.
    Failed(io::Error),
}

impl From<io::Error> for Denied {
    fn from(error: io::Error) -> Denied {
        Denied::Failed(error)
    }
}

/// A connection towards the destination.
struct Outside {
    stream: TcpStream,
    /// The next hop is a proxy that wants the whole URL, and this authorisation.
    absolute: Option<Option<String>>,
}

impl Proxy {
    /// A proxy that goes through the host's own, if it has one, and keeps account of what is asked of it.
    pub fn new(
        upstream: Upstream,
        policy: Arc<Policy>,
        bound: Arc<Bound>,
        account: Arc<Account>,
        named: watch::Receiver<Named>,
    ) -> Proxy {
        Proxy { upstream, policy, bound, account, named }
    }

    /// Serves until dropped.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((client, _)) => {
                        let proxy = Arc::clone(&self);
                        connections.spawn(async move {
                            let _ = proxy.client(client).await; // a client that hangs up is no news
                        });
                    }
                    // out of descriptors: connections that end will give some back
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn client(&self, client: TcpStream) -> io::Result<()> {
        let mut first = [0];
        if timeout(HEAD_TIMEOUT, client.peek(&mut first)).await.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
            return Ok(());
        }
        if first[0] == 5 { self.socks(client).await } else { self.http(client).await }
    }

    async fn http(&self, mut client: TcpStream) -> io::Result<()> {
        let Ok(head) = timeout(HEAD_TIMEOUT, read_head(&mut client)).await else {
            return refuse(&mut client, "408 Request Timeout", "").await;
        };
        let Some((head, rest)) = head? else {
            return refuse(&mut client, "431 Request Header Fields Too Large", "").await;
        };
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut headers);
        if !request.parse(&head).is_ok_and(|status| status.is_complete()) {
            return refuse(&mut client, "400 Bad Request", "not an HTTP request").await;
        }
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        if method == "CONNECT" {
            let Some((host, port)) = split_authority(target, None) else {
                return refuse(&mut client, "400 Bad Request", "not a host and port").await;
            };
            return match self.tunnel(&host, port).await {
                Ok((outside, verdict)) => {
                    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                    self.carry(client, outside, rest, (&host, port), verdict).await
                }
                Err(denied) => refuse_for(&mut client, denied).await,
            };
        }
        let parts =
            target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://")).map(|_| &target[7..]);
        let Some(parts) = parts else {
            return refuse(
                &mut client,
                "400 Bad Request",
                "this is a proxy: it needs an http:// URL or CONNECT",
            )
            .await;
        };
        let (authority, path) = parts.split_at(parts.find(['/', '?']).unwrap_or(parts.len()));
        let Some((host, port)) = split_authority(authority, Some(80)) else {
            return refuse(&mut client, "400 Bad Request", "not a host and port").await;
        };
        // An answer to TRACE is the request, with all that it carries.
        if method.eq_ignore_ascii_case("TRACE") && self.bound.has(&host, port, true) {
            return refuse(&mut client, "405 Method Not Allowed", "secrets are bound to this host").await;
        }
        let outside = match self.plain(&host, port).await {
            Ok(outside) => outside,
            Err(denied) => return refuse_for(&mut client, denied).await,
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut forwarded = match &outside.absolute {
            Some(_) => format!("{method} {target} HTTP/1.1\r\n"),
            None => format!("{method} {slash}{path} HTTP/1.1\r\n"),
        }
        .into_bytes();
        for header in request.headers.iter() {
            let own =
                ["connection", "proxy-connection", "keep-alive", "proxy-authorization", "upgrade", "host"];
            if !own.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
                let value = match self.bound.fill(&host, port, true, header.value) {
                    Ok(filled) => filled.unwrap_or_else(|| header.value.to_owned()),
                    Err(why) => return refuse(&mut client, "502 Bad Gateway", &why.to_string()).await,
                };
                forwarded.extend([header.name.as_bytes(), b": ", &value, b"\r\n"].concat());
            }
        }
        // The host that was checked, whatever the client's header says; one request for each connection.
        forwarded.extend(format!("Host: {authority}\r\nConnection: close\r\n").into_bytes());
        if let Some(Some(authorization)) = &outside.absolute {
            forwarded.extend(format!("Proxy-Authorization: {authorization}\r\n").into_bytes());
        }
        forwarded.extend(b"\r\n");
        forwarded.extend(rest);
        self.relay(&mut client, outside.stream, forwarded, &host, port, Verdict::Open).await
    }

    async fn socks(&self, mut client: TcpStream) -> io::Result<()> {
        let request = timeout(HEAD_TIMEOUT, socks_request(&mut client))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        let answer = |code: u8| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        let (host, port) = match request {
            Ok(destination) => destination,
            Err(code) => return client.write_all(&answer(code)).await,
        };
        match self.tunnel(&host, port).await {
            Ok((outside, verdict)) => {
                client.write_all(&answer(0)).await?;
                self.carry(client, outside, Vec::new(), (&host, port), verdict).await
            }
            Err(Denied::Refused(_) | Denied::NoRule(..)) => client.write_all(&answer(2)).await,
            Err(Denied::Failed(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                client.write_all(&answer(5)).await
            }
            Err(Denied::Failed(_)) => client.write_all(&answer(4)).await,
        }
    }

    /// Checks the destination and notes the attempt: what allows it, and its addresses as far as they are known here.
    async fn admit(&self, host: &str, port: u16) -> Result<(Verdict, io::Result<Vec<SocketAddr>>), Denied> {
        let verdict = self.policy.verdict(host, port);
        if verdict == Verdict::Denied {
            // The host itself cannot be allowed, and saying so helps more.
            if let Some(refused) = destination::refused_as_written(host) {
                self.account.note(host, port, Outcome::Forbidden(refused.to_string()));
                return Err(Denied::Refused(refused));
            }
            self.account.note(host, port, Outcome::Denied);
            return Err(Denied::NoRule(host.to_owned(), port));
        }
        match destination::resolve(host, port).await {
            Err(destination::Failure::Refused(refused)) => {
                self.account.note(host, port, Outcome::Forbidden(refused.to_string()));
                Err(Denied::Refused(refused))
            }
            Err(destination::Failure::Unresolved(error)) => {
                self.account.note(host, port, Outcome::Allowed);
                Ok((verdict, Err(error)))
            }
            Ok(addresses) => {
                self.account.note(host, port, Outcome::Allowed);
                Ok((verdict, Ok(addresses)))
            }
        }
    }

    /// A byte stream to the destination, and what allows it.
    async fn tunnel(&self, host: &str, port: u16) -> Result<(TcpStream, Verdict), Denied> {
        if let Some(address) = self.named(host, port) {
            return Ok((direct(vec![address]).await?, Verdict::Open));
        }
        let (verdict, addresses) = self.admit(host, port).await?;
        let Some(hop) = self.hop(self.upstream.https.as_deref(), host) else {
            return Ok((direct(addresses?).await?, verdict));
        };
        let (mut stream, authorization) = reach(hop).await?;
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = authorization {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let head = timeout(CONNECT_TIMEOUT, read_answer(&mut stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        if status != b"200" {
            let text = format!("the host's proxy answered {}", String::from_utf8_lossy(status));
            return Err(Denied::Failed(io::Error::other(text)));
        }
        Ok((stream, verdict))
    }

    /// A connection on which to ask for an `http://` URL of the destination.
    async fn plain(&self, host: &str, port: u16) -> Result<Outside, Denied> {
        if let Some(address) = self.named(host, port) {
            return Ok(Outside { stream: direct(vec![address]).await?, absolute: None });
        }
        let (_, addresses) = self.admit(host, port).await?;
        match self.hop(self.upstream.http.as_deref(), host) {
            None => Ok(Outside { stream: direct(addresses?).await?, absolute: None }),
            Some(hop) => {
                let (stream, authorization) = reach(hop).await?;
                Ok(Outside { stream, absolute: Some(authorization) })
            }
        }
    }

    /// Copies both ways, `first` before all that the client sends, until both are done or the destination is no longer allowed.
    pub(super) async fn relay(
        &self,
        client: &mut TcpStream,
        mut outside: TcpStream,
        mut first: Vec<u8>,
        host: &str,
        port: u16,
        verdict: Verdict,
    ) -> io::Result<()> {
        let _ = (client.set_nodelay(true), outside.set_nodelay(true));
        let (mut from_client, mut to_client) = client.split();
        let (mut from_outside, mut to_outside) = outside.split();
        let up = async {
            if verdict == Verdict::Name {
                self.same_name(&mut from_client, &mut first, host, port).await?;
            }
            to_outside.write_all(&first).await?;
            tokio::io::copy(&mut from_client, &mut to_outside).await?;
            to_outside.shutdown().await
        };
        let down = async {
            tokio::io::copy(&mut from_outside, &mut to_client).await?;
            to_client.shutdown().await
        };
        tokio::select! {
            result = async { tokio::try_join!(up, down) } => result.map(drop),
            () = self.withdrawn(host, port) => Ok(()),
        }
    }

    fn named(&self, host: &str, port: u16) -> Option<SocketAddr> {
        self.named.borrow().get(&(host.to_ascii_lowercase(), port)).copied()
    }

    /// Comes back when the destination may not be reached any more.
    pub(super) async fn withdrawn(&self, host: &str, port: u16) {
        if self.named(host, port).is_none() {
            return self.policy.withdrawn(host, port).await;
        }
        let name = (host.to_ascii_lowercase(), port);
        // Whoever tells of changes lives as long as the proxy.
        let _ = self.named.clone().wait_for(|named| !named.contains_key(&name)).await;
    }

    /// Reads on until it is clear that a TLS client asks for the name that was allowed, or that it is no TLS client.
    pub(super) async fn same_name(
        &self,
        client: &mut ReadHalf<'_>,
        first: &mut Vec<u8>,
        host: &str,
        port: u16,
    ) -> io::Result<()> {
        let asked = loop {
            match hello::read(first) {
                Hello::Other => return Ok(()),
                Hello::Tls(name) => break name,
                Hello::More if first.len() > hello::LIMIT => break None,
                // Also a client that waits for the server to speak first; what the server says passes meanwhile.
                Hello::More => {
                    if client.read_buf(first).await? == 0 {
                        return Ok(());
                    }
                }
            }
        };
        if asked.as_deref() == Some(host.trim_end_matches('.').to_ascii_lowercase().as_str()) {
            return Ok(());
        }
        let asked = asked.unwrap_or_else(|| "a TLS server without a name".to_owned());
        self.account.note(&asked, port, Outcome::Denied);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{host} was asked for {asked}")))
    }

    fn hop<'a>(&self, proxy: Option<&'a str>, host: &str) -> Option<&'a str> {
        let skipped = self.upstream.no_proxy.iter().any(|entry| {
            let entry = entry.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
            let host = host.to_ascii_lowercase();
            entry == "*" || host == entry || host.strip_suffix(&entry).is_some_and(|rest| rest.ends_with('.'))
        });
        proxy.filter(|_| !skipped)
    }
}

/// Connects to the host's proxy; its authorisation comes along.
async fn reach(hop: &str) -> io::Result<(TcpStream, Option<String>)> {
    let rest = hop
        .strip_prefix("http://")
        .ok_or_else(|| io::Error::other("the host's proxy is not an http:// one"))?;
    let rest = rest.trim_end_matches('/');
    let (login, authority) =
        rest.rsplit_once('@').map_or((None, rest), |(login, authority)| (Some(login), authority));
    let (proxy, port) = split_authority(authority, Some(80))
        .ok_or_else(|| io::Error::other("the host's proxy is not an address"))?;
    let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect((proxy.as_str(), port)));
    let stream = connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let authorization = login.map(|login| format!("Basic {}", BASE64.encode(percent_decode(login))));
    Ok((stream, authorization))
}

async fn direct(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(addresses.as_slice()));
    connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn refuse(client: &mut TcpStream, status: &str, why: &str) -> io::Result<()> {
    let body = format!("pocketenv egress: {why}\n");
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await
}

async fn refuse_for(client: &mut TcpStream, denied: Denied) -> io::Result<()> {
    match denied {
        Denied::Refused(refused) => refuse(client, "403 Forbidden", &refused.to_string()).await,
        Denied::NoRule(host, port) => {
            let host = host.escape_debug();
            let why =
                format!("{host} is not among the destinations that `network.allow` lists for port {port}");
            refuse(client, "403 Forbidden", &why).await
        }
        Denied::Failed(error) if error.kind() == io::ErrorKind::TimedOut => {
            refuse(client, "504 Gateway Timeout", "no answer").await
        }
        Denied::Failed(error) => refuse(client, "502 Bad Gateway", &error.to_string()).await,
    }
}

/// Everything up to the empty line, and what came after it; `None` when that is too much.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut head = Vec::new();
    loop {
        let searched = head.len().saturating_sub(3);
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(at) = head[searched..].windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = head.split_off(searched + at + 4);
            return Ok(Some((head, rest)));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
}

/// A proxy's answer to CONNECT, byte by byte: what follows it belongs to the tunnel.
async fn read_answer(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// The destination, or the code of the refusal.
async fn socks_request(client: &mut TcpStream) -> io::Result<Result<(String, u16), u8>> {
    let _version = client.read_u8().await?;
    let mut methods = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut methods).await?;
    if !methods.contains(&0) {
        client.write_all(&[5, 0xff]).await?;
        return Err(io::ErrorKind::Unsupported.into());
    }
    client.write_all(&[5, 0]).await?;
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let host = match head[3] {
        1 => std::net::Ipv4Addr::from(client.read_u32().await?).to_string(),
        4 => std::net::Ipv6Addr::from(client.read_u128().await?).to_string(),
        3 => {
            let mut name = vec![0; usize::from(client.read_u8().await?)];
            client.read_exact(&mut name).await?;
            match String::from_utf8(name) {
                Ok(name) => name,
                Err(_) => return Ok(Err(4)),
            }
        }
        _ => return Ok(Err(8)),
    };
    let port = client.read_u16().await?;
    Ok(if head[0] == 5 && head[1] == 1 { Ok((host, port)) } else { Err(7) })
}

/// Host (without brackets) and port.
pub(super) fn split_authority(authority: &str, default: Option<u16>) -> Option<(String, u16)> {
    if authority.contains(|c: char| c == '@' || c.is_whitespace() || c.is_control()) {
        return None;
    }
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let port = if port.is_empty() { default? } else { port.strip_prefix(':')?.parse().ok()? };
        return Some((host.to_owned(), port));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, default?),
    };
    (!host.is_empty() && !host.contains(':')).then(|| (host.to_owned(), port))
}

fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                decoded.push(value);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::bound::Trust;
    use super::*;

    #[test]
    fn authorities() {
        assert_eq!(split_authority("a.b:81", None), Some(("a.b".into(), 81)));
        assert_eq!(split_authority("[::1]:9", None), Some(("::1".into(), 9)));
        assert_eq!(split_authority("[::1]", Some(80)), Some(("::1".into(), 80)));
        assert_eq!(split_authority("a", Some(80)), Some(("a".into(), 80)));
        for bad in ["", ":80", "a", "a:", "a:99999", "u@a:80", "[::1", "::1:80", "a b:1"] {
            assert_eq!(split_authority(bad, None), None, "{bad:?}");
        }
    }

    #[test]
    fn logins() {
        assert_eq!(percent_decode("a%40b%"), b"a@b%");
    }

    #[test]
    fn the_hosts_exceptions_are_kept() {
        let upstream = Upstream { no_proxy: vec![".corp".into(), "exact.org".into()], ..Upstream::default() };
        let proxy = Proxy::new(
            upstream,
            Arc::new(Policy::new(None)),
            Arc::new(Bound::new(Vec::new(), None, Trust::default())),
            Arc::new(Account::default()),
            watch::channel(Named::new()).1,
        );
        for (host, direct) in
            [("x.corp", true), ("corp", true), ("xcorp", false), ("exact.org", true), ("other.org", false)]
        {
            assert_eq!(proxy.hop(Some("http://p"), host).is_none(), direct, "{host}");
        }
    }
}
