//! Exit codes.

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// There are changes; only for `plan --detailed-exitcode`.
    ChangesPending,
    /// The manifest is wrong.
    InvalidConfiguration,
    /// Some of it is done.
    Partly,
    /// It took too long.
    TimedOut,
    /// Another process writes to the project.
    Locked,
    /// Credentials are missing or wrong.
    NotAuthorised,
    /// Consent or policy says no.
    Refused,
    /// The command line is wrong.
    Usage,
    /// It was called off.
    Interrupted,
    /// What a command inside a sandbox returned, or what a run decided.
    Code(i32),
}

impl Exit {
    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::ChangesPending => 2,
            Self::InvalidConfiguration => 3,
            Self::Partly => 4,
            Self::TimedOut => 5,
            Self::Locked => 6,
            Self::NotAuthorised => 7,
            Self::Refused => 8,
            Self::Usage => 64,
            Self::Interrupted => 130,
            // As the system does: the low eight bits. Only 0 is success on both sides.
            Self::Code(code) => match code.to_le_bytes()[0] {
                0 if code != 0 => 255,
                low => low,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_inside_is_never_a_success_here() {
        assert_eq!(Exit::Code(0).code(), 0);
        assert_eq!(Exit::Code(137).code(), 137);
        assert_eq!(Exit::Code(256).code(), 255);
        assert_eq!(Exit::Code(-1).code(), 255);
    }
}
