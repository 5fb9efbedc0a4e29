//! A repository that people push to, a controller that follows it, and eyes on both.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scenarios::world::{history, program};
use crate::sim::world::Sim;

/// How long something may take to become true.
const DEADLINE: Duration = Duration::from_secs(90);

/// A home, a repository that is served by `git daemon`, and a working copy of it.
pub struct Forge {
    root: tempfile::TempDir,
    daemon: Child,
    port: u16,
    /// More variables of the program.
    pub vars: Vec<(String, String)>,
}

impl Forge {
    /// An empty repository.
    pub fn new() -> Forge {
        let root = tempfile::Builder::new().prefix("pocketenv-").tempdir().unwrap();
        fs::create_dir(root.path().join("srv")).unwrap();
        git(root.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "srv/repo.git"]);
        git(root.path(), &["init", "--quiet", "--initial-branch=main", "work"]);
        // The port may be taken between the look and the start; then there is another.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut daemon = Command::new("git")
                .args([
                    "daemon",
                    "--listen=127.0.0.1",
                    "--reuseaddr",
                    "--export-all",
                    "--log-destination=none",
                ])
                .arg(format!("--port={port}"))
                .arg(format!("--base-path={}", root.path().join("srv").display()))
                .stdin(Stdio::null())
                .process_group_of_its_own()
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline && daemon.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Forge { root, daemon, port, vars: Vec::new() };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        panic!("git daemon does not start");
    }

    /// Where the repository is served.
    pub fn url(&self) -> String {
        format!("git://127.0.0.1:{}/repo.git", self.port)
    }

    /// A directory of this world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Git in the working copy.
    pub fn git(&self, arguments: &[&str]) -> String {
        git(&self.path("work"), arguments)
    }

    /// A tree of these entries; its id.
    pub fn make_tree(&self, entries: &str) -> String {
        let mut child = Command::new("git")
            .arg("mktree")
            .current_dir(self.path("work"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(entries.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a file of the working copy.
    pub fn write(&self, file: &str, content: &str) {
        let path = self.path("work").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Commits everything and pushes it, whatever was there; returns the commit.
    pub fn push(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "change"]);
        self.force_push()
    }

    /// Pushes what is committed, whatever was there.
    pub fn force_push(&self) -> String {
        let url = self.path("srv/repo.git").display().to_string();
        self.git(&["push", "--quiet", "--force", &url, "HEAD:main"]);
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// The source of a configuration that follows `main`, with more lines of it.
    pub fn source(&self, more: &str) -> String {
        format!(
            "  - name: shop\n    git: {{ url: '{}', branch: main, projects: many }}\n    interval: 1s\n    resync: 2s\n{more}",
            self.url()
        )
    }

    /// The program in this world.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .current_dir(self.root.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env("POCKETENV_HOME", self.root.path().join("home"))
            .env("POCKETENV_LOG", "warn")
            .env("HOOK_SECRET", "hunter2")
            .envs(self.vars.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// Starts a controller of these sources.
    pub fn control(&self, sources: &str) -> Running {
        self.control_with("", sources)
    }

    /// The same, with more at the top of its file.
    pub fn control_with(&self, top: &str, sources: &str) -> Running {
        let config = self.path("controller.yaml");
        let text = format!("version: 1\nretry: {{ initial: 1s, max: 2s }}\n{top}sources:\n{sources}");
        fs::write(&config, text).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut child = self
            .command(&["controller", "run", "--config", config.to_str().unwrap(), "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line
            .trim()
            .strip_prefix("http://")
            .unwrap_or_else(|| panic!("no address: {line:?}"))
            .parse()
            .unwrap();
        Running { child, served: Served(address), log: self.path("log") }
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        // The daemon serves each client by a child.
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
        let _ = self.daemon.wait();
        if !std::thread::panicking() {
            let checked = history::check(&self.path("home"), &[self.root.path()], false);
            assert_eq!(checked, Ok(()), "what the store claims when the controller is no more");
        }
    }
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// A controller that runs.
pub struct Running {
    pub child: Child,
    served: Served,
    log: PathBuf,
}

impl Deref for Running {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

/// What a controller serves, wherever it runs.
pub struct Served(pub SocketAddr);

impl Served {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0
    }

    /// Asks it, over HTTP.
    pub fn http(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.0)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok((code, body.to_owned()))
    }

    /// Its status.
    pub fn status(&self) -> Value {
        let (code, body) = self.http("GET", "/status", "", "").unwrap();
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// The status of the project in a directory, `Null` if there is none.
    pub fn project(&self, path: &str) -> Value {
        let status = self.status();
        let mut projects =
            status["sources"].as_array().unwrap().iter().flat_map(|s| s["projects"].as_array().unwrap());
        projects.find(|project| project["path"] == path).cloned().unwrap_or(Value::Null)
    }

    /// Waits until a project's status is so; returns it.
    #[track_caller]
    pub fn until(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let project = self.project(path);
            if holds(&project) {
                return project;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: {}",
                serde_json::to_string_pretty(&self.status()).unwrap()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a project is as a revision says.
    #[track_caller]
    pub fn until_applied(&self, path: &str, revision: &str) -> Value {
        self.until(path, &format!("{path} is at {revision}"), |project| {
            project["phase"] == "Applied" && project["revision"] == revision && project["sync"] == "Synced"
        })
    }

    /// One number of its metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http("GET", "/metrics", "", "").unwrap();
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {text}"))
    }
}

impl Running {
    /// Tells it to stop; returns its exit code.
    pub fn stop(mut self) -> i32 {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the controller does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same; returns everything that it logged.
    pub fn stop_and_read(self) -> String {
        let log = self.log.clone();
        assert_eq!(self.stop(), 0);
        fs::read_to_string(log).unwrap()
    }

    /// Kills it at once.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Git as somebody, with nobody's configuration.
pub fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A project that needs no provider: its one sandbox shall not exist.
pub fn empty(name: &str) -> String {
    format!("version: 1\nname: {name}\nsandboxes:\n  box:\n    state: absent\n")
}

/// A simulated cloud for the projects of a forge.
pub fn cloud(forge: &mut Forge, settings: &[&str]) -> Sim {
    let sim = Sim::start(forge.root.path(), 7, "calm", settings);
    forge.vars.push(("POCKETENV_SIM_URL".to_owned(), sim.url.clone()));
    sim
}

/// Runs to its end what others do in the background.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
