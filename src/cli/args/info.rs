//! Verbs about this program and this machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::BuildSecret;

/// `preset`.
#[derive(Debug, Subcommand)]
pub enum PresetCommand {
    /// List the built-in presets
    List,
    /// Show a built-in preset
    Show {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images that the local engine has
    List,
    /// Bring images here, or what their names stand for by now; sandboxes that exist keep what they were made from
    #[command(after_help = "\
Examples:
  pocketenv image pull docker.io/library/debian:12
  pocketenv image pull oci:./image                  a directory that is an OCI image layout
  pocketenv image pull docker-archive:./saved.tar   what `docker save` wrote")]
    Pull {
        /// References, as under `image:`
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Build an image from a directory with a Containerfile, in boxes of the local engine
    #[command(after_help = "\
Examples:
  pocketenv image build ./images/db                 what `build: ./images/db` builds
  pocketenv image build . -t tools                  and `image: tools` makes sandboxes from it
  pocketenv image build . --secret id=npm,env=NPM_TOKEN

What a step comes to is kept: one whose layers, command and files are the same is not done again.
`pocketenv image gc` forgets that.")]
    Build {
        /// The directory that files are copied from; its Containerfile or Dockerfile says how
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// What the image is called
        #[arg(short = 't', long, value_name = "NAME")]
        tag: Option<String>,
        /// A secret that `RUN --mount=type=secret,id=ID` may have: `id=ID,src=FILE` or `id=ID,env=NAME`
        #[arg(long = "secret", value_name = "SECRET")]
        secrets: Vec<BuildSecret>,
    },
    /// Write an image as files that other tools read
    #[command(after_help = "\
Examples:
  pocketenv image export tools oci-archive:tools.tar
  skopeo copy oci-archive:tools.tar docker://registry.example.com/tools:1")]
    Export {
        /// The image, pulled or built
        #[arg(value_name = "IMAGE")]
        image: String,
        /// Where to: `oci:DIR[:NAME]` or `oci-archive:FILE[:NAME]`, not there yet
        #[arg(value_name = "TARGET")]
        target: String,
    },
    /// Remove images that no sandbox was made from
    Rm {
        /// References, as `list` shows them
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Remove every image that no sandbox was made from, what steps of builds came to, and what was cut short
    Gc,
}

/// `provider`.
#[derive(Debug, Subcommand)]
pub enum ProviderCommand {
    /// List the providers
    List,
    /// Show what a provider can do
    Show {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Seal a credential in the vault of this machine; it is read from standard input
    #[command(after_help = "\
Examples:
  pocketenv provider login e2b                    ask for the key, which is not shown
  printf %s \"$KEY\" | pocketenv provider login e2b")]
    Login {
        /// The provider
        #[arg(value_name = "NAME")]
        name: String,
        /// Which credential, where there are several
        #[arg(long, value_name = "SETTING")]
        setting: Option<String>,
    },
    /// Remove the credentials that login has sealed
    Logout {
        /// The provider
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Try everything that a provider promises, with your account; what is made is removed again
    #[command(after_help = "\
Examples:
  pocketenv provider test local                   every promise
  pocketenv provider test e2b --case lifecycle/   those of one group
  pocketenv provider test docker --image alpine:3 -o json")]
    Test {
        /// The provider
        #[arg(value_name = "NAME")]
        name: String,
        /// Only cases whose name contains this
        #[arg(long, value_name = "PATTERN")]
        case: Option<String>,
        /// What sandboxes are made from: host, an image, base:NAME or snapshot:ID
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
    },
}

/// `secret`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Seal a value, which is read from standard input
    #[command(after_help = "\
Examples:
  pocketenv secret set db                         ask for the value, which is not shown
  openssl rand -hex 16 | pocketenv secret set db
and in the manifest:
  secrets: { DB_PASSWORD: { vault: db } }")]
    Set {
        /// The name that manifests use
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the names of sealed values; values are never shown
    List,
    /// Remove sealed values
    Rm {
        /// Their names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Try to get out of this running sandbox instead, and say whether its isolation holds
    #[arg(long, value_name = "NAME")]
    pub isolation: Option<String>,
}

/// `completion`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv completion bash > ~/.local/share/bash-completion/completions/pocketenv
  pocketenv completion zsh  > ~/.zfunc/_pocketenv
  pocketenv completion fish > ~/.config/fish/completions/pocketenv.fish")]
pub struct CompletionArgs {
    /// bash, zsh, fish, powershell or elvish
    #[arg(value_enum, value_name = "SHELL", hide_possible_values = true)]
    pub shell: clap_complete::Shell,
}

/// `version`.
#[derive(Debug, Args)]
pub struct VersionArgs {}

/// `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where to write them
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}
