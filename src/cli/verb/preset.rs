//! `preset`: the presets there are, and their steps.

use serde_json::json;

use crate::cli::args::PresetCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::hint;
use crate::cli::ui::table::Table;
use crate::manifest::presets;

/// Lists or shows the built-in presets.
pub fn run(cx: &Context, command: &PresetCommand) -> Result<Exit, CliError> {
    match command {
        PresetCommand::List => {
            let names: Vec<&str> = presets::builtin_names().collect();
            let about = |name: &str| presets::builtin_text(name).map(summary).unwrap_or_default();
            let rows: Vec<_> =
                names.iter().map(|name| json!({ "name": name, "summary": about(name) })).collect();
            let text = |_| {
                let mut table = Table::new(["NAME", "SUMMARY"]);
                for name in &names {
                    table.row([(*name).into(), about(name).into()]);
                }
                cx.ui.table(&table)
            };
            let all = || names.iter().map(|name| (*name).to_owned()).collect();
            cx.ui.show(&json!({ "presets": rows }), all, text)?;
        }
        PresetCommand::Show { name } => {
            let text = presets::builtin_text(name).ok_or_else(|| {
                CliError::new(Exit::Failed, format!("there is no built-in preset `{name}`"))
                    .hint(hint::unknown(name, presets::builtin_names()))
            })?;
            let value: serde_json::Value = serde_saphyr::from_str(text)
                .map_err(|error| CliError::new(Exit::Failed, format!("preset `{name}`: {error}")))?;
            cx.ui.show(&value, || vec![name.clone()], |_| text.to_owned())?;
        }
    }
    Ok(Exit::Done)
}

/// What a preset says of itself.
fn summary(text: &str) -> String {
    let value: Option<serde_json::Value> = serde_saphyr::from_str(text).ok();
    value.as_ref().and_then(|value| value["description"].as_str()).unwrap_or_default().to_owned()
}
