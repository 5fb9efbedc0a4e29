//! Desired specs ↔ the engine's values. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::build::BuildError;
use crate::engine::{
    Attempt, BoundHost as EngineBoundHost, BoundSecret as EngineBound, BoxInfo, BoxSpec, BoxState,
    Device as EngineDevice, DiskInfo, EgressHost as EngineHost, EgressRule as EngineRule, EngineError,
    Forward, Held, Hit, Image as EngineImage, IoLimits, Lifetime, Limits, LimitsInfo, Link,
    Mount as EngineMount, MountSource, Name, Network, Outcome, Outside, Port as EnginePort, SnapshotInfo,
    Socket, SocketTarget as EngineTarget,
};
use crate::image::{ImageError, Reference};
use crate::model::{
    BoundHost, BoundSecret, Device, DiskUse, Duration, Egress, EgressAttempt, EgressHost, EgressRule,
    Endpoint, HostIp, Identity, Image, Io, LifecycleSpec, LimitHit, LinkSpec, NetworkMode, NetworkSpec,
    ObservedSandbox, ObservedSocket, PortSpec, Quantity, Resources, SandboxId, SandboxSpec, SandboxState,
    SocketSpec, SocketTarget, Timestamp, Usage, labels as names, sha256_hex,
};
use crate::provider::ProviderError;
use crate::provider::label::labelled_spec;

/// Where the scripts of `guest` keep what must not outlive a run. They make these themselves where they are not, at the price of a program each.
const RUN_DIRS: [&str; 2] = ["pocketenv", "pocketenv/services"];

/// What the engine calls control groups of version 1.
const FIRST_VERSION: &str = "cgroup v1";

/// More than the largest page of any supported machine.
const PAGE: u64 = 64 * 1024 + 1;

/// The id of a sandbox follows from the token of its create, so that repeating the create finds it.
pub(super) fn sandbox_id(identity: &Identity) -> SandboxId {
    let token = sha256_hex(identity.intent.0.as_bytes());
    let name = identity.address.sandbox().unwrap_or("sandbox");
    SandboxId(format!("{}-{}", name.get(..40).unwrap_or(name), &token[..10]))
}

/// Volumes of all projects live side by side at the engine; a dot can stand in neither name.
pub(super) fn engine_volume(project: &str, name: &str) -> String {
    format!("{project}.{name}")
}

/// Snapshots too.
pub(super) fn engine_snapshot(project: &str, name: &str) -> String {
    format!("{project}.{name}")
}

/// What is made from each snapshot, by its name at the engine.
pub(super) fn users_of_snapshots(
    boxes: &[BoxInfo],
    snapshots: &[SnapshotInfo],
) -> BTreeMap<String, Vec<String>> {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let made = boxes.iter().filter_map(|info| Some((info.spec.snapshot.as_ref()?, &info.id)));
    let stacked = snapshots.iter().filter_map(|snapshot| Some((snapshot.on.as_ref()?, &snapshot.name)));
    for (snapshot, user) in made.chain(stacked) {
        users.entry(snapshot.clone()).or_default().push(user.clone());
    }
    users
}

/// The volume's name in its project.
pub(super) fn volume_name(labels: &BTreeMap<String, String>) -> Option<&str> {
    labels.get(names::ADDRESS)?.strip_prefix("volume/")
}

/// An image by what the manifest calls it.
pub(super) fn reference(text: &str) -> Result<Reference, ProviderError> {
    text.parse().map_err(|error| self::error(EngineError::Image(error)))
}

/// The image to make a sandbox from; `None` for the programs of this machine. `pinned` knows digests of references without one.
pub(super) fn image(
    image: &Image,
    pinned: impl Fn(&str) -> Option<String>,
) -> Result<Option<Reference>, ProviderError> {
    match image {
        Image::Host => Ok(None),
        Image::Oci(text) => match pinned(text) {
            Some(digest) => reference(&format!("{text}@{digest}")).map(Some),
            None => reference(text).map(Some),
        },
        // What a snapshot lies on is known to the engine.
        Image::Snapshot(_) => Ok(None),
        // They are built, not found.
        Image::Build { .. } | Image::Base(_) => Ok(None),
    }
}

