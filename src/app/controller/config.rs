//! The controller's own file: what it follows and what it may do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::notify::Notify;
use super::window::{Window, WindowError};
use crate::gitops::{GitError, Reference, Remote};
use crate::model::{DriftPolicy, Duration};
use crate::secret::SecretSource;

/// The largest file.
const MAX_BYTES: u64 = 4 << 20;
/// The shortest poll: a remote is not ours to wear down.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// `controller.yaml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The version of this language: 1.
    pub version: u32,
    /// Where status, metrics and webhooks are served; nowhere if left out.
    pub listen: Option<SocketAddr>,
    /// How many projects are worked on at once.
    #[serde(default = "parallelism")]
    pub parallelism: usize,
    /// The first and the longest pause after failures.
    #[serde(default)]
    pub retry: Retry,
    /// What projects may read of the operator's secrets, by name.
    #[serde(default)]
    pub accounts: BTreeMap<String, Account>,
    /// What is followed.
    pub sources: Vec<Source>,
}

/// One source of projects.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// A git repository. Either this or `directory`.
    pub git: Option<Git>,
    /// A directory of this machine, used in place.
    pub directory: Option<PathBuf>,
    /// How many projects the directory has; a repository says so under `git`.
    pub projects: Option<Projects>,
    /// How often the source is looked at for changes.
    #[serde(default = "interval")]
    pub interval: Duration,
    /// How often a project that has not changed is compared with what exists, and healed. After a change it is looked at sooner, and then less
    /// and less often up to this.
    #[serde(default = "resync")]
    pub resync: Duration,
    /// How long one reconcile of a project, or one fetch, may take.
    #[serde(default = "timeout")]
    pub timeout: Duration,
    /// The pauses after failures; those of the whole controller if left out.
    pub retry: Option<Retry>,
    /// Delete sandboxes that a manifest declares no more.
    #[serde(default)]
    pub prune: bool,
    /// Destroy a project that the source has no more. Volumes are kept.
    #[serde(default)]
    pub prune_projects: bool,
    /// Go on where data may be lost.
    #[serde(default)]
    pub allow_data_loss: bool,
    /// Undo what was changed by hand. Without it only a new revision is applied; drift is still shown.
    #[serde(default = "yes")]
    pub self_heal: bool,
    /// What is done about drift, over what manifests say of their sandboxes.
    pub drift: Option<DriftPolicy>,
    /// Change nothing; go on looking.
    #[serde(default)]
    pub suspend: bool,
    /// When changes may be made; always if empty.
    #[serde(default)]
    pub windows: Vec<Window>,
    /// What must be in sync and healthy first: sources with all their projects, or one project as `SOURCE/DIRECTORY`.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// The account that its manifests read secrets by; without one they read none of the operator's.
    pub account: Option<String>,
    /// What manifests of this source may do beyond sandboxes.
    #[serde(default)]
    pub allow: Allow,
    /// What holds for single projects instead. Of those that match the later one wins, setting by setting.
    #[serde(default)]
    pub overrides: Vec<Override>,
    /// Who may say that the source has changed.
    pub webhook: Option<Webhook>,
    /// Who is told how its projects fare.
    #[serde(default)]
    pub notify: Vec<Notify>,
}

/// Settings of some projects of a source, over those of the source.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Directories in the source. `*` stands for any characters of one name, `**` for any number of directories. A project's own name does not
    /// count: whoever writes the manifest chooses it.
    pub paths: Vec<String>,
    /// As of the source.
    pub resync: Option<Duration>,
    /// As of the source.
    pub timeout: Option<Duration>,
    /// As of the source.
    pub retry: Option<Retry>,
    /// As of the source.
    pub prune: Option<bool>,
    /// As of the source.
    pub prune_projects: Option<bool>,
    /// As of the source.
    pub allow_data_loss: Option<bool>,
    /// As of the source.
    pub self_heal: Option<bool>,
    /// As of the source.
    pub drift: Option<DriftPolicy>,
    /// As of the source.
    pub suspend: Option<bool>,
    /// As of the source.
    pub windows: Option<Vec<Window>>,
    /// As of the source.
    pub depends_on: Option<Vec<String>>,
    /// As of the source.
    pub account: Option<String>,
    /// As of the source, all of it.
    pub allow: Option<Allow>,
}

