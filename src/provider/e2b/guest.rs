//! The inside of a sandbox of E2B, through its agent `envd`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Method, Response};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;

use super::api::{
    COMPRESSED, END_OF_STREAM, EndOfStream, Frames, ProcessCall, ProcessConfig, ProcessInput, ProcessMessage,
    ProcessOutput, Selector, Size, StartProcess, Terminal, frame,
};
use crate::model::SandboxId;
use crate::provider::http::{Call, Http};
use crate::provider::relay;
use crate::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, Input, Output, ProviderError, Pty,
    PtyRequest,
};

/// Who runs commands that name nobody: what is put in place inside is the same everywhere, and needs root.
const USER: &str = "root";
/// One message of input.
const CHUNK: usize = 512 << 10;
/// Messages of input that wait.
const BACKLOG: usize = 16;
/// What a terminal holds back for its reader.
const BUFFER: usize = 256 << 10;
/// How long a stream may last at most.
const STREAM: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often an idle stream says that it is there, so that no proxy takes it for dead: in seconds.
const KEEPALIVE: &str = "50";
/// How long ending a command may take.
const KILL: Duration = Duration::from_secs(30);
/// How long a process that does not take its input may still run before that counts as a failure.
const LAST_INPUT: Duration = Duration::from_secs(10);
/// One sandbox.
#[derive(Clone)]
pub(super) struct E2bGuest {
    http: Http,
    id: SandboxId,
    running: bool,
}

impl E2bGuest {
    pub(super) fn new(http: Http, id: SandboxId, running: bool) -> Self {
        Self { http, id, running }
    }

