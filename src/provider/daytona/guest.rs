//! The inside of a sandbox of Daytona, through its daemon (the "toolbox").
//!
//! A command runs in a session of its own, of which the daemon tells both outputs as they are written; a terminal is a connection of its own. Neither
//! carries bytes as they are: a session takes and gives lines of text, and a terminal begins with a person's shell. So both are first given a script
//! (`sh/begin.sh`, the same for every command), which takes another (`sh/link.sh`) that starts the command.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::StreamExt as _;
use futures::stream::SplitStream;
use reqwest::{Method, Upgraded};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::api;
use crate::model::SandboxId;
use crate::provider::http::{Call, Http, Socket};
use crate::provider::relay;
use crate::provider::script::{
    Ending, Frames, KILL, Kind, LINE_LIMIT, Leash, Outputs, Process, Raw, Resize, Source, argv, header, mark,
    shown, words,
};
use crate::provider::socket::{Sender, broken};
use crate::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, ProviderError, Pty, PtyRequest,
};

/// What the daemon runs, and a terminal's shell is typed: no word of it depends on anything.
const BEGIN: &str = concat!("sh -c '", include_str!("sh/begin.sh"), "' pocketenv");
const LINK: &str = include_str!("sh/link.sh");
/// Kills the process that the environment names.
const KILLER: &str = r#"sh -c "$POCKETENV_KILL" pocketenv-kill "$POCKETENV_PID" "$POCKETENV_START""#;
/// How long beginning a command may take.
const BEGINNING: Duration = Duration::from_secs(60);
/// How long killing a command, or ending its session, may take.
const KILLING: Duration = Duration::from_secs(10);
/// How long a stream may last, and a command may leave its input unread.
const STREAM: Duration = Duration::from_secs(7 * 24 * 3600);
/// Asks that the end of a terminal is told as a message.
const EXIT_CONTROL: &str = "X-Daytona-Pty-Exit-Control";
/// What begins a piece of standard output, and of standard error, in a stream of both: three of them.
const OUT: u8 = 1;
const ERR: u8 = 2;

/// One sandbox.
#[derive(Clone)]
pub(super) struct DaytonaGuest {
    http: Http,
    id: SandboxId,
    running: bool,
}

impl DaytonaGuest {
    pub(super) fn new(http: Http, id: SandboxId, running: bool) -> Self {
        Self { http, id, running }
    }

