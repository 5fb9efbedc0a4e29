//! The state of the cloud: what all effects so far have made. No chance, no clock, no files.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::effect::Effect;
use super::guest::Guest;
use crate::provider::sim::api;

/// Everything that exists.
#[derive(Debug, Default)]
pub struct State {
    /// Sandboxes by id.
    pub sandboxes: BTreeMap<String, Sandbox>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Volume>,
    /// Ids by the key of the request that made them.
    keys: HashMap<String, String>,
    /// When something happens by itself next, by id.
    due: BTreeSet<(i64, String)>,
    /// What is gone and a listing that lags still shows, with when it went.
    gone: Vec<(i64, Sandbox)>,
}

/// A sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it is made from.
    pub spec: Box<str>,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// Its ports.
    pub ports: Vec<u16>,
    /// The key of the request that made it.
    pub key: Option<String>,
    /// What it is doing.
    pub phase: Phase,
    /// What it was doing before, and when that ended.
    before: Option<(api::State, i64)>,
    /// When it was created.
    pub created_at: i64,
    /// When it last started.
    pub started_at: Option<i64>,
    dies_at: Option<i64>,
    expires_at: Option<i64>,
    /// Its inside.
    pub guest: Guest,
    id: String,
}

/// What a sandbox is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It will run, or be of no use.
    Creating {
        /// When.
        until: i64,
        /// Whether it will be of no use.
        fails: bool,
    },
    /// Runs.
    Running,
    /// It will be stopped.
    Stopping {
        /// When.
        until: i64,
    },
    /// Does not run, with the reason if nobody asked.
    Stopped {
        /// Why, if nobody asked.
        unclean: Option<String>,
    },
    /// It will run.
    Starting {
        /// When.
        until: i64,
    },
    /// It will be gone.
    Deleting {
        /// When.
        until: i64,
    },
    /// Of no use.
    Failed,
}

/// A volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: i64,
}

impl Phase {
    /// The word of the API.
    pub fn word(&self) -> api::State {
        match self {
            Self::Creating { .. } => api::State::Creating,
            Self::Running => api::State::Running,
            Self::Stopping { .. } => api::State::Stopping,
            Self::Stopped { .. } => api::State::Stopped,
            Self::Starting { .. } => api::State::Starting,
            Self::Deleting { .. } => api::State::Deleting,
            Self::Failed => api::State::Failed,
        }
    }

    fn until(&self) -> Option<i64> {
        match self {
            Self::Creating { until, .. }
            | Self::Stopping { until }
            | Self::Starting { until }
            | Self::Deleting { until } => Some(*until),
            Self::Running | Self::Stopped { .. } | Self::Failed => None,
        }
    }
}

impl Sandbox {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is running.
    pub fn runs(&self) -> bool {
        self.phase == Phase::Running
    }

    /// What it was doing at a time.
    pub fn state_at(&self, at: i64) -> api::State {
        match self.before {
            Some((state, ended)) if ended > at => state,
            _ => self.phase.word(),
        }
    }

    /// When something happens to it by itself next.
    fn next(&self) -> Option<i64> {
        let dies = self.dies_at.filter(|_| self.runs());
        [self.phase.until(), dies, self.expires_at].into_iter().flatten().min()
    }
}

impl State {
    /// The sandbox that the request with this key made, if it is still there.
    pub fn made_by(&self, key: &str) -> Option<&Sandbox> {
        self.sandboxes.get(self.keys.get(key)?)
    }

    /// What a listing shows at `now` that lags by `lag`, from after `cursor`, in order of id.
    pub fn listed(&self, now: i64, lag: i64, cursor: &str) -> impl Iterator<Item = &Sandbox> {
        use std::ops::Bound;
        let range = (Bound::Excluded(cursor.to_owned()), Bound::Unbounded);
        let there = self.sandboxes.range(range).map(|(_, s)| s).filter(move |s| s.created_at + lag <= now);
        let mut gone: Vec<&Sandbox> = self
            .gone
            .iter()
            .filter(|(at, s)| at + lag > now && s.created_at + lag <= now && s.id.as_str() > cursor)
            .map(|(_, s)| s)
            .collect();
        gone.sort_by(|a, b| a.id.cmp(&b.id));
        merge(there, gone)
    }

    /// What happens by itself up to `now`, the earliest first; `None` if nothing does. To be applied before asking again.
    pub fn due(&self, now: i64, destroys: bool) -> Option<(i64, Effect)> {
        let (at, id) = self.due.first().filter(|(at, _)| *at <= now)?;
        let sandbox = self.sandboxes.get(id)?;
        let (at, id) = (*at, id.clone());
        if sandbox.expires_at.is_some_and(|expires| expires <= at) {
            return Some((at, Effect::Deleted { id, reason: Some("its lifetime was over".to_owned()) }));
        }
        let effect = match sandbox.phase {
            Phase::Creating { fails: true, .. } => Effect::Failed { id },
            Phase::Creating { .. } | Phase::Starting { .. } => Effect::Running { id },
            Phase::Stopping { .. } => Effect::Stopped { id, unclean: None, wiped: destroys },
            Phase::Deleting { .. } => Effect::Deleted { id, reason: None },
            Phase::Running if destroys => Effect::Deleted { id, reason: Some("it died".to_owned()) },
            Phase::Running => Effect::Stopped { id, unclean: Some("it died".to_owned()), wiped: false },
            Phase::Stopped { .. } | Phase::Failed => return None,
        };
        Some((at, effect))
    }

