//! What a directory of the host holds: the one walk, with the one ignore engine, behind copies, sync and hashes.
//!
//! Gitignore semantics for `.gitignore`, `.dockerignore` and `.pocketenvignore`, wherever they stand below the root. Links are
//! entries, never followed.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most entries one tree may have.
pub const MAX_ENTRIES: usize = 100_000;

/// One thing in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TreeEntry {
    /// The path below the root, with `/` between parts.
    pub path: String,
    /// What it is.
    pub kind: TreeKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeKind {
    /// A regular file.
    File {
        /// SHA-256 of its bytes, as 64 lowercase hex digits.
        sha256: String,
        /// Its length in bytes.
        size: u64,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory, also an empty one.
    Dir {
        /// Its permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads, as written in the link.
        target: String,
    },
}

/// A directory that cannot be read in full.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Something in it cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The walk failed.
    #[error("cannot walk the directory: {0}")]
    Walk(#[from] ignore::Error),
    /// A name or link target is not UTF-8.
    #[error("{path} is not UTF-8", path = .0.display())]
    NotUtf8(PathBuf),
    /// A socket, device or pipe.
    #[error("{path} is neither a file, a directory nor a link", path = .0.display())]
    Special(PathBuf),
    /// Too much.
    #[error("there are more than {MAX_ENTRIES} entries in {path}; leave some out with a .pocketenvignore file", path = .0.display())]
    TooMany(PathBuf),
}

impl From<TreeError> for std::io::Error {
    fn from(error: TreeError) -> Self {
        Self::other(error)
    }
}

/// Everything below `root` that no ignore file leaves out, sorted by path, with a hash of every file.
pub fn scan(root: &Path) -> Result<Vec<TreeEntry>, TreeError> {
    Scan { root, ignore: None, only: None }.run(&mut HashCache::default())
}

/// One walk through a directory.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// The directory.
    pub root: &'a Path,
    /// For a directory that is kept in step while it changes: patterns left out next to the ignore files. `.git` is left out before them, and what
    /// cannot be carried over (sockets, devices) or vanishes while it is read is left out too. `None` for a directory that has to be readable whole.
    pub ignore: Option<&'a [String]>,
    /// Only what lies within one of these paths below the root, as [`TreeEntry::path`] has them; the empty path is the root.
    pub only: Option<&'a BTreeSet<String>>,
}

/// Hashes of files that have not changed since they were read, so that looking again costs no reading.
#[derive(Debug, Default)]
pub struct HashCache(HashMap<String, (Stamp, String)>);

/// What changes whenever a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file written so short ago may be written again without another time: its stamp proves nothing.
const FRESH: Duration = Duration::from_millis(100);

/// Why a pattern of `ignore:` cannot be used.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let mut builder = GitignoreBuilder::new("");
    builder.add_line(None, pattern).map(drop).map_err(|error| error.to_string())
}

/// The names of ignore files.
pub const IGNORE_FILES: [&str; 3] = [".gitignore", ".dockerignore", ".pocketenvignore"];

