//! One sandbox from its typed, normalised form to the desired state, with every check that needs more than the schema.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::confine::Confinement;
use super::diagnostic::{Problem, Problems};
use super::env_file;
use super::graph;
use super::language::scalar::{parse_cpu, parse_mode, parse_port, parse_restart};
use super::language::{self, File, HealthCheck, PresetUse, Sandbox, SecretRef, Service};
use super::node::{Node, quote};
use super::presets;
use super::read::{io_text, read_bounded};
use super::repo;
use super::source::{Sources, Span};
use super::template::{At, Scope, Templates};
use crate::guest::tree;
use crate::model::*;

/// What the manifest declares, by name, for references.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    /// Volumes, and whether each is read-only.
    pub volumes: BTreeMap<String, bool>,
    pub secrets: BTreeSet<String>,
    /// Presets of the manifest. `None` if one is written and unusable.
    pub presets: BTreeMap<String, Option<language::Preset>>,
    /// Sandboxes by declaration, replicas expanded.
    pub replicas: BTreeMap<String, Vec<String>>,
    /// From each sandbox to its declaration.
    pub declaration: BTreeMap<String, String>,
    /// Declarations with a health check.
    pub checked: BTreeSet<String>,
}

/// Files of the host read for the desired state; replicas share them.
pub(crate) struct FileCache {
    env: HashMap<PathBuf, Result<BTreeMap<String, String>, String>>,
    text: HashMap<PathBuf, Result<String, String>>,
    source: HashMap<PathBuf, Result<FileContent, String>>,
    sync: HashMap<(PathBuf, Vec<String>), Result<FileContent, String>>,
    hashes: Arc<Hashes>,
}

/// What the files of each directory hashed to, for as long as the manifest is held: looking again costs no reading.
pub(crate) type Hashes = Mutex<HashMap<PathBuf, tree::HashCache>>;

impl FileCache {
    /// Nothing read yet, but for these hashes.
    pub fn new(hashes: &Arc<Hashes>) -> Self {
        Self {
            env: HashMap::new(),
            text: HashMap::new(),
            source: HashMap::new(),
            sync: HashMap::new(),
            hashes: Arc::clone(hashes),
        }
    }

    /// What was read, or should have been, except what `watch` keeps in step by itself.
    pub fn paths(self) -> BTreeSet<PathBuf> {
        self.env
            .into_keys()
            .chain(self.text.into_keys())
            .chain(self.source.into_keys())
            .map(|p| absolute(&p))
            .collect()
    }
}

/// The pass over one sandbox.
pub(crate) struct Lowering<'a> {
    pub sources: &'a Sources,
    pub templates: &'a Templates,
    pub scope: &'a Scope<'a>,
    pub declared: &'a Declared,
    pub defaults: &'a language::Defaults,
    pub default_provider: &'a str,
    pub home: Option<&'a Path>,
    pub confinement: Option<&'a Confinement>,
    /// `None` while files of the host are not to be read.
    pub files: Option<&'a mut FileCache>,
    pub problems: &'a mut Problems,
    /// The normalised sandbox, for spans.
    pub node: &'a Node,
    /// The services as written, usable or not.
    pub services: &'a BTreeSet<String>,
}

