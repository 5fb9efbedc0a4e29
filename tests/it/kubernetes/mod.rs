//! Kubernetes, with a cluster of its own.

mod agents;
mod cluster;
mod manifests;
mod sandboxes;
pub mod support;
