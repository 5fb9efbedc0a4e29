//! Desired specs ↔ objects of a cluster. Pure.
//!
//! A sandbox is one object that owns everything else: a `Sandbox` of agents.x-k8s.io where the cluster has those, else a `ConfigMap`. Identities and the spec
//! stand in its annotations, which take any text; labels, which do not, are for selecting.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service, ServicePort};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value as Json, json};

use super::api::AGENTS;
use super::sheet::MIN_MEMORY;
use crate::model::{
    Egress, EgressHost, EgressRule, Endpoint, Identity, Image, NetworkMode, NetworkSpec, ObservedSandbox,
    ObservedVolume, PortSpec, SandboxId, SandboxSpec, SandboxState, Timestamp, labels as names, sha256_hex,
};
use crate::provider::label::labelled_spec;
use crate::provider::script::shown;
use crate::provider::{Owner, ProviderError};

/// Begins the name of everything of ours.
const PREFIX: &str = "pocketenv-";
/// The one container of a pod.
pub(super) const CONTAINER: &str = "sandbox";
/// The label of a pod that its policy selects it by.
const SANDBOX: &str = "pocketenv.io/sandbox";
/// The first process. Every user of a sandbox may pass through the guest's directory, nobody but root may write there.
const INIT: &str = concat!("chmod 0711 /run/pocketenv 2>/dev/null || :\n", include_str!("../script/init.sh"));
/// How long a pod has to end, in seconds: its first process takes ten.
pub(super) const GRACE: u32 = 15;
/// Why a container waits that will wait for ever.
const HOPELESS: [&str; 7] = [
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// What owns the objects of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A record of ours; its pod is made by us.
    ConfigMap,
    /// A `Sandbox`, whose pod is made by its controller.
    V1Beta1,
    /// The same, of before.
    V1Alpha1,
}

/// Whether a sandbox is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    /// It is being started.
    Starting,
    /// It has been started.
    Running,
    /// It was stopped.
    Stopped,
}

impl Kind {
    /// By the version of agents.x-k8s.io that the cluster serves.
    pub fn of(version: Option<&str>) -> Self {
        match version {
            Some("v1beta1") => Self::V1Beta1,
            Some(_) => Self::V1Alpha1,
            None => Self::ConfigMap,
        }
    }

    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::ConfigMap => ("", "v1", "ConfigMap"),
            Self::V1Beta1 => (AGENTS, "v1beta1", "Sandbox"),
            Self::V1Alpha1 => (AGENTS, "v1alpha1", "Sandbox"),
        }
    }

    pub fn resource(self) -> ApiResource {
        let (group, version, kind) = self.names();
        let plural = if self == Self::ConfigMap { "configmaps" } else { "sandboxes" };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    fn api_version(self) -> String {
        self.resource().api_version
    }

    /// What says whether it is to run, as a part of the object.
    pub fn power(self, power: Power) -> Json {
        let runs = power != Power::Stopped;
        match (self, power) {
            (Self::ConfigMap, Power::Starting) => json!({ "data": { "power": "starting" } }),
            (Self::ConfigMap, Power::Running) => json!({ "data": { "power": "running" } }),
            (Self::ConfigMap, Power::Stopped) => json!({ "data": { "power": "stopped" } }),
            (Self::V1Beta1, _) => {
                json!({ "spec": { "operatingMode": if runs { "Running" } else { "Suspended" } } })
            }
            (Self::V1Alpha1, _) => json!({ "spec": { "replicas": u8::from(runs) } }),
        }
    }

    /// Reads that back.
    pub fn powered(self, owner: &DynamicObject) -> Power {
        let at = |path: &str| owner.data.pointer(path);
        match self {
            Self::ConfigMap => match at("/data/power").and_then(Json::as_str) {
                Some("starting") => Power::Starting,
                Some("running") => Power::Running,
                _ => Power::Stopped,
            },
            Self::V1Beta1 if at("/spec/operatingMode").and_then(Json::as_str) == Some("Suspended") => {
                Power::Stopped
            }
            Self::V1Alpha1 if at("/spec/replicas").and_then(Json::as_u64) == Some(0) => Power::Stopped,
            // Its controller makes a pod again that is gone.
            Self::V1Beta1 | Self::V1Alpha1 => Power::Starting,
        }
    }
}

