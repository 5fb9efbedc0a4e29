//! `exec` and `shell`: a command inside a sandbox, with our streams or on a terminal.

use std::io::IsTerminal as _;

use crate::app::{Error, Project, Sandbox, parse_target};
use crate::cli::args::{ExecArgs, SessionArgs, ShellArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::session::{self, Ended};
use crate::cli::ui::exit::Exit;
use crate::cli::ui::table::printable;
use crate::cli::ui::time;
use crate::provider::{Attached, Command, ExitStatus, GuestError, Sessions};

/// Finds a login shell: the user's own, else bash, else sh. Constant text; nothing of ours is put into it.
const SHELL: &str = r#"
if [ -n "${SHELL:-}" ] && [ -x "$SHELL" ]; then exec "$SHELL" -l; fi
if command -v bash >/dev/null 2>&1; then exec bash -l; fi
exec sh -l
"#;

/// Runs a command.
pub async fn exec(cx: &Context, args: &ExecArgs) -> Result<Exit, CliError> {
    let mut command = Command::new(args.command.iter().cloned());
    for pair in &args.env {
        match pair.split_once('=') {
            Some(("", _)) => return Err(CliError::usage("--env takes NAME=VALUE or NAME")),
            Some((name, value)) => command.env.insert(name.to_owned(), value.to_owned()),
            // As `docker exec` does: a name alone passes ours on, if there is one.
            None => match cx.app.environment().vars.get(pair) {
                Some(value) => command.env.insert(pair.clone(), value.clone()),
                None => None,
            },
        };
    }
    command.cwd = args.workdir.clone();
    command.user = args.user.clone();
    command.timeout = args.timeout.map(Into::into);
    let project = cx.find().await?;
    let sandbox = project.sandbox(&parse_target(&args.name).sandbox).await?;
    match &args.session.session {
        Some(name) => {
            let what = args.command.join(" ");
            let asked = Asked { name, what: &what, leave: args.detach, args: &args.session };
            let command = (!args.command.is_empty()).then_some(command);
            at_session(cx, &project, &sandbox, command, &asked).await
        }
        None => {
            // Who types a command and reads what it says is at a terminal, and so is the command.
            let terminal = args.tty || std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
            run(cx, &project, &sandbox, command, terminal).await
        }
    }
}

/// Opens a shell.
pub async fn shell(cx: &Context, args: &ShellArgs) -> Result<Exit, CliError> {
    let project = cx.find().await?;
    let name = match &args.name {
        Some(name) => parse_target(name).sandbox,
        None => the_only_one(&project).await?,
    };
    let sandbox = project.sandbox(&name).await?;
    let mut command = Command::new(["sh", "-c", SHELL]);
    command.cwd = args.workdir.clone();
    command.user = args.user.clone();
    command.env = args.env.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect();
    if let Some(name) = &args.session.session {
        let asked = Asked { name, what: "shell", leave: false, args: &args.session };
        return at_session(cx, &project, &sandbox, Some(command), &asked).await;
    }
    // `echo make | pocketenv shell api` is a script on its standard input.
    run(cx, &project, &sandbox, command, std::io::stdin().is_terminal()).await
}

async fn the_only_one(project: &Project<'_>) -> Result<String, CliError> {
    let recorded = project.store().recorded(project.name()).await?;
    let names: Vec<&String> = recorded.sandboxes.keys().collect();
    match names.as_slice() {
        [name] => Ok((*name).clone()),
        [] => Err(CliError::new(Exit::Failed, format!("project `{}` has no sandbox yet", project.name()))
            .hint("`pocketenv apply` makes what the manifest declares".to_owned())),
        many => {
            let many: Vec<&str> = many.iter().map(|name| name.as_str()).collect();
            Err(CliError::usage(format!("which sandbox? There are {}", many.join(", "))))
        }
    }
}

async fn run(
    cx: &Context,
    project: &Project<'_>,
    sandbox: &Sandbox,
    mut command: Command,
    terminal: bool,
) -> Result<Exit, CliError> {
    if terminal {
        name_terminal(cx, &mut command);
    }
    let ended = match sandbox.command(command).await {
        Ok(command) if terminal => {
            session::run_on_terminal(sandbox.guest.as_ref(), &command).await.map_err(Error::from)
        }
        Ok(command) => session::run(sandbox.guest.as_ref(), &command).await.map_err(Error::from),
        Err(error) => Err(error),
    };
    match ended {
        Ok(exit) => Ok(exit),
        Err(error) => Err(project.explain(sandbox, error).await.into()),
    }
}

fn name_terminal(cx: &Context, command: &mut Command) {
    if let (Some(term), false) = (cx.var("TERM"), command.env.contains_key("TERM")) {
        command.env.insert("TERM".to_owned(), term.to_owned());
    }
}

/// The session that is asked for.
struct Asked<'a> {
    name: &'a str,
    what: &'a str,
    /// Only make it.
    leave: bool,
    args: &'a SessionArgs,
}

