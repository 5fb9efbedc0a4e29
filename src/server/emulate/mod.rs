//! Emulators: servers that speak a vendor's API in front of a provider of ours, so that a program written with the vendor's SDK runs here.
//!
//! What any emulator needs stands here: which sandboxes it made, when each ends, and what runs inside (`process`, `files`, `watch`, built on the
//! [`Guest`] trait alone). A directory per vendor translates the wire. `docs/emulators.md` describes them from outside.

pub mod daytona;
pub mod e2b;
mod files;
mod forward;
mod kept;
mod measure;
mod process;
mod record;
mod request;
mod unread;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::guest::{Bundle, EnvBundle, environment, write_bundle};
use crate::model::{
    Address, Clock, IdSource, Identity, Image, ObservedSandbox, OwnerId, SandboxId, SandboxSpec,
    SandboxState, SpecHash, Timestamp, labels, sha256_hex,
};
use crate::provider::{Guest, GuestError, Owner, Provider, ProviderError};

use process::Processes;
pub use record::StateError;
use record::{OnTimeout, Record, StateFile};

/// How long open connections may take to end.
const DRAIN: Duration = Duration::from_secs(2);
/// How long to wait before a sandbox that could not be ended is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// The longest sleep between two looks at the clock, which may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What an emulator is started with.
pub struct Options {
    /// Where its sandboxes live.
    pub provider: Arc<dyn Provider>,
    /// The project that its sandboxes are labelled with.
    pub project: String,
    /// The file that it lives in.
    pub state: PathBuf,
    /// Images by the name that the vendor's programs use; `*` stands for any other name.
    pub images: BTreeMap<String, Image>,
    /// The key that programs must send; without one any key is good.
    pub api_key: Option<String>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Fresh identifiers.
    pub ids: Arc<dyn IdSource>,
}

/// Why a call of an emulator failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no such sandbox.
    #[error("sandbox {0} does not exist")]
    NoSandbox(String),
    /// It is there and does not run.
    #[error("sandbox {0} does not run")]
    NotRunning(String),
    /// The name of an image means nothing here.
    #[error("there is no `{0}` here; `--template {0}=IMAGE` makes one")]
    NoImage(String),
    /// The provider.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The inside.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// What it lives in could not be written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What a new sandbox is to be.
struct NewSandbox {
    /// Another name to find it by; no two sandboxes have the same.
    name: Option<String>,
    /// The name of its image.
    template: String,
    /// The name may be that of any image, which is then pulled.
    from_image: bool,
    /// For the program that made it.
    metadata: BTreeMap<String, String>,
    /// The environment of everything that runs inside.
    env: BTreeMap<String, String>,
    /// It ends after this long.
    timeout: Duration,
    /// How it ends then.
    on_timeout: OnTimeout,
    /// It is deleted after this long, whether it runs or not.
    life: Option<Duration>,
    /// Who programs inside run as unless they say otherwise.
    user: Option<String>,
    /// Whether a call to its inside starts it again.
    auto_resume: bool,
    /// The snapshot that it is made from, where its image is not what counts.
    snapshot: Option<String>,
    /// Its network, mounts and limits; the image follows from its name.
    spec: SandboxSpec,
    /// Whether its ports need the token.
    private_ports: bool,
    /// Two creates with one key make one sandbox.
    key: Option<String>,
}

/// One sandbox, while this emulator runs.
struct Sandbox {
    record: Mutex<Record>,
    /// Held while it is started, stopped or deleted.
    change: tokio::sync::Mutex<()>,
    processes: Processes,
    watchers: watch::Watchers,
    /// The environment of everything inside; it stands in memory, here and there, and never in the file.
    env: Mutex<Option<Arc<BTreeMap<String, String>>>>,
    guest: Mutex<Option<Arc<dyn Guest>>>,
    /// Users inside by name, as they were last looked up.
    users: Mutex<HashMap<Option<String>, files::User>>,
    /// Not to be ended before this, because it could not be a moment ago.
    retry: Mutex<Option<Timestamp>>,
}

