//! The system calls that no safe crate offers, each behind a safe signature. The only unsafe code of the engine.

#![expect(
    unsafe_code,
    reason = "raw system calls: clone, exec, signals, seccomp, ioctl and mount_setattr have no safe wrapper"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Which side of [`fork`] or [`clone_into_namespaces`] is running.
pub enum Fork {
    /// The caller: the new process and a pidfd for it.
    Parent {
        /// Process id as seen by the caller.
        pid: i32,
        /// A pidfd of the new process, close-on-exec.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks into the new namespaces given as `CLONE_NEW*` flags (0: a plain fork).
///
/// The calling process must have a single thread: the child goes on with a copy of it.
///
/// # Errors
/// What `clone(2)` reports.
pub fn clone_into_namespaces(namespaces: libc::c_int) -> io::Result<Fork> {
    let mut pidfd: libc::c_int = -1;
    let flags = libc::c_long::from(namespaces | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: no new stack and no CLONE_VM, so this is fork(2) with flags; the only pointer is `pidfd`, which outlives the call.
    // The argument orders of the supported architectures differ only in the last two, which are zero.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match pid {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel stored a fresh descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent { pid: pid as i32, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, without destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Replaces the process; returns only on failure.
pub fn execve(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and their strings are borrowed for longer than the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// `kill(2)` with its special targets: a negative pid is a process group, -1 everything this process may signal. A target that
/// is gone is fine.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: plain numbers; no memory is involved.
    unsafe { libc::kill(pid, signal) };
}

/// Blocks SIGCHLD for this thread and returns a non-blocking descriptor that becomes readable when one is pending.
///
/// # Errors
/// What `signalfd(2)` reports.
pub fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before any other use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Gives a process about to exec the signal state every program expects: default actions, nothing blocked.
pub fn reset_signals() {
    // SAFETY: only installs default actions and an empty mask; no handler of ours is involved.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Makes `fd` the descriptor number `target` of this process, without close-on-exec.
///
/// # Errors
/// What `dup2(2)` reports.
pub fn install_fd(fd: impl AsFd, target: i32) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: called in a process about to exec, where nothing owns the standard descriptors. dup2 onto itself keeps
    // close-on-exec, so that flag is cleared explicitly in that case.
    unsafe {
        if raw == target {
            check(libc::fcntl(raw, libc::F_SETFD, 0))?;
        } else {
            check(libc::dup2(raw, target))?;
        }
    }
    Ok(())
}

/// Moves `fd` to a number above the standard ones, so that installing those cannot overwrite it.
///
/// # Errors
/// What `fcntl(2)` reports.
pub fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // SAFETY: F_DUPFD_CLOEXEC returns a new descriptor that nothing else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3))?)) }
}

/// Closes every descriptor above the standard ones: whatever the process inherited by accident.
pub fn close_inherited() {
    // SAFETY: called first thing in a fresh program, before it owns a descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// A copy of a standard descriptor that the parent set to something of its own, above the standard ones.
///
/// # Errors
/// What `fcntl(2)` reports.
pub fn copy_of(standard: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC returns a new descriptor that nothing else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::fcntl(standard, libc::F_DUPFD_CLOEXEC, 3))?)) }
}

/// Sets user, group and supplementary groups of this process. `groups` of `None` leaves them (a map of a single id cannot set them).
///
/// # Errors
/// What the kernel reports; `InvalidInput` for an id outside the map.
pub fn become_user(uid: u32, gid: u32, groups: Option<&[u32]>) -> io::Result<()> {
    // SAFETY: plain id changes; the slice outlives the call. Raw calls: this process has one thread.
    unsafe {
        if let Some(groups) = groups
            && libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
        {
            return Err(io::Error::last_os_error());
        }
        if libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
            || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Enters a new user namespace (used to run as another uid where only one id is mapped).
///
/// # Errors
/// What `unshare(2)` reports.
pub fn unshare_user() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).map(drop)
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: only options whose arguments are plain numbers are passed by this module.
    check(unsafe {
        libc::prctl(option, argument, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong)
    })
}

/// SIGKILL for this process when the thread that created it ends.
///
/// # Errors
/// What `prctl(2)` reports.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).map(drop)
}

/// Whether others of the same user may look into this process: ptrace, /proc/PID/{mem,fd,environ}.
///
/// # Errors
/// What `prctl(2)` reports.
pub fn allow_dump(allow: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(allow)).map(drop)
}

