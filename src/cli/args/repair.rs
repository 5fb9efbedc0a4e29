//! Verbs about what belongs to whom, and about going back.

use clap::Args;

use crate::model::Duration;

/// `gc`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv gc                             what carries our labels and nobody accounts for; change nothing
  pocketenv gc --delete                    delete what this store made and lost track of
  pocketenv gc --delete --older-than 24h   only what is that old")]
pub struct GcArgs {
    /// Delete what is found; without it nothing is changed
    #[arg(long)]
    pub delete: bool,
    /// Only what was created at least this long ago
    #[arg(long, value_name = "DURATION")]
    pub older_than: Option<Duration>,
    /// Also what another store made; it may be in use there
    #[arg(long)]
    pub foreign: bool,
    /// Also volumes and snapshots, with their data
    #[arg(short = 'v', long)]
    pub volumes: bool,
    /// Do not ask
    #[arg(short, long, requires = "delete")]
    pub yes: bool,
}

/// `import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv import                                 the manifest text of every sandbox there is
  pocketenv import web-1a2b3c > pocketenv.yaml     of one, by its provider's id
  pocketenv import web-1a2b3c --adopt --as web     take it into this project as sandbox/web")]
pub struct ImportArgs {
    /// Sandboxes by their ids at the provider; all if none is given
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Only those of this provider
    #[arg(id = "from", long = "from", value_name = "PROVIDER")]
    pub provider: Option<String>,
    /// Take them into the project of the manifest: labels and record say so from now on
    #[arg(long, requires = "ids")]
    pub adopt: bool,
    /// The name in the project, for one sandbox; its own by default
    #[arg(long = "as", value_name = "NAME", requires = "adopt")]
    pub name: Option<String>,
}

/// `rollback`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv history              the runs, numbered
  pocketenv rollback 12          make what exists equal to what run 12 was to achieve

A rollback is a plan like any other: it is shown, asked about, and data at risk needs consent.
The manifest is not changed; the next apply goes forward again.")]
pub struct RollbackArgs {
    /// The number of the run, as `history` shows it
    #[arg(value_name = "REVISION")]
    pub revision: u64,
    /// Do not ask
    #[arg(short, long, visible_alias = "auto-approve")]
    pub yes: bool,
    /// Go on where data may be lost
    #[arg(long)]
    pub allow_data_loss: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give up after this long, such as 90s or 10m
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// How long to wait while another process writes to the project
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub lock_timeout: Duration,
}