impl Sandbox {
    fn new(record: Record, env: Option<BTreeMap<String, String>>) -> Arc<Self> {
        Arc::new(Self {
            record: Mutex::new(record),
            change: tokio::sync::Mutex::default(),
            processes: Processes::default(),
            watchers: watch::Watchers::default(),
            env: Mutex::new(env.map(Arc::new)),
            guest: Mutex::new(None),
            users: Mutex::default(),
            retry: Mutex::new(None),
        })
    }

    /// What is known of it now.
    fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Ends everything that this emulator runs inside.
    fn quiet(&self) {
        self.processes.clear();
        self.watchers.clear();
        lock(&self.guest).take();
        lock(&self.users).clear();
    }
}

/// A change under such a lock is one assignment, so that what a panic leaves is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sandboxes of one emulator.
struct Emulation {
    options: Options,
    owner: OwnerId,
    file: StateFile,
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    /// Creates under way by the key that the program gave.
    creating: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Wakes the one who ends sandboxes.
    changed: Notify,
    /// Held while something gets a name that nothing else is to have.
    naming: tokio::sync::Mutex<()>,
}

impl Emulation {
    /// Goes on with what the file holds, and with every sandbox at the provider that carries the labels.
    async fn open(options: Options) -> Result<Arc<Self>, CallError> {
        let (file, kept) = StateFile::open(&options.state, &*options.ids)?;
        let emulation = Arc::new(Self {
            owner: kept.owner.clone(),
            file,
            sandboxes: Mutex::default(),
            creating: Mutex::default(),
            changed: Notify::new(),
            naming: tokio::sync::Mutex::default(),
            options,
        });
        let listing = emulation.listing().await?;
        let mut known: BTreeMap<String, Record> = kept.sandboxes;
        for (id, observed) in listing {
            let Ok(Some(identity)) = Identity::from_labels(&observed.labels) else { continue };
            let Some(name) = identity.address.sandbox() else { continue };
            let record = known.entry(name.to_owned()).or_insert_with(|| {
                tracing::warn!(
                    sandbox = name,
                    "found at the provider and not in the file; it ends by its time"
                );
                let mut record = emulation.fresh(name, &NewSandbox::default());
                record.intent = identity.intent;
                record
            });
            record.provider_id.get_or_insert(id);
            record.paused = !matches!(observed.state, SandboxState::Running | SandboxState::Creating);
        }
        for (name, record) in known {
            // A create that left nothing behind is not to be remembered. What a listing does not show is asked for by its id before it is forgotten.
            if record.provider_id.is_some() {
                lock(&emulation.sandboxes).insert(name, Sandbox::new(record, None));
            }
        }
        emulation.save().await?;
        Ok(emulation)
    }

    fn now(&self) -> Timestamp {
        self.options.clock.now()
    }

    /// A record that begins now.
    fn fresh(&self, id: &str, new: &NewSandbox) -> Record {
        let now = self.now();
        Record {
            id: id.to_owned(),
            name: new.name.clone(),
            provider_id: None,
            intent: self.options.ids.fresh(),
            template: new.template.clone(),
            metadata: new.metadata.clone(),
            token: record::token(),
            traffic_token: new.private_ports.then(record::token),
            created_at: now,
            started_at: now,
            end_at: after(now, new.timeout),
            timeout_ms: u64::try_from(new.timeout.as_millis()).unwrap_or(u64::MAX),
            on_timeout: new.on_timeout,
            dies_at: new.life.map(|life| after(now, life)),
            user: new.user.clone(),
            auto_resume: new.auto_resume,
            network: new.spec.network.clone(),
            mounts: new.spec.mounts.clone(),
            resources: new.spec.resources,
            snapshot: new.snapshot.clone(),
            paused: false,
            key: new.key.clone(),
        }
    }

    /// Everything at the provider that carries the labels.
    async fn listing(&self) -> Result<BTreeMap<SandboxId, ObservedSandbox>, ProviderError> {
        let owner = Owner { project: Some(self.options.project.clone()), owner: None };
        Ok(self.options.provider.list(&owner).await?.sandboxes)
    }

