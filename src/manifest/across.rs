//! What only shows when all sandboxes are there.

use std::collections::BTreeMap;
use std::path::Path;

use super::assemble::Declaration;
use super::diagnostic::{Problem, Problems};
use super::graph;
use super::node::{Node, Value};
use super::source::Span;
use crate::model::Desired;

/// Reports ports and paths of this machine that are taken twice, volumes at other providers, and cycles. `root` is the place of the whole.
pub(super) fn check(declarations: &[Declaration], desired: &Desired, root: Span, problems: &mut Problems) {
    let nodes: BTreeMap<&str, &Declaration> =
        declarations.iter().flat_map(|d| d.replicas.iter().map(move |r| (r.as_str(), d))).collect();
    let span_of = |sandbox: &str| nodes.get(sandbox).map_or(root, |d| d.key);
    let mut socket_paths: BTreeMap<&Path, &str> = BTreeMap::new();
    let mut host_ports: BTreeMap<(u16, bool), (&str, Span)> = BTreeMap::new();
    for (name, sandbox) in &desired.sandboxes {
        for (port, spec) in &sandbox.spec.ports {
            let Some(host) = spec.host_port else { continue };
            let span = nodes.get(name.as_str()).map_or(span_of(name), |d| host_port_span(d, *port));
            if let Some((other, first)) = host_ports.insert((host, spec.protocol.is_udp()), (name, span)) {
                let mut problem = Problem::error(
                    "port-clash",
                    span,
                    format!("the port {host} of this machine is taken twice: by `{other}` and by `{name}`"),
                );
                problem = if first == span {
                    problem.help("leave `host_port` out, or make it differ: \"130{{ index }}\"")
                } else {
                    problem
                        .related(first, format!("`{other}` takes it here"))
                        .help("leave one of them out for a free port")
                };
                problems.push(problem);
            }
        }
        for (socket, spec) in &sandbox.spec.sockets {
            let Some(path) = &spec.host_path else { continue };
            if let Some(other) = socket_paths.insert(path, name) {
                let span = nodes
                    .get(name.as_str())
                    .map_or(span_of(name), |d| d.node.span_at(&["sockets", socket, "host_path"]));
                let message =
                    format!("the path {} is taken twice: by `{other}` and by `{name}`", path.display());
                problems.push(
                    Problem::error("path-clash", span, message)
                        .help("leave `host_path` out, or make it differ: \"./{{ index }}.sock\""),
                );
            }
        }
        for mount in &sandbox.spec.mounts {
            let Some(volume) = desired.volumes.get(&mount.volume) else { continue };
            if volume.provider != sandbox.provider {
                let span = nodes.get(name.as_str()).map_or(span_of(name), |d| d.node.span_at(&["volumes"]));
                problems.push(
                    Problem::error(
                        "conflict",
                        span,
                        format!(
                            "the volume `{}` lives at `{}`, the sandbox `{name}` at `{}`",
                            mount.volume, volume.provider, sandbox.provider
                        ),
                    )
                    .help("a volume can be mounted only where it is kept"),
                );
            }
        }
    }
    let edges = desired
        .sandboxes
        .iter()
        .map(|(name, sandbox)| (name.as_str(), sandbox.depends_on.keys().map(String::as_str).collect()))
        .collect();
    if let Some(cycle) = graph::cycle(&edges) {
        let mut names: Vec<&str> = Vec::new();
        let declared = |name: &str| nodes.get(name).map_or("?", |d| d.name.as_str()).to_owned();
        names.extend(cycle.iter().copied());
        let from = cycle.first().copied().unwrap_or_default();
        let to = cycle.get(1).copied().unwrap_or_default();
        let span =
            nodes.get(from).map_or(span_of(from), |d| match d.node.get("depends_on").map(|n| &n.value) {
                Some(Value::Map(_)) if d.node.at(&["depends_on", &declared(to)]).is_some() => {
                    d.node.key_span(&["depends_on", &declared(to)])
                }
                Some(Value::List(items)) => items
                    .iter()
                    .find(|i| i.as_text() == Some(&declared(to)) || i.as_text() == Some(to))
                    .map_or(d.key, |i| i.span),
                _ => d.key,
            });
        problems.push(
            Problem::error("cycle", span, format!("sandboxes wait for one another: {}", names.join(" → ")))
                .help("a template that names another sandbox's port counts as a dependency"),
        );
    }
}

/// Where the host port of `port` is written, in the tree as written.
fn host_port_span(declaration: &Declaration, port: u16) -> Span {
    let items = declaration.node.get("ports").and_then(Node::as_list).unwrap_or_default();
    let number = port.to_string();
    items
        .iter()
        .find_map(|item| match item.as_text() {
            Some(text) => (text.rsplit(':').next() == Some(number.as_str())).then_some(item.span),
            None if item.get("port").and_then(Node::as_text) == Some(&number) => {
                item.get("host_port").map(|n| n.span)
            }
            None => None,
        })
        .unwrap_or_else(|| declaration.node.span_at(&["ports"]))
}
