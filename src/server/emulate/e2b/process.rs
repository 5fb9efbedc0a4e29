//! `process.Process`: programs inside a sandbox.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::process::{End, Event, InputError, Process, Start, StartError};
use super::connect::{self, Messages, Refusal, Sender};
use super::envd::Call;
use crate::model::with_causes;
use crate::provider::e2b::api::{
    Empty, Ended, ProcessCall, ProcessConfig, ProcessEvent, ProcessInfo, ProcessInput, ProcessList,
    ProcessMessage, ProcessOutput, Selector, StartProcess, Started, StreamInput, Terminal,
};
use crate::provider::{Command, ExitStatus, GuestError, PtyRequest};

/// Answers a call.
pub(super) async fn serve(call: &Call<'_>, method: &str, request: Request) -> Response {
    match method {
        "Start" => start(call, request).await,
        "Connect" => connect_to(call, request).await,
        "StreamInput" => stream_input(call, request).await,
        "List" => match connect::message::<Empty>(request).await {
            Ok(_) => connect::answer(Ok(list(call))),
            Err(response) => response,
        },
        "SendInput" | "SendSignal" | "CloseStdin" | "Update" => {
            match connect::message::<ProcessCall>(request).await {
                Ok(asked) => connect::answer(change(call, method, asked).await),
                Err(response) => response,
            }
        }
        _ => Refusal::new("unimplemented", format!("the emulator does not serve process.Process/{method}"))
            .into_response(),
    }
}

fn select(call: &Call<'_>, selector: Option<Selector>) -> Result<Arc<Process>, Refusal> {
    let processes = &call.sandbox.processes;
    match selector.unwrap_or_default() {
        Selector { pid: Some(pid), .. } => processes
            .get(pid)
            .ok_or_else(|| Refusal::new("not_found", format!("process with pid {pid} not found"))),
        Selector { tag: Some(tag), .. } => processes
            .tagged(&tag)
            .ok_or_else(|| Refusal::new("not_found", format!("process with tag {tag} not found"))),
        Selector { .. } => Err(Refusal::new("invalid_argument", "no process is named")),
    }
}

fn list(call: &Call<'_>) -> ProcessList {
    let info = |process: Arc<Process>| {
        let (cmd, args) = process
            .command
            .argv
            .split_first()
            .map_or_else(Default::default, |(cmd, args)| (cmd.clone(), args.to_vec()));
        let config =
            ProcessConfig { cmd, args, envs: process.command.env.clone(), cwd: process.command.cwd.clone() };
        ProcessInfo { config, pid: process.pid, tag: process.tag.clone() }
    };
    ProcessList { processes: call.sandbox.processes.list().into_iter().map(info).collect() }
}

fn size(terminal: Terminal) -> PtyRequest {
    let size = terminal.size.unwrap_or_default();
    PtyRequest { rows: size.rows.max(1), cols: size.cols.max(1) }
}

fn input_error(error: InputError) -> Refusal {
    Refusal::new("failed_precondition", error.to_string())
}

async fn change(call: &Call<'_>, method: &str, asked: ProcessCall) -> Result<Empty, Refusal> {
    let process = select(call, asked.process)?;
    match method {
        "SendInput" => give(&process, asked.input).await?,
        "CloseStdin" if process.terminal => {
            let message = "cannot close stdin for PTY process — send Ctrl+D (0x04) instead";
            return Err(Refusal::new("failed_precondition", message));
        }
        "CloseStdin" => process.close_input(),
        "Update" => {
            if let Some(terminal) = asked.pty {
                process.resize(size(terminal)).await.map_err(input_error)?;
            }
        }
        _ => match asked.signal {
            Some(Value::String(name)) if name == "SIGNAL_SIGKILL" => process.kill(),
            Some(Value::Number(number)) if number.as_u64() == Some(9) => process.kill(),
            Some(Value::String(name)) if name == "SIGNAL_SIGTERM" => terminate(call, &process).await?,
            Some(Value::Number(number)) if number.as_u64() == Some(15) => terminate(call, &process).await?,
            other => {
                let message = format!("invalid signal: {}", other.unwrap_or_default());
                return Err(Refusal::new("unimplemented", message));
            }
        },
    }
    Ok(Empty {})
}

