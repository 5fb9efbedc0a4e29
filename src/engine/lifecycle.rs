//! The engine as its callers see it: create, start, stop, delete and list.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::bound::{self, Trust};
use super::cgroup::{self, Available, Controller};
use super::client;
use super::device;
use super::disk::{self, Files};
use super::error::EngineError;
use super::launch::LaunchRequest;
use super::lifetime::Moment;
use super::mounts;
use super::proto::{Reply, Request};
use super::proxy::Upstream;
use super::remove;
use super::rootfs;
use super::seq::Seq;
use super::shim::{Answer, Order, Task};
use super::socket;
use super::spawn;
use super::spec::{
    BoxInfo, BoxSpec, BoxState, Forward, ForwardInfo, IoLimits, Limits, LimitsInfo, MountSource,
};
use super::state::{self, Ended, Lock, Record, Run};
use super::throttle;

/// How long the processes may take to go after they were told to, beyond the grace.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a launch may take.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Where an engine keeps its things.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// For state and files; `engine/` is made below it.
    pub data_dir: PathBuf,
    /// For sockets; `engine/` is made below it.
    pub runtime_dir: PathBuf,
    /// This program, which becomes the shim; `/proc/self/exe` normally.
    pub exe: PathBuf,
}

/// The local engine. Cheap to make; holds nothing open; any number may work on the same directories at once.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) root: PathBuf,
    pub(super) runtime: PathBuf,
    pub(super) exe: PathBuf,
}

impl Engine {
    /// An engine on these directories, which are made when first needed.
    pub fn new(config: EngineConfig) -> Engine {
        Engine {
            root: config.data_dir.join("engine"),
            runtime: config.runtime_dir.join("engine"),
            exe: config.exe,
        }
    }

    /// The engine that a shim belongs to.
    pub(super) fn of_shim(root: &Path, sockets: &Path) -> Engine {
        Engine { root: root.to_owned(), runtime: sockets.to_owned(), exe: "/proc/self/exe".into() }
    }

    /// Every sandbox. One whose state is unreadable is listed as [`BoxState::Broken`], never left out.
    ///
    /// # Errors
    /// [`EngineError::File`] when the directory cannot be read.
    pub async fn list(&self) -> Result<Vec<BoxInfo>, EngineError> {
        let boxes = self.root.join("boxes");
        let mut infos = Vec::new();
        for name in names(&boxes)? {
            let info = match self.get(&name).await {
                Ok(info) => info,
                Err(EngineError::Broken { id, reason }) => Some(broken(&id, reason)),
                Err(error) => return Err(error),
            };
            infos.extend(info);
        }
        Ok(infos)
    }

