//! The inside of a pod, by the cluster's exec and port-forward over WebSocket.
//!
//! The connection is held here and not by `kube`: its own loop does not read while it writes, which ends in silence where a command does the same.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex as SyncMutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, Portforwarder};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::api::{Cluster, answered};
use super::map::CONTAINER;
use crate::provider::script::{
    CHUNK, Frames, KILL, Kind, LINE_LIMIT, Leash, Sink, Source, failed, feed, header, refusal, shown, who,
};
use crate::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, ProviderError, Pty, PtyRequest, capture,
};

/// How long killing a command may take.
const KILLING: Duration = Duration::from_secs(10);
/// How often an idle connection says that it is there, so that nothing on the way takes it for dead.
const PING: Duration = Duration::from_secs(30);
/// Channels of a connection, the first byte of each message (`v4.channel.k8s.io`).
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// Starts a command: who is to run it, the environment, the command.
const EXEC: &str =
    concat!(include_str!("user.sh"), include_str!("../script/exec.sh"), include_str!("run.sh"));
const LISTENS: &str = concat!(include_str!("../script/listening.sh"), "pe_listens \"$1\"\n");

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// One pod.
#[derive(Clone)]
pub(super) struct KubernetesGuest {
    pub cluster: Cluster,
    pub pod: String,
}

/// A command that runs.
struct Process {
    output: Frames<Stream>,
    keys: Keys,
    leash: Leash,
}

impl KubernetesGuest {
    fn unreachable(&self, error: ProviderError) -> GuestError {
        GuestError::Unreachable { message: format!("pod {}", self.pod), source: Some(Box::new(error)) }
    }

    /// Opens the streams of a new command.
    async fn open(&self, argv: Vec<String>, tty: bool) -> Result<(Keys, SplitStream<Socket>), ProviderError> {
        let client = self.cluster.client().await?;
        let path = <Pod as kube::Resource>::url_path(&(), Some(client.default_namespace()));
        let params = AttachParams {
            container: Some(CONTAINER.to_owned()),
            stdin: true,
            stdout: true,
            stderr: !tty,
            tty,
            ..AttachParams::default()
        };
        let request = kube::core::Request::new(path).exec(&self.pod, argv, &params);
        let request = request.map_err(|error| ProviderError::permanent("cannot run a command", error))?;
        let socket = answered("run a command", client.connect(request)).await?.into_stream();
        let (sink, stream) = socket.split();
        Ok((Keys::new(sink, !tty), stream))
    }

    /// Starts a command.
    async fn spawn(&self, command: &Command, tty: Option<PtyRequest>) -> Result<Process, GuestError> {
        let header = header(command)?;
        let mark = format!("\u{1}pocketenv-{}:", uuid::Uuid::now_v7().simple());
        let (mode, rows, cols) = match tty {
            Some(size) => ("tty", size.rows.to_string(), size.cols.to_string()),
            None => ("pipe", String::new(), String::new()),
        };
        let user = command.user.as_deref().unwrap_or_default();
        let dir = command.cwd.as_deref().unwrap_or_default();
        let argv = ["sh", "-c", EXEC, "pocketenv-exec", user, &rows, &cols, &mark, mode, dir];
        let mut argv = argv.map(str::to_owned).to_vec();
        argv.extend(command.argv.iter().cloned());
        let (keys, stream) = self.open(argv, tty.is_some()).await.map_err(|error| self.unreachable(error))?;
        let mark = tty.is_none().then(|| mark.into_bytes());
        let mut output = Frames::new(Stream::new(stream, mark), tty.is_some());

        let Some(hello) = output.line().await.map_err(|error| failed("starting a command", error))? else {
            return Err(self.ended_early(command, &output));
        };
        let Some((pid, start)) = who(&hello) else {
            output.said.extend_from_slice(hello.as_bytes());
            return Err(self.ended_early(command, &output));
        };
        let mut leash = self.leash(pid, start);
        let given = async {
            keys.send(STDIN, &header).await?;
            output.verdict().await
        };
        let verdict = given.await.map_err(|error| failed("starting a command", error))?;
        if verdict.as_deref() == Some("ok") {
            return Ok(Process { output, keys, leash });
        }
        leash.slip();
        Err(refusal(command, verdict.as_deref(), &output.said))
    }

    /// Kills a command when it is let go of.
    fn leash(&self, pid: &str, start: &str) -> Leash {
        // A client belongs to the runtime that made it.
        let place = self.cluster.place.clone();
        let (pod, pid, start) = (self.pod.clone(), pid.to_owned(), start.to_owned());
        Leash::new(move || {
            let guest = Self { cluster: Cluster::new(place), pod };
            Box::pin(async move { guest.kill(pid, start).await })
        })
    }

