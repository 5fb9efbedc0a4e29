//! Snapshots: the disks of containers, committed as images that carry the labels of ownership.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::{ContainerConfig, ImageSummary};
use bollard::query_parameters as query;

use super::{Docker, is_ours, map, ours};
use crate::model::{ObservedSandbox, ObservedSnapshot, SandboxId, Timestamp, labels};
use crate::provider::{ProviderError, Snapshots, label};

/// How long writing a disk may take.
const COMMIT: Duration = Duration::from_secs(600);

impl Docker {
    /// The labels of a snapshot of a project; `None` if there is none.
    async fn snapshot(
        &self,
        project: &str,
        name: &str,
    ) -> Result<Option<HashMap<String, String>>, ProviderError> {
        let reference = map::snapshot_reference(project, name);
        let doing = format!("look for snapshot {name}");
        match self.call(&doing, async |client| client.inspect_image(&reference).await).await {
            Ok(found) => Ok(Some(found.config.and_then(|config| config.labels).unwrap_or_default())),
            Err(ProviderError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The snapshots of a project, or of every one, by their references. `sandboxes` are those that may be made from them.
    pub(super) async fn snapshots_of(
        &self,
        project: Option<&str>,
        sandboxes: &[ObservedSandbox],
    ) -> Result<Vec<(String, ObservedSnapshot)>, ProviderError> {
        let filters = HashMap::from([("label".to_owned(), ours(project))]);
        let options = query::ListImagesOptionsBuilder::new().filters(&filters).build();
        let found =
            self.call("list snapshots", async |client| client.list_images(Some(options)).await).await?;
        let of = |image: ImageSummary| {
            if !is_ours(&image.labels, project) {
                return None;
            }
            let said = |label| image.labels.get(label).cloned().unwrap_or_default();
            let (project, address) = (said(labels::PROJECT), said(labels::ADDRESS));
            let name = address.strip_prefix("snapshot/")?;
            // One that was deleted while another one is based on it has lost its name.
            let reference = map::snapshot_reference(&project, name);
            image.repo_tags.contains(&reference).then(|| {
                let used_by = label::made_from(&project, name, sandboxes.iter());
                let created_at = Some(Timestamp(image.created.saturating_mul(1000)));
                let labels = map::own_labels(image.labels);
                (reference, ObservedSnapshot { labels, created_at, bytes: None, used_by })
            })
        };
        Ok(found.into_iter().filter_map(of).collect())
    }
}

#[async_trait]
impl Snapshots for Docker {
    async fn create_snapshot(
        &self,
        of: &SandboxId,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        let project = labels.get(labels::PROJECT).map_or("", String::as_str);
        self.existing(of).await?;
        if self.snapshot(project, name).await?.is_some() {
            return Err(ProviderError::AlreadyExists { what: format!("snapshot {name}") });
        }
        let reference = map::snapshot_reference(project, name);
        let (repository, tag) = reference.split_once(':').unwrap_or((&reference, ""));
        // What runs stands still meanwhile.
        let options = query::CommitContainerOptionsBuilder::new()
            .container(&of.0)
            .repo(repository)
            .tag(tag)
            .pause(true)
            .build();
        // The container's own labels would be the image's too.
        let mut carried: HashMap<String, String> = HashMap::from([(label::SPEC.to_owned(), String::new())]);
        carried.extend(labels.clone());
        let config = ContainerConfig { labels: Some(carried.clone()), ..ContainerConfig::default() };
        let doing = format!("take snapshot {name} of sandbox {of}");
        let commit = async |client: &bollard::Docker| {
            client.clone().with_timeout(COMMIT).commit_container(options, config).await
        };
        self.call(&doing, commit).await?;
        let kept = self.snapshot(project, name).await?.unwrap_or_default();
        if carried.iter().all(|(label, value)| kept.get(label) == Some(value)) {
            return Ok(());
        }
        self.remove_image(&reference, name).await?;
        let message = format!("cannot {doing}: this daemon does not keep the labels of an image");
        Err(ProviderError::Unsupported { message })
    }

    async fn delete_snapshot(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        let Some(found) = self.snapshot(project, name).await? else { return Ok(()) };
        if !label::are_of(&found.into_iter().collect(), project, &format!("snapshot/{name}")) {
            let what = format!("an image by the name of snapshot {name}, which is not of this project,");
            return Err(ProviderError::AlreadyExists { what });
        }
        let containers = self.containers_of(Some(project)).await?;
        let seen: Vec<_> = containers.iter().filter_map(|c| map::observed(c, None, Vec::new())).collect();
        label::unused(project, name, seen.iter())?;
        self.remove_image(&map::snapshot_reference(project, name), name).await
    }
}

impl Docker {
    async fn remove_image(&self, reference: &str, name: &str) -> Result<(), ProviderError> {
        let remove = async |client: &bollard::Docker| {
            client.remove_image(reference, None::<query::RemoveImageOptions>, None).await
        };
        match self.call(&format!("delete snapshot {name}"), remove).await {
            Ok(_) | Err(ProviderError::NotFound { .. }) => Ok(()),
            // A container that is not of ours is made from it.
            Err(ProviderError::AlreadyExists { what: message }) => Err(ProviderError::Invalid { message }),
            Err(error) => Err(error),
        }
    }
}