    fn call(&self, method: Method, path: &[&str]) -> Call<'_> {
        self.http.call(method, &[&[self.id.0.as_str(), "process"], path].concat())
    }

    fn place(&self) -> String {
        format!("sandbox {}", self.id)
    }

    fn unreachable(&self, error: ProviderError) -> GuestError {
        GuestError::Unreachable { message: self.place(), source: Some(Box::new(error)) }
    }

    fn lost(&self, message: &str) -> GuestError {
        GuestError::Unreachable { message: format!("{}: {message}", self.place()), source: None }
    }

    fn check(&self) -> Result<(), GuestError> {
        if self.running { Ok(()) } else { Err(self.lost("it does not run")) }
    }

    /// Waits for something that should not take long.
    async fn soon<T>(&self, work: impl Future<Output = Result<T, GuestError>>) -> Result<T, GuestError> {
        timeout(BEGINNING, work).await.unwrap_or_else(|_| Err(self.lost("a command does not begin")))
    }

    /// What a script that has begun says: that it takes a command, or what it lacks. `None` if it is something else.
    fn begun(line: &str) -> Option<Result<(), GuestError>> {
        let said = line.strip_prefix("pocketenv-")?;
        match said.strip_prefix("lacks ") {
            Some(tool) => {
                let message = format!("running commands at Daytona needs `{}` in the image", shown(tool));
                Some(Err(GuestError::Unsupported(message)))
            }
            None => (said == "ready").then_some(Ok(())),
        }
    }

    /// Runs a command in a session, which is there.
    async fn run(&self, session: &str, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let header = header(command)?;
        let mark = mark();
        let begin = async {
            let call = self.call(Method::POST, &["session"]).json(&api::NewSession { session_id: session });
            call.done("open a session").await?;
            let asked = api::SessionCommand { command: BEGIN, run_async: true, suppress_input_echo: true };
            let call = self.call(Method::POST, &["session", session, "exec"]).json(&asked);
            let begun: api::Begun = call.read("run a command").await?;
            let logs = ["session", session, "command", &begun.cmd_id, "logs"];
            let call = self.call(Method::GET, &logs).query(&[("follow", "true")]).timeout(STREAM);
            Ok((begun.cmd_id.clone(), call.websocket("follow a command", &[]).await?))
        };
        let (id, socket) = self.soon(async { begin.await.map_err(|error| self.unreachable(error)) }).await?;
        let (sink, stream) = socket.split();
        let (fault, faults) = watch::channel(None);
        let mut source = Session {
            stream,
            lines: Lines::default(),
            pieces: VecDeque::new(),
            outputs: Outputs::new(Some(mark.clone())),
            faults,
            _sender: Sender::new(sink),
        };
        self.soon(async { source.ready().await.map_err(|error| self.broken(error))? }).await?;
        let input = Input { guest: self.clone(), session: session.to_owned(), command: id, fault };
        let given = input.post(&linked(command, None, &mark)).await;
        given.map_err(|error| self.unreachable(error))?;
        let leash = |pid: &str, start: &str| self.leash(pid, start);
        let early = |output: &Frames<Session>| self.early(command, &output.said);
        let frames = Frames::new(source, false);
        let started = Process::start(command, &header, false, (frames, input), leash, early);
        self.soon(started).await?.run(&self.place(), io).await
    }

    fn broken(&self, error: io::Error) -> GuestError {
        GuestError::Unreachable { message: self.place(), source: Some(Box::new(error)) }
    }

    fn early(&self, command: &Command, said: &[u8]) -> GuestError {
        let message = shown(&String::from_utf8_lossy(said));
        match message.is_empty() {
            true => self.lost("a command ended before it could start"),
            false => GuestError::NotExecutable { program: command.program().to_owned(), message },
        }
    }

    /// Kills a command when it is let go of.
    fn leash(&self, pid: &str, start: &str) -> Leash {
        let (guest, pid, start) = (self.clone(), pid.to_owned(), start.to_owned());
        Leash::new(move || Box::pin(async move { guest.kill(&pid, &start).await }))
    }

    /// On a connection of its own: that of the guest belongs to the runtime that made it.
    async fn kill(&self, pid: &str, start: &str) {
        let work = async {
            let http = self.http.anew()?;
            let envs = BTreeMap::from([
                ("POCKETENV_KILL", KILL),
                ("POCKETENV_PID", pid),
                ("POCKETENV_START", start),
            ]);
            let asked = api::Execute { command: KILLER, envs, timeout: KILLING.as_secs() };
            let guest = Self { http, ..self.clone() };
            guest.call(Method::POST, &["execute"]).json(&asked).done("kill a command").await
        };
        self.attempted("killed", timeout(KILLING, work).await);
    }

    /// Ends a session when it is let go of.
    fn session(&self, session: &str) -> Leash {
        let (guest, session) = (self.clone(), session.to_owned());
        Leash::new(move || {
            Box::pin(async move {
                match guest.http.anew() {
                    Ok(http) => Self { http, ..guest }.close(&session).await,
                    Err(error) => tracing::debug!(%error, "a session was not ended"),
                }
            })
        })
    }

    /// Ends a session.
    async fn close(&self, session: &str) {
        let call = self.call(Method::DELETE, &["session", session]);
        self.attempted("let go of", timeout(KILLING, call.done("end a session")).await);
    }

    /// A sandbox that is gone or stopped took the command with it.
    fn attempted(&self, what: &str, ended: Result<Result<(), ProviderError>, tokio::time::error::Elapsed>) {
        match ended {
            Ok(Ok(()) | Err(ProviderError::NotFound { .. })) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a command was not {what}"),
            Err(_) => tracing::warn!(sandbox = %self.id, "a command could not be {what} in time"),
        }
    }

    /// Begins a command on a terminal.
    async fn on_terminal(
        &self,
        id: &str,
        command: &Command,
        size: PtyRequest,
    ) -> Result<Process<Screen, Keys>, GuestError> {
        let header = header(command)?;
        let (cols, rows) = (size.cols.to_string(), size.rows.to_string());
        let query = [("id", id), ("cols", &cols), ("rows", &rows), ("cwd", "/")];
        let call = self.call(Method::GET, &["pty", "create-connect"]).query(&query).timeout(STREAM);
        let socket = call.websocket("open a terminal", &[EXIT_CONTROL]).await;
        let (sink, stream) = socket.map_err(|error| self.unreachable(error))?.split();
        let keys = Keys(Sender::new(sink));
        let mut frames = Frames::new(Screen { stream, outputs: Outputs::new(None), end: None }, true);
        let broken = |error| self.broken(error);
        keys.send(format!(" exec {BEGIN}\n").as_bytes()).await.map_err(broken)?;
        loop {
            match frames.line().await.map_err(broken)? {
                // Before it stands whatever the shell shows of itself, and of what is typed.
                Some(line) => match Self::begun(&line) {
                    Some(begun) => break begun?,
                    None => continue,
                },
                None => return Err(self.early(command, &frames.said)),
            }
        }
        let linked = linked(command, Some(size), &mark());
        keys.send(linked.as_bytes()).await.map_err(broken)?;
        let leash = |pid: &str, start: &str| self.leash(pid, start);
        let early = |output: &Frames<Screen>| self.early(command, &output.said);
        Process::start(command, &header, true, (frames, keys), leash, early).await
    }
}

