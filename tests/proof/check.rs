//! The checker of histories: what the journal and the events claim, against what the world knows to have happened.

use std::collections::{BTreeMap, BTreeSet};

use pocketenv::model::*;
use pocketenv::store::{EventQuery, Outcome};

use crate::life::Lives;
use crate::schedule::Ask;
use crate::world::{PROJECT, State, What};

/// What must hold at every moment.
pub fn so_far(state: &State) -> Result<(), String> {
    match state.violations.first() {
        Some(violation) => Err(violation.clone()),
        None => Ok(()),
    }
}

/// Without consent no disk of something declared is lost.
pub fn nothing_lost(state: &State, since: usize, desired: &Desired) -> Result<(), String> {
    for effect in &state.history[since..] {
        let lost = match &effect.what {
            What::Deleted { id, address, lost: true } => {
                let name = address.strip_prefix("sandbox/").unwrap_or_default();
                desired.sandboxes.contains_key(name).then_some(id)
            }
            What::Stopped { id, lost: true } => Some(id),
            _ => None,
        };
        if let Some(id) = lost {
            return Err(format!("without consent the disk of {id} was lost: {effect:?}"));
        }
    }
    Ok(())
}

/// What must hold when one plain run has ended well.
pub async fn converged(lives: &Lives, desired: &Desired, ask: Ask) -> Result<(), String> {
    let recorded = lives.store.recorded(PROJECT).await.unwrap();
    if !recorded.intents.is_empty() {
        return Err(format!("intents are left pending: {:?}", recorded.intents));
    }
    if !lives.store.leases().await.unwrap().is_empty() {
        return Err("a lease is left".to_owned());
    }
    let state = lives.world.lock();
    let wanted: BTreeMap<&String, &DesiredSandbox> = match ask {
        Ask::Apply => desired.sandboxes.iter().filter(|(_, s)| s.state != RunState::Absent).collect(),
        Ask::Destroy { .. } => BTreeMap::new(),
    };
    let mut found: BTreeSet<String> = BTreeSet::new();
    for (provider, id, sandbox) in state.ours() {
        let name = sandbox.label(labels::ADDRESS).strip_prefix("sandbox/").unwrap_or_default();
        let record = recorded.sandboxes.get(name).filter(|r| r.id == *id && r.provider == provider);
        let (Some(wanted), Some(record)) = (wanted.get(&name.to_owned()), record) else {
            if state.excused.contains(id) {
                continue;
            }
            return Err(format!("{id} ({name} at {provider}) is leaked"));
        };
        if provider != wanted.provider || !found.insert(name.to_owned()) {
            return Err(format!("{id} ({name} at {provider}) is one too many"));
        }
        if sandbox.spec != wanted.spec || record.spec != wanted.spec {
            return Err(format!("{name} has another spec than is desired"));
        }
        match (wanted.state, &sandbox.state) {
            (RunState::Stopped, SandboxState::Stopped { .. }) => {}
            (RunState::Running, SandboxState::Running) => inside(name, &wanted.guest, &sandbox.inside)?,
            (wanted, is) => return Err(format!("{name} should be {wanted:?} and is {is:?}")),
        }
    }
    if let Some((missing, _)) = wanted.iter().find(|(name, _)| !found.contains(**name)) {
        return Err(format!("{missing} does not exist"));
    }
    if let Some(extra) = recorded.sandboxes.keys().find(|name| !found.contains(*name)) {
        return Err(format!("{extra} is recorded and does not exist"));
    }
    others_untouched(&state)?;
    volumes(lives, &state, desired, ask)
}

/// What should be inside is inside, and nothing that should not.
fn inside(name: &str, wanted: &GuestSpec, is: &crate::inside::Inside) -> Result<(), String> {
    let running = |state: &str| state == "running";
    let services: BTreeSet<&String> =
        is.services.iter().filter(|(_, (_, state))| running(state)).map(|(name, _)| name).collect();
    if services != wanted.services.keys().collect() {
        return Err(format!("{name}: the services {services:?} run"));
    }
    let files: BTreeSet<&str> = is.files.values().map(|f| f[4].as_str()).collect();
    let secret = |usage: &SecretUse| match usage {
        SecretUse::File(path) => Some(path.clone()),
        SecretUse::Env(_) | SecretUse::Bound { .. } => None,
    };
    let wanted_files: BTreeSet<String> =
        wanted.files.keys().cloned().chain(wanted.secrets.values().filter_map(secret)).collect();
    if files != wanted_files.iter().map(String::as_str).collect() {
        return Err(format!("{name}: the files {files:?} are in place, not {wanted_files:?}"));
    }
    let steps: BTreeSet<String> =
        wanted.presets.iter().flat_map(|p| p.steps.iter().map(PresetStep::id)).collect();
    if is.steps.keys().cloned().collect::<BTreeSet<_>>() != steps {
        return Err(format!("{name}: the preset steps {:?} are done, not {steps:?}", is.steps));
    }
    if is.env.is_none() && !wanted.env.is_empty() {
        return Err(format!("{name}: no environment is in place"));
    }
    Ok(())
}