/// How one project is kept: what its source says, with what the overrides say of its directory.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often it is compared with what exists when nothing has changed.
    pub resync: Duration,
    /// How long one reconcile may take.
    pub timeout: Duration,
    /// The pauses after failures.
    pub retry: Retry,
    /// Delete sandboxes that its manifest declares no more.
    pub prune: bool,
    /// Destroy it when the source has it no more.
    pub prune_projects: bool,
    /// Go on where data may be lost.
    pub allow_data_loss: bool,
    /// Undo what was changed by hand.
    pub self_heal: bool,
    /// What is done about drift, over what its manifest says.
    pub drift: Option<DriftPolicy>,
    /// Change nothing.
    pub suspend: bool,
    /// When changes may be made.
    pub windows: Vec<Window>,
    /// What must be in sync and healthy first.
    pub depends_on: Vec<String>,
    /// What it may read of the operator's secrets.
    pub account: Account,
    /// What its manifest may do beyond sandboxes.
    pub allow: Allow,
}

/// What a project may read of the operator's secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Account {
    /// Variables of the controller's environment that manifests see, in templates and as secrets.
    pub env: Vec<String>,
    /// Files that secrets may come from, and directories with all that is in them.
    pub files: Vec<PathBuf>,
}

/// A git repository.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Git {
    /// Any URL that git can fetch from, without credentials.
    pub url: String,
    /// A branch; the default branch if none of `branch`, `tag`, `commit` is written.
    pub branch: Option<String>,
    /// A tag.
    pub tag: Option<String>,
    /// A full commit id.
    pub commit: Option<String>,
    /// A manifest or a directory in the repository.
    #[serde(default = "top")]
    pub path: String,
    /// How many projects are there.
    #[serde(default)]
    pub projects: Projects,
}

/// How many projects a source has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projects {
    /// The one at the path.
    #[default]
    One,
    /// Every directory at or below the path that has a `pocketenv.yaml`.
    Many,
}

/// The pauses after failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// The first.
    #[serde(default = "first_retry")]
    pub initial: Duration,
    /// The longest.
    #[serde(default = "last_retry")]
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { initial: first_retry(), max: last_retry() }
    }
}

/// What manifests of a source may do beyond sandboxes: nothing, unless written here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    /// Paths of this machine outside the project's directory.
    pub host_paths: bool,
    /// Secrets from commands that run on this machine.
    pub command_secrets: bool,
    /// Secrets of the sealed vault.
    pub vault_secrets: bool,
    /// Sandboxes with the network of this machine.
    pub host_network: bool,
    /// Sandboxes with devices of this machine.
    pub devices: bool,
    /// Ports of this machine that manifests choose with `host_port`; without it only free ones of the loopback are taken.
    pub host_ports: bool,
    /// Settings of providers, which decide where credentials are sent.
    pub provider_settings: bool,
}

