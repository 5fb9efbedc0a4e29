//! `start`, `stop` and `restart` of sandboxes and services, `pause` and `resume` of sandboxes, until the next `apply` says otherwise.

use std::collections::BTreeSet;

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
    /// `pause`.
    Pause,
    /// `resume`: a start of what is paused.
    Resume,
}

/// Starts, stops, or both.
pub async fn run(cx: &Context, control: Control, args: &ControlArgs) -> Result<Exit, CliError> {
    let mut project = cx.open().await?;
    let addresses = by_name(&project, &args.addresses).await?;
    project.keep(addresses.iter().filter_map(Address::sandbox));
    let progress = Progress::new(&cx.ui);
    if matches!(control, Control::Stop | Control::Restart) {
        let ended = one(cx, &project, Control::Stop, &addresses, args, &progress).await?;
        if control == Control::Stop || ended.code() != 0 {
            return Ok(ended);
        }
    }
    let control = if control == Control::Restart { Control::Start } else { control };
    one(cx, &project, control, &addresses, args, &progress).await
}

async fn one(
    cx: &Context,
    project: &Project<'_>,
    control: Control,
    addresses: &[Address],
    args: &ControlArgs,
    progress: &Progress,
) -> Result<Exit, CliError> {
    let verb = match control {
        Control::Start | Control::Restart => "start",
        Control::Stop => "stop",
        Control::Pause => "pause",
        Control::Resume => "resume",
    };
    let whole = matches!(control, Control::Pause | Control::Resume);
    let start = control == Control::Start;
    let mut overrides = Overrides::default();
    let mut pause = BTreeSet::new();
    for address in addresses {
        match address {
            Address::Sandbox(name) if control == Control::Pause => {
                pause.insert(name.clone());
            }
            Address::Sandbox(name) => {
                let stop = control == Control::Stop;
                let state = if stop { RunState::Stopped } else { RunState::Running };
                overrides.sandboxes.insert(name.clone(), state);
            }
            other if whole => {
                let message = format!("{other} cannot be paused by itself; sandboxes can");
                return Err(CliError::usage(message));
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
        verb,
        policy: Policy {
            prune: false,
            prune_volumes: false,
            targets: addresses.to_vec(),
            asked: overrides.sandboxes.keys().cloned().collect(),
            pause,
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
