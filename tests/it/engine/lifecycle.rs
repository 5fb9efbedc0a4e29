use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pocketenv::engine::{BoxSpec, BoxState, EngineError, Exit};

use super::support::{Fixture, eventually, is_root, processes_in, request};

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn create_exec_stop_start_delete() {
    let fixture = Fixture::new();
    let info = fixture.create("one").await;
    let BoxState::Running { pid, .. } = info.state else { panic!("{info:?}") };
    assert!(alive(pid));
    let choice =
        std::env::var("POCKETENV_TEST_CHOICE").unwrap_or(if is_root() { "65536" } else { "ids" }.to_owned());
    assert!(info.choices.iter().any(|taken| taken.contains(&choice)), "{:?}", info.choices);
    // where nothing can be overlaid, the system directories are read-only
    let system = if choice.contains("root is a copy") { "/srv" } else { "/usr" };
    let script = format!("id -u; echo hi > /root/kept; echo new > {system}/new; echo x > /etc/new");
    assert_eq!(fixture.sh("one", &script).await.ok(), "0");

    fixture.engine.stop("one", Duration::from_secs(5)).await.unwrap();
    assert!(!alive(pid));
    assert_eq!(fixture.engine.get("one").await.unwrap().unwrap().state, BoxState::Stopped { unclean: None });
    assert!(matches!(fixture.run("one", request(["true"])).await, Err(EngineError::NotRunning(_))));

    fixture.engine.start("one").await.unwrap();
    fixture.engine.start("one").await.unwrap();
    let script = format!("cat /root/kept {system}/new /etc/new");
    assert_eq!(fixture.sh("one", &script).await.ok(), "hi\nnew\nx");

    fixture.engine.delete("one").await.unwrap();
    fixture.engine.delete("one").await.unwrap();
    assert_eq!(fixture.engine.get("one").await.unwrap(), None);
    assert!(!fixture.box_dir("one").exists());
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("run/engine")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("data/engine/locks")).unwrap().count(), 0);
    assert!(
        !std::fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(&*fixture.dir.path().to_string_lossy())
    );
}

/// Our children: number and state of each.
fn children() -> Vec<(i32, String)> {
    let us = std::process::id().to_string();
    let child = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_ascii_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        (parent == us).then(|| (pid, state.to_owned()))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(child).collect()
}

/// Who starts sandboxes for months must not keep what has ended of them.
async fn nothing_dead_stays() {
    let fixture = Fixture::new();
    for id in ["stopped", "killed"] {
        fixture.create(id).await;
        let shims = processes_in(&fixture.box_dir(id));
        assert!(children().iter().any(|(pid, _)| shims.contains(pid)), "{shims:?} {:?}", children());
    }
    fixture.engine.stop("stopped", Duration::from_secs(5)).await.unwrap();
    for pid in processes_in(&fixture.box_dir("killed")) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL); // one may end with another
    }
    eventually("no dead child is left", async || children().iter().all(|(_, state)| state != "Z")).await;
}

#[tokio::test]
async fn nothing_dead_stays_on_one_thread() {
    nothing_dead_stays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_dead_stays_on_many_threads() {
    nothing_dead_stays().await;
}

#[tokio::test]
async fn create_is_idempotent_for_the_same_labels() {
    let fixture = Fixture::new();
    let labels = BTreeMap::from([("owner".to_owned(), "me".to_owned())]);
    let first = fixture.engine.create("one", &BoxSpec::default(), &labels).await.unwrap();
    let second = fixture.engine.create("one", &BoxSpec::default(), &labels).await.unwrap();
    assert_eq!(first, second);
    let other = fixture.engine.create("one", &BoxSpec::default(), &BTreeMap::new()).await;
    assert!(matches!(other, Err(EngineError::AlreadyExists(_))), "{other:?}");
    assert_eq!(fixture.sh("one", "true").await.exit, Exit::Code(0));
}

#[tokio::test]
async fn names_cannot_leave_the_directory() {
    let fixture = Fixture::new();
    for id in ["", "..", "a/b", ".hidden", "a\0b", &"x".repeat(129)] {
        let result = fixture.engine.create(id, &BoxSpec::default(), &BTreeMap::new()).await;
        assert!(matches!(result, Err(EngineError::Invalid(_))), "{id:?}: {result:?}");
    }
    assert!(!Path::new(fixture.dir.path()).join("data").exists());
}
