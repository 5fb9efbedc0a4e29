//! Events: what happened to each resource, appended and never changed, the newest kept.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::row::{address, count, from_word, int, to_word};
use super::{Store, StoreError};
use crate::model::{Address, Timestamp};

/// Events kept per project.
const KEPT: i64 = 10_000;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// To which resource; `None` for the project as a whole.
    pub address: Option<Address>,
    /// Whether somebody should care.
    pub kind: EventKind,
    /// The operation it belongs to: `create`, `start`, `health`, …
    pub operation: String,
    /// One CamelCase word for programs.
    pub reason: String,
    /// One sentence for people. Secrets must have been taken out.
    pub message: String,
    /// The revision of the run it belongs to.
    pub run: Option<u64>,
}

/// Whether somebody should care about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// As it should be.
    Normal,
    /// Something is not as it should be.
    Warning,
}

/// An event with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedEvent {
    /// Its number in the project, from 1, rising.
    pub seq: u64,
    /// What happened.
    pub event: Event,
}

/// Which events to read.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Only of this resource and what is within it.
    pub address: Option<Address>,
    /// Only at or after this time.
    pub since: Option<Timestamp>,
    /// Only after this number: the oldest of them are returned, to follow. Without it the newest are returned.
    pub after: Option<u64>,
}

impl Store {
    /// Appends events in their order; returns the number of the last one of the project. It does not wait for the disk.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn append(&self, project: &str, events: Vec<Event>) -> Result<u64, StoreError> {
        let project = project.to_owned();
        self.note(move |connection| {
            let mut insert = connection.prepare_cached(
                "INSERT INTO events (project, seq, at, address, kind, operation, reason, message, run)
                 SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 FROM events WHERE project = ?1",
            )?;
            for event in events {
                insert.execute(params![
                    project,
                    event.at.0,
                    event.address.map(|address| address.to_string()),
                    to_word(&event.kind, || "an event".to_owned())?,
                    event.operation,
                    event.reason,
                    event.message,
                    event.run.map(int)
                ])?;
            }
            let last: i64 = connection
                .prepare_cached("SELECT coalesce(max(seq), 0) FROM events WHERE project = ?1")?
                .query_row([&project], |row| row.get(0))?;
            connection
                .prepare_cached("DELETE FROM events WHERE project = ?1 AND seq <= ?2")?
                .execute(params![project, last - KEPT])?;
            Ok(count(last))
        })
        .await
    }

    /// At most `limit` events of a project, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if one was written by a version that knows more.
    pub async fn events(
        &self,
        project: &str,
        query: EventQuery,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, StoreError> {
        let project = project.to_owned();
        self.read(move |connection| {
            let (after, order) = match query.after {
                Some(after) => (int(after), "ASC"),
                None => (0, "DESC"),
            };
            let mut statement = connection.prepare_cached(&format!(
                "SELECT seq, at, address, kind, operation, reason, message, run FROM events
                 WHERE project = ?1 AND seq > ?2 AND at >= ?3
                   AND (?4 IS NULL OR address = ?4 OR substr(address, 1, length(?4) + 1) = ?4 || '/')
                 ORDER BY seq {order} LIMIT ?5",
            ))?;
            let mut rows = statement.query(params![
                project,
                after,
                query.since.map_or(i64::MIN, |since| since.0),
                query.address.map(|address| address.to_string()),
                int(limit as u64)
            ])?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                let seq = count(row.get(0)?);
                let what = || format!("event {seq} of project `{project}`");
                let event = Event {
                    at: Timestamp(row.get(1)?),
                    address: match row.get::<_, Option<String>>(2)? {
                        Some(text) => Some(address(&text, what)?),
                        None => None,
                    },
                    kind: from_word(&row.get::<_, String>(3)?, what)?,
                    operation: row.get(4)?,
                    reason: row.get(5)?,
                    message: row.get(6)?,
                    run: row.get::<_, Option<i64>>(7)?.map(count),
                };
                events.push(RecordedEvent { seq, event });
            }
            if query.after.is_none() {
                events.reverse();
            }
            Ok(events)
        })
        .await
    }
}
