//! Files, directories, secrets and environment.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pocketenv::guest::tree::{scan, tree_sha256};
use pocketenv::guest::{
    Bundle, Content, EnvBundle, FileToWrite, ServiceDefaults, environment, observe, write_bundle,
};
use pocketenv::model::{FileState, ObservedGuest, sha256_hex};

use super::room::Room;

fn inline(path: &str, bytes: &[u8]) -> FileToWrite {
    FileToWrite {
        path: path.to_owned(),
        digest: sha256_hex(bytes),
        mode: None,
        owner: None,
        content: Content::Inline(bytes.to_vec()),
    }
}

fn host_tree(path: &str, root: &Path) -> FileToWrite {
    let sha256 = tree_sha256(&scan(root).unwrap());
    FileToWrite {
        path: path.to_owned(),
        digest: sha256.clone(),
        mode: None,
        owner: None,
        content: Content::HostTree { path: root.to_owned(), sha256, ignore: None },
    }
}

fn files(files: Vec<FileToWrite>) -> Bundle {
    Bundle { files, ..Bundle::default() }
}

fn remove(path: &str) -> Bundle {
    Bundle { remove: vec![path.to_owned()], ..Bundle::default() }
}

async fn look(room: &Room) -> ObservedGuest {
    observe(room, &BTreeMap::new(), ServiceDefaults::default()).await.unwrap()
}

async fn state(room: &Room, path: &str) -> Option<FileState> {
    look(room).await.files.get(path).map(|file| file.state)
}

fn mode(path: &str) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_fresh_sandbox_is_an_empty_answer_and_stays_untouched() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        assert_eq!(look(&room).await, ObservedGuest::default());
        assert_eq!(room.sh("ls -A /var/lib /run").await, "/run:\n\n/var/lib:");
        assert!(environment(&room).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn files_are_written_seen_repaired_and_removed() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let (text, odd) = (room.at("new/folder/a file"), room.at("b\\ück"));
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let bundle = files(vec![
            inline(&text, b"hello\n"),
            FileToWrite { mode: Some(0o4750), ..inline(&odd, &bytes) },
        ]);
        write_bundle(&room, &bundle).await.unwrap();
        assert_eq!(std::fs::read(&odd).unwrap(), bytes);
        assert_eq!((mode(&text), mode(&odd)), (0o644, 0o4750));
        let seen = look(&room).await;
        assert_eq!(seen.files[&text].digest, sha256_hex(b"hello\n"));
        assert!(seen.files.values().all(|file| file.state == FileState::InPlace), "{seen:?}");

        std::fs::write(&text, "changed").unwrap();
        assert_eq!(state(&room, &text).await, Some(FileState::Modified));
        write_bundle(&room, &bundle).await.unwrap();
        assert_eq!(state(&room, &text).await, Some(FileState::InPlace));
        std::fs::set_permissions(&text, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(state(&room, &text).await, Some(FileState::Modified));
        std::fs::remove_file(&odd).unwrap();
        assert_eq!(state(&room, &odd).await, Some(FileState::Missing));

        write_bundle(&room, &remove(&text)).await.unwrap();
        assert!(!Path::new(&text).exists());
        assert_eq!(state(&room, &text).await, None);
        assert_eq!(room.sh("ls -A /run/pocketenv/stage").await, "mem\nroot\nvar", "nothing staged is left");
        assert_eq!(room.sh("ls -A /run/pocketenv").await, "secrets\nstage", "nothing staged is left");
        assert_eq!(room.sh(&format!("ls -A {}", room.at("new/folder"))).await, "");
    }
}

#[tokio::test]
async fn a_file_in_place_of_a_directory_is_refused_and_not_recorded() {
    let Some(room) = Room::new() else { return };
    let path = room.at("taken");
    std::fs::create_dir(&path).unwrap();
    let error = write_bundle(&room, &files(vec![inline(&path, b"x")])).await.unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
    let seen = look(&room).await;
    assert!(seen.files.get(&path).is_none_or(|file| file.state != FileState::InPlace), "{seen:?}");
}

