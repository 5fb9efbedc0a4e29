//! Looking at a source: which projects it has now, and which of them changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Config, Controller, Error, Key, ProjectState, Projects, Source, jittered};
use crate::gitops::{Found, GitError, Mirror, Remote};
use crate::manifest;
use crate::model::Duration;
use crate::reconcile::observe::with_causes;
use crate::reconcile::queue::Ended;

/// What is looked at once for all sources that share it.
pub(super) struct Feed {
    pub from: From,
    pub sources: Vec<String>,
    interval: Duration,
    timeout: Duration,
}

pub(super) enum From {
    Git(Remote),
    Directory(PathBuf),
}

/// The feeds of all sources.
pub(super) fn feeds(config: &Config) -> Result<Vec<Feed>, Error> {
    let mut git: BTreeMap<Remote, Feed> = BTreeMap::new();
    let mut all = Vec::new();
    for source in &config.sources {
        let feed = |from| Feed {
            from,
            sources: vec![source.name.clone()],
            interval: source.interval,
            timeout: source.timeout,
        };
        if let Some(directory) = &source.directory {
            all.push(feed(From::Directory(directory.clone())));
        }
        if let Some(settings) = &source.git {
            let remote = settings.remote().map_err(|error| Error::Refused { message: error.to_string() })?;
            match git.get_mut(&remote) {
                Some(shared) => {
                    shared.sources.push(source.name.clone());
                    shared.interval = shared.interval.min(source.interval);
                    shared.timeout = shared.timeout.max(source.timeout);
                }
                None => {
                    git.insert(remote.clone(), feed(From::Git(remote)));
                }
            }
        }
    }
    all.extend(git.into_values());
    Ok(all)
}

/// The URL or directory of a source.
pub(super) fn from(source: &Source) -> String {
    match (&source.git, &source.directory) {
        (Some(git), _) => git.url.clone(),
        (None, Some(directory)) => directory.display().to_string(),
        (None, None) => String::new(),
    }
}

impl Controller {
    /// Looks at a feed; returns the projects that have something to do.
    pub(super) async fn look(&self, feed: usize) -> (Ended, Vec<Key>) {
        let Some(feed) = self.feeds.get(feed) else {
            return (Ended::Failed { retry_after: None }, Vec::new());
        };
        let mut changed = Vec::new();
        let failed = match &feed.from {
            From::Directory(directory) => {
                feed.sources
                    .iter()
                    .for_each(|source| changed.extend(self.look_at_directory(source, directory)));
                false
            }
            From::Git(remote) => match self.fetch(remote, feed.timeout).await {
                Ok((mirror, commit)) => {
                    for name in &feed.sources {
                        changed.extend(self.look_at_commit(name, &mirror, remote, &commit).await);
                    }
                    false
                }
                Err(error) => {
                    self.metrics.error("git");
                    // Not having the ref is an answer; whatever was good stays.
                    let answered = matches!(error, GitError::NoSuchRef(_));
                    feed.sources.iter().for_each(|name| self.looked(name, None, with_causes(&error)));
                    !answered
                }
            },
        };
        let ended = if failed {
            Ended::Failed { retry_after: None }
        } else {
            Ended::Converged { resync: jittered(feed.interval) }
        };
        (ended, changed)
    }

    async fn fetch(&self, remote: &Remote, timeout: Duration) -> Result<(Mirror, String), GitError> {
        let mirror = Mirror::open(&self.mirrors, remote.url()).await?;
        self.metrics.polls.inc();
        let (commit, fetched) = mirror.follow(remote, timeout.into()).await?;
        if fetched {
            self.metrics.fetches.inc();
        }
        Ok((mirror, commit))
    }

    fn looked(&self, name: &str, revision: Option<&str>, message: String) {
        let now = self.now();
        if let Some(source) = self.state().sources.get_mut(name) {
            source.looked = true;
            source.message = message;
            source.looked_at = Some(now);
            if let Some(revision) = revision {
                source.revision = Some(revision.to_owned());
            }
        }
    }

    async fn look_at_commit(&self, name: &str, mirror: &Mirror, remote: &Remote, commit: &str) -> Vec<Key> {
        let Some(source) = self.source(name) else { return Vec::new() };
        let Some(git) = &source.git else { return Vec::new() };
        // The same commit has the same projects.
        if self
            .state()
            .sources
            .get(name)
            .is_some_and(|known| known.message.is_empty() && known.revision.as_deref() == Some(commit))
        {
            self.looked(name, Some(commit), String::new());
            return Vec::new();
        }
        let many = git.projects == Projects::Many;
        let (found, message) = match mirror.projects(remote, commit, &git.path, many).await {
            Ok(found) => (found, String::new()),
            // The revision can be read, and does not have it.
            Err(error @ GitError::NoSuchPath { .. }) => (Vec::new(), error.to_string()),
            Err(error) => {
                self.metrics.error("git");
                self.looked(name, None, with_causes(&error));
                return Vec::new();
            }
        };
        self.looked(name, Some(commit), message);
        self.note(source, commit, found, many)
    }

    /// Notes what a revision has; returns what changed.
    fn note(&self, source: &Source, commit: &str, found: Vec<Found>, many: bool) -> Vec<Key> {
        let mut state = self.state();
        let mut changed = Vec::new();
        // All projects gone at once is more likely a mistake than a wish.
        let emptied = many && found.is_empty() && state.projects.keys().any(|(name, _)| *name == source.name);
        let mut seen: BTreeMap<Key, Found> =
            found.into_iter().map(|f| ((source.name.clone(), f.path.clone()), f)).collect();
        for (key, project) in state.projects.iter_mut().filter(|((name, _), _)| *name == source.name) {
            if !seen.contains_key(key) && !emptied && !project.gone {
                project.gone = true;
                project.generation += 1;
                changed.push(key.clone());
            }
        }
        if emptied {
            let message =
                "the revision has no project any more; all of them are kept as they were".to_owned();
            if let Some(known) = state.sources.get_mut(&source.name) {
                known.message = message;
            }
        }
        while let Some((key, found)) = seen.pop_first() {
            let project = state.projects.entry(key.clone()).or_insert_with(|| ProjectState::new(&found.path));
            let same = |known: &Found| known.tree == found.tree && known.manifest == found.manifest;
            let new = project.gone || !project.newest.as_ref().is_some_and(|(_, known)| same(known));
            project.gone = false;
            project.newest = Some((commit.to_owned(), found));
            if new {
                project.bad = None;
                project.generation += 1;
                changed.push(key);
            }
        }
        changed
    }

    /// A directory of this machine is used in place: there is no revision, and every look is a reconcile.
    fn look_at_directory(&self, name: &str, directory: &Path) -> Vec<Key> {
        let key = (name.to_owned(), ".".to_owned());
        let found =
            manifest::discover(directory, &BTreeMap::new()).ok().and_then(|files| files.into_iter().next());
        let Some(file) = found.filter(|file| file.parent() == Some(directory)) else {
            // A directory that is not there may be one that is not mounted: nothing is concluded from that.
            self.looked(name, None, format!("there is no pocketenv.yaml in {}", directory.display()));
            return Vec::new();
        };
        self.looked(name, None, String::new());
        let file_name =
            |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let found = Found {
            path: ".".to_owned(),
            name: file_name(directory),
            tree: String::new(),
            manifest: file_name(&file),
        };
        let mut state = self.state();
        let project = state.projects.entry(key.clone()).or_insert_with(|| ProjectState::new("."));
        project.newest = Some((String::new(), found));
        project.bad = None;
        vec![key]
    }
}
