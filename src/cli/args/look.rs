//! Verbs that look and change nothing.

use std::str::FromStr;

use clap::{Args, Subcommand};

use super::value::address;
use crate::model::{Address, Duration};

/// `status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv status            every resource, why it is not ready
  pocketenv status api        one sandbox and what is inside it
  pocketenv status -o json    with conditions")]
pub struct StatusArgs {
    /// Only these resources and what is inside them
    #[arg(value_name = "ADDRESS", value_parser = address)]
    pub addresses: Vec<Address>,
}

/// `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Those of every project that this machine remembers, without asking the providers
    #[arg(short, long)]
    pub all: bool,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Only these sandboxes
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// `describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// The resources; all if there are none
    #[arg(value_name = "ADDRESS", value_parser = address)]
    pub addresses: Vec<Address>,
}

/// `events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv events                    the newest of the project
  pocketenv events api --since 10m    of one sandbox, in the last ten minutes
  pocketenv events --follow -o json   as JSON Lines, as they happen")]
// Here -f is to follow. The global flags are in place by then, since the arguments of a verb are put together last.
#[command(mut_arg("file", |file| file.short(None)))]
pub struct EventsArgs {
    /// Go on as they happen
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Only of this resource and what is inside it
    #[arg(value_name = "ADDRESS", value_parser = address)]
    pub address: Option<Address>,
    /// Only newer than this, such as 10m or 2h
    #[arg(long, value_name = "DURATION")]
    pub since: Option<Duration>,
    /// At most this many of the newest
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub limit: usize,
}

/// `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
}

/// `wait`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv wait api                           until it is ready
  pocketenv wait api/web --timeout 30s         until the service is; exit 5 if it is not by then
  pocketenv wait api --for deleted             until it is gone")]
pub struct WaitArgs {
    /// The resources; all if there are none
    #[arg(value_name = "ADDRESS", value_parser = address)]
    pub addresses: Vec<Address>,
    /// condition=TYPE or deleted
    #[arg(long = "for", value_name = "WHAT", default_value = "condition=Ready")]
    pub wait_for: WaitFor,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The condition of this type is true.
    Condition(String),
    /// It does not exist.
    Deleted,
}

impl FromStr for WaitFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            None if text.eq_ignore_ascii_case("deleted") => Ok(Self::Deleted),
            None if text.eq_ignore_ascii_case("ready") => Ok(Self::Condition("Ready".to_owned())),
            Some(("condition", kind)) if kind.eq_ignore_ascii_case("ready") => {
                Ok(Self::Condition("Ready".to_owned()))
            }
            Some(("condition", kind)) if !kind.is_empty() => Ok(Self::Condition(kind.to_owned())),
            _ => Err("expected condition=TYPE, such as condition=Ready, or deleted".to_owned()),
        }
    }
}

/// `state`.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// List what is recorded
    List,
    /// Show one recorded resource
    Show {
        /// The resource
        #[arg(value_name = "ADDRESS", value_parser = address)]
        address: Address,
    },
    /// Let go of a recorded resource; the object itself is left alone
    Rm {
        /// A sandbox or a volume
        #[arg(value_name = "ADDRESS", value_parser = address)]
        address: Address,
    },
    /// Rename a recorded sandbox, so that its renamed declaration finds it
    Mv {
        /// The sandbox as it is recorded
        #[arg(value_name = "FROM")]
        from: String,
        /// Its new name
        #[arg(value_name = "TO")]
        to: String,
    },
    /// List who writes to which project
    Locks,
    /// Take away the lock of the project if its holder is gone
    Unlock {
        /// Also if its holder may be alive; two writers can then damage the record
        #[arg(long)]
        force: bool,
    },
}
