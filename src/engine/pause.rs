//! Pausing: a sandbox is frozen by a control group of its own, made when it is first needed, and goes on where it stood. Its shim is not in it and
//! stays awake.

use std::io;

use super::cgroup::{self, Available, Controller};
use super::error::EngineError;
use super::lifecycle::{Engine, absolute};
use super::spec::BoxState;
use super::state;

impl Engine {
    /// Freezes all that runs inside, where it stands and with its memory; [`Engine::start`] lets it go on. One that is paused is left alone.
    ///
    /// # Errors
    /// [`EngineError::Unenforceable`] where there is no control group to freeze it with, [`EngineError::NotRunning`],
    /// [`EngineError::NotFound`], [`EngineError::Control`] where the kernel refuses, [`EngineError::File`].
    pub async fn pause(&self, id: &str) -> Result<(), EngineError> {
        let (_lock, _) = self.existing(id).await?;
        self.freeze(id).await.map(drop)
    }

    /// Freezes a sandbox whose lock is held; whether it ran until now.
    pub(super) async fn freeze(&self, id: &str) -> Result<bool, EngineError> {
        let (pid, mut run) = match self.liveness(id)? {
            (BoxState::Running { pid, .. }, Some(run)) => (pid, run),
            (BoxState::Paused { .. }, _) => return Ok(false),
            _ => return Err(EngineError::NotRunning(id.to_owned())),
        };
        let control = |source| EngineError::Control { id: id.to_owned(), source };
        let known = run.cgroups.iter().find(|group| group.controller == Controller::Freezer);
        let group = match known {
            Some(group) => group.clone(),
            None => {
                let dir = absolute(&self.dir(id))?;
                let available = Available::of(run.shim.pid).map_err(control)?;
                let group =
                    available.make_freezer(&cgroup::name(&dir, id)).map_err(EngineError::Unenforceable)?;
                run.cgroups.push(group.clone());
                // Written down before anything is in it: from here on whoever ends the sandbox lets it go on and removes the group.
                let path = self.dir(id).join("run.json");
                state::write(&path, &run, false).map_err(EngineError::file("write", &path))?;
                group
            }
        };
        let freezing = move || {
            cgroup::enter_all(std::slice::from_ref(&group), pid)?;
            cgroup::freeze(&group, true)
        };
        tokio::task::spawn_blocking(freezing).await.map_err(io::Error::other).flatten().map_err(control)?;
        Ok(true)
    }
}
