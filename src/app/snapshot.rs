//! Snapshots of sandboxes, and forks: sandboxes like another one that start from its files.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::inside::closest;
use super::{Error, LEASE_TTL, LEASE_WAIT, Project};
use crate::model::{
    Address, Desired, Identity, Image, Observation, RunState, SandboxSpec, Timestamp, labels, with_causes,
};
use crate::provider::{Owner, Provider, ProviderError, Snapshots};
use crate::store::Holder;

/// The longest name of a snapshot.
const MAX_NAME: usize = 63;
/// The most forks at once.
pub const MAX_FORKS: u32 = 100;

/// A snapshot of the project.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// Its name, as in `snapshot:`.
    pub name: String,
    /// Where it is.
    pub provider: String,
    /// The provider's id.
    pub id: String,
    /// The sandbox that it was made of.
    pub of: String,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// The bytes that it takes by itself, where the provider tells.
    pub bytes: Option<u64>,
    /// What is made from it, by the provider's ids.
    pub used_by: Vec<String>,
    /// It was made for forks, and `gc` removes it when none is left.
    pub for_forks: bool,
}

/// What a fork is like, and what it starts from.
#[derive(Clone, Debug)]
pub(super) struct Fork {
    pub(super) of: String,
    snapshot: String,
}

impl Project<'_> {
    /// The snapshots of the project, by name, and the providers that could not be asked.
    pub async fn snapshots(&self) -> Result<(Vec<Snapshot>, BTreeMap<String, String>), Error> {
        let mut found = Vec::new();
        let mut unavailable = BTreeMap::new();
        let owner = Owner { project: Some(self.name.clone()), owner: None };
        for (provider, opened) in self.registry.iter().filter(|(_, opened)| opened.snapshots().is_some()) {
            match opened.list(&owner).await {
                Err(error) => {
                    unavailable.insert(provider.to_owned(), with_causes(&error));
                }
                Ok(listing) => found.extend(listing.snapshots.into_iter().filter_map(|(id, snapshot)| {
                    let label = |name| snapshot.labels.get(name).map(String::as_str);
                    Some(Snapshot {
                        name: label(labels::ADDRESS)?.strip_prefix("snapshot/")?.to_owned(),
                        provider: provider.to_owned(),
                        id,
                        of: label(labels::SNAPSHOT_OF).unwrap_or_default().to_owned(),
                        created_at: snapshot.created_at,
                        bytes: snapshot.bytes,
                        for_forks: label(labels::FOR_FORKS) == Some("true"),
                        used_by: snapshot.used_by,
                    })
                })),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((found, unavailable))
    }

    /// Keeps the files of a sandbox under a name.
    pub async fn take_snapshot(&self, sandbox: &str, name: &str) -> Result<(), Error> {
        self.take(sandbox, name, false).await.map(drop)
    }

    async fn take(&self, sandbox: &str, name: &str, for_forks: bool) -> Result<String, Error> {
        check_name(name)?;
        let (of, provider, id, _) = self.locate(sandbox).await?;
        let opened = self.provider(&provider)?;
        let failed = |source| Error::Provider { provider: provider.clone(), source };
        let snapshots = power(opened).map_err(failed)?;
        let identity = Identity {
            project: self.name.clone(),
            address: Address::Snapshot(name.to_owned()),
            owner: self.store.owner().clone(),
            spec_hash: SandboxSpec::default().hash(),
            generation: 1,
            intent: self.app.environment().ids.fresh(),
            expires_at: None,
        };
        let mut carried = identity.to_labels();
        carried.insert(labels::SNAPSHOT_OF.to_owned(), Address::Sandbox(of.clone()).to_string());
        if for_forks {
            carried.insert(labels::FOR_FORKS.to_owned(), "true".to_owned());
        }
        let holder = Holder::current(format!("{} snapshot", self.app.environment().actor));
        let lease = self.store.acquire(&self.name, holder, LEASE_TTL, LEASE_WAIT).await?;
        let made = snapshots.create_snapshot(&id, name, &carried).await;
        lease.release().await?;
        made.map_err(failed)?;
        Ok(of)
    }

    /// Deletes a snapshot. One that does not exist is an error: the name may be mistyped.
    pub async fn remove_snapshot(&self, name: &str) -> Result<(), Error> {
        let snapshot = self.find_snapshot(name).await?;
        let failed = |source| Error::Provider { provider: snapshot.provider.clone(), source };
        let snapshots = power(self.provider(&snapshot.provider)?).map_err(failed)?;
        snapshots.delete_snapshot(&self.name, &snapshot.name).await.map_err(failed)
    }

    /// Writes a snapshot as an OCI image into files of this machine, `oci:DIR[:NAME]` or `oci-archive:FILE[:NAME]`. The digest of the image.
    pub async fn export_snapshot(&self, name: &str, target: &str) -> Result<String, Error> {
        let snapshot = self.find_snapshot(name).await?;
        let failed = |source| Error::Provider { provider: snapshot.provider.clone(), source };
        let snapshots = power(self.provider(&snapshot.provider)?).map_err(failed)?;
        snapshots.export_snapshot(&self.name, &snapshot.name, target).await.map_err(failed)
    }

    async fn find_snapshot(&self, name: &str) -> Result<Snapshot, Error> {
        let (found, unavailable) = self.snapshots().await?;
        if let Some(snapshot) = found.iter().find(|snapshot| snapshot.name == name || snapshot.id == name) {
            return Ok(snapshot.clone());
        }
        if let Some((provider, reason)) = unavailable.into_iter().next() {
            let source = ProviderError::Transient { message: reason, source: None };
            return Err(Error::Provider { provider, source });
        }
        let names: Vec<String> = found.into_iter().map(|snapshot| snapshot.name).collect();
        Err(Error::Unknown {
            kind: "snapshot",
            name: name.to_owned(),
            project: self.name.clone(),
            close: closest(name, &names),
        })
    }

    /// Takes a snapshot of a declared sandbox and declares, for this opening of the project, so many sandboxes like it that start from it. Their
    /// names.
    pub async fn fork(&mut self, sandbox: &str, count: u32) -> Result<Vec<String>, Error> {
        let recorded = self.store.recorded(&self.name).await?;
        let (of, ..) = self.locate(sandbox).await?;
        let declared = match &self.manifest {
            Some(manifest) => super::project::resolve(manifest, &BTreeMap::new())?.desired.sandboxes,
            None => BTreeMap::new(),
        };
        if !declared.contains_key(&of) {
            let message =
                format!("only a sandbox that the manifest declares can be forked, and `{of}` is not");
            return Err(Error::Refused { message });
        }
        let listings = self.listings(&recorded).await;
        let mut taken: BTreeSet<String> =
            declared.into_keys().chain(recorded.sandboxes.into_keys()).collect();
        for (provider, listing) in &listings {
            let found = match listing {
                Observation::Complete(found) => found.sandboxes.values(),
                // A name may be taken there.
                Observation::Unavailable { reason } => {
                    let source = ProviderError::Transient { message: reason.clone(), source: None };
                    return Err(Error::Provider { provider: provider.clone(), source });
                }
            };
            let names = found.filter_map(|s| s.labels.get(labels::ADDRESS)?.strip_prefix("sandbox/"));
            taken.extend(names.map(str::to_owned));
        }
        let token = self.app.environment().ids.fresh().0;
        let token: String = token.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        let snapshot = format!("{of}-fork-{token}");
        let of = self.take(sandbox, &snapshot, true).await?;
        let free = (1..).map(|n| format!("{of}-fork-{n}")).filter(|name| !taken.contains(name));
        let names: Vec<String> = free.take(count.min(MAX_FORKS) as usize).collect();
        for name in &names {
            self.forks.insert(name.clone(), Fork { of: of.clone(), snapshot: snapshot.clone() });
        }
        Ok(names)
    }

    /// Adds the forks to what is declared. A fork is what its parent is, but for its name, its files and its addresses; it depends on nothing, since
    /// what its parent depends on is there.
    pub(super) fn add_forks(&self, desired: &mut Desired) {
        for (name, fork) in &self.forks {
            let Some(parent) = desired.sandboxes.get(&fork.of) else { continue };
            let mut sandbox = parent.clone();
            sandbox.spec.image = Image::Snapshot(fork.snapshot.clone());
            sandbox.spec.hostname = name.replace('_', "-");
            sandbox.spec.ports.values_mut().for_each(|port| port.host_port = None);
            sandbox.spec.sockets.values_mut().for_each(|socket| socket.host_path = None);
            sandbox.state = RunState::Running;
            sandbox.depends_on.clear();
            sandbox.protect = false;
            desired.sandboxes.insert(name.clone(), sandbox);
        }
    }
}

fn power(provider: &dyn Provider) -> Result<&dyn Snapshots, ProviderError> {
    let message = || format!("`{}` does not make snapshots", provider.capabilities().provider);
    provider.snapshots().ok_or_else(|| ProviderError::Unsupported { message: message() })
}

/// Names become names at the provider, next to the project's.
fn check_name(name: &str) -> Result<(), Error> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.len() <= MAX_NAME && name.chars().all(legal) {
        return Ok(());
    }
    let message = format!(
        "`{}` cannot be the name of a snapshot: 1 to {MAX_NAME} letters, digits, `-` and `_`, beginning with a letter or digit",
        name.escape_debug()
    );
    Err(Error::Refused { message })
}
