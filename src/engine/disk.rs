//! The disk of a sandbox that may write only so much: a file system of its own in a sparse file, `disk.img`, with its blocks and its inodes.
//!
//! It is mounted nowhere that the host can see. Whoever works on it makes a mount that is attached to nothing, reaches it by descriptor,
//! and drops it; a launch hands it to init, which attaches it in the namespace of the sandbox. The loop device detaches its file when the last such
//! mount goes. So nothing has to be unmounted by anybody: whichever process is killed, the kernel cleans up after it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, StatVfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::rootfs::at;
use super::spec::DiskInfo;
use super::state;
use super::sys;
use super::throttle;

/// The file, in the sandbox's directory.
const IMAGE: &str = "disk.img";
/// Where init attaches it, in the sandbox's directory.
pub const MOUNT_POINT: &str = "disk";
/// Directories on the disk that give way to those that a start has to make, so that a disk that is full can be started from, and emptied.
const SPARE: &str = "spare";
const SPARES: usize = 32;
/// The size of a block of the file system.
const BLOCK: u64 = 4096;
/// There is one inode for so many bytes.
const BYTES_PER_INODE: u64 = 8192;
/// The least: the file system itself takes some.
pub const MIN: u64 = 32 << 20;
/// The most that the file system can be.
pub const MAX: u64 = 16 << 40;
/// Where a file system says what it is, and there: how many blocks it has, and whether it saw an error.
const SUPERBLOCK: u64 = 1024;
const BLOCKS: u64 = 0x4;
const BLOCKS_HIGH: u64 = 0x150;
const STATE: u64 = 0x3A;
/// An end that is too short to hold anything is left out of a file system.
const TAIL: u64 = 8 << 20;
/// How long the kernel may take to let go of the file of a sandbox that has ended.
const LET_GO: Duration = Duration::from_secs(5);
/// How `e2fsck` mends what can be mended without asking, wherever it is.
const CHECK: &[&str] = &["-p", "-f"];
/// How often another loop device is tried when somebody was faster.
const TRIES: usize = 100;

/// The open disk of a sandbox.
#[derive(Debug)]
pub struct Disk {
    mount: OwnedFd,
    device: File,
    image: File,
}

/// Where the files of a sandbox are, for as long as this lives: in its directory, or on its disk.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    disk: Option<Disk>,
    /// Whether the spare directories are made again when it is dropped.
    keep_spare: bool,
}

impl Files {
    /// Of the sandbox with this directory.
    ///
    /// # Errors
    /// What the system reports.
    pub fn of(dir: &Path) -> io::Result<Files> {
        let image = dir.join(IMAGE);
        if !image.exists() {
            return Ok(Files { path: dir.to_owned(), disk: None, keep_spare: false });
        }
        Files::on(Disk::open(&image).map_err(|error| at(&image, &error))?)
    }

    /// Makes the disk if it is to have one and has none, and lets it grow to its limit. The sandbox does not run.
    ///
    /// # Errors
    /// What the system reports.
    pub fn ready(dir: &Path, limit: Option<u64>) -> io::Result<Files> {
        let Some(limit) = limit else { return Files::of(dir) };
        let image = dir.join(IMAGE);
        match image.exists() {
            false => make(&image, limit)?,
            true => grow(&image, limit).map_err(|error| at(&image, &error))?,
        }
        match fs::create_dir(dir.join(MOUNT_POINT)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut files = Files::of(dir)?;
        files.keep_spare = true;
        match fs::remove_dir_all(files.path.join(SPARE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(files),
        }
    }

    fn on(disk: Disk) -> io::Result<Files> {
        Ok(Files {
            path: format!("/proc/self/fd/{}", disk.mount.as_raw_fd()).into(),
            disk: Some(disk),
            keep_spare: false,
        })
    }

    /// The directory that holds them.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The devices that hold them, in the kernel's numbers. What is not known of them is not limited, which shows when it is read back.
    pub fn devices(&self, dir: &Path) -> Vec<String> {
        let own = self.disk.as_ref().and_then(|disk| disk.device.metadata().ok());
        let own = own.map(|device| throttle::number(device.rdev()));
        throttle::device(dir).ok().into_iter().chain(own).collect()
    }

    /// The disk, where they are on one.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let spare = self.path.join(SPARE);
        // As many as there is room for: what is missing is missing at the next start only.
        if self.keep_spare && fs::create_dir(&spare).is_ok() {
            let _ = (0..SPARES).try_for_each(|number| fs::create_dir(spare.join(number.to_string())));
        }
    }
}

impl Disk {
    /// Whoever has it already is found, so that one file is never behind two devices.
    fn open(path: &Path) -> io::Result<Disk> {
        let image = File::options().read(true).write(true).open(path)?;
        rustix::fs::flock(&image, FlockOperation::LockExclusive)?;
        let (number, device) = match attached(&image)? {
            Some(found) => found,
            None => {
                repair(path, &image)?;
                attach(&image)?
            }
        };
        let mount = mount(&format!("/dev/loop{number}"))?;
        rustix::fs::flock(&image, FlockOperation::Unlock)?;
        Ok(Disk { mount, device, image })
    }

