//! What can go wrong with a build.

use std::io;

use crate::engine::EngineError;
use crate::image::ImageError;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Containerfile says what cannot be done, or a step of it failed.
    #[error("{file}:{line}: {what}")]
    At {
        /// The Containerfile.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The context cannot be read.
    #[error("cannot build {context}: {why}")]
    Context {
        /// The directory.
        context: String,
        /// Why.
        why: String,
    },
    /// An image that the build begins with, or what the build would store, has something wrong.
    #[error("{file}:{line}: {what}")]
    Image {
        /// The Containerfile.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What was needed.
        what: String,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(Box<EngineError>),
    /// A file of the build could not be used.
    #[error("cannot {0}")]
    File(&'static str, #[source] io::Error),
}

impl From<EngineError> for BuildError {
    fn from(error: EngineError) -> Self {
        BuildError::Engine(Box::new(error))
    }
}

impl From<ImageError> for BuildError {
    fn from(error: ImageError) -> Self {
        EngineError::from(error).into()
    }
}

/// A line, and what is wrong with it; the file is added by who knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// From 1.
    pub line: usize,
    /// What, and what to do.
    pub what: String,
}

impl Wrong {
    /// At a line.
    pub fn at(line: usize, what: impl Into<String>) -> Wrong {
        Wrong { line, what: what.into() }
    }

    /// In a file.
    pub fn within(self, file: &str) -> BuildError {
        BuildError::At { file: file.to_owned(), line: self.line, what: self.what }
    }
}
