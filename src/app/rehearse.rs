//! Rehearsals: the real apply and destroy of a manifest against simulated clouds with faults, and what the clouds' own truth says about it afterwards.
//!
//! Each provider of the manifest is played by a simulator of its own, a child process; the store is a temporary one. Nothing of the real world is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};

use super::{
    Answer, App, ApplyOptions, Approval, Consent, Directories, Environment, Error, Goal, Outcome, Project,
    Selection,
};
use crate::model::with_causes;
use crate::model::{Desired, RunState, labels};
use crate::plan::Policy;
use crate::provider::http::Http;
use crate::provider::{ProviderContext, Registry, sim::Sim};
use crate::reconcile::execute::Cancel;
use crate::reconcile::{Event, EventKind, EventSink};

/// How long a simulator may take to come up.
const START: Duration = Duration::from_secs(20);
/// What of a simulator's complaint is shown.
const COMPLAINT_LIMIT: u64 = 4096;
/// How often somebody would type `apply`, or `destroy`, again before giving up.
const ATTEMPTS: u32 = 5;
/// How long one apply may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Settings of every rehearsal, below those that are asked for: time runs fast, and commands that only a real sandbox has succeed.
const ALWAYS: [(&str, &str); 2] = [("speed", "20"), ("command_exit", "0")];
/// Settings that end the storm, for the question whether everything is in place.
const CALM: [(&str, &str); 10] = [
    ("throttle", "0"),
    ("error_before", "0"),
    ("error_after", "0"),
    ("cut_before", "0"),
    ("cut_after", "0"),
    ("miss_page", "0"),
    ("death", "0"),
    ("stuck", "0"),
    ("refuse_delete", "0"),
    ("lag", "0"),
];

/// What to rehearse.
#[derive(Clone, Debug)]
pub struct RehearsalOptions {
    /// The profile of the simulators.
    pub chaos: String,
    /// Where chance begins.
    pub seed: u64,
    /// Settings over those of the profile.
    pub settings: BTreeMap<String, String>,
}

/// What one rehearsal found.
#[derive(Clone, Debug, Serialize)]
pub struct Rehearsal {
    /// The profile.
    pub chaos: String,
    /// Where chance began: the same seed goes wrong in the same way.
    pub seed: u64,
    /// Whether every question below was answered well.
    pub passed: bool,
    /// The questions, with their answers.
    pub verdicts: Vec<Verdict>,
    /// How often `apply` had to be run until everything was in place.
    pub applies: u32,
    /// How often `destroy` had to be run until nothing was left.
    pub destroys: u32,
    /// Calls that failed and were tried again.
    pub retries: u64,
    /// What the clouds did, by the kind of effect.
    pub effects: BTreeMap<String, u64>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The question, as a statement that should be true.
    pub statement: &'static str,
    /// Whether it is.
    pub holds: bool,
    /// What was found instead.
    pub found: Vec<String>,
}

impl Verdict {
    fn new(statement: &'static str, found: Vec<String>) -> Self {
        Self { statement, holds: found.is_empty(), found }
    }
}

