//! The journal: every step that creates or deletes is written here before it is attempted, and its outcome after (invariant 2).

use rusqlite::{Connection, ErrorCode, Row, params};
use serde::{Deserialize, Serialize};

use super::error::Fault;
use super::inventory::{Change, apply, ensure_project};
use super::row::{address, from_json, from_word, int, time, to_json, to_word};
use super::{Store, StoreError};
use crate::model::{IntentId, PendingIntent, SpecHash, Timestamp};

/// Ended intents kept per project, to be read by people.
const KEPT: i64 = 10_000;

/// How an intent ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its effect is there.
    Done,
    /// Its run was interrupted, and a later one has dealt with whatever came of it.
    Settled,
    /// Its effect is known not to be there.
    Failed {
        /// One word for programs, as the provider's error has it.
        kind: String,
        /// One sentence for people.
        message: String,
    },
}

/// An intent with its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JournalEntry {
    /// What was attempted.
    pub intent: PendingIntent,
    /// When and how it ended; `None` while it is pending.
    pub ended: Option<(Timestamp, Outcome)>,
}

impl Store {
    /// Writes an intent down. Only after this returned may its effect be attempted.
    ///
    /// # Errors
    /// [`StoreError::IntentReused`] if its id was used before.
    pub async fn begin(&self, project: &str, intent: PendingIntent) -> Result<(), StoreError> {
        let (project, now) = (project.to_owned(), self.now());
        self.write(move |connection| {
            ensure_project(connection, &project, now)?;
            let operation = to_word(&intent.operation, || format!("the intent {}", intent.id))?;
            let inserted = connection
                .prepare_cached(
                    "INSERT INTO intents (project, seq, id, address, provider, operation, spec_hash, begun_at)
                     SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3, ?4, ?5, ?6, ?7 FROM intents WHERE project = ?1",
                )?
                .execute(params![
                    project,
                    intent.id.0,
                    intent.address.to_string(),
                    intent.provider,
                    operation,
                    intent.spec_hash.map(|hash| hash.0),
                    intent.begun_at.0
                ]);
            match inserted {
                Ok(_) => Ok(()),
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    Err(StoreError::IntentReused { id: intent.id.0 }.into())
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Writes down how an intent ended and makes the changes of the inventory that follow, in one transaction; returns the
    /// project's serial. An intent whose outcome is not known is left pending. It does not wait for the disk.
    ///
    /// # Errors
    /// [`StoreError::NoSuchIntent`] if it is not pending.
    pub async fn finish(
        &self,
        project: &str,
        intent: &IntentId,
        outcome: Outcome,
        changes: Vec<Change>,
    ) -> Result<u64, StoreError> {
        let (project, intent, now) = (project.to_owned(), intent.clone(), self.now());
        let outcome = to_json(&outcome, || format!("the outcome of intent {intent}"))?;
        self.note(move |connection| {
            let ended = connection
                .prepare_cached(
                    "UPDATE intents SET ended_at = ?3, outcome = ?4 WHERE project = ?1 AND id = ?2 AND ended_at IS NULL",
                )?
                .execute(params![project, intent.0, now.0, outcome])?;
            if ended == 0 {
                return Err(StoreError::NoSuchIntent { project, id: intent.0 }.into());
            }
            connection
                .prepare_cached(
                    "DELETE FROM intents WHERE project = ?1 AND ended_at IS NOT NULL
                     AND seq <= (SELECT max(seq) FROM intents WHERE project = ?1) - ?2",
                )?
                .execute(params![project, KEPT])?;
            apply(connection, &project, &changes)
        })
        .await
    }

    /// The intents that have no outcome yet, in the order they were begun.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if one was written by a version that knows more.
    pub async fn pending(&self, project: &str) -> Result<Vec<PendingIntent>, StoreError> {
        let project = project.to_owned();
        self.read(move |connection| pending(connection, &project)).await
    }

    /// The newest `limit` intents, oldest first, with their outcomes.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if one was written by a version that knows more.
    pub async fn journal(&self, project: &str, limit: usize) -> Result<Vec<JournalEntry>, StoreError> {
        let project = project.to_owned();
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, address, provider, operation, spec_hash, begun_at, ended_at, outcome FROM intents
                 WHERE project = ?1 ORDER BY seq DESC LIMIT ?2",
            )?;
            let mut rows = statement.query(params![project, int(limit as u64)])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let intent = intent(row)?;
                let ended = match (time(row.get(6)?), row.get::<_, Option<String>>(7)?) {
                    (Some(at), Some(outcome)) => {
                        Some((at, from_json(&outcome, || format!("the outcome of intent {}", intent.id))?))
                    }
                    _ => None,
                };
                entries.push(JournalEntry { intent, ended });
            }
            entries.reverse();
            Ok(entries)
        })
        .await
    }
}

pub(super) fn pending(connection: &Connection, project: &str) -> Result<Vec<PendingIntent>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT id, address, provider, operation, spec_hash, begun_at FROM intents
         WHERE project = ?1 AND ended_at IS NULL ORDER BY seq",
    )?;
    let mut rows = statement.query([project])?;
    let mut intents = Vec::new();
    while let Some(row) = rows.next()? {
        intents.push(intent(row)?);
    }
    Ok(intents)
}

fn intent(row: &Row<'_>) -> Result<PendingIntent, Fault> {
    let id: String = row.get(0)?;
    let what = || format!("the intent {id}");
    Ok(PendingIntent {
        address: address(&row.get::<_, String>(1)?, what)?,
        provider: row.get(2)?,
        operation: from_word(&row.get::<_, String>(3)?, what)?,
        spec_hash: row.get::<_, Option<String>>(4)?.map(SpecHash),
        begun_at: Timestamp(row.get(5)?),
        id: IntentId(id),
    })
}
