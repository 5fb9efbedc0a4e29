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
mod kept;
mod process;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::request::{is_local, parameter, parameters, port_of};
use super::{CallError, Emulation, Options, Sandbox, forward, same_secret};
use crate::model::with_causes;
use crate::provider::ProviderError;
use crate::provider::e2b::api::{ENVD_PORT, ErrorBody};

/// The version of the agent that is spoken. A client asks for nothing that came later: extended attributes of files (0.6.2), entries in events (0.6.3).
const ENVD_VERSION: &str = "0.6.1";
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
        // Files may be of any size; what is read whole has a limit of its own.
        let router =
            Router::new().fallback(route).layer(DefaultBodyLimit::disable()).with_state(Arc::new(server));
        emulation.serve(router, listener, keep, stop).await
    }
}

/// The sandbox and the port that a request is for.
fn target(headers: &HeaderMap, host: &str) -> Option<(String, u16)> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    if let Some(id) = text("e2b-sandbox-id") {
        let port = text("e2b-sandbox-port").map_or(Some(ENVD_PORT), |port| port.parse().ok())?;
        return Some((id.to_owned(), port));
    }
    port_of(host)
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

/// The status of a failed call.
fn status(error: &CallError) -> u16 {
    match error {
        CallError::NoSandbox(_) | CallError::NotRunning(_) | CallError::NoImage(_) => 404,
        CallError::Provider(error) => match error {
            ProviderError::Invalid { .. } | ProviderError::Unsupported { .. } => 400,
            ProviderError::Throttled { .. } => 429,
            ProviderError::Transient { .. } => 503,
            _ => 500,
        },
        CallError::Guest(_) | CallError::State(_) => 500,
    }
}

/// A failed call in the vendor's form.
fn refused(error: &CallError) -> Response {
    let status = status(error);
    if status == 500 {
        tracing::error!(error = with_causes(error), "a call failed");
    }
    refuse(status, with_causes(error))
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
}
