//! The control plane.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::record::{self, OnTimeout, Record};
use super::super::request::{parameter, parameters};
use super::super::{CallError, NewSandbox, after, lock};
use super::{Server, answer as say, body, find, kept, refuse, refused};
use crate::model::{Mount, Quantity, Resources, SandboxSpec, Timestamp};

/// A sandbox stops when nothing was asked of it for this long, in minutes, unless the program says otherwise.
const AUTO_STOP: u64 = 15;
/// What no sandbox lives to see.
const NEVER: Duration = Duration::from_millis(u64::MAX);
/// The usual page of a listing, and the longest.
const PAGE: usize = 100;
const PAGE_LIMIT: usize = 200;
/// The image that is meant where none is named.
const DEFAULT: &str = "base";

/// Answers a request for the control plane.
pub(super) async fn answer(server: &Server, path: &[&str], request: Request) -> Result<Response, Response> {
    let method = request.method().as_str().to_owned();
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.unwrap_or("localhost").to_owned();
    let emulation = &server.emulation;
    match (method.as_str(), path) {
        ("POST", ["sandbox"]) => {
            let new = wanted(server, body(request).await?).await?;
            if let Some(name) = &new.name
                && find(server, name).is_ok()
            {
                return Err(refuse(409, format!("Sandbox with name {name} already exists")));
            }
            let made = emulation.create(new).await.map_err(|error| refused(&error))?;
            return Ok(say(&sandbox(&host, &made.record())));
        }
        ("GET", ["sandbox"]) => return list(server, &host, &parameters(&request)).await,
        (_, ["volumes", rest @ ..]) => {
            let answered = kept::about_volumes(server, &method, rest, request).await;
            return answered.unwrap_or_else(|| Err(unknown(&method, path)));
        }
        (_, ["snapshots", rest @ ..]) => {
            let answered = kept::about_snapshots(server, &method, rest, &parameters(&request)).await;
            return answered.unwrap_or_else(|| Err(unknown(&method, path)));
        }
        _ => {}
    }
    let ["sandbox", id, rest @ ..] = path else { return Err(unknown(&method, path)) };
    let found = find(server, id)?;
    match (method.as_str(), rest) {
        ("GET", []) => {
            emulation.observe(&found).await.map_err(|error| refused(&error))?;
        }
        ("DELETE", []) => {
            let mut shown = sandbox(&host, &found.record());
            emulation.kill(&found).await.map_err(|error| refused(&error))?;
            server.sessions.forget(&found.record().id);
            shown["state"] = json!("destroyed");
            shown["desiredState"] = json!("destroyed");
            return Ok(say(&shown));
        }
        ("POST", ["start"]) => {
            let timeout = Duration::from_millis(found.record().timeout_ms);
            emulation.resume(&found, timeout).await.map_err(|error| refused(&error))?;
        }
        ("POST", ["stop"]) => {
            let record = found.record();
            server.sessions.forget(&record.id);
            if record.on_timeout == OnTimeout::Kill {
                // It was made to live no longer than it runs.
                let mut shown = sandbox(&host, &record);
                emulation.kill(&found).await.map_err(|error| refused(&error))?;
                shown["state"] = json!("destroyed");
                return Ok(say(&shown));
            }
            if !emulation.pause(&found).await.map_err(|error| refused(&error))? {
                return Err(refuse(400, "Sandbox is not started"));
            }
        }
        ("PUT", ["labels"]) => {
            #[derive(Deserialize)]
            struct Labels {
                labels: BTreeMap<String, String>,
            }
            let asked: Labels = body(request).await?;
            lock(&found.record).metadata = asked.labels;
            save(server).await?;
            return Ok(say(&json!({ "labels": found.record().metadata })));
        }
        ("POST", ["autostop", minutes]) => {
            let timeout = minutes_of("autostop", minutes)?;
            {
                let mut record = lock(&found.record);
                record.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                record.end_at = after(emulation.now(), timeout);
            }
            save(server).await?;
            emulation.changed.notify_one();
        }
        ("POST", ["autodelete", minutes]) => {
            let minutes = minutes.parse().map_err(|_| refuse(400, "autodelete takes a number of minutes"))?;
            let on_timeout = auto_delete(minutes)?;
            lock(&found.record).on_timeout = on_timeout;
            save(server).await?;
        }
        ("POST", ["ttl", minutes]) => {
            let minutes = minutes.parse().map_err(|_| refuse(400, "ttl takes a number of minutes"))?;
            {
                let mut record = lock(&found.record);
                record.dies_at = life(minutes).map(|life| after(record.created_at, life));
            }
            save(server).await?;
            emulation.changed.notify_one();
        }
        ("POST", ["snapshot"]) => kept::take(server, id, request).await?,
        ("POST", ["fork"]) => {
            let made = kept::fork(server, id, request).await?;
            return Ok(say(&sandbox(&host, &made.record())));
        }
        ("POST", ["resize"]) => kept::resize(server, &found, request).await?,
        ("POST", ["network-settings"]) => kept::set_network(server, &found, request).await?,
        ("POST", ["last-activity"]) => touch(server, &found.record().id),
        ("POST", ["public", public]) => {
            let token = match *public {
                "true" => None,
                "false" => Some(record::token()),
                _ => return Err(refuse(400, "public is true or false")),
            };
            lock(&found.record).traffic_token = token;
            save(server).await?;
        }
        ("GET", ["ports", port, "preview-url"]) => {
            let port: u16 = port.parse().map_err(|_| refuse(400, format!("{port} is no port")))?;
            let record = found.record();
            let url = format!("http://{port}-{}.localhost:{}", record.id, server.port);
            let token = record.traffic_token.unwrap_or_default();
            return Ok(say(&json!({ "sandboxId": record.id, "url": url, "token": token })));
        }
        ("GET", ["toolbox-proxy-url"]) => {
            return Ok(say(&json!({ "url": format!("http://{host}/toolbox") })));
        }
        _ => return Err(unknown(&method, path)),
    }
    Ok(say(&sandbox(&host, &found.record())))
}

