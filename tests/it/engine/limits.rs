use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pocketenv::engine::{BoxSpec, BoxState, EngineError, Exit, Held, IoLimits, Limits, LimitsInfo};

use super::support::{Fixture, eventually, is_root, null, processes_in, request};

const NONE: Limits = Limits { cpu_millis: None, memory: None, pids: None, disk: None, io: NO_IO };
const NO_IO: IoLimits = IoLimits { read: None, write: None, read_ops: None, write_ops: None };

/// Creates a sandbox with limits; `None` where this machine cannot enforce them, after making sure that this is what it says.
async fn limited(fixture: &Fixture, id: &str, limits: Limits) -> Option<()> {
    let spec = BoxSpec { limits, ..BoxSpec::default() };
    match fixture.engine.create(id, &spec, &BTreeMap::new()).await {
        Ok(_) => Some(()),
        Err(EngineError::Unenforceable(message)) => {
            assert!(message.contains("cannot be limited here"), "{message}");
            assert!(!fixture.box_dir(id).exists(), "nothing is made");
            assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
            if is_root() {
                eprintln!("SKIPPED: control groups are missing: {message}");
            }
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn info(fixture: &Fixture, id: &str) -> LimitsInfo {
    fixture.engine.get(id).await.unwrap().unwrap().limits.unwrap()
}

/// The sandbox's groups, as its run has them.
fn groups(fixture: &Fixture, id: &str) -> Vec<PathBuf> {
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture.box_dir(id).join("run.json")).unwrap()).unwrap();
    let groups = run["cgroups"].as_array().unwrap();
    groups.iter().map(|group| group["path"].as_str().unwrap().into()).collect()
}

#[tokio::test]
async fn memory_ends_what_takes_too_much_and_nothing_else() {
    let fixture = Fixture::new();
    let limits = Limits { memory: Some(48 << 20), ..NONE };
    if limited(&fixture, "one", limits).await.is_none() {
        return;
    }
    fixture.create("other").await;
    assert_eq!(fixture.sh("one", "head -c 16M /dev/zero | tail -c 16M | wc -c").await.ok(), "16777216");
    assert_eq!((info(&fixture, "one").await.in_force, info(&fixture, "one").await.oom_kills), (limits, 0));
    let greedy = fixture.sh("one", "head -c 400M /dev/zero | tail -c 400M > /dev/null; echo $?").await;
    assert_ne!(greedy.text(), "0", "400 MB do not fit into 48: {greedy:?}");
    let after = info(&fixture, "one").await;
    assert!(after.oom_kills >= 1, "{after:?}");
    if is_root() && fs::File::open("/dev/kmsg").is_ok() {
        assert_eq!(after.last_killed.as_deref(), Some("tail"), "{after:?}");
    }
    // One that lived for a while is told with its number inside.
    let slow =
        "(sleep 2.5; exec head -c 400M /dev/zero) | tail -c 400M > /dev/null & echo $!; wait $!; exit 0";
    let pid: i32 = fixture.sh("one", slow).await.ok().parse().unwrap();
    eventually("the account has it", async || {
        let hits = fixture.engine.get("one").await.unwrap().unwrap().hits;
        let kills: Vec<_> = hits.iter().filter(|hit| matches!(hit.what, Held::Killed { .. })).collect();
        let known = Held::Killed { name: Some("tail".to_owned()), pid: Some(pid) };
        kills.len() >= 2 && (!is_root() || fs::File::open("/dev/kmsg").is_err() || kills[1].what == known)
    })
    .await;
    for id in ["one", "other"] {
        assert_eq!(fixture.sh(id, "echo alive").await.ok(), "alive");
    }
    assert_eq!(fixture.sh("other", "head -c 80M /dev/zero | tail -c 80M | wc -c").await.ok(), "83886080");
}

#[tokio::test]
async fn too_many_processes_cannot_be_started() {
    let fixture = Fixture::new();
    if limited(&fixture, "one", Limits { pids: Some(24), ..NONE }).await.is_none() {
        return;
    }
    let bomb = request(["sh", "-c", "bomb() { bomb | bomb; }; bomb"]);
    let handle = fixture.start("one", bomb, null(), null(), null()).await.unwrap();
    eventually("forks are refused", async || info(&fixture, "one").await.forks_refused > 0).await;
    eventually("it is told", async || {
        let hits = fixture.engine.get("one").await.unwrap().unwrap().hits;
        hits.iter().any(|hit| matches!(hit.what, Held::Refused(count) if count > 0))
    })
    .await;
    let inside = processes_in(fixture.dir.path()).len();
    assert!(inside <= 24 + 1, "{inside} processes, the shim among them");
    drop(handle);
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
    fixture.engine.start("one").await.unwrap();
    assert_eq!(fixture.sh("one", "echo usable").await.ok(), "usable");
}

#[tokio::test]
async fn a_busy_loop_gets_its_share_of_a_processor() {
    let fixture = Fixture::new();
    if limited(&fixture, "one", Limits { cpu_millis: Some(100), ..NONE }).await.is_none() {
        return;
    }
    // Processor time of a loop in hundredths of a second, as the kernel counts it.
    let script = "sh -c 'while :; do :; done' & sleep 2; cut -d' ' -f14,15 /proc/$!/stat; kill -9 $!";
    let begun = Instant::now();
    let text = fixture.sh("one", script).await.ok();
    let wall = begun.elapsed().as_secs_f64();
    let used: f64 = text.split(' ').map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum();
    // One period's more than its share can have been used up in advance. Without a limit it is half of the time even beside another loop.
    assert!(used <= wall * 0.1 * 1.5 + 0.1, "{used} s of {wall} s");
}

#[tokio::test]
async fn limits_change_while_it_runs() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let BoxState::Running { pid, .. } = fixture.engine.get("one").await.unwrap().unwrap().state else {
        panic!("it runs")
    };
    let sleeper = request(["sh", "-c", "sleep 600 & sleep 600"]);
    let _sleeper = fixture.start("one", sleeper, null(), null(), null()).await.unwrap();
    let many =
        "i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); done; kill $(jobs -p) 2>/dev/null; exit 0";
    let few = Limits { pids: Some(16), memory: Some(256 << 20), cpu_millis: Some(1500), ..NONE };
    match fixture.engine.set_limits("one", &few).await {
        Err(EngineError::Unenforceable(_)) if !is_root() => return,
        result => result.unwrap(),
    }
    assert_eq!(info(&fixture, "one").await.in_force, few);
    // what ran before is in it too
    let counted = groups(&fixture, "one").iter().all(|group| {
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        inside.lines().count() >= 3 && inside.lines().any(|line| line == pid.to_string())
    });
    assert!(counted, "init and the sleepers are in every group");
    assert_ne!(fixture.sh("one", many).await.exit, Exit::Code(0));
    let more = Limits { pids: Some(200), memory: Some(512 << 20), cpu_millis: None, ..NONE };
    fixture.engine.set_limits("one", &more).await.unwrap();
    assert_eq!(info(&fixture, "one").await.in_force, more);
    assert_eq!(fixture.sh("one", many).await.exit, Exit::Code(0));
    fixture.engine.set_limits("one", &few).await.unwrap();
    assert_eq!(info(&fixture, "one").await.in_force, few);
    fixture.engine.set_limits("one", &NONE).await.unwrap();
    assert_eq!(info(&fixture, "one").await.in_force, NONE);
    let now = fixture.engine.get("one").await.unwrap().unwrap().state;
    assert!(matches!(now, BoxState::Running { pid: same, .. } if same == pid), "nothing was restarted");
    // and they hold at the next start
    fixture.engine.set_limits("one", &few).await.unwrap();
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(info(&fixture, "one").await.in_force, few);
}

