//! The inventory: which projects there are, and what each was last brought to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::error::Fault;
use super::row::{count, from_json, from_word, int, to_json, to_word};
use super::{Store, StoreError, journal};
use crate::model::{Address, Recorded, RecordedSandbox, RecordedVolume, RunState, SandboxId, Timestamp};

/// A project that the store knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Counts the changes of its inventory, see [`Recorded::serial`].
    pub serial: u64,
    /// The digest of the manifest it was last applied from.
    pub manifest_digest: Option<String>,
    /// The manifest files it was last applied from.
    pub manifest_paths: Vec<PathBuf>,
    /// When it was first recorded.
    pub created_at: Timestamp,
}

/// One change of a project's inventory.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The sandbox exists as described.
    PutSandbox {
        /// Its name.
        name: String,
        /// What to remember.
        sandbox: Box<RecordedSandbox>,
    },
    /// The sandbox was brought to this state.
    SetState {
        /// Its name.
        name: String,
        /// The state.
        state: RunState,
    },
    /// The volume exists as described.
    PutVolume {
        /// Its name.
        name: String,
        /// What to remember.
        volume: RecordedVolume,
    },
    /// The sandbox or volume exists no more, and will again: host ports and condition times are kept (a recreate).
    Remove(Address),
    /// The resource is not wanted any more: nothing about it is kept but history. For a sandbox also what is inside it.
    Forget(Address),
}

impl Store {
    /// What is recorded of `project`; empty, with serial 0, if it is not known.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if a record was written by a version whose specs this one cannot read.
    pub async fn recorded(&self, project: &str) -> Result<Recorded, StoreError> {
        let project = project.to_owned();
        self.read(move |connection| recorded(connection, &project)).await
    }

    /// Makes `changes` of the inventory in one transaction; returns the new serial.
    ///
    /// # Errors
    /// Only what the database answers; then none of them is made.
    pub async fn record(&self, project: &str, changes: Vec<Change>) -> Result<u64, StoreError> {
        let (project, now) = (project.to_owned(), self.now());
        self.write(move |connection| {
            ensure_project(connection, &project, now)?;
            apply(connection, &project, &changes)
        })
        .await
    }

    /// Remembers which manifest `project` was last applied from. This is no change of its inventory.
    ///
    /// # Errors
    /// Only what the database answers, or [`StoreError::Unwritable`] for a path that is not UTF-8.
    pub async fn set_manifest(
        &self,
        project: &str,
        digest: &str,
        paths: Vec<PathBuf>,
    ) -> Result<(), StoreError> {
        let (project, digest, now) = (project.to_owned(), digest.to_owned(), self.now());
        let paths = to_json(&paths, || format!("the manifest paths of `{project}`"))?;
        self.note(move |connection| {
            ensure_project(connection, &project, now)?;
            connection.execute(
                "UPDATE projects SET manifest_digest = ?2, manifest_paths = ?3 WHERE name = ?1",
                params![project, digest, paths],
            )?;
            Ok(())
        })
        .await
    }

    /// Every known project, by name.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn projects(&self) -> Result<Vec<Project>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name, serial, manifest_digest, manifest_paths, created_at FROM projects ORDER BY name",
            )?;
            let mut rows = statement.query([])?;
            let mut projects = Vec::new();
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                let paths: String = row.get(3)?;
                projects.push(Project {
                    serial: count(row.get(1)?),
                    manifest_digest: row.get(2)?,
                    manifest_paths: from_json(&paths, || format!("the manifest paths of `{name}`"))?,
                    created_at: Timestamp(row.get(4)?),
                    name,
                });
            }
            Ok(projects)
        })
        .await
    }

    /// Drops a project of which nothing is recorded any more, with its ports, condition times and finished intents; events
    /// and the history of runs stay. Returns `false` and changes nothing while a sandbox, a volume or a pending intent is left.
    ///
    /// # Errors
    /// Only what the database answers.
    pub async fn forget_project(&self, project: &str) -> Result<bool, StoreError> {
        let project = project.to_owned();
        self.write(move |connection| {
            let left: bool = connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM sandboxes WHERE project = ?1)
                     OR EXISTS (SELECT 1 FROM volumes WHERE project = ?1)
                     OR EXISTS (SELECT 1 FROM intents WHERE project = ?1 AND ended_at IS NULL)",
                [&project],
                |row| row.get(0),
            )?;
            if !left {
                connection.execute("DELETE FROM projects WHERE name = ?1", [&project])?;
            }
            Ok(!left)
        })
        .await
    }
}

