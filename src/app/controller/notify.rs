//! Telling others how projects fare: a signed webhook, or the status of a commit at its forge.
//!
//! What is to be told follows from the state of a project alone, and what was told last is in the store: news that could not be delivered is
//! found again by the next look, after a restart too, and nothing is told twice. A receiver that does not answer costs nobody else anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hmac::{Hmac, Mac};
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

use super::config::{check_name, check_secret};
use super::{Controller, Key, ProjectState};
use crate::model::with_causes;
use crate::model::{Health, Sync, sha256_hex};
use crate::provider::ProviderError;
use crate::provider::http::Http;
use crate::reconcile::Backoff;
use crate::secret::{self, Redactor, SecretSource, SecretValue, Vault};
use crate::store::Notified;

use super::status::{NotifyStatus, Phase};

/// How long one delivery may take.
const DELIVERY: Duration = Duration::from_secs(15);
/// The tries of one piece of news: 2 s, 4 s, … 5 min, half an hour in all.
pub(super) const TRIES: Backoff =
    Backoff { initial: Duration::from_secs(2), max: Duration::from_secs(300), retries: 12 };
/// The longest text that a commit status may have at every forge.
const MAX_DESCRIPTION: usize = 140;
/// The longest message of a webhook.
const MAX_MESSAGE: usize = 4000;

/// Somebody who is told how the projects of a source fare.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Its name.
    pub name: String,
    /// Any HTTP server. Either this or `commit_status`.
    pub webhook: Option<NotifyWebhook>,
    /// The commit at its forge.
    pub commit_status: Option<CommitStatus>,
    /// Of which states it is told; of all if left out.
    pub states: Option<Vec<NewsState>>,
}

/// An HTTP server that is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifyWebhook {
    /// Where to, as text or, where the URL itself is a secret, as `{ env: NAME }` or `{ file: PATH }`.
    pub url: NotifyUrl,
    /// What the body is signed with, by HMAC-SHA256.
    pub secret: Option<SecretSource>,
}

/// A URL as text, or from where a secret comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a URL, `{ env: NAME }` or `{ file: PATH }`")]
pub enum NotifyUrl {
    /// As text.
    Text(String),
    /// From a secret.
    Secret(SecretSource),
}

/// A forge whose commits get a status.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitStatus {
    /// Which API it speaks.
    pub forge: Forge,
    /// Where its API is; the public one of GitHub or GitLab if left out: `https://git.example.org/api/v1`.
    pub api: Option<String>,
    /// The repository there, as `owner/name`.
    pub repository: String,
    /// The token, with the right to set statuses of commits.
    pub token: SecretSource,
    /// What the status is called, before the name of the source and the directory of the project.
    #[serde(default = "context")]
    pub context: String,
}

/// The API of a forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forge {
    /// GitHub, also on premises.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea, and Forgejo.
    #[serde(alias = "forgejo")]
    Gitea,
}

/// How a project fares, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NewsState {
    /// All of the revision is there and healthy.
    Applied,
    /// It is there and comes up.
    Progressing,
    /// It is there and not healthy.
    Degraded,
    /// What exists was changed and is not healed.
    Drifted,
    /// Something is in the way.
    Waiting,
    /// The revision cannot be used.
    Invalid,
    /// The last run failed and is tried again.
    Failed,
    /// Changed by nobody, as the source says.
    Suspended,
    /// The source does not have the project any more.
    Removed,
}

impl NewsState {
    fn word(self) -> &'static str {
        match self {
            Self::Applied => "Applied",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::Drifted => "Drifted",
            Self::Waiting => "Waiting",
            Self::Invalid => "Invalid",
            Self::Failed => "Failed",
            Self::Suspended => "Suspended",
            Self::Removed => "Removed",
        }
    }

    /// As a forge says it of a commit; `None` for what says nothing about the commit.
    fn of_commit(self, forge: Forge) -> Option<&'static str> {
        let gitlab = forge == Forge::Gitlab;
        Some(match self {
            Self::Applied => "success",
            Self::Progressing | Self::Waiting | Self::Suspended => "pending",
            Self::Degraded | Self::Invalid => {
                if gitlab {
                    "failed"
                } else {
                    "failure"
                }
            }
            Self::Failed => {
                if gitlab {
                    "failed"
                } else {
                    "error"
                }
            }
            Self::Drifted | Self::Removed => return None,
        })
    }
}

