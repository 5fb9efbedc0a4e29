//! The controller with real git repositories, served over loopback.

#![allow(clippy::unwrap_used)]

mod follow;
mod hostile;
mod http;
mod many;
mod notify;
mod packaging;
mod resume;
mod settings;
mod support;
mod systemd;
