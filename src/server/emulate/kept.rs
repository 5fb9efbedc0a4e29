//! What outlives sandboxes: snapshots and volumes. All that is remembered of them stands in their labels at the provider.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{CallError, Emulation, NewSandbox, Record, Sandbox, lock, record};
use crate::model::{
    Address, Egress, Identity, Image, NetworkMode, NetworkSpec, Resources, SandboxSpec, Timestamp, labels,
    with_causes,
};
use crate::provider::{Command, Guest, GuestError, Owner, ProviderError, Snapshots, Volumes, capture};

/// The label with the name that a program gave.
const NAME: &str = "pocketenv.io/emulated-name";
/// The label of a snapshot with what is set aside for sandboxes made from it, as JSON.
const RESOURCES: &str = "pocketenv.io/emulated-resources";
/// How long opening a directory may take.
const SHORT: Duration = Duration::from_secs(60);

/// A snapshot or a volume.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Its id, which is its name at the provider.
    pub id: String,
    /// The name that a program gave.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Of a snapshot, the sandbox that it was made of.
    pub of: Option<String>,
    /// Of a snapshot, the bytes that it takes.
    pub bytes: Option<u64>,
    /// Of a snapshot, what is set aside for a sandbox that is made from it: what was for the one that it was made of.
    pub resources: Resources,
    /// Of a snapshot, whether anything is made from it.
    in_use: bool,
    /// A snapshot that no program asked for: forks lie on it.
    hidden: bool,
}

impl Kept {
    fn new(kind: &str, found: &BTreeMap<String, String>, created_at: Option<Timestamp>) -> Option<Self> {
        let text = |name: &str| found.get(name).cloned();
        Some(Self {
            id: text(labels::ADDRESS)?.strip_prefix(kind)?.to_owned(),
            name: text(NAME),
            created_at: created_at.unwrap_or_default(),
            of: text(labels::SNAPSHOT_OF).and_then(|of| Some(of.strip_prefix("sandbox/")?.to_owned())),
            bytes: None,
            resources: text(RESOURCES).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
            in_use: false,
            hidden: text(labels::FOR_FORKS).is_some(),
        })
    }

    /// Whether a program means it by this.
    pub fn is(&self, wanted: &str) -> bool {
        self.id == wanted || self.name.as_deref() == Some(wanted)
    }
}

fn unsupported(what: &str) -> CallError {
    ProviderError::Unsupported { message: format!("the provider behind this emulator has no {what}") }.into()
}

impl Emulation {
    /// Everything at the provider that carries the labels.
    async fn everything(&self) -> Result<crate::model::ObservedProvider, ProviderError> {
        let owner = Owner { project: Some(self.options.project.clone()), owner: None };
        self.options.provider.list(&owner).await
    }

    fn labels(&self, address: Address, name: Option<&str>) -> BTreeMap<String, String> {
        let identity = Identity {
            project: self.options.project.clone(),
            address,
            owner: self.owner.clone(),
            spec_hash: SandboxSpec::default().hash(),
            generation: 1,
            intent: self.options.ids.fresh(),
            expires_at: None,
        };
        let mut labels = identity.to_labels();
        labels.extend(name.map(|name| (NAME.to_owned(), name.to_owned())));
        labels
    }

    fn power_of_snapshots(&self) -> Result<&dyn Snapshots, CallError> {
        self.options.provider.snapshots().ok_or_else(|| unsupported("snapshots"))
    }

    fn power_of_volumes(&self) -> Result<&dyn Volumes, CallError> {
        self.options.provider.volumes().ok_or_else(|| unsupported("volumes"))
    }

    async fn all_snapshots(&self) -> Result<Vec<Kept>, CallError> {
        let found = self.everything().await?.snapshots.into_values().filter_map(|snapshot| {
            let kept = Kept::new("snapshot/", &snapshot.labels, snapshot.created_at)?;
            Some(Kept { bytes: snapshot.bytes, in_use: !snapshot.used_by.is_empty(), ..kept })
        });
        let mut found: Vec<Kept> = found.collect();
        found.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(found)
    }

