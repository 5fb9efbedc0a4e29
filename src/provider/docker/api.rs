//! Calls to a daemon: the connection, what its answers mean for the caller, and the raw streams of commands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, UPGRADE};
use hyper_util::rt::TokioIo;
use tokio::sync::OnceCell;

use super::daemon::Daemon;
use super::stream;
use crate::provider::error::Cause;
use crate::provider::http::retry_after;
use crate::provider::script::shown;
use crate::provider::{Answer, GuestStream, ProviderError, Upstream};

/// How long an answer may take; a stop takes its time.
const ANSWER: Duration = Duration::from_secs(120);
/// How long connecting may take, with the question which version is spoken.
const CONNECT: Duration = Duration::from_secs(10);

/// The daemon, or what stands before it, asks to slow down; perhaps with how long.
#[derive(Debug, thiserror::Error)]
#[error("too many requests")]
struct TooMany(HeaderMap);

/// Both directions of a command's stream.
pub(super) type Raw = TokioIo<hyper::upgrade::Upgraded>;

/// One daemon.
#[derive(Clone)]
pub(super) struct Api {
    pub daemon: Daemon,
    /// Docker's file with credentials of registries.
    pub config: Option<PathBuf>,
    /// Made when it is first needed: whoever only opens the provider asks nothing.
    client: Arc<OnceCell<Docker>>,
}

impl Api {
    pub fn new(daemon: Daemon, config: Option<PathBuf>) -> Self {
        Self { daemon, config, client: Arc::default() }
    }

    /// The connection, in the newest version of the interface that both sides speak.
    pub async fn client(&self) -> Result<&Docker, ProviderError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Docker, ProviderError> {
        let client = self.daemon.client();
        let transport = move |request| {
            let client = client.clone();
            async move {
                let lost = |error: hyper_util::client::legacy::Error| match io_cause(&error) {
                    Some(io) => std::io::Error::new(io.kind(), io.to_string()),
                    None => std::io::Error::other(error),
                };
                let answer = stream::ask(client, request).await.map_err(lost)?;
                match answer.status().as_u16() {
                    429 => {
                        Err(Error::IOError { err: std::io::Error::other(TooMany(answer.headers().clone())) })
                    }
                    _ => Ok(answer),
                }
            }
        };
        let limit = ANSWER.as_secs();
        let client = Docker::connect_with_custom_transport(
            transport,
            Some("http://docker"),
            limit,
            API_DEFAULT_VERSION,
        );
        let client = client.map_err(|error| self.error("reach Docker", error))?;
        match tokio::time::timeout(CONNECT, client.negotiate_version()).await {
            Ok(client) => client.map_err(|error| self.error("reach Docker", error)),
            Err(_) => Err(self.error("reach Docker", Error::RequestTimeoutError)),
        }
    }

    /// Starts a command that was created, and gives its streams: one with frames, or a terminal's.
    pub async fn start_exec(&self, exec: &str, tty: bool) -> Result<Raw, ProviderError> {
        let doing = "start a command";
        let version = self.client().await?.client_version();
        let lost = |error: hyper::Error| {
            ProviderError::transient(format!("cannot {doing}: the connection was lost"), error)
        };
        let stream = self.daemon.stream().await.map_err(|error| self.unreachable(doing, error))?;
        let mut sender = handshake(stream).await.map_err(lost)?;
        let body = serde_json::json!({ "Detach": false, "Tty": tty }).to_string();
        let request = hyper::Request::post(format!("/v{version}/exec/{exec}/start"))
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "tcp")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ProviderError::permanent(format!("cannot {doing}"), error))?;
        let answer = tokio::time::timeout(ANSWER, sender.send_request(request)).await;
        let answer = answer
            .map_err(|error| ProviderError::transient(format!("cannot {doing}: no answer in time"), error))?;
        let answer = answer.map_err(lost)?;
        if answer.status() == hyper::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(TokioIo::new(hyper::upgrade::on(answer).await.map_err(lost)?));
        }
        let status_code = answer.status().as_u16();
        let body = http_body_util::Limited::new(answer.into_body(), 64 << 10);
        let body = http_body_util::BodyExt::collect(body).await.map(http_body_util::Collected::to_bytes);
        let message = message(&body.unwrap_or_default());
        Err(self.error(doing, Error::DockerResponseServerError { status_code, message }))
    }

    /// What a failed call means for the caller. `doing` is what was attempted: `create sandbox/api`.
    pub fn error(&self, doing: &str, error: Error) -> ProviderError {
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                refused(doing, status_code, &message)
            }
            Error::DockerStreamError { error } => ProviderError::Permanent {
                message: format!("cannot {doing}: {}", shown(&error)),
                source: None,
            },
            Error::RequestTimeoutError => self.silent(doing, "no answer in time", None),
            Error::SocketNotFoundError(_) => {
                self.unreachable(doing, std::io::Error::from(std::io::ErrorKind::NotFound))
            }
            Error::IOError { err } => match err.get_ref().and_then(|cause| cause.downcast_ref::<TooMany>()) {
                Some(TooMany(headers)) => ProviderError::Throttled { retry_after: retry_after(headers) },
                None => self.unreachable(doing, err),
            },
            Error::JsonDataError { .. } | Error::JsonSerdeError { .. } => ProviderError::permanent(
                format!("cannot {doing}: the answer is not what was expected"),
                error,
            ),
            Error::HyperResponseError { .. } => {
                match io_cause(&error).map(|io| std::io::Error::new(io.kind(), io.to_string())) {
                    Some(io) => self.unreachable(doing, io),
                    None => self.silent(doing, "the connection was lost", Some(error)),
                }
            }
            error => ProviderError::permanent(format!("cannot {doing}"), error),
        }
    }

    fn silent(&self, doing: &str, what: &str, error: Option<Error>) -> ProviderError {
        let message = format!("cannot {doing}: {what} from Docker at {}", self.daemon);
        ProviderError::Transient { message, source: error.map(|error| Box::new(error).into()) }
    }

    /// The daemon could not be talked to. That it is down says nothing about what it holds.
    fn unreachable(&self, doing: &str, error: std::io::Error) -> ProviderError {
        let daemon = &self.daemon;
        match error.kind() {
            _ if matches!(daemon, Daemon::Ssh(_)) && error.to_string().contains("Permission denied") => {
                let message = format!("cannot {doing}: {daemon} does not let this user in: {error}");
                ProviderError::Unauthorised { message }
            }
            std::io::ErrorKind::InvalidData => ProviderError::permanent(
                format!("cannot {doing}: there is no trust between this machine and Docker at {daemon}"),
                error,
            ),
            std::io::ErrorKind::PermissionDenied => ProviderError::Unauthorised {
                message: format!(
                    "this user may not use Docker at {daemon}: add the user to the group of the socket (`sudo usermod -aG docker USER`, then log in again), or use Docker without root"
                ),
            },
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => ProviderError::transient(
                format!("cannot {doing}: nothing answers at {daemon}; is the Docker daemon running?"),
                error,
            ),
            _ => ProviderError::transient(
                format!("cannot {doing}: the connection to Docker at {daemon} failed"),
                error,
            ),
        }
    }
}

