//! Providers: where sandboxes live. The traits, the capability sheet, the errors and the registry.
//!
//! A provider translates [`Provider`] to one vendor's interface and nothing else; behaviour that two providers would share
//! belongs in `guest/` or `reconcile/`.

pub mod base;
mod budget;
mod capabilities;
mod daytona;
mod docker;
pub mod e2b;
mod error;
mod guest;
pub mod http;
mod kubernetes;
mod label;
#[cfg(target_os = "linux")]
mod local;
mod registry;
mod relay;
mod script;
mod service;
mod session;
mod settle;
pub mod sim;
mod socket;

use std::collections::BTreeMap;

use async_trait::async_trait;

pub use capabilities::{
    BASE_OTHER, Capabilities, ChangeClass, EGRESS_NAME, FieldSupport, IMAGE_COMMAND, IMAGE_FILE,
    ProviderSetting, Range, ResourceRanges, StopMeaning, Support,
};
pub use error::{GuestError, ProviderError};
pub use guest::{
    CapturedOutput, Command, ExecIo, ExitStatus, Guest, GuestStream, ImageDefaults, Input, Output, Pty,
    PtyRequest, Sink, capture,
};
pub use registry::{ProviderContext, Registry, builtin_capabilities};
pub use service::{Answer, Calls, Detour, Pattern, Service, Upstream};
pub use session::{Attached, SessionInfo, Sessions};

use crate::model::{
    EgressAttempt, Identity, Image, ObservedProvider, ObservedSandbox, OwnerId, SandboxId, SandboxSpec,
    labels,
};
use crate::secret::SecretValue;

/// Which objects a listing is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The project; `None` for those of every project.
    pub project: Option<String>,
    /// The store; `None` for those of every store.
    pub owner: Option<OwnerId>,
}

impl Owner {
    /// The labels that its objects carry.
    fn labels(&self) -> Vec<(&'static str, &str)> {
        let mut wanted = vec![(labels::MANAGED_BY, "pocketenv")];
        wanted.extend(self.project.as_deref().map(|project| (labels::PROJECT, project)));
        wanted.extend(self.owner.as_ref().map(|owner| (labels::OWNER, owner.0.as_str())));
        wanted
    }

    /// Whether an object with these labels is one of its.
    fn has(&self, found: &BTreeMap<String, String>) -> bool {
        self.labels().into_iter().all(|(name, value)| found.get(name).is_some_and(|found| found == value))
    }
}

/// The control plane: the reconciler's whole view of an engine or a cloud.
#[async_trait]
pub trait Provider: Send + Sync {
    /// What it can do, as data.
    fn capabilities(&self) -> &Capabilities;

    /// Everything that carries matching labels, sandboxes and volumes, in as few calls as the vendor allows (invariant 4).
    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError>;

    /// One sandbox by id, past any lag of the listing; `None` only if the provider says that it does not exist.
    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError>;

    /// Creates and starts a sandbox. Repeating the call with the same `identity.intent` returns the same sandbox.
    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError>;

    /// Brings an existing sandbox to `spec`: while it runs, the fields that the sheet calls live; while it is stopped, those that it calls restart
    /// too. Writes the identity's labels. Repeating it is harmless.
    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError>;

    /// Starts a stopped sandbox, and lets a paused one go on; already running is fine.
    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError>;

    /// Freezes what runs in a sandbox, where it stands and with its memory; already paused is fine. Only where the sheet says that there is
    /// such a thing.
    async fn pause(&self, _id: &SandboxId) -> Result<(), ProviderError> {
        let message = format!("provider `{}` cannot pause a sandbox", self.capabilities().provider);
        Err(ProviderError::Unsupported { message })
    }

    /// Stops a running sandbox; already stopped is fine.
    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError>;

    /// Deletes a sandbox and waits until the provider confirms; absent already is fine.
    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError>;

    /// The inside of a running sandbox.
    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError>;

    /// The bytes on the disk that a sandbox takes by itself; `None` where the provider does not tell. It may take a while.
    async fn disk_use(&self, _id: &SandboxId) -> Result<Option<u64>, ProviderError> {
        Ok(None)
    }

