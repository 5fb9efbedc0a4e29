//! What a build takes from its context: entries of the one walk, so that what an ignore file leaves out is not there, packed under the names
//! that they get in the image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::containerfile::Inline;
use crate::image::{Hashing, is_archive};
use crate::tree::{TreeEntry, TreeKind};

/// How many links may lead to each other.
const MAX_LINKS: usize = 40;

/// The context of a build.
pub struct Context {
    root: PathBuf,
    entries: BTreeMap<String, TreeKind>,
}

/// One file or directory that is copied, under the name that it gets.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Item {
    /// Below the target.
    pub name: String,
    /// Below the context. Where it lies there is nothing to the image.
    #[serde(skip)]
    pub path: String,
    /// What it is.
    pub kind: TreeKind,
}

/// What one instruction copies.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Selection {
    /// In the order in which they are written.
    pub items: Vec<Item>,
    /// Texts of the Containerfile: name and content.
    pub texts: Vec<(String, String)>,
    /// Archives that `ADD` unpacks.
    pub archives: Vec<Item>,
    /// Whether they belong into a directory: there are several, or it is one.
    pub into: bool,
}

impl Context {
    /// Of the entries of a walk.
    pub fn new(root: PathBuf, entries: Vec<TreeEntry>) -> Context {
        Context { root, entries: entries.into_iter().map(|entry| (entry.path, entry.kind)).collect() }
    }

    /// The path that a source leads to, links followed, all within the context.
    fn follow(&self, source: &str) -> Result<String, String> {
        let shown = source.escape_debug().to_string();
        let mut todo: Vec<String> = Vec::new();
        let push = |todo: &mut Vec<String>, path: &str| {
            let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            todo.extend(parts.into_iter().rev().map(str::to_owned));
        };
        push(&mut todo, source);
        let (mut at, mut links) = (Vec::<String>::new(), 0);
        while let Some(part) = todo.pop() {
            if part == ".." {
                if at.pop().is_none() {
                    return Err(format!("`{shown}` leads out of the context"));
                }
                continue;
            }
            at.push(part);
            if let Some(TreeKind::Symlink { target }) = self.entries.get(&at.join("/")) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(format!("`{shown}` is a link that leads in a circle"));
                }
                if target.starts_with('/') {
                    return Err(format!("`{shown}` is a link that leads out of the context"));
                }
                at.pop();
                push(&mut todo, target);
            }
        }
        Ok(at.join("/"))
    }

    /// What the sources stand for.
    ///
    /// # Errors
    /// A source that is not there, leads out of the context, or is an archive of a kind that is not unpacked.
    pub fn select(&self, sources: &[String], inline: &[Inline], is_add: bool) -> Result<Selection, String> {
        let mut selection = Selection {
            texts: inline.iter().map(|text| (text.name.clone(), text.content.clone())).collect(),
            ..Selection::default()
        };
        let (mut count, mut has_dir) = (inline.len(), false);
        for source in sources {
            let mut found = BTreeSet::new();
            let plain = source.trim_start_matches('/');
            if plain.contains(['*', '?', '[']) {
                let matcher = glob(plain)?;
                found.extend(self.entries.keys().filter(|path| matcher.is_match(path)).cloned());
            } else {
                found.insert(plain.to_owned());
            }
            if found.is_empty() {
                return Err(self.missing(source));
            }
            for path in found {
                count += 1;
                let leads = self.follow(&path)?;
                match self.entries.get(&leads) {
                    None if leads.is_empty() => {
                        has_dir = true;
                        self.below("", &mut selection);
                    }
                    Some(TreeKind::Dir { .. }) => {
                        has_dir = true;
                        self.below(&format!("{leads}/"), &mut selection);
                    }
                    Some(kind) => {
                        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(&path).to_owned();
                        let item = Item { name, path: leads.clone(), kind: kind.clone() };
                        if is_add && self.is_archive(&item)? {
                            has_dir = true;
                            selection.archives.push(item);
                        } else {
                            selection.items.push(item);
                        }
                    }
                    None => return Err(self.missing(source)),
                }
            }
        }
        selection.into = has_dir || count > 1;
        Ok(selection)
    }

    fn missing(&self, source: &str) -> String {
        format!(
            "`{}` is not in {}, or an ignore file leaves it out",
            source.escape_debug(),
            self.root.display()
        )
    }

    fn below(&self, prefix: &str, selection: &mut Selection) {
        let inside = self.entries.range(prefix.to_owned()..);
        for (path, kind) in inside.take_while(|(path, _)| path.starts_with(prefix)) {
            let name = path[prefix.len()..].to_owned();
            selection.items.push(Item { name, path: path.clone(), kind: kind.clone() });
        }
    }

    fn is_archive(&self, item: &Item) -> Result<bool, String> {
        let read = || -> io::Result<([u8; 6], bool)> {
            let mut first = [0; 6];
            let mut file = self.open(&item.path)?;
            let mut filled = 0;
            while filled < first.len() {
                match file.read(&mut first[filled..])? {
                    0 => break,
                    read => filled += read,
                }
            }
            Ok((first, is_archive(&mut file)?))
        };
        let (first, is_archive) =
            read().map_err(|error| format!("`{}`: {error}", item.path.escape_debug()))?;
        match first {
            [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(format!(
                "`{}` is compressed by bzip2 or xz; use gzip or zstd, or COPY it and unpack it in a RUN",
                item.path.escape_debug()
            )),
            _ => Ok(is_archive),
        }
    }

    /// Opens a file of the context; no link is followed, whatever has become of it since it was looked at.
    pub fn open(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd = rustix::fs::open(&self.root, flags, Mode::empty())?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?.into())
    }

    /// Opens an archive that `ADD` unpacks, whose content has to be what was looked at.
    ///
    /// # Errors
    /// What the file system reports; that it has changed.
    pub fn archive(&self, item: &Item, mut to: impl Write) -> io::Result<()> {
        let TreeKind::File { sha256, size, .. } = &item.kind else {
            return Err(changed(&item.path));
        };
        let mut file = Hashing::new(self.open(&item.path)?.take(*size));
        io::copy(&mut file, &mut to)?;
        if file.count() != *size || file.digest().hex() != sha256 {
            return Err(changed(&item.path));
        }
        to.flush()
    }

    /// Writes what is selected as an archive: owned by root, no times.
    ///
    /// # Errors
    /// What the file system reports; that something has changed since it was looked at.
    pub fn pack(&self, selection: &Selection, out: impl Write) -> io::Result<()> {
        let mut builder = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, out));
        let header = |mode: u32, size: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(mode);
            header.set_size(size);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header
        };
        for item in &selection.items {
            match &item.kind {
                TreeKind::Dir { mode } => {
                    let mut header = header(*mode, 0);
                    header.set_entry_type(tar::EntryType::Directory);
                    builder.append_data(&mut header, format!("{}/", item.name), io::empty())?;
                }
                TreeKind::Symlink { target } => {
                    let mut header = header(0o777, 0);
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, &item.name, target)?;
                }
                TreeKind::File { sha256, size, mode } => {
                    let mut file = Hashing::new(self.open(&item.path)?.take(*size));
                    builder.append_data(&mut header(*mode, *size), &item.name, &mut file)?;
                    if file.count() != *size || file.digest().hex() != sha256 {
                        return Err(changed(&item.path));
                    }
                }
            }
        }
        for (name, content) in &selection.texts {
            let mut header = header(0o644, content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes())?;
        }
        builder.into_inner()?.flush()
    }
}

