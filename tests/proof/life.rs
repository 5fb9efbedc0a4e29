//! Lives: processes that work on the project one after the other, in one world, until they are done or die.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pocketenv::app::*;
use pocketenv::model::*;
use pocketenv::plan::Policy;
use pocketenv::reconcile::NullSink;
use pocketenv::reconcile::execute::Cancel;
use pocketenv::secret::SecretSource;
use pocketenv::store::{Change, KeptGoal, Store};

use crate::check;
use crate::schedule::{Ask, How, Loss, Phase, Schedule, Stop};
use crate::world::{EPOCH, PROJECT, SETTLE_MS, World};

/// A process that lives.
const NEVER: Stop = Stop { polls: u32::MAX, how: How::Killed };

/// Virtual time.
struct VirtualClock(tokio::time::Instant);

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        Timestamp(EPOCH + i64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
}

/// Identifiers in order; `next` is given out once before them.
struct Ids {
    count: AtomicU64,
    next: std::sync::Mutex<Option<String>>,
}

impl IdSource for Ids {
    fn fresh(&self) -> IntentId {
        let planned = self.next.lock().unwrap().take();
        IntentId(planned.unwrap_or_else(|| format!("t{}", self.count.fetch_add(1, Ordering::Relaxed))))
    }
}

/// Agrees, or agrees to everything but to losing data.
struct Agrees(bool);

impl Consent for Agrees {
    fn approve(&self, approval: &Approval<'_>) -> Answer {
        if self.0 || approval.plan.data_at_risk().next().is_none() { Answer::Yes } else { Answer::No }
    }
}

/// A process that is stopped at a poll. If it is killed, what it was doing is dropped where it waits.
struct Mortal<F> {
    inner: Pin<Box<F>>,
    left: u32,
    how: How,
    cancel: Cancel,
}

impl<F: Future> Future for Mortal<F> {
    /// `None` if it died.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match (self.left, self.how) {
            (0, How::Killed) => return Poll::Ready(None),
            (0, How::Asked) => self.cancel.graceful.cancel(),
            (0, How::Hurried) => {
                self.cancel.graceful.cancel();
                self.cancel.now.cancel();
            }
            _ => self.left -= 1,
        }
        self.inner.as_mut().poll(context).map(Some)
    }
}

/// The record of a store as it was at one time, with its owner.
struct Copy {
    owner: OwnerId,
    recorded: Recorded,
}

/// One simulation under way.
pub struct Lives {
    pub world: World,
    pub app: App,
    pub store: Store,
    ids: Arc<Ids>,
    clock: Arc<dyn Clock>,
    /// Volumes that were to be deleted at some time.
    pub volumes_may_go: bool,
    copies: Vec<Copy>,
}

