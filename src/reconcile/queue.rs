//! The work queue of the long-running modes, as a pure value: time and chance are arguments.
//!
//! A key is queued at most once, and the earliest request wins. It is never worked on twice at the same time: what is asked for while it runs
//! is remembered and comes after. A failing key comes back after a backoff that grows with its failures in a row and is reset by a success or
//! by a new generation, so that a mended manifest does not sit out the punishment of the broken one. Keys belong to groups (projects, provider
//! accounts); groups take turns, so that one with many keys, or with keys that fail for ever, does not starve the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Backoff;
use crate::model::Timestamp;

/// How often a pause doubles while nothing has to be done.
const CALMING: u32 = 3;

/// How one piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As desired. It is looked at again after this long.
    Converged {
        /// Until the next look.
        resync: Duration,
    },
    /// As desired, and nothing had to be done for it. It is looked at again after the longest pause, or, the less often in a row nothing had to be
    /// done, the sooner: half of it, a quarter, an eighth.
    Calm {
        /// The longest pause.
        resync: Duration,
    },
    /// Something is under way that nobody here can hurry. It is looked at again after this long; this is no failure.
    Waiting {
        /// Until the next look.
        recheck: Duration,
    },
    /// It failed. It is tried again after the queue's backoff, or after this long if the provider asked for that.
    Failed {
        /// What the provider asked for.
        retry_after: Option<Duration>,
    },
}

/// The queue.
#[derive(Clone, Debug)]
pub struct Queue<K: Ord + Clone, G: Ord + Clone> {
    entries: BTreeMap<K, Entry<G>>,
    /// Idle keys by group and by when they are due.
    due: BTreeMap<G, BTreeSet<(Timestamp, K)>>,
    /// When each group was last served, by a counter; the least recently served group comes first.
    served: BTreeMap<G, u64>,
    turns: u64,
    backoff: Backoff,
}

#[derive(Clone, Debug)]
struct Entry<G> {
    group: G,
    generation: u64,
    /// When it is due; `None` while it runs and nothing new was asked.
    due: Option<Timestamp>,
    running: bool,
    failures: u32,
    /// How often in a row nothing had to be done.
    calm: u32,
}

/// A key that is to be worked on now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started<K> {
    /// The key.
    pub key: K,
    /// How long it was due before it was started, in milliseconds.
    pub latency_ms: u64,
}

impl<K: Ord + Clone, G: Ord + Clone> Queue<K, G> {
    /// An empty queue with this backoff; its number of retries is not used, for nothing is given up.
    pub fn new(backoff: Backoff) -> Self {
        Self { entries: BTreeMap::new(), due: BTreeMap::new(), served: BTreeMap::new(), turns: 0, backoff }
    }

