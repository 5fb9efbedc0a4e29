//! Starting the host-side process.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::cgroup::{self, Available};
use super::error::EngineError;
use super::lifecycle::{Engine, absolute};
use super::shim::{self, Answer, Task};
use super::state::{Lock, Record};

/// The most that is read of what is said by one that did not start.
const MAX_SAID: u64 = 4096;

impl Engine {
    /// Has a task done by a new shim.
    pub(super) async fn spawn_shim(&self, task: &Task, lock: Option<&Lock>) -> io::Result<Answer> {
        run(self.shim(), task, lock).await
    }

    /// What starts the shim of a sandbox: in a scope of the user's systemd where that is who can limit it.
    pub(super) fn shim_of(&self, record: &Record) -> Result<Command, EngineError> {
        let (id, limits) = (&record.id, &record.spec.limits);
        if !limits.need_groups() {
            return Ok(self.shim());
        }
        let available =
            Available::here().map_err(EngineError::file("read", Path::new("/proc/self/cgroup")))?;
        available.check(limits).map_err(EngineError::Unenforceable)?;
        let Some(manager) = available.manager() else { return Ok(self.shim()) };
        let name = cgroup::name(&absolute(&self.dir(id))?, id);
        manager.command(&name, &self.exe, shim::ARGUMENT).map_err(|error| EngineError::Launch {
            id: id.clone(),
            step: "ask systemd for a scope".to_owned(),
            reason: error.to_string(),
        })
    }

    fn shim(&self) -> Command {
        let mut command = Command::new(&self.exe);
        // Nothing of the caller's environment stays readable in a process that lives on.
        command.arg(shim::ARGUMENT).env_clear().stderr(Stdio::null());
        command
    }
}

/// Starts a shim, gives it its task and waits for the answer. It then goes on as our child, whom the runtime reaps when it ends, or
/// as the machine's when we end first.
pub(super) async fn run(shim: Command, task: &Task, lock: Option<&Lock>) -> io::Result<Answer> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let order = serde_json::to_vec(task)?;
    // What fits is there before the shim is, which begins without waiting until somebody lets us run again.
    let begun = match (&ours).write(&order) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        other => other?,
    };
    if begun == order.len() {
        ours.shutdown(Shutdown::Write)?;
    }
    let mut child = tokio::process::Command::from(shim)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(lock.map(Lock::share).transpose()?.map_or_else(Stdio::null, Stdio::from))
        .spawn()?;
    let mut stream = tokio::net::UnixStream::from_std(ours)?;
    let mut answer = Vec::new();
    let told = async {
        if begun < order.len() {
            stream.write_all(&order[begun..]).await?;
            stream.shutdown().await?;
        }
        stream.read_to_end(&mut answer).await
    };
    let told = told.await;
    if !answer.is_empty() {
        return Ok(serde_json::from_slice(&answer)?);
    }
    child.wait().await?;
    // Who ended early did not read all of its task; what it said says more.
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MAX_SAID).read_to_end(&mut said).await?;
    }
    let said = String::from_utf8_lossy(&said);
    match (said.trim(), told) {
        ("", Err(error)) => Err(error),
        ("", Ok(_)) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended without an answer")),
        (said, _) => Err(io::Error::other(said.to_owned())),
    }
}
