//! Health checks.

use std::collections::BTreeMap;
use std::time::Duration as Time;

use pocketenv::guest::{ServiceDefaults, observe, probe, wait_healthy, wait_started};
use pocketenv::model::{Duration, HealthCheck, Probe, ProbeResult, RestartPolicy, ServiceSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::room::Room;
use super::service::{script, start};

fn check(probe: Probe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(500),
        retries: 3,
        start_period: Duration::from_millis(0),
    }
}

async fn ask(room: &Room, kind: Probe) -> ProbeResult {
    probe(room, &check(kind), &BTreeMap::new(), ServiceDefaults::default()).await
}

/// A server that answers every connection with these bytes, or never.
async fn server(answer: &'static str) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if !answer.is_empty() {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
            open.push(stream);
        }
    });
    port
}

#[tokio::test]
async fn probes_tell_what_they_found() {
    let Some(room) = Room::new() else { return };
    let http = |port, path: &str| Probe::Http { port, path: path.to_owned() };
    let good = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let bad = server("HTTP/1.1 503 Nope\r\nContent-Length: 0\r\n\r\n").await;
    let silent = server("").await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    assert_eq!(ask(&room, Probe::Tcp(good)).await, ProbeResult::Passing);
    assert_eq!(ask(&room, http(good, "/health?x=1")).await, ProbeResult::Passing);
    let argv = |line: &str| Probe::Exec(["sh", "-c", line].map(str::to_owned).to_vec());
    assert_eq!(ask(&room, argv("true")).await, ProbeResult::Passing);
    for (kind, expected) in [
        (Probe::Tcp(closed), "refused"),
        (http(closed, "/"), "refused"),
        (http(bad, "/"), "503"),
        (http(silent, "/"), "no answer within 500ms"),
        (http(good, "no slash\n"), ""),
        (argv("echo why >&2; exit 9"), "exit code 9: why"),
        (argv("sleep 60"), "no answer within 500ms"),
    ] {
        match ask(&room, kind.clone()).await {
            ProbeResult::Failing(reason) => assert!(reason.contains(expected), "{kind:?}: {reason}"),
            ProbeResult::Passing => panic!("{kind:?} passed"),
        }
    }
}

fn watched(text: &str, line: &str) -> ServiceSpec {
    let probe = Probe::Exec(["sh", "-c", line].map(str::to_owned).to_vec());
    ServiceSpec { healthcheck: Some(check(probe)), restart: RestartPolicy::Never, ..script(text) }
}

#[tokio::test]
async fn waiting_ends_when_healthy_and_early_when_hopeless() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let wait = async |name: &str, spec: &ServiceSpec| {
            start(&room, name, spec).await;
            let defaults = ServiceDefaults::default();
            wait_healthy(&room, name, spec, &BTreeMap::new(), defaults, Time::from_secs(10)).await
        };
        let mut good = watched("sleep 0.3; : > \"$READY\"; exec sleep 1000", "[ -e \"$READY\" ]");
        good.env.insert("READY".to_owned(), room.at("ready"));
        let services = BTreeMap::from([("good".to_owned(), good.clone())]);
        wait("good", &good).await.unwrap();
        // The check sees the service's own environment.
        let seen = observe(&room, &services, ServiceDefaults::default()).await.unwrap();
        assert_eq!(seen.services["good"].health, Some(ProbeResult::Passing));
        room.sh("rm \"$0\" 2>/dev/null || :").await;
        std::fs::remove_file(room.at("ready")).unwrap();
        let seen = observe(&room, &services, ServiceDefaults::default()).await.unwrap();
        assert!(matches!(seen.services["good"].health, Some(ProbeResult::Failing(_))));

        let never = watched("exec sleep 1000", "echo not yet >&2; false");
        let error = wait("never", &never).await.unwrap_err().to_string();
        assert!(error.contains("is not healthy") && error.contains("not yet"), "{error}");

        let mut broken = watched("echo the reason; exit 5", "false");
        broken.healthcheck.as_mut().unwrap().start_period = Duration::from_secs(60);
        let error = wait("broken", &broken).await.unwrap_err().to_string();
        assert!(error.contains("exit code 5") && error.contains("the reason"), "{error}");
        // A check that passes does not make up for a process that is gone.
        let gone = watched("exit 0", "sleep 0.3");
        assert!(wait("gone", &gone).await.is_err());

        let limit = Time::from_secs(5);
        wait_started(&room, "good", limit).await.unwrap();
        assert!(wait_started(&room, "broken", limit).await.is_err());
        assert!(
            wait_started(&room, "unknown", limit).await.unwrap_err().to_string().contains("does not exist")
        );
    }
}
