//! Images in files of this machine: an OCI image layout (OCI image spec, "Image Layout"), as a directory or as an archive, and what
//! `docker save` writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::spec::{Config, Descriptor, Index, MAX_DOCUMENT, Manifest};

/// The most entries that an archive of an image may have.
const MAX_ENTRIES: usize = 100_000;
/// The annotation by which images of a layout have names.
const NAME: &str = "org.opencontainers.image.ref.name";

/// Where some bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Where in it they begin.
    pub offset: u64,
    /// How many they are.
    pub length: u64,
}

impl Place {
    /// The bytes.
    ///
    /// # Errors
    /// What opening reports.
    pub fn open(&self) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(file.take(self.length))
    }
}

/// A directory or an archive that holds images.
#[derive(Debug)]
pub enum Files {
    /// A layout as a directory.
    Directory(PathBuf),
    /// An archive, by the names in it.
    Archive(BTreeMap<String, Place>),
}

/// What an archive of `docker save` says of one image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image in files.
#[derive(Debug)]
pub struct Found {
    /// What it is named by in its source: the digest of an index or of a manifest.
    pub digest: Digest,
    /// Its manifest as it stands there, or as it would.
    pub manifest: Vec<u8>,
    /// Where its blobs are, as far as they are not where their digests say.
    places: BTreeMap<Digest, Place>,
}

impl Found {
    /// An image whose blobs are where their digests say.
    pub fn new(digest: Digest, manifest: Vec<u8>) -> Found {
        Found { digest, manifest, places: BTreeMap::new() }
    }
}

