//! The matrix: every field of the language × every provider is enforced, brought about inside, Pocketenv's own, or refused at its line. Never dropped.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use pocketenv::manifest::{Handling, Input, LoadRequest, Resolved, fields, providers_page, validate};
use pocketenv::provider::{Capabilities, builtin_capabilities};
use serde_json::Value as Json;

/// An example of every field: the sandbox (or volume) without it, and with it. A new field of the schema needs one here.
const SANDBOX: &[(&str, &str, &str)] = &[
    ("image", "", "image: 'docker.io/library/debian:12'"),
    ("base", "", "base: claude"),
    ("build", "", "build: ./context"),
    ("build.context", "", "build: { context: ./context }"),
    (
        "build.secrets",
        "build: { context: ./context }",
        "build: { context: ./context, secrets: { npm: { secret: KEY } } }",
    ),
    (
        "build.secrets.*.secret",
        "build: { context: ./context }",
        "build: { context: ./context, secrets: { npm: { secret: KEY } } }",
    ),
    ("build.dockerfile", "build: { context: ./context }", "build: { context: ./context, dockerfile: Other }"),
    ("snapshot", "", "snapshot: s1"),
    ("provider", "", "provider: OTHER"),
    ("count", "", "count: 2"),
    ("state", "", "state: stopped"),
    ("user", "", "user: nobody"),
    ("working_dir", "", "working_dir: /work"),
    ("hostname", "", "hostname: other"),
    ("resources", "", "resources: { cpu: 2 }"),
    ("resources.cpu", "", "resources: { cpu: 2 }"),
    ("resources.memory", "", "resources: { memory: 1GiB }"),
    ("resources.disk", "", "resources: { disk: 4GiB }"),
    ("resources.pids", "", "resources: { pids: 100 }"),
    ("resources.io", "", "resources: { io: { read: 10MiB } }"),
    ("resources.io.read", "", "resources: { io: { read: 10MiB } }"),
    ("resources.io.write", "", "resources: { io: { write: 10MiB } }"),
    ("resources.io.read_ops", "", "resources: { io: { read_ops: 500 } }"),
    ("resources.io.write_ops", "", "resources: { io: { write_ops: 500 } }"),
    ("env_file", "", "env_file: some.env"),
    ("env", "", "env: { A: b }"),
    ("secrets", "", "secrets: [KEY]"),
    ("secrets.*.as_env", "secrets: [KEY]", "secrets: { KEY: { as_env: RENAMED } }"),
    ("secrets.*.as_file", "secrets: [KEY]", "secrets: { KEY: { as_file: /run/key } }"),
    (
        "secrets.*.owner",
        "secrets: { KEY: { as_file: /run/key } }",
        "secrets: { KEY: { as_file: /run/key, owner: nobody } }",
    ),
    ("secrets.*.hosts", "secrets: [KEY]", "secrets: { KEY: { hosts: [api.example.com] } }"),
    ("volumes", "", "volumes: ['data:/data']"),
    ("volumes.*.name", "", "volumes: [{ name: data, path: /data }]"),
    ("volumes.*.path", "volumes: [{ name: data, path: /data }]", "volumes: [{ name: data, path: /other }]"),
    (
        "volumes.*.read_only",
        "volumes: [{ name: data, path: /data }]",
        "volumes: [{ name: data, path: /data, read_only: true }]",
    ),
    ("ports", "", "ports: [8000]"),
    ("ports.*.port", "", "ports: [{ port: 8000 }]"),
    ("ports.*.host_port", "ports: [8000]", "ports: [{ port: 8000, host_port: 18000 }]"),
    ("ports.*.host_ip", "ports: [8000]", "ports: [{ port: 8000, host_ip: 0.0.0.0 }]"),
    ("ports.*.protocol", "ports: [8000]", "ports: [{ port: 8000, protocol: http }]"),
    ("ports.*.public", "ports: [8000]", "ports: [{ port: 8000, public: true }]"),
    ("ports.*.description", "ports: [8000]", "ports: [{ port: 8000, description: shop }]"),
    ("sockets", "", "sockets: { db: 5432 }"),
    ("sockets.*.to", "sockets: { db: 5432 }", "sockets: { db: { to: /run/db.sock } }"),
    ("sockets.*.host_path", "sockets: { db: 5432 }", "sockets: { db: { to: 5432, host_path: db.sock } }"),
    ("repo", "", "repo: 'github:acme/shop'"),
    ("repo.url", "", "repo: { url: 'github:acme/shop' }"),
    ("repo.ref", "repo: { url: 'github:a/b' }", "repo: { url: 'github:a/b', ref: main }"),
    ("repo.path", "repo: { url: 'github:a/b' }", "repo: { url: 'github:a/b', path: /r }"),
    ("repo.depth", "repo: { url: 'github:a/b' }", "repo: { url: 'github:a/b', depth: 1 }"),
    (
        "repo.credentials",
        "repo: { url: 'github:a/b' }",
        "repo: { url: 'github:a/b', credentials: { secret: KEY } }",
    ),
    (
        "repo.credentials.secret",
        "repo: { url: 'github:a/b' }",
        "repo: { url: 'github:a/b', credentials: { secret: KEY } }",
    ),
    ("repo.*.url", "", "repo: [{ url: 'github:a/b' }]"),
    ("repo.*.ref", "repo: [{ url: 'github:a/b' }]", "repo: [{ url: 'github:a/b', ref: main }]"),
    ("repo.*.path", "repo: [{ url: 'github:a/b' }]", "repo: [{ url: 'github:a/b', path: /r }]"),
    ("repo.*.depth", "repo: [{ url: 'github:a/b' }]", "repo: [{ url: 'github:a/b', depth: 1 }]"),
    (
        "repo.*.credentials",
        "repo: [{ url: 'github:a/b' }]",
        "repo: [{ url: 'github:a/b', credentials: { secret: KEY } }]",
    ),
    (
        "repo.*.credentials.secret",
        "repo: [{ url: 'github:a/b' }]",
        "repo: [{ url: 'github:a/b', credentials: { secret: KEY } }]",
    ),
    ("presets", "", "presets: [tools]"),
    ("presets.*.name", "", "presets: [{ name: tools }]"),
    ("presets.*.vars", "presets: [{ name: tools }]", "presets: [{ name: tools, vars: { WORD: other } }]"),
    ("depends_on", "", "depends_on: [first]"),
    ("depends_on.*.condition", "depends_on: [first]", "depends_on: { first: { condition: healthy } }"),
    ("files", "", "files: [{ path: /a, content: b }]"),
    ("files.*.path", "files: [{ path: /a, content: b }]", "files: [{ path: /b, content: b }]"),
    ("files.*.content", "files: [{ path: /a, content: b }]", "files: [{ path: /a, content: c }]"),
    ("files.*.template", "", "files: [{ path: /a, template: some.hbs }]"),
    ("files.*.source", "", "files: [{ path: /a, source: some.hbs }]"),
    (
        "files.*.owner",
        "files: [{ path: /a, content: b }]",
        "files: [{ path: /a, content: b, owner: nobody }]",
    ),
    ("files.*.mode", "files: [{ path: /a, content: b }]", "files: [{ path: /a, content: b, mode: '0600' }]"),
    ("services", "", "services: { web: { command: [a] } }"),
    ("services.*.command", "services: { web: { command: [a] } }", "services: { web: { command: [b] } }"),
    ("services.*.state", WEB, "services: { web: { command: [a], state: stopped } }"),
    ("services.*.working_dir", WEB, "services: { web: { command: [a], working_dir: /w } }"),
    ("services.*.user", WEB, "services: { web: { command: [a], user: nobody } }"),
    ("services.*.env", WEB, "services: { web: { command: [a], env: { A: b } } }"),
    (
        "services.*.depends_on",
        TWO,
        "services: { db: { command: [a] }, web: { command: [a], depends_on: [db] } }",
    ),
    (
        "services.*.depends_on.*.condition",
        "services: { db: { command: [a], healthcheck: { tcp: 1 } }, web: { command: [a], depends_on: [db] } }",
        "services: { db: { command: [a], healthcheck: { tcp: 1 } }, web: { command: [a], depends_on: { db: { condition: healthy } } } }",
    ),
    ("services.*.healthcheck", WEB, "services: { web: { command: [a], healthcheck: { tcp: 1 } } }"),
    ("services.*.healthcheck.tcp", WEB, "services: { web: { command: [a], healthcheck: { tcp: 1 } } }"),
    (
        "services.*.healthcheck.http",
        WEB,
        "services: { web: { command: [a], healthcheck: { http: { port: 1 } } } }",
    ),
    (
        "services.*.healthcheck.http.port",
        WEB,
        "services: { web: { command: [a], healthcheck: { http: { port: 1 } } } }",
    ),
    (
        "services.*.healthcheck.http.path",
        "services: { web: { command: [a], healthcheck: { http: { port: 1 } } } }",
        "services: { web: { command: [a], healthcheck: { http: { port: 1, path: /x } } } }",
    ),
    ("services.*.healthcheck.exec", WEB, "services: { web: { command: [a], healthcheck: { exec: [x] } } }"),
    (
        "services.*.healthcheck.interval",
        TCP,
        "services: { web: { command: [a], healthcheck: { tcp: 1, interval: 77s } } }",
    ),
    (
        "services.*.healthcheck.timeout",
        TCP,
        "services: { web: { command: [a], healthcheck: { tcp: 1, timeout: 7s } } }",
    ),
    (
        "services.*.healthcheck.retries",
        TCP,
        "services: { web: { command: [a], healthcheck: { tcp: 1, retries: 77 } } }",
    ),
    (
        "services.*.healthcheck.start_period",
        TCP,
        "services: { web: { command: [a], healthcheck: { tcp: 1, start_period: 77s } } }",
    ),
    ("services.*.restart", WEB, "services: { web: { command: [a], restart: never } }"),
    ("services.*.stop_signal", WEB, "services: { web: { command: [a], stop_signal: INT } }"),
    ("services.*.stop_timeout", WEB, "services: { web: { command: [a], stop_timeout: 77s } }"),
    ("services.*.logs", WEB, "services: { web: { command: [a], logs: { max_files: 7 } } }"),
    ("services.*.logs.max_size", WEB, "services: { web: { command: [a], logs: { max_size: 7MiB } } }"),
    ("services.*.logs.max_files", WEB, "services: { web: { command: [a], logs: { max_files: 7 } } }"),
    ("network", "", "network: none"),
    ("network.mode", "", "network: { mode: none }"),
    ("network.egress", "", "network: { egress: deny }"),
    ("network.allow", "network: { egress: deny }", "network: { egress: deny, allow: [github.com] }"),
    ("isolation", "", "isolation: { require: namespace }"),
    ("isolation.require", "", "isolation: { require: namespace }"),
    ("sync", "", "sync: [{ from: ./context, to: /s }]"),
    ("sync.*.from", "", "sync: [{ from: ./context, to: /s }]"),
    ("sync.*.to", "sync: [{ from: ./context, to: /s }]", "sync: [{ from: ./context, to: /t }]"),
    (
        "sync.*.ignore",
        "sync: [{ from: ./context, to: /s }]",
        "sync: [{ from: ./context, to: /s, ignore: [x] }]",
    ),
    ("sync.*.on_change", SYNC, "sync: [{ from: ./context, to: /s, on_change: { exec: [x] } }]"),
    (
        "sync.*.on_change.restart",
        "services: { web: { command: [a] } }, sync: [{ from: ./context, to: /s }]",
        "services: { web: { command: [a] } }, sync: [{ from: ./context, to: /s, on_change: { restart: web } }]",
    ),
    ("sync.*.mode", SYNC, "sync: [{ from: ./context, to: /s, mode: bind }]"),
    ("sync.*.read_only", BIND, "sync: [{ from: ./context, to: /s, mode: bind, read_only: false }]"),
    ("sync.*.on_change.rebuild", SYNC, "sync: [{ from: ./context, to: /s, on_change: { rebuild: true } }]"),
    ("sync.*.on_change.exec", SYNC, "sync: [{ from: ./context, to: /s, on_change: { exec: [x] } }]"),
    ("devices", "", "devices: [kvm]"),
    ("lifecycle", "", "lifecycle: { keep_alive: true }"),
    ("lifecycle.keep_alive", "", "lifecycle: { keep_alive: true }"),
    ("lifecycle.idle_timeout", "", "lifecycle: { idle_timeout: 5m }"),
    ("lifecycle.ttl", "", "lifecycle: { ttl: 5m }"),
    ("lifecycle.on_delete", "", "lifecycle: { on_delete: { backup: [/d] } }"),
    ("lifecycle.on_delete.backup", "", "lifecycle: { on_delete: { backup: [/d] } }"),
    ("ssh", "", "ssh: { authorized_keys: ['ssh-ed25519 AAAA me'] }"),
    ("ssh.authorized_keys", "", "ssh: { authorized_keys: ['ssh-ed25519 AAAA me'] }"),
    ("tailscale", "", "tailscale: { auth_key: { secret: KEY } }"),
    ("tailscale.auth_key", "", "tailscale: { auth_key: { secret: KEY } }"),
    ("tailscale.auth_key.secret", "", "tailscale: { auth_key: { secret: KEY } }"),
    ("tailscale.hostname", "", "tailscale: { auth_key: { secret: KEY }, hostname: h }"),
    ("drift", "", "drift: warn"),
    ("protect", "", "protect: true"),
];
const WEB: &str = "services: { web: { command: [a] } }";
const TWO: &str = "services: { db: { command: [a] }, web: { command: [a] } }";
const TCP: &str = "services: { web: { command: [a], healthcheck: { tcp: 1 } } }";
const BIND: &str = "sync: [{ from: ./context, to: /s, mode: bind }]";
const SYNC: &str = "sync: [{ from: ./context, to: /s }]";

