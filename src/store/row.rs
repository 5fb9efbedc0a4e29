//! Values as columns, and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::model::{Address, Timestamp};

/// SQLite's integers are signed; no count of ours gets near the limit.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The count that [`int`] wrote.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A time that may be missing.
pub(super) fn time(millis: Option<i64>) -> Option<Timestamp> {
    millis.map(Timestamp)
}

pub(super) fn to_json<T: Serialize>(value: &T, what: impl FnOnce() -> String) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Unwritable { what: what(), source })
}

pub(super) fn from_json<T: DeserializeOwned>(
    text: &str,
    what: impl FnOnce() -> String,
) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Unreadable { what: what(), detail: error.to_string() })
}

/// A one-word enum as the word that its JSON has.
pub(super) fn to_word<T: Serialize>(value: &T, what: impl FnOnce() -> String) -> Result<String, StoreError> {
    to_json(value, what).map(|json| json.trim_matches('"').to_owned())
}

/// The enum that [`to_word`] wrote.
pub(super) fn from_word<T: DeserializeOwned>(
    word: &str,
    what: impl FnOnce() -> String,
) -> Result<T, StoreError> {
    serde_json::from_value(serde_json::Value::String(word.to_owned()))
        .map_err(|error| StoreError::Unreadable { what: what(), detail: error.to_string() })
}

pub(super) fn address(text: &str, what: impl FnOnce() -> String) -> Result<Address, StoreError> {
    text.parse().map_err(|error: crate::model::ParseAddressError| StoreError::Unreadable {
        what: what(),
        detail: error.to_string(),
    })
}
