//! Trees as directories. They are written from the objects themselves: what a repository says about attributes, filters and line ends is not
//! asked, and nothing is written outside.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::git::Git;
use super::mirror::{Entry, LOCAL};
use super::{Found, GitError, Mirror};

/// The most bytes of one project's directory.
pub const MAX_CHECKOUT_BYTES: u64 = 128 << 20;
/// The most files of one project's directory.
pub const MAX_FILES: usize = 20_000;
/// The most that stands before the contents of all files of one project.
const HEADS: u64 = 4 << 20;
/// The first line of what stands for a file of Git LFS.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// A directory that nobody uses any more is kept this long: another process may just have made it.
const UNUSED: Duration = Duration::from_secs(3600);

/// Checked out trees, by their hash.
#[derive(Clone, Debug)]
pub struct Checkouts {
    root: PathBuf,
}

impl Checkouts {
    /// Those below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory with the files of a project. It is named by their hash, complete if it exists, and called as the project is.
    ///
    /// # Errors
    /// [`GitError::Unsupported`] for a submodule, a file of Git LFS, and names that lead elsewhere; [`GitError::TooLarge`].
    pub async fn take(&self, mirror: &Mirror, found: &Found) -> Result<PathBuf, GitError> {
        if !matches!(Path::new(&found.name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            return Err(GitError::Unsupported {
                path: found.path.clone(),
                why: "leads out of its directory",
            });
        }
        let dir = self.root.join(&found.tree).join(&found.name);
        if dir.is_dir() {
            return Ok(dir);
        }
        let entries = mirror.tree(&found.tree, true, true, |_, _| true).await?;
        let files = check(entries, &found.path)?;
        let ids: String = files.iter().map(|entry| format!("{}\n", entry.id)).collect();
        let operation = "cat-file";
        let out = Git::new(operation, &mirror.dir, ["--batch=%(objectsize)"], LOCAL)
            .input(ids.into_bytes())
            .answer(MAX_CHECKOUT_BYTES + HEADS)
            .run()
            .await?
            .good()?;
        let (root, target, within) = (self.root.clone(), dir.clone(), found.path.clone());
        let written = tokio::task::spawn_blocking(move || write(&root, &target, &within, &files, &out)).await;
        written.unwrap_or(Err(GitError::Garbled { operation }))?;
        Ok(dir)
    }

    /// Removes the directories that are not among `used` and were not made just now.
    ///
    /// # Errors
    /// What the system answers.
    pub fn prune(&self, used: &BTreeSet<PathBuf>) -> Result<(), GitError> {
        let trees = match fs::read_dir(&self.root) {
            Ok(trees) => trees,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(GitError::io("read", &self.root)(error)),
        };
        for tree in trees.flatten() {
            let path = tree.path();
            let age = tree.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > UNUSED) && !used.iter().any(|dir| dir.starts_with(&path)) {
                fs::remove_dir_all(&path).map_err(GitError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// The files and links of a tree, if all of it can be written.
fn check(entries: Vec<Entry>, within: &str) -> Result<Vec<Entry>, GitError> {
    let mut files = Vec::new();
    let mut bytes = 0_u64;
    for entry in entries {
        let unsupported = |why| Err(GitError::Unsupported { path: in_repository(within, &entry.path), why });
        let plain = |part: Component<'_>| match part {
            Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
            _ => false,
        };
        if !Path::new(&entry.path).components().all(plain) || entry.path.contains("//") {
            return unsupported("leads out of its directory");
        }
        match entry.mode.as_str() {
            "040000" => continue,
            "160000" => {
                return unsupported(
                    "is a submodule; submodules are not fetched, so put its files into the repository itself",
                );
            }
            "100644" | "100755" | "100664" | "120000" => {}
            _ => return unsupported("is neither a file, a directory nor a link"),
        }
        bytes = bytes.saturating_add(entry.size);
        files.push(entry);
    }
    if files.len() > MAX_FILES {
        return Err(GitError::TooLarge {
            what: format!("`{within}` with {} files", files.len()),
            limit: format!("{MAX_FILES} files"),
        });
    }
    if bytes > MAX_CHECKOUT_BYTES {
        let limit = format!("{} MiB", MAX_CHECKOUT_BYTES >> 20);
        return Err(GitError::TooLarge { what: format!("`{within}` with {bytes} bytes"), limit });
    }
    Ok(files)
}

/// Writes a directory under another name and moves it into place when it is whole and on disk.
fn write(root: &Path, target: &Path, within: &str, files: &[Entry], out: &[u8]) -> Result<(), GitError> {
    fs::create_dir_all(root).map_err(GitError::io("make", root))?;
    let scratch = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(root)
        .map_err(GitError::io("make a directory in", root))?;
    let dir = scratch.path().join("tree");
    make_dir(&dir)?;
    let mut rest = out;
    let mut links = Vec::new();
    for entry in files {
        let (content, next) = blob(rest).ok_or(GitError::Garbled { operation: "cat-file" })?;
        rest = next;
        let path = dir.join(&entry.path);
        if entry.mode == "120000" {
            links.push((path, content));
            continue;
        }
        if content.starts_with(LFS) {
            let why = "is kept in Git LFS, which is not fetched; put the file into the repository itself";
            return Err(GitError::Unsupported { path: in_repository(within, &entry.path), why });
        }
        make_parents(&dir, &entry.path)?;
        let mode = if entry.mode == "100755" { 0o755 } else { 0o644 };
        let failed = |source| GitError::io("write", &path)(source);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(failed)?;
        let done = file.write_all(content).and_then(|()| file.set_permissions(Permissions::from_mode(mode)));
        done.map_err(failed)?;
    }
    // Last, so that nothing is written through one.
    for (path, content) in links {
        make_parents(&dir, path.strip_prefix(&dir).unwrap_or(&path))?;
        let failed = |source| GitError::io("make the link", &path)(source);
        let text = std::str::from_utf8(content).map_err(|error| failed(std::io::Error::other(error)))?;
        std::os::unix::fs::symlink(text, &path).map_err(failed)?;
    }
    let on_disk = fs::File::open(&dir).and_then(|handle| rustix::fs::syncfs(&handle).map_err(Into::into));
    on_disk.map_err(GitError::io("sync", &dir))?;
    let parent = target.parent().unwrap_or(root);
    fs::create_dir_all(parent).map_err(GitError::io("make", parent))?;
    match fs::rename(&dir, target) {
        // Somebody else was faster, with the same files.
        Err(_) if target.is_dir() => Ok(()),
        moved => moved.map_err(GitError::io("make", target)),
    }
}

/// One blob of `cat-file --batch`, and what comes after it.
fn blob(out: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = out.iter().position(|b| *b == b'\n')?;
    let size: usize = std::str::from_utf8(out.get(..end)?).ok()?.parse().ok()?;
    let start = end + 1;
    let stop = start.checked_add(size)?;
    (out.get(stop) == Some(&b'\n')).then_some(())?;
    Some((out.get(start..stop)?, out.get(stop + 1..)?))
}

/// The directories above a file, one by one: none of them may be a link.
fn make_parents(dir: &Path, path: impl AsRef<Path>) -> Result<(), GitError> {
    let mut at = dir.to_owned();
    for part in path.as_ref().parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match fs::symlink_metadata(&at) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let path = at.display().to_string();
                return Err(GitError::Unsupported { path, why: "is both a directory and something else" });
            }
            Err(_) => make_dir(&at)?,
        }
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), GitError> {
    let made = fs::create_dir(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)));
    made.map_err(GitError::io("make", path))
}

