//! What the loop tells while it works.

use serde::Serialize;

use crate::model::{Address, Timestamp};
use crate::plan::{StepId, Waiting};

/// Something that happened, as it is shown live, written as one JSON line, and kept in the store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// When.
    pub ts: Timestamp,
    /// The resource, if it is about one.
    pub resource: Option<Address>,
    /// One word for what was done: `create`, `start`, `wait for`, ….
    pub op: Option<&'static str>,
    /// Milliseconds since the operation began.
    pub elapsed_ms: Option<u64>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// A round begins: so many steps are planned.
    Planned {
        /// The round, from 1.
        round: u32,
        /// How many steps.
        steps: usize,
    },
    /// A step begins.
    StepStarted {
        /// The step.
        step: StepId,
    },
    /// A step has something to say, such as the output of a preset.
    StepOutput {
        /// The step.
        step: StepId,
        /// One line or more, without secrets.
        text: String,
    },
    /// A step failed and will be tried again.
    StepRetrying {
        /// The step.
        step: StepId,
        /// Why.
        message: String,
        /// When, in milliseconds from now.
        in_ms: u64,
    },
    /// A step succeeded.
    StepDone {
        /// The step.
        step: StepId,
    },
    /// A step failed for good.
    StepFailed {
        /// The step.
        step: StepId,
        /// Why.
        failure: Failure,
    },
    /// A step was not attempted.
    StepSkipped {
        /// The step.
        step: StepId,
        /// Why not.
        message: String,
    },
    /// A resource cannot be acted on now.
    Waits {
        /// What for.
        waiting: Waiting,
    },
    /// Another process writes to the project, and this one waits for it.
    WaitingForLock {
        /// Who holds it.
        holder: String,
    },
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What kind of failure, for programs.
    pub kind: FailureKind,
    /// The error and its causes, for people, without secrets.
    pub message: String,
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Still failing after all tries.
    Transient,
    /// Credentials are missing or wrong.
    Unauthorised,
    /// The provider does not accept what is asked.
    Invalid,
    /// It took too long.
    TimedOut,
    /// It was called off.
    Interrupted,
    /// Anything else that would fail again.
    Permanent,
}

/// Who listens.
pub trait EventSink: Send + Sync {
    /// Takes one event. Must not block for long.
    fn event(&self, event: &Event);
}

/// Listens to nothing.
pub struct NullSink;

impl EventSink for NullSink {
    fn event(&self, _: &Event) {}
}
