//! Images in registries, by the OCI distribution spec ("Pulling"), with Docker's token flow ("Token Authentication Specification").

use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::Progress;
use super::credentials::{self, Credentials};
use super::digest::Digest;
use super::error::ImageError;
use super::reference::RegistryReference;
use super::spec::{INDEXES, MANIFESTS, MAX_DOCUMENT};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(15);
/// How long the other side may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a blob is taken up again where it was cut off, without a byte in between.
const ATTEMPTS: u32 = 5;
/// What of an error answer is read, and shown.
const ERROR: usize = 16 << 10;
/// The most redirections of one request.
const REDIRECTS: usize = 5;

/// One repository of a registry.
pub struct Registry {
    client: reqwest::Client,
    base: Url,
    reference: RegistryReference,
    /// As it is shown.
    text: String,
    /// What is sent along, once the registry has said how.
    authorization: Mutex<Option<HeaderValue>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("reference", &self.text).finish_non_exhaustive()
    }
}

/// What the service of tokens answers: one of the two, or the same in both.
#[derive(Deserialize)]
struct Token {
    token: Option<SecretString>,
    access_token: Option<SecretString>,
}

/// What a registry says of an error.
#[derive(Deserialize)]
struct Said {
    errors: Vec<SaidError>,
}

#[derive(Deserialize)]
struct SaidError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

