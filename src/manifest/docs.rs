//! `docs/manifest.md`, written from the schema.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::schema::{Resolved, alternatives, constants, described, has_type, preset_schema};

/// The reference of the language as Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# The manifest\n\nThis page is written from the types of the language (`UPDATE=1 cargo nextest run manifest`); do not edit it.\n\
         `pocketenv.yaml.example` shows the whole language in use, `pocketenv schema` prints the JSON Schema.\n\n\
         - Unknown keys are errors. `x-*` keys are yours in every mapping with fixed keys.\n\
         - An empty value counts as absent.\n\
         - Texts may hold templates: `{{ env.NAME }}`, `{{ vars.NAME }}`, `{{ project.name }}`, `{{ index }}` (with `count`),\n  \
           `{{ sandboxes.NAME.ports.PORT.host }}` and `.port`; `{{#if NAME}} … {{else}} … {{/if}}` and `{{#unless NAME}}`, where an\n  \
           empty text and `false` count as no. An unknown name is an error. `\\{{` keeps the braces. Presets are never templates.\n\
         - Several files merge left to right: mappings merge, everything else replaces. Paths start at the file they stand in.\n\n",
    );
    section(&mut out, "Manifest", described());
    let mut done: Vec<&str> = Vec::new();
    for root in [described(), preset_schema()] {
        let Some(definitions) = root.get("$defs").and_then(Json::as_object) else { continue };
        for (name, definition) in definitions {
            if has_type(definition, "object") && !done.contains(&name.as_str()) {
                done.push(name);
                section(&mut out, name, definition);
            }
        }
    }
    out.push_str("## Kinds of text\n\n| kind | form |\n|---|---|\n");
    let definitions = described().get("$defs").and_then(Json::as_object);
    for (name, definition) in definitions.into_iter().flatten() {
        if !has_type(definition, "object") && constants(definition).is_none() {
            let _ = writeln!(out, "| {name} | {} |", one_line(definition));
        }
    }
    out
}

fn section(out: &mut String, title: &str, schema: &Json) {
    let _ = write!(out, "## {title}\n\n{}\n\n", one_line(schema));
    let Some(properties) = schema.get("properties").and_then(Json::as_object) else { return };
    let required = schema.get("required").and_then(Json::as_array);
    out.push_str("| key | value | |\n|---|---|---|\n");
    for (key, property) in properties {
        let needed = required.is_some_and(|r| r.iter().any(|n| n == key));
        let star = if needed { " (required)" } else { "" };
        let _ = writeln!(out, "| `{key}`{star} | {} | {} |", kind(property), one_line(property));
    }
    out.push('\n');
}

fn one_line(schema: &Json) -> String {
    schema
        .get("description")
        .and_then(Json::as_str)
        .unwrap_or_default()
        .replace('\n', " ")
        .replace('|', "\\|")
}

/// What a value may be, with links to the sections.
fn kind(property: &Json) -> String {
    // Properties belong to one of the two schemas; their references name definitions of the same name in both.
    let root = described();
    let mut kinds: Vec<String> = Vec::new();
    for Resolved { schema, name } in alternatives(root, property) {
        let shown = if let Some(values) = constants(schema) {
            values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", ")
        } else if has_type(schema, "object") {
            match (name, schema.get("additionalProperties").filter(|a| a.is_object())) {
                (Some(name), _) => format!("[{name}](#{})", name.to_lowercase()),
                (None, Some(values)) => format!("names to {}", kind(values)),
                (None, None) => "mapping".to_owned(),
            }
        } else if has_type(schema, "array") {
            schema.get("items").map_or_else(|| "list".to_owned(), |items| format!("list of {}", kind(items)))
        } else if let Some(name) = name {
            name.to_owned()
        } else if has_type(schema, "boolean") {
            "true, false".to_owned()
        } else {
            match (schema.get("minimum").and_then(Json::as_f64), schema.get("maximum").and_then(Json::as_f64))
            {
                (Some(least), Some(most)) if least == most => format!("{least}"),
                (Some(least), Some(most)) => format!("number, {least} to {most}"),
                _ if has_type(schema, "string") => "text".to_owned(),
                _ => "number".to_owned(),
            }
        };
        if !kinds.contains(&shown) {
            kinds.push(shown);
        }
    }
    kinds.join(", or ")
}
