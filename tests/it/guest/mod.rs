//! The guest room against real processes and files.

mod builtin_presets;
mod bundle;
mod copy;
mod health;
mod isolation;
#[cfg(target_os = "linux")]
mod local;
mod logs;
mod preset;
mod repository;
mod room;
mod service;