/// Which of the vendor's calls these are stands in docs/emulators.md.
fn unknown(method: &str, path: &[&str]) -> Response {
    refuse(501, format!("the emulator does not serve {method} /{}", path.join("/")))
}

async fn save(server: &Server) -> Result<(), Response> {
    server.emulation.save().await.map_err(|error| refused(&CallError::State(error)))
}

/// Something was asked of a sandbox: its idle time begins anew.
pub(super) fn touch(server: &Server, id: &str) {
    let Ok(sandbox) = server.emulation.find(id) else { return };
    let mut record = lock(&sandbox.record);
    record.end_at = after(server.emulation.now(), Duration::from_millis(record.timeout_ms));
}

fn minutes_of(what: &str, text: &str) -> Result<Duration, Response> {
    let wrong = || refuse(400, format!("{what} takes a number of minutes, not `{text}`"));
    Ok(idle(text.parse().map_err(|_| wrong())?))
}

/// How long a sandbox may be idle; nothing is for ever.
fn idle(minutes: u32) -> Duration {
    if minutes == 0 { NEVER } else { Duration::from_secs(u64::from(minutes) * 60) }
}

/// How long a sandbox lives; nothing is for ever.
fn life(minutes: u32) -> Option<Duration> {
    (minutes > 0).then(|| Duration::from_secs(u64::from(minutes) * 60))
}

