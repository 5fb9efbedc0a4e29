//! What a case works with: a provider, a project of its own, and calls that are tried again like those of `apply`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

use crate::model::with_causes;
use crate::model::{
    Address, Clock, IdSource, Identity, Image, ObservedProvider, ObservedSandbox, OwnerId, SandboxId,
    SandboxSpec, SandboxState, Timestamp, labels,
};
use crate::provider::{
    Capabilities, CapturedOutput, Command, Guest, GuestError, Owner, Provider, ProviderError, capture,
};
use crate::reconcile::Backoff;

/// How long what was made lives at most, should it be left: `gc` finds it by that.
const LIFE_MS: i64 = 2 * 3600 * 1000;
/// How much later than its settle time a listing may be seen to be right.
const GRACE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// What of a command's output is kept.
const OUTPUT: usize = 1 << 20;
/// What of text is shown as evidence.
const SHOWN: usize = 400;

/// Why a case did not pass.
#[derive(Debug)]
pub(super) enum Failure {
    /// The promise was broken: what was seen.
    Broken(String),
    /// There is nothing inside to try it with.
    Nothing(String),
}

impl From<ProviderError> for Failure {
    fn from(error: ProviderError) -> Self {
        Self::Broken(with_causes(&error))
    }
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        Self::Broken(with_causes(&error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(format!("on this side: {error}"))
    }
}

/// Fails with what was seen unless `holds`.
pub(super) fn check(holds: bool, seen: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::Broken(seen())) }
}

/// Text as evidence: bounded.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..SHOWN.min(bytes.len())).unwrap_or_default());
    let more = if bytes.len() > SHOWN { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("{text:?}{more}")
}

/// One provider on trial.
pub(super) struct Bench {
    provider: Arc<dyn Provider>,
    image: Image,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    project: String,
    owner: OwnerId,
    /// The sandbox that cases share which only need some inside.
    shared: OnceCell<SandboxId>,
    /// What was made and, as far as is known here, not deleted.
    made: Mutex<Vec<SandboxId>>,
    /// Volumes that may have been made, as project and name.
    volumes: Mutex<Vec<(String, String)>>,
}

impl Bench {
    pub(super) fn new(
        provider: Arc<dyn Provider>,
        image: Image,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        let fresh = ids.fresh().0;
        // The last digits: those before are the time.
        let tail: String = fresh.chars().filter(char::is_ascii_alphanumeric).collect();
        let tail = tail.get(tail.len().saturating_sub(10)..).unwrap_or_default().to_lowercase();
        Self {
            provider,
            image,
            clock,
            project: format!("conformance-{tail}"),
            owner: OwnerId(format!("conformance-{tail}")),
            ids,
            shared: OnceCell::new(),
            made: Mutex::default(),
            volumes: Mutex::default(),
        }
    }

    pub(super) fn provider(&self) -> &dyn Provider {
        &*self.provider
    }

    pub(super) fn sheet(&self) -> &Capabilities {
        self.provider.capabilities()
    }

    pub(super) fn project(&self) -> &str {
        &self.project
    }

    /// An identity with a fresh token for a sandbox of this name.
    pub(super) fn identity(&self, name: &str) -> Identity {
        Identity {
            project: self.project.clone(),
            address: Address::Sandbox(name.to_owned()),
            owner: self.owner.clone(),
            spec_hash: self.spec(name).hash(),
            generation: 1,
            intent: self.ids.fresh(),
            expires_at: Some(Timestamp(self.clock.now().0 + LIFE_MS)),
        }
    }

    /// The simplest spec.
    pub(super) fn spec(&self, name: &str) -> SandboxSpec {
        let hostname = if self.sheet().honours(&["hostname"], None) { name } else { "" };
        SandboxSpec { image: self.image.clone(), hostname: hostname.to_owned(), ..SandboxSpec::default() }
    }

    /// What a call answers, tried again as `apply` would.
    pub(super) async fn answer<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, ProviderError>
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        let mut tries = 0;
        loop {
            let error = match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let asked = match &error {
                ProviderError::Throttled { retry_after } => *retry_after,
                _ => None,
            };
            match Backoff::CALL.delay(tries, u32::MAX / 2, asked).filter(|_| error.is_retryable()) {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
            tries += 1;
        }
    }

    async fn call<T, F>(&self, what: &str, attempt: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        self.answer(attempt).await.doing(what)
    }

    /// Makes a sandbox from the simplest spec.
    pub(super) async fn create(&self, name: &str) -> Result<SandboxId, Failure> {
        self.create_as(&self.spec(name), &self.identity(name)).await
    }

    pub(super) async fn create_as(
        &self,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<SandboxId, Failure> {
        let id = self.call("create", || self.provider.create(spec, identity)).await?;
        self.remember(&id);
        Ok(id)
    }

    /// Has a sandbox removed at the end of the case.
    pub(super) fn remember(&self, id: &SandboxId) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains(id) {
            made.push(id.clone());
        }
    }

    /// Has a volume removed at the end.
    pub(super) fn remember_volume(&self, project: &str, name: &str) {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.push((project.to_owned(), name.to_owned()));
    }

