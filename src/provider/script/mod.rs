//! Commands by one constant script, for providers whose exec neither kills a command whose caller is gone nor keeps its environment to itself: the
//! script (`exec.sh`) says who it is, is given the environment on standard input, and starts the command.

mod process;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(super) use process::{Ending, Outputs, Process, Raw, Resize, argv, mark};

use super::{Command, GuestError, Input, Output};

/// One read of a command's output.
pub(super) const CHUNK: usize = 64 * 1024;
/// The longest line that a script of ours says.
pub(super) const LINE_LIMIT: usize = 16 * 1024;
/// What of standard error is kept until a command is known to run: it may arrive before the word that says so.
const ERRORS_LIMIT: usize = 4 << 20;
/// How long whoever lets go of a command is held up by its killing.
const LETTING_GO: Duration = Duration::from_secs(3);
/// What of a message is shown.
const MESSAGE_LIMIT: usize = 1000;

/// `kill.sh PID START`.
pub(super) const KILL: &str = include_str!("kill.sh");

/// A message as it may be shown: no control characters, bounded.
pub(super) fn shown(text: &str) -> String {
    let text = text.trim();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_LIMIT).collect()
}

/// The connection to a command broke.
pub(super) fn failed(what: &str, source: io::Error) -> GuestError {
    GuestError::Unreachable { message: what.to_owned(), source: Some(Box::new(source)) }
}

/// The environment as the script takes it.
pub(super) fn header(command: &Command) -> Result<Vec<u8>, GuestError> {
    let refuse =
        |message: String| GuestError::NotExecutable { program: command.program().to_owned(), message };
    if command.argv.is_empty() || command.argv.iter().any(|word| word.contains('\0')) {
        return Err(refuse("no argument may be missing or have a NUL".to_owned()));
    }
    encode(&command.env).map_err(|name| {
        refuse(format!("`{}` cannot be an environment variable of a container", name.escape_debug()))
    })
}

/// Lines `NAME=VALUE` and an empty one. The error is a name that no shell takes, or whose value no process can have.
fn encode(env: &BTreeMap<String, String>) -> Result<Vec<u8>, &str> {
    let mut lines = Vec::new();
    for (name, value) in env {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.bytes().all(fine)
            || value.contains('\0')
        {
            return Err(name);
        }
        lines.extend_from_slice(name.as_bytes());
        line(&mut lines, value);
    }
    lines.push(b'\n');
    Ok(lines)
}

/// The rest of a line `NAME=VALUE`.
fn line(lines: &mut Vec<u8>, value: &str) {
    lines.push(b'=');
    for byte in value.bytes() {
        match byte {
            b'\\' => lines.extend_from_slice(b"\\\\"),
            // To a terminal, and to what Docker puts before one, these are keys.
            0..=0x1f | 0x7f => lines.extend_from_slice(format!("\\0{byte:03o}").as_bytes()),
            byte => lines.push(byte),
        }
    }
    lines.push(b'\n');
}

/// Words as lines `=WORD`, a word being written like the value of a variable.
pub(super) fn words(words: &[String]) -> Vec<u8> {
    let mut lines = Vec::new();
    words.iter().for_each(|word| line(&mut lines, word));
    lines
}

/// What the script of this command said instead of `ok`, as an error.
pub(super) fn refusal(command: &Command, verdict: Option<&str>, said: &[u8]) -> GuestError {
    let dir = command.cwd.as_deref().unwrap_or("the home directory");
    let user = command.user.as_deref().unwrap_or_default();
    let message = match verdict {
        Some("no missing") => "it does not exist".to_owned(),
        Some("no refused") => "it is not an executable file".to_owned(),
        Some("no directory") => format!("`{dir}` is not a directory that this user may enter"),
        Some("no user") => format!("there is no user `{user}` inside"),
        Some("no switch") => {
            format!("it cannot become user `{user}`: that takes root and setpriv, su or chroot in the image")
        }
        _ => format!("the environment was not accepted: {}", shown(&String::from_utf8_lossy(said))),
    };
    GuestError::NotExecutable { program: command.program().to_owned(), message }
}

/// The process id and the start of a script that says who it is.
pub(super) fn who(hello: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = hello.split(' ').collect();
    match words[..] {
        ["pocketenv", pid, start] => Some((pid, start)),
        _ => None,
    }
}

