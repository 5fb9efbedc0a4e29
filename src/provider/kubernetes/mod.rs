//! Kubernetes: a sandbox is one object that owns a pod, a network policy and a service; volumes are claims of their own.

mod api;
mod guest;
mod map;
mod sheet;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{self as core, PersistentVolumeClaim, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};

use api::{Cluster, Place, all, answered, apply, found, until};
use guest::KubernetesGuest;
use map::{Kind, PodState, Power};
pub use sheet::SHEET;

use super::script::shown;
use super::{
    Calls, Capabilities, Detour, Guest, Owner, Pattern, Provider, ProviderContext, ProviderError, Service,
    Volumes, label,
};
use crate::model::{Identity, ObservedProvider, ObservedSandbox, SandboxId, SandboxSpec, labels as names};

/// How long a pod may take to run: an image may be large, and a node may have to be made first.
const UP: Duration = Duration::from_secs(240);
/// How long it may take to be gone.
const DOWN: Duration = Duration::from_secs(120);

/// What the kit recognises calls by.
static CALLS: Calls = Calls {
    list: &[Pattern("GET", "/pods")],
    get: &[Pattern("GET", "/configmaps/*"), Pattern("GET", "/sandboxes/*")],
    create: &[Pattern("PATCH", "/configmaps/*"), Pattern("PATCH", "/sandboxes/*")],
    delete: &[Pattern("DELETE", "/configmaps/*"), Pattern("DELETE", "/sandboxes/*")],
    exec: &[Pattern("GET", "/pods/*/exec")],
    retry_after: true,
    refusal: |code, message, after| {
        let reason = if code == 409 { "AlreadyExists" } else { "Refused" };
        let details = serde_json::json!({ "retryAfterSeconds": after.map_or(0, |after| after.as_secs()) });
        let (kind, status) = ("Status", "Failure");
        serde_json::json!({
            "apiVersion": "v1", "kind": kind, "metadata": {}, "status": status, "code": code, "reason": reason,
            "message": message, "details": details,
        })
        .to_string()
    },
};

/// One namespace of a cluster.
pub struct Kubernetes {
    cluster: Cluster,
    storage_class: Option<String>,
    volume_size: String,
}

/// A sandbox as it stands.
struct Found {
    kind: Kind,
    owner: DynamicObject,
}

