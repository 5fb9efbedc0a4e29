//! The launch steps, carried out for real by init.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::bound;
use super::disk;
use super::fence;
use super::launch::{FILLED, ROOT, Step, Syscalls};
use super::skeleton;
use super::sys::{self, MountAttributes};
use crate::image::OPAQUE_XATTR;

/// The capabilities that commands run by root inside have: docker's set without making devices, raw sockets and audit.
const CAPABILITIES: u64 = 1 << 0 // CHOWN
    | 1 << 1 // DAC_OVERRIDE
    | 1 << 3 // FOWNER
    | 1 << 4 // FSETID
    | 1 << 5 // KILL
    | 1 << 6 // SETGID
    | 1 << 7 // SETUID
    | 1 << 8 // SETPCAP
    | 1 << 10 // NET_BIND_SERVICE
    | 1 << 18 // SYS_CHROOT
    | 1 << 31; // SETFCAP

/// The most that the copy fallback copies, in bytes.
const MAX_COPY: u64 = 64 * 1024 * 1024;
/// The most bytes of certificates that are read.
const MAX_ROOTS: u64 = 8 * 1024 * 1024;

/// Does the steps. `sources` are the detached mounts by slot; the shim may have filled some before.
#[derive(Debug, Default)]
pub struct Real {
    /// Detached mounts by slot.
    pub sources: Vec<Option<OwnedFd>>,
    /// The certificate of the authority of the sandbox's proxy, if it has one.
    pub authority: Option<String>,
    /// The mount of the sandbox's disk, attached nowhere yet, if it has one.
    pub disk: Option<OwnedFd>,
    /// The skeleton, once it is open.
    skeleton: Option<OwnedFd>,
    /// The snapshots, the uppermost first, once they are open.
    snapshots: Vec<OwnedFd>,
    /// The layers of the image, the lowest first, once they are open.
    layers: Vec<OwnedFd>,
}