/// The name of a sandbox follows from the token of its create, so that repeating the create finds it.
pub(super) fn object_name(identity: &Identity) -> String {
    let token = sha256_hex(identity.intent.0.as_bytes());
    format!("{PREFIX}{}{}", part(identity.address.sandbox().unwrap_or("sandbox"), 30), &token[..12])
}

/// Whether an id can be one of ours at all; anything else does not exist.
pub(super) fn is_object_name(id: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    id.len() <= 63 && id.starts_with(PREFIX) && id.bytes().all(fine) && !id.ends_with('-')
}

/// The name of a sandbox's service is that of the sandbox in its project, so that others can write it down.
pub(super) fn service_name(labels: &BTreeMap<String, String>) -> String {
    let of = |name| labels.get(name).map_or("", String::as_str);
    let address = of(names::ADDRESS);
    volume_name(of(names::PROJECT), address.strip_prefix("sandbox/").unwrap_or(address))
}

pub(super) fn volume_name(project: &str, name: &str) -> String {
    let both = sha256_hex(format!("{project}/{name}").as_bytes());
    format!("{PREFIX}{}{}{}", part(project, 18), part(name, 18), &both[..12])
}

/// Text as the beginning of a name, for people.
fn part(text: &str, length: usize) -> String {
    let fine = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let part: String = text.chars().map(fine).take(length).collect();
    if part.is_empty() { part } else { format!("{part}-") }
}

/// Text as the value of a label, if need be by its hash.
fn label_value(text: &str) -> String {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let fine = |c: char| edge(c) || "-_.".contains(c);
    let fits = text.len() <= 63 && text.chars().all(fine) && text.starts_with(edge) && text.ends_with(edge);
    if fits { text.to_owned() } else { format!("sha256-{}", &sha256_hex(text.as_bytes())[..40]) }
}

/// Selects what is ours.
pub(super) fn selector(owner: &Owner) -> String {
    let mut selector = format!("{}=pocketenv", names::MANAGED_BY);
    for (name, value) in
        [(names::PROJECT, owner.project.as_ref()), (names::OWNER, owner.owner.as_ref().map(|owner| &owner.0))]
    {
        if let Some(value) = value {
            selector.push_str(&format!(",{name}={}", label_value(value)));
        }
    }
    selector
}

/// Labels to select by, from those that say whose it is.
fn select_labels(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    [names::MANAGED_BY, names::PROJECT, names::OWNER]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), label_value(labels.get(name)?))))
        .collect()
}

/// What a cluster cannot do for this spec, where the sheet alone does not say so.
pub(super) fn check(spec: &SandboxSpec) -> Result<(), ProviderError> {
    let invalid = |message: String| Err(ProviderError::Invalid { message });
    image(spec)?;
    if !spec.binds.is_empty() {
        return invalid("a cluster shares no directory of this machine; leave out `mode: bind`".to_owned());
    }
    if let Some(link) = spec.links.first() {
        return invalid(format!("a pod does not reach port {} of this machine", link.host_port));
    }
    if spec.network.mode != NetworkMode::Isolated {
        return invalid("every pod has a network of its own; leave out `network.mode`".to_owned());
    }
    if spec.resources.memory.is_some_and(|memory| memory.as_bytes() < MIN_MEMORY) {
        return invalid("a container does not start with less than 12MiB of `memory`".to_owned());
    }
    if spec.resources.disk.is_some() || spec.resources.pids.is_some() {
        return invalid("a cluster limits neither the disk nor the processes of a sandbox".to_owned());
    }
    egress(&spec.network).map(drop)
}

fn image(spec: &SandboxSpec) -> Result<&str, ProviderError> {
    match &spec.image {
        Image::Oci(reference) => Ok(reference),
        _ => Err(ProviderError::Unsupported {
            message: "provider `kubernetes` makes sandboxes from images only; use `image`".to_owned(),
        }),
    }
}

