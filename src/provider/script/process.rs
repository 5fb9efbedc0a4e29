//! Commands where the vendor's connection neither tells that input has ended nor that a command has, while what it left behind holds its outputs: the
//! scripts `user.sh`, `exec.sh` and `run.sh` tell both inside the streams.
//!
//! A provider joins by how bytes are sent ([`Raw`]), where they come from ([`Source`]), and, for terminals, how a size is told ([`Resize`]).

use std::io;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::watch;

use super::super::{Command, ExecIo, ExitStatus, GuestError, Input, Output, Pty, PtyRequest};
use super::{CHUNK, Frames, Kind, Leash, Sink, Source, failed, feed, refusal, who};

/// Starts a command: who is to run it, the environment, the command. [`argv`] is what it takes.
pub const EXEC: &str = concat!(include_str!("user.sh"), include_str!("exec.sh"), include_str!("run.sh"));

/// What ends each output of a command.
pub fn mark() -> String {
    format!("\u{1}pocketenv-{}:", uuid::Uuid::now_v7().simple())
}

/// The command that starts `command`, by `sh`.
pub fn argv(command: &Command, tty: Option<PtyRequest>, mark: &str) -> Vec<String> {
    let (mode, rows, cols) = match tty {
        Some(size) => ("tty", size.rows.to_string(), size.cols.to_string()),
        None => ("pipe", String::new(), String::new()),
    };
    let user = command.user.as_deref().unwrap_or_default();
    let dir = command.cwd.as_deref().unwrap_or_default();
    let argv = ["sh", "-c", EXEC, "pocketenv-exec", user, &rows, &cols, mark, mode, dir];
    argv.into_iter().map(str::to_owned).chain(command.argv.iter().cloned()).collect()
}

/// Passes bytes on to the script of a command.
pub trait Raw: Clone + Send + Sync + 'static {
    fn send(&self, data: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// Where a command's outputs come from.
pub trait Ending: Source + 'static {
    /// How the command ended, once there is no more output; or why that is not known.
    fn status(&self) -> Result<ExitStatus, String>;
}

/// What goes to a command.
#[derive(Clone)]
pub struct Keys<R> {
    pub raw: R,
    /// Whether input goes in pieces that tell their length.
    framed: bool,
}

impl<R: Raw> Keys<R> {
    /// Says that no input follows.
    async fn end(&self) -> io::Result<()> {
        self.raw.send(b"0\n").await
    }
}

impl<R: Raw> Sink for Keys<R> {
    async fn put(&mut self, piece: &[u8]) -> io::Result<()> {
        if !self.framed {
            return self.raw.send(piece).await;
        }
        let mut framed = format!("{}\n", piece.len()).into_bytes();
        framed.extend_from_slice(piece);
        self.raw.send(&framed).await
    }
}

/// One output, up to its mark.
#[derive(Default)]
struct Marked {
    /// What may be the beginning of the mark.
    held: Vec<u8>,
    /// The exit code that stood behind it.
    code: Option<i32>,
}

impl Marked {
    /// Takes what arrives; gives what is no mark.
    fn push(&mut self, data: &[u8], mark: &[u8]) -> Vec<u8> {
        if self.code.is_some() {
            // What the command left running goes on.
            return Vec::new();
        }
        self.held.extend_from_slice(data);
        let mut keep = None;
        for at in memchr::memmem::find_iter(&self.held, mark) {
            if let Some(tail) = self.held.get(at + mark.len()..at + mark.len() + 4) {
                self.code = code(tail);
                if self.code.is_none() {
                    // A list of processes shows it as well, and goes on.
                    continue;
                }
            }
            keep = Some(at);
            break;
        }
        let keep = keep.unwrap_or_else(|| {
            let most = (mark.len() - 1).min(self.held.len());
            let partly = (1..=most).rev().find(|length| self.held.ends_with(&mark[..*length]));
            self.held.len() - partly.unwrap_or(0)
        });
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// The exit code behind a mark: three digits and the end of the line.
fn code(tail: &[u8]) -> Option<i32> {
    let digits = tail.strip_suffix(b"\n")?;
    std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?
        .parse()
        .ok()
}

/// Both outputs of a command, up to their marks.
pub struct Outputs {
    /// What ends each of them; `None` on a terminal.
    mark: Option<Vec<u8>>,
    out: Marked,
    err: Marked,
    /// What arrived and was not taken yet, from `at` on.
    piece: (Kind, Vec<u8>),
    at: usize,
}

impl Outputs {
    pub fn new(mark: Option<String>) -> Self {
        let mark = mark.map(String::into_bytes);
        Self { mark, out: Marked::default(), err: Marked::default(), piece: (Kind::Out, Vec::new()), at: 0 }
    }

    /// Takes what arrives, once everything that arrived before has been taken.
    pub fn push(&mut self, kind: Kind, data: &[u8]) {
        let marked = match kind {
            Kind::Out => &mut self.out,
            Kind::Err => &mut self.err,
        };
        let piece = match &self.mark {
            Some(mark) => marked.push(data, mark),
            None => data.to_vec(),
        };
        (self.piece, self.at) = ((kind, piece), 0);
    }

    /// Gives what arrived and was not taken.
    pub fn take(&mut self, buffer: &mut [u8]) -> Option<(Kind, usize)> {
        let (kind, piece) = &self.piece;
        let left = piece.get(self.at..).filter(|left| !left.is_empty())?;
        let taken = left.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&left[..taken]);
        self.at += taken;
        Some((*kind, taken))
    }

    /// Whether both have ended.
    pub fn ended(&self) -> bool {
        self.out.code.is_some() && self.err.code.is_some()
    }

    /// The exit code of the command, as a mark tells it.
    pub fn code(&self) -> Option<i32> {
        self.out.code.or(self.err.code)
    }

    /// Whether marks tell it at all.
    pub fn marked(&self) -> bool {
        self.mark.is_some()
    }
}

/// A command that runs.
pub struct Process<S, R> {
    pub output: Frames<S>,
    pub keys: Keys<R>,
    pub leash: Leash,
}

impl<S: Ending, R: Raw> Process<S, R> {
    /// Starts a command, with what [`super::header`] makes of it, whose script begins to speak in `output`. `leash` holds the process of that id and start; `early` says why there is none.
    pub async fn start(
        command: &Command,
        header: &[u8],
        tty: bool,
        (mut output, raw): (Frames<S>, R),
        leash: impl FnOnce(&str, &str) -> Leash,
        early: impl Fn(&Frames<S>) -> GuestError,
    ) -> Result<Self, GuestError> {
        let Some(hello) = output.line().await.map_err(|error| failed("starting a command", error))? else {
            return Err(early(&output));
        };
        let Some((pid, start)) = who(&hello) else {
            output.said.extend_from_slice(hello.as_bytes());
            return Err(early(&output));
        };
        let mut leash = leash(pid, start);
        let given = async {
            raw.send(header).await?;
            output.verdict().await
        };
        let verdict = given.await.map_err(|error| failed("starting a command", error))?;
        if verdict.as_deref() == Some("ok") {
            return Ok(Self { output, keys: Keys { raw, framed: !tty }, leash });
        }
        leash.slip();
        Err(refusal(command, verdict.as_deref(), &output.said))
    }

