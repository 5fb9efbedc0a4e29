//! Leases: one writer per project (invariant 10).
//!
//! A lease is stolen only when its holder is provably gone: its process has ended, or its machine has booted since. The expiry
//! is no proof for a process that can be seen: a suspended laptop wakes up and goes on. It only decides where the holder
//! cannot be seen, as on another host or in another container.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::error::Fault;
use super::holder::{Holder, Liveness};
use super::row::{from_json, to_json};
use super::writer::Access;
use super::{Inner, Store, StoreError};
use crate::model::Timestamp;

/// The pause between two looks at a lease that is held; it doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// The right of one process to write to a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// The project.
    pub project: String,
    /// Who holds it.
    pub holder: Holder,
    /// Since when.
    pub acquired_at: Timestamp,
    /// Until when, unless renewed.
    pub expires_at: Timestamp,
    /// Anybody may take it: its holder is provably gone, or cannot be seen and let it expire.
    pub stale: bool,
}

/// A lease that this process holds. It is renewed in the background until it is dropped, which gives it back.
#[must_use = "the lease is given back when the guard is dropped"]
pub struct LeaseGuard {
    claim: Claim,
    lost: CancellationToken,
    renewal: tokio::task::JoinHandle<()>,
}

impl LeaseGuard {
    /// Cancelled when the lease is not ours any more: somebody took it by force, or could not see us and it expired. Whoever
    /// writes must stop then.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Gives the lease back and returns when others can see that. Dropping the guard gives it back too, without waiting.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn release(self) -> Result<(), StoreError> {
        self.renewal.abort();
        self.claim.withdraw().await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// What is, or is about to be, our row. It exists before the row does, so that giving up halfway leaves no lease behind.
struct Claim {
    store: Store,
    project: String,
    token: String,
}

impl Claim {
    fn withdraw(&self) -> oneshot::Receiver<Result<(), StoreError>> {
        let (project, token) = (self.project.clone(), self.token.clone());
        let inner = &self.store.inner;
        inner.writer.submit(Access::Note, inner.path.clone(), move |connection| {
            connection.execute("DELETE FROM leases WHERE project = ?1 AND token = ?2", [project, token])?;
            Ok(())
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.withdraw());
    }
}

impl Store {
    /// Takes the lease of `project` for `holder`, which is this process, waiting at most `timeout` while another holds it.
    /// It is renewed every third of `ttl`.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if it is still held at the end of `timeout`.
    pub async fn acquire(
        &self,
        project: &str,
        holder: Holder,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<LeaseGuard, StoreError> {
        let claim =
            Claim { store: self.clone(), project: project.to_owned(), token: self.inner.ids.fresh().0 };
        let deadline = tokio::time::Instant::now().checked_add(timeout);
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(lease) = self.try_acquire(&claim, &holder, ttl).await? else { break };
            let left = deadline.map(|deadline| deadline.duration_since(tokio::time::Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(StoreError::Locked { lease: Box::new(lease) });
            }
            tokio::time::sleep(pause.min(left.unwrap_or(pause))).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
        let lost = CancellationToken::new();
        // The task must not keep the store open.
        let store = std::sync::Arc::downgrade(&self.inner);
        let renewal =
            tokio::spawn(renew(store, claim.project.clone(), claim.token.clone(), ttl, lost.clone()));
        Ok(LeaseGuard { claim, lost, renewal })
    }

    /// One attempt; `Some` is the lease in the way.
    async fn try_acquire(
        &self,
        claim: &Claim,
        holder: &Holder,
        ttl: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let (project, token) = (claim.project.clone(), claim.token.clone());
        let (holder, now) = (holder.clone(), self.now());
        let json = to_json(&holder, || format!("the lease of `{project}`"))?;
        self.note(move |connection| {
            if let Some(lease) = find(connection, &project, &holder, now)?.filter(|lease| !lease.stale) {
                return Ok(Some(lease));
            }
            connection.execute(
                "INSERT OR REPLACE INTO leases (project, token, holder, acquired_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![project, token, json, now.0, after(now, ttl).0],
            )?;
            Ok(None)
        })
        .await
    }

    /// Every lease, by project.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if one was written by a version that knows more.
    pub async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let now = self.now();
        self.read(move |connection| {
            let observer = Holder::current("");
            let mut statement = connection
                .prepare("SELECT project, holder, acquired_at, expires_at FROM leases ORDER BY project")?;
            let mut rows = statement.query([])?;
            let mut leases = Vec::new();
            while let Some(row) = rows.next()? {
                leases.push(lease(row, &observer, now)?);
            }
            Ok(leases)
        })
        .await
    }

    /// Removes the lease of a project if it is stale, or whoever holds it with `force`; returns what was removed.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if its holder may be there and `force` is not given.
    pub async fn unlock(&self, project: &str, force: bool) -> Result<Option<Lease>, StoreError> {
        let (project, now) = (project.to_owned(), self.now());
        self.note(move |connection| {
            let lease = find(connection, &project, &Holder::current(""), now)?;
            if let Some(lease) = &lease {
                if !lease.stale && !force {
                    return Err(StoreError::Locked { lease: Box::new(lease.clone()) }.into());
                }
                connection.execute("DELETE FROM leases WHERE project = ?1", [&project])?;
            }
            Ok(lease)
        })
        .await
    }
}

/// Renews until the lease is lost or the store is closed.
async fn renew(
    store: std::sync::Weak<Inner>,
    project: String,
    token: String,
    ttl: Duration,
    lost: CancellationToken,
) {
    loop {
        tokio::time::sleep((ttl / 3).max(FIRST_PAUSE)).await;
        let Some(store) = store.upgrade().map(|inner| Store { inner }) else { return };
        let (project, token, expires) = (project.clone(), token.clone(), after(store.now(), ttl));
        let renewed = store
            .write(move |connection| {
                Ok(connection.execute(
                    "UPDATE leases SET expires_at = ?3 WHERE project = ?1 AND token = ?2",
                    params![project, token, expires.0],
                )?)
            })
            .await;
        match renewed {
            Ok(0) => return lost.cancel(),
            Ok(_) => {}
            // A busy or full disk may pass; whoever can see this process does not take the lease meanwhile.
            Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
        }
    }
}

fn find(
    connection: &Connection,
    project: &str,
    observer: &Holder,
    now: Timestamp,
) -> Result<Option<Lease>, Fault> {
    connection
        .query_row(
            "SELECT project, holder, acquired_at, expires_at FROM leases WHERE project = ?1",
            [project],
            |row| Ok(lease(row, observer, now)),
        )
        .optional()?
        .transpose()
}

fn lease(row: &Row<'_>, observer: &Holder, now: Timestamp) -> Result<Lease, Fault> {
    let project: String = row.get(0)?;
    let holder: Holder = from_json(&row.get::<_, String>(1)?, || format!("the lease of `{project}`"))?;
    let expires_at = Timestamp(row.get(3)?);
    let stale = match holder.liveness(observer) {
        Liveness::Alive => false,
        Liveness::Gone => true,
        Liveness::Unknown => expires_at <= now,
    };
    Ok(Lease { project, holder, acquired_at: Timestamp(row.get(2)?), expires_at, stale })
}

fn after(now: Timestamp, ttl: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)))
}
