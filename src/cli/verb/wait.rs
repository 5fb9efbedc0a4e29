//! `wait`: until resources are in a condition.

use std::time::Duration;

use tokio::time::Instant;

use super::status::unknown;
use crate::app::Error;
use crate::cli::args::{WaitArgs, WaitFor};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::session::Signals;
use crate::cli::ui::exit::Exit;
use crate::model::{Address, ConditionStatus, Health};
use crate::reconcile::status::{ProjectStatus, ResourceStatus};

/// Between two looks; it doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Waits.
pub async fn run(cx: &Context, args: &WaitArgs) -> Result<Exit, CliError> {
    let project = cx.open().await?;
    let deadline = Instant::now() + Duration::from(args.timeout);
    let mut signals = Signals::new()?;
    let mut pause = FIRST_PAUSE;
    loop {
        let (status, _) = project.status().await?;
        let missing = missing(&status, args)?;
        let Some(missing) = missing else { return Ok(Exit::Done) };
        let now = Instant::now();
        if now >= deadline {
            return Err(Error::TimedOut(format!("not within {}: {missing}", args.timeout)).into());
        }
        tokio::select! {
            code = signals.next() => return Ok(Exit::Code(code)),
            () = tokio::time::sleep(pause.min(deadline - now)) => {}
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// What is still missing, in one line; `None` if nothing is.
fn missing(status: &ProjectStatus, args: &WaitArgs) -> Result<Option<String>, CliError> {
    let everything: Vec<Address>;
    let addresses = if args.addresses.is_empty() {
        // What is stopped on purpose will not be ready, and nobody asked for it.
        let asked = status.resources.iter().filter(|r| {
            matches!(r.address, Address::Sandbox(_) | Address::Volume(_)) && r.health != Health::Suspended
        });
        everything = asked.map(|r| r.address.clone()).collect();
        &everything
    } else {
        &args.addresses
    };
    for address in addresses {
        let resource = status.resources.iter().find(|r| r.address == *address);
        let problem = match (&args.wait_for, resource) {
            (WaitFor::Deleted, None) => None,
            (WaitFor::Deleted, Some(resource)) => {
                exists(resource).then(|| format!("it is {}", resource.phase))
            }
            (WaitFor::Condition(kind), Some(resource)) => not_in(resource, kind),
            // What is inside a sandbox is listed only while it runs.
            (WaitFor::Condition(_), None) if address.sandbox().is_some_and(|s| knows(status, s)) => {
                Some("its sandbox does not run".to_owned())
            }
            (WaitFor::Condition(_), None) => return Err(unknown(status, address)),
        };
        if let Some(problem) = problem {
            return Ok(Some(format!("{address}: {problem}")));
        }
    }
    Ok(None)
}

fn knows(status: &ProjectStatus, sandbox: &str) -> bool {
    status.resources.iter().any(|r| r.address == Address::Sandbox(sandbox.to_owned()))
}

/// Whether it is there, or may be.
fn exists(resource: &ResourceStatus) -> bool {
    resource.health != Health::Missing && resource.phase != "Absent"
}

/// Why the condition does not hold; `None` if it does.
fn not_in(resource: &ResourceStatus, kind: &str) -> Option<String> {
    let why = |message: &str| if message.is_empty() { format!("not {kind}") } else { message.to_owned() };
    match resource.conditions.iter().find(|c| c.kind == kind) {
        Some(condition) if condition.status == ConditionStatus::True => None,
        Some(condition) => Some(why(&condition.message)),
        // Services and ports have a health where sandboxes have conditions.
        None if kind == "Ready" && matches!(resource.health, Health::Healthy) => None,
        None => Some(why(&resource.message)),
    }
}
