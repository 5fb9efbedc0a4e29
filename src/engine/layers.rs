//! Layers that are made here: by a command in a box, or by files that are put into an image. What is made is named by what it holds, as layers
//! that came from elsewhere are.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::MountPropagationFlags;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use super::client::Stdio;
use super::error::EngineError;
use super::images::{blocking, described, ids, owner};
use super::launch::IdMap;
use super::lifecycle::{Engine, absolute, names};
use super::rootfs::{Files, NETWORK_FILES};
use super::run_mounts::RunMount;
use super::shim::{Answer, Task, in_namespaces, with_ids};
use super::spec::{BoxSpec, ExecRequest, Exit, Image, Lifetime, OciImage};
use super::state::{self, Lock};
use super::{syscalls, user};
use crate::image::{self, Built, Digest, Execution, Expected, Hashing, Packer, Placing, Reference, Store};

/// The beginning of the ids of boxes in which steps run. No sandbox has a dot in its name.
const BOX: &str = "build.";
/// How long one command of a build may take. A box that is left over is deleted after that by itself.
const MAX_RUN: Duration = Duration::from_secs(6 * 60 * 60);
/// The most bytes of `/etc/passwd` and `/etc/group` of an image.
const MAX_USERS: u64 = 1 << 20;

/// Work on layers, by a process with the ids of a sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub struct Work {
    id_map: IdMap,
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Pack files of an image.
    Take { layers: Vec<PathBuf>, workplace: PathBuf, sources: Vec<String>, archive: PathBuf },
    /// Put the entries of an archive into an image, as one more layer in `to`.
    Place {
        layers: Vec<PathBuf>,
        workplace: PathBuf,
        archive: PathBuf,
        placing: Placing,
        owner: Option<String>,
        to: PathBuf,
    },
    /// Make a layer in `to` of what was written over others.
    Commit {
        written: PathBuf,
        to: PathBuf,
        /// Places where something else was mounted, the innermost first, over `layers`: what was made for that is left out.
        targets: Vec<PathBuf>,
        layers: Vec<PathBuf>,
    },
    /// Give a directory to one of the ids of sandboxes.
    Own { dir: PathBuf, owner: Option<(u32, u32)>, mode: u32 },
    /// Pack a layer into the file `blob`, compressed.
    Pack { layer: PathBuf, blob: PathBuf, leave_out: Vec<String> },
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Files were packed.
    Taken(Taken),
    /// A layer was made, unless nothing has changed.
    Layer(Built),
    /// A layer was packed.
    Packed {
        /// The digest of the blob.
        digest: Digest,
        /// The digest of the plain archive in it.
        diff_id: Digest,
        /// The bytes of the blob.
        size: u64,
    },
    /// A directory was given away.
    Owned,
    /// The request cannot be fulfilled, for a reason that is the caller's.
    Refused(String),
}

/// Files of an image, packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The digest of the archive.
    pub digest: Digest,
    /// Whether they belong into a directory: there are several, or it is one.
    pub into: bool,
}

/// A command of a build.
#[derive(Debug, Clone, Default)]
pub struct RunStep {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The image's environment.
    pub env: Vec<(String, String)>,
    /// Variables of the build, which the image does not keep.
    pub args: Vec<(String, String)>,
    /// Where it runs; made where it is not there.
    pub working_dir: String,
    /// Who runs it; root when absent.
    pub user: Option<String>,
    /// Variables that are secrets.
    pub secret_env: Vec<(String, SecretString)>,
    /// What it has besides its image.
    pub mounts: Vec<RunMount>,
}

impl Engine {
    /// What a step of a build came to, if it is still here.
    ///
    /// # Errors
    /// [`EngineError::Image`].
    pub fn built_step(&self, key: &Digest) -> Result<Option<Built>, EngineError> {
        let owner = owner(&ids()?);
        let store = self.images();
        let built = store.built(&own(key, &owner))?;
        Ok(built.filter(|built| {
            built.layer.as_ref().is_none_or(|layer| store.layer(&owner, &layer.diff_id).exists())
        }))
    }

    /// A directory for archives of a build. Hold the images while it is used.
    ///
    /// # Errors
    /// [`EngineError::File`].
    pub fn building_dir(&self) -> Result<PathBuf, EngineError> {
        let dir = self.root.join("images/building");
        state::private_dir(&dir).map_err(EngineError::file("create", &dir))?;
        Ok(dir)
    }

