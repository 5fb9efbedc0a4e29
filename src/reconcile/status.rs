//! Status as it is measured: from what was observed and what a plan would still do, never from memory (invariant 7).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{
    Address, Condition, ConditionStatus, Desired, DesiredSandbox, DiskUse, Endpoint, Health, Identity,
    Observation, Observed, ObservedGuest, ObservedSandbox, ObservedService, PortProtocol, ProbeResult,
    Recorded, Resources, RunState, SandboxState, ServiceSpec, ServiceState, ServiceStatus, Sync, Timestamp,
};
use crate::plan::{Change, Note, Plan, Reason, Waiting, WaitingOn, report};

/// The status of a project.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProjectStatus {
    /// The version of this form.
    pub format_version: &'static str,
    /// The project.
    pub project: String,
    /// Whether all of it is as desired.
    pub sync: Sync,
    /// The worst health in it.
    pub health: Health,
    /// Volumes, sandboxes, services, ports and sockets, in order of address.
    pub resources: Vec<ResourceStatus>,
}

/// The status of one resource.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResourceStatus {
    /// The resource.
    pub address: Address,
    /// Where it lives.
    pub provider: String,
    /// The provider's id, for a sandbox that exists.
    pub id: Option<String>,
    /// Whether it is as desired.
    pub sync: Sync,
    /// How it does.
    pub health: Health,
    /// What it is doing, in one word: `Running`, `Stopped`, `Backoff`, ….
    pub phase: String,
    /// Why it is not `Synced` and `Healthy`; empty if it is.
    pub message: String,
    /// Named truths.
    pub conditions: Vec<Condition>,
    /// When it was created or, for a service, entered its phase.
    pub since: Option<Timestamp>,
    /// Restarts by the supervisor, for a service.
    pub restarts: Option<u32>,
    /// Where a port is reached from the host.
    pub endpoint: Option<Endpoint>,
    /// Where a unix socket of this machine is that leads inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is spoken on a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<PortProtocol>,
    /// Fallbacks and other remarks of the provider.
    pub notes: Vec<String>,
    /// How much of its disk is used, for a sandbox that runs with a limit on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskUse>,
}

/// Derives the status of everything desired or still recorded.
pub fn status(desired: &Desired, recorded: &Recorded, observed: &Observed, plan: &Plan) -> ProjectStatus {
    let cx = Context { recorded, observed, groups: groups(plan), labelled: labelled(observed) };
    let mut resources = Vec::new();
    for (name, volume) in &desired.volumes {
        resources.push(cx.volume(name, &volume.provider));
    }
    for (name, sandbox) in &desired.sandboxes {
        cx.sandbox(name, sandbox, &mut resources);
    }
    for (name, old) in &recorded.sandboxes {
        if !desired.sandboxes.contains_key(name) {
            resources.push(cx.undeclared(name, &old.provider));
        }
    }
    resources.sort_by(|a, b| a.address.cmp(&b.address));
    cx.blame_dependencies(desired, &mut resources);
    ProjectStatus {
        format_version: "1.0",
        project: desired.project.clone(),
        sync: if plan.is_empty() {
            Sync::Synced
        } else if resources.iter().any(|r| r.sync == Sync::Unknown) {
            Sync::Unknown
        } else {
            Sync::OutOfSync
        },
        health: resources.iter().map(|r| r.health).max().unwrap_or(Health::Healthy),
        resources,
    }
}

struct Context<'a> {
    recorded: &'a Recorded,
    observed: &'a Observed,
    groups: BTreeMap<Address, Group<'a>>,
    /// By provider and address label, the oldest sandbox that bears it.
    labelled: BTreeMap<(&'a str, Address), &'a ObservedSandbox>,
}

fn labelled(observed: &Observed) -> BTreeMap<(&str, Address), &ObservedSandbox> {
    let mut oldest: BTreeMap<(&str, Address), &ObservedSandbox> = BTreeMap::new();
    for (provider, observation) in &observed.providers {
        for sandbox in observation.complete().into_iter().flat_map(|listing| listing.sandboxes.values()) {
            let Some(identity) = Identity::from_labels(&sandbox.labels).ok().flatten() else { continue };
            let found = oldest.entry((provider, identity.address)).or_insert(sandbox);
            if (sandbox.created_at, &sandbox.id) < (found.created_at, &found.id) {
                *found = sandbox;
            }
        }
    }
    oldest
}

