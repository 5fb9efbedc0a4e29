//! A directory of the host as it is written into sandboxes: every entry that no ignore file excludes, with modes, links and hashes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::model::hash_of;

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeEntry {
    /// Its path relative to the root, parts separated by `/`.
    pub path: String,
    /// What it is.
    pub kind: TreeKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeKind {
    /// A regular file.
    File {
        /// SHA-256 of its bytes in hex.
        sha256: String,
        /// Its length in bytes.
        size: u64,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory.
    Dir {
        /// Its permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// What it leads to, as written.
        target: String,
    },
}

/// The entries of directory `root` without the root itself, sorted by path. `.gitignore`, `.dockerignore` and `.pocketenvignore` are honoured.
///
/// # Errors
/// Whatever reading gives; a name that is not UTF-8; a socket, device or pipe.
pub fn scan(root: &Path) -> io::Result<Vec<TreeEntry>> {
    let walk = ignore::WalkBuilder::new(root)
        .hidden(false)
        .parents(false)
        .git_global(false)
        .git_exclude(false)
        .require_git(false)
        .add_custom_ignore_filename(".dockerignore")
        .add_custom_ignore_filename(".pocketenvignore")
        .build();
    let mut entries = Vec::new();
    for entry in walk {
        let entry = entry.map_err(io::Error::other)?;
        let relative = entry.path().strip_prefix(root).map_err(io::Error::other)?;
        if relative.as_os_str().is_empty() {
            continue;
        }
        let invalid =
            |why| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", entry.path().display()));
        let path = relative.to_str().ok_or_else(|| invalid("the name is not UTF-8"))?.to_owned();
        let metadata = std::fs::symlink_metadata(entry.path())?;
        let mode = metadata.permissions().mode() & 0o7777;
        let kind = if metadata.is_symlink() {
            let target = std::fs::read_link(entry.path())?;
            TreeKind::Symlink {
                target: target
                    .to_str()
                    .ok_or_else(|| invalid("the target of the link is not UTF-8"))?
                    .to_owned(),
            }
        } else if metadata.is_dir() {
            TreeKind::Dir { mode }
        } else if metadata.is_file() {
            let (sha256, size) = hash_file(entry.path())?;
            TreeKind::File { sha256, size, mode }
        } else {
            return Err(invalid("is neither a file, a directory nor a symbolic link"));
        };
        entries.push(TreeEntry { path, kind });
    }
    entries.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    Ok(entries)
}

/// SHA-256 over sorted entries.
pub fn tree_sha256(entries: &[TreeEntry]) -> String {
    hash_of(entries).0
}

/// SHA-256 and length of a file.
pub fn hash_file(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hex::encode(hasher.finalize()), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}
