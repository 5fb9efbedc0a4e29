//! What this machine offers the engine, one truth each, for `doctor`. Looks and tries; changes nothing.

use std::fs;
use std::io;
use std::path::Path;

use super::cgroup::Available;
use super::lifecycle::EngineConfig;
use super::rootfs::{self, find_program};
use super::{launch::IdMap, state, sys};

/// One thing the engine may need.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Probe {
    /// What is asked, in kebab-case.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether the engine cannot work at all without it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What would change it.
    pub remedy: Option<String>,
}

/// Asks everything. Call it from a process with a single thread or none that holds locks: it forks once.
pub fn probe(config: &EngineConfig) -> Vec<Probe> {
    let ids = rootfs::choose_ids();
    vec![
        user_namespaces(),
        overlay(),
        subordinate_ids(&ids),
        state_dir("data-directory", &config.data_dir),
        state_dir("runtime-directory", &config.runtime_dir),
        seccomp(),
        landlock(),
        cgroups(),
        freezer(),
        tun(),
    ]
}

fn found(name: &'static str, detail: impl Into<String>) -> Probe {
    Probe { name, ok: true, required: false, detail: detail.into(), remedy: None }
}

fn missing(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Probe {
    Probe { name, ok: false, required: false, detail: detail.into(), remedy: Some(remedy.into()) }
}

fn sysctl(path: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(path)).ok().map(|text| text.trim().to_owned())
}

/// Really makes one, with the other namespaces of a sandbox.
fn user_namespaces() -> Probe {
    let name = "user-namespaces";
    let attempt = || -> io::Result<()> {
        match sys::clone_into_namespaces(super::launch::namespaces(super::spec::Network::Isolated))? {
            sys::Fork::Child => sys::exit_now(0),
            sys::Fork::Parent { pid, .. } => {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
                }
                Ok(())
            }
        }
    };
    let probe = match attempt() {
        Ok(())
            if sysctl("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1")
                && !rustix::process::geteuid().is_root() =>
        {
            missing(
                name,
                "they can be made, but AppArmor takes their capabilities away (kernel.apparmor_restrict_unprivileged_userns=1)",
                "an AppArmor profile for this program with `userns,`, or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
            )
        }
        Ok(()) => found(name, "they can be made, with mount, pid, network, ipc, uts and cgroup namespaces"),
        Err(error) if sysctl("kernel/unprivileged_userns_clone").as_deref() == Some("0") => missing(
            name,
            format!("kernel.unprivileged_userns_clone is 0 ({error})"),
            "`sysctl -w kernel.unprivileged_userns_clone=1`",
        ),
        Err(error) if sysctl("user/max_user_namespaces").as_deref() == Some("0") => missing(
            name,
            format!("user.max_user_namespaces is 0 ({error})"),
            "`sysctl -w user.max_user_namespaces=10000`",
        ),
        Err(error) => missing(
            name,
            format!("they cannot be made: {error}"),
            "in a container: run it with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined`",
        ),
    };
    Probe { required: true, ..probe }
}

fn overlay() -> Probe {
    let name = "overlay";
    let listed = fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|line| line.trim_end().ends_with("\toverlay")));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut version =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (version.next().unwrap_or(0), version.next().unwrap_or(0));
    if listed && version >= (5, 11) {
        found(name, format!("in Linux {release}, usable in user namespaces"))
    } else if listed {
        missing(name, format!("Linux {release} has it, but not in user namespaces"), "Linux 5.12 or newer")
    } else {
        let remedy = "`modprobe overlay`; without it system directories are read-only inside";
        missing(name, format!("not loaded in Linux {release}"), remedy)
    }
}

fn subordinate_ids(ids: &io::Result<IdMap>) -> Probe {
    let name = "subordinate-ids";
    match ids {
        Ok(ids @ (IdMap::High { .. } | IdMap::Subordinate { .. })) => found(name, ids.describe()),
        Ok(IdMap::Single { .. }) => {
            let helper = if find_program("newuidmap").is_some() {
                "no range for this user in /etc/subuid"
            } else {
                "newuidmap is not installed"
            };
            missing(
                name,
                format!("{helper}; sandboxes have a single id, and changes of owner only seem to succeed"),
                "install `uidmap` (Debian) or `shadow-utils`, and `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`",
            )
        }
        Err(error) => missing(name, format!("/etc/subuid cannot be read: {error}"), "make it readable"),
    }
}

