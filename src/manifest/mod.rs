//! The manifest: text → tree with spans → merged → rendered and checked → [`Desired`].
//!
//! The walk of one value goes one way: `read` finds and merges files (`yaml` builds the tree), `assemble` drives, `check` holds the
//! tree against the schema of `language` and renders templates, `normal` rewrites short forms, `lower` makes the desired state,
//! `capability` asks the provider's sheet. Nothing here opens a provider, a store or the network.

mod across;
mod assemble;
mod capability;
mod check;
mod config;
mod confine;
mod diagnostic;
mod docs;
mod env_file;
mod fmt;
mod graph;
mod init;
mod language;
mod limits;
mod lower;
mod node;
mod normal;
mod origins;
pub mod presets;
mod read;
mod render;
mod repo;
mod schema;
mod source;
mod support;
mod template;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{Desired, PortRef};
use crate::provider::Capabilities;
use crate::secret::SecretSource;
use assemble::{Assembled, Given, World};
pub use confine::Confinement;
pub use diagnostic::{Diagnostic, Diagnostics, Label, MAX_REPORTED, Severity};
use diagnostic::{Problem, Problems};
pub use docs::reference;
pub use fmt::format;
pub use init::{Starter, starter};
pub use language::scalar::Text;
pub use language::{SecretRef, Setting};
pub use origins::Origins;
pub use read::{Input, MAX_INCLUDE_DEPTH, MAX_INCLUDES, discover, manifests_in};
use read::{Reader, read_bounded};
pub use schema::{preset_schema, rules_file, schema};
pub use source::MAX_FILE_BYTES;
use source::{Sources, Span};
pub use support::{Field, Handling, fields, providers_page};
pub use yaml::{MAX_ALIASES, MAX_DEPTH, MAX_NODES};

/// What to load, and everything from outside that a manifest may depend on.
#[derive(Clone, Debug, Default)]
pub struct LoadRequest {
    /// The files of one project, merged left to right.
    pub files: Vec<Input>,
    /// Adds `pocketenv.PROFILE.yaml` beside the first file, on top of all others. An error if there is none.
    pub profile: Option<String>,
    /// `--var NAME=VALUE`: overrides `vars` and `POCKETENV_VAR_NAME`.
    pub vars: BTreeMap<String, String>,
    /// The environment of the process, for `{{ env.X }}` and `POCKETENV_VAR_…`.
    pub env: BTreeMap<String, String>,
    /// `--env-file`: more of `{{ env.X }}`; the process's own environment wins, among files the last one.
    pub env_files: Vec<PathBuf>,
    /// `-n/--project`: overrides `name`.
    pub project: Option<String>,
    /// `--provider`: overrides `defaults.provider`.
    pub default_provider: Option<String>,
    /// The home directory, for paths that begin with `~/`.
    pub home: Option<PathBuf>,
    /// The limits of a manifest that is not trusted; `None` for one that may do what the user may.
    pub confinement: Option<Confinement>,
}

/// A port as declared, before its address on the host is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredPort {
    /// The sandbox and the port inside.
    pub port_ref: PortRef,
    /// The sandbox's provider.
    pub provider: String,
    /// The port of the host that the manifest fixes.
    pub host_port: Option<u16>,
}

/// A manifest that has been read, merged and checked, except for what needs the host's files, known addresses and capability sheets.
#[derive(Debug)]
pub struct Manifest {
    given: Given,
    assembled: Assembled,
    warnings: Diagnostics,
}

/// What `resolve` needs from outside.
#[derive(Clone, Copy, Debug)]
pub struct ResolveContext<'a> {
    /// The address of each port as known by now: host and port.
    pub endpoints: &'a BTreeMap<PortRef, (String, u16)>,
    /// The sheets of all providers there are; a provider without one does not exist.
    pub capabilities: &'a [&'a Capabilities],
}

