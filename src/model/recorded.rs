//! Recorded state: what the store remembers of a project.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Address, GuestSpec, IntentId, RunState, SandboxId, SandboxSpec, SandboxState, SpecHash, Timestamp,
};

/// What the store remembers of one project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Counts the changes of the project's record; a saved plan is refused when it has moved.
    pub serial: u64,
    /// Sandboxes by name.
    pub sandboxes: BTreeMap<String, RecordedSandbox>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, RecordedVolume>,
    /// Intents begun and not known to have ended.
    pub intents: Vec<PendingIntent>,
}

impl Recorded {
    /// The providers that anything recorded lives at.
    pub fn providers(&self) -> BTreeSet<&str> {
        let sandboxes = self.sandboxes.values().map(|s| s.provider.as_str());
        let volumes = self.volumes.values().map(|v| v.provider.as_str());
        sandboxes.chain(volumes).chain(self.intents.iter().map(|i| i.provider.as_str())).collect()
    }
}

/// A sandbox as it was last applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedSandbox {
    /// The provider it lives at.
    pub provider: String,
    /// The provider's id.
    pub id: SandboxId,
    /// The spec it was created or last updated from.
    pub spec: SandboxSpec,
    /// What was last put in place inside. It explains changes and decides none: what is inside is observed.
    #[serde(default)]
    pub guest: Option<GuestSpec>,
    /// Counts the specs, from 1.
    pub generation: u64,
    /// The sandboxes it depended on, so that dependents are deleted first.
    #[serde(default)]
    pub depends_on: BTreeSet<String>,
    /// What it was last brought to. Where a listing that lags says otherwise, the provider is asked again.
    #[serde(default)]
    pub state: RunState,
    /// When it was created, by our clock.
    pub created_at: Timestamp,
}

impl RecordedSandbox {
    /// What its provider shows if it is still as it was left.
    pub fn state_left(&self) -> SandboxState {
        match self.state {
            RunState::Running => SandboxState::Running,
            RunState::Stopped | RunState::Absent => SandboxState::Stopped { unclean: None },
        }
    }
}

/// A volume as it was last applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedVolume {
    /// The provider that keeps it.
    pub provider: String,
    /// When it was created, by our clock.
    pub created_at: Timestamp,
}

/// An intent that was journalled, with no outcome: its effect is settled by asking the provider for its token (invariant 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingIntent {
    /// The idempotency token.
    pub id: IntentId,
    /// The resource.
    pub address: Address,
    /// The provider.
    pub provider: String,
    /// What was attempted.
    pub operation: IntentOperation,
    /// The hash of the spec, for a create.
    pub spec_hash: Option<SpecHash>,
    /// When it was journalled.
    pub begun_at: Timestamp,
}

/// What an intent attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentOperation {
    /// Create the resource.
    Create,
    /// Delete it.
    Delete,
}
