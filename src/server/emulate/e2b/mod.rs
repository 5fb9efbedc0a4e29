//! E2B: its control plane, and for each sandbox its agent `envd`, at one address.
//!
//! Which of them a request is for is told as E2B's own proxy does: by the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port`, or by a host name
//! `PORT-ID.…`; a signed address of a file is known by whose signature it is. Everything else is for the control plane.

#![expect(
    clippy::result_large_err,
    reason = "an answer that ends a call early is as large as any other, and is moved once"
)]

mod connect;
mod control;
mod envd;
mod filesystem;
mod process;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{CallError, Emulation, Options, Sandbox, forward, same_secret};
use crate::model::with_causes;
use crate::provider::ProviderError;
use crate::provider::e2b::api::{ENVD_PORT, ErrorBody};

/// The version of the agent that is spoken. A client asks for nothing that came later: extended attributes of files (0.6.2), entries in events (0.6.3).
const ENVD_VERSION: &str = "0.6.1";
/// How long open connections may take to end.
const DRAIN: Duration = Duration::from_secs(2);

/// An emulator that is ready to serve.
pub struct Emulator {
    emulation: Arc<Emulation>,
    remote: bool,
}

/// What a request needs.
struct Server {
    emulation: Arc<Emulation>,
    /// Ports of sandboxes are reached below this name.
    domain: String,
    /// Whether others than programs of this machine may ask.
    remote: bool,
}

impl Emulator {
    /// Opens the emulator that lives in the file, or a new one. `remote` allows any host name in requests.
    ///
    /// # Errors
    /// [`CallError`] if the file cannot be used or the provider cannot be asked.
    pub async fn open(options: Options, remote: bool) -> Result<Self, CallError> {
        Ok(Self { emulation: Emulation::open(options).await?, remote })
    }

    /// Serves it until `stop`. Then its sandboxes are deleted, unless they are to be kept.
    ///
    /// # Errors
    /// What the system answers.
    pub async fn serve(
        self,
        listener: TcpListener,
        keep: bool,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let port = listener.local_addr()?.port();
        let emulation = self.emulation;
        let server =
            Server { emulation: emulation.clone(), domain: format!("localhost:{port}"), remote: self.remote };
        let expiring = tokio::spawn(emulation.clone().expire());
        // Files may be of any size; what is read whole has a limit of its own.
        let router =
            Router::new().fallback(route).layer(DefaultBodyLimit::disable()).with_state(Arc::new(server));
        let stopped = stop.clone();
        let served =
            axum::serve(listener, router).with_graceful_shutdown(async move { stopped.cancelled().await });
        let result = tokio::select! {
            ended = async { served.await } => ended,
            () = async { stop.cancelled().await; emulation.quiet(); tokio::time::sleep(DRAIN).await } => Ok(()),
        };
        expiring.abort();
        if keep {
            emulation.quiet();
        } else {
            emulation.remove_all().await;
        }
        result
    }
}

/// Whether a host name cannot be that of a page that a browser of this machine has open.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        // A colon more is of an IPv6 address, which has a port only behind brackets.
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    };
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.ends_with(".localhost") || literal.parse::<IpAddr>().is_ok()
}

/// The sandbox and the port that a request is for.
fn target(headers: &HeaderMap, host: &str) -> Option<(String, u16)> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    if let Some(id) = text("e2b-sandbox-id") {
        let port = text("e2b-sandbox-port").map_or(Some(ENVD_PORT), |port| port.parse().ok())?;
        return Some((id.to_owned(), port));
    }
    let (port, rest) = host.split_once('-')?;
    let (id, _) = rest.split_once('.')?;
    Some((id.to_owned(), port.parse().ok()?))
}

async fn route(State(server): State<Arc<Server>>, request: Request) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !server.remote && !is_local(host) {
        return refuse(403, "this emulator answers to names of this machine only");
    }
    let host = host.to_owned();
    if let Some((id, port)) = target(request.headers(), &host) {
        return match server.emulation.find(&id) {
            Ok(sandbox) => inside(&server, sandbox, port, request).await,
            Err(_) => not_found(&id),
        };
    }
    if request.uri().path() == "/files"
        && let Some(sandbox) = envd::signed_for(&server, &request)
    {
        return inside(&server, sandbox, ENVD_PORT, request).await;
    }
    control::serve(server, request).await
}

