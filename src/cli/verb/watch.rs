//! `watch`: applies, and goes on living with every edit.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::change::{Asker, Given, on_interrupt, say};
use super::plan;
use crate::app::{Answer, ApplyOptions, Approval, Consent, Outcome, WatchEvent, WatchOptions, WatchSink};
use crate::cli::args::{OutputForm, ProgressHow, WatchArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::Progress;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{printable, printable_lines};
use crate::cli::ui::{Ui, time};
use crate::guest::LogLine;
use crate::model::Timestamp;
use crate::plan::Policy;
use crate::reconcile::{Event, EventKind, EventSink};

/// Watches until it is called off.
pub async fn run(cx: &Context, args: &WatchArgs) -> Result<Exit, CliError> {
    // Logs and what is done stand below each other: nothing on the screen moves.
    let mut ui = cx.ui.clone();
    if matches!(ui.progress, ProgressHow::Auto | ProgressHow::Tty) {
        ui.progress = ProgressHow::Plain;
    }
    let options = WatchOptions {
        apply: ApplyOptions {
            verb: "watch",
            policy: Policy { prune: !args.no_prune, ..Policy::default() },
            lock_timeout: args.lock_timeout.into(),
            ..ApplyOptions::default()
        },
        resync: args.resync.into(),
        down_on_exit: args.down_on_exit,
        logs: !args.no_logs,
    };
    let cancel = on_interrupt(ui.clone())?;
    let progress = Progress::new(&ui);
    let given = Given { yes: args.yes, data_loss: args.allow_data_loss, obvious: false };
    let asker = Asker { ui: &ui, given, cancel: &cancel, streams: progress.is_data() };
    let consent = Once { asker, given: AtomicBool::new(false) };
    let screen =
        Screen { ui: &ui, cx, progress: &progress, tags: Mutex::default(), began: Mutex::new(cx.now()) };
    let result = cx.app.watch(cx.selection(), &options, &consent, &screen, &cancel).await;
    progress.finish();
    match result {
        Ok(code) => Ok(Exit::Code(code)),
        Err(error) => {
            let error = CliError::from(error);
            progress.json(&error.line(cx.now()));
            Err(error)
        }
    }
}

/// Who has agreed to the first plan has agreed to follow the manifest, but not to lose data.
struct Once<'a> {
    asker: Asker<'a>,
    given: AtomicBool,
}

impl Consent for Once<'_> {
    fn approve(&self, approval: &Approval<'_>) -> Answer {
        if self.given.load(Ordering::Relaxed) && approval.plan.data_at_risk().next().is_none() {
            if approval.round == 1 && !self.asker.streams {
                self.asker.ui.say(plan::text(approval.plan, self.asker.ui.err).trim_end());
            }
            return Answer::Yes;
        }
        let answer = self.asker.approve(approval);
        self.given.fetch_or(answer == Answer::Yes, Ordering::Relaxed);
        answer
    }
}

/// Prints what happens.
struct Screen<'a> {
    ui: &'a Ui,
    cx: &'a Context,
    progress: &'a Progress,
    /// The services that have written, in the order in which they began.
    tags: Mutex<BTreeMap<String, usize>>,
    /// When the run that goes on now began.
    began: Mutex<Timestamp>,
}

impl EventSink for Screen<'_> {
    fn event(&self, event: &Event) {
        if matches!(event.kind, EventKind::Planned { round: 1, .. }) {
            *self.began.lock().unwrap_or_else(PoisonError::into_inner) = event.ts;
        }
        self.progress.event(event);
    }
}

impl Screen<'_> {
    fn line(&self, role: Role, sign: &str, text: &str) {
        if !self.progress.is_data() && self.ui.progress == ProgressHow::Plain {
            self.ui.say(&format!("{} {text}", self.ui.err.paint(role, sign)));
        }
    }

    /// The event as an object: type, time and level first.
    fn json(&self, event: &WatchEvent<'_>) {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(event) else { return };
        let mut level = "info";
        if let WatchEvent::Broken { error } | WatchEvent::RunFailed { error } = event {
            fields.insert("message".to_owned(), printable_lines(&message(error)).into());
            level = "error";
        }
        if matches!(event, WatchEvent::SyncFailed { .. } | WatchEvent::Loop { .. }) {
            level = "warn";
        }
        let mut line = serde_json::Map::new();
        line.insert("type".to_owned(), fields.shift_remove("type").unwrap_or_default());
        line.insert("ts".to_owned(), time::rfc3339(self.cx.now()).into());
        line.insert("level".to_owned(), level.into());
        line.extend(fields);
        self.progress.json(&Value::Object(line));
    }
}

