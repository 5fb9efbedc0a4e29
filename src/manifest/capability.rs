//! What is written against what its provider can do. A field that the provider cannot honour is an error at its line.

use std::collections::BTreeSet;

use super::diagnostic::{Problem, Problems};
use super::node::{Node, Value};
use super::source::Span;
use crate::model::{DesiredSandbox, EgressHost, EgressRule, Image};
use crate::provider::{
    BASE_OTHER, Capabilities, EGRESS_NAME, FieldSupport, IMAGE_COMMAND, IMAGE_FILE, Support, base,
};

/// Fields that need a sheet to say that they are honoured: what they ask for is no part of the desired state, so silence would drop them.
const ONLY_IF_HONOURED: &[&[&str]] =
    &[&["sync"], &["sockets"], &["ssh"], &["tailscale"], &["lifecycle", "on_delete"], &["volumes", "s3"]];

/// Values that need a row of their own, with what is said where there is none: a sheet that speaks of the field as a whole has not thought of them.
const ONLY_IF_NAMED: &[FieldSupport] = &[
    FieldSupport {
        path: "sync.*.mode=bind",
        support: Support::Refused {
            because: "cannot share a directory of this machine",
            instead: "leave it out, so that the directory is copied",
        },
    },
    FieldSupport {
        path: "ports.*.protocol=udp",
        support: Support::Refused { because: "carries no datagrams", instead: "remove `protocol`" },
    },
];

/// Checks everything below `node`. `prefix` is what the sheet's paths begin with (nothing, or `volumes`).
pub(crate) fn check(node: &Node, prefix: &[&str], sheet: &Capabilities, problems: &mut Problems) {
    // Most fields are supported; only the first parts of refusing rows are worth a look.
    let suspects: BTreeSet<&str> = sheet
        .fields
        .iter()
        .filter(|row| matches!(row.support, Support::Refused { .. }))
        .filter_map(|row| row.path.split(['.', '=']).next())
        .chain(ONLY_IF_HONOURED.iter().filter_map(|path| path.first().copied()))
        .collect();
    let mut walk = Walk { sheet, problems, reported: BTreeSet::new() };
    let mut path: Vec<&str> = prefix.to_vec();
    for entry in node.as_map().unwrap_or_default() {
        if suspects.contains(prefix.first().copied().unwrap_or(entry.key.as_str())) || suspects.contains("*")
        {
            path.push(&entry.key);
            walk.visit(&entry.value, &mut path, &mut vec![entry.key_span]);
            path.pop();
        }
    }
}

/// Whether the sheet refuses one value that is not written but implied; reported at `span`.
pub(crate) fn check_implied(
    path: &[&str],
    value: &str,
    span: Span,
    sheet: &Capabilities,
    problems: &mut Problems,
) {
    if let Some((because, instead)) = refusal(sheet, path, Some(value)) {
        problems.push(problem(sheet, &format!("{}: {value}", path.join(".")), because, instead, span));
    }
}

/// Services that leave their command to the image need a provider that can tell what it is. `written` has also what made no sense, and has been told.
pub(crate) fn check_commands(
    written: &Node,
    sandbox: &DesiredSandbox,
    sheet: &Capabilities,
    problems: &mut Problems,
) {
    // Where there is no image, that has been told.
    if sheet.honours(&["services", "*", "command"], Some(IMAGE_COMMAND)) || sandbox.spec.image == Image::Host
    {
        return;
    }
    let unsaid = |name: &str| written.at(&["services", name, "command"]).is_none();
    for (name, _) in sandbox.guest.services.iter().filter(|(name, s)| s.command.is_empty() && unsaid(name)) {
        let span = written.key_span(&["services", name]);
        let because = "cannot tell what the command of an image is";
        problems.push(problem(sheet, &format!("services.{name}"), because, "write its `command`", span));
    }
}

struct Walk<'a> {
    sheet: &'a Capabilities,
    problems: &'a mut Problems,
    reported: BTreeSet<String>,
}

