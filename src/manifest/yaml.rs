//! YAML text to a tree with spans, within bounds.
//!
//! The tree is built straight from parser events (see `docs/decisions/0002-yaml.md`): duplicate keys are errors at both
//! places, aliases and merge keys are expanded under a budget, and every value knows where it stands.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Tag};

use super::diagnostic::{Problem, Problems};
use super::node::{Entry, Kind, Node, Scalar, Value, quote};
use super::source::{Sources, Span};

/// The most values one file may hold once aliases are expanded.
pub const MAX_NODES: usize = 500_000;
/// The most bytes of text one file may hold once aliases are expanded.
pub const MAX_EXPANDED_BYTES: usize = 32 << 20;
/// The deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// The most aliases in one file.
pub const MAX_ALIASES: usize = 10_000;

/// Reads the one document of source `file`. `None` if the text is not YAML at all; what is wrong is in `problems`.
pub(crate) fn parse(sources: &Sources, file: u32, problems: &mut Problems) -> Option<Node> {
    let text = &sources.file(file)?.text;
    let mut builder = Builder::new(text, file);
    let before = problems.errors();
    match builder.run(problems) {
        Ok(()) => {}
        Err(problem) => problems.push(*problem),
    }
    match builder.root {
        Some(root) => Some(root),
        None => {
            if problems.errors() == before {
                let span = Span { file, start: 0, end: 0 };
                problems.push(
                    Problem::error("empty", span, "the file is empty")
                        .help("a manifest begins with `version: 1`; `pocketenv init` writes a first one"),
                );
            }
            None
        }
    }
}

type Fatal = Box<Problem>;

/// What an anchor stands for and what it costs to expand it once.
struct Anchored {
    node: Rc<Node>,
    nodes: usize,
    bytes: usize,
}

enum Frame {
    List {
        start: Span,
        anchor: usize,
        items: Vec<Node>,
    },
    Map {
        start: Span,
        anchor: usize,
        entries: Vec<Entry>,
        index: HashMap<String, Span>,
        key: Pending,
        merges: Vec<Node>,
    },
}

/// The key whose value is read next.
enum Pending {
    None,
    Key(String, Span),
    Merge(Span),
    /// The key was unusable and reported; its value is dropped.
    Discard,
}

