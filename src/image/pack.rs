//! A directory as an archive: the other way round than `unpack`, and only what is there. The same directory gives the same bytes.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::unpack::{MAX_ENTRIES, MAX_PATH, OPAQUE, OPAQUE_XATTR, WHITEOUT, open_dir};

/// The most bytes of the names or of one value of the attributes of a file: what Linux itself accepts.
const MAX_XATTR: usize = 64 * 1024;
/// How deep directories may be: what is deeper has no name that the kernel would take.
const MAX_DEPTH: usize = 2048;

/// What was packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Entries of the archive.
    pub entries: u64,
    /// Things that an archive cannot hold, which are sockets, and devices.
    pub left_out: u64,
}

/// A writer of archives with all that the file system knows of a file.
pub struct Packer<W: Write> {
    builder: Builder<W>,
    packed: Packed,
    /// By device and number, the first name of a file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    /// Paths that are left out.
    without: Vec<PathBuf>,
}

impl<W: Write> Packer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        let (packed, links) = (Packed::default(), HashMap::new());
        Self { builder: Builder::new(out), packed, links, without: Vec::new() }
    }

    /// Leaves these paths out.
    #[must_use]
    pub fn without(mut self, paths: &[String]) -> Self {
        self.without = paths.iter().map(PathBuf::from).collect();
        self
    }

    /// Writes the directory of one layer: what an overlay keeps in it as marks of its own becomes what an archive says for it.
    ///
    /// # Errors
    /// What the file system reports, with the path.
    pub fn layer(&mut self, root: &OwnedFd) -> io::Result<()> {
        if rustix::fs::fgetxattr(root, OPAQUE_XATTR, &mut [0; 1]).is_ok() {
            self.mark(Path::new(OsStr::from_bytes(OPAQUE)))?;
        }
        self.children(root, Path::new(""), 0)
    }

    /// Writes what is at `path` beneath `root`: a file, by the name `name`, or all that a directory holds. Whether it is a directory.
    ///
    /// # Errors
    /// What the file system reports, with the path.
    pub fn tree(&mut self, root: &OwnedFd, path: &Path, name: &Path) -> io::Result<bool> {
        if let Ok(dir) = open_dir(root, path) {
            self.children(&dir, Path::new(""), 0)?;
            return Ok(true);
        }
        let (Some(parent), Some(file)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let parent = open_dir(root, parent)?;
        self.entry(&parent, file, name, 0)?;
        Ok(false)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// What writing reports.
    pub fn finish(self) -> io::Result<(W, Packed)> {
        Ok((self.builder.into_inner()?, self.packed))
    }

    fn children(&mut self, dir: &OwnedFd, at: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH || at.as_os_str().len() > MAX_PATH {
            return Err(invalid(at, "it is too deep"));
        }
        let mut names: Vec<OsString> = Vec::new();
        for entry in Dir::read_from(dir).map_err(|error| failed(at, error))? {
            let entry = entry.map_err(|error| failed(at, error))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort();
        for name in names {
            self.entry(dir, &name, &at.join(&name), depth)?;
        }
        Ok(())
    }

    fn count(&mut self) -> io::Result<()> {
        self.packed.entries += 1;
        match self.packed.entries > MAX_ENTRIES {
            true => Err(io::Error::other(format!("there are more than {MAX_ENTRIES} files"))),
            false => Ok(()),
        }
    }

    fn entry(&mut self, parent: &OwnedFd, name: &OsStr, at: &Path, depth: usize) -> io::Result<()> {
        let fail = |error: Errno| failed(at, error);
        if self.without.iter().any(|path| path == at) {
            return Ok(());
        }
        if name.as_bytes().starts_with(WHITEOUT) {
            return Err(invalid(at, "an image cannot hold a file of this name"));
        }
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = flags | OFlags::DIRECTORY;
                let dir = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(fail)?;
                self.directory(&dir, at)?;
                self.children(&dir, at, depth + 1)
            }
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                        let mut header = header(&stat, EntryType::Link, 0);
                        self.count()?;
                        return self.builder.append_link(&mut header, at, first);
                    }
                    self.links.insert((stat.st_dev, stat.st_ino), at.to_owned());
                }
                let file = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(fail)?;
                self.attributes(&file, at)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let mut header = header(&stat, EntryType::Regular, size);
                self.count()?;
                let mut content = Exactly { inner: File::from(file), left: size };
                self.builder.append_data(&mut header, at, &mut content)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(fail)?;
                let target = OsString::from_vec(target.into_bytes());
                let mut header = header(&stat, EntryType::Symlink, 0);
                self.count()?;
                self.builder.append_link(&mut header, at, Path::new(&target))
            }
            FileType::Fifo => {
                let mut header = header(&stat, EntryType::Fifo, 0);
                self.count()?;
                self.builder.append_data(&mut header, at, io::empty())
            }
            // What is deleted from the layers below.
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let hides = [WHITEOUT, name.as_bytes()].concat();
                self.mark(&at.with_file_name(OsStr::from_bytes(&hides)))
            }
            _ => {
                self.packed.left_out += 1;
                Ok(())
            }
        }
    }

    fn directory(&mut self, dir: &OwnedFd, at: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(dir).map_err(|error| failed(at, error))?;
        let is_opaque = self.attributes(dir, at)?;
        let mut header = header(&stat, EntryType::Directory, 0);
        self.count()?;
        let mut named = at.as_os_str().to_owned();
        named.push("/");
        self.builder.append_data(&mut header, Path::new(&named), io::empty())?;
        if is_opaque { self.mark(&at.join(OsStr::from_bytes(OPAQUE))) } else { Ok(()) }
    }

    /// An empty file that says something about those below.
    fn mark(&mut self, at: &Path) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(0);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        self.count()?;
        self.builder.append_data(&mut header, at, io::empty())
    }

    /// Writes the extended attributes that `unpack` takes; whether one says that the directory is opaque.
    fn attributes(&mut self, file: &OwnedFd, at: &Path) -> io::Result<bool> {
        let mut names = vec![0; MAX_XATTR];
        let len = match rustix::fs::flistxattr(file, names.as_mut_slice()) {
            Err(Errno::OPNOTSUPP) => 0,
            other => other.map_err(|error| failed(at, error))?,
        };
        let mut names: Vec<&[u8]> = names[..len].split(|byte| *byte == 0).collect();
        names.sort_unstable();
        let (mut kept, mut is_opaque) = (Vec::new(), false);
        for name in names.into_iter().filter_map(|name| std::str::from_utf8(name).ok()) {
            let ours = name.starts_with("user.") && !name.starts_with("user.overlay.");
            if !ours && name != "security.capability" && name != OPAQUE_XATTR {
                continue;
            }
            let mut value = vec![0; MAX_XATTR];
            let len = match rustix::fs::fgetxattr(file, name, value.as_mut_slice()) {
                Err(Errno::NODATA) => continue,
                other => other.map_err(|error| failed(at, error))?,
            };
            value.truncate(len);
            if name == OPAQUE_XATTR {
                is_opaque |= value == b"y";
            } else {
                kept.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
        if !kept.is_empty() {
            let kept = kept.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            self.builder.append_pax_extensions(kept)?;
        }
        Ok(is_opaque)
    }
}

fn header(stat: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

/// A file that has to have as many bytes as were announced.
struct Exactly {
    inner: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..wanted])?;
        self.left -= read as u64;
        match read {
            0 if wanted > 0 => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter while it was read"))
            }
            read => Ok(read),
        }
    }
}

