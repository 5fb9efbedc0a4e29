//! Manifests that mean harm, and manifests that are merely large: refused fast or read fast, in bounded memory.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use pocketenv::manifest::{
    Diagnostics, Input, LoadRequest, Manifest, discover, format, load, manifests_in, starter,
};
use proptest::prelude::*;

/// The processor time of this thread: what a test takes must not depend on what else the machine does.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn stdin(text: impl Into<Vec<u8>>) -> LoadRequest {
    LoadRequest { files: vec![Input::Stdin(text.into())], ..LoadRequest::default() }
}

/// Loads `text`, which must be refused with `code` within a second.
fn refused(text: impl Into<Vec<u8>>, code: &str) -> Diagnostics {
    let start = cpu();
    let error = load(&stdin(text)).expect_err("this is refused");
    // Far above what it takes (milliseconds) and far below what an expansion without bounds would take.
    assert!((cpu() - start) < Duration::from_secs(5), "took {:?}", (cpu() - start));
    assert!(error.items.iter().any(|d| d.code == code), "{}", error.plain());
    assert!(error.plain().len() < 100_000);
    error
}

#[test]
fn bombs_are_refused() {
    let mut quadratic = String::from("version: 1\nx-a: &a [");
    quadratic.push_str(&"x, ".repeat(20_000));
    quadratic.push_str("]\nx-b: [");
    quadratic.push_str(&"*a, ".repeat(5_000));
    quadratic.push_str("]\n");
    refused(quadratic, "too-large");

    let long = format!("version: 1\nx-a: &a {}\nx-b: [{}]\n", "x".repeat(100_000), "*a, ".repeat(5_000));
    refused(long, "too-large");

    let many = format!("version: 1\nx-a: &a x\nx-b: [{}]\n", "*a, ".repeat(20_000));
    refused(many, "too-many-aliases");

    let nested_anchors: String = (0..60).map(|i| format!("{}k: &a{i}\n", "  ".repeat(i + 1))).collect();
    let wide: String = (0..20_000).map(|_| format!("{}- x\n", "  ".repeat(61))).collect();
    refused(format!("version: 1\nx-a:\n{}", nested_anchors + &wide), "too-large");

    refused(format!("version: 1\nx: {}\n", "[".repeat(200_000)), "too-deep");
    refused(format!("version: 1\nx: {}\n", "{a: ".repeat(200_000)), "too-deep");
    refused(format!("version: 1\nx: {}a\n", "- ".repeat(3_000)), "syntax");
    refused("version: 1\nx: \"unclosed\n".to_owned() + &"y".repeat(1_000_000), "syntax");
}

#[test]
fn replicas_cannot_multiply_without_end() {
    let many: String = (0..100_000).map(|i| format!("  b{i}: {{ count: 1000 }}\n")).collect();
    refused(format!("version: 1\nsandboxes:\n{many}"), "too-large");
    let long = format!(
        "version: 1\nsandboxes: {{ a: {{ count: 1000, env: {{ A: \"{}{{{{ index }}}}\" }} }} }}\n",
        "x".repeat(1 << 20)
    );
    refused(long, "too-large");
}

#[test]
fn one_very_long_line_is_no_slower_than_many() {
    let pairs: String = (0..60_000).map(|i| format!("é{i}: x, ")).collect();
    refused(format!("version: 1\nsandboxes: {{ a: {{ env: {{ {pairs} }} }} }}\n"), "bad-name");
    let names = "{{ vars.nope }} ".repeat(900);
    refused(format!("version: 1\nsandboxes: {{ a: {{ env: {{ A: \"{names}\" }} }} }}\n"), "unknown-name");
    refused(
        format!(
            "version: 1\nsandboxes: {{ a: {{ env: {{ A: \"{}\" }} }} }}\n",
            "{{ vars.nope }} ".repeat(10_000)
        ),
        "template",
    );
}

#[test]
fn the_same_key_ten_thousand_times_is_refused_fast() {
    let text = format!("version: 1\n{}", "name: a\n".repeat(10_000));
    let error = refused(text, "duplicate-key");
    assert!(error.omitted > 9_000, "{}", error.omitted);
}

