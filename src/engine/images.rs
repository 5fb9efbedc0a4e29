//! Images of the engine: brought here, unpacked once for all sandboxes, and removed when no sandbox needs them.

use std::path::PathBuf;

use super::error::EngineError;
use super::launch::IdMap;
use super::lifecycle::{Engine, absolute};
use super::rootfs;
use super::shim::{Answer, Task, Unpack};
use super::spec::{Image, OciImage};
use super::state::{self, Lock};
use crate::image::{self, Expected, Hold, ImageError, Pinned, Reference, Source, Store};

impl Engine {
    fn images(&self) -> Store {
        Store::new(self.root.join("images"))
    }

    /// The image, ready for sandboxes: pulled where it is not here yet, or, with `again`, where its source has another by now. While the
    /// second value lives, nobody removes it.
    ///
    /// # Errors
    /// [`EngineError::Image`], [`EngineError::File`].
    pub async fn image(&self, reference: &Reference, again: bool) -> Result<(OciImage, Hold), EngineError> {
        let store = self.images();
        let holding = store.clone();
        let hold = blocking(move || holding.hold()).await?;
        let id_map = rootfs::choose_ids().map_err(EngineError::file("read", "/etc/subuid".as_ref()))?;
        let owner = owner(&id_map);
        let missing = |image: &image::Image| -> Vec<Expected> {
            let there = |layer: &&Expected| !store.layer(&owner, &layer.diff_id).exists();
            image.layers.iter().filter(there).cloned().collect()
        };
        // A name of a registry stands for what it stood for when it was pulled; a file is looked at each time.
        if let (Reference::Registry(_), false) = (reference, again)
            && let Some(pinned) = store.pinned(&reference.to_string())?
            && let Some(image) = image::load(&store, pinned)?
            && missing(&image).is_empty()
        {
            return Ok((described(&image, &owner, Vec::new()), hold));
        }
        let source = Source::find(reference).await?;
        let image = source.pin(&store, state::now_ms()).await?;
        let mut told = Vec::new();
        for layer in missing(&image) {
            told.extend(self.unpack(&store, &source, &image.pinned, &layer, &owner, id_map).await?);
        }
        Ok((described(&image, &owner, told), hold))
    }

    /// Unpacks one layer, unless somebody else is faster.
    async fn unpack(
        &self,
        store: &Store,
        source: &Source,
        pinned: &Pinned,
        layer: &Expected,
        owner: &str,
        id_map: IdMap,
    ) -> Result<Vec<String>, EngineError> {
        let lock = Lock::acquire(&self.root.join("locks"), &format!("layer-{}", layer.diff_id.hex())).await?;
        let path = store.layer(owner, &layer.diff_id);
        if path.exists() {
            return Ok(Vec::new());
        }
        let place = source.layer(layer).await?;
        let new = store.new_layer(owner, &layer.diff_id)?;
        self.remove_tree(&new).await?; // somebody was cut short
        let task =
            Unpack { id_map, place, expected: layer.clone(), new: absolute(&new)?, path: absolute(&path)? };
        let failed = |why: String| {
            let digest = layer.digest.as_ref().unwrap_or(&layer.diff_id);
            ImageError::Unusable {
                reference: pinned.reference.clone(),
                why: format!("layer {digest}: {why}"),
            }
        };
        let answer = self.spawn_shim(&Task::Unpack(Box::new(task)), Some(&lock)).await;
        let unpacked = match answer {
            Ok(Answer::Unpacked(unpacked)) => Ok(unpacked),
            Ok(Answer::Failed { reason, .. }) => Err(failed(reason)),
            Ok(Answer::Ready) => Err(failed("the process that unpacks gave another answer".to_owned())),
            Err(error) => Err(failed(format!("the process that unpacks: {error}"))),
        };
        match unpacked {
            Ok(unpacked) => {
                lock.remove();
                Ok(unpacked.told)
            }
            Err(error) => {
                if let Err(cleanup) = self.remove_tree(&new).await {
                    tracing::warn!(%cleanup, "half a layer could not be removed");
                }
                Err(error.into())
            }
        }
    }

    /// Where the layers of an image are, the lowest first.
    pub(super) fn layer_paths(&self, image: &Image) -> Result<Vec<PathBuf>, EngineError> {
        match image {
            Image::Host => Ok(Vec::new()),
            Image::Oci(image) => image
                .layers
                .iter()
                .map(|layer| absolute(&self.root.join("images/layers").join(layer)))
                .collect(),
        }
    }
}

/// Layers have the owners that the ids of this user's sandboxes are outside: with other ids they are others.
fn owner(id_map: &IdMap) -> String {
    match id_map {
        IdMap::High { base } => format!("high-{base}"),
        IdMap::Subordinate { uids, gids, .. } => format!("sub-{}-{}-{}-{}", uids.0, uids.1, gids.0, gids.1),
        IdMap::Single { .. } => "single".to_owned(),
    }
}

fn described(image: &image::Image, owner: &str, told: Vec<String>) -> OciImage {
    let execution = &image.execution;
    let mut notes = told;
    let command: Vec<&str> = execution.entrypoint.iter().chain(&execution.cmd).map(String::as_str).collect();
    if !command.is_empty() {
        notes.push(format!("its command is not run, a service is: {}", command.join(" ")));
    }
    let list = |names: Vec<&String>| names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if !execution.exposed_ports.is_empty() {
        notes.push(format!(
            "it listens on {}; what is to be reached belongs under `ports`",
            list(execution.exposed_ports.keys().collect())
        ));
    }
    if !execution.volumes.is_empty() {
        notes.push(format!(
            "it keeps data in {}; what is to outlive the sandbox belongs under `volumes`",
            list(execution.volumes.keys().collect())
        ));
    }
    if !matches!(execution.stop_signal.as_str(), "" | "SIGTERM" | "TERM" | "15") {
        notes.push(format!(
            "it wants to be stopped by {}; `stop_signal` of a service says so",
            execution.stop_signal
        ));
    }
    let bounded = |text: String| text.chars().filter(|c| !c.is_control()).take(300).collect();
    OciImage {
        reference: image.pinned.reference.clone(),
        digest: image.pinned.digest.to_string(),
        layers: image.layers.iter().map(|layer| format!("{owner}/{}", layer.diff_id.hex())).collect(),
        user: Some(execution.user.clone()).filter(|user| !user.is_empty()),
        working_dir: Some(PathBuf::from(&execution.working_dir)).filter(|dir| dir.is_absolute()),
        env: execution
            .env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect(),
        notes: notes.into_iter().map(bounded).collect(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| EngineError::file("use", "the image store".as_ref())(std::io::Error::other(error)))?
        .map_err(EngineError::from)
}
