//! Disks that are kept as snapshots, and directories of this machine.

use std::collections::BTreeMap;
use std::fs;

use pocketenv::model::{
    Address, Bind, Identity, Image, LinkSpec, Mount, PortRef, SandboxId, SandboxSpec, labels,
};
use pocketenv::provider::{Command, Guest, Owner, Provider, ProviderError, capture};
use serde_json::Value;

use super::support::{Daemon, IMAGE, identity, spec};

async fn sh(guest: &dyn Guest, text: &str) -> String {
    let output = capture(guest, &Command::new(["sh", "-c", text]), &[], 1 << 16).await.unwrap();
    assert!(output.status.success(), "{text}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

async fn inside(provider: &dyn Provider, id: &SandboxId, text: &str) -> String {
    sh(&*provider.guest(id).await.unwrap(), text).await
}

fn carried(name: &str, of: &str) -> BTreeMap<String, String> {
    let address = Address::Snapshot(name.to_owned());
    let mut carried = Identity { address, ..identity(name, &SandboxSpec::default()) }.to_labels();
    carried.insert(labels::SNAPSHOT_OF.to_owned(), format!("sandbox/{of}"));
    carried
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_an_image_that_knows_whose_it_is() {
    let Some(daemon) = Daemon::start() else { return };
    let provider = daemon.provider().await;
    let snapshots = provider.snapshots().unwrap();
    let volume = Identity { address: Address::Volume("data".to_owned()), ..identity("data", &spec()) };
    provider.volumes().unwrap().create_volume("data", &volume.to_labels()).await.unwrap();
    let to = PortRef { sandbox: "db".to_owned(), port: 5432 };
    let db = provider.create(&spec(), &identity("db", &spec())).await.unwrap();
    inside(&*provider, &db, "nc -lk -p 5432 -e echo up >/dev/null 2>&1 &").await;
    let mounts = vec![Mount { path: "/data".to_owned(), volume: "data".to_owned(), read_only: false }];
    let wanted =
        SandboxSpec { links: [LinkSpec { to, host_port: 20_123, udp: false }].into(), mounts, ..spec() };
    let of = provider.create(&wanted, &identity("api", &wanted)).await.unwrap();
    inside(&*provider, &of, "echo one > /var/kept; echo shared > /data/kept").await;
    snapshots.create_snapshot(&of, "First", &carried("First", "api")).await.unwrap();
    inside(&*provider, &of, "echo two > /var/kept").await;

    // What Docker has: the image, with its own labels and none of the container's.
    let image = daemon.says(&["images", "-q", "pocketenv-snapshot"]);
    let found: Value =
        serde_json::from_str(&daemon.says(&["inspect", "-f", "{{json .Config.Labels}}", &image])).unwrap();
    assert_eq!(found[labels::ADDRESS], "snapshot/First");
    assert_eq!(found["pocketenv.io/spec"], "");

    // Neither the volume nor the links come with it.
    let from = SandboxSpec { image: Image::Snapshot("First".to_owned()), ..SandboxSpec::default() };
    let named = identity("trial", &from);
    let made = provider.create(&from, &named).await.unwrap();
    let look = "cat /var/kept; ls /data; cat /var/lib/pocketenv-links";
    assert_eq!(inside(&*provider, &made, look).await, "one");
    let seen = provider.get(&made).await.unwrap().unwrap();
    assert_eq!(seen.spec.as_ref(), Some(&from));
    assert_eq!(Identity::from_labels(&seen.labels).unwrap(), Some(named));
    assert!(!seen.labels.contains_key(labels::SNAPSHOT_OF), "{:?}", seen.labels);
    let listed = async || {
        let all = provider.list(&Owner { project: Some("it".to_owned()), owner: None }).await.unwrap();
        let names = all.snapshots.into_values().map(|s| (s.labels[labels::ADDRESS].clone(), s.used_by));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    assert_eq!(listed().await, [("snapshot/First".to_owned(), vec![made.0.clone()])]);
    let refused = snapshots.delete_snapshot("it", "First").await;
    assert!(matches!(&refused, Err(ProviderError::Invalid { .. })), "{refused:?}");

    // One on top of the other: whichever goes first, nothing stays.
    inside(&*provider, &made, "echo three > /var/kept").await;
    snapshots.create_snapshot(&made, "Second", &carried("Second", "trial")).await.unwrap();
    provider.delete(&made).await.unwrap();
    snapshots.delete_snapshot("it", "First").await.unwrap();
    assert_eq!(listed().await, [("snapshot/Second".to_owned(), vec![])]);
    let from = SandboxSpec { image: Image::Snapshot("Second".to_owned()), ..SandboxSpec::default() };
    let made = provider.create(&from, &identity("again", &from)).await.unwrap();
    assert_eq!(inside(&*provider, &made, "cat /var/kept").await, "three");
    provider.delete(&made).await.unwrap();
    snapshots.delete_snapshot("it", "Second").await.unwrap();
    assert_eq!(listed().await, []);
    assert_eq!(daemon.says(&["images", "-aq", "--filter", "label=pocketenv.io/managed-by"]), "");
    let gone = provider.create(&from, &identity("gone", &from)).await.unwrap_err();
    assert!(gone.to_string().contains("`Second`"), "{gone}");
    for id in [&of, &db] {
        provider.delete(id).await.unwrap();
    }
    provider.volumes().unwrap().delete_volume("it", "data").await.unwrap();
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

#[test]
fn a_project_takes_snapshots_forks_and_shares_a_directory() {
    let Some(daemon) = Daemon::start() else { return };
    let dir = daemon.dir.path().join("project");
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::create_dir_all(dir.join("out")).unwrap();
    fs::write(dir.join("src/page"), "first").unwrap();
    let file = dir.join("pocketenv.yaml");
    let manifest = format!(
        "version: 1\nname: kept\ndefaults: {{ provider: docker }}\nsandboxes:\n  api:\n    image: {IMAGE}\n    sync:\n\
         \x20     - {{ from: ./src, to: /work/src, mode: bind }}\n      - {{ from: ./out, to: /work/out, mode: bind, read_only: false }}\n"
    );
    fs::write(&file, &manifest).unwrap();
    let ends = |verb: &[&str], code: i32| {
        let mut args = vec![verb[0], "-f", file.to_str().unwrap()];
        args.extend(&verb[1..]);
        daemon.runs(&args, &[], code)
    };
    let run = |verb: &[&str]| ends(verb, 0);
    let inside = |name: &str, script: &str| run(&["exec", name, "--", "sh", "-c", script]);
    run(&["apply", "--yes"]);
    run(&["plan", "--detailed-exitcode"]);

    // The directory itself, both ways.
    fs::write(dir.join("src/page"), "second").unwrap();
    assert_eq!(
        inside("api", "cat /work/src/page; (echo x > /work/src/page) 2>/dev/null || echo read only"),
        "secondread only"
    );
    inside("api", "echo made > /work/out/made");
    assert_eq!(fs::read_to_string(dir.join("out/made")).unwrap(), "made\n");

    inside("api", "echo one > /var/kept");
    run(&["snapshot", "create", "api", "Before_1"]);
    inside("api", "echo two > /var/kept");
    ends(&["snapshot", "create", "api", "Before_1"], 1);
    let listed = || -> Vec<String> {
        let listed: Value = serde_json::from_str(&run(&["snapshot", "list", "-o", "json"])).unwrap();
        let all = listed["snapshots"].as_array().unwrap();
        all.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(), ["Before_1"]);
    run(&["fork", "api", "--count", "2"]);
    assert_eq!(inside("api-fork-2", "cat /var/kept /work/src/page"), "two\nsecond");
    inside("api-fork-2", "echo forked > /var/kept");
    assert_eq!(inside("api-fork-1", "cat /var/kept"), "two");
    run(&["apply", "--yes", "--allow-data-loss"]);
    run(&["gc", "--delete", "--yes"]);
    assert_eq!(listed(), ["Before_1"]);

    fs::write(&file, format!("{manifest}  trial: {{ snapshot: Before_1 }}\n")).unwrap();
    run(&["apply", "--yes"]);
    run(&["plan", "--detailed-exitcode"]);
    assert_eq!(inside("trial", "cat /var/kept"), "one");
    ends(&["snapshot", "rm", "Before_1"], 1);
    // The store is lost: snapshots are known by their labels.
    fs::remove_dir_all(daemon.dir.path().join("home")).unwrap();
    run(&["apply", "--yes"]);
    run(&["plan", "--detailed-exitcode"]);
    assert_eq!(listed(), ["Before_1"]);
    // A directory that is shared no longer makes the sandbox anew.
    let without = manifest.lines().filter(|line| !line.contains("/work/out")).collect::<Vec<_>>().join("\n");
    fs::write(&file, format!("{without}\n")).unwrap();
    run(&["apply", "--yes", "--allow-data-loss"]);
    assert_eq!(inside("api", "ls /work; cat /var/kept 2>/dev/null || echo new"), "src\nnew");
    run(&["snapshot", "rm", "Before_1"]);
    assert_eq!(listed(), Vec::<String>::new());
    run(&["destroy", "--yes", "--volumes"]);
    assert_eq!(daemon.inventory(), Vec::<String>::new());
    assert_eq!(daemon.says(&["images", "-aq", "--filter", "label=pocketenv.io/managed-by"]), "");
    assert_eq!(fs::read_to_string(dir.join("src/page")).unwrap(), "second");
}

/// A path would be another directory there.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_on_another_machine_shares_no_directory_of_this_one() {
    let Some(daemon) = Daemon::start() else { return };
    let binds = vec![Bind { path: "/work".to_owned(), from: daemon.dir.path().to_owned(), read_only: true }];
    let wanted = SandboxSpec { binds, ..spec() };
    let provider = daemon.provider_by(&[("DOCKER_HOST", "tcp://192.0.2.1:2375")]).await;
    let refused = provider.create(&wanted, &identity("no", &wanted)).await;
    assert!(matches!(refused, Err(ProviderError::Unsupported { .. })), "{refused:?}");
    let gone = SandboxSpec {
        binds: vec![Bind {
            path: "/work".to_owned(),
            from: daemon.dir.path().join("nowhere"),
            read_only: true,
        }],
        ..spec()
    };
    let provider = daemon.provider().await;
    let error = provider.create(&gone, &identity("gone", &gone)).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("nowhere"), "{error:?}");
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}