/// What there is to tell of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub revision: String,
    pub state: NewsState,
    pub message: String,
}

impl News {
    /// What there is to tell of a project that was just worked on; `None` if it was not looked at yet.
    pub fn of(project: &ProjectState) -> Option<Self> {
        let status = &project.status;
        let newest = project.newest.as_ref().map(|(revision, _)| revision.clone());
        let good = project.good.as_ref().map(|good| good.revision.clone());
        let state = match status.phase {
            Phase::Pending => return None,
            Phase::Invalid => NewsState::Invalid,
            Phase::Failed => NewsState::Failed,
            Phase::Waiting => NewsState::Waiting,
            Phase::Suspended => NewsState::Suspended,
            Phase::Removed => NewsState::Removed,
            Phase::Applied | Phase::Watching => match (status.health, status.sync) {
                (Health::Degraded | Health::Missing | Health::Unknown, _) => NewsState::Degraded,
                (Health::Progressing, _) => NewsState::Progressing,
                (_, Sync::Synced) => NewsState::Applied,
                _ => NewsState::Drifted,
            },
        };
        // Only what is wrong with the newest revision is said of that; all else concerns the one in force.
        let revision = if state == NewsState::Invalid { newest.or(good) } else { good.or(newest) };
        Some(Self { revision: revision.unwrap_or_default(), state, message: status.message.clone() })
    }

    fn is_told_by(&self, told: &Told) -> bool {
        told.revision == self.revision && told.state == self.state.word()
    }
}

/// What a receiver was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    revision: String,
    state: String,
}

/// A project, and a receiver of its source by number.
pub(super) type NoteKey = (Key, usize);

/// What is known about telling.
#[derive(Default)]
pub(super) struct Notes {
    /// What each receiver was told last.
    told: BTreeMap<NoteKey, Told>,
    /// What could not be told, and is not tried any more until there is other news or a restart.
    given_up: BTreeMap<NoteKey, Told>,
    /// Why the last try failed, by source and receiver.
    failing: BTreeMap<(String, usize), String>,
}

/// How telling went.
pub(super) enum Delivery {
    /// There is nothing more to tell.
    Told,
    /// It failed; another try may help after a pause, or after this one.
    Again(Option<Duration>),
    /// It failed for good.
    GivenUp,
}

impl Notify {
    pub(super) fn check(&mut self, base: &Path, git: bool) -> Result<(), String> {
        check_name(&self.name)?;
        let name = &self.name;
        match (&mut self.webhook, &mut self.commit_status) {
            (Some(webhook), None) => {
                match &mut webhook.url {
                    NotifyUrl::Text(url) => check_url(url)?,
                    NotifyUrl::Secret(secret) => check_secret(base, secret, "the URL of a webhook")?,
                }
                if let Some(secret) = &mut webhook.secret {
                    check_secret(base, secret, "the secret of a webhook")?;
                }
                Ok(())
            }
            (None, Some(status)) => {
                if !git {
                    return Err(format!("`notify` `{name}`: `commit_status` needs a git source"));
                }
                if let Some(api) = &status.api {
                    check_url(api)?;
                } else if status.forge == Forge::Gitea {
                    return Err(format!("`notify` `{name}`: say where the `api` is"));
                }
                let parts: Vec<&str> = status.repository.split('/').collect();
                let plain = |part: &&str| !part.is_empty() && !matches!(*part, "." | "..");
                let nested = status.forge == Forge::Gitlab;
                if !parts.iter().all(plain) || parts.len() < 2 || (parts.len() > 2 && !nested) {
                    return Err(format!("`notify` `{name}`: `repository` is not `owner/name`"));
                }
                check_secret(base, &mut status.token, "the token of a forge")
            }
            _ => Err(format!("`notify` `{name}`: expected exactly one of `webhook` and `commit_status`")),
        }
    }

