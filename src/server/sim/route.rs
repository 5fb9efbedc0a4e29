//! HTTP: which request is which, and what is done to its answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::cloud::{Cloud, Refusal, Request};
use super::fault::{Operation, RetryAfter};
use super::journal::Receipt;
use crate::provider::sim::api;
use crate::secret::SecretValue;

/// The largest request: an archive for one sandbox.
const BODY_LIMIT: usize = 256 << 20;

type Shared = Arc<Mutex<Cloud>>;

/// Marks an answer that never arrives: its connection is cut.
#[derive(Clone, Copy, Debug)]
struct Cut;

/// The connection was cut on purpose.
#[derive(Debug, thiserror::Error)]
#[error("cut on purpose")]
struct CutError;

/// Serves the cloud on every connection of the listener.
pub async fn serve(listener: TcpListener, cloud: Shared, token: Option<SecretValue>) {
    let service = TowerToHyperService::new(router(cloud, token));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, service.clone()));
                }
                Err(error) => {
                    // Out of descriptors: it passes when connections close.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
        }
    }
}

async fn connection(stream: TcpStream, inner: TowerToHyperService<Router>) {
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let answer = hyper::service::Service::call(&inner, request);
        async move {
            match answer.await {
                Ok(response) if response.extensions().get::<Cut>().is_some() => Err(CutError),
                Ok(response) => Ok(response),
                Err(never) => match never {},
            }
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended");
    }
}

fn router(cloud: Shared, token: Option<SecretValue>) -> Router {
    let router = Router::new()
        .route("/v1/capabilities", get(capabilities))
        .route("/v1/sandboxes", get(list).post(create))
        .route("/v1/sandboxes/{id}", get(get_one).patch(update).delete(delete))
        .route("/v1/sandboxes/{id}/start", post(start))
        .route("/v1/sandboxes/{id}/stop", post(stop))
        .route("/v1/sandboxes/{id}/exec", post(exec))
        .route("/v1/sandboxes/{id}/dial/{port}", get(dial))
        .route("/v1/volumes", get(list_volumes).post(create_volume))
        .route("/v1/volumes/{name}", axum::routing::delete(delete_volume))
        .route("/inventory", get(inventory))
        .route("/requests", get(requests))
        .route("/faults", get(faults).patch(set_faults))
        .fallback(|| async {
            refuse(&Refusal::new(404, "no_such_route", "there is no such route; see docs/sim.md"))
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(cloud);
    match token {
        None => router,
        Some(token) => router.layer(axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| {
                let allowed = !request.uri().path().starts_with("/v1/") || carries(request.headers(), &token);
                async move {
                    match allowed {
                        true => next.run(request).await,
                        false => refuse(&Refusal::new(
                            401,
                            "unauthorized",
                            "the token is missing or not the right one",
                        )),
                    }
                }
            },
        )),
    }
}

/// Whether a request carries the token.
fn carries(headers: &HeaderMap, token: &SecretValue) -> bool {
    let given =
        headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    given.is_some_and(|given| given.ct_eq(token.expose().as_bytes()).into())
}

fn lock(cloud: &Shared) -> MutexGuard<'_, Cloud> {
    // Every change is one call of `State::apply`; a panic in between would be a defect that a poisoned lock does not make better.
    cloud.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What happens to one request besides what it asks for.
struct Fate {
    request: Request,
    latency: Duration,
    before: Option<Response>,
    after: Option<Response>,
}

fn fate(cloud: &Shared, operation: Operation, subject: &str, headers: &HeaderMap) -> Fate {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let mut cloud = lock(cloud);
    let request = cloud.request(operation, subject, text("x-request-id"), text("idempotency-key"));
    let draw = request.draw;
    let takes = cloud.takes(operation, now());
    let of = cloud.settings.of(operation).clone();
    let latency = cloud.settings.scaled(of.latency.sample(draw, "latency"));
    let before = if !takes || draw.happens("throttle", of.throttle.0) {
        cloud.throttled(operation);
        Some(throttled(&cloud, of.retry_after))
    } else if draw.happens("error_before", of.error_before.0) {
        Some(refuse(&Refusal::new(503, "unavailable", "the service is not available")))
    } else if draw.happens("cut_before", of.cut_before.0) {
        Some(cut())
    } else {
        None
    };
    let after = if draw.happens("error_after", of.error_after.0) {
        Some(refuse(&Refusal::new(500, "internal", "something went wrong")))
    } else if draw.happens("cut_after", of.cut_after.0) {
        Some(cut())
    } else {
        None
    };
    Fate { request, latency: Duration::from_millis(u64::try_from(latency).unwrap_or(0)), before, after }
}

fn cut() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(Cut);
    response
}

