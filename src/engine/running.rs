//! What is asked of a sandbox while it runs: commands, connections, and the changes that need no restart.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, PathBuf};
use std::time::Duration;

use super::cgroup::{self, Available, Controller};
use super::client::{self, Attached, ExecHandle, Stdio};
use super::disk::{self, Files};
use super::egress::{self, Attempt, EgressRule};
use super::error::EngineError;
use super::lifecycle::{Engine, absolute, check_name, read_unsynced};
use super::proto::{Reply, Request};
use super::socket;
use super::spec::{
    BoxSpec, ExecRequest, Forward, Limits, Link, Mount, MountSource, Name, SessionInfo, Socket, SocketInfo,
    SocketTarget,
};
use super::state::{self, Record};

/// How long a process that has closed its sockets may take to be gone.
const ENDING: Duration = Duration::from_secs(1);
/// The longest path inside, as Linux has it.
const MAX_PATH: usize = 4096;

impl Engine {
    /// Changes the limits, at once where the sandbox runs, and at every start from now on.
    ///
    /// # Errors
    /// [`EngineError::Unenforceable`], [`EngineError::NotFound`], [`EngineError::Control`] where the kernel refuses, [`EngineError::File`].
    pub async fn set_limits(&self, id: &str, limits: &Limits) -> Result<(), EngineError> {
        self.check_limits(limits)?;
        let (_lock, mut record) = self.existing(id).await?;
        disk::can_become(record.spec.limits.disk, limits.disk).map_err(EngineError::Invalid)?;
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        let (state, run) = self.liveness(id)?;
        if let (Some(pid), Some(mut run)) = (state.pid(), run) {
            let dir = absolute(&self.dir(id))?;
            if record.spec.limits.disk != limits.disk {
                return Err(EngineError::Running(id.to_owned()));
            }
            let files = Files::of(&dir).map_err(EngineError::file("look at the disk in", &dir))?;
            let limited = run.cgroups.iter().any(|group| group.controller != Controller::Freezer);
            if !limited && limits.need_groups() {
                let available = Available::of(run.shim.pid).map_err(control)?;
                available.check(limits).map_err(|why| {
                    EngineError::Unenforceable(format!(
                        "{why}; limits can be given to it when it starts: stop it first"
                    ))
                })?;
                run.cgroups.extend(available.make(&cgroup::name(&dir, id)).map_err(control)?);
                // Written down before anything is in them: from here on whoever ends the sandbox removes them.
                let path = self.dir(id).join("run.json");
                state::write(&path, &run, false).map_err(EngineError::file("write", &path))?;
                cgroup::enter_all(&run.cgroups, pid).map_err(control)?;
            }
            cgroup::limit(&run.cgroups, limits, &files.devices(&dir)).map_err(control)?;
        }
        if record.spec.limits == *limits {
            return Ok(());
        }
        record.spec.limits = *limits;
        self.write_record(&record)?;
        if state.pid().is_some()
            && let Ok(shim) = self.reach(id).await
        {
            // Who keeps the account of what they hold back; the shim of an older version keeps none.
            let _ = self.ask(id, &shim, &Request::SetLimits).await;
        }
        Ok(())
    }

    /// Runs a command inside a running sandbox.
    ///
    /// # Errors
    /// [`EngineError::Exec`] with the system's reason, [`EngineError::NotRunning`], [`EngineError::NotFound`],
    /// [`EngineError::Invalid`], [`EngineError::Control`].
    pub async fn exec(
        &self,
        id: &str,
        request: ExecRequest,
        stdio: Stdio,
    ) -> Result<ExecHandle, EngineError> {
        client::exec(id, self.connect(id).await?, request, stdio).await
    }

    /// Attaches to the session `name` of a running sandbox. If there is none that runs, `command` is run as one, called `what` in lists; without
    /// a command, one that has ended is shown as well. With `leave` it is only made sure that it runs. `size` is that of the client's terminal, in rows and columns, if it has one.
    ///
    /// # Errors
    /// As [`Engine::exec`]; [`EngineError::NoSession`], [`EngineError::Outdated`].
    pub async fn attach(
        &self,
        id: &str,
        name: &str,
        what: String,
        command: Option<ExecRequest>,
        size: Option<(u16, u16)>,
        leave: bool,
    ) -> Result<Attached, EngineError> {
        check_name(name)?;
        client::attach(id, self.connect(id).await?, name, what, command, size, leave).await
    }

