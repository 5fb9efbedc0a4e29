//! A project opened for work: its manifest, its record, its providers and its secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::OnceCell;

use super::snapshot::Fork;
use super::{Environment, Error, credentials, ports};
use crate::manifest::{self, Confinement, DeclaredPort, Input, LoadRequest, Manifest, Origins, Resolved};
use crate::model::{
    Address, Desired, DesiredSandbox, DriftPolicy, Identity, LimitHit, LinkSpec, NetworkMode, Observation,
    Observed, ObservedGuest, PortRef, ProbeResult, Recorded, SandboxId, SecretUse, Timestamp,
};
use crate::plan::{self, Plan, PlanInput, Policy};
use crate::provider::{Capabilities, Provider, Registry, builtin_capabilities};
use crate::reconcile::observe::{self, Listings};
use crate::reconcile::status::{self, ProjectStatus};
use crate::secret::{self, Secrets};
use crate::store::{Event, EventKind, EventQuery, KeptGoal, Store};

/// The operation of events about limits.
const LIMIT: &str = "limit";
/// The most events that are looked through for those that are known.
const KNOWN: usize = 10_000;

/// Which project, as the flags say.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `-f`, in order; empty to discover. `-` is standard input.
    pub files: Vec<PathBuf>,
    /// `-n`.
    pub project: Option<String>,
    /// `--profile`.
    pub profile: Option<String>,
    /// `--var`.
    pub vars: BTreeMap<String, String>,
    /// `--env-file`.
    pub env_files: Vec<PathBuf>,
    /// `--provider`: the default provider.
    pub provider: Option<String>,
    /// The limits of a manifest that is not trusted.
    pub confinement: Option<Confinement>,
    /// What is done about drift, over what the manifest says.
    pub drift: Option<DriftPolicy>,
}

/// The program as a library.
#[derive(Clone)]
pub struct App {
    environment: Environment,
    /// Opened when it is first needed.
    store: Arc<OnceCell<Store>>,
    /// The variables that manifests and their secrets see, if not all of the environment.
    visible: Option<BTreeMap<String, String>>,
}

impl App {
    /// The program in this environment.
    pub fn new(environment: Environment) -> Self {
        Self { environment, store: Arc::default(), visible: None }
    }

    /// The same program for manifests that see only these variables of the environment, and no home directory. Providers still find the
    /// credentials that the operator gave them.
    pub(super) fn showing(&self, names: &[String]) -> Self {
        let vars = &self.environment.vars;
        let visible = names.iter().filter_map(|name| Some((name.clone(), vars.get(name)?.clone()))).collect();
        let environment = Environment { home: None, ..self.environment.clone() };
        Self { environment, store: Arc::clone(&self.store), visible: Some(visible) }
    }

    /// The variables that manifests and their secrets see.
    pub(super) fn visible(&self) -> &BTreeMap<String, String> {
        self.visible.as_ref().unwrap_or(&self.environment.vars)
    }

    /// The world around this run.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Reads the manifest. Opens neither store nor network.
    pub fn load(&self, selection: &Selection) -> Result<Manifest, Error> {
        manifest::load(&self.request(selection)?).map_err(Error::Manifest)
    }

    /// Reads and checks the manifest as far as that is possible without asking anybody; the error has every problem.
    pub fn validate(&self, selection: &Selection) -> Result<Resolved, Error> {
        manifest::validate(&self.request(selection)?, builtin_capabilities()).map_err(Error::Manifest)
    }

    /// What a manifest declares, as far as that is known without asking anybody.
    pub fn resolve(&self, manifest: &Manifest) -> Result<Resolved, Error> {
        resolve(manifest, &BTreeMap::new())
    }