/// The result of `resolve`.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What should be.
    pub desired: Desired,
    /// Where each part of it is written.
    pub origins: Origins,
    /// What is probably not meant.
    pub warnings: Diagnostics,
    /// The files that were read, in order, as they were named.
    pub files: Vec<String>,
    /// Files and directories of the host whose content is part of what should be: environment files, templates, sources.
    pub inputs: BTreeSet<PathBuf>,
}

/// Reads, merges and checks a manifest. No provider is opened and, beyond the manifest itself and `--env-file`, no file is read.
/// The error has every problem found, at most [`MAX_REPORTED`] of them in full.
pub fn load(request: &LoadRequest) -> Result<Manifest, Diagnostics> {
    let (given, mut problems) = read(request)?;
    let assembled = assemble::assemble(&given, None, &mut problems);
    let failed = problems.errors() > 0;
    let diagnostics = problems.finish(&given.sources);
    match assembled {
        Some(assembled) if !failed => Ok(Manifest { given, assembled, warnings: diagnostics }),
        _ => Err(diagnostics),
    }
}

/// Everything that can be wrong with a manifest in one run: what [`load`] and, with no address known, [`Manifest::resolve`] say.
/// `capabilities` are the sheets of all providers there are.
pub fn validate(request: &LoadRequest, capabilities: &[&Capabilities]) -> Result<Resolved, Diagnostics> {
    let (given, problems) = read(request)?;
    resolve(&given, &ResolveContext { endpoints: &BTreeMap::new(), capabilities }, problems)
}

/// Reads and merges; what is wrong so far is in the second value unless nothing could be read.
fn read(request: &LoadRequest) -> Result<(Given, Problems), Diagnostics> {
    let mut sources = Sources::default();
    let mut problems = Problems::default();
    let mut inputs = request.files.clone();
    let first_dir = inputs.iter().find_map(|input| match input {
        Input::Path(path) => path.parent().map(Path::to_path_buf),
        Input::Stdin(_) => None,
    });
    let dir = first_dir.filter(|d| !d.as_os_str().is_empty()).unwrap_or_else(|| PathBuf::from("."));
    if let Some(profile) = &request.profile {
        if let Err(why) = language::name(profile) {
            return Err(Diagnostics::bare(
                "bad-name",
                format!("the profile {} {why}", node::quote(profile)),
                None,
            ));
        }
        inputs.push(Input::Path(dir.join(format!("pocketenv.{profile}.yaml"))));
    }
    if let Some(project) = &request.project
        && let Err(why) = language::name(project)
    {
        return Err(Diagnostics::bare(
            "bad-name",
            format!("the project {} {why}", node::quote(project)),
            None,
        ));
    }
    if let Some(confinement) = &request.confinement {
        for input in &inputs {
            let Input::Path(path) = input else { continue };
            if !confinement.holds(path) {
                let name = path.display().to_string();
                let message = format!("{name} leads out of the directory of the project");
                let file = sources.add(name, PathBuf::new(), String::new());
                problems.push(Problem::error("not-allowed", Span { file, start: 0, end: 0 }, message));
                return Err(problems.finish(&Arc::new(sources)));
            }
        }
    }
    let env = environment(request, &mut sources, &mut problems);
    let tree = Reader::new(&mut sources, &mut problems).read_all(&inputs);
    let sources = Arc::new(sources);
    let Some(tree) = tree else {
        let diagnostics = problems.finish(&sources);
        return Err(if diagnostics.is_empty() {
            Diagnostics::bare(
                "no-manifest",
                "no manifest was given".to_owned(),
                Some("`-f FILE` names one".to_owned()),
            )
        } else {
            diagnostics
        });
    };
    let given = Given {
        sources: Arc::clone(&sources),
        tree,
        env,
        vars: request.vars.clone(),
        project: request.project.clone(),
        directory_name: assemble::directory_name(&dir),
        provider: request.default_provider.clone(),
        home: request.home.clone(),
        confinement: request.confinement.clone(),
        hashes: Arc::default(),
    };
    Ok((given, problems))
}

