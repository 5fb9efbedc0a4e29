//! `controller`: keeping projects as their repositories say.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `controller`.
#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Follow the sources of a file and keep every project of them as it says
    #[command(after_help = "\
Examples:
  pocketenv controller run --config /etc/pocketenv/controller.yaml
  kill -TERM PID                      finish what runs, then leave")]
    Run(RunArgs),
    /// Show what a running controller says of its sources and projects
    Status(ControllerStatusArgs),
}

/// `controller run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The controller's file
    #[arg(long, value_name = "PATH", default_value = "controller.yaml")]
    pub config: PathBuf,
    /// Serve status, metrics and webhooks here, over the file's `listen`
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
}

/// `controller status`.
#[derive(Debug, Args)]
pub struct ControllerStatusArgs {
    /// Where the controller listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8484")]
    pub address: SocketAddr,
}