/// The paths beneath `root` that fit a pattern, in which `*`, `?` and `[…]` stand for parts of one name; in order. Links on the way lead
/// beneath the root.
///
/// # Errors
/// What the file system reports; a pattern that is none.
pub fn matching(root: &OwnedFd, pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let std::path::Component::Normal(part) = part else { continue };
        let text = part.to_string_lossy();
        if !text.contains(['*', '?', '[']) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let glob = globset::Glob::new(&text).map_err(|error| io::Error::other(error.to_string()))?;
        let glob = glob.compile_matcher();
        let mut next = Vec::new();
        for path in found {
            let dir = match open_dir(root, &path) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                other => other.map_err(|error| failed(&path, error))?,
            };
            for entry in Dir::read_from(&dir).map_err(|error| failed(&path, error))? {
                let name = entry.map_err(|error| failed(&path, error))?.file_name().to_bytes().to_vec();
                let name = OsString::from_vec(name);
                if !matches!(name.as_bytes(), b"." | b"..") && glob.is_match(&name) {
                    next.push(path.join(name));
                }
            }
            if next.len() as u64 > MAX_ENTRIES {
                return Err(io::Error::other(format!("more than {MAX_ENTRIES} files fit")));
            }
        }
        found = next;
    }
    found.retain(|path| exists(root, path));
    found.sort();
    Ok(found)
}

