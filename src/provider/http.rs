//! The one HTTP layer of every provider that is a service: time limits, bounded answers, and what a status means for the caller.
//!
//! A provider builds a [`Call`] from path segments (each is encoded, so that no id can change the path), sends it, and reads the answer as JSON.
//! Nothing secret gets into an error: credentials travel in headers that are marked sensitive, and errors carry no URL.
//! Calls of one account share what it takes (`budget.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::budget::Account;
use super::error::Cause;
use super::{Answer, Detour, ProviderError, Upstream};
use crate::model::{Timestamp, sha256_hex};
use crate::secret::{Redactor, SecretValue};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a call may take unless it says otherwise.
const CALL: Duration = Duration::from_secs(60);
/// The longest answer.
const ANSWER_LIMIT: usize = 64 << 20;
/// What of an error answer is read.
const ERROR_LIMIT: usize = 64 << 10;
/// What of an error answer is shown.
const MESSAGE_LIMIT: usize = 500;
/// The longest pause that a provider may ask for.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// A WebSocket to a service.
pub type Socket = WebSocketStream<reqwest::Upgraded>;

/// One service.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    base: Url,
    headers: HeaderMap,
    message: fn(&[u8]) -> Option<String>,
    account: Arc<Account>,
    /// Whose calls these are, for taking turns.
    client_id: u64,
    /// Takes credentials out of what the service says: some repeat them.
    redactor: Arc<Redactor>,
    /// What stands before it.
    detour: Option<Arc<dyn Detour>>,
}

/// A service that is reached directly.
struct Direct {
    client: reqwest::Client,
    base: Url,
}

#[async_trait]
impl Upstream for Direct {
    async fn pass(&self, request: Request<Bytes>) -> Result<Answer, Cause> {
        let (mut parts, body) = request.into_parts();
        let mut url = self.base.clone();
        url.set_path(parts.uri.path());
        url.set_query(parts.uri.query());
        parts.uri = url.as_str().parse()?;
        let request = reqwest::Request::try_from(Request::from_parts(parts, body))?;
        let answer = self.client.execute(request).await.map_err(reqwest::Error::without_url)?;
        let answer = hyper::Response::<reqwest::Body>::from(answer);
        Ok(answer.map(|body| body.map_err(Cause::from).boxed_unsync()))
    }
}

