//! The caller's side of a running sandbox's control socket.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::error::EngineError;
use super::proto::{self, ExecControl, Reply, Request, SessionHead};
use super::seq::{self, Seq};
use super::spec::{ExecRequest, Exit, SessionInfo};
use super::state;

/// The size of a session that is made by a client without a terminal.
const NO_SIZE: (u16, u16) = (24, 80);

/// Where a command's streams go.
#[derive(Debug)]
pub enum Stdio {
    /// Any open files; they are the command's own from here on.
    Files {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A new terminal of this size inside; its outer side is [`ExecHandle::take_pty`].
    Pty {
        /// Rows of characters.
        rows: u16,
        /// Columns of characters.
        cols: u16,
    },
}

/// A client's end of a session.
#[derive(Debug)]
pub struct Attached {
    /// The way to it. Dropping it detaches; its terminal's outer side is a stream, which ends with the session.
    pub handle: ExecHandle,
    /// The session when it was attached to.
    pub session: SessionInfo,
    /// It was made for this client.
    pub made: bool,
}

/// A command that runs inside. Dropping it kills the command's process group.
#[derive(Debug)]
pub struct ExecHandle {
    id: String,
    connection: Seq,
    pty: Option<OwnedFd>,
    exit: Option<Exit>,
    pid: i32,
}

impl ExecHandle {
    /// The command's process id, as seen inside.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the command to end. May be dropped and called again.
    ///
    /// # Errors
    /// [`EngineError::Control`] when the sandbox ended before the command reported.
    pub async fn wait(&mut self) -> Result<Exit, EngineError> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let control = |source| EngineError::Control { id: self.id.clone(), source };
        let message = self.connection.recv().await.map_err(control)?;
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the sandbox ended");
        let (bytes, _) = message.ok_or_else(ended).map_err(control)?;
        match seq::decode(&bytes).map_err(control)? {
            Reply::Exited(exit) => {
                self.exit = Some(exit);
                Ok(exit)
            }
            _ => Err(control(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Sends a signal to the command's process group. Of a command that has ended, nothing is left to signal.
    ///
    /// # Errors
    /// [`EngineError::Control`].
    pub async fn signal(&self, signal: i32) -> Result<(), EngineError> {
        self.control(&ExecControl::Signal(signal)).await
    }

    /// Tells a session the size of the client's terminal; it has the size of the one that was last attached, resized or typed at.
    ///
    /// # Errors
    /// [`EngineError::Control`].
    pub async fn resize_session(&self, rows: u16, cols: u16) -> Result<(), EngineError> {
        self.control(&ExecControl::Resize(rows, cols)).await
    }

    /// Lets a session go on alone. Its stream ends with what brings a terminal back to its usual modes.
    ///
    /// # Errors
    /// [`EngineError::Control`].
    pub async fn detach(&self) -> Result<(), EngineError> {
        self.control(&ExecControl::Detach).await
    }

    async fn control(&self, message: &ExecControl) -> Result<(), EngineError> {
        match self.connection.send(message, &[]).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(EngineError::Control { id: self.id.clone(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// The terminal's outer side, once: read for output, write for input. Reading fails with `EIO` after the last process closed it.
    pub fn take_pty(&mut self) -> Option<OwnedFd> {
        self.pty.take()
    }
}

/// Tells a terminal (the descriptor from [`ExecHandle::take_pty`]) its new size; its foreground processes get SIGWINCH.
///
/// # Errors
/// What the kernel reports.
pub fn resize(pty: impl AsFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(pty, size)?)
}

/// Connects to a sandbox's control socket; `None` when nothing serves it.
///
/// # Errors
/// Whatever leaves the question open.
pub async fn connect(dir: &Path) -> io::Result<Option<Seq>> {
    let (_dir, address) = match state::socket_address(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Seq::new(socket).map(Some),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            // its queue of connections is full, and there is nothing to wait on
            Err(rustix::io::Errno::AGAIN) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Asks once.
///
/// # Errors
/// [`EngineError::Outdated`] when it is not understood; [`EngineError::Control`], with `UnexpectedEof` when the connection ends.
pub async fn ask(
    id: &str,
    connection: &Seq,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<(Reply, Vec<OwnedFd>), EngineError> {
    let asked = async {
        connection.send(request, fds).await?;
        let (bytes, fds) = connection.recv().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((seq::decode(&bytes)?, fds))
    };
    match asked.await.map_err(|source| EngineError::Control { id: id.to_owned(), source })? {
        (Reply::Failed { what, errno: libc::ENOSYS }, _) if what == proto::NOT_UNDERSTOOD => {
            Err(EngineError::Outdated(id.to_owned()))
        }
        answer => Ok(answer),
    }
}

/// Reads a small file of root's below `/run`, which init opens.
///
/// # Errors
/// As [`super::Engine::read_run_file`].
pub async fn read_run_file(
    id: &str,
    connection: &Seq,
    path: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, EngineError> {
    let failed = |source| EngineError::Read { id: id.to_owned(), path: path.to_owned(), source };
    let control = |source| EngineError::Control { id: id.to_owned(), source };
    let (reply, mut fds) = ask(id, connection, &Request::Open(path.to_owned()), &[]).await?;
    match reply {
        Reply::Done => {
            let Some(file) = fds.pop() else { return Ok(None) };
            let mut bytes = Vec::new();
            File::from(file).take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
            match bytes.len() as u64 > limit {
                true => Err(failed(io::ErrorKind::FileTooLarge.into())),
                false => Ok(Some(bytes)),
            }
        }
        Reply::Failed { errno, .. } => Err(failed(io::Error::from_raw_os_error(errno))),
        _ => Err(control(io::ErrorKind::InvalidData.into())),
    }
}

/// Starts a command over a fresh connection.
///
/// # Errors
/// [`EngineError::Invalid`], [`EngineError::Exec`] or [`EngineError::Control`].
pub async fn exec(
    id: &str,
    connection: Seq,
    request: ExecRequest,
    stdio: Stdio,
) -> Result<ExecHandle, EngineError> {
    let control = |source| EngineError::Control { id: id.to_owned(), source };
    let size = match stdio {
        Stdio::Pty { rows, cols } => Some((rows, cols)),
        Stdio::Files { .. } => None,
    };
    let (head, payload) = proto::pack(request, size).map_err(control)?.map_err(EngineError::Invalid)?;
    let mut fds = vec![payload.as_fd()];
    if let Stdio::Files { stdin, stdout, stderr } = &stdio {
        fds.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    }
    let (reply, received) = ask(id, &connection, &Request::Exec(head), &fds).await?;
    match reply {
        Reply::Started(pid) => Ok(ExecHandle {
            id: id.to_owned(),
            connection,
            pty: received.into_iter().next(),
            exit: None,
            pid,
        }),
        Reply::Failed { what, errno } => {
            Err(EngineError::Exec { id: id.to_owned(), what, source: io::Error::from_raw_os_error(errno) })
        }
        _ => Err(control(io::ErrorKind::InvalidData.into())),
    }
}

/// Attaches over a fresh connection.
///
/// # Errors
/// As [`super::Engine::attach`].
pub async fn attach(
    id: &str,
    connection: Seq,
    name: &str,
    what: String,
    command: Option<ExecRequest>,
    size: Option<(u16, u16)>,
    leave: bool,
) -> Result<Attached, EngineError> {
    let control = |source| EngineError::Control { id: id.to_owned(), source };
    let packed = match command {
        Some(command) => Some(
            proto::pack(command, Some(size.unwrap_or(NO_SIZE)))
                .map_err(control)?
                .map_err(EngineError::Invalid)?,
        ),
        None => None,
    };
    let (exec, payload) = packed.unzip();
    let head = SessionHead { name: name.to_owned(), what, size, leave, exec };
    let fds: Vec<_> = payload.iter().map(AsFd::as_fd).collect();
    let (reply, mut received) = ask(id, &connection, &Request::Session(head), &fds).await?;
    match reply {
        Reply::Attached { session, made } => {
            let (pty, pid) = (received.pop(), session.pid);
            let handle = ExecHandle { id: id.to_owned(), connection, pty, exit: None, pid };
            Ok(Attached { handle, session, made })
        }
        reply => Err(refused(id, name, reply)),
    }
}

/// Why a request about sessions was not done.
pub fn refused(id: &str, name: &str, reply: Reply) -> EngineError {
    let id = id.to_owned();
    match reply {
        Reply::Failed { errno: libc::ESRCH, .. } => EngineError::NoSession { id, name: name.to_owned() },
        Reply::Failed { what, errno: libc::EUSERS } => EngineError::Invalid(what),
        Reply::Failed { what, errno } => {
            EngineError::Exec { id, what, source: io::Error::from_raw_os_error(errno) }
        }
        _ => EngineError::Control { id, source: io::ErrorKind::InvalidData.into() },
    }
}
