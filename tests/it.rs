//! Integration tests, as one binary.

#[allow(clippy::unwrap_used)]
#[path = "it/guest/mod.rs"]
mod guest;
