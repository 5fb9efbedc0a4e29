//! The local engine, for real: processes, mounts, sockets. `ordinary_user` runs the rest again without privileges.

#![allow(clippy::unwrap_used)]

mod base_images;
mod build;
mod configured;
mod crowd;
mod datagram;
mod device;
mod disk;
mod escape;
mod exec;
mod export;
mod full;
mod hardening;
mod images;
mod lifecycle;
mod lifetime;
mod limits;
mod network;
pub mod ordinary_user;
mod owners;
mod pause;
mod recovery;
mod run_mounts;
mod session;
mod snapshot;
mod socket;
pub mod support;
mod volumes;
