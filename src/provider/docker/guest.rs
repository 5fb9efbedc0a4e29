//! The inside of a container. Docker's exec neither kills a command whose caller is gone nor keeps its environment off the disk, so every command is
//! started by one constant script (`provider/script/exec.sh`): it says who it is, is given the environment on standard input, and becomes the command.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::ExecConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::{sleep, timeout};

use super::api::{Api, Raw};
use crate::provider::script::{
    CHUNK, Frames, KILL, Kind, LINE_LIMIT, Leash, Source, failed, feed, header, refusal, shown, who,
};
use crate::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, Output, ProviderError, Pty, PtyRequest,
};

/// How long a command that has ended may take until the daemon knows how.
const ENDING: Duration = Duration::from_secs(10);
/// How long killing a command may take.
const KILLING: Duration = Duration::from_secs(10);
/// How long a connection into a sandbox may last after this side let go of it.
const HANGING_UP: Duration = Duration::from_secs(1);

/// Docker lets go of a terminal when these keys come, and cannot be told not to: nobody types them all.
const DETACH_KEYS: &str = "ctrl-^,ctrl-_,ctrl-^,ctrl-@,ctrl-^,ctrl-_,ctrl-@,ctrl-^";

const EXEC: &str = concat!(include_str!("../script/exec.sh"), "pe_say ok\nexec \"$@\"\n");
const DIAL: &str = concat!(include_str!("../script/listening.sh"), include_str!("sh/dial.sh"));
const LINKS: &str = concat!(include_str!("../script/listening.sh"), include_str!("sh/links.sh"));
pub(super) const PERL: &str = include_str!("sh/relay.pl");
pub(super) const PYTHON: &str = include_str!("sh/relay.py");

/// One container.
#[derive(Clone)]
pub(super) struct DockerGuest {
    pub api: Api,
    pub container: String,
}

/// A command that runs.
struct Process {
    exec: String,
    output: Frames<Stream>,
    input: WriteHalf<Raw>,
    leash: Leash,
}

impl DockerGuest {
    fn unreachable(&self, error: ProviderError) -> GuestError {
        GuestError::Unreachable {
            message: format!("container {}", self.container),
            source: Some(Box::new(error)),
        }
    }

    async fn create_exec(
        &self,
        argv: Vec<String>,
        user: Option<&str>,
        tty: bool,
    ) -> Result<String, GuestError> {
        let config = ExecConfig {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(tty),
            detach_keys: tty.then(|| DETACH_KEYS.to_owned()),
            cmd: Some(argv),
            user: user.map(str::to_owned),
            // The image's own working directory may have been removed.
            working_dir: Some("/".to_owned()),
            ..ExecConfig::default()
        };
        let client = self.api.client().await.map_err(|error| self.unreachable(error))?;
        let made = client.create_exec(&self.container, config).await;
        made.map(|made| made.id).map_err(|error| self.unreachable(self.api.error("run a command", error)))
    }

    /// Starts a command.
    async fn spawn(&self, command: &Command, tty: Option<PtyRequest>) -> Result<Process, GuestError> {
        let header = header(command)?;
        let mode = if tty.is_some() { "tty" } else { "pipe" };
        let dir = command.cwd.as_deref().unwrap_or_default();
        let mut argv: Vec<String> =
            ["sh", "-c", EXEC, "pocketenv-exec", mode, dir].map(str::to_owned).to_vec();
        argv.extend(command.argv.iter().cloned());
        let exec = self.create_exec(argv, command.user.as_deref(), tty.is_some()).await?;
        let raw = self
            .api
            .start_exec(&exec, tty.is_some())
            .await
            .map_err(|error| self.not_started(command, error))?;
        let (read, mut input) = tokio::io::split(raw);
        let mut output = Frames::new(Stream::new(read, tty.is_some()), tty.is_some());

        let Some(hello) = output.line().await.map_err(|error| failed("starting a command", error))? else {
            return Err(self.ended_early(command, &output.said));
        };
        let Some((pid, start)) = who(&hello) else {
            return Err(self.ended_early(command, hello.as_bytes()));
        };
        let mut leash = self.leash(pid, start);
        if let Some(size) = tty {
            self.resize(&exec, size).await?;
        }
        let given = async {
            input.write_all(&header).await?;
            input.flush().await?;
            output.verdict().await
        };
        let verdict = given.await.map_err(|error| failed("starting a command", error))?;
        if verdict.as_deref() == Some("ok") {
            return Ok(Process { exec, output, input, leash });
        }
        leash.slip();
        Err(refusal(command, verdict.as_deref(), &output.said))
    }

    /// Kills a command when it is let go of.
    fn leash(&self, pid: &str, start: &str) -> Leash {
        // A client belongs to the runtime that made it.
        let (daemon, container) = (self.api.daemon.clone(), self.container.clone());
        let (pid, start) = (pid.to_owned(), start.to_owned());
        Leash::new(move || Box::pin(kill(Api::new(daemon, None), container, pid, start)))
    }

