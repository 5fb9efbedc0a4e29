//! `history`: the runs of the project.

use serde_json::json;

use crate::cli::args::HistoryArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::store::Revision;

/// The most read at once; the store keeps no more.
const MAX: usize = 1_000;

/// Prints the runs, newest first.
pub async fn run(cx: &Context, args: &HistoryArgs) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let runs = project.store().revisions(project.name(), args.limit.min(MAX)).await?;
    let value = json!({ "project": project.name(), "runs": runs.iter().map(data).collect::<Vec<_>>() });
    let names = || runs.iter().map(|run| run.revision.to_string()).collect();
    cx.ui.show(&value, names, |wide| table(cx, &runs, wide))?;
    Ok(Exit::Done)
}

fn data(run: &Revision) -> serde_json::Value {
    let (ended_at, end) = run.ended.as_ref().map_or((None, None), |(at, end)| (Some(at), Some(end)));
    json!({
        "revision": run.revision,
        "verb": run.run.verb,
        "actor": run.run.actor,
        "started_at": run.started_at,
        "ended_at": ended_at,
        "outcome": end.map(|end| &end.outcome),
        "exit_code": end.map(|end| end.exit_code),
        "changes": end.map(|end| &end.changes),
        "manifest_digest": run.run.manifest_digest,
        "git_revision": run.run.git_revision,
    })
}

fn table(cx: &Context, runs: &[Revision], wide: bool) -> String {
    let mut table = Table::new(if wide {
        vec!["REVISION", "STARTED", "TOOK", "BY", "VERB", "OUTCOME", "MANIFEST", "GIT", "CHANGES"]
    } else {
        vec!["REVISION", "STARTED", "TOOK", "BY", "VERB", "OUTCOME", "CHANGES"]
    });
    for run in runs {
        let (took, outcome, changes) = match &run.ended {
            // Killed, or going on.
            None => (String::new(), "open", String::new()),
            Some((at, end)) => {
                let changes: Vec<String> =
                    end.changes.iter().map(|(what, n)| format!("{n} {what}")).collect();
                (time::took(at.millis_since(run.started_at)), end.outcome.as_str(), changes.join(", "))
            }
        };
        let role = match run.ended.as_ref().map(|(_, end)| end.exit_code) {
            Some(0) => Role::Good,
            Some(_) => Role::Warning,
            None => Role::Dim,
        };
        let mut row: Vec<Cell> = vec![
            run.revision.to_string().into(),
            Cell::new(time::cell(Some(run.started_at), cx.now(), wide), Role::Dim),
            took.into(),
            run.run.actor.as_str().into(),
            run.run.verb.as_str().into(),
            Cell::new(outcome, role),
        ];
        if wide {
            let short = |digest: &Option<String>| {
                digest.as_deref().unwrap_or_default().chars().take(12).collect::<String>()
            };
            row.push(short(&run.run.manifest_digest).into());
            row.push(short(&run.run.git_revision).into());
        }
        row.push(changes.into());
        table.row(row);
    }
    cx.ui.table(&table)
}
