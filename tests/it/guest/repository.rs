//! Repositories.

use std::collections::BTreeMap;

use pocketenv::guest::{RepositoryAccess, ServiceDefaults, bring_repository, forget_repository, observe};
use pocketenv::model::RepositorySpec;
use pocketenv::provider::GuestError;

use super::room::Room;

/// A bare repository with branches `main` (two commits) and `other`, and the tag `v1` (the first commit).
async fn remote(room: &Room) -> String {
    room.sh(&format!(
        "git config --global user.name t; git config --global user.email t@example.com; git config --global init.defaultBranch main
        cd {} && git init -q src && cd src && echo 1 >f && git add f && git commit -qm one && git tag -a -m v1 v1 && echo 2 >f && git commit -qam two &&
        git checkout -qb other v1 && echo other >g && git add g && git commit -qm other && git checkout -q main && git clone -q --bare . ../remote.git",
        room.work().display()
    ))
    .await;
    room.at("remote.git")
}

fn spec(url: &str, reference: Option<&str>) -> RepositorySpec {
    RepositorySpec {
        url: url.to_owned(),
        reference: reference.map(str::to_owned),
        depth: None,
        credentials: None,
    }
}

async fn bring(room: &Room, spec: &RepositorySpec, digest: &str) -> Result<(), GuestError> {
    let access = RepositoryAccess { env: &BTreeMap::new(), user: None, owner: None, token: None };
    bring_repository(room, &room.at("copy"), spec, digest, access).await
}

async fn in_copy(room: &Room, line: &str) -> String {
    room.sh(&format!("cd {} && {line}", room.at("copy"))).await
}

#[tokio::test]
async fn a_repository_is_cloned_recorded_and_follows_its_reference() {
    let Some(room) = Room::new() else { return };
    let url = remote(&room).await;
    bring(&room, &spec(&url, None), "d1").await.unwrap();
    assert_eq!(in_copy(&room, "cat f; git branch --show-current").await, "2\nmain");
    let look =
        async || observe(&room, &BTreeMap::new(), ServiceDefaults::default()).await.unwrap().repositories;
    let seen = look().await;
    assert_eq!((seen[&room.at("copy")].digest.as_str(), seen[&room.at("copy")].present), ("d1", true));

    for (reference, file) in [("other", "1\nother"), ("v1", "1"), ("main", "2")] {
        bring(&room, &spec(&url, Some(reference)), reference).await.unwrap();
        assert_eq!(in_copy(&room, "cat f g 2>/dev/null || :").await, file, "{reference}");
    }
    // New commits of the remote arrive; a commit by its name.
    let first = in_copy(&room, "git rev-parse v1^{commit}").await;
    room.sh(&format!(
        "cd {} && echo 3 >f && git commit -qam three && git push -q ../remote.git main",
        room.at("src")
    ))
    .await;
    bring(&room, &spec(&url, Some("main")), "d3").await.unwrap();
    assert_eq!(in_copy(&room, "cat f").await, "3");
    bring(&room, &spec(&url, Some(&first)), "d4").await.unwrap();
    assert_eq!(in_copy(&room, "cat f").await, "1");
    let missing = bring(&room, &spec(&url, Some("no-such")), "d5").await.unwrap_err().to_string();
    assert!(missing.contains("no-such"), "{missing}");
    assert_eq!(look().await[&room.at("copy")].digest, "d4");

    room.sh(&format!("rm -rf {}", room.at("copy"))).await;
    assert!(!look().await[&room.at("copy")].present);
    forget_repository(&room, &room.at("copy")).await.unwrap();
    assert!(look().await.is_empty());
}

#[tokio::test]
async fn local_work_is_never_lost() {
    let Some(room) = Room::new() else { return };
    let url = remote(&room).await;
    bring(&room, &spec(&url, Some("main")), "d1").await.unwrap();
    in_copy(&room, "echo mine >f; echo untracked >u").await;
    let error = bring(&room, &spec(&url, Some("other")), "d2").await.unwrap_err().to_string();
    assert!(error.contains("not committed"), "{error}");
    assert_eq!(in_copy(&room, "cat f u").await, "mine\nuntracked");

    // Ahead is fine, diverged is not.
    in_copy(&room, "git commit -qam mine").await;
    bring(&room, &spec(&url, Some("main")), "d1").await.unwrap();
    assert_eq!(in_copy(&room, "cat f").await, "mine");
    room.sh(&format!(
        "cd {} && echo 3 >f && git commit -qam three && git push -q ../remote.git main",
        room.at("src")
    ))
    .await;
    let error = bring(&room, &spec(&url, Some("main")), "d1").await.unwrap_err().to_string();
    assert!(error.contains("origin does not have"), "{error}");
    assert_eq!(in_copy(&room, "cat f; git status --porcelain").await, "mine\n?? u");

    // Commits on no branch.
    in_copy(&room, "git checkout -q --detach v1 && echo lost >f && git commit -qam detached").await;
    let error = bring(&room, &spec(&url, Some("other")), "d2").await.unwrap_err().to_string();
    assert!(error.contains("on no branch"), "{error}");
    assert_eq!(in_copy(&room, "cat f").await, "lost");
}

