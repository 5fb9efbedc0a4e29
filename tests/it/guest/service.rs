//! Supervised services.

use std::collections::BTreeMap;

use pocketenv::guest::{ServiceDefaults, observe, remove_service, start_service, stop_service};
use pocketenv::model::{
    Duration, ObservedService, Quantity, RestartPolicy, ServiceSpec, ServiceState, ServiceStatus,
};

use super::room::{Room, eventually};

pub fn spec(command: &[&str]) -> ServiceSpec {
    ServiceSpec {
        command: command.iter().map(|&part| part.to_owned()).collect(),
        state: ServiceState::Running,
        working_dir: None,
        user: None,
        env: BTreeMap::new(),
        depends_on: BTreeMap::new(),
        healthcheck: None,
        restart: RestartPolicy::Always,
        stop_signal: "TERM".to_owned(),
        stop_timeout: Duration::from_secs(5),
        log_max_size: Quantity::from_bytes(1 << 20),
        log_max_files: 3,
    }
}

pub fn script(text: &str) -> ServiceSpec {
    spec(&["sh", "-c", text])
}

pub async fn start(room: &Room, name: &str, spec: &ServiceSpec) {
    start_service(room, name, spec, "d1", &BTreeMap::new(), ServiceDefaults::default()).await.unwrap();
}

pub async fn look(room: &Room, name: &str) -> Option<ObservedService> {
    observe(room, &BTreeMap::new(), ServiceDefaults::default()).await.unwrap().services.remove(name)
}

async fn reaches(room: &Room, name: &str, state: ServiceStatus) -> ObservedService {
    eventually(&format!("{name} is {state:?}"), || async {
        look(room, name).await.is_some_and(|service| service.state == state)
    })
    .await;
    look(room, name).await.unwrap()
}

async fn child(room: &Room, name: &str) -> String {
    eventually("the child is known", || async {
        room.sh(&format!("cat /run/pocketenv/services/{name}/child 2>/dev/null || :")).await.contains(' ')
    })
    .await;
    let line = room.sh(&format!("cat /run/pocketenv/services/{name}/child")).await;
    line.split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_service_runs_with_its_environment_and_is_stopped_gracefully() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let out = room.at("out");
        let text = "trap 'echo bye >>\"$OUT\"; exit 0' INT; echo \"$PWD|$LINES_|$dir|$1\" >\"$OUT\"; while :; do sleep 0.1; done";
        let mut service = spec(&["sh", "-c", text, "x", "an argument"]);
        service.stop_signal = "SIGINT".to_owned();
        service.working_dir = Some(room.at(""));
        service.env.insert("LINES_".to_owned(), "a\nb $x '\"".to_owned());
        let env = BTreeMap::from([
            ("OUT".to_owned(), out.clone()),
            ("dir".to_owned(), "mine".to_owned()),
            ("LINES_".to_owned(), "overridden".to_owned()),
        ]);
        start_service(&room, "web", &service, "d1", &env, ServiceDefaults::default()).await.unwrap();
        let running = look(&room, "web").await.unwrap();
        assert_eq!((running.state, running.digest.as_str()), (ServiceStatus::Running, "d1"));
        assert!(running.since.is_some());
        eventually("it wrote", || async { std::fs::read(&out).is_ok_and(|bytes| !bytes.is_empty()) }).await;
        let expected = format!("{}|a\nb $x '\"|mine|an argument\n", room.work().display());
        assert_eq!(std::fs::read_to_string(&out).unwrap(), expected);

        // The same again changes nothing; another definition restarts.
        let first = child(&room, "web").await;
        start_service(&room, "web", &service, "d1", &env, ServiceDefaults::default()).await.unwrap();
        assert_eq!(child(&room, "web").await, first);
        start_service(&room, "web", &service, "d2", &env, ServiceDefaults::default()).await.unwrap();
        assert_ne!(child(&room, "web").await, first);
        room.sh(&format!("! kill -0 {first} 2>/dev/null")).await;

        eventually("it wrote", || async { std::fs::read(&out).is_ok_and(|bytes| !bytes.is_empty()) }).await;
        stop_service(&room, "web").await.unwrap();
        assert!(std::fs::read_to_string(&out).unwrap().ends_with("bye\n"));
        let stopped = look(&room, "web").await.unwrap();
        assert_eq!((stopped.state, stopped.exit_code), (ServiceStatus::Stopped, Some(0)));
        stop_service(&room, "web").await.unwrap();
        remove_service(&room, "web").await.unwrap();
        assert_eq!(look(&room, "web").await, None);
        assert_eq!(room.sh("ls /var/log/pocketenv").await, "");
        remove_service(&room, "never").await.unwrap();
        eventually("no process of it is left", || async {
            !room.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").await.contains("services/web")
        })
        .await;
    }
}

#[tokio::test]
async fn a_process_that_ignores_the_signal_is_killed_with_its_children() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let mut service = script("trap '' TERM; sleep 1000 & echo $! > \"$OUT\"; while :; do sleep 1; done");
        service.env.insert("OUT".to_owned(), room.at("grandchild"));
        service.stop_timeout = Duration::from_millis(300);
        start(&room, "stubborn", &service).await;
        let out = room.at("grandchild");
        eventually("it wrote", || async { std::fs::read(&out).is_ok_and(|bytes| !bytes.is_empty()) }).await;
        let grandchild = std::fs::read_to_string(&out).unwrap();
        stop_service(&room, "stubborn").await.unwrap();
        let stopped = look(&room, "stubborn").await.unwrap();
        assert_eq!((stopped.state, stopped.exit_code), (ServiceStatus::Stopped, Some(137)));
        eventually("the grandchild is gone", || async {
            room.sh(&format!("kill -0 {} 2>/dev/null || echo gone", grandchild.trim())).await == "gone"
        })
        .await;
    }
}

