//! One user on one machine: a home of its own, a project directory, the real program, and eyes that look at the system itself.

#[path = "history.rs"]
pub mod history;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::Value;

/// How long one run of the program may take, and how long something may take to become true.
const DEADLINE: Duration = Duration::from_secs(120);

/// The directory that holds `examples/` and `tests/`.
pub fn project_root() -> PathBuf {
    std::env::var_os("POCKETENV_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("POCKETENV_TEST_EXE")
        .map_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into(), PathBuf::from)
}

/// A user's home and project. Dropped, it destroys what the project has and ends what is left of it.
pub struct World {
    root: tempfile::TempDir,
    program: PathBuf,
    env: Vec<(String, String)>,
    /// Everything that the program printed so far.
    printed: RefCell<String>,
}

/// How a run of the program ended and what it printed.
#[derive(Debug)]
pub struct Run {
    /// The exit code; 128 + n after signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// The run, which must have ended with this code.
    #[track_caller]
    pub fn ends(self, code: i32) -> Run {
        assert_eq!(self.code, code, "\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}:\n{}\n{}", self.stdout, self.stderr))
    }

    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A process of the machine, told from a later one with the same number by its start time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number on the host.
    pub pid: i32,
    started: String,
    /// Its arguments, joined by spaces.
    pub command: String,
}

impl Process {
    fn of(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.first() == Some(&"Z") {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
        Some(Process { pid, started: (*fields.get(19)?).to_owned(), command })
    }

    /// Whether this very process still runs.
    pub fn lives(&self) -> bool {
        Process::of(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal).unwrap();
    }

    /// Kills it and sees it gone.
    pub fn kill(&self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        eventually(&format!("{self:?} is gone"), || !self.lives());
    }

    /// Its environment, as the kernel knows it.
    pub fn environment(&self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/environ", self.pid)).unwrap();
        bytes.split(|byte| *byte == 0).map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
    }
}

impl World {
    /// A project that is a copy of a directory of `examples/`.
    pub fn example(name: &str) -> World {
        World::copy_of(&project_root().join("examples").join(name))
    }

    /// A project that is a copy of a directory of `tests/scenarios/`.
    pub fn scenario(name: &str) -> World {
        World::copy_of(&project_root().join("tests/scenarios").join(name))
    }

    fn copy_of(source: &Path) -> World {
        let root = tempfile::Builder::new().prefix("pocketenv-").tempdir().unwrap();
        // Other users of the machine, such as the ids inside a sandbox, get through to nothing but what is theirs.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        for name in ["home", "project"] {
            fs::DirBuilder::new().mode(0o700).create(root.path().join(name)).unwrap();
        }
        copy_dir(source, &root.path().join("project"));
        World { root, program: program(), env: Vec::new(), printed: RefCell::default() }
    }

    /// The project's directory.
    pub fn project(&self) -> PathBuf {
        self.root.path().join("project")
    }

    /// `POCKETENV_HOME`.
    pub fn home(&self) -> PathBuf {
        self.root.path().join("home/pocketenv")
    }

    /// Uses the program at another place from now on.
    pub fn install(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Sets a variable of the program's environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Removes a variable of the program's environment.
    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    /// The program with arguments, in this world, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.project())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
            .env("HOME", self.root.path().join("home"))
            .env("POCKETENV_HOME", self.home())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Run {
        self.finish(self.start(arguments))
    }

    /// Starts the program.
    pub fn start(&self, arguments: &[&str]) -> Started {
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let child = self
            .command(arguments)
            .stdout(out.try_clone().unwrap())
            .stderr(err.try_clone().unwrap())
            .spawn()
            .unwrap();
        Started { child, out, err, what: arguments.join(" ") }
    }

    /// Waits for the end of what was started.
    #[track_caller]
    pub fn finish(&self, mut started: Started) -> Run {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = started.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                started.child.kill().unwrap();
                started.child.wait().unwrap();
                let (out, err) = (text(&started.out), text(&started.err));
                panic!("`pocketenv {}` did not end:\n{out}\n{err}", started.what);
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let run = Run { code, stdout: text(&started.out), stderr: text(&started.err) };
        let mut printed = self.printed.borrow_mut();
        printed.push_str(&run.stdout);
        printed.push_str(&run.stderr);
        run
    }

    /// Applies, which must do all of it.
    #[track_caller]
    pub fn apply(&self) -> Run {
        self.run(&["apply", "--yes"]).ends(0)
    }

    /// Nothing is left to do: a plan is empty.
    #[track_caller]
    pub fn assert_converged(&self) {
        self.run(&["plan", "--detailed-exitcode"]).ends(0);
    }

    /// Something is to do.
    #[track_caller]
    pub fn assert_out_of_sync(&self) -> Run {
        self.run(&["plan", "--detailed-exitcode"]).ends(2)
    }

    /// Replaces the one place of a project file where `from` stands.
    #[track_caller]
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.project().join(file);
        let old = fs::read_to_string(&path).unwrap();
        assert_eq!(old.matches(from).count(), 1, "`{from}` stands once in {file}");
        fs::write(path, old.replace(from, to)).unwrap();
    }

