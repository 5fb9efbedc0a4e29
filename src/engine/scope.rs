//! Limits for ordinary users where systemd owns the tree of control groups: the user's own systemd is asked for a *scope*, a part of the
//! tree that is handed to us (`Delegate=yes`). The sandbox's shim starts in it, so that it lives as long as the sandbox and not as whoever
//! asked for it, and what is inside is limited in a group below.
//!
//! `systemd-run` asks: it comes with every systemd, waits until the scope is there, and becomes the shim.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::rootfs;

/// What the names of our scopes begin and end with.
const NAME: (&str, &str) = ("pocketenv-", ".scope");
/// The group of the shim in its scope: one with limited children has no processes of its own.
const SHIM: &str = "shim";
/// How long the process that systemd started may take to end, having started the shim.
const EMPTY: Duration = Duration::from_secs(5);

/// The user's own systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    /// Its directory of sockets.
    runtime: PathBuf,
    /// Its control group, which holds everything that it starts.
    pub group: PathBuf,
}

impl Manager {
    /// That of `uid`, if it runs; `top` is where control groups of version 2 are mounted.
    pub fn find(uid: u32, top: &Path) -> Option<Manager> {
        let runtime = PathBuf::from(format!("/run/user/{uid}"));
        let socket = fs::metadata(runtime.join("systemd/private")).ok()?;
        let group = top.join(format!("user.slice/user-{uid}.slice/user@{uid}.service"));
        (socket.file_type().is_socket() && group.is_dir()).then_some(Manager { runtime, group })
    }

    /// What starts `program` with `argument` in a new scope, for the sandbox whose groups are called `name`.
    ///
    /// # Errors
    /// There is no `systemd-run`.
    pub fn command(&self, name: &str, program: &Path, argument: &str) -> io::Result<std::process::Command> {
        let run = rootfs::find_program("systemd-run")
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the program systemd-run is missing"))?;
        // A scope that has just ended may keep its name for a moment.
        let nonce = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let unit = format!("{}{name}-{}{}", NAME.0, nonce.get(..8).unwrap_or_default(), NAME.1);
        let mut command = std::process::Command::new(run);
        command
            .args(["--user", "--scope", "--collect", "--quiet", "--property=Delegate=yes"])
            .arg(format!("--unit={unit}"))
            .arg(format!("--description=Pocketenv sandbox {name}"))
            .arg("--");
        // It becomes the program, so to it its own name is not ours.
        match program == Path::new("/proc/self/exe") {
            true => command.arg(format!("/proc/{}/exe", std::process::id())),
            false => command.arg(program),
        };
        command.arg(argument).env_clear().env("XDG_RUNTIME_DIR", &self.runtime);
        command.stderr(std::process::Stdio::piped()); // why there is none
        Ok(command)
    }
}

/// Whether this is the group of a scope of ours.
pub fn is_ours(group: &Path) -> bool {
    let name = group.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(NAME.0) && name.ends_with(NAME.1))
}

/// Takes the processes of a scope, which are this one and perhaps who started it, to a group below, so that others can be limited in it.
///
/// # Errors
/// What the kernel reports; `TimedOut` where somebody keeps starting processes in it.
pub fn make_room(scope: &Path) -> io::Result<()> {
    let (from, to) = (scope.join("cgroup.procs"), scope.join(SHIM));
    match fs::create_dir(&to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    let deadline = Instant::now() + EMPTY;
    loop {
        let left = fs::read_to_string(&from)?;
        if left.trim().is_empty() {
            return Ok(());
        }
        for pid in left.split_whitespace() {
            match fs::write(to.join("cgroup.procs"), pid) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {} // it ended
                other => other?,
            }
        }
        if Instant::now() >= deadline {
            let message = format!("{} does not get empty", scope.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
    }
}

/// What to tell of a scope: without lingering, a user's systemd ends with the last session.
pub fn note(uid: u32) -> Option<String> {
    let name = rootfs::user_name(uid)?;
    let lingers = Path::new("/var/lib/systemd/linger").join(&name).exists();
    (!lingers).then(|| {
        format!("scope: ends when {name} has logged out everywhere, unless `loginctl enable-linger {name}` was run")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_scope_is_asked_for_by_arguments_and_nothing_else() {
        let manager = Manager { runtime: "/run/user/7".into(), group: "/x".into() };
        let Ok(command) = manager.command("a.b-1", Path::new("/opt/$HOME/p"), "shim") else {
            return; // no systemd here
        };
        let args: Vec<&str> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        assert!(args.contains(&"--property=Delegate=yes"), "{args:?}");
        let unit = args.iter().find_map(|arg| arg.strip_prefix("--unit=")).unwrap();
        assert!(is_ours(Path::new("/sys/fs/cgroup").join(unit).as_path()), "{unit}");
        assert!(unit.starts_with("pocketenv-a.b-1-"), "{unit}");
        assert_eq!(args[args.len() - 3..], ["--", "/opt/$HOME/p", "shim"]);
        let kept: Vec<_> = command.get_envs().collect();
        assert_eq!(kept, [("XDG_RUNTIME_DIR".as_ref(), Some("/run/user/7".as_ref()))]);
        assert!(!is_ours(Path::new("/a/app.slice")) && !is_ours(Path::new("/a/session-1.scope")));
    }
}
