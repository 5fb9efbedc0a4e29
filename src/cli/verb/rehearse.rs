//! `rehearse`: what would have happened.

use serde::Serialize;

use crate::app::{Rehearsal, RehearsalOptions};
use crate::cli::args::RehearseArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::{lines, time};

#[derive(Serialize)]
struct Rehearsals {
    passed: bool,
    rehearsals: Vec<Rehearsal>,
}

/// Rehearses as often as asked; fails if any rehearsal did.
pub async fn run(cx: &Context, args: &RehearseArgs) -> Result<Exit, CliError> {
    let mut rehearsals = Vec::new();
    for run in 0..args.runs {
        let options = RehearsalOptions {
            chaos: args.chaos.clone(),
            seed: args.seed.wrapping_add(run.into()),
            settings: args.set.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect(),
        };
        let rehearsal = tokio::select! {
            rehearsal = cx.app.rehearse(cx.selection(), &options) => rehearsal?,
            // The simulators end with us.
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        };
        if args.runs > 1 {
            let word = if rehearsal.passed { "passed" } else { "failed" };
            cx.ui.say(&format!("seed {}: {word} in {}", rehearsal.seed, time::took(rehearsal.elapsed_ms)));
        }
        rehearsals.push(rehearsal);
    }
    let passed = rehearsals.iter().all(|rehearsal| rehearsal.passed);
    let names = || rehearsals.iter().filter(|r| !r.passed).map(|r| r.seed.to_string()).collect();
    let all = Rehearsals { passed, rehearsals: rehearsals.clone() };
    cx.ui.show(&all, names, |_| lines(rehearsals.iter().map(text)))?;
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

fn text(rehearsal: &Rehearsal) -> String {
    let mut text = format!(
        "{} with seed {}: {} applied {}, destroyed {}, {} calls tried again, in {}\n",
        rehearsal.chaos,
        rehearsal.seed,
        if rehearsal.passed { "passed;" } else { "failed;" },
        times(rehearsal.applies),
        times(rehearsal.destroys),
        rehearsal.retries,
        time::took(rehearsal.elapsed_ms),
    );
    for verdict in &rehearsal.verdicts {
        text.push_str(&format!("  {} {}\n", if verdict.holds { "✓" } else { "✗" }, verdict.statement));
        for found in verdict.found.iter().take(10) {
            text.push_str(&format!("      {found}\n"));
        }
        if verdict.found.len() > 10 {
            text.push_str(&format!("      and {} more\n", verdict.found.len() - 10));
        }
    }
    text.trim_end().to_owned()
}

fn times(n: u32) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}
