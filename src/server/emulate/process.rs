//! Processes inside a sandbox that outlive the call that started them.
//!
//! Each is one [`Guest::exec`] or [`Guest::pty`] under way in a task of ours: it ends with this program. Every process begins as a constant script
//! that says its id and becomes the program, so that ids are those of the sandbox.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, Input, Output, Pty, PtyRequest, capture,
};

/// One read of a process's output.
const CHUNK: usize = 32 * 1024;
/// Pieces of output that wait for a listener before the process has to wait.
const BACKLOG: usize = 64;
/// The longest first line: a process id.
const FIRST_LINE: usize = 32;
/// How long the script that begins every process may take to say the id.
const START: Duration = Duration::from_secs(30);
/// How long the last output of a process on a terminal may take to arrive.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// How long sending a signal may take.
const SIGNAL: Duration = Duration::from_secs(10);

/// What to start.
pub(super) struct Start {
    /// The program, with the working directory that was asked for.
    pub command: Command,
    /// Where it runs if none was asked for.
    pub home: String,
    /// On a terminal of this size.
    pub terminal: Option<PtyRequest>,
    /// Whether it reads what is sent to it, else nothing.
    pub stdin: bool,
    /// A name to find it by.
    pub tag: Option<String>,
}

/// Why it could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The working directory.
    #[error("cwd '{0}' does not exist")]
    NoDirectory(String),
    /// The program.
    #[error("'{0}' is not there or cannot be executed")]
    NoProgram(String),
    /// The sandbox.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// What a process does.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// It wrote to its standard output, or to its terminal.
    Out(Bytes),
    /// It wrote to its standard error.
    Err(Bytes),
    /// It ended; the last event.
    End(End),
}

/// How a process ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// By itself, or by a signal.
    Status(ExitStatus),
    /// Its time was over, and it was killed.
    TimedOut,
    /// The sandbox was lost.
    Lost(String),
}

/// Why a process cannot be given input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InputError {
    /// It takes none, or no more.
    #[error("stdin not enabled or closed")]
    Closed,
    /// It has a terminal, or has none.
    #[error("input of the wrong kind: a process on a terminal takes `pty`, another one `stdin`")]
    Kind,
}

/// A running process.
pub(super) struct Process {
    /// Its id in the sandbox.
    pub pid: u32,
    /// A name to find it by.
    pub tag: Option<String>,
    /// What it is, as it was asked for.
    pub command: Command,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// When it was started.
    pub started: jiff::Timestamp,
    size: Mutex<Option<PtyRequest>>,
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    sizes: mpsc::Sender<PtyRequest>,
    listeners: Listeners,
    kill: CancellationToken,
    lost: AtomicBool,
}

type Listeners = Arc<Mutex<Vec<mpsc::Sender<Event>>>>;

impl Process {
    /// Gives it input.
    pub async fn send(&self, data: Bytes, terminal: bool) -> Result<(), InputError> {
        if terminal != self.terminal {
            return Err(InputError::Kind);
        }
        let input = lock(&self.input).clone().ok_or(InputError::Closed)?;
        input.send(data).await.map_err(|_| InputError::Closed)
    }

    /// Ends its input.
    pub fn close_input(&self) {
        lock(&self.input).take();
    }

    /// Changes the size of its terminal.
    pub async fn resize(&self, size: PtyRequest) -> Result<(), InputError> {
        if !self.terminal {
            return Err(InputError::Kind);
        }
        self.sizes.send(size).await.map_err(|_| InputError::Closed)?;
        *lock(&self.size) = Some(size);
        Ok(())
    }

    /// The size of its terminal, if it has one.
    pub fn size(&self) -> Option<PtyRequest> {
        *lock(&self.size)
    }

    /// What it does from now on.
    pub fn listen(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        lock(&self.listeners).push(sender);
        receiver
    }

    /// Kills it, and what it started.
    pub fn kill(&self) {
        self.kill.cancel();
    }

    /// Asks it, and what it started, to end.
    pub async fn terminate(&self, guest: &dyn Guest) -> Result<(), GuestError> {
        let script = include_str!("sh/signal.sh");
        let mut command =
            Command::new(["sh", "-c", script, "pocketenv-signal", "TERM", &self.pid.to_string()]);
        command.cwd = Some("/".to_owned());
        command.timeout = Some(SIGNAL);
        // That it has ended meanwhile is what was wanted.
        capture(guest, &command, &[], 1024).await.map(drop)
    }
}

/// The processes of one sandbox.
#[derive(Default)]
pub(super) struct Processes(Arc<Mutex<BTreeMap<u32, Arc<Process>>>>);

impl Processes {
    /// One by its id.
    pub fn get(&self, pid: u32) -> Option<Arc<Process>> {
        lock(&self.0).get(&pid).cloned()
    }

