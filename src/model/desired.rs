//! Desired state: the manifest after merging, templating, defaulting and validation. Typed, complete, without spans.
//!
//! A sandbox is split in two: [`SandboxSpec`] is what its provider makes, [`GuestSpec`] is what is put in place inside it.
//! Secret values never stand here; secrets are names.

use core::net::Ipv4Addr;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Address, Duration, Quantity, SpecHash};

/// Everything one manifest declares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The project's name.
    pub project: String,
    /// Managed volumes by name.
    pub volumes: BTreeMap<String, DesiredVolume>,
    /// Sandboxes by name, replicas expanded.
    pub sandboxes: BTreeMap<String, DesiredSandbox>,
}

/// A volume kept by a provider; it outlives the sandboxes that mount it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredVolume {
    /// The provider that keeps it.
    pub provider: String,
    /// Never deleted while true.
    pub protect: bool,
}

/// One sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DesiredSandbox {
    /// The provider it lives at.
    pub provider: String,
    /// Whether it should run, be stopped, or not exist.
    pub state: RunState,
    /// What the provider makes.
    pub spec: SandboxSpec,
    /// The secrets of the build of its image, by what the Containerfile calls them. No part of what is made: another value makes no other image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub build_secrets: BTreeMap<String, String>,
    /// What is put in place inside.
    pub guest: GuestSpec,
    /// Sandboxes that must have reached a condition before presets and services of this one start.
    pub depends_on: BTreeMap<String, DependencyCondition>,
    /// Ports of other sandboxes that this one's values mention and whose address is not known yet. While any is left the guest waits.
    pub unresolved: BTreeSet<PortRef>,
    /// What is done about drift.
    pub drift: DriftPolicy,
    /// Never deleted or recreated while true.
    pub protect: bool,
}

/// A port of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRef {
    /// The sandbox.
    pub sandbox: String,
    /// The port inside it.
    pub port: u16,
}

impl PortRef {
    /// The port as a resource.
    pub fn address(&self) -> Address {
        Address::Port(self.sandbox.clone(), self.port)
    }
}

/// The state a sandbox should be in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Exists and runs.
    #[default]
    Running,
    /// Exists, keeps its disk, does not run.
    Stopped,
    /// Does not exist.
    Absent,
}

/// What a dependent waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DependencyCondition {
    /// The dependency runs.
    #[default]
    Started,
    /// All its health checks pass.
    Healthy,
}

/// What is done when reality drifts from the manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriftPolicy {
    /// Repair it.
    #[default]
    Heal,
    /// Report it and leave it.
    Warn,
    /// Leave it and say nothing.
    Ignore,
}

/// What a provider makes. Each field's change class stands in the provider's capability sheet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The root filesystem.
    pub image: Image,
    /// The host name inside.
    pub hostname: String,
    /// Processor, memory, disk and processes.
    pub resources: Resources,
    /// Volumes and where they are mounted, ordered by path.
    pub mounts: Vec<Mount>,
    /// Directories of the host shared with the sandbox, ordered by path. Left out where there is none, so that specs of before keep their hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<Bind>,
    /// Declared ports by the port inside.
    #[serde(deserialize_with = "by_port")]
    pub ports: BTreeMap<u16, PortSpec>,
    /// Unix sockets of this machine that lead inside, by name. Left out where there is none, so that specs of before keep their hash.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sockets: BTreeMap<String, SocketSpec>,
    /// Ports of other sandboxes reachable from inside at the same address as from the host.
    pub links: BTreeSet<LinkSpec>,
    /// Reach of the network.
    pub network: NetworkSpec,
    /// Secrets that the way out puts into requests to some hosts, by name. Left out where there is none, so that specs of before keep their hash.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bound: BTreeMap<String, BoundSecret>,
    /// Devices of the machine. Left out where there is none, so that specs of before keep their hash.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub devices: BTreeSet<Device>,
    /// The weakest isolation accepted.
    pub isolation: Option<Isolation>,
    /// Lifetime.
    pub lifecycle: LifecycleSpec,
}

impl SandboxSpec {
    /// What the spec is told from others by.
    pub fn hash(&self) -> SpecHash {
        super::hash_of(&*self.without_places())
    }

    /// The spec as far as it says what is made, not where on this machine that comes from.
    pub fn without_places(&self) -> Cow<'_, Self> {
        let Image::Build { dockerfile, sha256, .. } = &self.image else { return Cow::Borrowed(self) };
        let (context, dockerfile, sha256) = (Place::default(), dockerfile.clone(), sha256.clone());
        Cow::Owned(Self { image: Image::Build { context, dockerfile, sha256 }, ..self.clone() })
    }
}