    pub(super) async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, Failure> {
        self.call("get", || self.provider.get(id)).await
    }

    /// The sandbox, which has to be there.
    pub(super) async fn look(&self, id: &SandboxId) -> Result<ObservedSandbox, Failure> {
        let gone = || Failure::Broken(format!("get says that {id} does not exist"));
        self.get(id).await?.ok_or_else(gone)
    }

    /// The sandbox has to run by now.
    pub(super) async fn runs(&self, id: &SandboxId, when: &str) -> Result<(), Failure> {
        let state = self.look(id).await?.state;
        check(state == SandboxState::Running, || format!("{when} its state is {state:?}"))
    }

    pub(super) async fn start(&self, id: &SandboxId) -> Result<(), Failure> {
        self.call("start", || self.provider.start(id)).await
    }

    /// Pauses it; where this machine lacks what that needs, there is nothing to try it with.
    pub(super) async fn pause(&self, id: &SandboxId) -> Result<(), Failure> {
        match self.provider.pause(id).await {
            Err(ProviderError::Unsupported { message }) => Err(Failure::Nothing(message)),
            other => Ok(other?),
        }
    }

    pub(super) async fn stop(&self, id: &SandboxId) -> Result<(), Failure> {
        self.call("stop", || self.provider.stop(id)).await
    }

    pub(super) async fn delete(&self, id: &SandboxId) -> Result<(), Failure> {
        self.call("delete", || self.provider.delete(id)).await
    }

