//! The provider `e2b`: sandboxes of E2B, or of whatever speaks its API, such as `pocketenv emulate e2b`.
//!
//! Addresses follow from the setting `domain`; the settings `api_url` and `sandbox_url` replace them.
//!
//! What a sandbox is made from stands in its metadata, which E2B never changes, so every change of it makes a new one. A sandbox of E2B has an end: it is
//! paused then, disk and all, and time is given to it anew whenever it is started. Snapshots and volumes carry nothing but their names, so their
//! labels are their names.

pub mod api;
mod guest;
mod map;
mod sheet;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::de::DeserializeOwned;

pub use sheet::SHEET;

use super::http::{Call, Http};
use super::settle::settled;
use super::{
    Calls, Capabilities, Detour, Guest, Owner, Pattern, Provider, ProviderContext, ProviderError, Service,
    Snapshots, Volumes, label,
};
use crate::model::{
    Identity, Image, ObservedProvider, ObservedSandbox, ObservedSnapshot, ObservedVolume, SandboxId,
    SandboxSpec, SandboxState, Timestamp, labels as names,
};

/// The environment variables with the key and the addresses: those of the vendor's own SDK.
const KEY_VARIABLE: &str = "E2B_API_KEY";
const DOMAIN_VARIABLE: &str = "E2B_DOMAIN";
const API_VARIABLE: &str = "E2B_API_URL";
const SANDBOX_VARIABLE: &str = "E2B_SANDBOX_URL";
/// Where E2B is.
const DOMAIN: &str = "e2b.app";
/// Domains whose sandboxes are all reached at one address.
const SHARED_DOMAINS: [&str; 4] = ["e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"];
/// The template of sandboxes that name none.
const TEMPLATE: &str = "base";
/// How long a sandbox runs before it is paused: what every account may ask for.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// The longest page that is asked for.
const PAGE: &str = "100";
/// More pages than this are no listing.
const MAX_PAGES: usize = 10_000;
/// How long a sandbox may be on its way to where it is wanted.
const TRANSITION: Duration = Duration::from_secs(90);
/// How long starting or pausing one may take: its memory is read or written.
const SLOW: Duration = Duration::from_secs(180);

/// What the kit recognises calls by.
static CALLS: Calls = Calls {
    list: &[Pattern("GET", "/v2/sandboxes")],
    get: &[Pattern("GET", "/sandboxes/*")],
    create: &[Pattern("POST", "/v2/sandboxes")],
    delete: &[Pattern("DELETE", "/sandboxes/*")],
    exec: &[Pattern("POST", "/process.Process/Start")],
    retry_after: true,
    refusal: |code, message, _| serde_json::json!({ "code": code, "message": message }).to_string(),
};

/// The provider `e2b`.
pub struct E2b {
    api: Http,
    domain: String,
    /// Where every sandbox is reached, if there is such an address.
    shared: Option<Http>,
    template: String,
    timeout: Duration,
}

impl E2b {
    /// Reads the settings; nothing is asked yet.
    ///
    /// # Errors
    /// [`ProviderError::Unauthorised`] if there is no key, [`ProviderError::Invalid`] for an address or a time that cannot be.
    pub fn open(context: &ProviderContext) -> Result<Self, ProviderError> {
        let key = context.credential("e2b", "api_key").ok_or_else(|| ProviderError::Unauthorised {
            message: format!("there is no API key: set {KEY_VARIABLE}"),
        })?;
        let given = |setting: &str| context.setting("e2b", setting);
        let domain = given("domain").unwrap_or(DOMAIN).to_owned();
        let api = match given("api_url") {
            Some(url) => url.to_owned(),
            None => format!("https://api.{domain}"),
        };
        let shared = match given("sandbox_url") {
            Some(url) => Some(url.to_owned()),
            None if SHARED_DOMAINS.contains(&domain.as_str()) => Some(format!("https://sandbox.{domain}")),
            None => None,
        };
        let timeout = match given("timeout") {
            None => TIMEOUT,
            Some(text) => text.parse::<crate::model::Duration>().map(Into::into).map_err(|error| {
                ProviderError::Invalid { message: format!("providers.e2b.timeout: {error}") }
            })?,
        };
        Ok(Self {
            api: Http::new(&api, message)?.secret_header("x-api-key", key.expose())?,
            shared: shared.map(|url| Http::new(&url, message)).transpose()?,
            template: given("template").unwrap_or(TEMPLATE).to_owned(),
            domain,
            timeout,
        })
    }

