//! `pocketenv.lock`: which digests the tags of images stood for when sandboxes were first made from them. It lies beside the manifest and belongs
//! into version control, so that whoever applies the manifest gets the same images. A line that is removed is made anew by the next `apply`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::project::resolve;
use super::{Error, Project};

/// The file's name.
const NAME: &str = "pocketenv.lock";
/// The most bytes of the file.
const MAX: u64 = 1 << 20;
const VERSION: u32 = 1;
const HEAD: &str = "# Which digests the tags of images stood for. Written by `pocketenv apply`; keep it under version control.\n";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    version: u32,
    images: BTreeMap<String, String>,
}

impl Project<'_> {
    /// Where the lock of the project is; `None` for a manifest that came from no directory.
    fn lock_path(&self) -> Option<PathBuf> {
        let manifest = self.manifest()?;
        let first = manifest.files().into_iter().map(Path::new).find(|file| file.is_file())?;
        Some(first.with_file_name(NAME))
    }

    /// Tells providers that keep images which digests the lock names.
    pub(super) fn pin_images(&self) -> Result<(), Error> {
        let Some(path) = self.lock_path() else { return Ok(()) };
        let Some(lock) = read(&path)? else { return Ok(()) };
        for images in self.registry().iter().filter_map(|(_, provider)| provider.images()) {
            images.pin(lock.images.clone());
        }
        Ok(())
    }

    /// Writes down which digests the tags of this project stand for, as far as the lock does not say so yet; the file, if it was written.
    ///
    /// # Errors
    /// A provider that cannot say, and a file that cannot be read or written.
    pub async fn lock_images(&self) -> Result<Option<PathBuf>, Error> {
        let (Some(path), Some(manifest)) = (self.lock_path(), self.manifest()) else { return Ok(None) };
        let old = read(&path)?;
        let mut lock = old.clone().unwrap_or(Lock { version: VERSION, images: BTreeMap::new() });
        for sandbox in resolve(manifest, &BTreeMap::new())?.desired.sandboxes.values() {
            let Some(images) = self.provider(&sandbox.provider)?.images() else { continue };
            let failed = |source| Error::Provider { provider: sandbox.provider.clone(), source };
            for reference in images.sources(&sandbox.spec.image).map_err(failed)? {
                if lock.images.contains_key(&reference) {
                    continue;
                }
                if let Some(digest) = images.digest(&reference).await.map_err(failed)? {
                    lock.images.insert(reference, digest);
                }
            }
        }
        if lock.images.is_empty() || old.as_ref() == Some(&lock) {
            return Ok(None);
        }
        write(&path, &lock)?;
        Ok(Some(path))
    }
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Io { doing, path: path.clone().into(), source }
}

fn read(path: &Path) -> Result<Option<Lock>, Error> {
    let mut text = String::new();
    // A link could lead out of the project, and what it leads to would stand in the message.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    match opened.and_then(|file| file.take(MAX).read_to_string(&mut text)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("read", path))?,
    };
    let invalid = |why: String| failed("understand", path)(io::Error::new(io::ErrorKind::InvalidData, why));
    let lock: Lock = serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    match lock.version {
        VERSION => Ok(Some(lock)),
        other => Err(invalid(format!("its version is {other}; this program knows {VERSION}"))),
    }
}

/// Replaces the file whole.
fn write(path: &Path, lock: &Lock) -> Result<(), Error> {
    let text =
        serde_saphyr::to_string(lock).map_err(|error| failed("write", path)(io::Error::other(error)))?;
    let written = || -> io::Result<()> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".pocketenv.lock-")
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(dir)?;
        file.write_all(HEAD.as_bytes())?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_data()?;
        file.persist(path)?;
        Ok(())
    };
    written().map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_not_understood_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        assert_eq!(read(&path).unwrap(), None);
        let images =
            BTreeMap::from([("127.0.0.1:5000/a/b:1.0".to_owned(), format!("sha256:{}", "0".repeat(64)))]);
        let lock = Lock { version: VERSION, images };
        write(&path, &lock).unwrap();
        assert_eq!(read(&path).unwrap(), Some(lock));
        for text in ["version: 2\nimages: {}\n", "images: {}\n", "[", "version: 1\nimages: {}\nother: 1\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(read(&path).is_err(), "{text}");
        }
    }
}
