use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pocketenv::engine::{BoxSpec, BoxState, EngineError};

use super::support::{Fixture, eventually, processes_in};

fn pids(fixture: &Fixture, id: &str) -> (i32, i32) {
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture.box_dir(id).join("run.json")).unwrap()).unwrap();
    let pid = |name: &str| run[name]["pid"].as_i64().unwrap() as i32;
    (pid("shim"), pid("init"))
}

async fn is_unclean(fixture: &Fixture, id: &str) -> bool {
    matches!(fixture.engine.get(id).await.unwrap().unwrap().state, BoxState::Stopped { unclean: Some(_) })
}

#[tokio::test]
async fn a_killed_process_of_the_two_takes_the_other_along() {
    let fixture = Fixture::new();
    for which in ["shim", "init"] {
        fixture.create("one").await;
        fixture.sh("one", "echo kept > /root/kept").await.ok();
        let (shim, init) = pids(&fixture, "one");
        kill(Pid::from_raw(if which == "shim" { shim } else { init }), Signal::SIGKILL).unwrap();
        eventually("it is seen", async || is_unclean(&fixture, "one").await).await;
        eventually("both are gone", async || processes_in(fixture.dir.path()).is_empty()).await;
        let listed = fixture.engine.list().await.unwrap();
        assert!(matches!(listed[0].state, BoxState::Stopped { unclean: Some(_) }), "{listed:?}");
        fixture.engine.start("one").await.unwrap();
        assert_eq!(fixture.sh("one", "cat /root/kept").await.ok(), "kept");
        let (shim, init) = pids(&fixture, "one");
        kill(Pid::from_raw(if which == "shim" { shim } else { init }), Signal::SIGKILL).unwrap();
        fixture.engine.delete("one").await.unwrap(); // at once, while it is dying
        assert!(!fixture.box_dir("one").exists());
        assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
    }
}

/// What is written without a sync has a name and no content after a power cut.
#[tokio::test]
async fn what_a_power_cut_emptied_says_nothing_and_is_in_nobodys_way() {
    let fixture = Fixture::new();
    for id in ["one", "two"] {
        fixture.create(id).await;
    }
    fixture.sh("one", "echo kept > /root/kept").await.ok();
    let (shim, init) = pids(&fixture, "one");
    for pid in [shim, init] {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // each takes the other along
    }
    eventually("it is gone", async || is_unclean(&fixture, "one").await).await;
    for name in ["run.json", "hits.json", "egress.json"] {
        fs::write(fixture.box_dir("one").join(name), "").unwrap();
    }
    let one = fixture.engine.get("one").await.unwrap().unwrap();
    assert_eq!(one.state, BoxState::Stopped { unclean: Some("the machine restarted".to_owned()) });
    assert!(one.hits.is_empty() && fixture.engine.egress_attempts("one").await.unwrap().is_empty());
    let listed = fixture.engine.list().await.unwrap();
    assert!(matches!(listed[1].state, BoxState::Running { .. }), "{listed:?}");
    fixture.engine.start("one").await.unwrap();
    assert_eq!(fixture.sh("one", "cat /root/kept").await.ok(), "kept");
    for id in ["one", "two"] {
        fixture.engine.delete(id).await.unwrap();
    }
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
}

