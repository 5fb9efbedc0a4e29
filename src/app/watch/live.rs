//! What lives beside the loop: directories kept in step, services followed, logs shown. Each mends itself: a sandbox that is gone is waited for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::OptionFuture;
use tokio::sync::{mpsc, watch};

use super::{WatchEvent, WatchSink, words};
use crate::app::{Error, Project, Sandbox};
use crate::guest::{self, Difference, Entries, GuestError, LogOptions, ServiceDefaults, ServiceNews, Synced};
use crate::model::{DesiredFile, FileContent, GuestSpec, OnChange, ServiceStatus, SyncSpec};
use crate::plan::file_digest;
use crate::provider::{Command, capture};
use crate::reconcile::observe::with_causes;
use crate::watch::{Changes, Debounce, Feedback, Files, Tree, Verdict, git_is_busy};

/// A save is several events; a person does not notice the pause, and a storm is cut at the cap.
const PAUSE: Duration = Duration::from_millis(8);
const CAP: Duration = Duration::from_millis(100);
/// The record inside is completed after such a silence.
const SETTLE: Duration = Duration::from_millis(300);
/// How long git may keep its lock before its changes are passed on all the same.
const GIT: Duration = Duration::from_secs(10);
/// How often the clock is looked at, and how much later than that it is after a sleep of the machine.
const TICK: Duration = Duration::from_secs(5);
const ASLEEP: Duration = Duration::from_secs(5);
/// How long a command of `on_change` may take, and how much of what it says is kept.
const EXEC_LIMIT: Duration = Duration::from_secs(600);
const EXEC_OUTPUT: usize = 4096;
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
}

impl Task {
    /// Everything that lives for one sandbox.
    pub fn all(sandbox: &str, guest: &GuestSpec, logs: bool) -> Vec<Self> {
        let task = |what, of: String| Self { sandbox: sandbox.to_owned(), what, of };
        let mut tasks = Vec::new();
        for (index, spec) in guest.sync.iter().enumerate() {
            // What is restarted or run on a change is part of it.
            let reaction = match &spec.on_change {
                Some(OnChange::Restart(service)) => format!("{:?}", guest.services.get(service)),
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
    pub triggers: mpsc::UnboundedSender<String>,
    pub applied: watch::Receiver<u64>,
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
        let _ = self.triggers.send(why);
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
        loop {
            let Err(broken) = self.keep_in_step(name, spec, &mut said).await;
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

    /// The sandbox, once it has what a run of the loop put there.
    async fn attach(&self, name: &str, spec: &SyncSpec) -> (Sandbox, Entries) {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Ok(sandbox) = self.project.sandbox(name).await {
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
            let (guest, to) = (sandbox.guest.as_ref(), spec.to.as_str());
            let mut reaction: Option<Reaction<'_>> = None;
            let mut react_again = false;
            let mut settled = true;
            let mut tries = 0;
            let mut why = "it differed".to_owned();
            let mut heard = Instant::now();
            loop {
                let begun = Instant::now();
                while git_is_busy(host.tree.root()) && begun.elapsed() < GIT {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                host = host.look().await?;
                let difference = Difference::between(&inside, host.tree.entries());
                if !difference.is_empty() {
                    let paths = difference.paths();
                    match guest::sync(guest, host.tree.root(), to, &inside, host.tree.entries(), None).await {
                        Ok(()) => {
                            (settled, tries) = (false, 0);
                            said.clear();
                            let elapsed_ms = u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX);
                            let changes = paths.len();
                            self.sink.watch(&WatchEvent::Synced {
                                sandbox: name,
                                to,
                                changes,
                                why: &why,
                                elapsed_ms,
                            });
                            if let Some(on_change) = &spec.on_change {
                                match feedback.changed(&paths, Instant::now()) {
                                    Verdict::React if reaction.is_some() => react_again = true,
                                    Verdict::React => {
                                        reaction = Some(Box::pin(self.react(&sandbox, on_change)))
                                    }
                                    Verdict::LoopFound(path) => {
                                        let what = described(on_change);
                                        self.sink.watch(&WatchEvent::Loop {
                                            sandbox: name,
                                            path: &path,
                                            what: &what,
                                        });
                                    }
                                    Verdict::Looping => {}
                                }
                            }
                            inside = host.tree.entries().clone();
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
                let since = std::time::SystemTime::now();
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
                        why = host.mark(&changes);
                    }
                    Some(()) = OptionFuture::from(reaction.as_mut()) => {
                        feedback.reacted(Instant::now());
                        let again = std::mem::take(&mut react_again);
                        reaction = spec.on_change.as_ref().filter(|_| again).map(|on| Box::pin(self.react(&sandbox, on)) as Reaction<'_>);
                    }
                    changed = applied.changed() => match changed {
                        // A run may have written there itself: what is inside is read again.
                        Ok(()) => break,
                        Err(_) => std::future::pending().await,
                    },
                    () = tokio::time::sleep(SETTLE), if !settled => {
                        let content = FileContent::Tree {
                            path: spec.from.clone(),
                            sha256: host.tree.sha256(),
                            ignore: Some(spec.ignore.clone()),
                        };
                        let digest = file_digest(&DesiredFile { content, mode: None });
                        guest::sync(guest, host.tree.root(), to, &inside, &inside, Some(&digest))
                            .await
                            .map_err(Broken::Inside)?;
                        settled = true;
                    }
                    () = tokio::time::sleep(TICK) => {
                        if since.elapsed().is_ok_and(|passed| passed > TICK + ASLEEP) {
                            "time has jumped".clone_into(&mut why);
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

    async fn react(&self, sandbox: &Sandbox, on_change: &OnChange) {
        let begun = Instant::now();
        let what = described(on_change);
        let failure = match self.carry_out(sandbox, on_change).await {
            Ok(failure) => failure,
            Err(error) => Some(with_causes(&error)),
        };
        self.sink.watch(&WatchEvent::Reacted {
            sandbox: &sandbox.name,
            what: &what,
            failure: failure.as_deref(),
            elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// Does it; gives what went wrong as the command itself says it.
    async fn carry_out(&self, sandbox: &Sandbox, on_change: &OnChange) -> Result<Option<String>, Error> {
        let guest = sandbox.guest.as_ref();
        match on_change {
            OnChange::Restart(service) => {
                let Some(spec) = self.guest.services.get(service) else { return Ok(None) };
                let env = guest::environment(guest).await?;
                let defaults = ServiceDefaults {
                    user: self.guest.user.as_deref(),
                    working_dir: self.guest.working_dir.as_deref(),
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
        }
    }
}

fn described(on_change: &OnChange) -> String {
    match on_change {
        OnChange::Restart(service) => format!("restart {service}"),
        OnChange::Exec(argv) => format!("exec {}", argv.join(" ")),
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

    /// Marks what changed, and says it in short.
    fn mark(&mut self, changes: &Changes) -> String {
        if changes.lost {
            self.tree.mark_all();
            return "file events were lost".to_owned();
        }
        let mut first = None;
        for (path, what) in &changes.paths {
            self.tree.mark(path);
            let shown = path.strip_prefix(self.tree.root()).unwrap_or(path).display();
            first.get_or_insert_with(|| format!("{shown} {what}"));
        }
        first.unwrap_or_default()
    }
}