struct Builder<'t> {
    text: &'t str,
    file: u32,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
    bytes: usize,
    aliases: usize,
    /// Values kept for aliases, nested anchors counted each time.
    anchored: usize,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str, file: u32) -> Self {
        Self {
            text,
            file,
            stack: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            documents: 0,
            nodes: 0,
            bytes: 0,
            aliases: 0,
            anchored: 0,
        }
    }

    fn run(&mut self, problems: &mut Problems) -> Result<(), Fatal> {
        let mut options =
            granit_parser::options! { emit_unresolved_aliases: true, disallow_directives: false };
        options.set_emit_comments(false);
        // One more than ours, so that the message about depth is ours.
        options.flow_nesting_limit = MAX_DEPTH + 8;
        options.block_nesting_limit = MAX_DEPTH + 8;
        for next in Parser::new_from_str_with_options(self.text, options) {
            let (event, span) = match next {
                Ok(next) => next,
                Err(error) => {
                    let at = error.marker().byte_offset().unwrap_or(0).min(self.text.len());
                    return Err(self.syntax(at, &error.info()));
                }
            };
            let range = span.byte_range().unwrap_or(0..0);
            let span = self.span(range.start, range.end);
            match event {
                Event::DocumentStart(..) => {
                    self.documents += 1;
                    if self.documents > 1 {
                        problems.push(
                            Problem::error("several-documents", span, "a second YAML document begins here")
                                .help("one file holds one manifest; put the other into a file of its own and pass it with `-f`"),
                        );
                        return Ok(());
                    }
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let scalar = self.scalar(text, style, tag.as_deref(), span, problems);
                    self.count(1, scalar.text.len(), span)?;
                    let plain = style == ScalarStyle::Plain;
                    self.finish(Node::new(Value::Scalar(scalar), span), anchor, plain, problems);
                }
                Event::SequenceStart(_, anchor, tag) => {
                    self.collection_tag(tag.as_deref(), "seq", span, problems);
                    self.open(span, Frame::List { start: span, anchor, items: Vec::new() })?;
                }
                Event::MappingStart(_, anchor, tag) => {
                    self.collection_tag(tag.as_deref(), "map", span, problems);
                    self.open(
                        span,
                        Frame::Map {
                            start: span,
                            anchor,
                            entries: Vec::new(),
                            index: HashMap::new(),
                            key: Pending::None,
                            merges: Vec::new(),
                        },
                    )?;
                }
                Event::SequenceEnd => {
                    if let Some(Frame::List { start, anchor, items }) = self.stack.pop() {
                        let span = self.covering(start, span, items.last().map(|n| n.span));
                        self.finish(Node::new(Value::List(items), span), anchor, false, problems);
                    }
                }
                Event::MappingEnd => {
                    if let Some(Frame::Map { start, anchor, mut entries, mut index, merges, .. }) =
                        self.stack.pop()
                    {
                        let span = self.covering(start, span, entries.last().map(|e| e.value.span));
                        for merge in merges {
                            let Value::Map(merged) = merge.value else { continue };
                            for entry in merged {
                                if !index.contains_key(&entry.key) {
                                    index.insert(entry.key.clone(), entry.key_span);
                                    entries.push(entry);
                                }
                            }
                        }
                        self.finish(Node::new(Value::Map(entries), span), anchor, false, problems);
                    }
                }
                Event::Alias(id) => self.alias(id, span, problems)?,
                Event::UnresolvedAlias(name) => {
                    problems.push(
                        Problem::error(
                            "unknown-anchor",
                            span,
                            format!("no anchor `&{name}` stands before this alias"),
                        )
                        .help("an anchor must be written earlier in the same file"),
                    );
                    self.finish(Node::new(Value::Scalar(Scalar::plain("")), span), 0, false, problems);
                }
                _ => {}
            }
            self.count(0, 0, span)?;
        }
        Ok(())
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span { file: self.file, start: start as u32, end: end.max(start) as u32 }
    }

    /// The span of a collection: from its start to its end mark, without the empty lines that follow a block.
    fn covering(&self, start: Span, end: Span, last: Option<Span>) -> Span {
        let end = match last {
            Some(last) if end.start == end.end => last.end,
            _ => end.end,
        };
        self.span(start.start as usize, end.max(start.end) as usize)
    }

    fn syntax(&self, at: usize, info: &str) -> Fatal {
        let start = (0..=at).rev().find(|i| self.text.is_char_boundary(*i)).unwrap_or(0);
        let end = self.text[start..].chars().next().map_or(start, |c| start + c.len_utf8());
        if info.contains("recursion limit") {
            return Box::new(too_deep(self.span(start, end)));
        }
        let mut problem =
            Problem::error("syntax", self.span(start, end), format!("this is not valid YAML: {info}"));
        if self.text[..start].rsplit('\n').next().is_some_and(|line| line.contains('\t'))
            || self.text[start..].starts_with('\t')
        {
            problem = problem.help("YAML does not allow tabs for indentation; use spaces");
        } else if info.contains("mapping values are not allowed") {
            problem = problem.help("quote a text that contains `: `, and check the indentation");
        } else if info.contains("unclosed") || info.contains("end of stream") {
            problem = problem.help("a quote or bracket that was opened is never closed");
        }
        Box::new(problem)
    }

    fn open(&mut self, span: Span, frame: Frame) -> Result<(), Fatal> {
        self.count(1, 0, span)?;
        if self.stack.len() >= MAX_DEPTH {
            return Err(Box::new(too_deep(span)));
        }
        self.stack.push(frame);
        Ok(())
    }

    fn count(&mut self, nodes: usize, bytes: usize, span: Span) -> Result<(), Fatal> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
        let what = if self.nodes > MAX_NODES || self.anchored > 2 * MAX_NODES {
            format!("more than {MAX_NODES} values")
        } else if self.bytes > MAX_EXPANDED_BYTES {
            format!("more than {MAX_EXPANDED_BYTES} bytes of text")
        } else {
            return Ok(());
        };
        Err(Box::new(
            Problem::error("too-large", span, format!("the file has {what} at this point, aliases expanded"))
                .help("use fewer aliases, or split the manifest"),
        ))
    }

    fn alias(&mut self, id: usize, span: Span, problems: &mut Problems) -> Result<(), Fatal> {
        self.aliases += 1;
        if self.aliases > MAX_ALIASES {
            return Err(Box::new(Problem::error(
                "too-many-aliases",
                span,
                format!("the file has more than {MAX_ALIASES} aliases"),
            )));
        }
        let node = match self.anchors.get(&id) {
            Some(anchored) => {
                let (node, nodes, bytes) = (Rc::clone(&anchored.node), anchored.nodes, anchored.bytes);
                self.count(nodes, bytes, span)
                    .map_err(|p| Box::new(p.related(node.span, "what the alias brings in stands here")))?;
                node.used_at(span)
            }
            None => {
                problems.push(
                    Problem::error(
                        "recursive-alias",
                        span,
                        "the alias stands inside the value that it refers to",
                    )
                    .help("a value cannot contain itself"),
                );
                Node::new(Value::Scalar(Scalar::plain("")), span)
            }
        };
        if node_depth(&node) + self.stack.len() > MAX_DEPTH {
            return Err(Box::new(too_deep(span)));
        }
        self.finish(node, 0, false, problems);
        Ok(())
    }

    fn scalar(
        &self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        tag: Option<&Tag>,
        span: Span,
        problems: &mut Problems,
    ) -> Scalar {
        match tag.map(|t| (t.core_suffix(), t)) {
            None if style == ScalarStyle::Plain => Scalar::plain(&text),
            None | Some((Some("str"), _)) => Scalar::text(text),
            Some((Some("int" | "float" | "bool" | "null"), _)) => Scalar::plain(&text),
            Some((_, tag)) => {
                problems.push(unknown_tag(tag, span));
                Scalar::text(text)
            }
        }
    }

    fn collection_tag(&self, tag: Option<&Tag>, core: &str, span: Span, problems: &mut Problems) {
        if let Some(tag) = tag
            && tag.core_suffix() != Some(core)
        {
            problems.push(unknown_tag(tag, span));
        }
    }

    /// Puts a finished value where it belongs.
    fn finish(&mut self, node: Node, anchor: usize, plain: bool, problems: &mut Problems) {
        if anchor != 0 {
            let (nodes, bytes) = weight(&node);
            self.anchored = self.anchored.saturating_add(nodes);
            // Checked before the copy: anchors within anchors are copied once for each level.
            if self.anchored <= 2 * MAX_NODES {
                self.anchors.insert(anchor, Anchored { node: Rc::new(node.clone()), nodes, bytes });
            }
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root.get_or_insert(node);
            return;
        };
        match frame {
            Frame::List { items, .. } => items.push(node),
            Frame::Map { entries, index, key, merges, .. } => match std::mem::replace(key, Pending::None) {
                Pending::None => *key = next_key(node, plain, index, problems),
                Pending::Key(name, key_span) => {
                    index.insert(name.clone(), key_span);
                    entries.push(Entry { key: name, key_span, value: node });
                }
                Pending::Merge(key_span) => merge(node, key_span, merges, problems),
                Pending::Discard => {}
            },
        }
    }
}

