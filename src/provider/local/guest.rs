//! The inside of a sandbox of the local engine.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use rustix::fs::{FileType, SeekFrom};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::engine::{self, Engine, EngineError, ExecHandle, ExecRequest, Exit, OciImage, Stdio};
use crate::model::SandboxId;
use crate::provider::{
    Attached, Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, ImageDefaults, Input, Output, Pty,
    PtyRequest, SessionInfo, Sessions,
};

/// One read of a command's output.
const CHUNK: usize = 64 * 1024;

/// One running sandbox.
pub(super) struct LocalGuest {
    engine: Engine,
    id: SandboxId,
}

impl LocalGuest {
    pub(super) fn new(engine: Engine, id: SandboxId) -> Self {
        Self { engine, id }
    }

    fn error(&self, command: &Command, error: EngineError) -> GuestError {
        match error {
            EngineError::Exec { what, source, .. } => GuestError::NotExecutable {
                program: command.program().to_owned(),
                message: format!("{what}: {source}"),
            },
            EngineError::Invalid(message) => {
                GuestError::NotExecutable { program: command.program().to_owned(), message }
            }
            EngineError::NoSession { name, .. } => GuestError::NoSession(name),
            error @ EngineError::Outdated(_) => GuestError::Unsupported(error.to_string()),
            error => self.unreachable(error),
        }
    }

    fn unreachable(&self, error: EngineError) -> GuestError {
        GuestError::Unreachable { message: format!("sandbox {}", self.id), source: Some(Box::new(error)) }
    }
}

fn request(command: &Command) -> ExecRequest {
    ExecRequest {
        argv: command.argv.iter().map(Into::into).collect(),
        env: command.env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        cwd: command.cwd.as_ref().map(Into::into),
        user: command.user.clone(),
        look: command.look,
    }
}

fn status(exit: Exit) -> ExitStatus {
    match exit {
        Exit::Code(code) => ExitStatus::Code(code),
        Exit::Signal(signal) => ExitStatus::Signal(signal),
    }
}

fn local_io(what: &str) -> impl Fn(io::Error) -> GuestError {
    let what = format!("cannot {what}");
    move |source| GuestError::Io { what: what.clone(), source }
}

#[async_trait]
impl Guest for LocalGuest {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        command.limited(self.run(command, io)).await
    }

    async fn pty(&self, command: &Command, size: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        let stdio = Stdio::Pty { rows: size.rows, cols: size.cols };
        let handle = self
            .engine
            .exec(&self.id.0, request(command), stdio)
            .await
            .map_err(|error| self.error(command, error))?;
        Ok(Box::new(LocalPty::new(handle, false)?))
    }

    fn has_pipes(&self) -> bool {
        true
    }

    fn sessions(&self) -> Option<&dyn Sessions> {
        Some(self)
    }

    async fn image(&self) -> Result<ImageDefaults, GuestError> {
        let image = self.engine.image_of(&self.id.0).map_err(|error| self.unreachable(error))?;
        let has_one_owner = self.engine.has_one_owner(&self.id.0).map_err(|error| self.unreachable(error))?;
        let OciImage { user, command, stop_signal, .. } = image.unwrap_or_default();
        Ok(ImageDefaults { user, has_one_owner, command, stop_signal })
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        let socket = self.engine.dial(&self.id.0, port).await.map_err(|error| match error {
            EngineError::Dial { source, .. } => {
                GuestError::Io { what: format!("port {port} does not accept connections"), source }
            }
            error => self.unreachable(error),
        })?;
        let stream = std::net::TcpStream::from(socket);
        let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
        Ok(Box::new(stream.map_err(local_io("use the connection"))?))
    }

    async fn read_run_file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, GuestError> {
        self.engine.read_run_file(&self.id.0, path, limit).await.map_err(|error| match error {
            EngineError::Read { source, .. } => {
                GuestError::Unsupported(format!("reading /run/{path} without a program: {source}"))
            }
            error => self.unreachable(error),
        })
    }
}

