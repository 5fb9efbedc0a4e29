//! Where a sandbox may connect to, and what it tried.

use std::fmt;
// The types alone, without the sockets of `std`.
use core::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

use super::Timestamp;

/// One entry of `network.allow`: `github.com`, `*.example.com`, `10.0.0.0/8`, `192.0.2.1`, `2001:db8::/32`, each with an optional port:
/// `github.com:443`, `10.0.0.0/8:5432`, `[2001:db8::/32]:443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// Which hosts.
    pub host: EgressHost,
    /// Which port of theirs; `None` for all.
    pub port: Option<u16>,
}

/// The hosts of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressHost {
    /// This very name, in lower case.
    Name(String),
    /// Every name below this one, but not itself: `*.example.com`.
    Subdomains(String),
    /// The addresses that share the first `prefix` bits with this one.
    Network {
        /// Any address of the network.
        address: IpAddr,
        /// 0 to 32, or to 128.
        prefix: u8,
    },
}

/// Why a text is not a rule, as a clause after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseEgressRuleError(String);

impl FromStr for EgressRule {
    type Err = ParseEgressRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let unclosed =
                || ParseEgressRuleError("has no `]` that ends it or stands before `:port`".to_owned());
            let (host, rest) = rest.split_once(']').ok_or_else(unclosed)?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':').ok_or_else(unclosed)?)),
            }
        } else {
            match text.rsplit_once(':') {
                // A colon in the host is one of IPv6, which takes a port in brackets only.
                Some((host, port)) if !host.contains(':') => (host, Some(port)),
                _ => (text, None),
            }
        };
        let port = port.map(|port| match port.parse() {
            Ok(0) | Err(_) => {
                Err(ParseEgressRuleError(format!("has the port `{port}`, which is not between 1 and 65535")))
            }
            Ok(port) => Ok(port),
        });
        Ok(Self { host: host.parse()?, port: port.transpose()? })
    }
}

impl FromStr for EgressHost {
    type Err = ParseEgressRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        if let Ok(address) = address.parse::<IpAddr>() {
            let most = if address.is_ipv4() { 32 } else { 128 };
            let prefix = match prefix {
                None => Ok(most),
                Some(prefix) => prefix.parse().ok().filter(|bits| *bits <= most).ok_or_else(|| {
                    ParseEgressRuleError(format!(
                        "has the prefix `/{prefix}`, which is not between /0 and /{most}"
                    ))
                }),
            };
            return Ok(Self::Network { address, prefix: prefix? });
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.is_empty() || name.len() > 253 || !name.split('.').all(label) {
            return Err(ParseEgressRuleError("is not a host name, `*.name`, address or network".to_owned()));
        }
        let name = name.to_ascii_lowercase();
        Ok(if below { Self::Subdomains(name) } else { Self::Name(name) })
    }
}

/// A host that a secret is bound to: `api.example.com`, `*.example.com`, each with an optional port, which is 443 otherwise. It is spoken to by TLS,
/// unless it is written `http://internal.example.com`, with the port 80 otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundHost {
    /// Which hosts; never a network.
    pub host: EgressHost,
    /// Which port of theirs.
    pub port: u16,
    /// Without TLS.
    pub plain: bool,
}

impl FromStr for BoundHost {
    type Err = ParseEgressRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |text: &str| Err(ParseEgressRuleError(text.to_owned()));
        let (plain, rest) = match text.split_once("://") {
            Some(("http", rest)) => (true, rest),
            Some(_) => {
                return wrong("has a scheme: write the host alone, or `http://HOST` where there is no TLS");
            }
            None => (false, text),
        };
        let EgressRule { host, port } = rest.parse()?;
        match &host {
            EgressHost::Network { .. } => wrong("is an address: a secret is bound to names"),
            EgressHost::Subdomains(name) if !name.contains('.') => {
                wrong("is every name of a whole top level: name the domain below it")
            }
            _ => Ok(Self { host, port: port.unwrap_or(if plain { 80 } else { 443 }), plain }),
        }
    }
}

impl BoundHost {
    /// Whether a rule lets through whatever this means.
    pub fn is_allowed_by(&self, rule: &EgressRule) -> bool {
        let below = |name: &str, of: &str| name.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
        let named = match (&self.host, &rule.host) {
            (EgressHost::Name(name), EgressHost::Name(allowed)) => name == allowed,
            (EgressHost::Name(name), EgressHost::Subdomains(allowed)) => below(name, allowed),
            (EgressHost::Subdomains(name), EgressHost::Subdomains(allowed)) => {
                name == allowed || below(name, allowed)
            }
            _ => false,
        };
        named && rule.port.is_none_or(|only| only == self.port)
    }
}

/// What became of attempts to reach one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EgressAttempt {
    /// The host as it was asked for.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether it was let through.
    pub allowed: bool,
    /// Why not; empty if it was.
    pub reason: String,
    /// Whether a rule could let it through. The host itself and what only links reach are never let through.
    pub can_be_allowed: bool,
    /// How often.
    pub count: u64,
    /// When first.
    pub first: Timestamp,
    /// When last.
    pub last: Timestamp,
}

impl EgressAttempt {
    /// The entry of `network.allow` that lets it through.
    pub fn rule(&self) -> String {
        // An IPv6 address.
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (EgressHost::Network { address: IpAddr::V6(address), prefix }, Some(port)) => {
                write!(f, "[{address}/{prefix}]:{port}")
            }
            (host, Some(port)) => write!(f, "{host}:{port}"),
            (host, None) => write!(f, "{host}"),
        }
    }
}

impl fmt::Display for EgressHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Subdomains(name) => write!(f, "*.{name}"),
            Self::Network { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for (text, shown) in [
            ("GitHub.com", "github.com"),
            ("*.example.com:443", "*.example.com:443"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
            ("[::1]", "::1/128"),
            ("localhost", "localhost"),
        ] {
            let rule: EgressRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<EgressRule>().unwrap(), rule, "{text}");
        }
    }

    #[test]
    fn nonsense_is_not_a_rule() {
        for text in [
            "",
            ":443",
            "a:",
            "a:0",
            "a:70000",
            "a b",
            "*",
            "*.",
            "a.*.b",
            "-a",
            "a..b",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "[::1",
            "[::1]443",
            "a/8",
            "https://a",
            "[a.b/8]",
            "user@a",
        ] {
            assert!(text.parse::<EgressRule>().is_err(), "{text:?}");
        }
    }
}
