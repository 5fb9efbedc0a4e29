//! Where every value of the desired state was written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::node::{Node, Value};
use super::source::Sources;
use crate::model::{Address, Location};

/// From an address and a field to the place in a file. Replicas of one declaration share their places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origins {
    files: Vec<String>,
    /// From each sandbox to its declaration.
    replicas: BTreeMap<String, String>,
    /// From `sandboxes.DECLARATION` or `volumes.NAME` to fields to (file, line, column).
    fields: BTreeMap<String, BTreeMap<String, (u32, u32, u32)>>,
}

impl Origins {
    /// The place of `field` (`image`, `env.PORT`, `services.web.command`; empty for the whole) of the resource at `address`, or of
    /// the nearest field that contains it. Fields are paths below the resource: `command` of `sandbox/api/service/web`.
    pub fn get(&self, address: &Address, field: &str) -> Option<Location> {
        let (owner, prefix) = match address {
            Address::Volume(name) => (format!("volumes.{name}"), String::new()),
            other => {
                let declaration = self.replicas.get(other.sandbox()?)?;
                let prefix = match other {
                    Address::Env(_) => "env".to_owned(),
                    Address::File(_, path) => format!("files.{path}"),
                    Address::Repo(_, path) => format!("repo.{path}"),
                    Address::Preset(_, name) => format!("presets.{name}"),
                    Address::Service(_, name) => format!("services.{name}"),
                    Address::Port(_, port) => format!("ports.{port}"),
                    Address::Socket(_, name) => format!("sockets.{name}"),
                    Address::Volume(_) | Address::Snapshot(_) | Address::Sandbox(_) => String::new(),
                };
                (format!("sandboxes.{declaration}"), prefix)
            }
        };
        let fields = self.fields.get(&owner)?;
        let path = match (prefix.as_str(), field) {
            ("", field) => field.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, field) => format!("{prefix}.{field}"),
        };
        let mut path = path.as_str();
        loop {
            if let Some((file, line, column)) = fields.get(path) {
                let file = self.files.get(*file as usize)?.clone();
                return Some(Location { file, line: *line, column: *column });
            }
            path = match path.rfind('.') {
                Some(dot) => path.get(..dot)?,
                None if path.is_empty() => return None,
                None => "",
            };
        }
    }

    pub(crate) fn new(sources: &Sources) -> Self {
        Self { files: sources.files().iter().map(|f| f.name.clone()).collect(), ..Self::default() }
    }

    pub(crate) fn add_replica(&mut self, sandbox: &str, declaration: &str) {
        self.replicas.insert(sandbox.to_owned(), declaration.to_owned());
    }

    /// Records a whole sandbox or volume, `owner` being its path.
    pub(crate) fn add(&mut self, owner: String, key: super::source::Span, node: &Node, sources: &Sources) {
        let mut fields = BTreeMap::new();
        let (line, column) = sources.position(key.file, key.start);
        fields.insert(String::new(), (key.file, line, column));
        walk(node, "", sources, &mut fields);
        self.fields.insert(owner, fields);
    }
}

fn walk(node: &Node, path: &str, sources: &Sources, fields: &mut BTreeMap<String, (u32, u32, u32)>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match &node.value {
        Value::Scalar(_) => {}
        Value::List(items) => {
            for (i, item) in items.iter().enumerate() {
                // Presets are a list by order and are looked up by name.
                let key =
                    item.get("name").and_then(Node::as_text).map_or_else(|| i.to_string(), str::to_owned);
                record(item, item.span, join(&key), sources, fields);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                record(&entry.value, entry.value.span, join(&entry.key), sources, fields);
            }
        }
    }
}

fn record(
    node: &Node,
    span: super::source::Span,
    path: String,
    sources: &Sources,
    fields: &mut BTreeMap<String, (u32, u32, u32)>,
) {
    let (line, column) = sources.position(span.file, span.start);
    walk(node, &path, sources, fields);
    fields.insert(path, (span.file, line, column));
}
