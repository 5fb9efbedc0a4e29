//! The merged tree to everything it declares: one pass, run by `load` (nothing of the host read, no provider known) and by
//! `resolve` (everything).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DeclaredPort;
use super::across;
use super::capability;
use super::check::Checker;
use super::confine::Confinement;
use super::diagnostic::{Problem, Problems};
use super::language::{self, Setting};
use super::limits;
use super::lower::{Declared, FileCache, Hashes, Lowering, absolute, leads_out};
use super::node::{Entry, Node, Value, quote};
use super::normal;
use super::origins::Origins;
use super::schema::{Met, rules};
use super::source::{Sources, Span};
use super::template::{PortTable, Scope, Templates};
use crate::model::{Desired, DesiredSandbox, DesiredVolume, LinkSpec, PortRef};
use crate::provider::Capabilities;
use crate::secret::SecretSource;

/// The most sandboxes of one project, replicas counted.
pub const MAX_SANDBOXES: usize = 20_000;
/// The most values and bytes of text that they have together.
const MAX_VALUES: usize = 4_000_000;
const MAX_BYTES: usize = 256 << 20;

/// What does not change between `load` and `resolve`.
#[derive(Debug)]
pub(crate) struct Given {
    pub sources: Arc<Sources>,
    /// All files merged, nothing rendered.
    pub tree: Node,
    pub env: BTreeMap<String, String>,
    /// `--var`.
    pub vars: BTreeMap<String, String>,
    /// `-n/--project`.
    pub project: Option<String>,
    /// The name to use if the manifest has none.
    pub directory_name: String,
    /// `--provider`.
    pub provider: Option<String>,
    pub home: Option<PathBuf>,
    pub confinement: Option<Confinement>,
    pub hashes: Arc<Hashes>,
}

/// Everything a manifest declares.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub desired: Desired,
    pub origins: Origins,
    pub secrets: BTreeMap<String, SecretSource>,
    pub settings: BTreeMap<String, BTreeMap<String, Setting>>,
    pub ports: Vec<DeclaredPort>,
    /// Files and directories of the host that were read for it, beyond the manifest itself.
    pub inputs: BTreeSet<PathBuf>,
}

/// What only `resolve` has.
pub(crate) struct World<'a> {
    pub endpoints: &'a BTreeMap<PortRef, (String, u16)>,
    pub capabilities: &'a [&'a Capabilities],
}

pub(crate) fn assemble(
    given: &Given,
    world: Option<&World<'_>>,
    problems: &mut Problems,
) -> Option<Assembled> {
    let mut pass = Pass { given, world, templates: Templates::default(), met: Met::default(), problems };
    pass.run()
}

struct Pass<'a> {
    given: &'a Given,
    world: Option<&'a World<'a>>,
    templates: Templates,
    met: Met,
    problems: &'a mut Problems,
}

/// A sandbox of the tree before it is rendered.
pub(super) struct Declaration {
    pub(super) name: String,
    pub(super) key: Span,
    pub(super) node: Node,
    pub(super) replicas: Vec<String>,
    counted: bool,
}

