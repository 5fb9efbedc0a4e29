//! The world as the record has it, for a plan that asks nobody (`plan --refresh=false`). It tells what the manifest changes, not what is.

use std::collections::BTreeMap;

use super::digest::{env_digest, file_digest, repository_digest, secret_file_digest, service_digest};
use crate::model::{
    Endpoint, FileState, GuestSpec, Identity, IntentId, Observation, Observed, ObservedFile, ObservedGuest,
    ObservedProvider, ObservedRepository, ObservedSandbox, ObservedService, ObservedSocket, ObservedVolume,
    OwnerId, PresetOutcome, Recorded, RecordedSandbox, SecretUse, ServiceState, ServiceStatus,
};

/// What would be observed if everything stood exactly as it was last applied. `providers` are those that the manifest uses.
pub fn assume(
    project: &str,
    owner: &OwnerId,
    recorded: &Recorded,
    providers: impl IntoIterator<Item = String>,
    secrets: &BTreeMap<String, String>,
) -> Observed {
    let mut listings: BTreeMap<String, ObservedProvider> =
        providers.into_iter().map(|name| (name, ObservedProvider::default())).collect();
    let mut guests = BTreeMap::new();
    for (name, volume) in &recorded.volumes {
        let observed = ObservedVolume { labels: BTreeMap::new(), created_at: Some(volume.created_at) };
        listings.entry(volume.provider.clone()).or_default().volumes.insert(name.clone(), observed);
    }
    for (name, sandbox) in &recorded.sandboxes {
        let observed = observed(project, owner, name, sandbox, secrets);
        listings.entry(sandbox.provider.clone()).or_default().sandboxes.insert(sandbox.id.clone(), observed);
        let inside = sandbox.guest.as_ref().map(|g| guest(g, secrets)).unwrap_or_default();
        guests.insert(sandbox.id.clone(), Observation::Complete(inside));
    }
    let providers = listings.into_iter().map(|(name, listing)| (name, Observation::Complete(listing)));
    Observed { providers: providers.collect(), guests }
}

fn observed(
    project: &str,
    owner: &OwnerId,
    name: &str,
    recorded: &RecordedSandbox,
    secrets: &BTreeMap<String, String>,
) -> ObservedSandbox {
    let identity = Identity {
        project: project.to_owned(),
        address: crate::model::Address::Sandbox(name.to_owned()),
        owner: owner.clone(),
        spec_hash: recorded.spec.hash(),
        generation: recorded.generation,
        intent: IntentId(String::new()),
        expires_at: None,
    };
    let endpoints = recorded.spec.ports.iter().filter_map(|(port, spec)| {
        let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port: spec.host_port?, listening: true };
        Some((*port, endpoint))
    });
    let names = recorded.spec.bound.keys();
    let bound = names.filter_map(|name| Some((name.clone(), secrets.get(name)?.clone())));
    let sockets = recorded.spec.sockets.iter().map(|(name, spec)| {
        let path = spec.host_path.as_ref().map_or_else(String::new, |path| path.display().to_string());
        (name.clone(), ObservedSocket { path, listening: true })
    });
    ObservedSandbox {
        id: recorded.id.clone(),
        labels: identity.to_labels(),
        state: recorded.state_left(),
        created_at: Some(recorded.created_at),
        started_at: None,
        spec: Some(recorded.spec.clone()),
        endpoints: endpoints.collect(),
        sockets: sockets.collect(),
        missing_mounts: Vec::new(),
        usage: Default::default(),
        bound: bound.collect(),
        notes: Vec::new(),
    }
}

fn guest(guest: &GuestSpec, secrets: &BTreeMap<String, String>) -> ObservedGuest {
    let in_place = |digest| ObservedFile { digest, state: FileState::InPlace };
    let mut files: BTreeMap<String, ObservedFile> =
        guest.files.iter().map(|(path, file)| (path.clone(), in_place(file_digest(file)))).collect();
    for (name, usage) in &guest.secrets {
        if let (SecretUse::File(path), Some(digest)) = (usage, secrets.get(name)) {
            files.insert(path.clone(), in_place(secret_file_digest(digest)));
        }
    }
    let running = |digest| ObservedService {
        digest,
        state: ServiceStatus::Running,
        health: None,
        restarts: 0,
        exit_code: None,
        since: None,
    };
    let wanted = guest.services.iter().filter(|(_, service)| service.state == ServiceState::Running);
    let services = wanted
        .filter_map(|(name, service)| {
            Some((name.clone(), running(service_digest(guest, service, secrets).ok()?)))
        })
        .collect();
    let steps = guest.presets.iter().flat_map(|preset| &preset.steps);
    ObservedGuest {
        env: env_digest(guest, secrets).ok(),
        files,
        repositories: guest
            .repositories
            .iter()
            .map(|(path, spec)| {
                (path.clone(), ObservedRepository { digest: repository_digest(spec), present: true })
            })
            .collect(),
        presets: steps.map(|step| (step.id(), PresetOutcome::Done)).collect(),
        services,
    }
}
