//! Verbs that plan and change.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::value::address;
use crate::model::{Address, Duration};

/// `plan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv plan                                what apply would do
  pocketenv plan --detailed-exitcode            exit 2 if there are changes
  pocketenv plan --out next.plan                save it for `pocketenv apply next.plan`
  pocketenv plan --target api                   one sandbox and what it depends on
  pocketenv plan --format markdown              for a pull request")]
pub struct PlanArgs {
    /// Exit 2 if there are changes
    #[arg(long)]
    pub detailed_exitcode: bool,
    /// Save the plan for apply; also -out
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Only this resource, what is inside it and what it depends on; repeatable
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub target: Vec<Address>,
    /// Keep sandboxes that are no longer declared
    #[arg(long)]
    pub no_prune: bool,
    /// Delete volumes that are no longer declared, with their data
    #[arg(long)]
    pub volumes: bool,
    /// false: ask nobody and plan from the record
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    pub refresh: bool,
    /// The form of the plan: human, json, markdown or dot
    #[arg(long, value_enum, value_name = "FORM", default_value_t, hide_possible_values = true)]
    pub format: PlanFormat,
}

/// The form of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// For people.
    #[default]
    Human,
    /// JSON, as `-o json`.
    Json,
    /// A table for a pull request.
    Markdown,
    /// A graph of the steps for Graphviz.
    Dot,
}

/// `apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv apply                          show the plan, ask, do it, wait for health
  pocketenv apply --yes --timeout 5m       in a script
  pocketenv apply -f base.yaml -f ci.yaml  two files, merged left to right
  pocketenv apply next.plan                a saved plan; refused if the world has changed since
  pocketenv apply --dry-run                what plan shows

The first Ctrl-C starts no further step and lets running ones finish; the second stops now.
Both leave a consistent record.")]
pub struct ApplyArgs {
    /// A plan saved by `plan --out`
    #[arg(value_name = "PLAN")]
    pub plan: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long, visible_alias = "auto-approve")]
    pub yes: bool,
    /// Do not wait until services are healthy
    #[arg(long)]
    pub no_wait: bool,
    /// Give up after this long, such as 90s or 10m
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// How many steps may run at once [env: POCKETENV_PARALLELISM]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub parallelism: Option<u16>,
    /// Only this resource, what is inside it and what it depends on; repeatable
    #[arg(long, value_name = "ADDRESS", value_parser = address, conflicts_with = "plan")]
    pub target: Vec<Address>,
    /// Keep sandboxes that are no longer declared
    #[arg(long, conflicts_with = "plan")]
    pub no_prune: bool,
    /// Delete volumes that are no longer declared, with their data
    #[arg(long, conflicts_with = "plan")]
    pub volumes: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Go on where data may be lost
    #[arg(long)]
    pub allow_data_loss: bool,
    /// Delete although nothing is declared at all
    #[arg(long)]
    pub allow_empty: bool,
    /// How long to wait while another process writes to the project
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub lock_timeout: Duration,
}

/// `destroy`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv destroy                  delete the sandboxes; keep volumes
  pocketenv destroy --volumes --yes  everything, data too, without asking
  pocketenv destroy --target api     one sandbox")]
pub struct DestroyArgs {
    /// Do not ask
    #[arg(short, long, visible_alias = "auto-approve")]
    pub yes: bool,
    /// Delete volumes too, with their data
    #[arg(short = 'v', long)]
    pub volumes: bool,
    /// Only this resource; repeatable
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub target: Vec<Address>,
    /// Give up after this long, such as 90s or 10m
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// How long to wait while another process writes to the project
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub lock_timeout: Duration,
}
