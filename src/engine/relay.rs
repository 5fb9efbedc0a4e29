//! Connections through a forward, a link or a unix socket of the host.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::lifetime::Uses;

/// Connections of one of them at a time.
const MAX_CONNECTIONS: usize = 1024;

/// A connection of either kind.
#[derive(Debug)]
pub enum Stream {
    /// Of TCP.
    Tcp(TcpStream),
    /// Of a unix socket.
    Unix(UnixStream),
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true); // only slower without
        Stream::Tcp(stream)
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Stream::Unix(stream)
    }
}

/// What accepts connections.
pub trait Accept: Send + Sync + 'static {
    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Stream>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&self) -> io::Result<Stream> {
        self.accept().await.map(|(stream, _)| stream.into())
    }
}

impl Accept for UnixListener {
    async fn accept(&self) -> io::Result<Stream> {
        self.accept().await.map(|(stream, _)| stream.into())
    }
}

/// Carries both directions until both have ended; the end of one is passed on.
async fn carry(from: Stream, to: Stream) -> io::Result<()> {
    match (from, to) {
        (Stream::Tcp(mut from), Stream::Tcp(mut to)) => copy_bidirectional(&mut from, &mut to).await,
        (Stream::Tcp(mut from), Stream::Unix(mut to)) => copy_bidirectional(&mut from, &mut to).await,
        (Stream::Unix(mut from), Stream::Tcp(mut to)) => copy_bidirectional(&mut from, &mut to).await,
        (Stream::Unix(mut from), Stream::Unix(mut to)) => copy_bidirectional(&mut from, &mut to).await,
    }
    .map(drop)
}

/// Accepts until aborted; then its connections end too. Each of them is one of the uses.
pub async fn relay<A, C, F, T>(listener: A, connect: C, uses: Arc<Uses>)
where
    A: Accept,
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<T>> + Send,
    T: Into<Stream> + Send,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = Accept::accept(&listener), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok(from) => {
                    let (connect, uses) = (connect.clone(), Arc::clone(&uses));
                    connections.spawn(async move {
                        let _use = uses.begin();
                        carry(from, connect().await?.into()).await
                    });
                }
                // out of descriptors: connections that end will give some back
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
