//! One layer, from its archive to a directory that an overlay can have as a lower one.
//!
//! Nothing in an archive is trusted. Every name is resolved by the kernel beneath the directory of the layer, links included; what is
//! created is created anew and never through a link. Who calls this has the ids of the sandbox and no other: the files get the owners that
//! the archive names, and a mistake here could touch nothing of the host.
//!
//! What a layer deletes from those below it becomes what an overlay mounted with `userxattr` understands: a character device 0:0, which
//! needs no privilege since Linux 5.8, and `user.overlay.opaque` on directories.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use serde::{Deserialize, Serialize};
use tar::EntryType;

use super::compression;
use super::digest::{Digest, Hashing};

/// The most entries of one layer.
pub(super) const MAX_ENTRIES: u64 = 1_000_000;
/// The longest path, in bytes: that of the kernel.
pub(super) const MAX_PATH: usize = 4095;
/// The most bytes of the extended header of one entry.
const MAX_HEADER: u64 = 1 << 20;
/// What hides a name of the layers below.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// What hides all that the layers below have in its directory.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a layer must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The digest of the layer as it came; absent where its source has none of its own.
    pub digest: Option<Digest>,
    /// The digest of the plain archive in it.
    pub diff_id: Digest,
    /// How many bytes it came in.
    pub size: u64,
}

/// What became of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes in its files.
    pub bytes: u64,
    /// What could not be kept as it stands in the archive, in words.
    pub told: Vec<String>,
}

/// The extended attribute by which a directory hides all that lower layers have in it. On the root of a layer an overlay does not look at it;
/// who puts layers on one another leaves out those below.
pub const OPAQUE_XATTR: &str = "user.overlay.opaque";

/// Unpacks the layer that `archive` holds into `root`, an empty directory. With `owners` every entry gets the owner that it names; without,
/// there is only one.
///
/// # Errors
/// What is wrong with the layer, with the entry, or what the file system reports.
pub fn unpack(archive: impl Read, root: &OwnedFd, expected: &Expected, owners: bool) -> io::Result<Unpacked> {
    let mut came = Hashing::new(archive);
    let mut plain = Hashing::new(compression::plain(&mut came, expected.size)?);
    let mut layer = Layer::new(root, owners, None);
    layer.read(WholeBlocks { inner: &mut plain, read: 0 })?;
    // What stands behind the end of the archive belongs to the digests.
    io::copy(&mut plain, &mut io::sink())?;
    let diff_id = plain.digest();
    io::copy(&mut came, &mut io::sink())?;
    let (size, digest) = (came.count(), came.digest());
    if size != expected.size {
        return Err(invalid(format!("it has {size} bytes, not {}", expected.size)));
    }
    for (found, wanted) in
        [(Some(&digest), expected.digest.as_ref()), (Some(&diff_id), Some(&expected.diff_id))]
    {
        if let (Some(found), Some(wanted)) = (found, wanted)
            && found != wanted
        {
            return Err(invalid(format!("its digest is {found}, not {wanted}")));
        }
    }
    layer.finish()
}

/// Where the entries of an archive go that is no layer, but files for an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placing {
    /// The path in the image, from its root.
    pub target: PathBuf,
    /// Whether the target is a directory, made where it is not there. Otherwise it becomes one file, unless it is a directory already.
    pub into: bool,
    /// The owner of everything, where it is not what the archive says.
    pub owner: Option<(u32, u32)>,
    /// The permissions of everything, where they are not what the archive says.
    pub mode: Option<u32>,
}

/// Puts the entries of an archive into the image at `root`. A directory that is there stays as it is, and gets what is new; a link to one leads
/// there, beneath the root.
///
/// # Errors
/// What is wrong with the archive, with the entry, or what the file system reports.
pub fn place(
    archive: impl Read,
    size: u64,
    root: &OwnedFd,
    placing: &Placing,
    owners: bool,
) -> io::Result<Unpacked> {
    let target = within(placing.target.as_os_str().as_bytes())?;
    let into = placing.into || open_dir(root, &target).is_ok();
    let mut layer = Layer::new(root, owners, Some(Placing { target, into, ..placing.clone() }));
    if into {
        let target = placing.target.clone();
        layer.parent(&within(target.as_os_str().as_bytes())?)?;
    }
    let mut plain = compression::plain(archive, size)?;
    layer.read(WholeBlocks { inner: &mut plain, read: 0 })?;
    layer.finish()
}

