//! The lint finds every fault that is planted in a good plan.

use super::world::World;
use super::{applied, named, shop};
use crate::model::*;
use crate::plan::lint::lint;
use crate::plan::{Action, Plan, Policy, Reason, Verdict, plan};

struct Case {
    world: World,
    desired: Desired,
    observed: Observed,
    policy: Policy,
    plan: Plan,
}

impl Case {
    fn new(world: World, desired: Desired, policy: Policy) -> Self {
        let observed = world.observe(&desired);
        let plan = world.with_input(&desired, &policy, &observed, |input| {
            let plan = plan(input);
            assert_eq!(lint(&plan, input), [], "{plan:#?}");
            plan
        });
        assert!(!plan.steps.is_empty());
        Self { world, desired, observed, policy, plan }
    }

    fn fresh() -> Self {
        Self::new(World::new(), shop(), Policy::default())
    }

    /// `db` is made again from another image.
    fn recreate() -> Self {
        let world = applied(&shop());
        let mut desired = shop();
        named(&mut desired, "db").spec.image = Image::Oci("debian:14".into());
        Self::new(world, desired, Policy::default())
    }

    /// Everything goes, the volume as well.
    fn removal() -> Self {
        let world = applied(&shop());
        let nothing = Desired { volumes: Default::default(), sandboxes: Default::default(), ..shop() };
        Self::new(world, nothing, Policy { prune_volumes: true, ..Policy::default() })
    }

    /// `db` is restarted with another host name.
    fn restart() -> Self {
        let world = applied(&shop());
        let mut desired = shop();
        named(&mut desired, "db").spec.hostname = "postgres".into();
        Self::new(world, desired, Policy::default())
    }

    fn step(&self, wanted: impl Fn(&Action) -> bool) -> usize {
        self.plan.steps.iter().position(|s| wanted(&s.action)).unwrap()
    }

    #[track_caller]
    fn finds(&self, words: &str) {
        let findings = self.world.with_input(&self.desired, &self.policy, &self.observed, |input| {
            lint(&self.plan, input).iter().map(ToString::to_string).collect::<Vec<_>>()
        });
        assert!(findings.iter().any(|f| f.contains(words)), "{words:?} is not in {findings:?}");
    }
}

#[test]
fn a_step_that_comes_after_a_later_one() {
    for late in [0, 1, usize::MAX] {
        let mut case = Case::fresh();
        case.plan.steps[0].after.insert(late);
        case.finds("does not stand before it");
    }
}

#[test]
fn a_resource_that_changes_twice() {
    let mut case = Case::fresh();
    let change = case.plan.changes[0].clone();
    case.plan.changes.push(change);
    case.finds("two changes");
}

#[test]
fn a_change_without_a_reason() {
    for mut case in [Case::fresh(), Case::recreate()] {
        case.plan.changes.iter_mut().for_each(|c| c.reasons.clear());
        case.finds("for no reason");
    }
}

#[test]
fn a_step_that_serves_no_change() {
    let mut case = Case::fresh();
    case.plan.changes.retain(|c| c.address.sandbox() != Some("api"));
    case.finds("which does not change");
}

#[test]
fn data_at_risk_that_goes_unsaid() {
    for mut case in [Case::recreate(), Case::removal()] {
        case.plan.changes.iter_mut().for_each(|c| c.data_at_risk.clear());
        case.finds("no data is said to be at risk");
    }
}

#[test]
fn a_step_at_a_provider_that_could_not_be_observed() {
    let mut case = Case::fresh();
    let reason = "it does not answer".to_owned();
    case.observed.providers.insert("alpha".into(), Observation::Unavailable { reason });
    case.finds("could not be observed");
    case.observed.providers.clear();
    case.finds("could not be observed");
}

#[test]
fn a_step_on_what_is_not_ours() {
    let mut case = Case::recreate();
    let delete = case.step(|a| matches!(a, Action::Delete { .. }));
    case.plan.steps[delete].id = Some(SandboxId("another".into()));
    case.finds("which is not ours");
    let mut case = Case::recreate();
    for observation in case.observed.providers.values_mut() {
        let Observation::Complete(listing) = observation else { continue };
        for sandbox in listing.sandboxes.values_mut() {
            sandbox.labels.insert(labels::PROJECT.into(), "another".into());
        }
    }
    case.finds("which is not ours");
}

