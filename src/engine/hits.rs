//! The account of what the limits of a sandbox held back, kept by its shim: when, and which process it was where that can be known.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::cgroup::{self, Controller, Group, Killed};
use super::disk;
use super::error::EngineError;
use super::lifecycle::{Engine, read_unsynced};
use super::spec::{DiskInfo, Limits};
use super::state::{self, Run};

/// The file, in the sandbox's directory.
const HITS: &str = "hits.json";
/// Between two looks: a process that lives for less may end without its number inside being known.
const INTERVAL: Duration = Duration::from_secs(1);
/// Refused processes within so many milliseconds are one hit.
const TOGETHER: u64 = 60_000;
/// The hits that are kept, the newest.
const MAX_HITS: usize = 100;

/// Something that a limit held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// When, in milliseconds since the Unix epoch; of several together, the first.
    pub at: u64,
    /// What.
    pub what: Held,
}

/// What a limit held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// The memory was used up, and the kernel killed a process.
    Killed {
        /// Its name, where the kernel's log tells.
        name: Option<String>,
        /// Its number inside, where that is known.
        pid: Option<i32>,
    },
    /// There were too many processes to start these.
    Refused(u64),
    /// The disk was full.
    Full(DiskInfo),
}

impl Engine {
    /// What the limits of a sandbox held back, the latest hundred.
    ///
    /// # Errors
    /// [`EngineError::Broken`] when the account cannot be read.
    pub(super) fn hits(&self, id: &str) -> Result<Vec<Hit>, EngineError> {
        Ok(read_unsynced(id, &self.dir(id).join(HITS))?.unwrap_or_default())
    }
}

/// Looks at the sandbox of the working directory as long as it has limits, and writes down what it sees. `changed` says that they may be others.
pub async fn watch(init: i32, mut limits: Limits, changed: &Notify) {
    let mut account = Account::open();
    loop {
        if limits != Limits::default() {
            // What is asked of the kernel here takes microseconds.
            match account.look(init) {
                Ok(()) if tokio::time::timeout(INTERVAL, changed.notified()).await.is_err() => continue,
                Ok(()) => {}
                Err(error) => {
                    eprintln!("limits: {error}");
                    changed.notified().await;
                }
            }
        } else {
            changed.notified().await;
        }
        if let Ok(Some(record)) = state::read::<state::Record>(Path::new("state.json")) {
            limits = record.spec.limits;
        }
    }
}

struct Account {
    hits: Vec<Hit>,
    seen: Seen,
}

/// What was seen at the last look.
#[derive(Default)]
struct Seen {
    kills: u64,
    refused: u64,
    full: bool,
    /// Numbers inside by numbers outside.
    processes: HashMap<i32, i32>,
    /// The latest record of the kernel's log about a kill.
    record: u64,
}

impl Account {
    fn open() -> Account {
        let kept = state::read::<Vec<Hit>>(Path::new(HITS)).unwrap_or_else(|error| {
            eprintln!("{HITS}: {error}; it is begun anew");
            None
        });
        Account { hits: kept.unwrap_or_default(), seen: Seen::default() }
    }

    fn look(&mut self, init: i32) -> io::Result<()> {
        let run = state::read::<Run>(Path::new("run.json"))?;
        let groups = run.map(|run| run.cgroups).unwrap_or_default();
        let (kills, refused) = cgroup::counters(&groups)?;
        let disk = disk::of_running(Path::new("."), init)?;
        let before = self.hits.clone();
        let memory = groups.iter().find(|group| group.controller == Controller::Memory);
        if let Some(group) = memory {
            if kills > self.seen.kills {
                let killed = cgroup::killed(&group.path, self.seen.record);
                self.killed(kills - self.seen.kills, killed);
            }
            self.seen.processes = processes(group, std::mem::take(&mut self.seen.processes));
        }
        if refused > self.seen.refused {
            self.refused(refused - self.seen.refused);
        }
        let full = disk.filter(DiskInfo::is_full);
        if let Some(disk) = full.filter(|_| !self.seen.full) {
            self.note(Held::Full(disk));
        }
        (self.seen.kills, self.seen.refused, self.seen.full) = (kills, refused, full.is_some());
        match self.hits == before {
            true => Ok(()),
            false => state::write(Path::new(HITS), &self.hits, false),
        }
    }

    fn killed(&mut self, count: u64, told: Vec<Killed>) {
        let count = usize::try_from(count).unwrap_or(MAX_HITS).min(MAX_HITS);
        // The log may have lost some of them, and still have those of an earlier run.
        let unknown = count.saturating_sub(told.len());
        let earlier = told.len().saturating_sub(count);
        for killed in told.into_iter().skip(earlier) {
            let pid = self.seen.processes.get(&killed.pid).copied().or_else(|| inside(killed.pid));
            self.seen.record = killed.record;
            self.note(Held::Killed { name: Some(killed.name), pid });
        }
        for _ in 0..unknown {
            self.note(Held::Killed { name: None, pid: None });
        }
    }

    fn refused(&mut self, count: u64) {
        let now = state::now_ms();
        let last = self.hits.iter_mut().rev().find_map(|hit| match &mut hit.what {
            Held::Refused(before) => Some((hit.at, before)),
            _ => None,
        });
        match last {
            Some((at, before)) if now.saturating_sub(at) < TOGETHER => *before += count,
            _ => self.note(Held::Refused(count)),
        }
    }

    fn note(&mut self, what: Held) {
        // No two have one moment, which is what they are told apart by.
        let at = self.hits.last().map_or(0, |last| last.at + 1).max(state::now_ms());
        self.hits.push(Hit { at, what });
        let excess = self.hits.len().saturating_sub(MAX_HITS);
        self.hits.drain(..excess);
    }
}

/// The processes of a group, with their numbers inside; those that were known keep theirs.
fn processes(group: &Group, known: HashMap<i32, i32>) -> HashMap<i32, i32> {
    let list = fs::read_to_string(group.path.join("cgroup.procs")).unwrap_or_default();
    let pids = list.lines().filter_map(|line| line.parse().ok());
    pids.filter_map(|pid| Some((pid, known.get(&pid).copied().or_else(|| inside(pid))?))).collect()
}

/// The number of a process in its own namespace, also of one that has ended and was not reaped.
fn inside(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_is_told_and_refusals_together() {
        let mut account = Account { hits: Vec::new(), seen: Seen::default() };
        account.seen.processes.insert(4711, 7);
        let tail = Killed { name: "tail".to_owned(), pid: 4711, record: 9 };
        account.killed(2, vec![tail]);
        account.refused(3);
        account.refused(4);
        let what: Vec<_> = account.hits.iter().map(|hit| hit.what.clone()).collect();
        let known = Held::Killed { name: Some("tail".to_owned()), pid: Some(7) };
        assert_eq!(what, [known, Held::Killed { name: None, pid: None }, Held::Refused(7)]);
        assert_eq!(account.seen.record, 9);
        for _ in 0..MAX_HITS {
            account.note(Held::Full(DiskInfo::default()));
        }
        assert_eq!(account.hits.len(), MAX_HITS);
        assert!(account.hits.windows(2).all(|two| two[0].at < two[1].at), "each has a moment of its own");
    }

    #[test]
    fn a_disk_is_full_when_either_runs_out() {
        let disk = |used, files_used| DiskInfo { limit: 1000, used, files_limit: 1000, files_used };
        assert!(!disk(994, 994).is_full());
        assert!(disk(996, 0).is_full() && disk(0, 1000).is_full());
    }
}
