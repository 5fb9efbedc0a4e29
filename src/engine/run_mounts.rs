//! What a command of a build has besides its image while it runs: files of layers, caches, memory, secrets. None of it is part of what the command
//! makes.
//!
//! Caches are directories below `images/caches`, one for each id and kind of ids, and for `private` one for each command that has it at once. A lock
//! says who has one. Who removes images removes them, too.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::client;
use super::error::EngineError;
use super::images::{ids, owner};
use super::launch::IdMap;
use super::layers::{Outcome, What};
use super::lifecycle::{Engine, absolute, names};
use super::proto::{Fill, Reply, Request};
use super::rootfs::Files;
use super::spec::{Memory, MemoryOf, Mount, MountSource};
use super::state::{self, Lock};
use crate::image::{Digest, Expected};

/// The most commands that have a `private` cache of one id at once.
const MAX_PRIVATE: usize = 1000;

/// Something that a command has while it runs.
#[derive(Debug, Clone)]
pub enum RunMount {
    /// What is at a path of a layer that is here. Nobody writes there.
    Layer {
        /// Where.
        target: PathBuf,
        /// The layer.
        layer: Box<Expected>,
        /// From its root.
        path: String,
    },
    /// A directory that outlives the build.
    Cache {
        /// Where.
        target: PathBuf,
        /// What it is found by.
        id: String,
        /// Whether others may have it at once.
        sharing: Sharing,
        /// Permissions of a new one.
        mode: u32,
        /// User and group of a new one.
        owner: (u32, u32),
        /// The command does not write there.
        read_only: bool,
    },
    /// Memory, gone with the command.
    Memory {
        /// Where.
        target: PathBuf,
        /// The most bytes.
        size: Option<u64>,
    },
    /// A file in memory.
    Secret {
        /// Where.
        target: PathBuf,
        /// What it holds.
        value: SecretString,
        /// Its permissions.
        mode: u32,
        /// Its user and group.
        owner: (u32, u32),
    },
}

/// Whether several commands may have a cache at once, the strongest wish last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Sharing {
    /// They have the same directory.
    Shared,
    /// Each has one of its own.
    Private,
    /// One waits for the other.
    Locked,
}

/// The mounts of a box, and what must be kept while it runs.
#[derive(Default)]
pub(super) struct Prepared {
    pub mounts: Vec<Mount>,
    pub memory: Vec<Memory>,
    /// What files in memory are to hold, in their order.
    fills: Vec<(Fill, SecretString)>,
    _locks: Vec<Lock>,
}

impl Prepared {
    /// Every place where something is mounted, the innermost first: what was made there for it is no part of the layer.
    pub fn targets(&self) -> Vec<PathBuf> {
        let mounts = self.mounts.iter().map(|mount| &mount.target);
        let mut targets: Vec<PathBuf> =
            mounts.chain(self.memory.iter().map(|memory| &memory.target)).cloned().collect();
        targets.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
        targets
    }
}

impl Engine {
    /// Makes ready what a command is to have. Waits for caches that somebody else has alone.
    pub(super) async fn prepare_mounts(&self, wanted: &[RunMount]) -> Result<Prepared, EngineError> {
        let id_map = ids()?;
        let owners = owner(&id_map);
        let (caches, _locks) = self.caches(wanted, &id_map, &owners).await?;
        let mut prepared = Prepared { _locks, ..Prepared::default() };
        for wanted in wanted {
            match wanted {
                RunMount::Layer { target, layer, path } => {
                    let source =
                        Path::new("images/layers").join(&owners).join(layer.diff_id.hex()).join(path);
                    let source = MountSource::Own(source);
                    prepared.mounts.push(Mount { source, target: target.clone(), read_only: true });
                }
                RunMount::Cache { target, id, read_only, .. } => {
                    let source = MountSource::Own(caches.get(id.as_str()).cloned().unwrap_or_default());
                    prepared.mounts.push(Mount { source, target: target.clone(), read_only: *read_only });
                }
                RunMount::Memory { target, size } => {
                    let what = MemoryOf::Directory { size: *size };
                    prepared.memory.push(Memory { target: target.clone(), what });
                }
                RunMount::Secret { target, value, mode, owner } => {
                    // With a single id nobody else is there to be given it.
                    let (uid, gid) = if id_map.has_range() { *owner } else { (0, 0) };
                    let index = prepared.fills.len();
                    prepared.fills.push((Fill { index, uid, gid, mode: *mode }, value.clone()));
                    prepared.memory.push(Memory { target: target.clone(), what: MemoryOf::File });
                }
            }
        }
        Ok(prepared)
    }

