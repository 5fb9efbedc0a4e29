//! The provider `sim`: a client of the simulated cloud that `pocketenv sim` serves, like that of any vendor. Its address is the setting
//! `providers.sim.url`, else `POCKETENV_SIM_URL`; a token that it asks for is `providers.sim.token`, `POCKETENV_SIM_TOKEN`, or sealed by
//! `provider login sim`.

pub mod api;
mod guest;
mod map;
mod sheet;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

pub use sheet::SHEET;

use super::http::{Call, Http};
use super::{
    BoundSecrets, BoundValue, Calls, Capabilities, Detour, Guest, Owner, Pattern, Provider, ProviderContext,
    ProviderError, Service, StopMeaning, Volumes,
};
use crate::model::{
    Identity, ObservedProvider, ObservedSandbox, SandboxId, SandboxSpec, SandboxState, labels,
};
use crate::secret::SecretValue;

/// The environment variable with its address.
pub const URL_VARIABLE: &str = "POCKETENV_SIM_URL";
/// The environment variable with the token that it asks for, if it asks for one.
pub const TOKEN_VARIABLE: &str = "POCKETENV_SIM_TOKEN";
/// The longest page that is asked for.
const PAGE: &str = "1000";
/// More pages than this are no listing.
const MAX_PAGES: usize = 10_000;
/// How long asking for its manners may take.
const OPENING: Duration = Duration::from_secs(5);
/// How long a sandbox may be on its way to where it is wanted.
const TRANSITION: Duration = Duration::from_secs(90);
/// Pauses between looks at it.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What the kit recognises calls by.
static CALLS: Calls = Calls {
    list: &[Pattern("GET", "/v1/sandboxes")],
    get: &[Pattern("GET", "/v1/sandboxes/*")],
    create: &[Pattern("POST", "/v1/sandboxes")],
    delete: &[Pattern("DELETE", "/v1/sandboxes/*")],
    exec: &[],
    retry_after: true,
    refusal: |_, message, _| {
        serde_json::json!({ "error": { "code": "refused", "message": message } }).to_string()
    },
};

/// The provider `sim`.
pub struct Sim {
    http: Http,
    sheet: Capabilities,
    /// Digests of the values of bound secrets, in a rehearsal of a manifest for a provider that binds them. Its sandboxes have no way out that
    /// could use them.
    bound: Mutex<BTreeMap<SandboxId, BTreeMap<String, String>>>,
}

impl Sim {
    /// Connects to a cloud and asks for its manners. If it cannot be asked, the worst is assumed of each; whatever is asked of it will fail as well.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] if the address is none that can be.
    pub async fn open(context: &ProviderContext) -> Result<Self, ProviderError> {
        let mut http = Http::new(context.setting("sim", "url").unwrap_or_default(), message)?;
        if let Some(token) = context.credential("sim", "token") {
            let bearer = SecretValue::new(format!("Bearer {}", token.expose()));
            http = http.secret_header("authorization", bearer.expose())?;
        }
        let mut sheet = SHEET.clone();
        let asked =
            http.call(Method::GET, &["v1", "capabilities"]).timeout(OPENING).read("ask for capabilities");
        match asked.await {
            Ok(api::CloudCapabilities {
                labels, idempotent_create, stop, settle_ms, concurrency, ..
            }) => {
                sheet.labels = labels;
                sheet.idempotent_create = idempotent_create;
                sheet.settle_ms = settle_ms;
                sheet.max_concurrency = concurrency;
                sheet.stop = if stop == "suspend" { StopMeaning::Suspend } else { StopMeaning::Destroy };
            }
            // Refused credentials are told before anything is begun.
            Err(error @ ProviderError::Unauthorised { .. }) => return Err(error),
            Err(error) => tracing::warn!(%error, "the simulated cloud does not answer"),
        }
        Ok(Self { http, sheet, bound: Mutex::default() })
    }

    fn observed(&self, sandbox: api::Sandbox) -> ObservedSandbox {
        let seen = map::observed(sandbox);
        let mut known = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.state != SandboxState::Running {
            known.remove(&seen.id);
        }
        ObservedSandbox { bound: known.get(&seen.id).cloned().unwrap_or_default(), ..seen }
    }

