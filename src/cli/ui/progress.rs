//! Progress of the loop: live on a terminal, one line per event elsewhere, or JSON Lines.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use super::style::{Paint, Role};
use super::table::{printable, printable_lines};
use super::view::Told;
use super::{FORMAT_VERSION, Ui, time};
use crate::cli::args::{OutputForm, ProgressHow};
use crate::plan::StepId;
use crate::plan::report::waiting_text;
use crate::reconcile::{Event, EventKind, EventSink};

/// Spinners shown at once; more would scroll.
const MAX_SPINNERS: usize = 12;

/// Shows what the loop tells.
pub struct Progress {
    how: How,
    paint: Paint,
}

enum How {
    Live(Box<Mutex<Live>>),
    Plain,
    Json { to_stdout: bool },
    Quiet,
}

struct Live {
    all: MultiProgress,
    total: ProgressBar,
    running: BTreeMap<StepId, ProgressBar>,
}

impl Progress {
    /// Progress as the flags say. With `-o json` the stream is the data, on stdout.
    pub fn new(ui: &Ui) -> Self {
        let how = match (ui.form, ui.progress) {
            (OutputForm::Json, _) => How::Json { to_stdout: true },
            (_, ProgressHow::Json) => How::Json { to_stdout: false },
            (_, ProgressHow::Quiet) => How::Quiet,
            (_, ProgressHow::Tty) => How::Live(Box::new(Mutex::new(Live::new()))),
            (_, ProgressHow::Plain | ProgressHow::Auto) => How::Plain,
        };
        let progress = Self { how, paint: ui.err };
        progress.json(&json!({ "type": "stream", "format_version": FORMAT_VERSION }));
        progress
    }

    /// Takes the spinners off the screen, until another run begins.
    pub fn finish(&self) {
        if let How::Live(live) = &self.how {
            let mut live = lock(live);
            live.total.finish_and_clear();
            // Nothing can be done about a terminal that cannot be written to.
            let _ = live.all.clear();
            *live = Live::new();
        }
    }

    /// Writes one object of the stream, if this is one.
    pub fn json(&self, value: &Value) {
        // Somebody who closed the pipe does not stop the work.
        let _ = match &self.how {
            How::Json { to_stdout: true } => writeln!(io::stdout().lock(), "{value}"),
            How::Json { to_stdout: false } => writeln!(io::stderr().lock(), "{value}"),
            _ => Ok(()),
        };
    }

    /// Whether the stream is the data on stdout.
    pub fn is_data(&self) -> bool {
        matches!(self.how, How::Json { to_stdout: true })
    }

    fn line(&self, event: &Event) -> Option<String> {
        let told = told(event)?;
        if matches!(event.kind, EventKind::StepOutput { .. }) {
            let lines = told.text.lines().map(|line| self.paint.paint(Role::Dim, &format!("  {line}")));
            return Some(lines.collect::<Vec<_>>().join("\n"));
        }
        Some(format!("{} {}", self.paint.paint(told.role, told.sign), told.text))
    }
}

/// The event for people; `None` for what says nothing to them.
pub fn told(event: &Event) -> Option<Told> {
    let what = what(event);
    let took = event.elapsed_ms.map_or_else(String::new, |ms| format!(" ({})", time::took(ms)));
    let (role, sign, text) = match &event.kind {
        EventKind::Planned { round: 1, .. } => return None,
        EventKind::Planned { round, steps } => {
            (Role::Dim, "·", format!("looked again (round {round}): {steps} steps"))
        }
        EventKind::StepStarted { .. } => (Role::Active, "→", what),
        EventKind::StepOutput { text, .. } => {
            let lines: Vec<String> =
                text.lines().map(|line| format!("{what} | {}", printable(line))).collect();
            (Role::Dim, " ", lines.join("\n"))
        }
        EventKind::StepRetrying { message, in_ms, .. } => (
            Role::Warning,
            "↻",
            format!("{what}: {}; again in {}", printable_lines(message), time::took(*in_ms)),
        ),
        EventKind::StepDone { .. } => (Role::Good, "✓", format!("{what}{took}")),
        EventKind::StepFailed { failure, .. } => {
            (Role::Error, "✗", format!("{what}{took}: {}", printable_lines(&failure.message)))
        }
        EventKind::StepSkipped { message, .. } => {
            (Role::Dim, "-", format!("{what}: {}", printable_lines(message)))
        }
        EventKind::Waits { waiting } => (
            Role::Active,
            "…",
            format!("{} waits: {}", waiting.address, printable_lines(&waiting_text(waiting))),
        ),
        EventKind::WaitingForLock { holder } => {
            (Role::Active, "…", format!("waiting for {holder}, who writes to this project"))
        }
    };
    Some(Told { role, sign, text })
}