    fn call(&self, method: &'static str) -> Call<'_> {
        self.http
            .call(Method::POST, &["process.Process", method])
            .header("e2b-sandbox-id", &self.id.0)
            .header("e2b-sandbox-port", "49983")
            .header("connect-protocol-version", "1")
    }

    fn unreachable(&self, error: ProviderError) -> GuestError {
        GuestError::Unreachable { message: format!("sandbox {}", self.id), source: Some(Box::new(error)) }
    }

    /// A call with one message, about the process of this tag.
    async fn ask(&self, method: &'static str, tag: &str, call: ProcessCall) -> Result<(), ProviderError> {
        let process = Some(Selector { tag: Some(tag.to_owned()), ..Selector::default() });
        let call = ProcessCall { process, ..call };
        self.call(method).json(&call).done("speak to a process").await
    }

    /// Starts a process; what it does comes from the stream.
    async fn start(
        &self,
        command: &Command,
        stdin: bool,
        terminal: Option<PtyRequest>,
    ) -> Result<(Running, Events), GuestError> {
        if !self.running {
            let message = format!("sandbox {} is paused", self.id);
            return Err(GuestError::Unreachable { message, source: None });
        }
        let mut argv = command.argv.iter().cloned();
        let tag = format!("pocketenv-{}", uuid::Uuid::now_v7().simple());
        let wanted = StartProcess {
            process: ProcessConfig {
                cmd: argv.next().unwrap_or_default(),
                args: argv.collect(),
                envs: command.env.clone(),
                cwd: command.cwd.clone(),
            },
            pty: terminal.map(of_size),
            tag: Some(tag.clone()),
            stdin: Some(stdin),
        };
        let user = BASE64_STANDARD.encode(format!("{}:", command.user.as_deref().unwrap_or(USER)));
        let call = self
            .call("Start")
            .timeout(STREAM)
            .header("content-type", "application/connect+json")
            .header("keepalive-ping-interval", KEEPALIVE)
            .header("authorization", &format!("Basic {user}"))
            .body(frame(0, &encoded(&wanted)?));
        // Whatever becomes of the answer, the process is ended if nobody waits for it any more.
        let running = Running { guest: self.clone(), tag, ended: false };
        let response = call.send("start a process").await.map_err(|error| self.unreachable(error))?;
        let mut events = Events { response, frames: Frames::default(), guest: self.clone() };
        match events.next(command).await? {
            Some(ProcessMessage { event }) if event.start.is_some() => Ok((running, events)),
            _ => Err(protocol("start a process", "it does not begin with its start")),
        }
    }

    async fn run(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let stdin = !matches!(io.stdin, Input::Null);
        let (mut running, mut events) = self.start(command, stdin, None).await?;
        let tag = running.tag.clone();
        let feed = async {
            match io.stdin {
                Input::Null => Ok(()),
                Input::Inherit => self.feed(&tag, &mut tokio::io::stdin()).await,
                Input::Reader(reader) => self.feed(&tag, reader).await,
            }
        };
        let (mut out, mut err) = (own(io.stdout, tokio::io::stdout()), own(io.stderr, tokio::io::stderr()));
        let follow = async {
            while let Some(ProcessMessage { event }) = events.next(command).await? {
                if let Some(end) = event.end {
                    return status(&end.status, end.exit_code, end.exited);
                }
                let ProcessOutput { stdout, stderr, .. } = event.data.unwrap_or_default();
                for (to, bytes) in [(&mut out, stdout), (&mut err, stderr)] {
                    if let (Some(to), Some(bytes)) = (to.as_mut(), bytes) {
                        to.write_all(&bytes).await.map_err(local("write output"))?;
                        to.flush().await.map_err(local("write output"))?;
                    }
                }
            }
            Err(self.broken_off())
        };
        tokio::pin!(feed, follow);
        let ended = tokio::select! {
            ended = &mut follow => ended,
            fed = &mut feed => match fed {
                Ok(()) => follow.await,
                Err(error) => Err(error),
            },
        };
        running.has_ended(ended.is_ok());
        ended
    }

    fn broken_off(&self) -> GuestError {
        GuestError::Unreachable {
            message: format!("sandbox {}: what a process does is not told to its end", self.id),
            source: None,
        }
    }

    /// Gives a process its input. One that does not want it any more is no error.
    async fn feed(&self, tag: &str, reader: &mut (dyn AsyncRead + Send + Unpin)) -> Result<(), GuestError> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = reader.read(&mut buffer).await.map_err(local("read input"))?;
            let sent = match read {
                0 => self.ask("CloseStdin", tag, ProcessCall::default()).await,
                read => {
                    let input =
                        ProcessInput { stdin: Some(buffer[..read].to_vec()), ..ProcessInput::default() };
                    self.ask("SendInput", tag, ProcessCall { input: Some(input), ..ProcessCall::default() })
                        .await
                }
            };
            match sent {
                Ok(()) if read > 0 => {}
                Ok(()) => return Ok(()),
                Err(ProviderError::NotFound { .. } | ProviderError::Invalid { .. }) => return Ok(()),
                // So the agent answers when the process has closed its input, and so a proxy does when it is in trouble: the first ends soon.
                Err(error @ ProviderError::Transient { source: None, .. }) => {
                    tokio::time::sleep(LAST_INPUT).await;
                    return Err(self.unreachable(error));
                }
                Err(error) => return Err(self.unreachable(error)),
            }
        }
    }
}

fn of_size(size: PtyRequest) -> Terminal {
    Terminal { size: Some(Size { cols: size.cols, rows: size.rows }) }
}

fn encoded<T: Serialize>(message: &T) -> Result<Vec<u8>, GuestError> {
    serde_json::to_vec(message).map_err(|error| local("write a message")(error.into()))
}

fn local(what: &'static str) -> impl Fn(io::Error) -> GuestError {
    move |source| GuestError::Io { what: format!("cannot {what}"), source }
}

fn protocol(what: &str, message: impl Into<String>) -> GuestError {
    GuestError::Protocol { what: what.to_owned(), message: message.into() }
}

type Sink<'a> = Box<dyn AsyncWrite + Send + Unpin + 'a>;

