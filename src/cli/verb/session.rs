//! `session`: the named sessions of sandboxes. `exec` and `shell` attach to them.

use serde::Serialize;

use crate::app::parse_target;
use crate::cli::args::SessionCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::Role;
use crate::cli::ui::table::{Cell, Table};
use crate::cli::ui::time;
use crate::model::Timestamp;
use crate::provider::SessionInfo;

#[derive(Serialize)]
struct Listed<'a> {
    project: &'a str,
    sessions: Vec<Session>,
}

#[derive(Serialize)]
struct Session {
    sandbox: String,
    session: String,
    command: String,
    since: Timestamp,
    clients: usize,
    rows: u16,
    columns: u16,
    /// `running` or `ended`.
    state: &'static str,
    /// The code of one that has ended, 128 + n after signal n.
    exit_code: Option<i32>,
}

/// Lists or ends sessions.
pub async fn run(cx: &Context, command: &SessionCommand) -> Result<Exit, CliError> {
    match command {
        SessionCommand::List { names } => list(cx, names).await,
        SessionCommand::Kill { name, sessions } => {
            let project = cx.find().await?;
            let sandbox = project.sandbox(&parse_target(name).sandbox).await?;
            for session in sessions {
                if let Err(error) = sandbox.sessions()?.end(session).await {
                    return Err(project.explain(&sandbox, error.into()).await.into());
                }
                cx.ui.say(&format!("ended session {session} of {}", sandbox.name));
            }
            Ok(Exit::Done)
        }
    }
}

async fn list(cx: &Context, names: &[String]) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let names: Vec<String> = names.iter().map(|name| parse_target(name).sandbox).collect();
    let found = project.sessions(&names).await?;
    let sessions = found.into_iter().flat_map(|(sandbox, sessions)| {
        sessions.into_iter().map(move |session| Session::new(sandbox.clone(), session))
    });
    let listed = Listed { project: project.name(), sessions: sessions.collect() };
    let names = || listed.sessions.iter().map(|s| format!("{}/{}", s.sandbox, s.session)).collect();
    let text = |wide| {
        let mut table = Table::new(["SANDBOX", "SESSION", "STATE", "CLIENTS", "SIZE", "SINCE", "COMMAND"]);
        for s in &listed.sessions {
            let state = match s.exit_code {
                None => Cell::new(s.state, Role::Good),
                Some(0) => Cell::new("ended", Role::Dim),
                Some(code) => Cell::new(format!("ended with {code}"), Role::Error),
            };
            table.row([
                s.sandbox.as_str().into(),
                s.session.as_str().into(),
                state,
                s.clients.to_string().into(),
                format!("{}x{}", s.columns, s.rows).into(),
                Cell::new(time::cell(Some(s.since), cx.now(), wide), Role::Dim),
                s.command.as_str().into(),
            ]);
        }
        cx.ui.table(&table)
    };
    cx.ui.show(&listed, names, text)?;
    Ok(Exit::Done)
}

impl Session {
    fn new(sandbox: String, session: SessionInfo) -> Self {
        Self {
            sandbox,
            session: session.name,
            command: session.what,
            since: session.since,
            clients: session.clients,
            rows: session.size.rows,
            columns: session.size.cols,
            state: if session.ended.is_some() { "ended" } else { "running" },
            exit_code: session.ended.map(|status| status.code()),
        }
    }
}
