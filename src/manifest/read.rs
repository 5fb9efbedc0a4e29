//! From files to one tree: discovery, reading within bounds, includes, merging.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostics, Problem, Problems};
use super::node::{Node, Value};
use super::source::{MAX_FILE_BYTES, Sources, Span};
use super::yaml;

/// The most files one manifest may include.
pub const MAX_INCLUDES: usize = 64;
/// The longest chain of includes.
pub const MAX_INCLUDE_DEPTH: usize = 8;

/// Where a manifest comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    Path(PathBuf),
    /// Text from standard input; relative paths in it start at the working directory.
    Stdin(Vec<u8>),
}

/// The manifest that a command without `-f` means: `POCKETENV_FILE` (paths separated as in `PATH`), else `pocketenv.yaml` or
/// `pocketenv.yml` in the nearest parent of `start`, followed by `pocketenv.override.yaml` beside it if there is one.
pub fn discover(start: &Path, env: &BTreeMap<String, String>) -> Result<Vec<PathBuf>, Diagnostics> {
    if let Some(value) = env.get("POCKETENV_FILE").filter(|v| !v.is_empty()) {
        return Ok(std::env::split_paths(value).map(|p| start.join(p)).collect());
    }
    for dir in start.ancestors() {
        for name in ["pocketenv.yaml", "pocketenv.yml"] {
            let path = dir.join(name);
            if path.is_file() {
                let mut files = vec![path];
                files.extend(
                    ["pocketenv.override.yaml", "pocketenv.override.yml"]
                        .iter()
                        .map(|n| dir.join(n))
                        .filter(|p| p.is_file()),
                );
                return Ok(files);
            }
        }
    }
    Err(Diagnostics::bare(
        "no-manifest",
        format!("no pocketenv.yaml in {} or any directory above it", start.display()),
        Some("`pocketenv init` writes one; `-f FILE` names one".to_owned()),
    ))
}

/// The manifests in a directory, each a project of its own: `*.yaml` and `*.yml`, not hidden, not overrides, sorted by name.
pub fn manifests_in(dir: &Path) -> Result<Vec<PathBuf>, Diagnostics> {
    let unreadable =
        |error: std::io::Error| Diagnostics::bare("unreadable", format!("{}: {error}", dir.display()), None);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let yaml = name.ends_with(".yaml") || name.ends_with(".yml");
        if yaml && !name.starts_with('.') && !name.contains(".override.") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(Diagnostics::bare(
            "no-manifest",
            format!("no manifest (*.yaml) in {}", dir.display()),
            None,
        ));
    }
    Ok(found)
}

/// Reads files into one tree.
pub(crate) struct Reader<'a> {
    pub sources: &'a mut Sources,
    pub problems: &'a mut Problems,
    /// The directory that includes must stay below, links resolved.
    root: Option<PathBuf>,
    included: usize,
}

impl<'a> Reader<'a> {
    pub fn new(sources: &'a mut Sources, problems: &'a mut Problems) -> Self {
        Self { sources, problems, root: None, included: 0 }
    }

    /// Reads all inputs and merges them left to right.
    pub fn read_all(&mut self, inputs: &[Input]) -> Option<Node> {
        let mut merged: Option<Node> = None;
        for input in inputs {
            let node = match input {
                Input::Path(path) => self.read_root(path),
                Input::Stdin(bytes) => {
                    self.root.get_or_insert_with(|| canonical(Path::new(".")).unwrap_or_default());
                    self.parse("<stdin>", PathBuf::from("."), bytes, None)
                        .and_then(|n| self.with_includes(n, &mut Vec::new()))
                }
            };
            merged = match (merged, node) {
                (Some(base), Some(over)) => Some(merge(base, over)),
                (base, over) => over.or(base),
            };
        }
        merged
    }

    fn read_root(&mut self, path: &Path) -> Option<Node> {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
        if self.root.is_none() {
            self.root = canonical(&dir);
        }
        let mut chain: Vec<PathBuf> = canonical(path).into_iter().collect();
        self.file(path, dir, None, &mut chain)
    }