const VOLUME: &[(&str, &str, &str)] = &[
    ("volumes.NAME.provider", "", "provider: OTHER"),
    ("volumes.NAME.protect", "", "protect: true"),
    ("volumes.NAME.read_only", "", "read_only: true"),
    ("volumes.NAME.s3", "", S3),
    ("volumes.NAME.s3.bucket", "", S3),
    ("volumes.NAME.s3.prefix", S3, "s3: { bucket: b, prefix: p/ }"),
    ("volumes.NAME.s3.endpoint", S3, "s3: { bucket: b, endpoint: 'https://s3.example.com' }"),
    ("volumes.NAME.s3.region", S3, "s3: { bucket: b, region: r }"),
    ("volumes.NAME.s3.credentials", S3, "s3: { bucket: b, credentials: { secret: KEY } }"),
    ("volumes.NAME.s3.credentials.secret", S3, "s3: { bucket: b, credentials: { secret: KEY } }"),
];
const S3: &str = "s3: { bucket: b }";

/// Fields of mounts and ports by their paths in the resolved spec would be another table; where a field lands says enough.
#[derive(Debug, PartialEq)]
enum Found {
    /// Something that the provider is given is another.
    Provider,
    /// Something that is put in place inside is another.
    Inside,
    /// Something else that is desired is another.
    Other,
    /// Refused at the line of the field.
    Refused,
    /// Nothing is another: it was dropped.
    Dropped,
    /// It was refused for another reason, or at another line.
    Wrong(String),
}

