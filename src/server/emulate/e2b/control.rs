//! The control plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::measure::measure;
use super::super::record::{OnTimeout, Record};
use super::super::request::{decoded, pairs, parameter, parameters};
use super::super::{CallError, NewSandbox, Sandbox};
use super::{ENVD_VERSION, Server, kept, refuse, refused, same_secret};
use crate::model::{SandboxSpec, Timestamp};
use crate::provider::e2b::api;

/// The largest request.
const BODY_LIMIT: usize = 4 << 20;
/// The longest page of a listing, and the usual one.
pub(super) const PAGE: usize = 100;
/// How long a sandbox lives unless the client says so: by the older call, and by the newer one.
const TIMEOUT_V1: u64 = 15;
const TIMEOUT_V2: u64 = 300;
/// How long it lives after a resume.
const TIMEOUT_RESUME: u64 = 15;
/// The longest life: a day, as the vendor has it.
const TIMEOUT_LIMIT: u64 = 24 * 3600;
/// More sandboxes than this in one question are refused.
const MANY: usize = 100;

/// Answers a request for the control plane.
pub(super) async fn serve(server: Arc<Server>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if request.method() == Method::GET && path == "/health" {
        return StatusCode::NO_CONTENT.into_response();
    }
    // Any key will do where none was chosen, but none at all is how a page in a browser would ask.
    let given = request.headers().get("x-api-key").map(|value| value.as_bytes());
    let wanted = server.emulation.options.api_key.as_deref();
    match (given, wanted) {
        (None, _) => return refuse(401, "authorization header is missing: set E2B_API_KEY"),
        (Some(given), Some(wanted)) if !same_secret(given, wanted.as_bytes()) => {
            return refuse(401, "invalid API key: this emulator was started with another one");
        }
        _ => {}
    }
    // What was begun is brought to its end, whether or not the client is still there to hear of it.
    let work = tokio::spawn(async move {
        let segments: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        answer(&server, request, &segments).await.unwrap_or_else(|response| response)
    });
    work.await.unwrap_or_else(|_| refuse(500, "the call has failed"))
}

async fn answer(server: &Server, request: Request, path: &[&str]) -> Result<Response, Response> {
    let method = request.method().as_str().to_owned();
    match (method.as_str(), path) {
        ("POST", ["sandboxes"]) => create(server, request, TIMEOUT_V1).await,
        ("POST", ["v2", "sandboxes"]) => create(server, request, TIMEOUT_V2).await,
        ("GET", ["sandboxes"]) => list(server, &parameters(&request), true).await,
        ("GET", ["v2", "sandboxes"]) => list(server, &parameters(&request), false).await,
        ("GET", ["sandboxes", "metrics"]) => metrics_of_many(server, &parameters(&request)).await,
        ("GET", ["sandboxes", id]) => get(server, id).await,
        ("DELETE", ["sandboxes", id]) => {
            let sandbox = find(server, id)?;
            server.emulation.kill(&sandbox).await.map_err(|error| refused(&error))?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        ("POST", ["sandboxes", id, "pause"]) => {
            let sandbox = find(server, id)?;
            match server.emulation.pause(&sandbox).await.map_err(|error| refused(&error))? {
                true => Ok(StatusCode::NO_CONTENT.into_response()),
                false => Err(refuse(409, format!("sandbox {id} is already paused"))),
            }
        }
        ("POST", ["sandboxes", id, "resume"]) => resume(server, id, request, TIMEOUT_RESUME, true).await,
        ("POST", ["sandboxes", id, "connect"] | ["v2", "sandboxes", id, "connect"]) => {
            resume(server, id, request, TIMEOUT_V2, false).await
        }
        ("POST", ["sandboxes", id, "timeout"]) => set_timeout(server, id, request).await,
        ("POST", ["sandboxes", id, "refreshes"]) => refresh(server, id, request).await,
        ("POST", ["sandboxes", id, "fork"]) => kept::fork(server, id, request).await,
        ("POST", ["sandboxes", id, "snapshots"]) => kept::take(server, id, request).await,
        ("GET", ["snapshots"]) => kept::list(server, &parameters(&request)).await,
        ("DELETE", ["templates", id]) => kept::remove(server, id).await,
        ("PUT", ["sandboxes", id, "network"]) => kept::set_network(server, id, request).await,
        ("GET", ["volumes"]) => kept::volumes(server).await,
        ("POST", ["volumes"]) => kept::create_volume(server, request).await,
        ("GET", ["volumes", id]) => kept::get_volume(server, id).await,
        ("DELETE", ["volumes", id]) => kept::remove_volume(server, id).await,
        ("GET", ["sandboxes", id, "metrics"]) => metrics(server, id, &parameters(&request)).await,
        _ => {
            let message = format!("the emulator does not serve {method} /{}", path.join("/"));
            // Which of the vendor's calls these are stands in docs/emulators.md.
            Err(refuse(501, message))
        }
    }
}

pub(super) fn find(server: &Server, id: &str) -> Result<Arc<Sandbox>, Response> {
    server.emulation.find(id).map_err(|error| refused(&error))
}

/// Reads the body as JSON; one that is empty is an empty object.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Response> {
    let bytes = axum::body::to_bytes(request.into_body(), BODY_LIMIT)
        .await
        .map_err(|_| refuse(413, "the request is too large"))?;
    let read = serde_json::from_slice(if bytes.is_empty() { b"{}" } else { &bytes });
    read.map_err(|error| refuse(400, format!("error when parsing the request: {error}")))
}

pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    (status, axum::Json(value)).into_response()
}

fn rfc3339(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0).unwrap_or_default().to_string()
}

pub(super) fn limited(seconds: u64) -> Result<Duration, Response> {
    if seconds > TIMEOUT_LIMIT {
        return Err(refuse(400, format!("timeout cannot be greater than {} hours", TIMEOUT_LIMIT / 3600)));
    }
    Ok(Duration::from_secs(seconds))
}

/// What of a new sandbox cannot be had here is refused and not left out.
async fn wanted(
    server: &Server,
    new: api::NewSandbox,
    key: Option<String>,
    default_timeout: u64,
) -> Result<NewSandbox, Response> {
    let cannot = |what: &str| refuse(400, format!("the emulator cannot give a sandbox {what}"));
    let timeout = limited(new.timeout.unwrap_or(default_timeout))?;
    if new.template_id.is_empty() {
        return Err(refuse(400, "templateID is missing"));
    }
    if new.mcp.is_some() {
        return Err(cannot("an MCP gateway"));
    }
    if new.iam.is_some() {
        return Err(cannot("workload identities"));
    }
    let network = new.network.unwrap_or_default();
    let spec = SandboxSpec {
        network: kept::reach(server, &network, new.allow_internet_access)?,
        mounts: kept::mounts(server, new.volume_mounts.unwrap_or_default()).await?,
        ..SandboxSpec::default()
    };
    Ok(NewSandbox {
        template: kept::plain(&new.template_id).to_owned(),
        metadata: new.metadata.unwrap_or_default(),
        env: new.env_vars.unwrap_or_default(),
        timeout,
        on_timeout: if new.auto_pause.unwrap_or_default() { OnTimeout::Pause } else { OnTimeout::Kill },
        auto_resume: new.auto_resume.unwrap_or_default().enabled,
        spec,
        private_ports: network.allow_public_traffic == Some(false),
        key,
        ..NewSandbox::default()
    })
}

