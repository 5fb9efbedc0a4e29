//! `exec` and `shell`: a command inside a sandbox, with our streams or on a terminal.

use std::io::IsTerminal as _;

use crate::app::{Error, Project, Sandbox, parse_target};
use crate::cli::args::{ExecArgs, ShellArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::session;
use crate::cli::ui::exit::Exit;
use crate::provider::Command;

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
    // Who types a command and reads what it says is at a terminal, and so is the command.
    let terminal = args.tty || std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    run(cx, &project, &sandbox, command, terminal).await
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
    if terminal && let (Some(term), false) = (cx.var("TERM"), command.env.contains_key("TERM")) {
        command.env.insert("TERM".to_owned(), term.to_owned());
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