/// What a plan says about one sandbox with all that is in it, or about one volume.
#[derive(Default)]
struct Group<'a> {
    changes: Vec<&'a Change>,
    waiting: Vec<&'a Waiting>,
    drift: Vec<&'a Address>,
}

/// The sandbox that a resource belongs to, or the volume itself.
fn group_of(address: &Address) -> Address {
    address.sandbox().map_or_else(|| address.clone(), |name| Address::Sandbox(name.to_owned()))
}

fn groups(plan: &Plan) -> BTreeMap<Address, Group<'_>> {
    let mut groups: BTreeMap<Address, Group<'_>> = BTreeMap::new();
    for change in &plan.changes {
        groups.entry(group_of(&change.address)).or_default().changes.push(change);
    }
    for waiting in &plan.waiting {
        groups.entry(group_of(&waiting.address)).or_default().waiting.push(waiting);
    }
    for note in &plan.notes {
        if let Note::Drift { address, .. } = note {
            groups.entry(group_of(address)).or_default().drift.push(address);
        }
    }
    groups
}

impl<'a> Context<'a> {
    /// What holds this resource back: pending changes in it and what it waits for. Empty if nothing does.
    fn pending(&self, address: &Address) -> Vec<String> {
        let Some(group) = self.groups.get(&group_of(address)) else {
            return Vec::new();
        };
        let changes = group.changes.iter().filter(|c| c.address.is_within(address)).map(|c| {
            if c.address == *address {
                report::change_text(c)
            } else {
                format!("{}: {}", c.address, report::change_text(c))
            }
        });
        let waiting = group.waiting.iter().filter(|w| w.address.is_within(address));
        changes.chain(waiting.map(|w| format!("waits: {}", report::waiting_text(w)))).collect()
    }

    fn sync(&self, address: &Address, pending: &[String]) -> Sync {
        let unknown = self.groups.get(&group_of(address)).is_some_and(|group| {
            group.waiting.iter().any(|w| {
                let unseen = matches!(
                    w.on,
                    WaitingOn::Provider { .. } | WaitingOn::Guest { .. } | WaitingOn::Secret { .. }
                );
                unseen && w.address.is_within(address)
            })
        });
        match (unknown, pending.is_empty() && !self.drifted(address)) {
            (true, _) => Sync::Unknown,
            (false, true) => Sync::Synced,
            (false, false) => Sync::OutOfSync,
        }
    }

    fn drifted(&self, address: &Address) -> bool {
        let Some(group) = self.groups.get(&group_of(address)) else {
            return false;
        };
        let is_drift = |r: &Reason| matches!(r, Reason::Drifted { .. } | Reason::Lost);
        group.drift.iter().any(|a| a.is_within(address))
            || group.changes.iter().any(|c| c.address.is_within(address) && c.reasons.iter().any(is_drift))
    }

    fn row(
        &self,
        address: Address,
        provider: &str,
        health: Health,
        phase: &str,
        message: String,
    ) -> ResourceStatus {
        let pending = self.pending(&address);
        let sync = self.sync(&address, &pending);
        let message = if message.is_empty() { pending.first().cloned().unwrap_or_default() } else { message };
        ResourceStatus {
            address,
            provider: provider.to_owned(),
            id: None,
            sync,
            health,
            phase: phase.to_owned(),
            message,
            conditions: Vec::new(),
            since: None,
            restarts: None,
            endpoint: None,
            disk: None,
            path: None,
            protocol: None,
            notes: Vec::new(),
        }
    }

    fn volume(&self, name: &str, provider: &str) -> ResourceStatus {
        let address = Address::Volume(name.to_owned());
        match self.observed.providers.get(provider) {
            Some(Observation::Complete(listing)) => match listing.volumes.get(name) {
                Some(found) => ResourceStatus {
                    since: found.created_at,
                    ..self.row(address, provider, Health::Healthy, "Available", String::new())
                },
                None => {
                    self.row(address, provider, Health::Missing, "Missing", "it does not exist".to_owned())
                }
            },
            other => self.row(address, provider, Health::Unknown, "Unknown", unavailable(other)),
        }
    }

