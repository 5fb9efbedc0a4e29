//! What runs were to achieve, so that a project can be rolled back to it.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::row::{from_json, int, to_json};
use super::{Store, StoreError};
use crate::model::{Desired, sha256_hex};
use crate::secret::SecretSource;

/// Goals kept per project: those of its newest runs.
const KEPT_RUNS: i64 = 50;

/// What a run was to achieve: everything that was declared, and where its secrets come from. There is no secret in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptGoal {
    /// What was declared.
    pub desired: Desired,
    /// Where the values of its secrets come from.
    pub secrets: BTreeMap<String, SecretSource>,
}

impl Store {
    /// Keeps what the run `revision` is to achieve. Goals of older runs than the newest fifty are dropped.
    ///
    /// # Errors
    /// [`StoreError::Unwritable`] for a path that is not UTF-8; otherwise only what the database answers.
    pub async fn keep_goal(&self, project: &str, revision: u64, goal: &KeptGoal) -> Result<(), StoreError> {
        let project = project.to_owned();
        let goal = to_json(goal, || format!("what run {revision} of project `{project}` is to achieve"))?;
        self.note(move |connection| {
            let digest = sha256_hex(goal.as_bytes());
            connection
                .prepare_cached("INSERT INTO goals (project, digest, goal) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
                .execute(params![project, digest, goal])?;
            connection
                .prepare_cached("UPDATE revisions SET goal = ?3 WHERE project = ?1 AND revision = ?2")?
                .execute(params![project, int(revision), digest])?;
            connection
                .prepare_cached(
                    "DELETE FROM goals WHERE project = ?1 AND digest NOT IN
                         (SELECT goal FROM revisions WHERE project = ?1 AND goal IS NOT NULL ORDER BY revision DESC LIMIT ?2)",
                )?
                .execute(params![project, KEPT_RUNS])?;
            Ok(())
        })
        .await
    }

    /// What the run `revision` was to achieve; `None` if there is no such run or it is too long ago.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if it was written by a version that knows more.
    pub async fn goal(&self, project: &str, revision: u64) -> Result<Option<KeptGoal>, StoreError> {
        let project = project.to_owned();
        self.read(move |connection| {
            let json: Option<String> = connection
                .prepare_cached(
                    "SELECT goals.goal FROM goals JOIN revisions
                         ON revisions.project = goals.project AND revisions.goal = goals.digest
                     WHERE goals.project = ?1 AND revisions.revision = ?2",
                )?
                .query_row(params![project, int(revision)], |row| row.get(0))
                .optional()?;
            match json {
                None => Ok(None),
                Some(json) => {
                    Ok(Some(from_json(&json, || format!("run {revision} of project `{project}`"))?))
                }
            }
        })
        .await
    }
}
