//! `man`: the manual pages.

use crate::cli::args::{self, ManArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;

/// Writes one page per verb into a directory.
pub fn run(cx: &Context, args: &ManArgs) -> Result<Exit, CliError> {
    let failed = |error: std::io::Error| CliError::system(args.dir.display(), &error);
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(args::command(), &args.dir).map_err(failed)?;
    cx.ui.say(&format!("wrote the manual pages to {}", args.dir.display()));
    Ok(Exit::Done)
}
