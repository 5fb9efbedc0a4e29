//! The manifest room from outside: the corpus of good and bad manifests, hostile input, properties, speed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pocketenv::manifest::{
    Confinement, Diagnostics, Input, LoadRequest, Manifest, ResolveContext, Resolved, load, validate,
};
use pocketenv::model::PortRef;
use pocketenv::provider::{Capabilities, ChangeClass, FieldSupport, ProviderSetting, StopMeaning, Support};

const YES: Support = Support::Honoured(ChangeClass::Recreate);

const fn sheet(provider: &'static str, fields: &'static [FieldSupport]) -> Capabilities {
    Capabilities {
        provider,
        summary: "for tests",
        stop: StopMeaning::Suspend,
        labels: true,
        idempotent_create: true,
        settle_ms: 0,
        forwards_from_host: true,
        names_by_links: false,
        service: false,
        max_concurrency: 1,
        settings: &[ProviderSetting {
            name: "api_key",
            variable: Some("E2B_API_KEY"),
            secret: true,
            required: true,
            summary: "for tests",
        }],
        fields,
        ..Capabilities::NOTHING
    }
}

const ALL: &[FieldSupport] = &[
    FieldSupport { path: "sync", support: YES },
    FieldSupport { path: "ssh", support: YES },
    FieldSupport { path: "tailscale", support: YES },
    FieldSupport { path: "sockets", support: YES },
    FieldSupport { path: "lifecycle", support: YES },
    FieldSupport { path: "volumes.s3", support: YES },
];

/// As `ALL`, with directories that are shared.
const SHARES: &[FieldSupport] = &[
    FieldSupport { path: "sync", support: YES },
    FieldSupport { path: "sync.*.mode=bind", support: YES },
    FieldSupport { path: "ssh", support: YES },
    FieldSupport { path: "tailscale", support: YES },
    FieldSupport { path: "sockets", support: YES },
    FieldSupport { path: "lifecycle", support: YES },
    FieldSupport { path: "volumes.s3", support: YES },
];

const LITTLE: &[FieldSupport] = &[
    FieldSupport { path: "image", support: no("runs no images of others", "use `image: host`") },
    FieldSupport { path: "image=host", support: YES },
    FieldSupport { path: "network.egress", support: no("has no egress policy", "leave `egress` out") },
    FieldSupport { path: "network.mode=host", support: no("does not share the network of the host", "") },
    FieldSupport { path: "ports.*.public=true", support: no("cannot publish ports", "use `host_port`") },
    FieldSupport { path: "lifecycle", support: no("has no lifetimes", "delete it yourself") },
    FieldSupport { path: "presets.*.vars", support: no("has no variables", "") },
];

const fn no(because: &'static str, instead: &'static str) -> Support {
    Support::Refused { because, instead }
}

const LOCAL: Capabilities = sheet("local", SHARES);
const E2B: Capabilities = sheet("e2b", ALL);
const SMALL: Capabilities = sheet("small", LITTLE);

fn root() -> PathBuf {
    // Relative, so that no path of a machine stands in an expectation; tests run in the package's root.
    PathBuf::from("tests/corpus")
}

fn request(path: &Path) -> LoadRequest {
    LoadRequest {
        files: vec![Input::Path(path.to_path_buf())],
        env: BTreeMap::from([
            ("HOME".to_owned(), "/home/me".to_owned()),
            ("EMPTY".to_owned(), String::new()),
        ]),
        home: Some(PathBuf::from("/home/me")),
        confinement: None,
        ..LoadRequest::default()
    }
}

fn resolve(manifest: &Manifest) -> Result<Resolved, Diagnostics> {
    let port = |sandbox: &str, port| PortRef { sandbox: sandbox.to_owned(), port };
    let endpoints = BTreeMap::from([
        (port("db", 5432), ("127.0.0.1".to_owned(), 40_001)),
        (port("far", 80), ("far.example.com".to_owned(), 443)),
    ]);
    manifest.resolve(&ResolveContext { endpoints: &endpoints, capabilities: &[&LOCAL, &E2B, &SMALL] })
}

