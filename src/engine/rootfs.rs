//! The files of one sandbox on the host: what it wrote over its skeleton and over the host's system directories.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::launch::{HostFacts, IdMap, LaunchRequest, default_hostname};
use super::skeleton;
use super::spec::{Image, Network};

/// Names under /etc of what differs from one sandbox to the next.
pub const NETWORK_FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// Looks at the machine.
pub fn host_facts() -> HostFacts {
    let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let system_dirs = skeleton::SYSTEM_DIRS
        .iter()
        .filter(|name| is_dir(&Path::new("/").join(name)))
        .map(|name| (*name).to_owned())
        .collect();
    HostFacts { system_dirs, dpkg: is_dir(Path::new("/var/lib/dpkg")) }
}

/// Makes whatever of the sandbox's own files is not there yet, owned by root inside; the rest is in its skeleton. `dir` is the
/// sandbox's directory.
///
/// # Errors
/// What the file system reports, with the path.
pub fn prepare(dir: &Path, request: &LaunchRequest, facts: &HostFacts) -> io::Result<()> {
    let files = Files::of(request.id_map.root());
    for name in ["rootfs", "upper", "work", "work/rootfs"] {
        files.dir(&dir.join(name), 0o755)?;
    }
    for name in &facts.system_dirs {
        files.dir(&dir.join("upper").join(name), 0o755)?;
        files.dir(&dir.join("work").join(name), 0o755)?;
    }
    match &request.spec.image {
        Image::Host if request.snapshots.copied.contains("etc") => files.network_files_of_root(dir, request),
        Image::Host if facts.system_dirs.iter().any(|name| name == "etc") => {
            files.network_files(&dir.join("upper/etc"), request)
        }
        Image::Host => Ok(()),
        Image::Oci(_) => files.network_files_of_root(dir, request),
    }
}

/// Makes files that belong to root inside.
pub(super) struct Files {
    /// The owner, where it is not whoever makes them.
    owner: Option<(u32, u32)>,
}

impl Files {
    pub(super) fn of(owner: (u32, u32)) -> Files {
        let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Files { owner: Some(owner).filter(|owner| *owner != ours) }
    }

    /// `Ok(false)` when it was there already.
    pub(super) fn dir(&self, path: &Path, mode: u32) -> io::Result<bool> {
        match fs::DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.is_half_made(path)? {
                    self.own(path)?;
                }
                return Ok(false);
            }
            other => other.map_err(|error| at(path, &error))?,
        }
        // the shim's file mode mask is 022
        if mode & 0o7022 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|error| at(path, &error))?;
        }
        self.own(path)?;
        Ok(true)
    }

    /// Whether whoever made it was cut short before it was given to its owner: nobody inside can make what belongs to us.
    fn is_half_made(&self, path: &Path) -> io::Result<bool> {
        let uid = fs::symlink_metadata(path).map_err(|error| at(path, &error))?.uid();
        Ok(self.owner.is_some() && uid == rustix::process::geteuid().as_raw())
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(|error| at(path, &error))
    }

    /// Writes a file that is not there yet; whatever the sandbox made of it since is kept. What a power cut left of it is written again.
    pub(super) fn file(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        let new = || fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let opened = match new() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let there = fs::symlink_metadata(path).map_err(|error| at(path, &error))?;
                let is_empty = there.is_file() && there.len() == 0 && !content.is_empty();
                if !is_empty && !self.is_half_made(path)? {
                    return Ok(());
                }
                fs::remove_file(path).and_then(|()| new())
            }
            other => other,
        };
        let mut file = opened.map_err(|error| at(path, &error))?;
        file.write_all(content)?;
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        fchown(&file, Some(uid), Some(gid)).map_err(|error| at(path, &error))
    }

    /// The same where /etc is a directory of the root itself, which whoever is inside may have made something else of.
    fn network_files_of_root(&self, dir: &Path, request: &LaunchRequest) -> io::Result<()> {
        self.dir(&dir.join("rootfs/etc"), 0o755)?;
        let Some(etc) = real_dir(&dir.join("rootfs/etc"))? else { return Ok(()) };
        let etc = PathBuf::from(format!("/proc/self/fd/{}", etc.as_raw_fd()));
        self.network_files(&etc, request)?;
        if request.spec.network != Network::Host {
            self.file(&etc.join("resolv.conf"), skeleton::NO_RESOLVER, 0o644)?;
        }
        Ok(())
    }

    /// The files under /etc that differ from one sandbox to the next.
    fn network_files(&self, etc: &Path, request: &LaunchRequest) -> io::Result<()> {
        let hostname = request.spec.hostname.clone().unwrap_or_else(|| default_hostname(&request.id));
        let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {hostname}\n");
        self.file(&etc.join("hostname"), format!("{hostname}\n").as_bytes(), 0o644)?;
        self.file(&etc.join("hosts"), hosts.as_bytes(), 0o644)?;
        if request.spec.network == Network::Host {
            let resolv = fs::read("/etc/resolv.conf").unwrap_or_default();
            self.file(&etc.join("resolv.conf"), &resolv, 0o644)?;
        }
        Ok(())
    }
}

