//! The record of a directory inside a sandbox: what was put there, in the form in which our scripts hold it against what is there.

use std::collections::BTreeMap;

use super::script::one_line;
use super::tree::{TreeEntry, TreeKind};
use crate::provider::GuestError;

/// The parts of a record, each the text of one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TreeRecord {
    /// Every path, one a line; a directory's ends with a slash.
    names: String,
    /// Kind and mode of each of them, as `stat -c %f` prints them.
    modes: String,
    /// Hashes of files as `sha256sum` prints them.
    sums: String,
    /// Path and hash of the files whose names `sha256sum -c` would misread.
    odd: String,
    /// Path and target of each link.
    links: String,
}

impl TreeRecord {
    /// The record of these entries.
    pub fn of(entries: &[TreeEntry]) -> Self {
        let mut record = Self::default();
        // Directories carry a slash in the list, so that a file that takes a directory's name counts as another entry.
        let mut listed: BTreeMap<String, u32> = BTreeMap::new();
        for entry in entries {
            match &entry.kind {
                TreeKind::Dir { mode } => {
                    listed.insert(format!("{}/", entry.path), 0o040_000 | mode);
                }
                TreeKind::File { sha256, mode, .. } => {
                    // How `sha256sum -c` reads a path with a backslash differs between implementations.
                    if entry.path.contains('\\') {
                        record.odd.push_str(&format!("{}\n{sha256}\n", entry.path));
                    } else {
                        record.sums.push_str(&format!("{sha256}  ./{}\n", entry.path));
                    }
                    listed.insert(entry.path.clone(), 0o100_000 | mode);
                }
                TreeKind::Symlink { target } => {
                    record.links.push_str(&format!("{}\n{target}\n", entry.path));
                    listed.insert(entry.path.clone(), 0o120_777);
                }
            }
        }
        record.names = listed.keys().map(|name| format!("{name}\n")).collect();
        record.modes = listed.values().map(|mode| format!("{mode:x}\n")).collect();
        record
    }

    /// The parts with the names of their files.
    pub fn parts(self) -> [(&'static str, String); 5] {
        [
            ("names", self.names),
            ("modes", self.modes),
            ("sums", self.sums),
            ("odd", self.odd),
            ("links", self.links),
        ]
    }

    /// A record from its parts; unknown ones are left out.
    pub fn from_parts(parts: BTreeMap<String, String>) -> Self {
        let mut record = Self::default();
        for (name, text) in parts {
            match name.as_str() {
                "names" => record.names = text,
                "modes" => record.modes = text,
                "sums" => record.sums = text,
                "odd" => record.odd = text,
                "links" => record.links = text,
                _ => {}
            }
        }
        record
    }

    /// What was put there. Where a part is missing or was written by half, the entry has a content that nothing has, so that it is brought again.
    pub fn entries(&self) -> BTreeMap<String, TreeKind> {
        let mut sums: BTreeMap<&str, &str> = self
            .sums
            .lines()
            .filter_map(|line| line.split_once("  ./").map(|(sum, path)| (path, sum)))
            .collect();
        sums.extend(pairs(&self.odd));
        let links: BTreeMap<&str, &str> = pairs(&self.links).collect();
        let mut modes = self.modes.lines().map(|mode| u32::from_str_radix(mode, 16).unwrap_or(0) & 0o7777);
        let entry = |name: &str| {
            let mode = modes.next().unwrap_or(0);
            if let Some(path) = name.strip_suffix('/') {
                return (path.to_owned(), TreeKind::Dir { mode });
            }
            let kind = match links.get(name) {
                Some(target) => TreeKind::Symlink { target: (*target).to_owned() },
                None => {
                    let sha256 = sums.get(name).map_or_else(String::new, |sum| (*sum).to_owned());
                    TreeKind::File { sha256, size: 0, mode }
                }
            };
            (name.to_owned(), kind)
        };
        self.names.lines().map(entry).collect()
    }
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut lines = text.lines();
    std::iter::from_fn(move || Some((lines.next()?, lines.next()?)))
}

/// Refuses names that a record, which has one a line, cannot hold.
pub(super) fn check_entries(entries: &[TreeEntry]) -> Result<(), GuestError> {
    for entry in entries {
        if entry.path.contains('\n') {
            one_line("the path", &entry.path)?;
        }
        if let TreeKind::Symlink { target } = &entry.kind
            && target.contains('\n')
        {
            one_line("the link target", target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back() {
        let file = |path: &str, mode| TreeEntry {
            path: path.to_owned(),
            kind: TreeKind::File { sha256: "a".repeat(64), size: 0, mode },
        };
        let entries = [
            file("a", 0o644),
            TreeEntry { path: "a-b".to_owned(), kind: TreeKind::Dir { mode: 0o755 } },
            file("a-b/x\\y", 0o600),
            TreeEntry { path: "a-b/l".to_owned(), kind: TreeKind::Symlink { target: "../a".to_owned() } },
        ];
        let parts = TreeRecord::of(&entries).parts();
        let record =
            TreeRecord::from_parts(parts.into_iter().map(|(name, text)| (name.to_owned(), text)).collect());
        let expected: BTreeMap<_, _> =
            entries.iter().map(|entry| (entry.path.clone(), entry.kind.clone())).collect();
        assert_eq!(record.entries(), expected);
    }
}
