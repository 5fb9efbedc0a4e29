//! The one retry policy: jittered exponential backoff. Chance is an argument, so that tests repeat.

use std::time::Duration;

/// Delays between tries: each twice the one before, up to a limit, less a random part of up to a half, so that many who fail together do not
/// come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay.
    pub initial: Duration,
    /// The longest delay.
    pub max: Duration,
    /// How many tries after the first.
    pub retries: u32,
}

impl Backoff {
    /// For one provider or guest call within a step: 0.2 s, 0.4 s, … 10 s, about 40 seconds in all.
    pub const CALL: Self =
        Self { initial: Duration::from_millis(200), max: Duration::from_secs(10), retries: 8 };

    /// The delay before retry number `attempt` (from 0), or `None` when there are no more. `chance` is uniform in 0..=u32::MAX;
    /// `asked` is what the provider asked for, and is never cut short.
    pub fn delay(&self, attempt: u32, chance: u32, asked: Option<Duration>) -> Option<Duration> {
        if attempt >= self.retries {
            return None;
        }
        let full = self.initial.saturating_mul(2_u32.saturating_pow(attempt)).min(self.max);
        let jittered = full - full.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 2.0);
        Some(asked.map_or(jittered, |asked| asked + jittered / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_end() {
        let delays: Vec<_> = (0..9).map_while(|n| Backoff::CALL.delay(n, 0, None)).collect();
        assert_eq!(delays.len(), 8);
        assert_eq!(delays[1], Duration::from_millis(400));
        assert_eq!(delays[7], Duration::from_secs(10));
        assert_eq!(Backoff::CALL.delay(0, u32::MAX, None), Some(Duration::from_millis(100)));
    }

    #[test]
    fn what_the_provider_asks_for_is_not_cut_short() {
        let asked = Duration::from_secs(30);
        assert!(Backoff::CALL.delay(0, u32::MAX, Some(asked)).is_some_and(|d| d >= asked));
    }
}
