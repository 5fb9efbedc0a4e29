//! Apply, destroy, start, stop and restart: one loop that runs until what exists is what is desired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::inside::closest;
use super::{Error, LEASE_TTL, Project, View};
use crate::model::{Address, Desired, Observation, RunState, SandboxState, ServiceState};
use crate::plan::{Plan, Policy, Verdict, Waiting, WaitingOn};
use crate::reconcile::execute::{Cancel, Execute, Execution, StepResult, execute};
use crate::reconcile::{Event, EventKind, EventSink, Failure, FailureKind};
use crate::store::{Holder, LeaseGuard, Run, RunEnd, Store, StoreError};

/// Rounds in which every step succeeds and the next plan still wants something. More than this is a fight.
const MAX_ROUNDS: u32 = 6;
/// The pause between looks while something changes by itself; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// How long something may keep changing by itself when no `--timeout` is given.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a run is to achieve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// What the manifest says.
    #[default]
    Apply,
    /// Nothing is left, except volumes that the policy keeps.
    Destroy,
}

/// Run states that differ from the manifest for this run, as `start` and `stop` ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Sandboxes by name.
    pub sandboxes: BTreeMap<String, RunState>,
    /// Services by sandbox and name.
    pub services: BTreeMap<(String, String), ServiceState>,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// The word for the history: `apply`, `destroy`, `stop`, ….
    pub verb: &'static str,
    /// What is to be achieved.
    pub goal: Goal,
    /// What may be done.
    pub policy: Policy,
    /// Deleting is fine although the manifest declares nothing at all.
    pub allow_empty: bool,
    /// Run states for this run.
    pub overrides: Overrides,
    /// How many steps may run at once.
    pub parallelism: usize,
    /// How long all of it may take.
    pub timeout: Option<Duration>,
    /// How long to wait for another process that writes to the project.
    pub lock_timeout: Duration,
    /// Wait for services to be ready.
    pub wait: bool,
    /// Plan only.
    pub dry_run: bool,
    /// A saved plan: anything else is refused.
    pub saved: Option<SavedPlan>,
    /// The git revision of the manifest, if known.
    pub git_revision: Option<String>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            verb: "apply",
            goal: Goal::Apply,
            policy: Policy::default(),
            allow_empty: false,
            overrides: Overrides::default(),
            parallelism: 16,
            timeout: None,
            lock_timeout: Duration::ZERO,
            wait: true,
            dry_run: false,
            saved: None,
            git_revision: None,
        }
    }
}

/// A plan kept in a file for a later `apply`. It is executed only if planning again gives the very same plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedPlan {
    /// What this file is.
    pub kind: SavedPlanKind,
    /// [`Plan::digest`].
    pub digest: String,
    /// The policy it was made under.
    pub policy: Policy,
    /// The plan.
    pub plan: Plan,
}

/// Marks a file as a saved plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedPlanKind {
    /// A plan of Pocketenv.
    #[serde(rename = "pocketenv.plan/1")]
    V1,
}

impl SavedPlan {
    /// Keeps a plan.
    pub fn new(plan: Plan, policy: Policy) -> Self {
        Self { kind: SavedPlanKind::V1, digest: plan.digest(), policy, plan }
    }
}

