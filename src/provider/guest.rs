//! The inside of one running sandbox, reached through its provider.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{GuestError, Sessions};
use crate::model::{GuestSpec, ServiceSpec};

/// One running sandbox from the inside.
///
/// Everything `guest/` does is built on this trait, with POSIX `sh` as the only assumption about what is installed inside.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Runs a command to its end. A status other than 0 is an [`ExitStatus`], not an error. Dropping the future kills the command.
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError>;

    /// Runs a command on a new terminal.
    async fn pty(&self, command: &Command, request: PtyRequest) -> Result<Box<dyn Pty>, GuestError>;

    /// Whether what passes in and out of a command does so by pipes of one kernel, which lose and change nothing. Elsewhere what was copied is
    /// compared by its hashes.
    fn has_pipes(&self) -> bool {
        false
    }

    /// Named sessions, where the sheet says that there are any.
    fn sessions(&self) -> Option<&dyn Sessions> {
        None
    }

    /// What its image says of how it is run, where the provider does not see to that itself.
    async fn image(&self) -> Result<ImageDefaults, GuestError> {
        Ok(ImageDefaults::default())
    }

    /// Connects to a TCP port inside, on the sandbox's own loopback.
    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError>;

    /// Reads a regular file of root's below `/run`, at most `limit` bytes long, without starting a program; `None` if its directory is there and
    /// it is not.
    ///
    /// # Errors
    /// [`GuestError::Unsupported`] if this cannot tell, and a program inside has to be asked.
    async fn read_run_file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, GuestError> {
        let _ = limit;
        Err(GuestError::Unsupported(format!("reading /run/{path} without a program")))
    }
}

/// A connection into a sandbox.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestStream for T {}

/// What to run. `Debug` shows names of environment variables, never values: they may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// Environment over the sandbox's base environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` for the user's home.
    pub cwd: Option<String>,
    /// A user name or `uid[:gid]` of the sandbox; `None` for its default.
    pub user: Option<String>,
    /// The command is killed after this long.
    pub timeout: Option<Duration>,
    /// It only looks, and is no use that keeps the sandbox from being stopped for want of it.
    pub look: bool,
}