/// The plain archive in a file that may be one, as `ADD` sees it: by what it begins with.
///
/// # Errors
/// What reading reports.
pub fn is_archive(mut file: impl Read + std::io::Seek) -> io::Result<bool> {
    let mut first = [0; 512];
    let size = file.seek(io::SeekFrom::End(0))?;
    file.rewind()?;
    let mut plain = compression::plain(&mut file, size)?;
    let mut filled = 0;
    while filled < first.len() {
        match plain.read(&mut first[filled..]) {
            Ok(0) | Err(_) => return Ok(false),
            Ok(read) => filled += read,
        }
    }
    // POSIX.1-1988 and GNU's form of it.
    Ok(&first[257..262] == b"ustar")
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// A reader that fills the last block of 512 bytes up: some tools leave that out at the end of an archive.
struct WholeBlocks<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for WholeBlocks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = self.inner.read(buffer)?;
        if read == 0 {
            let missing = self.read.next_multiple_of(512) - self.read;
            read = buffer.len().min(usize::try_from(missing).unwrap_or(0));
            buffer[..read].fill(0);
        }
        self.read += read as u64;
        Ok(read)
    }
}

/// What stands in the headers before an entry and counts for it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Extended {
    /// Reads the records of a POSIX header: `LENGTH NAME=VALUE\n` each. A value may hold any byte.
    fn take(&mut self, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
            let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
            records = &records[length..];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..]);
            let number = || std::str::from_utf8(value).ok()?.split('.').next()?.parse::<i64>().ok();
            let unsigned = || number().and_then(|number| u64::try_from(number).ok());
            match name {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = Some(unsigned()?),
                "uid" => self.uid = Some(unsigned()?),
                "gid" => self.gid = Some(unsigned()?),
                "mtime" => self.mtime = number(),
                _ if name.starts_with("GNU.sparse.") => return None,
                _ => {
                    if let Some(name) = name.strip_prefix("SCHILY.xattr.") {
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Some(())
    }
}

/// What was not kept: how often, and the first path.
#[derive(Debug, Default)]
struct Lost {
    devices: Option<(u64, String)>,
    owners: Option<(u64, String)>,
    xattrs: Option<(u64, String)>,
}

fn count(lost: &mut Option<(u64, String)>, path: &Path) {
    lost.get_or_insert_with(|| (0, path.display().to_string())).0 += 1;
}

struct Layer<'a> {
    root: &'a OwnedFd,
    owners: bool,
    unpacked: Unpacked,
    lost: Lost,
    /// The directory of the last entry: the next one is likely to be in it.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times of directories, which every entry in them would change.
    dirs: Vec<(PathBuf, i64)>,
    /// Where entries go, if this is no layer.
    placing: Option<Placing>,
}

/// The facts of one entry that hold for every kind.
struct Facts<'a> {
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    xattrs: &'a [(String, Vec<u8>)],
}

impl<'a> Layer<'a> {
    fn new(root: &'a OwnedFd, owners: bool, placing: Option<Placing>) -> Self {
        Layer {
            root,
            owners,
            unpacked: Unpacked::default(),
            lost: Lost::default(),
            parent: None,
            dirs: Vec::new(),
            placing,
        }
    }

