//! Reconciling one project: take what is new if it is good, then make what exists as the last good revision says, as far as the source allows.

use std::path::{Path, PathBuf};

use super::status::Phase;
use super::{Controller, Key, News, ProjectState, Settings, Source, config, jittered, seconds, window};
use crate::app::environment::steady;
use crate::app::{
    Answer, App, ApplyOptions, ApplyReport, Approval, Consent, Error, Goal, Outcome, Selection,
};
use crate::gitops::{Found, GitError, Mirror};
use crate::manifest::{Confinement, Diagnostic};
use crate::model::with_causes;
use crate::model::{Address, Duration, Health, Sync};
use crate::plan::report::waiting_text;
use crate::plan::{Note, Plan, Policy, Verdict as Verb};
use crate::reconcile::execute::Cancel;
use crate::reconcile::queue::Ended;
use crate::reconcile::status::ProjectStatus;
use crate::reconcile::{FailureKind, NullSink};
use crate::store::{Controlled, StoreError};

/// How soon something is looked at again that somebody else works on.
const SOON: Duration = Duration::from_secs(5);

/// A project, where it comes from and how it is kept.
#[derive(Clone, Copy)]
struct At<'a> {
    source: &'a Source,
    settings: &'a Settings,
    key: &'a Key,
}

/// How a reconcile went, before it is written down.
struct Verdict {
    phase: Phase,
    message: String,
    ended: Ended,
    /// It says nothing about the project, so nobody is told of it.
    passing: bool,
}

impl Verdict {
    fn new(phase: Phase, message: impl Into<String>, ended: Ended) -> Self {
        Self { phase, message: message.into(), ended, passing: false }
    }

    fn failed(message: impl Into<String>) -> Self {
        Self::new(Phase::Failed, message, Ended::Failed { retry_after: None })
    }

    fn waiting(message: impl Into<String>, recheck: Duration) -> Self {
        Self::new(Phase::Waiting, message, Ended::Waiting { recheck: recheck.into() })
    }
}

/// Why what is new is not taken.
enum Refusal {
    /// It cannot be used as it is.
    Bad { message: String, diagnostics: Vec<Diagnostic> },
    /// It could not be had; that may change by itself.
    Later(String),
}

/// The operator's answers, given beforehand.
struct BySource {
    prune: bool,
    data_loss: bool,
}

impl Consent for BySource {
    fn approve(&self, approval: &Approval<'_>) -> Answer {
        // Who allows to prune knows that what is pruned is gone.
        let asked =
            approval.plan.changes.iter().filter(|change| !(self.prune && change.verdict == Verb::Delete));
        let risks: Vec<String> = asked
            .flat_map(|c| c.data_at_risk.iter().map(move |what| format!("{}: {what}", c.address)))
            .collect();
        if risks.is_empty() || self.data_loss || *approval.goal == Goal::Destroy {
            return Answer::Yes;
        }
        let risks = risks.join("; ");
        Answer::Needs {
            message: format!(
                "this may lose data ({risks}); `allow_data_loss: true` of the source says that it may"
            ),
        }
    }
}

impl Controller {
    /// Works on one project, and writes down how it went.
    pub(super) async fn reconcile(&self, key: &Key, cancel: &Cancel) -> Ended {
        let began = steady();
        let (source_name, _) = key;
        let Some(source) = self.source(source_name) else { return Ended::Failed { retry_after: None } };
        let settings = self.config.settings(source, &key.1);
        let at = At { source, settings: &settings, key };
        let verdict = match self.work(at, cancel).await {
            Ok(verdict) => verdict,
            Err(error) => self.failed(&settings, &error),
        };
        let took = steady().millis_since(began);
        let now = self.now();
        self.metrics.reconcile.observe(seconds(took));
        self.note_on(key, |project| {
            let status = &mut project.status;
            // What is wrong with the newest revision outlives what becomes of the last good one.
            let invalid = project.bad.is_some() && matches!(verdict.phase, Phase::Applied | Phase::Watching);
            if !invalid {
                status.phase = verdict.phase;
                status.message = verdict.message;
            } else {
                status.phase = Phase::Invalid;
            }
            status.reconciled_at = Some(now);
            status.took_ms = took;
            if !verdict.passing {
                let news = News::of(project);
                let known =
                    |news: &Option<News>| news.as_ref().map(|news| (news.revision.clone(), news.state));
                if known(&news) != known(&project.news) {
                    project.news_number += 1;
                }
                project.news = news;
            }
        });
        verdict.ended
    }

