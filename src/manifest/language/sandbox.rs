//! A sandbox as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::short::{self, OneOrMany};
use super::{
    BoundHost, Cpu, EgressRule, EnvName, EnvText, GuestPath, HostPath, ImageRef, Mode, Name, PortNumber,
    RepoUrl, SecretRef, Service, SocketTo, Text, User, env_name_schema, name_schema,
};
use crate::model::{
    DependencyCondition, Device, DriftPolicy, Duration, Egress, HostIp, Isolation, NetworkMode, PortProtocol,
    Quantity, RunState, SyncMode,
};

/// A sandbox.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sandbox {
    /// The root filesystem: `host` (the system directories of this machine, read-only beneath a private layer), an OCI image
    /// reference, or an image of this machine: `oci:DIR[:NAME]` (an image layout), `oci-archive:FILE[:NAME]` or
    /// `docker-archive:FILE[:NAME]`. Default: `host`. Only one of `image`, `base`, `build` and `snapshot` may be written.
    pub image: Option<ImageRef>,
    /// One of Pocketenv's own base images, by name.
    pub base: Option<Name>,
    /// An image built from a directory: its path, or a mapping.
    #[schemars(with = "Option<short::Build>")]
    pub build: Option<Build>,
    /// A snapshot that the sandbox starts from: at `local` by the name that `pocketenv snapshot create` gave it in this project, elsewhere by its id
    /// at the provider.
    pub snapshot: Option<Text>,
    /// Where the sandbox lives. Default: the default provider.
    pub provider: Option<Name>,
    /// How many there are, named `NAME-1` to `NAME-n`; `{{ index }}` tells them apart. Default: one, named `NAME`.
    #[schemars(range(min = 1, max = 1000))]
    pub count: Option<u32>,
    /// Whether it should run, be stopped or not exist. Default: `running`.
    pub state: Option<RunState>,
    /// Who runs commands, services and shells: a name or `uid[:gid]`. Default: the image's own.
    pub user: Option<User>,
    /// The default working directory. Default: the image's own.
    pub working_dir: Option<GuestPath>,
    /// The host name inside. Default: the sandbox's name.
    pub hostname: Option<Text>,
    /// Processor, memory, disk and processes. Default: the provider's.
    pub resources: Option<Resources>,
    /// Files with `KEY=VALUE` lines, read before `env`.
    #[serde(default)]
    #[schemars(with = "Option<OneOrMany<HostPath>>")]
    pub env_file: Vec<HostPath>,
    /// The environment of every process: a mapping, or a list of `KEY=VALUE`.
    #[serde(default)]
    #[schemars(with = "Option<short::Env>")]
    pub env: BTreeMap<String, EnvText>,
    /// Secrets: a list of names, each given as an environment variable of that name, or a mapping that says how each is given.
    #[serde(default)]
    #[schemars(with = "Option<short::Secrets>")]
    pub secrets: BTreeMap<String, SecretUse>,
    /// Mounted volumes: `NAME:PATH[:ro]`, or a mapping.
    #[serde(default)]
    #[schemars(with = "Option<Vec<short::Mount>>")]
    pub volumes: BTreeMap<String, Mount>,
    /// Ports that something inside listens on: a number, `HOST_PORT:PORT`, or a mapping.
    #[serde(default)]
    #[schemars(with = "Option<Vec<short::Port>>")]
    pub ports: BTreeMap<String, Port>,
    /// Unix sockets of this machine that lead inside, by name: the path of a unix socket or a port inside, or a mapping. Only their owner can connect to
    /// them.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, short::Socket>", extend("propertyNames" = name_schema()))]
    pub sockets: BTreeMap<String, Socket>,
    /// A repository, or several: a URL, a shorthand such as `github:owner/name`, or a mapping.
    #[serde(default)]
    #[schemars(with = "Option<short::Repos>")]
    pub repo: BTreeMap<String, Repo>,
    /// Presets in the order they run: a name, or a mapping with variables.
    #[serde(default)]
    #[schemars(with = "Option<Vec<short::PresetUse>>")]
    pub presets: Vec<PresetUse>,
    /// Sandboxes that come first: a list of names, or a mapping with the condition each must reach. Their declared ports are reached by their names,
    /// where the provider connects sandboxes.
    #[serde(default)]
    #[schemars(with = "Option<short::DependsOn>")]
    pub depends_on: BTreeMap<String, Dependency>,
    /// Managed files and directories.
    #[serde(default)]
    #[schemars(with = "Option<Vec<File>>")]
    pub files: BTreeMap<String, File>,
    /// Supervised services by name.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub services: BTreeMap<String, Service>,
    /// Reach of the network: `isolated`, `host`, `none`, or a mapping. Default: `isolated`.
    #[schemars(with = "Option<short::Network>")]
    pub network: Option<Network>,
    /// Devices of the machine that it gets; none besides those that every sandbox has, unless named here.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// The weakest isolation accepted.
    pub isolation: Option<IsolationUse>,
    /// Directories of the host brought inside by `apply` and kept in step while `pocketenv watch` runs.
    #[serde(default)]
    pub sync: Vec<Sync>,
    /// Lifetime.
    pub lifecycle: Option<Lifecycle>,
    /// Access by SSH.
    pub ssh: Option<Ssh>,
    /// Membership of a tailnet.
    pub tailscale: Option<Tailscale>,
    /// What is done about drift: what somebody else changed, its being stopped or started included. `pocketenv stop` is no drift.
    /// Default: `defaults.drift`, else `heal`.
    pub drift: Option<DriftPolicy>,
    /// Never deleted or recreated while true. Default: `defaults.protect`, else false.
    pub protect: Option<bool>,
}

