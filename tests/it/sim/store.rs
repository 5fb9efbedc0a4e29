//! The simulator keeps what it has: across its own end, in pages, and many.

use std::io::Write as _;

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::world::{Sim, count};

#[tokio::test]
async fn a_killed_simulator_goes_on_with_everything_and_without_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let (a, b) = (sim.created("a").await, sim.created("b").await);
    sim.send(Method::POST, &format!("/v1/sandboxes/{b}/stop"), None).await;
    sim.send(Method::POST, "/v1/volumes", Some(json!({ "name": "v" }))).await;
    sim.set(json!({ "quota": "9" })).await;
    let before = sim.inventory().await;

    let sim = sim.restart(1, "calm", &[]);
    assert_eq!(sim.inventory().await, before);
    assert_eq!((sim.state_of(&a).await.as_str(), sim.state_of(&b).await.as_str()), ("running", "stopped"));
    assert_eq!(sim.get("/faults").await["quota"], "9");
    // The key is remembered as well.
    assert_eq!(sim.create("a", "a").await.unwrap().status(), StatusCode::OK);

    let state = sim.state.clone();
    drop(sim);
    let mut file = std::fs::OpenOptions::new().append(true).open(&state).unwrap();
    file.write_all(b"{\"n\":99,\"at\":1,\"effect\":{\"del").unwrap();
    let sim = Sim::on(state, 1, "calm", &[]);
    assert_eq!(sim.inventory().await, before);
    sim.created("c").await;
    assert_eq!(sim.names().await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_transition_goes_on_while_the_simulator_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["transition=400ms"]);
    let id = sim.created("a").await;
    let sim = sim.restart(1, "calm", &[]);
    sim.becomes(&id, "running").await;
    assert_eq!(count(&sim.inventory().await, "running"), 1);
}

#[test]
fn two_simulators_do_not_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_pocketenv"))
        .args(["sim", "--listen", "127.0.0.1:0", "--state"])
        .arg(&sim.state)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(told.contains("is in use by another simulator"), "{told}");
}

#[tokio::test]
async fn pages_hold_everything_once_and_labels_filter() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["page=100"]);
    let creates = (0..250).map(|n| {
        let body =
            json!({ "name": format!("s{n}"), "labels": { "even": (n % 2 == 0).to_string() }, "spec": {} });
        sim.send(Method::POST, "/v1/sandboxes", Some(body))
    });
    futures::future::join_all(creates).await;
    for (filter, expected) in [("", 250_usize), ("&label=even=true", 125), ("&prefix=s24", 11)] {
        let (mut seen, mut cursor, mut pages) = (std::collections::BTreeSet::new(), String::new(), 0);
        loop {
            let page = sim.get(&format!("/v1/sandboxes?limit=1000&cursor={cursor}{filter}")).await;
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 100);
            for item in items {
                assert!(seen.insert(item["id"].as_str().unwrap().to_owned()), "twice: {item}");
            }
            pages += 1;
            match page.get("next") {
                Some(next) => next.as_str().unwrap().clone_into(&mut cursor),
                None => break,
            }
        }
        assert_eq!((seen.len(), pages), (expected, expected.div_ceil(100)), "{filter}");
    }
}

#[tokio::test]
async fn thousands_of_sandboxes_take_little_memory() {
    const SANDBOXES: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let filler = "x".repeat(600);
    let one = |n: usize| {
        let labels: serde_json::Map<_, _> =
            (0..8).map(|l| (format!("pocketenv.io/label-{l}"), json!(format!("{n:0>40}")))).collect();
        let body = json!({ "name": format!("shop/s{n}"), "labels": labels, "spec": { "filler": filler } });
        sim.send(Method::POST, "/v1/sandboxes", Some(body))
    };
    let mut made =
        futures::stream::StreamExt::buffer_unordered(futures::stream::iter((0..SANDBOXES).map(one)), 64);
    while let Some((status, _)) = futures::StreamExt::next(&mut made).await {
        assert_eq!(status, StatusCode::CREATED);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", sim.pid())).unwrap();
    let kib: usize = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    // 10,000 have to stay below 200 MB.
    assert!(kib < 75 * 1024, "{SANDBOXES} sandboxes take {kib} KiB");
}