    /// Asks for a key to be worked on at `at` or soon after. `generation` counts what is desired of it; a new one forgets earlier failures.
    pub fn request(&mut self, key: K, group: G, generation: u64, at: Timestamp) {
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            group: group.clone(),
            generation,
            due: None,
            running: false,
            failures: 0,
            calm: 0,
        });
        let renewed = generation > entry.generation;
        if renewed {
            entry.generation = generation;
            entry.failures = 0;
            entry.calm = 0;
        }
        let group_before = std::mem::replace(&mut entry.group, group.clone());
        // A key that sits out a backoff is not hurried by an old wish: only by a new generation.
        let waits_out_failures = entry.failures > 0 && !renewed && entry.due.is_some();
        let at = match entry.due {
            Some(due) if waits_out_failures => due,
            Some(due) => due.min(at),
            None => at,
        };
        let before = entry.due.replace(at);
        let running = entry.running;
        if let Some(before) = before {
            self.take(&group_before, before, &key);
        }
        if !running {
            self.due.entry(group).or_default().insert((at, key));
        }
    }

    fn take(&mut self, group: &G, due: Timestamp, key: &K) {
        if let Some(keys) = self.due.get_mut(group) {
            keys.remove(&(due, key.clone()));
            if keys.is_empty() {
                self.due.remove(group);
            }
        }
    }

    /// The next key to work on, if one is due: of the due keys' groups the one that was served least recently.
    pub fn start_next(&mut self, now: Timestamp) -> Option<Started<K>> {
        let firsts = self.due.iter().filter_map(|(group, keys)| Some((group, keys.first()?)));
        let (group, (due, key)) = firsts
            .filter(|(_, (due, _))| *due <= now)
            .min_by_key(|(group, (due, _))| (self.served.get(*group).copied().unwrap_or(0), *due))?;
        let (group, due, key) = (group.clone(), *due, key.clone());
        self.take(&group, due, &key);
        let entry = self.entries.get_mut(&key)?;
        entry.running = true;
        entry.due = None;
        self.turns += 1;
        self.served.insert(group, self.turns);
        Some(Started { key, latency_ms: now.millis_since(due) })
    }

    /// Notes how the work on a key ended. `chance` is uniform in 0..=u32::MAX.
    pub fn finish(&mut self, key: &K, now: Timestamp, ended: Ended, chance: u32) {
        self.finish_with(key, now, ended, chance, self.backoff);
    }

    /// The same, of a key with a backoff of its own.
    pub fn finish_with(&mut self, key: &K, now: Timestamp, ended: Ended, chance: u32, backoff: Backoff) {
        let Some(entry) = self.entries.get_mut(key).filter(|e| e.running) else { return };
        entry.running = false;
        let calm = std::mem::take(&mut entry.calm);
        let pause = match ended {
            Ended::Converged { resync } => {
                entry.failures = 0;
                resync
            }
            Ended::Calm { resync } => {
                entry.failures = 0;
                entry.calm = (calm + 1).min(CALMING);
                resync / 2_u32.pow(CALMING - calm)
            }
            Ended::Waiting { recheck } => recheck,
            Ended::Failed { retry_after } => {
                let attempt = entry.failures;
                entry.failures = entry.failures.saturating_add(1);
                let endless = Backoff { retries: u32::MAX, ..backoff };
                endless.delay(attempt.min(31), chance, retry_after).unwrap_or(backoff.max)
            }
        };
        let next = later(now, pause);
        // What was asked for meanwhile comes first, unless it would run into the same wall.
        let due = match (entry.due, ended) {
            (Some(asked), Ended::Converged { .. } | Ended::Calm { .. } | Ended::Waiting { .. }) => {
                asked.min(next)
            }
            (Some(asked), Ended::Failed { .. }) => asked.max(next),
            (None, _) => next,
        };
        entry.due = Some(due);
        let group = entry.group.clone();
        self.due.entry(group).or_default().insert((due, key.clone()));
    }

    /// Drops a key. If it runs, its end is of no interest any more.
    pub fn forget(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key)
            && let Some(due) = entry.due
        {
            self.take(&entry.group, due, key);
        }
    }

    /// When the next idle key is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.values().filter_map(|keys| keys.first()).map(|(due, _)| *due).min()
    }

    /// How many keys are due now and not worked on.
    pub fn depth(&self, now: Timestamp) -> usize {
        self.due.values().map(|keys| keys.iter().take_while(|(due, _)| *due <= now).count()).sum()
    }

    /// Failures of a key in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.entries.get(key).map_or(0, |e| e.failures)
    }
}