    /// The directories of caches by id, each held in its way.
    async fn caches<'a>(
        &self,
        wanted: &'a [RunMount],
        id_map: &IdMap,
        owners: &str,
    ) -> Result<(BTreeMap<&'a str, PathBuf>, Vec<Lock>), EngineError> {
        // One id is one cache, however often it is mounted; in the order of ids, so that no two wait for each other.
        let mut by_id: BTreeMap<&str, (Sharing, u32, (u32, u32))> = BTreeMap::new();
        for wanted in wanted {
            if let RunMount::Cache { id, sharing, mode, owner, .. } = wanted {
                let kept = by_id.entry(id).or_insert((*sharing, *mode, *owner));
                kept.0 = kept.0.max(*sharing);
            }
        }
        let (mut found, mut locks) = (BTreeMap::new(), Vec::new());
        for (id, (sharing, mode, owner)) in by_id {
            let name = Digest::of(id.as_bytes()).hex()[..40].to_owned();
            let (name, lock) = self.hold_cache(&name, sharing).await?;
            let below = Path::new("images/caches").join(owners).join(name);
            self.make_cache(&self.root.join(&below), id_map, mode, owner).await?;
            locks.push(lock);
            found.insert(id, below);
        }
        Ok((found, locks))
    }

    async fn hold_cache(&self, name: &str, sharing: Sharing) -> Result<(String, Lock), EngineError> {
        let locks = self.root.join("locks");
        match sharing {
            Sharing::Shared => {
                Ok((name.to_owned(), Lock::acquire_shared(&locks, &format!("cache-{name}")).await?))
            }
            Sharing::Locked => Ok((name.to_owned(), Lock::acquire(&locks, &format!("cache-{name}")).await?)),
            Sharing::Private => {
                for number in 0..MAX_PRIVATE {
                    let own = if number == 0 { name.to_owned() } else { format!("{name}-{number}") };
                    if let Some(lock) = Lock::acquire_free(&locks, &format!("cache-{own}"))? {
                        return Ok((own, lock));
                    }
                }
                Err(EngineError::Invalid(format!("{MAX_PRIVATE} commands have a cache of one id at once")))
            }
        }
    }

    /// Makes a cache that is not there yet. It gets its name when it is as it should be, since somebody else may look for it at the same time.
    async fn make_cache(
        &self,
        dir: &Path,
        id_map: &IdMap,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<(), EngineError> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().unwrap_or(dir);
        state::private_dir(parent).map_err(EngineError::file("create", parent))?;
        let new = absolute(&parent.join(format!(".new-{}", uuid::Uuid::now_v7().simple())))?;
        Files::of(id_map.root()).dir(&new, 0o755).map_err(EngineError::file("create", &new))?;
        let what = What::Own { dir: new.clone(), owner: id_map.has_range().then_some(owner), mode };
        match self.layers_work(what).await? {
            Outcome::Owned => {}
            other => {
                return Err(EngineError::Invalid(format!(
                    "the process that works on layers gave another answer: {other:?}"
                )));
            }
        }
        match rustix::fs::renameat_with(CWD, &new, CWD, dir, RenameFlags::NOREPLACE) {
            // Somebody was faster.
            Err(rustix::io::Errno::EXIST) => self.remove_tree(&new).await,
            other => other.map_err(io::Error::from).map_err(EngineError::file("create", dir)),
        }
    }

    /// Writes what files in memory hold, before anything runs that may read them.
    pub(super) async fn fill(&self, id: &str, prepared: &Prepared) -> Result<(), EngineError> {
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        for (fill, value) in &prepared.fills {
            let packed = || -> io::Result<std::fs::File> {
                let memory = rustix::fs::memfd_create("secret", rustix::fs::MemfdFlags::CLOEXEC)?;
                let mut memory = std::fs::File::from(memory);
                memory.write_all(value.expose_secret().as_bytes())?;
                io::Seek::rewind(&mut memory)?;
                Ok(memory)
            };
            let memory = packed().map_err(control)?;
            let connection = self.connect(id).await?;
            match client::ask(id, &connection, &Request::Fill(fill.clone()), &[memory.as_fd()]).await? {
                (Reply::Done, _) => {}
                (Reply::Failed { errno, .. }, _) => return Err(control(io::Error::from_raw_os_error(errno))),
                _ => return Err(control(io::ErrorKind::InvalidData.into())),
            }
        }
        Ok(())
    }

    /// Removes every cache; how many there were. Nobody builds meanwhile: whoever does holds the images.
    pub(super) async fn remove_caches(&self) -> Result<usize, EngineError> {
        let all = self.root.join("images/caches");
        let mut count = 0;
        for owner in names(&all)? {
            let dir = all.join(owner);
            for name in names(&dir)? {
                self.remove_tree(&dir.join(&name)).await?;
                count += usize::from(!name.starts_with('.'));
            }
        }
        Ok(count)
    }
}
