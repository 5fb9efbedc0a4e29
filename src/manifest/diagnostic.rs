//! What is wrong with a manifest: gathered while reading, sorted, bounded, with positions.

use std::sync::Arc;

use serde::Serialize;

use super::source::{Sources, Span};
use crate::model::{Location, nearest};

/// The most diagnostics reported in one run; the rest is counted.
pub const MAX_REPORTED: usize = 50;
/// The most kept while reading; beyond this they are only counted.
const MAX_KEPT: usize = 1_000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The manifest cannot be used.
    Error,
    /// It can be used and probably should not.
    Warning,
}

/// A place with what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Label {
    /// The place.
    #[serde(flatten)]
    pub location: Location,
    /// What is said; empty for the primary place of some diagnostics.
    pub text: String,
    #[serde(skip)]
    pub(crate) span: Span,
}

/// One problem of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name of the kind of problem, such as `unknown-key`.
    pub code: &'static str,
    /// What is wrong, in one sentence without a position.
    pub message: String,
    /// Where: the primary place first, related places after it.
    pub labels: Vec<Label>,
    /// What stands there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What should stand there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Diagnostic {
    /// The primary place.
    pub fn location(&self) -> Option<&Location> {
        self.labels.first().map(|l| &l.location)
    }
}

/// All problems of one run, errors and warnings, sorted by position.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    /// At most [`MAX_REPORTED`] problems.
    pub items: Vec<Diagnostic>,
    /// How many more there are.
    pub omitted: usize,
    pub(crate) sources: Arc<Sources>,
}

impl Diagnostics {
    /// True if there is at least one error.
    pub fn has_errors(&self) -> bool {
        self.items.iter().any(|d| d.severity == Severity::Error)
    }

    /// True if there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// One problem without a file, such as a directory without a manifest.
    pub(crate) fn bare(code: &'static str, message: String, help: Option<String>) -> Self {
        Self {
            items: vec![Diagnostic {
                severity: Severity::Error,
                code,
                message,
                labels: Vec::new(),
                found: None,
                expected: None,
                help,
            }],
            omitted: 0,
            sources: Arc::new(Sources::default()),
        }
    }
}

impl std::fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.plain())
    }
}

impl std::error::Error for Diagnostics {}

/// A problem while spans are still spans.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    severity: Severity,
    code: &'static str,
    message: String,
    span: Option<Span>,
    label: String,
    related: Vec<(Span, String)>,
    found: Option<String>,
    expected: Option<String>,
    help: Option<String>,
}

impl Problem {
    pub fn error(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            span: Some(span),
            label: String::new(),
            related: Vec::new(),
            found: None,
            expected: None,
            help: None,
        }
    }

    pub fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, span, message) }
    }

    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = text.into();
        self
    }

    pub fn related(mut self, span: Span, text: impl Into<String>) -> Self {
        self.related.push((span, text.into()));
        self
    }

    /// Says where a value that an alias brought in is written.
    pub fn anchor(self, anchor: Option<Span>) -> Self {
        match anchor {
            Some(span) => self.related(span, "written here, brought in by an alias"),
            None => self,
        }
    }

    pub fn found(mut self, text: impl Into<String>) -> Self {
        self.found = Some(text.into());
        self
    }

    pub fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = Some(text.into());
        self
    }

    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// The same problem reported at `span`, its place in `sources` told in the message.
    pub fn moved_to(self, span: Span, sources: &Sources) -> Self {
        let place = self.span.map(|s| format!("{}: ", sources.location(s))).unwrap_or_default();
        Self { message: format!("{place}{}", self.message), span: Some(span), related: Vec::new(), ..self }
    }

    /// Help of the kind "did you mean `x`?", or the list of what there is.
    pub fn suggest<'a>(self, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        match nearest(name, known.iter().copied()) {
            Some(best) => self.help(format!("did you mean `{best}`?")),
            None if known.is_empty() => self,
            None => {
                let shown = known.iter().take(12).map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
                let more = if known.len() > 12 { ", …" } else { "" };
                self.help(format!("there is {shown}{more}"))
            }
        }
    }
}

/// Problems as they are found.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    items: Vec<Problem>,
    errors: usize,
    dropped: usize,
}

impl Problems {
    pub fn push(&mut self, problem: Problem) {
        self.errors += usize::from(problem.severity == Severity::Error);
        if self.items.len() < MAX_KEPT {
            self.items.push(problem);
        } else {
            self.dropped += 1;
        }
    }

    /// How many errors there are so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Sorted by position, repeats (one place, one message) removed, bounded.
    pub fn finish(self, sources: &Arc<Sources>) -> Diagnostics {
        let mut items = self.items;
        items.sort_by(|a, b| (a.span, a.severity, &a.message).cmp(&(b.span, b.severity, &b.message)));
        items.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        // Errors are never crowded out by warnings.
        let errors = items.iter().filter(|p| p.severity == Severity::Error).count();
        let mut room_for_warnings = MAX_REPORTED.saturating_sub(errors);
        let total = items.len();
        items.retain(|p| {
            p.severity == Severity::Error || {
                let fits = room_for_warnings > 0;
                room_for_warnings = room_for_warnings.saturating_sub(1);
                fits
            }
        });
        items.truncate(MAX_REPORTED);
        let omitted = total - items.len() + self.dropped;
        let label = |span: Span, text: String| Label { location: sources.location(span), text, span };
        let items = items
            .into_iter()
            .map(|p| Diagnostic {
                severity: p.severity,
                code: p.code,
                message: p.message,
                labels: p
                    .span
                    .map(|span| label(span, p.label))
                    .into_iter()
                    .chain(p.related.into_iter().map(|(span, text)| label(span, text)))
                    .collect(),
                found: p.found,
                expected: p.expected,
                help: p.help,
            })
            .collect();
        Diagnostics { items, omitted, sources: Arc::clone(sources) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_bounded_and_without_repeats() {
        let mut sources = Sources::default();
        let file = sources.add("f".into(), "".into(), "x".repeat(200));
        let mut problems = Problems::default();
        for i in (0..120).rev() {
            let span = Span { file, start: i / 2, end: i / 2 + 1 };
            problems.push(Problem::error("e", span, "bad"));
        }
        let diagnostics = problems.finish(&Arc::new(sources));
        assert_eq!(diagnostics.items.len(), MAX_REPORTED);
        assert_eq!(diagnostics.omitted, 10);
        assert!(diagnostics.items.is_sorted_by_key(|d| d.location().map(|l| l.column)));
    }
}
