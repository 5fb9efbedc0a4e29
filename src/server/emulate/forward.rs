//! A request for a port inside, passed on as it is: HTTP, and what an upgrade makes of it.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Uri, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;

use crate::provider::{Guest, GuestError};

/// Why there is no answer from the port.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    /// Nothing accepts connections there.
    #[error("nothing listens on port {0}")]
    Closed(u16),
    /// What listens does not speak HTTP, or broke off.
    #[error("the answer of port {0} is not HTTP")]
    Answer(u16, #[source] hyper::Error),
}

/// Passes a request on to a port inside.
pub(super) async fn forward(
    guest: &dyn Guest,
    port: u16,
    mut request: Request,
) -> Result<Response, ForwardError> {
    let stream = guest.dial(port).await.map_err(|error: GuestError| {
        tracing::debug!(port, %error, "a port inside does not answer");
        ForwardError::Closed(port)
    })?;
    let broken = |error| ForwardError::Answer(port, error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the answer, or with the upgraded connection.
    tokio::spawn(connection.with_upgrades());

    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let upgrade = request.headers().contains_key(header::UPGRADE);
    let ours = upgrade.then(|| hyper::upgrade::on(&mut request));
    if let Ok(uri) = path.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    if !upgrade {
        // The connection is for this one request.
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let mut answer = sender.send_request(request).await.map_err(broken)?;
    if let (Some(ours), hyper::StatusCode::SWITCHING_PROTOCOLS) = (ours, answer.status()) {
        let theirs = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                // Either side may break off; then both are done.
                let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            }
        });
    } else {
        answer.headers_mut().remove(header::CONNECTION);
    }
    Ok(answer.map(Body::new))
}
