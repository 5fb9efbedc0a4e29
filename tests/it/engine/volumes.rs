use std::collections::BTreeMap;
use std::fs;

use pocketenv::engine::{BoxSpec, EngineError, Exit, Mount, MountSource};

use super::support::Fixture;

fn with(mounts: Vec<Mount>) -> BoxSpec {
    BoxSpec { mounts, ..BoxSpec::default() }
}

fn mount(source: MountSource, target: &str, read_only: bool) -> Mount {
    Mount { source, target: target.into(), read_only }
}

#[tokio::test]
async fn volumes_are_shared_kept_and_protected() {
    let fixture = Fixture::new();
    let labels = BTreeMap::from([("project".to_owned(), "p".to_owned())]);
    let first = fixture.engine.create_volume("data", &labels).await.unwrap();
    assert_eq!(fixture.engine.create_volume("data", &BTreeMap::new()).await.unwrap(), first);
    assert_eq!(fixture.engine.list_volumes().await.unwrap(), [first]);
    let volume = || MountSource::Volume("data".into());
    fixture.create_with("writer", with(vec![mount(volume(), "/new/deep/data", false)])).await;
    fixture.create_with("reader", with(vec![mount(volume(), "/data", true)])).await;
    fixture.sh("writer", "echo shared > /new/deep/data/file; mkdir /new/deep/data/sub").await.ok();
    assert_eq!(fixture.sh("reader", "cat /data/file").await.ok(), "shared");
    assert_ne!(fixture.sh("reader", "echo no > /data/file").await.exit, Exit::Code(0));
    assert_ne!(fixture.sh("reader", "mount -o remount,rw /data").await.exit, Exit::Code(0));
    assert!(matches!(fixture.engine.delete_volume("data").await, Err(EngineError::VolumeInUse { .. })));
    fixture.engine.delete("writer").await.unwrap();
    assert_eq!(
        fixture.sh("reader", "cat /data/file").await.ok(),
        "shared",
        "deleting a sandbox keeps its volumes"
    );
    fixture.engine.delete("reader").await.unwrap();
    fixture.engine.delete_volume("data").await.unwrap();
    fixture.engine.delete_volume("data").await.unwrap();
    assert_eq!(fixture.engine.list_volumes().await.unwrap(), []);
    let missing =
        fixture.engine.create("x", &with(vec![mount(volume(), "/data", false)]), &BTreeMap::new()).await;
    assert!(matches!(missing, Err(EngineError::Invalid(_))), "{missing:?}");
}

#[tokio::test]
async fn host_directories_and_files_appear_with_their_owners() {
    let fixture = Fixture::new();
    let host = fixture.dir.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "from the host").unwrap();
    let spec = with(vec![
        mount(MountSource::Host(host.clone()), "/mnt/host", false),
        mount(MountSource::Host(host.join("file")), "/mnt/one/file", true),
        mount(MountSource::Host(host.clone()), "/etc/ro", true),
    ]);
    fixture.create_with("one", spec).await;
    assert_eq!(
        fixture
            .sh("one", "cat /mnt/host/file /mnt/one/file /etc/ro/file; stat -c ' %u' /mnt/host/file")
            .await
            .ok(),
        "from the hostfrom the hostfrom the host 0"
    );
    fixture.sh("one", "echo changed > /mnt/host/file; echo new > /mnt/host/new").await.ok();
    assert_eq!(fs::read_to_string(host.join("new")).unwrap(), "new\n");
    let owner = |path| std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap());
    assert_eq!(owner(host.join("new")), nix::unistd::geteuid().as_raw());
    assert_ne!(fixture.sh("one", "echo no > /etc/ro/file").await.exit, Exit::Code(0));

    // That they are there is looked at, not remembered; a file is known by what it is as well.
    let lost = async || fixture.engine.get("one").await.unwrap().unwrap().lost;
    assert_eq!(lost().await, [""; 0].map(std::path::PathBuf::from));
    fs::rename(&host, fixture.dir.path().join("elsewhere")).unwrap();
    assert_eq!(lost().await.len(), 3);
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "another").unwrap();
    assert_eq!(lost().await.len(), 3, "another directory at the same path");
    // The engine's own files are nobody's to share.
    for own in [fixture.dir.path().to_owned(), fixture.dir.path().join("data/engine/boxes")] {
        let spec = with(vec![mount(MountSource::Host(own.clone()), "/own", true)]);
        let refused = fixture.engine.create("two", &spec, &BTreeMap::new()).await;
        assert!(matches!(refused, Err(EngineError::Invalid(_))), "{own:?}: {refused:?}");
    }
}

#[tokio::test]
async fn targets_stay_beneath_the_root() {
    let fixture = Fixture::new();
    let outside = fixture.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fixture.create("one").await;
    fixture
        .sh("one", &format!("ln -s {} /escape; ln -s ../../../../../../.. /up", outside.display()))
        .await
        .ok();
    fixture.engine.stop("one", std::time::Duration::ZERO).await.unwrap();
    fixture.engine.create_volume("v", &BTreeMap::new()).await.unwrap();
    let volume = || MountSource::Volume("v".into());
    fixture.engine.reconfigure("one", &with(vec![mount(volume(), "/up/inside", false)])).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(fixture.sh("one", "touch /inside/x && ls /inside").await.ok(), "x");
    fixture.engine.stop("one", std::time::Duration::ZERO).await.unwrap();
    fixture.engine.reconfigure("one", &with(vec![mount(volume(), "/escape/here", false)])).await.unwrap();
    let started = fixture.engine.start("one").await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{started:?}");
    for target in ["relative", "/", "/a/../b", "/proc/x", "/dev/null"] {
        let result = fixture.engine.reconfigure("one", &with(vec![mount(volume(), target, false)])).await;
        assert!(matches!(result, Err(EngineError::Invalid(_))), "{target}");
    }
}
