//! The client of E2B, against the emulator that E2B's own SDKs hold true.

use std::path::Path;
use std::sync::Arc;

use pocketenv::provider::Provider;

use super::{open_with_key, passes};
use crate::emulate::sdk::Emulator;

/// The provider, with its service at this address.
pub async fn open(dir: &Path, url: &str) -> Arc<dyn Provider> {
    open_with_key("e2b", dir, &[("api_url", url), ("sandbox_url", url)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn e2b() {
    let dir = tempfile::tempdir().unwrap();
    let emulator = Emulator::start("e2b", dir.path(), &[]);
    passes(open(dir.path(), &emulator.url).await, 43).await;
    emulator.stop();
}
