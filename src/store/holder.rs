//! Who holds a lease, and whether it is provably gone.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process that may hold leases. What could not be found out is `None`, and proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// For people: `user@host`, and what it does.
    pub actor: String,
    /// The process id.
    pub pid: u32,
    /// When the process started, in ticks since its machine booted; with the process id it names one process for ever.
    pub pid_start: Option<u64>,
    /// The process id namespace: process ids of another one mean nothing here.
    pub pid_namespace: Option<String>,
    /// The boot of the machine; equal ids are the same kernel.
    pub boot_id: Option<String>,
    /// The installation of the machine, which outlives its boots.
    pub machine_id: Option<String>,
    /// The host name.
    pub host: String,
}

/// What is known of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// It runs.
    Alive,
    /// It can never run again.
    Gone,
    /// It cannot be seen from here.
    Unknown,
}

impl Holder {
    /// This process; `actor` says for people who it is and what it does.
    pub fn current(actor: impl Into<String>) -> Self {
        let pid = std::process::id();
        Self {
            actor: actor.into(),
            pid,
            pid_start: match process(pid) {
                Process::Running { start } => start,
                Process::None => None,
            },
            pid_namespace: pid_namespace(pid),
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
            machine_id: first_line("/etc/machine-id"),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    /// Whether this holder still runs, as `observer` sees it.
    pub(super) fn liveness(&self, observer: &Holder) -> Liveness {
        let same = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) => Some(a == b),
            _ => None,
        };
        match same(&self.boot_id, &observer.boot_id) {
            Some(true) if same(&self.pid_namespace, &observer.pid_namespace) == Some(true) => {
                match (process(self.pid), self.pid_start) {
                    (Process::None, _) => Liveness::Gone,
                    (Process::Running { start: Some(now) }, Some(then)) if now != then => Liveness::Gone,
                    (Process::Running { .. }, _) => Liveness::Alive,
                }
            }
            // Host names alone are not unique, and images are copied with their machine id: both together name a machine.
            Some(false)
                if self.host == observer.host
                    && same(&self.machine_id, &observer.machine_id) == Some(true) =>
            {
                Liveness::Gone
            }
            _ => Liveness::Unknown,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {} on {})", self.actor, self.pid, self.host)
    }
}

/// A process id of this namespace.
enum Process {
    /// No process, or one that has ended and was not yet waited for.
    None,
    /// A process; when it started if that can be told.
    Running { start: Option<u64> },
}

fn process(pid: u32) -> Process {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The second field is a file name in parentheses and may hold anything, so fields are counted from its end.
        Ok(stat) => {
            let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
            match fields.next() {
                Some("Z" | "X" | "x") => Process::None,
                _ => Process::Running { start: fields.nth(18).and_then(|start| start.parse().ok()) },
            }
        }
        // /proc may be absent, or hide the processes of others: a signal tells.
        Err(_) => match i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            Some(pid) => match rustix::process::test_kill_process(pid) {
                Err(rustix::io::Errno::SRCH) => Process::None,
                _ => Process::Running { start: None },
            },
            None => Process::None,
        },
    }
}

/// The namespace that process ids of /proc belong to, if it is the one that `pid`, our own, belongs to: a /proc of another
/// namespace counts processes differently.
fn pid_namespace(pid: u32) -> Option<String> {
    let me = std::fs::read_link("/proc/self").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    (me.to_str() == Some(&pid.to_string())).then(|| namespace.to_string_lossy().into_owned())
}

/// The first line of a small file of the system; `None` if there is none or it is empty.
fn first_line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().next().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn me() -> Holder {
        Holder::current("me@here")
    }

    #[test]
    fn a_live_process_is_alive_and_its_id_with_another_start_is_not() {
        assert_eq!(me().liveness(&me()), Liveness::Alive);
        let reused = Holder { pid_start: Some(1), ..me() };
        assert_eq!(reused.liveness(&me()), Liveness::Gone);
    }

    #[test]
    fn an_ended_process_is_gone_even_while_nobody_waited_for_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = match process(child.id()) {
            Process::Running { start } => start,
            Process::None => panic!("the child runs"),
        };
        let holder = Holder { pid: child.id(), pid_start: start, ..me() };
        assert_eq!(holder.liveness(&me()), Liveness::Alive);
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while holder.liveness(&me()) != Liveness::Gone {
            assert!(std::time::Instant::now() < deadline, "a killed child counts as alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(holder.liveness(&me()), Liveness::Gone);
    }

    #[test]
    fn another_boot_proves_it_only_on_the_same_machine() {
        let machine = Some("m".to_owned());
        let observer = Holder { machine_id: machine.clone(), boot_id: Some("b2".to_owned()), ..me() };
        let before = Holder { boot_id: Some("b1".to_owned()), ..observer.clone() };
        assert_eq!(before.liveness(&observer), Liveness::Gone);
        assert_eq!(
            Holder { host: "other".to_owned(), ..before.clone() }.liveness(&observer),
            Liveness::Unknown
        );
        assert_eq!(Holder { machine_id: None, ..before }.liveness(&observer), Liveness::Unknown);
    }

    #[test]
    fn a_process_id_of_another_namespace_proves_nothing() {
        let hidden = Holder { pid: u32::MAX, pid_namespace: Some("pid:[1]".to_owned()), ..me() };
        assert_eq!(hidden.liveness(&me()), Liveness::Unknown);
    }
}
