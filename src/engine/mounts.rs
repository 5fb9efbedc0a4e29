//! Whether a running sandbox still has the directories that it was given, of volumes and of the host, as the kernel tells it.

use std::path::{Path, PathBuf};

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    /// Where, as the process sees it.
    point: PathBuf,
    /// The file system.
    device: String,
    /// Which directory of it. One that was removed ends in `//deleted`.
    root: PathBuf,
}

/// Directories of the spec, each the path of the host with the target inside, that are not mounted any more, or whose path leads to
/// another directory now. `outside` and `inside` are the `mountinfo` of this process and of the sandbox's. What cannot be told is not lost.
pub fn lost(given: &[(&Path, &Path)], outside: &str, inside: &str) -> Vec<PathBuf> {
    let (outside, inside) = (parse(outside), parse(inside));
    let is_lost = |from: &Path, target: &Path| {
        let Ok(from) = std::fs::canonicalize(from) else { return true };
        let Some((device, root)) = place(&outside, &from) else { return false };
        let points: Vec<&PathBuf> = inside
            .iter()
            .filter(|mount| mount.device == device && mount.root == root)
            .map(|mount| &mount.point)
            .collect();
        // The target may be reached through a link, so that the kernel calls it by another name.
        let same =
            given.iter().filter(|(other, _)| std::fs::canonicalize(other).is_ok_and(|o| o == from)).count();
        points.len() < same && !points.iter().any(|point| point.as_path() == target)
    };
    given
        .iter()
        .filter(|(from, target)| is_lost(from, target))
        .map(|(_, target)| (*target).to_owned())
        .collect()
}

fn parse(text: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Mounted { point: unescaped(point), device: device.to_owned(), root: unescaped(root) })
    };
    text.lines().filter_map(line).collect()
}

/// The file system and the directory of it that a path without links leads to.
fn place(mounts: &[Mounted], path: &Path) -> Option<(String, PathBuf)> {
    // Of several at one place the last one is seen.
    let longest = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    let mount = longest.max_by_key(|mount| mount.point.components().count())?;
    let below = path.strip_prefix(&mount.point).ok()?;
    let root = if below.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(below) };
    Some((mount.device.clone(), root))
}

/// A space, tab, line break or backslash in a path is written in octal.
fn unescaped(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let octal = (*byte == b'\\').then(|| text.get(at + 1..at + 4)).flatten();
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mount_is_known_by_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(dir.path()).unwrap();
        let from = dir.join("a b");
        std::fs::create_dir(&from).unwrap();
        let escaped = from.to_str().unwrap().replace(' ', "\\040");
        let outside = "20 1 8:1 / / rw - ext4 /dev/x rw\n";
        let given = [(from.as_path(), Path::new("/work/src"))];
        let line = |root: &str, point: &str| format!("99 90 8:1 {root} {point} ro - ext4 /dev/x rw\n");
        assert!(lost(&given, outside, &line(&escaped, "/work/src")).is_empty());
        assert!(lost(&given, outside, &line(&escaped, "/elsewhere/through/a/link")).is_empty());
        for gone in
            [line("/other", "/work/src"), line(&format!("{escaped}//deleted"), "/work/src"), String::new()]
        {
            assert_eq!(lost(&given, outside, &gone), [PathBuf::from("/work/src")], "{gone}");
        }
        // Without knowledge of the outside nothing is claimed; without the directory there is nothing to share.
        assert!(lost(&given, "", "").is_empty());
        std::fs::remove_dir(&from).unwrap();
        assert_eq!(lost(&given, outside, &line(&escaped, "/work/src")).len(), 1);
    }

    #[test]
    fn the_innermost_and_latest_mount_of_the_host_counts() {
        let outside = parse(
            "1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 /sub /home rw - btrfs b rw\n3 2 8:3 / /home rw - ext4 c rw\n4 1 0:9 / /homes rw - tmpfs d rw\n",
        );
        assert_eq!(place(&outside, Path::new("/home/me")), Some(("8:3".to_owned(), "/me".into())));
        assert_eq!(place(&outside, Path::new("/home")), Some(("8:3".to_owned(), "/".into())));
        assert_eq!(place(&outside, Path::new("/srv/x")), Some(("8:1".to_owned(), "/srv/x".into())));
        assert_eq!(unescaped("/a\\134b\\x"), PathBuf::from("/a\\b\\x"));
    }
}
