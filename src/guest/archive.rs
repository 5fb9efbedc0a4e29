//! Archives that travel into sandboxes: written while they are sent, every host file held against the hash it should have.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tokio_util::io::SyncIoBridge;

use super::script::stream_in;
use super::tree::TreeError;
use crate::provider::{CapturedOutput, Command, Guest, GuestError};

/// An archive of up to this many bytes that are in memory already is packed at once: a thread for it would cost more than it saves.
const SMALL: usize = 256 * 1024;

/// One member of the archive that travels into the sandbox.
#[derive(Clone)]
pub(super) struct Member {
    /// Where it is unpacked, relative.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// What it holds.
    pub data: Source,
}

/// What a member holds.
#[derive(Clone)]
pub(super) enum Source {
    /// These bytes.
    Bytes(std::sync::Arc<[u8]>),
    /// A file of the host, with the hash it must have; without one it must not change while it is read.
    File { path: PathBuf, sha256: Option<String> },
    /// A directory.
    Directory,
    /// A symbolic link.
    Link { target: String },
}

impl Member {
    /// A member of these bytes.
    pub fn bytes(name: String, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name, mode, data: Source::Bytes(bytes.into().into()) }
    }

    /// How many bytes it holds, if they are not those of a host file.
    fn size_in_memory(&self) -> Option<usize> {
        match &self.data {
            Source::Bytes(bytes) => Some(bytes.len()),
            Source::Link { .. } | Source::Directory => Some(0),
            Source::File { .. } => None,
        }
    }
}

/// Sends the archive of `members` to the standard input of `command`. A failure of this side is an error; the command's own is in the output.
pub(super) async fn send(
    guest: &dyn Guest,
    what: &str,
    command: &Command,
    members: Vec<Member>,
) -> Result<CapturedOutput, GuestError> {
    if members.iter().map(Member::size_in_memory).sum::<Option<usize>>().is_some_and(|size| size <= SMALL) {
        let mut archive = Vec::new();
        pack(&members, &mut archive).map_err(|error| error.told(what))?;
        return stream_in(guest, command, &mut &archive[..]).await;
    }
    let (mut reader, writer) = tokio::io::duplex(256 * 1024);
    let packing = tokio::task::spawn_blocking(move || pack(&members, SyncIoBridge::new(writer)));
    let output = stream_in(guest, command, &mut reader).await?;
    drop(reader);
    let packed = packing.await.map_err(|error| io_error("packing files", io::Error::other(error)))?;
    // The reason on this side explains a failure inside, unless this side only saw the pipe close.
    match packed {
        Err(PackError::Write(_)) if !output.status.success() => Ok(output),
        Err(error) => Err(error.told(what)),
        Ok(()) => Ok(output),
    }
}

/// A failure of this side.
pub(super) fn io_error(what: &str, source: io::Error) -> GuestError {
    GuestError::Io { what: what.to_owned(), source }
}

/// A directory of the host cannot be read.
pub(super) fn unreadable(path: &Path, error: TreeError) -> GuestError {
    io_error(&format!("reading {}", path.display()), io::Error::other(error))
}

/// A host file is not what it was.
pub(super) fn changed(path: &Path) -> GuestError {
    GuestError::Unsupported(format!("{} has changed since it was looked at; try again", path.display()))
}

/// Why an archive could not be written.
enum PackError {
    /// The file is not what was planned.
    Changed(PathBuf),
    /// A host file cannot be read.
    Read(PathBuf, io::Error),
    /// The other end is gone.
    Write(io::Error),
}

impl PackError {
    fn told(self, what: &str) -> GuestError {
        match self {
            Self::Changed(path) => changed(&path),
            Self::Read(path, source) => io_error(&format!("reading {}", path.display()), source),
            Self::Write(source) => io_error(what, source),
        }
    }
}

/// Writes the archive. It is cut, without its last member, if any file is not what was planned.
fn pack(members: &[Member], out: impl Write) -> Result<(), PackError> {
    // A header is 512 bytes, and each write wakes the other side.
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, out));
    for member in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(member.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(now_seconds());
        match &member.data {
            Source::Bytes(bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, &member.name, &bytes[..]).map_err(PackError::Write)?;
            }
            Source::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, &member.name, target).map_err(PackError::Write)?;
            }
            Source::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                builder
                    .append_data(&mut header, format!("{}/", member.name), io::empty())
                    .map_err(PackError::Write)?;
            }
            Source::File { path, sha256 } => {
                let read = |source| PackError::Read(path.clone(), source);
                let mut file = std::fs::File::open(path).map_err(read)?;
                let look = |file: &std::fs::File| file.metadata().and_then(|m| Ok((m.len(), m.modified()?)));
                let seen = look(&file).map_err(read)?;
                let (size, _) = seen;
                header.set_size(size);
                let as_planned = if let Some(sha256) = sha256 {
                    let mut reader = Hashing::new(file.take(size));
                    builder.append_data(&mut header, &member.name, &mut reader).map_err(PackError::Write)?;
                    reader.read == size && reader.hex() == *sha256
                } else {
                    let data = (&mut file).take(size);
                    builder.append_data(&mut header, &member.name, data).map_err(PackError::Write)?;
                    look(&file).map_err(read)? == seen
                };
                if !as_planned {
                    return Err(PackError::Changed(path.clone()));
                }
            }
        }
    }
    builder.into_inner().and_then(|mut out| out.flush()).map_err(PackError::Write)
}

/// The modification time of what is written: now, as for any file just written.
fn now_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A reader that hashes what passes.
struct Hashing<R> {
    inner: R,
    hasher: sha2::Sha256,
    read: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, hasher: sha2::Digest::new(), read: 0 }
    }

    fn hex(self) -> String {
        hex::encode(sha2::Digest::finalize(self.hasher))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        sha2::Digest::update(&mut self.hasher, &buffer[..read]);
        self.read += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Does something when the first of an archive is written, which is in the middle of a file that is larger than one write.
    struct Meanwhile<F>(Option<F>);

    impl<F: FnOnce()> Write for Meanwhile<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(act) = self.0.take() {
                act();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_without_a_hash_must_not_change_while_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let size = 1 << 20;
        let packed = |act: &dyn Fn()| {
            fs::write(&path, vec![1; size]).unwrap();
            // The clock of files may stand still between two writes.
            let hour_ago = SystemTime::now() - Duration::from_secs(3600);
            File::options().append(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
            let data = Source::File { path: path.clone(), sha256: None };
            let member = Member { name: "file".to_owned(), mode: 0o644, data };
            pack(&[member], Meanwhile(Some(act)))
        };
        assert!(packed(&|| ()).is_ok());
        let longer = || File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        let shorter = || File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        let other = || fs::write(&path, vec![2; size]).unwrap();
        for change in [&longer as &dyn Fn(), &shorter, &other] {
            assert!(matches!(packed(change), Err(PackError::Changed(changed)) if changed == path));
        }
    }
}
