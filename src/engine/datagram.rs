//! Datagrams through a forward or link. Each client has a socket of its own on the far side, which is connected: what comes back is for that
//! client, and what others send to it never is.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::sockopt::Ipv4PacketInfo;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::lifetime::Uses;

/// More than the longest datagram over IPv4, which has 65507 bytes.
const LONGEST: usize = 64 * 1024;
/// What the kernel may keep of datagrams that were not read yet, in bytes; it grants less where the machine says so.
const BACKLOG: usize = 1024 * 1024;

/// What one forward or link may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Clients at a time. One more takes the place of the one that was quiet longest.
    pub clients: usize,
    /// A client that was quiet for so long, in both directions, is forgotten.
    pub quiet: Duration,
}

/// Two minutes is what translators of addresses must grant at least (RFC 4787, REQ-5).
pub const BOUNDS: Bounds = Bounds { clients: 512, quiet: Duration::from_secs(120) };

/// Where a datagram came from, and at which of our addresses it came in, from which the answers go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Client {
    from: SocketAddr,
    at: Option<Ipv4Addr>,
}

/// The far side of one client.
struct Flow {
    far: Arc<UdpSocket>,
    used: Arc<Mutex<Instant>>,
    answers: AbortHandle,
}

impl Flow {
    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// A socket at an address of the host.
///
/// # Errors
/// What the kernel reports, such as that the address is taken.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    if address.ip().is_unspecified() && address.is_ipv4() {
        // Else the answers of a machine with several addresses may come from one that the client never wrote to.
        nix::sys::socket::setsockopt(&socket, Ipv4PacketInfo, &true)?;
    }
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BACKLOG)?;
    UdpSocket::from_std(socket)
}

/// A socket of the host for datagrams to an address of its own.
///
/// # Errors
/// What the kernel reports.
pub fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Never bound without being connected: nobody else's datagram is in it from before.
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    rustix::net::connect(&socket, &to)?;
    UdpSocket::from_std(socket.into())
}