    fn request(&self, selection: &Selection) -> Result<LoadRequest, Error> {
        let env = &self.environment;
        let mut files = Vec::new();
        for file in &selection.files {
            if file.as_os_str() == "-" {
                files.push(Input::Stdin(standard_input()?));
            } else {
                files.push(Input::Path(file.clone()));
            }
        }
        if files.is_empty() {
            let found = manifest::discover(&env.cwd, &env.vars).map_err(|_| Error::NoManifest)?;
            files = found.into_iter().map(Input::Path).collect();
        }
        Ok(LoadRequest {
            files,
            profile: selection.profile.clone(),
            vars: selection.vars.clone(),
            env: self.visible().clone(),
            env_files: selection.env_files.clone(),
            project: selection.project.clone(),
            default_provider: selection.provider.clone(),
            home: env.home.clone(),
            confinement: selection.confinement.clone(),
        })
    }

    /// Opens the store, once.
    pub async fn store(&self) -> Result<Store, Error> {
        let env = &self.environment;
        let (path, clock, ids) = (env.directories.store(), env.clock.clone(), env.ids.clone());
        // Who runs on one thread does one thing at a time, and would only wait for another one.
        let alone = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::CurrentThread);
        let open = || async {
            if alone { Store::open_here(path, clock, ids) } else { Store::open(path, clock, ids).await }
        };
        Ok(self.store.get_or_try_init(open).await?.clone())
    }

    /// Opens a project: reads its manifest, checks what it declares, opens its store and its providers. Where there is no manifest and a project
    /// is named that the store knows, that project is opened without one; it can then be looked at and destroyed.
    pub async fn open(&self, selection: &Selection) -> Result<Project<'_>, Error> {
        self.open_with(selection, None).await
    }

    /// The same for getting at what there is: what the manifest declares is not looked into, and files that it names are not read.
    pub async fn find(&self, selection: &Selection) -> Result<Project<'_>, Error> {
        self.opened(selection, self.manifest(selection)?, None, None).await
    }

    /// Opens a project by its record alone, whatever manifests there are: it can be looked at and destroyed.
    pub(super) async fn open_recorded(&self, name: &str) -> Result<Project<'_>, Error> {
        let store = self.store().await?;
        let providers: BTreeSet<String> =
            store.recorded(name).await?.providers().into_iter().map(str::to_owned).collect();
        let registry = self.registry(&providers, None).await?;
        Ok(Project {
            app: self,
            name: name.to_owned(),
            manifest: None,
            checked: Mutex::default(),
            pinned: None,
            forks: BTreeMap::new(),
            kept: BTreeSet::new(),
            drift: None,
            store,
            registry,
            providers,
        })
    }

    /// The same, with providers that are open already instead of those that the manifest names.
    pub(super) async fn open_with(
        &self,
        selection: &Selection,
        registry: Option<Registry>,
    ) -> Result<Project<'_>, Error> {
        let manifest = self.manifest(selection)?;
        let checked = manifest.as_ref().map(|manifest| resolve(manifest, &BTreeMap::new())).transpose()?;
        self.opened(selection, manifest, checked, registry).await
    }

    /// The manifest, or none if there is none and a project is named.
    fn manifest(&self, selection: &Selection) -> Result<Option<Manifest>, Error> {
        match (self.load(selection), &selection.project) {
            (Err(Error::NoManifest), Some(_)) => Ok(None),
            (loaded, _) => loaded.map(Some),
        }
    }

    async fn opened(
        &self,
        selection: &Selection,
        manifest: Option<Manifest>,
        checked: Option<Resolved>,
        registry: Option<Registry>,
    ) -> Result<Project<'_>, Error> {
        let store = self.store().await?;
        let name = match (&manifest, &selection.project) {
            (Some(manifest), _) => manifest.project().to_owned(),
            (None, Some(name)) => name.clone(),
            (None, None) => return Err(Error::NoManifest),
        };
        let recorded = store.recorded(&name).await?;
        if manifest.is_none() && recorded == Recorded::default() {
            return Err(Error::NoManifest);
        }
        let mut providers: BTreeSet<String> =
            manifest.as_ref().map(Manifest::providers_used).unwrap_or_default();
        providers.extend(recorded.providers().into_iter().map(str::to_owned));
        let registry = match registry {
            Some(registry) => registry,
            None => self.registry(&providers, manifest.as_ref()).await?,
        };
        let project = Project {
            app: self,
            name,
            manifest,
            checked: Mutex::new(checked),
            pinned: None,
            forks: BTreeMap::new(),
            kept: BTreeSet::new(),
            drift: selection.drift,
            store,
            registry,
            providers,
        };
        project.pin_images()?;
        Ok(project)
    }

    /// A project whose goal, store and providers are given instead of read and opened, for simulations: what runs on them is the real loop.
    pub fn assemble(&self, goal: KeptGoal, store: Store, registry: Registry) -> Project<'_> {
        let providers = registry.iter().map(|(name, _)| name.to_owned()).collect();
        let name = goal.desired.project.clone();
        Project {
            app: self,
            name,
            manifest: None,
            checked: Mutex::default(),
            pinned: Some(goal),
            forks: BTreeMap::new(),
            kept: BTreeSet::new(),
            drift: None,
            store,
            registry,
            providers,
        }
    }

    /// Opens providers. One that cannot be opened is left out, unless the manifest could not do without it: then its listing is unavailable,
    /// which holds up only what depends on it.
    pub(super) async fn registry(
        &self,
        names: &BTreeSet<String>,
        manifest: Option<&Manifest>,
    ) -> Result<Registry, Error> {
        let sheets = credentials::sheets(names.iter().map(String::as_str));
        let context = self.provider_context(&sheets, manifest).await?;
        let names = sheets.iter().map(|sheet| sheet.provider);
        let opened = Registry::open(names, &context).await;
        opened.map_err(|(provider, source)| Error::Provider { provider, source })
    }
}

