//! Images that are made here: their documents.

use std::collections::BTreeMap;

use serde_json::json;

use super::digest::Digest;
use super::error::ImageError;
use super::spec::{Descriptor, Execution, LAYER, MANIFESTS, Manifest, Platform};
use super::store::{Pinned, Store};
use super::unpack::Expected;
use super::{Image, source};

/// The media type of a config.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Manifest and config of an image, with the descriptor of the manifest. The same image has the same bytes.
///
/// # Errors
/// That they cannot be written as JSON.
pub fn documents(
    execution: &Execution,
    layers: &[Descriptor],
    diff_ids: &[Digest],
) -> serde_json::Result<(Vec<u8>, Vec<u8>, Descriptor)> {
    let here = Platform::here();
    let mut config = json!({
        // When it was made would make it another image each time.
        "created": "1970-01-01T00:00:00Z",
        "architecture": here.architecture,
        "os": here.os,
        "config": execution,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    if let (Some(variant), Some(config)) = (&here.variant, config.as_object_mut()) {
        config.insert("variant".to_owned(), json!(variant));
    }
    let config = serde_json::to_vec(&config)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MANIFESTS[0].to_owned()),
        config: descriptor(&config, CONFIG),
        layers: layers.to_vec(),
    };
    let manifest = serde_json::to_vec(&manifest)?;
    let top = Descriptor { platform: Some(here), ..descriptor(&manifest, MANIFESTS[0]) };
    Ok((manifest, config, top))
}

fn descriptor(document: &[u8], media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(document),
        size: document.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

/// Puts an image of layers that are here into the store, by this reference.
///
/// # Errors
/// [`ImageError::File`], [`ImageError::Unusable`] where there are too many layers.
pub fn make(
    store: &Store,
    reference: &str,
    execution: &Execution,
    layers: &[Expected],
    now_ms: u64,
) -> Result<Image, ImageError> {
    let unusable = |why: String| ImageError::Unusable { reference: reference.to_owned(), why };
    let blobs = layers.iter().map(|layer| Descriptor {
        media_type: LAYER.to_owned(),
        digest: layer.digest.clone().unwrap_or_else(|| layer.diff_id.clone()),
        size: layer.size,
        platform: None,
        annotations: BTreeMap::new(),
    });
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let (manifest, config, top) = documents(execution, &blobs.collect::<Vec<_>>(), &diff_ids)
        .map_err(|error| unusable(error.to_string()))?;
    let pinned = Pinned {
        reference: reference.to_owned(),
        digest: top.digest.clone(),
        manifest: top.digest.clone(),
        pulled_at: now_ms,
        built: true,
    };
    store.keep(&Digest::of(&config), &config)?;
    store.keep(&top.digest, &manifest)?;
    let image = source::load(store, pinned.clone())?
        .ok_or_else(|| unusable("what was just written is not there".to_owned()))?;
    store.pin(&pinned)?;
    Ok(image)
}
