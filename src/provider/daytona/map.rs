//! Our words ↔ Daytona's. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::api;
use crate::model::{
    Egress, Endpoint, Identity, Image, LifecycleSpec, Mount, NetworkMode, NetworkSpec, ObservedSandbox,
    Quantity, Resources, SandboxId, SandboxSpec, SandboxState, sha256_hex,
};
use crate::provider::ProviderError;
use crate::provider::http::timestamp;
use crate::provider::label::{self, SPEC, labelled_spec, labels};

/// The label that says where its ports are reached, as JSON: Daytona tells one address at a time, and a listing needs them all.
const PORTS: &str = "pocketenv.io/ports";
/// Who runs commands that name nobody: what is put in place inside is the same everywhere, and needs root.
const USER: &str = "root";
/// When Daytona itself stops a sandbox that is not used, in minutes.
const AUTO_STOP: u64 = 15;

fn invalid<T>(message: impl Into<String>) -> Result<T, ProviderError> {
    Err(ProviderError::Invalid { message: message.into() })
}

/// Whole minutes, upwards.
fn minutes(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).div_ceil(60)
}

/// The name of the sandbox that is made for this intent: a second create with it is refused.
pub(super) fn name(identity: &Identity) -> String {
    let hash = sha256_hex(identity.intent.0.as_bytes());
    let sandbox = identity.address.sandbox().unwrap_or_default();
    let sandbox: String =
        sandbox.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(60).collect();
    format!("pocketenv-{sandbox}-{}", &hash[..20])
}

/// After how many minutes without activity a sandbox stops; 0 is never.
pub(super) fn auto_stop(lifecycle: &LifecycleSpec) -> u64 {
    match (lifecycle.idle_timeout, lifecycle.keep_alive) {
        (Some(idle), _) => minutes(idle.into()).max(1),
        (None, Some(false)) => AUTO_STOP,
        (None, _) => 0,
    }
}

/// How many minutes a sandbox lives from its creation on; 0 is for ever.
pub(super) fn ttl(lifecycle: &LifecycleSpec) -> u64 {
    lifecycle.ttl.map_or(0, |ttl| minutes(ttl.into()).max(1))
}

/// Whether its ports are open to everybody: all of them, or none.
pub(super) fn public(spec: &SandboxSpec) -> Result<bool, ProviderError> {
    let public = spec.ports.values().filter(|port| port.public).count();
    if public > 0 && public < spec.ports.len() {
        return invalid(
            "Daytona publishes all ports of a sandbox or none: `public` must be the same for each",
        );
    }
    Ok(public > 0)
}

/// The labels of a sandbox whose ports are reached at these addresses.
pub(super) fn labels_with(
    spec: &SandboxSpec,
    identity: &Identity,
    ports: &BTreeMap<u16, String>,
) -> Result<BTreeMap<String, String>, ProviderError> {
    let mut labels = labels(spec, identity)?;
    if !ports.is_empty() {
        let json = serde_json::to_string(ports).map_err(|error| {
            ProviderError::permanent("the addresses of ports cannot be kept as a label", error)
        })?;
        labels.insert(PORTS.to_owned(), json);
    }
    Ok(labels)
}

/// The volumes of a sandbox by Daytona's ids of them.
pub(super) fn mounts(
    spec: &SandboxSpec,
    project: &str,
    volumes: &[api::Volume],
) -> Result<Vec<api::VolumeMount>, ProviderError> {
    let mount = |volume: &api::Volume, mount: &Mount| api::VolumeMount {
        volume_id: volume.id.clone(),
        mount_path: mount.path.clone(),
    };
    label::mounts(("Daytona", spec, project), volumes, |volume| &volume.name, mount)
}

