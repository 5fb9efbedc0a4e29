//! What travels between the simulated cloud and its clients. `docs/sim.md` describes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What the cloud can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudCapabilities {
    /// Objects carry labels.
    pub labels: bool,
    /// An idempotency key makes one sandbox of two creates.
    pub idempotent_create: bool,
    /// The spec is given back.
    pub read_back: bool,
    /// `suspend` or `destroy`.
    pub stop: String,
    /// How long a listing may lag, in milliseconds.
    pub settle_ms: u64,
    /// The most calls at once.
    pub concurrency: usize,
}

/// How often one operation was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Calls, whatever became of them.
    pub calls: u64,
    /// Those that were answered with 429.
    pub throttled: u64,
}

/// A sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its name, chosen by the client.
    pub name: String,
    /// Its labels; empty where the cloud has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it is doing.
    pub state: State,
    /// Why, if it failed or stopped on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was created, in milliseconds since the epoch by the cloud's clock.
    pub created_at: i64,
    /// When it last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// What it was made from, as the client gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Box<RawValue>>,
    /// Ports inside that something listens on.
    #[serde(default)]
    pub listening: Vec<u16>,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Volumes that it should have mounted and has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_volumes: Vec<String>,
}

/// What a sandbox is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being made.
    Creating,
    /// Runs.
    Running,
    /// On its way to stopped.
    Stopping,
    /// Does not run.
    Stopped,
    /// On its way to running.
    Starting,
    /// On its way to gone.
    Deleting,
    /// Of no use.
    Failed,
}

/// A new sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateSandbox {
    /// Its name.
    pub name: String,
    /// Its labels; refused where the cloud has none.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it is made from; any JSON.
    pub spec: Box<RawValue>,
    /// Names of the volumes that it mounts.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Ports inside that are reached from outside.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// It is gone after so many milliseconds.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
}

/// A change of a sandbox. What is absent stays; labels are laid over those that are there.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct PatchSandbox {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// What it is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Box<RawValue>>,
    /// Names of the volumes that it mounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<String>>,
    /// Ports inside that are reached from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, unique in the account.
    pub name: String,
    /// Its labels; empty where the cloud has none.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was created, by the cloud's clock.
    #[serde(default)]
    pub created_at: i64,
}

/// A page of a listing.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A command to run inside: the first line of the request; standard input is what follows it.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Who runs it.
    #[serde(default)]
    pub user: Option<String>,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output, base64.
    pub stdout: String,
    /// What it wrote to standard error, base64.
    pub stderr: String,
}

/// What an error answer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// A word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}
