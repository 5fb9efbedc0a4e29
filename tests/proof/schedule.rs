//! Schedules: everything that a simulation depends on, drawn from a seed, as plain data from which parts can be left out.

use std::collections::{BTreeMap, BTreeSet};

use pocketenv::model::*;
use pocketenv::provider::{Capabilities, ChangeClass, FieldSupport, StopMeaning, Support};

use crate::world::{PROJECT, SETTLE_MS};

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It is to be tried later, perhaps after so many milliseconds.
    Throttled(Option<u64>),
    /// It fails in passing and has no effect.
    Before,
    /// It has its effect, and the answer is lost.
    After,
    /// It is refused for good.
    Refused,
    /// Its answer takes many seconds.
    Slow,
    /// A create that goes on alone for a while, its caller being told that it failed.
    Stuck,
    /// A listing without those that are known.
    Misses,
    /// A service that does not stay up, a step that fails.
    Fails,
    /// Some sandbox dies by itself.
    Death(u64),
}

/// How a provider behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manners {
    pub stop_destroys: bool,
    pub idempotent: bool,
    pub lags: bool,
    pub reads_back: bool,
    /// Its sheet claims that it neither lags nor makes two of one token, whatever it does.
    pub lies: bool,
}

const fn row(path: &'static str, class: ChangeClass) -> FieldSupport {
    FieldSupport { path, support: Support::Honoured(class) }
}

const FIELDS: &[FieldSupport] = &[
    row("hostname", ChangeClass::Restart),
    row("volumes", ChangeClass::Restart),
    row("ports", ChangeClass::Live),
    row("resources", ChangeClass::Live),
];

impl Manners {
    /// The capability sheet of a provider that behaves so. There are few of them, and each is made once.
    pub fn sheet(self, name: &str) -> &'static Capabilities {
        static SHEETS: std::sync::Mutex<Vec<(String, Manners, &'static Capabilities)>> =
            std::sync::Mutex::new(Vec::new());
        let mut sheets = SHEETS.lock().unwrap();
        if let Some((_, _, sheet)) = sheets.iter().find(|(n, m, _)| n == name && *m == self) {
            return sheet;
        }
        let sheet: &'static Capabilities = Box::leak(Box::new(Capabilities {
            provider: if name == "alpha" { "alpha" } else { "beta" },
            summary: "",
            stop: if self.stop_destroys { StopMeaning::Destroy } else { StopMeaning::Suspend },
            labels: true,
            idempotent_create: self.idempotent || self.lies,
            settle_ms: if self.lags && !self.lies { SETTLE_MS } else { 0 },
            forwards_from_host: true,
            names_by_links: false,
            service: false,
            max_concurrency: 3,
            fields: FIELDS,
            ..Capabilities::NOTHING
        }));
        sheets.push((name.to_owned(), self, sheet));
        sheet
    }
}

/// What happens to the store before a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// It is lost, and a new one is made.
    Lost,
    /// It is put back from a copy made at the end of the phase before the last one.
    Older,
}

/// What is asked for during a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ask {
    /// The goal is applied.
    Apply,
    /// Everything is destroyed, with the volumes or without.
    Destroy { volumes: bool },
}

/// One phase: something is asked for, by several processes one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    pub ask: Ask,
    /// Which goal.
    pub goal: usize,
    /// Whether losing data is agreed to.
    pub consent: bool,
    pub loss: Option<Loss>,
    /// Each entry is a process that is stopped; after them comes one that may live.
    pub stops: Vec<Stop>,
}

/// How a process is stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// After how many polls.
    pub polls: u32,
    pub how: How,
}

/// How a process is stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// It dies where it waits.
    Killed,
    /// It is asked to finish what it has begun.
    Asked,
    /// It is asked to give up at once.
    Hurried,
}

/// A whole simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub seed: u64,
    pub manners: [Manners; 2],
    pub goals: Vec<Desired>,
    pub phases: Vec<Phase>,
    /// What goes wrong, by the number of the call.
    pub faults: BTreeMap<u64, Fault>,
}

/// A number by chance: the same for the same arguments (splitmix64).
pub fn chance(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Draws numbers one after the other.
struct Dice(u64, u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.1 += 1;
        chance(self.0, self.1.wrapping_add(1 << 40)) % below
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }
}

