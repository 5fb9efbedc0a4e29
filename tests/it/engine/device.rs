//! Devices are given by name, and only those.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use pocketenv::engine::{BoxSpec, Device, EngineError};

use super::support::{Fixture, is_root, request};

/// `KVM_GET_API_VERSION` and `KVM_CREATE_VM` of linux/kvm.h.
const ASK: &str = "import fcntl, os
kvm = os.open('/dev/kvm', os.O_RDWR)
print(fcntl.ioctl(kvm, 0xAE00, 0), fcntl.ioctl(kvm, 0xAE01, 0) > 0)";

#[tokio::test]
async fn a_device_is_there_for_who_names_it() {
    let fixture = Fixture::new();
    fixture.create("without").await;
    assert_eq!(fixture.sh("without", "ls -d /dev/kvm /dev/fuse /dev/dri 2>/dev/null").await.text(), "");
    let spec = BoxSpec { devices: vec![Device::Kvm], ..BoxSpec::default() };
    let created = fixture.engine.create("with", &spec, &Default::default()).await;
    let node = fs::symlink_metadata("/dev/kvm").ok().filter(|node| node.file_type().is_char_device());
    let Some(node) = node else {
        let error = created.unwrap_err();
        assert!(
            matches!(&error, EngineError::Invalid(why) if why.contains("no device `kvm` (/dev/kvm)")),
            "{error}"
        );
        assert!(!fixture.box_dir("with").exists());
        return;
    };
    if !is_root() && fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        // What this user may not open is not given to a sandbox of this user, and that is said before anything runs in it.
        let error = created.unwrap_err();
        assert!(
            matches!(&error, EngineError::Launch { step, .. } if step == "open /dev/kvm as root inside"),
            "{error}"
        );
        return;
    }
    let created = created.unwrap();
    assert!(created.choices.contains(&"device: /dev/kvm".to_owned()), "{:?}", created.choices);
    let seen = fixture.sh("with", "stat -c '%u %a %t %T' /dev/kvm; ls /dev").await.ok();
    let (major, minor) = (nix::sys::stat::major(node.rdev()), nix::sys::stat::minor(node.rdev()));
    assert!(seen.starts_with(&format!("0 600 {major:x} {minor:x}\n")), "root inside has it alone: {seen}");
    assert!(!seen.contains("fuse") && !seen.contains("dri"), "{seen}");
    if Path::new("/usr/bin/python3").exists() {
        assert_eq!(
            fixture.run("with", request(["/usr/bin/python3", "-c", ASK])).await.unwrap().ok(),
            "12 True"
        );
    }
    // It is there after a stop, and no other device can be made.
    fixture.engine.stop("with", std::time::Duration::ZERO).await.unwrap();
    fixture.engine.start("with").await.unwrap();
    assert_eq!(
        fixture
            .sh(
                "with",
                ": <>/dev/kvm && echo open; mknod /dev/mem c 1 1 2>/dev/null; ls /dev/mem 2>/dev/null"
            )
            .await
            .text(),
        "open"
    );
    fixture.engine.delete("with").await.unwrap();
    assert!(!fixture.box_dir("with").exists());
}
