//! What is paused stands still, says so, and goes on where it stood.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pocketenv::engine::{BoxState, EngineError};

use super::support::{Fixture, eventually, is_root, null, processes_in, request};

/// Pauses it; `false` where this machine cannot do that, after making sure that this is what it says and that nothing was changed.
pub async fn paused(fixture: &Fixture, id: &str) -> bool {
    match fixture.engine.pause(id).await {
        Ok(()) => true,
        Err(EngineError::Unenforceable(message)) => {
            assert!(message.starts_with("nothing can be paused here: "), "{message}");
            assert!(message.contains("stop it instead"), "{message}");
            assert!(matches!(state(fixture, id).await, BoxState::Running { .. }));
            assert_eq!(fixture.sh(id, "echo alive").await.ok(), "alive");
            if is_root() {
                eprintln!("SKIPPED: control groups are missing: {message}");
            }
            false
        }
        Err(error) => panic!("{error}"),
    }
}

async fn state(fixture: &Fixture, id: &str) -> BoxState {
    fixture.engine.get(id).await.unwrap().unwrap().state
}

fn groups(fixture: &Fixture, id: &str) -> Vec<PathBuf> {
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture.box_dir(id).join("run.json")).unwrap()).unwrap();
    run["cgroups"].as_array().unwrap().iter().map(|group| group["path"].as_str().unwrap().into()).collect()
}

/// Processor time that the processes of the engine's sandboxes have used, in ticks.
fn used(pids: &[i32]) -> u64 {
    let ticks = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    pids.iter().map(ticks).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_stands_still_and_goes_on() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    fixture.create("other").await;
    // A busy one, and one that was left behind by who started it.
    let busy = "(setsid sh -c 'while :; do :; done' &) ; exec sh -c 'while :; do :; done'";
    let handle = fixture.start("one", request(["sh", "-c", busy]), null(), null(), null()).await.unwrap();
    let spinning = || {
        let mut pids = processes_in(fixture.dir.path());
        pids.retain(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.ends_with(b"while :; do :; done\0"))
        });
        pids
    };
    eventually("both spin", async || spinning().len() == 2).await;
    let since = match state(&fixture, "one").await {
        BoxState::Running { since, .. } => since,
        other => panic!("{other:?}"),
    };
    if !paused(&fixture, "one").await {
        return;
    }
    let pids = spinning();
    assert!(matches!(state(&fixture, "one").await, BoxState::Paused { since: same, .. } if same == since));
    let before = used(&pids);
    tokio::time::sleep(Duration::from_millis(300)).await; // what runs would use about 30 ticks here
    assert_eq!(used(&pids), before, "it is frozen");
    fixture.engine.pause("one").await.unwrap();

    // Nothing hangs: what needs an answer from inside is refused, at once.
    let asked = Instant::now();
    for refused in [
        fixture.run("one", request(["true"])).await.map(drop).unwrap_err(),
        fixture.engine.dial("one", 80).await.map(drop).unwrap_err(),
        fixture.engine.set_links("one", &[]).await.unwrap_err(),
    ] {
        assert!(matches!(&refused, EngineError::Paused(id) if id == "one"), "{refused}");
        assert!(refused.to_string().contains("resume it first"), "{refused}");
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let running = fixture.engine.reconfigure("one", &pocketenv::engine::BoxSpec::default()).await;
    assert!(matches!(running, Err(EngineError::Running(_))), "{running:?}");
    assert_eq!(fixture.sh("other", "echo alive").await.ok(), "alive");

    fixture.engine.start("one").await.unwrap();
    assert!(matches!(state(&fixture, "one").await, BoxState::Running { since: same, .. } if same == since));
    assert_eq!(spinning(), pids, "the same processes");
    eventually("they go on", async || used(&pids) > before).await;
    assert_eq!(fixture.sh("one", "echo alive").await.ok(), "alive");
    drop(handle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_stops_is_deleted_and_dies_like_any_other() {
    let fixture = Fixture::new();
    for how in ["stop", "delete", "kill"] {
        fixture.create("one").await;
        fixture
            .sh("one", "trap 'echo heard > /root/heard; exit' TERM; sleep 100 <&- >&- 2>&- & :")
            .await
            .ok();
        if !paused(&fixture, "one").await {
            return;
        }
        let made = groups(&fixture, "one");
        assert!(!made.is_empty() && made.iter().all(|path| path.is_dir()), "{made:?}");
        match how {
            "stop" => fixture.engine.stop("one", Duration::from_secs(2)).await.unwrap(),
            "kill" => {
                let run: serde_json::Value =
                    serde_json::from_slice(&fs::read(fixture.box_dir("one").join("run.json")).unwrap())
                        .unwrap();
                let shim = run["shim"]["pid"].as_i64().unwrap() as i32;
                kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
                eventually("it is seen", async || {
                    matches!(state(&fixture, "one").await, BoxState::Stopped { unclean: Some(_) })
                })
                .await;
                fixture.engine.start("one").await.unwrap();
                assert_eq!(fixture.sh("one", "echo alive").await.ok(), "alive");
            }
            _ => {}
        }
        fixture.engine.delete("one").await.unwrap();
        assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new(), "after {how}");
        assert!(made.iter().all(|path| !path.exists()), "groups are left after {how}: {made:?}");
    }
}

#[tokio::test]
async fn only_what_runs_is_paused() {
    let fixture = Fixture::new();
    assert!(matches!(fixture.engine.pause("none").await, Err(EngineError::NotFound(_))));
    fixture.create("one").await;
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    assert!(matches!(fixture.engine.pause("one").await, Err(EngineError::NotRunning(_))));
}