    fn file(
        &mut self,
        path: &Path,
        dir: PathBuf,
        from: Option<Span>,
        chain: &mut Vec<PathBuf>,
    ) -> Option<Node> {
        let name = path.display().to_string();
        match read_bounded(path) {
            Ok(bytes) => {
                let node = self.parse(&name, dir, &bytes, from)?;
                self.with_includes(node, chain)
            }
            Err(why) => {
                let span = match from {
                    Some(span) => span,
                    None => {
                        let file = self.sources.add(name.clone(), dir, String::new());
                        Span { file, start: 0, end: 0 }
                    }
                };
                self.problems.push(Problem::error("unreadable", span, format!("{name}: {why}")));
                None
            }
        }
    }

    /// Text to tree, after the checks that come before any parsing.
    fn parse(&mut self, name: &str, dir: PathBuf, bytes: &[u8], from: Option<Span>) -> Option<Node> {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let file = self.sources.add(name.to_owned(), dir, String::new());
            let message = format!("{name} is larger than {} MiB", MAX_FILE_BYTES >> 20);
            self.problems.push(Problem::error("too-large", Span { file, start: 0, end: 0 }, message));
            return None;
        }
        let (text, fault) = match std::str::from_utf8(bytes) {
            Ok(text) => {
                let text = text.strip_prefix('\u{feff}').unwrap_or(text);
                let fault = text.char_indices().find(|(_, c)| forbidden(*c)).map(|(at, c)| {
                    (
                        at,
                        c.len_utf8(),
                        format!("the character U+{:04X} may not stand in a manifest", c as u32),
                    )
                });
                (text.to_owned(), fault)
            }
            Err(error) => {
                let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let text = String::from_utf8_lossy(good);
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
                let fault = (text.len(), 0, "the file is not UTF-8 from this byte on".to_owned());
                (text, Some(fault))
            }
        };
        let file = self.sources.add(name.to_owned(), dir, text);
        if let Some((at, len, message)) = fault {
            let span = Span { file, start: at as u32, end: (at + len) as u32 };
            let mut problem = Problem::error("encoding", span, message).help("save the file as UTF-8 text");
            if let Some(from) = from {
                problem = problem.related(from, "included here");
            }
            self.problems.push(problem);
            return None;
        }
        let node = yaml::parse(self.sources, file, self.problems)?;
        if node.as_map().is_none() {
            let found = node.describe();
            let mut problem = Problem::error("wrong-type", node.span, "a manifest is a mapping")
                .found(found)
                .help("a manifest begins with `version: 1`");
            if let Some(from) = from {
                problem = problem.related(from, "included here");
            }
            self.problems.push(problem);
            return None;
        }
        Some(node)
    }

    /// Puts what the file includes beneath it.
    fn with_includes(&mut self, mut node: Node, chain: &mut Vec<PathBuf>) -> Option<Node> {
        let Some(include) = node.take("include") else { return Some(node) };
        let items = match include.value.value {
            Value::List(items) => items,
            _ => vec![include.value],
        };
        let mut base: Option<Node> = None;
        for item in items {
            let Some(text) = item.as_text().filter(|t| !t.is_empty()) else {
                self.problems.push(
                    Problem::error("wrong-type", item.span, "an include is the path of a file")
                        .found(item.describe()),
                );
                continue;
            };
            if let Some(included) = self.include(text, item.span, chain) {
                base = Some(match base {
                    Some(base) => merge(base, included),
                    None => included,
                });
            }
        }
        Some(match base {
            Some(base) => merge(base, node),
            None => node,
        })
    }

    fn include(&mut self, text: &str, span: Span, chain: &mut Vec<PathBuf>) -> Option<Node> {
        let path = self.sources.resolve_path(span, text, None);
        let mut refuse = |code, message: String, help: Option<String>| {
            let mut problem = Problem::error(code, span, message);
            if let Some(help) = help {
                problem = problem.help(help);
            }
            self.problems.push(problem);
            None
        };
        let real = match std::fs::canonicalize(&path) {
            Ok(real) => real,
            Err(error) => {
                return refuse("unreadable", format!("{}: {}", path.display(), io_text(&error)), None);
            }
        };
        if !self.root.as_ref().is_some_and(|root| real.starts_with(root)) {
            return refuse(
                "include-outside",
                format!("`{text}` leads out of the directory of the manifest"),
                Some(
                    "an included file must stand in the manifest's directory or below it, links resolved"
                        .to_owned(),
                ),
            );
        }
        if let Some(at) = chain.iter().position(|p| *p == real) {
            let show =
                |p: &PathBuf| p.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            let mut names: Vec<String> = chain.iter().skip(at).map(show).collect();
            names.push(show(&real));
            return refuse(
                "include-cycle",
                format!("files include one another: {}", names.join(" → ")),
                None,
            );
        }
        self.included += 1;
        if chain.len() > MAX_INCLUDE_DEPTH || self.included > MAX_INCLUDES {
            return refuse(
                "too-many-includes",
                format!("at most {MAX_INCLUDES} files may be included, {MAX_INCLUDE_DEPTH} deep"),
                None,
            );
        }
        chain.push(real);
        let dir = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let node = self.file(&path, dir, Some(span), chain);
        chain.pop();
        node
    }
}

