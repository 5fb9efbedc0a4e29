//! Removing a tree: many names at once, for a disk may take milliseconds over each of them and takes many at the same time.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::rootfs::at;

/// How many threads remove.
const WORKERS: usize = 16;
/// So many tasks wait before one thread is too few: most sandboxes are small, and threads cost more than what they remove.
const FEW: usize = 64;
/// How often it is tried where something appears while it goes, such as the last words of a process that ends.
const TRIES: usize = 8;
/// Names that one thread removes in one go.
const CHUNK: usize = 64;
/// What lies deeper is moved up first, so that no depth takes more open files than there may be.
const DEEP: usize = 32;

/// Removes a file or a tree, also directories that their owner made unreadable (overlay work directories are). Absent is fine.
///
/// # Errors
/// What the file system reports, with the path.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let mut result = remove(path);
    for _ in 1..TRIES {
        if result != Err(Errno::NOTEMPTY) {
            break;
        }
        result = remove(path);
    }
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(at(path, &error.into())),
    }
}

fn remove(path: &Path) -> rustix::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().map(OsStr::as_bytes).and_then(|name| CString::new(name).ok());
    let name = name.ok_or(Errno::INVAL)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(parent, flags, Mode::empty())?;
    match rustix::fs::unlinkat(&fd, &name, AtFlags::empty()) {
        // What Linux says of a directory, and what POSIX does.
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    let outside = Arc::new(Directory { fd, within: None, depth: 0, left: AtomicUsize::new(1) });
    let work = Work { stack: Mutex::new(Stack::default()), changed: Condvar::new() };
    work.push([Task::Enter(outside, name)]);
    work.run(FEW);
    if !work.lock().tasks.is_empty() {
        std::thread::scope(|scope| {
            for _ in 1..WORKERS {
                // With fewer threads it takes longer.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || work.run(usize::MAX));
            }
            work.run(usize::MAX);
        });
    }
    let failed = work.lock().failed;
    failed.map_or(Ok(()), Err)
}

/// A directory that is being emptied.
struct Directory {
    fd: OwnedFd,
    /// Where it is, and as what; `None` for the one that the tree lies in.
    within: Option<(Arc<Directory>, CString)>,
    depth: usize,
    /// Tasks in it that are not done.
    left: AtomicUsize,
}

enum Task {
    /// Look at what is in this directory.
    Enter(Arc<Directory>, CString),
    /// Remove these names, which are no directories.
    Unlink(Arc<Directory>, Vec<CString>),
}

#[derive(Default)]
struct Stack {
    /// The newest first: what was begun is finished before more is opened.
    tasks: Vec<Task>,
    /// Tasks that are being worked on.
    running: usize,
    /// Names given to what was moved up.
    moved: u64,
    failed: Option<Errno>,
}

