//! Files inside a sandbox.

use std::collections::BTreeMap;
use std::io;

use axum::body::Body;
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use super::super::files::{self, Entry, FileError};
use super::super::record;
use super::super::request::{parameter, parameters};
use super::toolbox::{Call, done, missing};
use super::{answer as say, body, refuse};
use crate::model::with_causes;
use crate::provider::{CapturedOutput, Command, capture};

/// The longest list of matches.
const MATCHES: usize = 16 << 20;
/// The largest file in which text is replaced.
const REPLACE_LIMIT: u64 = 64 << 20;
/// The deepest listing.
const DEPTH_LIMIT: u32 = 64;

/// Answers a request for files.
pub(super) async fn answer(call: &Call<'_>, path: &[&str], request: Request) -> Result<Response, Response> {
    let method = request.method().as_str().to_owned();
    let guest = &*call.guest;
    let given = parameters(&request);
    let query = |name: &str| parameter(&given, name).filter(|text| !text.is_empty());
    match (method.as_str(), path) {
        ("GET", []) => {
            let path = query("path").map_or_else(|| call.user.home.clone(), |path| call.user.path(path));
            let depth = match query("depth") {
                Some(text) => {
                    text.parse().ok().filter(|depth| (1..=DEPTH_LIMIT).contains(depth)).ok_or_else(|| {
                        refuse(400, format!("depth is not a number from 1 to {DEPTH_LIMIT}"))
                    })?
                }
                None => 1,
            };
            let entries = files::list(guest, &path, depth).await.map_err(|error| refused(&error))?;
            Ok(say(&entries.iter().map(info).collect::<Vec<_>>()))
        }
        ("DELETE", []) => {
            let path = call.path(&given, "path")?;
            let entry = files::stat(guest, &path).await.map_err(|error| refused(&error))?;
            if entry.is_dir() && query("recursive") != Some("true") {
                return Err(refuse(400, "cannot delete directory without recursive flag"));
            }
            files::remove(guest, &path).await.map_err(|error| refused(&error))?;
            Ok(done(StatusCode::NO_CONTENT))
        }
        ("GET", ["info"]) => {
            let path = call.path(&given, "path")?;
            let entry = files::stat(guest, &path).await.map_err(|error| refused(&error))?;
            Ok(say(&info(&entry)))
        }
        ("POST", ["folder"]) => {
            let path = call.path(&given, "path")?;
            match files::make_dir(guest, &path, &call.user).await {
                // As the vendor has it: what is there already is what was wanted.
                Ok(()) | Err(FileError::Exists(_)) => {}
                Err(error) => return Err(refused(&error)),
            }
            if let Some(mode) = query("mode") {
                change(call, "chmod", &octal(mode)?, &path).await?;
            }
            Ok(done(StatusCode::CREATED))
        }
        ("POST", ["move"]) => {
            let (from, to) = (call.path(&given, "source")?, call.path(&given, "destination")?);
            files::rename(guest, &from, &to, &call.user).await.map_err(|error| refused(&error))?;
            Ok(done(StatusCode::OK))
        }
        ("POST", ["permissions"]) => {
            let path = call.path(&given, "path")?;
            files::stat(guest, &path).await.map_err(|error| refused(&error))?;
            if let Some(owner) = query("owner") {
                change(call, "chown", owner, &path).await?;
            }
            if let Some(group) = query("group") {
                change(call, "chgrp", group, &path).await?;
            }
            if let Some(mode) = query("mode") {
                change(call, "chmod", &octal(mode)?, &path).await?;
            }
            Ok(done(StatusCode::OK))
        }
        ("GET", ["search"]) => {
            let path = call.path(&given, "path")?;
            files::stat(guest, &path).await.map_err(|error| refused(&error))?;
            let pattern = query("pattern").ok_or_else(|| refuse(400, "pattern is required"))?;
            let output = run(call, &["find", &path, "-mindepth", "1", "-name", pattern, "-print0"]).await?;
            let names = output.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty());
            let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
            names.sort();
            Ok(say(&json!({ "files": names })))
        }
        ("GET", ["find"]) => {
            let path = call.path(&given, "path")?;
            files::stat(guest, &path).await.map_err(|error| refused(&error))?;
            let pattern = query("pattern").ok_or_else(|| refuse(400, "pattern is required"))?;
            let output = run(call, &["grep", "-rInHZ", "-e", pattern, "--", &path]).await?;
            Ok(say(&matches(&output.stdout)))
        }
        ("POST", ["replace"]) => replace(call, body(request).await?).await,
        ("GET", ["download"]) => {
            let path = call.path(&given, "path")?;
            let reading = files::read(call.guest.clone(), &path).await.map_err(|error| refused(&error))?;
            let size = reading.size;
            let mut response = Response::new(Body::from_stream(reading.contents()));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            if let Some(size) = size {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
            }
            Ok(response)
        }
        ("POST", ["bulk-download"]) => bulk_download(call, body(request).await?),
        ("POST", ["upload" | "upload-v2"]) => {
            let path = call.path(&given, "path")?;
            upload(call, request, Some(path)).await
        }
        ("POST", ["bulk-upload"]) => upload(call, request, None).await,
        _ => Err(refuse(501, format!("the emulator does not serve {method} for files: {}", path.join("/")))),
    }
}

