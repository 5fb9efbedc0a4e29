//! Verbs about copies of sandboxes.

use clap::{Args, Subcommand};

use crate::model::Duration;

/// `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep the files of a sandbox as they are now; one that runs is frozen for that moment
    #[command(after_help = "\
Examples:
  pocketenv snapshot create api before-upgrade
and in the manifest, for a sandbox that starts from it:
  sandboxes: { trial: { snapshot: before-upgrade } }

Volumes, memory and what is under /run and /dev are not part of a snapshot.")]
    Create {
        /// The sandbox
        #[arg(value_name = "SANDBOX")]
        sandbox: String,
        /// The snapshot's name, new in the project
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the project's snapshots
    List,
    /// Write a snapshot as an OCI image, for other tools and other machines
    #[command(after_help = "\
Examples:
  pocketenv snapshot export before-upgrade oci-archive:box.tar
  skopeo copy oci-archive:box.tar docker://registry.example.com/box:1
and in a manifest:
  sandboxes: { again: { image: oci-archive:./box.tar } }

Only of a sandbox with `image` or `build`: the programs of this machine are no part of a snapshot.")]
    Export {
        /// The snapshot
        #[arg(value_name = "NAME")]
        name: String,
        /// Where to: `oci:DIR[:NAME]` or `oci-archive:FILE[:NAME]`, not there yet
        #[arg(value_name = "TARGET")]
        target: String,
    },
    /// Delete snapshots; what a sandbox is made from stays
    Rm {
        /// Their names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// `fork`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv fork api               api-fork-1, with the files that api has now
  pocketenv fork api --count 5     five of them, from one snapshot

Forks live until the next apply, which removes what the manifest does not declare and asks first.
`snapshot list` has the snapshot that they start from; a sandbox declared with it is kept.")]
pub struct ForkArgs {
    /// The sandbox
    #[arg(value_name = "NAME")]
    pub name: String,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(crate::app::MAX_FORKS)))]
    pub count: u32,
    /// Give up after this long, such as 90s or 10m
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// How long to wait while another process writes to the project
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub lock_timeout: Duration,
}