    /// One sandbox, or `None` when there is none of this id.
    ///
    /// # Errors
    /// [`EngineError::Broken`] for unreadable state; [`EngineError::File`].
    pub async fn get(&self, id: &str) -> Result<Option<BoxInfo>, EngineError> {
        check_name(id)?;
        match self.record(id)? {
            None if self.dir(id).exists() => self.without_record(id).await,
            None => Ok(None),
            // Its shim sees to it while it runs, and nobody while it does not.
            Some(record) if self.is_over(&record)? && self.liveness(id)?.0.pid().is_none() => {
                match self.expire(id).await {
                    Ok(()) | Err(EngineError::NotFound(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Some(record) => self.info(record).await.map(Some),
        }
    }

    /// A directory without a record: somebody is at the very beginning or end of a sandbox, or was interrupted there. What such a one
    /// left belongs to nobody and is not seen through any labels, so it goes at the first look.
    async fn without_record(&self, id: &str) -> Result<Option<BoxInfo>, EngineError> {
        if self.is_locked(id)? {
            return Ok(Some(BoxInfo { state: BoxState::Creating, ..broken(id, String::new()) }));
        }
        let lock = self.lock(id).await?;
        if let Some(record) = self.record(id)? {
            drop(lock);
            return self.info(record).await.map(Some);
        }
        self.remove(id).await?;
        lock.remove();
        Ok(None)
    }

    /// Creates and starts a sandbox. If one of this id and these labels exists already, it is returned as it is (and started, had
    /// it never been); a sandbox that cannot start leaves nothing behind.
    ///
    /// # Errors
    /// [`EngineError::AlreadyExists`] for other labels, [`EngineError::Invalid`], [`EngineError::Launch`], [`EngineError::File`].
    pub async fn create(
        &self,
        id: &str,
        spec: &BoxSpec,
        labels: &BTreeMap<String, String>,
    ) -> Result<BoxInfo, EngineError> {
        check_name(id)?;
        check_spec(spec)?;
        self.check_limits(&spec.limits)?;
        let lock = self.lock(id).await?;
        let record = match self.record(id)? {
            Some(record) if record.labels != *labels => {
                return Err(EngineError::AlreadyExists(id.to_owned()));
            }
            Some(record) if self.run(id)?.is_some() => return self.info(record).await,
            Some(record) => record,
            None => self.new_record(id, spec, labels).await?,
        };
        // The record is written before the first process starts. A power cut would end that process too, so the disk may catch
        // up meanwhile; nothing is reported before it has.
        let path = self.dir(id).join("state.json");
        let syncing = path.clone();
        let sync = tokio::task::spawn_blocking(move || state::sync(&syncing));
        let (launched, synced) = tokio::join!(self.launch(&record, &lock), sync);
        let synced = synced.map_err(io::Error::other).flatten().map_err(EngineError::file("write", &path));
        if let Err(error) = launched.and(synced) {
            if let Err(cleanup) = self.remove(id).await {
                tracing::warn!(id, %cleanup, "a sandbox that could not start could not be removed either");
            } else {
                lock.remove();
            }
            return Err(error);
        }
        self.info(record).await
    }

    /// Starts a stopped sandbox, and lets a paused one go on; one that runs is left alone.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Launch`], [`EngineError::Control`], [`EngineError::File`].
    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        let (lock, record) = self.existing(id).await?;
        match self.liveness(id)? {
            (BoxState::Running { .. }, _) => Ok(()),
            (BoxState::Paused { .. }, Some(run)) => cgroup::thaw(&run.cgroups)
                .map_err(|source| EngineError::Control { id: id.to_owned(), source }),
            _ => self.launch(&record, &lock).await,
        }
    }

    /// Stops a sandbox: SIGTERM to everything inside, SIGKILL after `grace`. Its files stay. One that is stopped is left alone.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Control`], [`EngineError::File`].
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), EngineError> {
        let (_lock, _) = self.existing(id).await?;
        self.end(id, Some(grace)).await
    }

    /// Deletes a sandbox and everything of it; absent already is fine. Works from any state.
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Control`]; what is left is listed and can be deleted again.
    pub async fn delete(&self, id: &str) -> Result<(), EngineError> {
        check_name(id)?;
        if !self.dir(id).exists() && !self.runtime.join(id).exists() {
            return Ok(());
        }
        let lock = self.lock(id).await?;
        self.remove(id).await?;
        lock.remove();
        Ok(())
    }

    /// Replaces the labels.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::File`].
    pub async fn set_labels(&self, id: &str, labels: &BTreeMap<String, String>) -> Result<(), EngineError> {
        let (_lock, mut record) = self.existing(id).await?;
        record.labels.clone_from(labels);
        self.write_record(&record)
    }

    /// Changes what a stopped sandbox is made of, for its next start. Its files are kept.
    ///
    /// # Errors
    /// [`EngineError::Running`], [`EngineError::NotFound`], [`EngineError::Invalid`], [`EngineError::File`].
    pub async fn reconfigure(&self, id: &str, spec: &BoxSpec) -> Result<(), EngineError> {
        check_spec(spec)?;
        self.check_limits(&spec.limits)?;
        let (_lock, mut record) = self.existing(id).await?;
        if self.liveness(id)?.0.pid().is_some() {
            return Err(EngineError::Running(id.to_owned()));
        }
        if spec.snapshot != record.spec.snapshot {
            return Err(EngineError::Invalid("what a sandbox starts from cannot be changed".to_owned()));
        }
        disk::can_become(record.spec.limits.disk, spec.limits.disk).map_err(EngineError::Invalid)?;
        let dir = self.dir(id);
        let forget = || rootfs::forget_network_files(Files::of(&dir)?.path());
        forget().map_err(EngineError::file("update", &dir))?;
        record.spec = spec.clone();
        self.write_record(&record)
    }

    pub(super) fn dir(&self, id: &str) -> PathBuf {
        self.root.join("boxes").join(id)
    }

    async fn lock(&self, id: &str) -> Result<Lock, EngineError> {
        Lock::acquire(&self.root.join("locks"), &format!("box-{id}")).await
    }

    fn is_locked(&self, id: &str) -> Result<bool, EngineError> {
        Lock::is_held(&self.root.join("locks"), &format!("box-{id}"))
    }

    pub(super) fn record(&self, id: &str) -> Result<Option<Record>, EngineError> {
        let record: Option<Record> = read_state(id, &self.dir(id).join("state.json"))?;
        match record {
            Some(Record { version, .. }) if version > state::VERSION => Err(EngineError::Broken {
                id: id.to_owned(),
                reason: format!(
                    "a newer pocketenv wrote it (format {version}, this one reads up to {})",
                    state::VERSION
                ),
            }),
            record => Ok(record),
        }
    }

    fn run(&self, id: &str) -> Result<Option<Run>, EngineError> {
        read_unsynced(id, &self.dir(id).join("run.json"))
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), EngineError> {
        let path = self.dir(&record.id).join("state.json");
        state::write(&path, record, true)
            .and_then(|()| state::sync(&path))
            .map_err(EngineError::file("write", &path))
    }

    pub(super) async fn existing(&self, id: &str) -> Result<(Lock, Record), EngineError> {
        check_name(id)?;
        let not_found = || EngineError::NotFound(id.to_owned());
        if !self.dir(id).exists() {
            return Err(not_found());
        }
        let lock = self.lock(id).await?;
        match self.record(id)? {
            Some(record) => Ok((lock, record)),
            None if self.dir(id).exists() => Err(not_found()),
            None => {
                lock.remove();
                Err(not_found())
            }
        }
    }

    async fn new_record(
        &self,
        id: &str,
        spec: &BoxSpec,
        labels: &BTreeMap<String, String>,
    ) -> Result<Record, EngineError> {
        let id_map = rootfs::choose_ids().map_err(EngineError::file("read", Path::new("/etc/subuid")))?;
        let mut spec = spec.clone();
        // Held until the record is there: from then on the snapshot is in use.
        let _snapshot = match &spec.snapshot {
            None => None,
            Some(name) => {
                let (kept, lock) = self.hold_snapshot(name).await?;
                if kept.id_map != id_map {
                    return Err(EngineError::Invalid(format!(
                        "snapshot `{name}` belongs to other ids ({}) than this user's sandboxes have now ({})",
                        kept.id_map.describe(),
                        id_map.describe()
                    )));
                }
                spec.image = kept.image;
                Some(lock)
            }
        };
        let record = Record {
            version: state::VERSION,
            id: id.to_owned(),
            labels: labels.clone(),
            spec,
            created_at: state::now_ms(),
            born: Moment::now().ok(), // without it the clock has to do
            id_map,
            forwards: Vec::new(),
            links: Vec::new(),
            names: Vec::new(),
            sockets: Vec::new(),
        };
        let dir = self.dir(id);
        let boxes = self.root.join("boxes");
        state::private_dir(&boxes).map_err(EngineError::file("create", &boxes))?;
        // Init enters it as a stranger and reads nothing here; the directories above are closed.
        let made = fs::DirBuilder::new().mode(0o711).recursive(true).create(&dir);
        made.and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)))
            .map_err(EngineError::file("create", &dir))?;
        let path = dir.join("state.json");
        state::write(&path, &record, true).map_err(EngineError::file("write", &path))?;
        Ok(record)
    }

    async fn info(&self, record: Record) -> Result<BoxInfo, EngineError> {
        let (state, run) = self.liveness(&record.id)?;
        let stopped =
            |forward: &Forward| ForwardInfo { listen: forward.listen, to: forward.to, listening: false };
        let mut forwards: Vec<ForwardInfo> = record.forwards.iter().map(stopped).collect();
        if state.pid().is_some() && !forwards.is_empty() {
            // Between the look at the processes and this question the sandbox may end: then nothing listens.
            if let Ok(Some(connection)) = client::connect(&self.runtime.join(&record.id)).await
                && let Ok((Reply::Status(open), _)) =
                    self.ask(&record.id, &connection, &Request::Status).await
            {
                for forward in &mut forwards {
                    forward.listening = open.contains(&ForwardInfo { listening: true, ..*forward });
                }
            }
        }
        let sockets = self.sockets(&record, state.pid().is_some()).await?;
        let groups = run.iter().flat_map(|run| &run.cgroups).cloned().collect::<Vec<_>>();
        let limited = groups.iter().any(|group| group.controller != Controller::Freezer);
        let mut limits = match state.pid() {
            // It may end between the two looks, and its groups with it: then nothing is in force.
            Some(_) if limited => Some(cgroup::measure(&groups).unwrap_or_default()),
            Some(_) if record.spec.limits != Limits::default() => Some(LimitsInfo::default()),
            _ => None,
        };
        if let (Some(pid), Some(limits)) = (state.pid(), &mut limits) {
            let dir = self.dir(&record.id);
            limits.disk = match disk::of_running(&dir, pid) {
                // It ended between the two looks.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
                other => other.map_err(EngineError::file("look at the disk in", &dir))?,
            };
            limits.in_force.disk = limits.disk.map(|disk| disk.limit);
        }
        let lost = state.pid().map(|pid| self.lost_mounts(&record.spec, pid)).unwrap_or_default();
        let bound = match state.pid() {
            Some(_) if !record.spec.bound.is_empty() => self.bound(&record.id).await?,
            _ => BTreeMap::new(),
        };
        let left = self.left(&record)?;
        Ok(BoxInfo {
            bound,
            limits,
            hits: self.hits(&record.id)?,
            lost,
            expires_at: left.map(|left| state::now_ms().saturating_add(left)),
            id: record.id,
            labels: record.labels,
            spec: record.spec,
            created_at: record.created_at,
            state,
            forwards,
            links: record.links,
            names: record.names,
            sockets,
            choices: run.map(|run| run.choices).unwrap_or_default(),
        })
    }

    /// What the recorded run has come to.
    pub(super) fn liveness(&self, id: &str) -> Result<(BoxState, Option<Run>), EngineError> {
        let Some(run) = self.run(id)? else {
            // Whoever creates a sandbox holds its lock until it runs.
            let was_run = self.dir(id).join("run.json").exists();
            let stopped = |why: &str| BoxState::Stopped { unclean: Some(why.to_owned()) };
            let state = match self.is_locked(id)? {
                true => BoxState::Creating,
                false if was_run => stopped("the machine restarted"),
                false => stopped("its creation was interrupted"),
            };
            return Ok((state, None));
        };
        let cannot = |source| EngineError::Control { id: id.to_owned(), source };
        let state = match &run.ended {
            Some(Ended::Stopped) => BoxState::Stopped { unclean: None },
            Some(Ended::Unclean(reason)) => BoxState::Stopped { unclean: Some(reason.clone()) },
            None if run.boot != state::boot_id().map_err(cannot)? => {
                BoxState::Stopped { unclean: Some("the machine restarted".to_owned()) }
            }
            None => match (run.shim.alive().map_err(cannot)?, run.init.alive().map_err(cannot)?) {
                (Some(_), Some(_)) => {
                    let (pid, since) = (run.init.pid, run.since);
                    match cgroup::is_frozen(&run.cgroups).map_err(cannot)? {
                        true => BoxState::Paused { pid, since },
                        false => BoxState::Running { pid, since },
                    }
                }
                (None, _) => {
                    BoxState::Stopped { unclean: Some("its host-side process was killed".to_owned()) }
                }
                (Some(_), None) => {
                    BoxState::Stopped { unclean: Some("its first process was killed".to_owned()) }
                }
            },
        };
        Ok((state, Some(run)))
    }

    async fn launch(&self, record: &Record, lock: &Lock) -> Result<(), EngineError> {
        let id = record.id.as_str();
        self.end(id, None).await?; // whatever is left of a run that ended badly
        let mut mount_paths = Vec::new();
        for mount in &record.spec.mounts {
            mount_paths.push(self.mount_path(&mount.source)?);
        }
        let control = self.runtime.join(id);
        state::private_dir(&control).map_err(EngineError::file("create", &control))?;
        self.make_socket_dir(id, &record.sockets)?;
        let order = Order {
            request: LaunchRequest {
                id: id.to_owned(),
                spec: record.spec.clone(),
                id_map: record.id_map,
                mount_paths,
                devices: device::nodes(&record.spec.devices)?,
                snapshots: self.below(record.spec.snapshot.as_deref())?,
                layers: self.layer_paths(&record.spec.image)?,
            },
            dir: absolute(&self.dir(id))?,
            skeletons: absolute(&self.root.join("skeletons"))?,
            control: absolute(&control)?,
            forwards: record.forwards.clone(),
            links: record.links.clone(),
            names: record.names.clone(),
            sockets: record.sockets.clone(),
            created: (record.created_at, record.born.clone()),
            upstream: Upstream::from_environment(),
            trust: Trust::from_environment(),
        };
        let failed = |step: &str, reason: String| EngineError::Launch {
            id: id.to_owned(),
            step: step.to_owned(),
            reason,
        };
        let shim = self.shim_of(record)?;
        let task = Task::Launch(Box::new(order));
        match tokio::time::timeout(LAUNCH_TIMEOUT, spawn::run(shim, &task, Some(lock))).await {
            Ok(Ok(Answer::Ready | Answer::Bytes(_) | Answer::Unpacked(_) | Answer::Layers(_))) => Ok(()),
            Ok(Ok(Answer::Failed { step, reason })) => Err(failed(&step, reason)),
            Ok(Err(error)) => Err(failed("start its host-side process", error.to_string())),
            Err(_elapsed) => {
                Err(failed("start its host-side process", format!("no answer within {LAUNCH_TIMEOUT:?}")))
            }
        }
    }

    /// See [`BoxInfo::lost`]. What the kernel does not tell is not lost.
    fn lost_mounts(&self, spec: &BoxSpec, pid: i32) -> Vec<PathBuf> {
        let from = |source: &MountSource| match source {
            MountSource::Host(path) => Some(path.clone()),
            MountSource::Volume(name) => Some(self.volume_dir(name).join("data")),
            MountSource::Own(_) => None,
        };
        let given = spec.mounts.iter().filter_map(|mount| Some((from(&mount.source)?, &*mount.target)));
        let given: Vec<(PathBuf, &Path)> = given.collect();
        if given.is_empty() {
            return Vec::new();
        }
        let read = |process: &str| fs::read_to_string(format!("/proc/{process}/mountinfo"));
        // Between two looks the sandbox may end, which the next look tells.
        let (Ok(outside), Ok(inside)) = (read("self"), read(&pid.to_string())) else { return Vec::new() };
        let given: Vec<(&Path, &Path)> =
            given.iter().map(|(from, target)| (from.as_path(), *target)).collect();
        mounts::lost(&given, &outside, &inside)
    }

    fn mount_path(&self, source: &MountSource) -> Result<PathBuf, EngineError> {
        match source {
            MountSource::Host(path) if path.is_absolute() => {
                let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
                let given = real(path);
                for own in [real(&self.root), real(&self.runtime)] {
                    if own.starts_with(&given) || given.starts_with(&own) {
                        return Err(EngineError::Invalid(format!(
                            "{} cannot be shared with a sandbox: the engine keeps its own files in {}",
                            path.display(),
                            own.display()
                        )));
                    }
                }
                Ok(path.clone())
            }
            MountSource::Host(path) => {
                Err(EngineError::Invalid(format!("mount source {} is not absolute", path.display())))
            }
            MountSource::Volume(name) => self.volume_data(name),
            MountSource::Own(below) => absolute(&self.root.join(below)),
        }
    }

    pub(super) async fn connect(&self, id: &str) -> Result<Seq, EngineError> {
        check_name(id)?;
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        // What is frozen never answers.
        if let Ok(Some(run)) = self.run(id)
            && cgroup::is_frozen(&run.cgroups).map_err(control)?
        {
            return Err(EngineError::Paused(id.to_owned()));
        }
        self.reach(id).await
    }

    /// A connection to its shim.
    pub(super) async fn reach(&self, id: &str) -> Result<Seq, EngineError> {
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        match client::connect(&self.runtime.join(id)).await.map_err(control)? {
            Some(connection) => Ok(connection),
            None if self.record(id)?.is_none() => Err(EngineError::NotFound(id.to_owned())),
            None => Err(EngineError::NotRunning(id.to_owned())),
        }
    }

    pub(super) async fn ask(
        &self,
        id: &str,
        connection: &Seq,
        request: &Request,
    ) -> Result<(Reply, Vec<OwnedFd>), EngineError> {
        client::ask(id, connection, request, &[]).await
    }

    /// Ends the processes of the recorded run, gently with a grace, and waits until they are gone.
    async fn end(&self, id: &str, grace: Option<Duration>) -> Result<(), EngineError> {
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        let run = match self.run(id) {
            Err(EngineError::Broken { .. }) => None,
            other => other?,
        };
        if run.is_none()
            && let Ok(Some(connection)) = client::connect(&self.runtime.join(id)).await
        {
            // Its record is lost, but its socket still leads to its processes; init holds this connection until it dies.
            connection.send(&Request::Stop(0), &[]).await.map_err(control)?;
            let _ = tokio::time::timeout(END_TIMEOUT, connection.recv()).await;
        }
        if let Some(run) = run
            && run.boot == state::boot_id().map_err(control)?
        {
            let groups = run.cgroups;
            cgroup::thaw(&groups).map_err(control)?; // what is frozen neither hears a signal nor ends
            let (shim, init) = (run.shim.alive().map_err(control)?, run.init.alive().map_err(control)?);
            if let (Some(grace), Some(_), Some(init)) = (grace, &shim, &init) {
                self.ask_to_stop(id, grace, init).await;
            }
            if let Some(init) = init {
                state::kill_and_wait(init).await.map_err(control)?;
            }
            if let Some(shim) = shim {
                // it has its end to record
                let gone = shim.try_clone().map_err(control)?;
                // The shim of a sandbox whose time is over deletes it itself, as the last thing it does.
                let is_itself = run.shim.pid == std::process::id() as i32;
                if !is_itself && tokio::time::timeout(END_TIMEOUT, state::wait_gone(gone)).await.is_err() {
                    state::kill_and_wait(shim).await.map_err(control)?;
                }
            }
            // The shim does it, unless it was killed.
            cgroup::remove(&groups).map_err(control)?;
        }
        // As do its sockets, unless it was killed.
        for socket in self.record(id).ok().flatten().into_iter().flat_map(|record| record.sockets) {
            let _ = socket::remove_dead(&socket.path); // what is somebody else's stays
        }
        let dir = self.runtime.join(id);
        remove::remove_tree(&dir).map_err(EngineError::file("remove", &dir))
    }

    async fn ask_to_stop(&self, id: &str, grace: Duration, init: &OwnedFd) {
        let Ok(Some(connection)) = client::connect(&self.runtime.join(id)).await else { return };
        let request = Request::Stop(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX / 2));
        let sent = connection.send(&request, &[]).await;
        if let (Ok(()), Ok(init)) = (sent, init.as_fd().try_clone_to_owned()) {
            // past this the caller kills it
            let _ = tokio::time::timeout(grace.saturating_add(END_TIMEOUT), state::wait_gone(init)).await;
        }
    }

    /// Whether all of them can be enforced here.
    pub(super) fn check_limits(&self, limits: &Limits) -> Result<(), EngineError> {
        if let Some(limit) = limits.disk {
            disk::check(limit).map_err(EngineError::Unenforceable)?;
        }
        if !limits.need_groups() {
            return Ok(());
        }
        let available =
            Available::here().map_err(EngineError::file("read", Path::new("/proc/self/cgroup")))?;
        available.check(limits).map_err(EngineError::Unenforceable)?;
        if limits.io != IoLimits::default() {
            let why_not =
                |why| EngineError::Unenforceable(format!("io cannot be limited here: {why}; remove `io`"));
            throttle::device(&absolute(&self.root)?).map_err(why_not)?;
        }
        Ok(())
    }

    /// Ends and removes everything, the state last, so that a removal that was cut short is still listed.
    pub(super) async fn remove(&self, id: &str) -> Result<(), EngineError> {
        self.end(id, None).await?;
        let dir = self.dir(id);
        if !dir.exists() {
            return Ok(());
        }
        if let Ok(Some(record)) = self.record(id)
            && record.spec.limits.need_groups()
            && let Ok(available) = Available::here()
        {
            // Of a launch that was cut short before it wrote them down.
            let groups = available.named(&cgroup::name(&absolute(&dir)?, id));
            cgroup::remove(&groups).map_err(EngineError::file("remove the control groups of", &dir))?;
        }
        for name in names(&dir)? {
            if name != "state.json" {
                self.remove_tree(&dir.join(name)).await?;
            }
        }
        self.remove_tree(&dir).await
    }

    /// Removes a tree that may hold files of the sandboxes' own ids.
    pub(super) async fn remove_tree(&self, path: &Path) -> Result<(), EngineError> {
        let removing = path.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove::remove_tree(&removing)).await;
        match removed.map_err(io::Error::other).flatten() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => return other.map_err(EngineError::file("remove", path)),
        }
        let failed = EngineError::file("remove", path);
        let task = match rootfs::choose_ids() {
            Ok(id_map) => Task::Remove { id_map, path: absolute(path)? },
            Err(error) => return Err(failed(error)),
        };
        match self.spawn_shim(&task, None).await {
            Ok(Answer::Ready | Answer::Bytes(_) | Answer::Unpacked(_) | Answer::Layers(_)) => Ok(()),
            Ok(Answer::Failed { reason, .. }) => Err(failed(io::Error::other(reason))),
            Err(error) => Err(failed(error)),
        }
    }
}

