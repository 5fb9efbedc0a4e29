//! The built-in provider: sandboxes on this machine by the local engine. Nothing to install, no account.

mod guest;
mod image;
mod map;
mod sheet;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

pub use sheet::SHEET;

use super::{
    BoundSecrets, BoundValue, Capabilities, EgressLog, Guest, Images, Owner, Provider, ProviderContext,
    ProviderError, Snapshots, Volumes, label,
};
use crate::engine::{self, BoxSpec, Engine, EngineConfig, EngineError, Image};
use crate::model::{
    EgressAttempt, Identity, ObservedProvider, ObservedSandbox, ObservedSnapshot, ObservedVolume, SandboxId,
    SandboxSpec, labels,
};

/// How long the processes of a sandbox may take to end when it is stopped.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// The provider `local`.
pub struct Local {
    engine: Engine,
    /// Digests of references that have none themselves.
    pins: Mutex<BTreeMap<String, String>>,
}

impl Local {
    /// The provider on this machine's directories.
    pub fn new(context: &ProviderContext) -> Self {
        Self {
            engine: Engine::new(EngineConfig {
                data_dir: context.data_dir.clone(),
                runtime_dir: context.runtime_dir.clone(),
                exe: context.executable.clone(),
            }),
            pins: Mutex::default(),
        }
    }

    fn observed(&self, info: crate::engine::BoxInfo) -> ObservedSandbox {
        let id = info.id.clone();
        map::observed(info, |name: &str| self.engine.socket_path(&id, name))
    }

    async fn set_sockets(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), ProviderError> {
        let sockets = map::sockets(spec, |name| self.engine.socket_path(&id.0, name));
        self.engine.set_sockets(&id.0, &sockets).await.map_err(map::error)
    }
}

/// Whether labels match what a listing is about.
fn matches(owner: &Owner, found: &BTreeMap<String, String>) -> bool {
    found.get(labels::MANAGED_BY).is_some_and(|by| by == "pocketenv")
        && owner.project.as_ref().is_none_or(|p| found.get(labels::PROJECT) == Some(p))
        && owner.owner.as_ref().is_none_or(|o| found.get(labels::OWNER) == Some(&o.0))
}

