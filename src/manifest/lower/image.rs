//! Where a sandbox's root filesystem comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::{Hashes, Lowering, absolute, leads_out, scan};
use crate::guest::tree::{self, Scan, TreeKind};
use crate::manifest::language::{self, Sandbox};
use crate::manifest::node::quote;
use crate::manifest::read::io_text;
use crate::model::{Image, Place};

/// What a build context holds.
#[derive(Clone)]
pub(super) struct Context {
    sha256: String,
    files: Arc<BTreeSet<String>>,
}

impl Lowering<'_> {
    pub(super) fn image(&mut self, raw: &Sandbox) -> Image {
        let present = [raw.image.is_some(), raw.base.is_some(), raw.build.is_some(), raw.snapshot.is_some()];
        self.exactly_one(&[], &["image", "base", "build", "snapshot"], &present, false);
        if let Some(image) = &raw.image {
            return match (image.0.as_str(), Image::file(&image.0)) {
                ("host", _) => Image::Host,
                (text, None) => Image::Oci(text.to_owned()),
                (_, Some((transport, path, name))) => self.image_file(transport, path, name),
            };
        }
        if let Some(base) = &raw.base {
            return Image::Base(base.0.clone());
        }
        if let Some(build) = &raw.build {
            return self.build(build).unwrap_or_default();
        }
        raw.snapshot.as_ref().map_or(Image::Host, |s| Image::Snapshot(s.0.clone()))
    }

    /// An image of this machine, its path written out.
    fn image_file(&mut self, transport: &str, path: &str, name: &str) -> Image {
        let Some(path) = self.host_path(&["image"], path) else { return Image::Host };
        if self.files.is_some() && !path.exists() {
            let problem = self.error("unreadable", &["image"], format!("{} does not exist", path.display()));
            self.push(problem);
        }
        Image::Oci(format!("{transport}:{}{name}", absolute(&path).display()))
    }

    /// The secrets of a build, which are none of its image's.
    pub(super) fn build_secrets(&mut self, raw: &Sandbox) -> BTreeMap<String, String> {
        let Some(build) = &raw.build else { return BTreeMap::new() };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        for (id, reference) in &build.secrets {
            if id.is_empty() || id.len() > 128 || matches!(id.as_str(), "." | "..") || !id.chars().all(legal)
            {
                let message = format!("{} is no name for a secret of a build", quote(id));
                let problem = self.error("bad-value", &["build", "secrets", id], message);
                self.push(
                    problem.expected(
                        "letters, digits, `.`, `_` and `-`, as in `RUN --mount=type=secret,id=NAME`",
                    ),
                );
            }
            self.secret_ref(&["build", "secrets", id], Some(reference));
        }
        build.secrets.iter().map(|(id, reference)| (id.clone(), reference.secret.clone())).collect()
    }

    fn build(&mut self, build: &language::Build) -> Option<Image> {
        let at = ["build", "context"];
        let host = self.host_path(&at, &build.context.0)?;
        let dockerfile = build.dockerfile.as_ref().map(|d| d.0.clone());
        if let Some(dockerfile) = &dockerfile
            && self.confinement.is_some_and(|confinement| !confinement.holds(&host.join(dockerfile)))
        {
            self.push(leads_out(self.node.span_at(&["build", "dockerfile"])));
        }
        let context = Place(absolute(&host));
        let Some(cache) = self.files.as_deref_mut() else {
            return Some(Image::Build { context, dockerfile, sha256: String::new() });
        };
        match cache.context.entry(host.clone()).or_insert_with(|| read_context(&host, &cache.hashes)).clone()
        {
            Ok(Context { sha256, files }) => {
                // Both names are in use for the same.
                let other = (!files.contains("Dockerfile") && files.contains("Containerfile"))
                    .then(|| "Containerfile".to_owned());
                let dockerfile = dockerfile.or(other);
                let wanted = dockerfile.as_deref().unwrap_or("Dockerfile");
                if !files.contains(wanted.trim_start_matches("./")) {
                    let message = format!(
                        "{} does not exist in {}, or an ignore file leaves it out",
                        quote(wanted),
                        host.display()
                    );
                    let at = if build.dockerfile.is_some() { ["build", "dockerfile"] } else { at };
                    let problem = self.error("unreadable", &at, message);
                    self.push(problem.expected("a Dockerfile or Containerfile"));
                }
                Some(Image::Build { context, dockerfile, sha256 })
            }
            Err(why) => {
                let problem = self.error("unreadable", &at, why);
                self.push(problem);
                None
            }
        }
    }
}

fn read_context(host: &Path, hashes: &Hashes) -> Result<Context, String> {
    let metadata = std::fs::metadata(host).map_err(|e| format!("{}: {}", host.display(), io_text(&e)))?;
    if !metadata.is_dir() {
        return Err(format!("{} is not a directory", host.display()));
    }
    let entries = scan(Scan { root: host, ignore: None, only: None }, hashes)?;
    let sha256 = tree::tree_sha256(&entries);
    let files = entries.into_iter().filter(|entry| matches!(entry.kind, TreeKind::File { .. }));
    Ok(Context { sha256, files: Arc::new(files.map(|entry| entry.path).collect()) })
}
