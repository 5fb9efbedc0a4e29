//! When changes may be made: times of the week in a time zone. Pure: the time is an argument.

use jiff::civil::Time;
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::model::Timestamp;

/// A span of time that comes again each day, or each named day of the week.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Changes are made in it: `HH:MM-HH:MM`, with days before it if not every day: `mon-fri 09:00-17:00`.
    pub allow: Option<String>,
    /// No changes are made in it, whatever else allows them.
    pub deny: Option<String>,
    /// An IANA time zone; UTC if left out.
    pub timezone: Option<String>,
}

/// Why a window makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the window `{0}` is not of the form `HH:MM-HH:MM` or `mon-fri HH:MM-HH:MM` with one of `allow` and `deny` and a known time zone"
)]
pub struct WindowError(String);

/// Days from Monday, and minutes of the day. A span whose end is not after its start goes on into the next day.
struct Span {
    days: [bool; 7],
    from: i32,
    to: i32,
}

impl Window {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), WindowError> {
        let text = self.text()?;
        let error = || WindowError(text.to_owned());
        parse(text).ok_or_else(error)?;
        self.zone().ok_or_else(error)?;
        Ok(())
    }

    fn text(&self) -> Result<&str, WindowError> {
        match (&self.allow, &self.deny) {
            (Some(text), None) | (None, Some(text)) => Ok(text),
            _ => Err(WindowError("…".to_owned())),
        }
    }

    fn zone(&self) -> Option<TimeZone> {
        match &self.timezone {
            None => Some(TimeZone::UTC),
            Some(name) => TimeZone::get(name).ok(),
        }
    }

    fn covers(&self, now: Timestamp) -> bool {
        let (Ok(text), Some(zone)) = (self.text(), self.zone()) else { return false };
        let (Some(span), Ok(now)) = (parse(text), jiff::Timestamp::from_millisecond(now.0)) else {
            return false;
        };
        let local = now.to_zoned(zone);
        let minute = i32::from(local.hour()) * 60 + i32::from(local.minute());
        let today = usize::from(local.weekday().to_monday_zero_offset().unsigned_abs()) % 7;
        let yesterday = (today + 6) % 7;
        if span.from < span.to {
            return span.days[today] && (span.from..span.to).contains(&minute);
        }
        (span.days[today] && minute >= span.from) || (span.days[yesterday] && minute < span.to)
    }
}

/// Whether changes may be made now: in no window that denies, and in one that allows if there is any.
pub(super) fn open(windows: &[Window], now: Timestamp) -> bool {
    let denied = windows.iter().any(|window| window.deny.is_some() && window.covers(now));
    let mut allowing = windows.iter().filter(|window| window.allow.is_some()).peekable();
    !denied && (allowing.peek().is_none() || allowing.any(|window| window.covers(now)))
}

fn parse(text: &str) -> Option<Span> {
    let (days, times) = match text.trim().rsplit_once(' ') {
        Some((days, times)) => (parse_days(days.trim())?, times),
        None => ([true; 7], text.trim()),
    };
    let (from, to) = times.split_once('-')?;
    Some(Span { days, from: minute(from)?, to: minute(to)? })
}

fn minute(text: &str) -> Option<i32> {
    if text == "24:00" {
        return Some(24 * 60);
    }
    let time: Time = (text.len() == 5).then(|| Time::strptime("%H:%M", text).ok())??;
    Some(i32::from(time.hour()) * 60 + i32::from(time.minute()))
}

/// `mon-fri`, `sat,sun`, `fri-mon`.
fn parse_days(text: &str) -> Option<[bool; 7]> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last) = (day(first)?, day(last)?);
        let count = (last + 7 - first) % 7;
        (0..=count).for_each(|n| days[(first + n) % 7] = true);
    }
    Some(days)
}

fn day(text: &str) -> Option<usize> {
    let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    names.iter().position(|name| text.eq_ignore_ascii_case(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn allow(text: &str) -> Window {
        Window { allow: Some(text.to_owned()), deny: None, timezone: None }
    }

    #[test]
    fn a_window_knows_days_and_midnight() {
        // 2026-03-02 is a Monday.
        for (window, time, covers) in [
            ("09:00-17:00", "2026-03-02T09:00:00Z", true),
            ("09:00-17:00", "2026-03-02T17:00:00Z", false),
            ("mon-fri 09:00-17:00", "2026-03-01T12:00:00Z", false),
            ("sat,sun 00:00-24:00", "2026-03-01T23:59:00Z", true),
            ("sun 22:00-04:00", "2026-03-02T03:59:00Z", true),
            ("sun 22:00-04:00", "2026-03-02T22:30:00Z", false),
            ("fri-mon 10:00-11:00", "2026-03-02T10:30:00Z", true),
        ] {
            assert_eq!(allow(window).covers(at(time)), covers, "{window} at {time}");
        }
    }

    #[test]
    fn what_denies_wins() {
        let deny = Window { allow: None, deny: Some("12:00-13:00".to_owned()), timezone: None };
        let windows = [allow("09:00-17:00"), deny.clone()];
        assert!(open(&windows, at("2026-03-02T11:00:00Z")));
        assert!(!open(&windows, at("2026-03-02T12:30:00Z")));
        assert!(!open(&windows, at("2026-03-02T18:00:00Z")));
        assert!(open(&[deny], at("2026-03-02T18:00:00Z")), "nothing allows in particular, so all is allowed");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "9-5", "25:00-26:00", "someday 09:00-10:00", "09:00"] {
            assert!(allow(text).check().is_err(), "{text}");
        }
        assert!(
            Window { timezone: Some("Nowhere/City".to_owned()), ..allow("09:00-10:00") }.check().is_err()
        );
    }
}
