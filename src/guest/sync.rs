//! Keeping a directory inside in step with one of the host: only what differs travels, each file is replaced at once, and nothing is removed that was
//! not put there.
//!
//! The record of what is inside is that of a managed directory (see `bundle`): whoever looks finds the same whether the directory was brought by a bundle
//! or kept in step. While changes are under way the record claims nothing, and lists everything that may be there.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::archive::{Member, Source, send};
use super::bundle::{Control, check_path, key, record_line};
use super::record::{TreeRecord, check_entries};
use super::script::{ANSWER_LIMIT, SHORT, one_line, run, script};
use super::tree::{TreeEntry, TreeKind};
use crate::provider::{Guest, GuestError};

/// The entries of a directory by path.
pub type Entries = BTreeMap<String, TreeKind>;

/// What the record of a directory says.
#[derive(Debug, PartialEq, Eq)]
pub enum Synced {
    /// Nothing was put there.
    Nothing,
    /// This was put there.
    Settled(Entries),
    /// These are the paths that may have been put there; their content is not known.
    Unsettled(Entries),
}

/// Reads the record of the directory `to`.
///
/// # Errors
/// [`GuestError::Protocol`] if the answer makes no sense; whatever running a command gives.
pub async fn synced(guest: &dyn Guest, to: &str) -> Result<Synced, GuestError> {
    check_path(to)?;
    let what = format!("reading what is in {to}");
    let mut command = script!("synced").command([to, &key(to)]);
    command.timeout = Some(SHORT);
    let output = run(guest, &what, &command, ANSWER_LIMIT).await?;
    let protocol = || GuestError::Protocol { what: what.clone(), message: "it is not a record".to_owned() };
    if output.truncated {
        return Err(protocol());
    }
    let text = String::from_utf8(output.stdout).map_err(|_| protocol())?;
    let (state, mut rest) = text.split_once('\n').ok_or_else(protocol)?;
    let mut parts = BTreeMap::new();
    while let Some((head, after)) = rest.split_once('\n') {
        let (name, length) = head.split_once(' ').ok_or_else(protocol)?;
        let length: usize = length.trim().parse().map_err(|_| protocol())?;
        parts.insert(name.to_owned(), after.get(..length).ok_or_else(protocol)?.to_owned());
        rest = after.get(length..).unwrap_or_default();
    }
    let mut entries = TreeRecord::from_parts(parts).entries();
    match state {
        "none" => Ok(Synced::Nothing),
        "ok" => Ok(Synced::Settled(entries)),
        "pending" => {
            // What is listed may be there, in whatever state.
            for kind in entries.values_mut() {
                match kind {
                    TreeKind::File { sha256, .. } => sha256.clear(),
                    TreeKind::Dir { mode } => *mode = u32::MAX,
                    TreeKind::Symlink { .. } => {
                        *kind = TreeKind::File { sha256: String::new(), size: 0, mode: 0 };
                    }
                }
            }
            Ok(Synced::Unsettled(entries))
        }
        _ => Err(protocol()),
    }
}

/// What makes one set of entries into another.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Files and links that go, or become something else.
    unlink: Vec<String>,
    /// Directories that go, the deepest first.
    rmdir: Vec<String>,
    /// Directories that come, or whose mode changes.
    dirs: Vec<(String, u32)>,
    /// Files and links that come or change.
    bring: Vec<String>,
    /// Files whose mode alone changes.
    chmod: Vec<(String, u32)>,
    /// Of all these, those that were not there before.
    added: Vec<String>,
}