fn info(entry: &Entry) -> Value {
    let modified = jiff::Timestamp::from_millisecond(entry.modified.0).unwrap_or_default().to_string();
    let bits = entry.mode & 0o7777;
    let kind = match entry.mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'L',
        _ => '-',
    };
    let letters: String =
        (0..9).map(|at| if bits >> (8 - at) & 1 == 1 { ['r', 'w', 'x'][at % 3] } else { '-' }).collect();
    json!({
        "name": entry.name(),
        "path": entry.path,
        "isDir": entry.is_dir(),
        "size": entry.size,
        "mode": format!("{kind}{letters}"),
        "permissions": format!("{bits:04o}"),
        "modTime": modified,
        "modifiedAt": modified,
        "owner": entry.owner,
        "group": entry.group,
    })
}

/// Whoever asks may do everything, as at the vendor.
async fn run(call: &Call<'_>, argv: &[&str]) -> Result<CapturedOutput, Response> {
    let mut command = Command::new(argv.iter().copied());
    command.cwd = Some("/".to_owned());
    let output = capture(&*call.guest, &command, &[], MATCHES).await;
    let output = output.map_err(|error| refuse(500, with_causes(&error)))?;
    if output.truncated {
        return Err(refuse(400, "there are too many matches"));
    }
    Ok(output)
}