fn canonical(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

/// Control characters that have no business in text: NUL, escapes that drive a terminal.
fn forbidden(c: char) -> bool {
    (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')) || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// An I/O error in words, without the number.
pub(crate) fn io_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// A file's bytes, refused when there are too many. Pipes may be read; devices may not.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|e| io_text(&e))?;
    let metadata = file.metadata().map_err(|e| io_text(&e))?;
    if metadata.is_dir() {
        return Err("it is a directory".to_owned());
    }
    let too_large = || format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20);
    if metadata.is_file() && metadata.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(metadata.len().min(MAX_FILE_BYTES) as usize);
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| io_text(&e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES { Err(too_large()) } else { Ok(bytes) }
}

/// `over` on top of `base`: mappings merge, everything else replaces, an empty value changes nothing.
pub(crate) fn merge(mut base: Node, over: Node) -> Node {
    if over.is_null() {
        return base;
    }
    match (&mut base.value, over.value) {
        (Value::Map(entries), Value::Map(overs)) => {
            let index: HashMap<String, usize> =
                entries.iter().enumerate().map(|(i, e)| (e.key.clone(), i)).collect();
            for entry in overs {
                match index.get(&entry.key).and_then(|i| entries.get_mut(*i)) {
                    Some(existing) => {
                        let old = std::mem::replace(&mut existing.value, Node::text("", entry.key_span));
                        existing.value = merge(old, entry.value);
                        existing.key_span = entry.key_span;
                    }
                    None => entries.push(entry),
                }
            }
            base.span = over.span;
            base
        }
        (_, value) => Node { value, span: over.span, anchor: over.anchor },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(sources: &mut Sources, text: &str) -> Node {
        let file = sources.add("f".into(), "".into(), text.into());
        let mut problems = Problems::default();
        let node = yaml::parse(sources, file, &mut problems).unwrap();
        assert_eq!(problems.errors(), 0);
        node
    }

    #[test]
    fn merging_keeps_the_span_of_what_won() {
        let mut sources = Sources::default();
        let base = node(&mut sources, "a: {x: 1, y: [1, 2]}\nb: 1\n");
        let over = node(&mut sources, "a: {y: [3], z: 4}\nb:\nc: 5\n");
        let merged = merge(base, over);
        assert_eq!(merged.to_json(), serde_json::json!({"a": {"x": 1, "y": [3], "z": 4}, "b": 1, "c": 5}));
        assert_eq!(merged.at(&["a", "x"]).unwrap().span.file, 0);
        assert_eq!(merged.at(&["a", "y"]).unwrap().span.file, 1);
    }
}
