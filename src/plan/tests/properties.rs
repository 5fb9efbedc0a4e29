//! What holds for every manifest and every history.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::generate::{desired, edited};
use super::world::{Crash, LONG, PROJECT, World};
use crate::model::*;
use crate::plan::{Action, Note, Plan, Policy, Verdict, WaitingOn, plan};

/// `PROPTEST_CASES` asks for more.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

const ALL: fn() -> Policy =
    || Policy { prune: true, prune_volumes: true, targets: Vec::new(), ..Policy::default() };

/// What the manifest asks for is what is, but for what the plan says that it waits for or leaves.
fn check(world: &World, desired: &Desired) -> Result<(), String> {
    let plan = world.plan(desired, &Policy::default());
    let excused: BTreeSet<&str> = plan
        .waiting
        .iter()
        .map(|w| &w.address)
        .chain(plan.notes.iter().filter_map(|n| match n {
            Note::Drift { address, .. } => Some(address),
            _ => None,
        }))
        .filter_map(Address::sandbox)
        .collect();
    if !plan.steps.is_empty() {
        return Err(format!("steps are left: {plan:#?}"));
    }
    let is_kept = |intent: &PendingIntent| {
        plan.waiting.iter().any(|w| w.address == intent.address && w.on == WaitingOn::Protected)
    };
    if let Some(intent) = world.record.intents.iter().find(|intent| !is_kept(intent)) {
        return Err(format!("{intent:?} is pending"));
    }
    let mut seen = BTreeSet::new();
    for (provider, sandbox) in world.ours() {
        let name = sandbox.name();
        let wanted = desired.sandboxes.get(name).filter(|s| s.state != RunState::Absent);
        if !seen.insert(name) {
            return Err(format!("`{name}` exists twice"));
        }
        let Some(wanted) = wanted else {
            if excused.contains(name) {
                continue;
            }
            return Err(format!("`{name}` is not wanted and exists"));
        };
        if excused.contains(name) || wanted.drift != DriftPolicy::Heal {
            continue;
        }
        if provider != wanted.provider || sandbox.spec != wanted.spec {
            return Err(format!("`{name}` is not as declared: {sandbox:#?}"));
        }
        if world.record.sandboxes.get(name).map(|r| (&r.id, &r.spec))
            != Some((&sandbox.seen.id, &wanted.spec))
        {
            return Err(format!("`{name}` is not recorded as it is"));
        }
        match (&sandbox.seen.state, wanted.state) {
            (SandboxState::Stopped { .. }, RunState::Stopped) => continue,
            (SandboxState::Running, RunState::Running) => {}
            other => return Err(format!("`{name}`: {other:?}")),
        }
        check_inside(name, &wanted.guest, &sandbox.guest)?;
    }
    for (name, wanted) in &desired.sandboxes {
        let is_wanted = wanted.state != RunState::Absent && wanted.drift == DriftPolicy::Heal;
        if is_wanted && !seen.contains(name.as_str()) && !excused.contains(name.as_str()) {
            return Err(format!("`{name}` does not exist"));
        }
    }
    for (name, volume) in &desired.volumes {
        if !world.vendors[&volume.provider].volumes.contains_key(name) {
            return Err(format!("volume `{name}` does not exist"));
        }
    }
    Ok(())
}