fn state_dir(name: &'static str, dir: &Path) -> Probe {
    let attempt = || -> io::Result<()> {
        state::private_dir(dir)?;
        tempfile::tempfile_in(dir).map(drop)
    };
    let probe = match attempt() {
        Err(error) => missing(
            name,
            format!("{}: {error}", dir.display()),
            "make it writable, or choose another by POCKETENV_HOME",
        ),
        Ok(()) => match rustix::fs::statfs(dir).map(|statfs| u32::try_from(statfs.f_type)) {
            Ok(Ok(OVERLAYFS)) => missing(
                name,
                format!("{} is itself on an overlay file system", dir.display()),
                "put it on a volume or memory file system; otherwise system directories are read-only inside",
            ),
            _ => found(name, dir.display().to_string()),
        },
    };
    let required = !probe.ok && !probe.detail.ends_with("overlay file system");
    Probe { required, ..probe }
}

const OVERLAYFS: u32 = 0x794c_7630;

fn seccomp() -> Probe {
    let actions = sysctl("kernel/seccomp/actions_avail").unwrap_or_default();
    let probe = if actions.split(' ').any(|action| action == "errno") {
        found("seccomp", actions)
    } else {
        missing("seccomp", "the kernel has no system call filter", "a kernel with CONFIG_SECCOMP_FILTER")
    };
    Probe { required: true, ..probe }
}

fn landlock() -> Probe {
    match sys::landlock_abi() {
        Ok(abi) => found("landlock", format!("ABI {abi}")),
        Err(error) => missing(
            "landlock",
            format!("not available: {error}"),
            "a kernel with CONFIG_SECURITY_LANDLOCK and lsm=landlock",
        ),
    }
}

fn cgroups() -> Probe {
    let available = match Available::here() {
        Ok(available) => available,
        Err(error) => return missing("cgroups", format!("cannot be looked at: {error}"), "mount /proc"),
    };
    let by = if available.manager().is_some() { ", in scopes of this user's systemd" } else { "" };
    let can = format!("{} can be limited{by}", available.names().join(", "));
    match (available.why_not(), available.names().is_empty()) {
        ("", _) => found("cgroups", can),
        (why, true) => missing("cgroups", why, available.remedy()),
        (why, false) => missing("cgroups", format!("only {can}: {why}"), available.remedy()),
    }
}

fn freezer() -> Probe {
    let remedy = "root, or a limit for the sandbox where this user's own systemd runs; without it a sandbox is stopped before a snapshot of it is made";
    match Available::here() {
        Ok(available) => match available.no_freezer() {
            None if available.manager().is_some() => {
                found("freezer", "a sandbox that runs and has a limit can be paused")
            }
            None => found("freezer", "a sandbox that runs can be paused"),
            Some(why) => missing("freezer", format!("nothing can be paused: {why}"), remedy),
        },
        Err(error) => missing("freezer", format!("cannot be looked at: {error}"), remedy),
    }
}

fn tun() -> Probe {
    match fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => found("tun", "/dev/net/tun can be opened"),
        Err(error) => missing("tun", format!("/dev/net/tun: {error}"), "not needed by the default network"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_answer_is_whole_and_what_is_missing_has_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig {
            data_dir: dir.path().join("a/b"),
            runtime_dir: "/proc/nowhere".into(),
            exe: "/proc/self/exe".into(),
        };
        let probes = probe(&config);
        for probe in &probes {
            assert!(!probe.detail.is_empty(), "{probe:?}");
            assert_eq!(probe.ok, probe.remedy.is_none(), "{probe:?}");
        }
        let find = |name| probes.iter().find(|probe| probe.name == name).unwrap();
        assert!(find("data-directory").ok);
        let runtime = find("runtime-directory");
        assert!(!runtime.ok && runtime.required && runtime.detail.contains("/proc/nowhere"), "{runtime:?}");
    }
}
