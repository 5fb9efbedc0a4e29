//! The provider `docker` against a real daemon, with images made from nothing.

mod build;
mod disk;
mod egress;
mod project;
mod provider;
pub mod reach;
mod relay;
pub mod support;