impl EventSink for Progress {
    fn event(&self, event: &Event) {
        match &self.how {
            How::Quiet => {}
            How::Json { .. } => self.json(&json_of(event)),
            How::Plain => {
                if let Some(line) = self.line(event) {
                    let _ = writeln!(io::stderr().lock(), "{line}");
                }
            }
            How::Live(live) => lock(live).event(event, self),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Live {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let total = all.add(ProgressBar::new(0));
        total.set_style(style("{pos}/{len} steps  {elapsed}"));
        Self { all, total, running: BTreeMap::new() }
    }

    fn event(&mut self, event: &Event, progress: &Progress) {
        match &event.kind {
            EventKind::Planned { steps, .. } => {
                self.total.set_length(self.total.position() + *steps as u64);
                self.total.enable_steady_tick(Duration::from_millis(200));
                self.print(progress.line(event));
            }
            EventKind::StepStarted { step } => {
                if self.running.len() < MAX_SPINNERS {
                    let bar = self.all.insert_before(&self.total, ProgressBar::new_spinner());
                    bar.set_style(style("{spinner} {prefix}  {elapsed}  {wide_msg:.dim}"));
                    bar.set_prefix(what(event));
                    bar.enable_steady_tick(Duration::from_millis(100));
                    self.running.insert(*step, bar);
                }
            }
            EventKind::StepOutput { step, text } => {
                let last = text.lines().rev().find(|line| !line.trim().is_empty());
                if let (Some(bar), Some(last)) = (self.running.get(step), last) {
                    bar.set_message(printable(last));
                }
            }
            EventKind::StepRetrying { step, message, in_ms } => {
                if let Some(bar) = self.running.get(step) {
                    bar.set_message(format!("{}; again in {}", printable(message), time::took(*in_ms)));
                }
            }
            EventKind::StepDone { step }
            | EventKind::StepFailed { step, .. }
            | EventKind::StepSkipped { step, .. } => {
                if let Some(bar) = self.running.remove(step) {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                }
                self.total.inc(1);
                self.print(progress.line(event));
            }
            EventKind::Waits { .. } | EventKind::WaitingForLock { .. } => self.print(progress.line(event)),
        }
    }

    fn print(&self, line: Option<String>) {
        if let Some(line) = line {
            // As above: a terminal that cannot be written to does not stop the work.
            let _ = self.all.println(line);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// A poisoned lock is the trace of a panic elsewhere; what it guards is only a picture.
fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is done to what, in short.
pub fn what(event: &Event) -> String {
    match (&event.op, &event.resource) {
        (Some(op), Some(resource)) => format!("{op} {resource}"),
        (Some(op), None) => (*op).to_owned(),
        (None, Some(resource)) => resource.to_string(),
        (None, None) => String::new(),
    }
}

/// The event as one object: type, time, level, resource, operation and time taken first, then what is its own.
fn json_of(event: &Event) -> Value {
    let level = match &event.kind {
        EventKind::StepFailed { .. } => "error",
        EventKind::StepRetrying { .. } | EventKind::StepSkipped { .. } | EventKind::Waits { .. } => "warn",
        EventKind::StepOutput { .. } => "debug",
        _ => "info",
    };
    let Ok(Value::Object(mut fields)) = serde_json::to_value(event) else { return Value::Null };
    let mut out = Map::new();
    let mut take = |name: &str| fields.shift_remove(name).unwrap_or(Value::Null);
    out.insert("type".to_owned(), take("type"));
    out.insert("ts".to_owned(), time::rfc3339(event.ts).into());
    take("ts");
    out.insert("level".to_owned(), level.into());
    for name in ["resource", "op", "elapsed_ms"] {
        out.insert(name.to_owned(), take(name));
    }
    out.extend(fields);
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Timestamp};
    use crate::reconcile::{Failure, FailureKind};

    fn failed() -> Event {
        Event {
            ts: Timestamp(0),
            resource: Some(Address::Sandbox("api".to_owned())),
            op: Some("create"),
            elapsed_ms: Some(1_250),
            kind: EventKind::StepFailed {
                step: 3,
                failure: Failure { kind: FailureKind::Permanent, message: "no room".to_owned() },
            },
        }
    }

    #[test]
    fn a_json_line_has_its_common_fields_first() {
        assert_eq!(
            json_of(&failed()).to_string(),
            r#"{"type":"step_failed","ts":"1970-01-01T00:00:00.000Z","level":"error","resource":"sandbox/api","op":"create","elapsed_ms":1250,"step":3,"failure":{"kind":"permanent","message":"no room"}}"#
        );
    }

    #[test]
    fn a_plain_line_says_what_and_why() {
        let progress = Progress { how: How::Plain, paint: Paint(false) };
        assert_eq!(progress.line(&failed()).as_deref(), Some("✗ create sandbox/api (1.2s): no room"));
    }
}
