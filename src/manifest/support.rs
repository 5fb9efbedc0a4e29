//! Every field of the language held against every provider's sheet: `docs/providers.md`, and what the proof that no field is dropped goes by.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::limits::{processors, size};
use super::schema::{Definitions, Rules, alternatives, rules};
use crate::model::Duration;
use crate::provider::{Capabilities, ChangeClass, IMAGE_COMMAND, Range, StopMeaning, Support};

/// Fields that a provider makes or refuses; a sheet has to say which.
const AT_THE_PROVIDER: &[&str] = &[
    "image",
    "base",
    "build",
    "snapshot",
    "hostname",
    "resources",
    "volumes",
    "ports",
    "sockets",
    "network",
    "isolation",
    "lifecycle",
    "ssh",
    "tailscale",
];
/// Fields that Pocketenv's own decisions go by.
const BY_POCKETENV: &[&str] = &["provider", "count", "state", "depends_on", "drift", "protect"];
/// The same of a volume.
const VOLUME_BY_POCKETENV: &[&str] = &["provider", "protect"];

/// Fields of a `sync` that are about sharing a directory instead of copying it.
const SHARED: &[&str] = &["mode", "read_only"];

/// A field of a sandbox or volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// It stands below `volumes.NAME` and not below `sandboxes.NAME`.
    pub of_volume: bool,
    /// Its path below that; `*` stands for any name or place in a list.
    pub path: Vec<&'static str>,
}

/// Who sees to a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// The provider makes it so; a change needs this.
    Enforced(ChangeClass),
    /// Pocketenv brings it about inside, the same way at every provider.
    Inside,
    /// It is about what Pocketenv does, and no provider has to know of it.
    Pocketenv,
    /// The provider cannot; using it is an error at its line.
    Refused {
        /// Why.
        because: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The sheet says nothing of it, which is a defect of the sheet.
    Unsaid,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.of_volume { "volumes.NAME." } else { "" })?;
        f.write_str(&self.path.join("."))
    }
}

impl Field {
    /// Its path as sheets have it.
    fn in_sheet(&self) -> Vec<&'static str> {
        let prefix = if self.of_volume { &["volumes"][..] } else { &[] };
        [prefix, &self.path].concat()
    }

    fn last(&self) -> &'static str {
        self.path.last().copied().unwrap_or_default()
    }

    /// Who sees to it at a provider.
    pub fn handling(&self, sheet: &Capabilities) -> Handling {
        let first = self.path.first().copied().unwrap_or_default();
        let by_pocketenv = if self.of_volume { VOLUME_BY_POCKETENV } else { BY_POCKETENV };
        if by_pocketenv.contains(&first) {
            return Handling::Pocketenv;
        }
        match sheet.field(&self.in_sheet(), None) {
            Some(Support::Refused { because, instead }) => Handling::Refused { because, instead },
            // What a build is given is no part of what it makes.
            Some(Support::Honoured(_)) if self.path.starts_with(&["build", "secrets"]) => Handling::Pocketenv,
            // What `sync` copies is brought inside like every managed file, and a sheet only says whether there are files; what it shares is the
            // provider's.
            Some(Support::Honoured(_)) if first == "sync" && !SHARED.contains(&self.last()) => {
                Handling::Inside
            }
            Some(Support::Honoured(class)) => Handling::Enforced(*class),
            None if self.of_volume || first == "sync" || AT_THE_PROVIDER.contains(&first) => Handling::Unsaid,
            None => Handling::Inside,
        }
    }

    /// Values of it that the sheet speaks of by themselves, with what it says.
    fn values<'s>(&self, sheet: &'s Capabilities) -> Vec<(&'static str, &'s Support)> {
        let path = self.in_sheet().join(".");
        let row = |row: &'s crate::provider::FieldSupport| {
            let (field, value) = row.path.split_once('=')?;
            (field == path).then_some((value, &row.support))
        };
        sheet.fields.iter().filter_map(row).collect()
    }
}

