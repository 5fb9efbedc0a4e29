//! `ports`: where ports are reached.

use serde::Serialize;

use super::status::{self, place, reached_at};
use crate::app::parse_target;
use crate::cli::args::PortsArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style;
use crate::cli::ui::table::{Cell, Table};
use crate::model::{Address, Health, PortProtocol};
use crate::reconcile::status::ResourceStatus;

#[derive(Serialize)]
struct Ports<'a> {
    project: &'a str,
    ports: Vec<Port<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sockets: Vec<Socket<'a>>,
}

#[derive(Serialize)]
struct Socket<'a> {
    sandbox: &'a str,
    name: &'a str,
    /// Absent while it is nowhere.
    path: Option<&'a str>,
    listening: bool,
    #[serde(skip)]
    status: &'a ResourceStatus,
}

#[derive(Serialize)]
struct Port<'a> {
    sandbox: &'a str,
    port: u16,
    protocol: Option<PortProtocol>,
    /// `host:port`; absent while it is not reached anywhere.
    reached_at: Option<String>,
    listening: bool,
    #[serde(skip)]
    status: &'a ResourceStatus,
}

/// Lists ports.
pub async fn run(cx: &Context, args: &PortsArgs) -> Result<Exit, CliError> {
    let only: Vec<Address> =
        args.names.iter().map(|name| Address::Sandbox(parse_target(name).sandbox)).collect();
    let status = status::measure(cx, &only).await?;
    let ports: Vec<Port<'_>> = status
        .resources
        .iter()
        .filter_map(|r| match &r.address {
            Address::Port(sandbox, port) => Some(Port {
                sandbox,
                port: *port,
                protocol: r.protocol,
                reached_at: r.endpoint.as_ref().map(|e| reached_at(Some(e))),
                listening: r.endpoint.as_ref().is_some_and(|e| e.listening),
                status: r,
            }),
            _ => None,
        })
        .collect();
    let sockets = status
        .resources
        .iter()
        .filter_map(|r| match &r.address {
            Address::Socket(sandbox, name) => Some(Socket {
                sandbox,
                name,
                path: r.path.as_deref(),
                listening: r.health == Health::Healthy,
                status: r,
            }),
            _ => None,
        })
        .collect();
    let ports = Ports { project: &status.project, ports, sockets };
    let text = |_| {
        let mut table = Table::new(["SANDBOX", "PORT", "REACHED AT", "STATE", "MESSAGE"]);
        for port in &ports.ports {
            table.row([
                port.sandbox.into(),
                port.port.to_string().into(),
                place(port.status).into(),
                Cell::new(port.status.phase.as_str(), style::of_health(port.status.health)),
                port.status.message.as_str().into(),
            ]);
        }
        for socket in &ports.sockets {
            table.row([
                socket.sandbox.into(),
                socket.name.into(),
                place(socket.status).into(),
                Cell::new(socket.status.phase.as_str(), style::of_health(socket.status.health)),
                socket.status.message.as_str().into(),
            ]);
        }
        cx.ui.table(&table)
    };
    let names = || {
        let paths = ports.sockets.iter().filter_map(|s| s.path.map(str::to_owned));
        ports.ports.iter().filter_map(|p| p.reached_at.clone()).chain(paths).collect()
    };
    cx.ui.show(&ports, names, text)?;
    Ok(Exit::Done)
}