    fn not_started(&self, command: &Command, error: ProviderError) -> GuestError {
        match error {
            ProviderError::Invalid { message } => {
                GuestError::NotExecutable { program: command.program().to_owned(), message }
            }
            error => self.unreachable(error),
        }
    }

    /// Docker tells in the stream why a command did not start.
    fn ended_early(&self, command: &Command, said: &[u8]) -> GuestError {
        let message = shown(&String::from_utf8_lossy(said));
        let gone =
            ["is not running", "is paused", "No such container", "is restarting", "cannot exec in a stopped"];
        if message.is_empty() || gone.iter().any(|words| message.contains(words)) {
            let message = if message.is_empty() { "it ended before a command could start" } else { &message };
            return GuestError::Unreachable {
                message: format!("container {}: {message}", self.container),
                source: None,
            };
        }
        let message = if message.contains("executable file not found") || message.contains("\"sh\"") {
            format!("the image has no `sh`: {message}")
        } else {
            message
        };
        GuestError::NotExecutable { program: command.program().to_owned(), message }
    }

    async fn resize(&self, exec: &str, size: PtyRequest) -> Result<(), GuestError> {
        let client = self.api.client().await.map_err(|error| self.unreachable(error))?;
        let size = bollard::exec::ResizeExecOptions { height: size.rows, width: size.cols };
        let resized = client.resize_exec(exec, size).await;
        resized.map_err(|error| self.unreachable(self.api.error("resize the terminal", error)))
    }

    /// How a command ended; `None` while it runs.
    async fn status(&self, exec: &str) -> Result<Option<ExitStatus>, GuestError> {
        let client = self.api.client().await.map_err(|error| self.unreachable(error))?;
        let found = client.inspect_exec(exec).await;
        let found = found.map_err(|error| self.unreachable(self.api.error("look at a command", error)))?;
        match (found.running, found.exit_code) {
            (Some(true), _) | (_, None) => Ok(None),
            (_, Some(code)) => Ok(Some(ExitStatus::Code(i32::try_from(code).unwrap_or(-1)))),
        }
    }

    /// How a command ended whose streams have ended.
    async fn ending(&self, exec: &str) -> Result<ExitStatus, GuestError> {
        let wait = async {
            let mut pause = Duration::from_millis(2);
            loop {
                if let Some(status) = self.status(exec).await? {
                    return Ok(status);
                }
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
        };
        timeout(ENDING, wait).await.unwrap_or_else(|_| {
            let message = format!("container {}: a command hung up and did not end", self.container);
            Err(GuestError::Unreachable { message, source: None })
        })
    }

    /// Comes back when something listens inside on each of these ports; with the one that is missing if that takes too long.
    pub async fn await_links(&self, ports: &[String]) -> Result<Option<String>, GuestError> {
        let mut command = Command::new(["sh", "-c", LINKS, "pocketenv-links"]);
        command.argv.extend(ports.iter().cloned());
        command.user = Some("0".to_owned());
        command.timeout = Some(Duration::from_secs(60));
        let output = crate::provider::capture(self, &command, &[], LINE_LIMIT).await?;
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }

    async fn run(&self, process: Process, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let Process { exec, mut output, mut input, mut leash } = process;
        let feed = async {
            feed(io.stdin, &mut input).await?;
            // Only shutting down, not dropping, tells the other side.
            shut(&mut input).await;
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            drained = output.drain(io.stdout, io.stderr) => drained?,
            fed = feed => {
                fed.map_err(|source| GuestError::Io { what: "cannot pass the input on".to_owned(), source })?;
            }
        }
        let status = self.ending(&exec).await?;
        leash.slip();
        Ok(status)
    }
}

#[async_trait]
impl Guest for DockerGuest {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        command.limited(async { self.run(self.spawn(command, None).await?, io).await }).await
    }

    async fn pty(&self, command: &Command, size: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        let Process { exec, output, input, leash } = self.spawn(command, Some(size)).await?;
        let Frames { source, pending, .. } = output;
        let reader: Box<dyn AsyncRead + Send + Unpin> = Box::new(io::Cursor::new(pending).chain(source.read));
        Ok(Box::new(DockerPty {
            guest: self.clone(),
            exec,
            leash,
            ends: Mutex::new(Ends { reader: Some(reader), writer: Some(input) }),
            ended: None,
        }))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        let port_text = port.to_string();
        let mut command = Command::new(["sh", "-c", DIAL, "pocketenv-dial", &port_text, PERL, PYTHON]);
        command.cwd = Some("/".to_owned());
        let mut process = self.spawn(&command, None).await?;
        let answer =
            process.output.line().await.map_err(|error| failed("connecting into the sandbox", error))?;
        match answer.as_deref() {
            Some("open") => {}
            Some("none") => {
                process.leash.slip();
                return Err(GuestError::Unsupported(
                    "connecting to a port inside a container needs perl, python3, nc or bash in its image"
                        .to_owned(),
                ));
            }
            _ => {
                process.leash.slip();
                let what = format!("port {port} does not accept connections");
                return Err(GuestError::Io { what, source: io::ErrorKind::ConnectionRefused.into() });
            }
        }
        let (ours, theirs) = tokio::io::duplex(CHUNK);
        tokio::spawn(join(process, theirs));
        Ok(Box::new(ours))
    }
}

