//! `snapshot`: the files of sandboxes, kept under names.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use crate::app::{Project, Snapshot};
use crate::cli::args::SnapshotCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::model::Quantity;

#[derive(Serialize)]
struct Listed<'a> {
    project: &'a str,
    snapshots: &'a [Snapshot],
    unavailable: &'a BTreeMap<String, String>,
}

/// Makes, lists or deletes snapshots.
pub async fn run(cx: &Context, command: &SnapshotCommand) -> Result<Exit, CliError> {
    let project = cx.open().await?;
    match command {
        SnapshotCommand::Create { sandbox, name } => {
            project.take_snapshot(sandbox, name).await?;
            cx.ui.say(&format!(
                "kept the files of {sandbox}; a sandbox starts from them by `snapshot: {name}`"
            ));
        }
        SnapshotCommand::List => return list(cx, &project).await,
        SnapshotCommand::Export { name, target } => {
            let target = super::target(&cx.app.environment().cwd, target)?;
            let digest = project.export_snapshot(name, &target).await?;
            cx.ui.show(
                &json!({ "target": target, "digest": digest }),
                || vec![target.clone()],
                |_| format!("{target} {digest}\n"),
            )?;
        }
        SnapshotCommand::Rm { names } => {
            for name in names {
                project.remove_snapshot(name).await?;
                cx.ui.say(&format!("deleted snapshot {name}"));
            }
        }
    }
    Ok(Exit::Done)
}

async fn list(cx: &Context, project: &Project<'_>) -> Result<Exit, CliError> {
    let (snapshots, unavailable) = project.snapshots().await?;
    let listed = Listed { project: project.name(), snapshots: &snapshots, unavailable: &unavailable };
    let names = || snapshots.iter().map(|snapshot| snapshot.name.clone()).collect();
    let text = |wide| {
        let mut table = Table::new(["NAME", "PROVIDER", "OF", "SIZE", "CREATED", "USED BY"]);
        for snapshot in &snapshots {
            let size =
                snapshot.bytes.map_or_else(String::new, |bytes| Quantity::from_bytes(bytes).to_string());
            table.row([
                snapshot.name.as_str().into(),
                snapshot.provider.as_str().into(),
                snapshot.of.as_str().into(),
                size.into(),
                Cell::new(time::cell(snapshot.created_at, cx.now(), wide), Role::Dim),
                snapshot.used_by.join(", ").into(),
            ]);
        }
        cx.ui.table(&table)
    };
    cx.ui.show(&listed, names, text)?;
    for (provider, reason) in &unavailable {
        cx.ui.warn(&format!(
            "provider `{provider}` could not be asked, so what it holds is not known: {reason}"
        ));
    }
    Ok(if unavailable.is_empty() { Exit::Done } else { Exit::Partly })
}
