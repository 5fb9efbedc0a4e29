//! Carries out a plan, and nothing else: every decision was made in `plan/`.
//!
//! Steps run as soon as what they come after is done, with bounded parallelism. What creates or deletes is journalled before it is attempted
//! (invariant 2). A step that fails holds up what comes after it and nothing else (invariant 8).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inside::Inside;
use super::{Backoff, Event, EventKind, EventSink, Failure, FailureKind};
use crate::model::with_causes;
use crate::model::{
    Address, Clock, Desired, IdSource, Identity, IntentId, IntentOperation, PendingIntent, Recorded,
    RecordedSandbox, RecordedVolume, RunState, SandboxId, SandboxSpec, labels,
};
use crate::plan::{Action, Plan, Step, StepId};
use crate::provider::{BoundValue, GuestError, Owner, Provider, ProviderError, Registry};
use crate::secret::Secrets;
use crate::store::{Change, Outcome, Store, StoreError};

/// How often events are written to the store while steps run.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// How to stop early.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    /// No further step is started; running ones finish.
    pub graceful: CancellationToken,
    /// Running steps are given up. The journal stays consistent: what is not known to have ended stays pending.
    pub now: CancellationToken,
}

/// What executing a plan needs.
pub struct Execute<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// What the plan was made from: environments and dependencies are looked up here.
    pub desired: &'a Desired,
    /// What was recorded when it was made.
    pub recorded: &'a Recorded,
    /// The opened providers.
    pub registry: &'a Registry,
    /// Where intents and the inventory are kept.
    pub store: &'a Store,
    /// The values of secrets.
    pub secrets: &'a Secrets,
    /// Who listens.
    pub sink: &'a dyn EventSink,
    /// The time.
    pub clock: &'a Arc<dyn Clock>,
    /// Fresh tokens.
    pub ids: &'a Arc<dyn IdSource>,
    /// How many steps may run at once.
    pub parallelism: usize,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// How to stop early.
    pub cancel: &'a Cancel,
    /// Wait for services even if nothing else comes after them.
    pub wait: bool,
    /// The run that events belong to.
    pub run: Option<u64>,
}

/// How one step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// It succeeded.
    Done,
    /// It failed for good.
    Failed(Failure),
    /// It was not attempted, with the reason.
    Skipped(String),
}

/// How every step of a plan ended, by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// Exact, also when only part was done.
    pub results: Vec<StepResult>,
    /// The store failed while steps ran; what was done afterwards is in the journal or will be found by its labels.
    pub store_error: Option<String>,
}

impl Execution {
    /// Steps that failed, with their failures.
    pub fn failures(&self) -> impl Iterator<Item = (StepId, &Failure)> {
        self.results.iter().enumerate().filter_map(|(id, r)| match r {
            StepResult::Failed(failure) => Some((id, failure)),
            StepResult::Done | StepResult::Skipped(_) => None,
        })
    }

    /// How many steps succeeded.
    pub fn done(&self) -> usize {
        self.results.iter().filter(|r| **r == StepResult::Done).count()
    }
}

/// Why a step did not succeed, before it is told to people.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Plan(String),
}

impl StepError {
    fn retry(&self) -> Option<Option<Duration>> {
        match self {
            Self::Provider(ProviderError::Throttled { retry_after }) => Some(*retry_after),
            Self::Provider(error) if error.is_retryable() => Some(None),
            Self::Guest(error) if error.is_retryable() => Some(None),
            _ => None,
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Provider(ProviderError::Unauthorised { .. }) => FailureKind::Unauthorised,
            Self::Provider(ProviderError::Invalid { .. } | ProviderError::Unsupported { .. }) => {
                FailureKind::Invalid
            }
            Self::Provider(ProviderError::Transient { .. } | ProviderError::Throttled { .. })
            | Self::Guest(GuestError::Unreachable { .. }) => FailureKind::Transient,
            Self::Guest(GuestError::TimedOut { .. }) => FailureKind::TimedOut,
            _ => FailureKind::Permanent,
        }
    }
}

/// What is learned while steps run.
struct Learned {
    /// The id of each sandbox by name.
    ids: BTreeMap<String, SandboxId>,
    /// The record of each sandbox by name.
    records: BTreeMap<String, RecordedSandbox>,
}