    /// Deletes boxes of builds that were cut short.
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Control`].
    pub async fn sweep_builds(&self) -> Result<(), EngineError> {
        for id in names(&self.root.join("boxes"))? {
            let Some(key) = id.strip_prefix(BOX) else { continue };
            if !Lock::is_held(&self.root.join("locks"), &format!("build-{key}"))? {
                self.delete(&id).await?;
            }
        }
        Ok(())
    }

    /// Runs a command on these layers, and keeps what it wrote as one more. `say` hears what it prints. `Err` of the result: how it failed.
    ///
    /// # Errors
    /// As [`Engine::create`] and [`Engine::exec`].
    pub async fn run_step(
        &self,
        key: &Digest,
        layers: &[Expected],
        step: &RunStep,
        say: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Result<Built, Exit>, EngineError> {
        let lock = self.step_lock(key).await?;
        if let Some(built) = self.built_step(key)? {
            return Ok(Ok(built));
        }
        let id = format!("{BOX}{}", short(key));
        self.delete(&id).await?; // somebody was cut short
        let ran = self.run_in(&id, key, layers, step, say).await;
        if let Err(error) = self.delete(&id).await {
            tracing::warn!(id, %error, "a box of a build could not be deleted");
        }
        if ran.is_ok() {
            lock.remove();
        }
        ran
    }

    async fn run_in(
        &self,
        id: &str,
        key: &Digest,
        layers: &[Expected],
        step: &RunStep,
        say: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Result<Built, Exit>, EngineError> {
        let image = OciImage {
            reference: id.to_owned(),
            layers: layer_names(layers, &owner(&ids()?)),
            working_dir: Some(step.working_dir.clone().into()),
            env: step.env.clone(),
            ..OciImage::default()
        };
        let ttl = u64::try_from(MAX_RUN.as_millis()).ok();
        let prepared = self.prepare_mounts(&step.mounts).await?;
        let spec = BoxSpec {
            image: Image::Oci(image),
            hostname: Some("build".to_owned()),
            lifetime: Lifetime { ttl, idle: None },
            mounts: prepared.mounts.clone(),
            memory: prepared.memory.clone(),
            ..BoxSpec::default()
        };
        self.create(id, &spec, &std::collections::BTreeMap::new()).await?;
        self.fill(id, &prepared).await?;
        let pipe = |error: io::Error| EngineError::Control { id: id.to_owned(), source: error };
        let (reader, writer) = io::pipe().map_err(pipe)?;
        let stderr = writer.try_clone().map_err(pipe)?;
        let null = File::open("/dev/null").map_err(pipe)?;
        let mut output =
            tokio::net::unix::pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(pipe)?;
        let stdio = Stdio::Files { stdin: null.into(), stdout: writer.into(), stderr: stderr.into() };
        let request = ExecRequest {
            argv: step.argv.iter().map(OsString::from).collect(),
            // The image's own `PATH`, and nothing before it.
            env: step
                .env
                .iter()
                .filter(|(name, _)| name == "PATH")
                .chain(&step.args)
                .map(|(name, value)| (name.into(), value.into()))
                .chain(
                    step.secret_env.iter().map(|(name, value)| (name.into(), value.expose_secret().into())),
                )
                .collect(),
            cwd: Some(step.working_dir.clone().into()),
            user: step.user.clone(),
            look: false,
        };
        let mut handle = self.exec(id, request, stdio).await?;
        let mut buffer = vec![0; 16 * 1024];
        let mut open = true;
        let exit = loop {
            tokio::select! {
                read = output.read(&mut buffer), if open => match read.map_err(pipe)? {
                    0 => open = false,
                    read => say(&buffer[..read]),
                },
                exit = handle.wait() => break exit?,
            }
        };
        // What it left running ends here, and with it the last writer.
        self.stop(id, Duration::ZERO).await?;
        while open {
            match output.read(&mut buffer).await.map_err(pipe)? {
                0 => open = false,
                read => say(&buffer[..read]),
            }
        }
        if exit != Exit::Code(0) {
            return Ok(Err(exit));
        }
        let to = self.layers_dir()?;
        let written = absolute(&self.dir(id))?.join("rootfs");
        let (targets, layers) = (prepared.targets(), self.layer_dirs(layers)?);
        match self.layers_work(What::Commit { written, to, targets, layers }).await? {
            Outcome::Layer(built) => self.keep_built(key, built).map(Ok),
            other => Err(unexpected(&other)),
        }
    }

    /// Puts the entries of an archive into the image of these layers, as one more. `owner` is looked up in the image. `Err` of the result: why not.
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Image`].
    pub async fn place_step(
        &self,
        key: &Digest,
        layers: &[Expected],
        archive: &Path,
        placing: Placing,
        owner: Option<String>,
    ) -> Result<Result<Built, String>, EngineError> {
        let lock = self.step_lock(key).await?;
        if let Some(built) = self.built_step(key)? {
            return Ok(Ok(built));
        }
        let workplace = self.workplace(key).await?;
        let what = What::Place {
            layers: self.layer_dirs(layers)?,
            workplace: workplace.clone(),
            archive: archive.to_owned(),
            placing,
            owner,
            to: self.layers_dir()?,
        };
        let done = self.layers_work(what).await;
        self.remove_tree(&workplace).await?;
        let built = match done? {
            Outcome::Layer(built) => Ok(self.keep_built(key, built)?),
            Outcome::Refused(why) => Err(why),
            other => return Err(unexpected(&other)),
        };
        lock.remove();
        Ok(built)
    }

    /// Packs files of the image of these layers into the file `archive`, which is there. `Err` of the result: why not.
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Image`].
    pub async fn take(
        &self,
        layers: &[Expected],
        sources: &[String],
        archive: &Path,
    ) -> Result<Result<Taken, String>, EngineError> {
        let key = Digest::of(archive.as_os_str().as_encoded_bytes());
        let workplace = self.workplace(&key).await?;
        let what = What::Take {
            layers: self.layer_dirs(layers)?,
            workplace: workplace.clone(),
            sources: sources.to_vec(),
            archive: archive.to_owned(),
        };
        let done = self.layers_work(what).await;
        self.remove_tree(&workplace).await?;
        match done? {
            Outcome::Taken(taken) => Ok(Ok(taken)),
            Outcome::Refused(why) => Ok(Err(why)),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives an image of layers that are here a name, and what sandboxes need of it.
    ///
    /// # Errors
    /// [`EngineError::Image`].
    pub async fn keep_image(
        &self,
        reference: &Reference,
        execution: &Execution,
        layers: &[Expected],
        told: Vec<String>,
    ) -> Result<OciImage, EngineError> {
        let (store, text) = (self.images(), reference.to_string());
        let (execution, layers) = (execution.clone(), layers.to_vec());
        let image =
            blocking(move || image::make(&store, &text, &execution, &layers, state::now_ms())).await?;
        Ok(described(&image, &owner(&ids()?), told))
    }

    fn keep_built(&self, key: &Digest, built: Built) -> Result<Built, EngineError> {
        self.images().keep_built(&own(key, &owner(&ids()?)), &built)?;
        Ok(built)
    }

    async fn step_lock(&self, key: &Digest) -> Result<Lock, EngineError> {
        Lock::acquire(&self.root.join("locks"), &format!("build-{}", short(key))).await
    }

    /// A directory for one piece of work, which init may enter as a stranger.
    async fn workplace(&self, key: &Digest) -> Result<PathBuf, EngineError> {
        let path = absolute(&self.images().workplace(key)?)?;
        self.remove_tree(&path).await?; // somebody was cut short
        std::fs::DirBuilder::new().mode(0o711).create(&path).map_err(EngineError::file("create", &path))?;
        Ok(path)
    }

    fn layers_dir(&self) -> Result<PathBuf, EngineError> {
        let dir = self.root.join("images/layers").join(owner(&ids()?));
        state::private_dir(&dir).map_err(EngineError::file("create", &dir))?;
        absolute(&dir)
    }

    pub(super) fn layer_dirs(&self, layers: &[Expected]) -> Result<Vec<PathBuf>, EngineError> {
        let (store, owner): (Store, String) = (self.images(), owner(&ids()?));
        layers.iter().map(|layer| absolute(&store.layer(&owner, &layer.diff_id))).collect()
    }

    pub(super) async fn layers_work(&self, what: What) -> Result<Outcome, EngineError> {
        let dir = self.root.join("images/layers");
        let at = EngineError::file("work on the layers in", &dir);
        let task = Task::Layers(Box::new(Work { id_map: ids()?, what }));
        match self.spawn_shim(&task, None).await {
            Ok(Answer::Layers(outcome)) => Ok(outcome),
            Ok(Answer::Failed { reason, .. }) => Err(at(io::Error::other(reason))),
            Ok(Answer::Ready | Answer::Bytes(_) | Answer::Unpacked(_)) => {
                Err(at(io::ErrorKind::InvalidData.into()))
            }
            Err(error) => Err(at(error)),
        }
    }
}

fn unexpected(outcome: &Outcome) -> EngineError {
    EngineError::Invalid(format!("the process that works on layers gave another answer: {outcome:?}"))
}

/// Layers have the owners that the ids of this user's sandboxes are outside, and so have what is made of them.
fn own(key: &Digest, owner: &str) -> Digest {
    Digest::of(format!("{owner}\n{key}").as_bytes())
}

fn short(key: &Digest) -> &str {
    &key.hex()[..40]
}

fn layer_names(layers: &[Expected], owner: &str) -> Vec<String> {
    layers.iter().map(|layer| format!("{owner}/{}", layer.diff_id.hex())).collect()
}

/// Does the work; in the shim.
///
/// # Errors
/// What the file system reports, with the path.
pub(super) fn carry_out(work: &Work) -> io::Result<Outcome> {
    let id_map = &work.id_map;
    match &work.what {
        What::Take { layers, workplace, sources, archive } => {
            let archive = File::options().write(true).truncate(true).open(archive)?;
            merged(id_map, workplace, layers, |root| take(root, sources, archive))
        }
        What::Place { layers, workplace, archive, placing, owner, to } => {
            let archive = File::open(archive)?;
            let size = archive.metadata()?.len();
            let placed: Result<Vec<String>, String> = merged(id_map, workplace, layers, |root| {
                let mut placing = placing.clone();
                if let Some(owner) = owner {
                    match find_user(root, owner)? {
                        Some(ids) => placing.owner = Some(ids),
                        None => {
                            return Ok(Err(format!(
                                "`{}` is neither a number nor in the image's /etc/passwd and /etc/group",
                                owner.escape_debug()
                            )));
                        }
                    }
                }
                match image::place(archive, size, root, &placing, id_map.has_range()) {
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Err(error.to_string())),
                    other => other.map(|unpacked| Ok(unpacked.told)),
                }
            })?;
            match placed {
                Err(why) => Ok(Outcome::Refused(why)),
                Ok(told) => {
                    let layer = commit(id_map, &workplace.join("upper"), to, false)?;
                    Ok(Outcome::Layer(Built { layer, told }))
                }
            }
        }
        What::Own { dir, owner, mode } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = File::from(rustix::fs::open(dir, flags, Mode::empty())?);
            with_ids(id_map, || {
                if let Some((uid, gid)) = owner {
                    std::os::unix::fs::fchown(&dir, Some(*uid), Some(*gid))?;
                }
                dir.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(*mode))
            })?;
            Ok(Outcome::Owned)
        }
        What::Commit { written, to, targets, layers } => {
            if !targets.is_empty() {
                forget_targets(id_map, written, targets, layers)?;
            }
            let layer = commit(id_map, written, to, true)?;
            Ok(Outcome::Layer(Built { layer, told: Vec::new() }))
        }
        What::Pack { layer, blob, leave_out } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let root = rustix::fs::open(layer, flags, Mode::empty())?;
            let blob = File::options().write(true).truncate(true).open(blob)?;
            with_ids(id_map, || pack(&root, blob, leave_out))
        }
    }
}

/// Works on the image of these layers as one tree, with writes kept in `upper` of the workplace.
fn merged<T: Serialize + serde::de::DeserializeOwned>(
    id_map: &IdMap,
    workplace: &Path,
    layers: &[PathBuf],
    work: impl FnOnce(&OwnedFd) -> io::Result<T>,
) -> io::Result<T> {
    let files = Files::of(id_map.root());
    for name in ["root", "upper", "work", "lower"] {
        files.dir(&workplace.join(name), 0o755)?;
    }
    let open = || {
        rustix::process::chdir(workplace)?;
        syscalls::open_layers(layers)
    };
    in_namespaces(libc::CLONE_NEWUSER | libc::CLONE_NEWNS, id_map, open, |layers| {
        rustix::process::umask(Mode::empty());
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let mut lowers: Vec<PathBuf> = layers.iter().rev().map(syscalls::through).collect();
        lowers.push("lower".into()); // an image may have no layer
        syscalls::overlay(Path::new("pocketenv-build"), "root", &lowers, "upper", "work")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        work(&rustix::fs::open("root", flags, Mode::empty())?)
    })
}

fn take(root: &OwnedFd, sources: &[String], archive: File) -> io::Result<Outcome> {
    let out = io::BufWriter::with_capacity(256 * 1024, archive);
    let mut packer = Packer::new(Hashing::new(out));
    let (mut count, mut has_dir) = (0, false);
    for source in sources {
        let found = image::matching(root, Path::new(source))?;
        if found.is_empty() {
            return Ok(Outcome::Refused(format!("`{}` is not there", source.escape_debug())));
        }
        for path in found {
            count += 1;
            let leads = match image::followed(root, &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Outcome::Refused(format!(
                        "`{}` is a link to nothing",
                        path.display().to_string().escape_debug()
                    )));
                }
                other => other?,
            };
            let name = path.file_name().or(leads.file_name()).unwrap_or_default();
            has_dir |= packer.tree(root, &leads, Path::new(name))?;
        }
    }
    let (out, _) = packer.finish()?;
    let (mut out, digest) = out.finish();
    io::Write::flush(&mut out)?;
    Ok(Outcome::Taken(Taken { digest, into: has_dir || count > 1 }))
}

/// Reads a file that the image controls: only a regular one, and only so much of it; one that is not there is empty.
fn read(root: &OwnedFd, path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
        other => File::from(other?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("/{path} is no file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_USERS).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn find_user(root: &OwnedFd, user: &str) -> io::Result<Option<(u32, u32)>> {
    let (passwd, group) = (read(root, "etc/passwd")?, read(root, "etc/group")?);
    Ok(user::find(user, &passwd, &group).map(|identity| (identity.uid, identity.gid)))
}

/// Makes a layer of what was written over others, under the name of what it holds; `None` where that is nothing. In a box the engine has written
/// too.
fn commit(id_map: &IdMap, written: &Path, to: &Path, of_box: bool) -> io::Result<Option<Expected>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(written, flags, Mode::empty())?;
    let packed: Option<(Digest, u64)> = with_ids(id_map, || {
        if of_box {
            forget_network_files(&root)?;
        }
        let mut packer = Packer::new(Hashing::new(io::sink()));
        packer.layer(&root)?;
        let (out, packed) = packer.finish()?;
        let size = out.count();
        Ok((packed.entries > 0).then(|| (out.digest(), size)))
    })?;
    let Some((diff_id, size)) = packed else { return Ok(None) };
    let path = to.join(diff_id.hex());
    if !path.exists() {
        rustix::fs::syncfs(&root)?;
        std::fs::rename(written, &path)?;
        state::sync(&path)?;
    }
    Ok(Some(Expected { digest: Some(diff_id.clone()), diff_id, size }))
}

/// Takes away what was made only for something to be mounted on it: it is empty, and no layer below has it. So are the directories that lead there.
fn forget_targets(id_map: &IdMap, written: &Path, targets: &[PathBuf], layers: &[PathBuf]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(written, flags, Mode::empty())?;
    let layers = syscalls::open_layers(layers)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    // By a path without links: through one it is somewhere else.
    let look = |dir: &OwnedFd, path: &Path| {
        let found = rustix::fs::openat2(
            dir,
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        );
        found.and_then(rustix::fs::fstat).ok()
    };
    with_ids(id_map, || {
        for target in targets {
            let mut path = target.strip_prefix("/").unwrap_or(target);
            while !path.as_os_str().is_empty() {
                let Some(stat) = look(&root, path) else { break };
                let kind = FileType::from_raw_mode(stat.st_mode);
                let is_made = kind.is_dir() || (kind.is_file() && stat.st_size == 0);
                if !is_made || layers.iter().any(|layer| look(layer, path).is_some()) {
                    break;
                }
                let parent = path.parent().unwrap_or(Path::new(""));
                let at =
                    rustix::fs::openat2(&root, Path::new(".").join(parent), flags, Mode::empty(), resolve)?;
                let how = if kind.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                // A directory with something in it is the command's.
                if rustix::fs::unlinkat(&at, path.file_name().unwrap_or_default(), how).is_err() {
                    break;
                }
                path = parent;
            }
        }
        Ok(())
    })
}

fn pack(root: &OwnedFd, blob: File, leave_out: &[String]) -> io::Result<Outcome> {
    let blob = Hashing::new(io::BufWriter::with_capacity(256 * 1024, blob));
    let compressed = flate2::write::GzEncoder::new(blob, flate2::Compression::default());
    let mut packer = Packer::new(Hashing::new(compressed)).without(leave_out);
    packer.layer(root)?;
    let (compressed, diff_id) = packer.finish()?.0.finish();
    let blob = compressed.finish()?;
    let size = blob.count();
    let (mut file, digest) = blob.finish();
    io::Write::flush(&mut file)?;
    Ok(Outcome::Packed { digest, diff_id, size })
}

/// Takes away what the engine itself has put under `/etc`, and the directory if there was nothing else for it.
fn forget_network_files(root: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let etc = match rustix::fs::openat(root, "etc", flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(()),
        other => other?,
    };
    for name in NETWORK_FILES {
        match rustix::fs::unlinkat(&etc, name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR) => {}
            other => other?,
        }
    }
    // One that hides what is below it says something by being there.
    if rustix::fs::fgetxattr(&etc, image::OPAQUE_XATTR, &mut [0; 1]).is_err() {
        let _ = rustix::fs::unlinkat(root, "etc", AtFlags::REMOVEDIR); // it is not empty
    }
    Ok(())
}
