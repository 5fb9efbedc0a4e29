//! Files inside a sandbox, by constant scripts. Whoever asks may do everything, and what is made belongs to the user who was named: so do the
//! vendors' own agents, which run as root.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, DuplexStream};
use tokio_util::io::ReaderStream;

use crate::model::Timestamp;
use crate::provider::{Command, ExecIo, ExitStatus, Guest, GuestError, Input, Output, capture};

/// One read of a file, in bytes.
const CHUNK: usize = 256 << 10;
/// The user that programs run as unless they say otherwise, made where there is none.
pub(super) const USER: &str = "user";
/// How long one operation that moves no contents may take.
const SHORT: Duration = Duration::from_secs(120);
/// The longest listing.
const LISTING: usize = 64 << 20;
/// What of a message is kept.
const MESSAGE: usize = 4 << 10;
/// The longest first line of a file that is read: its size.
const FIRST_LINE: usize = 32;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It is not there.
    #[error("path '{0}' does not exist")]
    Missing(String),
    /// It is something else than a directory.
    #[error("path '{0}' is not a directory")]
    NotADirectory(String),
    /// It is a directory.
    #[error("path '{0}' is a directory")]
    Directory(String),
    /// It is there already.
    #[error("directory already exists: {0}")]
    Exists(String),
    /// There is no such user.
    #[error("user '{0}' does not exist")]
    NoUser(String),
    /// There is no room.
    #[error("not enough disk space: {0}")]
    NoSpace(String),
    /// It was not done.
    #[error("{0}")]
    Failed(String),
    /// The sandbox.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// A user of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// As a process is started for it; `None` for the sandbox's default.
    pub name: Option<String>,
    /// `uid:gid`.
    pub owner: String,
    /// Its home.
    pub home: String,
}

impl User {
    /// The path that a program means: from the home of the user, without `.`, `..` and doubled slashes.
    pub fn path(&self, path: &str) -> String {
        let whole = match path {
            "" | "~" => self.home.clone(),
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            other => format!("{}/{}", self.home, other.strip_prefix("~/").unwrap_or(other)),
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        format!("/{}", parts.join("/"))
    }
}

/// What stands in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its absolute path.
    pub path: String,
    /// Kind and permission bits, as `lstat` has them.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// When its contents changed.
    pub modified: Timestamp,
    /// Whom it belongs to.
    pub owner: String,
    /// The group that it belongs to.
    pub group: String,
    /// Where it leads, if it is a link, and kind and permission bits of what is there.
    pub target: Option<(String, Option<u32>)>,
    /// Its number in its file system.
    pub inode: String,
    /// When its contents changed, as exactly as the system tells.
    pub written: String,
    /// When anything of it changed, as exactly.
    pub changed: String,
}

impl Entry {
    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is a directory itself.
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
}

fn script(arguments: &[&str]) -> Command {
    let text = include_str!("sh/files.sh");
    let mut command = Command::new(["sh", "-c", text, "pocketenv-files"]);
    command.argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
    // The script calls itself for what `find` finds.
    command.env.insert("PE_FILES".to_owned(), text.to_owned());
    command.cwd = Some("/".to_owned());
    command
}

fn failure(status: ExitStatus, path: &str, said: &[u8]) -> FileError {
    let said = String::from_utf8_lossy(said).trim().to_owned();
    match status {
        ExitStatus::Code(44) => FileError::Missing(path.to_owned()),
        ExitStatus::Code(45) => FileError::NotADirectory(path.to_owned()),
        ExitStatus::Code(46) => FileError::Directory(path.to_owned()),
        ExitStatus::Code(47) => FileError::Exists(path.to_owned()),
        _ if said.contains("No space left") => FileError::NoSpace(said),
        status => FileError::Failed(format!("{path}: {status}: {said}")),
    }
}

async fn run(guest: &dyn Guest, path: &str, arguments: &[&str]) -> Result<Vec<u8>, FileError> {
    let mut command = script(arguments);
    command.timeout = Some(SHORT);
    let output = capture(guest, &command, &[], LISTING).await?;
    if !output.status.success() {
        return Err(failure(output.status, path, &output.stderr));
    }
    if output.truncated {
        return Err(FileError::Failed(format!("{path}: the listing is too long")));
    }
    Ok(output.stdout)
}

/// Makes the user that programs run as, where that can be.
pub(super) async fn prepare(guest: &dyn Guest) -> Result<(), GuestError> {
    let mut command = Command::new(["sh", "-c", include_str!("sh/prepare.sh"), "pocketenv-prepare", USER]);
    command.cwd = Some("/".to_owned());
    command.timeout = Some(SHORT);
    capture(guest, &command, &[], MESSAGE).await.map(drop)
}

