//! `validate` and `config`: the manifest, checked and resolved, without asking anybody.

use serde_json::json;

use crate::app::Error;
use crate::cli::args::{OutputForm, ValidateArgs, ValidateFormat};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::manifest::Diagnostics;

/// Reports every problem.
pub fn validate(cx: &Context, args: &ValidateArgs) -> Result<Exit, CliError> {
    let (exit, diagnostics, files) = match cx.app.validate(cx.selection()) {
        Ok(resolved) => (Exit::Done, resolved.warnings, resolved.files),
        Err(Error::Manifest(diagnostics)) => (Exit::InvalidConfiguration, diagnostics, Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let format = match (args.format, cx.ui.form) {
        (ValidateFormat::Human, OutputForm::Json | OutputForm::Yaml) => ValidateFormat::Json,
        (format, _) => format,
    };
    match format {
        ValidateFormat::Json => cx.ui.value(&data(exit == Exit::Done, &diagnostics))?,
        ValidateFormat::Github => cx.ui.write(&diagnostics.github())?,
        ValidateFormat::Human => {
            if !diagnostics.is_empty() {
                cx.ui.diagnostics(&diagnostics);
            }
            if exit == Exit::Done {
                cx.ui.say(&format!("{} is valid", files.join(", ")));
            }
        }
    }
    Ok(exit)
}

fn data(valid: bool, diagnostics: &Diagnostics) -> serde_json::Value {
    json!({ "valid": valid, "diagnostics": diagnostics.items, "omitted": diagnostics.omitted })
}

/// Prints what is declared, with everything filled in. Secrets are names.
pub fn config(cx: &Context) -> Result<Exit, CliError> {
    let manifest = cx.app.load(cx.selection())?;
    let resolved = cx.app.resolve(&manifest)?;
    if !resolved.warnings.is_empty() {
        cx.ui.diagnostics(&resolved.warnings);
    }
    let config = manifest.config(&resolved);
    let names = || resolved.desired.sandboxes.keys().cloned().collect();
    let text = |_| serde_saphyr::to_string(&config).unwrap_or_else(|error| format!("# {error}\n"));
    cx.ui.show(&config, names, text)?;
    Ok(Exit::Done)
}
