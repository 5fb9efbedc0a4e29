//! All integration tests, one binary.

#[path = "it/manifest.rs"]
mod manifest;
#[path = "it/manifest_hostile.rs"]
mod manifest_hostile;