impl Scan<'_> {
    /// Walks; entries sorted by path.
    pub fn run(self, hashes: &mut HashCache) -> Result<Vec<TreeEntry>, TreeError> {
        let read = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TreeError::Read { path, source }
        };
        let root = std::fs::canonicalize(self.root).map_err(read(self.root))?;
        let mut walk = ignore::WalkBuilder::new(&root);
        walk.standard_filters(false).git_ignore(true).require_git(false).follow_links(false);
        IGNORE_FILES.iter().filter(|name| **name != ".gitignore").for_each(|name| {
            walk.add_custom_ignore_filename(name);
        });
        let live = self.ignore.is_some();
        let left_out = self.left_out(&root)?;
        let only = self.only.cloned();
        let below = root.clone();
        walk.filter_entry(move |entry| {
            let path = entry.path();
            let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
            let wanted = match (&only, path.strip_prefix(&below).ok().and_then(Path::to_str)) {
                (Some(only), Some(relative)) => touches(only, relative),
                _ => true,
            };
            wanted && (path == below || !left_out.matched(path, is_dir).is_ignore())
        });
        let mut entries = Vec::new();
        for found in walk.build() {
            let found = match found {
                Err(error) if live && vanished(&error) => continue,
                found => found?,
            };
            let path = found.path();
            let Ok(below) = path.strip_prefix(&root) else { continue };
            if below.as_os_str().is_empty() {
                continue;
            }
            let text = below.to_str().ok_or_else(|| TreeError::NotUtf8(path.to_path_buf()))?.to_owned();
            if self.only.is_some_and(|only| !is_within(only, &text)) {
                continue;
            }
            if entries.len() >= MAX_ENTRIES {
                return Err(TreeError::TooMany(root));
            }
            match kind(path, &text, hashes) {
                Ok(kind) => entries.push(TreeEntry { path: text, kind }),
                Err(TreeError::Read { source, .. })
                    if live && source.kind() == std::io::ErrorKind::NotFound => {}
                Err(TreeError::Special(_)) if live => {}
                Err(error) => return Err(error),
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn left_out(&self, root: &Path) -> Result<Gitignore, TreeError> {
        let mut builder = GitignoreBuilder::new(root);
        if let Some(patterns) = self.ignore {
            builder.add_line(None, ".git")?;
            for pattern in patterns {
                builder.add_line(None, pattern)?;
            }
        }
        Ok(builder.build()?)
    }
}

fn kind(path: &Path, text: &str, hashes: &mut HashCache) -> Result<TreeKind, TreeError> {
    let read = |source| TreeError::Read { path: path.to_path_buf(), source };
    let metadata = std::fs::symlink_metadata(path).map_err(read)?;
    let mode = mode_of(&metadata);
    if metadata.is_symlink() {
        let target = std::fs::read_link(path).map_err(read)?;
        let target = target.to_str().ok_or_else(|| TreeError::NotUtf8(path.to_path_buf()))?.to_owned();
        Ok(TreeKind::Symlink { target })
    } else if metadata.is_dir() {
        Ok(TreeKind::Dir { mode })
    } else if metadata.is_file() {
        let stamp = Stamp::of(&metadata);
        let known = hashes.0.get(text).filter(|(known, _)| *known == stamp).map(|(_, sha256)| sha256.clone());
        if let Some(sha256) = known {
            return Ok(TreeKind::File { sha256, size: metadata.len(), mode });
        }
        let (sha256, size) = file_sha256(path).map_err(read)?;
        let old = metadata.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > FRESH);
        if old && size == metadata.len() {
            hashes.0.insert(text.to_owned(), (stamp, sha256.clone()));
        } else {
            hashes.0.remove(text);
        }
        Ok(TreeKind::File { sha256, size, mode })
    } else {
        Err(TreeError::Special(path.to_path_buf()))
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn vanished(error: &ignore::Error) -> bool {
    error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Whether a path is one of these, or below one.
pub fn is_within(paths: &BTreeSet<String>, path: &str) -> bool {
    let parents = path.match_indices('/').filter_map(|(end, _)| path.get(..end));
    paths.contains("") || paths.contains(path) || parents.into_iter().any(|parent| paths.contains(parent))
}

/// Whether a path is one of these, below one, or above one.
fn touches(paths: &BTreeSet<String>, path: &str) -> bool {
    let inside = format!("{path}/");
    path.is_empty()
        || is_within(paths, path)
        || paths.range(inside.clone()..).next().is_some_and(|next| next.starts_with(&inside))
}

/// One hash over all entries: path, kind, mode, content hash or link target.
pub fn tree_sha256(entries: &[TreeEntry]) -> String {
    let mut hash = Sha256::new();
    let mut field = |text: &str| {
        // The length before each field keeps two different lists from giving the same bytes.
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    for entry in entries {
        field(&entry.path);
        match &entry.kind {
            TreeKind::File { sha256, mode, .. } => {
                ["file", sha256, &octal(*mode)].into_iter().for_each(&mut field)
            }
            TreeKind::Dir { mode } => ["dir", &octal(*mode)].into_iter().for_each(&mut field),
            TreeKind::Symlink { target } => ["link", target].into_iter().for_each(&mut field),
        }
    }
    hex::encode(hash.finalize())
}

/// SHA-256 and length of a file's bytes, read in pieces.
pub fn file_sha256(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        let Some(read) = buffer.get(..n).filter(|b| !b.is_empty()) else { break };
        hash.update(read);
        size += n as u64;
    }
    Ok((hex::encode(hash.finalize()), size))
}

/// Permission bits.
pub fn mode_of(metadata: &std::fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o7777
}

fn octal(mode: u32) -> String {
    let mut text = String::new();
    let _ = write!(text, "{mode:04o}");
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn scans_what_is_not_ignored_and_notices_every_change() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        std::fs::create_dir_all(at("a/empty")).unwrap();
        std::fs::create_dir_all(at("node_modules/x")).unwrap();
        std::fs::write(at("a/b.txt"), "hello").unwrap();
        std::fs::write(at(".hidden"), "").unwrap();
        std::fs::write(at("debug.log"), "").unwrap();
        std::fs::write(at(".gitignore"), "*.log\n").unwrap();
        std::fs::write(at(".pocketenvignore"), "node_modules\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        let entries = scan(dir.path()).unwrap();
        let paths: Vec<&str> = entries.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, [".gitignore", ".hidden", ".pocketenvignore", "a", "a/b.txt", "a/empty", "link"]);
        assert_eq!(entries.last().unwrap().kind, TreeKind::Symlink { target: "/etc/passwd".into() });
        let before = tree_sha256(&entries);
        assert_eq!(before, tree_sha256(&scan(dir.path()).unwrap()));
        std::fs::write(at("a/b.txt"), "hellO").unwrap();
        let after = tree_sha256(&scan(dir.path()).unwrap());
        assert_ne!(before, after);
        std::fs::rename(at("a/empty"), at("a/other")).unwrap();
        assert_ne!(after, tree_sha256(&scan(dir.path()).unwrap()));
        assert!(matches!(scan(&at("nope")), Err(TreeError::Read { .. })));
    }

    #[test]
    fn a_part_is_what_the_whole_has_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for folder in ["a/b", "a-b", ".git/objects", "target"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["a/b/x", "a/y", "a/y.log", "a-b/z", ".git/HEAD", "target/t"] {
            std::fs::write(at(file), file).unwrap();
        }
        std::fs::write(at(".gitignore"), "*.log\n").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("a/socket")).unwrap();
        let ignore = ["/target".to_owned()];
        let scan = |only: Option<&BTreeSet<String>>| {
            let entries =
                Scan { root: dir.path(), ignore: Some(&ignore), only }.run(&mut HashCache::default());
            entries.unwrap().into_iter().map(|e| e.path).collect::<Vec<_>>()
        };
        assert_eq!(scan(None), [".gitignore", "a", "a-b", "a-b/z", "a/b", "a/b/x", "a/y"]);
        let only = |paths: &[&str]| scan(Some(&paths.iter().map(|p| (*p).to_owned()).collect()));
        assert_eq!(only(&["a/b"]), ["a/b", "a/b/x"]);
        assert_eq!(only(&["a/y", "a/y.log", "a/gone", ".git/HEAD", "target"]), ["a/y"]);
        assert_eq!(only(&[""]), scan(None));
        assert!(super::scan(dir.path()).is_err(), "a source has to be whole");
    }

    #[test]
    fn a_remembered_hash_is_not_believed_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "one").unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(60);
        std::fs::File::open(&file).unwrap().set_modified(long_ago).unwrap();
        let mut cache = HashCache::default();
        let scan =
            |cache: &mut HashCache| Scan { root: dir.path(), ignore: None, only: None }.run(cache).unwrap();
        let first = scan(&mut cache);
        assert_eq!(cache.0.len(), 1);
        assert_eq!(scan(&mut cache), first);
        // The same size, and the time set back: only the inode's change time tells.
        std::fs::write(&file, "two").unwrap();
        std::fs::File::open(&file).unwrap().set_modified(long_ago).unwrap();
        assert_ne!(scan(&mut cache), first);
    }

    #[test]
    fn bad_patterns_are_told() {
        assert!(check_pattern("node_modules").is_ok());
        assert!(check_pattern("[z-a]").is_err());
    }
}