impl Lowering<'_> {
    /// The desired sandbox called `name`; whatever is wrong is reported and left out.
    pub fn sandbox(&mut self, name: &str, raw: &Sandbox) -> DesiredSandbox {
        let mut guest = GuestSpec {
            user: raw.user.as_ref().map(|u| u.0.clone()),
            working_dir: raw.working_dir.as_ref().map(|p| p.0.clone()),
            env: self.env(raw),
            secrets: self.secrets(raw),
            files: self.files_of(raw),
            repositories: self.repositories(raw),
            presets: self.presets(&raw.presets),
            services: self.services(raw),
            sync: Vec::new(),
        };
        let binds = self.sync(raw, &mut guest);
        DesiredSandbox {
            provider: raw.provider.as_ref().map_or_else(|| self.default_provider.to_owned(), |p| p.0.clone()),
            state: raw.state.or(self.defaults.state).unwrap_or_default(),
            spec: SandboxSpec {
                image: self.image(raw),
                hostname: raw.hostname.as_ref().map_or_else(|| name.replace('_', "-"), |h| h.0.clone()),
                resources: raw.resources.as_ref().map(resources).unwrap_or_default(),
                mounts: self.mounts(raw),
                binds,
                ports: self.ports(raw),
                links: BTreeSet::new(),
                network: self.network(raw),
                isolation: raw.isolation.as_ref().and_then(|i| i.require),
                lifecycle: self.lifecycle(raw),
            },
            guest,
            depends_on: self.depends_on(name, raw),
            unresolved: BTreeSet::new(),
            drift: raw.drift.or(self.defaults.drift).unwrap_or_default(),
            protect: raw.protect.or(self.defaults.protect).unwrap_or_default(),
        }
    }

    fn error(&mut self, code: &'static str, path: &[&str], message: String) -> Problem {
        let node = self.node.at(path);
        Problem::error(code, self.node.span_at(path), message).anchor(node.and_then(|n| n.anchor))
    }

    fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn unknown<'k>(
        &mut self,
        path: &[&str],
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) {
        let span = self.node.at(path).map_or_else(|| self.node.span_at(path), |n| n.span);
        // A name that is a key (`depends_on: { db: … }`) is wrong at the key.
        let span = if path.last() == Some(&name) { self.node.key_span(path) } else { span };
        self.push(
            Problem::error("unknown-reference", span, format!("there is no {what} {}", quote(name)))
                .suggest(name, known),
        );
    }

    fn exactly_one(&mut self, path: &[&str], names: &[&str], present: &[bool], required: bool) -> bool {
        let written: Vec<&str> = names.iter().zip(present).filter(|(_, p)| **p).map(|(n, _)| *n).collect();
        let list = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        match written.as_slice() {
            [_] => true,
            [] if !required => true,
            [] => {
                let span = self.node.key_span(path);
                self.push(
                    Problem::error("missing-key", span, "nothing is written here that says what it is")
                        .expected(format!("one of {list}")),
                );
                false
            }
            [first, second, ..] => {
                let first_at = self.node.key_span(&[path, &[*first]].concat());
                let second_at = self.node.key_span(&[path, &[*second]].concat());
                self.push(
                    Problem::error(
                        "conflict",
                        second_at,
                        format!("`{first}` and `{second}` exclude one another"),
                    )
                    .related(first_at, format!("`{first}` stands here"))
                    .expected(format!("one of {list}")),
                );
                false
            }
        }
    }

    /// A path of this machine, unless the manifest may not reach it, which is reported.
    fn host_path(&mut self, path: &[&str], text: &str) -> Option<PathBuf> {
        // What an alias brings in is relative to the file it is written in, and aliases never cross files.
        let span = self.node.span_at(path);
        let host = self.sources.resolve_path(span, text, self.home);
        if self.confinement.is_some_and(|confinement| !confinement.holds(&host)) {
            self.push(leads_out(span));
            return None;
        }
        Some(host)
    }

    fn image(&mut self, raw: &Sandbox) -> Image {
        let present = [raw.image.is_some(), raw.base.is_some(), raw.build.is_some(), raw.snapshot.is_some()];
        self.exactly_one(&[], &["image", "base", "build", "snapshot"], &present, false);
        if let Some(image) = &raw.image {
            return if image.0 == "host" { Image::Host } else { Image::Oci(image.0.clone()) };
        }
        if let Some(base) = &raw.base {
            return Image::Base(base.0.clone());
        }
        if let Some(build) = &raw.build {
            let dockerfile = build.dockerfile.as_ref().map(|d| d.0.clone());
            let Some(context) = self.host_path(&["build", "context"], &build.context.0) else {
                return Image::Host;
            };
            if let Some(dockerfile) = &dockerfile
                && self.confinement.is_some_and(|confinement| !confinement.holds(&context.join(dockerfile)))
            {
                self.push(leads_out(self.node.span_at(&["build", "dockerfile"])));
            }
            if self.files.is_some() && !context.is_dir() {
                let problem = self.error(
                    "unreadable",
                    &["build", "context"],
                    format!("{} is not a directory", context.display()),
                );
                self.push(problem);
            }
            return Image::Build { context: absolute(&context), dockerfile };
        }
        raw.snapshot.as_ref().map_or(Image::Host, |s| Image::Snapshot(s.0.clone()))
    }

    fn env(&mut self, raw: &Sandbox) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for (i, file) in raw.env_file.iter().enumerate() {
            let index = i.to_string();
            let Some(path) = self.host_path(&["env_file", &index], &file.0) else { continue };
            let Some(cache) = self.files.as_deref_mut() else { continue };
            let read = cache.env.entry(path.clone()).or_insert_with(|| {
                let bytes = read_bounded(&path)?;
                let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
                env_file::parse(&text).map_err(|(line, why)| format!("line {line}: {why}"))
            });
            match read.clone() {
                Ok(values) => env.extend(values),
                Err(why) => {
                    let problem =
                        self.error("unreadable", &["env_file", &index], format!("{}: {why}", path.display()));
                    self.push(problem);
                }
            }
        }
        env.extend(raw.env.iter().map(|(k, v)| (k.clone(), v.0.clone())));
        env
    }

    fn secret(&mut self, path: &[&str], name: &str) {
        if !self.declared.secrets.contains(name) {
            let declared = self.declared;
            self.unknown(path, "secret", name, declared.secrets.iter().map(String::as_str));
        }
    }

    fn secret_ref(&mut self, path: &[&str], reference: Option<&SecretRef>) {
        if let Some(reference) = reference {
            self.secret(&[path, &["secret"]].concat(), &reference.secret);
        }
    }

    fn secrets(&mut self, raw: &Sandbox) -> BTreeMap<String, SecretUse> {
        let mut uses = BTreeMap::new();
        for (name, how) in &raw.secrets {
            self.secret(&["secrets", name], name);
            if !self.exactly_one(
                &["secrets", name],
                &["as_env", "as_file"],
                &[how.as_env.is_some(), how.as_file.is_some()],
                false,
            ) {
                continue;
            }
            let given = match (&how.as_env, &how.as_file) {
                (_, Some(path)) => SecretUse::File(path.0.clone()),
                (Some(variable), None) => SecretUse::Env(variable.0.clone()),
                (None, None) => SecretUse::Env(name.clone()),
            };
            uses.insert(name.clone(), given);
        }
        uses
    }

    fn mounts(&mut self, raw: &Sandbox) -> Vec<Mount> {
        let mut mounts = Vec::new();
        for (path, mount) in &raw.volumes {
            let read_only = match self.declared.volumes.get(&mount.name.0) {
                Some(read_only) => *read_only,
                None => {
                    let declared = self.declared;
                    self.unknown(
                        &["volumes", path, "name"],
                        "volume",
                        &mount.name.0,
                        declared.volumes.keys().map(String::as_str),
                    );
                    continue;
                }
            };
            mounts.push(Mount {
                path: path.clone(),
                volume: mount.name.0.clone(),
                read_only: mount.read_only.unwrap_or(false) || read_only,
            });
        }
        mounts.sort();
        mounts
    }

    fn ports(&mut self, raw: &Sandbox) -> BTreeMap<u16, PortSpec> {
        let mut ports = BTreeMap::new();
        for (key, port) in &raw.ports {
            let Ok(number) = parse_port(&port.port.0) else { continue };
            let host_port = port.host_port.as_ref().and_then(|p| parse_port(&p.0).ok());
            if let Some(host) = host_port.filter(|p| *p < 1024) {
                let problem = self
                    .error(
                        "privileged-port",
                        &["ports", key, "host_port"],
                        format!("the port {host} of this machine needs privilege"),
                    )
                    .expected("a port from 1024 to 65535")
                    .help(format!("for example {}", u32::from(host) + 8000));
                self.push(problem);
                continue;
            }
            if host_port.is_some() && self.confinement.is_some_and(|confinement| !confinement.host_ports) {
                let message = "a manifest of this source may not choose a port of this machine".to_owned();
                let problem = self.error("not-allowed", &["ports", key, "host_port"], message);
                self.push(
                    problem
                        .expected("no `host_port`, so that a free one is chosen")
                        .help("the operator allows it with `host_ports: true` under `allow` of the source"),
                );
                continue;
            }
            let spec = PortSpec {
                host_port,
                protocol: port.protocol.unwrap_or_default(),
                public: port.public.unwrap_or(false),
                description: port.description.as_ref().map(|d| d.0.clone()),
            };
            ports.insert(number, spec);
        }
        ports
    }

    fn network(&mut self, raw: &Sandbox) -> NetworkSpec {
        let Some(network) = &raw.network else { return NetworkSpec::default() };
        let mode = network.mode.unwrap_or_default();
        if mode == NetworkMode::Host && self.confinement.is_some_and(|confinement| !confinement.host_network)
        {
            let message = "a sandbox of this source may not use the network of this machine".to_owned();
            let problem = self.error("not-allowed", &["network", "mode"], message);
            self.push(
                problem.help("the operator allows it with `host_network: true` under `allow` of the source"),
            );
        }
        if !network.allow.is_empty() && network.egress != Some(Egress::Deny) {
            let problem = self
                .error(
                    "conflict",
                    &["network", "allow"],
                    "`allow` has no effect: outbound access is not denied".to_owned(),
                )
                .help("write `egress: deny` next to it");
            self.push(problem);
        }
        if network.egress.is_some() && mode != NetworkMode::Isolated {
            let problem = self.error(
                "conflict",
                &["network", "egress"],
                "`egress` needs the network mode `isolated`".to_owned(),
            );
            self.push(problem);
        }
        NetworkSpec {
            mode,
            egress: network.egress,
            allow: network.allow.iter().map(|r| r.0.clone()).collect(),
        }
    }

    fn lifecycle(&mut self, raw: &Sandbox) -> LifecycleSpec {
        let Some(lifecycle) = &raw.lifecycle else { return LifecycleSpec::default() };
        for (key, value) in [("idle_timeout", lifecycle.idle_timeout), ("ttl", lifecycle.ttl)] {
            if value.is_some_and(|d| d.as_millis() == 0) {
                let problem = self.error("bad-value", &["lifecycle", key], format!("`{key}` is zero"));
                self.push(problem.help("leave it out for no limit"));
            }
        }
        LifecycleSpec {
            keep_alive: lifecycle.keep_alive,
            idle_timeout: lifecycle.idle_timeout,
            ttl: lifecycle.ttl,
        }
    }

    fn depends_on(&mut self, name: &str, raw: &Sandbox) -> BTreeMap<String, DependencyCondition> {
        let mut all = BTreeMap::new();
        for (on, dependency) in &raw.depends_on {
            let condition = dependency.condition.unwrap_or_default();
            let declared = self.declared;
            let (declaration, targets) = match (declared.replicas.get(on), declared.declaration.get(on)) {
                (Some(replicas), _) => (on, replicas.clone()),
                (None, Some(declaration)) => (declaration, vec![on.clone()]),
                (None, None) => {
                    self.unknown(
                        &["depends_on", on],
                        "sandbox",
                        on,
                        declared.replicas.keys().map(String::as_str),
                    );
                    continue;
                }
            };
            if condition == DependencyCondition::Healthy && !declared.checked.contains(declaration) {
                let problem = self
                    .error(
                        "no-healthcheck",
                        &["depends_on", on, "condition"],
                        format!(
                            "no service of the sandbox `{on}` has a health check, so it never becomes healthy"
                        ),
                    )
                    .help("give a service of it a `healthcheck`, or write `condition: started`");
                self.push(problem);
            }
            all.extend(targets.into_iter().filter(|t| t != name || on == name).map(|t| (t, condition)));
        }
        all
    }

    fn files_of(&mut self, raw: &Sandbox) -> BTreeMap<String, DesiredFile> {
        let mut files = BTreeMap::new();
        for (path, file) in &raw.files {
            let at = ["files", path.as_str()];
            let present = [file.content.is_some(), file.template.is_some(), file.source.is_some()];
            if !self.exactly_one(&at, &["content", "template", "source"], &present, true) {
                continue;
            }
            let mode = file.mode.as_ref().and_then(|m| parse_mode(&m.0).ok());
            if let Some(content) = self.file_content(path, file) {
                files.insert(path.clone(), DesiredFile { content, mode });
            }
        }
        files
    }

    fn file_content(&mut self, path: &str, file: &File) -> Option<FileContent> {
        if let Some(content) = &file.content {
            return Some(FileContent::Inline(content.0.clone()));
        }
        if let Some(template) = &file.template {
            let at = ["files", path, "template"];
            let host = self.host_path(&at, &template.0)?;
            let cache = self.files.as_deref_mut()?;
            let read = cache.text.entry(host.clone()).or_insert_with(|| {
                String::from_utf8(read_bounded(&host)?).map_err(|_| "it is not UTF-8".to_owned())
            });
            return match read.clone() {
                Ok(text) => self.render_file(&at, &host, text),
                Err(why) => {
                    let problem = self.error("unreadable", &at, format!("{}: {why}", host.display()));
                    self.push(problem);
                    None
                }
            };
        }
        let source = file.source.as_ref()?;
        let at = ["files", path, "source"];
        let host = self.host_path(&at, &source.0)?;
        let cache = self.files.as_deref_mut()?;
        match cache.source.entry(host.clone()).or_insert_with(|| read_source(&host, &cache.hashes)).clone() {
            Ok(content) => Some(content),
            Err(why) => {
                let problem = self.error("unreadable", &at, why);
                self.push(problem);
                None
            }
        }
    }

    /// A template file. Its problems are reported at the field that names it, with their place in the file.
    fn render_file(&mut self, at: &[&str], host: &Path, text: String) -> Option<FileContent> {
        let mut sources = Sources::default();
        let end = text.len() as u32;
        let id = sources.add(host.display().to_string(), PathBuf::new(), text.clone());
        let whole = Span { file: id, start: 0, end };
        match self.templates.render(&text, self.scope, &At { sources: &sources, span: whole, anchor: None }) {
            Ok(rendered) => Some(FileContent::Inline(rendered)),
            Err(problems) => {
                let span = self.node.span_at(at);
                problems.into_iter().for_each(|p| self.problems.push(p.moved_to(span, &sources)));
                None
            }
        }
    }

    fn repositories(&mut self, raw: &Sandbox) -> BTreeMap<String, RepositorySpec> {
        let mut all = BTreeMap::new();
        for (path, repository) in &raw.repo {
            self.secret_ref(&["repo", path, "credentials"], repository.credentials.as_ref());
            let Ok(address) = repo::parse(&repository.url.0) else { continue };
            if let Some(reference) = &repository.reference
                && (reference.0.starts_with('-')
                    || reference.0.is_empty()
                    || reference.0.contains(|c: char| c.is_whitespace() || c.is_control()))
            {
                let problem = self.error(
                    "bad-value",
                    &["repo", path, "ref"],
                    format!("{} is not a branch, tag or commit", quote(&reference.0)),
                );
                self.push(problem);
                continue;
            }
            if repository.credentials.is_some() && !address.url.starts_with("https://") {
                let problem = self.error(
                    "conflict",
                    &["repo", path, "credentials"],
                    "`credentials` are for https URLs".to_owned(),
                );
                self.push(problem);
            }
            let spec = RepositorySpec {
                url: address.url,
                reference: repository.reference.as_ref().map(|r| r.0.clone()),
                depth: repository.depth,
                credentials: repository.credentials.as_ref().map(|c| c.secret.clone()),
            };
            all.insert(path.clone(), spec);
        }
        all
    }

    fn presets(&mut self, uses: &[PresetUse]) -> Vec<PresetSpec> {
        let mut all: Vec<PresetSpec> = Vec::new();
        for (i, used) in uses.iter().enumerate() {
            let index = i.to_string();
            let name = &used.name.0;
            if all.iter().any(|p| p.name == *name) {
                let problem = self.error(
                    "duplicate",
                    &["presets", &index, "name"],
                    format!("the preset `{name}` stands here twice"),
                );
                self.push(problem);
                continue;
            }
            let declared = self.declared;
            let preset = match declared.presets.get(name) {
                Some(Some(preset)) => preset.clone(),
                // It is there and reported.
                Some(None) => continue,
                None => match presets::builtin(name) {
                    Some(Ok(preset)) => preset,
                    Some(Err(error)) => {
                        let problem = self.error(
                            "internal",
                            &["presets", &index, "name"],
                            format!("the built-in preset `{name}` is broken: {error}"),
                        );
                        self.push(problem);
                        continue;
                    }
                    None => {
                        let known: Vec<String> = declared
                            .presets
                            .keys()
                            .cloned()
                            .chain(presets::builtin_names().map(str::to_owned))
                            .collect();
                        self.unknown(
                            &["presets", &index, "name"],
                            "preset",
                            name,
                            known.iter().map(String::as_str),
                        );
                        continue;
                    }
                },
            };
            for variable in used.vars.keys() {
                if !preset.vars.contains_key(variable) {
                    let path = ["presets", index.as_str(), "vars", variable];
                    self.unknown(&path, "preset variable", variable, preset.vars.keys().map(String::as_str));
                }
            }
            all.push(preset_spec(name, &preset, &used.vars));
        }
        all
    }

    fn services(&mut self, raw: &Sandbox) -> BTreeMap<String, ServiceSpec> {
        let names = self.services;
        let all: BTreeMap<String, ServiceSpec> = raw
            .services
            .iter()
            .map(|(name, service)| (name.clone(), self.service(name, service, raw, names)))
            .collect();
        let edges = all
            .iter()
            .map(|(n, s)| (n.as_str(), s.depends_on.keys().map(String::as_str).collect()))
            .collect();
        if let Some(cycle) = graph::cycle(&edges) {
            let path = [
                "services",
                cycle.first().copied().unwrap_or_default(),
                "depends_on",
                cycle.get(1).copied().unwrap_or_default(),
            ];
            let span = self.node.key_span(&path);
            self.push(Problem::error(
                "cycle",
                span,
                format!("services wait for one another: {}", cycle.join(" → ")),
            ));
        }
        all
    }

    fn service(
        &mut self,
        name: &str,
        raw: &Service,
        sandbox: &Sandbox,
        names: &BTreeSet<String>,
    ) -> ServiceSpec {
        let mut depends_on = BTreeMap::new();
        for (on, dependency) in &raw.depends_on {
            let path = ["services", name, "depends_on", on.as_str()];
            let condition = dependency.condition.unwrap_or_default();
            if !names.contains(on) {
                self.unknown(&path, "service", on, names.iter().map(String::as_str));
                continue;
            }
            let checked = sandbox.services.get(on).is_none_or(|s| s.healthcheck.is_some());
            if condition == DependencyCondition::Healthy && !checked {
                let problem = self
                    .error(
                        "no-healthcheck",
                        &[&path[..], &["condition"]].concat(),
                        format!("the service `{on}` has no health check, so it never becomes healthy"),
                    )
                    .help("give it a `healthcheck`, or write `condition: started`");
                self.push(problem);
            }
            depends_on.insert(on.clone(), condition);
        }
        let command: Vec<String> = raw.command.iter().map(|w| w.0.clone()).collect();
        if command.first().is_some_and(String::is_empty) {
            let problem = self.error(
                "bad-value",
                &["services", name, "command", "0"],
                "the program's name is empty".to_owned(),
            );
            self.push(problem);
        }
        let logs = raw.logs.as_ref();
        ServiceSpec {
            command,
            state: raw.state.unwrap_or_default(),
            working_dir: raw.working_dir.as_ref().map(|p| p.0.clone()),
            user: raw.user.as_ref().map(|u| u.0.clone()),
            env: raw.env.iter().map(|(k, v)| (k.clone(), v.0.clone())).collect(),
            depends_on,
            healthcheck: raw.healthcheck.as_ref().and_then(|h| self.healthcheck(name, h)),
            restart: raw
                .restart
                .as_ref()
                .and_then(|r| parse_restart(&r.0).ok())
                .unwrap_or(RestartPolicy::Always),
            stop_signal: raw
                .stop_signal
                .as_ref()
                .map_or("TERM", |s| s.0.strip_prefix("SIG").unwrap_or(&s.0))
                .to_owned(),
            stop_timeout: raw.stop_timeout.unwrap_or(Duration::from_secs(10)),
            log_max_size: logs.and_then(|l| l.max_size).unwrap_or(Quantity::from_bytes(10 << 20)),
            log_max_files: logs.and_then(|l| l.max_files).unwrap_or(3),
        }
    }

    fn healthcheck(&mut self, service: &str, raw: &HealthCheck) -> Option<crate::model::HealthCheck> {
        let at = ["services", service, "healthcheck"];
        let present = [raw.tcp.is_some(), raw.http.is_some(), raw.exec.is_some()];
        if !self.exactly_one(&at, &["tcp", "http", "exec"], &present, true) {
            return None;
        }
        let interval = raw.interval.unwrap_or(Duration::from_secs(10));
        let timeout = raw.timeout.unwrap_or(Duration::from_secs(5));
        for (key, value) in [("interval", interval), ("timeout", timeout)] {
            if value.as_millis() == 0 {
                let problem = self.error(
                    "bad-value",
                    &[&at[..], &[key]].concat(),
                    format!("`{key}` is zero, so the check can never pass"),
                );
                self.push(problem.expected("a duration above zero"));
            }
        }
        if timeout > interval && raw.timeout.is_some() {
            let span = self.node.span_at(&[&at[..], &["timeout"]].concat());
            self.push(Problem::warning(
                "healthcheck",
                span,
                format!("a probe may take {timeout} but the next is due after {interval}"),
            ));
        }
        let probe = if let Some(port) = &raw.tcp {
            Probe::Tcp(parse_port(&port.0).ok()?)
        } else if let Some(http) = &raw.http {
            let path = http.path.as_ref().map_or("/", |p| p.0.as_str());
            if !path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' ') {
                let problem = self
                    .error(
                        "bad-value",
                        &[&at[..], &["http", "path"]].concat(),
                        format!("{} is not the path of a URL", quote(path)),
                    )
                    .expected("a path that begins with `/`, such as `/healthz`");
                self.push(problem);
                return None;
            }
            Probe::Http { port: parse_port(&http.port.0).ok()?, path: path.to_owned() }
        } else {
            Probe::Exec(raw.exec.as_ref()?.iter().map(|w| w.0.clone()).collect())
        };
        Some(crate::model::HealthCheck {
            probe,
            interval,
            timeout,
            retries: raw.retries.unwrap_or(3),
            start_period: raw.start_period.unwrap_or_default(),
        })
    }

    /// Directories that `watch` keeps in step are managed directories for everybody else; gives those that are shared instead.
    fn sync(&mut self, raw: &Sandbox, guest: &mut GuestSpec) -> Vec<Bind> {
        let mut binds = Vec::new();
        for (i, sync) in raw.sync.iter().enumerate() {
            let index = i.to_string();
            let to = sync.to.0.clone();
            if guest.files.contains_key(&to) || guest.sync.iter().any(|other| other.to == to) {
                let message = format!("{} is filled by something else already", quote(&to));
                let problem = self.error("duplicate", &["sync", &index, "to"], message);
                self.push(problem.help("give each directory inside one source"));
                continue;
            }
            let ignore: Vec<String> = sync.ignore.iter().map(|pattern| pattern.0.clone()).collect();
            let mut usable = true;
            for (n, pattern) in ignore.iter().enumerate() {
                if let Err(why) = tree::check_pattern(pattern) {
                    let at = ["sync", &index, "ignore", &n.to_string()].map(str::to_owned);
                    let problem = self.error(
                        "bad-value",
                        &at.each_ref().map(String::as_str),
                        format!("{} is not a pattern: {why}", quote(pattern)),
                    );
                    self.push(problem.expected("a pattern as in .gitignore"));
                    usable = false;
                }
            }
            let on_change = sync.on_change.as_ref().and_then(|change| self.on_change(&index, change, raw));
            let mode = sync.mode.unwrap_or_default();
            let Some(from) = self.host_path(&["sync", &index, "from"], &sync.from.0) else { continue };
            let spec =
                SyncSpec { from: absolute(&from), to: to.clone(), mode, ignore: ignore.clone(), on_change };
            guest.sync.push(spec);
            if mode == SyncMode::Bind {
                binds.extend(self.bind(&index, sync, &from));
                continue;
            }
            if sync.read_only.is_some() {
                let message =
                    "`read_only` is for a shared directory; a copied one is never written to".to_owned();
                let problem = self.error("conflict", &["sync", &index, "read_only"], message);
                self.push(problem.help("remove it, or write `mode: bind` next to it"));
            }
            let Some(cache) = self.files.as_deref_mut().filter(|_| usable) else { continue };
            let key = (from.clone(), ignore);
            let read = |(from, ignore): &(PathBuf, Vec<String>)| read_sync(from, ignore, &cache.hashes);
            match cache.sync.entry(key).or_insert_with_key(read).clone() {
                Ok(content) => {
                    guest.files.insert(to, DesiredFile { content, mode: None });
                }
                Err(why) => {
                    let problem = self.error("unreadable", &["sync", &index, "from"], why);
                    self.push(problem);
                }
            }
        }
        self.secret_ref(&["tailscale", "auth_key"], raw.tailscale.as_ref().map(|t| &t.auth_key));
        binds.sort();
        self.keep_out_of(&binds, raw, guest);
        binds
    }

    fn bind(&mut self, index: &str, sync: &language::Sync, from: &Path) -> Option<Bind> {
        if self.confinement.is_some_and(|confinement| !confinement.host_paths) {
            let message = "a sandbox of this source may not share a directory of this machine".to_owned();
            let problem = self.error("not-allowed", &["sync", index, "mode"], message);
            self.push(problem.help("leave `mode` out to copy it, or the operator allows it with `host_paths: true` under `allow` of the source"));
            return None;
        }
        if !sync.ignore.is_empty() && sync.on_change.is_none() {
            let message = "`ignore` hides nothing of a shared directory".to_owned();
            let problem = self.error("conflict", &["sync", index, "ignore"], message);
            self.push(problem.help("remove it, or leave `mode: bind` out so that the directory is copied"));
        }
        if self.files.is_some() && !from.is_dir() {
            let message = format!("{} is not a directory", from.display());
            let problem = self.error("unreadable", &["sync", index, "from"], message);
            self.push(problem);
        }
        let read_only = sync.read_only.unwrap_or(true);
        Some(Bind { path: sync.to.0.clone(), from: absolute(from), read_only })
    }

    /// What is put at a path in a shared directory would be put into the directory of the host.
    fn keep_out_of(&mut self, binds: &[Bind], raw: &Sandbox, guest: &GuestSpec) {
        let mut inner: Vec<(Vec<String>, String)> = Vec::new();
        let mut add = |at: &[&str], path: &str| {
            inner.push((at.iter().map(|part| (*part).to_owned()).collect(), path.to_owned()));
        };
        raw.files.keys().for_each(|path| add(&["files", path], path));
        raw.repo.keys().for_each(|path| add(&["repo", path], path));
        raw.volumes.keys().for_each(|path| add(&["volumes", path], path));
        for (name, usage) in &guest.secrets {
            if let SecretUse::File(path) = usage {
                add(&["secrets", name], path);
            }
        }
        for (i, sync) in raw.sync.iter().enumerate() {
            add(&["sync", &i.to_string(), "to"], &sync.to.0);
        }
        for (at, path) in inner {
            let within = |bind: &&Bind| {
                bind.covers(&path) && (at.first().is_none_or(|k| k != "sync") || bind.path != path)
            };
            let Some(bind) = binds.iter().find(within) else { continue };
            let at: Vec<&str> = at.iter().map(String::as_str).collect();
            let message = format!(
                "{} lies in {}, which is a directory of this machine",
                quote(&path),
                quote(&bind.path)
            );
            let problem = self.error("conflict", &at, message);
            self.push(problem.help("choose a path elsewhere, or copy the directory: leave `mode: bind` out"));
        }
    }

    fn on_change(&mut self, index: &str, raw: &language::OnChange, sandbox: &Sandbox) -> Option<OnChange> {
        let at = ["sync", index, "on_change"];
        let present = [raw.restart.is_some(), raw.exec.is_some(), raw.rebuild == Some(true)];
        if !self.exactly_one(&at, &["restart", "exec", "rebuild"], &present, true) {
            return None;
        }
        if raw.rebuild == Some(true) {
            return Some(OnChange::Rebuild);
        }
        if let Some(service) = &raw.restart {
            if !self.services.contains(&service.0) {
                let known: Vec<&str> = sandbox.services.keys().map(String::as_str).collect();
                self.unknown(&["sync", index, "on_change", "restart"], "service", &service.0, known);
            }
            return Some(OnChange::Restart(service.0.clone()));
        }
        let command: Vec<String> = raw.exec.iter().flatten().map(|word| word.0.clone()).collect();
        if command.first().is_none_or(String::is_empty) {
            let message = "the program's name is empty".to_owned();
            let problem = self.error("bad-value", &["sync", index, "on_change", "exec"], message);
            self.push(problem);
        }
        Some(OnChange::Exec(command))
    }
}