/// Carries datagrams until aborted, each client's in the order in which they came, by sockets that `connect` makes. They count as uses.
pub async fn relay<C, F>(near: UdpSocket, connect: C, uses: Arc<Uses>, bounds: Bounds)
where
    C: Fn() -> F,
    F: Future<Output = io::Result<UdpSocket>>,
{
    let near = Arc::new(near);
    let mut flows: HashMap<Client, Flow> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut sweep = tokio::time::interval(bounds.quiet / 4);
    let mut buffer = vec![0; LONGEST];
    loop {
        tokio::select! {
            received = near.async_io(Interest::READABLE, || receive(&near, &mut buffer)) => {
                let (length, client) = match received {
                    Ok(received) => received,
                    // out of memory: what is read meanwhile will give some back
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                uses.touch();
                if !flows.contains_key(&client) {
                    if flows.len() >= bounds.clients {
                        forget_quietest(&mut flows);
                    }
                    let Ok(far) = connect().await else {
                        forget_quietest(&mut flows); // it may be a descriptor that is missing
                        continue;
                    };
                    let (far, used) = (Arc::new(far), Arc::new(Mutex::new(Instant::now())));
                    let back = answer(Arc::clone(&far), Arc::clone(&near), client, Arc::clone(&used), Arc::clone(&uses));
                    flows.insert(client, Flow { far, used, answers: answers.spawn(back) });
                }
                if let Some(flow) = flows.get(&client) {
                    note(&flow.used);
                    send(&flow.far, &buffer[..length]).await;
                }
            }
            _ = sweep.tick() => flows.retain(|_, flow| flow.used().elapsed() < bounds.quiet),
            Some(_) = answers.join_next() => {}
        }
    }
}

fn forget_quietest(flows: &mut HashMap<Client, Flow>) {
    if let Some(quietest) = flows.iter().min_by_key(|(_, flow)| flow.used()).map(|(client, _)| *client) {
        flows.remove(&quietest);
    }
}

fn note(used: &Mutex<Instant>) {
    *used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// Sends one datagram to the far side. That nobody was there for an earlier one is told in place of sending this one.
async fn send(far: &UdpSocket, datagram: &[u8]) {
    if far.send(datagram).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = far.send(datagram).await; // datagrams may be lost
    }
}

/// Carries what comes back. While nobody listens on the far side nothing does, and who listens there later is found.
async fn answer(
    far: Arc<UdpSocket>,
    near: Arc<UdpSocket>,
    client: Client,
    used: Arc<Mutex<Instant>>,
    uses: Arc<Uses>,
) {
    loop {
        if far.readable().await.is_err() {
            return;
        }
        let mut buffer = vec![0; LONGEST]; // most clients are quiet most of the time, and have none meanwhile
        match far.try_recv(&mut buffer) {
            Ok(length) => {
                note(&used);
                uses.touch();
                let back = || transmit(&near, &buffer[..length], client);
                let _ = near.async_io(Interest::WRITABLE, back).await; // datagrams may be lost
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Client)> {
    let mut control = nix::cmsg_space!(libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message: nix::sys::socket::RecvMsg<'_, '_, SockaddrStorage> =
        recvmsg(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let from = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
    let at = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)))
        }
        _ => None,
    });
    Ok((message.bytes, Client { from, at }))
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

fn transmit(socket: &UdpSocket, datagram: &[u8], client: Client) -> io::Result<usize> {
    let info = client.at.map(|at| libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(at).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    });
    let control: Vec<ControlMessage<'_>> = info.iter().map(ControlMessage::Ipv4PacketInfo).collect();
    let to = SockaddrStorage::from(client.from);
    let parts = [IoSlice::new(datagram)];
    Ok(sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);

    async fn socket() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.unwrap()
    }

    /// A relay to `far`, and where it listens.
    fn started(at: &str, far: SocketAddr, bounds: Bounds) -> (u16, JoinSet<()>) {
        let near = bind(at.parse().unwrap()).unwrap();
        let port = near.local_addr().unwrap().port();
        let connect = move || async move {
            let socket = socket().await;
            socket.connect(far).await?;
            Ok(socket)
        };
        let mut task = JoinSet::new();
        task.spawn(relay(near, connect, Arc::default(), bounds));
        (port, task)
    }

    /// A client of its own that asks, and what comes back.
    async fn ask(to: (&str, u16), text: &str) -> String {
        let client = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        client.connect(to).await.unwrap();
        client.send(text.as_bytes()).await.unwrap();
        let mut answer = [0; 64];
        let length = timeout(SOON, client.recv(&mut answer)).await.expect("an answer").unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    fn descriptors_to(far: SocketAddr) -> usize {
        let port = format!("{:04X}", far.port());
        let table = std::fs::read_to_string("/proc/net/udp").unwrap();
        table
            .lines()
            .filter(|line| line.split_whitespace().nth(2).is_some_and(|at| at.ends_with(&port)))
            .count()
    }

    async fn echo(far: UdpSocket) {
        let mut buffer = vec![0; LONGEST];
        loop {
            let (length, from) = far.recv_from(&mut buffer).await.unwrap();
            far.send_to(&buffer[..length], from).await.unwrap();
        }
    }

    #[tokio::test]
    async fn clients_are_bounded_and_quiet_ones_are_forgotten() {
        let far = socket().await;
        let at = far.local_addr().unwrap();
        tokio::spawn(echo(far));
        let bounds = Bounds { clients: 8, quiet: Duration::from_millis(400) };
        let (port, _task) = started("127.0.0.1:0", at, bounds);
        for number in 0..50 {
            let text = number.to_string();
            assert_eq!(ask(("127.0.0.1", port), &text).await, text);
            assert!(descriptors_to(at) <= 9, "one may be on its way out");
        }
        timeout(SOON, async {
            while descriptors_to(at) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("all of them are quiet");
        assert_eq!(ask(("127.0.0.1", port), "again").await, "again");
    }

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_written_to() {
        let far = socket().await;
        let at = far.local_addr().unwrap();
        tokio::spawn(echo(far));
        let (port, _task) = started("0.0.0.0:0", at, BOUNDS);
        for address in ["127.0.0.1", "127.0.0.2", "127.9.9.9"] {
            assert_eq!(ask((address, port), address).await, address);
        }
    }

    #[tokio::test]
    async fn strangers_do_not_answer_and_nobody_there_is_no_end() {
        let far = socket().await;
        let at = far.local_addr().unwrap();
        let (port, _task) = started("127.0.0.1:0", at, BOUNDS);
        let client = socket().await;
        client.connect(("127.0.0.1", port)).await.unwrap();
        client.send(b"one").await.unwrap();
        let mut buffer = [0; 64];
        let (_, flow) = timeout(SOON, far.recv_from(&mut buffer)).await.unwrap().unwrap();
        socket().await.send_to(b"stranger", flow).await.unwrap();
        far.send_to(b"friend", flow).await.unwrap();
        assert_eq!(timeout(SOON, client.recv(&mut buffer)).await.unwrap().unwrap(), 6);
        drop(far);
        client.send(b"nobody").await.unwrap();
        client.send(b"nobody").await.unwrap();
        let far = UdpSocket::bind(at).await.unwrap();
        client.send(b"two").await.unwrap();
        // Those for nobody may come as late as it takes to be there again.
        loop {
            let (length, from) = timeout(SOON, far.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!(from, flow, "the same client has the same socket");
            if &buffer[..length] == b"two" {
                break;
            }
        }
        far.send_to(b"", flow).await.unwrap();
        assert_eq!(
            timeout(SOON, client.recv(&mut buffer)).await.unwrap().unwrap(),
            0,
            "empty ones are carried"
        );
    }
}
