//! Emulators of vendors.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::value::KeyValue;

/// `emulate`.
#[derive(Debug, Subcommand)]
pub enum EmulateCommand {
    /// Serve E2B's API: programs written with E2B's SDK run on this machine
    #[command(after_help = "\
Examples:
  pocketenv emulate e2b --listen 127.0.0.1:7080
  export E2B_API_URL=http://127.0.0.1:7080 E2B_SANDBOX_URL=http://127.0.0.1:7080 E2B_API_KEY=local
  pocketenv emulate e2b --template code-interpreter-v1=host --keep")]
    E2b(EmulateArgs),
    /// Serve Daytona's API: programs written with Daytona's SDK run on this machine
    #[command(after_help = "\
Examples:
  pocketenv emulate daytona --listen 127.0.0.1:7081
  export DAYTONA_API_URL=http://127.0.0.1:7081 DAYTONA_API_KEY=local
  pocketenv emulate daytona --template my-snapshot=host --keep")]
    Daytona(EmulateArgs),
}

/// What every emulator takes.
#[derive(Debug, Args)]
pub struct EmulateArgs {
    /// Where it listens; port 0 takes a free one. The address is printed
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7080")]
    pub listen: SocketAddr,
    /// Listen where other machines may ask; this needs a key
    #[arg(long)]
    pub allow_remote: bool,
    /// The key that programs must send. The variable is not seen in the list of processes [env: POCKETENV_EMULATE_API_KEY]
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// What a template of the vendor is here: host, or an image; `*` stands for any other; repeatable. `base` is host
    #[arg(long, value_name = "NAME=IMAGE")]
    pub template: Vec<KeyValue>,
    /// Leave the sandboxes when it ends; the next one with the same state goes on with them
    #[arg(long)]
    pub keep: bool,
    /// The file that it lives in
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// End when standard input ends, so that it never outlives who started it
    #[arg(long, hide = true)]
    pub until_stdin_ends: bool,
}
