//! Copies between host and sandboxes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pocketenv::guest::tree::scan;
use pocketenv::guest::{End, copy_between, copy_in, copy_out};

use super::room::Room;

/// A directory with everything that is easily lost.
fn sample() -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    std::fs::create_dir_all(at("sub/deep")).unwrap();
    std::fs::create_dir(at("empty")).unwrap();
    std::fs::write(at("sub/deep/-ünï \\code"), (0..=255).cycle().take(300_000).collect::<Vec<u8>>()).unwrap();
    std::fs::write(at("tool"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(at("tool"), std::fs::Permissions::from_mode(0o751)).unwrap();
    std::os::unix::fs::symlink("../tool", at("sub/link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", at("dangling")).unwrap();
    std::fs::write(at("nothing"), "").unwrap();
    host
}

#[tokio::test]
async fn a_directory_goes_in_and_comes_out_the_same() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let host = sample();
        let to = room.at("new/place");
        assert_eq!(copy_in(&room, host.path(), &to, None).await.unwrap(), to);
        assert_eq!(scan(Path::new(&to)).unwrap(), scan(host.path()).unwrap());
        // Again: the directory is there now, so it goes below it, under its own name.
        let name = host.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(copy_in(&room, host.path(), &to, None).await.unwrap(), format!("{to}/{name}"));

        let back = tempfile::tempdir().unwrap();
        let target =
            copy_out(&room, &room.at("new/place/sub"), &back.path().join("sub"), None).await.unwrap();
        assert_eq!(scan(&target).unwrap(), scan(&host.path().join("sub")).unwrap());
        let second = copy_out(&room, &to, back.path(), None).await.unwrap();
        assert_eq!(second, back.path().join("place"));
    }
}

#[tokio::test]
async fn ignored_files_stay_behind() {
    let Some(room) = Room::new() else { return };
    let host = sample();
    std::fs::write(host.path().join(".gitignore"), "tool\nempty/\n").unwrap();
    let to = copy_in(&room, host.path(), &room.at("x"), None).await.unwrap();
    assert!(!Path::new(&to).join("tool").exists() && !Path::new(&to).join("empty").exists());
    assert!(Path::new(&to).join("nothing").exists());
}

#[tokio::test]
async fn single_files_with_the_rules_of_cp() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let host = sample();
        let tool = host.path().join("tool");
        assert_eq!(copy_in(&room, &tool, &room.at("renamed"), None).await.unwrap(), room.at("renamed"));
        assert_eq!(copy_in(&room, &tool, &room.at("dir/"), None).await.unwrap(), room.at("dir/tool"));
        let mode = std::fs::metadata(room.at("dir/tool")).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o751);
        let out = host.path().join("back");
        assert_eq!(copy_out(&room, &room.at("renamed"), &out, None).await.unwrap(), out);
        assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&tool).unwrap());
        assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o751);
        let missing = copy_out(&room, &room.at("missing"), &out, None).await.unwrap_err().to_string();
        assert!(missing.contains("does not exist"), "{missing}");
        assert!(copy_in(&room, &host.path().join("missing"), &room.at("x"), None).await.is_err());
        assert!(copy_in(&room, &tool, "/proc/x", None).await.is_err());
        assert_eq!(room.sh(&format!("ls -A {}", room.work().display())).await, "dir\nrenamed");
    }
}

#[tokio::test]
async fn between_two_sandboxes() {
    let (Some(first), Some(second)) = (Room::new(), Room::busybox()) else { return };
    let host = sample();
    copy_in(&first, host.path(), &first.at("data"), None).await.unwrap();
    fn end<'a>(guest: &'a Room, path: &'a str) -> End<'a> {
        End { guest, path, user: None }
    }
    let data = (first.at("data"), second.at("data"));
    let to = copy_between(&end(&first, &data.0), &end(&second, &data.1)).await.unwrap();
    assert_eq!(scan(Path::new(&to)).unwrap(), scan(host.path()).unwrap());
    let tool = (first.at("data/tool"), second.at("t"));
    copy_between(&end(&first, &tool.0), &end(&second, &tool.1)).await.unwrap();
    assert_eq!(std::fs::read(second.at("t")).unwrap(), b"#!/bin/sh\n");
    // A side that fails ends the other.
    let (from, to) = (end(&first, &data.0), end(&second, "/proc/no/such"));
    let failing = copy_between(&from, &to);
    let failed = tokio::time::timeout(std::time::Duration::from_secs(20), failing).await.unwrap();
    assert!(failed.is_err());
}
