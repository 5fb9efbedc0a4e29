//! Vendors' SDKs as `scripts/setup-test-deps` installs them, and an emulator in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::scenarios::world::{program, project_root};

/// Where the SDKs are; `None`, with a word, if they are not there.
pub fn sdks() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let chosen = std::env::var_os("POCKETENV_TEST_SDKS").map(PathBuf::from);
    let dir = chosen.or_else(|| Some(cache?.join("pocketenv-test-sdks")))?;
    let lock = |name: &str| std::fs::read(project_root().join("tests/sdk").join(name)).ok();
    let installed = |name: &str| std::fs::read(dir.join(name)).ok();
    for name in ["requirements.txt", "package-lock.json"] {
        if installed(name).is_none() || installed(name) != lock(name) {
            println!("SKIPPED: the SDKs of vendors are missing or old, see scripts/setup-test-deps");
            return None;
        }
    }
    Some(dir)
}

/// The engine's sandboxes, as the disk has them.
pub fn boxes(home: &Path) -> Vec<String> {
    below(home, "boxes")
}

/// What else the engine keeps: nothing outlives an emulator that is not told to keep it.
pub fn kept(home: &Path) -> Vec<String> {
    ["snapshots", "volumes"].into_iter().flat_map(|of| below(home, of)).collect()
}

fn below(home: &Path, of: &str) -> Vec<String> {
    let entries = std::fs::read_dir(home.join("pocketenv/data/engine").join(of));
    entries.into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// A running emulator. It ends, and its sandboxes with it, when this is dropped.
pub struct Emulator {
    vendor: &'static str,
    child: Child,
    pub url: String,
    home: PathBuf,
}

impl Emulator {
    /// Starts one of a vendor whose things are below `home`.
    pub fn start(vendor: &'static str, home: &Path, arguments: &[&str]) -> Self {
        let mut child = pocketenv(home)
            .args(["emulate", vendor, "--quiet", "--until-stdin-ends", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://127.0.0.1:"), "the emulator did not come up: {url:?}");
        Self { vendor, child, url: url.trim().to_owned(), home: home.to_owned() }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    /// A program with the variables that lead an SDK here.
    pub fn program(&self, name: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(name);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.home)
            .env("E2B_API_URL", &self.url)
            .env("E2B_SANDBOX_URL", &self.url)
            .env("E2B_API_KEY", "local")
            .env("DAYTONA_API_URL", &self.url)
            .env("DAYTONA_API_KEY", "local")
            .stdin(Stdio::null());
        command
    }

    /// Runs one of the programs of `tests/sdk/VENDOR`, which says what differs and fails.
    pub fn python(&self, sdks: &Path, name: &str) {
        let mut command = self.program(sdks.join("venv/bin/python"));
        let programs = project_root().join("tests/sdk");
        command.env("PYTHONPATH", &programs).arg("-B").arg(programs.join(self.vendor).join(name));
        succeeds(command);
    }

    /// The same in JavaScript.
    pub fn node(&self, sdks: &Path, name: &str) {
        // A module finds its packages above itself, so it runs where they are.
        let copy = sdks.join(format!(".{}-{name}", std::process::id()));
        std::fs::copy(project_root().join("tests/sdk").join(self.vendor).join(name), &copy).unwrap();
        let copy = Removed(copy);
        let mut command = self.program("node");
        command.arg(&copy.0);
        succeeds(command);
    }
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn succeeds(mut command: Command) {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim() == "ok", "{command:?}: {}\n{out}{err}", output.status);
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Its sandboxes are to go with it, so it is asked first.
        drop(self.child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while std::time::Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, with everything below `home`.
pub fn pocketenv(home: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("POCKETENV_HOME", home.join("pocketenv"))
        .current_dir(home)
        .stdin(Stdio::null());
    command
}
