use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use super::support::is_root;

/// An account that owns nothing else; no entry in any file is needed.
const USER: u32 = 61_234;

#[test]
fn everything_works_without_privileges() {
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
    let (tests, program, home) = (dir.path().join("tests"), dir.path().join("pocketenv"), dir.path().join("home"));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_pocketenv"), &program).unwrap();
    fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--inh-caps=-all"])
        .arg(&tests)
        .args(["engine::", "--skip", "ordinary_user", "--test-threads", "2"])
        .env("POCKETENV_TEST_EXE", &program)
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
