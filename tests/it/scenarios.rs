//! Scenarios: what a user does with a manifest, and what is then true of the machine. Each is a directory of `tests/scenarios`, with its manifest
//! and its steps; those of the examples use the manifests of `examples/`.
#![allow(clippy::unwrap_used)]

#[path = "../scenarios/world.rs"]
pub mod world;

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
#[path = "../scenarios/drift/scenario.rs"]
mod drift;
#[path = "../scenarios/failure/scenario.rs"]
mod failure;
#[path = "../scenarios/fleet/scenario.rs"]
mod fleet;
#[path = "../scenarios/inside/scenario.rs"]
mod inside;
#[path = "../scenarios/isolation/scenario.rs"]
mod isolation;
#[path = "../scenarios/order/scenario.rs"]
mod order;
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
#[path = "../scenarios/state/scenario.rs"]
mod state;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// The account that `scripts/setup-test-deps` makes.
const USER: &str = "pocketenv-test";

#[test]
fn as_an_ordinary_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: root is missing, the scenarios run as this user only");
        return;
    }
    let Some(user) = nix::unistd::User::from_name(USER).unwrap() else {
        eprintln!("SKIPPED: the user {USER} is missing, see scripts/setup-test-deps");
        return;
    };
    // What the build made may be closed to others.
    let dir = tempfile::Builder::new().prefix("pocketenv-user-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (tests, program, root, home) = (
        dir.path().join("it"),
        dir.path().join("pocketenv"),
        dir.path().join("root"),
        dir.path().join("home"),
    );
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(world::program(), &program).unwrap();
    for name in ["examples", "tests/scenarios"] {
        copy_readable(&world::project_root().join(name), &root.join(name));
    }
    fs::create_dir(&home).unwrap();
    chown(&home, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--init-groups", "--inh-caps=-all"])
        .arg(&tests)
        .args(["scenarios::", "--skip", "as_an_ordinary_user", "--test-threads", "2"])
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
    assert!(output.status.success(), "as {USER}:\n{text}");
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
