//! How an image is named: by a registry, or by a file of this machine.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::digest::Digest;
use super::error::ImageError;

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where the API of that registry is.
const DEFAULT_REGISTRY_API: &str = "registry-1.docker.io";

/// An image by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// In a registry.
    Registry(RegistryReference),
    /// In a directory of this machine that is an OCI image layout: `oci:PATH[:NAME]`.
    Layout {
        /// The directory.
        path: PathBuf,
        /// Which of its images, where it holds several.
        name: Option<String>,
    },
    /// In an archive of this machine: `oci-archive:PATH[:NAME]` or `docker-archive:PATH[:NAME]`. What it holds says which of the two it is.
    Archive {
        /// The file.
        path: PathBuf,
        /// Which of its images, where it holds several.
        name: Option<String>,
    },
}

/// An image in a registry, every part written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference {
    /// Host and port.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// The tag; absent where only a digest was given.
    pub tag: Option<String>,
    /// The digest of its manifest or index.
    pub digest: Option<Digest>,
}

impl RegistryReference {
    /// What stands in the API's path for the manifest: the digest, which cannot change, before the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Host and port of the API.
    pub fn host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_API } else { &self.registry }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, name) = match self {
            Reference::Registry(reference) => return reference.fmt(f),
            Reference::Layout { path, name } => ("oci", path, name),
            Reference::Archive { path, name } => ("oci-archive", path, name),
        };
        write!(f, "{kind}:{}", path.display())?;
        name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

/// The path and the name in what follows a transport: a name has no slash, and stands after the last colon behind the path.
fn local(text: &str) -> (PathBuf, Option<String>) {
    let after_slash = text.rfind('/').map_or(0, |at| at + 1);
    match text[after_slash..].find(':') {
        Some(colon) => {
            let (path, name) = text.split_at(after_slash + colon);
            (Path::new(path).to_owned(), Some(name[1..].to_owned()).filter(|name| !name.is_empty()))
        }
        None => (Path::new(text).to_owned(), None),
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, name) = local(rest);
            return Ok(Reference::Layout { path, name });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:").or_else(|| text.strip_prefix("docker-archive:"))
        {
            let (path, name) = local(rest);
            return Ok(Reference::Archive { path, name });
        }
        registry(text)
            .map(Reference::Registry)
            .map_err(|why| ImageError::Reference { reference: text.escape_debug().to_string(), why })
    }
}

/// The grammar of the distribution spec ("Pulling manifests"), with the short forms that `docker pull` takes.
fn registry(text: &str) -> Result<RegistryReference, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse()?)),
        None => (text, None),
    };
    let (rest, tag) = match rest.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
        _ => (rest, None),
    };
    if let Some(tag) = &tag {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.chars().all(legal) {
            return Err(format!("`{}` is not a tag", tag.escape_debug()));
        }
    }
    // As Docker decides: the first part is a host if it looks like one.
    let (registry, repository) = match rest.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (first.to_owned(), rest.to_owned())
        }
        Some(_) => (DEFAULT_REGISTRY.to_owned(), rest.to_owned()),
        None => (DEFAULT_REGISTRY.to_owned(), format!("library/{rest}")),
    };
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-');
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(legal) && !part.starts_with('.') && !part.ends_with('.')
    };
    if repository.len() > 255 || !repository.split('/').all(part) {
        return Err(format!(
            "`{}` is not a repository: lower-case letters, digits, `_`, `.`, `-`, in parts divided by `/`",
            repository.escape_debug()
        ));
    }
    let host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if !registry.chars().all(host) {
        return Err(format!("`{}` is not the host of a registry", registry.escape_debug()));
    }
    let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
    Ok(RegistryReference { registry, repository, tag, digest })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn short_forms_are_written_out() {
        let full = |text: &str| text.parse::<Reference>().unwrap().to_string();
        assert_eq!(full("debian"), "docker.io/library/debian:latest");
        assert_eq!(full("acme/tool:1.2"), "docker.io/acme/tool:1.2");
        assert_eq!(full("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(full("ghcr.io/a/b:x"), "ghcr.io/a/b:x");
        let digest = Digest::of(b"x");
        assert_eq!(full(&format!("a/b@{digest}")), format!("docker.io/a/b@{digest}"));
        assert_eq!(full("oci:/tmp/a:b"), "oci:/tmp/a:b");
        assert_eq!(full("docker-archive:./x.tar"), "oci-archive:./x.tar");
    }

    #[test]
    fn a_name_stands_behind_the_path_of_a_file() {
        let layout = |path: &str, name: Option<&str>| Reference::Layout {
            path: path.into(),
            name: name.map(str::to_owned),
        };
        assert_eq!("oci:/a:b/c:d".parse::<Reference>().unwrap(), layout("/a:b/c", Some("d")));
        assert_eq!("oci:c".parse::<Reference>().unwrap(), layout("c", None));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in ["", "A", "a b", "a:", "a/../b", "a//b", "a@sha256:1", "x.y/", "-:a/b?", "a:b c"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
