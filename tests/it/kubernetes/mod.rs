//! Kubernetes, with a cluster of its own.

mod cluster;
mod manifests;
pub mod support;
