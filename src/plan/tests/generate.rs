//! Manifests by chance, as small numbers, so that they shrink well.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::world::PROJECT;
use crate::model::*;

/// One sandbox in numbers. What refers to something that is not declared is left out when it is built.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    pub at_beta: bool,
    pub state: RunState,
    pub spec: (u8, u8, BTreeSet<u16>, BTreeSet<u8>),
    pub guest: RawGuest,
    pub services: BTreeMap<u8, RawService>,
    pub depends_on: BTreeMap<u8, bool>,
    pub drift: u8,
    pub protect: bool,
}

/// Environment, files, secrets, repositories, steps of presets.
#[derive(Clone, Debug, PartialEq)]
pub struct RawGuest {
    pub env: BTreeMap<u8, u8>,
    pub files: BTreeMap<u8, u8>,
    pub secret: u8,
    pub repository: Option<u8>,
    pub presets: Vec<u8>,
}

/// Command, stopped, health check, dependencies on services with a smaller number.
#[derive(Clone, Debug, PartialEq)]
pub struct RawService {
    pub command: u8,
    pub stopped: bool,
    pub check: bool,
    pub depends_on: BTreeMap<u8, bool>,
}

fn service() -> impl Strategy<Value = RawService> {
    (0..3u8, prop::bool::weighted(0.2), any::<bool>(), btree_map(0..3u8, any::<bool>(), 0..2))
        .prop_map(|(command, stopped, check, depends_on)| RawService { command, stopped, check, depends_on })
}

fn guest() -> impl Strategy<Value = RawGuest> {
    (
        btree_map(0..2u8, 0..3u8, 0..2),
        btree_map(0..3u8, 0..3u8, 0..3),
        0..5u8,
        prop::option::of(0..2u8),
        vec(0..3u8, 0..3),
    )
        .prop_map(|(env, files, secret, repository, presets)| RawGuest {
            env,
            files,
            secret,
            repository,
            presets,
        })
}

pub fn raw() -> impl Strategy<Value = Raw> {
    let state = prop_oneof![
        6 => Just(RunState::Running),
        1 => Just(RunState::Stopped),
        1 => Just(RunState::Absent)
    ];
    (
        any::<bool>(),
        state,
        (0..2u8, 0..2u8, btree_set(3000..3003u16, 0..2), btree_set(0..2u8, 0..2)),
        guest(),
        btree_map(0..3u8, service(), 0..4),
        btree_map(0..6u8, any::<bool>(), 0..3),
        0..6u8,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(at_beta, state, spec, guest, services, depends_on, drift, protect)| Raw {
            at_beta,
            state,
            spec,
            guest,
            services,
            depends_on,
            drift,
            protect,
        })
}

/// Volumes by number (the even ones at `alpha`) and sandboxes by number.
pub type RawDesired = (BTreeSet<u8>, BTreeMap<u8, Raw>);

pub fn raw_desired() -> impl Strategy<Value = RawDesired> {
    (btree_set(0..4u8, 0..4), btree_map(0..6u8, raw(), 0..=6))
}

pub fn desired() -> impl Strategy<Value = Desired> {
    raw_desired().prop_map(|raw| build(&raw))
}

/// A manifest and the same after an edit: each sandbox stays, changes in one respect, is replaced, goes or comes.
pub fn edited() -> impl Strategy<Value = (Desired, Desired)> {
    (raw_desired(), raw_desired(), vec(0..9u8, 6)).prop_map(|(old, other, choices)| {
        let mut new = old.clone();
        for (number, choice) in (0..6u8).zip(choices) {
            let Some(there) = other.1.get(&number) else { continue };
            match (choice, new.1.get_mut(&number)) {
                (0..=2, _) => {}
                (3, Some(raw)) => raw.spec = there.spec.clone(),
                (4, Some(raw)) => raw.guest = there.guest.clone(),
                (5, Some(raw)) => raw.services = there.services.clone(),
                (6, Some(raw)) => (raw.state, raw.at_beta) = (there.state, there.at_beta),
                (7, _) => {
                    new.1.remove(&number);
                }
                _ => {
                    new.1.insert(number, there.clone());
                }
            }
            if choice > 6 {
                new.0 = other.0.clone();
            }
        }
        (build(&old), build(&new))
    })
}

pub fn name(number: u8) -> String {
    format!("s{number}")
}

