//! A daemon with directories of its own and no hand in the firewall of the machine, and an image of nothing but busybox.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pocketenv::model::{Address, Identity, Image, IntentId, OwnerId, SandboxSpec};
use pocketenv::provider::{Provider, ProviderContext, Registry};

/// The image with busybox.
pub const IMAGE: &str = "busybox:test";
/// How long the daemon may take to answer, and to end.
const UP: Duration = Duration::from_secs(60);
const DOWN: Duration = Duration::from_secs(40);

/// A daemon that ends with this.
pub struct Daemon {
    child: Child,
    pub dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts one, with the image; `None`, after saying what is missing, where that cannot be.
    pub fn start() -> Option<Self> {
        Self::start_with(|_| Vec::new())
    }

    /// The same with arguments that may be about its directory.
    pub fn start_with(arguments: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        if !crate::engine::support::is_root() {
            eprintln!("SKIPPED: a Docker daemon needs root");
            return None;
        }
        for program in ["dockerd", "docker", "setpriv", "busybox"] {
            if which(program).is_none() {
                eprintln!("SKIPPED: {program} is missing");
                return None;
            }
        }
        let dir = tempfile::Builder::new().prefix("pocketenv-docker-").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        // If these tests are killed, the daemon ends by itself.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "TERM",
            "dockerd",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        ]);
        command.args(["--ip-forward=false", "--ip-masq=false", "--shutdown-timeout=5"]);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "-p", &path("pid")]);
        command.args(["-H", &format!("unix://{}", path("sock"))]).args(arguments(dir.path()));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let daemon = Self { child, dir };
        let begun = Instant::now();
        while !daemon.docker(&["version"]).status.success() {
            assert!(begun.elapsed() < UP, "the daemon does not answer: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon.import(IMAGE, &[]);
        Some(daemon)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Runs the `docker` command, which none of our code has a hand in.
    pub fn docker(&self, args: &[&str]) -> Output {
        let mut command = Command::new(which("docker").unwrap());
        command.args(["-H", &self.host()]).args(args).env_remove("DOCKER_CONTEXT").output().unwrap()
    }

    /// What it prints, of a call that must succeed.
    pub fn says(&self, args: &[&str]) -> String {
        let output = self.docker(args);
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Makes an image from busybox and these files.
    pub fn import(&self, name: &str, files: &[(&str, &str)]) {
        let archive = busybox_root(files);
        let mut command = Command::new(which("docker").unwrap());
        command.args(["-H", &self.host(), "import", "-", name]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut import = command.spawn().unwrap();
        import.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(import.wait().unwrap().success());
    }

    pub async fn provider(&self) -> Arc<dyn Provider> {
        self.provider_by(&[("DOCKER_HOST", &self.host())]).await
    }

    /// The provider in another environment.
    pub async fn provider_by(&self, vars: &[(&str, &str)]) -> Arc<dyn Provider> {
        let context = ProviderContext {
            data_dir: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            executable: PathBuf::new(),
            vars: vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            settings: BTreeMap::new(),
            credentials: BTreeMap::new(),
        };
        let registry =
            Registry::open(["docker"], &context).await.unwrap_or_else(|(_, error)| panic!("{error}"));
        Arc::clone(registry.get("docker").unwrap())
    }

    /// Everything that somebody of us could have made, by name.
    pub fn inventory(&self) -> Vec<String> {
        let lists: [&[&str]; 3] = [
            &["ps", "-a", "--format", "container {{.Names}}"],
            &["volume", "ls", "--format", "volume {{.Name}}"],
            &["network", "ls", "--filter", "type=custom", "--format", "network {{.Name}}"],
        ];
        lists.iter().flat_map(|list| self.says(list).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Runs our own program with a home of its own.
    pub fn pocketenv(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let program =
            std::env::var_os("POCKETENV_TEST_EXE").unwrap_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into());
        let mut command = Command::new(program);
        command
            .args(args)
            .env("POCKETENV_HOME", self.dir.path().join("home"))
            .env("DOCKER_HOST", self.host());
        command.envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap()
    }

    /// What it prints, of a run that must end with `code`.
    pub fn runs(&self, args: &[&str], env: &[(&str, &str)], code: i32) -> String {
        let output = self.pocketenv(args, env);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "pocketenv {args:?}\n{out}\n{err}");
        out.trim_end().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("level=error")).collect();
            eprintln!("the daemon said:\n{}", lines.join("\n"));
        }
        let words = |output: Output| -> Vec<String> {
            String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
        };
        for container in words(self.docker(&["ps", "-aq"])) {
            self.docker(&["rm", "-f", "-v", &container]);
        }
        // A bridge outlives the daemon that made it.
        for network in words(self.docker(&["network", "ls", "-q", "--filter", "type=custom"])) {
            self.docker(&["network", "rm", &network]);
        }
        let signal = |name: &str, pid: u32| {
            let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
        };
        signal("TERM", self.child.id());
        let begun = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begun.elapsed() > DOWN {
                signal("KILL", self.child.id());
                let pid = std::fs::read_to_string(self.dir.path().join("exec/containerd/containerd.pid"));
                if let Some(pid) = pid.ok().and_then(|pid| pid.trim().parse().ok()) {
                    signal("KILL", pid);
                }
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Groups that the daemon leaves behind; one that is in use stays.
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(controller.path().join("docker"));
        }
    }
}

/// A root filesystem, as an archive, of busybox and these files.
pub fn busybox_root(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        if link.is_empty() {
            archive.append_data(&mut header, path, data).unwrap();
        } else {
            archive.append_link(&mut header, path, link).unwrap();
        }
    };
    for dir in ["bin/", "dev/", "etc/", "proc/", "root/", "run/", "sys/", "var/lib/", "var/log/", "usr/bin/"]
    {
        add(dir, tar::EntryType::Directory, 0o755, b"", "");
    }
    for dir in ["tmp/", "var/tmp/"] {
        add(dir, tar::EntryType::Directory, 0o1777, b"", "");
    }
    let busybox = std::fs::read(which("busybox").unwrap()).unwrap();
    add("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, "");
    let applets = Command::new("busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|applet| *applet != "busybox") {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, b"", "busybox");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000::/tmp:/bin/sh\n";
    let group = "root:x:0:\ndev:x:1000:\n";
    for (path, text) in [("etc/passwd", passwd), ("etc/group", group)].iter().chain(files) {
        add(path, tar::EntryType::Regular, 0o644, text.as_bytes(), "");
    }
    archive.into_inner().unwrap()
}

/// A program, in the places of the system: beside it there may be one of another version.
pub fn which(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}

/// An identity of the project `it`.
pub fn identity(name: &str, spec: &SandboxSpec) -> Identity {
    Identity {
        project: "it".to_owned(),
        address: Address::Sandbox(name.to_owned()),
        owner: OwnerId("owner".to_owned()),
        spec_hash: spec.hash(),
        generation: 1,
        intent: IntentId(uuid::Uuid::now_v7().to_string()),
        expires_at: None,
    }
}

/// A sandbox from the image.
pub fn spec() -> SandboxSpec {
    SandboxSpec { image: Image::Oci(IMAGE.to_owned()), ..SandboxSpec::default() }
}

/// Another version of an identity.
pub fn next(identity: &Identity, spec: &SandboxSpec) -> Identity {
    Identity { generation: identity.generation + 1, spec_hash: spec.hash(), ..identity.clone() }
}
