//! All integration tests, one binary.

#[path = "it/manifest.rs"]
mod manifest;
