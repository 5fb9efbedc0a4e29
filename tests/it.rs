//! Integration tests, as one binary.

#[path = "it/guest/mod.rs"]
mod guest;
