//! Files and repositories that are put into the sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Hashes, Lowering, absolute, scan};
use crate::guest::tree;
use crate::manifest::language::scalar::parse_mode;
use crate::manifest::language::{File, Sandbox};
use crate::manifest::node::quote;
use crate::manifest::read::{io_text, read_bounded};
use crate::manifest::repo;
use crate::manifest::source::{Sources, Span};
use crate::manifest::template::At;
use crate::model::*;

impl Lowering<'_> {
    pub(super) fn files_of(&mut self, raw: &Sandbox) -> BTreeMap<String, DesiredFile> {
        let mut files = BTreeMap::new();
        for (path, file) in &raw.files {
            let at = ["files", path.as_str()];
            let present = [file.content.is_some(), file.template.is_some(), file.source.is_some()];
            if !self.exactly_one(&at, &["content", "template", "source"], &present, true) {
                continue;
            }
            let mode = file.mode.as_ref().and_then(|m| parse_mode(&m.0).ok());
            if let Some(content) = self.file_content(path, file) {
                files.insert(path.clone(), DesiredFile { content, mode });
            }
        }
        files
    }

    fn file_content(&mut self, path: &str, file: &File) -> Option<FileContent> {
        if let Some(content) = &file.content {
            return Some(FileContent::Inline(content.0.clone()));
        }
        if let Some(template) = &file.template {
            let at = ["files", path, "template"];
            let host = self.host_path(&at, &template.0)?;
            let cache = self.files.as_deref_mut()?;
            let read = cache.text.entry(host.clone()).or_insert_with(|| {
                String::from_utf8(read_bounded(&host)?).map_err(|_| "it is not UTF-8".to_owned())
            });
            return match read.clone() {
                Ok(text) => self.render_file(&at, &host, text),
                Err(why) => {
                    let problem = self.error("unreadable", &at, format!("{}: {why}", host.display()));
                    self.push(problem);
                    None
                }
            };
        }
        let source = file.source.as_ref()?;
        let at = ["files", path, "source"];
        let host = self.host_path(&at, &source.0)?;
        let cache = self.files.as_deref_mut()?;
        match cache.source.entry(host.clone()).or_insert_with(|| read_source(&host, &cache.hashes)).clone() {
            Ok(content) => Some(content),
            Err(why) => {
                let problem = self.error("unreadable", &at, why);
                self.push(problem);
                None
            }
        }
    }

    /// A template file. Its problems are reported at the field that names it, with their place in the file.
    fn render_file(&mut self, at: &[&str], host: &Path, text: String) -> Option<FileContent> {
        let mut sources = Sources::default();
        let end = text.len() as u32;
        let id = sources.add(host.display().to_string(), PathBuf::new(), text.clone());
        let whole = Span { file: id, start: 0, end };
        match self.templates.render(&text, self.scope, &At { sources: &sources, span: whole, anchor: None }) {
            Ok(rendered) => Some(FileContent::Inline(rendered)),
            Err(problems) => {
                let span = self.node.span_at(at);
                problems.into_iter().for_each(|p| self.problems.push(p.moved_to(span, &sources)));
                None
            }
        }
    }

    pub(super) fn repositories(&mut self, raw: &Sandbox) -> BTreeMap<String, RepositorySpec> {
        let mut all = BTreeMap::new();
        for (path, repository) in &raw.repo {
            self.secret_ref(&["repo", path, "credentials"], repository.credentials.as_ref());
            let Ok(address) = repo::parse(&repository.url.0) else { continue };
            if let Some(reference) = &repository.reference
                && (reference.0.starts_with('-')
                    || reference.0.is_empty()
                    || reference.0.contains(|c: char| c.is_whitespace() || c.is_control()))
            {
                let problem = self.error(
                    "bad-value",
                    &["repo", path, "ref"],
                    format!("{} is not a branch, tag or commit", quote(&reference.0)),
                );
                self.push(problem);
                continue;
            }
            if repository.credentials.is_some() && !address.url.starts_with("https://") {
                let problem = self.error(
                    "conflict",
                    &["repo", path, "credentials"],
                    "`credentials` are for https URLs".to_owned(),
                );
                self.push(problem);
            }
            let spec = RepositorySpec {
                url: address.url,
                reference: repository.reference.as_ref().map(|r| r.0.clone()),
                depth: repository.depth,
                credentials: repository.credentials.as_ref().map(|c| c.secret.clone()),
            };
            all.insert(path.clone(), spec);
        }
        all
    }
}

fn read_source(host: &Path, hashes: &Hashes) -> Result<FileContent, String> {
    let at = |e: std::io::Error| format!("{}: {}", host.display(), io_text(&e));
    let metadata = std::fs::metadata(host).map_err(at)?;
    if metadata.is_dir() {
        let entries = scan(tree::Scan { root: host, ignore: None, only: None }, hashes)?;
        Ok(FileContent::Tree { path: absolute(host), sha256: tree::tree_sha256(&entries), ignore: None })
    } else if metadata.is_file() {
        let (sha256, _) = tree::file_sha256(host).map_err(at)?;
        Ok(FileContent::Source { path: absolute(host), sha256, mode: tree::mode_of(&metadata) })
    } else {
        Err(format!("{} is neither a file nor a directory", host.display()))
    }
}
