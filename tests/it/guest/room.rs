//! A sandbox for tests: mount and pid namespaces of their own, with private state directories, in which commands run for real. Everything in it
//! dies with it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use async_trait::async_trait;
use pocketenv::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, Input, Output, Pty, PtyRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The namespaces, as a shell makes them. `sleep` is waited for, so that the shell, their init, collects orphans.
const INIT: &str = "mount -n --make-rprivate / && \
    mount -n -t tmpfs -o mode=755 run /run && mount -n -t tmpfs shm /dev/shm && mount -n --bind \"$1/var-lib\" /var/lib && \
    mount -n --bind \"$1/var-log\" /var/log && mount -n --bind \"$1/root\" /root && \
    { [ -z \"$2\" ] || mount -n --bind \"$2\" /bin/sh; } && \
    echo ready && while :; do sleep 1; done";

/// One sandbox.
pub struct Room {
    directory: tempfile::TempDir,
    init: Child,
    pid: u32,
    /// The `PATH` inside.
    path: String,
    /// The default user inside, if it is not root.
    user: Option<&'static str>,
    /// Every argument of every command that ran, and nothing of their environment or input.
    arguments: std::sync::Mutex<Vec<String>>,
}

impl Room {
    /// A new sandbox, or `None`, loudly, where this machine does not let the test make one.
    pub fn new() -> Option<Self> {
        Self::with_path("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "")
    }

    /// One in which every tool is busybox's, or `None`, loudly, where there is none.
    pub fn busybox() -> Option<Self> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let Some(busybox) = busybox else {
            eprintln!("SKIPPED: no busybox");
            return None;
        };
        let mut room = Self::with_path("", busybox)?;
        let bin = room.root().join("bb");
        std::fs::create_dir(&bin).unwrap();
        let applets = std::process::Command::new(busybox).arg("--list").output().unwrap();
        for applet in String::from_utf8(applets.stdout).unwrap().lines() {
            std::os::unix::fs::symlink(busybox, bin.join(applet)).unwrap();
        }
        room.path = bin.to_str().unwrap().to_owned();
        Some(room)
    }

    fn with_path(path: &str, shell: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: not root, and the test makes namespaces");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        for name in ["var-lib", "var-log", "root", "work"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let mut init = std::process::Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child=KILL",
                "sh",
                "-c",
                INIT,
                "init",
            ])
            .arg(directory.path())
            .arg(shell)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = init.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        if line != "ready\n" {
            eprintln!("SKIPPED: no namespaces here: {:?}", init.wait());
            return None;
        }
        let children = format!("/proc/{0}/task/{0}/children", init.id());
        let pid = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        Some(Self { directory, init, pid, path: path.to_owned(), user: None, arguments: Default::default() })
    }

    /// A directory that has the same path inside and outside.
    pub fn work(&self) -> PathBuf {
        self.root().join("work")
    }

    /// Where the private directories lie on the host.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A path in `work`, as text.
    pub fn at(&self, name: &str) -> String {
        self.work().join(name).to_str().unwrap().to_owned()
    }

    /// The same sandbox with an ordinary user as its default user, whose home is `work`.
    pub fn ordinary(mut self) -> Self {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(self.root(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(self.work(), PermissionsExt::from_mode(0o777)).unwrap();
        self.user = Some("12345:12345");
        self
    }

    /// Whether `text` stood in any argument so far.
    pub fn argument_with(&self, text: &str) -> bool {
        self.arguments.lock().unwrap().iter().any(|argument| argument.contains(text))
    }

    /// Runs a shell line inside; its output, which must have come with exit code 0.
    pub async fn sh(&self, line: &str) -> String {
        let output = pocketenv::provider::capture(self, &Command::new(["sh", "-c", line]), &[], 1 << 20)
            .await
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

#[async_trait]
impl Guest for Room {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let mut process = std::process::Command::new("nsenter");
        process.args(["-t", &self.pid.to_string(), "-m", "-p"]);
        self.arguments.lock().unwrap().extend(command.argv.iter().cloned());
        let home = if self.user.is_some() { self.at("") } else { "/root".to_owned() };
        if let Some(user) = command.user.as_deref().or(self.user) {
            let (uid, gid) = user.split_once(':').unwrap_or((user, user));
            process.args(["-S", uid, "-G", gid]);
        }
        process.arg(format!("--wd={}", command.cwd.as_deref().unwrap_or(&home)));
        process.args(&command.argv);
        process.env_clear().env("PATH", format!("{}:/usr/bin", self.path)).env("HOME", &home);
        if !self.path.is_empty() && !self.path.contains(':') {
            // nsenter itself comes from the host; what runs inside gets nothing but busybox.
            process = {
                let mut inner = std::process::Command::new("/usr/bin/nsenter");
                inner.args(process.get_args());
                inner.env_clear().env("PATH", &self.path).env("HOME", &home);
                inner
            };
        }
        process.envs(&command.env);
        process.process_group(0);
        let mut process = tokio::process::Command::from(process);
        process.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |source| GuestError::Io { what: "starting nsenter".to_owned(), source };
        let mut child = process.spawn().map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feeding = async {
            if let (Input::Reader(reader), Some(mut stdin)) = (io.stdin, stdin) {
                let _ = tokio::io::copy(reader, &mut stdin).await;
                let _ = stdin.shutdown().await;
            }
        };
        let streams = async {
            tokio::join!(drain(stdout, io.stdout), drain(stderr, io.stderr));
            child.wait().await
        };
        let limit = command.timeout.unwrap_or(std::time::Duration::from_secs(600));
        let both = async {
            // An end of the command ends the feeding.
            tokio::pin!(streams);
            tokio::pin!(feeding);
            tokio::select! { status = &mut streams => status, () = &mut feeding => streams.await }
        };
        let status = tokio::time::timeout(limit, both)
            .await
            .map_err(|_| GuestError::TimedOut { program: command.program().to_owned(), limit })?
            .map_err(failed)?;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, signal) => ExitStatus::Signal(signal.unwrap_or(0)),
        })
    }

    async fn pty(&self, _: &Command, _: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        Err(GuestError::Unsupported("no terminal in this test".to_owned()))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        // The network is the machine's own.
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        let failed = |source| GuestError::Io { what: format!("connecting to port {port}"), source };
        Ok(Box::new(stream.map_err(failed)?))
    }
}

async fn drain(stream: Option<impl tokio::io::AsyncRead + Unpin>, to: Output<'_>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 64 * 1024];
    let mut to = to;
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if let Output::Writer(writer) = &mut to
            && (writer.write_all(&buffer[..read]).await.is_err() || writer.flush().await.is_err())
        {
            // Nobody wants more: the command sees its pipe closed.
            return;
        }
    }
}

/// Asks again until the answer is yes, for at most 20 seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
