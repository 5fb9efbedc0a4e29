//! Streams: large, binary, both ways at once, and terminals.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf,
};
use tokio::time::timeout;

use super::bench::{Bench, Failure, check, script, sh, shown};
use super::{Need, Verdict, group};
use crate::provider::{Command, ExecIo, ExitStatus, Guest, Input, Output, Pty, PtyRequest, capture};

group! {
    "exec/binary": "every byte comes through input and output unchanged", [Need::Processes], binary;
    "exec/large": "10 MiB come through input and both outputs at once unchanged", [Need::Processes], large;
    "exec/unread": "a command that does not read its input ends all the same", [Need::Processes], unread;
    "exec/conversation": "a command gets its input and gives its output while it runs", [Need::Processes, Need::Interactive], conversation;
    "files/100-mib": "a file of 100 MiB goes in and comes out unchanged", [Need::Processes], hundred_mib;
    "pty/terminal": "a command on a terminal finds one of the size that was asked for, and its exit code comes back",
        [Need::Processes, Need::Pty], terminal;
    "pty/resized": "a change of the size reaches the command", [Need::Processes, Need::Pty], resized;
    "pty/interrupt": "Ctrl-C interrupts the command and not the connection", [Need::Processes, Need::Pty], interrupt;
}

/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(240);
/// How long an answer may take.
const SOON: Duration = Duration::from_secs(30);

/// The length of a block of [`Pattern`]: of no common measure with anybody's buffer.
const BLOCK: usize = 65_521;

/// Bytes of which no stretch stands at two places: one block over and over, each with its number at its beginning.
struct Pattern {
    block: Vec<u8>,
    at: usize,
    len: usize,
}

impl Pattern {
    fn new(len: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        Self { block: (0..BLOCK).map(next).collect(), at: 0, len }
    }

    /// Fills a buffer as far as there is something left; how far.
    fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let wanted = buffer.len().min(self.len - self.at);
        let mut filled = 0;
        while filled < wanted {
            let (number, from) = (self.at / BLOCK, self.at % BLOCK);
            let part = (BLOCK - from).min(wanted - filled);
            let to = &mut buffer[filled..filled + part];
            to.copy_from_slice(&self.block[from..from + part]);
            let stamp = number.to_le_bytes();
            for (byte, stamped) in to.iter_mut().zip(stamp.iter().skip(from)) {
                *byte = *stamped;
            }
            filled += part;
            self.at += part;
        }
        filled
    }
}

impl AsyncRead for Pattern {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = self.fill(buf.initialize_unfilled());
        buf.advance(filled);
        Poll::Ready(Ok(()))
    }
}

/// Holds what is written to it against what should be.
struct Expected {
    pattern: Pattern,
    scratch: Vec<u8>,
    len: usize,
    /// Where the first byte may be that is another one.
    wrong: Option<usize>,
}

impl Expected {
    fn new(len: usize) -> Self {
        Self { pattern: Pattern::new(len), scratch: Vec::new(), len: 0, wrong: None }
    }

    fn arrived(self, what: &str) -> Verdict {
        let len = self.pattern.len;
        check(self.len == len, || format!("{what} has {} bytes, and {len} were sent", self.len))?;
        check(self.wrong.is_none(), || format!("{what} is not what was sent, from byte {:?} on", self.wrong))
    }
}

