//! Limits on the disk and on reading and writing: what they hold back, what they leave alone, and that nothing of them stays on the machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pocketenv::engine::{
    BoxInfo, BoxSpec, BoxState, EngineError, Exit, Held, IoLimits, Limits, MIN_DISK, Mount, MountSource,
};

use super::support::{Fixture, eventually, is_root, processes_in};

fn disk(bytes: u64) -> BoxSpec {
    BoxSpec { limits: Limits { disk: Some(bytes), ..Limits::default() }, ..BoxSpec::default() }
}

/// Creates it; `None` for an ordinary user, after making sure that it is refused and nothing is made.
async fn create(fixture: &Fixture, id: &str, spec: &BoxSpec) -> Option<BoxInfo> {
    match fixture.engine.create(id, spec, &BTreeMap::new()).await {
        Ok(info) => Some(info),
        Err(EngineError::Unenforceable(message)) if !is_root() => {
            assert!(message.contains("cannot be limited here") && message.contains("root"), "{message}");
            assert!(!fixture.box_dir(id).exists(), "nothing is made");
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

async fn info(fixture: &Fixture, id: &str) -> BoxInfo {
    fixture.engine.get(id).await.unwrap().unwrap()
}

/// The files below `dir` that are behind loop devices.
fn behind_loops(dir: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    files.filter(|file| file.starts_with(&*dir.to_string_lossy())).collect()
}

/// Nothing of it is mounted where the machine sees it.
fn assert_hidden(fixture: &Fixture) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*fixture.dir.path().to_string_lossy()), "{mounts}");
}

async fn nothing_is_attached(fixture: &Fixture) {
    eventually("no file is behind a loop device", async || behind_loops(fixture.dir.path()).is_empty()).await;
    assert_hidden(fixture);
}

fn pids(fixture: &Fixture, id: &str) -> [i32; 2] {
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture.box_dir(id).join("run.json")).unwrap()).unwrap();
    ["shim", "init"].map(|name| run[name]["pid"].as_i64().unwrap() as i32)
}

#[tokio::test]
async fn what_is_written_is_bounded_and_told() {
    let fixture = Fixture::new();
    let volume =
        Mount { source: MountSource::Volume("data".into()), target: "/data".into(), read_only: false };
    fixture.engine.create_volume("data", &BTreeMap::new()).await.unwrap();
    let spec = BoxSpec { mounts: vec![volume], ..disk(64 << 20) };
    let Some(made) = create(&fixture, "one", &spec).await else { return };
    assert_eq!(made.limits.as_ref().unwrap().in_force, spec.limits, "{made:?}");
    fixture.create("two").await;
    assert_hidden(&fixture);
    assert_eq!(behind_loops(fixture.dir.path()).len(), 1);
    // Wherever it writes, it is the same disk.
    let fill = "for dir in /root /workspace /tmp /usr/local /etc; do head -c 200M /dev/zero > $dir/big; done 2>&1 | grep -c 'No space'";
    assert_eq!(fixture.sh("one", fill).await.text(), "5");
    let full = info(&fixture, "one").await.limits.unwrap().disk.unwrap();
    assert!(full.is_full() && full.limit == 64 << 20, "{full:?}");
    let image = fs::metadata(fixture.box_dir("one").join("disk.img")).unwrap();
    assert!(image.blocks() * 512 <= 65 << 20, "{} bytes are on the machine's disk", image.blocks() * 512);
    eventually("it is told", async || {
        let hits = info(&fixture, "one").await.hits;
        hits.iter().any(|hit| matches!(hit.what, Held::Full(disk) if disk.is_full()))
    })
    .await;
    // Volumes and others have room.
    assert_eq!(
        fixture.sh("one", "head -c 80M /dev/zero > /data/big; stat -c %s /data/big").await.ok(),
        "83886080"
    );
    fixture.sh("two", "head -c 80M /dev/zero > /root/big").await.ok();
    // A full disk can be started from and emptied.
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    fixture
        .sh("one", "rm /root/big /workspace/big /tmp/big /usr/local/big /etc/big; echo room > /root/file")
        .await
        .ok();
    let room = info(&fixture, "one").await.limits.unwrap().disk.unwrap();
    assert!(room.used < full.used / 2, "{room:?}");
    assert!(fixture.engine.disk_use("one").await.unwrap() <= room.used + (1 << 20));
    fixture.engine.delete("one").await.unwrap();
    nothing_is_attached(&fixture).await;
}

