//! Looking at a source: which projects it has now, and which of them changed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{Config, Controller, Error, Key, ProjectState, Projects, Source, jittered};
use crate::gitops::{Found, GitError, MAX_PROJECTS, Mirror, Remote};
use crate::model::with_causes;
use crate::model::{Duration, Timestamp};
use crate::reconcile::queue::Ended;

/// The most files and directories that are looked at below a directory.
const MAX_ENTRIES: usize = 200_000;
/// What a project's manifest is called.
const MANIFESTS: [&str; 2] = ["pocketenv.yaml", "pocketenv.yml"];

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
        // What is found is at least as new as this.
        let began = self.now();
        let failed = match &feed.from {
            From::Directory(directory) => {
                for source in &feed.sources {
                    changed.extend(self.look_at_directory(source, directory, began).await);
                }
                false
            }
            From::Git(remote) => match self.fetch(remote, feed.timeout).await {
                Ok((mirror, commit)) => {
                    for name in &feed.sources {
                        changed.extend(self.look_at_commit(name, &mirror, remote, &commit, began).await);
                    }
                    false
                }
                Err(error) => {
                    self.metrics.error("git");
                    // Not having the ref is an answer; whatever was good stays.
                    let answered = matches!(error, GitError::NoSuchRef(_));
                    feed.sources.iter().for_each(|name| self.looked(name, began, None, with_causes(&error)));
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

    fn looked(&self, name: &str, began: Timestamp, revision: Option<&str>, message: String) {
        if let Some(source) = self.state().sources.get_mut(name) {
            source.looked = true;
            source.message = message;
            source.looked_at = Some(began);
            if let Some(revision) = revision {
                source.revision = Some(revision.to_owned());
            }
        }
    }

    async fn look_at_commit(
        &self,
        name: &str,
        mirror: &Mirror,
        remote: &Remote,
        commit: &str,
        began: Timestamp,
    ) -> Vec<Key> {
        let Some(source) = self.source(name) else { return Vec::new() };
        let Some(git) = &source.git else { return Vec::new() };
        // The same commit has the same projects.
        if self
            .state()
            .sources
            .get(name)
            .is_some_and(|known| known.message.is_empty() && known.revision.as_deref() == Some(commit))
        {
            self.looked(name, began, Some(commit), String::new());
            return Vec::new();
        }
        let many = git.projects == Projects::Many;
        let (found, message) = match mirror.projects(remote, commit, &git.path, many).await {
            Ok(found) => (found, String::new()),
            // The revision can be read, and does not have it.
            Err(error @ GitError::NoSuchPath { .. }) => (Vec::new(), error.to_string()),
            Err(error) => {
                self.metrics.error("git");
                self.looked(name, began, None, with_causes(&error));
                return Vec::new();
            }
        };
        self.looked(name, began, Some(commit), message);
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

    /// A directory of this machine is used in place: there is no revision, and what is in it tells by its files whether it changed.
    async fn look_at_directory(&self, name: &str, directory: &Path, began: Timestamp) -> Vec<Key> {
        let Some(source) = self.source(name) else { return Vec::new() };
        let (path, many) = (directory.to_owned(), source.projects == Some(Projects::Many));
        let found =
            tokio::task::spawn_blocking(move || if many { all_in(&path) } else { one_in(&path) }).await;
        match found.unwrap_or_else(|_| Err("looking at it was given up".to_owned())) {
            Ok(found) => {
                self.looked(name, began, None, String::new());
                self.note(source, "", found, many)
            }
            // A directory that is not there may be one that is not mounted: nothing is concluded from that.
            Err(message) => {
                self.looked(name, began, None, message);
                Vec::new()
            }
        }
    }
}

/// The project in a directory.
fn one_in(directory: &Path) -> Result<Vec<Found>, String> {
    let missing = || format!("there is no pocketenv.yaml in {}", directory.display());
    let manifest = MANIFESTS.iter().find(|name| directory.join(name).is_file()).ok_or_else(missing)?;
    let mut seen = 0;
    let tree = fingerprint(directory, &mut seen, &mut BTreeSet::new())?;
    Ok(vec![Found {
        path: ".".to_owned(),
        name: last_name(directory),
        tree,
        manifest: (*manifest).to_owned(),
    }])
}

/// Every directory at or below this one that has a manifest. What is hidden and what is linked does not count.
fn all_in(directory: &Path) -> Result<Vec<Found>, String> {
    let mut seen = 0;
    let mut projects = BTreeSet::new();
    fingerprint(directory, &mut seen, &mut projects)?;
    if projects.len() > MAX_PROJECTS {
        return Err(format!("{} has more than {MAX_PROJECTS} projects", directory.display()));
    }
    let mut all = Vec::new();
    for path in projects {
        let within = path.strip_prefix(directory).unwrap_or(&path).display().to_string();
        for mut found in one_in(&path)? {
            found.path = if within.is_empty() { ".".to_owned() } else { within.clone() };
            all.push(found);
        }
    }
    Ok(all)
}

fn last_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Tells one state of a directory from another by names, sizes and times of what is in it; notes directories with manifests.
fn fingerprint(
    directory: &Path,
    seen: &mut usize,
    projects: &mut BTreeSet<PathBuf>,
) -> Result<String, String> {
    let mut hasher = Sha256::new();
    let mut left = vec![directory.to_owned()];
    while let Some(dir) = left.pop() {
        let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", dir.display());
        let entries: Result<Vec<_>, _> = std::fs::read_dir(&dir).map_err(unreadable)?.collect();
        let mut entries = entries.map_err(unreadable)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            *seen += 1;
            if *seen > MAX_ENTRIES {
                return Err(format!("{} holds more than {MAX_ENTRIES} files", directory.display()));
            }
            let Ok(metadata) = entry.metadata() else { continue };
            let path = entry.path();
            hasher.update(path.as_os_str().as_encoded_bytes());
            hasher.update([0]);
            hasher.update(metadata.mode().to_be_bytes());
            if metadata.is_dir() {
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    left.push(path);
                }
                continue;
            }
            for number in [metadata.ino(), metadata.len()] {
                hasher.update(number.to_be_bytes());
            }
            for number in [metadata.mtime(), metadata.mtime_nsec()] {
                hasher.update(number.to_be_bytes());
            }
            if metadata.is_file() && MANIFESTS.iter().any(|name| *entry.file_name() == **name) {
                projects.insert(dir.clone());
            }
        }
    }
    Ok(hex::encode(hasher.finalize()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_projects_tells_which_of_them_changed() {
        let root = tempfile::tempdir().unwrap();
        for (path, name) in
            [("a", "pocketenv.yaml"), ("teams/b", "pocketenv.yml"), (".hidden", "pocketenv.yaml")]
        {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
            std::fs::write(root.path().join(path).join(name), "version: 1\n").unwrap();
        }
        std::os::unix::fs::symlink(root.path().join("a"), root.path().join("linked")).unwrap();
        let trees = || -> BTreeMap<String, String> {
            all_in(root.path()).unwrap().into_iter().map(|f| (f.path, f.tree)).collect()
        };
        let before = trees();
        assert_eq!(before.keys().collect::<Vec<_>>(), ["a", "teams/b"]);
        assert_eq!(trees(), before);
        std::fs::write(root.path().join("teams/b/file"), "x").unwrap();
        let after = trees();
        assert_eq!(after["a"], before["a"]);
        assert_ne!(after["teams/b"], before["teams/b"]);
        assert!(one_in(root.path()).unwrap_err().contains("no pocketenv.yaml"));
    }
}
