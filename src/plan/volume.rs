//! Volumes: made before what mounts them, deleted after it, and only with consent.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Builder, Note, Reason, Step, StepId, Verdict, WaitingOn};
use crate::model::{Address, IntentOperation, Observation, PendingIntent, SandboxId, SandboxSpec, labels};

pub(super) fn plan_volumes(b: &mut Builder<'_>) {
    let input = b.input;
    for (name, volume) in &input.desired.volumes {
        let address = Address::Volume(name.clone());
        if !b.is_targeted(&address) {
            continue;
        }
        let recorded = input.recorded.volumes.get(name);
        let provider = match input.observed.providers.get(&volume.provider) {
            Some(Observation::Complete(provider)) => provider,
            other => {
                let on = provider_wait(&volume.provider, other);
                b.wait(address, on);
                continue;
            }
        };
        let step = |action| Step {
            address: address.clone(),
            provider: volume.provider.clone(),
            id: None,
            action,
            after: Default::default(),
        };
        let moved = recorded.filter(|r| r.provider != volume.provider);
        let elsewhere = input.observed.providers.iter().any(|(at, observation)| {
            *at != volume.provider && observation.complete().is_some_and(|p| p.volumes.contains_key(name))
        });
        if elsewhere {
            b.notes.push(Note::Kept { address: address.clone() });
        }
        if provider.volumes.contains_key(name) {
            if recorded.is_none() || moved.is_some() {
                b.step(step(Action::AdoptVolume { name: name.clone() }));
                b.change(address, Verdict::Adopt, vec![Reason::Found { id: name.clone() }]);
            }
            continue;
        }
        let reason = match (recorded, moved) {
            (_, Some(old)) => Reason::Moved { from: old.provider.clone(), to: volume.provider.clone() },
            (Some(_), None) => Reason::Lost,
            (None, None) => Reason::New { at: b.origin(&address, "") },
        };
        let id = b.step(step(Action::CreateVolume { name: name.clone() }));
        b.volume_steps.insert(name.clone(), id);
        b.change(address, Verdict::Create, vec![reason]);
    }
}

/// A sandbox that mounts a volume now, and the step of this plan after which it does not any more.
struct User<'a> {
    address: Address,
    provider: &'a str,
    /// `None` if nobody knows: it may be any of its provider's.
    volumes: Option<BTreeSet<&'a str>>,
    lets_go: Option<StepId>,
}

/// What mounts what, by what the provider reads back and what the record says.
fn users<'a>(b: &Builder<'a>) -> Vec<User<'a>> {
    let input = b.input;
    let mut lets_go: BTreeMap<(&str, &SandboxId), StepId> = BTreeMap::new();
    for (step_id, step) in b.steps.iter().enumerate() {
        if let (Some(id), Action::Delete { .. } | Action::Discard | Action::Update { .. }) =
            (&step.id, &step.action)
        {
            lets_go.insert((&step.provider, id), step_id);
        }
    }
    let recorded: BTreeMap<(&str, &SandboxId), &SandboxSpec> =
        input.recorded.sandboxes.values().map(|r| ((r.provider.as_str(), &r.id), &r.spec)).collect();
    let mut users = Vec::new();
    for (provider, observation) in &input.observed.providers {
        for sandbox in observation.complete().into_iter().flat_map(|p| p.sandboxes.values()) {
            let key = (provider.as_str(), &sandbox.id);
            let specs: Vec<&SandboxSpec> =
                sandbox.spec.as_ref().into_iter().chain(recorded.get(&key).copied()).collect();
            let overtaken = sandbox.spec.is_none()
                && recorded.get(&key).is_some_and(|spec| {
                    sandbox.labels.get(labels::SPEC_HASH).is_some_and(|hash| *hash != spec.hash().0)
                });
            let mounts = || specs.iter().flat_map(|spec| spec.mounts.iter().map(|m| m.volume.as_str()));
            let label = sandbox.labels.get(labels::ADDRESS).and_then(|text| text.parse().ok());
            users.push(User {
                // Only what has our labels is listed; one whose address cannot be read is told by its id.
                address: label.unwrap_or_else(|| Address::Sandbox(sandbox.id.0.clone())),
                provider,
                // A record that an interrupted update has overtaken says nothing about what is mounted now.
                volumes: (!specs.is_empty() && !overtaken).then(|| mounts().collect()),
                lets_go: lets_go.get(&key).copied(),
            });
        }
    }
    users
}

