//! `status`: how every resource does, as measured now.

use crate::cli::args::StatusArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::{self, Role};
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::{hint, time};
use crate::model::{Address, Endpoint, PortProtocol};
use crate::reconcile::status::{ProjectStatus, ResourceStatus};

/// Prints the status.
pub async fn run(cx: &Context, args: &StatusArgs) -> Result<Exit, CliError> {
    let status = measure(cx, &args.addresses).await?;
    cx.ui.show(&status, || addresses(&status), |wide| table(cx, &status.resources, wide))?;
    if !cx.ui.is_machine() {
        cx.ui.say(&format!(
            "{} is {} and {}",
            cx.ui.err.paint(Role::Title, &status.project),
            cx.ui.err.paint(style::of_sync(status.sync), &status.sync.to_string()),
            cx.ui.err.paint(style::of_health(status.health), &status.health.to_string()),
        ));
    }
    Ok(Exit::Done)
}

/// The measured status of the project, of only these resources and what is inside them if any are named.
///
/// # Errors
/// What keeps the project from being opened, or a name that means nothing.
pub async fn measure(cx: &Context, only: &[Address]) -> Result<ProjectStatus, CliError> {
    let project = cx.open().await?;
    let (mut status, _) = project.status().await?;
    for address in only {
        if !status.resources.iter().any(|r| r.address.is_within(address)) {
            return Err(unknown(&status, address));
        }
    }
    if !only.is_empty() {
        status.resources.retain(|r| only.iter().any(|address| r.address.is_within(address)));
    }
    Ok(status)
}

/// A resource that the project does not have.
pub fn unknown(status: &ProjectStatus, address: &Address) -> CliError {
    let known = addresses(status);
    CliError::new(Exit::Failed, format!("there is no {address} in project `{}`", status.project))
        .hint(hint::unknown(&address.to_string(), known.iter().map(String::as_str)))
}

fn addresses(status: &ProjectStatus) -> Vec<String> {
    status.resources.iter().map(|r| r.address.to_string()).collect()
}

fn table(cx: &Context, resources: &[ResourceStatus], wide: bool) -> String {
    let now = cx.now();
    let mut table = Table::new(if wide {
        vec!["RESOURCE", "PROVIDER", "ID", "SYNC", "HEALTH", "PHASE", "SINCE", "REACHED AT", "MESSAGE"]
    } else {
        vec!["RESOURCE", "SYNC", "HEALTH", "PHASE", "SINCE", "REACHED AT", "MESSAGE"]
    });
    let mut resources: Vec<&ResourceStatus> = resources.iter().collect();
    // What is inside a sandbox stands under it.
    resources.sort_by_key(|r| (r.address.sandbox().map(str::to_owned), r.address.clone()));
    for resource in resources {
        let mut row: Vec<Cell> = vec![resource.address.to_string().into()];
        if wide {
            row.push(resource.provider.as_str().into());
            row.push(resource.id.as_deref().unwrap_or_default().into());
        }
        row.extend([
            Cell::new(resource.sync.to_string(), style::of_sync(resource.sync)),
            Cell::new(resource.health.to_string(), style::of_health(resource.health)),
            resource.phase.as_str().into(),
            Cell::new(time::cell(resource.since, now, wide), Role::Dim),
            place(resource).into(),
            resource.message.as_str().into(),
        ]);
        table.row(row);
    }
    cx.ui.table(&table)
}

/// Where a port or socket is reached, for people: `host:port`, with `/udp` where connections do not lead there, or a path.
pub fn place(resource: &ResourceStatus) -> String {
    if let Some(path) = &resource.path {
        return path.clone();
    }
    let at = reached_at(resource.endpoint.as_ref());
    if !at.is_empty() && resource.protocol.is_some_and(PortProtocol::is_udp) { at + "/udp" } else { at }
}

/// `host:port`, as it is typed into a browser.
pub fn reached_at(endpoint: Option<&Endpoint>) -> String {
    endpoint.map_or_else(String::new, |e| {
        if e.host.contains(':') {
            format!("[{}]:{}", e.host, e.port)
        } else {
            format!("{}:{}", e.host, e.port)
        }
    })
}