fn broken(id: &str, reason: String) -> BoxInfo {
    BoxInfo {
        id: id.to_owned(),
        labels: BTreeMap::new(),
        spec: BoxSpec::default(),
        created_at: 0,
        expires_at: None,
        state: BoxState::Broken(reason),
        forwards: Vec::new(),
        links: Vec::new(),
        names: Vec::new(),
        sockets: Vec::new(),
        bound: BTreeMap::new(),
        choices: Vec::new(),
        limits: None,
        hits: Vec::new(),
        lost: Vec::new(),
    }
}

pub(super) fn read_state<T: serde::de::DeserializeOwned>(
    id: &str,
    path: &Path,
) -> Result<Option<T>, EngineError> {
    match state::read(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(EngineError::Broken { id: id.to_owned(), reason: format!("{}: {error}", path.display()) })
        }
        other => other.map_err(EngineError::file("read", path)),
    }
}

/// The same of a file that is written without a sync. What a power cut left of one is empty, and says nothing.
pub(super) fn read_unsynced<T: serde::de::DeserializeOwned>(
    id: &str,
    path: &Path,
) -> Result<Option<T>, EngineError> {
    match fs::metadata(path) {
        Ok(there) if there.len() == 0 => Ok(None),
        _ => read_state(id, path),
    }
}