    fn read(&mut self, plain: impl Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(plain);
        let mut extended = Extended::default();
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            self.unpacked.entries += 1;
            if self.unpacked.entries > MAX_ENTRIES {
                return Err(invalid(format!("it has more than {MAX_ENTRIES} entries")));
            }
            let kind = entry.header().entry_type();
            let mut header = |what: &str| -> io::Result<Vec<u8>> {
                let mut bytes = Vec::new();
                if entry.size() > MAX_HEADER
                    || entry.by_ref().take(MAX_HEADER).read_to_end(&mut bytes)? as u64 != entry.size()
                {
                    return Err(invalid(format!("{what} is longer than {MAX_HEADER} bytes, or cut short")));
                }
                Ok(bytes)
            };
            let without_zero = |mut bytes: Vec<u8>| {
                bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
                bytes
            };
            match kind {
                EntryType::GNULongName => extended.path = Some(without_zero(header("a long name")?)),
                EntryType::GNULongLink => extended.link = Some(without_zero(header("a long link")?)),
                EntryType::XHeader => {
                    let records = header("an extended header")?;
                    extended.take(&records).ok_or_else(|| {
                        invalid("an extended header cannot be read, or is of a sparse file, which is not supported")
                    })?;
                }
                EntryType::XGlobalHeader => drop(header("a global header")?), // comments of what made the archive
                _ => {
                    let extended = std::mem::take(&mut extended);
                    let path = extended.path.clone().unwrap_or_else(|| entry.path_bytes().into_owned());
                    let named = String::from_utf8_lossy(&path).chars().take(300).collect::<String>();
                    self.entry(&path, &mut entry, extended).map_err(|error| {
                        io::Error::new(error.kind(), format!("entry `{}`: {error}", named.escape_debug()))
                    })?;
                }
            }
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        path: &[u8],
        entry: &mut tar::Entry<'_, R>,
        extended: Extended,
    ) -> io::Result<()> {
        let named_as_dir = path.ends_with(b"/");
        let path = within(path)?;
        let path = match &self.placing {
            None => path,
            Some(placing) if placing.into => placing.target.join(path),
            Some(placing) => placing.target.clone(),
        };
        if extended.size.is_some_and(|size| size != entry.size()) {
            return Err(invalid("its size stands in an extended header alone, which is not supported"));
        }
        let header = entry.header();
        let kind = match header.entry_type() {
            // As archives had it before there were kinds.
            EntryType::Regular if named_as_dir => EntryType::Directory,
            kind => kind,
        };
        let id = |extended: Option<u64>, own: io::Result<u64>| -> io::Result<u32> {
            let id = extended.map_or(own, Ok)?;
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| invalid(format!("its owner {id} cannot be")))
        };
        let placing = self.placing.as_ref();
        let mode = placing.and_then(|placing| placing.mode).map_or_else(|| header.mode(), Ok)?;
        let owner = match placing.and_then(|placing| placing.owner) {
            Some(owner) => owner,
            None => (id(extended.uid, header.uid())?, id(extended.gid, header.gid())?),
        };
        let facts = Facts {
            mode: mode & 0o7777,
            owner,
            mtime: extended.mtime.or_else(|| i64::try_from(header.mtime().ok()?).ok()).unwrap_or(0),
            xattrs: &extended.xattrs,
        };
        let link = match kind {
            EntryType::Symlink | EntryType::Link => {
                let own = || header.link_name_bytes().map(|name| name.into_owned());
                let link = extended.link.clone().or_else(own).unwrap_or_default();
                if link.is_empty() || link.len() > MAX_PATH || link.contains(&0) {
                    return Err(invalid("it is a link to nothing, or to a name that is too long"));
                }
                link
            }
            _ => Vec::new(),
        };
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself.
            return match kind {
                EntryType::Directory if self.placing.is_some() => Ok(()),
                EntryType::Directory => {
                    self.facts(self.root.as_fd(), &path, &facts)?;
                    self.dirs.push((path, facts.mtime));
                    Ok(())
                }
                _ => Err(invalid("it replaces the root")),
            };
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent(&parent_path)?;
        let is_layer = self.placing.is_none();
        if !is_layer && kind == EntryType::Directory && open_dir(self.root, &path).is_ok() {
            return Ok(());
        }
        if is_layer && name.as_bytes() == OPAQUE {
            return opaque(&parent);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT).filter(|_| is_layer) {
            if hidden.starts_with(WHITEOUT) {
                return Ok(()); // bookkeeping of aufs
            }
            return whiteout(&parent, OsStr::from_bytes(hidden));
        }
        let was_hidden = self.make_room(&parent, &name, kind == EntryType::Directory)?;
        match kind {
            EntryType::Directory => {
                match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700)) {
                    Err(rustix::io::Errno::EXIST) => {}
                    other => other?,
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(&parent, &name, flags, Mode::empty())?;
                if was_hidden {
                    opaque(&dir)?;
                }
                self.facts(dir.as_fd(), &path, &facts)?;
                self.dirs.push((path, facts.mtime));
            }
            EntryType::Regular | EntryType::Continuous => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o600))?);
                let copied = copy(&mut *entry, &file)?;
                if copied != entry.size() {
                    return Err(invalid("it is cut short"));
                }
                self.unpacked.bytes += copied;
                self.facts(file.as_fd(), &path, &facts)?;
                set_time(&parent, &name, facts.mtime)?;
            }
            EntryType::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(&link), &parent, &name)?;
                self.own(&parent, &name, &path, facts.owner)?;
                set_time(&parent, &name, facts.mtime)?;
            }
            EntryType::Link => {
                let target = within(&link)?;
                let target = match &self.placing {
                    Some(placing) if placing.into => placing.target.join(target),
                    _ => target,
                };
                let (Some(dir), Some(file)) = (target.parent(), target.file_name()) else {
                    return Err(invalid("it is a hard link to the root"));
                };
                let dir = open_dir(self.root, dir).map_err(|error| {
                    invalid(format!("it is a hard link to {}: {error}", target.display()))
                })?;
                rustix::fs::linkat(&dir, file, &parent, &name, AtFlags::empty()).map_err(|error| {
                    invalid(format!(
                        "it is a hard link to {}, which this layer does not have ({error})",
                        target.display()
                    ))
                })?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&parent, &name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                self.own(&parent, &name, &path, facts.owner)?;
                rustix::fs::chmodat(&parent, &name, Mode::from_raw_mode(facts.mode), AtFlags::empty())?;
            }
            // A sandbox has the devices that the engine gives it.
            EntryType::Char | EntryType::Block => count(&mut self.lost.devices, &path),
            EntryType::GNUSparse => return Err(invalid("it is a sparse file, which is not supported")),
            other => return Err(invalid(format!("it is of an unknown kind, {}", other.as_byte()))),
        }
        Ok(())
    }

    /// The directory at `path` beneath the root, made where it is not there.
    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((last, dir)) = &self.parent
            && last == path
        {
            return dir.try_clone();
        }
        let dir = match open_dir(self.root, path) {
            Err(rustix::io::Errno::NOENT) => self.make_dirs(path)?,
            other => other?,
        };
        self.parent = Some((path.to_owned(), dir.try_clone()?));
        Ok(dir)
    }

    fn make_dirs(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut at = PathBuf::new();
        let mut dir = open_dir(self.root, &at)?;
        for name in path {
            at.push(name);
            dir = match open_dir(self.root, &at) {
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
                    let owner = self.placing.as_ref().and_then(|placing| placing.owner);
                    if let (true, Some((uid, gid))) = (self.owners, owner) {
                        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                        rustix::fs::chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                    open_dir(self.root, &at)?
                }
                other => other?,
            };
        }
        Ok(dir)
    }

    /// Takes away what a new entry replaces; a directory stays for a directory. Whether what lower layers have there is hidden.
    fn make_room(&mut self, parent: &OwnedFd, name: &OsStr, for_dir: bool) -> io::Result<bool> {
        let there = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            other => other?,
        };
        let kind = FileType::from_raw_mode(there.st_mode);
        if kind == FileType::Directory && !for_dir && self.placing.is_some() {
            return Err(invalid("there is a directory where it should go"));
        }
        if kind != FileType::Directory {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            return Ok(kind == FileType::CharacterDevice);
        }
        if !for_dir {
            // The standard library follows no links here; the way through the descriptor cannot be changed.
            std::fs::remove_dir_all(Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name))?;
            self.parent = None;
            self.dirs.clear();
        }
        Ok(false)
    }

    /// Owner, mode and extended attributes, in this order: a change of owner takes set-user-id bits and capabilities away.
    fn facts(&mut self, file: impl AsFd, path: &Path, facts: &Facts<'_>) -> io::Result<()> {
        let (uid, gid) = facts.owner;
        if self.owners {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(&file, owner.0, owner.1).map_err(|error| no_such_owner(error, facts.owner))?;
        } else if facts.owner != (0, 0) {
            count(&mut self.lost.owners, path);
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(facts.mode))?;
        for (name, value) in facts.xattrs {
            // Those of an overlay would be orders to it.
            let ours = name.starts_with("user.") && !name.starts_with("user.overlay.");
            let kept = (ours || name == "security.capability")
                && rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()).is_ok();
            if !kept {
                count(&mut self.lost.xattrs, path);
            }
        }
        Ok(())
    }

    fn own(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, owner: (u32, u32)) -> io::Result<()> {
        if !self.owners {
            if owner != (0, 0) {
                count(&mut self.lost.owners, path);
            }
            return Ok(());
        }
        let (uid, gid) = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| no_such_owner(error, owner))
    }

    fn finish(mut self) -> io::Result<Unpacked> {
        for (path, mtime) in self.dirs.iter().rev() {
            match open_dir(self.root, path) {
                Ok(dir) => set_time(&dir, OsStr::new("."), *mtime)?,
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {} // replaced since
                Err(error) => return Err(error.into()),
            }
        }
        let told = [
            (self.lost.devices, "devices were left out"),
            (
                self.lost.owners,
                "owners other than root became root, since this user has no range of ids in /etc/subuid",
            ),
            (self.lost.xattrs, "extended attributes were left out"),
        ];
        self.unpacked.told = told
            .into_iter()
            .filter_map(|(lost, what)| {
                lost.map(|(count, path)| format!("{count} {what}, the first of /{path}"))
            })
            .collect();
        Ok(self.unpacked)
    }
}