/// Takes secrets out of what health checks said: it is shown, and kept as the message of a condition. Where a secret has no value here, it
/// could not be found in the text, so none of the text is kept.
fn redact(
    guests: &mut BTreeMap<SandboxId, Observation<ObservedGuest>>,
    desired: &Desired,
    secrets: &Secrets,
) {
    let mut used = desired.sandboxes.values().flat_map(|sandbox| sandbox.guest.secrets.keys());
    let unknown = used.find(|name| secrets.get(name).is_none());
    for guest in guests.values_mut() {
        let Observation::Complete(guest) = guest else { continue };
        for service in guest.services.values_mut() {
            if let Some(ProbeResult::Failing(why)) = &mut service.health {
                *why = match unknown {
                    None => secrets.redact(why),
                    Some(name) => {
                        format!(
                            "its check fails; why is not shown, because secret `{name}` has no value here"
                        )
                    }
                };
            }
        }
    }
}

/// Standard input, bounded as every manifest is.
fn standard_input() -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let limit = manifest::MAX_FILE_BYTES + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|source| Error::Io {
        doing: "read",
        path: "standard input".into(),
        source,
    })?;
    Ok(bytes)
}

pub(super) fn resolve(
    manifest: &Manifest,
    endpoints: &BTreeMap<PortRef, (String, u16)>,
) -> Result<Resolved, Error> {
    let context = manifest::ResolveContext { endpoints, capabilities: builtin_capabilities() };
    manifest.resolve(&context).map_err(Error::Manifest)
}

/// An opened project.
pub struct Project<'a> {
    pub(super) app: &'a App,
    pub(super) name: String,
    pub(super) manifest: Option<Manifest>,
    /// What the manifest declares as far as that is known without host ports, until it is first asked for.
    checked: Mutex<Option<Resolved>>,
    /// What an earlier run was to achieve, instead of what the manifest says now.
    pub(super) pinned: Option<KeptGoal>,
    /// Sandboxes that are declared for this opening only.
    pub(super) forks: BTreeMap<String, Fork>,
    /// Sandboxes that stay as they were left, though they may not be declared.
    kept: BTreeSet<String>,
    /// What is done about drift, over what the manifest says.
    drift: Option<DriftPolicy>,
    pub(super) store: Store,
    pub(super) registry: Registry,
    providers: BTreeSet<String>,
}