impl Syscalls for Real {
    fn perform(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::OpenSource { slot, path } => self.open_source(*slot, path),
            Step::OpenSkeleton(path) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                self.skeleton = Some(rustix::fs::open(path, flags, Mode::empty())?);
                Ok(())
            }
            Step::OpenSnapshots(paths) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let open = |path| Ok(rustix::fs::open(path, flags, Mode::empty())?);
                self.snapshots = paths.iter().map(open).collect::<io::Result<_>>()?;
                Ok(())
            }
            Step::OpenLayers(paths) => {
                self.layers = open_layers(paths)?;
                Ok(())
            }
            Step::BecomeRoot { groups } => sys::become_user(0, 0, groups.then_some(&[])),
            Step::DieWithParent => sys::die_with_parent(),
            Step::Hostname(name) => Ok(rustix::system::sethostname(name.as_bytes())?),
            Step::Loopback => sys::loopback_up(),
            Step::PrivateMounts => Ok(rustix::mount::mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )?),
            Step::EnterDisk => {
                let disk = self.disk.take().ok_or(io::ErrorKind::NotFound)?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(&disk, c"", CWD, disk::MOUNT_POINT, flags)?;
                Ok(rustix::process::chdir(disk::MOUNT_POINT)?)
            }
            Step::Bind { from, to, read_only, recursive } => {
                bind(from, to, MountAttributes { read_only: *read_only, recursive: *recursive })
            }
            Step::Device(name) => Ok(device(name)?),
            Step::Give { slot, path } => self.give(*slot, path),
            Step::OverlayRoot { source } => {
                let mut lowers = self.of_snapshots("rootfs");
                lowers.push(self.skeleton()?.join("root"));
                overlay(source, ROOT, &lowers, ROOT, "work/rootfs")
            }
            Step::OverlayImage { source } => self.overlay_image(source),
            Step::CopyRoot => {
                copy_tree(&self.skeleton()?.join("root"), Path::new(ROOT), &mut MAX_COPY.clone())?;
                bind(ROOT, ROOT, MountAttributes::default())
            }
            Step::Overlay { name, skeleton } => {
                let host = PathBuf::from("/").join(name);
                let (target, upper, work) =
                    (format!("{ROOT}/{name}"), format!("upper/{name}"), format!("work/{name}"));
                let mut lowers = self.of_snapshots(&upper);
                if *skeleton {
                    lowers.push(self.skeleton()?.join(name));
                }
                lowers.push(host);
                overlay(Path::new("overlay"), &target, &lowers, &upper, &work)
            }
            Step::Copy { name } => self.copy_over(name),
            Step::Tmpfs { at, options, exec } => {
                let flags = MountFlags::NOSUID
                    | MountFlags::NODEV
                    | if *exec { MountFlags::empty() } else { MountFlags::NOEXEC };
                let options = std::ffi::CString::new(*options)?;
                Ok(rustix::mount::mount("tmpfs", *at, "tmpfs", flags, &*options)?)
            }
            Step::Devpts { group } => {
                let options = if *group {
                    c"newinstance,ptmxmode=0666,mode=620,gid=5"
                } else {
                    c"newinstance,ptmxmode=0666,mode=620"
                };
                let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
                Ok(rustix::mount::mount("devpts", "rootfs/dev/pts", "devpts", flags, options)?)
            }
            Step::Symlink { at, to } => symlink(to, at),
            Step::Mkdir { at, mode } => {
                fs::create_dir(at)?;
                fs::set_permissions(at, fs::Permissions::from_mode(*mode))
            }
            Step::Proc => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                Ok(rustix::mount::mount("proc", "rootfs/proc", "proc", flags, None)?)
            }
            Step::Mask { path, directory } => absent_is_fine(mask(path, *directory)),
            Step::Protect(path) => {
                absent_is_fine(bind(path, path, MountAttributes { read_only: true, recursive: true }))
            }
            Step::Mount { slot, target, read_only } => self.mount(*slot, target, *read_only),
            Step::Memory { target, size } => memory(target, *size),
            Step::MemoryFile { index, target } => memory_file(*index, target),
            Step::Trust => {
                let mut roots = system_roots()?;
                roots.extend(self.authority.as_ref().ok_or(io::ErrorKind::NotFound)?.bytes());
                fs::write(format!("{ROOT}{}", bound::ROOTS), roots)
            }
            Step::MakeDir(path) => make_target(path, true).map(drop),
            Step::PivotRoot => {
                rustix::process::chdir(ROOT)?;
                rustix::process::pivot_root(".", ".")?;
                rustix::mount::unmount(".", UnmountFlags::DETACH)?;
                Ok(rustix::process::chdir("/")?)
            }
            Step::MoveRoot => {
                // follows a refused pivot, which has already entered the new root
                rustix::mount::mount_move(".", "/")?;
                rustix::process::chroot(".")?;
                Ok(rustix::process::chdir("/")?)
            }
            Step::Lockdown { fence } => {
                if *fence {
                    fence::put_up()?;
                }
                sys::limit_bounding_set(CAPABILITIES)?;
                sys::set_no_new_privs()?;
                sys::allow_dump(false)
            }
            Step::Either { .. } => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "a choice is not one step"))
            }
        }
    }
}

/// Repeats the bounding set of [`Step::Lockdown`] in a user namespace made later, which starts with a full one.
///
/// # Errors
/// What `prctl(2)` reports.
pub fn drop_capabilities() -> io::Result<()> {
    sys::limit_bounding_set(CAPABILITIES)
}

impl Real {
    /// A path of the open skeleton. The way to it by name is closed to root inside; through the descriptor it is open.
    fn skeleton(&self) -> io::Result<PathBuf> {
        let skeleton = self.skeleton.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(format!("/proc/self/fd/{}", skeleton.as_raw_fd()).into())
    }

