//! Condition times: since when each condition of a resource has its status.

use rusqlite::{OptionalExtension, params};

use super::row::to_word;
use super::{Store, StoreError};
use crate::model::{Address, Condition, Timestamp};

impl Store {
    /// Sets `last_transition` of conditions observed at `now`: the time kept from before where the status is still the same,
    /// else `now`, which is then kept if the project is known. Times are dropped when the resource is forgotten.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn stamp(
        &self,
        project: &str,
        mut conditions: Vec<(Address, Condition)>,
        now: Timestamp,
    ) -> Result<Vec<(Address, Condition)>, StoreError> {
        let project = project.to_owned();
        self.note(move |connection| {
            // Looking at a project does not make it known.
            let known: bool = connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM projects WHERE name = ?1)")?
                .query_row([&project], |row| row.get(0))?;
            let mut find = connection.prepare_cached(
                "SELECT status, last_transition FROM conditions WHERE project = ?1 AND address = ?2 AND kind = ?3",
            )?;
            let mut put = connection.prepare_cached(
                "INSERT OR REPLACE INTO conditions (project, address, kind, status, last_transition)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for (address, condition) in &mut conditions {
                let address = address.to_string();
                let status = to_word(&condition.status, || format!("a condition of {address}"))?;
                let before: Option<(String, i64)> = find
                    .query_row(params![project, address, condition.kind], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                condition.last_transition = Some(match before {
                    Some((before, since)) if before == status => Timestamp(since),
                    _ => {
                        if known {
                            put.execute(params![project, address, condition.kind, status, now.0])?;
                        }
                        now
                    }
                });
            }
            Ok(conditions)
        })
        .await
    }
}
