//! Sessions: shells that outlive a call. Commands run in one of them one after another, and what they change of it stays.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use super::super::process::{End, Event, Process};
use super::super::request::{parameter, parameters};
use super::super::{lock, record};
use super::toolbox::{Call, done, start_error};
use super::{answer as say, body, refuse};

/// What of one command's output is kept, on the disk.
const LOG_LIMIT: u64 = 1 << 30;
/// What of it is answered in one piece.
const ANSWER_LIMIT: u64 = 64 << 20;
/// What of it is told at once to whoever follows it.
const PIECE: u64 = 256 << 10;
/// Commands that wait in one session.
const QUEUE: usize = 256;
/// What begins a piece of standard output, and of standard error, in a stream of both.
const OUT: [u8; 3] = [1; 3];
const ERR: [u8; 3] = [2; 3];

/// All sessions, by sandbox and name.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<String, BTreeMap<String, Arc<Session>>>>);

impl Sessions {
    /// Forgets those of a sandbox, whose processes end with it.
    pub fn forget(&self, sandbox: &str) {
        lock(&self.0).remove(sandbox);
    }

    fn get(&self, sandbox: &str, id: &str) -> Option<Arc<Session>> {
        lock(&self.0).get(sandbox)?.get(id).cloned()
    }
}

struct Session {
    id: String,
    process: Arc<Process>,
    commands: Mutex<Vec<Arc<Run>>>,
    queue: mpsc::Sender<Arc<Run>>,
}

/// One command of a session.
struct Run {
    id: String,
    command: String,
    log: Mutex<Log>,
    /// Tells that the log has grown, or that the command has ended.
    changed: watch::Sender<()>,
}

/// What a command wrote, in a file that nobody else sees.
struct Log {
    file: Arc<File>,
    /// Where each stretch of one output ends, in order; true is standard error.
    pieces: Vec<(bool, u64)>,
    size: u64,
    code: Option<i32>,
}

impl Log {
    fn new() -> io::Result<Self> {
        Ok(Self { file: Arc::new(tempfile::tempfile()?), pieces: Vec::new(), size: 0, code: None })
    }

    fn push(&mut self, err: bool, data: &[u8]) -> io::Result<()> {
        let room = usize::try_from(LOG_LIMIT.saturating_sub(self.size)).unwrap_or(usize::MAX);
        let data = &data[..data.len().min(room)];
        self.file.write_all_at(data, self.size)?;
        self.size += data.len() as u64;
        match self.pieces.last_mut() {
            Some((same, end)) if *same == err => *end = self.size,
            _ => self.pieces.push((err, self.size)),
        }
        Ok(())
    }

    /// The next of it from a place on, of one output; `None` if there is no more yet.
    fn read(&self, from: u64, most: u64) -> io::Result<Option<(bool, Vec<u8>)>> {
        let at = self.pieces.partition_point(|(_, end)| *end <= from);
        let Some((err, end)) = self.pieces.get(at) else { return Ok(None) };
        let length = (end - from).min(most);
        let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
        self.file.read_exact_at(&mut data, from)?;
        Ok(Some((*err, data)))
    }
}

impl Run {
    fn push(&self, err: bool, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        if let Err(error) = lock(&self.log).push(err, data) {
            tracing::error!(%error, "the output of a command could not be kept");
        }
        self.changed.send_replace(());
    }

    fn end(&self, code: i32) {
        lock(&self.log).code = Some(code);
        self.changed.send_replace(());
    }

    async fn ended(&self) -> i32 {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(code) = lock(&self.log).code {
                return code;
            }
            if changed.changed().await.is_err() {
                return -1;
            }
        }
    }

    fn output(&self) -> Result<(String, String, String), Response> {
        let (mut both, mut out, mut err) = (Vec::new(), Vec::new(), Vec::new());
        let log = lock(&self.log);
        let mut told = 0;
        while told < ANSWER_LIMIT
            && let Some((is_err, data)) =
                log.read(told, ANSWER_LIMIT - told).map_err(|error| unkept(&error))?
        {
            told += data.len() as u64;
            both.extend_from_slice(&data);
            if is_err { &mut err } else { &mut out }.extend_from_slice(&data);
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((text(both), text(out), text(err)))
    }

    fn info(&self) -> Value {
        let mut info = json!({ "id": self.id, "command": self.command });
        if let Some(code) = lock(&self.log).code {
            info["exitCode"] = json!(code);
        }
        info
    }
}