/// Who decides whether a plan is carried out.
pub trait Consent: Send + Sync {
    /// Asked before anything is done, and again if a later round would put further data at risk.
    fn approve(&self, approval: &Approval<'_>) -> Answer;
}

/// What is to be decided.
pub struct Approval<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// What is to be achieved.
    pub goal: &'a Goal,
    /// The round, from 1.
    pub round: u32,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Do it.
    Yes,
    /// Do not.
    No,
    /// It cannot be decided without this flag.
    Needs {
        /// Why, naming the flag.
        message: String,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There was nothing to do.
    Unchanged,
    /// All of it is done and measured.
    Done,
    /// Planned only.
    DryRun,
    /// Some of it is done, some failed or waits.
    Partly,
    /// It failed and nothing was done.
    Failed,
    /// The time was over.
    TimedOut,
    /// The user called it off.
    Interrupted,
    /// The user said no.
    Declined,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Done => "done",
            Self::DryRun => "dry_run",
            Self::Partly => "partly",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
            Self::Declined => "declined",
        }
    }

    /// The exit code of the program, as its manual has it.
    pub fn exit_code(self, failures: &[&Failure]) -> i32 {
        match self {
            Self::Unchanged | Self::Done | Self::DryRun => 0,
            Self::Partly => 4,
            Self::Failed if failures.iter().any(|f| f.kind == FailureKind::Unauthorised) => 7,
            Self::Failed => 1,
            Self::TimedOut => 5,
            Self::Interrupted => 130,
            Self::Declined => 8,
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct ApplyReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The project.
    pub project: String,
    /// The first plan; `None` only if there never was one.
    pub plan: Plan,
    /// Every step of every round, with how it ended.
    pub steps: Vec<ReportedStep>,
    /// What could not be done at the end, and why.
    pub waiting: Vec<Waiting>,
    /// The number of the run in the history, if it is there.
    pub revision: Option<u64>,
    /// The exit code of the program.
    pub exit_code: i32,
}

/// One step and how it ended.
#[derive(Clone, Debug, Serialize)]
pub struct ReportedStep {
    /// The round, from 1.
    pub round: u32,
    /// The resource.
    pub resource: Address,
    /// What was done.
    pub op: &'static str,
    /// How it ended: `done`, `failed`, `skipped`.
    pub result: &'static str,
    /// Why it failed or was skipped.
    pub message: Option<String>,
    /// The failure, if it is one.
    #[serde(skip)]
    pub failure: Option<Failure>,
}

impl Project<'_> {
    /// Runs the loop.
    pub async fn apply(
        &self,
        options: &ApplyOptions,
        consent: &dyn Consent,
        sink: &dyn EventSink,
        cancel: &Cancel,
    ) -> Result<ApplyReport, Error> {
        let deadline = options.timeout.map(|t| Instant::now() + t);
        if options.dry_run {
            let view = self.goal_view(options, false).await?;
            let plan = self.plan(&view, &options.policy)?;
            return Ok(Report::new(&self.name, plan).end(Outcome::DryRun, Vec::new()));
        }
        let lease = self.lease(options, sink).await?;
        let result =
            Looping { project: self, options, consent, sink, cancel, deadline, lease: &lease }.run().await;
        if let Err(error) = lease.release().await {
            tracing::warn!(%error, "the lease could not be given back; it is given up with this process");
        }
        if options.goal == Goal::Destroy && matches!(&result, Ok(r) if r.exit_code == 0) {
            self.store.forget_project(&self.name).await?;
        }
        result
    }

    async fn lease(&self, options: &ApplyOptions, sink: &dyn EventSink) -> Result<LeaseGuard, Error> {
        let actor = format!("{} {}", self.app.environment().actor, options.verb);
        let holder = Holder::current(actor);
        let at_once = self.store.acquire(&self.name, holder.clone(), LEASE_TTL, Duration::ZERO).await;
        match at_once {
            Err(StoreError::Locked { lease }) if !options.lock_timeout.is_zero() => {
                sink.event(&Event {
                    ts: self.app.environment().clock.now(),
                    resource: None,
                    op: Some("lock"),
                    elapsed_ms: None,
                    kind: EventKind::WaitingForLock { holder: lease.holder.to_string() },
                });
                Ok(self.store.acquire(&self.name, holder, LEASE_TTL, options.lock_timeout).await?)
            }
            other => Ok(other?),
        }
    }

    /// Looks, and bends what is desired to what this run is to achieve.
    async fn goal_view(&self, options: &ApplyOptions, keep: bool) -> Result<View, Error> {
        // Nothing is given to a sandbox that goes away, so no secret is needed.
        let needs_secrets = options.goal == Goal::Apply;
        let mut view = self.look(keep && needs_secrets, needs_secrets).await?;
        match options.goal {
            Goal::Destroy => destroy(&mut view, &options.policy),
            Goal::Apply => {
                self.bend(&mut view.desired, &options.overrides)?;
                self.check_pause(&view, &options.policy)?;
            }
        }
        Ok(view)
    }

    /// Only what runs can be paused, and only where the provider can do that.
    fn check_pause(&self, view: &View, policy: &Policy) -> Result<(), Error> {
        for name in &policy.pause {
            let names: Vec<String> = view.desired.sandboxes.keys().cloned().collect();
            let sandbox = view.desired.sandboxes.get(name).ok_or_else(|| Error::Unknown {
                kind: "sandbox",
                name: name.clone(),
                project: self.name.clone(),
                close: closest(name, &names),
            })?;
            if !self.provider(&sandbox.provider)?.capabilities().pause {
                let message = format!(
                    "provider `{}` cannot pause `{name}`; `pocketenv stop {name}` stops it",
                    sandbox.provider
                );
                return Err(Error::Refused { message });
            }
            let id = view.recorded.sandboxes.get(name).map(|recorded| &recorded.id);
            let listing = view.observed.providers.get(&sandbox.provider).and_then(Observation::complete);
            let found = id.zip(listing).and_then(|(id, listing)| listing.sandboxes.get(id));
            if let Some(found) = found
                && !matches!(found.state, SandboxState::Running | SandboxState::Paused)
            {
                let state = "does not run, and only what runs can be paused".to_owned();
                return Err(Error::NotRunning { name: name.clone(), state });
            }
            if listing.is_some() && found.is_none() {
                let state = "does not exist; `pocketenv apply` makes it".to_owned();
                return Err(Error::NotRunning { name: name.clone(), state });
            }
        }
        Ok(())
    }

    fn bend(&self, desired: &mut Desired, overrides: &Overrides) -> Result<(), Error> {
        let unknown = |kind, name: &str, names: Vec<String>| Error::Unknown {
            kind,
            name: name.to_owned(),
            project: self.name.clone(),
            close: closest(name, &names),
        };
        for (name, state) in &overrides.sandboxes {
            let names = desired.sandboxes.keys().cloned().collect();
            let sandbox = desired.sandboxes.get_mut(name).ok_or_else(|| unknown("sandbox", name, names))?;
            sandbox.state = *state;
        }
        for ((name, service), state) in &overrides.services {
            let names = desired.sandboxes.keys().cloned().collect();
            let sandbox = desired.sandboxes.get_mut(name).ok_or_else(|| unknown("sandbox", name, names))?;
            let services = &mut sandbox.guest.services;
            let names = services.keys().cloned().collect();
            services.get_mut(service).ok_or_else(|| unknown("service", service, names))?.state = *state;
        }
        Ok(())
    }
}

