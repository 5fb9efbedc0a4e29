//! The first process inside a sandbox: carries out the launch, then starts commands, makes sockets and reaps, until it is
//! told to stop or the shim is gone. One thread, one poll loop, nothing that blocks on what the sandbox does.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, ipproto};
use rustix::process::WaitOptions;
use serde::{Deserialize, Serialize};

use super::command::{self, Prepared};
use super::hosts;
use super::launch::{self, FILLED, Step};
use super::lifetime::boot_ms;
use super::proto::{ExecControl, ExecHead, Fill, Reply, Request, SessionHead, unpack};
use super::seq;
use super::session::Sessions;
use super::spec::Exit;
use super::sys;
use super::syscalls::Real;

/// The most bytes of a file in memory.
const MAX_FILL: u64 = 1 << 20;
/// How long a connection to a port inside may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What init tells the shim once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launched {
    /// Serving; the fallbacks taken.
    Ready(Vec<String>),
    /// A step failed; init is gone.
    Failed {
        /// The step.
        step: String,
        /// Why.
        reason: String,
    },
}

/// What the shim gives init, once the id maps are written.
#[derive(Debug, Serialize, Deserialize)]
pub struct Given {
    /// Slots of the mounts that it made; their descriptors come along.
    pub slots: Vec<usize>,
    /// The certificate of its authority, where its proxy ends TLS itself.
    pub authority: Option<String>,
    /// Whether the last descriptor is the mount of the sandbox's disk.
    pub disk: bool,
}

/// What commands get whoever runs them.
#[derive(Debug)]
pub struct Context {
    /// Environment under the command's own.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
    /// One id only: other users are made by nested user namespaces.
    pub single_id: bool,
    /// The system call filter.
    pub filter: Vec<libc::sock_filter>,
    /// Where commands start that name no directory.
    pub working_dir: Option<CString>,
}

/// A process group and the connection of who started it.
struct Running {
    connection: Option<OwnedFd>,
    /// It is no use of the sandbox.
    look: bool,
    /// Readable when the command has been executed (end) or could not be (an error).
    starting: Option<OwnedFd>,
    pty: Option<OwnedFd>,
    what: String,
}

struct Dialing {
    connection: OwnedFd,
    socket: OwnedFd,
    port: u16,
    v6: bool,
    deadline: Instant,
}

struct Init {
    shim: OwnedFd,
    signals: OwnedFd,
    /// `/run`, as it was before anything ran inside.
    run: OwnedFd,
    context: Context,
    running: HashMap<i32, Running>,
    dialing: Vec<Dialing>,
    sessions: Sessions,
    kill_at: Option<Instant>,
    /// When a command that somebody waits for last began or ended, see [`boot_ms`].
    used: u64,
}

enum Source {
    Shim,
    Signals,
    Starting(i32),
    Connection(i32),
    Dial(usize),
    Session(u64),
}

/// Runs as the first process of the new namespaces; never returns. `shim` is the socket to the parent, which first sends
/// [`Given`].
pub fn main(shim: OwnedFd, plan: &[Step], context: Context) -> ! {
    sys::set_process_name(c"pocketenv-init");
    let result = launch(&shim, plan).and_then(|choices| {
        let signals = sys::child_signal_fd().map_err(|error| ("watch child processes".to_owned(), error))?;
        let run = rustix::fs::open("/run", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| ("open /run".to_owned(), error.into()))?;
        seq::send(&shim, &Launched::Ready(choices), &[])
            .map_err(|error| ("report readiness".to_owned(), error))?;
        Ok((signals, run))
    });
    let (signals, run) = match result {
        Ok(signals) => signals,
        Err((step, error)) => {
            let _ = seq::send(&shim, &Launched::Failed { step, reason: error.to_string() }, &[]); // the shim sees the exit anyway
            sys::exit_now(1);
        }
    };
    let mut init = Init {
        shim,
        signals,
        run,
        context,
        running: HashMap::new(),
        dialing: Vec::new(),
        sessions: Sessions::default(),
        kill_at: None,
        used: boot_ms(),
    };
    loop {
        if let Err(error) = init.turn() {
            eprintln!("init: {error}");
            sys::exit_now(1);
        }
    }
}