/// The spec as the engine has it, but for the image.
pub(super) fn box_spec(spec: &SandboxSpec, project: &str) -> Result<BoxSpec, ProviderError> {
    let volumes = spec.mounts.iter().map(|mount| EngineMount {
        source: MountSource::Volume(engine_volume(project, &mount.volume)),
        target: mount.path.clone().into(),
        read_only: mount.read_only,
    });
    let binds = spec.binds.iter().map(|bind| EngineMount {
        source: MountSource::Host(bind.from.clone()),
        target: bind.path.clone().into(),
        read_only: bind.read_only,
    });
    Ok(BoxSpec {
        memory: Vec::new(),
        image: EngineImage::Host,
        snapshot: match &spec.image {
            Image::Snapshot(name) => Some(engine_snapshot(project, name)),
            _ => None,
        },
        hostname: Some(spec.hostname.clone()).filter(|h| !h.is_empty()),
        network: match spec.network.mode {
            NetworkMode::Isolated => Network::Isolated,
            NetworkMode::Host => Network::Host,
            NetworkMode::None => Network::None,
        },
        egress: egress(&spec.network)?,
        bound: bound(&spec.bound)?,
        mounts: volumes.chain(binds).collect(),
        limits: limits(&spec.resources),
        devices: devices(spec)?,
        lifetime: lifetime(&spec.lifecycle),
        run_dirs: RUN_DIRS.map(str::to_owned).to_vec(),
        env: Vec::new(),
    })
}

fn devices(spec: &SandboxSpec) -> Result<Vec<EngineDevice>, ProviderError> {
    let device = |device: &Device| match device {
        Device::Kvm => Ok(EngineDevice::Kvm),
        Device::Gpu => Ok(EngineDevice::Gpu),
        Device::Fuse => Err(ProviderError::Unsupported { message: "nobody may mount inside".to_owned() }),
    };
    spec.devices.iter().map(device).collect()
}

/// The rules, where anything is denied.
fn egress(network: &NetworkSpec) -> Result<Option<Vec<EngineRule>>, ProviderError> {
    if network.egress != Some(Egress::Deny) {
        return Ok(None);
    }
    let rules = network.allow.iter().map(|text| {
        let rule: EgressRule = text.parse().map_err(|error| ProviderError::Invalid {
            message: format!("`{text}` in `network.allow` {error}"),
        })?;
        Ok(EngineRule { host: host(rule.host), port: rule.port })
    });
    rules.collect::<Result<_, _>>().map(Some)
}

fn host(host: EgressHost) -> EngineHost {
    match host {
        EgressHost::Name(name) => EngineHost::Name(name),
        EgressHost::Subdomains(name) => EngineHost::Subdomains(name),
        EgressHost::Network { address, prefix } => EngineHost::Network { address, prefix },
    }
}

fn bound(secrets: &BTreeMap<String, BoundSecret>) -> Result<Vec<EngineBound>, ProviderError> {
    let secrets = secrets.iter().map(|(name, secret)| {
        let hosts = secret.hosts.iter().map(|text| {
            let bound: BoundHost = text.parse().map_err(|error| ProviderError::Invalid {
                message: format!("`{text}`, to which secret `{name}` is bound, {error}"),
            })?;
            Ok(EngineBoundHost { host: host(bound.host), port: bound.port, plain: bound.plain })
        });
        let hosts = hosts.collect::<Result<_, ProviderError>>()?;
        Ok(EngineBound { name: name.clone(), placeholder: secret.placeholder.clone(), hosts })
    });
    secrets.collect()
}

fn shown(rule: &EngineRule) -> String {
    let host = match rule.host.clone() {
        EngineHost::Name(name) => EgressHost::Name(name),
        EngineHost::Subdomains(name) => EgressHost::Subdomains(name),
        EngineHost::Network { address, prefix } => EgressHost::Network { address, prefix },
    };
    EgressRule { host, port: rule.port }.to_string()
}