fn recorded(connection: &Connection, project: &str) -> Result<Recorded, Fault> {
    let serial: Option<i64> = connection
        .prepare_cached("SELECT serial FROM projects WHERE name = ?1")?
        .query_row([project], |row| row.get(0))
        .optional()?;
    let Some(serial) = serial else { return Ok(Recorded::default()) };

    let mut sandboxes = BTreeMap::new();
    let mut statement = connection.prepare_cached(
        "SELECT name, provider, id, spec, generation, created_at, guest, depends_on, state FROM sandboxes WHERE project = ?1",
    )?;
    let mut rows = statement.query([project])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let spec = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?;
        let guest = row.get_ref(6)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let depends_on = row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?;
        let what = |part: &str| format!("the {part} of sandbox `{name}` in project `{project}`");
        let sandbox = RecordedSandbox {
            // It only explains: one that a later version wrote is as good as none.
            guest: guest.and_then(|json| serde_json::from_str(json).ok()),
            depends_on: from_json(depends_on, || what("dependencies"))?,
            provider: row.get(1)?,
            id: SandboxId(row.get(2)?),
            spec: from_json(spec, || what("spec"))?,
            generation: count(row.get(4)?),
            state: from_word(row.get_ref(8)?.as_str().map_err(rusqlite::Error::from)?, || what("state"))?,
            created_at: Timestamp(row.get(5)?),
        };
        sandboxes.insert(name, sandbox);
    }

    let mut statement =
        connection.prepare_cached("SELECT name, provider, created_at FROM volumes WHERE project = ?1")?;
    let volumes = statement
        .query_map([project], |row| {
            Ok((row.get(0)?, RecordedVolume { provider: row.get(1)?, created_at: Timestamp(row.get(2)?) }))
        })?
        .collect::<Result<_, _>>()?;

    let intents = journal::pending(connection, project)?;
    Ok(Recorded { serial: count(serial), sandboxes, volumes, intents })
}

/// Makes the row that everything of a project refers to.
pub(super) fn ensure_project(connection: &Connection, project: &str, now: Timestamp) -> Result<(), Fault> {
    connection
        .prepare_cached("INSERT INTO projects (name, created_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![project, now.0])?;
    Ok(())
}

/// Makes the changes and moves the serial, if there are any; returns the serial.
pub(super) fn apply(connection: &Connection, project: &str, changes: &[Change]) -> Result<u64, Fault> {
    for change in changes {
        apply_one(connection, project, change)?;
    }
    if !changes.is_empty() {
        connection.prepare_cached("UPDATE meta SET serial = serial + 1")?.execute([])?;
        connection
            .prepare_cached("UPDATE projects SET serial = (SELECT serial FROM meta) WHERE name = ?1")?
            .execute([project])?;
    }
    let serial = connection
        .prepare_cached("SELECT serial FROM projects WHERE name = ?1")?
        .query_row([project], |row| row.get(0))?;
    Ok(count(serial))
}

fn apply_one(connection: &Connection, project: &str, change: &Change) -> Result<(), Fault> {
    match change {
        Change::PutSandbox { name, sandbox } => {
            let what = |part: &str| format!("the {part} of sandbox `{name}` in project `{project}`");
            let spec = to_json(&sandbox.spec, || what("spec"))?;
            let guest = sandbox.guest.as_ref().map(|g| to_json(g, || what("inside"))).transpose()?;
            let depends_on = to_json(&sandbox.depends_on, || what("dependencies"))?;
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO sandboxes
                         (project, name, provider, id, spec, generation, created_at, guest, depends_on, state)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                )?
                .execute(params![
                    project,
                    name,
                    sandbox.provider,
                    sandbox.id.0,
                    spec,
                    int(sandbox.generation),
                    sandbox.created_at.0,
                    guest,
                    depends_on,
                    to_word(&sandbox.state, || what("state"))?
                ])?;
        }
        Change::SetState { name, state } => {
            let state = to_word(state, || format!("the state of sandbox `{name}` in project `{project}`"))?;
            connection
                .prepare_cached("UPDATE sandboxes SET state = ?3 WHERE project = ?1 AND name = ?2")?
                .execute(params![project, name, state])?;
        }
        Change::PutVolume { name, volume } => {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO volumes (project, name, provider, created_at) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![project, name, volume.provider, volume.created_at.0])?;
        }
        Change::Remove(address) => remove(connection, project, address)?,
        Change::Forget(address) => {
            remove(connection, project, address)?;
            forget(connection, project, address)?;
        }
    }
    Ok(())
}

fn remove(connection: &Connection, project: &str, address: &Address) -> Result<(), Fault> {
    let (sql, name) = match address {
        Address::Sandbox(name) => ("DELETE FROM sandboxes WHERE project = ?1 AND name = ?2", name),
        Address::Volume(name) => ("DELETE FROM volumes WHERE project = ?1 AND name = ?2", name),
        // What is inside a sandbox is not in the inventory.
        _ => return Ok(()),
    };
    connection.prepare_cached(sql)?.execute([project, name])?;
    Ok(())
}

/// Drops ports and condition times of the resource and of what is within it.
fn forget(connection: &Connection, project: &str, address: &Address) -> Result<(), Fault> {
    match address {
        Address::Sandbox(sandbox) => {
            connection
                .prepare_cached("DELETE FROM ports WHERE project = ?1 AND sandbox = ?2")?
                .execute([project, sandbox])?;
        }
        Address::Port(sandbox, port) => {
            connection
                .prepare_cached("DELETE FROM ports WHERE project = ?1 AND sandbox = ?2 AND port = ?3")?
                .execute(params![project, sandbox, port])?;
        }
        _ => {}
    }
    let text = address.to_string();
    connection
        .prepare_cached("DELETE FROM conditions WHERE project = ?1 AND address = ?2")?
        .execute([project, &text])?;
    if matches!(address, Address::Sandbox(_)) {
        // Everything within sorts between `sandbox/x/` and `sandbox/x0`, `0` being what follows `/`.
        connection
            .prepare_cached("DELETE FROM conditions WHERE project = ?1 AND address >= ?2 AND address < ?3")?
            .execute(params![project, format!("{text}/"), format!("{text}0")])?;
    }
    Ok(())
}
