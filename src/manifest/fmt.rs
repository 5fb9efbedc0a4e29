//! The normal form of a manifest's text: indentation by two, no trailing spaces, one newline at the end. Comments, order, quotes
//! and line breaks stay as written. The result is proven to say the same; where it would not, less is changed.

use granit_parser::{Event, Parser, ScalarStyle, StructureStyle};

use super::diagnostic::{Diagnostics, Problems};
use super::node::{Node, Value};
use super::source::Sources;
use super::yaml;

/// Formats a manifest called `name`. `Err` if it is not YAML.
pub fn format(name: &str, text: &str) -> Result<String, Diagnostics> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let before = meaning(name, text)?;
    let same = |candidate: &String| meaning(name, candidate).is_ok_and(|after| after == before);
    let settled = |candidate: &String| same(candidate) && reindent(candidate).as_ref() == Some(candidate);
    let candidates = [reindent(text), reindent(text).and_then(|t| reindent(&t))];
    if let Some(done) = candidates.into_iter().flatten().find(settled) {
        return Ok(done);
    }
    Ok(Some(tidy(text)).filter(same).unwrap_or_else(|| text.to_owned()))
}

/// What a text says: its values and its comments.
fn meaning(name: &str, text: &str) -> Result<(String, Vec<String>), Diagnostics> {
    let mut sources = Sources::default();
    let mut problems = Problems::default();
    let file = sources.add(name.to_owned(), "".into(), text.to_owned());
    let tree = yaml::parse(&sources, file, &mut problems);
    if problems.errors() > 0 {
        return Err(problems.finish(&std::sync::Arc::new(sources)));
    }
    let mut shape = String::new();
    if let Some(tree) = &tree {
        write_shape(tree, &mut shape);
    }
    let comments = Parser::new_from_str(text)
        .filter_map(|next| match next {
            Ok((Event::Comment(comment, _), _)) => Some(comment.trim_end().to_owned()),
            _ => None,
        })
        .collect();
    Ok((shape, comments))
}

fn write_shape(node: &Node, out: &mut String) {
    match &node.value {
        Value::Scalar(s) => out.push_str(&format!("{:?}{:?};", s.kind, s.text)),
        Value::List(items) => {
            out.push('[');
            items.iter().for_each(|item| write_shape(item, out));
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for entry in entries {
                out.push_str(&format!("{:?}:", entry.key));
                write_shape(&entry.value, out);
            }
            out.push('}');
        }
    }
}

/// What one line is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It begins something of its own.
    Own,
    /// It goes on with a flow collection that began on this line.
    Flow(usize),
    /// It goes on with the text of a scalar that began on this line.
    Text(usize),
}

