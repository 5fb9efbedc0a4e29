//! `egress`: what a sandbox tried to reach.

use serde::Serialize;

use crate::cli::args::{EgressArgs, OutputForm};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::model::EgressAttempt;

#[derive(Serialize)]
struct Egress<'a> {
    project: &'a str,
    sandbox: &'a str,
    attempts: Vec<&'a EgressAttempt>,
    /// The entries of `network.allow` that let through what was reached.
    propose: Vec<String>,
}

/// Lists destinations; on standard error, how to allow those that were denied.
pub async fn run(cx: &Context, args: &EgressArgs) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let (sandbox, attempts) = project.egress(&args.name).await?;
    let rules = |wanted: fn(&EgressAttempt) -> bool| {
        let mut rules: Vec<String> = attempts.iter().filter(|a| wanted(a)).map(EgressAttempt::rule).collect();
        rules.dedup();
        rules
    };
    let egress = Egress {
        project: project.name(),
        sandbox: &sandbox,
        attempts: attempts.iter().filter(|a| !args.denied || !a.allowed).collect(),
        propose: rules(|a| a.allowed),
    };
    if args.propose && matches!(cx.ui.form, OutputForm::Table | OutputForm::Wide) {
        let lines = egress.propose.iter().map(|rule| format!("    - {rule:?}\n"));
        let list = match egress.propose.is_empty() {
            true => "  allow: []\n".to_owned(),
            false => format!("  allow:\n{}", lines.collect::<String>()),
        };
        cx.ui.line(&format!("network:\n  egress: deny\n{}", list.trim_end()))?;
        return Ok(Exit::Done);
    }
    let names = || egress.attempts.iter().map(|a| a.rule()).collect();
    cx.ui.show(&egress, names, |_| {
        let mut table = Table::new(["DESTINATION", "VERDICT", "TIMES", "LAST", "MESSAGE"]);
        for attempt in &egress.attempts {
            let verdict = match attempt.allowed {
                true => Cell::new("allowed", Role::Good),
                false => Cell::new("denied", Role::Error),
            };
            table.row([
                attempt.rule().into(),
                verdict,
                attempt.count.to_string().into(),
                time::ago(attempt.last, cx.now()).into(),
                attempt.reason.as_str().into(),
            ]);
        }
        cx.ui.table(&table)
    })?;
    let missing = rules(|a| !a.allowed && a.can_be_allowed);
    if !missing.is_empty() && !cx.ui.is_machine() {
        let list = missing.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>().join(", ");
        cx.ui.say(&format!(
            "hint: to allow what was denied, add to `sandboxes.{sandbox}.network.allow`: {list}"
        ));
    }
    Ok(Exit::Done)
}
