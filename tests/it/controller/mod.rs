//! The controller with real git repositories, served over loopback.

#![allow(clippy::unwrap_used)]

mod container;
mod follow;
mod hostile;
mod http;
mod many;
mod notify;
mod pace;
mod packaging;
mod resume;
mod settings;
mod support;
mod systemd;
