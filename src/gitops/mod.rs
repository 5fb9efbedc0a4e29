//! Git sources: a repository and a ref → the projects of one revision, each checked out into a directory of its own.
//!
//! What a repository holds is not trusted. Git runs without a shell, hooks, prompts and helpers that the repository could choose; files are
//! written from the objects themselves, so that no attribute or filter of the repository has a say; time, size and number are bounded.
//! A checkout is named by the hash of its tree: what did not change keeps its directory, and one that exists is complete.

mod checkout;
mod error;
mod git;
mod mirror;
mod remote;

pub use checkout::{Checkouts, MAX_CHECKOUT_BYTES, MAX_FILES};
pub use error::GitError;
pub use mirror::{Found, MAX_MIRROR_BYTES, MAX_PROJECTS, Mirror};
pub use remote::{Reference, Remote};
