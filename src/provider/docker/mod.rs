//! The provider `docker`: sandboxes are containers of a Docker daemon, or of Podman's, which speaks the same interface.
//!
//! Everything carries labels: containers, volumes, the network of each project. A container runs one constant script as its first process
//! (`provider/script/init.sh`); what a sandbox does is put inside by the guest room, as at every provider.

mod api;
mod daemon;
mod guest;
mod image;
mod map;
mod network;
mod sheet;
mod snapshot;
mod stream;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker as Client;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as State, Volume, VolumeCreateRequest};
use bollard::query_parameters as query;
use tokio::sync::{Mutex, RwLock};
use tokio::time::{Instant, sleep};

pub use sheet::SHEET;

use self::api::Api;
use self::daemon::Daemon;
use self::guest::DockerGuest;
use super::http::timestamp;
use super::{
    Calls, Capabilities, Detour, Guest, Owner, Pattern, Provider, ProviderContext, ProviderError, Service,
    Snapshots, Volumes, label,
};
use crate::model::{
    Identity, Image, NetworkMode, ObservedProvider, ObservedSandbox, ObservedVolume, SandboxId, SandboxSpec,
    labels,
};

/// After which Docker kills the first process that was asked to stop, in seconds; by itself it ends after ten.
const STOP_LIMIT: i32 = 15;
/// How long a container may take to be gone.
const REMOVAL: Duration = Duration::from_secs(60);

/// What the kit recognises calls by.
static CALLS: Calls = Calls {
    list: &[Pattern("GET", "/containers/json")],
    // One is looked for by its name.
    get: &[Pattern("GET", "/containers/json")],
    create: &[Pattern("POST", "/containers/create")],
    delete: &[Pattern("DELETE", "/containers/*")],
    exec: &[Pattern("POST", "/exec/*/start")],
    retry_after: true,
    refusal: |_, message, _| serde_json::json!({ "message": message }).to_string(),
};

/// The provider `docker`.
pub struct Docker {
    api: Api,
    /// The network of a project is made before its first container and removed after its last one: whoever removes holds this alone.
    networks: RwLock<()>,
    /// One network is made at a time.
    making: Mutex<()>,
}

type Labels = HashMap<String, String>;

impl Docker {
    /// The provider at the daemon that the settings name. It is not asked anything yet.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] if there is no address, or none that can be; [`ProviderError::Unsupported`] if it is of a kind not spoken here.
    pub fn open(context: &ProviderContext) -> Result<Self, ProviderError> {
        let config = daemon::settings_dir(context).map(|dir| dir.join("config.json"));
        Ok(Self::at(Daemon::find(context)?, config))
    }

    fn at(daemon: Daemon, config: Option<PathBuf>) -> Self {
        Self { api: Api::new(daemon, config), networks: RwLock::default(), making: Mutex::default() }
    }

    async fn call<T>(
        &self,
        doing: &str,
        call: impl AsyncFnOnce(&Client) -> Result<T, bollard::errors::Error>,
    ) -> Result<T, ProviderError> {
        let client = self.api.client().await?;
        call(client).await.map_err(|error| self.api.error(doing, error))
    }

    /// Containers that a filter finds, whatever they do.
    async fn containers(
        &self,
        filters: &HashMap<&str, Vec<String>>,
    ) -> Result<Vec<ContainerSummary>, ProviderError> {
        let filters: HashMap<String, Vec<String>> =
            filters.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        let options = query::ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        self.call("list containers", async |client| client.list_containers(Some(options)).await).await
    }

    /// Containers of a project, or of every one. What a filter lets through is looked at again: daemons differ in how several go together.
    async fn containers_of(&self, project: Option<&str>) -> Result<Vec<ContainerSummary>, ProviderError> {
        let mut found = self.containers(&HashMap::from([("label", ours(project))])).await?;
        found.retain(|container| container.labels.as_ref().is_some_and(|labels| is_ours(labels, project)));
        Ok(found)
    }

