//! An engine on directories of its own, and commands that are run to their end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use pocketenv::engine::{
    BoxInfo, BoxSpec, Engine, EngineConfig, EngineError, ExecHandle, ExecRequest, Exit, Stdio,
};

/// An engine whose sandboxes are deleted with it.
pub struct Fixture {
    pub engine: Engine,
    pub dir: tempfile::TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// The text, of a command that must have succeeded.
    pub fn ok(&self) -> String {
        assert_eq!(self.exit, Exit::Code(0), "stderr: {}", String::from_utf8_lossy(&self.stderr));
        self.text()
    }
}

impl Fixture {
    pub fn new() -> Fixture {
        let dir = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
        let engine = Engine::new(EngineConfig {
            data_dir: dir.path().join("data"),
            runtime_dir: dir.path().join("run"),
            exe: std::env::var_os("POCKETENV_TEST_EXE")
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into())
                .into(),
        });
        Fixture { engine, dir }
    }

    pub async fn create(&self, id: &str) -> BoxInfo {
        self.create_with(id, BoxSpec::default()).await
    }

    pub async fn create_with(&self, id: &str, spec: BoxSpec) -> BoxInfo {
        self.engine.create(id, &spec, &BTreeMap::new()).await.unwrap()
    }

    pub fn box_dir(&self, id: &str) -> std::path::PathBuf {
        self.dir.path().join("data/engine/boxes").join(id)
    }

    pub async fn sh(&self, id: &str, script: &str) -> Output {
        self.run(id, request(["sh", "-c", script])).await.unwrap()
    }

    pub async fn run(&self, id: &str, request: ExecRequest) -> Result<Output, EngineError> {
        let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut handle = self
            .start(id, request, null(), out.try_clone().unwrap().into(), err.try_clone().unwrap().into())
            .await?;
        let exit = handle.wait().await?;
        Ok(Output { exit, stdout: rest(&mut out), stderr: rest(&mut err) })
    }

    pub async fn start(
        &self,
        id: &str,
        request: ExecRequest,
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<ExecHandle, EngineError> {
        self.engine.exec(id, request, Stdio::Files { stdin, stdout, stderr }).await
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let engine = self.engine.clone();
        let cleanup = async move {
            for info in engine.list().await.unwrap_or_default() {
                let _ = engine.delete(&info.id).await;
            }
            // Layers may belong to ids that only the engine can act as.
            let _ = engine.collect_images().await;
        };
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(cleanup);
        })
        .join()
        .unwrap();
    }
}

pub fn request<const N: usize>(argv: [&str; N]) -> ExecRequest {
    ExecRequest { argv: argv.map(OsString::from).to_vec(), ..ExecRequest::default() }
}

pub fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

fn rest(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Waits until it holds; fails loudly at the deadline.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Processes of this machine that work in `needle` (a shim) or have mounts from there (everything inside).
pub fn processes_in(needle: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let mounts = std::fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        if cwd.starts_with(needle) || mounts.contains(&*needle.to_string_lossy()) {
            found.push(pid);
        }
    }
    found
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