/// The part each line has; `None` if the text is not YAML.
fn parts(text: &str) -> Option<Vec<Part>> {
    let mut parts = vec![Part::Own; text.split('\n').count()];
    let mut flows: Vec<(usize, bool)> = Vec::new();
    let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
    let line_of = |offset: usize| starts.partition_point(|s| *s <= offset).saturating_sub(1);
    for next in Parser::new_from_str(text) {
        let (event, span) = next.ok()?;
        let range = span.byte_range()?;
        match event {
            Event::Scalar(_, style, ..) if range.end > range.start => {
                // A block's span runs on to the next token.
                let length = text.get(range.clone())?.trim_end().len().max(1);
                let (mut first, last) = (line_of(range.start), line_of(range.start + length - 1));
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
                    // The span of a block begins with its text; the line with the `|` stands before it.
                    let blank = |line: usize| {
                        starts
                            .get(line)
                            .and_then(|s| text.get(*s..))
                            .is_some_and(|t| t.split('\n').next().is_none_or(|l| l.trim().is_empty()))
                    };
                    first = (0..first).rev().find(|line| !blank(*line)).unwrap_or(0);
                }
                for part in parts.iter_mut().take(last + 1).skip(first + 1) {
                    *part = Part::Text(first);
                }
            }
            Event::SequenceStart(style, ..) | Event::MappingStart(style, ..) => {
                flows.push((line_of(range.start), style == StructureStyle::Flow));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((first, true)) = flows.pop() {
                    for part in parts.iter_mut().take(line_of(range.start) + 1).skip(first + 1) {
                        // An outer flow collection, which ends later, decides; text inside stays text.
                        if !matches!(part, Part::Text(_)) {
                            *part = Part::Flow(first);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Some(parts)
}

/// Trailing spaces and line ends only.
fn tidy(text: &str) -> String {
    let parts = parts(text).unwrap_or_default();
    let lines = text.split('\n').enumerate().map(|(i, line)| {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if matches!(parts.get(i), Some(Part::Own | Part::Flow(_))) { line.trim_end() } else { line }
    });
    finish(lines.map(str::to_owned).collect())
}

fn finish(mut lines: Vec<String>) -> String {
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Indentation by two. `None` if the text is not YAML or indents with tabs.
fn reindent(text: &str) -> Option<String> {
    let parts = parts(text)?;
    let lines: Vec<&str> = text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).collect();
    // Levels from outermost to innermost: the column as written, the column to be.
    let mut levels: Vec<(usize, usize)> = vec![(0, 0)];
    let mut shifts: Vec<isize> = Vec::with_capacity(lines.len());
    let mut out: Vec<String> = vec![String::new(); lines.len()];
    let mut comments: Vec<usize> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let body = line.trim_start_matches(' ');
        let indent = line.len() - body.len();
        let part = parts.get(i).copied().unwrap_or(Part::Own);
        let (mut shift, mut text) = (0, line.trim_end().to_owned());
        match part {
            Part::Own if body.trim_end().is_empty() => text = String::new(),
            Part::Own if body.starts_with('#') => {
                comments.push(i);
            }
            Part::Own => {
                if body.starts_with('\t') {
                    return None;
                }
                let column = settle(&mut levels, indent);
                shift = column as isize - indent as isize;
                let (dashes, rest) = dashes(body);
                // What follows `- ` is a level of its own.
                let (mut from, mut to) = (indent, column);
                for width in &dashes {
                    from += width;
                    to += 2;
                    settle_at(&mut levels, from, to);
                }
                text = format!("{}{}{}", " ".repeat(column), "- ".repeat(dashes.len()), rest)
                    .trim_end()
                    .to_owned();
                // Comments above a line move with it if they stand in its column, else with the level they stand in.
                for at in comments.drain(..) {
                    let comment = lines.get(at).copied().unwrap_or_default();
                    let body = comment.trim_start_matches(' ');
                    let old = comment.len() - body.len();
                    let new = if old == indent {
                        column
                    } else {
                        levels
                            .iter()
                            .rev()
                            .find(|(from, _)| *from <= old)
                            .map_or(old, |(from, to)| to + (old - from))
                    };
                    out[at] = format!("{}{}", " ".repeat(new), body.trim_end());
                }
            }
            Part::Flow(first) | Part::Text(first) => {
                shift = shifts.get(first).copied().unwrap_or(0);
                let keep = if matches!(part, Part::Flow(_)) { body.trim_end() } else { body };
                let column = (indent as isize + shift).max(0) as usize;
                text = if keep.is_empty() && matches!(part, Part::Flow(_)) {
                    String::new()
                } else if keep.trim().is_empty() {
                    (*line).to_owned()
                } else {
                    format!("{}{keep}", " ".repeat(column))
                };
            }
        }
        shifts.push(shift);
        out[i] = text;
    }
    Some(finish(out))
}

/// The column for a line that is indented by `indent`.
fn settle(levels: &mut Vec<(usize, usize)>, indent: usize) -> usize {
    while levels.len() > 1 && levels.last().is_some_and(|(from, _)| *from > indent) {
        levels.pop();
    }
    match levels.last() {
        Some((from, to)) if *from == indent => *to,
        Some((_, to)) => {
            let column = to + 2;
            levels.push((indent, column));
            column
        }
        None => indent,
    }
}

fn settle_at(levels: &mut Vec<(usize, usize)>, from: usize, to: usize) {
    while levels.len() > 1 && levels.last().is_some_and(|(f, _)| *f >= from) {
        levels.pop();
    }
    levels.push((from, to));
}

/// The widths of the dashes a line begins with, spaces after them included, and what follows.
fn dashes(body: &str) -> (Vec<usize>, &str) {
    let mut widths = Vec::new();
    let mut rest = body;
    while let Some(after) = rest.strip_prefix("- ") {
        let next = after.trim_start_matches(' ');
        // `- |` and `- # note` keep what follows; `-` alone is handled as text.
        widths.push(rest.len() - next.len());
        rest = next;
    }
    (widths, rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn indents_by_two_and_keeps_comments() {
        let text = "version: 1   \r\n# top\nsandboxes:\n    # about a\n    a:\n        env:\n            A: |\n                x\n                  y\n        ports:\n        -   1\n        -   port: 2\n            public: true\n        repo: {\n           url: x,   # why\n        }\n\n\n";
        let wanted = "version: 1\n# top\nsandboxes:\n  # about a\n  a:\n    env:\n      A: |\n          x\n            y\n    ports:\n    - 1\n    - port: 2\n      public: true\n    repo: {\n       url: x,   # why\n    }\n";
        let done = format("f", text).unwrap();
        assert_eq!(done, wanted);
        assert_eq!(format("f", &done).unwrap(), done);
    }

    #[test]
    fn refuses_what_is_not_yaml() {
        assert!(format("f", "a: [1").is_err());
    }
}