fn check_inside(name: &str, wanted: &GuestSpec, found: &ObservedGuest) -> Result<(), String> {
    let say = |what: &str| Err(format!("`{name}`: {what}: {found:#?}"));
    let mut files: BTreeSet<&str> = wanted.files.keys().map(String::as_str).collect();
    files.extend(wanted.secrets.values().filter_map(|u| match u {
        SecretUse::File(path) => Some(path.as_str()),
        SecretUse::Env(_) | SecretUse::Bound { .. } => None,
    }));
    if found.files.keys().map(String::as_str).collect::<BTreeSet<_>>() != files {
        return say("other files");
    }
    if found.files.values().any(|f| f.state != FileState::InPlace) {
        return say("a file is not in place");
    }
    if found.repositories.keys().ne(wanted.repositories.keys())
        || found.repositories.values().any(|r| !r.present)
    {
        return say("other repositories");
    }
    let steps: BTreeSet<String> =
        wanted.presets.iter().flat_map(|p| p.steps.iter().map(PresetStep::id)).collect();
    if found.presets.keys().cloned().collect::<BTreeSet<_>>() != steps {
        return say("other preset steps");
    }
    if found.services.keys().any(|name| !wanted.services.contains_key(name)) {
        return say("a service too many");
    }
    for (service, spec) in &wanted.services {
        let state = found.services.get(service).map(|s| s.state);
        let runs = state == Some(ServiceStatus::Running);
        let healthy =
            !matches!(found.services.get(service).map(|s| &s.health), Some(Some(ProbeResult::Failing(_))));
        if runs != (spec.state == ServiceState::Running) || (runs && !healthy) {
            return say(service);
        }
    }
    Ok(())
}

fn settled(desired: &Desired, seed: u64) -> Result<World, String> {
    let mut world = World::new();
    world.converge(desired, &Policy::default(), seed)?;
    check(&world, desired)?;
    Ok(world)
}

fn fail(why: String) -> TestCaseError {
    TestCaseError::fail(why)
}

/// Whether a step acts on this sandbox or what is in it.
fn touched(plan: &Plan, name: &str) -> bool {
    plan.steps.iter().any(|s| s.address.sandbox() == Some(name))
}

/// Things that happen to the world by themselves.
fn drift(world: &mut World, name: &str, kind: u8) -> bool {
    let Some((provider, id)) = world
        .ours()
        .find(|(_, s)| s.name() == name && s.seen.state == SandboxState::Running)
        .map(|(p, s)| (p.to_owned(), s.seen.id.clone()))
    else {
        return false;
    };
    let vendor = world.vendors.get_mut(&provider).unwrap();
    if kind == 0 {
        vendor.sandboxes.remove(&id);
        return true;
    }
    let sandbox = vendor.sandboxes.get_mut(&id).unwrap();
    let guest = &mut sandbox.guest;
    let (file, service) = (
        guest.files.values_mut().next(),
        guest.services.values_mut().find(|s| s.state == ServiceStatus::Running),
    );
    match kind {
        1 => {
            guest.services.clear();
            guest.env = None;
            sandbox.seen.state = SandboxState::Stopped { unclean: Some("it was killed".into()) };
        }
        2 => sandbox.seen.state = SandboxState::Failed("the disk is full".into()),
        3 if file.is_some() => file.unwrap().state = FileState::Modified,
        4 if file.is_some() => file.unwrap().state = FileState::Missing,
        5 if guest.env.is_some() => guest.env = None,
        6 if service.is_some() => service.unwrap().state = ServiceStatus::Dead,
        7 if service.is_some() => service.unwrap().state = ServiceStatus::Failed,
        8 if service.is_some() => {
            let service = service.unwrap();
            service.health = service.health.as_ref().map(|_| ProbeResult::Failing("no answer".into()));
            return service.health.is_some();
        }
        9 if !guest.repositories.is_empty() => {
            guest.repositories.values_mut().for_each(|r| r.present = false)
        }
        10 if !sandbox.spec.ports.is_empty() => sandbox.silent_ports.extend(sandbox.spec.ports.keys()),
        11 if !sandbox.spec.mounts.is_empty() => {
            sandbox.broken_mounts.extend(sandbox.spec.mounts.iter().map(|m| m.path.clone()));
        }
        12 if provider == "alpha" => sandbox.spec.hostname = "drifted".into(),
        13 => {
            guest.services.clear();
            guest.env = None;
            sandbox.seen.state = SandboxState::Stopped { unclean: None };
        }
        _ => return false,
    }
    true
}

