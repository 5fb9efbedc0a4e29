//! A plan as text for people, as Markdown for a pull request, and as a DOT graph. Its JSON form is the plan itself.

use std::fmt::Write as _;

use super::{Change, Note, Plan, Reason, Verdict, Waiting, WaitingOn};

/// One line of the human rendering, for a caller that colours it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What kind of line it is.
    pub kind: LineKind,
    /// The text without colour.
    pub text: String,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// A change of this verdict.
    Change(Verdict),
    /// A reason, a field, a hint.
    Detail,
    /// Data that may be lost.
    Risk,
    /// Something that waits.
    Waiting,
    /// A note.
    Note,
    /// The counts.
    Summary,
}

/// The plan for people, line by line.
pub fn human(plan: &Plan) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut push = |kind, text: String| lines.push(Line { kind, text: one_line(text) });
    for change in &plan.changes {
        push(
            LineKind::Change(change.verdict),
            format!("{} {:<9} {}", symbol(change.verdict), word(change.verdict), change.address),
        );
        for reason in &change.reasons {
            push(LineKind::Detail, format!("      {}", reason_text(reason)));
        }
        for risk in &change.data_at_risk {
            push(LineKind::Risk, format!("    ! loses {risk}"));
        }
    }
    for waiting in &plan.waiting {
        push(LineKind::Waiting, format!("… waits     {}: {}", waiting.address, waiting_text(waiting)));
    }
    for note in &plan.notes {
        push(LineKind::Note, format!("  note: {}", note_text(note)));
    }
    push(LineKind::Summary, summary(plan));
    lines
}

/// Text without control characters: messages come from providers and guests, and must not reach a terminal as commands.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The counts in one line: `Plan: 2 to create, 1 to restart.`, or that there is nothing to do.
pub fn summary(plan: &Plan) -> String {
    let drifted = plan.notes.iter().filter(|note| matches!(note, Note::Drift { .. })).count();
    if plan.is_empty() && drifted > 0 {
        return format!("Nothing to do. {drifted} drifted and left as the manifest says.");
    }
    if plan.is_empty() {
        return "No changes. What exists is what is desired.".to_owned();
    }
    let mut parts: Vec<String> =
        plan.counts().iter().map(|(verdict, n)| format!("{n} to {}", infinitive(*verdict))).collect();
    if !plan.waiting.is_empty() {
        parts.push(format!("{} waiting", plan.waiting.len()));
    }
    if parts.is_empty() {
        parts.push(format!("{} steps", plan.steps.len()));
    }
    format!("Plan: {}.", parts.join(", "))
}

/// The plan as a table for a pull request.
pub fn markdown(plan: &Plan) -> String {
    let mut out = format!("### Plan for `{}`\n\n{}\n", plan.project, summary(plan));
    if !plan.changes.is_empty() {
        out.push_str("\n| | resource | why | data at risk |\n|---|---|---|---|\n");
        for change in &plan.changes {
            let reasons: Vec<String> = change.reasons.iter().map(reason_text).collect();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                word(change.verdict),
                code(&change.address.to_string()),
                cell(&reasons.join("; ")),
                cell(&change.data_at_risk.join("; "))
            );
        }
    }
    for waiting in &plan.waiting {
        let address = code(&waiting.address.to_string());
        let _ = write!(out, "\n- {address} waits: {}", cell(&waiting_text(waiting)));
    }
    for note in &plan.notes {
        let _ = write!(out, "\n- {}", cell(&note_text(note)));
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// Text that cannot break out of a table cell or into markup.
fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => out.push(' '),
            '|' | '<' | '>' | '*' | '_' | '[' | ']' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// Text in the type of code, in a table cell or out of one.
fn code(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() || c == '`' { ' ' } else { c }).collect();
    format!("`{}`", text.replace('|', "\\|"))
}

/// The graph of steps in the DOT language of Graphviz.
pub fn dot(plan: &Plan) -> String {
    let mut out = String::from("digraph plan {\n  rankdir=LR;\n  node [shape=box];\n");
    for (id, step) in plan.steps.iter().enumerate() {
        let label = format!("{} {}", step.action.verb(), step.address);
        let _ = writeln!(out, "  s{id} [label=\"{}\"];", label.replace('\\', "\\\\").replace('"', "\\\""));
        for after in &step.after {
            let _ = writeln!(out, "  s{after} -> s{id};");
        }
    }
    out.push_str("}\n");
    out
}

