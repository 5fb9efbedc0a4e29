//! `watch`: the loop of `apply` that stays. It runs again when a file of the manifest changes, when a sandbox or a supervisor is gone, and now and then; in
//! between, directories are kept in step and services are followed.

mod inputs;
mod live;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{AbortHandle, Abortable, Aborted, OptionFuture};
use futures::stream::FuturesUnordered;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use self::inputs::Inputs;
use self::live::{Live, Task};
use super::environment::steady;
use super::{
    Answer, App, ApplyOptions, ApplyReport, Approval, Consent, Error, Goal, Outcome, Project, Selection,
};
use crate::guest::{LogLine, ServiceNews};
use crate::model::{Desired, GuestSpec, RunState, SandboxId};
use crate::reconcile::execute::Cancel;
use crate::reconcile::queue::{Ended, Queue};
use crate::reconcile::status::ProjectStatus;
use crate::reconcile::{Backoff, EventSink};

/// Between runs that fail.
const BACKOFF: Backoff =
    Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60), retries: u32::MAX };
/// How often the clock, and a manifest that was broken, are looked at.
const TICK: Duration = Duration::from_secs(2);
/// More milliseconds than this between two ticks, and the machine was asleep.
const ASLEEP: u64 = 10_000;
/// How long running steps may take to finish once what they work for has changed.
const PATIENCE: Duration = Duration::from_secs(2);

/// How to watch.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// How to apply.
    pub apply: ApplyOptions,
    /// How long until everything is looked at again although nothing was heard.
    pub resync: Duration,
    /// Delete the sandboxes at the end.
    pub down_on_exit: bool,
    /// Follow the logs of services.
    pub logs: bool,
    /// Tell how things are after each change, and this often.
    pub status: Option<Duration>,
}

/// What happens while watching, next to what the loop of `apply` tells.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchEvent<'a> {
    /// The loop runs, for this reason.
    Triggered {
        /// Which file and which event, or what else.
        why: &'a str,
    },
    /// The manifest was changed and is not valid: the last good one stays in force.
    Broken {
        /// What is wrong.
        #[serde(skip)]
        error: &'a Error,
    },
    /// A run of the loop has ended.
    Ran {
        /// How.
        #[serde(flatten)]
        report: &'a ApplyReport,
    },
    /// A run of the loop could not be begun or finished.
    RunFailed {
        /// Why.
        #[serde(skip)]
        error: &'a Error,
    },
    /// Changes of a directory of the host have reached the inside.
    Synced {
        /// The sandbox.
        sandbox: &'a str,
        /// The directory inside.
        to: &'a str,
        /// How many paths changed.
        changes: usize,
        /// The first of them, and what happened to it.
        why: &'a str,
        /// How long it took from hearing of it.
        elapsed_ms: u64,
    },
    /// A directory cannot be kept in step at the moment.
    SyncFailed {
        /// The sandbox.
        sandbox: &'a str,
        /// The directory inside.
        to: &'a str,
        /// Why.
        message: &'a str,
    },
    /// What `on_change` asks for has been done, or has failed.
    Reacted {
        /// The sandbox.
        sandbox: &'a str,
        /// What was done.
        what: &'a str,
        /// Which file, and what happened to it.
        why: &'a str,
        /// What it said, if it failed.
        failure: Option<&'a str>,
        /// How long it took.
        elapsed_ms: u64,
    },
    /// What `on_change` does changes the very file it reacts to; it is not done again until there is silence.
    Loop {
        /// The sandbox.
        sandbox: &'a str,
        /// The file.
        path: &'a str,
        /// What `on_change` does.
        what: &'a str,
    },
    /// How things are now, if that was asked for.
    Status {
        /// As measured.
        status: &'a ProjectStatus,
    },
    /// A service does something else than before.
    Service {
        /// The sandbox.
        sandbox: &'a str,
        /// The service.
        service: &'a str,
        /// What it does, for people.
        message: &'a str,
        /// Whether that is bad news.
        bad: bool,
    },
}

/// Something that makes the loop run.
struct Trigger {
    /// For people.
    why: String,
    /// A sandbox that is to be made anew, and why.
    rebuild: Option<(SandboxId, String)>,
}

