//! What was pulled, under one directory:
//!
//! `blobs/sha256/HEX`: manifests and configs; `refs/HEX.json`: which manifest a reference stands for here, one file for each;
//! `layers/OWNER/HEX/`: unpacked layers, by the digest of their plain archive, for one kind of ids; `partial/HEX`: what of a layer has come
//! so far. Everything is written under another name, synced, and renamed when it is whole: what has its name is complete, also after
//! a power cut. A layer's archive is not kept.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::ImageError;
use super::spec::MAX_DOCUMENT;
use super::unpack::Expected;

/// The beginning of names that are not whole yet.
const UNFINISHED: &str = ".new-";

/// The images of one engine.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// While this lives nothing that is in the store goes away.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

/// Which image a reference stands for here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The reference, written out.
    pub reference: String,
    /// The digest that the source has it by: of an index, where there is one.
    pub digest: Digest,
    /// The manifest for this machine.
    pub manifest: Digest,
    /// When, in milliseconds since the Unix epoch.
    pub pulled_at: u64,
    /// Whether it was built here: no source has it.
    #[serde(default)]
    pub built: bool,
}

/// What one step of a build came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// The layer that it made; absent where it changed no file.
    pub layer: Option<Expected>,
    /// What of its files could not be kept as it was said, in words.
    #[serde(default)]
    pub told: Vec<String>,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Images.
    pub images: usize,
    /// Layers, whole ones and halves.
    pub layers: usize,
    /// Caches of commands of builds.
    pub caches: usize,
}

impl Store {
    /// The store at `root`, which is made when first needed.
    pub fn new(root: PathBuf) -> Store {
        Store { root }
    }

    /// Keeps everything where it is until the hold is dropped. Waits while somebody removes.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn hold(&self) -> Result<Hold, ImageError> {
        self.lock(FlockOperation::LockShared)
    }

    /// Waits until nobody holds the store, and keeps others out.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn alone(&self) -> Result<Hold, ImageError> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Hold, ImageError> {
        private_dir(&self.root)?;
        let path = self.root.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
            .and_then(|file| rustix::fs::flock(&file, operation).map(|()| file))
            .map_err(|error| ImageError::file("lock", &path)(error.into()))?;
        Ok(Hold { _lock: lock.into() })
    }

    /// Which image the reference stands for here, if it was pulled.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn pinned(&self, reference: &str) -> Result<Option<Pinned>, ImageError> {
        self.read_pin(&self.pin_path(reference))
    }

    /// All images, in the order of their references.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn list(&self) -> Result<Vec<Pinned>, ImageError> {
        let dir = self.root.join("refs");
        let mut found = Vec::new();
        for name in names(&dir)?.into_iter().filter(|name| name.ends_with(".json")) {
            found.extend(self.read_pin(&dir.join(name))?);
        }
        found.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(found)
    }

    fn read_pin(&self, path: &Path) -> Result<Option<Pinned>, ImageError> {
        let Some(bytes) = read_bounded(path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            ImageError::file("understand", path)(io::Error::new(io::ErrorKind::InvalidData, error))
        })
    }

    /// From now on the reference stands for this.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn pin(&self, pinned: &Pinned) -> Result<(), ImageError> {
        let path = self.pin_path(&pinned.reference);
        let bytes =
            serde_json::to_vec(pinned).map_err(|error| ImageError::file("write", &path)(error.into()))?;
        write(&path, &bytes)
    }

    /// The reference stands for nothing any more.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn unpin(&self, reference: &str) -> Result<(), ImageError> {
        let path = self.pin_path(reference);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::file("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn pin_path(&self, reference: &str) -> PathBuf {
        self.root.join("refs").join(format!("{}.json", Digest::of(reference.as_bytes()).hex()))
    }

    /// A manifest or config, if it is here.
    ///
    /// # Errors
    /// [`ImageError::File`], also for one that is not what its name says.
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.blob_path(digest);
        match read_bounded(&path)? {
            Some(bytes) if Digest::of(&bytes) != *digest => Err(ImageError::file("trust", &path)(
                io::Error::new(io::ErrorKind::InvalidData, "its digest is another"),
            )),
            other => Ok(other),
        }
    }

    /// Keeps a manifest or config, whose digest was verified.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn keep(&self, digest: &Digest, document: &[u8]) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        if path.exists() { Ok(()) } else { write(&path, document) }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Where what has come of a blob so far is kept; the directory is there.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn partial(&self, digest: &Digest) -> Result<PathBuf, ImageError> {
        let dir = self.root.join("partial");
        private_dir(&dir)?;
        Ok(dir.join(digest.hex()))
    }

    /// Where a layer is, or belongs; `owner` names the kind of ids.
    pub fn layer(&self, owner: &str, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(owner).join(diff_id.hex())
    }

    /// Where a layer comes into being; the directory for it is there.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn new_layer(&self, owner: &str, diff_id: &Digest) -> Result<PathBuf, ImageError> {
        let dir = self.root.join("layers").join(owner);
        private_dir(&dir)?;
        Ok(dir.join(format!("{UNFINISHED}{}", diff_id.hex())))
    }

    /// What the step of a build came to that has this key; whether its layer is still here is not said.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn built(&self, key: &Digest) -> Result<Option<Built>, ImageError> {
        let path = self.built_path(key);
        let Some(bytes) = read_bounded(&path)? else { return Ok(None) };
        // Half a file, or one of another version, is as good as none.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Remembers what a step of a build came to.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn keep_built(&self, key: &Digest, built: &Built) -> Result<(), ImageError> {
        let path = self.built_path(key);
        let bytes =
            serde_json::to_vec(built).map_err(|error| ImageError::file("write", &path)(error.into()))?;
        write(&path, &bytes)
    }

    /// Forgets what steps of builds came to. Call it alone.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn forget_built(&self) -> Result<(), ImageError> {
        let dir = self.root.join("built");
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::file("remove", &dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// The layers that steps of builds came to.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn built_layers(&self) -> Result<Vec<Digest>, ImageError> {
        let dir = self.root.join("built");
        let mut found = Vec::new();
        for name in names(&dir)? {
            let Some(bytes) = read_bounded(&dir.join(name))? else { continue };
            let built = serde_json::from_slice::<Built>(&bytes).ok();
            found.extend(built.and_then(|built| built.layer).map(|layer| layer.diff_id));
        }
        Ok(found)
    }

    fn built_path(&self, key: &Digest) -> PathBuf {
        self.root.join("built").join(format!("{}.json", key.hex()))
    }

    /// Where a step of a build works; the directory above it is there.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn workplace(&self, key: &Digest) -> Result<PathBuf, ImageError> {
        let dir = self.root.join("building");
        private_dir(&dir)?;
        Ok(dir.join(key.hex()))
    }

    /// What belongs to none of these documents and layers. Call it alone.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn leftovers(
        &self,
        documents: &BTreeSet<Digest>,
        layers: &BTreeSet<String>,
    ) -> Result<Leftovers, ImageError> {
        let mut left = Leftovers::default();
        let blobs = self.root.join("blobs/sha256");
        let known: BTreeSet<&str> = documents.iter().map(Digest::hex).collect();
        let unknown = |name: &String| !known.contains(name.as_str());
        left.files.extend(names(&blobs)?.into_iter().filter(unknown).map(|name| blobs.join(name)));
        // Whoever builds holds the store.
        let building = self.root.join("building");
        left.layers.extend(names(&building)?.into_iter().map(|name| building.join(name)));
        for dir in [self.root.join("partial"), self.root.join("refs"), self.root.join("built")] {
            let unfinished = |name: &String| dir.ends_with("partial") || name.starts_with(UNFINISHED);
            left.files.extend(names(&dir)?.into_iter().filter(unfinished).map(|name| dir.join(name)));
        }
        let all = self.root.join("layers");
        for owner in names(&all)? {
            let dir = all.join(owner);
            let unknown = |name: &String| !layers.contains(name);
            left.layers.extend(names(&dir)?.into_iter().filter(unknown).map(|name| dir.join(name)));
        }
        Ok(left)
    }
}

