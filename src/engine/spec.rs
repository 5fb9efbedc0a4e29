//! What a caller asks of the engine and what the engine reports: plain values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::bound::BoundSecret;
use super::device::Device;
use super::egress::EgressRule;
use super::hits::Hit;

/// Where a sandbox's root file system comes from.
#[allow(clippy::large_enum_variant)] // a sandbox has one
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Image {
    /// The programs of this machine: its system directories under a private writable layer, nothing private of the host.
    #[default]
    Host,
    /// An OCI image, whose layers are unpacked; `Engine::image` gives it. All of it can be changed inside.
    Oci(OciImage),
}

/// An OCI image as a sandbox has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OciImage {
    /// The reference that it was asked for by.
    pub reference: String,
    /// The digest that the reference stood for.
    pub digest: String,
    /// Its layers, the lowest first: paths below the engine's directory of layers.
    pub layers: Vec<String>,
    /// Where commands start that name no directory; made if it is not there.
    pub working_dir: Option<PathBuf>,
    /// Environment under everything else.
    pub env: Vec<(String, String)>,
    /// Who runs its commands, `name[:group]` or `uid[:gid]`; root when absent. The engine leaves it to the caller.
    #[serde(default)]
    pub user: Option<String>,
    /// Its entry point with its command; empty where it has none. The engine leaves them to the caller.
    #[serde(default)]
    pub command: Vec<String>,
    /// The signal that asks its command to end, without `SIG`; `TERM` when absent.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Directories that it wants to be there, where it keeps data.
    #[serde(default)]
    pub volumes: Vec<PathBuf>,
    /// What of the image is not as it says, in words.
    pub notes: Vec<String>,
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// The reference, written out.
    pub reference: String,
    /// The digest that it stands for here.
    pub digest: String,
    /// How many bytes its layers came in; absent where its manifest is lost.
    pub size: Option<u64>,
    /// When it was pulled, in milliseconds since the Unix epoch.
    pub pulled_at: u64,
    /// What was made from it: ids of sandboxes, and `snapshot NAME`.
    pub users: Vec<String>,
}

/// What the sandbox can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Its own loopback, and the outside through the engine's egress proxy, which refuses everything that is the host itself.
    #[default]
    Isolated,
    /// Its own loopback and nothing else.
    None,
    /// The host's network, unrestricted.
    Host,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A volume of this engine, by name.
    Volume(String),
    /// A directory or file of the host, by absolute path.
    Host(PathBuf),
    /// A directory or file of the engine's own, from its directory, which belongs to the ids of sandboxes.
    Own(PathBuf),
}

/// A place in memory, for as long as the sandbox runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Absolute path inside, as that of a mount.
    pub target: PathBuf,
    /// What it is.
    pub what: MemoryOf,
}

/// What is in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryOf {
    /// An empty directory that everybody may write to.
    Directory {
        /// The most bytes.
        size: Option<u64>,
    },
    /// A file that nobody inside writes to. It is empty until it is told what it holds, which is never written to the disk.
    File,
}

/// One mount in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path inside; resolved beneath the sandbox's root, missing parents are made.
    pub target: PathBuf,
    /// Refuse writes.
    pub read_only: bool,
}

/// What a sandbox is made of. Changing it needs the sandbox stopped, see `Engine::reconfigure`, but for `egress`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BoxSpec {
    /// The root file system.
    pub image: Image,
    /// The snapshot that it starts from, which also says what is under that. Cannot be changed.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// The host name inside; the id when absent.
    pub hostname: Option<String>,
    /// What it can reach.
    pub network: Network,
    /// What an isolated sandbox may connect to; everything but the host itself when absent.
    #[serde(default)]
    pub egress: Option<Vec<EgressRule>>,
    /// Secrets that the proxy of an isolated sandbox puts into requests to some hosts. Without their values, see `Engine::bind`.
    #[serde(default)]
    pub bound: Vec<BoundSecret>,
    /// Volumes and host directories.
    pub mounts: Vec<Mount>,
    /// Places in memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Memory>,
    /// What all that runs inside may use together.
    #[serde(default)]
    pub limits: Limits,
    /// Devices of the machine, beside those that every sandbox has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// When it ends by itself.
    #[serde(default)]
    pub lifetime: Lifetime,
    /// Directories made in `/run` at every start, parents first, which root alone may list.
    #[serde(default)]
    pub run_dirs: Vec<String>,
    /// Environment of every command, under what the command itself sets. Not for secrets: it is kept on disk.
    pub env: Vec<(String, String)>,
}

