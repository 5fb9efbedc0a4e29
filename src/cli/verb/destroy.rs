//! `destroy`: nothing of the project is left, except volumes that were not asked for.

use super::change::{Given, carry_out};
use crate::app::{ApplyOptions, Goal};
use crate::cli::args::DestroyArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::Progress;
use crate::plan::Policy;

/// Deletes what the project has.
pub async fn run(cx: &Context, args: &DestroyArgs) -> Result<Exit, CliError> {
    let options = ApplyOptions {
        verb: "destroy",
        goal: Goal::Destroy,
        policy: Policy {
            prune: true,
            prune_volumes: args.volumes,
            targets: args.target.clone(),
            ..Policy::default()
        },
        timeout: args.timeout.map(Into::into),
        lock_timeout: args.lock_timeout.into(),
        ..ApplyOptions::default()
    };
    let project = cx.open().await?;
    carry_out(
        cx,
        &project,
        &options,
        Given { yes: args.yes, data_loss: false, obvious: false },
        &Progress::new(&cx.ui),
    )
    .await
}