/// The line on which the field stands.
const LINE: usize = 8;

/// What stands where no image is asked for, at a provider that has none of its own.
fn default_image(sheet: &Capabilities) -> &'static str {
    if sheet.honours(&["image"], Some("host")) { "" } else { "image: 'docker.io/library/debian:13'" }
}

/// A manifest at one provider: what there is to say of the sandbox and of the volume.
fn look(
    dir: &Path,
    sheet: &Capabilities,
    sandbox: &str,
    volume: &str,
) -> Result<Resolved, Vec<(usize, String, String)>> {
    // One that has volumes as well, since volumes move too.
    let has_volumes = |other: &Capabilities| other.honours(&["volumes"], None);
    let mut others = builtin_capabilities().iter().filter(|other| other.provider != sheet.provider);
    let other = others.find(|other| has_volumes(other)).unwrap();
    let own_image = ["image", "base", "build", "snapshot"].contains(&sandbox.split(':').next().unwrap());
    let moved = sandbox.contains("OTHER");
    let image = match () {
        () if own_image => "",
        () if moved => default_image(other),
        () => default_image(sheet),
    };
    let manifest = format!(
        "version: 1\nname: matrix\ndefaults: {{ provider: {} }}\nsecrets: {{ KEY: {{ env: KEY }} }}\n\
         presets: {{ tools: {{ vars: {{ WORD: w }}, steps: [{{ name: a, run: 'echo $WORD' }}] }} }}\n\
         sandboxes:\n  first: {{ services: {{ db: {{ command: [a], healthcheck: {{ tcp: 1 }} }} }}{first} }}\n  box: {{ {sandbox}{comma}{image} }}\nvolumes: {{ data: {{ {volume} }} }}\n",
        sheet.provider,
        first = if default_image(sheet).is_empty() { String::new() } else { format!(", {}", default_image(sheet)) },
        comma = if sandbox.is_empty() || image.is_empty() { "" } else { ", " },
    )
    .replace("OTHER", other.provider);
    let path = dir.join("pocketenv.yaml");
    std::fs::write(&path, manifest).unwrap();
    let request = LoadRequest {
        files: vec![Input::Path(path)],
        env: BTreeMap::from([("KEY".to_owned(), "value".to_owned())]),
        ..LoadRequest::default()
    };
    validate(&request, builtin_capabilities()).map_err(|diagnostics| {
        let told = |d: &pocketenv::manifest::Diagnostic| {
            let line = d.location().map_or(0, |location| location.line);
            (usize::try_from(line).unwrap(), d.code.to_owned(), d.message.clone())
        };
        diagnostics.items.iter().map(told).collect()
    })
}

