//! Sandboxes: the verdict table. What is desired, what is recorded and what is observed decide together.

use std::collections::{BTreeMap, BTreeSet};

use super::guest::{self, Inside};
use super::removed::{plan_removed, settle_intents};
use super::volume::{plan_removed_volumes, provider_wait};
use super::{Action, Builder, FieldChange, Note, Reason, Step, StepId, Verdict, WaitingOn, diff, order};
use crate::model::{
    Address, DesiredSandbox, DriftPolicy, Identity, IntentId, IntentOperation, Observation, ObservedSandbox,
    PendingIntent, Quantity, RecordedSandbox, RunState, SandboxId, SandboxState, labels,
};
use crate::provider::{Capabilities, ChangeClass, StopMeaning};

/// What a dependent has to wait for.
pub(super) enum Gate {
    /// It comes: after these steps it has started, after those it is healthy; `None` if nothing in this plan makes it healthy.
    Open { started: BTreeSet<StepId>, healthy: Option<BTreeSet<StepId>> },
    /// Nothing in this plan makes it ready.
    Closed,
}

/// Observed sandboxes of the project with their providers by the name their labels state; the oldest first.
pub(super) type Index<'a> = BTreeMap<&'a str, Vec<(&'a str, &'a ObservedSandbox)>>;

/// Interrupted creates by the name of their sandbox, in the order they were journalled.
pub(super) type Creates<'a> = BTreeMap<&'a str, Vec<&'a PendingIntent>>;

pub(super) fn plan_sandboxes(b: &mut Builder<'_>) {
    let input = b.input;
    let index = index(b);
    let mut creates: Creates<'_> = BTreeMap::new();
    for intent in input.recorded.intents.iter().filter(|i| i.operation == IntentOperation::Create) {
        if let Address::Sandbox(name) = &intent.address {
            creates.entry(name).or_default().push(intent);
        }
    }

    let needs: BTreeMap<&str, BTreeSet<&str>> = input
        .desired
        .sandboxes
        .iter()
        .map(|(name, s)| (name.as_str(), s.depends_on.keys().map(String::as_str).collect()))
        .collect();
    // The manifest's checks refuse cycles. Were there one all the same, its members find each other's gates missing and wait.
    let sorted = order::topological(&needs).unwrap_or_else(|_| needs.keys().copied().collect());

    let mut gates: BTreeMap<&str, Gate> = BTreeMap::new();
    for name in sorted {
        let sandbox = &input.desired.sandboxes[name];
        let address = Address::Sandbox(name.to_owned());
        if sandbox.state == RunState::Absent || !b.is_targeted(&address) {
            continue;
        }
        let one = One {
            name,
            address,
            sandbox,
            found: index.get(name).map_or(&[], Vec::as_slice),
            creates: creates.get(name).map_or(&[], Vec::as_slice),
        };
        let gate = one.plan(b, &gates);
        gates.insert(name, gate);
    }
    plan_removed(b, &index, &creates);
    plan_removed_volumes(b);
    settle_intents(b, &index);
}

fn index<'a>(b: &Builder<'a>) -> Index<'a> {
    let mut index: Index<'a> = BTreeMap::new();
    for (provider, observation) in &b.input.observed.providers {
        for sandbox in observation.complete().into_iter().flat_map(|p| p.sandboxes.values()) {
            if let Some(name) = label_name(sandbox) {
                index.entry(name).or_default().push((provider, sandbox));
            }
        }
    }
    for found in index.values_mut() {
        found.sort_by_key(|(_, s)| (s.created_at, &s.id));
    }
    index
}

/// The sandbox name in the address label.
fn label_name(sandbox: &ObservedSandbox) -> Option<&str> {
    sandbox.labels.get(labels::ADDRESS)?.strip_prefix("sandbox/")
}

/// Whether a sandbox was made by one of these interrupted creates.
pub(super) fn interrupted<'a>(
    sandbox: &ObservedSandbox,
    creates: &[&'a PendingIntent],
) -> Option<&'a PendingIntent> {
    let token = sandbox.labels.get(labels::INTENT)?;
    creates.iter().find(|intent| intent.id.0 == *token).copied()
}