/// Cores, and memory and disk in GiB: whole ones.
fn resources(resources: &Resources) -> Result<[Option<u64>; 3], ProviderError> {
    let whole = |what: &str, value: Option<u64>, unit: u64| match value {
        Some(value) if value == 0 || value % unit != 0 => {
            invalid(format!("Daytona sets aside whole cores and GiB: `resources.{what}` is in between"))
        }
        value => Ok(value.map(|value| value / unit)),
    };
    if resources.pids.is_some() {
        return invalid("Daytona limits no processes: `resources.pids`");
    }
    let bytes = |size: Option<Quantity>| size.map(Quantity::as_bytes);
    Ok([
        whole("cpu", resources.cpu_millis.map(u64::from), 1000)?,
        whole("memory", bytes(resources.memory), 1 << 30)?,
        whole("disk", bytes(resources.disk), 1 << 30)?,
    ])
}

/// Whether what is made from a snapshot has these resources.
pub(super) fn fits(asked: &Resources, snapshot: &api::Snapshot) -> Result<(), ProviderError> {
    let has = [("cpu", snapshot.cpu), ("memory", snapshot.mem), ("disk", snapshot.disk)];
    for ((what, has), asked) in has.into_iter().zip(resources(asked)?) {
        if asked.is_some_and(|asked| asked as f64 != has) {
            return invalid(format!(
                "what is made from snapshot `{}` has {has} of `resources.{what}`: ask for that, or name an `image`",
                snapshot.name
            ));
        }
    }
    Ok(())
}

/// What a sandbox reaches.
pub(super) fn reach(spec: &SandboxSpec) -> Result<api::Reach, ProviderError> {
    if spec.network.mode != NetworkMode::Isolated {
        return invalid("Daytona gives every sandbox a network of its own");
    }
    if spec.network.egress != Some(Egress::Deny) {
        return Ok(api::Reach {
            network_block_all: false,
            network_allow_list: None,
            domain_allow_list: None,
        });
    }
    let (networks, names) = allowed(&spec.network.allow)?;
    Ok(api::Reach {
        network_block_all: networks.is_none() && names.is_none(),
        network_allow_list: networks,
        domain_allow_list: names,
    })
}

/// The request that makes a sandbox. `snapshot` is the one that is meant if no image is said, and Daytona's name of the one that is.
pub(super) fn new_sandbox(
    spec: &SandboxSpec,
    identity: &Identity,
    snapshot: Option<&str>,
    mounts: Vec<api::VolumeMount>,
    target: Option<&str>,
) -> Result<api::NewSandbox, ProviderError> {
    let (snapshot, build_info) = match &spec.image {
        Image::Host | Image::Snapshot(_) => (snapshot.map(str::to_owned), None),
        Image::Oci(name) => (None, Some(from_image(name)?)),
        Image::Base(_) | Image::Build { .. } => {
            return invalid("Daytona makes sandboxes from snapshots and images: name one");
        }
    };
    // What is made from a snapshot has what the snapshot has.
    let [cpu, memory, disk] = match build_info {
        Some(_) => resources(&spec.resources)?,
        None => [None; 3],
    };
    if let Some(link) = spec.links.first() {
        return invalid(format!(
            "a sandbox of Daytona does not reach port {} of this machine",
            link.host_port
        ));
    }
    let reach = reach(spec)?;
    Ok(api::NewSandbox {
        name: name(identity),
        snapshot,
        build_info,
        user: USER.to_owned(),
        labels: labels_with(spec, identity, &BTreeMap::new())?,
        public: public(spec)?,
        target: target.map(str::to_owned),
        auto_stop_interval: auto_stop(&spec.lifecycle),
        // A stop is not its end.
        auto_delete_interval: -1,
        ttl_minutes: Some(ttl(&spec.lifecycle)).filter(|minutes| *minutes > 0),
        cpu,
        memory,
        disk,
        volumes: mounts,
        network_block_all: reach.network_block_all,
        network_allow_list: reach.network_allow_list,
        domain_allow_list: reach.domain_allow_list,
    })
}

/// An image as its SDKs ask for one: by a Dockerfile of one line.
fn from_image(name: &str) -> Result<api::BuildInfo, ProviderError> {
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return invalid(format!("`{}` is no image", name.escape_debug()));
    }
    Ok(api::BuildInfo { dockerfile_content: format!("FROM {name}\n") })
}

