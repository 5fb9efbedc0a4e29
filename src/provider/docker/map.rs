//! Desired specs ↔ what Docker keeps. Pure.
//!
//! Docker cannot change the labels of a container. What its labels said at its creation stands there for ever; what they would say now, if that differs,
//! stands in the labels of a small volume beside it, its *record*, which is made anew with each change.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum as State, ContainerUpdateBody,
    EndpointSettings, HealthConfig, HostConfig, Mount as DockerMount, MountType, NetworkingConfig,
    PortBinding, PortSummary, PortSummaryTypeEnum, Volume,
};

use super::guest::{PERL, PYTHON};
use super::sheet::{MIN_CPU_MILLIS, MIN_MEMORY};
use crate::model::{
    Egress, Endpoint, HostIp, Identity, NetworkMode, NetworkSpec, ObservedSandbox, PortRef, PortSpec,
    Resources, SandboxId, SandboxSpec, SandboxState, Timestamp, labels as names, sha256_hex,
};
use crate::provider::ProviderError;
use crate::provider::label::labelled_spec;

/// The label of a record: the container that it belongs to.
pub(super) const RECORD_OF: &str = "pocketenv.io/record-of";
/// Begins the name of everything of ours.
const PREFIX: &str = "pocketenv.";
/// Ends the name of a network without a way out.
const SHUT: &str = ".shut";
/// Begins the references of snapshots.
const SNAPSHOTS: &str = "pocketenv-snapshot:";
/// The first process.
const INIT: &str = include_str!("../script/init.sh");
/// The file with the links, for the first process.
pub(super) const LINKS_FILE: &str = "var/lib/pocketenv-links";
/// The period of the processor limit, in microseconds.
const CPU_PERIOD: i64 = 100_000;
/// What removes a memory limit: more than any machine has, and no number that Docker takes for "unchanged".
const ALL_MEMORY: i64 = 1 << 50;

/// The name of a container follows from the token of its create, so that repeating the create finds it. A dot can stand in neither part.
pub(super) fn container_name(identity: &Identity) -> String {
    let token = sha256_hex(identity.intent.0.as_bytes());
    let name = identity.address.sandbox().unwrap_or("sandbox");
    format!("{PREFIX}{}.{}.{}", identity.project, name.get(..40).unwrap_or(name), &token[..10])
}

/// Whether an id can be one of ours at all; anything else does not exist.
pub(super) fn is_container_name(id: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    id.starts_with(PREFIX) && id.bytes().all(fine)
}

pub(super) fn volume_name(project: &str, name: &str) -> String {
    format!("{PREFIX}{project}.{name}")
}

/// The network of a project, or the one without a way out.
pub(super) fn network_name(project: &str, shut: bool) -> String {
    let kind = if shut { SHUT } else { "" };
    format!("{PREFIX}{project}{kind}")
}

/// Whether nothing gets out.
pub(super) fn is_shut(network: &NetworkSpec) -> bool {
    network.egress == Some(Egress::Deny)
}

/// The last address of an IPv4 network before that of everybody; `None` where it is too small for one.
pub(super) fn last_address(subnet: &str) -> Option<Ipv4Addr> {
    let (base, bits) = subnet.split_once('/')?;
    let (base, bits) = (u32::from(base.parse::<Ipv4Addr>().ok()?), bits.parse::<u32>().ok()?);
    (bits <= 29).then(|| Ipv4Addr::from((base | (u32::MAX >> bits)) - 1))
}

/// The image that a snapshot is.
pub(super) fn snapshot_reference(project: &str, name: &str) -> String {
    format!("{SNAPSHOTS}{}", &sha256_hex(format!("{project}/{name}").as_bytes())[..32])
}

/// Whether an image is a snapshot, by its reference.
pub(super) fn is_snapshot(reference: &str) -> bool {
    reference.starts_with(SNAPSHOTS)
}

/// What is ours among labels: a container has those of its image as well.
pub(super) fn own_labels(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels
        .into_iter()
        .filter(|(name, value)| name.starts_with("pocketenv.io/") && !value.is_empty())
        .collect()
}