/// Who may say that a source has changed: whoever knows the secret.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where the secret comes from: `{ env: NAME }` or `{ file: PATH }`.
    pub secret: SecretSource,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what is expected; the message has the line.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        message: String,
    },
    /// A source makes no sense.
    #[error("{}: source `{name}`: {why}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// The source.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let malformed = |message| ConfigError::Malformed { path: path.to_owned(), message };
        if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
            return Err(malformed(format!("it is larger than {} MiB", MAX_BYTES >> 20)));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut config: Self = serde_saphyr::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        if config.version != 1 {
            return Err(malformed(format!("version {} is not known; this is version 1", config.version)));
        }
        config.parallelism = config.parallelism.max(1);
        let base = path.parent().unwrap_or(Path::new("."));
        for account in config.accounts.values_mut() {
            for file in &mut account.files {
                *file = std::path::absolute(base.join(&*file)).map_err(unreadable)?;
            }
        }
        let names: BTreeSet<String> = config.sources.iter().map(|source| source.name.clone()).collect();
        let accounts: BTreeSet<String> = config.accounts.keys().cloned().collect();
        let mut seen = BTreeSet::new();
        for source in &mut config.sources {
            let twice = !seen.insert(source.name.clone());
            let checked = if twice {
                Err("there is another of this name".to_owned())
            } else {
                source.check(path, &names, &accounts)
            };
            checked.map_err(|why| ConfigError::Source {
                path: path.to_owned(),
                name: source.name.clone(),
                why,
            })?;
        }
        if let Some(cycle) = cycle(&config.sources) {
            let why = format!("sources wait for one another: {}", cycle.join(" → "));
            return Err(ConfigError::Source { path: path.to_owned(), name: cycle[0].clone(), why });
        }
        Ok(config)
    }
}

impl Source {
    fn check(
        &mut self,
        file: &Path,
        names: &BTreeSet<String>,
        accounts: &BTreeSet<String>,
    ) -> Result<(), String> {
        check_name(&self.name)?;
        let base = file.parent().unwrap_or(Path::new("."));
        match (&self.git, &mut self.directory) {
            (Some(git), None) => {
                git.remote().map_err(|error| error.to_string())?;
                if self.projects.is_some() {
                    return Err("`projects` of a repository is written under `git`".to_owned());
                }
                let path = Path::new(&git.path);
                let inside = path.components().all(|part| {
                    matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir)
                });
                if !inside || git.path.chars().any(char::is_control) {
                    return Err(format!("`path: {}` is not a path in the repository", git.path));
                }
            }
            (None, Some(directory)) => make_absolute(base, directory)?,
            _ => return Err("expected exactly one of `git` and `directory`".to_owned()),
        }
        if self.interval < MIN_INTERVAL || self.resync < MIN_INTERVAL || self.timeout < MIN_INTERVAL {
            return Err(format!("`interval`, `resync` and `timeout` are at least {MIN_INTERVAL}"));
        }
        for over in &self.overrides {
            if over.paths.is_empty() {
                return Err("an override has no `paths`".to_owned());
            }
            if over.resync.is_some_and(|d| d < MIN_INTERVAL) || over.timeout.is_some_and(|d| d < MIN_INTERVAL)
            {
                return Err(format!("`resync` and `timeout` are at least {MIN_INTERVAL}"));
            }
        }
        let used = self.overrides.iter().filter_map(|over| over.account.as_ref()).chain(&self.account);
        if let Some(unknown) = used.into_iter().find(|name| !accounts.contains(*name)) {
            return Err(format!("`account` names `{unknown}`, which is not among `accounts`"));
        }
        if let Some(unknown) = self.awaited().find(|on| !names.contains(source_of(on))) {
            return Err(format!("`depends_on` names `{unknown}`, which is no source"));
        }
        if let Some(webhook) = &mut self.webhook {
            check_secret(base, &mut webhook.secret, "the secret of a webhook")?;
        }
        let mut targets = BTreeSet::new();
        for notify in &mut self.notify {
            if !targets.insert(notify.name.clone()) {
                return Err(format!("`notify` has `{}` twice", notify.name));
            }
            notify.check(base, self.git.is_some())?;
        }
        let windows =
            self.windows.iter().chain(self.overrides.iter().flat_map(|o| o.windows.iter().flatten()));
        windows.into_iter().try_for_each(Window::check).map_err(|error: WindowError| error.to_string())
    }

    /// Everything that it or one of its projects waits for.
    fn awaited(&self) -> impl Iterator<Item = &String> {
        self.depends_on.iter().chain(self.overrides.iter().flat_map(|over| over.depends_on.iter().flatten()))
    }
}

