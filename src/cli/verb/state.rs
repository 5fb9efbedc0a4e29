//! `state`: the record of what was applied, and who writes to it.

use serde_json::{Value, json};

use crate::cli::args::StateCommand;
use crate::cli::context::{Context, names};
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::hint;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::model::Address;

/// Looks into the record.
pub async fn run(cx: &Context, command: &StateCommand) -> Result<Exit, CliError> {
    match command {
        StateCommand::List => list(cx).await,
        StateCommand::Show { address } => show(cx, address).await,
        StateCommand::Rm { address } => rm(cx, address).await,
        StateCommand::Mv { from, to } => mv(cx, from, to).await,
        StateCommand::Locks => locks(cx).await,
        StateCommand::Unlock { force } => unlock(cx, *force).await,
    }
}

async fn list(cx: &Context) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let recorded = project.store().recorded(project.name()).await?;
    let value = json!({
        "project": project.name(),
        "serial": recorded.serial,
        "sandboxes": recorded.sandboxes,
        "volumes": recorded.volumes,
        "intents": recorded.intents,
    });
    let text = |wide| {
        let mut table = Table::new(["RESOURCE", "PROVIDER", "ID", "GENERATION", "CREATED"]);
        let when = |at| Cell::new(time::cell(Some(at), cx.now(), wide), Role::Dim);
        for (name, volume) in &recorded.volumes {
            let address = Address::Volume(name.clone()).to_string();
            table.row([
                address.into(),
                volume.provider.as_str().into(),
                "".into(),
                "".into(),
                when(volume.created_at),
            ]);
        }
        for (name, sandbox) in &recorded.sandboxes {
            table.row([
                Address::Sandbox(name.clone()).to_string().into(),
                sandbox.provider.as_str().into(),
                sandbox.id.0.as_str().into(),
                sandbox.generation.to_string().into(),
                when(sandbox.created_at),
            ]);
        }
        for intent in &recorded.intents {
            table.row([
                Cell::new(format!("{} (interrupted {:?})", intent.address, intent.operation), Role::Warning),
                intent.provider.as_str().into(),
                intent.id.0.as_str().into(),
                "".into(),
                when(intent.begun_at),
            ]);
        }
        cx.ui.table(&table)
    };
    let all = || {
        let volumes = recorded.volumes.keys().map(|name| Address::Volume(name.clone()));
        let sandboxes = recorded.sandboxes.keys().map(|name| Address::Sandbox(name.clone()));
        volumes.chain(sandboxes).map(|address| address.to_string()).collect()
    };
    cx.ui.show(&value, all, text)?;
    Ok(Exit::Done)
}

async fn show(cx: &Context, address: &Address) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let recorded = project.store().recorded(project.name()).await?;
    let found: Option<Value> = match address {
        Address::Volume(name) => {
            recorded.volumes.get(name).map(|v| json!({ "address": address, "recorded": v }))
        }
        Address::Sandbox(name) => {
            recorded.sandboxes.get(name).map(|s| json!({ "address": address, "recorded": s }))
        }
        other => {
            let message = format!("{other} is not recorded by itself; its sandbox or volume is");
            return Err(CliError::usage(message));
        }
    };
    let Some(found) = found else {
        let known = names(&recorded.sandboxes).chain(names(&recorded.volumes));
        let name = address.sandbox().map_or_else(|| address.to_string(), str::to_owned);
        return Err(CliError::new(
            Exit::Failed,
            format!("{address} is not recorded in project `{}`", project.name()),
        )
        .hint(hint::unknown(&name, known)));
    };
    cx.ui.value(&found)?;
    Ok(Exit::Done)
}

async fn rm(cx: &Context, address: &Address) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    project.forget(address).await?;
    cx.ui.say(&format!("{address} is not recorded any more; the object itself was left alone"));
    cx.ui.hint("if it is still declared, the next `apply` adopts it; if not, `pocketenv gc` finds it");
    Ok(Exit::Done)
}

async fn mv(cx: &Context, from: &str, to: &str) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let name = |text: &str| text.strip_prefix("sandbox/").unwrap_or(text).to_owned();
    project.rename(&name(from), &name(to)).await?;
    cx.ui.say(&format!("sandbox/{} is sandbox/{} now", name(from), name(to)));
    Ok(Exit::Done)
}

async fn locks(cx: &Context) -> Result<Exit, CliError> {
    let store = cx.app.store().await?;
    let leases = store.leases().await?;
    let text = |wide| {
        let mut table = Table::new(["PROJECT", "HOLDER", "PID", "HOST", "SINCE", "STALE"]);
        for lease in &leases {
            table.row([
                lease.project.as_str().into(),
                lease.holder.actor.as_str().into(),
                lease.holder.pid.to_string().into(),
                lease.holder.host.as_str().into(),
                Cell::new(time::cell(Some(lease.acquired_at), cx.now(), wide), Role::Dim),
                if lease.stale { Cell::new("yes", Role::Warning) } else { "no".into() },
            ]);
        }
        cx.ui.table(&table)
    };
    let projects = || leases.iter().map(|lease| lease.project.clone()).collect();
    cx.ui.show(&json!({ "locks": leases }), projects, text)?;
    Ok(Exit::Done)
}

async fn unlock(cx: &Context, force: bool) -> Result<Exit, CliError> {
    // A lock may outlive its manifest.
    let (store, project) = match &cx.selection().project {
        Some(project) => (cx.app.store().await?, project.clone()),
        None => (cx.app.store().await?, cx.app.load(cx.selection())?.project().to_owned()),
    };
    match store.unlock(&project, force).await? {
        Some(lease) => cx.ui.say(&format!("took the lock of `{project}` away from {}", lease.holder)),
        None => cx.ui.say(&format!("`{project}` is not locked")),
    }
    Ok(Exit::Done)
}