#[tokio::test]
async fn a_directory_keeps_modes_links_empty_directories_and_what_others_put_there() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let host = tempfile::tempdir().unwrap();
        let at = |name: &str| host.path().join(name);
        std::fs::create_dir_all(at("sub/deep")).unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        std::fs::write(at("run.sh"), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(at("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(at("sub/deep/ünï\\code"), [0, 1, 2, 255]).unwrap();
        std::os::unix::fs::symlink("../run.sh", at("sub/link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", at("dangling")).unwrap();
        std::fs::write(at(".pocketenvignore"), "*.log\n").unwrap();
        std::fs::write(at("x.log"), "not wanted").unwrap();
        for number in 0..210 {
            std::fs::write(at(&format!("sub/file-{number}")), number.to_string()).unwrap();
        }
        let path = room.at("data");
        write_bundle(&room, &files(vec![host_tree(&path, host.path())])).await.unwrap();
        assert_eq!(state(&room, &path).await, Some(FileState::InPlace));
        assert_eq!(scan(host.path()).unwrap(), scan(Path::new(&path)).unwrap());
        assert!(!Path::new(&format!("{path}/x.log")).exists());

        // Drift of every kind is seen, and repaired.
        for drift in [
            "echo x >> sub/file-7",
            "chmod 600 run.sh",
            "rm sub/file-9",
            "rmdir empty",
            "ln -sfn elsewhere sub/link",
            "rm run.sh; mkdir run.sh; rmdir run.sh; ln -s /etc/passwd run.sh",
        ] {
            room.sh(&format!("cd {path} && {drift}")).await;
            assert_eq!(state(&room, &path).await, Some(FileState::Modified), "{drift}");
            write_bundle(&room, &files(vec![host_tree(&path, host.path())])).await.unwrap();
            assert_eq!(state(&room, &path).await, Some(FileState::InPlace), "{drift}");
        }

        // What the new tree does not have goes; what others put there stays; a directory may become a file.
        std::fs::write(format!("{path}/theirs"), "kept").unwrap();
        std::fs::remove_dir_all(at("sub")).unwrap();
        std::fs::write(at("sub"), "a file now").unwrap();
        write_bundle(&room, &files(vec![host_tree(&path, host.path())])).await.unwrap();
        assert_eq!(std::fs::read_to_string(format!("{path}/sub")).unwrap(), "a file now");
        assert_eq!(state(&room, &path).await, Some(FileState::InPlace));
        write_bundle(&room, &remove(&path)).await.unwrap();
        let left: Vec<_> =
            std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["theirs"]);
    }
}

#[tokio::test]
async fn a_host_file_that_changed_since_the_plan_is_refused_and_nothing_is_written() {
    let Some(room) = Room::new() else { return };
    let host = tempfile::tempdir().unwrap();
    let source = host.path().join("f");
    std::fs::write(&source, "one").unwrap();
    let file = |sha256: String| FileToWrite {
        path: room.at("f"),
        digest: "d".to_owned(),
        mode: None,
        owner: None,
        content: Content::HostFile { path: source.clone(), sha256, mode: 0o640 },
    };
    let bundle = files(vec![inline(&room.at("first"), b"1"), file(sha256_hex(b"other"))]);
    let error = write_bundle(&room, &bundle).await.unwrap_err();
    assert!(error.to_string().contains("changed since"), "{error}");
    assert!(!Path::new(&room.at("first")).exists());
    write_bundle(&room, &files(vec![file(sha256_hex(b"one"))])).await.unwrap();
    assert_eq!((mode(&room.at("f")), std::fs::read(room.at("f")).unwrap()), (0o640, b"one".to_vec()));
}

#[tokio::test]
async fn the_environment_is_whole_and_its_change_is_seen() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let values: BTreeMap<String, String> = [
            ("PLAIN", "a b"),
            ("LINES", "one\ntwo\n"),
            ("QUOTES", "'\"$(rm -rf /)`\\"),
            ("EMPTY", ""),
            ("EQUALS", "a=b=c"),
            ("UNICODE", "grüße \u{1}\u{7f}"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let env = |digest: &str| {
            let values = values.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
            Bundle { env: Some(EnvBundle { digest: digest.to_owned(), values }), ..Bundle::default() }
        };
        write_bundle(&room, &env("e1")).await.unwrap();
        assert_eq!(environment(&room).await.unwrap(), values);
        assert_eq!(look(&room).await.env.as_deref(), Some("e1"));
        room.sh("printf x >> /run/pocketenv/env").await;
        assert_eq!(look(&room).await.env, None);
        write_bundle(&room, &env("e2")).await.unwrap();
        assert_eq!(look(&room).await.env.as_deref(), Some("e2"));
        assert_eq!(room.sh("stat -c %a /run/pocketenv/env").await, "600");
    }
}

#[tokio::test]
async fn a_secret_never_lies_on_disk() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let secret = |path: &str| FileToWrite {
            path: path.to_owned(),
            digest: "s".to_owned(),
            mode: None,
            owner: None,
            content: Content::Secret("hunter2-hunter2".to_owned().into()),
        };
        let on_disk = room.at("etc/token");
        let bundle = files(vec![secret("/run/secrets/db"), secret(&on_disk)]);
        write_bundle(&room, &bundle).await.unwrap();
        assert_eq!(room.sh("cat /run/secrets/db; stat -c %a /run/secrets/db").await, "hunter2-hunter2400");
        assert_eq!(room.sh(&format!("cat {on_disk}")).await, "hunter2-hunter2");
        assert!(std::fs::read_link(&on_disk).unwrap().starts_with("/run/pocketenv"));
        assert!(!room.argument_with("hunter2"), "in an argument");
        let found = std::process::Command::new("grep").arg("-rl").arg("hunter2").arg(room.root()).output();
        assert_eq!(String::from_utf8(found.unwrap().stdout).unwrap(), "", "on disk");
        assert_eq!(state(&room, "/run/secrets/db").await, Some(FileState::InPlace));
        assert_eq!(state(&room, &on_disk).await, Some(FileState::InPlace));

        // A stop takes the memory away: the record does not claim what is gone.
        room.sh("rm -rf /run/pocketenv /run/secrets").await;
        assert_eq!(state(&room, "/run/secrets/db").await, Some(FileState::Missing));
        assert_eq!(state(&room, &on_disk).await, Some(FileState::Missing));
        write_bundle(&room, &bundle).await.unwrap();
        assert_eq!(state(&room, &on_disk).await, Some(FileState::InPlace));
        room.sh(&format!("chmod 600 {on_disk}; echo > {on_disk}")).await;
        assert_eq!(state(&room, &on_disk).await, Some(FileState::Modified));
        write_bundle(&room, &remove(&on_disk)).await.unwrap();
        assert!(std::fs::symlink_metadata(&on_disk).is_err());
    }
}

