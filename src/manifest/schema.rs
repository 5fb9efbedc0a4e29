//! The JSON Schema of the language, from its types.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::{Value as Json, json};

use super::language;

/// The schema of `pocketenv.yaml` for editors: where a number or a form is wanted, a text with a template may stand as well.
pub fn schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = described().clone();
        allow_templates(&mut schema);
        schema
    })
}

/// Where the definitions are that a schema refers to.
pub(crate) trait Definitions {
    /// The schema of one.
    fn definition(&self, name: &str) -> Option<&Json>;
}

impl Definitions for Json {
    fn definition(&self, name: &str) -> Option<&Json> {
        self.get("$defs")?.get(name)
    }
}

/// The schema that rendered values are held against: what the types say, without what is for people. It is kept in a file, because every command would
/// wait for its making; one definition is on each line and read when something refers to it, because most commands need a few of them.
pub(crate) struct Rules {
    /// All but the definitions.
    pub root: Json,
    definitions: BTreeMap<&'static str, (&'static str, OnceLock<Json>)>,
}

impl Rules {
    /// The first line is the schema without its definitions, each other one a name and its definition.
    fn read(text: &'static str) -> Result<Self, serde_json::Error> {
        let mut lines = text.lines();
        let root = serde_json::from_str(lines.next().unwrap_or_default())?;
        let definitions = lines.filter_map(|line| line.split_once(' '));
        Ok(Self {
            root,
            definitions: definitions.map(|(name, schema)| (name, (schema, OnceLock::new()))).collect(),
        })
    }
}

impl Definitions for Rules {
    fn definition(&self, name: &str) -> Option<&Json> {
        let (text, read) = self.definitions.get(name)?;
        // A test compares the file with the types, so each line is JSON.
        Some(read.get_or_init(|| serde_json::from_str(text).unwrap_or_default()))
    }
}

/// The rules of the language.
#[allow(clippy::expect_used)]
pub(crate) fn rules() -> &'static Rules {
    static RULES: OnceLock<Rules> = OnceLock::new();
    RULES.get_or_init(|| Rules::read(include_str!("rules.txt")).expect("a test reads the same text"))
}

/// What `rules.txt` has to hold.
pub fn rules_file() -> String {
    let mut schema = bare();
    let definitions = schema.as_object_mut().and_then(|root| root.shift_remove("$defs"));
    let mut text = format!("{schema}\n");
    for (name, definition) in definitions.iter().filter_map(Json::as_object).flatten() {
        text.push_str(&format!("{name} {definition}\n"));
    }
    text
}

fn bare() -> Json {
    fn strip(schema: &mut Json) {
        match schema {
            Json::Object(object) => {
                // A key of the language may be called so as well; its value is a schema.
                if object.get("description").is_some_and(Json::is_string) {
                    object.shift_remove("description");
                }
                object.values_mut().for_each(strip);
            }
            Json::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut schema = described().clone();
    strip(&mut schema);
    schema
}

/// What the types say.
pub(crate) fn described() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let schema =
            SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<language::Manifest>();
        finish(schema.into(), "Pocketenv manifest")
    })
}

/// The schema of a preset file.
pub fn preset_schema() -> &'static Json {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let schema =
            SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<language::Preset>();
        finish(schema.into(), "Pocketenv preset")
    })
}

fn finish(mut schema: Json, title: &str) -> Json {
    open_for_users(&mut schema);
    schema["title"] = json!(title);
    schema
}

/// `x-*` keys are free for the user in every mapping with a fixed set of keys.
fn open_for_users(schema: &mut Json) {
    match schema {
        Json::Object(object) => {
            if object.get("additionalProperties") == Some(&Json::Bool(false)) {
                object.insert("patternProperties".to_owned(), json!({ "^x-": true }));
            }
            object.values_mut().for_each(open_for_users);
        }
        Json::Array(items) => items.iter_mut().for_each(open_for_users),
        _ => {}
    }
}

/// What a text with a template looks like, as a pattern.
const TEMPLATE: &str = r"\{\{";