fn no_such_owner(error: rustix::io::Errno, (uid, gid): (u32, u32)) -> io::Error {
    match error {
        rustix::io::Errno::INVAL => {
            invalid(format!("its owner {uid}:{gid} is beyond the ids that a sandbox has here"))
        }
        error => error.into(),
    }
}

/// The path of an entry beneath the root of the layer. A leading slash means the same root; `..` is refused.
fn within(path: &[u8]) -> io::Result<PathBuf> {
    if path.len() > MAX_PATH {
        return Err(invalid("its path is too long"));
    }
    if path.contains(&0) {
        return Err(invalid("its path has a zero byte"));
    }
    let mut within = PathBuf::new();
    for component in Path::new(&std::ffi::OsString::from_vec(path.to_vec())).components() {
        match component {
            Component::Normal(name) => within.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid("its path leads out of the image by `..`"));
            }
        }
    }
    Ok(within)
}

/// Opens a directory beneath the root; links on the way lead beneath it too, whatever they say.
pub(super) fn open_dir(root: &OwnedFd, path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel asks to try again while anything on the machine is renamed or mounted during a path with `..`.
    for _ in 0..1000 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(rustix::io::Errno::AGAIN)
}

fn opaque(dir: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
}

/// Hides a name of the layers below. What this layer itself has of that name stays, whichever of the two came first.
fn whiteout(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    if name.is_empty() || matches!(name.as_bytes(), b"." | b"..") {
        return Err(invalid("it hides no name"));
    }
    match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(rustix::io::Errno::EXIST) => {}
        other => return Ok(other?),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(dir) => opaque(&dir),
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set_time(dir: &OwnedFd, name: &OsStr, seconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy(mut from: impl Read, mut to: &File) -> io::Result<u64> {
    let mut buffer = vec![0; 128 * 1024];
    let mut copied = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                copied += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