impl Schedule {
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice(seed, 0);
        let mut manners = || Manners {
            stop_destroys: dice.one_in(3),
            idempotent: dice.one_in(2),
            lags: dice.one_in(2),
            reads_back: dice.one_in(2),
            lies: false,
        };
        let manners = [manners(), manners()];
        let mut goals = vec![desired(&mut dice)];
        for _ in 0..dice.roll(3) {
            let edited = edit(goals.last().unwrap(), &mut dice);
            goals.push(edited);
        }
        let mut phases = Vec::new();
        for goal in 0..goals.len() {
            let stops = (0..dice.roll(4)).map(|_| stop(&mut dice)).collect();
            let loss = match dice.roll(12) {
                0 => Some(Loss::Lost),
                1 => Some(Loss::Older),
                _ => None,
            };
            phases.push(Phase { ask: Ask::Apply, goal, consent: dice.roll(4) > 0, loss, stops });
        }
        if dice.one_in(4) {
            let stops = (0..dice.roll(3)).map(|_| stop(&mut dice)).collect();
            let ask = Ask::Destroy { volumes: dice.one_in(2) };
            phases.push(Phase { ask, goal: goals.len() - 1, consent: true, loss: None, stops });
        }
        let mut faults = BTreeMap::new();
        // Some schedules are quiet, some are rough.
        let rate = [0, 60, 20, 8][usize::try_from(dice.roll(4)).unwrap()];
        for call in 1..600_u64 {
            if rate > 0 && dice.one_in(rate) {
                let fault = match dice.roll(12) {
                    0 => Fault::Throttled(None),
                    1 => Fault::Throttled(Some(dice.roll(5_000))),
                    2 | 3 => Fault::Before,
                    4 | 5 => Fault::After,
                    6 => Fault::Refused,
                    7 => Fault::Slow,
                    8 => Fault::Stuck,
                    9 => Fault::Misses,
                    10 => Fault::Fails,
                    _ => Fault::Death(dice.roll(u64::MAX)),
                };
                faults.insert(call, fault);
            }
        }
        Self { seed, manners, goals, phases, faults }
    }

    /// The same with one thing less, each in turn; the greatest things first.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for at in 0..self.phases.len() {
            if self.phases.len() > 1 {
                let mut less = self.clone();
                less.phases.remove(at);
                all.push(less);
            }
        }
        if !self.faults.is_empty() {
            all.push(Self { faults: BTreeMap::new(), ..self.clone() });
        }
        for goal in 0..self.goals.len() {
            for name in self.goals[goal].sandboxes.keys() {
                let mut less = self.clone();
                less.goals[goal].sandboxes.remove(name);
                for sandbox in less.goals[goal].sandboxes.values_mut() {
                    sandbox.depends_on.remove(name);
                }
                all.push(less);
            }
        }
        for at in 0..self.phases.len() {
            for crash in 0..self.phases[at].stops.len() {
                let mut less = self.clone();
                less.phases[at].stops.remove(crash);
                all.push(less);
            }
            if self.phases[at].loss.is_some() {
                let mut less = self.clone();
                less.phases[at].loss = None;
                all.push(less);
            }
        }
        for call in self.faults.keys() {
            let mut less = self.clone();
            less.faults.remove(call);
            all.push(less);
        }
        for goal in 0..self.goals.len() {
            for (name, sandbox) in &self.goals[goal].sandboxes {
                if sandbox.guest != GuestSpec::default() {
                    let mut less = self.clone();
                    less.goals[goal].sandboxes.get_mut(name).unwrap().guest = GuestSpec::default();
                    all.push(less);
                }
            }
        }
        all
    }
}

/// Often early, sometimes late.
fn stop(dice: &mut Dice) -> Stop {
    let most = [20, 80, 300, 1_000][usize::try_from(dice.roll(4)).unwrap()];
    let polls = dice.roll(most);
    // Not rolled: the seeds that failed once go on to mean what they meant.
    let how = match chance(dice.0, 4 + polls) % 5 {
        0..=2 => How::Killed,
        3 => How::Asked,
        _ => How::Hurried,
    };
    Stop { polls: u32::try_from(polls).unwrap(), how }
}

const NAMES: [&str; 3] = ["db", "api", "web"];

