//! The integration tests, as one binary.

#[path = "it/store.rs"]
mod store;
