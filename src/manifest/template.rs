//! Templates in scalars: the Handlebars grammar, a fenced language.
//!
//! Handlebars only parses. What it parsed is reduced to text, names, `{{#if}}` and `{{#unless}}`, and evaluated here, so that
//! every name is checked (also in a condition), nothing is escaped, and neither partials, helpers nor recursion exist.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use handlebars::template::{HelperTemplate, Parameter, TemplateElement};
use handlebars::{Path, PathSeg, Template};

use super::diagnostic::Problem;
use super::node::quote;
use super::source::{Sources, Span};
use crate::model::PortRef;

/// The longest template, in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// The most `{{ … }}` in one template.
const MAX_TAGS: usize = 1_000;
/// The most problems reported of one template.
const MAX_PROBLEMS: usize = 20;
/// The longest result, in bytes.
pub const MAX_RENDERED_BYTES: usize = 4 << 20;
/// The deepest nesting of conditions.
const MAX_BLOCKS: usize = 8;

const ESCAPE_HELP: &str = "to keep `{{` as it is, write `\\{{`";

/// The ports that templates may mention, and the addresses known of them.
#[derive(Debug)]
pub(crate) struct PortTable<'a> {
    /// Declared ports by sandbox, replicas expanded.
    pub declared: BTreeMap<String, BTreeSet<u16>>,
    /// Addresses known so far: host and port.
    pub endpoints: &'a BTreeMap<PortRef, (String, u16)>,
}

/// The names a template may use.
#[derive(Debug, Default)]
pub(crate) struct Scope<'a> {
    pub env: Option<&'a BTreeMap<String, String>>,
    pub vars: Option<&'a BTreeMap<String, String>>,
    pub project: Option<&'a str>,
    pub index: Option<u32>,
    pub ports: Option<&'a PortTable<'a>>,
    /// Ports that rendered templates mention.
    pub used: RefCell<BTreeSet<PortRef>>,
}

enum Lookup {
    Value(String),
    /// What is not known, and what could have been meant.
    Unknown {
        what: String,
        part: String,
        known: Vec<String>,
    },
}

impl Scope<'_> {
    fn lookup(&self, path: &[String]) -> Lookup {
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        let map = |map: &BTreeMap<String, String>, kind: &str, name: &str| match map.get(name) {
            Some(value) => Lookup::Value(value.clone()),
            None => Lookup::Unknown {
                what: format!("there is no {kind} {}", quote(name)),
                part: name.to_owned(),
                known: map.keys().cloned().collect(),
            },
        };
        match (parts.as_slice(), self.env, self.vars, self.project, self.index, self.ports) {
            (["env", name], Some(env), ..) => map(env, "environment variable", name),
            (["vars", name], _, Some(vars), ..) => map(vars, "variable", name),
            (["project", "name"], _, _, Some(name), ..) => Lookup::Value(name.to_owned()),
            (["index"], _, _, _, Some(index), _) => Lookup::Value(index.to_string()),
            (["index"], ..) => Lookup::Unknown {
                what: "there is no `index` here: only sandboxes with `count` have one".to_owned(),
                part: "index".to_owned(),
                known: Vec::new(),
            },
            (["sandboxes", sandbox, rest @ ..], _, _, _, _, Some(table)) => self.port(table, sandbox, rest),
            ([first, ..], ..) => Lookup::Unknown {
                what: if parts.len() == 1 || !self.roots().contains(first) {
                    format!("there is no name {} here", quote(first))
                } else {
                    format!("there is no name {} here", quote(&parts.join(".")))
                },
                part: (*first).to_owned(),
                known: self.shapes(),
            },
            ([], ..) => Lookup::Unknown {
                what: "there is no name here".into(),
                part: String::new(),
                known: self.shapes(),
            },
        }
    }

    fn port(&self, table: &PortTable<'_>, sandbox: &str, rest: &[&str]) -> Lookup {
        let Some(ports) = table.declared.get(sandbox) else {
            return Lookup::Unknown {
                what: format!("there is no sandbox {}", quote(sandbox)),
                part: sandbox.to_owned(),
                known: table.declared.keys().cloned().collect(),
            };
        };
        let ["ports", port, field @ ("host" | "port")] = rest else {
            return Lookup::Unknown {
                what: format!("a sandbox has no {}", quote(&rest.join("."))),
                part: rest.last().copied().unwrap_or(sandbox).to_owned(),
                known: vec!["ports.PORT.host".to_owned(), "ports.PORT.port".to_owned()],
            };
        };
        let Some(number) = port.parse::<u16>().ok().filter(|p| ports.contains(p)) else {
            return Lookup::Unknown {
                what: format!("the sandbox `{sandbox}` declares no port {}", quote(port)),
                part: (*port).to_owned(),
                known: ports.iter().map(u16::to_string).collect(),
            };
        };
        let reference = PortRef { sandbox: sandbox.to_owned(), port: number };
        let value = match table.endpoints.get(&reference) {
            Some((host, _)) if *field == "host" => host.clone(),
            Some((_, port)) => port.to_string(),
            None => String::new(),
        };
        self.used.borrow_mut().insert(reference);
        Lookup::Value(value)
    }

    fn roots(&self) -> Vec<&'static str> {
        let mut roots = Vec::new();
        roots.extend(self.env.map(|_| "env"));
        roots.extend(self.vars.map(|_| "vars"));
        roots.extend(self.project.map(|_| "project"));
        roots.extend(self.index.map(|_| "index"));
        roots.extend(self.ports.map(|_| "sandboxes"));
        roots
    }

    fn shapes(&self) -> Vec<String> {
        self.roots()
            .into_iter()
            .map(|root| match root {
                "env" => "env.NAME",
                "vars" => "vars.NAME",
                "project" => "project.name",
                "sandboxes" => "sandboxes.NAME.ports.PORT.host",
                other => other,
            })
            .map(str::to_owned)
            .collect()
    }
}