    /// Writes the file.
    async fn save(&self) -> Result<(), StateError> {
        let records = || {
            let sandboxes: Vec<Arc<Sandbox>> = lock(&self.sandboxes).values().cloned().collect();
            let records = sandboxes.iter().map(|sandbox| sandbox.record());
            record::Kept {
                owner: self.owner.clone(),
                sandboxes: records.map(|record| (record.id.clone(), record)).collect(),
            }
        };
        self.file.write(records).await
    }

    fn find(&self, id: &str) -> Result<Arc<Sandbox>, CallError> {
        lock(&self.sandboxes).get(id).cloned().ok_or_else(|| CallError::NoSandbox(id.to_owned()))
    }

    /// Makes a sandbox, or finds the one that was made with the same key.
    async fn create(&self, mut new: NewSandbox) -> Result<Arc<Sandbox>, CallError> {
        new.spec.image = match &new.snapshot {
            Some(snapshot) => Image::Snapshot(snapshot.clone()),
            None => {
                let (image, snapshot) = self.image(&new.template, new.from_image).await?;
                if let Some(snapshot) = snapshot {
                    // What is asked for goes before what the snapshot has.
                    let (asked, has) = (&mut new.spec.resources, snapshot.resources);
                    asked.cpu_millis = asked.cpu_millis.or(has.cpu_millis);
                    asked.memory = asked.memory.or(has.memory);
                    new.snapshot = Some(snapshot.id);
                }
                image
            }
        };
        let gate = new.key.as_ref().map(|key| lock(&self.creating).entry(key.clone()).or_default().clone());
        let _held = match &gate {
            Some(gate) => Some(gate.lock().await),
            None => None,
        };
        if let Some(key) = &new.key {
            let all: Vec<Arc<Sandbox>> = lock(&self.sandboxes).values().cloned().collect();
            if let Some(made) = all.into_iter().find(|s| lock(&s.record).key.as_ref() == Some(key)) {
                return Ok(made);
            }
        }
        let record = self.fresh(&record::sandbox_name(), &new);
        let (id, intent) = (record.id.clone(), record.intent.clone());
        let identity = Identity {
            project: self.options.project.clone(),
            address: Address::Sandbox(id.clone()),
            owner: self.owner.clone(),
            spec_hash: SpecHash(sha256_hex(new.template.as_bytes())),
            generation: 1,
            intent,
            // Who ends it is this emulator; to others it is in use.
            expires_at: None,
        };
        let sandbox = Sandbox::new(record, Some(std::mem::take(&mut new.env)));
        let held = sandbox.change.lock().await;
        lock(&self.sandboxes).insert(id.clone(), sandbox.clone());
        // Written down before it is made: whatever happens then, the next run finds it by its labels.
        self.save().await?;
        let made = async {
            let provider_id = self.options.provider.create(&new.spec, &identity).await?;
            lock(&sandbox.record).provider_id = Some(provider_id);
            self.furnish(&sandbox).await?;
            Ok(kept::open_volumes(&*self.inside(&sandbox).await?, &new).await?)
        };
        let made = made.await;
        if let Some(key) = &new.key {
            lock(&self.creating).remove(key);
        }
        if let Err(error) = made {
            drop(held);
            self.abandon(&sandbox).await;
            return Err(error);
        }
        {
            // The time it took to make it is not its own.
            let mut record = lock(&sandbox.record);
            record.started_at = self.now();
            record.end_at = after(record.started_at, Duration::from_millis(record.timeout_ms));
        }
        drop(held);
        self.save().await?;
        self.changed.notify_one();
        Ok(sandbox)
    }

