//! What a manifest that is not trusted may reach of this machine: a repository that anybody can push to must not read the operator's files or
//! run programs beside the sandboxes.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// The limits of a manifest that is not trusted. Each `true` lifts one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The directory that paths of this machine must stay within, links resolved.
    pub root: PathBuf,
    /// Paths of this machine may lead out of it.
    pub host_paths: bool,
    /// Variables of the environment that secrets may come from.
    pub secret_env: BTreeSet<String>,
    /// Files, and directories with all that is in them, that secrets may come from as well.
    pub secret_files: Vec<PathBuf>,
    /// Secrets may come from a command that is run on this machine.
    pub command_secrets: bool,
    /// Secrets may come from the sealed vault.
    pub vault_secrets: bool,
    /// Sandboxes may use the network of this machine as their own.
    pub host_network: bool,
    /// Sandboxes may have devices of this machine.
    pub devices: bool,
    /// Ports may be forwarded from ports of this machine that the manifest chooses, rather than from free ones, and from all of its addresses, rather than
    /// from the loopback.
    pub host_ports: bool,
    /// The manifest may set providers up, which decides where the operator's credentials are sent.
    pub provider_settings: bool,
}

impl Confinement {
    /// Whether a path stays within, as it is written and with links resolved.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        self.host_paths || within(path, &self.root)
    }

    /// Whether a secret may come from this file.
    pub(crate) fn holds_secret(&self, path: &Path) -> bool {
        self.holds(path) || self.secret_files.iter().any(|allowed| within(path, allowed))
    }
}

/// Whether a path is `root` or below it, as it is written and with links resolved.
fn within(path: &Path, root: &Path) -> bool {
    let (Some(path), Some(root)) = (written(path), written(root)) else { return false };
    if !path.starts_with(&root) {
        return false;
    }
    match (std::fs::canonicalize(&path), std::fs::canonicalize(&root)) {
        (Ok(path), Ok(root)) => path.starts_with(root),
        // What is not there cannot lead anywhere.
        (Err(error), Ok(_)) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// An absolute path without `.` and `..`, by its text alone.
fn written(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in std::path::absolute(path).ok()?.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn neither_dots_nor_links_lead_out() {
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(root.path().join("secret"), "x").unwrap();
        std::fs::write(inside.join("own"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("own", inside.join("good")).unwrap();
        let mut confinement = Confinement {
            root: inside.clone(),
            host_paths: false,
            secret_env: BTreeSet::new(),
            secret_files: vec![root.path().join("secret")],
            command_secrets: false,
            vault_secrets: false,
            host_network: false,
            devices: false,
            host_ports: false,
            provider_settings: false,
        };
        for (path, holds) in [
            ("own", true),
            ("good", true),
            ("a/../own", true),
            ("missing", true),
            ("link", false),
            ("../secret", false),
            ("/etc/passwd", false),
            ("../inside2", false),
        ] {
            assert_eq!(confinement.holds(&inside.join(path)), holds, "{path}");
        }
        assert!(confinement.holds_secret(&root.path().join("secret")));
        assert!(!confinement.holds_secret(&root.path().join("secret2")));
        assert!(!confinement.holds_secret(&inside.join("link")), "a link of the repository stays within it");
        confinement.host_paths = true;
        assert!(confinement.holds(Path::new("/etc/passwd")));
    }
}
