//! The Connect protocol, with JSON: one message and one answer, or streams of them.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::provider::e2b::api::{
    COMPRESSED, ConnectError, END_OF_STREAM, EndOfStream, Frames, MESSAGE_LIMIT, frame,
};

/// How often a stream says that it is there, unless the client says otherwise.
const KEEPALIVE: Duration = Duration::from_secs(90);
/// Messages that wait to be sent.
const BACKLOG: usize = 16;

/// What a call did not do.
#[derive(Clone, Debug)]
pub(super) struct Refusal(pub ConnectError);

impl Refusal {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self(ConnectError { code: code.to_owned(), message: message.into() })
    }

    fn status(&self) -> StatusCode {
        match self.0.code.as_str() {
            "invalid_argument" | "failed_precondition" | "out_of_range" => StatusCode::BAD_REQUEST,
            "unauthenticated" => StatusCode::UNAUTHORIZED,
            "permission_denied" => StatusCode::FORBIDDEN,
            "not_found" => StatusCode::NOT_FOUND,
            "already_exists" | "aborted" => StatusCode::CONFLICT,
            "resource_exhausted" => StatusCode::TOO_MANY_REQUESTS,
            "canceled" => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            "unimplemented" => StatusCode::NOT_IMPLEMENTED,
            "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "deadline_exceeded" => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json(self.status(), &self.0)
    }
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The answer of a call with one message.
pub(super) fn answer<T: Serialize>(result: Result<T, Refusal>) -> Response {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(refusal) => refusal.into_response(),
    }
}

fn is(headers: &HeaderMap, kind: &str) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(kind)
}

/// The answer to a client that speaks another encoding.
fn unsupported() -> Response {
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, [("accept-post", "application/json, application/connect+json")])
        .into_response()
}

/// The message of a call with one.
pub(super) async fn message<T: DeserializeOwned>(request: Request) -> Result<T, Response> {
    if !is(request.headers(), "application/json") {
        return Err(unsupported());
    }
    let body = axum::body::to_bytes(request.into_body(), MESSAGE_LIMIT)
        .await
        .map_err(|_| Refusal::new("resource_exhausted", "the message is too long").into_response())?;
    let read = serde_json::from_slice(if body.is_empty() { b"{}" } else { &body });
    read.map_err(|error| Refusal::new("invalid_argument", error.to_string()).into_response())
}

/// The messages of a stream from the client.
pub(super) struct Messages {
    body: axum::body::BodyDataStream,
    frames: Frames,
}

impl Messages {
    /// The stream of a request.
    pub fn of(request: Request) -> Result<Self, Response> {
        if !is(request.headers(), "application/connect+json") {
            return Err(unsupported());
        }
        Ok(Self { body: request.into_body().into_data_stream(), frames: Frames::default() })
    }

    /// The next message; `None` at the end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Refusal> {
        let broken = |what: String| Refusal::new("invalid_argument", what);
        loop {
            match self.frames.take().map_err(|error| broken(error.to_string()))? {
                Some((flag, _)) if flag & END_OF_STREAM != 0 => return Ok(None),
                Some((flag, _)) if flag & COMPRESSED != 0 => {
                    return Err(Refusal::new("unimplemented", "compressed messages are not understood"));
                }
                Some((_, message)) => {
                    return serde_json::from_slice(&message)
                        .map(Some)
                        .map_err(|error| broken(error.to_string()));
                }
                None => match self.body.next().await {
                    Some(Ok(bytes)) => self.frames.push(&bytes),
                    Some(Err(error)) => return Err(Refusal::new("canceled", error.to_string())),
                    None if self.frames.is_empty() => return Ok(None),
                    None => return Err(broken("the stream ends within a message".to_owned())),
                },
            }
        }
    }
}

/// A stream of messages to the client.
pub(super) struct Sender(mpsc::Sender<Bytes>);

impl Sender {
    /// Sends a message; false if nobody is there any more.
    pub async fn send<T: Serialize>(&self, message: &T) -> bool {
        match serde_json::to_vec(message) {
            Ok(message) => self.0.send(frame(0, &message).into()).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "a message could not be written");
                false
            }
        }
    }

    /// Waits until nobody is there any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    /// Ends the stream.
    pub async fn end(self, result: Result<(), Refusal>) {
        let end = EndOfStream { error: result.err().map(|refusal| refusal.0) };
        let end = serde_json::to_vec(&end).unwrap_or_else(|_| b"{}".to_vec());
        // Nobody may be there any more.
        let _ = self.0.send(frame(END_OF_STREAM, &end).into()).await;
    }
}

/// A stream to the client, and the answer that carries it.
pub(super) fn stream() -> (Sender, Response) {
    let (sender, receiver) = mpsc::channel::<Bytes>(BACKLOG);
    let body = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|bytes| (Ok::<_, Infallible>(bytes), receiver))
    });
    let kind = [(header::CONTENT_TYPE, "application/connect+json")];
    (Sender(sender), (kind, Body::from_stream(body)).into_response())
}

/// A stream that has nothing but its end.
pub(super) async fn ended<T: Serialize>(result: Result<T, Refusal>) -> Response {
    let (sender, response) = stream();
    match result {
        Ok(message) => {
            sender.send(&message).await;
            sender.end(Ok(())).await;
        }
        Err(refusal) => sender.end(Err(refusal)).await,
    }
    response
}

/// How long the call may take, if the client says so.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("connect-timeout-ms")?.to_str().ok()?;
    text.parse().ok().filter(|ms| *ms > 0).map(Duration::from_millis)
}

/// How often the stream says that it is there.
pub(super) fn keepalive(headers: &HeaderMap) -> Duration {
    let given = headers.get("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.parse().ok());
    given.filter(|seconds| *seconds > 0).map_or(KEEPALIVE, Duration::from_secs)
}
