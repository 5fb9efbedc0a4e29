//! The pure planner: desired, observed, recorded, capabilities, policy and the time in; a plan out.
//!
//! This room does no I/O and reads no clock, randomness or environment: the same inputs give the same plan, to the byte. Every decision of
//! the program is made here; the executor carries none. "Why not" is data as well: see [`Waiting`].

mod assume;
mod diff;
mod digest;
mod guest;
pub mod lint;
pub mod order;
mod removed;
pub mod report;
mod sandbox;
#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests;
mod volume;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use assume::assume;
pub use digest::{env_digest, file_digest, owned_digest, repository_digest, service_digest};

use crate::model::{
    Address, Desired, DesiredFile, HealthCheck, IntentId, Location, Observation, Observed, ObservedSandbox,
    ObservedService, PresetStep, Recorded, RepositorySpec, RunState, SandboxId, SandboxSpec, SandboxState,
    ServiceSpec, ServiceStatus, Timestamp,
};
use crate::provider::Capabilities;

/// The version of a plan's data form; it grows when a field is added.
pub const FORMAT_VERSION: &str = "1.0";

/// Everything a plan depends on.
pub struct PlanInput<'a> {
    /// What was asked.
    pub desired: &'a Desired,
    /// What the store remembers.
    pub recorded: &'a Recorded,
    /// What is.
    pub observed: &'a Observed,
    /// The sheet of each provider in use.
    pub capabilities: &'a BTreeMap<String, &'a Capabilities>,
    /// Keyed digests of the secrets whose values could be had.
    pub secrets: &'a BTreeMap<String, String>,
    /// Where the manifest says what a field of a resource is.
    pub origin: &'a dyn Fn(&Address, &str) -> Option<Location>,
    /// What may be done.
    pub policy: &'a Policy,
    /// The time.
    pub now: Timestamp,
}

/// What a plan may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Delete sandboxes that the manifest no longer declares.
    pub prune: bool,
    /// Delete volumes that the manifest no longer declares, with their data.
    pub prune_volumes: bool,
    /// Only these resources and what is inside them; empty for all.
    pub targets: Vec<Address>,
    /// Sandboxes that are to be made anew although nothing differs, by their ids at the provider, and why. One that has been made anew has
    /// another id, so that this asks for it once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rebuild: BTreeMap<SandboxId, String>,
    /// Sandboxes that were asked to be started or stopped, by name. Bringing them to that state is no repair of drift.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub asked: BTreeSet<String>,
    /// Sandboxes, by name, that are to be paused and left alone but for that.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub pause: BTreeSet<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            prune: true,
            prune_volumes: false,
            targets: Vec::new(),
            rebuild: BTreeMap::new(),
            asked: BTreeSet::new(),
            pause: BTreeSet::new(),
        }
    }
}

/// An ordered graph of steps that realises a set of changes. Pure data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`FORMAT_VERSION`].
    pub format_version: String,
    /// The project.
    pub project: String,
    /// The serial of the record that this was planned from.
    pub base: u64,
    /// What differs, by resource, in order of address.
    pub changes: Vec<Change>,
    /// What is done about it. A step's id is its index; it comes after everything it waits for.
    pub steps: Vec<Step>,
    /// What cannot be done now, and why.
    pub waiting: Vec<Waiting>,
    /// What else is worth telling.
    pub notes: Vec<Note>,
}

impl Plan {
    /// Nothing to do and nothing to wait for.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_empty()
    }

    /// The data that executing this plan may lose, by resource.
    pub fn data_at_risk(&self) -> impl Iterator<Item = (&Address, &str)> {
        self.changes.iter().flat_map(|c| c.data_at_risk.iter().map(move |d| (&c.address, d.as_str())))
    }

    /// The identity of what this plan does: equal digests mean equal changes, steps and waits.
    pub fn digest(&self) -> String {
        crate::model::hash_of(&(&self.project, &self.changes, &self.steps, &self.waiting)).0
    }

    /// How many changes there are of each verdict.
    pub fn counts(&self) -> BTreeMap<Verdict, usize> {
        let mut counts = BTreeMap::new();
        for change in &self.changes {
            *counts.entry(change.verdict).or_insert(0) += 1;
        }
        counts
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The resource.
    pub address: Address,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why.
    pub reasons: Vec<Reason>,
    /// What may be lost, for people.
    pub data_at_risk: Vec<String>,
}

