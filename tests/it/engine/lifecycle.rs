use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pocketenv::engine::{BoxSpec, BoxState, EngineError, Exit};

use super::support::{Fixture, is_root, processes_in, request};

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
