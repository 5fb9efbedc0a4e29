//! The control plane's calls about snapshots, forks, volumes, and what a sandbox reaches.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::kept::Kept;
use super::super::request::parameter;
use super::super::{NewSandbox, Sandbox};
use super::control::{limits, rfc3339};
use super::{Server, answer as say, body, find, refuse, refused};
use crate::model::{Mount, NetworkSpec, Quantity, Resources};

/// The usual page of a listing, and the longest.
const PAGE: usize = 100;
const PAGE_LIMIT: usize = 200;
/// The longest name.
const NAME: usize = 1024;

/// What a sandbox is to reach, as a create and a change have it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Reach {
    network_block_all: Option<bool>,
    network_allow_list: Option<String>,
    domain_allow_list: Option<String>,
}

impl Reach {
    pub(super) fn network(&self, server: &Server) -> Result<NetworkSpec, Response> {
        let lists = [&self.network_allow_list, &self.domain_allow_list];
        let items = lists.into_iter().flatten().flat_map(|list| list.split(','));
        let allow: Vec<String> =
            items.map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect();
        let allow = match self.network_block_all {
            Some(true) => Vec::new(),
            _ if allow.is_empty() => return Ok(NetworkSpec::default()),
            _ => allow,
        };
        server.emulation.confined(allow).map_err(|error| refused(&error))
    }
}

/// The two lists that a network is, as the vendor shows them: by address, and by name.
pub(super) fn lists(network: &NetworkSpec) -> (Option<String>, Option<String>) {
    let by_address =
        |item: &&String| item.split('/').next().is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_ok());
    let (networks, names): (Vec<&String>, Vec<&String>) = network.allow.iter().partition(by_address);
    let list = |items: Vec<&String>| {
        (!items.is_empty()).then(|| items.into_iter().cloned().collect::<Vec<_>>().join(","))
    };
    (list(networks), list(names))
}

pub(super) async fn set_network(
    server: &Server,
    found: &Arc<Sandbox>,
    request: Request,
) -> Result<(), Response> {
    let asked: Reach = body(request).await?;
    let network = asked.network(server)?;
    let altered = server.emulation.alter(found, |spec| spec.network = network).await;
    altered.map_err(|error| refused(&error))
}

/// What is not said stays as it is.
pub(super) async fn resize(server: &Server, found: &Arc<Sandbox>, request: Request) -> Result<(), Response> {
    let asked: Limits = body(request).await?;
    let asked = asked.resources(server)?;
    let altered = server.emulation.alter(found, |spec| {
        let now = &mut spec.resources;
        now.cpu_millis = asked.cpu_millis.or(now.cpu_millis);
        now.memory = asked.memory.or(now.memory);
        now.disk = asked.disk.or(now.disk);
    });
    altered.await.map_err(|error| refused(&error))
}

/// What is set aside for a sandbox: processors, memory and disk in GiB.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    cpu: Option<u32>,
    memory: Option<u64>,
    disk: Option<u64>,
}

impl Limits {
    pub(super) fn resources(self, server: &Server) -> Result<Resources, Response> {
        let sheet = server.emulation.options.provider.capabilities();
        for (name, given) in
            [("cpu", self.cpu.is_some()), ("memory", self.memory.is_some()), ("disk", self.disk.is_some())]
        {
            if given && !sheet.honours(&["resources", name], None) {
                return Err(refuse(400, format!("the emulator cannot set aside `{name}` for a sandbox")));
            }
        }
        let size = |gib: u64| Quantity::from_bytes(gib.saturating_mul(1 << 30));
        Ok(Resources {
            cpu_millis: self.cpu.map(|cpu| cpu.saturating_mul(1000)),
            memory: self.memory.map(size),
            disk: self.disk.map(size),
            pids: None,
            io: Default::default(),
        })
    }
}

/// A volume in a sandbox.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeMount {
    /// By its id or name.
    volume_id: String,
    mount_path: String,
    #[serde(default)]
    subpath: Option<String>,
}

pub(super) async fn mounts(server: &Server, asked: Vec<VolumeMount>) -> Result<Vec<Mount>, Response> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let found = volumes(server).await?;
    let mount = |mount: VolumeMount| {
        let wanted = &mount.volume_id;
        if mount.subpath.is_some_and(|path| !path.is_empty()) {
            return Err(refuse(
                400,
                format!("the emulator mounts all of volume {wanted} or nothing (subpath)"),
            ));
        }
        if !mount.mount_path.starts_with('/') {
            return Err(refuse(400, format!("volume {wanted}: mountPath is no absolute path")));
        }
        let volume = found.iter().find(|volume| volume.is(wanted));
        let volume = volume.ok_or_else(|| refuse(404, format!("Volume {wanted} not found")))?;
        Ok(Mount { path: mount.mount_path, volume: volume.id.clone(), read_only: false })
    };
    asked.into_iter().map(mount).collect()
}

