//! Whom an isolated sandbox may reach: the rules, and the account of what was tried.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::state;

/// The file of attempts in the sandbox's directory.
pub const ATTEMPTS: &str = "egress.json";
/// So many destinations are remembered; the one that was not tried for longest makes room.
const MAX_ATTEMPTS: usize = 1000;
/// The account is written at most this often.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);

/// Destinations that are allowed where everything else is denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// Which hosts.
    pub host: EgressHost,
    /// Which port of theirs; all when absent.
    pub port: Option<u16>,
}

/// The hosts of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressHost {
    /// This name, in lower case.
    Name(String),
    /// Every name below this one, in lower case.
    Subdomains(String),
    /// A network.
    Network {
        /// One of its addresses.
        address: IpAddr,
        /// How many leading bits its addresses share.
        prefix: u8,
    },
}

/// Attempts to reach one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The host as it was asked for.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What became of it.
    pub outcome: Outcome,
    /// How often.
    pub count: u64,
    /// When first, in milliseconds since the Unix epoch.
    pub first: u64,
    /// When last.
    pub last: u64,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was let through.
    Allowed,
    /// No rule allows it.
    Denied,
    /// No rule can allow it: why.
    Forbidden(String),
}

/// What the rules say about a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There are no rules.
    Open,
    /// Its name is allowed, and only that name may be spoken to.
    Name,
    /// It is an address, and the address is allowed.
    Address,
    /// Nothing allows it.
    Denied,
}

/// The rules in force, replaceable at any time. `None` allows everything.
///
/// Names are allowed by name and addresses by network. A name is not looked up in order to see whether its address is allowed: what may not
/// be reached may not be asked for either, since a question for a name carries data out.
#[derive(Debug)]
pub struct Policy {
    rules: watch::Sender<Option<Arc<[EgressRule]>>>,
}

impl Policy {
    /// These rules.
    pub fn new(rules: Option<Vec<EgressRule>>) -> Policy {
        Policy { rules: watch::Sender::new(rules.map(Arc::from)) }
    }

    /// Puts other rules into force, also for connections that exist.
    pub fn replace(&self, rules: Option<Vec<EgressRule>>) {
        self.rules.send_replace(rules.map(Arc::from));
    }

    /// What the rules say about a host and port.
    pub fn verdict(&self, host: &str, port: u16) -> Verdict {
        let rules = self.rules.borrow();
        let Some(rules) = rules.as_deref() else { return Verdict::Open };
        let mut rules = rules.iter().filter(|rule| rule.port.is_none_or(|only| only == port));
        match host.parse() {
            Ok(address) if rules.any(|rule| rule.contains(address)) => Verdict::Address,
            Err(_) if rules.any(|rule| rule.host.names(host)) => Verdict::Name,
            _ => Verdict::Denied,
        }
    }