impl Kubernetes {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] if there is no word of a cluster.
    pub fn open(context: &ProviderContext) -> Result<Self, ProviderError> {
        let setting = |name| context.setting("kubernetes", name).filter(|value| !value.is_empty());
        Ok(Self {
            cluster: Cluster::new(Place::find(context)?),
            storage_class: setting("storage_class").map(str::to_owned),
            volume_size: setting("volume_size").unwrap_or(sheet::VOLUME_SIZE).to_owned(),
        })
    }

    /// Objects of one kind in our namespace.
    async fn objects<K>(&self) -> Result<Api<K>, ProviderError>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Ok(Api::default_namespaced(self.cluster.client().await?.clone()))
    }

    async fn owners(&self, kind: Kind) -> Result<Api<DynamicObject>, ProviderError> {
        let client = self.cluster.client().await?.clone();
        Ok(Api::default_namespaced_with(client, &kind.resource()))
    }

    /// The kinds that sandboxes of this cluster may have; new ones get the first. A cluster may have learnt of `Sandbox` since.
    async fn kinds(&self) -> Result<Vec<Kind>, ProviderError> {
        let newest = Kind::of(self.cluster.agents().await?);
        Ok(if newest == Kind::ConfigMap { vec![newest] } else { vec![newest, Kind::ConfigMap] })
    }

    /// A sandbox; `None` if there is none.
    async fn find(&self, name: &str) -> Result<Option<Found>, ProviderError> {
        if !map::is_object_name(name) {
            return Ok(None);
        }
        let doing = format!("look at sandbox {name}");
        for kind in self.kinds().await? {
            let owner = found(&doing, self.owners(kind).await?.get(name)).await?;
            let ours = |owner: &DynamicObject| {
                let labels = owner.metadata.labels.as_ref();
                labels.and_then(|l| l.get(names::MANAGED_BY)).is_some_and(|by| by == "pocketenv")
            };
            if let Some(owner) = owner.filter(ours) {
                return Ok(Some(Found { kind, owner }));
            }
        }
        Ok(None)
    }

    async fn existing(&self, id: &SandboxId) -> Result<Found, ProviderError> {
        let missing = || ProviderError::NotFound { what: format!("sandbox {id}") };
        self.find(&id.0).await?.ok_or_else(missing)
    }

    /// Says whether a sandbox is to run.
    async fn set_power(&self, name: &str, kind: Kind, power: Power) -> Result<(), ProviderError> {
        let owners = self.owners(kind).await?;
        let params = PatchParams { field_manager: Some(api::MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(kind.power(power));
        answered(&format!("switch sandbox {name}"), owners.patch(name, &params, &patch)).await.map(drop)
    }

    /// Brings a sandbox to run, with everything that it owns.
    async fn run(&self, name: &str, found: &Found) -> Result<(), ProviderError> {
        let Found { kind, owner } = found;
        let labels = map::labels_of(owner);
        let unread = || ProviderError::Permanent {
            message: format!("sandbox {name}: its annotations do not say what it is to be; delete it"),
            source: None,
        };
        let spec = label::labelled_spec(&labels).ok_or_else(unread)?;
        let uid = owner.metadata.uid.clone().unwrap_or_default();
        // First what confines it.
        let policies: Api<NetworkPolicy> = self.objects().await?;
        let policy = map::policy(*kind, name, &uid, &spec, &labels)?;
        apply(&policies, &format!("write the network policy of sandbox {name}"), name, &policy).await?;
        self.publish(*kind, name, &uid, &spec, &labels).await?;

        let pods: Api<Pod> = self.objects().await?;
        let pod_name = map::pod_name(name, owner);
        let looking = format!("look at the pod of sandbox {name}");
        let seen = api::found(&looking, pods.get(&pod_name)).await?;
        let state = seen.as_ref().map(map::pod_state);
        if kind.powered(owner) == Power::Running && state == Some(PodState::Running) {
            return Ok(());
        }
        self.set_power(name, *kind, Power::Starting).await?;
        if matches!(state, Some(PodState::Ending | PodState::Ended(_) | PodState::Hopeless(_))) {
            self.remove_pod(name, &pod_name).await?;
        }
        if *kind == Kind::ConfigMap {
            let pod = map::pod(*kind, name, &uid, &spec, &labels)?;
            apply(&pods, &format!("create the pod of sandbox {name}"), &pod_name, &pod).await?;
        }
        let mut waiting = String::new();
        let ended = until(&pods, &looking, &pod_name, UP, |pod| match pod.map(map::pod_state) {
            Some(PodState::Waiting(why)) => {
                waiting = why;
                None
            }
            None | Some(PodState::Ending) => None,
            Some(state) => Some(state),
        });
        match ended.await? {
            Some(PodState::Running) => self.set_power(name, *kind, Power::Running).await,
            Some(PodState::Hopeless(why) | PodState::Ended(why)) => {
                Err(ProviderError::Invalid { message: format!("sandbox {name} does not start: {why}") })
            }
            _ => {
                let owner = api::found(&looking, self.owners(*kind).await?.get(name)).await?;
                let complaint = owner.as_ref().and_then(map::complaint).map(shown);
                let why = Some(waiting).filter(|why| !why.is_empty()).or(complaint);
                let why = why.unwrap_or_else(|| "nothing says why".to_owned());
                let message = format!("sandbox {name} does not run after {} s: {why}", UP.as_secs());
                Err(ProviderError::Transient { message, source: None })
            }
        }
    }

    /// Brings the service of a sandbox to its declared ports; without ports there is none.
    async fn publish(
        &self,
        kind: Kind,
        name: &str,
        uid: &str,
        spec: &SandboxSpec,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let services: Api<core::Service> = self.objects().await?;
        let service_name = map::service_name(labels);
        let seen = found(&format!("look at service {service_name}"), services.get(&service_name)).await?;
        match (map::service(kind, name, uid, spec, labels), seen) {
            (Some(_), Some(seen)) if !map::owns(uid, &seen) => Err(ProviderError::Invalid {
                message: format!(
                    "service {service_name} is there and not of sandbox {name}: delete it, or what owns it"
                ),
            }),
            (Some(service), _) => {
                let doing = format!("write service {service_name}");
                apply(&services, &doing, &service_name, &service).await.map(drop)
            }
            (None, Some(seen)) if map::owns(uid, &seen) => {
                let doing = format!("delete service {service_name}");
                found(&doing, services.delete(&service_name, &DeleteParams::default())).await.map(drop)
            }
            (None, _) => Ok(()),
        }
    }

    /// Deletes a pod and waits until it is gone.
    async fn remove_pod(&self, name: &str, pod: &str) -> Result<(), ProviderError> {
        let pods: Api<Pod> = self.objects().await?;
        let doing = format!("end the pod of sandbox {name}");
        let Some(deleted) = found(&doing, pods.delete(pod, &DeleteParams::default())).await? else {
            return Ok(());
        };
        // A controller may make another one by the same name at once.
        let uid = deleted.left().and_then(|pod| pod.metadata.uid);
        self.gone(&pods, &doing, pod, uid.as_deref()).await
    }

    /// Waits until an object is gone: this one, or any by the name.
    async fn gone<K>(
        &self,
        objects: &Api<K>,
        doing: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<(), ProviderError>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + kube::Resource,
    {
        let is_it = |object: &K| uid.is_none_or(|uid| object.meta().uid.as_deref() == Some(uid));
        let gone =
            until(objects, doing, name, DOWN, |object| (!object.is_some_and(is_it)).then_some(())).await?;
        gone.ok_or_else(|| ProviderError::Transient {
            message: format!("cannot {doing}: {name} is still there after {} s", DOWN.as_secs()),
            source: None,
        })
    }

    /// The claim of a volume, if it is one of this project's.
    async fn claim(&self, project: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, ProviderError> {
        let claims: Api<PersistentVolumeClaim> = self.objects().await?;
        let claim_name = map::volume_name(project, name);
        let claim = found(&format!("look at volume {name}"), claims.get(&claim_name)).await?;
        let ours = |claim: &PersistentVolumeClaim| {
            map::volume(claim).is_some_and(|(found, volume)| {
                found == name && volume.labels.get(names::PROJECT).is_some_and(|p| p == project)
            })
        };
        match claim {
            Some(claim) if !ours(&claim) => Err(ProviderError::AlreadyExists {
                what: format!("claim {claim_name}, which is not of this project,"),
            }),
            claim => Ok(claim),
        }
    }
}

#[async_trait]
impl Provider for Kubernetes {
    fn capabilities(&self) -> &Capabilities {
        &SHEET
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let labels = map::selector(owner);
        // First the pods, then what owns them: a pod without its owner is nothing, an owner whose pod came in between is being created.
        let pods = all(&self.objects::<Pod>().await?, "list pods", &labels).await?;
        let pods: BTreeMap<&str, &Pod> =
            pods.iter().filter_map(|pod| Some((pod.metadata.name.as_deref()?, pod))).collect();
        let services = all(&self.objects::<core::Service>().await?, "list services", &labels).await?;
        let services: BTreeMap<&str, &core::Service> = services
            .iter()
            .filter_map(|service| Some((service.metadata.name.as_deref()?, service)))
            .collect();
        let mut listing = ObservedProvider::default();
        for kind in self.kinds().await? {
            for owner in all(&self.owners(kind).await?, "list sandboxes", &labels).await? {
                let Some(name) = owner.metadata.name.clone().filter(|name| map::is_object_name(name)) else {
                    continue;
                };
                let pod = pods.get(map::pod_name(&name, &owner).as_str()).copied();
                let service = services.get(map::service_name(&map::labels_of(&owner)).as_str()).copied();
                let sandbox = map::observed(kind, &name, &owner, pod, service);
                listing.sandboxes.insert(sandbox.id.clone(), sandbox);
            }
        }
        let claims: Api<PersistentVolumeClaim> = self.objects().await?;
        let claims = all(&claims, "list volumes", &labels).await?;
        listing.volumes.extend(claims.iter().filter_map(map::volume));
        Ok(listing)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        let Some(Found { kind, owner }) = self.find(&id.0).await? else { return Ok(None) };
        let pods: Api<Pod> = self.objects().await?;
        let pod_name = map::pod_name(&id.0, &owner);
        let pod = found(&format!("look at the pod of sandbox {id}"), pods.get(&pod_name)).await?;
        let (services, service_name): (Api<core::Service>, _) =
            (self.objects().await?, map::service_name(&map::labels_of(&owner)));
        let service = found(&format!("look at service {service_name}"), services.get(&service_name)).await?;
        Ok(Some(map::observed(kind, &id.0, &owner, pod.as_ref(), service.as_ref())))
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        map::check(spec)?;
        let name = map::object_name(identity);
        let found = match self.find(&name).await? {
            Some(found) if found.owner.metadata.deletion_timestamp.is_some() => {
                let message = format!("sandbox {name} is being deleted");
                return Err(ProviderError::Transient { message, source: None });
            }
            Some(found) => found,
            None => {
                let kind = Kind::of(self.cluster.agents().await?);
                let labels = label::labels(spec, identity)?;
                // A controller would start a pod at once, before its policy is there.
                let power = if kind == Kind::ConfigMap { Power::Starting } else { Power::Stopped };
                let object = map::owner(kind, &name, spec, &labels, power)?;
                let owner =
                    apply(&self.owners(kind).await?, &format!("create sandbox {name}"), &name, &object)
                        .await?;
                Found { kind, owner }
            }
        };
        let id = SandboxId(name);
        if let Err(error) = self.run(&id.0, &found).await {
            if !error.is_retryable() {
                // What will never run must not look like something that is being made.
                self.delete(&id).await?;
            }
            return Err(error);
        }
        Ok(id)
    }

    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        map::check(spec)?;
        let Found { kind, owner } = self.existing(id).await?;
        let known = map::labels_of(&owner);
        if map::spec_of(&owner).is_some_and(|old| !map::can_become(&old, spec)) {
            return Err(ProviderError::Unsupported {
                message: format!(
                    "sandbox {id}: a pod keeps its image, limits and volumes; anything but ports and network needs a new one"
                ),
            });
        }
        let mut labels = label::labels(spec, identity)?;
        if let Some(token) = known.get(names::INTENT) {
            labels.insert(names::INTENT.to_owned(), token.clone());
        }
        let uid = owner.metadata.uid.clone().unwrap_or_default();
        let policies: Api<NetworkPolicy> = self.objects().await?;
        let policy = map::policy(kind, &id.0, &uid, spec, &labels)?;
        apply(&policies, &format!("write the network policy of sandbox {id}"), &id.0, &policy).await?;
        self.publish(kind, &id.0, &uid, spec, &labels).await?;
        if known == labels {
            return Ok(());
        }
        let object = map::owner(kind, &id.0, spec, &labels, kind.powered(&owner))?;
        let owners = self.owners(kind).await?;
        apply(&owners, &format!("write the identity of sandbox {id}"), &id.0, &object).await.map(drop)
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let found = self.existing(id).await?;
        self.run(&id.0, &found).await
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let Found { kind, owner } = self.existing(id).await?;
        self.set_power(&id.0, kind, Power::Stopped).await?;
        let pod = map::pod_name(&id.0, &owner);
        match kind {
            Kind::ConfigMap => self.remove_pod(&id.0, &pod).await,
            // Its controller removes it.
            Kind::V1Beta1 | Kind::V1Alpha1 => {
                self.gone(&self.objects::<Pod>().await?, &format!("stop sandbox {id}"), &pod, None).await
            }
        }
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let Some(Found { kind, .. }) = self.find(&id.0).await? else { return Ok(()) };
        let owners = self.owners(kind).await?;
        let doing = format!("delete sandbox {id}");
        // In the foreground: it is there until everything that it owns is gone.
        if found(&doing, owners.delete(&id.0, &DeleteParams::foreground())).await?.is_none() {
            return Ok(());
        }
        self.gone(&owners, &doing, &id.0, None).await
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        let Found { owner, .. } = self.existing(id).await?;
        Ok(Box::new(KubernetesGuest { cluster: self.cluster.clone(), pod: map::pod_name(&id.0, &owner) }))
    }

    fn volumes(&self) -> Option<&dyn Volumes> {
        Some(self)
    }

    fn service(&self) -> Option<&dyn Service> {
        Some(self)
    }
}

impl Service for Kubernetes {
    fn calls(&self) -> &'static Calls {
        &CALLS
    }

    fn behind(&self, detour: Arc<dyn Detour>) -> Result<Arc<dyn Provider>, ProviderError> {
        let address = detour.before(Arc::new(self.cluster.clone()))?;
        let cluster = Cluster::new(self.cluster.place.behind(address));
        let (storage_class, volume_size) = (self.storage_class.clone(), self.volume_size.clone());
        Ok(Arc::new(Self { cluster, storage_class, volume_size }))
    }
}

#[async_trait]
impl Volumes for Kubernetes {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(names::PROJECT).map_or("", String::as_str);
        if self.claim(project, name).await?.is_some() {
            return Ok(());
        }
        let claim_name = map::volume_name(project, name);
        let claim = map::claim(&claim_name, labels, self.storage_class.as_deref(), &self.volume_size);
        let claims: Api<PersistentVolumeClaim> = self.objects().await?;
        apply(&claims, &format!("create volume {name}"), &claim_name, &claim).await.map(drop)
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        if self.claim(project, name).await?.is_none() {
            return Ok(());
        }
        let claims: Api<PersistentVolumeClaim> = self.objects().await?;
        let (doing, claim) = (format!("delete volume {name}"), map::volume_name(project, name));
        if found(&doing, claims.delete(&claim, &DeleteParams::default())).await?.is_none() {
            return Ok(());
        }
        // A pod that has it keeps it.
        self.gone(&claims, &doing, &claim, None).await
    }
}
