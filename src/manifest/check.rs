//! The tree against the schema: every problem at its place, templates rendered on the way, scalars brought to the type that the
//! schema wants. What is wrong is reported and removed, so that the checks that follow still see the rest.

use serde_json::Value as Json;

use super::diagnostic::{Problem, Problems};
use super::language::scalar::{self, ScalarType};
use super::node::{Entry, Kind, Node, Scalar, Value, parse_int, quote};
use super::schema::{Definitions, Met, Resolved, constants, has_type};
use super::source::{Sources, Span};
use super::template::{At, Scope, Templates};
use crate::model::nearest;

/// One walk over one tree.
pub(crate) struct Checker<'a> {
    /// Where the definitions are that the schema refers to.
    pub root: &'static dyn Definitions,
    pub met: &'a mut Met,
    pub sources: &'a Sources,
    pub templates: &'a Templates,
    /// The names that templates have; `None` where text is not a template.
    pub scope: Option<&'a Scope<'a>>,
    pub problems: &'a mut Problems,
}

/// Why a scalar does not fit one alternative.
struct Misfit {
    /// What is wrong with it although its kind fits, as a clause after the text.
    why: Option<String>,
    /// The values it could be.
    values: Vec<&'static str>,
}

impl Checker<'_> {
    /// Checks `node` against `schema`. `at` is the key that holds it. False if nothing usable is left.
    pub fn check(&mut self, node: &mut Node, schema: &'static Json, at: Span) -> bool {
        let options = self.met.alternatives(self.root, schema);
        if options.is_empty() {
            return true;
        }
        let collection = match &node.value {
            Value::Map(_) => "object",
            Value::List(_) => "array",
            Value::Scalar(_) => return self.check_scalar(node, &options),
        };
        match options.iter().find(|o| has_type(o.schema, collection)) {
            Some(option) if collection == "object" => self.check_map(node, option.schema, at),
            Some(option) => self.check_list(node, option.schema, at),
            None => self.mismatch(node, &options),
        }
    }

    fn check_map(&mut self, node: &mut Node, schema: &'static Json, at: Span) -> bool {
        let span = node.span;
        let Value::Map(entries) = &mut node.value else { return false };
        let properties = schema.get("properties").and_then(Json::as_object);
        let open = schema.get("additionalProperties").filter(|a| a.is_object());
        let closed = schema.get("additionalProperties") == Some(&Json::Bool(false));
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Json::as_array)
            .map(|all| all.iter().filter_map(Json::as_str).collect())
            .unwrap_or_default();
        let keys = schema
            .get("propertyNames")
            .and_then(|n| n.get("pattern"))
            .and_then(Json::as_str)
            .and_then(scalar::by_pattern);
        let mut usable = true;
        let mut seen: Vec<&str> = Vec::new();
        entries.retain_mut(|entry| {
            seen.extend(required.iter().copied().find(|key| *key == entry.key));
            if let Some(property) = properties.and_then(|p| p.get(&entry.key)) {
                if entry.value.is_null() {
                    // An empty value is as good as an absent key.
                    usable &=
                        !required.contains(&entry.key.as_str()) || self.missing(&entry.key, entry.key_span);
                    return false;
                }
                let good = self.check(&mut entry.value, property, entry.key_span);
                usable &= good || !required.contains(&entry.key.as_str());
                return good;
            }
            if closed {
                if !entry.key.starts_with("x-") {
                    self.unknown_key(
                        entry,
                        properties.into_iter().flat_map(|p| p.keys().map(String::as_str)),
                    );
                }
                return false;
            }
            if let Some(kind) = keys
                && let Err(why) = (kind.check)(&entry.key)
            {
                self.problems.push(
                    Problem::error("bad-name", entry.key_span, format!("{} {why}", quote(&entry.key)))
                        .expected(kind.expected),
                );
                return false;
            }
            match open {
                Some(schema) => self.check_open(entry, schema),
                None => true,
            }
        });
        for key in required {
            if !seen.contains(&key) {
                usable = false;
                let span = if at.start == at.end { span } else { at };
                self.missing(key, span);
            }
        }
        usable
    }

    /// An entry of a mapping whose keys the user chooses. An empty value is an empty mapping where that is enough.
    fn check_open(&mut self, entry: &mut Entry, schema: &'static Json) -> bool {
        if entry.value.is_null() {
            let options = self.met.alternatives(self.root, schema);
            if !options.iter().any(|option| has_type(option.schema, "object")) {
                self.problems.push(
                    Problem::error("no-value", entry.key_span, format!("{} has no value", quote(&entry.key)))
                        .help("write `\"\"` for an empty text"),
                );
                return false;
            }
            entry.value.value = Value::Map(Vec::new());
        }
        self.check(&mut entry.value, schema, entry.key_span)
    }

    fn check_list(&mut self, node: &mut Node, schema: &'static Json, at: Span) -> bool {
        let span = node.span;
        let Value::List(items) = &mut node.value else { return false };
        let least = schema.get("minItems").and_then(Json::as_u64).unwrap_or(0);
        if (items.len() as u64) < least {
            let at = if at.start == at.end { span } else { at };
            self.problems
                .push(Problem::error("empty-list", at, "the list is empty").expected("at least one item"));
            return false;
        }
        if let Some(schema) = schema.get("items") {
            items.retain_mut(|item| self.check(item, schema, item.span));
        }
        true
    }

    fn check_scalar(&mut self, node: &mut Node, options: &[Resolved<'static>]) -> bool {
        let (span, anchor) = (node.span, node.anchor);
        let Value::Scalar(scalar) = &mut node.value else { return false };
        let mut rendered = false;
        if let Some(scope) = self.scope
            && scalar.kind == Kind::Text
            && scalar.text.contains("{{")
        {
            let at = At { sources: self.sources, span, anchor };
            match self.templates.render(&scalar.text, scope, &at) {
                Ok(text) => {
                    scalar.text = text;
                    rendered = true;
                }
                Err(problems) => {
                    problems.into_iter().for_each(|p| self.problems.push(p));
                    return false;
                }
            }
        }
        if scalar.kind == Kind::Null {
            return self.mismatch(node, options);
        }
        let mut misfits = Vec::new();
        for option in options {
            match fit(scalar, *option, rendered) {
                Ok(fitting) => {
                    *scalar = fitting;
                    return true;
                }
                Err(misfit) => misfits.push(misfit),
            }
        }
        let text = scalar.text.clone();
        // The alternative whose kind fits says best what is wrong.
        match misfits.into_iter().find(|m| m.why.is_some() || !m.values.is_empty()) {
            Some(Misfit { why: Some(why), values }) => {
                let mut problem = Problem::error(
                    "bad-value",
                    span,
                    format!("{} {why}", quote(&without_credentials(&text))),
                )
                .expected(expected(options))
                .anchor(anchor);
                if let Some(best) = nearest(&text, values.iter().copied()) {
                    problem = problem.help(format!("did you mean `{best}`?"));
                }
                self.problems.push(problem);
                false
            }
            _ => self.mismatch(node, options),
        }
    }

    fn mismatch(&mut self, node: &Node, options: &[Resolved<'static>]) -> bool {
        let expected = expected(options);
        let mut problem =
            Problem::error("wrong-type", node.span, format!("{} cannot stand here", node.describe()))
                .found(node.describe())
                .expected(expected.clone())
                .anchor(node.anchor);
        match &node.value {
            Value::Map(entries)
                if entries.iter().any(|e| e.key.contains('{') || e.value.is_null())
                    && !options.iter().any(|o| has_type(o.schema, "object")) =>
            {
                problem = problem.help("quote a value that begins with `{{`: \"{{ … }}\"");
            }
            Value::Scalar(s)
                if s.kind != Kind::Text
                    && s.kind != Kind::Null
                    && options.iter().any(|o| has_type(o.schema, "string"))
                    && !options.iter().any(|o| matches!(o.name, Some("Duration" | "Quantity"))) =>
            {
                problem = problem.help(format!("quote it to make it text: \"{}\"", s.text));
            }
            Value::Scalar(s)
                if matches!(s.text.as_str(), "yes" | "no" | "on" | "off" | "Yes" | "No" | "On" | "Off")
                    && options.iter().any(|o| has_type(o.schema, "boolean")) =>
            {
                problem = problem.help("write `true` or `false`");
            }
            _ => {}
        }
        self.problems.push(problem);
        false
    }

    /// Reports a missing key; always false.
    fn missing(&mut self, key: &str, span: Span) -> bool {
        let mut problem = Problem::error("missing-key", span, format!("the key `{key}` is missing"));
        if key == "version" {
            problem = problem.help("begin the file with `version: 1`");
        }
        self.problems.push(problem);
        false
    }

    fn unknown_key<'k>(&mut self, entry: &Entry, known: impl Iterator<Item = &'k str>) {
        let known: Vec<&str> = known.collect();
        self.problems.push(
            Problem::error("unknown-key", entry.key_span, format!("unknown key {}", quote(&entry.key)))
                .anchor(entry.value.anchor)
                .suggest(&entry.key, known),
        );
    }
}