fn next_key(node: Node, plain: bool, index: &mut HashMap<String, Span>, problems: &mut Problems) -> Pending {
    let span = node.span;
    let Value::Scalar(scalar) = node.value else {
        problems.push(
            Problem::error("complex-key", span, "a key must be a plain text")
                .found("a list or a mapping as a key")
                .help("quote a value that begins with `{{`: \"{{ … }}\""),
        );
        return Pending::Discard;
    };
    if let Some(first) = index.get(&scalar.text) {
        problems.push(
            Problem::error(
                "duplicate-key",
                span,
                format!("the key {} stands here twice", quote(&scalar.text)),
            )
            .label("again here")
            .related(*first, "first here")
            .help("remove one, or merge the two"),
        );
        return Pending::Discard;
    }
    if plain && scalar.text == "<<" {
        index.insert(scalar.text, span);
        return Pending::Merge(span);
    }
    if scalar.kind == Kind::Null && scalar.text.is_empty() {
        problems.push(Problem::error("complex-key", span, "the key is empty"));
        return Pending::Discard;
    }
    Pending::Key(scalar.text, span)
}

fn merge(node: Node, key_span: Span, merges: &mut Vec<Node>, problems: &mut Problems) {
    let span = node.span;
    let parts = match node.value {
        Value::Map(_) => vec![node],
        Value::List(items) => items,
        Value::Scalar(_) => vec![node],
    };
    for part in parts {
        if matches!(part.value, Value::Map(_)) {
            merges.push(part);
        } else {
            problems.push(
                Problem::error("bad-merge", span, "`<<` takes a mapping or a list of mappings")
                    .related(key_span, "the merge key")
                    .found(part.describe())
                    .expected("an alias of a mapping, such as `<<: *base`"),
            );
        }
    }
}

fn unknown_tag(tag: &Tag, span: Span) -> Problem {
    Problem::error("unknown-tag", span, format!("the tag {} is not known", quote(&tag.original())))
        .help("a manifest needs no tags; quote a value to make it text")
}

fn too_deep(span: Span) -> Problem {
    Problem::error(
        "too-deep",
        span,
        format!("more than {MAX_DEPTH} levels are nested here, aliases expanded"),
    )
    .help("a manifest needs fewer than ten")
}

/// How many values and bytes of text a tree has.
pub(crate) fn weight(node: &Node) -> (usize, usize) {
    let add = |(n, b): (usize, usize), (m, c): (usize, usize)| (n + m, b + c);
    match &node.value {
        Value::Scalar(s) => (1, s.text.len()),
        Value::List(items) => items.iter().map(weight).fold((1, 0), add),
        Value::Map(entries) => {
            entries.iter().map(|e| add((1, e.key.len()), weight(&e.value))).fold((1, 0), add)
        }
    }
}

fn node_depth(node: &Node) -> usize {
    match &node.value {
        Value::Scalar(_) => 0,
        Value::List(items) => 1 + items.iter().map(node_depth).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|e| node_depth(&e.value)).max().unwrap_or(0),
    }
}