/// The volume's name in its project; `None` for a record and for what is not ours.
pub(super) fn volume_of(labels: &HashMap<String, String>) -> Option<&str> {
    labels.get(names::ADDRESS)?.strip_prefix("volume/")
}

/// The name of the record of this revision.
pub(super) fn record_name(container: &str, revision: u64) -> String {
    format!("{container}.record-{revision}")
}

/// A record's container and revision.
pub(super) fn record_of(volume: &Volume) -> Option<(&str, u64)> {
    let container = volume.labels.get(RECORD_OF)?;
    let revision = volume.name.strip_prefix(container)?.strip_prefix(".record-")?;
    Some((container, revision.parse().ok()?))
}

/// The newest record of each container, with its revision.
pub(super) fn records(volumes: &[Volume]) -> HashMap<&str, (u64, &Volume)> {
    let mut newest: HashMap<&str, (u64, &Volume)> = HashMap::new();
    for (container, revision, volume) in volumes.iter().filter_map(|v| record_of(v).map(|(c, r)| (c, r, v))) {
        let known = newest.entry(container).or_insert((revision, volume));
        if known.0 < revision {
            *known = (revision, volume);
        }
    }
    newest
}

/// What Docker cannot do for this combination of fields, each of which it honours alone.
pub(super) fn check(spec: &SandboxSpec) -> Result<(), ProviderError> {
    let invalid = |message: &str| Err(ProviderError::Invalid { message: message.to_owned() });
    if !spec.network.allow.is_empty() {
        return invalid("Docker lets a sandbox out everywhere or nowhere; leave out `allow`");
    }
    if is_shut(&spec.network) && spec.network.mode == NetworkMode::Host {
        return invalid(
            "with `network: host` the way out is that of the host itself; leave out `egress`, or the `network`",
        );
    }
    if let Some(link) = spec.links.iter().find(|link| link.udp && spec.network.mode == NetworkMode::Isolated)
    {
        let PortRef { sandbox, port } = &link.to;
        return invalid(&format!(
            "Docker carries no datagrams to the host's address of port {port} of `{sandbox}`; instead of the template write `{sandbox}` and {port}, which reach it by name"
        ));
    }
    match spec.network.mode {
        NetworkMode::Isolated => {}
        NetworkMode::None if spec.ports.is_empty() && spec.links.is_empty() => {}
        NetworkMode::None => {
            return invalid(
                "Docker publishes no ports of a sandbox with `network: none`; leave out `ports` and the addresses of other sandboxes, or the `network`",
            );
        }
        NetworkMode::Host => {
            if spec.ports.iter().any(|(port, p)| p.host_port.is_some_and(|host| host != *port)) {
                return invalid(
                    "with `network: host` a port is that of the host itself; write `host_port` equal to `port`, or leave out the `network`",
                );
            }
        }
    }
    if spec.resources.cpu_millis.is_some_and(|millis| u64::from(millis) < MIN_CPU_MILLIS) {
        return invalid("Docker grants no less than 0.01 `cpu`");
    }
    if spec.resources.memory.is_some_and(|memory| memory.as_bytes() < MIN_MEMORY) {
        return invalid("Docker grants no less than 6MiB of `memory`");
    }
    Ok(())
}

/// Quota of the processor and memory; `None` for no limit.
fn limits(resources: &Resources) -> (Option<i64>, Option<i64>) {
    let quota = resources.cpu_millis.map(|millis| i64::from(millis) * CPU_PERIOD / 1000);
    (quota, resources.memory.map(|memory| i64::try_from(memory.as_bytes()).unwrap_or(i64::MAX)))
}

