//! The control plane's calls about snapshots, forks, volumes, and the network of a sandbox that runs.

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json as value;

use super::super::kept::Kept;
use super::super::record::{self, Record};
use super::super::request::parameter;
use super::super::{CallError, NewSandbox};
use super::control::{PAGE, body, empty, find, json, limited, sandbox};
use super::{Server, refuse, refused, status};
use crate::model::{EgressRule, Mount, NetworkSpec};
use crate::provider::e2b::api;

/// The team that everything here belongs to, as it stands before names.
const TEAM: &str = "local/";
/// The one tag that anything here has.
const TAG: &str = ":default";
/// How long a fork lives unless the client says so, in seconds.
const TIMEOUT_FORK: u64 = 15;
/// More forks at once than this are refused.
const FORKS: u32 = 100;
/// What a volume's name has.
const NAME_LIMIT: usize = 1024;
/// Everything outside.
const ANYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// The name of a template or snapshot without its team and tag.
pub(super) fn plain(name: &str) -> &str {
    let name = name.strip_prefix(TEAM).unwrap_or(name);
    name.strip_suffix(TAG).unwrap_or(name)
}

/// What a name of the vendor's may have in it.
fn named(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !name.is_empty() && name.len() <= NAME_LIMIT && name.chars().all(fine)
}

fn shown(snapshot: &Kept) -> api::SnapshotInfo {
    match &snapshot.name {
        Some(name) => {
            let name = format!("{TEAM}{name}{TAG}");
            api::SnapshotInfo { snapshot_id: name.clone(), names: vec![name] }
        }
        None => api::SnapshotInfo { snapshot_id: format!("{}{TAG}", snapshot.id), names: Vec::new() },
    }
}

/// Keeps the files of a sandbox. Its memory is not kept, so what is said of it changes nothing.
pub(super) async fn take(server: &Server, id: &str, request: Request) -> Result<Response, Response> {
    let asked: api::NewSnapshot = body(request).await?;
    let of = find(server, id)?;
    let name = asked.name.as_deref().map(|name| plain(name).to_ascii_lowercase());
    if name.as_deref().is_some_and(|name| !named(name)) {
        return Err(refuse(400, "the name of a snapshot has letters, digits, `-` and `_`"));
    }
    let taken = server.emulation.take_snapshot(&of, name.as_deref(), false).await;
    Ok(json(StatusCode::CREATED, &shown(&taken.map_err(|error| refused(&error))?)))
}

pub(super) async fn list(server: &Server, query: &[(String, String)]) -> Result<Response, Response> {
    let limit = match parameter(query, "limit") {
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=PAGE).contains(n))
            .ok_or_else(|| refuse(400, format!("limit `{text}` is not a number from 1 to {PAGE}")))?,
        None => PAGE,
    };
    let behind = match parameter(query, "nextToken") {
        Some(token) => {
            let read =
                BASE64_URL_SAFE_NO_PAD.decode(token).ok().and_then(|text| String::from_utf8(text).ok());
            Some(read.ok_or_else(|| refuse(400, "nextToken is not one of ours"))?)
        }
        None => None,
    };
    let mut found = server.emulation.snapshots().await.map_err(|error| refused(&error))?;
    found.retain(|snapshot| {
        parameter(query, "sandboxID").is_none_or(|of| snapshot.of.as_deref() == Some(of))
            && parameter(query, "name").is_none_or(|name| snapshot.is(plain(name)))
    });
    // A name means the newest that has it.
    let mut names = std::collections::BTreeSet::new();
    found.retain(|snapshot| snapshot.name.as_ref().is_none_or(|name| names.insert(name.clone())));
    if let Some(behind) = behind {
        found = found.into_iter().skip_while(|snapshot| snapshot.id != behind).skip(1).collect();
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let page: Vec<_> = found.iter().map(shown).collect();
    let mut response = json(StatusCode::OK, &page);
    if let Some(last) = found.last().filter(|_| more)
        && let Ok(token) = HeaderValue::from_str(&BASE64_URL_SAFE_NO_PAD.encode(&last.id))
    {
        response.headers_mut().insert("x-next-token", token);
    }
    Ok(response)
}