pub(super) fn orphan(address: &Address, provider: &str, id: &SandboxId) -> Note {
    Note::Orphan { address: address.clone(), provider: provider.to_owned(), id: id.clone() }
}

/// One desired sandbox and what is needed to plan it.
struct One<'a, 'i> {
    name: &'a str,
    address: Address,
    sandbox: &'a DesiredSandbox,
    /// What claims to be it, at any provider; the oldest first.
    found: &'i [(&'a str, &'a ObservedSandbox)],
    /// Its interrupted creates, at any provider.
    creates: &'i [&'a PendingIntent],
}

impl<'a> One<'a, '_> {
    fn plan(&self, b: &mut Builder<'a>, gates: &BTreeMap<&str, Gate>) -> Gate {
        let provider = self.sandbox.provider.as_str();
        let observation = b.input.observed.providers.get(provider);
        let (Some(Observation::Complete(_)), Some(sheet)) =
            (observation, b.input.capabilities.get(provider).copied())
        else {
            b.wait(self.address.clone(), provider_wait(provider, observation));
            return Gate::Closed;
        };
        let recorded = b.input.recorded.sandboxes.get(self.name);
        let Some(left) = self.leave_others(b, recorded) else {
            return Gate::Closed;
        };
        let (recorded, moved) = match recorded {
            Some(r) if r.provider != provider => (None, Some(r)),
            recorded => (recorded, None),
        };

        let here = self.found.iter().filter(|(at, _)| *at == provider).map(|(_, s)| *s);
        let (living, going): (Vec<&ObservedSandbox>, Vec<&ObservedSandbox>) =
            here.partition(|s| s.state != SandboxState::Deleting);
        let chosen = living
            .iter()
            .copied()
            .find(|s| recorded.is_some_and(|r| r.id == s.id))
            .or_else(|| living.first().copied());
        for other in living.iter().filter(|s| chosen.is_none_or(|c| c.id != s.id)) {
            self.second(b, other);
        }
        match chosen {
            Some(existing) => self.plan_existing(b, gates, sheet, recorded, existing, left),
            None if !going.is_empty() => self.transition(b, "deleting"),
            None => self.plan_missing(b, gates, sheet, Known { recorded, moved }, left),
        }
    }

    /// A second sandbox with our address at the same provider. What an interrupted create of ours made goes, since its token is in our journal. Anything
    /// else is left alone and noted: labels may have been copied together with a sandbox, by a fork or a restored snapshot.
    fn second(&self, b: &mut Builder<'a>, other: &ObservedSandbox) {
        let Some(intent) = interrupted(other, self.creates).map(|i| i.id.clone()) else {
            b.notes.push(orphan(&self.address, &self.sandbox.provider, &other.id));
            return;
        };
        b.step(self.step(Some(&other.id), Action::Discard, []));
        let reason = Reason::Interrupted { intent };
        match b.changes.get_mut(&self.address) {
            Some(change) => change.reasons.push(reason),
            None => {
                b.change(self.address.clone(), Verdict::Forget, vec![reason]);
            }
        }
    }

    fn transition(&self, b: &mut Builder<'a>, state: &str) -> Gate {
        b.wait(self.address.clone(), WaitingOn::Transition { state: state.to_owned() });
        Gate::Closed
    }

    /// What exists of it at other providers goes if it is what the record knows or what an interrupted create left there; the rest is noted.
    /// Returns the steps that it is gone after; `None` if it has to wait.
    fn leave_others(
        &self,
        b: &mut Builder<'a>,
        recorded: Option<&RecordedSandbox>,
    ) -> Option<BTreeSet<StepId>> {
        let moved = recorded.filter(|r| r.provider != self.sandbox.provider);
        if let Some(old) = moved {
            let observation = b.input.observed.providers.get(&old.provider);
            if !matches!(observation, Some(Observation::Complete(_))) {
                b.wait(self.address.clone(), provider_wait(&old.provider, observation));
                return None;
            }
        }
        let mut deletes = Vec::new();
        for (provider, sandbox) in self.found.iter().filter(|(at, _)| *at != self.sandbox.provider) {
            let known = moved.is_some_and(|old| old.provider == *provider && old.id == sandbox.id);
            let (from, to) = ((*provider).to_owned(), self.sandbox.provider.clone());
            match interrupted(sandbox, self.creates) {
                _ if known => deletes.push((*provider, *sandbox, Reason::Moved { from, to })),
                Some(intent) => {
                    deletes.push((*provider, *sandbox, Reason::Interrupted { intent: intent.id.clone() }));
                }
                None => b.notes.push(orphan(&self.address, provider, &sandbox.id)),
            }
        }
        if self.sandbox.protect && !deletes.is_empty() {
            b.wait(self.address.clone(), WaitingOn::Protected);
            return None;
        }
        let mut steps = BTreeSet::new();
        for (provider, sandbox, reason) in deletes {
            let after = b.quiesce(&self.address, provider, sandbox, BTreeSet::new());
            let step = Step {
                provider: provider.to_owned(),
                ..self.step(Some(&sandbox.id), Action::Delete { forget: false }, after)
            };
            steps.insert(b.step(step));
            b.change(self.address.clone(), Verdict::Recreate, vec![reason])
                .data_at_risk
                .push(disk_at_risk(self.name));
        }
        Some(steps)
    }

    fn plan_missing(
        &self,
        b: &mut Builder<'a>,
        gates: &BTreeMap<&str, Gate>,
        sheet: &Capabilities,
        known: Known<'_>,
        after: BTreeSet<StepId>,
    ) -> Gate {
        let Known { recorded, moved } = known;
        let now = b.input.now;
        if recorded.is_some_and(|r| now.millis_since(r.created_at) < sheet.settle_ms) {
            return self.transition(b, "appearing in the provider's listing");
        }
        let wanted = self.sandbox.spec.hash();
        let here = || self.creates.iter().filter(|i| i.provider == self.sandbox.provider).copied();
        let same = here().rfind(|i| i.spec_hash.as_ref() == Some(&wanted));
        // What an interrupted create made may only show up later. Going on with it is safe at once where the provider knows the token.
        let is_safe = |i: &PendingIntent| sheet.idempotent_create && same.is_some_and(|s| s.id == i.id);
        if here().any(|i| !is_safe(i) && now.millis_since(i.begun_at) < sheet.settle_ms) {
            return self.transition(b, "settling an interrupted create");
        }
        if recorded.is_some() && !self.heals(b, "it does not exist any more") {
            return Gate::Closed;
        }
        let reason = match (recorded, moved, same) {
            (Some(_), _, _) => Some(Reason::Lost),
            // The deletes have said why.
            _ if !after.is_empty() => None,
            (None, Some(old), _) => {
                let (from, to) = (old.provider.clone(), self.sandbox.provider.clone());
                Some(Reason::Moved { from, to })
            }
            (None, None, Some(intent)) => Some(Reason::Interrupted { intent: intent.id.clone() }),
            (None, None, None) => Some(Reason::New { at: b.origin(&self.address, "") }),
        };
        b.change(self.address.clone(), Verdict::Create, reason.into_iter().collect());
        let before = recorded.or(moved);
        let generation = before.map_or(1, |r| r.generation + u64::from(r.spec != self.sandbox.spec));
        self.create(b, gates, generation, same.map(|i| i.id.clone()), after)
    }

    /// A create with everything inside.
    fn create(
        &self,
        b: &mut Builder<'a>,
        gates: &BTreeMap<&str, Gate>,
        generation: u64,
        resume: Option<IntentId>,
        mut after: BTreeSet<StepId>,
    ) -> Gate {
        let build = self.sandbox.build_secrets.values();
        if let Some(name) = build.into_iter().find(|name| !b.input.secrets.contains_key(*name)) {
            b.wait(self.address.clone(), WaitingOn::Secret { name: name.clone() });
            return Gate::Closed;
        }
        after.extend(self.volume_steps(b));
        let spec = self.sandbox.spec.clone();
        let made = b.step(self.step(None, Action::Create { spec, generation, resume }, after));
        if self.sandbox.state == RunState::Stopped {
            b.step(self.step(None, Action::Stop, [made]));
            return Gate::Closed;
        }
        guest::plan_inside(
            b,
            gates,
            &Inside {
                name: self.name,
                sandbox: self.sandbox,
                id: None,
                base: BTreeSet::from([made]),
                observed: None,
            },
        )
    }

    fn volume_steps(&self, b: &Builder<'a>) -> BTreeSet<StepId> {
        let mounts = self.sandbox.spec.mounts.iter();
        mounts.filter_map(|mount| b.volume_steps.get(&mount.volume).copied()).collect()
    }

    fn plan_existing(
        &self,
        b: &mut Builder<'a>,
        gates: &BTreeMap<&str, Gate>,
        sheet: &Capabilities,
        recorded: Option<&RecordedSandbox>,
        existing: &'a ObservedSandbox,
        left: BTreeSet<StepId>,
    ) -> Gate {
        let recorded = recorded.filter(|r| r.id == existing.id);
        let wanted = &self.sandbox.spec;
        let identity = Identity::from_labels(&existing.labels).ok().flatten();
        let labelled = identity.as_ref().map(|i| i.generation);
        let hash_says_same = identity.as_ref().is_some_and(|i| i.spec_hash == wanted.hash());
        // Updated since it was recorded, to a spec that nobody can tell any more.
        let is_unknown = existing.spec.is_none()
            && !hash_says_same
            && recorded.is_some_and(|r| labelled.is_some_and(|generation| generation > r.generation));
        let generation = recorded.map(|r| r.generation).max(labelled).unwrap_or(1) + u64::from(is_unknown);

        match &existing.state {
            SandboxState::Creating => {
                let Some(intent) = interrupted(existing, self.creates) else {
                    return self.transition(b, "creating");
                };
                // We hold the only lease, so nobody else is making it.
                let reasons = vec![Reason::Interrupted { intent: intent.id.clone() }];
                if identity.is_none_or(|i| i.spec_hash != wanted.hash()) {
                    return self.recreate(b, gates, existing, generation, reasons, left);
                }
                b.change(self.address.clone(), Verdict::Create, reasons);
                return self.create(b, gates, generation, Some(intent.id.clone()), left);
            }
            SandboxState::Stopping => return self.transition(b, "stopping"),
            SandboxState::Running | SandboxState::Paused if b.input.policy.pause.contains(self.name) => {
                return self.pause(b, existing);
            }
            // Nothing is known of its inside before it goes on; what differs there is for the next plan.
            SandboxState::Paused if self.sandbox.state == RunState::Running => {
                let reason =
                    Reason::State { wanted: "running".to_owned(), at: b.origin(&self.address, "state") };
                b.change(self.address.clone(), Verdict::Start, vec![reason]);
                b.step(self.step(Some(&existing.id), Action::Start, left));
                return self.transition(b, "paused");
            }
            SandboxState::Failed(message) => {
                let reason = Reason::Failed { message: message.clone() };
                return self.recreate(b, gates, existing, generation, vec![reason], left);
            }
            SandboxState::Running
            | SandboxState::Paused
            | SandboxState::Stopped { .. }
            | SandboxState::Deleting => {}
        }

        if let Some(why) = b.input.policy.rebuild.get(&existing.id) {
            // Its next spec may differ as well; the new one is made from that.
            let reasons = vec![Reason::Asked { why: why.clone() }];
            return self.recreate(b, gates, existing, generation, reasons, left);
        }

        // What the provider reads back is believed first, then the hash in the labels, then the record.
        let current = match &existing.spec {
            None if hash_says_same => Some(wanted),
            read_back => read_back.as_ref().or(recorded.map(|r| &r.spec)),
        };
        let mut found = match current {
            Some(current) if current == wanted => Vec::new(),
            Some(current) => diff::differences(&current.without_places(), &wanted.without_places()),
            None => vec![diff::Difference { path: vec!["image".to_owned()], old: None, new: None }],
        };
        let is_drift = recorded.is_some_and(|r| r.spec == *wanted);
        if !found.is_empty() && is_drift && !self.heals(b, "its spec was changed at the provider") {
            found.clear();
        }
        let mut class = found.iter().map(|d| change_class(sheet, d)).max();
        let mut reasons: Vec<Reason> = found.iter().map(|d| self.reason(b, d, is_drift)).collect();
        if is_unknown {
            class = class.max(Some(ChangeClass::Restart));
            reasons.push(Reason::Drifted { what: "an update of it was interrupted".to_owned() });
        }
        if class == Some(ChangeClass::Recreate) {
            return self.recreate(b, gates, existing, generation, reasons, left);
        }

        let mut base = left;
        // An update whose record was lost leaves a record that is out of date, and a delete elsewhere takes it away.
        if recorded.is_none_or(|r| r.spec != *wanted && found.is_empty()) || !base.is_empty() {
            let spec = current.unwrap_or(wanted).clone();
            let adopt = Action::Adopt { spec, generation, state: existing.state.run_state() };
            let adopted = b.step(self.step(Some(&existing.id), adopt, base.clone()));
            base.insert(adopted);
            let reason = Reason::Found { id: existing.id.0.clone() };
            b.change(self.address.clone(), Verdict::Adopt, vec![reason]);
        }
        let state_drift = self.state_drift(b, recorded, existing);
        self.bring(b, gates, sheet, existing, Bring { class, reasons, generation, base, state_drift })
    }

    /// Freezes one that runs. Nothing else is done about it.
    fn pause(&self, b: &mut Builder<'a>, existing: &ObservedSandbox) -> Gate {
        if existing.state == SandboxState::Running {
            let reason = Reason::Asked { why: "it is to be paused".to_owned() };
            b.change(self.address.clone(), Verdict::Pause, vec![reason]);
            b.step(self.step(Some(&existing.id), Action::Pause, []));
        }
        Gate::Closed
    }

    /// Brings an existing sandbox to its spec and run state without making a new one.
    fn bring(
        &self,
        b: &mut Builder<'a>,
        gates: &BTreeMap<&str, Gate>,
        sheet: &Capabilities,
        existing: &'a ObservedSandbox,
        bring: Bring,
    ) -> Gate {
        let Bring { mut class, mut reasons, generation, mut base, state_drift } = bring;
        let id = Some(&existing.id);
        let runs = matches!(existing.state, SandboxState::Running | SandboxState::Paused);
        let wants_running = self.sandbox.state == RunState::Running;
        // Where something else has to be changed, that brings it to its state: it may be a restart that was interrupted.
        if class.is_none()
            && let Some(what) = &state_drift
            && !self.heals(b, what)
        {
            return Gate::Closed;
        }

        if runs && wants_running {
            if let Some(path) = existing.missing_mounts.first() {
                let what = format!("nothing is mounted at {path}");
                if self.heals(b, &what) {
                    reasons.push(Reason::Drifted { what });
                    class = Some(ChangeClass::Restart);
                }
            }
            for name in self.silent_sockets(existing, class) {
                let what = format!("the socket {name} is not listening on the host");
                let address = Address::Socket(self.name.to_owned(), name.to_owned());
                if note_drift(b, self.sandbox.drift, &address, &what) {
                    b.change(address, Verdict::Live, vec![Reason::Drifted { what }]);
                    class = class.max(Some(ChangeClass::Live));
                }
            }
            for port in self.silent_ports(existing, class) {
                let what = format!("port {port} is not listening on the host");
                let address = Address::Port(self.name.to_owned(), port);
                if note_drift(b, self.sandbox.drift, &address, &what) {
                    b.change(address, Verdict::Live, vec![Reason::Drifted { what }]);
                    class = class.max(Some(ChangeClass::Live));
                }
            }
        }

        let bump = u64::from(reasons.iter().any(|r| matches!(r, Reason::Changed(_))));
        let update = Action::Update { spec: self.sandbox.spec.clone(), generation: generation + bump };
        let restart = runs && class == Some(ChangeClass::Restart);
        if restart || (runs && !wants_running) {
            base = b.quiesce(&self.address, &self.sandbox.provider, existing, base);
            let stop = b.step(self.step(id, Action::Stop, base.clone()));
            base.insert(stop);
        }
        if class.is_some() {
            base.extend(self.volume_steps(b));
            let updated = b.step(self.step(id, update, base.clone()));
            base.insert(updated);
            let verdict = if restart { Verdict::Restart } else { Verdict::Live };
            if !reasons.is_empty() {
                let change = b.change(self.address.clone(), verdict, reasons);
                if restart && sheet.stop == StopMeaning::Destroy {
                    change.data_at_risk.push(disk_at_risk(self.name));
                }
            }
        }
        if !wants_running {
            if runs {
                let reason = self.state_reason(b, "stopped", state_drift);
                let change = b.change(self.address.clone(), Verdict::Stop, vec![reason]);
                if sheet.stop == StopMeaning::Destroy {
                    change.data_at_risk.push(disk_at_risk(self.name));
                }
            }
            return Gate::Closed;
        }
        if runs && !restart {
            return self.look_inside(b, gates, existing, base);
        }
        if !runs {
            let reason = self.state_reason(b, "running", state_drift);
            let verdict = if class.is_some() { Verdict::Restart } else { Verdict::Start };
            b.change(self.address.clone(), verdict, vec![reason]);
        }
        let started = b.step(self.step(id, Action::Start, base.clone()));
        base.insert(started);
        let id = Some(existing.id.clone());
        guest::plan_inside(
            b,
            gates,
            &Inside { name: self.name, sandbox: self.sandbox, id, base, observed: None },
        )
    }

    fn look_inside(
        &self,
        b: &mut Builder<'a>,
        gates: &BTreeMap<&str, Gate>,
        existing: &'a ObservedSandbox,
        base: BTreeSet<StepId>,
    ) -> Gate {
        let observed = match b.input.observed.guests.get(&existing.id) {
            Some(Observation::Complete(guest)) => guest,
            Some(Observation::Unavailable { reason }) => {
                b.wait(self.address.clone(), WaitingOn::Guest { reason: reason.clone() });
                return Gate::Closed;
            }
            None => {
                let reason = "it was not asked".to_owned();
                b.wait(self.address.clone(), WaitingOn::Guest { reason });
                return Gate::Closed;
            }
        };
        let id = Some(existing.id.clone());
        guest::plan_inside(
            b,
            gates,
            &Inside { name: self.name, sandbox: self.sandbox, id, base, observed: Some(observed) },
        )
    }

    fn recreate(
        &self,
        b: &mut Builder<'a>,
        gates: &BTreeMap<&str, Gate>,
        existing: &ObservedSandbox,
        generation: u64,
        reasons: Vec<Reason>,
        mut left: BTreeSet<StepId>,
    ) -> Gate {
        if self.sandbox.protect {
            b.wait(self.address.clone(), WaitingOn::Protected);
            return Gate::Closed;
        }
        // What is listed may be what an interrupted recreate has deleted already, and what it made may only show up later.
        let settle_ms = b.input.capabilities.get(&self.sandbox.provider).map_or(0, |sheet| sheet.settle_ms);
        let its_own = existing.labels.get(labels::INTENT);
        let mut creates = self.creates.iter().filter(|i| i.provider == self.sandbox.provider);
        if creates.any(|i| Some(&i.id.0) != its_own && b.input.now.millis_since(i.begun_at) < settle_ms) {
            return self.transition(b, "settling an interrupted create");
        }
        let after = b.quiesce(&self.address, &self.sandbox.provider, existing, BTreeSet::new());
        left.insert(b.step(self.step(Some(&existing.id), Action::Delete { forget: false }, after)));
        b.change(self.address.clone(), Verdict::Recreate, reasons).data_at_risk.push(disk_at_risk(self.name));
        self.create(b, gates, generation + 1, None, left)
    }

    /// As [`Self::silent_ports`].
    fn silent_sockets(&self, existing: &ObservedSandbox, class: Option<ChangeClass>) -> Vec<&str> {
        if class.is_some() {
            return Vec::new();
        }
        let names = self.sandbox.spec.sockets.keys().map(String::as_str);
        names.filter(|name| !existing.sockets.get(*name).is_some_and(|s| s.listening)).collect()
    }

    /// Declared ports that nothing listens on, unless this very change declares them.
    fn silent_ports(&self, existing: &ObservedSandbox, class: Option<ChangeClass>) -> Vec<u16> {
        if class.is_some() {
            return Vec::new();
        }
        let ports = self.sandbox.spec.ports.iter().filter(|(_, spec)| spec.host_port.is_some());
        ports
            .map(|(port, _)| *port)
            .filter(|port| !existing.endpoints.get(port).is_some_and(|e| e.listening))
            .collect()
    }

    /// What happened to its run state, if neither we nor the manifest brought that about: it ended by itself, or somebody else stopped or
    /// started it. What `start` and `stop` ask for by name is no drift.
    fn state_drift(
        &self,
        b: &Builder<'_>,
        recorded: Option<&RecordedSandbox>,
        existing: &ObservedSandbox,
    ) -> Option<String> {
        let what = match (&existing.state, self.sandbox.state) {
            (SandboxState::Stopped { unclean: Some(why) }, RunState::Running) => Some(why.as_str()),
            (SandboxState::Stopped { unclean: None }, RunState::Running) => Some("it was stopped"),
            (SandboxState::Running, RunState::Stopped) => Some("it was started"),
            _ => None,
        };
        let by_itself = matches!(&existing.state, SandboxState::Stopped { unclean: Some(_) });
        let is_drift = by_itself || recorded.is_some_and(|r| r.state == self.sandbox.state);
        let is_asked = b.input.policy.asked.contains(self.name);
        what.filter(|_| is_drift && !is_asked).map(str::to_owned)
    }

    /// Why it is started or stopped.
    fn state_reason(&self, b: &Builder<'_>, wanted: &str, drift: Option<String>) -> Reason {
        match drift {
            Some(what) => Reason::Drifted { what },
            None => Reason::State { wanted: wanted.to_owned(), at: b.origin(&self.address, "state") },
        }
    }

    /// Whether drift is repaired; if not, it is noted as the policy says.
    fn heals(&self, b: &mut Builder<'a>, what: &str) -> bool {
        note_drift(b, self.sandbox.drift, &self.address, what)
    }

    fn reason(&self, b: &Builder<'a>, d: &diff::Difference, is_drift: bool) -> Reason {
        let path = d.dotted();
        if is_drift {
            return Reason::Drifted { what: format!("`{path}` was changed at the provider") };
        }
        let show = |value: &Option<serde_json::Value>| value.as_ref().map(ToString::to_string);
        let at = b.origin(&self.address, &path);
        Reason::Changed(FieldChange { path, old: show(&d.old), new: show(&d.new), at })
    }

    fn step(&self, id: Option<&SandboxId>, action: Action, after: impl IntoIterator<Item = StepId>) -> Step {
        Step {
            address: self.address.clone(),
            provider: self.sandbox.provider.clone(),
            id: id.cloned(),
            action,
            after: after.into_iter().collect(),
        }
    }
}

