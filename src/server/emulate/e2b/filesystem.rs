//! `filesystem.Filesystem`: what is where inside a sandbox, and what happens to it.

use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use tokio::time::Instant;

use super::super::files::{self, Entry, FileError};
use super::super::watch::{self, Kind, Watch};
use super::connect::{self, Messages, Refusal, Sender};
use super::envd::Call;
use crate::model::with_causes;
use crate::provider::e2b::api::{Empty, EntryInfo, FileAnswer, FileCall, FileEvent, WatchMessage};

/// The deepest listing.
const DEPTH_LIMIT: u32 = 1000;

/// Answers a call.
pub(super) async fn serve(call: &Call<'_>, method: &str, request: Request) -> Response {
    let headers = request.headers().clone();
    if method == "WatchDir" {
        return watch_dir(call, request).await;
    }
    let known = [
        "Stat",
        "ListDir",
        "MakeDir",
        "Move",
        "Remove",
        "CreateWatcher",
        "GetWatcherEvents",
        "RemoveWatcher",
    ];
    if !known.contains(&method) {
        let message = format!("the emulator does not serve filesystem.Filesystem/{method}");
        return Refusal::new("unimplemented", message).into_response();
    }
    let asked: FileCall = match connect::message(request).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let user = match call.user(&headers).await {
        Ok(user) => user,
        Err(refusal) => return refusal.into_response(),
    };
    let guest = &*call.guest;
    let path = user.path(&asked.path);
    let done = FileAnswer::default;
    let answer = match method {
        "Stat" => files::stat(guest, &path).await.map(of_entry),
        "ListDir" => {
            let depth = asked.depth.unwrap_or_default().clamp(1, DEPTH_LIMIT);
            let listed = files::list(guest, &path, depth).await;
            listed.map(|entries| FileAnswer { entries: Some(entries.iter().map(info).collect()), ..done() })
        }
        "MakeDir" => match files::make_dir(guest, &path, &user).await {
            Ok(()) => files::stat(guest, &path).await.map(of_entry),
            Err(error) => Err(error),
        },
        "Move" => {
            let (from, to) = (user.path(&asked.source), user.path(&asked.destination));
            match files::rename(guest, &from, &to, &user).await {
                Ok(()) => files::stat(guest, &to).await.map(of_entry),
                Err(error) => Err(error),
            }
        }
        "Remove" => files::remove(guest, &path).await.map(|()| done()),
        "CreateWatcher" => match watch::watch(call.guest.clone(), &path, asked.recursive).await {
            Ok(watch) => Ok(FileAnswer { watcher_id: Some(call.sandbox.watchers.add(watch)), ..done() }),
            Err(error) => Err(error),
        },
        "GetWatcherEvents" => match call.sandbox.watchers.take(&asked.watcher_id) {
            None => return no_watcher(&asked.watcher_id).into_response(),
            Some(Err(error)) => return Refusal::new("internal", error).into_response(),
            Some(Ok(events)) => {
                Ok(FileAnswer { events: Some(events.into_iter().map(event).collect()), ..done() })
            }
        },
        _ => match call.sandbox.watchers.remove(&asked.watcher_id) {
            false => return no_watcher(&asked.watcher_id).into_response(),
            true => Ok(done()),
        },
    };
    connect::answer(answer.map_err(|error| refusal(&error)))
}

fn no_watcher(id: &str) -> Refusal {
    Refusal::new("not_found", format!("watcher with id {id} not found"))
}

fn refusal(error: &FileError) -> Refusal {
    let code = match error {
        FileError::Missing(_) => "not_found",
        FileError::NotADirectory(_) | FileError::Directory(_) => "invalid_argument",
        FileError::Exists(_) => "already_exists",
        FileError::NoUser(_) => "unauthenticated",
        FileError::NoSpace(_) => "resource_exhausted",
        FileError::Failed(_) => "internal",
        FileError::Guest(_) => "unavailable",
    };
    Refusal::new(code, with_causes(error))
}

fn of_entry(entry: Entry) -> FileAnswer {
    FileAnswer { entry: Some(info(&entry)), ..FileAnswer::default() }
}