fn throttled(cloud: &Cloud, retry_after: RetryAfter) -> Response {
    let mut response = refuse(&Refusal::new(429, "too_many_requests", "too many requests"));
    let settings = &cloud.settings;
    let value = match retry_after {
        RetryAfter::None => return response,
        // Seconds are rounded up, so that coming back then is never too early.
        RetryAfter::Seconds(after) => {
            (settings.scaled_duration(after).max(0) as u64).div_ceil(1000).to_string()
        }
        RetryAfter::Date(after) => {
            let at = now()
                .saturating_add(settings.cloud.clock_offset.0)
                .saturating_add(settings.scaled_duration(after));
            // An HTTP date has whole seconds.
            http_date(at.saturating_add(999))
        }
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    // How the client's clock and ours differ is seen in the date of the answer.
    let date = http_date(now().saturating_add(settings.cloud.clock_offset.0));
    if let Ok(date) = HeaderValue::from_str(&date) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

fn http_date(ms: i64) -> String {
    let at = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap_or_default()
}

/// Carries a request through its stations. `work` is what it asks for.
async fn carry(
    cloud: &Shared,
    operation: Operation,
    subject: &str,
    headers: &HeaderMap,
    work: impl FnOnce(&mut Cloud, &Request, i64) -> Result<Response, Refusal>,
) -> Response {
    let fate = fate(cloud, operation, subject, headers);
    if !fate.latency.is_zero() {
        tokio::time::sleep(fate.latency).await;
    }
    if let Some(response) = fate.before {
        return response;
    }
    let (result, receipt): (_, Receipt) = {
        let mut cloud = lock(cloud);
        let now = now();
        cloud.advance(now);
        let result = work(&mut cloud, &fate.request, now);
        (result, cloud.receipt())
    };
    if let Err(message) = receipt.wait().await {
        tracing::error!("{message}");
        return cut();
    }
    match (fate.after, result) {
        (Some(response), _) => response,
        (None, Ok(response)) => response,
        (None, Err(refusal)) => refuse(&refusal),
    }
}

fn refuse(refusal: &Refusal) -> Response {
    let error = api::ErrorDetail { code: refusal.code.to_owned(), message: refusal.message.clone() };
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &api::ErrorBody { error })
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new(400, "invalid", error.to_string()))
}

async fn capabilities(State(cloud): State<Shared>) -> Response {
    json(StatusCode::OK, &lock(&cloud).capabilities())
}

async fn create(State(cloud): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let wanted: api::CreateSandbox = match parse(&body) {
        Ok(wanted) => wanted,
        Err(refusal) => return refuse(&refusal),
    };
    // What it is for decides its chance, and not the token in its name or labels, which is another one in every run.
    let subject = wanted
        .labels
        .get("pocketenv.io/resource")
        .cloned()
        .unwrap_or_else(|| wanted.name.split('~').nth(2).unwrap_or(&wanted.name).to_owned());
    carry(&cloud, Operation::Create, &subject, &headers, |cloud, request, now| {
        let (new, made) = cloud.create(request, now, wanted)?;
        Ok(json(if new { StatusCode::CREATED } else { StatusCode::OK }, &made))
    })
    .await
}

