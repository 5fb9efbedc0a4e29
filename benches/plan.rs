//! How long planning, the lint and the status of a large project take. Run with `cargo bench --bench plan`.
#![allow(clippy::unwrap_used)] // A measurement that cannot be taken has nothing to go on with.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration as Time;

use pocketenv::model::*;
use pocketenv::plan::lint::lint;
use pocketenv::plan::{Plan, PlanInput, Policy, env_digest, file_digest, plan, service_digest};
use pocketenv::provider::{Capabilities, StopMeaning};
use pocketenv::reconcile::status::status;

const SANDBOXES: usize = 10_000;
const SERVICES: usize = 3;
const FILES: usize = 3;

static SHEET: Capabilities = Capabilities {
    provider: "bench",
    summary: "",
    stop: StopMeaning::Suspend,
    labels: true,
    idempotent_create: true,
    settle_ms: 0,
    forwards_from_host: true,
    service: false,
    max_concurrency: 16,
    ..Capabilities::NOTHING
};

fn main() {
    // The test runner of cargo also starts benches; one asks for the measurement with `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let desired = desired();
    let nothing = Desired { volumes: BTreeMap::new(), sandboxes: BTreeMap::new(), ..desired.clone() };
    let (recorded, observed) = reality(&desired);
    let empty = (Recorded::default(), Observed { providers: here(BTreeMap::new()), ..Observed::default() });

    let noop = measure("nothing to do", &desired, &recorded, &observed);
    assert!(noop.is_empty());
    println!("peak memory with all of it known: {} MiB", peak_kib() / 1024);
    let creates = measure("create all", &desired, &empty.0, &empty.1);
    assert!(creates.steps.len() > SANDBOXES * SERVICES);
    let deletes = measure("delete all", &nothing, &recorded, &observed);
    assert!(deletes.steps.len() >= SANDBOXES);
}