    /// Follows a command to its end. `place` is where it runs, for messages.
    pub async fn run(self, place: &str, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let Self { mut output, mut keys, mut leash } = self;
        let feed = async {
            feed(io.stdin, &mut keys).await?;
            // A command that is gone already needs no end.
            let _ = keys.end().await;
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            drained = output.drain(io.stdout, io.stderr) => drained?,
            fed = feed => {
                fed.map_err(|source| GuestError::Io { what: "cannot pass the input on".to_owned(), source })?;
            }
        }
        let status = output.source.status().map_err(|message| lost(place, &message))?;
        leash.slip();
        Ok(status)
    }

    /// A command on a terminal, from the outside.
    pub fn terminal<Z: Resize>(self, place: String, size: Z) -> Terminal<Z> {
        let Self { mut output, keys, leash } = self;
        let (screen, mut shows) = tokio::io::duplex(CHUNK);
        let (typed, mut typing) = tokio::io::duplex(CHUNK);
        let (ended, status) = watch::channel(None);
        tokio::spawn(async move {
            let drained = output.drain(Output::Writer(&mut shows), Output::Null).await;
            if drained.is_err() {
                // Nobody looks at it any more; how it ends still counts.
                let _ = output.drain(Output::Null, Output::Null).await;
            }
            ended.send_replace(Some(output.source.status()));
        });
        let mut input = keys;
        tokio::spawn(async move {
            if let Err(error) = feed(Input::Reader(&mut typing), &mut input).await {
                tracing::debug!(%error, "keys were not passed on");
            }
        });
        Terminal { place, size, leash, ends: Mutex::new((Some(screen), Some(typed))), status }
    }
}

fn lost(place: &str, message: &str) -> GuestError {
    GuestError::Unreachable { message: format!("{place}: {message}"), source: None }
}

/// Tells a terminal its size.
#[async_trait]
pub trait Resize: Send + Sync {
    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError>;
}

/// A command on a terminal.
pub struct Terminal<Z> {
    place: String,
    size: Z,
    leash: Leash,
    /// Locked by nobody: it only lets the whole be shared.
    ends: Mutex<(Option<DuplexStream>, Option<DuplexStream>)>,
    status: watch::Receiver<Option<Result<ExitStatus, String>>>,
}

#[async_trait]
impl<Z: Resize> Pty for Terminal<Z> {
    fn reader(&mut self) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
        Some(Box::new(self.ends.get_mut().ok()?.0.take()?))
    }

    fn writer(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        Some(Box::new(self.ends.get_mut().ok()?.1.take()?))
    }

    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError> {
        self.size.resize(size).await
    }

    async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        let ended = self.status.wait_for(Option::is_some).await;
        let ended = ended.map_err(|_| lost(&self.place, "a command was cut off"))?.clone();
        let status = ended.unwrap_or_else(|| Err(String::new())).map_err(|why| lost(&self.place, &why))?;
        self.leash.slip();
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_a_message_ends() {
        let mark = b"\x01pocketenv-7:";
        let whole =
            b"data \x01pocket \x01pocketenv-8:000\n\x01pocketenv-7: pipe \x01pocketenv-7:042\nleft behind";
        let data_len = whole.len() - b"\x01pocketenv-7:042\nleft behind".len();
        for size in 1..whole.len() {
            let (mut marked, mut data) = (Marked::default(), Vec::new());
            for piece in whole.chunks(size) {
                data.extend(marked.push(piece, mark));
            }
            assert_eq!((data.as_slice(), marked.code), (&whole[..data_len], Some(42)), "in pieces of {size}");
        }
    }
}