/// Everything that a plan is made from, looked at just now.
pub struct View {
    /// When the look began: what happened later may be in it or not, and nothing in it is younger for that.
    pub at: Timestamp,
    /// What is asked.
    pub desired: Desired,
    /// Where it is asked; `None` without a manifest.
    pub origins: Option<Origins>,
    /// What the store remembers.
    pub recorded: Recorded,
    /// What is.
    pub observed: Observed,
    /// The values of secrets.
    pub secrets: Secrets,
    /// What should be told about secrets.
    pub warnings: Vec<String>,
}

impl Project<'_> {
    /// The project's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its manifest, if it was opened with one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The opened providers.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn provider(&self, name: &str) -> Result<&dyn Provider, Error> {
        let missing = || Error::Provider {
            provider: name.to_owned(),
            source: crate::provider::ProviderError::Unsupported {
                message: "this build does not have it".to_owned(),
            },
        };
        Ok(self.registry.get(name).ok_or_else(missing)?.as_ref())
    }

    /// The sheets of the opened providers.
    pub fn capabilities(&self) -> BTreeMap<String, &Capabilities> {
        self.registry.iter().map(|(name, provider)| (name.to_owned(), provider.capabilities())).collect()
    }

    pub(super) async fn listings(&self, recorded: &Recorded) -> Listings {
        observe::providers(&self.registry, &self.name, &self.providers, recorded).await
    }

    /// Looks at everything. With `keep`, host ports that are chosen are kept; without, looking changes nothing at all. With `values`, secrets
    /// that have no value are an error; without, whoever needs one waits.
    pub async fn look(&self, keep: bool, values: bool) -> Result<View, Error> {
        // Before anybody is asked: an answer may be older than the next one by as long as that takes.
        let at = self.app.environment.clock.now();
        let recorded = self.store.recorded(&self.name).await?;
        let listings = self.listings(&recorded).await;
        let (mut desired, origins) = match (&self.pinned, &self.manifest) {
            (Some(goal), _) => (goal.desired.clone(), None),
            (None, None) => {
                let empty = Desired {
                    project: self.name.clone(),
                    volumes: BTreeMap::new(),
                    sandboxes: BTreeMap::new(),
                };
                (empty, None)
            }
            (None, Some(manifest)) => {
                let declared = self.declared_ports(manifest);
                let endpoints =
                    ports::endpoints(&self.store, &self.name, &declared, &self.registry, &listings, keep)
                        .await?;
                let mut resolved = self.resolved(manifest, &endpoints)?;
                self.add_forks(&mut resolved.desired);
                self.place_ports(&mut resolved.desired, &endpoints);
                (resolved.desired, Some(resolved.origins))
            }
        };
        self.add_kept(&mut desired, &recorded);
        if let Some(drift) = self.drift {
            desired.sandboxes.values_mut().for_each(|sandbox| sandbox.drift = drift);
        }
        self.place_secrets(&mut desired);
        let (secrets, warnings) = self.secrets(&desired, values).await?;
        let mut guests = observe::guests(&self.registry, &desired, &listings).await;
        redact(&mut guests, &desired, &secrets);
        let observed = Observed { providers: listings, guests };
        Ok(View { at, desired, origins, recorded, observed, secrets, warnings })
    }

    /// Makes sandboxes that are not declared, such as forks, stay as they were left for this opening, so that they can be worked on.
    pub fn keep<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) {
        self.kept.extend(names.into_iter().map(str::to_owned));
    }

    fn add_kept(&self, desired: &mut Desired, recorded: &Recorded) {
        for name in &self.kept {
            let Some(left) = recorded.sandboxes.get(name) else { continue };
            if desired.sandboxes.contains_key(name) {
                continue;
            }
            let sandbox = DesiredSandbox {
                provider: left.provider.clone(),
                state: left.state,
                spec: left.spec.clone(),
                guest: left.guest.clone().unwrap_or_default(),
                depends_on: BTreeMap::new(),
                unresolved: BTreeSet::new(),
                drift: DriftPolicy::default(),
                protect: false,
                build_secrets: BTreeMap::new(),
            };
            desired.sandboxes.insert(name.clone(), sandbox);
        }
    }

    /// What the manifest declares. If nothing in it asks for an address, the check at opening knew it all.
    fn resolved(
        &self,
        manifest: &Manifest,
        endpoints: &BTreeMap<PortRef, (String, u16)>,
    ) -> Result<Resolved, Error> {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner).take();
        match checked {
            Some(known) if known.desired.sandboxes.values().all(|s| s.unresolved.is_empty()) => Ok(known),
            _ => resolve(manifest, endpoints),
        }
    }

    /// The ports of the manifest, and those that forks have of their parents.
    fn declared_ports(&self, manifest: &Manifest) -> Vec<DeclaredPort> {
        let mut ports = manifest.ports().to_vec();
        for (name, fork) in &self.forks {
            let of_parent: Vec<DeclaredPort> =
                ports.iter().filter(|declared| declared.port_ref.sandbox == fork.of).cloned().collect();
            ports.extend(of_parent.into_iter().map(|declared| DeclaredPort {
                port_ref: PortRef { sandbox: name.clone(), ..declared.port_ref },
                host_port: None,
                ..declared
            }));
        }
        ports
    }

    /// Writes the chosen host port of each declared port into the desired state, where the provider forwards ports from this host.
    fn place_ports(&self, desired: &mut Desired, endpoints: &BTreeMap<PortRef, (String, u16)>) {
        for (name, sandbox) in &mut desired.sandboxes {
            let forwards =
                self.registry.get(&sandbox.provider).is_some_and(|p| p.capabilities().forwards_from_host);
            if !forwards {
                continue;
            }
            for (port, spec) in &mut sandbox.spec.ports {
                let chosen = endpoints.get(&PortRef { sandbox: name.clone(), port: *port });
                spec.host_port = chosen.map(|(_, host_port)| *host_port);
            }
        }
        self.place_links(desired);
    }

    /// Writes what stands for bound secrets into the desired state.
    fn place_secrets(&self, desired: &mut Desired) {
        for (sandbox, declared) in &mut desired.sandboxes {
            for (name, bound) in &mut declared.spec.bound {
                let of = format!("{}/{sandbox}", self.name);
                bound.placeholder = secret::placeholder(self.store.digest_key(), &of, name);
                if let Some(SecretUse::Bound { placeholder, .. }) = declared.guest.secrets.get_mut(name) {
                    placeholder.clone_from(&bound.placeholder);
                }
            }
        }
    }

    /// Writes down which links carry datagrams. Who depends on a sandbox reaches its declared ports by its name; where the provider needs a link for that, here it is.
    fn place_links(&self, desired: &mut Desired) {
        let by_links =
            |provider: &str| self.registry.get(provider).is_some_and(|p| p.capabilities().names_by_links);
        let host_ports: BTreeMap<String, Vec<LinkSpec>> = (desired.sandboxes.iter())
            .filter(|(_, sandbox)| by_links(&sandbox.provider))
            .map(|(name, sandbox)| {
                let placed = sandbox.spec.ports.iter().filter_map(|(port, spec)| {
                    let to = PortRef { sandbox: name.clone(), port: *port };
                    Some(LinkSpec { to, host_port: spec.host_port?, udp: spec.protocol.is_udp() })
                });
                (name.clone(), placed.collect())
            })
            .collect();
        let udp: BTreeSet<PortRef> = (desired.sandboxes.iter())
            .flat_map(|(name, sandbox)| {
                let ports = sandbox.spec.ports.iter().filter(|(_, spec)| spec.protocol.is_udp());
                ports.map(|(port, _)| PortRef { sandbox: name.clone(), port: *port })
            })
            .collect();
        for sandbox in desired.sandboxes.values_mut() {
            let links = std::mem::take(&mut sandbox.spec.links).into_iter();
            sandbox.spec.links = links.map(|link| LinkSpec { udp: udp.contains(&link.to), ..link }).collect();
            if by_links(&sandbox.provider) && sandbox.spec.network.mode != NetworkMode::Host {
                let links = sandbox.depends_on.keys().filter_map(|name| host_ports.get(name)).flatten();
                sandbox.spec.links.extend(links.cloned());
            }
        }
    }

    /// The view if everything stood as it was last applied: nobody is asked.
    pub async fn assume(&self) -> Result<View, Error> {
        let recorded = self.store.recorded(&self.name).await?;
        let (mut desired, origins) = match (&self.pinned, &self.manifest) {
            (Some(goal), _) => (goal.desired.clone(), None),
            (None, Some(manifest)) => {
                let (declared, listings) = (manifest.ports(), Listings::new());
                let endpoints =
                    ports::endpoints(&self.store, &self.name, declared, &self.registry, &listings, false)
                        .await?;
                let mut resolved = self.resolved(manifest, &endpoints)?;
                self.place_ports(&mut resolved.desired, &endpoints);
                (resolved.desired, Some(resolved.origins))
            }
            (None, None) => return Err(Error::NoManifest),
        };
        desired.project.clone_from(&self.name);
        self.place_secrets(&mut desired);
        let (secrets, warnings) = self.secrets(&desired, true).await?;
        let digests = secrets.digests(self.store.digest_key());
        let owner = self.store.owner();
        let observed = plan::assume(&self.name, owner, &recorded, self.providers.iter().cloned(), &digests);
        let at = self.app.environment.clock.now();
        Ok(View { at, desired, origins, recorded, observed, secrets, warnings })
    }

    /// The values of the secrets that sandboxes use.
    pub(super) async fn secrets(
        &self,
        desired: &Desired,
        all: bool,
    ) -> Result<(Secrets, Vec<String>), Error> {
        let declared = match (&self.pinned, &self.manifest) {
            (Some(goal), _) => &goal.secrets,
            (None, Some(manifest)) => manifest.secrets(),
            (None, None) => return Ok((Secrets::new(BTreeMap::new()), Vec::new())),
        };
        let used: BTreeSet<&String> = desired
            .sandboxes
            .values()
            .flat_map(|s| {
                let credentials = s.guest.repositories.values().filter_map(|r| r.credentials.as_ref());
                s.guest.secrets.keys().chain(credentials).chain(s.build_secrets.values())
            })
            .collect();
        let sources: BTreeMap<String, secret::SecretSource> =
            declared.iter().filter(|(n, _)| used.contains(n)).map(|(n, s)| (n.clone(), s.clone())).collect();
        let vars = self.app.visible();
        let vault = self.app.vault_for(&sources).await;
        if all {
            let resolved = secret::resolve_all(&sources, vars, &vault?).await?;
            let warnings = resolved.warnings.iter().map(|(n, w)| format!("secret `{n}`: {w}")).collect();
            return Ok((Secrets::new(resolved.values), warnings));
        }
        // Whoever needs a value that is not there waits, and says so.
        let vault = vault.unwrap_or_default();
        let mut values = BTreeMap::new();
        for (name, source) in &sources {
            if let Ok(resolved) = secret::resolve(source, vars, &vault).await {
                values.insert(name.clone(), resolved.value);
            }
        }
        Ok((Secrets::new(values), Vec::new()))
    }

    /// Makes the plan for a view. It is checked before anybody sees it.
    pub fn plan(&self, view: &View, policy: &Policy) -> Result<Plan, Error> {
        let capabilities = self.capabilities();
        let digests = view.secrets.digests(self.store.digest_key());
        let origin = |address: &Address, field: &str| view.origins.as_ref()?.get(address, field);
        let input = PlanInput {
            desired: &view.desired,
            recorded: &view.recorded,
            observed: &view.observed,
            capabilities: &capabilities,
            secrets: &digests,
            origin: &origin,
            policy,
            now: view.at,
        };
        let plan = plan::plan(&input);
        let findings = plan::lint::lint(&plan, &input);
        if findings.is_empty() {
            return Ok(plan);
        }
        let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
        Err(Error::Unsound(text.join("; ")))
    }

    /// Turns to what run `revision` was to achieve, for a rollback: a plan like any other.
    pub async fn pin(&mut self, revision: u64) -> Result<(), Error> {
        let goal = self.store.goal(&self.name, revision).await?;
        let goal = goal.ok_or_else(|| Error::Unknown {
            kind: "revision",
            name: revision.to_string(),
            project: self.name.clone(),
            close: None,
        })?;
        self.providers.extend(goal.desired.sandboxes.values().map(|s| s.provider.clone()));
        self.providers.extend(goal.desired.volumes.values().map(|v| v.provider.clone()));
        self.registry = self.app.registry(&self.providers, self.manifest.as_ref()).await?;
        self.pinned = Some(goal);
        Ok(())
    }

    /// What this run is to achieve, to be kept.
    pub(super) fn goal(&self, desired: &Desired) -> KeptGoal {
        let secrets = match (&self.pinned, &self.manifest) {
            (Some(goal), _) => goal.secrets.clone(),
            (None, Some(manifest)) => manifest.secrets().clone(),
            (None, None) => BTreeMap::new(),
        };
        KeptGoal { desired: desired.clone(), secrets }
    }

    /// Measures the status of everything desired or recorded.
    pub async fn status(&self) -> Result<(ProjectStatus, Plan), Error> {
        let view = self.look(false, false).await?;
        let plan = self.plan(&view, &Policy::default())?;
        self.note_limits(&view).await?;
        let mut status = status::status(&view.desired, &view.recorded, &view.observed, &plan);
        let conditions: Vec<_> = status
            .resources
            .iter()
            .flat_map(|r| r.conditions.iter().map(|c| (r.address.clone(), c.clone())))
            .collect();
        let now = self.app.environment.clock.now();
        let mut stamped = self.store.stamp(&self.name, conditions, now).await?.into_iter();
        for resource in &mut status.resources {
            for condition in &mut resource.conditions {
                if let Some((_, with_time)) = stamped.next() {
                    *condition = with_time;
                }
            }
        }
        Ok((status, plan))
    }

    /// Makes events of what limits held back since somebody last looked.
    async fn note_limits(&self, view: &View) -> Result<(), Error> {
        let listings = view.observed.providers.values().filter_map(Observation::complete);
        for sandbox in listings.flat_map(|listing| listing.sandboxes.values()) {
            let Some(first) = sandbox.usage.hits.first() else { continue };
            let Ok(Some(identity)) = Identity::from_labels(&sandbox.labels) else { continue };
            if identity.project != self.name {
                continue;
            }
            let address = identity.address;
            let query = EventQuery { address: Some(address.clone()), since: Some(first.at), after: None };
            let known = self.store.events(&self.name, query, KNOWN).await?;
            let is_new = |hit: &&LimitHit| {
                let same = |event: &Event| {
                    event.operation == LIMIT && event.at == hit.at && event.address.as_ref() == Some(&address)
                };
                !known.iter().any(|known| same(&known.event))
            };
            let events = sandbox.usage.hits.iter().filter(is_new).map(|hit| Event {
                at: hit.at,
                address: Some(address.clone()),
                kind: EventKind::Warning,
                operation: LIMIT.to_owned(),
                reason: hit.reason.clone(),
                message: hit.message.clone(),
                run: None,
            });
            let events: Vec<Event> = events.collect();
            if !events.is_empty() {
                self.store.append(&self.name, events).await?;
            }
        }
        Ok(())
    }

    /// Providers that could not be asked, with their reasons.
    pub fn unavailable(view: &View) -> Vec<(String, String)> {
        let all = view.observed.providers.iter();
        all.filter_map(|(name, observation)| match observation {
            Observation::Complete(_) => None,
            Observation::Unavailable { reason } => Some((name.clone(), reason.clone())),
        })
        .collect()
    }
}
