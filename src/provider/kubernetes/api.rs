//! Calls to a cluster: which one, the connection, what its answers mean for the caller, and waiting for what happens there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http_body_util::BodyExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use crate::provider::error::Cause;
use crate::provider::script::shown;
use crate::provider::{Answer, ProviderContext, ProviderError, Upstream};

/// Who we are to server-side apply.
pub(super) const MANAGER: &str = "pocketenv";
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How many objects one page of a listing has.
const PAGE: u32 = 500;
/// How long one watch lasts before it is begun anew, in seconds.
const WATCH: u32 = 60;
/// The longest kubeconfig that is read, in bytes.
const KUBECONFIG_LIMIT: u64 = 1 << 20;
/// The group of the agent-sandbox project.
pub(super) const AGENTS: &str = "agents.x-k8s.io";

/// Which cluster, and where in it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Files to read one after the other; none for the cluster that this program runs in.
    kubeconfig: Vec<PathBuf>,
    context: Option<String>,
    namespace: Option<String>,
    /// What stands before the cluster, if something does.
    before: Option<SocketAddr>,
}

impl Place {
    /// What a user of `kubectl` would get.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] if no file is named and this program does not run in a cluster.
    pub fn find(context: &ProviderContext) -> Result<Self, ProviderError> {
        let setting = |name| context.setting("kubernetes", name).filter(|value| !value.is_empty());
        let var = |name: &str| context.vars.get(name).filter(|value| !value.is_empty());
        let home = || Some(Path::new(var("HOME")?).join(".kube/config")).filter(|path| path.exists());
        let kubeconfig: Vec<PathBuf> = match setting("kubeconfig").or(var("KUBECONFIG").map(String::as_str)) {
            Some(paths) => std::env::split_paths(paths).filter(|path| !path.as_os_str().is_empty()).collect(),
            None => home().into_iter().collect(),
        };
        if kubeconfig.is_empty() && var("KUBERNETES_SERVICE_HOST").is_none() {
            return Err(ProviderError::Invalid {
                message:
                    "there is no cluster: name a file by `providers.kubernetes.kubeconfig` or KUBECONFIG"
                        .to_owned(),
            });
        }
        let owned = |name| setting(name).map(str::to_owned);
        Ok(Self { kubeconfig, context: owned("context"), namespace: owned("namespace"), before: None })
    }

    /// The same, reached by an address that stands before it.
    pub fn behind(&self, address: SocketAddr) -> Self {
        Self { before: Some(address), ..self.clone() }
    }

    async fn config(&self) -> Result<Config, ProviderError> {
        let mut config = if self.kubeconfig.is_empty() {
            Config::incluster_env().map_err(|error| ProviderError::Invalid {
                message: format!(
                    "there is no cluster: name a file by `providers.kubernetes.kubeconfig` or KUBECONFIG ({error})"
                ),
            })?
        } else {
            let mut merged = Kubeconfig::default();
            for path in &self.kubeconfig {
                let unreadable = |why: String| ProviderError::Invalid {
                    message: format!("cannot read the kubeconfig {}: {why}", path.display()),
                };
                let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
                if size > KUBECONFIG_LIMIT {
                    return Err(unreadable(format!("it is longer than {KUBECONFIG_LIMIT} bytes")));
                }
                let file = Kubeconfig::read_from(path).map_err(|error| unreadable(error.to_string()))?;
                merged = merged.merge(file).map_err(|error| unreadable(error.to_string()))?;
            }
            let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(merged, &options).await.map_err(|error| {
                let files: Vec<_> = self.kubeconfig.iter().map(|path| path.display().to_string()).collect();
                ProviderError::Invalid { message: format!("kubeconfig {}: {error}", files.join(", ")) }
            })?
        };
        // What can be tried again is told to whoever asked: they have one policy for every provider.
        config.default_retry = false;
        if let Some(namespace) = &self.namespace {
            config.default_namespace.clone_from(namespace);
        }
        if let Some(address) = self.before {
            // It has the credentials, and knows how to reach the cluster.
            let odd = |error| ProviderError::permanent("the address before the cluster is odd", error);
            config.cluster_url = format!("http://{address}").parse::<hyper::Uri>().map_err(odd)?;
            config.auth_info = AuthInfo::default();
            config.proxy_url = None;
        }
        Ok(config)
    }
}

