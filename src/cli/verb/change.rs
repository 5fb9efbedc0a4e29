//! What all verbs that change something have in common: consent, progress, Ctrl-C, and what is said at the end.

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::plan;
use super::status::place;
use crate::app::{Answer, ApplyOptions, ApplyReport, Approval, Consent, Goal, Outcome, Project};
use crate::cli::args::{OutputForm, ProgressHow};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::Progress;
use crate::cli::ui::style::Role;
use crate::cli::ui::{Ui, lines, prompt, time};
use crate::model::Address;
use crate::plan::report::waiting_text;
use crate::reconcile::execute::Cancel;

/// What the flags say about consent.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// Do not ask.
    pub yes: bool,
    /// Data may be lost.
    pub data_loss: bool,
    /// The plan is what was typed, so that showing it would say nothing.
    pub obvious: bool,
}

/// Runs the loop and says how it ended. Runs that belong together share their progress.
///
/// # Errors
/// What kept it from being run.
pub async fn carry_out(
    cx: &Context,
    project: &Project<'_>,
    options: &ApplyOptions,
    given: Given,
    progress: &Progress,
) -> Result<Exit, CliError> {
    let began = cx.now();
    let cancel = on_interrupt(cx.ui.clone())?;
    let asker = Asker { ui: &cx.ui, given, cancel: &cancel, streams: progress.is_data() };
    let result = project.apply(options, &asker, progress, &cancel).await;
    progress.finish();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let error = CliError::from(error);
            progress.json(&error.line(cx.now()));
            return Err(error);
        }
    };
    let interrupted = report.outcome == Outcome::Declined && cancel.graceful.is_cancelled();
    match cx.ui.form {
        OutputForm::Json => progress.json(&result_line(&report)),
        OutputForm::Yaml => cx.ui.value(&report)?,
        OutputForm::Name => {
            let done = report.steps.iter().filter(|step| step.result == "done");
            let mut addresses: Vec<String> = done.map(|step| step.resource.to_string()).collect();
            addresses.dedup();
            cx.ui.write(&lines(addresses))?;
        }
        OutputForm::Table | OutputForm::Wide if report.outcome == Outcome::DryRun => {
            plan::show(&cx.ui, &report.plan)?
        }
        OutputForm::Table | OutputForm::Wide => {
            say(&cx.ui, &report, cx.now().millis_since(began));
            if report.outcome == Outcome::Done && options.goal == Goal::Apply && !given.obvious {
                say_ports(cx, project).await?;
            }
        }
    }
    Ok(if interrupted { Exit::Interrupted } else { Exit::Code(report.exit_code) })
}

/// The last line of the stream.
fn result_line(report: &ApplyReport) -> Value {
    let mut line = serde_json::Map::from_iter([("type".to_owned(), Value::from("result"))]);
    if let Ok(Value::Object(fields)) = serde_json::to_value(report) {
        line.extend(fields);
    }
    Value::Object(line)
}

pub(super) fn say(ui: &Ui, report: &ApplyReport, ms: u64) {
    // Where progress is shown, a failure was shown when it happened; among many it is lost.
    let again = ui.progress == ProgressHow::Quiet || report.steps.len() > 20;
    for step in report.steps.iter().filter(|step| again && step.result == "failed") {
        let message = step.message.as_deref().unwrap_or("it failed");
        ui.error(&format!("{} {}: {message}", step.op, step.resource));
    }
    for waiting in &report.waiting {
        ui.warn(&format!("{} waits: {}", waiting.address, waiting_text(waiting)));
    }
    let Some((role, text)) = outcome(report, ms) else { return };
    ui.say(&ui.err.paint(role, &text));
    if matches!(report.outcome, Outcome::Partly | Outcome::Failed | Outcome::TimedOut | Outcome::Interrupted)
    {
        ui.hint("`pocketenv status` shows how things are; running the same command again goes on from here");
    }
}

