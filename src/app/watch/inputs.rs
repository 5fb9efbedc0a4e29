//! The files that a manifest consists of, and their changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::time::Instant;

use crate::app::{Error, Selection};
use crate::manifest::Resolved;
use crate::watch::{Changes, Debounce, Files, News, Tree};

/// An editor writes a file in several goes.
const PAUSE: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_millis(500);

/// The files that a manifest consists of.
pub(super) struct Inputs {
    cwd: PathBuf,
    /// `--env-file`.
    env_files: Vec<PathBuf>,
    paths: BTreeSet<PathBuf>,
    /// Where a file that would join the manifest, such as an override, may appear.
    folders: BTreeSet<PathBuf>,
    files: Files,
    news: News,
    /// Directories that are brought inside as they are, each with its own watcher.
    sources: Vec<Source>,
    broken: bool,
    pending: Changes,
    debounce: Debounce,
}

struct Source {
    tree: Tree,
    files: Files,
    news: News,
    marked: bool,
}

impl Inputs {
    pub fn new(cwd: &Path, resolved: &Resolved, selection: &Selection) -> Result<Self, Error> {
        let files = Files::new()?;
        let news = files.news();
        let mut inputs = Self {
            cwd: cwd.to_owned(),
            env_files: selection.env_files.clone(),
            paths: BTreeSet::new(),
            folders: BTreeSet::new(),
            files,
            news,
            sources: Vec::new(),
            broken: false,
            pending: Changes::default(),
            debounce: Debounce::new(PAUSE, CAP),
        };
        inputs.renew(resolved)?;
        Ok(inputs)
    }

    /// Watches what a good manifest consists of now.
    pub fn renew(&mut self, resolved: &Resolved) -> Result<(), Error> {
        self.broken = false;
        let manifests: BTreeSet<PathBuf> = resolved.files.iter().map(|file| self.cwd.join(file)).collect();
        let env_files = self.env_files.iter().map(|file| self.cwd.join(file));
        let (folders, inputs): (Vec<PathBuf>, Vec<PathBuf>) =
            resolved.inputs.iter().cloned().chain(env_files).partition(|path| path.is_dir());
        self.folders = manifests.iter().filter_map(|file| Some(file.parent()?.to_owned())).collect();
        self.paths = manifests.into_iter().chain(inputs).collect();
        let links: Vec<PathBuf> =
            self.paths.iter().filter_map(|path| std::fs::canonicalize(path).ok()).collect();
        self.paths.extend(links);
        // Parents: an editor puts a new file in the place of the old one.
        let parents: BTreeSet<PathBuf> =
            self.paths.iter().filter_map(|path| Some(path.parent()?.to_owned())).collect();
        let gone: Vec<PathBuf> = self.files.watched().difference(&parents).cloned().collect();
        gone.iter().for_each(|folder| self.files.remove(folder));
        for parent in &parents {
            self.files.add(parent)?;
        }
        let canonical = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folders: BTreeSet<PathBuf> = folders.iter().map(|path| canonical(path)).collect();
        self.sources.retain(|source| folders.contains(source.tree.root()));
        for folder in folders {
            if self.sources.iter().all(|source| *source.tree.root() != folder) {
                let (mut tree, mut files) = (Tree::new(folder, None), Files::new()?);
                tokio::task::block_in_place(|| tree.look(&mut files))?;
                let news = files.news();
                self.sources.push(Source { tree, files, news, marked: false });
            }
        }
        Ok(())
    }

    /// Comes back when something changed, with which file and what happened to it. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> String {
        loop {
            let due = self.debounce.due().map(Instant::from_std);
            let is_due = {
                let sources = self.sources.iter().map(|source| &source.news);
                let storm = sources.chain([&self.news]).map(|news| Box::pin(news.wait()));
                tokio::select! {
                    Some(()) = OptionFuture::from(due.map(tokio::time::sleep_until)) => true,
                    _ = futures::future::select_all(storm) => false,
                }
            };
            if is_due {
                self.debounce.clear();
                if let Some(why) = self.what_changed() {
                    return why;
                }
                continue;
            }
            let changes = self.news.take();
            self.pending.lost |= changes.lost;
            self.pending.paths.extend(changes.paths);
            for source in &mut self.sources {
                let changes = source.news.take();
                source.marked |= changes.lost || !changes.paths.is_empty();
                if changes.lost {
                    source.tree.mark_all();
                }
                changes.paths.keys().for_each(|path| {
                    source.tree.mark(path);
                });
            }
            self.debounce.note(std::time::Instant::now());
        }
    }

    fn what_changed(&mut self) -> Option<String> {
        let pending = std::mem::take(&mut self.pending);
        let shown = |path: &Path| path.strip_prefix(&self.cwd).unwrap_or(path).display().to_string();
        let mut why = pending.lost.then(|| "file events were lost".to_owned());
        for source in &mut self.sources {
            if !std::mem::take(&mut source.marked) {
                continue;
            }
            let before = source.tree.sha256();
            // Why it cannot be read is said when the manifest is.
            let unreadable = tokio::task::block_in_place(|| source.tree.look(&mut source.files)).is_err();
            if unreadable || source.tree.sha256() != before {
                why.get_or_insert_with(|| format!("{} changed", shown(source.tree.root())));
            }
        }
        for (path, what) in &pending.paths {
            if self.is_input(path) {
                why.get_or_insert_with(|| format!("{} {what}", shown(path)));
            }
        }
        why
    }

    /// Whether the manifest consists of this file, or would.
    fn is_input(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let joins = name.starts_with("pocketenv.") && (name.ends_with(".yaml") || name.ends_with(".yml"));
        self.paths.contains(path)
            || (joins && path.parent().is_some_and(|parent| self.folders.contains(parent)))
    }

    /// Everything may have changed.
    pub fn look_again(&mut self) {
        self.pending.lost = true;
        self.debounce.note(std::time::Instant::now());
    }

    /// Whether the manifest was not valid when it was read last.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// It is not valid now.
    pub fn set_broken(&mut self) {
        self.broken = true;
    }
}