/// What the sandbox tried to reach.
pub(super) fn attempt(attempt: Attempt) -> EgressAttempt {
    let (allowed, can_be_allowed, reason) = match attempt.outcome {
        Outcome::Allowed => (true, true, String::new()),
        Outcome::Denied => (false, true, "no rule of `network.allow` covers it".to_owned()),
        Outcome::Forbidden(reason) => (false, false, reason),
    };
    EgressAttempt {
        host: attempt.host,
        port: attempt.port,
        allowed,
        reason,
        can_be_allowed,
        count: attempt.count,
        first: timestamp(attempt.first),
        last: timestamp(attempt.last),
    }
}

pub(super) fn limits(resources: &Resources) -> Limits {
    Limits {
        cpu_millis: resources.cpu_millis,
        memory: resources.memory.map(Quantity::as_bytes),
        pids: resources.pids,
        disk: resources.disk.map(Quantity::as_bytes),
        io: IoLimits {
            read: resources.io.read.map(Quantity::as_bytes),
            write: resources.io.write.map(Quantity::as_bytes),
            read_ops: resources.io.read_ops.map(u64::from),
            write_ops: resources.io.write_ops.map(u64::from),
        },
    }
}

/// `keep_alive` is the stronger word.
pub(super) fn lifetime(lifecycle: &LifecycleSpec) -> Lifetime {
    let idle = lifecycle.idle_timeout.filter(|_| lifecycle.keep_alive != Some(true));
    Lifetime { ttl: lifecycle.ttl.map(Duration::as_millis), idle: idle.map(Duration::as_millis) }
}

/// What is told of when it ends by itself.
fn lifetime_notes(info: &BoxInfo) -> Vec<String> {
    let shown = |ms: u64| jiff::Timestamp::from_millisecond(timestamp(ms).0).unwrap_or_default();
    let expires = info.expires_at.map(|at| format!("lifetime: it is deleted at {}", shown(at / 1000 * 1000)));
    let idle = info.spec.lifetime.idle.filter(|_| info.state.pid().is_some());
    let idle =
        idle.map(|ms| format!("lifetime: it is stopped after {} without use", Duration::from_millis(ms)));
    expires.into_iter().chain(idle).collect()
}

/// What is told of limits: what enforces them, and what they led to.
fn limit_notes(info: &LimitsInfo) -> Vec<String> {
    let mut notes = Vec::new();
    let said = |name: &str, holds: bool| holds.then(|| name.to_owned());
    let held = &info.in_force;
    let names: Vec<String> = [
        said("cpu", held.cpu_millis.is_some()),
        said("memory", held.memory.is_some()),
        said("pids", held.pids.is_some()),
        said("io", held.io != IoLimits::default()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !names.is_empty() {
        notes.push(format!("limits: {} by {}", names.join(", "), info.by));
    }
    if held.io != IoLimits::default() && info.by == FIRST_VERSION {
        notes.push(format!(
            "limits: {FIRST_VERSION} does not hold back what the kernel writes later from its memory"
        ));
    }
    if let Some(disk) = &info.disk {
        let full = if disk.is_full() { "is full" } else { "by a file system of its own" };
        notes.push(format!("limits: disk {full}: {}", disk_use(disk)));
    }
    if info.oom_kills > 0 {
        let last = info.last_killed.as_ref().map_or(String::new(), |name| format!(", the last was `{name}`"));
        notes.push(format!("limits: out of memory, processes killed: {}{last}", info.oom_kills));
    }
    if info.forks_refused > 0 {
        notes.push(format!("limits: too many processes, refused: {}", info.forks_refused));
    }
    notes
}

/// How much of its disk is used, and what its limits held back.
fn usage(info: &BoxInfo) -> Usage {
    let disk = info.limits.as_ref().and_then(|limits| limits.disk).map(|disk| DiskUse {
        used_bytes: disk.used,
        limit_bytes: disk.limit,
        files: disk.files_used,
        files_limit: disk.files_limit,
    });
    Usage { disk, hits: info.hits.iter().map(hit).collect() }
}

fn hit(hit: &Hit) -> LimitHit {
    let (reason, message) = match &hit.what {
        Held::Killed { name, pid } => {
            let name = name.as_ref().map_or_else(|| "a process".to_owned(), |name| format!("`{name}`"));
            let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid} inside)"));
            ("OutOfMemory", format!("the memory was used up, and the kernel killed {name}{pid}"))
        }
        Held::Refused(count) => {
            ("TooManyProcesses", format!("there were too many processes: {count} could not be started"))
        }
        Held::Full(disk) => ("DiskFull", format!("the disk is full: {}", disk_use(disk))),
    };
    LimitHit { at: timestamp(hit.at), reason: reason.to_owned(), message }
}

