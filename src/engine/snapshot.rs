//! Snapshots: the files of a sandbox as they were at one moment, from which others start.
//!
//! One is a directory, `snapshots/<name>/{snapshot.json,rootfs/,upper/}`, that comes into being under another name and is renamed when it is
//! whole and on the disk. It is never written to again: a sandbox that starts from it has it as a layer under its own writes, so that
//! starting one copies nothing, and it stays for as long as anything is made from it. What a sandbox that was itself made from a snapshot
//! holds is a snapshot on top of that one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroup::{self, Group};
use super::copy;
use super::disk::Files;
use super::error::EngineError;
use super::launch::{Below, IdMap};
use super::lifecycle::{Engine, absolute, check_name, names};
use super::rootfs;
use super::shim::{Answer, Task};
use super::skeleton;
use super::spec::{BoxState, Image, SnapshotInfo};
use super::state::{self, Lock, Record};

/// What of a sandbox is in a snapshot.
const PARTS: [&str; 2] = ["rootfs", "upper"];
/// How many snapshots may lie on top of each other: their names must fit into one mount.
const MAX_LAYERS: usize = 32;

/// `snapshot.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    /// What callers see.
    info: SnapshotInfo,
    /// What lies under all of it.
    pub(super) image: Image,
    /// Whose its files are.
    pub(super) id_map: IdMap,
}

/// Lets a sandbox go on when it is dropped, however that comes.
struct Thaw(Vec<Group>);

impl Drop for Thaw {
    fn drop(&mut self) {
        if let Err(error) = cgroup::thaw(&self.0) {
            tracing::warn!(%error, "a sandbox that was frozen for a snapshot stays paused");
        }
    }
}