/// The account of a service and the credentials that stand in these headers: one in this process, whoever calls it.
fn account(base: &Url, headers: &HeaderMap) -> Arc<Account> {
    static ACCOUNTS: Mutex<BTreeMap<String, Arc<Account>>> = Mutex::new(BTreeMap::new());
    let mut text = base.as_str().as_bytes().to_vec();
    for (name, value) in headers {
        text.extend([name.as_str().as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    let mut accounts = ACCOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(accounts.entry(sha256_hex(&text)).or_insert_with(|| Arc::new(Account::new())))
}

fn client(base: &Url) -> Result<reqwest::Client, ProviderError> {
    // Who was first does not matter: it is always this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("pocketenv/", env!("CARGO_PKG_VERSION")));
    let host = base.host_str().unwrap_or_default();
    if host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
        // A proxy's own loopback is another machine's.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| ProviderError::permanent("HTTP cannot be used", error))
}

impl Http {
    /// The service at `base`. `message` finds the sentence for people in an error answer.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] if `base` is not an `http` or `https` URL without a query.
    pub fn new(base: &str, message: fn(&[u8]) -> Option<String>) -> Result<Self, ProviderError> {
        let invalid =
            |why: &str| ProviderError::Invalid { message: format!("the address of the service {why}") };
        let base = Url::parse(base).map_err(|error| invalid(&format!("is not a URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(invalid("does not start with `http://` or `https://`"));
        }
        if base.query().is_some() || base.fragment().is_some() || base.password().is_some() {
            return Err(invalid("must not have a query, a fragment or a password"));
        }
        static CLIENTS: AtomicU64 = AtomicU64::new(1);
        let client = client(&base)?;
        let headers = HeaderMap::new();
        let account = account(&base, &headers);
        let client_id = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let redactor = Arc::new(Redactor::new([]));
        Ok(Self { client, base, headers, message, account, client_id, redactor, detour: None })
    }

    /// The same service with something before it.
    ///
    /// # Errors
    /// What `detour` says.
    pub fn behind(&self, detour: Arc<dyn Detour>) -> Result<Self, ProviderError> {
        let direct = Direct { client: self.client.clone(), base: self.base.clone() };
        let address = detour.before(Arc::new(direct))?;
        let no_url = |error: Cause| ProviderError::permanent("the address of the service is odd", error);
        let mut base = self.base.clone();
        base.set_scheme("http").map_err(|()| no_url("its scheme cannot be changed".into()))?;
        base.set_ip_host(address.ip()).map_err(|()| no_url("its host cannot be changed".into()))?;
        base.set_port(Some(address.port())).map_err(|()| no_url("its port cannot be changed".into()))?;
        let (client, account) = (client(&base)?, account(&base, &self.headers));
        Ok(Self { client, base, account, detour: Some(detour), ..self.clone() })
    }

    /// The same with what stands before `other`, if something does.
    ///
    /// # Errors
    /// As [`Self::behind`].
    pub fn reached_like(self, other: &Self) -> Result<Self, ProviderError> {
        match &other.detour {
            Some(detour) => self.behind(Arc::clone(detour)),
            None => Ok(self),
        }
    }

    /// The same service on connections of its own: those of another runtime end with that.
    ///
    /// # Errors
    /// [`ProviderError::Permanent`] if HTTP cannot be used.
    pub fn anew(&self) -> Result<Self, ProviderError> {
        Ok(Self { client: client(&self.base)?, ..self.clone() })
    }

    /// A header of every call.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] if the value cannot stand in a header.
    pub fn header(mut self, name: &'static str, value: &str) -> Result<Self, ProviderError> {
        let value = HeaderValue::from_str(value).map_err(|_| ProviderError::Invalid {
            message: format!("`{value}` has characters that the header `{name}` cannot have"),
        })?;
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    /// A header of every call whose value is a secret.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`], without the value, if it cannot stand in a header.
    pub fn secret_header(mut self, name: &'static str, value: &str) -> Result<Self, ProviderError> {
        // A service has one credential; what stands before it is the scheme.
        let credential = SecretValue::new(value.rsplit(' ').next().unwrap_or(value));
        self.redactor = Arc::new(Redactor::new([(name, &credential)]));
        let mut value = HeaderValue::from_str(value).map_err(|_| ProviderError::Invalid {
            message: format!("the credential for header `{name}` has characters that no header can have"),
        })?;
        value.set_sensitive(true);
        self.headers.insert(HeaderName::from_static(name), value);
        self.account = account(&self.base, &self.headers);
        Ok(self)
    }

    /// A call of `path`, segment by segment.
    pub fn call(&self, method: Method, path: &[&str]) -> Call<'_> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let request = self.client.request(method, url).headers(self.headers.clone()).timeout(CALL);
        Call { http: self, request }
    }
}

/// A call that is being put together.
pub struct Call<'a> {
    http: &'a Http,
    request: reqwest::RequestBuilder,
}

impl Call<'_> {
    /// Adds parameters to the query.
    pub fn query(self, parameters: &[(&str, &str)]) -> Self {
        Self { request: self.request.query(parameters), ..self }
    }

    /// Sets a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        Self { request: self.request.header(name, value), ..self }
    }

    /// Sends a value as JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Self {
        Self { request: self.request.json(value), ..self }
    }

    /// Sends bytes.
    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        Self { request: self.request.body(body), ..self }
    }

    /// Another limit than the usual one for the whole call.
    pub fn timeout(self, limit: Duration) -> Self {
        Self { request: self.request.timeout(limit), ..self }
    }

    /// Sends it and reads the answer as JSON. `doing` is what is attempted, for messages: `create sandbox api`.
    ///
    /// # Errors
    /// What the status or the failed connection means.
    pub async fn read<T: DeserializeOwned>(self, doing: &str) -> Result<T, ProviderError> {
        self.read_with_headers(doing).await.map(|(_, read)| read)
    }

    /// The same, with the headers of the answer.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_with_headers<T: DeserializeOwned>(
        self,
        doing: &str,
    ) -> Result<(HeaderMap, T), ProviderError> {
        let response = self.send(doing).await?;
        let headers = response.headers().clone();
        let body = bounded(response, ANSWER_LIMIT).await.map_err(|error| lost(doing, error))?;
        let read = serde_json::from_slice(&body).map_err(|error| {
            ProviderError::permanent(format!("cannot {doing}: the answer is not what was expected"), error)
        })?;
        Ok((headers, read))
    }

    /// Sends it; of the answer only the status counts.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn done(self, doing: &str) -> Result<(), ProviderError> {
        let response = self.send(doing).await?;
        // Reading to the end lets the connection be used again.
        bounded(response, ANSWER_LIMIT).await.map_err(|error| lost(doing, error)).map(drop)
    }

    /// Opens a WebSocket (RFC 6455) that speaks one of these subprotocols, if any are named.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn websocket(self, doing: &str, protocols: &[&str]) -> Result<Socket, ProviderError> {
        let key = generate_key();
        let mut call = self
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", &key);
        if !protocols.is_empty() {
            call = call.header("sec-websocket-protocol", &protocols.join(", "));
        }
        let response = call.send(doing).await?;
        let accepted = response.headers().get("sec-websocket-accept").map(HeaderValue::as_bytes);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || accepted != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            let message = format!("cannot {doing}: the answer opens no WebSocket");
            return Err(ProviderError::Permanent { message, source: None });
        }
        let upgraded = response.upgrade().await.map_err(|error| lost(doing, Lost::Http(error)))?;
        let config = WebSocketConfig::default().max_message_size(Some(ANSWER_LIMIT));
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
    }

    /// Sends it when the account takes it; an answer that is no success is an error.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn send(self, doing: &str) -> Result<Response, ProviderError> {
        let Http { account, client_id, .. } = self.http;
        let closed = |pause| ProviderError::Throttled { retry_after: Some(pause) };
        account.turn(*client_id).await.map_err(closed)?;
        let begun = Instant::now();
        let sent = self.request.send().await;
        let elapsed_ms = begun.elapsed().as_millis();
        // Neither address, headers nor bodies: any of them may hold a secret.
        let response = match sent {
            Ok(response) => {
                tracing::debug!(doing, status = response.status().as_u16(), elapsed_ms, "called");
                response
            }
            Err(error) => {
                let error = lost(doing, Lost::Http(error));
                tracing::debug!(doing, %error, elapsed_ms, "called without an answer");
                return Err(error);
            }
        };
        let status = response.status();
        let too_many = status == StatusCode::TOO_MANY_REQUESTS;
        account.answered(too_many.then(|| retry_after(response.headers())));
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let headers = response.headers().clone();
        let body = bounded(response, ERROR_LIMIT).await.unwrap_or_default();
        let said = (self.http.message)(&body).map(|said| self.http.redactor.redact(&said));
        Err(refused(doing, status, &headers, said.as_deref()))
    }
}

