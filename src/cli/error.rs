//! Why a verb did not succeed: what to say, what to do about it, and the exit code.

use std::io;

use serde_json::{Value, json};

use super::ui::exit::Exit;
use super::ui::{Ui, time};
use crate::app;
use crate::manifest::Diagnostics;
use crate::model::Timestamp;
use crate::model::with_causes;
use crate::provider::{GuestError, ProviderError};
use crate::store::StoreError;

/// Why a verb did not succeed.
#[derive(Debug)]
pub enum CliError {
    /// Nobody reads our output any more; there is nothing to say and nobody to say it to.
    ClosedPipe,
    /// The manifest has problems.
    Manifest(Diagnostics),
    /// Something to say.
    Failed {
        /// How the program ends.
        exit: Exit,
        /// What happened, with its causes.
        message: String,
        /// What to do about it.
        hints: Vec<String>,
    },
}

impl CliError {
    /// A failure with its code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self::Failed { exit, message: message.into(), hints: Vec::new() }
    }

    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message).hint("`pocketenv VERB --help` shows the usage of a verb".to_owned())
    }

    /// A failure of the system on this side.
    pub fn system(what: impl std::fmt::Display, error: &io::Error) -> Self {
        Self::new(Exit::Failed, format!("{what}: {error}"))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        if let (Self::Failed { hints, .. }, Some(hint)) = (&mut self, hint.into()) {
            hints.push(hint);
        }
        self
    }

    /// How the program ends.
    fn exit(&self) -> Exit {
        match self {
            Self::ClosedPipe => Exit::Done,
            Self::Manifest(_) => Exit::InvalidConfiguration,
            Self::Failed { exit, .. } => *exit,
        }
    }

    /// The last line of a stream of JSON Lines that ends with this.
    pub fn line(&self, now: Timestamp) -> Value {
        let message = match self {
            Self::ClosedPipe => String::new(),
            Self::Manifest(diagnostics) => diagnostics.plain(),
            Self::Failed { message, .. } => message.clone(),
        };
        json!({
            "type": "error",
            "ts": time::rfc3339(now),
            "level": "error",
            "message": message,
            "exit_code": self.exit().code(),
        })
    }

    /// Says it, and returns how the program ends.
    pub fn report(self, ui: &Ui) -> Exit {
        let exit = self.exit();
        match self {
            Self::ClosedPipe => {}
            Self::Manifest(diagnostics) => ui.diagnostics(&diagnostics),
            Self::Failed { message, hints, .. } => {
                ui.error(&message);
                for hint in hints {
                    ui.hint(&hint);
                }
            }
        }
        exit
    }
}

/// Only stdout is written with a bare `?`; everything else names what failed.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ClosedPipe
        } else {
            Self::system("writing to standard output", &error)
        }
    }
}

impl From<app::Error> for CliError {
    fn from(error: app::Error) -> Self {
        match error {
            app::Error::Manifest(diagnostics) => Self::Manifest(diagnostics),
            error => Self::new(exit_of(&error), with_causes(&error)),
        }
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        app::Error::from(error).into()
    }
}

impl From<GuestError> for CliError {
    fn from(error: GuestError) -> Self {
        app::Error::from(error).into()
    }
}

/// The one place where failures become exit codes.
fn exit_of(error: &app::Error) -> Exit {
    use app::Error;
    match error {
        Error::Manifest(_) | Error::NoManifest | Error::Secrets(_) | Error::Vault(_) => {
            Exit::InvalidConfiguration
        }
        Error::Store(StoreError::Locked { .. }) => Exit::Locked,
        Error::Provider { source: ProviderError::Unauthorised { .. }, .. } => Exit::NotAuthorised,
        // What a shell says of a program that is not there.
        Error::Guest(GuestError::NotExecutable { .. }) => Exit::Code(127),
        Error::Guest(GuestError::TimedOut { .. }) | Error::TimedOut(_) => Exit::TimedOut,
        Error::Refused { .. } => Exit::Refused,
        Error::Interrupted => Exit::Interrupted,
        Error::Store(_)
        | Error::Provider { .. }
        | Error::Guest(_)
        | Error::Unknown { .. }
        | Error::NotRunning { .. }
        | Error::Unsound(_)
        | Error::NoProgress(_)
        | Error::Simulator(_)
        | Error::Watch(_)
        | Error::Io { .. } => Exit::Failed,
    }
}
