//! Secrets that are bound to hosts.

use std::collections::BTreeMap;

use super::Lowering;
use crate::manifest::language::Sandbox;
use crate::model::{BoundHost, BoundSecret, Egress, EgressRule, NetworkMode};

impl Lowering<'_> {
    /// The bound secrets of a sandbox, and whether their hosts can be reached at all.
    pub(super) fn bound(&mut self, raw: &Sandbox) -> BTreeMap<String, BoundSecret> {
        let mut bound = BTreeMap::new();
        let network = raw.network.as_ref();
        let mode = network.and_then(|network| network.mode).unwrap_or_default();
        let allowed: Option<Vec<EgressRule>> = network
            .filter(|network| network.egress == Some(Egress::Deny))
            .map(|network| network.allow.iter().filter_map(|rule| rule.0.parse().ok()).collect());
        for (name, how) in &raw.secrets {
            let Some(hosts) = &how.hosts else { continue };
            let path = ["secrets", name, "hosts"];
            if mode != NetworkMode::Isolated {
                let what = "a secret is bound to hosts by the way out of the network mode `isolated`";
                let problem = self.error("conflict", &path, what.to_owned());
                self.push(problem.help("remove `hosts`, or the other `mode` of `network`"));
            }
            for (index, text) in hosts.iter().enumerate() {
                let Ok(host) = text.0.parse::<BoundHost>() else { continue };
                if allowed.as_ref().is_some_and(|rules| !rules.iter().any(|rule| host.is_allowed_by(rule))) {
                    let what = format!("`{}` gets the secret and cannot be reached", text.0);
                    let problem = self.error("conflict", &[&path[..], &[&index.to_string()]].concat(), what);
                    let name = text.0.strip_prefix("http://").unwrap_or(&text.0);
                    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
                    self.push(problem.help(format!("add \"{name}:{}\" to `network.allow`", host.port)));
                }
            }
            let hosts = hosts.iter().map(|host| host.0.clone()).collect();
            bound.insert(name.clone(), BoundSecret { placeholder: String::new(), hosts });
        }
        bound
    }
}