/// What a listing is about.
struct Filter {
    labels: Vec<(String, String)>,
    prefix: String,
    cursor: String,
    limit: usize,
}

impl Filter {
    fn new(query: &[(String, String)]) -> Result<Self, Refusal> {
        let bad = |message: String| Refusal::new(400, "invalid", message);
        let mut filter =
            Self { labels: Vec::new(), prefix: String::new(), cursor: String::new(), limit: 100 };
        for (name, value) in query {
            match name.as_str() {
                "label" => match value.split_once('=') {
                    Some((label, value)) => filter.labels.push((label.to_owned(), value.to_owned())),
                    None => return Err(bad(format!("label `{value}`: expected NAME=VALUE"))),
                },
                "prefix" => filter.prefix.clone_from(value),
                "cursor" => filter.cursor.clone_from(value),
                "limit" => {
                    filter.limit =
                        value.parse().map_err(|_| bad(format!("limit `{value}` is not a number")))?
                }
                _ => return Err(bad(format!("there is no parameter `{name}`"))),
            }
        }
        Ok(filter)
    }
}

type Pairs = Query<Vec<(String, String)>>;

async fn list(State(cloud): State<Shared>, headers: HeaderMap, Query(query): Pairs) -> Response {
    carry(&cloud, Operation::List, "sandboxes", &headers, |cloud, request, now| {
        let Filter { labels, prefix, cursor, limit } = Filter::new(&query)?;
        if !labels.is_empty() && !cloud.settings.cloud.labels {
            return Err(Refusal::new(422, "invalid", "this cloud has no labels"));
        }
        Ok(json(StatusCode::OK, &cloud.list(request, now, &labels, &prefix, &cursor, limit)))
    })
    .await
}

async fn get_one(State(cloud): State<Shared>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    carry(&cloud, Operation::Get, &id, &headers, |cloud, _, now| {
        Ok(json(StatusCode::OK, &cloud.get(&id, now)?))
    })
    .await
}

async fn update(
    State(cloud): State<Shared>,
    headers: HeaderMap,
    Path(id): Path<String>,
    body: Bytes,
) -> Response {
    carry(&cloud, Operation::Update, &id, &headers, |cloud, request, now| {
        Ok(json(StatusCode::OK, &cloud.update(request, now, &id, parse(&body)?)?))
    })
    .await
}

async fn delete(State(cloud): State<Shared>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    carry(&cloud, Operation::Delete, &id, &headers, |cloud, request, now| {
        cloud.delete(request, now, &id)?;
        Ok(StatusCode::ACCEPTED.into_response())
    })
    .await
}

async fn start(State(cloud): State<Shared>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    carry(&cloud, Operation::Start, &id, &headers, |cloud, request, now| {
        Ok(json(StatusCode::OK, &cloud.start(request, now, &id)?))
    })
    .await
}

async fn stop(State(cloud): State<Shared>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    carry(&cloud, Operation::Stop, &id, &headers, |cloud, request, now| {
        Ok(json(StatusCode::OK, &cloud.stop(request, now, &id)?))
    })
    .await
}

async fn exec(
    State(cloud): State<Shared>,
    headers: HeaderMap,
    Path(id): Path<String>,
    body: Bytes,
) -> Response {
    carry(&cloud, Operation::Exec, &id, &headers, |cloud, request, now| {
        let end = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
        let stdin = body.get(end + 1..).unwrap_or_default();
        let exec: api::Exec = parse(&body[..end])?;
        Ok(json(StatusCode::OK, &cloud.exec(request, now, &id, &exec, stdin)?))
    })
    .await
}

