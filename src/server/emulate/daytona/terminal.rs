//! Terminals, over WebSocket.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request};
use axum::http::header::SEC_WEBSOCKET_PROTOCOL;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::process::{End, Event, Process};
use super::super::request::{parameter, parameters};
use super::toolbox::{Call, start_error};
use super::{answer as say, body, refuse};
use crate::provider::PtyRequest;

/// Asks that the end is told as a message.
const EXIT_CONTROL: &str = "X-Daytona-Pty-Exit-Control";
/// Carries the environment.
const ENVS: &str = "X-Daytona-Pty-Envs~";
/// The largest terminal.
const SIDE_LIMIT: u16 = 1000;

#[derive(Deserialize)]
struct Size {
    cols: u16,
    rows: u16,
}

fn size(cols: u16, rows: u16) -> Result<PtyRequest, Response> {
    if cols > SIDE_LIMIT || rows > SIDE_LIMIT {
        return Err(refuse(400, format!("a terminal has at most {SIDE_LIMIT} columns and rows")));
    }
    Ok(PtyRequest { rows: rows.max(1), cols: cols.max(1) })
}

/// Terminals are told from other processes by their tags.
fn tag(id: &str) -> String {
    format!("pty:{id}")
}

fn info(process: &Process) -> Value {
    let id = process.tag.as_deref().unwrap_or_default();
    let size = process.size().unwrap_or(PtyRequest { rows: 24, cols: 80 });
    json!({
        "cols": size.cols,
        "rows": size.rows,
        "createdAt": process.started.to_string(),
        "id": id.strip_prefix("pty:").unwrap_or(id),
        "cwd": process.command.cwd.as_deref().unwrap_or_default(),
        "envs": process.command.env,
        "active": true,
        "lazyStart": false,
    })
}

/// Answers a request for terminals.
pub(super) async fn answer(call: &Call<'_>, path: &[&str], request: Request) -> Result<Response, Response> {
    let method = request.method().as_str().to_owned();
    let processes = &call.sandbox.processes;
    let find = |id: &str| {
        processes.tagged(&tag(id)).ok_or_else(|| refuse(404, format!("PTY session {id} not found")))
    };
    match (method.as_str(), path) {
        ("GET", ["create-connect"]) => create(call, request).await,
        ("GET", []) => {
            let all: Vec<Value> = processes
                .list()
                .iter()
                .filter(|process| process.terminal)
                .map(|process| info(process))
                .collect();
            Ok(say(&json!({ "sessions": all })))
        }
        ("GET", [id]) => Ok(say(&info(&*find(id)?))),
        ("DELETE", [id]) => {
            find(id)?.kill();
            Ok(say(&json!({ "message": "PTY session deleted" })))
        }
        ("POST", [id, "resize"]) => {
            let process = find(id)?;
            let asked: Size = body(request).await?;
            let resized = process.resize(size(asked.cols, asked.rows)?).await;
            resized.map_err(|error| refuse(410, error.to_string()))?;
            Ok(say(&info(&process)))
        }
        _ => Err(refuse(
            501,
            format!("the emulator does not serve {method} for terminals: {}", path.join("/")),
        )),
    }
}

async fn create(call: &Call<'_>, request: Request) -> Result<Response, Response> {
    let given = parameters(&request);
    let query = |name: &str| parameter(&given, name).filter(|text| !text.is_empty());
    let number = |name: &str, usual: u16| match query(name) {
        Some(text) => text.parse().map_err(|_| refuse(400, format!("{name} is no number: {text}"))),
        None => Ok(usual),
    };
    let id = query("id").ok_or_else(|| refuse(400, "id is required"))?;
    let size = size(number("cols", 80)?, number("rows", 24)?)?;
    let cwd = query("cwd");
    if call.sandbox.processes.tagged(&tag(id)).is_some() {
        return Err(refuse(409, format!("PTY session {id} already exists")));
    }
    let mut envs = BTreeMap::new();
    let protocols = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    let protocols: Vec<String> = protocols
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .collect();
    if let Some(text) = protocols.iter().find_map(|protocol| protocol.strip_prefix(ENVS)) {
        let wrong =
            || refuse(400, "the environment of the terminal is not base64 of a JSON object of strings");
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong())?;
        envs = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
    }
    let exit_control = protocols.iter().any(|protocol| protocol == EXIT_CONTROL);
    envs.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(axum::response::IntoResponse::into_response)?;
    let mut start = call.start(call.command(&["bash", "-i"], cwd, envs).await?);
    start.terminal = Some(size);
    start.tag = Some(tag(id));
    let started = call.sandbox.processes.start(call.guest.clone(), start).await;
    let (process, events) = started.map_err(|error| start_error(&error))?;
    Ok(upgrade
        .protocols([EXIT_CONTROL])
        .on_upgrade(move |socket| serve(process, events, socket, exit_control)))
}

async fn serve(
    process: Arc<Process>,
    mut events: mpsc::Receiver<Event>,
    mut socket: WebSocket,
    exit_control: bool,
) {
    let connected = json!({ "type": "control", "status": "connected" }).to_string();
    if socket.send(Message::Text(connected.into())).await.is_err() {
        process.kill();
        return;
    }
    let code = loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Out(data) | Event::Err(data)) => {
                    if socket.send(Message::Binary(data)).await.is_err() {
                        process.kill();
                        return;
                    }
                }
                Some(Event::End(End::Status(status))) => break status.code(),
                Some(Event::End(_)) | None => break -1,
            },
            heard = socket.recv() => match heard {
                Some(Ok(Message::Binary(data))) => { let _ = process.send(data, true).await; }
                Some(Ok(Message::Text(text))) => { let _ = process.send(Bytes::from(text), true).await; }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                // Nobody can come back to it here, so it ends with its connection.
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    process.kill();
                    return;
                }
            },
        }
    };
    if exit_control {
        let exited = json!({ "type": "control", "status": "exited", "exitCode": code }).to_string();
        let _ = socket.send(Message::Text(exited.into())).await;
    }
    let reason = json!({ "exitCode": code }).to_string();
    let frame = CloseFrame { code: if code == 0 { 1000 } else { 1011 }, reason: reason.into() };
    let _ = socket.send(Message::Close(Some(frame))).await;
}