/// Where an output goes; nowhere is `None`.
fn own<'a>(output: Output<'a>, inherited: impl AsyncWrite + Send + Unpin + 'a) -> Option<Sink<'a>> {
    match output {
        Output::Null => None,
        Output::Inherit => Some(Box::new(inherited)),
        Output::Writer(writer) => Some(Box::new(writer)),
    }
}

/// How a process ended, from the words of the agent.
fn status(words: &str, code: i32, exited: bool) -> Result<ExitStatus, GuestError> {
    if exited {
        return Ok(ExitStatus::Code(code));
    }
    let name = words.strip_prefix("signal: ").unwrap_or_default().trim_end_matches(" (core dumped)");
    let signal = match name {
        "hangup" => 1,
        "interrupt" => 2,
        "quit" => 3,
        "illegal instruction" => 4,
        "trace/breakpoint trap" => 5,
        "aborted" => 6,
        "bus error" => 7,
        "floating point exception" => 8,
        "killed" => 9,
        "user defined signal 1" => 10,
        "segmentation fault" => 11,
        "user defined signal 2" => 12,
        "broken pipe" => 13,
        "alarm clock" => 14,
        "terminated" => 15,
        other => match other.strip_prefix("signal ").and_then(|number| number.parse().ok()) {
            Some(number) => number,
            None => return Err(protocol("wait for a process", format!("it ended with `{words}`"))),
        },
    };
    Ok(ExitStatus::Signal(signal))
}

/// What a process does, as it comes.
struct Events {
    response: Response,
    frames: Frames,
    guest: E2bGuest,
}

impl Events {
    /// The next message; `None` at the end.
    async fn next(&mut self, command: &Command) -> Result<Option<ProcessMessage>, GuestError> {
        let what = "follow a process";
        loop {
            match self.frames.take().map_err(|error| protocol(what, error.to_string()))? {
                Some((flag, message)) if flag & END_OF_STREAM != 0 => {
                    let end: EndOfStream = serde_json::from_slice(&message)
                        .map_err(|error| protocol(what, error.to_string()))?;
                    return match end.error {
                        None => Ok(None),
                        Some(error) => Err(self.failed(command, &error.code, error.message)),
                    };
                }
                Some((flag, _)) if flag & COMPRESSED != 0 => {
                    return Err(protocol(what, "a compressed message, which was not asked for"));
                }
                Some((_, message)) => {
                    return serde_json::from_slice(&message)
                        .map(Some)
                        .map_err(|error| protocol(what, error.to_string()));
                }
                None => match self.response.chunk().await {
                    Ok(Some(bytes)) => self.frames.push(&bytes),
                    Ok(None) => return Ok(None),
                    Err(error) => {
                        let lost = ProviderError::transient("the connection was lost", error.without_url());
                        return Err(self.guest.unreachable(lost));
                    }
                },
            }
        }
    }

    fn failed(&self, command: &Command, code: &str, message: String) -> GuestError {
        match code {
            "invalid_argument" | "unauthenticated" | "not_found" | "permission_denied" => {
                GuestError::NotExecutable { program: command.program().to_owned(), message }
            }
            _ => {
                let source =
                    ProviderError::Transient { message: format!("{message} ({code})"), source: None };
                self.guest.unreachable(source)
            }
        }
    }
}

/// A process that is ended unless it has ended.
struct Running {
    guest: E2bGuest,
    tag: String,
    ended: bool,
}

impl Running {
    fn has_ended(&mut self, ended: bool) {
        self.ended = ended;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (guest, tag) = (self.guest.clone(), std::mem::take(&mut self.tag));
        // Without a runtime the program itself ends, and nothing can be said any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let signal = Some("SIGNAL_SIGKILL".into());
            let kill = guest.ask("SendSignal", &tag, ProcessCall { signal, ..ProcessCall::default() });
            // One that is not there any more has ended.
            let _ = tokio::time::timeout(KILL, kill).await;
        });
    }
}