/// Carries out the plan. Never fails as a whole: what failed is in the results.
pub async fn execute(cx: &Execute<'_>) -> Execution {
    let run = Run {
        cx,
        learned: Mutex::new(Learned {
            ids: cx.recorded.sandboxes.iter().map(|(name, r)| (name.clone(), r.id.clone())).collect(),
            records: cx.recorded.sandboxes.clone(),
        }),
        permits: cx
            .registry
            .iter()
            .map(|(name, p)| (name.to_owned(), Semaphore::new(p.capabilities().max_concurrency.max(1))))
            .collect(),
        told: std::sync::Mutex::new(Vec::new()),
    };
    let mut schedule = Schedule::new(cx.plan);
    let stopped = run.drive(&mut schedule).await;
    schedule.skip_rest(&stopped);
    let mut execution = Execution { results: schedule.results(), store_error: None };
    // Asked for together, they cost one sync.
    let (recorded, flushed) = tokio::join!(run.record_guests(&execution.results), run.flush());
    execution.store_error = recorded.and(flushed).err().map(|error| with_causes(&error));
    execution
}

/// Which steps may run.
struct Schedule<'a> {
    plan: &'a Plan,
    missing: Vec<usize>,
    dependents: Vec<Vec<StepId>>,
    ready: VecDeque<StepId>,
    results: Vec<Option<StepResult>>,
}

impl<'a> Schedule<'a> {
    fn new(plan: &'a Plan) -> Self {
        let mut dependents = vec![Vec::new(); plan.steps.len()];
        for (id, step) in plan.steps.iter().enumerate() {
            for after in &step.after {
                dependents[*after].push(id);
            }
        }
        let missing: Vec<usize> = plan.steps.iter().map(|s| s.after.len()).collect();
        let ready = (0..plan.steps.len()).filter(|id| missing[*id] == 0).collect();
        Self { plan, missing, dependents, ready, results: vec![None; plan.steps.len()] }
    }

    /// Notes how a step ended; returns the steps that are skipped because of it.
    fn finish(&mut self, id: StepId, result: StepResult) -> Vec<StepId> {
        let done = result == StepResult::Done;
        self.results[id] = Some(result);
        let mut skipped = Vec::new();
        let mut open = vec![id];
        while let Some(ended) = open.pop() {
            for dependent in self.dependents[ended].clone() {
                if done {
                    self.missing[dependent] -= 1;
                    if self.missing[dependent] == 0 {
                        self.ready.push_back(dependent);
                    }
                } else if self.results[dependent].is_none() {
                    let cause = &self.plan.steps[id];
                    let message = format!("`{} {}` did not succeed", cause.action.verb(), cause.address);
                    self.results[dependent] = Some(StepResult::Skipped(message));
                    skipped.push(dependent);
                    open.push(dependent);
                }
            }
        }
        skipped
    }

    /// Whether nothing is left but waiting for services that nothing comes after.
    fn only_waits_left(&self) -> bool {
        self.results
            .iter()
            .zip(&self.plan.steps)
            .all(|(result, step)| result.is_some() || matches!(step.action, Action::WaitService { .. }))
    }

    fn skip_rest(&mut self, why: &str) {
        for result in &mut self.results {
            result.get_or_insert_with(|| StepResult::Skipped(why.to_owned()));
        }
    }

    fn results(self) -> Vec<StepResult> {
        self.results.into_iter().flatten().collect()
    }
}

struct Run<'a> {
    cx: &'a Execute<'a>,
    learned: Mutex<Learned>,
    permits: BTreeMap<String, Semaphore>,
    /// Events not yet in the store.
    told: std::sync::Mutex<Vec<crate::store::Event>>,
}