/// Where input goes.
pub(super) trait Sink: Send {
    /// Passes a piece on, at once.
    fn put(&mut self, piece: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

impl<W: AsyncWrite + Send + Unpin> Sink for W {
    async fn put(&mut self, piece: &[u8]) -> io::Result<()> {
        self.write_all(piece).await?;
        self.flush().await
    }
}

/// Passes the input on to its end; an error is one of reading it. That the command does not want it is fine.
pub(super) async fn feed(stdin: Input<'_>, input: &mut impl Sink) -> io::Result<()> {
    let mut inherited;
    let reader: &mut (dyn AsyncRead + Send + Unpin) = match stdin {
        Input::Null => return Ok(()),
        Input::Inherit => {
            inherited = tokio::io::stdin();
            &mut inherited
        }
        Input::Reader(reader) => reader,
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = reader.read(&mut buffer).await?;
        if read == 0 || input.put(&buffer[..read]).await.is_err() {
            return Ok(());
        }
    }
}

/// Why passing the output on failed.
pub(super) enum Drain {
    /// The command's side.
    Read(io::Error),
    /// The caller's side.
    Write(io::Error),
}

impl From<Drain> for GuestError {
    fn from(drain: Drain) -> Self {
        match drain {
            Drain::Read(error) => failed("reading the output of a command", error),
            Drain::Write(source) => Self::Io { what: "cannot pass the output on".to_owned(), source },
        }
    }
}

/// Where a piece of output was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Out,
    Err,
}

/// What a command writes, piece by piece.
pub(super) trait Source: Send {
    /// The next piece, at the beginning of `buffer`, with its length; `None` at the end.
    fn next(&mut self, buffer: &mut [u8]) -> impl Future<Output = io::Result<Option<(Kind, usize)>>> + Send;
}

/// The output of a command, with what its script says first.
pub(super) struct Frames<S> {
    pub source: S,
    tty: bool,
    /// Standard output that was read and not used.
    pub pending: Vec<u8>,
    /// What arrived of standard error and was not used.
    pub said: Vec<u8>,
    buffer: Vec<u8>,
}

impl<S: Source> Frames<S> {
    pub fn new(source: S, tty: bool) -> Self {
        Self { source, tty, pending: Vec::new(), said: Vec::new(), buffer: vec![0; CHUNK] }
    }

    /// The next piece, in `buffer`, with its length; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<(Kind, usize)>> {
        self.source.next(&mut self.buffer).await
    }

    /// A line of standard output without its end; `None` if there is no more.
    pub async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.pending.len() > LINE_LIMIT {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            match self.next().await? {
                Some((Kind::Out, read)) => self.pending.extend_from_slice(&self.buffer[..read]),
                Some((Kind::Err, read)) => {
                    if self.said.len() + read > ERRORS_LIMIT {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "nothing but errors is said"));
                    }
                    self.said.extend_from_slice(&self.buffer[..read]);
                }
                None => {
                    self.said.append(&mut self.pending);
                    return Ok(None);
                }
            }
        }
    }

    /// Whether the script goes on: `ok` or `no …`. A terminal that could not be told to be silent shows before it what was sent.
    pub async fn verdict(&mut self) -> io::Result<Option<String>> {
        loop {
            match self.line().await? {
                Some(line) if line == "ok" || line.starts_with("no ") || !self.tty => return Ok(Some(line)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Passes everything on until the end.
    pub async fn drain(&mut self, stdout: Output<'_>, stderr: Output<'_>) -> Result<(), Drain> {
        let (mut own_out, mut own_err) = (tokio::io::stdout(), tokio::io::stderr());
        let mut out: Option<&mut (dyn AsyncWrite + Send + Unpin)> = match stdout {
            Output::Null => None,
            Output::Inherit => Some(&mut own_out),
            Output::Writer(writer) => Some(writer),
        };
        let mut err: Option<&mut (dyn AsyncWrite + Send + Unpin)> = match stderr {
            Output::Null => None,
            Output::Inherit => Some(&mut own_err),
            Output::Writer(writer) => Some(writer),
        };
        let pending = std::mem::take(&mut self.pending);
        if let Some(out) = &mut out {
            out.write_all(&pending).await.map_err(Drain::Write)?;
        }
        let said = std::mem::take(&mut self.said);
        if let Some(err) = &mut err {
            err.write_all(&said).await.map_err(Drain::Write)?;
            err.flush().await.map_err(Drain::Write)?;
        }
        while let Some((kind, read)) = self.next().await.map_err(Drain::Read)? {
            let writer = match kind {
                Kind::Out => &mut out,
                Kind::Err => &mut err,
            };
            if let Some(writer) = writer {
                writer.write_all(&self.buffer[..read]).await.map_err(Drain::Write)?;
                writer.flush().await.map_err(Drain::Write)?;
            }
        }
        Ok(())
    }
}

/// Kills a command.
type Kill = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send + Sync>;

/// A command that is killed when this is dropped.
pub(super) struct Leash {
    kill: Option<Kill>,
}

impl Leash {
    /// `kill` may be called on a thread, with a runtime, of its own.
    pub fn new(kill: impl FnOnce() -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self { kill: Some(Box::new(kill)) }
    }

    /// It has ended.
    pub fn slip(&mut self) {
        self.kill = None;
    }

    /// Kills it.
    pub async fn kill(mut self) {
        if let Some(kill) = self.kill.take() {
            kill().await;
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let Some(kill) = self.kill.take() else { return };
        // The program may be about to end, and its runtime with it: the kill has a thread, a runtime and a connection of its own, and is waited for.
        let (done, wait) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("sandbox-kill".to_owned()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(kill()),
                Err(error) => tracing::warn!(%error, "a command inside a container may go on"),
            }
            let _ = done.send(());
        });
        match thread {
            Ok(_) => drop(wait.recv_timeout(LETTING_GO)),
            Err(error) => tracing::warn!(%error, "a command inside a container may go on"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_lines_whatever_the_values_are() {
        let env =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let lines = encode(&env(&[("A", "x y='\"$"), ("B", "1\n2\\n\n"), ("C", "")])).unwrap_or_default();
        assert_eq!(String::from_utf8(lines).unwrap(), "A=x y='\"$\nB=1\\00122\\\\n\\0012\nC=\n\n");
        for (name, value) in [("", "x"), ("1A", "x"), ("A-B", "x"), ("A", "\0"), ("é", "x")] {
            assert!(encode(&env(&[(name, value)])).is_err(), "{name}");
        }
    }
}