#[tokio::test]
async fn what_is_in_the_way_is_an_error_and_an_interrupted_clone_is_finished() {
    let Some(room) = Room::new() else { return };
    let url = remote(&room).await;
    room.sh(&format!("mkdir {0} && echo x >{0}/theirs", room.at("copy"))).await;
    let error = bring(&room, &spec(&url, None), "d").await.unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    // As a kill after `git init` leaves it.
    room.sh(&format!("rm {0}/theirs && git init -q {0}", room.at("copy"))).await;
    let shallow = RepositorySpec { depth: Some(1), ..spec(&format!("file://{url}"), Some("main")) };
    bring(&room, &shallow, "d").await.unwrap();
    assert_eq!(in_copy(&room, "cat f; git rev-list --count HEAD").await, "2\n1");
    for bad in ["--upload-pack=x", "a b", "", "x^{tree}"] {
        assert!(bring(&room, &spec(&url, Some(bad)), "d").await.is_err(), "{bad:?}");
    }
    assert!(bring(&room, &spec("--upload-pack=touch x", None), "d").await.is_err());
}

#[tokio::test]
async fn a_token_reaches_git_and_no_disk() {
    let Some(room) = Room::new() else { return };
    let url = remote(&room).await;
    // In place of ssh: it asks for name and password as https would, notes them in memory, and runs what git wants.
    let helper = "#!/bin/sh\n\"$GIT_ASKPASS\" Username >/run/helper/user\n\"$GIT_ASKPASS\" Password >/run/helper/password\nshift\nexec sh -c \"$*\"\n";
    std::fs::write(room.at("ssh"), helper).unwrap();
    room.sh(&format!(
        "mkdir /run/helper && cp {} /run/helper/ssh && chmod 755 /run/helper/ssh",
        room.at("ssh")
    ))
    .await;
    let env = BTreeMap::from([
        ("GIT_SSH_COMMAND".to_owned(), "/run/helper/ssh".to_owned()),
        ("GIT_SSH_VARIANT".to_owned(), "simple".to_owned()),
    ]);
    let token = secrecy::SecretString::from("t0ken-t0ken".to_owned());
    let access = RepositoryAccess { env: &env, user: None, owner: None, token: Some(&token) };
    let spec = spec(&format!("ssh://host{url}"), Some("main"));
    bring_repository(&room, &room.at("copy"), &spec, "d", access).await.unwrap();
    assert_eq!(room.sh("cat /run/helper/user /run/helper/password").await, "x-access-token\nt0ken-t0ken");
    assert!(!room.argument_with("t0ken"), "in an argument");
    let found = std::process::Command::new("grep").arg("-rl").arg("t0ken").arg(room.root()).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "", "on disk");
    let with_password = RepositorySpec { url: "https://u:p@example.com/r".to_owned(), ..spec };
    assert!(bring_repository(&room, &room.at("copy"), &with_password, "d", access).await.is_err());
}

#[tokio::test]
async fn a_working_copy_belongs_to_its_user_and_to_the_next_one() {
    let Some(room) = Room::new() else { return };
    let url = remote(&room).await;
    // The remote is root's, which git is told to excuse; the working copy is not.
    let shared = room
        .sh(&format!("chmod 755 {} && mkdir /run/copies /run/home && git config --file /run/home/.gitconfig safe.directory {url} && echo /run/copies/r", room.root().display()))
        .await;
    let as_user = async |user: Option<&str>, reference: &str| {
        let env = BTreeMap::from([("HOME".to_owned(), "/run/home".to_owned())]);
        let access = RepositoryAccess { env: &env, user, owner: user, token: None };
        bring_repository(&room, &shared, &spec(&url, Some(reference)), reference, access).await.unwrap();
        room.sh(&format!("stat -c %u {shared} {shared}/.git {shared}/f | sort -u")).await
    };
    assert_eq!(as_user(Some("4321"), "v1").await, "4321");
    assert_eq!(as_user(Some("4322"), "main").await, "4322");
    assert_eq!(as_user(None, "v1").await, "0");
}
