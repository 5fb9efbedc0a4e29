//! Why a use case could not be carried out.

use crate::manifest::Diagnostics;
use crate::provider::{GuestError, ProviderError};
use crate::secret::{SecretErrors, VaultError};
use crate::store::StoreError;

/// Why a use case could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest has problems.
    #[error("the manifest is not valid")]
    Manifest(Diagnostics),
    /// There is no manifest.
    #[error(
        "there is no `pocketenv.yaml` here or in a directory above; `pocketenv init` writes one, `-f FILE` names one"
    )]
    NoManifest,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A provider.
    #[error("provider `{provider}`")]
    Provider {
        /// Its name.
        provider: String,
        /// Why.
        #[source]
        source: ProviderError,
    },
    /// The inside of a sandbox.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Secrets without a value.
    #[error(transparent)]
    Secrets(#[from] SecretErrors),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A name that means nothing.
    #[error("there is no {kind} `{name}` in project `{project}`{}", hint(.close))]
    Unknown {
        /// What was looked for: `sandbox`, `service`, ….
        kind: &'static str,
        /// What was given.
        name: String,
        /// Where it was looked for.
        project: String,
        /// The nearest name that exists.
        close: Option<String>,
    },
    /// The sandbox does not run.
    #[error("sandbox `{name}` {state}")]
    NotRunning {
        /// The sandbox.
        name: String,
        /// What it is, as it follows its name.
        state: String,
    },
    /// What was asked needs a decision that was not given.
    #[error("{message}")]
    Refused {
        /// Why, naming the flag that would allow it.
        message: String,
    },
    /// A plan breaks a rule. This is a defect of Pocketenv, and nothing was done.
    #[error("the plan breaks a rule, so nothing was done; this is a defect of pocketenv: {0}")]
    Unsound(String),
    /// Steps succeed, and yet the next plan wants the same again.
    #[error("{0} keeps changing back after every change; something else changes it too")]
    NoProgress(String),
    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted, as it follows "cannot".
        doing: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A simulated cloud did not come up, or does not answer.
    #[error("the simulated cloud: {0}")]
    Simulator(String),
    /// A condition was not reached in time.
    #[error("{0}")]
    TimedOut(String),
    /// Changes of files cannot be heard of.
    #[error(transparent)]
    Watch(#[from] crate::watch::WatchError),
    /// The user called it off.
    #[error("interrupted")]
    Interrupted,
}

fn hint(close: &Option<String>) -> String {
    close.as_ref().map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
