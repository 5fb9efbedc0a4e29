//! The provider `daytona`: sandboxes of Daytona, or of whatever speaks its API, such as `pocketenv emulate daytona`.
//!
//! A sandbox has a name that is made of the token of its create, so that a second create with the token is refused and finds what the first one made. Its
//! labels say what it is to be; they, its times, what it reaches and whether its ports are public are changed while it runs. Snapshots and volumes carry
//! nothing but their names, so their labels are their names.

mod api;
mod guest;
mod map;
mod sheet;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;

pub use sheet::SHEET;

use super::http::{Call, Http, timestamp};
use super::settle::settled;
use super::{
    Calls, Capabilities, Detour, Guest, Owner, Pattern, Provider, ProviderContext, ProviderError, Service,
    Snapshots, Volumes, label,
};
use crate::model::{
    Identity, Image, ObservedProvider, ObservedSandbox, ObservedSnapshot, ObservedVolume, Resources,
    SandboxId, SandboxSpec, SandboxState, labels,
};
use crate::secret::SecretValue;

/// Where Daytona is.
const API: &str = "https://app.daytona.io/api";
/// The longest page that may be asked for.
const PAGE: &str = "200";
/// More pages than this are no listing.
const MAX_PAGES: usize = 10_000;
/// How long a new sandbox may take: its image may have to be pulled.
const CREATION: Duration = Duration::from_secs(600);
/// How long a sandbox may be on its way to where it is wanted: one that was archived is brought back.
const TRANSITION: Duration = Duration::from_secs(300);
/// How long one call that changes where a sandbox is may take.
const SLOW: Duration = Duration::from_secs(180);
/// The version of the vendor's clients that this one speaks like: daemons answer by it.
const SDK_VERSION: &str = "0.226.1";

/// What the kit recognises calls by.
static CALLS: Calls = Calls {
    list: &[Pattern("GET", "/sandbox")],
    get: &[Pattern("GET", "/sandbox/*")],
    create: &[Pattern("POST", "/sandbox")],
    delete: &[Pattern("DELETE", "/sandbox/*")],
    exec: &[Pattern("GET", "/logs")],
    retry_after: true,
    refusal: |code, message, _| {
        serde_json::json!({ "statusCode": code, "error": "Refused", "message": message }).to_string()
    },
};

/// The provider `daytona`.
#[derive(Clone)]
pub struct Daytona {
    api: Http,
    /// What every service of the account is given.
    key: SecretValue,
    organization: Option<String>,
    snapshot: Option<String>,
    target: Option<String>,
    /// Whether the API is reached by HTTPS.
    encrypted: bool,
}

impl Daytona {
    /// Reads the settings; nothing is asked yet.
    ///
    /// # Errors
    /// [`ProviderError::Unauthorised`] if there is no key, [`ProviderError::Invalid`] for an address that cannot be.
    pub fn open(context: &ProviderContext) -> Result<Self, ProviderError> {
        let key = context.credential("daytona", "api_key").cloned().ok_or_else(|| {
            ProviderError::Unauthorised { message: "there is no API key: set DAYTONA_API_KEY".to_owned() }
        })?;
        let given = |setting: &str| context.setting("daytona", setting).map(str::to_owned);
        let organization = given("organization_id");
        let url = given("api_url").unwrap_or_else(|| API.to_owned());
        Ok(Self {
            api: service(&url, &key, organization.as_deref())?,
            key,
            organization,
            snapshot: given("snapshot"),
            target: given("target"),
            encrypted: url.starts_with("https://"),
        })
    }