    fn note_on(&self, key: &Key, change: impl FnOnce(&mut ProjectState)) {
        if let Some(project) = self.state().projects.get_mut(key) {
            change(project);
        }
    }

    /// An error as a verdict: who waits for whom is not a failure.
    fn failed(&self, settings: &Settings, error: &Error) -> Verdict {
        let (kind, verdict) = match error {
            Error::Store(StoreError::Locked { lease }) => {
                let waiting = Verdict::waiting(format!("{} works on it", lease.holder), SOON);
                return Verdict { passing: true, ..waiting };
            }
            Error::Refused { message } => ("refused", Verdict::waiting(message.clone(), settings.resync)),
            Error::Manifest(diagnostics) => {
                ("manifest", Verdict::waiting(diagnostics.to_string(), settings.resync))
            }
            Error::Store(_) => ("store", Verdict::failed(with_causes(error))),
            Error::Provider { .. } | Error::Guest(_) => ("provider", Verdict::failed(with_causes(error))),
            Error::Secrets(_) => ("secret", Verdict::failed(with_causes(error))),
            _ => ("other", Verdict::failed(with_causes(error))),
        };
        self.metrics.error(kind);
        verdict
    }

    async fn work(&self, at: At<'_>, cancel: &Cancel) -> Result<Verdict, Error> {
        let At { source, settings, key } = at;
        let app = self.app.showing(&settings.account.env);
        let Some(mut good) = self.recall(key).await? else {
            return Ok(Verdict::waiting("", settings.resync.max(source.interval)));
        };
        let Some((newest, gone, bad, looked_at)) = ({
            let state = self.state();
            let looked_at = state.sources.get(&key.0).and_then(|source| source.looked_at);
            let project = state.projects.get(key);
            project.map(|project| (project.newest.clone(), project.gone, project.bad.clone(), looked_at))
        }) else {
            return Ok(Verdict::waiting("", settings.resync));
        };
        // What another controller took since we looked at the source is newer than anything that we saw there.
        // What is of the future says nothing: the clock was set back.
        let now = self.now();
        let is_behind = good
            .as_ref()
            .is_some_and(|good| looked_at.is_some_and(|at| at < good.since && good.since <= now));
        if gone && !is_behind {
            return self.removed(&app, at, good, cancel).await;
        }
        if let Some((revision, found)) = newest.filter(|_| !is_behind) {
            let have = good.as_ref().is_some_and(|good| {
                let manifest = Path::new(&good.manifest);
                good.tree == found.tree && manifest.ends_with(&found.manifest) && manifest.exists()
            });
            if have {
                // Back to what was good before, which makes what was bad in between uninteresting.
                self.note_on(key, |project| {
                    project.bad = None;
                    project.status.diagnostics.clear();
                });
            } else if bad.as_deref() != Some(found.tree.as_str()) {
                match self.take(&app, at, &revision, &found, good.as_ref(), cancel).await? {
                    Ok(taken) => good = Some(taken),
                    Err(Refusal::Later(message)) => {
                        self.metrics.error("git");
                        return Ok(Verdict::failed(message));
                    }
                    Err(Refusal::Bad { message, diagnostics }) => {
                        self.metrics.error("manifest");
                        self.note_on(key, |project| {
                            project.bad = Some(found.tree.clone());
                            project.status.sync = Sync::OutOfSync;
                            project.status.phase = Phase::Invalid;
                            project.status.message = message;
                            project.status.diagnostics = diagnostics;
                        });
                    }
                }
            }
        }
        // A directory that is used in place has no last good state to fall back to.
        let in_place =
            source.git.is_none() && self.state().projects.get(key).is_some_and(|p| p.bad.is_some());
        match good.filter(|_| !in_place) {
            Some(good) => self.keep(&app, at, good, cancel).await,
            None => {
                let message =
                    self.state().projects.get(key).map(|p| p.status.message.clone()).unwrap_or_default();
                Ok(Verdict::new(
                    Phase::Invalid,
                    message,
                    Ended::Converged { resync: jittered(settings.resync) },
                ))
            }
        }
    }

