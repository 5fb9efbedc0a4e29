//! The checker of what real processes did: what a store claims, against what is there. It reads the files of both with eyes of its own, and never
//! asks the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

/// Something with labels that a provider has, or once had.
#[derive(Clone, Debug)]
struct Object {
    id: String,
    labels: BTreeMap<String, String>,
}

impl Object {
    fn label(&self, name: &str) -> &str {
        self.labels.get(&format!("pocketenv.io/{name}")).map_or("", String::as_str)
    }
}

/// What is there, as the providers' own files have it.
#[derive(Debug, Default)]
struct Truth {
    sandboxes: Vec<Object>,
    volumes: Vec<Object>,
    /// Every sandbox that simulated clouds ever made.
    made: Vec<Object>,
    /// Whether everything that was ever made is known, and not only what is left of it.
    complete: bool,
}

/// A line of the journal.
#[derive(Debug)]
struct Intent {
    project: String,
    address: String,
    operation: String,
    /// `None` while it is pending.
    outcome: Option<String>,
}

/// Compares the store in a home with the engine in it and with the simulated clouds whose files lie in `clouds`. `settled` says that nothing
/// may be under way or left.
///
/// # Errors
/// Everything that does not fit.
pub fn check(home: &Path, clouds: &[&Path], settled: bool) -> Result<(), String> {
    let file = home.join("state/state.db");
    if !file.exists() {
        return Ok(());
    }
    let mut truth = Truth { complete: true, ..Truth::default() };
    engine(&home.join("data/engine"), &mut truth);
    for cloud in clouds.iter().flat_map(|dir| files(dir, "sim")) {
        replay(&cloud, &mut truth);
    }
    let wrong = compare(&file, &truth, settled).map_err(|error| format!("{}: {error}", file.display()))?;
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}\n{truth:#?}", wrong.join("\n"))) }
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

/// What the local engine has on its disk. What it once had is not known.
fn engine(dir: &Path, truth: &mut Truth) {
    let read = |kind: &str, file: &str| -> Vec<Object> {
        let entries = fs::read_dir(dir.join(kind)).into_iter().flatten().flatten();
        let labelled = entries.filter_map(|entry| {
            // One that is being made or removed has no record.
            let record: Value = serde_json::from_slice(&fs::read(entry.path().join(file)).ok()?).ok()?;
            let id = entry.file_name().to_string_lossy().into_owned();
            Some(Object { id, labels: serde_json::from_value(record["labels"].clone()).ok()? })
        });
        labelled.collect()
    };
    truth.sandboxes.extend(read("boxes", "state.json"));
    truth.volumes.extend(read("volumes", "volume.json"));
    truth.complete &= !dir.exists();
}

/// What a simulated cloud has and had, by the effects in its file.
fn replay(file: &Path, truth: &mut Truth) {
    let text = fs::read_to_string(file).unwrap();
    let (mut sandboxes, mut volumes) = (BTreeMap::new(), BTreeMap::new());
    // A last line without an end was never answered for.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let Some((kind, effect)) = line["effect"].as_object().and_then(|effect| effect.iter().next()) else {
            continue;
        };
        let text = |name: &str| effect[name].as_str().unwrap_or_default().to_owned();
        let labels = || serde_json::from_value(effect["labels"].clone()).unwrap_or_default();
        match kind.as_str() {
            "created" => {
                let object = Object { id: text("id"), labels: labels() };
                truth.made.push(object.clone());
                sandboxes.insert(text("id"), object);
            }
            "updated" if !effect["labels"].is_null() => {
                if let Some(object) = sandboxes.get_mut(&text("id")) {
                    object.labels = labels();
                }
            }
            "deleted" => drop(sandboxes.remove(&text("id"))),
            "volume_created" => {
                volumes.insert(text("name"), Object { id: text("name"), labels: labels() });
            }
            "volume_deleted" => drop(volumes.remove(&text("name"))),
            _ => {}
        }
    }
    truth.sandboxes.extend(sandboxes.into_values());
    truth.volumes.extend(volumes.into_values());
}

fn rows<T>(
    store: &Connection,
    query: &str,
    row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    store.prepare(query)?.query_map([], row)?.collect()
}