/// A path of this machine that a manifest may not reach.
pub(crate) fn leads_out(span: Span) -> Problem {
    Problem::error("not-allowed", span, "the path leads out of the directory of the project")
        .help("the operator allows it with `host_paths: true` under `allow` of the source")
}

fn resources(raw: &language::Resources) -> Resources {
    Resources {
        cpu_millis: raw.cpu.as_ref().and_then(|c| parse_cpu(&c.0).ok()),
        memory: raw.memory,
        disk: raw.disk,
        pids: raw.pids,
    }
}

fn preset_spec(name: &str, preset: &language::Preset, vars: &BTreeMap<String, language::Text>) -> PresetSpec {
    let text = |t: &language::Text| t.0.clone();
    let steps = preset
        .steps
        .iter()
        .enumerate()
        .map(|(i, step)| {
            let layers = [&preset.vars, vars, &step.env];
            PresetStep {
                name: step.name.as_ref().map_or_else(|| format!("step-{}", i + 1), text),
                only_if: step.only_if.as_ref().map(text),
                unless: step.unless.as_ref().map(text),
                run: text(&step.run),
                shell: step.shell.as_ref().map_or_else(|| "sh".to_owned(), text),
                user: step.user.as_ref().map(|u| u.0.clone()),
                env: layers.into_iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect(),
                timeout: step.timeout.unwrap_or(Duration::from_secs(600)),
                retries: step.retries.unwrap_or(0),
                continue_on_error: step.continue_on_error.unwrap_or(false),
            }
        })
        .collect();
    PresetSpec { name: name.to_owned(), steps }
}

