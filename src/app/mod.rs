//! The use cases: what each verb does, wired together from the rooms below. No flags and no printing here.

mod adopt;
mod apply;
mod collect;
pub mod conformance;
pub mod controller;
mod credentials;
mod environment;
mod error;
mod inside;
mod lock;
mod ports;
mod project;
mod rehearse;
mod snapshot;
mod target;
mod vault;
mod watch;

pub use adopt::{Found, manifest_of};
pub use apply::{
    Answer, ApplyOptions, ApplyReport, Approval, Consent, Goal, Outcome, Overrides, ReportedStep, SavedPlan,
};
pub use collect::{Orphan, Orphans, Why};
pub use credentials::{Configured, SettingSource};
pub use environment::{Directories, Environment, SystemClock, UuidIds};
pub use error::Error;
pub use inside::{Isolation, Sandbox};
pub use project::{App, Project, Selection, View};
pub use rehearse::{Rehearsal, RehearsalOptions, Verdict};
pub use snapshot::{MAX_FORKS, Snapshot};
pub use target::{Target, parse_target};
pub use vault::VaultEntry;
pub use watch::{WatchEvent, WatchOptions, WatchSink};

/// A lease that is not renewed for this long may be taken by another host.
const LEASE_TTL: std::time::Duration = std::time::Duration::from_secs(30);
/// How long a short write waits for another process that writes to the project.
const LEASE_WAIT: std::time::Duration = std::time::Duration::from_secs(5);