    /// The mount, attached to nothing.
    pub fn mount(&self) -> &OwnedFd {
        &self.mount
    }

    /// How much of it is used.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn measure(&self) -> io::Result<DiskInfo> {
        Ok(used(self.image.metadata()?.len(), &rustix::fs::fstatvfs(&self.mount)?))
    }
}

/// How much is used of the disk of a sandbox that runs; `None` where it has none. `pid` is its first process.
///
/// # Errors
/// What the kernel reports.
pub fn of_running(dir: &Path, pid: i32) -> io::Result<Option<DiskInfo>> {
    match fs::metadata(dir.join(IMAGE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => {
            // An overlay tells of the file system that it writes to.
            let root = rustix::fs::statvfs(format!("/proc/{pid}/root"))?;
            Ok(Some(used(other?.len(), &root)))
        }
    }
}

/// What the file system keeps for itself counts as used.
fn used(limit: u64, found: &StatVfs) -> DiskInfo {
    DiskInfo {
        limit,
        used: limit.saturating_sub(found.f_bavail.saturating_mul(found.f_frsize)),
        files_limit: found.f_files,
        files_used: found.f_files.saturating_sub(found.f_ffree),
    }
}

/// Whether this process can give a sandbox a disk of this size.
///
/// # Errors
/// The text says why not, and what to do.
pub fn check(limit: u64) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("the disk cannot be limited here: only root can mount a file system of its own for a sandbox; run it as root, or \
             remove `disk`"
            .to_owned());
    }
    if !(MIN..=MAX).contains(&limit) {
        return Err(format!("a disk has {MIN} to {MAX} bytes, not {limit}"));
    }
    if let Err(error) = program("mkfs.ext4") {
        return Err(format!("the disk cannot be limited here: {error}, or remove `disk`"));
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/loop-control") {
        return Err(format!(
            "the disk cannot be limited here: /dev/loop-control: {error}; load the module (`modprobe loop`) or give the container this device, \
             or remove `disk`"
        ));
    }
    Ok(())
}

/// Whether a sandbox with the one limit can have the other.
///
/// # Errors
/// The text says why not, and what to do.
pub fn can_become(old: Option<u64>, new: Option<u64>) -> Result<(), String> {
    match (old, new) {
        (Some(old), Some(new)) if new < old => Err(format!(
            "a disk can only grow: it has {old} bytes, and {new} are asked for; ask for as many or more, or make the sandbox anew"
        )),
        (None, Some(_)) | (Some(_), None) => {
            Err("a sandbox is made with a limit on its disk or without one; make it anew".to_owned())
        }
        _ => Ok(()),
    }
}

fn program(name: &str) -> io::Result<PathBuf> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/run/current-system/sw/bin"];
    let found = places.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing; install `e2fsprogs`"))
    })
}

/// Runs a program of e2fsprogs on the image.
fn run(name: &str, arguments: &[&str], image: &Path, fine: &[i32]) -> io::Result<()> {
    let mut command = Command::new(program(name)?);
    let output = command.args(arguments).arg(image).env_clear().stdin(Stdio::null()).output()?;
    if output.status.code().is_some_and(|code| fine.contains(&code)) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{name}: {}: {}", output.status, text.trim())))
}

