//! Constant scripts run inside a sandbox.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::provider::{CapturedOutput, Command, ExecIo, Guest, GuestError, Input, Output, Sink, capture};

/// One of our scripts: constant text, never built from data.
#[derive(Clone, Copy)]
pub(super) struct Script {
    /// Its name in messages and process listings.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A script with the functions that all of them share before it, and those that it asks for.
macro_rules! script {
    ($name:literal $(, $with:literal)*) => {
        $crate::guest::script::Script {
            name: concat!("pocketenv-", $name),
            text: concat!(
                include_str!("sh/prelude.sh"),
                include_str!("sh/process.sh"),
                $(include_str!(concat!("sh/", $with, ".sh")),)*
                include_str!(concat!("sh/", $name, ".sh"))
            ),
        }
    };
}
pub(super) use script;

/// How long a script that only looks at or changes our own small state may take, so that a hung sandbox is an error and not a hang.
pub(super) const SHORT: Duration = Duration::from_secs(120);

/// The longest answer of a script: some 40,000 files.
pub(super) const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

/// What of a failed script's messages is kept.
const MESSAGE_LIMIT: usize = 16 * 1024;

impl Script {
    /// The command that runs it with `arguments`.
    pub fn command<I, S>(self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let mut command = Command::new(["sh", "-c", self.text, self.name]);
        command.argv.extend(arguments.into_iter().map(Into::into));
        // Not the image's working directory: it may have been removed.
        command.cwd = Some("/".to_owned());
        command
    }
}

/// Runs a script command, with up to `limit` bytes of output, and fails unless it exits 0. `what` is what is attempted, for the message.
pub(super) async fn run(
    guest: &dyn Guest,
    what: &str,
    command: &Command,
    limit: usize,
) -> Result<CapturedOutput, GuestError> {
    let output = capture(guest, command, &[], limit.max(MESSAGE_LIMIT)).await?;
    checked(what, output)
}

fn checked(what: &str, output: CapturedOutput) -> Result<CapturedOutput, GuestError> {
    if output.status.success() {
        return Ok(output);
    }
    Err(GuestError::Failed {
        what: what.to_owned(),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
    })
}

/// Runs a script command whose standard input is a stream and keeps what it prints, and fails unless it exits 0.
pub(super) async fn feed_all(
    guest: &dyn Guest,
    what: &str,
    command: &Command,
    stdin: &mut (dyn tokio::io::AsyncRead + Send + Unpin),
) -> Result<CapturedOutput, GuestError> {
    checked(what, stream_in(guest, command, stdin).await?)
}

/// Runs a command whose standard input is a stream; gives its status and what it printed.
pub(super) async fn stream_in(
    guest: &dyn Guest,
    command: &Command,
    stdin: &mut (dyn tokio::io::AsyncRead + Send + Unpin),
) -> Result<CapturedOutput, GuestError> {
    let mut stdout = Tail::new(ANSWER_LIMIT);
    let mut stderr = Tail::new(MESSAGE_LIMIT);
    let io = ExecIo {
        stdin: Input::Reader(stdin),
        stdout: Output::Writer(&mut Sink(|data: &[u8]| stdout.push(data))),
        stderr: Output::Writer(&mut Sink(|data: &[u8]| stderr.push(data))),
    };
    let status = guest.exec(command, io).await?;
    Ok(CapturedOutput { status, stdout: stdout.into_bytes(), stderr: stderr.into_bytes(), truncated: false })
}

/// The last bytes of a stream.
pub(super) struct Tail {
    bytes: Vec<u8>,
    limit: usize,
}

impl Tail {
    /// Keeps the last `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Adds bytes and forgets the oldest.
    pub fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        // Let it grow to twice the limit, so that the move is paid once per limit and not per write.
        if self.bytes.len() > self.limit * 2 {
            self.bytes.drain(..self.bytes.len() - self.limit);
        }
    }

    /// What was kept.
    pub fn into_bytes(mut self) -> Vec<u8> {
        if self.bytes.len() > self.limit {
            self.bytes.drain(..self.bytes.len() - self.limit);
        }
        self.bytes
    }
}

/// Refuses a value that cannot stand in a line of our protocol. `what` names it in the message.
pub(super) fn one_line(what: &str, value: &str) -> Result<(), GuestError> {
    if value.is_empty() || value.contains(['\n', '\t', '\0']) {
        return Err(GuestError::Unsupported(format!(
            "{what} {value:?}: an empty name, or one with a tab or a line break, cannot be managed inside a sandbox"
        )));
    }
    Ok(())
}

/// The environment for a command.
pub(super) type Env = BTreeMap<String, String>;