/// Leads a connection to the program inside that holds it, until either ends.
async fn join(process: Process, stream: tokio::io::DuplexStream) {
    let Process { mut output, mut input, mut leash, .. } = process;
    let (mut read, mut write) = tokio::io::split(stream);
    let feed = async {
        let _ = tokio::io::copy(&mut read, &mut input).await;
        shut(&mut input).await;
    };
    let drained = {
        let drain = output.drain(Output::Writer(&mut write), Output::Null);
        tokio::pin!(feed, drain);
        tokio::select! {
            drained = &mut drain => drained.is_ok(),
            // It may only have said all it has to say; if it has let go, what comes back is not wanted.
            () = &mut feed => drain.await.is_ok(),
        }
    };
    let _ = write.shutdown().await;
    if drained || matches!(timeout(HANGING_UP, output.drain(Output::Null, Output::Null)).await, Ok(Ok(()))) {
        leash.slip();
        return;
    }
    // Whoever lets go of the last end is not this task, so nobody is held up.
    leash.kill().await;
}

/// Says that no input follows. Where the other end is gone already nobody needs to know.
async fn shut(input: &mut WriteHalf<Raw>) {
    if let Err(error) = input.shutdown().await {
        tracing::debug!(%error, "a command was gone before its input ended");
    }
}

/// The stream of a command: frames of both outputs, or what its terminal shows.
struct Stream {
    read: ReadHalf<Raw>,
    tty: bool,
    /// What is left of the frame that is being read.
    frame: Option<(Kind, usize)>,
}

impl Stream {
    fn new(read: ReadHalf<Raw>, tty: bool) -> Self {
        Self { read, tty, frame: None }
    }
}

impl Source for Stream {
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<Option<(Kind, usize)>> {
        if self.tty {
            let read = self.read.read(buffer).await?;
            return Ok((read > 0).then_some((Kind::Out, read)));
        }
        loop {
            let (kind, left) = match self.frame {
                Some(frame) => frame,
                None => {
                    let mut header = [0; 8];
                    if self.read.read(&mut header[..1]).await? == 0 {
                        return Ok(None);
                    }
                    self.read.read_exact(&mut header[1..]).await?;
                    let kind = match header[0] {
                        0 | 1 => Kind::Out,
                        // 3 is the daemon's own word.
                        2 | 3 => Kind::Err,
                        _ => {
                            return Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                "the stream has no frames",
                            ));
                        }
                    };
                    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    (kind, length as usize)
                }
            };
            if left == 0 {
                self.frame = None;
                continue;
            }
            let wanted = left.min(buffer.len());
            let read = self.read.read(&mut buffer[..wanted]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.frame = Some((kind, left - read)).filter(|(_, left)| *left > 0);
            return Ok(Some((kind, read)));
        }
    }
}

async fn kill(api: Api, container: String, pid: String, start: String) {
    let guest = DockerGuest { api, container };
    let argv = ["sh", "-c", KILL, "pocketenv-kill", &pid, &start].map(str::to_owned).to_vec();
    let work = async {
        let exec = guest.create_exec(argv, Some("0"), false).await?;
        let raw = guest.api.start_exec(&exec, false).await.map_err(|error| guest.unreachable(error))?;
        let mut frames = Frames::new(Stream::new(tokio::io::split(raw).0, false), false);
        while frames.next().await.map_err(|error| failed("killing a command", error))?.is_some() {}
        Ok::<(), GuestError>(())
    };
    match timeout(KILLING, work).await {
        Ok(Ok(())) => {}
        // A container that is gone or stopped took the command with it.
        Ok(Err(error)) => tracing::debug!(%error, "a command was not killed"),
        Err(_) => tracing::warn!(container = guest.container, "a command could not be killed in time"),
    }
}

/// Both ends of a terminal's stream, until they are taken.
struct Ends {
    reader: Option<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Option<WriteHalf<Raw>>,
}

/// A command on a terminal.
struct DockerPty {
    guest: DockerGuest,
    exec: String,
    leash: Leash,
    /// Locked by nobody: it only lets the whole be shared.
    ends: Mutex<Ends>,
    ended: Option<ExitStatus>,
}

#[async_trait]
impl Pty for DockerPty {
    fn reader(&mut self) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
        self.ends.get_mut().ok()?.reader.take()
    }

    fn writer(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        Some(Box::new(self.ends.get_mut().ok()?.writer.take()?))
    }

    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError> {
        self.guest.resize(&self.exec, size).await
    }

    async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        let mut pause = Duration::from_millis(10);
        loop {
            if let Some(status) = self.ended {
                return Ok(status);
            }
            self.ended = self.guest.status(&self.exec).await?;
            if self.ended.is_some() {
                self.leash.slip();
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
        }
    }
}
