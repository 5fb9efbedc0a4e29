//! Verbs about the text of the manifest.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Looks at what is in the directory (compose.yaml, devcontainer.json, package.json, Cargo.toml, …) and
says what it chose. An existing file is never overwritten.")]
pub struct InitArgs {
    /// The directory to write pocketenv.yaml into
    #[arg(value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
}

/// `validate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pocketenv validate                        the manifest of this directory
  pocketenv validate -f a.yaml -f b.yaml    two files, merged left to right
  pocketenv validate --format github        annotations in a workflow")]
pub struct ValidateArgs {
    /// The form of problems: human, json or github
    #[arg(long, value_enum, value_name = "FORM", default_value_t, hide_possible_values = true)]
    pub format: ValidateFormat,
}

/// The form of problems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ValidateFormat {
    /// With a snippet, for people.
    #[default]
    Human,
    /// JSON, as `-o json`.
    Json,
    /// Annotations of a GitHub workflow.
    Github,
}

/// `fmt`.
#[derive(Debug, Args)]
pub struct FmtArgs {
    /// Change nothing; exit 1 if a file would be changed
    #[arg(long)]
    pub check: bool,
    /// The files; the manifest if there are none
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {}

/// `schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Of what: manifest or preset
    #[arg(value_enum, value_name = "WHAT", default_value_t, hide_possible_values = true)]
    pub of: SchemaOf,
}

/// What a schema is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// The manifest.
    #[default]
    Manifest,
    /// A preset file.
    Preset,
}