/// Closes every descriptor above the standard ones but `keep`. Only for a process about to exec: owners are not told.
pub fn close_all_but(keep: std::os::fd::BorrowedFd<'_>) {
    let keep = keep.as_raw_fd() as libc::c_uint;
    // SAFETY: whatever owned these descriptors in this process never runs again: it execs or exits.
    unsafe {
        if keep > 3 {
            libc::syscall(libc::SYS_close_range, 3, keep - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, keep + 1, libc::c_uint::MAX, 0);
    }
}

/// No privilege can be gained by exec any more.
///
/// # Errors
/// What `prctl(2)` reports.
pub fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Removes every capability but `keep` (a bit per capability number) from the bounding set.
///
/// # Errors
/// What `prctl(2)` reports.
pub fn limit_bounding_set(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_READ, capability) {
            Err(_) => break, // above the kernel's last capability
            Ok(1) if keep & (1 << capability) == 0 => prctl(libc::PR_CAPBSET_DROP, capability).map(drop)?,
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Names this process in `ps` (at most 15 bytes are kept).
pub fn set_process_name(name: &std::ffi::CStr) {
    // SAFETY: the string is terminated and outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Installs a seccomp filter; needs `no_new_privs`.
///
/// # Errors
/// What `seccomp(2)` reports; `InvalidInput` for a program that is too long.
pub fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program; it is not written through the pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings the loopback interface of the current network namespace up.
///
/// # Errors
/// What `socket(2)` and `ioctl(2)` report.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: `request` is fully initialised and outlives both calls; the socket is owned from the moment it exists.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        ))?);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request)).map(drop)
    }
}

/// Mount attributes for [`mount_setattr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountAttributes {
    /// Refuse writes.
    pub read_only: bool,
    /// Apply to every mount below as well.
    pub recursive: bool,
}

/// Sets nosuid, nodev and, if asked, read-only on the detached or attached mount `fd`; flags are only ever added.
///
/// # Errors
/// What `mount_setattr(2)` reports (`ENOSYS` before Linux 5.12).
pub fn mount_setattr(fd: impl AsFd, attributes: MountAttributes) -> io::Result<()> {
    let mut set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    if attributes.read_only {
        set |= MOUNT_ATTR_RDONLY;
    }
    raw_mount_setattr(fd, set, 0, attributes.recursive)
}

/// Shows the ids of the detached mount `fd` through the id map of the user namespace `userns`.
///
/// # Errors
/// What `mount_setattr(2)` reports; `EINVAL` where the file system cannot do it.
pub fn mount_idmap(fd: impl AsFd, userns: impl AsFd) -> io::Result<()> {
    raw_mount_setattr(fd, MOUNT_ATTR_IDMAP, userns.as_fd().as_raw_fd() as u64, false)
}

/// `struct mount_attr` of the kernel.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

fn raw_mount_setattr(fd: impl AsFd, set: u64, userns: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr { set, clear: 0, propagation: 0, userns };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is initialised, outlives the call and its true size is passed; the path is an empty terminated string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers a descriptor with the runtime, for reading and writing or for reading alone (a pidfd, a listener).
///
/// # Errors
/// What the runtime's reactor reports.
pub fn watch(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor for as long as the registration owns it.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// The version of Landlock the kernel speaks.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` where there is none.
pub fn landlock_abi() -> io::Result<i32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel reads no memory.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0usize, VERSION)
    };
    if abi < 0 { Err(io::Error::last_os_error()) } else { Ok(abi as i32) }
}

/// `struct loop_info64` of the kernel.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of the kernel.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The number of a loop device that nobody uses at this moment.
///
/// # Errors
/// What `LOOP_CTL_GET_FREE` reports.
pub fn free_loop(control: impl AsFd) -> io::Result<i32> {
    const LOOP_CTL_GET_FREE: u32 = 0x4C82;
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE as _) })
}

/// Gives a loop device the file that is behind it, until the last who has the device open, or mounted, lets go of it.
///
/// # Errors
/// What `LOOP_CONFIGURE` reports; `ResourceBusy` where it has one.
pub fn configure_loop(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    const LOOP_CONFIGURE: u32 = 0x4C0A;
    const AUTOCLEAR: u32 = 4;
    // SAFETY: all of the structure are plain numbers, for which zero is valid; its layout is the kernel's, and it outlives the call.
    unsafe {
        let mut config: LoopConfig = std::mem::zeroed();
        config.fd = file.as_fd().as_raw_fd() as u32;
        config.info.flags = AUTOCLEAR;
        check(libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE as _, &raw const config)).map(drop)
    }
}

/// The device and number of the file behind a loop device.
///
/// # Errors
/// What `LOOP_GET_STATUS64` reports; `ENXIO` where there is none.
pub fn loop_file(device: impl AsFd) -> io::Result<(u64, u64)> {
    const LOOP_GET_STATUS64: u32 = 0x4C05;
    // SAFETY: as above; the kernel writes no more than the structure.
    unsafe {
        let mut info: LoopInfo = std::mem::zeroed();
        check(libc::ioctl(device.as_fd().as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info))?;
        Ok((info.device, info.inode))
    }
}
