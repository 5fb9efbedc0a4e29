//! What all sandboxes of one engine have in common: the directories of a fresh root, our own files over the host's `/etc`, and
//! the directories under `/usr` that root inside may write to. It is made once, read-only ever after, and lies as a layer
//! under the writes of every sandbox, so that making a sandbox makes a handful of directories and not sixty.
//!
//! A skeleton is named by a digest of its content, of its owner and of the boot: one that a power cut left half on the disk is
//! of an earlier boot and is made anew, so that nothing needs a sync. It comes into being under another name and is renamed
//! when it is whole. Every shim holds a lock on the one that it uses; whoever makes a new one removes those that nobody holds.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags};
use sha2::{Digest, Sha256};

use super::launch::HostFacts;
use super::remove::remove_tree;
use super::rootfs::{Files, at};
use super::state;

/// Top-level names of the host that hold programs and their configuration. Everything else of the host stays invisible.
pub const SYSTEM_DIRS: &[&str] =
    &["usr", "etc", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix"];
/// Those of them over which a skeleton has something of its own.
pub const LAYERS: &[&str] = &["usr", "etc"];
/// Names under /etc that hold secrets: replaced by files of our own or by nothing.
const SECRET_FILES: &[&str] =
    &["shadow", "shadow-", "gshadow", "gshadow-", "sudoers", "krb5.keytab", "machine-id"];
/// Directories under /etc that hold secrets: shown empty.
const SECRET_DIRS: &[&str] = &[
    "ssl/private",
    "ssh",
    "sudoers.d",
    "wireguard",
    "NetworkManager",
    "openvpn",
    "ppp",
    "letsencrypt",
    "docker",
];
/// Directories of the fresh root, with their modes.
const DIRS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("proc", 0o755),
    ("sys", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("root", 0o700),
    ("home", 0o755),
    ("workspace", 0o755),
    ("mnt", 0o755),
    ("media", 0o755),
    ("srv", 0o755),
    ("boot", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
    ("var/log", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/lib/dpkg", 0o755),
    ("var/spool", 0o755),
    ("var/mail", 0o755),
];
/// Directories over every image: something is mounted on each.
pub const MOUNT_POINTS: &[&str] = &["dev", "proc", "sys", "run"];
/// Directories under every image, for those that it does not have.
const IMAGE_DIRS: &[(&str, u32)] = &[
    ("tmp", 0o1777),
    ("root", 0o700),
    ("home", 0o755),
    ("workspace", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
    ("var/lib", 0o755),
];
/// Directories in which root inside may create, though the host's stay untouched below.
const LOCAL_DIRS: &[&str] = &[
    "local",
    "local/bin",
    "local/sbin",
    "local/lib",
    "local/share",
    "local/etc",
    "local/include",
    "local/man",
];
/// What stands in /etc/resolv.conf.
pub const NO_RESOLVER: &[u8] = b"# no resolver here: names are resolved by the egress proxy\n";
/// The name of one that is not whole yet, or not any more.
const UNFINISHED: &str = ".new";

/// Whether a path of the host is one of the secrets that are never shown.
pub fn is_secret(path: &Path) -> bool {
    path.strip_prefix("/etc")
        .is_ok_and(|name| SECRET_FILES.iter().chain(SECRET_DIRS).any(|secret| Path::new(secret) == name))
}

/// One thing in a skeleton.
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A directory; an opaque one hides what is below it.
    Dir { path: PathBuf, mode: u32, opaque: bool },
    /// A file.
    File { path: PathBuf, content: Vec<u8>, mode: u32 },
    /// A symbolic link.
    Link { path: PathBuf, target: PathBuf },
}

/// A skeleton that stays where it is for as long as this lives.
#[derive(Debug)]
pub struct Skeleton {
    path: PathBuf,
    _lock: File,
}

impl Skeleton {
    /// The skeleton with these entries for sandboxes whose root is `owner` on the host, made first where there is none. `dir` holds all of
    /// them.
    ///
    /// # Errors
    /// What the file system reports, with the path.
    pub fn find_or_make(dir: &Path, owner: (u32, u32), entries: &[Entry]) -> io::Result<Skeleton> {
        let path = dir.join(name(entries, owner, &state::boot_id()?));
        loop {
            if let Some(lock) = held(&path)? {
                return Ok(Skeleton { path, _lock: lock });
            }
            make(dir, &path, owner, entries)?;
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(at(path, &error.into())),
    }
}

/// Holds the skeleton at `path`; `None` when there is none, or it is going away.
fn held(path: &Path) -> io::Result<Option<File>> {
    let Some(file) = open(path)? else { return Ok(None) };
    rustix::fs::flock(&file, FlockOperation::LockShared)?;
    // It may have been removed before we had it.
    let ours = file.metadata()?;
    Ok(fs::metadata(path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        .then_some(file))
}

/// Makes the skeleton `path`, and removes what nobody uses any more. One maker at a time.
fn make(dir: &Path, path: &Path, owner: (u32, u32), entries: &[Entry]) -> io::Result<()> {
    state::private_dir(dir).map_err(|error| at(dir, &error))?;
    let lock = open(dir)?.ok_or(io::ErrorKind::NotFound)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    if path.exists() {
        return Ok(()); // another was faster
    }
    let unfinished = dir.join(UNFINISHED);
    remove_tree(&unfinished)?; // somebody was cut short
    for other in fs::read_dir(dir)? {
        let other = other?.path();
        let Some(unused) = open(&other)? else { continue };
        if rustix::fs::flock(&unused, FlockOperation::NonBlockingLockExclusive).is_ok() {
            fs::rename(&other, &unfinished)?;
            remove_tree(&unfinished)?;
        }
    }
    build(&unfinished, &Files::of(owner), entries)?;
    fs::rename(&unfinished, path).map_err(|error| at(path, &error))
}

fn build(root: &Path, files: &Files, entries: &[Entry]) -> io::Result<()> {
    files.dir(root, 0o755)?;
    for entry in entries {
        match entry {
            Entry::Dir { path, mode, opaque } => {
                let path = root.join(path);
                files.dir(&path, *mode)?;
                if *opaque {
                    rustix::fs::setxattr(&path, "user.overlay.opaque", b"y", XattrFlags::empty())
                        .map_err(|error| at(&path, &error.into()))?;
                }
            }
            Entry::File { path, content, mode } => files.file(&root.join(path), content, *mode)?,
            Entry::Link { path, target } => {
                symlink(target, root.join(path)).map_err(|error| at(&root.join(path), &error))?;
            }
        }
    }
    Ok(())
}

/// The name of a skeleton: another content, owner or boot is another name.
fn name(entries: &[Entry], owner: (u32, u32), boot: &str) -> String {
    let digest = Sha256::digest(format!("{owner:?}{boot}{entries:?}"));
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What belongs into the skeleton of sandboxes from images: `top` over the layers, `root` under them.
pub fn for_image() -> Vec<Entry> {
    let dir = |path: PathBuf, mode| Entry::Dir { path, mode, opaque: false };
    let mut entries = vec![dir("top".into(), 0o755), dir("root".into(), 0o755)];
    entries.extend(MOUNT_POINTS.iter().map(|name| dir(Path::new("top").join(name), 0o755)));
    entries.extend(IMAGE_DIRS.iter().map(|(name, mode)| dir(Path::new("root").join(name), *mode)));
    entries
}

/// What belongs into the skeleton of sandboxes on this machine's programs, parents first.
pub fn for_host(facts: &HostFacts) -> Vec<Entry> {
    let has = |name: &str| facts.system_dirs.iter().any(|dir| dir == name);
    let dir = |path: PathBuf, mode| Entry::Dir { path, mode, opaque: false };
    let link = |path: &str, target: PathBuf| Entry::Link { path: Path::new("root").join(path), target };
    let mut entries = vec![dir("root".into(), 0o755)];
    entries.extend(DIRS.iter().map(|(name, mode)| dir(Path::new("root").join(name), *mode)));
    entries.push(link("var/run", "/run".into()));
    entries.push(link("var/lock", "/run/lock".into()));
    for name in SYSTEM_DIRS {
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            entries.push(link(name, target));
        }
    }
    entries.extend(facts.system_dirs.iter().map(|name| dir(Path::new("root").join(name), 0o755)));
    if has("usr") {
        entries.push(dir("usr".into(), 0o755));
        entries.extend(local().into_iter().map(|path| dir(Path::new("usr").join(path), 0o755)));
    }
    if has("etc") {
        entries.push(dir("etc".into(), 0o755));
        entries.extend(etc());
    }
    entries
}

/// Paths below /usr in which root inside may create.
fn local() -> Vec<PathBuf> {
    let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let mut paths: Vec<PathBuf> =
        LOCAL_DIRS.iter().map(PathBuf::from).filter(|path| is_dir(&Path::new("/usr").join(path))).collect();
    // where npm and pip install to
    let mut names: Vec<_> = fs::read_dir("/usr/local/lib")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    for name in names {
        let path = Path::new("local/lib").join(name);
        let packages = path.join("dist-packages");
        paths.push(path);
        if is_dir(&Path::new("/usr").join(&packages)) {
            paths.push(packages);
        }
    }
    paths
}

/// Files of our own over the host's /etc.
fn etc() -> Vec<Entry> {
    let file =
        |name: &str, content: Vec<u8>, mode| Entry::File { path: Path::new("etc").join(name), content, mode };
    let host = Path::new("/etc");
    let mut entries = Vec::new();
    for name in ["passwd", "group"] {
        let content =
            fs::read(host.join(name)).unwrap_or_else(|_| b"root:x:0:0:root:/root:/bin/sh\n".to_vec());
        entries.push(file(name, content, 0o644));
    }
    entries.push(file("resolv.conf", NO_RESOLVER.to_vec(), 0o644));
    for name in SECRET_FILES {
        if host.join(name).exists() {
            entries.push(file(name, Vec::new(), 0o600));
        }
    }
    for name in SECRET_DIRS {
        if host.join(name).is_dir() {
            let path = Path::new("etc").join(name);
            if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("etc")) {
                entries.push(Entry::Dir { path: parent.to_owned(), mode: 0o755, opaque: false });
            }
            entries.push(Entry::Dir { path, mode: 0o755, opaque: true });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ours() -> (u32, u32) {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }

    fn names(dir: &Path) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }

    #[test]
    fn made_once_and_shared() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("skeletons");
        let facts = HostFacts { system_dirs: vec!["usr".into(), "etc".into()], dpkg: false };
        let made: Vec<_> = std::thread::scope(|scope| {
            let make = || Skeleton::find_or_make(&dir, ours(), &for_host(&facts)).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(names(&dir), [made[0].path().to_owned()]);
        assert!(made.iter().all(|skeleton| skeleton.path() == made[0].path()));
        assert!(made[0].path().join("root/workspace").is_dir());
        assert_eq!(fs::metadata(made[0].path().join("root/tmp")).unwrap().mode() & 0o7777, 0o1777);
        if Path::new("/etc/shadow").exists() {
            assert_eq!(fs::read(made[0].path().join("etc/shadow")).unwrap(), b"");
        }
    }

    #[test]
    fn what_nobody_holds_and_what_was_cut_short_goes_when_the_next_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("skeletons");
        let facts = |dirs: &[&str]| {
            let system_dirs = dirs.iter().map(|dir| (*dir).to_owned()).collect();
            for_host(&HostFacts { system_dirs, dpkg: false })
        };
        let held = Skeleton::find_or_make(&dir, ours(), &facts(&["usr"])).unwrap();
        drop(Skeleton::find_or_make(&dir, ours(), &facts(&["etc"])).unwrap());
        fs::create_dir_all(dir.join(UNFINISHED).join("root/half")).unwrap();
        let last = Skeleton::find_or_make(&dir, ours(), &facts(&["usr", "etc"])).unwrap();
        let mut left = vec![held.path().to_owned(), last.path().to_owned()];
        left.sort();
        assert_eq!(names(&dir), left);
    }

    #[test]
    fn another_owner_content_or_boot_is_another_skeleton() {
        let entries = [Entry::Link { path: "a".into(), target: "b".into() }];
        let first = name(&entries, (1, 1), "x");
        assert_eq!(first, name(&entries, (1, 1), "x"));
        for other in [name(&entries, (1, 2), "x"), name(&entries, (1, 1), "y"), name(&[], (1, 1), "x")] {
            assert_ne!(first, other);
        }
    }
}
