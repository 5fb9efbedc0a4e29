//! What lives beside the loop: directories kept in step, services followed, logs shown. Each mends itself: a sandbox that is gone is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::OptionFuture;
use tokio::sync::{Notify, mpsc, watch};

use super::{ASLEEP, Trigger, WatchEvent, WatchSink, words};
use crate::app::environment::steady;
use crate::app::{Error, Project, Sandbox};
use crate::guest::{self, Difference, Entries, GuestError, LogOptions, ServiceDefaults, ServiceNews, Synced};
use crate::model::with_causes;
use crate::model::{DesiredFile, FileContent, GuestSpec, OnChange, ServiceStatus, SyncMode, SyncSpec};
use crate::plan::{file_digest, owned_digest};
use crate::provider::{Command, capture};
use crate::watch::{Changes, Debounce, Feedback, Files, Tree, Verdict, git_is_busy};

/// A save is several events; a person does not notice the pause, and a storm is cut at the cap.
const PAUSE: Duration = Duration::from_millis(8);
const CAP: Duration = Duration::from_millis(100);
/// The record inside is completed after such a silence; of a large directory, which takes longer to write, so much later for each entry.
const SETTLE: Duration = Duration::from_millis(300);
const SETTLE_EACH: Duration = Duration::from_micros(30);
/// How long git may keep its lock before its changes are passed on all the same.
const GIT: Duration = Duration::from_secs(10);
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(5);
/// How long a command of `on_change` may take, and how much of what it says is kept.
const EXEC_LIMIT: Duration = Duration::from_secs(600);
const EXEC_OUTPUT: usize = 4096;
/// How many times as long as a look at how things are took it is rested after it, while things happen and while nothing does; and the longest rest
/// while things happen.
const LOOKS_BUSY: u32 = 5;
const LOOKS_IDLE: u32 = 200;
const LOOK_LATEST: Duration = Duration::from_secs(20);
/// Tries in a row with files that change while they are read.
const MAX_TRIES: u32 = 50;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// One thing that lives beside the loop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Task {
    sandbox: String,
    what: What,
    /// What it was started from: with anything else it is another task.
    of: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Sync(usize),
    Services,
    Logs(String),
    Status,
}

impl Task {
    /// Tells how the project is; another one for each manifest.
    pub fn status(generation: u64) -> Self {
        Self { sandbox: String::new(), what: What::Status, of: generation.to_string() }
    }

    /// Everything that lives for one sandbox.
    pub fn all(sandbox: &str, guest: &GuestSpec, logs: bool) -> Vec<Self> {
        let task = |what, of: String| Self { sandbox: sandbox.to_owned(), what, of };
        let mut tasks = Vec::new();
        for (index, spec) in guest.sync.iter().enumerate() {
            // What is shared is in step by itself; only what follows a change is left to do.
            if spec.mode == SyncMode::Bind && spec.on_change.is_none() {
                continue;
            }
            // What is restarted or run on a change is part of it.
            let reaction = match &spec.on_change {
                Some(OnChange::Restart(service)) => format!("{:?}", guest.services.get(service)),
                Some(OnChange::Rebuild) => String::new(),
                _ => format!("{:?} {:?}", guest.user, guest.working_dir),
            };
            tasks.push(task(What::Sync(index), format!("{spec:?} {reaction}")));
        }
        if !guest.services.is_empty() {
            tasks.push(task(What::Services, String::new()));
        }
        if logs {
            tasks.extend(guest.services.keys().map(|name| task(What::Logs(name.clone()), String::new())));
        }
        tasks
    }
}

/// What a task lives on.
pub(super) struct Live<'a> {
    pub project: Arc<Project<'a>>,
    pub guest: GuestSpec,
    pub sink: &'a dyn WatchSink,
    pub triggers: mpsc::UnboundedSender<Trigger>,
    pub applied: watch::Receiver<u64>,
    /// Something changed that is worth a look at how things are.
    pub look: Arc<Notify>,
    /// How often that is looked at anyway.
    pub often: Duration,
}