/// The container for a spec. `image` is an image that is there.
pub(super) fn container(
    spec: &SandboxSpec,
    identity: &Identity,
    image: String,
    labels: BTreeMap<String, String>,
) -> ContainerCreateBody {
    let (quota, memory) = limits(&spec.resources);
    let network = match spec.network.mode {
        NetworkMode::Isolated => network_name(&identity.project, is_shut(&spec.network)),
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::None => "none".to_owned(),
    };
    let is_own = spec.network.mode == NetworkMode::Isolated;
    let exposed = |(port, declared): (&u16, &PortSpec)| {
        format!("{port}/{}", if declared.protocol.is_udp() { "udp" } else { "tcp" })
    };
    let bindings = spec.ports.iter().filter(|_| is_own).filter_map(|(port, declared)| {
        let host_port = Some(declared.host_port?.to_string());
        let host_ip = Some(declared.host_ip.address().to_string());
        let binding = PortBinding { host_ip, host_port };
        Some((exposed((port, declared)), Some(vec![binding])))
    });
    let is_shut = is_own && is_shut(&spec.network);
    let binds = spec.binds.iter().map(|bind| DockerMount {
        target: Some(bind.path.clone()),
        source: Some(bind.from.display().to_string()),
        typ: Some(MountType::BIND),
        read_only: Some(bind.read_only),
        ..DockerMount::default()
    });
    let mounts = spec.mounts.iter().map(|mount| DockerMount {
        target: Some(mount.path.clone()),
        source: Some(volume_name(&identity.project, &mount.volume)),
        typ: Some(MountType::VOLUME),
        read_only: Some(mount.read_only),
        ..DockerMount::default()
    });
    let endpoint = EndpointSettings {
        aliases: Some(vec![identity.address.sandbox().unwrap_or("sandbox").to_owned()]),
        ..EndpointSettings::default()
    };
    let mut labels: HashMap<String, String> = labels.into_iter().collect();
    if is_snapshot(&image) {
        // A container has what its image says, unless it says otherwise.
        labels.extend([names::SNAPSHOT_OF, names::FOR_FORKS].map(|label| (label.to_owned(), String::new())));
    }
    ContainerCreateBody {
        image: Some(image),
        // The host's own network comes with the host's name.
        hostname: Some(spec.hostname.clone())
            .filter(|h| !h.is_empty() && spec.network.mode != NetworkMode::Host),
        entrypoint: Some(["sh", "-c", INIT, "pocketenv-init", PERL, PYTHON].map(str::to_owned).to_vec()),
        cmd: Some(Vec::new()),
        labels: Some(labels),
        exposed_ports: is_own.then(|| spec.ports.iter().map(exposed).collect()),
        // An image's own health check would only start processes that nobody asks for.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: Some(HostConfig {
            network_mode: Some(network.clone()),
            port_bindings: Some(bindings.collect()),
            mounts: Some(mounts.chain(binds).collect()),
            // Who may write frames by hand needs no way out that the kernel knows; and the daemon would ask for names outside.
            cap_drop: is_shut.then(|| vec!["NET_RAW".to_owned()]),
            dns: is_shut.then(|| vec!["127.0.0.1".to_owned()]),
            // Where the guest keeps environments, secrets and the state of services: in memory, gone with a stop.
            tmpfs: Some(HashMap::from([(
                "/run/pocketenv".to_owned(),
                "rw,nosuid,nodev,noexec,mode=0711".to_owned(),
            )])),
            cpu_period: quota.map(|_| CPU_PERIOD),
            cpu_quota: quota,
            memory,
            memory_swap: memory,
            pids_limit: spec.resources.pids.map(i64::from),
            // The first process is ours, and collects what is left behind.
            init: Some(false),
            ..HostConfig::default()
        }),
        networking_config: is_own
            .then(|| NetworkingConfig { endpoints_config: Some(HashMap::from([(network, endpoint)])) }),
        ..ContainerCreateBody::default()
    }
}

/// The limits of a spec as a change of a container.
pub(super) fn update(resources: &Resources) -> ContainerUpdateBody {
    let (quota, memory) = limits(resources);
    let memory = memory.unwrap_or(ALL_MEMORY);
    ContainerUpdateBody {
        cpu_period: Some(CPU_PERIOD),
        cpu_quota: Some(quota.unwrap_or(-1)),
        memory: Some(memory),
        memory_swap: Some(memory),
        pids_limit: Some(resources.pids.map_or(-1, i64::from)),
        ..ContainerUpdateBody::default()
    }
}