#[test]
fn a_file_of_fifty_megabytes_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pocketenv.yaml");
    std::fs::write(&path, "# filler\n".repeat(50 << 20 >> 3)).unwrap();
    let start = cpu();
    let error = load(&LoadRequest { files: vec![Input::Path(path)], ..LoadRequest::default() }).unwrap_err();
    assert!((cpu() - start) < Duration::from_millis(500));
    assert!(error.plain().contains("larger than 8 MiB"), "{}", error.plain());
    refused("#".repeat(9 << 20), "too-large");
}

#[test]
fn credentials_in_a_url_are_not_repeated() {
    let error =
        load(&stdin("version: 1\nsandboxes: { a: { repo: \"https://me:hunter2@example.com/a/b\" } }\n"))
            .unwrap_err();
    for text in [error.plain(), error.graphical(false, 100), error.github(), error.json().to_string()] {
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("carries credentials"), "{text}");
    }
}

#[test]
fn templates_cannot_recurse_or_explode() {
    let env = |value: &str| format!("version: 1\nsandboxes: {{ a: {{ env: {{ A: '{value}' }} }} }}\n");
    for bad in [
        &"{{#if env.x}}".repeat(10_000),
        &"{{".repeat(10_000),
        &"{{{{".repeat(5_000),
        &format!("{{{{ {} }}}}", "a.".repeat(10_000)),
        &format!("{{{{ {} }}}}", "(".repeat(10_000)),
        "{{#> a}}{{> a}}{{/a}}",
        "{{{{raw}}}} {{> x}} {{{{/raw}}}}",
    ] {
        let start = cpu();
        assert!(load(&stdin(env(bad))).is_err(), "{}", bad.chars().take(40).collect::<String>());
        assert!((cpu() - start) < Duration::from_secs(5), "{bad:.40} took {:?}", (cpu() - start));
    }
    // A value that looks like a template is a value.
    let mut request = stdin(env("{{ env.X }}"));
    request.env = BTreeMap::from([("X".to_owned(), "{{ env.X }}".to_owned())]);
    let manifest = load(&request).unwrap();
    assert_eq!(desired_env(&manifest, "a", "A"), "{{ env.X }}");
}

fn desired_env(manifest: &Manifest, sandbox: &str, name: &str) -> String {
    let context = pocketenv::manifest::ResolveContext { endpoints: &BTreeMap::new(), capabilities: &[] };
    // Without sheets there are no providers, so the default one is reported; the value is what matters here.
    match manifest.resolve(&context) {
        Ok(resolved) => resolved.desired.sandboxes[sandbox].guest.env[name].clone(),
        Err(_) => {
            let resolved =
                pocketenv::manifest::ResolveContext { endpoints: &BTreeMap::new(), capabilities: &[&LOCAL] };
            manifest.resolve(&resolved).unwrap().desired.sandboxes[sandbox].guest.env[name].clone()
        }
    }
}

const LOCAL: pocketenv::provider::Capabilities = pocketenv::provider::Capabilities {
    provider: "local",
    summary: "for tests",
    stop: pocketenv::provider::StopMeaning::Suspend,
    labels: true,
    idempotent_create: true,
    settle_ms: 0,
    forwards_from_host: true,
    names_by_links: false,
    service: false,
    max_concurrency: 1,
    ..pocketenv::provider::Capabilities::NOTHING
};

