//! The guest room in a sandbox of the local engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration as Time, Instant};

use pocketenv::guest::tree::{scan, tree_sha256};
use pocketenv::guest::{
    Bundle, Content, EnvBundle, FileToWrite, LogOptions, ServiceDefaults, StepOutcome, copy_in, copy_out,
    environment, logs, observe, run_step, start_service, stop_service, wait_healthy, write_bundle,
};
use pocketenv::model::{
    Address, Duration, FileState, HealthCheck, Identity, IntentId, ObservedGuest, OwnerId, Probe,
    ProbeResult, SandboxSpec, ServiceStatus, SpecHash,
};
use pocketenv::provider::{Command, Guest, Provider, ProviderContext, Registry, capture};

use super::preset::step;
use super::service::script;

async fn look(guest: &dyn Guest) -> ObservedGuest {
    observe(guest, &BTreeMap::new(), ServiceDefaults::default()).await.unwrap()
}

async fn scene(provider: &dyn Provider, host: &Path) {
    let identity = Identity {
        project: "guest-test".to_owned(),
        address: Address::Sandbox("box".to_owned()),
        owner: OwnerId("o".to_owned()),
        spec_hash: SpecHash("h".to_owned()),
        generation: 1,
        intent: IntentId(uuid::Uuid::now_v7().to_string()),
        expires_at: None,
    };
    let id = provider.create(&SandboxSpec::default(), &identity).await.unwrap();
    let guest = provider.guest(&id).await.unwrap();
    let guest = &*guest;
    let sh = async |line: &str| {
        let output = capture(guest, &Command::new(["sh", "-c", line]), &[], 1 << 20).await.unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    assert_eq!(look(guest).await, ObservedGuest::default());

    std::fs::create_dir_all(host.join("tree/empty")).unwrap();
    std::fs::write(host.join("tree/f"), [0, 255, 10]).unwrap();
    std::os::unix::fs::symlink("f", host.join("tree/l")).unwrap();
    let sha256 = tree_sha256(&scan(&host.join("tree")).unwrap());
    let file = |path: &str, content| FileToWrite {
        path: path.to_owned(),
        digest: "d".to_owned(),
        mode: None,
        owner: None,
        content,
    };
    let values = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned().into())]);
    let bundle = Bundle {
        env: Some(EnvBundle { digest: "e".to_owned(), values }),
        files: vec![
            file("/etc/motd", Content::Inline(b"hello\n".to_vec())),
            file("/workspace/tree", Content::HostTree { path: host.join("tree"), sha256, ignore: None }),
            file("/run/secrets/db", Content::Secret("hunter2".to_owned().into())),
            file("/workspace/db", Content::Secret("hunter2".to_owned().into())),
        ],
        ..Bundle::default()
    };
    let begun = Instant::now();
    write_bundle(guest, &bundle).await.unwrap();
    eprintln!("a bundle of four: {:?}", begun.elapsed());
    let begun = Instant::now();
    let seen = look(guest).await;
    eprintln!("a look: {:?}", begun.elapsed());
    assert!(
        seen.files.len() == 4 && seen.files.values().all(|file| file.state == FileState::InPlace),
        "{seen:?}"
    );
    assert_eq!(seen.env.as_deref(), Some("e"));
    let env = environment(guest).await.unwrap();
    assert_eq!(env["TOKEN"], "hunter2");
    assert_eq!(sh("cat /etc/motd /run/secrets/db /workspace/db").await, "hello\nhunter2hunter2");

    // A service with a health check by port, reached through the engine.
    let mut service = script("echo \"up $TOKEN\"; exec python3 -m http.server 8123 --bind 127.0.0.1");
    let check = HealthCheck {
        probe: Probe::Http { port: 8123, path: "/".to_owned() },
        interval: Duration::from_millis(200),
        timeout: Duration::from_secs(2),
        retries: 50,
        start_period: Duration::from_millis(0),
    };
    service.healthcheck = Some(check);
    if Path::new("/usr/bin/python3").exists() {
        let defaults = ServiceDefaults::default();
        let begun = Instant::now();
        start_service(guest, "web", &service, "s1", &env, defaults).await.unwrap();
        eprintln!("a start: {:?}", begun.elapsed());
        wait_healthy(guest, "web", &service, &env, defaults, Time::from_secs(20)).await.unwrap();
        let services = BTreeMap::from([("web".to_owned(), service.clone())]);
        let seen = observe(guest, &services, defaults).await.unwrap().services.remove("web").unwrap();
        assert_eq!((seen.state, seen.health), (ServiceStatus::Running, Some(ProbeResult::Passing)));
        let mut lines = Vec::new();
        let mut sink = |line: pocketenv::guest::LogLine<'_>| lines.push(line.text.to_vec());
        logs(guest, &["web".to_owned()], LogOptions::default(), &mut sink).await.unwrap();
        assert_eq!(lines[0], b"up hunter2");
        stop_service(guest, "web").await.unwrap();
        assert_eq!(look(guest).await.services["web"].state, ServiceStatus::Stopped);
        start_service(guest, "web", &service, "s1", &env, defaults).await.unwrap();
    } else {
        eprintln!("SKIPPED: no /usr/bin/python3 for a service with a port");
    }

    let outcome = run_step(guest, "p", &step("test \"$TOKEN\" = hunter2"), &env, None, &mut |_| {}).await;
    assert_eq!(outcome.unwrap(), StepOutcome::Ran);
    copy_in(guest, &host.join("tree"), "/workspace/copy", None).await.unwrap();
    let back = copy_out(guest, "/workspace/copy", &host.join("back"), None).await.unwrap();
    assert_eq!(scan(&back).unwrap(), scan(&host.join("tree")).unwrap());

    // A stop ends the service and takes the memory away; files and steps stay.
    provider.stop(&id).await.unwrap();
    provider.start(&id).await.unwrap();
    let guest = provider.guest(&id).await.unwrap();
    let seen = look(&*guest).await;
    assert_eq!((seen.env, seen.services.len(), seen.presets.len()), (None, 0, 1));
    assert_eq!(seen.files["/workspace/tree"].state, FileState::InPlace);
    assert_eq!(seen.files["/workspace/db"].state, FileState::Missing);
    let found =
        std::process::Command::new("grep").args(["-rl", "hunter2"]).arg(host.join("data")).output().unwrap();
    // The log is the service's own doing.
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.lines().all(|path| path.ends_with("/var/log/pocketenv/web/log")), "on disk: {found}");
    provider.delete(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_room_in_a_sandbox_of_the_engine() {
    let host = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    let context = ProviderContext {
        data_dir: host.path().join("data"),
        runtime_dir: host.path().join("run"),
        executable: env!("CARGO_BIN_EXE_pocketenv").into(),
        vars: Default::default(),
        credentials: Default::default(),
        settings: Default::default(),
    };
    let registry = Registry::open(["local"], &context).await.unwrap_or_else(|(_, error)| panic!("{error}"));
    let provider = registry.get("local").unwrap();
    scene(&**provider, host.path()).await;
}