fn found(dir: &Path, sheet: &Capabilities, of_volume: bool, without: &str, with: &str) -> Found {
    // Only what is mounted can be mounted read-only.
    let mount = if with.contains("read_only") { "volumes: ['data:/data']" } else { "" };
    let at = |text: &str| if of_volume { look(dir, sheet, mount, text) } else { look(dir, sheet, text, "") };
    let line = if of_volume { LINE + 1 } else { LINE };
    let after = match at(with) {
        Ok(resolved) => resolved,
        Err(told) if told.iter().all(|(at, code, _)| code == "unsupported" && *at == line) => {
            return Found::Refused;
        }
        Err(told) => return Found::Wrong(format!("{told:?}")),
    };
    let kind_of_image = ["image:", "base:", "build:", "snapshot:"].iter().any(|kind| with.starts_with(kind));
    let without = if kind_of_image && without.is_empty() { default_image(sheet) } else { without };
    let before = match at(without) {
        Ok(resolved) => serde_json::to_value(&resolved.desired).unwrap(),
        Err(told) => return Found::Wrong(format!("without it: {told:?}")),
    };
    let after = serde_json::to_value(&after.desired).unwrap();
    let part = |desired: &Json, part: &str| desired["sandboxes"]["box"][part].clone();
    match () {
        () if before == after => Found::Dropped,
        () if part(&before, "spec") != part(&after, "spec") && after["sandboxes"]["box"] != Json::Null => {
            Found::Provider
        }
        () if part(&before, "guest") != part(&after, "guest") && after["sandboxes"]["box"] != Json::Null => {
            Found::Inside
        }
        () => Found::Other,
    }
}

