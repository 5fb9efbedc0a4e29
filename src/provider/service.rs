//! The service that a provider speaks to over HTTP, for whoever stands in between: the conformance kit, which lets calls fail on purpose.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{Request, Response};

use super::error::Cause;
use super::{Provider, ProviderError};

/// What a service answers.
pub type Answer = Response<UnsyncBoxBody<Bytes, Cause>>;

/// The service of a provider: an optional power, of which the sheet says whether it is there.
pub trait Service: Send + Sync {
    /// How its calls are told apart, and how it says no.
    fn calls(&self) -> &'static Calls;

    /// The same provider with `detour` between it and its service.
    ///
    /// # Errors
    /// What `detour` says.
    fn behind(&self, detour: Arc<dyn Detour>) -> Result<Arc<dyn Provider>, ProviderError>;
}

/// What stands between a provider and its service.
pub trait Detour: Send + Sync {
    /// An address of this machine at which HTTP/1.1 is spoken, without encryption: what is asked there is asked of `service`.
    ///
    /// # Errors
    /// [`ProviderError::Permanent`] if nothing can listen.
    fn before(&self, service: Arc<dyn Upstream>) -> Result<SocketAddr, ProviderError>;
}

/// A service as the provider itself reaches it: with its credentials, encryption and proxies.
#[async_trait]
pub trait Upstream: Send + Sync {
    /// Passes on a request, which does not name the service (`Host`). The answer may be an upgrade of the connection.
    ///
    /// # Errors
    /// Why there is no answer.
    async fn pass(&self, request: Request<Bytes>) -> Result<Answer, Cause>;
}

/// How the calls of a service are told apart, and how it says no.
pub struct Calls {
    /// Lists sandboxes.
    pub list: &'static [Pattern],
    /// Looks at one.
    pub get: &'static [Pattern],
    /// Makes one.
    pub create: &'static [Pattern],
    /// Deletes one.
    pub delete: &'static [Pattern],
    /// Gives the output of a command; empty where nothing runs inside.
    pub exec: &'static [Pattern],
    /// Whether the provider is told by the service how long to wait.
    pub retry_after: bool,
    /// The body of a refusal, in the service's own form: the status, a sentence, and how long to wait.
    pub refusal: fn(u16, &str, Option<Duration>) -> String,
}

/// A method, and how the path ends; `*` stands for any one segment.
pub struct Pattern(pub &'static str, pub &'static str);

impl Pattern {
    /// Whether a request is meant.
    pub fn matches(&self, method: &str, path: &str) -> bool {
        let mut found = path.trim_end_matches('/').rsplit('/');
        let same = |wanted: &str| found.next().is_some_and(|found| wanted == "*" || wanted == found);
        self.0 == method && self.1.trim_start_matches('/').rsplit('/').all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_by_its_method_and_the_end_of_its_path() {
        let get = Pattern("GET", "/sandboxes/*");
        assert!(get.matches("GET", "/v1/sandboxes/x") && get.matches("GET", "/sandboxes/x/"));
        assert!(!get.matches("PUT", "/v1/sandboxes/x") && !get.matches("GET", "/v1/sandboxes"));
        assert!(!get.matches("GET", "/v1/sandboxes/x/exec") && !get.matches("GET", "x"));
    }
}
