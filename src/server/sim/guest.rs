//! The inside of a simulated sandbox: no processes and no files, only what the scripts of the guest room would leave behind and report.
//!
//! The scripts are known by name and emulated at the level of their line protocol. Of files and environments only names and hashes are kept, so that the
//! simulator never holds a secret.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde::{Deserialize, Serialize};

use super::chance::Draw;
use super::fault::OfCloud;
use crate::model::sha256_hex;

/// What of one archive member is kept: records and control lines are small, and content is not needed.
const MEMBER_LIMIT: u64 = 16 << 20;
/// A service that crashes does so this soon after its start, in milliseconds.
const CRASH_AFTER: i64 = 500;

/// What is inside a sandbox.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    env: Option<EnvRecord>,
    files: BTreeMap<String, FileRecord>,
    repositories: BTreeMap<String, Repository>,
    steps: BTreeMap<String, String>,
    services: BTreeMap<String, Service>,
}

/// The environment in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvRecord {
    digest: String,
    sha256: String,
    names: Vec<String>,
}

/// A managed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// `F`, `S` or `T`.
    kind: String,
    digest: String,
    sha256: String,
    /// As `stat -c %f` prints it.
    mode: String,
    path: String,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    digest: String,
    commit: String,
    path: String,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    digest: String,
    state: ServiceState,
    code: Option<i32>,
    restarts: u32,
    /// In seconds.
    since: i64,
    /// When it ends with 1, in milliseconds, and what becomes of it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crash: Option<(i64, bool)>,
}

/// What a service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Its process runs.
    Running,
    /// It ended with 0.
    Completed,
    /// It ended, and stays so.
    Failed,
    /// It was stopped.
    Stopped,
}

/// A change of what is inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestChange {
    /// A bundle was put in place.
    Wrote {
        /// The environment, if it was part of it.
        env: Option<EnvRecord>,
        /// Files by key; `None` for those that are forgotten.
        files: BTreeMap<String, Option<FileRecord>>,
    },
    /// A repository was brought or forgotten, by key.
    Repository(String, Option<Repository>),
    /// Preset steps are done (with their outcome) or forgotten.
    Steps(BTreeMap<String, Option<String>>),
    /// A service was started, stopped or removed.
    Service(String, Option<Service>),
}

/// How a command ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// What it changed.
    pub change: Option<GuestChange>,
}

impl Ended {
    fn out(text: impl Into<Vec<u8>>) -> Self {
        Self { stdout: text.into(), ..Self::default() }
    }

    fn failed(code: i32, message: impl Into<Vec<u8>>) -> Self {
        Self { code, stderr: message.into(), ..Self::default() }
    }

    fn changed(change: GuestChange) -> Self {
        Self { change: Some(change), ..Self::default() }
    }

    fn with_out(self, text: &str) -> Self {
        Self { stdout: text.into(), ..self }
    }
}

/// What a command may depend on.
pub struct Surroundings<'a> {
    /// The settings of the cloud.
    pub settings: &'a OfCloud,
    /// Its chance.
    pub draw: Draw,
    /// The time, in milliseconds since the epoch.
    pub now: i64,
}

impl Guest {
    /// Runs a command. What is changed takes place with [`Self::apply`].
    pub fn exec(&self, argv: &[String], stdin: &[u8], around: &Surroundings<'_>) -> Ended {
        let script = match argv {
            [shell, flag, _, name, arguments @ ..] if shell == "sh" && flag == "-c" => {
                name.strip_prefix("pocketenv-").map(|name| (name, arguments))
            }
            _ => None,
        };
        let Some((name, arguments)) = script else { return self.command(argv, around) };
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match (name, &words[..]) {
            ("observe", _) => Ended::out(self.observe(around.now)),
            ("environment", _) => Ended::out(self.environment()),
            ("write", [_, "unpack", ..]) => unpack(stdin),
            ("step", _) => {
                let code = i32::from(around.draw.happens("step_failure", around.settings.step_failure.0));
                Ended { stderr: format!("ran {code}\n").into_bytes(), ..Ended::default() }
            }
            ("steps", ["remember", id, outcome]) => {
                let steps = BTreeMap::from([((*id).to_owned(), Some((*outcome).to_owned()))]);
                Ended::changed(GuestChange::Steps(steps))
            }
            ("steps", ["forget", ids @ ..]) => {
                Ended::changed(GuestChange::Steps(ids.iter().map(|id| ((*id).to_owned(), None)).collect()))
            }
            ("start", [stage, name, digest, _, _, _, _, _, policy, max, _, _, _, _, _, command @ ..]) => {
                let started = Started { name, digest, policy, max, command };
                self.start(stage, &started, around)
            }
            ("stop", [name]) => match self.services.get(*name) {
                Some(service) if service.state != ServiceState::Stopped => {
                    let since = around.now / 1000;
                    let service =
                        Service { state: ServiceState::Stopped, since, crash: None, ..service.clone() };
                    Ended::changed(GuestChange::Service((*name).to_owned(), Some(service)))
                }
                _ => Ended::default(),
            },
            // A simulated service has started up at once.
            ("settle", [_]) => Ended::default(),
            ("stop", [name, "remove"]) => Ended::changed(GuestChange::Service((*name).to_owned(), None)),
            ("logs", [name, ..]) => match self.services.contains_key(*name) {
                true => Ended::out(format!("{name}: a simulated service writes nothing\n")),
                false => Ended::failed(75, format!("there is no service {name}\n")),
            },
            ("repositories", ["recall", key, ..]) => {
                let commit = self.repositories.get(*key).map_or("-", |r| r.commit.as_str());
                Ended::out(format!("{commit}\n"))
            }
            ("repositories", ["remember", key, digest, commit, path]) => {
                let repository = Repository {
                    digest: (*digest).to_owned(),
                    commit: (*commit).to_owned(),
                    path: (*path).to_owned(),
                };
                Ended::changed(GuestChange::Repository((*key).to_owned(), Some(repository)))
            }
            ("repositories", ["forget", key]) => {
                Ended::changed(GuestChange::Repository((*key).to_owned(), None))
            }
            ("repository", [_, url, reference, ..]) => {
                // The same reference of the same repository is the same commit.
                let commit = sha256_hex(format!("{url} {reference}").as_bytes());
                Ended::out(format!("{}\n", &commit[..40]))
            }
            _ => self.command(argv, around),
        }
    }