impl Walk<'_> {
    fn visit<'n>(&mut self, node: &'n Node, path: &mut Vec<&'n str>, keys: &mut Vec<Span>) {
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                for entry in entries {
                    path.push(&entry.key);
                    keys.push(entry.key_span);
                    self.visit(&entry.value, path, keys);
                    keys.pop();
                    path.pop();
                }
            }
            Value::List(items) if !items.is_empty() => {
                for item in items {
                    path.push("*");
                    keys.push(item.span);
                    self.visit(item, path, keys);
                    keys.pop();
                    path.pop();
                }
            }
            Value::Scalar(scalar) => self.leaf(node, path, Some(&scalar.text), keys),
            Value::Map(_) | Value::List(_) => self.leaf(node, path, None, keys),
        }
    }

    fn leaf(&mut self, node: &Node, path: &[&str], value: Option<&str>, keys: &[Span]) {
        let Some((because, instead)) = refusal(self.sheet, path, value) else { return };
        // The outermost field that is refused as a whole is what the user wrote too much; else it is this very value.
        let outer = path.len() - keys.len();
        let whole = (outer + 1..=path.len())
            .find(|n| path.get(..*n).is_some_and(|part| refusal(self.sheet, part, None).is_some()));
        let (shown, span) = match whole {
            Some(n) => (
                path.get(..n).unwrap_or(path).join("."),
                keys.get(n - outer - 1).copied().unwrap_or(node.span),
            ),
            None => (format!("{}: {}", path.join("."), value.unwrap_or_default()), node.span),
        };
        if self.reported.insert(shown.clone()) {
            self.problems.push(problem(self.sheet, &shown, because, instead, span).anchor(node.anchor));
        }
    }
}

fn refusal<'s>(sheet: &'s Capabilities, path: &[&str], value: Option<&str>) -> Option<(&'s str, &'s str)> {
    if let Some(value) = value {
        let unnamed = |row: &&FieldSupport| {
            row.matches(path, Some(value)).is_some()
                && sheet.fields.iter().all(|named| named.path != row.path)
        };
        if let Some(Support::Refused { because, instead }) =
            ONLY_IF_NAMED.iter().find(unnamed).map(|row| row.support)
        {
            return Some((because, instead));
        }
    }
    if let (["image"], Some(value)) = (path, value)
        && Image::file(value).is_some()
        && sheet.honours(path, None)
        && !sheet.fields.iter().any(|row| row.path == format!("image={IMAGE_FILE}"))
    {
        return Some(("takes images from registries only", "push it to a registry, and name it there"));
    }
    let value = match (path, value) {
        (["image"], Some(value)) if Image::file(value).is_some() => Some(IMAGE_FILE),
        (["base"], Some(name)) if base::names().all(|known| known != name) => Some(BASE_OTHER),
        (["network", "allow", "*"], Some(rule)) if names_host(rule) => Some(EGRESS_NAME),
        _ => value,
    };
    match sheet.field(path, value) {
        Some(Support::Refused { because, instead }) => Some((because, instead)),
        Some(Support::Honoured(_)) => None,
        None => ONLY_IF_HONOURED
            .iter()
            .any(|p| path.starts_with(p))
            .then_some(("does not have this yet", "leave it out for now")),
    }
}

/// Whether an entry of `network.allow` names a host, and no address.
fn names_host(rule: &str) -> bool {
    rule.parse::<EgressRule>().is_ok_and(|rule| !matches!(rule.host, EgressHost::Network { .. }))
}

fn problem(sheet: &Capabilities, field: &str, because: &str, instead: &str, span: Span) -> Problem {
    let field = field.replace(".*", "[]");
    let problem = Problem::error(
        "unsupported",
        span,
        format!("`{field}` cannot be honoured: provider `{}` {because}", sheet.provider),
    );
    if instead.is_empty() { problem } else { problem.help(instead) }
}
