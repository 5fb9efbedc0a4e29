//! Running git: argv only, nothing of the repository executed, bounded in time, output and what it may put on disk.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::GitError;
use super::remote::PROTOCOLS;

/// The most that is read of an answer, unless more is expected.
const MAX_ANSWER: u64 = 64 << 20;
/// What is shown of an error.
const MAX_MESSAGE: usize = 500;
/// How often the size on disk is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// One run of git.
pub(super) struct Git<'a> {
    operation: &'static str,
    dir: &'a Path,
    arguments: Vec<String>,
    input: Vec<u8>,
    limit: Duration,
    answer: u64,
    disk: Option<u64>,
}

/// How a run ended.
pub(super) struct Answer {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: Vec<u8>,
    message: String,
    operation: &'static str,
}

impl Answer {
    /// The output of a run that must have gone well.
    pub fn good(self) -> Result<Vec<u8>, GitError> {
        match self.code {
            Some(0) => Ok(self.out),
            _ => Err(GitError::Failed { operation: self.operation, message: self.message }),
        }
    }
}

impl<'a> Git<'a> {
    /// `git OPERATION ARGUMENTS…` on the bare repository `dir`.
    pub fn new<I: Into<String>>(
        operation: &'static str,
        dir: &'a Path,
        arguments: impl IntoIterator<Item = I>,
        limit: Duration,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { operation, dir, arguments, input: Vec::new(), limit, answer: MAX_ANSWER, disk: None }
    }

    /// Gives it standard input.
    pub fn input(mut self, input: Vec<u8>) -> Self {
        self.input = input;
        self
    }

    /// Another limit than the usual one for what it answers.
    pub fn answer(mut self, bytes: u64) -> Self {
        self.answer = bytes;
        self
    }

    /// Ends it when the repository grows beyond `bytes`.
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk = Some(bytes);
        self
    }

    /// Runs it to its end.
    pub async fn run(self) -> Result<Answer, GitError> {
        let Self { operation, dir, arguments, input, limit, answer: most, disk } = self;
        let mut command = Command::new("git");
        command
            .args([
                "-c",
                "core.hooksPath=/dev/null",
                "-c",
                "core.fsmonitor=false",
                "-c",
                "protocol.ext.allow=never",
            ])
            .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "submodule.recurse=false"])
            .args([
                "-c",
                "fetch.fsckObjects=false",
                "-c",
                "transfer.bundleURI=false",
                "-c",
                "credential.interactive=false",
            ])
            .arg("--git-dir")
            .arg(dir)
            .arg(operation)
            .args(&arguments)
            .current_dir(dir)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "true")
            .env("SSH_ASKPASS_REQUIRE", "never")
            .env("GIT_ALLOW_PROTOCOL", PROTOCOLS)
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        // What a surrounding git, such as a hook, set for itself would lead us into its repository.
        for name in [
            "GIT_DIR",
            "GIT_WORK_TREE",
            "GIT_INDEX_FILE",
            "GIT_OBJECT_DIRECTORY",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
            "GIT_TRACE",
            "GIT_CURL_VERBOSE",
        ] {
            command.env_remove(name);
        }
        if std::env::var_os("GIT_SSH_COMMAND").is_none() {
            command.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
        }
        let mut child = command.spawn().map_err(GitError::NotRun)?;
        let mut group = Group(child.id());
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A git that ends early says why on its own.
                let _ = stdin.write_all(&input).await;
            }
            Ok(())
        };
        let work = async {
            let out = async {
                let out = read(stdout, most).await;
                // It may have no end: nobody reads on, and git is ended.
                out.ok_or_else(|| GitError::TooLarge {
                    what: format!("the answer of git {operation}"),
                    limit: format!("{} MiB", most >> 20),
                })
            };
            let ((), out, err) = tokio::try_join!(write, out, async { Ok(read_start(stderr).await) })?;
            let status = child.wait().await.map_err(GitError::NotRun)?;
            Ok(Answer { code: status.code(), out, message: message(&err), operation })
        };
        let ended = tokio::select! {
            answer = work => answer,
            () = tokio::time::sleep(limit) => Err(GitError::TimedOut { operation, limit }),
            size = outgrown(dir, disk) => Err(GitError::TooLarge {
                what: "the repository".to_owned(),
                limit: format!("{} MiB", size >> 20),
            }),
        };
        if ended.is_ok() {
            group.0 = None;
        }
        ended
    }
}

/// Ends git, and what it started, such as the transport, when it is given up: they share a process group.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // Nothing left of it is the usual case.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Everything, or `None` if there is more than `limit`.
async fn read(from: Option<impl AsyncRead + Unpin>, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(from) = from else { return Some(bytes) };
    // An error of a pipe is its end.
    let _ = from.take(limit + 1).read_to_end(&mut bytes).await;
    (bytes.len() as u64 <= limit).then_some(bytes)
}

/// The start of what is said. The rest is read as well, so that whoever says it is not blocked.
async fn read_start(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // An error of a pipe is its end.
        let _ = (&mut from).take(64 << 10).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    bytes
}

/// Returns when the repository is larger than the limit, never without one.
async fn outgrown(dir: &Path, limit: Option<u64>) -> u64 {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        tokio::time::sleep(LOOK).await;
        let dir = dir.join("objects");
        let size = tokio::task::spawn_blocking(move || size_of(dir)).await.unwrap_or(0);
        if size > limit {
            return limit;
        }
    }
}

/// Bytes of the files below `dir`; what vanishes meanwhile counts nothing.
fn size_of(dir: PathBuf) -> u64 {
    let mut dirs = vec![dir];
    let mut size = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push(entry.path()),
                Ok(metadata) => size += metadata.len(),
                Err(_) => {}
            }
        }
    }
    size
}

/// The end of what git said, on one line, without control characters and without what may be credentials.
fn message(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut words: Vec<String> = Vec::new();
    for word in lines.join("; ").split(' ') {
        words.push(match (word.find("://"), word.rfind('@')) {
            (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &word[..scheme], &word[at..]),
            _ => word.chars().filter(|c| !c.is_control()).collect(),
        });
    }
    let text = words.join(" ");
    let skip = text.chars().count().saturating_sub(MAX_MESSAGE);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_do_not_get_into_messages() {
        let text = message(b"fatal: unable to access 'https://user:hunter2@h/x': no\x1b[31m\n");
        assert_eq!(text, "fatal: unable to access 'https://…@h/x': no[31m");
    }
}
