//! `gc`: what carries our labels at a provider and nobody accounts for.

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app::{Error, Orphan, Why};
use crate::cli::args::GcArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::{prompt, time};

/// Shows orphans; deletes them only if asked.
pub async fn run(cx: &Context, args: &GcArgs) -> Result<Exit, CliError> {
    let store = cx.app.store().await?;
    let manifest = match cx.app.load(cx.selection()) {
        Ok(manifest) => Some(manifest),
        // Orphans outlive manifests.
        Err(Error::NoManifest) => None,
        Err(error) => return Err(error.into()),
    };
    let found = cx.app.orphans(&store, manifest.as_ref()).await?;
    let now = cx.now();
    let old_enough = |orphan: &Orphan| {
        args.older_than.is_none_or(|age| {
            orphan.created_at.is_some_and(|created| now.millis_since(created) >= age.as_millis())
        })
    };
    let orphans: Vec<&Orphan> = found.orphans.iter().filter(|o| old_enough(o)).collect();
    let collectable = |orphan: &&&Orphan| {
        // A snapshot that was made for forks is of no use to anybody without them.
        let keeps_data = orphan.why != Why::Unused
            && ["volume/", "snapshot/"].iter().any(|kind| orphan.address.starts_with(kind));
        (orphan.why.is_ours() || args.foreign) && (args.volumes || !keeps_data)
    };
    let chosen: Vec<&Orphan> = orphans.iter().filter(collectable).copied().collect();
    let text = |wide| {
        let mut table = Table::new(["PROVIDER", "ID", "PROJECT", "RESOURCE", "CREATED", "WHY"]);
        for orphan in &orphans {
            table.row([
                orphan.provider.as_str().into(),
                orphan.id.as_str().into(),
                orphan.project.as_str().into(),
                orphan.address.as_str().into(),
                Cell::new(time::cell(orphan.created_at, now, wide), Role::Dim),
                orphan.why.text().into(),
            ]);
        }
        cx.ui.table(&table)
    };
    let ids = || orphans.iter().map(|o| o.id.clone()).collect();
    cx.ui.show(&json!({ "orphans": orphans, "unavailable": found.unavailable }), ids, text)?;
    for (provider, reason) in &found.unavailable {
        cx.ui.warn(&format!(
            "provider `{provider}` could not be asked, so what it holds is not known: {reason}"
        ));
    }
    if !args.delete {
        if !chosen.is_empty() {
            cx.ui.hint("`pocketenv gc --delete` deletes what this store made and lost track of");
        }
        return Ok(if found.unavailable.is_empty() { Exit::Done } else { Exit::Partly });
    }
    if chosen.is_empty() {
        cx.ui.say("nothing to delete");
        return Ok(Exit::Done);
    }
    if !args.yes && !agreed(cx, chosen.len())? {
        cx.ui.say("Nothing was changed.");
        return Ok(Exit::Refused);
    }
    let mut failed = 0;
    for orphan in &chosen {
        match cx.app.collect(&store, manifest.as_ref(), orphan).await {
            Ok(()) => cx.ui.say(&format!("deleted {} at provider `{}`", orphan.id, orphan.provider)),
            Err(error) => {
                failed += 1;
                CliError::from(error).report(&cx.ui);
            }
        }
    }
    Ok(match failed {
        0 => Exit::Done,
        n if n == chosen.len() => Exit::Failed,
        _ => Exit::Partly,
    })
}

fn agreed(cx: &Context, count: usize) -> Result<bool, CliError> {
    if !cx.ui.interactive {
        let message = format!(
            "{count} objects would be deleted, with everything on them; `--yes` says that this is meant"
        );
        return Err(CliError::new(Exit::Refused, message));
    }
    let question = format!("Delete {count} objects with everything on them?");
    prompt::confirm(&cx.ui, &CancellationToken::new(), &question)
        .map_err(|error| CliError::system("asking", &error))
}