/// Of two specs, whether a container of the first can become one of the second.
pub(super) fn can_become(old: &SandboxSpec, new: &SandboxSpec) -> bool {
    fn fixed(spec: &SandboxSpec) -> impl PartialEq + '_ {
        let ports: Vec<_> =
            spec.ports.iter().map(|(port, p)| (*port, p.host_port, p.host_ip, p.protocol.is_udp())).collect();
        let network = (spec.network.mode, is_shut(&spec.network));
        (&spec.image, &spec.hostname, &spec.mounts, &spec.binds, ports, network)
    }
    fixed(old) == fixed(new)
}

/// The lines of the file of links. The host is the name that the other sandbox has in the project's network.
pub(super) fn links_file(spec: &SandboxSpec) -> String {
    // With the host's own network the address is reachable as it is.
    if spec.network.mode == NetworkMode::Host {
        return String::new();
    }
    let lines = spec
        .links
        .iter()
        .map(|link| (link.host_port, format!("{} {} {}\n", link.host_port, link.to.sandbox, link.to.port)));
    lines.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Ports of the loopback inside that links listen on.
pub(super) fn link_ports(spec: &SandboxSpec) -> Vec<String> {
    let ports =
        spec.links.iter().filter(|_| spec.network.mode != NetworkMode::Host).map(|link| link.host_port);
    ports.collect::<std::collections::BTreeSet<_>>().iter().map(ToString::to_string).collect()
}

/// The container's name, without the slash that Docker puts before it.
pub(super) fn name(container: &ContainerSummary) -> Option<&str> {
    container
        .names
        .iter()
        .flatten()
        .filter_map(|name| name.strip_prefix('/'))
        .find(|name| name.starts_with(PREFIX))
}

/// What Docker lists, in our words. `record` is the container's newest one. `None` for a container whose name is not one of ours.
pub(super) fn observed(
    container: &ContainerSummary,
    record: Option<&Volume>,
    notes: Vec<String>,
) -> Option<ObservedSandbox> {
    let id = name(container)?.to_owned();
    let mut labels = own_labels(container.labels.clone().unwrap_or_default());
    // The token of the create stays.
    let newer = record
        .into_iter()
        .flat_map(|r| &r.labels)
        .filter(|(label, _)| ![RECORD_OF, names::INTENT].contains(&label.as_str()));
    labels.extend(newer.map(|(label, value)| (label.clone(), value.clone())));
    let state = state(container);
    let runs = state == SandboxState::Running;
    let mut spec = labelled_spec(&labels);
    let endpoints = spec.iter_mut().flat_map(|spec| endpoints(container, spec, runs)).collect();
    let mounted =
        |path: &str| container.mounts.iter().flatten().any(|m| m.destination.as_deref() == Some(path));
    let wanted = spec.iter().flat_map(|spec| {
        spec.mounts.iter().map(|mount| &mount.path).chain(spec.binds.iter().map(|bind| &bind.path))
    });
    let missing = wanted.filter(|path| runs && !mounted(path.as_str()));
    Some(ObservedSandbox {
        bound: BTreeMap::new(),
        sockets: BTreeMap::new(),
        missing_mounts: missing.cloned().collect(),
        usage: Default::default(),
        id: SandboxId(id),
        state,
        created_at: container.created.map(|seconds| Timestamp(seconds.saturating_mul(1000))),
        started_at: None,
        spec,
        endpoints,
        notes,
        labels,
    })
}

/// Where ports are reached; `spec` learns what is really in force.
fn endpoints(container: &ContainerSummary, spec: &mut SandboxSpec, runs: bool) -> BTreeMap<u16, Endpoint> {
    let host = || "127.0.0.1".to_owned();
    let mode = container.host_config.as_ref().and_then(|h| h.network_mode.as_deref());
    spec.network.mode = match mode {
        Some("host") => NetworkMode::Host,
        Some("none") => NetworkMode::None,
        Some(_) => NetworkMode::Isolated,
        None => spec.network.mode,
    };
    if let (NetworkMode::Isolated, Some(mode)) = (spec.network.mode, mode) {
        let others =
            container.network_settings.iter().flat_map(|settings| settings.networks.iter().flatten());
        let shut = mode.ends_with(SHUT) && others.into_iter().all(|(name, _)| name == mode);
        if shut != is_shut(&spec.network) {
            spec.network.egress = shut.then_some(Egress::Deny);
        }
    }
    let mut found = BTreeMap::new();
    for (port, declared) in &mut spec.ports {
        let is_it = |p: &&PortSummary| {
            let is_udp = p.typ == Some(PortSummaryTypeEnum::UDP);
            p.private_port == *port && is_udp == declared.protocol.is_udp()
        };
        let seen = container.ports.iter().flatten().filter(is_it).find(|p| p.public_port.is_some());
        if let Some(ip) = seen.and_then(|p| p.ip.as_deref()).filter(|_| runs) {
            declared.host_ip = if ip == "0.0.0.0" { HostIp::Any } else { HostIp::Loopback };
        }
        let published = seen.and_then(|p| p.public_port);
        let published = match spec.network.mode {
            NetworkMode::Host => Some(*port),
            _ => published,
        };
        // A stopped container has no ports; it will have those that it was made with.
        let Some(reached) = published.or(declared.host_port) else { continue };
        if runs {
            declared.host_port = published;
        }
        found.insert(*port, Endpoint { host: host(), port: reached, listening: runs && published.is_some() });
    }
    found
}

fn state(container: &ContainerSummary) -> SandboxState {
    let status = container.status.as_deref().unwrap_or_default();
    match container.state {
        Some(State::CREATED) => SandboxState::Creating,
        Some(State::RUNNING) => SandboxState::Running,
        Some(State::RESTARTING) => SandboxState::Creating,
        Some(State::PAUSED) => SandboxState::Paused,
        Some(State::EXITED) => SandboxState::Stopped { unclean: unclean(status) },
        Some(State::REMOVING) => SandboxState::Deleting,
        Some(State::STOPPING) => SandboxState::Stopping,
        Some(State::DEAD) => SandboxState::Failed("Docker could not remove it".to_owned()),
        Some(State::EMPTY) | None => SandboxState::Failed(format!("Docker calls its state `{status}`")),
    }
}

/// `Exited (137) 2 minutes ago`: the first process ends with 0 when it was asked to.
fn unclean(status: &str) -> Option<String> {
    let code = status.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(code, _)| code);
    match code {
        Some("0") => None,
        Some("137") => Some("its first process was killed".to_owned()),
        Some(code) => Some(format!("its first process ended with {code}")),
        None => Some("its first process ended".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{Address, IntentId, LinkSpec, OwnerId, PortProtocol, SpecHash};

    fn identity() -> Identity {
        Identity {
            project: "shop".to_owned(),
            address: Address::Sandbox("api".to_owned()),
            owner: OwnerId("o".to_owned()),
            spec_hash: SpecHash("h".to_owned()),
            generation: 1,
            intent: IntentId("t".to_owned()),
            expires_at: None,
        }
    }

    fn spec() -> SandboxSpec {
        let port = PortSpec { host_port: Some(18_080), ..PortSpec::default() };
        let to = PortRef { sandbox: "db".to_owned(), port: 5432 };
        SandboxSpec {
            ports: BTreeMap::from([(80, port)]),
            links: [LinkSpec { to, host_port: 20_001, udp: false }].into(),
            resources: Resources { cpu_millis: Some(500), ..Resources::default() },
            ..SandboxSpec::default()
        }
    }

    fn listed(state: State, status: &str) -> ContainerSummary {
        let labels = crate::provider::label::labels(&spec(), &identity()).unwrap();
        ContainerSummary {
            names: Some(vec![format!("/{}", container_name(&identity()))]),
            state: Some(state),
            status: Some(status.to_owned()),
            labels: Some(labels.into_iter().collect()),
            created: Some(7),
            ..ContainerSummary::default()
        }
    }

    #[test]
    fn datagrams_are_published_as_such() {
        let mut spec = spec();
        spec.links.clear();
        spec.ports.entry(80).and_modify(|port| port.protocol = PortProtocol::Udp);
        let made = container(&spec, &identity(), "image".to_owned(), BTreeMap::new());
        assert_eq!(made.exposed_ports, Some(vec!["80/udp".to_owned()]));
        assert!(made.host_config.unwrap().port_bindings.unwrap().contains_key("80/udp"));
        assert!(!can_become(&self::spec(), &spec), "it is published anew");
        let to = PortRef { sandbox: "db".to_owned(), port: 53 };
        spec.links.insert(LinkSpec { to, host_port: 20_053, udp: true });
        assert!(check(&spec).unwrap_err().to_string().contains("write `db` and 53"));
    }

    #[test]
    fn one_token_is_one_name() {
        let name = container_name(&identity());
        assert_eq!(name, container_name(&identity()));
        assert!(name.starts_with("pocketenv.shop.api.") && is_container_name(&name), "{name}");
        for id in ["", "x", "pocketenv./../x", "pocketenv.a b"] {
            assert!(!is_container_name(id), "{id}");
        }
    }

    #[test]
    fn nothing_is_published_to_the_world() {
        let made = container(&spec(), &identity(), "i".to_owned(), BTreeMap::new());
        let host = made.host_config.unwrap();
        let bindings = host.port_bindings.unwrap();
        let binding = &bindings["80/tcp"].as_ref().unwrap()[0];
        assert_eq!(binding.host_ip.as_deref(), Some("127.0.0.1"));
        assert_eq!(binding.host_port.as_deref(), Some("18080"));
        assert_eq!((host.cpu_period, host.cpu_quota, host.memory), (Some(100_000), Some(50_000), None));
        assert_eq!(made.env, None);
        assert_eq!(links_file(&spec()), "20001 db 5432\n");
    }

    #[test]
    fn states_are_told_apart() {
        let of = |state, status| observed(&listed(state, status), None, Vec::new()).unwrap().state;
        assert_eq!(of(State::CREATED, "Created"), SandboxState::Creating);
        assert_eq!(of(State::EXITED, "Exited (0) 3 seconds ago"), SandboxState::Stopped { unclean: None });
        let SandboxState::Stopped { unclean: Some(why) } =
            of(State::EXITED, "Exited (137) About an hour ago")
        else {
            panic!("it was killed");
        };
        assert!(why.contains("killed"), "{why}");
    }

    #[test]
    fn the_newest_record_counts_and_the_token_stays() {
        let id = container_name(&identity());
        let volume = |revision, generation: &str| Volume {
            name: record_name(&id, revision),
            labels: HashMap::from([
                (RECORD_OF.to_owned(), id.clone()),
                (names::GENERATION.to_owned(), generation.to_owned()),
                (names::INTENT.to_owned(), "another".to_owned()),
            ]),
            ..Volume::default()
        };
        let volumes = [volume(2, "3"), volume(10, "4"), volume(9, "5")];
        let newest = records(&volumes)[id.as_str()];
        assert_eq!(newest.0, 10);
        let seen = observed(&listed(State::RUNNING, "Up"), Some(newest.1), Vec::new()).unwrap();
        assert_eq!(seen.labels[names::GENERATION], "4");
        assert_eq!(seen.labels[names::INTENT], "t");
        assert!(!seen.labels.contains_key(RECORD_OF));
        // What is swept up as a record is one by its name as well.
        let other = Volume { name: volume_name("shop", "data"), ..volumes[0].clone() };
        assert!(record_of(&volumes[0]).is_some() && record_of(&other).is_none());
    }

    #[test]
    fn a_port_that_is_not_published_is_not_listening() {
        let seen = observed(&listed(State::RUNNING, "Up"), None, Vec::new()).unwrap();
        assert!(!seen.endpoints[&80].listening);
        assert_eq!(seen.spec.unwrap().ports[&80].host_port, None);
        let stopped = observed(&listed(State::EXITED, "Exited (0)"), None, Vec::new()).unwrap();
        assert_eq!(stopped.spec.unwrap(), spec());
    }

    #[test]
    fn combinations_that_cannot_be_are_refused() {
        let with = |mode| {
            check(&SandboxSpec {
                network: crate::model::NetworkSpec { mode, ..Default::default() },
                ..spec()
            })
        };
        assert!(with(NetworkMode::Isolated).is_ok());
        assert!(with(NetworkMode::None).is_err() && with(NetworkMode::Host).is_err());
    }
}
