//! One sandbox from its typed, normalised form to the desired state, with every check that needs more than the schema.

mod bound;
mod files;
mod image;
mod presets;
mod services;
mod sockets;
mod sync;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::guest::tree;
use crate::manifest::confine::Confinement;
use crate::manifest::diagnostic::{Problem, Problems};
use crate::manifest::env_file;
use crate::manifest::language::scalar::{parse_cpu, parse_port};
use crate::manifest::language::{self, Sandbox, SecretRef};
use crate::manifest::node::{Node, quote};
use crate::manifest::read::read_bounded;
use crate::manifest::source::{Sources, Span};
use crate::manifest::template::{Scope, Templates};
use crate::model::*;
use image::Context;

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
    /// Build contexts: the digest, and the files that may be the Dockerfile.
    context: HashMap<PathBuf, Result<Context, String>>,
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
            context: HashMap::new(),
            hashes: Arc::clone(hashes),
        }
    }

    /// What was read, or should have been, except what `watch` keeps in step by itself.
    pub fn paths(self) -> BTreeSet<PathBuf> {
        self.env
            .into_keys()
            .chain(self.text.into_keys())
            .chain(self.source.into_keys())
            .chain(self.context.into_keys())
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
    /// The sandbox as it was written, with what made no sense and was left out.
    pub written: &'a Node,
    /// The services as written, usable or not.
    pub services: &'a BTreeSet<String>,
}

/// The owners that are named for single paths.
fn owners(raw: &Sandbox) -> BTreeMap<String, String> {
    let files =
        raw.files.iter().filter_map(|(path, file)| Some((path.clone(), file.owner.as_ref()?.0.clone())));
    let of_secret =
        |how: &language::SecretUse| Some((how.as_file.as_ref()?.0.clone(), how.owner.as_ref()?.0.clone()));
    files.chain(raw.secrets.values().filter_map(of_secret)).collect()
}

impl Lowering<'_> {
    /// The desired sandbox called `name`; whatever is wrong is reported and left out.
    pub fn sandbox(&mut self, name: &str, raw: &Sandbox) -> DesiredSandbox {
        let mut guest = GuestSpec {
            user: raw.user.as_ref().map(|u| u.0.clone()),
            owners: owners(raw),
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
        let sockets = self.sockets(raw, &binds);
        let build_secrets = self.build_secrets(raw);
        DesiredSandbox {
            provider: raw.provider.as_ref().map_or_else(|| self.default_provider.to_owned(), |p| p.0.clone()),
            state: raw.state.or(self.defaults.state).unwrap_or_default(),
            build_secrets,
            spec: SandboxSpec {
                image: self.image(raw),
                hostname: raw.hostname.as_ref().map_or_else(|| name.replace('_', "-"), |h| h.0.clone()),
                resources: raw.resources.as_ref().map(resources).unwrap_or_default(),
                mounts: self.mounts(raw),
                binds,
                ports: self.ports(raw),
                sockets,
                links: BTreeSet::new(),
                network: self.network(raw),
                bound: self.bound(raw),
                devices: self.devices(raw),
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
            let (by_env, by_file) = (how.as_env.is_some(), how.as_file.is_some());
            let fine =
                self.exactly_one(&["secrets", name], &["as_env", "as_file"], &[by_env, by_file], false)
                    && self.exactly_one(
                        &["secrets", name],
                        &["as_file", "hosts"],
                        &[by_file, how.hosts.is_some()],
                        false,
                    );
            if let (Some(_), false) = (&how.owner, by_file) {
                let message = "`owner` is for a secret that is a file".to_owned();
                let problem = self.error("conflict", &["secrets", name, "owner"], message);
                self.push(problem.help("remove it, or write `as_file: /run/secrets/NAME` next to it"));
            }
            if !fine {
                continue;
            }
            let given = match (&how.as_env, &how.as_file) {
                (variable, None) if how.hosts.is_some() => SecretUse::Bound {
                    variable: variable.as_ref().map_or_else(|| name.clone(), |variable| variable.0.clone()),
                    placeholder: String::new(),
                },
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
            let host_ip = port.host_ip.unwrap_or_default();
            if !host_ip.is_loopback() && self.confinement.is_some_and(|confinement| !confinement.host_ports) {
                let message =
                    "a manifest of this source may not open a port to others than this machine".to_owned();
                let problem = self.error("not-allowed", &["ports", key, "host_ip"], message);
                self.push(
                    problem
                        .expected("no `host_ip`, so that it is 127.0.0.1")
                        .help("the operator allows it with `host_ports: true` under `allow` of the source"),
                );
                continue;
            }
            let spec = PortSpec {
                host_port,
                host_ip,
                protocol: port.protocol.unwrap_or_default(),
                public: port.public.unwrap_or(false),
                description: port.description.as_ref().map(|d| d.0.clone()),
            };
            ports.insert(number, spec);
        }
        ports
    }

    fn devices(&mut self, raw: &Sandbox) -> BTreeSet<Device> {
        if !raw.devices.is_empty() && self.confinement.is_some_and(|confinement| !confinement.devices) {
            let message = "a sandbox of this source may not have devices of this machine".to_owned();
            let problem = self.error("not-allowed", &["devices"], message);
            self.push(
                problem.help("the operator allows it with `devices: true` under `allow` of the source"),
            );
        }
        raw.devices.iter().copied().collect()
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
        io: raw.io.as_ref().map_or_else(Io::default, |io| Io {
            read: io.read,
            write: io.write,
            read_ops: io.read_ops,
            write_ops: io.write_ops,
        }),
    }
}

/// What is kept must not depend on the working directory.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn scan(scan: tree::Scan<'_>, hashes: &Hashes) -> Result<Vec<tree::TreeEntry>, String> {
    let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
    scan.run(hashes.entry(scan.root.to_owned()).or_default()).map_err(|e| e.to_string())
}
