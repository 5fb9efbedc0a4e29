//! Short forms to long forms, lists of keyed things to mappings: after this there is one way to write each thing, and one path
//! to each value (`ports.3000.host_port`). The spans stay those of what was written.

use std::collections::HashMap;

use super::diagnostic::{Problem, Problems};
use super::language::scalar::{parse_mount, parse_port_text};
use super::node::{Entry, Node, Scalar, Value, quote};
use super::repo;
use super::source::Span;

/// Rewrites a checked sandbox.
pub(crate) fn sandbox(node: &mut Node, problems: &mut Problems) {
    on(node, "env", |n| env(n, problems));
    on(node, "secrets", |n| names_to_map(n, "the secret", problems));
    on(node, "depends_on", |n| names_to_map(n, "the dependency", problems));
    on(node, "env_file", one_to_list);
    on(node, "build", |n| scalar_to_map(n, "context"));
    on(node, "network", |n| scalar_to_map(n, "mode"));
    on(node, "volumes", |n| keyed(n, "path", "two mounts at", mount, problems));
    on(node, "ports", |n| keyed(n, "port", "two entries for port", port, problems));
    if let Some(Value::Map(sockets)) = node.get_mut("sockets").map(|n| &mut n.value) {
        sockets.iter_mut().for_each(|entry| scalar_to_map(&mut entry.value, "to"));
    }
    on(node, "files", |n| keyed(n, "path", "two entries for the file", |_| {}, problems));
    on(node, "repo", |n| {
        if n.as_list().is_none() {
            one_to_list(n);
        }
        keyed(n, "path", "two repositories at", repository, problems);
    });
    on(node, "presets", |n| {
        if let Value::List(items) = &mut n.value {
            items.iter_mut().for_each(|item| scalar_to_map(item, "name"));
        }
    });
    on(node, "sync", |n| {
        if let Value::List(items) = &mut n.value {
            items.iter_mut().for_each(|item| {
                on(item, "on_change", |change| {
                    word_to_switch(change);
                    on(change, "exec", command);
                });
            });
        }
    });
    if let Some(Value::Map(services)) = node.get_mut("services").map(|n| &mut n.value) {
        for entry in services {
            service(&mut entry.value, problems);
        }
    }
}

fn service(node: &mut Node, problems: &mut Problems) {
    on(node, "command", command);
    on(node, "env", |n| env(n, problems));
    on(node, "depends_on", |n| names_to_map(n, "the dependency", problems));
    on(node, "healthcheck", |check| {
        on(check, "http", |n| scalar_to_map(n, "port"));
        on(check, "exec", command);
    });
}

fn on(node: &mut Node, key: &str, change: impl FnOnce(&mut Node)) {
    if let Some(child) = node.get_mut(key) {
        change(child);
    }
}

fn entry(key: &str, span: Span, value: Node) -> Entry {
    Entry { key: key.to_owned(), key_span: span, value }
}

fn replace(node: &mut Node, value: Value) {
    node.value = value;
}

fn copy_scalar(node: &Node) -> Option<Node> {
    node.as_scalar().map(|s| Node { value: Value::Scalar(s.clone()), span: node.span, anchor: node.anchor })
}

fn scalar_to_map(node: &mut Node, key: &str) {
    if let Some(scalar) = copy_scalar(node) {
        replace(node, Value::Map(vec![entry(key, node.span, scalar)]));
    }
}

/// `rebuild` → `{ rebuild: true }`.
fn word_to_switch(node: &mut Node) {
    if let Some(word) = node.as_text().map(str::to_owned) {
        let on = Node { value: Value::Scalar(Scalar::plain("true")), span: node.span, anchor: node.anchor };
        replace(node, Value::Map(vec![entry(&word, node.span, on)]));
    }
}

fn one_to_list(node: &mut Node) {
    let span = node.span;
    let value = std::mem::replace(&mut node.value, Value::List(Vec::new()));
    node.value = match value {
        Value::List(items) => Value::List(items),
        other => Value::List(vec![Node { value: other, span, anchor: node.anchor }]),
    };
}

fn command(node: &mut Node) {
    if let Some(script) = copy_scalar(node) {
        let word = |text: &str| Node::text(text, script.span);
        replace(node, Value::List(vec![word("sh"), word("-c"), script]));
    }
}

