//! Where an image comes from, and the way of its manifest and config into the store.

use std::io;

use super::digest::Digest;
use super::error::ImageError;
use super::file::{self, Files, Found, Place};
use super::reference::{Reference, RegistryReference};
use super::registry::Registry;
use super::spec::{Config, Descriptor, Index, MAX_LAYERS, Manifest, Platform};
use super::store::{Pinned, Store};
use super::unpack::Expected;
use super::{Image, Progress};

/// An image at its source.
#[derive(Debug)]
pub enum Source {
    /// In a registry.
    Registry {
        /// The repository.
        registry: Box<Registry>,
        /// The image in it.
        found: Found,
        /// The reference, written out.
        reference: String,
    },
    /// In files of this machine.
    Files {
        /// The reference, written out.
        reference: String,
        /// The files.
        files: Files,
        /// The image in them.
        found: Found,
    },
}

impl Source {
    /// Finds the image.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Unusable`], and what a registry answers.
    pub async fn find(reference: &Reference) -> Result<Source, ImageError> {
        let text = reference.to_string();
        let (path, name, archive) = match reference {
            Reference::Layout { path, name } => (path.clone(), name.clone(), false),
            Reference::Archive { path, name } => (path.clone(), name.clone(), true),
            Reference::Registry(named) => return Self::find_in_registry(named, text).await,
        };
        let opened = move || {
            let files = Files::open(&path, archive)?;
            let found = files.find(name.as_deref(), choose)?;
            Ok((files, found))
        };
        let opened = tokio::task::spawn_blocking(opened).await.map_err(io::Error::other).flatten();
        let (files, found) = opened.map_err(|error| wrong(&text, &error))?;
        Ok(Source::Files { reference: text, files, found })
    }

    async fn find_in_registry(named: &RegistryReference, reference: String) -> Result<Source, ImageError> {
        let unusable = |why: String| ImageError::Unusable { reference: reference.clone(), why };
        let registry = Box::new(Registry::new(named)?);
        let (mut document, top, mut kind) =
            registry.manifest(&named.version(), named.digest.as_ref()).await?;
        // An index may lead to an index; nobody needs more.
        for _ in 0..3 {
            if !file::is_index(&kind, &document) {
                let found = Found::new(top, document);
                return Ok(Source::Registry { registry, found, reference });
            }
            let index = file::parse("index", &document).map_err(|error| unusable(error.to_string()))?;
            let chosen = choose(&index).map_err(unusable)?;
            (document, _, kind) = registry.manifest(&chosen.digest.to_string(), Some(&chosen.digest)).await?;
        }
        Err(unusable("its index leads to an index, and that to another".to_owned()))
    }

    /// The reference, written out, and the image.
    fn parts(&self) -> (&str, &Found) {
        match self {
            Source::Registry { reference, found, .. } | Source::Files { reference, found, .. } => {
                (reference, found)
            }
        }
    }

    /// Brings manifest and config into the store, and pins the reference to them.
    ///
    /// # Errors
    /// As [`Source::find`]; [`ImageError::File`].
    pub async fn pin(&self, store: &Store, now_ms: u64) -> Result<Image, ImageError> {
        let (reference, found) = self.parts();
        let unusable = |error: io::Error| wrong(reference, &error);
        let manifest: Manifest = file::parse("manifest", &found.manifest).map_err(unusable)?;
        let config = match (store.document(&manifest.config.digest)?, self) {
            (Some(config), _) => config,
            (None, Source::Registry { registry, .. }) => registry.small_blob(&manifest.config.digest).await?,
            (None, Source::Files { files, .. }) => {
                files.read(&manifest.config.digest, found).map_err(unusable)?
            }
        };
        let pinned = Pinned {
            reference: reference.to_owned(),
            digest: found.digest.clone(),
            manifest: Digest::of(&found.manifest),
            pulled_at: now_ms,
            built: false,
        };
        store.keep(&manifest.config.digest, &config)?;
        store.keep(&pinned.manifest, &found.manifest)?;
        let image = assembled(pinned, &manifest, &config)?;
        // What stands there already needs no writing, and no waiting for the disk.
        match store.pinned(&image.pinned.reference)? {
            Some(old) if (&old.digest, &old.manifest) == (&image.pinned.digest, &image.pinned.manifest) => {}
            _ => store.pin(&image.pinned)?,
        }
        Ok(image)
    }

