//! `completion`: the completion script of a shell.

use crate::cli::args::CompletionArgs;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;

/// Prints the script.
pub fn run(cx: &Context, args: &CompletionArgs) -> Result<Exit, CliError> {
    let shell = args.shell.to_string();
    let script = complete::script(&shell)
        .ok_or_else(|| CliError::usage(format!("there is no completion for {shell}")))?;
    cx.ui.write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