fn is_loopback(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Registry {
    /// The repository that the reference names. Registries of this machine's own loopback are spoken to without TLS.
    ///
    /// # Errors
    /// [`ImageError::Registry`].
    pub fn new(reference: &RegistryReference) -> Result<Registry, ImageError> {
        let text = reference.to_string();
        let failed = |what: &str, source: Box<dyn std::error::Error + Send + Sync>| ImageError::Registry {
            reference: text.clone(),
            what: what.to_owned(),
            source: Some(source),
        };
        let name = reference.host().rsplit_once(':').map_or(reference.host(), |(name, _)| name);
        let own = is_loopback(name);
        let scheme = if own { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/v2/", reference.host()))
            .map_err(|error| failed("its address cannot be used", error.into()))?;
        // Who was first does not matter: it is always this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let was_safe = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            if attempt.previous().len() > REDIRECTS {
                attempt.error("too many redirections")
            } else if was_safe && attempt.url().scheme() != "https" {
                attempt.error("a redirection away from TLS")
            } else {
                attempt.follow()
            }
        });
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(redirects)
            .user_agent(concat!("pocketenv/", env!("CARGO_PKG_VERSION")));
        if own {
            builder = builder.no_proxy(); // a proxy's own loopback is another machine's
        }
        let client = builder.build().map_err(|error| failed("HTTP cannot be used", error.into()))?;
        Ok(Registry { client, base, reference: reference.clone(), text, authorization: Mutex::default() })
    }

    fn url(&self, kind: &str, version: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(self.reference.repository.split('/')).extend([kind, version]);
        }
        url
    }

    fn lost(&self, what: &str, error: reqwest::Error) -> ImageError {
        ImageError::Registry {
            reference: self.text.clone(),
            what: what.to_owned(),
            source: Some(Box::new(error.without_url())),
        }
    }

    fn unusable(&self, why: impl Into<String>) -> ImageError {
        ImageError::Unusable { reference: self.text.clone(), why: why.into() }
    }

    /// Asks for something, and once more with credentials or a token where the registry says how.
    async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Response, ImageError> {
        let send = || {
            let mut request = self.client.get(url.clone()).headers(headers.clone());
            if let Ok(authorization) = self.authorization.lock()
                && let Some(value) = authorization.as_ref()
            {
                request = request.header(AUTHORIZATION, value.clone());
            }
            request.send()
        };
        let mut response = send().await.map_err(|error| self.lost("no answer", error))?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let asked: Vec<String> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect();
            self.authorise(&asked).await?;
            response = send().await.map_err(|error| self.lost("no answer", error))?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    async fn refused(&self, response: Response) -> ImageError {
        let status = response.status();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = bounded(response, ERROR).await.unwrap_or_default();
        let said = serde_json::from_slice::<Said>(&body).ok().and_then(|said| {
            let first = said.errors.into_iter().next()?;
            Some(if first.message.is_empty() { first.code } else { first.message })
        });
        let said: String = said.unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect();
        let why = if said.is_empty() {
            format!("the registry answers {status}")
        } else {
            format!("{said} ({})", status.as_u16())
        };
        let reference = self.text.clone();
        match status.as_u16() {
            401 | 403 => ImageError::Unauthorised(
                reference,
                format!("{why}; `docker login {}` gives credentials", self.reference.registry),
            ),
            404 => ImageError::NotFound(reference, why),
            429 => ImageError::Throttled { reference, retry_after: retry_after.map(Duration::from_secs) },
            500..=599 | 408 => ImageError::Registry { reference, what: why, source: None },
            _ => ImageError::Unusable { reference, why },
        }
    }

    /// Gets what the registry asks for: a token from the service that it names, or the credentials themselves.
    async fn authorise(&self, asked: &[String]) -> Result<(), ImageError> {
        let denied = |why: String| ImageError::Unauthorised(self.text.clone(), why);
        let credentials = match credentials::config_file() {
            Some(file) => credentials::find(&file, &self.reference.registry, &self.text).await?,
            None => None,
        };
        let bearer = asked.iter().find_map(|challenge| parameters(challenge, "Bearer"));
        let value = match (bearer, credentials) {
            (Some(parameters), credentials) => {
                let of = |name: &str| {
                    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
                };
                let realm = of("realm")
                    .ok_or_else(|| denied("the registry names no service of tokens".to_owned()))?;
                let mut realm = Url::parse(&realm).map_err(|error| {
                    denied(format!("the registry's service of tokens has no address: {error}"))
                })?;
                let own = realm.host_str().is_some_and(is_loopback) && self.base.scheme() == "http";
                if realm.scheme() != "https" && !own {
                    return Err(denied("the registry's service of tokens is not reached by TLS".to_owned()));
                }
                realm
                    .query_pairs_mut()
                    .extend_pairs(of("service").map(|service| ("service", service)))
                    .append_pair("scope", &format!("repository:{}:pull", self.reference.repository));
                let mut request = self.client.get(realm);
                if let Some(credentials) = credentials {
                    request = request.header(AUTHORIZATION, basic(&credentials).map_err(denied)?);
                }
                let response = request.send().await.map_err(|error| self.lost("no token", error))?;
                if !response.status().is_success() {
                    return Err(self.refused(response).await);
                }
                let body = bounded(response, 1 << 20).await.map_err(|error| self.lost("no token", error))?;
                let token: Option<Token> = serde_json::from_slice(&body).ok();
                let token = token
                    .and_then(|token| token.token.or(token.access_token))
                    .ok_or_else(|| denied("the service of tokens gave none".to_owned()))?;
                sensitive(&format!("Bearer {}", token.expose_secret())).map_err(denied)?
            }
            (None, Some(credentials)) => basic(&credentials).map_err(denied)?,
            (None, None) => {
                let login = format!(
                    "there are no credentials; `docker login {}` gives some",
                    self.reference.registry
                );
                return Err(denied(login));
            }
        };
        if let Ok(mut authorization) = self.authorization.lock() {
            *authorization = Some(value);
        }
        Ok(())
    }

    /// A manifest or index: its bytes, their digest, and what it is. `digest` is what they must be.
    ///
    /// # Errors
    /// What the registry says; [`ImageError::Unusable`] for another digest.
    pub async fn manifest(
        &self,
        version: &str,
        digest: Option<&Digest>,
    ) -> Result<(Vec<u8>, Digest, String), ImageError> {
        let mut headers = HeaderMap::new();
        for kind in INDEXES.iter().chain(&MANIFESTS) {
            headers.append(ACCEPT, HeaderValue::from_static(kind));
        }
        let response = self.get(&self.url("manifests", version), &headers).await?;
        let kind = response.headers().get(reqwest::header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = self.document(response).await?;
        let found = Digest::of(&bytes);
        match digest {
            Some(wanted) if *wanted != found => {
                Err(self.unusable(format!("what should be {wanted} is {found}")))
            }
            _ => Ok((bytes, found, kind)),
        }
    }

    /// A small blob, verified.
    ///
    /// # Errors
    /// As [`Registry::manifest`].
    pub async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let response = self.get(&self.url("blobs", &digest.to_string()), &HeaderMap::new()).await?;
        let bytes = self.document(response).await?;
        let found = Digest::of(&bytes);
        if found == *digest {
            Ok(bytes)
        } else {
            Err(self.unusable(format!("what should be {digest} is {found}")))
        }
    }

    async fn document(&self, response: Response) -> Result<Vec<u8>, ImageError> {
        let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
        let bytes =
            bounded(response, limit + 1).await.map_err(|error| self.lost("the answer was cut off", error))?;
        if bytes.len() > limit {
            return Err(self.unusable(format!("a document of it has more than {MAX_DOCUMENT} bytes")));
        }
        Ok(bytes)
    }

    /// Brings a blob of `size` bytes into the file at `path`, going on behind what is there already, and verifies all of it.
    ///
    /// # Errors
    /// What the registry says; [`ImageError::Unusable`] for another digest or size, and then nothing of it stays; [`ImageError::File`].
    pub async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        path: &Path,
        say: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), ImageError> {
        let mut options = tokio::fs::OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).await;
        let mut file = opened.map_err(ImageError::file("open", path))?;
        let mut hasher = Sha256::new();
        let mut there = hash_all(&mut file, &mut hasher).await.map_err(ImageError::file("read", path))?;
        let tell = |there| say(Progress { layer: digest.clone(), done: there, size });
        let mut attempt = 0;
        while there < size {
            let before = there;
            let result = self.more(digest, size, &mut there, &mut hasher, (&mut file, path), &tell).await;
            attempt = if there > before { 0 } else { attempt + 1 };
            match result {
                Ok(()) => {}
                Err(ImageError::Registry { .. }) if attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                }
                Err(error) => return Err(error),
            }
        }
        let found = hex::encode(hasher.finalize());
        if there != size || found != digest.hex() {
            let _ = std::fs::remove_file(path); // it would be gone on with the next time
            return Err(
                self.unusable(format!("layer {digest}: {there} bytes came, of digest sha256:{found}"))
            );
        }
        file.sync_data().await.map_err(ImageError::file("write", path))
    }

    /// One request for the rest of a blob.
    async fn more(
        &self,
        digest: &Digest,
        size: u64,
        there: &mut u64,
        hasher: &mut Sha256,
        (file, path): (&mut tokio::fs::File, &Path),
        tell: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ImageError> {
        let mut headers = HeaderMap::new();
        if *there > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={there}-"))
        {
            headers.insert(RANGE, range);
        }
        let mut response = self.get(&self.url("blobs", &digest.to_string()), &headers).await?;
        if *there > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            // The registry cannot begin in the middle.
            (*there, *hasher) = (0, Sha256::new());
            file.set_len(0).await.map_err(ImageError::file("write", path))?;
        }
        file.seek(std::io::SeekFrom::Start(*there)).await.map_err(ImageError::file("write", path))?;
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if *there < size => {
                    let what = format!("layer {digest} ended after {there} of {size} bytes");
                    return Err(ImageError::Registry { reference: self.text.clone(), what, source: None });
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.lost("the connection was lost", error)),
            };
            if *there + chunk.len() as u64 > size {
                let _ = std::fs::remove_file(path);
                return Err(self
                    .unusable(format!("layer {digest} has more than the {size} bytes that it should have")));
            }
            file.write_all(&chunk).await.map_err(ImageError::file("write", path))?;
            file.flush().await.map_err(ImageError::file("write", path))?;
            hasher.update(&chunk);
            *there += chunk.len() as u64;
            tell(*there);
        }
    }
}