#[async_trait]
impl Guest for E2bGuest {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        command.limited(self.run(command, io)).await
    }

    async fn pty(&self, command: &Command, size: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        let mut terminal = command.clone();
        terminal.env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
        let (mut running, mut events) = self.start(&terminal, false, Some(size)).await?;
        let (screen, mut shown) = tokio::io::duplex(BUFFER);
        let (sender, mut keys) = mpsc::channel::<Vec<u8>>(BACKLOG);
        let (told, end) = oneshot::channel();
        let tag = running.tag.clone();
        let (guest, typed) = (self.clone(), tag.clone());
        let typing = tokio::spawn(async move {
            while let Some(data) = keys.recv().await {
                let input = ProcessInput { pty: Some(data), ..ProcessInput::default() };
                let call = ProcessCall { input: Some(input), ..ProcessCall::default() };
                if guest.ask("SendInput", &typed, call).await.is_err() {
                    return;
                }
            }
        });
        let guest = self.clone();
        let following = tokio::spawn(async move {
            let ended = loop {
                match events.next(&terminal).await {
                    Ok(Some(ProcessMessage { event })) => {
                        if let Some(end) = event.end {
                            break status(&end.status, end.exit_code, end.exited);
                        }
                        let data = event.data.unwrap_or_default().pty.unwrap_or_default();
                        // Nobody may look any more; the process goes on all the same.
                        let _ = shown.write_all(&data).await;
                    }
                    Ok(None) => break Err(guest.broken_off()),
                    Err(error) => break Err(error),
                }
            };
            running.has_ended(ended.is_ok());
            drop(shown);
            typing.abort();
            let _ = told.send(ended);
        });
        Ok(Box::new(E2bPty {
            guest: self.clone(),
            tag,
            reader: Some(screen),
            writer: Some(Keys(PollSender::new(sender))),
            end: Some(end),
            following,
        }))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        relay::dial(self.clone(), port).await
    }
}

/// A command on a terminal.
struct E2bPty {
    guest: E2bGuest,
    tag: String,
    reader: Option<DuplexStream>,
    writer: Option<Keys>,
    end: Option<oneshot::Receiver<Result<ExitStatus, GuestError>>>,
    following: tokio::task::JoinHandle<()>,
}

impl Drop for E2bPty {
    fn drop(&mut self) {
        // With it goes the process, unless it has ended.
        self.following.abort();
    }
}

#[async_trait]
impl Pty for E2bPty {
    fn reader(&mut self) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
        Some(Box::new(self.reader.take()?))
    }

    fn writer(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        Some(Box::new(self.writer.take()?))
    }

    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError> {
        let call = ProcessCall { pty: Some(of_size(size)), ..ProcessCall::default() };
        self.guest.ask("Update", &self.tag, call).await.map_err(|error| self.guest.unreachable(error))
    }

    async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        let Some(end) = &mut self.end else {
            return Err(protocol("wait for a terminal", "it was waited for already"));
        };
        let ended = end.await.unwrap_or_else(|_| Err(self.guest.broken_off()));
        self.end = None;
        ended
    }
}

/// What is typed, a message at a time.
struct Keys(PollSender<Vec<u8>>);

impl AsyncWrite for Keys {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.0.poll_reserve(cx)).map_err(|_| closed())?;
        let taken = data.len().min(CHUNK);
        self.0.send_item(data[..taken].to_vec()).map_err(|_| closed())?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(status("exit status 3", 3, true).unwrap(), ExitStatus::Code(3));
        assert_eq!(status("signal: killed", -1, false).unwrap(), ExitStatus::Signal(9));
        assert_eq!(
            status("signal: segmentation fault (core dumped)", -1, false).unwrap(),
            ExitStatus::Signal(11)
        );
        assert_eq!(status("signal: signal 34", -1, false).unwrap(), ExitStatus::Signal(34));
        assert!(status("", 0, false).is_err());
    }
}