/// What becomes of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is made.
    Create,
    /// It exists, is ours by its labels, and is taken into the record.
    Adopt,
    /// It is changed while it runs.
    Live,
    /// It is stopped, changed and started.
    Restart,
    /// It is deleted and made again.
    Recreate,
    /// It is started.
    Start,
    /// It is paused.
    Pause,
    /// It is stopped.
    Stop,
    /// It is deleted.
    Delete,
    /// It is gone already and leaves the record.
    Forget,
    /// It is as desired and not yet ready: it is waited for.
    Wait,
}

/// Why something changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The manifest declares it and it does not exist.
    New {
        /// Where it is declared.
        at: Option<Location>,
    },
    /// It exists with our labels and the record does not know it.
    Found {
        /// The provider's id.
        id: String,
    },
    /// The record knows it and the provider says that it does not exist.
    Lost,
    /// It exists and is of no use.
    Failed {
        /// What the provider or guest says.
        message: String,
    },
    /// The manifest says something else than before.
    Changed(FieldChange),
    /// The manifest says the same as before and reality differs.
    Drifted {
        /// What is different.
        what: String,
    },
    /// It is declared at another provider now.
    Moved {
        /// Where it is.
        from: String,
        /// Where it should be.
        to: String,
    },
    /// The manifest no longer declares it.
    Removed,
    /// It is to be absent: by the manifest, or because the project is destroyed.
    Absent {
        /// Where it is declared.
        at: Option<Location>,
    },
    /// The manifest declares another run state.
    State {
        /// The state that is declared.
        wanted: String,
        /// Where.
        at: Option<Location>,
    },
    /// It comes with a change of what it lives in.
    Follows {
        /// The resource it lives in.
        address: Address,
    },
    /// It is not ready yet.
    NotReady {
        /// What is missing.
        message: String,
    },
    /// Nothing differs: it is asked for.
    Asked {
        /// What asks for it.
        why: String,
    },
    /// An earlier run was interrupted and its outcome is settled now.
    Interrupted {
        /// The intent's token.
        intent: IntentId,
    },
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The path in the manifest, below the resource.
    pub path: String,
    /// What stands now, as compact JSON; `None` if nothing does or it must not be shown.
    pub old: Option<String>,
    /// What is desired, as compact JSON; `None` if nothing is or it must not be shown.
    pub new: Option<String>,
    /// Where the manifest says so.
    pub at: Option<Location>,
}

/// The index of a step in its plan.
pub type StepId = usize;

/// One atomic operation: one provider or guest call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The resource whose change this serves.
    pub address: Address,
    /// The provider.
    pub provider: String,
    /// The sandbox it acts on, where that exists already; `None` for one that this plan creates.
    pub id: Option<SandboxId>,
    /// What is done.
    pub action: Action,
    /// Steps that must have succeeded before.
    pub after: BTreeSet<StepId>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
