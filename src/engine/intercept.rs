//! The proxy as the server of a host that secrets are bound to: it ends the client's TLS, reads each request whole by the rules of HTTP/1.1,
//! and writes its own to the host, with values in place of placeholders. What it does not understand does not pass.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::bound::Bound;
use super::egress::Verdict;
use super::hello::{self, Hello};
use super::proxy::{Proxy, split_authority};

/// How long either side may take until TLS stands.
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// The most headers of a request.
const MAX_HEADERS: usize = 128;
/// Headers that are about one connection (RFC 9110 section 7.6.1), and those by which the library says where a body ends: it says so anew.
const OF_THE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

type Body = Either<Incoming, Full<Bytes>>;

impl Proxy {
    /// Carries a tunnel that is open: as it is, or as the server of a host that secrets are bound to. `first` is what the client has sent already.
    pub(super) async fn carry(
        &self,
        mut client: TcpStream,
        outside: TcpStream,
        mut first: Vec<u8>,
        (host, port): (&str, u16),
        verdict: Verdict,
    ) -> io::Result<()> {
        if !self.bound.has(host, port, false) {
            return self.relay(&mut client, outside, first, host, port, verdict).await;
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let served = async {
            let (mut reading, _) = client.split();
            let asked = self.same_name(&mut reading, &mut first, host, port);
            timeout(TLS_TIMEOUT, asked).await.map_err(|_| io::ErrorKind::TimedOut)??;
            if !matches!(hello::read(&first), Hello::Tls(_)) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no TLS"));
            }
            serve(Arc::clone(&self.bound), client, outside, first, name, port).await
        };
        tokio::select! {
            result = served => result,
            () = self.withdrawn(host, port) => Ok(()),
        }
    }
}

/// One connection of a client, and the one to the host that belongs to it.
struct Relay {
    bound: Arc<Bound>,
    host: String,
    port: u16,
    outside: tokio::sync::Mutex<SendRequest<Incoming>>,
    /// A request is under way after which the connection may go on as something else: that ends the host's as HTTP, too.
    upgrading: AtomicBool,
    /// Both sides of a connection that goes on as something else.
    upgraded: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
}

async fn serve(
    bound: Arc<Bound>,
    client: TcpStream,
    outside: TcpStream,
    first: Vec<u8>,
    host: String,
    port: u16,
) -> io::Result<()> {
    let authority = bound.authority.as_ref().ok_or(io::ErrorKind::NotFound)?;
    let acceptor = TlsAcceptor::from(authority.server(&host)?);
    let _ = (client.set_nodelay(true), outside.set_nodelay(true));
    let (reading, writing) = client.into_split();
    let client = tokio::io::join(io::Cursor::new(first).chain(reading), writing);
    let client =
        timeout(TLS_TIMEOUT, acceptor.accept(client)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    let connecting = TlsConnector::from(bound.client()?).connect(name, outside);
    let outside = match timeout(TLS_TIMEOUT, connecting).await {
        Ok(Ok(outside)) => outside,
        Ok(Err(error)) => return refuse_all(client, &format!("{host} is not believed: {error}")).await,
        Err(_) => return refuse_all(client, &format!("{host} does not answer")).await,
    };
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.preserve_header_case(true);
    let (sender, connection) = builder.handshake(TokioIo::new(outside)).await.map_err(io::Error::other)?;
    let relay = Arc::new(Relay {
        bound: Arc::clone(&bound),
        host,
        port,
        outside: tokio::sync::Mutex::new(sender),
        upgrading: AtomicBool::new(false),
        upgraded: Mutex::default(),
    });
    let passing = Arc::clone(&relay);
    let service = service_fn(move |request| {
        let relay = Arc::clone(&passing);
        async move { relay.pass(request).await }
    });
    let inside = server().serve_connection(TokioIo::new(client), service).with_upgrades();
    let outside = connection.with_upgrades();
    tokio::pin!(inside, outside);
    let mut lives = true;
    loop {
        tokio::select! {
            result = &mut inside => {
                result.map_err(io::Error::other)?;
                break;
            }
            _ = &mut outside, if lives => {
                // What the host has said is passed on; the client learns that no more comes.
                lives = false;
                if !relay.upgrading.load(Ordering::Relaxed) {
                    inside.as_mut().graceful_shutdown();
                }
            }
        }
    }
    let upgraded = relay.upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((inside, outside)) = upgraded else { return Ok(()) };
    let (inside, outside) =
        (inside.await.map_err(io::Error::other)?, outside.await.map_err(io::Error::other)?);
    let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(inside), &mut TokioIo::new(outside)).await;
    copied.map(drop)
}

