//! Directories that are kept in step, by copy or shared, and what follows a change.

use std::path::{Path, PathBuf};

use super::{Hashes, Lowering, absolute, scan};
use crate::guest::tree;
use crate::manifest::language::{self, Sandbox};
use crate::manifest::node::quote;
use crate::manifest::read::io_text;
use crate::model::*;

impl Lowering<'_> {
    /// Directories that `watch` keeps in step are managed directories for everybody else; gives those that are shared instead.
    pub(super) fn sync(&mut self, raw: &Sandbox, guest: &mut GuestSpec) -> Vec<Bind> {
        let mut binds = Vec::new();
        for (i, sync) in raw.sync.iter().enumerate() {
            let index = i.to_string();
            let to = sync.to.0.clone();
            if guest.files.contains_key(&to) || guest.sync.iter().any(|other| other.to == to) {
                let message = format!("{} is filled by something else already", quote(&to));
                let problem = self.error("duplicate", &["sync", &index, "to"], message);
                self.push(problem.help("give each directory inside one source"));
                continue;
            }
            let ignore: Vec<String> = sync.ignore.iter().map(|pattern| pattern.0.clone()).collect();
            let mut usable = true;
            for (n, pattern) in ignore.iter().enumerate() {
                if let Err(why) = tree::check_pattern(pattern) {
                    let at = ["sync", &index, "ignore", &n.to_string()].map(str::to_owned);
                    let problem = self.error(
                        "bad-value",
                        &at.each_ref().map(String::as_str),
                        format!("{} is not a pattern: {why}", quote(pattern)),
                    );
                    self.push(problem.expected("a pattern as in .gitignore"));
                    usable = false;
                }
            }
            let on_change = sync.on_change.as_ref().and_then(|change| self.on_change(&index, change, raw));
            let mode = sync.mode.unwrap_or_default();
            let Some(from) = self.host_path(&["sync", &index, "from"], &sync.from.0) else { continue };
            let spec =
                SyncSpec { from: absolute(&from), to: to.clone(), mode, ignore: ignore.clone(), on_change };
            guest.sync.push(spec);
            if mode == SyncMode::Bind {
                binds.extend(self.bind(&index, sync, &from));
                continue;
            }
            if sync.read_only.is_some() {
                let message =
                    "`read_only` is for a shared directory; a copied one is never written to".to_owned();
                let problem = self.error("conflict", &["sync", &index, "read_only"], message);
                self.push(problem.help("remove it, or write `mode: bind` next to it"));
            }
            let Some(cache) = self.files.as_deref_mut().filter(|_| usable) else { continue };
            let key = (from.clone(), ignore);
            let read = |(from, ignore): &(PathBuf, Vec<String>)| read_sync(from, ignore, &cache.hashes);
            match cache.sync.entry(key).or_insert_with_key(read).clone() {
                Ok(content) => {
                    guest.files.insert(to, DesiredFile { content, mode: None });
                }
                Err(why) => {
                    let problem = self.error("unreadable", &["sync", &index, "from"], why);
                    self.push(problem);
                }
            }
        }
        self.secret_ref(&["tailscale", "auth_key"], raw.tailscale.as_ref().map(|t| &t.auth_key));
        binds.sort();
        self.keep_out_of(&binds, raw, guest);
        binds
    }

    fn bind(&mut self, index: &str, sync: &language::Sync, from: &Path) -> Option<Bind> {
        if self.confinement.is_some_and(|confinement| !confinement.host_paths) {
            let message = "a sandbox of this source may not share a directory of this machine".to_owned();
            let problem = self.error("not-allowed", &["sync", index, "mode"], message);
            self.push(problem.help("leave `mode` out to copy it, or the operator allows it with `host_paths: true` under `allow` of the source"));
            return None;
        }
        if !sync.ignore.is_empty() && sync.on_change.is_none() {
            let message = "`ignore` hides nothing of a shared directory".to_owned();
            let problem = self.error("conflict", &["sync", index, "ignore"], message);
            self.push(problem.help("remove it, or leave `mode: bind` out so that the directory is copied"));
        }
        if self.files.is_some() && !from.is_dir() {
            let message = format!("{} is not a directory", from.display());
            let problem = self.error("unreadable", &["sync", index, "from"], message);
            self.push(problem);
        }
        let read_only = sync.read_only.unwrap_or(true);
        Some(Bind { path: sync.to.0.clone(), from: absolute(from), read_only })
    }

    /// What is put at a path in a shared directory would be put into the directory of the host.
    fn keep_out_of(&mut self, binds: &[Bind], raw: &Sandbox, guest: &GuestSpec) {
        let mut inner: Vec<(Vec<String>, String)> = Vec::new();
        let mut add = |at: &[&str], path: &str| {
            inner.push((at.iter().map(|part| (*part).to_owned()).collect(), path.to_owned()));
        };
        raw.files.keys().for_each(|path| add(&["files", path], path));
        raw.repo.keys().for_each(|path| add(&["repo", path], path));
        raw.volumes.keys().for_each(|path| add(&["volumes", path], path));
        for (name, usage) in &guest.secrets {
            if let SecretUse::File(path) = usage {
                add(&["secrets", name], path);
            }
        }
        for (i, sync) in raw.sync.iter().enumerate() {
            add(&["sync", &i.to_string(), "to"], &sync.to.0);
        }
        for (at, path) in inner {
            let within = |bind: &&Bind| {
                bind.covers(&path) && (at.first().is_none_or(|k| k != "sync") || bind.path != path)
            };
            let Some(bind) = binds.iter().find(within) else { continue };
            let at: Vec<&str> = at.iter().map(String::as_str).collect();
            let message = format!(
                "{} lies in {}, which is a directory of this machine",
                quote(&path),
                quote(&bind.path)
            );
            let problem = self.error("conflict", &at, message);
            self.push(problem.help("choose a path elsewhere, or copy the directory: leave `mode: bind` out"));
        }
    }

    fn on_change(&mut self, index: &str, raw: &language::OnChange, sandbox: &Sandbox) -> Option<OnChange> {
        let at = ["sync", index, "on_change"];
        let present = [raw.restart.is_some(), raw.exec.is_some(), raw.rebuild == Some(true)];
        if !self.exactly_one(&at, &["restart", "exec", "rebuild"], &present, true) {
            return None;
        }
        if raw.rebuild == Some(true) {
            return Some(OnChange::Rebuild);
        }
        if let Some(service) = &raw.restart {
            if !self.services.contains(&service.0) {
                let known: Vec<&str> = sandbox.services.keys().map(String::as_str).collect();
                self.unknown(&["sync", index, "on_change", "restart"], "service", &service.0, known);
            }
            return Some(OnChange::Restart(service.0.clone()));
        }
        let command: Vec<String> = raw.exec.iter().flatten().map(|word| word.0.clone()).collect();
        if command.first().is_none_or(String::is_empty) {
            let message = "the program's name is empty".to_owned();
            let problem = self.error("bad-value", &["sync", index, "on_change", "exec"], message);
            self.push(problem);
        }
        Some(OnChange::Exec(command))
    }
}

fn read_sync(host: &Path, ignore: &[String], hashes: &Hashes) -> Result<FileContent, String> {
    let metadata = std::fs::metadata(host).map_err(|e| format!("{}: {}", host.display(), io_text(&e)))?;
    if !metadata.is_dir() {
        return Err(format!("{} is not a directory; `files` brings a single file", host.display()));
    }
    let entries = scan(tree::Scan { root: host, ignore: Some(ignore), only: None }, hashes)?;
    let sha256 = tree::tree_sha256(&entries);
    Ok(FileContent::Tree { path: absolute(host), sha256, ignore: Some(ignore.to_vec()) })
}