/// A URL without user name and password: a message may end in a log.
pub(crate) fn without_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let authority = after.find(['/', ' ', '"', '\'', '\n']).unwrap_or(after.len());
        let user = after.get(..authority).and_then(|a| a.rfind('@')).unwrap_or(0);
        out.push_str(&"*".repeat(user));
        rest = after.get(user..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// The scalar as the alternative wants it.
fn fit(scalar: &Scalar, option: Resolved<'static>, rendered: bool) -> Result<Scalar, Misfit> {
    let schema = option.schema;
    if let Some(values) = constants(schema) {
        return if values.contains(&scalar.text.as_str()) {
            Ok(Scalar::text(scalar.text.clone()))
        } else if scalar.kind == Kind::Text {
            Err(Misfit { why: Some("is not one of the values allowed here".to_owned()), values })
        } else {
            Err(Misfit { why: None, values: Vec::new() })
        };
    }
    let kind_fits = match scalar.kind {
        Kind::Text => has_type(schema, "string"),
        Kind::Int => has_type(schema, "integer") || has_type(schema, "number"),
        Kind::Float => has_type(schema, "number"),
        Kind::Bool => has_type(schema, "boolean"),
        Kind::Null => false,
    };
    if let Some(kind) = option.name.and_then(scalar::by_name) {
        return if kind_fits { checked(scalar, kind) } else { Err(Misfit { why: None, values: Vec::new() }) };
    }
    let mut scalar = scalar.clone();
    if !kind_fits && rendered {
        // What a template gives is text; where a number or a boolean is wanted it is read as YAML would read it.
        scalar = Scalar::plain(scalar.text.trim());
        return fit(&scalar, option, false);
    }
    if !kind_fits {
        return Err(Misfit { why: None, values: Vec::new() });
    }
    if scalar.kind == Kind::Int {
        let limit = |key: &str| schema.get(key).and_then(Json::as_f64);
        let value = parse_int(&scalar.text);
        let (least, most) = (limit("minimum"), limit("maximum"));
        let fits = value.is_some_and(|v| {
            least.is_none_or(|l| v as f64 >= l)
                && most.is_none_or(|m| v as f64 <= m)
                && i64::try_from(v).is_ok()
        });
        if !fits {
            let why = match (least, most) {
                (Some(l), Some(m)) if l == m => format!("is not {l}"),
                (Some(l), Some(m)) => format!("is not between {l} and {m}"),
                (Some(l), None) => format!("is less than {l}, or too large"),
                _ => "is out of range".to_owned(),
            };
            return Err(Misfit { why: Some(why), values: Vec::new() });
        }
    }
    Ok(scalar)
}

fn checked(scalar: &Scalar, kind: &ScalarType) -> Result<Scalar, Misfit> {
    match (kind.check)(&scalar.text) {
        Ok(()) => Ok(Scalar::text(scalar.text.clone())),
        Err(why) => Err(Misfit { why: Some(why), values: Vec::new() }),
    }
}

/// What the alternatives accept, for people.
fn expected(options: &[Resolved<'static>]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for option in options {
        let schema = option.schema;
        let part = if let Some(kind) = option.name.and_then(scalar::by_name) {
            kind.expected.to_owned()
        } else if let Some(values) = constants(schema) {
            let shown: Vec<String> = values.iter().map(|v| format!("`{v}`")).collect();
            if shown.len() == 1 { shown.concat() } else { format!("one of {}", shown.join(", ")) }
        } else if has_type(schema, "object") {
            "a mapping".to_owned()
        } else if has_type(schema, "array") {
            "a list".to_owned()
        } else if has_type(schema, "boolean") {
            "`true` or `false`".to_owned()
        } else if has_type(schema, "integer") {
            let limit = |key: &str| schema.get(key).and_then(Json::as_f64);
            match (limit("minimum"), limit("maximum")) {
                (Some(l), Some(m)) if l == m => format!("the number {l}"),
                (Some(l), Some(m)) => format!("a whole number from {l} to {m}"),
                _ => "a whole number".to_owned(),
            }
        } else if has_type(schema, "number") {
            "a number".to_owned()
        } else {
            "a text".to_owned()
        };
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join("; or ")
}
