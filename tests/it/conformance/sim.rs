//! The simulated cloud, in the manners that clouds have.

use super::{open, passes};
use crate::sim::world::Sim;

async fn with(manners: &[&str], tried_at_least: usize) {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", manners);
    passes(open("sim", dir.path(), &[("url", &sim.url)]).await, tried_at_least).await;
    let inventory = sim.inventory().await;
    assert_eq!(inventory["sandboxes"].as_array().unwrap().len(), 0, "{inventory}");
    assert_eq!(inventory["volumes"].as_array().unwrap().len(), 0, "{inventory}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_of_good_manners() {
    with(&[], 22).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_without_labels() {
    with(&["labels=false"], 22).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_creates_twice() {
    with(&["idempotent_create=false", "transition=100ms"], 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_whose_listing_lags_and_comes_in_pages() {
    with(&["lag=1s", "page=2", "transition=50ms"], 22).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_destroys_what_stops_and_reads_nothing_back() {
    with(&["stop=destroy", "read_back=false", "labels=false", "idempotent_create=false"], 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_asks_to_slow_down_and_fails_now_and_then() {
    with(
        &["throttle=0.05", "retry_after=seconds:1s", "error_before=0.05", "error_after=0.03", "speed=10"],
        22,
    )
    .await;
}
