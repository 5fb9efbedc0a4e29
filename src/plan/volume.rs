//! Volumes: made before what mounts them, deleted after it, and only with consent.

use super::{Action, Builder, Note, Reason, Step, Verdict, WaitingOn};
use crate::model::{Address, Observation};

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
        if provider.volumes.contains_key(name) {
            if recorded.is_none() {
                b.step(step(Action::AdoptVolume { name: name.clone() }));
                b.change(address, Verdict::Adopt, vec![Reason::Found { id: name.clone() }]);
            }
            continue;
        }
        let reason =
            if recorded.is_some() { Reason::Lost } else { Reason::New { at: b.origin(&address, "") } };
        let id = b.step(step(Action::CreateVolume { name: name.clone() }));
        b.volume_steps.insert(name.clone(), id);
        b.change(address, Verdict::Create, vec![reason]);
    }
}

/// Volumes that are no longer declared. Runs after sandboxes were planned, so that deletes come after those of the sandboxes that mount them.
pub(super) fn plan_removed_volumes(b: &mut Builder<'_>) {
    let input = b.input;
    let mut seen: std::collections::BTreeMap<String, String> =
        input.recorded.volumes.iter().map(|(name, volume)| (name.clone(), volume.provider.clone())).collect();
    for (provider, observation) in &input.observed.providers {
        for name in observation.complete().into_iter().flat_map(|p| p.volumes.keys()) {
            seen.entry(name.clone()).or_insert_with(|| provider.clone());
        }
    }
    let deletes: Vec<usize> = b
        .steps
        .iter()
        .enumerate()
        .filter(|(_, s)| matches!(s.action, Action::Delete { .. } | Action::Stop | Action::Update { .. }))
        .map(|(id, _)| id)
        .collect();
    for (name, provider) in seen {
        let address = Address::Volume(name.clone());
        if input.desired.volumes.contains_key(&name) || !b.is_targeted(&address) {
            continue;
        }
        let exists = match input.observed.providers.get(&provider) {
            Some(Observation::Complete(p)) => p.volumes.contains_key(&name),
            other => {
                let on = provider_wait(&provider, other);
                b.wait(address, on);
                continue;
            }
        };
        let step = |action, after| Step { address: address.clone(), provider, id: None, action, after };
        if !exists {
            b.step(step(Action::ForgetVolume { name }, Default::default()));
            b.change(address, Verdict::Forget, vec![Reason::Lost]);
        } else if !input.policy.prune_volumes {
            b.notes.push(Note::Kept { address });
        } else {
            b.step(step(Action::DeleteVolume { name: name.clone() }, deletes.iter().copied().collect()));
            let change = b.change(address, Verdict::Delete, vec![Reason::Removed { at: None }]);
            change.data_at_risk.push(format!("all data of volume `{name}`"));
        }
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