/// The script that starts a command, and the command's words.
fn linked(command: &Command, tty: Option<PtyRequest>, mark: &str) -> String {
    message(LINK.as_bytes()) + &message(&words(&argv(command, tty, mark)))
}

/// Bytes as the scripts take them: a line with the length, and base64 in a line.
fn message(bytes: &[u8]) -> String {
    let mut text = BASE64_STANDARD.encode(bytes);
    text.push('\n');
    format!("{}\n{text}", text.len())
}

/// What goes to a command of a session.
#[derive(Clone)]
struct Input {
    guest: DaytonaGuest,
    session: String,
    command: String,
    /// Why the command waits for input that will not come.
    fault: watch::Sender<Option<String>>,
}

impl Input {
    async fn post(&self, data: &str) -> Result<(), ProviderError> {
        let path = ["session", &self.session, "command", &self.command, "input"];
        let call = self.guest.call(Method::POST, &path).timeout(STREAM).json(&api::Input { data });
        call.done("give a command its input").await
    }
}

impl Raw for Input {
    async fn send(&self, data: &[u8]) -> io::Result<()> {
        self.post(&message(data)).await.map_err(|error| {
            // One that has ended wants none; of anything else it is not known what has arrived.
            if !matches!(error, ProviderError::NotFound { .. } | ProviderError::Invalid { .. }) {
                self.fault.send_replace(Some(error.to_string()));
            }
            io::Error::other(error)
        })
    }
}

/// Lines of both outputs, out of a stream that says before each piece which one it is of.
#[derive(Default)]
struct Lines {
    err: bool,
    out: Vec<u8>,
    errors: Vec<u8>,
}