/// Processor time of this thread: the machine may be busy with others.
fn cpu() -> Time {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Time::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn peak_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn measure(what: &str, desired: &Desired, recorded: &Recorded, observed: &Observed) -> Plan {
    let capabilities = BTreeMap::from([("bench".to_owned(), &SHEET)]);
    let (secrets, policy) = (BTreeMap::new(), Policy::default());
    let input = PlanInput {
        desired,
        recorded,
        observed,
        capabilities: &capabilities,
        secrets: &secrets,
        origin: &|_, _| None,
        policy: &policy,
        now: Timestamp(1_000_000),
    };
    let begun = cpu();
    let made = plan(&input);
    let planned = cpu() - begun;
    let findings = lint(&made, &input);
    let linted = cpu() - begun - planned;
    assert!(findings.is_empty(), "{findings:?}");
    let begun = cpu();
    let rows = status(desired, recorded, observed, &made).resources.len();
    let told = cpu() - begun;
    let steps = made.steps.len();
    println!(
        "{what:<14} {steps:>6} steps: plan {planned:>8.1?}, lint {linted:>8.1?}, status of {rows:>6} {told:>8.1?}"
    );
    made
}

fn name(number: usize) -> String {
    format!("s{number:05}")
}

fn desired() -> Desired {
    let service = ServiceSpec {
        command: vec!["sh".into(), "-c".into(), "exec server --port 3000".into()],
        state: ServiceState::Running,
        working_dir: Some("/work".into()),
        user: None,
        env: BTreeMap::from([("PORT".into(), "3000".into())]),
        depends_on: BTreeMap::new(),
        healthcheck: None,
        restart: RestartPolicy::Always,
        stop_signal: "TERM".into(),
        stop_timeout: Duration::from_secs(10),
        log_max_size: Quantity::from_bytes(1 << 20),
        log_max_files: 3,
    };
    let file = DesiredFile { content: FileContent::Inline("hello, world\n".repeat(20)), mode: None };
    let sandboxes = (0..SANDBOXES).map(|number| {
        let guest = GuestSpec {
            env: (0..5).map(|n| (format!("NAME_{n}"), format!("value {number}"))).collect(),
            files: (0..FILES).map(|n| (format!("/etc/file-{n}"), file.clone())).collect(),
            services: (0..SERVICES).map(|n| (format!("service-{n}"), service.clone())).collect(),
            ..GuestSpec::default()
        };
        let depends_on = number.checked_sub(1).filter(|_| number % 10 != 0).map(name);
        let sandbox = DesiredSandbox {
            provider: "bench".into(),
            state: RunState::Running,
            spec: SandboxSpec { hostname: name(number), ..SandboxSpec::default() },
            guest,
            depends_on: depends_on.map(|d| (d, DependencyCondition::Healthy)).into_iter().collect(),
            unresolved: BTreeSet::new(),
            drift: DriftPolicy::Heal,
            protect: false,
            build_secrets: BTreeMap::new(),
        };
        (name(number), sandbox)
    });
    Desired { project: "large".into(), volumes: BTreeMap::new(), sandboxes: sandboxes.collect() }
}

fn here(sandboxes: BTreeMap<SandboxId, ObservedSandbox>) -> BTreeMap<String, Observation<ObservedProvider>> {
    let listing = ObservedProvider { sandboxes, ..ObservedProvider::default() };
    BTreeMap::from([("bench".to_owned(), Observation::Complete(listing))])
}

/// The record and the world as they are when all of it is applied.
fn reality(desired: &Desired) -> (Recorded, Observed) {
    let mut recorded = Recorded::default();
    let mut guests = BTreeMap::new();
    let mut sandboxes = BTreeMap::new();
    for (name, sandbox) in &desired.sandboxes {
        let id = SandboxId(format!("box-{name}"));
        let identity = Identity {
            project: desired.project.clone(),
            address: Address::Sandbox(name.clone()),
            owner: OwnerId("bench".into()),
            spec_hash: hash_of(&sandbox.spec),
            generation: 1,
            intent: IntentId(format!("intent-{name}")),
            expires_at: None,
        };
        let record = RecordedSandbox {
            provider: "bench".into(),
            id: id.clone(),
            spec: sandbox.spec.clone(),
            guest: Some(sandbox.guest.clone()),
            generation: 1,
            depends_on: sandbox.depends_on.keys().cloned().collect(),
            state: pocketenv::model::RunState::Running,
            created_at: Timestamp(0),
        };
        recorded.sandboxes.insert(name.clone(), record);
        let seen = ObservedSandbox {
            id: id.clone(),
            labels: identity.to_labels(),
            state: SandboxState::Running,
            created_at: Some(Timestamp(0)),
            started_at: Some(Timestamp(0)),
            spec: Some(sandbox.spec.clone()),
            endpoints: BTreeMap::new(),
            bound: BTreeMap::new(),
            sockets: BTreeMap::new(),
            missing_mounts: Vec::new(),
            usage: Default::default(),
            notes: Vec::new(),
        };
        sandboxes.insert(id.clone(), seen);
        guests.insert(id, Observation::Complete(inside(&sandbox.guest)));
    }
    (recorded, Observed { providers: here(sandboxes), guests })
}

fn inside(guest: &GuestSpec) -> ObservedGuest {
    let secrets = BTreeMap::new();
    let file = |(path, file): (&String, &DesiredFile)| {
        (path.clone(), ObservedFile { digest: file_digest(file), state: FileState::InPlace })
    };
    let service = |(name, spec): (&String, &ServiceSpec)| {
        let digest = service_digest(guest, spec, &secrets).unwrap_or_default();
        let service = ObservedService {
            digest,
            state: ServiceStatus::Running,
            health: None,
            restarts: 0,
            exit_code: None,
            since: None,
        };
        (name.clone(), service)
    };
    ObservedGuest {
        env: env_digest(guest, &secrets).ok(),
        files: guest.files.iter().map(file).collect(),
        services: guest.services.iter().map(service).collect(),
        ..ObservedGuest::default()
    }
}
