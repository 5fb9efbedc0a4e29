//! A second, independent look at every plan before it runs: it shares no code with the planner and checks what a plan must never do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Action, Plan, PlanInput, Step, StepId, Verdict};
use crate::model::{Address, IntentId, Observation, RunState, SandboxId, SandboxSpec, labels};

/// Something a plan must never contain. A plan with any finding is not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The step, if it is about one.
    pub step: Option<StepId>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Everything that is wrong with a plan; empty for a sound one.
pub fn lint(plan: &Plan, input: &PlanInput<'_>) -> Vec<Finding> {
    let mut findings = structure(plan);
    let changes: BTreeMap<&Address, Verdict> = plan.changes.iter().map(|c| (&c.address, c.verdict)).collect();
    let stopped: BTreeSet<&SandboxId> = plan
        .steps
        .iter()
        .filter(|s| matches!(s.action, Action::Stop))
        .filter_map(|s| s.id.as_ref())
        .collect();
    let up = comes_up(plan);
    for (id, step) in plan.steps.iter().enumerate() {
        let mut say = |message: String| findings.push(Finding { step: Some(id), message });
        check_provider(step, input, &mut say);
        check_ownership(step, input, &mut say);
        check_protection(&changes, step, input, &mut say);
        check_shared(step, input, &mut say);
        if step.action.is_guest() && !up[id] && !stays_up(step, &stopped, input) {
            say(format!("acts inside `{}` before it runs", step.address));
        }
    }
    findings.extend(deletes_before_creates(plan, input));
    findings.extend(volumes(plan, input));
    findings
}

/// Steps refer backwards only, serve a change with a reason, and no change with data at risk goes unsaid.
fn structure(plan: &Plan) -> Vec<Finding> {
    let mut findings = Vec::new();
    let changes: BTreeMap<&Address, &super::Change> = plan.changes.iter().map(|c| (&c.address, c)).collect();
    if changes.len() != plan.changes.len() {
        findings.push(Finding { step: None, message: "a resource has two changes".to_owned() });
    }
    for change in &plan.changes {
        if change.reasons.is_empty() {
            let message = format!("`{}` changes for no reason", change.address);
            findings.push(Finding { step: None, message });
        }
    }
    let touched: BTreeSet<&str> = plan.changes.iter().filter_map(|c| c.address.sandbox()).collect();
    for (id, step) in plan.steps.iter().enumerate() {
        if let Some(late) = step.after.iter().find(|after| **after >= id) {
            let message = format!("comes after step {late}, which does not stand before it");
            findings.push(Finding { step: Some(id), message });
        }
        let change = changes.get(&step.address).or_else(|| {
            let sandbox = Address::Sandbox(step.address.sandbox()?.to_owned());
            changes.get(&sandbox)
        });
        // A step of the sandbox itself also serves changes of what is in it.
        let within = matches!(&step.address, Address::Sandbox(name) if touched.contains(name.as_str()));
        if change.is_none() && !within {
            let message = format!("acts on `{}`, which does not change", step.address);
            findings.push(Finding { step: Some(id), message });
        }
        let loses_data = matches!(step.action, Action::Delete { .. } | Action::DeleteVolume { .. });
        if loses_data && changes.get(&step.address).is_none_or(|c| c.data_at_risk.is_empty()) {
            let message = format!("deletes `{}` and no data is said to be at risk", step.address);
            findings.push(Finding { step: Some(id), message });
        }
    }
    findings
}

/// Invariant 3: what could not be observed is not touched.
fn check_provider(step: &Step, input: &PlanInput<'_>, say: &mut dyn FnMut(String)) {
    if !matches!(input.observed.providers.get(&step.provider), Some(Observation::Complete(_))) {
        say(format!("acts at provider `{}`, which could not be observed", step.provider));
    }
}