/// When a sandbox ends by itself, in milliseconds; what is absent is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lifetime {
    /// It is deleted so long after its creation.
    pub ttl: Option<u64>,
    /// It is stopped after so long without a command from outside that runs and without a connection or datagram through one of its ports.
    pub idle: Option<u64>,
}

/// What all that runs in a sandbox may use together; what is absent is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes of files that it writes outside its volumes, with what their file system needs. It can only grow.
    #[serde(default)]
    pub disk: Option<u64>,
    /// Reading and writing of the devices that hold its files.
    #[serde(default)]
    pub io: IoLimits,
}

/// What may be read and written in a second; what is absent is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IoLimits {
    /// Bytes read.
    pub read: Option<u64>,
    /// Bytes written.
    pub write: Option<u64>,
    /// Reads.
    pub read_ops: Option<u64>,
    /// Writes.
    pub write_ops: Option<u64>,
}

impl Limits {
    /// Whether control groups are needed for them.
    pub(super) fn need_groups(&self) -> bool {
        Limits { disk: None, ..*self } != Limits::default()
    }
}

/// How much of a limited disk is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its bytes.
    pub limit: u64,
    /// Those that cannot be written to any more.
    pub used: u64,
    /// How many files it can hold.
    pub files_limit: u64,
    /// How many it holds.
    pub files_used: u64,
}

impl DiskInfo {
    /// Whether next to nothing can be written to it any more.
    pub fn is_full(&self) -> bool {
        let full = |used: u64, limit: u64| limit.saturating_sub(used) < limit.div_ceil(200);
        full(self.used, self.limit) || full(self.files_used, self.files_limit)
    }
}

/// Limits as they are measured on a running sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitsInfo {
    /// What enforces them.
    pub by: String,
    /// Those that hold.
    pub in_force: Limits,
    /// How much of its disk is used, where that is limited.
    pub disk: Option<DiskInfo>,
    /// Processes that the kernel killed because the memory was used up.
    pub oom_kills: u64,
    /// The name of the last of them, where the kernel's log tells.
    pub last_killed: Option<String>,
    /// How often no process could be started because there were too many.
    pub forks_refused: u64,
}

/// What travels through a forward or a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the sandbox's loopback. TCP is written as it was before there was UDP, so that a shim from then understands the one and says that it
/// does not understand the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Port {
    /// For connections.
    #[serde(rename = "port")]
    Tcp(u16),
    /// For datagrams.
    #[serde(rename = "udp_port")]
    Udp(u16),
}

impl Port {
    /// What travels to it.
    pub fn protocol(self) -> Protocol {
        match self {
            Port::Tcp(_) => Protocol::Tcp,
            Port::Udp(_) => Protocol::Udp,
        }
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Port::Tcp(number) | Port::Udp(number) => number,
        }
    }
}

/// A host address that leads to a port inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Forward {
    /// Where the host listens; the port must not be 0.
    pub listen: SocketAddr,
    /// Where it leads.
    #[serde(flatten)]
    pub to: Port,
}

/// An address as seen from the host, written as a [`Port`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outside {
    /// For connections.
    #[serde(rename = "host")]
    Tcp(SocketAddr),
    /// For datagrams.
    #[serde(rename = "udp_host")]
    Udp(SocketAddr),
}

impl Outside {
    /// What travels to it.
    pub fn protocol(self) -> Protocol {
        match self {
            Outside::Tcp(_) => Protocol::Tcp,
            Outside::Udp(_) => Protocol::Udp,
        }
    }

    /// The address.
    pub fn address(self) -> SocketAddr {
        match self {
            Outside::Tcp(address) | Outside::Udp(address) => address,
        }
    }
}

/// A port of the sandbox's own loopback that leads to an address of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The port on the sandbox's loopback.
    pub listen_port: u16,
    /// Where it leads.
    #[serde(flatten)]
    pub host: Outside,
}

/// A port of another sandbox, by that sandbox's name: inside, the name leads to an address of the loopback where this port listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Name {
    /// The name, as `/etc/hosts` has it.
    pub name: String,
    /// The port at the name.
    pub port: u16,
    /// Where it leads.
    #[serde(flatten)]
    pub host: Outside,
}

impl Name {
    /// The address of a name: of the loopback, the same in every sandbox, and none that anything else has.
    pub fn address(name: &str) -> Ipv4Addr {
        let digest = Sha256::digest(name.as_bytes());
        Ipv4Addr::new(127, digest[0] | 64, digest[1], digest[2])
    }
}

