//! `schema`: the JSON Schema of the manifest or of a preset.

use crate::cli::args::{SchemaArgs, SchemaOf};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::manifest;

/// Prints it as it is checked in: no field of ours is put into it.
pub fn run(cx: &Context, args: &SchemaArgs) -> Result<Exit, CliError> {
    let schema = match args.of {
        SchemaOf::Manifest => manifest::schema(),
        SchemaOf::Preset => manifest::preset_schema(),
    };
    let text = serde_json::to_string_pretty(schema).map_err(std::io::Error::from)?;
    cx.ui.line(&text)?;
    Ok(Exit::Done)
}