    /// The sessions of a running sandbox, in order of name; of those that have ended, the latest that nobody saw end.
    ///
    /// # Errors
    /// [`EngineError::Outdated`], [`EngineError::NotRunning`], [`EngineError::NotFound`], [`EngineError::Control`].
    pub async fn sessions(&self, id: &str) -> Result<Vec<SessionInfo>, EngineError> {
        match self.ask(id, &self.connect(id).await?, &Request::Sessions).await?.0 {
            Reply::Sessions(sessions) => Ok(sessions),
            reply => Err(client::refused(id, "", reply)),
        }
    }

    /// Ends a session and all of its processes; those that are attached are told. One that has ended is forgotten.
    ///
    /// # Errors
    /// As [`Engine::sessions`]; [`EngineError::NoSession`].
    pub async fn end_session(&self, id: &str, name: &str) -> Result<(), EngineError> {
        check_name(name)?;
        match self.ask(id, &self.connect(id).await?, &Request::EndSession(name.to_owned())).await?.0 {
            Reply::Done => Ok(()),
            reply => Err(client::refused(id, name, reply)),
        }
    }

    /// A connected TCP socket to a port of the sandbox's loopback.
    ///
    /// # Errors
    /// [`EngineError::Dial`], [`EngineError::NotRunning`], [`EngineError::NotFound`], [`EngineError::Control`].
    pub async fn dial(&self, id: &str, port: u16) -> Result<OwnedFd, EngineError> {
        let (reply, mut fds) = self.ask(id, &self.connect(id).await?, &Request::Dial(port)).await?;
        match reply {
            Reply::Done if !fds.is_empty() => Ok(fds.swap_remove(0)),
            Reply::Failed { errno, .. } => Err(EngineError::Dial {
                id: id.to_owned(),
                port,
                source: io::Error::from_raw_os_error(errno),
            }),
            _ => Err(EngineError::Control { id: id.to_owned(), source: io::ErrorKind::InvalidData.into() }),
        }
    }

