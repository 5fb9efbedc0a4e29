//! Names of other sandboxes in `/etc/hosts`, between two lines of ours, beside whatever else is there. Only init calls this, from inside.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

const BEGIN: &str = "# pocketenv: other sandboxes";
const END: &str = "# pocketenv: end";
/// The most bytes that are kept of a file of theirs.
const MAX: u64 = 1024 * 1024;

/// Makes these the names in `etc/hosts`. Root inside may have put anything there: only a regular file is read, and it is replaced at once.
///
/// # Errors
/// What the file system reports; a file that is none, or is too large.
pub fn set(etc: &Path, names: &BTreeMap<String, Ipv4Addr>) -> io::Result<()> {
    let path = etc.join("hosts");
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let (mut text, mode, owner) = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => {
            let meta = file.metadata()?;
            if !meta.is_file() || meta.len() > MAX {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let mut text = Vec::new();
            (&file).take(MAX).read_to_end(&mut text)?;
            (text, meta.mode() & 0o777, Some((meta.uid(), meta.gid())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), 0o644, None),
        Err(error) => return Err(error),
    };
    let before = text.clone();
    without_ours(&mut text);
    if !names.is_empty() {
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        writeln!(text, "{BEGIN}")?;
        for (name, address) in names {
            writeln!(text, "{address} {name}")?;
        }
        writeln!(text, "{END}")?;
    }
    if text == before {
        return Ok(());
    }
    let new = etc.join(".hosts.pocketenv");
    let _ = fs::remove_file(&new); // of an interrupted try; what else is wrong with it is told by the next line
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(&text)?;
    if let Some((uid, gid)) = owner {
        fchown(&file, Some(uid), Some(gid))?;
    }
    fs::rename(&new, &path)
}

/// Takes out what is between our lines; without the second one, what follows the first is theirs.
fn without_ours(text: &mut Vec<u8>) {
    let mut at = 0;
    let (mut begin, mut end) = (None, None);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let next = at + line.len();
        match line.trim_ascii_end() {
            line if line == BEGIN.as_bytes() && begin.is_none() => begin = Some((at, next)),
            line if line == END.as_bytes() && begin.is_some() && end.is_none() => end = Some(next),
            _ => {}
        }
        at = next;
    }
    if let Some((from, line_end)) = begin {
        text.drain(from..end.unwrap_or(line_end));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go_and_what_else_is_there_stays() {
        let etc = tempfile::tempdir().unwrap();
        let path = etc.path().join("hosts");
        let names = |all: &[(&str, u8)]| {
            all.iter().map(|(name, n)| ((*name).to_owned(), Ipv4Addr::new(127, 64, 0, *n))).collect()
        };
        let read = || fs::read_to_string(&path).unwrap();
        set(etc.path(), &names(&[])).unwrap();
        assert!(!path.exists());
        fs::write(&path, "127.0.0.1 localhost\n10.0.0.1 theirs").unwrap();
        set(etc.path(), &names(&[("db", 1)])).unwrap();
        let ours = "# pocketenv: other sandboxes\n127.64.0.1 db\n# pocketenv: end\n";
        assert_eq!(read(), format!("127.0.0.1 localhost\n10.0.0.1 theirs\n{ours}"));
        fs::write(&path, format!("{}10.0.0.2 more\n", read())).unwrap();
        set(etc.path(), &names(&[("a", 2), ("db", 1)])).unwrap();
        assert_eq!(
            read(),
            "127.0.0.1 localhost\n10.0.0.1 theirs\n10.0.0.2 more\n# pocketenv: other sandboxes\n127.64.0.2 a\n127.64.0.1 db\n# pocketenv: end\n"
        );
        set(etc.path(), &names(&[])).unwrap();
        assert_eq!(read(), "127.0.0.1 localhost\n10.0.0.1 theirs\n10.0.0.2 more\n");
        let left: Vec<_> = fs::read_dir(etc.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["hosts"]);
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        let etc = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (etc.path().join("hosts"), etc.path().join("elsewhere"));
        let names = BTreeMap::from([("db".to_owned(), Ipv4Addr::new(127, 64, 0, 1))]);
        fs::write(&elsewhere, "x").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(set(etc.path(), &names).is_err());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "x");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(set(etc.path(), &names).is_err());
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(MAX + 1).unwrap();
        assert!(set(etc.path(), &names).is_err());
        fs::write(&path, "# pocketenv: other sandboxes\n10.0.0.1 theirs\n").unwrap();
        set(etc.path(), &BTreeMap::new()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "10.0.0.1 theirs\n", "what has no end is theirs");
    }
}