/// Who listens.
pub trait WatchSink: EventSink {
    /// Takes one event.
    fn watch(&self, event: &WatchEvent<'_>);
    /// Takes one line of a service's log, without secrets.
    fn log(&self, sandbox: &str, line: LogLine<'_>);
}

impl App {
    /// Applies, and then lives until it is called off. Gives the exit code.
    ///
    /// # Errors
    /// What keeps the first run from being begun; later failures are told and tried again.
    pub async fn watch(
        &self,
        selection: &Selection,
        options: &WatchOptions,
        consent: &dyn Consent,
        sink: &dyn WatchSink,
        cancel: &Cancel,
    ) -> Result<i32, Error> {
        if selection.files.iter().any(|file| file.as_os_str() == "-") {
            let message = "standard input cannot be watched; `-f FILE` names a file".to_owned();
            return Err(Error::Refused { message });
        }
        let resolved = self.validate(selection)?;
        let project = Arc::new(self.open(selection).await?);
        let inputs = Inputs::new(&self.environment().cwd, &resolved, selection)?;
        let (triggers, heard) = mpsc::unbounded_channel();
        let (applied, _) = watch::channel(0);
        let watching = Watching {
            app: self,
            selection,
            options,
            consent,
            sink,
            cancel,
            project,
            desired: resolved.desired,
            inputs,
            triggers,
            applied,
            look: Arc::default(),
            tasks: BTreeMap::new(),
            living: FuturesUnordered::new(),
            queue: Queue::new(BACKOFF),
            generation: 0,
            rebuild: BTreeMap::new(),
        };
        watching.run(heard).await
    }
}

type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = T> + 'a>>;

struct Watching<'a> {
    app: &'a App,
    selection: &'a Selection,
    options: &'a WatchOptions,
    consent: &'a dyn Consent,
    sink: &'a dyn WatchSink,
    cancel: &'a Cancel,
    project: Arc<Project<'a>>,
    /// What the last good manifest declares.
    desired: Desired,
    inputs: Inputs,
    triggers: mpsc::UnboundedSender<Trigger>,
    /// How many runs have ended.
    applied: watch::Sender<u64>,
    /// Something changed that is worth a look at how things are.
    look: Arc<Notify>,
    /// What lives beside the loop.
    tasks: BTreeMap<Task, AbortHandle>,
    living: FuturesUnordered<Future<'a, Result<(), Aborted>>>,
    /// When to run next; the project is its only key.
    queue: Queue<(), ()>,
    /// How many good manifests there were.
    generation: u64,
    /// Sandboxes that are to be made anew, and why.
    rebuild: BTreeMap<SandboxId, String>,
}

/// A run of the loop that is under way.
struct Running<'a> {
    future: Future<'a, Result<ApplyReport, Error>>,
    cancel: Cancel,
    /// The sandboxes that it is to make anew.
    rebuild: BTreeMap<SandboxId, String>,
    /// When it is given up, because what it works for has changed.
    give_up: Option<Instant>,
}

