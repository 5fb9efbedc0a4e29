//! The cloud: decides what a request does, with chance and clock, and lets it take place.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::value::RawValue;

use super::chance::{Chance, Draw};
use super::effect::{Caller, Effect, Entry};
use super::fault::{Operation, SettingError, Settings, StopManner};
use super::guest::Surroundings;
use super::journal::{Journal, JournalError, Receipt};
use super::state::{Phase, Sandbox, State};
use crate::provider::sim::api;

/// The longest name.
const NAME_LIMIT: usize = 512;

/// A refusal: an HTTP status, a word for programs and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The word.
    pub code: &'static str,
    /// The sentence.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn missing(id: &str) -> Self {
        Self::new(404, "not_found", format!("sandbox {id} does not exist"))
    }

    fn state(id: &str, phase: &Phase, wanted: &str) -> Self {
        let state = format!("{:?}", phase.word()).to_lowercase();
        Self::new(409, "wrong_state", format!("sandbox {id} is {state}; {wanted}"))
    }
}

/// What decides a request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub caller: Caller,
    /// Its chance.
    pub draw: Draw,
}

/// The cloud.
#[derive(Debug)]
pub struct Cloud {
    /// Its settings.
    pub settings: Settings,
    chance: Chance,
    state: State,
    journal: Journal,
    entries: u64,
    requests: u64,
    /// What is left of the calls of a second, of each operation and of all together.
    buckets: BTreeMap<Option<Operation>, Bucket>,
    /// What this process was asked.
    asked: BTreeMap<Operation, api::Asked>,
}

/// Calls that may be made at once, and when that was counted.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: i64,
}

