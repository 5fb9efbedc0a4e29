//! The tree of a manifest: what YAML says, with a span for every key and every value.

use serde_json::Value as Json;

use super::source::Span;

/// One value.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub value: Value,
    /// Where the value is used. For what an alias brings in this is the alias.
    pub span: Span,
    /// Where the value is written, if that is another place.
    pub anchor: Option<Span>,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub key_span: Span,
    pub value: Node,
}

/// A scalar. The text is kept as written so that `1.10` can still become the text "1.10".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    pub kind: Kind,
    pub text: String,
}

/// What a scalar is by the YAML core schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Bool,
    Int,
    Float,
    Text,
}

impl Scalar {
    pub fn text(text: impl Into<String>) -> Self {
        Self { kind: Kind::Text, text: text.into() }
    }

    /// A plain (unquoted) scalar, typed by the YAML core schema: `yes`, `no`, `on` are text.
    pub fn plain(text: &str) -> Self {
        Self { kind: plain_kind(text), text: text.to_owned() }
    }

    pub fn to_json(&self) -> Json {
        match self.kind {
            Kind::Null => Json::Null,
            Kind::Bool => Json::Bool(self.text.eq_ignore_ascii_case("true")),
            Kind::Int => match parse_int(&self.text) {
                Some(n) => match (u64::try_from(n), i64::try_from(n)) {
                    (Ok(n), _) => n.into(),
                    (_, Ok(n)) => n.into(),
                    _ => Json::String(self.text.clone()),
                },
                None => Json::String(self.text.clone()),
            },
            Kind::Float => match self.text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                Some(n) => Json::Number(n),
                None => Json::String(self.text.clone()),
            },
            Kind::Text => Json::String(self.text.clone()),
        }
    }
}

/// An integer of the YAML core schema.
pub(crate) fn parse_int(text: &str) -> Option<i128> {
    if let Some(hex) = text.strip_prefix("0x") {
        return i128::from_str_radix(hex, 16).ok();
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i128::from_str_radix(octal, 8).ok();
    }
    text.parse().ok()
}

fn plain_kind(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => return Kind::Bool,
        _ => {}
    }
    let Some(first) = text.bytes().next() else { return Kind::Null };
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return Kind::Text;
    }
    let digits = |t: &str, ok: fn(&u8) -> bool| !t.is_empty() && t.bytes().all(|b| ok(&b));
    if let Some(hex) = text.strip_prefix("0x") {
        return if digits(hex, u8::is_ascii_hexdigit) { Kind::Int } else { Kind::Text };
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return if digits(octal, |b| (b'0'..=b'7').contains(b)) { Kind::Int } else { Kind::Text };
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits(unsigned, u8::is_ascii_digit) {
        return Kind::Int;
    }
    let looks_numeric = unsigned.bytes().any(|b| b.is_ascii_digit())
        && unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
    if looks_numeric && text.parse::<f64>().is_ok_and(f64::is_finite) { Kind::Float } else { Kind::Text }
}

impl Node {
    pub fn new(value: Value, span: Span) -> Self {
        Self { value, span, anchor: None }
    }

    pub fn text(text: impl Into<String>, span: Span) -> Self {
        Self::new(Value::Scalar(Scalar::text(text)), span)
    }

    pub fn as_map(&self) -> Option<&[Entry]> {
        if let Value::Map(entries) = &self.value { Some(entries) } else { None }
    }

    pub fn as_map_mut(&mut self) -> Option<&mut Vec<Entry>> {
        if let Value::Map(entries) = &mut self.value { Some(entries) } else { None }
    }

    pub fn as_list(&self) -> Option<&[Node]> {
        if let Value::List(items) = &self.value { Some(items) } else { None }
    }

    pub fn as_scalar(&self) -> Option<&Scalar> {
        if let Value::Scalar(scalar) = &self.value { Some(scalar) } else { None }
    }

    /// The text of a scalar of any kind but null.
    pub fn as_text(&self) -> Option<&str> {
        self.as_scalar().filter(|s| s.kind != Kind::Null).map(|s| s.text.as_str())
    }

    pub fn is_null(&self) -> bool {
        self.as_scalar().is_some_and(|s| s.kind == Kind::Null)
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.as_map()?.iter().find(|e| e.key == key)
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|e| &e.value)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.as_map_mut()?.iter_mut().find(|e| e.key == key).map(|e| &mut e.value)
    }

    pub fn take(&mut self, key: &str) -> Option<Entry> {
        let entries = self.as_map_mut()?;
        let at = entries.iter().position(|e| e.key == key)?;
        Some(entries.remove(at))
    }

    /// The value at a path of keys and list indices.
    pub fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| match &node.value {
            Value::Map(_) => node.get(key),
            Value::List(items) => items.get(key.parse::<usize>().ok()?),
            Value::Scalar(_) => None,
        })
    }

    /// The span of the value at the longest part of `path` that exists.
    pub fn span_at(&self, path: &[&str]) -> Span {
        (0..=path.len()).rev().find_map(|n| self.at(path.get(..n)?)).map_or(self.span, |node| node.span)
    }

    /// The span of the key at `path`, else of what contains it.
    pub fn key_span(&self, path: &[&str]) -> Span {
        if let Some((last, parents)) = path.split_last()
            && let Some(entry) = self.at(parents).and_then(|n| n.entry(last))
        {
            return entry.key_span;
        }
        self.span_at(path)
    }

    /// A copy as an alias at `span` brings it in.
    pub fn used_at(&self, span: Span) -> Self {
        let value = match &self.value {
            Value::Scalar(s) => Value::Scalar(s.clone()),
            Value::List(items) => Value::List(items.iter().map(|n| n.used_at(span)).collect()),
            Value::Map(entries) => Value::Map(
                entries
                    .iter()
                    .map(|e| Entry { key: e.key.clone(), key_span: span, value: e.value.used_at(span) })
                    .collect(),
            ),
        };
        Self { value, span, anchor: Some(self.anchor.unwrap_or(self.span)) }
    }

    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Scalar(scalar) => scalar.to_json(),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect())
            }
        }
    }

    /// True if any scalar in here is a template.
    pub fn has_template(&self) -> bool {
        match &self.value {
            Value::Scalar(scalar) => scalar.text.contains("{{"),
            Value::List(items) => items.iter().any(Self::has_template),
            Value::Map(entries) => entries.iter().any(|e| e.value.has_template()),
        }
    }

    /// What it is, for "found …".
    pub fn describe(&self) -> String {
        match &self.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
            Value::Scalar(s) => match s.kind {
                Kind::Null => "nothing".to_owned(),
                Kind::Bool => format!("the boolean {}", s.text),
                Kind::Int | Kind::Float => format!("the number {}", s.text),
                Kind::Text => format!("the text {}", quote(&s.text)),
            },
        }
    }
}

/// Text in backquotes for a message: control characters escaped, shortened when long.
pub(crate) fn quote(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(60)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, kind) in [
            ("", Kind::Null),
            ("~", Kind::Null),
            ("true", Kind::Bool),
            ("yes", Kind::Text),
            ("no", Kind::Text),
            ("080", Kind::Int),
            ("0x1F", Kind::Int),
            ("0x", Kind::Text),
            ("1_000", Kind::Text),
            ("1.5", Kind::Float),
            ("1e3", Kind::Float),
            ("1.2.3", Kind::Text),
            ("-", Kind::Text),
            ("-1", Kind::Int),
            (".inf", Kind::Text),
            ("10s", Kind::Text),
            ("2001-01-01", Kind::Text),
        ] {
            assert_eq!(plain_kind(text), kind, "{text:?}");
        }
    }
}