    /// The last good revision as the store has it, which another controller may have moved on; `None` if there is no such project. What was
    /// let go of by another is not to be kept any more: it is taken again only once the source has been looked at again.
    async fn recall(&self, key: &Key) -> Result<Option<Option<Controlled>>, Error> {
        let (source, path) = key;
        let recorded = self.app.store().await?.controlled_in(source, path).await?;
        let mut state = self.state();
        let Some(project) = state.projects.get_mut(key) else { return Ok(None) };
        if project.good == recorded {
            return Ok(Some(recorded));
        }
        let Some(recorded) = recorded else {
            project.good = None;
            return Ok(None);
        };
        match &project.good {
            // Only that it was applied.
            Some(good) if good.tree == recorded.tree && good.project == recorded.project => {
                project.good = Some(recorded.clone());
            }
            _ => project.take(recorded.clone()),
        }
        Ok(Some(Some(recorded)))
    }

    /// Takes what is new as the last good revision, if it can be used.
    async fn take(
        &self,
        app: &App,
        at: At<'_>,
        revision: &str,
        found: &Found,
        before: Option<&Controlled>,
        cancel: &Cancel,
    ) -> Result<Result<Controlled, Refusal>, Error> {
        let At { source, settings, key } = at;
        let dir = match self.check_out(source, found).await {
            Ok(dir) => dir,
            Err(error @ (GitError::Unsupported { .. } | GitError::TooLarge { .. })) => {
                return Ok(Err(Refusal::Bad { message: error.to_string(), diagnostics: Vec::new() }));
            }
            Err(error) => return Ok(Err(Refusal::Later(with_causes(&error)))),
        };
        let manifest = dir.join(&found.manifest);
        let selection = selection(settings, &manifest);
        let checked = {
            let app = app.clone();
            tokio::task::spawn_blocking(move || app.validate(&selection)).await
        };
        let resolved = match checked {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(Error::Manifest(diagnostics))) => {
                let diagnostics = in_source(diagnostics.items, &dir, &found.path);
                return Ok(Err(Refusal::Bad { message: told(&diagnostics), diagnostics }));
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(Err(Refusal::Later("reading the manifest was given up".to_owned()))),
        };
        let project = resolved.desired.project;
        let store = self.app.store().await?;
        if store.controlled_in(&key.0, &key.1).await?.as_ref() != before {
            let message = "another controller took another revision at the same time".to_owned();
            return Ok(Err(Refusal::Later(message)));
        }
        if let Some(old) = before.filter(|old| old.project != project) {
            // The project was renamed: what it was called before is one that the source has no more.
            if settings.prune_projects {
                self.destroy(app, settings, &old.project, cancel).await?;
            }
            store.forget_controlled(&old.project).await?;
        }
        let record = Controlled {
            project: project.clone(),
            source: source.name.clone(),
            path: found.path.clone(),
            revision: revision.to_owned(),
            tree: found.tree.clone(),
            manifest: manifest.display().to_string(),
            since: self.now(),
            applied: false,
        };
        if !store.set_controlled(record.clone()).await? {
            let message = format!(
                "the project `{project}` is kept by another source or directory already; give one of them another `name`"
            );
            return Ok(Err(Refusal::Bad { message, diagnostics: Vec::new() }));
        }
        self.note_on(key, |state| {
            state.take(record.clone());
        });
        Ok(Ok(record))
    }

