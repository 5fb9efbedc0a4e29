//! `gc`: what carries our labels at a provider and nobody accounts for; and `state rm`: taking something out of the record.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{App, Error, LEASE_TTL, LEASE_WAIT, Project};
use crate::manifest::Manifest;
use crate::model::with_causes;
use crate::model::{Address, Identity, ObservedSnapshot, OwnerId, Recorded, SandboxId, Timestamp, labels};
use crate::provider::{Owner, Provider, ProviderError, Registry, builtin_capabilities};
use crate::store::{Change, Store};

/// What `gc` found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Orphans {
    /// Objects that nobody accounts for, by provider and id.
    pub orphans: Vec<Orphan>,
    /// Providers that could not be asked, with their reasons: what they hold is not known.
    pub unavailable: BTreeMap<String, String>,
}

/// An object that carries our labels and that nobody accounts for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Orphan {
    /// Where it is.
    pub provider: String,
    /// The provider's id of a sandbox, or the name of a volume.
    pub id: String,
    /// The project, by its label.
    pub project: String,
    /// The resource, by its label.
    pub address: String,
    /// The store that owns it, by its label.
    pub owner: String,
    /// When it was created, by the provider's clock.
    pub created_at: Option<Timestamp>,
    /// Why it is an orphan.
    pub why: Why,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
}

/// Why an object is an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// This store made it and does not know it any more.
    Forgotten,
    /// The record has another object for the same resource.
    Duplicate,
    /// Another store made it; it may be in use there.
    ForeignStore,
    /// It was made for forks, and none is left.
    Unused,
    /// Its labels cannot be read.
    Unreadable,
}

impl Why {
    /// The reason in one line.
    pub fn text(self) -> &'static str {
        match self {
            Self::Forgotten => "this store made it and does not know it any more",
            Self::Duplicate => "the record has another one for the same resource",
            Self::ForeignStore => "another store made it, and it may be in use there",
            Self::Unused => "it was made for forks, and none of them is left",
            Self::Unreadable => "its labels cannot be read",
        }
    }

    /// Whether collecting it cannot take anything from anybody.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Forgotten | Self::Duplicate | Self::Unused)
    }
}