    /// The directory `name` of every snapshot that has it, through the open descriptors as above.
    fn of_snapshots(&self, name: &str) -> Vec<PathBuf> {
        let paths = self.snapshots.iter().map(|fd| format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()).into());
        paths.filter(|path: &PathBuf| path.is_dir()).collect()
    }

    fn overlay_image(&self, source: &Path) -> io::Result<()> {
        let skeleton = self.skeleton()?;
        let mut lowers = vec![skeleton.join("top")];
        lowers.extend(self.of_snapshots("rootfs"));
        lowers.extend(self.layers.iter().rev().map(through));
        lowers.push(skeleton.join("root"));
        overlay(source, ROOT, &lowers, ROOT, "work/rootfs")?;
        // What is mounted next must not follow a link that the image, or who was root inside, has put there.
        for name in skeleton::MOUNT_POINTS {
            let path = Path::new(ROOT).join(name);
            if !fs::symlink_metadata(&path)?.is_dir() {
                return Err(io::Error::other(format!("/{name} is no directory")));
            }
        }
        Ok(())
    }

    /// The copy fallback: the sandbox's own files first, then the skeleton's, then what is readable of the host's.
    fn copy_over(&self, name: &str) -> io::Result<()> {
        let target = PathBuf::from(ROOT).join(name);
        let mut budget = MAX_COPY;
        let host = PathBuf::from("/").join(name);
        for source in [PathBuf::from("upper").join(name), self.skeleton()?.join(name), host] {
            absent_is_fine(copy_tree(&source, &target, &mut budget))?;
        }
        Ok(())
    }

    fn open_source(&mut self, slot: usize, path: &Path) -> io::Result<()> {
        if self.sources.len() <= slot {
            self.sources.resize_with(slot + 1, || None);
        }
        if self.sources[slot].is_none() {
            self.sources[slot] = Some(detached(path)?);
        }
        Ok(())
    }

    fn source(&mut self, slot: usize) -> io::Result<OwnedFd> {
        self.sources.get_mut(slot).and_then(Option::take).ok_or(io::ErrorKind::NotFound.into())
    }

    fn give(&mut self, slot: usize, path: &Path) -> io::Result<()> {
        let source = self.source(slot)?;
        // Its /dev is new and ours, nobody is inside yet.
        let target = Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(path));
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::File::create(&target)?;
        let place = rustix::fs::open(&target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        attach(&source, &place)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&target, flags, Mode::empty()).map(drop)?)
    }

    fn mount(&mut self, slot: usize, target: &Path, read_only: bool) -> io::Result<()> {
        let source = self.source(slot)?;
        sys::mount_setattr(&source, MountAttributes { read_only, recursive: true })?;
        let directory = FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode).is_dir();
        let target = make_target(target, directory)?;
        attach(&source, &target)
    }
}

fn memory(target: &Path, size: Option<u64>) -> io::Result<()> {
    let target = make_target(target, true)?;
    let memory = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&memory, "source", "tmpfs")?;
    rustix::mount::fsconfig_set_string(&memory, "mode", "1777")?;
    if let Some(size) = size {
        rustix::mount::fsconfig_set_string(&memory, "size", size.to_string())?;
    }
    rustix::mount::fsconfig_create(&memory)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let memory = rustix::mount::fsmount(&memory, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(&memory, &target)
}

fn memory_file(index: usize, target: &Path) -> io::Result<()> {
    // Its /run is new and ours, nobody is inside yet.
    let file = Path::new(ROOT).join("run").join(FILLED).join(index.to_string());
    fs::File::create_new(&file)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let source = detached(&file)?;
    sys::mount_setattr(&source, MountAttributes { read_only: true, recursive: true })?;
    attach(&source, &make_target(target, false)?)
}

/// Opens the layers of an image, the lowest first; those below one that hides all of them are left out.
///
/// # Errors
/// What the file system reports.
pub fn open_layers(paths: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut layers = Vec::new();
    for path in paths {
        match rustix::fs::getxattr(path, OPAQUE_XATTR, &mut [0; 1]) {
            Ok(_) => layers.clear(),
            Err(rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
        layers.push(rustix::fs::open(path, flags, Mode::empty())?);
    }
    Ok(layers)
}

/// A path of what an open descriptor leads to.
pub fn through(descriptor: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd()).into()
}

/// A copy of the mounts at `path`, attached nowhere.
///
/// # Errors
/// What `open_tree(2)` reports.
pub fn detached(path: &Path) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

fn attach(source: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(source, c"", target, c"", flags)?)
}

