//! The inside of a sandbox of the world: what the scripts of the guest room would leave behind and report, by their line protocol.

use std::collections::BTreeMap;
use std::io::Read as _;

/// What is inside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inside {
    /// The digest and hash of the environment.
    pub env: Option<(String, String)>,
    /// Kind, digest, hash, mode and path of managed files by key.
    pub files: BTreeMap<String, [String; 5]>,
    /// Digest and path by key.
    pub repositories: BTreeMap<String, (String, String)>,
    /// Outcomes of preset steps by id.
    pub steps: BTreeMap<String, String>,
    /// Digest and state of services by name.
    pub services: BTreeMap<String, (String, &'static str)>,
    /// Preset steps that ran, each time.
    pub ran: u32,
}

/// How a command ended.
#[derive(Debug, Default)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

fn said(stdout: impl Into<String>) -> Ended {
    Ended { stdout: stdout.into(), ..Ended::default() }
}

impl Inside {
    /// What stopping leaves.
    pub fn stop(&mut self, disk_is_lost: bool) {
        if disk_is_lost {
            *self = Self { ran: self.ran, ..Self::default() };
        }
        self.env = None;
        self.services.clear();
        for file in self.files.values_mut().filter(|file| file[0] == "S") {
            "-".clone_into(&mut file[2]);
        }
    }

    /// Runs a command; with `fails`, a service that is started does not stay up and a step of a preset fails.
    pub fn exec(&mut self, argv: &[String], stdin: &[u8], fails: bool) -> Ended {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let ["sh", "-c", _, name, arguments @ ..] = &words[..] else { return Ended::default() };
        match (name.strip_prefix("pocketenv-").unwrap_or_default(), arguments) {
            ("observe", _) => said(self.observe()),
            ("write", [_, "unpack", ..]) => self.unpack(stdin),
            ("step", _) => {
                self.ran += 1;
                Ended { stderr: format!("ran {}\n", i32::from(fails)), ..Ended::default() }
            }
            ("steps", ["remember", id, outcome]) => {
                self.steps.insert((*id).to_owned(), (*outcome).to_owned());
                Ended::default()
            }
            ("steps", ["forget", ids @ ..]) => {
                self.steps.retain(|id, _| !ids.contains(&id.as_str()));
                Ended::default()
            }
            ("start", [_, name, digest, ..]) => {
                let same = (String::from(*digest), "running");
                if self.services.get(*name) == Some(&same) {
                    return said("same\n");
                }
                let state = if fails { "failed" } else { "running" };
                self.services.insert((*name).to_owned(), (String::from(*digest), state));
                said("started\n")
            }
            ("stop", [name]) => {
                if let Some(service) = self.services.get_mut(*name) {
                    service.1 = "stopped";
                }
                Ended::default()
            }
            ("stop", [name, "remove"]) => {
                self.services.remove(*name);
                Ended::default()
            }
            ("repositories", ["recall", ..]) => said("-\n"),
            ("repositories", ["remember", key, digest, _, path]) => {
                let repository = ((*digest).to_owned(), (*path).to_owned());
                self.repositories.insert((*key).to_owned(), repository);
                Ended::default()
            }
            ("repositories", ["forget", key]) => {
                self.repositories.remove(*key);
                Ended::default()
            }
            ("repository", _) => said(format!("{}\n", "a".repeat(40))),
            ("logs" | "environment" | "settle", _) => Ended::default(),
            (other, _) => Ended { code: 127, stderr: format!("no script {other}"), ..Ended::default() },
        }
    }

    fn observe(&self) -> String {
        let mut lines = vec!["pocketenv\t1".to_owned()];
        if let Some((digest, sha256)) = &self.env {
            lines.push(format!("env\t{digest}\t{sha256}\t/run/pocketenv/env"));
            lines.push(format!("{sha256}  /run/pocketenv/env"));
        }
        for [kind, digest, sha256, mode, path] in self.files.values() {
            lines.push(format!("file\t{kind}\t{digest}\t{sha256}\t{mode}\t{path}"));
            lines.push(format!("mode\t{mode}\t{path}"));
            // A secret without its hash went with the memory that a link leads to.
            if sha256 != "-" {
                lines.push(format!("target\t{mode}\t{path}"));
                lines.push(format!("{sha256}  {path}"));
            }
        }
        for (digest, path) in self.repositories.values() {
            lines.push(format!("repository\t{digest}\tpresent\t{path}"));
        }
        for (id, outcome) in &self.steps {
            lines.push(format!("step\t{id}\t{outcome}"));
        }
        for (name, (digest, state)) in &self.services {
            let (supervised, code) = if *state == "running" { ("alive", "-") } else { ("gone", "1") };
            lines.push(format!("service\t{name}\t{digest}\t{state}\t{supervised}\t{code}\t0\t7"));
        }
        lines.join("\n") + "\n"
    }

    fn unpack(&mut self, archive: &[u8]) -> Ended {
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            texts.insert(name, text);
        }
        for line in texts["control"].lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["forget", key] => {
                    self.files.remove(key);
                }
                ["record", key] => {
                    let record = texts[&format!("var/.new.{key}.rec")].trim_end_matches('\n');
                    let mut fields = record.splitn(5, '\t').map(str::to_owned);
                    let mut file: [String; 5] = std::array::from_fn(|_| fields.next().unwrap());
                    if file[0] == "S" {
                        texts[&format!("mem/new.{key}.sum")].trim_end().clone_into(&mut file[2]);
                    }
                    self.files.insert(key.to_owned(), file);
                }
                ["env", digest, sha256] => self.env = Some((digest.to_owned(), sha256.to_owned())),
                _ => {}
            }
        }
        Ended::default()
    }
}