    /// Writes a project file.
    pub fn write(&self, file: &str, content: &str) {
        fs::write(self.project().join(file), content).unwrap();
    }

    /// The status of one resource, measured now.
    #[track_caller]
    pub fn status(&self, address: &str) -> Value {
        let status = self.run(&["status", "-o", "json"]).json();
        let resources = status["resources"].as_array().unwrap_or_else(|| panic!("{status}"));
        let found = resources.iter().find(|resource| resource["address"] == address);
        found.unwrap_or_else(|| panic!("no {address} in {status:#}")).clone()
    }

    /// Whether a resource is as desired and does its job.
    #[track_caller]
    pub fn is_ready(&self, address: &str) -> bool {
        let status = self.status(address);
        status["sync"] == "Synced" && status["health"] == "Healthy"
    }

    /// Where a port is reached from the host.
    #[track_caller]
    pub fn endpoint(&self, sandbox: &str, port: u16) -> SocketAddr {
        let status = self.status(&format!("sandbox/{sandbox}/port/{port}"));
        let host = status["endpoint"]["host"].as_str().unwrap_or_else(|| panic!("no endpoint in {status}"));
        let port = status["endpoint"]["port"].as_u64().unwrap();
        format!("{host}:{port}").parse().unwrap()
    }

    /// The provider's id of a sandbox.
    #[track_caller]
    pub fn id(&self, sandbox: &str) -> String {
        self.status(&format!("sandbox/{sandbox}"))["id"].as_str().unwrap().to_owned()
    }

    /// The directory in which the engine keeps a sandbox.
    #[track_caller]
    pub fn box_dir(&self, sandbox: &str) -> PathBuf {
        self.boxes().join(self.id(sandbox))
    }

    fn boxes(&self) -> PathBuf {
        self.home().join("data/engine/boxes")
    }

    /// How many sandboxes the engine keeps.
    pub fn box_count(&self) -> usize {
        fs::read_dir(self.boxes()).map_or(0, Iterator::count)
    }

    /// Processes of the machine that belong to this world's sandboxes: they have mounts from its home, or work in it.
    pub fn processes(&self) -> Vec<Process> {
        self.processes_in(&self.home())
    }

    /// Those of one sandbox, inside and outside.
    #[track_caller]
    pub fn processes_of(&self, sandbox: &str) -> Vec<Process> {
        self.processes_in(&self.box_dir(sandbox))
    }

    fn processes_in(&self, dir: &Path) -> Vec<Process> {
        let needle = dir.to_string_lossy().into_owned();
        let ours = fs::read_link("/proc/self/ns/mnt").unwrap();
        let seen_here = fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&needle);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            // A mount that this test sees itself is seen by every process of the machine and says nothing about any: what is found here is
            // killed in the end, so it must be a sandbox's without doubt.
            // An ordinary user may not read the namespace of its own sandbox's init, which is closed to inspection.
            let elsewhere = match fs::read_link(entry.path().join("ns/mnt")) {
                Ok(theirs) => theirs != ours,
                Err(_) => !seen_here,
            };
            let mounts = || fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            if cwd.starts_with(dir) || (elsewhere && mounts().contains(&needle)) {
                found.extend(Process::of(pid));
            }
        }
        found
    }

    /// The one process of a sandbox whose arguments begin with this.
    #[track_caller]
    pub fn process(&self, sandbox: &str, command: &str) -> Process {
        let all = self.processes_in(&self.box_dir(sandbox));
        let mut found: Vec<_> = all.iter().filter(|process| process.command.starts_with(command)).collect();
        assert_eq!(found.len(), 1, "one process `{command}` in {sandbox} among {all:#?}");
        found.remove(0).clone()
    }

    /// The first process inside a sandbox, as the host numbers it.
    #[track_caller]
    pub fn init(&self, sandbox: &str) -> Process {
        let inside = self.processes_in(&self.box_dir(sandbox));
        let is_init = |process: &&Process| {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            let ids =
                status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default().to_owned();
            let ids: Vec<&str> = ids.split_whitespace().collect();
            ids.len() > 1 && ids.last() == Some(&"1")
        };
        inside.iter().find(is_init).unwrap_or_else(|| panic!("no init of {sandbox} in {inside:#?}")).clone()
    }

    /// The host-side process of a sandbox.
    #[track_caller]
    pub fn shim(&self, sandbox: &str) -> Process {
        let status = fs::read_to_string(format!("/proc/{}/status", self.init(sandbox).pid)).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
        Process::of(parent.parse().unwrap()).unwrap()
    }

    /// Runs a script inside a sandbox and returns what it printed.
    #[track_caller]
    pub fn sh(&self, sandbox: &str, script: &str) -> String {
        self.run(&["exec", sandbox, "--", "sh", "-c", script]).ends(0).stdout.trim_end().to_owned()
    }

    /// Nothing can be run inside a sandbox, and the program says so.
    #[track_caller]
    pub fn sh_is_refused(&self, sandbox: &str) {
        let run = self.run(&["exec", sandbox, "--", "true"]);
        assert!(run.code != 0 && run.stderr.contains(sandbox), "{run:?}");
    }

    /// Destroys everything, data too, and sees that nothing is left: no process, mount, directory or listener. `listeners` are addresses that
    /// only this world has: one that the program chose may belong to another world of a test beside this one a moment later.
    #[track_caller]
    pub fn destroy_and_see_nothing_left(&self, listeners: &[SocketAddr]) {
        self.run(&["destroy", "--yes", "--volumes"]).ends(0);
        assert_eq!(self.processes(), [], "processes are left");
        let home = self.home();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*home.to_string_lossy()), "mounts are left:\n{mounts}");
        for dir in ["data/engine/boxes", "data/engine/volumes", "run/engine"] {
            let left: Vec<_> = fs::read_dir(home.join(dir))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            assert!(left.is_empty(), "files are left: {left:?}");
        }
        for address in listeners {
            assert!(
                TcpStream::connect_timeout(address, Duration::from_secs(2)).is_err(),
                "{address} still listens"
            );
        }
        assert!(
            !self.printed.borrow().contains("panicked at"),
            "the program panicked: {}",
            self.printed.borrow()
        );
    }

    /// Everything that the program printed so far.
    pub fn printed(&self) -> String {
        self.printed.borrow().clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            let run = self.run(&["status"]);
            eprintln!("status when it failed:\n{}\nprinted before:\n{}", run.text(), self.printed.borrow());
        }
        let before = history::check(&self.home(), &[self.root.path(), &self.project()], false);
        let destroy = self.command(&["destroy", "--yes", "--volumes"]).output();
        let clean = destroy.as_ref().is_ok_and(|output| output.status.success());
        let after = history::check(&self.home(), &[self.root.path(), &self.project()], clean);
        for process in self.processes() {
            if !clean || process.lives() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(process.pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        if !failed {
            assert_eq!(before, Ok(()), "what the store claimed when the test ended");
            assert_eq!(after, Ok(()), "what it claimed after {destroy:?}");
        }
    }
}

