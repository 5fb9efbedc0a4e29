//! Finding a sandbox by what people call it, and getting inside.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{Error, Project};
use crate::guest::{self, IsolationCheck, IsolationVerdict};
use crate::model::{
    Condition, ConditionStatus, EgressAttempt, GuestSpec, Observation, ObservedSandbox, SandboxId,
    SandboxState, SecretUse, labels, nearest,
};
use crate::provider::{
    Command, ExecIo, Guest, GuestError, ImageDefaults, Output, ProviderError, SessionInfo, Sessions,
};
use crate::secret::{Redactor, SecretValue};

/// As much of a secret's file is read as a secret can be long; whoever is inside may have put something else there.
const MAX_SECRET_BYTES: &str = "1048576";

/// A running sandbox, from the inside.
pub struct Sandbox {
    /// Its name in the project.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// The provider's id.
    pub id: SandboxId,
    /// What is declared to be inside; `None` if it is not declared any more.
    pub declared: Option<GuestSpec>,
    /// What its image says of how it is run.
    pub image: ImageDefaults,
    /// The way in.
    pub guest: Box<dyn Guest>,
}

/// What came of trying to get out of a sandbox.
#[derive(Clone, Debug, Serialize)]
pub struct Isolation {
    /// The sandbox.
    pub sandbox: String,
    /// `PolicyVerified`.
    pub condition: Condition,
    /// Each way out.
    pub checks: Vec<IsolationCheck>,
}

impl Sandbox {
    /// A command with the environment, user and working directory that every process of this sandbox gets (manifest environment, then
    /// secrets). What the command says itself comes last.
    pub async fn command(&self, mut command: Command) -> Result<Command, Error> {
        let mut env: BTreeMap<String, String> = guest::environment(self.guest.as_ref()).await?;
        env.extend(std::mem::take(&mut command.env));
        command.env = env;
        command.user = command.user.or_else(|| self.user().map(str::to_owned));
        if let Some(declared) = &self.declared {
            command.cwd = command.cwd.or_else(|| declared.working_dir.clone());
        }
        Ok(command)
    }

    /// Who runs what names nobody.
    pub fn user(&self) -> Option<&str> {
        let declared = self.declared.as_ref().and_then(|declared| declared.user.as_deref());
        declared.or(self.image.user.as_deref())
    }

    /// Its named sessions.
    ///
    /// # Errors
    /// If its provider has no such thing.
    pub fn sessions(&self) -> Result<&dyn Sessions, Error> {
        let none = || {
            let provider = &self.provider;
            GuestError::Unsupported(format!(
                "provider `{provider}` has no named sessions; a `tmux` inside is one, and provider `local` has them"
            ))
        };
        Ok(self.guest.sessions().ok_or_else(none)?)
    }

    /// Keeps the secrets that this sandbox was given out of what is shown of it. Their values are read where they are in place, so that their
    /// sources need not be asked.
    pub async fn redactor(&self) -> Result<Arc<Redactor>, Error> {
        let uses = self.declared.as_ref().map(|declared| &declared.secrets);
        let Some(uses) = uses.filter(|uses| !uses.is_empty()) else {
            return Ok(Arc::new(Redactor::new([])));
        };
        let env = guest::environment(self.guest.as_ref()).await?;
        let mut values = BTreeMap::new();
        for (name, usage) in uses {
            let value = match usage {
                SecretUse::Env(variable) => env.get(variable).cloned(),
                // It is not in place.
                SecretUse::Bound { .. } => None,
                SecretUse::File(path) => {
                    let mut bytes = Vec::new();
                    let command = Command::new(["head", "-c", MAX_SECRET_BYTES, "--", path]);
                    let io = ExecIo { stdout: Output::Writer(&mut bytes), ..ExecIo::default() };
                    self.guest.exec(&command, io).await?;
                    String::from_utf8(bytes).ok()
                }
            };
            values.extend(value.map(|value| (name.as_str(), SecretValue::new(value))));
        }
        Ok(Arc::new(Redactor::new(values.iter().map(|(name, value)| (*name, value)))))
    }
}