/// Reads a map by port. Inside a tagged enum, such as the step of a saved plan, serde does not turn a JSON key into a number by itself.
fn by_port<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u16, PortSpec>, D::Error> {
    let ports: BTreeMap<String, PortSpec> = BTreeMap::deserialize(deserializer)?;
    let number =
        |text: String| text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is not a port")));
    ports.into_iter().map(|(port, spec)| Ok((number(port)?, spec))).collect()
}

/// Where a root filesystem comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Image {
    /// The system directories of the machine, read-only beneath a private writable layer.
    #[default]
    Host,
    /// An OCI image: a reference of a registry, or a file of this machine, see [`Image::file`].
    Oci(String),
    /// One of the project's own base images by name.
    Base(String),
    /// An image built from a context directory.
    Build {
        /// The context directory.
        context: Place,
        /// The Dockerfile, relative to the context.
        dockerfile: Option<String>,
        /// The digest of all in the context that no ignore file leaves out. Empty in what was recorded before contexts had one.
        #[serde(default)]
        sha256: String,
    },
    /// A snapshot by its name in the project, or by its id at the provider.
    Snapshot(String),
}

impl Image {
    /// Where an image of this machine is, if `text` names one: `oci:PATH[:NAME]` (a directory that is an OCI image layout),
    /// `oci-archive:PATH[:NAME]` or `docker-archive:PATH[:NAME]`, as the transport, the path, and the name with its colon. A name has no slash.
    pub fn file(text: &str) -> Option<(&str, &str, &str)> {
        let (transport, rest) = text.split_once(':')?;
        if !matches!(transport, "oci" | "oci-archive" | "docker-archive") {
            return None;
        }
        let last = rest.rfind('/').map_or(0, |at| at + 1);
        let end = rest.get(last..)?.find(':').map_or(rest.len(), |at| last + at);
        Some((transport, rest.get(..end)?, rest.get(end..)?))
    }
}

/// Where on this machine something lies that is brought over. It is no part of what that is: all places are equal, and a spec's hash counts none, so that
/// another checkout of the same manifest is no change.
#[derive(Clone, Debug, Default, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Place(pub PathBuf);

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Processor, memory, disk and processes. What is absent is the provider's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Memory.
    pub memory: Option<Quantity>,
    /// Disk.
    pub disk: Option<Quantity>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Reading and writing of disks. Left out where it is unlimited, so that specs of before keep their hash.
    #[serde(default, skip_serializing_if = "Io::is_unlimited")]
    pub io: Io,
}

/// What may be read from and written to disks in a second. What is absent is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Bytes read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Quantity>,
    /// Bytes written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write: Option<Quantity>,
    /// Reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_ops: Option<u32>,
    /// Writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_ops: Option<u32>,
}

impl Io {
    fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// A volume mounted into a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mount {
    /// The absolute path inside.
    pub path: String,
    /// The volume's name.
    pub volume: String,
    /// Writes from inside are refused.
    pub read_only: bool,
}

/// A directory of the host that a sandbox sees as its own (`sync` with `mode: bind`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bind {
    /// The absolute path inside.
    pub path: String,
    /// The directory of the host, absolute.
    pub from: PathBuf,
    /// Writes from inside are refused.
    pub read_only: bool,
}

impl Bind {
    /// Whether this path inside is the shared directory or lies in it.
    pub fn covers(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A declared port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// The port of the host it is forwarded from. Resolved before planning where the provider forwards ports from the host.
    pub host_port: Option<u16>,
    /// Where on this machine that is. Left out where it is the loopback, so that specs of before keep their hash.
    #[serde(default, skip_serializing_if = "HostIp::is_loopback")]
    pub host_ip: HostIp,
    /// What is spoken on it.
    pub protocol: PortProtocol,
    /// Reachable without credentials from anywhere, at providers that publish ports.
    pub public: bool,
    /// For people.
    pub description: Option<String>,
}

/// A unix socket of this machine whose connections lead inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// Where it leads.
    pub to: SocketTarget,
    /// Where it is, absolute; `None` for a place of the provider's, which it tells.
    pub host_path: Option<PathBuf>,
}

/// Where a unix socket of this machine leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SocketTarget {
    /// A port inside, by TCP.
    Port(u16),
    /// A unix socket inside, by its absolute path there.
    Path(String),
}

/// The address of this machine that a port is forwarded from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum HostIp {
    /// For programs of this machine only.
    #[default]
    #[serde(rename = "127.0.0.1")]
    Loopback,
    /// For everybody who reaches this machine at any of its addresses.
    #[serde(rename = "0.0.0.0")]
    Any,
}

impl HostIp {
    /// Whether only programs of this machine reach it.
    pub fn is_loopback(&self) -> bool {
        *self == Self::Loopback
    }