proptest! {
    #![proptest_config(config(200))]

    /// The first plan does all of it: the second has no steps.
    #[test]
    fn a_second_plan_is_empty(desired in desired(), seed: u64) {
        let mut world = World::new();
        let rounds = world.converge(&desired, &Policy::default(), seed).map_err(fail)?;
        prop_assert!(rounds <= 1, "{rounds} rounds");
        check(&world, &desired).map_err(fail)?;
    }

    /// An edit is followed in at most two rounds (three where something moves), and what it does not concern is left alone.
    #[test]
    fn an_edit_changes_what_differs((old, new) in edited(), seed: u64, prune_volumes: bool) {
        let mut world = settled(&old, seed).map_err(fail)?;
        let policy = Policy { prune_volumes, ..Policy::default() };
        let volumes = world.volumes();
        let plan = world.plan(&new, &policy);
        for (name, sandbox) in &old.sandboxes {
            let same = new.sandboxes.get(name) == Some(sandbox);
            // What waited for something else before may go on now.
            let free = sandbox.depends_on.is_empty();
            prop_assert!(!(same && free && touched(&plan, name)), "`{name}` is the same: {plan:#?}");
        }
        let kept: BTreeMap<String, SandboxId> = world.ours()
            .filter(|(_, s)| new.sandboxes.get(s.name()).is_some_and(|d| d.protect))
            .map(|(_, s)| (s.name().to_owned(), s.seen.id.clone())).collect();
        let moves = new.sandboxes.iter().any(|(n, s)| old.sandboxes.get(n).is_some_and(|o| o.provider != s.provider));
        let rounds = world.converge(&new, &policy, seed).map_err(fail)?;
        prop_assert!(rounds <= if moves { 3 } else { 2 }, "{rounds} rounds");
        check(&world, &new).map_err(fail)?;
        let after: BTreeMap<String, SandboxId> = world.ours()
            .map(|(_, s)| (s.name().to_owned(), s.seen.id.clone())).collect();
        for (name, id) in kept {
            prop_assert_eq!(after.get(&name), Some(&id), "`{}` is protected", name);
        }
        for ((provider, name), data) in volumes {
            let now = world.volumes().get(&(provider.clone(), name.clone())).copied();
            let may_go = prune_volumes && !new.volumes.contains_key(&name);
            prop_assert!(now == Some(data) || (may_go && now.is_none()), "the data of {provider}/{name} is lost");
        }
    }

    /// Finished preset steps are not run again when a sandbox that keeps its disk is stopped and started.
    #[test]
    fn a_finished_step_is_finished((old, new) in edited(), seed: u64) {
        let mut world = settled(&old, seed).map_err(fail)?;
        world.converge(&new, &Policy::default(), seed).map_err(fail)?;
        world.converge(&old, &Policy::default(), seed).map_err(fail)?;
        let disks: BTreeSet<SandboxId> = world.vendors["alpha"].sandboxes.keys().cloned().collect();
        let mut seen = BTreeSet::new();
        for (id, step) in world.ran.iter().filter(|(id, _)| disks.contains(id)) {
            let name = world.vendors["alpha"].sandboxes[id].name().to_owned();
            let always = [&old, &new].iter().all(|d| d.sandboxes.get(&name).is_some_and(
                |s| s.guest.presets.iter().filter(|p| p.steps.iter().any(|s| s.id() == *step)).count() == 1));
            prop_assert!(seen.insert((id, step)) || !always, "{step} ran twice in {id}");
        }
    }

    /// Drift is repaired where the policy says so and only noted where it does not.
    #[test]
    fn drift_is_healed_or_noted(desired in desired(), seed: u64, events in prop::collection::vec((0..6u8, 0..14u8), 1..4)) {
        let mut world = settled(&desired, seed).map_err(fail)?;
        let mut hit = BTreeMap::new();
        for (number, kind) in events {
            let name = super::generate::name(number);
            if !hit.contains_key(&name) && drift(&mut world, &name, kind) {
                hit.insert(name, kind);
            }
        }
        world.now += LONG;
        let plan = world.plan(&desired, &Policy::default());
        for (name, kind) in &hit {
            let sandbox = &desired.sandboxes[name];
            let protected = sandbox.protect && *kind == 2;
            let noted = plan.notes.iter().any(|n| matches!(n, Note::Drift { address, .. } if address.sandbox() == Some(name)));
            let waits = plan.waiting.iter().any(|w| w.address.sandbox() == Some(name));
            let failure = matches!(kind, 2 | 7 | 8);
            match sandbox.drift {
                DriftPolicy::Heal => prop_assert!(touched(&plan, name) || protected || waits, "{name} {kind}"),
                _ if failure => {}
                DriftPolicy::Warn => prop_assert!(noted && !touched(&plan, name), "{name} {kind} {plan:#?}"),
                DriftPolicy::Ignore => prop_assert!(!noted && !touched(&plan, name), "{name} {kind} {plan:#?}"),
            }
        }
        let rounds = world.converge(&desired, &Policy::default(), seed).map_err(fail)?;
        prop_assert!(rounds <= 2, "{rounds} rounds");
        check(&world, &desired).map_err(fail)?;
    }

    /// Whatever step an apply dies at, later plans converge: nothing twice, nothing left over, no intent pending for ever.
    #[test]
    fn a_crash_is_settled(
        (old, new) in edited(), seed: u64, at in 0..40usize, effect: bool, again: bool, pause in prop_oneof![Just(0), Just(LONG)],
    ) {
        let mut world = World::new();
        let crash = if effect { Crash::Effect } else { Crash::Begun };
        let plan = world.plan(&old, &ALL());
        let at = at % plan.steps.len().max(1);
        world.apply(&plan, &old, seed, Some((at, crash))).map_err(fail)?;
        world.now += pause;
        let goal = if again { &old } else { &new };
        let plan = world.plan(goal, &ALL());
        world.apply(&plan, goal, seed, Some((at / 2, crash))).map_err(fail)?;
        world.now += pause;
        for _ in 0..2 {
            // What lags shows up, and what was waited for goes on.
            let rounds = world.converge(goal, &ALL(), seed).map_err(fail)?;
            prop_assert!(rounds <= 4, "{rounds} rounds");
            world.now += LONG;
        }
        check(&world, goal).map_err(fail)?;
    }

    /// The same in the middle of an edit.
    #[test]
    fn a_crash_in_an_edit_is_settled((old, new) in edited(), seed: u64, at in 0..20usize, effect: bool, back: bool) {
        let mut world = settled(&old, seed).map_err(fail)?;
        let plan = world.plan(&new, &ALL());
        let crash = if effect { Crash::Effect } else { Crash::Begun };
        world.apply(&plan, &new, seed, Some((at % plan.steps.len().max(1), crash))).map_err(fail)?;
        let goal = if back { &old } else { &new };
        for _ in 0..2 {
            world.converge(goal, &ALL(), seed).map_err(fail)?;
            world.now += LONG;
        }
        check(&world, goal).map_err(fail)?;
    }

    /// Without the store, everything is taken over and nothing is made.
    #[test]
    fn a_lost_store_is_rebuilt(desired in desired(), seed: u64) {
        let mut world = settled(&desired, seed).map_err(fail)?;
        world.now += LONG;
        world.record = Recorded::default();
        let before: Vec<SandboxId> = world.ours().map(|(_, s)| s.seen.id.clone()).collect();
        let plan = world.plan(&desired, &Policy::default());
        for step in &plan.steps {
            prop_assert!(matches!(step.action, Action::Adopt { .. } | Action::AdoptVolume { .. }), "{step:#?}");
        }
        let rounds = world.converge(&desired, &Policy::default(), seed).map_err(fail)?;
        prop_assert!(rounds <= 1);
        let after: Vec<SandboxId> = world.ours().map(|(_, s)| s.seen.id.clone()).collect();
        prop_assert_eq!(before, after);
        check(&world, &desired).map_err(fail)?;
    }

    /// A provider that does not answer is left alone, and the others are not.
    #[test]
    fn an_unavailable_provider_is_left_alone((old, new) in edited(), seed: u64, beta: bool) {
        let mut world = settled(&old, seed).map_err(fail)?;
        let down = if beta { "beta" } else { "alpha" };
        world.vendors.get_mut(down).unwrap().down = true;
        world.converge(&new, &ALL(), seed).map_err(fail)?;
        let plan = world.plan(&new, &ALL());
        for (name, sandbox) in &new.sandboxes {
            let waits = |w: &WaitingOn| matches!(w, WaitingOn::Provider { provider, .. } if provider == down);
            let concerned = sandbox.state != RunState::Absent && sandbox.provider == down;
            if concerned {
                let address = Address::Sandbox(name.clone());
                prop_assert!(plan.waiting.iter().any(|w| w.address == address && waits(&w.on)), "{name}");
            }
            let moved = old.sandboxes.get(name).is_some_and(|o| o.provider == down);
            if sandbox.state == RunState::Running && sandbox.provider != down && !moved && !sandbox.protect {
                prop_assert!(world.ours().any(|(_, s)| s.name() == name), "{name} should exist");
            }
        }
        world.vendors.get_mut(down).unwrap().down = false;
        world.converge(&new, &ALL(), seed).map_err(fail)?;
        check(&world, &new).map_err(fail)?;
    }

    /// Objects of other projects are never touched; of several of ours the oldest is taken and the rest are named.
    #[test]
    fn strangers_and_doubles((old, new) in edited(), seed: u64) {
        let mut world = settled(&old, seed).map_err(fail)?;
        let mut strangers = BTreeSet::new();
        let mut doubles = BTreeSet::new();
        let copies: Vec<_> = world.ours().map(|(p, s)| (p.to_owned(), s.clone())).collect();
        world.now += LONG;
        for (provider, sandbox) in copies {
            let mut labels = sandbox.seen.labels.clone();
            doubles.insert(world.insert(&provider, labels.clone(), &sandbox.spec).map_err(fail)?);
            labels.insert(labels::PROJECT.into(), "other".into());
            strangers.insert(world.insert(&provider, labels, &sandbox.spec).map_err(fail)?);
        }
        world.now += LONG;
        let plan = world.plan(&old, &Policy::default());
        prop_assert!(plan.steps.is_empty(), "{plan:#?}");
        let named: BTreeSet<SandboxId> = plan.notes.iter().filter_map(|n| match n {
            Note::Orphan { id, .. } => Some(id.clone()),
            _ => None,
        }).collect();
        prop_assert_eq!(&named, &doubles);
        world.record = Recorded::default();
        let plan = world.plan(&old, &Policy::default());
        for step in plan.steps.iter().filter(|s| matches!(s.action, Action::Adopt { .. })) {
            prop_assert!(!doubles.contains(step.id.as_ref().unwrap()), "{step:#?}");
        }
        world.converge(&new, &Policy::default(), seed).map_err(fail)?;
        for id in strangers {
            prop_assert!(world.vendors.values().any(|v| v.sandboxes.contains_key(&id)), "{id} is gone");
        }
    }

    /// The same inputs give the same bytes, whatever order they were put together in.
    #[test]
    fn the_same_inputs_give_the_same_bytes((old, new) in edited(), seed: u64) {
        let world = settled(&old, seed).map_err(fail)?;

        let observed = world.observe(&new);
        let json: String = serde_json::to_string(&observed).unwrap();
        let again: Observed = serde_json::from_str(&json).unwrap();
        let bytes = |world: &World, observed: &Observed| {
            world.with_input(&new, &Policy::default(), observed, |input| serde_json::to_string(&plan(input)).unwrap())
        };
        let first = bytes(&world, &observed);
        prop_assert_eq!(&first, &bytes(&world, &again));
        let read: Plan = serde_json::from_str(&first).unwrap();
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), first);
    }

    /// Steps stand in the order that they must run in.
    #[test]
    fn steps_come_after_what_they_need((old, new) in edited(), seed: u64) {
        let world = settled(&old, seed).map_err(fail)?;
        for (world, desired) in [(World::new(), &old), (world, &new)] {
            let plan = world.plan(desired, &ALL());
            order(&world, desired, &plan).map_err(fail)?;
        }
    }
}