    fn sandbox(&self, method: Method, id: &SandboxId, rest: &[&str]) -> Call<'_> {
        self.api.call(method, &[&["sandbox", &id.0], rest].concat())
    }

    /// One sandbox by its id or name; `None` if there is none, or none any more.
    async fn look(&self, id: &SandboxId) -> Result<Option<api::Sandbox>, ProviderError> {
        match self.sandbox(Method::GET, id, &[]).read(&format!("look at sandbox {id}")).await {
            Ok(found) => Ok(Some(found).filter(|found| map::state(found).is_some())),
            Err(ProviderError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn existing(&self, id: &SandboxId) -> Result<api::Sandbox, ProviderError> {
        self.look(id).await?.ok_or_else(|| ProviderError::NotFound { what: format!("sandbox {id}") })
    }

    /// Every sandbox whose labels have these values.
    async fn pages(&self, wanted: &[(&str, &str)]) -> Result<Vec<api::Sandbox>, ProviderError> {
        let doing = "list sandboxes";
        let wanted: BTreeMap<_, _> = wanted.iter().copied().collect();
        let labels = serde_json::to_string(&wanted)
            .map_err(|error| ProviderError::permanent(format!("cannot {doing}"), error))?;
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut call =
                self.api.call(Method::GET, &["sandbox"]).query(&[("labels", &labels), ("limit", PAGE)]);
            if let Some(cursor) = &cursor {
                call = call.query(&[("cursor", cursor)]);
            }
            let page: api::Page = call.read(doing).await?;
            items.extend(page.items);
            match page.next_cursor.filter(|next| !next.is_empty()) {
                Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
                Some(_) => break,
                None => return Ok(items),
            }
        }
        Err(ProviderError::Permanent {
            message: format!("cannot {doing}: the listing does not end"),
            source: None,
        })
    }

    /// Every sandbox whose labels have these values and that is not gone, in our words.
    async fn sandboxes(&self, wanted: &[(&str, &str)]) -> Result<Vec<ObservedSandbox>, ProviderError> {
        Ok(self.pages(wanted).await?.into_iter().filter_map(map::observed).collect())
    }

    /// The snapshots of ours that are not on their way out, with their labels.
    async fn named_snapshots(&self) -> Result<Vec<(api::Snapshot, BTreeMap<String, String>)>, ProviderError> {
        let mut found = Vec::new();
        for page in 1..=MAX_PAGES as u64 {
            let query = [("page", page.to_string()), ("limit", PAGE.to_owned())];
            let query = query.each_ref().map(|(name, value)| (*name, value.as_str()));
            let call = self.api.call(Method::GET, &["snapshots"]).query(&query);
            let answer: api::Snapshots = call.read("list snapshots").await?;
            let ours = |snapshot: api::Snapshot| {
                let labels = label::named(&snapshot.name)?;
                (snapshot.state != "removing").then_some((snapshot, labels))
            };
            found.extend(answer.items.into_iter().filter_map(ours));
            if page >= answer.total_pages {
                return Ok(found);
            }
        }
        let message = "cannot list snapshots: the listing does not end".to_owned();
        Err(ProviderError::Permanent { message, source: None })
    }

    async fn snapshot_of(&self, project: &str, name: &str) -> Result<Option<api::Snapshot>, ProviderError> {
        let address = format!("snapshot/{name}");
        let mut found = self.named_snapshots().await?.into_iter();
        Ok(found.find(|(_, labels)| label::are_of(labels, project, &address)).map(|(snapshot, _)| snapshot))
    }

    /// The volumes that are not on their way out.
    async fn all_volumes(&self) -> Result<Vec<api::Volume>, ProviderError> {
        let mut found: Vec<api::Volume> =
            self.api.call(Method::GET, &["volumes"]).read("list volumes").await?;
        found.retain(|volume| !["pending_delete", "deleting", "deleted"].contains(&volume.state.as_str()));
        Ok(found)
    }

    async fn volume_of(&self, project: &str, name: &str) -> Result<Option<api::Volume>, ProviderError> {
        let address = format!("volume/{name}");
        let mut found = self.all_volumes().await?.into_iter();
        Ok(found.find(|volume| label::names(&volume.name, project, &address)))
    }

    /// Waits until the sandbox runs, is stopped, or is gone.
    async fn settled(
        &self,
        id: &SandboxId,
        wanted: Option<SandboxState>,
        limit: Duration,
    ) -> Result<(), ProviderError> {
        let what = format!("sandbox {id}");
        let name = match &wanted {
            Some(SandboxState::Running) => "started",
            Some(_) => "stopped",
            None => "gone",
        };
        settled(&what, name, limit, || async {
            let found = self.look(id).await?;
            let state = found.as_ref().and_then(map::state);
            if state == wanted {
                return Ok(None);
            }
            match state {
                None => Err(ProviderError::NotFound { what: what.clone() }),
                Some(SandboxState::Failed(why)) => {
                    Err(ProviderError::Permanent { message: format!("{what}: {why}"), source: None })
                }
                Some(_) => Ok(Some(found.and_then(|found| found.state).unwrap_or_default())),
            }
        })
        .await
    }

    /// Writes what a sandbox is to be, with where its ports are reached: that is known only of one that is there.
    async fn write_labels(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        let mut ports = BTreeMap::new();
        for port in spec.ports.keys() {
            let call = self.sandbox(Method::GET, id, &["ports", &port.to_string(), "preview-url"]);
            let preview: api::Preview = call.read(&format!("find port {port} of sandbox {id}")).await?;
            ports.insert(*port, preview.url);
        }
        let labels = map::labels_with(spec, identity, &ports)?;
        let call = self.sandbox(Method::PUT, id, &["labels"]).json(&api::Labels { labels: &labels });
        call.done(&format!("label sandbox {id}")).await
    }

    /// Tells Daytona after how many minutes without activity a sandbox is to stop.
    async fn set_auto_stop(&self, id: &SandboxId, minutes: u64) -> Result<(), ProviderError> {
        let call = self.sandbox(Method::POST, id, &["autostop", &minutes.to_string()]);
        call.done(&format!("set the idle time of sandbox {id}")).await
    }
}

/// A service of the account.
fn service(url: &str, key: &SecretValue, organization: Option<&str>) -> Result<Http, ProviderError> {
    let http = Http::new(url, message)?
        .header("x-daytona-source", "pocketenv")?
        .header("x-daytona-sdk-version", SDK_VERSION)?;
    let http = match organization {
        Some(organization) => http.header("x-daytona-organization-id", organization)?,
        None => http,
    };
    http.secret_header("authorization", &format!("Bearer {}", key.expose()))
}

/// The sentence in an error answer of the control plane or of a daemon.
fn message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Said {
        message: Option<String>,
        error: Option<String>,
    }
    let said = serde_json::from_slice::<Said>(body).ok()?;
    said.message.or(said.error)
}

