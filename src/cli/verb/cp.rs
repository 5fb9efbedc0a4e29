//! `cp`: files into, out of and between sandboxes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};

use crate::app::{Error, Project, parse_target};
use crate::cli::args::{CopyEnd, CpArgs, ProgressHow};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::session::Signals;
use crate::cli::ui::exit::Exit;
use crate::guest;

/// A copy that takes longer than this shows that it is alive.
const QUICK: Duration = Duration::from_secs(1);

/// Copies.
pub async fn run(cx: &Context, args: &CpArgs) -> Result<Exit, CliError> {
    if let (CopyEnd::Host(_), CopyEnd::Host(_)) = (&args.from, &args.to) {
        return Err(CliError::usage("neither end is in a sandbox; write NAME:PATH for the one that is"));
    }
    let project = cx.find().await?;
    let mut signals = Signals::new()?;
    let arrived = tokio::select! {
        code = signals.next() => return Ok(Exit::Code(code)),
        arrived = with_spinner(cx, copy(&project, args)) => arrived?,
    };
    cx.ui.say(&format!("copied to {arrived}"));
    Ok(Exit::Done)
}

async fn copy(project: &Project<'_>, args: &CpArgs) -> Result<String, Error> {
    let open = async |name: &str| project.sandbox(&parse_target(name).sandbox).await;
    match (&args.from, &args.to) {
        (CopyEnd::Host(from), CopyEnd::Sandbox { name, path }) => {
            let sandbox = open(name).await?;
            let copied = guest::copy_in(sandbox.guest.as_ref(), from, path, sandbox.user()).await;
            match copied {
                Ok(path) => Ok(format!("{}:{path}", sandbox.name)),
                Err(error) => Err(project.explain(&sandbox, error.into()).await),
            }
        }
        (CopyEnd::Sandbox { name, path }, CopyEnd::Host(to)) => {
            let sandbox = open(name).await?;
            let copied = guest::copy_out(sandbox.guest.as_ref(), path, to, sandbox.user()).await;
            match copied {
                Ok(path) => Ok(path.display().to_string()),
                Err(error) => Err(project.explain(&sandbox, error.into()).await),
            }
        }
        (CopyEnd::Sandbox { name: a, path: from }, CopyEnd::Sandbox { name: b, path: to }) => {
            let (a, b) = (open(a).await?, open(b).await?);
            let ends = (
                guest::End { guest: a.guest.as_ref(), path: from, user: a.user() },
                guest::End { guest: b.guest.as_ref(), path: to, user: b.user() },
            );
            match guest::copy_between(&ends.0, &ends.1).await {
                Ok(path) => Ok(format!("{}:{path}", b.name)),
                Err(error) => {
                    let error = project.explain(&a, error.into()).await;
                    Err(project.explain(&b, error).await)
                }
            }
        }
        (CopyEnd::Host(_), CopyEnd::Host(_)) => {
            Err(Error::Refused { message: "neither end is in a sandbox".to_owned() })
        }
    }
}

/// Shows a spinner once the work has taken longer than is quick.
async fn with_spinner<T>(cx: &Context, work: impl Future<Output = T>) -> T {
    if cx.ui.progress != ProgressHow::Tty {
        return work.await;
    }
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(QUICK, &mut work).await {
        return done;
    }
    let spinner = ProgressBar::new_spinner().with_message("copying");
    spinner.set_draw_target(ProgressDrawTarget::stderr());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}
