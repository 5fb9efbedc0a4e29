//! The integration tests, as one binary.

#[cfg(target_os = "linux")]
#[path = "it/engine/mod.rs"]
mod engine;
#[path = "it/guest/mod.rs"]
mod guest;
#[path = "it/manifest.rs"]
mod manifest;
#[path = "it/store.rs"]
mod store;
