//! The daemon inside a sandbox, as its clients see it: commands, sessions, terminals, files and git.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::json;

use super::super::files::{FileError, User};
use super::super::measure::measure;
use super::super::process::{End, Event, Start, StartError};
use super::super::request::parameter;
use super::super::{CallError, Sandbox};
use super::{Server, answer as say, body, control, files, find, git, refuse, refused, session, terminal};
use crate::model::with_causes;
use crate::provider::{Command, Guest};

/// What of the output of one command is answered.
const OUTPUT_LIMIT: usize = 64 << 20;
/// The longest program that is run as text: no argument may be longer.
const CODE_LIMIT: usize = (128 << 10) - 1;

/// A call of the daemon of a running sandbox.
pub(super) struct Call<'a> {
    pub server: &'a Arc<Server>,
    pub sandbox: Arc<Sandbox>,
    pub guest: Arc<dyn Guest>,
    pub user: User,
}

/// Answers a request for the daemon of a sandbox.
pub(super) async fn answer(
    server: &Arc<Server>,
    id: &str,
    path: &[&str],
    request: Request,
) -> Result<Response, Response> {
    let sandbox = find(server, id)?;
    let guest = server.emulation.guest(&sandbox).await.map_err(|error| refused(&error))?;
    let record = sandbox.record();
    control::touch(server, &record.id);
    let user = server.emulation.user(&sandbox, &*guest, record.user.as_deref()).await;
    let user = user.map_err(|error| files::refused(&error))?;
    let call = Call { server, sandbox, guest, user };
    let method = request.method().as_str().to_owned();
    match (method.as_str(), path) {
        ("POST", ["process", "execute"]) => call.execute(body(request).await?).await,
        ("POST", ["process", "code-run"]) => call.run_code(body(request).await?).await,
        ("GET", ["work-dir" | "user-home-dir"]) => Ok(say(&json!({ "dir": call.user.home }))),
        ("GET", ["version"]) => Ok(say(&json!({ "version": env!("CARGO_PKG_VERSION") }))),
        ("GET", ["system", "metrics"]) => call.measured().await,
        (_, ["process", "session", rest @ ..]) => session::answer(&call, rest, request).await,
        (_, ["process", "pty", rest @ ..]) => terminal::answer(&call, rest, request).await,
        (_, ["files", rest @ ..]) => files::answer(&call, rest, request).await,
        (_, ["git", rest @ ..]) => git::answer(&call, rest, request).await,
        _ => Err(refuse(501, format!("the emulator does not serve {method} /toolbox/ID/{}", path.join("/")))),
    }
}

#[derive(Deserialize)]
struct Execute {
    command: String,
    cwd: Option<String>,
    envs: Option<BTreeMap<String, String>>,
    /// Seconds; nothing and 0 are no limit.
    timeout: Option<u64>,
}

#[derive(Deserialize)]
struct CodeRun {
    code: String,
    language: String,
    argv: Option<Vec<String>>,
    envs: Option<BTreeMap<String, String>>,
    timeout: Option<u64>,
}