async fn volumes(server: &Server) -> Result<Vec<Kept>, Response> {
    server.emulation.volumes().await.map_err(|error| refused(&error))
}

fn volume(volume: &Kept) -> Value {
    json!({
        "id": volume.id,
        "name": volume.name.as_ref().unwrap_or(&volume.id),
        "organizationId": "local",
        "state": "ready",
        "createdAt": rfc3339(volume.created_at),
        "updatedAt": rfc3339(volume.created_at),
        "errorReason": null,
    })
}

/// A name that a program gives.
#[derive(Deserialize)]
struct Named {
    name: String,
}

fn checked(name: &str) -> Result<(), Response> {
    if name.is_empty() || name.len() > NAME || name.chars().any(char::is_control) {
        return Err(refuse(400, format!("name: 1 to {NAME} characters")));
    }
    Ok(())
}

/// Answers a call about volumes; `None` if it is none that is served.
pub(super) async fn about_volumes(
    server: &Server,
    method: &str,
    path: &[&str],
    request: Request,
) -> Option<Result<Response, Response>> {
    let one = async |is: &(dyn Fn(&Kept) -> bool + Sync), wanted: &str| {
        let found = volumes(server).await?.into_iter().find(|volume| is(volume));
        found.ok_or_else(|| refuse(404, format!("Volume {wanted} not found")))
    };
    Some(match (method, path) {
        ("GET", []) => volumes(server).await.map(|all| say(&all.iter().map(volume).collect::<Vec<_>>())),
        ("POST", []) => make_volume(server, request).await,
        ("GET", ["by-name", name]) => {
            one(&|volume| volume.name.as_deref() == Some(*name), name).await.map(|found| say(&volume(&found)))
        }
        ("GET", [id]) => one(&|volume| volume.id == *id, id).await.map(|found| say(&volume(&found))),
        ("DELETE", [id]) => match one(&|volume| volume.id == *id, id).await {
            Ok(found) => match server.emulation.remove_volume(&found.id).await {
                Ok(()) => Ok(say(&json!({}))),
                Err(error) => Err(refused(&error)),
            },
            Err(response) => Err(response),
        },
        _ => return None,
    })
}

async fn make_volume(server: &Server, request: Request) -> Result<Response, Response> {
    let asked: Named = body(request).await?;
    checked(&asked.name)?;
    match server.emulation.create_volume(&asked.name).await.map_err(|error| refused(&error))? {
        Some(made) => Ok(say(&volume(&made))),
        None => Err(refuse(409, format!("Volume with name {} already exists", asked.name))),
    }
}

fn snapshot(snapshot: &Kept) -> Value {
    let at = rfc3339(snapshot.created_at);
    let (cpu, memory, disk) = limits(&snapshot.resources);
    json!({
        "id": snapshot.id,
        "organizationId": "local",
        "general": false,
        "name": snapshot.name.as_ref().unwrap_or(&snapshot.id),
        "state": "active",
        "size": snapshot.bytes.map(|bytes| bytes as f64 / f64::from(1 << 30)),
        "entrypoint": null,
        "cpu": cpu, "gpu": 0, "mem": memory, "disk": disk,
        "errorReason": null,
        "createdAt": at, "updatedAt": at, "lastUsedAt": null,
        "sourceSandboxId": snapshot.of,
    })
}

/// Answers a call about snapshots; `None` if it is none that is served.
pub(super) async fn about_snapshots(
    server: &Server,
    method: &str,
    path: &[&str],
    query: &[(String, String)],
) -> Option<Result<Response, Response>> {
    let one = async |wanted: &str| {
        let found = server.emulation.snapshots().await.map_err(|error| refused(&error))?;
        let found = found.into_iter().find(|snapshot| snapshot.is(wanted));
        found.ok_or_else(|| refuse(404, format!("Snapshot {wanted} not found")))
    };
    Some(match (method, path) {
        ("GET", []) => list(server, query).await,
        ("GET", [wanted]) => one(wanted).await.map(|found| say(&snapshot(&found))),
        ("DELETE", [wanted]) => match one(wanted).await {
            Ok(found) => match server.emulation.remove_snapshot(&found.id).await {
                Ok(()) => Ok(say(&json!({}))),
                Err(error) => Err(refused(&error)),
            },
            Err(response) => Err(response),
        },
        _ => return None,
    })
}