/// A regular file of root's, by a path without links and without mounts, since whatever runs inside may have put something else there. `None` if
/// only the file is missing.
fn open_run_file(run: &OwnedFd, path: &str) -> io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let open =
        |path: &Path, flags| rustix::fs::openat2(run, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    let path = Path::new(path);
    let root_only = |file: &OwnedFd, kind| -> io::Result<()> {
        let stat = rustix::fs::fstat(file)?;
        let fine = FileType::from_raw_mode(stat.st_mode) == kind
            && stat.st_uid == rustix::process::geteuid().as_raw();
        if fine { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    };
    match open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => root_only(&file, FileType::RegularFile).map(|()| Some(file)),
        Err(rustix::io::Errno::NOENT) => {
            let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
            root_only(&open(parent, OFlags::PATH | OFlags::DIRECTORY)?, FileType::Directory)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes a file in memory, which is mounted where it is read.
fn fill(run: &OwnedFd, what: &Fill, value: OwnedFd) -> io::Result<()> {
    let path = Path::new(FILLED).join(what.index.to_string());
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mut file = File::from(rustix::fs::openat2(run, path, flags, Mode::empty(), resolve)?);
    let mut value = File::from(value).take(MAX_FILL + 1);
    if io::copy(&mut value, &mut file)? > MAX_FILL {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    std::os::unix::fs::fchown(&file, Some(what.uid), Some(what.gid))?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(what.mode))
}

fn launch(shim: &OwnedFd, plan: &[Step]) -> Result<Vec<String>, (String, io::Error)> {
    let start = || -> io::Result<Real> {
        let (bytes, mut fds) = seq::recv(shim)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let given: Given = seq::decode(&bytes)?;
        let mut real = Real::default();
        real.authority = given.authority;
        real.disk = if given.disk { fds.pop() } else { None };
        for (slot, fd) in given.slots.into_iter().zip(fds) {
            real.sources.resize_with(real.sources.len().max(slot + 1), || None);
            real.sources[slot] = Some(fd);
        }
        Ok(real)
    };
    let mut real = start().map_err(|error| ("wait for the shim".to_owned(), error))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    launch::execute(plan, &mut real)
}

impl Init {
    /// Waits for something to happen and handles it.
    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        for source in ready {
            match source {
                Source::Shim => self.request()?,
                Source::Signals => {
                    while rustix::io::read(&self.signals, &mut [0u8; 128]).is_ok() {}
                    self.reap();
                }
                Source::Starting(pid) => self.started(pid),
                Source::Connection(pid) => self.control(pid),
                Source::Dial(index) => self.dialed(index),
                Source::Session(id) => {
                    if self.sessions.turn(id) {
                        self.used = boot_ms();
                    }
                }
            }
        }
        self.expire();
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Shim, Source::Signals];
        let mut polls =
            vec![PollFd::new(&self.shim, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        for (pid, running) in &self.running {
            if let Some(starting) = &running.starting {
                sources.push(Source::Starting(*pid));
                polls.push(PollFd::new(starting, PollFlags::IN));
            } else if let Some(connection) = &running.connection {
                sources.push(Source::Connection(*pid));
                polls.push(PollFd::new(connection, PollFlags::IN));
            }
        }
        for (index, dialing) in self.dialing.iter().enumerate() {
            sources.push(Source::Dial(index));
            polls.push(PollFd::new(&dialing.socket, PollFlags::OUT));
        }
        self.sessions.watch(|id, poll| {
            sources.push(Source::Session(id));
            polls.push(poll);
        });
        let dials = self.dialing.iter().map(|dialing| dialing.deadline);
        let deadline = dials.chain(self.kill_at).chain(self.sessions.deadline()).min();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match rustix::event::poll(&mut polls, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            other => other?,
        };
        let events: Vec<bool> = polls.iter().map(|poll| !poll.revents().is_empty()).collect();
        let mut ready: Vec<Source> =
            sources.into_iter().zip(events).filter(|(_, ready)| *ready).map(|(source, _)| source).collect();
        // handling a dial may remove it: from the back, so that earlier indices stay true
        ready.reverse();
        Ok(ready)
    }

    fn request(&mut self) -> io::Result<()> {
        let Some((bytes, mut fds)) = seq::try_recv(&self.shim)? else { sys::exit_now(0) };
        if fds.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request without a connection"));
        }
        let connection = fds.remove(0);
        match seq::decode(&bytes)? {
            Request::Exec(head) => match self.prepare(&head, fds).and_then(|prepared| self.spawn(prepared)) {
                Ok((pid, mut running)) => {
                    running.look = head.look;
                    if !running.look {
                        self.used = boot_ms();
                    }
                    running.connection = Some(connection);
                    self.running.insert(pid, running);
                }
                Err((what, error)) => fail(&connection, what, &error),
            },
            Request::Session(head) => self.session(connection, head, fds),
            Request::Sessions => reply(&connection, &Reply::Sessions(self.sessions.list()), &[]),
            Request::EndSession(name) => self.sessions.end(&name, connection),
            Request::Dial(port) => self.dial(connection, port, false),
            Request::DialPath(path) => match dial_path(Path::new(&path)) {
                Ok(socket) => reply(&connection, &Reply::Done, &[socket.as_fd()]),
                Err(error) => fail(&connection, format!("connect to {path}"), &error),
            },
            Request::DialUdp(port) => match dial_udp(port) {
                Ok(socket) => reply(&connection, &Reply::Done, &[socket.as_fd()]),
                Err(error) => fail(&connection, format!("make a socket to port {port}"), &error),
            },
            Request::Open(path) => match open_run_file(&self.run, &path) {
                Ok(file) => {
                    let fds: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).collect();
                    reply(&connection, &Reply::Done, &fds);
                }
                Err(error) => fail(&connection, format!("open /run/{path}"), &error),
            },
            Request::Fill(what) => match fds
                .pop()
                .ok_or(io::ErrorKind::InvalidInput.into())
                .and_then(|value| fill(&self.run, &what, value))
            {
                Ok(()) => reply(&connection, &Reply::Done, &[]),
                Err(error) => fail(&connection, format!("write file {} in memory", what.index), &error),
            },
            Request::Listen(address) => match listen(address) {
                Ok(socket) => reply(&connection, &Reply::Done, &[socket.as_fd()]),
                Err(error) => fail(&connection, format!("listen on {address}"), &error),
            },
            Request::ListenUdp(address) => match bind_udp(address) {
                Ok(socket) => reply(&connection, &Reply::Done, &[socket.as_fd()]),
                Err(error) => fail(&connection, format!("listen on {address}"), &error),
            },
            Request::Hosts(names) => match hosts::set(Path::new("/etc"), &names) {
                Ok(()) => reply(&connection, &Reply::Done, &[]),
                Err(error) => fail(&connection, "write /etc/hosts".to_owned(), &error),
            },
            Request::Idle => {
                let waited = self.sessions.attached()
                    || self.running.values().any(|running| running.connection.is_some() && !running.look);
                let idle = if waited { 0 } else { boot_ms().saturating_sub(self.used) };
                reply(&connection, &Reply::Idle(idle), &[]);
            }
            Request::Stop(grace) => {
                self.kill_at = Some(Instant::now() + Duration::from_millis(grace));
                broadcast(libc::SIGTERM);
                self.sessions.hang_up(); // a shell at a terminal does not hear the other
                self.reap();
            }
            other => fail(&connection, format!("{other:?}"), &io::Error::from_raw_os_error(libc::ENOSYS)),
        }
        Ok(())
    }

    fn prepare(&self, head: &ExecHead, mut fds: Vec<OwnedFd>) -> Result<Prepared, (String, io::Error)> {
        let failed = |error| ("read the command".to_owned(), error);
        if fds.is_empty() {
            return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let command = unpack(head, fds.remove(0)).map_err(failed)?;
        command::prepare(&self.context, head, command, fds)
    }

    /// Attaches to a session, or makes it.
    fn session(&mut self, connection: OwnedFd, head: SessionHead, fds: Vec<OwnedFd>) {
        let Some(connection) = self.sessions.attach(connection, &head) else { return };
        let Some(exec) = &head.exec else {
            return fail(&connection, format!("find session {}", head.name), &rustix::io::Errno::SRCH.into());
        };
        let made = self
            .sessions
            .make_room(&head.name)
            .and_then(|()| self.prepare(exec, fds))
            .and_then(|prepared| self.spawn(prepared));
        match made {
            Ok((pid, mut running)) => {
                self.sessions.begin(head, pid, running.pty.take(), connection);
                self.used = boot_ms();
                self.running.insert(pid, running);
            }
            Err((what, error)) => fail(&connection, what, &error),
        }
    }

    fn spawn(&self, prepared: Prepared) -> Result<(i32, Running), (String, io::Error)> {
        let describe = |error: io::Error| ("start a process".to_owned(), error);
        let (receiver, sender) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| describe(error.into()))?;
        match sys::clone_into_namespaces(0).map_err(describe)? {
            sys::Fork::Child => {
                let (step, error) = command::become_command(&self.context, &prepared, &sender);
                let mut report = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes().to_vec();
                report.extend(step.as_bytes());
                let _ = File::from(sender).write_all(&report); // init reads an end without a report as success; it cannot be helped
                sys::exit_now(127)
            }
            sys::Fork::Parent { pid, .. } => Ok((
                pid,
                Running {
                    connection: None,
                    look: false,
                    starting: Some(receiver),
                    pty: prepared.pty,
                    what: prepared.what,
                },
            )),
        }
    }

    /// The command has been executed, or could not be.
    fn started(&mut self, pid: i32) {
        let Some(running) = self.running.get_mut(&pid) else { return };
        let Some(pipe) = running.starting.take() else { return };
        let mut report = Vec::new();
        let read = File::from(pipe).take(4096).read_to_end(&mut report);
        let failure = (read.is_err() || !report.is_empty()).then(|| {
            let errno = report.first_chunk().map_or(libc::EIO, |bytes| i32::from_ne_bytes(*bytes));
            let step = String::from_utf8_lossy(report.get(4..).unwrap_or_default());
            (format!("{step} {}", running.what).trim().to_owned(), io::Error::from_raw_os_error(errno))
        });
        match (&running.connection, failure) {
            // Of a command without a connection somebody else takes care, or nobody.
            (None, failure) => self.sessions.started(pid, failure),
            (Some(connection), None) => {
                let pty = running.pty.take();
                let fds: Vec<BorrowedFd<'_>> = pty.iter().map(AsFd::as_fd).collect();
                reply(connection, &Reply::Started(pid), &fds);
            }
            (Some(connection), Some((what, error))) => {
                fail(connection, what, &error);
                running.connection = None;
            }
        }
    }

    fn control(&mut self, pid: i32) {
        let Some(running) = self.running.get_mut(&pid) else { return };
        let Some(connection) = &running.connection else { return };
        match seq::try_recv(connection) {
            Ok(Some((bytes, _))) => {
                if let Ok(ExecControl::Signal(signal)) = seq::decode(&bytes) {
                    signal_group(pid, signal);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => {
                signal_group(pid, libc::SIGKILL);
                running.connection = None;
                if !running.look {
                    self.used = boot_ms();
                }
            }
        }
    }

    fn reap(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    self.started(pid); // its report, if it is still unread, comes before its end
                    let Some(running) = self.running.remove(&pid) else { continue };
                    let exit = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Exit::Code(code),
                        (None, signal) => Exit::Signal(signal.unwrap_or(libc::SIGKILL)),
                    };
                    if !running.look && (running.connection.is_some() || self.sessions.ended(pid, exit)) {
                        self.used = boot_ms();
                    }
                    let Some(connection) = running.connection else { continue };
                    reply(&connection, &Reply::Exited(exit), &[]);
                }
                Ok(None) => return,
                Err(rustix::io::Errno::CHILD) => {
                    if self.kill_at.is_some() {
                        sys::exit_now(0); // asked to stop, and nothing is left
                    }
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn dial(&mut self, connection: OwnedFd, port: u16, v6: bool) {
        let (family, address) = if v6 {
            (AddressFamily::INET6, SocketAddr::from((Ipv6Addr::LOCALHOST, port)))
        } else {
            (AddressFamily::INET, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let result = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))
            .and_then(|socket| match rustix::net::connect(&socket, &address) {
                Err(rustix::io::Errno::INPROGRESS) => Ok((socket, false)),
                other => other.map(|()| (socket, true)),
            });
        match result {
            Ok((socket, true)) => reply(&connection, &Reply::Done, &[socket.as_fd()]),
            Ok((socket, false)) => {
                self.dialing.push(Dialing {
                    connection,
                    socket,
                    port,
                    v6,
                    deadline: Instant::now() + DIAL_TIMEOUT,
                });
            }
            // programs that listen on "localhost" may have taken only the IPv6 one
            Err(rustix::io::Errno::CONNREFUSED) if !v6 => self.dial(connection, port, true),
            Err(error) => {
                let error = if v6 { rustix::io::Errno::CONNREFUSED } else { error };
                fail(&connection, format!("connect to port {port}"), &error.into());
            }
        }
    }

    fn dialed(&mut self, index: usize) {
        let dialing = self.dialing.swap_remove(index);
        match rustix::net::sockopt::socket_error(&dialing.socket) {
            Ok(Ok(())) => reply(&dialing.connection, &Reply::Done, &[dialing.socket.as_fd()]),
            Ok(Err(rustix::io::Errno::CONNREFUSED)) if !dialing.v6 => {
                self.dial(dialing.connection, dialing.port, true)
            }
            Ok(Err(error)) | Err(error) => {
                fail(&dialing.connection, format!("connect to port {}", dialing.port), &error.into())
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        if self.kill_at.is_some_and(|at| at <= now) {
            sys::exit_now(0); // the kernel kills whatever is left
        }
        self.sessions.expire(now);
        for dialing in self.dialing.extract_if(.., |dialing| dialing.deadline <= now) {
            fail(
                &dialing.connection,
                format!("connect to port {}", dialing.port),
                &io::Error::from_raw_os_error(libc::ETIMEDOUT),
            );
        }
    }
}

/// Answers; a client that is gone or does not read loses its answer, never init's time.
pub fn reply(connection: &OwnedFd, message: &Reply, fds: &[BorrowedFd<'_>]) {
    let _ = seq::try_send(connection, message, fds);
}

pub fn fail(connection: &OwnedFd, what: String, error: &io::Error) {
    reply(connection, &Reply::Failed { what, errno: error.raw_os_error().unwrap_or(libc::EIO) }, &[]);
}

/// Sends a signal to the process group of a command.
pub fn signal_group(pid: i32, signal: i32) {
    sys::kill(-pid, signal);
    sys::kill(pid, signal); // it may not have made its group yet
}

fn broadcast(signal: i32) {
    sys::kill(-1, signal);
    sys::kill(-1, libc::SIGCONT); // stopped processes must see it too
}

fn listen(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1024)?;
    Ok(socket)
}

fn udp() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::UDP))?)
}

/// Whether somebody listens there only shows when a datagram was sent.
fn dial_udp(port: u16) -> io::Result<OwnedFd> {
    let socket = udp()?;
    rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(socket)
}

fn bind_udp(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = udp()?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Connects to a unix socket by its path in here. Links of the process file system would resolve to what init alone holds, so none is followed.
fn dial_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let there = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode) != FileType::Socket {
        return Err(rustix::io::Errno::NOTSOCK.into());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // By the descriptor: what was looked at, however long its path is.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", there.as_raw_fd()))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}