async fn change(call: &Call<'_>, program: &str, what: &str, path: &str) -> Result<(), Response> {
    let output = run(call, &[program, "--", what, path]).await?;
    if !output.status.success() {
        return Err(refuse(400, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}

fn octal(mode: &str) -> Result<String, Response> {
    let valid = !mode.is_empty() && mode.len() <= 5 && mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    valid.then(|| mode.to_owned()).ok_or_else(|| refuse(400, format!("mode `{mode}` is not octal")))
}

/// `FILE NUL LINE:TEXT`, a line each.
fn matches(output: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(output);
    let one = |line: &str| {
        let (file, rest) = line.split_once('\0')?;
        let (number, content) = rest.split_once(':')?;
        Some(json!({ "file": file, "line": number.parse::<u64>().ok()?, "content": content }))
    };
    text.lines().filter_map(one).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Replace {
    files: Vec<String>,
    pattern: String,
    new_value: String,
}

async fn replace(call: &Call<'_>, asked: Replace) -> Result<Response, Response> {
    if asked.pattern.is_empty() {
        return Err(refuse(400, "pattern is required"));
    }
    let mut results = Vec::new();
    for file in &asked.files {
        let path = call.user.path(file);
        let result = match replace_in(call, &path, &asked).await {
            Ok(()) => json!({ "file": file, "success": true }),
            Err(error) => json!({ "file": file, "success": false, "error": with_causes(&error) }),
        };
        results.push(result);
    }
    Ok(say(&results))
}

async fn replace_in(call: &Call<'_>, path: &str, asked: &Replace) -> Result<(), FileError> {
    let failed = |error: &dyn std::fmt::Display| FileError::Failed(format!("{path}: {error}"));
    let reading = files::read(call.guest.clone(), path).await?;
    let mut text = Vec::new();
    reading.data.take(REPLACE_LIMIT + 1).read_to_end(&mut text).await.map_err(|error| failed(&error))?;
    if text.len() as u64 > REPLACE_LIMIT {
        return Err(failed(&"it is too large"));
    }
    reading.whole.await.map_err(|error| failed(&error))??;
    let text = String::from_utf8(text).map_err(|error| failed(&error))?;
    // Its mode and owner stay: it is written over and not anew.
    let owner = files::stat(&*call.guest, path).await?;
    let user = files::User { owner: format!("{}:{}", owner.owner, owner.group), ..call.user.clone() };
    let text = text.replace(&asked.pattern, &asked.new_value);
    files::write(&*call.guest, path, &user, false, &mut text.as_bytes()).await
}

#[derive(Deserialize)]
struct Paths {
    paths: Vec<String>,
}

/// Several files as the parts of a form, in order; one that cannot be had is a part that says why.
fn bulk_download(call: &Call<'_>, asked: Paths) -> Result<Response, Response> {
    if asked.paths.is_empty() {
        return Err(refuse(400, "paths is required"));
    }
    let boundary = format!("pocketenv-{}", record::token());
    let (guest, user, mark) = (call.guest.clone(), call.user.clone(), boundary.clone());
    let parts = futures::stream::iter(asked.paths).then(move |given| {
        let (guest, path, mark) = (guest.clone(), user.path(&given), mark.clone());
        async move {
            // RFC 5987, which says any name exactly; the SDKs compare it with what they asked for.
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            let encoded: String = given
                .bytes()
                .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
                .collect();
            let head = |name: &str, kind: &str| {
                Bytes::from(format!(
                    "--{mark}\r\nContent-Disposition: form-data; name=\"{name}\"; filename*=UTF-8''{encoded}\r\nContent-Type: {kind}\r\n\r\n"
                ))
            };
            let body = match files::read(guest, &path).await {
                Ok(reading) => {
                    let head = Ok(head("file", "application/octet-stream"));
                    futures::stream::iter([head]).chain(reading.contents()).boxed()
                }
                Err(error) => {
                    let (status, code) = status_of(&error);
                    let why = json!({ "statusCode": status, "code": code, "message": with_causes(&error) });
                    let head = Ok(head("error", "application/json"));
                    futures::stream::iter([head, Ok(Bytes::from(why.to_string()))]).boxed()
                }
            };
            body.chain(futures::stream::iter([Ok(Bytes::from_static(b"\r\n"))]))
        }
    });
    let end = Bytes::from(format!("--{boundary}--\r\n"));
    let stream = parts.flatten().chain(futures::stream::iter([Ok::<_, io::Error>(end)]));
    let kind = format!("multipart/form-data; boundary={boundary}");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(stream)).into_response())
}

/// Writes the files of a form: each part `…file` to the path that the part `…path` before it said, or to the one path of the call.
async fn upload(call: &Call<'_>, request: Request, to: Option<String>) -> Result<Response, Response> {
    let broken = |error: &dyn std::fmt::Display| refuse(400, format!("error parsing the form: {error}"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| broken(&error))?;
    let mut paths: BTreeMap<String, String> = BTreeMap::new();
    let mut written = false;
    while let Some(part) = form.next_field().await.map_err(|error| broken(&error))? {
        let name = part.name().unwrap_or_default().to_owned();
        if let Some(index) = name.strip_suffix(".path") {
            let path = part.text().await.map_err(|error| broken(&error))?;
            paths.insert(index.to_owned(), call.user.path(&path));
            continue;
        }
        let path = match (&to, name.strip_suffix(".file")) {
            (Some(path), _) if name == "file" => path,
            (None, Some(index)) => paths.get(index).ok_or_else(|| missing(&name))?,
            _ => continue,
        };
        let data = StreamReader::new(part.map_err(io::Error::other));
        tokio::pin!(data);
        let done = files::write(&*call.guest, path, &call.user, false, &mut data).await;
        done.map_err(|error| refused(&error))?;
        written = true;
    }
    if !written {
        return Err(refuse(400, "there is no file in the form"));
    }
    Ok(done(StatusCode::OK))
}

fn status_of(error: &FileError) -> (u16, &'static str) {
    match error {
        FileError::Missing(_) => (404, "NOT_FOUND"),
        FileError::Exists(_) => (409, "CONFLICT"),
        FileError::NotADirectory(_) | FileError::Directory(_) | FileError::NoUser(_) => (400, "BAD_REQUEST"),
        FileError::NoSpace(_) | FileError::Failed(_) | FileError::Guest(_) => (500, "INTERNAL_SERVER_ERROR"),
    }
}

/// A failed operation on files, in the vendor's form.
pub(super) fn refused(error: &FileError) -> Response {
    refuse(status_of(error).0, with_causes(error))
}
