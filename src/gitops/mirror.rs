//! A bare copy of one repository, shared by everything that follows it.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::git::Git;
use super::{GitError, Reference, Remote};
use crate::model::sha256_hex;

/// The most that a mirror may hold.
pub const MAX_MIRROR_BYTES: u64 = 2 << 30;
/// The most projects of one source.
pub const MAX_PROJECTS: usize = 10_000;
/// More packs than this are made one.
const MAX_PACKS: usize = 30;
/// More loose objects than this, of those whose id begins with one byte in particular, are packed.
const MAX_LOOSE: usize = 8;
/// How long git may take for what needs no network.
pub(super) const LOCAL: Duration = Duration::from_secs(60);
/// The pause between two looks at a lock that another process holds.
const PAUSE: Duration = Duration::from_millis(50);
/// What a project's manifest is called.
const MANIFESTS: [&str; 2] = ["pocketenv.yaml", "pocketenv.yml"];

/// A bare copy of one repository. It holds the newest commit of each ref that is followed, without history.
#[derive(Clone, Debug)]
pub struct Mirror {
    pub(super) dir: PathBuf,
}

/// A project of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its directory in the repository, `.` for the top.
    pub path: String,
    /// What it is called if its manifest does not say.
    pub name: String,
    /// The hash of everything in its directory.
    pub tree: String,
    /// The manifest, in that directory.
    pub manifest: String,
}

/// One entry of a tree.
pub(super) struct Entry {
    pub mode: String,
    pub kind: String,
    pub id: String,
    /// Bytes, of a file.
    pub size: u64,
    pub path: String,
}

impl Mirror {
    /// The mirror of `url` below `root`, made if there is none.
    ///
    /// # Errors
    /// What the system or git answers.
    pub async fn open(root: &Path, url: &str) -> Result<Self, GitError> {
        let dir = root.join(sha256_hex(url.as_bytes()));
        std::fs::create_dir_all(&dir).map_err(GitError::io("make", &dir))?;
        if !dir.join("HEAD").exists() {
            Git::new("init", &dir, ["--bare", "--quiet", "--template="], LOCAL).run().await?.good()?;
        }
        Ok(Self { dir })
    }

    /// The commit that the remote's ref is at now. It is fetched if it is not here yet; the answer tells whether it was. Whatever the ref was
    /// at before does not matter: a rewritten history is followed like any other.
    ///
    /// # Errors
    /// [`GitError::NoSuchRef`] if the remote answered that there is no such ref.
    pub async fn follow(&self, remote: &Remote, limit: Duration) -> Result<(String, bool), GitError> {
        let local =
            format!("refs/pocketenv/{}", &sha256_hex(remote.reference().to_string().as_bytes())[..16]);
        let wanted = match remote.reference() {
            Reference::Commit(id) => id.clone(),
            reference => self.ask(remote, reference, limit).await?,
        };
        if self.resolve(&local).await?.is_some_and(|have| have == wanted) {
            return Ok((self.commit(&wanted).await?, false));
        }
        let _lock = self.lock(limit).await?;
        let spec = format!("+{wanted}:{local}");
        let quiet =
            ["--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--"];
        let arguments = quiet.into_iter().chain([remote.url(), &spec]);
        Git::new("fetch", &self.dir, arguments, limit).disk(MAX_MIRROR_BYTES).run().await?.good()?;
        self.tidy(limit).await?;
        Ok((self.commit(&wanted).await?, true))
    }

    /// Throws away what no followed ref has any more, once there is much of it: every fetch leaves a pack, and nobody else tidies.
    async fn tidy(&self, limit: Duration) -> Result<(), GitError> {
        let packs = std::fs::read_dir(self.dir.join("objects/pack")).map_or(0, |packs| {
            packs.flatten().filter(|file| file.path().extension().is_some_and(|e| e == "pack")).count()
        });
        let loose = std::fs::read_dir(self.dir.join("objects/17")).map_or(0, Iterator::count);
        if packs > MAX_PACKS || loose > MAX_LOOSE {
            Git::new("gc", &self.dir, ["--quiet", "--prune=now"], limit).run().await?.good()?;
        }
        Ok(())
    }