impl Lines {
    /// Takes what arrives; gives every line that is whole.
    fn push(&mut self, mut data: &[u8]) -> io::Result<Vec<(Kind, Vec<u8>)>> {
        while !data.is_empty() {
            let end = memchr::memchr2(OUT, ERR, data).unwrap_or(data.len());
            let (text, rest) = data.split_at(end);
            if self.err { &mut self.errors } else { &mut self.out }.extend_from_slice(text);
            if let Some(first) = rest.first() {
                self.err = *first == ERR;
            }
            data = rest.get(1..).unwrap_or_default();
        }
        let mut whole = Vec::new();
        for (kind, held) in [(Kind::Out, &mut self.out), (Kind::Err, &mut self.errors)] {
            let end = memchr::memrchr(b'\n', held).map_or(0, |at| at + 1);
            if held.len() - end > LINE_LIMIT {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            if end > 0 {
                let rest = held.split_off(end);
                whole.push((kind, std::mem::replace(held, rest)));
            }
        }
        Ok(whole)
    }
}

/// Lines of base64, each by itself.
fn decoded(lines: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(lines.len() / 4 * 3);
    for line in lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        BASE64_STANDARD.decode_vec(line, &mut bytes).map_err(|_| {
            let line = shown(&String::from_utf8_lossy(line));
            io::Error::new(io::ErrorKind::InvalidData, format!("a command says `{line}` and not base64"))
        })?;
    }
    Ok(bytes)
}

/// What a command of a session writes.
struct Session {
    stream: SplitStream<Socket>,
    lines: Lines,
    pieces: VecDeque<(Kind, Vec<u8>)>,
    outputs: Outputs,
    faults: watch::Receiver<Option<String>>,
    /// Keeps the connection alive.
    _sender: Sender<Upgraded>,
}

impl Session {
    /// The next whole lines; false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        let fault = async {
            let fault = self.faults.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
            match fault {
                Some(fault) => fault,
                // Nothing is sent any more.
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = self.stream.next() => message,
            fault = fault => return Err(io::Error::other(fault)),
        };
        match message {
            Some(Ok(Message::Binary(data))) => self.pieces.extend(self.lines.push(&data)?),
            Some(Ok(Message::Text(text))) => self.pieces.extend(self.lines.push(text.as_bytes())?),
            Some(Ok(Message::Close(_))) => return Ok(false),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(true)
    }

    /// Waits until the script inside takes a command.
    async fn ready(&mut self) -> io::Result<Result<(), GuestError>> {
        let mut said = String::new();
        loop {
            while let Some((kind, lines)) = self.pieces.pop_front() {
                let lines = String::from_utf8_lossy(&lines).into_owned();
                for line in lines.lines() {
                    match DaytonaGuest::begun(line).filter(|_| kind == Kind::Out) {
                        Some(begun) => return Ok(begun),
                        None => said.extend(line.chars().take(LINE_LIMIT.saturating_sub(said.len()))),
                    }
                }
            }
            if !self.more().await? {
                return Err(io::Error::other(format!("no command can be begun: {}", shown(&said))));
            }
        }
    }
}

impl Ending for Session {
    fn status(&self) -> Result<ExitStatus, String> {
        // That the stream has ended says nothing of the command.
        self.outputs.code().map(ExitStatus::Code).ok_or_else(|| "a command was cut off".to_owned())
    }
}

impl Source for Session {
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<Option<(Kind, usize)>> {
        loop {
            if let Some(taken) = self.outputs.take(buffer) {
                return Ok(Some(taken));
            }
            if self.outputs.ended() {
                return Ok(None);
            }
            match self.pieces.pop_front() {
                Some((kind, lines)) => self.outputs.push(kind, &decoded(&lines)?),
                None if !self.more().await? => return Ok(None),
                None => {}
            }
        }
    }
}

/// What goes to a terminal.
#[derive(Clone)]
struct Keys(Sender<Upgraded>);

impl Raw for Keys {
    async fn send(&self, data: &[u8]) -> io::Result<()> {
        self.0.send(data.to_vec()).await
    }
}

/// What a terminal shows.
struct Screen {
    stream: SplitStream<Socket>,
    outputs: Outputs,
    /// How it ended, as the daemon tells.
    end: Option<Result<i32, String>>,
}

