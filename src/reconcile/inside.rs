//! Carries out the steps that act inside a running sandbox: each is one call of the guest room.

use std::collections::BTreeMap;
use std::time::Duration;

use super::execute::StepError;
use crate::guest::{self, StepOutcome};
use crate::model::{FileContent, GuestSpec, SecretUse, ServiceSpec};
use crate::plan::{Action, Setup, SetupContent};
use crate::provider::{Guest, ImageDefaults};
use crate::secret::{SecretValue, Secrets};

/// How long a service may take until it runs and is healthy, if its health check does not give up before.
const START_LIMIT: Duration = Duration::from_secs(600);

/// The inside of one running sandbox.
pub(super) struct Inside<'a> {
    pub guest: &'a dyn Guest,
    /// What is declared, completed by what the image says.
    pub spec: &'a GuestSpec,
    pub image: &'a ImageDefaults,
    pub secrets: &'a Secrets,
    pub say: &'a (dyn Fn(&str) + Send + Sync),
}

impl Inside<'_> {
    pub(super) async fn carry_out(&self, action: &Action) -> Result<(), StepError> {
        match action {
            Action::Setup(setup) => self.setup(setup).await,
            Action::BringRepository { path, spec, digest } => {
                let token = match &spec.credentials {
                    Some(name) => Some(self.token(name)?.into()),
                    None => None,
                };
                let (env, user) = (self.env(None)?, self.spec.user.as_deref());
                let owner = self.image.owner(user);
                let access = guest::RepositoryAccess {
                    token: token.as_ref(),
                    env: &env,
                    user,
                    owner: owner.as_deref(),
                };
                Ok(guest::bring_repository(self.guest, path, spec, digest, access).await?)
            }
            Action::ForgetRepository { path } => Ok(guest::forget_repository(self.guest, path).await?),
            Action::RunPresetStep { preset, step } => {
                let env = self.env(None)?;
                let mut say = |text: &str| (self.say)(text);
                let user = self.spec.user.as_deref();
                match guest::run_step(self.guest, preset, step, &env, user, &mut say).await? {
                    StepOutcome::Ran | StepOutcome::Skipped => {}
                    StepOutcome::FailedAllowed(output) => say(&format!("failed, and may: {output}")),
                }
                Ok(())
            }
            Action::ForgetPresetSteps { ids } => {
                let ids: Vec<String> = ids.iter().cloned().collect();
                Ok(guest::forget_steps(self.guest, &ids).await?)
            }
            Action::StartService { name, spec, digest } => {
                let env = self.env(Some(spec))?;
                let spec = self.image.complete_service(spec);
                Ok(guest::start_service(self.guest, name, &spec, digest, &env, self.defaults()).await?)
            }
            Action::StopService { name } => Ok(guest::stop_service(self.guest, name).await?),
            Action::RemoveService { name } => Ok(guest::remove_service(self.guest, name).await?),
            Action::WaitService { name, .. } => {
                let missing = || StepError::Plan(format!("service `{name}` is not declared"));
                let spec = self.spec.services.get(name).ok_or_else(missing)?;
                let (env, defaults) = (self.env(None)?, self.defaults());
                Ok(guest::wait_healthy(self.guest, name, spec, &env, defaults, START_LIMIT).await?)
            }
            other => Err(StepError::Plan(format!("`{}` is not done inside a sandbox", other.verb()))),
        }
    }

    fn defaults(&self) -> guest::ServiceDefaults<'_> {
        guest::ServiceDefaults {
            user: self.spec.user.as_deref(),
            working_dir: self.spec.working_dir.as_deref(),
        }
    }

    fn secret(&self, name: &str) -> Result<&SecretValue, StepError> {
        let missing = || StepError::Plan(format!("the value of secret `{name}` is not known"));
        self.secrets.get(name).ok_or_else(missing)
    }

    /// What a repository is asked for with: of a secret that is bound to hosts only what stands for it.
    fn token(&self, name: &str) -> Result<&str, StepError> {
        match self.spec.secrets.get(name) {
            Some(SecretUse::Bound { placeholder, .. }) => Ok(placeholder),
            _ => Ok(self.secret(name)?.expose()),
        }
    }

    /// The environment that a process sees: the sandbox's, then its secrets, then the service's own.
    fn env(&self, service: Option<&ServiceSpec>) -> Result<BTreeMap<String, String>, StepError> {
        let mut env = self.spec.env.clone();
        if let Some(service) = service {
            env.extend(service.env.clone());
        }
        for (name, usage) in &self.spec.secrets {
            match usage {
                SecretUse::Env(variable) => {
                    env.insert(variable.clone(), self.secret(name)?.expose().to_owned());
                }
                SecretUse::Bound { variable, placeholder } => {
                    env.insert(variable.clone(), placeholder.clone());
                }
                SecretUse::File(_) => {}
            }
        }
        Ok(env)
    }

    async fn setup(&self, setup: &Setup) -> Result<(), StepError> {
        let env = match &setup.env {
            None => None,
            Some(digest) => {
                let values = self.env(None)?.into_iter().map(|(name, value)| (name, value.into()));
                Some(guest::EnvBundle { digest: digest.clone(), values: values.collect() })
            }
        };
        let mut files = Vec::with_capacity(setup.files.len());
        for (path, file) in &setup.files {
            let (content, mode) = match &file.what {
                SetupContent::Secret(name) => {
                    (guest::Content::Secret(self.secret(name)?.expose().into()), Some(0o400))
                }
                SetupContent::File(desired) => {
                    let content = match &desired.content {
                        FileContent::Inline(text) => guest::Content::Inline(text.clone().into_bytes()),
                        FileContent::Source { path, sha256, mode } => guest::Content::HostFile {
                            path: path.clone(),
                            sha256: sha256.clone(),
                            mode: *mode,
                        },
                        FileContent::Tree { path, sha256, ignore } => guest::Content::HostTree {
                            path: path.clone(),
                            sha256: sha256.clone(),
                            ignore: ignore.clone(),
                        },
                    };
                    (content, desired.mode)
                }
            };
            let owner = self.image.owner(file.owner.as_deref());
            if let (Some(named), None) = (self.spec.owners.get(path), &owner) {
                (self.say)(&format!(
                    "{path} does not belong to {named} alone: there is a single id here, since this user has no range in /etc/subuid, so that every user inside owns every file\n"
                ));
            }
            let (path, digest) = (path.clone(), file.digest.clone());
            files.push(guest::FileToWrite { path, digest, mode, owner, content });
        }
        let remove = setup.remove.iter().cloned().collect();
        let bundle = guest::Bundle { env, files, remove };
        Ok(guest::write_bundle(self.guest, &bundle).await?)
    }
}
