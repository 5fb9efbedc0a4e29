//! What is to go: sandboxes that are declared no more, and the traces of interrupted runs.

use std::collections::{BTreeMap, BTreeSet};

use super::sandbox::{Creates, Index, disk_at_risk, interrupted, orphan};
use super::volume::provider_wait;
use super::{Action, Builder, Note, Reason, Step, StepId, Verdict, Waiting, WaitingOn, order};
use crate::model::{
    Address, IntentId, Observation, ObservedSandbox, PendingIntent, RunState, SandboxId, labels,
};

/// Sandboxes that exist or are recorded and are not declared, or are declared absent. Dependents go first.
pub(super) fn plan_removed(b: &mut Builder<'_>, index: &Index<'_>, creates: &Creates<'_>) {
    let input = b.input;
    let declared =
        |name: &str| input.desired.sandboxes.get(name).is_some_and(|s| s.state != RunState::Absent);
    let mut removed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in input.recorded.sandboxes.keys().map(String::as_str).chain(index.keys().copied()) {
        if !declared(name) && b.is_targeted(&Address::Sandbox(name.to_owned())) {
            removed.entry(name).or_default();
        }
    }
    // Of one that is to be absent and is not recorded, only its provider can say that it is.
    let unseen =
        |provider: &str| input.observed.providers.get(provider).and_then(Observation::complete).is_none();
    for (name, sandbox) in &input.desired.sandboxes {
        let address = Address::Sandbox(name.clone());
        if sandbox.state == RunState::Absent
            && !removed.contains_key(name.as_str())
            && b.is_targeted(&address)
            && unseen(&sandbox.provider)
        {
            b.wait(
                address,
                provider_wait(&sandbox.provider, input.observed.providers.get(&sandbox.provider)),
            );
        }
    }
    // "Needs" for a delete: everything that depends on it is deleted before.
    for (name, recorded) in &input.recorded.sandboxes {
        for dependency in &recorded.depends_on {
            if removed.contains_key(name.as_str())
                && let Some(needs) = removed.get_mut(dependency.as_str())
            {
                needs.insert(name);
            }
        }
    }
    let sorted = order::topological(&removed).unwrap_or_else(|_| removed.keys().copied().collect());
    let mut last_steps: BTreeMap<&str, BTreeSet<StepId>> = BTreeMap::new();
    for name in sorted {
        let after: BTreeSet<StepId> =
            removed[name].iter().filter_map(|n| last_steps.get(n)).flatten().copied().collect();
        let found = index.get(name).map_or(&[][..], Vec::as_slice);
        let steps = plan_one_removed(b, found, creates.get(name).map_or(&[], Vec::as_slice), name, &after);
        last_steps.insert(name, steps);
    }
}

fn plan_one_removed(
    b: &mut Builder<'_>,
    found: &[(&str, &ObservedSandbox)],
    creates: &[&PendingIntent],
    name: &str,
    after: &BTreeSet<StepId>,
) -> BTreeSet<StepId> {
    let input = b.input;
    let address = Address::Sandbox(name.to_owned());
    let recorded = input.recorded.sandboxes.get(name);
    let absent = input.desired.sandboxes.get(name);
    let mut steps = BTreeSet::new();
    if absent.is_some_and(|s| s.protect) {
        b.wait(address, WaitingOn::Protected);
        return steps;
    }
    if !input.policy.prune && absent.is_none() {
        b.notes.push(Note::Kept { address });
        return steps;
    }
    if let Some(r) = recorded {
        let observation = input.observed.providers.get(&r.provider);
        if !matches!(observation, Some(Observation::Complete(_))) {
            b.wait(address, provider_wait(&r.provider, observation));
            return steps;
        }
    }
    // What neither the manifest, the record nor the journal accounts for may be another store's.
    let (existing, orphans): (Vec<_>, Vec<_>) = found.iter().partition(|(provider, s)| {
        absent.is_some()
            || recorded.is_some_and(|r| r.provider == *provider && r.id == s.id)
            || interrupted(s, creates).is_some()
    });
    b.notes.extend(orphans.iter().map(|(provider, s)| orphan(&address, provider, &s.id)));
    let step = |provider: &str, id: Option<&SandboxId>, action, after| Step {
        address: address.clone(),
        provider: provider.to_owned(),
        id: id.cloned(),
        action,
        after,
    };
    for (provider, sandbox) in &existing {
        let after = b.quiesce(&address, provider, sandbox, after.clone());
        steps.insert(b.step(step(provider, Some(&sandbox.id), Action::Delete { forget: true }, after)));
    }
    if !existing.is_empty() {
        let reason = match absent {
            Some(_) => Reason::Absent { at: b.origin(&address, "state") },
            None => Reason::Removed,
        };
        b.change(address, Verdict::Delete, vec![reason]).data_at_risk.push(disk_at_risk(name));
    } else if let Some(r) = recorded {
        steps.insert(b.step(step(&r.provider, Some(&r.id), Action::Forget, after.clone())));
        b.change(address, Verdict::Forget, vec![Reason::Lost]);
    }
    steps
}

