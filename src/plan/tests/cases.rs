//! Histories that are worth a name: each was wrong once, or would be the first to go wrong.

use std::collections::BTreeSet;

use super::world::{Crash, LONG, World};
use super::{applied, generate, named, sandbox, shop};
use crate::model::*;
use crate::plan::{Action, Note, Plan, Policy, Reason, Verdict, WaitingOn};

fn only(name: &str, sandbox: DesiredSandbox) -> Desired {
    Desired {
        project: super::PROJECT.into(),
        volumes: Default::default(),
        sandboxes: [(name.to_owned(), sandbox)].into(),
    }
}

fn at_beta() -> Desired {
    only("api", DesiredSandbox { provider: "beta".into(), ..sandbox() })
}

fn change<'p>(plan: &'p Plan, address: &str) -> &'p crate::plan::Change {
    plan.changes.iter().find(|c| c.address.to_string() == address).unwrap()
}

/// A world in which the create of `api` died after its effect.
fn interrupted(desired: &Desired) -> World {
    let mut world = World::new();
    let plan = world.plan(desired, &Policy::default());
    world.apply(&plan, desired, 1, Some((0, Crash::Effect))).unwrap();
    world
}

#[test]
fn a_half_made_sandbox_of_ours_is_gone_on_with() {
    let desired = only("api", sandbox());
    let mut world = interrupted(&desired);
    let made = world.vendors.get_mut("alpha").unwrap().sandboxes.values_mut().next().unwrap();
    made.seen.state = SandboxState::Creating;
    let token = world.record.intents[0].id.clone();
    let plan = world.plan(&desired, &Policy::default());
    assert!(
        matches!(&plan.steps[0].action, Action::Create { resume: Some(t), .. } if *t == token),
        "{plan:#?}"
    );
    assert_eq!(change(&plan, "sandbox/api").reasons, [Reason::Interrupted { intent: token }]);
    world.converge(&desired, &Policy::default(), 1).unwrap();
    assert_eq!((world.ours().count(), world.record.intents.len()), (1, 0));
    // One that another run is making, for all we know, is waited for.
    let made = world.vendors.get_mut("alpha").unwrap().sandboxes.values_mut().next().unwrap();
    made.seen.state = SandboxState::Creating;
    let plan = world.plan(&desired, &Policy::default());
    assert!(plan.steps.is_empty() && matches!(plan.waiting[0].on, WaitingOn::Transition { .. }), "{plan:#?}");
}

#[test]
fn a_half_made_sandbox_of_another_spec_is_made_again() {
    let mut desired = only("api", sandbox());
    let mut world = interrupted(&desired);
    let made = world.vendors.get_mut("alpha").unwrap().sandboxes.values_mut().next().unwrap();
    made.seen.state = SandboxState::Creating;
    named(&mut desired, "api").spec.hostname = "other".into();
    let plan = world.plan(&desired, &Policy::default());
    assert_eq!(change(&plan, "sandbox/api").verdict, Verdict::Recreate);
    world.converge(&desired, &Policy::default(), 1).unwrap();
    assert_eq!((world.ours().count(), world.record.intents.len()), (1, 0));
}

#[test]
fn a_create_that_lags_is_not_repeated_where_the_provider_would_make_two() {
    let desired = at_beta();
    let mut world = interrupted(&desired);
    let plan = world.plan(&desired, &Policy::default());
    assert!(plan.steps.is_empty() && matches!(plan.waiting[0].on, WaitingOn::Transition { .. }), "{plan:#?}");
    world.now += LONG;
    world.converge(&desired, &Policy::default(), 1).unwrap();
    assert_eq!(world.ours().count(), 1);
}

#[test]
fn what_an_interrupted_create_left_at_the_provider_before_is_removed() {
    let mut world = interrupted(&at_beta());
    let moved = only("api", sandbox());
    world.converge(&moved, &Policy::default(), 1).unwrap();
    world.now += LONG;
    world.converge(&moved, &Policy::default(), 1).unwrap();
    assert_eq!(world.ours().map(|(provider, _)| provider).collect::<Vec<_>>(), ["alpha"]);
    assert!(world.record.intents.is_empty());
}

#[test]
fn a_pending_delete_does_not_hide_a_pending_create() {
    let desired = at_beta();
    let mut world = interrupted(&desired);
    let mut delete = world.record.intents[0].clone();
    delete.id = IntentId("the delete".into());
    delete.operation = IntentOperation::Delete;
    world.record.intents.push(delete);
    assert!(world.plan(&desired, &Policy::default()).steps.is_empty());
}

