//! Looks at what exists: one listing per provider, a direct question where a listing may lag, and one look into each running sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;

use super::Backoff;
use crate::guest;
use crate::model::{
    Desired, GuestSpec, Observation, ObservedGuest, ObservedProvider, ObservedSandbox, Recorded,
    RecordedSandbox, SandboxId, SandboxState, labels, with_causes,
};
use crate::provider::{Owner, Provider, ProviderError, Registry};

/// How long one listing may take before its provider counts as unavailable.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one look into a sandbox may take.
const GUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A look that fails in passing is repeated: one lost answer must not hold up everything that depends on it.
const AGAIN: Backoff =
    Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2), retries: 5 };
/// How many sandboxes are looked into at once.
const GUEST_CONCURRENCY: usize = 32;

/// What the providers hold of a project.
pub type Listings = BTreeMap<String, Observation<ObservedProvider>>;

/// Asks the named providers, and those that the record mentions, what they hold of the project. Never fails: what could not be found out is
/// part of the answer.
pub async fn providers(
    registry: &Registry,
    project: &str,
    names: &BTreeSet<String>,
    recorded: &Recorded,
) -> Listings {
    let mut names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    names.extend(recorded.providers());
    let listings = names.into_iter().map(|name| async move {
        let observation = match registry.get(name) {
            None => unavailable("this build does not have the provider, or it was not opened"),
            Some(provider) => observe_provider(name, provider.as_ref(), project, recorded).await,
        };
        (name.to_owned(), observation)
    });
    futures::future::join_all(listings).await.into_iter().collect()
}

async fn observe_provider(
    name: &str,
    provider: &dyn Provider,
    project: &str,
    recorded: &Recorded,
) -> Observation<ObservedProvider> {
    let owner = Owner { project: Some(project.to_owned()), owner: None };
    let list = again(provider_pause, || provider.list(&owner));
    let mut listing = match tokio::time::timeout(LIST_TIMEOUT, list).await {
        Ok(Ok(listing)) => listing,
        Ok(Err(error)) => return unavailable(with_causes(&error)),
        Err(_) => return unavailable(format!("its listing took more than {} s", LIST_TIMEOUT.as_secs())),
    };
    // A listing that lags is believed where it says what we remember. Anything else is asked for by id: what it does not show, what it shows and
    // we do not know, which may be gone already, and what was brought to something else since.
    let known: BTreeMap<&SandboxId, &RecordedSandbox> =
        recorded.sandboxes.values().filter(|r| r.provider == name).map(|r| (&r.id, r)).collect();
    let lags = provider.capabilities().settle_ms > 0;
    let shown = listing.sandboxes.values().filter(|shown| lags && !is_as_left(shown, known.get(&shown.id)));
    let unseen = known.keys().copied().filter(|id| !listing.sandboxes.contains_key(id));
    let doubted: Vec<SandboxId> = shown.map(|s| &s.id).chain(unseen).cloned().collect();
    let concurrency = provider.capabilities().max_concurrency.max(1);
    let answers: Vec<(&SandboxId, Result<Option<ObservedSandbox>, ProviderError>)> = stream::iter(&doubted)
        .map(|id| async move { (id, again(provider_pause, || provider.get(id)).await) })
        .buffer_unordered(concurrency)
        .collect()
        .await;
    for (id, answer) in answers {
        match answer {
            // An id that lives on with another owner's labels is not ours any more.
            Ok(Some(found)) if found.labels.get(labels::PROJECT).is_some_and(|p| p == project) => {
                listing.sandboxes.insert(found.id.clone(), found);
            }
            Ok(_) | Err(ProviderError::NotFound { .. }) => drop(listing.sandboxes.remove(id)),
            Err(error) => return unavailable(with_causes(&error)),
        }
    }
    Observation::Complete(listing)
}

/// Whether a listing shows a sandbox as we left it.
fn is_as_left(shown: &ObservedSandbox, left: Option<&&RecordedSandbox>) -> bool {
    left.is_some_and(|left| {
        let generation = shown.labels.get(labels::GENERATION).and_then(|text| text.parse().ok());
        shown.state == left.state_left() && generation == Some(left.generation)
    })
}

/// Looks into every running sandbox of the project.
pub async fn guests(
    registry: &Registry,
    desired: &Desired,
    providers: &Listings,
) -> BTreeMap<SandboxId, Observation<ObservedGuest>> {
    let nothing = GuestSpec::default();
    let mut wanted = Vec::new();
    for (name, observation) in providers {
        let (Some(listing), Some(provider)) = (observation.complete(), registry.get(name)) else { continue };
        for sandbox in listing.sandboxes.values().filter(|s| s.state == SandboxState::Running) {
            let label = sandbox.labels.get(labels::ADDRESS).and_then(|a| a.strip_prefix("sandbox/"));
            // One that is not declared any more has services that want to end in their own way before it goes.
            let declared = label.and_then(|n| desired.sandboxes.get(n)).map_or(&nothing, |d| &d.guest);
            wanted.push((provider, sandbox.id.clone(), declared));
        }
    }
    stream::iter(wanted)
        .map(|(provider, id, declared)| async move {
            let observation = observe_guest(provider.as_ref(), &id, declared).await;
            (id, observation)
        })
        .buffer_unordered(GUEST_CONCURRENCY)
        .collect()
        .await
}

async fn observe_guest(
    provider: &dyn Provider,
    id: &SandboxId,
    declared: &GuestSpec,
) -> Observation<ObservedGuest> {
    let look = async {
        let inside = again(provider_pause, || provider.guest(id)).await.map_err(|e| with_causes(&e))?;
        let image = inside.image().await.map_err(|e| with_causes(&e))?;
        let defaults = guest::ServiceDefaults {
            user: declared.user.as_deref().or(image.user.as_deref()),
            working_dir: declared.working_dir.as_deref(),
        };
        let look = || guest::observe(inside.as_ref(), &declared.services, defaults);
        again(|error| error.is_retryable().then_some(None), look).await.map_err(|e| with_causes(&e))
    };
    match tokio::time::timeout(GUEST_TIMEOUT, look).await {
        Ok(Ok(guest)) => Observation::Complete(guest),
        Ok(Err(reason)) => Observation::Unavailable { reason },
        Err(_) => unavailable(format!("it did not answer within {} s", GUEST_TIMEOUT.as_secs())),
    }
}

/// Tries until it succeeds, fails for good or has been tried often enough. `pause` says whether another try may help, and the pause that was asked for.
async fn again<T, E, F: Future<Output = Result<T, E>>>(
    pause: impl Fn(&E) -> Option<Option<Duration>>,
    attempt: impl Fn() -> F,
) -> Result<T, E> {
    let mut tries = 0;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        // Looks are few and spread by what they wait for, so that the middle of the jitter does for all.
        match pause(&error).and_then(|asked| AGAIN.delay(tries, u32::MAX / 2, asked)) {
            Some(delay) => tokio::time::sleep(delay).await,
            None => return Err(error),
        }
        tries += 1;
    }
}

fn provider_pause(error: &ProviderError) -> Option<Option<Duration>> {
    match error {
        ProviderError::Throttled { retry_after } => Some(*retry_after),
        error => error.is_retryable().then_some(None),
    }
}

fn unavailable<T>(reason: impl Into<String>) -> Observation<T> {
    Observation::Unavailable { reason: reason.into() }
}