fn resolve(
    given: &Given,
    context: &ResolveContext<'_>,
    mut problems: Problems,
) -> Result<Resolved, Diagnostics> {
    let world = World { endpoints: context.endpoints, capabilities: context.capabilities };
    let assembled = assemble::assemble(given, Some(&world), &mut problems);
    let failed = problems.errors() > 0;
    let diagnostics = problems.finish(&given.sources);
    match assembled {
        Some(Assembled { desired, origins, inputs, .. }) if !failed => {
            let files = given.sources.files().iter().map(|f| f.name.clone()).collect();
            Ok(Resolved { desired, origins, warnings: diagnostics, files, inputs })
        }
        _ => Err(diagnostics),
    }
}

/// One YAML document as data, within the same bounds as a manifest.
pub fn to_json(name: &str, text: &str) -> Result<serde_json::Value, Diagnostics> {
    let mut sources = Sources::default();
    let mut problems = Problems::default();
    let file = sources.add(name.to_owned(), PathBuf::new(), text.to_owned());
    match yaml::parse(&sources, file, &mut problems) {
        Some(node) if problems.errors() == 0 => Ok(node.to_json()),
        _ => Err(problems.finish(&Arc::new(sources))),
    }
}

/// The names under `env.` in templates.
fn environment(
    request: &LoadRequest,
    sources: &mut Sources,
    problems: &mut Problems,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for path in &request.env_files {
        let name = path.display().to_string();
        let read = read_bounded(path)
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()))
            .map_err(|why| (0, why))
            .and_then(|text| env_file::parse(&text));
        match read {
            Ok(values) => env.extend(values),
            Err((line, why)) => {
                let file = sources.add(name.clone(), PathBuf::new(), String::new());
                let message =
                    if line > 0 { format!("{name}: line {line}: {why}") } else { format!("{name}: {why}") };
                problems.push(Problem::error("unreadable", Span { file, start: 0, end: 0 }, message));
            }
        }
    }
    env.extend(request.env.clone());
    env
}

impl Manifest {
    /// The project's name.
    pub fn project(&self) -> &str {
        &self.assembled.desired.project
    }

    /// The providers that sandboxes and volumes use, by name.
    pub fn providers_used(&self) -> BTreeSet<String> {
        let desired = &self.assembled.desired;
        let sandboxes = desired.sandboxes.values().map(|s| s.provider.clone());
        sandboxes.chain(desired.volumes.values().map(|v| v.provider.clone())).collect()
    }

    /// All declared ports, ordered by sandbox and port.
    pub fn ports(&self) -> &[DeclaredPort] {
        &self.assembled.ports
    }

    /// Where each secret comes from.
    pub fn secrets(&self) -> &BTreeMap<String, SecretSource> {
        &self.assembled.secrets
    }

    /// Settings by provider.
    pub fn provider_settings(&self) -> &BTreeMap<String, BTreeMap<String, Setting>> {
        &self.assembled.settings
    }

    /// What is probably not meant.
    pub fn warnings(&self) -> &Diagnostics {
        &self.warnings
    }

    /// The files that were read, in order, as they were named.
    pub fn files(&self) -> Vec<&str> {
        self.given.sources.files().iter().map(|f| f.name.as_str()).collect()
    }

    /// SHA-256 over the text of all files read and the variables given, as 64 lowercase hex digits.
    pub fn digest(&self) -> String {
        let texts: Vec<&str> = self.given.sources.files().iter().map(|f| f.text.as_str()).collect();
        crate::model::hash_of(&(texts, &self.given.vars)).0
    }

    /// The desired state: templates see the addresses in `context`, files of the host are read, and every field is held against the
    /// sheet of its provider.
    pub fn resolve(&self, context: &ResolveContext<'_>) -> Result<Resolved, Diagnostics> {
        resolve(&self.given, context, Problems::default())
    }
}