#[test]
fn variables_and_profiles_override_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "pocketenv.yaml",
        "version: 1\nname: base\nvars: { a: file, b: file, c: file, d: }\nsandboxes: { x: { env: { V: '{{ vars.a }} {{ vars.b }} {{ vars.c }} {{ vars.d }} {{ env.E }}' } } }\n",
    );
    write("pocketenv.override.yaml", "sandboxes: { x: { user: over } }\n");
    write("pocketenv.prod.yaml", "name: prod\nvars: { c: profile }\n");
    write("more.env", "E=from file\n");
    std::fs::create_dir(dir.path().join("deep")).unwrap();
    let none = BTreeMap::new();
    let files = discover(&dir.path().join("deep"), &none).unwrap();
    assert_eq!(files.len(), 2);
    let mut request = LoadRequest {
        files: files.into_iter().map(Input::Path).collect(),
        profile: Some("prod".to_owned()),
        vars: BTreeMap::from([("a".to_owned(), "flag".to_owned()), ("d".to_owned(), "given".to_owned())]),
        env: ["a", "b"].map(|n| (format!("POCKETENV_VAR_{n}"), "environment".to_owned())).into(),
        env_files: vec![dir.path().join("more.env")],
        ..LoadRequest::default()
    };
    let manifest = load(&request).unwrap();
    assert_eq!(manifest.project(), "prod");
    assert_eq!(desired_env(&manifest, "x", "V"), "flag environment profile given from file");
    request.vars.insert("nope".to_owned(), String::new());
    assert!(load(&request).unwrap_err().plain().contains("no variable `nope`"));
    request.profile = Some("missing".to_owned());
    assert!(load(&request).unwrap_err().plain().contains("pocketenv.missing.yaml"));
    let named = BTreeMap::from([("POCKETENV_FILE".to_owned(), "other.yaml".to_owned())]);
    assert_eq!(discover(dir.path(), &named).unwrap(), [dir.path().join("other.yaml")]);
    assert_eq!(manifests_in(dir.path()).unwrap().len(), 2);
}

#[test]
fn starters_are_good_manifests() {
    for (file, text, wanted) in [
        ("nothing", "", "source: ."),
        ("package.json", "{}", "npm start"),
        ("Cargo.toml", "", "cargo run"),
        ("go.mod", "", "go run ."),
        ("pyproject.toml", "", "python3"),
        ("devcontainer.json", "// note\n{ \"image\": \"debian:12\" }", "debian:12"),
        (
            "compose.yaml",
            "services:\n  Web: { image: \"nginx:1\", ports: [\"8080:80/tcp\"], environment: [\"A={{x}}\"], restart: always }\n  db: { build: . }\n",
            "nginx:1",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), text).unwrap();
        let starter = starter(dir.path());
        assert!(starter.text.contains(wanted), "{file}: {}", starter.text);
        assert!(!starter.chosen.is_empty());
        if let Err(error) = load(&stdin(starter.text.clone())) {
            panic!("{file}: {}\n{}", error.plain(), starter.text);
        }
        assert_eq!(format("starter", &starter.text).unwrap(), starter.text);
    }
}

fn large(lines: usize) -> String {
    let mut text = String::from("version: 1\nname: large\nvars: { tag: '1' }\nsandboxes:\n");
    let mut i = 0;
    while text.bytes().filter(|b| *b == b'\n').count() + 10 <= lines {
        let _ = write!(
            text,
            "  box-{i}:\n    env:\n      A: \"{{{{ vars.tag }}}}-{i}\"\n      B: plain\n    services:\n      web:\n        command: [serve, --port, \"80\"]\n        healthcheck: {{ tcp: 80, interval: 2s }}\n    ports: [80]\n    resources: {{ cpu: 1, memory: 1GiB }}\n"
        );
        i += 1;
    }
    text
}

#[test]
fn reading_takes_time_in_proportion_to_the_lines() {
    let read = |lines: usize| {
        let text = large(lines);
        let once = |_| {
            let start = cpu();
            let manifest = load(&stdin(text.clone())).unwrap();
            assert!(manifest.ports().len() > lines / 11);
            cpu() - start
        };
        (0..5).map(once).min().unwrap()
    };
    let (few, many) = (read(1_000), read(10_000));
    // Ten times as many; how long that takes in seconds is what `scripts/bench` tells.
    assert!(many < few * 15, "1,000 lines: {few:?}; 10,000 lines: {many:?}");
}

fn sources() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for dir in ["tests/corpus/valid", "tests/corpus/invalid"] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "yaml")
                && std::fs::metadata(&path).unwrap().len() < 6_000
            {
                all.push(std::fs::read(path).unwrap());
            }
        }
    }
    all.push(std::fs::read("pocketenv.yaml.example").unwrap());
    assert!(all.len() > 20);
    all
}