impl Project<'_> {
    /// The running sandbox that `name` means: its name, its address, or its id at the provider.
    pub async fn sandbox(&self, name: &str) -> Result<Sandbox, Error> {
        let (name, provider, id, declared) = self.locate(name).await?;
        let guest = self.provider(&provider)?.guest(&id).await;
        let guest = guest.map_err(|source| Error::Provider { provider: provider.clone(), source })?;
        let image = guest.image().await?;
        Ok(Sandbox { name, provider, id, declared, image, guest })
    }

    /// The sessions of these sandboxes, or of all that run and may have some.
    pub async fn sessions(&self, names: &[String]) -> Result<Vec<(String, Vec<SessionInfo>)>, Error> {
        let every = names.is_empty();
        let names = match every {
            true => self.store.recorded(&self.name).await?.sandboxes.into_keys().collect(),
            false => names.to_vec(),
        };
        let mut found = Vec::new();
        for name in names {
            let sandbox = self.sandbox(&name).await?;
            let listed = match sandbox.sessions() {
                Ok(sessions) => sessions.list().await.map_err(Error::from),
                Err(_) if every => continue,
                Err(error) => Err(error),
            };
            match listed {
                Ok(listed) => found.push((sandbox.name, listed)),
                Err(error) => match self.explain(&sandbox, error).await {
                    Error::NotRunning { .. } if every => {}
                    error => return Err(error),
                },
            }
        }
        Ok(found)
    }

    /// The bytes on the disk that a sandbox takes by itself, where its provider tells.
    pub async fn disk_use(&self, provider: &str, id: &str) -> Result<Option<u64>, Error> {
        let used = self.provider(provider)?.disk_use(&SandboxId(id.to_owned())).await;
        used.map_err(|source| Error::Provider { provider: provider.to_owned(), source })
    }

    /// The sandbox's name, and what it tried to reach.
    pub async fn egress(&self, name: &str) -> Result<(String, Vec<EgressAttempt>), Error> {
        let (name, provider, id, _) = self.locate(name).await?;
        let unsupported = || ProviderError::Unsupported {
            message: "it keeps no account of what sandboxes try to reach".to_owned(),
        };
        let attempts = match self.provider(&provider)?.egress() {
            Some(log) => log.attempts(&id).await,
            None => Err(unsupported()),
        };
        Ok((name, attempts.map_err(|source| Error::Provider { provider, source })?))
    }

    /// Tries to get out of a running sandbox.
    pub async fn isolation(&self, name: &str) -> Result<Isolation, Error> {
        let sandbox = self.sandbox(name).await?;
        let recorded = self.store.recorded(&self.name).await?.sandboxes.remove(&sandbox.name);
        let (spec, generation) = match recorded {
            Some(record) => (Some(record.spec), record.generation),
            None => {
                let found = self.provider(&sandbox.provider)?.get(&sandbox.id).await;
                let found =
                    found.map_err(|source| Error::Provider { provider: sandbox.provider.clone(), source })?;
                (found.and_then(|found| found.spec), 0)
            }
        };
        // With nothing known about it, everything that is closed by default should be.
        let checks = guest::try_isolation(sandbox.guest.as_ref(), &spec.unwrap_or_default()).await;
        let checks = match checks {
            Ok(checks) => checks,
            Err(error) => return Err(self.explain(&sandbox, error.into()).await),
        };
        let names = |verdict| {
            let names =
                checks.iter().filter(|check| check.verdict == verdict).map(|check| check.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let (broken, unknown) = (names(IsolationVerdict::Broken), names(IsolationVerdict::Unknown));
        let (status, reason, message) = match (broken.is_empty(), unknown.is_empty()) {
            (false, _) => (ConditionStatus::False, "WayOut", format!("not held: {broken}")),
            (true, false) => (ConditionStatus::Unknown, "NotTried", format!("could not be tried: {unknown}")),
            (true, true) => (ConditionStatus::True, "AllHeld", String::new()),
        };
        let condition = Condition {
            kind: "PolicyVerified".to_owned(),
            status,
            reason: reason.to_owned(),
            message,
            last_transition: None,
            observed_generation: generation,
        };
        Ok(Isolation { sandbox: sandbox.name, condition, checks })
    }

    /// Name, provider, id and what is declared to be inside of the sandbox that `name` means.
    pub(super) async fn locate(
        &self,
        name: &str,
    ) -> Result<(String, String, SandboxId, Option<GuestSpec>), Error> {
        let recorded = self.store.recorded(&self.name).await?;
        let known = recorded
            .sandboxes
            .iter()
            .find(|(n, r)| *n == name || r.id.0 == name)
            .map(|(n, r)| (n.clone(), r.provider.clone(), r.id.clone(), r.guest.clone()));
        match known {
            Some(known) => Ok(known),
            // The record may be lost; the labels are not.
            None => {
                let (name, provider, found) = self.find(name, &recorded).await?;
                Ok((name, provider, found.id, None))
            }
        }
    }

    /// Explains why a sandbox cannot be reached, if it does not run.
    pub async fn explain(&self, sandbox: &Sandbox, error: Error) -> Error {
        let Ok(provider) = self.provider(&sandbox.provider) else { return error };
        let state = match provider.get(&sandbox.id).await {
            Ok(None) => "does not exist any more; `pocketenv apply` makes it again".to_owned(),
            Ok(Some(ObservedSandbox { state: SandboxState::Stopped { unclean: Some(why) }, .. })) => {
                format!("does not run: {why}; `pocketenv start {}` starts it", sandbox.name)
            }
            Ok(Some(ObservedSandbox { state: SandboxState::Stopped { unclean: None }, .. })) => {
                format!("is stopped; `pocketenv start {}` starts it", sandbox.name)
            }
            Ok(Some(ObservedSandbox { state: SandboxState::Paused, .. })) => {
                format!("is paused; `pocketenv resume {}` lets it go on", sandbox.name)
            }
            _ => return error,
        };
        Error::NotRunning { name: sandbox.name.clone(), state }
    }

    async fn find(
        &self,
        name: &str,
        recorded: &crate::model::Recorded,
    ) -> Result<(String, String, ObservedSandbox), Error> {
        let listings = self.listings(recorded).await;
        let mut names = Vec::new();
        for (provider, observation) in &listings {
            let listing = match observation {
                Observation::Complete(listing) => listing,
                Observation::Unavailable { reason } => {
                    return Err(Error::Provider {
                        provider: provider.clone(),
                        source: crate::provider::ProviderError::Transient {
                            message: reason.clone(),
                            source: None,
                        },
                    });
                }
            };
            for sandbox in listing.sandboxes.values() {
                let label = sandbox.labels.get(labels::ADDRESS).and_then(|a| a.strip_prefix("sandbox/"));
                let Some(found) = label else { continue };
                if found == name || sandbox.id.0 == name {
                    return Ok((found.to_owned(), provider.clone(), sandbox.clone()));
                }
                names.push(found.to_owned());
            }
        }
        if let Some(manifest) = &self.manifest {
            let declared = super::project::resolve(manifest, &BTreeMap::new())?.desired;
            if declared.sandboxes.contains_key(name) {
                let state = "does not exist yet; `pocketenv apply` makes it".to_owned();
                return Err(Error::NotRunning { name: name.to_owned(), state });
            }
            names.extend(declared.sandboxes.into_keys());
        }
        names.extend(recorded.sandboxes.keys().cloned());
        Err(Error::Unknown {
            kind: "sandbox",
            name: name.to_owned(),
            project: self.name.clone(),
            close: closest(name, &names),
        })
    }
}

/// The name that is most like what was typed, if any is like it at all.
pub(super) fn closest(typed: &str, names: &[String]) -> Option<String> {
    nearest(typed, names.iter().map(String::as_str)).map(str::to_owned)
}