#[async_trait]
impl Provider for Daytona {
    fn capabilities(&self) -> &Capabilities {
        &SHEET
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let mut listing = ObservedProvider::default();
        for volume in self.all_volumes().await? {
            let Some(labels) = label::named(&volume.name).filter(|labels| owner.has(labels)) else {
                continue;
            };
            let address = labels.get(labels::ADDRESS).and_then(|address| address.strip_prefix("volume/"));
            if let Some(name) = address.map(str::to_owned) {
                let created_at = volume.created_at.as_deref().and_then(timestamp);
                listing.volumes.insert(name, ObservedVolume { labels, created_at });
            }
        }
        // Before the sandboxes: what one is made from meanwhile is not yet seen, and so not seen as unused.
        let snapshots = self.named_snapshots().await?;
        let ours = self.sandboxes(&owner.labels()).await?.into_iter();
        let ours = ours.filter(|sandbox| owner.has(&sandbox.labels));
        listing.sandboxes = ours.map(|sandbox| (sandbox.id.clone(), sandbox)).collect();
        for (snapshot, labels) in snapshots.into_iter().filter(|(_, labels)| owner.has(labels)) {
            let said = |name| labels.get(name).map_or("", String::as_str);
            let name = said(labels::ADDRESS).strip_prefix("snapshot/").unwrap_or_default();
            let observed = ObservedSnapshot {
                created_at: snapshot.created_at.as_deref().and_then(timestamp),
                bytes: snapshot.size.map(|size| (size.max(0.0) * f64::from(1 << 30)) as u64),
                used_by: label::made_from(said(labels::PROJECT), name, listing.sandboxes.values()),
                labels,
            };
            listing.snapshots.insert(snapshot.id, observed);
        }
        Ok(listing)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        Ok(self.look(id).await?.and_then(map::observed))
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        let mut snapshot = self.snapshot.clone();
        if let Image::Snapshot(name) = &spec.image {
            // One of this project, or else one that Daytona knows by this very name.
            let own = self.snapshot_of(&identity.project, name).await?;
            snapshot = Some(own.map_or_else(|| name.clone(), |own| own.name));
        }
        if matches!(spec.image, Image::Snapshot(_) | Image::Host) && spec.resources != Resources::default() {
            let missing = || ProviderError::Invalid {
                message: "`resources` are those of the snapshot: name one, or an `image`".to_owned(),
            };
            let name = snapshot.as_deref().ok_or_else(missing)?;
            let call = self.api.call(Method::GET, &["snapshots", name]);
            map::fits(&spec.resources, &call.read(&format!("look at snapshot {name}")).await?)?;
        }
        let mounts = match spec.mounts.is_empty() {
            true => Vec::new(),
            false => map::mounts(spec, &identity.project, &self.all_volumes().await?)?,
        };
        let wanted = map::new_sandbox(spec, identity, snapshot.as_deref(), mounts, self.target.as_deref())?;
        let doing = format!("create {}", identity.address);
        let call = self.api.call(Method::POST, &["sandbox"]).timeout(SLOW).json(&wanted);
        let made: api::Sandbox = match call.read(&doing).await {
            Ok(made) => made,
            // An earlier attempt has been answered, and the answer was lost.
            Err(ProviderError::AlreadyExists { what }) => {
                let found = self.look(&SandboxId(wanted.name)).await?;
                let own = found.filter(|found| found.labels.get(labels::INTENT) == Some(&identity.intent.0));
                own.ok_or(ProviderError::AlreadyExists { what })?
            }
            // It is the snapshot that is not there.
            Err(ProviderError::NotFound { what }) => return Err(ProviderError::Invalid { message: what }),
            Err(error) => return Err(error),
        };
        let id = SandboxId(made.id);
        self.settled(&id, Some(SandboxState::Running), CREATION).await?;
        if !spec.ports.is_empty() {
            self.write_labels(&id, spec, identity).await?;
        }
        Ok(id)
    }

    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        let found = self.existing(id).await?;
        let (public, minutes, ttl) =
            (map::public(spec)?, map::auto_stop(&spec.lifecycle), map::ttl(&spec.lifecycle));
        // The token of the create stays: an interrupted one is settled by it.
        let mut identity = identity.clone();
        if let Some(token) = found.labels.get(labels::INTENT) {
            identity.intent.0.clone_from(token);
        }
        if found.public != public {
            let call = self.sandbox(Method::POST, id, &["public", if public { "true" } else { "false" }]);
            call.done(&format!("publish the ports of sandbox {id}")).await?;
        }
        if found.auto_stop_interval.is_none_or(|now| now != minutes as f64) {
            self.set_auto_stop(id, minutes).await?;
        }
        if ttl > 0 || found.auto_destroy_at.is_some() {
            let call = self.sandbox(Method::POST, id, &["ttl", &ttl.to_string()]);
            call.done(&format!("set the end of sandbox {id}")).await?;
        }
        let reach = map::reach(spec)?;
        if map::observed(found).and_then(|now| now.spec).is_none_or(|now| now.network != spec.network) {
            let call = self.sandbox(Method::POST, id, &["network-settings"]).json(&reach);
            call.done(&format!("change what sandbox {id} reaches")).await?;
        }
        // Last, since they say what it is now.
        self.write_labels(id, spec, &identity).await
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let found = self.existing(id).await?;
        if map::state(&found) != Some(SandboxState::Running) {
            let call = self.sandbox(Method::POST, id, &["start"]).timeout(SLOW);
            call.done(&format!("start sandbox {id}")).await?;
            self.settled(id, Some(SandboxState::Running), TRANSITION).await?;
        }
        // What it was told of its times is said anew at each start.
        match label::labelled_spec(&found.labels) {
            Some(spec) => self.set_auto_stop(id, map::auto_stop(&spec.lifecycle)).await,
            None => Ok(()),
        }
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let found = self.existing(id).await?;
        let stopped = SandboxState::Stopped { unclean: None };
        match map::state(&found) {
            Some(state) if state == stopped => return Ok(()),
            Some(SandboxState::Stopping) => {}
            _ => {
                let call = self.sandbox(Method::POST, id, &["stop"]).timeout(SLOW);
                call.done(&format!("stop sandbox {id}")).await?;
            }
        }
        self.settled(id, Some(stopped), TRANSITION).await
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let call = self.sandbox(Method::DELETE, id, &[]).timeout(SLOW);
        match call.done(&format!("delete sandbox {id}")).await {
            Err(ProviderError::NotFound { .. }) => return Ok(()),
            other => other?,
        }
        self.settled(id, None, TRANSITION).await
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        let found = self.existing(id).await?;
        if self.encrypted && !found.toolbox_proxy_url.starts_with("https://") {
            let message =
                format!("sandbox {id} is said to be reached without encryption, and the key is not sent so");
            return Err(ProviderError::Permanent { message, source: None });
        }
        let http = service(&found.toolbox_proxy_url, &self.key, self.organization.as_deref())?;
        let http = http.reached_like(&self.api)?;
        let running = map::state(&found) == Some(SandboxState::Running);
        Ok(Box::new(guest::DaytonaGuest::new(http, id.clone(), running)))
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

impl Service for Daytona {
    fn calls(&self) -> &'static Calls {
        &CALLS
    }