/// Every field of a sandbox and of a volume, in the order of the language.
pub fn fields() -> Vec<Field> {
    let root = rules();
    let mut found = Vec::new();
    for (definition, of_volume) in [("Sandbox", false), ("Volume", true)] {
        if let Some(schema) = root.definition(definition) {
            walk(root, schema, of_volume, &mut Vec::new(), &mut found);
        }
    }
    found
}

fn walk(
    root: &'static Rules,
    schema: &'static Json,
    of_volume: bool,
    path: &mut Vec<&'static str>,
    found: &mut Vec<Field>,
) {
    for alternative in alternatives(root, schema) {
        let schema = alternative.schema;
        for (key, below) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
            path.push(key);
            let field = Field { of_volume, path: path.clone() };
            if !found.contains(&field) {
                found.push(field);
            }
            walk(root, below, of_volume, path, found);
            path.pop();
        }
        for items in ["items", "additionalProperties"].iter().filter_map(|key| schema.get(*key)) {
            if items.is_object() {
                path.push("*");
                walk(root, items, of_volume, path, found);
                path.pop();
            }
        }
    }
}

/// `docs/providers.md`, written from the sheets.
pub fn providers_page(sheets: &[&Capabilities]) -> String {
    let mut out = String::from(
        "# Providers\n\nThis page is written from the capability sheets and the schema (`UPDATE=1 cargo nextest run support`); do not edit it.\n\
         `pocketenv provider show NAME` prints one sheet, `pocketenv provider test NAME` tries everything it promises.\n\n",
    );
    let names: Vec<&str> = sheets.iter().map(|sheet| sheet.provider).collect();
    let _ = writeln!(out, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    let mut row = |title: &str, cell: &dyn Fn(&Capabilities) -> String| {
        let cells: Vec<String> = sheets.iter().map(|sheet| cell(sheet)).collect();
        let _ = writeln!(out, "| {title} | {} |", cells.join(" | "));
    };
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    row("what it is", &|s| s.summary.to_owned());
    row("a stop", &|s| match s.stop {
        StopMeaning::Suspend => "keeps the disk".to_owned(),
        StopMeaning::Destroy => "loses the disk".to_owned(),
    });
    row("a pause", &|s| if s.pause { "keeps disk and memory".to_owned() } else { "no".to_owned() });
    row("longest life", &|s| {
        s.longest_life_ms.map_or_else(|| "no limit".to_owned(), |ms| Duration::from_millis(ms).to_string())
    });
    row("identity is kept in", &|s| if s.labels { "labels" } else { "names" }.to_owned());
    row("idempotent create", &|s| yes(s.idempotent_create));
    row("a listing may lag", &|s| match s.settle_ms {
        0 => "no".to_owned(),
        ms => Duration::from_millis(ms).to_string(),
    });
    row("a service over HTTP", &|s| yes(s.service));
    row("calls at once", &|s| s.max_concurrency.to_string());
    row("real processes inside", &|s| yes(s.processes));
    row("input while a command runs", &|s| yes(s.interactive));
    row("terminals", &|s| yes(s.pty));
    row("named sessions", &|s| yes(s.sessions));
    row("ports dialled", &|s| yes(s.dial));
    row("ports forwarded from this host", &|s| yes(s.forwards_from_host));
    row("public ports", &|s| yes(s.honours(&["ports", "*", "public"], Some("true"))));
    row("images", &|s| images(s));
    row("services by the command of their image", &|s| {
        yes(s.honours(&["services", "*", "command"], Some(IMAGE_COMMAND)))
    });
    row("managed volumes", &|s| yes(s.honours(&["volumes"], None)));
    row("object storage as a volume", &|s| yes(s.honours(&["volumes", "s3"], None)));
    row("egress policy", &|s| yes(s.honours(&["network", "egress"], Some("deny"))));
    row("`cpu`", &|s| range(s, "cpu", s.resources.cpu_millis, processors));
    row("`memory`", &|s| range(s, "memory", s.resources.memory, size));
    row("`disk`", &|s| range(s, "disk", s.resources.disk, size));

    out.push_str("\n## Settings and credentials\n\n");
    out.push_str(
        "Each comes from `providers.NAME` of the manifest, else from the environment, else (credentials only) from `pocketenv provider login NAME`.\n\
         A manifest only names a secret for a credential. `pocketenv provider list` shows what is set.\n\n| setting | environment | |\n|---|---|---|\n",
    );
    for sheet in sheets {
        for setting in sheet.settings {
            let variable = setting.variable.map_or_else(String::new, |variable| format!("`{variable}`"));
            let kind = match (setting.secret, setting.required) {
                (true, true) => "credential, required: ",
                (true, false) => "credential: ",
                (false, true) => "required: ",
                (false, false) => "",
            };
            let _ = writeln!(
                out,
                "| `providers.{}.{}` | {variable} | {kind}{} |",
                sheet.provider, setting.name, setting.summary
            );
        }
    }

    out.push_str(
        "\n## Fields\n\nWho sees to each field: the provider (*live*, *restart* or *new sandbox* is what a change needs), Pocketenv *inside* the sandbox, or\n\
         *Pocketenv* itself. A field that is *refused* is an error at its line. Nothing is ever dropped in silence.\n\n",
    );
    let _ = writeln!(out, "| field | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for field in fields() {
        let cells: Vec<String> = sheets.iter().map(|sheet| cell(&field, sheet)).collect();
        let _ = writeln!(out, "| `{field}` | {} |", cells.join(" | "));
    }
    for sheet in sheets {
        let _ = write!(out, "\n## What {} refuses\n\n", sheet.provider);
        for row in sheet.fields {
            if let Support::Refused { because, instead } = row.support {
                let shown = row.path.replace('=', ": ");
                let instead = if instead.is_empty() { String::new() } else { format!("; {instead}") };
                let _ = writeln!(out, "- `{shown}`: it {because}{instead}");
            }
        }
    }
    out
}

fn cell(field: &Field, sheet: &Capabilities) -> String {
    let word = |support: &Support| match support {
        Support::Honoured(class) => class_word(*class),
        Support::Refused { .. } => "refused",
    };
    let whole = match field.handling(sheet) {
        Handling::Enforced(class) => class_word(class),
        Handling::Inside => "inside",
        Handling::Pocketenv => "Pocketenv",
        Handling::Refused { .. } => "refused",
        Handling::Unsaid => "?",
    };
    let values = field.values(sheet);
    let others = values.iter().filter(|(_, support)| word(support) != whole);
    let values: Vec<String> =
        others.map(|(value, support)| format!("`{value}`: {}", word(support))).collect();
    if values.is_empty() { whole.to_owned() } else { format!("{whole}; {}", values.join(", ")) }
}

fn class_word(class: ChangeClass) -> &'static str {
    match class {
        ChangeClass::Live => "live",
        ChangeClass::Restart => "restart",
        ChangeClass::Recreate => "new sandbox",
    }
}

fn images(sheet: &Capabilities) -> String {
    let kinds = [
        ("the host's", sheet.honours(&["image"], Some("host"))),
        ("OCI", sheet.honours(&["image"], None)),
        (
            "`base`",
            sheet.honours(&["base"], None) || sheet.fields.iter().any(|row| row.path.starts_with("base=")),
        ),
        ("`build`", sheet.honours(&["build"], None)),
        ("`snapshot`", sheet.honours(&["snapshot"], None)),
    ];
    let kinds: Vec<&str> = kinds.iter().filter(|(_, has)| *has).map(|(kind, _)| *kind).collect();
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

fn range(sheet: &Capabilities, name: &str, range: Option<Range>, text: fn(u64) -> String) -> String {
    match range {
        _ if !sheet.honours(&["resources", name], None) => "refused".to_owned(),
        None => "any".to_owned(),
        Some(range) => format!("{} to {}", text(range.min), text(range.max)),
    }
}
