//! The simulated cloud as a process: its API, its faults, its memory, and the real program against it.
#![allow(clippy::unwrap_used)]

mod budget;
mod faults;
mod history;
mod program;
mod store;
mod verbs;
pub mod world;
