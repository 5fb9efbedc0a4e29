//! `watch`: applies, and goes on living with every edit.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::change::{Asker, Given, on_interrupt, outcome, say};
use super::plan;
use crate::app::{Answer, ApplyOptions, Approval, Consent, Outcome, WatchEvent, WatchOptions, WatchSink};
use crate::cli::args::{OutputForm, ProgressHow, WatchArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::{self, Progress};
use crate::cli::ui::style::{Paint, Role};
use crate::cli::ui::table::{printable, printable_lines};
use crate::cli::ui::view::{Act, FullScreen, Told, View};
use crate::cli::ui::{Ui, time};
use crate::guest::LogLine;
use crate::model::Timestamp;
use crate::plan::Policy;
use crate::plan::report::waiting_text;
use crate::reconcile::execute::Cancel;
use crate::reconcile::{Event, EventKind, EventSink};

/// How often the view asks how things are although nothing was heard.
const STATUS: Duration = Duration::from_secs(5);

/// Watches until it is called off.
pub async fn run(cx: &Context, args: &WatchArgs) -> Result<Exit, CliError> {
    let fills = cx.ui.fills();
    let mut ui = cx.ui.clone();
    if matches!(ui.progress, ProgressHow::Auto | ProgressHow::Tty) {
        // Where the view does not fill the screen, logs and what is done stand below each other: nothing on it moves.
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
        status: fills.then_some(STATUS),
    };
    let given = Given { yes: args.yes, data_loss: args.allow_data_loss, obvious: false };
    if fills {
        return full_screen(cx, &ui, &options, given).await;
    }
    let cancel = on_interrupt(ui.clone())?;
    let progress = Progress::new(&ui);
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

/// The same with a view that fills the terminal.
async fn full_screen(cx: &Context, ui: &Ui, options: &WatchOptions, given: Given) -> Result<Exit, CliError> {
    // The view says by itself that it is ending.
    let cancel = on_interrupt(ui.hushed())?;
    // A terminal that goes away, or asks to quit, is to find itself as it was.
    for kind in [SignalKind::hangup(), SignalKind::quit()] {
        let mut asked = signal(kind).map_err(|error| CliError::system("listening for signals", &error))?;
        let token = cancel.graceful.clone();
        tokio::spawn(async move {
            asked.recv().await;
            token.cancel();
        });
    }
    let tokens = cancel.clone();
    let act = move |act| match act {
        Act::Quit if tokens.graceful.is_cancelled() => tokens.now.cancel(),
        Act::Quit => tokens.graceful.cancel(),
    };
    let clock = Arc::clone(&cx.app.environment().clock);
    let view = View::new(String::new(), jiff::tz::TimeZone::system());
    let screen = FullScreen::begin(view, clock, ui.out, act)
        .map_err(|error| CliError::system("setting up the terminal", &error))?;
    let asker = Asker { ui, given, cancel: &cancel, streams: false };
    let consent = Aside { once: Once { asker, given: AtomicBool::new(false) }, screen: &screen };
    let filled = Filled { screen: &screen, cancel: &cancel, began: Mutex::new(cx.now()) };
    let result = cx.app.watch(cx.selection(), options, &consent, &filled, &cancel).await;
    drop(screen);
    let code = result?;
    if code == 0 && !options.down_on_exit {
        ui.say("what runs goes on running; `pocketenv destroy` ends it");
    }
    Ok(Exit::Code(code))
}

/// Asks beside the view, on the terminal as it was; what needs no question is an event.
struct Aside<'a> {
    once: Once<'a>,
    screen: &'a FullScreen,
}

impl Consent for Aside<'_> {
    fn approve(&self, approval: &Approval<'_>) -> Answer {
        let Given { yes, data_loss, .. } = self.once.asker.given;
        let safe = data_loss || approval.plan.data_at_risk().next().is_none();
        if !safe || !(yes || self.once.given.load(Ordering::Relaxed)) {
            return self.screen.aside(|| self.once.approve(approval));
        }
        if approval.round == 1 {
            let text = plan::text(approval.plan, Paint(false));
            self.screen.change(|view, now| {
                view.tell(
                    now,
                    Told { role: Role::Active, sign: "·", text: printable_lines(text.trim_end()) },
                );
            });
        }
        self.once.given.store(true, Ordering::Relaxed);
        Answer::Yes
    }
}

/// Puts what happens into the view.
struct Filled<'a> {
    screen: &'a FullScreen,
    cancel: &'a Cancel,
    /// When the run that goes on now began.
    began: Mutex<Timestamp>,
}

impl EventSink for Filled<'_> {
    fn event(&self, event: &Event) {
        self.screen.change(|view, now| {
            if self.cancel.graceful.is_cancelled() {
                view.is_ending();
            }
            match &event.kind {
                EventKind::Planned { round, .. } => {
                    if *round == 1 {
                        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = event.ts;
                    }
                    view.ends(None);
                }
                EventKind::StepStarted { step } => view.begins(*step, progress::what(event), now),
                EventKind::StepDone { step }
                | EventKind::StepFailed { step, .. }
                | EventKind::StepSkipped { step, .. } => view.ends(Some(*step)),
                _ => {}
            }
            if let Some(told) =
                progress::told(event).filter(|_| !matches!(event.kind, EventKind::StepStarted { .. }))
            {
                view.tell(event.ts, told);
            }
        });
    }
}

