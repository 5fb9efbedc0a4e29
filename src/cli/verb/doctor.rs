//! `doctor`: what this machine offers, and how to get the rest.

use serde_json::json;

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
#[cfg(target_os = "linux")]
use crate::engine::{EngineConfig, Probe, probe};
use crate::guest::IsolationVerdict;
use crate::model::{Condition, ConditionStatus};

/// Where the engine is not built there is nothing to look at.
#[cfg(not(target_os = "linux"))]
pub fn run(_: &Context) -> Result<Exit, CliError> {
    Err(CliError::new(
        Exit::Failed,
        "the local engine needs Linux; on this system sandboxes live at other providers",
    )
    .hint("`pocketenv provider list` shows them".to_owned()))
}

/// Tries the isolation of a sandbox; fails if a way out is open.
pub async fn isolation(cx: &Context, name: &str) -> Result<Exit, CliError> {
    let isolation = cx.find().await?.isolation(name).await?;
    let broken = || isolation.checks.iter().filter(|check| check.verdict == IsolationVerdict::Broken);
    let names = || broken().map(|check| check.name.clone()).collect();
    cx.ui.show(&isolation, names, |_| {
        let mut table = Table::new(["", "WAY OUT", "SEEN"]);
        for check in &isolation.checks {
            let mark = match check.verdict {
                IsolationVerdict::Held => Cell::new("held", Role::Good),
                IsolationVerdict::Broken => Cell::new("open", Role::Error),
                IsolationVerdict::Unknown => Cell::new("unknown", Role::Warning),
            };
            table.row([mark, check.name.as_str().into(), check.evidence.as_str().into()]);
        }
        cx.ui.table(&table)
    })?;
    if !cx.ui.is_machine() {
        let Condition { kind, message, .. } = &isolation.condition;
        let (role, status) = match isolation.condition.status {
            ConditionStatus::True => (Role::Good, "True"),
            ConditionStatus::False => (Role::Error, "False"),
            ConditionStatus::Unknown => (Role::Warning, "Unknown"),
        };
        let colon = if message.is_empty() { "" } else { ": " };
        cx.ui.say(&cx.ui.err.paint(role, &format!("{kind} is {status}{colon}{message}")));
    }
    Ok(if broken().next().is_none() { Exit::Done } else { Exit::Failed })
}

/// Prints what was found; fails if something that cannot be done without is missing.
#[cfg(target_os = "linux")]
pub fn run(cx: &Context) -> Result<Exit, CliError> {
    let environment = cx.app.environment();
    let probes = probe(&EngineConfig {
        data_dir: environment.directories.data.clone(),
        runtime_dir: environment.directories.runtime.clone(),
        exe: environment.executable.clone(),
    });
    let able = probes.iter().all(|probe| probe.ok || !probe.required);
    let names = || probes.iter().filter(|probe| !probe.ok).map(|probe| probe.name.to_owned()).collect();
    cx.ui.show(&json!({ "ok": able, "probes": probes }), names, |_| table(cx, &probes))?;
    if !cx.ui.is_machine() {
        cx.ui.say(&match able {
            true => cx.ui.err.paint(Role::Good, "The local engine works on this machine."),
            false => cx.ui.err.paint(Role::Error, "The local engine cannot work on this machine."),
        });
    }
    Ok(if able { Exit::Done } else { Exit::Failed })
}

#[cfg(target_os = "linux")]
fn table(cx: &Context, probes: &[Probe]) -> String {
    let mut table = Table::new(["", "WHAT", "FOUND"]);
    for probe in probes {
        let mark = match (probe.ok, probe.required) {
            (true, _) => Cell::new("ok", Role::Good),
            (false, true) => Cell::new("missing", Role::Error),
            (false, false) => Cell::new("without", Role::Warning),
        };
        table.row([mark, probe.name.into(), probe.detail.as_str().into()]);
        if let Some(remedy) = probe.remedy.as_deref().filter(|_| !probe.ok) {
            table.row(["".into(), "".into(), Cell::new(format!("→ {remedy}"), Role::Hint)]);
        }
    }
    cx.ui.table(&table)
}