impl<'a> Watching<'a> {
    async fn run(mut self, mut heard: mpsc::UnboundedReceiver<Trigger>) -> Result<i32, Error> {
        let mut running: Option<Running<'a>> = None;
        let mut first = true;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_tick = steady();
        self.request();
        self.live();
        loop {
            if running.is_none() && !self.cancel.graceful.is_cancelled() {
                running = self.queue.start_next(steady()).map(|_| self.start());
            }
            if running.is_none() && self.cancel.graceful.is_cancelled() {
                break;
            }
            let next = running.is_none().then(|| self.queue.next_due()).flatten();
            let next = next.map(|due| tokio::time::sleep(Duration::from_millis(due.millis_since(steady()))));
            let give_up = running.as_ref().and_then(|run| run.give_up).map(tokio::time::sleep_until);
            let run: OptionFuture<_> = running.as_mut().map(|run| run.future.as_mut()).into();
            let stops = self.cancel.graceful.is_cancelled();
            tokio::select! {
                Some(ended) = run => {
                    let rebuild = running.take().map(|run| run.rebuild).unwrap_or_default();
                    let end = self.ended(ended, &rebuild, first)?;
                    first = false;
                    if let Some(code) = end {
                        return Ok(code);
                    }
                }
                () = self.cancel.graceful.cancelled(), if !stops => {}
                Some(()) = OptionFuture::from(next) => {}
                Some(()) = OptionFuture::from(give_up) => {
                    if let Some(run) = &mut running {
                        run.give_up = None;
                        run.cancel.now.cancel();
                    }
                }
                Some(_) = self.living.next(), if !self.living.is_empty() => {}
                Some(Trigger { why, rebuild }) = heard.recv(), if !stops => {
                    self.sink.watch(&WatchEvent::Triggered { why: &why });
                    self.rebuild.extend(rebuild);
                    self.request();
                }
                why = self.inputs.changed(), if !stops => self.edited(&why, &mut running).await,
                _ = ticks.tick() => {
                    let now = steady();
                    let slept = now.millis_since(last_tick) > ASLEEP;
                    last_tick = now;
                    if slept && !stops {
                        self.inputs.look_again();
                        self.sink.watch(&WatchEvent::Triggered { why: "the machine was asleep" });
                        self.request();
                    } else if self.inputs.is_broken() && !stops {
                        self.edited("", &mut running).await;
                    }
                }
            }
        }
        self.leave().await
    }

    fn request(&mut self) {
        let now = steady();
        self.queue.request((), (), self.generation, now);
    }

