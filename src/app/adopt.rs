//! `import` and `state mv`: existing sandboxes come under a project, or under another name of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{App, Error, LEASE_TTL, LEASE_WAIT, Project};
use crate::manifest::Manifest;
use crate::model::{
    Address, Identity, Image, NetworkMode, ObservedSandbox, RecordedSandbox, SandboxSpec, SocketTarget,
    labels,
};
use crate::provider::{Owner, ProviderError};
use crate::store::{Change, Holder};

/// A sandbox found at a provider, for `import`.
#[derive(Clone, Debug)]
pub struct Found {
    /// The provider.
    pub provider: String,
    /// What the provider says of it.
    pub sandbox: ObservedSandbox,
}

impl Found {
    /// The name its labels give it, or one made of its id.
    pub fn name(&self) -> String {
        let label = self.sandbox.labels.get(labels::ADDRESS).and_then(|a| a.strip_prefix("sandbox/"));
        label.map_or_else(
            || {
                self.sandbox
                    .id
                    .0
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
                    .collect()
            },
            str::to_owned,
        )
    }

    /// The project its labels give it.
    pub fn project(&self) -> Option<&str> {
        self.sandbox.labels.get(labels::PROJECT).map(String::as_str)
    }
}

impl App {
    /// Sandboxes at the providers of this build, or at one of them; those with these ids only, if any are given. An id that is not found is an error.
    pub async fn found(
        &self,
        manifest: Option<&Manifest>,
        provider: Option<&str>,
        ids: &[String],
    ) -> Result<Vec<Found>, Error> {
        let registry = match provider {
            Some(name) => self.registry(&BTreeSet::from([name.to_owned()]), manifest).await?,
            None => self.configured(manifest).await?,
        };
        let mut found = Vec::new();
        for (name, provider) in registry.iter() {
            let listing = provider.list(&Owner { project: None, owner: None }).await;
            let listing = listing.map_err(|source| Error::Provider { provider: name.to_owned(), source })?;
            found.extend(
                listing.sandboxes.into_values().map(|sandbox| Found { provider: name.to_owned(), sandbox }),
            );
        }
        if ids.is_empty() {
            return Ok(found);
        }
        if let Some(missing) = ids.iter().find(|id| !found.iter().any(|f| f.sandbox.id.0 == **id)) {
            return Err(Error::Provider {
                provider: provider.unwrap_or("any").to_owned(),
                source: ProviderError::NotFound { what: format!("sandbox {missing}") },
            });
        }
        found.retain(|f| ids.contains(&f.sandbox.id.0));
        Ok(found)
    }
}

/// The manifest that declares these sandboxes, as far as their providers can read it back. What is inside them is not part of it.
pub fn manifest_of(project: &str, found: &[Found]) -> String {
    let mut text = format!("version: 1\nname: {project}\n\nsandboxes:\n");
    for one in found {
        let spec = one.sandbox.spec.clone().unwrap_or_default();
        let _ = writeln!(text, "  # {} at provider {}", one.sandbox.id, one.provider);
        let _ = writeln!(text, "  {}:\n    provider: {}", one.name(), one.provider);
        declare(&mut text, &spec);
        if one.sandbox.spec.is_none() {
            text.push_str(
                "    # the provider does not say what it was made from: complete this before `apply`\n",
            );
        }
    }
    text
}

/// A text as YAML reads it back, whatever is in it: JSON is YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn declare(text: &mut String, spec: &SandboxSpec) {
    match &spec.image {
        Image::Host => {}
        Image::Oci(image) => {
            let _ = writeln!(text, "    image: {image}");
        }
        Image::Base(base) => {
            let _ = writeln!(text, "    base: {base}");
        }
        Image::Snapshot(id) => {
            let _ = writeln!(text, "    snapshot: {id}");
        }
        Image::Build { context, .. } => {
            let _ = writeln!(text, "    build: {}", context.0.display());
        }
    }
    if !spec.hostname.is_empty() {
        let _ = writeln!(text, "    hostname: {}", spec.hostname);
    }
    match spec.network.mode {
        NetworkMode::Isolated => {}
        NetworkMode::Host => text.push_str("    network: host\n"),
        NetworkMode::None => text.push_str("    network: none\n"),
    }
    if !spec.mounts.is_empty() {
        text.push_str("    volumes:\n");
        for mount in &spec.mounts {
            let only = if mount.read_only { ", read_only: true" } else { "" };
            let _ = writeln!(text, "      - {{ name: {}, path: {}{only} }}", mount.volume, mount.path);
        }
    }
    if !spec.ports.is_empty() {
        text.push_str("    ports:\n");
        for (port, declared) in &spec.ports {
            let mut more = String::new();
            if let Some(host_port) = declared.host_port {
                let _ = write!(more, ", host_port: {host_port}");
            }
            if !declared.host_ip.is_loopback() {
                let _ = write!(more, ", host_ip: {}", declared.host_ip.address());
            }
            if declared.protocol.is_udp() {
                more.push_str(", protocol: udp");
            }
            let _ = match more.as_str() {
                "" => writeln!(text, "      - {port}"),
                more => writeln!(text, "      - {{ port: {port}{more} }}"),
            };
        }
    }
    if !spec.sockets.is_empty() {
        text.push_str("    sockets:\n");
        for (name, socket) in &spec.sockets {
            let to = match &socket.to {
                SocketTarget::Port(port) => port.to_string(),
                SocketTarget::Path(path) => quoted(path),
            };
            let _ = match &socket.host_path {
                None => writeln!(text, "      {name}: {to}"),
                Some(path) => {
                    let path = quoted(&path.to_string_lossy());
                    writeln!(text, "      {name}: {{ to: {to}, host_path: {path} }}")
                }
            };
        }
    }
}

