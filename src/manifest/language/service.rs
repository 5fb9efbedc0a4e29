//! A service as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::short;
use super::{Dependency, EnvText, GuestPath, PortNumber, Restart, Signal, Text, User};
use crate::model::{Duration, Quantity, ServiceState};

/// A supervised service.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    /// The program with its arguments as a list, or one text that `sh -c` runs. Default: what the sandbox's image says, its entry point with its command.
    #[serde(default)]
    #[schemars(with = "Option<short::Command>")]
    pub command: Vec<EnvText>,
    /// Whether it should run. Default: `running`.
    pub state: Option<ServiceState>,
    /// Its working directory. Default: the sandbox's.
    pub working_dir: Option<GuestPath>,
    /// Who runs it: a name or `uid[:gid]`. Default: the sandbox's user.
    pub user: Option<User>,
    /// Environment over the sandbox's: a mapping, or a list of `KEY=VALUE`.
    #[serde(default)]
    #[schemars(with = "Option<short::Env>")]
    pub env: BTreeMap<String, EnvText>,
    /// Services of the same sandbox that come first: a list of names, or a mapping with the condition each must reach.
    #[serde(default)]
    #[schemars(with = "Option<short::DependsOn>")]
    pub depends_on: BTreeMap<String, Dependency>,
    /// How to find out whether it does its job.
    pub healthcheck: Option<HealthCheck>,
    /// `always`, `on-failure`, `on-failure:N` (at most N times in a row) or `never`, with backoff. Default: `always`.
    pub restart: Option<Restart>,
    /// The signal that asks it to end. Default: `TERM`; for the image's own command, what the image says.
    pub stop_signal: Option<Signal>,
    /// How long it may take to end before it is killed. Default: 10s.
    pub stop_timeout: Option<Duration>,
    /// Rotation of its log.
    pub logs: Option<Logs>,
}

/// Rotation of a log.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logs {
    /// The log is rotated at this size. Default: 10MiB.
    pub max_size: Option<Quantity>,
    /// How many rotated logs are kept. Default: 3.
    #[schemars(range(max = 100))]
    pub max_files: Option<u32>,
}

/// A health check; exactly one of `tcp`, `http` and `exec`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HealthCheck {
    /// A connection to this port inside is accepted.
    pub tcp: Option<PortNumber>,
    /// A GET of this port inside answers with a status below 400: a port, or a mapping with a path.
    #[schemars(with = "Option<short::HttpProbe>")]
    pub http: Option<HttpProbe>,
    /// A command exits 0: a list, or one text that `sh -c` runs.
    #[schemars(with = "Option<short::Command>")]
    pub exec: Option<Vec<EnvText>>,
    /// Time between two probes. Default: 10s.
    pub interval: Option<Duration>,
    /// How long one probe may take. Default: 5s.
    pub timeout: Option<Duration>,
    /// How many probes in a row must fail before the service counts as unhealthy. Default: 3.
    #[schemars(range(min = 1, max = 1000))]
    pub retries: Option<u32>,
    /// Failures this soon after the start do not count. Default: 0s.
    pub start_period: Option<Duration>,
}

/// An HTTP probe.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpProbe {
    /// The port inside.
    pub port: PortNumber,
    /// The path, starting with a slash. Default: `/`.
    pub path: Option<Text>,
}