impl Command {
    /// A command with nothing but its argv.
    pub fn new<I, S>(argv: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Does `run`, which dropping kills, within the command's time limit.
    pub(super) async fn limited<T>(
        &self,
        run: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, GuestError> {
        let Some(limit) = self.timeout else { return run.await };
        let over = |_| Err(GuestError::TimedOut { program: self.program().to_owned(), limit });
        tokio::time::timeout(limit, run).await.unwrap_or_else(over)
    }

    /// argv\[0\], for messages.
    pub fn program(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("argv", &self.argv)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("user", &self.user)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// What the image of a sandbox says of how it is run, as far as the provider does not see to it itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// Who runs what names nobody: `name[:group]` or `uid[:gid]`.
    pub user: Option<String>,
    /// There is a single id inside: whatever is there belongs to everybody, and nothing can be given away.
    pub has_one_owner: bool,
    /// Its entry point with its command, as argv; empty where it has none.
    pub command: Vec<String>,
    /// The signal that asks its command to end; `TERM` when absent.
    pub stop_signal: Option<String>,
}

impl ImageDefaults {
    /// Who is to own what is put inside; `None` for whoever puts it there.
    pub fn owner(&self, declared: Option<&str>) -> Option<String> {
        let user = declared.or(self.user.as_deref()).filter(|_| !self.has_one_owner);
        user.map(str::to_owned)
    }

    /// What is declared, with what the image says where nothing is.
    pub fn complete(&self, declared: &GuestSpec) -> GuestSpec {
        let mut spec = declared.clone();
        spec.user = spec.user.or_else(|| self.user.clone());
        for service in spec.services.values_mut() {
            *service = self.complete_service(service);
        }
        spec
    }

    /// A service that is declared, with the image's command where it has none.
    pub fn complete_service(&self, declared: &ServiceSpec) -> ServiceSpec {
        let mut service = declared.clone();
        if service.command.is_empty() {
            service.command.clone_from(&self.command);
        }
        if service.stop_signal.is_empty() {
            service.stop_signal = self.stop_signal.clone().unwrap_or_else(|| "TERM".to_owned());
        }
        service
    }
}

/// Where a command's streams lead.
#[derive(Default)]
pub struct ExecIo<'a> {
    /// Standard input.
    pub stdin: Input<'a>,
    /// Standard output.
    pub stdout: Output<'a>,
    /// Standard error.
    pub stderr: Output<'a>,
}

/// Where standard input comes from.
#[derive(Default)]
pub enum Input<'a> {
    /// Nothing.
    #[default]
    Null,
    /// This process's own standard input.
    Inherit,
    /// A stream.
    Reader(&'a mut (dyn AsyncRead + Send + Unpin)),
}

/// Where an output stream goes.
#[derive(Default)]
pub enum Output<'a> {
    /// Nowhere.
    #[default]
    Null,
    /// This process's own stream of the same kind.
    Inherit,
    /// A stream.
    Writer(&'a mut (dyn AsyncWrite + Send + Unpin)),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
}

impl ExitStatus {
    /// True for exit code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The code a shell would report: the exit code, or 128 + the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The size of a new terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtyRequest {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub cols: u16,
}

/// A command on a terminal.
#[async_trait]
pub trait Pty: Send + Sync {
    /// What the terminal shows. May be taken once.
    fn reader(&mut self) -> Option<Box<dyn AsyncRead + Send + Unpin>>;

    /// The keys. May be taken once.
    fn writer(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>>;

    /// Changes the size.
    async fn resize(&self, request: PtyRequest) -> Result<(), GuestError>;

    /// Waits for the command to end.
    async fn wait(&mut self) -> Result<ExitStatus, GuestError>;

    /// Lets go of a session, which goes on; the reader ends with what brings the terminal back to its usual modes. There is nothing to do where the
    /// command ends with its terminal.
    async fn detach(&self) -> Result<(), GuestError> {
        Ok(())
    }
}

/// What a captured command wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, cut at the limit.
    pub stdout: Vec<u8>,
    /// Standard error, cut at the limit.
    pub stderr: Vec<u8>,
    /// Whether either stream was longer than the limit.
    pub truncated: bool,
}

/// Runs a command with `stdin` as its input and keeps up to `limit` bytes of each of its output streams; the rest is read and dropped.
pub async fn capture(
    guest: &dyn Guest,
    command: &Command,
    mut stdin: &[u8],
    limit: usize,
) -> Result<CapturedOutput, GuestError> {
    let mut stdout = Bounded::new(limit);
    let mut stderr = Bounded::new(limit);
    let io = ExecIo {
        stdin: if stdin.is_empty() { Input::Null } else { Input::Reader(&mut stdin) },
        stdout: Output::Writer(&mut Sink(|data: &[u8]| stdout.push(data))),
        stderr: Output::Writer(&mut Sink(|data: &[u8]| stderr.push(data))),
    };
    let status = guest.exec(command, io).await?;
    Ok(CapturedOutput {
        status,
        truncated: stdout.truncated || stderr.truncated,
        stdout: stdout.bytes,
        stderr: stderr.bytes,
    })
}

/// The first `limit` bytes of a stream.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Bounded {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, truncated: false }
    }

    fn push(&mut self, data: &[u8]) {
        let kept = data.len().min(self.limit - self.bytes.len());
        self.truncated |= kept < data.len();
        self.bytes.extend_from_slice(&data[..kept]);
    }
}

/// A writer that gives what is written to a closure, at once and without failing.
pub struct Sink<F>(pub F);

impl<F: FnMut(&[u8]) + Unpin> AsyncWrite for Sink<F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        (self.0)(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
