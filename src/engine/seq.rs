//! Messages with file descriptors over a `SOCK_SEQPACKET` unix socket: one send is one message, the end is the end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

use super::sys;

/// The longest message accepted, in bytes. Larger payloads travel in a memory file.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// The most descriptors in one message.
const MAX_FDS: usize = 64;

/// One received message: its bytes and its descriptors.
pub type Message = (Vec<u8>, Vec<OwnedFd>);

/// A connected pair, close-on-exec, blocking.
///
/// # Errors
/// What `socketpair(2)` reports.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message as JSON.
///
/// # Errors
/// `InvalidInput` for a message over [`MAX_MESSAGE`]; else what `sendmsg(2)` reports.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message)?;
    send_bytes(socket, &bytes, fds, SendFlags::NOSIGNAL)
}

/// Sends one message as JSON, failing with `WouldBlock` instead of waiting for a slow receiver.
///
/// # Errors
/// As [`send`].
pub fn try_send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message)?;
    send_bytes(socket, &bytes, fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        let text = format!("a control message of {} bytes is over the limit of {MAX_MESSAGE}", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(bytes)
}

fn send_bytes(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// Receives one message, waiting for it; `None` when the peer is gone.
///
/// # Errors
/// What `recvmsg(2)` reports; `InvalidData` for a message that is too long.
pub fn recv(socket: impl AsFd) -> io::Result<Option<Message>> {
    recv_flags(socket, RecvFlags::CMSG_CLOEXEC)
}

/// Receives one message, or fails with `WouldBlock`; `None` when the peer is gone.
///
/// # Errors
/// As [`recv`].
pub fn try_recv(socket: impl AsFd) -> io::Result<Option<Message>> {
    recv_flags(socket, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
}

fn recv_flags(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MAX_MESSAGE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    match received.bytes {
        0 => Ok(None),
        n if n > MAX_MESSAGE => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a control message is too long"))
        }
        n => {
            bytes.truncate(n);
            Ok(Some((bytes, fds)))
        }
    }
}

/// Reads a message's JSON.
///
/// # Errors
/// `InvalidData` with the reason.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The same for tokio.
#[derive(Debug)]
pub struct Seq(AsyncFd<OwnedFd>);

impl Seq {
    /// Takes a connected socket and makes it non-blocking.
    ///
    /// # Errors
    /// What the kernel or the runtime's reactor reports.
    pub fn new(socket: OwnedFd) -> io::Result<Seq> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Seq(sys::watch(socket, tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE)?))
    }

    /// Sends one message as JSON.
    ///
    /// # Errors
    /// As [`send`].
    pub async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message)?;
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(result) = ready.try_io(|socket| send_bytes(socket, &bytes, fds, SendFlags::NOSIGNAL)) {
                return result;
            }
        }
    }

    /// Receives one message; `None` when the peer is gone. Safe to drop while waiting.
    ///
    /// # Errors
    /// As [`recv`].
    pub async fn recv(&self) -> io::Result<Option<Message>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(recv) {
                return result;
            }
        }
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// As [`try_send`].
    pub fn try_send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        try_send(&self.0, message, &[])
    }
}

impl AsFd for Seq {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
