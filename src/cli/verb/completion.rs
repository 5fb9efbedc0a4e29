//! `completion`: the completion script of a shell.

use crate::cli::args::{self, CompletionArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;

/// Prints the script.
pub fn run(cx: &Context, args: &CompletionArgs) -> Result<Exit, CliError> {
    // Into memory first: the generator panics on a pipe that is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "pocketenv", &mut script);
    cx.ui.write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