#[test]
fn a_delete_that_does_not_say_of_what() {
    let mut case = Case::recreate();
    let delete = case.step(|a| matches!(a, Action::Delete { .. }));
    case.plan.steps[delete].id = None;
    case.finds("without saying which");
}

#[test]
fn a_delete_of_what_is_protected() {
    let mut case = Case::recreate();
    named(&mut case.desired, "db").protect = true;
    case.finds("which is protected");
}

#[test]
fn a_delete_that_is_not_called_recreate() {
    let mut case = Case::recreate();
    for change in case.plan.changes.iter_mut().filter(|c| c.verdict == Verdict::Recreate) {
        change.verdict = Verdict::Live;
    }
    case.finds("without calling it recreate");
}

#[test]
fn a_volume_that_must_not_go() {
    let mut case = Case::removal();
    case.policy.prune_volumes = false;
    case.finds("which the policy does not allow");
    let mut case = Case::removal();
    case.desired.volumes = shop().volumes;
    case.finds("which is desired");
    let mut case = Case::removal();
    let delete = case.step(|a| matches!(a, Action::DeleteVolume { .. }));
    case.plan.steps[delete].after.clear();
    case.finds("mounts it");
    // Also if only the provider knows.
    case.world.record = Recorded::default();
    case.finds("mounts it");
}

#[test]
fn a_mount_before_its_volume() {
    let mut case = Case::fresh();
    for step in case.plan.steps.iter_mut().filter(|s| matches!(s.action, Action::Create { .. })) {
        step.after.clear();
    }
    case.finds("before it is created");
}

#[test]
fn a_step_inside_what_does_not_run() {
    let mut case = Case::fresh();
    let setup = case.step(|a| matches!(a, Action::Setup(_)));
    case.plan.steps[setup].after.clear();
    case.finds("before it runs");
    let mut case = Case::restart();
    let start = case.step(|a| matches!(a, Action::StartService { .. }));
    case.plan.steps[start].after.clear();
    case.finds("before it runs");
}

#[test]
fn a_sandbox_that_is_made_twice_or_before_it_goes() {
    let mut case = Case::fresh();
    let create = case.step(|a| matches!(a, Action::Create { .. }));
    let again = case.plan.steps[create].clone();
    case.plan.steps.push(again);
    case.finds("a second time");
    let mut case = Case::recreate();
    let delete = case.step(|a| matches!(a, Action::Delete { .. }));
    let again = case.plan.steps[delete].clone();
    case.plan.steps.push(again);
    case.finds("after creating it");
    // Both stand in the right order and nothing keeps them in it.
    let mut case = Case::recreate();
    let create = case.step(|a| matches!(a, Action::Create { .. }));
    case.plan.steps[create].after.clear();
    case.finds("before it is deleted");
}

#[test]
fn an_interrupted_create_that_nobody_began() {
    let mut case = Case::fresh();
    for step in &mut case.plan.steps {
        if let Action::Create { resume, .. } = &mut step.action {
            *resume = Some(IntentId("another".into()));
        }
    }
    for change in &mut case.plan.changes {
        change.reasons = vec![Reason::Interrupted { intent: IntentId("another".into()) }];
    }
    case.finds("which is not pending");
}

#[test]
fn a_file_in_a_directory_of_the_host() {
    for (path, shared) in [("/etc", true), ("/etc/motd", true), ("/et", false)] {
        let mut case = Case::fresh();
        let bind = Bind { path: path.into(), from: "/home/me/src".into(), read_only: false };
        named(&mut case.desired, "api").spec.binds.push(bind);
        if shared {
            case.finds("changes /etc/motd, which is /home/me/src of the host");
        } else {
            let findings = case
                .world
                .with_input(&case.desired, &case.policy, &case.observed, |input| lint(&case.plan, input));
            assert!(!findings.iter().any(|f| f.message.contains("of the host")), "{findings:?}");
        }
    }
}
