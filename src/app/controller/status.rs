//! What the controller tells about itself, in the words that `status` uses for one project.

use serde::Serialize;

use crate::manifest::Diagnostic;
use crate::model::{Health, Sync, Timestamp};

/// The status of a controller.
#[derive(Clone, Debug, Serialize)]
pub struct ControllerStatus {
    /// The version of this form.
    pub format_version: &'static str,
    /// Whether all of it is as desired.
    pub sync: Sync,
    /// The worst health in it.
    pub health: Health,
    /// Sources, in the order of the file.
    pub sources: Vec<SourceStatus>,
}

/// The status of a source.
#[derive(Clone, Debug, Serialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Its URL or directory.
    pub from: String,
    /// What of it is followed: a branch, a tag, a commit.
    pub reference: Option<String>,
    /// The commit that it is at, as far as could be found out.
    pub revision: Option<String>,
    /// Why it could not be looked at the last time; empty if it could.
    pub message: String,
    /// When it was last looked at.
    pub looked_at: Option<Timestamp>,
    /// Its projects, by directory.
    pub projects: Vec<ControlledStatus>,
    /// Who is told how they fare.
    pub notify: Vec<NotifyStatus>,
}

/// How telling somebody goes.
#[derive(Clone, Debug, Serialize)]
pub struct NotifyStatus {
    /// The receiver's name.
    pub name: String,
    /// Why the last try failed; empty if it did not.
    pub message: String,
    /// Of how many projects the newest could not be told and is not tried any more.
    pub given_up: u64,
}

/// The status of a project of a source.
#[derive(Clone, Debug, Serialize)]
pub struct ControlledStatus {
    /// Its directory in the source.
    pub path: String,
    /// Its name, once it is known.
    pub project: Option<String>,
    /// Whether what exists is as the newest revision says.
    pub sync: Sync,
    /// The worst health in it.
    pub health: Health,
    /// What it is doing, in one word: `Pending`, `Applied`, `Waiting`, `Invalid`, `Failed`, `Suspended`, `Removed`, `Watching`.
    pub phase: Phase,
    /// Why it is not `Synced` and `Healthy`; empty if it is.
    pub message: String,
    /// The last good revision.
    pub revision: Option<String>,
    /// What is wrong with the newest revision, if it is not the last good one.
    pub diagnostics: Vec<Diagnostic>,
    /// When it was last reconciled.
    pub reconciled_at: Option<Timestamp>,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// Sandboxes by health.
    pub sandboxes: std::collections::BTreeMap<String, u64>,
}

/// What a project is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Not looked at yet.
    Pending,
    /// As the last good revision says.
    Applied,
    /// Something is in the way; the message says what.
    Waiting,
    /// The newest revision cannot be used; the last good one stays.
    Invalid,
    /// The last run failed and is tried again.
    Failed,
    /// Changed by nobody, as the source says.
    Suspended,
    /// The source does not have it any more.
    Removed,
    /// Compared and not healed, as the source says.
    Watching,
}

impl ControlledStatus {
    /// A project that is not known yet.
    pub(super) fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            project: None,
            sync: Sync::Unknown,
            health: Health::Unknown,
            phase: Phase::Pending,
            message: String::new(),
            revision: None,
            diagnostics: Vec::new(),
            reconciled_at: None,
            took_ms: 0,
            sandboxes: std::collections::BTreeMap::new(),
        }
    }
}
