//! What was told of controlled projects: the last state that each receiver knows.

use rusqlite::{OptionalExtension as _, Row, params};

use super::{Store, StoreError};
use crate::model::Timestamp;

/// What a receiver was told last of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notified {
    /// The name of the source.
    pub source: String,
    /// The project's directory in the source.
    pub path: String,
    /// The name of the receiver.
    pub target: String,
    /// The revision that was spoken of.
    pub revision: String,
    /// What was said of it, in one word.
    pub state: String,
    /// When it was told.
    pub at: Timestamp,
}

impl Store {
    /// What was told of every project.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn notified(&self) -> Result<Vec<Notified>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT source, path, target, revision, state, at FROM notified")?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// What one receiver was told last of one project.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn last_notified(
        &self,
        source: &str,
        path: &str,
        target: &str,
    ) -> Result<Option<Notified>, StoreError> {
        let (source, path, target) = (source.to_owned(), path.to_owned(), target.to_owned());
        self.read(move |connection| {
            Ok(connection
                .prepare_cached(
                    "SELECT source, path, target, revision, state, at FROM notified
                     WHERE source = ?1 AND path = ?2 AND target = ?3",
                )?
                .query_row(params![source, path, target], read)
                .optional()?)
        })
        .await
    }

    /// Keeps what was told.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn set_notified(&self, told: Notified) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO notified (source, path, target, revision, state, at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    told.source,
                    told.path,
                    told.target,
                    told.revision,
                    told.state,
                    told.at.0
                ])?;
            Ok(())
        })
        .await
    }

    /// Forgets what was told: there is nothing more to tell.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn forget_notified(&self, source: &str, path: &str, target: &str) -> Result<(), StoreError> {
        let (source, path, target) = (source.to_owned(), path.to_owned(), target.to_owned());
        self.write(move |connection| {
            connection
                .prepare_cached("DELETE FROM notified WHERE source = ?1 AND path = ?2 AND target = ?3")?
                .execute(params![source, path, target])?;
            Ok(())
        })
        .await
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Notified> {
    Ok(Notified {
        source: row.get(0)?,
        path: row.get(1)?,
        target: row.get(2)?,
        revision: row.get(3)?,
        state: row.get(4)?,
        at: Timestamp(row.get(5)?),
    })
}
