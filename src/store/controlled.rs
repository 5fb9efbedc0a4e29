//! Which projects a controller keeps, and the last good revision of each, so that it resumes where it was.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::Serialize;

use super::{Store, StoreError};
use crate::model::Timestamp;

/// A project that a controller keeps as a source says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Controlled {
    /// The project.
    pub project: String,
    /// The name of the source.
    pub source: String,
    /// The project's directory in the source.
    pub path: String,
    /// The last good revision.
    pub revision: String,
    /// The hash of the project's directory in that revision.
    pub tree: String,
    /// The manifest's file on this machine, as of that revision.
    pub manifest: String,
    /// Since when that revision is the one.
    pub since: Timestamp,
    /// All of that revision was applied.
    pub applied: bool,
}

impl Store {
    /// Every project that is controlled, by name.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn controlled(&self) -> Result<Vec<Controlled>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT project, source, path, revision, tree, manifest, since, applied FROM controlled ORDER BY project",
            )?;
            let rows = statement.query_map([], read)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The project that is controlled as a directory of a source says; `None` if there is none.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn controlled_in(&self, source: &str, path: &str) -> Result<Option<Controlled>, StoreError> {
        let (source, path) = (source.to_owned(), path.to_owned());
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT project, source, path, revision, tree, manifest, since, applied FROM controlled
                 WHERE source = ?1 AND path = ?2 ORDER BY since DESC LIMIT 1",
            )?;
            Ok(statement.query_row([source, path], read).optional()?)
        })
        .await
    }

    /// Keeps the last good revision of a project. False, and nothing is kept, if another source or another directory has a project of that
    /// name.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn set_controlled(&self, record: Controlled) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let rows = connection
                .prepare_cached(
                    "INSERT INTO controlled (project, source, path, revision, tree, manifest, since, applied)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                     ON CONFLICT (project) DO UPDATE SET
                         revision = excluded.revision, tree = excluded.tree, manifest = excluded.manifest, since = excluded.since,
                         applied = excluded.applied
                     WHERE source = excluded.source AND path = excluded.path",
                )?
                .execute(params![
                    record.project,
                    record.source,
                    record.path,
                    record.revision,
                    record.tree,
                    record.manifest,
                    record.since.0,
                    record.applied
                ])?;
            Ok(rows > 0)
        })
        .await
    }

    /// Forgets that a project is controlled; what it has stays.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn forget_controlled(&self, project: &str) -> Result<(), StoreError> {
        let project = project.to_owned();
        self.write(move |connection| {
            connection.execute("DELETE FROM controlled WHERE project = ?1", [project])?;
            Ok(())
        })
        .await
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Controlled> {
    Ok(Controlled {
        project: row.get(0)?,
        source: row.get(1)?,
        path: row.get(2)?,
        revision: row.get(3)?,
        tree: row.get(4)?,
        manifest: row.get(5)?,
        since: Timestamp(row.get(6)?),
        applied: row.get(7)?,
    })
}