fn env(node: &mut Node, problems: &mut Problems) {
    let Value::List(items) = &node.value else { return };
    let mut entries = Vec::with_capacity(items.len());
    let mut seen = HashMap::new();
    for item in items {
        let Some((key, value)) = item.as_text().and_then(|t| t.split_once('=')) else { continue };
        if let Some(first) = seen.insert(key.to_owned(), item.span) {
            twice(problems, format!("the variable {} stands here twice", quote(key)), item.span, first);
            continue;
        }
        let value = Node { anchor: item.anchor, ..Node::text(value, item.span) };
        entries.push(entry(key, item.span, value));
    }
    replace(node, Value::Map(entries));
}

fn names_to_map(node: &mut Node, what: &str, problems: &mut Problems) {
    let Value::List(items) = &node.value else { return };
    let mut entries = Vec::with_capacity(items.len());
    let mut seen = HashMap::new();
    for item in items {
        let Some(name) = item.as_text() else { continue };
        if let Some(first) = seen.insert(name.to_owned(), item.span) {
            twice(problems, format!("{what} {} stands here twice", quote(name)), item.span, first);
            continue;
        }
        let value = Node { value: Value::Map(Vec::new()), span: item.span, anchor: item.anchor };
        entries.push(entry(name, item.span, value));
    }
    replace(node, Value::Map(entries));
}

fn twice(problems: &mut Problems, message: String, again: Span, first: Span) {
    problems
        .push(Problem::error("duplicate", again, message).label("again here").related(first, "first here"));
}

/// A list of things that each have a `key` becomes a mapping by that key.
fn keyed(node: &mut Node, key: &str, clash: &str, expand: impl Fn(&mut Node), problems: &mut Problems) {
    let Value::List(items) = &mut node.value else { return };
    let mut entries: Vec<Entry> = Vec::with_capacity(items.len());
    let mut seen: HashMap<String, Span> = HashMap::new();
    for mut item in std::mem::take(items) {
        expand(&mut item);
        let Some((name, span)) = item.get(key).and_then(|n| Some((n.as_text()?.to_owned(), n.span))) else {
            continue;
        };
        if let Some(first) = seen.insert(name.clone(), span) {
            twice(problems, format!("{clash} {}", quote(&name)), span, first);
            continue;
        }
        entries.push(Entry { key: name, key_span: span, value: item });
    }
    node.value = Value::Map(entries);
}

fn mount(item: &mut Node) {
    let Some(text) = copy_scalar(item) else { return };
    let Some((volume, path, read_only)) = text.as_text().and_then(|t| parse_mount(t).ok()) else { return };
    let span = item.span;
    let mut entries =
        vec![entry("name", span, Node::text(volume, span)), entry("path", span, Node::text(path, span))];
    if read_only {
        entries.push(entry("read_only", span, Node::new(Value::Scalar(Scalar::plain("true")), span)));
    }
    replace(item, Value::Map(entries));
}

fn port(item: &mut Node) {
    let Some(text) = copy_scalar(item) else {
        // `0080` and `80` are one port.
        if let Some(Value::Scalar(port)) = item.get_mut("port").map(|n| &mut n.value)
            && let Ok(number) = port.text.parse::<u16>()
        {
            port.text = number.to_string();
        }
        return;
    };
    let Some((host, inside)) = text.as_text().and_then(|t| parse_port_text(t).ok()) else { return };
    let span = item.span;
    let number = |n: u16| Node::text(n.to_string(), span);
    let mut entries = vec![entry("port", span, number(inside))];
    entries.extend(host.map(|host| entry("host_port", span, number(host))));
    replace(item, Value::Map(entries));
}

fn repository(item: &mut Node) {
    scalar_to_map(item, "url");
    if item.get("path").is_some() {
        return;
    }
    let Some((name, span)) =
        item.get("url").and_then(|u| Some((repo::parse(u.as_text()?).ok()?.name, u.span)))
    else {
        return;
    };
    if let Value::Map(entries) = &mut item.value {
        entries.push(entry("path", span, Node::text(format!("/workspace/{name}"), span)));
    }
}