fn server() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .preserve_header_case(true)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD)
        .auto_date_header(false);
    builder
}

/// Answers whatever is asked with why there is no answer.
async fn refuse_all(
    client: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    why: &str,
) -> io::Result<()> {
    let service = service_fn(|_| async {
        let mut answer = refusal(StatusCode::BAD_GATEWAY, why);
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok::<_, Infallible>(answer)
    });
    server().serve_connection(TokioIo::new(client), service).await.map_err(io::Error::other)
}

fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(format!("pocketenv egress: {why}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

impl Relay {
    /// Sends a request on. An error ends the client's connection, as the host's has ended.
    async fn pass(&self, mut request: Request<Incoming>) -> hyper::Result<Response<Body>> {
        if let Err((status, why)) = self.prepare(&mut request) {
            return Ok(refusal(status, &why));
        }
        let inside =
            request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        self.upgrading.store(inside.is_some(), Ordering::Relaxed);
        let mut outside = self.outside.lock().await;
        outside.ready().await?;
        let mut response = outside.send_request(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(inside) = inside else {
                return Ok(refusal(StatusCode::BAD_GATEWAY, "the host goes on with what nobody asked for"));
            };
            let outside = hyper::upgrade::on(&mut response);
            *self.upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some((inside, outside));
        } else {
            self.upgrading.store(false, Ordering::Relaxed);
        }
        Ok(response.map(Either::Left))
    }

    /// Checks a request and makes it the one that goes out.
    fn prepare(&self, request: &mut Request<Incoming>) -> Result<(), (StatusCode, String)> {
        let bad = |why: &str| Err((StatusCode::BAD_REQUEST, why.to_owned()));
        // An answer to TRACE is the request, with all that it carries.
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            let why = format!("secrets are bound to {}, which gets no {}", self.host, request.method());
            return Err((StatusCode::METHOD_NOT_ALLOWED, why));
        }
        if request.version() != Version::HTTP_11 {
            return bad("the version of HTTP is not 1.1");
        }
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return bad("not one Host") };
        let target = request.uri().authority().map(|authority| authority.as_str());
        for named in [host.to_str().ok(), target.or(host.to_str().ok())] {
            let named = named.and_then(|named| split_authority(named, Some(443)));
            if !named.is_some_and(|(name, port)| {
                name.trim_end_matches('.').eq_ignore_ascii_case(&self.host) && port == self.port
            }) {
                return bad(&format!("Host is not {}, to which this connection leads", self.host));
            }
        }
        if target.is_some() {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let Ok(path) = Uri::try_from(path) else { return bad("not a path") };
            *request.uri_mut() = path;
        }
        let upgrades = upgrades(request.headers());
        let Some(named) = listed(request.headers()) else { return bad("not a list in Connection") };
        for name in named.iter().chain(&OF_THE_CONNECTION) {
            request.headers_mut().remove(name);
        }
        if upgrades {
            let headers = request.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        for value in request.headers_mut().values_mut() {
            let filled = self.bound.fill(&self.host, self.port, false, value.as_bytes());
            let filled = filled.map_err(|why| (StatusCode::BAD_GATEWAY, why.to_string()))?;
            if let Some(filled) = filled {
                let Ok(mut secret) = HeaderValue::from_bytes(&filled) else { return bad("not a header") };
                secret.set_sensitive(true);
                *value = secret;
            }
        }
        Ok(())
    }
}

/// Whether the client wants to go on with WebSocket: the one other protocol that passes.
fn upgrades(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && listed(headers).is_some_and(|named| named.contains(&header::UPGRADE))
}

/// The headers that Connection names; `Host` cannot be among them.
fn listed(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for list in headers.get_all(header::CONNECTION) {
        for name in list.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            names.push(name.parse().ok().filter(|name| *name != header::HOST)?);
        }
    }
    Some(names)
}
