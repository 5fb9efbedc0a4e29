//! The other front doors: servers that speak HTTP.

pub mod controller;
pub mod emulate;
pub mod sim;