/// The rules of the way out; `None` for no rule.
fn egress(network: &NetworkSpec) -> Result<Option<Vec<Json>>, ProviderError> {
    if network.egress != Some(Egress::Deny) {
        return match network.allow.first() {
            None => Ok(None),
            Some(_) => Err(ProviderError::Invalid {
                message: "`network.allow` says what `egress: deny` leaves open; add that".to_owned(),
            }),
        };
    }
    let rules = network.allow.iter().map(|allow| {
        let rule = allow.parse::<EgressRule>();
        let Ok(EgressRule { host: EgressHost::Network { address, prefix }, port }) = rule else {
            return Err(ProviderError::Invalid {
                message: format!(
                    "`network.allow`: `{allow}` is no address: a network policy knows addresses and networks only, \
                     such as `10.1.0.0/16` or `192.0.2.7:443`"
                ),
            });
        };
        let mut rule = json!({ "to": [{ "ipBlock": { "cidr": format!("{address}/{prefix}") } }] });
        if let Some(port) = port {
            rule["ports"] = json!([{ "protocol": "TCP", "port": port }]);
        }
        Ok(rule)
    });
    rules.collect::<Result<_, _>>().map(Some)
}

/// Labels of the pod of a sandbox.
fn pod_labels(name: &str, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut selected = select_labels(labels);
    selected.insert(SANDBOX.to_owned(), name.to_owned());
    selected
}

/// The pod of a spec.
fn pod_spec(project: &str, spec: &SandboxSpec) -> Result<Json, ProviderError> {
    let mut limits = BTreeMap::new();
    if let Some(cpu) = spec.resources.cpu_millis {
        limits.insert("cpu", format!("{cpu}m"));
    }
    if let Some(memory) = spec.resources.memory {
        limits.insert("memory", memory.as_bytes().to_string());
    }
    let mut mounts = vec![json!({ "name": "run", "mountPath": "/run/pocketenv" })];
    // Where the guest keeps environments, secrets and the state of services: in memory, gone with a stop.
    let mut volumes = vec![json!({ "name": "run", "emptyDir": { "medium": "Memory" } })];
    for (n, mount) in spec.mounts.iter().enumerate() {
        let name = format!("volume-{n}");
        mounts.push(json!({ "name": name, "mountPath": mount.path, "readOnly": mount.read_only }));
        let claim = json!({ "claimName": volume_name(project, &mount.volume) });
        volumes.push(json!({ "name": name, "persistentVolumeClaim": claim }));
    }
    let mut pod = json!({
        "restartPolicy": "Never",
        // Nothing inside is to speak to the cluster.
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE,
        "containers": [{
            "name": CONTAINER,
            "image": image(spec)?,
            "command": ["sh", "-c", INIT, "pocketenv-init"],
            "resources": { "limits": limits, "requests": limits },
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    });
    if !spec.hostname.is_empty() {
        pod["hostname"] = json!(spec.hostname);
    }
    Ok(pod)
}

/// The object that owns a sandbox. `labels` are those of the sandbox, with its spec.
pub(super) fn owner(
    kind: Kind,
    name: &str,
    spec: &SandboxSpec,
    labels: &BTreeMap<String, String>,
    power: Power,
) -> Result<Json, ProviderError> {
    let project = labels.get(names::PROJECT).map_or("", String::as_str);
    let mut object = kind.power(power);
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.names().2);
    object["metadata"] = json!({ "name": name, "labels": select_labels(labels), "annotations": labels });
    if kind != Kind::ConfigMap {
        object["spec"]["podTemplate"] = json!({
            "metadata": { "labels": pod_labels(name, labels) },
            "spec": pod_spec(project, spec)?,
        });
    }
    Ok(object)
}

/// That the sandbox owns an object, which goes with it.
fn owned_by(kind: Kind, name: &str, uid: &str) -> Json {
    json!([{
        "apiVersion": kind.api_version(), "kind": kind.names().2, "name": name, "uid": uid,
        "controller": true, "blockOwnerDeletion": true,
    }])
}

/// The pod of a sandbox, where no controller makes it.
pub(super) fn pod(
    kind: Kind,
    name: &str,
    uid: &str,
    spec: &SandboxSpec,
    labels: &BTreeMap<String, String>,
) -> Result<Json, ProviderError> {
    let project = labels.get(names::PROJECT).map_or("", String::as_str);
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": pod_labels(name, labels), "ownerReferences": owned_by(kind, name, uid),
        },
        "spec": pod_spec(project, spec)?,
    }))
}