impl Call<'_> {
    /// What the sandbox uses now.
    async fn measured(&self) -> Result<Response, Response> {
        let usage = measure(&*self.guest).await.map_err(|error| refused(&CallError::Guest(error)))?;
        let now = self.server.emulation.now();
        Ok(say(&json!({
            "timestamp": control::rfc3339(now),
            "timestampUnix": now.0 / 1000,
            "cpuCount": usage.cpus,
            // Of all that it has.
            "cpuUsedPct": usage.cpu_percent / f64::from(usage.cpus.max(1)),
            "memUsed": usage.memory,
            "memTotal": usage.memory_total,
            "memCache": usage.cache,
            "diskUsed": usage.disk,
            "diskTotal": usage.disk_total,
            "diskFree": usage.disk_total.saturating_sub(usage.disk),
        })))
    }

    /// A command with the environment of the sandbox.
    pub async fn command(
        &self,
        argv: &[&str],
        cwd: Option<&str>,
        envs: BTreeMap<String, String>,
    ) -> Result<Command, Response> {
        let env = self.server.emulation.env(&self.sandbox).await.map_err(|error| refused(&error))?;
        let mut command = Command::new(argv.iter().copied());
        command.env.clone_from(&env);
        command.env.extend(envs);
        command.cwd = cwd.filter(|cwd| !cwd.is_empty()).map(|cwd| self.user.path(cwd));
        command.user.clone_from(&self.user.name);
        Ok(command)
    }

    pub fn start(&self, command: Command) -> Start {
        Start { command, home: self.user.home.clone(), terminal: None, stdin: false, tag: None }
    }

    async fn execute(&self, asked: Execute) -> Result<Response, Response> {
        if asked.command.trim().is_empty() {
            return Err(refuse(400, "command is empty"));
        }
        // The vendor answers both outputs as one.
        let both = "exec 2>&1; exec \"$@\"";
        let argv = ["sh", "-c", both, "pocketenv-execute", "bash", "-c", &asked.command];
        let plain = ["sh", "-c", both, "pocketenv-execute", "sh", "-c", &asked.command];
        let argv = if self.has_bash().await? { argv } else { plain };
        let command = self.command(&argv, asked.cwd.as_deref(), asked.envs.unwrap_or_default()).await?;
        let (code, result) = self.finish(command, asked.timeout).await?;
        Ok(say(&json!({ "exitCode": code, "result": result })))
    }

    /// Runs a program that is given as text, with what the image has for its language. Nothing is drawn here, so there are never charts.
    async fn run_code(&self, asked: CodeRun) -> Result<Response, Response> {
        if asked.code.len() > CODE_LIMIT {
            return Err(refuse(400, format!("code: the emulator runs at most {CODE_LIMIT} bytes")));
        }
        let program: &[&str] = match asked.language.as_str() {
            "python" => &["python3", "-u", "-c", &asked.code],
            "javascript" => &["node", "-e", &asked.code, "--"],
            other => return Err(refuse(400, format!("the emulator does not run `{other}`"))),
        };
        let mut argv = vec!["sh", "-c", "exec 2>&1; exec \"$@\"", "pocketenv-code"];
        argv.extend(program);
        argv.extend(asked.argv.iter().flatten().map(String::as_str));
        let command = self.command(&argv, None, asked.envs.unwrap_or_default()).await?;
        let (code, result) = self.finish(command, asked.timeout).await?;
        Ok(say(&json!({ "exitCode": code, "result": result, "artifacts": { "charts": [] } })))
    }

    /// Runs a command to its end, which `timeout` puts in seconds; its exit code and what it wrote.
    async fn finish(&self, mut command: Command, timeout: Option<u64>) -> Result<(i32, String), Response> {
        command.timeout = timeout.filter(|&seconds| seconds > 0).map(Duration::from_secs);
        let started = self.sandbox.processes.start(self.guest.clone(), self.start(command)).await;
        let (_, mut events) = started.map_err(|error| start_error(&error))?;
        let mut output = Vec::new();
        loop {
            match events.recv().await {
                Some(Event::Out(bytes) | Event::Err(bytes)) => {
                    let room = OUTPUT_LIMIT.saturating_sub(output.len());
                    output.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Some(Event::End(End::Status(status))) => {
                    return Ok((status.code(), String::from_utf8_lossy(&output).into_owned()));
                }
                Some(Event::End(End::TimedOut)) => {
                    return Err(refuse(408, "command execution timeout"));
                }
                Some(Event::End(End::Lost(why))) => {
                    return Err(refuse(500, format!("the command was lost: {why}")));
                }
                None => return Err(refuse(500, "the command cannot be followed any more")),
            }
        }
    }

    /// Whether there is a bash; else sh does for most of what programs run.
    async fn has_bash(&self) -> Result<bool, Response> {
        let mut command = Command::new(["sh", "-c", "command -v bash"]);
        command.cwd = Some("/".to_owned());
        let output = crate::provider::capture(&*self.guest, &command, &[], 1024).await;
        output.map(|output| output.status.success()).map_err(|error| refused(&CallError::Guest(error)))
    }

    /// The path that a parameter of the query names.
    pub fn path(&self, query: &[(String, String)], name: &str) -> Result<String, Response> {
        let path = parameter(query, name).filter(|path| !path.is_empty());
        path.map(|path| self.user.path(path)).ok_or_else(|| refuse(400, format!("{name} is required")))
    }
}

pub(super) fn start_error(error: &StartError) -> Response {
    match error {
        StartError::NoDirectory(_) | StartError::NoProgram(_) => refuse(400, error.to_string()),
        StartError::Guest(_) => refuse(500, with_causes(error)),
    }
}

/// Nothing to say but that it was done.
pub(super) fn done(status: StatusCode) -> Response {
    status.into_response()
}

pub(super) fn missing(path: &str) -> Response {
    files::refused(&FileError::Missing(path.to_owned()))
}
