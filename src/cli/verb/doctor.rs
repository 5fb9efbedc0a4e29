//! `doctor`: what this machine offers, and how to get the rest.

use serde_json::json;

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
#[cfg(target_os = "linux")]
use crate::engine::{EngineConfig, Probe, probe};

/// Where the engine is not built there is nothing to look at.
#[cfg(not(target_os = "linux"))]
pub fn run(_: &Context) -> Result<Exit, CliError> {
    Err(CliError::new(
        Exit::Failed,
        "the local engine needs Linux; on this system sandboxes live at other providers",
    )
    .hint("`pocketenv provider list` shows them".to_owned()))
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