/// One namespace of one cluster.
#[derive(Clone)]
pub(super) struct Cluster {
    pub place: Place,
    /// Made when it is first needed: whoever only opens the provider asks nothing.
    client: Arc<OnceCell<Client>>,
    agents: Arc<OnceCell<Option<String>>>,
}

impl Cluster {
    pub fn new(place: Place) -> Self {
        Self { place, client: Arc::default(), agents: Arc::default() }
    }

    pub async fn client(&self) -> Result<&Client, ProviderError> {
        self.client
            .get_or_try_init(|| async {
                let config = self.place.config().await?;
                Client::try_from(config).map_err(|error| refused("reach the cluster", error))
            })
            .await
    }

    /// The newest version of `Sandbox` objects that we and the cluster know; `None` if it has none.
    pub async fn agents(&self) -> Result<Option<&str>, ProviderError> {
        let version = self.agents.get_or_try_init(|| async {
            let client = self.client().await?;
            let groups = answered("ask for the interfaces of the cluster", client.list_api_groups()).await?;
            let group = groups.groups.into_iter().find(|group| group.name == AGENTS);
            let served = |wanted: &&str| {
                group.as_ref().is_some_and(|group| group.versions.iter().any(|v| v.version == *wanted))
            };
            Ok::<_, ProviderError>(
                ["v1beta1", "v1alpha1"].iter().find(|v| served(v)).map(|v| (*v).to_owned()),
            )
        });
        Ok(version.await?.as_deref())
    }
}

#[async_trait]
impl Upstream for Cluster {
    async fn pass(&self, request: hyper::Request<Bytes>) -> Result<Answer, Cause> {
        let answer = self.client().await?.send(request.map(Body::from)).await?;
        Ok(answer.map(|body| body.map_err(Cause::from).boxed_unsync()))
    }
}

/// What a call answers.
pub(super) async fn answered<T>(
    doing: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, ProviderError> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => answer.map_err(|error| refused(doing, error)),
        Err(_) => Err(ProviderError::Transient {
            message: format!("cannot {doing}: the cluster gives no answer within {} s", ANSWER.as_secs()),
            source: None,
        }),
    }
}

