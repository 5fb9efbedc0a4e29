//! Verbs about the inside of sandboxes.

use clap::Args;

use super::session::SessionArgs;
use super::value::{CopyEnd, KeyValue, LogSource};
use crate::model::Duration;

/// `logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv logs                      of every service
  pocketenv logs -f api/web           follow one service
  pocketenv logs --tail 100 api db    of two sandboxes")]
// Here -f is to follow. The global flags are in place by then, since the arguments of a verb are put together last.
#[command(mut_arg("file", |file| file.short(None)))]
pub struct LogsArgs {
    /// Go on as they write
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Only the last lines of each service
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
    /// Sandboxes, or services as SANDBOX/SERVICE; all if there are none
    #[arg(value_name = "SANDBOX[/SERVICE]")]
    pub sources: Vec<LogSource>,
}

/// `exec`.
#[derive(Debug, Args)]
#[command(after_help = "\
The command is run as it is, without a shell. Its standard input is ours, and so is its exit code
(128 + n after signal n).

A session has a terminal that stays when we leave, by the detach key or in any other way. Who names
it attaches to it and sees its last output first; without CMD, also after its end.

Examples:
  pocketenv exec api -- npm test
  pocketenv exec -it api -- python3
  pocketenv exec --workdir /work/shop --env CI=1 api -- make check
  pocketenv exec db -- sh -c 'pg_dump shop | gzip' > shop.sql.gz
  pocketenv exec -d --session build api -- make all
  pocketenv exec --session build api")]
pub struct ExecArgs {
    /// For habit: standard input is passed in any case
    #[arg(short, long)]
    pub interactive: bool,
    /// Run it on a terminal; where input and output are one it always is
    #[arg(short, long)]
    pub tty: bool,
    /// The session
    #[command(flatten)]
    pub session: SessionArgs,
    /// Make the session and leave it to itself
    #[arg(short, long, requires_all = ["session", "command"])]
    pub detach: bool,
    /// Set a variable of its environment; a bare NAME takes it from ours
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Its working directory
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// A user of the sandbox, as NAME, UID or UID:GID
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Kill it after this long
    #[arg(long, value_name = "DURATION", conflicts_with = "session")]
    pub timeout: Option<Duration>,
    /// The sandbox: its name, address or provider id
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The command and its arguments
    #[arg(value_name = "CMD", required_unless_present = "session", trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// `shell`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv shell api
  pocketenv shell api --session work     one that goes on when we leave, and may be shared")]
pub struct ShellArgs {
    /// The session
    #[command(flatten)]
    pub session: SessionArgs,
    /// A user of the sandbox, as NAME, UID or UID:GID
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The working directory
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Set a variable of the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<KeyValue>,
    /// The sandbox; may be left out where there is only one
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// `cp`.
#[derive(Debug, Args)]
#[command(after_help = "\
Directories are copied whole, with modes and links. Into a directory that exists, the source is put
under its own name.

Examples:
  pocketenv cp ./data api:/work/data
  pocketenv cp api:/work/report.html .
  pocketenv cp api:/work/cache worker:/work/cache")]
pub struct CpArgs {
    /// For habit: directories are copied whole in any case
    #[arg(short, long)]
    pub recursive: bool,
    /// NAME:PATH, or a path here
    #[arg(value_name = "SRC")]
    pub from: CopyEnd,
    /// NAME:PATH, or a path here
    #[arg(value_name = "DST")]
    pub to: CopyEnd,
}

/// `egress`.
#[derive(Debug, Args)]
pub struct EgressArgs {
    /// Only what was not let through
    #[arg(long)]
    pub denied: bool,
    /// Print a `network` that allows what was reached so far and nothing else
    #[arg(long, conflicts_with = "denied")]
    pub propose: bool,
    /// The sandbox
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `ports`.
#[derive(Debug, Args)]
pub struct PortsArgs {
    /// Only these sandboxes
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}