fn both(request: &LoadRequest) -> Result<Resolved, Diagnostics> {
    load(request).and_then(|manifest| resolve(&manifest))
}

/// As `pocketenv validate` does.
fn check(request: &LoadRequest) -> Result<Resolved, Diagnostics> {
    validate(request, &[&LOCAL, &E2B, &SMALL])
}

/// Every manifest of `dir`, by name.
fn corpus(dir: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join(dir))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() > 1, "the corpus is there");
    files
}

/// Holds `text` against the file `.expected` beside `path`; `UPDATE=1` rewrites it.
fn expect(path: &Path, text: &str, failures: &mut String) {
    let expected = path.with_extension("expected");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&expected, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
    if wanted != text {
        let _ = writeln!(failures, "=== {} ===\n--- expected\n{wanted}\n--- found\n{text}", path.display());
    }
}

#[test]
fn good_manifests_mean_what_they_should() {
    let mut failures = String::new();
    // Modes are part of a tree's hash and differ with the umask of whoever checked it out.
    let mode = |path: &str, mode| {
        std::fs::set_permissions(root().join(path), std::fs::Permissions::from_mode(mode)).unwrap()
    };
    mode("valid/data/a.txt", 0o644);
    mode("valid/parts/b.txt", 0o644);
    for path in corpus("valid") {
        match both(&request(&path)) {
            Ok(resolved) => {
                let mut text = serde_json::to_string_pretty(&resolved.desired).unwrap();
                // Paths of the host are absolute; the expectation must not know this machine.
                text = text.replace(&std::env::current_dir().unwrap().display().to_string(), "<root>");
                text.push('\n');
                text.push_str(&resolved.warnings.plain());
                expect(&path, &text, &mut failures);
            }
            Err(diagnostics) => {
                let _ = writeln!(failures, "=== {} is refused ===\n{}", path.display(), diagnostics.plain());
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn bad_manifests_are_told_what_is_wrong() {
    let mut failures = String::new();
    for path in corpus("invalid") {
        match check(&request(&path)) {
            Ok(_) => {
                let _ = writeln!(failures, "=== {} is accepted ===", path.display());
            }
            Err(diagnostics) => {
                assert!(diagnostics.has_errors());
                assert!(
                    diagnostics.items.iter().all(|d| d.location().is_some()),
                    "{} has no place",
                    path.display()
                );
                let text = format!("{}\n{}", diagnostics.plain(), diagnostics.graphical(false, 100));
                expect(&path, &text, &mut failures);
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Holds generated text against a file of the repository; `UPDATE=1` rewrites it.
fn fresh(path: &str, text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == text,
        "{path} is not what the types say; UPDATE=1 cargo nextest run manifest rewrites it"
    );
}

#[test]
fn schemas_and_reference_are_fresh() {
    let pretty = |schema| serde_json::to_string_pretty(schema).unwrap() + "\n";
    fresh("schemas/pocketenv.schema.json", &pretty(pocketenv::manifest::schema()));
    fresh("schemas/preset.schema.json", &pretty(pocketenv::manifest::preset_schema()));
    // It is part of the program: after a change of it the program has to be built again.
    fresh("src/manifest/rules.txt", &pocketenv::manifest::rules_file());
    fresh("docs/manifest.md", &pocketenv::manifest::reference());
}

#[test]
fn a_directory_of_this_machine_is_shared_only_by_who_may() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("own")).unwrap();
    let path = root.path().join("pocketenv.yaml");
    let text = "version: 1\nname: p\nsandboxes:\n  a:\n    provider: local\n    sync: [ { from: ./own, to: /x, mode: bind } ]\n";
    std::fs::write(&path, text).unwrap();
    let confined = |host_paths| LoadRequest {
        confinement: Some(Confinement {
            root: root.path().to_owned(),
            host_paths,
            secret_env: Default::default(),
            secret_files: Vec::new(),
            command_secrets: false,
            vault_secrets: false,
            host_network: false,
            devices: false,
            host_ports: false,
            provider_settings: false,
        }),
        ..request(&path)
    };
    let refused = check(&confined(false)).unwrap_err().plain();
    assert!(refused.contains(":6:42: error:") && refused.contains("`host_paths: true`"), "{refused}");
    let allowed = check(&confined(true)).unwrap();
    let binds = &allowed.desired.sandboxes["a"].spec.binds;
    assert_eq!((binds[0].from.as_path(), binds[0].read_only), (root.path().join("own").as_path(), true));
}

#[test]
fn a_port_of_this_machine_is_chosen_only_by_who_may() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("pocketenv.yaml");
    let confined = |host_ports| LoadRequest {
        confinement: Some(Confinement {
            root: root.path().to_owned(),
            host_paths: false,
            secret_env: Default::default(),
            secret_files: Vec::new(),
            command_secrets: false,
            vault_secrets: false,
            host_network: false,
            devices: false,
            host_ports,
            provider_settings: false,
        }),
        ..request(&path)
    };
    let text = |port: &str| {
        format!(
            "version: 1\nname: p\nsandboxes:\n  a:\n    provider: local\n    ports: [ {{ port: 3000{port} }} ]\n"
        )
    };
    std::fs::write(&path, text("")).unwrap();
    assert!(check(&confined(false)).is_ok(), "a free one is found");
    std::fs::write(&path, text(", host_port: 13000")).unwrap();
    let refused = check(&confined(false)).unwrap_err().plain();
    assert!(refused.contains(":6:") && refused.contains("`host_ports: true`"), "{refused}");
    let allowed = check(&confined(true)).unwrap();
    assert_eq!(allowed.desired.sandboxes["a"].spec.ports[&3000].host_port, Some(13_000));
    // A privileged one is nobody's.
    std::fs::write(&path, text(", host_port: 80")).unwrap();
    for host_ports in [false, true] {
        let refused = check(&confined(host_ports)).unwrap_err().plain();
        assert!(refused.contains("the port 80 of this machine needs privilege"), "{refused}");
    }
}

#[test]
fn the_example_is_good_and_uses_every_key() {
    let path = Path::new("pocketenv.yaml.example");
    let resolved = check(&request(path)).unwrap_or_else(|d| panic!("{}", d.plain()));
    assert!(resolved.warnings.is_empty(), "{}", resolved.warnings.plain());
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(pocketenv::manifest::format("example", &text).unwrap(), text, "the example is in normal form");
    let schema = pocketenv::manifest::schema();
    let objects = schema["$defs"].as_object().unwrap().values().chain([schema]);
    for key in objects.filter_map(|d| d["properties"].as_object()).flat_map(|p| p.keys()) {
        assert!(text.contains(&format!("{key}:")), "the example does not show `{key}`");
    }
}

/// Our walk and a validator that knows nothing of us agree on the whole corpus, as far as the schema alone decides.
#[test]
fn the_schema_accepts_what_we_accept() {
    for schema in [pocketenv::manifest::schema(), pocketenv::manifest::preset_schema()] {
        jsonschema::meta::validate(schema).unwrap();
    }
    let validator = jsonschema::validator_for(pocketenv::manifest::schema()).unwrap();
    for path in corpus("valid").into_iter().chain([PathBuf::from("pocketenv.yaml.example")]) {
        let text = std::fs::read_to_string(&path).unwrap();
        let value = pocketenv::manifest::to_json("f", &text).unwrap();
        if value.get("include").is_some() {
            continue;
        }
        let errors: Vec<String> =
            validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
}

#[test]
fn every_value_knows_where_it_was_written() {
    let resolved = check(&request(Path::new("tests/corpus/valid/shop.yaml"))).unwrap();
    let json = serde_json::to_string(&resolved.origins).unwrap();
    let origins: pocketenv::manifest::Origins = serde_json::from_str(&json).unwrap();
    assert_eq!(origins, resolved.origins);
    let text = std::fs::read_to_string("tests/corpus/valid/shop.yaml").unwrap();
    for (address, field, written) in [
        ("sandbox/db", "image", "docker.io"),
        ("sandbox/db", "spec.of.nothing", "db:"),
        ("sandbox/db/service/postgres", "command", "[postgres"),
        ("sandbox/db/service/postgres", "healthcheck.interval", "2s,"),
        ("sandbox/api-2/env", "DATABASE_URL", "\"postgres://"),
        ("sandbox/api-1/service/web", "env.PORT", "3000 }"),
        ("sandbox/api-1/port/3000", "host_port", "\"1300{{"),
        ("sandbox/api-1/file/work/shop/config.toml", "mode", "0600"),
        ("sandbox/api-1/preset/tools", "vars.VERSION", "\"2\""),
        ("sandbox/api-1/repo/work/shop", "ref", "main,"),
        ("volume/models", "read_only", "true }"),
        ("volume/pgdata", "", "pgdata:"),
    ] {
        let place =
            origins.get(&address.parse().unwrap(), field).unwrap_or_else(|| panic!("{address} {field}"));
        assert_eq!(place.file, "tests/corpus/valid/shop.yaml");
        let line = text.lines().nth(place.line as usize - 1).unwrap();
        let found: String = line.chars().skip(place.column as usize - 1).collect();
        assert!(found.starts_with(written), "{address} {field} is at `{found}`");
    }
    assert_eq!(origins.get(&"sandbox/nope".parse().unwrap(), "image"), None);
}

#[test]
fn the_configuration_has_names_of_secrets_and_nothing_else_of_them() {
    let path = Path::new("tests/corpus/valid/shop.yaml");
    let manifest = load(&request(path)).unwrap();
    let config = manifest.config(&resolve(&manifest).unwrap());
    assert_eq!(config["secrets"]["DB_PASSWORD"], "file");
    assert_eq!(config["sandboxes"]["api-2"]["guest"]["env"]["N"], "1.10");
    let text = config.to_string();
    assert!(!text.contains(".secrets/db") && !text.contains("op://"), "{text}");
    assert_eq!(manifest.providers_used().into_iter().collect::<Vec<_>>(), ["e2b", "local"]);
    assert_eq!(manifest.ports().len(), 3);
    assert_eq!(manifest.ports()[0].host_port, Some(13_001));
    assert_eq!(manifest.digest(), load(&request(path)).unwrap().digest());
}

/// An address that is not known yet leaves its place empty and the sandbox waiting; a known one far away makes no link.
#[test]
fn addresses_become_dependencies_links_and_open_questions() {
    let manifest = load(&request(Path::new("tests/corpus/valid/shop.yaml"))).unwrap();
    let none = BTreeMap::new();
    let early =
        manifest.resolve(&ResolveContext { endpoints: &none, capabilities: &[&LOCAL, &E2B] }).unwrap();
    let api = &early.desired.sandboxes["api-1"];
    assert_eq!(api.guest.env["DATABASE_URL"], "postgres://:/shop");
    let db = PortRef { sandbox: "db".to_owned(), port: 5432 };
    assert!(api.unresolved.contains(&db) && api.spec.links.is_empty());
    assert!(api.depends_on.contains_key("db"));
    let later = resolve(&manifest).unwrap();
    let api = &later.desired.sandboxes["api-1"];
    assert!(api.unresolved.is_empty());
    assert_eq!(api.spec.links.iter().map(|l| (&l.to, l.host_port)).collect::<Vec<_>>(), [(&db, 40_001)]);
    let far = both(&request(Path::new("tests/corpus/valid/far-port.yaml"))).unwrap();
    let app = &far.desired.sandboxes["app"];
    assert_eq!(app.guest.env["URL"], "https://far.example.com:443");
    assert!(app.spec.links.is_empty() && app.unresolved.is_empty());
}
