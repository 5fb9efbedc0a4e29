//! `rehearse`: what would have happened.

use crate::cli::args::RehearseArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;

/// Rehearses.
pub async fn run(_cx: &Context, _args: &RehearseArgs) -> Result<Exit, CliError> {
    Err(CliError::new(Exit::Failed, "not yet"))
}
