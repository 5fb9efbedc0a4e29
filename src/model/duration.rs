//! Durations as a manifest writes them: `500ms`, `10s`, `5m`, `2h`, `7d`, and sums such as `1h30m`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A span of time in milliseconds. It reads and prints as `10s`, `5m`, `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u64);

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The longest duration accepted: ten years. Anything longer is a mistake, and keeps arithmetic far from overflow.
const MAX_MS: u64 = 3_650 * 86_400_000;

impl Duration {
    /// A duration of `ms` milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// A duration of `s` seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(s * 1_000)
    }

    /// The length in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The length in whole seconds, rounded up, for interfaces that only know seconds.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1_000)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(value: Duration) -> Self {
        Self::from_millis(value.0)
    }
}

/// The text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a duration; expected a number with a unit, such as `500ms`, `10s`, `5m`, `2h` or `7d` (at most ten years)"
)]
pub struct ParseDurationError(pub String);

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseDurationError(text.to_owned());
        if text == "0" {
            return Ok(Self(0));
        }
        let mut rest = text;
        let mut total: u64 = 0;
        let mut last_unit = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            let unit = &rest[digits..digits + letters];
            let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
            // Units fall: `1h30m` reads well, `30m1h` is a typing error.
            if *factor >= last_unit {
                return Err(bad());
            }
            last_unit = *factor;
            total = number
                .checked_mul(*factor)
                .and_then(|ms| total.checked_add(ms))
                .filter(|ms| *ms <= MAX_MS)
                .ok_or_else(bad)?;
            rest = &rest[digits + letters..];
        }
        if last_unit == u64::MAX { Err(bad()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (name, factor) in UNITS {
            if rest >= factor {
                write!(f, "{}{name}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A span of time: a number with a unit, such as `500ms`, `10s`, `5m`, `2h`, `7d` or `1h30m`.",
            "pattern": "^(0|([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$",
            "minLength": 1
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_units() {
        for (text, ms) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
            ("1h30m", 5_400_000),
        ] {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!(parsed.as_millis(), ms);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn refuses_what_has_no_unit_or_no_end() {
        for text in ["", "10", "s", "1.5h", "-1s", "1m1h", "99999999999999d", "10 s", "1h1h"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
