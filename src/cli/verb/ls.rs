//! `ls`: the project's sandboxes, or those of every project.

use serde::Serialize;

use super::status;
use crate::cli::args::LsArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::{self, Role};
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::model::{Address, Timestamp};
use crate::reconcile::status::ResourceStatus;

#[derive(Serialize)]
struct Sandboxes<'a> {
    project: &'a str,
    sandboxes: Vec<&'a ResourceStatus>,
}

#[derive(Serialize)]
struct Remembered {
    sandboxes: Vec<RememberedSandbox>,
}

#[derive(Serialize)]
struct RememberedSandbox {
    project: String,
    name: String,
    provider: String,
    id: String,
    created_at: Timestamp,
}

/// Lists sandboxes.
pub async fn run(cx: &Context, args: &LsArgs) -> Result<Exit, CliError> {
    if args.all { remembered(cx).await } else { measured(cx).await }
}

async fn measured(cx: &Context) -> Result<Exit, CliError> {
    let status = status::measure(cx, &[]).await?;
    let rows: Vec<(&str, &ResourceStatus)> = status
        .resources
        .iter()
        .filter_map(|r| match &r.address {
            Address::Sandbox(name) => Some((name.as_str(), r)),
            _ => None,
        })
        .collect();
    let text = |wide| {
        let mut table = Table::new(if wide {
            vec!["NAME", "PROVIDER", "ID", "PHASE", "HEALTH", "CREATED", "MESSAGE"]
        } else {
            vec!["NAME", "PROVIDER", "PHASE", "HEALTH", "CREATED"]
        });
        for (name, r) in &rows {
            let mut row: Vec<Cell> = vec![(*name).into(), r.provider.as_str().into()];
            if wide {
                row.push(r.id.as_deref().unwrap_or_default().into());
            }
            row.push(r.phase.as_str().into());
            row.push(Cell::new(r.health.to_string(), style::of_health(r.health)));
            row.push(Cell::new(time::cell(r.since, cx.now(), wide), Role::Dim));
            if wide {
                row.push(r.message.as_str().into());
            }
            table.row(row);
        }
        cx.ui.table(&table)
    };
    let names = || rows.iter().map(|(name, _)| (*name).to_owned()).collect();
    let sandboxes = rows.iter().map(|(_, r)| *r).collect();
    cx.ui.show(&Sandboxes { project: &status.project, sandboxes }, names, text)?;
    Ok(Exit::Done)
}

async fn remembered(cx: &Context) -> Result<Exit, CliError> {
    let store = cx.app.store().await?;
    let mut sandboxes = Vec::new();
    for project in store.projects().await? {
        for (name, sandbox) in store.recorded(&project.name).await?.sandboxes {
            sandboxes.push(RememberedSandbox {
                project: project.name.clone(),
                name,
                provider: sandbox.provider,
                id: sandbox.id.0,
                created_at: sandbox.created_at,
            });
        }
    }
    let remembered = Remembered { sandboxes };
    let text = |wide| {
        let mut table = Table::new(["PROJECT", "NAME", "PROVIDER", "ID", "CREATED"]);
        for s in &remembered.sandboxes {
            table.row([
                s.project.as_str().into(),
                s.name.as_str().into(),
                s.provider.as_str().into(),
                s.id.as_str().into(),
                Cell::new(time::cell(Some(s.created_at), cx.now(), wide), Role::Dim),
            ]);
        }
        cx.ui.table(&table)
    };
    let names = || remembered.sandboxes.iter().map(|s| format!("{}/{}", s.project, s.name)).collect();
    cx.ui.show(&remembered, names, text)?;
    Ok(Exit::Done)
}