type Reaction<'a> = Pin<Box<dyn std::future::Future<Output = ()> + 'a>>;

/// Why a directory is not kept in step for the moment.
enum Broken {
    /// Of this side: said once, and tried again.
    Here(String),
    /// The sandbox, which is waited for.
    Inside(GuestError),
}

impl Live<'_> {
    /// Lives until dropped.
    pub async fn run(self, task: Task) {
        match &task.what {
            What::Sync(index) => {
                if let Some(spec) = self.guest.sync.get(*index) {
                    self.sync(&task.sandbox, spec).await;
                }
            }
            What::Services => self.services(&task.sandbox).await,
            What::Logs(service) => self.logs(&task.sandbox, service).await,
            What::Status => self.status().await,
        }
    }

    async fn status(&self) {
        loop {
            let begun = Instant::now();
            // Why it cannot be looked at is what the loop tells.
            if let Ok((status, _)) = self.project.status().await {
                self.sink.watch(&WatchEvent::Status { status: &status });
            }
            // Looking holds every managed file against its hash: the more it costs, the less often it is done. What happens together is
            // looked at together.
            let took = begun.elapsed();
            tokio::time::sleep((took * LOOKS_BUSY).clamp(FIRST_PAUSE, LOOK_LATEST)).await;
            tokio::select! {
                () = self.look.notified() => {}
                () = tokio::time::sleep(self.often.max(took * LOOKS_IDLE)) => {}
            }
        }
    }

    async fn services(&self, name: &str) {
        let mut known: BTreeMap<String, ServiceNews> = BTreeMap::new();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Ok(sandbox) = self.project.sandbox(name).await {
                let mut connected = false;
                let mut hear = |news: ServiceNews| {
                    connected = true;
                    if let Some((message, bad)) = words(known.get(&news.name), &news) {
                        let service = news.name.as_str();
                        self.sink.watch(&WatchEvent::Service {
                            sandbox: name,
                            service,
                            message: &message,
                            bad,
                        });
                    }
                    if news.state == ServiceStatus::Dead {
                        self.trigger(format!("service {name}/{} lost its supervisor", news.name));
                    }
                    known.insert(news.name.clone(), news);
                    self.look.notify_one();
                };
                // Either way the sandbox is not there any more.
                let _ = guest::follow_services(sandbox.guest.as_ref(), &mut hear).await;
                if connected {
                    pause = FIRST_PAUSE;
                    known.clear();
                    self.trigger(format!("sandbox {name} does not answer any more"));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn trigger(&self, why: String) {
        // Nobody listens once it is over.
        let _ = self.triggers.send(Trigger { why, rebuild: None });
    }

    async fn logs(&self, name: &str, service: &str) {
        // What was there before is shown in part, what begins now from its beginning, and nothing twice.
        let mut tail = Some(10);
        let mut pause = FIRST_PAUSE;
        loop {
            match self.project.sandbox(name).await {
                Err(_) if tail == Some(10) => tail = None,
                Err(_) => {}
                Ok(sandbox) => {
                    let Ok(redactor) = sandbox.redactor().await else {
                        tokio::time::sleep(LAST_PAUSE).await;
                        continue;
                    };
                    let mut some = false;
                    let mut sink = |line: guest::LogLine<'_>| {
                        some = true;
                        let mut stream = redactor.stream();
                        let mut text = stream.push(line.text);
                        text.extend(stream.finish());
                        self.sink.log(name, guest::LogLine { text: &text, ..line });
                    };
                    let options = LogOptions { follow: true, tail };
                    let _ =
                        guest::logs(sandbox.guest.as_ref(), &[service.to_owned()], options, &mut sink).await;
                    if some {
                        (tail, pause) = (Some(0), FIRST_PAUSE);
                    } else if tail == Some(10) {
                        tail = None;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn sync(&self, name: &str, spec: &SyncSpec) {
        let mut said = String::new();
        // What of the host `on_change` has followed; at first it is what was brought.
        let mut seen = None;
        loop {
            let Err(broken) = self.keep_in_step(name, spec, &mut said, &mut seen).await;
            let message = match &broken {
                Broken::Here(message) => message.clone(),
                Broken::Inside(error) => with_causes(error),
            };
            let unreachable = matches!(broken, Broken::Inside(GuestError::Unreachable { .. }));
            if !unreachable && said != message {
                self.sink.watch(&WatchEvent::SyncFailed { sandbox: name, to: &spec.to, message: &message });
                said = message;
            }
            tokio::time::sleep(LAST_PAUSE / 2).await;
        }
    }

    /// The sandbox, once it has what a run of the loop put there, and what that is; nothing is put into a shared directory.
    async fn attach(&self, name: &str, spec: &SyncSpec) -> (Sandbox, Entries) {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Ok(sandbox) = self.project.sandbox(name).await {
                if spec.mode == SyncMode::Bind {
                    return (sandbox, Entries::new());
                }
                match guest::synced(sandbox.guest.as_ref(), &spec.to).await {
                    Ok(Synced::Settled(entries)) => return (sandbox, entries),
                    // A run had its chance to settle it.
                    Ok(Synced::Unsettled(entries)) if *self.applied.borrow() > 0 => {
                        return (sandbox, entries);
                    }
                    _ => {}
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn keep_in_step(
        &self,
        name: &str,
        spec: &SyncSpec,
        said: &mut String,
        seen: &mut Option<Entries>,
    ) -> Result<Infallible, Broken> {
        let here = |error: crate::watch::WatchError| Broken::Here(with_causes(&error));
        let mut host = Host {
            tree: Tree::new(spec.from.clone(), Some(spec.ignore.clone())),
            files: Files::new().map_err(here)?,
        };
        let news = host.files.news();
        let mut feedback = Feedback::default();
        let mut applied = self.applied.clone();
        loop {
            applied.mark_unchanged();
            let (sandbox, mut inside) = self.attach(name, spec).await;
            if spec.on_change == Some(OnChange::Rebuild) {
                // Whatever a new sandbox writes as it begins is in consequence of the rebuild.
                feedback.began(Instant::now());
            }
            let (guest, to) = (sandbox.guest.as_ref(), spec.to.as_str());
            let owner = sandbox.image.owner(self.guest.user.as_deref());
            let mut reaction: Option<Reaction<'_>> = None;
            let mut react_again: Option<String> = None;
            let mut settled = true;
            let mut tries = 0;
            let mut cause = Cause::Said("it differed");
            let mut heard = Instant::now();
            loop {
                let begun = Instant::now();
                while git_is_busy(host.tree.root()) && begun.elapsed() < GIT {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                host = host.look().await?;
                let entries = host.tree.entries();
                let reacted_to = seen.get_or_insert_with(|| match spec.mode {
                    SyncMode::Copy => inside.clone(),
                    SyncMode::Bind => entries.clone(),
                });
                let difference = match spec.mode {
                    SyncMode::Copy => Difference::between(&inside, entries),
                    SyncMode::Bind => Difference::default(),
                };
                if !difference.is_empty() {
                    let paths = difference.paths();
                    match guest::sync(
                        guest,
                        host.tree.root(),
                        to,
                        &difference,
                        entries,
                        None,
                        owner.as_deref(),
                    )
                    .await
                    {
                        Ok(()) => {
                            (settled, tries) = (false, 0);
                            said.clear();
                            let elapsed_ms = millis(heard.elapsed());
                            let (changes, why) = (paths.len(), cause.of(&paths));
                            self.sink.watch(&WatchEvent::Synced {
                                sandbox: name,
                                to,
                                changes,
                                why: &why,
                                elapsed_ms,
                            });
                            difference.apply(&mut inside, entries);
                        }
                        // A file changed while it was read: its next state is on its way.
                        Err(GuestError::Unsupported(_) | GuestError::Io { .. }) if tries < MAX_TRIES => {
                            tries += 1;
                            let root = host.tree.root().to_owned();
                            let paths: Vec<_> = paths.into_iter().map(|path| root.join(path)).collect();
                            paths.iter().for_each(|path| {
                                host.tree.mark(path);
                            });
                            tokio::time::sleep(PAUSE * tries).await;
                            continue;
                        }
                        Err(error) => return Err(Broken::Inside(error)),
                    }
                }
                if let Some(on_change) = &spec.on_change {
                    // What is brought again since the record inside was lost or unfinished is no change.
                    let news = Difference::between(reacted_to, host.tree.entries());
                    let paths = news.paths();
                    let why = cause.of(&paths);
                    let verdict = (!paths.is_empty()).then(|| feedback.changed(&paths, Instant::now()));
                    match verdict {
                        None | Some(Verdict::Looping) => {}
                        Some(Verdict::React) if reaction.is_some() => react_again = Some(why),
                        Some(Verdict::React) => {
                            reaction = Some(Box::pin(self.react(&sandbox, on_change, why)));
                        }
                        Some(Verdict::LoopFound(path)) => {
                            let what = described(on_change);
                            self.sink.watch(&WatchEvent::Loop { sandbox: name, path: &path, what: &what });
                        }
                    }
                    news.apply(reacted_to, host.tree.entries());
                }
                let since = steady();
                tokio::select! {
                    () = news.wait() => {
                        heard = Instant::now();
                        let mut debounce = Debounce::new(PAUSE, CAP);
                        debounce.note(heard);
                        let mut changes = news.take();
                        while let Some(due) = debounce.due() {
                            tokio::select! {
                                biased;
                                () = tokio::time::sleep_until(due.into()) => break,
                                () = news.wait() => {
                                    let more = news.take();
                                    changes.lost |= more.lost;
                                    changes.paths.extend(more.paths);
                                    debounce.note(Instant::now());
                                }
                            }
                        }
                        cause = host.mark(&changes);
                    }
                    Some(()) = OptionFuture::from(reaction.as_mut()) => {
                        feedback.reacted(Instant::now());
                        reaction = react_again.take().zip(spec.on_change.as_ref()).map(|(why, on)| Box::pin(self.react(&sandbox, on, why)) as Reaction<'_>);
                    }
                    changed = applied.changed() => match changed {
                        // A run may have written there itself: what is inside is read again.
                        Ok(()) => break,
                        Err(_) => std::future::pending().await,
                    },
                    () = tokio::time::sleep(settle(&inside)), if !settled => {
                        let content = FileContent::Tree {
                            path: spec.from.clone(),
                            sha256: host.tree.sha256(),
                            ignore: Some(spec.ignore.clone()),
                        };
                        let digest = file_digest(&DesiredFile { content, mode: None });
                        let digest = owned_digest(digest, self.guest.user.as_deref());
                        let (root, none) = (host.tree.root(), Difference::default());
                        guest::sync(guest, root, to, &none, &inside, Some(&digest), None)
                            .await
                            .map_err(Broken::Inside)?;
                        settled = true;
                    }
                    () = tokio::time::sleep(TICK) => {
                        if steady().millis_since(since) > ASLEEP {
                            cause = Cause::Said("the machine was asleep");
                            host.tree.mark_all();
                        }
                    }
                }
            }
            // What was begun is finished before what is inside is read again.
            if let Some(reaction) = reaction {
                reaction.await;
                feedback.reacted(Instant::now());
            }
        }
    }

    async fn react(&self, sandbox: &Sandbox, on_change: &OnChange, why: String) {
        let begun = Instant::now();
        let what = described(on_change);
        if *on_change == OnChange::Rebuild {
            // The loop plans it, asks where data is at risk, and tells how it went.
            let why = format!("{why}, rebuild {}", sandbox.name);
            let _ = self.triggers.send(Trigger { rebuild: Some((sandbox.id.clone(), why.clone())), why });
            return;
        }
        let failure = match self.carry_out(sandbox, on_change).await {
            Ok(failure) => failure,
            Err(error) => Some(with_causes(&error)),
        };
        self.sink.watch(&WatchEvent::Reacted {
            sandbox: &sandbox.name,
            what: &what,
            why: &why,
            failure: failure.as_deref(),
            elapsed_ms: millis(begun.elapsed()),
        });
    }

    /// Does it; gives what went wrong as the command itself says it.
    async fn carry_out(&self, sandbox: &Sandbox, on_change: &OnChange) -> Result<Option<String>, Error> {
        let guest = sandbox.guest.as_ref();
        match on_change {
            OnChange::Restart(service) => {
                let declared = sandbox.image.complete(&self.guest);
                let Some(spec) = declared.services.get(service) else { return Ok(None) };
                let env = guest::environment(guest).await?;
                let defaults = ServiceDefaults {
                    user: declared.user.as_deref(),
                    working_dir: declared.working_dir.as_deref(),
                };
                let known = guest::restart_service(guest, service, spec, &env, defaults).await?;
                Ok((!known).then(|| "it was not started yet".to_owned()))
            }
            OnChange::Exec(argv) => {
                let mut command = Command::new(argv.iter().cloned());
                command.timeout = Some(EXEC_LIMIT);
                let command = sandbox.command(command).await?;
                let output = capture(guest, &command, &[], EXEC_OUTPUT).await?;
                if output.status.success() {
                    return Ok(None);
                }
                let said = [output.stdout, output.stderr].concat();
                let said = sandbox.redactor().await?.redact(String::from_utf8_lossy(&said).trim_end());
                Ok(Some(format!("{}\n{said}", output.status).trim_end().to_owned()))
            }
            OnChange::Rebuild => Ok(None),
        }
    }
}

fn settle(inside: &Entries) -> Duration {
    SETTLE + SETTLE_EACH * u32::try_from(inside.len()).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn described(on_change: &OnChange) -> String {
    match on_change {
        OnChange::Restart(service) => format!("restart {service}"),
        OnChange::Exec(argv) => format!("exec {}", argv.join(" ")),
        OnChange::Rebuild => "rebuild".to_owned(),
    }
}

/// The host's side.
struct Host {
    tree: Tree,
    files: Files,
}

impl Host {
    async fn look(mut self) -> Result<Self, Broken> {
        if !self.tree.is_dirty() {
            return Ok(self);
        }
        let looking = tokio::task::spawn_blocking(move || {
            let looked = self.tree.look(&mut self.files);
            looked.map(|()| self)
        });
        match looking.await {
            Ok(looked) => looked.map_err(|error| Broken::Here(with_causes(&error))),
            Err(error) => Err(Broken::Here(error.to_string())),
        }
    }

    /// Marks what changed.
    fn mark(&mut self, changes: &Changes) -> Cause {
        if changes.lost {
            self.tree.mark_all();
            return Cause::Said("file events were lost");
        }
        let mut heard = BTreeMap::new();
        for (path, what) in &changes.paths {
            self.tree.mark(path);
            let below = path.strip_prefix(self.tree.root()).unwrap_or(path).to_string_lossy().into_owned();
            heard.insert(below, *what);
        }
        Cause::Heard(heard)
    }
}

/// Why a directory was looked at.
enum Cause {
    /// This.
    Said(&'static str),
    /// What happened to these paths.
    Heard(BTreeMap<String, &'static str>),
}

impl Cause {
    /// Why these paths changed: of what was left out nothing is said.
    fn of(&self, paths: &BTreeSet<&str>) -> String {
        match self {
            Self::Said(why) => (*why).to_owned(),
            Self::Heard(heard) => {
                let known = paths.iter().find_map(|path| Some(format!("{path} {}", heard.get(*path)?)));
                known.unwrap_or_else(|| format!("{} changed", paths.first().copied().unwrap_or_default()))
            }
        }
    }
}
