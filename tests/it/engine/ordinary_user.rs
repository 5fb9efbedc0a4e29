use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use super::support::is_root;

/// An account that owns nothing else; no entry in any file is needed.
const USER: u32 = 61_234;

#[test]
fn everything_works_with_a_single_id() {
    run(&["engine::"], None, "a single one");
}

/// As in a container: part of /proc is covered, and the kernel refuses a fresh one.
#[test]
fn a_host_that_refuses_a_fresh_proc_lends_its_own() {
    run(
        &["engine::lifecycle::create", "engine::exec::codes"],
        Some("mount --bind /dev/null /proc/cpuinfo || exit 1"),
        "/proc is the host's",
    );
}

/// As in a container: the state lies on an overlay itself, which cannot carry another one.
#[test]
fn a_root_that_cannot_be_overlaid_is_copied() {
    run(
        &["engine::lifecycle::create", "engine::exec", "engine::volumes"],
        Some(
            "dir=${HOME%/*}; mkdir \"$dir/upper\" \"$dir/work\" && chown --reference=\"$HOME\" \"$dir/upper\" &&
            mount -t overlay overlay -o lowerdir=\"$HOME\",upperdir=\"$dir/upper\",workdir=\"$dir/work\" \"$HOME\" || exit 1",
        ),
        "the root is a copy",
    );
}

/// In a mount namespace where the user has subordinate ids. What is mounted for that lies under /etc, which then cannot be
/// overlaid: the copy in its place is tested along.
#[test]
fn everything_works_with_subordinate_ids_and_a_copied_etc() {
    let files = tempfile::tempdir().unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    fs::write(files.path().join("passwd"), format!("{passwd}pocketenv-test:x:{USER}:{USER}::/:/bin/sh\n"))
        .unwrap();
    for name in ["subuid", "subgid"] {
        fs::write(files.path().join(name), "pocketenv-test:3000000:65536\n").unwrap();
    }
    for needed in ["/usr/bin/newuidmap", "/usr/bin/newgidmap", "/etc/subuid", "/etc/subgid"] {
        if !std::path::Path::new(needed).exists() {
            eprintln!("SKIPPED: {needed} is missing");
            return;
        }
    }
    let script = "for f in passwd subuid subgid; do mount --bind \"$1/$f\" /etc/$f || exit 1; done";
    let tests = [
        "engine::lifecycle",
        "engine::exec",
        "engine::hardening",
        "engine::images",
        "engine::build",
        "engine::export",
        "engine::volumes",
        "engine::snapshot",
    ];
    run_with(&tests, Some(script), "subordinate", files.path());
}

/// Runs tests again as an ordinary user.
pub fn run(tests: &[&str], setup: Option<&str>, choice: &str) {
    run_with(tests, setup, choice, std::path::Path::new("/"));
}

/// Runs tests again as an ordinary user, after `setup` (a script that gets `files`) in a mount namespace. One of the sandboxes'
/// choices must be `choice`.
fn run_with(filters: &[&str], setup: Option<&str>, choice: &str, files: &std::path::Path) {
    if !is_root() {
        eprintln!("SKIPPED: already an ordinary user");
        return;
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("SKIPPED: setpriv is missing");
        return;
    }
    // the build directory may be closed to others
    let dir = tempfile::Builder::new().prefix("pocketenv-user-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (tests, program, home) =
        (dir.path().join("tests"), dir.path().join("pocketenv"), dir.path().join("home"));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_pocketenv"), &program).unwrap();
    fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let mut command = match setup {
        None => Command::new("setpriv"),
        Some(setup) => {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "sh", "-c", &format!("{setup}; shift; exec setpriv \"$@\""), "sh"])
                .arg(files);
            command
        }
    };
    let output = command
        .args([
            "--reuid",
            &USER.to_string(),
            "--regid",
            &USER.to_string(),
            "--clear-groups",
            "--inh-caps=-all",
        ])
        .arg(&tests)
        .args(filters)
        .args(["--skip", "ordinary_user", "--test-threads", "2"])
        .env("POCKETENV_TEST_EXE", &program)
        .env("POCKETENV_TEST_CHOICE", choice)
        .env("TMPDIR", &home)
        .env("HOME", &home)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .current_dir(&home)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("running 0 tests"), "{text}");
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "the sandboxes left files behind");
}