/// Only objects that carry our project's labels, or that the record holds, are acted on.
fn check_ownership(step: &Step, input: &PlanInput<'_>, say: &mut dyn FnMut(String)) {
    let Some(id) = &step.id else {
        if matches!(step.action, Action::Delete { .. } | Action::Adopt { .. } | Action::Update { .. }) {
            say(format!("acts on `{}` without saying which sandbox that is", step.address));
        }
        return;
    };
    if let Action::Create { .. } = step.action {
        say(format!("creates `{}`, which exists as {id}", step.address));
    }
    let labelled = input
        .observed
        .providers
        .get(&step.provider)
        .and_then(Observation::complete)
        .and_then(|p| p.sandboxes.get(id))
        .is_some_and(|s| s.labels.get(labels::PROJECT) == Some(&input.desired.project));
    let forgets = || {
        let recorded = step.address.sandbox().and_then(|name| input.recorded.sandboxes.get(name));
        matches!(step.action, Action::Forget)
            && recorded.is_some_and(|r| r.id == *id && r.provider == step.provider)
    };
    if !labelled && !forgets() {
        say(format!("acts on sandbox {id}, which is not ours"));
    }
}

/// What is protected is neither deleted nor stopped for good.
fn check_protection(
    changes: &BTreeMap<&Address, Verdict>,
    step: &Step,
    input: &PlanInput<'_>,
    say: &mut dyn FnMut(String),
) {
    match &step.action {
        Action::Delete { .. } => {
            let name = step.address.sandbox().unwrap_or_default();
            let desired = input.desired.sandboxes.get(name);
            if desired.is_some_and(|d| d.protect) {
                say(format!("deletes `{}`, which is protected", step.address));
            }
            let wanted = desired.is_some_and(|d| d.state != RunState::Absent);
            if wanted && changes.get(&step.address) != Some(&Verdict::Recreate) {
                say(format!("deletes `{}`, which is desired, without calling it recreate", step.address));
            }
        }
        Action::DeleteVolume { name } => {
            if input.desired.volumes.contains_key(name) {
                say(format!("deletes volume `{name}`, which is desired"));
            }
            if !input.policy.prune_volumes {
                say(format!("deletes volume `{name}`, which the policy does not allow"));
            }
        }
        _ => {}
    }
}

/// Nothing is put into or taken from a directory of the host that a sandbox shares.
fn check_shared(step: &Step, input: &PlanInput<'_>, say: &mut dyn FnMut(String)) {
    let paths: Vec<&String> = match &step.action {
        Action::Setup(setup) => setup.files.keys().chain(&setup.remove).collect(),
        Action::BringRepository { path, .. } => vec![path],
        _ => return,
    };
    let desired = step.address.sandbox().and_then(|name| input.desired.sandboxes.get(name));
    for bind in desired.into_iter().flat_map(|sandbox| &sandbox.spec.binds) {
        let below = format!("{}/", bind.path);
        if let Some(path) = paths.iter().find(|path| **path == &bind.path || path.starts_with(&below)) {
            say(format!("changes {path}, which is {} of the host", bind.from.display()));
        }
    }
}

/// Of each step, whether it comes, through steps of its own sandbox, after the one that makes that sandbox run.
fn comes_up(plan: &Plan) -> Vec<bool> {
    let mut up: Vec<bool> = Vec::with_capacity(plan.steps.len());
    for (id, step) in plan.steps.iter().enumerate() {
        let sandbox = step.address.sandbox();
        let starts = |s: &Step| matches!(s.action, Action::Create { .. } | Action::Start);
        let by_own = step.after.iter().filter(|after| **after < id).any(|after| {
            let before = &plan.steps[*after];
            sandbox.is_some() && before.address.sandbox() == sandbox && (starts(before) || up[*after])
        });
        up.push(by_own);
    }
    up
}

/// Whether a sandbox runs now and this plan does not stop it.
fn stays_up(step: &Step, stopped: &BTreeSet<&SandboxId>, input: &PlanInput<'_>) -> bool {
    step.id.as_ref().is_some_and(|id| runs(input, &step.provider, id) && !stopped.contains(id))
}

