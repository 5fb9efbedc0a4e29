//! Flags of `watch`.

use clap::Args;

use crate::model::Duration;

/// `watch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv watch                        apply, then follow every edit
  pocketenv watch --yes --down-on-exit   in a script; the sandboxes go with it
  pocketenv watch --no-logs              say only what is done and why

An edit of the manifest, or of a file that it names, is planned and applied; one that is not valid
is reported, and the last good one stays. Directories under `sync` are kept in step. The first
Ctrl-C ends watching and leaves everything running; the second stops now.")]
pub struct WatchArgs {
    /// Do not ask
    #[arg(short, long, visible_alias = "auto-approve")]
    pub yes: bool,
    /// Go on where data may be lost
    #[arg(long)]
    pub allow_data_loss: bool,
    /// Keep sandboxes that are no longer declared
    #[arg(long)]
    pub no_prune: bool,
    /// Delete the sandboxes at the end; volumes stay
    #[arg(long)]
    pub down_on_exit: bool,
    /// Do not show what services write
    #[arg(long)]
    pub no_logs: bool,
    /// Look at everything again this often, even if nothing was heard
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub resync: Duration,
    /// How long to wait while another process writes to the project
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub lock_timeout: Duration,
}
