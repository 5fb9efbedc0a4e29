//! Integration tests.
#[cfg(target_os = "linux")]
#[path = "it/engine/mod.rs"]
mod engine;