#[test]
fn no_field_is_dropped_by_any_provider() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("context")).unwrap();
    for (name, text) in [
        ("some.env", "A=b\n"),
        ("some.hbs", "text"),
        ("context/Dockerfile", "FROM x\n"),
        ("context/Other", "FROM y\n"),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let examples: BTreeMap<&str, (&str, &str)> =
        SANDBOX.iter().chain(VOLUME).map(|(path, without, with)| (*path, (*without, *with))).collect();
    let mut wrong = Vec::new();
    let mut used = 0;
    for field in fields() {
        let name = field.to_string();
        let Some((without, with)) = examples.get(name.as_str()) else {
            wrong.push(format!("`{name}` has no example here"));
            continue;
        };
        used += 1;
        for sheet in builtin_capabilities() {
            let handling = field.handling(sheet);
            // Where there are no volumes, naming one is refused, and what it says is beside the point.
            if field.of_volume && !sheet.honours(&["volumes"], None) {
                continue;
            }
            let found = found(dir.path(), sheet, field.of_volume, without, with);
            let agree = match (&handling, &found) {
                (_, Found::Refused) => {
                    // The field, or the value that the example has.
                    !matches!(handling, Handling::Inside | Handling::Pocketenv | Handling::Unsaid)
                }
                (Handling::Enforced(_), Found::Provider) => true,
                (Handling::Inside, Found::Inside) => true,
                // Such decisions stand beside spec and guest; where it lives decides what nothing means.
                (Handling::Pocketenv, Found::Other | Found::Provider) => true,
                _ => false,
            };
            if !agree {
                wrong.push(format!(
                    "`{name}` at {}: {handling:?} by the sheet, {found:?} in fact",
                    sheet.provider
                ));
            }
        }
    }
    assert_eq!(used, examples.len(), "an example of a field that does not exist");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_of_providers_is_fresh() {
    let page = providers_page(builtin_capabilities());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write("docs/providers.md", &page).unwrap();
    }
    let found = std::fs::read_to_string("docs/providers.md").unwrap_or_default();
    assert!(
        found == page,
        "docs/providers.md is not what the sheets say; UPDATE=1 cargo nextest run support rewrites it"
    );
}