// Tag and content side by side: an inner tag would be read through a buffer in which numbers as keys (ports) are lost.
#[serde(tag = "do", content = "with", rename_all = "snake_case")]
pub enum Action {
    /// Create a volume.
    CreateVolume {
        /// Its name.
        name: String,
    },
    /// Delete a volume with its data.
    DeleteVolume {
        /// Its name.
        name: String,
    },
    /// Take a volume out of the record.
    ForgetVolume {
        /// Its name.
        name: String,
    },
    /// Take a volume into the record.
    AdoptVolume {
        /// Its name.
        name: String,
    },
    /// Create and start a sandbox.
    Create {
        /// What to make.
        spec: SandboxSpec,
        /// The generation that this spec is.
        generation: u64,
        /// The token of an interrupted create to go on with.
        resume: Option<IntentId>,
    },
    /// Take a sandbox into the record as it is.
    Adopt {
        /// What it was made from.
        spec: SandboxSpec,
        /// The generation that its labels state.
        generation: u64,
        /// Whether it was found up.
        state: RunState,
    },
    /// Bring a sandbox to a spec.
    Update {
        /// What it should be.
        spec: SandboxSpec,
        /// The generation that this spec is.
        generation: u64,
    },
    /// Start a stopped sandbox, or let a paused one go on.
    Start,
    /// Freeze what runs in a sandbox.
    Pause,
    /// Ask the services of a sandbox that is about to stop or go to end, each in its own way, one after the other. What cannot be asked is
    /// ended by the stop or delete that follows: this never fails.
    Quiesce {
        /// Running services, dependents first.
        services: Vec<String>,
    },
    /// Stop a running sandbox.
    Stop,
    /// Delete a sandbox.
    Delete {
        /// Nothing about it is kept; `false` if it is made again.
        forget: bool,
    },
    /// Delete a second sandbox that an interrupted create of ours made beside the one that is the resource. The record is about the other one.
    Discard,
    /// Take a sandbox out of the record.
    Forget,
    /// Close an interrupted intent that left nothing to do.
    Settle {
        /// Its token.
        intent: IntentId,
    },
    /// Give the way out of a sandbox the values of the secrets that are bound to hosts, and no others.
    Bind {
        /// Keyed digests of the values, by the names of the secrets.
        digests: BTreeMap<String, String>,
    },
    /// Put environment and files in place.
    Setup(Setup),
    /// Clone a repository or bring it to its ref.
    BringRepository {
        /// Where.
        path: String,
        /// What.
        spec: RepositorySpec,
        /// What the guest remembers it by.
        digest: String,
    },
    /// Stop managing a repository; the working copy stays.
    ForgetRepository {
        /// Where.
        path: String,
    },
    /// Run one step of a preset.
    RunPresetStep {
        /// The preset.
        preset: String,
        /// The step.
        step: PresetStep,
    },
    /// Forget finished preset steps that are no longer declared.
    ForgetPresetSteps {
        /// Their ids.
        ids: BTreeSet<String>,
    },
    /// Start a service, or restart it if it runs from another definition.
    StartService {
        /// Its name.
        name: String,
        /// Its definition.
        spec: ServiceSpec,
        /// What the guest remembers it by.
        digest: String,
    },
    /// Stop a service.
    StopService {
        /// Its name.
        name: String,
    },
    /// Stop a service and remove what is kept of it.
    RemoveService {
        /// Its name.
        name: String,
    },
    /// Wait until a service runs and its health check, if it has one, passes.
    WaitService {
        /// Its name.
        name: String,
        /// Its check.
        check: Option<HealthCheck>,
    },
}

impl Action {
    /// One word for people and logs.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::CreateVolume { .. } | Self::Create { .. } => "create",
            Self::DeleteVolume { .. } | Self::Delete { .. } => "delete",
            Self::ForgetVolume { .. } | Self::Forget => "forget",
            Self::AdoptVolume { .. } | Self::Adopt { .. } => "adopt",
            Self::Update { .. } => "update",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Quiesce { .. } => "end services of",
            Self::Stop => "stop",
            Self::Discard => "discard",
            Self::Settle { .. } => "settle",
            Self::Bind { .. } => "bind",
            Self::Setup(_) => "set up",
            Self::BringRepository { .. } => "check out",
            Self::ForgetRepository { .. } | Self::ForgetPresetSteps { .. } => "forget",
            Self::RunPresetStep { .. } => "run",
            Self::StartService { .. } => "start",
            Self::StopService { .. } => "stop",
            Self::RemoveService { .. } => "remove",
            Self::WaitService { .. } => "wait for",
        }
    }

    /// Whether the step acts inside a running sandbox.
    pub fn is_guest(&self) -> bool {
        matches!(
            self,
            Self::Setup(_)
                | Self::BringRepository { .. }
                | Self::ForgetRepository { .. }
                | Self::RunPresetStep { .. }
                | Self::ForgetPresetSteps { .. }
                | Self::StartService { .. }
                | Self::StopService { .. }
                | Self::RemoveService { .. }
                | Self::WaitService { .. }
        )
    }
}

