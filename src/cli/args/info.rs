//! Verbs about this program and this machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
