//! File events and what follows from them: which files changed, when to act on it, and what a directory of the host holds now.
//!
//! Nothing here knows of projects or sandboxes. [`Files`] hears of changes, [`Debounce`] says when a storm is over or has lasted long enough, [`Tree`]
//! keeps what a directory holds, [`Feedback`] notices that a change is the consequence of what was done about the one before.

mod debounce;
mod events;
mod feedback;
mod tree;

pub use debounce::Debounce;
pub use events::{Changes, Files, News, WatchError};
pub use feedback::{Feedback, Verdict};
pub use tree::{Tree, git_is_busy};