/// Every step that stands before another, directly or not.
fn before(plan: &Plan) -> Vec<BTreeSet<usize>> {
    let mut all: Vec<BTreeSet<usize>> = Vec::new();
    for step in &plan.steps {
        let mut mine = step.after.clone();
        for after in &step.after {
            mine.extend(all[*after].iter().copied());
        }
        all.push(mine);
    }
    all
}

fn order(world: &World, desired: &Desired, plan: &Plan) -> Result<(), String> {
    let before = before(plan);
    let steps = || plan.steps.iter().enumerate();
    for (id, step) in steps() {
        let say = |what: &str| Err(format!("step {id} {what}: {plan:#?}"));
        let name = step.address.sandbox().unwrap_or_default();
        let sandbox = desired.sandboxes.get(name);
        let has = |other: usize| before[id].contains(&other);
        match &step.action {
            Action::RunPresetStep { .. } | Action::StartService { .. } => {
                for (dependency, condition) in sandbox.map(|s| &s.depends_on).into_iter().flatten() {
                    for (other, wait) in steps().filter(|(_, s)| s.address.sandbox() == Some(dependency)) {
                        let needed = match wait.action {
                            Action::Create { .. } | Action::Start | Action::StartService { .. } => true,
                            Action::WaitService { .. } => *condition == DependencyCondition::Healthy,
                            _ => false,
                        };
                        if needed && !has(other) {
                            return say(&format!("does not come after step {other}"));
                        }
                    }
                }
            }
            Action::Delete { .. } => {
                let removed =
                    plan.changes.iter().any(|c| c.address == step.address && c.verdict == Verdict::Delete);
                for (other, dependent) in steps().filter(|_| removed) {
                    let depends = dependent
                        .address
                        .sandbox()
                        .and_then(|n| world.record.sandboxes.get(n))
                        .is_some_and(|r| r.depends_on.contains(name));
                    if depends && matches!(dependent.action, Action::Delete { forget: true }) && !has(other) {
                        return say(&format!(
                            "does not come after the delete of its dependent in step {other}"
                        ));
                    }
                }
            }
            Action::Create { spec, .. } | Action::Update { spec, .. } => {
                for mount in &spec.mounts {
                    let made = steps().find(
                        |(_, s)| matches!(&s.action, Action::CreateVolume { name } if *name == mount.volume),
                    );
                    if made.is_some_and(|(made, _)| !has(made)) {
                        return say("does not come after its volume");
                    }
                }
            }
            Action::DeleteVolume { name } => {
                for (other, user) in
                    steps().filter(|(_, s)| matches!(s.action, Action::Delete { .. } | Action::Update { .. }))
                {
                    let mounts = world.ours().any(|(_, s)| {
                        Some(&s.seen.id) == user.id.as_ref()
                            && s.spec.mounts.iter().any(|m| m.volume == *name)
                    });
                    if mounts && !has(other) {
                        return say("does not come after what mounts the volume");
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn the_world_itself_lists_only_ours() {
    let mut world = World::new();
    let stranger = BTreeMap::from([(labels::PROJECT.to_owned(), format!("not-{PROJECT}"))]);
    world.insert("alpha", stranger, &SandboxSpec::default()).unwrap();
    assert_eq!(world.ours().count(), 0);
}
