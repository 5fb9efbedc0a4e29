//! When a sandbox ends by itself: it is stopped when nothing has used it for long enough, and deleted when its time is over. Its shim sees to
//! both, so that no other program need run; what is over while no shim runs goes at the next look.
//!
//! Time is counted from the boot of the machine, asleep or not, so that setting its clock ends nothing. Of a sandbox that is older than the
//! boot only the clock can tell the age.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::ClockId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::cgroup;
use super::error::EngineError;
use super::lifecycle::Engine;
use super::proto::Request;
use super::spec::Lifetime;
use super::state::{self, Record, Run};

/// The longest sleep between two looks: the runtime's own clock stands still while the machine is asleep.
const LONGEST: Duration = Duration::from_secs(30);
/// The shortest one.
const SHORTEST: Duration = Duration::from_millis(20);

/// A moment, counted from the boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    boot: String,
    ms: u64,
}

impl Moment {
    /// This one.
    ///
    /// # Errors
    /// What reading `/proc` reports.
    pub fn now() -> io::Result<Moment> {
        Ok(Moment { boot: state::boot_id()?, ms: boot_ms() })
    }
}

/// Milliseconds since the machine was booted, those asleep included.
pub fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// How old a sandbox is, in milliseconds.
///
/// # Errors
/// What reading `/proc` reports.
pub fn age(created_at: u64, born: Option<&Moment>) -> io::Result<u64> {
    Ok(match born {
        Some(born) if born.boot == state::boot_id()? => boot_ms().saturating_sub(born.ms),
        _ => state::now_ms().saturating_sub(created_at),
    })
}

/// How many milliseconds a sandbox has left; `None` for any number.
///
/// # Errors
/// What reading `/proc` reports.
pub fn left(record: &Record) -> io::Result<Option<u64>> {
    let Some(ttl) = record.spec.lifetime.ttl else { return Ok(None) };
    Ok(Some(ttl.saturating_sub(age(record.created_at, record.born.as_ref())?)))
}

/// Connections from outside that are open, and when the last one ended.
#[derive(Debug, Default)]
pub struct Uses {
    open: AtomicUsize,
    last: AtomicU64,
}

/// One use, until it is dropped.
#[derive(Debug)]
pub struct Use<'a>(&'a Uses);

impl Uses {
    /// Begins one.
    pub fn begin(&self) -> Use<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Use(self)
    }

    /// Notes that it is used at this moment.
    pub fn touch(&self) {
        self.last.store(boot_ms(), Ordering::Relaxed);
    }

    /// For how long there has been none.
    fn idle(&self) -> u64 {
        match self.open.load(Ordering::Relaxed) {
            0 => boot_ms().saturating_sub(self.last.load(Ordering::Relaxed)),
            _ => 0,
        }
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a sandbox ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Nothing has used it for so many milliseconds.
    Idle(u64),
    /// It was to live for so many milliseconds.
    Old(u64),
}

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Over::Idle(ms) => write!(f, "nothing used it for {}", words(*ms)),
            Over::Old(ms) => write!(f, "its {} are over", words(*ms)),
        }
    }
}

/// In the largest unit that leaves nothing over.
fn words(ms: u64) -> String {
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let unit = units.into_iter().find(|(_, size)| ms.is_multiple_of(*size));
    unit.map_or_else(|| format!("{ms}ms"), |(name, size)| format!("{}{name}", ms / size))
}

/// Returns when the sandbox whose directory this is has to end. `idle_inside` tells for how many milliseconds no command has run inside.
pub async fn over<F>(
    mut lifetime: watch::Receiver<Lifetime>,
    (created_at, born): (u64, Option<Moment>),
    uses: &Uses,
    idle_inside: impl Fn() -> F,
) -> Over
where
    F: Future<Output = io::Result<u64>>,
{
    uses.touch();
    loop {
        let now = *lifetime.borrow_and_update();
        let mut next = LONGEST;
        if let Some(ttl) = now.ttl
            && let Ok(age) = age(created_at, born.as_ref())
        {
            match ttl.saturating_sub(age) {
                0 => return Over::Old(ttl),
                left => next = next.min(Duration::from_millis(left)),
            }
        }
        if let Some(limit) = now.idle {
            if is_paused() {
                uses.touch(); // whoever paused it means to come back
            }
            let mut idle = uses.idle();
            if idle >= limit {
                // Asked only when it matters. What does not answer is not idle.
                idle = idle.min(idle_inside().await.unwrap_or(0));
            }
            match limit.saturating_sub(idle) {
                0 => return Over::Idle(limit),
                left => next = next.min(Duration::from_millis(left)),
            }
        }
        let changed = match now {
            Lifetime { ttl: None, idle: None } => lifetime.changed().await,
            _ => tokio::time::timeout(next.max(SHORTEST), lifetime.changed()).await.unwrap_or(Ok(())),
        };
        if changed.is_err() {
            return std::future::pending().await; // the shim is ending
        }
    }
}

/// Whether the sandbox of this shim is frozen.
fn is_paused() -> bool {
    let run = state::read::<Run>(Path::new("run.json"));
    run.ok().flatten().is_some_and(|run| cgroup::is_frozen(&run.cgroups).unwrap_or(false))
}

impl Engine {
    /// Changes when it ends by itself, at once where the sandbox runs, and at every start from now on.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Control`], [`EngineError::File`].
    pub async fn set_lifetime(&self, id: &str, lifetime: Lifetime) -> Result<(), EngineError> {
        let (_lock, mut record) = self.existing(id).await?;
        if record.spec.lifetime != lifetime {
            record.spec.lifetime = lifetime;
            self.write_record(&record)?;
        }
        self.apply_ports(id, &Request::SetLifetime(lifetime)).await
    }

    /// Deletes a sandbox whose time is over; any other is left alone.
    pub(super) async fn expire(&self, id: &str) -> Result<(), EngineError> {
        let (lock, record) = self.existing(id).await?;
        if self.is_over(&record)? {
            self.remove(id).await?;
            lock.remove();
        }
        Ok(())
    }

    pub(super) fn is_over(&self, record: &Record) -> Result<bool, EngineError> {
        Ok(self.left(record)? == Some(0))
    }

    pub(super) fn left(&self, record: &Record) -> Result<Option<u64>, EngineError> {
        left(record).map_err(|source| EngineError::Control { id: record.id.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_clock_of_the_machine_decides_only_over_what_is_older_than_its_boot() {
        let now = Moment::now().unwrap();
        // A clock that was set back, or years ahead, changes nothing.
        for created_at in [0, u64::MAX] {
            assert!(age(created_at, Some(&now)).unwrap() < 1000);
        }
        let before = Moment { boot: "another".to_owned(), ms: 0 };
        let age = age(state::now_ms() - 5000, Some(&before)).unwrap();
        assert!((5000..6000).contains(&age), "{age}");
    }

    #[test]
    fn durations_read_as_they_are_written() {
        let all = [(1_800_000, "30m"), (28_800_000, "8h"), (90_000, "90s"), (1500, "1500ms")];
        assert!(all.iter().all(|(ms, text)| words(*ms) == *text));
    }

    #[test]
    fn what_is_open_is_in_use() {
        let uses = Uses::default();
        assert!(uses.idle() > 0, "never used");
        let one = uses.begin();
        assert_eq!(uses.idle(), 0);
        drop(one);
        assert!(uses.idle() < 1000);
    }
}