/// The entries of a directory, sorted; none when it is not there.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, EngineError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(EngineError::file("read", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(EngineError::file("read", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Ids and volume names become file names.
pub(super) fn check_name(name: &str) -> Result<(), EngineError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(legal) {
        return Err(EngineError::Invalid(format!(
            "`{}` is not a name: 1 to 128 letters, digits, `-`, `_` and `.`, not beginning with `.`",
            name.escape_debug()
        )));
    }
    Ok(())
}

fn check_spec(spec: &BoxSpec) -> Result<(), EngineError> {
    let invalid = |problem: String| Err(EngineError::Invalid(problem));
    let targets = spec.mounts.iter().map(|mount| &mount.target);
    for target in targets.chain(spec.memory.iter().map(|memory| &memory.target)) {
        let plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
        let path = target.display();
        if !target.is_absolute() || target.components().count() < 2 || !target.components().all(plain) {
            return invalid(format!(
                "mount target {path} is not an absolute path below the root without `..`"
            ));
        }
        let reserved = ["/proc", "/dev", "/sys"].iter().any(|reserved| target.starts_with(reserved));
        if reserved && target != Path::new("/dev/shm") {
            return invalid(format!("mount target {path} is reserved"));
        }
    }
    for mount in &spec.mounts {
        if let MountSource::Volume(name) = &mount.source {
            check_name(name)?;
        }
    }
    bound::check(spec)?;
    for dir in &spec.run_dirs {
        dir.split('/').try_for_each(check_name)?;
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return invalid(format!("environment variable `{}` cannot be set", name.escape_debug()));
        }
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    match &spec.hostname {
        Some(name) if name.is_empty() || name.len() > 63 || !name.chars().all(legal) => {
            invalid(format!("`{}` is not a host name", name.escape_debug()))
        }
        _ => Ok(()),
    }
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, EngineError> {
    std::path::absolute(path).map_err(EngineError::file("resolve", path))
}