    async fn check_out(&self, source: &Source, found: &Found) -> Result<PathBuf, GitError> {
        match (&source.git, &source.directory) {
            (Some(git), _) => {
                let mirror = Mirror::open(&self.mirrors, &git.url).await?;
                self.checkouts.take(&mirror, found).await
            }
            (None, Some(directory)) => Ok(directory.join(&found.path)),
            (None, None) => Ok(PathBuf::new()),
        }
    }

    /// Makes what exists as the last good revision says.
    async fn keep(&self, app: &App, at: At<'_>, good: Controlled, cancel: &Cancel) -> Result<Verdict, Error> {
        let At { source, settings, key } = at;
        let resync = jittered(settings.resync);
        let (converged, calm) = (Ended::Converged { resync }, Ended::Calm { resync });
        let selection = selection(settings, Path::new(&good.manifest));
        let project = app.open(&selection).await?;
        let reason = self.held_back(at);
        if reason.is_some() || (good.applied && !settings.self_heal) {
            let (status, plan) = project.status().await?;
            self.measured(key, &status, &plan, good.applied);
            return Ok(match reason {
                Some((phase, message)) if !plan.is_empty() || !good.applied => {
                    Verdict::new(phase, message, Ended::Waiting { recheck: source.interval.into() })
                }
                Some((phase, _)) => Verdict::new(phase, "", converged),
                None => Verdict::new(
                    Phase::Watching,
                    if plan.is_empty() {
                        ""
                    } else {
                        "what exists was changed, and this source does not heal"
                    },
                    converged,
                ),
            });
        }
        let options = ApplyOptions {
            verb: "controller",
            policy: Policy { prune: settings.prune, ..Policy::default() },
            timeout: Some(settings.timeout.into()),
            git_revision: Some(good.revision.clone()).filter(|revision| !revision.is_empty()),
            ..ApplyOptions::default()
        };
        let consent = BySource { prune: settings.prune, data_loss: settings.allow_data_loss };
        let report = match project.apply(&options, &consent, &NullSink, cancel).await {
            Ok(report) => report,
            Err(error) => {
                if let Ok((status, plan)) = project.status().await {
                    self.measured(key, &status, &plan, good.applied);
                }
                return Err(error);
            }
        };
        let (status, plan) = project.status().await?;
        let done = matches!(report.outcome, Outcome::Unchanged | Outcome::Done);
        if done && !good.applied {
            let applied = Controlled { applied: true, ..good };
            self.app.store().await?.set_controlled(applied.clone()).await?;
            self.note_on(key, |project| project.good = Some(applied));
        }
        self.measured(key, &status, &plan, done);
        Ok(match report.outcome {
            Outcome::Unchanged | Outcome::Done if status.health == Health::Progressing => {
                let ended = Ended::Waiting { recheck: SOON.into() };
                Verdict::new(Phase::Applied, not_well(&status, &plan), ended)
            }
            Outcome::Unchanged => Verdict::new(Phase::Applied, not_well(&status, &plan), calm),
            // What had to be changed or repaired may not stay so.
            Outcome::Done => Verdict::new(
                Phase::Applied,
                not_well(&status, &plan),
                Ended::Converged { resync: (resync / 8).max(SOON.into()).min(resync) },
            ),
            Outcome::Interrupted => Verdict::waiting("the controller stops", Duration::from_secs(0)),
            _ => {
                let failures = report.steps.iter().filter_map(|step| step.failure.as_ref());
                failures.for_each(|failure| self.metrics.error(kind(failure.kind)));
                Verdict::failed(why(&report))
            }
        })
    }

