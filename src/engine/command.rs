//! How init turns a request into a process: everything that can be looked up before the fork, then the few steps after it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pty::OpenptFlags;

use super::init::Context;
use super::proto::{Command, ExecHead};
use super::sys;
use super::syscalls::drop_capabilities;
use super::user::{self, Identity};

/// Where a command starts unless it says otherwise.
const DEFAULT_DIR: &std::ffi::CStr = c"/workspace";

/// A command ready to fork.
pub struct Prepared {
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: Option<CString>,
    identity: Identity,
    candidates: Vec<CString>,
    /// Standard input, output, error; or the terminal's inner side alone.
    stdio: Vec<OwnedFd>,
    /// The terminal's outer side.
    pub pty: Option<OwnedFd>,
    /// The program, for messages.
    pub what: String,
}

/// Everything before the fork.
///
/// # Errors
/// The step in words, and why.
pub fn prepare(
    context: &Context,
    head: &ExecHead,
    command: Command,
    fds: Vec<OwnedFd>,
) -> Result<Prepared, (String, io::Error)> {
    let user = head.user.as_deref();
    let identity =
        user::resolve(user).map_err(|error| (format!("find user {}", user.unwrap_or("root")), error))?;
    let (stdio, pty) = match head.pty {
        Some(size) => open_pty(size, &identity, context.single_id)
            .map_err(|error| ("make a terminal".to_owned(), error))?,
        None if fds.len() == 3 => {
            let fds = fds.into_iter().map(sys::above_stdio).collect::<io::Result<Vec<_>>>();
            (fds.map_err(|error| ("pass the streams".to_owned(), error))?, None)
        }
        None => return Err(("pass the streams".to_owned(), io::Error::from_raw_os_error(libc::EINVAL))),
    };
    let env = environment(context, &identity, head.pty.is_some(), &command.env);
    let program = command.argv.first().map(|program| program.as_bytes().to_vec()).unwrap_or_default();
    let candidates = candidates(&program, env.get(&b"PATH"[..]).map_or(&b""[..], Vec::as_slice));
    let env =
        env.into_iter().filter_map(|(name, value)| CString::new([name, value].join(&b'=')).ok()).collect();
    Ok(Prepared {
        argv: command.argv,
        env,
        cwd: command.cwd,
        identity,
        candidates,
        stdio,
        pty,
        what: String::from_utf8_lossy(&program).into_owned(),
    })
}

fn open_pty(
    (rows, cols): (u16, u16),
    identity: &Identity,
    single_id: bool,
) -> io::Result<(Vec<OwnedFd>, Option<OwnedFd>)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&outer)?;
    let inner = sys::above_stdio(rustix::pty::ioctl_tiocgptpeer(&outer, flags)?)?;
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&outer, size)?;
    if !single_id {
        rustix::fs::fchown(&inner, Some(rustix::fs::Uid::from_raw(identity.uid)), None)?;
    }
    Ok((vec![inner], Some(outer)))
}

fn environment(
    context: &Context,
    identity: &Identity,
    terminal: bool,
    own: &[CString],
) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut env = BTreeMap::new();
    let mut set = |name: &str, value: &str| env.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
    // The user's own programs first: presets put them there, since the system's directories are not the sandbox's to change.
    let path =
        format!("{}/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", identity.home);
    set("PATH", &path);
    set("LANG", "C.UTF-8");
    set("HOME", &identity.home);
    set("USER", &identity.name);
    set("LOGNAME", &identity.name);
    if terminal {
        set("TERM", "xterm-256color");
    }
    let own_programs = format!("{}/.local/bin", identity.home).into_bytes();
    for (name, value) in &context.env {
        let mut value = value.clone();
        // An image says where its own programs are, and knows nothing of presets.
        if name == b"PATH" && !value.split(|byte| *byte == b':').any(|dir| dir == own_programs) {
            value = [&own_programs[..], &value].join(&b':');
        }
        env.insert(name.clone(), value);
    }
    for entry in own {
        let entry = entry.as_bytes();
        if let Some(at) = entry.iter().position(|byte| *byte == b'=') {
            env.insert(entry[..at].to_vec(), entry[at + 1..].to_vec());
        }
    }
    env
}

fn candidates(program: &[u8], path: &[u8]) -> Vec<CString> {
    let paths: Vec<Vec<u8>> = if program.contains(&b'/') {
        vec![program.to_vec()]
    } else {
        path.split(|byte| *byte == b':')
            .filter(|dir| !dir.is_empty())
            .map(|dir| [dir, program].join(&b'/'))
            .collect()
    };
    paths.into_iter().filter_map(|path| CString::new(path).ok()).collect()
}

/// Everything after the fork; returns only on failure, with the step.
pub fn become_command(context: &Context, prepared: &Prepared, report: &OwnedFd) -> (&'static str, io::Error) {
    let attempt = || -> Result<(), (&'static str, io::Error)> {
        sys::reset_signals();
        rustix::process::setsid().map_err(|error| ("start a session for", error.into()))?;
        streams(&prepared.stdio).map_err(|error| ("connect the streams of", error))?;
        identify(context, &prepared.identity, report).map_err(|error| ("change the user for", error))?;
        enter(context, prepared.cwd.as_deref())
            .map_err(|error| ("enter the working directory for", error))?;
        sys::install_filter(&context.filter).map_err(|error| ("restrict", error))
    };
    match attempt() {
        Err(failure) => failure,
        Ok(()) => ("execute", execute(prepared)),
    }
}

/// The directory asked for; else the default one, unless it was removed or is closed to this user.
fn enter(context: &Context, dir: Option<&std::ffi::CStr>) -> io::Result<()> {
    match dir {
        Some(dir) => Ok(rustix::process::chdir(dir)?),
        None => {
            let default = context.working_dir.as_deref().unwrap_or(DEFAULT_DIR);
            Ok(rustix::process::chdir(default).or_else(|_| rustix::process::chdir("/"))?)
        }
    }
}

fn streams(stdio: &[OwnedFd]) -> io::Result<()> {
    if let [terminal] = stdio {
        rustix::process::ioctl_tiocsctty(terminal)?;
        return (0..3).try_for_each(|target| sys::install_fd(terminal, target));
    }
    stdio.iter().zip(0..).try_for_each(|(fd, target)| sys::install_fd(fd, target))
}

fn identify(context: &Context, identity: &Identity, report: &OwnedFd) -> io::Result<()> {
    if !context.single_id {
        return sys::become_user(identity.uid, identity.gid, Some(&identity.groups));
    }
    if identity.uid == 0 && identity.gid == 0 {
        return Ok(());
    }
    // Only root is mapped: a user namespace inside this one gives it another number. Its files are written by a process that
    // may be inspected for that moment, so it lets go of everything of init's first.
    sys::close_all_but(report.as_fd());
    sys::unshare_user()?;
    sys::allow_dump(true)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{} 0 1", identity.uid))?;
    std::fs::write("/proc/self/gid_map", format!("{} 0 1", identity.gid))?;
    sys::allow_dump(false)?;
    sys::become_user(identity.uid, identity.gid, None)?;
    drop_capabilities()
}

fn execute(prepared: &Prepared) -> io::Error {
    let mut result = io::Error::from_raw_os_error(libc::ENOENT);
    for candidate in &prepared.candidates {
        let error = sys::execve(candidate, &prepared.argv, &prepared.env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => result = error, // the next directory may have one that can be run
            _ => return error,
        }
    }
    result
}