/// An image built from a directory.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Build {
    /// The directory, relative to this manifest.
    pub context: HostPath,
    /// The Dockerfile, relative to the directory. Default: `Dockerfile`.
    pub dockerfile: Option<HostPath>,
    /// Secrets that `RUN --mount=type=secret,id=NAME` may have, by what the Dockerfile calls them. They are in no layer.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretRef>,
}

/// What all that runs in the sandbox may use together.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resources {
    /// Processors, such as `2` or `0.5`.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Quantity>,
    /// What it writes to disk outside its volumes, with what its file system needs for itself. It can grow; a smaller one needs a new sandbox.
    pub disk: Option<Quantity>,
    /// Processes and threads.
    #[schemars(range(min = 1))]
    pub pids: Option<u32>,
    /// Reading and writing of the disks that hold its files.
    pub io: Option<Io>,
}

/// What may be read from and written to disks in a second. What is left out is unlimited.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Io {
    /// Bytes read in a second.
    pub read: Option<Quantity>,
    /// Bytes written in a second.
    pub write: Option<Quantity>,
    /// Reads in a second.
    #[schemars(range(min = 1))]
    pub read_ops: Option<u32>,
    /// Writes in a second.
    #[schemars(range(min = 1))]
    pub write_ops: Option<u32>,
}

/// How a secret is given. `{}` is the environment variable of the secret's name.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretUse {
    /// The environment variable's name. Default: the secret's name.
    pub as_env: Option<EnvName>,
    /// A file inside, on a memory-backed filesystem, mode 0400, instead of an environment variable.
    pub as_file: Option<GuestPath>,
    /// With `as_file`: who owns the file and so may read it, a name or `uid[:gid]`. Default: the user of the sandbox.
    pub owner: Option<User>,
    /// The only hosts that get the value. It never enters the sandbox: the variable holds a placeholder, and the way out puts the value in its
    /// place in the headers of requests to these hosts.
    #[schemars(length(min = 1))]
    pub hosts: Option<Vec<BoundHost>>,
}

/// A mounted volume.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mount {
    /// The name under `volumes:`.
    pub name: Name,
    /// The path inside.
    pub path: GuestPath,
    /// Writes from inside are refused. Default: false.
    pub read_only: Option<bool>,
}

/// A port that something inside listens on.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Port {
    /// The port inside, 1 to 65535.
    pub port: PortNumber,
    /// The port of this machine that leads to it. Default: a free one, chosen once and kept.
    pub host_port: Option<PortNumber>,
    /// Where on this machine: `127.0.0.1`, or `0.0.0.0` for everybody who reaches the machine. Default: `127.0.0.1`.
    pub host_ip: Option<HostIp>,
    /// What is spoken on it: a stream (`tcp`, `http`), or datagrams (`udp`). Default: `tcp`.
    pub protocol: Option<PortProtocol>,
    /// Reachable from anywhere without credentials, at providers that publish ports. Default: false.
    pub public: Option<bool>,
    /// For people.
    pub description: Option<Text>,
}

/// A unix socket of this machine that leads inside.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Socket {
    /// Where it leads: the path of a unix socket inside, or a port inside.
    pub to: SocketTo,
    /// Where it is, relative to this manifest; its directory has to be there. Default: a path in the runtime directory, which `ports` shows.
    pub host_path: Option<HostPath>,
}