#[tokio::test]
async fn the_restart_policy_decides_and_counts() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let policy = |text: &str, restart| ServiceSpec { restart, ..script(text) };
        start(&room, "once", &policy("exit 3", RestartPolicy::Never)).await;
        start(&room, "done", &policy("exit 0", RestartPolicy::OnFailure { max: None })).await;
        start(&room, "twice", &policy("exit 7", RestartPolicy::OnFailure { max: Some(1) })).await;
        start(&room, "signal", &policy("kill -KILL $$", RestartPolicy::Never)).await;
        start(
            &room,
            "missing",
            &ServiceSpec { restart: RestartPolicy::Never, ..spec(&["/no/such/program"]) },
        )
        .await;
        start(&room, "loop", &policy("exit 0", RestartPolicy::Always)).await;

        let once = reaches(&room, "once", ServiceStatus::Failed).await;
        assert_eq!((once.exit_code, once.restarts), (Some(3), 0));
        let done = reaches(&room, "done", ServiceStatus::Completed).await;
        assert_eq!((done.exit_code, done.restarts), (Some(0), 0));
        assert_eq!(reaches(&room, "signal", ServiceStatus::Failed).await.exit_code, Some(137));
        assert_eq!(reaches(&room, "missing", ServiceStatus::Failed).await.exit_code, Some(127));
        let twice = reaches(&room, "twice", ServiceStatus::Failed).await;
        assert_eq!((twice.exit_code, twice.restarts), (Some(7), 1));
        eventually("the loop was counted", || async {
            look(&room, "loop").await.is_some_and(|service| service.restarts >= 2)
        })
        .await;
        // Waiting to start again is not running, and can be stopped at once.
        reaches(&room, "loop", ServiceStatus::Backoff).await;
        stop_service(&room, "loop").await.unwrap();
        let stopped = look(&room, "loop").await.unwrap();
        assert_eq!((stopped.state, stopped.exit_code), (ServiceStatus::Stopped, Some(0)));
        assert!(stopped.restarts >= 2);
    }
}

#[tokio::test]
async fn a_dead_supervisor_is_seen_and_its_orphan_is_replaced() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        start(&room, "web", &script("exec sleep 1000")).await;
        let orphan = child(&room, "web").await;
        room.sh("read pid rest </run/pocketenv/services/web/supervisor; kill -KILL $pid").await;
        eventually("it is dead", || async {
            look(&room, "web").await.is_some_and(|service| service.state == ServiceStatus::Dead)
        })
        .await;
        room.sh(&format!("kill -0 {orphan}")).await;
        start(&room, "web", &script("exec sleep 1000")).await;
        assert_eq!(look(&room, "web").await.unwrap().state, ServiceStatus::Running);
        room.sh(&format!("! kill -0 {orphan} 2>/dev/null")).await;
    }
}

#[tokio::test]
async fn a_pid_given_to_somebody_else_is_not_the_service() {
    let Some(room) = Room::new() else { return };
    start(&room, "web", &script("exec sleep 1000")).await;
    let innocent = room.sh("sleep 1000 >/dev/null 2>&1 & echo $!").await;
    room.sh(&format!("printf '%s 1\\n' {innocent} >/run/pocketenv/services/web/supervisor")).await;
    assert_eq!(look(&room, "web").await.unwrap().state, ServiceStatus::Dead);
    stop_service(&room, "web").await.unwrap();
    room.sh(&format!("kill -0 {innocent}")).await;
}

#[tokio::test]
async fn logs_are_rotated_without_losing_a_byte() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let mut service =
            script("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo \"line $i\"; done; echo >&2 end");
        service.restart = RestartPolicy::Never;
        service.log_max_size = Quantity::from_bytes(64 << 10);
        service.log_max_files = 20;
        start(&room, "chatty", &service).await;
        reaches(&room, "chatty", ServiceStatus::Completed).await;
        let logs = room.root().join("var-log/pocketenv/chatty");
        let read = || {
            let mut text = String::new();
            for number in (1..=20).rev() {
                text += &std::fs::read_to_string(logs.join(format!("log.{number}"))).unwrap_or_default();
            }
            text + &std::fs::read_to_string(logs.join("log")).unwrap_or_default()
        };
        let expected: String = (1..=30000).map(|number| format!("line {number}\n")).collect();
        let expected = expected + "end\n";
        // The last thing it may do is another rotation, in the middle of which a name is missing.
        eventually("not a byte is lost or mixed", || async { read() == expected }).await;
        eventually("it was rotated", || async { logs.join("log.3").exists() }).await;
        for entry in std::fs::read_dir(&logs).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= 64 << 10);
        }
    }
}

#[tokio::test]
async fn another_user_runs_it_and_the_default_user_stops_it() {
    let Some(room) = Room::new() else { return };
    std::fs::set_permissions(room.root(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    room.sh(&format!("chmod 777 {}", room.work().display())).await;
    let mut service = script("id -u; exec sleep 1000");
    service.user = Some("12345:54321".to_owned());
    service.working_dir = Some("/".to_owned());
    start(&room, "web", &service).await;
    let log = room.root().join("var-log/pocketenv/web/log");
    eventually("it wrote", || async { std::fs::read(&log).is_ok_and(|bytes| bytes == b"12345\n") }).await;
    start(&room, "web", &service).await;
    assert_eq!(look(&room, "web").await.unwrap().state, ServiceStatus::Running);
    stop_service(&room, "web").await.unwrap();
    assert_eq!(look(&room, "web").await.unwrap().state, ServiceStatus::Stopped);
}
