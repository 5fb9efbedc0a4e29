//! The controller over HTTP: `/healthz`, `/readyz`, `/metrics`, `/status`, and `/hooks/SOURCE` for those who push.
//!
//! A webhook only says that a source should be looked at now: nothing of its body is believed or kept. It counts if it is signed as GitHub,
//! Gitea or Forgejo do, or carries the token as GitLab does.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::app::controller::Controller;
use crate::secret::SecretValue;

/// The largest body of a webhook: what GitHub sends at most.
const MAX_BODY: usize = 25 << 20;
/// How many bodies are held in memory at once.
static BODIES: Semaphore = Semaphore::const_new(4);
/// How long sending a body may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long open connections may take to end.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves a controller until `stop`.
///
/// # Errors
/// What the system answers.
pub async fn serve(
    listener: TcpListener,
    controller: Arc<Controller>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/hooks/{source}", post(hook))
        .with_state(controller);
    let stopped = stop.clone();
    let served =
        axum::serve(listener, router).with_graceful_shutdown(async move { stopped.cancelled().await });
    tokio::select! {
        ended = async { served.await } => ended,
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

async fn healthz(State(controller): State<Arc<Controller>>) -> Response {
    answer(controller.is_alive(), "the loop hangs\n")
}

async fn readyz(State(controller): State<Arc<Controller>>) -> Response {
    answer(controller.is_alive() && controller.is_ready(), "not every source was looked at yet\n")
}

fn answer(good: bool, why: &'static str) -> Response {
    if good {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
    }
}

async fn metrics(State(controller): State<Arc<Controller>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], controller.metrics()).into_response()
}

async fn status(State(controller): State<Arc<Controller>>) -> Response {
    axum::Json(controller.status()).into_response()
}

async fn hook(
    State(controller): State<Arc<Controller>>,
    Path(source): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    // A source that there is not, one that takes no webhooks and a wrong signature look the same from outside.
    let refused =
        || (StatusCode::UNAUTHORIZED, "no such source, or not signed with its secret\n").into_response();
    let Some((secret, claim)) = controller.webhook_secret(&source).zip(Claim::of(&headers)) else {
        return refused();
    };
    let signed = match claim {
        Claim::Token(token) => is_token(secret, token),
        // Nobody else's body is read.
        Claim::Signature(signature) => {
            let Ok(_turn) = BODIES.try_acquire() else {
                let busy = (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], "busy\n");
                return busy.into_response();
            };
            match tokio::time::timeout(PATIENCE, to_bytes(body, MAX_BODY)).await {
                Ok(Ok(body)) => is_signature(secret, &signature, &body),
                Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, "too large\n").into_response(),
                Err(_) => return (StatusCode::REQUEST_TIMEOUT, "too slow\n").into_response(),
            }
        }
    };
    if !signed || !controller.trigger(&source) {
        return refused();
    }
    (StatusCode::ACCEPTED, "looking\n").into_response()
}

/// How somebody claims to know the secret.
enum Claim<'a> {
    /// By sending it, as GitLab does.
    Token(&'a [u8]),
    /// By a signature of the body, as GitHub, Gitea and Forgejo do.
    Signature(Vec<u8>),
}

impl<'a> Claim<'a> {
    fn of(headers: &'a HeaderMap) -> Option<Self> {
        let value = |name: &str| headers.get(name).map(|value| value.as_bytes());
        if let Some(token) = value("x-gitlab-token") {
            return Some(Self::Token(token));
        }
        let github = value("x-hub-signature-256").and_then(|value| value.strip_prefix(b"sha256="));
        let signature =
            github.or_else(|| value("x-gitea-signature")).or_else(|| value("x-forgejo-signature"))?;
        Some(Self::Signature(hex::decode(signature).ok()?))
    }
}

/// Whether the token is the secret.
fn is_token(secret: &SecretValue, token: &[u8]) -> bool {
    // Lengths differ in time; digests have one length. An empty secret is known to everybody.
    let same = digest(secret, token).ct_eq(&digest(secret, secret.expose().as_bytes()));
    !secret.expose().is_empty() && bool::from(same)
}

/// Whether the body is signed by one who knows the secret.
fn is_signature(secret: &SecretValue, signature: &[u8], body: &[u8]) -> bool {
    !secret.expose().is_empty() && bool::from(digest(secret, body).as_slice().ct_eq(signature))
}

fn digest(secret: &SecretValue, body: &[u8]) -> [u8; 32] {
    // Provably impossible: HMAC takes a key of any length.
    #[allow(clippy::expect_used)]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(body);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn signed(secret: &str, name: &'static str, value: &str, body: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let secret = SecretValue::new(secret);
        match Claim::of(&headers) {
            None => false,
            Some(Claim::Token(token)) => is_token(&secret, token),
            Some(Claim::Signature(signature)) => is_signature(&secret, &signature, body.as_bytes()),
        }
    }

    #[test]
    fn signatures_are_those_that_the_forges_document() {
        // The example of GitHub's documentation.
        let secret = "It's a Secret to Everybody";
        let good = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(signed(secret, "x-hub-signature-256", &format!("sha256={good}"), "Hello, World!"));
        assert!(signed(secret, "x-gitea-signature", good, "Hello, World!"));
        assert!(signed(secret, "x-gitlab-token", secret, "anything"));
        assert!(!signed(secret, "x-hub-signature-256", &format!("sha256={good}"), "Hello, World"));
        assert!(!signed(secret, "x-hub-signature-256", good, "Hello, World!"));
        assert!(!signed(secret, "x-hub-signature-256", "sha256=", "Hello, World!"));
        assert!(!signed(secret, "x-gitlab-token", "It's a Secret", "anything"));
        assert!(!signed(secret, "x-other", secret, "anything"));
        assert!(!signed("", "x-gitlab-token", "", "anything"));
    }
}