/// What the record knows of a sandbox that does not exist: at its provider, or at another one.
struct Known<'r> {
    recorded: Option<&'r RecordedSandbox>,
    moved: Option<&'r RecordedSandbox>,
}

/// What is needed to bring an existing sandbox to its spec.
struct Bring {
    class: Option<ChangeClass>,
    reasons: Vec<Reason>,
    generation: u64,
    base: BTreeSet<StepId>,
    /// What happened to its run state that nobody declared.
    state_drift: Option<String>,
}

fn segments(difference: &diff::Difference) -> Vec<&str> {
    difference.path.iter().map(String::as_str).collect()
}

/// What a change needs: the most of what leaving the old value and coming to the new one need. A disk can grow; with another change of it, the files would
/// have to go somewhere else.
fn change_class(sheet: &Capabilities, difference: &diff::Difference) -> ChangeClass {
    let path = segments(difference);
    let bytes =
        |value: &Option<serde_json::Value>| -> Option<Quantity> { value.as_ref()?.as_str()?.parse().ok() };
    let grows = || bytes(&difference.old).zip(bytes(&difference.new)).is_some_and(|(old, new)| old < new);
    let class = |value: &Option<serde_json::Value>| {
        sheet.change_class(&path, value.as_ref().and_then(serde_json::Value::as_str))
    };
    match path[..] {
        ["resources", "disk"] if !grows() => ChangeClass::Recreate,
        _ => class(&difference.old).max(class(&difference.new)),
    }
}

pub(super) fn disk_at_risk(name: &str) -> String {
    format!("everything written in sandbox `{name}` outside its volumes")
}

/// Whether drift of a resource is repaired; if not, it is noted as the policy says.
pub(super) fn note_drift(b: &mut Builder<'_>, policy: DriftPolicy, address: &Address, what: &str) -> bool {
    match policy {
        DriftPolicy::Heal => true,
        DriftPolicy::Warn => {
            b.notes.push(Note::Drift { address: address.clone(), what: what.to_owned() });
            false
        }
        DriftPolicy::Ignore => false,
    }
}
