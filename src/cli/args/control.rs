//! Verbs that start and stop.

use clap::Args;

use super::value::address;
use crate::model::{Address, Duration};

/// `start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Which, and how
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Which, and how
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `restart`.
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// Which, and how
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Which, and how
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Which, and how
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Which resources to start or stop, and for how long to try.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// Sandboxes, or services as SANDBOX/SERVICE
    #[arg(value_name = "NAME", required = true, value_parser = address)]
    pub addresses: Vec<Address>,
    /// Give up after this long, such as 90s or 10m
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// How long to wait while another process writes to the project
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub lock_timeout: Duration,
}