    /// Takes away what a create that failed may have left.
    async fn abandon(&self, sandbox: &Arc<Sandbox>) {
        let record = sandbox.record();
        let found = match &record.provider_id {
            Some(id) => Some(id.clone()),
            None => self.listing().await.ok().and_then(|listing| {
                let made = |s: &&ObservedSandbox| s.labels.get(labels::INTENT) == Some(&record.intent.0);
                listing.values().find(made).map(|s| s.id.clone())
            }),
        };
        let gone = match found {
            Some(id) => self.options.provider.delete(&id).await,
            None => Ok(()),
        };
        match gone {
            Ok(()) => {
                lock(&self.sandboxes).remove(&record.id);
            }
            // It ends when its time has come, and that is tried until it succeeds.
            Err(error) => tracing::warn!(sandbox = record.id, %error, "a sandbox could not be removed yet"),
        }
        if let Err(error) = self.save().await {
            tracing::warn!(%error, "the state could not be written");
        }
    }

    /// Puts what a start takes away back in place inside.
    async fn furnish(&self, sandbox: &Sandbox) -> Result<(), CallError> {
        let guest = self.inside(sandbox).await?;
        files::prepare(&*guest).await?;
        let env = lock(&sandbox.env).clone().unwrap_or_default();
        if !env.is_empty() {
            let values = env.iter().map(|(k, v)| (k.clone(), SecretString::from(v.clone()))).collect();
            let bundle = Bundle {
                env: Some(EnvBundle { digest: "emulator".to_owned(), values }),
                ..Bundle::default()
            };
            write_bundle(&*guest, &bundle).await?;
        }
        Ok(())
    }

    /// The inside of a sandbox, running or not.
    async fn inside(&self, sandbox: &Sandbox) -> Result<Arc<dyn Guest>, CallError> {
        if let Some(guest) = lock(&sandbox.guest).clone() {
            return Ok(guest);
        }
        let record = sandbox.record();
        let id = record.provider_id.ok_or(CallError::NotRunning(record.id))?;
        let guest: Arc<dyn Guest> = Arc::from(self.options.provider.guest(&id).await?);
        *lock(&sandbox.guest) = Some(guest.clone());
        Ok(guest)
    }

    /// The inside of a running sandbox, which may be started for it.
    async fn guest(&self, sandbox: &Arc<Sandbox>) -> Result<Arc<dyn Guest>, CallError> {
        let record = sandbox.record();
        if record.paused {
            if !record.auto_resume {
                return Err(CallError::NotRunning(record.id));
            }
            self.resume(sandbox, Duration::from_millis(record.timeout_ms)).await?;
        }
        self.inside(sandbox).await
    }

    /// The environment of everything inside. After a restart of the emulator it is read back from there.
    async fn env(&self, sandbox: &Sandbox) -> Result<Arc<BTreeMap<String, String>>, CallError> {
        if let Some(env) = lock(&sandbox.env).clone() {
            return Ok(env);
        }
        let guest = self.inside(sandbox).await?;
        let env = Arc::new(environment(&*guest).await?);
        Ok(lock(&sandbox.env).get_or_insert(env).clone())
    }

    /// A user inside by name; `None` is who programs run as unless they say otherwise.
    async fn user(
        &self,
        sandbox: &Sandbox,
        guest: &dyn Guest,
        name: Option<&str>,
    ) -> Result<files::User, files::FileError> {
        let key = name.map(str::to_owned);
        if let Some(user) = lock(&sandbox.users).get(&key).cloned() {
            return Ok(user);
        }
        let user = files::user(guest, name).await?;
        lock(&sandbox.users).insert(key, user.clone());
        Ok(user)
    }

    /// What the provider says of a sandbox now; one that is gone there is forgotten here.
    async fn observe(&self, sandbox: &Arc<Sandbox>) -> Result<Record, CallError> {
        let record = sandbox.record();
        let Some(id) = &record.provider_id else { return Ok(record) };
        match self.options.provider.get(id).await? {
            Some(observed) => Ok(self.note(sandbox, &observed)),
            None => {
                self.forget(sandbox).await?;
                Err(CallError::NoSandbox(record.id))
            }
        }
    }