/// What is kept must not depend on the working directory.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn scan(scan: tree::Scan<'_>, hashes: &Hashes) -> Result<Vec<tree::TreeEntry>, String> {
    let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
    scan.run(hashes.entry(scan.root.to_owned()).or_default()).map_err(|e| e.to_string())
}

fn read_source(host: &Path, hashes: &Hashes) -> Result<FileContent, String> {
    let at = |e: std::io::Error| format!("{}: {}", host.display(), io_text(&e));
    let metadata = std::fs::metadata(host).map_err(at)?;
    if metadata.is_dir() {
        let entries = scan(tree::Scan { root: host, ignore: None, only: None }, hashes)?;
        Ok(FileContent::Tree { path: absolute(host), sha256: tree::tree_sha256(&entries), ignore: None })
    } else if metadata.is_file() {
        let (sha256, _) = tree::file_sha256(host).map_err(at)?;
        Ok(FileContent::Source { path: absolute(host), sha256, mode: tree::mode_of(&metadata) })
    } else {
        Err(format!("{} is neither a file nor a directory", host.display()))
    }
}

fn read_sync(host: &Path, ignore: &[String], hashes: &Hashes) -> Result<FileContent, String> {
    let metadata = std::fs::metadata(host).map_err(|e| format!("{}: {}", host.display(), io_text(&e)))?;
    if !metadata.is_dir() {
        return Err(format!("{} is not a directory; `files` brings a single file", host.display()));
    }
    let entries = scan(tree::Scan { root: host, ignore: Some(ignore), only: None }, hashes)?;
    let sha256 = tree::tree_sha256(&entries);
    Ok(FileContent::Tree { path: absolute(host), sha256, ignore: Some(ignore.to_vec()) })
}
