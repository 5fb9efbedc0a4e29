//! A Containerfile and its context become an image: read whole, refused whole where it asks for what is not built, then carried out step by step
//! in boxes of the engine. A step whose layers, command and files were seen before is not done again.

mod containerfile;
mod context;
mod error;
mod mounts;
mod stage;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use serde::Serialize;

pub use containerfile::{Command, Copy, Instruction, Kind, parse};
pub use error::{BuildError, Wrong};
pub use mounts::is_id;

use containerfile::MAX_FILE;
use context::Context;
use mounts::Mount;
use stage::{Files, Mounted, Origin, Outline, Stage, Step, What};

use crate::engine::{Engine, Exit, OciImage, RunMount, RunStep};
use crate::image::{Built, Digest, Execution, Expected, Hold, Placing, Progress, Reference};
use crate::tree;

/// Counts in every key: what a step comes to must not be taken over from a version that did it otherwise.
const VERSION: u32 = 1;
/// How much of a failed command's output is shown, in bytes.
const TAIL: usize = 4000;
/// The most layers of an image.
const MAX_LAYERS: usize = 127;
/// What a Containerfile is called, unless the request says.
const FILES: [&str; 2] = ["Dockerfile", "Containerfile"];
/// Repository of images without a name of their own.
const UNNAMED: &str = "localhost/pocketenv-build";

/// How far a build is.
#[derive(Debug)]
pub enum Event<'a> {
    /// An image comes.
    Pull(Progress),
    /// A step begins.
    Begin(&'a Position),
    /// A command prints.
    Output(&'a [u8]),
    /// A step is done.
    Done {
        /// Which.
        position: &'a Position,
        /// Whether nothing had to be done.
        cached: bool,
        /// How long it took.
        took: Duration,
    },
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// The instruction in one line.
    pub text: String,
}

/// What is built.
#[derive(Debug)]
pub struct Request<'a> {
    /// The directory that files come from.
    pub context: &'a Path,
    /// The Containerfile, relative to the context; `Dockerfile` or `Containerfile` when absent.
    pub file: Option<&'a str>,
    /// What the context must hold, as `tree_sha256` has it.
    pub sha256: Option<&'a str>,
    /// What the image is called; a name made of what it was built from when absent.
    pub name: Option<&'a Reference>,
    /// Digests that references of the Containerfile stand for which have none themselves, by the reference written out.
    pub pins: &'a BTreeMap<String, String>,
    /// The values of secrets, by what the Containerfile calls them. They are in no layer and no key.
    pub secrets: &'a BTreeMap<String, SecretString>,
}

/// The name of an image that is built from this and has none of its own. `from` has the digests of the images that it begins with and copies from.
fn name_of(
    file: Option<&str>,
    sha256: &str,
    from: &BTreeMap<String, String>,
) -> Result<Reference, BuildError> {
    let file = file.unwrap_or_default().trim_start_matches("./");
    let mut text = format!("{VERSION}\n{file}\n{sha256}");
    for (reference, digest) in from {
        text.push_str(&format!("\n{reference}@{digest}"));
    }
    let hash = Digest::of(text.as_bytes());
    Ok(format!("{UNNAMED}:{}", &hash.hex()[..32]).parse()?)
}

/// The images that the Containerfile of a context begins with and copies from, written out, but for those that it names by digest.
///
/// # Errors
/// [`BuildError`] for a Containerfile that is not there, or cannot be built.
pub fn images_of(context: &Path, file: Option<&str>) -> Result<BTreeSet<String>, BuildError> {
    let is_there = |name: &&str| context.join(name).is_file();
    let file = file.or_else(|| FILES.into_iter().find(is_there)).unwrap_or(FILES[0]);
    let (shown, text) = containerfile(&Context::new(context.to_owned(), Vec::new()), context, file)?;
    let instructions = parse(&text).map_err(|wrong| wrong.within(&shown))?;
    let outlines = stage::outline(&instructions).map_err(|wrong| wrong.within(&shown))?;
    // What is no reference is refused by the build.
    let written_out = |name: &str| Some(moving(&name.parse().ok()?)?.to_string());
    Ok(stage::images(&outlines).into_iter().filter_map(|(_, name)| written_out(name)).collect())
}

