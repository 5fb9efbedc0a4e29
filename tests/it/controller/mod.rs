//! The controller with real git repositories, served over loopback.

#![allow(clippy::unwrap_used)]

mod follow;
mod hostile;
mod many;
mod support;