/// What belongs to nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Files.
    pub files: Vec<PathBuf>,
    /// Directories of layers, whose files may belong to the ids of sandboxes.
    pub layers: Vec<PathBuf>,
}

/// Names in a directory, in order; none where it is not there.
fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(ImageError::file("read", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(ImageError::file("read", dir))?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(ImageError::file("read", path)),
    }
}

fn private_dir(path: &Path) -> Result<(), ImageError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(ImageError::file("create", path))
}

/// Writes a whole file that survives a power cut, or none.
fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    private_dir(dir)?;
    let written = || -> io::Result<()> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let temporary = dir.join(format!("{UNFINISHED}{}", hex::encode(random)));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    written().map_err(ImageError::file("write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reference_stands_for_what_was_pinned_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("images"));
        assert_eq!(store.pinned("a:b").unwrap(), None);
        let pin = |content: &[u8]| Pinned {
            reference: "a:b".to_owned(),
            digest: Digest::of(content),
            manifest: Digest::of(content),
            pulled_at: 1,
            built: false,
        };
        store.pin(&pin(b"1")).unwrap();
        store.pin(&pin(b"2")).unwrap();
        assert_eq!(store.list().unwrap(), [pin(b"2")]);
        store.unpin("a:b").unwrap();
        store.unpin("a:b").unwrap();
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn a_document_that_was_changed_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let digest = Digest::of(b"whole");
        store.keep(&digest, b"whole").unwrap();
        assert_eq!(store.document(&digest).unwrap().unwrap(), b"whole");
        fs::write(store.blob_path(&digest), b"half").unwrap();
        assert!(store.document(&digest).unwrap_err().to_string().contains("trust"));
    }

    #[test]
    fn what_belongs_to_nothing_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let (kept, lost) = (Digest::of(b"kept"), Digest::of(b"lost"));
        for (digest, content) in [(&kept, b"kept"), (&lost, b"lost")] {
            store.keep(digest, content).unwrap();
            fs::create_dir_all(store.layer("x", digest)).unwrap();
        }
        fs::create_dir_all(store.new_layer("x", &kept).unwrap()).unwrap();
        fs::write(store.partial(&lost).unwrap(), b"half").unwrap();
        let layers = BTreeSet::from([kept.hex().to_owned()]);
        let left = store.leftovers(&BTreeSet::from([kept.clone()]), &layers).unwrap();
        assert_eq!(left.files, [store.blob_path(&lost), store.partial(&lost).unwrap()]);
        assert_eq!(left.layers, [store.new_layer("x", &kept).unwrap(), store.layer("x", &lost)]);
    }
}
