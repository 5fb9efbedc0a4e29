//! What can go wrong with the store, in words that say what to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;

use super::Lease;

/// Why the store could not do what was asked. Unless a variant says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or its directory could not be made or reached.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted, as it follows "cannot".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is cut short, overwritten or otherwise not readable as a store.
    #[error(
        "the store {} is damaged: {detail}; move it aside (with its -wal and -shm files) and run the command again: what it \
         recorded is found again by the labels at the providers",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file is a database of another program.
    #[error("{} is a database of another program (application id {found:#010x}); choose another place for the store", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// The application id it carries.
        found: i32,
    },
    /// The file was written by a newer Pocketenv.
    #[error(
        "the store {} has version {found}, and this pocketenv knows up to version {supported}; use a pocketenv at least as new \
         as the one that wrote it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        supported: i64,
    },
    /// Another process kept the file locked for longer than the store waits.
    #[error("the store {} is kept busy by another process; try again", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// The database's answer.
        source: Arc<rusqlite::Error>,
    },
    /// There is no space left. What was acknowledged before is kept.
    #[error("no space left for the store {}; free some and run the command again", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// The database's answer.
        source: Arc<rusqlite::Error>,
    },
    /// Any other answer of the database.
    #[error("the store {} failed", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The database's answer.
        source: Arc<rusqlite::Error>,
    },
    /// The store's thread is gone.
    #[error("the store is closed")]
    Closed,
    /// A row is there and does not say what it should.
    #[error("the store's record of {what} cannot be read: {detail}")]
    Unreadable {
        /// Which record.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A value that cannot be written down; a mistake of the program.
    #[error("{what} cannot be written to the store")]
    Unwritable {
        /// Which value.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// An intent of this id was begun before: tokens are used once.
    #[error("the intent {id} was begun before")]
    IntentReused {
        /// The token.
        id: String,
    },
    /// No intent of this id is pending in the project.
    #[error("no intent {id} is pending in project `{project}`")]
    NoSuchIntent {
        /// The project.
        project: String,
        /// The token.
        id: String,
    },
    /// No run of this number is open in the project.
    #[error("run {revision} of project `{project}` is not open")]
    NoSuchRun {
        /// The project.
        project: String,
        /// The number.
        revision: u64,
    },
    /// Every candidate is taken by another port.
    #[error(
        "no free host port for port {port} of sandbox `{sandbox}`: every candidate is taken by another declared port"
    )]
    NoFreePort {
        /// The sandbox.
        sandbox: String,
        /// The port inside it.
        port: u16,
    },
    /// Another process writes to the project.
    #[error("project `{}` is locked by {}", lease.project, lease.holder)]
    Locked {
        /// The lease in the way.
        lease: Box<Lease>,
    },
}

impl StoreError {
    /// Sorts an answer of the database by what a user can do about it.
    pub(super) fn database(path: &Path, source: Arc<rusqlite::Error>) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, detail: source.to_string() }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path, source },
            Some(ErrorCode::DiskFull) => Self::Full { path, source },
            _ => Self::Database { path, source },
        }
    }
}

/// How a job on the store's thread fails: by the database, whose answer is sorted later, or by its own finding.
pub(super) enum Fault {
    /// The database's answer.
    Sql(rusqlite::Error),
    /// The job's finding.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
