//! The sending half of a WebSocket, which says that it is there while nothing else is said: nothing on the way takes it for dead.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::SinkExt as _;
use futures::stream::SplitSink;
use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

/// How often an idle connection says that it is there.
const PING: Duration = Duration::from_secs(30);

/// An error of a WebSocket as one of reading or writing.
pub(super) fn broken(error: Error) -> io::Error {
    io::Error::other(error)
}

/// Sends messages; clones send on the same connection.
pub(super) struct Sender<T> {
    sink: Arc<Mutex<SplitSink<WebSocketStream<T>, Message>>>,
    _pings: Arc<Pings>,
}

/// A task that ends with this.
struct Pings(tokio::task::JoinHandle<()>);

impl Drop for Pings {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { sink: Arc::clone(&self.sink), _pings: Arc::clone(&self._pings) }
    }
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Sender<T> {
    pub fn new(sink: SplitSink<WebSocketStream<T>, Message>) -> Self {
        let sink = Arc::new(Mutex::new(sink));
        let pinged = Arc::clone(&sink);
        let pings = tokio::spawn(async move {
            loop {
                tokio::time::sleep(PING).await;
                if pinged.lock().await.send(Message::Ping(Bytes::new())).await.is_err() {
                    return;
                }
            }
        });
        Self { sink, _pings: Arc::new(Pings(pings)) }
    }

    /// Sends one message.
    pub async fn send(&self, message: impl Into<Bytes>) -> io::Result<()> {
        self.sink.lock().await.send(Message::Binary(message.into())).await.map_err(broken)
    }
}