fn desired(dice: &mut Dice) -> Desired {
    let count = 1 + usize::try_from(dice.roll(3)).unwrap();
    let provider = |at: u64| if at == 0 { "alpha" } else { "beta" }.to_owned();
    let volumes =
        (0..2).map(|n| (format!("v{n}"), DesiredVolume { provider: provider(n), protect: false })).collect();
    let mut desired = Desired { project: PROJECT.to_owned(), volumes, sandboxes: BTreeMap::new() };
    for name in NAMES.iter().take(count) {
        let depends_on = desired.sandboxes.keys().next_back().cloned().filter(|_| dice.one_in(2));
        let mut sandbox = DesiredSandbox {
            build_secrets: BTreeMap::new(),
            provider: provider(dice.roll(2)),
            state: if dice.one_in(8) { RunState::Stopped } else { RunState::Running },
            spec: SandboxSpec::default(),
            guest: GuestSpec::default(),
            depends_on: BTreeMap::new(),
            unresolved: BTreeSet::new(),
            drift: DriftPolicy::Heal,
            protect: false,
        };
        respec(&mut sandbox, dice);
        refill(&mut sandbox, dice);
        if let Some(on) = depends_on.filter(|on| desired.sandboxes[on].state == RunState::Running) {
            sandbox.depends_on.insert(on, DependencyCondition::Started);
        }
        desired.sandboxes.insert((*name).to_owned(), sandbox);
    }
    desired
}

fn respec(sandbox: &mut DesiredSandbox, dice: &mut Dice) {
    let spec = &mut sandbox.spec;
    spec.image = Image::Oci(format!("image-{}", dice.roll(2)));
    spec.hostname = format!("host-{}", dice.roll(2));
    let port = PortSpec { host_port: Some(13_000), ..PortSpec::default() };
    spec.ports = if dice.one_in(2) { BTreeMap::from([(3_000, port)]) } else { BTreeMap::new() };
    let volume = if sandbox.provider == "alpha" { "v0" } else { "v1" };
    let mount = Mount { path: "/data".to_owned(), volume: volume.to_owned(), read_only: false };
    spec.mounts = if dice.one_in(2) { vec![mount] } else { Vec::new() };
}

fn refill(sandbox: &mut DesiredSandbox, dice: &mut Dice) {
    let mut guest = GuestSpec::default();
    if dice.one_in(2) {
        guest.env.insert("E".to_owned(), dice.roll(3).to_string());
    }
    if dice.one_in(3) {
        guest.secrets.insert("KEY".to_owned(), SecretUse::File("/run/key".to_owned()));
    }
    if dice.one_in(2) {
        let content = FileContent::Inline(dice.roll(3).to_string());
        guest.files.insert("/etc/motd".to_owned(), DesiredFile { content, mode: None });
    }
    if dice.one_in(3) {
        let step = PresetStep {
            name: "tool".to_owned(),
            only_if: None,
            unless: None,
            run: format!("install {}", dice.roll(2)),
            shell: "sh".to_owned(),
            user: None,
            env: BTreeMap::new(),
            timeout: Duration::from_secs(60),
            retries: 0,
            continue_on_error: false,
        };
        guest.presets.push(PresetSpec { name: "tools".to_owned(), steps: vec![step] });
    }
    if dice.one_in(2) {
        let check = HealthCheck {
            probe: Probe::Tcp(80),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            retries: 3,
            start_period: Duration::from_secs(0),
        };
        let service = ServiceSpec {
            command: vec!["serve".to_owned(), dice.roll(2).to_string()],
            state: ServiceState::Running,
            working_dir: None,
            user: None,
            env: BTreeMap::new(),
            depends_on: BTreeMap::new(),
            healthcheck: dice.one_in(2).then_some(check),
            restart: RestartPolicy::Always,
            stop_signal: "TERM".to_owned(),
            stop_timeout: Duration::from_secs(10),
            log_max_size: Quantity::from_bytes(1 << 20),
            log_max_files: 3,
        };
        guest.services.insert("web".to_owned(), service);
    }
    sandbox.guest = guest;
}

/// What a user might change.
fn edit(before: &Desired, dice: &mut Dice) -> Desired {
    let mut after = before.clone();
    let names: Vec<String> = after.sandboxes.keys().cloned().collect();
    for name in names {
        let sandbox = after.sandboxes.get_mut(&name).unwrap();
        match dice.roll(9) {
            0..=2 => {}
            3 => respec(sandbox, dice),
            4 => refill(sandbox, dice),
            5 => {
                sandbox.state = match sandbox.state {
                    RunState::Running => RunState::Stopped,
                    _ => RunState::Running,
                }
            }
            6 => {
                sandbox.provider = if sandbox.provider == "alpha" { "beta" } else { "alpha" }.to_owned();
                respec(sandbox, dice);
            }
            7 => sandbox.state = RunState::Absent,
            _ => {
                after.sandboxes.remove(&name);
            }
        }
    }
    let running: BTreeSet<String> = after
        .sandboxes
        .iter()
        .filter(|(_, s)| s.state == RunState::Running)
        .map(|(n, _)| n.clone())
        .collect();
    for sandbox in after.sandboxes.values_mut() {
        sandbox.depends_on.retain(|on, _| running.contains(on));
    }
    after
}