struct Work {
    stack: Mutex<Stack>,
    changed: Condvar,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, tasks: impl IntoIterator<Item = Task>) {
        self.lock().tasks.extend(tasks);
        self.changed.notify_all();
    }

    /// Works until nothing is left, something failed, or more than `most` tasks wait.
    fn run(&self, most: usize) {
        loop {
            let mut stack = self.lock();
            let task = loop {
                if stack.failed.is_some() || stack.tasks.len() > most {
                    return;
                }
                if let Some(task) = stack.tasks.pop() {
                    break task;
                }
                if stack.running == 0 {
                    return;
                }
                stack = self.changed.wait(stack).unwrap_or_else(PoisonError::into_inner);
            };
            stack.running += 1;
            drop(stack);
            let done = match task {
                Task::Enter(within, name) => self.enter(within, name),
                Task::Unlink(directory, names) => {
                    unlink(&directory, &names).and_then(|()| finished(directory))
                }
            };
            let mut stack = self.lock();
            stack.running -= 1;
            stack.failed = stack.failed.or(done.err());
            drop(stack);
            self.changed.notify_all();
        }
    }

    fn enter(&self, within: Arc<Directory>, name: CString) -> rustix::io::Result<()> {
        if within.depth > DEEP {
            return self.move_up(within, &name);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&within.fd, &name, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(&within.fd, &name, Mode::RWXU, AtFlags::empty())?;
                open()?
            }
            other => other?,
        };
        let (mut names, mut directories) = (Vec::new(), Vec::new());
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name();
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let found = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(found.st_mode)
                }
                kind => kind,
            };
            match kind {
                FileType::Directory if matches!(name.to_bytes(), b"." | b"..") => {}
                FileType::Directory => directories.push(name.to_owned()),
                _ => names.push(name.to_owned()),
            }
        }
        let chunks: Vec<Vec<CString>> = names.chunks(CHUNK).map(<[CString]>::to_vec).collect();
        let left = AtomicUsize::new(1 + chunks.len() + directories.len());
        let depth = within.depth + 1;
        let directory = Arc::new(Directory { fd, within: Some((within, name)), depth, left });
        let enter = directories.into_iter().map(|name| Task::Enter(Arc::clone(&directory), name));
        self.push(enter.chain(chunks.into_iter().map(|names| Task::Unlink(Arc::clone(&directory), names))));
        finished(directory)
    }

    /// A directory too deep down becomes one at the top of the tree.
    fn move_up(&self, within: Arc<Directory>, name: &CString) -> rustix::io::Result<()> {
        let mut top = Arc::clone(&within);
        while let Some((above, _)) = top.within.as_ref().filter(|_| top.depth > 1) {
            top = Arc::clone(above);
        }
        loop {
            let number = {
                let mut stack = self.lock();
                stack.moved += 1;
                stack.moved
            };
            let free = CString::new(format!(".deep-{number}")).map_err(|_| Errno::INVAL)?;
            let rename =
                || rustix::fs::renameat_with(&within.fd, name, &top.fd, &free, RenameFlags::NOREPLACE);
            let moved = match rename() {
                // Its own `..` changes, and it may forbid that.
                Err(Errno::ACCESS) => {
                    writable(&within)?;
                    rustix::fs::chmodat(&within.fd, name, Mode::RWXU, AtFlags::empty())?;
                    rename()
                }
                other => other,
            };
            match moved {
                Err(Errno::EXIST) => continue,
                other => other?,
            }
            top.left.fetch_add(1, Ordering::SeqCst);
            self.push([Task::Enter(top, free)]);
            return finished(within);
        }
    }
}

fn unlink(directory: &Directory, names: &[CString]) -> rustix::io::Result<()> {
    names.iter().try_for_each(|name| take_away(directory, name, AtFlags::empty()))
}

/// One task in a directory is done; with the last one the directory goes, which is a task of the one above.
fn finished(mut directory: Arc<Directory>) -> rustix::io::Result<()> {
    while directory.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        let Some((above, name)) = &directory.within else { break };
        take_away(above, name, AtFlags::REMOVEDIR)?;
        directory = Arc::clone(above);
    }
    Ok(())
}

fn take_away(directory: &Directory, name: &CString, flags: AtFlags) -> rustix::io::Result<()> {
    let removed = match rustix::fs::unlinkat(&directory.fd, name, flags) {
        Err(Errno::ACCESS) if directory.within.is_some() => {
            writable(directory)?;
            rustix::fs::unlinkat(&directory.fd, name, flags)
        }
        other => other,
    };
    match removed {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Makes a directory one that its owner may change.
fn writable(directory: &Directory) -> rustix::io::Result<()> {
    rustix::fs::fchmod(&directory.fd, Mode::RWXU)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn removal_passes_closed_directories_and_absence() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/work");
        fs::create_dir_all(inner.join("deeper")).unwrap();
        fs::write(inner.join("deeper/file"), "").unwrap();
        for (path, mode) in [("a/work/deeper", 0o500), ("a/work", 0o000)] {
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        remove_tree(&dir.path().join("a")).unwrap();
        assert!(!dir.path().join("a").exists());
        remove_tree(&dir.path().join("a")).unwrap();
        remove_tree(&dir.path().join("no/such/directory")).unwrap();
    }

    #[test]
    fn links_are_removed_and_not_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "text").unwrap();
        symlink(&kept, dir.path().join("a/b/link")).unwrap();
        symlink(&kept, dir.path().join("a/link")).unwrap();
        symlink(&kept, dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("a")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(!dir.path().join("a").exists() && dir.path().join("link").symlink_metadata().is_err());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "text");
    }

    #[test]
    fn a_tree_of_many_files_and_any_depth_goes() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for n in 0..40 {
            fs::create_dir_all(tree.join(format!("{n}/empty"))).unwrap();
            for file in 0..100 {
                fs::write(tree.join(format!("{n}/{file}")), "").unwrap();
            }
        }
        // Longer than a path may be, and deeper than a process may have files open.
        let mut at = rustix::fs::open(&tree, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "down", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, ".deep-1", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "down", OFlags::PATH, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_removed_is_told() {
        let error = remove_tree(Path::new("/proc/self")).unwrap_err();
        assert!(error.to_string().contains("/proc/self"), "{error}");
    }
}