/// Whether a value asks for nothing.
pub(super) fn empty(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => true,
        serde_json::Value::Array(items) => items.is_empty(),
        serde_json::Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

async fn create(server: &Server, request: Request, default_timeout: u64) -> Result<Response, Response> {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let new = wanted(server, body(request).await?, key, default_timeout).await?;
    let made = server.emulation.create(new).await.map_err(|error| refused(&error))?;
    Ok(json(StatusCode::CREATED, &sandbox(server, &made.record())))
}

pub(super) fn sandbox(server: &Server, record: &Record) -> api::Sandbox {
    api::Sandbox {
        template_id: record.template.clone(),
        sandbox_id: record.id.clone(),
        client_id: "local".to_owned(),
        alias: Some(record.template.clone()),
        envd_version: ENVD_VERSION.to_owned(),
        envd_access_token: Some(record.token.clone()),
        traffic_access_token: record.traffic_token.clone(),
        domain: Some(server.domain.clone()),
    }
}

fn detail(server: &Server, record: &Record, alone: bool) -> api::SandboxDetail {
    let machine = rustix::system::sysinfo();
    let memory = (machine.totalram as u64).saturating_mul(u64::from(machine.mem_unit));
    let disk = rustix::fs::statvfs("/").map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
    api::SandboxDetail {
        template_id: record.template.clone(),
        alias: Some(record.template.clone()),
        sandbox_id: record.id.clone(),
        client_id: "local".to_owned(),
        started_at: rfc3339(record.started_at),
        end_at: rfc3339(record.end_at),
        // Nothing is set aside for a sandbox: it may use what the machine has.
        cpu_count: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_mb: memory >> 20,
        disk_size_mb: disk >> 20,
        metadata: record.metadata.clone(),
        state: if record.paused { "paused" } else { "running" }.to_owned(),
        envd_version: ENVD_VERSION.to_owned(),
        envd_access_token: alone.then(|| record.token.clone()),
        allow_internet_access: alone.then_some(record.reaches_everything()),
        domain: alone.then(|| server.domain.clone()),
        lifecycle: alone.then(|| api::Lifecycle {
            auto_resume: record.auto_resume,
            on_timeout: match record.on_timeout {
                OnTimeout::Kill => "kill",
                OnTimeout::Pause => "pause",
            }
            .to_owned(),
        }),
        network: alone.then(|| kept::network(record)),
        volume_mounts: None,
    }
}

async fn get(server: &Server, id: &str) -> Result<Response, Response> {
    let sandbox = find(server, id)?;
    let record = server.emulation.observe(&sandbox).await.map_err(|error| refused(&error))?;
    let mut shown = detail(server, &record, true);
    shown.volume_mounts = Some(kept::mounted(server, &record).await?);
    Ok(json(StatusCode::OK, &shown))
}

/// What a listing is about.
#[derive(Debug, Default)]
struct Filter {
    metadata: BTreeMap<String, String>,
    states: Vec<String>,
    template: Option<String>,
    started_after: Option<Timestamp>,
    ascending: bool,
    limit: usize,
    after: Option<(Timestamp, String)>,
}

impl Filter {
    fn new(query: &[(String, String)], running_only: bool) -> Result<Self, String> {
        let mut filter = Self { limit: PAGE, ..Self::default() };
        if running_only {
            filter.states.push("running".to_owned());
        }
        for (name, value) in query {
            match name.as_str() {
                // It is encoded once as a whole, and each name and value once more.
                "metadata" => filter.metadata = pairs(&decoded(value)).into_iter().collect(),
                "state" => {
                    for state in value.split(',').filter(|state| !state.is_empty()) {
                        if !matches!(state, "running" | "paused") {
                            return Err(format!("state `{state}` is neither running nor paused"));
                        }
                        filter.states.push(state.to_owned());
                    }
                }
                "template" => filter.template = Some(value.clone()),
                "startedAfter" => {
                    let at: jiff::Timestamp =
                        value.parse().map_err(|error| format!("startedAfter: {error}"))?;
                    filter.started_after = Some(Timestamp(at.as_millisecond()));
                }
                "order" => match value.as_str() {
                    "asc" => filter.ascending = true,
                    "desc" => filter.ascending = false,
                    _ => return Err(format!("order `{value}` is neither asc nor desc")),
                },
                "limit" => {
                    filter.limit = value
                        .parse()
                        .ok()
                        .filter(|n| (1..=PAGE).contains(n))
                        .ok_or_else(|| format!("limit `{value}` is not a number from 1 to {PAGE}"))?;
                }
                "nextToken" => filter.after = Some(cursor(value).ok_or("nextToken is not one of ours")?),
                _ => {}
            }
        }
        Ok(filter)
    }

    fn matches(&self, record: &Record) -> bool {
        let state = if record.paused { "paused" } else { "running" };
        (self.states.is_empty() || self.states.iter().any(|wanted| wanted == state))
            && self.metadata.iter().all(|(name, value)| record.metadata.get(name) == Some(value))
            && self.template.as_ref().is_none_or(|template| *template == record.template)
            && self.started_after.is_none_or(|at| record.started_at > at)
    }

    /// Whether it stands on a later page.
    fn is_later(&self, record: &Record) -> bool {
        let Some((at, id)) = &self.after else { return true };
        let place = (record.started_at, &record.id);
        if self.ascending { place > (*at, id) } else { place < (*at, id) }
    }
}

/// Where a page begins: behind this start and id.
fn cursor(token: &str) -> Option<(Timestamp, String)> {
    let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (at, id) = text.split_once(' ')?;
    Some((Timestamp(at.parse().ok()?), id.to_owned()))
}

async fn list(server: &Server, query: &[(String, String)], running_only: bool) -> Result<Response, Response> {
    let filter = Filter::new(query, running_only).map_err(|message| refuse(400, message))?;
    let mut records = server.emulation.list().await.map_err(|error| refused(&error))?;
    let running = records.iter().filter(|record| !record.paused).count();
    records.retain(|record| filter.matches(record) && filter.is_later(record));
    records.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
    if !filter.ascending {
        records.reverse();
    }
    let more = records.len() > filter.limit;
    records.truncate(filter.limit);
    let page: Vec<_> = records.iter().map(|record| detail(server, record, false)).collect();
    let mut response = json(StatusCode::OK, &page);
    let headers = response.headers_mut();
    headers.insert("x-total-running", HeaderValue::from(running));
    if let Some(last) = records.last().filter(|_| more) {
        let token = BASE64_URL_SAFE_NO_PAD.encode(format!("{} {}", last.started_at.0, last.id));
        if let Ok(token) = HeaderValue::from_str(&token) {
            headers.insert("x-next-token", token);
        }
    }
    Ok(response)
}

async fn resume(
    server: &Server,
    id: &str,
    request: Request,
    default_timeout: u64,
    paused_only: bool,
) -> Result<Response, Response> {
    let asked: api::Timeout = body(request).await?;
    let timeout = limited(asked.timeout.unwrap_or(default_timeout))?;
    let found = find(server, id)?;
    if paused_only && !server.emulation.observe(&found).await.map_err(|error| refused(&error))?.paused {
        return Err(refuse(409, format!("sandbox {id} is already running")));
    }
    let resumed = server.emulation.resume(&found, timeout).await.map_err(|error| refused(&error))?;
    let status = if resumed { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(status, &sandbox(server, &found.record())))
}

async fn set_timeout(server: &Server, id: &str, request: Request) -> Result<Response, Response> {
    let asked: api::Timeout = body(request).await?;
    let seconds = asked.timeout.ok_or_else(|| refuse(400, "timeout is missing"))?;
    let sandbox = find(server, id)?;
    let set = server.emulation.set_timeout(&sandbox, limited(seconds)?).await;
    set.map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn refresh(server: &Server, id: &str, request: Request) -> Result<Response, Response> {
    let asked: api::Timeout = body(request).await?;
    let seconds = asked.duration.unwrap_or(TIMEOUT_V1);
    if seconds > 3600 {
        return Err(refuse(400, "duration cannot be greater than 3600 seconds"));
    }
    let found = find(server, id)?;
    let record = server.emulation.observe(&found).await.map_err(|error| refused(&error))?;
    if record.paused {
        return Err(refused(&CallError::NotRunning(record.id)));
    }
    // It only ever makes the time longer.
    let resumed = server.emulation.resume(&found, Duration::from_secs(seconds)).await;
    resumed.map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn measured(server: &Server, sandbox: &Arc<Sandbox>) -> Result<Option<api::Metric>, CallError> {
    let record = server.emulation.observe(sandbox).await?;
    if record.paused {
        return Ok(None);
    }
    let guest = server.emulation.inside(sandbox).await?;
    let usage = measure(&*guest).await?;
    let now = server.emulation.now();
    Ok(Some(api::Metric {
        timestamp: rfc3339(now),
        timestamp_unix: now.0 / 1000,
        cpu_count: usage.cpus,
        cpu_used_pct: usage.cpu_percent,
        mem_used: usage.memory,
        mem_total: usage.memory_total,
        mem_cache: usage.cache,
        disk_used: usage.disk,
        disk_total: usage.disk_total,
    }))
}

/// What is measured now; nothing is kept of earlier times.
async fn metrics(server: &Server, id: &str, query: &[(String, String)]) -> Result<Response, Response> {
    let bound = |name: &str| parameter(query, name).and_then(|text| text.parse::<i64>().ok());
    let sandbox = find(server, id)?;
    let metric = measured(server, &sandbox).await.map_err(|error| refused(&error))?;
    let wanted = |metric: &api::Metric| {
        bound("start").is_none_or(|at| metric.timestamp_unix >= at)
            && bound("end").is_none_or(|at| metric.timestamp_unix <= at)
    };
    Ok(json(StatusCode::OK, &metric.into_iter().filter(wanted).collect::<Vec<_>>()))
}

async fn metrics_of_many(server: &Server, query: &[(String, String)]) -> Result<Response, Response> {
    let ids: Vec<&str> =
        parameter(query, "sandbox_ids").unwrap_or_default().split(',').filter(|id| !id.is_empty()).collect();
    if ids.is_empty() || ids.len() > MANY {
        return Err(refuse(400, format!("sandbox_ids: from 1 to {MANY} ids")));
    }
    let mut found = BTreeMap::new();
    for id in ids {
        let Ok(sandbox) = server.emulation.find(id) else { continue };
        match measured(server, &sandbox).await {
            Ok(Some(metric)) => {
                found.insert(id, metric);
            }
            Ok(None) | Err(CallError::NoSandbox(_)) => {}
            Err(error) => return Err(refused(&error)),
        }
    }
    Ok(json(StatusCode::OK, &serde_json::json!({ "sandboxes": found })))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_by_metadata_is_decoded_as_the_vendor_encodes_it() {
        let query = pairs("metadata=fleet%3Df1%26k%252520v%3Dx%252526y&state=running,paused&limit=7");
        let filter = Filter::new(&query, false).unwrap();
        let wanted = [("fleet", "f1"), ("k v", "x&y")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(filter.metadata, BTreeMap::from(wanted));
        assert_eq!((filter.states.len(), filter.limit), (2, 7));
        for bad in ["limit=0", "limit=101", "state=dead", "order=up", "nextToken=!", "startedAfter=soon"] {
            assert!(Filter::new(&pairs(bad), false).is_err(), "{bad}");
        }
    }
}