/// What a call answers; `None` for what does not exist.
pub(super) async fn found<T>(
    doing: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<Option<T>, ProviderError> {
    match answered(doing, call).await {
        Ok(found) => Ok(Some(found)),
        Err(ProviderError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Server-side apply.
pub(super) async fn apply<K>(
    api: &Api<K>,
    doing: &str,
    name: &str,
    object: &(impl Serialize + std::fmt::Debug + Sync),
) -> Result<K, ProviderError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = PatchParams::apply(MANAGER).force();
    answered(doing, api.patch(name, &params, &Patch::Apply(object))).await
}

/// Everything that carries the labels, page by page.
pub(super) async fn all<K>(api: &Api<K>, doing: &str, labels: &str) -> Result<Vec<K>, ProviderError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().labels(labels).limit(PAGE);
    let mut everything = Vec::new();
    loop {
        let page = answered(doing, api.list(&params)).await?;
        everything.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(everything),
        }
    }
}

/// Waits, by watching, until `look` has an answer about an object; `None` is one that does not exist. After `limit` the answer is `None`.
pub(super) async fn until<K, T>(
    api: &Api<K>,
    doing: &str,
    name: &str,
    limit: Duration,
    mut look: impl FnMut(Option<&K>) -> Option<T>,
) -> Result<Option<T>, ProviderError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug + kube::Resource,
{
    let deadline = Instant::now() + limit;
    loop {
        let seen = found(doing, api.get(name)).await?;
        if let Some(answer) = look(seen.as_ref()) {
            return Ok(Some(answer));
        }
        // What does not exist yet has no version: then anything from now on counts, and what came in between is seen at the beginning.
        let version = seen.as_ref().and_then(|object| object.meta().resource_version.clone());
        let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH);
        let watch = answered(doing, api.watch(&params, version.as_deref().unwrap_or("0"))).await?;
        let mut watch = std::pin::pin!(watch);
        loop {
            let event = match timeout_at(deadline, watch.try_next()).await {
                Ok(event) => event.map_err(|error| refused(doing, error))?,
                Err(_) => return Ok(None),
            };
            let answer = match &event {
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => look(Some(object)),
                Some(WatchEvent::Deleted(_)) => look(None),
                Some(WatchEvent::Bookmark(_)) => None,
                // It is over, or too much has happened since: look again.
                Some(WatchEvent::Error(_)) | None => break,
            };
            if answer.is_some() {
                return Ok(answer);
            }
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

/// What a failed call means for the caller. `doing` is what was attempted: `create sandbox/api`.
pub(super) fn refused(doing: &str, error: Error) -> ProviderError {
    match error {
        Error::Api(status) => said(doing, status.code, &status.reason, &status.message, {
            let details = status.details.as_ref();
            details.map(|details| u64::from(details.retry_after_seconds)).filter(|seconds| *seconds > 0)
        }),
        Error::Auth(error) => ProviderError::Unauthorised {
            message: format!("cannot {doing}: the credentials of the kubeconfig: {error}"),
        },
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => {
            ProviderError::transient(format!("cannot {doing}: the cluster cannot be reached"), error)
        }
        Error::UpgradeConnection(_) => {
            ProviderError::transient(format!("cannot {doing}: the cluster opens no connection"), error)
        }
        error => ProviderError::permanent(format!("cannot {doing}"), error),
    }
}

/// What a status of the API server means.
fn said(doing: &str, code: u16, reason: &str, message: &str, wait: Option<u64>) -> ProviderError {
    let message = match shown(message) {
        message if message.is_empty() => format!("cannot {doing}: the cluster answers {code}"),
        message => format!("cannot {doing}: {message}"),
    };
    match code {
        403 if message.contains("exceeded quota") => ProviderError::Permanent { message, source: None },
        401 | 403 => ProviderError::Unauthorised { message },
        404 => ProviderError::NotFound { what: message },
        // Somebody else wrote at the same time.
        409 if reason == "Conflict" => ProviderError::Transient { message, source: None },
        409 => ProviderError::AlreadyExists { what: message },
        400 | 413 | 422 => ProviderError::Invalid { message },
        429 => ProviderError::Throttled { retry_after: wait.map(Duration::from_secs) },
        // A listing took longer than the cluster keeps its pages: it is begun anew.
        410 | 500..=599 => ProviderError::Transient { message, source: None },
        _ => ProviderError::Permanent { message, source: None },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_status_says_what_to_do() {
        let of = |code, reason, message| said("do it", code, reason, message, Some(3));
        assert!(matches!(of(404, "NotFound", "no"), ProviderError::NotFound { .. }));
        assert!(matches!(of(403, "Forbidden", "no"), ProviderError::Unauthorised { .. }));
        assert!(matches!(of(403, "Forbidden", "exceeded quota: q"), ProviderError::Permanent { .. }));
        assert!(of(409, "Conflict", "").is_retryable() && !of(409, "AlreadyExists", "").is_retryable());
        assert!(of(503, "", "").is_retryable() && of(410, "Expired", "").is_retryable());
        let ProviderError::Throttled { retry_after } = of(429, "", "") else { panic!("it is throttled") };
        assert_eq!(retry_after, Some(Duration::from_secs(3)));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let context = ProviderContext {
            data_dir: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            executable: PathBuf::new(),
            vars: BTreeMap::from([("KUBECONFIG".to_owned(), file.display().to_string())]),
            settings: BTreeMap::new(),
            credentials: BTreeMap::new(),
        };
        let cluster = Cluster::new(Place::find(&context).unwrap());
        let told = |error: ProviderError| {
            assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        };
        told(cluster.client().await.err().unwrap());
        std::fs::write(&file, "{").unwrap();
        told(cluster.client().await.err().unwrap());
        std::fs::write(&file, "apiVersion: v1\nkind: Config\ncurrent-context: other\n").unwrap();
        told(cluster.client().await.err().unwrap());
    }
}