#[async_trait]
impl Upstream for Api {
    async fn pass(&self, mut request: hyper::Request<Bytes>) -> Result<Answer, Cause> {
        let mut sender = handshake(self.daemon.stream().await?).await?;
        request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
        let answer = sender.send_request(request.map(Full::new)).await?;
        Ok(answer.map(|body| body.map_err(Cause::from).boxed_unsync()))
    }
}

/// Speaks HTTP on a connection to the daemon.
async fn handshake(
    stream: Box<dyn GuestStream>,
) -> Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>, hyper::Error> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the connection, or hands it over.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to Docker ended");
        }
    });
    Ok(sender)
}

/// The sentence in an error answer.
fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Said {
        message: String,
    }
    serde_json::from_slice::<Said>(body)
        .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |said| said.message)
}

/// The error of the system at the bottom.
fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

/// What a status means for the caller. Docker says 500 also for what will not change, which is told by its words.
fn refused(doing: &str, status: u16, said: &str) -> ProviderError {
    let said = shown(said);
    let message = match said.as_str() {
        "" => format!("cannot {doing}: Docker answers {status}"),
        said => format!("cannot {doing}: {said}"),
    };
    let is_port =
        ["port is already allocated", "address already in use"].iter().any(|words| said.contains(words));
    match status {
        _ if is_port => ProviderError::Permanent {
            message: format!(
                "{message}; something else on that machine has the port: choose another `host_port`"
            ),
            source: None,
        },
        // Podman's word for a name that is taken.
        500 if said.contains("that name is already in use") => ProviderError::AlreadyExists { what: message },
        400 | 406 => ProviderError::Invalid { message },
        401 | 403 => ProviderError::Unauthorised { message },
        404 => ProviderError::NotFound { what: message },
        409 => ProviderError::AlreadyExists { what: message },
        429 => ProviderError::Throttled { retry_after: None },
        501 => ProviderError::Unsupported { message },
        500..=599 => ProviderError::Transient { message, source: None },
        _ => ProviderError::Permanent { message, source: None },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_to_do() {
        let of = |status, said| refused("do it", status, said);
        assert!(matches!(of(404, "no"), ProviderError::NotFound { .. }));
        assert!(matches!(of(409, "no"), ProviderError::AlreadyExists { .. }));
        assert!(of(500, "no").is_retryable() && of(503, "").is_retryable());
        assert!(
            !of(500, "driver failed: Bind for 127.0.0.1:80 failed: port is already allocated").is_retryable()
        );
        assert_eq!(of(400, "a\u{1b}b\n").to_string(), "cannot do it: a b");
    }

    #[test]
    fn a_socket_that_may_not_be_used_is_no_daemon_that_is_down() {
        let api = Api::new(Daemon::Unix("/s".into()), None);
        let of = |kind| api.unreachable("list", std::io::Error::from(kind));
        assert!(matches!(of(std::io::ErrorKind::PermissionDenied), ProviderError::Unauthorised { .. }));
        assert!(of(std::io::ErrorKind::ConnectionRefused).is_retryable());
    }

    #[tokio::test]
    async fn a_daemon_that_is_down_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no.sock");
        let error = Api::new(Daemon::Unix(path.clone()), None).client().await.unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains("is the Docker daemon running?"),
            "{error}"
        );
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = Api::new(Daemon::Unix(path), None).client().await.unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains("is the Docker daemon running?"),
            "{error}"
        );
    }
}