#[test]
fn a_move_of_what_is_lost_says_that_it_moves() {
    let mut world = applied(&at_beta());
    world.vendors.get_mut("beta").unwrap().sandboxes.clear();
    let plan = world.plan(&only("api", sandbox()), &Policy::default());
    let reason = Reason::Moved { from: "beta".into(), to: "alpha".into() };
    assert_eq!(change(&plan, "sandbox/api").reasons, [reason]);
    assert_eq!(change(&plan, "sandbox/api").verdict, Verdict::Create);
}

#[test]
fn a_move_counts_its_generation_on() {
    let mut world = applied(&at_beta());
    world.record.sandboxes.get_mut("api").unwrap().generation = 7;
    let mut desired = only("api", sandbox());
    named(&mut desired, "api").spec.hostname = "other".into();
    world.converge(&desired, &Policy::default(), 1).unwrap();
    assert_eq!(world.record.sandboxes["api"].generation, 8);
}

#[test]
fn what_is_neither_declared_nor_recorded_is_left_to_gc() {
    let mut world = applied(&shop());
    world.record = Recorded::default();
    let mut desired = shop();
    desired.sandboxes.remove("api");
    let plan = world.plan(&desired, &Policy::default());
    assert!(
        plan.notes
            .iter()
            .any(|n| matches!(n, Note::Orphan { address, .. } if address.sandbox() == Some("api")))
    );
    assert!(!plan.steps.iter().any(|s| matches!(s.action, Action::Delete { .. })), "{plan:#?}");
    // Declared absent, it goes.
    let mut desired = shop();
    named(&mut desired, "api").state = RunState::Absent;
    let plan = world.plan(&desired, &Policy::default());
    assert!(plan.steps.iter().any(|s| matches!(s.action, Action::Delete { .. })), "{plan:#?}");
}

#[test]
fn what_is_in_place_does_not_wait_for_a_stopped_dependency() {
    let mut desired = shop();
    let mut world = applied(&desired);
    named(&mut desired, "db").state = RunState::Stopped;
    world.converge(&desired, &Policy::default(), 1).unwrap();
    let plan = world.plan(&desired, &Policy::default());
    assert!(plan.is_empty(), "{plan:#?}");
    // What is not, does.
    named(&mut desired, "api").guest.services.insert("new".into(), generate::service_spec("new", false));
    let plan = world.plan(&desired, &Policy::default());
    assert!(matches!(plan.waiting[0].on, WaitingOn::Dependency { .. }), "{plan:#?}");
}

#[test]
fn a_dead_service_that_is_left_dead_is_not_healthy() {
    let mut desired = shop();
    let mut world = applied(&desired);
    named(&mut desired, "db").drift = DriftPolicy::Ignore;
    for sandbox in world.vendors.get_mut("alpha").unwrap().sandboxes.values_mut() {
        sandbox.guest.services.values_mut().for_each(|s| s.state = ServiceStatus::Dead);
    }
    let plan = world.plan(&desired, &Policy::default());
    assert!(plan.steps.is_empty(), "{plan:#?}");
    assert!(plan.waiting.iter().any(|w| w.address.sandbox() == Some("api")), "{plan:#?}");
}

#[test]
fn drift_that_is_only_reported_does_not_hold_up_an_edit() {
    let mut desired = only("api", DesiredSandbox { drift: DriftPolicy::Warn, ..sandbox() });
    let mut world = applied(&desired);
    for sandbox in world.vendors.get_mut("alpha").unwrap().sandboxes.values_mut() {
        sandbox.spec.hostname = "drifted".into();
    }
    named(&mut desired, "api").guest.files.insert("/new".into(), generate::file(&"text"));
    let plan = world.plan(&desired, &Policy::default());
    assert!(matches!(&plan.steps[..], [step] if matches!(step.action, Action::Setup(_))), "{plan:#?}");
    assert!(matches!(&plan.notes[..], [Note::Drift { .. }]), "{plan:#?}");
}

#[test]
fn what_is_to_be_absent_is_not_absent_because_nobody_answers() {
    let with = |state| only("api", DesiredSandbox { state, ..sandbox() });
    for lost in [false, true] {
        let mut world = applied(&with(RunState::Running));
        if lost {
            world.record.sandboxes.clear();
        }
        let desired = with(RunState::Absent);
        world.vendors.values_mut().for_each(|vendor| vendor.down = true);
        let plan = world.plan(&desired, &Policy::default());
        assert!(plan.steps.is_empty() && !plan.is_empty(), "lost: {lost}: {plan:#?}");
        assert!(matches!(&plan.waiting[..], [w] if w.address.to_string() == "sandbox/api"), "{plan:#?}");
        world.vendors.values_mut().for_each(|vendor| vendor.down = false);
        world.converge(&desired, &Policy::default(), 1).unwrap();
        assert_eq!(world.ours().count(), 0);
    }
}