fn others_untouched(state: &State) -> Result<(), String> {
    for (provider, vendor) in &state.vendors {
        for id in ["other-1", "strange-1"] {
            let theirs = vendor.sandboxes.get(&SandboxId(id.to_owned()));
            let fine = theirs.is_some_and(|s| {
                s.exists() && s.state == SandboxState::Running && s.spec == SandboxSpec::default()
            });
            if !fine {
                return Err(format!("{id} at {provider}, which belongs to others, was touched"));
            }
        }
        if vendor.volumes.get(&("other".to_owned(), "v0".to_owned())) != Some(&1) {
            return Err(format!("a volume of others at {provider} was touched"));
        }
    }
    Ok(())
}

/// Declared volumes exist, and none was ever made twice or deleted unasked.
fn volumes(lives: &Lives, state: &State, desired: &Desired, ask: Ask) -> Result<(), String> {
    let mut made: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for effect in &state.history {
        match &effect.what {
            What::VolumeCreated { name, .. } => *made.entry((&effect.provider, name)).or_default() += 1,
            What::VolumeDeleted(name) if !lives.volumes_may_go => {
                return Err(format!("volume {name} was deleted though nobody asked for it"));
            }
            _ => {}
        }
    }
    if !lives.volumes_may_go && made.values().any(|n| *n > 1) {
        return Err(format!("volumes were made more than once: {made:?}"));
    }
    for (name, volume) in &desired.volumes {
        let exists =
            state.vendors[&volume.provider].volumes.contains_key(&(PROJECT.to_owned(), name.clone()));
        match ask {
            Ask::Apply if !exists => return Err(format!("volume {name} does not exist")),
            Ask::Destroy { volumes: true } if exists => return Err(format!("volume {name} is left")),
            _ => {}
        }
    }
    Ok(())
}

/// What the journal and the events claim has happened, and no more.
pub async fn journal(lives: &Lives) -> Result<(), String> {
    let entries = lives.store.journal(PROJECT, usize::MAX >> 1).await.unwrap();
    let events = lives.store.events(PROJECT, EventQuery::default(), 100_000).await.unwrap();
    let state = lives.world.lock();
    let created: BTreeMap<&str, &str> = state
        .history
        .iter()
        .filter_map(|e| match &e.what {
            What::Created { address, intent, .. } => Some((intent.as_str(), address.as_str())),
            _ => None,
        })
        .collect();
    for entry in &entries {
        let (intent, address) = (&entry.intent, entry.intent.address.to_string());
        if intent.operation == IntentOperation::Create
            && matches!(entry.ended, Some((_, Outcome::Done)))
            && intent.address.sandbox().is_some()
            && created.get(intent.id.0.as_str()) != Some(&address.as_str())
        {
            return Err(format!(
                "the journal has {} of {address} as done, and nothing was created with it",
                intent.id
            ));
        }
        if matches!(entry.ended, Some((_, Outcome::Failed { .. })))
            && created.contains_key(intent.id.0.as_str())
        {
            return Err(format!("the journal has {} of {address} as failed, and it was created", intent.id));
        }
    }
    // Each event that says so had its effect, and no effect was told twice.
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for event in &events {
        let event = &event.event;
        if let (Some(address @ Address::Sandbox(_)), "create", "StepDone") =
            (&event.address, event.operation.as_str(), event.reason.as_str())
        {
            *told.entry(address.to_string()).or_default() += 1;
        }
    }
    for (address, times) in told {
        let made = |what: &What| matches!(what, What::Created { address: a, .. } if *a == address);
        let happened = state.history.iter().filter(|effect| made(&effect.what)).count();
        if happened < times {
            return Err(format!(
                "{address} is told to have been created {times} times, and was {happened} times"
            ));
        }
    }
    Ok(())
}