impl Cloud {
    /// Opens the cloud that lives in a file, or a new one. What the file says about settings that were changed while it ran is laid over `settings`.
    pub fn open(path: &Path, seed: u64, mut settings: Settings) -> Result<Self, JournalError> {
        let mut state = State::default();
        let (mut entries, mut requests) = (0, 0);
        let journal = Journal::open(path, |line| {
            let entry: Entry = serde_json::from_slice(line)?;
            entries = entry.n;
            requests = entry.by.map_or(requests, |by| by.request.max(requests));
            if let Effect::Settings(changed) = &entry.effect {
                let changed = changed.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                settings.set_all(changed).map_err(<serde_json::Error as serde::de::Error>::custom)?;
            }
            state.apply(entry.at, &entry.effect);
            Ok(())
        })?;
        // Another life draws other chances than the first.
        let chance = Chance::new(seed.wrapping_add(requests));
        let (buckets, asked) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { settings, chance, state, journal, entries, requests, buckets, asked })
    }

    /// Everything that exists.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What tells when everything so far is on the disk.
    pub fn receipt(&self) -> Receipt {
        self.journal.receipt()
    }

    /// The whole history, one entry a line.
    pub fn history(&self) -> Result<Vec<u8>, JournalError> {
        self.journal.read()
    }

    /// A new request, with its chance.
    pub fn request(
        &mut self,
        operation: Operation,
        subject: &str,
        request_id: Option<String>,
        key: Option<String>,
    ) -> Request {
        self.requests += 1;
        self.asked.entry(operation).or_default().calls += 1;
        let draw = self.chance.next(operation.name(), subject);
        Request { caller: Caller { request: self.requests, request_id, idempotency_key: key }, draw }
    }

    /// Whether the rates leave room for one more call.
    pub fn takes(&mut self, operation: Operation, now: i64) -> bool {
        let rates =
            [(None, self.settings.cloud.rate.0), (Some(operation), self.settings.of(operation).rate.0)];
        let rates = rates.into_iter().filter(|(_, rate)| *rate > 0.0);
        let mut left = Vec::new();
        for (of, rate) in rates {
            let most = rate.max(1.0);
            let bucket = self.buckets.entry(of).or_insert(Bucket { left: most, at: now });
            let seconds = now.saturating_sub(bucket.at).max(0) as f64 / 1000.0 * self.settings.cloud.speed.0;
            *bucket = Bucket { left: (bucket.left + seconds * rate).min(most), at: now };
            left.push((of, bucket.left));
        }
        let takes = left.iter().all(|(_, left)| *left >= 1.0);
        for (of, _) in left.into_iter().filter(|_| takes) {
            self.buckets.entry(of).and_modify(|bucket| bucket.left -= 1.0);
        }
        takes
    }

    /// A call is answered with 429.
    pub fn throttled(&mut self, operation: Operation) {
        self.asked.entry(operation).or_default().throttled += 1;
    }

    /// What this process was asked so far, by operation.
    pub fn asked(&self) -> BTreeMap<&'static str, api::Asked> {
        self.asked.iter().map(|(operation, asked)| (operation.name(), *asked)).collect()
    }

    /// Lets everything happen that happens by itself up to `now`.
    pub fn advance(&mut self, now: i64) {
        let destroys = self.settings.cloud.stop == StopManner::Destroy;
        while let Some((at, effect)) = self.state.due(now, destroys) {
            self.commit(at, None, effect);
        }
        self.state.forget_gone(now - self.settings.scaled_duration(self.settings.cloud.lag));
    }

    fn commit(&mut self, at: i64, by: Option<&Caller>, effect: Effect) {
        self.entries += 1;
        let entry = Entry { n: self.entries, at, by: by.cloned(), effect };
        self.state.apply(at, &entry.effect);
        match serde_json::to_vec(&entry) {
            Ok(line) => self.journal.append(line),
            // Names are text and specs are JSON already.
            Err(error) => tracing::error!(%error, "an effect cannot be written"),
        }
    }

    fn transition(&self, operation: Operation, draw: Draw, now: i64) -> i64 {
        let of = self.settings.of(operation);
        let stuck = match draw.happens("stuck", of.stuck.0) {
            true => of.stuck_for.as_millis() as f64,
            false => 0.0,
        };
        now + self.settings.scaled(of.transition.sample(draw, "transition") + stuck)
    }

    /// When a sandbox that runs from `from` on dies, if it does.
    fn death(&self, draw: Draw, from: i64) -> Option<i64> {
        let cloud = &self.settings.cloud;
        let after = || self.settings.scaled(cloud.death_after.sample(draw, "death_after"));
        draw.happens("death", cloud.death.0).then(|| from + after())
    }

    fn sandbox(&self, id: &str) -> Result<&Sandbox, Refusal> {
        self.state.sandboxes.get(id).ok_or_else(|| Refusal::missing(id))
    }

    /// Makes a sandbox, or finds the one that this key made.
    pub fn create(
        &mut self,
        request: &Request,
        now: i64,
        wanted: api::CreateSandbox,
    ) -> Result<(bool, api::Sandbox), Refusal> {
        let key = request.caller.idempotency_key.clone().filter(|_| self.settings.cloud.idempotent_create);
        if let Some(made) = key.as_ref().and_then(|key| self.state.made_by(key)) {
            if *made.spec != *wanted.spec.get() {
                let message = "this idempotency key belongs to a create with another spec";
                return Err(Refusal::new(422, "idempotency_key_reused", message));
            }
            return Ok((false, self.view(made, now)));
        }
        self.check(&wanted.name, &wanted.labels, &wanted.volumes)?;
        let quota = self.settings.cloud.quota;
        if quota > 0 && self.state.sandboxes.len() >= quota {
            return Err(Refusal::new(
                422,
                "quota_exceeded",
                format!("the account may have {quota} sandboxes at once"),
            ));
        }
        let id = self.chance.id("sb-", &wanted.name);
        let until = self.transition(Operation::Create, request.draw, now);
        let cloud = &self.settings.cloud;
        let limits = [Some(cloud.ttl.as_millis()).filter(|ttl| *ttl > 0), wanted.ttl_ms];
        let lives = limits.into_iter().flatten().min();
        let effect = Effect::Created {
            id: id.clone(),
            name: wanted.name,
            labels: wanted.labels,
            spec: wanted.spec,
            volumes: wanted.volumes,
            ports: wanted.ports,
            key,
            until,
            fails: request.draw.happens("fail_create", cloud.fail_create.0),
            dies_at: self.death(request.draw, until),
            expires_at: lives.map(|ms| now.saturating_add(self.settings.scaled(ms as f64))),
        };
        self.commit(now, Some(&request.caller), effect);
        self.advance(now);
        self.get(&id, now).map(|made| (true, made))
    }

    /// Whether names and labels are what this cloud takes, and volumes are there.
    fn check(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        volumes: &[String],
    ) -> Result<(), Refusal> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._~/-".contains(c);
        if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(fine) {
            let message = format!("a name is 1 to {NAME_LIMIT} letters, digits and any of `._~/-`");
            return Err(Refusal::new(422, "invalid", message));
        }
        if !labels.is_empty() && !self.settings.cloud.labels {
            return Err(Refusal::new(422, "invalid", "this cloud has no labels"));
        }
        match volumes.iter().find(|volume| !self.state.volumes.contains_key(*volume)) {
            Some(volume) => Err(Refusal::new(422, "invalid", format!("volume {volume} does not exist"))),
            None => Ok(()),
        }
    }

    /// One sandbox.
    pub fn get(&self, id: &str, now: i64) -> Result<api::Sandbox, Refusal> {
        Ok(self.view(self.sandbox(id)?, now))
    }

    /// A page of the listing: those with all of these labels whose name begins with a prefix.
    pub fn list(
        &self,
        request: &Request,
        now: i64,
        labels: &[(String, String)],
        prefix: &str,
        cursor: &str,
        limit: usize,
    ) -> api::Page<api::Sandbox> {
        let cloud = &self.settings.cloud;
        let limit = limit.clamp(1, cloud.page);
        let lag = self.settings.scaled_duration(cloud.lag);
        // A cloud without the filter does not mind the question.
        let labels = if cloud.label_filter { labels } else { &[] };
        let matches = |s: &&Sandbox| {
            s.name.starts_with(prefix) && labels.iter().all(|(name, value)| s.labels.get(name) == Some(value))
        };
        let mut found = self.state.listed(now, lag, cursor).filter(matches).peekable();
        let page: Vec<&Sandbox> = found.by_ref().take(limit).collect();
        let next = found.peek().and(page.last()).map(|last| last.id().to_owned());
        let lost = request.draw.happens("miss_page", cloud.miss_page.0);
        let items = match lost {
            true => Vec::new(),
            false => page
                .into_iter()
                .map(|s| api::Sandbox { state: s.state_at(now - lag), ..self.view(s, now) })
                .collect(),
        };
        api::Page { items, next }
    }

    fn view(&self, sandbox: &Sandbox, now: i64) -> api::Sandbox {
        let cloud = &self.settings.cloud;
        let offset = cloud.clock_offset.0;
        let spec = cloud.read_back.then(|| RawValue::from_string(sandbox.spec.to_string()).ok()).flatten();
        let listening = sandbox.runs() && sandbox.guest.listens(now);
        let missing = |volume: &&String| {
            let made = self.state.volumes.get(*volume).map(|v| v.created_at);
            made.is_none_or(|made| sandbox.started_at.is_some_and(|started| made > started))
        };
        api::Sandbox {
            id: sandbox.id().to_owned(),
            name: sandbox.name.clone(),
            labels: sandbox.labels.clone(),
            state: sandbox.phase.word(),
            reason: match &sandbox.phase {
                Phase::Stopped { unclean } => unclean.clone(),
                Phase::Failed => Some("the sandbox could not be made".to_owned()),
                _ => None,
            },
            created_at: sandbox.created_at.saturating_add(offset),
            started_at: sandbox.started_at.map(|at| at.saturating_add(offset)),
            spec,
            listening: if listening { sandbox.ports.clone() } else { Vec::new() },
            ports: sandbox.ports.clone(),
            missing_volumes: match sandbox.runs() {
                true => sandbox.volumes.iter().filter(missing).cloned().collect(),
                false => Vec::new(),
            },
        }
    }

    /// Changes name, labels or spec.
    pub fn update(
        &mut self,
        request: &Request,
        now: i64,
        id: &str,
        patch: api::PatchSandbox,
    ) -> Result<api::Sandbox, Refusal> {
        let sandbox = self.sandbox(id)?;
        if matches!(sandbox.phase, Phase::Deleting { .. }) {
            return Err(Refusal::state(id, &sandbox.phase, "it cannot be changed"));
        }
        let empty = BTreeMap::new();
        let volumes = patch.volumes.as_deref().unwrap_or_default();
        self.check(
            patch.name.as_ref().unwrap_or(&sandbox.name),
            patch.labels.as_ref().unwrap_or(&empty),
            volumes,
        )?;
        let labels = patch.labels.map(|over| {
            let mut labels = sandbox.labels.clone();
            labels.extend(over);
            labels
        });
        let effect = Effect::Updated {
            id: id.to_owned(),
            name: patch.name,
            labels,
            spec: patch.spec,
            volumes: patch.volumes,
            ports: patch.ports,
        };
        self.commit(now, Some(&request.caller), effect);
        self.get(id, now)
    }

    /// Starts a stopped sandbox; one that runs or will run is left alone.
    pub fn start(&mut self, request: &Request, now: i64, id: &str) -> Result<api::Sandbox, Refusal> {
        let sandbox = self.sandbox(id)?;
        match &sandbox.phase {
            Phase::Running | Phase::Starting { .. } | Phase::Creating { .. } => {}
            Phase::Stopped { .. } => {
                let until = self.transition(Operation::Start, request.draw, now);
                let dies_at = self.death(request.draw, until);
                self.commit(
                    now,
                    Some(&request.caller),
                    Effect::Starting { id: id.to_owned(), until, dies_at },
                );
                self.advance(now);
            }
            phase => return Err(Refusal::state(id, phase, "it cannot be started now")),
        }
        self.get(id, now)
    }

    /// Stops a running sandbox; one that is stopped is left alone.
    pub fn stop(&mut self, request: &Request, now: i64, id: &str) -> Result<api::Sandbox, Refusal> {
        let sandbox = self.sandbox(id)?;
        match &sandbox.phase {
            Phase::Stopped { .. } | Phase::Stopping { .. } => {}
            Phase::Running => {
                let until = self.transition(Operation::Stop, request.draw, now);
                self.commit(now, Some(&request.caller), Effect::Stopping { id: id.to_owned(), until });
                self.advance(now);
            }
            phase => return Err(Refusal::state(id, phase, "it cannot be stopped now")),
        }
        self.get(id, now)
    }

    /// Deletes a sandbox.
    pub fn delete(&mut self, request: &Request, now: i64, id: &str) -> Result<(), Refusal> {
        let sandbox = self.sandbox(id)?;
        if matches!(sandbox.phase, Phase::Deleting { .. }) {
            return Ok(());
        }
        let refuse = self.settings.cloud.refuse_delete.0;
        // Where deletes are refused at all, they are while something is under way.
        let busy =
            matches!(sandbox.phase, Phase::Creating { .. } | Phase::Starting { .. } | Phase::Stopping { .. });
        if (busy && refuse > 0.0) || request.draw.happens("refuse_delete", refuse) {
            return Err(Refusal::new(409, "busy", format!("sandbox {id} is busy; try again")));
        }
        let until = self.transition(Operation::Delete, request.draw, now);
        self.commit(now, Some(&request.caller), Effect::Deleting { id: id.to_owned(), until });
        self.advance(now);
        Ok(())
    }

    /// Runs a command inside.
    pub fn exec(
        &mut self,
        request: &Request,
        now: i64,
        id: &str,
        exec: &api::Exec,
        stdin: &[u8],
    ) -> Result<api::ExecResult, Refusal> {
        let sandbox = self.sandbox(id)?;
        if !sandbox.runs() {
            return Err(Refusal::state(id, &sandbox.phase, "nothing can be run inside"));
        }
        let around = Surroundings { settings: &self.settings.cloud, draw: request.draw, now };
        let ended = sandbox.guest.exec(&exec.argv, stdin, &around);
        if let Some(change) = ended.change {
            self.commit(now, Some(&request.caller), Effect::Inside { id: id.to_owned(), change });
        }
        let encode = |bytes: Vec<u8>| BASE64_STANDARD.encode(bytes);
        Ok(api::ExecResult { code: ended.code, stdout: encode(ended.stdout), stderr: encode(ended.stderr) })
    }

    /// Whether something listens on a port inside.
    pub fn listens(&self, now: i64, id: &str) -> Result<bool, Refusal> {
        let sandbox = self.sandbox(id)?;
        match sandbox.runs() {
            true => Ok(sandbox.guest.listens(now)),
            false => Err(Refusal::state(id, &sandbox.phase, "no port can be reached")),
        }
    }

    /// A page of the volumes whose name begins with a prefix.
    pub fn volumes(&self, prefix: &str, cursor: &str, limit: usize) -> api::Page<api::Volume> {
        let limit = limit.clamp(1, self.settings.cloud.page);
        let mut found =
            self.all_volumes().filter(|v| v.name.starts_with(prefix) && v.name.as_str() > cursor).peekable();
        let items: Vec<api::Volume> = found.by_ref().take(limit).collect();
        let next = found.peek().and(items.last()).map(|last| last.name.clone());
        api::Page { items, next }
    }

    fn all_volumes(&self) -> impl Iterator<Item = api::Volume> {
        let offset = self.settings.cloud.clock_offset.0;
        self.state.volumes.iter().map(move |(name, volume)| api::Volume {
            name: name.clone(),
            labels: volume.labels.clone(),
            created_at: volume.created_at.saturating_add(offset),
        })
    }

    /// Makes a volume.
    pub fn create_volume(
        &mut self,
        request: &Request,
        now: i64,
        wanted: api::Volume,
    ) -> Result<api::Volume, Refusal> {
        if self.state.volumes.contains_key(&wanted.name) {
            return Err(Refusal::new(
                409,
                "already_exists",
                format!("volume {} already exists", wanted.name),
            ));
        }
        self.check(&wanted.name, &wanted.labels, &[])?;
        let effect = Effect::VolumeCreated { name: wanted.name.clone(), labels: wanted.labels.clone() };
        self.commit(now, Some(&request.caller), effect);
        Ok(api::Volume { created_at: now.saturating_add(self.settings.cloud.clock_offset.0), ..wanted })
    }

    /// Deletes a volume that no sandbox uses.
    pub fn delete_volume(&mut self, request: &Request, now: i64, name: &str) -> Result<(), Refusal> {
        if !self.state.volumes.contains_key(name) {
            return Err(Refusal::new(404, "not_found", format!("volume {name} does not exist")));
        }
        let user = self.state.sandboxes.values().find(|s| s.volumes.iter().any(|v| v == name));
        if let Some(user) = user {
            return Err(Refusal::new(
                409,
                "in_use",
                format!("volume {name} is used by sandbox {}", user.id()),
            ));
        }
        self.commit(now, Some(&request.caller), Effect::VolumeDeleted { name: name.to_owned() });
        Ok(())
    }

    /// Changes settings.
    pub fn set(&mut self, now: i64, changed: BTreeMap<String, String>) -> Result<(), SettingError> {
        self.settings.set_all(changed.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        self.commit(now, None, Effect::Settings(changed));
        Ok(())
    }

    /// What it can do.
    pub fn capabilities(&self) -> api::CloudCapabilities {
        let cloud = &self.settings.cloud;
        api::CloudCapabilities {
            labels: cloud.labels,
            idempotent_create: cloud.idempotent_create,
            read_back: cloud.read_back,
            stop: cloud.stop.to_string(),
            settle_ms: u64::try_from(self.settings.scaled_duration(cloud.lag)).unwrap_or(0),
            concurrency: cloud.concurrency,
        }
    }

    /// Everything that exists, past every fault.
    pub fn inventory(&self, now: i64) -> (Vec<api::Sandbox>, Vec<api::Volume>) {
        let sandboxes = self.state.sandboxes.values();
        let sandboxes = sandboxes
            .map(|s| api::Sandbox {
                spec: RawValue::from_string(s.spec.to_string()).ok(),
                ..self.view(s, now)
            })
            .collect();
        (sandboxes, self.all_volumes().collect())
    }
}