impl Lives {
    pub fn new(schedule: &Schedule) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(VirtualClock(tokio::time::Instant::now()));
        let ids = Arc::new(Ids { count: AtomicU64::new(1), next: std::sync::Mutex::new(None) });
        let store = Store::in_memory(clock.clone(), ids.clone()).unwrap();
        let nowhere = std::path::PathBuf::from("/nonexistent");
        let app = App::new(Environment {
            vars: BTreeMap::from([("KEY".to_owned(), "hidden".to_owned())]),
            cwd: nowhere.clone(),
            home: None,
            directories: Directories::resolve(&BTreeMap::new(), None, 0),
            executable: nowhere,
            actor: "somebody@here".to_owned(),
            clock: clock.clone(),
            ids: ids.clone(),
        });
        let world = World::new(schedule);
        world.lock().store = Some(store.clone());
        Self { world, app, store, ids, clock, volumes_may_go: false, copies: Vec::new() }
    }

    pub fn goal(desired: &Desired) -> KeptGoal {
        let secrets = BTreeMap::from([("KEY".to_owned(), SecretSource::Env("KEY".to_owned()))]);
        KeptGoal { desired: desired.clone(), secrets }
    }

    pub fn options(ask: Ask) -> ApplyOptions {
        let (verb, goal, prune_volumes) = match ask {
            Ask::Apply => ("apply", Goal::Apply, false),
            Ask::Destroy { volumes } => ("destroy", Goal::Destroy, volumes),
        };
        ApplyOptions {
            verb,
            goal,
            policy: Policy { prune_volumes, ..Policy::default() },
            ..ApplyOptions::default()
        }
    }

    /// One process, from its start to its end; `None` if it was killed.
    pub async fn process(
        &mut self,
        desired: &Desired,
        ask: Ask,
        consent: bool,
        stop: Stop,
    ) -> Option<Result<ApplyReport, Error>> {
        let recorded = self.store.recorded(PROJECT).await.unwrap();
        self.world.lock().known = recorded.sandboxes.values().map(|r| r.id.clone()).collect();
        let project = self.app.assemble(Self::goal(desired), self.store.clone(), self.world.registry());
        let (options, cancel, consent) = (Self::options(ask), Cancel::default(), Agrees(consent));
        let run = project.apply(&options, &consent, &NullSink, &cancel);
        let ended =
            Mortal { inner: Box::pin(run), left: stop.polls, how: stop.how, cancel: cancel.clone() }.await;
        self.world.lock().killed += u32::from(ended.is_none());
        ended
    }

    /// What happens to the store.
    async fn lose(&mut self, loss: Loss) {
        // Before a store is lost what was under way has landed: nobody can find what no listing shows.
        tokio::time::sleep(Duration::from_millis(2 * SETTLE_MS)).await;
        {
            let mut state = self.world.lock();
            let living: Vec<SandboxId> = state.ours().map(|(_, id, _)| id.clone()).collect();
            state.excused.extend(living);
        }
        let copy = match loss {
            Loss::Lost => None,
            Loss::Older => self.copies.iter().rev().nth(1).or(self.copies.first()),
        };
        *self.ids.next.lock().unwrap() = copy.map(|copy| copy.owner.0.clone());
        let store = Store::in_memory(self.clock.clone(), self.ids.clone()).unwrap();
        if let Some(copy) = copy {
            let sandboxes = copy.recorded.sandboxes.iter();
            let put = |(name, sandbox): (&String, &RecordedSandbox)| Change::PutSandbox {
                name: name.clone(),
                sandbox: Box::new(sandbox.clone()),
            };
            let mut changes: Vec<Change> = sandboxes.map(put).collect();
            let volumes = copy.recorded.volumes.iter();
            changes.extend(volumes.map(|(n, v)| Change::PutVolume { name: n.clone(), volume: v.clone() }));
            store.record(PROJECT, changes).await.unwrap();
            for intent in &copy.recorded.intents {
                store.begin(PROJECT, intent.clone()).await.unwrap();
            }
        }
        self.world.lock().store = Some(store.clone());
        self.store = store;
    }

    async fn phase(&mut self, schedule: &Schedule, phase: &Phase) -> Result<(), String> {
        if let Some(loss) = phase.loss {
            self.lose(loss).await;
        }
        let desired = &schedule.goals[phase.goal];
        self.volumes_may_go |= phase.ask == Ask::Destroy { volumes: true };
        for stop in phase.stops.iter().copied().chain([NEVER]) {
            let before = self.world.lock().history.len();
            let ended = self.process(desired, phase.ask, phase.consent, stop).await;
            if let Some(Err(error @ (Error::Unsound(_) | Error::NoProgress(_) | Error::Store(_)))) = ended {
                return Err(format!("a run ended with: {error}"));
            }
            if !phase.consent {
                check::nothing_lost(&self.world.lock(), before, desired)?;
            }
            check::so_far(&self.world.lock())?;
        }
        let recorded = self.store.recorded(PROJECT).await.unwrap();
        self.copies.push(Copy { owner: self.store.owner().clone(), recorded });
        Ok(())
    }

    /// Runs a schedule to its end: all its phases, then one plain run in a world without faults, which has to bring everything about. Then
    /// everything is destroyed, and nothing may be left.
    pub async fn run(&mut self, schedule: &Schedule) -> Result<(), String> {
        for phase in &schedule.phases {
            self.phase(schedule, phase).await?;
        }
        self.world.lock().heal();
        // What is on its way lands; listings lag on.
        tokio::time::sleep(Duration::from_millis(SETTLE_MS / 4 + 100)).await;
        let Some(last) = schedule.phases.last() else { return Ok(()) };
        self.world.lock().collect(&schedule.goals[last.goal]);
        self.converge(&schedule.goals[last.goal], last.ask).await?;
        check::journal(self).await?;
        self.volumes_may_go = true;
        self.converge(&schedule.goals[last.goal], Ask::Destroy { volumes: true }).await?;
        check::journal(self).await
    }

    /// One plain run has to do.
    async fn converge(&mut self, desired: &Desired, ask: Ask) -> Result<(), String> {
        let report = match self.process(desired, ask, true, NEVER).await {
            Some(Ok(report)) => report,
            Some(Err(error)) => return Err(format!("the last run ended with: {error}")),
            None => return Err("the last run never ended".to_owned()),
        };
        if report.exit_code != 0 {
            let failed: Vec<_> = report.steps.iter().filter(|s| s.result != "done").collect();
            return Err(format!(
                "the last run: {:?}, waiting {:?}, not done {failed:?}",
                report.outcome, report.waiting
            ));
        }
        let project = self.app.assemble(Self::goal(desired), self.store.clone(), self.world.registry());
        let options = ApplyOptions { dry_run: true, ..Self::options(ask) };
        let again = project.apply(&options, &Agrees(true), &NullSink, &Cancel::default()).await;
        let again = again.map_err(|error| format!("the plan after the last run: {error}"))?;
        if !again.plan.is_empty() {
            return Err(format!("the plan after the last run is not empty: {:#?}", again.plan.changes));
        }
        check::so_far(&self.world.lock())?;
        check::converged(self, desired, ask).await
    }
}

/// Runs a schedule in a runtime of its own.
pub fn simulate(schedule: &Schedule) -> (Result<(), String>, World) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut lives = Lives::new(schedule);
        let result = lives.run(schedule).await;
        (result, lives.world.clone())
    })
}
