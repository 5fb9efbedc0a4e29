//! An exact copy of a sandbox's own files. What the kernel's overlay keeps in them, which is marks for what was deleted and attributes, means
//! as much as their bytes.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink,
};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::rootfs::at;

/// The most bytes of the names or the value of attributes of one file: what Linux itself accepts.
const MAX_ATTRIBUTES: usize = 64 * 1024;
/// Attributes that the system gives by itself.
const GIVEN: &[u8] = b"security.selinux";

/// Copies the directory `from`, which nobody writes to meanwhile, to `to`, which is not there yet: modes, owners, times, attributes, hard links
/// and holes are kept, and the blocks of files are shared where the file system can share them. The bytes that its files take.
///
/// # Errors
/// What the file system reports, with the path.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    // By device and number, where the first name of a file with several went.
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    make_dir(to)?;
    let mut dirs = vec![(from.to_owned(), to.to_owned())];
    let mut next = 0;
    while let Some((source, target)) = dirs.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(&source).map_err(|error| at(&source, &error))? {
            let name = entry.map_err(|error| at(&source, &error))?.file_name();
            let (source, target) = (source.join(&name), target.join(&name));
            let metadata = fs::symlink_metadata(&source).map_err(|error| at(&source, &error))?;
            if metadata.is_dir() {
                make_dir(&target)?;
                dirs.push((source, target));
                continue;
            }
            if metadata.nlink() > 1 && metadata.is_file() {
                if let Some(first) = links.get(&(metadata.dev(), metadata.ino())) {
                    fs::hard_link(first, &target).map_err(|error| at(&target, &error))?;
                    continue;
                }
                links.insert((metadata.dev(), metadata.ino()), target.clone());
            }
            bytes += metadata.blocks() * 512;
            copy_one(&source, &target, &metadata)
                .and_then(|()| copy_attributes(&source, &target, &metadata))
                .map_err(|error| at(&source, &error))?;
        }
    }
    // The directories last, from the inside out: what is made in one changes its times, and one without permission lets nothing in.
    for (source, target) in dirs.iter().rev() {
        fs::symlink_metadata(source)
            .and_then(|metadata| copy_attributes(source, target, &metadata))
            .map_err(|error| at(source, &error))?;
    }
    Ok(bytes)
}

/// The bytes on the disk of everything in a directory; a file with several names counts once.
///
/// # Errors
/// What the file system reports, with the path. What goes away meanwhile is none.
pub fn size(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut seen = HashSet::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| at(dir, &error.into()))?;
    let mut dirs = vec![PathBuf::from(".")];
    while let Some(inner) = dirs.pop() {
        // A directory may become a link while it is looked at.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = match rustix::fs::openat2(&top, &inner, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN) => continue,
            other => other.map_err(|error| at(&dir.join(&inner), &error.into()))?,
        };
        let entries = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        for entry in entries.map_err(|error| at(&dir.join(&inner), &error))? {
            let entry = entry.map_err(|error| at(&dir.join(&inner), &error))?;
            let path = inner.join(entry.file_name());
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| at(&dir.join(&path), &error))?,
            };
            if metadata.nlink() < 2 || metadata.is_dir() || seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.blocks() * 512;
            }
            if metadata.is_dir() {
                dirs.push(path);
            }
        }
    }
    Ok(bytes)
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| at(path, &error))
}

fn copy_one(source: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let from = fs::OpenOptions::new().read(true).custom_flags(flags).open(source)?;
        let to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
        return copy_data(from, to, metadata.len());
    }
    if kind.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    let special = if kind.is_fifo() {
        FileType::Fifo
    } else if kind.is_socket() {
        FileType::Socket
    } else if kind.is_char_device() && metadata.rdev() == 0 {
        FileType::CharacterDevice // the mark of an overlay that something was deleted
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a device"));
    };
    Ok(rustix::fs::mknodat(CWD, target, special, Mode::from_raw_mode(0o600), Dev::from(0u8))?)
}