fn symbol(verdict: Verdict) -> char {
    match verdict {
        Verdict::Create | Verdict::Adopt => '+',
        Verdict::Live | Verdict::Restart | Verdict::Start | Verdict::Stop | Verdict::Pause => '~',
        Verdict::Recreate => '±',
        Verdict::Delete => '-',
        Verdict::Forget => '·',
        Verdict::Wait => '…',
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Live => "update",
        other => infinitive(other),
    }
}

fn infinitive(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Create => "create",
        Verdict::Adopt => "adopt",
        Verdict::Live => "update",
        Verdict::Restart => "restart",
        Verdict::Recreate => "recreate",
        Verdict::Start => "start",
        Verdict::Stop => "stop",
        Verdict::Pause => "pause",
        Verdict::Delete => "delete",
        Verdict::Forget => "forget",
        Verdict::Wait => "wait for",
    }
}

/// A reason in one line.
pub fn reason_text(reason: &Reason) -> String {
    let at =
        |at: &Option<crate::model::Location>| at.as_ref().map_or_else(String::new, |l| format!(" ({l})"));
    match reason {
        Reason::New { at: location } => format!("declared and does not exist{}", at(location)),
        Reason::Found { id } => {
            format!("exists as {id} with this project's labels, and the record does not know it")
        }
        Reason::Lost => "recorded, and the provider says that it does not exist".to_owned(),
        Reason::Failed { message } => format!("failed: {message}"),
        Reason::Changed(field) => {
            let values = match (&field.old, &field.new) {
                (None, None) => "changed".to_owned(),
                (old, new) => format!("{} → {}", shown(old), shown(new)),
            };
            format!("{}: {values}{}", field.path, at(&field.at))
        }
        Reason::Drifted { what } => format!("drifted: {what}"),
        Reason::Moved { from, to } => format!("moves from provider `{from}` to `{to}`"),
        Reason::Removed => "no longer declared".to_owned(),
        Reason::Absent { at: location } => format!("is to be absent{}", at(location)),
        Reason::State { wanted, at: location } => format!("should be {wanted}{}", at(location)),
        Reason::Follows { address } => format!("comes with {address}"),
        Reason::NotReady { message } => format!("not ready: {message}"),
        Reason::Asked { why } => format!("asked for: {why}"),
        Reason::Interrupted { .. } => "an earlier run was interrupted here".to_owned(),
    }
}

fn shown(value: &Option<String>) -> String {
    const MAX_CHARS: usize = 80; // One terminal line; the JSON form has all of it.
    match value {
        None => "(none)".to_owned(),
        Some(text) if text.chars().count() > MAX_CHARS => {
            format!("{}…", text.chars().take(MAX_CHARS).collect::<String>())
        }
        Some(text) => text.clone(),
    }
}

/// What something waits for, in one line.
pub fn waiting_text(waiting: &Waiting) -> String {
    match &waiting.on {
        WaitingOn::Provider { provider, reason } => {
            format!("provider `{provider}` could not be observed: {reason}")
        }
        WaitingOn::Guest { reason } => format!("the inside could not be observed: {reason}"),
        WaitingOn::Transition { state } => format!("it is {state}"),
        WaitingOn::Dependency { address } => format!("{address} is not ready"),
        WaitingOn::Output { address } => format!("the address of {address} is not known yet"),
        WaitingOn::Secret { name } => format!("the value of secret `{name}` could not be had"),
        WaitingOn::Protected => "it is protected (`protect: true`)".to_owned(),
        WaitingOn::Mounted { by } => format!("{by} mounts it"),
    }
}

fn note_text(note: &Note) -> String {
    match note {
        Note::Orphan { address, provider, id } => {
            format!("{id} at provider `{provider}` claims to be {address} and is not; it is left alone")
        }
        Note::Kept { address } => format!("{address} is kept, with its data"),
        Note::Drift { address, what } => format!("{address} drifted and is left as it is: {what}"),
    }
}

/// One change in one line, for events.
pub fn change_text(change: &Change) -> String {
    let reasons: Vec<String> = change.reasons.iter().map(reason_text).collect();
    format!("{}: {}", word(change.verdict), reasons.join("; "))
}