async fn hash_all(file: &mut tokio::fs::File, hasher: &mut Sha256) -> std::io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let mut there = 0;
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            return Ok(there);
        }
        hasher.update(&buffer[..read]);
        there += read as u64;
    }
}

/// The first `limit` bytes of an answer.
async fn bounded(mut response: Response, limit: usize) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
        if body.len() == limit {
            break;
        }
    }
    Ok(body)
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, String> {
    use base64::Engine as _;
    let pair = secrecy::zeroize::Zeroizing::new(format!(
        "{}:{}",
        credentials.user,
        credentials.password.expose_secret()
    ));
    sensitive(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair.as_bytes())))
}

fn sensitive(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| "the credentials have characters that no header can have".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The parameters of a challenge of this scheme (RFC 9110, section 11.6.1), as far as registries use them.
fn parameters(challenge: &str, scheme: &str) -> Option<Vec<(String, String)>> {
    let (found, mut rest) = challenge.split_once(' ')?;
    if !found.eq_ignore_ascii_case(scheme) {
        return None;
    }
    let mut parameters = Vec::new();
    while let Some((name, value)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, behind) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_once(',').unwrap_or((value, "")),
        };
        parameters.push((name, value.trim().to_owned()));
        rest = behind;
    }
    Some(parameters)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_challenge_says_where_tokens_are() {
        let found =
            parameters(r#"Bearer realm="https://a/token",service="b c",scope="x:y,z""#, "Bearer").unwrap();
        let of = |name: &str| found.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(
            (of("realm"), of("service"), of("scope")),
            (Some("https://a/token"), Some("b c"), Some("x:y,z"))
        );
        assert!(parameters(r#"Basic realm="x""#, "Bearer").is_none());
        assert!(parameters(r#"Bearer realm="cut"#, "Bearer").is_none());
    }

    #[test]
    fn only_the_own_loopback_goes_without_tls() {
        let scheme = |text: &str| match text.parse().unwrap() {
            crate::image::Reference::Registry(reference) => {
                Registry::new(&reference).unwrap().base.scheme().to_owned()
            }
            other => panic!("{other}"),
        };
        for own in ["localhost:5000/a", "127.0.0.1:5000/a"] {
            assert_eq!(scheme(own), "http", "{own}");
        }
        for other in ["debian", "10.0.0.1:5000/a", "localhost.example.com/a"] {
            assert_eq!(scheme(other), "https", "{other}");
        }
    }
}