    /// A command of the user: the simulator does not know what it does.
    fn command(&self, argv: &[String], around: &Surroundings<'_>) -> Ended {
        let program = argv.first().map_or("", String::as_str);
        match base_name(program) {
            "true" => Ended::default(),
            "false" => Ended { code: 1, ..Ended::default() },
            _ if around.settings.command_exit == 127 => {
                Ended::failed(127, format!("{program}: the simulator runs no programs\n"))
            }
            _ => Ended { code: around.settings.command_exit, ..Ended::default() },
        }
    }

    /// Whether something accepts connections on a port: no more is known than that services run.
    pub fn listens(&self, now: i64) -> bool {
        self.services.values().any(|service| service.now(now).state == ServiceState::Running)
    }

    /// Changes what is inside.
    pub fn apply(&mut self, change: &GuestChange) {
        match change {
            GuestChange::Wrote { env, files } => {
                if env.is_some() {
                    self.env.clone_from(env);
                }
                put_all(&mut self.files, files);
            }
            GuestChange::Repository(key, value) => put(&mut self.repositories, key, value.as_ref()),
            GuestChange::Steps(steps) => put_all(&mut self.steps, steps),
            GuestChange::Service(name, value) => put(&mut self.services, name, value.as_ref()),
        }
    }

    /// What is left when it stops: what is in memory is lost, and with `wiped` the disk as well.
    pub fn stop(&mut self, wiped: bool) {
        if wiped {
            *self = Self::default();
            return;
        }
        self.env = None;
        self.services.clear();
        for file in self.files.values_mut().filter(|file| file.kind == "S") {
            "-".clone_into(&mut file.sha256);
        }
    }

    fn observe(&self, now: i64) -> String {
        let mut out = "pocketenv\t1\n".to_owned();
        let mut line = |fields: &[&str]| {
            out.push_str(&fields.join("\t"));
            out.push('\n');
        };
        if let Some(env) = &self.env {
            const PATH: &str = "/run/pocketenv/env";
            line(&["env", &env.digest, &env.sha256, PATH]);
            line(&[&format!("{}  {PATH}", env.sha256)]);
            line(&["mode", "8180", PATH]);
            line(&["target", "8180", PATH]);
        }
        for file in self.files.values() {
            if file.kind == "T" {
                line(&["tree", &file.digest, "ok", &file.path]);
                continue;
            }
            line(&["file", &file.kind, &file.digest, &file.sha256, &file.mode, &file.path]);
            // A secret lies in memory, a link leads to it: without its hash it went with the memory.
            line(&["mode", if file.kind == "S" { "a1ff" } else { &file.mode }, &file.path]);
            if file.sha256 != "-" {
                line(&[&format!("{}  {}", file.sha256, file.path)]);
                line(&["target", &file.mode, &file.path]);
            }
        }
        for repository in self.repositories.values() {
            line(&["repository", &repository.digest, "present", &repository.path]);
        }
        for (id, outcome) in &self.steps {
            line(&["step", id, outcome]);
        }
        for (name, service) in &self.services {
            let service = service.now(now);
            let state = match service.state {
                ServiceState::Running => "running",
                ServiceState::Completed => "completed",
                ServiceState::Failed => "failed",
                ServiceState::Stopped => "stopped",
            };
            let supervised = if service.state == ServiceState::Running { "alive" } else { "gone" };
            let code = service.code.map_or("-".to_owned(), |code| code.to_string());
            let (restarts, since) = (service.restarts.to_string(), service.since.to_string());
            line(&["service", name, &service.digest, state, supervised, &code, &restarts, &since]);
        }
        out
    }

