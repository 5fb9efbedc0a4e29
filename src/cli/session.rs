//! A command inside a sandbox with our streams, or with our terminal.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::termios::{self, OptionalActions, Termios};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::args::DetachKey;
use super::ui::exit::Exit;
use super::ui::terminal_size;
use crate::provider::{Command, ExecIo, Guest, GuestError, Input, Output, Pty, PtyRequest};

/// The size where ours cannot be known.
const DEFAULT_SIZE: PtyRequest = PtyRequest { rows: 24, cols: 80 };
/// How long the last output of a command that has ended may take to arrive.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs a command with our streams; a signal to us ends it. Returns its code.
///
/// # Errors
/// If it cannot be run.
pub async fn run(guest: &dyn Guest, command: &Command) -> Result<Exit, GuestError> {
    let mut signals = Signals::new()?;
    let io = ExecIo { stdin: Input::Inherit, stdout: Output::Inherit, stderr: Output::Inherit };
    tokio::select! {
        // Dropping the other branch kills the command.
        code = signals.next() => Ok(Exit::Code(code)),
        status = guest.exec(command, io) => Ok(Exit::Code(status?.code())),
    }
}

/// Runs a command on a terminal inside that is shown on ours. Returns its code.
///
/// # Errors
/// If it cannot be run, or our terminal cannot be set up.
pub async fn run_on_terminal(guest: &dyn Guest, command: &Command) -> Result<Exit, GuestError> {
    let pty = guest.pty(command, own_size().unwrap_or(DEFAULT_SIZE)).await?;
    match show(pty, None).await? {
        Ended::Exit(exit) => Ok(exit),
        Ended::Detached => Ok(Exit::Done),
    }
}

/// How it came that a terminal inside is not shown any more.
pub enum Ended {
    /// Its command ended, or a signal ended us.
    Exit(Exit),
    /// The key was typed.
    Detached,
}

/// Shows a terminal inside on ours, until its command ends or the key is typed.
///
/// # Errors
/// If our terminal cannot be set up, or the sandbox ends.
pub async fn show(mut pty: Box<dyn Pty>, key: Option<&DetachKey>) -> Result<Ended, GuestError> {
    let mut signals = Signals::new()?;
    let mut resized = signal(SignalKind::window_change()).map_err(|e| failed("listening for signals", e))?;
    // What is piped in is for the command, whatever it is.
    let key = key.filter(|_| termios::isatty(io::stdin())).cloned();
    let left = Arc::new(Notify::new());
    // Put back when this is dropped, on every way out of here.
    let _raw = RawMode::enter().map_err(|error| failed("setting up the terminal", error))?;
    let (reader, writer) = (pty.reader(), pty.writer());
    let typed_key = Arc::clone(&left);
    let keys = tokio::spawn(async move {
        let Some(mut writer) = writer else { return };
        let mut keys = tokio::io::stdin();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = keys.read(&mut buffer).await {
            if let Some(at) = key.as_ref().and_then(|key| key.find(&buffer[..n])) {
                let _ = writer.write_all(&buffer[..at]).await; // who leaves does not look whether it arrives
                return typed_key.notify_one();
            }
            if writer.write_all(&buffer[..n]).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    });
    let mut screen = tokio::spawn(async move {
        let Some(mut reader) = reader else { return };
        let mut out = tokio::io::stdout();
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            if out.write_all(&buffer[..n]).await.is_err() || out.flush().await.is_err() {
                return;
            }
        }
    });
    let end = tokio::select! {
        end = follow(&mut *pty, &mut signals, &mut resized) => end,
        () = left.notified() => pty.detach().await.map(|()| Ended::Detached),
    };
    keys.abort();
    if tokio::time::timeout(DRAIN, &mut screen).await.is_err() {
        screen.abort();
    }
    end
}

async fn follow(pty: &mut dyn Pty, signals: &mut Signals, resized: &mut Signal) -> Result<Ended, GuestError> {
    loop {
        tokio::select! {
            status = pty.wait() => return Ok(Ended::Exit(Exit::Code(status?.code()))),
            code = signals.next() => {
                // A session goes on; the rest ends with us in any case.
                let _ = pty.detach().await;
                return Ok(Ended::Exit(Exit::Code(code)));
            }
            _ = resized.recv() => {}
        }
        if let Some(size) = own_size() {
            // A terminal of the wrong size is no reason to end.
            let _ = pty.resize(size).await;
        }
    }
}

fn failed(what: &str, source: io::Error) -> GuestError {
    GuestError::Io { what: what.to_owned(), source }
}

/// The size of our terminal, if we have one.
pub fn own_size() -> Option<PtyRequest> {
    let size = terminal_size(&io::stdout()).or_else(|| terminal_size(&io::stdin()));
    size.map(|(rows, cols)| PtyRequest { rows, cols })
}

/// The signals that end us.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new() -> Result<Self, GuestError> {
        let of = |kind| signal(kind).map_err(|error| failed("listening for signals", error));
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    /// The code of the next one, as a shell would report it.
    pub async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        128 + kind.as_raw_value()
    }
}

/// Our terminal without line editing, echo and signals, until dropped. Nothing if stdin is no terminal.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !termios::isatty(stdin.as_fd()) {
            return Ok(Self(None));
        }
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // There is nothing left to do if it fails.
            let _ = termios::tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, before);
        }
    }
}
