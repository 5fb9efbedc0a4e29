//! What can go wrong in the engine.

use std::io;
use std::path::{Path, PathBuf};

/// An engine failure, with what was being done.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No sandbox has this id.
    #[error("sandbox `{0}` does not exist")]
    NotFound(String),
    /// The sandbox is not running.
    #[error("sandbox `{0}` is not running")]
    NotRunning(String),
    /// The sandbox is frozen, so that nothing in it answers.
    #[error("sandbox `{0}` is paused; resume it first")]
    Paused(String),
    /// The sandbox must be stopped for this.
    #[error("sandbox `{0}` is running; stop it first")]
    Running(String),
    /// The id is taken by a sandbox with other labels.
    #[error("sandbox `{0}` already exists with other labels")]
    AlreadyExists(String),
    /// The request makes no sense; nothing was done.
    #[error("{0}")]
    Invalid(String),
    /// A limit cannot be enforced on this machine; nothing was done.
    #[error("{0}")]
    Unenforceable(String),
    /// The recorded state cannot be read.
    #[error("the recorded state of `{id}` is unreadable: {reason}")]
    Broken {
        /// The sandbox or volume.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The sandbox's processes could not be started.
    #[error("sandbox `{id}` could not start: {step}: {reason}")]
    Launch {
        /// The sandbox.
        id: String,
        /// The step of the launch that failed.
        step: String,
        /// What the system said.
        reason: String,
    },
    /// The running sandbox did not answer as it should.
    #[error("cannot talk to sandbox `{id}`")]
    Control {
        /// The sandbox.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// A file inside cannot be read.
    #[error("cannot read /run/{path} in sandbox `{id}`")]
    Read {
        /// The sandbox.
        id: String,
        /// The file, below `/run`.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A command could not be started inside.
    #[error("cannot run the command in sandbox `{id}`: {what}")]
    Exec {
        /// The sandbox.
        id: String,
        /// The step that failed, with the program, directory or user concerned.
        what: String,
        /// What the system said: `NotFound` for a program or directory that is not there.
        source: io::Error,
    },
    /// No session has this name.
    #[error("sandbox `{id}` has no session `{name}`")]
    NoSession {
        /// The sandbox.
        id: String,
        /// The session.
        name: String,
    },
    /// What runs the sandbox does not know the request.
    #[error(
        "sandbox `{0}` was started by an older pocketenv, which cannot do this; stop and start it first (its files are kept)"
    )]
    Outdated(String),
    /// Nothing inside accepted the connection.
    #[error("port {port} of sandbox `{id}` does not answer")]
    Dial {
        /// The sandbox.
        id: String,
        /// The port inside.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// A port could not be listened on; nothing was changed.
    #[error("cannot listen on {address} for sandbox `{id}`: {reason}")]
    Listen {
        /// The sandbox.
        id: String,
        /// The address on the host, or the port inside.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// No snapshot has this name.
    #[error("snapshot `{0}` does not exist")]
    NoSnapshot(String),
    /// The name is taken.
    #[error("snapshot `{0}` exists already; a snapshot is never written over")]
    SnapshotExists(String),
    /// Something is made from the snapshot.
    #[error("snapshot `{name}` is in use: {user} is made from it")]
    SnapshotInUse {
        /// The snapshot.
        name: String,
        /// One thing that is made from it, such as "sandbox `x`".
        user: String,
    },
    /// An image cannot be had, or cannot be used.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// The volume is mounted by a sandbox.
    #[error("volume `{name}` is used by sandbox `{user}`")]
    VolumeInUse {
        /// The volume.
        name: String,
        /// One sandbox that mounts it.
        user: String,
    },
}

impl EngineError {
    /// For `map_err`: a failed file operation.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
        let path = path.to_owned();
        move |source| EngineError::File { what, path, source }
    }
}