    /// The snapshots that programs asked for, the newest first.
    pub(super) async fn snapshots(&self) -> Result<Vec<Kept>, CallError> {
        let mut found = self.all_snapshots().await?;
        found.retain(|snapshot| !snapshot.hidden);
        Ok(found)
    }

    /// Keeps the files of a sandbox as they are now. `hidden` is for forks, and goes when the last of them has gone.
    pub(super) async fn take_snapshot(
        &self,
        sandbox: &Arc<Sandbox>,
        name: Option<&str>,
        hidden: bool,
    ) -> Result<Kept, CallError> {
        let record = self.observe(sandbox).await?;
        let _held = sandbox.change.lock().await;
        let of = record.provider_id.ok_or(CallError::NoSandbox(record.id.clone()))?;
        let id = record::sandbox_name();
        let mut carried = self.labels(Address::Snapshot(id.clone()), name);
        let resources = serde_json::to_string(&record.resources)
            .map_err(|error| ProviderError::permanent("limits cannot be kept as a label", error))?;
        carried.insert(RESOURCES.to_owned(), resources);
        carried.insert(labels::SNAPSHOT_OF.to_owned(), Address::Sandbox(record.id).to_string());
        if hidden {
            carried.insert(labels::FOR_FORKS.to_owned(), "true".to_owned());
        }
        self.power_of_snapshots()?.create_snapshot(&of, &id, &carried).await?;
        let made = self.all_snapshots().await?.into_iter().find(|snapshot| snapshot.id == id);
        made.ok_or_else(|| {
            let what = format!("snapshot {id}, which was made just now,");
            ProviderError::NotFound { what }.into()
        })
    }

    /// Deletes a snapshot; what something is made from stays, and is an error.
    pub(super) async fn remove_snapshot(&self, id: &str) -> Result<(), CallError> {
        Ok(self.power_of_snapshots()?.delete_snapshot(&self.options.project, id).await?)
    }

