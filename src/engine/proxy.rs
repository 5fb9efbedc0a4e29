//! The way out of an isolated sandbox: an HTTP and SOCKS5 proxy in the shim that refuses whatever is the host itself.

use serde::{Deserialize, Serialize};

/// The port of the sandbox's loopback on which it listens: above the ephemeral range.
pub const PORT: u16 = 61080;

/// The proxies that the host itself must use.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Upstream {
    /// For `http://` destinations, as `http://[user:password@]host:port`.
    pub http: Option<String>,
    /// For everything else.
    pub https: Option<String>,
    /// Names and suffixes reached directly.
    pub no_proxy: Vec<String>,
}

impl Upstream {
    /// What this process's environment says.
    pub fn from_environment() -> Upstream {
        let get = |lower: &str, upper: &str| {
            let value = std::env::var(lower).or_else(|_| std::env::var(upper)).ok()?;
            Some(value).filter(|value| !value.is_empty())
        };
        let list = get("no_proxy", "NO_PROXY").unwrap_or_default();
        let no_proxy =
            list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        Upstream { http: get("http_proxy", "HTTP_PROXY"), https: get("https_proxy", "HTTPS_PROXY"), no_proxy }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // the URLs may hold a password
        f.debug_struct("Upstream")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .finish()
    }
}

/// The variables that make programs use it.
pub fn environment() -> Vec<(&'static str, String)> {
    let http = format!("http://127.0.0.1:{PORT}");
    let socks = format!("socks5h://127.0.0.1:{PORT}");
    let none = "localhost,127.0.0.1,::1".to_owned();
    vec![
        ("http_proxy", http.clone()),
        ("https_proxy", http.clone()),
        ("HTTP_PROXY", http.clone()),
        ("HTTPS_PROXY", http),
        ("all_proxy", socks.clone()),
        ("ALL_PROXY", socks),
        ("no_proxy", none.clone()),
        ("NO_PROXY", none),
        ("NODE_USE_ENV_PROXY", "1".to_owned()),
    ]
}

/// The proxy of one sandbox.
pub struct Proxy {
    #[expect(dead_code)]
    upstream: Upstream,
}

impl Proxy {
    /// A proxy that goes through the host's own, if it has one.
    pub fn new(upstream: Upstream) -> Proxy {
        Proxy { upstream }
    }

    /// Serves until dropped.
    pub async fn run(self: std::sync::Arc<Self>, _listener: tokio::net::TcpListener) {
        std::future::pending::<()>().await;
    }
}
