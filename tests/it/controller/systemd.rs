//! The units of `dist/` under a real systemd: one of its own, in namespaces of its own, since it must be the first process.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::support::{Forge, Served, cloud, run};
use crate::docker::support::which;
use crate::scenarios::world::program;
use crate::sim::world::count;

/// How long something may take to become true.
const DEADLINE: Duration = Duration::from_secs(90);
const UNIT: &str = "pocketenv-controller";

/// A systemd that ends with this.
struct Machine {
    child: Child,
    /// The first process, as this machine counts.
    first: String,
    dir: tempfile::TempDir,
}

impl Machine {
    /// Starts one; `None`, after saying what is missing, where that cannot be.
    fn start() -> Option<Machine> {
        if !crate::engine::support::is_root() {
            eprintln!("SKIPPED: a systemd of its own needs root");
            return None;
        }
        let programs = ["setpriv", "unshare", "nsenter", "systemctl", "useradd", "pivot_root"];
        let missing = programs.iter().find(|program| which(program).is_none());
        let systemd = Path::new("/lib/systemd/systemd");
        if missing.is_some() || !systemd.exists() {
            eprintln!("SKIPPED: {} is missing", missing.map_or("systemd", |program| program));
            return None;
        }
        let dir = tempfile::Builder::new().prefix("pocketenv-systemd-").tempdir().unwrap();
        // What is inside is for the user of the service as well.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for place in ["var/lib", "var/log", "var/tmp", "var/install"] {
            fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        fs::set_permissions(dir.path().join("var/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/controller/systemd.sh");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "sh"])
            .args([&script, dir.path(), &program()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut machine = Machine { child, first: String::new(), dir };
        let deadline = Instant::now() + DEADLINE;
        loop {
            // Each program of the chain becomes the next one; only the last one has a child.
            let pid = machine.child.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            machine.first = children.split_whitespace().next().unwrap_or_default().to_owned();
            if !machine.first.is_empty() {
                let state = machine.run(&["systemctl", "is-system-running"]);
                if state.status.success() {
                    return Some(machine);
                }
            }
            if machine.child.try_wait().unwrap().is_some() {
                let why = machine.log().lines().last().unwrap_or_default().to_owned();
                eprintln!("SKIPPED: a systemd of its own does not start here: {why}");
                return None;
            }
            assert!(Instant::now() < deadline, "systemd does not come up: {}", machine.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A path in it, as this machine sees it.
    fn var(&self, path: &str) -> PathBuf {
        self.dir.path().join("var").join(path)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Runs a program in it, as root.
    fn run(&self, command: &[&str]) -> Output {
        Command::new("nsenter")
            .args(["--target", &self.first, "--mount", "--pid", "--ipc", "--uts", "--"])
            .args(command)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What it prints, of a run that must succeed.
    #[track_caller]
    fn says(&self, command: &[&str]) -> String {
        let output = self.run(command);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command:?}: {out}{err}\n{}\n{}", self.log(), self.told());
        out.trim_end().to_owned()
    }

    /// What the service printed.
    fn told(&self) -> String {
        fs::read_to_string(self.var("log/controller.err")).unwrap_or_default()
    }

    /// Installs and starts the controller as the files say of themselves.
    fn install(&self, config: &str, env: &str, names: &[&str]) {
        let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
        let mut steps = String::new();
        for name in names {
            let text = fs::read_to_string(dist.join(name)).unwrap();
            fs::write(self.var("install").join(name), &text).unwrap();
            steps.extend(text.lines().filter_map(|line| line.strip_prefix("#   ")).map(|l| format!("{l}\n")));
        }
        fs::write(self.var("install/controller.yaml"), config).unwrap();
        // There is no journal here; and the port is chosen when it starts.
        let more = "[Service]\nStandardOutput=append:/var/log/controller.out\nStandardError=append:/var/log/controller.err\n";
        fs::write(self.var("install/test.conf"), more).unwrap();
        fs::write(self.var("install/controller.env"), env).unwrap();
        let place =
            "install -D -m 0644 test.conf /etc/systemd/system/pocketenv-controller.service.d/test.conf
                     install -D -m 0600 controller.env /etc/pocketenv/controller.env";
        self.says(&["sh", "-euc", &format!("cd /var/install\n{place}\n{steps}")]);
    }

    /// A property of the service.
    #[track_caller]
    fn property(&self, name: &str) -> String {
        self.says(&["systemctl", "show", "--property", name, "--value", UNIT])
    }

    /// The controller that was started last, once it listens; `starts` is how many there were.
    #[track_caller]
    fn served(&self, starts: usize) -> Served {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let out = fs::read_to_string(self.var("log/controller.out")).unwrap_or_default();
            let lines: Vec<&str> = out.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
            if lines.len() >= starts {
                let address = lines[starts - 1].trim().strip_prefix("http://").unwrap();
                return Served(address.parse().unwrap());
            }
            assert!(
                Instant::now() < deadline,
                "no start number {starts}: {out}\n{}\n{}",
                self.told(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the kernel says of the service's main process.
    #[track_caller]
    fn status_of_main(&self, field: &str) -> String {
        let status = self.says(&["cat", &format!("/proc/{}/status", self.property("MainPID"))]);
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
    }

    /// Tries to make a file, as root, where the service is; nothing, or why not.
    fn touch_as_the_service_sees_it(&self, path: &str) -> Result<(), String> {
        let output = self.run(&["nsenter", "--target", &self.property("MainPID"), "--mount", "touch", path]);
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs a program as the service would be: under the same units, with another command. Whether it succeeded, and what it said.
    fn as_the_service(&self, command: &str) -> (bool, String) {
        let files = "/etc/systemd/system/pocketenv-controller.service";
        let unit =
            self.says(&["sh", "-c", &format!("cat {files} {files}.d/elsewhere.conf 2> /dev/null || true")]);
        let keep =
            |line: &&str| !["ExecStart=", "Type=", "Restart"].iter().any(|name| line.starts_with(name));
        let unit: Vec<&str> = unit.lines().filter(keep).collect();
        let text = format!(
            "{}\n[Service]\nType=oneshot\nExecStart={command}\nStandardOutput=truncate:/var/log/probe\nStandardError=append:/var/log/probe\n",
            unit.join("\n")
        );
        fs::write(self.var("install/probe.service"), text).unwrap();
        self.says(&["cp", "/var/install/probe.service", "/etc/systemd/system/probe.service"]);
        self.says(&["systemctl", "daemon-reload"]);
        let done = self.run(&["systemctl", "start", "probe"]).status.success();
        (done, fs::read_to_string(self.var("log/probe")).unwrap_or_default())
    }

    /// The processes with this word on their command line, as this machine counts.
    fn processes(&self, word: &str) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let mut line = Vec::new();
            let read =
                fs::File::open(entry.path().join("cmdline")).and_then(|mut f| f.read_to_end(&mut line));
            let mut words = line.split(|byte| *byte == 0);
            if read.is_ok() && words.any(|w| w == word.as_bytes()) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        found
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The first process takes all others with it, and its parent waits until they are gone.
        let whom = self.first.parse().unwrap_or_else(|_| i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(whom), nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
        // The groups that it made, the deepest first.
        let name = self.dir.path().file_name().unwrap().to_owned();
        let tidy =
            "mount -t cgroup2 cgroup2 \"$1/cgroup\" && find \"$1/cgroup/$2\" -depth -type d -exec rmdir {} +";
        let _ = Command::new("unshare")
            .args(["--mount", "sh", "-c", tidy, "sh"])
            .args([self.dir.path().as_os_str(), &name])
            .stderr(Stdio::null())
            .status();
    }
}

/// Whether all processes with this word have the variable of the change, and there are any.
fn changed(machine: &Machine, word: &str) -> bool {
    let has = |pid: &i32| {
        let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        env.split(|byte| *byte == 0).any(|pair| pair == b"NEW=yes")
    };
    let found = machine.processes(word);
    // The program and its supervisor.
    found.len() > 1 && found.iter().all(has)
}

/// The configuration of a controller of this repository.
fn config(forge: &Forge) -> String {
    format!(
        "version: 1\nlisten: 127.0.0.1:0\nretry: {{ initial: 1s, max: 2s }}\nsources:\n{}",
        forge.source("")
    )
}

#[test]
fn the_unit_keeps_sandboxes_of_this_machine_through_restarts_kills_and_stops() {
    let Some(machine) = Machine::start() else { return };
    let forge = Forge::new();
    let word = format!("31536000.{}", std::process::id());
    let manifest = |more: &str| {
        format!(
            "version: 1\nname: fleet\nsandboxes:\n  box:\n    services: {{ keeper: {{ command: [sleep, '{word}'] }} }}\n{more}"
        )
    };
    forge.write("fleet/pocketenv.yaml", &manifest(""));
    let first = forge.push();
    machine.install(&config(&forge), "", &["pocketenv-controller.service"]);
    let controller = machine.served(1);
    controller.until_applied("fleet", &first);
    let user = machine.says(&["id", "-u", "pocketenv"]);
    let running = machine.processes(&word);
    assert!(!running.is_empty(), "the service runs");
    let of = |pid: i32, field: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status
            .lines()
            .find_map(|l| l.strip_prefix(field))
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(of(running[0], "Uid:"), user, "the sandbox belongs to the user of the service");

    assert_eq!(machine.status_of_main("NoNewPrivs"), "1");
    for set in ["CapBnd", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(machine.status_of_main(set), "0000000000000000", "{set}");
    }
    assert_eq!(machine.status_of_main("Uid").split_whitespace().next(), Some(user.as_str()));
    assert_eq!(machine.status_of_main("Umask"), "0077");
    for path in ["/etc/new", "/usr/new", "/root/new", "/home/new", "/var/log/new"] {
        assert!(machine.touch_as_the_service_sees_it(path).is_err(), "{path} can be written");
    }
    machine.touch_as_the_service_sees_it("/tmp/new").unwrap();
    assert!(!machine.run(&["test", "-e", "/tmp/new"]).status.success(), "its /tmp is everybody's");
    assert_eq!(machine.says(&["stat", "-c", "%a %U", "/var/lib/pocketenv"]), "700 pocketenv");
    let (made, said) = machine.as_the_service("/usr/bin/unshare --user --map-root-user --mount true");
    assert!(made, "the local engine needs namespaces: {said}");

    machine.says(&["systemctl", "restart", UNIT]);
    machine.served(2).until_applied("fleet", &first);
    assert_eq!(machine.processes(&word), running, "a restart makes nothing anew");

    let main = machine.property("MainPID");
    machine.says(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT]);
    let controller = machine.served(3);
    assert_ne!(machine.property("MainPID"), main);
    assert_eq!(machine.property("NRestarts"), "1");
    controller.until_applied("fleet", &first);
    assert_eq!(machine.processes(&word), running, "a kill makes nothing anew");
    // And it goes on.
    forge.write("fleet/pocketenv.yaml", &manifest("    env: { NEW: 'yes' }\n"));
    let pushed = controller.project("fleet")["reconciled_at"].as_u64();
    let second = forge.push();
    controller.until("fleet", "the change is made", |project| {
        let compared = project["reconciled_at"].as_u64() > pushed;
        compared && project["revision"] == second && project["sync"] == "Synced" && changed(&machine, &word)
    });
    let running = machine.processes(&word);
    assert!(!running.is_empty(), "the service runs");

    machine.says(&["systemctl", "stop", UNIT]);
    let ended =
        ["ActiveState", "Result", "ExecMainCode", "ExecMainStatus"].map(|name| machine.property(name));
    assert_eq!(ended, ["inactive", "success", "1", "0"], "it exits by itself\n{}", machine.told());
    assert_eq!(machine.processes(&word), running, "sandboxes outlive it");
    machine.says(&["systemctl", "start", UNIT]);
    machine.served(4).until_applied("fleet", &second);
    assert_eq!(machine.processes(&word), running, "and are found again");
}

#[test]
fn a_limit_that_cannot_be_enforced_under_the_unit_is_refused_and_told() {
    let Some(machine) = Machine::start() else { return };
    let forge = Forge::new();
    let word = format!("31536001.{}", std::process::id());
    let manifest = |more: &str| {
        format!(
            "version: 1\nname: fleet\nsandboxes:\n  box:\n    services: {{ keeper: {{ command: [sleep, '{word}'] }} }}\n{more}"
        )
    };
    forge.write("fleet/pocketenv.yaml", &manifest("    resources: { memory: 64MiB, pids: 50 }\n"));
    let first = forge.push();
    machine.install(&config(&forge), "", &["pocketenv-controller.service"]);
    let controller = machine.served(1);
    let settled = controller.until("fleet", "it is decided", |project| {
        let message = project["message"].as_str().unwrap_or_default();
        message.contains("cannot be limited here") || project["phase"] == "Applied"
    });
    if settled["phase"] == "Applied" {
        // What is claimed is what the kernel has.
        let pid = machine.processes(&word)[0];
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
        for (file, value) in [("memory.max", "67108864"), ("pids.max", "50")] {
            assert_eq!(machine.says(&["cat", &format!("/sys/fs/cgroup{own}/{file}")]), value);
        }
        return;
    }
    // Where they are enforced is shown in a virtual machine: `vm::unit`.
    eprintln!("{}", settled["message"]);
    assert_ne!(settled["sync"], "Synced");
    assert!(machine.processes(&word).is_empty(), "nothing runs without its limits");
    forge.write("fleet/pocketenv.yaml", &manifest(""));
    let second = forge.push();
    assert_ne!(first, second);
    controller.until_applied("fleet", &second);
    assert!(!machine.processes(&word).is_empty(), "without a limit it runs");
}

#[test]
fn the_unit_for_providers_elsewhere_is_stopped_and_killed_half_way_and_goes_on() {
    let Some(machine) = Machine::start() else { return };
    let mut forge = Forge::new();
    // So that there is a moment at which some are made and some are not.
    let sim = cloud(&mut forge, &["create.rate=3"]);
    let boxes: String = (0..6).map(|n| format!("  b{n}: {{}}\n")).collect();
    let manifest = format!("version: 1\nname: fleet\ndefaults: {{ provider: sim }}\nsandboxes:\n{boxes}");
    forge.write("fleet/pocketenv.yaml", &manifest);
    let first = forge.push();
    let env = format!("POCKETENV_SIM_URL={}\n", sim.url);
    let names = ["pocketenv-controller-elsewhere.conf", "pocketenv-controller.service"];
    let made = |wanted: usize| {
        let deadline = Instant::now() + DEADLINE;
        while count(&run(sim.inventory()), "created") < wanted {
            assert!(Instant::now() < deadline, "{wanted} are never made: {}", machine.told());
            std::thread::sleep(Duration::from_millis(15));
        }
    };
    machine.install(&config(&forge), &env, &names);
    machine.served(1);
    made(1);
    machine.says(&["systemctl", "stop", UNIT]);
    let ended = ["Result", "ExecMainCode", "ExecMainStatus"].map(|name| machine.property(name));
    assert_eq!(ended, ["success", "1", "0"], "it exits by itself\n{}", machine.told());
    let half = count(&run(sim.inventory()), "created");
    assert!(half < 6, "the stop came too late to show anything");

    machine.says(&["systemctl", "start", UNIT]);
    machine.served(2);
    made(half + 1);
    machine.says(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT]);
    let controller = machine.served(3);
    controller.until_applied("fleet", &first);
    assert_eq!(machine.property("NRestarts"), "1");
    assert_eq!(count(&run(sim.inventory()), "created"), 6, "nothing is made twice");
    assert_eq!(run(sim.names()).len(), 6);

    assert_eq!(machine.status_of_main("NoNewPrivs"), "1");
    assert_eq!(machine.status_of_main("CapBnd"), "0000000000000000");
    assert_eq!(machine.status_of_main("Seccomp"), "2");
    assert!(machine.touch_as_the_service_sees_it("/etc/new").unwrap_err().contains("Read-only"));
    for (command, refusal) in [
        ("/usr/bin/unshare --user true", "Operation not permitted"),
        ("/bin/sh -c 'echo 1 > /proc/sys/kernel/sysrq'", "nonexistent"),
        ("/usr/bin/test -e /dev/kmsg", ""),
    ] {
        let (done, said) = machine.as_the_service(command);
        assert!(!done && said.contains(refusal), "{command}: {said}");
    }
}
