//! The client of E2B, against the emulator that E2B's own SDKs hold true.

use std::path::Path;
use std::sync::Arc;

use pocketenv::model::Image;
use pocketenv::provider::Provider;

use super::faults::{Proxy, Row, Upstream, faults};
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
    passes(open(dir.path(), &emulator.url).await, 30).await;
    emulator.stop();
}

const ROW: Row = Row {
    list: ("GET", "/v2/sandboxes"),
    create: ("POST", "/v2/sandboxes"),
    exec: Some(("POST", "/process.Process/Start")),
    retry_after: true,
};

/// What the provider, changed in some way, makes wrongly of an emulator that is in trouble.
pub async fn in_trouble(
    dir: &Path,
    emulator: &Emulator,
    change: impl FnOnce(Arc<dyn Provider>) -> Arc<dyn Provider>,
) -> Vec<String> {
    let proxy = Proxy::start(Upstream::Tcp(emulator.url.replace("http://", ""))).await;
    let direct = open(dir, &emulator.url).await;
    let provider = change(open(dir, &format!("http://{}", proxy.address)).await);
    faults(&*provider, &*direct, &proxy, &ROW, Image::Host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_answers_that_break_off() {
    let dir = tempfile::tempdir().unwrap();
    let emulator = Emulator::start("e2b", dir.path(), &[]);
    let wrong = in_trouble(dir.path(), &emulator, |provider| provider).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    emulator.stop();
}
