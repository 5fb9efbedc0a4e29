//! Directories of a sandbox that programs follow. The sandbox is asked again and again: what was made and is gone between two looks is not seen, and
//! several writes are one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::files::{self, Entry, FileError};
use super::lock;
use crate::provider::Guest;

/// Changes that wait for a listener before older ones are put together with newer ones.
const BACKLOG: usize = 16;
/// Events that wait to be asked for; more than these are a program that has forgotten its watcher.
const MOST_EVENTS: usize = 100_000;

/// What happened to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is there now.
    Create,
    /// Its contents changed.
    Write,
    /// It is gone.
    Remove,
    /// It has another name now.
    Rename,
    /// Its permissions or its owner changed.
    Chmod,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Its path from the directory that is followed.
    pub name: String,
    /// What happened.
    pub kind: Kind,
}

/// A directory that is followed.
pub(super) struct Watch {
    events: mpsc::Receiver<Result<Vec<Event>, FileError>>,
    _follower: DropGuard,
}

impl Watch {
    /// What happened next; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Vec<Event>, FileError>> {
        self.events.recv().await
    }
}

/// Follows a directory from now on; when this returns, nothing more is missed.
pub(super) async fn watch(guest: Arc<dyn Guest>, path: &str, recursive: bool) -> Result<Watch, FileError> {
    let (listings, mut looks) = mpsc::channel(BACKLOG);
    let (sender, events) = mpsc::channel(BACKLOG);
    let stop = CancellationToken::new();
    let followed = path.to_owned();
    let follower = {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = files::follow(&*guest, &followed, recursive, listings) => ended,
                () = stop.cancelled() => Ok(()),
            }
        })
    };
    let Some(mut before) = looks.recv().await else {
        let failed = || FileError::Failed(format!("{path} cannot be watched"));
        return Err(follower.await.ok().and_then(Result::err).unwrap_or_else(failed));
    };
    let root = path.to_owned();
    tokio::spawn(async move {
        while let Some(now) = looks.recv().await {
            let events = changes(&root, &before, &now);
            before = now;
            if !events.is_empty() && sender.send(Ok(events)).await.is_err() {
                return;
            }
        }
        if let Ok(Err(error)) = follower.await {
            // Nobody may be there to be told.
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(Watch { events, _follower: stop.drop_guard() })
}

/// What happened between two looks.
fn changes(root: &str, before: &BTreeMap<String, Entry>, now: &BTreeMap<String, Entry>) -> Vec<Event> {
    let event = |path: &str, kind| Event {
        name: path.strip_prefix(root).unwrap_or(path).trim_start_matches('/').to_owned(),
        kind,
    };
    let appeared: HashMap<&str, &str> = now
        .iter()
        .filter(|(path, _)| !before.contains_key(*path))
        .map(|(path, entry)| (entry.inode.as_str(), path.as_str()))
        .collect();
    let mut events = Vec::new();
    for (path, entry) in before.iter().filter(|(path, _)| !now.contains_key(*path)) {
        let kind = if appeared.contains_key(entry.inode.as_str()) { Kind::Rename } else { Kind::Remove };
        events.push(event(path, kind));
    }
    let gone: HashMap<&str, &Entry> = before
        .iter()
        .filter(|(path, _)| !now.contains_key(*path))
        .map(|(_, entry)| (entry.inode.as_str(), entry))
        .collect();
    for (path, entry) in now {
        match before.get(path) {
            None => {
                events.push(event(path, Kind::Create));
                let moved = gone.get(entry.inode.as_str()).is_some_and(|old| old.written == entry.written);
                if !entry.is_dir() && !moved && entry.size > 0 {
                    events.push(event(path, Kind::Write));
                }
            }
            // Replaced by a rename.
            Some(old) if old.inode != entry.inode => {
                events.push(event(path, Kind::Create));
            }
            Some(old) => {
                if !entry.is_dir() && (old.written != entry.written || old.size != entry.size) {
                    events.push(event(path, Kind::Write));
                } else if old.mode != entry.mode || old.owner != entry.owner || old.group != entry.group {
                    events.push(event(path, Kind::Chmod));
                }
            }
        }
    }
    events
}

/// Watchers that are asked for what happened, by id.
#[derive(Default)]
pub(super) struct Watchers(Mutex<HashMap<String, Arc<Watcher>>>);

struct Watcher {
    events: Mutex<Vec<Event>>,
    failed: Mutex<Option<String>>,
    stop: CancellationToken,
}

impl Watchers {
    /// Adds one; its id.
    pub fn add(&self, mut watch: Watch) -> String {
        let id = super::record::sandbox_name();
        let watcher = Arc::new(Watcher {
            events: Mutex::default(),
            failed: Mutex::default(),
            stop: CancellationToken::new(),
        });
        lock(&self.0).insert(id.clone(), watcher.clone());
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = watch.next() => next,
                    () = watcher.stop.cancelled() => return,
                };
                match next {
                    Some(Ok(events)) => {
                        let mut kept = lock(&watcher.events);
                        if kept.len() < MOST_EVENTS {
                            kept.extend(events);
                        }
                    }
                    Some(Err(error)) => *lock(&watcher.failed) = Some(error.to_string()),
                    None => return,
                }
            }
        });
        id
    }

    /// What happened since it was last asked for; `None` if there is no such watcher, an error if it has failed.
    pub fn take(&self, id: &str) -> Option<Result<Vec<Event>, String>> {
        let watcher = lock(&self.0).get(id).cloned()?;
        let events = std::mem::take(&mut *lock(&watcher.events));
        match lock(&watcher.failed).clone().filter(|_| events.is_empty()) {
            Some(failed) => Some(Err(failed)),
            None => Some(Ok(events)),
        }
    }

    /// Removes one; false if there is none.
    pub fn remove(&self, id: &str) -> bool {
        match lock(&self.0).remove(id) {
            Some(watcher) => {
                watcher.stop.cancel();
                true
            }
            None => false,
        }
    }

    /// Removes all.
    pub fn clear(&self) {
        for watcher in std::mem::take(&mut *lock(&self.0)).into_values() {
            watcher.stop.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn entry(path: &str, inode: &str, mode: u32, written: &str) -> (String, Entry) {
        let entry = Entry {
            path: path.to_owned(),
            mode,
            size: 1,
            modified: Timestamp(0),
            owner: "user".to_owned(),
            group: "user".to_owned(),
            target: None,
            inode: inode.to_owned(),
            written: written.to_owned(),
            changed: written.to_owned(),
        };
        (path.to_owned(), entry)
    }

    fn of(before: &[(String, Entry)], now: &[(String, Entry)]) -> Vec<(String, Kind)> {
        let map = |entries: &[(String, Entry)]| entries.iter().cloned().collect();
        changes("/d", &map(before), &map(now)).into_iter().map(|event| (event.name, event.kind)).collect()
    }

    #[test]
    fn what_happened_is_told_by_two_looks() {
        let a = entry("/d/a", "1", 0o100_644, "t1");
        assert_eq!(
            of(&[], std::slice::from_ref(&a)),
            [("a".to_owned(), Kind::Create), ("a".to_owned(), Kind::Write)]
        );
        assert_eq!(of(std::slice::from_ref(&a), &[]), [("a".to_owned(), Kind::Remove)]);
        assert_eq!(
            of(std::slice::from_ref(&a), &[entry("/d/a", "1", 0o100_644, "t2")]),
            [("a".to_owned(), Kind::Write)]
        );
        assert_eq!(
            of(std::slice::from_ref(&a), &[entry("/d/a", "1", 0o100_600, "t1")]),
            [("a".to_owned(), Kind::Chmod)]
        );
        let moved = [("a".to_owned(), Kind::Rename), ("s/b".to_owned(), Kind::Create)];
        assert_eq!(of(std::slice::from_ref(&a), &[entry("/d/s/b", "1", 0o100_644, "t1")]), moved);
        assert!(of(std::slice::from_ref(&a), std::slice::from_ref(&a)).is_empty());
    }
}