fn later(now: Timestamp, pause: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60), retries: 0 };
    const FAILED: Ended = Ended::Failed { retry_after: None };

    fn at(ms: i64) -> Timestamp {
        Timestamp(ms)
    }

    fn start(queue: &mut Queue<&'static str, &'static str>, now: i64) -> Option<&'static str> {
        queue.start_next(at(now)).map(|s| s.key)
    }

    #[test]
    fn a_key_is_queued_once_and_the_earliest_request_wins() {
        let mut queue = Queue::new(BACKOFF);
        queue.request("a", "g", 1, at(50));
        queue.request("a", "g", 1, at(10));
        queue.request("a", "g", 1, at(90));
        assert_eq!(queue.next_due(), Some(at(10)));
        assert_eq!(start(&mut queue, 9), None);
        assert_eq!(start(&mut queue, 10), Some("a"));
        assert_eq!(start(&mut queue, 99), None);
    }

    #[test]
    fn a_running_key_is_not_started_again_and_what_was_asked_comes_after() {
        let mut queue = Queue::new(BACKOFF);
        queue.request("a", "g", 1, at(0));
        assert_eq!(start(&mut queue, 0), Some("a"));
        queue.request("a", "g", 1, at(1));
        assert_eq!(start(&mut queue, 5), None);
        queue.finish(&"a", at(6), Ended::Converged { resync: Duration::from_secs(100) }, 0);
        assert_eq!(start(&mut queue, 6), Some("a"));
    }

    #[test]
    fn failures_back_off_and_a_new_generation_forgets_them() {
        let mut queue = Queue::new(BACKOFF);
        queue.request("a", "g", 1, at(0));
        let mut now = 0;
        for expected in [1_000, 2_000, 4_000] {
            assert_eq!(start(&mut queue, now), Some("a"));
            queue.finish(&"a", at(now), FAILED, 0);
            assert_eq!(queue.next_due(), Some(at(now + expected)));
            // An old wish does not shorten the wait.
            queue.request("a", "g", 1, at(now));
            assert_eq!(queue.next_due(), Some(at(now + expected)));
            now += expected;
        }
        queue.request("a", "g", 1, at(now));
        assert_eq!(start(&mut queue, now), Some("a"));
        queue.finish(&"a", at(now), FAILED, 0);
        queue.request("a", "g", 2, at(now));
        assert_eq!(start(&mut queue, now), Some("a"));
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[test]
    fn what_stays_as_it_is_is_looked_at_less_and_less_often_and_a_change_brings_it_back() {
        let resync = Duration::from_secs(80);
        let calm = Ended::Calm { resync };
        let mut queue = Queue::new(BACKOFF);
        queue.request("a", "g", 1, at(0));
        let mut now = 0;
        let mut end = |queue: &mut Queue<_, _>, ended| {
            assert_eq!(start(queue, now), Some("a"));
            queue.finish(&"a", at(now), ended, 0);
            let pause = queue.next_due().unwrap().millis_since(at(now)) / 1000;
            now += i64::try_from(pause).unwrap() * 1000;
            pause
        };
        let pauses: Vec<u64> = (0..5).map(|_| end(&mut queue, calm)).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 80]);
        // Something had to be repaired, failed, or is under way.
        for other in [Ended::Converged { resync: resync / 8 }, FAILED, Ended::Waiting { recheck: resync }] {
            end(&mut queue, other);
            assert_eq!(end(&mut queue, calm), 10);
            assert_eq!(end(&mut queue, calm), 20);
        }
        // So does something new that is desired, and not the mere wish for a look.
        queue.request("a", "g", 1, at(0));
        assert_eq!(end(&mut queue, calm), 40);
        queue.request("a", "g", 2, at(0));
        assert_eq!(end(&mut queue, calm), 10);
    }

    #[test]
    fn groups_take_turns() {
        let mut queue: Queue<String, &'static str> = Queue::new(BACKOFF);
        for n in 0..100 {
            queue.request(format!("big-{n}"), "big", 1, at(0));
        }
        queue.request("small".to_owned(), "small", 1, at(1));
        queue.start_next(at(5)).unwrap();
        assert_eq!(queue.start_next(at(5)).unwrap().key, "small");
        assert_eq!(queue.depth(at(5)), 99);
    }

    #[test]
    fn what_is_forgotten_while_it_runs_stays_forgotten() {
        let mut queue = Queue::new(BACKOFF);
        queue.request("a", "g", 1, at(0));
        assert_eq!(start(&mut queue, 0), Some("a"));
        queue.forget(&"a");
        queue.finish(&"a", at(1), FAILED, 0);
        assert_eq!(queue.next_due(), None);
    }

    proptest::proptest! {
        /// Whatever is asked in whatever order: no key runs twice at once, and nothing that was asked for is ever lost.
        #[test]
        fn nothing_runs_twice_and_nothing_is_lost(
            operations in proptest::collection::vec((0..4_u8, 0..6_u8, 0..3_u64), 1..200)
        ) {
            let mut queue: Queue<u8, u8> = Queue::new(BACKOFF);
            let mut running = BTreeSet::new();
            let mut known = BTreeSet::new();
            for (now, (operation, key, generation)) in operations.into_iter().enumerate() {
                let now = at(i64::try_from(now).unwrap() * 100);
                match operation {
                    0 | 1 => {
                        queue.request(key, key % 2, generation, now);
                        known.insert(key);
                    }
                    2 => {
                        if let Some(started) = queue.start_next(now) {
                            proptest::prop_assert!(running.insert(started.key));
                        }
                    }
                    _ => {
                        if let Some(ended) = running.pop_first() {
                            queue.finish(&ended, now, FAILED, 7);
                        }
                    }
                }
            }
            for key in running {
                queue.finish(&key, at(1_000_000), FAILED, 7);
            }
            let mut left = BTreeSet::new();
            while let Some(started) = queue.start_next(at(10_000_000_000)) {
                left.insert(started.key);
            }
            proptest::prop_assert_eq!(left, known);
        }
    }
}
