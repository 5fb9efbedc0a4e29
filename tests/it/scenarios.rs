//! Scenarios: what a user does with a manifest, and what is then true of the machine. Each is a directory of `tests/scenarios`, with its manifest
//! and its steps; those of the examples use the manifests of `examples/`.
#![allow(clippy::unwrap_used)]

#[path = "../scenarios/world.rs"]
pub mod world;

#[path = "../scenarios/bound/scenario.rs"]
mod bound;
#[path = "../scenarios/concurrency/scenario.rs"]
mod concurrency;
#[path = "../scenarios/consent/scenario.rs"]
mod consent;
#[path = "../scenarios/contents/scenario.rs"]
mod contents;
#[path = "../scenarios/crash/scenario.rs"]
mod crash;
#[path = "../scenarios/database/scenario.rs"]
mod database;
#[path = "../scenarios/disk/scenario.rs"]
mod disk;
#[path = "../scenarios/drift/scenario.rs"]
mod drift;
#[path = "../scenarios/egress/scenario.rs"]
mod egress;
#[path = "../scenarios/failure/scenario.rs"]
mod failure;
#[path = "../scenarios/fleet/scenario.rs"]
mod fleet;
#[path = "../scenarios/fork/scenario.rs"]
mod fork;
#[path = "../scenarios/inside/scenario.rs"]
mod inside;
#[path = "../scenarios/isolation/scenario.rs"]
mod isolation;
#[path = "../scenarios/lifetime/scenario.rs"]
mod lifetime;
#[path = "../scenarios/limits/scenario.rs"]
mod limits;
#[path = "../scenarios/names/scenario.rs"]
mod names;
#[path = "../scenarios/order/scenario.rs"]
mod order;
#[path = "../scenarios/pause/scenario.rs"]
mod pause;
#[path = "../scenarios/ports/scenario.rs"]
mod ports;
#[path = "../scenarios/prune/scenario.rs"]
mod prune;
#[path = "../scenarios/quickstart/scenario.rs"]
mod quickstart;
#[path = "../scenarios/saved-plan/scenario.rs"]
mod saved_plan;
#[path = "../scenarios/secrets/scenario.rs"]
mod secrets;
#[path = "../scenarios/sessions/scenario.rs"]
mod sessions;
#[path = "../scenarios/share/scenario.rs"]
mod share;
#[path = "../scenarios/state/scenario.rs"]
mod state;
#[path = "../scenarios/upgrade/scenario.rs"]
mod upgrade;
#[path = "../scenarios/watch/scenario.rs"]
mod watch;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// The account that `scripts/setup-test-deps` makes.
const USER: &str = "pocketenv-test";

#[test]
fn as_an_ordinary_user() {
    let Some(user) = nix::unistd::User::from_name(USER).unwrap() else {
        eprintln!("SKIPPED: the user {USER} is missing, see scripts/setup-test-deps");
        return;
    };
    run_as((user.uid.as_raw(), user.gid.as_raw()), &["scenarios::"]);
}

/// An account that no file lists: without a range of subordinate ids, only root exists inside.
#[test]
fn as_a_user_with_a_single_id() {
    run_as((61_235, 61_235), &["quickstart::", "contents::", "drift::", "order::", "scenarios::secrets::"]);
}

/// Runs scenarios again without privileges.
fn run_as((uid, gid): (u32, u32), filters: &[&str]) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: root is missing, the scenarios run as this user only");
        return;
    }
    // What the build made may be closed to others.
    let dir = tempfile::Builder::new().prefix("pocketenv-user-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.path().join(name);
    let (tests, program, root, home) = (path("it"), path("pocketenv"), path("root"), path("home"));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(world::program(), &program).unwrap();
    for name in ["examples", "tests/scenarios"] {
        copy_readable(&world::project_root().join(name), &root.join(name));
    }
    fs::create_dir(&home).unwrap();
    chown(&home, Some(uid), Some(gid)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups", "--inh-caps=-all"])
        .arg(&tests)
        .args(filters)
        .args(["--skip", "scenarios::as_a", "--test-threads", "2"])
        .env_clear()
        .env("POCKETENV_TEST_EXE", &program)
        .env("POCKETENV_TEST_ROOT", &root)
        .env("TMPDIR", &home)
        .env("HOME", &home)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
        .current_dir(&home)
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "as user {uid}:\n{text}");
    assert!(!text.contains("running 0 tests"), "{text}");
    eprint!("{text}");
    let left: Vec<_> = fs::read_dir(&home).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

fn copy_readable(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), &target).unwrap();
        } else if entry.path().is_dir() {
            copy_readable(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