#[async_trait]
impl Sessions for LocalGuest {
    async fn attach(
        &self,
        name: &str,
        what: &str,
        command: Option<&Command>,
        size: Option<PtyRequest>,
        leave: bool,
    ) -> Result<Attached, GuestError> {
        let (what, run) = (what.to_owned(), command.map(request));
        let size = size.map(|size| (size.rows, size.cols));
        let attached = self.engine.attach(&self.id.0, name, what, run, size, leave).await;
        let engine::Attached { handle, session, made } =
            attached.map_err(|error| self.error(command.unwrap_or(&Command::default()), error))?;
        Ok(Attached { pty: Box::new(LocalPty::new(handle, true)?), session: self::session(session), made })
    }

    async fn list(&self) -> Result<Vec<SessionInfo>, GuestError> {
        let sessions = self.engine.sessions(&self.id.0).await;
        let sessions = sessions.map_err(|error| self.error(&Command::default(), error))?;
        Ok(sessions.into_iter().map(session).collect())
    }

    async fn end(&self, name: &str) -> Result<(), GuestError> {
        let ended = self.engine.end_session(&self.id.0, name).await;
        ended.map_err(|error| self.error(&Command::default(), error))
    }
}

fn session(session: engine::SessionInfo) -> SessionInfo {
    SessionInfo {
        name: session.name,
        what: session.what,
        since: super::map::timestamp(session.since),
        clients: session.clients,
        size: PtyRequest { rows: session.rows, cols: session.cols },
        ended: session.exit.map(status),
    }
}

impl LocalGuest {
    async fn run(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let (mut own_in, mut own_out, mut own_err) =
            (tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr());
        // Where our input can be set back to: a file.
        let offset = match io.stdin {
            Input::Inherit => rustix::fs::seek(&own_in, SeekFrom::Current(0)).ok(),
            _ => None,
        };
        let (stdin, feed) = input(io.stdin, &mut own_in).map_err(local_io("make a pipe"))?;
        let (stdout, out) = output(io.stdout, &mut own_out).map_err(local_io("make a pipe"))?;
        let (stderr, err) = output(io.stderr, &mut own_err).map_err(local_io("make a pipe"))?;
        let rewind = match (offset, &feed) {
            (Some(offset), Some(_)) => Some((offset, stdin.try_clone().map_err(local_io("make a pipe"))?)),
            _ => None,
        };
        let stdio = Stdio::Files { stdin, stdout, stderr };
        let mut handle = self
            .engine
            .exec(&self.id.0, request(command), stdio)
            .await
            .map_err(|error| self.error(command, error))?;

        let ended = CancellationToken::new();
        let wait = async {
            let exit = handle.wait().await;
            ended.cancel();
            exit
        };
        let mut fed = 0;
        let feed = async {
            let Some((reader, pipe)) = feed else { return Ok(()) };
            tokio::select! {
                result = feed_input(reader, pipe, &mut fed) => result,
                () = ended.cancelled() => Ok(()),
            }
        };
        let (exit, passed, out, err) = tokio::join!(wait, feed, drain(out, &ended), drain(err, &ended));
        passed.map_err(local_io("pass the input on"))?;
        if let Some((offset, pipe)) = rewind {
            // What the command left of a file is for whoever reads it next, as if it had been given the file itself.
            let left = rustix::io::ioctl_fionread(&pipe).unwrap_or(0);
            let _ = rustix::fs::seek(io::stdin(), SeekFrom::Start(offset + fed - left.min(fed)));
        }
        out.and(err).map_err(local_io("pass the output on"))?;
        exit.map(status).map_err(|error| self.error(command, error))
    }
}

type Reader<'a> = &'a mut (dyn AsyncRead + Send + Unpin);
type Writer<'a> = &'a mut (dyn AsyncWrite + Send + Unpin);
type Draining<'a> = (pipe::Receiver, Writer<'a>);

/// A stream of ours that a sandbox may be given itself. A terminal is none: what is left running inside could read what is typed there long after.
/// Nor is a file or a directory, which can be opened again with other rights, or be a way to others.
fn may_be_given(stream: &impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(stream)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo | FileType::Socket => true,
        FileType::CharacterDevice => stat.st_rdev == rustix::fs::stat("/dev/null")?.st_rdev,
        _ => false,
    })
}