/// A unix socket of the host whose connections lead inside. Only its own user can connect to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Socket {
    /// Where the host listens: absolute, and short enough for clients.
    pub path: PathBuf,
    /// Where it leads.
    pub to: SocketTarget,
}

/// Where a unix socket leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketTarget {
    /// A port of TCP on the sandbox's loopback.
    Port(u16),
    /// A unix socket inside, by its absolute path as it resolves there.
    Path(String),
}

/// A socket and whether it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketInfo {
    /// The socket.
    pub socket: Socket,
    /// False while the sandbox is stopped, where the path was taken when it started, and where somebody took it away since.
    pub listening: bool,
}

/// A forward and whether it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardInfo {
    /// Where the host listens.
    pub listen: SocketAddr,
    /// Where it leads.
    #[serde(flatten)]
    pub to: Port,
    /// False while the sandbox is stopped, and where the host port was taken when the sandbox started.
    pub listening: bool,
}

/// Whether a sandbox runs; always measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoxState {
    /// Both of its processes live.
    Running {
        /// The host's process id of the sandbox's first process.
        pid: i32,
        /// When it started, in milliseconds since the Unix epoch.
        since: u64,
    },
    /// Both of its processes live, and all that is inside is frozen.
    Paused {
        /// As of one that runs.
        pid: i32,
        /// As of one that runs.
        since: u64,
    },
    /// Not running; its files are kept.
    Stopped {
        /// Why it ended, when nobody asked it to.
        unclean: Option<String>,
    },
    /// Being created at this moment. One whose creation was interrupted is stopped, and can be started.
    Creating,
    /// Its state cannot be read; the reason. It can be deleted.
    Broken(String),
}

impl BoxState {
    /// The first process, where the processes live, frozen or not.
    pub fn pid(&self) -> Option<i32> {
        match self {
            BoxState::Running { pid, .. } | BoxState::Paused { pid, .. } => Some(*pid),
            BoxState::Stopped { .. } | BoxState::Creating | BoxState::Broken(_) => None,
        }
    }
}

/// One sandbox as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxInfo {
    /// The id given at creation.
    pub id: String,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// What it is made of.
    pub spec: BoxSpec,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// Whether it runs.
    pub state: BoxState,
    /// When it is deleted, in milliseconds since the Unix epoch, if nobody sets the machine's clock until then.
    pub expires_at: Option<u64>,
    /// Host addresses that lead inside.
    pub forwards: Vec<ForwardInfo>,
    /// Ports inside that lead to the host.
    pub links: Vec<Link>,
    /// Ports of other sandboxes, by name.
    pub names: Vec<Name>,
    /// Unix sockets of the host that lead inside.
    pub sockets: Vec<SocketInfo>,
    /// Digests of the values of bound secrets that its proxy has, while it runs.
    pub bound: BTreeMap<String, String>,
    /// The ways chosen when it last started: id map, and every fallback taken.
    pub choices: Vec<String>,
    /// Its limits, while it runs and has any.
    pub limits: Option<LimitsInfo>,
    /// What they held back, in this run and before, oldest first.
    pub hits: Vec<Hit>,
    /// Targets of host directories and volumes that a running sandbox does not have any more, or that are others on the host now.
    pub lost: Vec<PathBuf>,
}

/// A command to run inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments; the program is looked up in `PATH` unless it has a slash.
    pub argv: Vec<OsString>,
    /// Environment on top of the sandbox's.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; `/workspace` when absent.
    pub cwd: Option<PathBuf>,
    /// `name[:group]` or `uid[:gid]`; root when absent.
    pub user: Option<String>,
    /// It only looks, and is no use in the sense of [`Lifetime::idle`].
    pub look: bool,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// A named session as it is now: a command on a terminal inside that goes on without those who look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// What it runs, in the words of whoever made it.
    pub what: String,
    /// The process id of the command, as seen inside.
    pub pid: i32,
    /// When it was made, in milliseconds since the Unix epoch.
    pub since: u64,
    /// How many are attached.
    pub clients: usize,
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub cols: u16,
    /// How the command ended, if it did.
    pub exit: Option<Exit>,
}

/// A snapshot: the files of a sandbox as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// The bytes that it takes on the disk by itself.
    pub bytes: u64,
    /// The snapshot under it, where the sandbox was itself made from one.
    pub on: Option<String>,
}

/// A volume: a directory that outlives sandboxes and can be mounted in several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
}
