//! The guest room against real processes and files.

mod bundle;
mod health;
mod logs;
mod preset;
mod repository;
mod room;
mod service;
