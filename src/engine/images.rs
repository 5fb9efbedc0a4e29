//! Images of the engine: brought here, unpacked once for all sandboxes, and removed when no sandbox needs them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures::{StreamExt as _, TryStreamExt as _};

use super::error::EngineError;
use super::launch::IdMap;
use super::lifecycle::{Engine, absolute, names};
use super::rootfs;
use super::shim::{Answer, Task, Unpack};
use super::spec::{Image, ImageInfo, OciImage};
use super::state::{self, Lock};
use crate::image::{
    self, Expected, Hold, ImageError, Pinned, Progress, Reference, RegistryReference, Removed, Source, Store,
};

/// How many layers come and are unpacked at once.
const AT_ONCE: usize = 4;

impl Engine {
    pub(super) fn images(&self) -> Store {
        Store::new(self.root.join("images"))
    }

    /// The image, ready for sandboxes: pulled where it is not here yet, or, with `again`, where its source has another by now. While the
    /// second value lives, nobody removes it.
    ///
    /// # Errors
    /// [`EngineError::Image`], [`EngineError::File`].
    pub async fn image(
        &self,
        reference: &Reference,
        again: bool,
        say: &(dyn Fn(Progress) + Sync),
    ) -> Result<(OciImage, Hold), EngineError> {
        let (image, told, hold) = self.bring(reference, again, say).await?;
        let owner = owner(&ids()?);
        Ok((described(&image, &owner, told), hold))
    }

    /// The image with all that is known of it, its layers unpacked, and what was told of them.
    ///
    /// # Errors
    /// As [`Engine::image`].
    pub async fn bring(
        &self,
        reference: &Reference,
        again: bool,
        say: &(dyn Fn(Progress) + Sync),
    ) -> Result<(image::Image, Vec<String>, Hold), EngineError> {
        let store = self.images();
        let hold = self.hold_images().await?;
        let id_map = ids()?;
        let owner = owner(&id_map);
        let missing = |image: &image::Image| -> Vec<Expected> {
            let there = |layer: &&Expected| !store.layer(&owner, &layer.diff_id).exists();
            image.layers.iter().filter(there).cloned().collect()
        };
        // A name of a registry stands for what it stood for when it was pulled; a file is looked at each time.
        if let (Reference::Registry(name), false) = (reference, again)
            && let Some(pinned) = here(&store, name)?
            && let Some(image) = image::load(&store, pinned)?
            && missing(&image).is_empty()
        {
            return Ok((image, Vec::new(), hold));
        }
        let source = Source::find(reference).await?;
        let image = source.pin(&store, state::now_ms()).await?;
        let unpacking = missing(&image).into_iter().map(|layer| {
            let (source, image) = (&source, &image);
            let store = &store;
            async move { self.unpack(store, source, &image.pinned, &layer, id_map, say).await }
        });
        let told: Vec<Vec<String>> =
            futures::stream::iter(unpacking).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok((image, told.concat(), hold))
    }

    /// Whether the image is here by this name, with all of its layers.
    ///
    /// # Errors
    /// [`EngineError::Image`].
    pub fn has_image(&self, reference: &Reference) -> Result<bool, EngineError> {
        let store = self.images();
        let Some(pinned) = store.pinned(&reference.to_string())? else { return Ok(false) };
        let owner = owner(&ids()?);
        let image = image::load(&store, pinned)?;
        Ok(image.is_some_and(|image| {
            image.layers.iter().all(|layer| store.layer(&owner, &layer.diff_id).exists())
        }))
    }

    /// While the result lives, nobody removes an image or a layer.
    ///
    /// # Errors
    /// [`EngineError::Image`].
    pub async fn hold_images(&self) -> Result<Hold, EngineError> {
        let store = self.images();
        blocking(move || store.hold()).await
    }

    /// The digest that a reference stands for here; `None` where it was not pulled, or was built here, so that nobody else has it.
    ///
    /// # Errors
    /// [`EngineError::Image`].
    pub fn image_digest(&self, reference: &Reference) -> Result<Option<String>, EngineError> {
        let pinned = self.images().pinned(&reference.to_string())?;
        Ok(pinned.filter(|pinned| !pinned.built).map(|pinned| pinned.digest.to_string()))
    }

    /// The digest that a reference stands for here, wherever the image is from; `None` where it is not here.
    ///
    /// # Errors
    /// [`EngineError::Image`].
    pub fn known_digest(&self, reference: &Reference) -> Result<Option<String>, EngineError> {
        let pinned = self.images().pinned(&reference.to_string())?;
        Ok(pinned.map(|pinned| pinned.digest.to_string()))
    }