    /// The address.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST,
            Self::Any => Ipv4Addr::UNSPECIFIED,
        }
    }
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortProtocol {
    /// Any stream.
    #[default]
    Tcp,
    /// HTTP.
    Http,
    /// Datagrams.
    Udp,
}

impl PortProtocol {
    /// Whether connections do not lead there.
    pub fn is_udp(self) -> bool {
        self == Self::Udp
    }
}

/// A port of another sandbox made reachable from inside at `127.0.0.1:host_port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkSpec {
    /// The port it leads to.
    pub to: PortRef,
    /// The address of that port on the host, used unchanged inside.
    pub host_port: u16,
    /// Datagrams travel there, and no connections. Filled in before planning; left out where not, so that specs of before keep their hash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub udp: bool,
}

/// Reach of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// How much there is of it.
    pub mode: NetworkMode,
    /// Outbound destinations refused unless allowed.
    pub egress: Option<Egress>,
    /// Destinations allowed when `egress` is `deny`: host names, `*.name`, with an optional `:port`.
    pub allow: Vec<String>,
}

/// A secret whose value never enters a sandbox. Inside there is a placeholder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundSecret {
    /// What stands for the value inside. Nobody can guess it who is not told; filled in before planning.
    pub placeholder: String,
    /// Who gets the value instead, see [`BoundHost`](super::BoundHost).
    pub hosts: Vec<String>,
}

/// How much network a sandbox has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Outbound access; inbound through declared ports only; nothing of the host's loopback or of other sandboxes.
    #[default]
    Isolated,
    /// The network of the host.
    Host,
    /// Loopback only.
    None,
}

/// Whether outbound access is allowed by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Everything but what is refused.
    Allow,
    /// Nothing but what is allowed.
    Deny,
}

/// A device of the machine, or several that are of use together only.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// Virtual machines: `/dev/kvm`.
    Kvm,
    /// File systems by programs: `/dev/fuse`.
    Fuse,
    /// Graphics processors, all that there are: `/dev/dri`, `/dev/nvidia*`, `/dev/kfd`.
    Gpu,
}

/// Isolation tiers, from weakest to strongest.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// File and network rules on an ordinary process.
    Process,
    /// Linux namespaces.
    Namespace,
    /// A user-space kernel.
    Gvisor,
    /// A virtual machine.
    Vm,
}

/// Lifetime of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleSpec {
    /// The provider must not stop it for inactivity.
    pub keep_alive: Option<bool>,
    /// Stopped after this long without activity.
    pub idle_timeout: Option<Duration>,
    /// Deleted this long after creation.
    pub ttl: Option<Duration>,
}

/// What is put in place inside a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// The default user of commands, services and shells, to whom belongs what is put inside: a name or `uid[:gid]`; `None` for the image's own.
    pub user: Option<String>,
    /// Who else is to own single managed files, directories and secrets, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub owners: BTreeMap<String, String>,
    /// The default working directory; `None` for the image's own.
    pub working_dir: Option<String>,
    /// The environment of every process, without secrets.
    pub env: BTreeMap<String, String>,
    /// Secrets by name and how each is given. Environment secrets override `env`.
    pub secrets: BTreeMap<String, SecretUse>,
    /// Managed files and directories by absolute path.
    pub files: BTreeMap<String, DesiredFile>,
    /// Repositories by absolute path.
    pub repositories: BTreeMap<String, RepositorySpec>,
    /// Presets in the order they run.
    pub presets: Vec<PresetSpec>,
    /// Supervised services by name.
    pub services: BTreeMap<String, ServiceSpec>,
    /// Directories that `watch` keeps in step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sync: Vec<SyncSpec>,
}

/// How a secret is given to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretUse {
    /// As an environment variable of this name.
    Env(String),
    /// As a file, mode 0400, on a memory-backed filesystem.
    File(String),
    /// As a placeholder in an environment variable, see [`SandboxSpec::bound`].
    Bound {
        /// The variable's name.
        variable: String,
        /// The placeholder.
        placeholder: String,
    },
}

/// A managed file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredFile {
    /// What it holds.
    pub content: FileContent,
    /// Permission bits; `None` for 0644 (a single file) or the modes of the source.
    pub mode: Option<u32>,
}

/// What a managed file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileContent {
    /// These very characters (a `content:` or a rendered `template:`).
    Inline(String),
    /// One file of the host.
    Source {
        /// Its path on the host.
        path: PathBuf,
        /// SHA-256 of its bytes when the manifest was read; writing anything else is an error.
        sha256: String,
        /// Its permission bits on the host.
        mode: u32,
    },
    /// A directory of the host with everything in it that no ignore file excludes.
    Tree {
        /// Its path on the host.
        path: PathBuf,
        /// SHA-256 over the sorted entries (path, kind, mode, content hash or link target) when the manifest was read.
        sha256: String,
        /// For the directory of a `sync`: the patterns it leaves out next to the ignore files. `None` for a `files` source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ignore: Option<Vec<String>>,
    },
}

