//! The proof that no sandbox is lost: simulations of whole lives of projects with faults and crashes, and real processes that are killed.
//!
//! `cargo test --test proof` runs ten thousand schedules; `POCKETENV_PROOF_SCHEDULES=100000 cargo test --release --test proof simulated` runs as many
//! as are asked for, and `POCKETENV_PROOF_SEED=N` one of them, told in full.

#![allow(clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[path = "proof/between.rs"]
mod between;
#[path = "proof/check.rs"]
mod check;
#[path = "proof/inside.rs"]
mod inside;
#[path = "proof/life.rs"]
mod life;
#[cfg(target_os = "linux")]
#[allow(dead_code)]
#[path = "scenarios/world.rs"]
mod machine;
#[cfg(target_os = "linux")]
#[path = "proof/points.rs"]
mod points;
#[cfg(target_os = "linux")]
#[path = "proof/process.rs"]
mod process;
#[path = "proof/schedule.rs"]
mod schedule;
#[path = "proof/simulation.rs"]
mod simulation;
#[path = "proof/within.rs"]
mod within;
#[path = "proof/world.rs"]
mod world;