    /// Whether this receiver is told of such news.
    fn wants(&self, news: &News) -> bool {
        let state = self.states.as_ref().is_none_or(|states| states.contains(&news.state));
        let commit = self.commit_status.as_ref();
        state && commit.is_none_or(|c| news.state.of_commit(c.forge).is_some() && !news.revision.is_empty())
    }
}

impl Controller {
    /// What was told until now, from the store.
    pub(super) fn remember_told(&self, told: Vec<Notified>) {
        let mut state = self.state();
        for record in told {
            let Some(source) = self.source(&record.source) else { continue };
            let Some(target) = source.notify.iter().position(|n| n.name == record.target) else { continue };
            let told = Told { revision: record.revision, state: record.state };
            state.notes.told.insert(((record.source, record.path), target), told);
        }
    }

    /// The receivers that do not know yet how a project fares, with the number of the news.
    pub(super) fn untold(&self, key: &Key) -> Vec<(NoteKey, u64)> {
        let Some(source) = self.source(&key.0) else { return Vec::new() };
        let number = self.state().projects.get(key).map_or(u64::MAX, |project| project.news_number);
        let targets = (0..source.notify.len()).map(|target| (key.clone(), target));
        targets.filter(|note| self.news_for(note).is_some()).map(|note| (note, number)).collect()
    }

    /// Projects that somebody was told of and that are no more.
    pub(super) fn vanished(&self, source: &str) -> Vec<Key> {
        let state = self.state();
        let keys = state.notes.told.keys().map(|(key, _)| key);
        let mut gone: Vec<Key> =
            keys.filter(|key| key.0 == source && !state.projects.contains_key(*key)).cloned().collect();
        gone.dedup();
        gone
    }

    /// What a receiver is to be told and was not.
    fn news_for(&self, note: &NoteKey) -> Option<News> {
        let (key, target) = note;
        let receiver = self.source(&key.0)?.notify.get(*target)?;
        let state = self.state();
        let told = state.notes.told.get(note);
        let news = match state.projects.get(key) {
            Some(project) => project.news.clone()?,
            // It is no more. Whoever was told that it is has to know; a source that cannot be looked at says nothing about it.
            None => {
                let known = state.sources.get(&key.0).filter(|s| s.looked && s.message.is_empty())?;
                told?;
                News {
                    revision: known.revision.clone().unwrap_or_default(),
                    state: NewsState::Removed,
                    message: "the source does not have this project any more, and it was destroyed"
                        .to_owned(),
                }
            }
        };
        let known = told.is_some_and(|told| news.is_told_by(told));
        let given_up = state.notes.given_up.get(note).is_some_and(|told| news.is_told_by(told));
        (!known && !given_up && (receiver.wants(&news) || !state.projects.contains_key(key))).then_some(news)
    }

    /// Tells one receiver of one project, if there is something that it does not know.
    pub(super) async fn tell(&self, note: &NoteKey, tries: u32) -> Delivery {
        let ((source_name, path), target) = note;
        let Some(news) = self.news_for(note) else { return Delivery::Told };
        let receiver = self.source(source_name).and_then(|source| source.notify.get(*target));
        let Some(receiver) = receiver else { return Delivery::Told };
        let failed = match self.deliver(note, receiver, &news).await {
            Ok(()) => {
                self.metrics.notified("delivered");
                let mut state = self.state();
                state.notes.failing.remove(&(source_name.clone(), *target));
                state.notes.given_up.remove(note);
                let told = Told { revision: news.revision, state: news.state.word().to_owned() };
                if state.projects.contains_key(&note.0) {
                    state.notes.told.insert(note.clone(), told);
                } else {
                    state.notes.told.remove(note);
                }
                return Delivery::Told;
            }
            Err(failed) => failed,
        };
        self.metrics.notified("failed");
        tracing::warn!(
            source = source_name,
            path,
            receiver = receiver.name,
            message = failed.message,
            "not told"
        );
        let mut state = self.state();
        state.notes.failing.insert((source_name.clone(), *target), failed.message);
        if failed.may_help && tries < TRIES.retries {
            return Delivery::Again(failed.retry_after);
        }
        self.metrics.notified("given_up");
        let told = Told { revision: news.revision, state: news.state.word().to_owned() };
        state.notes.given_up.insert(note.clone(), told);
        Delivery::GivenUp
    }

