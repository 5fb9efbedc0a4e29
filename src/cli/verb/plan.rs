//! `plan`: what `apply` would do, and why. Nothing is changed.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::app::SavedPlan;
use crate::cli::args::{OutputForm, PlanArgs, PlanFormat};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::style::{self, Paint};
use crate::cli::ui::table::printable;
use crate::cli::ui::{Ui, lines};
use crate::plan::{Plan, Policy, report};

/// Prints the plan.
pub async fn run(cx: &Context, args: &PlanArgs) -> Result<Exit, CliError> {
    let policy = Policy {
        prune: !args.no_prune,
        prune_volumes: args.volumes,
        targets: args.target.clone(),
        ..Policy::default()
    };
    let project = cx.open().await?;
    let view = match args.refresh {
        true => project.look(false, false).await?,
        false => project.assume().await?,
    };
    for warning in &view.warnings {
        cx.ui.warn(warning);
    }
    let plan = project.plan(&view, &policy)?;
    match args.format {
        PlanFormat::Human => show(&cx.ui, &plan)?,
        PlanFormat::Json => cx.ui.value(&plan)?,
        PlanFormat::Markdown => cx.ui.write(&report::markdown(&plan))?,
        PlanFormat::Dot => cx.ui.write(&report::dot(&plan))?,
    }
    let changes = !plan.is_empty();
    if let Some(path) = &args.out {
        save(path, &SavedPlan::new(plan, policy))?;
        cx.ui.hint(&format!("`pocketenv apply {}` does exactly this", path.display()));
    }
    Ok(if args.detailed_exitcode && changes { Exit::ChangesPending } else { Exit::Done })
}

/// Prints a plan as data, in the form that was asked for.
pub fn show(ui: &Ui, plan: &Plan) -> Result<(), CliError> {
    match ui.form {
        OutputForm::Json | OutputForm::Yaml => ui.value(plan)?,
        OutputForm::Name => ui.write(&lines(plan.changes.iter().map(|c| c.address.to_string())))?,
        OutputForm::Table | OutputForm::Wide => ui.write(&text(plan, ui.out))?,
    }
    Ok(())
}

/// The plan for people.
pub fn text(plan: &Plan, paint: Paint) -> String {
    lines(
        report::human(plan)
            .iter()
            .map(|line| paint.paint(style::of_plan_line(line.kind), &printable(&line.text))),
    )
}

/// A plan has no secrets, but it has the contents of files: nobody else may read it.
fn save(path: &Path, plan: &SavedPlan) -> Result<(), CliError> {
    let failed =
        |error: std::io::Error| CliError::system(format!("saving the plan to {}", path.display()), &error);
    let text = serde_json::to_vec(plan).map_err(|error| failed(error.into()))?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).and_then(|mut file| file.write_all(&text)).map_err(failed)
}