/// A name in a template.
#[derive(Debug)]
struct Name {
    path: Vec<String>,
    raw: String,
    /// Where it stands in the template's text.
    offset: usize,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Name(Name),
    If { name: Name, negate: bool, then: Vec<Piece>, otherwise: Vec<Piece> },
}

/// A template that cannot be: what is wrong, and the offset of it.
#[derive(Clone, Debug)]
struct Refused {
    message: String,
    help: &'static str,
    offset: usize,
    raw: String,
}

type Compiled = Rc<Result<Vec<Piece>, Refused>>;

/// Compiled templates, kept because replicas share theirs.
#[derive(Debug, Default)]
pub(crate) struct Templates {
    cache: RefCell<HashMap<String, Compiled>>,
}

/// Where a template stands, for problems.
pub(crate) struct At<'a> {
    pub sources: &'a Sources,
    pub span: Span,
    pub anchor: Option<Span>,
}

impl At<'_> {
    /// The span of `raw`, which stands at `offset` of the decoded text, in the source. The text of a scalar may differ from what
    /// it decodes to (quotes, escapes, folded lines), so occurrences are counted instead of bytes.
    fn within(&self, text: &str, offset: usize, raw: &str) -> Span {
        if raw.is_empty() || self.anchor.is_some() {
            return self.span;
        }
        let nth = text.get(..offset).map_or(0, |before| before.matches(raw).count());
        match self.sources.slice(self.span).match_indices(raw).nth(nth) {
            Some((at, _)) => {
                let start = self.span.start + at as u32;
                Span { start, end: start + raw.len() as u32, ..self.span }
            }
            None => self.span,
        }
    }
}

impl Templates {
    /// Renders `text`. All unknown names are in the error.
    pub fn render(&self, text: &str, scope: &Scope<'_>, at: &At<'_>) -> Result<String, Vec<Problem>> {
        let compiled = Rc::clone(
            self.cache.borrow_mut().entry(text.to_owned()).or_insert_with(|| Rc::new(compile(text))),
        );
        let pieces = match compiled.as_ref() {
            Ok(pieces) => pieces,
            Err(refused) => {
                let span = at.within(text, refused.offset, &refused.raw);
                return Err(vec![
                    Problem::error("template", span, refused.message.clone())
                        .help(refused.help)
                        .anchor(at.anchor),
                ]);
            }
        };
        let mut out = String::new();
        let mut problems = Vec::new();
        evaluate(pieces, text, scope, at, &mut out, &mut problems);
        if out.len() > MAX_RENDERED_BYTES {
            problems.push(Problem::error(
                "template",
                at.span,
                format!("the rendered text is longer than {MAX_RENDERED_BYTES} bytes"),
            ));
        }
        if problems.is_empty() { Ok(out) } else { Err(problems) }
    }
}

fn evaluate(
    pieces: &[Piece],
    text: &str,
    scope: &Scope<'_>,
    at: &At<'_>,
    out: &mut String,
    problems: &mut Vec<Problem>,
) {
    let value = |name: &Name, problems: &mut Vec<Problem>| match scope.lookup(&name.path) {
        Lookup::Value(value) => Some(value),
        Lookup::Unknown { what, part, known } => {
            let span = at.within(text, name.offset, &name.raw);
            let problem = Problem::error("unknown-name", span, what).anchor(at.anchor);
            problems.push(problem.suggest(&part, known.iter().map(String::as_str)));
            None
        }
    };
    for piece in pieces {
        if out.len() > MAX_RENDERED_BYTES || problems.len() >= MAX_PROBLEMS {
            return;
        }
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Name(name) => out.push_str(&value(name, problems).unwrap_or_default()),
            Piece::If { name, negate, then, otherwise } => {
                let Some(value) = value(name, problems) else { continue };
                let truth = !value.is_empty() && value != "false";
                evaluate(if truth != *negate { then } else { otherwise }, text, scope, at, out, problems);
            }
        }
    }
}