fn auto_delete(minutes: i64) -> Result<OnTimeout, Response> {
    match minutes {
        ..0 => Ok(OnTimeout::Pause),
        0 => Ok(OnTimeout::Kill),
        _ => Err(refuse(
            400,
            "the emulator deletes a stopped sandbox at once (autoDeleteInterval 0) or never (-1)",
        )),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Create {
    name: Option<String>,
    snapshot: Option<String>,
    env: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    public: Option<bool>,
    #[serde(flatten)]
    reach: kept::Reach,
    #[serde(flatten)]
    limits: kept::Limits,
    volumes: Option<Vec<kept::VolumeMount>>,
    build_info: Option<BuildInfo>,
    auto_stop_interval: Option<u32>,
    auto_delete_interval: Option<i64>,
    ttl_minutes: Option<u32>,
    user: Option<String>,
    /// Where sandboxes are to live; there is one place.
    target: Option<Value>,
    /// Everything else the vendor knows.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// An image, as the vendor's clients ask for one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BuildInfo {
    dockerfile_content: String,
    #[serde(default)]
    context_hashes: Option<Vec<Value>>,
}

impl BuildInfo {
    /// The image; nothing is built here.
    fn image(&self) -> Result<String, Response> {
        let mut lines = self.dockerfile_content.lines().map(str::trim).filter(|line| !line.is_empty());
        match (lines.next().and_then(|line| line.strip_prefix("FROM ")), lines.next()) {
            (Some(image), None) if self.context_hashes.as_ref().is_none_or(Vec::is_empty) => {
                Ok(image.trim().to_owned())
            }
            _ => Err(refuse(400, "the emulator builds nothing: an image by its name alone, `FROM IMAGE`")),
        }
    }
}

/// What of a new sandbox cannot be had here is refused and not left out.
async fn wanted(server: &Server, new: Create) -> Result<NewSandbox, Response> {
    let _ = new.target;
    let nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    if let Some((name, _)) = new.other.iter().find(|(_, value)| !nothing(value)) {
        return Err(refuse(400, format!("the emulator cannot give a sandbox `{name}`")));
    }
    if let Some(name) = &new.name
        && (name.is_empty() || name.len() > 200 || name.contains('/'))
    {
        return Err(refuse(400, "name: 1 to 200 characters, and no slash"));
    }
    let image = new.build_info.as_ref().map(BuildInfo::image).transpose()?;
    let spec = SandboxSpec {
        network: new.reach.network(server)?,
        mounts: kept::mounts(server, new.volumes.unwrap_or_default()).await?,
        resources: new.limits.resources(server)?,
        ..SandboxSpec::default()
    };
    let minutes = new.auto_stop_interval.unwrap_or(u32::try_from(AUTO_STOP).unwrap_or(15));
    Ok(NewSandbox {
        name: new.name,
        from_image: image.is_some(),
        template: image
            .or(new.snapshot.filter(|name| !name.is_empty()))
            .unwrap_or_else(|| DEFAULT.to_owned()),
        metadata: new.labels.unwrap_or_default(),
        env: new.env.unwrap_or_default(),
        timeout: idle(minutes),
        on_timeout: auto_delete(new.auto_delete_interval.unwrap_or(-1))?,
        life: life(new.ttl_minutes.unwrap_or_default()),
        user: new.user.filter(|user| !user.is_empty()),
        private_ports: !new.public.unwrap_or_default(),
        spec,
        ..NewSandbox::default()
    })
}

pub(super) fn rfc3339(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0).unwrap_or_default().to_string()
}

/// Cores, memory and disk in GiB: what is set aside, else what the machine has.
pub(super) fn limits(resources: &Resources) -> (usize, u64, u64) {
    let machine = rustix::system::sysinfo();
    let memory = (machine.totalram as u64).saturating_mul(u64::from(machine.mem_unit)) >> 30;
    let disk = rustix::fs::statvfs("/").map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize)) >> 30;
    let cpu = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let gib = |size: Option<Quantity>| size.map(|size| size.as_bytes() >> 30);
    (
        resources.cpu_millis.map_or(cpu, |millis| (millis / 1000) as usize),
        gib(resources.memory).unwrap_or(memory.max(1)),
        gib(resources.disk).unwrap_or(disk.max(1)),
    )
}

