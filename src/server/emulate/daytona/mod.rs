//! Daytona: its control plane, and below `/toolbox/ID` the daemon inside each sandbox, at one address.
//!
//! A host name `PORT-ID.…` is a preview of a port, as the vendor's proxy has it.

#![expect(
    clippy::result_large_err,
    reason = "an answer that ends a call early is as large as any other, and is moved once"
)]

mod control;
mod files;
mod git;
mod kept;
mod session;
mod terminal;
mod toolbox;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::request::{decoded, is_local, parameter, parameters, port_of};
use super::{CallError, Emulation, Options, Sandbox, forward, lock, same_secret};
use crate::model::with_causes;
use crate::provider::ProviderError;

/// The largest request that is read whole.
const BODY_LIMIT: usize = 4 << 20;

/// An emulator that is ready to serve.
pub struct Emulator {
    emulation: Arc<Emulation>,
    remote: bool,
}

/// What a request needs.
struct Server {
    emulation: Arc<Emulation>,
    /// The port of this emulator, for addresses of ports inside.
    port: u16,
    /// Whether others than programs of this machine may ask.
    remote: bool,
    sessions: session::Sessions,
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
        let emulation = self.emulation;
        let server = Server {
            emulation: emulation.clone(),
            port: listener.local_addr()?.port(),
            remote: self.remote,
            sessions: session::Sessions::default(),
        };
        // Files may be of any size; what is read whole has a limit of its own.
        let router =
            Router::new().fallback(route).layer(DefaultBodyLimit::disable()).with_state(Arc::new(server));
        emulation.serve(router, listener, keep, stop).await
    }
}

async fn route(State(server): State<Arc<Server>>, request: Request) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !server.remote && !is_local(host) {
        return refuse(403, "this emulator answers to names of this machine only");
    }
    if let Some((id, port)) = port_of(host) {
        return preview(&server, &id, port, request).await;
    }
    let path = request.uri().path().to_owned();
    if request.method() == Method::GET && path == "/health" {
        return StatusCode::OK.into_response();
    }
    // Any key will do where none was chosen, but none at all is how a page in a browser would ask.
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    match (given, server.emulation.options.api_key.as_deref()) {
        (None, _) => return refuse(401, "no credentials: set DAYTONA_API_KEY"),
        (Some(given), Some(wanted)) if !same_secret(given.as_bytes(), wanted.as_bytes()) => {
            return refuse(401, "invalid credentials: this emulator was started with another key");
        }
        _ => {}
    }
    // What was begun is brought to its end, whether or not the client is still there to hear of it.
    let work = tokio::spawn(async move {
        let segments: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        // The vendor's address ends in `/api`, and a program may have it so.
        let segments = segments.strip_prefix(&["api"]).unwrap_or(&segments);
        let answered = match segments {
            ["toolbox", id, rest @ ..] => toolbox::answer(&server, id, rest, request).await,
            path => control::answer(&server, path, request).await,
        };
        answered.unwrap_or_else(|response| response)
    });
    work.await.unwrap_or_else(|_| refuse(500, "the call has failed"))
}

/// A request for a port inside.
async fn preview(server: &Server, id: &str, port: u16, request: Request) -> Response {
    let Ok(sandbox) = server.emulation.find(id) else {
        return refuse(404, format!("Sandbox {id} not found"));
    };
    if let Some(token) = sandbox.record().traffic_token {
        let given = request.headers().get("x-daytona-preview-token").and_then(|value| value.to_str().ok());
        let query = parameters(&request);
        let given = given.or_else(|| parameter(&query, "DAYTONA_SANDBOX_AUTH_KEY"));
        if !given.is_some_and(|given| same_secret(given.as_bytes(), token.as_bytes())) {
            return refuse(401, "this port needs the header `X-Daytona-Preview-Token`");
        }
    }
    let guest = match server.emulation.guest(&sandbox).await {
        Ok(guest) => guest,
        Err(error) => return refused(&error),
    };
    match forward::forward(&*guest, port, request).await {
        Ok(response) => response,
        Err(error) => refuse(502, with_causes(&error)),
    }
}

/// A sandbox by its id or its name.
fn find(server: &Server, wanted: &str) -> Result<Arc<Sandbox>, Response> {
    if let Ok(sandbox) = server.emulation.find(wanted) {
        return Ok(sandbox);
    }
    let named = |sandbox: &&Arc<Sandbox>| lock(&sandbox.record).name.as_deref() == Some(wanted);
    let found = lock(&server.emulation.sandboxes).values().find(named).cloned();
    found.ok_or_else(|| refuse(404, format!("Sandbox with ID or name {wanted} not found")))
}

/// Reads the body as JSON; one that is empty is an empty object.
async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Response> {
    let bytes = axum::body::to_bytes(request.into_body(), BODY_LIMIT)
        .await
        .map_err(|_| refuse(413, "the request is too large"))?;
    let read = serde_json::from_slice(if bytes.is_empty() { b"{}" } else { &bytes });
    read.map_err(|error| refuse(400, format!("invalid request body: {error}")))
}

fn answer<T: Serialize>(value: &T) -> Response {
    axum::Json(value).into_response()
}

/// An error in the vendor's form, which serves its control plane and its daemon.
fn refuse(status: u16, message: impl Into<String>) -> Response {
    let name = match status {
        400 => "BAD_REQUEST",
        401 => "UNAUTHORIZED",
        403 => "FORBIDDEN",
        404 => "NOT_FOUND",
        408 => "REQUEST_TIMEOUT",
        409 => "CONFLICT",
        410 => "GONE",
        429 => "TOO_MANY_REQUESTS",
        501 => "NOT_IMPLEMENTED",
        _ => "INTERNAL_SERVER_ERROR",
    };
    told(status, name, message.into(), None)
}

/// An error of the daemon by a name that tells more than the status.
fn refuse_as(status: u16, name: &str, message: impl Into<String>) -> Response {
    told(status, name, message.into(), Some("DAYTONA_DAEMON"))
}

fn told(status: u16, name: &str, message: String, source: Option<&str>) -> Response {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({
        "statusCode": status,
        "error": code.canonical_reason().unwrap_or("Error"),
        "message": message,
        "code": name,
        "source": source,
        "timestamp": jiff::Timestamp::now().to_string(),
    });
    (code, axum::Json(body)).into_response()
}

/// A failed call in the vendor's form.
fn refused(error: &CallError) -> Response {
    let status = match error {
        CallError::NoSandbox(_) => 404,
        CallError::NotRunning(_) | CallError::NoImage(_) => 400,
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