/// Environment and files to put in place, in one go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The digest of the environment to write; `None` if it is in place.
    pub env: Option<String>,
    /// Files to write, by path.
    pub files: BTreeMap<String, SetupFile>,
    /// Files to remove.
    pub remove: BTreeSet<String>,
}

/// One file to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetupFile {
    /// What the guest remembers it by.
    pub digest: String,
    /// Who is to own it, as declared; absent for the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What to write.
    pub what: SetupContent,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupContent {
    /// A managed file or directory.
    File(DesiredFile),
    /// The value of a secret.
    Secret(String),
}

/// Something that cannot be done now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The resource.
    pub address: Address,
    /// What it waits for.
    pub on: WaitingOn,
}

/// What a resource waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitingOn {
    /// Its provider could not be asked; nothing is decided without it.
    Provider {
        /// The provider.
        provider: String,
        /// Why.
        reason: String,
    },
    /// The inside of the sandbox could not be asked.
    Guest {
        /// Why.
        reason: String,
    },
    /// The provider is busy with it.
    Transition {
        /// What it is doing.
        state: String,
    },
    /// Another resource is not ready and nothing in this plan makes it so.
    Dependency {
        /// That resource.
        address: Address,
    },
    /// The address of another sandbox's port is not known yet.
    Output {
        /// The port.
        address: Address,
    },
    /// The value of a secret could not be had.
    Secret {
        /// Its name.
        name: String,
    },
    /// It is protected.
    Protected,
    /// A sandbox that nothing in this plan changes mounts it.
    Mounted {
        /// That sandbox.
        by: Address,
    },
}

/// Something worth telling that needs no step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "note")]
pub enum Note {
    /// An object with our labels that no resource of the manifest or the record accounts for. `gc` collects it.
    Orphan {
        /// Its address by its labels.
        address: Address,
        /// The provider.
        provider: String,
        /// Its id.
        id: SandboxId,
    },
    /// Not declared any more and kept, because it holds data.
    Kept {
        /// The resource.
        address: Address,
    },
    /// Drift that the policy says to report only.
    Drift {
        /// The resource.
        address: Address,
        /// What is different.
        what: String,
    },
}

/// Makes the plan. There is always one: whatever cannot be done waits, with its reason.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let mut builder = Builder::new(input);
    volume::plan_volumes(&mut builder);
    sandbox::plan_sandboxes(&mut builder);
    builder.finish()
}

/// Collects a plan while the parts of the planner run.
struct Builder<'a> {
    input: &'a PlanInput<'a>,
    changes: BTreeMap<Address, Change>,
    steps: Vec<Step>,
    waiting: Vec<Waiting>,
    notes: Vec<Note>,
    /// The step that creates each volume, for the sandboxes that mount it.
    volume_steps: BTreeMap<String, StepId>,
    /// The policy's targets with everything that they depend on; empty for all.
    targets: Vec<Address>,
}

impl<'a> Builder<'a> {
    fn new(input: &'a PlanInput<'a>) -> Self {
        Self {
            input,
            changes: BTreeMap::new(),
            steps: Vec::new(),
            waiting: Vec::new(),
            notes: Vec::new(),
            volume_steps: BTreeMap::new(),
            targets: with_dependencies(input.desired, &input.policy.targets),
        }
    }

