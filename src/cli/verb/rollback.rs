//! `rollback`: what an earlier run was to achieve is made true again.

use super::change::{Given, carry_out};
use crate::app::ApplyOptions;
use crate::cli::args::RollbackArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::Progress;

/// Rolls the project back.
pub async fn run(cx: &Context, args: &RollbackArgs) -> Result<Exit, CliError> {
    let options = ApplyOptions {
        verb: "rollback",
        timeout: args.timeout.map(Into::into),
        lock_timeout: args.lock_timeout.into(),
        dry_run: args.dry_run,
        ..ApplyOptions::default()
    };
    let mut project = cx.open().await?;
    project.pin(args.revision).await?;
    let given = Given { yes: args.yes, data_loss: args.allow_data_loss, obvious: false };
    carry_out(cx, &project, &options, given, &Progress::new(&cx.ui)).await
}