impl Run<'_> {
    /// Runs steps until none is left or it is called off; returns why the rest was not attempted.
    async fn drive(&self, schedule: &mut Schedule<'_>) -> String {
        let cx = self.cx;
        let mut running = FuturesUnordered::new();
        let mut flush = tokio::time::interval_at(Instant::now() + FLUSH_INTERVAL, FLUSH_INTERVAL);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let deadline = async {
            match cx.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        loop {
            let stopping = cx.cancel.graceful.is_cancelled();
            while !stopping && running.len() < cx.parallelism.max(1) {
                let Some(id) = schedule.ready.pop_front() else { break };
                running.push(self.step(id));
            }
            if running.is_empty() {
                return "the run was interrupted".to_owned();
            }
            if !cx.wait && schedule.only_waits_left() {
                return "not waited for".to_owned();
            }
            tokio::select! {
                // In this order and not by chance, so that simulations repeat.
                biased;
                () = cx.cancel.now.cancelled() => return "the run was interrupted".to_owned(),
                () = cx.cancel.graceful.cancelled(), if !stopping => {}
                () = &mut deadline => {
                    self.time_out(schedule);
                    return "the time allowed for the run was over".to_owned();
                }
                // Losing the others is safe: they are cancelled only where the run ends.
                Some((id, result)) = running.next() => {
                    for skipped in schedule.finish(id, result) {
                        self.skipped(skipped, schedule);
                    }
                }
                _ = flush.tick() => {
                    if let Err(error) = self.flush().await {
                        tracing::warn!(error = %with_causes(&error), "events could not be stored");
                    }
                }
            }
        }
    }

    /// Marks what was under way when the time was over.
    fn time_out(&self, schedule: &mut Schedule<'_>) {
        let waiting: BTreeSet<StepId> = schedule.ready.iter().copied().collect();
        for id in 0..schedule.results.len() {
            let begun = schedule.results[id].is_none() && schedule.missing[id] == 0 && !waiting.contains(&id);
            if begun {
                let failure = Failure {
                    kind: FailureKind::TimedOut,
                    message: "not done within the time allowed for the run".to_owned(),
                };
                self.tell(id, None, EventKind::StepFailed { step: id, failure: failure.clone() });
                schedule.results[id] = Some(StepResult::Failed(failure));
            }
        }
    }

    fn skipped(&self, id: StepId, schedule: &Schedule<'_>) {
        if let Some(StepResult::Skipped(message)) = &schedule.results[id] {
            self.tell(id, None, EventKind::StepSkipped { step: id, message: message.clone() });
        }
    }

    /// One step with its tries.
    async fn step(&self, id: StepId) -> (StepId, StepResult) {
        let step = &self.cx.plan.steps[id];
        let begun = Instant::now();
        self.tell(id, None, EventKind::StepStarted { step: id });
        let mut attempt = 0;
        // Every try of one step carries one token.
        let mut token = None;
        let result = loop {
            let permit = match self.permits.get(&step.provider) {
                Some(permits) if !step.action.is_guest() => permits.acquire().await.ok(),
                _ => None,
            };
            let error = match self.attempt(id, step, &mut token).await {
                Ok(()) => break StepResult::Done,
                Err(error) => error,
            };
            drop(permit);
            let chance = rand_chance(self.cx.ids);
            let delay = error.retry().and_then(|asked| Backoff::CALL.delay(attempt, chance, asked));
            let message = self.cx.secrets.redact(&with_causes(&error));
            let Some(delay) = delay.filter(|_| !self.cx.cancel.graceful.is_cancelled()) else {
                break StepResult::Failed(Failure { kind: error.kind(), message });
            };
            let in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            self.tell(id, Some(begun), EventKind::StepRetrying { step: id, message, in_ms });
            tokio::select! {
                biased;
                () = tokio::time::sleep(delay) => {}
                () = self.cx.cancel.graceful.cancelled() => {}
            }
            attempt += 1;
        };
        let kind = match &result {
            StepResult::Failed(failure) => EventKind::StepFailed { step: id, failure: failure.clone() },
            _ => EventKind::StepDone { step: id },
        };
        self.tell(id, Some(begun), kind);
        (id, result)
    }

    async fn attempt(&self, id: StepId, step: &Step, token: &mut Option<IntentId>) -> Result<(), StepError> {
        let cx = self.cx;
        let provider = cx
            .registry
            .get(&step.provider)
            .ok_or_else(|| StepError::Plan(format!("provider `{}` is not open", step.provider)))?
            .as_ref();
        let name = step.address.sandbox().unwrap_or_default();
        match &step.action {
            Action::CreateVolume { name } => self.create_volume(step, provider, name, token).await,
            Action::DeleteVolume { name } => self.delete_volume(step, provider, name, token).await,
            Action::ForgetVolume { name } => {
                self.record(vec![Change::Forget(Address::Volume(name.clone()))]).await
            }
            Action::AdoptVolume { name } => self.record(vec![self.volume(step, name)]).await,
            Action::Create { spec, generation, resume } => {
                self.bring(id, provider, name, spec).await?;
                self.create(step, provider, spec, *generation, resume.as_ref(), token).await
            }
            Action::Adopt { spec, generation, state } => {
                self.update(step, provider, spec, *generation, *state).await
            }
            Action::Update { spec, generation } => {
                self.update(step, provider, spec, *generation, RunState::Running).await
            }
            Action::Quiesce { services } => {
                self.quiesce(id, step, provider, services).await;
                Ok(())
            }
            Action::Start => {
                provider.start(&self.id(step).await?).await?;
                self.brought_to(name, RunState::Running).await
            }
            // Until the next plan: what it is to be is not changed by it.
            Action::Pause => Ok(provider.pause(&self.id(step).await?).await?),
            Action::Stop => {
                provider.stop(&self.id(step).await?).await?;
                self.brought_to(name, RunState::Stopped).await
            }
            Action::Delete { forget } => self.delete(step, provider, *forget, token).await,
            // One that nothing is recorded of.
            Action::Discard => self.remove(step, provider, Vec::new(), token).await,
            Action::Forget => self.record(vec![Change::Forget(step.address.clone())]).await,
            Action::Settle { intent } => {
                match cx.store.finish(&cx.plan.project, intent, Outcome::Settled, Vec::new()).await {
                    // The step that went on with it has closed it already.
                    Ok(_) | Err(StoreError::NoSuchIntent { .. }) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Action::Bind { digests } => self.bind(step, provider, digests).await,
            action => {
                let sandbox = self.id(step).await?;
                let guest = provider.guest(&sandbox).await?;
                let declared = cx.desired.sandboxes.get(name);
                let declared = &declared
                    .ok_or_else(|| StepError::Plan(format!("sandbox `{name}` is not declared")))?
                    .guest;
                let image = guest.image().await?;
                let spec = image.complete(declared);
                let say = |text: &str| {
                    let text = cx.secrets.redact(text);
                    self.tell(id, None, EventKind::StepOutput { step: id, text });
                };
                let inside = Inside {
                    guest: guest.as_ref(),
                    spec: &spec,
                    image: &image,
                    secrets: cx.secrets,
                    say: &say,
                };
                inside.carry_out(action).await
            }
        }
    }

    /// Hands the values of bound secrets to the way out.
    async fn bind(
        &self,
        step: &Step,
        provider: &dyn Provider,
        digests: &BTreeMap<String, String>,
    ) -> Result<(), StepError> {
        let values = digests.iter().map(|(name, digest)| {
            let missing = || StepError::Plan(format!("the value of secret `{name}` is not known"));
            let value = self.cx.secrets.get(name).ok_or_else(missing)?;
            Ok(BoundValue { name: name.clone(), digest: digest.clone(), value: value.clone() })
        });
        let values = values.collect::<Result<Vec<_>, StepError>>()?;
        let bound = provider.bound_secrets().ok_or_else(|| {
            StepError::Plan(format!("provider `{}` binds no secrets to hosts", step.provider))
        })?;
        Ok(bound.bind(&self.id(step).await?, &values).await?)
    }

    /// Asks services to end. What goes wrong is told and holds nothing up: the stop or delete that follows ends them all the same.
    async fn quiesce(&self, id: StepId, step: &Step, provider: &dyn Provider, services: &[String]) {
        let tell = |message: String| {
            let text = self.cx.secrets.redact(&message);
            self.tell(id, None, EventKind::StepOutput { step: id, text });
        };
        let guest = match self.id(step).await {
            Ok(sandbox) => provider.guest(&sandbox).await.map_err(StepError::from),
            Err(error) => Err(error),
        };
        let guest = match guest {
            Ok(guest) => guest,
            Err(error) => return tell(with_causes(&error)),
        };
        for service in services {
            if let Err(error) = crate::guest::stop_service(guest.as_ref(), service).await {
                tell(format!("service {service} could not be asked to end: {}", with_causes(&error)));
            }
        }
    }

    async fn id(&self, step: &Step) -> Result<SandboxId, StepError> {
        if let Some(id) = &step.id {
            return Ok(id.clone());
        }
        let name = step.address.sandbox().unwrap_or_default();
        let learned = self.learned.lock().await;
        learned.ids.get(name).cloned().ok_or_else(|| StepError::Plan(format!("sandbox `{name}` has no id")))
    }

    fn identity(&self, step: &Step, spec: &SandboxSpec, generation: u64, intent: IntentId) -> Identity {
        Identity {
            project: self.cx.plan.project.clone(),
            address: step.address.clone(),
            owner: self.cx.store.owner().clone(),
            spec_hash: spec.hash(),
            generation,
            intent,
            expires_at: None,
        }
    }

    /// Journals an intent, unless an earlier try of the step has.
    async fn begin(
        &self,
        step: &Step,
        operation: IntentOperation,
        spec: Option<&SandboxSpec>,
        token: &mut Option<IntentId>,
    ) -> Result<IntentId, StepError> {
        if let Some(earlier) = token {
            return Ok(earlier.clone());
        }
        let id = self.cx.ids.fresh();
        let intent = PendingIntent {
            id: id.clone(),
            address: step.address.clone(),
            provider: step.provider.clone(),
            operation,
            spec_hash: spec.map(SandboxSpec::hash),
            begun_at: self.cx.clock.now(),
        };
        self.cx.store.begin(&self.cx.plan.project, intent).await?;
        *token = Some(id.clone());
        Ok(id)
    }

    async fn finish(&self, intent: &IntentId, changes: Vec<Change>) -> Result<(), StepError> {
        self.cx.store.finish(&self.cx.plan.project, intent, Outcome::Done, changes).await?;
        Ok(())
    }

    /// Closes an intent whose effect is known not to be there; leaves it pending if that is not known: what refuses this try says nothing about
    /// an earlier one with the same token whose answer was lost.
    async fn fail(&self, intent: &IntentId, error: &ProviderError, is_first: bool) -> Result<(), StepError> {
        let known = is_first
            && matches!(
                error,
                ProviderError::Invalid { .. }
                    | ProviderError::Unauthorised { .. }
                    | ProviderError::Unsupported { .. }
            );
        if known {
            let message = self.cx.secrets.redact(&with_causes(error));
            let outcome = Outcome::Failed { kind: "refused".to_owned(), message };
            self.cx.store.finish(&self.cx.plan.project, intent, outcome, Vec::new()).await?;
        }
        Ok(())
    }

    /// Records what a sandbox has been brought to.
    async fn brought_to(&self, name: &str, state: RunState) -> Result<(), StepError> {
        if let Some(record) = self.learned.lock().await.records.get_mut(name) {
            record.state = state;
        }
        self.record(vec![Change::SetState { name: name.to_owned(), state }]).await
    }

    async fn record(&self, changes: Vec<Change>) -> Result<(), StepError> {
        self.cx.store.record(&self.cx.plan.project, changes).await?;
        Ok(())
    }

    /// Brings the image of a sandbox here, where the provider keeps images. It takes long, and nothing is intended yet: what is cut short here
    /// leaves no sandbox to look for.
    async fn bring(
        &self,
        id: StepId,
        provider: &dyn Provider,
        name: &str,
        spec: &SandboxSpec,
    ) -> Result<(), StepError> {
        let Some(images) = provider.images() else { return Ok(()) };
        let declared = self.cx.desired.sandboxes.get(name);
        let wanted = declared.iter().flat_map(|sandbox| &sandbox.build_secrets);
        let known = wanted.filter_map(|(id, name)| Some((id.clone(), self.cx.secrets.get(name)?.clone())));
        let secrets = known.collect();
        let say = |text: &str| {
            let text = self.cx.secrets.redact(text);
            self.tell(id, None, EventKind::StepOutput { step: id, text });
        };
        Ok(images.bring(&spec.image, &secrets, &say).await?)
    }

    async fn create(
        &self,
        step: &Step,
        provider: &dyn Provider,
        spec: &SandboxSpec,
        generation: u64,
        resume: Option<&IntentId>,
        token: &mut Option<IntentId>,
    ) -> Result<(), StepError> {
        let name = step.address.sandbox().unwrap_or_default();
        let retried = token.is_some() || resume.is_some();
        let intent = match resume {
            Some(intent) => intent.clone(),
            None => self.begin(step, IntentOperation::Create, Some(spec), token).await?,
        };
        let identity = self.identity(step, spec, generation, intent.clone());
        let existing = match retried && !provider.capabilities().idempotent_create {
            true => self.find(provider, &intent).await?,
            false => None,
        };
        let id = match existing {
            Some(id) => id,
            None => match provider.create(spec, &identity).await {
                Ok(id) => id,
                Err(error) => {
                    self.fail(&intent, &error, !retried).await?;
                    return Err(error.into());
                }
            },
        };
        let record = RecordedSandbox {
            provider: step.provider.clone(),
            id: id.clone(),
            spec: spec.clone(),
            guest: None,
            generation,
            depends_on: self.depends_on(name),
            state: RunState::Running,
            created_at: self.cx.clock.now(),
        };
        let change = Change::PutSandbox { name: name.to_owned(), sandbox: Box::new(record.clone()) };
        self.finish(&intent, vec![change]).await?;
        let mut learned = self.learned.lock().await;
        learned.ids.insert(name.to_owned(), id);
        learned.records.insert(name.to_owned(), record);
        Ok(())
    }

    fn depends_on(&self, name: &str) -> BTreeSet<String> {
        let declared = self.cx.desired.sandboxes.get(name);
        declared.map(|d| d.depends_on.keys().cloned().collect()).unwrap_or_default()
    }

    /// The sandbox that a create with this token made, where the provider itself does not see that two creates are one.
    async fn find(&self, provider: &dyn Provider, intent: &IntentId) -> Result<Option<SandboxId>, StepError> {
        // A listing that lags does not show yet what the lost try made; creating again then would make two.
        tokio::time::sleep(Duration::from_millis(provider.capabilities().settle_ms)).await;
        let owner = Owner { project: Some(self.cx.plan.project.clone()), owner: None };
        let listing = provider.list(&owner).await?;
        let made = listing.sandboxes.into_values().find(|s| s.labels.get(labels::INTENT) == Some(&intent.0));
        Ok(made.map(|s| s.id))
    }

    /// Writes spec and labels at the provider, and the record. `found` is the state of one that nothing was recorded of.
    async fn update(
        &self,
        step: &Step,
        provider: &dyn Provider,
        spec: &SandboxSpec,
        generation: u64,
        found: RunState,
    ) -> Result<(), StepError> {
        let id = self.id(step).await?;
        let name = step.address.sandbox().unwrap_or_default();
        let identity = self.identity(step, spec, generation, self.cx.ids.fresh());
        provider.update(&id, spec, &identity).await?;
        let mut learned = self.learned.lock().await;
        let before = learned.records.get(name).filter(|r| r.id == id);
        let record = RecordedSandbox {
            provider: step.provider.clone(),
            id: id.clone(),
            spec: spec.clone(),
            guest: before.and_then(|r| r.guest.clone()),
            generation,
            depends_on: self.depends_on(name),
            state: before.map_or(found, |r| r.state),
            created_at: before.map_or_else(|| self.cx.clock.now(), |r| r.created_at),
        };
        learned.ids.insert(name.to_owned(), id);
        learned.records.insert(name.to_owned(), record.clone());
        drop(learned);
        self.record(vec![Change::PutSandbox { name: name.to_owned(), sandbox: Box::new(record) }]).await
    }

    async fn delete(
        &self,
        step: &Step,
        provider: &dyn Provider,
        forget: bool,
        token: &mut Option<IntentId>,
    ) -> Result<(), StepError> {
        let address = step.address.clone();
        let change = if forget { Change::Forget(address) } else { Change::Remove(address) };
        self.remove(step, provider, vec![change], token).await?;
        let mut learned = self.learned.lock().await;
        let name = step.address.sandbox().unwrap_or_default();
        learned.ids.remove(name);
        learned.records.remove(name);
        Ok(())
    }

    /// Deletes the step's sandbox at the provider, and records `changes` together with the end of the intent.
    async fn remove(
        &self,
        step: &Step,
        provider: &dyn Provider,
        changes: Vec<Change>,
        token: &mut Option<IntentId>,
    ) -> Result<(), StepError> {
        let id = self.id(step).await?;
        let is_first = token.is_none();
        let intent = self.begin(step, IntentOperation::Delete, None, token).await?;
        if let Err(error) = provider.delete(&id).await {
            self.fail(&intent, &error, is_first).await?;
            return Err(error.into());
        }
        self.finish(&intent, changes).await
    }

    fn volume(&self, step: &Step, name: &str) -> Change {
        Change::PutVolume {
            name: name.to_owned(),
            volume: RecordedVolume { provider: step.provider.clone(), created_at: self.cx.clock.now() },
        }
    }

    async fn create_volume(
        &self,
        step: &Step,
        provider: &dyn Provider,
        name: &str,
        token: &mut Option<IntentId>,
    ) -> Result<(), StepError> {
        let volumes = volumes(provider)?;
        let is_first = token.is_none();
        let intent = self.begin(step, IntentOperation::Create, None, token).await?;
        let identity = self.identity(step, &SandboxSpec::default(), 1, intent.clone());
        if let Err(error) = volumes.create_volume(name, &identity.to_labels()).await {
            self.fail(&intent, &error, is_first).await?;
            return Err(error.into());
        }
        self.finish(&intent, vec![self.volume(step, name)]).await
    }

    async fn delete_volume(
        &self,
        step: &Step,
        provider: &dyn Provider,
        name: &str,
        token: &mut Option<IntentId>,
    ) -> Result<(), StepError> {
        let volumes = volumes(provider)?;
        let is_first = token.is_none();
        let intent = self.begin(step, IntentOperation::Delete, None, token).await?;
        if let Err(error) = volumes.delete_volume(&self.cx.plan.project, name).await {
            self.fail(&intent, &error, is_first).await?;
            return Err(error.into());
        }
        self.finish(&intent, vec![Change::Forget(step.address.clone())]).await
    }

    /// Remembers what was put in place inside each sandbox all of whose guest steps succeeded. It explains later changes.
    async fn record_guests(&self, results: &[StepResult]) -> Result<(), StoreError> {
        let mut whole: BTreeMap<&str, bool> = BTreeMap::new();
        for (step, result) in self.cx.plan.steps.iter().zip(results) {
            if let Some(name) = step.address.sandbox().filter(|_| step.action.is_guest()) {
                *whole.entry(name).or_insert(true) &= *result == StepResult::Done;
            }
        }
        let mut learned = self.learned.lock().await;
        let mut changes = Vec::new();
        for (name, _) in whole.into_iter().filter(|(_, whole)| *whole) {
            let declared = self.cx.desired.sandboxes.get(name);
            if let (Some(declared), Some(record)) = (declared, learned.records.get_mut(name)) {
                record.guest = Some(declared.guest.clone());
                record.depends_on = declared.depends_on.keys().cloned().collect();
                changes.push(Change::PutSandbox { name: name.to_owned(), sandbox: Box::new(record.clone()) });
            }
        }
        if !changes.is_empty() {
            self.cx.store.record(&self.cx.plan.project, changes).await?;
        }
        Ok(())
    }

    /// Tells an event, and keeps what is worth remembering for the store.
    fn tell(&self, id: StepId, since: Option<Instant>, kind: EventKind) {
        let step = &self.cx.plan.steps[id];
        let event = Event {
            ts: self.cx.clock.now(),
            resource: Some(step.address.clone()),
            op: Some(step.action.verb()),
            elapsed_ms: since.map(|s| u64::try_from(s.elapsed().as_millis()).unwrap_or(u64::MAX)),
            kind,
        };
        self.cx.sink.event(&event);
        let (normal, reason, message) = match &event.kind {
            EventKind::StepDone { .. } => (true, "StepDone", String::new()),
            EventKind::StepFailed { failure, .. } => (false, "StepFailed", failure.message.clone()),
            EventKind::StepRetrying { message, .. } => (false, "StepRetrying", message.clone()),
            EventKind::StepSkipped { message, .. } => (false, "StepSkipped", message.clone()),
            _ => return,
        };
        let stored = crate::store::Event {
            at: event.ts,
            address: event.resource,
            kind: match normal {
                true => crate::store::EventKind::Normal,
                false => crate::store::EventKind::Warning,
            },
            operation: step.action.verb().to_owned(),
            reason: reason.to_owned(),
            message,
            run: self.cx.run,
        };
        if let Ok(mut told) = self.told.lock() {
            told.push(stored);
        }
    }

    async fn flush(&self) -> Result<(), StoreError> {
        let events = match self.told.lock() {
            Ok(mut told) => std::mem::take(&mut *told),
            Err(_) => Vec::new(),
        };
        if !events.is_empty() {
            self.cx.store.append(&self.cx.plan.project, events).await?;
        }
        Ok(())
    }
}

fn volumes(provider: &dyn Provider) -> Result<&dyn crate::provider::Volumes, StepError> {
    let message = || format!("provider `{}` has no volumes", provider.capabilities().provider);
    provider.volumes().ok_or_else(|| ProviderError::Unsupported { message: message() }.into())
}

/// A number by chance, out of a fresh id: the ids are the only source of chance that is given to us.
fn rand_chance(ids: &Arc<dyn IdSource>) -> u32 {
    let digest = crate::model::sha256_hex(ids.fresh().0.as_bytes());
    u32::from_str_radix(&digest[..8], 16).unwrap_or(u32::MAX / 2)
}