impl Files {
    /// Looks at what is at `path`.
    ///
    /// # Errors
    /// What reading reports.
    pub fn open(path: &Path, archive: bool) -> io::Result<Files> {
        if !archive {
            return Ok(Files::Directory(path.to_owned()));
        }
        let mut archive = tar::Archive::new(File::open(path)?);
        let mut places = BTreeMap::new();
        let mut links = Vec::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let Ok(name) = String::from_utf8(entry.path_bytes().into_owned()) else { continue };
            let name = name.trim_start_matches("./").to_owned();
            if places.len() + links.len() >= MAX_ENTRIES {
                return Err(invalid(format!("it has more than {MAX_ENTRIES} entries")));
            }
            match entry.header().entry_type() {
                tar::EntryType::Regular => {
                    let (offset, length) = (entry.raw_file_position(), entry.size());
                    places.insert(name, Place { path: path.to_owned(), offset, length });
                }
                // `docker save` writes a layer once and links to it.
                tar::EntryType::Symlink => {
                    if let Some(Ok(target)) =
                        entry.link_name_bytes().map(|n| String::from_utf8(n.into_owned()))
                    {
                        links.push((name, target));
                    }
                }
                _ => {}
            }
        }
        for (name, target) in links {
            let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
            let target = match target.strip_prefix("../") {
                Some(rest) => rest.to_owned(),
                None if dir.is_empty() => target,
                None => format!("{dir}/{target}"),
            };
            if let Some(place) = places.get(&target).cloned() {
                places.insert(name, place);
            }
        }
        Ok(Files::Archive(places))
    }

    fn place(&self, name: &str) -> io::Result<Option<Place>> {
        match self {
            Files::Archive(places) => Ok(places.get(name).cloned()),
            Files::Directory(root) => {
                let path = root.join(name);
                match std::fs::metadata(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Ok(metadata) if !metadata.is_file() => Err(invalid(format!("`{name}` is no file"))),
                    other => Ok(Some(Place { path, offset: 0, length: other?.len() })),
                }
            }
        }
    }

    fn document(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(place) = self.place(name)? else { return Ok(None) };
        if place.length > MAX_DOCUMENT {
            return Err(invalid(format!("`{name}` has {} bytes, more than {MAX_DOCUMENT}", place.length)));
        }
        let mut bytes = Vec::new();
        place.open()?.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// A blob by its digest, where the layout of OCI has it.
    ///
    /// # Errors
    /// What looking reports; that it is missing.
    pub fn blob(&self, digest: &Digest, found: &Found) -> io::Result<Place> {
        if let Some(place) = found.places.get(digest) {
            return Ok(place.clone());
        }
        let name = blob_name(digest);
        self.place(&name)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("`{name}` is missing")))
    }

    /// A manifest or config by its digest, verified.
    ///
    /// # Errors
    /// What reading reports; that it is missing, or not what its digest says.
    pub fn read(&self, digest: &Digest, found: &Found) -> io::Result<Vec<u8>> {
        let place = self.blob(digest, found)?;
        if place.length > MAX_DOCUMENT {
            return Err(invalid(format!("{digest} has {} bytes, more than {MAX_DOCUMENT}", place.length)));
        }
        let mut bytes = Vec::new();
        place.open()?.read_to_end(&mut bytes)?;
        verified(digest, bytes)
    }

    /// The image called `name`, or the only one. `choose` picks the manifest of an index for this machine.
    ///
    /// # Errors
    /// What is wrong, in words that follow the name of the image.
    pub fn find(
        &self,
        name: Option<&str>,
        choose: impl Fn(&Index) -> Result<Descriptor, String>,
    ) -> io::Result<Found> {
        if let Some(index) = self.document("index.json")? {
            let index: Index = parse("index.json", &index)?;
            return self.find_in_layout(&index, name, choose);
        }
        match self.document("manifest.json")? {
            Some(saved) => self.find_saved(&parse::<Vec<Saved>>("manifest.json", &saved)?, name),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "there is neither an `index.json` nor a `manifest.json`: it holds no image",
            )),
        }
    }

    fn find_in_layout(
        &self,
        index: &Index,
        name: Option<&str>,
        choose: impl Fn(&Index) -> Result<Descriptor, String>,
    ) -> io::Result<Found> {
        let named = |descriptor: &&Descriptor| match (name, descriptor.annotations.get(NAME)) {
            (None, _) => true,
            // What Docker writes into a layout is the tag, or the whole reference.
            (Some(name), Some(found)) => {
                found == name || found.rsplit_once(':').is_some_and(|(_, tag)| tag == name)
            }
            (Some(_), None) => false,
        };
        let fitting: Vec<&Descriptor> = index.manifests.iter().filter(named).collect();
        let names = || {
            let names = index.manifests.iter().filter_map(|d| d.annotations.get(NAME)).take(20);
            names.cloned().collect::<Vec<_>>().join(", ")
        };
        let top = match (&fitting[..], name) {
            ([only], _) => (*only).clone(),
            ([], Some(name)) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("none is called `{name}`; there are: {}", names()),
                ));
            }
            ([], None) => return Err(io::Error::new(io::ErrorKind::NotFound, "it holds no image")),
            // One image for several platforms may stand here without an index of its own.
            (_, _) if fitting.iter().all(|d| d.platform.is_some()) => {
                choose(&Index { manifests: fitting.into_iter().cloned().collect() }).map_err(invalid)?
            }
            _ => {
                return Err(invalid(format!(
                    "it holds several images; name one behind a colon: {}",
                    names()
                )));
            }
        };
        let mut found = Found::new(top.digest.clone(), Vec::new());
        let mut descriptor = top;
        // An index may lead to an index; nobody needs more.
        for _ in 0..3 {
            let document = self.read(&descriptor.digest, &found)?;
            if !is_index(&descriptor.media_type, &document) {
                found.manifest = document;
                return Ok(found);
            }
            descriptor = choose(&parse("index", &document)?).map_err(invalid)?;
        }
        Err(invalid("its index leads to an index, and that to another"))
    }

    fn find_saved(&self, images: &[Saved], name: Option<&str>) -> io::Result<Found> {
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let named = |image: &&Saved| {
            name.is_none_or(|name| {
                tags(image)
                    .iter()
                    .any(|tag| tag == name || tag.rsplit_once(':').is_some_and(|(_, tag)| tag == name))
            })
        };
        let fitting: Vec<&Saved> = images.iter().filter(named).collect();
        let all = || images.iter().flat_map(tags).take(20).collect::<Vec<_>>().join(", ");
        let [image] = fitting[..] else {
            let what = if fitting.is_empty() {
                "none has this name"
            } else {
                "it holds several images; name one by its tag behind a colon"
            };
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{what}; there are: {}", all())));
        };
        let missing = |name: &str| {
            io::Error::new(io::ErrorKind::NotFound, format!("`{}` is missing", name.escape_debug()))
        };
        let config = self.document(&image.config)?.ok_or_else(|| missing(&image.config))?;
        let digest = Digest::of(&config);
        let parsed: Config = parse("config", &config)?;
        if parsed.rootfs.diff_ids.len() != image.layers.len() {
            return Err(invalid("its config names another number of layers"));
        }
        let mut places = BTreeMap::new();
        let descriptor = |digest: &Digest, size: u64, media_type: &str| Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            size,
            platform: None,
            annotations: BTreeMap::new(),
        };
        places.insert(digest.clone(), self.place(&image.config)?.ok_or_else(|| missing(&image.config))?);
        let mut layers = Vec::new();
        for (layer, diff_id) in image.layers.iter().zip(&parsed.rootfs.diff_ids) {
            let place = self.place(layer)?.ok_or_else(|| missing(layer))?;
            layers.push(descriptor(diff_id, place.length, "application/vnd.oci.image.layer.v1.tar"));
            places.insert(diff_id.clone(), place);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(super::spec::MANIFESTS[0].to_owned()),
            config: descriptor(&digest, config.len() as u64, "application/vnd.oci.image.config.v1+json"),
            layers,
        };
        let manifest = serde_json::to_vec(&manifest)?;
        Ok(Found { digest: Digest::of(&manifest), manifest, places })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The bytes, if they are what the digest says.
///
/// # Errors
/// That they are not.
pub fn verified(digest: &Digest, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let found = Digest::of(&bytes);
    if found == *digest { Ok(bytes) } else { Err(invalid(format!("what should be {digest} is {found}"))) }
}

/// Whether a document is an index: by its media type, or by what it has where that is not told.
pub fn is_index(media_type: &str, document: &[u8]) -> bool {
    if super::spec::INDEXES.contains(&media_type) || super::spec::MANIFESTS.contains(&media_type) {
        return super::spec::INDEXES.contains(&media_type);
    }
    serde_json::from_slice::<Index>(document).is_ok()
}

/// A document of an image.
///
/// # Errors
/// What is wrong with it.
pub fn parse<T: serde::de::DeserializeOwned>(what: &str, document: &[u8]) -> io::Result<T> {
    serde_json::from_slice(document)
        .map_err(|error| invalid(format!("its {what} cannot be understood: {error}")))
}
