//! Images and snapshots as files that other tools read: an OCI image layout, or an archive of one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::error::EngineError;
use super::images::blocking;
use super::layers::{Outcome, What};
use super::lifecycle::{Engine, absolute, check_name};
use super::rootfs::NETWORK_FILES;
use super::spec::{Image, OciImage};
use crate::image::{self, Descriptor, Digest, Execution, LAYER, Reference};

/// The name of an image in a layout when it is given none.
const UNNAMED: &str = "latest";

impl Engine {
    /// Writes an image that is here as files of this machine, which are not there yet. The digest of its manifest.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where it is not here, or the target is no file or is there; [`EngineError::Image`], [`EngineError::File`].
    pub async fn export_image(
        &self,
        reference: &Reference,
        target: &Reference,
    ) -> Result<Digest, EngineError> {
        let _hold = self.hold_images().await?;
        let store = self.images();
        let missing =
            || EngineError::Invalid(format!("image {reference} is not here; pull or build it first"));
        let pinned = store.pinned(&reference.to_string())?.ok_or_else(missing)?;
        if !self.has_image(reference)? {
            return Err(missing());
        }
        let image = image::load(&store, pinned)?.ok_or_else(missing)?;
        let dirs = self.layer_dirs(&image.layers)?;
        self.export(&dirs, &image.execution, target).await
    }

    /// Writes a snapshot as an image: the layers of the image under it, and one for each snapshot. What the image says of how it is run stays.
    ///
    /// # Errors
    /// [`EngineError::NoSnapshot`], [`EngineError::Invalid`] for one of the programs of this machine, and as [`Engine::export_image`].
    pub async fn export_snapshot(&self, name: &str, target: &Reference) -> Result<Digest, EngineError> {
        check_name(name)?;
        let _hold = self.hold_images().await?;
        let (kept, _lock) = self.hold_snapshot(name).await?;
        let Image::Oci(image) = &kept.image else {
            return Err(EngineError::Invalid(format!(
                "snapshot `{name}` lies on the programs of this machine, which are no part of it; only one of a sandbox with `image` or `build` can be exported"
            )));
        };
        let mut dirs = self.layer_paths(&kept.image)?;
        dirs.extend(self.below(Some(name))?.dirs.iter().rev().map(|dir| dir.join("rootfs")));
        self.export(&dirs, &self.execution(image)?, target).await
    }

    /// How an image is run: by its config, or what a sandbox had of it where that is lost.
    fn execution(&self, image: &OciImage) -> Result<Execution, EngineError> {
        let store = self.images();
        for pinned in store.list()? {
            if pinned.digest.to_string() == image.digest
                && let Some(found) = image::load(&store, pinned)?
            {
                return Ok(found.execution);
            }
        }
        Ok(Execution {
            env: image.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            working_dir: image.working_dir.as_ref().map_or_else(String::new, |dir| dir.display().to_string()),
            ..Execution::default()
        })
    }

    async fn export(
        &self,
        dirs: &[PathBuf],
        execution: &Execution,
        target: &Reference,
    ) -> Result<Digest, EngineError> {
        let (path, name, is_archive) = match target {
            Reference::Layout { path, name } => (path, name, false),
            Reference::Archive { path, name } => (path, name, true),
            Reference::Registry(_) => {
                return Err(EngineError::Invalid(format!(
                    "an image is exported to `oci:DIR` or `oci-archive:FILE`, and `{target}` is neither"
                )));
            }
        };
        let path = absolute(path)?;
        if fs::symlink_metadata(&path).is_ok() {
            return Err(EngineError::Invalid(format!(
                "{} is there already; remove it first",
                path.display()
            )));
        }
        let failed = |what: &'static str| EngineError::file(what, &path);
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        // Beside the target, so that it gets its name at once; gone if this is cut short by an error.
        let layout =
            tempfile::Builder::new().prefix(".export-").tempdir_in(&parent).map_err(failed("write"))?;
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed("write"))?;
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for dir in dirs {
            let blob = blobs.join(".new");
            File::create_new(&blob).map_err(failed("write"))?;
            let leave_out = NETWORK_FILES.iter().map(|name| format!("etc/{name}")).collect();
            let of_box = dir.ends_with("rootfs");
            let what = What::Pack {
                layer: dir.clone(),
                blob: blob.clone(),
                leave_out: if of_box { leave_out } else { Vec::new() },
            };
            let Outcome::Packed { digest, diff_id, size } = self.layers_work(what).await? else {
                return Err(EngineError::Invalid("a layer could not be packed".to_owned()));
            };
            fs::rename(&blob, blobs.join(digest.hex())).map_err(failed("write"))?;
            let media_type = format!("{LAYER}+gzip");
            let annotations = std::collections::BTreeMap::new();
            layers.push(Descriptor { media_type, digest, size, platform: None, annotations });
            diff_ids.push(diff_id);
        }
        let (manifest, config, mut top) =
            image::documents(execution, &layers, &diff_ids).map_err(|error| failed("write")(error.into()))?;
        let digest = top.digest.clone();
        let name = name.clone().unwrap_or_else(|| UNNAMED.to_owned());
        top.annotations.insert("org.opencontainers.image.ref.name".to_owned(), name);
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [top],
        });
        let documents = [
            (blobs.join(Digest::of(&config).hex()), config),
            (blobs.join(digest.hex()), manifest),
            (layout.path().join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            (layout.path().join("index.json"), index.to_string().into_bytes()),
        ];
        for (path, content) in documents {
            fs::write(&path, content).map_err(failed("write"))?;
        }
        let to = path.clone();
        blocking(move || finish(layout, &to, is_archive).map_err(image::ImageError::file("write", &to)))
            .await?;
        Ok(digest)
    }
}

/// Gives the layout its place, or makes an archive of it there. What is there is not written over.
fn finish(layout: tempfile::TempDir, to: &Path, is_archive: bool) -> io::Result<()> {
    if !is_archive {
        let made = layout.path();
        fs::set_permissions(made, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        rustix::fs::syncfs(File::open(made)?)?;
        let (from, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
        rustix::fs::renameat_with(from, made, from, to, flags)?;
        let _moved = layout.keep();
        return Ok(());
    }
    let parent = to.parent().unwrap_or(Path::new("/"));
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file = tempfile::Builder::new().prefix(".export-").permissions(readable).tempfile_in(parent)?;
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(256 * 1024, file.as_file_mut()));
    archive.mode(tar::HeaderMode::Deterministic);
    // What says what it is comes first.
    for name in ["oci-layout", "index.json"] {
        archive.append_path_with_name(layout.path().join(name), name)?;
    }
    archive.append_dir_all("blobs", layout.path().join("blobs"))?;
    archive.into_inner()?.flush()?;
    file.as_file().sync_all()?;
    file.persist_noclobber(to)?;
    Ok(())
}
