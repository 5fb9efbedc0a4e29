//! The long-running mode for repositories: follows sources and keeps every project of them as its last good revision says.
//!
//! One task has the queues, of looks at sources, of projects and of news for each receiver, and all the work on their keys, which is mostly waiting
//! for others. A source that several entries share is looked at once. What must survive the process (the last good revision of each project) is in the store, files are in
//! checkouts named by their content, and the journal of `apply` does the rest: a controller that was killed goes on where it was. Two
//! controllers on one store take turns by the lease of each project.

mod config;
mod metrics;
mod notify;
mod project;
mod source;
mod status;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;

pub use config::{
    Account, Allow, Config, ConfigError, Git, Override, Projects, Retry, Settings, Source, Webhook,
};
pub use notify::{CommitStatus, Forge, NewsState, Notify, NotifyUrl, NotifyWebhook};
pub use status::{ControlledStatus, ControllerStatus, NotifyStatus, Phase, SourceStatus};
pub use window::{Window, WindowError};

use super::environment::steady;
use super::{App, Error};
use crate::gitops::{Checkouts, Found};
use crate::model::{Health, Sync, Timestamp};
use crate::reconcile::Backoff;
use crate::reconcile::execute::Cancel;
use crate::reconcile::queue::{Ended, Queue};
use crate::secret::{self, SecretErrors, SecretValue};
use crate::store::Controlled;
use metrics::{Health as HealthLabel, Kind, Metrics};
use notify::{Delivery, NO_MORE, News, NoteKey, Notes, TRIES};
use source::Feed;

/// How many sources are looked at at once.
const LOOKS: usize = 4;
/// How many things one receiver is told at once.
const TELLS: usize = 2;
/// The loop turns at least this often, so that one that hangs can be told.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A loop that did not turn for this long hangs.
const HANGS: u64 = 60_000;
/// How often checkouts that nobody uses are looked for.
const PRUNE: u64 = 600_000;

/// A project: the name of its source and its directory there.
type Key = (String, String);

/// A controller.
pub struct Controller {
    app: App,
    config: Config,
    feeds: Vec<Feed>,
    secrets: BTreeMap<String, SecretValue>,
    mirrors: PathBuf,
    checkouts: Checkouts,
    metrics: Metrics,
    state: Mutex<State>,
    triggers: mpsc::UnboundedSender<usize>,
    triggered: Mutex<Option<mpsc::UnboundedReceiver<usize>>>,
}

#[derive(Default)]
struct State {
    sources: BTreeMap<String, SourceState>,
    projects: BTreeMap<Key, ProjectState>,
    notes: Notes,
    /// When the loop last turned.
    turned: Timestamp,
}

#[derive(Default)]
struct SourceState {
    revision: Option<String>,
    message: String,
    looked_at: Option<Timestamp>,
    looked: bool,
}

/// What is known of one project.
struct ProjectState {
    /// What the newest revision has; `None` until the source was looked at.
    newest: Option<(String, Found)>,
    /// The source does not have it any more.
    gone: bool,
    /// The tree that cannot be used, so that it is not tried over and over.
    bad: Option<String>,
    /// The last good revision.
    good: Option<Controlled>,
    /// Counts what was asked of it.
    generation: u64,
    /// What there is to tell others of it.
    news: Option<News>,
    /// Counts its changes.
    news_number: u64,
    status: ControlledStatus,
}

impl ProjectState {
    fn new(path: &str) -> Self {
        Self {
            newest: None,
            gone: false,
            bad: None,
            good: None,
            generation: 0,
            news: None,
            news_number: 0,
            status: ControlledStatus::new(path),
        }
    }

    /// This is the last good revision from now on.
    fn take(&mut self, record: Controlled) {
        self.bad = None;
        let status = &mut self.status;
        // What was measured was measured against the revision before.
        status.sync = Sync::OutOfSync;
        status.project = Some(record.project.clone());
        status.revision = Some(record.revision.clone()).filter(|revision| !revision.is_empty());
        status.diagnostics.clear();
        self.good = Some(record);
    }
}

/// News for one receiver. One that does not answer holds up no other.
struct Receiver {
    queue: Queue<NoteKey, ()>,
    telling: usize,
}

impl Receiver {
    /// What it is told next, with the number of tries so far.
    fn next(&mut self, now: Timestamp) -> Option<(NoteKey, u32)> {
        if self.telling >= TELLS {
            return None;
        }
        let note = self.queue.start_next(now)?.key;
        self.telling += 1;
        let tries = self.queue.failures(&note);
        Some((note, tries))
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.queue.next_due().filter(|_| self.telling < TELLS)
    }