/// What a sandbox may reach, as networks and as names.
fn allowed(allow: &[String]) -> Result<(Option<String>, Option<String>), ProviderError> {
    let (mut networks, mut names) = (Vec::new(), Vec::new());
    for destination in allow {
        let address = destination.split('/').next().unwrap_or_default();
        if address.parse::<std::net::Ipv4Addr>().is_ok() {
            let bits = if destination.contains('/') { "" } else { "/32" };
            networks.push(format!("{destination}{bits}"));
            continue;
        }
        match destination.split(':').count() {
            1 => names.push(destination.clone()),
            2 => {
                return invalid(format!(
                    "Daytona lets a sandbox reach a host at every port or at none: `{destination}`"
                ));
            }
            _ => return invalid(format!("Daytona lets sandboxes out by IPv4 and by name: `{destination}`")),
        }
    }
    let list = |items: Vec<String>| (!items.is_empty()).then(|| items.join(","));
    Ok((list(networks), list(names)))
}

/// What a sandbox reaches, as Daytona reports it.
fn reported(sandbox: &api::Sandbox) -> NetworkSpec {
    let lists = [&sandbox.network_allow_list, &sandbox.domain_allow_list];
    let items = lists.into_iter().flatten().flat_map(|list| list.split(',')).map(str::trim);
    let allow: Vec<String> = items.filter(|item| !item.is_empty()).map(str::to_owned).collect();
    let confined = sandbox.network_block_all || !allow.is_empty();
    NetworkSpec { egress: confined.then_some(Egress::Deny), allow, ..NetworkSpec::default() }
}

/// Where a sandbox is, in our words; `None` if it is gone.
pub(super) fn state(sandbox: &api::Sandbox) -> Option<SandboxState> {
    let state = sandbox.state.as_deref().unwrap_or("unknown");
    Some(match state {
        "started" | "resizing" | "snapshotting" | "forking" => SandboxState::Running,
        "unknown" | "creating" | "restoring" | "starting" | "resuming" | "pending_build"
        | "building_snapshot" | "pulling_snapshot" => SandboxState::Creating,
        "stopping" | "pausing" => SandboxState::Stopping,
        "stopped" | "archiving" | "archived" | "paused" => SandboxState::Stopped { unclean: None },
        "destroying" => SandboxState::Deleting,
        "destroyed" => return None,
        other => {
            let why = sandbox.error_reason.as_deref().unwrap_or_default();
            SandboxState::Failed(format!("its state at Daytona is `{other}` {why}").trim_end().to_owned())
        }
    })
}