    /// Reads a regular file of root's below `/run`, which is in memory, without starting a program; `None` if its directory is there and it is not.
    ///
    /// # Errors
    /// [`EngineError::Read`] if it is something else, longer than `limit` bytes, in no directory of root's, or the sandbox was started by a version
    /// that does not know the request; [`EngineError::NotRunning`], [`EngineError::NotFound`], [`EngineError::Control`].
    pub async fn read_run_file(
        &self,
        id: &str,
        path: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, EngineError> {
        client::read_run_file(id, &self.connect(id).await?, path, limit).await
    }

    /// Makes this the whole set of forwards, at once where the sandbox runs, and at every start from now on.
    ///
    /// # Errors
    /// [`EngineError::Listen`] names a host address that is taken, and nothing was changed; [`EngineError::Invalid`],
    /// [`EngineError::NotFound`], [`EngineError::Control`], [`EngineError::File`].
    pub async fn set_forwards(&self, id: &str, forwards: &[Forward]) -> Result<(), EngineError> {
        for (index, forward) in forwards.iter().enumerate() {
            if forward.listen.port() == 0 || forward.to.number() == 0 {
                return Err(EngineError::Invalid("a forward needs two ports that are not 0".to_owned()));
            }
            let key = |forward: &Forward| (forward.listen, forward.to.protocol());
            if forwards[..index].iter().any(|other| key(other) == key(forward)) {
                let Forward { listen, to } = forward;
                return Err(EngineError::Invalid(format!("{} {listen} is forwarded twice", to.protocol())));
            }
        }
        let (_lock, mut record) = self.existing(id).await?;
        self.apply_ports(id, &Request::SetForwards(forwards.to_vec())).await?;
        if record.forwards == forwards {
            return Ok(());
        }
        record.forwards = forwards.to_vec();
        self.write_record(&record)
    }

    /// Where a socket of the sandbox is that is at no path of the caller's.
    pub fn socket_path(&self, id: &str, name: &str) -> PathBuf {
        self.socket_dir(id).join(format!("{name}.sock"))
    }

    fn socket_dir(&self, id: &str) -> PathBuf {
        let runtime = std::path::absolute(&self.runtime).unwrap_or_else(|_| self.runtime.clone());
        runtime.join(id).join("sockets")
    }

    /// Makes this the whole set of unix sockets of the host that lead inside, at once where the sandbox runs, and at every start from now on.
    /// A connection to a path inside is made by root inside.
    ///
    /// # Errors
    /// [`EngineError::Listen`] names a path that is taken, and nothing was changed; [`EngineError::Invalid`],
    /// [`EngineError::NotFound`], [`EngineError::Control`], [`EngineError::File`].
    pub async fn set_sockets(&self, id: &str, sockets: &[Socket]) -> Result<(), EngineError> {
        let (_lock, mut record) = self.existing(id).await?;
        for (index, socket) in sockets.iter().enumerate() {
            check_socket(socket, &record.spec)?;
            if sockets[..index].iter().any(|other| other.path == socket.path) {
                let path = socket.path.display();
                return Err(EngineError::Invalid(format!("{path} is to lead to two places")));
            }
        }
        if record.sockets == sockets && sockets.is_empty() {
            return Ok(());
        }
        if self.liveness(id)?.0.pid().is_some() {
            self.make_socket_dir(id, sockets)?;
        }
        self.apply_ports(id, &Request::SetSockets(sockets.to_vec())).await?;
        if record.sockets == sockets {
            return Ok(());
        }
        record.sockets = sockets.to_vec();
        self.write_record(&record)
    }

    /// The directory of those that are at no path of the caller's. It goes with the run.
    pub(super) fn make_socket_dir(&self, id: &str, sockets: &[Socket]) -> Result<(), EngineError> {
        let dir = self.socket_dir(id);
        if sockets.iter().any(|socket| socket.path.starts_with(&dir)) {
            state::private_dir(&dir).map_err(EngineError::file("create", &dir))?;
        }
        Ok(())
    }

    /// The sockets of a sandbox as they are.
    ///
    /// # Errors
    /// [`EngineError::Control`] where it cannot be asked.
    pub(super) async fn sockets(&self, record: &Record, lives: bool) -> Result<Vec<SocketInfo>, EngineError> {
        let id = &record.id;
        let stopped = |socket: &Socket| SocketInfo { socket: socket.clone(), listening: false };
        let mut sockets: Vec<SocketInfo> = record.sockets.iter().map(stopped).collect();
        if !lives || sockets.is_empty() {
            return Ok(sockets);
        }
        let asked = async { self.ask(id, &self.reach(id).await?, &Request::Sockets).await };
        match asked.await {
            Ok((Reply::Sockets(open), _)) => {
                for known in &mut sockets {
                    known.listening =
                        open.iter().any(|other| other.listening && other.socket == known.socket);
                }
            }
            Ok(_) => {
                let source = io::ErrorKind::InvalidData.into();
                return Err(EngineError::Control { id: id.clone(), source });
            }
            // One of an older version has none.
            Err(EngineError::Outdated(_)) => {}
            // Between the look at the processes and this question the sandbox ended: then nothing listens.
            Err(error) => {
                if !self.is_ending(id).await? {
                    return Err(error);
                }
            }
        }
        Ok(sockets)
    }

    /// Whether a sandbox that did not answer has ended, or is about to: a process that is killed closes its sockets before it is gone.
    async fn is_ending(&self, id: &str) -> Result<bool, EngineError> {
        let (state, run) = self.liveness(id)?;
        let (Some(_), Some(run)) = (state.pid(), run) else { return Ok(true) };
        let cannot = |source| EngineError::Control { id: id.to_owned(), source };
        match run.shim.alive().map_err(cannot)? {
            None => Ok(true),
            Some(shim) => Ok(tokio::time::timeout(ENDING, state::wait_gone(shim)).await.is_ok()),
        }
    }

    /// Makes this the whole set of links, at once where the sandbox runs, and at every start from now on.
    ///
    /// # Errors
    /// [`EngineError::Listen`] names a port inside that is taken; [`EngineError::Invalid`], [`EngineError::NotFound`],
    /// [`EngineError::Control`], [`EngineError::File`].
    pub async fn set_links(&self, id: &str, links: &[Link]) -> Result<(), EngineError> {
        for (index, link) in links.iter().enumerate() {
            if link.listen_port == 0
                || link.host.address().port() == 0
                || link.listen_port == super::proxy::PORT
            {
                return Err(EngineError::Invalid(format!("port {} cannot be linked", link.listen_port)));
            }
            let key = |link: &Link| (link.listen_port, link.host.protocol());
            if links[..index].iter().any(|other| key(other) == key(link)) {
                return Err(EngineError::Invalid(format!("port {} is linked twice", link.listen_port)));
            }
        }
        let (_lock, mut record) = self.existing(id).await?;
        self.apply_ports(id, &Request::SetLinks(links.to_vec())).await?;
        if record.links == links {
            return Ok(());
        }
        record.links = links.to_vec();
        self.write_record(&record)
    }

    /// Makes these the names of other sandboxes' ports, at once where the sandbox runs, and at every start from now on.
    ///
    /// # Errors
    /// [`EngineError::Listen`] names a port inside that is taken; [`EngineError::Invalid`], [`EngineError::NotFound`],
    /// [`EngineError::Control`], [`EngineError::File`].
    pub async fn set_names(&self, id: &str, names: &[Name]) -> Result<(), EngineError> {
        for (index, name) in names.iter().enumerate() {
            check_name(&name.name)?;
            if name.port == 0 || name.host.address().port() == 0 {
                return Err(EngineError::Invalid(format!(
                    "port {} of {} cannot be named",
                    name.port, name.name
                )));
            }
            let key = |name: &Name| (name.name.clone(), name.port, name.host.protocol());
            if names[..index].iter().any(|other| key(other) == key(name)) {
                return Err(EngineError::Invalid(format!("{}:{} is named twice", name.name, name.port)));
            }
        }
        let (_lock, mut record) = self.existing(id).await?;
        if record.names == names && names.is_empty() {
            return Ok(());
        }
        self.apply_ports(id, &Request::SetNames(names.to_vec())).await?;
        if record.names == names {
            return Ok(());
        }
        record.names = names.to_vec();
        self.write_record(&record)
    }

    /// Makes these the rules of egress, at once where the sandbox runs, and at every start from now on. Connections that they do not allow
    /// are ended.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Control`], [`EngineError::File`].
    pub async fn set_egress(&self, id: &str, rules: Option<&[EgressRule]>) -> Result<(), EngineError> {
        let rules = rules.map(<[_]>::to_vec);
        let (_lock, mut record) = self.existing(id).await?;
        if record.spec.egress != rules {
            // Recorded first: a crash in between leaves what is asked for to the next start and to whoever compares.
            record.spec.egress.clone_from(&rules);
            self.write_record(&record)?;
        }
        self.apply_ports(id, &Request::SetEgress(rules)).await
    }

    /// What an isolated sandbox tried to reach, in order of name; the latest thousand destinations.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Broken`] when the account cannot be read.
    pub async fn egress_attempts(&self, id: &str) -> Result<Vec<Attempt>, EngineError> {
        check_name(id)?;
        if self.record(id)?.is_none() {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        Ok(read_unsynced(id, &self.dir(id).join(egress::ATTEMPTS))?.unwrap_or_default())
    }

    pub(super) async fn apply_ports(&self, id: &str, request: &Request) -> Result<(), EngineError> {
        if self.liveness(id)?.0.pid().is_none() {
            return Ok(());
        }
        // Links are made inside; the rest is the shim's alone, which is awake when all else is frozen.
        let connection = match request {
            Request::SetLinks(_) | Request::SetNames(_) => self.connect(id).await?,
            _ => self.reach(id).await?,
        };
        let (reply, _) = self.ask(id, &connection, request).await?;
        match reply {
            Reply::Failed { what, errno } => Err(EngineError::Listen {
                id: id.to_owned(),
                address: what,
                reason: io::Error::from_raw_os_error(errno).to_string(),
            }),
            _ => Ok(()),
        }
    }
}

fn check_socket(socket: &Socket, spec: &BoxSpec) -> Result<(), EngineError> {
    let path = socket.path.display();
    let invalid = |problem: String| Err(EngineError::Invalid(problem));
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if !socket.path.is_absolute() || !socket.path.components().all(plain) {
        return invalid(format!("the socket {path} is not an absolute path without `..`"));
    }
    let length = socket.path.as_os_str().len();
    if length > socket::LONGEST_PATH {
        return invalid(format!(
            "the path of the socket {path} has {length} bytes, and clients can connect to no more than {}",
            socket::LONGEST_PATH
        ));
    }
    let shared =
        |mount: &&Mount| matches!(&mount.source, MountSource::Host(dir) if socket.path.starts_with(dir));
    if let Some(mount) = spec.mounts.iter().find(shared) {
        return invalid(format!(
            "the socket {path} would be in the directory that the sandbox shares as {}",
            mount.target.display()
        ));
    }
    match &socket.to {
        SocketTarget::Port(0) => invalid(format!("the socket {path} leads to port 0")),
        SocketTarget::Path(to) if !to.starts_with('/') || to.contains('\0') || to.len() > MAX_PATH => {
            invalid(format!("the socket {path} leads to `{}`, which is no absolute path", to.escape_debug()))
        }
        SocketTarget::Port(_) | SocketTarget::Path(_) => Ok(()),
    }
}