    async fn deliver(&self, note: &NoteKey, receiver: &Notify, news: &News) -> Result<(), Undelivered> {
        let ((source, path), _) = note;
        let store = self.app.store().await.map_err(|error| Undelivered::passing(with_causes(&error)))?;
        let stored = store.last_notified(source, path, &receiver.name).await;
        let stored = stored.map_err(|error| Undelivered::passing(with_causes(&error)))?;
        let exists = self.state().projects.contains_key(&note.0);
        // Another controller on this store may have been faster.
        if let Some(record) = stored.filter(|_| exists)
            && record.revision == news.revision
            && record.state == news.state.word()
        {
            return Ok(());
        }
        // One that is no more is told only to those who want to know; the record goes in any case.
        if receiver.wants(news) {
            match (&receiver.webhook, &receiver.commit_status) {
                (Some(webhook), _) => self.post(note, receiver, webhook, news).await?,
                (None, Some(status)) => self.mark(note, receiver, status, news).await?,
                (None, None) => {}
            }
        }
        let kept = if exists {
            let told = Notified {
                source: source.clone(),
                path: path.clone(),
                target: receiver.name.clone(),
                revision: news.revision.clone(),
                state: news.state.word().to_owned(),
                at: self.now(),
            };
            store.set_notified(told).await
        } else {
            store.forget_notified(source, path, &receiver.name).await
        };
        kept.map_err(|error| Undelivered::passing(with_causes(&error)))
    }

    async fn post(
        &self,
        note: &NoteKey,
        receiver: &Notify,
        webhook: &NotifyWebhook,
        news: &News,
    ) -> Result<(), Undelivered> {
        let ((source, path), _) = note;
        let (url, secret_url) = match &webhook.url {
            NotifyUrl::Text(url) => (SecretValue::new(url.as_str()), None),
            NotifyUrl::Secret(from) => {
                let value = self.value(from).await?;
                (value.clone(), Some(value))
            }
        };
        let signed_with = match &webhook.secret {
            Some(from) => Some(self.value(from).await?),
            None => None,
        };
        let body = self.body(source, path, news);
        let id = sha256_hex(
            [source, path, &receiver.name, &news.revision, news.state.word()].join("\n").as_bytes(),
        );
        let url = check_url(url.expose()).and_then(|()| Url::parse(url.expose()).map_err(|e| e.to_string()));
        let mut url = url.map_err(Undelivered::final_one)?;
        let query: Vec<(String, String)> =
            url.query_pairs().map(|(n, v)| (n.into_owned(), v.into_owned())).collect();
        url.set_query(None);
        url.set_fragment(None);
        let slash = url.path().ends_with('/');
        let http = Http::new(url.as_str(), said).map_err(Undelivered::by_provider)?;
        let pairs: Vec<(&str, &str)> = query.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut call = http.call(Method::POST, if slash { &[""] } else { &[] });
        if !pairs.is_empty() {
            call = call.query(&pairs);
        }
        call = call
            .timeout(DELIVERY)
            .header("content-type", "application/json")
            .header("x-pocketenv-event", news.state.word())
            .header("x-pocketenv-delivery", &id);
        if let Some(secret) = &signed_with {
            call = call.header("x-pocketenv-signature-256", &format!("sha256={}", signature(secret, &body)));
        }
        let done = call.body(body).done(&format!("tell `{}`", receiver.name)).await;
        let known: Vec<&SecretValue> = signed_with.iter().chain(&secret_url).collect();
        done.map_err(|error| Undelivered::by_provider(error).without(&known))
    }