#[async_trait]
impl Provider for Local {
    fn capabilities(&self) -> &Capabilities {
        &SHEET
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let mut listing = ObservedProvider::default();
        for volume in self.engine.list_volumes().await.map_err(map::error)? {
            let Some(name) = map::volume_name(&volume.labels).filter(|_| matches(owner, &volume.labels))
            else {
                continue;
            };
            let created_at = Some(map::timestamp(volume.created_at));
            listing.volumes.insert(name.to_owned(), ObservedVolume { labels: volume.labels, created_at });
        }
        let boxes = self.engine.list().await.map_err(map::error)?;
        let snapshots = self.engine.list_snapshots().await.map_err(map::error)?;
        let users = map::users_of_snapshots(&boxes, &snapshots);
        for snapshot in snapshots.into_iter().filter(|snapshot| matches(owner, &snapshot.labels)) {
            let observed = ObservedSnapshot {
                labels: snapshot.labels,
                created_at: Some(map::timestamp(snapshot.created_at)),
                bytes: Some(snapshot.bytes),
                used_by: users.get(&snapshot.name).cloned().unwrap_or_default(),
            };
            listing.snapshots.insert(snapshot.name, observed);
        }
        for info in boxes {
            if matches(owner, &info.labels) {
                let sandbox = self.observed(info);
                listing.sandboxes.insert(sandbox.id.clone(), sandbox);
            }
        }
        Ok(listing)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        Ok(self.engine.get(&id.0).await.map_err(map::error)?.map(|info| self.observed(info)))
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        let id = map::sandbox_id(identity);
        let labels = label::labels(spec, identity)?;
        let mut made = map::box_spec(spec, &identity.project)?;
        // Nobody removes the image until the sandbox is there, which keeps it.
        let mut _hold = None;
        if let Some((image, hold)) = self.image(&spec.image, &BTreeMap::new(), &|_| ()).await? {
            (made.image, _hold) = (Image::Oci(image), Some(hold));
        }
        let info = self.engine.create(&id.0, &made, &labels).await.map_err(map::error)?;
        let (forwards, links) = (map::forwards(spec), map::links(spec));
        if !forwards.is_empty() || !info.forwards.is_empty() {
            self.engine.set_forwards(&id.0, &forwards).await.map_err(map::error)?;
        }
        if !links.is_empty() || !info.links.is_empty() {
            self.engine.set_links(&id.0, &links).await.map_err(map::error)?;
        }
        self.engine.set_names(&id.0, &map::names(spec)).await.map_err(map::error)?;
        self.set_sockets(&id, spec).await?;
        Ok(id)
    }

    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        let missing = || ProviderError::NotFound { what: format!("sandbox {id}") };
        let info = self.engine.get(&id.0).await.map_err(map::error)?.ok_or_else(missing)?;
        // Another image needs another sandbox, so that it is the same here.
        let image = info.spec.image.clone();
        let wanted = BoxSpec { image, ..map::box_spec(spec, &identity.project)? };
        if info.spec.egress != wanted.egress {
            self.engine.set_egress(&id.0, wanted.egress.as_deref()).await.map_err(map::error)?;
        }
        if info.spec.lifetime != wanted.lifetime {
            self.engine.set_lifetime(&id.0, wanted.lifetime).await.map_err(map::error)?;
        }
        // What can change while it runs is set apart, and what is made in memory at a start comes with the next.
        let live = BoxSpec {
            egress: wanted.egress.clone(),
            limits: wanted.limits,
            lifetime: wanted.lifetime,
            run_dirs: wanted.run_dirs.clone(),
            ..info.spec.clone()
        };
        if live != wanted {
            self.engine.reconfigure(&id.0, &wanted).await.map_err(map::error)?;
        }
        if wanted.limits != info.spec.limits || info.limits.is_some() {
            self.engine.set_limits(&id.0, &wanted.limits).await.map_err(map::error)?;
        }
        self.engine.set_forwards(&id.0, &map::forwards(spec)).await.map_err(map::error)?;
        self.engine.set_links(&id.0, &map::links(spec)).await.map_err(map::error)?;
        self.engine.set_names(&id.0, &map::names(spec)).await.map_err(map::error)?;
        self.set_sockets(id, spec).await?;
        // The token of the create stays: an interrupted one is settled by it.
        let mut labels = label::labels(spec, identity)?;
        if let Some(token) = info.labels.get(labels::INTENT) {
            labels.insert(labels::INTENT.to_owned(), token.clone());
        }
        self.engine.set_labels(&id.0, &labels).await.map_err(map::error)
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        self.engine.start(&id.0).await.map_err(map::error)
    }

    async fn pause(&self, id: &SandboxId) -> Result<(), ProviderError> {
        self.engine.pause(&id.0).await.map_err(map::error)
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        match self.engine.stop(&id.0, STOP_GRACE).await {
            Err(EngineError::NotRunning(_)) => Ok(()),
            other => other.map_err(map::error),
        }
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        self.engine.delete(&id.0).await.map_err(map::error)
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        Ok(Box::new(guest::LocalGuest::new(self.engine.clone(), id.clone())))
    }

    async fn disk_use(&self, id: &SandboxId) -> Result<Option<u64>, ProviderError> {
        self.engine.disk_use(&id.0).await.map(Some).map_err(map::error)
    }

    fn volumes(&self) -> Option<&dyn Volumes> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(self)
    }

    fn bound_secrets(&self) -> Option<&dyn BoundSecrets> {
        Some(self)
    }

    fn egress(&self) -> Option<&dyn EgressLog> {
        Some(self)
    }
}

#[async_trait]
impl Snapshots for Local {
    async fn create_snapshot(
        &self,
        of: &SandboxId,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(labels::PROJECT).map_or("", String::as_str);
        let name = map::engine_snapshot(project, name);
        self.engine.create_snapshot(&name, &of.0, labels).await.map_err(map::error)?;
        Ok(())
    }

    async fn delete_snapshot(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        self.engine.delete_snapshot(&map::engine_snapshot(project, name)).await.map_err(map::error)
    }

    async fn export_snapshot(
        &self,
        project: &str,
        name: &str,
        target: &str,
    ) -> Result<String, ProviderError> {
        let (name, target) = (map::engine_snapshot(project, name), map::reference(target)?);
        let digest = self.engine.export_snapshot(&name, &target).await.map_err(map::error)?;
        Ok(digest.to_string())
    }
}

#[async_trait]
impl BoundSecrets for Local {
    async fn bind(&self, id: &SandboxId, values: &[BoundValue]) -> Result<(), ProviderError> {
        let values = values.iter().map(|BoundValue { name, digest, value }| engine::BoundValue {
            name: name.clone(),
            digest: digest.clone(),
            value: value.expose().into(),
        });
        self.engine.bind(&id.0, &values.collect::<Vec<_>>()).await.map_err(map::error)
    }
}

#[async_trait]
impl EgressLog for Local {
    async fn attempts(&self, id: &SandboxId) -> Result<Vec<EgressAttempt>, ProviderError> {
        let attempts = self.engine.egress_attempts(&id.0).await.map_err(map::error)?;
        Ok(attempts.into_iter().map(map::attempt).collect())
    }
}

#[async_trait]
impl Volumes for Local {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(labels::PROJECT).map_or("", String::as_str);
        self.engine.create_volume(&map::engine_volume(project, name), labels).await.map_err(map::error)?;
        Ok(())
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        self.engine.delete_volume(&map::engine_volume(project, name)).await.map_err(map::error)
    }
}