#[test]
fn a_state_that_somebody_else_brought_about_is_drift() {
    let with = |state, drift| only("api", DesiredSandbox { state, drift, ..sandbox() });
    let (stopped, running) = (SandboxState::Stopped { unclean: None }, SandboxState::Running);
    for (wanted, found, what) in
        [(RunState::Running, &stopped, "it was stopped"), (RunState::Stopped, &running, "it was started")]
    {
        for drift in [DriftPolicy::Heal, DriftPolicy::Warn, DriftPolicy::Ignore] {
            let desired = with(wanted, drift);
            let mut world = applied(&desired);
            for sandbox in world.vendors.get_mut("alpha").unwrap().sandboxes.values_mut() {
                sandbox.seen.state = found.clone();
            }
            let plan = world.plan(&desired, &Policy::default());
            let noted = matches!(&plan.notes[..], [Note::Drift { what: said, .. }] if said == what);
            assert_eq!(noted, drift == DriftPolicy::Warn, "{plan:#?}");
            let healed =
                plan.changes.iter().any(|c| c.reasons == [Reason::Drifted { what: what.to_owned() }]);
            assert_eq!(healed, drift == DriftPolicy::Heal, "{plan:#?}");
            assert_eq!(plan.steps.is_empty(), !healed, "{plan:#?}");

            // Whoever asks for the state by name gets it.
            let asked = Policy { asked: BTreeSet::from(["api".to_owned()]), ..Policy::default() };
            assert!(!world.plan(&desired, &asked).steps.is_empty());

            // An edit is no drift, whatever stands in the way of it.
            let mut edited = desired.clone();
            named(&mut edited, "api").spec.hostname = "other".into();
            world.converge(&edited, &Policy::default(), 1).unwrap();
            let (_, sandbox) = world.ours().next().unwrap();
            assert_eq!(sandbox.seen.state.run_state(), wanted, "{drift:?}");
            assert_eq!(sandbox.spec.hostname, "other");
        }
    }
    // Neither is a state that the manifest had before, nor one that nothing is recorded of.
    for (before, after) in [(RunState::Running, RunState::Stopped), (RunState::Stopped, RunState::Running)] {
        for lost in [false, true] {
            let mut world = applied(&with(before, DriftPolicy::Warn));
            if lost {
                world.record.sandboxes.clear();
            }
            let desired = with(after, DriftPolicy::Warn);
            world.converge(&desired, &Policy::default(), 1).unwrap();
            let (_, sandbox) = world.ours().next().unwrap();
            assert_eq!(sandbox.seen.state.run_state(), after, "lost: {lost}");
        }
    }
}

#[test]
fn a_volume_that_something_mounts_is_waited_for() {
    let world = applied(&shop());
    let nothing = Desired { volumes: Default::default(), sandboxes: Default::default(), ..shop() };
    let policy = Policy { prune: false, prune_volumes: true, targets: Vec::new(), ..Policy::default() };
    let plan = world.plan(&nothing, &policy);
    assert!(plan.steps.is_empty(), "{plan:#?}");
    assert!(
        matches!(&plan.waiting[0].on, WaitingOn::Mounted { by } if by.sandbox() == Some("db")),
        "{plan:#?}"
    );
}

#[test]
fn a_volume_that_moves_is_told_of_and_recorded_where_it_is() {
    let mut desired = shop();
    desired.sandboxes.clear();
    let mut world = applied(&desired);
    desired.volumes.get_mut("pgdata").unwrap().provider = "beta".into();
    let plan = world.plan(&desired, &Policy::default());
    let reason = Reason::Moved { from: "alpha".into(), to: "beta".into() };
    assert_eq!(change(&plan, "volume/pgdata").reasons, [reason]);
    assert!(matches!(&plan.notes[..], [Note::Kept { .. }]), "{plan:#?}");
    world.apply(&plan, &desired, 1, Some((0, Crash::Effect))).unwrap();
    world.converge(&desired, &Policy::default(), 1).unwrap();
    assert_eq!(world.record.volumes["pgdata"].provider, "beta");
    assert_eq!(world.volumes().len(), 2);
}

