//! The client of Daytona, against the emulator that Daytona's own SDKs hold true.

use std::path::Path;
use std::sync::Arc;

use pocketenv::model::SandboxId;
use pocketenv::provider::{Owner, Provider, ProviderError};

use super::{open_with_key, passes};
use crate::emulate::sdk::Emulator;

/// The provider, with its service at this address.
pub async fn open(dir: &Path, url: &str) -> Arc<dyn Provider> {
    open_with_key("daytona", dir, &[("api_url", url)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn daytona() {
    let dir = tempfile::tempdir().unwrap();
    let emulator = Emulator::start("daytona", dir.path(), &[]);
    passes(open(dir.path(), &emulator.url).await, 51).await;
    emulator.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_refused_is_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let emulator = Emulator::start("daytona", dir.path(), &["--api-key", "another"]);
    let provider = open(dir.path(), &emulator.url).await;
    let listed = provider.list(&Owner { project: None, owner: None }).await.map(drop);
    let got = provider.get(&SandboxId("any".to_owned())).await.map(drop);
    for answer in [listed, got] {
        let told = matches!(&answer, Err(ProviderError::Unauthorised { message }) if message.contains("another key"));
        assert!(told, "{answer:?}");
    }
    emulator.stop();
}