fn exists(root: &OwnedFd, path: &Path) -> bool {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return true };
    open_dir(root, parent)
        .is_ok_and(|dir| rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

/// Where a path leads beneath the root when the link that it may be is followed; links in between are followed anyway.
///
/// # Errors
/// What the file system reports.
pub fn followed(root: &OwnedFd, path: &Path) -> io::Result<PathBuf> {
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let named = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let file = rustix::fs::openat2(root, named, flags, Mode::empty(), resolve)
        .map_err(|error| failed(path, error))?;
    let whole = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let top = std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd()))?;
    whole.strip_prefix(&top).map(Path::to_owned).map_err(|_| invalid(path, "it leads out of the image"))
}

fn failed(path: &Path, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("/{}: {error}", path.display()))
}

fn invalid(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::super::{Digest, Expected, unpack};
    use super::*;

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn packed(path: &Path) -> Vec<u8> {
        let mut packer = Packer::new(Vec::new());
        packer.layer(&open(path)).unwrap();
        packer.finish().unwrap().0
    }

    #[test]
    fn what_is_packed_is_unpacked_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let long = "n".repeat(200);
        fs::create_dir_all(from.join("a/empty")).unwrap();
        fs::create_dir_all(from.join(&long)).unwrap();
        fs::write(from.join(&long).join("file"), vec![7; 100_000]).unwrap();
        fs::write(from.join("a/run"), "x").unwrap();
        fs::set_permissions(from.join("a/run"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(from.join("a/run"), from.join("a/second")).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        let noted =
            rustix::fs::setxattr(from.join("a/run"), "user.note", b"a\nb", rustix::fs::XattrFlags::empty());
        let opaque =
            rustix::fs::setxattr(from.join("a"), OPAQUE_XATTR, b"y", rustix::fs::XattrFlags::empty());
        let (mode, none) = (Mode::empty(), 0);
        let hides =
            rustix::fs::mknodat(rustix::fs::CWD, from.join("gone"), FileType::CharacterDevice, mode, none);
        let archive = packed(&from);
        assert_eq!(archive, packed(&from));

        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let expected = Expected { digest: None, diff_id: Digest::of(&archive), size: archive.len() as u64 };
        unpack(archive.as_slice(), &open(&to), &expected, rustix::process::geteuid().is_root()).unwrap();
        assert_eq!(packed(&to), archive);
        let run = fs::metadata(to.join("a/run")).unwrap();
        assert_eq!((run.mode() & 0o7777, run.nlink()), (0o4755, 2));
        if noted.is_ok() && opaque.is_ok() {
            let mut value = [0; 8];
            let len = rustix::fs::getxattr(to.join("a/run"), "user.note", &mut value[..]).unwrap();
            assert_eq!(&value[..len], b"a\nb");
            rustix::fs::getxattr(to.join("a"), OPAQUE_XATTR, &mut value[..]).unwrap();
        }
        assert_eq!(hides.is_ok(), fs::symlink_metadata(to.join("gone")).is_ok());
    }

    #[test]
    fn patterns_stay_beneath_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("lib/x")).unwrap();
        for name in ["lib/a.so", "lib/b.so", "lib/c.o"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        symlink("/lib", dir.path().join("link")).unwrap();
        symlink("/etc/passwd", dir.path().join("out")).unwrap();
        let root = open(dir.path());
        let found = |pattern: &str| matching(&root, Path::new(pattern)).unwrap();
        assert_eq!(found("/lib/*.so"), [Path::new("lib/a.so"), Path::new("lib/b.so")]);
        assert_eq!(found("link/?.o"), [Path::new("link/c.o")]);
        assert_eq!(found("lib/none"), Vec::<PathBuf>::new());
        assert_eq!(followed(&root, Path::new("link/a.so")).unwrap(), Path::new("lib/a.so"));
        assert!(followed(&root, Path::new("out")).is_err(), "it leads to a file that the root does not have");
    }
}
