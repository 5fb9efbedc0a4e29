//! The networks of a project: one that leads out, and a shut one for `egress: deny`.
//!
//! The shut one is a bridge like the other whose way out is an address that nobody has, and which Docker translates for nobody. Docker's own `internal`
//! networks publish no ports.

use std::collections::HashMap;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters as query;

use super::{Docker, Labels, map};
use crate::model::{NetworkMode, SandboxSpec, labels};
use crate::provider::ProviderError;

/// The address that containers of a network take as their way out, as the bridge driver calls it.
const WAY_OUT: &str = "DefaultGatewayIPv4";
/// Whether the bridge driver lends containers the address of the machine.
const TRANSLATES: &str = "com.docker.network.bridge.enable_ip_masquerade";

impl Docker {
    /// Ids of the networks of this name: to Docker names of networks are not unique.
    async fn networks_named(&self, name: &str) -> Result<Vec<String>, ProviderError> {
        let filters = HashMap::from([("name".to_owned(), vec![name.to_owned()])]);
        let options = query::ListNetworksOptionsBuilder::new().filters(&filters).build();
        let found =
            self.call("list networks", async |client| client.list_networks(Some(options)).await).await?;
        let same = found.into_iter().filter(|network| network.name.as_deref() == Some(name));
        Ok(same.filter_map(|network| network.id).collect())
    }

    /// Has the network of a project, or its shut one, be there.
    pub(super) async fn ensure_network(&self, project: &str, shut: bool) -> Result<(), ProviderError> {
        let _one = self.making.lock().await;
        let name = map::network_name(project, shut);
        for found in self.networks_named(&name).await? {
            if !shut || leads_nowhere(&self.addresses(&found).await?) {
                return Ok(());
            }
            self.remove_network(&found).await?;
        }
        let labels = Labels::from([
            (labels::MANAGED_BY.to_owned(), "pocketenv".to_owned()),
            (labels::PROJECT.to_owned(), project.to_owned()),
        ]);
        let mut wanted = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".to_owned()),
            labels: Some(labels),
            ..Default::default()
        };
        if shut {
            wanted.enable_ipv6 = Some(false);
            wanted.options = Some(HashMap::from([(TRANSLATES.to_owned(), "false".to_owned())]));
            wanted.ipam = Some(self.dead_end(&wanted).await?);
        }
        let doing = format!("create network {name}");
        let made = match self.call(&doing, async |client| client.create_network(wanted).await).await {
            Ok(made) => made.id,
            Err(ProviderError::AlreadyExists { .. }) => return Ok(()),
            // Between the two calls somebody else got these addresses.
            Err(ProviderError::Unauthorised { message }) if shut && message.contains("overlaps") => {
                return Err(ProviderError::Transient { message, source: None });
            }
            Err(error) => return Err(error),
        };
        if shut && !leads_nowhere(&self.addresses(&made).await?) {
            self.remove_network(&made).await?;
            let message =
                format!("cannot {doing}: this daemon makes no network without a way out; remove `egress`");
            return Err(ProviderError::Unsupported { message });
        }
        // Another process may have made one at the same moment; of two the same one stays, whoever looks.
        match self.networks_named(&name).await?.into_iter().min() {
            Some(first) if first != made => self.remove_network(&made).await,
            _ => Ok(()),
        }
    }

    /// The addresses that Docker would choose for a network, with a way out that leads nowhere. It is asked by making such a network: the way out can be
    /// said only together with the addresses.
    async fn dead_end(&self, wanted: &NetworkCreateRequest) -> Result<Ipam, ProviderError> {
        let doing = format!("find addresses for network {}", wanted.name);
        let made = self.call(&doing, async |client| client.create_network(wanted.clone()).await).await?.id;
        let chosen = self.addresses(&made).await;
        self.remove_network(&made).await?;
        let chosen = chosen?.into_iter().find_map(|mut config| {
            let nobody = map::last_address(config.subnet.as_deref()?)?.to_string();
            config.auxiliary_addresses = Some(HashMap::from([(WAY_OUT.to_owned(), nobody)]));
            Some(config)
        });
        let config = chosen.ok_or_else(|| ProviderError::Unsupported {
            message: format!("cannot {doing}: this daemon tells no IPv4 addresses of it; remove `egress`"),
        })?;
        Ok(Ipam { config: Some(vec![config]), ..Ipam::default() })
    }

    async fn addresses(&self, id: &str) -> Result<Vec<IpamConfig>, ProviderError> {
        let doing = format!("look at network {id}");
        let found = self.call(&doing, async |client| client.inspect_network(id, None).await).await?;
        Ok(found.ipam.and_then(|ipam| ipam.config).unwrap_or_default())
    }

    async fn remove_network(&self, id: &str) -> Result<(), ProviderError> {
        let doing = format!("remove network {id}");
        match self.call(&doing, async |client| client.remove_network(id).await).await {
            Ok(()) | Err(ProviderError::NotFound { .. }) => Ok(()),
            // Somebody put something else into it.
            Err(ProviderError::Unauthorised { message } | ProviderError::AlreadyExists { what: message }) => {
                tracing::warn!("{message}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the project's networks if no container of the project is left.
    pub(super) async fn release_networks(&self, project: &str) -> Result<(), ProviderError> {
        let _alone = self.networks.write().await;
        if !self.containers_of(Some(project)).await?.is_empty() {
            return Ok(());
        }
        for shut in [false, true] {
            for id in self.networks_named(&map::network_name(project, shut)).await? {
                self.remove_network(&id).await?;
            }
        }
        Ok(())
    }

    /// Those with a way out and those without do not reach each other: they are in different networks.
    pub(super) async fn check_links(&self, spec: &SandboxSpec, project: &str) -> Result<(), ProviderError> {
        if spec.network.mode != NetworkMode::Isolated || spec.links.is_empty() {
            return Ok(());
        }
        let other = map::network_name(project, !map::is_shut(&spec.network));
        for container in self.containers_of(Some(project)).await? {
            let network = container.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
            let address = container.labels.as_ref().and_then(|found| found.get(labels::ADDRESS));
            let name = address.and_then(|address| address.strip_prefix("sandbox/"));
            let linked = name.filter(|name| spec.links.iter().any(|link| link.to.sandbox == **name));
            if let Some(name) = linked.filter(|_| network == Some(&*other)) {
                return Err(ProviderError::Invalid {
                    message: format!(
                        "sandbox `{name}` is not reached from here: at Docker, sandboxes with `egress: deny` and those without are in different networks; write the same `egress` for both"
                    ),
                });
            }
        }
        Ok(())
    }
}

/// Whether containers of a network with these addresses have no way out.
fn leads_nowhere(addresses: &[IpamConfig]) -> bool {
    addresses
        .iter()
        .any(|config| config.auxiliary_addresses.as_ref().is_some_and(|others| others.contains_key(WAY_OUT)))
}