/// A repository.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Repo {
    /// An https or ssh URL, or `github:owner/name`, `gitlab:owner/name`, `tangled:owner/name`.
    pub url: RepoUrl,
    /// A branch, tag or commit. Default: the remote's default branch.
    #[serde(rename = "ref")]
    pub reference: Option<Text>,
    /// The path inside. Default: `/workspace/NAME`.
    pub path: Option<GuestPath>,
    /// How many commits of history. Default: all.
    #[schemars(range(min = 1))]
    pub depth: Option<u32>,
    /// The secret that holds a token for https.
    pub credentials: Option<SecretRef>,
}

/// A preset as used by a sandbox.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PresetUse {
    /// Its name.
    pub name: Name,
    /// Variables of the preset that differ from its own. They reach its scripts as environment variables.
    #[serde(default)]
    #[schemars(extend("propertyNames" = env_name_schema()))]
    pub vars: BTreeMap<String, Text>,
}

/// What a dependency must have reached.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dependency {
    /// `started`: it runs. `healthy`: all its health checks pass. Default: `started`.
    pub condition: Option<DependencyCondition>,
}

/// A managed file or directory; exactly one of `content`, `template` and `source`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// The path inside.
    pub path: GuestPath,
    /// These very characters.
    pub content: Option<EnvText>,
    /// A file of the host, rendered with the names that templates of this sandbox have.
    pub template: Option<HostPath>,
    /// A file or directory of the host, copied as it is. Ignore files (`.gitignore`, `.dockerignore`, `.pocketenvignore`) are honoured.
    pub source: Option<HostPath>,
    /// Permission bits in octal. Default: 0644, or those of the source.
    pub mode: Option<Mode>,
    /// Who owns it, a name or `uid[:gid]`. Default: the user of the sandbox.
    pub owner: Option<User>,
}

/// Reach of the network.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    /// How much network there is. Default: `isolated`.
    pub mode: Option<NetworkMode>,
    /// Whether outbound access is allowed by default.
    pub egress: Option<Egress>,
    /// Destinations allowed under `egress: deny`: `github.com`, `*.example.com` (what is below it), `10.0.0.0/8`, each with an optional `:port`. Names are
    /// allowed by name only, addresses by address or network only.
    #[serde(default)]
    pub allow: Vec<EgressRule>,
}

/// The weakest isolation accepted.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct IsolationUse {
    /// The tier. Creating the sandbox fails where it cannot be had.
    pub require: Option<Isolation>,
}

/// A directory kept in step.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sync {
    /// The directory of the host, relative to this manifest.
    pub from: HostPath,
    /// The directory inside.
    pub to: GuestPath,
    /// How it comes inside. Default: `copy`.
    pub mode: Option<SyncMode>,
    /// With `mode: bind`: refuse writes from inside. Default: `true`.
    pub read_only: Option<bool>,
    /// Patterns left out, next to the ignore files. `.git` is left out unless a pattern `!.git` takes it back. With `mode: bind` everything is
    /// inside, and changes of what is left out are not reacted to.
    #[serde(default)]
    pub ignore: Vec<Text>,
    /// What `pocketenv watch` does after files changed: `rebuild`, or a mapping.
    #[schemars(with = "Option<short::OnChange>")]
    pub on_change: Option<OnChange>,
}

/// What happens after files changed.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OnChange {
    /// A service of this sandbox to restart.
    pub restart: Option<Name>,
    /// A command to run inside, as argv; a text is run by `sh -c`.
    #[schemars(with = "Option<short::Command>")]
    pub exec: Option<Vec<EnvText>>,
    /// Delete the sandbox and make it again. What is written in it outside its volumes is lost, so that `watch` asks, or needs `--allow-data-loss`.
    pub rebuild: Option<bool>,
}

/// Lifetime of a sandbox.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lifecycle {
    /// The provider must not stop it for inactivity.
    pub keep_alive: Option<bool>,
    /// Stopped after this long without activity.
    pub idle_timeout: Option<Duration>,
    /// Deleted this long after creation.
    pub ttl: Option<Duration>,
    /// What happens before it is deleted.
    pub on_delete: Option<OnDelete>,
}

/// What happens before a sandbox is deleted.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OnDelete {
    /// Paths inside that are backed up.
    #[serde(default)]
    pub backup: Vec<GuestPath>,
}

/// Access by SSH.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ssh {
    /// Files of public keys that may log in.
    #[serde(default)]
    pub authorized_keys: Vec<HostPath>,
}

/// Membership of a tailnet.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tailscale {
    /// The secret that holds the key.
    pub auth_key: SecretRef,
    /// The name in the tailnet. Default: the sandbox's name.
    pub hostname: Option<Text>,
}