async fn terminate(call: &Call<'_>, process: &Process) -> Result<(), Refusal> {
    let sent = process.terminate(&*call.guest).await;
    sent.map_err(|error| Refusal::new("internal", format!("error sending signal: {error}")))
}

async fn give(process: &Process, input: Option<ProcessInput>) -> Result<(), Refusal> {
    match input.unwrap_or_default() {
        ProcessInput { stdin: Some(data), .. } => process.send(data.into(), false).await.map_err(input_error),
        ProcessInput { pty: Some(data), .. } => process.send(data.into(), true).await.map_err(input_error),
        ProcessInput { .. } => Err(Refusal::new("invalid_argument", "there is no input")),
    }
}

async fn stream_input(call: &Call<'_>, request: Request) -> Response {
    let mut messages = match Messages::of(request) {
        Ok(messages) => messages,
        Err(response) => return response,
    };
    let read = async {
        let mut process = None;
        while let Some(message) = messages.next::<StreamInput>().await? {
            if let Some(start) = message.start {
                process = Some(select(call, start.process)?);
            } else if let Some(data) = message.data {
                let missing = || Refusal::new("invalid_argument", "input before it is said for whom");
                give(process.as_ref().ok_or_else(missing)?, data.input).await?;
            }
        }
        Ok(Empty {})
    };
    connect::ended(read.await).await
}

/// The one message of a call that is answered by a stream.
async fn only<T: serde::de::DeserializeOwned + Default>(
    request: Request,
) -> Result<Result<T, Refusal>, Response> {
    let mut messages = Messages::of(request)?;
    Ok(messages.next().await.map(Option::unwrap_or_default))
}

async fn start(call: &Call<'_>, request: Request) -> Response {
    let headers = request.headers().clone();
    let asked = match only::<StartProcess>(request).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(refusal)) => return connect::ended::<Empty>(Err(refusal)).await,
        Err(response) => return response,
    };
    match begin(call, &headers, asked).await {
        Ok((process, events)) => follow(process, events, &headers),
        Err(refusal) => connect::ended::<Empty>(Err(refusal)).await,
    }
}

async fn begin(
    call: &Call<'_>,
    headers: &HeaderMap,
    asked: StartProcess,
) -> Result<(Arc<Process>, mpsc::Receiver<Event>), Refusal> {
    let user = call.user(headers).await?;
    let internal = |error: &dyn std::error::Error| Refusal::new("internal", with_causes(error));
    let env = call.server.emulation.env(&call.sandbox).await.map_err(|error| internal(&error))?;
    if asked.process.cmd.is_empty() {
        return Err(Refusal::new("invalid_argument", "there is no command"));
    }
    let mut command = Command::new(std::iter::once(asked.process.cmd).chain(asked.process.args));
    command.env.clone_from(&env);
    command.env.extend(asked.process.envs);
    command.cwd = asked.process.cwd.filter(|cwd| !cwd.is_empty()).map(|cwd| user.path(&cwd));
    command.user = user.name;
    command.timeout = connect::timeout(headers);
    let start = Start {
        command,
        home: user.home,
        terminal: asked.pty.map(size),
        stdin: asked.stdin.unwrap_or(true),
        tag: asked.tag,
    };
    call.sandbox.processes.start(call.guest.clone(), start).await.map_err(|error| match &error {
        StartError::NoDirectory(_) | StartError::NoProgram(_) => {
            Refusal::new("invalid_argument", error.to_string())
        }
        StartError::Guest(GuestError::NotExecutable { .. }) => internal(&error),
        StartError::Guest(_) => Refusal::new("unavailable", with_causes(&error)),
    })
}

