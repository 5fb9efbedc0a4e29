//! The picture in ARCHITECTURE.md, kept true: rooms use rooms below them, pure rooms stay pure, no test file is forgotten.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may use, from the top down; a whole room, or one module of it.
///
/// Lengthening a line is a decision: say why in the commit, and change ARCHITECTURE.md with it.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "server",
            "app",
            "manifest",
            "reconcile",
            "plan",
            "guest",
            "provider",
            "build",
            "engine",
            "image",
            "store",
            "secret",
            "model",
        ],
    ),
    ("server", &["app", "guest", "provider", "secret", "model"]),
    (
        "app",
        &[
            "gitops",
            "watch",
            "manifest",
            "reconcile",
            "plan",
            "guest",
            "provider",
            "engine",
            "image",
            "store",
            "secret",
            "model",
        ],
    ),
    ("watch", &["guest::tree"]),
    ("gitops", &["model"]),
    ("manifest", &["plan::order", "guest::tree", "provider", "secret", "model"]),
    ("reconcile", &["plan", "guest", "provider", "store", "secret", "model"]),
    ("plan", &["provider", "model"]),
    ("guest", &["provider", "secret", "tree", "model"]),
    ("provider", &["build", "engine", "image", "secret", "tree", "model"]),
    ("build", &["engine", "image", "tree"]),
    ("engine", &["image"]),
    ("image", &[]),
    ("store", &["secret", "model"]),
    ("secret", &["model"]),
    ("tree", &[]),
    ("model", &[]),
];

/// Rooms that do no I/O and read no clock, environment or randomness.
const PURE: &[&str] = &["plan", "model"];

/// What a pure room never mentions.
const IMPURE: &[&str] = &[
    "SystemTime",
    "Instant",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "tokio",
    "rand",
    "getrandom",
    "now_v7",
    "new_v4",
];

fn root() -> PathBuf {
    super::scenarios::world::project_root()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The text without comments: what documentation mentions is not a dependency.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(
            |line| {
                if line.trim_start().starts_with("//") {
                    ""
                } else {
                    line.split(" // ").next().unwrap_or(line)
                }
            },
        )
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names that stand directly behind `prefix`: `a::b` of `crate::a::b::c`, and each of `crate::{a, b::c}`.
fn behind(text: &str, prefix: &str) -> Vec<(usize, String)> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let path = |text: &str| -> String {
        let mut parts =
            text.split("::").map(|part| part.chars().take_while(|c| word(*c)).collect::<String>());
        let first = parts.next().unwrap_or_default();
        let direct = text[first.len()..].starts_with("::");
        match parts.next().filter(|second| direct && !second.is_empty()) {
            Some(second) => format!("{first}::{second}"),
            None => first,
        }
    };
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c| word(c) || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((at, path(rest)));
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in group.chars() {
            match c {
                ',' if depth == 0 => found.push((at, path(std::mem::take(&mut item).trim()))),
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if c != ',' || depth > 0 {
                item.push(c);
            }
        }
        found.push((at, path(item.trim())));
    }
    found
}

/// The rooms that one source file uses, as `room::module`.
fn used(relative: &Path, text: &str) -> BTreeSet<String> {
    let mut used: BTreeSet<String> = behind(text, "crate::").into_iter().map(|(_, name)| name).collect();
    // `super::` from the top of a room is another way to write `crate::`; inside `mod tests` it takes one more.
    let depth = relative.components().count() - usize::from(relative.ends_with("mod.rs"));
    let tests = text.find("mod tests {").unwrap_or(text.len());
    for supers in 1..=4 {
        for (at, name) in behind(text, &"super::".repeat(supers)) {
            if supers == depth + usize::from(at > tests) {
                used.insert(name);
            }
        }
    }
    used
}

