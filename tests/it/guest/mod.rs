//! The guest room against real processes and files.

mod bundle;
mod room;
mod service;
