//! What a directory of the host holds, kept true by looking only at what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Files, WatchError};
use crate::guest::tree::{HashCache, IGNORE_FILES, Scan, TreeEntry, TreeKind, tree_sha256};

/// A lock of git that is older was left behind.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// A directory of the host with everything in it that counts.
pub struct Tree {
    root: PathBuf,
    ignore: Option<Vec<String>>,
    entries: BTreeMap<String, TreeKind>,
    hashes: HashCache,
    /// Paths below the root that have to be looked at.
    dirty: BTreeSet<String>,
}

impl Tree {
    /// A directory that was not looked at yet. `ignore` as for [`Scan`].
    pub fn new(root: PathBuf, ignore: Option<Vec<String>>) -> Self {
        // Events carry the path that is watched; one without links is the same for everybody.
        let root = std::fs::canonicalize(&root).unwrap_or(root);
        let dirty = BTreeSet::from([String::new()]);
        Self { root, ignore, entries: BTreeMap::new(), hashes: HashCache::default(), dirty }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it holds, as of the last look.
    pub fn entries(&self) -> &BTreeMap<String, TreeKind> {
        &self.entries
    }

    /// [`tree_sha256`] of what it holds.
    pub fn sha256(&self) -> String {
        let entries: Vec<TreeEntry> = self
            .entries
            .iter()
            .map(|(path, kind)| TreeEntry { path: path.clone(), kind: kind.clone() })
            .collect();
        tree_sha256(&entries)
    }

    /// Something happened at this path; `false` if it is not in this directory.
    pub fn mark(&mut self, path: &Path) -> bool {
        let Some(below) = path.strip_prefix(&self.root).ok() else { return false };
        let Some(below) = below.to_str() else {
            self.mark_all();
            return true;
        };
        let (folder, name) = below.rsplit_once('/').unwrap_or(("", below));
        // What an ignore file says holds for its directory.
        let dirty = if IGNORE_FILES.contains(&name) { folder } else { below };
        self.dirty.insert(dirty.to_owned());
        true
    }

    /// Everything has to be looked at.
    pub fn mark_all(&mut self) {
        self.dirty = BTreeSet::from([String::new()]);
    }

    /// Whether something has to be looked at.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Looks at what is marked, and hears of changes in every directory there is. Reads files; not for the thread of a runtime.
    ///
    /// # Errors
    /// If it cannot be read or watched; then everything is marked.
    pub fn look(&mut self, files: &mut Files) -> Result<(), WatchError> {
        let looked = self.look_at_marked(files);
        if looked.is_err() {
            // A root that went away and comes back is another directory, and so are all below it.
            files.remove_all();
            self.mark_all();
        }
        looked
    }

    fn look_at_marked(&mut self, files: &mut Files) -> Result<(), WatchError> {
        files.add(&self.root)?;
        while !self.dirty.is_empty() {
            let only = std::mem::take(&mut self.dirty);
            let scan = Scan { root: &self.root, ignore: self.ignore.as_deref(), only: Some(&only) };
            let found = scan.run(&mut self.hashes)?;
            // What this costs follows from what changed, not from how much there is.
            for path in &only {
                self.forget(path);
            }
            let mut dirs = Vec::new();
            for entry in found {
                if matches!(entry.kind, TreeKind::Dir { .. }) {
                    dirs.push(entry.path.clone());
                }
                self.entries.insert(entry.path, entry.kind);
            }
            // First those that are gone: one that was moved is known to the kernel by its old name.
            let is_gone = |path: &Path| {
                let below = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
                below.is_none_or(|b| {
                    !b.is_empty() && !matches!(self.entries.get(b), Some(TreeKind::Dir { .. }))
                })
            };
            let mut gone = Vec::new();
            for path in &only {
                let path = if path.is_empty() { self.root.clone() } else { self.root.join(path) };
                let watched =
                    files.watched().range(path.clone()..).take_while(|other| other.starts_with(&path));
                gone.extend(watched.filter(|path| is_gone(path)).cloned());
            }
            gone.iter().for_each(|path| files.remove(path));
            for path in dirs {
                // What came into a directory before it was watched is seen by looking once more.
                if files.add(&self.root.join(&path))? {
                    self.dirty.insert(path);
                }
            }
        }
        Ok(())
    }

    /// Forgets what is at a path and below it.
    fn forget(&mut self, path: &str) {
        if path.is_empty() {
            return self.entries.clear();
        }
        self.entries.remove(path);
        let below = format!("{path}/");
        let within = self.entries.range(below.clone()..).take_while(|(other, _)| other.starts_with(&below));
        let within: Vec<String> = within.map(|(other, _)| other.clone()).collect();
        within.iter().for_each(|other| drop(self.entries.remove(other)));
    }
}

/// Whether git is changing the repository that this directory belongs to.
pub fn git_is_busy(directory: &Path) -> bool {
    let lock = directory.ancestors().find_map(|parent| {
        let git = parent.join(".git");
        if git.is_dir() {
            return Some(git.join("index.lock"));
        }
        // A worktree or submodule: a file that names the directory.
        let text = std::fs::read_to_string(&git).ok()?;
        Some(parent.join(text.strip_prefix("gitdir:")?.trim()).join("index.lock"))
    });
    let age = lock.and_then(|lock| std::fs::metadata(lock).ok()?.modified().ok()?.elapsed().ok());
    age.is_some_and(|age| age < LOCK_LIMIT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(tree: &Tree) -> Vec<&str> {
        tree.entries().keys().map(String::as_str).collect()
    }

    #[test]
    fn looking_at_what_changed_is_looking_at_everything() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/x"), "1").unwrap();
        std::fs::write(at("a/y"), "1").unwrap();
        let mut files = Files::new().unwrap();
        let mut tree = Tree::new(dir.path().to_owned(), Some(Vec::new()));
        tree.look(&mut files).unwrap();
        assert_eq!(names(&tree), ["a", "a/b", "a/b/x", "a/y"]);
        assert_eq!(files.watched().len(), 3);

        let root = tree.root().to_owned();
        let before = tree.sha256();
        std::fs::write(at("a/y"), "2").unwrap();
        assert!(tree.mark(&root.join("a/y")) && !tree.mark(Path::new("/elsewhere")));
        tree.look(&mut files).unwrap();
        assert_ne!(tree.sha256(), before);

        // Moved with all that is in it, and a new file in its new place.
        std::fs::rename(at("a/b"), at("c")).unwrap();
        std::fs::write(at("c/new"), "3").unwrap();
        tree.mark(&root.join("a/b"));
        tree.mark(&root.join("c"));
        tree.look(&mut files).unwrap();
        assert_eq!(names(&tree), ["a", "a/y", "c", "c/new", "c/x"]);
        assert!(files.watched().contains(&root.join("c")) && !files.watched().contains(&root.join("a/b")));

        std::fs::write(at("a/.gitignore"), "y\n").unwrap();
        tree.mark(&root.join("a/.gitignore"));
        tree.look(&mut files).unwrap();
        assert_eq!(names(&tree), ["a", "a/.gitignore", "c", "c/new", "c/x"]);

        std::fs::remove_dir_all(dir.path()).unwrap();
        tree.mark_all();
        assert!(tree.look(&mut files).is_err());
        assert!(tree.is_dirty() && files.watched().is_empty());
        assert!(!tree.entries().is_empty(), "what cannot be read is not gone");
    }

    #[test]
    fn a_lock_of_git_is_seen_from_below_and_an_old_one_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".git")).unwrap();
        std::fs::create_dir_all(dir.path().join("src")).unwrap();
        let src = dir.path().join("src");
        assert!(!git_is_busy(&src));
        let lock = dir.path().join(".git/index.lock");
        let file = std::fs::File::create(&lock).unwrap();
        assert!(git_is_busy(&src));
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(60)).unwrap();
        assert!(!git_is_busy(&src));
    }
}