impl Session {
    fn info(&self) -> Value {
        let commands: Vec<Value> = lock(&self.commands).iter().map(|run| run.info()).collect();
        json!({ "sessionId": self.id, "commands": commands })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    #[serde(default)]
    session_id: String,
    #[serde(default)]
    command: String,
    run_async: Option<bool>,
    /// The older name.
    r#async: Option<bool>,
    #[serde(default)]
    data: String,
}

/// Answers a request for sessions.
pub(super) async fn answer(call: &Call<'_>, path: &[&str], request: Request) -> Result<Response, Response> {
    let method = request.method().as_str().to_owned();
    let sandbox = call.sandbox.record().id;
    let sessions = &call.server.sessions;
    let find =
        |id: &str| sessions.get(&sandbox, id).ok_or_else(|| refuse(404, format!("session {id} not found")));
    let run_of = |session: &str, id: &str| {
        let session = find(session)?;
        let found = lock(&session.commands).iter().find(|run| run.id == id).cloned();
        found.map(|run| (session, run)).ok_or_else(|| refuse(404, format!("command {id} not found")))
    };
    match (method.as_str(), path) {
        ("POST", []) => {
            let asked: Asked = body(request).await?;
            if asked.session_id.is_empty() {
                return Err(refuse(400, "sessionId is required"));
            }
            if sessions.get(&sandbox, &asked.session_id).is_some() {
                return Err(refuse(409, "session already exists"));
            }
            let session = open(call, asked.session_id).await?;
            lock(&sessions.0).entry(sandbox).or_default().insert(session.id.clone(), session);
            Ok(done(StatusCode::CREATED))
        }
        ("GET", []) => {
            let all: Vec<Value> = lock(&sessions.0)
                .get(&sandbox)
                .map(|all| all.values().map(|session| session.info()).collect())
                .unwrap_or_default();
            Ok(say(&all))
        }
        ("GET", [id]) => Ok(say(&find(id)?.info())),
        ("DELETE", [id]) => {
            find(id)?.process.kill();
            if let Some(all) = lock(&sessions.0).get_mut(&sandbox) {
                all.remove(*id);
            }
            Ok(done(StatusCode::NO_CONTENT))
        }
        ("POST", [id, "exec"]) => {
            let session = find(id)?;
            let asked: Asked = body(request).await?;
            if asked.command.trim().is_empty() {
                return Err(refuse(400, "command is required"));
            }
            let run = Arc::new(Run {
                id: record::token()[..16].to_owned(),
                command: asked.command,
                log: Mutex::new(Log::new().map_err(|error| unkept(&error))?),
                changed: watch::Sender::new(()),
            });
            session.queue.try_send(run.clone()).map_err(|error| match error {
                TrySendError::Full(_) => refuse(429, format!("{QUEUE} commands wait in the session already")),
                TrySendError::Closed(_) => refuse(410, "the shell of the session has ended"),
            })?;
            lock(&session.commands).push(run.clone());
            if asked.run_async.or(asked.r#async).unwrap_or_default() {
                let said = say(&json!({ "cmdId": run.id }));
                return Ok((StatusCode::ACCEPTED, said).into_response());
            }
            let code = run.ended().await;
            let (output, stdout, stderr) = run.output()?;
            Ok(say(&json!({
                "cmdId": run.id, "exitCode": code, "output": output, "stdout": stdout, "stderr": stderr,
            })))
        }
        ("GET", [id, "command", command]) => Ok(say(&run_of(id, command)?.1.info())),
        ("POST", [id, "command", command, "input"]) => {
            let (session, run) = run_of(id, command)?;
            let asked: Asked = body(request).await?;
            if lock(&run.log).code.is_some() {
                return Err(refuse(410, "the command has ended"));
            }
            let sent = session.process.send(asked.data.into(), false).await;
            sent.map_err(|error| refuse(410, error.to_string()))?;
            Ok(done(StatusCode::NO_CONTENT))
        }
        ("GET", [id, "command", command, "logs"]) => {
            let (_, run) = run_of(id, command)?;
            if parameter(&parameters(&request), "follow") != Some("true") {
                let (output, stdout, stderr) = run.output()?;
                return Ok(say(&json!({ "output": output, "stdout": stdout, "stderr": stderr })));
            }
            let (mut parts, _) = request.into_parts();
            let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
            let upgrade = upgrade.map_err(axum::response::IntoResponse::into_response)?;
            Ok(upgrade.on_upgrade(move |socket| follow(run, socket)))
        }
        _ => {
            Err(refuse(501, format!("the emulator does not serve {method} for sessions: {}", path.join("/"))))
        }
    }
}

fn unkept(error: &io::Error) -> Response {
    refuse(500, format!("the output of the command cannot be kept: {error}"))
}

async fn open(call: &Call<'_>, id: String) -> Result<Arc<Session>, Response> {
    let token = record::token();
    let script = include_str!("../sh/session.sh");
    let argv = ["bash", "-c", script, "pocketenv-session", &token];
    let mut start = call.start(call.command(&argv, None, BTreeMap::new()).await?);
    start.stdin = true;
    let started = call.sandbox.processes.start(call.guest.clone(), start).await;
    let (process, events) = started.map_err(|error| start_error(&error))?;
    let (queue, queued) = mpsc::channel(QUEUE);
    let session = Arc::new(Session { id, process: process.clone(), commands: Mutex::default(), queue });
    tokio::spawn(work(process, token, events, queued));
    Ok(session)
}

/// Runs the commands of a session, one after another, until its shell ends.
async fn work(
    process: Arc<Process>,
    token: String,
    mut events: mpsc::Receiver<Event>,
    mut queue: mpsc::Receiver<Arc<Run>>,
) {
    let mark = format!("{token} ").into_bytes();
    while let Some(run) = queue.recv().await {
        let text = run.command.trim_end_matches('\n');
        let lines = text.split('\n').count();
        if process.send(format!("{token} {lines}\n{text}\n").into(), false).await.is_err() {
            run.end(-1);
            break;
        }
        let (mut out, mut err) = (Until::default(), Until::default());
        let code = loop {
            let (is_err, data, until) = match events.recv().await {
                Some(Event::Out(data)) => (false, data, &mut out),
                Some(Event::Err(data)) => (true, data, &mut err),
                Some(Event::End(End::Status(status))) => break Err(status.code()),
                Some(Event::End(_)) | None => break Err(-1),
            };
            run.push(is_err, &until.take(&data, &mark));
            if let (Some(code), Some(_)) = (out.status, err.status) {
                break Ok(code);
            }
        };
        match code {
            Ok(code) => run.end(code),
            Err(code) => {
                // The command ended its shell.
                run.push(false, &out.held);
                run.push(true, &err.held);
                run.end(code);
                break;
            }
        }
    }
    queue.close();
    while let Some(run) = queue.recv().await {
        run.end(-1);
    }
}

/// One output of the shell, up to what says that the command has ended.
#[derive(Default)]
struct Until {
    /// What may be the beginning of the mark.
    held: Vec<u8>,
    status: Option<i32>,
}

impl Until {
    /// What of it the command has written.
    fn take(&mut self, data: &[u8], mark: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(data);
        if let Some(at) = self.held.windows(mark.len()).position(|window| window == mark) {
            let said = &self.held[at + mark.len()..];
            if let Some(end) = said.iter().position(|&byte| byte == b'\n') {
                self.status = Some(String::from_utf8_lossy(&said[..end]).parse().unwrap_or(-1));
                let written = self.held[..at].to_vec();
                self.held.clear();
                return written;
            }
            return self.held.drain(..at).collect();
        }
        let longest = mark.len().saturating_sub(1).min(self.held.len());
        let kept = (0..=longest).rev().find(|&n| self.held.ends_with(&mark[..n])).unwrap_or_default();
        self.held.drain(..self.held.len() - kept).collect()
    }
}

/// Tells a client what a command writes, from its beginning to its end.
async fn follow(run: Arc<Run>, mut socket: WebSocket) {
    let mut changed = run.changed.subscribe();
    let mut told = 0;
    loop {
        changed.mark_unchanged();
        let (new, ended) = {
            let log = lock(&run.log);
            (log.read(told, PIECE), log.code.is_some())
        };
        match new {
            Ok(Some((is_err, data))) => {
                told += data.len() as u64;
                let mut frame = if is_err { ERR } else { OUT }.to_vec();
                frame.extend_from_slice(&data);
                if socket.send(Message::Binary(frame.into())).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(None) if ended => {
                let frame = CloseFrame { code: 1000, reason: "".into() };
                let _ = socket.send(Message::Close(Some(frame))).await;
                return;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "the output of a command could not be read");
                return;
            }
        }
        tokio::select! {
            grown = changed.changed() => if grown.is_err() { return },
            // Pings are answered by the library while it reads.
            heard = socket.recv() => if !matches!(heard, Some(Ok(_))) { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_command_is_found_however_it_is_cut() {
        let text = b"to\ntoken 1 tok\ntoken! 7\n";
        let mark = b"token! ";
        for size in 1..text.len() {
            let mut until = Until::default();
            let written: Vec<u8> = text.chunks(size).flat_map(|piece| until.take(piece, mark)).collect();
            assert_eq!((written.as_slice(), until.status), (&b"to\ntoken 1 tok\n"[..], Some(7)), "{size}");
        }
    }
}