    /// Takes over whether it runs.
    fn note(&self, sandbox: &Sandbox, observed: &ObservedSandbox) -> Record {
        let paused = match observed.state {
            SandboxState::Running | SandboxState::Creating => Some(false),
            SandboxState::Stopped { .. } | SandboxState::Paused | SandboxState::Failed(_) => Some(true),
            SandboxState::Stopping | SandboxState::Deleting => None,
        };
        // One that is being started or stopped knows better.
        if let (Some(paused), Ok(_held)) = (paused, sandbox.change.try_lock()) {
            let mut record = lock(&sandbox.record);
            if record.paused != paused {
                record.paused = paused;
                lock(&sandbox.guest).take();
            }
        }
        sandbox.record()
    }

    async fn forget(&self, sandbox: &Arc<Sandbox>) -> Result<(), StateError> {
        sandbox.quiet();
        let id = sandbox.record().id;
        lock(&self.sandboxes).remove(&id);
        self.save().await
    }

    /// All sandboxes, as the provider shows them in one listing.
    async fn list(&self) -> Result<Vec<Record>, CallError> {
        let all: Vec<Arc<Sandbox>> = lock(&self.sandboxes).values().cloned().collect();
        let listing = self.listing().await?;
        let mut records = Vec::new();
        for sandbox in all {
            let record = sandbox.record();
            // One without an id is being made, and nobody has been told of it.
            let Some(id) = &record.provider_id else { continue };
            match listing.get(id) {
                Some(observed) => records.push(self.note(&sandbox, observed)),
                // A listing may lag; absence is believed of a direct look.
                None => match self.observe(&sandbox).await {
                    Ok(record) => records.push(record),
                    Err(CallError::NoSandbox(_)) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(records)
    }

    /// Deletes a sandbox.
    async fn kill(&self, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let _held = sandbox.change.lock().await;
        let record = sandbox.record();
        // Another call may have been faster.
        self.find(&record.id)?;
        sandbox.quiet();
        if let Some(id) = &record.provider_id {
            self.options.provider.delete(id).await?;
        }
        self.forget(sandbox).await?;
        self.release(&record).await;
        Ok(())
    }

    /// Stops a sandbox; false if it was stopped already.
    async fn pause(&self, sandbox: &Arc<Sandbox>) -> Result<bool, CallError> {
        self.observe(sandbox).await?;
        let _held = sandbox.change.lock().await;
        let record = sandbox.record();
        let id = record.provider_id.ok_or(CallError::NoSandbox(record.id))?;
        if record.paused {
            return Ok(false);
        }
        // What is only in memory inside is gone with the stop.
        self.env(sandbox).await?;
        sandbox.quiet();
        self.options.provider.stop(&id).await?;
        lock(&sandbox.record).paused = true;
        self.save().await?;
        Ok(true)
    }

    /// Starts a stopped sandbox, or lets a running one live longer; true if it was stopped.
    async fn resume(&self, sandbox: &Arc<Sandbox>, timeout: Duration) -> Result<bool, CallError> {
        self.observe(sandbox).await?;
        let held = sandbox.change.lock().await;
        let record = sandbox.record();
        let id = record.provider_id.ok_or(CallError::NoSandbox(record.id))?;
        let now = self.now();
        if record.paused {
            self.options.provider.start(&id).await?;
            {
                let mut record = lock(&sandbox.record);
                record.paused = false;
                record.started_at = now;
                record.end_at = after(now, timeout);
            }
            self.furnish(sandbox).await?;
        } else {
            let mut record = lock(&sandbox.record);
            record.end_at = record.end_at.max(after(now, timeout));
        }
        drop(held);
        self.save().await?;
        self.changed.notify_one();
        Ok(record.paused)
    }

    /// Sets when it ends.
    async fn set_timeout(&self, sandbox: &Arc<Sandbox>, timeout: Duration) -> Result<(), CallError> {
        let record = self.observe(sandbox).await?;
        if record.paused {
            return Err(CallError::NotRunning(record.id));
        }
        lock(&sandbox.record).end_at = after(self.now(), timeout);
        self.save().await?;
        self.changed.notify_one();
        Ok(())
    }

    /// Ends sandboxes when their time has come, for ever.
    async fn expire(self: Arc<Self>) {
        loop {
            let now = self.now();
            let mut next: Option<Timestamp> = None;
            let mut due = Vec::new();
            for sandbox in lock(&self.sandboxes).values() {
                let record = lock(&sandbox.record);
                if record.provider_id.is_none() {
                    continue;
                }
                let Some(at) = record.ends_at() else { continue };
                let at = at.max(lock(&sandbox.retry).unwrap_or_default());
                if at <= now {
                    due.push(sandbox.clone());
                } else {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
            let ends = due.iter().map(|sandbox| self.end(sandbox));
            futures::future::join_all(ends).await;
            if !due.is_empty() {
                continue;
            }
            let pause = next.map_or(LONGEST_SLEEP, |at| Duration::from_millis(at.millis_since(now)));
            tokio::select! {
                () = tokio::time::sleep(pause.min(LONGEST_SLEEP)) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    async fn end(&self, sandbox: &Arc<Sandbox>) {
        let record = sandbox.record();
        let now = self.now();
        // It may have been given more time since.
        if record.ends_at().is_none_or(|at| at > now) {
            return;
        }
        let dies = record.dies_at.is_some_and(|at| at <= now);
        let ended = match record.on_timeout {
            OnTimeout::Pause if !dies => self.pause(sandbox).await.map(drop),
            _ => self.kill(sandbox).await,
        };
        match ended {
            Ok(()) | Err(CallError::NoSandbox(_)) => {}
            Err(error) => {
                tracing::warn!(sandbox = record.id, %error, "a sandbox whose time is over could not be ended");
                *lock(&sandbox.retry) = Some(after(self.now(), RETRY));
            }
        }
    }

    /// Deletes every sandbox and what outlives them, as far as that can be done; what cannot is said and stays in the file.
    async fn remove_all(&self) {
        let all: Vec<Arc<Sandbox>> = lock(&self.sandboxes).values().cloned().collect();
        let kill = |sandbox: Arc<Sandbox>| async move {
            let id = sandbox.record().id;
            match self.kill(&sandbox).await {
                Ok(()) | Err(CallError::NoSandbox(_)) => {}
                Err(error) => tracing::error!(sandbox = id, %error, "a sandbox could not be removed"),
            }
        };
        futures::future::join_all(all.into_iter().map(kill)).await;
        self.remove_kept().await;
    }

    /// Answers requests until `stop`. Then its sandboxes are deleted, unless they are to be kept.
    async fn serve(
        self: Arc<Self>,
        router: axum::Router,
        listener: TcpListener,
        keep: bool,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let expiring = tokio::spawn(self.clone().expire());
        let router = router.layer(axum::middleware::from_fn(unread::told));
        let stopped = stop.clone();
        let served =
            axum::serve(listener, router).with_graceful_shutdown(async move { stopped.cancelled().await });
        let result = tokio::select! {
            ended = async { served.await } => ended,
            () = async { stop.cancelled().await; self.quiet(); tokio::time::sleep(DRAIN).await } => Ok(()),
        };
        expiring.abort();
        if keep {
            self.quiet();
        } else {
            self.remove_all().await;
        }
        result
    }

    /// Ends what this emulator runs inside, and leaves the sandboxes.
    fn quiet(&self) {
        lock(&self.sandboxes).values().for_each(|sandbox| sandbox.quiet());
    }
}

impl Default for NewSandbox {
    fn default() -> Self {
        Self {
            name: None,
            template: "base".to_owned(),
            from_image: false,
            metadata: BTreeMap::new(),
            env: BTreeMap::new(),
            timeout: Duration::from_secs(300),
            on_timeout: OnTimeout::Kill,
            life: None,
            user: None,
            auto_resume: false,
            snapshot: None,
            spec: SandboxSpec::default(),
            private_ports: false,
            key: None,
        }
    }
}

fn after(at: Timestamp, span: Duration) -> Timestamp {
    Timestamp(at.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
}

/// Whether two secrets are the same, in a time that tells nothing of them.
fn same_secret(given: &[u8], wanted: &[u8]) -> bool {
    // Lengths differ in time; digests have one length.
    bool::from(Sha256::digest(given).ct_eq(&Sha256::digest(wanted)))
}