impl Project<'_> {
    /// Takes an existing sandbox into this project under `name`: its labels and the record say so from now on. What differs from the manifest is
    /// then a change like any other.
    pub async fn adopt(&self, found: &Found, name: &str) -> Result<(), Error> {
        let holder = Holder::current(format!("{} import", self.app.environment().actor));
        let lease = self.store.acquire(&self.name, holder, LEASE_TTL, LEASE_WAIT).await?;
        let result = self.adopt_locked(found, name).await;
        lease.release().await?;
        result
    }

    async fn adopt_locked(&self, found: &Found, name: &str) -> Result<(), Error> {
        self.check_unclaimed(found).await?;
        let recorded = self.store.recorded(&self.name).await?;
        if let Some(other) = recorded.sandboxes.get(name).filter(|r| r.id != found.sandbox.id) {
            let message = format!(
                "sandbox `{name}` of this project is {} already; `pocketenv state rm sandbox/{name}` lets go of it",
                other.id
            );
            return Err(Error::Refused { message });
        }
        let record = RecordedSandbox {
            provider: found.provider.clone(),
            id: found.sandbox.id.clone(),
            spec: found.sandbox.spec.clone().unwrap_or_default(),
            guest: None,
            generation: 1,
            depends_on: BTreeSet::new(),
            state: found.sandbox.state.run_state(),
            created_at: self.app.environment().clock.now(),
        };
        self.claim(name, record).await
    }

    /// A sandbox that another project of this store has is that project's.
    async fn check_unclaimed(&self, found: &Found) -> Result<(), Error> {
        for project in self.store.projects().await? {
            if project.name == self.name {
                continue;
            }
            let recorded = self.store.recorded(&project.name).await?;
            let claimed = recorded
                .sandboxes
                .iter()
                .find(|(_, r)| r.id == found.sandbox.id && r.provider == found.provider);
            if let Some((name, _)) = claimed {
                let message = format!(
                    "{} belongs to project `{}` as sandbox `{name}`; `pocketenv -n {} state rm sandbox/{name}` lets go of it",
                    found.sandbox.id, project.name, project.name
                );
                return Err(Error::Refused { message });
            }
        }
        Ok(())
    }

    /// Writes labels and record.
    async fn claim(&self, name: &str, record: RecordedSandbox) -> Result<(), Error> {
        let environment = self.app.environment();
        let identity = Identity {
            project: self.name.clone(),
            address: Address::Sandbox(name.to_owned()),
            owner: self.store.owner().clone(),
            spec_hash: record.spec.hash(),
            generation: record.generation,
            intent: environment.ids.fresh(),
            expires_at: None,
        };
        let provider = &record.provider;
        let registry = self.app.registry(&BTreeSet::from([provider.clone()]), self.manifest.as_ref()).await?;
        let missing = || ProviderError::Unsupported { message: "this build does not have it".to_owned() };
        let failed = |source| Error::Provider { provider: provider.clone(), source };
        let opened = registry.get(provider).ok_or_else(|| failed(missing()))?;
        opened.update(&record.id, &record.spec, &identity).await.map_err(failed)?;
        let change = Change::PutSandbox { name: name.to_owned(), sandbox: Box::new(record) };
        self.store.record(&self.name, vec![change]).await?;
        Ok(())
    }

    /// Renames a sandbox in record and labels, so that a renamed declaration finds it instead of making another.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let holder = Holder::current(format!("{} state mv", self.app.environment().actor));
        let lease = self.store.acquire(&self.name, holder, LEASE_TTL, LEASE_WAIT).await?;
        let result = self.rename_locked(from, to).await;
        lease.release().await?;
        result
    }

    async fn rename_locked(&self, from: &str, to: &str) -> Result<(), Error> {
        let recorded = self.store.recorded(&self.name).await?;
        let names: Vec<String> = recorded.sandboxes.keys().cloned().collect();
        let Some(sandbox) = recorded.sandboxes.get(from) else {
            return Err(Error::Unknown {
                kind: "sandbox",
                name: from.to_owned(),
                project: self.name.clone(),
                close: super::inside::closest(from, &names),
            });
        };
        if recorded.sandboxes.contains_key(to) {
            return Err(Error::Refused { message: format!("there is a sandbox `{to}` already") });
        }
        // The new name is written first: interrupted in between, both names lead to the one sandbox, and the next plan settles on its label.
        self.claim(to, sandbox.clone()).await?;
        self.store.move_ports(&self.name, from, to).await?;
        self.store.record(&self.name, vec![Change::Forget(Address::Sandbox(from.to_owned()))]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::SocketSpec;

    #[test]
    fn paths_are_read_back_whatever_is_in_them() {
        let mut spec = SandboxSpec::default();
        let to = SocketTarget::Path("/run/a: #b".to_owned());
        let host_path = Some("/home/ann/{x}, y.sock".into());
        spec.sockets.insert("db".to_owned(), SocketSpec { to, host_path });
        let mut text = String::from("box:\n");
        declare(&mut text, &spec);
        let read: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let socket = serde_json::json!({ "to": "/run/a: #b", "host_path": "/home/ann/{x}, y.sock" });
        assert_eq!(read["box"]["sockets"]["db"], socket, "{text}");
    }
}