/// Whatever the bytes, the answer is a manifest or problems with places, and every rendering works.
fn answers(bytes: &[u8]) {
    match load(&stdin(bytes)) {
        Ok(manifest) => {
            let _ = manifest.digest();
        }
        Err(error) => {
            assert!(error.has_errors());
            assert!(error.items.iter().all(|d| d.location().is_some_and(|l| l.line > 0 && l.column > 0)));
            let _ = (error.plain(), error.graphical(false, 80), error.github(), error.json());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_manifests_are_answered(which in any::<prop::sample::Index>(), edits in prop::collection::vec((any::<prop::sample::Index>(), 0..5u8, any::<u8>()), 1..8)) {
        let sources = sources();
        let mut bytes = sources[which.index(sources.len())].clone();
        for (at, what, byte) in edits {
            if bytes.is_empty() { break; }
            let at = at.index(bytes.len());
            const MARKS: &[u8] = b"{}[]:,&*!|>'\"%@`#-\n\t ?<~{\\";
            match what {
                0 => bytes[at] = byte,
                1 => { bytes.remove(at); }
                2 => bytes.insert(at, MARKS[usize::from(byte) % MARKS.len()]),
                3 => bytes.truncate(at),
                _ => { let piece: Vec<u8> = bytes[at..].iter().take(usize::from(byte)).copied().collect(); bytes.splice(at..at, piece); }
            }
        }
        answers(&bytes);
    }

    #[test]
    fn formatting_keeps_the_meaning_and_settles(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), mark in prop::sample::select(vec![" ", "  ", "\n", "\n\n", " # note\n", "\r\n", "- ", "\t"])) {
        let sources = sources();
        let Ok(mut text) = String::from_utf8(sources[which.index(sources.len())].clone()) else { return Ok(()) };
        let at = (0..=at.index(text.len() + 1)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.insert_str(at, mark);
        if let Ok(once) = format("f", &text) {
            let json = |t: &str| pocketenv::manifest::to_json("f", t).ok();
            prop_assert_eq!(json(&text), json(&once));
            prop_assert_eq!(format("f", &once).unwrap(), once);
        }
    }

    #[test]
    fn merging_is_the_same_in_one_step_or_two(a in 0..3u8, b in 0..3u8, c in 0..3u8) {
        // Three files over one another: the last word on each key wins, and what no one mentions later stays.
        let file = |n: u8, tag: &str| Input::Stdin(match n {
            0 => format!("version: 1\nvars: {{ only-{tag}: '{tag}', all: '{tag}' }}\n"),
            1 => format!("version: 1\nsandboxes: {{ s: {{ env: {{ ALL: '{tag}', ONLY_{}: x }} }} }}\n", tag.to_uppercase()),
            _ => "version: 1\n".to_owned(),
        }.into_bytes());
        let request = LoadRequest { files: vec![file(a, "a"), file(b, "b"), file(c, "c")], ..LoadRequest::default() };
        let manifest = load(&request).unwrap();
        let writers: Vec<(&str, u8)> = vec![("a", a), ("b", b), ("c", c)];
        if let Some((last, _)) = writers.iter().rev().find(|(_, n)| *n == 1) {
            prop_assert_eq!(desired_env(&manifest, "s", "ALL"), *last);
            for (tag, _) in writers.iter().filter(|(_, n)| *n == 1) {
                prop_assert_eq!(desired_env(&manifest, "s", &format!("ONLY_{}", tag.to_uppercase())), "x");
            }
        }
    }
}

#[test]
fn a_missing_file_is_told_without_a_panic() {
    let request =
        LoadRequest { files: vec![Input::Path(Path::new("no/such.yaml").into())], ..LoadRequest::default() };
    let error = load(&request).unwrap_err();
    assert!(error.plain().contains("no/such.yaml: there is no such file"), "{}", error.plain());
    assert!(load(&LoadRequest::default()).is_err());
}