/// A user of the sandbox by name; with `None` the one that programs run as, or the sandbox's default where that one could not be made.
pub(super) async fn user(guest: &dyn Guest, name: Option<&str>) -> Result<User, FileError> {
    let mut command = Command::new(["cat", "/etc/passwd"]);
    command.cwd = Some("/".to_owned());
    command.timeout = Some(SHORT);
    let output = capture(guest, &command, &[], 1 << 20).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = name.unwrap_or(USER);
    let found = text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            [found, _, uid, gid, _, home, ..] if found == wanted => Some(User {
                name: Some(found.to_owned()),
                owner: format!("{uid}:{gid}"),
                home: if home.is_empty() { "/".to_owned() } else { home.to_owned() },
            }),
            _ => None,
        }
    });
    let root = || User { name: None, owner: "0:0".to_owned(), home: "/root".to_owned() };
    match (found, name) {
        (Some(user), _) => Ok(user),
        (None, None | Some("root")) => Ok(root()),
        (None, Some(name)) => Err(FileError::NoUser(name.to_owned())),
    }
}

/// What is at a path.
pub(super) async fn stat(guest: &dyn Guest, path: &str) -> Result<Entry, FileError> {
    let mark = mark();
    let output = run(guest, path, &["stat", &mark, path]).await?;
    parse(&output, &mark).into_values().next().ok_or_else(|| FileError::Missing(path.to_owned()))
}

/// What is in a directory, down to a depth, in order.
pub(super) async fn list(guest: &dyn Guest, path: &str, depth: u32) -> Result<Vec<Entry>, FileError> {
    let mark = mark();
    let output = run(guest, path, &["list", &mark, path, &depth.to_string()]).await?;
    Ok(in_order(parse(&output, &mark)))
}

fn in_order(entries: BTreeMap<String, Entry>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = entries.into_values().collect();
    entries.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
    entries
}

/// Makes a directory, with its parents.
pub(super) async fn make_dir(guest: &dyn Guest, path: &str, user: &User) -> Result<(), FileError> {
    run(guest, path, &["mkdir", path, &user.owner]).await.map(drop)
}

/// Renames.
pub(super) async fn rename(guest: &dyn Guest, from: &str, to: &str, user: &User) -> Result<(), FileError> {
    run(guest, from, &["move", from, to, &user.owner]).await.map(drop)
}

/// Removes, with everything below; what is not there is removed.
pub(super) async fn remove(guest: &dyn Guest, path: &str) -> Result<(), FileError> {
    run(guest, path, &["remove", path]).await.map(drop)
}

/// Writes a file, with its parents. `gzip` says that what comes is compressed.
pub(super) async fn write(
    guest: &dyn Guest,
    path: &str,
    user: &User,
    gzip: bool,
    data: &mut (dyn AsyncRead + Send + Unpin),
) -> Result<(), FileError> {
    let command = script(&["write", path, &user.owner, if gzip { "gzip" } else { "" }]);
    let (mut said, mut messages) = tokio::io::duplex(MESSAGE);
    let exec = async {
        let io =
            ExecIo { stdin: Input::Reader(data), stdout: Output::Null, stderr: Output::Writer(&mut said) };
        let ended = guest.exec(&command, io).await;
        drop(said);
        ended
    };
    let listen = async {
        let mut kept = Vec::new();
        let mut buffer = [0; MESSAGE];
        while let Ok(read @ 1..) = messages.read(&mut buffer).await {
            kept.extend_from_slice(&buffer[..read.min(MESSAGE - kept.len().min(MESSAGE))]);
        }
        kept
    };
    let (ended, said) = tokio::join!(exec, listen);
    match ended? {
        status if status.success() => Ok(()),
        status => Err(failure(status, path, &said)),
    }
}

/// A file that is read.
pub(super) struct Reading {
    /// Its size, if it is a plain file.
    pub size: Option<u64>,
    /// What it holds.
    pub data: DuplexStream,
    /// Whether all of it came, once `data` has ended.
    pub whole: tokio::sync::oneshot::Receiver<Result<(), FileError>>,
}