    /// What the remote says that a ref is at.
    async fn ask(&self, remote: &Remote, reference: &Reference, limit: Duration) -> Result<String, GitError> {
        let name = reference.full_name().unwrap_or_default();
        let arguments = ["--exit-code", "--quiet", "--", remote.url(), &name];
        let answer = Git::new("ls-remote", &self.dir, arguments, limit).run().await?;
        let missing = || GitError::NoSuchRef(reference.to_string());
        if answer.code == Some(2) {
            return Err(missing());
        }
        let out =
            String::from_utf8(answer.good()?).map_err(|_| GitError::Garbled { operation: "ls-remote" })?;
        // The name is a pattern to git, which also finds `refs/heads/a/refs/heads/b`.
        let found = out.lines().filter_map(|line| line.split_once('\t')).find(|(_, found)| *found == name);
        let (id, _) = found.ok_or_else(missing)?;
        Remote::new(remote.url(), Reference::Commit(id.to_owned()))
            .map(|_| id.to_owned())
            .map_err(|_| GitError::Garbled { operation: "ls-remote" })
    }

    /// The id that a name stands for here, if it is here.
    async fn resolve(&self, name: &str) -> Result<Option<String>, GitError> {
        let answer =
            Git::new("rev-parse", &self.dir, ["--verify", "--quiet", "--end-of-options", name], LOCAL)
                .run()
                .await?;
        match answer.code {
            Some(1) => Ok(None),
            _ => Ok(Some(String::from_utf8_lossy(&answer.good()?).trim().to_owned())),
        }
    }

    /// The commit of what may be an annotated tag.
    async fn commit(&self, id: &str) -> Result<String, GitError> {
        let found = self.resolve(&format!("{id}^{{commit}}")).await?;
        found.ok_or_else(|| GitError::NoSuchRef(format!("commit {id}")))
    }

    /// One writer per mirror, whatever process it is in.
    async fn lock(&self, limit: Duration) -> Result<File, GitError> {
        let path = self.dir.join("pocketenv.lock");
        let file =
            File::options().create(true).append(true).open(&path).map_err(GitError::io("open", &path))?;
        let deadline = Instant::now() + limit;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                Err(TryLockError::WouldBlock) => {
                    return Err(GitError::TimedOut { operation: "fetch", limit });
                }
                Err(TryLockError::Error(source)) => return Err(GitError::io("lock", &path)(source)),
            }
        }
    }

    /// The projects of a commit: the one at `path` (a manifest, or a directory with a `pocketenv.yaml`), or, of `many`, every directory at or
    /// below `path` that has one.
    ///
    /// # Errors
    /// [`GitError::NoSuchPath`] if there is nothing at `path`, and if there is no manifest where one is expected.
    pub async fn projects(
        &self,
        remote: &Remote,
        commit: &str,
        path: &str,
        many: bool,
    ) -> Result<Vec<Found>, GitError> {
        let path = path.trim_matches('/');
        let missing = || GitError::NoSuchPath { path: path.to_owned(), revision: short(commit).to_owned() };
        let (kind, id) = self
            .object(&format!("{commit}:{}", if path == "." { "" } else { path }))
            .await?
            .ok_or_else(missing)?;
        let (base, tree, only) = match kind.as_str() {
            "tree" => (path, id, None),
            "blob" if !many => {
                let (base, file) = path.rsplit_once('/').unwrap_or(("", path));
                let (_, tree) = self.object(&format!("{commit}:{base}")).await?.ok_or_else(missing)?;
                (base, tree, Some(file))
            }
            _ => return Err(missing()),
        };
        let base = if base == "." { "" } else { base };
        let name = |dir: &str| match dir.rsplit('/').next() {
            None | Some("") => remote.repository().to_owned(),
            Some(name) => name.to_owned(),
        };
        let found = |path: &str, tree: &str, manifest: &str| Found {
            path: if path.is_empty() { ".".to_owned() } else { path.to_owned() },
            name: name(path),
            tree: tree.to_owned(),
            manifest: manifest.to_owned(),
        };
        if let Some(manifest) = only {
            return Ok(vec![found(base, &tree, manifest)]);
        }
        let wanted = |mode: &str, path: &str| {
            mode == "040000" || MANIFESTS.contains(&path.rsplit('/').next().unwrap_or_default())
        };
        let entries = self.tree(&tree, many, false, wanted).await?;
        let trees: BTreeMap<&str, &str> =
            entries.iter().filter(|e| e.kind == "tree").map(|e| (e.path.as_str(), e.id.as_str())).collect();
        let mut all: BTreeMap<String, Found> = BTreeMap::new();
        for entry in entries.iter().filter(|e| e.mode.starts_with("100")) {
            let (dir, file) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
            let id = if dir.is_empty() { Some(tree.as_str()) } else { trees.get(dir).copied() };
            let (true, Some(id)) = (MANIFESTS.contains(&file), id) else { continue };
            let full = [base, dir].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
            // `pocketenv.yaml` comes before `pocketenv.yml`.
            all.entry(full.clone()).or_insert_with(|| found(&full, id, file));
        }
        if all.len() > MAX_PROJECTS {
            let what = format!("the number of projects ({})", all.len());
            return Err(GitError::TooLarge { what, limit: MAX_PROJECTS.to_string() });
        }
        if all.is_empty() && !many {
            let path = [base, MANIFESTS[0]]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/");
            return Err(GitError::NoSuchPath { path, revision: short(commit).to_owned() });
        }
        Ok(all.into_values().collect())
    }

    /// The kind and id of what a name stands for.
    async fn object(&self, name: &str) -> Result<Option<(String, String)>, GitError> {
        let operation = "cat-file";
        let input = format!("{name}\n").into_bytes();
        let out = Git::new(operation, &self.dir, ["--batch-check=%(objecttype) %(objectname)"], LOCAL)
            .input(input)
            .run()
            .await?
            .good()?;
        let out = String::from_utf8_lossy(&out);
        match out.trim_end().split_once(' ') {
            Some((kind @ ("tree" | "blob" | "commit"), id)) => Ok(Some((kind.to_owned(), id.to_owned()))),
            _ => Ok(None),
        }
    }

    /// The entries of a tree that are wanted, by mode and path; of all below it if `deep`, with their sizes if `sizes`.
    pub(super) async fn tree(
        &self,
        id: &str,
        deep: bool,
        sizes: bool,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Result<Vec<Entry>, GitError> {
        let operation = "ls-tree";
        let arguments = ["-z", "--full-tree"]
            .into_iter()
            .chain(sizes.then_some("-l"))
            .chain(deep.then_some(["-r", "-t"]).into_iter().flatten())
            .chain([id]);
        let out = Git::new(operation, &self.dir, arguments, LOCAL).run().await?.good()?;
        let garbled = || GitError::Garbled { operation };
        let mut entries = Vec::new();
        for record in out.split(|b| *b == 0).filter(|record| !record.is_empty()) {
            let tab = record.iter().position(|b| *b == b'\t').ok_or_else(garbled)?;
            let (head, path) = (String::from_utf8_lossy(&record[..tab]), &record[tab + 1..]);
            let mut words = head.split_whitespace();
            let (Some(mode), Some(kind), Some(id)) = (words.next(), words.next(), words.next()) else {
                return Err(garbled());
            };
            let Ok(path) = std::str::from_utf8(path) else {
                // Whose directory it is in cannot be used; others can.
                if !sizes {
                    continue;
                }
                let path = String::from_utf8_lossy(path).into_owned();
                return Err(GitError::Unsupported { path, why: "has a name that is not UTF-8" });
            };
            if !wanted(mode, path) {
                continue;
            }
            let size = match words.next() {
                None | Some("-") => 0,
                Some(size) => size.parse().map_err(|_| garbled())?,
            };
            let [mode, kind, id, path] = [mode, kind, id, path].map(str::to_owned);
            entries.push(Entry { mode, kind, id, size, path });
        }
        Ok(entries)
    }
}