fn compare(file: &Path, truth: &Truth, settled: bool) -> rusqlite::Result<Vec<String>> {
    let store = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut wrong = Vec::new();
    let sound: String = store.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if sound != "ok" {
        wrong.push(format!("the store is not sound: {sound}"));
    }
    let owner: String = store.query_row("SELECT owner FROM meta", [], |row| row.get(0))?;
    let projects: BTreeMap<String, i64> =
        rows(&store, "SELECT name, created_at FROM projects", |row| Ok((row.get(0)?, row.get(1)?)))?
            .into_iter()
            .collect();
    let intents: BTreeMap<String, Intent> =
        rows(&store, "SELECT id, project, address, operation, outcome FROM intents", |row| {
            let intent = Intent {
                project: row.get(1)?,
                address: row.get(2)?,
                operation: row.get(3)?,
                outcome: row.get(4)?,
            };
            Ok((row.get(0)?, intent))
        })?
        .into_iter()
        .collect();
    let recorded: Vec<(String, String, String)> =
        rows(&store, "SELECT project, name, id FROM sandboxes", |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;

    // Nothing of ours is forgotten, and nothing is there twice.
    let mut seen: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for object in truth.sandboxes.iter().filter(|object| object.label("owner") == owner) {
        let (project, address) = (object.label("project"), object.label("resource"));
        let name = address.strip_prefix("sandbox/").unwrap_or(address);
        if let Some(other) = seen.insert((project, address), &object.id) {
            wrong.push(format!("{project} has {address} twice: {other} and {}", object.id));
        }
        let known = recorded.iter().any(|(p, n, id)| p == project && n == name && *id == object.id);
        let intent = intents.get(object.label("intent"));
        let adopted = truth.made.iter().any(|made| made.id == object.id && made.label("owner") != owner);
        if !known && intent.is_none_or(|intent| intent.outcome.is_some()) {
            wrong.push(format!(
                "{} ({address} of {project}) is there, and the store knows nothing of it",
                object.id
            ));
        }
        match intent {
            // What another store made was adopted.
            None if projects.contains_key(project) && !adopted => {
                wrong.push(format!(
                    "{} ({address} of {project}) was made without a word in the journal",
                    object.id
                ));
            }
            // What is renamed keeps the intent that it was made by.
            Some(intent) if intent.project != project || intent.operation != "create" => {
                wrong.push(format!("{} ({address} of {project}) was made by {intent:?}", object.id));
            }
            _ => {}
        }
        if settled {
            wrong.push(format!("{} ({address} of {project}) is left", object.id));
        }
    }
    for (project, name, id) in &recorded {
        let gone = !truth.sandboxes.iter().any(|object| object.id == *id);
        if truth.complete && gone && !truth.made.iter().any(|object| object.id == *id) {
            wrong.push(format!("{name} of {project} is recorded as {id}, which there never was"));
        }
    }

    // The journal claims what happened: no less, and no more.
    for (id, intent) in
        intents.iter().filter(|(_, i)| i.operation == "create" && i.address.starts_with("sandbox/"))
    {
        let made: Vec<_> = truth.made.iter().filter(|object| object.label("intent") == id).collect();
        if let Some(object) = made.iter().find(|object| object.label("resource") != intent.address) {
            wrong.push(format!("{} ({}) was made by {intent:?}", object.id, object.label("resource")));
        }
        let there = truth.sandboxes.iter().any(|object| object.label("intent") == id);
        let outcome = intent.outcome.as_deref().unwrap_or_default();
        if outcome.contains("failed") && (!made.is_empty() || there) {
            wrong.push(format!("the journal has {id} as failed, and it was made: {intent:?}"));
        }
        if truth.complete && outcome.contains("done") && made.is_empty() {
            wrong.push(format!("the journal has {id} as done, and nothing was made: {intent:?}"));
        }
    }
    let told = rows(
        &store,
        "SELECT project, address, COUNT(*), MIN(at) FROM events
         WHERE operation = 'create' AND reason = 'StepDone' AND address LIKE 'sandbox/%' GROUP BY 1, 2",
        |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, i64>(3)?,
            ))
        },
    )?;
    for (project, address, times, first) in told {
        // The journal of a project that was forgotten in between went with it.
        if projects.get(&project).is_none_or(|since| *since > first) {
            continue;
        }
        let claimed = |intent: &&Intent| {
            intent.project == project && intent.address == address && intent.operation == "create"
        };
        let claims = i64::try_from(intents.values().filter(claimed).count()).unwrap();
        if times > claims {
            wrong.push(format!("{address} of {project} is told to have been made {times} times, the journal knows of {claims}"));
        }
    }

    if settled {
        let pending: Vec<_> = intents.iter().filter(|(_, intent)| intent.outcome.is_none()).collect();
        let leases = rows(&store, "SELECT project, holder FROM leases", |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let ours: Vec<_> = truth.volumes.iter().filter(|volume| volume.label("owner") == owner).collect();
        for (what, left) in [
            ("recorded sandboxes", format!("{recorded:?}")),
            ("pending intents", format!("{pending:?}")),
            ("leases", format!("{leases:?}")),
            ("volumes", format!("{ours:?}")),
        ] {
            if left != "[]" {
                wrong.push(format!("{what} are left: {left}"));
            }
        }
    }
    Ok(wrong)
}
