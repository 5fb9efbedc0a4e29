//! The integration tests, as one binary.

#[cfg(target_os = "linux")]
#[path = "it/engine/mod.rs"]
mod engine;
//! Integration tests, as one binary.

#[path = "it/guest/mod.rs"]
mod guest;
#[path = "it/store.rs"]
mod store;
//! All integration tests, one binary.

#[path = "it/manifest.rs"]
mod manifest;