    pub(super) async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), Failure> {
        self.call("update", || self.provider.update(id, spec, identity)).await
    }

    pub(super) async fn list(&self, owner: &Owner) -> Result<ObservedProvider, Failure> {
        self.call("list", || self.provider.list(owner)).await
    }

    /// The listing of a project.
    pub(super) async fn listed(&self, project: &str) -> Result<ObservedProvider, Failure> {
        self.list(&Owner { project: Some(project.to_owned()), owner: None }).await
    }

    /// Ids that a listing shows for a token.
    pub(super) async fn with_intent(&self, identity: &Identity) -> Result<Vec<SandboxId>, Failure> {
        let listing = self.listed(&identity.project).await?;
        let carries =
            |s: &&ObservedSandbox| s.labels.get(labels::INTENT).is_some_and(|i| *i == identity.intent.0);
        Ok(listing.sandboxes.values().filter(carries).map(|s| s.id.clone()).collect())
    }

    /// Asks for a sandbox that may have been made already, as a create without an answer is settled.
    pub(super) async fn create_again(
        &self,
        provider: &dyn Provider,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<SandboxId, Failure> {
        let mut found = Vec::new();
        if !self.sheet().idempotent_create {
            // A second create would make a second one, so the first is waited for. A listing that fails says nothing of it.
            let deadline = Instant::now() + self.settle();
            found = self.with_intent(identity).await?;
            while found.is_empty() && Instant::now() < deadline {
                sleep(LOOK).await;
                found = self.with_intent(identity).await?;
            }
        }
        let id = match found.pop() {
            Some(id) => id,
            None => {
                let again = self.answer(|| provider.create(spec, identity)).await;
                again.doing("creating again with the same token")?
            }
        };
        self.remember(&id);
        Ok(id)
    }

    /// After the listing has settled, exactly one sandbox carries the token.
    pub(super) async fn one_of_a_kind(&self, identity: &Identity) -> Result<(), Failure> {
        sleep(Duration::from_millis(self.sheet().settle_ms)).await;
        let found = self
            .eventually(self.settle(), || async {
                let found = self.with_intent(identity).await?;
                Ok(if found.is_empty() { Err("the listing has none".to_owned()) } else { Ok(found) })
            })
            .await?;
        found.iter().for_each(|id| self.remember(id));
        check(found.len() == 1, || format!("{} sandboxes carry one token: {found:?}", found.len()))
    }

    /// After the listing has settled, no sandbox carries the token.
    pub(super) async fn none_was_made(&self, identity: &Identity) -> Result<(), Failure> {
        sleep(Duration::from_millis(self.sheet().settle_ms)).await;
        let found = self.with_intent(identity).await?;
        found.iter().for_each(|id| self.remember(id));
        check(found.is_empty(), || format!("there is {found:?} of a create that was refused"))
    }

    /// How long a listing may lag, with some grace.
    pub(super) fn settle(&self) -> Duration {
        Duration::from_millis(self.sheet().settle_ms) + GRACE
    }

    /// Waits until `look` finds something; after `limit` what it saw last is the evidence.
    pub(super) async fn eventually<T, F>(&self, limit: Duration, look: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Result<T, String>, Failure>>,
    {
        let deadline = Instant::now() + limit;
        loop {
            match look().await? {
                Ok(found) => return Ok(found),
                Err(seen) if Instant::now() >= deadline => {
                    return Err(Failure::Broken(format!("after {} s {seen}", limit.as_secs())));
                }
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// The inside of a sandbox.
    pub(super) async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, Failure> {
        self.call("reach the inside", || self.provider.guest(id)).await
    }

    /// The sandbox that cases share which only need some inside.
    pub(super) async fn shared(&self) -> Result<SandboxId, Failure> {
        let make = || async {
            let id = self
                .call("create", || async {
                    self.provider.create(&self.spec("shared"), &self.identity("shared")).await
                })
                .await?;
            Ok::<_, Failure>(id)
        };
        self.shared.get_or_try_init(make).await.cloned()
    }

    /// The inside of the sandbox that cases share.
    pub(super) async fn inside(&self) -> Result<Box<dyn Guest>, Failure> {
        self.guest(&self.shared().await?).await
    }

    /// What was made so far and, as far as is known here, not removed.
    pub(super) fn made(&self) -> Vec<SandboxId> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes what cases made and did not remove themselves; what fails is left to [`Self::sweep`].
    pub(super) async fn tidy(&self, made: Vec<SandboxId>) {
        for id in made {
            if self.provider.delete(&id).await.is_ok() {
                self.forget(&id);
            }
        }
    }

    fn forget(&self, id: &SandboxId) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != id);
    }

    /// Removes everything; what is left then, and why.
    pub(super) async fn sweep(&self) -> Vec<String> {
        if let Some(shared) = self.shared.get() {
            self.remember(shared);
        }
        // What was made without an answer is found by its labels, once a listing cannot lag any more.
        sleep(Duration::from_millis(self.sheet().settle_ms)).await;
        let (mut left, mut snapshots) = (Vec::new(), Vec::new());
        let wanted = Owner { project: None, owner: Some(self.owner.clone()) };
        match self.list(&wanted).await {
            Ok(listing) => {
                // The owner is of this run alone. A listing that does not filter is one of the defects that are looked for, so each label is
                // looked at again: nobody else's is ever touched.
                let ours = |found: &BTreeMap<String, String>| found.get(labels::OWNER) == Some(&self.owner.0);
                listing.sandboxes.values().filter(|s| ours(&s.labels)).for_each(|s| self.remember(&s.id));
                for (name, volume) in listing.volumes.iter().filter(|(_, v)| ours(&v.labels)) {
                    let project = volume.labels.get(labels::PROJECT).map_or(&*self.project, String::as_str);
                    self.remember_volume(project, name);
                }
                for found in listing.snapshots.values().map(|s| &s.labels).filter(|found| ours(found)) {
                    let said = |label| found.get(label).map_or("", String::as_str);
                    let name = said(labels::ADDRESS).strip_prefix("snapshot/").unwrap_or_default();
                    snapshots.push((said(labels::PROJECT).to_owned(), name.to_owned()));
                }
            }
            Err(Failure::Broken(why) | Failure::Nothing(why)) => left.push(format!("unknown: {why}")),
        }
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for id in made {
            if let Err(Failure::Broken(why) | Failure::Nothing(why)) = self.delete(&id).await {
                left.push(format!("sandbox {id}: {why}"));
            }
        }
        let volumes = std::mem::take(&mut *self.volumes.lock().unwrap_or_else(PoisonError::into_inner));
        for (project, name) in volumes {
            let Some(power) = self.provider.volumes() else { continue };
            if let Err(Failure::Broken(why) | Failure::Nothing(why)) =
                self.call("delete volume", || power.delete_volume(&project, &name)).await
            {
                left.push(format!("volume {name} of {project}: {why}"));
            }
        }
        for (project, name) in snapshots {
            let Some(power) = self.provider.snapshots() else { continue };
            if let Err(Failure::Broken(why) | Failure::Nothing(why)) =
                self.call("delete snapshot", || power.delete_snapshot(&project, &name)).await
            {
                left.push(format!("snapshot {name} of {project}: {why}"));
            }
        }
        left
    }
}

/// A constant script with arguments.
pub(super) fn script<'a>(text: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(["sh", "-c", text, "sh"]);
    command.argv.extend(arguments.into_iter().map(str::to_owned));
    command
}

/// Runs a command that takes no input.
pub(super) async fn output(guest: &dyn Guest, command: &Command) -> Result<CapturedOutput, Failure> {
    Ok(capture(guest, command, &[], OUTPUT).await?)
}

/// Runs a script that has to succeed; what it wrote, without white space at its end.
pub(super) async fn sh<'a>(
    guest: &dyn Guest,
    text: &str,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<String, Failure> {
    let output = output(guest, &script(text, arguments)).await?;
    check(output.status.success(), || {
        format!("`{text}` ended with {} and said {}", output.status, shown(&output.stderr))
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Adds what was attempted to a failure.
pub(super) trait Doing<T> {
    fn doing(self, what: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| match error.into() {
            Failure::Broken(seen) => Failure::Broken(format!("{what}: {seen}")),
            nothing @ Failure::Nothing(_) => nothing,
        })
    }
}

/// Labels of a volume of this run.
pub(super) fn volume_labels(bench: &Bench, name: &str) -> BTreeMap<String, String> {
    let identity = Identity { address: Address::Volume(name.to_owned()), ..bench.identity(name) };
    identity.to_labels()
}
