//! Devices of the machine that a sandbox gets by name, beside the few that every one has.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use serde::{Deserialize, Serialize};

use super::error::EngineError;
use super::launch::IdMap;

/// The directory of a sandbox's own nodes, relative to the sandbox's.
const OWN: &str = "devices";

/// A device of the machine, or several that are of use together only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// Virtual machines.
    Kvm,
    /// Graphics processors, all that there are.
    Gpu,
}

impl Device {
    /// The name, and the nodes as people write them.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Device::Kvm => ("kvm", "/dev/kvm"),
            Device::Gpu => ("gpu", "/dev/dri/*, /dev/nvidia* and /dev/kfd"),
        }
    }

    fn candidates(self) -> io::Result<Vec<PathBuf>> {
        match self {
            Device::Kvm => Ok(vec!["/dev/kvm".into()]),
            Device::Gpu => {
                let mut found = vec![PathBuf::from("/dev/kfd")];
                for (dir, start) in [("/dev/dri", ""), ("/dev", "nvidia")] {
                    let entries = match fs::read_dir(dir) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        other => other?,
                    };
                    for entry in entries {
                        let entry = entry?;
                        if entry.file_name().to_string_lossy().starts_with(start) {
                            found.push(entry.path());
                        }
                    }
                }
                found.sort();
                Ok(found)
            }
        }
    }
}

/// The nodes of the machine that these devices are.
///
/// # Errors
/// [`EngineError::Invalid`] names a device that the machine does not have; [`EngineError::File`].
pub fn nodes(devices: &[Device]) -> Result<Vec<PathBuf>, EngineError> {
    let mut nodes = Vec::new();
    for device in devices {
        let (name, looked_for) = device.words();
        let mut found = device.candidates().map_err(EngineError::file("list", Path::new("/dev")))?;
        found.retain(|path| fs::symlink_metadata(path).is_ok_and(|node| node.file_type().is_char_device()));
        if found.is_empty() {
            return Err(EngineError::Invalid(format!("this machine has no device `{name}` ({looked_for})")));
        }
        nodes.append(&mut found);
    }
    Ok(nodes)
}

/// Where the node number `index` is opened: the machine's own belong to its root, who is nobody inside, so that a sandbox made by root has
/// nodes of its own.
pub fn source(dir: &Path, id_map: &IdMap, index: usize, node: &Path) -> PathBuf {
    match id_map {
        IdMap::High { .. } => dir.join(OWN).join(index.to_string()),
        IdMap::Subordinate { .. } | IdMap::Single { .. } => node.to_owned(),
    }
}

/// Makes a sandbox's own nodes anew, where it has some: what they lead to may have got another number.
///
/// # Errors
/// What the file system reports.
pub fn make(dir: &Path, id_map: &IdMap, nodes: &[PathBuf]) -> io::Result<()> {
    let own = dir.join(OWN);
    match fs::remove_dir_all(&own) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if nodes.is_empty() || !matches!(id_map, IdMap::High { .. }) {
        return Ok(());
    }
    fs::DirBuilder::new().mode(0o700).create(&own)?;
    let (uid, gid) = id_map.root();
    for (index, node) in nodes.iter().enumerate() {
        let path = source(dir, id_map, index, node);
        let number = fs::symlink_metadata(node)?.rdev();
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, number)?;
        chown(&path, Some(uid), Some(gid))?;
    }
    Ok(())
}