    async fn kill(&self, pid: String, start: String) {
        let argv = ["sh", "-c", KILL, "pocketenv-kill", &pid, &start].map(str::to_owned).to_vec();
        let work = async {
            let (_keys, stream) = self.open(argv, false).await.map_err(|error| self.unreachable(error))?;
            let mut output = Frames::new(Stream::new(stream, None), false);
            while output.next().await.map_err(|error| failed("killing a command", error))?.is_some() {}
            Ok::<(), GuestError>(())
        };
        match timeout(KILLING, work).await {
            Ok(Ok(())) => {}
            // A pod that is gone took the command with it.
            Ok(Err(error)) => tracing::debug!(%error, "a command was not killed"),
            Err(_) => tracing::warn!(pod = self.pod, "a command could not be killed in time"),
        }
    }

    /// The cluster tells in the stream why a command did not start.
    fn ended_early(&self, command: &Command, output: &Frames<Stream>) -> GuestError {
        let said = shown(&String::from_utf8_lossy(&output.said));
        let told = output.source.end.as_ref().and_then(|end| end.as_ref().err());
        let message = shown(&format!("{} {said}", told.map_or("", String::as_str)));
        if message.contains("executable file not found") || message.contains("\"sh\"") {
            let message = format!("the image has no `sh`: {message}");
            return GuestError::NotExecutable { program: command.program().to_owned(), message };
        }
        let message = if message.is_empty() { "it ended before a command could start" } else { &message };
        GuestError::Unreachable { message: format!("pod {}: {message}", self.pod), source: None }
    }

    async fn run(&self, process: Process, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let Process { mut output, mut keys, mut leash } = process;
        let feed = async {
            feed(io.stdin, &mut keys).await?;
            // A command that is gone already needs no end.
            let _ = keys.end().await;
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            drained = output.drain(io.stdout, io.stderr) => drained?,
            fed = feed => {
                fed.map_err(|source| GuestError::Io { what: "cannot pass the input on".to_owned(), source })?;
            }
        }
        let status = output.source.status().map_err(|message| GuestError::Unreachable {
            message: format!("pod {}: {message}", self.pod),
            source: None,
        })?;
        leash.slip();
        Ok(status)
    }
}

#[async_trait]
impl Guest for KubernetesGuest {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        command.limited(async { self.run(self.spawn(command, None).await?, io).await }).await
    }

    async fn pty(&self, command: &Command, size: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        let Process { mut output, keys, leash } = self.spawn(command, Some(size)).await?;
        let (screen, mut shows) = tokio::io::duplex(CHUNK);
        let (typed, mut typing) = tokio::io::duplex(CHUNK);
        let (ended, status) = watch::channel(None);
        let mut input = keys.clone();
        tokio::spawn(async move {
            let drained = output.drain(crate::provider::Output::Writer(&mut shows), Default::default()).await;
            if drained.is_err() {
                // Nobody looks at it any more; how it ends still counts.
                let _ = output.drain(Default::default(), Default::default()).await;
            }
            ended.send_replace(Some(output.source.status()));
        });
        tokio::spawn(async move {
            let keys = crate::provider::Input::Reader(&mut typing);
            if let Err(error) = feed(keys, &mut input).await {
                tracing::debug!(%error, "keys were not passed on");
            }
        });
        Ok(Box::new(KubernetesPty {
            pod: self.pod.clone(),
            keys,
            leash,
            ends: SyncMutex::new((Some(screen), Some(typed))),
            status,
        }))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        // A forwarded connection opens whether anything listens or not.
        let number = port.to_string();
        let listens = Command::new(["sh", "-c", LISTENS, "pocketenv-listens", &number]);
        if !capture(self, &listens, &[], LINE_LIMIT).await?.status.success() {
            let what = format!("port {port} does not accept connections");
            return Err(GuestError::Io { what, source: io::ErrorKind::ConnectionRefused.into() });
        }
        let client = self.cluster.client().await.map_err(|error| self.unreachable(error))?;
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        let opened = answered("forward a port", pods.portforward(&self.pod, &[port])).await;
        let mut forwarder = opened.map_err(|error| self.unreachable(error))?;
        let stream = forwarder.take_stream(port).ok_or_else(|| GuestError::Protocol {
            what: "forwarding a port".to_owned(),
            message: "the connection has no stream".to_owned(),
        })?;
        let refused = forwarder.take_error(port).ok_or_else(|| GuestError::Protocol {
            what: "forwarding a port".to_owned(),
            message: "the connection does not tell errors".to_owned(),
        })?;
        Ok(Box::new(Forwarded { stream, refused: SyncMutex::new(Some(Box::pin(refused))), forwarder }))
    }
}

