//! A world of providers in virtual time: it keeps its own truth and history, and fails as a schedule says.
//!
//! Two providers that cannot be told from real ones by the code under test. How each behaves is part of the schedule: what stop means,
//! whether a create is idempotent, whether listings lag, and whether a spec is read back. A call may be lost before or after its effect; at a provider
//! whose listings lag an effect may even take place after its caller has died.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pocketenv::model::*;
use pocketenv::provider::*;
use pocketenv::store::Store;

use crate::inside::Inside;
use crate::schedule::{Fault, Manners, Schedule, chance};
use crate::within::Within;

pub const PROJECT: &str = "shop";
/// The simulated clock starts here.
pub const EPOCH: i64 = 1_700_000_000_000;
/// The longest settle time of any provider, in milliseconds.
pub const SETTLE_MS: u64 = 4_000;

/// Something that took place at a provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// When, in milliseconds of virtual time.
    pub at: i64,
    /// At which provider.
    pub provider: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Created {
        id: SandboxId,
        address: String,
        intent: String,
    },
    Updated(SandboxId),
    Started(SandboxId),
    /// With `lost`, something that was put inside is lost.
    Stopped {
        id: SandboxId,
        lost: bool,
    },
    Deleted {
        id: SandboxId,
        address: String,
        lost: bool,
    },
    /// By itself.
    Died(SandboxId),
    VolumeCreated {
        name: String,
        intent: String,
    },
    VolumeDeleted(String),
}

#[derive(Clone, Debug)]
pub struct Sandbox {
    pub labels: BTreeMap<String, String>,
    pub spec: SandboxSpec,
    pub state: SandboxState,
    pub created_at: i64,
    /// When the listing begins to show it.
    visible_at: i64,
    /// Until when it stays in a passing state.
    stuck_until: i64,
    /// When it was deleted and until when the listing goes on to show it.
    gone: Option<i64>,
    pub inside: Inside,
}

impl Sandbox {
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    pub fn is_ours(&self) -> bool {
        self.label(labels::PROJECT) == PROJECT
    }

    pub fn exists(&self) -> bool {
        self.gone.is_none()
    }
}

#[derive(Debug)]
pub struct Vendor {
    pub sheet: &'static Capabilities,
    pub manners: Manners,
    pub sandboxes: BTreeMap<SandboxId, Sandbox>,
    /// By project and name, each with a number that no other volume ever has: its data.
    pub volumes: BTreeMap<(String, String), u64>,
}

pub struct State {
    pub vendors: BTreeMap<String, Vendor>,
    /// The store of the present life, asked whether an intent was written down before its effect.
    pub store: Option<Store>,
    pub history: Vec<Effect>,
    /// How many processes were killed.
    pub killed: u32,
    /// What broke an invariant at the moment it happened.
    pub violations: Vec<String>,
    /// Ids that the record knows: a listing may miss these, because they are asked for one by one.
    pub known: BTreeSet<SandboxId>,
    /// What existed when the record was lost: what nothing declares any more is left to `gc`.
    pub excused: BTreeSet<SandboxId>,
    faults: BTreeMap<u64, Fault>,
    calls: u64,
    seed: u64,
    next: u64,
    begun: tokio::time::Instant,
}