/// A request for a port inside.
async fn inside(server: &Server, sandbox: Arc<Sandbox>, port: u16, request: Request) -> Response {
    if port == ENVD_PORT {
        return envd::serve(server, sandbox, request).await;
    }
    let record = sandbox.record();
    if let Some(token) = &record.traffic_token {
        let given = request.headers().get("e2b-traffic-access-token").map(|value| value.as_bytes());
        if !given.is_some_and(|given| same_secret(given, token.as_bytes())) {
            return refuse(403, "this port needs the header `e2b-traffic-access-token`");
        }
    }
    let guest = match server.emulation.guest(&sandbox).await {
        Ok(guest) => guest,
        Err(_) => return not_found(&record.id),
    };
    match forward::forward(&*guest, port, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(sandbox = record.id, port, %error, "a request was not passed on");
            // What the vendor's proxy says.
            let message = "The sandbox is running but port is not open";
            let body = json!({ "sandboxId": record.id, "message": message, "port": port, "code": 502 });
            (StatusCode::BAD_GATEWAY, axum::Json(body)).into_response()
        }
    }
}

/// What the vendor's proxy says of a sandbox that does not run.
fn not_found(id: &str) -> Response {
    let body = json!({ "sandboxId": id, "message": "The sandbox was not found", "code": 502 });
    (StatusCode::BAD_GATEWAY, axum::Json(body)).into_response()
}

/// An error in the vendor's form.
fn refuse(status: u16, message: impl Into<String>) -> Response {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, axum::Json(ErrorBody { code: status, message: message.into() })).into_response()
}

/// A failed call in the vendor's form.
fn refused(error: &CallError) -> Response {
    let status = match error {
        CallError::NoSandbox(_) | CallError::NotRunning(_) | CallError::NoImage(_) => 404,
        CallError::Provider(error) => match error {
            ProviderError::Invalid { .. } | ProviderError::Unsupported { .. } => 400,
            ProviderError::Throttled { .. } => 429,
            ProviderError::Transient { .. } => 503,
            _ => 500,
        },
        CallError::Guest(_) | CallError::State(_) => 500,
    };
    if status == 500 {
        tracing::error!(error = with_causes(error), "a call failed");
    }
    refuse(status, with_causes(error))
}

/// Undoes percent-encoding; what is none stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The parameters of a query.
fn parameters(request: &Request) -> Vec<(String, String)> {
    pairs(request.uri().query().unwrap_or_default())
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name), decoded(value))
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_is_told_by_header_or_name() {
        let none = HeaderMap::new();
        assert_eq!(target(&none, "3000-iabc.localhost:8080"), Some(("iabc".to_owned(), 3000)));
        assert_eq!(target(&none, "127.0.0.1:8080"), None);
        assert_eq!(target(&none, "my-host.example"), None);
        let mut headers = HeaderMap::new();
        headers.insert("e2b-sandbox-id", header::HeaderValue::from_static("iabc"));
        assert_eq!(target(&headers, "127.0.0.1"), Some(("iabc".to_owned(), ENVD_PORT)));
        headers.insert("e2b-sandbox-port", header::HeaderValue::from_static("80"));
        assert_eq!(target(&headers, "127.0.0.1"), Some(("iabc".to_owned(), 80)));
    }

    #[test]
    fn a_page_of_a_browser_is_not_local() {
        for host in ["localhost", "localhost:80", "3000-i.localhost:80", "127.0.0.1:80", "[::1]:80", "::1"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        assert_eq!(decoded("a%20b+c%2"), "a b c%2");
        assert_eq!(
            pairs("a=1&b=%26&c"),
            [("a", "1"), ("b", "&"), ("c", "")].map(|(n, v)| (n.into(), v.into()))
        );
    }
}