    /// One by its tag.
    pub fn tagged(&self, tag: &str) -> Option<Arc<Process>> {
        lock(&self.0).values().find(|process| process.tag.as_deref() == Some(tag)).cloned()
    }

    /// All.
    pub fn list(&self) -> Vec<Arc<Process>> {
        lock(&self.0).values().cloned().collect()
    }

    /// Ends all, because the sandbox ends.
    pub fn clear(&self) {
        for process in std::mem::take(&mut *lock(&self.0)).into_values() {
            process.lost.store(true, Ordering::Relaxed);
            process.kill();
        }
    }

    /// Starts one. What it does comes from the receiver, all of it.
    pub async fn start(
        &self,
        guest: Arc<dyn Guest>,
        start: Start,
    ) -> Result<(Arc<Process>, mpsc::Receiver<Event>), StartError> {
        let Start { command, home, terminal, stdin, tag } = start;
        // A home may be missing; a directory that was asked for may not.
        let (dir, other) = match &command.cwd {
            Some(dir) => (dir.clone(), ""),
            None => (home, "/"),
        };
        let program = command.program().to_owned();
        let mut script =
            Command::new(["sh", "-c", include_str!("sh/start.sh"), "pocketenv-start", &dir, other]);
        script.argv.extend(command.argv.iter().cloned());
        script.env.clone_from(&command.env);
        script.user.clone_from(&command.user);
        script.cwd = Some("/".to_owned());

        let (input, inputs) = mpsc::channel(BACKLOG);
        let (sizes, new_sizes) = mpsc::channel(BACKLOG);
        let (listener, events) = mpsc::channel(BACKLOG);
        let listeners: Listeners = Arc::new(Mutex::new(vec![listener]));
        let (first, told) = oneshot::channel();
        let (begin, begun) = oneshot::channel::<()>();
        let kill = CancellationToken::new();
        let run = Run {
            guest,
            script,
            first: Some(first),
            begun: Some(begun),
            listeners: listeners.clone(),
            kill: kill.clone(),
        };
        let timeout = command.timeout;
        let inputs = (stdin || terminal.is_some()).then_some(inputs);
        let processes = self.0.clone();
        let task = tokio::spawn(async move {
            let listeners = run.listeners.clone();
            let end = run.carry_out(inputs, terminal, new_sizes, timeout).await;
            (listeners, end)
        });
        let said = match tokio::time::timeout(START, told).await {
            Ok(Ok(line)) => line,
            // It ended, or was not run at all, before it said anything.
            Ok(Err(_)) => match task.await {
                Ok((_, Err(error))) => return Err(error.into()),
                _ => return Err(StartError::NoProgram("sh".to_owned())),
            },
            Err(_) => {
                kill.cancel();
                return Err(GuestError::TimedOut { program, limit: START }.into());
            }
        };
        let pid = match said.as_str() {
            "!dir" => return Err(StartError::NoDirectory(dir)),
            "!program" => return Err(StartError::NoProgram(program)),
            pid => pid.parse().map_err(|_| GuestError::Protocol {
                what: "start a process".to_owned(),
                message: format!("`{pid}` is no process id"),
            })?,
        };
        let process = Arc::new(Process {
            pid,
            tag,
            command,
            terminal: terminal.is_some(),
            started: jiff::Timestamp::now(),
            size: Mutex::new(terminal),
            input: Mutex::new((stdin || terminal.is_some()).then_some(input)),
            sizes,
            listeners,
            kill,
            lost: AtomicBool::new(false),
        });
        lock(&self.0).insert(pid, process.clone());
        let ended = process.clone();
        tokio::spawn(async move {
            let end = match task.await {
                _ if ended.lost.load(Ordering::Relaxed) => End::Lost("the sandbox was stopped".to_owned()),
                Ok((_, Ok(status))) => End::Status(status),
                Ok((_, Err(GuestError::TimedOut { .. }))) => End::TimedOut,
                Ok((_, Err(error))) => End::Lost(error.to_string()),
                Err(error) => End::Lost(error.to_string()),
            };
            // Gone from the list before its end is told: who hears of it does not find it any more.
            {
                let mut processes = lock(&processes);
                if processes.get(&pid).is_some_and(|found| Arc::ptr_eq(found, &ended)) {
                    processes.remove(&pid);
                }
            }
            publish(&ended.listeners, Event::End(end)).await;
            lock(&ended.listeners).clear();
        });
        // Its output waits until it can be found, so that whoever reads it can answer it.
        let _ = begin.send(());
        Ok((process, events))
    }
}

/// Gives an event to everybody who listens; who does not any more is forgotten.
async fn publish(listeners: &Listeners, event: Event) {
    let all = lock(listeners).clone();
    for listener in all {
        if listener.send(event.clone()).await.is_err() {
            lock(listeners).retain(|other| !other.same_channel(&listener));
        }
    }
}

