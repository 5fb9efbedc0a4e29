//! Base images: Containerfiles that are part of the program. Providers that build take them from here; their sheets have a row for each.

use std::io;

use super::ProviderError;
use crate::tree;

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What all of them have.
const SHARED: &str = "base";
/// What to do about another name.
pub(super) const USE: &str = "use one of amp, base, claude, codex, copilot, crush, cursor, gemini, kilo, kiro, mise, nix, nullclaw, openclaw, opencode, pi, pkgx, wasmer, zeroclaw, or `image`";

/// The names of the base images, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|(name, _)| *name)
}

/// The Containerfile of a base image, whole; `None` if there is none of this name.
pub fn containerfile(name: &str) -> Option<String> {
    let text = |wanted: &str| EMBEDDED.iter().find(|(known, _)| *known == wanted).map(|(_, text)| *text);
    let (shared, own) = (text(SHARED)?, text(name)?);
    Some(if name == SHARED { shared.to_owned() } else { format!("{shared}{own}") })
}

/// A build context of a base image, gone when it is dropped, and the digest of what it holds.
///
/// # Errors
/// [`ProviderError::Unsupported`] if there is none of this name; a file that cannot be written.
pub(super) fn context(name: &str) -> Result<(tempfile::TempDir, String), ProviderError> {
    let text = containerfile(name).ok_or_else(|| ProviderError::Unsupported {
        message: format!("there is no base image `{}`; {USE}", name.escape_debug()),
    })?;
    let written = || -> io::Result<_> {
        let dir = tempfile::Builder::new().prefix("pocketenv-base-").tempdir()?;
        std::fs::write(dir.path().join("Dockerfile"), text)?;
        let sha256 = tree::tree_sha256(&tree::scan(dir.path())?);
        Ok((dir, sha256))
    };
    written().map_err(|error| ProviderError::permanent("a base image cannot be written down", error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_there_is_is_said_where_a_name_is_refused() {
        let names = names().collect::<Vec<_>>().join(", ");
        assert_eq!(USE, format!("use one of {names}, or `image`"));
    }
}