#[tokio::test]
async fn no_group_outlives_its_sandbox() {
    let fixture = Fixture::new();
    let limits = Limits { pids: Some(50), ..NONE };
    if limited(&fixture, "one", limits).await.is_none() {
        return;
    }
    let made = groups(&fixture, "one");
    assert!(!made.is_empty() && made.iter().all(|group| group.is_dir()), "{made:?}");
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    assert!(!made.iter().any(|group| group.exists()), "after a stop: {made:?}");
    // the shim is killed, and cannot clean up: the next start does
    for end in ["start", "delete"] {
        fixture.engine.start("one").await.unwrap();
        let run: serde_json::Value =
            serde_json::from_slice(&fs::read(fixture.box_dir("one").join("run.json")).unwrap()).unwrap();
        kill(Pid::from_raw(run["shim"]["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
        eventually("it is over", async || {
            let state = fixture.engine.get("one").await.unwrap().unwrap().state;
            matches!(state, BoxState::Stopped { unclean: Some(_) })
        })
        .await;
        if end == "start" {
            fixture.engine.start("one").await.unwrap();
            assert_eq!(info(&fixture, "one").await.in_force, limits);
            fixture.engine.stop("one", Duration::ZERO).await.unwrap();
        } else {
            fixture.engine.delete("one").await.unwrap();
        }
        assert!(!made.iter().any(|group| group.exists()), "after a {end}: {made:?}");
    }
    // a creation that is cut short
    let spec = BoxSpec { limits, ..BoxSpec::default() };
    for step in 0..8 {
        let cut = Duration::from_millis(3 * step);
        let _ = tokio::time::timeout(cut, fixture.engine.create("one", &spec, &BTreeMap::new())).await;
        fixture.engine.delete("one").await.unwrap();
        assert!(!made.iter().any(|group| group.exists()), "cut after {cut:?}: {made:?}");
    }
}