/// One process, from its beginning to its end.
struct Run {
    guest: Arc<dyn Guest>,
    script: Command,
    first: Option<oneshot::Sender<String>>,
    begun: Option<oneshot::Receiver<()>>,
    listeners: Listeners,
    kill: CancellationToken,
}

impl Run {
    async fn carry_out(
        self,
        inputs: Option<mpsc::Receiver<Bytes>>,
        terminal: Option<PtyRequest>,
        sizes: mpsc::Receiver<PtyRequest>,
        timeout: Option<Duration>,
    ) -> Result<ExitStatus, GuestError> {
        let program = self.script.program().to_owned();
        let kill = self.kill.clone();
        let run = async {
            match terminal {
                Some(size) => self.on_terminal(size, inputs, sizes).await,
                None => self.with_streams(inputs).await,
            }
        };
        let limit = async {
            match timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        // Dropping the run kills the process.
        tokio::select! {
            ended = run => ended,
            () = kill.cancelled() => Ok(ExitStatus::Signal(9)),
            () = limit => Err(GuestError::TimedOut { program, limit: timeout.unwrap_or_default() }),
        }
    }

    async fn with_streams(mut self, inputs: Option<mpsc::Receiver<Bytes>>) -> Result<ExitStatus, GuestError> {
        let (mut out, reader) = tokio::io::duplex(CHUNK);
        let (mut err, errors) = tokio::io::duplex(CHUNK);
        let (first, begun) = (self.first.take(), self.begun.take());
        let mut source = inputs.map(reader_of);
        let exec = async {
            let io = ExecIo {
                stdin: match &mut source {
                    Some(source) => Input::Reader(source),
                    None => Input::Null,
                },
                stdout: Output::Writer(&mut out),
                stderr: Output::Writer(&mut err),
            };
            let ended = self.guest.exec(&self.script, io).await;
            // Whoever reads them sees the end.
            drop((out, err));
            ended
        };
        let out = pump(Box::new(reader), first, begun, &self.listeners, Event::Out);
        let err = pump(Box::new(errors), None, None, &self.listeners, Event::Err);
        let (ended, (), ()) = tokio::join!(exec, out, err);
        ended
    }

    async fn on_terminal(
        mut self,
        size: PtyRequest,
        inputs: Option<mpsc::Receiver<Bytes>>,
        mut sizes: mpsc::Receiver<PtyRequest>,
    ) -> Result<ExitStatus, GuestError> {
        let mut pty: Box<dyn Pty> = self.guest.pty(&self.script, size).await?;
        let (Some(reader), Some(mut writer)) = (pty.reader(), pty.writer()) else {
            return Err(GuestError::Unsupported("the terminal has no streams".to_owned()));
        };
        let keys = async {
            let Some(mut inputs) = inputs else { return };
            while let Some(data) = inputs.recv().await {
                if writer.write_all(&data).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
            }
        };
        let screen = pump(reader, self.first.take(), self.begun.take(), &self.listeners, Event::Out);
        let wait = async {
            loop {
                let size = tokio::select! {
                    status = pty.wait() => return status,
                    Some(size) = sizes.recv() => size,
                };
                // A terminal of the wrong size is no reason to end.
                let _ = pty.resize(size).await;
            }
        };
        tokio::pin!(keys, screen, wait);
        let (mut keys_done, mut screen_done) = (false, false);
        let status = loop {
            tokio::select! {
                status = &mut wait => break status,
                () = &mut keys, if !keys_done => keys_done = true,
                () = &mut screen, if !screen_done => screen_done = true,
            }
        };
        if !screen_done {
            // What it wrote last may still be on its way; what it left behind may hold the terminal open.
            let _ = tokio::time::timeout(LAST_OUTPUT, &mut screen).await;
        }
        status
    }
}

/// What is sent, as a stream of bytes.
fn reader_of(inputs: mpsc::Receiver<Bytes>) -> Pin<Box<dyn AsyncRead + Send>> {
    let stream = futures::stream::unfold(inputs, |mut inputs| async {
        inputs.recv().await.map(|data| (Ok::<Bytes, io::Error>(data), inputs))
    });
    Box::pin(StreamReader::new(Box::pin(stream)))
}

/// Passes output on as events. The first line is for `first`, and what follows it waits for `begun`.
async fn pump(
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    first: Option<oneshot::Sender<String>>,
    begun: Option<oneshot::Receiver<()>>,
    listeners: &Listeners,
    event: fn(Bytes) -> Event,
) {
    let mut line = Vec::new();
    if let Some(first) = first {
        while !line.ends_with(b"\n") && line.len() < FIRST_LINE {
            match reader.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(_) => return,
            }
        }
        let _ = first.send(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    if let Some(begun) = begun {
        let _ = begun.await;
    }
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = reader.read(&mut buffer).await {
        publish(listeners, event(Bytes::copy_from_slice(&buffer[..read]))).await;
    }
}