    /// Whether the policy lets this resource be touched.
    fn is_targeted(&self, address: &Address) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|t| address.is_within(t) || t.is_within(address))
    }

    fn change(&mut self, address: Address, verdict: Verdict, reasons: Vec<Reason>) -> &mut Change {
        let change = self.changes.entry(address.clone()).or_insert_with(|| Change {
            address,
            verdict,
            reasons: Vec::new(),
            data_at_risk: Vec::new(),
        });
        // Nothing that is done in the course of a recreate makes it less of one.
        if change.verdict != Verdict::Recreate {
            change.verdict = verdict;
        }
        change.reasons.extend(reasons);
        change
    }

    fn step(&mut self, step: Step) -> StepId {
        self.steps.push(step);
        self.steps.len() - 1
    }

    /// Services that run in a sandbox which is about to stop or go end first, in their own way. Returns what the stop or delete comes after.
    fn quiesce(
        &mut self,
        address: &Address,
        provider: &str,
        sandbox: &ObservedSandbox,
        mut after: BTreeSet<StepId>,
    ) -> BTreeSet<StepId> {
        let name = address.sandbox().unwrap_or_default();
        let observed = self.input.observed.guests.get(&sandbox.id).and_then(Observation::complete);
        let runs = |s: &ObservedService| matches!(s.state, ServiceStatus::Running | ServiceStatus::Backoff);
        let running: BTreeSet<&str> = observed
            .into_iter()
            .flat_map(|g| g.services.iter().filter(|(_, s)| runs(s)).map(|(n, _)| n.as_str()))
            .collect();
        if running.is_empty() || sandbox.state != SandboxState::Running {
            return after;
        }
        let recorded = self.input.recorded.sandboxes.get(name).and_then(|r| r.guest.as_ref());
        let known = recorded.or(self.input.desired.sandboxes.get(name).map(|d| &d.guest));
        let needs = |service: &str| -> BTreeSet<&str> {
            let spec = known.and_then(|g| g.services.get(service));
            spec.map(|s| s.depends_on.keys().map(String::as_str).collect()).unwrap_or_default()
        };
        let graph: BTreeMap<&str, BTreeSet<&str>> = running.iter().map(|s| (*s, needs(s))).collect();
        let sorted = order::topological(&graph).unwrap_or_else(|_| running.into_iter().collect());
        let services = sorted.into_iter().rev().map(str::to_owned).collect();
        let id = self.step(Step {
            address: address.clone(),
            provider: provider.to_owned(),
            id: Some(sandbox.id.clone()),
            action: Action::Quiesce { services },
            after: after.clone(),
        });
        after.insert(id);
        after
    }

    fn wait(&mut self, address: Address, on: WaitingOn) {
        self.waiting.push(Waiting { address, on });
    }

    fn origin(&self, address: &Address, field: &str) -> Option<Location> {
        (self.input.origin)(address, field)
    }

    fn finish(self) -> Plan {
        Plan {
            format_version: FORMAT_VERSION.to_owned(),
            project: self.input.desired.project.clone(),
            base: self.input.recorded.serial,
            changes: self.changes.into_values().collect(),
            steps: self.steps,
            waiting: self.waiting,
            notes: self.notes,
        }
    }
}

/// The targets, the sandboxes that they depend on, and the volumes that any of those mount.
fn with_dependencies(desired: &Desired, targets: &[Address]) -> Vec<Address> {
    let mut all: BTreeSet<Address> = targets.iter().cloned().collect();
    let mut open: Vec<String> = targets.iter().filter_map(|t| t.sandbox().map(str::to_owned)).collect();
    let mut seen: BTreeSet<String> = open.iter().cloned().collect();
    while let Some(name) = open.pop() {
        let Some(sandbox) = desired.sandboxes.get(&name) else { continue };
        all.extend(sandbox.spec.mounts.iter().map(|mount| Address::Volume(mount.volume.clone())));
        for dependency in sandbox.depends_on.keys() {
            all.insert(Address::Sandbox(dependency.clone()));
            if seen.insert(dependency.clone()) {
                open.push(dependency.clone());
            }
        }
    }
    all.into_iter().collect()
}