impl Config {
    /// How the project in a directory of a source is kept.
    pub fn settings(&self, source: &Source, path: &str) -> Settings {
        let account = |name: &String| self.accounts.get(name).cloned().unwrap_or_default();
        let mut settings = Settings {
            resync: source.resync,
            timeout: source.timeout,
            retry: source.retry.unwrap_or(self.retry),
            prune: source.prune,
            prune_projects: source.prune_projects,
            allow_data_loss: source.allow_data_loss,
            self_heal: source.self_heal,
            drift: source.drift,
            suspend: source.suspend,
            windows: source.windows.clone(),
            depends_on: source.depends_on.clone(),
            account: source.account.as_ref().map(account).unwrap_or_default(),
            allow: source.allow.clone(),
        };
        for over in source.overrides.iter().filter(|over| over.paths.iter().any(|p| matches_path(p, path))) {
            fn set<T: Clone>(setting: &mut T, over: &Option<T>) {
                if let Some(value) = over {
                    setting.clone_from(value);
                }
            }
            set(&mut settings.resync, &over.resync);
            set(&mut settings.timeout, &over.timeout);
            set(&mut settings.retry, &over.retry);
            set(&mut settings.prune, &over.prune);
            set(&mut settings.prune_projects, &over.prune_projects);
            set(&mut settings.allow_data_loss, &over.allow_data_loss);
            set(&mut settings.self_heal, &over.self_heal);
            settings.drift = over.drift.or(settings.drift);
            set(&mut settings.suspend, &over.suspend);
            set(&mut settings.windows, &over.windows);
            set(&mut settings.depends_on, &over.depends_on);
            set(&mut settings.account, &over.account.as_ref().map(account));
            set(&mut settings.allow, &over.allow);
        }
        settings
    }

    /// Projects of a source that wait for one another, this one first and again at the end. Which projects there are is known only once a source has
    /// been looked at, so that reading the configuration cannot refuse it.
    pub fn circle(&self, source: &Source, path: &str) -> Option<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut walks = vec![vec![path.to_owned()]];
        while let Some(walk) = walks.pop() {
            let at = walk.last()?;
            for on in self.settings(source, at).depends_on {
                // A project does not wait for itself where all of a source wait for one of them.
                let inside = on.split_once('/').filter(|(name, on)| *name == source.name && on != at);
                let Some((_, next)) = inside else { continue };
                let further: Vec<String> = walk.iter().cloned().chain([next.to_owned()]).collect();
                if next == path {
                    return Some(further);
                }
                if seen.insert(next.to_owned()) {
                    walks.push(further);
                }
            }
        }
        None
    }
}

/// The source of what is waited for: all of a source, or one project of it.
pub(super) fn source_of(on: &str) -> &str {
    on.split_once('/').map_or(on, |(source, _)| source)
}

/// Whether a directory is one that a pattern means. Names are compared from the top; `.` is the top itself.
fn matches_path(pattern: &str, path: &str) -> bool {
    fn names(text: &str) -> Vec<&str> {
        text.split('/').filter(|name| !matches!(*name, "" | ".")).collect()
    }
    fn all(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), _) => {
                all(rest, path) || path.split_first().is_some_and(|(_, path)| all(pattern, path))
            }
            (Some((name, rest)), Some((at, path))) => one(name.as_bytes(), at.as_bytes()) && all(rest, path),
            _ => false,
        }
    }
    // Greedy, with one place to come back to: the last `*` takes one more character.
    fn one(pattern: &[u8], name: &[u8]) -> bool {
        let (mut p, mut n, mut back) = (0, 0, None);
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    back = Some((p, n));
                    p += 1;
                }
                Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
                _ => match back {
                    Some((star, from)) => {
                        back = Some((star, from + 1));
                        (p, n) = (star + 1, from + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern.iter().skip(p).all(|byte| *byte == b'*')
    }
    all(&names(pattern), &names(path))
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
        return Err(format!("`{name}`: a name is 1 to 63 letters, digits, `-`, `_` and `.`"));
    }
    Ok(())
}