    async fn volumes_with(&self, labels: Vec<String>) -> Result<Vec<Volume>, ProviderError> {
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = query::ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listing =
            self.call("list volumes", async |client| client.list_volumes(Some(options)).await).await?;
        Ok(listing.volumes.unwrap_or_default())
    }

    /// Volumes of a project, or of every one, records among them.
    async fn volumes_of(&self, project: Option<&str>) -> Result<Vec<Volume>, ProviderError> {
        let mut found = self.volumes_with(ours(project)).await?;
        found.retain(|volume| is_ours(&volume.labels, project));
        Ok(found)
    }

    async fn container(&self, id: &str) -> Result<Option<ContainerSummary>, ProviderError> {
        if !map::is_container_name(id) {
            return Ok(None);
        }
        let exactly = format!("^/?{}$", id.replace('.', "\\."));
        let found = self.containers(&HashMap::from([("name", vec![exactly])])).await?;
        Ok(found.into_iter().find(|container| map::name(container) == Some(id)))
    }

    async fn existing(&self, id: &SandboxId) -> Result<ContainerSummary, ProviderError> {
        let missing = || ProviderError::NotFound { what: format!("sandbox {id}") };
        self.container(&id.0).await?.ok_or_else(missing)
    }

    async fn records_of(&self, id: &str) -> Result<Vec<Volume>, ProviderError> {
        let mut found = self.volumes_with(vec![format!("{}={id}", map::RECORD_OF)]).await?;
        found.retain(|volume| map::record_of(volume).is_some_and(|(container, _)| container == id));
        Ok(found)
    }

    /// What is worth telling about a sandbox.
    fn notes(&self) -> Vec<String> {
        match self.api.daemon.is_here() {
            true => Vec::new(),
            false => vec![format!(
                "its ports are published on the loopback of the machine at {}, not of this one",
                self.api.daemon
            )],
        }
    }