/// The network policy of a sandbox: in through its declared ports, out as it says.
pub(super) fn policy(
    kind: Kind,
    name: &str,
    uid: &str,
    spec: &SandboxSpec,
    labels: &BTreeMap<String, String>,
) -> Result<Json, ProviderError> {
    let port = |(port, declared): (&u16, &PortSpec)| json!({ "protocol": protocol(declared), "port": port });
    let ports: Vec<Json> = spec.ports.iter().map(port).collect();
    let ingress = if ports.is_empty() { json!([]) } else { json!([{ "ports": ports }]) };
    let mut policy = json!({
        "podSelector": { "matchLabels": { SANDBOX: name } },
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    });
    if let Some(rules) = egress(&spec.network)? {
        policy["policyTypes"] = json!(["Ingress", "Egress"]);
        policy["egress"] = json!(rules);
    }
    Ok(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "name": name, "labels": select_labels(labels), "ownerReferences": owned_by(kind, name, uid),
        },
        "spec": policy,
    }))
}

/// The service of a sandbox: a name inside the cluster that its declared ports keep. Nothing without ports.
pub(super) fn service(
    kind: Kind,
    name: &str,
    uid: &str,
    spec: &SandboxSpec,
    labels: &BTreeMap<String, String>,
) -> Option<Json> {
    let port = |(port, declared): (&u16, &PortSpec)| json!({ "name": format!("port-{port}"), "protocol": protocol(declared), "port": port, "targetPort": port });
    let ports: Vec<Json> = spec.ports.iter().map(port).collect();
    (!ports.is_empty()).then(|| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": service_name(labels), "labels": select_labels(labels), "ownerReferences": owned_by(kind, name, uid),
            },
            "spec": { "selector": { SANDBOX: name }, "ports": ports },
        })
    })
}

fn protocol(declared: &PortSpec) -> &'static str {
    if declared.protocol.is_udp() { "UDP" } else { "TCP" }
}

/// Whether a sandbox owns a service.
pub(super) fn owns(uid: &str, service: &Service) -> bool {
    service.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// The claim of a volume.
pub(super) fn claim(name: &str, labels: &BTreeMap<String, String>, class: Option<&str>, size: &str) -> Json {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": size } },
    });
    if let Some(class) = class {
        spec["storageClassName"] = json!(class);
    }
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "name": name, "labels": select_labels(labels), "annotations": labels },
        "spec": spec,
    })
}

/// A volume's name in its project, and what is seen of it; `None` for what is not one of ours.
pub(super) fn volume(claim: &PersistentVolumeClaim) -> Option<(String, ObservedVolume)> {
    let labels = ours(claim.metadata.annotations.as_ref()?);
    let name = labels.get(names::ADDRESS)?.strip_prefix("volume/")?.to_owned();
    let created_at = claim.metadata.creation_timestamp.as_ref().map(|at| timestamp(&at.0));
    Some((name, ObservedVolume { labels, created_at }))
}

/// What is ours among annotations.
pub(super) fn ours(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = annotations.iter().filter(|(name, _)| name.starts_with("pocketenv.io/"));
    own.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The labels of a sandbox, from the object that owns it.
pub(super) fn labels_of(owner: &DynamicObject) -> BTreeMap<String, String> {
    owner.metadata.annotations.as_ref().map(ours).unwrap_or_default()
}

/// The spec of a sandbox, from the object that owns it.
pub(super) fn spec_of(owner: &DynamicObject) -> Option<SandboxSpec> {
    labelled_spec(&labels_of(owner))
}

/// Of two specs, whether a sandbox of the first can become one of the second.
pub(super) fn can_become(old: &SandboxSpec, new: &SandboxSpec) -> bool {
    fn fixed(spec: &SandboxSpec) -> impl PartialEq + '_ {
        (&spec.image, &spec.hostname, &spec.mounts, &spec.resources, &spec.links)
    }
    fixed(old) == fixed(new)
}

/// The pod's name, which a controller may have chosen.
pub(super) fn pod_name(name: &str, owner: &DynamicObject) -> String {
    let annotations = owner.metadata.annotations.as_ref();
    let chosen = annotations.and_then(|annotations| annotations.get("agents.x-k8s.io/pod-name"));
    chosen.map_or(name, String::as_str).to_owned()
}

