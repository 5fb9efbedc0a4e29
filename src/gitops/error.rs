//! Why a git source could not be read.

use std::path::PathBuf;
use std::time::Duration;

/// Why a git source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The URL or ref makes no sense.
    #[error("{what} {why}")]
    Invalid {
        /// What: `the URL`, `the branch`, ….
        what: &'static str,
        /// What is wrong, as it follows it.
        why: String,
    },
    /// The remote answered that it does not have the ref. This is not the same as not answering.
    #[error("the repository has no {0}")]
    NoSuchRef(String),
    /// The tree has nothing at the path.
    #[error("there is no `{path}` in revision {revision}")]
    NoSuchPath {
        /// The path in the repository.
        path: String,
        /// The commit.
        revision: String,
    },
    /// The revision has something that is not supported, at a path.
    #[error("`{path}` {why}")]
    Unsupported {
        /// The path in the repository.
        path: String,
        /// Why, and what to do, as it follows the path.
        why: &'static str,
    },
    /// More than is taken.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit with its unit.
        limit: String,
    },
    /// Git answered with an error.
    #[error("git {operation} failed: {message}")]
    Failed {
        /// The subcommand.
        operation: &'static str,
        /// The end of what it said, without credentials.
        message: String,
    },
    /// Git took too long and was ended.
    #[error("git {operation} took longer than {} s", limit.as_secs())]
    TimedOut {
        /// The subcommand.
        operation: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// Git cannot be run.
    #[error("git cannot be run; is it installed?")]
    NotRun(#[source] std::io::Error),
    /// Git said something that it never says.
    #[error("git {operation} answered with something unexpected")]
    Garbled {
        /// The subcommand.
        operation: &'static str,
    },
    /// The system.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted, as it follows "cannot".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl GitError {
    /// For `map_err`.
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
