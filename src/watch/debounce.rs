//! When to act on changes that come in storms.

use std::time::{Duration, Instant};

/// Waits for a pause, but never longer than a cap: something that changes all the time is acted on all the same.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    pause: Duration,
    cap: Duration,
    /// The first and the last change that was not acted on.
    waiting: Option<(Instant, Instant)>,
}

impl Debounce {
    /// Acts after a pause this long, and at the latest `cap` after the first change.
    pub fn new(pause: Duration, cap: Duration) -> Self {
        Self { pause, cap, waiting: None }
    }

    /// Something changed.
    pub fn note(&mut self, now: Instant) {
        let first = self.waiting.map_or(now, |(first, _)| first);
        self.waiting = Some((first, now));
    }

    /// When to act; `None` while nothing changed.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.map(|(first, last)| (last + self.pause).min(first + self.cap))
    }

    /// It is being acted on.
    pub fn clear(&mut self) {
        self.waiting = None;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_waited_for_and_a_constant_change_does_not_starve() {
        let ms = Duration::from_millis;
        let mut debounce = Debounce::new(ms(10), ms(100));
        assert_eq!(debounce.due(), None);
        let start = Instant::now();
        debounce.note(start);
        assert_eq!(debounce.due(), Some(start + ms(10)));
        for n in 1..50 {
            debounce.note(start + ms(5 * n));
            assert!(debounce.due().unwrap() <= start + ms(100));
        }
        assert_eq!(debounce.due(), Some(start + ms(100)));
        debounce.clear();
        assert_eq!(debounce.due(), None);
    }
}