impl WatchSink for Filled<'_> {
    fn watch(&self, event: &WatchEvent<'_>) {
        self.screen.change(|view, now| {
            if self.cancel.graceful.is_cancelled() {
                view.is_ending();
            }
            match event {
                WatchEvent::Status { status } => view.status((*status).clone()),
                WatchEvent::Broken { error } => {
                    let text = match error {
                        crate::app::Error::Manifest(diagnostics) => diagnostics.plain(),
                        error => message(error),
                    };
                    let text = format!(
                        "{}\nthe last good manifest stays in force",
                        printable_lines(text.trim_end())
                    );
                    view.tell(now, Told { role: Role::Error, sign: "✗", text });
                }
                WatchEvent::Ran { report } => {
                    view.ends(None);
                    let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
                    for waiting in &report.waiting {
                        let text =
                            format!("{} waits: {}", waiting.address, printable(&waiting_text(waiting)));
                        view.tell(now, Told { role: Role::Warning, sign: "…", text });
                    }
                    if let Some((role, text)) = outcome(report, now.millis_since(began)) {
                        view.tell(now, Told { role, sign: "·", text });
                    }
                }
                event => {
                    if let Some((_, told)) = told(event) {
                        view.tell(now, told);
                    }
                }
            }
        });
    }

    fn log(&self, sandbox: &str, line: LogLine<'_>) {
        self.screen.change(|view, _| view.log(sandbox, line.service, line.text));
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

/// How an event is told where there is no view.
enum How {
    Line,
    Warning,
    Error,
}

/// The event for people; `None` for one that is told in a way of its own, or not at all.
fn told(event: &WatchEvent<'_>) -> Option<(How, Told)> {
    let (how, role, sign, text) = match event {
        WatchEvent::Broken { .. } | WatchEvent::Ran { .. } | WatchEvent::Status { .. } => return None,
        WatchEvent::Triggered { why } => {
            (How::Line, Role::Active, "→", format!("{}: planning", printable(why)))
        }
        WatchEvent::RunFailed { error } => (How::Error, Role::Error, "✗", printable_lines(&message(error))),
        WatchEvent::Synced { sandbox, to, changes, why, elapsed_ms } => {
            let more = if *changes > 1 { format!(", {changes} changes") } else { String::new() };
            let took = time::took(*elapsed_ms);
            (How::Line, Role::Good, "⇢", format!("{}{more} → {sandbox}:{to} ({took})", printable(why)))
        }
        WatchEvent::SyncFailed { sandbox, to, message } => {
            let text = format!("{sandbox}:{to} is not in step: {}", printable_lines(message));
            (How::Warning, Role::Warning, "!", text)
        }
        WatchEvent::Reacted { sandbox, what, why, failure: None, elapsed_ms } => {
            let (what, why, took) = (printable(what), printable(why), time::took(*elapsed_ms));
            (How::Line, Role::Good, "✓", format!("{sandbox}: {what}, since {why} ({took})"))
        }
        WatchEvent::Reacted { sandbox, what, why, failure: Some(failure), .. } => {
            let (what, why) = (printable(what), printable(why));
            let text = format!("{sandbox}: {what}, since {why}: {}", printable_lines(failure));
            (How::Warning, Role::Warning, "!", text)
        }
        WatchEvent::Loop { sandbox, path, what } => {
            let text = format!(
                "{sandbox}: {} changes again and again right after `{}`, so that is not done until there is silence; leave the file \
                 out with `ignore`",
                printable(path),
                printable(what)
            );
            (How::Warning, Role::Warning, "!", text)
        }
        WatchEvent::Service { sandbox, service, message, bad } => {
            let (role, sign) = if *bad { (Role::Error, "✗") } else { (Role::Good, "✓") };
            (How::Line, role, sign, format!("{sandbox}/{service} {message}"))
        }
    };
    Some((how, Told { role, sign, text }))
}

/// An error and its causes; of a manifest's problems the first.
fn message(error: &crate::app::Error) -> String {
    match error {
        crate::app::Error::Manifest(diagnostics) => diagnostics.to_string(),
        error => crate::model::with_causes(error),
    }
}

impl WatchSink for Screen<'_> {
    fn watch(&self, event: &WatchEvent<'_>) {
        self.json(event);
        if self.progress.is_data() {
            return;
        }
        match event {
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
                if matches!(report.outcome, Outcome::Done | Outcome::Unchanged)
                    && report.plan.project == report.project
                {
                    self.line(Role::Dim, "·", "watching; Ctrl-C ends it");
                }
            }
            event => match told(event) {
                Some((How::Line, told)) => self.line(told.role, told.sign, &told.text),
                Some((How::Warning, told)) => self.ui.warn(&told.text),
                Some((How::Error, told)) => self.ui.error(&told.text),
                None => {}
            },
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
