//! Files, directories, secrets and the environment, put in place as one bundle: one round trip, each file replaced at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::archive::{Member, Source, changed, io_error, send, unreadable};
use super::record::{TreeRecord, check_entries};
use super::script::{feed_all, one_line, run, script};
use super::tree::{HashCache, Scan, TreeEntry, TreeKind, tree_sha256};
use crate::model::sha256_hex;
use crate::provider::{Guest, GuestError};

/// What [`write_bundle`] puts in place.
#[derive(Default)]
pub struct Bundle {
    /// The environment of every process, if it is to be replaced.
    pub env: Option<EnvBundle>,
    /// Files and directories.
    pub files: Vec<FileToWrite>,
    /// Managed paths that are to go. A path that is not managed is left alone.
    pub remove: Vec<String>,
}

/// An environment.
pub struct EnvBundle {
    /// What [`observe`](super::observe()) reports while it is in place.
    pub digest: String,
    /// The variables, secrets among them.
    pub values: BTreeMap<String, SecretString>,
}

/// One managed file or directory.
pub struct FileToWrite {
    /// Its absolute path inside.
    pub path: String,
    /// What [`observe`](super::observe()) reports for it.
    pub digest: String,
    /// Permission bits; `None` for 0644, 0400 (a secret) or the modes of the source.
    pub mode: Option<u32>,
    /// Who is to own it, a name or `uid[:gid]`, and the directories that are made for it; `None` for whoever writes it.
    pub owner: Option<String>,
    /// What it holds.
    pub content: Content,
}

/// What a managed file holds.
pub enum Content {
    /// These bytes.
    Inline(Vec<u8>),
    /// A file of the host.
    HostFile {
        /// Its path on the host.
        path: PathBuf,
        /// SHA-256 of its bytes as planned; other bytes are an error.
        sha256: String,
        /// Its permission bits on the host.
        mode: u32,
    },
    /// A directory of the host.
    HostTree {
        /// Its path on the host.
        path: PathBuf,
        /// [`tree_sha256`] as planned; another tree is an error.
        sha256: String,
        /// What is left out, as [`Scan::ignore`] has it.
        ignore: Option<Vec<String>>,
    },
    /// A secret. It lies in memory only: where the path does not, a link leads to it.
    Secret(SecretString),
}

impl fmt::Debug for FileToWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileToWrite").field("path", &self.path).field("digest", &self.digest).finish()
    }
}

/// Puts a bundle in place. Parents of files are made. A directory keeps what others put into it; of a former bundle's directory goes what the new
/// one does not have. Repeating it is harmless, and interrupting it leaves every file either old or new.
///
/// # Errors
/// [`GuestError::Io`] if the host's files cannot be read, [`GuestError::Unsupported`] if they are not what was planned or a name cannot be managed,
/// [`GuestError::Failed`] if something inside is in the way.
pub async fn write_bundle(guest: &dyn Guest, bundle: &Bundle) -> Result<(), GuestError> {
    let prepared = prepare(bundle).await?;
    let token = uuid::Uuid::now_v7().simple().to_string();
    let members = prepared.members(&token);
    let what = "writing files";
    let folders = prepared.owned_folders();
    if !folders.is_empty() {
        feed_all(guest, what, &script!("folders", "owner").command::<_, String>([]), &mut folders.as_bytes())
            .await?;
    }
    let command = |how: &str| script!("write", "owner").command([token.as_str(), how]);

    let output = send(guest, what, &command("unpack"), members.clone()).await?;
    match output.status {
        status if status.success() => Ok(()),
        // No tar inside: one round trip a member.
        crate::provider::ExitStatus::Code(72) => {
            run(guest, what, &command("prepare"), 0).await?;
            for member in &members {
                put(guest, member).await?;
            }
            run(guest, what, &command("commit"), 0).await.map(drop)
        }
        status => Err(GuestError::Failed {
            what: what.to_owned(),
            status,
            output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        }),
    }
}

/// Where root's environment is kept, below `/run`; `environment.sh` looks in the other places as well.
const ENVIRONMENT: &str = "pocketenv/env";

/// The longest environment, in bytes.
const MAX_ENVIRONMENT: u64 = 4 * 1024 * 1024;