    /// What a webhook gets.
    fn body(&self, source: &str, path: &str, news: &News) -> Vec<u8> {
        let state = self.state();
        let status = state.projects.get(&(source.to_owned(), path.to_owned())).map(|p| &p.status);
        json!({
            "format_version": "1.0",
            "state": news.state,
            "source": source,
            "path": path,
            "project": status.and_then(|s| s.project.as_ref()),
            "revision": news.revision,
            "message": text(&news.message, MAX_MESSAGE),
            "sync": status.map(|s| s.sync),
            "health": status.map(|s| s.health),
            "diagnostics": status.map(|s| &s.diagnostics),
            "sandboxes": status.map(|s| &s.sandboxes),
            "at": self.now(),
        })
        .to_string()
        .into_bytes()
    }

    async fn mark(
        &self,
        note: &NoteKey,
        receiver: &Notify,
        status: &CommitStatus,
        news: &News,
    ) -> Result<(), Undelivered> {
        let ((source, path), _) = note;
        let Some(state) = news.state.of_commit(status.forge) else { return Ok(()) };
        let token = self.value(&status.token).await?;
        let api = match (&status.api, status.forge) {
            (Some(api), _) => api.as_str(),
            (None, Forge::Gitlab) => "https://gitlab.com/api/v4",
            (None, _) => "https://api.github.com",
        };
        let (header, value) = match status.forge {
            Forge::Github => ("authorization", SecretValue::new(format!("Bearer {}", token.expose()))),
            Forge::Gitea => ("authorization", SecretValue::new(format!("token {}", token.expose()))),
            Forge::Gitlab => ("private-token", token.clone()),
        };
        let http = Http::new(api, said).and_then(|http| http.secret_header(header, value.expose()));
        let http = http.map_err(Undelivered::by_provider)?;
        let context = match path.as_str() {
            "." => format!("{}/{source}", status.context),
            path => format!("{}/{source}/{path}", status.context),
        };
        let said = if news.message.is_empty() {
            news.state.word().to_owned()
        } else {
            format!("{}: {}", news.state.word(), news.message)
        };
        let description = text(&said, MAX_DESCRIPTION);
        let call = match (status.forge, status.repository.split_once('/')) {
            // The whole path is one segment there.
            (Forge::Gitlab, _) => http
                .call(Method::POST, &["projects", &status.repository, "statuses", &news.revision])
                .json(&json!({ "state": state, "name": context, "description": description })),
            (_, Some((owner, name))) => http
                .call(Method::POST, &["repos", owner, name, "statuses", &news.revision])
                .json(&json!({ "state": state, "context": context, "description": description })),
            (_, None) => return Ok(()),
        };
        let call = match status.forge {
            Forge::Github => call
                .header("accept", "application/vnd.github+json")
                .header("x-github-api-version", "2022-11-28"),
            _ => call,
        };
        match call.timeout(DELIVERY).done(&format!("set the commit status for `{}`", receiver.name)).await {
            // GitLab refuses to say again what it says already.
            Err(ProviderError::Invalid { message })
                if status.forge == Forge::Gitlab
                    && state == "pending"
                    && message.contains("Cannot transition status")
                    && message.contains("from :pending") =>
            {
                Ok(())
            }
            done => done.map_err(|error| Undelivered::by_provider(error).without(&[&token])),
        }
    }

    /// A secret of the controller's own, as it is now: tokens are renewed in place.
    async fn value(&self, from: &SecretSource) -> Result<SecretValue, Undelivered> {
        // Tokens of the controller itself come from variables and files only.
        let resolved = secret::resolve(from, &self.app.environment().vars, &Vault::default()).await;
        Ok(resolved.map_err(|error| Undelivered::passing(with_causes(&error)))?.value)
    }

