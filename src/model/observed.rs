//! Observed state: what providers and guests report now, never guessed from memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RunState, SandboxId, SandboxSpec, Timestamp};

/// An answer, or why there is none. "Could not find out" and "does not exist" are different values (invariant 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observation<T> {
    /// All of it.
    Complete(T),
    /// Could not be found out.
    Unavailable {
        /// Why, for people.
        reason: String,
    },
}

impl<T> Observation<T> {
    /// The answer, if there is one.
    pub fn complete(&self) -> Option<&T> {
        match self {
            Self::Complete(value) => Some(value),
            Self::Unavailable { .. } => None,
        }
    }
}

/// Everything observed for one plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Per provider, everything there that carries our project's labels.
    pub providers: BTreeMap<String, Observation<ObservedProvider>>,
    /// The inside of each running sandbox that was looked into.
    pub guests: BTreeMap<SandboxId, Observation<ObservedGuest>>,
}

/// What one provider holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedProvider {
    /// Sandboxes by id.
    pub sandboxes: BTreeMap<SandboxId, ObservedSandbox>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, ObservedVolume>,
    /// Snapshots by id.
    #[serde(default)]
    pub snapshots: BTreeMap<String, ObservedSnapshot>,
}

/// A sandbox as its provider reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedSandbox {
    /// The provider's id.
    pub id: SandboxId,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it is doing.
    pub state: SandboxState,
    /// When it was created, by the provider's clock.
    pub created_at: Option<Timestamp>,
    /// When it last started, by the provider's clock.
    pub started_at: Option<Timestamp>,
    /// What the provider can read back of the spec it was made from; `None` where it cannot.
    pub spec: Option<SandboxSpec>,
    /// Where each declared port is reached from the host, by the port inside.
    pub endpoints: BTreeMap<u16, Endpoint>,
    /// Where each declared unix socket of this machine is, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sockets: BTreeMap<String, ObservedSocket>,
    /// Paths of mounts that are in the spec and not in place, while it runs.
    pub missing_mounts: Vec<String>,
    /// Keyed digests of the values of bound secrets that its way out has, while it runs.
    #[serde(default)]
    pub bound: BTreeMap<String, String>,
    /// What it uses of its limits, and what they held back, where the provider tells.
    #[serde(default)]
    pub usage: Usage,
    /// What else is worth telling, such as fallbacks the engine took.
    pub notes: Vec<String>,
}

/// What a sandbox uses of its limits, and what they held back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Its disk, where that is limited, while it runs.
    pub disk: Option<DiskUse>,
    /// What its limits held back, oldest first; the latest hundred.
    pub hits: Vec<LimitHit>,
}

/// How much of a limited disk is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// The bytes used, those for the file system itself among them.
    pub used_bytes: u64,
    /// The bytes of all of it.
    pub limit_bytes: u64,
    /// The files, directories and links on it.
    pub files: u64,
    /// How many it can hold.
    pub files_limit: u64,
}

/// Something that a limit held back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    /// When.
    pub at: Timestamp,
    /// One CamelCase word for programs: `OutOfMemory`, `TooManyProcesses`, `DiskFull`.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
}

/// Where a port is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port at that host.
    pub port: u16,
    /// Something accepts connections there now.
    pub listening: bool,
}

/// A unix socket of this machine that leads inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSocket {
    /// Where it is.
    pub path: String,
    /// Connections are accepted there now.
    pub listening: bool,
}

/// What a sandbox is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Being made.
    Creating,
    /// Runs.
    Running,
    /// What runs in it is frozen and keeps its memory.
    Paused,
    /// On its way to stopped.
    Stopping,
    /// Does not run and keeps its disk. `unclean` says why if nobody asked for it.
    Stopped {
        /// Why it stopped on its own, if it did.
        unclean: Option<String>,
    },
    /// On its way to gone.
    Deleting,
    /// Exists and is of no use, with the reason.
    Failed(String),
}

impl SandboxState {
    /// Whether it is up, or on its way there.
    pub fn run_state(&self) -> RunState {
        match self {
            Self::Creating | Self::Running | Self::Paused => RunState::Running,
            Self::Stopping | Self::Stopped { .. } | Self::Deleting | Self::Failed(_) => RunState::Stopped,
        }
    }
}

/// A volume as its provider reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVolume {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created, by the provider's clock.
    pub created_at: Option<Timestamp>,
}

/// A snapshot as its provider reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSnapshot {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created, by the provider's clock.
    pub created_at: Option<Timestamp>,
    /// The bytes that it takes by itself, where the provider tells.
    pub bytes: Option<u64>,
    /// What is made from it and keeps it: ids of sandboxes and other snapshots.
    pub used_by: Vec<String>,
}

/// The inside of a running sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedGuest {
    /// The digest that the environment in place was written from; `None` if none is in place or it was changed.
    pub env: Option<String>,
    /// Managed files by absolute path.
    pub files: BTreeMap<String, ObservedFile>,
    /// Repositories by absolute path.
    pub repositories: BTreeMap<String, ObservedRepository>,
    /// Preset steps that have finished, by [`super::PresetStep::id`].
    pub presets: BTreeMap<String, PresetOutcome>,
    /// Services by name.
    pub services: BTreeMap<String, ObservedService>,
}

/// A managed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedFile {
    /// The digest it was written from.
    pub digest: String,
    /// How it stands now.
    pub state: FileState,
}

/// How a managed file stands against what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// As written.
    InPlace,
    /// Content, kind or mode was changed.
    Modified,
    /// Gone.
    Missing,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedRepository {
    /// The digest of the [`super::RepositorySpec`] that it was last brought to.
    pub digest: String,
    /// Whether the working copy is still there.
    pub present: bool,
}

/// How a preset step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresetOutcome {
    /// It ran, or its condition said it need not.
    Done,
    /// It failed and was allowed to.
    FailedAllowed,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedService {
    /// The digest of the definition it was started from.
    pub digest: String,
    /// What it is doing.
    pub state: ServiceStatus,
    /// Its health by its own check, measured now; `None` if it has none or does not run.
    pub health: Option<ProbeResult>,
    /// Restarts by the supervisor since it was last started.
    pub restarts: u32,
    /// The last exit code (128 + n after signal n).
    pub exit_code: Option<i32>,
    /// When it entered this state, in the guest's clock.
    pub since: Option<Timestamp>,
}

/// What a service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceStatus {
    /// Its process runs.
    Running,
    /// It ended and is about to be started again.
    Backoff,
    /// It ended and stays so, by its restart policy, after a failure.
    Failed,
    /// It ended with 0 and stays so, by its restart policy.
    Completed,
    /// It was stopped on purpose.
    Stopped,
    /// Its supervisor is gone, and nothing looks after it.
    Dead,
}

/// The outcome of one probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeResult {
    /// It passed.
    Passing,
    /// It failed, with the reason.
    Failing(String),
}