/// The environment that is in place; empty if none is.
///
/// # Errors
/// Whatever running a command gives.
pub async fn environment(guest: &dyn Guest) -> Result<BTreeMap<String, String>, GuestError> {
    let what = "reading the environment";
    let protocol =
        |message: &str| GuestError::Protocol { what: what.to_owned(), message: message.to_owned() };
    let bytes = match guest.read_run_file(ENVIRONMENT, MAX_ENVIRONMENT).await {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(GuestError::Unsupported(_)) => {
            let mut command = script!("environment").command::<_, String>([]);
            command.timeout = Some(super::script::SHORT);
            let output = run(guest, what, &command, MAX_ENVIRONMENT as usize).await?;
            if output.truncated {
                return Err(protocol("it is longer than 4 MiB"));
            }
            output.stdout
        }
        Err(error) => return Err(error),
    };
    let text = String::from_utf8(bytes).map_err(|_| protocol("it is not UTF-8"))?;
    text.split_terminator('\0')
        .map(|pair| {
            let (name, value) = pair.split_once('=').ok_or_else(|| protocol("an entry has no `=`"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// The name of a path's record.
pub(super) fn key(path: &str) -> String {
    let mut key = sha256_hex(path.as_bytes());
    key.truncate(32);
    key
}

/// A bundle with every fact about host files known.
struct Prepared<'a> {
    bundle: &'a Bundle,
    trees: BTreeMap<&'a str, Vec<TreeEntry>>,
}

async fn prepare(bundle: &Bundle) -> Result<Prepared<'_>, GuestError> {
    let mut trees = BTreeMap::new();
    for path in &bundle.remove {
        check_path(path)?;
    }
    if let Some(env) = &bundle.env {
        one_line("the digest", &env.digest)?;
        for (name, value) in &env.values {
            if name.is_empty() || name.contains(['=', '\0']) || value.expose_secret().contains('\0') {
                return Err(GuestError::Unsupported(format!(
                    "environment variable {name:?}: the name or the value cannot be given to a process"
                )));
            }
        }
    }
    for file in &bundle.files {
        check_path(&file.path)?;
        one_line("the digest", &file.digest)?;
        if let Some(owner) = &file.owner {
            one_line("the owner", owner)?;
        }
        let Content::HostTree { path, sha256, ignore } = &file.content else { continue };
        let (root, ignore) = (path.clone(), ignore.clone());
        let scanning = move || {
            Scan { root: &root, ignore: ignore.as_deref(), only: None }.run(&mut HashCache::default())
        };
        let entries = tokio::task::spawn_blocking(scanning)
            .await
            .map_err(|error| io_error("reading a directory", io::Error::other(error)))?
            .map_err(|error| unreadable(path, error))?;
        if tree_sha256(&entries) != *sha256 {
            return Err(changed(path));
        }
        check_entries(&entries)?;
        trees.insert(file.path.as_str(), entries);
    }
    Ok(Prepared { bundle, trees })
}

pub(super) fn check_path(path: &str) -> Result<(), GuestError> {
    one_line("the path", path)?;
    if !path.starts_with('/')
        || path.ends_with('/')
        || path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."))
    {
        return Err(GuestError::Unsupported(format!(
            "the path {path:?} is not an absolute path without `.`, `..` and a slash at its end"
        )));
    }
    Ok(())
}

/// The lines that say what is done with the members: paths gather, a verb uses them up.
#[derive(Default)]
pub(super) struct Control(pub(super) String);

impl Control {
    pub(super) fn line(&mut self, parts: &[&str]) {
        self.0.push_str(&parts.join("\t"));
        self.0.push('\n');
    }

    pub(super) fn paths(&mut self, paths: impl IntoIterator<Item = impl AsRef<str>>, verb: &[&str]) {
        let mut gathered = 0;
        for path in paths {
            self.line(&["arg", path.as_ref()]);
            gathered += 1;
            if gathered == 200 {
                self.line(verb);
                gathered = 0;
            }
        }
        if gathered > 0 {
            self.line(verb);
        }
    }
}

impl Prepared<'_> {
    /// The directories in which something is staged.
    fn folders(&self) -> BTreeSet<&str> {
        let folder = |file: &'_ FileToWrite| match &file.content {
            Content::HostTree { .. } => file.path.len(),
            _ => parent(&file.path).len(),
        };
        self.bundle.files.iter().map(|file| &file.path[..folder(file)]).collect()
    }

    /// The directories that must be there, and who owns those that are made: lines of owner and path.
    fn owned_folders(&self) -> String {
        let mut folders: BTreeMap<&str, &str> = BTreeMap::new();
        for file in &self.bundle.files {
            let folder = match &file.content {
                Content::HostTree { .. } => file.path.as_str(),
                _ => parent(&file.path),
            };
            if let Some(owner) = &file.owner {
                folders.entry(folder).or_insert(owner);
            }
        }
        folders.into_iter().map(|(folder, owner)| format!("{owner}\t{folder}\n")).collect()
    }

    /// Everything that travels, the control lines last.
    fn members(&self, token: &str) -> Vec<Member> {
        let mut members = Vec::new();
        let mut control = Control::default();
        for path in &self.bundle.remove {
            control.line(&["forget", &key(path)]);
        }
        let mut owner = None;
        for file in &self.bundle.files {
            if file.owner != owner {
                owner.clone_from(&file.owner);
                control.line(&["owner", owner.as_deref().unwrap_or_default()]);
            }
            match &file.content {
                Content::Secret(value) => secret(file, value, &mut members, &mut control),
                Content::HostTree { .. } => {
                    let entries = self.trees.get(file.path.as_str()).map_or(&[][..], Vec::as_slice);
                    tree(file, entries, token, &mut members, &mut control);
                }
                Content::Inline(bytes) => {
                    let source = Source::Bytes(bytes.as_slice().into());
                    single(file, source, &sha256_hex(bytes), 0o644, token, &mut members, &mut control);
                }
                Content::HostFile { path, sha256, mode } => {
                    let source = Source::File { path: path.clone(), sha256: Some(sha256.clone()) };
                    single(file, source, sha256, *mode, token, &mut members, &mut control);
                }
            }
        }
        // Staging directories last: several files may share one.
        for folder in self.folders() {
            control.line(&["sweep", folder]);
        }
        if let Some(env) = &self.bundle.env {
            let mut text = String::new();
            for (name, value) in &env.values {
                text.push_str(name);
                text.push('=');
                text.push_str(value.expose_secret());
                text.push('\0');
            }
            control.line(&["env", &env.digest, &sha256_hex(text.as_bytes())]);
            members.push(Member::bytes("mem/new.env".to_owned(), 0o600, text));
        }
        // Staging directories go when everything has left them; those of interrupted writes go with them.
        let single =
            |file: &&FileToWrite| matches!(file.content, Content::Inline(_) | Content::HostFile { .. });
        let folders: BTreeSet<&str> =
            self.bundle.files.iter().filter(single).map(|file| parent(&file.path)).collect();
        for folder in folders {
            control.line(&["sweep", folder]);
        }
        members.push(Member::bytes("control".to_owned(), 0o600, control.0));
        members
    }
}

/// The record as it is stored: kind, digest, hash, kind and mode as `stat -c %f` prints them, path.
fn record(kind: &str, file: &FileToWrite, sha256: &str, mode: u32) -> String {
    record_line(kind, &file.digest, sha256, mode, &file.path)
}

pub(super) fn record_line(kind: &str, digest: &str, sha256: &str, mode: u32, path: &str) -> String {
    format!("{kind}\t{digest}\t{sha256}\t{:x}\t{path}\n", 0o100_000 | mode)
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn single(
    file: &FileToWrite,
    data: Source,
    sha256: &str,
    default_mode: u32,
    token: &str,
    members: &mut Vec<Member>,
    control: &mut Control,
) {
    let key = key(&file.path);
    let mode = file.mode.unwrap_or(default_mode) & 0o7777;
    members.push(Member::bytes(format!("var/.new.{key}.rec"), 0o600, record("F", file, sha256, mode)));
    // Staged beside its place: on the same filesystem, so that the last move is at once.
    let folder = parent(&file.path).trim_end_matches('/');
    let stage = format!("{folder}/.pocketenv-{token}");
    let name = name(&file.path);
    members.push(Member { name: format!("root{stage}/{name}"), mode, data });
    control.line(&["pending", &key]);
    control.line(&["own_staged", &stage]);
    control.paths([name], &["move", &stage, if folder.is_empty() { "/" } else { folder }]);
    control.line(&["record", &key]);
}

fn secret(file: &FileToWrite, value: &SecretString, members: &mut Vec<Member>, control: &mut Control) {
    let key = key(&file.path);
    let mode = file.mode.unwrap_or(0o400) & 0o7777;
    let bytes = value.expose_secret().as_bytes();
    members.push(Member::bytes(format!("var/.new.{key}.rec"), 0o600, record("S", file, "-", mode)));
    members.push(Member::bytes(format!("mem/new.{key}.sum"), 0o600, format!("{}\n", sha256_hex(bytes))));
    members.push(Member::bytes(format!("mem/new.{key}"), 0o600, bytes));
    control.line(&["pending", &key]);
    control.line(&["secret", &key, &format!("{mode:o}"), &file.path]);
    control.line(&["record", &key]);
}

fn tree(
    file: &FileToWrite,
    entries: &[TreeEntry],
    token: &str,
    members: &mut Vec<Member>,
    control: &mut Control,
) {
    let key = key(&file.path);
    let stage = format!("{}/.pocketenv-{token}", file.path);
    let mut folders: Vec<String> = vec![file.path.clone()];
    let mut modes: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut moves: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in entries {
        let full = format!("{}/{}", file.path, entry.path);
        let data = match &entry.kind {
            TreeKind::Dir { mode } => {
                folders.push(full.clone());
                modes.entry(*mode).or_default().push(full);
                continue;
            }
            TreeKind::File { sha256, .. } => {
                Source::File { path: host_path(file, &entry.path), sha256: Some(sha256.clone()) }
            }
            TreeKind::Symlink { target } => Source::Link { target: target.clone() },
        };
        let mode = match &entry.kind {
            TreeKind::File { mode, .. } => *mode,
            _ => 0o777,
        };
        let folder = entry.path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("/{folder}"));
        moves.entry(folder).or_default().push(name(&entry.path).to_owned());
        members.push(Member { name: format!("root{stage}/{}", entry.path), mode, data });
    }
    for (part, text) in TreeRecord::of(entries).parts() {
        members.push(Member::bytes(format!("var/.new.{key}.{part}"), 0o600, text));
    }
    members.push(Member::bytes(format!("var/.new.{key}.rec"), 0o600, record("T", file, "-", 0)));

    control.line(&["pending", &key]);
    control.paths(&folders, &["mkdir"]);
    for (mode, paths) in &modes {
        control.paths(paths, &["chmod", &format!("{mode:o}")]);
    }
    control.paths(&folders, &["own"]);
    control.line(&["own_staged", &stage]);
    for (folder, names) in &moves {
        control.paths(names, &["move", &format!("{stage}{folder}"), &format!("{}{folder}", file.path)]);
    }
    control.line(&["record", &key]);
}

fn host_path(file: &FileToWrite, relative: &str) -> PathBuf {
    match &file.content {
        Content::HostTree { path, .. } => path.join(relative),
        _ => PathBuf::from(relative),
    }
}

/// Puts one member where there is no tar.
async fn put(guest: &dyn Guest, member: &Member) -> Result<(), GuestError> {
    let what = "writing files";
    let script = script!("put");
    let mode = format!("{:o}", member.mode);
    match &member.data {
        Source::Bytes(bytes) => {
            let command = script.command([&member.name, &mode]);
            feed_all(guest, what, &command, &mut &bytes[..]).await.map(drop)
        }
        // Directories come by the control lines.
        Source::Directory => Ok(()),
        Source::Link { target } => {
            let command = script.command([&member.name, &mode, target]);
            run(guest, what, &command, 0).await.map(drop)
        }
        Source::File { path, sha256 } => {
            let reading = |source| io_error(&format!("reading {}", path.display()), source);
            let bytes = tokio::fs::read(path).await.map_err(reading)?;
            if sha256.as_ref().is_some_and(|expected| sha256_hex(&bytes) != *expected) {
                return Err(changed(path));
            }
            let command = script.command([&member.name, &mode]);
            feed_all(guest, what, &command, &mut &bytes[..]).await.map(drop)
        }
    }
}