async fn list(server: &Server, query: &[(String, String)]) -> Result<Response, Response> {
    let number = |name: &str, usual: usize, most: usize| match parameter(query, name) {
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=most).contains(n))
            .ok_or_else(|| refuse(400, format!("{name} `{text}` is not a number from 1 to {most}"))),
        None => Ok(usual),
    };
    let (page, limit) = (number("page", 1, usize::MAX)?, number("limit", PAGE, PAGE_LIMIT)?);
    if let Some((other, _)) = query.iter().find(|(name, _)| !matches!(name.as_str(), "page" | "limit")) {
        return Err(refuse(400, format!("the emulator does not list snapshots by `{other}`")));
    }
    let found = server.emulation.snapshots().await.map_err(|error| refused(&error))?;
    let items = found.iter().skip((page - 1).saturating_mul(limit)).take(limit).map(snapshot);
    let items: Vec<Value> = items.collect();
    Ok(say(&json!({
        "items": items, "total": found.len(), "page": page, "totalPages": found.len().div_ceil(limit),
    })))
}

/// Keeps the files of a sandbox under a name.
pub(super) async fn take(server: &Server, id: &str, request: Request) -> Result<(), Response> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        name: String,
        #[serde(default)]
        include_memory: Option<bool>,
    }
    let asked: Asked = body(request).await?;
    checked(&asked.name)?;
    if asked.include_memory == Some(true) {
        return Err(refuse(400, "the emulator keeps no memory in a snapshot (includeMemory)"));
    }
    let _held = server.emulation.naming.lock().await;
    let taken = server.emulation.snapshots().await.map_err(|error| refused(&error))?;
    if taken.iter().any(|snapshot| snapshot.is(&asked.name)) {
        return Err(refuse(409, format!("Snapshot with name {} already exists", asked.name)));
    }
    let made = server.emulation.take_snapshot(&find(server, id)?, Some(&asked.name), false).await;
    made.map(drop).map_err(|error| refused(&error))
}

/// A sandbox like another one, from its files as they are now.
pub(super) async fn fork(server: &Server, id: &str, request: Request) -> Result<Arc<Sandbox>, Response> {
    #[derive(Deserialize)]
    struct Asked {
        #[serde(default)]
        name: Option<String>,
    }
    let asked: Asked = body(request).await?;
    if let Some(name) = &asked.name
        && find(server, name).is_ok()
    {
        return Err(refuse(409, format!("Sandbox with name {name} already exists")));
    }
    let emulation = &server.emulation;
    let of = find(server, id)?;
    let record = emulation.observe(&of).await.map_err(|error| refused(&error))?;
    if record.paused {
        return Err(refuse(400, "Sandbox is not started"));
    }
    let env = emulation.env(&of).await.map_err(|error| refused(&error))?;
    let snapshot = emulation.take_snapshot(&of, None, true).await.map_err(|error| refused(&error))?;
    let mut new = NewSandbox {
        name: asked.name,
        template: record.template.clone(),
        snapshot: Some(snapshot.id.clone()),
        metadata: record.metadata.clone(),
        env: (*env).clone(),
        timeout: std::time::Duration::from_millis(record.timeout_ms),
        on_timeout: record.on_timeout,
        user: record.user.clone(),
        private_ports: record.traffic_token.is_some(),
        ..NewSandbox::default()
    };
    new.spec.network = record.network.clone();
    new.spec.mounts = record.mounts.clone();
    new.spec.resources = record.resources;
    match emulation.create(new).await {
        Ok(made) => Ok(made),
        Err(error) => {
            if let Err(error) = emulation.remove_snapshot(&snapshot.id).await {
                tracing::warn!(snapshot = snapshot.id, %error, "the snapshot of a fork that failed stays");
            }
            Err(refused(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sandbox_reaches_is_shown_in_two_lists() {
        let allow = ["10.0.0.0/8", "github.com", "1.2.3.4", "*.example.com"].map(str::to_owned).to_vec();
        let (networks, names) = lists(&NetworkSpec { allow, ..NetworkSpec::default() });
        assert_eq!(networks.as_deref(), Some("10.0.0.0/8,1.2.3.4"));
        assert_eq!(names.as_deref(), Some("github.com,*.example.com"));
        assert_eq!(lists(&NetworkSpec::default()), (None, None));
    }
}