/// A sandbox as the vendor describes one. Of resources it says what the machine has where nothing is set aside.
fn sandbox(host: &str, record: &Record) -> Value {
    let (cpu, memory, disk) = limits(&record.resources);
    let (networks, names) = kept::lists(&record.network);
    let blocked = !record.reaches_everything() && record.network.allow.is_empty();
    let mount = |mount: &Mount| json!({ "volumeId": mount.volume, "mountPath": mount.path });
    let mounts: Vec<Value> = record.mounts.iter().map(mount).collect();
    let minutes = if record.timeout_ms == u64::MAX { 0 } else { record.timeout_ms / 60_000 };
    let state = match (&record.provider_id, record.paused) {
        (None, _) => "creating",
        (_, true) => "stopped",
        (_, false) => "started",
    };
    json!({
        "id": record.id,
        "organizationId": "local",
        "name": record.name.as_ref().unwrap_or(&record.id),
        "snapshot": record.template,
        "user": record.user.as_deref().unwrap_or(super::super::files::USER),
        "env": {},
        "labels": record.metadata,
        "public": record.traffic_token.is_none(),
        "networkBlockAll": blocked,
        "networkAllowList": networks,
        "domainAllowList": names,
        "kvm": false,
        "target": "local",
        "cpu": cpu,
        "gpu": 0,
        "memory": memory,
        "disk": disk,
        "state": state,
        "desiredState": if record.paused { "stopped" } else { "started" },
        "recoverable": false,
        "backupState": "None",
        "autoStopInterval": minutes,
        "autoArchiveInterval": 0,
        "autoDeleteInterval": if record.on_timeout == OnTimeout::Kill { 0 } else { -1 },
        "autoDestroyAt": record.dies_at.map(rfc3339),
        "volumes": mounts,
        "createdAt": rfc3339(record.created_at),
        "updatedAt": rfc3339(record.started_at),
        "lastActivityAt": rfc3339(record.started_at),
        "runnerId": "local",
        "toolboxProxyUrl": format!("http://{host}/toolbox"),
    })
}

async fn list(server: &Server, host: &str, query: &[(String, String)]) -> Result<Response, Response> {
    let labels: BTreeMap<String, String> = match parameter(query, "labels") {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| refuse(400, format!("labels is no JSON object of strings: {error}")))?,
        None => BTreeMap::new(),
    };
    let limit =
        match parameter(query, "limit") {
            Some(text) => text.parse().ok().filter(|n| (1..=PAGE_LIMIT).contains(n)).ok_or_else(|| {
                refuse(400, format!("limit `{text}` is not a number from 1 to {PAGE_LIMIT}"))
            })?,
            None => PAGE,
        };
    let behind = match parameter(query, "cursor") {
        Some(text) => Some(cursor(text).ok_or_else(|| refuse(400, "cursor is not one of ours"))?),
        None => None,
    };
    let mut states = Vec::new();
    for (name, value) in query {
        match name.as_str() {
            "states" => states.extend(value.split(',').map(str::to_owned)),
            "labels" | "limit" | "cursor" | "id" | "name" => {}
            other => return Err(refuse(400, format!("the emulator does not list by `{other}`"))),
        }
    }
    let mut records = server.emulation.list().await.map_err(|error| refused(&error))?;
    records.retain(|record| {
        let state = if record.paused { "stopped" } else { "started" };
        let name = record.name.as_ref().unwrap_or(&record.id);
        labels.iter().all(|(name, value)| record.metadata.get(name) == Some(value))
            && (states.is_empty() || states.iter().any(|wanted| wanted == state))
            && parameter(query, "id").is_none_or(|wanted| record.id.starts_with(wanted))
            && parameter(query, "name").is_none_or(|wanted| name.starts_with(wanted))
            && behind.as_ref().is_none_or(|(at, id)| (record.created_at, &record.id) < (*at, id))
    });
    records.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    let more = records.len() > limit;
    records.truncate(limit);
    let next = records.last().filter(|_| more);
    let next = next.map(|last| BASE64_URL_SAFE_NO_PAD.encode(format!("{} {}", last.created_at.0, last.id)));
    let items: Vec<Value> = records.iter().map(|record| sandbox(host, record)).collect();
    Ok(say(&json!({ "items": items, "nextCursor": next })))
}

/// Where a page begins: behind this start and id.
fn cursor(token: &str) -> Option<(Timestamp, String)> {
    let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (at, id) = text.split_once(' ')?;
    Some((Timestamp(at.parse().ok()?), id.to_owned()))
}
