//! `start`, `stop` and `restart` of sandboxes and services, until the next `apply` says otherwise.

use super::change::{Given, carry_out};
use crate::app::{ApplyOptions, Overrides, Project};
use crate::cli::args::ControlArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::progress::Progress;
use crate::model::{Address, RunState, ServiceState};
use crate::plan::Policy;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// `start`.
    Start,
    /// `stop`.
    Stop,
    /// `restart`.
    Restart,
}

/// Starts, stops, or both.
pub async fn run(cx: &Context, control: Control, args: &ControlArgs) -> Result<Exit, CliError> {
    let project = cx.open().await?;
    let addresses = by_name(&project, &args.addresses).await?;
    let progress = Progress::new(&cx.ui);
    if control != Control::Start {
        let ended = one(cx, &project, Control::Stop, &addresses, args, &progress).await?;
        if control == Control::Stop || ended.code() != 0 {
            return Ok(ended);
        }
    }
    one(cx, &project, Control::Start, &addresses, args, &progress).await
}

async fn one(
    cx: &Context,
    project: &Project<'_>,
    control: Control,
    addresses: &[Address],
    args: &ControlArgs,
    progress: &Progress,
) -> Result<Exit, CliError> {
    let start = control == Control::Start;
    let mut overrides = Overrides::default();
    for address in addresses {
        match address {
            Address::Sandbox(name) => {
                let state = if start { RunState::Running } else { RunState::Stopped };
                overrides.sandboxes.insert(name.clone(), state);
            }
            Address::Service(sandbox, service) => {
                let state = if start { ServiceState::Running } else { ServiceState::Stopped };
                overrides.services.insert((sandbox.clone(), service.clone()), state);
            }
            other => {
                let message = format!("{other} cannot be started or stopped; sandboxes and services can");
                return Err(CliError::usage(message));
            }
        }
    }
    let options = ApplyOptions {
        verb: if start { "start" } else { "stop" },
        policy: Policy {
            prune: false,
            prune_volumes: false,
            targets: addresses.to_vec(),
            asked: overrides.sandboxes.keys().cloned().collect(),
            ..Policy::default()
        },
        overrides,
        timeout: args.timeout.map(Into::into),
        lock_timeout: args.lock_timeout.into(),
        ..ApplyOptions::default()
    };
    carry_out(cx, project, &options, Given { yes: true, data_loss: false, obvious: true }, progress).await
}

/// The same addresses with names where ids of the provider were given.
async fn by_name(project: &Project<'_>, addresses: &[Address]) -> Result<Vec<Address>, CliError> {
    let recorded = project.store().recorded(project.name()).await?;
    let name_of = |id: &str| {
        let found = recorded.sandboxes.iter().find(|(_, sandbox)| sandbox.id.0 == id);
        found.map_or_else(|| id.to_owned(), |(name, _)| name.clone())
    };
    let named = |address: &Address| match address {
        Address::Sandbox(id) => Address::Sandbox(name_of(id)),
        Address::Service(id, service) => Address::Service(name_of(id), service.clone()),
        other => other.clone(),
    };
    Ok(addresses.iter().map(named).collect())
}