fn make_absolute(base: &Path, path: &mut PathBuf) -> Result<(), String> {
    *path = std::path::absolute(base.join(&*path)).map_err(|error| error.to_string())?;
    Ok(())
}

/// A secret of the controller's own comes from its environment or from a file.
pub(super) fn check_secret(base: &Path, secret: &mut SecretSource, what: &str) -> Result<(), String> {
    match secret {
        SecretSource::Env(_) => Ok(()),
        SecretSource::File(path) => make_absolute(base, path),
        other => Err(format!("{what} comes from `env` or `file`, not `{}`", other.kind())),
    }
}

impl Git {
    /// What is fetched.
    ///
    /// # Errors
    /// What is wrong with the URL or the ref.
    pub fn remote(&self) -> Result<Remote, GitError> {
        let reference = match (&self.branch, &self.tag, &self.commit) {
            (None, None, None) => Reference::Head,
            (Some(name), None, None) => Reference::Branch(name.clone()),
            (None, Some(name), None) => Reference::Tag(name.clone()),
            (None, None, Some(id)) => Reference::Commit(id.clone()),
            _ => {
                return Err(GitError::Invalid {
                    what: "the ref",
                    why: "is given more than once; expected one of `branch`, `tag`, `commit`".to_owned(),
                });
            }
        };
        Remote::new(&self.url, reference)
    }
}

/// Names of sources that wait for one another, the first again at the end.
fn cycle(sources: &[Source]) -> Option<Vec<String>> {
    // Projects of one source may wait for one another; which ones there are is not known here.
    let awaited = |s: &Source| -> Vec<String> {
        let inside = |on: &&String| on.contains('/') && source_of(on) == s.name;
        s.awaited().filter(|on| !inside(on)).map(|on| source_of(on).to_owned()).collect()
    };
    let edges: BTreeMap<&str, Vec<String>> = sources.iter().map(|s| (s.name.as_str(), awaited(s))).collect();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    // Whoever waits only for sources that are done is done; what is left at the end waits in a circle.
    loop {
        let ready: Vec<&str> = edges
            .iter()
            .filter(|(name, on)| !done.contains(*name) && on.iter().all(|on| done.contains(on.as_str())))
            .map(|(name, _)| *name)
            .collect();
        if ready.is_empty() {
            break;
        }
        done.extend(ready);
    }
    let mut at = edges.keys().copied().find(|name| !done.contains(name))?;
    let mut walk: Vec<String> = Vec::new();
    while !walk.iter().any(|name| name == at) {
        walk.push(at.to_owned());
        at = edges.get(at)?.iter().map(String::as_str).find(|on| !done.contains(on))?;
    }
    walk.push(at.to_owned());
    let start = walk.iter().position(|name| name == at)?;
    Some(walk.split_off(start))
}

fn yes() -> bool {
    true
}

fn top() -> String {
    ".".to_owned()
}

fn parallelism() -> usize {
    8
}

fn interval() -> Duration {
    Duration::from_secs(60)
}

fn resync() -> Duration {
    Duration::from_secs(600)
}

fn timeout() -> Duration {
    Duration::from_secs(600)
}

fn first_retry() -> Duration {
    Duration::from_secs(5)
}