pub(super) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A directory that root inside may have replaced by a link, which is not followed; `None` if so.
fn real_dir(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Ok(None),
        Err(error) => Err(at(path, &error.into())),
    }
}

/// Forgets the files that depend on the spec, so that the next launch writes them anew.
///
/// # Errors
/// What the file system reports.
pub fn forget_network_files(dir: &Path) -> io::Result<()> {
    for etc in ["upper/etc", "rootfs/etc"] {
        let Some(etc) = real_dir(&dir.join(etc))? else { continue };
        for name in NETWORK_FILES {
            match rustix::fs::unlinkat(&etc, name, AtFlags::empty()) {
                Err(rustix::io::Errno::NOENT) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Chooses the ids for a new sandbox.
///
/// # Errors
/// What reading `/etc/subuid` reports, other than its absence.
pub fn choose_ids() -> io::Result<IdMap> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if uid == 0 {
        // Above every range that useradd, systemd and container tools hand out. One range for all: they share volumes.
        return Ok(IdMap::High { base: 0x7000_0000 });
    }
    if find_program("newuidmap").is_some() && find_program("newgidmap").is_some() {
        let ranges = (subordinate("/etc/subuid", uid)?, subordinate("/etc/subgid", uid)?);
        if let (Some(uids), Some(gids)) = ranges {
            return Ok(IdMap::Subordinate { ids: (uid, gid), uids, gids });
        }
    }
    Ok(IdMap::Single { ids: (uid, gid) })
}

/// Where a program is, in the places that setuid helpers are installed to.
pub fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin", "/run/current-system/sw/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
}

fn subordinate(file: &str, uid: u32) -> io::Result<Option<(u32, u32)>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    Ok(parse_subordinate(&text, uid, user_name(uid).as_deref()))
}

/// What `/etc/passwd` calls this user.
pub fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn parse_subordinate(text: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (start, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let ours = Some(owner) == name || owner.parse() == Ok(uid);
        (ours && start > 0 && count >= 1000).then_some((start, count.min(65535)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_cut_short_is_made_whole_and_what_was_changed_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let files = Files::of(ours);
        fs::write(path("cut"), "").unwrap();
        fs::write(path("changed"), "by the user").unwrap();
        for name in ["cut", "changed"] {
            files.file(&path(name), b"ours", 0o644).unwrap();
        }
        assert_eq!(fs::read(path("cut")).unwrap(), b"ours");
        assert_eq!(fs::read(path("changed")).unwrap(), b"by the user");
        if ours.0 != 0 {
            eprintln!("only root gives files away");
            return;
        }
        let given = (0x7000_0000, 0x7000_0000);
        let files = Files::of(given);
        fs::create_dir(path("dir")).unwrap();
        assert!(!files.dir(&path("dir"), 0o755).unwrap(), "it was there");
        files.file(&path("cut"), b"again", 0o644).unwrap();
        assert_eq!(fs::read(path("cut")).unwrap(), b"again");
        // whose it was made inside
        chown(path("changed"), Some(given.0 + 5), None).unwrap();
        files.file(&path("changed"), b"ours", 0o644).unwrap();
        let owner = |name| fs::metadata(path(name)).unwrap().uid();
        assert_eq!(["dir", "cut", "changed"].map(owner), [given.0, given.0, given.0 + 5]);
        assert_eq!(fs::read(path("changed")).unwrap(), b"by the user");
    }

    #[test]
    fn subordinate_ranges_by_name_or_number() {
        let text = "other:1:70000\nann:100000:65536\n1005:300000:65536\nsmall:400000:10\n";
        assert_eq!(parse_subordinate(text, 1000, Some("ann")), Some((100_000, 65535)));
        assert_eq!(parse_subordinate(text, 1005, None), Some((300_000, 65535)));
        assert_eq!(parse_subordinate(text, 7, Some("small")), None);
        assert_eq!(parse_subordinate("ann:x:y\n:::\n", 1, Some("ann")), None);
    }
}
