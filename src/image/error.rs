//! What can go wrong with an image.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image cannot be had, or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// What names the image is no reference.
    #[error("`{reference}` is not an image reference: {why}")]
    Reference {
        /// As it was written.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// The source has no such image, by its own word.
    #[error("image `{0}` does not exist: {1}")]
    NotFound(String, String),
    /// The registry wants other credentials.
    #[error("not allowed to pull image `{0}`: {1}")]
    Unauthorised(String, String),
    /// The registry asks to come back later.
    #[error("the registry of image `{reference}` asks to slow down")]
    Throttled {
        /// The image.
        reference: String,
        /// When to come back, where it says so.
        retry_after: Option<std::time::Duration>,
    },
    /// The registry could not be reached, or did not answer to the end; trying again may help.
    #[error("cannot pull image `{reference}`: {what}")]
    Registry {
        /// The image.
        reference: String,
        /// What was attempted and what happened.
        what: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The image is damaged, hostile, or of a kind that is not understood.
    #[error("image `{reference}` cannot be used: {why}")]
    Unusable {
        /// The image.
        reference: String,
        /// What is wrong, with the layer and the entry concerned.
        why: String,
    },
    /// A file of this machine could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image is used.
    #[error("image `{reference}` is used: `{user}` was made from it")]
    InUse {
        /// The image.
        reference: String,
        /// What was made from it.
        user: String,
    },
}

impl ImageError {
    /// For `map_err`: a failed file operation.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.to_owned();
        move |source| ImageError::File { what, path, source }
    }
}