fn last_retry() -> Duration {
    Duration::from_secs(300)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.yaml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_source_has_defaults() {
        let config = read(
            "version: 1\nsources:\n  - name: shop\n    git: { url: https://h/shop.git, branch: main }\n",
        )
        .unwrap();
        let source = &config.sources[0];
        assert!(source.self_heal && !source.prune && !source.allow_data_loss && !source.allow.host_paths);
        assert_eq!(source.interval, Duration::from_secs(60));
        assert_eq!(source.git.as_ref().unwrap().projects, Projects::One);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let error = read("version: 1\nsources:\n  - name: shop\n    gti: {}\n").unwrap_err();
        assert!(error.contains("gti") && error.contains("line 4"), "{error}");
        let source = |rest: &str| {
            read(&format!("version: 1\nsources:\n  - name: a\n    directory: x\n{rest}")).unwrap_err()
        };
        for (rest, expected) in [
            ("    account: b\n", "not among `accounts`"),
            ("    overrides: [{ paths: [], prune: true }]\n", "no `paths`"),
            ("    overrides: [{ paths: [x], depends_on: [c/x] }]\n", "no source"),
            ("    notify: [{ name: x }]\n", "exactly one"),
            ("    notify: [{ name: x, webhook: { url: 'ftp://h' } }]\n", "http"),
            (
                "    notify: [{ name: x, commit_status: { forge: gitea, api: 'https://h', repository: o/r, token: { env: T } } }]\n",
                "git source",
            ),
            ("    git: { url: https://h/x }\n", "exactly one"),
            ("    interval: 10ms\n", "at least 1s"),
            ("    depends_on: [b]\n", "no source"),
            ("    depends_on: [a]\n", "a → a"),
            ("    windows: [{ allow: '9-5' }]\n", "HH:MM"),
            ("    webhook: { secret: { command: [x] } }\n", "`env` or `file`"),
            ("  - name: a\n    directory: y\n", "another of this name"),
        ] {
            let error = source(rest);
            assert!(error.contains(expected), "{rest}: {error}");
        }
    }

    #[test]
    fn overrides_are_laid_over_the_source_by_directory() {
        let config = read(
            "version: 1
accounts: { web: { env: [TOKEN], files: [secrets] } }
sources:
  - name: shop
    git: { url: https://h/shop.git, projects: many }
    prune: true
    overrides:
      - { paths: ['teams/**'], resync: 1h, drift: warn, depends_on: [shop/db] }
      - { paths: [teams/web, 'lab-*'], account: web, prune: false }
",
        )
        .unwrap();
        let of = |path| config.settings(&config.sources[0], path);
        assert!(of("db").prune && of("db").drift.is_none() && of("db").account == Account::default());
        let (web, lab) = (of("teams/web"), of("lab-1"));
        assert_eq!((web.resync, web.drift), (Duration::from_secs(3600), Some(DriftPolicy::Warn)));
        assert!(!web.prune && web.account.env == ["TOKEN"] && web.account.files[0].is_absolute());
        assert!(!lab.prune && lab.drift.is_none() && lab.depends_on.is_empty());
    }

    #[test]
    fn projects_of_a_source_that_wait_for_one_another_are_found() {
        let config = read(
            "version: 1
sources:
  - name: shop
    git: { url: https://h/shop.git, projects: many }
    depends_on: [shop/db]
    overrides:
      - { paths: [a], depends_on: [shop/db, shop/b] }
      - { paths: [b], depends_on: [shop/c] }
      - { paths: [c], depends_on: [shop/a] }
      - { paths: [before], depends_on: [shop/a] }
",
        )
        .unwrap();
        let circle = |path| config.circle(&config.sources[0], path).map(|circle| circle.join(" → "));
        assert_eq!(circle("a").as_deref(), Some("a → b → c → a"));
        assert_eq!(circle("c").as_deref(), Some("c → a → b → c"));
        // Whoever waits for a circle is not in it, and what all of the source wait for does not wait for itself.
        assert_eq!((circle("before"), circle("db"), circle("web")), (None, None, None));
    }

    #[test]
    fn a_pattern_means_whole_directories() {
        for (pattern, path, matches) in [
            ("web", "web", true),
            ("./web/", "web", true),
            ("web", "web2", false),
            ("web", "teams/web", false),
            ("teams/*", "teams/web", true),
            ("teams/*", "teams/a/web", false),
            ("**/web", "teams/a/web", true),
            ("**", ".", true),
            (".", ".", true),
            ("*", ".", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b", "abc", false),
            ("*a", "bab", false),
        ] {
            assert_eq!(matches_path(pattern, path), matches, "{pattern} {path}");
        }
    }
}
