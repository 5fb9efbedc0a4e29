//! What an account takes is learned from its refusals and shared by everybody in the process, seen at what the simulator was asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pocketenv::provider::ProviderError;
use pocketenv::provider::http::Http;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::Sim;

fn client(sim: &Sim) -> Http {
    Http::new(&sim.url, |_| None).unwrap()
}

async fn once(http: &Http) -> Result<Value, ProviderError> {
    http.call(Method::GET, &["v1", "sandboxes"]).read("list").await
}

/// So many calls, with so many under way at once, each tried until it is taken; how long all of them took.
async fn calls(http: &Http, number: usize, at_once: usize) -> Duration {
    let begun = Instant::now();
    let left = AtomicUsize::new(number);
    let worker = || async {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            let mut pause = Duration::from_millis(100);
            while let Err(error) = once(http).await {
                let ProviderError::Throttled { retry_after } = error else { panic!("{error}") };
                tokio::time::sleep(retry_after.unwrap_or(pause)).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        }
    };
    futures::future::join_all((0..at_once).map(|_| worker())).await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_learned_and_clients_take_turns() {
    const RATE: usize = 25;
    const MANY: usize = 200;
    const FEW: usize = 15;
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[&format!("rate={RATE}")]);
    // Two projects of one account: what the first has learned holds for the second.
    let (greedy, modest) = (client(&sim), client(&sim));
    calls(&greedy, 100, 32).await;
    let learning = sim.get("/requests").await["list"].clone();
    let (many, few) = tokio::join!(calls(&greedy, MANY, 32), calls(&modest, FEW, 4));
    let asked = sim.get("/requests").await["list"].clone();
    let refused = asked["throttled"].as_u64().unwrap() - learning["throttled"].as_u64().unwrap();
    println!("{refused} of {} refused; many {many:?}, few {few:?}; learning: {learning}", MANY + FEW);
    assert!(refused < (MANY as u64) / 5, "{refused} refused");
    assert!(few < many / 2, "the modest one waited {few:?} of {many:?}");
    let best = Duration::from_secs_f64((MANY + FEW) as f64 / RATE as f64);
    assert!(many < best * 3, "{many:?}, and {best:?} would have been enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_one_was_asked_for_is_kept_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["list.throttle=1", "list.retry_after=seconds:2s"]);
    let (one, other) = (client(&sim), client(&sim));
    let begun = Instant::now();
    let refused = once(&one).await;
    assert!(matches!(refused, Err(ProviderError::Throttled { retry_after: Some(_) })), "{refused:?}");
    sim.set(json!({ "throttle": "0" })).await;
    once(&other).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(sim.get("/requests").await["list"], json!({ "calls": 2, "throttled": 1 }));
    // A long pause is told at once, so that nobody hangs.
    sim.set(json!({ "list.throttle": "1", "list.retry_after": "seconds:1h" })).await;
    once(&one).await.unwrap_err();
    let told = once(&other).await;
    assert!(
        matches!(told, Err(ProviderError::Throttled { retry_after: Some(pause) }) if pause > Duration::from_secs(3000))
    );
    assert_eq!(sim.get("/requests").await["list"]["calls"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_credentials_are_another_account() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["list.throttle=1", "list.retry_after=seconds:1h"]);
    let one = client(&sim).secret_header("authorization", "one").unwrap();
    let other = client(&sim).secret_header("authorization", "other").unwrap();
    once(&one).await.unwrap_err();
    sim.set(json!({ "throttle": "0" })).await;
    once(&one).await.unwrap_err();
    once(&other).await.unwrap();
}