async fn connect_to(call: &Call<'_>, request: Request) -> Response {
    let headers = request.headers().clone();
    let asked = match only::<ProcessCall>(request).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    match asked.and_then(|asked| select(call, asked.process)) {
        Ok(process) => {
            let events = process.listen();
            follow(process, events, &headers)
        }
        Err(refusal) => connect::ended::<Empty>(Err(refusal)).await,
    }
}

/// Tells a client what a process does, until it ends or the client's time is over. The process does not mind whether anybody listens.
fn follow(process: Arc<Process>, events: mpsc::Receiver<Event>, headers: &HeaderMap) -> Response {
    let (sender, response) = connect::stream();
    let deadline = connect::timeout(headers).map(|limit| Instant::now() + limit);
    let pause = connect::keepalive(headers);
    tokio::spawn(tell(process, events, sender, deadline, pause));
    response
}

async fn tell(
    process: Arc<Process>,
    mut events: mpsc::Receiver<Event>,
    sender: Sender,
    deadline: Option<Instant>,
    pause: Duration,
) {
    let message = |event| ProcessMessage { event };
    let started = ProcessEvent { start: Some(Started { pid: process.pid }), ..ProcessEvent::default() };
    if !sender.send(&message(started)).await {
        return;
    }
    let over = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let late = || Refusal::new("deadline_exceeded", "the time of the call is over");
    let result = loop {
        let event = tokio::select! {
            // What it wrote before its time was over is told.
            biased;
            event = events.recv() => event,
            () = &mut over => break Err(late()),
            () = sender.closed() => return,
            () = tokio::time::sleep(pause) => {
                let alive = ProcessEvent { keepalive: Some(Empty {}), ..ProcessEvent::default() };
                if !sender.send(&message(alive)).await {
                    return;
                }
                continue;
            }
        };
        let output = |bytes: Bytes| Some(bytes.to_vec());
        let data = match event {
            Some(Event::Out(bytes)) if process.terminal => {
                ProcessOutput { pty: output(bytes), ..ProcessOutput::default() }
            }
            Some(Event::Out(bytes)) => ProcessOutput { stdout: output(bytes), ..ProcessOutput::default() },
            Some(Event::Err(bytes)) => ProcessOutput { stderr: output(bytes), ..ProcessOutput::default() },
            Some(Event::End(End::Status(status))) => {
                let end = ProcessEvent { end: Some(ended(status)), ..ProcessEvent::default() };
                sender.send(&message(end)).await;
                break Ok(());
            }
            Some(Event::End(End::TimedOut)) => break Err(late()),
            Some(Event::End(End::Lost(why))) => {
                let message =
                    format!("the connection to the process ended before the stream completed: {why}");
                break Err(Refusal::new("unavailable", message));
            }
            None => break Err(Refusal::new("unavailable", "the process cannot be followed any more")),
        };
        if !sender.send(&message(ProcessEvent { data: Some(data), ..ProcessEvent::default() })).await {
            return;
        }
    };
    sender.end(result).await;
}

/// How a process ended, in the words of the vendor's agent.
fn ended(status: ExitStatus) -> Ended {
    match status {
        ExitStatus::Code(code) => {
            let status = format!("exit status {code}");
            Ended { exit_code: code, exited: true, error: (code != 0).then(|| status.clone()), status }
        }
        ExitStatus::Signal(signal) => {
            let name = match signal {
                1 => "hangup".to_owned(),
                2 => "interrupt".to_owned(),
                3 => "quit".to_owned(),
                6 => "aborted".to_owned(),
                9 => "killed".to_owned(),
                11 => "segmentation fault".to_owned(),
                13 => "broken pipe".to_owned(),
                15 => "terminated".to_owned(),
                other => format!("signal {other}"),
            };
            let status = format!("signal: {name}");
            Ended { exit_code: -1, exited: false, error: Some(status.clone()), status }
        }
    }
}