    fn behind(&self, detour: Arc<dyn Detour>) -> Result<Arc<dyn Provider>, ProviderError> {
        Ok(Arc::new(Self { api: self.api.behind(detour)?, ..self.clone() }))
    }
}

#[async_trait]
impl Snapshots for Daytona {
    async fn create_snapshot(
        &self,
        of: &SandboxId,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(labels::PROJECT).map_or("", String::as_str);
        if self.snapshot_of(project, name).await?.is_some() {
            return Err(ProviderError::AlreadyExists { what: format!("snapshot {name}") });
        }
        let named = label::name(labels);
        let call = self.sandbox(Method::POST, of, &["snapshot"]).timeout(SLOW);
        call.json(&api::Named { name: &named })
            .done(&format!("take snapshot {name} of sandbox {of}"))
            .await?;
        // It is begun; whether it can be used is told when it is there.
        let what = format!("snapshot {name}");
        settled(&what, "active", CREATION, || async {
            match self.snapshot_of(project, name).await? {
                Some(found) if found.state == "active" => Ok(None),
                Some(found) if ["error", "build_failed"].contains(&found.state.as_str()) => {
                    let why = found.error_reason.unwrap_or_default();
                    let message = format!("{what}: its state at Daytona is `{}` {why}", found.state);
                    Err(ProviderError::Permanent { message: message.trim_end().to_owned(), source: None })
                }
                found => Ok(Some(found.map_or_else(|| "not there yet".to_owned(), |found| found.state))),
            }
        })
        .await
    }

