//! Diagnostics as text: graphical with a snippet, plain lines, JSON data, annotations of a CI system.

use std::fmt::Write as _;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde_json::json;

use super::diagnostic::{Diagnostic, Diagnostics, Severity};

impl Diagnostics {
    /// `file:line:col: error: message`, one line each, further lines indented.
    pub fn plain(&self) -> String {
        let mut out = String::new();
        for d in &self.items {
            if let Some(at) = d.location() {
                let _ = write!(out, "{at}: ");
            }
            let _ = writeln!(out, "{}: {} [{}]", word(d.severity), d.message, d.code);
            for (name, text) in
                [("found", found(d)), ("expected", d.expected.as_ref()), ("help", d.help.as_ref())]
            {
                if let Some(text) = text {
                    let _ = writeln!(out, "  {name}: {text}");
                }
            }
            for label in d.labels.iter().skip(1) {
                let _ = writeln!(out, "  {}: {}", label.location, label.text);
            }
        }
        self.write_omitted(&mut out);
        out
    }

    /// With snippets and labels, for people at a terminal of `width` columns.
    pub fn graphical(&self, colour: bool, width: usize) -> String {
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(width.max(40))
            .with_links(false)
            .without_cause_chain();
        let mut out = String::new();
        for item in &self.items {
            let shown = Shown::new(item, self);
            if handler.render_report(&mut out, &shown).is_err() {
                let _ = writeln!(out, "{}: {}", word(item.severity), item.message);
            }
        }
        self.write_omitted(&mut out);
        out
    }

    /// As data.
    pub fn json(&self) -> serde_json::Value {
        json!({ "format_version": 1, "diagnostics": self.items, "omitted": self.omitted })
    }

    /// Workflow commands of GitHub Actions: `::error file=…,line=…,col=…::message`.
    pub fn github(&self) -> String {
        let mut out = String::new();
        for d in &self.items {
            let _ = write!(out, "::{} ", word(d.severity));
            if let Some(at) = d.location() {
                let _ = write!(out, "file={},line={},col={},", property(&at.file), at.line, at.column);
            }
            let mut message = d.message.clone();
            for (name, text) in [("expected", &d.expected), ("help", &d.help)] {
                if let Some(text) = text {
                    let _ = write!(message, "\n{name}: {text}");
                }
            }
            let _ = writeln!(out, "title={}::{}", property(d.code), data(&message));
        }
        if self.omitted > 0 {
            let _ = writeln!(out, "::notice ::and {} more", self.omitted);
        }
        out
    }

    fn write_omitted(&self, out: &mut String) {
        if self.omitted > 0 {
            let _ = writeln!(out, "and {} more", self.omitted);
        }
    }
}

/// What was found, unless the message has said so.
fn found(item: &Diagnostic) -> Option<&String> {
    item.found.as_ref().filter(|f| !item.message.contains(f.as_str()))
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// The escapes that workflow commands define for the text after `::`.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// The escapes that workflow commands define for properties.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// One diagnostic as the renderer wants it.
#[derive(Debug)]
struct Shown<'a> {
    item: &'a Diagnostic,
    source: Option<NamedSource<String>>,
    labels: Vec<LabeledSpan>,
    help: Option<String>,
}

impl<'a> Shown<'a> {
    fn new(item: &'a Diagnostic, all: &Diagnostics) -> Self {
        let file = item.labels.first().map(|l| l.span.file);
        let source = file.and_then(|id| all.sources.file(id));
        let mut help: Vec<String> = Vec::new();
        for (name, text) in [("found", found(item)), ("expected", item.expected.as_ref())] {
            if let Some(text) = text {
                help.push(format!("{name} {text}"));
            }
        }
        help.extend(item.help.clone());
        let mut labels = Vec::new();
        for (i, label) in item.labels.iter().enumerate() {
            if Some(label.span.file) == file {
                let range =
                    label.span.start as usize..(label.span.end as usize).max(label.span.start as usize);
                let text = (!label.text.is_empty()).then(|| label.text.clone());
                labels.push(if i == 0 {
                    LabeledSpan::new_primary_with_span(
                        text,
                        first_line(source.map_or("", |s| &s.text), range),
                    )
                } else {
                    LabeledSpan::new_with_span(text, first_line(source.map_or("", |s| &s.text), range))
                });
            } else {
                help.push(format!("{}: {}", label.location, label.text));
            }
        }
        Self {
            item,
            source: source.map(|s| NamedSource::new(&s.name, snippet_text(&s.text))),
            labels,
            help: (!help.is_empty()).then(|| help.join("\n")),
        }
    }
}

/// The text for snippets, of the same length: what would move a terminal's cursor is a space, credentials in URLs are stars.
fn snippet_text(text: &str) -> String {
    super::check::without_credentials(text).replace('\r', " ")
}

/// Only the first line of a range is marked: a label over a whole block hides more than it shows.
fn first_line(text: &str, range: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let end = text.get(range.clone()).and_then(|t| t.find('\n')).map_or(range.end, |n| range.start + n);
    range.start..end
}

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.item.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl miette::Diagnostic for Shown<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn std::fmt::Display + 'b>> {
        Some(Box::new(self.item.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.item.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'b>(&'b self) -> Option<Box<dyn std::fmt::Display + 'b>> {
        self.help.as_ref().map(|h| Box::new(h) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|s| s as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }
}