/// Interrupted intents that no step of this plan goes on with: what they attempted is visible now, so they are closed.
pub(super) fn settle_intents(b: &mut Builder<'_>, index: &Index<'_>) {
    let input = b.input;
    if input.recorded.intents.is_empty() {
        return;
    }
    let mut resumed: BTreeSet<&IntentId> = BTreeSet::new();
    let mut deletes: BTreeMap<&Address, BTreeSet<StepId>> = BTreeMap::new();
    for (id, step) in b.steps.iter().enumerate() {
        match &step.action {
            Action::Create { resume: Some(token), .. } => {
                resumed.insert(token);
            }
            Action::Delete { .. } | Action::Discard => {
                deletes.entry(&step.address).or_default().insert(id);
            }
            _ => {}
        }
    }
    let (mut settled, mut unsettled) = (Vec::new(), BTreeSet::new());
    for intent in &input.recorded.intents {
        let Some(Observation::Complete(_)) = input.observed.providers.get(&intent.provider) else {
            continue; // Invariant 3: nothing is settled without the provider's word.
        };
        let settle_ms = input.capabilities.get(&intent.provider).map_or(0, |sheet| sheet.settle_ms);
        let visible = intent.address.sandbox().and_then(|name| index.get(name)).is_some_and(|found| {
            let made = |s: &ObservedSandbox| s.labels.get(labels::INTENT) == Some(&intent.id.0);
            found.iter().any(|(provider, s)| *provider == intent.provider && made(s))
        });
        // What it made waits to be deleted until it is protected no more; until then the token is what says whose it is.
        let is_kept = |w: &Waiting| w.address == intent.address && w.on == WaitingOn::Protected;
        if visible && b.waiting.iter().any(is_kept) {
            continue;
        }
        let is_settled = visible || input.now.millis_since(intent.begun_at) >= settle_ms;
        if resumed.contains(&intent.id) || !b.is_targeted(&intent.address) {
            continue;
        }
        if !is_settled {
            // What it did may only show up later: until then nobody is told that all is done.
            unsettled.insert(&intent.address);
        } else {
            // While what it made is still to be deleted, the token is what says that it is ours to delete.
            settled.push((intent, deletes.get(&intent.address).cloned().unwrap_or_default()));
        }
    }
    for address in unsettled {
        if !b.waiting.iter().any(|w| w.address == *address) {
            let state = "settling an interrupted run".to_owned();
            b.wait(address.clone(), WaitingOn::Transition { state });
        }
    }
    for (intent, after) in settled {
        b.step(Step {
            address: intent.address.clone(),
            provider: intent.provider.clone(),
            id: None,
            action: Action::Settle { intent: intent.id.clone() },
            after,
        });
        let reason = Reason::Interrupted { intent: intent.id.clone() };
        match b.changes.get_mut(&intent.address) {
            Some(change) => change.reasons.push(reason),
            None => {
                b.change(intent.address.clone(), Verdict::Forget, vec![reason]);
            }
        }
    }
}