impl App {
    /// Every provider of this build that can be opened here, with the settings of a manifest if there is one. One that has no address or credential
    /// is left out: nothing was made there from here.
    pub(super) async fn configured(&self, manifest: Option<&Manifest>) -> Result<Registry, Error> {
        let mut registry = Registry::default();
        for sheet in builtin_capabilities() {
            let set_up = self.setup(sheet, manifest).await?;
            if set_up.iter().any(|one| one.setting.required && one.from.is_none()) {
                continue;
            }
            match self.registry(&BTreeSet::from([sheet.provider.to_owned()]), manifest).await {
                Ok(opened) => {
                    opened.iter().for_each(|(name, provider)| registry.insert(name, provider.clone()))
                }
                Err(Error::Provider { source: ProviderError::Invalid { .. }, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(registry)
    }

    /// Looks for orphans at every configured provider.
    pub async fn orphans(&self, store: &Store, manifest: Option<&Manifest>) -> Result<Orphans, Error> {
        let registry = self.configured(manifest).await?;
        let known = Known::read(store).await?;
        let mut found = Orphans { orphans: Vec::new(), unavailable: BTreeMap::new() };
        for (name, provider) in registry.iter() {
            match provider.list(&Owner { project: None, owner: None }).await {
                Err(error) => {
                    found.unavailable.insert(name.to_owned(), with_causes(&error));
                }
                Ok(listing) => {
                    for (id, sandbox) in listing.sandboxes {
                        let orphan = known.judge(name, &id.0, &sandbox.labels, sandbox.created_at);
                        found.orphans.extend(orphan);
                    }
                    for (id, observed) in listing.snapshots {
                        found.orphans.extend(known.judge_snapshot(name, &id, &observed));
                    }
                    for (volume, observed) in listing.volumes {
                        let orphan = known.judge(name, &volume, &observed.labels, observed.created_at);
                        found.orphans.extend(orphan);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Deletes one orphan, unless somebody accounts for it by now.
    pub async fn collect(
        &self,
        store: &Store,
        manifest: Option<&Manifest>,
        orphan: &Orphan,
    ) -> Result<(), Error> {
        let registry = self.registry(&BTreeSet::from([orphan.provider.clone()]), manifest).await?;
        let failed = |source| Error::Provider { provider: orphan.provider.clone(), source };
        let Some(provider) = registry.get(&orphan.provider) else { return Ok(()) };
        // A run of the project may be adopting it at this moment: its lease is taken, so that only one of us acts.
        let holder = crate::store::Holder::current(format!("{} gc", self.environment().actor));
        let lease = store.acquire(&orphan.project, holder, LEASE_TTL, LEASE_WAIT).await?;
        let known = Known::read(store).await?;
        let result = match known.judge(&orphan.provider, &orphan.id, &orphan.labels, orphan.created_at) {
            None => Ok(()),
            Some(_) => delete(provider.as_ref(), orphan).await.map_err(failed),
        };
        lease.release().await?;
        result
    }
}

async fn delete(provider: &dyn Provider, orphan: &Orphan) -> Result<(), ProviderError> {
    match orphan.address.parse::<Address>() {
        Ok(Address::Volume(name)) => match provider.volumes() {
            Some(volumes) => volumes.delete_volume(&orphan.project, &name).await,
            None => Ok(()),
        },
        Ok(Address::Snapshot(name)) => match provider.snapshots() {
            Some(snapshots) => snapshots.delete_snapshot(&orphan.project, &name).await,
            None => Ok(()),
        },
        _ => provider.delete(&SandboxId(orphan.id.clone())).await,
    }
}

/// What the store accounts for.
struct Known {
    owner: OwnerId,
    projects: BTreeMap<String, Recorded>,
}

impl Known {
    async fn read(store: &Store) -> Result<Self, Error> {
        let mut projects = BTreeMap::new();
        for project in store.projects().await? {
            let recorded = store.recorded(&project.name).await?;
            projects.insert(project.name, recorded);
        }
        Ok(Self { owner: store.owner().clone(), projects })
    }

    /// The snapshot as an orphan; `None` if something is made from it, or somebody keeps it.
    fn judge_snapshot(&self, provider: &str, id: &str, found: &ObservedSnapshot) -> Option<Orphan> {
        if !found.used_by.is_empty() {
            return None;
        }
        let orphan = self.judge(provider, id, &found.labels, found.created_at)?;
        let for_forks = found.labels.get(labels::FOR_FORKS).is_some_and(|value| value == "true");
        match orphan.why {
            Why::Forgotten if for_forks => Some(Orphan { why: Why::Unused, ..orphan }),
            // Snapshots are no resources: what a project that is known has made is there because somebody wants it.
            Why::Forgotten if self.projects.contains_key(&orphan.project) => None,
            _ => Some(orphan),
        }
    }

    /// The object as an orphan; `None` if somebody accounts for it.
    fn judge(
        &self,
        provider: &str,
        id: &str,
        found: &BTreeMap<String, String>,
        created_at: Option<Timestamp>,
    ) -> Option<Orphan> {
        let label = |name: &str| found.get(name).cloned().unwrap_or_default();
        let why = match Identity::from_labels(found) {
            Ok(None) => return None,
            Err(_) => Why::Unreadable,
            Ok(Some(identity)) => {
                let recorded = self.projects.get(&identity.project);
                let interrupted = |r: &Recorded| r.intents.iter().any(|i| i.id == identity.intent);
                let other = recorded.and_then(|r| match &identity.address {
                    Address::Volume(name) => Some(r.volumes.get(name)?.provider == provider),
                    address => {
                        let sandbox = r.sandboxes.get(address.sandbox()?)?;
                        Some(sandbox.id.0 == id && sandbox.provider == provider)
                    }
                });
                match other {
                    Some(true) => return None,
                    _ if recorded.is_some_and(interrupted) => return None,
                    Some(false) if identity.owner == self.owner => Why::Duplicate,
                    None if identity.owner == self.owner => Why::Forgotten,
                    _ => Why::ForeignStore,
                }
            }
        };
        Some(Orphan {
            provider: provider.to_owned(),
            id: id.to_owned(),
            project: label(labels::PROJECT),
            address: label(labels::ADDRESS),
            owner: label(labels::OWNER),
            created_at,
            why,
            labels: found.clone(),
        })
    }
}

impl Project<'_> {
    /// Takes a sandbox or volume out of the record and leaves the object alone. While its labels say that it is ours, the next `apply` adopts it
    /// again if it is declared, and `gc` finds it if it is not.
    pub async fn forget(&self, address: &Address) -> Result<(), Error> {
        let recorded = self.store.recorded(&self.name).await?;
        let known = match address {
            Address::Volume(name) => recorded.volumes.contains_key(name),
            Address::Sandbox(name) => recorded.sandboxes.contains_key(name),
            _ => false,
        };
        if !known {
            return Err(Error::Unknown {
                kind: "record",
                name: address.to_string(),
                project: self.name.clone(),
                close: None,
            });
        }
        let holder = crate::store::Holder::current(format!("{} state rm", self.app.environment().actor));
        let lease = self.store.acquire(&self.name, holder, LEASE_TTL, LEASE_WAIT).await?;
        self.store.record(&self.name, vec![Change::Forget(address.clone())]).await?;
        Ok(lease.release().await?)
    }
}