fn copy_data(mut from: File, mut to: File, len: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(()); // most file systems cannot
    }
    to.set_len(len)?;
    let mut done = 0;
    while done < len {
        let start = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(done)) {
            Err(Errno::NXIO) => break, // nothing but a hole is left
            other => other?,
        };
        done = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let copied = io::copy(&mut (&from).take(done - start), &mut to)?;
        if copied != done - start {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile"));
        }
    }
    Ok(())
}

/// In this order: a new owner takes away set-user-id and capabilities, and writing an attribute changes the times.
fn copy_attributes(source: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
    lchown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    for name in attribute_names(source)? {
        let mut value = vec![0; MAX_ATTRIBUTES];
        let len = rustix::fs::lgetxattr(source, name.as_slice(), value.as_mut_slice())?;
        rustix::fs::lsetxattr(target, name.as_slice(), &value[..len], XattrFlags::empty())?;
    }
    if !metadata.is_symlink() {
        fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    let time = |secs, nanos| Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn attribute_names(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut names = vec![0; MAX_ATTRIBUTES];
    let len = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let names = names[..len].split(|byte| *byte == 0);
    Ok(names.filter(|name| !name.is_empty() && *name != GIVEN).map(<[u8]>::to_vec).collect())
}

/// Makes everything on the file system that holds `path` survive a power cut.
///
/// # Errors
/// What the file system reports.
pub fn sync_all(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?.as_fd())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn everything_about_a_tree_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("closed/deep")).unwrap();
        fs::write(from.join("closed/deep/file"), "text").unwrap();
        fs::set_permissions(from.join("closed/deep/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(from.join("closed/deep/file"), from.join("second name")).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.write_at(b"end", 64 << 20).unwrap();
        rustix::fs::mknodat(CWD, from.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        let deleted =
            rustix::fs::mknodat(CWD, from.join("deleted"), FileType::CharacterDevice, Mode::empty(), 0);
        let has_attributes =
            rustix::fs::setxattr(from.join("closed"), "user.overlay.opaque", b"y", XattrFlags::empty())
                .is_ok();
        fs::set_permissions(from.join("closed"), fs::Permissions::from_mode(0o1755)).unwrap();
        let old = Timestamps {
            last_access: Timespec { tv_sec: 1000, tv_nsec: 0 },
            last_modification: Timespec { tv_sec: 2000, tv_nsec: 5 },
        };
        for name in ["closed/deep", "link", "sparse"] {
            rustix::fs::utimensat(CWD, from.join(name), &old, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }

        copy_tree(&from, &to).unwrap();
        assert_eq!(size(&from).unwrap(), size(&to).unwrap());
        assert!(size(&from).unwrap() < 1 << 20, "holes are nothing");
        let of = |name: &str| fs::symlink_metadata(to.join(name)).unwrap();
        assert_eq!(fs::read_to_string(to.join("closed/deep/file")).unwrap(), "text");
        assert_eq!(of("closed/deep/file").mode() & 0o7777, 0o4711);
        assert_eq!((of("closed/deep/file").ino(), of("second name").nlink()), (of("second name").ino(), 2));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
        assert_eq!((of("sparse").len(), of("sparse").blocks() < 1000), ((64 << 20) + 3, true));
        let mut end = [0; 3];
        File::open(to.join("sparse")).unwrap().read_exact_at(&mut end, 64 << 20).unwrap();
        assert_eq!(&end, b"end");
        assert!(of("pipe").file_type().is_fifo());
        if deleted.is_ok() {
            assert_eq!((of("deleted").file_type().is_char_device(), of("deleted").rdev()), (true, 0));
        }
        if has_attributes {
            let mut value = [0; 8];
            let len =
                rustix::fs::lgetxattr(to.join("closed"), "user.overlay.opaque", &mut value[..]).unwrap();
            assert_eq!(&value[..len], b"y");
        }
        assert_eq!(of("closed").mode() & 0o7777, 0o1755);
        for name in ["closed/deep", "link", "sparse"] {
            assert_eq!((of(name).mtime(), of(name).mtime_nsec()), (2000, 5), "{name}");
        }
        assert!(copy_tree(&from, &to).is_err(), "what is there is not written over");
    }
}
