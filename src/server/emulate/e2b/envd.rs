//! The agent inside a sandbox, as its clients see it: who may ask, and the contents of files.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::super::files::{self, FileError, User};
use super::super::measure::measure;
use super::super::{CallError, Sandbox, lock};
use super::connect::Refusal;
use super::{Server, filesystem, not_found, parameter, parameters, process, refuse, refused, same_secret};
use crate::provider::Guest;
use crate::provider::e2b::api;

/// Answers a request for the agent of a sandbox.
pub(super) async fn serve(server: &Server, sandbox: Arc<Sandbox>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let record = sandbox.record();
    let method = request.method().clone();
    if method == Method::GET && path == "/health" {
        // The one question whose answer is that it runs, so it is measured.
        return match server.emulation.observe(&sandbox).await {
            Ok(record) if !record.paused => StatusCode::NO_CONTENT.into_response(),
            Ok(_) | Err(CallError::NoSandbox(_)) => not_found(&record.id),
            Err(error) => refused(&error),
        };
    }
    let token = request.headers().get("x-access-token").map(|value| value.as_bytes());
    let known = token.is_some_and(|given| same_secret(given, record.token.as_bytes()));
    if path == "/files" {
        if !known && let Err(why) = check_signature(&record.token, &request) {
            return refuse(401, why);
        }
    } else if !known {
        return refuse(
            401,
            "unauthorized access, please provide a valid access token or method signing if supported",
        );
    }
    let guest = match server.emulation.guest(&sandbox).await {
        Ok(guest) => guest,
        Err(CallError::NoSandbox(_) | CallError::NotRunning(_)) => return not_found(&record.id),
        Err(error) => return refused(&error),
    };
    let call = Call { server, sandbox, guest };
    match (method.as_str(), path.as_str()) {
        ("GET", "/files") => call.download(&parameters(&request)).await.unwrap_or_else(|response| response),
        ("POST", "/files") => call.upload(request).await.unwrap_or_else(|response| response),
        ("GET", "/metrics") => call.metrics().await,
        ("GET", "/envs") => match call.server.emulation.env(&call.sandbox).await {
            Ok(env) => axum::Json(&*env).into_response(),
            Err(error) => refused(&error),
        },
        ("POST", path) => match path.trim_start_matches('/').split_once('/') {
            Some(("process.Process", method)) => process::serve(&call, method, request).await,
            Some(("filesystem.Filesystem", method)) => filesystem::serve(&call, method, request).await,
            _ => refuse(404, format!("the emulator does not serve POST {path}")),
        },
        (method, path) => refuse(404, format!("the emulator does not serve {method} {path}")),
    }
}

/// A call of the agent of a running sandbox.
pub(super) struct Call<'a> {
    pub server: &'a Server,
    pub sandbox: Arc<Sandbox>,
    pub guest: Arc<dyn Guest>,
}

