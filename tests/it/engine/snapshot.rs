//! Snapshots hold what a sandbox's files were at one moment, whoever made them, and others start from them without touching them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pocketenv::engine::{BoxSpec, BoxState, EngineError, SnapshotInfo};

use super::support::{Fixture, is_root, null, request};

fn dir(fixture: &Fixture, name: &str) -> PathBuf {
    fixture.dir.path().join("data/engine/snapshots").join(name)
}

fn from(name: &str) -> BoxSpec {
    BoxSpec { snapshot: Some(name.to_owned()), ..BoxSpec::default() }
}

async fn snapshot(fixture: &Fixture, name: &str, of: &str) -> Result<SnapshotInfo, EngineError> {
    fixture.engine.create_snapshot(name, of, &BTreeMap::new()).await
}

/// Creates a sandbox from a snapshot; `false` where the root cannot be an overlay, after making sure that this is what is said.
async fn starts(fixture: &Fixture, id: &str, name: &str) -> bool {
    match fixture.engine.create(id, &from(name), &BTreeMap::new()).await {
        Ok(_) => true,
        Err(EngineError::Launch { step, .. }) if step == "overlay the root" && !is_root() => {
            assert!(!fixture.box_dir(id).exists());
            false
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_start_from_what_one_was() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let make =
        "set -e; mkdir -p /root/deep /workspace/gone; echo kept > /root/deep/file; chmod 640 /root/deep/file
        ln /root/deep/file /root/second; ln -s deep/file /root/link; echo x > /workspace/gone/file
        truncate -s 100M /root/sparse; echo end >> /root/sparse; mkfifo /root/pipe
        mkdir /etc/ours; echo config > /etc/ours/config; echo mine > /root/mine; chown 0:0 /root/mine
        rm /etc/passwd; rm -rf /var/log; mkdir /var/log; echo fresh > /var/log/fresh";
    fixture.sh("one", make).await.ok();
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    let info = snapshot(&fixture, "first", "one").await.unwrap();
    assert!(info.bytes > 0 && info.bytes < 50 << 20, "holes stay holes: {info:?}");
    assert_eq!(fixture.engine.list_snapshots().await.unwrap(), [info]);

    // What the first one does from here on is its own.
    fixture.engine.start("one").await.unwrap();
    fixture.sh("one", "echo changed > /root/deep/file; rm /root/link; echo late > /root/late").await.ok();
    if !starts(&fixture, "two", "first").await {
        return;
    }
    let look = "cat /root/deep/file /root/link /etc/ours/config /root/mine; stat -c '%a %h' /root/deep/file; stat -c %s /root/sparse
        tail -c 4 /root/sparse; test -p /root/pipe && echo pipe; ls /var/log; test -e /etc/passwd || echo no passwd
        ls /root/late 2>/dev/null; hostname; cat /etc/hostname";
    let seen = "kept\nkept\nconfig\nmine\n640 2\n104857604\nend\npipe\nfresh\nno passwd\n";
    assert_eq!(fixture.sh("two", look).await.ok(), format!("{seen}two\ntwo"));

    // The same for another one, whatever the second does, also after a stop.
    fixture.sh("two", "rm -r /root/deep /etc/ours; echo own > /root/own; echo two > /root/mine").await.ok();
    assert!(starts(&fixture, "three", "first").await);
    assert_eq!(fixture.sh("three", look).await.ok(), format!("{seen}three\nthree"));
    fixture.engine.stop("two", Duration::ZERO).await.unwrap();
    fixture.engine.start("two").await.unwrap();
    let own = "cat /root/own /root/mine; test -e /root/deep || echo gone; test -e /etc/ours || echo gone";
    assert_eq!(fixture.sh("two", own).await.ok(), "own\ntwo\ngone\ngone");

    // A snapshot of what was made from a snapshot lies on it.
    fixture.engine.stop("two", Duration::ZERO).await.unwrap();
    let second = snapshot(&fixture, "second", "two").await.unwrap();
    assert_eq!(second.on.as_deref(), Some("first"));
    assert!(starts(&fixture, "four", "second").await);
    assert_eq!(fixture.sh("four", own).await.ok(), "own\ntwo\ngone\ngone");
    assert_eq!(fixture.sh("four", "cat /var/log/fresh; cat /root/second").await.ok(), "fresh\nkept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_runs_is_frozen_for_it_and_goes_on() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    // Two files that are always written in this order: at any one moment the second is never ahead.
    let write = "n=0; while :; do n=$((n + 1)); echo $n > /root/a; echo $n > /root/b; done";
    let handle = fixture.start("one", request(["sh", "-c", write]), null(), null(), null()).await.unwrap();
    super::support::eventually("it writes", async || {
        fixture.sh("one", "test -s /root/b").await.exit == pocketenv::engine::Exit::Code(0)
    })
    .await;
    match snapshot(&fixture, "live", "one").await {
        Ok(_) => {}
        Err(EngineError::Unenforceable(message)) => {
            assert!(
                message.starts_with("a sandbox that runs is frozen while its files are copied"),
                "{message}"
            );
            assert!(message.contains("stop it instead"), "{message}");
            assert_eq!(fixture.engine.list_snapshots().await.unwrap(), []);
            if is_root() {
                eprintln!("SKIPPED: control groups are missing: {message}");
            }
            return;
        }
        Err(error) => panic!("{error}"),
    }
    assert!(matches!(fixture.engine.get("one").await.unwrap().unwrap().state, BoxState::Running { .. }));
    let now = || async { fixture.sh("one", "cat /root/b").await.text().parse::<u64>().ok() };
    let before = now().await;
    super::support::eventually("it goes on", async || now().await > before).await;
    assert!(starts(&fixture, "two", "live").await);
    let numbers = fixture.sh("two", "cat /root/a; echo; cat /root/b").await.ok();
    let numbers: Vec<u64> = numbers.split_whitespace().map(|n| n.parse().unwrap()).collect();
    if let [a, b] = numbers[..] {
        assert!(a == b || a == b + 1, "{a} and {b} were never there at one moment");
    } // one of them was being written
    // One that was paused before stays so.
    fixture.engine.pause("one").await.unwrap();
    snapshot(&fixture, "still", "one").await.unwrap();
    assert!(matches!(fixture.engine.get("one").await.unwrap().unwrap().state, BoxState::Paused { .. }));
    drop(handle);
}

#[tokio::test]
async fn what_is_in_use_stays_and_a_name_is_taken_once() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    snapshot(&fixture, "first", "one").await.unwrap();
    assert!(matches!(snapshot(&fixture, "first", "one").await, Err(EngineError::SnapshotExists(_))));
    assert!(matches!(snapshot(&fixture, "second", "none").await, Err(EngineError::NotFound(_))));
    assert!(matches!(snapshot(&fixture, "../out", "one").await, Err(EngineError::Invalid(_))));
    let missing = fixture.engine.create("two", &from("missing"), &BTreeMap::new()).await;
    assert!(matches!(missing, Err(EngineError::NoSnapshot(_))), "{missing:?}");
    assert!(!fixture.box_dir("two").exists());
    if !starts(&fixture, "two", "first").await {
        return;
    }
    fixture.engine.stop("two", Duration::ZERO).await.unwrap();
    snapshot(&fixture, "second", "two").await.unwrap();
    let refused = fixture.engine.delete_snapshot("first").await.unwrap_err();
    assert_eq!(refused.to_string(), "snapshot `first` is in use: sandbox `two` is made from it");
    fixture.engine.delete("two").await.unwrap();
    let refused = fixture.engine.delete_snapshot("first").await.unwrap_err();
    assert_eq!(refused.to_string(), "snapshot `first` is in use: snapshot `second` is made from it");
    let changed = fixture.engine.reconfigure("one", &from("first")).await;
    assert!(matches!(changed, Err(EngineError::Invalid(_))), "{changed:?}");
    for name in ["second", "first", "first"] {
        fixture.engine.delete_snapshot(name).await.unwrap();
    }
    assert_eq!(fixture.engine.list_snapshots().await.unwrap(), []);
    assert_eq!(fs::read_dir(dir(&fixture, "")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_was_cut_short_is_no_snapshot_and_goes() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    // As a power cut leaves it: files, and no word that they are all.
    fs::create_dir_all(dir(&fixture, ".first.new/rootfs/root")).unwrap();
    fs::write(dir(&fixture, ".first.new/rootfs/root/half"), "half").unwrap();
    let missing = fixture.engine.create("two", &from("first"), &BTreeMap::new()).await;
    assert!(matches!(missing, Err(EngineError::NoSnapshot(_))), "{missing:?}");
    assert_eq!(fixture.engine.list_snapshots().await.unwrap(), []);
    assert!(!dir(&fixture, ".first.new").exists(), "it goes at the first look");
    // Made anew over what is left, nothing of that is in it.
    fs::create_dir_all(dir(&fixture, ".first.new/rootfs/root")).unwrap();
    fs::write(dir(&fixture, ".first.new/rootfs/root/half"), "half").unwrap();
    snapshot(&fixture, "first", "one").await.unwrap();
    assert!(!dir(&fixture, "first/rootfs/root/half").exists() && !dir(&fixture, ".first.new").exists());
    // One that fails half way leaves nothing.
    let device = fixture.box_dir("one").join("upper/device");
    if is_root() {
        nix::sys::stat::mknod(
            &device,
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::empty(),
            nix::sys::stat::makedev(1, 3),
        )
        .unwrap();
        let failed = snapshot(&fixture, "second", "one").await.unwrap_err();
        assert!(matches!(failed, EngineError::File { .. }), "{failed}");
        assert!(!dir(&fixture, "second").exists() && !dir(&fixture, ".second.new").exists());
    }
}

/// What a fork is for: many, from one that was set up, at the price of none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_start_from_one_and_share_its_bytes() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    fixture
        .sh("one", "head -c 64M /dev/urandom > /root/large; sha256sum < /root/large > /root/sum")
        .await
        .ok();
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    let begun = Instant::now();
    snapshot(&fixture, "base", "one").await.unwrap();
    eprintln!("a snapshot of 64 MiB: {:?}", begun.elapsed());
    if !starts(&fixture, "fork-0", "base").await {
        return;
    }
    let begun = Instant::now();
    for n in 1..9 {
        assert!(starts(&fixture, &format!("fork-{n}"), "base").await);
    }
    eprintln!("eight sandboxes from it: {:?}", begun.elapsed());
    let kept = |path: PathBuf| fs::metadata(path.join("rootfs/root/large")).is_ok();
    for n in 0..9 {
        let id = format!("fork-{n}");
        assert!(!kept(fixture.box_dir(&id)), "{id} has a copy of its own");
        assert_eq!(
            fixture.sh(&id, "sha256sum < /root/large | cmp - /root/sum && echo same").await.ok(),
            "same"
        );
    }
}

#[tokio::test]
async fn what_a_sandbox_takes_on_the_disk_is_what_it_wrote() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let before = fixture.engine.disk_use("one").await.unwrap();
    assert!(before < 64 << 20, "the host's files are not its own: {before}");
    let write = "head -c 8M /dev/urandom > /root/large; ln /root/large /root/again; mkdir /root/closed; chmod 0 /root/closed; sync";
    fixture.sh("one", write).await.ok();
    let after = fixture.engine.disk_use("one").await.unwrap();
    assert!((8 << 20..9 << 20).contains(&(after - before)), "{before} and {after}");
    assert!(matches!(fixture.engine.disk_use("none").await, Err(EngineError::NotFound(_))));
}