#[test]
fn a_room_uses_only_rooms_below_it() {
    let table: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let source = root().join("src");
    let mut wrong = Vec::new();
    let mut edges = 0;
    for path in rust_files(&source) {
        let relative = path.strip_prefix(&source).unwrap();
        let Some(room) = relative.parent().and_then(|dir| dir.iter().next()).and_then(|name| name.to_str())
        else {
            continue;
        };
        let Some(may_use) = table.get(room) else {
            wrong.push(format!("src/{room}/ is no room of the table in tests/it/architecture.rs"));
            continue;
        };
        for name in used(relative, &code(&path)) {
            let other = name.split("::").next().unwrap_or_default();
            if other == room || !source.join(other).is_dir() {
                continue;
            }
            edges += 1;
            if !may_use.iter().any(|allowed| *allowed == other || *allowed == name) {
                wrong.push(format!("src/{} uses `{name}`: `{room}` may use {may_use:?}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "dependencies that point upward:\n{}", wrong.join("\n"));
    assert!(edges > 20, "only {edges} dependencies between rooms were found: this test has gone blind");
}

#[test]
fn the_table_of_rooms_points_downward() {
    let order: Vec<&str> = MAY_USE.iter().map(|(room, _)| *room).collect();
    for (index, (room, may_use)) in MAY_USE.iter().enumerate() {
        for other in *may_use {
            let name = other.split("::").next().unwrap_or_default();
            let at = order.iter().position(|known| *known == name);
            assert!(
                at.is_some_and(|at| at > index),
                "`{room}` may use `{other}`, which does not stand below it"
            );
        }
    }
}

#[test]
fn every_room_stands_in_the_architecture_page() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(
            !entry.path().is_dir() || page.contains(&format!("src/{name}/")),
            "ARCHITECTURE.md does not mention src/{name}/"
        );
    }
}

#[test]
fn functions_named_in_the_architecture_page_exist() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut named = 0;
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, file, function, ..] = cells[..] else { continue };
        let (file, function) = (file.trim_matches('`'), function.trim_matches('`'));
        if !file.starts_with("src/") {
            continue;
        }
        let text = fs::read_to_string(root().join(file))
            .unwrap_or_else(|error| panic!("ARCHITECTURE.md names {file}: {error}"));
        for part in function.split("`, `") {
            let name = part.rsplit("::").next().unwrap_or_default();
            assert!(text.contains(name), "ARCHITECTURE.md names `{part}` in {file}, which does not have it");
            named += 1;
        }
    }
    assert!(named >= 8, "the walk of one field is gone from ARCHITECTURE.md");
}

#[test]
fn pure_rooms_mention_nothing_impure() {
    let mut wrong = Vec::new();
    for room in PURE {
        for path in rust_files(&root().join("src").join(room)) {
            if path.components().any(|part| part.as_os_str() == "tests") {
                continue;
            }
            let text = code(&path);
            let words: BTreeSet<&str> =
                text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').collect();
            for impure in IMPURE {
                let mentions = |word: &&str| {
                    word.split("::").any(|part| part == *impure) || word.starts_with(&format!("{impure}::"))
                };
                if words.iter().any(mentions) || words.contains(impure) {
                    wrong.push(format!("{} mentions `{impure}`", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "pure rooms do no I/O:\n{}", wrong.join("\n"));
}

#[test]
fn no_test_file_is_forgotten() {
    let tests = root().join("tests");
    let listed = |parent: &Path, name: &str| {
        fs::read_to_string(parent).is_ok_and(|text| {
            text.lines().any(|line| {
                line.trim() == format!("mod {name};") || line.trim() == format!("pub mod {name};")
            })
        })
    };
    for path in rust_files(&tests.join("it")) {
        let (dir, name) = match path.file_stem().and_then(|stem| stem.to_str()) {
            Some("mod") => {
                (path.parent().unwrap().parent().unwrap(), path.parent().unwrap().file_name().unwrap())
            }
            _ => (path.parent().unwrap(), path.file_stem().unwrap()),
        };
        let parent = if dir == tests.join("it") { tests.join("it.rs") } else { dir.join("mod.rs") };
        let name = name.to_str().unwrap();
        assert!(listed(&parent, name), "{} is not listed in {}", path.display(), parent.display());
    }
    for entry in fs::read_dir(tests.join("scenarios")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("scenario.rs").exists() {
            let name = path.file_name().unwrap().to_str().unwrap().replace('-', "_");
            assert!(
                listed(&tests.join("it/scenarios.rs"), &name),
                "{} is not listed in tests/it/scenarios.rs",
                path.display()
            );
        }
    }
}

#[test]
fn the_dependency_finder_sees() {
    let file = Path::new("plan/x.rs");
    let found = |text: &str| used(file, text).into_iter().collect::<Vec<_>>();
    assert_eq!(found("use crate::model::{A, B};"), ["model::A".to_owned()].map(|_| "model".to_owned()));
    assert_eq!(found("use crate::{model, store::Store};"), ["model", "store::Store"]);
    assert_eq!(found("crate::model::hash_of(x)"), ["model::hash_of"]);
    assert_eq!(found("use super::super::store::X;"), ["store::X"]);
    assert!(found("use super::store;\nmod tests {\n use super::super::digest; }").is_empty());
    assert_eq!(
        used(Path::new("plan/mod.rs"), "use super::store::Store;").into_iter().collect::<Vec<_>>(),
        ["store::Store"]
    );
}
