//! Trying to get out of a sandbox from the inside, to see that what is promised holds.

use serde::Serialize;

use super::script::{SHORT, run, script};
use crate::model::{Egress, Image, NetworkMode, SandboxSpec};
use crate::provider::{Guest, GuestError};

/// One way out, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IsolationCheck {
    /// The way, in one word.
    pub name: String,
    /// Whether it is closed.
    pub verdict: IsolationVerdict,
    /// What was seen.
    pub evidence: String,
}

/// Whether a way out is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationVerdict {
    /// It is.
    Held,
    /// It is not.
    Broken,
    /// It could not be tried.
    Unknown,
}

/// The ways that are tried in every sandbox.
const ALWAYS: &[&str] = &[
    "root",
    "new-privileges",
    "system-calls",
    "capabilities",
    "processes",
    "mounts",
    "namespaces",
    "kernel-settings",
    "kernel-memory",
    "devices",
    "sysfs",
    "cgroups",
    "control-sockets",
    "keys",
];

/// Tries the ways out of a sandbox that this spec leaves closed, as the user that commands have by default. Nothing is changed inside.
///
/// # Errors
/// Whatever running a command gives.
pub async fn try_isolation(guest: &dyn Guest, spec: &SandboxSpec) -> Result<Vec<IsolationCheck>, GuestError> {
    let (network, mut expected) = match spec.network.mode {
        NetworkMode::Host => ("host", vec![]),
        NetworkMode::None => ("none", vec!["interfaces", "routes"]),
        NetworkMode::Isolated => ("isolated", vec!["interfaces", "routes", "host-services", "metadata"]),
    };
    let denies = spec.network.egress == Some(Egress::Deny);
    let on_host = spec.image == Image::Host;
    expected.extend(denies.then_some("egress-rules"));
    expected.extend(on_host.then_some("passwords"));
    let rules = if denies { "deny" } else { "allow" };
    let mut command = script!("isolation").command([network, rules, if on_host { "1" } else { "0" }]);
    command.timeout = Some(SHORT);
    let output = run(guest, "trying the isolation", &command, 64 * 1024).await?;
    let mut checks: Vec<IsolationCheck> =
        String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect();
    for name in ALWAYS.iter().chain(&expected) {
        if !checks.iter().any(|check| check.name == *name) {
            let evidence = "it was not tried".to_owned();
            checks.push(IsolationCheck {
                name: (*name).to_owned(),
                verdict: IsolationVerdict::Unknown,
                evidence,
            });
        }
    }
    Ok(checks)
}

fn parse(line: &str) -> Option<IsolationCheck> {
    let mut fields = line.splitn(3, '\t');
    let name = fields.next()?.to_owned();
    let verdict = match fields.next()? {
        "held" => IsolationVerdict::Held,
        "broken" => IsolationVerdict::Broken,
        "unknown" => IsolationVerdict::Unknown,
        _ => return None,
    };
    Some(IsolationCheck { name, verdict, evidence: fields.next()?.to_owned() })
}