/// Deletes a snapshot, with older ones of its name.
pub(super) async fn remove(server: &Server, id: &str) -> Result<Response, Response> {
    let mut found = server.emulation.snapshots().await.map_err(|error| refused(&error))?;
    found.retain(|snapshot| snapshot.is(plain(id)));
    if found.is_empty() {
        return Err(refuse(404, format!("template {id} was not found; templates that are images stay")));
    }
    for snapshot in found {
        server.emulation.remove_snapshot(&snapshot.id).await.map_err(|error| refused(&error))?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Sandboxes like one that runs, from its files as they are now. They are new ones: nothing runs in them yet.
pub(super) async fn fork(server: &Server, id: &str, request: Request) -> Result<Response, Response> {
    let asked: api::Fork = body(request).await?;
    let timeout = limited(asked.timeout.unwrap_or(TIMEOUT_FORK))?;
    let count = asked.count.unwrap_or(1);
    if !(1..=FORKS).contains(&count) {
        return Err(refuse(400, format!("count: from 1 to {FORKS}")));
    }
    let emulation = &server.emulation;
    let of = find(server, id)?;
    let record = emulation.observe(&of).await.map_err(|error| refused(&error))?;
    if record.paused {
        return Err(refused(&CallError::NotRunning(record.id)));
    }
    let env = emulation.env(&of).await.map_err(|error| refused(&error))?;
    let snapshot = emulation.take_snapshot(&of, None, true).await.map_err(|error| refused(&error))?;
    let mut results = Vec::new();
    for _ in 0..count {
        let mut new = NewSandbox {
            template: record.template.clone(),
            snapshot: Some(snapshot.id.clone()),
            metadata: record.metadata.clone(),
            env: (*env).clone(),
            timeout,
            on_timeout: record.on_timeout,
            auto_resume: record.auto_resume,
            private_ports: record.traffic_token.is_some(),
            ..NewSandbox::default()
        };
        new.spec.network = record.network.clone();
        new.spec.mounts = record.mounts.clone();
        results.push(match emulation.create(new).await {
            Ok(made) => value!({ "sandbox": sandbox(server, &made.record()) }),
            Err(error) => {
                value!({ "error": api::ErrorBody { code: status(&error), message: error.to_string() } })
            }
        });
    }
    if results.iter().all(|result| result.get("error").is_some())
        && let Err(error) = emulation.remove_snapshot(&snapshot.id).await
    {
        tracing::warn!(snapshot = snapshot.id, %error, "the snapshot of forks that failed stays");
    }
    Ok(json(StatusCode::CREATED, &results))
}

pub(super) async fn create_volume(server: &Server, request: Request) -> Result<Response, Response> {
    let asked: api::NewVolume = body(request).await?;
    if !named(&asked.name) {
        return Err(refuse(400, "the name of a volume has letters, digits, `-` and `_`"));
    }
    match server.emulation.create_volume(&asked.name).await.map_err(|error| refused(&error))? {
        Some(made) => Ok(json(StatusCode::CREATED, &volume(&made, true))),
        None => Err(refuse(400, format!("Volume with name '{}' already exists", asked.name))),
    }
}

fn volume(volume: &Kept, alone: bool) -> api::Volume {
    api::Volume {
        volume_id: volume.id.clone(),
        name: volume.name.clone().unwrap_or_else(|| volume.id.clone()),
        // It would open the files of a volume that no sandbox has; that is not served, so it opens nothing.
        token: alone.then(record::token),
    }
}

pub(super) async fn volumes(server: &Server) -> Result<Response, Response> {
    let found = server.emulation.volumes().await.map_err(|error| refused(&error))?;
    let shown: Vec<_> = found.iter().map(|found| volume(found, false)).collect();
    Ok(json(StatusCode::OK, &shown))
}

async fn existing(server: &Server, id: &str) -> Result<Kept, Response> {
    let found = server.emulation.volumes().await.map_err(|error| refused(&error))?;
    let found = found.into_iter().find(|volume| volume.id == id);
    found.ok_or_else(|| refuse(404, format!("Volume {id} not found")))
}

pub(super) async fn get_volume(server: &Server, id: &str) -> Result<Response, Response> {
    Ok(json(StatusCode::OK, &volume(&existing(server, id).await?, true)))
}

pub(super) async fn remove_volume(server: &Server, id: &str) -> Result<Response, Response> {
    let found = existing(server, id).await?;
    server.emulation.remove_volume(&found.id).await.map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Mounts of volumes by the names that programs gave them.
pub(super) async fn mounts(server: &Server, asked: Vec<api::VolumeMount>) -> Result<Vec<Mount>, Response> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let found = server.emulation.volumes().await.map_err(|error| refused(&error))?;
    let mount = |mount: api::VolumeMount| {
        let volume = found.iter().find(|volume| volume.name.as_ref() == Some(&mount.name));
        let volume = volume.ok_or_else(|| refuse(404, format!("volume {} was not found", mount.name)))?;
        if !mount.path.starts_with('/') {
            return Err(refuse(400, format!("volume {}: `{}` is no absolute path", mount.name, mount.path)));
        }
        Ok(Mount { path: mount.path, volume: volume.id.clone(), read_only: false })
    };
    asked.into_iter().map(mount).collect()
}

/// The volumes of a sandbox, by the names that programs gave them.
pub(super) async fn mounted(server: &Server, record: &Record) -> Result<Vec<api::VolumeMount>, Response> {
    if record.mounts.is_empty() {
        return Ok(Vec::new());
    }
    let found = server.emulation.volumes().await.map_err(|error| refused(&error))?;
    let name = |id: &String| {
        let volume = found.iter().find(|volume| volume.id == *id);
        volume.and_then(|volume| volume.name.clone()).unwrap_or_else(|| id.clone())
    };
    let shown = |mount: &Mount| api::VolumeMount { name: name(&mount.volume), path: mount.path.clone() };
    Ok(record.mounts.iter().map(shown).collect())
}

/// What a sandbox reaches, and who reaches it, in the vendor's words.
pub(super) fn network(record: &Record) -> api::Network {
    let open = record.reaches_everything();
    api::Network {
        allow_public_traffic: Some(record.traffic_token.is_none()),
        allow_out: (!open).then(|| record.network.allow.clone()),
        deny_out: (!open).then(|| vec![ANYWHERE[0].to_owned()]),
        ..api::Network::default()
    }
}

/// What a sandbox is to reach.
pub(super) fn reach(
    server: &Server,
    network: &api::Network,
    internet: Option<bool>,
) -> Result<NetworkSpec, Response> {
    let cannot =
        |what: String| refuse(400, format!("the emulator cannot give a sandbox a network with {what}"));
    let known = ["allow_internet_access"];
    if let Some((name, _)) =
        network.other.iter().find(|(name, value)| !known.contains(&name.as_str()) && !empty(value))
    {
        return Err(cannot(format!("`{name}`")));
    }
    let denied = network.deny_out.as_deref().unwrap_or_default();
    if let Some(some) = denied.iter().find(|some| !ANYWHERE.contains(&some.as_str())) {
        return Err(cannot(format!("`{some}` alone denied (denyOut): all of it, 0.0.0.0/0, or none")));
    }
    if internet != Some(false) && denied.is_empty() {
        // What is allowed is allowed in any case.
        return Ok(NetworkSpec::default());
    }
    let allow = network.allow_out.clone().unwrap_or_default();
    for destination in &allow {
        let rule = destination.parse::<EgressRule>();
        if !rule.as_ref().is_ok_and(|rule| rule.port.is_none()) {
            let why = rule.err().map_or_else(|| "has a port".to_owned(), |error| error.to_string());
            return Err(refuse(400, format!("allowOut: `{destination}` {why}")));
        }
    }
    server.emulation.confined(allow).map_err(|error| refused(&error))
}

/// Another network for a sandbox that runs; what is left out is cleared.
pub(super) async fn set_network(server: &Server, id: &str, request: Request) -> Result<Response, Response> {
    let asked: api::Network = body(request).await?;
    let internet = asked.other.get("allow_internet_access").and_then(serde_json::Value::as_bool);
    let network = reach(server, &asked, internet)?;
    let found = find(server, id)?;
    if server.emulation.observe(&found).await.map_err(|error| refused(&error))?.paused {
        return Err(refuse(409, format!("sandbox {id} is paused")));
    }
    let altered = server.emulation.alter(&found, |spec| spec.network = network).await;
    altered.map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_with_its_team_and_tag() {
        for name in ["snap", "local/snap", "snap:default", "local/snap:default"] {
            assert_eq!(plain(name), "snap");
        }
        assert!(named("a-B_1") && !named("") && !named("a/b") && !named("a b"));
    }
}