    fn undeclared(&self, name: &str, provider: &str) -> ResourceStatus {
        let address = Address::Sandbox(name.to_owned());
        let message = "it is no longer declared".to_owned();
        let row = match self.find(name, provider) {
            Ok(Some(found)) => {
                let phase = phase(&found.state);
                let row = self.row(address, provider, Health::Progressing, phase, message);
                ResourceStatus { id: Some(found.id.0.clone()), since: found.created_at, ..row }
            }
            Ok(None) => self.row(address, provider, Health::Missing, "Missing", message),
            Err(reason) => self.row(address, provider, Health::Unknown, "Unknown", reason),
        };
        ResourceStatus {
            sync: if row.sync == Sync::Unknown { Sync::Unknown } else { Sync::OutOfSync },
            ..row
        }
    }

    /// The sandbox that is the resource: the recorded one, or the oldest with its label.
    fn find(&self, name: &str, provider: &str) -> Result<Option<&'a ObservedSandbox>, String> {
        let (provider, listing) = match self.observed.providers.get_key_value(provider) {
            Some((provider, Observation::Complete(listing))) => (provider.as_str(), listing),
            other => return Err(unavailable(other.map(|(_, observation)| observation))),
        };
        let recorded = self.recorded.sandboxes.get(name).and_then(|r| listing.sandboxes.get(&r.id));
        let labelled = || self.labelled.get(&(provider, Address::Sandbox(name.to_owned()))).copied();
        Ok(recorded.or_else(labelled))
    }

    /// A sandbox that is not ready because what it depends on is not says so: the cause is more useful than the effect.
    fn blame_dependencies(&self, desired: &Desired, rows: &mut [ResourceStatus]) {
        let health: BTreeMap<Address, Health> = rows.iter().map(|r| (r.address.clone(), r.health)).collect();
        for row in rows {
            let Address::Sandbox(name) = &row.address else { continue };
            let Some(sandbox) = desired.sandboxes.get(name) else { continue };
            let waits =
                matches!(row.health, Health::Missing | Health::Progressing) && row.sync != Sync::Synced;
            let blocker = sandbox.depends_on.keys().find_map(|dependency| {
                let address = Address::Sandbox(dependency.clone());
                let health = *health.get(&address)?;
                (health > Health::Suspended).then_some((address, health))
            });
            if let Some((address, health)) = blocker.filter(|_| waits) {
                row.message = format!("waits: {address} is {health}");
                for condition in &mut row.conditions {
                    if condition.kind == "Ready" {
                        condition.reason = "WaitsForDependency".to_owned();
                        condition.message.clone_from(&row.message);
                    }
                }
            }
        }
    }

    fn sandbox(&self, name: &str, sandbox: &DesiredSandbox, rows: &mut Vec<ResourceStatus>) {
        let address = Address::Sandbox(name.to_owned());
        let provider = sandbox.provider.as_str();
        let found = match self.find(name, provider) {
            Ok(found) => found,
            Err(reason) => {
                let row = self.row(address, provider, Health::Unknown, "Unknown", reason);
                rows.push(self.with_conditions(row, name));
                return;
            }
        };
        let Some(found) = found else {
            let health = if sandbox.state == RunState::Absent { Health::Healthy } else { Health::Missing };
            let message =
                if health == Health::Missing { "it does not exist".to_owned() } else { String::new() };
            let row = self.row(address, provider, health, "Absent", message);
            rows.push(self.with_conditions(row, name));
            return;
        };
        let guest = self.observed.guests.get(&found.id);
        let mut children = Vec::new();
        if found.state == SandboxState::Running {
            if let Some(inside) = guest.and_then(Observation::complete) {
                self.services(name, sandbox, inside, &mut children);
            }
            self.ports(name, sandbox, found, &mut children);
            self.sockets(name, sandbox, found, &mut children);
        }
        let (health, message) = self.sandbox_health(&address, sandbox, found, guest, &children);
        let row = ResourceStatus {
            id: Some(found.id.0.clone()),
            since: found.created_at,
            notes: found.notes.clone(),
            disk: found.usage.disk,
            ..self.row(address, provider, health, phase(&found.state), message)
        };
        let mut row = self.with_conditions(row, name);
        let generation = self.recorded.sandboxes.get(name).map_or(0, |r| r.generation);
        row.conditions.extend(limits_enforced(&sandbox.spec.resources, found, generation));
        rows.push(row);
        rows.extend(children);
    }

    fn sandbox_health(
        &self,
        address: &Address,
        sandbox: &DesiredSandbox,
        found: &ObservedSandbox,
        guest: Option<&Observation<ObservedGuest>>,
        children: &[ResourceStatus],
    ) -> (Health, String) {
        match (&found.state, sandbox.state) {
            (SandboxState::Stopped { .. }, RunState::Stopped) => return (Health::Suspended, String::new()),
            (SandboxState::Stopped { unclean }, _) => {
                return (Health::Degraded, unclean.clone().unwrap_or_else(|| "it is stopped".to_owned()));
            }
            (SandboxState::Paused, _) => return (Health::Suspended, "it is paused".to_owned()),
            (SandboxState::Failed(message), _) => return (Health::Degraded, message.clone()),
            (SandboxState::Creating | SandboxState::Stopping | SandboxState::Deleting, _) => {
                return (Health::Progressing, format!("it is {}", phase(&found.state).to_lowercase()));
            }
            (SandboxState::Running, _) => {}
        }
        match guest {
            Some(Observation::Complete(_)) => {}
            Some(Observation::Unavailable { reason }) => return (Health::Unknown, reason.clone()),
            None => return (Health::Unknown, "the inside was not looked at".to_owned()),
        }
        let worst = children.iter().max_by_key(|c| c.health);
        if let Some(worst) = worst.filter(|w| w.health > Health::Suspended) {
            return (worst.health, format!("{}: {}", worst.address, worst.message));
        }
        match self.pending(address).first() {
            Some(message) => (Health::Progressing, message.clone()),
            None => (Health::Healthy, String::new()),
        }
    }

    fn services(
        &self,
        name: &str,
        sandbox: &DesiredSandbox,
        inside: &ObservedGuest,
        rows: &mut Vec<ResourceStatus>,
    ) {
        for (service, spec) in &sandbox.guest.services {
            let address = Address::Service(name.to_owned(), service.clone());
            let found = inside.services.get(service);
            let (health, phase, message) = service_health(spec, found);
            rows.push(ResourceStatus {
                since: found.and_then(|f| f.since),
                restarts: found.map(|f| f.restarts),
                ..self.row(address, &sandbox.provider, health, phase, message)
            });
        }
    }

    fn ports(
        &self,
        name: &str,
        sandbox: &DesiredSandbox,
        found: &ObservedSandbox,
        rows: &mut Vec<ResourceStatus>,
    ) {
        for (port, declared) in &sandbox.spec.ports {
            let address = Address::Port(name.to_owned(), *port);
            let endpoint = found.endpoints.get(port).cloned();
            let (health, phase, message) = match &endpoint {
                Some(e) if e.listening => (Health::Healthy, "Listening", String::new()),
                Some(e) => (Health::Degraded, "Silent", format!("nothing listens on {}:{}", e.host, e.port)),
                None => (Health::Missing, "Missing", "it is not forwarded".to_owned()),
            };
            rows.push(ResourceStatus {
                endpoint,
                protocol: Some(declared.protocol),
                ..self.row(address, &sandbox.provider, health, phase, message)
            });
        }
    }

    fn sockets(
        &self,
        name: &str,
        sandbox: &DesiredSandbox,
        found: &ObservedSandbox,
        rows: &mut Vec<ResourceStatus>,
    ) {
        for socket in sandbox.spec.sockets.keys() {
            let address = Address::Socket(name.to_owned(), socket.clone());
            let seen = found.sockets.get(socket);
            let (health, phase, message) = match seen {
                Some(seen) if seen.listening => (Health::Healthy, "Listening", String::new()),
                Some(seen) => (Health::Degraded, "Silent", format!("nothing listens at {}", seen.path)),
                None => (Health::Missing, "Missing", "it does not lead inside".to_owned()),
            };
            rows.push(ResourceStatus {
                path: seen.map(|seen| seen.path.clone()),
                ..self.row(address, &sandbox.provider, health, phase, message)
            });
        }
    }

    fn with_conditions(&self, mut row: ResourceStatus, name: &str) -> ResourceStatus {
        let generation = self.recorded.sandboxes.get(name).map_or(0, |r| r.generation);
        let condition = |kind: &str, status, reason: &str, message: &str| Condition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition: None,
            observed_generation: generation,
        };
        let ready = match (row.health, row.sync) {
            (Health::Healthy, Sync::Synced) => condition("Ready", ConditionStatus::True, "AllInPlace", ""),
            (Health::Unknown, _) | (_, Sync::Unknown) => {
                condition("Ready", ConditionStatus::Unknown, "NotObserved", &row.message)
            }
            (Health::Suspended, _) if row.phase == phase(&SandboxState::Paused) => {
                condition("Ready", ConditionStatus::False, "Paused", &row.message)
            }
            (Health::Suspended, _) => condition("Ready", ConditionStatus::False, "Stopped", "it is stopped"),
            (Health::Missing, _) => condition("Ready", ConditionStatus::False, "Missing", &row.message),
            (Health::Degraded, _) => condition("Ready", ConditionStatus::False, "Degraded", &row.message),
            (_, Sync::OutOfSync) | (Health::Progressing, _) => {
                condition("Ready", ConditionStatus::False, "OutOfSync", &row.message)
            }
        };
        row.conditions.push(ready);
        if self.drifted(&row.address) {
            row.conditions.push(condition("Drifted", ConditionStatus::True, "RealityDiffers", &row.message));
        }
        row
    }
}