/// A connection to a port inside.
struct Forwarded {
    stream: DuplexStream,
    /// Why it ended, if the cluster says so: the stream itself stays open then, and nothing comes any more. Locked by nobody: it only lets the whole be shared.
    refused: SyncMutex<Option<BoxFuture<'static, Option<String>>>>,
    forwarder: Portforwarder,
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl Forwarded {
    /// What the cluster says of a connection that it could not make or keep.
    fn poll_refused(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Ok(refused) = self.refused.get_mut() else { return Poll::Pending };
        let Some(told) = refused else { return Poll::Pending };
        let Poll::Ready(told) = told.as_mut().poll(context) else { return Poll::Pending };
        *refused = None;
        match told {
            Some(why) => Poll::Ready(io::Error::new(io::ErrorKind::ConnectionReset, shown(&why))),
            // It ended without an error, which the stream tells.
            None => Poll::Pending,
        }
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            return Poll::Ready(read);
        }
        let Poll::Ready(error) = self.poll_refused(context) else { return Poll::Pending };
        // What arrived before the error comes before it.
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What goes to a command.
#[derive(Clone)]
struct Keys {
    sink: Arc<Mutex<SplitSink<Socket, Message>>>,
    /// Whether input goes in pieces that tell their length.
    framed: bool,
    _pings: Arc<Pings>,
}

/// A task that ends with this.
struct Pings(tokio::task::JoinHandle<()>);

impl Drop for Pings {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn broken(error: tokio_tungstenite::tungstenite::Error) -> io::Error {
    io::Error::other(error)
}

impl Keys {
    fn new(sink: SplitSink<Socket, Message>, framed: bool) -> Self {
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
        Self { sink, framed, _pings: Arc::new(Pings(pings)) }
    }

    async fn send(&self, channel: u8, data: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(data.len() + 1);
        message.push(channel);
        message.extend_from_slice(data);
        self.sink.lock().await.send(Message::Binary(message.into())).await.map_err(broken)
    }

    /// Says that no input follows.
    async fn end(&self) -> io::Result<()> {
        self.send(STDIN, b"0\n").await
    }
}

impl Sink for Keys {
    async fn put(&mut self, piece: &[u8]) -> io::Result<()> {
        if !self.framed {
            return self.send(STDIN, piece).await;
        }
        let mut framed = format!("{}\n", piece.len()).into_bytes();
        framed.extend_from_slice(piece);
        self.send(STDIN, &framed).await
    }
}

/// One output, up to its mark.
#[derive(Default)]
struct Marked {
    /// What may be the beginning of the mark.
    held: Vec<u8>,
    /// The exit code that stood behind it.
    code: Option<i32>,
}

impl Marked {
    /// Takes what arrives; gives what is no mark.
    fn push(&mut self, data: &[u8], mark: &[u8]) -> Vec<u8> {
        if self.code.is_some() {
            // What the command left running goes on.
            return Vec::new();
        }
        self.held.extend_from_slice(data);
        let keep = match memchr::memmem::find(&self.held, mark) {
            Some(at) => {
                let code = self.held.get(at + mark.len()..at + mark.len() + 3);
                self.code = code.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
                at
            }
            None => {
                let most = (mark.len() - 1).min(self.held.len());
                let partly = (1..=most).rev().find(|length| self.held.ends_with(&mark[..*length]));
                self.held.len() - partly.unwrap_or(0)
            }
        };
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// What a command writes.
struct Stream {
    stream: SplitStream<Socket>,
    /// What ends each output; `None` where only the cluster tells.
    mark: Option<Vec<u8>>,
    out: Marked,
    err: Marked,
    /// What arrived and was not taken yet, from `at` on.
    piece: (Kind, Vec<u8>),
    at: usize,
    /// How it ended, as the cluster tells.
    end: Option<Result<i32, String>>,
}

impl Stream {
    fn new(stream: SplitStream<Socket>, mark: Option<Vec<u8>>) -> Self {
        let (out, err) = (Marked::default(), Marked::default());
        Self { stream, mark, out, err, piece: (Kind::Out, Vec::new()), at: 0, end: None }
    }

    /// How the command ended.
    fn status(&self) -> Result<ExitStatus, String> {
        let marked = self.out.code.or(self.err.code);
        match (marked, &self.end) {
            (Some(code), _) => Ok(ExitStatus::Code(code)),
            // Without a mark, how the script ended says nothing of the command.
            (None, Some(Ok(code))) if self.mark.is_none() => Ok(ExitStatus::Code(*code)),
            (None, Some(Err(why))) => Err(why.clone()),
            (None, _) => Err("a command was cut off".to_owned()),
        }
    }
}

impl Source for Stream {
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<Option<(Kind, usize)>> {
        loop {
            let (kind, piece) = &self.piece;
            if let Some(left) = piece.get(self.at..).filter(|left| !left.is_empty()) {
                let taken = left.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&left[..taken]);
                self.at += taken;
                return Ok(Some((*kind, taken)));
            }
            if self.end.is_some() || (self.out.code.is_some() && self.err.code.is_some()) {
                return Ok(None);
            }
            let message = match self.stream.next().await {
                Some(message) => message.map_err(broken)?,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            let Message::Binary(message) = message else { continue };
            let Some((channel, data)) = message.split_first() else { continue };
            match *channel {
                STDOUT | STDERR => {
                    let (kind, marked) = match *channel {
                        STDOUT => (Kind::Out, &mut self.out),
                        _ => (Kind::Err, &mut self.err),
                    };
                    let piece = match &self.mark {
                        Some(mark) => marked.push(data, mark),
                        None => data.to_vec(),
                    };
                    (self.piece, self.at) = ((kind, piece), 0);
                }
                STATUS if !data.is_empty() => self.end = Some(ending(data)),
                _ => {}
            }
        }
    }
}

/// How a command ended, as the cluster tells: its exit code, or why there is none.
fn ending(status: &[u8]) -> Result<i32, String> {
    let status: Status = serde_json::from_slice(status).map_err(|error| error.to_string())?;
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes.filter(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let code = code.filter_map(|cause| cause.message.as_deref()?.parse().ok()).next();
    code.ok_or_else(|| shown(&status.message.unwrap_or_default()))
}

/// A command on a terminal.
struct KubernetesPty {
    pod: String,
    keys: Keys,
    leash: Leash,
    /// Locked by nobody: it only lets the whole be shared.
    ends: SyncMutex<(Option<DuplexStream>, Option<DuplexStream>)>,
    status: watch::Receiver<Option<Result<ExitStatus, String>>>,
}

#[async_trait]
impl Pty for KubernetesPty {
    fn reader(&mut self) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
        Some(Box::new(self.ends.get_mut().ok()?.0.take()?))
    }

    fn writer(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        Some(Box::new(self.ends.get_mut().ok()?.1.take()?))
    }

    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError> {
        let size = serde_json::json!({ "Width": size.cols, "Height": size.rows }).to_string();
        self.keys.send(RESIZE, size.as_bytes()).await.map_err(|error| failed("resizing a terminal", error))
    }

    async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        let lost = |message: String| GuestError::Unreachable {
            message: format!("pod {}: {message}", self.pod),
            source: None,
        };
        let ended = self.status.wait_for(Option::is_some).await;
        let ended = ended.map_err(|_| lost("a command was cut off".to_owned()))?.clone();
        let status = ended.unwrap_or_else(|| Err(String::new())).map_err(lost)?;
        self.leash.slip();
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_a_message_ends() {
        let mark = b"\x01pocketenv-7:";
        let whole = b"data \x01pocket \x01pocketenv-8:000\n\x01pocketenv-7:042\nleft behind";
        let data_len = whole.len() - b"\x01pocketenv-7:042\nleft behind".len();
        for size in 1..whole.len() {
            let (mut marked, mut data) = (Marked::default(), Vec::new());
            for piece in whole.chunks(size) {
                data.extend(marked.push(piece, mark));
            }
            assert_eq!((data.as_slice(), marked.code), (&whole[..data_len], Some(42)), "in pieces of {size}");
        }
    }

    #[test]
    fn the_end_of_a_command_is_told() {
        let failed = |reason: &str, message: &str| {
            let causes = serde_json::json!([{ "reason": reason, "message": message }]);
            serde_json::json!({ "status": "Failure", "message": "it said", "details": { "causes": causes } })
                .to_string()
        };
        assert_eq!(ending(br#"{"status":"Success"}"#), Ok(0));
        assert_eq!(ending(failed("ExitCode", "7").as_bytes()), Ok(7));
        assert_eq!(ending(failed("Other", "7").as_bytes()), Err("it said".to_owned()));
        assert!(ending(b"?").is_err());
    }
}