#[tokio::test]
async fn without_tar_the_same_is_written_one_by_one() {
    let Some(room) = Room::busybox() else { return };
    std::fs::remove_file(room.root().join("bb/tar")).unwrap();
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("sub")).unwrap();
    std::fs::write(host.path().join("sub/f"), "x").unwrap();
    std::os::unix::fs::symlink("sub/f", host.path().join("link")).unwrap();
    let path = room.at("data");
    let bundle = files(vec![inline(&room.at("one"), b""), host_tree(&path, host.path())]);
    write_bundle(&room, &bundle).await.unwrap();
    assert_eq!(state(&room, &path).await, Some(FileState::InPlace));
    assert_eq!(state(&room, &room.at("one")).await, Some(FileState::InPlace));
}

#[tokio::test]
async fn paths_that_cannot_be_managed_are_refused() {
    let Some(room) = Room::new() else { return };
    for path in ["relative", "/a/../b", "/a//b", "/a/", "/", "/a\tb", "/a\nb", ""] {
        assert!(write_bundle(&room, &files(vec![inline(path, b"")])).await.is_err(), "{path:?}");
    }
}

#[tokio::test]
async fn an_ordinary_user_has_state_of_its_own() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten().map(Room::ordinary) {
        let secret = FileToWrite {
            content: Content::Secret("hunter2".to_owned().into()),
            ..inline(&room.at("s"), b"")
        };
        let values = BTreeMap::from([("A".to_owned(), "1".to_owned().into())]);
        let env = Some(EnvBundle { digest: "e".to_owned(), values });
        let bundle = Bundle { env, ..files(vec![inline(&room.at("f"), b"x"), secret]) };
        write_bundle(&room, &bundle).await.unwrap();
        let seen = look(&room).await;
        assert_eq!((seen.env.as_deref(), seen.files.len()), (Some("e"), 2));
        assert!(seen.files.values().all(|file| file.state == FileState::InPlace), "{seen:?}");
        assert!(std::fs::read_link(room.at("s")).unwrap().starts_with("/dev/shm/pocketenv-12345"));
        assert!(write_bundle(&room, &files(vec![inline("/etc/mine", b"")])).await.is_err());
        let service = super::service::script("id -u; exec sleep 1000");
        super::service::start(&room, "web", &service).await;
        super::room::eventually("it wrote", || async {
            std::fs::read(room.at(".pocketenv/log/web/log")).is_ok_and(|bytes| bytes == b"12345\n")
        })
        .await;
        pocketenv::guest::remove_service(&room, "web").await.unwrap();
        assert!(look(&room).await.services.is_empty());
    }
}