/// Whether the declared limits hold, as the provider reads them back; what they led to stands in its notes. Nothing without a limit, or while
/// there is nothing to limit.
fn limits_enforced(declared: &Resources, found: &ObservedSandbox, generation: u64) -> Option<Condition> {
    if *declared == Resources::default() || found.state != SandboxState::Running {
        return None;
    }
    let told: Vec<&str> = found.notes.iter().filter_map(|note| note.strip_prefix("limits: ")).collect();
    let (status, reason, message) = match found.spec.as_ref().map(|spec| spec.resources) {
        None => {
            let message = "the provider does not read limits back".to_owned();
            (ConditionStatus::Unknown, "NotObserved", message)
        }
        Some(held) if held == *declared => (ConditionStatus::True, "Enforced", told.join("; ")),
        Some(held) => {
            let differs = [
                ("cpu", held.cpu_millis != declared.cpu_millis),
                ("memory", held.memory != declared.memory),
                ("disk", held.disk != declared.disk),
                ("pids", held.pids != declared.pids),
                ("io", held.io != declared.io),
            ];
            let names: Vec<&str> =
                differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect();
            let message = format!("not in force as declared: {}", names.join(", "));
            (ConditionStatus::False, "NotInForce", message)
        }
    };
    Some(Condition {
        kind: "LimitsEnforced".to_owned(),
        status,
        reason: reason.to_owned(),
        message,
        last_transition: None,
        observed_generation: generation,
    })
}