fn bind(from: &str, to: &str, attributes: MountAttributes) -> io::Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if attributes.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let source = rustix::mount::open_tree(CWD, from, flags)?;
    sys::mount_setattr(&source, attributes)?;
    Ok(rustix::mount::move_mount(&source, c"", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn device(name: &str) -> io::Result<()> {
    let target = format!("{ROOT}/dev/{name}");
    let source = format!("/dev/{name}");
    if !fs::metadata(&source)?.file_type().is_char_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{source} is not a device")));
    }
    fs::File::create(&target)?;
    Ok(rustix::mount::mount_bind(source, target)?)
}

fn mask(path: &str, directory: bool) -> io::Result<()> {
    if directory {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        return Ok(rustix::mount::mount("tmpfs", path, "tmpfs", flags, c"mode=555,size=4k")?);
    }
    Ok(rustix::mount::mount_bind("rootfs/dev/null", path)?)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The authorities that the system of the new root trusts, from where the one or other distribution keeps them; none if it has none.
fn system_roots() -> io::Result<Vec<u8>> {
    let files = [
        "etc/ssl/certs/ca-certificates.crt",
        "etc/pki/tls/certs/ca-bundle.crt",
        "etc/ssl/ca-bundle.pem",
        "etc/ssl/cert.pem",
    ];
    let root = rustix::fs::open(ROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for file in files {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match open_in_root(&root, Path::new(file), flags) {
            Ok(file) => fs::File::from(file),
            Err(_) => continue, // whatever is in the way of it is in the way of programs, too
        };
        if file.metadata()?.is_file() {
            let mut roots = Vec::new();
            file.take(MAX_ROOTS).read_to_end(&mut roots)?;
            roots.push(b'\n');
            return Ok(roots);
        }
    }
    Ok(Vec::new())
}

/// Opens what a path means beneath the new root; links inside resolve beneath it too.
fn open_in_root(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel asks to try again while anything on the machine is renamed or mounted during a path with `..`.
    for _ in 0..1000 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(rustix::io::Errno::AGAIN)
}

/// Makes the mount point beneath the new root and opens it.
fn make_target(target: &Path, directory: bool) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(ROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let open = |path: &Path| open_in_root(&root, path, OFlags::PATH);
    let names: Vec<_> =
        target.components().filter(|component| matches!(component, Component::Normal(_))).collect();
    let (mut at, mut reached) = (PathBuf::from("."), open(Path::new("."))?);
    for (index, name) in names.iter().enumerate() {
        at.push(name);
        reached = match open(&at) {
            Err(rustix::io::Errno::NOENT) if directory || index + 1 < names.len() => {
                rustix::fs::mkdirat(&reached, name.as_os_str(), Mode::from_raw_mode(0o755))?;
                open(&at)?
            }
            Err(rustix::io::Errno::NOENT) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&reached, name.as_os_str(), flags, Mode::from_raw_mode(0o644))?;
                open(&at)?
            }
            other => other?,
        };
    }
    Ok(reached)
}

/// Mounts `lowers`, the first on top, at `target` with writes going to `upper`.
///
/// # Errors
/// What `mount(2)` reports.
pub fn overlay(source: &Path, target: &str, lowers: &[PathBuf], upper: &str, work: &str) -> io::Result<()> {
    // No lower has a character that the option would need escaped: they are descriptors and names of our own.
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.display().to_string()).collect();
    let options = format!("lowerdir={},upperdir={upper},workdir={work},userxattr", lowers.join(":"));
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount(source, target, "overlay", flags, &*options)?)
}

fn copy_tree(from: &Path, to: &Path, budget: &mut u64) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if skeleton::is_secret(&source) {
            continue;
        }
        let kind = entry.file_type()?;
        let result = if kind.is_dir() {
            match fs::create_dir(&target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    copy_tree(&source, &target, budget)
                }
                other => other
                    .and_then(|()| fs::set_permissions(&target, entry.metadata()?.permissions()))
                    .and_then(|()| copy_tree(&source, &target, budget)),
            }
        } else if fs::symlink_metadata(&target).is_ok() {
            Ok(())
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)
        } else if kind.is_file() {
            *budget = budget
                .checked_sub(entry.metadata()?.len())
                .ok_or_else(|| io::Error::other("too much to copy"))?;
            fs::copy(&source, &target).map(drop)
        } else {
            Ok(())
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => other?,
        }
    }
    Ok(())
}