fn changed(path: &str) -> io::Error {
    io::Error::other(format!("{path} has changed since it was looked at; try again"))
}

fn glob(pattern: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
    glob.map(|glob| glob.compile_matcher())
        .map_err(|error| format!("`{}` is not a pattern: {error}", pattern.escape_debug()))
}

/// A path of the image with `.` and `..` worked out; `..` of the root is the root.
pub fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => parts.extend(name.to_str()),
            Component::ParentDir => drop(parts.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    fn context() -> (tempfile::TempDir, Context) {
        let dir = tempfile::tempdir().unwrap();
        for path in ["src/deep", "other"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for path in ["src/a.c", "src/b.c", "src/deep/c.c", "other/x", "src.txt"] {
            std::fs::write(dir.path().join(path), path).unwrap();
        }
        symlink("src/deep", dir.path().join("short")).unwrap();
        symlink("/etc", dir.path().join("out")).unwrap();
        symlink("../..", dir.path().join("src/up")).unwrap();
        symlink("round", dir.path().join("round")).unwrap();
        let entries = crate::tree::scan(dir.path()).unwrap();
        let root = dir.path().to_owned();
        (dir, Context::new(root, entries))
    }

    fn names(context: &Context, sources: &[&str]) -> Result<(Vec<String>, bool), String> {
        let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
        let selection = context.select(&sources, &[], false)?;
        Ok((selection.items.into_iter().map(|item| item.name).collect(), selection.into))
    }

    #[test]
    fn sources_are_files_directories_and_patterns() {
        let (_dir, context) = context();
        let of = |sources: &[&str]| names(&context, sources).unwrap();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(of(&["src.txt"]), (owned(&["src.txt"]), false));
        assert_eq!(of(&["./src/"]), (owned(&["a.c", "b.c", "deep", "deep/c.c", "up"]), true));
        assert_eq!(of(&["src/*.c"]), (owned(&["a.c", "b.c"]), true));
        assert_eq!(of(&["/src/?.c", "src.txt"]).0, owned(&["a.c", "b.c", "src.txt"]));
        assert_eq!(of(&["short"]), (owned(&["c.c"]), true));
        assert_eq!(of(&["short/c.c"]), (owned(&["c.c"]), false));
        assert!(of(&["."]).0.contains(&"src/deep/c.c".to_owned()));
    }

    #[test]
    fn nothing_outside_the_context_is_a_source() {
        let (dir, context) = context();
        for source in ["../x", "out", "out/passwd", "src/up", "round", "none", "*.none", "/etc/passwd"] {
            assert!(names(&context, &[source]).is_err(), "{source}");
        }
        // What becomes a link after it was looked at is not followed.
        let sources = ["other/x".to_owned()];
        let selection = context.select(&sources, &[], false).unwrap();
        std::fs::remove_file(dir.path().join("other/x")).unwrap();
        symlink("/etc/passwd", dir.path().join("other/x")).unwrap();
        assert!(context.pack(&selection, io::sink()).is_err());
    }

    #[test]
    fn paths_of_an_image_have_no_dots() {
        for (path, expected) in [("/a/../b/./c/", "/b/c"), ("/..", "/"), ("x", "/x"), ("/", "/")] {
            assert_eq!(normal(path), expected);
        }
    }
}
