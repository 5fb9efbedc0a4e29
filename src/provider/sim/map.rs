//! Our words ↔ the simulated cloud's. Pure.
//!
//! Where a cloud has no labels, the whole identity stands in the name, fields separated by `~`, which no field has:
//! `pocketenv~PROJECT~ADDRESS~OWNER~SPEC_HASH~GENERATION~INTENT[~EXPIRES_AT]`.

use std::collections::BTreeMap;

use super::api;
use crate::model::{
    Endpoint, Identity, ObservedSandbox, ObservedVolume, SandboxId, SandboxSpec, SandboxState, Timestamp,
    labels,
};

const ORDER: [&str; 7] = [
    labels::PROJECT,
    labels::ADDRESS,
    labels::OWNER,
    labels::SPEC_HASH,
    labels::GENERATION,
    labels::INTENT,
    labels::EXPIRES_AT,
];

/// Which begins the name of every sandbox of a project; with `None` that of every one of ours.
pub(super) fn prefix(project: Option<&str>) -> String {
    match project {
        Some(project) => format!("pocketenv~{project}~"),
        None => "pocketenv~".to_owned(),
    }
}

/// The name that carries labels.
pub(super) fn encode(labels: &BTreeMap<String, String>) -> String {
    let fields = ORDER.iter().map_while(|label| labels.get(*label)).map(String::as_str);
    std::iter::once("pocketenv").chain(fields).collect::<Vec<_>>().join("~")
}

/// The labels that a name carries; none if it is not one of ours.
pub(super) fn decode(name: &str) -> BTreeMap<String, String> {
    let mut fields = name.split('~');
    if fields.next() != Some("pocketenv") {
        return BTreeMap::new();
    }
    let mut found: BTreeMap<String, String> =
        ORDER.iter().zip(fields).map(|(label, field)| ((*label).to_owned(), field.to_owned())).collect();
    found.insert(labels::MANAGED_BY.to_owned(), "pocketenv".to_owned());
    found
}

/// A name for people, where labels carry the identity.
pub(super) fn display_name(identity: &Identity) -> String {
    format!("{}/{}", identity.project, identity.address.sandbox().unwrap_or_default())
}

/// Volumes of all projects live side by side; a dot can stand in neither name.
pub(super) fn volume_name(project: &str, name: &str) -> String {
    format!("{project}.{name}")
}

pub(super) fn volumes(spec: &SandboxSpec, project: &str) -> Vec<String> {
    spec.mounts.iter().map(|mount| volume_name(project, &mount.volume)).collect()
}

pub(super) fn ports(spec: &SandboxSpec) -> Vec<u16> {
    spec.ports.keys().copied().collect()
}

pub(super) fn observed(sandbox: api::Sandbox) -> ObservedSandbox {
    let labels = if sandbox.labels.is_empty() { decode(&sandbox.name) } else { sandbox.labels };
    let spec: Option<SandboxSpec> = sandbox.spec.and_then(|text| serde_json::from_str(text.get()).ok());
    let host = format!("{}.sim.localhost", sandbox.id);
    let endpoints = sandbox.ports.iter().map(|port| {
        let listening = sandbox.listening.contains(port);
        (*port, Endpoint { host: host.clone(), port: *port, listening })
    });
    let project = labels.get(labels::PROJECT).map_or("", String::as_str);
    let missing = |volume: &str| sandbox.missing_volumes.contains(&volume_name(project, volume));
    let mounts = spec.iter().flat_map(|spec| &spec.mounts);
    ObservedSandbox {
        state: match sandbox.state {
            api::State::Creating | api::State::Starting => SandboxState::Creating,
            api::State::Running => SandboxState::Running,
            api::State::Stopping => SandboxState::Stopping,
            api::State::Stopped => SandboxState::Stopped { unclean: sandbox.reason },
            api::State::Deleting => SandboxState::Deleting,
            api::State::Failed => SandboxState::Failed(sandbox.reason.unwrap_or_default()),
        },
        created_at: Some(Timestamp(sandbox.created_at)),
        started_at: sandbox.started_at.map(Timestamp),
        endpoints: endpoints.collect(),
        bound: BTreeMap::new(),
        sockets: BTreeMap::new(),
        missing_mounts: mounts.filter(|m| missing(&m.volume)).map(|m| m.path.clone()).collect(),
        usage: Default::default(),
        notes: Vec::new(),
        id: SandboxId(sandbox.id),
        spec,
        labels,
    }
}

/// The volume's name in its project, and what is known of it.
pub(super) fn observed_volume(volume: api::Volume) -> Option<(String, ObservedVolume)> {
    let (project, name) = volume.name.split_once('.')?;
    let (project, name) = (project.to_owned(), name.to_owned());
    let mut found = volume.labels;
    if found.is_empty() {
        found.insert(labels::MANAGED_BY.to_owned(), "pocketenv".to_owned());
        found.insert(labels::PROJECT.to_owned(), project);
        found.insert(labels::ADDRESS.to_owned(), format!("volume/{name}"));
    }
    Some((name, ObservedVolume { labels: found, created_at: Some(Timestamp(volume.created_at)) }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{IntentId, OwnerId, SpecHash};

    #[test]
    fn an_identity_survives_its_name() {
        for expires_at in [None, Some(Timestamp(5))] {
            let identity = Identity {
                project: "shop".to_owned(),
                address: "sandbox/api-2".parse().unwrap(),
                owner: OwnerId("0192".to_owned()),
                spec_hash: SpecHash("a".repeat(64)),
                generation: 3,
                intent: IntentId("b".repeat(32)),
                expires_at,
            };
            let name = encode(&identity.to_labels());
            assert!(name.starts_with(&prefix(Some("shop"))));
            assert_eq!(Identity::from_labels(&decode(&name)).unwrap(), Some(identity));
        }
        assert!(decode("somebody-else").is_empty());
    }
}
