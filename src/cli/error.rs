//! Why a verb did not succeed: what to say, what to do about it, and the exit code.

use std::io;

use super::ui::Ui;
use super::ui::exit::Exit;
use super::ui::style::Role;
use crate::provider::GuestError;
use crate::reconcile::observe::with_causes;

/// Why a verb did not succeed.
#[derive(Debug)]
pub enum CliError {
    /// Nobody reads our output any more; there is nothing to say and nobody to say it to.
    ClosedPipe,
    /// Everything there is to say was said; only the code is left.
    Said(Exit),
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
        Self::new(Exit::Usage, message)
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

    /// Says it, and returns how the program ends.
    pub fn report(self, ui: &Ui) -> Exit {
        match self {
            Self::ClosedPipe => Exit::Done,
            Self::Said(exit) => exit,
            Self::Failed { exit, message, hints } => {
                ui.error(&message);
                for hint in hints {
                    ui.hint(&hint);
                }
                if exit == Exit::Usage {
                    ui.say(
                        &ui.err.paint(
                            Role::Dim,
                            "Run `pocketenv --help`, or `pocketenv VERB --help`, for usage.",
                        ),
                    );
                }
                exit
            }
        }
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

impl From<GuestError> for CliError {
    fn from(error: GuestError) -> Self {
        Self::new(Exit::Failed, with_causes(&error))
    }
}
