//! A pure world: providers, insides of sandboxes and the record, changed by a plan's steps as `reconcile/execute.rs` changes the real one.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::*;
use crate::plan::lint::lint;
use crate::plan::{Action, Plan, PlanInput, Policy, Step, plan};
use crate::provider::{Capabilities, ChangeClass, FieldSupport, StopMeaning, Support};

pub const PROJECT: &str = "shop";
/// Longer than any provider's settle time.
pub const LONG: i64 = 10_000;

const fn row(path: &'static str, class: ChangeClass) -> FieldSupport {
    FieldSupport { path, support: Support::Honoured(class) }
}

const FIELDS: &[FieldSupport] = &[
    row("hostname", ChangeClass::Restart),
    row("volumes", ChangeClass::Restart),
    row("network", ChangeClass::Restart),
    row("secrets.*.hosts", ChangeClass::Restart),
    row("ports", ChangeClass::Live),
    row("lifecycle", ChangeClass::Live),
    row("resources", ChangeClass::Live),
];

/// A provider that keeps disks, reads specs back and lists at once.
pub static ALPHA: Capabilities = Capabilities {
    provider: "alpha",
    summary: "",
    stop: StopMeaning::Suspend,
    labels: true,
    idempotent_create: true,
    settle_ms: 0,
    forwards_from_host: true,
    names_by_links: false,
    service: false,
    max_concurrency: 4,
    fields: FIELDS,
    ..Capabilities::NOTHING
};

/// A provider that loses disks on stop, reads no spec back, creates twice if asked twice, and whose listing lags behind creates.
pub static BETA: Capabilities = Capabilities {
    provider: "beta",
    stop: StopMeaning::Destroy,
    idempotent_create: false,
    settle_ms: 1_000,
    ..ALPHA
};

/// One sandbox that exists.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub seen: ObservedSandbox,
    pub spec: SandboxSpec,
    pub guest: ObservedGuest,
    pub broken_mounts: BTreeSet<String>,
    pub silent_ports: BTreeSet<u16>,
}

impl Sandbox {
    fn label(&self, name: &str) -> &str {
        self.seen.labels.get(name).map_or("", String::as_str)
    }

    pub fn name(&self) -> &str {
        self.label(labels::ADDRESS).strip_prefix("sandbox/").unwrap_or_default()
    }

    pub fn is_ours(&self) -> bool {
        self.label(labels::PROJECT) == PROJECT
    }

    /// What stopping leaves of the inside.
    fn stop(&mut self, sheet: &Capabilities) {
        self.seen.state = SandboxState::Stopped { unclean: None };
        self.seen.bound.clear();
        self.guest.services.clear();
        self.guest.env = None;
        if sheet.stop == StopMeaning::Destroy {
            self.guest = ObservedGuest::default();
        }
    }
}

/// One provider.
#[derive(Clone, Debug)]
pub struct Vendor {
    pub sheet: &'static Capabilities,
    pub down: bool,
    pub sandboxes: BTreeMap<SandboxId, Sandbox>,
    /// Volumes by name, each with a number that no other volume ever has: its data.
    pub volumes: BTreeMap<String, u64>,
}

/// How far a step gets before everything stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The intent is journalled, nothing is done.
    Begun,
    /// It is done, and nothing is recorded.
    Effect,
}

#[derive(Clone, Debug)]
pub struct World {
    pub now: i64,
    pub vendors: BTreeMap<String, Vendor>,
    pub record: Recorded,
    /// Preset steps that were run, each time.
    pub ran: Vec<(SandboxId, String)>,
    next: u64,
}

/// What the executor learns while steps run.
struct Learned {
    ids: BTreeMap<String, SandboxId>,
    records: BTreeMap<String, RecordedSandbox>,
}