fn disk_use(disk: &DiskInfo) -> String {
    let [used, limit] = [disk.used, disk.limit].map(Quantity::rounded);
    format!("{used} of {limit} used, {} of {} files", disk.files_used, disk.files_limit)
}

pub(super) fn forwards(spec: &SandboxSpec) -> Vec<Forward> {
    let ports = spec.ports.iter().filter_map(|(port, declared)| Some((port, declared, declared.host_port?)));
    ports
        .map(|(port, declared, host)| Forward {
            listen: SocketAddr::from((declared.host_ip.address(), host)),
            to: inside(*port, declared),
        })
        .collect()
}

/// `default` is where a socket is whose path nobody chose.
pub(super) fn sockets(spec: &SandboxSpec, default: impl Fn(&str) -> PathBuf) -> Vec<Socket> {
    let one = |(name, declared): (&String, &SocketSpec)| Socket {
        path: declared.host_path.clone().unwrap_or_else(|| default(name)),
        to: match &declared.to {
            SocketTarget::Port(port) => EngineTarget::Port(*port),
            SocketTarget::Path(path) => EngineTarget::Path(path.clone()),
        },
    };
    spec.sockets.iter().map(one).collect()
}

fn inside(port: u16, declared: &PortSpec) -> EnginePort {
    if declared.protocol.is_udp() { EnginePort::Udp(port) } else { EnginePort::Tcp(port) }
}

pub(super) fn links(spec: &SandboxSpec) -> Vec<Link> {
    // With the host's own network the address is reachable as it is.
    if spec.network.mode == NetworkMode::Host {
        return Vec::new();
    }
    let links: BTreeSet<(u16, Outside)> =
        spec.links.iter().map(|link| (link.host_port, outside(link))).collect();
    links.into_iter().map(|(listen_port, host)| Link { listen_port, host }).collect()
}

fn outside(link: &LinkSpec) -> Outside {
    let address = loopback(link.host_port);
    if link.udp { Outside::Udp(address) } else { Outside::Tcp(address) }
}