/// A directory of the host that `watch` keeps in step with one inside. What is to be inside stands in [`GuestSpec::files`] too, so that every
/// other verb treats it as a managed directory; one that is shared stands in [`SandboxSpec::binds`] instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSpec {
    /// The directory of the host.
    pub from: PathBuf,
    /// The absolute path inside.
    pub to: String,
    /// How what is outside comes inside.
    #[serde(default)]
    pub mode: SyncMode,
    /// Patterns left out, next to the ignore files. Of a shared directory everything is inside: changes of these are not reacted to.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// What follows a change that reached the inside.
    #[serde(default)]
    pub on_change: Option<OnChange>,
}

/// How what a directory of the host holds comes inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// It is copied, one way, and kept in step while `pocketenv watch` runs.
    #[default]
    Copy,
    /// The directory itself is shared, where the provider can do that.
    Bind,
}

/// What follows a change that reached the inside of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnChange {
    /// The service is restarted.
    Restart(String),
    /// The command is run with the environment, user and directory of the sandbox.
    Exec(Vec<String>),
    /// The sandbox is deleted and made again.
    Rebuild,
}

/// A git repository cloned into a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositorySpec {
    /// The full URL, shorthands expanded, without credentials.
    pub url: String,
    /// Branch, tag or commit; `None` for the remote's default branch.
    pub reference: Option<String>,
    /// How many commits of history; `None` for all.
    pub depth: Option<u32>,
    /// The secret that holds a token for https.
    pub credentials: Option<String>,
}

/// A preset with its steps, variables resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresetSpec {
    /// Its name.
    pub name: String,
    /// Steps in the order they run.
    pub steps: Vec<PresetStep>,
}

/// One step of a preset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresetStep {
    /// Its name, unique in the preset.
    pub name: String,
    /// A script: the step is skipped unless it exits 0.
    #[serde(rename = "if")]
    pub only_if: Option<String>,
    /// A script: the step is skipped if it exits 0.
    pub unless: Option<String>,
    /// The script, run whole by `shell`.
    pub run: String,
    /// The interpreter.
    pub shell: String,
    /// Who runs it; `None` for the sandbox's user.
    pub user: Option<String>,
    /// Extra environment.
    pub env: BTreeMap<String, String>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// A failure is reported and does not hold up what follows.
    pub continue_on_error: bool,
}

impl PresetStep {
    /// The id under which the guest remembers that this step, with exactly this content, has finished.
    pub fn id(&self) -> String {
        super::hash_of(self).0
    }
}

/// A supervised service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The command, as argv; empty for that of the sandbox's image.
    pub command: Vec<String>,
    /// Whether it should run.
    pub state: ServiceState,
    /// Its working directory; `None` for the sandbox's.
    pub working_dir: Option<String>,
    /// Who runs it; `None` for the sandbox's user.
    pub user: Option<String>,
    /// Extra environment over the sandbox's.
    pub env: BTreeMap<String, String>,
    /// Services of the same sandbox that must have reached a condition before this one starts.
    pub depends_on: BTreeMap<String, DependencyCondition>,
    /// How to find out whether it does its job.
    pub healthcheck: Option<HealthCheck>,
    /// What happens when it exits.
    pub restart: RestartPolicy,
    /// The signal that asks it to end, such as `TERM`; empty for what the sandbox's image says.
    pub stop_signal: String,
    /// How long it may take to end before it is killed.
    pub stop_timeout: Duration,
    /// The log is rotated at this size.
    pub log_max_size: Quantity,
    /// How many rotated logs are kept.
    pub log_max_files: u32,
}

/// Whether a service should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// It runs.
    #[default]
    Running,
    /// It is defined and does not run.
    Stopped,
}

/// What happens when a service exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Started again, with backoff.
    Always,
    /// Started again after a non-zero exit, at most `max` times in a row if given.
    OnFailure {
        /// The most restarts in a row.
        max: Option<u32>,
    },
    /// Left ended.
    Never,
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Time between two probes.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// How many probes in a row must fail before the service counts as unhealthy.
    pub retries: u32,
    /// Failures this soon after the start do not count.
    pub start_period: Duration,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A connection to this port inside is accepted.
    Tcp(u16),
    /// A GET answers with a status below 400.
    Http {
        /// The port inside.
        port: u16,
        /// The path, starting with a slash.
        path: String,
    },
    /// The command exits 0.
    Exec(Vec<String>),
}