/// What a controller says of a `Sandbox` for which it makes no pod.
pub(super) fn complaint(owner: &DynamicObject) -> Option<&str> {
    let conditions = owner.data.pointer("/status/conditions").and_then(Json::as_array);
    let said = |condition: &&Json, name: &str, values: &[&str]| {
        condition.get(name).and_then(Json::as_str).is_some_and(|value| values.contains(&value))
    };
    let mut ready = conditions.into_iter().flatten().filter(|condition| said(condition, "type", &["Ready"]));
    let failed = ready.find(|condition| said(condition, "reason", &["ReconcilerError", "MultiplePods"]));
    failed?.get("message").and_then(Json::as_str)
}

/// What a pod is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PodState {
    /// It will run; why not yet.
    Waiting(String),
    /// It will never run.
    Hopeless(String),
    /// Runs.
    Running,
    /// On its way out.
    Ending,
    /// Has ended.
    Ended(String),
}

pub(super) fn pod_state(pod: &Pod) -> PodState {
    if pod.metadata.deletion_timestamp.is_some() {
        return PodState::Ending;
    }
    let Some(status) = &pod.status else { return PodState::Waiting(String::new()) };
    let container = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER);
    let state = container.and_then(|container| container.state.as_ref());
    let phase = status.phase.as_deref().unwrap_or_default();
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        let reason = ended.reason.as_deref().filter(|reason| !["Error", "Completed"].contains(reason));
        let what = format!("its first process ended with {}", ended.exit_code);
        return PodState::Ended(reason.map_or(what, str::to_owned));
    }
    if phase == "Failed" || phase == "Succeeded" {
        let reason = status.message.as_deref().or(status.reason.as_deref());
        return PodState::Ended(reason.unwrap_or("its pod ended").to_owned());
    }
    if state.is_some_and(|state| state.running.is_some()) {
        return PodState::Running;
    }
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let told = match waiting.message.as_deref() {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        };
        return match HOPELESS.contains(&reason) {
            true => PodState::Hopeless(told),
            false => PodState::Waiting(told),
        };
    }
    let unmet = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    PodState::Waiting(unmet.and_then(|c| c.message.clone()).unwrap_or_default())
}

/// What the cluster shows of a sandbox, in our words.
pub(super) fn observed(
    kind: Kind,
    name: &str,
    owner: &DynamicObject,
    pod: Option<&Pod>,
    service: Option<&Service>,
) -> ObservedSandbox {
    let labels = labels_of(owner);
    let spec = labelled_spec(&labels);
    let seen = pod.map(pod_state);
    let mut notes: Vec<String> = complaint(owner).map(shown).into_iter().collect();
    let unclean = |why: &str| SandboxState::Stopped { unclean: Some(why.to_owned()) };
    let state = match (kind.powered(owner), seen) {
        _ if owner.metadata.deletion_timestamp.is_some() => SandboxState::Deleting,
        (Power::Stopped, None) => SandboxState::Stopped { unclean: None },
        (Power::Stopped, Some(_)) => SandboxState::Stopping,
        (Power::Starting, None) => SandboxState::Creating,
        (Power::Running, None) => unclean("its pod is gone"),
        (_, Some(PodState::Running)) => SandboxState::Running,
        (_, Some(PodState::Ending)) => unclean("its pod is being deleted"),
        (_, Some(PodState::Ended(why))) => unclean(&why),
        (_, Some(PodState::Hopeless(why))) => SandboxState::Failed(why),
        (_, Some(PodState::Waiting(why))) => {
            notes.extend(Some(why).filter(|why| !why.is_empty()));
            SandboxState::Creating
        }
    };
    let own = service.filter(|service| owner.metadata.uid.as_ref().is_some_and(|uid| owns(uid, service)));
    notes.extend(own.and_then(|service| {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let shown = |port: &ServicePort| match port.protocol.as_deref() {
            Some("UDP") => format!("{}/udp", port.port),
            _ => port.port.to_string(),
        };
        let ports: Vec<String> = ports.map(shown).collect();
        let (name, namespace) = (service.metadata.name.as_deref()?, service.metadata.namespace.as_deref()?);
        Some(format!("inside the cluster: {name}.{namespace}.svc, port {}", ports.join(", ")))
    }));
    let runs = state == SandboxState::Running;
    let status = pod.and_then(|pod| pod.status.as_ref());
    let address = status.and_then(|status| status.pod_ip.clone()).filter(|_| runs);
    let endpoints = spec.iter().flat_map(|spec| spec.ports.keys()).filter_map(|port| {
        // Whether something listens there is not told.
        Some((*port, Endpoint { host: address.clone()?, port: *port, listening: true }))
    });
    ObservedSandbox {
        endpoints: endpoints.collect(),
        id: SandboxId(name.to_owned()),
        state,
        created_at: owner.metadata.creation_timestamp.as_ref().map(|at| timestamp(&at.0)),
        started_at: status.and_then(|status| status.start_time.as_ref()).map(|at| timestamp(&at.0)),
        // A pod does not start without every one of its mounts.
        bound: BTreeMap::new(),
        sockets: BTreeMap::new(),
        missing_mounts: Vec::new(),
        usage: Default::default(),
        notes,
        spec,
        labels,
    }
}

