//! A sandbox is stopped when nothing uses it, and deleted when its time is over, by its own shim: nobody else looks.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use pocketenv::engine::{BoxSpec, BoxState, Lifetime};

use super::support::{Fixture, eventually, null, processes_in, request};

fn spec(ttl: Option<u64>, idle: Option<u64>) -> BoxSpec {
    BoxSpec { lifetime: Lifetime { ttl, idle }, ..BoxSpec::default() }
}

/// How it ended, read from its files: asking the engine would be somebody who looks.
fn ended(fixture: &Fixture, id: &str) -> Option<String> {
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture.box_dir(id).join("run.json")).unwrap()).unwrap();
    run["ended"]["unclean"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_time_is_over_is_deleted() {
    let fixture = Fixture::new();
    fixture.create_with("one", spec(Some(1500), None)).await;
    fixture.create("other").await;
    // Files of another id than root's, where there are such, and one that does not hear.
    fixture.sh("one", "touch /root/file; chown 7:7 /root/file || :; sh -c 'trap : TERM; exec sleep 500' <&- >&- 2>&- & :").await.ok();
    let info = fixture.engine.get("one").await.unwrap().unwrap();
    assert!(info.expires_at.is_some(), "{info:?}");
    let inside = processes_in(fixture.dir.path()).len();
    let gone = || !fixture.box_dir("one").exists() && !fixture.dir.path().join("run/engine/one").exists();
    eventually("it is deleted with nobody looking", async || gone()).await;
    assert!(processes_in(fixture.dir.path()).len() < inside);
    assert_eq!(fixture.engine.get("one").await.unwrap(), None);
    assert_eq!(fixture.sh("other", "echo alive").await.ok(), "alive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_stopped_goes_at_the_first_look_and_one_whose_time_was_changed_stays() {
    let fixture = Fixture::new();
    for id in ["one", "two"] {
        fixture.create_with(id, spec(Some(600_000), None)).await;
    }
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.set_lifetime("one", Lifetime { ttl: Some(1), idle: None }).await.unwrap();
    assert!(fixture.box_dir("one").exists());
    assert!(fixture.engine.list().await.unwrap().iter().all(|info| info.id != "one"));
    assert!(!fixture.box_dir("one").exists());
    // At once where it runs.
    fixture.engine.set_lifetime("two", Lifetime::default()).await.unwrap();
    assert_eq!(fixture.engine.get("two").await.unwrap().unwrap().expires_at, None);
    fixture.engine.set_lifetime("two", Lifetime { ttl: Some(1), idle: None }).await.unwrap();
    eventually("it is deleted", async || !fixture.box_dir("two").exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_nothing_uses_is_stopped_and_one_that_something_uses_is_not() {
    let fixture = Fixture::new();
    fixture.create_with("busy", spec(None, Some(1000))).await;
    let working = fixture.start("busy", request(["sleep", "600"]), null(), null(), null()).await.unwrap();
    fixture.create_with("idle", spec(None, Some(1000))).await;
    // What it does by itself is no use of it.
    fixture.sh("idle", "echo kept > /root/kept; sleep 600 <&- >&- 2>&- & :").await.ok();
    eventually("it is stopped", async || ended(&fixture, "idle").is_some()).await;
    assert_eq!(ended(&fixture, "idle").unwrap(), "nothing used it for 1s");
    let state = fixture.engine.get("idle").await.unwrap().unwrap().state;
    assert_eq!(state, BoxState::Stopped { unclean: Some("nothing used it for 1s".to_owned()) });
    tokio::time::sleep(Duration::from_millis(1500)).await; // longer than it may be idle
    assert_eq!(ended(&fixture, "busy"), None);
    assert_eq!(fixture.sh("busy", "echo alive").await.ok(), "alive");
    drop(working);
    eventually("that one is stopped too", async || ended(&fixture, "busy").is_some()).await;
    // It is there again when it is started, with its files.
    fixture.engine.start("idle").await.unwrap();
    assert_eq!(fixture.sh("idle", "cat /root/kept").await.ok(), "kept");
    assert_eq!(
        fixture.engine.create("idle", &spec(None, Some(1000)), &BTreeMap::new()).await.unwrap().id,
        "idle"
    );
}

/// A connection through a port is a use for as long as it is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_connection_keeps_it() {
    let fixture = Fixture::new();
    fixture.create_with("one", spec(None, Some(1500))).await;
    let python =
        "import socket\ns=socket.create_server(('127.0.0.1',80))\nc,_=s.accept()\nc.sendall(b'x')\nc.recv(1)";
    if fixture.sh("one", "command -v python3").await.text().is_empty() {
        eprintln!("SKIPPED: python3 is missing");
        return;
    }
    fixture
        .run("one", request(["sh", "-c", "python3 -c \"$1\" <&- >&- 2>&- & :", "sh", python]))
        .await
        .unwrap();
    let port = super::network::free_port();
    let listen = ([127, 0, 0, 1], port).into();
    let forward = pocketenv::engine::Forward { listen, to: pocketenv::engine::Port::Tcp(80) };
    fixture.engine.set_forwards("one", &[forward]).await.unwrap();
    let mut first = [0];
    let mut stream = None;
    eventually("it answers", async || {
        let Ok(mut opened) = std::net::TcpStream::connect(listen) else { return false };
        let read = std::io::Read::read_exact(&mut opened, &mut first).is_ok();
        stream = Some(opened);
        read
    })
    .await;
    tokio::time::sleep(Duration::from_millis(3000)).await; // twice what it may be idle
    assert_eq!(ended(&fixture, "one"), None);
    drop(stream);
    eventually("it is stopped", async || ended(&fixture, "one").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_one_is_not_idle_and_its_time_is_over_all_the_same() {
    let fixture = Fixture::new();
    fixture.create_with("one", spec(None, Some(1000))).await;
    if !super::pause::paused(&fixture, "one").await {
        return;
    }
    tokio::time::sleep(Duration::from_millis(2000)).await; // twice what it may be idle
    assert!(matches!(fixture.engine.get("one").await.unwrap().unwrap().state, BoxState::Paused { .. }));
    fixture.engine.set_lifetime("one", Lifetime { ttl: Some(1), idle: None }).await.unwrap();
    eventually("it is deleted", async || !fixture.box_dir("one").exists()).await;
    // Who deleted it was one of them.
    eventually("nothing is left", async || processes_in(fixture.dir.path()).is_empty()).await;
}