pub fn build((volumes, sandboxes): &RawDesired) -> Desired {
    let provider = |at_beta: bool| if at_beta { "beta" } else { "alpha" }.to_owned();
    let declared = volumes.iter().map(|number| {
        (format!("v{number}"), DesiredVolume { provider: provider(number % 2 == 1), protect: false })
    });
    let sandboxes_built = sandboxes.iter().map(|(number, raw)| {
        let mounts = raw.spec.3.iter().map(|n| n * 2 + u8::from(raw.at_beta)).filter(|n| volumes.contains(n));
        let depends_on = raw
            .depends_on
            .iter()
            .filter(|(n, _)| *n < number && sandboxes.contains_key(n))
            .map(|(n, healthy)| (name(*n), condition(*healthy)));
        let sandbox = DesiredSandbox {
            build_secrets: BTreeMap::new(),
            provider: provider(raw.at_beta),
            state: raw.state,
            spec: SandboxSpec {
                image: Image::Oci(format!("image-{}", raw.spec.0)),
                hostname: format!("host-{}", raw.spec.1),
                ports: raw.spec.2.iter().map(|port| (*port, port_spec(*port + 10_000))).collect(),
                mounts: mounts
                    .map(|n| Mount { path: format!("/v{n}"), volume: format!("v{n}"), read_only: false })
                    .collect(),
                bound: bound(raw),
                ..SandboxSpec::default()
            },
            guest: guest_spec(raw),
            depends_on: depends_on.collect(),
            unresolved: BTreeSet::new(),
            drift: [DriftPolicy::Warn, DriftPolicy::Ignore]
                .get(usize::from(raw.drift))
                .copied()
                .unwrap_or(DriftPolicy::Heal),
            protect: raw.protect,
        };
        (name(*number), sandbox)
    });
    Desired { project: PROJECT.into(), volumes: declared.collect(), sandboxes: sandboxes_built.collect() }
}

fn condition(healthy: bool) -> DependencyCondition {
    if healthy { DependencyCondition::Healthy } else { DependencyCondition::Started }
}

pub fn port_spec(host_port: u16) -> PortSpec {
    PortSpec { host_port: Some(host_port), ..PortSpec::default() }
}

const PLACEHOLDER: &str = "placeholder";

/// One of two hosts, if the secret is bound.
fn bound(raw: &Raw) -> BTreeMap<String, BoundSecret> {
    let host = match raw.guest.secret {
        2 => "a.example",
        3 => "b.example",
        _ => return BTreeMap::new(),
    };
    let bound = BoundSecret { placeholder: PLACEHOLDER.into(), hosts: vec![host.into()] };
    BTreeMap::from([("KEY".to_owned(), bound)])
}

fn guest_spec(raw: &Raw) -> GuestSpec {
    let guest = &raw.guest;
    let secret = match guest.secret {
        0 => None,
        1 => Some(("KEY".to_owned(), SecretUse::Env("KEY".into()))),
        2 | 3 => {
            let placeholder = PLACEHOLDER.to_owned();
            Some(("KEY".to_owned(), SecretUse::Bound { variable: "KEY".into(), placeholder }))
        }
        _ => Some(("KEY".to_owned(), SecretUse::File("/run/key".into()))),
    };
    GuestSpec {
        env: guest.env.iter().map(|(k, v)| (format!("E{k}"), v.to_string())).collect(),
        secrets: secret.into_iter().collect(),
        files: guest.files.iter().map(|(path, content)| (format!("/f{path}"), file(content))).collect(),
        repositories: guest.repository.iter().map(|n| ("/work".to_owned(), repository(*n))).collect(),
        presets: guest
            .presets
            .iter()
            .enumerate()
            .map(|(place, n)| PresetSpec { name: format!("p{place}"), steps: vec![preset_step(*n)] })
            .collect(),
        services: raw
            .services
            .iter()
            .map(|(number, s)| {
                let known = |n: &u8| n < number && raw.services.contains_key(n);
                let depends_on = s.depends_on.iter().filter(|(n, _)| known(n));
                let mut spec = service_spec(&format!("run {}", s.command), s.check);
                spec.state = if s.stopped { ServiceState::Stopped } else { ServiceState::Running };
                spec.depends_on =
                    depends_on.map(|(n, healthy)| (format!("d{n}"), condition(*healthy))).collect();
                (format!("d{number}"), spec)
            })
            .collect(),
        ..GuestSpec::default()
    }
}

pub fn file(content: &impl ToString) -> DesiredFile {
    DesiredFile { content: FileContent::Inline(content.to_string()), mode: None }
}

pub fn repository(n: u8) -> RepositorySpec {
    let reference = Some(format!("ref-{n}"));
    RepositorySpec { url: "https://git.example/shop".into(), reference, depth: None, credentials: None }
}

pub fn preset_step(n: u8) -> PresetStep {
    PresetStep {
        name: format!("step-{n}"),
        only_if: None,
        unless: None,
        run: format!("install {n}"),
        shell: "sh".into(),
        user: None,
        env: BTreeMap::new(),
        timeout: Duration::from_secs(60),
        retries: 0,
        continue_on_error: false,
    }
}

pub fn service_spec(command: &str, check: bool) -> ServiceSpec {
    let healthcheck = check.then(|| HealthCheck {
        probe: Probe::Tcp(80),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        retries: 3,
        start_period: Duration::from_secs(0),
    });
    ServiceSpec {
        command: vec!["sh".into(), "-c".into(), command.into()],
        state: ServiceState::Running,
        working_dir: None,
        user: None,
        env: BTreeMap::new(),
        depends_on: BTreeMap::new(),
        healthcheck,
        restart: RestartPolicy::Always,
        stop_signal: "TERM".into(),
        stop_timeout: Duration::from_secs(10),
        log_max_size: Quantity::from_bytes(1 << 20),
        log_max_files: 3,
    }
}