#[tokio::test]
async fn stale_broken_and_half_made_state_is_listed_and_deleted() {
    let fixture = Fixture::new();
    fixture.create("broken").await;
    fixture.create("half").await;
    fixture.create("empty").await;
    for id in ["half", "empty"] {
        fixture.engine.stop(id, Duration::ZERO).await.unwrap();
    }
    fs::write(fixture.box_dir("broken").join("state.json"), "{ not json").unwrap();
    fs::remove_file(fixture.box_dir("half").join("run.json")).unwrap();
    fs::remove_file(fixture.box_dir("empty").join("state.json")).unwrap();
    fs::create_dir_all(fixture.dir.path().join("run/engine/half")).unwrap();
    fs::write(fixture.dir.path().join("run/engine/half/control.sock"), "stale").unwrap();
    let listed = fixture.engine.list().await.unwrap();
    let state = |id: &str| listed.iter().find(|info| info.id == id).unwrap().state.clone();
    // what has no record belongs to nobody: it went at the first look
    assert!(!listed.iter().any(|info| info.id == "empty") && !fixture.box_dir("empty").exists());
    assert!(matches!(state("broken"), BoxState::Broken(_)));
    assert!(
        matches!(state("half"), BoxState::Stopped { unclean: Some(_) }),
        "nobody is creating it any more"
    );
    assert!(matches!(fixture.engine.get("broken").await, Err(EngineError::Broken { .. })));
    // an interrupted creation is finished by asking again
    let info = fixture.engine.create("half", &BoxSpec::default(), &BTreeMap::new()).await.unwrap();
    assert!(matches!(info.state, BoxState::Running { .. }));
    for id in ["broken", "half", "empty"] {
        fixture.engine.delete(id).await.unwrap();
    }
    assert_eq!(fixture.engine.list().await.unwrap(), []);
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
    assert_eq!(fs::read_dir(fixture.dir.path().join("run/engine")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_of_one_sandbox_agree() {
    let fixture = Fixture::new();
    let (labels, spec) = (BTreeMap::new(), BoxSpec::default());
    let (a, b) = tokio::join!(
        fixture.engine.create("one", &spec, &labels),
        fixture.engine.create("one", &spec, &labels)
    );
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(processes_in(fixture.dir.path()).len(), 2, "one shim and one init");
    let (a, b) = tokio::join!(fixture.engine.delete("one"), fixture.engine.delete("one"));
    a.unwrap();
    b.unwrap();
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
    for _ in 0..5 {
        let (created, deleted) =
            tokio::join!(fixture.engine.create("one", &spec, &labels), fixture.engine.delete("one"));
        created.unwrap();
        deleted.unwrap();
    }
    fixture.engine.delete("one").await.unwrap();
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
}

#[tokio::test]
async fn stopping_asks_first_and_kills_after_the_grace() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    // A process that says when it is ready for the signal.
    let ready = |command: &str, file: &str| {
        format!("{command} >/dev/null 2>&1 & until [ -e {file} ]; do sleep 0.01; done")
    };
    let asked =
        "sh -c 'trap \"echo term > /root/term; exit\" TERM; : >/root/one; while :; do sleep 0.01; done'";
    fixture.sh("one", &ready(asked, "/root/one")).await.ok();
    fixture.engine.stop("one", Duration::from_secs(10)).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(fixture.sh("one", "cat /root/term").await.ok(), "term");
    let deaf = "setsid sh -c 'trap \"\" TERM; : >/root/two; while :; do sleep 0.01; done'";
    fixture.sh("one", &ready(deaf, "/root/two")).await.ok();
    let started = std::time::Instant::now();
    fixture.engine.stop("one", Duration::from_millis(300)).await.unwrap();
    assert!(
        started.elapsed() >= Duration::from_millis(250) && started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(fixture.engine.get("one").await.unwrap().unwrap().state, BoxState::Stopped { unclean: None });
}

#[tokio::test]
async fn labels_and_spec_change_and_a_failed_start_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    fixture.engine.set_labels("one", &labels).await.unwrap();
    let spec = BoxSpec {
        hostname: Some("renamed".into()),
        env: vec![("X".into(), "y".into())],
        ..BoxSpec::default()
    };
    assert!(matches!(fixture.engine.reconfigure("one", &spec).await, Err(EngineError::Running(_))));
    fixture.sh("one", "echo kept > /etc/kept").await.ok();
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.reconfigure("one", &spec).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(
        fixture.sh("one", "cat /etc/kept /etc/hostname /proc/sys/kernel/hostname; echo $X").await.ok(),
        "kept\nrenamed\nrenamed\ny"
    );
    let info = fixture.engine.get("one").await.unwrap().unwrap();
    assert_eq!((info.labels, info.spec), (labels, spec));

    let mount = pocketenv::engine::Mount {
        source: pocketenv::engine::MountSource::Host("/nowhere/at/all".into()),
        target: "/data".into(),
        read_only: false,
    };
    let spec = BoxSpec { mounts: vec![mount], ..BoxSpec::default() };
    let failed = fixture.engine.create("two", &spec, &BTreeMap::new()).await.unwrap_err();
    assert!(failed.to_string().contains("/nowhere/at/all"), "{failed}");
    assert!(!fixture.box_dir("two").exists());
}

#[tokio::test]
async fn a_creation_cut_short_at_any_moment_is_finished_by_the_next() {
    let fixture = Fixture::new();
    let (labels, spec) = (BTreeMap::new(), BoxSpec::default());
    for step in 0..30 {
        let cut = Duration::from_micros(700 * step);
        let _ = tokio::time::timeout(cut, fixture.engine.create("one", &spec, &labels)).await;
        let info = fixture.engine.create("one", &spec, &labels).await.unwrap();
        assert!(matches!(info.state, BoxState::Running { .. }), "{info:?}");
        assert_eq!(fixture.sh("one", "echo hi").await.ok(), "hi");
        assert_eq!(processes_in(fixture.dir.path()).len(), 2, "cut after {cut:?}");
        fixture.engine.delete("one").await.unwrap();
        assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
    }
}

#[tokio::test]
async fn a_lost_record_of_a_run_does_not_lose_its_processes() {
    let fixture = Fixture::new();
    for damage in [None, Some("not json")] {
        fixture.create("one").await;
        let run = fixture.box_dir("one").join("run.json");
        match damage {
            None => fs::remove_file(run).unwrap(),
            Some(text) => fs::write(run, text).unwrap(),
        }
        fixture.engine.delete("one").await.unwrap();
        eventually("its processes are gone", async || processes_in(fixture.dir.path()).is_empty()).await;
        assert!(!fixture.box_dir("one").exists());
    }
}