impl App {
    /// Rehearses once.
    pub async fn rehearse(
        &self,
        selection: &Selection,
        options: &RehearsalOptions,
    ) -> Result<Rehearsal, Error> {
        let begun = Instant::now();
        let manifest = self.load(selection)?;
        let dir = tempfile::Builder::new().prefix("pocketenv-rehearsal-").tempdir().map_err(|source| {
            Error::Io { doing: "make a directory in", path: std::env::temp_dir(), source }
        })?;
        let app = App::new(Environment {
            directories: Directories {
                data: dir.path().join("data"),
                state: dir.path().join("state"),
                cache: dir.path().join("cache"),
                config: dir.path().join("config"),
                runtime: dir.path().join("run"),
            },
            ..self.environment().clone()
        });
        let mut clouds = BTreeMap::new();
        let mut registry = Registry::default();
        for name in manifest.providers_used() {
            let cloud = Cloud::start(&app, dir.path().join(format!("{name}.sim")), options).await?;
            let opened = Sim::open(&cloud.context(&app)).await;
            let sim = opened.map_err(|source| Error::Provider { provider: name.clone(), source })?;
            registry.insert(name.clone(), Arc::new(sim));
            clouds.insert(name, cloud);
        }
        let project = app.open_with(selection, Some(registry)).await?;
        let stage = Stage { project, clouds, retries: Counter::default() };
        let result = stage.play().await;
        let (verdicts, applies, destroys, effects) = result?;
        Ok(Rehearsal {
            chaos: options.chaos.clone(),
            seed: options.seed,
            passed: verdicts.iter().all(|verdict| verdict.holds),
            verdicts,
            applies,
            destroys,
            retries: stage.retries.0.load(Ordering::Relaxed),
            effects,
            elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

/// Counts what was tried again.
#[derive(Default)]
struct Counter(AtomicU64);

impl EventSink for Counter {
    fn event(&self, event: &Event) {
        if matches!(event.kind, EventKind::StepRetrying { .. }) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Agrees to everything: nothing is real.
struct Agree;

impl Consent for Agree {
    fn approve(&self, _: &Approval<'_>) -> Answer {
        Answer::Yes
    }
}

struct Stage<'a> {
    project: Project<'a>,
    clouds: BTreeMap<String, Cloud>,
    retries: Counter,
}

type Played = (Vec<Verdict>, u32, u32, BTreeMap<String, u64>);

impl Stage<'_> {
    async fn play(&self) -> Result<Played, Error> {
        let apply = ApplyOptions { timeout: Some(PATIENCE), ..ApplyOptions::default() };
        let (applies, converged) = self.until_done(&apply).await?;

        // The storm is over; what died in it may be repaired once more, and then a plan must find nothing to do.
        let stormy = self.each(&CALM.map(|(n, v)| (n.to_owned(), v.to_owned())).into()).await?;
        let mut calm_applies = 0;
        let mut pending = self.pending().await?;
        while !pending.is_empty() && calm_applies < ATTEMPTS {
            calm_applies += 1;
            self.run(&apply).await?;
            pending = self.pending().await?;
        }
        let view = self.project.look(false, false).await?;
        let standing = self.inventories().await?;
        let differences = differences(&view.desired, &standing);

        for (cloud, before) in self.clouds.values().zip(stormy) {
            let back = CALM
                .iter()
                .flat_map(|(name, _)| before.iter().filter(|(n, _)| n.rsplit('.').next() == Some(*name)));
            cloud.set(&back.map(|(n, v)| (n.clone(), v.clone())).collect()).await?;
        }
        let policy = Policy { prune_volumes: true, ..Policy::default() };
        let destroy = ApplyOptions { verb: "destroy", goal: Goal::Destroy, policy, ..apply };
        let (destroys, _) = self.until_done(&destroy).await?;
        let left = self.inventories().await?;
        let protected = |name: &str| view.desired.sandboxes.get(name).is_some_and(|s| s.protect);

        let verdicts = vec![
            Verdict::new("apply ends with everything as declared", converged),
            Verdict::new("what exists is exactly what is declared", differences),
            Verdict::new("nothing is created twice", left.values().flat_map(Inventory::doubles).collect()),
            Verdict::new("a second plan is empty", pending),
            Verdict::new(
                "destroy leaves nothing",
                left.values().flat_map(|inventory| inventory.left(protected)).collect(),
            ),
        ];
        let mut effects: BTreeMap<String, u64> = BTreeMap::new();
        for entry in left.values().flat_map(|inventory| &inventory.effects) {
            *effects.entry(entry.kind().to_owned()).or_default() += 1;
        }
        Ok((verdicts, applies + calm_applies, destroys, effects))
    }

    /// Runs until it succeeds or has been tried often enough; the number of runs, and what the last one complained of.
    async fn until_done(&self, options: &ApplyOptions) -> Result<(u32, Vec<String>), Error> {
        let mut complaints = Vec::new();
        for attempt in 1..=ATTEMPTS {
            complaints = self.run(options).await?;
            if complaints.is_empty() {
                return Ok((attempt, complaints));
            }
        }
        Ok((ATTEMPTS, complaints))
    }

    /// One run; what it complained of.
    async fn run(&self, options: &ApplyOptions) -> Result<Vec<String>, Error> {
        let report = match self.project.apply(options, &Agree, &self.retries, &Cancel::default()).await {
            Ok(report) => report,
            // What keeps every run from beginning is told; the rest is what is rehearsed.
            Err(error @ (Error::Manifest(_) | Error::Secrets(_) | Error::Store(_) | Error::Unsound(_))) => {
                return Err(error);
            }
            Err(error) => return Ok(vec![with_causes(&error)]),
        };
        if matches!(report.outcome, Outcome::Done | Outcome::Unchanged) {
            return Ok(Vec::new());
        }
        let failed = report.steps.iter().filter(|step| step.result == "failed");
        let mut complaints: Vec<String> = failed
            .map(|step| {
                format!("{} {}: {}", step.op, step.resource, step.message.as_deref().unwrap_or_default())
            })
            .collect();
        let waiting = report.waiting.iter();
        complaints
            .extend(waiting.map(|w| format!("{}: {}", w.address, crate::plan::report::waiting_text(w))));
        if complaints.is_empty() {
            complaints.push(format!("{:?}", report.outcome).to_lowercase());
        }
        Ok(complaints)
    }

    /// What a plan made now would do.
    async fn pending(&self) -> Result<Vec<String>, Error> {
        let view = self.project.look(false, false).await?;
        let plan = self.project.plan(&view, &Policy::default())?;
        let steps = plan.steps.iter().map(|step| format!("{} {}", step.action.verb(), step.address));
        let waiting =
            plan.waiting.iter().map(|w| format!("{}: {}", w.address, crate::plan::report::waiting_text(w)));
        Ok(steps.chain(waiting).collect())
    }

    /// Sets the same of every cloud; what was set before.
    async fn each(
        &self,
        settings: &BTreeMap<String, String>,
    ) -> Result<Vec<BTreeMap<String, String>>, Error> {
        let mut before = Vec::new();
        for cloud in self.clouds.values() {
            before.push(cloud.ask(Method::GET, "faults", None).await?);
            cloud.set(settings).await?;
        }
        Ok(before)
    }

    async fn inventories(&self) -> Result<BTreeMap<&str, Inventory>, Error> {
        let mut inventories = BTreeMap::new();
        for (name, cloud) in &self.clouds {
            inventories.insert(name.as_str(), cloud.ask(Method::GET, "inventory", None).await?);
        }
        Ok(inventories)
    }
}

/// What differs between what is declared and what exists.
fn differences(desired: &Desired, standing: &BTreeMap<&str, Inventory>) -> Vec<String> {
    let mut found = Vec::new();
    for (provider, inventory) in standing {
        let mut unseen: BTreeSet<&str> = desired
            .sandboxes
            .iter()
            .filter(|(_, s)| s.provider == *provider && s.state != RunState::Absent)
            .map(|(name, _)| name.as_str())
            .collect();
        for sandbox in &inventory.sandboxes {
            let name = sandbox.declared_as();
            if !unseen.remove(name.as_str()) {
                found.push(format!(
                    "{} at {provider}, for `{name}`, is not declared or one too many",
                    sandbox.id
                ));
                continue;
            }
            let wanted = match desired.sandboxes.get(&name).map(|s| s.state) {
                Some(RunState::Stopped) => "stopped",
                _ => "running",
            };
            if sandbox.state != wanted {
                found.push(format!("{} at {provider}, for `{name}`, is {}", sandbox.id, sandbox.state));
            }
        }
        found.extend(unseen.into_iter().map(|name| format!("`{name}` does not exist at {provider}")));
    }
    found
}

/// The truth of one cloud.
#[derive(Debug, Deserialize)]
struct Inventory {
    sandboxes: Vec<Found>,
    volumes: Vec<FoundVolume>,
    effects: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Found {
    id: String,
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    state: String,
}

#[derive(Debug, Deserialize)]
struct FoundVolume {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Entry {
    effect: serde_json::Value,
}

impl Found {
    /// The sandbox of the manifest that it was made for.
    fn declared_as(&self) -> String {
        declared_as(&self.name, self.labels.get(labels::ADDRESS).map(String::as_str))
    }
}

/// The name in the address, which stands in a label or, where there are none, in the encoded name.
fn declared_as(name: &str, label: Option<&str>) -> String {
    let address = label.or_else(|| name.split('~').nth(2)).unwrap_or(name);
    address.strip_prefix("sandbox/").unwrap_or(address).to_owned()
}

impl Entry {
    fn kind(&self) -> &str {
        self.effect.as_object().and_then(|effect| effect.keys().next()).map_or("", String::as_str)
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.effect.get(self.kind())?.get(field)?.as_str()
    }
}

impl Inventory {
    /// Sandboxes that were made while another one for the same name was there.
    fn doubles(&self) -> Vec<String> {
        let mut living: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut found = Vec::new();
        for entry in &self.effects {
            let Some(id) = entry.text("id") else { continue };
            match entry.kind() {
                "created" => {
                    let label = entry.effect["created"]["labels"][labels::ADDRESS].as_str();
                    let name = declared_as(entry.text("name").unwrap_or_default(), label);
                    let there = living.entry(name.clone()).or_default();
                    if let Some(other) = there.first() {
                        found.push(format!("{id} was created for `{name}` while {other} was there"));
                    }
                    there.insert(id.to_owned());
                }
                "deleted" | "deleting" => living.values_mut().for_each(|there| {
                    there.remove(id);
                }),
                _ => {}
            }
        }
        found
    }

    /// What is left after a destroy.
    fn left(&self, protected: impl Fn(&str) -> bool) -> Vec<String> {
        let sandboxes = self.sandboxes.iter().filter(|s| !protected(&s.declared_as()));
        let volumes = self.volumes.iter().map(|v| format!("volume {}", v.name));
        sandboxes
            .map(|s| format!("{} for `{}` is {}", s.id, s.declared_as(), s.state))
            .chain(volumes)
            .collect()
    }
}

/// One simulator.
struct Cloud {
    url: String,
    http: Http,
    /// It ends with us: it is killed when this is dropped, and by its standard input should we be killed.
    _child: tokio::process::Child,
}

impl Cloud {
    async fn start(app: &App, state: std::path::PathBuf, options: &RehearsalOptions) -> Result<Self, Error> {
        let failed = |message: String| Error::Simulator(message);
        let mut command = tokio::process::Command::new(&app.environment().executable);
        // Its client is ours, and knows of no token.
        command.env_remove(crate::provider::sim::TOKEN_VARIABLE);
        command.args(["sim", "--quiet", "--until-stdin-ends", "--listen", "127.0.0.1:0"]);
        command.arg("--state").arg(state).args([
            "--seed",
            &options.seed.to_string(),
            "--profile",
            &options.chaos,
        ]);
        let asked = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in ALWAYS.into_iter().chain(asked) {
            command.arg("--faults").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| failed(format!("it cannot be started: {error}")))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed("it has no output".to_owned()));
        };
        let mut lines = tokio::io::BufReader::new(stdout).lines();
        let url = match tokio::time::timeout(START, lines.next_line()).await {
            Ok(Ok(Some(url))) => url,
            Ok(_) => {
                let mut complaint = String::new();
                let _ = stderr.take(COMPLAINT_LIMIT).read_to_string(&mut complaint).await;
                return Err(failed(complaint.trim().trim_start_matches("error: ").to_owned()));
            }
            Err(_) => return Err(failed(format!("it did not come up within {} s", START.as_secs()))),
        };
        let http = Http::new(&url, |_| None).map_err(|error| failed(error.to_string()))?;
        Ok(Self { url, http, _child: child })
    }

    fn context(&self, app: &App) -> ProviderContext {
        let env = app.environment();
        ProviderContext {
            data_dir: env.directories.data.clone(),
            runtime_dir: env.directories.runtime.clone(),
            executable: env.executable.clone(),
            vars: BTreeMap::new(),
            credentials: BTreeMap::new(),
            settings: BTreeMap::from([(
                "sim".to_owned(),
                BTreeMap::from([("url".to_owned(), self.url.clone())]),
            )]),
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        body: Option<&BTreeMap<String, String>>,
    ) -> Result<T, Error> {
        let mut call = self.http.call(method, &[what]);
        if let Some(body) = body {
            call = call.json(body);
        }
        call.read(&format!("ask for {what}")).await.map_err(|error| Error::Simulator(with_causes(&error)))
    }

    async fn set(&self, settings: &BTreeMap<String, String>) -> Result<(), Error> {
        self.ask::<BTreeMap<String, String>>(Method::PATCH, "faults", Some(settings)).await.map(drop)
    }
}