/// The name of an image that can come to stand for another one.
fn moving(reference: &Reference) -> Option<&Reference> {
    matches!(reference, Reference::Registry(name) if name.digest.is_none()).then_some(reference)
}

fn containerfile(context: &Context, dir: &Path, file: &str) -> Result<(String, String), BuildError> {
    let shown = dir.join(file).display().to_string();
    let unreadable = |why: String| BuildError::Context {
        context: dir.display().to_string(),
        why: format!("{shown}: {why}"),
    };
    // A link could lead to what is no part of the context, and a message would show it.
    let opened =
        context.open(file.trim_start_matches("./")).map_err(|error| unreadable(error.to_string()))?;
    let text = read(opened).map_err(&unreadable)?;
    Ok((shown, text))
}

/// The image, built unless it is here. While the second value lives, nobody removes it.
///
/// # Errors
/// As [`build`].
pub async fn ensure(
    engine: &Engine,
    request: &Request<'_>,
    say: &(dyn Fn(Event<'_>) + Sync),
) -> Result<(OciImage, Hold), BuildError> {
    if let (Some(sha256), None) = (request.sha256, request.name)
        && let Some(from) = known(engine, request)?
    {
        let name = name_of(request.file, sha256, &from)?;
        // It has no other source than this build.
        if engine.has_image(&name)? {
            return Ok(engine.image(&name, false, &|_| ()).await?);
        }
    }
    build(engine, request, say).await
}

/// What the images that a build begins with stand for, if all of that is known here.
fn known(engine: &Engine, request: &Request<'_>) -> Result<Option<BTreeMap<String, String>>, BuildError> {
    // What is wrong with the Containerfile, the build itself says.
    let Ok(images) = images_of(request.context, request.file) else { return Ok(None) };
    let mut from = BTreeMap::new();
    for image in images {
        let digest = match request.pins.get(&image) {
            Some(digest) => Some(digest.clone()),
            None => engine.known_digest(&image.parse()?)?,
        };
        let Some(digest) = digest else { return Ok(None) };
        from.insert(image, digest);
    }
    Ok(Some(from))
}

/// Builds the image.
///
/// # Errors
/// [`BuildError`], by the line of the Containerfile wherever there is one.
pub async fn build(
    engine: &Engine,
    request: &Request<'_>,
    say: &(dyn Fn(Event<'_>) + Sync),
) -> Result<(OciImage, Hold), BuildError> {
    let unreadable =
        |why: String| BuildError::Context { context: request.context.display().to_string(), why };
    let root = request.context.to_owned();
    let entries = tokio::task::spawn_blocking(move || tree::scan(&root)).await;
    let entries = entries
        .map_err(|error| unreadable(error.to_string()))?
        .map_err(|error| unreadable(error.to_string()))?;
    let sha256 = tree::tree_sha256(&entries);
    if request.sha256.is_some_and(|wanted| wanted != sha256) {
        return Err(unreadable("it has changed since it was looked at; plan again".to_owned()));
    }
    let is_there = |name: &&str| entries.iter().any(|entry| entry.path == **name);
    let default = FILES.into_iter().find(is_there).unwrap_or(FILES[0]);
    let file = request.file.unwrap_or(default).trim_start_matches("./");
    if !is_there(&file) {
        return Err(unreadable(format!("there is no {file}, or an ignore file leaves it out")));
    }
    let context = Context::new(request.context.to_owned(), entries);
    let (shown, text) = containerfile(&context, request.context, file)?;
    let instructions = parse(&text).map_err(|wrong| wrong.within(&shown))?;
    let outlines = stage::outline(&instructions).map_err(|wrong| wrong.within(&shown))?;

    let hold = engine.hold_images().await?;
    let mut build = Build {
        engine,
        file: shown,
        images: BTreeMap::new(),
        from: BTreeMap::new(),
        pins: request.pins,
        secrets: request.secrets,
        say,
    };
    build.bring(&outlines).await?;
    let stages = build.evaluate(&outlines, &context)?;
    engine.sweep_builds().await?;
    let (execution, layers, told) = build.carry_out(&outlines, stages, &context).await?;
    let own = name_of(request.file, &sha256, &build.from)?;
    let image = engine.keep_image(request.name.unwrap_or(&own), &execution, &layers, told).await?;
    Ok((image, hold))
}

fn read(file: std::fs::File) -> Result<String, String> {
    let mut text = String::new();
    match file.take(MAX_FILE + 1).read_to_string(&mut text) {
        Err(error) => Err(error.to_string()),
        Ok(_) if text.len() as u64 > MAX_FILE => Err(format!("it is longer than {MAX_FILE} bytes")),
        Ok(_) => Ok(text),
    }
}

struct Build<'a> {
    engine: &'a Engine,
    file: String,
    images: BTreeMap<String, (Execution, Vec<Expected>)>,
    /// Digests of those whose names could come to stand for others.
    from: BTreeMap<String, String>,
    pins: &'a BTreeMap<String, String>,
    secrets: &'a BTreeMap<String, SecretString>,
    say: &'a (dyn Fn(Event<'_>) + Sync),
}

impl Build<'_> {
    fn at(&self, line: usize, what: impl Into<String>) -> BuildError {
        Wrong::at(line, what).within(&self.file)
    }

    /// Brings every image that is needed.
    async fn bring(&mut self, outlines: &[Outline<'_>]) -> Result<(), BuildError> {
        for (line, name) in stage::images(outlines) {
            if self.images.contains_key(name) {
                continue;
            }
            let reference: Reference =
                name.parse().map_err(|error: crate::image::ImageError| self.at(line, error.to_string()))?;
            let Reference::Registry(in_registry) = &reference else {
                return Err(self.at(line, "an image of a build comes from a registry, or was built here"));
            };
            let mut wanted = in_registry.clone();
            if let (None, Some(pin)) = (&wanted.digest, self.pins.get(&reference.to_string())) {
                wanted.digest = Some(pin.parse().map_err(|why| {
                    self.at(line, format!("pocketenv.lock has `{}` for {name}: {why}", pin.escape_debug()))
                })?);
            }
            let say = |progress: Progress| (self.say)(Event::Pull(progress));
            let brought = self.engine.bring(&Reference::Registry(wanted), false, &say).await;
            let (image, ..) = brought.map_err(|source| BuildError::Image {
                file: self.file.clone(),
                line,
                what: format!("image {name} is needed"),
                source: Box::new(source),
            })?;
            if moving(&reference).is_some() {
                self.from.insert(reference.to_string(), image.pinned.digest.to_string());
            }
            self.images.insert(name.to_owned(), (image.execution, image.layers));
        }
        Ok(())
    }

    /// Every stage that is needed, by its number.
    fn evaluate(
        &self,
        outlines: &[Outline<'_>],
        context: &Context,
    ) -> Result<BTreeMap<usize, Stage>, BuildError> {
        let mut stages: BTreeMap<usize, Stage> = BTreeMap::new();
        for number in stage::needed(outlines) {
            let outline = &outlines[number];
            let base = match &outline.base {
                Origin::Scratch => Execution::default(),
                Origin::Stage(stage) => {
                    stages.get(stage).map(|stage| stage.execution.clone()).unwrap_or_default()
                }
                Origin::Image(name) => {
                    self.images.get(name).map(|(execution, _)| execution.clone()).unwrap_or_default()
                }
            };
            let stage = stage::evaluate(outline, &base, context).map_err(|wrong| wrong.within(&self.file))?;
            self.has_secrets(&stage)?;
            stages.insert(number, stage);
        }
        Ok(stages)
    }

    /// What a stage cannot do without is there.
    fn has_secrets(&self, stage: &Stage) -> Result<(), BuildError> {
        for step in &stage.steps {
            let What::Run(_, mounted) = &step.what else { continue };
            for Mounted { mount, .. } in mounted {
                if let mounts::What::Secret { id, required: true, .. } = &mount.what
                    && !self.secrets.contains_key(id)
                {
                    let what = format!(
                        "`--mount` has `id={id},required` and this build was not given that secret; expected it under `build.secrets` of the manifest, or as `image build --secret id={id},env=NAME`"
                    );
                    return Err(self.at(step.line, what));
                }
            }
        }
        Ok(())
    }

    async fn carry_out(
        &self,
        outlines: &[Outline<'_>],
        stages: BTreeMap<usize, Stage>,
        context: &Context,
    ) -> Result<(Execution, Vec<Expected>, Vec<String>), BuildError> {
        let of = stages.values().map(|stage| stage.steps.len()).sum();
        let mut number = 0;
        let mut done: BTreeMap<usize, Vec<Expected>> = BTreeMap::new();
        let mut last = (Execution::default(), Vec::new());
        let mut told = Vec::new();
        for (index, stage) in stages {
            let mut layers = self.layers_of(&outlines[index].base, &done);
            for step in &stage.steps {
                number += 1;
                let position = Position { number, of, text: step.text.clone() };
                (self.say)(Event::Begin(&position));
                let begun = Instant::now();
                let (built, cached) = self.step(step, &layers, &done, context).await?;
                (self.say)(Event::Done { position: &position, cached, took: begun.elapsed() });
                layers.extend(built.layer);
                told.extend(built.told.into_iter().map(|what| format!("line {}: {what}", step.line)));
                if layers.len() > MAX_LAYERS {
                    return Err(self.at(
                        step.line,
                        format!("this makes more than {MAX_LAYERS} layers; join instructions by `&&`"),
                    ));
                }
            }
            done.insert(index, layers.clone());
            last = (stage.execution, layers);
        }
        Ok((last.0, last.1, told))
    }

    fn layers_of(&self, origin: &Origin, done: &BTreeMap<usize, Vec<Expected>>) -> Vec<Expected> {
        match origin {
            Origin::Scratch => Vec::new(),
            Origin::Stage(stage) => done.get(stage).cloned().unwrap_or_default(),
            Origin::Image(name) => {
                self.images.get(name).map(|(_, layers)| layers.clone()).unwrap_or_default()
            }
        }
    }

    /// What a step comes to, and whether that was known.
    async fn step(
        &self,
        step: &Step,
        layers: &[Expected],
        done: &BTreeMap<usize, Vec<Expected>>,
        context: &Context,
    ) -> Result<(Built, bool), BuildError> {
        match &step.what {
            What::Run(run, mounted) => {
                let mut binds = Vec::new();
                for mounted in mounted {
                    binds.push(self.brought(step, mounted, done, context).await?);
                }
                let mounts: Vec<Keyed<'_>> = mounted.iter().zip(&binds).map(Keyed::of).collect();
                let key = key(layers, Of::run(run, &mounts))?;
                if let Some(built) = self.engine.built_step(&key)? {
                    return Ok((built, true));
                }
                Ok((self.run(step, &key, layers, run, mounted, binds).await?, false))
            }
            What::Place { target, into, owner, mode, files } => {
                let placed = Placed { target, into: *into, owner: owner.as_deref(), mode: *mode, files };
                self.place(step, layers, &placed, done, context).await
            }
        }
    }

    /// The files of a bind, as a layer that nothing lies under; the same files are the same layer.
    async fn brought(
        &self,
        step: &Step,
        mounted: &Mounted,
        done: &BTreeMap<usize, Vec<Expected>>,
        context: &Context,
    ) -> Result<Option<Expected>, BuildError> {
        let Some(files) = &mounted.files else { return Ok(None) };
        let placed = Placed { target: BIND, into: false, owner: None, mode: None, files };
        let (built, _) = self.place(step, &[], &placed, done, context).await?;
        let layer = built.layer.ok_or_else(|| self.at(step.line, "there is nothing to mount"))?;
        Ok(Some(layer))
    }

    async fn run(
        &self,
        step: &Step,
        key: &Digest,
        layers: &[Expected],
        run: &RunStep,
        mounted: &[Mounted],
        binds: Vec<Option<Expected>>,
    ) -> Result<Built, BuildError> {
        let mut run = run.clone();
        for (Mounted { mount, .. }, bind) in mounted.iter().zip(binds) {
            self.mount(&mut run, mount, bind);
        }
        let tail: Mutex<Vec<u8>> = Mutex::default();
        let mut hear = |bytes: &[u8]| {
            (self.say)(Event::Output(bytes));
            if let Ok(mut tail) = tail.lock() {
                tail.extend_from_slice(bytes);
                let cut = tail.len().saturating_sub(TAIL);
                tail.drain(..cut);
            }
        };
        let ran = self.engine.run_step(key, layers, &run, &mut hear).await;
        let ran = ran.map_err(|source| match source {
            crate::engine::EngineError::Exec { what, source, .. } => {
                self.at(step.line, format!("cannot {what}: {source}\n  {}", step.text))
            }
            source => BuildError::Image {
                file: self.file.clone(),
                line: step.line,
                what: "the command cannot be run".to_owned(),
                source: Box::new(source),
            },
        })?;
        ran.map_err(|exit| {
            let tail = tail.lock().map(|tail| String::from_utf8_lossy(&tail).into_owned());
            self.at(step.line, failure(exit, &step.text, &tail.unwrap_or_default()))
        })
    }

    /// Has a command find a mount where it looks for it. A secret without a value is not there.
    fn mount(&self, run: &mut RunStep, mount: &Mount, bind: Option<Expected>) {
        let target = mount.target.as_deref().map(Path::new);
        match (&mount.what, target) {
            (mounts::What::Bind { .. }, Some(target)) => {
                run.mounts.extend(bind.map(|layer| RunMount::Layer {
                    target: target.to_owned(),
                    layer: Box::new(layer),
                    path: BIND.trim_start_matches('/').to_owned(),
                }))
            }
            (mounts::What::Cache { id, sharing, mode, uid, gid, read_only }, Some(target)) => {
                run.mounts.push(RunMount::Cache {
                    target: target.to_owned(),
                    id: id.clone(),
                    sharing: *sharing,
                    mode: *mode,
                    owner: (*uid, *gid),
                    read_only: *read_only,
                });
            }
            (mounts::What::Tmpfs { size }, Some(target)) => {
                run.mounts.push(RunMount::Memory { target: target.to_owned(), size: *size });
            }
            (mounts::What::Secret { id, env, mode, uid, gid, .. }, target) => {
                let Some(value) = self.secrets.get(id) else { return };
                run.secret_env.extend(env.iter().map(|name| (name.clone(), value.clone())));
                run.mounts.extend(target.map(|target| RunMount::Secret {
                    target: target.to_owned(),
                    value: value.clone(),
                    mode: *mode,
                    owner: (*uid, *gid),
                }));
            }
            (_, None) => {}
        }
    }

    /// Puts files into the image of these layers, and whether that was done before.
    async fn place(
        &self,
        step: &Step,
        layers: &[Expected],
        placed: &Placed<'_>,
        done: &BTreeMap<usize, Vec<Expected>>,
        context: &Context,
    ) -> Result<(Built, bool), BuildError> {
        let other = match placed.files {
            Files::Other(origin, _) => self.layers_of(origin, done),
            _ => Vec::new(),
        };
        let key = key(layers, Of::place(placed, &other))?;
        if let Some(built) = self.engine.built_step(&key)? {
            return Ok((built, true));
        }
        let dir = self.engine.building_dir()?;
        let archive = tempfile::Builder::new()
            .prefix("archive-")
            .tempfile_in(dir)
            .map_err(|error| BuildError::File("make an archive of what is copied", error))?;
        let packing = |error| BuildError::File("read what is copied", error);
        let is_dir = match placed.files {
            Files::None => {
                tar::Builder::new(archive.as_file()).finish().map_err(packing)?;
                true
            }
            Files::Context(selection) => {
                context.pack(selection, archive.as_file()).map_err(packing)?;
                selection.into
            }
            Files::Archive(item) => {
                context.archive(item, archive.as_file()).map_err(packing)?;
                true
            }
            Files::Other(_, sources) => {
                let taken = self.engine.take(&other, sources, archive.path()).await?;
                taken.map_err(|why| self.at(step.line, format!("{why}\n  {}", step.text)))?.into
            }
        };
        let placing = Placing {
            target: placed.target.into(),
            into: placed.into || is_dir,
            owner: None,
            mode: placed.mode,
        };
        let owner = placed.owner.map(str::to_owned);
        let built = self.engine.place_step(&key, layers, archive.path(), placing, owner).await?;
        let built = built.map_err(|why| self.at(step.line, format!("{why}\n  {}", step.text)))?;
        Ok((built, false))
    }
}

/// Where the files of a bind are in their layer.
const BIND: &str = "/bind";

/// Files that are put into an image, as [`What::Place`] has them.
struct Placed<'a> {
    target: &'a str,
    into: bool,
    owner: Option<&'a str>,
    mode: Option<u32>,
    files: &'a Files,
}

/// What a mount adds to a key: of a bind what it brings, wherever that came from.
#[derive(Serialize)]
enum Keyed<'a> {
    Layer { target: Option<&'a str>, layer: &'a Digest },
    Other(&'a Mount),
}

impl<'a> Keyed<'a> {
    fn of((mounted, bind): (&'a Mounted, &'a Option<Expected>)) -> Keyed<'a> {
        match bind {
            Some(layer) => Keyed::Layer { target: mounted.mount.target.as_deref(), layer: &layer.diff_id },
            None => Keyed::Other(&mounted.mount),
        }
    }
}

/// What a step comes to depends on this and nothing else that is known.
#[derive(Serialize)]
enum Of<'a> {
    Run {
        argv: &'a [String],
        env: &'a [(String, String)],
        args: &'a [(String, String)],
        working_dir: &'a str,
        user: Option<&'a str>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        mounts: &'a [Keyed<'a>],
    },
    Place {
        target: &'a str,
        into: bool,
        owner: Option<&'a str>,
        mode: Option<u32>,
        context: Option<&'a context::Selection>,
        archive: Option<&'a context::Item>,
        sources: &'a [String],
        other: Vec<&'a Digest>,
    },
}

impl<'a> Of<'a> {
    fn run(run: &'a RunStep, mounts: &'a [Keyed<'a>]) -> Of<'a> {
        Of::Run {
            argv: &run.argv,
            env: &run.env,
            args: &run.args,
            working_dir: &run.working_dir,
            user: run.user.as_deref(),
            mounts,
        }
    }

    fn place(placed: &'a Placed<'a>, other: &'a [Expected]) -> Of<'a> {
        Of::Place {
            target: placed.target,
            into: placed.into,
            owner: placed.owner,
            mode: placed.mode,
            context: if let Files::Context(selection) = placed.files { Some(selection) } else { None },
            archive: if let Files::Archive(item) = placed.files { Some(item) } else { None },
            sources: if let Files::Other(_, sources) = placed.files { sources } else { &[] },
            other: other.iter().map(|layer| &layer.diff_id).collect(),
        }
    }
}

fn key(layers: &[Expected], of: Of<'_>) -> Result<Digest, BuildError> {
    let layers: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
    let text = serde_json::to_vec(&(VERSION, layers, of))
        .map_err(|error| BuildError::File("write down what a step is", error.into()))?;
    Ok(Digest::of(&text))
}

fn failure(exit: Exit, text: &str, tail: &str) -> String {
    let how = match exit {
        Exit::Code(code) => format!("the command ended with code {code}"),
        Exit::Signal(signal) => format!("the command was killed by signal {signal}"),
    };
    let legible = |c: char| c == '\n' || c == '\t' || !c.is_control();
    let tail: String = tail.chars().filter(|c| legible(*c)).collect();
    format!("{how}\n  {text}\n{}", tail.trim_end())
}