impl State {
    pub fn now(&self) -> i64 {
        i64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    fn note(&mut self, provider: &str, what: What) {
        self.history.push(Effect { at: self.now(), provider: provider.to_owned(), what });
    }

    pub fn violated(&mut self, what: String) {
        let at = self.now();
        self.violations.push(format!("at {at} ms: {what}"));
    }

    fn vendor(&mut self, name: &str) -> &mut Vendor {
        self.vendors.get_mut(name).unwrap()
    }

    pub fn living(&mut self, provider: &str, id: &SandboxId) -> Result<&mut Sandbox, ProviderError> {
        let now = self.now();
        let mut found = self.vendor(provider).sandboxes.get_mut(id).filter(|s| s.exists());
        if let Some(sandbox) = &mut found
            && sandbox.state == SandboxState::Creating
            && sandbox.stuck_until <= now
        {
            sandbox.state = SandboxState::Running;
        }
        found.ok_or_else(|| ProviderError::NotFound { what: format!("sandbox {id}") })
    }

    /// Everything of ours that exists.
    pub fn ours(&self) -> impl Iterator<Item = (&str, &SandboxId, &Sandbox)> {
        let all =
            self.vendors.iter().flat_map(|(p, v)| v.sandboxes.iter().map(move |(id, s)| (p.as_str(), id, s)));
        all.filter(|(_, _, s)| s.exists() && s.is_ours())
    }

    /// What `gc` does when it is asked to: what existed when the record was lost and nothing declares any more goes.
    pub fn collect(&mut self, desired: &Desired) {
        let now = self.now();
        for (id, sandbox) in self.vendors.values_mut().flat_map(|v| &mut v.sandboxes) {
            let name = sandbox.label(labels::ADDRESS).strip_prefix("sandbox/").unwrap_or_default();
            if self.excused.contains(id) && !desired.sandboxes.contains_key(name) && sandbox.exists() {
                sandbox.gone = Some(now);
            }
        }
    }

    /// From now on nothing goes wrong.
    pub fn heal(&mut self) {
        self.faults.clear();
    }

    /// Whether the journal holds this intent as pending.
    fn is_journalled(&self, is_it: impl Fn(&PendingIntent) -> bool) -> bool {
        let Some(store) = &self.store else { return true };
        immediately(store.pending(PROJECT)).unwrap().iter().any(is_it)
    }

    /// A sandbox of ours that runs dies.
    fn kill_one(&mut self, draw: u64) {
        let now = self.now();
        let running = |s: &&mut Sandbox| s.exists() && s.is_ours() && s.state == SandboxState::Running;
        let mut all: Vec<(String, SandboxId, &mut Sandbox)> = Vec::new();
        for (provider, vendor) in &mut self.vendors {
            let some = vendor.sandboxes.iter_mut();
            all.extend(some.map(|(id, s)| (provider.clone(), id.clone(), s)).filter(|(_, _, s)| running(s)));
        }
        if all.is_empty() {
            return;
        }
        let at = usize::try_from(draw >> 8).unwrap() % all.len();
        let (provider, id, sandbox) = all.swap_remove(at);
        match draw % 3 {
            0 => sandbox.gone = Some(now),
            1 => {
                sandbox.inside.stop(false);
                sandbox.state = SandboxState::Stopped { unclean: Some("it was killed".to_owned()) };
            }
            _ => {
                sandbox.inside.stop(true);
                sandbox.state = SandboxState::Failed("its machine died".to_owned());
            }
        }
        self.note(&provider, What::Died(id));
    }
}

/// Runs a future that waits for nothing but its turn.
pub fn immediately<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..16 {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
    panic!("it waits for something else");
}

#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

impl World {
    /// An empty world, but for what belongs to others. Must be made inside the runtime whose time it lives in.
    pub fn new(schedule: &Schedule) -> Self {
        let mut vendors = BTreeMap::new();
        for (name, manners) in ["alpha", "beta"].into_iter().zip(schedule.manners) {
            let mut vendor = Vendor {
                sheet: manners.sheet(name),
                manners,
                sandboxes: BTreeMap::new(),
                volumes: BTreeMap::from([(("other".to_owned(), "v0".to_owned()), 1)]),
            };
            for (id, project) in [("other-1", Some("other")), ("strange-1", None)] {
                let labels = match project {
                    Some(project) => Identity {
                        project: project.to_owned(),
                        address: Address::Sandbox("db".to_owned()),
                        owner: OwnerId("somebody".to_owned()),
                        spec_hash: SpecHash("x".to_owned()),
                        generation: 1,
                        intent: IntentId("theirs".to_owned()),
                        expires_at: None,
                    }
                    .to_labels(),
                    None => BTreeMap::from([("app".to_owned(), "db".to_owned())]),
                };
                let sandbox = Sandbox {
                    labels,
                    spec: SandboxSpec::default(),
                    state: SandboxState::Running,
                    created_at: 0,
                    visible_at: 0,
                    stuck_until: 0,
                    gone: None,
                    inside: Inside::default(),
                };
                vendor.sandboxes.insert(SandboxId(id.to_owned()), sandbox);
            }
            vendors.insert(name.to_owned(), vendor);
        }
        Self(Arc::new(Mutex::new(State {
            vendors,
            store: None,
            history: Vec::new(),
            killed: 0,
            violations: Vec::new(),
            known: BTreeSet::new(),
            excused: BTreeSet::new(),
            faults: schedule.faults.clone(),
            calls: 0,
            seed: schedule.seed,
            next: 100,
            begun: tokio::time::Instant::now(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The providers, as a fresh process opens them.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        let sheets: Vec<(String, &'static Capabilities)> =
            self.lock().vendors.iter().map(|(name, v)| (name.clone(), v.sheet)).collect();
        for (name, sheet) in sheets {
            registry.insert(name.clone(), Arc::new(Client { world: self.clone(), name, sheet }));
        }
        registry
    }
}

/// A client of one provider.
#[derive(Clone)]
pub struct Client {
    world: World,
    name: String,
    sheet: &'static Capabilities,
}

pub fn transient(message: &str) -> ProviderError {
    ProviderError::Transient { message: message.to_owned(), source: None }
}

impl Client {
    /// One call: it takes its time there, has its effect, and takes its time back. It may be given up at each of its waits.
    pub async fn call<T: Send + 'static>(
        &self,
        sent: impl FnOnce(&mut State, &str),
        effect: impl FnOnce(&mut State, &str, Option<Fault>) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let (fault, draw, lags) = {
            let mut state = self.world.lock();
            state.calls += 1;
            let call = state.calls;
            let (fault, draw) = (state.faults.remove(&call), chance(state.seed, call));
            (fault, draw, state.vendor(&self.name).manners.lags)
        };
        let ms = |at: u32, most: u64| Duration::from_millis((draw >> at) % most);
        tokio::time::sleep(ms(0, 40)).await;
        match fault {
            Some(Fault::Throttled(after)) => {
                return Err(ProviderError::Throttled { retry_after: after.map(Duration::from_millis) });
            }
            Some(Fault::Before) => return Err(transient("the connection was refused")),
            Some(Fault::Refused) => return Err(ProviderError::Invalid { message: "over quota".to_owned() }),
            Some(Fault::Death(which)) => self.world.lock().kill_one(which),
            _ => {}
        }
        sent(&mut self.world.lock(), &self.name);
        let result = if lags {
            // It is on its way: it takes place even if its caller is gone by then. With what a listing lags this stays within the settle time.
            let (world, name) = (self.world.clone(), self.name.clone());
            let on_the_way = ms(16, SETTLE_MS / 4);
            let landing = tokio::spawn(async move {
                tokio::time::sleep(on_the_way).await;
                effect(&mut world.lock(), &name, fault)
            });
            landing.await.unwrap()
        } else {
            effect(&mut self.world.lock(), &self.name, fault)
        };
        match fault {
            Some(Fault::Slow) => tokio::time::sleep(Duration::from_secs(5) + ms(24, 40_000)).await,
            _ => tokio::time::sleep(ms(32, 40)).await,
        }
        match fault {
            Some(Fault::After) if result.is_ok() => Err(transient("the connection was cut")),
            _ => result,
        }
    }
}

/// How long after `now` a listing begins to tell the truth.
fn lag(state: &mut State, provider: &str) -> i64 {
    let lags = state.vendor(provider).manners.lags;
    let draw = chance(state.seed, state.next ^ 0x1a6);
    if lags { i64::try_from(draw % (SETTLE_MS / 2)).unwrap() } else { 0 }
}

fn create(
    state: &mut State,
    provider: &str,
    spec: SandboxSpec,
    identity: &Identity,
    fault: Option<Fault>,
) -> Result<SandboxId, ProviderError> {
    let now = state.now();
    let idempotent = state.vendor(provider).manners.idempotent;
    if idempotent {
        let same =
            |(_, s): &(&SandboxId, &mut Sandbox)| s.exists() && s.label(labels::INTENT) == identity.intent.0;
        if let Some((id, sandbox)) = state.vendor(provider).sandboxes.iter_mut().find(same) {
            if sandbox.state == SandboxState::Creating {
                sandbox.state = SandboxState::Running;
            }
            return Ok(id.clone());
        }
    }
    let address = identity.address.to_string();
    for mount in &spec.mounts {
        if !state.vendor(provider).volumes.contains_key(&(identity.project.clone(), mount.volume.clone())) {
            state.violated(format!("{address} is created before its volume {}", mount.volume));
            return Err(ProviderError::Invalid { message: "no such volume".to_owned() });
        }
    }
    let twin = state.ours().find(|(p, _, s)| *p == provider && s.label(labels::ADDRESS) == address);
    if let Some((_, id, _)) = twin {
        let id = id.clone();
        state.violated(format!("a second {address} is created while {id} exists"));
    }
    state.next += 1;
    let id = SandboxId(format!("box-{}", state.next));
    let visible_at = now + lag(state, provider);
    let (stuck, stuck_until) = match fault {
        Some(Fault::Stuck) => (SandboxState::Creating, now + 20_000),
        _ => (SandboxState::Running, 0),
    };
    let sandbox = Sandbox {
        labels: identity.to_labels(),
        spec,
        state: stuck,
        created_at: now,
        visible_at,
        stuck_until,
        gone: None,
        inside: Inside::default(),
    };
    state.vendor(provider).sandboxes.insert(id.clone(), sandbox);
    state.note(provider, What::Created { id: id.clone(), address, intent: identity.intent.0.clone() });
    match fault {
        // The maker goes on alone, and whoever asked has been told that it failed.
        Some(Fault::Stuck) => Err(transient("it takes too long")),
        _ => Ok(id),
    }
}

fn observed(vendor: &Vendor, id: &SandboxId, sandbox: &Sandbox, now: i64) -> ObservedSandbox {
    let state = match &sandbox.state {
        SandboxState::Creating if sandbox.stuck_until <= now => SandboxState::Running,
        state => state.clone(),
    };
    let runs = state == SandboxState::Running;
    let ports = sandbox.spec.ports.iter();
    let endpoint = |spec: &PortSpec| Endpoint {
        host: "127.0.0.1".to_owned(),
        port: spec.host_port.unwrap_or(0),
        listening: runs,
    };
    ObservedSandbox {
        id: id.clone(),
        labels: sandbox.labels.clone(),
        state,
        created_at: Some(Timestamp(EPOCH + sandbox.created_at)),
        started_at: None,
        spec: vendor.manners.reads_back.then(|| sandbox.spec.clone()),
        endpoints: ports.map(|(port, spec)| (*port, endpoint(spec))).collect(),
        bound: BTreeMap::new(),
        sockets: BTreeMap::new(),
        missing_mounts: Vec::new(),
        usage: Default::default(),
        notes: Vec::new(),
    }
}

#[async_trait]
impl Provider for Client {
    fn capabilities(&self) -> &Capabilities {
        self.sheet
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let project = owner.project.clone();
        self.call(
            |_, _| {},
            move |state, provider, fault| {
                let now = state.now();
                let known = state.known.clone();
                let vendor = state.vendor(provider);
                let mut listing = ObservedProvider::default();
                for (id, sandbox) in &vendor.sandboxes {
                    let is_wanted = match &project {
                        Some(project) => sandbox.label(labels::PROJECT) == project,
                        None => sandbox.labels.contains_key(labels::MANAGED_BY),
                    };
                    let is_shown = match sandbox.gone {
                        Some(until) => now < until,
                        None => now >= sandbox.visible_at,
                    };
                    let is_missed = matches!(fault, Some(Fault::Misses)) && known.contains(id);
                    if is_wanted && is_shown && !is_missed {
                        listing.sandboxes.insert(id.clone(), observed(vendor, id, sandbox, now));
                    }
                }
                for (of, name) in vendor.volumes.keys() {
                    if project.as_ref().is_none_or(|project| project == of) {
                        let labels = BTreeMap::from([(labels::PROJECT.to_owned(), of.clone())]);
                        listing.volumes.insert(name.clone(), ObservedVolume { labels, created_at: None });
                    }
                }
                Ok(listing)
            },
        )
        .await
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        let id = id.clone();
        self.call(
            |_, _| {},
            move |state, provider, _| {
                let now = state.now();
                let vendor = state.vendor(provider);
                let found = vendor.sandboxes.get(&id).filter(|s| s.exists());
                Ok(found.map(|sandbox| observed(vendor, &id, sandbox, now)))
            },
        )
        .await
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        let (spec, identity) = (spec.clone(), identity.clone());
        let sent = |state: &mut State, provider: &str| {
            let is_it = |i: &PendingIntent| {
                i.id == identity.intent
                    && i.operation == IntentOperation::Create
                    && i.address == identity.address
                    && i.provider == provider
            };
            if !state.is_journalled(is_it) {
                state.violated(format!("{} is created without an intent", identity.address));
            }
        };
        let effect = {
            let identity = identity.clone();
            move |state: &mut State, provider: &str, fault| create(state, provider, spec, &identity, fault)
        };
        self.call(sent, effect).await
    }

    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        let (id, spec, identity) = (id.clone(), spec.clone(), identity.clone());
        let effect = move |state: &mut State, provider: &str, _| {
            let sandbox = state.living(provider, &id)?;
            let runs = sandbox.state == SandboxState::Running;
            let needs_stop = (&sandbox.spec.hostname, &sandbox.spec.mounts) != (&spec.hostname, &spec.mounts);
            let wrong = match () {
                () if !sandbox.is_ours() => Some("something of others is updated"),
                () if sandbox.spec.image != spec.image => Some("its image cannot be changed"),
                () if needs_stop && runs => Some("it has to be stopped for this"),
                () => None,
            };
            if let Some(wrong) = wrong {
                state.violated(format!("update of {id}: {wrong}"));
                return Err(ProviderError::Invalid { message: wrong.to_owned() });
            }
            let intent = sandbox.label(labels::INTENT).to_owned();
            sandbox.spec = spec;
            sandbox.labels = identity.to_labels();
            sandbox.labels.insert(labels::INTENT.to_owned(), intent);
            state.note(provider, What::Updated(id));
            Ok(())
        };
        self.call(|_, _| {}, effect).await
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let id = id.clone();
        let effect = move |state: &mut State, provider: &str, _| {
            let sandbox = state.living(provider, &id)?;
            let may = matches!(sandbox.state, SandboxState::Running | SandboxState::Stopped { .. });
            if !may {
                return Err(transient("it cannot be started now"));
            }
            sandbox.state = SandboxState::Running;
            state.note(provider, What::Started(id));
            Ok(())
        };
        self.call(|_, _| {}, effect).await
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let id = id.clone();
        let effect = move |state: &mut State, provider: &str, _| {
            let loses = state.vendor(provider).manners.stop_destroys;
            let sandbox = state.living(provider, &id)?;
            if !matches!(sandbox.state, SandboxState::Stopped { .. }) {
                sandbox.state = SandboxState::Stopped { unclean: None };
                let lost = loses && sandbox.inside != Inside::default();
                sandbox.inside.stop(loses);
                state.note(provider, What::Stopped { id, lost });
            }
            Ok(())
        };
        self.call(|_, _| {}, effect).await
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let id = id.clone();
        let asked = id.clone();
        let sent = move |state: &mut State, provider: &str| {
            let Some(sandbox) = state.vendor(provider).sandboxes.get(&asked) else { return };
            let (address, ours) = (sandbox.label(labels::ADDRESS).to_owned(), sandbox.is_ours());
            if !ours {
                state.violated(format!("{asked} of others is deleted"));
            }
            let is_it = |i: &PendingIntent| {
                i.operation == IntentOperation::Delete && i.address.to_string() == address
            };
            if !state.is_journalled(is_it) {
                state.violated(format!("{asked} ({address}) is deleted without an intent"));
            }
        };
        let effect = move |state: &mut State, provider: &str, _| {
            let until = state.now() + lag(state, provider);
            let Ok(sandbox) = state.living(provider, &id) else { return Ok(()) };
            sandbox.gone = Some(until);
            let address = sandbox.label(labels::ADDRESS).to_owned();
            let lost = sandbox.inside != Inside::default();
            state.note(provider, What::Deleted { id, address, lost });
            Ok(())
        };
        self.call(sent, effect).await
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        Ok(Box::new(Within { client: self.clone(), id: id.clone() }))
    }

    fn volumes(&self) -> Option<&dyn Volumes> {
        Some(self)
    }
}

#[async_trait]
impl Volumes for Client {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let identity = Identity::from_labels(labels).unwrap().unwrap();
        let name = name.to_owned();
        let sent = {
            let identity = identity.clone();
            move |state: &mut State, _: &str| {
                if !state.is_journalled(|i| i.id == identity.intent) {
                    state.violated(format!("{} is created without an intent", identity.address));
                }
            }
        };
        let effect = move |state: &mut State, provider: &str, _| {
            let key = (identity.project.clone(), name.clone());
            if !state.vendor(provider).volumes.contains_key(&key) {
                state.next += 1;
                let data = state.next;
                state.vendor(provider).volumes.insert(key, data);
                state.note(provider, What::VolumeCreated { name, intent: identity.intent.0.clone() });
            }
            Ok(())
        };
        self.call(sent, effect).await
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let key = (project.to_owned(), name.to_owned());
        let asked = Address::Volume(name.to_owned());
        let sent = move |state: &mut State, _: &str| {
            if !state.is_journalled(|i| i.operation == IntentOperation::Delete && i.address == asked) {
                state.violated(format!("{asked} is deleted without an intent"));
            }
        };
        let effect = move |state: &mut State, provider: &str, _| {
            let mounts = |s: &Sandbox| s.spec.mounts.iter().any(|m| m.volume == key.1);
            // What nobody can know to mount it, because the record is lost and no spec is read back, cannot be spared.
            let is_known = |id: &SandboxId| !state.excused.contains(id);
            let user = state.ours().find(|(p, id, s)| *p == provider && mounts(s) && is_known(id));
            let user = user.map(|(_, id, _)| id.clone());
            if let Some(user) = user {
                state.violated(format!("volume {} is deleted while {user} mounts it", key.1));
            }
            if state.vendor(provider).volumes.remove(&key).is_some() {
                state.note(provider, What::VolumeDeleted(key.1));
            }
            Ok(())
        };
        self.call(sent, effect).await
    }
}