fn runs(input: &PlanInput<'_>, provider: &str, id: &SandboxId) -> bool {
    input
        .observed
        .providers
        .get(provider)
        .and_then(Observation::complete)
        .and_then(|p| p.sandboxes.get(id))
        .is_some_and(|s| s.state == crate::model::SandboxState::Running)
}

/// At most one create for a sandbox, and after every delete of it. One that goes on with an interrupted create knows that.
fn deletes_before_creates(plan: &Plan, input: &PlanInput<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut creates: BTreeMap<&Address, StepId> = BTreeMap::new();
    let mut deletes: BTreeMap<&Address, BTreeSet<StepId>> = BTreeMap::new();
    for (id, step) in plan.steps.iter().enumerate() {
        match &step.action {
            Action::Create { resume, .. } => {
                if deletes.get(&step.address).is_some_and(|deletes| !deletes.is_subset(&step.after)) {
                    let message = format!("creates `{}` before it is deleted", step.address);
                    findings.push(Finding { step: Some(id), message });
                }
                let pending = |token: &IntentId| input.recorded.intents.iter().any(|i| i.id == *token);
                if let Some(token) = resume.as_ref().filter(|token| !pending(token)) {
                    let message = format!("goes on with intent {token}, which is not pending");
                    findings.push(Finding { step: Some(id), message });
                }
                if creates.insert(&step.address, id).is_some() {
                    let message = format!("creates `{}` a second time", step.address);
                    findings.push(Finding { step: Some(id), message });
                }
            }
            Action::Delete { .. } if creates.contains_key(&step.address) => {
                let message = format!("deletes `{}` after creating it", step.address);
                findings.push(Finding { step: Some(id), message });
            }
            Action::Delete { .. } => {
                deletes.entry(&step.address).or_default().insert(id);
            }
            _ => {}
        }
    }
    findings
}

/// A volume is created before what mounts it, and deleted only after every sandbox of this plan that mounts it now has let go of it.
fn volumes(plan: &Plan, input: &PlanInput<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut created: BTreeMap<&str, StepId> = BTreeMap::new();
    for (id, step) in plan.steps.iter().enumerate() {
        if let Action::CreateVolume { name } = &step.action {
            created.insert(name, id);
        }
    }
    for (id, step) in plan.steps.iter().enumerate() {
        match &step.action {
            Action::Create { spec, .. } | Action::Update { spec, .. } => {
                for mount in &spec.mounts {
                    if created.get(mount.volume.as_str()).is_some_and(|made| !step.after.contains(made)) {
                        let message = format!("mounts volume `{}` before it is created", mount.volume);
                        findings.push(Finding { step: Some(id), message });
                    }
                }
            }
            Action::DeleteVolume { name } => {
                for sandbox in mounting(name, &step.provider, input) {
                    let lets_go = step.after.iter().filter(|a| **a < id).any(|a| {
                        let before = &plan.steps[*a];
                        before.id.as_ref() == Some(sandbox)
                            && matches!(before.action, Action::Delete { .. } | Action::Update { .. })
                    });
                    if !lets_go {
                        let message = format!("deletes volume `{name}` while sandbox {sandbox} mounts it");
                        findings.push(Finding { step: Some(id), message });
                    }
                }
            }
            _ => {}
        }
    }
    findings
}

/// The existing sandboxes at a provider that mount a volume, as the provider or the record says.
fn mounting<'a>(volume: &str, provider: &str, input: &PlanInput<'a>) -> BTreeSet<&'a SandboxId> {
    let Some(listing) = input.observed.providers.get(provider).and_then(Observation::complete) else {
        return BTreeSet::new();
    };
    let mounts = |spec: &SandboxSpec| spec.mounts.iter().any(|mount| mount.volume == volume);
    let seen = listing.sandboxes.values().filter(|s| s.spec.as_ref().is_some_and(mounts)).map(|s| &s.id);
    let recorded = input
        .recorded
        .sandboxes
        .values()
        .filter(|r| r.provider == provider && listing.sandboxes.contains_key(&r.id) && mounts(&r.spec));
    seen.chain(recorded.map(|r| &r.id)).collect()
}