/// An error and its causes; of a manifest's problems the first.
fn message(error: &crate::app::Error) -> String {
    match error {
        crate::app::Error::Manifest(diagnostics) => diagnostics.to_string(),
        error => crate::reconcile::observe::with_causes(error),
    }
}

impl WatchSink for Screen<'_> {
    fn watch(&self, event: &WatchEvent<'_>) {
        self.json(event);
        if self.progress.is_data() {
            return;
        }
        match event {
            WatchEvent::Triggered { why } => self.line(Role::Active, "→", &format!("{}: planning", printable(why))),
            WatchEvent::Broken { error } => {
                if let crate::app::Error::Manifest(diagnostics) = error {
                    self.ui.diagnostics(diagnostics);
                } else {
                    self.ui.error(&printable_lines(&message(error)));
                }
                self.ui.say("the last good manifest stays in force");
            }
            WatchEvent::Ran { report } if report.outcome == Outcome::Interrupted => {}
            WatchEvent::Ran { report } => {
                let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
                say(self.ui, report, self.cx.now().millis_since(began));
                if matches!(report.outcome, Outcome::Done | Outcome::Unchanged) && report.plan.project == report.project {
                    self.line(Role::Dim, "·", "watching; Ctrl-C ends it");
                }
            }
            WatchEvent::RunFailed { error } => self.ui.error(&printable_lines(&message(error))),
            WatchEvent::Synced { sandbox, to, changes, why, elapsed_ms } => {
                let more = if *changes > 1 { format!(", {changes} changes") } else { String::new() };
                let text = format!("{}{more} → {sandbox}:{to} ({})", printable(why), time::took(*elapsed_ms));
                self.line(Role::Good, "⇢", &text);
            }
            WatchEvent::SyncFailed { sandbox, to, message } => {
                self.ui.warn(&format!("{sandbox}:{to} is not in step: {}", printable_lines(message)));
            }
            WatchEvent::Reacted { sandbox, what, failure: None, elapsed_ms } => {
                self.line(Role::Good, "✓", &format!("{sandbox}: {} ({})", printable(what), time::took(*elapsed_ms)));
            }
            WatchEvent::Reacted { sandbox, what, failure: Some(failure), .. } => {
                self.ui.warn(&format!("{sandbox}: {}: {}", printable(what), printable_lines(failure)));
            }
            WatchEvent::Loop { sandbox, path, what } => self.ui.warn(&format!(
                "{sandbox}: {} changes again and again right after `{}`, so that is not done until there is silence; leave the file \
                 out with `ignore`",
                printable(path),
                printable(what)
            )),
            WatchEvent::Service { sandbox, service, message, bad } => {
                let (role, sign) = if *bad { (Role::Error, "✗") } else { (Role::Good, "✓") };
                self.line(role, sign, &format!("{sandbox}/{service} {message}"));
            }
        }
    }

    fn log(&self, sandbox: &str, line: LogLine<'_>) {
        // Somebody who closed the pipe does not stop the work.
        if self.ui.form == OutputForm::Json {
            self.progress.json(&json!({
                "type": "log",
                "resource": format!("sandbox/{sandbox}/service/{}", line.service),
                "text": String::from_utf8_lossy(line.text),
            }));
            return;
        }
        let name = format!("{sandbox}/{}", line.service);
        let index = {
            let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
            let next = tags.len();
            *tags.entry(name.clone()).or_insert(next)
        };
        // The bytes as the service wrote them: its colours are its own.
        let mut whole = self.ui.out.tag(index, &format!("{name} | ")).into_bytes();
        whole.extend_from_slice(line.text);
        whole.push(b'\n');
        let mut out = io::stdout().lock();
        let _ = out.write_all(&whole).and_then(|()| out.flush());
    }
}
