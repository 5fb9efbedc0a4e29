//! Five hundred sandboxes at once on one machine.

use std::sync::Arc;

use futures::StreamExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pocketenv::engine::BoxState;

use super::support::{Fixture, eventually, processes_in};

const CROWD: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_run_are_told_apart_and_go() {
    let fixture = Arc::new(Fixture::new());
    let id = |n: usize| format!("crowd-{n}");
    let create = |n: usize| {
        let fixture = fixture.clone();
        async move {
            fixture.create(&id(n)).await;
            fixture.sh(&id(n), &format!("echo {n} > /root/number")).await.ok();
        }
    };
    futures::stream::iter(0..CROWD).for_each_concurrent(8, create).await;
    let listed = fixture.engine.list().await.unwrap();
    assert_eq!(listed.len(), CROWD);
    assert!(listed.iter().all(|info| matches!(info.state, BoxState::Running { .. })));
    assert_eq!(
        processes_in(fixture.dir.path()).len(),
        2 * CROWD,
        "a shim and an init of each, and nothing more"
    );

    // One dies, another is stopped: that is said of them and of nobody else.
    let Some(BoxState::Running { pid, .. }) =
        listed.iter().find(|info| info.id == id(123)).map(|info| info.state.clone())
    else {
        panic!("{listed:?}");
    };
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    fixture.engine.stop(&id(321), std::time::Duration::ZERO).await.unwrap();
    let others = |info: &pocketenv::engine::BoxInfo| info.id != id(123) && info.id != id(321);
    eventually("the two are told", async || {
        let listed = fixture.engine.list().await.unwrap();
        let state = |n: usize| &listed.iter().find(|info| info.id == id(n)).unwrap().state;
        assert!(
            listed
                .iter()
                .filter(|info| others(info))
                .all(|info| matches!(info.state, BoxState::Running { .. }))
        );
        matches!(state(123), BoxState::Stopped { unclean: Some(_) })
            && matches!(state(321), BoxState::Stopped { unclean: None })
    })
    .await;
    for n in [0, 123, 321, CROWD - 1] {
        fixture.engine.start(&id(n)).await.unwrap();
        assert_eq!(fixture.sh(&id(n), "cat /root/number").await.ok(), n.to_string());
    }

    let delete = |n: usize| {
        let fixture = fixture.clone();
        async move { fixture.engine.delete(&id(n)).await.unwrap() }
    };
    futures::stream::iter(0..CROWD).for_each_concurrent(8, delete).await;
    assert_eq!(fixture.engine.list().await.unwrap(), []);
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
}