/// Everything is to go; volumes stay unless the policy says otherwise, and protected ones always.
fn destroy(view: &mut View, policy: &Policy) {
    let targeted = |address: &Address| {
        policy.targets.is_empty()
            || policy.targets.iter().any(|t| address.is_within(t) || t.is_within(address))
    };
    for (name, sandbox) in &mut view.desired.sandboxes {
        if targeted(&Address::Sandbox(name.clone())) {
            sandbox.state = RunState::Absent;
        }
    }
    // A volume that stays desired is not deleted; one that does not exist must not be made now.
    let providers = &view.observed.providers;
    view.desired.volumes.retain(|name, volume| {
        let listing = providers.get(&volume.provider).and_then(Observation::complete);
        volume.protect && listing.is_some_and(|l| l.volumes.contains_key(name))
    });
}

/// One run of the loop.
struct Looping<'a> {
    project: &'a Project<'a>,
    options: &'a ApplyOptions,
    consent: &'a dyn Consent,
    sink: &'a dyn EventSink,
    cancel: &'a Cancel,
    deadline: Option<Instant>,
    lease: &'a LeaseGuard,
}

impl Looping<'_> {
    async fn run(&self) -> Result<ApplyReport, Error> {
        let view = self.project.goal_view(self.options, true).await?;
        for warning in &view.warnings {
            tracing::warn!("{warning}");
        }
        let plan = self.project.plan(&view, &self.policy())?;
        self.check_saved(&plan)?;
        let mut report = Report::new(&self.project.name, plan.clone());
        if plan.is_empty() {
            return Ok(report.end(Outcome::Unchanged, Vec::new()));
        }
        self.check_empty(&view.desired, &plan)?;
        match self.ask(&plan, 1)? {
            true => {}
            false => return Ok(report.end(Outcome::Declined, plan.waiting)),
        }
        report.revision = Some(self.begin_run(&view.desired).await?);
        let ended = self.rounds(view, plan, &mut report).await;
        let (outcome, waiting) = match &ended {
            Ok((outcome, waiting)) => (*outcome, waiting.clone()),
            Err(_) => (Outcome::Failed, Vec::new()),
        };
        let report = report.end(outcome, waiting);
        self.end_run(&report).await?;
        ended.map(|_| report)
    }

    fn policy(&self) -> Policy {
        match &self.options.saved {
            Some(saved) => saved.policy.clone(),
            None => self.options.policy.clone(),
        }
    }

    fn check_saved(&self, plan: &Plan) -> Result<(), Error> {
        match &self.options.saved {
            Some(saved) if saved.digest != plan.digest() => Err(Error::Refused {
                message:
                    "the saved plan is stale: what exists or what is declared has changed since it was made; \
                          make a new one with `pocketenv plan --out`"
                        .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// A manifest that came out empty, by a mistake in what generates it or a wrong path, must not end everything.
    fn check_empty(&self, desired: &Desired, plan: &Plan) -> Result<(), Error> {
        let declares = !desired.sandboxes.is_empty() || !desired.volumes.is_empty();
        let deletes = plan.changes.iter().filter(|change| change.verdict == Verdict::Delete).count();
        if declares || deletes == 0 || self.options.allow_empty || self.options.goal == Goal::Destroy {
            return Ok(());
        }
        Err(Error::Refused {
            message: format!(
                "nothing is declared, and {deletes} of what exists would be deleted; `--allow-empty` says that this is meant, \
                 and `pocketenv destroy` is the verb for it"
            ),
        })
    }

    fn ask(&self, plan: &Plan, round: u32) -> Result<bool, Error> {
        if plan.steps.is_empty() {
            return Ok(true);
        }
        match self.consent.approve(&Approval { plan, goal: &self.options.goal, round }) {
            Answer::Yes => Ok(true),
            Answer::No => Ok(false),
            Answer::Needs { message } => Err(Error::Refused { message }),
        }
    }

    /// Executes, looks again, and goes on until nothing is left to do.
    async fn rounds(
        &self,
        mut view: View,
        mut plan: Plan,
        report: &mut Report,
    ) -> Result<(Outcome, Vec<Waiting>), Error> {
        let mut at_risk: BTreeSet<Address> = plan.data_at_risk().map(|(a, _)| a.clone()).collect();
        let mut round = 1;
        let mut pause = FIRST_PAUSE;
        let patience = Instant::now() + PATIENCE;
        loop {
            if self.cancel.graceful.is_cancelled() {
                return Ok((Outcome::Interrupted, plan.waiting));
            }
            if self.lease.lost().is_cancelled() {
                let message = "another process took over the lease of this project".to_owned();
                return Err(Error::Refused { message });
            }
            if plan.is_empty() {
                return Ok((Outcome::Done, Vec::new()));
            }
            if plan.steps.is_empty() {
                // Nothing to do but to wait, and only for what changes by itself.
                let over = Instant::now() >= self.deadline.unwrap_or(patience);
                if over || !plan.waiting.iter().any(|w| changes_by_itself(&w.on)) {
                    let outcome = if over && self.deadline.is_some() {
                        Outcome::TimedOut
                    } else {
                        report.partly_or_failed()
                    };
                    return Ok((outcome, plan.waiting));
                }
                self.rest(&mut pause).await;
            } else {
                if round > MAX_ROUNDS {
                    let addresses: BTreeSet<String> =
                        plan.steps.iter().map(|s| s.address.to_string()).collect();
                    return Err(Error::NoProgress(addresses.into_iter().collect::<Vec<_>>().join(", ")));
                }
                let execution = self.execute(&view, &plan, round, report).await;
                report.add(round, &plan, &execution);
                if let Some(message) = execution.store_error {
                    tracing::error!("{message}");
                    return Ok((report.partly_or_failed(), plan.waiting));
                }
                if let Some(outcome) = self.early_end(&execution, report) {
                    return Ok((outcome, plan.waiting));
                }
                round += 1;
                pause = FIRST_PAUSE;
            }
            view = self.project.goal_view(self.options, true).await?;
            plan = self.project.plan(&view, &self.policy())?;
            let now_at_risk: BTreeSet<Address> = plan.data_at_risk().map(|(a, _)| a.clone()).collect();
            if !now_at_risk.is_subset(&at_risk) {
                self.check_empty(&view.desired, &plan)?;
                if !self.ask(&plan, round)? {
                    return Ok((report.partly_or_failed(), plan.waiting));
                }
                at_risk.extend(now_at_risk);
            }
        }
    }

    async fn rest(&self, pause: &mut Duration) {
        tokio::select! {
            biased;
            () = tokio::time::sleep(*pause) => {}
            () = self.cancel.graceful.cancelled() => {}
        }
        *pause = (*pause * 2).min(LAST_PAUSE);
    }

    async fn execute(&self, view: &View, plan: &Plan, round: u32, report: &Report) -> Execution {
        let environment = self.project.app.environment();
        self.sink.event(&Event {
            ts: environment.clock.now(),
            resource: None,
            op: None,
            elapsed_ms: None,
            kind: EventKind::Planned { round, steps: plan.steps.len() },
        });
        execute(&Execute {
            plan,
            desired: &view.desired,
            recorded: &view.recorded,
            registry: &self.project.registry,
            store: &self.project.store,
            secrets: &view.secrets,
            sink: self.sink,
            clock: &environment.clock,
            ids: &environment.ids,
            parallelism: self.options.parallelism,
            deadline: self.deadline,
            cancel: self.cancel,
            wait: self.options.wait,
            run: report.revision,
        })
        .await
    }

    /// Whether this round was the last one, whatever is left to do.
    fn early_end(&self, execution: &Execution, report: &Report) -> Option<Outcome> {
        if self.cancel.graceful.is_cancelled() || self.cancel.now.is_cancelled() {
            return Some(Outcome::Interrupted);
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Some(Outcome::TimedOut);
        }
        if execution.failures().next().is_some() {
            return Some(report.partly_or_failed());
        }
        (!self.options.wait).then_some(Outcome::Done)
    }

    async fn begin_run(&self, desired: &Desired) -> Result<u64, Error> {
        let store: &Store = &self.project.store;
        let manifest = self.project.manifest.as_ref().filter(|_| self.project.pinned.is_none());
        let files = async {
            let Some(manifest) = manifest else { return Ok(()) };
            let paths = manifest.files().into_iter().map(Into::into).collect();
            store.set_manifest(&self.project.name, &manifest.digest(), paths).await
        };
        let run = Run {
            actor: self.project.app.environment().actor.clone(),
            verb: self.options.verb.to_owned(),
            manifest_digest: manifest.map(crate::manifest::Manifest::digest),
            git_revision: self.options.git_revision.clone(),
        };
        // Asked for together, they cost one sync of the disk.
        let ((), revision) = tokio::try_join!(files, store.begin_run(&self.project.name, run))?;
        if self.options.goal == Goal::Apply && self.options.overrides == Overrides::default() {
            store.keep_goal(&self.project.name, revision, &self.project.goal(desired)).await?;
        }
        Ok(revision)
    }

    async fn end_run(&self, report: &ApplyReport) -> Result<(), Error> {
        let Some(revision) = report.revision else { return Ok(()) };
        let counts = report.plan.counts();
        let end = RunEnd {
            changes: counts
                .iter()
                .map(|(verdict, n)| (format!("{verdict:?}").to_lowercase(), *n as u64))
                .collect(),
            outcome: report.outcome.word().to_owned(),
            exit_code: report.exit_code,
        };
        Ok(self.project.store.end_run(&self.project.name, revision, end).await?)
    }
}

/// Whether waiting may help.
fn changes_by_itself(on: &WaitingOn) -> bool {
    matches!(on, WaitingOn::Transition { .. } | WaitingOn::Output { .. } | WaitingOn::Guest { .. })
}

/// A report while the run goes on.
struct Report {
    project: String,
    plan: Plan,
    steps: Vec<ReportedStep>,
    revision: Option<u64>,
}

impl Report {
    fn new(project: &str, plan: Plan) -> Self {
        Self { project: project.to_owned(), plan, steps: Vec::new(), revision: None }
    }

    fn add(&mut self, round: u32, plan: &Plan, execution: &Execution) {
        for (step, result) in plan.steps.iter().zip(&execution.results) {
            let (word, message, failure) = match result {
                StepResult::Done => ("done", None, None),
                StepResult::Failed(failure) => {
                    ("failed", Some(failure.message.clone()), Some(failure.clone()))
                }
                StepResult::Skipped(message) => ("skipped", Some(message.clone()), None),
            };
            self.steps.push(ReportedStep {
                round,
                resource: step.address.clone(),
                op: step.action.verb(),
                result: word,
                message,
                failure,
            });
        }
    }

    fn partly_or_failed(&self) -> Outcome {
        if self.steps.iter().any(|s| s.result == "done") { Outcome::Partly } else { Outcome::Failed }
    }

    fn end(self, outcome: Outcome, waiting: Vec<Waiting>) -> ApplyReport {
        let failures: Vec<&Failure> = self.steps.iter().filter_map(|s| s.failure.as_ref()).collect();
        let exit_code = outcome.exit_code(&failures);
        ApplyReport {
            outcome,
            exit_code,
            project: self.project,
            plan: self.plan,
            steps: self.steps,
            waiting,
            revision: self.revision,
        }
    }
}