impl<'a> Pass<'a> {
    fn run(&mut self) -> Option<Assembled> {
        let mut root = self.given.tree.clone();
        root.as_map()?;
        let origin = root.span;
        let start = Span { end: origin.start, ..origin };
        let sandboxes = root.take("sandboxes");
        let vars = self.vars(root.take("vars"));
        let presets = self.presets(root.take("presets"));
        let project = self.project(root.take("name"), &vars);
        let scope = Scope {
            env: Some(&self.given.env),
            vars: Some(&vars),
            project: Some(&project),
            ..Scope::default()
        };
        let volumes_written: Vec<String> = keys(root.get("volumes"));
        let secrets_written: Vec<String> = keys(root.get("secrets"));
        self.check(&mut root, &rules().root, start, Some(&scope));
        let rest = root;
        let defaults: language::Defaults = self.typed(rest.get("defaults")).unwrap_or_default();
        let default_provider = match (&self.given.provider, &defaults.provider) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name.0.clone(),
            (None, None) => "local".to_owned(),
        };
        if self.given.provider.is_none() || defaults.provider.is_some() {
            self.provider(&default_provider, rest.span_at(&["defaults", "provider"]));
        }
        let settings = self.settings(rest.get("providers"), &secrets_written);
        let mut origins = Origins::new(&self.given.sources);
        let mut declared = Declared {
            volumes: volumes_written.into_iter().map(|name| (name, false)).collect(),
            secrets: secrets_written.into_iter().collect(),
            presets,
            ..Declared::default()
        };
        let volumes = self.volumes(&rest, &defaults, &default_provider, &mut declared, &mut origins);
        let secrets = self.secrets(rest.get("secrets"));
        let declarations = self.declarations(sandboxes, &scope, &mut declared);
        let table = self.port_table(&declarations, &scope);
        let mut desired = Desired { project: project.clone(), volumes, sandboxes: BTreeMap::new() };
        let mut cache = FileCache::new(&self.given.hashes);
        for declaration in &declarations {
            self.sandbox(
                declaration,
                &Common {
                    vars: &vars,
                    project: &project,
                    table: &table,
                    declared: &declared,
                    defaults: &defaults,
                    default_provider: &default_provider,
                },
                &mut cache,
                &mut desired,
                &mut origins,
            );
        }
        across::check(&declarations, &desired, self.given.tree.span, self.problems);
        let ports = desired
            .sandboxes
            .iter()
            .flat_map(|(name, sandbox)| {
                sandbox.spec.ports.iter().map(|(port, spec)| DeclaredPort {
                    port_ref: PortRef { sandbox: name.clone(), port: *port },
                    provider: sandbox.provider.clone(),
                    host_port: spec.host_port,
                })
            })
            .collect();
        let inputs = cache.paths();
        Some(Assembled { desired, origins, secrets, settings, ports, inputs })
    }

    fn check(
        &mut self,
        node: &mut Node,
        schema: &'static serde_json::Value,
        at: Span,
        scope: Option<&Scope<'_>>,
    ) -> bool {
        Checker {
            root: rules(),
            met: &mut self.met,
            sources: &self.given.sources,
            templates: &self.templates,
            scope,
            problems: self.problems,
        }
        .check(node, schema, at)
    }

    /// Checks one property of the root by itself.
    fn check_property(&mut self, entry: &mut Entry, scope: Option<&Scope<'_>>) -> bool {
        match rules().root.get("properties").and_then(|p| p.get(&entry.key)) {
            Some(property) => self.check(&mut entry.value, property, entry.key_span, scope),
            None => true,
        }
    }

    /// A checked value as its type. The schema is made from the type, so what it accepts can be read.
    fn typed<T: serde::de::DeserializeOwned>(&mut self, node: Option<&Node>) -> Option<T> {
        let node = node?;
        match serde_json::from_value(node.to_json()) {
            Ok(value) => Some(value),
            Err(error) => {
                // Reached after a problem was reported and a part removed, or by a mistake of ours in the schema.
                if self.problems.errors() == 0 {
                    self.problems.push(Problem::error(
                        "internal",
                        node.span,
                        format!("this cannot be read: {error}"),
                    ));
                }
                None
            }
        }
    }

    fn provider(&mut self, name: &str, span: Span) {
        if let Some(world) = self.world
            && !world.capabilities.iter().any(|c| c.provider == name)
        {
            let known = world.capabilities.iter().map(|c| c.provider);
            self.problems.push(
                Problem::error("unknown-reference", span, format!("there is no provider {}", quote(name)))
                    .suggest(name, known),
            );
        }
    }

    fn vars(&mut self, entry: Option<Entry>) -> BTreeMap<String, String> {
        let given = self.given;
        let overriding = |name: &str| {
            given.vars.get(name).or_else(|| given.env.get(&format!("POCKETENV_VAR_{name}"))).cloned()
        };
        let mut vars = BTreeMap::new();
        let mut span = given.tree.span;
        span.end = span.start;
        if let Some(mut entry) = entry {
            span = entry.key_span;
            // What is overridden is neither rendered nor required to have a value.
            if let Value::Map(entries) = &mut entry.value.value {
                entries.retain(|e| match overriding(&e.key) {
                    Some(value) => {
                        vars.insert(e.key.clone(), value);
                        false
                    }
                    None => true,
                });
            }
            let scope = Scope { env: Some(&given.env), ..Scope::default() };
            if !entry.value.is_null() && self.check_property(&mut entry, Some(&scope)) {
                let map = entry.value.as_map().unwrap_or_default();
                vars.extend(map.iter().filter_map(|e| Some((e.key.clone(), e.value.as_text()?.to_owned()))));
            }
        }
        for name in given.vars.keys() {
            if !vars.contains_key(name) {
                let known: Vec<&str> = vars.keys().map(String::as_str).collect();
                self.problems.push(
                    Problem::error(
                        "unknown-reference",
                        span,
                        format!("`--var {name}=…`: the manifest has no variable {}", quote(name)),
                    )
                    .suggest(name, known),
                );
            }
        }
        vars
    }

    fn presets(&mut self, entry: Option<Entry>) -> BTreeMap<String, Option<language::Preset>> {
        let Some(mut entry) = entry.filter(|e| !e.value.is_null()) else { return BTreeMap::new() };
        let written = keys(Some(&entry.value));
        // No scope: the text of a preset is a script, never a template.
        let good = self.check_property(&mut entry, None);
        written
            .into_iter()
            .map(|name| {
                let preset = entry.value.get(&name).filter(|_| good).cloned();
                let typed: Option<language::Preset> = self.typed(preset.as_ref());
                if let (Some(typed), Some(node)) = (&typed, &preset) {
                    self.step_names(typed, node);
                }
                (name, typed)
            })
            .collect()
    }

    fn step_names(&mut self, preset: &language::Preset, node: &Node) {
        let mut seen = BTreeMap::new();
        for (i, step) in preset.steps.iter().enumerate() {
            let Some(name) = &step.name else { continue };
            let span = node.span_at(&["steps", &i.to_string(), "name"]);
            if let Some(first) = seen.insert(name.0.clone(), span) {
                self.problems.push(
                    Problem::error("duplicate", span, format!("two steps are called {}", quote(&name.0)))
                        .related(first, "first here"),
                );
            }
        }
    }

    fn project(&mut self, entry: Option<Entry>, vars: &BTreeMap<String, String>) -> String {
        let mut written = None;
        if let Some(mut entry) = entry.filter(|e| !e.value.is_null()) {
            let scope = Scope { env: Some(&self.given.env), vars: Some(vars), ..Scope::default() };
            if self.check_property(&mut entry, Some(&scope)) {
                written = entry.value.as_text().map(str::to_owned);
            }
        }
        self.given.project.clone().or(written).unwrap_or_else(|| self.given.directory_name.clone())
    }

    fn settings(
        &mut self,
        node: Option<&Node>,
        secrets: &[String],
    ) -> BTreeMap<String, BTreeMap<String, Setting>> {
        let Some(node) = node else { return BTreeMap::new() };
        let refused =
            self.given.confinement.as_ref().is_some_and(|confinement| !confinement.provider_settings);
        for entry in node.as_map().unwrap_or_default() {
            if refused {
                let message = "a manifest of this source may not set providers up";
                let help =
                    "the operator allows it with `provider_settings: true` under `allow` of the source";
                self.problems.push(Problem::error("not-allowed", entry.key_span, message).help(help));
            }
            self.provider(&entry.key, entry.key_span);
            let sheet = self.sheet(&entry.key);
            for setting in entry.value.as_map().unwrap_or_default() {
                if let Some(sheet) = sheet {
                    self.setting(sheet, setting);
                }
                if let Some(secret) = setting.value.get("secret")
                    && let Some(name) = secret.as_text().filter(|n| !secrets.iter().any(|s| s == n))
                {
                    self.problems.push(
                        Problem::error(
                            "unknown-reference",
                            secret.span,
                            format!("there is no secret {}", quote(name)),
                        )
                        .suggest(name, secrets.iter().map(String::as_str)),
                    );
                }
            }
        }
        self.typed(Some(node)).unwrap_or_default()
    }

    /// A setting against the provider's sheet: it has to be one of its, and a credential never stands in the file.
    fn setting(&mut self, sheet: &Capabilities, setting: &Entry) {
        let Some(known) = sheet.setting(&setting.key) else {
            let message = format!("provider `{}` has no setting {}", sheet.provider, quote(&setting.key));
            let names = sheet.settings.iter().map(|setting| setting.name);
            self.problems
                .push(Problem::error("unknown-key", setting.key_span, message).suggest(&setting.key, names));
            return;
        };
        if known.secret && setting.value.get("secret").is_none() {
            let message = format!("`{}` is a credential, which does not stand in a manifest", known.name);
            let mut help = "name a secret: `{ secret: NAME }`".to_owned();
            if let Some(variable) = known.variable {
                help.push_str(&format!("; or leave it out and set {variable}"));
            }
            self.problems.push(Problem::error("plain-credential", setting.value.span, message).help(help));
        }
    }

    fn volumes(
        &mut self,
        rest: &Node,
        defaults: &language::Defaults,
        default_provider: &str,
        declared: &mut Declared,
        origins: &mut Origins,
    ) -> BTreeMap<String, DesiredVolume> {
        let mut volumes = BTreeMap::new();
        let Some(node) = rest.get("volumes") else { return volumes };
        for entry in node.as_map().unwrap_or_default() {
            let Some(raw) = self.typed::<language::Volume>(Some(&entry.value)) else { continue };
            origins.add(format!("volumes.{}", entry.key), entry.key_span, &entry.value, &self.given.sources);
            let provider = raw.provider.map_or_else(|| default_provider.to_owned(), |p| p.0);
            if let Some(node) = entry.value.get("provider") {
                self.provider(&provider, node.span);
            }
            if let Some(secret) = raw.s3.as_ref().and_then(|s| s.credentials.as_ref())
                && !declared.secrets.contains(&secret.secret)
            {
                let span = entry.value.span_at(&["s3", "credentials", "secret"]);
                self.problems.push(
                    Problem::error(
                        "unknown-reference",
                        span,
                        format!("there is no secret {}", quote(&secret.secret)),
                    )
                    .suggest(&secret.secret, declared.secrets.iter().map(String::as_str)),
                );
            }
            if let Some(sheet) = self.sheet(&provider) {
                capability::check(&entry.value, &["volumes"], sheet, self.problems);
            }
            declared.volumes.insert(entry.key.clone(), raw.read_only.unwrap_or(false));
            let protect = raw.protect.or(defaults.protect).unwrap_or(false);
            volumes.insert(entry.key.clone(), DesiredVolume { provider, protect });
        }
        volumes
    }

    fn sheet(&self, provider: &str) -> Option<&'a Capabilities> {
        self.world?.capabilities.iter().copied().find(|c| c.provider == provider)
    }

    fn secrets(&mut self, node: Option<&Node>) -> BTreeMap<String, SecretSource> {
        let mut secrets = BTreeMap::new();
        for entry in node.and_then(Node::as_map).unwrap_or_default() {
            let Some(raw) = self.typed::<language::SecretSource>(Some(&entry.value)) else { continue };
            let mut sources: Vec<SecretSource> = Vec::new();
            if let (Some(name), Some(confinement)) = (&raw.env, &self.given.confinement)
                && !confinement.secret_env.contains(&name.0)
            {
                let span = entry.value.span_at(&["env"]);
                let message =
                    format!("the account of this project may not read the variable {}", quote(&name.0));
                let help = "the operator allows it under `env` of an account";
                self.problems.push(Problem::error("not-allowed", span, message).help(help));
            }
            sources.extend(raw.env.map(|name| SecretSource::Env(name.0)));
            if let Some(path) = raw.file {
                let span = entry.value.span_at(&["file"]);
                let path = self.given.sources.resolve_path(span, &path.0, self.given.home.as_deref());
                if self.given.confinement.as_ref().is_some_and(|c| !c.holds_secret(&path)) {
                    let help = "the operator allows it under `files` of the account of the project";
                    self.problems.push(leads_out(span).help(help));
                    continue;
                }
                sources.push(SecretSource::File(absolute(&path)));
            }
            if let Some(confinement) = &self.given.confinement {
                let refused = [
                    ("command", confinement.command_secrets, raw.command.is_some()),
                    ("vault", confinement.vault_secrets, raw.vault.is_some()),
                ];
                for (kind, _, _) in refused.into_iter().filter(|(_, allowed, written)| *written && !allowed) {
                    let span = entry.value.key_span(&[kind]);
                    let message = format!("a secret of this source may not come from `{kind}`");
                    let help = format!(
                        "the operator allows it with `{kind}_secrets: true` under `allow` of the source"
                    );
                    self.problems.push(Problem::error("not-allowed", span, message).help(help));
                }
            }
            sources.extend(
                raw.command.map(|argv| SecretSource::Command(argv.into_iter().map(|w| w.0).collect())),
            );
            sources.extend(raw.vault.map(|name| SecretSource::Vault(name.0)));
            if sources.len() > 1 || (sources.is_empty() && entry.value.as_map().is_some()) {
                self.problems.push(
                    Problem::error(
                        "conflict",
                        entry.key_span,
                        format!("the secret `{}` has {} sources", entry.key, sources.len()),
                    )
                    .expected("exactly one of `env`, `file`, `command`, `vault`"),
                );
            }
            secrets.extend(sources.into_iter().next().map(|source| (entry.key.clone(), source)));
        }
        secrets
    }

    fn declarations(
        &mut self,
        sandboxes: Option<Entry>,
        scope: &Scope<'_>,
        declared: &mut Declared,
    ) -> Vec<Declaration> {
        let Some(mut entry) = sandboxes.filter(|e| !e.value.is_null()) else { return Vec::new() };
        let Value::Map(entries) = std::mem::replace(&mut entry.value.value, Value::Map(Vec::new())) else {
            self.problems.push(
                Problem::error(
                    "wrong-type",
                    entry.key_span,
                    "`sandboxes` is a mapping from names to sandboxes",
                )
                .help("write `sandboxes: { NAME: { … } }`"),
            );
            return Vec::new();
        };
        let mut all = Vec::with_capacity(entries.len());
        let mut places: BTreeMap<String, Span> = BTreeMap::new();
        let (mut values, mut bytes) = (0usize, 0usize);
        for Entry { key: name, key_span: key, mut value } in entries {
            if let Err(why) = language::name(&name) {
                let kind = language::by_name("Name").map_or("a name", |t| t.expected);
                self.problems
                    .push(Problem::error("bad-name", key, format!("{} {why}", quote(&name))).expected(kind));
                continue;
            }
            if value.is_null() {
                value.value = Value::Map(Vec::new());
            }
            let count = value
                .get("count")
                .and_then(|n| self.quiet(n, scope)?.parse::<u32>().ok())
                .filter(|n| (1..=1000).contains(n));
            let counted = value.get("count").is_some_and(|n| !n.is_null());
            let (nodes, text) = super::yaml::weight(&value);
            let times = count.unwrap_or(1) as usize;
            values = values.saturating_add(nodes.saturating_mul(times));
            bytes = bytes.saturating_add(text.saturating_mul(times));
            if places.len() + times > MAX_SANDBOXES || values > MAX_VALUES || bytes > MAX_BYTES {
                self.problems.push(
                    Problem::error(
                        "too-large",
                        key,
                        format!("the project is too large from {} on, replicas counted", quote(&name)),
                    )
                    .help(format!("a project has at most {MAX_SANDBOXES} sandboxes; split it into several")),
                );
                return Vec::new();
            }
            let replicas: Vec<String> = match count {
                Some(n) => (1..=n).map(|i| format!("{name}-{i}")).collect(),
                None => vec![name.clone()],
            };
            for replica in &replicas {
                if let Some(first) = places.insert(replica.clone(), key) {
                    self.problems.push(
                        Problem::error("duplicate", key, format!("two sandboxes are called `{replica}`"))
                            .related(first, "the other one"),
                    );
                }
                declared.declaration.insert(replica.clone(), name.clone());
            }
            let services = value.get("services").and_then(Node::as_map).unwrap_or_default();
            if services.iter().any(|s| s.value.get("healthcheck").is_some_and(|h| !h.is_null())) {
                declared.checked.insert(name.clone());
            }
            declared.replicas.insert(name.clone(), replicas.clone());
            all.push(Declaration { name, key, node: value, replicas, counted });
        }
        all
    }

    /// A scalar's text, rendered; `None` for whatever is wrong, which the real pass reports.
    fn quiet(&self, node: &Node, scope: &Scope<'_>) -> Option<String> {
        let text = node.as_text()?;
        if !text.contains("{{") {
            return Some(text.to_owned());
        }
        let at = super::template::At { sources: &self.given.sources, span: node.span, anchor: None };
        self.templates.render(text, scope, &at).ok()
    }

    /// The ports of all sandboxes, read before any of them is rendered, because templates of one may mention ports of another.
    fn port_table(&self, declarations: &[Declaration], scope: &Scope<'_>) -> PortTable<'a> {
        static NONE: BTreeMap<PortRef, (String, u16)> = BTreeMap::new();
        let mut declared: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
        for declaration in declarations {
            let items = declaration.node.get("ports").and_then(Node::as_list).unwrap_or_default();
            for (i, replica) in declaration.replicas.iter().enumerate() {
                let scope = Scope {
                    env: scope.env,
                    vars: scope.vars,
                    project: scope.project,
                    index: declaration.counted.then_some(i as u32 + 1),
                    ..Scope::default()
                };
                let ports = items.iter().filter_map(|item| {
                    let text = self.quiet(item.get("port").unwrap_or(item), &scope)?;
                    language::parse_port_text(&text).ok().map(|(_, port)| port)
                });
                declared.insert(replica.clone(), ports.collect());
            }
        }
        PortTable { declared, endpoints: self.world.map_or(&NONE, |w| w.endpoints) }
    }
}