impl Engine {
    /// Keeps the files of a sandbox, stopped, paused or running, as the snapshot `name`. One that runs is frozen while its files are copied.
    /// Its memory, its volumes and what is under `/run`, `/dev` and `/dev/shm` are not part of it.
    ///
    /// # Errors
    /// [`EngineError::SnapshotExists`], [`EngineError::NotFound`], [`EngineError::Unenforceable`] where a sandbox that runs cannot be
    /// frozen, [`EngineError::Invalid`] on top of too many others, [`EngineError::File`].
    pub async fn create_snapshot(
        &self,
        name: &str,
        of: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<SnapshotInfo, EngineError> {
        check_name(name)?;
        let (_sandbox, record) = self.existing(of).await?;
        let lock = self.snapshot_lock(name).await?;
        if self.snapshot(name)?.is_some() {
            return Err(EngineError::SnapshotExists(name.to_owned()));
        }
        let below = self.layers(record.spec.snapshot.as_deref())?;
        if below.len() >= MAX_LAYERS {
            return Err(EngineError::Invalid(format!(
                "sandbox `{of}` lies on {MAX_LAYERS} snapshots, and no more can lie on each other; start from an earlier one"
            )));
        }
        let unfinished = self.unfinished(name);
        self.remove_tree(&unfinished).await?; // somebody was cut short
        let made = self.make_snapshot(name, &record, labels, &unfinished, &lock).await;
        if made.is_err()
            && let Err(error) = self.remove_tree(&unfinished).await
        {
            tracing::warn!(name, %error, "what a snapshot that failed left could not be removed");
        }
        made
    }

    async fn make_snapshot(
        &self,
        name: &str,
        record: &Record,
        labels: &BTreeMap<String, String>,
        unfinished: &Path,
        lock: &Lock,
    ) -> Result<SnapshotInfo, EngineError> {
        let all = self.root.join("snapshots");
        state::private_dir(&all).map_err(EngineError::file("create", &all))?;
        // Closed above; init of a sandbox enters it as a stranger.
        let made = fs::DirBuilder::new().mode(0o711).create(unfinished);
        made.and_then(|()| fs::set_permissions(unfinished, fs::Permissions::from_mode(0o711)))
            .map_err(EngineError::file("create", unfinished))?;
        let (from, to) = (absolute(&self.dir(&record.id))?, absolute(unfinished)?);
        let thaw = self.still(&record.id).await?;
        let groups = thaw.as_ref().map(|thaw| thaw.0.clone()).unwrap_or_default();
        let task = Task::Copy { id_map: record.id_map, from: from.clone(), to, thaw: groups };
        let bytes = self.work_on_files(&task, Some(lock)).await;
        drop(thaw);
        let kept = Kept {
            info: SnapshotInfo {
                name: name.to_owned(),
                labels: labels.clone(),
                created_at: state::now_ms(),
                bytes: bytes.map_err(EngineError::file("copy", &from))?,
                on: record.spec.snapshot.clone(),
            },
            image: record.spec.clone().image,
            id_map: record.id_map,
        };
        let dir = self.snapshot_dir(name);
        let from = unfinished.to_owned();
        let (to, content) = (dir.clone(), kept.clone());
        let finishing = move || {
            state::write(&from.join("snapshot.json"), &content, true)?;
            copy::sync_all(&from)?;
            fs::rename(&from, &to)?;
            to.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
        };
        tokio::task::spawn_blocking(finishing)
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(EngineError::file("write", &dir))?;
        Ok(kept.info)
    }

    /// Nobody writes to its files until the result is dropped.
    async fn still(&self, id: &str) -> Result<Option<Thaw>, EngineError> {
        match self.liveness(id)?.0 {
            BoxState::Running { .. } => {}
            BoxState::Paused { .. } | BoxState::Stopped { .. } => return Ok(None),
            BoxState::Creating | BoxState::Broken(_) => return Err(EngineError::NotRunning(id.to_owned())),
        }
        match self.freeze(id).await {
            Err(EngineError::Unenforceable(why)) => Err(EngineError::Unenforceable(format!(
                "a sandbox that runs is frozen while its files are copied, and {why}"
            ))),
            Err(error) => Err(error),
            Ok(ran) => {
                let groups = self.liveness(id)?.1.map(|run| run.cgroups).unwrap_or_default();
                Ok(ran.then_some(Thaw(groups)))
            }
        }
    }

    /// Has a shim work on a sandbox's files: they may belong to ids that only a user namespace lets an ordinary user act for.
    async fn work_on_files(&self, task: &Task, lock: Option<&Lock>) -> io::Result<u64> {
        match self.spawn_shim(task, lock).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Failed { reason, .. } => Err(io::Error::other(reason)),
            Answer::Ready | Answer::Unpacked(_) | Answer::Layers(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The bytes on the disk of what a sandbox has written outside its volumes. Every file is looked at, so it may take a while.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Broken`], [`EngineError::File`].
    pub async fn disk_use(&self, id: &str) -> Result<u64, EngineError> {
        check_name(id)?;
        let record = self.record(id)?.ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        let dir = absolute(&self.dir(id))?;
        let task = Task::Measure { id_map: record.id_map, path: dir.clone() };
        let size = self.work_on_files(&task, None).await;
        size.map_err(EngineError::file("measure", &dir))
    }

    /// Every snapshot.
    ///
    /// # Errors
    /// [`EngineError::Broken`] for one whose state is unreadable; [`EngineError::File`].
    pub async fn list_snapshots(&self) -> Result<Vec<SnapshotInfo>, EngineError> {
        let mut infos = Vec::new();
        for name in names(&self.root.join("snapshots"))? {
            match name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".new")) {
                Some(unfinished) => self.sweep_snapshot(unfinished).await?,
                None => infos.extend(self.snapshot(&name)?.map(|kept| kept.info)),
            }
        }
        Ok(infos)
    }

    /// What lies under each snapshot.
    pub(super) fn snapshot_images(&self) -> Result<Vec<(String, Image)>, EngineError> {
        let mut images = Vec::new();
        for name in names(&self.root.join("snapshots"))?.into_iter().filter(|name| !name.starts_with('.')) {
            images.extend(self.snapshot(&name)?.map(|kept| (name, kept.image)));
        }
        Ok(images)
    }

    /// Removes what was cut short. What is under way holds the lock.
    async fn sweep_snapshot(&self, name: &str) -> Result<(), EngineError> {
        if check_name(name).is_err() || Lock::is_held(&self.root.join("locks"), &format!("snapshot-{name}"))?
        {
            return Ok(());
        }
        let _lock = self.snapshot_lock(name).await?;
        self.remove_tree(&self.unfinished(name)).await
    }

    /// Deletes a snapshot; absent already is fine.
    ///
    /// # Errors
    /// [`EngineError::SnapshotInUse`] while a sandbox or another snapshot is made from it; [`EngineError::File`].
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), EngineError> {
        check_name(name)?;
        let dir = self.snapshot_dir(name);
        if !dir.exists() {
            return Ok(());
        }
        let lock = self.snapshot_lock(name).await?;
        let in_use = |user| EngineError::SnapshotInUse { name: name.to_owned(), user };
        for id in names(&self.root.join("boxes"))? {
            // One that cannot be read may well be made from it.
            if self.record(&id)?.is_some_and(|record| record.spec.snapshot.as_deref() == Some(name)) {
                return Err(in_use(format!("sandbox `{id}`")));
            }
        }
        for other in names(&self.root.join("snapshots"))? {
            let kept = if other.starts_with('.') { None } else { self.snapshot(&other)? };
            if kept.is_some_and(|kept| kept.info.on.as_deref() == Some(name)) {
                return Err(in_use(format!("snapshot `{other}`")));
            }
        }
        // What is half removed is no snapshot any more.
        let going = self.unfinished(name);
        fs::rename(&dir, &going).map_err(EngineError::file("remove", &dir))?;
        self.remove_tree(&going).await?;
        lock.remove();
        Ok(())
    }

    /// What a new sandbox starts from, and a hold on it until the sandbox's record says that it does.
    pub(super) async fn hold_snapshot(&self, name: &str) -> Result<(Kept, Lock), EngineError> {
        check_name(name)?;
        let lock = self.snapshot_lock(name).await?;
        match self.snapshot(name)? {
            Some(kept) => Ok((kept, lock)),
            None => {
                lock.remove();
                Err(EngineError::NoSnapshot(name.to_owned()))
            }
        }
    }

    /// A snapshot and those under it, with what they say about the directories of the host.
    pub(super) fn below(&self, snapshot: Option<&str>) -> Result<Below, EngineError> {
        let mut below = Below { dirs: self.layers(snapshot)?, ..Below::default() };
        for dir in &below.dirs {
            let failed = || EngineError::file("read", dir);
            for name in skeleton::SYSTEM_DIRS {
                let is_held = holds_more_than(&dir.join("upper").join(name), &rootfs::NETWORK_FILES);
                if is_held.map_err(failed())? {
                    below.held.insert((*name).to_owned());
                }
                if holds_more_than(&dir.join("rootfs").join(name), &[]).map_err(failed())? {
                    below.copied.insert((*name).to_owned());
                }
            }
        }
        Ok(below)
    }

    /// The directories of a snapshot and of those under it, the uppermost first.
    fn layers(&self, snapshot: Option<&str>) -> Result<Vec<PathBuf>, EngineError> {
        let mut layers = Vec::new();
        let mut next = snapshot.map(str::to_owned);
        while let Some(name) = next {
            let kept = self.snapshot(&name)?.ok_or_else(|| EngineError::NoSnapshot(name.clone()))?;
            layers.push(absolute(&self.snapshot_dir(&name))?);
            if layers.len() > MAX_LAYERS {
                let reason = "it lies on itself".to_owned();
                return Err(EngineError::Broken { id: name, reason });
            }
            next = kept.info.on;
        }
        Ok(layers)
    }

    fn snapshot(&self, name: &str) -> Result<Option<Kept>, EngineError> {
        let path = self.snapshot_dir(name).join("snapshot.json");
        match state::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(EngineError::Broken { id: name.to_owned(), reason: error.to_string() })
            }
            other => other.map_err(EngineError::file("read", &path)),
        }
    }

    fn snapshot_dir(&self, name: &str) -> PathBuf {
        self.root.join("snapshots").join(name)
    }

    /// Where it is while it is made, and again while it is removed. No name begins with a dot.
    fn unfinished(&self, name: &str) -> PathBuf {
        self.root.join("snapshots").join(format!(".{name}.new"))
    }

    async fn snapshot_lock(&self, name: &str) -> Result<Lock, EngineError> {
        Lock::acquire(&self.root.join("locks"), &format!("snapshot-{name}")).await
    }
}

/// Whether a directory has an entry of another name than these. No link is followed: it was the sandbox's to make.
fn holds_more_than(dir: &Path, names: &[&str]) -> io::Result<bool> {
    if !fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(false);
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if names.iter().all(|other| name != *other) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies the files of the sandbox at `from` to the directory `to`; the bytes that they take.
///
/// # Errors
/// What the file system reports, with the path.
pub(super) fn copy_parts(from: &Path, to: &Path) -> io::Result<u64> {
    let files = Files::of(from)?;
    let from = files.path();
    PARTS.iter().map(|part| copy::copy_tree(&from.join(part), &to.join(part))).sum()
}

/// The bytes on the disk of the files of the sandbox at `dir`.
///
/// # Errors
/// What the file system reports, with the path.
pub(super) fn size_of_parts(dir: &Path) -> io::Result<u64> {
    if let Some(disk) = Files::of(dir)?.disk() {
        return Ok(disk.measure()?.used);
    }
    PARTS.iter().map(|part| copy::size(&dir.join(part))).sum()
}
