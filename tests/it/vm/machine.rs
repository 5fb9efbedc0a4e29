//! A virtual machine with the distribution's kernel, systemd and control groups of version 2 alone, made by `scripts/setup-test-vm`. Its processor is software:
//! a minute may pass before it answers.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::docker::support::which;

/// How long it may take to be up, on a machine that is busy with other tests.
const UP: Duration = Duration::from_secs(480);
/// How long a command may take, unless it says otherwise.
const COMMAND: Duration = Duration::from_secs(240);
/// The version of `scripts/setup-test-vm` that this needs.
const VERSION: &str = "version-2";

/// A machine that ends with this. At every boot its disk is new, but for what is in `/data`.
pub struct Machine {
    dir: tempfile::TempDir,
    running: Option<Running>,
}

struct Running {
    child: Child,
    port: u16,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

fn place() -> PathBuf {
    if let Some(place) = std::env::var_os("POCKETENV_TEST_VM") {
        return place.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"))).unwrap();
    cache.join("pocketenv-test-vm")
}

impl Machine {
    /// Boots one; `None`, after saying what is missing, where that cannot be.
    pub fn boot() -> Option<Machine> {
        let programs = ["qemu-system-x86_64", "ssh", "mke2fs", "setpriv"];
        if let Some(program) = programs.iter().find(|program| which(program).is_none()) {
            eprintln!("SKIPPED: {program} is missing");
            return None;
        }
        if !place().join(VERSION).exists() {
            eprintln!(
                "SKIPPED: the virtual machine of the tests is missing: run scripts/setup-test-deps as root"
            );
            return None;
        }
        let dir = tempfile::Builder::new().prefix("pocketenv-vm-").tempdir_in("/tmp").unwrap();
        hand_in(dir.path());
        let data = dir.path().join("data");
        fs::File::create(&data).unwrap().set_len(2 << 30).unwrap();
        assert!(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&data).status().unwrap().success());
        let mut machine = Machine { dir, running: None };
        machine.start();
        Some(machine)
    }

    fn start(&mut self) {
        let begun = Instant::now();
        let path = |name: &str| self.dir.path().join(name);
        let drive = |file: &Path, more: &str| {
            format!("file={},format=raw,if=virtio{more}", file.to_str().unwrap().replace(',', ",,"))
        };
        // Nobody else may have the port between this and its use by QEMU; if somebody does, QEMU ends, and another one is tried.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let console = fs::File::create(path("console")).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35"])
            .args(["-cpu", "max", "-smp", "2", "-m", "1536", "-nodefaults", "-display", "none"])
            .args(["-serial", "stdio", "-no-reboot"])
            .args([
                "-append",
                "console=ttyS0 quiet net.ifnames=0 panic=-1 mitigations=off random.trust_cpu=on",
            ])
            .arg("-kernel")
            .arg(place().join("kernel"))
            .arg("-initrd")
            .arg(place().join("initrd"))
            .args(["-drive", &drive(&place().join("root.img"), ",snapshot=on")])
            .args(["-drive", &drive(&path("given"), ",read-only=on")])
            .args(["-drive", &drive(&path("data"), "")])
            // It reaches nothing; this machine reaches its SSH.
            .args(["-netdev", &format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22")])
            .args(["-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci"])
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        self.running = Some(Running { child, port });
        loop {
            if self.run_within("root", "true", UP).code == 0 {
                break;
            }
            let ended = self.running.as_mut().unwrap().child.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < UP, "it does not come up: {}", self.console());
            std::thread::sleep(Duration::from_millis(500));
        }
        self.ok(
            "root",
            // Names reach the disk within a second, contents when the kernel finds it convenient: the worst that a power cut can meet.
            "mkdir -p /given /data && mount -o ro /dev/vdb /given && mount -o commit=1 /dev/vdc /data
             ln -sf /given/pocketenv /usr/local/bin/pocketenv",
        );
        eprintln!("the virtual machine is up after {:?}", begun.elapsed());
    }

    /// Shuts it down as its owner would, and boots it again.
    pub fn reboot(&mut self) {
        // What asked for it ends with the machine.
        self.run("root", "systemctl reboot");
        let running = self.running.as_mut().unwrap();
        let deadline = Instant::now() + COMMAND;
        while running.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not go down: {}", self.console());
            std::thread::sleep(Duration::from_millis(200));
        }
        self.start();
    }

    /// Cuts its power, and boots it again: what was not on its disk by then is lost.
    pub fn cut_power(&mut self) {
        self.end();
        self.start();
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// Runs a script as a user who logged in; `ann` is an ordinary one.
    pub fn run(&self, user: &str, script: &str) -> Output {
        self.run_within(user, script, COMMAND)
    }

    pub fn run_within(&self, user: &str, script: &str, limit: Duration) -> Output {
        let port = self.running.as_ref().unwrap().port.to_string();
        let seconds = limit.as_secs().to_string();
        let output = Command::new("timeout")
            .args(["--kill-after=5", &seconds, "ssh", "-q", "-p", &port, "-i"])
            .arg(place().join("key"))
            // One login for all commands of a user.
            .args(["-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o"])
            .arg(format!("ControlPath={}/{port}-%r", self.dir.path().display()))
            .args([
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "ConnectTimeout=120", "-o", "KexAlgorithms=curve25519-sha256"])
            .args([&format!("{user}@127.0.0.1"), "sh", "-eu"])
            .stdin(script_file(script))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// What it prints, of a script that must succeed.
    #[track_caller]
    pub fn ok(&self, user: &str, script: &str) -> String {
        let output = self.run(user, script);
        assert_eq!(output.code, 0, "{script}\n{}\n{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Waits until a script succeeds, and returns what it prints.
    #[track_caller]
    pub fn eventually(&self, user: &str, script: &str) -> String {
        let deadline = Instant::now() + COMMAND;
        loop {
            let output = self.run(user, script);
            if output.code == 0 {
                return output.stdout;
            }
            assert!(Instant::now() < deadline, "never: {script}\n{}\n{}", output.stdout, output.stderr);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs tests of this program in it; each must pass, and none be skipped.
    #[track_caller]
    pub fn tests(&self, user: &str, place: &str, names: &[&str]) {
        let script = format!(
            "cd {place}; TMPDIR={place} POCKETENV_TEST_EXE=/usr/local/bin/pocketenv /given/it --test-threads 1 --nocapture --exact {} 2>&1",
            names.join(" ")
        );
        let output = self.run_within(user, &script, COMMAND * 2);
        eprintln!("as {user}:\n{}", output.stdout);
        assert_eq!(output.code, 0, "as {user}");
        let passed = format!("test result: ok. {} passed", names.len());
        assert!(output.stdout.contains(&passed) && !output.stdout.contains("SKIPPED"), "as {user}");
    }

    fn end(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        // The logins end by themselves, since their connection has ended; their sockets are of no use to the next ones.
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn script_file(script: &str) -> fs::File {
    use std::io::{Seek as _, Write as _};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(script.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

/// The disk with what is handed in: the program, its tests, and `dist/`.
fn hand_in(dir: &Path) {
    let given = dir.join("given.d");
    fs::create_dir(&given).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_pocketenv"));
    for (from, name) in [(program, "pocketenv"), (&std::env::current_exe().unwrap(), "it")] {
        let stripped = Command::new("strip").arg("-o").arg(given.join(name)).arg(from).status();
        assert!(stripped.unwrap().success(), "strip {}", from.display());
    }
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    let copied = Command::new("cp").arg("-r").args([&dist, &given]).status();
    assert!(copied.unwrap().success());
    let size: u64 =
        ["pocketenv", "it"].map(|name| fs::metadata(given.join(name)).unwrap().len()).iter().sum();
    let disk = dir.join("given");
    fs::File::create(&disk)
        .unwrap()
        .set_len((size + size / 4 + (32 << 20)).next_multiple_of(1 << 20))
        .unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
        .args([&given, &disk])
        .status();
    assert!(made.unwrap().success());
    fs::remove_dir_all(given).unwrap();
}