impl Reading {
    /// What it holds, piece by piece. A file that broke off ends with an error: it must not look like one that ended.
    pub fn contents(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let end = futures::stream::once(async move {
            match self.whole.await {
                Ok(Ok(())) => Ok(Bytes::new()),
                Ok(Err(error)) => Err(io::Error::other(error)),
                Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        });
        ReaderStream::with_capacity(self.data, CHUNK).chain(end)
    }
}

/// Reads a file.
pub(super) async fn read(guest: Arc<dyn Guest>, path: &str) -> Result<Reading, FileError> {
    let (mut out, mut data) = tokio::io::duplex(CHUNK);
    let (done, mut whole) = tokio::sync::oneshot::channel();
    let (command, path) = (script(&["read", path]), path.to_owned());
    tokio::spawn(async move {
        let mut said = Vec::new();
        let io = ExecIo {
            stdin: Input::Null,
            stdout: Output::Writer(&mut out),
            stderr: Output::Writer(&mut said),
        };
        let ended = guest.exec(&command, io).await;
        let result = match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failure(status, &path, &said)),
            Err(error) => Err(error.into()),
        };
        // Told before the end is seen.
        let _ = done.send(result);
        drop(out);
    });
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        match data.read_u8().await {
            Ok(byte) if line.len() < FIRST_LINE => line.push(byte),
            _ => {
                let failed = || FileError::Failed("the file could not be read".to_owned());
                return Err(whole.try_recv().ok().and_then(Result::err).unwrap_or_else(failed));
            }
        }
    }
    let size = String::from_utf8_lossy(&line).trim().parse().ok();
    Ok(Reading { size, data, whole })
}

/// What a directory holds after every change of it, for as long as somebody listens. The first is what it holds now.
pub(super) async fn follow(
    guest: &dyn Guest,
    path: &str,
    recursive: bool,
    changes: tokio::sync::mpsc::Sender<BTreeMap<String, Entry>>,
) -> Result<(), FileError> {
    let mark = mark();
    let command = script(&["watch", &mark, path, if recursive { "64" } else { "1" }]);
    let (mut out, mut lines) = tokio::io::duplex(256 << 10);
    let exec = async {
        let io = ExecIo { stdin: Input::Null, stdout: Output::Writer(&mut out), stderr: Output::Null };
        let ended = guest.exec(&command, io).await;
        drop(out);
        ended
    };
    let listen = async {
        let end = format!("{mark}E\n").into_bytes();
        let mut text = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = lines.read(&mut buffer).await {
            text.extend_from_slice(&buffer[..read]);
            while let Some(at) = find(&text, &end) {
                let listing: Vec<u8> = text.drain(..at + end.len()).collect();
                if changes.send(parse(&listing[..at], &mark)).await.is_err() {
                    return;
                }
            }
            if text.len() > LISTING {
                return;
            }
        }
    };
    tokio::select! {
        ended = exec => match ended? {
            status if status.success() => Ok(()),
            status => Err(failure(status, path, &[])),
        },
        // Nobody listens any more; dropping the run ends it.
        () = listen => Ok(()),
        () = changes.closed() => Ok(()),
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// What no name holds.
fn mark() -> String {
    format!("<{}>", super::record::token())
}

/// Reads records: each begins with the mark and a letter.
fn parse(output: &[u8], mark: &str) -> BTreeMap<String, Entry> {
    let text = String::from_utf8_lossy(output);
    let mut entries = BTreeMap::new();
    let mut link: Option<String> = None;
    for record in text.split(mark).skip(1) {
        let record = record.strip_suffix('\n').unwrap_or(record);
        let Some(kind) = record.chars().next() else { continue };
        let value = &record[kind.len_utf8()..];
        match kind {
            'S' => {
                // The two times are a date, a time with its fraction, and a zone each.
                let fields: Vec<&str> = value.splitn(13, ' ').collect();
                let [mode, size, modified, owner, group, inode, _, written, _, day, changed, _, path] =
                    fields[..]
                else {
                    continue;
                };
                let seconds: i64 = modified.parse().unwrap_or_default();
                let fraction =
                    written.split('.').nth(1).and_then(|digits| digits.get(..3)?.parse::<i64>().ok());
                let entry = Entry {
                    path: path.to_owned(),
                    mode: u32::from_str_radix(mode, 16).unwrap_or_default(),
                    size: size.parse().unwrap_or_default(),
                    modified: Timestamp(
                        seconds.saturating_mul(1000).saturating_add(fraction.unwrap_or_default()),
                    ),
                    owner: owner.to_owned(),
                    group: group.to_owned(),
                    target: None,
                    inode: inode.to_owned(),
                    written: format!("{modified} {written}"),
                    changed: format!("{day} {changed}"),
                };
                entries.insert(entry.path.clone(), entry);
            }
            'L' => link = Some(value.to_owned()),
            'T' => {
                if let Some(entry) = link.as_ref().and_then(|path| entries.get_mut(path)) {
                    entry.target = Some((value.to_owned(), None));
                }
            }
            'M' => {
                if let Some((_, mode)) = link
                    .as_ref()
                    .and_then(|path| entries.get_mut(path))
                    .and_then(|entry| entry.target.as_mut())
                {
                    *mode = u32::from_str_radix(value, 16).ok();
                }
            }
            _ => {}
        }
    }
    entries
}
