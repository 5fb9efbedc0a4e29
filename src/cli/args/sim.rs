//! The simulated cloud, and rehearsals against it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::value::KeyValue;

/// `sim`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv sim --listen 127.0.0.1:7070 --state cloud.sim
  pocketenv sim --listen 127.0.0.1:7070 --state cloud.sim --seed 7 --profile stormy
  pocketenv sim --listen 127.0.0.1:0 --state cloud.sim --faults create.cut_after=0.5 --faults lag=2s
  POCKETENV_SIM_URL=http://127.0.0.1:7070 pocketenv apply --provider sim
  curl -s 127.0.0.1:7070/inventory")]
pub struct SimArgs {
    /// Where it listens; port 0 takes a free one. The address is printed
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// Where chance begins; the same seed goes wrong in the same way
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// The file that it lives in; it goes on with what is there
    #[arg(long, value_name = "FILE")]
    pub state: PathBuf,
    /// What goes wrong, and its manners: calm, slow, stormy, hostile, e2b, daytona, vercel, modal, …
    #[arg(long, value_name = "PROFILE", default_value = "calm")]
    pub chaos: String,
    /// A setting over those of the profile, or a JSON file of them; repeatable
    #[arg(long, value_name = "FILE|NAME=VALUE")]
    pub faults: Vec<String>,
    /// End when standard input ends, so that it never outlives who started it
    #[arg(long, hide = true)]
    pub until_stdin_ends: bool,
}

/// `rehearse`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv rehearse                                what apply and destroy would do on a bad day
  pocketenv rehearse --chaos hostile --runs 20      twenty different bad days
  pocketenv rehearse --chaos e2b --seed 7 -o json   one vendor's manners, the very same run again")]
pub struct RehearseArgs {
    /// What goes wrong: the name of a profile of `pocketenv sim`
    #[arg(long, value_name = "PROFILE", default_value = "stormy")]
    pub chaos: String,
    /// Where chance begins; run k takes seed + k
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// How many rehearsals
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// A setting over those of the profile; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<KeyValue>,
}