fn allow_templates(schema: &mut Json) {
    match schema {
        Json::Object(object) => {
            object.values_mut().for_each(allow_templates);
            let types: Vec<String> = match object.get("type") {
                Some(Json::String(only)) => vec![only.clone()],
                Some(Json::Array(several)) => {
                    several.iter().filter_map(Json::as_str).map(str::to_owned).collect()
                }
                _ => Vec::new(),
            };
            if let Some(options) = object.get_mut("oneOf").and_then(Json::as_array_mut)
                && options.iter().all(|o| o.get("const").is_some())
            {
                options.push(json!({ "type": "string", "pattern": TEMPLATE }));
            } else if let Some(pattern) = object.get("pattern").and_then(Json::as_str).map(str::to_owned) {
                if !types.is_empty() {
                    object.insert("pattern".to_owned(), json!(format!("({pattern})|{TEMPLATE}")));
                    object.remove("maxLength");
                }
            } else if types.iter().any(|t| matches!(t.as_str(), "integer" | "number" | "boolean"))
                && !types.iter().any(|t| t == "string")
            {
                let with_text: Vec<&str> = types.iter().map(String::as_str).chain(["string"]).collect();
                object.insert("type".to_owned(), json!(with_text));
                object.insert("pattern".to_owned(), json!(TEMPLATE));
            }
        }
        Json::Array(items) => items.iter_mut().for_each(allow_templates),
        _ => {}
    }
}

/// A schema with its references followed: the schema and the name of the definition it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resolved<'s> {
    pub schema: &'s Json,
    pub name: Option<&'s str>,
}

/// Follows `$ref`.
pub(crate) fn follow<'s>(root: &'s dyn Definitions, schema: &'s Json) -> Resolved<'s> {
    let mut resolved = Resolved { schema, name: None };
    // Definitions of ours never refer in circles; the bound is against a mistake.
    for _ in 0..16 {
        let Some(name) =
            resolved.schema.get("$ref").and_then(Json::as_str).and_then(|r| r.strip_prefix("#/$defs/"))
        else {
            break;
        };
        let Some(target) = root.definition(name) else { break };
        resolved = Resolved { schema: target, name: Some(name) };
    }
    resolved
}

/// The alternatives of a schema, references followed, `null` left out.
pub(crate) fn alternatives<'s>(root: &'s dyn Definitions, schema: &'s Json) -> Vec<Resolved<'s>> {
    let resolved = follow(root, schema);
    let any = ["anyOf", "oneOf"].iter().find_map(|key| resolved.schema.get(*key)).and_then(Json::as_array);
    match any {
        Some(options) if constants(resolved.schema).is_none() => {
            options.iter().flat_map(|option| alternatives(root, option)).collect()
        }
        _ if resolved.schema.get("type").and_then(Json::as_str) == Some("null") => Vec::new(),
        _ => vec![resolved],
    }
}

/// The alternatives of the schemas that were met: a manifest meets the same few of them at every sandbox.
#[derive(Default)]
pub(crate) struct Met(HashMap<*const Json, Rc<[Resolved<'static>]>>);

impl Met {
    /// See [`alternatives`].
    pub fn alternatives(
        &mut self,
        root: &'static dyn Definitions,
        schema: &'static Json,
    ) -> Rc<[Resolved<'static>]> {
        let known = self.0.entry(std::ptr::from_ref(schema));
        Rc::clone(known.or_insert_with(|| alternatives(root, schema).into()))
    }
}

/// The values of an enumeration.
pub(crate) fn constants(schema: &Json) -> Option<Vec<&str>> {
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        return Some(values.iter().filter_map(Json::as_str).collect());
    }
    if let Some(value) = schema.get("const") {
        return value.as_str().map(|v| vec![v]);
    }
    schema.get("oneOf").and_then(Json::as_array)?.iter().try_fold(Vec::new(), |mut all, option| {
        all.extend(constants(option)?);
        Some(all)
    })
}

/// True if the schema's `type` includes `name`.
pub(crate) fn has_type(schema: &Json, name: &str) -> bool {
    match schema.get("type") {
        Some(Json::String(only)) => only == name,
        Some(Json::Array(several)) => several.iter().any(|t| t == name),
        _ => false,
    }
}