/// Volumes that are no longer declared. Runs after sandboxes were planned, so that deletes come after those of the sandboxes that mount them.
pub(super) fn plan_removed_volumes(b: &mut Builder<'_>) {
    let input = b.input;
    let mut seen: BTreeSet<(&str, &str)> = input
        .recorded
        .volumes
        .iter()
        .map(|(name, volume)| (name.as_str(), volume.provider.as_str()))
        .collect();
    for (provider, observation) in &input.observed.providers {
        let names = observation.complete().into_iter().flat_map(|p| p.volumes.keys());
        seen.extend(names.map(|name| (name.as_str(), provider.as_str())));
    }
    seen.retain(|(name, _)| {
        !input.desired.volumes.contains_key(*name) && b.is_targeted(&Address::Volume((*name).to_owned()))
    });
    let users = if seen.is_empty() || !input.policy.prune_volumes { Vec::new() } else { users(b) };
    for (name, provider) in seen {
        let address = Address::Volume(name.to_owned());
        let exists = match input.observed.providers.get(provider) {
            Some(Observation::Complete(p)) => p.volumes.contains_key(name),
            other => {
                let on = provider_wait(provider, other);
                b.wait(address, on);
                continue;
            }
        };
        let step = |action, after| Step {
            address: address.clone(),
            provider: provider.to_owned(),
            id: None,
            action,
            after,
        };
        if !exists {
            b.step(step(Action::ForgetVolume { name: name.to_owned() }, BTreeSet::new()));
            b.change(address, Verdict::Forget, vec![Reason::Lost]);
            continue;
        }
        if !input.policy.prune_volumes {
            b.notes.push(Note::Kept { address });
            continue;
        }
        // What an interrupted create made may mount it and only show up later.
        let settle_ms = input.capabilities.get(provider).map_or(0, |sheet| sheet.settle_ms);
        let is_unsettled = |i: &PendingIntent| {
            i.provider == provider
                && i.operation == IntentOperation::Create
                && i.address.sandbox().is_some()
                && input.now.millis_since(i.begun_at) < settle_ms
        };
        if input.recorded.intents.iter().any(is_unsettled) {
            let state = "waiting for an interrupted create to settle".to_owned();
            b.wait(address, WaitingOn::Transition { state });
            continue;
        }
        let mut after = BTreeSet::new();
        let mut blocker = None;
        let may_mount = |user: &&User<'_>| match &user.volumes {
            Some(volumes) => volumes.contains(name),
            None => user.provider == provider,
        };
        for user in users.iter().filter(may_mount) {
            match user.lets_go {
                Some(id) => {
                    after.insert(id);
                }
                None => blocker = Some(user.address.clone()),
            }
        }
        if let Some(blocker) = blocker {
            b.wait(address, WaitingOn::Mounted { by: blocker });
            continue;
        }
        b.step(step(Action::DeleteVolume { name: name.to_owned() }, after));
        let change = b.change(address, Verdict::Delete, vec![Reason::Removed]);
        change.data_at_risk.push(format!("all data of volume `{name}`"));
    }
}

/// Why a provider that did not answer holds things up.
pub(super) fn provider_wait<T>(provider: &str, observation: Option<&Observation<T>>) -> WaitingOn {
    WaitingOn::Provider {
        provider: provider.to_owned(),
        reason: match observation {
            Some(Observation::Unavailable { reason }) => reason.clone(),
            _ => "it was not asked".to_owned(),
        },
    }
}