    fn done(&mut self, note: &NoteKey, ended: Ended, now: Timestamp) {
        self.telling -= 1;
        self.queue.finish(note, now, ended, chance());
        if matches!(ended, Ended::Converged { .. }) {
            self.queue.forget(note);
        }
    }
}

/// Asks for receivers to be told.
fn ask(receivers: &mut BTreeMap<(String, usize), Receiver>, news: Vec<(NoteKey, u64)>, now: Timestamp) {
    for (note, number) in news {
        let receiver = receivers
            .entry((note.0.0.clone(), note.1))
            .or_insert_with(|| Receiver { queue: Queue::new(TRIES), telling: 0 });
        receiver.queue.request(note, (), number, now);
    }
}

/// What a worker hands back.
enum Done {
    Look(usize, Ended, Vec<Key>),
    Project(Key, Ended),
    Tell(NoteKey, Ended),
}

impl Controller {
    /// A controller of these sources.
    ///
    /// # Errors
    /// Secrets of webhooks without a value; what the store answers.
    pub async fn new(app: App, config: Config) -> Result<Arc<Self>, Error> {
        let hooks = config
            .sources
            .iter()
            .filter_map(|s| Some((s.name.clone(), s.webhook.as_ref()?.secret.clone())))
            .collect();
        let secrets = secret::resolve_all(&hooks, &app.environment().vars, &app.vault_for(&hooks).await?)
            .await
            .map_err(|e: SecretErrors| Error::Secrets(e))?
            .values;
        let mut state = State { turned: steady(), ..State::default() };
        for source in &config.sources {
            state.sources.insert(source.name.clone(), SourceState::default());
        }
        for record in app.store().await?.controlled().await? {
            // A source that is not followed any more has projects that stay as they are.
            if state.sources.contains_key(&record.source) {
                let key = (record.source.clone(), record.path.clone());
                let project = state.projects.entry(key).or_insert_with(|| ProjectState::new(&record.path));
                project.status.project = Some(record.project.clone());
                project.status.revision = Some(record.revision.clone());
                project.good = Some(record);
            }
        }
        let told = app.store().await?.notified().await?;
        let root = app.environment().directories.data.join("gitops");
        let (triggers, triggered) = mpsc::unbounded_channel();
        let controller = Arc::new(Self {
            feeds: source::feeds(&config)?,
            secrets,
            mirrors: root.join("mirrors"),
            checkouts: Checkouts::new(root.join("checkouts")),
            metrics: Metrics::new(),
            state: Mutex::new(state),
            triggers,
            triggered: Mutex::new(Some(triggered)),
            app,
            config,
        });
        controller.remember_told(told);
        Ok(controller)
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The secret that webhooks of a source are signed with, if it takes any.
    pub fn webhook_secret(&self, source: &str) -> Option<&SecretValue> {
        self.secrets.get(source)
    }

    /// Looks at a source now. False if there is no such source.
    pub fn trigger(&self, source: &str) -> bool {
        let feed = self.feeds.iter().position(|feed| feed.sources.iter().any(|name| name == source));
        // Nobody listens once the loop has ended.
        feed.is_some_and(|feed| self.triggers.send(feed).is_ok())
    }

    /// Works until it is called off; then running steps are finished, and it returns.
    ///
    /// # Errors
    /// [`Error::Refused`] if it runs already.
    pub async fn run(self: &Arc<Self>, cancel: &Cancel) -> Result<(), Error> {
        let taken = self.triggered.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut triggered) = taken else {
            return Err(Error::Refused { message: "this controller runs already".to_owned() });
        };
        let backoff = backoff(self.config.retry);
        let mut looks: Queue<usize, usize> = Queue::new(backoff);
        let mut projects: Queue<Key, String> = Queue::new(backoff);
        let mut receivers: BTreeMap<(String, usize), Receiver> = BTreeMap::new();
        let mut workers: FuturesUnordered<LocalBoxFuture<'_, Done>> = FuturesUnordered::new();
        let (mut looking, mut working) = (0, 0);
        let mut generation = 0;
        let mut pruned = steady();
        for feed in 0..self.feeds.len() {
            looks.request(feed, feed, 0, steady());
        }
        let known: Vec<Key> = self.state().projects.keys().cloned().collect();
        for key in known {
            projects.request(key.clone(), key.0, 0, steady());
        }
        loop {
            let now = steady();
            self.state().turned = now;
            while looking < LOOKS
                && let Some(started) = looks.start_next(now)
            {
                looking += 1;
                let feed = started.key;
                let work = AssertUnwindSafe(self.look(feed)).catch_unwind();
                let done = work.map(move |done| {
                    let (ended, changed) = done.unwrap_or_else(|_| (self.defect(), Vec::new()));
                    Done::Look(feed, ended, changed)
                });
                workers.push(done.boxed_local());
            }
            while working < self.config.parallelism
                && let Some(started) = projects.start_next(now)
            {
                working += 1;
                self.metrics.latency.observe(seconds(started.latency_ms));
                let key = started.key;
                workers.push(Box::pin(async move {
                    let work = AssertUnwindSafe(self.reconcile(&key, cancel)).catch_unwind();
                    let ended = work.await.unwrap_or_else(|_| self.defect());
                    Done::Project(key, ended)
                }));
            }
            for receiver in receivers.values_mut() {
                while let Some((note, tries)) = receiver.next(now) {
                    workers.push(Box::pin(async move {
                        let work = AssertUnwindSafe(self.tell(&note, tries)).catch_unwind();
                        // What is not told now is told after the next start.
                        let done = tokio::select! {
                            done = work => done,
                            () = cancel.graceful.cancelled() => Ok(Delivery::Again(None)),
                        };
                        let ended = match done {
                            Ok(Delivery::Told | Delivery::GivenUp) => Ended::Converged { resync: NO_MORE },
                            Ok(Delivery::Again(retry_after)) => Ended::Failed { retry_after },
                            Err(_) => self.defect(),
                        };
                        Done::Tell(note, ended)
                    }));
                }
            }
            self.metrics.depth.set(i64::try_from(projects.depth(now)).unwrap_or(i64::MAX));
            if now.millis_since(pruned) > PRUNE {
                pruned = now;
                self.prune().await;
            }
            let next_look = looks.next_due().filter(|_| looking < LOOKS);
            let next_project = projects.next_due().filter(|_| working < self.config.parallelism);
            let next_note = receivers.values().filter_map(Receiver::next_due).min();
            let next = next_look.into_iter().chain(next_project).chain(next_note).min();
            let pause =
                next.map_or(HEARTBEAT, |at| Duration::from_millis(at.millis_since(now)).min(HEARTBEAT));
            tokio::select! {
                () = cancel.graceful.cancelled() => break,
                Some(feed) = triggered.recv() => {
                    generation += 1;
                    looks.request(feed, feed, generation, steady());
                }
                Some(done) = workers.next(), if !workers.is_empty() => match done {
                    Done::Look(feed, ended, changed) => {
                        looking -= 1;
                        looks.finish(&feed, steady(), ended, chance());
                        let names = self.feeds.get(feed).map(|feed| feed.sources.as_slice()).unwrap_or_default();
                        let gone = names.iter().flat_map(|name| self.vanished(name));
                        gone.for_each(|key| ask(&mut receivers, self.untold(&key), steady()));
                        for key in changed {
                            let generation = self.state().projects.get(&key).map_or(0, |project| project.generation);
                            projects.request(key.clone(), key.0, generation, steady());
                        }
                    }
                    Done::Project(key, ended) => {
                        working -= 1;
                        let retry = self.settings(&key).map_or(self.config.retry, |settings| settings.retry);
                        projects.finish_with(&key, steady(), ended, chance(), self::backoff(retry));
                        if !self.state().projects.contains_key(&key) {
                            projects.forget(&key);
                        }
                        ask(&mut receivers, self.untold(&key), steady());
                    }
                    Done::Tell(note, ended) => {
                        if let Some(receiver) = receivers.get_mut(&(note.0.0.clone(), note.1)) {
                            receiver.done(&note, ended, steady());
                        }
                        // What became news while the last was told.
                        if matches!(ended, Ended::Converged { .. }) {
                            let mut more = self.untold(&note.0);
                            more.retain(|(other, _)| *other == note);
                            ask(&mut receivers, more, steady());
                        }
                    }
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
        while workers.next().await.is_some() {}
        Ok(())
    }

    /// A worker panicked: a mistake of ours that must not take the others along.
    fn defect(&self) -> Ended {
        self.metrics.error("defect");
        tracing::error!("a worker panicked; this is a defect of pocketenv, and its work is tried again");
        Ended::Failed { retry_after: None }
    }

    async fn prune(&self) {
        let used: BTreeSet<PathBuf> = {
            let state = self.state();
            let manifests = state.projects.values().filter_map(|project| project.good.as_ref());
            manifests.filter_map(|good| Some(PathBuf::from(&good.manifest).parent()?.to_owned())).collect()
        };
        let checkouts = self.checkouts.clone();
        let done = tokio::task::spawn_blocking(move || checkouts.prune(&used)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!(%error, "old checkouts stay");
        }
    }

    /// The status of everything that is followed.
    pub fn status(&self) -> ControllerStatus {
        let state = self.state();
        let sources: Vec<SourceStatus> = self
            .config
            .sources
            .iter()
            .map(|source| {
                let known = state.sources.get(&source.name);
                let projects = state.projects.iter().filter(|((name, _), _)| *name == source.name);
                SourceStatus {
                    name: source.name.clone(),
                    from: source::from(source),
                    reference: source
                        .git
                        .as_ref()
                        .and_then(|git| git.remote().ok())
                        .map(|remote| remote.reference().to_string()),
                    revision: known.and_then(|known| known.revision.clone()),
                    message: known.map(|known| known.message.clone()).unwrap_or_default(),
                    looked_at: known.and_then(|known| known.looked_at),
                    projects: projects.map(|(_, project)| project.status.clone()).collect(),
                    notify: self.notify_status(&state, source),
                }
            })
            .collect();
        let unseen = sources.iter().any(|source| source.looked_at.is_none() || !source.message.is_empty());
        let all = || sources.iter().flat_map(|source| &source.projects);
        let sync = all()
            .map(|project| project.sync)
            .chain(unseen.then_some(Sync::Unknown))
            .max()
            .unwrap_or(Sync::Synced);
        let health = all().map(|project| project.health).max().unwrap_or(Health::Healthy);
        ControllerStatus { format_version: "1.0", sync, health, sources }
    }

    /// The numbers, in the text form of Prometheus.
    pub fn metrics(&self) -> String {
        let mut sandboxes: BTreeMap<String, u64> = BTreeMap::new();
        let mut phases: BTreeMap<String, i64> = BTreeMap::new();
        for project in self.state().projects.values() {
            *phases.entry(format!("{:?}", project.status.phase)).or_default() += 1;
            for (health, count) in &project.status.sandboxes {
                *sandboxes.entry(health.clone()).or_default() += count;
            }
        }
        self.metrics.projects.clear();
        self.metrics.sandboxes.clear();
        for (kind, count) in phases {
            self.metrics.projects.get_or_create(&Kind { kind }).set(count);
        }
        for (state, count) in sandboxes {
            self.metrics
                .sandboxes
                .get_or_create(&HealthLabel { state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.metrics.text()
    }

    /// Whether the loop turns.
    pub fn is_alive(&self) -> bool {
        steady().millis_since(self.state().turned) < HANGS
    }

    /// Whether every source was looked at since the start, successfully or not.
    pub fn is_ready(&self) -> bool {
        self.state().sources.values().all(|source| source.looked)
    }

    /// The date, for others to read; pauses go by [`steady`].
    fn now(&self) -> Timestamp {
        self.app.environment().clock.now()
    }

    /// The state is plain data, whole at every moment, so that a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&self, name: &str) -> Option<&Source> {
        self.config.sources.iter().find(|source| source.name == name)
    }

    fn settings(&self, (source, path): &Key) -> Option<Settings> {
        Some(self.config.settings(self.source(source)?, path))
    }
}

/// Pauses after failures; nothing is given up.
fn backoff(retry: Retry) -> Backoff {
    Backoff { initial: retry.initial.into(), max: retry.max.into(), retries: u32::MAX }
}

/// A tenth less, by chance, so that what starts together does not stay together.
fn jittered(pause: crate::model::Duration) -> Duration {
    let pause = Duration::from(pause);
    pause - pause.mul_f64(f64::from(chance()) / f64::from(u32::MAX) / 10.0)
}

fn chance() -> u32 {
    // Without chance all come at the same time, which is no reason to stop.
    getrandom::u32().unwrap_or(0)
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_by_a_tenth_at_most() {
        let minute = crate::model::Duration::from_secs(60);
        let pauses: Vec<Duration> = (0..1000).map(|_| jittered(minute)).collect();
        assert!(pauses.iter().all(|p| (Duration::from_secs(54)..=Duration::from_secs(60)).contains(p)));
        // By chance alone, less than one in 10^45 times are all of a thousand in the same half.
        let half = Duration::from_secs(57);
        assert!(pauses.iter().any(|p| *p < half) && pauses.iter().any(|p| *p > half));
    }
}
