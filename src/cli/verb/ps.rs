//! `ps`: the services of the project's sandboxes.

use serde::Serialize;

use super::status;
use crate::app::parse_target;
use crate::cli::args::PsArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::{self, Role};
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::model::Address;
use crate::reconcile::status::ResourceStatus;

#[derive(Serialize)]
struct Services<'a> {
    project: &'a str,
    services: Vec<&'a ResourceStatus>,
}

/// Lists services.
pub async fn run(cx: &Context, args: &PsArgs) -> Result<Exit, CliError> {
    let only: Vec<Address> =
        args.names.iter().map(|name| Address::Sandbox(parse_target(name).sandbox)).collect();
    let status = status::measure(cx, &only).await?;
    let rows: Vec<(&str, &str, &ResourceStatus)> = status
        .resources
        .iter()
        .filter_map(|r| match &r.address {
            Address::Service(sandbox, service) => Some((sandbox.as_str(), service.as_str(), r)),
            _ => None,
        })
        .collect();
    let text = |wide| {
        let mut table = Table::new(["SANDBOX", "SERVICE", "PHASE", "HEALTH", "RESTARTS", "SINCE", "MESSAGE"]);
        for (sandbox, service, r) in &rows {
            table.row([
                (*sandbox).into(),
                (*service).into(),
                r.phase.as_str().into(),
                Cell::new(r.health.to_string(), style::of_health(r.health)),
                r.restarts.map_or_else(String::new, |n| n.to_string()).into(),
                Cell::new(time::cell(r.since, cx.now(), wide), Role::Dim),
                r.message.as_str().into(),
            ]);
        }
        cx.ui.table(&table)
    };
    let names = || rows.iter().map(|(sandbox, service, _)| format!("{sandbox}/{service}")).collect();
    let services = rows.iter().map(|(_, _, r)| *r).collect();
    cx.ui.show(&Services { project: &status.project, services }, names, text)?;
    Ok(Exit::Done)
}
