//! What the shim does while its sandbox runs: hands requests to init, keeps forwards and links, runs the egress proxy.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket, UnixStream};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;

use super::authority::Authority;
use super::bound::Bound;
use super::cgroup;
use super::datagram;
use super::egress::{Account, Policy};
use super::hits;
use super::lifetime::{self, Over, Uses};
use super::proto::{self, Reply, Request};
use super::proxy::{self, Named, Proxy};
use super::relay::{Stream, relay};
use super::seq::{self, Seq};
use super::shim::{Answer, Caller, Order, is_for_clients};
use super::socket::Listening;
use super::spec::{
    Forward, ForwardInfo, Lifetime, Link, Name, Network, Outside, Port, Protocol, Socket, SocketInfo,
    SocketTarget,
};
use super::state::{self, Run};
use super::sys;

/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a service inside whose queue of connections is full is tried.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long what is inside may take to end when it is time.
const STOP_GRACE_MS: u64 = 10_000;

/// The sockets of the sandbox, made by init.
#[derive(Debug)]
pub struct Sandbox(Seq);

impl Sandbox {
    /// A connection to a port of the sandbox's loopback.
    ///
    /// # Errors
    /// What connecting inside reports.
    pub async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let socket = std::net::TcpStream::from(self.socket(Request::Dial(port)).await?);
        socket.set_nonblocking(true)?;
        TcpStream::from_std(socket)
    }

    /// A connection to a unix socket inside.
    ///
    /// # Errors
    /// What connecting inside reports; of a service that accepts too slowly only after a while.
    async fn dial_path(&self, path: &str) -> io::Result<UnixStream> {
        let deadline = Instant::now() + DIAL_PATIENCE;
        loop {
            match self.socket(Request::DialPath(path.to_owned())).await {
                // Its queue is full, for which there is no waiting.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => return UnixStream::from_std(other?.into()),
            }
        }
    }

    /// A socket for datagrams to a port of the sandbox's loopback, which are lost while nobody listens there.
    ///
    /// # Errors
    /// What making it inside reports.
    pub async fn dial_udp(&self, port: u16) -> io::Result<UdpSocket> {
        UdpSocket::from_std(self.socket(Request::DialUdp(port)).await?.into())
    }

    /// A socket for datagrams at an address of the sandbox's loopback.
    ///
    /// # Errors
    /// What listening inside reports.
    pub async fn listen_udp(&self, address: SocketAddrV4) -> io::Result<UdpSocket> {
        UdpSocket::from_std(self.socket(Request::ListenUdp(address)).await?.into())
    }

    /// A listener on the sandbox's loopback.
    ///
    /// # Errors
    /// What listening inside reports.
    pub async fn listen(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        let socket = std::net::TcpListener::from(self.socket(Request::Listen(address)).await?);
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket)
    }

    /// For how many milliseconds no command has run inside that somebody waits for.
    async fn idle(&self) -> io::Result<u64> {
        match self.ask(Request::Idle).await? {
            (Reply::Idle(ms), _) => Ok(ms),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Gives these names to addresses of the loopback.
    async fn name(&self, names: BTreeMap<String, Ipv4Addr>) -> io::Result<()> {
        match self.ask(Request::Hosts(names)).await? {
            (Reply::Done, _) => Ok(()),
            (Reply::Failed { errno, .. }, _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks everything inside to end, and ends it after the grace.
    async fn stop(&self) -> io::Result<()> {
        let (_ours, theirs) = seq::pair()?; // nothing is answered
        self.0.send(&Request::Stop(STOP_GRACE_MS), &[theirs.as_fd()]).await
    }

    async fn socket(&self, request: Request) -> io::Result<OwnedFd> {
        match self.ask(request).await? {
            (Reply::Done, mut fds) if !fds.is_empty() => Ok(fds.swap_remove(0)),
            (Reply::Failed { errno, .. }, _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    async fn ask(&self, request: Request) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let (ours, theirs) = seq::pair()?;
        self.0.send(&request, &[theirs.as_fd()]).await?;
        drop(theirs);
        let (bytes, fds) = Seq::new(ours)?.recv().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((seq::decode(&bytes)?, fds))
    }
}

/// How a sandbox came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Somebody asked for it.
    Asked,
    /// It was time.
    Over(Over),
    /// Nobody knows why.
    Alone,
}

struct Shim {
    sandbox: Arc<Sandbox>,
    asked: AtomicBool,
    lifetime: watch::Sender<Lifetime>,
    uses: Arc<Uses>,
    forwards: Mutex<HashMap<(SocketAddr, Protocol), Open>>,
    sockets: Mutex<Vec<OpenSocket>>,
    links: Mutex<Relays>,
    names: Mutex<Relays>,
    named: watch::Sender<Named>,
    policy: Arc<Policy>,
    bound: Arc<Bound>,
    account: Arc<Account>,
    limits_changed: Notify,
}

/// What listens at addresses of the loopback inside, and where it leads.
type Relays = HashMap<(SocketAddrV4, Outside), JoinHandle<()>>;

/// A forward; without a task where its host port was taken when the sandbox started.
struct Open {
    port: Arc<AtomicU16>,
    task: Option<JoinHandle<()>>,
}

impl Open {
    fn listens(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
    }

    async fn close(self) {
        if let Some(task) = self.task {
            close(task).await;
        }
    }
}

/// A unix socket of the host; without a task where its path was taken when the sandbox started.
struct OpenSocket {
    socket: Socket,
    open: Option<(Listening, JoinHandle<()>)>,
}

impl OpenSocket {
    fn listens(&self) -> bool {
        self.open.as_ref().is_some_and(|(listening, task)| listening.is_there() && !task.is_finished())
    }

    async fn close(self) {
        if let Some((_removed, task)) = self.open {
            close(task).await;
        }
    }
}

/// What listens at an address of the host.
enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

fn key(forward: &Forward) -> (SocketAddr, Protocol) {
    (forward.listen, forward.to.protocol())
}

/// Opens what was declared, tells the caller that all is ready, and serves until init is gone. How that came.
///
/// # Errors
/// What the runtime's reactor reports; the sandbox then ends with the shim.
pub async fn serve(
    order: Order,
    caller: Caller,
    first: i32,
    init: OwnedFd,
    pidfd: OwnedFd,
    listener: OwnedFd,
    authority: Option<Authority>,
) -> io::Result<End> {
    let (lifetime, lifetime_changes) = watch::channel(order.request.spec.lifetime);
    let created = order.created.clone();
    let limits = order.request.spec.limits;
    let shim = Arc::new(Shim {
        sandbox: Arc::new(Sandbox(Seq::new(init)?)),
        asked: AtomicBool::new(false),
        lifetime,
        uses: Arc::default(),
        forwards: Mutex::default(),
        sockets: Mutex::default(),
        links: Mutex::default(),
        names: Mutex::default(),
        named: watch::Sender::default(),
        policy: Arc::new(Policy::new(order.request.spec.egress.clone())),
        bound: Arc::new(Bound::new(order.request.spec.bound.clone(), authority, order.trust.clone())),
        account: Arc::new(Account::open()),
        limits_changed: Notify::new(),
    });
    let gone = sys::watch(pidfd, tokio::io::Interest::READABLE)?;
    let listener = sys::watch(listener, tokio::io::Interest::READABLE)?;
    shim.restore(order).await;
    caller.answer(&Answer::Ready);
    let idle_inside = || async { shim.sandbox.idle().await };
    let over = lifetime::over(lifetime_changes, created, &shim.uses, idle_inside);
    tokio::pin!(over);
    let limits = hits::watch(first, limits, &shim.limits_changed);
    tokio::pin!(limits);
    let mut ended = None;
    loop {
        tokio::select! {
            result = gone.readable() => {
                drop(result?);
                shim.account.write();
                shim.sockets.lock().await.clear(); // and their paths with them
                return Ok(match (shim.asked.load(Ordering::Relaxed), ended) {
                    (true, _) => End::Asked,
                    (false, Some(over)) => End::Over(over),
                    (false, None) => End::Alone,
                });
            }
            () = &mut limits => {}
            why = &mut over, if ended.is_none() => {
                ended = Some(why);
                let groups = state::read::<Run>(Path::new("run.json"))?.map(|run| run.cgroups).unwrap_or_default();
                cgroup::thaw(&groups)?; // what is frozen does not end
                shim.sandbox.stop().await?;
            }
            result = listener.readable() => {
                let accepted = result?.try_io(|socket| {
                    Ok(rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
                });
                match accepted {
                    Ok(Ok(connection)) => {
                        let shim = Arc::clone(&shim);
                        tokio::spawn(async move {
                            if let Err(error) = shim.client(connection).await {
                                eprintln!("control: {error}");
                            }
                        });
                    }
                    // out of descriptors: connections that end will give some back
                    Ok(Err(error)) => {
                        eprintln!("control: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(_would_block) => {}
                }
            }
        }
    }
}

impl Shim {
    /// What was declared before this run.
    async fn restore(&self, order: Order) {
        if order.request.spec.network == Network::Isolated {
            match self.sandbox.listen(loopback(proxy::PORT)).await {
                Ok(listener) => {
                    let (policy, account) = (Arc::clone(&self.policy), Arc::clone(&self.account));
                    tokio::spawn(Arc::clone(&account).keep());
                    let (bound, named) = (Arc::clone(&self.bound), self.named.subscribe());
                    tokio::spawn(
                        Arc::new(Proxy::new(order.upstream, policy, bound, account, named)).run(listener),
                    );
                }
                Err(error) => eprintln!("egress proxy: {error}"),
            }
        }
        for forward in order.forwards {
            let open = match listen_on_host(&forward) {
                Ok(listener) => self.open(forward, listener),
                Err(error) => {
                    eprintln!("forward {}: {error}", forward.listen);
                    Open { port: Arc::new(AtomicU16::new(forward.to.number())), task: None }
                }
            };
            self.forwards.lock().await.insert(key(&forward), open);
        }
        for socket in order.sockets {
            let open = self.open_socket(&socket);
            let open = open.inspect_err(|error| eprintln!("socket {}: {error}", socket.path.display())).ok();
            self.sockets.lock().await.push(OpenSocket { socket, open });
        }
        if let Err((what, error)) = self.set_links(&order.links).await {
            eprintln!("{what}: {error}");
        }
        if !order.names.is_empty()
            && let Err((what, error)) = self.set_names(&order.names).await
        {
            eprintln!("{what}: {error}");
        }
    }

    async fn client(&self, connection: OwnedFd) -> io::Result<()> {
        if rustix::net::sockopt::socket_peercred(&connection)?.uid != rustix::process::geteuid() {
            return Ok(()); // the directory keeps strangers out; this is the second lock
        }
        let client = Seq::new(connection)?;
        let Ok(message) = tokio::time::timeout(REQUEST_TIMEOUT, client.recv()).await else { return Ok(()) };
        let Some((bytes, fds)) = message? else { return Ok(()) };
        let request: Request = match seq::decode(&bytes) {
            Ok(request) if is_for_clients(&request) => request,
            _ => {
                let what = proto::NOT_UNDERSTOOD.to_owned();
                return client.try_send(&Reply::Failed { what, errno: libc::ENOSYS });
            }
        };
        match request {
            Request::Exec(_)
            | Request::Session(_)
            | Request::Sessions
            | Request::EndSession(_)
            | Request::Dial(_)
            | Request::DialPath(_)
            | Request::DialUdp(_)
            | Request::Open(_)
            | Request::Fill(_)
            | Request::Stop(_)
            | Request::Listen(_)
            | Request::ListenUdp(_)
            | Request::Hosts(_)
            | Request::Idle => {
                // A connection is made by whoever checks health; those of users come through forwards.
                if match &request {
                    Request::Exec(head) => !head.look,
                    request => matches!(request, Request::Session(_)),
                } {
                    self.uses.touch();
                }
                if matches!(request, Request::Stop(_)) {
                    self.asked.store(true, Ordering::Relaxed);
                }
                fds.iter().for_each(open_to_inside);
                let fds: Vec<_> =
                    std::iter::once(client.as_fd()).chain(fds.iter().map(AsFd::as_fd)).collect();
                self.sandbox.0.send(&request, &fds).await
            }
            Request::Status => client.try_send(&Reply::Status(self.status().await)),
            Request::SetForwards(forwards) => match self.set_forwards(&forwards).await {
                Ok(()) => client.try_send(&Reply::Done),
                Err((forward, error)) => client.try_send(&failed(address(&forward), &error)),
            },
            Request::Sockets => client.try_send(&Reply::Sockets(self.socket_infos().await)),
            Request::SetSockets(sockets) => match self.set_sockets(sockets).await {
                Ok(()) => client.try_send(&Reply::Done),
                Err((path, error)) => client.try_send(&failed(path.display().to_string(), &error)),
            },
            Request::SetLifetime(lifetime) => {
                self.lifetime.send_replace(lifetime);
                client.try_send(&Reply::Done)
            }
            Request::SetLimits => {
                self.limits_changed.notify_one();
                client.try_send(&Reply::Done)
            }
            Request::Bind => {
                let taken = fds.into_iter().next().ok_or(io::ErrorKind::InvalidInput.into());
                match taken.and_then(|payload| self.bound.take(payload)) {
                    Ok(()) => client.try_send(&Reply::Done),
                    Err(error) => client.try_send(&failed("take the values".to_owned(), &error)),
                }
            }
            Request::Bound => client.try_send(&Reply::Bound(self.bound.digests())),
            Request::SetEgress(rules) => {
                self.policy.replace(rules);
                client.try_send(&Reply::Done)
            }
            Request::SetLinks(links) => match self.set_links(&links).await {
                Ok(()) => client.try_send(&Reply::Done),
                Err((what, error)) => client.try_send(&failed(what, &error)),
            },
            Request::SetNames(names) => match self.set_names(&names).await {
                Ok(()) => client.try_send(&Reply::Done),
                Err((what, error)) => client.try_send(&failed(what, &error)),
            },
        }
    }

    async fn status(&self) -> Vec<ForwardInfo> {
        let info = |((listen, protocol), open): (&(SocketAddr, Protocol), &Open)| {
            let port = open.port.load(Ordering::Relaxed);
            let to = match protocol {
                Protocol::Tcp => Port::Tcp(port),
                Protocol::Udp => Port::Udp(port),
            };
            ForwardInfo { listen: *listen, to, listening: open.listens() }
        };
        self.forwards.lock().await.iter().map(info).collect()
    }

    /// Listens on what is new, or changes nothing; then closes what is not in the set, and returns when it is closed.
    async fn set_forwards(&self, wanted: &[Forward]) -> Result<(), (Forward, io::Error)> {
        let mut forwards = self.forwards.lock().await;
        // What another address of the same port is in the way of comes first. Whom a client of UDP was led to is settled, so that begins anew.
        let moved = |(listen, protocol): &(SocketAddr, Protocol), port: u16| {
            let same_port = |forward: &&Forward| {
                forward.to.protocol() == *protocol && forward.listen.port() == listen.port()
            };
            let kept = wanted.iter().filter(same_port).find(|forward| forward.listen == *listen);
            match kept {
                Some(forward) => *protocol == Protocol::Udp && forward.to.number() != port,
                None => wanted.iter().any(|forward| same_port(&forward)),
            }
        };
        let again: Vec<_> =
            forwards.extract_if(|key, open| moved(key, open.port.load(Ordering::Relaxed))).collect();
        for (_, open) in again {
            open.close().await;
        }
        let mut opened = Vec::new();
        for forward in wanted {
            if !forwards.get(&key(forward)).is_some_and(Open::listens) {
                opened.push((*forward, listen_on_host(forward).map_err(|error| (*forward, error))?));
            }
        }
        for (forward, listener) in opened {
            forwards.insert(key(&forward), self.open(forward, listener));
        }
        for forward in wanted {
            if let Some(open) = forwards.get(&key(forward)) {
                open.port.store(forward.to.number(), Ordering::Relaxed);
            }
        }
        let gone: Vec<_> =
            forwards.extract_if(|open, _| !wanted.iter().any(|forward| key(forward) == *open)).collect();
        for (_, open) in gone {
            open.close().await;
        }
        Ok(())
    }

    fn open(&self, forward: Forward, listener: Listener) -> Open {
        let port = Arc::new(AtomicU16::new(forward.to.number()));
        let (sandbox, target, uses) = (Arc::clone(&self.sandbox), Arc::clone(&port), Arc::clone(&self.uses));
        let task = match listener {
            Listener::Tcp(listener) => {
                let connect = move || {
                    let (sandbox, port) = (Arc::clone(&sandbox), target.load(Ordering::Relaxed));
                    async move { sandbox.dial(port).await }
                };
                tokio::spawn(relay(listener, connect, uses))
            }
            Listener::Udp(socket) => {
                let connect = move || {
                    let (sandbox, port) = (Arc::clone(&sandbox), target.load(Ordering::Relaxed));
                    async move { sandbox.dial_udp(port).await }
                };
                tokio::spawn(datagram::relay(socket, connect, uses, datagram::BOUNDS))
            }
        };
        Open { port, task: Some(task) }
    }

    async fn socket_infos(&self) -> Vec<SocketInfo> {
        let info = |open: &OpenSocket| SocketInfo { socket: open.socket.clone(), listening: open.listens() };
        self.sockets.lock().await.iter().map(info).collect()
    }

    /// As [`Shim::set_forwards`].
    async fn set_sockets(&self, wanted: Vec<Socket>) -> Result<(), (PathBuf, io::Error)> {
        let mut sockets = self.sockets.lock().await;
        // Where a path leads elsewhere now, it is given up first.
        let again = |open: &mut OpenSocket| {
            !open.listens() || wanted.iter().any(|w| w.path == open.socket.path && w.to != open.socket.to)
        };
        for open in sockets.extract_if(.., again).collect::<Vec<_>>() {
            open.close().await;
        }
        let mut opened = Vec::new();
        for socket in &wanted {
            if sockets.iter().all(|open| open.socket != *socket) {
                let open = self.open_socket(socket).map_err(|error| (socket.path.clone(), error))?;
                opened.push(OpenSocket { socket: socket.clone(), open: Some(open) });
            }
        }
        sockets.extend(opened);
        for open in sockets.extract_if(.., |open| !wanted.contains(&open.socket)).collect::<Vec<_>>() {
            open.close().await;
        }
        Ok(())
    }

    fn open_socket(&self, socket: &Socket) -> io::Result<(Listening, JoinHandle<()>)> {
        let (listening, listener) = Listening::at(&socket.path)?;
        let (sandbox, to, uses) = (Arc::clone(&self.sandbox), socket.to.clone(), Arc::clone(&self.uses));
        let connect = move || {
            let (sandbox, to) = (Arc::clone(&sandbox), to.clone());
            async move {
                Ok(match to {
                    SocketTarget::Port(port) => Stream::from(sandbox.dial(port).await?),
                    SocketTarget::Path(path) => Stream::from(sandbox.dial_path(&path).await?),
                })
            }
        };
        Ok((listening, tokio::spawn(relay(listener, connect, uses))))
    }

    async fn set_links(&self, links: &[Link]) -> Result<(), (String, io::Error)> {
        let wanted = links.iter().map(|link| (loopback(link.listen_port), link.host)).collect();
        self.set_relays(&mut *self.links.lock().await, &wanted)
            .await
            .map_err(|(at, error)| (format!("port {} inside", at.port()), error))
    }

    /// The names come last, so that what a name leads to listens already.
    async fn set_names(&self, names: &[Name]) -> Result<(), (String, io::Error)> {
        let address = |name: &Name| SocketAddrV4::new(Name::address(&name.name), name.port);
        let wanted = names.iter().map(|name| (address(name), name.host)).collect();
        let mut relays = self.names.lock().await;
        self.set_relays(&mut relays, &wanted).await.map_err(|(at, error)| {
            let name = names.iter().find(|name| address(name) == at).map_or("", |name| name.name.as_str());
            (format!("{name}:{} inside", at.port()), error)
        })?;
        let tcp = names.iter().filter(|name| name.host.protocol() == Protocol::Tcp);
        self.named
            .send_replace(tcp.map(|name| ((name.name.clone(), name.port), name.host.address())).collect());
        let hosts = names.iter().map(|name| (name.name.clone(), Name::address(&name.name))).collect();
        self.sandbox.name(hosts).await.map_err(|error| ("/etc/hosts inside".to_owned(), error))
    }

    /// Closes what is not wanted any more, and listens on what is new.
    async fn set_relays(
        &self,
        relays: &mut Relays,
        wanted: &BTreeSet<(SocketAddrV4, Outside)>,
    ) -> Result<(), (SocketAddrV4, io::Error)> {
        let gone: Vec<_> = relays.extract_if(|relay, _| !wanted.contains(relay)).collect();
        for (_, task) in gone {
            close(task).await;
        }
        for (at, host) in wanted.iter().copied() {
            if let Entry::Vacant(free) = relays.entry((at, host)) {
                let task = match host {
                    Outside::Tcp(host) => {
                        let listener = self.sandbox.listen(at).await.map_err(|error| (at, error))?;
                        let connect = move || TcpStream::connect(host);
                        tokio::spawn(relay(listener, connect, Arc::default()))
                    }
                    Outside::Udp(host) => {
                        let socket = self.sandbox.listen_udp(at).await.map_err(|error| (at, error))?;
                        let connect = move || async move { datagram::connect(host) };
                        tokio::spawn(datagram::relay(socket, connect, Arc::default(), datagram::BOUNDS))
                    }
                };
                free.insert(task);
            }
        }
        Ok(())
    }
}

fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// A pipe belongs to who made it, on the host. Programs inside that open `/dev/stdout` by its name, as many do, must be let
/// in; whoever can name it there holds it already.
fn open_to_inside(fd: &OwnedFd) {
    const PIPEFS: u32 = 0x5049_5045;
    if rustix::fs::fstatfs(fd).is_ok_and(|statfs| u32::try_from(statfs.f_type) == Ok(PIPEFS)) {
        let _ = rustix::fs::fchmod(fd, rustix::fs::Mode::from_raw_mode(0o666)); // not ours: then it stays as it is
    }
}

/// Ends a relay and returns when its listener is closed.
async fn close(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await; // that it was cancelled is what is wanted
}

fn failed(what: String, error: &io::Error) -> Reply {
    Reply::Failed { what, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// The address of a forward, for people.
fn address(forward: &Forward) -> String {
    match forward.to {
        Port::Tcp(_) => forward.listen.to_string(),
        Port::Udp(_) => format!("{} (udp)", forward.listen),
    }
}

fn listen_on_host(forward: &Forward) -> io::Result<Listener> {
    let address = forward.listen;
    if forward.to.protocol() == Protocol::Udp {
        return Ok(Listener::Udp(datagram::bind(address)?));
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Listener::Tcp(socket.listen(1024)?))
}
