//! Named sessions: terminals inside that outlive those who look at them. An optional power of a sandbox.

use async_trait::async_trait;

use super::{Command, ExitStatus, GuestError, Pty, PtyRequest};
use crate::model::Timestamp;

/// The sessions of one running sandbox.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// Attaches to the session `name`. If there is none that runs, `command` is run as one, called `what` in lists; without a command, one that
    /// has ended is shown as well. Dropping what is returned detaches. `size` is that of a terminal here, if there is one. With `leave`
    /// it is only made sure that it runs.
    ///
    /// # Errors
    /// [`GuestError::NoSession`]; else as [`super::Guest::pty`].
    async fn attach(
        &self,
        name: &str,
        what: &str,
        command: Option<&Command>,
        size: Option<PtyRequest>,
        leave: bool,
    ) -> Result<Attached, GuestError>;

    /// Those there are, in order of name. One that ended when nobody was attached is kept for a while.
    async fn list(&self) -> Result<Vec<SessionInfo>, GuestError>;

    /// Ends a session and all of its processes, and forgets it.
    ///
    /// # Errors
    /// [`GuestError::NoSession`].
    async fn end(&self, name: &str) -> Result<(), GuestError>;
}

/// A session that is attached to.
pub struct Attached {
    /// The terminal.
    pub pty: Box<dyn Pty>,
    /// The session at that moment.
    pub session: SessionInfo,
    /// It was made for this.
    pub made: bool,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// What it runs, in the words of whoever made it.
    pub what: String,
    /// When it was made.
    pub since: Timestamp,
    /// How many are attached.
    pub clients: usize,
    /// Its size.
    pub size: PtyRequest,
    /// How its command ended, if it did.
    pub ended: Option<ExitStatus>,
}
