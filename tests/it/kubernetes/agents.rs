//! What the agent-sandbox project brings to a cluster, as far as we can see it: the type `Sandbox`, written down field by field for what we send, and a
//! controller that does with such objects what its own does. A field that is not declared here is refused by server-side apply and lost by every other
//! call, as it would be there.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
};
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use serde_json::{Value, json};

use super::support::{Cluster, NAMESPACE};

pub const RESOURCE: &str = "sandboxes.agents.x-k8s.io";
/// The label of what belongs to a `Sandbox`.
const HASH: &str = "agents.x-k8s.io/sandbox-name-hash";
const POD_NAME: &str = "agents.x-k8s.io/pod-name";
const PROPAGATED_LABELS: &str = "agents.x-k8s.io/propagated-labels";
const PROPAGATED_ANNOTATIONS: &str = "agents.x-k8s.io/propagated-annotations";
/// How often the controller looks.
const LOOK: Duration = Duration::from_millis(200);

/// The versions that a cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// As the first releases had it: `v1alpha1` alone.
    Alpha,
    /// As it is now: `v1beta1` is stored, `v1alpha1` is served beside it.
    Beta,
}

fn object(properties: Value, required: &[&str]) -> Value {
    let mut object = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn texts() -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

/// A list whose items are told apart by one of their fields, as server-side apply wants to know.
fn list(key: &str, item: Value) -> Value {
    json!({ "type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key] })
}

/// What a pod is to be: of everything that a pod may have, what we send.
fn pod_spec() -> Value {
    let quantity = json!({
        "anyOf": [{ "type": "integer" }, { "type": "string" }], "x-kubernetes-int-or-string": true,
        "pattern": "^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$",
    });
    let quantities = json!({ "type": "object", "additionalProperties": quantity });
    let text = json!({ "type": "string" });
    let flag = json!({ "type": "boolean" });
    let mount = object(json!({ "mountPath": text, "name": text, "readOnly": flag }), &["mountPath", "name"]);
    let container = object(
        json!({
            "name": text, "image": text,
            "command": { "type": "array", "items": text, "x-kubernetes-list-type": "atomic" },
            "resources": object(json!({ "limits": quantities, "requests": quantities }), &[]),
            "volumeMounts": list("mountPath", mount),
        }),
        &["name"],
    );
    let claim = object(json!({ "claimName": text, "readOnly": flag }), &["claimName"]);
    let volume = object(
        json!({
            "name": text, "emptyDir": object(json!({ "medium": text, "sizeLimit": quantity }), &[]),
            "persistentVolumeClaim": claim,
        }),
        &["name"],
    );
    object(
        json!({
            "restartPolicy": text, "hostname": text, "automountServiceAccountToken": flag, "enableServiceLinks": flag,
            "terminationGracePeriodSeconds": { "type": "integer", "format": "int64" },
            "containers": list("name", container), "volumes": list("name", volume),
        }),
        &["containers"],
    )
}

fn condition() -> Value {
    object(
        json!({
            "type": { "type": "string", "maxLength": 316 }, "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
            "reason": { "type": "string", "minLength": 1, "maxLength": 1024 }, "message": { "type": "string", "maxLength": 32768 },
            "lastTransitionTime": { "type": "string", "format": "date-time" },
            "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
        }),
        &["lastTransitionTime", "message", "reason", "status", "type"],
    )
}

fn version(name: &str, stored: bool) -> Value {
    let text = json!({ "type": "string" });
    let template = object(
        json!({ "metadata": object(json!({ "annotations": texts(), "labels": texts() }), &[]), "spec": pod_spec() }),
        &["spec"],
    );
    let mut spec = json!({
        "podTemplate": template, "service": { "type": "boolean" },
        "shutdownTime": { "type": "string", "format": "date-time" },
        "shutdownPolicy": { "type": "string", "enum": ["Delete", "Retain"], "default": "Retain" },
    });
    let mut status = json!({
        "conditions": { "type": "array", "items": condition() }, "selector": text, "service": text, "serviceFQDN": text,
    });
    let mut subresources = json!({ "status": {} });
    if name == "v1alpha1" {
        spec["replicas"] = json!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": 1 });
        status["replicas"] = json!({ "type": "integer", "format": "int32" });
        subresources["scale"] = json!({
            "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector",
        });
    } else {
        spec["operatingMode"] =
            json!({ "type": "string", "enum": ["Running", "Suspended"], "default": "Running" });
        status["podIPs"] = json!({ "type": "array", "items": text });
        status["nodeName"] = text.clone();
    }
    let whole = object(
        json!({
            "apiVersion": text, "kind": text, "metadata": { "type": "object" },
            "spec": object(spec, &["podTemplate"]), "status": object(status, &[]),
        }),
        &["spec"],
    );
    json!({
        "name": name, "served": true, "storage": stored, "subresources": subresources,
        "schema": { "openAPIV3Schema": whole },
    })
}

fn definition(versions: Versions) -> Value {
    let versions = match versions {
        Versions::Alpha => vec![version("v1alpha1", true)],
        Versions::Beta => vec![version("v1beta1", true), version("v1alpha1", false)],
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": RESOURCE },
        "spec": {
            "group": "agents.x-k8s.io", "scope": "Namespaced", "versions": versions,
            "names": {
                "kind": "Sandbox", "listKind": "SandboxList", "plural": "sandboxes", "singular": "sandbox",
                "shortNames": ["sandbox"],
            },
        },
    })
}

/// The type and its controller, until this is dropped. `Sandbox` objects have to be gone by then.
pub struct Agents<'a> {
    cluster: &'a Cluster,
    controller: tokio::task::JoinHandle<()>,
}

impl<'a> Agents<'a> {
    pub async fn install(cluster: &'a Cluster, versions: Versions) -> Self {
        let file = cluster.dir.path().join("sandboxes.json");
        std::fs::write(&file, definition(versions).to_string()).unwrap();
        cluster.says(&["apply", "-f", file.to_str().unwrap()]);
        cluster.says(&["wait", "--for=condition=Established", "--timeout=60s", &format!("crd/{RESOURCE}")]);
        let wanted = if versions == Versions::Alpha { "v1alpha1" } else { "v1beta1" };
        cluster.until("the cluster tells of Sandbox objects", || {
            let told =
                cluster.kubectl(&["get", "--raw", &format!("/apis/agents.x-k8s.io/{wanted}/sandboxes")]);
            let groups = cluster.says(&["get", "--raw", "/apis"]);
            told.status.success() && groups.contains(&format!("agents.x-k8s.io/{wanted}"))
        });
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let controller = Controller::new(Client::try_from(config).unwrap(), versions);
        let controller = tokio::spawn(async move {
            loop {
                if let Err(error) = controller.pass().await {
                    eprintln!("the controller of Sandbox objects: {error}");
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { cluster, controller }
    }

    /// `Sandbox` objects that are there.
    pub fn inventory(&self) -> Vec<String> {
        let all = self.cluster.says(&["-n", NAMESPACE, "get", RESOURCE, "-o", "name"]);
        all.lines().map(str::to_owned).collect()
    }

    pub fn remove(self) {
        assert_eq!(self.inventory(), Vec::<String>::new());
    }
}

impl Drop for Agents<'_> {
    fn drop(&mut self) {
        self.cluster.kubectl(&["-n", NAMESPACE, "delete", "--all", "--wait", "--timeout=60s", RESOURCE]);
        self.controller.abort();
        self.cluster.kubectl(&["delete", "--wait", "--timeout=60s", &format!("crd/{RESOURCE}")]);
    }
}

struct Controller {
    versions: Versions,
    sandboxes: Api<DynamicObject>,
    pods: Api<Pod>,
    services: Api<k8s_openapi::api::core::v1::Service>,
}

/// FNV-1a of 32 bits, in hexadecimal.
fn name_hash(name: &str) -> String {
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

/// Nobody but the project itself may set these.
fn is_reserved(key: &str) -> bool {
    key.starts_with("agents.x-k8s.io/") || key.starts_with("extensions.agents.x-k8s.io/")
}

/// Whether a call found that somebody else was first.
fn raced(error: &Error) -> bool {
    matches!(error, Error::Api(status) if [404, 409].contains(&status.code))
}

impl Controller {
    fn new(client: Client, versions: Versions) -> Self {
        let version = if versions == Versions::Alpha { "v1alpha1" } else { "v1beta1" };
        let kind = GroupVersionKind::gvk("agents.x-k8s.io", version, "Sandbox");
        let resource = ApiResource::from_gvk_with_plural(&kind, "sandboxes");
        Self {
            versions,
            sandboxes: Api::namespaced_with(client.clone(), NAMESPACE, &resource),
            pods: Api::namespaced(client.clone(), NAMESPACE),
            services: Api::namespaced(client, NAMESPACE),
        }
    }

    async fn pass(&self) -> Result<(), Error> {
        for sandbox in self.sandboxes.list(&ListParams::default()).await?.items {
            // The garbage collector has the rest.
            if sandbox.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match self.reconcile(&sandbox).await {
                Err(error) if !raced(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn reconcile(&self, sandbox: &DynamicObject) -> Result<(), Error> {
        let at = |path: &str| sandbox.data.pointer(path);
        let suspended = match self.versions {
            Versions::Alpha => at("/spec/replicas").and_then(Value::as_u64) == Some(0),
            Versions::Beta => at("/spec/operatingMode").and_then(Value::as_str) == Some("Suspended"),
        };
        let name = sandbox.metadata.name.as_deref().unwrap();
        let annotated = sandbox.metadata.annotations.as_ref().and_then(|all| all.get(POD_NAME));
        let pod = self.pods.get_opt(annotated.map_or(name, String::as_str)).await?;
        let owned = |pod: &Pod| {
            let owner =
                pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
            owner.map(|owner| owner.uid == *sandbox.metadata.uid.as_ref().unwrap())
        };
        let pod = match pod {
            // What is not its own is neither deleted nor taken.
            Some(pod) if owned(&pod) != Some(true) => None,
            Some(pod) if suspended && pod.metadata.deletion_timestamp.is_none() => {
                self.pods.delete(pod.metadata.name.as_deref().unwrap(), &DeleteParams::default()).await?;
                Some(pod)
            }
            None if !suspended => match self.pods.create(&PostParams::default(), &pod_of(sandbox)).await {
                Err(Error::Api(status)) if ![404, 409].contains(&status.code) => {
                    return self.tell(sandbox, suspended, None, Some(&status.message)).await;
                }
                made => Some(made?),
            },
            pod => pod,
        };
        if self.versions == Versions::Alpha {
            self.service(sandbox).await?;
        }
        self.tell(sandbox, suspended, pod.as_ref(), None).await
    }

    /// The first releases made a service for every `Sandbox`.
    async fn service(&self, sandbox: &DynamicObject) -> Result<(), Error> {
        let name = sandbox.metadata.name.as_deref().unwrap();
        if self.services.get_opt(name).await?.is_some() {
            return Ok(());
        }
        let labels = json!({ HASH: name_hash(name) });
        let service = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": labels, "ownerReferences": [owner(sandbox)] },
            "spec": { "clusterIP": "None", "selector": labels },
        }));
        self.services.create(&PostParams::default(), &service.unwrap()).await.map(drop)
    }

    async fn tell(
        &self,
        sandbox: &DynamicObject,
        suspended: bool,
        pod: Option<&Pod>,
        failed: Option<&str>,
    ) -> Result<(), Error> {
        let name = sandbox.metadata.name.as_deref().unwrap();
        let told = pod.and_then(|pod| pod.status.as_ref());
        let phase = told.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let ready = told.is_some_and(|status| {
            status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        });
        let (status, reason) = match (suspended, phase) {
            _ if failed.is_some() => ("False", "ReconcilerError"),
            (true, _) => ("False", "SandboxSuspended"),
            (false, "Succeeded") => ("False", "PodSucceeded"),
            (false, "Failed") => ("False", "PodFailed"),
            (false, "Running") if ready => ("True", "DependenciesReady"),
            (false, _) => ("False", "DependenciesNotReady"),
        };
        let known = |path: &str| sandbox.data.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let message = failed.map_or_else(|| format!("pod: {phase}"), |why| format!("Error seen: {why}"));
        if (known("/status/conditions/0/reason"), known("/status/conditions/0/message"))
            == (reason, message.as_str())
        {
            return Ok(());
        }
        let mut all = json!({
            "conditions": [{
                "type": "Ready", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "observedGeneration": sandbox.metadata.generation,
            }],
            "selector": format!("{HASH}={}", name_hash(name)),
        });
        match self.versions {
            Versions::Alpha => all["replicas"] = json!(u8::from(pod.is_some())),
            Versions::Beta => {
                let addresses = told.iter().flat_map(|status| status.pod_ips.iter().flatten());
                all["podIPs"] = json!(addresses.map(|address| &address.ip).collect::<Vec<_>>());
            }
        }
        let patch = Patch::Merge(json!({ "status": all }));
        self.sandboxes.patch_status(name, &PatchParams::default(), &patch).await.map(drop)
    }
}

fn owner(sandbox: &DynamicObject) -> OwnerReference {
    let types = sandbox.types.as_ref().unwrap();
    OwnerReference {
        api_version: types.api_version.clone(),
        kind: types.kind.clone(),
        name: sandbox.metadata.name.clone().unwrap(),
        uid: sandbox.metadata.uid.clone().unwrap(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The pod of a `Sandbox`: named after it, with what its template says of labels and annotations, and a note of which those were.
fn pod_of(sandbox: &DynamicObject) -> Pod {
    let name = sandbox.metadata.name.clone().unwrap();
    let template: PodTemplateSpec =
        serde_json::from_value(sandbox.data.pointer("/spec/podTemplate").cloned().unwrap()).unwrap();
    let meta = template.metadata.unwrap_or_default();
    let own = |all: Option<BTreeMap<String, String>>| -> BTreeMap<String, String> {
        all.unwrap_or_default().into_iter().filter(|(key, _)| !is_reserved(key)).collect()
    };
    let (mut labels, mut annotations) = (own(meta.labels), own(meta.annotations));
    let keys = |all: &BTreeMap<String, String>| all.keys().cloned().collect::<Vec<_>>().join(",");
    let notes = [(PROPAGATED_LABELS, keys(&labels)), (PROPAGATED_ANNOTATIONS, keys(&annotations))];
    annotations.extend(
        notes.into_iter().filter(|(_, keys)| !keys.is_empty()).map(|(note, keys)| (note.to_owned(), keys)),
    );
    labels.insert(HASH.to_owned(), name_hash(&name));
    let metadata = ObjectMeta {
        name: Some(name),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![owner(sandbox)]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec, status: None }
}