    async fn delete_snapshot(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let Some(snapshot) = self.snapshot_of(project, name).await? else { return Ok(()) };
        let owner = Owner { project: Some(project.to_owned()), owner: None };
        label::unused(project, name, self.sandboxes(&owner.labels()).await?.iter())?;
        let call = self.api.call(Method::DELETE, &["snapshots", &snapshot.id]).timeout(SLOW);
        match call.done(&format!("delete snapshot {name}")).await {
            Err(ProviderError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl Volumes for Daytona {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(labels::PROJECT).map_or("", String::as_str);
        if self.volume_of(project, name).await?.is_none() {
            let named = label::name(labels);
            let call = self.api.call(Method::POST, &["volumes"]).json(&api::Named { name: &named });
            call.done(&format!("create volume {name}")).await?;
        }
        // Nothing mounts one that is still being made.
        let what = format!("volume {name}");
        settled(&what, "ready", TRANSITION, || async {
            match self.volume_of(project, name).await? {
                Some(found) if found.state == "ready" => Ok(None),
                Some(found) if found.state == "error" => {
                    let why = found.error_reason.unwrap_or_default();
                    let message = format!("{what} could not be made: {why}");
                    Err(ProviderError::Permanent { message, source: None })
                }
                found => Ok(Some(found.map_or_else(|| "not there yet".to_owned(), |found| found.state))),
            }
        })
        .await
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let Some(volume) = self.volume_of(project, name).await? else { return Ok(()) };
        let call = self.api.call(Method::DELETE, &["volumes", &volume.id]).timeout(SLOW);
        match call.done(&format!("delete volume {name}")).await {
            Err(ProviderError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}
