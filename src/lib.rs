//! Pocketenv.

#[cfg(target_os = "linux")]
pub mod engine;
