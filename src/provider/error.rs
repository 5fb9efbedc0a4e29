//! What can go wrong at a provider or inside a sandbox, by what the caller should do about it, never by text.

use std::time::Duration;

/// A boxed cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a provider call failed.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The object does not exist, by the provider's own word.
    #[error("{what} does not exist")]
    NotFound {
        /// The object.
        what: String,
    },
    /// Another object is in the way.
    #[error("{what} already exists")]
    AlreadyExists {
        /// The object.
        what: String,
    },
    /// Too many requests; try again later.
    #[error("the provider asks to slow down")]
    Throttled {
        /// When the provider says to come back.
        retry_after: Option<Duration>,
    },
    /// May succeed if tried again.
    #[error("{message}")]
    Transient {
        /// What was attempted and what happened.
        message: String,
        /// The cause.
        #[source]
        source: Option<Cause>,
    },
    /// Credentials are missing, wrong or not enough.
    #[error("not authorised: {message}")]
    Unauthorised {
        /// What was refused, and how to authorise.
        message: String,
    },
    /// The provider does not accept the spec.
    #[error("{message}")]
    Invalid {
        /// Which part and why.
        message: String,
    },
    /// The provider cannot do this at all.
    #[error("{message}")]
    Unsupported {
        /// What cannot be done.
        message: String,
    },
    /// Failed, and would fail again.
    #[error("{message}")]
    Permanent {
        /// What was attempted and what happened.
        message: String,
        /// The cause.
        #[source]
        source: Option<Cause>,
    },
}

impl ProviderError {
    /// Whether trying the same call again may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Transient { .. })
    }

    /// A transient failure with its cause.
    pub fn transient(message: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Transient { message: message.into(), source: Some(source.into()) }
    }

    /// A permanent failure with its cause.
    pub fn permanent(message: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Permanent { message: message.into(), source: Some(source.into()) }
    }
}

/// Why something inside a sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The sandbox could not be reached; it may be stopped or gone.
    #[error("the sandbox cannot be reached: {message}")]
    Unreachable {
        /// What was attempted and what happened.
        message: String,
        /// The cause.
        #[source]
        source: Option<Cause>,
    },
    /// The program to run does not exist inside or may not be executed.
    #[error("`{program}` cannot be executed: {message}")]
    NotExecutable {
        /// The program, argv\[0\].
        program: String,
        /// Why.
        message: String,
    },
    /// The time allowed has passed; the process was killed.
    #[error("`{program}` did not end within {limit:?}")]
    TimedOut {
        /// The program, argv\[0\].
        program: String,
        /// The time allowed.
        limit: Duration,
    },
    /// A command ended with something else than 0.
    #[error("{what} failed with {status}{}", output_suffix(.output))]
    Failed {
        /// What was attempted.
        what: String,
        /// How it ended.
        status: super::ExitStatus,
        /// The last of what it wrote, bounded.
        output: String,
    },
    /// Something inside is not up, or did not stay up.
    #[error("{what}{}", output_suffix(.output))]
    NotReady {
        /// What is not up, and why.
        what: String,
        /// The last of what it wrote, bounded.
        output: String,
    },
    /// The sandbox answered something that cannot be understood.
    #[error("{what}: unexpected answer: {message}")]
    Protocol {
        /// What was attempted.
        what: String,
        /// What was wrong with the answer.
        message: String,
    },
    /// Reading or writing on this side failed.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No session has this name.
    #[error("there is no session `{0}`")]
    NoSession(String),
    /// The sandbox cannot do this at all.
    #[error("{0}")]
    Unsupported(String),
}

impl GuestError {
    /// Whether trying again may succeed without anything being changed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

fn output_suffix(output: &str) -> String {
    let output = output.trim_end();
    if output.is_empty() { String::new() } else { format!(":\n{output}") }
}
