//! Which ids a command runs with: `name[:group]` and `uid[:gid]`, looked up in the sandbox's own files.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{FileType, Mode, OFlags};

/// The identity of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Login name, or the number.
    pub name: String,
    /// Home directory.
    pub home: String,
}

/// Looks `user` up; absent means root. A file that is not there is empty.
///
/// # Errors
/// `NotFound` for a name that is not listed; else what reading reports.
pub fn resolve(user: Option<&str>) -> io::Result<Identity> {
    find(user.unwrap_or("0"), &read("/etc/passwd")?, &read("/etc/group")?)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// Reads a file that the sandbox controls: only a regular one, and only so much of it.
fn read(path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
        other => other?,
    };
    if !FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    File::from(file).take(1024 * 1024).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Looks `user` up in the texts of `/etc/passwd` and `/etc/group`.
pub fn find(user: &str, passwd: &str, group: &str) -> Option<Identity> {
    let (user, wanted_group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let number: Option<u32> = user.parse().ok();
    let listed = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let matches = number.map_or(name == user, |number| number == uid);
        matches.then(|| Identity {
            uid,
            gid,
            groups: Vec::new(),
            name: name.to_owned(),
            home: home.to_owned(),
        })
    });
    let mut identity = match (listed, number) {
        (Some(identity), _) => identity,
        (None, Some(uid)) => {
            Identity { uid, gid: uid, groups: Vec::new(), name: uid.to_string(), home: "/".to_owned() }
        }
        (None, None) => return None,
    };
    if identity.uid == 0 && identity.home == "/" {
        identity.home = "/root".to_owned();
    }
    if identity.home.is_empty() {
        identity.home = "/".to_owned();
    }
    let groups = || {
        group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members, ..] = fields[..] else { return None };
            Some((name, gid.parse::<u32>().ok()?, members))
        })
    };
    match wanted_group {
        Some(wanted) => {
            let by_name = || groups().find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
            identity.gid = wanted.parse().ok().or_else(by_name)?;
        }
        None => {
            identity.groups = groups()
                .filter(|(_, gid, members)| {
                    *gid != identity.gid && members.split(',').any(|member| member == identity.name)
                })
                .map(|(_, gid, _)| gid)
                .take(64)
                .collect();
        }
    }
    Some(identity)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:ann,bob\nann:x:1000:\n";

    #[test]
    fn names_numbers_and_groups() {
        let ann = find("ann", PASSWD, GROUP).unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.groups.as_slice(), ann.home.as_str()),
            (1000, 1000, &[29][..], "/home/ann")
        );
        assert_eq!(find("1000", PASSWD, GROUP).unwrap().name, "ann");
        let stranger = find("4000:29", PASSWD, GROUP).unwrap();
        assert_eq!((stranger.uid, stranger.gid, stranger.home.as_str()), (4000, 29, "/"));
        assert_eq!(find("ann:audio", PASSWD, GROUP).unwrap().gid, 29);
    }

    #[test]
    fn unknown_names_are_not_root() {
        for user in ["bob", "", "ann:nogroup", "-1", "99999999999", "root x"] {
            assert_eq!(find(user, PASSWD, GROUP), None, "{user:?}");
        }
    }
}