    fn sandbox(&self, method: Method, id: &SandboxId, rest: &[&str]) -> Call<'_> {
        self.api.call(method, &[&["sandboxes", &id.0], rest].concat())
    }

    async fn look(&self, id: &SandboxId) -> Result<Option<api::SandboxDetail>, ProviderError> {
        match self.sandbox(Method::GET, id, &[]).read(&format!("look at sandbox {id}")).await {
            Ok(found) => Ok(Some(found)),
            Err(ProviderError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn existing(&self, id: &SandboxId) -> Result<api::SandboxDetail, ProviderError> {
        self.look(id).await?.ok_or_else(|| ProviderError::NotFound { what: format!("sandbox {id}") })
    }

    /// Every sandbox whose metadata has these values, running or paused.
    async fn sandboxes(&self, wanted: &[(&str, &str)]) -> Result<Vec<ObservedSandbox>, ProviderError> {
        let filter = map::filter(wanted);
        let query = [("metadata", filter.as_str()), ("state", "running,paused")];
        let found = self.pages("list sandboxes", &["v2", "sandboxes"], &query).await?;
        Ok(found.into_iter().map(|sandbox| map::observed(sandbox, &self.domain)).collect())
    }

    /// The snapshots of ours, with their labels.
    async fn named_snapshots(
        &self,
    ) -> Result<Vec<(api::SnapshotInfo, BTreeMap<String, String>)>, ProviderError> {
        let found = self.pages("list snapshots", &["snapshots"], &[]).await?;
        let ours = |snapshot: api::SnapshotInfo| {
            let labels = map::snapshot_labels(&snapshot)?;
            Some((snapshot, labels))
        };
        Ok(found.into_iter().filter_map(ours).collect())
    }

    /// E2B's id of a snapshot of a project.
    async fn snapshot(&self, project: &str, name: &str) -> Result<Option<String>, ProviderError> {
        let address = format!("snapshot/{name}");
        let found = self.named_snapshots().await?.into_iter();
        let mut found = found.filter(|(_, labels)| label::are_of(labels, project, &address));
        Ok(found.next().map(|(snapshot, _)| snapshot.snapshot_id))
    }

    async fn all_volumes(&self) -> Result<Vec<api::Volume>, ProviderError> {
        self.api.call(Method::GET, &["volumes"]).read("list volumes").await
    }

    /// A volume of a project.
    async fn volume(&self, project: &str, name: &str) -> Result<Option<api::Volume>, ProviderError> {
        let address = format!("volume/{name}");
        let mut found = self.all_volumes().await?.into_iter();
        Ok(found.find(|volume| label::names(&volume.name, project, &address)))
    }

    /// Every page of a listing.
    async fn pages<T: DeserializeOwned>(
        &self,
        doing: &str,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, ProviderError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut call = self.api.call(Method::GET, path).query(query).query(&[("limit", PAGE)]);
            if let Some(cursor) = &cursor {
                call = call.query(&[("nextToken", cursor)]);
            }
            let (headers, page): (HeaderMap, Vec<T>) = call.read_with_headers(doing).await?;
            items.extend(page);
            let next = headers.get("x-next-token").and_then(|token| token.to_str().ok());
            match next.filter(|token| !token.is_empty()) {
                Some(next) if cursor.as_deref() != Some(next) => cursor = Some(next.to_owned()),
                Some(_) => break,
                None => return Ok(items),
            }
        }
        Err(ProviderError::Permanent {
            message: format!("cannot {doing}: the listing does not end"),
            source: None,
        })
    }

    /// Waits until the sandbox is where it is wanted.
    async fn settled(&self, id: &SandboxId, wanted: Option<&str>) -> Result<(), ProviderError> {
        let what = format!("sandbox {id}");
        settled(&what, wanted.unwrap_or("gone"), TRANSITION, || async {
            match (self.look(id).await?.map(|sandbox| sandbox.state), wanted) {
                (state, wanted) if state.as_deref() == wanted => Ok(None),
                (Some(state), _) => Ok(Some(state)),
                (None, _) => Err(ProviderError::NotFound { what: what.clone() }),
            }
        })
        .await
    }
}

/// The sentence in an error answer of either API.
fn message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Said {
        message: String,
    }
    serde_json::from_slice::<Said>(body).ok().map(|said| said.message)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[async_trait]
impl Provider for E2b {
    fn capabilities(&self) -> &Capabilities {
        &SHEET
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let mut listing = ObservedProvider::default();
        for volume in self.all_volumes().await? {
            let Some(labels) = label::named(&volume.name).filter(|labels| owner.has(labels)) else {
                continue;
            };
            let address = labels.get(names::ADDRESS).and_then(|address| address.strip_prefix("volume/"));
            if let Some(name) = address.map(str::to_owned) {
                listing.volumes.insert(name, ObservedVolume { labels, created_at: None });
            }
        }
        // Before the sandboxes: what one is made from meanwhile is not yet seen, and so not seen as unused.
        let snapshots = self.named_snapshots().await?;
        let ours = self.sandboxes(&owner.labels()).await?.into_iter();
        let ours = ours.filter(|sandbox| owner.has(&sandbox.labels));
        listing.sandboxes = ours.map(|sandbox| (sandbox.id.clone(), sandbox)).collect();
        for (snapshot, labels) in snapshots.into_iter().filter(|(_, labels)| owner.has(labels)) {
            let said = |name| labels.get(name).map_or("", String::as_str);
            let name = said(names::ADDRESS).strip_prefix("snapshot/").unwrap_or_default();
            let used_by = label::made_from(said(names::PROJECT), name, listing.sandboxes.values());
            let observed = ObservedSnapshot { labels, created_at: None, bytes: None, used_by };
            listing.snapshots.insert(snapshot.snapshot_id, observed);
        }
        Ok(listing)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        Ok(self.look(id).await?.map(|sandbox| map::observed(sandbox, &self.domain)))
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        let mut template = map::template(spec, &self.template)?.to_owned();
        if let Image::Snapshot(name) = &spec.image
            && let Some(id) = self.snapshot(&identity.project, name).await?
        {
            // Else it is one that E2B knows by this very name.
            template = id;
        }
        let mounts = match spec.mounts.is_empty() {
            true => Vec::new(),
            false => map::mounts(spec, &identity.project, &self.all_volumes().await?)?,
        };
        let wanted = map::new_sandbox(spec, identity, template, mounts, self.timeout, now())?;
        // E2B makes one sandbox of creates with one key that follow each other; how long it remembers a key it does not say.
        let key: String =
            identity.intent.0.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let call = self.api.call(Method::POST, &["v2", "sandboxes"]).timeout(SLOW);
        let call = call.header("idempotency-key", &key.to_ascii_lowercase()).json(&wanted);
        let made: api::Sandbox =
            call.read(&format!("create {}", identity.address)).await.map_err(|error| match error {
                ProviderError::NotFound { what } => ProviderError::Invalid { message: what },
                error => error,
            })?;
        Ok(SandboxId(made.sandbox_id))
    }

    /// There is nothing that could be changed: metadata stays as it was made, and so does what it says of the spec.
    async fn update(&self, id: &SandboxId, _: &SandboxSpec, _: &Identity) -> Result<(), ProviderError> {
        self.existing(id).await.map(drop)
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let found = self.existing(id).await?;
        // The time that it gets, and what happens at the end of it, is asked for anew each time.
        let asked = api::Timeout {
            timeout: Some(map::seconds(map::time_left(&found.metadata, self.timeout, now()))),
            ..api::Timeout::default()
        };
        let call = self.sandbox(Method::POST, id, &["connect"]).timeout(SLOW).json(&asked);
        call.done(&format!("start sandbox {id}")).await?;
        self.settled(id, Some("running")).await
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let call = self.sandbox(Method::POST, id, &["pause"]).timeout(SLOW).json(&api::Empty {});
        match call.done(&format!("pause sandbox {id}")).await {
            // It is paused already.
            Ok(()) | Err(ProviderError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        self.settled(id, Some("paused")).await
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        match self.sandbox(Method::DELETE, id, &[]).done(&format!("delete sandbox {id}")).await {
            Err(ProviderError::NotFound { .. }) => return Ok(()),
            other => other?,
        }
        self.settled(id, None).await
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        let found = self.existing(id).await?;
        let http = match &self.shared {
            Some(http) => http.clone(),
            None => {
                let domain = found.domain.as_deref().unwrap_or(&self.domain);
                Http::new(&format!("https://{}-{id}.{domain}", api::ENVD_PORT), message)?
                    .reached_like(&self.api)?
            }
        };
        let http = match &found.envd_access_token {
            Some(token) => http.secret_header("x-access-token", token)?,
            None => http,
        };
        let running = map::observed(found, &self.domain).state == SandboxState::Running;
        Ok(Box::new(guest::E2bGuest::new(http, id.clone(), running)))
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

impl Service for E2b {
    fn calls(&self) -> &'static Calls {
        &CALLS
    }

    fn behind(&self, detour: Arc<dyn Detour>) -> Result<Arc<dyn Provider>, ProviderError> {
        let api = self.api.behind(detour)?;
        let shared = self.shared.clone().map(|shared| shared.reached_like(&api)).transpose()?;
        let (domain, template) = (self.domain.clone(), self.template.clone());
        Ok(Arc::new(Self { api, domain, shared, template, timeout: self.timeout }))
    }
}

#[async_trait]
impl Snapshots for E2b {
    async fn create_snapshot(
        &self,
        of: &SandboxId,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(names::PROJECT).map_or("", String::as_str);
        // E2B would give the name to the new one.
        if self.snapshot(project, name).await?.is_some() {
            return Err(ProviderError::AlreadyExists { what: format!("snapshot {name}") });
        }
        // Of its memory nothing is kept: secrets are there, and what runs would run twice.
        let asked = api::NewSnapshot { name: Some(label::name(labels)), memory: Some(false) };
        let call = self.sandbox(Method::POST, of, &["snapshots"]).timeout(SLOW).json(&asked);
        call.done(&format!("take snapshot {name} of sandbox {of}")).await
    }

    async fn delete_snapshot(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let Some(id) = self.snapshot(project, name).await? else { return Ok(()) };
        let owner = Owner { project: Some(project.to_owned()), owner: None };
        label::unused(project, name, self.sandboxes(&owner.labels()).await?.iter())?;
        match self
            .api
            .call(Method::DELETE, &["templates", &id])
            .done(&format!("delete snapshot {name}"))
            .await
        {
            Err(ProviderError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl Volumes for E2b {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(names::PROJECT).map_or("", String::as_str);
        if self.volume(project, name).await?.is_some() {
            return Ok(());
        }
        let asked = api::NewVolume { name: label::name(labels) };
        let call = self.api.call(Method::POST, &["volumes"]).json(&asked);
        call.done(&format!("create volume {name}")).await
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let Some(volume) = self.volume(project, name).await? else { return Ok(()) };
        let call = self.api.call(Method::DELETE, &["volumes", &volume.volume_id]);
        match call.done(&format!("delete volume {name}")).await {
            Err(ProviderError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}