#[test]
fn a_repository_waits_for_its_credentials() {
    let mut desired = only("api", sandbox());
    let spec = RepositorySpec { credentials: Some("TOKEN".into()), ..generate::repository(1) };
    named(&mut desired, "api").guest.repositories.insert("/work".into(), spec);
    let plan = World::new().plan(&desired, &Policy::default());
    assert!(
        matches!(&plan.waiting[..], [w] if matches!(&w.on, WaitingOn::Secret { name } if name == "TOKEN"))
    );
    assert!(!plan.steps.iter().any(|s| matches!(s.action, Action::BringRepository { .. })), "{plan:#?}");
}

#[test]
fn a_saved_plan_with_ports_reads_back() {
    let plan = World::new().plan(&shop(), &Policy::default());
    let json = serde_json::to_string(&plan).unwrap();
    assert!(json.contains("\"3000\""));
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn an_interrupted_update_that_the_provider_cannot_read_back_is_done_again() {
    let mut world = applied(&at_beta());
    let mut renamed = at_beta();
    named(&mut renamed, "api").spec.hostname = "other".into();
    let plan = world.plan(&renamed, &Policy::default());
    // Stop, update: the record does not learn of the update.
    world.apply(&plan, &renamed, 1, Some((1, Crash::Effect))).unwrap();
    world.converge(&at_beta(), &Policy::default(), 1).unwrap();
    assert_eq!(world.ours().next().unwrap().1.spec, at_beta().sandboxes["api"].spec);
}

#[test]
fn what_is_asked_for_is_made_anew_once_and_nothing_else() {
    let mut desired = shop();
    let mut world = applied(&desired);
    let id = |world: &World, name: &str| world.record.sandboxes[name].id.clone();
    let (db, api) = (id(&world, "db"), id(&world, "api"));
    let why = "recipe modified, rebuild db".to_owned();
    let policy = Policy { rebuild: [(db.clone(), why.clone())].into(), ..Policy::default() };
    let plan = world.plan(&desired, &policy);
    let asked = change(&plan, "sandbox/db");
    assert_eq!((asked.verdict, asked.reasons.as_slice()), (Verdict::Recreate, &[Reason::Asked { why }][..]));
    assert!(!asked.data_at_risk.is_empty(), "consent is needed");
    world.converge(&desired, &policy, 1).unwrap();
    assert_eq!((id(&world, "db") == db, id(&world, "api") == api), (false, true));
    assert!(world.plan(&desired, &policy).is_empty(), "it was asked for once");

    // What is protected stays.
    let policy = Policy { rebuild: [(id(&world, "db"), String::new())].into(), ..Policy::default() };
    named(&mut desired, "db").protect = true;
    let plan = world.plan(&desired, &policy);
    assert!(plan.waiting.iter().any(|w| w.on == WaitingOn::Protected), "{plan:#?}");
    assert!(!plan.steps.iter().any(|step| matches!(step.action, Action::Delete { .. })), "{plan:#?}");
}

#[test]
fn what_is_paused_is_up_and_goes_on_before_anything_else() {
    let mut desired = only("api", sandbox());
    let mut world = applied(&desired);
    let paused = |world: &mut World| {
        let vendor = world.vendors.get_mut("alpha").unwrap();
        vendor.sandboxes.values_mut().next().unwrap().seen.state = SandboxState::Paused;
    };
    let actions = |plan: &Plan| plan.steps.iter().map(|step| step.action.verb()).collect::<Vec<_>>();

    // Asked for by name: it is frozen, and nothing else is done; once it is, there is nothing to do.
    let policy = Policy { pause: BTreeSet::from(["api".to_owned()]), ..Policy::default() };
    named(&mut desired, "api").spec.hostname = "other".into();
    assert_eq!(actions(&world.plan(&desired, &policy)), ["pause"]);
    paused(&mut world);
    assert!(world.plan(&desired, &policy).is_empty());

    // An apply lets it go on, and waits for that before it decides anything about the rest.
    let plan = world.plan(&desired, &Policy::default());
    assert_eq!(actions(&plan), ["start"]);
    assert_eq!(change(&plan, "sandbox/api").verdict, Verdict::Start);
    assert!(matches!(plan.waiting[0].on, WaitingOn::Transition { .. }), "{plan:#?}");
    world.converge(&desired, &Policy::default(), 1).unwrap();
    assert_eq!(world.ours().next().unwrap().1.seen.state, SandboxState::Running);

    // It is stopped and deleted as it is.
    paused(&mut world);
    named(&mut desired, "api").state = RunState::Stopped;
    assert_eq!(actions(&world.plan(&desired, &Policy::default())), ["stop"]);
    named(&mut desired, "api").state = RunState::Absent;
    assert_eq!(actions(&world.plan(&desired, &Policy::default())), ["delete"]);
}