/// What Daytona reports, in our words; `None` of one that is gone.
pub(super) fn observed(sandbox: api::Sandbox) -> Option<ObservedSandbox> {
    let state = state(&sandbox)?;
    let network = reported(&sandbox);
    let mut labels = sandbox.labels;
    let mut spec = labelled_spec(&labels);
    labels.remove(SPEC);
    let ports: BTreeMap<u16, String> =
        labels.remove(PORTS).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    let endpoints = ports.iter().filter_map(|(port, url)| {
        let url = reqwest::Url::parse(url).ok()?;
        let (host, at) = (url.host_str()?.to_owned(), url.port_or_known_default()?);
        // Whether something listens behind it is not told.
        Some((*port, Endpoint { host, port: at, listening: state == SandboxState::Running }))
    });
    let endpoints = endpoints.collect();
    let mut notes = Vec::new();
    if let Some(minutes) = sandbox.auto_stop_interval {
        let minutes = minutes.max(0.0) as u64;
        if minutes > 0 {
            notes.push(format!("Daytona stops it after {minutes} min without activity"));
        }
        // Somebody has changed it since.
        if let Some(spec) = spec.as_mut().filter(|spec| auto_stop(&spec.lifecycle) != minutes) {
            spec.lifecycle.keep_alive = None;
            spec.lifecycle.idle_timeout =
                (minutes > 0).then(|| crate::model::Duration::from_secs(minutes.saturating_mul(60)));
        }
    }
    if let Some(spec) = &mut spec {
        // Of a create that was interrupted before it said where they are.
        spec.ports.retain(|port, _| ports.contains_key(port));
        for port in spec.ports.values_mut() {
            port.public = sandbox.public;
        }
        // Whether it is open, confined or shut counts. How a list is written Daytona may decide.
        let kind = |network: &NetworkSpec| (network.egress == Some(Egress::Deny), network.allow.is_empty());
        if kind(&spec.network) != kind(&network) {
            spec.network = network;
        }
    }
    notes.extend(sandbox.auto_destroy_at.map(|at| format!("Daytona deletes it at {at}")));
    Some(ObservedSandbox {
        id: SandboxId(sandbox.id),
        state,
        created_at: sandbox.created_at.as_deref().and_then(timestamp),
        started_at: None,
        endpoints,
        bound: BTreeMap::new(),
        sockets: BTreeMap::new(),
        missing_mounts: Vec::new(),
        usage: Default::default(),
        notes,
        spec,
        labels,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::PortSpec;
    use crate::provider::label::any_identity as identity;

    fn made(spec: &SandboxSpec) -> Result<api::NewSandbox, ProviderError> {
        let snapshot = match &spec.image {
            Image::Snapshot(name) => Some(name.as_str()),
            _ => None,
        };
        new_sandbox(spec, &identity(), snapshot, Vec::new(), Some("us"))
    }

    #[test]
    fn what_is_asked_for_is_read_back() {
        let mut spec = SandboxSpec::default();
        spec.ports.insert(3000, PortSpec::default());
        spec.lifecycle.idle_timeout = Some("90s".parse().unwrap());
        let new = made(&spec).unwrap();
        assert!(new.name.starts_with("pocketenv-api-") && new.name == name(&identity()));
        assert_eq!((new.auto_stop_interval, new.auto_delete_interval, new.ttl_minutes), (2, -1, None));
        let ports = BTreeMap::from([(3000, "https://3000-abc.proxy.example:8443".to_owned())]);
        let mut seen = api::Sandbox {
            id: "abc".to_owned(),
            labels: labels_with(&spec, &identity(), &ports).unwrap(),
            state: Some("started".to_owned()),
            auto_stop_interval: Some(2.0),
            ..api::Sandbox::default()
        };
        let read = observed(seen.clone()).unwrap();
        assert_eq!(Identity::from_labels(&read.labels).unwrap(), Some(identity()));
        let endpoint = &read.endpoints[&3000];
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("3000-abc.proxy.example", 8443));
        assert_eq!(auto_stop(&read.spec.unwrap().lifecycle), 2);
        // What somebody else changed is seen.
        (seen.auto_stop_interval, seen.public) = (Some(0.0), true);
        let read = observed(seen.clone()).unwrap().spec.unwrap();
        assert_eq!((read.lifecycle.idle_timeout, read.ports[&3000].public), (None, true));
        seen.state = Some("destroyed".to_owned());
        assert!(observed(seen).is_none());
    }

    #[test]
    fn the_time_of_a_sandbox() {
        let of = |keep_alive, idle: Option<&str>| {
            let idle_timeout = idle.map(|text| text.parse().unwrap());
            auto_stop(&LifecycleSpec { keep_alive, idle_timeout, ttl: None })
        };
        assert_eq!((of(None, None), of(Some(true), None), of(Some(false), None)), (0, 0, 15));
        assert_eq!((of(None, Some("1s")), of(None, Some("2h"))), (1, 120));
        let mut spec = SandboxSpec::default();
        spec.lifecycle.ttl = Some("61s".parse().unwrap());
        assert_eq!(made(&spec).unwrap().ttl_minutes, Some(2));
    }

    #[test]
    fn what_it_is_made_from() {
        let of = |image: Image| {
            let new = made(&SandboxSpec { image, ..SandboxSpec::default() }).unwrap();
            (new.snapshot, new.build_info.map(|build| build.dockerfile_content))
        };
        assert_eq!(of(Image::Host), (None, None));
        assert_eq!(of(Image::Snapshot("s".to_owned())), (Some("s".to_owned()), None));
        assert_eq!(of(Image::Oci("debian:13".to_owned())), (None, Some("FROM debian:13\n".to_owned())));
        let hostile = Image::Oci("debian\nRUN id".to_owned());
        assert!(made(&SandboxSpec { image: hostile, ..SandboxSpec::default() }).is_err());
    }

    #[test]
    fn what_it_reaches() {
        let of = |allow: &[&str]| {
            let mut spec = SandboxSpec::default();
            spec.network.egress = Some(Egress::Deny);
            spec.network.allow = allow.iter().map(|rule| (*rule).to_owned()).collect();
            made(&spec).map(|new| (new.network_block_all, new.network_allow_list, new.domain_allow_list))
        };
        assert_eq!(of(&[]).unwrap(), (true, None, None));
        let networks = Some("10.0.0.0/8,1.2.3.4/32".to_owned());
        assert_eq!(of(&["10.0.0.0/8", "1.2.3.4"]).unwrap(), (false, networks, None));
        assert_eq!(of(&["github.com"]).unwrap(), (false, None, Some("github.com".to_owned())));
        for refused in ["github.com:443", "1.2.3.4:443", "2001:db8::1"] {
            assert!(of(&[refused]).is_err(), "{refused}");
        }
    }

    #[test]
    fn resources_are_whole_and_those_of_a_snapshot_are_its_own() {
        let size = |gib: f64| Some(Quantity::from_bytes((gib * f64::from(1 << 30)) as u64));
        let of = |image: Image, cpu_millis, memory| {
            let resources = Resources { cpu_millis, memory, ..Resources::default() };
            made(&SandboxSpec { image, resources, ..SandboxSpec::default() }).map(|new| (new.cpu, new.memory))
        };
        let image = || Image::Oci("debian:13".to_owned());
        assert_eq!(of(image(), Some(2000), size(4.0)).unwrap(), (Some(2), Some(4)));
        assert!(of(image(), Some(1500), None).is_err() && of(image(), None, size(0.5)).is_err());
        let snapshot = api::Snapshot { cpu: 2.0, mem: 4.0, disk: 8.0, ..api::Snapshot::default() };
        let asked =
            |cpu_millis, memory| fits(&Resources { cpu_millis, memory, ..Resources::default() }, &snapshot);
        assert!(asked(None, None).is_ok() && asked(Some(2000), size(4.0)).is_ok());
        assert!(asked(Some(1000), None).is_err() && asked(None, size(8.0)).is_err());
    }

    #[test]
    fn a_network_that_somebody_else_opened_is_seen() {
        let mut spec = SandboxSpec::default();
        spec.network.egress = Some(Egress::Deny);
        spec.network.allow = vec!["1.2.3.4".to_owned(), "github.com".to_owned()];
        let with = |block_all, networks: Option<&str>, names: Option<&str>| {
            let sandbox = api::Sandbox {
                labels: labels_with(&spec, &identity(), &BTreeMap::new()).unwrap(),
                state: Some("started".to_owned()),
                network_block_all: block_all,
                network_allow_list: networks.map(str::to_owned),
                domain_allow_list: names.map(str::to_owned),
                ..api::Sandbox::default()
            };
            observed(sandbox).unwrap().spec.unwrap().network
        };
        assert_eq!(with(false, Some("1.2.3.4/32"), Some("github.com")), spec.network);
        assert_eq!(with(false, None, Some("")), NetworkSpec::default());
        assert_eq!(with(true, None, None), NetworkSpec { allow: Vec::new(), ..spec.network.clone() });
    }

    #[test]
    fn ports_are_public_together() {
        let mut spec = SandboxSpec::default();
        spec.ports.insert(1, PortSpec { public: true, ..PortSpec::default() });
        assert!(made(&spec).unwrap().public);
        spec.ports.insert(2, PortSpec::default());
        assert!(made(&spec).is_err());
    }
}