    /// Where a layer is now, on this machine; one of a registry is brought here first. `say` hears how far it has come.
    ///
    /// # Errors
    /// As [`Source::find`]; [`ImageError::File`].
    pub async fn layer(
        &self,
        layer: &Expected,
        store: &Store,
        say: &(dyn Fn(Progress) + Sync),
    ) -> Result<Place, ImageError> {
        let digest = layer.digest.as_ref().unwrap_or(&layer.diff_id);
        match self {
            Source::Registry { registry, .. } => {
                let path = store.partial(digest)?;
                registry.blob(digest, layer.size, &path, say).await?;
                Ok(Place { path, offset: 0, length: layer.size })
            }
            Source::Files { reference, files, found } => {
                files.blob(digest, found).map_err(|error| wrong(reference, &error))
            }
        }
    }

    /// Forgets what was brought here of a layer that is unpacked now.
    pub fn forget(&self, layer: &Expected, store: &Store) {
        if let (Source::Registry { .. }, Some(digest)) = (self, &layer.digest)
            && let Ok(path) = store.partial(digest)
        {
            let _ = std::fs::remove_file(path); // what is left is found as a leftover
        }
    }
}

/// The image that was pinned, from what the store has; `None` where a document is missing.
///
/// # Errors
/// [`ImageError::Unusable`], [`ImageError::File`].
pub fn load(store: &Store, pinned: Pinned) -> Result<Option<Image>, ImageError> {
    let Some(manifest) = store.document(&pinned.manifest)? else { return Ok(None) };
    let manifest: Manifest =
        file::parse("manifest", &manifest).map_err(|error| wrong(&pinned.reference, &error))?;
    let Some(config) = store.document(&manifest.config.digest)? else { return Ok(None) };
    assembled(pinned, &manifest, &config).map(Some)
}

fn choose(index: &Index) -> Result<Descriptor, String> {
    index.choose(&Platform::here()).cloned()
}

/// Manifest and config together, as far as this machine can use them.
fn assembled(pinned: Pinned, manifest: &Manifest, config: &[u8]) -> Result<Image, ImageError> {
    let unusable = |why: String| ImageError::Unusable { reference: pinned.reference.clone(), why };
    if manifest.layers.len() > MAX_LAYERS {
        return Err(unusable(format!("it has {} layers, more than {MAX_LAYERS}", manifest.layers.len())));
    }
    let media_type = &manifest.config.media_type;
    if !media_type.is_empty() && !media_type.contains("image") {
        return Err(unusable(format!("it is no image but `{}`", media_type.escape_debug())));
    }
    let parsed: Config = file::parse("config", config).map_err(|error| unusable(error.to_string()))?;
    let here = Platform::here();
    if (&*parsed.os, &*parsed.architecture) != (&*here.os, &*here.architecture)
        && !parsed.architecture.is_empty()
    {
        let theirs = Platform { os: parsed.os, architecture: parsed.architecture, variant: None };
        return Err(unusable(format!("it is for {}, and this machine is {}", theirs.name(), here.name())));
    }
    if parsed.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(unusable("its config names another number of layers than its manifest".to_owned()));
    }
    let layers = manifest.layers.iter().zip(parsed.rootfs.diff_ids).map(|(layer, diff_id)| {
        let kind = &layer.media_type;
        if !kind.is_empty() && (!kind.contains("tar") || kind.contains("encrypted")) {
            return Err(unusable(format!(
                "a layer is of a kind that is not understood: `{}`",
                kind.escape_debug()
            )));
        }
        Ok(Expected { digest: Some(layer.digest.clone()), diff_id, size: layer.size })
    });
    let layers = layers.collect::<Result<_, _>>()?;
    Ok(Image { layers, execution: parsed.config, config: manifest.config.digest.clone(), pinned })
}

fn wrong(reference: &str, error: &io::Error) -> ImageError {
    match error.kind() {
        io::ErrorKind::NotFound => ImageError::NotFound(reference.to_owned(), error.to_string()),
        _ => ImageError::Unusable { reference: reference.to_owned(), why: error.to_string() },
    }
}
