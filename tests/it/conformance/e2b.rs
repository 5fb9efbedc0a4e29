//! The client of E2B, against the emulator that E2B's own SDKs hold true.

use std::collections::BTreeMap;
use std::sync::Arc;

use pocketenv::provider::{ProviderContext, Registry};
use pocketenv::secret::SecretValue;

use super::{passes, program};
use crate::emulate::sdk::Emulator;

#[tokio::test(flavor = "multi_thread")]
async fn e2b() {
    let dir = tempfile::tempdir().unwrap();
    let emulator = Emulator::start("e2b", dir.path(), &[]);
    let settings = ["api_url", "sandbox_url"].map(|name| (name.to_owned(), emulator.url.clone()));
    let key = BTreeMap::from([("api_key".to_owned(), SecretValue::new("local"))]);
    let context = ProviderContext {
        data_dir: dir.path().join("data"),
        runtime_dir: dir.path().join("run"),
        executable: program(),
        vars: BTreeMap::new(),
        credentials: BTreeMap::from([("e2b".to_owned(), key)]),
        settings: BTreeMap::from([("e2b".to_owned(), BTreeMap::from(settings))]),
    };
    let registry = Registry::open(["e2b"], &context).await.unwrap_or_else(|(_, error)| panic!("{error}"));
    passes(Arc::clone(registry.get("e2b").unwrap()), 30).await;
    emulator.stop();
}