/// How a run ended, in a sentence; `None` for one that only planned.
pub(super) fn outcome(report: &ApplyReport, ms: u64) -> Option<(Role, String)> {
    let count = |result: &str| report.steps.iter().filter(|step| step.result == result).count();
    let took = time::took(ms);
    let counts = || {
        let parts =
            [(count("done"), "done"), (count("failed"), "failed"), (count("skipped"), "not attempted")];
        let parts: Vec<String> =
            parts.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if parts.is_empty() { "nothing was done".to_owned() } else { format!("steps: {}", parts.join(", ")) }
    };
    Some(match report.outcome {
        Outcome::Unchanged => (Role::Good, "Nothing to do: what exists is what is desired.".to_owned()),
        Outcome::Done => (Role::Good, format!("Done in {took}.")),
        Outcome::DryRun => return None,
        Outcome::Partly => (Role::Warning, format!("Partly done in {took}; {}.", counts())),
        Outcome::Failed => (Role::Error, format!("Failed after {took}; {}.", counts())),
        Outcome::TimedOut => (Role::Error, format!("Out of time after {took}; {}.", counts())),
        Outcome::Interrupted => (Role::Warning, format!("Interrupted after {took}; {}.", counts())),
        Outcome::Declined => (Role::Warning, "Nothing was changed.".to_owned()),
    })
}

/// Where to look at what was just made.
pub(super) async fn say_ports(cx: &Context, project: &Project<'_>) -> Result<(), CliError> {
    if project.manifest().is_none_or(|manifest| manifest.ports().is_empty()) {
        return Ok(());
    }
    let (status, _) = project.status().await?;
    for resource in &status.resources {
        if let (Address::Port(sandbox, port), Some(_)) = (&resource.address, &resource.endpoint) {
            let at = place(resource);
            cx.ui.say(&format!("  {sandbox} port {port} is at {}", cx.ui.err.paint(Role::Hint, &at)));
        }
    }
    Ok(())
}

/// Ctrl-C and SIGTERM: first no further step is started, then running ones are given up.
pub(super) fn on_interrupt(ui: Ui) -> Result<Cancel, CliError> {
    let listen = |kind| signal(kind).map_err(|error| CliError::system("listening for signals", &error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let cancel = Cancel::default();
    let tokens = cancel.clone();
    tokio::spawn(async move {
        for (token, text) in [
            (&tokens.graceful, "stopping: what runs is finished; Ctrl-C again stops now"),
            (&tokens.now, "stopping now"),
        ] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
            ui.say(&format!("\n{}", ui.err.paint(Role::Warning, text)));
        }
    });
    Ok(cancel)
}

/// Asks on a terminal; elsewhere names the flag that would have answered.
pub(super) struct Asker<'a> {
    /// How to print.
    pub ui: &'a Ui,
    /// What the flags say.
    pub given: Given,
    /// Calls a question off.
    pub cancel: &'a Cancel,
    /// Stdout and perhaps stderr are read by a program.
    pub streams: bool,
}

impl Consent for Asker<'_> {
    fn approve(&self, approval: &Approval<'_>) -> Answer {
        let asks = self.ui.interactive && !self.streams;
        if approval.round == 1 && !self.streams && !self.given.obvious {
            self.ui.say(plan::text(approval.plan, self.ui.err).trim_end());
        }
        let destroys = *approval.goal == Goal::Destroy;
        let risks: Vec<String> =
            approval.plan.data_at_risk().map(|(address, what)| format!("{address}: {what}")).collect();
        let answer = if risks.is_empty() || self.given.data_loss || (destroys && self.given.yes) {
            if self.given.yes {
                Ok(true)
            } else if asks {
                let question = if destroys { "Delete all this?" } else { "Do this?" };
                prompt::confirm(self.ui, &self.cancel.graceful, question)
            } else {
                return needs("nobody can be asked whether to go on; `--yes` says so".to_owned());
            }
        } else if asks {
            let question = format!("This may lose data:\n  {}", risks.join("\n  "));
            prompt::type_word(self.ui, &self.cancel.graceful, &question, &approval.plan.project)
        } else {
            let flag = if destroys { "--yes" } else { "--allow-data-loss" };
            return needs(format!("this may lose data ({}); `{flag}` says that it may", risks.join("; ")));
        };
        match answer {
            Ok(true) => Answer::Yes,
            Ok(false) => Answer::No,
            Err(error) => needs(format!("the terminal cannot be asked: {error}")),
        }
    }
}

fn needs(message: String) -> Answer {
    Answer::Needs { message }
}
