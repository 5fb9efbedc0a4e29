//! Connections to a daemon: by its socket, TCP, TLS, or the `ssh` command of this machine.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bollard::BollardRequest;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tower_service::Service;

use super::daemon::{Daemon, Host, Material};
use crate::provider::GuestStream;
use crate::provider::error::Cause;
use crate::provider::script::shown;

/// What of the last words of `ssh` is kept, in bytes.
const WORDS: u64 = 2000;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Cause>;

impl Daemon {
    /// A connection to it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn stream(&self) -> io::Result<Box<dyn GuestStream>> {
        Ok(match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Http(address) => Box::new(TcpStream::connect(address).await?),
            Self::Tls(address, material) => {
                let config = tokio_rustls::TlsConnector::from(Arc::new(tls(material)?));
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                Box::new(config.connect(name, TcpStream::connect(address).await?).await?)
            }
            Self::Ssh(host) => Box::new(ssh(host)?),
        })
    }

    /// A client that keeps its connections.
    pub fn client(&self) -> Pooled {
        Client::builder(TokioExecutor::new()).build(Connector(Arc::new(self.clone())))
    }
}

/// A client that keeps its connections.
pub(super) type Pooled = Client<Connector, Body>;

/// Asks a daemon.
pub(super) async fn ask(
    client: Pooled,
    request: BollardRequest,
) -> Result<Response<Incoming>, legacy::Error> {
    let (mut parts, body) = request.into_parts();
    parts.headers.insert(HOST, HeaderValue::from_static("docker"));
    let body = body.map_err(Cause::from).boxed_unsync();
    client.request(Request::from_parts(parts, body)).await
}

/// Opens connections for a client.
#[derive(Clone)]
pub(super) struct Connector(Arc<Daemon>);

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn GuestStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let daemon = Arc::clone(&self.0);
        Box::pin(async move { daemon.stream().await.map(TokioIo::new) })
    }
}

impl Connection for Box<dyn GuestStream> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// An error that names its file.
fn of(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

/// TLS as Docker's own client has it: only the authority of the directory is trusted.
fn tls(material: &Material) -> io::Result<rustls::ClientConfig> {
    let certificates = |path: &Path| {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        read.map_err(|error| of(path, error))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&material.ca)? {
        roots.add(certificate).map_err(|error| of(&material.ca, error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    match &material.own {
        Some((certificate, key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| of(key, error))?;
            let chain = certificates(certificate)?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| of(certificate, error))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

/// The daemon of another machine, as Docker's own client reaches it: `docker system dial-stdio` there.
fn ssh(host: &Host) -> io::Result<Ssh> {
    let mut command = Command::new("ssh");
    // Nobody is asked for a password in the middle of something else, and a connection that is dead ends.
    command.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=30"]);
    if let Some(user) = &host.user {
        command.args(["-l", user]);
    }
    if let Some(port) = host.port {
        command.args(["-p", &port.to_string()]);
    }
    command.args(["--", &host.name, "docker", "system", "dial-stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| {
        let why = format!("`ssh` cannot be run: {error}");
        io::Error::other(why)
    })?;
    let missing = || io::Error::other("`ssh` has no streams");
    let (input, output) = (child.stdin.take().ok_or_else(missing)?, child.stdout.take().ok_or_else(missing)?);
    let words = child.stderr.take().ok_or_else(missing)?;
    let (tell, ended) = oneshot::channel();
    // It ends when its input does, or with its connection.
    tokio::spawn(async move {
        let mut said = Vec::new();
        let mut words = words;
        let _ = (&mut words).take(WORDS).read_to_end(&mut said).await;
        let _ = tokio::io::copy(&mut words, &mut tokio::io::sink()).await;
        let status = child.wait().await;
        if !status.is_ok_and(|status| status.success()) {
            let _ = tell.send(shown(&String::from_utf8_lossy(&said)));
        }
    });
    Ok(Ssh { input: Some(input), output, ended: Some(ended) })
}

/// A connection by `ssh`.
struct Ssh {
    /// Closed by letting it go.
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// What it said if it failed.
    ended: Option<oneshot::Receiver<String>>,
}

impl AsyncRead for Ssh {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.output).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        let Some(ended) = &mut self.ended else { return Poll::Ready(Ok(())) };
        let said = ready!(Pin::new(ended).poll(cx));
        self.ended = None;
        Poll::Ready(match said {
            Ok(said) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, format!("ssh: {said}"))),
            Err(_) => Ok(()),
        })
    }
}

impl AsyncWrite for Ssh {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_write(cx, data),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input = None;
        Poll::Ready(Ok(()))
    }
}
