//! The provider `docker` against a real daemon, with images made from nothing.

mod build;
mod project;
mod provider;
mod reach;
mod relay;
pub mod support;