fn in_repository(within: &str, path: &str) -> String {
    if within == "." { path.to_owned() } else { format!("{within}/{path}") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(mode: &str, path: &str) -> Entry {
        Entry {
            mode: mode.to_owned(),
            kind: "blob".to_owned(),
            id: "0".repeat(40),
            size: 3,
            path: path.to_owned(),
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for path in ["../x", "/x", "a/../../x", "a//x", ".git/config", "a/.GIT/hooks/x"] {
            assert!(check(vec![entry("100644", path)], ".").is_err(), "{path}");
        }
        let error = check(vec![entry("160000", "lib")], "shop").err().unwrap().to_string();
        assert!(error.starts_with("`shop/lib` is a submodule"), "{error}");
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let target = root.path().join("checkouts/t/x");
        let files = [entry("120000", "a"), entry("100644", "a/b")];
        let text = outside.to_str().unwrap();
        let out = format!("{}\n{text}\n3\nbad\n", text.len());
        assert!(write(&root.path().join("checkouts"), &target, ".", &files, out.as_bytes()).is_err());
        assert!(!target.exists());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_has_the_files_with_their_modes() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("checkouts/t/x");
        let files = [entry("100755", "bin/run"), entry("100644", "c"), entry("120000", "l")];
        write(&root.path().join("checkouts"), &target, ".", &files, b"3\na\nb\n3\nccc\n5\nbin/x\n").unwrap();
        assert_eq!(fs::read(target.join("bin/run")).unwrap(), b"a\nb");
        assert_eq!(fs::metadata(target.join("bin/run")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(target.join("c")).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_link(target.join("l")).unwrap(), Path::new("bin/x"));
        Checkouts::new(root.path().join("checkouts")).prune(&BTreeSet::new()).unwrap();
        assert!(target.exists(), "what was made just now stays");
    }
}
