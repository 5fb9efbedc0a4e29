//! Volumes: directories that outlive sandboxes, one `volumes/<name>/{volume.json,data/}` each.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::PathBuf;

use super::error::EngineError;
use super::lifecycle::{Engine, check_name, names};
use super::rootfs;
use super::spec::{MountSource, VolumeInfo};
use super::state::{self, Lock};

impl Engine {
    /// Creates a volume; one of this name that exists is returned as it is.
    ///
    /// # Errors
    /// [`EngineError::Invalid`], [`EngineError::Broken`], [`EngineError::File`].
    pub async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<VolumeInfo, EngineError> {
        check_name(name)?;
        let _lock = self.volume_lock(name).await?;
        if let Some(info) = self.volume(name)? {
            return Ok(info);
        }
        let data = self.volume_dir(name).join("data");
        let made = || -> io::Result<()> {
            // Init of every sandbox must reach it; the directories above are closed to others.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&data)?;
            let (uid, gid) = rootfs::choose_ids()?.root();
            chown(&data, Some(uid), Some(gid))?;
            fs::set_permissions(&data, fs::Permissions::from_mode(0o755))
        };
        made().map_err(EngineError::file("create", &data))?;
        let info = VolumeInfo { name: name.to_owned(), labels: labels.clone(), created_at: state::now_ms() };
        let path = self.volume_dir(name).join("volume.json");
        state::write(&path, &info, true)
            .and_then(|()| state::sync(&path))
            .map_err(EngineError::file("write", &path))?;
        Ok(info)
    }

    /// Every volume.
    ///
    /// # Errors
    /// [`EngineError::Broken`] for one whose state is unreadable; [`EngineError::File`].
    pub async fn list_volumes(&self) -> Result<Vec<VolumeInfo>, EngineError> {
        let mut infos = Vec::new();
        for name in names(&self.root.join("volumes"))? {
            match self.volume(&name)? {
                Some(info) => infos.push(info),
                None => self.sweep_volume(&name).await?,
            }
        }
        Ok(infos)
    }

    /// Removes what a creation left that was cut short before it said what it made. One that is under way holds the lock.
    async fn sweep_volume(&self, name: &str) -> Result<(), EngineError> {
        if check_name(name).is_err() || self.volume_is_locked(name)? {
            return Ok(());
        }
        let lock = self.volume_lock(name).await?;
        if self.volume(name)?.is_none() {
            self.remove_tree(&self.volume_dir(name)).await?;
            lock.remove();
        }
        Ok(())
    }

    /// Deletes a volume and its data; absent already is fine.
    ///
    /// # Errors
    /// [`EngineError::VolumeInUse`] while a sandbox, running or not, mounts it; [`EngineError::File`].
    pub async fn delete_volume(&self, name: &str) -> Result<(), EngineError> {
        check_name(name)?;
        let dir = self.volume_dir(name);
        if !dir.exists() {
            return Ok(());
        }
        let lock = self.volume_lock(name).await?;
        for info in self.list().await? {
            if info.spec.mounts.iter().any(|mount| mount.source == MountSource::Volume(name.to_owned())) {
                return Err(EngineError::VolumeInUse { name: name.to_owned(), user: info.id });
            }
        }
        self.remove_tree(&dir).await?;
        lock.remove();
        Ok(())
    }

    /// Where a volume's data is.
    pub(super) fn volume_data(&self, name: &str) -> Result<PathBuf, EngineError> {
        let data = self.volume_dir(name).join("data");
        if !data.is_dir() {
            return Err(EngineError::Invalid(format!("volume `{name}` does not exist")));
        }
        std::path::absolute(&data).map_err(EngineError::file("resolve", &data))
    }

    fn volume(&self, name: &str) -> Result<Option<VolumeInfo>, EngineError> {
        let path = self.volume_dir(name).join("volume.json");
        match state::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(EngineError::Broken { id: name.to_owned(), reason: error.to_string() })
            }
            other => other.map_err(EngineError::file("read", &path)),
        }
    }

    pub(super) fn volume_dir(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }

    fn volume_is_locked(&self, name: &str) -> Result<bool, EngineError> {
        Lock::is_held(&self.root.join("locks"), &format!("volume-{name}"))
    }

    async fn volume_lock(&self, name: &str) -> Result<Lock, EngineError> {
        Lock::acquire(&self.root.join("locks"), &format!("volume-{name}")).await
    }
}