impl Screen {
    fn told(&mut self, control: &api::Control) {
        match (control.status.as_str(), control.exit_code) {
            ("exited", Some(code)) => self.end = Some(Ok(code)),
            ("error", _) => self.end = Some(Err(shown(control.error.as_deref().unwrap_or("it failed")))),
            _ => {}
        }
    }
}

impl Ending for Screen {
    fn status(&self) -> Result<ExitStatus, String> {
        match &self.end {
            Some(Ok(code)) => Ok(ExitStatus::Code(*code)),
            Some(Err(why)) => Err(why.clone()),
            None => Err("a terminal was cut off".to_owned()),
        }
    }
}

impl Source for Screen {
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<Option<(Kind, usize)>> {
        loop {
            if let Some(taken) = self.outputs.take(buffer) {
                return Ok(Some(taken));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            match self.stream.next().await {
                Some(Ok(Message::Binary(data))) => self.outputs.push(Kind::Out, &data),
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(control) => self.told(&control),
                    Err(_) => self.outputs.push(Kind::Out, text.as_bytes()),
                },
                // Older daemons tell the end here alone.
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
                    self.end = Some(match serde_json::from_str::<api::Closed>(&reason) {
                        Ok(closed) => Ok(closed.exit_code),
                        Err(_) => Err(format!("its terminal was closed: {}", shown(&reason))),
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
                None => return Ok(None),
            }
        }
    }
}

/// The size of a terminal.
struct Size {
    guest: DaytonaGuest,
    id: String,
}

#[async_trait]
impl Resize for Size {
    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError> {
        let size = api::Size { cols: size.cols, rows: size.rows };
        let call = self.guest.call(Method::POST, &["pty", &self.id, "resize"]).json(&size);
        call.done("resize a terminal").await.map_err(|error| self.guest.unreachable(error))
    }
}

#[async_trait]
impl Guest for DaytonaGuest {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        self.check()?;
        let id = format!("pocketenv-{}", uuid::Uuid::now_v7().simple());
        // Whatever becomes of the answers, the session is ended if nobody waits for it any more.
        let mut session = self.session(&id);
        let ended = command.limited(self.run(&id, command, io)).await;
        session.slip();
        self.close(&id).await;
        ended
    }

    async fn pty(&self, command: &Command, size: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        self.check()?;
        let id = format!("pocketenv-{}", uuid::Uuid::now_v7().simple());
        let process = self.soon(self.on_terminal(&id, command, size)).await?;
        Ok(Box::new(process.terminal(self.place(), Size { guest: self.clone(), id })))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        relay::dial(self.clone(), port).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_first_is_one_word_of_a_shell() {
        let begin = include_str!("sh/begin.sh");
        assert!(!begin.contains(['\'', '\t', '!']), "to a person's shell these mean something");
        assert!(BEGIN.len() < 4000, "a terminal takes no longer line");
    }

    #[test]
    fn outputs_are_told_apart_however_they_are_cut() {
        let stream = b"\x01\x01\x01b25l\nZGF0\x02\x02\x02ZXJy\n\x01\x01\x01YQ==\nYg==\n";
        for size in 1..=stream.len() {
            let (mut lines, mut out, mut err) = (Lines::default(), Vec::new(), Vec::new());
            for piece in stream.chunks(size) {
                for (kind, whole) in lines.push(piece).unwrap() {
                    if kind == Kind::Out { &mut out } else { &mut err }.extend(decoded(&whole).unwrap());
                }
            }
            assert_eq!(
                (out.as_slice(), err.as_slice()),
                (&b"onedatab"[..], &b"err"[..]),
                "in pieces of {size}"
            );
        }
        assert!(decoded(b"sh: not found\n").is_err());
    }

    #[test]
    fn a_message_tells_its_length() {
        assert_eq!(message(b"word"), "9\nd29yZA==\n");
    }
}
