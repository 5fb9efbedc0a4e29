//! The use cases: what each verb does, wired together from the rooms below. No flags and no printing here.

mod apply;
mod environment;
mod error;
mod inside;
mod ports;
mod project;
mod target;

pub use apply::{
    Answer, Approval, ApplyOptions, ApplyReport, Consent, Goal, Outcome, Overrides, ReportedStep, SavedPlan,
};
pub use environment::{Directories, Environment, SystemClock, UuidIds};
pub use error::Error;
pub use inside::Sandbox;
pub use project::{App, Project, Selection, View};
pub use target::{Target, parse_target};
