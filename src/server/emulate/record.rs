//! What an emulator remembers of its sandboxes: one small file that only its user reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::model::{
    Egress, IdSource, IntentId, Mount, NetworkMode, NetworkSpec, OwnerId, Resources, SandboxId, Timestamp,
};

/// More than this is no file of ours.
const LIMIT: u64 = 64 << 20;

/// What happens to a sandbox when its time is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnTimeout {
    /// It is deleted.
    #[default]
    Kill,
    /// It is stopped; its disk is kept.
    Pause,
}

/// One sandbox.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// The id that programs know; the name in its address as well, so that its labels alone identify it.
    pub id: String,
    /// Another name that programs may use for it.
    #[serde(default)]
    pub name: Option<String>,
    /// The provider's id; `None` while it is being made.
    pub provider_id: Option<SandboxId>,
    /// The token of its create.
    pub intent: IntentId,
    /// The name of its image, as the program gave it.
    pub template: String,
    /// For the program that made it.
    pub metadata: BTreeMap<String, String>,
    /// Opens its inside. It is made by the emulator and good for it alone.
    pub token: String,
    /// Opens its ports, where they need that.
    pub traffic_token: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last started.
    pub started_at: Timestamp,
    /// When it ends.
    pub end_at: Timestamp,
    /// How long it was to live, in milliseconds.
    pub timeout_ms: u64,
    /// How it ends.
    pub on_timeout: OnTimeout,
    /// When it is deleted, whether it runs or not.
    #[serde(default)]
    pub dies_at: Option<Timestamp>,
    /// Who programs inside run as unless they say otherwise, if that was asked for.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether a call to its inside starts it again.
    pub auto_resume: bool,
    /// What it reaches.
    #[serde(default)]
    pub network: NetworkSpec,
    /// What of volumes is in it.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// What is set aside for it.
    #[serde(default)]
    pub resources: Resources,
    /// The snapshot that it was made from.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Whether it is stopped.
    pub paused: bool,
    /// The key of its create.
    pub key: Option<String>,
}

impl Record {
    /// Whether it reaches whatever it likes.
    pub fn reaches_everything(&self) -> bool {
        self.network.mode != NetworkMode::None && self.network.egress != Some(Egress::Deny)
    }

    /// When something is to happen to it next.
    pub fn ends_at(&self) -> Option<Timestamp> {
        let stops = (!self.paused).then_some(self.end_at);
        stops.into_iter().chain(self.dies_at).min()
    }
}

/// The whole file.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    /// Which emulator it is, for the labels of its sandboxes.
    pub owner: OwnerId,
    /// Its sandboxes by id.
    pub sandboxes: BTreeMap<String, Record>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It, or its directory, cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another emulator lives in it.
    #[error("another emulator uses {}; `--project NAME` gives this one sandboxes of its own", .0.display())]
    InUse(PathBuf),
    /// It holds something else.
    #[error("{} is not the state of an emulator", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// The file, which is locked while this exists.
pub(super) struct StateFile {
    path: PathBuf,
    writing: tokio::sync::Mutex<()>,
    _lock: File,
}

impl StateFile {
    /// Opens the file, or makes a new one.
    pub fn open(path: &Path, ids: &dyn IdSource) -> Result<(Self, Kept), StateError> {
        let failed = |doing| move |source| StateError::Io { doing, path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(failed("make the directory of"))?;
        }
        let lock_path = path.with_extension("lock");
        let lock = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path)
            .map_err(failed("lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateError::InUse(path.to_owned())),
            Err(error) => return Err(failed("lock")(error.into())),
        }
        let mut bytes = Vec::new();
        let kept = match File::open(path) {
            Ok(file) => {
                file.take(LIMIT).read_to_end(&mut bytes).map_err(failed("read"))?;
                serde_json::from_slice(&bytes)
                    .map_err(|source| StateError::Unreadable { path: path.to_owned(), source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Kept { owner: OwnerId(format!("emulator-{}", ids.fresh())), sandboxes: BTreeMap::new() }
            }
            Err(error) => return Err(failed("read")(error)),
        };
        Ok((Self { path: path.to_owned(), writing: tokio::sync::Mutex::default(), _lock: lock }, kept))
    }

    /// Replaces what it holds, at once. What is written is asked for when it is this call's turn, so that an older state never follows a newer one.
    pub async fn write(&self, kept: impl FnOnce() -> Kept) -> Result<(), StateError> {
        let _turn = self.writing.lock().await;
        let failed = |source: io::Error| StateError::Io { doing: "write", path: self.path.clone(), source };
        let bytes = serde_json::to_vec(&kept()).map_err(|error| failed(error.into()))?;
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || {
            // Such a file is made with mode 0600.
            let mut new = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))?;
            new.write_all(&bytes)?;
            new.as_file().sync_data()?;
            new.persist(&path).map_err(|error| error.error).map(drop)
        });
        written.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)
    }
}

/// A secret that nobody can guess.
pub(super) fn token() -> String {
    hex::encode(random())
}

/// The name of a sandbox, as a vendor's looks: a letter, letters and digits.
pub(super) fn sandbox_name() -> String {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let letters = random().into_iter().take(19);
    let letters = letters.map(|byte| char::from(alphabet[usize::from(byte) % alphabet.len()]));
    std::iter::once('i').chain(letters).collect()
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    // Provably impossible on a system that has started: the kernel's generator is always there.
    #[allow(clippy::expect_used)]
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}
