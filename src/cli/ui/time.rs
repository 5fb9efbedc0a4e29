//! Times and durations for people and programs.

use serde_json::Value;

use crate::model::Timestamp;

/// The time in RFC 3339, UTC, to the millisecond.
pub fn rfc3339(at: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(at) => format!("{at:.3}"),
        Err(_) => at.0.to_string(),
    }
}

/// How long ago in one unit, such as `3m ago`.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.millis_since(at)))
}

/// The time for a cell: relative, or in RFC 3339 if `wide`.
pub fn cell(at: Option<Timestamp>, now: Timestamp, wide: bool) -> String {
    match at {
        None => String::new(),
        Some(at) if wide => rfc3339(at),
        Some(at) => ago(at, now),
    }
}

/// A span in one unit: `45s`, `3m`, `5h`, `12d`.
pub fn span(ms: u64) -> String {
    match ms / 1_000 {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3_600 => format!("{}m", s / 60),
        s @ 3_600..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// The time that something took: `12ms`, `1.4s`, `2m05s`.
pub fn took(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{}m{:02}s", ms / 60_000, ms / 1_000 % 60),
    }
}

/// Fields that hold milliseconds since 1970 inside; outside they are RFC 3339.
const TIMES: [&str; 11] = [
    "ts",
    "at",
    "since",
    "last_transition",
    "created_at",
    "started_at",
    "ended_at",
    "begun_at",
    "acquired_at",
    "expires_at",
    "settled_at",
];

/// Turns every time in a value that is about to be printed into RFC 3339.
pub fn readable(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(readable),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_i64() {
                    Some(ms) if TIMES.contains(&name.as_str()) => *field = rfc3339(Timestamp(ms)).into(),
                    _ => readable(field),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_for_people_and_exact_for_programs() {
        let now = Timestamp(1_700_000_000_123);
        assert_eq!(rfc3339(now), "2023-11-14T22:13:20.123Z");
        assert_eq!(ago(Timestamp(now.0 - 185_000), now), "3m ago");
        assert_eq!(ago(Timestamp(now.0 + 5_000), now), "0s ago");
        assert_eq!([span(59_999), span(3_600_000), span(200_000_000)], ["59s", "1h", "2d"]);
        assert_eq!([took(12), took(1_449), took(125_000)], ["12ms", "1.4s", "2m05s"]);
        let mut value = serde_json::json!({ "rows": [{ "since": 0, "elapsed_ms": 5, "at": null }] });
        readable(&mut value);
        assert_eq!(value["rows"][0]["since"], "1970-01-01T00:00:00.000Z");
        assert_eq!(value["rows"][0]["elapsed_ms"], 5);
    }
}