async fn dial(
    State(cloud): State<Shared>,
    Path((id, _)): Path<(String, u16)>,
    mut request: axum::extract::Request,
) -> Response {
    let headers = request.headers().clone();
    let upgrade = hyper::upgrade::on(&mut request);
    carry(&cloud, Operation::Dial, &id, &headers, |cloud, _, now| {
        if !cloud.listens(now, &id)? {
            return Err(Refusal::new(422, "refused", "nothing listens on this port"));
        }
        tokio::spawn(async move {
            if let Ok(stream) = upgrade.await {
                answer(TokioIo::new(stream)).await;
            }
        });
        let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "tcp")];
        Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
    })
    .await
}

/// What listens inside: it answers every HTTP request with 200 and keeps silent to anything else.
async fn answer(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..read]);
        if seen.windows(4).any(|end| end == b"\r\n\r\n") {
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
            return;
        }
        if seen.len() > 64 * 1024 {
            return;
        }
    }
}

async fn list_volumes(State(cloud): State<Shared>, headers: HeaderMap, Query(query): Pairs) -> Response {
    carry(&cloud, Operation::List, "volumes", &headers, |cloud, _, _| {
        let Filter { prefix, cursor, limit, .. } = Filter::new(&query)?;
        Ok(json(StatusCode::OK, &cloud.volumes(&prefix, &cursor, limit)))
    })
    .await
}

async fn create_volume(State(cloud): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let wanted: api::Volume = match parse(&body) {
        Ok(wanted) => wanted,
        Err(refusal) => return refuse(&refusal),
    };
    let subject = wanted.name.clone();
    carry(&cloud, Operation::Volume, &subject, &headers, |cloud, request, now| {
        Ok(json(StatusCode::CREATED, &cloud.create_volume(request, now, wanted)?))
    })
    .await
}

async fn delete_volume(
    State(cloud): State<Shared>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    carry(&cloud, Operation::Volume, &name, &headers, |cloud, request, now| {
        cloud.delete_volume(request, now, &name)?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

/// The truth: everything that exists, and every effect with who asked for it. No fault reaches it.
async fn inventory(State(cloud): State<Shared>) -> Response {
    let (sandboxes, volumes, receipt) = {
        let mut cloud = lock(&cloud);
        let now = now();
        cloud.advance(now);
        let (sandboxes, volumes) = cloud.inventory(now);
        (sandboxes, volumes, cloud.receipt())
    };
    if let Err(message) = receipt.wait().await {
        return (StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
    }
    let effects = match lock(&cloud).history() {
        Ok(lines) => lines,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let exists = match serde_json::to_vec(&serde_json::json!({ "sandboxes": sandboxes, "volumes": volumes }))
    {
        Ok(exists) => exists,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    // The lines of the journal are JSON already.
    let mut body = exists;
    body.pop();
    body.extend_from_slice(b",\"effects\":[");
    for (n, line) in effects.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        if n > 0 {
            body.push(b',');
        }
        body.extend_from_slice(line);
    }
    body.extend_from_slice(b"]}");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// What was asked, past every fault.
async fn requests(State(cloud): State<Shared>) -> Response {
    json(StatusCode::OK, &lock(&cloud).asked())
}

async fn faults(State(cloud): State<Shared>) -> Response {
    json(StatusCode::OK, &lock(&cloud).settings.to_map())
}

async fn set_faults(State(cloud): State<Shared>, body: Bytes) -> Response {
    let changed: BTreeMap<String, String> = match parse(&body) {
        Ok(changed) => changed,
        Err(refusal) => return refuse(&refusal),
    };
    let (result, receipt) = {
        let mut cloud = lock(&cloud);
        (cloud.set(now(), changed), cloud.receipt())
    };
    match (result, receipt.wait().await) {
        (Err(error), _) => refuse(&Refusal::new(422, "invalid", error.to_string())),
        (Ok(()), Err(message)) => refuse(&Refusal::new(500, "internal", message)),
        (Ok(()), Ok(())) => faults(State(cloud)).await,
    }
}
