//! The store: what Pocketenv remembers between runs, in one SQLite file.
//!
//! It holds who we are (the owner id that every object at a provider carries), the inventory of each project, the journal of
//! intents (invariant 2), leases (invariant 10), allocated host ports, events, the history of runs and condition times. It is
//! a memory, not the truth: providers' labels are, and a lost store is rebuilt from them. No secret value is ever in it; what the vault
//! holds is sealed with a key that is not here.
//!
//! One thread owns the connection and commits what waits in its queue together, or whoever calls does what it wants itself, see
//! `writer.rs`. Several processes may use one file at once. Every method returns when what it did is durable, but for those that say otherwise: what a power cut takes of
//! theirs is found out again (a result by asking the provider for the token of its intent, a lease by its process being gone), so
//! nobody waits for the disk. Giving up on a call does not take it back.

mod condition;
mod controlled;
mod error;
mod event;
mod file;
mod goal;
mod holder;
mod inventory;
mod journal;
mod lease;
mod notified;
mod port;
mod revision;
mod row;
mod vault;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

pub use controlled::Controlled;
pub use error::StoreError;
pub use event::{Event, EventKind, EventQuery, RecordedEvent};
pub use goal::KeptGoal;
pub use holder::Holder;
pub use inventory::{Change, Project};
pub use journal::{JournalEntry, Outcome};
pub use lease::{Lease, LeaseGuard};
pub use notified::Notified;
pub use revision::{Revision, Run, RunEnd};
pub use vault::SealedValue;

use crate::model::{Clock, IdSource, OwnerId, Timestamp};
use error::Fault;
use writer::{Access, Writer};

/// A handle of the store; clones share it. Dropping the last one finishes what is queued and closes the file.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Writer,
    path: Arc<PathBuf>,
    meta: file::Meta,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl Store {
    /// Opens the store at `path`; makes the directory (0700) and the file (0600) if there are none.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::NotOurs`] and [`StoreError::Newer`] for a file that cannot be used, which is left
    /// as it is; otherwise what the system or the database answers.
    pub async fn open(
        path: impl Into<PathBuf>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Result<Self, StoreError> {
        let path = path.into();
        let opened = Writer::open(path.clone(), OwnerId(ids.fresh().0), clock.now()).await?;
        Ok(Self::new(opened, path, clock, ids))
    }

    /// The same without a thread: every call runs where it is made, and nothing else runs there while it waits for the disk or for other
    /// processes. For a runtime of one thread that does one thing at a time.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_here(
        path: impl Into<PathBuf>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Result<Self, StoreError> {
        let path = path.into();
        let opened = Writer::here(&path, &OwnerId(ids.fresh().0), clock.now())?;
        Ok(Self::new(opened, path, clock, ids))
    }

    /// A store in memory that is gone with its last handle, for rehearsals and simulations: no file, no thread, and every call runs where it
    /// is made, so that on a single-threaded runtime all of it repeats exactly. A clone of the handle outlives a run that is given up.
    ///
    /// # Errors
    /// Only what the database answers.
    pub fn in_memory(clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Result<Self, StoreError> {
        let opened = Writer::in_memory(&OwnerId(ids.fresh().0), clock.now())?;
        Ok(Self::new(opened, ":memory:".into(), clock, ids))
    }

    fn new(
        (writer, meta): (Writer, file::Meta),
        path: PathBuf,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        Self { inner: Arc::new(Inner { writer, path: Arc::new(path), meta, clock, ids }) }
    }

    /// The id that marks what belongs to this store, chosen when it was made.
    pub fn owner(&self) -> &OwnerId {
        &self.inner.meta.owner
    }

    /// The key of the digests of secrets, chosen when the store was made. It must not be shown.
    pub fn digest_key(&self) -> &[u8; 32] {
        &self.inner.meta.digest_key
    }

    /// When the store was made.
    pub fn created_at(&self) -> Timestamp {
        self.inner.meta.created_at
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `work`, which only reads, and returns what it found.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.writer.turn().await;
        let answer = self.inner.writer.submit(Access::Read, self.inner.path.clone(), work);
        self.inner.writer.turn().await;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Runs `work` whole or not at all, and returns when it is durable.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.writer.turn().await;
        let answer = self.inner.writer.submit(Access::Write, self.inner.path.clone(), work);
        self.inner.writer.turn().await;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// The same, without waiting for the disk: see [`Access::Note`].
    async fn note<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.writer.turn().await;
        let answer = self.inner.writer.submit(Access::Note, self.inner.path.clone(), work);
        self.inner.writer.turn().await;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.inner.path).finish_non_exhaustive()
    }
}