    /// Why nothing may be changed now, if so.
    fn held_back(&self, at: At<'_>) -> Option<(Phase, String)> {
        let At { settings, key, source } = at;
        if settings.suspend {
            return Some((Phase::Suspended, "the source is suspended".to_owned()));
        }
        if !window::open(&settings.windows, self.now()) {
            return Some((Phase::Waiting, "no window is open in which changes may be made".to_owned()));
        }
        let state = self.state();
        let ready = |project: &ProjectState| {
            let status = &project.status;
            status.sync == Sync::Synced && matches!(status.health, Health::Healthy | Health::Suspended)
        };
        let waits_for = settings.depends_on.iter().find(|on| {
            let source = config::source_of(on);
            let path = on.split_once('/').map(|(_, path)| path);
            let looked = state.sources.get(source).is_some_and(|known| known.looked);
            let mut projects = state
                .projects
                .iter()
                .filter(|((name, at), _)| name == source && path.is_none_or(|path| path == at))
                .peekable();
            // A project does not wait for itself where all of a source wait for one of them.
            !looked
                || projects.peek().is_none()
                || !projects.all(|(other, project)| other == key || ready(project))
        });
        waits_for.map(|on| {
            if let Some(circle) = self.config.circle(source, &key.1) {
                let message = format!(
                    "projects of source `{}` wait for one another: {}; take one of them out of `depends_on`",
                    source.name,
                    circle.join(" → ")
                );
                return (Phase::Waiting, message);
            }
            let what = if on.contains('/') { "project" } else { "source" };
            (Phase::Waiting, format!("{what} `{on}` is not in sync and healthy yet"))
        })
    }

    /// Writes down what was measured.
    fn measured(&self, key: &Key, measured: &ProjectStatus, plan: &Plan, applied: bool) {
        self.note_on(key, |project| {
            let status = &mut project.status;
            let behind = !applied || project.bad.is_some() || drifted(plan).next().is_some();
            status.sync = if behind { measured.sync.max(Sync::OutOfSync) } else { measured.sync };
            status.health = measured.health;
            status.sandboxes.clear();
            for resource in measured.resources.iter().filter(|r| matches!(r.address, Address::Sandbox(_))) {
                *status.sandboxes.entry(resource.health.to_string()).or_default() += 1;
            }
        });
    }

    /// The source does not have the project any more.
    async fn removed(
        &self,
        app: &App,
        at: At<'_>,
        good: Option<Controlled>,
        cancel: &Cancel,
    ) -> Result<Verdict, Error> {
        let At { source, settings, key } = at;
        let Some(good) = good else {
            self.state().projects.remove(key);
            return Ok(Verdict::new(Phase::Removed, "", Ended::Converged { resync: settings.resync.into() }));
        };
        if !settings.prune_projects {
            let message = "the source does not have this project any more; it is kept as it was (`prune_projects: true` would destroy it)";
            self.note_on(key, |project| project.status.sync = Sync::OutOfSync);
            return Ok(Verdict::new(
                Phase::Removed,
                message,
                Ended::Converged { resync: settings.resync.into() },
            ));
        }
        if let Some((phase, message)) = self.held_back(at) {
            return Ok(Verdict::new(phase, message, Ended::Waiting { recheck: source.interval.into() }));
        }
        self.destroy(app, settings, &good.project, cancel).await?;
        self.app.store().await?.forget_controlled(&good.project).await?;
        self.state().projects.remove(key);
        Ok(Verdict::new(Phase::Removed, "", Ended::Converged { resync: settings.resync.into() }))
    }

    /// Destroys everything of a project but its volumes.
    async fn destroy(
        &self,
        app: &App,
        settings: &Settings,
        project: &str,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        if self.app.store().await?.recorded(project).await? == crate::model::Recorded::default() {
            return Ok(());
        }
        // No manifest: what the record has is all there is.
        let opened = app.open_recorded(project).await?;
        let options = ApplyOptions {
            verb: "controller",
            goal: Goal::Destroy,
            timeout: Some(settings.timeout.into()),
            ..ApplyOptions::default()
        };
        let report =
            opened.apply(&options, &BySource { prune: true, data_loss: true }, &NullSink, cancel).await?;
        if matches!(report.outcome, Outcome::Unchanged | Outcome::Done) {
            return Ok(());
        }
        Err(Error::TimedOut(format!("destroying `{project}`: {}", why(&report))))
    }
}

