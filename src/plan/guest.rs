//! The inside of a sandbox: environment, files, repositories, presets, services.

use std::collections::{BTreeMap, BTreeSet};

use super::digest::{
    env_digest, file_digest, owned_digest, repository_digest, secret_file_digest, service_digest,
};
use super::sandbox::{Gate, note_drift};
use super::{
    Action, Builder, FieldChange, Reason, Setup, SetupContent, SetupFile, Step, StepId, Verdict, WaitingOn,
    diff, order,
};
use crate::model::{
    Address, DependencyCondition, DesiredSandbox, DriftPolicy, FileState, GuestSpec, HealthCheck,
    ObservedGuest, ObservedService, PresetStep, ProbeResult, SandboxId, SecretUse, ServiceSpec, ServiceState,
    ServiceStatus,
};
use crate::provider::StopMeaning;

/// One sandbox whose inside is planned.
pub(super) struct Inside<'a> {
    pub name: &'a str,
    pub sandbox: &'a DesiredSandbox,
    /// The existing sandbox; `None` if this plan creates it.
    pub id: Option<SandboxId>,
    /// The steps after which it runs as its spec says.
    pub base: BTreeSet<StepId>,
    /// What is inside now; `None` if it does not run yet, so that everything is put in place (which is harmless where it already is).
    pub observed: Option<&'a ObservedGuest>,
}

/// Plans the inside of a sandbox that runs or is about to.
pub(super) fn plan_inside<'a>(
    b: &mut Builder<'a>,
    gates: &BTreeMap<&str, Gate>,
    inside: &Inside<'a>,
) -> Gate {
    let address = Address::Sandbox(inside.name.to_owned());
    if let Some(output) = inside.sandbox.unresolved.first() {
        b.wait(address, WaitingOn::Output { address: output.address() });
        return Gate::Closed;
    }
    let guest = &inside.sandbox.guest;
    if let Some(name) = guest.secrets.keys().find(|name| !b.input.secrets.contains_key(*name)) {
        b.wait(address, WaitingOn::Secret { name: name.clone() });
        return Gate::Closed;
    }
    let empty = ObservedGuest::default();
    let mut planner = Planner {
        b,
        inside,
        guest,
        observed: inside.observed.unwrap_or(&empty),
        recorded: None,
        last: inside.base.clone(),
    };
    planner.recorded = planner.b.input.recorded.sandboxes.get(inside.name).and_then(|r| r.guest.as_ref());
    planner.removed_services();
    planner.bind();
    planner.setup();
    if let Some(name) = planner.repositories() {
        planner.b.wait(address, WaitingOn::Secret { name });
        return Gate::Closed;
    }
    let dependencies = match planner.dependencies(gates) {
        Ok(dependencies) => dependencies,
        Err(blocker) if planner.has_work() => return planner.blocked(blocker),
        // What is in place waits for nothing.
        Err(_) => BTreeSet::new(),
    };
    planner.presets(&dependencies);
    planner.services(&dependencies)
}

struct Planner<'a, 'b, 'p> {
    b: &'b mut Builder<'a>,
    inside: &'p Inside<'a>,
    guest: &'a GuestSpec,
    observed: &'p ObservedGuest,
    /// What was last put in place, to explain changes by field.
    recorded: Option<&'a GuestSpec>,
    /// What the next stage comes after.
    last: BTreeSet<StepId>,
}

impl<'a> Planner<'a, '_, '_> {
    fn sandbox_address(&self) -> Address {
        Address::Sandbox(self.inside.name.to_owned())
    }

    /// The sandbox exists already and is merely started again: what stands inside comes back with it.
    fn is_restart(&self) -> bool {
        self.inside.observed.is_none() && self.inside.id.is_some()
    }

    fn step(&mut self, address: &Address, action: Action, after: BTreeSet<StepId>) -> StepId {
        self.b.step(Step {
            address: address.clone(),
            provider: self.inside.sandbox.provider.clone(),
            id: self.inside.id.clone(),
            action,
            after,
        })
    }