#[tokio::test]
async fn a_crowd_of_files_is_bounded() {
    let fixture = Fixture::new();
    if create(&fixture, "one", &disk(MIN_DISK)).await.is_none() {
        return;
    }
    fixture.create("two").await;
    let bomb = "mkdir /root/many; cd /root/many; i=0; (while :; do : > $i; i=$((i+1)); done) 2>/dev/null; ls | wc -l";
    let made: u64 = fixture.sh("one", bomb).await.text().parse().unwrap();
    let full = info(&fixture, "one").await.limits.unwrap().disk.unwrap();
    assert!(made > 1000 && made <= full.files_limit && full.files_limit == 4096, "{made}: {full:?}");
    assert!(full.is_full(), "{full:?}");
    fixture.sh("two", "echo fine > /root/file").await.ok();
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    fixture.sh("one", "rm -r /root/many; echo fine > /root/file").await.ok();
}

#[tokio::test]
async fn its_files_outlive_every_end_and_nothing_stays_attached() {
    let fixture = Fixture::new();
    if create(&fixture, "one", &disk(MIN_DISK)).await.is_none() {
        return;
    }
    fixture.sh("one", "echo kept > /root/file; sync; stat -c %u:%g /root /workspace").await.ok();
    for which in [&[0][..], &[1], &[0, 1]] {
        let pids = pids(&fixture, "one");
        for index in which {
            let _ = kill(Pid::from_raw(pids[*index]), Signal::SIGKILL);
        }
        eventually("nothing of it runs", async || processes_in(fixture.dir.path()).is_empty()).await;
        nothing_is_attached(&fixture).await;
        fixture.engine.start("one").await.unwrap();
        assert_eq!(fixture.sh("one", "cat /root/file").await.ok(), "kept");
    }
    // A network file is written by the engine where the disk is.
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    let renamed = BoxSpec { hostname: Some("other".to_owned()), ..disk(MIN_DISK) };
    fixture.engine.reconfigure("one", &renamed).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(fixture.sh("one", "cat /etc/hostname /root/file").await.ok(), "other\nkept");
    for pid in pids(&fixture, "one") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    fixture.engine.delete("one").await.unwrap();
    nothing_is_attached(&fixture).await;
    // A creation that is cut short at any moment.
    for step in 0..12 {
        let cut = Duration::from_millis(8 * step);
        let _ =
            tokio::time::timeout(cut, fixture.engine.create("cut", &disk(MIN_DISK), &BTreeMap::new())).await;
        fixture.engine.delete("cut").await.unwrap();
        assert!(!fixture.box_dir("cut").exists());
    }
    nothing_is_attached(&fixture).await;
}