/// The ports that links lead to, by the names of their sandboxes. What listens at a port of its own at all addresses would be in the way of a
/// name's, so that there is none for it.
pub(super) fn names(spec: &SandboxSpec) -> Vec<Name> {
    if spec.network.mode == NetworkMode::Host {
        return Vec::new();
    }
    let links = spec.links.iter().filter(|link| !spec.ports.contains_key(&link.to.port));
    links
        .map(|link| Name { name: link.to.sandbox.clone(), port: link.to.port, host: outside(link) })
        .collect()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

pub(super) fn timestamp(ms: u64) -> Timestamp {
    Timestamp(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// What the engine reports, in our words.
pub(super) fn observed(info: BoxInfo, default: impl Fn(&str) -> PathBuf) -> ObservedSandbox {
    let sockets = known_sockets(&info, &default);
    let endpoints = info
        .forwards
        .iter()
        .map(|f| {
            let (host, port) = (f.listen.ip().to_string(), f.listen.port());
            (f.to.number(), Endpoint { host, port, listening: f.listening })
        })
        .collect();
    let started_at = match &info.state {
        BoxState::Running { since, .. } | BoxState::Paused { since, .. } => Some(timestamp(*since)),
        _ => None,
    };
    ObservedSandbox {
        id: SandboxId(info.id.clone()),
        state: match &info.state {
            BoxState::Running { .. } => SandboxState::Running,
            BoxState::Paused { .. } => SandboxState::Paused,
            BoxState::Stopped { unclean } => SandboxState::Stopped { unclean: unclean.clone() },
            BoxState::Creating => SandboxState::Creating,
            BoxState::Broken(reason) => SandboxState::Failed(reason.clone()),
        },
        created_at: Some(timestamp(info.created_at)),
        started_at,
        spec: read_back(&info, &sockets),
        sockets,
        endpoints,
        missing_mounts: info.lost.iter().map(|target| target.display().to_string()).collect(),
        bound: info.bound.clone(),
        usage: usage(&info),
        notes: lifetime_notes(&info)
            .into_iter()
            .chain(info.choices)
            .chain(info.limits.iter().flat_map(limit_notes))
            .collect(),
        labels: info.labels,
    }
}

/// The declared sockets that the engine has as they are declared.
fn known_sockets(info: &BoxInfo, default: &impl Fn(&str) -> PathBuf) -> BTreeMap<String, ObservedSocket> {
    let Some(spec) = labelled_spec(&info.labels) else { return BTreeMap::new() };
    let declared = spec.sockets.keys().zip(sockets(&spec, default));
    let known = declared.filter_map(|(name, socket)| {
        let found = info.sockets.iter().find(|found| found.socket == socket)?;
        let path = socket.path.display().to_string();
        Some((name.clone(), ObservedSocket { path, listening: found.listening }))
    });
    known.collect()
}

/// The spec as it is in force: the label tells what was asked, the engine what it holds.
fn read_back(info: &BoxInfo, sockets: &BTreeMap<String, ObservedSocket>) -> Option<SandboxSpec> {
    let mut spec = labelled_spec(&info.labels)?;
    let project = info.labels.get(names::PROJECT)?;
    let image = info.spec.image.clone();
    let asked = box_spec(&spec, project).ok().map(|asked| BoxSpec { image, ..asked });
    if asked.as_ref() != Some(&info.spec) {
        // Somebody changed it behind our back; say what stands there where our words can.
        spec.hostname = info.spec.hostname.clone().unwrap_or_default();
        spec.network.mode = match info.spec.network {
            Network::Isolated => NetworkMode::Isolated,
            Network::Host => NetworkMode::Host,
            Network::None => NetworkMode::None,
        };
        if asked.is_none_or(|asked| asked.egress != info.spec.egress) {
            spec.network.egress = info.spec.egress.as_ref().map(|_| Egress::Deny);
            spec.network.allow = info.spec.egress.iter().flatten().map(shown).collect();
        }
        for secret in &info.spec.bound {
            if let Some(found) = spec.bound.get_mut(&secret.name) {
                found.placeholder.clone_from(&secret.placeholder);
            }
        }
        spec.bound.retain(|name, _| info.spec.bound.iter().any(|secret| secret.name == *name));
        if lifetime(&spec.lifecycle) != info.spec.lifetime {
            let Lifetime { ttl, idle } = info.spec.lifetime;
            spec.lifecycle.ttl = ttl.map(Duration::from_millis);
            spec.lifecycle.idle_timeout = idle.map(Duration::from_millis);
        }
        let kept = |path: &str| info.spec.mounts.iter().any(|m| m.target.as_os_str() == path);
        spec.mounts.retain(|mount| kept(&mount.path));
        spec.binds.retain(|bind| kept(&bind.path));
    }
    if let Some(limits) = &info.limits {
        let held = &limits.in_force;
        spec.resources.cpu_millis = held.cpu_millis;
        // The kernel counts memory in pages, and so does what it reads back.
        let asked = spec.resources.memory.map(Quantity::as_bytes);
        let same = asked.zip(held.memory).is_some_and(|(asked, held)| asked.abs_diff(held) < PAGE);
        if !same {
            spec.resources.memory = held.memory.map(Quantity::from_bytes);
        }
        spec.resources.pids = held.pids;
        if spec.resources.disk.map(Quantity::as_bytes) != held.disk {
            spec.resources.disk = held.disk.map(Quantity::from_bytes);
        }
        let ops = |value: Option<u64>| value.map(|value| u32::try_from(value).unwrap_or(u32::MAX));
        spec.resources.io = Io {
            read: held.io.read.map(Quantity::from_bytes),
            write: held.io.write.map(Quantity::from_bytes),
            read_ops: ops(held.io.read_ops),
            write_ops: ops(held.io.write_ops),
        };
    }
    for (port, declared) in &mut spec.ports {
        let to = inside(*port, declared);
        let listen = info.forwards.iter().find(|f| f.to == to).map(|f| f.listen);
        declared.host_port = listen.map(|listen| listen.port());
        if let Some(listen) = listen {
            declared.host_ip = if listen.ip().is_unspecified() { HostIp::Any } else { HostIp::Loopback };
        }
    }
    spec.sockets.retain(|name, _| sockets.contains_key(name));
    let names = names(&spec);
    spec.links.retain(|link| {
        let own = Link { listen_port: link.host_port, host: outside(link) };
        let linked = || info.links.contains(&own);
        let of = |name: &&Name| name.name == link.to.sandbox && name.port == link.to.port;
        let named = || names.iter().find(of).is_none_or(|name| info.names.contains(name));
        spec.network.mode == NetworkMode::Host || linked() && named()
    });
    Some(spec)
}

/// What the executor should do about an engine's failure.
fn image_error(error: ImageError) -> ProviderError {
    match error {
        ImageError::Reference { .. } | ImageError::NotFound(..) | ImageError::Unusable { .. } => {
            ProviderError::Invalid { message: error.to_string() }
        }
        ImageError::Unauthorised(..) => ProviderError::Unauthorised { message: error.to_string() },
        ImageError::Throttled { retry_after, .. } => ProviderError::Throttled { retry_after },
        ImageError::Registry { .. } => ProviderError::transient("the image is not here", error),
        ImageError::File { .. } | ImageError::InUse { .. } => {
            ProviderError::permanent("the images of the local engine cannot be used", error)
        }
    }
}

/// What the executor should do about a build that failed.
pub(super) fn build_error(error: BuildError) -> ProviderError {
    match error {
        BuildError::At { .. } | BuildError::Context { .. } => {
            ProviderError::Invalid { message: error.to_string() }
        }
        // What became of the image decides, and the line tells where it stands.
        BuildError::Image { file, line, what, source } => match self::error(*source) {
            ProviderError::Invalid { message } => {
                ProviderError::Invalid { message: format!("{file}:{line}: {what}: {message}") }
            }
            ProviderError::Unauthorised { message } => {
                ProviderError::Unauthorised { message: format!("{file}:{line}: {what}: {message}") }
            }
            other => other,
        },
        BuildError::Engine(error) => self::error(*error),
        error @ BuildError::File(..) => ProviderError::permanent("the image cannot be built", error),
    }
}

pub(super) fn error(error: EngineError) -> ProviderError {
    match error {
        EngineError::NotFound(id) => ProviderError::NotFound { what: format!("sandbox {id}") },
        EngineError::AlreadyExists(id) => ProviderError::AlreadyExists { what: format!("sandbox {id}") },
        EngineError::Invalid(message) => ProviderError::Invalid { message },
        error @ EngineError::Control { .. } => ProviderError::transient("the sandbox did not answer", error),
        EngineError::SnapshotExists(name) => {
            ProviderError::AlreadyExists { what: format!("snapshot {name}") }
        }
        error @ (EngineError::NoSnapshot(_) | EngineError::SnapshotInUse { .. } | EngineError::Paused(_)) => {
            ProviderError::Invalid { message: error.to_string() }
        }
        EngineError::Unenforceable(message) => ProviderError::Unsupported { message },
        EngineError::Image(error) => image_error(error),
        error => ProviderError::permanent("the local engine failed", error),
    }
}
