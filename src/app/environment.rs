//! What a run knows of the world around it, read once by the program and handed down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{Clock, IdSource, IntentId, Timestamp};

/// The world around a run.
#[derive(Clone)]
pub struct Environment {
    /// The process environment.
    pub vars: BTreeMap<String, String>,
    /// The working directory.
    pub cwd: PathBuf,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// Where Pocketenv keeps its things.
    pub directories: Directories,
    /// This program.
    pub executable: PathBuf,
    /// Who runs it, as `user@host`.
    pub actor: String,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Fresh identifiers.
    pub ids: Arc<dyn IdSource>,
}

/// Where Pocketenv keeps its things: the XDG base directories, or everything below `POCKETENV_HOME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Sandboxes of the local engine, volumes, images.
    pub data: PathBuf,
    /// The store.
    pub state: PathBuf,
    /// What may be deleted at any time.
    pub cache: PathBuf,
    /// Settings.
    pub config: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
}

impl Directories {
    /// The directories for this environment. `uid` names the fallback for sockets where the system gives no runtime directory.
    pub fn resolve(vars: &BTreeMap<String, String>, home: Option<&Path>, uid: u32) -> Self {
        let set = |name: &str| {
            vars.get(name).filter(|v| !v.is_empty()).map(PathBuf::from).filter(|p| p.is_absolute())
        };
        if let Some(root) = set("POCKETENV_HOME") {
            return Self {
                data: root.join("data"),
                state: root.join("state"),
                cache: root.join("cache"),
                config: root.join("config"),
                runtime: root.join("run"),
            };
        }
        let home = home.map_or_else(|| PathBuf::from("/nonexistent"), Path::to_owned);
        let xdg = |name: &str, below: &str| set(name).unwrap_or_else(|| home.join(below)).join("pocketenv");
        let state = xdg("XDG_STATE_HOME", ".local/state");
        Self {
            data: xdg("XDG_DATA_HOME", ".local/share"),
            cache: xdg("XDG_CACHE_HOME", ".cache"),
            config: xdg("XDG_CONFIG_HOME", ".config"),
            runtime: match set("XDG_RUNTIME_DIR") {
                Some(dir) => dir.join("pocketenv"),
                // Below our own directory: a name in a directory that all may write to could be taken by another user.
                None => state.join(format!("run-{uid}")),
            },
            state,
        }
    }

    /// The store's file.
    pub fn store(&self) -> PathBuf {
        self.state.join("state.db")
    }
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// What has passed since the machine was booted, in milliseconds, by a clock that nobody sets: the time asleep included where the system tells.
/// For pauses: two of these have a difference, and none is a date.
pub(super) fn steady() -> Timestamp {
    #[cfg(target_os = "linux")]
    let ms = crate::engine::boot_ms();
    #[cfg(not(target_os = "linux"))]
    let ms = {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
    };
    Timestamp(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// Fresh identifiers: UUIDs of version 7 (RFC 9562).
#[derive(Clone, Copy, Debug, Default)]
pub struct UuidIds;

impl IdSource for UuidIds {
    fn fresh(&self) -> IntentId {
        IntentId(uuid::Uuid::now_v7().simple().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_variable_moves_everything() {
        let vars = BTreeMap::from([("POCKETENV_HOME".to_owned(), "/p".to_owned())]);
        let dirs = Directories::resolve(&vars, None, 0);
        assert_eq!(dirs.store(), Path::new("/p/state/state.db"));
        assert_eq!(dirs.runtime, Path::new("/p/run"));
    }

    #[test]
    fn a_relative_directory_is_ignored_as_the_specification_says() {
        let vars = BTreeMap::from([("XDG_DATA_HOME".to_owned(), "data".to_owned())]);
        let dirs = Directories::resolve(&vars, Some(Path::new("/home/u")), 0);
        assert_eq!(dirs.data, Path::new("/home/u/.local/share/pocketenv"));
    }
}