impl Call<'_> {
    /// The user of a call: the one that it names, or the one that programs run as.
    pub async fn user(&self, headers: &HeaderMap) -> Result<User, Refusal> {
        let name = basic_user(headers)?;
        self.user_named(name.as_deref()).await.map_err(|error| match error {
            FileError::NoUser(_) => Refusal::new("unauthenticated", format!("invalid username: {error}")),
            error => Refusal::new("internal", error.to_string()),
        })
    }

    async fn user_named(&self, name: Option<&str>) -> Result<User, FileError> {
        self.server.emulation.user(&self.sandbox, &*self.guest, name).await
    }

    async fn user_of(&self, query: &[(String, String)]) -> Result<User, Response> {
        let name = parameter(query, "username").filter(|name| !name.is_empty());
        self.user_named(name).await.map_err(|error| file_error(&error))
    }

    async fn download(&self, query: &[(String, String)]) -> Result<Response, Response> {
        let path = self.user_of(query).await?.path(parameter(query, "path").unwrap_or_default());
        let reading = files::read(self.guest.clone(), &path).await.map_err(|error| file_error(&error))?;
        let size = reading.size;
        let mut response = Response::new(Body::from_stream(reading.contents()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        if let Some(size) = size {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        }
        Ok(response)
    }

    async fn upload(&self, request: Request) -> Result<Response, Response> {
        let query = parameters(&request);
        let user = self.user_of(&query).await?;
        let given = parameter(&query, "path").filter(|path| !path.is_empty()).map(str::to_owned);
        if request.headers().keys().any(|name| name.as_str().starts_with("x-metadata-")) {
            return Err(refuse(400, "the emulator does not keep metadata of files"));
        }
        let gzip = match text(request.headers(), &header::CONTENT_ENCODING).as_str() {
            "" | "identity" => false,
            "gzip" => true,
            other => return Err(refuse(415, format!("content encoding `{other}` is not understood"))),
        };
        let mut written = Vec::new();
        if text(request.headers(), &header::CONTENT_TYPE).starts_with("multipart/form-data") {
            if gzip {
                return Err(refuse(415, "a form cannot be compressed as a whole"));
            }
            let broken =
                |error: &dyn std::fmt::Display| refuse(400, format!("error parsing the form: {error}"));
            let mut form = Multipart::from_request(request, &()).await.map_err(|error| broken(&error))?;
            loop {
                let Some(part) = form.next_field().await.map_err(|error| broken(&error))? else { break };
                if part.name() != Some("file") {
                    continue;
                }
                let path = given.clone().or_else(|| part.file_name().map(str::to_owned));
                let path = user.path(&path.ok_or_else(|| refuse(400, "a file has no path"))?);
                if written.iter().any(|w: &api::Written| w.path == path) {
                    return Err(refuse(
                        400,
                        format!("you cannot upload multiple files to the same path '{path}'"),
                    ));
                }
                let data = part.map_err(io::Error::other);
                written.push(self.write(&path, &user, false, data).await?);
            }
        } else {
            let path = user.path(&given.ok_or_else(|| refuse(400, "the query has no path"))?);
            let data = request.into_body().into_data_stream().map_err(io::Error::other);
            written.push(self.write(&path, &user, gzip, data).await?);
        }
        Ok(axum::Json(written).into_response())
    }

    async fn write<S>(&self, path: &str, user: &User, gzip: bool, data: S) -> Result<api::Written, Response>
    where
        S: futures::Stream<Item = io::Result<axum::body::Bytes>> + Send,
    {
        let data = tokio_util::io::StreamReader::new(data);
        tokio::pin!(data);
        let written = files::write(&*self.guest, path, user, gzip, &mut data).await;
        written.map_err(|error| file_error(&error))?;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(api::Written { path: path.to_owned(), name, kind: "file".to_owned() })
    }

    async fn metrics(&self) -> Response {
        match measure(&*self.guest).await {
            Ok(usage) => axum::Json(serde_json::json!({
                "ts": self.server.emulation.now().0 / 1000,
                "cpu_count": usage.cpus,
                "cpu_used_pct": usage.cpu_percent,
                "mem_total": usage.memory_total,
                "mem_used": usage.memory,
                "mem_cache": usage.cache,
                "disk_used": usage.disk,
                "disk_total": usage.disk_total,
            }))
            .into_response(),
            Err(error) => refused(&error.into()),
        }
    }
}

/// A header as text; empty if there is none.
fn text(headers: &HeaderMap, name: &header::HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// The user that `Authorization: Basic` names, without a password.
fn basic_user(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let wrong = || Refusal::new("unauthenticated", "the header `Authorization` is not `Basic` with a user");
    let text = value.to_str().ok().and_then(|text| text.strip_prefix("Basic ")).ok_or_else(wrong)?;
    let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| wrong())?;
    let pair = String::from_utf8(bytes).map_err(|_| wrong())?;
    let name = pair.split_once(':').map_or(pair.as_str(), |(name, _)| name);
    Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
}

/// A failed operation on files, in the vendor's form.
fn file_error(error: &FileError) -> Response {
    let status = match error {
        FileError::Missing(_) => 404,
        FileError::NotADirectory(_) | FileError::Directory(_) | FileError::Exists(_) => 400,
        FileError::NoUser(_) => 401,
        FileError::NoSpace(_) => 507,
        FileError::Failed(_) | FileError::Guest(_) => 500,
    };
    refuse(status, super::with_causes(error))
}

/// What a file's address is signed with.
fn signature(token: &str, path: &str, operation: &str, user: &str, expires: Option<&str>) -> String {
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(expires) = expires {
        text.push(':');
        text.push_str(expires);
    }
    format!("v1_{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(text.as_bytes())))
}

/// Whether the address was signed by somebody who has the token.
fn is_signed(token: &str, request: &Request) -> bool {
    let query = parameters(request);
    let Some(given) = parameter(&query, "signature") else { return false };
    let operation = if request.method() == Method::GET { "read" } else { "write" };
    let wanted = signature(
        token,
        parameter(&query, "path").unwrap_or_default(),
        operation,
        parameter(&query, "username").unwrap_or_default(),
        parameter(&query, "signature_expiration"),
    );
    // A `+` of base64 that was not encoded arrives as a blank.
    same_secret(given.replace(' ', "+").as_bytes(), wanted.as_bytes())
}

fn check_signature(token: &str, request: &Request) -> Result<(), &'static str> {
    let query = parameters(request);
    if request.headers().contains_key("x-access-token") {
        return Err("access token present in header but does not match");
    }
    if parameter(&query, "signature").is_none() {
        return Err("missing signature query parameter");
    }
    if !is_signed(token, request) {
        return Err("invalid signature");
    }
    let now = jiff::Timestamp::now().as_second();
    match parameter(&query, "signature_expiration").map(str::parse::<i64>) {
        None => Ok(()),
        Some(Ok(at)) if at >= now => Ok(()),
        Some(_) => Err("signature is already expired"),
    }
}

/// The sandbox whose token signed the address: where all sandboxes have one address it is the only thing that tells them apart.
pub(super) fn signed_for(server: &Server, request: &Request) -> Option<Arc<Sandbox>> {
    let all: Vec<Arc<Sandbox>> = lock(&server.emulation.sandboxes).values().cloned().collect();
    all.into_iter().find(|sandbox| is_signed(&sandbox.record().token, request))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_address_is_known_by_its_token() {
        let given = signature("t", "/a b", "read", "", Some("99999999999"));
        let query = given.replace('+', "%2B").replace('/', "%2F");
        let uri = format!("/files?path=%2Fa%20b&signature={query}&signature_expiration=99999999999");
        let request = |method| Request::builder().method(method).uri(&uri).body(Body::empty()).unwrap();
        assert!(is_signed("t", &request(Method::GET)));
        assert!(!is_signed("u", &request(Method::GET)) && !is_signed("t", &request(Method::POST)));
        assert!(check_signature("t", &request(Method::GET)).is_ok());
    }

    #[test]
    fn the_user_is_read_from_the_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(basic_user(&headers).unwrap(), None);
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic cm9vdDo="));
        assert_eq!(basic_user(&headers).unwrap().as_deref(), Some("root"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert!(basic_user(&headers).is_err());
    }
}