/// Why there is no whole answer.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Http(reqwest::Error),
    #[error("the answer is longer than {0} MiB")]
    TooLong(usize),
}

async fn bounded(mut response: Response, limit: usize) -> Result<Vec<u8>, Lost> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Lost::Http)? {
        if body.len() + chunk.len() > limit {
            return Err(Lost::TooLong(limit >> 20));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A call without an answer: it may or may not have taken effect.
fn lost(doing: &str, error: Lost) -> ProviderError {
    match error {
        Lost::TooLong(_) => ProviderError::permanent(format!("cannot {doing}"), error),
        Lost::Http(error) if error.is_builder() => ProviderError::permanent(
            format!("cannot {doing}: the request cannot be made"),
            error.without_url(),
        ),
        Lost::Http(error) => {
            let what = match (error.is_timeout(), error.is_connect()) {
                (true, _) => "no answer in time",
                (false, true) => "no connection",
                (false, false) => "the connection was lost",
            };
            ProviderError::transient(format!("cannot {doing}: {what}"), error.without_url())
        }
    }
}

/// What a status means for the caller. `said` is the provider's own sentence.
fn refused(doing: &str, status: StatusCode, headers: &HeaderMap, said: Option<&str>) -> ProviderError {
    let said =
        said.map(|text| text.chars().filter(|c| !c.is_control()).take(MESSAGE_LIMIT).collect::<String>());
    let message = match said.filter(|text| !text.is_empty()) {
        Some(text) => format!("cannot {doing}: {text} ({})", status.as_u16()),
        None => format!("cannot {doing}: the answer is {status}"),
    };
    match status.as_u16() {
        400 | 413 | 415 | 422 => ProviderError::Invalid { message },
        401 | 403 => ProviderError::Unauthorised { message },
        404 | 410 => ProviderError::NotFound { what: message },
        409 => ProviderError::AlreadyExists { what: message },
        429 => ProviderError::Throttled { retry_after: retry_after(headers) },
        501 => ProviderError::Unsupported { message },
        408 | 425 | 500..=599 => ProviderError::Transient { message, source: None },
        _ => ProviderError::Permanent { message, source: None },
    }
}

/// `Retry-After`, in seconds or as a date. A date is held against the answer's own `Date`, so that the two clocks need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text("retry-after")?;
    let pause = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = http_date(value)?;
            let now = text("date").and_then(http_date).unwrap_or_else(jiff::Timestamp::now);
            Duration::try_from(at.duration_since(now)).unwrap_or_default()
        }
    };
    Some(pause.min(RETRY_AFTER_LIMIT))
}