/// What all sandboxes share.
struct Common<'a> {
    vars: &'a BTreeMap<String, String>,
    project: &'a str,
    table: &'a PortTable<'a>,
    declared: &'a Declared,
    defaults: &'a language::Defaults,
    default_provider: &'a str,
}

fn keys(node: Option<&Node>) -> Vec<String> {
    node.and_then(Node::as_map).unwrap_or_default().iter().map(|e| e.key.clone()).collect()
}

impl Pass<'_> {
    fn sandbox(
        &mut self,
        declaration: &Declaration,
        common: &Common<'_>,
        cache: &mut FileCache,
        desired: &mut Desired,
        origins: &mut Origins,
    ) {
        let schema = rules()
            .root
            .get("properties")
            .and_then(|p| p.get("sandboxes"))
            .and_then(|s| s.get("additionalProperties"));
        let Some(schema) = schema else { return };
        let varies = declaration.node.has_template();
        let services: BTreeSet<String> = keys(declaration.node.get("services")).into_iter().collect();
        let mut shared: Option<(Node, language::Sandbox, BTreeSet<PortRef>)> = None;
        for (i, name) in declaration.replicas.iter().enumerate() {
            let before = self.problems.errors();
            let scope = Scope {
                env: Some(&self.given.env),
                vars: Some(common.vars),
                project: Some(common.project),
                index: declaration.counted.then_some(i as u32 + 1),
                ports: Some(common.table),
                ..Scope::default()
            };
            if shared.is_none() || varies {
                let mut node = declaration.node.clone();
                if !self.check(&mut node, schema, declaration.key, Some(&scope)) {
                    return;
                }
                normal::sandbox(&mut node, self.problems);
                if i == 0 {
                    origins.add(
                        format!("sandboxes.{}", declaration.name),
                        declaration.key,
                        &node,
                        &self.given.sources,
                    );
                }
                let Some(raw) = self.typed::<language::Sandbox>(Some(&node)) else { return };
                shared = Some((node, raw, scope.used.borrow().clone()));
            }
            let Some((node, raw, used)) = &shared else { return };
            let mut sandbox = Lowering {
                sources: &self.given.sources,
                templates: &self.templates,
                scope: &scope,
                declared: common.declared,
                defaults: common.defaults,
                default_provider: common.default_provider,
                home: self.given.home.as_deref(),
                confinement: self.given.confinement.as_ref(),
                files: self.world.map(|_| &mut *cache),
                problems: self.problems,
                node,
                written: &declaration.node,
                services: &services,
            }
            .sandbox(name, raw);
            let used: BTreeSet<PortRef> =
                used.iter().cloned().chain(scope.used.borrow().iter().cloned()).collect();
            connect(name, &mut sandbox, &used, common.table.endpoints);
            origins.add_replica(name, &declaration.name);
            if i == 0 {
                self.capabilities(declaration, node, &sandbox);
            }
            desired.sandboxes.insert(name.clone(), sandbox);
            if self.problems.errors() > before {
                // The other replicas would say the same again.
                return;
            }
        }
    }

    fn capabilities(&mut self, declaration: &Declaration, node: &Node, sandbox: &DesiredSandbox) {
        let span = node.get("provider").map_or(declaration.key, |n| n.span);
        if node.get("provider").is_some() {
            self.provider(&sandbox.provider, span);
        }
        let sheet = self.world.and_then(|w| w.capabilities.iter().find(|c| c.provider == sandbox.provider));
        let Some(sheet) = sheet else { return };
        capability::check(node, &[], sheet, self.problems);
        capability::check_commands(&declaration.node, sandbox, sheet, self.problems);
        limits::check(node, sandbox, sheet, self.problems);
        if ["image", "base", "build", "snapshot"].iter().all(|key| node.get(key).is_none()) {
            capability::check_implied(&["image"], "host", declaration.key, sheet, self.problems);
        }
    }
}

/// What a sandbox's templates say of other sandboxes' ports becomes dependencies, links and open questions.
fn connect(
    name: &str,
    sandbox: &mut DesiredSandbox,
    used: &BTreeSet<PortRef>,
    endpoints: &BTreeMap<PortRef, (String, u16)>,
) {
    for reference in used {
        match endpoints.get(reference) {
            Some((host, port)) if host == "127.0.0.1" && reference.sandbox != name => {
                sandbox.spec.links.insert(LinkSpec { to: reference.clone(), host_port: *port, udp: false });
            }
            Some(_) => {}
            None => {
                sandbox.unresolved.insert(reference.clone());
            }
        }
        if reference.sandbox != name {
            sandbox.depends_on.entry(reference.sandbox.clone()).or_default();
        }
    }
}

/// The name a directory gives a project: lower-case, with everything else that a name cannot have as `-`.
pub(crate) fn directory_name(dir: &Path) -> String {
    let name = absolute(dir).file_name().map_or_else(String::new, |n| n.to_string_lossy().to_lowercase());
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' { c } else { '-' })
        .take(63)
        .collect();
    let name = name.trim_matches(['-', '_']);
    if name.is_empty() { "project".to_owned() } else { name.to_owned() }
}