    /// Returns when the destination is no longer allowed.
    pub async fn withdrawn(&self, host: &str, port: u16) {
        let mut changes = self.rules.subscribe();
        while self.verdict(host, port) != Verdict::Denied {
            if changes.changed().await.is_err() {
                // Nobody can change them any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl EgressHost {
    /// Whether it names this host.
    pub(super) fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match self {
            EgressHost::Name(name) => *name == host,
            EgressHost::Subdomains(name) => {
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            EgressHost::Network { .. } => false,
        }
    }
}

impl EgressRule {
    fn contains(&self, address: IpAddr) -> bool {
        let EgressHost::Network { address: network, prefix } = &self.host else { return false };
        let same = |a: u128, b: u128, width: u32| {
            let ignored = width.saturating_sub(u32::from(*prefix));
            a.checked_shr(ignored).unwrap_or(0) == b.checked_shr(ignored).unwrap_or(0)
        };
        match (network, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(*a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same((*a).into(), b.into(), 128),
            _ => false,
        }
    }
}

type Key = (String, u16, Outcome);

/// The account of what the sandbox tried to reach. It outlives runs.
#[derive(Debug, Default)]
pub struct Account {
    attempts: Mutex<BTreeMap<Key, Attempt>>,
    changed: Notify,
}

impl Account {
    /// Goes on with what the file of the sandbox in the working directory says.
    pub fn open() -> Account {
        let kept = state::read::<Vec<Attempt>>(Path::new(ATTEMPTS)).unwrap_or_else(|error| {
            eprintln!("{ATTEMPTS}: {error}; it is begun anew");
            None
        });
        let kept = kept.unwrap_or_default().into_iter().take(MAX_ATTEMPTS);
        let attempts = kept.map(|a| ((a.host.clone(), a.port, a.outcome.clone()), a)).collect();
        Account { attempts: Mutex::new(attempts), ..Account::default() }
    }

    /// Notes an attempt.
    pub fn note(&self, host: &str, port: u16, outcome: Outcome) {
        let host: String = host.chars().take(255).collect();
        let now = state::now_ms();
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host.clone(), port, outcome.clone());
        if attempts.len() >= MAX_ATTEMPTS && !attempts.contains_key(&key) {
            let oldest = attempts.iter().min_by_key(|(_, attempt)| attempt.last).map(|(key, _)| key.clone());
            oldest.and_then(|key| attempts.remove(&key));
        }
        let attempt =
            attempts.entry(key).or_insert(Attempt { host, port, outcome, count: 0, first: now, last: now });
        attempt.count += 1;
        attempt.last = now;
        drop(attempts);
        self.changed.notify_one();
    }

    /// Writes what changes until dropped.
    pub async fn keep(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            self.write();
            tokio::time::sleep(WRITE_INTERVAL).await;
        }
    }

    /// Writes the account to the sandbox's directory.
    pub fn write(&self) {
        let attempts: Vec<Attempt> =
            self.attempts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        if let Err(error) = state::write(Path::new(ATTEMPTS), &attempts, false) {
            eprintln!("{ATTEMPTS}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn network(address: &str, prefix: u8, port: Option<u16>) -> EgressRule {
        EgressRule { host: EgressHost::Network { address: address.parse().unwrap(), prefix }, port }
    }

    #[test]
    fn names_match_whole_labels_only() {
        let name = EgressRule { host: EgressHost::Name("a.org".into()), port: Some(443) };
        let below = EgressRule { host: EgressHost::Subdomains("b.org".into()), port: None };
        let policy = Policy::new(Some(vec![name, below]));
        for (host, port, allowed) in [
            ("a.org", 443, true),
            ("A.ORG.", 443, true),
            ("a.org", 80, false),
            ("x.a.org", 443, false),
            ("xa.org", 443, false),
            ("b.org", 1, false),
            ("x.b.org", 1, true),
            ("x.y.B.org", 1, true),
            (".b.org", 1, false),
            ("xb.org", 1, false),
            ("a.org.evil.com", 443, false),
        ] {
            assert_eq!(policy.verdict(host, port) == Verdict::Name, allowed, "{host}:{port}");
        }
    }

    #[test]
    fn networks_match_by_prefix() {
        let rules = vec![
            network("10.1.0.0", 16, None),
            network("2001:db8::", 32, Some(443)),
            network("192.0.2.1", 32, None),
        ];
        let policy = Policy::new(Some(rules));
        for (address, port, allowed) in [
            ("10.1.2.3", 1, true),
            ("10.2.2.3", 1, false),
            ("::ffff:10.1.2.3", 1, true),
            ("2001:db8:1::1", 443, true),
            ("2001:db8:1::1", 80, false),
            ("2001:db9::1", 443, false),
            ("192.0.2.1", 9, true),
            ("192.0.2.2", 9, false),
        ] {
            assert_eq!(policy.verdict(address, port) == Verdict::Address, allowed, "{address}:{port}");
        }
        let all = Policy::new(Some(vec![network("0.0.0.0", 0, None)]));
        assert_eq!(all.verdict("9.9.9.9", 1), Verdict::Address);
        assert_eq!(all.verdict("2001::1", 1), Verdict::Denied, "the other family is another network");
        assert_eq!(all.verdict("a.org", 1), Verdict::Denied, "a name is not looked up");
        assert_eq!(Policy::new(Some(Vec::new())).verdict("9.9.9.9", 1), Verdict::Denied);
        assert_eq!(Policy::new(None).verdict("a.org", 1), Verdict::Open);
    }

    #[tokio::test]
    async fn a_connection_is_withdrawn_with_its_rule() {
        let policy = Arc::new(Policy::new(Some(vec![network("10.0.0.0", 8, None)])));
        let watched = Arc::clone(&policy);
        let waiting = tokio::spawn(async move { watched.withdrawn("10.1.1.1", 80).await });
        policy.replace(Some(vec![network("10.1.0.0", 16, None)]));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it is still allowed");
        policy.replace(Some(Vec::new()));
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }
}
