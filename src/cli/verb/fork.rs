//! `fork`: sandboxes like another one, that start from its files.

use super::change::{Given, carry_out, say_ports};
use crate::app::ApplyOptions;
use crate::cli::args::ForkArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::Progress;
use crate::model::Address;
use crate::plan::Policy;

/// Takes a snapshot and makes sandboxes from it, as an apply would.
pub async fn run(cx: &Context, args: &ForkArgs) -> Result<Exit, CliError> {
    let mut project = cx.open().await?;
    let names = project.fork(&args.name, args.count).await?;
    let options = ApplyOptions {
        verb: "fork",
        policy: Policy {
            prune: false,
            targets: names.into_iter().map(Address::Sandbox).collect(),
            ..Policy::default()
        },
        timeout: args.timeout.map(Into::into),
        lock_timeout: args.lock_timeout.into(),
        ..ApplyOptions::default()
    };
    let progress = Progress::new(&cx.ui);
    let given = Given { yes: true, data_loss: false, obvious: true };
    let ended = carry_out(cx, &project, &options, given, &progress).await?;
    if ended.code() == 0 && !cx.ui.is_machine() {
        say_ports(cx, &project).await?;
    }
    Ok(ended)
}