    /// Notes the change of something inside and says which address its step serves. What comes back with a start is part of that start.
    fn change(&mut self, address: Address, verdict: Verdict, reasons: Vec<Reason>) -> Address {
        if self.is_restart() {
            return self.sandbox_address();
        }
        self.b.change(address.clone(), verdict, reasons);
        address
    }

    fn heals(&mut self, address: &Address, what: &str) -> bool {
        note_drift(self.b, self.inside.sandbox.drift, address, what)
    }

    fn removed_services(&mut self) {
        let gone: Vec<&String> =
            self.observed.services.keys().filter(|n| !self.guest.services.contains_key(*n)).collect();
        let base = self.last.clone();
        for name in gone {
            let address = Address::Service(self.inside.name.to_owned(), name.clone());
            self.b.change(address.clone(), Verdict::Delete, vec![Reason::Removed]);
            let id = self.step(&address, Action::RemoveService { name: name.clone() }, base.clone());
            self.last.insert(id);
        }
    }

    /// The values of bound secrets, before anything inside may ask for them.
    fn bind(&mut self) {
        let bound = &self.inside.sandbox.spec.bound;
        let known = self.b.input.secrets;
        // Missing secrets were found before.
        let digests: BTreeMap<String, String> =
            bound.keys().filter_map(|name| Some((name.clone(), known.get(name)?.clone()))).collect();
        let seen = self.bound();
        if digests == *seen.unwrap_or(&BTreeMap::new()) {
            return;
        }
        let address = Address::Env(self.inside.name.to_owned());
        if let Some(seen) = seen.filter(|_| self.inside.observed.is_some()) {
            let mut reasons = Vec::new();
            for (name, digest) in &digests {
                match seen.get(name) {
                    Some(found) if found == digest => {}
                    Some(_) => {
                        let path = format!("secrets.{name}");
                        let at = self.b.origin(&self.sandbox_address(), &path);
                        reasons.push(Reason::Changed(FieldChange { path, old: None, new: None, at }));
                    }
                    None => {
                        let what = format!("the value of secret `{name}` is not with the way out");
                        reasons.push(Reason::Drifted { what });
                    }
                }
            }
            for name in seen.keys().filter(|name| !digests.contains_key(*name)) {
                let what = format!("the way out has the value of secret `{name}`, which is bound no more");
                reasons.push(Reason::Drifted { what });
            }
            if let [Reason::Drifted { what }, ..] = &reasons[..]
                && !self.heals(&address, what)
            {
                return;
            }
            self.b.change(address.clone(), Verdict::Live, reasons);
        }
        // Of a start it is a part, and of a create as well.
        let address = if self.is_restart() { self.sandbox_address() } else { address };
        let id = self.step(&address, Action::Bind { digests }, self.last.clone());
        self.last = BTreeSet::from([id]);
    }