    fn environment(&self) -> String {
        let names = self.env.iter().flat_map(|env| &env.names);
        names.map(|name| format!("{name}=\0")).collect()
    }

    fn start(&self, stage: &str, started: &Started<'_>, around: &Surroundings<'_>) -> Ended {
        let name = started.name;
        let same = self.services.get(name).map(|service| service.now(around.now)).is_some_and(|service| {
            service.digest == started.digest && service.state == ServiceState::Running
        });
        if same && stage != "launch" {
            return Ended::out("same\n");
        }
        if stage == "prepare" {
            return Ended::out(format!(
                "prepared\t/run/pocketenv/services/{name}\t/var/log/pocketenv/{name}\n"
            ));
        }
        Ended::changed(GuestChange::Service(name.to_owned(), Some(started.service(around))))
            .with_out("started\n")
    }
}

/// A service that is being started.
struct Started<'a> {
    name: &'a str,
    digest: &'a str,
    policy: &'a str,
    max: &'a str,
    command: &'a [&'a str],
}

impl Started<'_> {
    /// What becomes of it. Programs are not run; two are known by what they always do.
    fn service(&self, around: &Surroundings<'_>) -> Service {
        let base = Service {
            digest: self.digest.to_owned(),
            state: ServiceState::Running,
            code: None,
            restarts: 0,
            since: around.now / 1000,
            crash: None,
        };
        let restarts = self.policy == "always" || (self.policy == "on-failure" && self.max != "0");
        match self.command.first().map(|program| base_name(program)) {
            Some("true") if self.policy != "always" => {
                Service { state: ServiceState::Completed, code: Some(0), ..base }
            }
            Some("false") if !restarts => Service { state: ServiceState::Failed, code: Some(1), ..base },
            Some("false") => Service { state: ServiceState::Failed, code: Some(1), restarts: 1, ..base },
            _ if around.draw.happens("service_crash", around.settings.service_crash.0) => {
                Service { crash: Some((around.now + CRASH_AFTER, restarts)), ..base }
            }
            _ => base,
        }
    }
}

impl Service {
    /// The service as it is at a time: a crash that was to come has come.
    fn now(&self, now: i64) -> Self {
        match self.crash {
            Some((at, restarted)) if at <= now => Self {
                state: if restarted { ServiceState::Running } else { ServiceState::Failed },
                code: Some(1),
                restarts: self.restarts + u32::from(restarted),
                since: at / 1000,
                crash: None,
                digest: self.digest.clone(),
            },
            _ => self.clone(),
        }
    }
}

fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

fn put<T: Clone>(map: &mut BTreeMap<String, T>, key: &str, value: Option<&T>) {
    match value {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

fn put_all<T: Clone>(map: &mut BTreeMap<String, T>, changes: &BTreeMap<String, Option<T>>) {
    for (key, value) in changes {
        put(map, key, value.as_ref());
    }
}

/// `write.sh TOKEN unpack`: reads the archive and does what its control lines say.
fn unpack(archive: &[u8]) -> Ended {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut read = || -> std::io::Result<()> {
        for entry in tar::Archive::new(archive).entries()? {
            let entry = entry?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if name != "control" && !name.starts_with("var/") && !name.starts_with("mem/") {
                continue;
            }
            let mut text = Vec::new();
            entry.take(MEMBER_LIMIT).read_to_end(&mut text)?;
            texts.insert(name, String::from_utf8_lossy(&text).into_owned());
        }
        Ok(())
    };
    if let Err(error) = read() {
        return Ended::failed(70, format!("tar failed: {error}\n"));
    }
    let Some(control) = texts.get("control") else { return Ended::failed(70, "the bundle ended early\n") };
    let (mut env, mut files) = (None, BTreeMap::new());
    for line in control.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["forget", key] => {
                files.insert(key.to_owned(), None);
            }
            ["record", key] => match record(&texts, key) {
                Some(record) => {
                    files.insert(key.to_owned(), Some(record));
                }
                None => return Ended::failed(70, format!("writing a record failed: {key}\n")),
            },
            ["env", digest, sha256] => {
                let values = texts.get("mem/new.env").map_or("", String::as_str);
                let names =
                    values.split_terminator('\0').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
                let (digest, sha256) = (digest.to_owned(), sha256.to_owned());
                env = Some(EnvRecord { digest, sha256, names: names.collect() });
            }
            _ => {}
        }
    }
    Ended::changed(GuestChange::Wrote { env, files })
}

fn record(texts: &BTreeMap<String, String>, key: &str) -> Option<FileRecord> {
    let text = texts.get(&format!("var/.new.{key}.rec"))?;
    let mut fields = text.trim_end_matches('\n').splitn(5, '\t').map(str::to_owned);
    let mut record = FileRecord {
        kind: fields.next()?,
        digest: fields.next()?,
        sha256: fields.next()?,
        mode: fields.next()?,
        path: fields.next()?,
    };
    if record.kind == "S" {
        let sum = texts.get(&format!("mem/new.{key}.sum"))?;
        sum.trim_end().clone_into(&mut record.sha256);
    }
    Some(record)
}
