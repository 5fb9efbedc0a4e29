//! What the engine keeps on disk about a sandbox, the lock around it, and whether its processes live.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroup::Group;
use super::error::EngineError;
use super::launch::IdMap;
use super::lifetime::Moment;
use super::spec::{BoxSpec, Forward, Link, Name, Socket};
use super::sys;

/// The format of the files below.
pub const VERSION: u32 = 1;
/// The most bytes of one of them.
const MAX_STATE: u64 = 16 * 1024 * 1024;

/// `state.json`: what the sandbox is. Durable before its first process starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// The sandbox.
    pub id: String,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// What it is made of.
    pub spec: BoxSpec,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// The same by a clock that nobody sets.
    #[serde(default)]
    pub born: Option<Moment>,
    /// Whose its files are.
    pub id_map: IdMap,
    /// Host addresses that lead inside.
    pub forwards: Vec<Forward>,
    /// Ports inside that lead to the host.
    pub links: Vec<Link>,
    /// Ports of other sandboxes, by name.
    #[serde(default)]
    pub names: Vec<Name>,
    /// Unix sockets of the host that lead inside.
    #[serde(default)]
    pub sockets: Vec<Socket>,
}

/// `run.json`: the latest run, written by the shim when it starts and when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The host's boot.
    pub boot: String,
    /// The host-side process.
    pub shim: ProcessId,
    /// The first process inside.
    pub init: ProcessId,
    /// Milliseconds since the Unix epoch.
    pub since: u64,
    /// The ways chosen.
    pub choices: Vec<String>,
    /// The control groups of what is inside; none without a limit.
    #[serde(default)]
    pub cgroups: Vec<Group>,
    /// How it ended; absent while it runs, and when nobody was left to write it.
    pub ended: Option<Ended>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// As asked.
    Stopped,
    /// Why it ended on its own.
    Unclean(String),
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// Of a process that lives.
    ///
    /// # Errors
    /// What reading `/proc` reports.
    pub fn of(pid: i32) -> io::Result<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(ProcessId { pid, start })
    }

    /// A handle on the process if it still lives (a zombie does not).
    ///
    /// # Errors
    /// Only what leaves the question open; that it is gone is `None`.
    pub fn alive(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid.max(0)) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // The number of a session whose leader has ended (as some kernels say), or of a thread: no process.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            other => other?,
        };
        // The handle is held, so from here on the number cannot pass to another process unnoticed.
        let stat = match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let (state, start) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok((start == self.start && !matches!(state, b'Z' | b'X')).then_some(pidfd))
    }
}

/// State letter and start time of `/proc/PID/stat`; the name in it may contain anything, also `)`.
fn parse_stat(stat: &str) -> Option<(u8, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// SIGKILL to a process by its handle, then waits until it is gone.
///
/// # Errors
/// What the kernel reports.
pub async fn kill_and_wait(pidfd: OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    wait_gone(pidfd).await
}

/// Waits until the process is gone.
///
/// # Errors
/// What the runtime's reactor reports.
pub async fn wait_gone(pidfd: OwnedFd) -> io::Result<()> {
    sys::watch(pidfd, tokio::io::Interest::READABLE)?.readable().await.map(drop)
}

/// The boot this is.
///
/// # Errors
/// What reading `/proc` reports.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Reads a JSON file; `None` when it is not there.
///
/// # Errors
/// What reading reports; `InvalidData` with the reason for anything that is not what was written.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_STATE).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Replaces a JSON file atomically, readable by its owner alone. With `durable` what was there before survives a power cut
/// until [`sync`] makes the new content do so.
///
/// # Errors
/// What the file system reports.
pub fn write<T: Serialize>(path: &Path, value: &T, durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    // Where nothing is replaced, nothing can be lost.
    if durable && path.exists() {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)
}

/// Makes a file and its name survive a power cut.
///
/// # Errors
/// What the file system reports.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// A private directory with its parents.
///
/// # Errors
/// What the file system reports.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Holds a sandbox's or volume's lifecycle for one caller, across processes.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock named `name` in `dir`.
    ///
    /// # Errors
    /// [`EngineError::File`] when the lock file cannot be used.
    pub async fn acquire(dir: &Path, name: &str) -> Result<Lock, EngineError> {
        Self::wait(dir, name, FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive).await
    }

    /// Waits for the lock where somebody has it alone, and has it with all others who share it.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub async fn acquire_shared(dir: &Path, name: &str) -> Result<Lock, EngineError> {
        Self::wait(dir, name, FlockOperation::NonBlockingLockShared, FlockOperation::LockShared).await
    }

    /// The lock, if nobody has it.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn acquire_free(dir: &Path, name: &str) -> Result<Option<Lock>, EngineError> {
        let (path, file) = Self::open(dir, name)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { file, path })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(EngineError::file("lock", &path)(error.into())),
        }
    }

    fn open(dir: &Path, name: &str) -> Result<(PathBuf, File), EngineError> {
        private_dir(dir).map_err(EngineError::file("create", dir))?;
        let path = dir.join(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
            .map_err(io::Error::from)
            .map_err(EngineError::file("open the lock", &path))?;
        Ok((path, File::from(file)))
    }

    async fn wait(
        dir: &Path,
        name: &str,
        at_once: FlockOperation,
        later: FlockOperation,
    ) -> Result<Lock, EngineError> {
        loop {
            let (path, mut file) = Self::open(dir, name)?;
            if rustix::fs::flock(&file, at_once).is_err() {
                let waiting = move || rustix::fs::flock(&file, later).map(|()| file);
                let locked = tokio::task::spawn_blocking(waiting).await.map_err(io::Error::other);
                file = locked.and_then(|locked| Ok(locked?)).map_err(EngineError::file("lock", &path))?;
            }
            // Whoever held it before may have removed the file together with the sandbox.
            let ours = file.metadata().map_err(EngineError::file("lock", &path))?;
            if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Lock { file, path });
            }
        }
    }

    /// Whether anybody holds the lock named `name` in `dir` now.
    ///
    /// # Errors
    /// [`EngineError::File`] when the lock file cannot be used.
    pub fn is_held(dir: &Path, name: &str) -> Result<bool, EngineError> {
        let path = dir.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            other => other.map_err(io::Error::from).map_err(EngineError::file("open the lock", &path))?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(EngineError::file("look at the lock", &path)(error.into())),
        }
    }

    /// A second hold on the same lock: it is let go when both are.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Lets go and leaves no file behind.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path); // an empty file left over is harmless and found again by its name
        drop(self.file);
    }
}

/// A name of a socket in `dir` that is short however long `dir` is; the descriptor must outlive its use.
///
/// # Errors
/// What opening the directory reports.
pub fn socket_address(dir: &Path) -> io::Result<(OwnedFd, rustix::net::SocketAddrUnix)> {
    use std::os::fd::AsRawFd;
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address =
        rustix::net::SocketAddrUnix::new(format!("/proc/self/fd/{}/control.sock", dir.as_fd().as_raw_fd()))?;
    Ok((dir, address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stat_of_a_nasty_name() {
        let stat = "7 (a) Z (b) R 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        assert_eq!(parse_stat(stat), Some((b'R', 12345)));
        assert_eq!(parse_stat("garbage"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn this_process_lives_and_an_impostor_does_not() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(me.alive().unwrap().is_some());
        assert!(ProcessId { start: me.start + 1, ..me }.alive().unwrap().is_none());
        assert!(ProcessId { pid: -1, start: 0 }.alive().unwrap().is_none());
    }

    #[test]
    fn files_are_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1, 2], true).unwrap();
        write(&path, &vec![3], false).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