#[test]
fn what_is_beyond_the_limits_of_a_provider_is_refused_at_its_line() {
    use pocketenv::provider::{ChangeClass, FieldSupport, Range, ResourceRanges, Support};
    const YES: Support = Support::Honoured(ChangeClass::Recreate);
    static SMALL: Capabilities = Capabilities {
        provider: "small",
        longest_life_ms: Some(3_600_000),
        resources: ResourceRanges {
            cpu_millis: Some(Range { min: 500, max: 2000 }),
            memory: Some(Range { min: 256 << 20, max: 4 << 30 }),
            disk: None,
        },
        fields: &[FieldSupport { path: "image", support: YES }],
        ..Capabilities::NOTHING
    };
    let dir = tempfile::tempdir().unwrap();
    let check = |cpu: &str, memory: &str, ttl: &str| {
        let text = format!(
            "version: 1\nname: p\ndefaults: {{ provider: small }}\nsandboxes:\n  a:\n    image: x\n    resources:\n      cpu: {cpu}\n      memory: {memory}\n    lifecycle:\n      ttl: {ttl}\n"
        );
        std::fs::write(dir.path().join("pocketenv.yaml"), text).unwrap();
        let files = vec![Input::Path(dir.path().join("pocketenv.yaml"))];
        match validate(&LoadRequest { files, ..LoadRequest::default() }, &[&SMALL]) {
            Ok(_) => Vec::new(),
            Err(told) => told.items.iter().map(|d| (d.location().unwrap().line, d.message.clone())).collect(),
        }
    };
    assert_eq!(check("2", "4GiB", "1h"), []);
    let told = check("4", "128MiB", "2h");
    assert_eq!(told.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [8, 9, 11], "{told:?}");
    assert!(told[0].1.contains("gives 0.5 to 2") && told[2].1.contains("after 1h"), "{told:?}");
}
