//! Connections to ports inside, at providers that have none but HTTP to their own addresses: a program inside passes the bytes on.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, DuplexStream, ReadBuf};

use super::{Command, ExecIo, Guest, GuestError, GuestStream, Input, Output};

/// What a connection holds back for its reader.
const BUFFER: usize = 256 << 10;
/// How long connecting to a port inside may take.
const DIAL: Duration = Duration::from_secs(15);
/// Connects standard input and output to a port, by bash: the vendors' own clients need it too. It says `+` once it is connected.
const RELAY: &str = r#"
{ exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || { exec 3<>"/dev/tcp/::1/$1"; } 2>/dev/null || exit 98
printf +
exec 4<&0
cat <&4 >&3 &
cat <&3
kill $! 2>/dev/null
"#;

/// Connects to a port by a program inside. It cannot pass on that one side has nothing more to say: the connection ends as a whole.
pub(super) async fn dial(guest: impl Guest + 'static, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
    let refused = || GuestError::Io {
        what: format!("port {port} does not accept connections"),
        source: io::ErrorKind::ConnectionRefused.into(),
    };
    let command = Command::new(["bash", "-c", RELAY, "pocketenv-dial", &port.to_string()]);
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (mut input, mut output) = tokio::io::split(theirs);
    let task = tokio::spawn(async move {
        let io = ExecIo {
            stdin: Input::Reader(&mut input),
            stdout: Output::Writer(&mut output),
            stderr: Output::Null,
        };
        // How it ends is seen by the end of the stream.
        let _ = guest.exec(&command, io).await;
    });
    let mut stream = Relayed { stream: ours, task: Arc::new(Mutex::new(Some(task))) };
    match tokio::time::timeout(DIAL, stream.stream.read_u8()).await {
        Ok(Ok(b'+')) => Ok(Box::new(stream)),
        _ => Err(refused()),
    }
}

/// A connection that ends with this.
struct Relayed {
    stream: DuplexStream,
    task: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl AsyncRead for Relayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Relayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