    /// Forgets what no listing shows any more.
    pub fn forget_gone(&mut self, before: i64) {
        self.gone.retain(|(at, _)| *at > before);
    }

    /// Makes an effect take place.
    pub fn apply(&mut self, at: i64, effect: &Effect) {
        match effect {
            Effect::Created {
                id,
                name,
                labels,
                spec,
                volumes,
                ports,
                key,
                until,
                fails,
                dies_at,
                expires_at,
            } => {
                if let Some(key) = key {
                    self.keys.insert(key.clone(), id.clone());
                }
                let sandbox = Sandbox {
                    name: name.clone(),
                    labels: labels.clone(),
                    spec: spec.get().into(),
                    volumes: volumes.clone(),
                    ports: ports.clone(),
                    key: key.clone(),
                    phase: Phase::Creating { until: *until, fails: *fails },
                    before: None,
                    created_at: at,
                    started_at: None,
                    dies_at: *dies_at,
                    expires_at: *expires_at,
                    guest: Guest::default(),
                    id: id.clone(),
                };
                self.schedule(id, None, sandbox.next());
                self.sandboxes.insert(id.clone(), sandbox);
            }
            Effect::Updated { id, name, labels, spec, volumes, ports } => {
                let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
                if let Some(name) = name {
                    sandbox.name.clone_from(name);
                }
                if let Some(labels) = labels {
                    sandbox.labels.clone_from(labels);
                }
                if let Some(spec) = spec {
                    sandbox.spec = spec.get().into();
                }
                if let Some(volumes) = volumes {
                    sandbox.volumes.clone_from(volumes);
                }
                if let Some(ports) = ports {
                    sandbox.ports.clone_from(ports);
                }
            }
            Effect::Starting { id, until, dies_at } => self.change(at, id, |s| {
                s.dies_at = *dies_at;
                Phase::Starting { until: *until }
            }),
            Effect::Running { id } => self.change(at, id, |s| {
                s.started_at = Some(at);
                Phase::Running
            }),
            Effect::Stopping { id, until } => self.change(at, id, |_| Phase::Stopping { until: *until }),
            Effect::Stopped { id, unclean, wiped } => self.change(at, id, |s| {
                s.guest.stop(*wiped);
                s.started_at = None;
                Phase::Stopped { unclean: unclean.clone() }
            }),
            Effect::Failed { id } => self.change(at, id, |_| Phase::Failed),
            Effect::Deleting { id, until } => self.change(at, id, |_| Phase::Deleting { until: *until }),
            Effect::Deleted { id, .. } => {
                let Some(sandbox) = self.sandboxes.remove(id) else { return };
                self.schedule(id, sandbox.next(), None);
                if let Some(key) = &sandbox.key {
                    self.keys.remove(key);
                }
                self.gone.push((at, Sandbox { guest: Guest::default(), ..sandbox }));
            }
            Effect::Inside { id, change } => {
                if let Some(sandbox) = self.sandboxes.get_mut(id) {
                    sandbox.guest.apply(change);
                }
            }
            Effect::VolumeCreated { name, labels } => {
                self.volumes.insert(name.clone(), Volume { labels: labels.clone(), created_at: at });
            }
            Effect::VolumeDeleted { name } => {
                self.volumes.remove(name);
            }
            Effect::Settings(_) => {}
        }
    }

    fn change(&mut self, at: i64, id: &str, change: impl FnOnce(&mut Sandbox) -> Phase) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        let due = sandbox.next();
        let state = sandbox.phase.word();
        // A listing that lags shows the oldest thing it may.
        let before = sandbox.before.filter(|(_, ended)| *ended == at);
        sandbox.phase = change(sandbox);
        sandbox.before = before.or(Some((state, at)));
        let next = sandbox.next();
        self.schedule(id, due, next);
    }

    fn schedule(&mut self, id: &str, old: Option<i64>, new: Option<i64>) {
        if let Some(old) = old {
            self.due.remove(&(old, id.to_owned()));
        }
        if let Some(new) = new {
            self.due.insert((new, id.to_owned()));
        }
    }
}

/// Two sequences in order of id, as one.
fn merge<'a>(
    there: impl Iterator<Item = &'a Sandbox>,
    gone: Vec<&'a Sandbox>,
) -> impl Iterator<Item = &'a Sandbox> {
    let mut there = there.peekable();
    let mut gone = gone.into_iter().peekable();
    std::iter::from_fn(move || match (there.peek(), gone.peek()) {
        (Some(a), Some(b)) if b.id < a.id => gone.next(),
        (Some(_), _) => there.next(),
        (None, _) => gone.next(),
    })
}
