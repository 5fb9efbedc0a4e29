//! A first manifest for a directory: what is found there decides what is written.

use std::fmt::Write as _;
use std::path::Path;

use super::assemble::directory_name;
use super::node::{Node, Value};
use super::presets::builtin_text;
use super::read::read_bounded;
use super::source::Sources;
use super::yaml;

/// A first manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Starter {
    /// The text of `pocketenv.yaml`.
    pub text: String,
    /// What was found and what was made of it, one sentence each.
    pub chosen: Vec<String>,
}

/// What a kind of project needs: the file that tells, the preset, the command that starts it, the port it likes.
const KINDS: &[(&str, &str, &str, Option<u16>)] = &[
    ("package.json", "node", "npm start", Some(3000)),
    ("Cargo.toml", "rust", "cargo run", None),
    ("pyproject.toml", "python", "python3 -m http.server 8000", Some(8000)),
    ("requirements.txt", "python", "python3 -m http.server 8000", Some(8000)),
    ("go.mod", "go", "go run .", None),
];

const COMPOSE: &[&str] = &["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// Writes a first manifest for `dir`, in memory: whoever puts it on disk refuses to overwrite.
pub fn starter(dir: &Path) -> Starter {
    let name = directory_name(dir);
    let mut chosen = Vec::new();
    let mut text = format!(
        "# yaml-language-server: $schema=./schemas/pocketenv.schema.json\n# The language: docs/manifest.md. Try it: `pocketenv validate`, `pocketenv plan`, `pocketenv apply`.\nversion: 1\nname: {name}\n\nsandboxes:\n"
    );
    let compose = COMPOSE.iter().find(|file| dir.join(file).is_file());
    if let Some(file) = compose
        && let Some(boxes) = from_compose(&dir.join(file), &mut chosen, file)
    {
        text.push_str(&boxes);
        return Starter { text, chosen };
    }
    for file in [".devcontainer/devcontainer.json", "devcontainer.json", ".devcontainer.json"] {
        if dir.join(file).is_file() {
            let image = devcontainer_image(&dir.join(file));
            match image {
                Some(image) => {
                    chosen.push(format!("{file}: the image {image}, for providers that run images"));
                    let _ = write!(
                        text,
                        "  dev:\n    # From {file}; leave it out to use the programs of this machine.\n    # image: {image}\n"
                    );
                }
                None => {
                    chosen.push(format!("{file}: found; it names no image"));
                    text.push_str("  dev:\n");
                }
            }
            body(dir, &name, &mut text, &mut chosen);
            return Starter { text, chosen };
        }
    }
    text.push_str("  dev:\n");
    body(dir, &name, &mut text, &mut chosen);
    Starter { text, chosen }
}

/// The sandbox of a directory that holds source code.
fn body(dir: &Path, name: &str, text: &mut String, chosen: &mut Vec<String>) {
    let kind = KINDS.iter().find(|(file, ..)| dir.join(file).is_file());
    let Some((file, preset, command, port)) = kind else {
        chosen.push("nothing that tells the kind of project: a sandbox with this directory in it".to_owned());
        let _ = write!(
            text,
            "    files:\n      - {{ path: /workspace/{name}, source: . }}\n    working_dir: /workspace/{name}\n"
        );
        text.push_str("    # services:\n    #   web: { command: \"./serve\", healthcheck: { tcp: 8080 } }\n    # ports: [8080]\n");
        return;
    };
    chosen.push(format!(
        "{file}: a sandbox with this directory, the preset `{preset}` and the service `{command}`"
    ));
    let hash = if builtin_text(preset).is_some() { "" } else { "# " };
    let _ = writeln!(text, "    {hash}presets: [{preset}]");
    let _ = write!(
        text,
        "    files:\n      - {{ path: /workspace/{name}, source: . }}\n    working_dir: /workspace/{name}\n"
    );
    let _ =
        write!(text, "    services:\n      web:\n        command: {command}\n        restart: on-failure\n");
    if let Some(port) = port {
        let _ =
            write!(text, "        healthcheck: {{ tcp: {port}, start_period: 30s }}\n    ports: [{port}]\n");
    }
}

fn tree(path: &Path) -> Option<Node> {
    let text = String::from_utf8(read_bounded(path).ok()?).ok()?;
    let mut sources = Sources::default();
    let file = sources.add(String::new(), "".into(), text);
    yaml::parse(&sources, file, &mut super::diagnostic::Problems::default())
}

fn devcontainer_image(path: &Path) -> Option<String> {
    let text = String::from_utf8(read_bounded(path).ok()?).ok()?;
    // The format allows comments; whole lines of them are what people write.
    let json: String =
        text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let image = serde_json::from_str::<serde_json::Value>(&json).ok()?.get("image")?.as_str()?.to_owned();
    super::language::by_name("ImageRef").and_then(|t| (t.check)(&image).ok()).map(|()| image)
}

/// Services of a compose file as sandboxes: image, environment, ports. `None` if nothing can be made of it.
fn from_compose(path: &Path, chosen: &mut Vec<String>, file: &str) -> Option<String> {
    let tree = tree(path)?;
    let services = tree.get("services")?.as_map()?;
    let mut text = String::new();
    for service in services {
        let name = service.key.to_lowercase().replace('.', "-");
        if super::language::name(&name).is_err() {
            chosen.push(format!(
                "{file}: the service `{}` is left out: its name does not fit",
                super::node::quote(&service.key)
            ));
            continue;
        }
        let _ = writeln!(text, "  {name}:");
        let mut taken = Vec::new();
        let good_image =
            |t: &&str| super::language::by_name("ImageRef").is_some_and(|k| (k.check)(t).is_ok());
        if let Some(image) = service.value.get("image").and_then(Node::as_text).filter(good_image) {
            let _ = writeln!(text, "    image: {}", json_text(image));
            taken.push("image");
        }
        let env = environment(service.value.get("environment"));
        if !env.is_empty() {
            text.push_str("    env:\n");
            for (key, value) in env {
                let _ = writeln!(text, "      {key}: {}", json_text(&value.replace("{{", "\\{{")));
            }
            taken.push("environment");
        }
        let ports: Vec<String> = service
            .value
            .get("ports")
            .and_then(Node::as_list)
            .unwrap_or_default()
            .iter()
            .filter_map(|p| {
                let inside = p.get("target").unwrap_or(p).as_text()?;
                let inside = inside.rsplit(':').next()?.split('/').next()?;
                super::language::parse_port(inside).ok().map(|p| p.to_string())
            })
            .collect();
        if !ports.is_empty() {
            let _ = writeln!(text, "    ports: [{}]", ports.join(", "));
            taken.push("ports");
        }
        if taken.is_empty() {
            text.push_str("    state: running\n");
        }
        let known = ["image", "environment", "ports"];
        let left: Vec<&str> = service
            .value
            .as_map()
            .unwrap_or_default()
            .iter()
            .map(|e| e.key.as_str())
            .filter(|k| !known.contains(k) && super::language::name(k).is_ok())
            .collect();
        if !left.is_empty() {
            let _ = writeln!(text, "    # Not taken over from {file}: {}", left.join(", "));
        }
        chosen.push(format!(
            "{file}: the service `{name}` became a sandbox ({})",
            if taken.is_empty() { "its name only".to_owned() } else { taken.join(", ") }
        ));
    }
    (!text.is_empty()).then_some(text)
}

fn environment(node: Option<&Node>) -> Vec<(String, String)> {
    let pairs: Vec<(String, String)> = match node.map(|n| &n.value) {
        Some(Value::Map(entries)) => {
            entries.iter().filter_map(|e| Some((e.key.clone(), e.value.as_text()?.to_owned()))).collect()
        }
        Some(Value::List(items)) => items
            .iter()
            .filter_map(|i| i.as_text()?.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect(),
        _ => Vec::new(),
    };
    pairs.into_iter().filter(|(key, _)| super::language::env_name(key).is_ok()).collect()
}

/// A double-quoted YAML text; JSON is one.
fn json_text(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}