/// A time as services write it in JSON (RFC 3339).
pub fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse::<jiff::Timestamp>().ok().map(|at| Timestamp(at.as_millisecond()))
}

fn http_date(text: &str) -> Option<jiff::Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
        let dated =
            [("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("retry-after", "Sun, 06 Nov 1994 08:49:49 GMT")];
        assert_eq!(retry_after(&headers(&dated)), Some(Duration::from_secs(12)));
        let past =
            [("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("retry-after", "Sun, 06 Nov 1994 08:40:00 GMT")];
        assert_eq!(retry_after(&headers(&past)), Some(Duration::ZERO));
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
        assert_eq!(retry_after(&headers(&[("retry-after", "99999999999")])), Some(RETRY_AFTER_LIMIT));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn a_status_says_what_to_do() {
        let of = |status: u16| {
            refused("do it", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), Some("no\u{1b}[2J"))
        };
        assert!(matches!(of(404), ProviderError::NotFound { .. }));
        assert!(matches!(of(409), ProviderError::AlreadyExists { .. }));
        assert!(matches!(of(401), ProviderError::Unauthorised { .. }));
        assert!(matches!(of(422), ProviderError::Invalid { .. }));
        assert!(matches!(of(429), ProviderError::Throttled { retry_after: None }));
        assert!(of(503).is_retryable() && of(500).is_retryable() && !of(302).is_retryable());
        assert_eq!(of(422).to_string(), "cannot do it: no[2J (422)");
    }

    #[test]
    fn an_id_cannot_change_the_path() {
        let http = Http::new("http://127.0.0.1:1/base/", |_| None).unwrap();
        let request = http.call(Method::GET, &["v1", "../x?y#z", "é"]).request.build().unwrap();
        assert_eq!(request.url().as_str(), "http://127.0.0.1:1/base/v1/..%2Fx%3Fy%23z/%C3%A9");
    }

    #[test]
    fn addresses_that_cannot_be_are_refused() {
        for base in ["", "ftp://x", "http://x/?q", "http://u:p@x", "mailto:a@b"] {
            assert!(Http::new(base, |_| None).is_err(), "{base}");
        }
    }
}
