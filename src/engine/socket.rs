//! Unix sockets of the host whose connections lead inside: where they may be, who may connect, and how they come and go.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// The longest path that a client can connect to: what `sun_path` holds, without the NUL at its end.
pub const LONGEST_PATH: usize = 107;

/// A socket that listens at a path. The path goes with it.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    /// Device and inode of what was made there.
    made: (u64, u64),
}

impl Listening {
    /// Listens at a path of the host, for its own user only. A socket that nobody listens on any more makes room.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens, `AlreadyExists` where something else is; else what the kernel reports.
    pub fn at(path: &Path) -> io::Result<(Listening, UnixListener)> {
        remove_dead(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Linux gives what is bound the mode of the socket, so that nobody else can connect at any moment.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        let made = identity(path)?;
        let listening = Listening { path: path.to_owned(), made };
        rustix::net::listen(&socket, 1024)?;
        Ok((listening, UnixListener::from_std(socket.into())?))
    }

    /// Whether clients that connect to the path come here: it may have been removed or replaced.
    pub fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|there| there == self.made)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path); // whoever starts or deletes the sandbox next removes it
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes a socket of our own user that nobody listens on, such as one whose process was killed.
///
/// # Errors
/// As [`Listening::at`].
pub fn remove_dead(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !metadata.file_type().is_socket() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(rustix::io::Errno::EXIST.into());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&client, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path),
        // A socket of another kind is not one of ours.
        Err(rustix::io::Errno::PROTOTYPE) => Err(rustix::io::Errno::EXIST.into()),
        _ => Err(rustix::io::Errno::ADDRINUSE.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixDatagram, UnixListener as StdListener, UnixStream};

    #[tokio::test]
    async fn a_path_is_taken_from_nobody_but_the_dead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let kind = |path: &Path| Listening::at(path).map(drop).map_err(|error| error.kind());

        let (listening, _socket) = Listening::at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(kind(&path), Err(io::ErrorKind::AddrInUse));
        drop(listening);
        assert!(!path.exists());

        drop(StdListener::bind(&path).unwrap()); // as of a process that was killed
        assert_eq!(kind(&path), Ok(()));

        fs::write(&path, "a file").unwrap();
        assert_eq!(kind(&path), Err(io::ErrorKind::AlreadyExists));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        fs::remove_file(&path).unwrap();
        let datagram = UnixDatagram::bind(&path).unwrap();
        assert_eq!(kind(&path), Err(io::ErrorKind::AlreadyExists), "not of our kind");
        drop(datagram);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert_eq!(kind(&path), Err(io::ErrorKind::AlreadyExists), "links are not followed");
    }

    #[tokio::test]
    async fn what_replaced_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listening, _socket) = Listening::at(&path).unwrap();
        fs::rename(&path, dir.path().join("kept")).unwrap();
        assert!(!listening.is_there());
        fs::write(&path, "another's").unwrap();
        drop(listening);
        assert!(path.exists());
    }
}