    /// Unpacks one layer, unless somebody else is faster.
    async fn unpack(
        &self,
        store: &Store,
        source: &Source,
        pinned: &Pinned,
        layer: &Expected,
        id_map: IdMap,
        say: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<String>, EngineError> {
        let owner = owner(&id_map);
        let lock = Lock::acquire(&self.root.join("locks"), &format!("layer-{}", layer.diff_id.hex())).await?;
        let path = store.layer(&owner, &layer.diff_id);
        if path.exists() {
            return Ok(Vec::new());
        }
        let place = source.layer(layer, store, say).await?;
        let new = store.new_layer(&owner, &layer.diff_id)?;
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
            Ok(Answer::Ready | Answer::Bytes(_) | Answer::Layers(_)) => {
                Err(failed("the process that unpacks gave another answer".to_owned()))
            }
            Err(error) => Err(failed(format!("the process that unpacks: {error}"))),
        };
        match unpacked {
            Ok(unpacked) => {
                source.forget(layer, store);
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

    /// The images that are here, in the order of their references.
    ///
    /// # Errors
    /// [`EngineError::Image`], [`EngineError::Broken`], [`EngineError::File`].
    pub async fn list_images(&self) -> Result<Vec<ImageInfo>, EngineError> {
        let store = self.images();
        let users = self.users()?;
        let mut found = Vec::new();
        for pinned in store.list()? {
            let users =
                users.iter().filter(|(_, image)| is_of(image, &pinned)).map(|(id, _)| id.clone()).collect();
            let size = image::load(&store, pinned.clone())?.map(|image| image.size());
            found.push(ImageInfo {
                reference: pinned.reference,
                digest: pinned.digest.to_string(),
                size,
                pulled_at: pinned.pulled_at,
                users,
            });
        }
        Ok(found)
    }

    /// Removes an image, with what no other one and no sandbox needs of it; `None` where there is none of this name.
    ///
    /// # Errors
    /// [`ImageError::InUse`] where a sandbox or snapshot was made from it; [`EngineError::Broken`] where that cannot be known; [`EngineError::File`].
    pub async fn remove_image(&self, reference: &Reference) -> Result<Option<Removed>, EngineError> {
        let store = self.images();
        let alone = store.clone();
        let _alone = blocking(move || alone.alone()).await?;
        let Some(pinned) = store.pinned(&reference.to_string())? else { return Ok(None) };
        if let Some((user, _)) = self.users()?.iter().find(|(_, image)| is_of(image, &pinned)) {
            return Err(ImageError::InUse { reference: pinned.reference, user: user.clone() }.into());
        }
        store.unpin(&pinned.reference)?;
        let removed = self.sweep(&store).await?;
        Ok(Some(Removed { images: 1, ..removed }))
    }

    /// Removes every image that no sandbox was made from, and whatever belongs to nothing. Waits for those who are creating a sandbox.
    ///
    /// # Errors
    /// As [`Engine::remove_image`].
    pub async fn collect_images(&self) -> Result<Removed, EngineError> {
        let store = self.images();
        let alone = store.clone();
        let _alone = blocking(move || alone.alone()).await?;
        let users = self.users()?;
        let mut images = 0;
        for pinned in store.list()? {
            if !users.iter().any(|(_, image)| is_of(image, &pinned)) {
                store.unpin(&pinned.reference)?;
                images += 1;
            }
        }
        store.forget_built()?;
        let caches = self.remove_caches().await?;
        let removed = self.sweep(&store).await?;
        Ok(Removed { images, caches, ..removed })
    }

    async fn sweep(&self, store: &Store) -> Result<Removed, EngineError> {
        let (mut documents, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for pinned in store.list()? {
            documents.insert(pinned.manifest.clone());
            if let Some(image) = image::load(store, pinned)? {
                documents.insert(image.config);
                layers.extend(image.layers.iter().map(|layer| layer.diff_id.hex().to_owned()));
            }
        }
        for (_, image) in self.users()? {
            layers.extend(image.layers.iter().filter_map(|layer| Some(layer.rsplit_once('/')?.1.to_owned())));
        }
        layers.extend(store.built_layers()?.iter().map(|layer| layer.hex().to_owned()));
        let left = store.leftovers(&documents, &layers)?;
        for path in left.files.iter().chain(&left.layers) {
            self.remove_tree(path).await?;
        }
        Ok(Removed { layers: left.layers.len(), ..Removed::default() })
    }

    /// The sandboxes and snapshots that lie on images. One whose record cannot be read may be among them, so that it is an error.
    fn users(&self) -> Result<Vec<(String, OciImage)>, EngineError> {
        let mut users = Vec::new();
        for id in names(&self.root.join("boxes"))? {
            if let Some(record) = self.record(&id)?
                && let Image::Oci(image) = record.spec.image
            {
                users.push((id, image));
            }
        }
        for (name, image) in self.snapshot_images()? {
            if let Image::Oci(image) = image {
                users.push((format!("snapshot {name}"), image));
            }
        }
        Ok(users)
    }

    /// The image that a sandbox lies on; `None` for the programs of this machine, and where there is no such sandbox.
    ///
    /// # Errors
    /// [`EngineError::Broken`].
    pub fn image_of(&self, id: &str) -> Result<Option<OciImage>, EngineError> {
        Ok(self.record(id)?.and_then(|record| match record.spec.image {
            Image::Oci(image) => Some(image),
            Image::Host => None,
        }))
    }

    /// Whether a sandbox has a single id, so that everything in it belongs to one owner, whoever its users are.
    pub fn has_one_owner(&self, id: &str) -> Result<bool, EngineError> {
        Ok(self.record(id)?.is_some_and(|record| matches!(record.id_map, IdMap::Single { .. })))
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

/// What a name of a registry stands for here. One with a digest may have come by its tag alone.
fn here(store: &Store, name: &RegistryReference) -> Result<Option<Pinned>, ImageError> {
    let found = store.pinned(&name.to_string())?;
    let (None, Some(digest)) = (&found, &name.digest) else { return Ok(found) };
    let by_tag = store.pinned(&RegistryReference { digest: None, ..name.clone() }.to_string())?;
    Ok(by_tag.filter(|pinned| pinned.digest == *digest && !pinned.built))
}

/// The ids of sandboxes that are made now.
pub(super) fn ids() -> Result<IdMap, EngineError> {
    rootfs::choose_ids().map_err(EngineError::file("read", "/etc/subuid".as_ref()))
}

/// Whether this image of a sandbox is the one that was pinned, by its name or by what it is.
fn is_of(image: &OciImage, pinned: &Pinned) -> bool {
    image.reference == pinned.reference || image.digest == pinned.digest.to_string()
}

/// What the layers of those are called who have a single id.
const SINGLE: &str = "single";

/// Layers have the owners that the ids of this user's sandboxes are outside: with other ids they are others.
pub(super) fn owner(id_map: &IdMap) -> String {
    match id_map {
        IdMap::High { base } => format!("high-{base}"),
        IdMap::Subordinate { uids, gids, .. } => format!("sub-{}-{}-{}-{}", uids.0, uids.1, gids.0, gids.1),
        IdMap::Single { .. } => SINGLE.to_owned(),
    }
}

pub(super) fn described(image: &image::Image, owner: &str, told: Vec<String>) -> OciImage {
    let execution = &image.execution;
    let mut notes = told;
    let command: Vec<String> = execution.entrypoint.iter().chain(&execution.cmd).cloned().collect();
    if !command.is_empty() {
        notes.push(format!("its command is run by a service that has no `command`: {}", command.join(" ")));
    }
    let user = match execution.user.as_str() {
        "" | "0" | "root" | "0:0" | "root:root" => None,
        user if is_user(user) => {
            notes.push(format!("commands are run by its user, {user}, unless `user` says otherwise"));
            Some(user.to_owned())
        }
        user => {
            notes.push(format!("its user is no name and no number: {}", user.escape_debug()));
            None
        }
    };
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
    let bounded = |text: String| text.chars().filter(|c| !c.is_control()).take(300).collect();
    OciImage {
        reference: image.pinned.reference.clone(),
        digest: image.pinned.digest.to_string(),
        layers: image.layers.iter().map(|layer| format!("{owner}/{}", layer.diff_id.hex())).collect(),
        working_dir: Some(PathBuf::from(&execution.working_dir)).filter(|dir| dir.is_absolute()),
        env: execution
            .env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect(),
        user,
        command,
        stop_signal: Some(execution.stop_signal.trim_start_matches("SIG"))
            .filter(|signal| !signal.is_empty())
            .map(str::to_owned),
        volumes: execution.volumes.keys().map(PathBuf::from).filter(|dir| dir.is_absolute()).collect(),
        notes: notes.into_iter().map(bounded).collect(),
    }
}

/// Whether this is a user, and a group if any, as they can stand in `/etc/passwd` and `/etc/group`.
fn is_user(text: &str) -> bool {
    let is_name = |name: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '$');
        !name.is_empty() && !name.starts_with('-') && name.len() <= 64 && name.chars().all(legal)
    };
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    is_name(user) && group.is_none_or(is_name)
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| EngineError::file("use", "the image store".as_ref())(std::io::Error::other(error)))?
        .map_err(EngineError::from)
}