fn input<'a, 'b: 'a>(
    input: Input<'b>,
    own: &'a mut tokio::io::Stdin,
) -> io::Result<(OwnedFd, Option<(Reader<'a>, pipe::Sender)>)> {
    let reader: Reader<'a> = match input {
        Input::Null => return Ok((null()?, None)),
        Input::Inherit if may_be_given(own)? => return Ok((own.as_fd().try_clone_to_owned()?, None)),
        Input::Inherit => own,
        Input::Reader(reader) => reader,
    };
    let (sender, receiver) = pipe::pipe()?;
    Ok((receiver.into_blocking_fd()?, Some((reader, sender))))
}

fn output<'a, 'b: 'a, W: AsFd + AsyncWrite + Send + Unpin>(
    output: Output<'b>,
    own: &'a mut W,
) -> io::Result<(OwnedFd, Option<Draining<'a>>)> {
    let writer: Writer<'a> = match output {
        Output::Null => return Ok((null()?, None)),
        Output::Inherit if may_be_given(own)? => return Ok((own.as_fd().try_clone_to_owned()?, None)),
        Output::Inherit => own,
        Output::Writer(writer) => writer,
    };
    let (sender, receiver) = pipe::pipe()?;
    Ok((sender.into_blocking_fd()?, Some((receiver, writer))))
}

fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Passes input on, and counts it in `fed`.
async fn feed_input(reader: Reader<'_>, mut pipe: pipe::Sender, fed: &mut u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = reader.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let mut piece = &buffer[..read];
        while !piece.is_empty() {
            match pipe.write(piece).await {
                Ok(written) => {
                    *fed += written as u64;
                    piece = &piece[written..];
                }
                // The command does not want the rest.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

async fn drain(stream: Option<Draining<'_>>, ended: &CancellationToken) -> io::Result<()> {
    match stream {
        Some((pipe, writer)) => drain_output(pipe, writer, ended).await,
        None => Ok(()),
    }
}

/// Passes on what the command writes. Once it has ended, what is left in the pipe is all it wrote, even if something it left behind holds
/// the pipe open.
async fn drain_output(
    mut pipe: pipe::Receiver,
    writer: Writer<'_>,
    ended: &CancellationToken,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => match read? {
                0 => break,
                read => writer.write_all(&buffer[..read]).await?,
            },
            () = ended.cancelled() => {
                loop {
                    match rustix::io::read(&pipe, &mut buffer) {
                        Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                        Ok(read) => writer.write_all(&buffer[..read]).await?,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                break;
            }
        }
    }
    writer.flush().await
}

/// A command on a terminal, or a session.
struct LocalPty {
    handle: ExecHandle,
    is_session: bool,
    pty: OwnedFd,
    reader: Option<Terminal>,
    writer: Option<Terminal>,
}

impl LocalPty {
    fn new(mut handle: ExecHandle, is_session: bool) -> Result<Self, GuestError> {
        let failed = local_io("use the terminal");
        let pty = handle.take_pty().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let end = || Terminal::new(pty.try_clone().map_err(&failed)?).map_err(&failed);
        let (reader, writer) = (Some(end()?), Some(end()?));
        Ok(Self { handle, is_session, pty, reader, writer })
    }
}

#[async_trait]
impl Pty for LocalPty {
    fn reader(&mut self) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
        Some(Box::new(self.reader.take()?))
    }

    fn writer(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        Some(Box::new(self.writer.take()?))
    }

    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError> {
        if self.is_session {
            return self.handle.resize_session(size.rows, size.cols).await.map_err(unreachable_terminal);
        }
        engine::resize(&self.pty, size.rows, size.cols).map_err(local_io("resize the terminal"))
    }

    async fn detach(&self) -> Result<(), GuestError> {
        if self.is_session {
            self.handle.detach().await.map_err(unreachable_terminal)?;
        }
        Ok(())
    }

    async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        self.handle.wait().await.map(status).map_err(unreachable_terminal)
    }
}

fn unreachable_terminal(error: EngineError) -> GuestError {
    GuestError::Unreachable { message: "the terminal".to_owned(), source: Some(Box::new(error)) }
}

/// The outer side of a terminal, read and written without blocking.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        #[expect(
            deprecated,
            reason = "an `OwnedFd` owns its descriptor, which is all that the sound constructor asks a caller to vouch for"
        )]
        let fd = AsyncFd::new(fd)?;
        Ok(Self(fd))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), buf.initialize_unfilled())?));
            match read {
                Ok(Ok(read)) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // The last process on the terminal is gone.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
