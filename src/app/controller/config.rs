//! The controller's own file: what it follows and what it may do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::window::{Window, WindowError};
use crate::gitops::{GitError, Reference, Remote};
use crate::model::Duration;
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
    /// Change nothing; go on looking.
    #[serde(default)]
    pub suspend: bool,
    /// When changes may be made; always if empty.
    #[serde(default)]
    pub windows: Vec<Window>,
    /// Sources whose projects must all be in sync and healthy first.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// What manifests of this source may do beyond sandboxes.
    #[serde(default)]
    pub allow: Allow,
    /// Who may say that the source has changed.
    pub webhook: Option<Webhook>,
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
#[derive(Clone, Copy, Debug, Deserialize)]
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
    /// Variables of the controller's environment that manifests see, in templates and as secrets.
    pub env: Vec<String>,
    /// Paths of this machine outside the project's directory.
    pub host_paths: bool,
    /// Secrets from commands that run on this machine.
    pub command_secrets: bool,
    /// Secrets of the sealed vault.
    pub vault_secrets: bool,
    /// Sandboxes with the network of this machine.
    pub host_network: bool,
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
        let names: BTreeSet<String> = config.sources.iter().map(|source| source.name.clone()).collect();
        let mut seen = BTreeSet::new();
        for source in &mut config.sources {
            let twice = !seen.insert(source.name.clone());
            let checked = if twice {
                Err("there is another of this name".to_owned())
            } else {
                source.check(path, &names)
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
    fn check(&mut self, file: &Path, names: &BTreeSet<String>) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 63 || !self.name.chars().all(plain) {
            return Err("a name is 1 to 63 letters, digits, `-`, `_` and `.`".to_owned());
        }
        let base = file.parent().unwrap_or(Path::new("."));
        match (&self.git, &mut self.directory) {
            (Some(git), None) => {
                git.remote().map_err(|error| error.to_string())?;
                let path = Path::new(&git.path);
                let inside = path.components().all(|part| {
                    matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir)
                });
                if !inside || git.path.chars().any(char::is_control) {
                    return Err(format!("`path: {}` is not a path in the repository", git.path));
                }
            }
            (None, Some(directory)) => {
                let path = std::path::absolute(base.join(&*directory)).map_err(|error| error.to_string())?;
                *directory = path;
            }
            _ => return Err("expected exactly one of `git` and `directory`".to_owned()),
        }
        if self.interval < MIN_INTERVAL || self.resync < MIN_INTERVAL || self.timeout < MIN_INTERVAL {
            return Err(format!("`interval`, `resync` and `timeout` are at least {MIN_INTERVAL}"));
        }
        if let Some(unknown) = self.depends_on.iter().find(|name| !names.contains(*name)) {
            return Err(format!("`depends_on` names `{unknown}`, which is no source"));
        }
        if let Some(webhook) = &mut self.webhook {
            match &mut webhook.secret {
                SecretSource::Env(_) => {}
                SecretSource::File(path) => {
                    *path = std::path::absolute(base.join(&*path)).map_err(|error| error.to_string())?
                }
                other => {
                    return Err(format!(
                        "the secret of a webhook comes from `env` or `file`, not `{}`",
                        other.kind()
                    ));
                }
            }
        }
        self.windows.iter().try_for_each(Window::check).map_err(|error: WindowError| error.to_string())
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
    let edges: BTreeMap<&str, &[String]> =
        sources.iter().map(|s| (s.name.as_str(), s.depends_on.as_slice())).collect();
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
}
