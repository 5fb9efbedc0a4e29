//! Pocketenv makes sandboxes declarative: `pocketenv.yaml` says what should exist, a reconcile loop makes it so.
//!
//! `ARCHITECTURE.md` has the picture of the rooms. Data flows downward: a room uses the rooms below it, never one above.

pub mod app;
#[cfg(target_os = "linux")]
pub mod build;
pub mod cli;
#[cfg(target_os = "linux")]
pub mod engine;
pub mod gitops;
pub mod guest;
#[cfg(target_os = "linux")]
pub mod image;
pub mod manifest;
pub mod model;
pub mod plan;
pub mod provider;
pub mod reconcile;
pub mod secret;
pub mod server;
pub mod store;
pub mod tree;
pub mod watch;