    /// Digests of the values that the way out has; `None` while nothing is known of the sandbox.
    fn bound(&self) -> Option<&'a BTreeMap<String, String>> {
        let listing = self.b.input.observed.providers.get(&self.inside.sandbox.provider)?;
        let id = self.inside.id.as_ref().filter(|_| self.inside.observed.is_some())?;
        Some(&listing.complete()?.sandboxes.get(id)?.bound)
    }

    fn setup(&mut self) {
        let mut setup = Setup { env: self.env(), ..Setup::default() };
        for (path, file) in &self.guest.files {
            self.file(&mut setup, path, file_digest(file), || SetupContent::File(file.clone()));
        }
        for (name, usage) in &self.guest.secrets {
            if let SecretUse::File(path) = usage {
                let digest = secret_file_digest(&self.b.input.secrets[name]);
                self.file(&mut setup, path, digest, || SetupContent::Secret(name.clone()));
            }
        }
        let wanted = |path: &String| {
            self.guest.files.contains_key(path)
                || self.guest.secrets.values().any(|u| matches!(u, SecretUse::File(p) if p == path))
        };
        // What lies in a directory of the host is the host's, whatever was put at that path before.
        let shared = |path: &String| self.inside.sandbox.spec.binds.iter().any(|bind| bind.covers(path));
        let removed: BTreeSet<String> =
            self.observed.files.keys().filter(|path| !wanted(path) && !shared(path)).cloned().collect();
        for path in &removed {
            let address = Address::File(self.inside.name.to_owned(), path.clone());
            self.b.change(address, Verdict::Delete, vec![Reason::Removed]);
        }
        setup.remove = removed;
        if setup != Setup::default() {
            let address = self.setup_address(&setup);
            let id = self.step(&address, Action::Setup(setup), self.last.clone());
            self.last = BTreeSet::from([id]);
        }
    }

    /// The resource a setup step is shown under: the only one it serves, or the sandbox.
    fn setup_address(&mut self, setup: &Setup) -> Address {
        let sandbox = self.sandbox_address();
        let served = usize::from(setup.env.is_some()) + setup.files.len() + setup.remove.len();
        let name = self.inside.name.to_owned();
        if self.is_restart() || served > 1 {
            return sandbox;
        }
        match setup.files.keys().chain(&setup.remove).next() {
            Some(path) => Address::File(name, path.clone()),
            None => Address::Env(name),
        }
    }

    /// The digest of the environment to write, if it is not in place.
    fn env(&mut self) -> Option<String> {
        // Missing secrets were found before.
        let wanted = env_digest(self.guest, self.b.input.secrets).ok()?;
        let in_env = |u: &SecretUse| matches!(u, SecretUse::Env(_) | SecretUse::Bound { .. });
        let has_secrets = self.guest.secrets.values().any(in_env);
        let nothing = self.guest.env.is_empty() && !has_secrets;
        match &self.observed.env {
            Some(found) if *found == wanted => return None,
            None if nothing => return None,
            _ => {}
        }
        let address = Address::Env(self.inside.name.to_owned());
        let (verdict, reasons) = self.env_reasons();
        if matches!(reasons.first(), Some(Reason::Drifted { what }) if !self.heals(&address, what)) {
            return None;
        }
        self.change(address, verdict, reasons);
        Some(wanted)
    }

    fn env_reasons(&self) -> (Verdict, Vec<Reason>) {
        let Some(old) = self.recorded.filter(|_| self.inside.observed.is_some()) else {
            return (
                Verdict::Create,
                vec![Reason::New { at: self.b.origin(&self.sandbox_address(), "env") }],
            );
        };
        let mut reasons: Vec<Reason> = diff::differences(&old.env, &self.guest.env)
            .iter()
            .map(|d| self.field_change(&self.sandbox_address(), &format!("env.{}", d.dotted()), d))
            .collect();
        if old.secrets != self.guest.secrets || (reasons.is_empty() && self.observed.env.is_some()) {
            let path = "secrets".to_owned();
            let at = self.b.origin(&self.sandbox_address(), &path);
            reasons.push(Reason::Changed(FieldChange { path, old: None, new: None, at }));
        }
        if reasons.is_empty() {
            reasons.push(Reason::Drifted { what: "the environment is not in place".to_owned() });
        }
        (Verdict::Live, reasons)
    }

    fn field_change(&self, address: &Address, path: &str, d: &diff::Difference) -> Reason {
        let show = |value: &Option<serde_json::Value>| value.as_ref().map(ToString::to_string);
        let at = self.b.origin(address, path);
        Reason::Changed(FieldChange { path: path.to_owned(), old: show(&d.old), new: show(&d.new), at })
    }

    fn file(&mut self, setup: &mut Setup, path: &str, digest: String, what: impl FnOnce() -> SetupContent) {
        let address = Address::File(self.inside.name.to_owned(), path.to_owned());
        let owner = self.guest.owners.get(path).or(self.guest.user.as_ref()).cloned();
        let digest = owned_digest(digest, owner.as_deref());
        let (verdict, reason) = match self.observed.files.get(path) {
            None => (Verdict::Create, Reason::New { at: self.b.origin(&address, "") }),
            Some(found) if found.digest != digest => {
                let content = FieldChange {
                    path: "content".to_owned(),
                    old: None,
                    new: None,
                    at: self.b.origin(&address, ""),
                };
                (Verdict::Live, self.owner_change(path, &address).unwrap_or(Reason::Changed(content)))
            }
            Some(found) => {
                let what = match found.state {
                    FileState::InPlace => return,
                    FileState::Modified => "its content or mode was changed",
                    FileState::Missing => "it was deleted",
                };
                if !self.heals(&address, what) {
                    return;
                }
                (Verdict::Live, Reason::Drifted { what: what.to_owned() })
            }
        };
        self.change(address, verdict, vec![reason]);
        setup.files.insert(path.to_owned(), SetupFile { digest, owner, what: what() });
    }

    /// That what is at a path is to belong to somebody else than before.
    fn owner_change(&self, path: &str, address: &Address) -> Option<Reason> {
        let old = self.recorded?;
        let change = |field: &str, address: &Address, old: Option<&String>, new: Option<&String>| {
            let path = field.to_owned();
            let at = self.b.origin(address, field);
            (old != new)
                .then(|| Reason::Changed(FieldChange { path, old: old.cloned(), new: new.cloned(), at }))
        };
        change("owner", address, old.owners.get(path), self.guest.owners.get(path)).or_else(|| {
            let is_its_own = self.guest.owners.contains_key(path);
            let user =
                || change("user", &self.sandbox_address(), old.user.as_ref(), self.guest.user.as_ref());
            (!is_its_own).then(user).flatten()
        })
    }

    /// Returns the name of a secret that a repository needs and whose value could not be had.
    fn repositories(&mut self) -> Option<String> {
        let after = self.last.clone();
        let mut missing = None;
        for (path, spec) in &self.guest.repositories {
            let address = Address::Repo(self.inside.name.to_owned(), path.clone());
            let digest = owned_digest(repository_digest(spec), self.guest.user.as_deref());
            let (verdict, reason) = match self.observed.repositories.get(path) {
                Some(found) if found.digest == digest && found.present => continue,
                Some(found) if found.digest == digest => {
                    let what = "the working copy was deleted";
                    if !self.heals(&address, what) {
                        continue;
                    }
                    (Verdict::Live, Reason::Drifted { what: what.to_owned() })
                }
                Some(_) => {
                    let old = self.recorded.and_then(|g| g.repositories.get(path));
                    let field = old.and_then(|old| diff::differences(old, spec).into_iter().next());
                    let reason = match field {
                        Some(d) => self.field_change(&address, &d.dotted(), &d),
                        None => self.owner_change(path, &address).unwrap_or_else(|| {
                            Reason::Changed(FieldChange {
                                path: "ref".to_owned(),
                                old: None,
                                new: None,
                                at: self.b.origin(&address, ""),
                            })
                        }),
                    };
                    (Verdict::Live, reason)
                }
                None => (Verdict::Create, Reason::New { at: self.b.origin(&address, "") }),
            };
            if let Some(name) = spec.credentials.as_ref().filter(|n| !self.b.input.secrets.contains_key(*n)) {
                missing = Some(name.clone());
                continue;
            }
            let address = self.change(address, verdict, vec![reason]);
            let action = Action::BringRepository { path: path.clone(), spec: spec.clone(), digest };
            let id = self.step(&address, action, after.clone());
            self.last.insert(id);
        }
        for path in self.observed.repositories.keys() {
            if !self.guest.repositories.contains_key(path) {
                let address = Address::Repo(self.inside.name.to_owned(), path.clone());
                self.b.change(address.clone(), Verdict::Forget, vec![Reason::Removed]);
                self.step(&address, Action::ForgetRepository { path: path.clone() }, after.clone());
            }
        }
        missing
    }

    /// The steps of other sandboxes that presets and services come after; `Err` names one that nothing makes ready.
    fn dependencies(&self, gates: &BTreeMap<&str, Gate>) -> Result<BTreeSet<StepId>, String> {
        let mut steps = BTreeSet::new();
        for (name, condition) in &self.inside.sandbox.depends_on {
            match (gates.get(name.as_str()), condition) {
                (Some(Gate::Open { started, .. }), DependencyCondition::Started) => steps.extend(started),
                (Some(Gate::Open { started, healthy: Some(healthy) }), DependencyCondition::Healthy) => {
                    steps.extend(started);
                    steps.extend(healthy);
                }
                (Some(Gate::Open { healthy: None, .. }), DependencyCondition::Healthy)
                | (Some(Gate::Closed) | None, _) => return Err(name.clone()),
            }
        }
        Ok(steps)
    }

    /// Whether presets or services are not as declared.
    fn has_work(&self) -> bool {
        let steps: BTreeSet<String> =
            self.guest.presets.iter().flat_map(|preset| preset.steps.iter().map(PresetStep::id)).collect();
        let is_work = |(name, service): (&String, &ServiceSpec)| {
            let found = self.observed.services.get(name);
            let state = found.map(|f| f.state);
            if service.state == ServiceState::Stopped {
                return matches!(state, Some(ServiceStatus::Running | ServiceStatus::Backoff));
            }
            let digest = service_digest(self.guest, service, self.b.input.secrets);
            let failing = matches!(found.map(|f| &f.health), Some(Some(ProbeResult::Failing(_))));
            match state {
                Some(_) if found.map(|f| f.digest.as_str()) != digest.as_deref().ok() => true,
                Some(ServiceStatus::Completed) => false,
                Some(ServiceStatus::Running) => failing,
                Some(ServiceStatus::Dead | ServiceStatus::Stopped) => {
                    self.inside.sandbox.drift == DriftPolicy::Heal
                }
                Some(ServiceStatus::Backoff | ServiceStatus::Failed) | None => true,
            }
        };
        !self.observed.presets.keys().eq(&steps) || self.guest.services.iter().any(is_work)
    }

    /// Whether a step of a preset, finished before a stop that keeps the disk, is still finished: it is not looked for until the sandbox runs.
    fn outlives_restart(&self, step: &PresetStep) -> bool {
        let sheet = self.b.input.capabilities.get(&self.inside.sandbox.provider);
        self.is_restart()
            && sheet.is_some_and(|sheet| sheet.stop == StopMeaning::Suspend)
            && self.recorded.is_some_and(|g| g.presets.iter().any(|p| p.steps.contains(step)))
    }

    fn blocked(&mut self, blocker: String) -> Gate {
        let address = self.sandbox_address();
        self.b.wait(address, WaitingOn::Dependency { address: Address::Sandbox(blocker) });
        Gate::Closed
    }

    fn presets(&mut self, dependencies: &BTreeSet<StepId>) {
        let mut declared = BTreeSet::new();
        for preset in &self.guest.presets {
            let address = Address::Preset(self.inside.name.to_owned(), preset.name.clone());
            let mut any_done = false;
            let mut pending = Vec::new();
            for step in &preset.steps {
                let id = step.id();
                match self.observed.presets.contains_key(&id) || self.outlives_restart(step) {
                    true => any_done = true,
                    false => pending.push(step),
                }
                declared.insert(id);
            }
            if pending.is_empty() {
                continue;
            }
            let at = self.b.origin(&address, "");
            let known = self.recorded.is_some_and(|g| g.presets.iter().any(|p| p.name == preset.name));
            let (verdict, reason) = if any_done || known {
                let field = FieldChange { path: "steps".to_owned(), old: None, new: None, at };
                (Verdict::Live, Reason::Changed(field))
            } else {
                (Verdict::Create, Reason::New { at })
            };
            let address = self.change(address, verdict, vec![reason]);
            for step in pending {
                let mut after = self.last.clone();
                after.extend(dependencies);
                let action = Action::RunPresetStep { preset: preset.name.clone(), step: step.clone() };
                let id = self.step(&address, action, after);
                self.last = BTreeSet::from([id]);
            }
        }
        let ids: BTreeSet<String> =
            self.observed.presets.keys().filter(|id| !declared.contains(*id)).cloned().collect();
        if !ids.is_empty() {
            let address = self.sandbox_address();
            let reason = Reason::Removed;
            if !self.b.changes.contains_key(&address) {
                self.b.change(address.clone(), Verdict::Live, vec![reason]);
            }
            self.step(&address, Action::ForgetPresetSteps { ids }, self.last.clone());
        }
    }

    fn services(&mut self, dependencies: &BTreeSet<StepId>) -> Gate {
        let needs: BTreeMap<&str, BTreeSet<&str>> = self
            .guest
            .services
            .iter()
            .map(|(name, s)| (name.as_str(), s.depends_on.keys().map(String::as_str).collect()))
            .collect();
        let sorted = order::topological(&needs).unwrap_or_else(|_| needs.keys().copied().collect());

        let mut started: BTreeMap<&str, StepId> = BTreeMap::new();
        let mut healthy: BTreeMap<&str, StepId> = BTreeMap::new();
        let mut is_left = false;
        for name in sorted {
            let service = &self.guest.services[name];
            let mut after = self.last.clone();
            after.extend(dependencies);
            for (dependency, condition) in &service.depends_on {
                after.extend(started.get(dependency.as_str()));
                if *condition == DependencyCondition::Healthy {
                    after.extend(healthy.get(dependency.as_str()));
                }
            }
            let steps = self.service(name, service, after);
            is_left |= steps.is_left;
            started.extend(steps.start.map(|id| (name, id)));
            healthy.extend(steps.wait.map(|id| (name, id)));
        }
        let mut all_started = self.last.clone();
        all_started.extend(started.values());
        Gate::Open { started: all_started, healthy: (!is_left).then(|| healthy.into_values().collect()) }
    }

    fn service(&mut self, name: &str, service: &ServiceSpec, after: BTreeSet<StepId>) -> ServiceSteps {
        let address = Address::Service(self.inside.name.to_owned(), name.to_owned());
        let found = self.observed.services.get(name);
        if service.state == ServiceState::Stopped {
            if found.is_some_and(|s| matches!(s.state, ServiceStatus::Running | ServiceStatus::Backoff)) {
                let at = self.b.origin(&address, "state");
                let reason = Reason::State { wanted: "stopped".to_owned(), at };
                self.b.change(address.clone(), Verdict::Stop, vec![reason]);
                self.step(&address, Action::StopService { name: name.to_owned() }, after);
            }
            return ServiceSteps::default();
        }
        // Missing secrets were found before.
        let Ok(digest) = service_digest(self.guest, service, self.b.input.secrets) else {
            return ServiceSteps::default();
        };
        let need = self.need(&address, name, service, found, &digest);
        let (verdict, reasons) = match need {
            Need::Nothing => return ServiceSteps::default(),
            Need::Leave => return ServiceSteps { is_left: true, ..ServiceSteps::default() },
            Need::Wait(message) => {
                self.b.change(address.clone(), Verdict::Wait, vec![Reason::NotReady { message }]);
                let wait = self.wait_step(&address, name, service.healthcheck.as_ref(), after);
                return ServiceSteps { wait: Some(wait), ..ServiceSteps::default() };
            }
            Need::Start(verdict, reasons) => (verdict, reasons),
        };
        self.b.change(address.clone(), verdict, reasons);
        let action = Action::StartService { name: name.to_owned(), spec: service.clone(), digest };
        let start = self.step(&address, action, after);
        let wait = self.wait_step(&address, name, service.healthcheck.as_ref(), BTreeSet::from([start]));
        ServiceSteps { start: Some(start), wait: Some(wait), is_left: false }
    }

    fn wait_step(
        &mut self,
        address: &Address,
        name: &str,
        check: Option<&HealthCheck>,
        after: BTreeSet<StepId>,
    ) -> StepId {
        self.step(address, Action::WaitService { name: name.to_owned(), check: check.cloned() }, after)
    }

    fn need(
        &mut self,
        address: &Address,
        name: &str,
        service: &ServiceSpec,
        found: Option<&ObservedService>,
        digest: &str,
    ) -> Need {
        let Some(found) = found else {
            let reason = if self.inside.observed.is_some() || !self.is_restart() {
                Reason::New { at: self.b.origin(address, "") }
            } else {
                Reason::Follows { address: self.sandbox_address() }
            };
            let verdict = if self.is_restart() { Verdict::Start } else { Verdict::Create };
            return Need::Start(verdict, vec![reason]);
        };
        if found.digest != digest {
            return Need::Start(Verdict::Restart, self.service_reasons(address, name, service));
        }
        let drifted = match found.state {
            ServiceStatus::Running => {
                return match &found.health {
                    Some(ProbeResult::Failing(message)) => Need::Wait(message.clone()),
                    Some(ProbeResult::Passing) | None => Need::Nothing,
                };
            }
            ServiceStatus::Backoff => {
                let code = found.exit_code.map_or_else(String::new, |c| format!(" after exit code {c}"));
                return Need::Wait(format!("its supervisor is about to start it again{code}"));
            }
            ServiceStatus::Completed => return Need::Nothing,
            ServiceStatus::Failed => {
                let code = found.exit_code.map_or_else(|| "?".to_owned(), |c| c.to_string());
                let message = format!("it ended with exit code {code} after {} restarts", found.restarts);
                return Need::Start(Verdict::Start, vec![Reason::Failed { message }]);
            }
            ServiceStatus::Dead => "it was killed together with its supervisor",
            ServiceStatus::Stopped => "it was stopped",
        };
        if !self.heals(address, drifted) {
            return Need::Leave;
        }
        Need::Start(Verdict::Start, vec![Reason::Drifted { what: drifted.to_owned() }])
    }

    /// Why a service's definition is not the one it runs from: its own fields and the sandbox's environment.
    fn service_reasons(&self, address: &Address, name: &str, service: &ServiceSpec) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if let Some(old) = self.recorded {
            if let Some(old) = old.services.get(name) {
                let fields = diff::differences(old, service);
                reasons.extend(fields.iter().map(|d| self.field_change(address, &d.dotted(), d)));
            }
            let env = diff::differences(&old.env, &self.guest.env);
            let sandbox = self.sandbox_address();
            reasons
                .extend(env.iter().map(|d| self.field_change(&sandbox, &format!("env.{}", d.dotted()), d)));
        }
        if reasons.is_empty() {
            let at = self.b.origin(address, "");
            let path = "definition".to_owned();
            reasons.push(Reason::Changed(FieldChange { path, old: None, new: None, at }));
        }
        reasons
    }
}

/// The steps that a service's dependents come after.
#[derive(Default)]
struct ServiceSteps {
    start: Option<StepId>,
    wait: Option<StepId>,
    /// It should run, does not, and is left so by the drift policy.
    is_left: bool,
}

/// What a service that should run needs.
enum Need {
    Nothing,
    /// It does not run and is not started, by the drift policy.
    Leave,
    Wait(String),
    Start(Verdict, Vec<Reason>),
}
