//! The integration tests, as one binary.

#[path = "it/architecture.rs"]
mod architecture;
#[path = "it/cli.rs"]
mod cli;
#[path = "it/conformance/mod.rs"]
mod conformance;
#[cfg(target_os = "linux")]
#[path = "it/controller/mod.rs"]
mod controller;
#[cfg(target_os = "linux")]
#[allow(clippy::unwrap_used)]
#[path = "it/docker/mod.rs"]
mod docker;
#[cfg(target_os = "linux")]
#[path = "it/emulate/mod.rs"]
#[allow(clippy::unwrap_used)]
mod emulate;
#[cfg(target_os = "linux")]
#[path = "it/engine/mod.rs"]
mod engine;
#[allow(clippy::unwrap_used)]
#[path = "it/guest/mod.rs"]
mod guest;
#[path = "it/http.rs"]
mod http;
#[cfg(target_os = "linux")]
#[allow(clippy::unwrap_used)]
#[path = "it/kubernetes/mod.rs"]
mod kubernetes;
#[path = "it/manifest.rs"]
mod manifest;
#[path = "it/manifest_hostile.rs"]
mod manifest_hostile;
#[cfg(target_os = "linux")]
#[path = "it/portable.rs"]
mod portable;
#[cfg(target_os = "linux")]
#[path = "it/scenarios.rs"]
mod scenarios;
#[path = "it/secret.rs"]
mod secret;
#[path = "it/sim/mod.rs"]
mod sim;
#[path = "it/store.rs"]
mod store;
#[path = "it/support.rs"]
mod support;
#[cfg(target_os = "linux")]
#[allow(clippy::unwrap_used)]
#[path = "it/vm/mod.rs"]
mod vm;
