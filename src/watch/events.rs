//! Hearing of changes in directories.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// More paths than this are not kept apart: everything is looked at again instead.
const MAX_PATHS: usize = 20_000;

/// Why changes cannot be heard of.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel's limit of watched directories is reached.
    #[error(
        "cannot watch {path}: this user already watches as many directories as the system allows; raise the limit with \
         `sysctl fs.inotify.max_user_watches=524288`, or leave large directories out with `ignore` or a .pocketenvignore file",
        path = .0.display()
    )]
    TooManyDirectories(PathBuf),
    /// The kernel's limit of watchers is reached.
    #[error(
        "cannot watch files: this user already has as many watchers as the system allows; end other programs that watch files, or \
         raise the limit with `sysctl fs.inotify.max_user_instances=512`"
    )]
    TooManyWatchers,
    /// Anything else.
    #[error("cannot watch {path}", path = .path.display())]
    Other {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
    /// What changed cannot be read.
    #[error(transparent)]
    Tree(#[from] crate::guest::tree::TreeError),
}

impl WatchError {
    fn of(path: &Path, source: notify::Error) -> Self {
        let code = match &source.kind {
            notify::ErrorKind::MaxFilesWatch => Some(libc::ENOSPC),
            notify::ErrorKind::Io(error) => error.raw_os_error(),
            _ => None,
        };
        match code {
            Some(libc::ENOSPC) => Self::TooManyDirectories(path.to_owned()),
            Some(libc::EMFILE) => Self::TooManyWatchers,
            _ => Self::Other { path: path.to_owned(), source },
        }
    }
}

/// What changed since it was asked last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The paths, each with the last thing that happened to it.
    pub paths: BTreeMap<PathBuf, &'static str>,
    /// Events were lost: everything has to be looked at again.
    pub lost: bool,
}

/// Hears of changes in directories, not in what is below them.
pub struct Files {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    changes: Mutex<Changes>,
    news: Notify,
}

impl Shared {
    /// A poisoned lock is the trace of a panic elsewhere; a set of paths cannot be half changed.
    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: notify::Result<notify::Event>) {
        let mut changes = self.changes();
        match event {
            Ok(event) => {
                changes.lost |= event.need_rescan();
                let Some(what) = what(&event.kind) else {
                    if changes.lost {
                        self.news.notify_one();
                    }
                    return;
                };
                changes.paths.extend(event.paths.into_iter().map(|path| (path, what)));
            }
            Err(_) => changes.lost = true,
        }
        if changes.paths.len() > MAX_PATHS {
            changes.paths.clear();
            changes.lost = true;
        }
        drop(changes);
        self.news.notify_one();
    }
}

/// What happened, in a word; `None` for what changes nothing, our own reading above all.
fn what(kind: &EventKind) -> Option<&'static str> {
    match kind {
        EventKind::Access(_) => None,
        EventKind::Create(_) => Some("created"),
        EventKind::Remove(_) => Some("deleted"),
        EventKind::Modify(ModifyKind::Name(_)) => Some("renamed"),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some("attributes changed"),
        EventKind::Modify(_) | EventKind::Any | EventKind::Other => Some("modified"),
    }
}

impl Files {
    /// Hears of nothing yet.
    pub fn new() -> Result<Self, WatchError> {
        let shared = Arc::new(Shared::default());
        let listener = Arc::clone(&shared);
        let watcher = notify::recommended_watcher(move |event| listener.take(event))
            .map_err(|error| WatchError::of(Path::new("files"), error))?;
        Ok(Self { watcher, watched: BTreeSet::new(), shared })
    }

    /// From now on hears of changes in this directory; `false` if it did before. A directory that does not exist is no error: there is nothing to hear.
    pub fn add(&mut self, directory: &Path) -> Result<bool, WatchError> {
        if self.watched.contains(directory) {
            return Ok(false);
        }
        match self.watcher.watch(directory, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(directory.to_owned());
                Ok(true)
            }
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) => Err(WatchError::of(directory, error)),
        }
    }

    /// Hears of it no more.
    pub fn remove(&mut self, directory: &Path) {
        if self.watched.remove(directory) {
            // One that does not exist any more is not watched any more either.
            let _ = self.watcher.unwatch(directory);
        }
    }

    /// Hears of nothing any more.
    pub fn remove_all(&mut self) {
        for directory in std::mem::take(&mut self.watched) {
            let _ = self.watcher.unwatch(&directory);
        }
    }

    /// The directories that are watched.
    pub fn watched(&self) -> &BTreeSet<PathBuf> {
        &self.watched
    }

    /// What changed since the last call.
    pub fn take(&self) -> Changes {
        std::mem::take(&mut self.shared.changes())
    }

    /// A handle to wait with while the watcher itself is busy elsewhere.
    pub fn news(&self) -> News {
        News(Arc::clone(&self.shared))
    }
}

/// Waits for changes.
pub struct News(Arc<Shared>);

impl News {
    /// Comes back when something changed that was not taken yet. Dropping the future loses nothing.
    pub async fn wait(&self) {
        loop {
            let news = self.0.news.notified();
            {
                let changes = self.0.changes();
                if changes.lost || !changes.paths.is_empty() {
                    return;
                }
            }
            news.await;
        }
    }

    /// What changed since the last call.
    pub fn take(&self) -> Changes {
        std::mem::take(&mut self.0.changes())
    }
}

fn is_absence(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_replaced_is_heard_of_and_one_that_is_read_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "one").unwrap();
        let mut files = Files::new().unwrap();
        assert!(files.add(dir.path()).unwrap());
        assert!(!files.add(dir.path()).unwrap());
        assert!(!files.add(&dir.path().join("nope")).unwrap());
        let news = files.news();
        std::fs::read(&file).unwrap();
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        let mut heard = BTreeMap::new();
        tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while heard.get(&file) != Some(&"renamed") {
                news.wait().await;
                heard.extend(news.take().paths);
            }
        })
        .await
        .unwrap();
        assert!(heard.keys().all(|path| path == &file || path.ends_with("new")), "{heard:?}");
    }

    #[test]
    fn too_many_paths_become_a_look_at_everything() {
        let shared = Shared::default();
        for n in 0..=MAX_PATHS {
            let event = notify::Event::new(EventKind::Any).add_path(PathBuf::from(n.to_string()));
            shared.take(Ok(event));
        }
        assert_eq!(*shared.changes(), Changes { paths: BTreeMap::new(), lost: true });
    }

    #[test]
    fn limits_of_the_system_say_how_to_raise_them() {
        let of = |code| {
            let error = notify::Error::io(io::Error::from_raw_os_error(code));
            WatchError::of(Path::new("/x"), error).to_string()
        };
        assert!(of(libc::ENOSPC).contains("max_user_watches"));
        assert!(of(libc::EMFILE).contains("max_user_instances"));
    }
}
