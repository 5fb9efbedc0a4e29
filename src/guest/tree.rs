//! What a directory of the host holds: the one walk, with the one ignore engine, behind copies, sync and hashes.
//!
//! Gitignore semantics for `.gitignore`, `.dockerignore` and `.pocketenvignore`, wherever they stand below the root. Links are
//! entries, never followed.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

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
    let read = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TreeError::Read { path, source }
    };
    let root = std::fs::canonicalize(root).map_err(read(root))?;
    let mut walk = ignore::WalkBuilder::new(&root);
    walk.standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        .follow_links(false)
        .add_custom_ignore_filename(".dockerignore")
        .add_custom_ignore_filename(".pocketenvignore");
    let mut entries = Vec::new();
    for found in walk.build() {
        let found = found?;
        let path = found.path();
        let Ok(below) = path.strip_prefix(&root) else { continue };
        if below.as_os_str().is_empty() {
            continue;
        }
        if entries.len() >= MAX_ENTRIES {
            return Err(TreeError::TooMany(root));
        }
        let text = below.to_str().ok_or_else(|| TreeError::NotUtf8(path.to_path_buf()))?.to_owned();
        let metadata = std::fs::symlink_metadata(path).map_err(read(path))?;
        let mode = mode_of(&metadata);
        let kind = if metadata.is_symlink() {
            let target = std::fs::read_link(path).map_err(read(path))?;
            let target = target.to_str().ok_or_else(|| TreeError::NotUtf8(path.to_path_buf()))?.to_owned();
            TreeKind::Symlink { target }
        } else if metadata.is_dir() {
            TreeKind::Dir { mode }
        } else if metadata.is_file() {
            let (sha256, size) = file_sha256(path).map_err(read(path))?;
            TreeKind::File { sha256, size, mode }
        } else {
            return Err(TreeError::Special(path.to_path_buf()));
        };
        entries.push(TreeEntry { path: text, kind });
    }
    entries.sort();
    Ok(entries)
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
}
