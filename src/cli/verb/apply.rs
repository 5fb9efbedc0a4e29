//! `apply`: what exists becomes what the manifest declares.

use std::path::Path;

use super::change::{Given, carry_out};
use crate::app::{ApplyOptions, SavedPlan};
use crate::cli::args::ApplyArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::Progress;
use crate::plan::Policy;

/// A saved plan is not larger than this.
const MAX_PLAN_BYTES: u64 = 256 << 20;

/// Applies the manifest, or a saved plan.
pub async fn run(cx: &Context, args: &ApplyArgs) -> Result<Exit, CliError> {
    let saved = args.plan.as_deref().map(read).transpose()?;
    let defaults = ApplyOptions::default();
    let options = ApplyOptions {
        policy: Policy {
            prune: !args.no_prune,
            prune_volumes: args.volumes,
            targets: args.target.clone(),
            ..Policy::default()
        },
        allow_empty: args.allow_empty,
        parallelism: match args.parallelism {
            Some(n) => n.into(),
            None => parallelism(cx)?.unwrap_or(defaults.parallelism),
        },
        timeout: args.timeout.map(Into::into),
        lock_timeout: args.lock_timeout.into(),
        wait: !args.no_wait,
        dry_run: args.dry_run,
        saved,
        ..defaults
    };
    let project = cx.open().await?;
    let exit = carry_out(
        cx,
        &project,
        &options,
        Given { yes: args.yes, data_loss: args.allow_data_loss, obvious: false },
        &Progress::new(&cx.ui),
    )
    .await?;
    // Also where not everything was done: what was made, was made from these.
    if !args.dry_run
        && let Some(path) = project.lock_images().await?
    {
        cx.ui.say(&format!("wrote {}: the digests that the tags of images stand for", path.display()));
    }
    Ok(exit)
}

/// `POCKETENV_PARALLELISM`.
fn parallelism(cx: &Context) -> Result<Option<usize>, CliError> {
    let Some(text) = cx.var("POCKETENV_PARALLELISM") else { return Ok(None) };
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(Some(n)),
        _ => Err(CliError::usage(format!(
            "POCKETENV_PARALLELISM is `{text}`; expected a number from 1 to 1024"
        ))),
    }
}

fn read(path: &Path) -> Result<SavedPlan, CliError> {
    let failed = |what: String| {
        CliError::new(Exit::Failed, format!("the plan {}: {what}", path.display()))
            .hint("`pocketenv plan --out FILE` saves a plan; a manifest is named with -f".to_owned())
    };
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_PLAN_BYTES {
        return Err(failed("it is too large to be one".to_owned()));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(format!("it is not a saved plan: {error}")))
}