/// The manifest, with the file beside it that overrides it, within the limits of its source.
fn selection(settings: &Settings, manifest: &Path) -> Selection {
    let dir = manifest.parent().unwrap_or(Path::new("."));
    let mut files = vec![manifest.to_owned()];
    let overrides = ["pocketenv.override.yaml", "pocketenv.override.yml"].map(|name| dir.join(name));
    files.extend(overrides.into_iter().filter(|path| path.is_file()));
    let (allow, account) = (&settings.allow, &settings.account);
    let confinement = Confinement {
        root: dir.to_owned(),
        secret_env: account.env.iter().cloned().collect(),
        secret_files: account.files.clone(),
        host_paths: allow.host_paths,
        command_secrets: allow.command_secrets,
        vault_secrets: allow.vault_secrets,
        host_network: allow.host_network,
        devices: allow.devices,
        host_ports: allow.host_ports,
        provider_settings: allow.provider_settings,
    };
    Selection { files, confinement: Some(confinement), drift: settings.drift, ..Selection::default() }
}

/// Problems with the names that files have in the source instead of those of the checkout.
fn in_source(mut diagnostics: Vec<Diagnostic>, dir: &Path, path: &str) -> Vec<Diagnostic> {
    let labels = diagnostics.iter_mut().flat_map(|diagnostic| &mut diagnostic.labels);
    for location in labels.map(|label| &mut label.location) {
        if let Ok(file) = Path::new(&location.file).strip_prefix(dir) {
            let within = if path == "." { Path::new("") } else { Path::new(path) };
            location.file = within.join(file).display().to_string();
        }
    }
    diagnostics
}

/// The first problem with its place, and how many more there are.
fn told(diagnostics: &[Diagnostic]) -> String {
    let Some(first) = diagnostics.first() else { return "the manifest is not valid".to_owned() };
    let place = first.location().map(|at| format!("{}:{}:{}: ", at.file, at.line, at.column));
    let more = match diagnostics.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    format!("{}{}{more}", place.unwrap_or_default(), first.message)
}

/// What drifted and is left as it is.
fn drifted(plan: &Plan) -> impl Iterator<Item = (&Address, &str)> {
    plan.notes.iter().filter_map(|note| match note {
        Note::Drift { address, what } => Some((address, what.as_str())),
        _ => None,
    })
}

/// Why what was applied is not in sync and healthy; empty if it is.
fn not_well(status: &ProjectStatus, plan: &Plan) -> String {
    if let Some((address, what)) = drifted(plan).next() {
        let more = match drifted(plan).count() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        return format!("{address} drifted and is left as it is: {what}{more}");
    }
    if matches!(status.health, Health::Healthy | Health::Suspended) {
        return String::new();
    }
    let worst = status.resources.iter().find(|resource| resource.health == status.health);
    worst.map(|resource| format!("{}: {}", resource.address, resource.message)).unwrap_or_default()
}

/// Why a run did not get to its end.
fn why(report: &ApplyReport) -> String {
    let failed = report.steps.iter().rev().find(|step| step.failure.is_some());
    if let Some(step) = failed {
        return format!("{} {}: {}", step.op, step.resource, step.message.as_deref().unwrap_or("it failed"));
    }
    match report.waiting.first() {
        Some(waiting) => format!("{} waits: {}", waiting.address, waiting_text(waiting)),
        None => "it did not get to its end".to_owned(),
    }
}

fn kind(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Transient => "transient",
        FailureKind::Unauthorised => "unauthorised",
        FailureKind::Invalid => "invalid",
        FailureKind::TimedOut => "timed_out",
        FailureKind::Interrupted => "interrupted",
        FailureKind::Permanent => "permanent",
    }
}