#[tokio::test]
async fn it_grows_at_a_start_and_never_shrinks() {
    let fixture = Fixture::new();
    if create(&fixture, "one", &disk(MIN_DISK)).await.is_none() {
        return;
    }
    fixture.sh("one", "echo kept > /root/file").await.ok();
    let limits = |disk| Limits { disk, ..Limits::default() };
    let set = async |disk| fixture.engine.set_limits("one", &limits(disk)).await;
    assert!(matches!(set(Some(200 << 20)).await, Err(EngineError::Running(_))));
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    set(Some(200 << 20)).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(info(&fixture, "one").await.limits.unwrap().in_force, limits(Some(200 << 20)));
    let grown = "head -c 150M /dev/zero > /root/big; stat -c %s /root/big; cat /root/file";
    assert_eq!(fixture.sh("one", grown).await.ok(), "157286400\nkept");
    for refused in [Some(MIN_DISK), None] {
        let error = set(refused).await.unwrap_err();
        assert!(matches!(&error, EngineError::Invalid(why) if why.contains("anew")), "{error}");
    }
    fixture.create("two").await;
    let error = fixture.engine.set_limits("two", &limits(Some(MIN_DISK))).await.unwrap_err();
    assert!(matches!(&error, EngineError::Invalid(why) if why.contains("anew")), "{error}");
    for odd in [0, 1, MIN_DISK - 1, u64::MAX] {
        let error = fixture.engine.create("odd", &disk(odd), &BTreeMap::new()).await.unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_it_are_like_others() {
    let fixture = Fixture::new();
    if create(&fixture, "one", &disk(MIN_DISK)).await.is_none() {
        return;
    }
    fixture.sh("one", "echo first > /root/file; rm /etc/hosts.conf 2>/dev/null; mkdir /usr/local/ours; sleep 600 & echo").await.ok();
    let shot = fixture.engine.create_snapshot("s", "one", &BTreeMap::new()).await.unwrap();
    assert!(shot.bytes < MIN_DISK, "{shot:?}");
    fixture.sh("one", "echo later > /root/file").await.ok();
    let fork = BoxSpec { snapshot: Some("s".to_owned()), ..disk(MIN_DISK) };
    create(&fixture, "two", &fork).await.unwrap();
    assert_eq!(
        fixture.sh("two", "cat /root/file; ls -d /usr/local/ours").await.ok(),
        "first\n/usr/local/ours"
    );
    // What lies under it does not count, what it writes does.
    assert_eq!(fixture.sh("two", "head -c 100M /dev/zero > /root/big; echo $?").await.text(), "1");
    // One without a limit starts from it as well, and what is stopped can be kept.
    let free = BoxSpec { snapshot: Some("s".to_owned()), ..BoxSpec::default() };
    create(&fixture, "three", &free).await.unwrap();
    fixture.sh("three", "cat /root/file; head -c 100M /dev/zero > /root/big").await.ok();
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.create_snapshot("t", "one", &BTreeMap::new()).await.unwrap();
    let again = BoxSpec { snapshot: Some("t".to_owned()), ..BoxSpec::default() };
    create(&fixture, "four", &again).await.unwrap();
    assert_eq!(fixture.sh("four", "cat /root/file").await.ok(), "later");
    for id in ["one", "two", "three", "four"] {
        fixture.engine.delete(id).await.unwrap();
    }
    for name in ["s", "t"] {
        fixture.engine.delete_snapshot(name).await.unwrap();
    }
    nothing_is_attached(&fixture).await;
}

/// How long it takes to pass 8 MiB by the device itself.
async fn seconds(fixture: &Fixture, id: &str, command: &str) -> f64 {
    let begun = Instant::now();
    let done = fixture.sh(id, command).await;
    assert_eq!(done.exit, Exit::Code(0), "{done:?}");
    begun.elapsed().as_secs_f64()
}

#[tokio::test]
async fn reading_and_writing_take_their_time() {
    const WRITE: &str = "dd if=/dev/zero of=/root/io bs=1M count=8 oflag=direct conv=notrunc 2>/dev/null";
    const READ: &str = "dd if=/root/io of=/dev/null bs=1M iflag=direct 2>/dev/null";
    const MANY: &str = "dd if=/dev/zero of=/root/io bs=4k count=200 oflag=direct conv=notrunc 2>/dev/null";
    let fixture = Fixture::new();
    let slow = IoLimits { read: Some(4 << 20), write: Some(4 << 20), ..IoLimits::default() };
    let few = IoLimits { read_ops: Some(100), write_ops: Some(100), ..IoLimits::default() };
    // In its directory, and on a disk of its own.
    for (id, disk) in [("plain", None), ("limited", Some(64 << 20))] {
        let limits = |io| Limits { io, disk, ..Limits::default() };
        let spec = BoxSpec { limits: limits(slow), ..BoxSpec::default() };
        match fixture.engine.create(id, &spec, &BTreeMap::new()).await {
            Err(EngineError::Unenforceable(message)) if !is_root() => {
                assert!(message.contains("cannot be limited here"), "{message}");
                assert!(!fixture.box_dir(id).exists(), "nothing is made");
                continue;
            }
            made => assert_eq!(made.unwrap().limits.unwrap().in_force, spec.limits),
        }
        let held = [seconds(&fixture, id, WRITE).await, seconds(&fixture, id, READ).await];
        // Another limit, and none, while it runs.
        let set = async |io| fixture.engine.set_limits(id, &limits(io)).await.unwrap();
        set(few).await;
        assert_eq!(info(&fixture, id).await.limits.unwrap().in_force, limits(few));
        let counted = seconds(&fixture, id, MANY).await;
        set(IoLimits::default()).await;
        assert_eq!(info(&fixture, id).await.limits.unwrap().in_force, limits(IoLimits::default()));
        let free = [seconds(&fixture, id, WRITE).await, seconds(&fixture, id, READ).await];
        let quick = seconds(&fixture, id, MANY).await;
        for (held, free) in held.into_iter().chain([counted]).zip(free.into_iter().chain([quick])) {
            assert!(held > 3.0 * free, "{id}: {held} s held back, {free} s without");
        }
        assert!(matches!(info(&fixture, id).await.state, BoxState::Running { .. }));
    }
}