    fn start(&self) -> Running<'a> {
        let cancel =
            Cancel { graceful: self.cancel.graceful.child_token(), now: self.cancel.now.child_token() };
        let (project, token) = (Arc::clone(&self.project), cancel.clone());
        let (consent, sink, rebuild) = (self.consent, self.sink, self.rebuild.clone());
        let mut options = self.options.apply.clone();
        options.policy.rebuild.clone_from(&rebuild);
        let future = Box::pin(async move { project.apply(&options, consent, sink, &token).await });
        Running { future, cancel, rebuild, give_up: None }
    }

    /// A run has ended. Gives an exit code if there is nothing to live for.
    fn ended(
        &mut self,
        ended: Result<ApplyReport, Error>,
        rebuild: &BTreeMap<SandboxId, String>,
        first: bool,
    ) -> Result<Option<i32>, Error> {
        // One that failed or was called off is tried again; one that was refused waits for the next change.
        let again = match &ended {
            Ok(report) => match report.outcome {
                Outcome::Interrupted | Outcome::TimedOut => true,
                _ => report.steps.iter().any(|step| step.failure.is_some()),
            },
            Err(error) => !matches!(error, Error::Refused { .. }),
        };
        if !again {
            self.rebuild.retain(|id, why| rebuild.get(id) != Some(why));
        }
        let outcome = match ended {
            Err(error @ Error::Refused { .. }) if !first && !rebuild.is_empty() => {
                self.sink.watch(&WatchEvent::RunFailed { error: &error });
                Outcome::Declined
            }
            Err(error) if first && !matches!(error, Error::Guest(_) | Error::Provider { .. }) => {
                return Err(error);
            }
            Err(error) => {
                self.sink.watch(&WatchEvent::RunFailed { error: &error });
                Outcome::Failed
            }
            Ok(report) => {
                self.sink.watch(&WatchEvent::Ran { report: &report });
                if first && report.outcome == Outcome::Declined {
                    return Ok(Some(report.exit_code));
                }
                report.outcome
            }
        };
        let ended = match outcome {
            Outcome::Partly | Outcome::Failed | Outcome::TimedOut => Ended::Failed { retry_after: None },
            // One that was called off because of an edit has its successor in the queue already.
            _ => Ended::Converged { resync: self.options.resync },
        };
        self.queue.finish(&(), steady(), ended, 0);
        self.applied.send_modify(|runs| *runs += 1);
        self.look.notify_one();
        Ok(None)
    }

    /// Something that the manifest consists of has changed.
    async fn edited(&mut self, why: &str, running: &mut Option<Running<'a>>) {
        let was_broken = self.inputs.is_broken();
        let opened = match self.app.validate(self.selection) {
            Err(error) => Err(error),
            Ok(resolved) => self.app.open(self.selection).await.map(|project| (resolved, project)),
        };
        let (resolved, project) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Told once for each edit, not each time it is looked at again.
                if !why.is_empty() || !was_broken {
                    self.sink.watch(&WatchEvent::Broken { error: &error });
                }
                self.inputs.set_broken();
                return;
            }
        };
        let why = if why.is_empty() { "the manifest is valid again" } else { why };
        if let Err(error) = self.inputs.renew(&resolved) {
            self.sink.watch(&WatchEvent::RunFailed { error: &error });
        }
        self.sink.watch(&WatchEvent::Triggered { why });
        self.project = Arc::new(project);
        self.desired = resolved.desired;
        self.generation += 1;
        self.request();
        self.live();
        if let Some(run) = running {
            run.cancel.graceful.cancel();
            run.give_up = Some(Instant::now() + PATIENCE);
        }
    }

    /// Starts what is to live beside the loop and ends what is not any more.
    fn live(&mut self) {
        let mut wanted = BTreeMap::new();
        let nothing = GuestSpec::default();
        if self.options.status.is_some() {
            wanted.insert(Task::status(self.generation), &nothing);
        }
        for (name, sandbox) in &self.desired.sandboxes {
            if sandbox.state != RunState::Running {
                continue;
            }
            for task in Task::all(name, &sandbox.guest, self.options.logs) {
                wanted.insert(task, &sandbox.guest);
            }
        }
        self.tasks.retain(|task, handle| {
            let stays = wanted.contains_key(task);
            if !stays {
                handle.abort();
            }
            stays
        });
        for (task, guest) in wanted {
            if self.tasks.contains_key(&task) {
                continue;
            }
            let live = Live {
                project: Arc::clone(&self.project),
                guest: guest.clone(),
                sink: self.sink,
                triggers: self.triggers.clone(),
                applied: self.applied.subscribe(),
                look: Arc::clone(&self.look),
                often: self.options.status.unwrap_or(self.options.resync),
            };
            let (handle, registration) = AbortHandle::new_pair();
            self.living.push(Box::pin(Abortable::new(live.run(task.clone()), registration)));
            self.tasks.insert(task, handle);
        }
    }

    async fn leave(self) -> Result<i32, Error> {
        if !self.options.down_on_exit {
            return Ok(0);
        }
        let options = ApplyOptions { verb: "destroy", goal: Goal::Destroy, ..self.options.apply.clone() };
        // The first Ctrl-C asked for this; only the second one stops it.
        let cancel = Cancel { graceful: self.cancel.now.clone(), now: self.cancel.now.clone() };
        let report = self.project.apply(&options, &Granted, self.sink, &cancel).await?;
        self.sink.watch(&WatchEvent::Ran { report: &report });
        Ok(report.exit_code)
    }
}

/// `--down-on-exit` is the consent.
struct Granted;

impl Consent for Granted {
    fn approve(&self, _: &Approval<'_>) -> Answer {
        Answer::Yes
    }
}

/// A service's news in words, and whether they are bad. `before` is what was known of it; nothing is said about one that just runs.
fn words(before: Option<&ServiceNews>, news: &ServiceNews) -> Option<(String, bool)> {
    use crate::model::ServiceStatus;
    let code = news.exit_code.map_or_else(String::new, |code| format!(" with exit code {code}"));
    match news.state {
        ServiceStatus::Running => {
            let again = news.restarts > before?.restarts;
            again.then(|| (format!("runs again (restart {})", news.restarts), false))
        }
        ServiceStatus::Backoff => Some((format!("ended{code}; its policy starts it again"), true)),
        ServiceStatus::Failed => Some((format!("ended{code}, and its policy does not start it again"), true)),
        ServiceStatus::Completed => before.map(|_| (format!("has ended{code}"), false)),
        // Somebody asked for it, and `on_change` does so all the time.
        ServiceStatus::Stopped => None,
        ServiceStatus::Dead => Some(("lost its supervisor".to_owned(), true)),
    }
}