    fn sandbox(&self, method: Method, id: &SandboxId, rest: &[&str]) -> Call<'_> {
        self.http.call(method, &[&["v1", "sandboxes", &id.0], rest].concat())
    }

    /// Every page of a listing.
    async fn pages<T: DeserializeOwned>(
        &self,
        what: &str,
        filter: &[(&str, &str)],
    ) -> Result<Vec<T>, ProviderError> {
        let doing = format!("list {what}");
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut call = self.http.call(Method::GET, &["v1", what]).query(filter).query(&[("limit", PAGE)]);
            if let Some(cursor) = &cursor {
                call = call.query(&[("cursor", cursor)]);
            }
            let page: api::Page<T> = call.read(&doing).await?;
            items.extend(page.items);
            match page.next {
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

    async fn look(&self, id: &SandboxId) -> Result<Option<api::Sandbox>, ProviderError> {
        match self.sandbox(Method::GET, id, &[]).read(&format!("look at sandbox {id}")).await {
            Ok(sandbox) => Ok(Some(sandbox)),
            Err(ProviderError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until the sandbox is where it is wanted. A look that fails is repeated: what was asked for has been granted already.
    async fn settled(
        &self,
        id: &SandboxId,
        wanted: &str,
        there: impl Fn(Option<api::State>) -> bool,
    ) -> Result<(), ProviderError> {
        let deadline = Instant::now() + TRANSITION;
        let mut pause = FIRST_LOOK;
        loop {
            let mut asked = Duration::ZERO;
            let last = match self.look(id).await {
                Ok(found) => {
                    let state = found.as_ref().map(|s| s.state);
                    if there(state) {
                        return Ok(());
                    }
                    match state {
                        Some(api::State::Failed) => {
                            let message = format!("sandbox {id} has failed");
                            return Err(ProviderError::Permanent { message, source: None });
                        }
                        Some(state) => format!("{state:?}").to_lowercase(),
                        None => return Err(ProviderError::NotFound { what: format!("sandbox {id}") }),
                    }
                }
                Err(error) if error.is_retryable() => {
                    if let ProviderError::Throttled { retry_after: Some(after) } = error {
                        asked = after;
                    }
                    "not to be seen".to_owned()
                }
                Err(error) => return Err(error),
            };
            if Instant::now() >= deadline {
                let limit = TRANSITION.as_secs();
                let message = format!("sandbox {id} is {last} and not {wanted} after {limit} s");
                return Err(ProviderError::Permanent { message, source: None });
            }
            sleep(pause.max(asked)).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// What carries the identity: labels and a name for people, or a name alone.
    fn carried(&self, identity: &Identity) -> (String, BTreeMap<String, String>) {
        let labels = identity.to_labels();
        match self.sheet.labels {
            true => (map::display_name(identity), labels),
            false => (map::encode(&labels), BTreeMap::new()),
        }
    }
}

/// The sentence in an error answer.
fn message(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<api::ErrorBody>(body).ok().map(|body| body.error.message)
}

/// A conflict about an object that exists passes with time.
fn conflict_passes(error: ProviderError) -> ProviderError {
    match error {
        ProviderError::AlreadyExists { what } => ProviderError::Transient { message: what, source: None },
        error => error,
    }
}

fn raw(spec: &SandboxSpec) -> Result<Box<RawValue>, ProviderError> {
    serde_json::value::to_raw_value(spec)
        .map_err(|error| ProviderError::permanent("the spec cannot be sent", error))
}

#[async_trait]
impl Provider for Sim {
    fn capabilities(&self) -> &Capabilities {
        &self.sheet
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let project = owner.project.as_deref();
        let label = project.map(|project| format!("{}={project}", labels::PROJECT));
        let prefix = map::prefix(project);
        let filter = match (self.sheet.labels, &label) {
            (true, Some(label)) => vec![("label", label.as_str())],
            (true, None) => Vec::new(),
            (false, _) => vec![("prefix", prefix.as_str())],
        };
        let volume_prefix = project.map(|project| map::volume_name(project, ""));
        let volume_filter: Vec<_> = volume_prefix.iter().map(|prefix| ("prefix", prefix.as_str())).collect();
        let (sandboxes, volumes) = tokio::try_join!(
            self.pages::<api::Sandbox>("sandboxes", &filter),
            self.pages::<api::Volume>("volumes", &volume_filter),
        )?;
        let sandboxes = sandboxes.into_iter().map(|s| self.observed(s)).filter(|s| owner.has(&s.labels));
        let volumes =
            volumes.into_iter().filter_map(map::observed_volume).filter(|(_, v)| owner.has(&v.labels));
        Ok(ObservedProvider {
            sandboxes: sandboxes.map(|s| (s.id.clone(), s)).collect(),
            volumes: volumes.collect(),
            ..ObservedProvider::default()
        })
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        Ok(self.look(id).await?.map(|sandbox| self.observed(sandbox)))
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        let (name, labels) = self.carried(identity);
        let wanted = api::CreateSandbox {
            name,
            labels,
            spec: raw(spec)?,
            volumes: map::volumes(spec, &identity.project),
            ports: map::ports(spec),
            ttl_ms: spec.lifecycle.ttl.map(|ttl| ttl.as_millis()),
        };
        let call =
            self.http.call(Method::POST, &["v1", "sandboxes"]).header("idempotency-key", &identity.intent.0);
        let made: api::Sandbox = call.json(&wanted).read(&format!("create {}", identity.address)).await?;
        let id = SandboxId(made.id);
        self.settled(&id, "running", |state| state == Some(api::State::Running)).await?;
        Ok(id)
    }

    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        // The token of the create stays: an interrupted one is settled by it.
        let found =
            self.get(id).await?.ok_or_else(|| ProviderError::NotFound { what: format!("sandbox {id}") })?;
        let mut identity = identity.clone();
        if let Some(token) = found.labels.get(labels::INTENT) {
            identity.intent.0.clone_from(token);
        }
        let (name, labels) = self.carried(&identity);
        let patch = api::PatchSandbox {
            name: Some(name),
            labels: Some(labels).filter(|labels| !labels.is_empty()),
            spec: Some(raw(spec)?),
            volumes: Some(map::volumes(spec, &identity.project)),
            ports: Some(map::ports(spec)),
        };
        let call = self.sandbox(Method::PATCH, id, &[]).json(&patch);
        call.done(&format!("update sandbox {id}")).await.map_err(conflict_passes)
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let call = self.sandbox(Method::POST, id, &["start"]);
        call.done(&format!("start sandbox {id}")).await.map_err(conflict_passes)?;
        self.settled(id, "running", |state| state == Some(api::State::Running)).await
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        let call = self.sandbox(Method::POST, id, &["stop"]);
        call.done(&format!("stop sandbox {id}")).await.map_err(conflict_passes)?;
        self.settled(id, "stopped", |state| state == Some(api::State::Stopped)).await
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        match self.sandbox(Method::DELETE, id, &[]).done(&format!("delete sandbox {id}")).await {
            Err(ProviderError::NotFound { .. }) => return Ok(()),
            other => other.map_err(conflict_passes)?,
        }
        self.settled(id, "gone", |state| state.is_none()).await
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        Ok(Box::new(guest::SimGuest { http: self.http.clone(), id: id.clone() }))
    }

    fn volumes(&self) -> Option<&dyn Volumes> {
        Some(self)
    }

    fn bound_secrets(&self) -> Option<&dyn BoundSecrets> {
        Some(self)
    }

    fn service(&self) -> Option<&dyn Service> {
        Some(self)
    }
}

impl Service for Sim {
    fn calls(&self) -> &'static Calls {
        &CALLS
    }

    fn behind(&self, detour: Arc<dyn Detour>) -> Result<Arc<dyn Provider>, ProviderError> {
        Ok(Arc::new(Self {
            http: self.http.behind(detour)?,
            sheet: self.sheet.clone(),
            bound: Mutex::default(),
        }))
    }
}

#[async_trait]
impl BoundSecrets for Sim {
    async fn bind(&self, id: &SandboxId, values: &[BoundValue]) -> Result<(), ProviderError> {
        let digests = values.iter().map(|value| (value.name.clone(), value.digest.clone())).collect();
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), digests);
        Ok(())
    }
}

#[async_trait]
impl Volumes for Sim {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(labels::PROJECT).map_or("", String::as_str);
        let labels = if self.sheet.labels { labels.clone() } else { BTreeMap::new() };
        let wanted = api::Volume { name: map::volume_name(project, name), labels, created_at: 0 };
        let call = self.http.call(Method::POST, &["v1", "volumes"]).json(&wanted);
        match call.done(&format!("create volume {name}")).await {
            Err(ProviderError::AlreadyExists { .. }) => Ok(()),
            other => other,
        }
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let call = self.http.call(Method::DELETE, &["v1", "volumes", &map::volume_name(project, name)]);
        match call.done(&format!("delete volume {name}")).await {
            Err(ProviderError::NotFound { .. }) => Ok(()),
            other => other.map_err(conflict_passes),
        }
    }
}