#[tokio::test]
async fn an_interrupted_write_is_seen_and_finished_by_the_next() {
    let Some(room) = Room::new() else { return };
    let path = room.at("f");
    write_bundle(&room, &files(vec![inline(&path, b"one")])).await.unwrap();
    // Killed after the new content and before its record, with everything that is staged left behind.
    room.sh(&format!(
        "cd /var/lib/pocketenv/files && printf 'F\\t-\\t-\\t-\\t%s\\n' {path} > \"$(ls *.rec)\" && printf two > {path} && \
        echo x > /run/pocketenv/new.old && echo nonsense > /run/pocketenv/stage/control && mkdir -p {0}/.pocketenv-old && echo x > {0}/.pocketenv-old/f",
        room.work().display()
    ))
    .await;
    let seen = look(&room).await;
    assert_eq!((seen.files[&path].digest.as_str(), seen.files[&path].state), ("", FileState::Modified));
    write_bundle(&room, &files(vec![inline(&path, b"two")])).await.unwrap();
    assert_eq!(state(&room, &path).await, Some(FileState::InPlace));
    assert_eq!(
        room.sh(&format!("ls -A {} /run/pocketenv | grep -e - -e new || :", room.work().display())).await,
        ""
    );
}

#[tokio::test]
async fn what_is_written_belongs_to_its_owner_with_the_directories_made_for_it() {
    for room in [Room::new(), Room::busybox()].into_iter().flatten() {
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("sub")).unwrap();
        std::fs::write(host.path().join("sub/f"), "f").unwrap();
        let owned = |file: FileToWrite, owner: &str| FileToWrite { owner: Some(owner.to_owned()), ..file };
        let secret =
            FileToWrite { content: Content::Secret("s".to_owned().into()), ..inline("/run/secrets/s", b"s") };
        let bundle = files(vec![
            owned(inline(&room.at("deep/er/a"), b"a"), "4321"),
            inline(&room.at("b"), b"b"),
            owned(inline(&room.at("c"), b"c"), "4321:7"),
            owned(host_tree(&room.at("tree"), host.path()), "4321"),
            owned(secret, "4322"),
        ]);
        write_bundle(&room, &bundle).await.unwrap();
        let work = room.work().display().to_string();
        let stat = format!(
            "cd {work} && stat -c '%u:%g' deep deep/er deep/er/a b c tree tree/sub tree/sub/f /run/secrets/s"
        );
        let mut expected = vec!["4321:4321"; 3];
        expected.extend(["0:0", "4321:7", "4321:4321", "4321:4321", "4321:4321", "4322:4322"]);
        assert_eq!(room.sh(&stat).await.lines().collect::<Vec<_>>(), expected);
        assert_eq!(room.sh(&format!("stat -c %u {work}")).await, "0", "what was there stays whose it was");
        assert!(look(&room).await.files.values().all(|file| file.state == FileState::InPlace));
    }
}

#[tokio::test]
async fn whoever_is_not_root_gives_nothing_away() {
    let Some(room) = Room::new() else { return };
    let room = room.ordinary();
    let path = room.at("a");
    for (owner, fine) in [("12345", true), ("root", true), ("54321", false)] {
        let file = FileToWrite { owner: Some(owner.to_owned()), ..inline(&path, owner.as_bytes()) };
        match write_bundle(&room, &files(vec![file])).await {
            Ok(()) => assert!(fine, "{owner}"),
            Err(error) => {
                assert!(
                    !fine && error.to_string().contains("files cannot be given to 54321"),
                    "{owner}: {error}"
                );
            }
        }
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"root");
}