    /// How telling goes, by receiver of a source.
    pub(super) fn notify_status(&self, state: &super::State, source: &super::Source) -> Vec<NotifyStatus> {
        let failing = |n: usize| state.notes.failing.get(&(source.name.clone(), n)).cloned();
        let given_up = |target: usize| {
            state.notes.given_up.keys().filter(|((s, _), n)| (s, *n) == (&source.name, target)).count() as u64
        };
        let all = source.notify.iter().enumerate();
        all.map(|(n, notify)| NotifyStatus {
            name: notify.name.clone(),
            message: failing(n).unwrap_or_default(),
            given_up: given_up(n),
        })
        .collect()
    }
}

/// Why news was not delivered.
struct Undelivered {
    message: String,
    may_help: bool,
    retry_after: Option<Duration>,
}

impl Undelivered {
    fn passing(message: String) -> Self {
        Self { message, may_help: true, retry_after: None }
    }

    fn final_one(message: String) -> Self {
        Self { message, may_help: false, retry_after: None }
    }

    /// A token may be renewed and a right be given; what the receiver does not understand stays so.
    fn by_provider(error: ProviderError) -> Self {
        let may_help = error.is_retryable() || matches!(error, ProviderError::Unauthorised { .. });
        let retry_after = match &error {
            ProviderError::Throttled { retry_after } => *retry_after,
            _ => None,
        };
        Self { message: with_causes(&error), may_help, retry_after }
    }

    /// Nothing that a receiver sends back may show what only it and we know.
    fn without(mut self, secrets: &[&SecretValue]) -> Self {
        self.message =
            Redactor::new(secrets.iter().map(|value| ("credential", *value))).redact(&self.message);
        self
    }
}

/// The sentence for people in the answer of a forge.
fn said(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = answer.get("message").or_else(|| answer.get("error"))?;
    Some(message.as_str().map_or_else(|| message.to_string(), str::to_owned))
}

/// One line of text, not longer than `limit` characters.
fn text(said: &str, limit: usize) -> String {
    let line: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= limit {
        return line;
    }
    let mut short: String = line.chars().take(limit - 1).collect();
    short.push('…');
    short
}

/// HMAC-SHA256 in lowercase hex digits.
fn signature(secret: &SecretValue, body: &[u8]) -> String {
    // Provably impossible: HMAC takes a key of any length.
    #[allow(clippy::expect_used)]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// Without the URL, which may be a secret.
fn check_url(url: &str) -> Result<(), String> {
    let parsed = Url::parse(url).map_err(|error| format!("a URL to tell is none: {error}"))?;
    let plain = parsed.username().is_empty() && parsed.password().is_none();
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() || !plain {
        return Err("a URL to tell is not `http://` or `https://` without a name and password".to_owned());
    }
    Ok(())
}

fn context() -> String {
    "pocketenv".to_owned()
}

/// Kept for ever, as far as the queue is concerned.
pub(super) const NO_MORE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_that_others_compute() {
        // Test case 2 of RFC 4231.
        let of = signature(&SecretValue::new("Jefe"), b"what do ya want for nothing?");
        assert_eq!(of, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn what_is_long_or_has_many_lines_becomes_one_short_line() {
        assert_eq!(text("a\nb\u{1b}[31m", 140), "a b [31m");
        let short = text(&"ä".repeat(300), MAX_DESCRIPTION);
        assert_eq!(short.chars().count(), MAX_DESCRIPTION);
    }

    #[test]
    fn what_a_receiver_sends_back_shows_no_credential() {
        let error = ProviderError::Invalid { message: "bad token hunter2-hunter2".to_owned() };
        let shown = Undelivered::by_provider(error).without(&[&SecretValue::new("hunter2-hunter2")]);
        assert!(!shown.message.contains("hunter2") && !shown.may_help, "{}", shown.message);
    }
}