fn compile(text: &str) -> Result<Vec<Piece>, Refused> {
    let refuse =
        |message: String, help, offset, raw: &str| Refused { message, help, offset, raw: raw.to_owned() };
    if text.len() > MAX_TEMPLATE_BYTES {
        return Err(refuse(
            format!("a template has at most {MAX_TEMPLATE_BYTES} bytes"),
            "make it a `source` file",
            0,
            "",
        ));
    }
    fence(text)?;
    let template = Template::compile(text).map_err(|error| {
        let (offset, raw) = match error.pos() {
            Some((line, column)) => {
                let offset = offset_of(text, line, column);
                (offset, text.get(offset..).and_then(|t| t.get(..2)).filter(|t| *t == "{{").unwrap_or(""))
            }
            None => (0, ""),
        };
        refuse("this is not a template: a `{{ … }}` cannot be read".to_owned(), ESCAPE_HELP, offset, raw)
    })?;
    reduce(&template, text)
}

/// Refuses what the language does not have before the grammar sees it: the parser recurses, and reads partials and helpers.
fn fence(text: &str) -> Result<(), Refused> {
    let mut depth = 0usize;
    let mut rest = 0;
    let mut tags = 0;
    while let Some(found) = text.get(rest..).and_then(|t| t.find("{{")) {
        let at = rest + found;
        let escaped = at > 0 && text.as_bytes().get(at - 1) == Some(&b'\\');
        let inner = at + 2;
        let end = text.get(inner..).and_then(|t| t.find("}}")).map_or(text.len(), |n| inner + n);
        let tag = text.get(inner..end).unwrap_or("").trim_start_matches(['~', ' ', '{']);
        rest = if escaped { inner } else { (end + 2).min(text.len()).max(inner) };
        if escaped || tag.starts_with('!') {
            continue;
        }
        let refused = |message: &str| {
            Err(Refused { message: message.to_owned(), help: ESCAPE_HELP, offset: at, raw: "{{".to_owned() })
        };
        tags += 1;
        if tags > MAX_TAGS {
            return refused("a template has at most 1000 `{{ … }}`");
        }
        match tag.as_bytes().first() {
            Some(b'>') => return refused("templates have no partials (`{{> … }}`)"),
            Some(b'*') => return refused("templates have no decorators (`{{* … }}`)"),
            Some(b'#') => {
                depth += 1;
                let head = tag.trim_start_matches(['#', ' ']);
                if head.starts_with(['>', '*']) {
                    return refused("templates have neither partials nor decorators");
                }
                if depth > MAX_BLOCKS {
                    return refused("conditions are nested too deeply");
                }
            }
            Some(b'/') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if tag.len() > 1_024 {
            return refused("a `{{ … }}` is longer than 1024 bytes");
        }
        if tag.contains(['(', '[', '"', '\'', '{', '=', '|']) {
            return refused("a template names values; it has no helpers, arguments or literals");
        }
    }
    Ok(())
}

fn reduce(template: &Template, text: &str) -> Result<Vec<Piece>, Refused> {
    let mut pieces = Vec::with_capacity(template.elements.len());
    for (i, element) in template.elements.iter().enumerate() {
        let offset = template.mapping.get(i).map_or(0, |m| offset_of(text, m.0, m.1));
        let refused = |message: &str, raw: &str| {
            Err(Refused { message: message.to_owned(), help: ESCAPE_HELP, offset, raw: raw.to_owned() })
        };
        match element {
            TemplateElement::RawString(raw) => pieces.push(Piece::Text(raw.clone())),
            TemplateElement::Comment(_) => {}
            TemplateElement::Expression(e) | TemplateElement::HtmlExpression(e) => {
                if !e.params.is_empty() || !e.hash.is_empty() {
                    return refused("a template names values; it has no helpers or arguments", &raw(&e.name));
                }
                match name(&e.name, text, offset) {
                    Some(name) => pieces.push(Piece::Name(name)),
                    None => return refused("this is not a name", &raw(&e.name)),
                }
            }
            TemplateElement::HelperBlock(block) => pieces.push(condition(block, text, offset)?),
            _ => return refused("templates have neither partials nor decorators", "{{"),
        }
    }
    Ok(pieces)
}

fn condition(block: &HelperTemplate, text: &str, offset: usize) -> Result<Piece, Refused> {
    let helper = raw(&block.name);
    let refused =
        |message: String, raw: &str| Err(Refused { message, help: ESCAPE_HELP, offset, raw: raw.to_owned() });
    let negate = match helper.as_str() {
        "if" => false,
        "unless" => true,
        other => {
            return refused(
                format!("templates have no block {}; there is `if` and `unless`", quote(other)),
                other,
            );
        }
    };
    let [parameter] = block.params.as_slice() else {
        return refused(format!("`{helper}` takes one name"), &helper);
    };
    let Some(name) = name(parameter, text, offset) else {
        return refused(format!("`{helper}` takes one name"), &helper);
    };
    let part = |t: &Option<Template>| t.as_ref().map_or(Ok(Vec::new()), |t| reduce(t, text));
    Ok(Piece::If { name, negate, then: part(&block.template)?, otherwise: part(&block.inverse)? })
}

fn raw(parameter: &Parameter) -> String {
    match parameter {
        Parameter::Name(name) => name.clone(),
        Parameter::Path(Path::Relative((_, raw)) | Path::Local((_, _, raw))) => raw.clone(),
        _ => String::new(),
    }
}

fn name(parameter: &Parameter, text: &str, offset: usize) -> Option<Name> {
    let raw = raw(parameter);
    let path = match parameter {
        Parameter::Name(name) => vec![name.clone()],
        Parameter::Path(Path::Relative((segments, _))) => segments
            .iter()
            .map(|s| if let PathSeg::Named(name) = s { Some(name.clone()) } else { None })
            .collect::<Option<Vec<_>>>()?,
        _ => return None,
    };
    let offset = text.get(offset..).and_then(|t| t.find(&raw)).map_or(offset, |n| offset + n);
    (!path.is_empty()).then_some(Name { path, raw, offset })
}

/// The byte offset of a line and column, both from 1, the column in characters.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let rest = text.get(start..).unwrap_or("");
    start + rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(i, _)| i)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn render(text: &str) -> Result<String, Vec<Problem>> {
        let env = BTreeMap::from([("HOME".to_owned(), "/h<&>".to_owned())]);
        let vars =
            BTreeMap::from([("tag".to_owned(), "1.4".to_owned()), ("off".to_owned(), "false".to_owned())]);
        let endpoints =
            BTreeMap::from([(PortRef { sandbox: "db-1".into(), port: 5432 }, ("127.0.0.1".to_owned(), 9))]);
        let declared = BTreeMap::from([("db-1".to_owned(), BTreeSet::from([5432, 80]))]);
        let table = PortTable { declared, endpoints: &endpoints };
        let scope = Scope {
            env: Some(&env),
            vars: Some(&vars),
            project: Some("shop"),
            index: Some(3),
            ports: Some(&table),
            ..Scope::default()
        };
        let sources = Sources::default();
        let span = Span { file: 0, start: 0, end: 0 };
        Templates::default().render(text, &scope, &At { sources: &sources, span, anchor: None })
    }

    #[test]
    fn renders() {
        for (text, expected) in [
            ("plain", "plain"),
            ("{{ vars.tag }}-{{index}}", "1.4-3"),
            ("{{ env.HOME }}", "/h<&>"),
            ("{{{ env.HOME }}}", "/h<&>"),
            ("{{ sandboxes.db-1.ports.5432.host }}:{{ sandboxes.db-1.ports.5432.port }}", "127.0.0.1:9"),
            ("[{{ sandboxes.db-1.ports.80.port }}]", "[]"),
            ("{{#if vars.off}}a{{else}}b{{/if}}", "b"),
            ("{{#unless vars.off}}a{{/unless}}", "a"),
            ("{{#if vars.off}}a{{else if vars.tag}}c{{/if}}", "c"),
            ("{{! note }}x", "x"),
            (r"\{{ keep }}", "{{ keep }}"),
            ("{{project.name}}", "shop"),
        ] {
            assert_eq!(render(text).ok().as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn refuses() {
        for text in [
            "{{ vars.tga }}",
            "{{ nope }}",
            "{{#if nope}}{{/if}}",
            "{{> partial }}",
            "{{#> p}}{{/p}}",
            "{{#each vars}}{{/each}}",
            "{{#with vars}}{{tag}}{{/with}}",
            "{{ lookup vars \"tag\" }}",
            "{{ vars.tag",
            "{{}}",
            "{{.Names}}",
            "{{* d }}",
            "{{{{raw}}}} {{x}} {{{{/raw}}}}",
            "{{ this }}",
            "{{ ../x }}",
            "{{ @root }}",
            "{{ sandboxes.db.ports.1.host }}",
            "{{ sandboxes.db-1.ports.1.host }}",
            "{{ sandboxes.db-1.image }}",
            "{{ vars }}",
        ] {
            assert!(render(text).is_err(), "{text}");
        }
        let deep = "{{#if vars.off}}".repeat(1000);
        assert!(render(&deep).is_err());
    }
}