fn info(entry: &Entry) -> EntryInfo {
    // Of a link, what it leads to.
    let mode = match &entry.target {
        Some((_, target)) => target.unwrap_or_default(),
        None => entry.mode,
    };
    let kind = match mode & 0o170_000 {
        0o100_000 => "FILE_TYPE_FILE",
        0o040_000 => "FILE_TYPE_DIRECTORY",
        _ => "FILE_TYPE_UNSPECIFIED",
    };
    let modified = jiff::Timestamp::from_millisecond(entry.modified.0).unwrap_or_default();
    EntryInfo {
        name: entry.name().to_owned(),
        kind: kind.to_owned(),
        path: entry.path.clone(),
        size: entry.size.to_string(),
        mode: mode & 0o777,
        permissions: permissions(entry.mode),
        owner: entry.owner.clone(),
        group: entry.group.clone(),
        modified_time: Some(modified.to_string()),
        symlink_target: entry.target.as_ref().map(|(target, _)| target.clone()),
    }
}

/// As the vendor's agent, which is written in Go, has them: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`.
fn permissions(mode: u32) -> String {
    let mut text = String::new();
    match mode & 0o170_000 {
        0o040_000 => text.push('d'),
        0o120_000 => text.push('L'),
        0o060_000 => text.push('D'),
        0o010_000 => text.push('p'),
        0o140_000 => text.push('S'),
        0o020_000 => text.push_str("Dc"),
        _ => {}
    }
    for (bit, letter) in [(0o4000, 'u'), (0o2000, 'g'), (0o1000, 't')] {
        if mode & bit != 0 {
            text.push(letter);
        }
    }
    if text.is_empty() {
        text.push('-');
    }
    for (at, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> at) != 0 { letter } else { '-' });
    }
    text
}

fn event(event: watch::Event) -> FileEvent {
    let kind = match event.kind {
        Kind::Create => "EVENT_TYPE_CREATE",
        Kind::Write => "EVENT_TYPE_WRITE",
        Kind::Remove => "EVENT_TYPE_REMOVE",
        Kind::Rename => "EVENT_TYPE_RENAME",
        Kind::Chmod => "EVENT_TYPE_CHMOD",
    };
    FileEvent { name: event.name, kind: kind.to_owned() }
}

async fn watch_dir(call: &Call<'_>, request: Request) -> Response {
    let headers = request.headers().clone();
    let mut messages = match Messages::of(request) {
        Ok(messages) => messages,
        Err(response) => return response,
    };
    let begin = async {
        let asked: FileCall = messages.next().await?.unwrap_or_default();
        let path = call.user(&headers).await?.path(&asked.path);
        watch::watch(call.guest.clone(), &path, asked.recursive).await.map_err(|error| refusal(&error))
    };
    match begin.await {
        Err(refusal) => connect::ended::<Empty>(Err(refusal)).await,
        Ok(watch) => {
            let (sender, response) = connect::stream();
            let deadline = connect::timeout(&headers).map(|limit| Instant::now() + limit);
            tokio::spawn(tell(watch, sender, deadline, connect::keepalive(&headers)));
            response
        }
    }
}

async fn tell(mut watch: Watch, sender: Sender, deadline: Option<Instant>, pause: Duration) {
    let started = WatchMessage { start: Some(Empty {}), ..WatchMessage::default() };
    if !sender.send(&started).await {
        return;
    }
    let over = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let result = loop {
        let events = tokio::select! {
            events = watch.next() => events,
            () = &mut over => break Err(Refusal::new("deadline_exceeded", "the time of the call is over")),
            () = sender.closed() => return,
            () = tokio::time::sleep(pause) => {
                let alive = WatchMessage { keepalive: Some(Empty {}), ..WatchMessage::default() };
                if !sender.send(&alive).await {
                    return;
                }
                continue;
            }
        };
        match events {
            Some(Ok(events)) => {
                for one in events {
                    let message = WatchMessage { filesystem: Some(event(one)), ..WatchMessage::default() };
                    if !sender.send(&message).await {
                        return;
                    }
                }
            }
            Some(Err(error)) => break Err(refusal(&error)),
            None => break Err(Refusal::new("unavailable", "the directory cannot be watched any more")),
        }
    };
    sender.end(result).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_written_as_go_writes_them() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "Lrwxrwxrwx"),
            (0o041_777, "dtrwxrwxrwx"),
            (0o104_755, "urwxr-xr-x"),
        ] {
            assert_eq!(permissions(mode), text);
        }
    }
}