    /// Managed volumes, where the vendor has them.
    fn volumes(&self) -> Option<&dyn Volumes> {
        None
    }

    /// Snapshots, where the vendor has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// The images that it keeps, where it pulls them itself.
    fn images(&self) -> Option<&dyn Images> {
        None
    }

    /// The service that it speaks to over HTTP, where there is one.
    fn service(&self) -> Option<&dyn Service> {
        None
    }

    /// Secrets bound to hosts, where it can bind them.
    fn bound_secrets(&self) -> Option<&dyn BoundSecrets> {
        None
    }

    /// The account of outbound connections, where the provider decides on them itself.
    fn egress(&self) -> Option<&dyn EgressLog> {
        None
    }
}

/// The value of a secret that is bound to hosts.
#[derive(Clone, Debug)]
pub struct BoundValue {
    /// The secret's name.
    pub name: String,
    /// The keyed digest of the value, by which [`ObservedSandbox::bound`] tells that it is there.
    pub digest: String,
    /// The value.
    pub value: SecretValue,
}

/// Secrets that the way out of a sandbox puts into requests, see `SandboxSpec::bound`: an optional power of a provider.
#[async_trait]
pub trait BoundSecrets: Send + Sync {
    /// Gives the way out of a running sandbox these values, in memory, in place of all that it had.
    async fn bind(&self, id: &SandboxId, values: &[BoundValue]) -> Result<(), ProviderError>;
}

/// What sandboxes tried to reach: an optional power of a provider.
#[async_trait]
pub trait EgressLog: Send + Sync {
    /// What one sandbox tried to reach, by destination. The account may be bounded; the newest stay.
    async fn attempts(&self, id: &SandboxId) -> Result<Vec<EgressAttempt>, ProviderError>;
}

/// Snapshots of sandboxes: an optional power of a provider. A sandbox starts from one by `snapshot` in its spec.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Keeps the files of a sandbox as they are at one moment, under a name of the labels' project. One that exists is never written over:
    /// [`ProviderError::AlreadyExists`].
    async fn create_snapshot(
        &self,
        of: &SandboxId,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError>;

    /// Deletes a snapshot of a project; absent already is fine. What sandboxes are made from stays: [`ProviderError::Invalid`].
    async fn delete_snapshot(&self, project: &str, name: &str) -> Result<(), ProviderError>;

    /// Writes a snapshot of a project as an OCI image into files of this machine, `oci:DIR[:NAME]` or `oci-archive:FILE[:NAME]`, which are not
    /// there yet. The digest of the image.
    async fn export_snapshot(
        &self,
        _project: &str,
        _name: &str,
        _target: &str,
    ) -> Result<String, ProviderError> {
        Err(ProviderError::Unsupported {
            message: "this provider cannot write a snapshot as an image".to_owned(),
        })
    }
}

/// Who hears, in lines, how far something is.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Images that a provider keeps for itself: an optional power of a provider.
#[async_trait]
pub trait Images: Send + Sync {
    /// From now on sandboxes are made from these digests where these references, which have none themselves, are asked for.
    fn pin(&self, digests: BTreeMap<String, String>);

    /// References without a digest that an image depends on: its own, or those that its build begins with and copies from.
    fn sources(&self, image: &Image) -> Result<Vec<String>, ProviderError>;

    /// The digest that a reference stands for; `None` where it was not pulled yet.
    async fn digest(&self, reference: &str) -> Result<Option<String>, ProviderError>;

    /// Brings an image here, building it where it has to be built with these secrets by what its Containerfile calls them, and says in lines how
    /// far it is. A create finds it then.
    async fn bring(
        &self,
        image: &Image,
        secrets: &BTreeMap<String, SecretValue>,
        say: Say<'_>,
    ) -> Result<(), ProviderError>;
}

/// Managed volumes: an optional power of a provider.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// Creates a volume for the identity's project; one that exists with the same project and name is fine.
    async fn create_volume(&self, name: &str, labels: &BTreeMap<String, String>)
    -> Result<(), ProviderError>;

    /// Deletes a volume of a project with its data; absent already is fine.
    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError>;
}