/// Makes the file with an empty file system. It gets its name when it is whole and on the disk.
fn make(path: &Path, limit: u64) -> io::Result<()> {
    let new = path.with_extension("img.new");
    let made = || -> io::Result<()> {
        let image = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        image.set_len(limit)?;
        let (block, ratio) = (BLOCK.to_string(), BYTES_PER_INODE.to_string());
        // The tables are holes, which read as what they would be written as. Nothing is kept back for root, who does not write here.
        let lazy = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
        let arguments = ["-q", "-F", "-m", "0", "-b", &block, "-i", &ratio, "-E", lazy];
        run("mkfs.ext4", &arguments, &new, &[0])?;
        image.sync_all()?;
        fs::rename(&new, path)?;
        state::sync(path)
    };
    made().map_err(|error| at(path, &error))
}

/// Lets the file system grow to `limit`; one that is as large stays as it is. Cut short, it is done by the next start.
fn grow(path: &Path, limit: u64) -> io::Result<()> {
    let image = File::options().read(true).write(true).open(path)?;
    let blocks = u64::from(field(&image, BLOCKS)?) | u64::from(field(&image, BLOCKS_HIGH)?) << 32;
    if limit > blocks * BLOCK + TAIL {
        rustix::fs::flock(&image, FlockOperation::LockExclusive)?;
        let deadline = Instant::now() + LET_GO;
        while attached(&image)?.is_some() {
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is still mounted"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        image.set_len(limit)?;
        run("e2fsck", CHECK, path, &[0, 1])?;
        run("resize2fs", &[], path, &[0])?;
        image.sync_all()?;
    }
    match image.metadata()?.len() < limit {
        true => image.set_len(limit),
        false => Ok(()),
    }
}

/// Mends a file system that has seen an error, such as writes for which the machine had no room.
fn repair(path: &Path, image: &File) -> io::Result<()> {
    const ERROR: u32 = 2;
    match field(image, STATE)? & ERROR {
        0 => Ok(()),
        _ => run("e2fsck", CHECK, path, &[0, 1]),
    }
}

/// A number of the superblock.
fn field(image: &File, offset: u64) -> io::Result<u32> {
    let mut bytes = [0; 4];
    image.read_exact_at(&mut bytes, SUPERBLOCK + offset)?;
    Ok(u32::from_le_bytes(bytes))
}

/// The loop device that has this file behind it.
fn attached(image: &File) -> io::Result<Option<(i32, File)>> {
    let wanted = image.metadata()?;
    let wanted = (wanted.dev(), wanted.ino());
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        let behind = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if !behind.trim_end().ends_with(IMAGE) {
            continue;
        }
        // Held from here on, so that it does not let go of its file between this look and the mount.
        let Ok(device) = open_device(number) else { continue };
        if sys::loop_file(&device).is_ok_and(|file| file == wanted) {
            return Ok(Some((number, device)));
        }
    }
    Ok(None)
}

fn attach(image: &File) -> io::Result<(i32, File)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        let number = sys::free_loop(&control)?;
        let device = open_device(number)?;
        match sys::configure_loop(&device, image) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            other => return other.map(|()| (number, device)),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "no loop device is free"))
}

fn open_device(number: i32) -> io::Result<File> {
    let path = format!("/dev/loop{number}");
    File::options().read(true).write(true).open(&path).map_err(|error| at(Path::new(&path), &error))
}

fn mount(device: &str) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", device)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "errors", "remount-ro")?;
    // What is deleted inside is given back to the machine, and what was never written is not written to say so.
    for flag in ["discard", "noinit_itable"] {
        rustix::mount::fsconfig_set_flag(context.as_fd(), flag)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_grows_and_nothing_else() {
        assert_eq!(can_become(Some(MIN), Some(MIN)), Ok(()));
        assert_eq!(can_become(Some(MIN), Some(MIN + 1)), Ok(()));
        assert_eq!(can_become(None, None), Ok(()));
        for (old, new) in [(Some(MIN + 1), Some(MIN)), (None, Some(MIN)), (Some(MIN), None)] {
            assert!(can_become(old, new).is_err_and(|why| why.contains("anew")), "{old:?} to {new:?}");
        }
    }
}
