//! The history of a project: its runs, numbered.

use std::collections::BTreeMap;

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::row::{count, from_json, int, time, to_json};
use super::{Store, StoreError};
use crate::model::Timestamp;

/// Runs kept per project.
const KEPT: i64 = 1_000;

/// A run as it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Who: `user@host`.
    pub actor: String,
    /// What: `apply`, `destroy`, …
    pub verb: String,
    /// The digest of the manifest.
    pub manifest_digest: Option<String>,
    /// The git revision of the manifest.
    pub git_revision: Option<String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEnd {
    /// How many changes of each class were planned.
    pub changes: BTreeMap<String, u64>,
    /// One word: `done`, `failed`, `partly_done`, `interrupted`, …
    pub outcome: String,
    /// The exit code of the command.
    pub exit_code: i32,
}

/// A run of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its number in the project, from 1, rising.
    pub revision: u64,
    /// When it started.
    pub started_at: Timestamp,
    /// Who and what.
    pub run: Run,
    /// When and how it ended; `None` while it goes on, or if it was killed.
    pub ended: Option<(Timestamp, RunEnd)>,
}

impl Store {
    /// Opens a run; returns its number. It does not wait for the disk.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn begin_run(&self, project: &str, run: Run) -> Result<u64, StoreError> {
        let (project, now) = (project.to_owned(), self.now());
        self.note(move |connection| {
            let revision: i64 = connection
                .prepare_cached(
                    "INSERT INTO revisions (project, revision, started_at, actor, verb, manifest_digest, git_revision)
                     SELECT ?1, coalesce(max(revision), 0) + 1, ?2, ?3, ?4, ?5, ?6 FROM revisions WHERE project = ?1
                     RETURNING revision",
                )?
                .query_row(
                    params![project, now.0, run.actor, run.verb, run.manifest_digest, run.git_revision],
                    |row| row.get(0),
                )?;
            connection
                .prepare_cached("DELETE FROM revisions WHERE project = ?1 AND revision <= ?2")?
                .execute(params![project, revision - KEPT])?;
            Ok(count(revision))
        })
        .await
    }

    /// Writes down how a run ended.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`] if it is not open.
    pub async fn end_run(&self, project: &str, revision: u64, end: RunEnd) -> Result<(), StoreError> {
        let (project, now) = (project.to_owned(), self.now());
        let changes = to_json(&end.changes, || format!("run {revision} of project `{project}`"))?;
        self.write(move |connection| {
            let ended = connection
                .prepare_cached(
                    "UPDATE revisions SET ended_at = ?3, changes = ?4, outcome = ?5, exit_code = ?6
                     WHERE project = ?1 AND revision = ?2 AND ended_at IS NULL",
                )?
                .execute(params![project, int(revision), now.0, changes, end.outcome, end.exit_code])?;
            if ended == 0 {
                return Err(StoreError::NoSuchRun { project, revision }.into());
            }
            Ok(())
        })
        .await
    }

    /// The newest `limit` runs, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if one cannot be read.
    pub async fn revisions(&self, project: &str, limit: usize) -> Result<Vec<Revision>, StoreError> {
        let project = project.to_owned();
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT revision, started_at, actor, verb, manifest_digest, git_revision, ended_at, changes,
                        coalesce(outcome, ''), coalesce(exit_code, 0)
                 FROM revisions WHERE project = ?1 ORDER BY revision DESC LIMIT ?2",
            )?;
            let mut rows = statement.query(params![project, int(limit as u64)])?;
            let mut revisions = Vec::new();
            while let Some(row) = rows.next()? {
                let revision = count(row.get(0)?);
                let changes: String = row.get(7)?;
                let end = RunEnd {
                    changes: from_json(&changes, || format!("run {revision} of project `{project}`"))?,
                    outcome: row.get(8)?,
                    exit_code: row.get(9)?,
                };
                revisions.push(Revision {
                    revision,
                    started_at: Timestamp(row.get(1)?),
                    run: Run {
                        actor: row.get(2)?,
                        verb: row.get(3)?,
                        manifest_digest: row.get(4)?,
                        git_revision: row.get(5)?,
                    },
                    ended: time(row.get(6)?).map(|at| (at, end)),
                });
            }
            Ok(revisions)
        })
        .await
    }
}