impl AsyncWrite for Expected {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.scratch.resize(data.len(), 0);
        let filled = this.pattern.fill(&mut this.scratch);
        if this.wrong.is_none() && this.scratch[..filled] != data[..filled] {
            this.wrong = Some(this.len);
        }
        this.len += data.len();
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn binary(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let every: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let output = capture(&*guest, &Command::new(["cat"]), &every, 1 << 16).await?;
    check(output.stdout == every, || format!("what came back is {}", shown(&output.stdout)))
}

async fn large(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    const LEN: usize = 10 << 20;
    let (mut input, mut out, mut err) = (Pattern::new(LEN), Expected::new(LEN), Expected::new(LEN));
    let io = ExecIo {
        stdin: Input::Reader(&mut input),
        stdout: Output::Writer(&mut out),
        stderr: Output::Writer(&mut err),
    };
    // Both outputs have to be read at once, or neither goes on.
    let status = within(TRANSFER, guest.exec(&script("tee /dev/stderr", []), io)).await?;
    check(status.success(), || format!("it ended with {status}"))?;
    out.arrived("standard output")?;
    err.arrived("standard error")
}

async fn unread(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let mut input = Pattern::new(8 << 20);
    let io = ExecIo { stdin: Input::Reader(&mut input), ..ExecIo::default() };
    let status = within(SOON * 2, guest.exec(&script("exit 5", []), io)).await?;
    check(status == ExitStatus::Code(5), || format!("it ended with {status}"))
}

async fn conversation(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let (mut keys, mut stdin) = tokio::io::duplex(4096);
    let (mut stdout, screen) = tokio::io::duplex(4096);
    let command = script(r#"echo ready; read word; echo "got $word"; cat >/dev/null; echo end"#, []);
    let io =
        ExecIo { stdin: Input::Reader(&mut stdin), stdout: Output::Writer(&mut stdout), ..ExecIo::default() };
    let talk = async {
        let mut lines = BufReader::new(screen).lines();
        let mut expect = async |wanted: &str| match timeout(SOON, lines.next_line()).await {
            Ok(Ok(Some(line))) if line == wanted => Ok(()),
            Ok(line) => Err(Failure::Broken(format!("it wrote {line:?} and not {wanted:?}"))),
            Err(_) => Err(Failure::Broken(format!("it did not write {wanted:?} while it ran"))),
        };
        expect("ready").await?;
        keys.write_all(b"word\n").await?;
        expect("got word").await?;
        // The end of the input.
        drop(keys);
        expect("end").await
    };
    let exec = async { Ok::<_, Failure>(guest.exec(&command, io).await?) };
    let (status, ()) = futures::future::try_join(within(SOON * 4, exec), talk).await?;
    check(status.success(), || format!("it ended with {status}"))
}

/// Ends work that does not end by itself.
async fn within<T, E: Into<Failure>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match timeout(limit, work).await {
        Ok(ended) => ended.map_err(Into::into),
        Err(_) => Err(Failure::Broken(format!("it did not end within {} s", limit.as_secs()))),
    }
}

async fn hundred_mib(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    const LEN: usize = 100 << 20;
    const FILE: &str = "/var/tmp/conformance-100-mib";
    let mut input = Pattern::new(LEN);
    let io = ExecIo { stdin: Input::Reader(&mut input), ..ExecIo::default() };
    let status = within(TRANSFER, guest.exec(&script("cat > \"$1\"", [FILE]), io)).await?;
    check(status.success(), || format!("writing it ended with {status}"))?;
    let mut out = Expected::new(LEN);
    let io = ExecIo { stdout: Output::Writer(&mut out), ..ExecIo::default() };
    let status = within(TRANSFER, guest.exec(&Command::new(["cat", FILE]), io)).await?;
    check(status.success(), || format!("reading it ended with {status}"))?;
    sh(&*guest, "rm \"$1\"", [FILE]).await?;
    out.arrived("the file")
}

/// A command on a terminal, and what it shows.
struct Screen {
    pty: Box<dyn Pty>,
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    text: String,
}

impl Screen {
    async fn open(guest: &dyn Guest, text: &str, rows: u16, cols: u16) -> Result<Self, Failure> {
        let mut pty = guest.pty(&script(text, []), PtyRequest { rows, cols }).await?;
        let missing = || Failure::Broken("the terminal has no reader or no writer".to_owned());
        let reader = pty.reader().ok_or_else(missing)?;
        let writer = pty.writer().ok_or_else(missing)?;
        Ok(Self { pty, reader, writer, text: String::new() })
    }

    /// Reads until the text is shown.
    async fn shows(&mut self, wanted: &str) -> Result<(), Failure> {
        let read = async {
            let mut buffer = [0; 4096];
            while !self.text.contains(wanted) {
                match self.reader.read(&mut buffer).await? {
                    0 => break,
                    n => self.text.push_str(&String::from_utf8_lossy(buffer.get(..n).unwrap_or_default())),
                }
            }
            Ok::<_, Failure>(())
        };
        let ended = timeout(SOON, read).await;
        check(self.text.contains(wanted), || {
            format!("the terminal does not show {wanted:?} but {} ({ended:?})", shown(self.text.as_bytes()))
        })
    }

    async fn keys(&mut self, keys: &[u8]) -> Result<(), Failure> {
        self.writer.write_all(keys).await?;
        Ok(self.writer.flush().await?)
    }

    /// Waits for the end, reading what is still shown.
    async fn ends(&mut self, code: i32) -> Result<(), Failure> {
        let status = within(SOON, self.pty.wait()).await?;
        check(status == ExitStatus::Code(code), || format!("it ended with {status} and not with {code}"))
    }
}

async fn terminal(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    const TEXT: &str =
        "test -t 0 && test -t 1 && test -t 2 || exit 9; stty size; read line; echo \"<$line>\"; exit 7";
    let mut screen = Screen::open(&*guest, TEXT, 31, 97).await?;
    screen.shows("31 97").await?;
    screen.keys("wörd\n".as_bytes()).await?;
    screen.shows("<wörd>").await?;
    screen.ends(7).await
}

const WAITS: &str = "trap 'stty size' WINCH; trap 'echo interrupted; exit 8' INT; echo ready; \
                     n=0; while test $n -lt 60; do sleep 1; n=$((n + 1)); done";

async fn resized(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let mut screen = Screen::open(&*guest, WAITS, 24, 80).await?;
    screen.shows("ready").await?;
    screen.pty.resize(PtyRequest { rows: 41, cols: 123 }).await?;
    screen.shows("41 123").await?;
    screen.keys(b"\x03").await?;
    screen.ends(8).await
}

async fn interrupt(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let mut screen = Screen::open(&*guest, WAITS, 24, 80).await?;
    screen.shows("ready").await?;
    screen.keys(b"\x03").await?;
    screen.shows("interrupted").await?;
    screen.ends(8).await
}