impl World {
    pub fn new() -> Self {
        let vendor =
            |sheet| Vendor { sheet, down: false, sandboxes: BTreeMap::new(), volumes: BTreeMap::new() };
        Self {
            now: 1_000_000,
            vendors: BTreeMap::from([("alpha".into(), vendor(&ALPHA)), ("beta".into(), vendor(&BETA))]),
            record: Recorded::default(),
            ran: Vec::new(),
            next: 0,
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// As `reconcile/observe.rs` looks, at the same providers and with the same direct questions.
    pub fn observe(&self, desired: &Desired) -> Observed {
        let mut names: BTreeSet<&str> = desired.sandboxes.values().map(|s| s.provider.as_str()).collect();
        names.extend(desired.volumes.values().map(|v| v.provider.as_str()));
        names.extend(self.record.sandboxes.values().map(|s| s.provider.as_str()));
        names.extend(self.record.volumes.values().map(|v| v.provider.as_str()));
        names.extend(self.record.intents.iter().map(|i| i.provider.as_str()));
        let mut observed = Observed::default();
        for name in names {
            let vendor = &self.vendors[name];
            if vendor.down {
                let reason = "it does not answer".to_owned();
                observed.providers.insert(name.to_owned(), Observation::Unavailable { reason });
                continue;
            }
            let mut listing = ObservedProvider::default();
            for sandbox in vendor.sandboxes.values().filter(|s| s.is_ours() && self.is_listed(vendor, s)) {
                let mut seen = sandbox.seen.clone();
                let runs = seen.state == SandboxState::Running;
                seen.spec = vendor.sheet.idempotent_create.then(|| sandbox.spec.clone());
                if runs {
                    let mounts = sandbox.spec.mounts.iter();
                    seen.missing_mounts = mounts
                        .filter(|m| {
                            sandbox.broken_mounts.contains(&m.path) || !vendor.volumes.contains_key(&m.volume)
                        })
                        .map(|m| m.path.clone())
                        .collect();
                }
                for (port, spec) in &sandbox.spec.ports {
                    let listening = runs && !sandbox.silent_ports.contains(port);
                    let endpoint =
                        Endpoint { host: "127.0.0.1".into(), port: spec.host_port.unwrap_or(0), listening };
                    seen.endpoints.insert(*port, endpoint);
                }
                if runs && desired.sandboxes.contains_key(sandbox.name()) {
                    let inside = Observation::Complete(sandbox.guest.clone());
                    observed.guests.insert(seen.id.clone(), inside);
                }
                listing.sandboxes.insert(seen.id.clone(), seen);
            }
            for name in vendor.volumes.keys() {
                let volume = ObservedVolume { labels: BTreeMap::new(), created_at: None };
                listing.volumes.insert(name.clone(), volume);
            }
            observed.providers.insert(name.to_owned(), Observation::Complete(listing));
        }
        observed
    }

    fn is_listed(&self, vendor: &Vendor, sandbox: &Sandbox) -> bool {
        let age = Timestamp(self.now).millis_since(sandbox.seen.created_at.unwrap_or_default());
        age >= vendor.sheet.settle_ms || self.record.sandboxes.values().any(|r| r.id == sandbox.seen.id)
    }

    /// A plan, which the lint must find no fault in.
    pub fn plan(&self, desired: &Desired, policy: &Policy) -> Plan {
        let observed = self.observe(desired);
        self.with_input(desired, policy, &observed, |input| {
            let made = plan(input);
            let findings = lint(&made, input);
            assert!(findings.is_empty(), "{findings:?}\nin {made:#?}");
            made
        })
    }

    pub fn with_input<T>(
        &self,
        desired: &Desired,
        policy: &Policy,
        observed: &Observed,
        then: impl FnOnce(&PlanInput<'_>) -> T,
    ) -> T {
        let capabilities: BTreeMap<String, &Capabilities> =
            self.vendors.iter().map(|(name, v)| (name.clone(), v.sheet)).collect();
        let secrets = BTreeMap::from([("KEY".to_owned(), "digest of KEY".to_owned())]);
        then(&PlanInput {
            desired,
            recorded: &self.record,
            observed,
            capabilities: &capabilities,
            secrets: &secrets,
            origin: &|_, _| None,
            policy,
            now: Timestamp(self.now),
        })
    }

    /// Carries out a plan. Ready steps run in an order that `seed` chooses. After `stop.0` whole steps the next one gets as far as `stop.1`.
    pub fn apply(
        &mut self,
        plan: &Plan,
        desired: &Desired,
        seed: u64,
        stop: Option<(usize, Crash)>,
    ) -> Result<(), String> {
        let mut learned = Learned {
            ids: self.record.sandboxes.iter().map(|(n, r)| (n.clone(), r.id.clone())).collect(),
            records: self.record.sandboxes.clone(),
        };
        let mut chance = seed;
        let mut done = BTreeSet::new();
        let mut left: BTreeSet<usize> = (0..plan.steps.len()).collect();
        while !left.is_empty() {
            let ready: Vec<usize> =
                left.iter().copied().filter(|id| plan.steps[*id].after.is_subset(&done)).collect();
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = ready[usize::try_from(chance >> 33).unwrap() % ready.len()];
            let crash = stop.filter(|(count, _)| *count == done.len()).map(|(_, crash)| crash);
            let step = &plan.steps[id];
            self.step(step, desired, &mut learned, crash)
                .map_err(|why| format!("step {id} `{} {}`: {why}", step.action.verb(), step.address))?;
            if crash.is_some() {
                return Ok(());
            }
            left.remove(&id);
            done.insert(id);
        }
        let inside: BTreeSet<&str> =
            plan.steps.iter().filter(|s| s.action.is_guest()).filter_map(|s| s.address.sandbox()).collect();
        for name in inside {
            if let Some(record) = learned.records.get_mut(name) {
                record.guest = Some(desired.sandboxes[name].guest.clone());
                record.depends_on = desired.sandboxes[name].depends_on.keys().cloned().collect();
                self.put(name, record.clone());
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, record: RecordedSandbox) {
        self.record.serial += 1;
        self.record.sandboxes.insert(name.to_owned(), record);
    }

    fn begin(&mut self, step: &Step, operation: IntentOperation, spec: Option<&SandboxSpec>) -> IntentId {
        let id = IntentId(format!("intent-{}", self.fresh()));
        self.record.intents.push(PendingIntent {
            id: id.clone(),
            address: step.address.clone(),
            provider: step.provider.clone(),
            operation,
            spec_hash: spec.map(SandboxSpec::hash),
            begun_at: Timestamp(self.now),
        });
        id
    }

    fn finish(&mut self, intent: &IntentId) {
        self.record.serial += 1;
        self.record.intents.retain(|i| i.id != *intent);
    }

    fn vendor(&mut self, name: &str) -> Result<&mut Vendor, String> {
        match self.vendors.get_mut(name) {
            Some(vendor) if !vendor.down => Ok(vendor),
            _ => Err(format!("provider `{name}` does not answer")),
        }
    }

    fn step(
        &mut self,
        step: &Step,
        desired: &Desired,
        learned: &mut Learned,
        crash: Option<Crash>,
    ) -> Result<(), String> {
        self.vendor(&step.provider)?;
        let name = step.address.sandbox().unwrap_or_default().to_owned();
        let id = step.id.clone().or_else(|| learned.ids.get(&name).cloned());
        let begun = crash == Some(Crash::Begun);
        let recorded = crash.is_none();
        let depends_on = || {
            let declared = desired.sandboxes.get(&name);
            declared.map(|d| d.depends_on.keys().cloned().collect()).unwrap_or_default()
        };
        match &step.action {
            Action::CreateVolume { name } => {
                let intent = self.begin(step, IntentOperation::Create, None);
                if begun {
                    return Ok(());
                }
                let data = self.fresh();
                self.vendor(&step.provider)?.volumes.entry(name.clone()).or_insert(data);
                if recorded {
                    self.finish(&intent);
                    self.put_volume(name, &step.provider);
                }
            }
            Action::AdoptVolume { name } if recorded => self.put_volume(name, &step.provider),
            Action::ForgetVolume { name } if recorded => {
                self.record.volumes.remove(name);
            }
            Action::AdoptVolume { .. } | Action::ForgetVolume { .. } => {}
            Action::DeleteVolume { name } => {
                let intent = self.begin(step, IntentOperation::Delete, None);
                if begun {
                    return Ok(());
                }
                let vendor = self.vendor(&step.provider)?;
                let user =
                    vendor.sandboxes.values().find(|s| s.spec.mounts.iter().any(|m| m.volume == *name));
                if let Some(user) = user {
                    return Err(format!("{} mounts it", user.seen.id));
                }
                vendor.volumes.remove(name);
                if recorded {
                    self.finish(&intent);
                    self.record.volumes.remove(name);
                }
            }
            Action::Create { spec, generation, resume } => {
                let intent = match resume {
                    Some(token) if self.record.intents.iter().any(|i| i.id == *token) => token.clone(),
                    Some(token) => return Err(format!("{token} is not pending")),
                    None => self.begin(step, IntentOperation::Create, Some(spec)),
                };
                if begun {
                    return Ok(());
                }
                let id = self.create(step, spec, *generation, &intent, resume.is_some())?;
                if recorded {
                    self.finish(&intent);
                    let record = RecordedSandbox {
                        provider: step.provider.clone(),
                        id: id.clone(),
                        spec: spec.clone(),
                        guest: None,
                        generation: *generation,
                        depends_on: depends_on(),
                        state: RunState::Running,
                        created_at: Timestamp(self.now),
                    };
                    learned.ids.insert(name.clone(), id);
                    learned.records.insert(name.clone(), record.clone());
                    self.put(&name, record);
                }
            }
            Action::Adopt { spec, generation, .. } | Action::Update { spec, generation } => {
                let found = match &step.action {
                    Action::Adopt { state, .. } => *state,
                    _ => RunState::Running,
                };
                let id = id.ok_or("no id")?;
                if begun {
                    return Ok(());
                }
                self.update(step, &id, spec, *generation)?;
                if recorded {
                    let before = learned.records.get(&name).filter(|r| r.id == id);
                    let record = RecordedSandbox {
                        provider: step.provider.clone(),
                        id: id.clone(),
                        spec: spec.clone(),
                        guest: before.and_then(|r| r.guest.clone()),
                        generation: *generation,
                        depends_on: depends_on(),
                        state: before.map_or(found, |r| r.state),
                        created_at: before.map_or(Timestamp(self.now), |r| r.created_at),
                    };
                    learned.ids.insert(name.clone(), id);
                    learned.records.insert(name.clone(), record.clone());
                    self.put(&name, record);
                }
            }
            Action::Delete { .. } => {
                let id = id.ok_or("no id")?;
                let intent = self.begin(step, IntentOperation::Delete, None);
                if begun {
                    return Ok(());
                }
                self.vendor(&step.provider)?.sandboxes.remove(&id);
                if recorded {
                    self.finish(&intent);
                    self.record.sandboxes.remove(&name);
                    learned.ids.remove(&name);
                    learned.records.remove(&name);
                }
            }
            Action::Discard => {
                let id = id.ok_or("no id")?;
                let intent = self.begin(step, IntentOperation::Delete, None);
                if begun {
                    return Ok(());
                }
                self.vendor(&step.provider)?.sandboxes.remove(&id);
                if recorded {
                    self.finish(&intent);
                }
            }
            Action::Forget if recorded => {
                self.record.serial += 1;
                self.record.sandboxes.remove(&name);
            }
            Action::Settle { intent } if recorded => self.finish(intent),
            Action::Forget | Action::Settle { .. } => {}
            action if !begun => {
                let id = id.ok_or("no id")?;
                let sheet = self.vendor(&step.provider)?.sheet;
                let sandbox =
                    self.vendor(&step.provider)?.sandboxes.get_mut(&id).ok_or("it does not exist")?;
                match action {
                    Action::Start => {
                        sandbox.seen.state = SandboxState::Running;
                        sandbox.broken_mounts.clear();
                        sandbox.silent_ports.clear();
                    }
                    Action::Quiesce { services } => {
                        for service in services {
                            if let Some(service) = sandbox.guest.services.get_mut(service) {
                                service.state = ServiceStatus::Stopped;
                                service.health = None;
                            }
                        }
                    }
                    Action::Stop => sandbox.stop(sheet),
                    Action::Bind { digests } if sandbox.seen.state == SandboxState::Running => {
                        let declared = |name: &String| sandbox.spec.bound.contains_key(name);
                        if !digests.keys().all(declared) {
                            return Err("it binds what the spec does not".into());
                        }
                        sandbox.seen.bound.clone_from(digests);
                    }
                    action if sandbox.seen.state == SandboxState::Running => {
                        let ran = inside(action, &mut sandbox.guest)?;
                        self.ran.extend(ran.map(|step| (id, step)));
                    }
                    _ => return Err("it does not run".into()),
                }
                let brought_to = match action {
                    Action::Start => Some(RunState::Running),
                    Action::Stop => Some(RunState::Stopped),
                    _ => None,
                };
                if let Some(state) = brought_to.filter(|_| recorded) {
                    let known = [learned.records.get_mut(&name), self.record.sandboxes.get_mut(&name)];
                    known.into_iter().flatten().for_each(|record| record.state = state);
                    self.record.serial += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn put_volume(&mut self, name: &str, provider: &str) {
        self.record.serial += 1;
        let volume = RecordedVolume { provider: provider.to_owned(), created_at: Timestamp(self.now) };
        self.record.volumes.insert(name.to_owned(), volume);
    }

    fn identity(
        &self,
        address: &Address,
        spec: &SandboxSpec,
        generation: u64,
        intent: &IntentId,
    ) -> Identity {
        Identity {
            project: PROJECT.into(),
            address: address.clone(),
            owner: OwnerId("store".into()),
            spec_hash: spec.hash(),
            generation,
            intent: intent.clone(),
            expires_at: None,
        }
    }

    /// The provider's create, preceded by the executor's look for an interrupted one where the provider is not idempotent.
    fn create(
        &mut self,
        step: &Step,
        spec: &SandboxSpec,
        generation: u64,
        intent: &IntentId,
        resumed: bool,
    ) -> Result<SandboxId, String> {
        let labels = self.identity(&step.address, spec, generation, intent).to_labels();
        let vendor = &self.vendors[&step.provider];
        let same = |s: &&Sandbox| s.label(labels::INTENT) == intent.0;
        let made = match vendor.sheet.idempotent_create {
            true => vendor.sandboxes.values().find(same),
            false if resumed => vendor.sandboxes.values().find(|s| same(s) && self.is_listed(vendor, s)),
            false => None,
        };
        if let Some(made) = made {
            let id = made.seen.id.clone();
            if vendor.sheet.idempotent_create && made.seen.labels != labels {
                return Err(format!(
                    "{id} was made with other labels: {:?} and {labels:?}",
                    made.seen.labels
                ));
            }
            self.vendor(&step.provider)?.sandboxes.get_mut(&id).unwrap().seen.state = SandboxState::Running;
            return Ok(id);
        }
        let missing = spec.mounts.iter().find(|m| !vendor.volumes.contains_key(&m.volume));
        if let Some(missing) = missing {
            return Err(format!("volume `{}` does not exist", missing.volume));
        }
        self.insert(&step.provider, labels, spec)
    }

    /// Puts a running sandbox into the world, whoever made it.
    pub fn insert(
        &mut self,
        provider: &str,
        labels: BTreeMap<String, String>,
        spec: &SandboxSpec,
    ) -> Result<SandboxId, String> {
        let id = SandboxId(format!("box-{:04}", self.fresh()));
        let seen = ObservedSandbox {
            id: id.clone(),
            labels,
            state: SandboxState::Running,
            created_at: Some(Timestamp(self.now)),
            started_at: Some(Timestamp(self.now)),
            spec: None,
            endpoints: BTreeMap::new(),
            bound: BTreeMap::new(),
            sockets: BTreeMap::new(),
            missing_mounts: Vec::new(),
            usage: Default::default(),
            notes: Vec::new(),
        };
        let sandbox = Sandbox {
            seen,
            spec: spec.clone(),
            guest: ObservedGuest::default(),
            broken_mounts: BTreeSet::new(),
            silent_ports: BTreeSet::new(),
        };
        self.vendor(provider)?.sandboxes.insert(id.clone(), sandbox);
        Ok(id)
    }

    fn update(
        &mut self,
        step: &Step,
        id: &SandboxId,
        spec: &SandboxSpec,
        generation: u64,
    ) -> Result<(), String> {
        let vendor = self.vendor(&step.provider)?;
        let volumes: BTreeSet<String> = vendor.volumes.keys().cloned().collect();
        let sandbox = vendor.sandboxes.get_mut(id).ok_or("it does not exist")?;
        let token = IntentId(sandbox.label(labels::INTENT).to_owned());
        if sandbox.spec.image != spec.image {
            return Err("its image cannot be changed".into());
        }
        let restarts = (&sandbox.spec.hostname, &sandbox.spec.mounts) != (&spec.hostname, &spec.mounts);
        if restarts && sandbox.seen.state == SandboxState::Running {
            return Err("it has to be stopped for this".into());
        }
        if spec.mounts.iter().any(|m| !volumes.contains(&m.volume)) && sandbox.spec != *spec {
            return Err("a volume does not exist".into());
        }
        sandbox.spec = spec.clone();
        sandbox.silent_ports.clear();
        let labels = self.identity(&step.address, spec, generation, &token).to_labels();
        self.vendor(&step.provider)?.sandboxes.get_mut(id).unwrap().seen.labels = labels;
        Ok(())
    }

    /// Plans and applies until there is nothing left to do; how many plans had steps.
    pub fn converge(&mut self, desired: &Desired, policy: &Policy, seed: u64) -> Result<usize, String> {
        for round in 0..8 {
            let plan = self.plan(desired, policy);
            if plan.steps.is_empty() {
                return Ok(round);
            }
            self.apply(&plan, desired, seed, None).map_err(|why| format!("{why}\nin {plan:#?}"))?;
            self.now += LONG;
        }
        Err(format!("no end: {:#?}", self.plan(desired, policy)))
    }

    /// Every sandbox of ours, by name, with its provider.
    pub fn ours(&self) -> impl Iterator<Item = (&str, &Sandbox)> {
        self.vendors
            .iter()
            .flat_map(|(name, v)| v.sandboxes.values().map(move |s| (name.as_str(), s)))
            .filter(|(_, s)| s.is_ours())
    }

    /// All volumes with their data.
    pub fn volumes(&self) -> BTreeMap<(String, String), u64> {
        let all = self.vendors.iter();
        all.flat_map(|(p, v)| v.volumes.iter().map(move |(n, data)| ((p.clone(), n.clone()), *data)))
            .collect()
    }
}

/// One step inside; the preset step that it ran, if any.
fn inside(action: &Action, guest: &mut ObservedGuest) -> Result<Option<String>, String> {
    match action {
        Action::Setup(setup) => {
            if let Some(digest) = &setup.env {
                guest.env = Some(digest.clone());
            }
            for path in &setup.remove {
                guest.files.remove(path);
            }
            for (path, file) in &setup.files {
                let digest = file.digest.clone();
                guest.files.insert(path.clone(), ObservedFile { digest, state: FileState::InPlace });
            }
        }
        Action::BringRepository { path, digest, .. } => {
            let found = ObservedRepository { digest: digest.clone(), present: true };
            guest.repositories.insert(path.clone(), found);
        }
        Action::ForgetRepository { path } => {
            guest.repositories.remove(path);
        }
        Action::RunPresetStep { step, .. } => {
            guest.presets.insert(step.id(), PresetOutcome::Done);
            return Ok(Some(step.id()));
        }
        Action::ForgetPresetSteps { ids } => guest.presets.retain(|id, _| !ids.contains(id)),
        Action::StartService { name, spec, digest } => {
            let health = spec.healthcheck.as_ref().map(|_| ProbeResult::Failing("too early".into()));
            guest.services.insert(
                name.clone(),
                ObservedService {
                    digest: digest.clone(),
                    state: ServiceStatus::Running,
                    health,
                    restarts: 0,
                    exit_code: None,
                    since: None,
                },
            );
        }
        Action::StopService { name } => {
            let service = guest.services.get_mut(name).ok_or("no such service")?;
            service.state = ServiceStatus::Stopped;
            service.health = None;
        }
        Action::RemoveService { name } => {
            guest.services.remove(name).ok_or("no such service")?;
        }
        Action::WaitService { name, .. } => {
            let service = guest.services.get_mut(name).ok_or("no such service")?;
            if !matches!(service.state, ServiceStatus::Running | ServiceStatus::Backoff) {
                return Err("it will never be ready".into());
            }
            service.state = ServiceStatus::Running;
            if service.health.is_some() {
                service.health = Some(ProbeResult::Passing);
            }
        }
        other => return Err(format!("`{}` is not done inside", other.verb())),
    }
    Ok(None)
}