/// Enough of an id for people.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn what_was_followed_long_ago_takes_no_place_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let output = Command::new("git")
                .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"])
                .args(arguments)
                .current_dir(root.path())
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .env("GIT_CONFIG_NOSYSTEM", "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        git(&["init", "--quiet", "--initial-branch=main"]);
        let url = root.path().display().to_string();
        let remote = Remote::new(&url, Reference::Branch("main".to_owned())).unwrap();
        let mirror = Mirror::open(&root.path().join("mirrors"), &url).await.unwrap();
        let mut most = 0;
        for n in 0..8 {
            std::fs::write(root.path().join("pocketenv.yaml"), format!("version: 1\nname: n{n}\n")).unwrap();
            git(&["add", "pocketenv.yaml"]);
            git(&["commit", "--quiet", "-m", "change"]);
            let (commit, fetched) = mirror.follow(&remote, LOCAL).await.unwrap();
            assert!(fetched);
            // Many looks in a short time, as packs or loose objects.
            for copy in 0..MAX_LOOSE {
                let dir = mirror.dir.join("objects/17");
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join(format!("tmp_obj_{n}_{copy}")), "").unwrap();
            }
            most = most.max(std::fs::read_dir(mirror.dir.join("objects/17")).map_or(0, Iterator::count));
            assert_eq!(mirror.projects(&remote, &commit, ".", true).await.unwrap().len(), 1);
        }
        assert!(most <= 2 * MAX_LOOSE + 1, "{most} are left");
    }
}