    /// The volumes, by name.
    pub(super) async fn volumes(&self) -> Result<Vec<Kept>, CallError> {
        let found = self.everything().await?.volumes.into_values();
        let found = found.filter_map(|volume| Kept::new("volume/", &volume.labels, volume.created_at));
        let mut found: Vec<Kept> = found.collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Makes a volume; `None` if there is one of this name.
    pub(super) async fn create_volume(&self, name: &str) -> Result<Option<Kept>, CallError> {
        // Two at once are not to have one name.
        let _held = self.naming.lock().await;
        if self.volumes().await?.iter().any(|volume| volume.name.as_deref() == Some(name)) {
            return Ok(None);
        }
        let id = record::sandbox_name();
        let carried = self.labels(Address::Volume(id.clone()), Some(name));
        self.power_of_volumes()?.create_volume(&id, &carried).await?;
        Ok(Kept::new("volume/", &carried, Some(self.now())))
    }

    /// Deletes a volume with its data.
    pub(super) async fn remove_volume(&self, id: &str) -> Result<(), CallError> {
        Ok(self.power_of_volumes()?.delete_volume(&self.options.project, id).await?)
    }

    /// The image that a name means, and the snapshot if it is one. `pulled` is a name that a registry may know.
    pub(super) async fn image(&self, name: &str, pulled: bool) -> Result<(Image, Option<Kept>), CallError> {
        let images = &self.options.images;
        if let Some(image) = images.get(name) {
            return Ok((image.clone(), None));
        }
        if pulled {
            return Ok((Image::Oci(name.to_owned()), None));
        }
        if self.options.provider.snapshots().is_some()
            && let Some(found) = self.all_snapshots().await?.into_iter().find(|snapshot| snapshot.is(name))
        {
            return Ok((Image::Snapshot(found.id.clone()), Some(found)));
        }
        match images.get("*") {
            Some(image) => Ok((image.clone(), None)),
            None => Err(CallError::NoImage(name.to_owned())),
        }
    }

    /// A network that leads to these destinations only; to none at all by whatever way the provider has.
    pub(super) fn confined(&self, allow: Vec<String>) -> Result<NetworkSpec, CallError> {
        let sheet = self.options.provider.capabilities();
        if sheet.honours(&["network", "egress"], Some("deny")) {
            return Ok(NetworkSpec { egress: Some(Egress::Deny), allow, ..NetworkSpec::default() });
        }
        if allow.is_empty() {
            return Ok(NetworkSpec { mode: NetworkMode::None, ..NetworkSpec::default() });
        }
        Err(unsupported("networks with exceptions"))
    }

    /// Changes what a sandbox reaches or what is set aside for it, while it runs.
    pub(super) async fn alter(
        &self,
        sandbox: &Arc<Sandbox>,
        change: impl FnOnce(&mut SandboxSpec) + Send,
    ) -> Result<(), CallError> {
        self.observe(sandbox).await?;
        let held = sandbox.change.lock().await;
        let record = sandbox.record();
        let id = record.provider_id.ok_or(CallError::NoSandbox(record.id.clone()))?;
        let found = self.options.provider.get(&id).await?.ok_or(CallError::NoSandbox(record.id))?;
        let identity = Identity::from_labels(&found.labels).ok().flatten();
        let (Some(mut spec), Some(identity)) = (found.spec, identity) else {
            let message = format!("sandbox {id} does not say what it was made from");
            return Err(ProviderError::Permanent { message, source: None }.into());
        };
        change(&mut spec);
        self.options.provider.update(&id, &spec, &identity).await?;
        {
            let mut record = lock(&sandbox.record);
            (record.network, record.resources) = (spec.network, spec.resources);
        }
        drop(held);
        Ok(self.save().await?)
    }

    /// Takes away the snapshot of forks that a sandbox, which is gone, lay on, if it was the last.
    pub(super) async fn release(&self, record: &Record) {
        let Some(id) = &record.snapshot else { return };
        let unused = async {
            let found = self.all_snapshots().await?;
            match found.iter().find(|snapshot| snapshot.id == *id) {
                Some(snapshot) if snapshot.hidden && !snapshot.in_use => self.remove_snapshot(id).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = unused.await {
            tracing::warn!(snapshot = id, error = with_causes(&error), "a snapshot of forks stays");
        }
    }

    /// Deletes every snapshot and volume, as far as that can be done; what cannot is said.
    pub(super) async fn remove_kept(&self) {
        let removed = async {
            // One may lie on another, which then goes in the next round.
            loop {
                let unused = self.all_snapshots().await?.into_iter().filter(|snapshot| !snapshot.in_use);
                let unused: Vec<Kept> = unused.collect();
                if unused.is_empty() {
                    break;
                }
                for snapshot in unused {
                    self.remove_snapshot(&snapshot.id).await?;
                }
            }
            for volume in self.volumes().await? {
                self.remove_volume(&volume.id).await?;
            }
            Ok::<_, CallError>(())
        };
        if let Err(error) = removed.await {
            tracing::error!(error = with_causes(&error), "snapshots and volumes could not be removed");
        }
    }
}

/// Lets every user inside write to the volumes of a new sandbox, as at the vendors, who know no owner of them.
pub(super) async fn open_volumes(guest: &dyn Guest, new: &NewSandbox) -> Result<(), GuestError> {
    let writable = new.spec.mounts.iter().filter(|mount| !mount.read_only).map(|mount| mount.path.clone());
    let mut arguments = vec!["chmod".to_owned(), "0777".to_owned()];
    arguments.extend(writable);
    if arguments.len() == 2 {
        return Ok(());
    }
    let mut command = Command::new(arguments);
    command.cwd = Some("/".to_owned());
    command.timeout = Some(SHORT);
    capture(guest, &command, &[], 1 << 10).await.map(drop)
}
