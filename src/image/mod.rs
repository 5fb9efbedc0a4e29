//! Images: what a reference names, where it comes from, what is kept of it, and how a layer becomes a directory.
//!
//! Everything that comes from outside is data that somebody else made: digests are verified, sizes are bounded, and paths are resolved
//! beneath the directory they belong to. Who unpacks has the ids of the sandbox; that is the engine's part.

mod compression;
pub mod credentials;
mod digest;
mod error;
mod file;
mod made;
mod pack;
mod reference;
mod registry;
mod source;
mod spec;
mod store;
mod unpack;

pub use digest::{Digest, Hashing};
pub use error::ImageError;
pub use file::Place;
pub use made::{documents, make};
pub use pack::{Packed, Packer, followed, matching};
pub use reference::{Reference, RegistryReference};
pub use source::{Source, load};
pub use spec::{Descriptor, Execution, LAYER, Manifest, Platform};
pub use store::{Built, Hold, Pinned, Removed, Store};
pub use unpack::{Expected, OPAQUE_XATTR, Placing, Unpacked, is_archive, place, unpack};

/// An image of which the manifest and the config are here.
#[derive(Debug, Clone)]
pub struct Image {
    /// The reference and what it stands for.
    pub pinned: Pinned,
    /// How it is to be run.
    pub execution: Execution,
    /// Its layers, the lowest first.
    pub layers: Vec<Expected>,
    /// The digest of its config, which goes with its manifest.
    pub config: Digest,
}

/// How far a layer has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The layer.
    pub layer: Digest,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes that it has.
    pub size: u64,
}

impl Image {
    /// How many bytes its layers came in.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}