fn timestamp(at: &k8s_openapi::jiff::Timestamp) -> Timestamp {
    Timestamp(at.as_millisecond())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{Address, IntentId, OwnerId, Resources, SpecHash};

    fn identity() -> Identity {
        Identity {
            project: "shop_".to_owned() + &"p".repeat(58),
            address: Address::Sandbox("My_api".to_owned()),
            owner: OwnerId("o".to_owned()),
            spec_hash: SpecHash("0".repeat(64)),
            generation: 1,
            intent: IntentId("t".to_owned()),
            expires_at: None,
        }
    }

    fn spec() -> SandboxSpec {
        SandboxSpec {
            image: Image::Oci("i".to_owned()),
            ports: BTreeMap::from([(80, PortSpec::default())]),
            resources: Resources { cpu_millis: Some(500), ..Resources::default() },
            ..SandboxSpec::default()
        }
    }

    fn labels() -> BTreeMap<String, String> {
        crate::provider::label::labels(&spec(), &identity()).unwrap()
    }

    fn object(kind: Kind, power: Power) -> DynamicObject {
        serde_json::from_value(owner(kind, "pocketenv-x", &spec(), &labels(), power).unwrap()).unwrap()
    }

    fn pod_with(status: Json) -> Pod {
        let mut object = pod(Kind::ConfigMap, "pocketenv-x", "u", &spec(), &labels()).unwrap();
        object["status"] = status;
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn one_token_is_one_name_that_a_cluster_takes() {
        let name = object_name(&identity());
        assert!(name.starts_with("pocketenv--y-api-") && is_object_name(&name), "{name}");
        assert_eq!(name, object_name(&identity()));
        let volume = volume_name(&identity().project, "data");
        assert!(is_object_name(&volume), "{volume}");
        assert_ne!(volume_name("a", "b-c"), volume_name("a-b", "c"));
        for id in ["", "x", "pocketenv-/../x", "pocketenv-A", "pocketenv-a-"] {
            assert!(!is_object_name(id), "{id}");
        }
        assert_eq!(label_value("a_b.c"), "a_b.c");
        for odd in ["", "-a", "a b", &"a".repeat(64)] {
            assert!(label_value(odd).starts_with("sha256-") && label_value(odd).len() <= 63, "{odd}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_by_every_kind_of_owner() {
        for kind in [Kind::ConfigMap, Kind::V1Beta1, Kind::V1Alpha1] {
            let stopped = object(kind, Power::Stopped);
            assert_eq!(kind.powered(&stopped), Power::Stopped, "{kind:?}");
            assert_eq!(spec_of(&stopped), Some(spec()));
            assert_eq!(Identity::from_labels(&labels_of(&stopped)).unwrap(), Some(identity()));
            let seen = observed(kind, "pocketenv-x", &stopped, None, None);
            assert_eq!(seen.state, SandboxState::Stopped { unclean: None });
            assert_ne!(kind.powered(&object(kind, Power::Running)), Power::Stopped, "{kind:?}");
        }
        let beta = object(Kind::V1Beta1, Power::Running);
        assert_eq!(beta.types.clone().unwrap().api_version, "agents.x-k8s.io/v1beta1");
        let image = beta.data.pointer("/spec/podTemplate/spec/containers/0/image");
        assert_eq!(image.and_then(Json::as_str), Some("i"));
    }

    #[test]
    fn states_are_told_apart() {
        let of = |power, pod: Option<Pod>| {
            observed(Kind::ConfigMap, "pocketenv-x", &object(Kind::ConfigMap, power), pod.as_ref(), None)
                .state
        };
        let container = |state: Json| {
            pod_with(json!({ "phase": "Pending", "containerStatuses": [{
            "name": CONTAINER, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state,
        }] }))
        };
        let running = || container(json!({ "running": {} }));
        assert_eq!(of(Power::Starting, None), SandboxState::Creating);
        assert_eq!(of(Power::Running, Some(running())), SandboxState::Running);
        assert_eq!(of(Power::Stopped, Some(running())), SandboxState::Stopping);
        assert!(matches!(of(Power::Running, None), SandboxState::Stopped { unclean: Some(_) }));
        let pulling = container(json!({ "waiting": { "reason": "ErrImagePull" } }));
        assert_eq!(of(Power::Starting, Some(pulling)), SandboxState::Creating);
        let never = container(json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no" } }));
        assert_eq!(of(Power::Starting, Some(never)), SandboxState::Failed("ImagePullBackOff: no".to_owned()));
        let killed = container(json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } }));
        assert_eq!(
            of(Power::Running, Some(killed)),
            SandboxState::Stopped { unclean: Some("OOMKilled".to_owned()) }
        );
    }

    #[test]
    fn a_service_is_named_after_the_sandbox_and_told_by_its_owner_alone() {
        let made = |spec: &SandboxSpec| service(Kind::ConfigMap, "pocketenv-x", "u", spec, &labels());
        assert_eq!(made(&SandboxSpec::default()), None);
        let mut service: Service = serde_json::from_value(made(&spec()).unwrap()).unwrap();
        let name = service.metadata.name.clone().unwrap();
        assert!(name.starts_with("pocketenv-shop-") && is_object_name(&name), "{name}");
        let again = Identity { intent: IntentId("another".to_owned()), ..identity() };
        assert_eq!(service_name(&crate::provider::label::labels(&spec(), &again).unwrap()), name);
        service.metadata.namespace = Some("n".to_owned());
        let mut owner = object(Kind::ConfigMap, Power::Running);
        let notes = |owner: &DynamicObject| {
            observed(Kind::ConfigMap, "pocketenv-x", owner, None, Some(&service)).notes
        };
        assert!(notes(&owner).is_empty());
        owner.metadata.uid = Some("u".to_owned());
        assert_eq!(notes(&owner), [format!("inside the cluster: {name}.n.svc, port 80")]);
    }

    #[test]
    fn the_way_out_is_by_address_only() {
        let with = |egress, allow: &[&str]| {
            let allow = allow.iter().map(|text| (*text).to_owned()).collect();
            let network = NetworkSpec { egress, allow, ..NetworkSpec::default() };
            policy(Kind::ConfigMap, "n", "u", &SandboxSpec { network, ..spec() }, &labels())
        };
        let open = with(None, &[]).unwrap();
        assert_eq!(open["spec"]["policyTypes"], json!(["Ingress"]));
        assert_eq!(open["spec"]["ingress"][0]["ports"][0]["port"], 80);
        let shut = with(Some(Egress::Deny), &[]).unwrap();
        assert_eq!(shut["spec"]["egress"], json!([]));
        let some = with(Some(Egress::Deny), &["10.0.0.0/8", "[2001:db8::]:53"]).unwrap();
        assert_eq!(
            some["spec"]["egress"],
            json!([
                { "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] },
                { "to": [{ "ipBlock": { "cidr": "2001:db8::/128" } }], "ports": [{ "protocol": "TCP", "port": 53 }] },
            ])
        );
        let error = with(Some(Egress::Deny), &["github.com"]).unwrap_err().to_string();
        assert!(error.contains("`github.com`") && error.contains("10.1.0.0/16"), "{error}");
    }
}