/// Attaches to a session, or makes it by the command.
async fn at_session(
    cx: &Context,
    project: &Project<'_>,
    sandbox: &Sandbox,
    command: Option<Command>,
    asked: &Asked<'_>,
) -> Result<Exit, CliError> {
    let attached = async {
        let sessions = sandbox.sessions()?;
        let command = match command {
            Some(mut command) => {
                name_terminal(cx, &mut command);
                Some(sandbox.command(command).await?)
            }
            None => None,
        };
        Ok(attach(sessions, asked, command.as_ref()).await?)
    };
    let ended = match attached.await {
        Ok(attached) => {
            cx.ui.say(&told(cx, sandbox, asked, &attached));
            match asked.leave {
                true => Ok(Ended::Detached),
                false => session::show(attached.pty, Some(&asked.args.detach_key)).await,
            }
            .map_err(Error::from)
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok(Ended::Exit(exit)) => Ok(exit),
        Ok(Ended::Detached) => {
            if !asked.leave {
                let (sandbox, session) = (&sandbox.name, asked.name);
                cx.ui
                    .say(&format!("detached; `pocketenv exec {sandbox} --session {session}` attaches again"));
            }
            Ok(Exit::Done)
        }
        Err(error) => Err(project.explain(sandbox, error).await.into()),
    }
}

async fn attach(
    sessions: &dyn Sessions,
    asked: &Asked<'_>,
    command: Option<&Command>,
) -> Result<Attached, GuestError> {
    let what: String = printable(asked.what).chars().take(200).collect();
    sessions.attach(asked.name, &what, command, session::own_size(), asked.leave).await
}

/// What somebody who attaches wants to know.
fn told(cx: &Context, sandbox: &Sandbox, asked: &Asked<'_>, attached: &Attached) -> String {
    let (key, name, info) = (&asked.args.detach_key, asked.name, &attached.session);
    let since = time::ago(info.since, cx.now());
    let what = printable(&info.what);
    let of = &sandbox.name;
    match (attached.made, info.ended, asked.leave) {
        (true, _, true) => format!("session {name} of {of} runs"),
        (true, _, false) => format!("session {name} of {of}; {key} detaches"),
        (false, Some(ExitStatus::Code(code)), _) => {
            format!("session {name} of {of} ({what}) ended with {code}")
        }
        (false, Some(ExitStatus::Signal(signal)), _) => {
            format!("session {name} of {of} ({what}) was ended by signal {signal}")
        }
        (false, None, true) => format!("session {name} of {of} runs {what} already, since {since}"),
        (false, None, false) => {
            let others = match info.clients.saturating_sub(1) {
                0 => String::new(),
                others => format!(", with {others} more attached"),
            };
            format!("session {name} of {of} runs {what} since {since}{others}; {key} detaches")
        }
    }
}