fn unavailable<T>(observation: Option<&Observation<T>>) -> String {
    match observation {
        Some(Observation::Unavailable { reason }) => reason.clone(),
        _ => "the provider was not asked".to_owned(),
    }
}

fn phase(state: &SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => "Creating",
        SandboxState::Running => "Running",
        SandboxState::Paused => "Paused",
        SandboxState::Stopping => "Stopping",
        SandboxState::Stopped { .. } => "Stopped",
        SandboxState::Deleting => "Deleting",
        SandboxState::Failed(_) => "Failed",
    }
}

fn service_health(spec: &ServiceSpec, found: Option<&ObservedService>) -> (Health, &'static str, String) {
    let Some(found) = found else {
        return match spec.state {
            ServiceState::Stopped => (Health::Suspended, "Stopped", String::new()),
            ServiceState::Running => (Health::Missing, "Missing", "it was never started".to_owned()),
        };
    };
    let code = found.exit_code.map_or_else(String::new, |code| format!(" with exit code {code}"));
    match (found.state, &found.health) {
        (ServiceStatus::Running, Some(ProbeResult::Failing(why))) => {
            (Health::Degraded, "Unhealthy", why.clone())
        }
        (ServiceStatus::Running, _) => (Health::Healthy, "Running", String::new()),
        (ServiceStatus::Backoff, _) => {
            (Health::Degraded, "Backoff", format!("it ended{code} and is about to be started again"))
        }
        (ServiceStatus::Failed, _) => (Health::Degraded, "Failed", format!("it ended{code}")),
        (ServiceStatus::Completed, _) => (Health::Healthy, "Completed", String::new()),
        (ServiceStatus::Stopped, _) if spec.state == ServiceState::Stopped => {
            (Health::Suspended, "Stopped", String::new())
        }
        (ServiceStatus::Stopped, _) => (Health::Degraded, "Stopped", "it was stopped".to_owned()),
        (ServiceStatus::Dead, _) => (Health::Degraded, "Dead", "its supervisor was killed".to_owned()),
    }
}
