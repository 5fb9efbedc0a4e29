//! How much a sandbox uses, as far as its inside shows it: of processor and memory what its processes have.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::provider::{Command, Guest, GuestError, capture};

/// How long measuring may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What a sandbox uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// Processors that it sees.
    pub cpus: u32,
    /// Of one processor, in percent.
    pub cpu_percent: f64,
    /// Memory of its processes, bytes.
    pub memory: u64,
    /// Memory that it sees, bytes.
    pub memory_total: u64,
    /// Memory for caches that it sees, bytes.
    pub cache: u64,
    /// Disk in use where its root is, bytes.
    pub disk: u64,
    /// All disk there, bytes.
    pub disk_total: u64,
}

/// Measures now.
pub(super) async fn measure(guest: &dyn Guest) -> Result<Usage, GuestError> {
    let mut command = Command::new(["sh", "-c", include_str!("sh/measure.sh"), "pocketenv-measure"]);
    command.cwd = Some("/".to_owned());
    command.timeout = Some(LIMIT);
    let begun = Instant::now();
    let output = capture(guest, &command, &[], 8 << 20).await?;
    Ok(read(&String::from_utf8_lossy(&output.stdout), begun.elapsed()))
}

/// Reads what the script printed in `elapsed`, most of which lay between its two looks.
fn read(text: &str, elapsed: Duration) -> Usage {
    let (facts, looks) = text.split_once("first\n").unwrap_or((text, ""));
    let (first, second) = looks.split_once("second\n").unwrap_or((looks, ""));
    let fact = |name: &str| {
        let line = facts.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let disk: Vec<u64> = facts
        .lines()
        .find(|line| line.starts_with("disk "))
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .unwrap_or_default();
    let before: BTreeMap<&str, (u64, u64)> = first.lines().filter_map(process).collect();
    let now: BTreeMap<&str, (u64, u64)> = second.lines().filter_map(process).collect();
    let ticks: u64 = now
        .iter()
        .map(|(pid, (used, _))| used.saturating_sub(before.get(pid).map_or(*used, |(used, _)| *used)))
        .sum();
    let seconds = ticks as f64 / fact("ticks").unwrap_or(100).max(1) as f64;
    Usage {
        cpus: u32::try_from(fact("cpus").unwrap_or(1)).unwrap_or(1),
        cpu_percent: (seconds / elapsed.as_secs_f64().max(0.01) * 10_000.0).round() / 100.0,
        memory: now
            .values()
            .map(|(_, pages)| pages)
            .sum::<u64>()
            .saturating_mul(fact("page").unwrap_or(4096)),
        memory_total: fact("MemTotal").unwrap_or(0) << 10,
        cache: fact("Cached").unwrap_or(0) << 10,
        disk: disk.get(1).copied().unwrap_or(0) << 10,
        disk_total: disk.first().copied().unwrap_or(0) << 10,
    }
}

/// The id of a process, its ticks of processor and its pages of memory, from its line in `/proc/PID/stat`.
fn process(line: &str) -> Option<(&str, (u64, u64))> {
    let (pid, _) = line.split_once(' ')?;
    // The name in parentheses may hold blanks.
    let fields: Vec<&str> = line.rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((pid, (number(11)?.saturating_add(number(12)?), number(21)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_prints_is_read() {
        let stat = |ticks: u64| format!("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 {ticks} 5 0 0 20 0 1 0 9 99 10 0\n");
        let text = format!(
            "MemTotal 100 kB\nCached 3 kB\ndisk overlay 50 20 30 40% /\ncpus 2\npage 4096\nticks 100\nfirst\n{}second\n{}",
            stat(10),
            stat(60)
        );
        let usage = read(&text, Duration::from_secs(1));
        assert_eq!(usage.cpu_percent, 50.0);
        assert_eq!((usage.cpus, usage.memory, usage.memory_total, usage.cache), (2, 40_960, 102_400, 3072));
        assert_eq!((usage.disk_total, usage.disk), (50 << 10, 20 << 10));
    }
}