    /// Docker would make a volume that does not exist, without labels.
    async fn check_mounts(&self, spec: &SandboxSpec, project: &str) -> Result<(), ProviderError> {
        for mount in &spec.mounts {
            let name = map::volume_name(project, &mount.volume);
            let doing = format!("look at volume {name}");
            match self.call(&doing, async |client| client.inspect_volume(&name).await).await {
                Ok(found) => own_volume(&found, project, &mount.volume)?,
                Err(ProviderError::NotFound { .. }) => {
                    return Err(ProviderError::NotFound { what: format!("volume {name}") });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A path on another machine would be another directory.
    fn check_binds(&self, spec: &SandboxSpec) -> Result<(), ProviderError> {
        if spec.binds.is_empty() || self.api.daemon.is_here() {
            return Ok(());
        }
        let daemon = &self.api.daemon;
        let message = format!(
            "the daemon at {daemon} is on another machine and shares no directory of this one; leave `mode: bind` out"
        );
        Err(ProviderError::Unsupported { message })
    }

    /// A limit that the daemon cannot enforce is no limit.
    async fn check_limits(&self, spec: &SandboxSpec) -> Result<(), ProviderError> {
        let (cpu, memory, pids) = (
            spec.resources.cpu_millis.is_some(),
            spec.resources.memory.is_some(),
            spec.resources.pids.is_some(),
        );
        if !cpu && !memory && !pids {
            return Ok(());
        }
        let info = self.call("ask what can be limited", async |client| client.info().await).await?;
        let missing = match () {
            () if memory && info.memory_limit == Some(false) => "memory",
            () if cpu && info.cpu_cfs_quota == Some(false) => "cpu",
            () if pids && info.pids_limit == Some(false) => "pids",
            () => return Ok(()),
        };
        Err(ProviderError::Unsupported {
            message: format!(
                "the kernel of this Docker daemon cannot limit `{missing}`; remove it from `resources`"
            ),
        })
    }

    /// Writes the file of links, and tells the first process if there is one.
    async fn put_links(&self, id: &str, spec: &SandboxSpec, runs: bool) -> Result<(), ProviderError> {
        let doing = format!("write the links of sandbox {id}");
        let text = map::links_file(spec);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        let mut archive = tar::Builder::new(Vec::new());
        let packed = archive
            .append_data(&mut header, map::LINKS_FILE, text.as_bytes())
            .and_then(|()| archive.into_inner());
        let packed = packed.map_err(|error| ProviderError::permanent(format!("cannot {doing}"), error))?;
        let options = query::UploadToContainerOptionsBuilder::new().path("/").build();
        let body = bollard::body_full(packed.into());
        self.call(&doing, async |client| client.upload_to_container(id, Some(options), body).await).await?;
        if runs {
            let options = query::KillContainerOptionsBuilder::new().signal("SIGHUP").build();
            self.call(&doing, async |client| client.kill_container(id, Some(options)).await).await?;
        }
        Ok(())
    }

    /// Waits until the links of a running sandbox lead somewhere.
    async fn await_links(&self, id: &str, spec: &SandboxSpec) -> Result<(), ProviderError> {
        let ports = map::link_ports(spec);
        if ports.is_empty() {
            return Ok(());
        }
        let guest = DockerGuest { api: self.api.clone(), container: id.to_owned() };
        match guest.await_links(&ports).await {
            Ok(None) => Ok(()),
            Ok(Some(port)) => Err(ProviderError::Unsupported {
                message: format!(
                    "127.0.0.1:{port} does not lead to the other sandbox: that needs perl, python3 or busybox `nc` in the image of sandbox {id}, and the port free inside"
                ),
            }),
            Err(error) => {
                Err(ProviderError::transient(format!("cannot look at the links of sandbox {id}"), error))
            }
        }
    }

    async fn run(&self, container: &ContainerSummary) -> Result<(), ProviderError> {
        let Some(id) = map::name(container) else { return Ok(()) };
        let doing = format!("start sandbox {id}");
        if container.state == Some(State::PAUSED) {
            return self.call(&doing, async |client| client.unpause_container(id).await).await;
        }
        let started = self.call(&doing, async |client| client.start_container(id, None).await).await;
        let message = match started {
            Err(ProviderError::NotFound { what }) if self.container(id).await?.is_none() => {
                // A create that was given up may have been taken back meanwhile.
                return Err(ProviderError::Transient { message: what, source: None });
            }
            // The container is there: it is something else that was not found.
            Err(ProviderError::NotFound { what: message } | ProviderError::Invalid { message }) => message,
            other => return other,
        };
        let has_no_program = ["executable file not found", "no such file or directory"]
            .iter()
            .any(|words| message.contains(words));
        let help = if has_no_program { "; is there a `sh` in its image?" } else { "" };
        Err(ProviderError::Invalid { message: format!("{message}{help}") })
    }

    /// Creates and starts the container of this name, or goes on with it.
    async fn make(&self, name: &str, spec: &SandboxSpec, identity: &Identity) -> Result<(), ProviderError> {
        let doing = format!("create {}", identity.address);
        self.check_mounts(spec, &identity.project).await?;
        self.check_limits(spec).await?;
        self.check_links(spec, &identity.project).await?;
        let image = image::ensure(&self.api, &spec.image, &identity.project).await?;
        let _network = self.networks.read().await;
        if spec.network.mode == NetworkMode::Isolated {
            self.ensure_network(&identity.project, map::is_shut(&spec.network)).await?;
        }
        let body = map::container(spec, identity, image, label::labels(spec, identity)?);
        let options = query::CreateContainerOptionsBuilder::new().name(name).build();
        match self.call(&doing, async |client| client.create_container(Some(options), body).await).await {
            Ok(_) | Err(ProviderError::AlreadyExists { .. }) => {}
            Err(ProviderError::NotFound { what }) => return Err(ProviderError::Invalid { message: what }),
            Err(error) => return Err(error),
        }
        // A create that was given up may hold the name while Docker still makes the container, or takes it back.
        let found = self.container(name).await?.ok_or_else(|| ProviderError::Transient {
            message: format!("cannot {doing}: container {name} is on its way"),
            source: None,
        })?;
        let token = found.labels.as_ref().and_then(|l| l.get(labels::INTENT));
        if token != Some(&identity.intent.0) {
            return Err(ProviderError::AlreadyExists {
                what: format!("container {name}, which another create made,"),
            });
        }
        // A snapshot has the links of what it was taken of.
        let has_links = !spec.links.is_empty() || matches!(spec.image, Image::Snapshot(_));
        if found.state == Some(State::CREATED) && has_links {
            self.put_links(name, spec, false).await?;
        }
        self.run(&found).await?;
        self.await_links(name, spec).await
    }

    /// Removes a container with the volumes that only it has, and waits until it is gone.
    async fn remove(&self, id: &str) -> Result<(), ProviderError> {
        let doing = format!("delete sandbox {id}");
        let deadline = Instant::now() + REMOVAL;
        loop {
            let options = query::RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            match self.call(&doing, async |client| client.remove_container(id, Some(options)).await).await {
                Ok(()) | Err(ProviderError::NotFound { .. }) => {}
                // It is being removed already.
                Err(ProviderError::AlreadyExists { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
            if self.container(id).await?.is_none() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let message = format!("cannot {doing}: it is still there after {} s", REMOVAL.as_secs());
                return Err(ProviderError::Transient { message, source: None });
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn remove_volume(&self, name: &str) -> Result<(), ProviderError> {
        match self
            .call(&format!("delete volume {name}"), async |client| {
                client.remove_volume(name, None::<query::RemoveVolumeOptions>).await
            })
            .await
        {
            Err(ProviderError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Removes records whose container is gone, by whoever's hand.
    async fn sweep_records(&self, project: &str) -> Result<(), ProviderError> {
        // First the records, then the containers: a record is never there before its container.
        let mut records = self.volumes_of(Some(project)).await?;
        records.retain(|volume| map::record_of(volume).is_some());
        if records.is_empty() {
            return Ok(());
        }
        let containers = self.containers_of(Some(project)).await?;
        for record in records {
            let container = map::record_of(&record).map(|(container, _)| container);
            if !containers.iter().any(|c| map::name(c) == container) {
                self.remove_volume(&record.name).await?;
            }
        }
        Ok(())
    }
}

/// The filter for what is ours, of one project or of all.
fn ours(project: Option<&str>) -> Vec<String> {
    let project = project.map(|project| format!("{}={project}", labels::PROJECT));
    std::iter::once(format!("{}=pocketenv", labels::MANAGED_BY)).chain(project).collect()
}

fn is_ours(found: &Labels, project: Option<&str>) -> bool {
    found.get(labels::MANAGED_BY).is_some_and(|by| by == "pocketenv")
        && project.is_none_or(|project| found.get(labels::PROJECT).is_some_and(|p| p == project))
}

fn own_volume(found: &Volume, project: &str, name: &str) -> Result<(), ProviderError> {
    let is_own = found.labels.get(labels::PROJECT).is_some_and(|p| p == project)
        && map::volume_of(&found.labels) == Some(name);
    match is_own {
        true => Ok(()),
        false => Err(ProviderError::AlreadyExists {
            what: format!("volume {}, which is not of this project,", found.name),
        }),
    }
}

#[async_trait]
impl Provider for Docker {
    fn capabilities(&self) -> &Capabilities {
        &SHEET
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let project = owner.project.as_deref();
        // First the containers, then the records: what is updated in between is seen updated, never without its record.
        let containers = self.containers_of(project).await?;
        let volumes = self.volumes_of(project).await?;
        let records = map::records(&volumes);
        let matches = |found: Option<&String>| owner.owner.as_ref().is_none_or(|o| found == Some(&o.0));
        let seen = containers.iter().filter_map(|container| {
            let record = map::name(container).and_then(|name| records.get(name)).map(|(_, volume)| *volume);
            map::observed(container, record, self.notes())
        });
        let seen: Vec<ObservedSandbox> = seen.collect();
        let mut listing = ObservedProvider::default();
        for (id, snapshot) in self.snapshots_of(project, &seen).await? {
            if matches(snapshot.labels.get(labels::OWNER)) {
                listing.snapshots.insert(id, snapshot);
            }
        }
        for sandbox in seen.into_iter().filter(|sandbox| matches(sandbox.labels.get(labels::OWNER))) {
            listing.sandboxes.insert(sandbox.id.clone(), sandbox);
        }
        for volume in &volumes {
            if let Some(name) =
                map::volume_of(&volume.labels).filter(|_| matches(volume.labels.get(labels::OWNER)))
            {
                let created_at = volume.created_at.as_deref().and_then(timestamp);
                let labels = volume.labels.clone().into_iter().collect();
                listing.volumes.insert(name.to_owned(), ObservedVolume { labels, created_at });
            }
        }
        Ok(listing)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        let Some(container) = self.container(&id.0).await? else { return Ok(None) };
        let records = self.records_of(&id.0).await?;
        let record = map::records(&records).get(id.0.as_str()).map(|(_, volume)| *volume);
        Ok(map::observed(&container, record, self.notes()))
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        map::check(spec)?;
        self.check_binds(spec)?;
        self.sweep_records(&identity.project).await?;
        let name = map::container_name(identity);
        if let Err(error) = self.make(&name, spec, identity).await {
            let theirs = matches!(error, ProviderError::AlreadyExists { .. });
            if !error.is_retryable() && !theirs {
                // What will never run must not look like something that is being made.
                self.remove(&name).await?;
                self.release_networks(&identity.project).await?;
            }
            return Err(error);
        }
        Ok(SandboxId(name))
    }

    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        map::check(spec)?;
        let container = self.existing(id).await?;
        let records = self.records_of(&id.0).await?;
        let newest = map::records(&records).get(id.0.as_str()).copied();
        let seen = map::observed(&container, newest.map(|(_, volume)| volume), Vec::new());
        let known = seen.as_ref().map(|seen| &seen.labels);
        let old = known.and_then(label::labelled_spec);
        if old.as_ref().is_some_and(|old| !map::can_become(old, spec)) {
            return Err(ProviderError::Unsupported {
                message: format!(
                    "sandbox {id}: Docker changes only limits and links of a container; anything else needs a new one"
                ),
            });
        }
        if old.as_ref().is_none_or(|old| old.resources != spec.resources) {
            self.check_limits(spec).await?;
            let limits = map::update(&spec.resources);
            let doing = format!("change the limits of sandbox {id}");
            match self.call(&doing, async |client| client.update_container(&id.0, limits).await).await {
                // The container is there, so it is the call that is not.
                Err(ProviderError::NotFound { .. }) => {
                    let message =
                        format!("cannot {doing}: this daemon changes no limits; create the sandbox anew");
                    return Err(ProviderError::Unsupported { message });
                }
                other => drop(other?),
            }
        }
        if old.as_ref().is_none_or(|old| map::links_file(old) != map::links_file(spec)) {
            let runs = container.state == Some(State::RUNNING);
            self.check_links(spec, &identity.project).await?;
            self.put_links(&id.0, spec, runs).await?;
            if runs {
                self.await_links(&id.0, spec).await?;
            }
        }
        let mut labels = label::labels(spec, identity)?;
        if let Some(token) = known.and_then(|known| known.get(labels::INTENT)) {
            labels.insert(labels::INTENT.to_owned(), token.clone());
        }
        if known == Some(&labels) {
            return Ok(());
        }
        labels.insert(map::RECORD_OF.to_owned(), id.0.clone());
        let name = map::record_name(&id.0, newest.map_or(1, |(revision, _)| revision + 1));
        let record = VolumeCreateRequest {
            name: Some(name),
            labels: Some(labels.into_iter().collect()),
            ..Default::default()
        };
        self.call(&format!("record the labels of sandbox {id}"), async |client| {
            client.create_volume(record).await
        })
        .await?;
        for old in &records {
            self.remove_volume(&old.name).await?;
        }
        Ok(())
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let found = self.existing(id).await?;
        if found.state == Some(State::RUNNING) {
            return Ok(());
        }
        self.run(&found).await?;
        match self.get(id).await?.and_then(|seen| seen.spec) {
            Some(spec) => self.await_links(&id.0, &spec).await,
            None => Ok(()),
        }
    }

    async fn pause(&self, id: &SandboxId) -> Result<(), ProviderError> {
        if self.existing(id).await?.state == Some(State::PAUSED) {
            return Ok(());
        }
        let doing = format!("pause sandbox {id}");
        self.call(&doing, async |client| client.pause_container(&id.0).await).await
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let found = self.existing(id).await?;
        let doing = format!("stop sandbox {id}");
        if found.state == Some(State::PAUSED) {
            // What is paused cannot end.
            self.call(&doing, async |client| client.unpause_container(&id.0).await).await?;
        }
        let options = query::StopContainerOptionsBuilder::new().t(STOP_LIMIT).build();
        self.call(&doing, async |client| client.stop_container(&id.0, Some(options)).await).await
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        if !map::is_container_name(&id.0) {
            return Ok(());
        }
        let project = self.container(&id.0).await?.and_then(|c| c.labels?.remove(labels::PROJECT));
        self.remove(&id.0).await?;
        for record in self.records_of(&id.0).await? {
            self.remove_volume(&record.name).await?;
        }
        match project {
            Some(project) => self.release_networks(&project).await,
            None => Ok(()),
        }
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        if !map::is_container_name(&id.0) {
            return Err(ProviderError::NotFound { what: format!("sandbox {id}") });
        }
        Ok(Box::new(DockerGuest { api: self.api.clone(), container: id.0.clone() }))
    }

    fn volumes(&self) -> Option<&dyn Volumes> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn service(&self) -> Option<&dyn Service> {
        Some(self)
    }
}

impl Service for Docker {
    fn calls(&self) -> &'static Calls {
        &CALLS
    }

    fn behind(&self, detour: Arc<dyn Detour>) -> Result<Arc<dyn Provider>, ProviderError> {
        let address = detour.before(Arc::new(self.api.clone()))?;
        Ok(Arc::new(Self::at(Daemon::Http(address.to_string()), self.api.config.clone())))
    }
}

#[async_trait]
impl Volumes for Docker {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(labels::PROJECT).map_or("", String::as_str);
        let wanted = VolumeCreateRequest {
            name: Some(map::volume_name(project, name)),
            labels: Some(labels.clone().into_iter().collect()),
            ..Default::default()
        };
        // One that exists is answered as it is.
        let found = self
            .call(&format!("create volume {name}"), async |client| client.create_volume(wanted).await)
            .await?;
        own_volume(&found, project, name)
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let volume = map::volume_name(project, name);
        match self
            .call(&format!("look at volume {volume}"), async |client| client.inspect_volume(&volume).await)
            .await
        {
            Err(ProviderError::NotFound { .. }) => return Ok(()),
            found => own_volume(&found?, project, name)?,
        }
        match self.remove_volume(&volume).await {
            // A container that is about to go still has it.
            Err(ProviderError::AlreadyExists { what }) => {
                Err(ProviderError::Transient { message: what, source: None })
            }
            other => other,
        }
    }
}