impl Difference {
    /// What makes `old` into `new`. Both are walked side by side: most of a large directory stays as it is.
    pub fn between(old: &Entries, new: &Entries) -> Self {
        let mut difference = Self::default();
        let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let was = if order.is_le() { before.next() } else { None };
            let is = if order.is_ge() { after.next() } else { None };
            let Some((path, _)) = is.or(was) else { break };
            difference.add(path, was.map(|(_, kind)| kind), is.map(|(_, kind)| kind));
        }
        difference.rmdir.reverse();
        difference
    }

    fn add(&mut self, path: &str, was: Option<&TreeKind>, is: Option<&TreeKind>) {
        let is_dir = |kind: Option<&TreeKind>| matches!(kind, Some(TreeKind::Dir { .. }));
        let path = || path.to_owned();
        match was {
            Some(TreeKind::Dir { .. }) if !is_dir(is) => self.rmdir.push(path()),
            Some(TreeKind::File { .. } | TreeKind::Symlink { .. }) if is.is_none() || is_dir(is) => {
                self.unlink.push(path());
            }
            _ => {}
        }
        match (was, is) {
            (_, None) => {}
            (Some(TreeKind::Dir { mode: before }), Some(TreeKind::Dir { mode })) if before == mode => {}
            (_, Some(TreeKind::Dir { mode })) => self.dirs.push((path(), *mode)),
            (
                Some(TreeKind::File { sha256: before, mode: mode_before, .. }),
                Some(TreeKind::File { sha256, mode, .. }),
            ) if before == sha256 => {
                if mode_before != mode {
                    self.chmod.push((path(), *mode));
                }
            }
            (Some(TreeKind::Symlink { target: before }), Some(TreeKind::Symlink { target }))
                if before == target => {}
            (_, Some(_)) => self.bring.push(path()),
        }
        if was.is_none() {
            self.added.push(path());
        }
    }

    /// Makes `old` into `new`, which this is the difference of.
    pub fn apply(&self, old: &mut Entries, new: &Entries) {
        for path in self.paths() {
            match new.get(path) {
                Some(kind) => drop(old.insert(path.to_owned(), kind.clone())),
                None => drop(old.remove(path)),
            }
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The paths that are touched, sorted.
    pub fn paths(&self) -> BTreeSet<&str> {
        let plain = [&self.unlink, &self.rmdir, &self.bring].into_iter().flatten().map(String::as_str);
        plain.chain([&self.dirs, &self.chmod].into_iter().flatten().map(|(path, _)| path.as_str())).collect()
    }
}

/// Changes `to` inside by `difference`, which ends at `new`, taking files from `from` of the host. With `digest` the record is complete afterwards, and
/// observing tells that digest; without it the record stays unsettled until a later call gives one. `owner` owns what is brought.
///
/// # Errors
/// [`GuestError::Unsupported`] if a file of the host is not what `new` says, because it changed meanwhile, and nothing was done; [`GuestError::Failed`] if
/// something inside is in the way.
pub async fn sync(
    guest: &dyn Guest,
    from: &Path,
    to: &str,
    difference: &Difference,
    new: &Entries,
    digest: Option<&str>,
    owner: Option<&str>,
) -> Result<(), GuestError> {
    check_path(to)?;
    if let Some(owner) = owner {
        one_line("the owner", owner)?;
    }
    let entry = |path: &str| Some(TreeEntry { path: path.to_owned(), kind: new.get(path)?.clone() });
    let touched: Vec<TreeEntry> = difference.paths().into_iter().filter_map(entry).collect();
    check_entries(&touched)?;
    let mut members = Vec::new();
    let mut control = Control::default();
    if !difference.is_empty() {
        changes(from, new, difference, &mut members, &mut control);
    }
    if let Some(digest) = digest {
        let all: Vec<TreeEntry> =
            new.iter().map(|(path, kind)| TreeEntry { path: path.clone(), kind: kind.clone() }).collect();
        for (part, text) in TreeRecord::of(&all).parts() {
            members.push(Member::bytes(format!("record/{part}"), 0o600, text));
        }
        members.push(Member::bytes("record/rec".to_owned(), 0o600, record_line("T", digest, "-", 0, to)));
        control.line(&["record"]);
    }
    members.push(Member::bytes("control".to_owned(), 0o600, control.0));
    let what = format!("bringing changes to {to}");
    let token = uuid::Uuid::now_v7().simple().to_string();
    let command = script!("sync", "owner").command([to, &key(to), &token, owner.unwrap_or_default()]);
    let output = send(guest, &what, &command, members).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(GuestError::Failed {
        what,
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
    })
}

fn changes(
    from: &Path,
    new: &Entries,
    difference: &Difference,
    members: &mut Vec<Member>,
    control: &mut Control,
) {
    let mut names = String::new();
    for path in &difference.added {
        names.push_str(path);
        names.push_str(if matches!(new.get(path), Some(TreeKind::Dir { .. })) { "/\n" } else { "\n" });
    }
    members.push(Member::bytes("names".to_owned(), 0o600, names));
    control.line(&["pending"]);
    let here = |path: &String| format!("./{path}");
    control.paths(difference.unlink.iter().map(here), &["unlink"]);
    control.paths(difference.rmdir.iter().map(here), &["rmdir"]);
    control.paths(difference.dirs.iter().map(|(path, _)| here(path)), &["mkdir"]);
    let mut moves: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in &difference.bring {
        let (mode, data) = match new.get(path) {
            Some(TreeKind::File { sha256, mode, .. }) => {
                (*mode, Source::File { path: from.join(path), sha256: Some(sha256.clone()) })
            }
            Some(TreeKind::Symlink { target }) => (0o777, Source::Link { target: target.clone() }),
            Some(TreeKind::Dir { .. }) | None => continue,
        };
        members.push(Member { name: format!("files/{path}"), mode, data });
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        moves.entry(folder).or_default().push(name);
    }
    for (folder, names) in &moves {
        control.paths(names, &["move", folder]);
    }
    // Last, because a directory may become one that cannot be written to.
    let mut modes: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (path, mode) in difference.dirs.iter().chain(&difference.chmod) {
        modes.entry(*mode).or_default().push(here(path));
    }
    for (mode, paths) in &modes {
        control.paths(paths, &["chmod", &format!("{mode:o}")]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str, mode: u32) -> TreeKind {
        TreeKind::File { sha256: content.to_owned(), size: 0, mode }
    }

    fn entries(of: &[(&str, TreeKind)]) -> Entries {
        of.iter().map(|(path, kind)| ((*path).to_owned(), kind.clone())).collect()
    }

    #[test]
    fn only_what_differs_is_touched() {
        let dir = TreeKind::Dir { mode: 0o755 };
        let old = entries(&[
            ("a", dir.clone()),
            ("a/same", file("1", 0o644)),
            ("a/content", file("1", 0o644)),
            ("a/mode", file("1", 0o644)),
            ("gone", dir.clone()),
            ("gone/x", file("1", 0o644)),
            ("becomes", dir.clone()),
            ("becomes/y", file("1", 0o644)),
        ]);
        let new = entries(&[
            ("a", dir),
            ("a/same", file("1", 0o644)),
            ("a/content", file("2", 0o644)),
            ("a/mode", file("1", 0o755)),
            ("becomes", TreeKind::Symlink { target: "a".to_owned() }),
        ]);
        let difference = Difference::between(&old, &new);
        assert_eq!(difference.unlink, ["becomes/y", "gone/x"]);
        assert_eq!(difference.rmdir, ["gone", "becomes"]);
        assert_eq!(difference.bring, ["a/content", "becomes"]);
        assert_eq!(difference.chmod, [("a/mode".to_owned(), 0o755)]);
        assert!(difference.dirs.is_empty());
        assert!(Difference::between(&new, &new).is_empty());
        let mut made = old.clone();
        difference.apply(&mut made, &new);
        assert_eq!(made, new);
        let all = Difference::between(&Entries::new(), &new);
        assert_eq!(all.added, ["a", "a/content", "a/mode", "a/same", "becomes"]);
    }
}