/// A run of the program that has not ended yet.
pub struct Started {
    /// The process.
    pub child: Child,
    out: File,
    err: File,
    what: String,
}

impl Started {
    /// What it printed so far.
    pub fn printed(&self) -> String {
        format!("{}{}", text(&self.out), text(&self.err))
    }

    /// Whether it has not ended yet.
    pub fn runs(&self) -> bool {
        Process::of(i32::try_from(self.child.id()).unwrap()).is_some()
    }
}

fn text(file: &File) -> String {
    use std::os::unix::fs::FileExt as _;
    // Another process shares the offset; read from the start without moving it.
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), &target).unwrap();
        } else if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Whether programs are there; says so loudly if not.
pub fn have(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &&&str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing: Vec<_> = programs.iter().filter(|program| !there(program)).collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: {missing:?} are missing");
    }
    missing.is_empty()
}

/// The program on a terminal of ours, which is looked at from both ends.
pub struct Terminal {
    /// The program.
    pub child: Child,
    /// What is typed.
    pub keys: File,
    line: OwnedFd,
    shown: Arc<Mutex<String>>,
    before: Termios,
}

impl Terminal {
    /// Starts it.
    pub fn new(world: &World, arguments: &[&str]) -> Self {
        Self::of(&mut world.command(arguments))
    }

    /// Starts any command.
    pub fn of(command: &mut Command) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let ends = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(ends.slave.as_fd()).unwrap();
        let child = command
            .stdin(ends.slave.try_clone().unwrap())
            .stdout(ends.slave.try_clone().unwrap())
            .stderr(ends.slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let keys = File::from(ends.master);
        let (mut screen, sink) = (keys.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { child, keys, line: ends.slave, shown, before }
    }

    /// Whether keys are taken as they are.
    pub fn is_raw(&self) -> bool {
        !tcgetattr(self.line.as_fd()).unwrap().local_flags.contains(LocalFlags::ECHO)
    }

    /// Everything that was written to it.
    pub fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// Waits for a text.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        eventually(&format!("the terminal shows {text}"), || self.shown.lock().unwrap().contains(text));
    }

    /// Gives it another size.
    pub fn resize(&self, rows: u16, cols: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.keys, size).unwrap();
        self.signal(Signal::SIGWINCH);
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// The code it ends with; our terminal is as it was, and everything that was written to it has been read.
    pub fn end(&mut self) -> i32 {
        const LAST: &str = "[the last line]";
        let status = self.child.wait().unwrap();
        File::from(self.line.try_clone().unwrap()).write_all(LAST.as_bytes()).unwrap();
        self.shows(LAST);
        assert_eq!(tcgetattr(self.line.as_fd()).unwrap().local_flags, self.before.local_flags);
        assert_eq!(tcgetattr(self.line.as_fd()).unwrap().input_flags, self.before.input_flags);
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

/// Waits until it holds; fails loudly at the deadline.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port of the host's loopback that nothing listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a web server answers: the status and the body.
///
/// # Errors
/// What the connection reports, an answer that is none included.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let timeout = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| std::io::Error::other(format!("no answer of a web server: {answer:?}")))
}
