//! Loops: what is done about a change causes the next change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A change that comes so soon after a reaction may be its consequence.
const SOON: Duration = Duration::from_secs(1);
/// So many in a row are no coincidence.
const IN_A_ROW: u32 = 5;
/// After such a silence the loop is over.
const SILENCE: Duration = Duration::from_secs(10);

/// Notices that the same path changes again and again in consequence of the reaction to its change.
#[derive(Debug, Default)]
pub struct Feedback {
    reacted: Option<Instant>,
    changed: Option<Instant>,
    in_a_row: BTreeMap<String, u32>,
    looping: bool,
}

/// What to do about a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// React.
    React,
    /// This path has just proved to be in a loop: say so, and do not react.
    LoopFound(String),
    /// The loop is known: do not react.
    Looping,
}

impl Feedback {
    /// These paths changed.
    pub fn changed(&mut self, paths: &BTreeSet<&str>, now: Instant) -> Verdict {
        let silent = self.changed.is_none_or(|at| now.duration_since(at) > SILENCE);
        self.changed = Some(now);
        if silent {
            self.looping = false;
            self.in_a_row.clear();
        }
        if self.looping {
            return Verdict::Looping;
        }
        if self.reacted.is_none_or(|at| now.duration_since(at) >= SOON) {
            self.in_a_row.clear();
            return Verdict::React;
        }
        self.in_a_row.retain(|path, _| paths.contains(path.as_str()));
        for path in paths {
            let count = self.in_a_row.entry((*path).to_owned()).or_insert(0);
            *count += 1;
            if *count >= IN_A_ROW {
                self.looping = true;
                return Verdict::LoopFound((*path).to_owned());
            }
        }
        Verdict::React
    }

    /// The reaction to a change has ended.
    pub fn reacted(&mut self, now: Instant) {
        self.reacted = Some(now);
    }

    /// What the reaction to a change made begins only now; nothing if there was none.
    pub fn began(&mut self, now: Instant) {
        self.reacted = self.reacted.map(|_| now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_found_and_ends_with_silence() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let paths = BTreeSet::from(["out.js"]);
        let mut feedback = Feedback::default();
        assert_eq!(feedback.changed(&paths, at(0)), Verdict::React);
        for n in 1..5 {
            feedback.reacted(at(n * 100 - 50));
            assert_eq!(feedback.changed(&paths, at(n * 100)), Verdict::React, "{n}");
        }
        feedback.reacted(at(450));
        assert_eq!(feedback.changed(&paths, at(500)), Verdict::LoopFound("out.js".to_owned()));
        assert_eq!(feedback.changed(&paths, at(600)), Verdict::Looping);
        assert_eq!(feedback.changed(&paths, at(20_000)), Verdict::React);
    }

    #[test]
    fn different_files_and_slow_hands_are_no_loop() {
        let start = Instant::now();
        let mut feedback = Feedback::default();
        for n in 0..20_u64 {
            let name = format!("file-{n}");
            let now = start + Duration::from_millis(n * 100);
            assert_eq!(feedback.changed(&BTreeSet::from([name.as_str()]), now), Verdict::React);
            feedback.reacted(now);
        }
        for n in 0..20_u64 {
            let now = start + Duration::from_secs(100 + n * 2);
            assert_eq!(feedback.changed(&BTreeSet::from(["same"]), now), Verdict::React);
            feedback.reacted(now);
        }
    }
}
