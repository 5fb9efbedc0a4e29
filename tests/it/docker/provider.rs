//! What Docker itself sees of what the provider does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pocketenv::model::{
    Image, LinkSpec, Mount, NetworkMode, NetworkSpec, PortRef, PortSpec, Quantity, Resources, SandboxId,
    SandboxState,
};
use pocketenv::provider::{Command, Guest, Owner, ProviderError, capture};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::{Daemon, IMAGE, identity, next, spec};

async fn sh(guest: &dyn Guest, text: &str) -> String {
    let output = capture(guest, &Command::new(["sh", "-c", text]), &[], 1 << 16).await.unwrap();
    assert!(output.status.success(), "{text}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn everything() -> Owner {
    Owner { project: None, owner: None }
}

/// What a file of the cgroup of a container holds; memory and processor have different files in the two versions.
fn cgroup(daemon: &Daemon, id: &str, old: &str, new: &str) -> String {
    let id = daemon.says(&["inspect", "-f", "{{.Id}}", id]);
    let (controller, _) = old.split_once('.').unwrap();
    let places = [
        format!("/sys/fs/cgroup/{controller}/docker/{id}/{old}"),
        format!("/sys/fs/cgroup/docker/{id}/{new}"),
    ];
    let found = places.iter().find_map(|place| std::fs::read_to_string(place).ok());
    found.unwrap_or_else(|| panic!("none of {places:?}")).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_what_its_spec_says() {
    let Some(daemon) = Daemon::start() else { return };
    let provider = daemon.provider().await;
    let mut wanted = spec();
    wanted.hostname = "box".to_owned();
    wanted.resources = Resources {
        cpu_millis: Some(500),
        memory: Some(Quantity::from_bytes(64 << 20)),
        pids: Some(100),
        ..Resources::default()
    };
    let mut named = identity("limits", &wanted);
    let id = provider.create(&wanted, &named).await.unwrap();

    // Ownership is written at Docker (invariant 1).
    let labels = daemon.says(&["inspect", "-f", "{{json .Config.Labels}}", &id.0]);
    for (label, value) in named.to_labels() {
        assert!(labels.contains(&format!("\"{label}\":\"{value}\"")), "{label} is not in {labels}");
    }
    assert_eq!(cgroup(&daemon, &id.0, "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    let quota = cgroup(&daemon, &id.0, "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    assert_eq!(cgroup(&daemon, &id.0, "pids.max", "pids.max"), "100");

    // Limits are changed, raised above the old ones and taken away while it runs.
    let pid = daemon.says(&["inspect", "-f", "{{.State.Pid}}", &id.0]);
    wanted.resources = Resources {
        cpu_millis: Some(1500),
        memory: Some(Quantity::from_bytes(200 << 20)),
        pids: Some(200),
        ..Resources::default()
    };
    named = next(&named, &wanted);
    provider.update(&id, &wanted, &named).await.unwrap();
    assert_eq!(cgroup(&daemon, &id.0, "memory.limit_in_bytes", "memory.max"), (200 << 20).to_string());
    assert!(cgroup(&daemon, &id.0, "cpu.cfs_quota_us", "cpu.max").starts_with("150000"));
    assert_eq!(cgroup(&daemon, &id.0, "pids.max", "pids.max"), "200");
    wanted.resources = Resources::default();
    named = next(&named, &wanted);
    provider.update(&id, &wanted, &named).await.unwrap();
    assert!(cgroup(&daemon, &id.0, "memory.limit_in_bytes", "memory.max").parse::<u64>().unwrap() >= 1 << 50);
    assert_eq!(cgroup(&daemon, &id.0, "pids.max", "pids.max"), "max");
    assert_eq!(daemon.says(&["inspect", "-f", "{{.State.Pid}}", &id.0]), pid, "it was started anew");

    // What was written last is read back, and one record of it is kept.
    let seen = provider.get(&id).await.unwrap().unwrap();
    assert_eq!(seen.spec.as_ref(), Some(&wanted));
    assert_eq!(pocketenv::model::Identity::from_labels(&seen.labels).unwrap(), Some(named.clone()));
    let records = daemon.inventory().into_iter().filter(|name| name.contains(".record-")).count();
    assert_eq!(records, 1);
    let listing = provider.list(&everything()).await.unwrap();
    assert_eq!(listing.sandboxes[&id], seen);
    assert!(listing.volumes.is_empty(), "a record is no volume: {:?}", listing.volumes);

    // A record whose container was removed by hand is swept up by the next create, and never mistaken for a sandbox.
    daemon.says(&["rm", "-f", &id.0]);
    assert!(provider.list(&everything()).await.unwrap().sandboxes.is_empty());
    let other = provider.create(&spec(), &identity("other", &spec())).await.unwrap();
    assert_eq!(daemon.inventory().len(), 2, "the container and the network: {:?}", daemon.inventory());
    provider.delete(&other).await.unwrap();
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_was_cut_short_is_gone_on_with_and_one_that_cannot_be_leaves_nothing() {
    let Some(daemon) = Daemon::start() else { return };
    let provider = daemon.provider().await;

    // Made and not started, as after a crash in between.
    let (wanted, named) = (spec(), identity("cut", &spec()));
    let id = provider.create(&wanted, &named).await.unwrap();
    let labels: Vec<String> =
        named.to_labels().iter().map(|(label, value)| format!("--label={label}={value}")).collect();
    daemon.says(&["rm", "-f", &id.0]);
    let mut create = vec!["create", "--name", &id.0, "--entrypoint", "sleep"];
    create.extend(labels.iter().map(String::as_str));
    create.extend(["--network=none", IMAGE, "1000"]);
    daemon.says(&create);
    assert_eq!(provider.get(&id).await.unwrap().unwrap().state, SandboxState::Creating);
    assert_eq!(provider.create(&wanted, &named).await.unwrap(), id);
    assert_eq!(provider.get(&id).await.unwrap().unwrap().state, SandboxState::Running);
    provider.delete(&id).await.unwrap();

    // Another's container of this name is not touched.
    daemon.says(&["create", "--name", &id.0, "--network=none", IMAGE, "true"]);
    let error = provider.create(&wanted, &named).await.unwrap_err();
    assert!(matches!(error, ProviderError::AlreadyExists { .. }), "{error}");
    assert!(daemon.inventory().contains(&format!("container {}", id.0)));
    daemon.says(&["rm", &id.0]);

    // What cannot be is said, and does not look as if it were on its way.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = PortSpec { host_port: Some(taken.local_addr().unwrap().port()), ..PortSpec::default() };
    let mut cases = vec![
        (
            "port",
            pocketenv::model::SandboxSpec { ports: BTreeMap::from([(80, port.clone())]), ..spec() },
            "`host_port`",
        ),
        (
            "image",
            pocketenv::model::SandboxSpec {
                image: Image::Oci("127.0.0.1:1/no/image:1".to_owned()),
                ..spec()
            },
            "127.0.0.1:1",
        ),
    ];
    let mount = Mount { path: "/data".to_owned(), volume: "gone".to_owned(), read_only: false };
    cases.push((
        "mount",
        pocketenv::model::SandboxSpec { mounts: vec![mount], ..spec() },
        "pocketenv.it.gone",
    ));
    let none = NetworkSpec { mode: NetworkMode::None, ..NetworkSpec::default() };
    let offline =
        pocketenv::model::SandboxSpec { ports: BTreeMap::from([(80, port)]), network: none, ..spec() };
    cases.push(("offline", offline, "network: none"));
    for (name, wanted, said) in cases {
        let error = provider.create(&wanted, &identity(name, &wanted)).await.unwrap_err();
        assert!(error.to_string().contains(said), "{name}: {error}");
    }
    assert_eq!(daemon.inventory().into_iter().filter(|n| n.starts_with("container")).count(), 0);

    // A volume of somebody else under our name is not used.
    daemon.says(&["volume", "create", "pocketenv.it.data"]);
    let volumes = provider.volumes().unwrap();
    let labels = identity("x", &spec()).to_labels();
    let error = volumes.create_volume("data", &labels).await.unwrap_err();
    assert!(matches!(error, ProviderError::AlreadyExists { .. }), "{error}");
    assert!(volumes.delete_volume("it", "data").await.is_err());
    assert!(daemon.inventory().contains(&"volume pocketenv.it.data".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_collects_ends_gracefully_and_keeps_links() {
    let Some(daemon) = Daemon::start() else { return };
    let provider = daemon.provider().await;
    let id = provider.create(&spec(), &identity("init", &spec())).await.unwrap();
    let guest = provider.guest(&id).await.unwrap();

    // Nobody waits for these any more; the first process does.
    sh(&*guest, "for n in 1 2 3; do (sleep 0.2 &) ; done; sleep 0.6").await;
    let zombies = "n=0; while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do n=$((n+1)); test $n -lt 50 || exit 1; sleep 0.1; done";
    sh(&*guest, zombies).await;

    // A process that is asked to end has the time to do so, and what it writes then is there after the start.
    let lasts = "trap 'sleep 1; echo last > /var/tmp/word; exit' TERM; echo up > /var/tmp/up; while :; do sleep 0.1; done";
    let begin =
        "setsid sh -c \"$1\" >/dev/null 2>&1 </dev/null & until test -e /var/tmp/up; do sleep 0.05; done";
    let command = Command::new(["sh", "-c", begin, "sh", lasts]);
    assert!(capture(&*guest, &command, &[], 100).await.unwrap().status.success());
    let begun = Instant::now();
    provider.stop(&id).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let stopped = provider.get(&id).await.unwrap().unwrap();
    assert_eq!(stopped.state, SandboxState::Stopped { unclean: None });
    provider.start(&id).await.unwrap();
    assert_eq!(sh(&*guest, "cat /var/tmp/word").await, "last");

    // A stop that nobody asked for is told apart, and so is a pause.
    daemon.says(&["kill", &id.0]);
    let state = provider.get(&id).await.unwrap().unwrap().state;
    assert!(
        matches!(&state, SandboxState::Stopped { unclean: Some(why) } if why.contains("killed")),
        "{state:?}"
    );
    provider.start(&id).await.unwrap();
    daemon.says(&["pause", &id.0]);
    assert_eq!(provider.get(&id).await.unwrap().unwrap().state, SandboxState::Paused);
    provider.start(&id).await.unwrap();
    assert_eq!(provider.get(&id).await.unwrap().unwrap().state, SandboxState::Running);

    // A link leads to the other sandbox, survives a restart and the death of its relay, and can be taken away.
    sh(&*guest, "mkdir -p /srv && echo linked > /srv/page && httpd -p 8000 -h /srv").await;
    let mut wanted = spec();
    let to = PortRef { sandbox: "init".to_owned(), port: 8000 };
    wanted.links.insert(LinkSpec { to, host_port: 20_123, udp: false });
    let mut named = identity("linked", &wanted);
    let linked = provider.create(&wanted, &named).await.unwrap();
    let there = provider.guest(&linked).await.unwrap();
    const GET: &str = "n=0; until wget -q -O- http://127.0.0.1:20123/page; do n=$((n+1)); test $n -lt 100 || exit 1; sleep 0.1; done";
    assert_eq!(sh(&*there, GET).await, "linked");
    sh(&*there, "kill $(pidof nc)").await;
    assert_eq!(sh(&*there, GET).await, "linked");
    provider.stop(&linked).await.unwrap();
    provider.start(&linked).await.unwrap();
    assert_eq!(sh(&*there, GET).await, "linked");
    wanted.links.clear();
    named = next(&named, &wanted);
    provider.update(&linked, &wanted, &named).await.unwrap();
    sh(&*there, "n=0; while wget -q -O- http://127.0.0.1:20123/page; do n=$((n+1)); test $n -lt 100 || exit 1; sleep 0.1; done").await;

    // The network stays while one of the two is left.
    provider.delete(&id).await.unwrap();
    assert!(daemon.inventory().contains(&"network pocketenv.it".to_owned()));
    provider.delete(&linked).await.unwrap();
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_and_a_connection_hide_nothing_and_leave_nothing() {
    let Some(daemon) = Daemon::start() else { return };
    let provider = daemon.provider().await;
    let mut wanted = spec();
    wanted.network.mode = NetworkMode::None;
    let id = provider.create(&wanted, &identity("streams", &wanted)).await.unwrap();
    let guest = provider.guest(&id).await.unwrap();

    // An environment that no terminal would let through: controls, keys, more than a line may be long. None of it is shown.
    let mut command = Command::new([
        "sh",
        "-c",
        "printf %s \"$VALUE\" | md5sum; stty -a | grep -q ' icanon' && echo cooked",
    ]);
    let value: String = (1..=127_u8).map(char::from).cycle().take(9000).collect();
    command.env = BTreeMap::from([("VALUE".to_owned(), value.clone())]);
    let mut pty = guest.pty(&command, pocketenv::provider::PtyRequest { rows: 30, cols: 100 }).await.unwrap();
    let mut shown = Vec::new();
    pty.reader().unwrap().read_to_end(&mut shown).await.unwrap();
    assert!(pty.wait().await.unwrap().success());
    let mut same = command.clone();
    same.argv = ["sh", "-c", "printf %s \"$VALUE\" | md5sum; echo cooked"].map(str::to_owned).to_vec();
    let wanted = capture(&*guest, &same, &[], 1000).await.unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&shown).replace('\r', ""), String::from_utf8_lossy(&wanted));

    // A terminal that is dropped takes its program with it.
    let lives = async || sh(&*guest, "pidof sleep || :").await.split_whitespace().count();
    let before = lives().await;
    let pty = guest
        .pty(&Command::new(["sleep", "1000"]), pocketenv::provider::PtyRequest { rows: 1, cols: 1 })
        .await
        .unwrap();
    assert_eq!(lives().await, before + 1);
    drop(pty);
    assert_eq!(lives().await, before);

    // A connection: both ways, its ends one by one, and gone when it is let go of.
    sh(&*guest, "(while :; do nc -l -p 9000 -e cat; done) >/dev/null 2>&1 </dev/null &").await;
    let mut stream = loop {
        match guest.dial(9000).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut back = Vec::new();
    {
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let send = async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(send, read.read_to_end(&mut back));
        read.unwrap();
    }
    assert!(back == data, "{} of {} bytes came back", back.len(), data.len());

    // Who may do what: another user, by name, has its own home and no way into what is root's.
    let mut command = Command::new(["sh", "-c", "id -un; pwd; cat /run/pocketenv/x 2>&1 | grep -c denied"]);
    sh(&*guest, "umask 077; echo s > /run/pocketenv/x").await;
    command.user = Some("dev".to_owned());
    let output = capture(&*guest, &command, &[], 1000).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "dev\n/tmp\n1\n");
    command.user = Some("nobody-here".to_owned());
    let error = capture(&*guest, &command, &[], 1000).await.unwrap_err();
    assert!(error.to_string().contains("nobody-here"), "{error}");

    // No command of ours is left, and what is gone is not reached.
    let left = sh(&*guest, "ps | grep -c '[p]ocketenv-exec' || :").await;
    assert_eq!(left, "0");
    provider.delete(&id).await.unwrap();
    let error = capture(&*guest, &Command::new(["true"]), &[], 10).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(matches!(
        provider.start(&SandboxId("../x".to_owned())).await,
        Err(ProviderError::NotFound { .. })
    ));
    assert!(provider.get(&SandboxId("pocketenv.a/../b".to_owned())).await.unwrap().is_none());
}
