//! Where a secret's value comes from, as plain data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a secret's value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// An environment variable of the calling process.
    Env(String),
    /// A file on this machine, absolute; one newline at its end is not part of the value.
    File(PathBuf),
    /// What a program prints, given as argv and run without a shell; one newline at its end is not part of the value.
    Command(Vec<String>),
    /// A value of the sealed vault, by name.
    Vault(String),
}

impl SecretSource {
    /// The kind of source, as the manifest names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Env(_) => "env",
            Self::File(_) => "file",
            Self::Command(_) => "command",
            Self::Vault(_) => "vault",
        }
    }
}
