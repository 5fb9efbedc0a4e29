//! The inside of a pod, by the cluster's exec and port-forward over WebSocket.
//!
//! The connection is held here and not by `kube`: its own loop does not read while it writes, which ends in silence where a command does the same.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::SplitStream;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, Portforwarder};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::api::{Cluster, answered};
use super::map::CONTAINER;
use crate::provider::script::{
    Ending, Frames, KILL, Kind, LINE_LIMIT, Leash, Outputs, Process, Raw, Resize, Source, argv, failed,
    header, mark, shown,
};
use crate::provider::socket::{Sender, broken};
use crate::provider::{
    Command, ExecIo, ExitStatus, Guest, GuestError, GuestStream, ProviderError, Pty, PtyRequest, capture,
};

/// How long killing a command may take.
const KILLING: Duration = Duration::from_secs(10);
/// Channels of a connection, the first byte of each message (`v4.channel.k8s.io`).
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

const LISTENS: &str = concat!(include_str!("../script/listening.sh"), "pe_listens \"$1\"\n");

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;
type Socket = WebSocketStream<Upgraded>;

/// One pod.
#[derive(Clone)]
pub(super) struct KubernetesGuest {
    pub cluster: Cluster,
    pub pod: String,
}

impl KubernetesGuest {
    fn unreachable(&self, error: ProviderError) -> GuestError {
        GuestError::Unreachable { message: format!("pod {}", self.pod), source: Some(Box::new(error)) }
    }

    /// Opens the streams of a new command.
    async fn open(
        &self,
        argv: Vec<String>,
        tty: bool,
    ) -> Result<(Channel, SplitStream<Socket>), ProviderError> {
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
        Ok((Channel(Sender::new(sink)), stream))
    }

    /// Starts a command.
    async fn spawn(
        &self,
        command: &Command,
        tty: Option<PtyRequest>,
    ) -> Result<Process<Stream, Channel>, GuestError> {
        let header = header(command)?;
        let mark = mark();
        let opened = self.open(argv(command, tty, &mark), tty.is_some()).await;
        let (channel, stream) = opened.map_err(|error| self.unreachable(error))?;
        let outputs = Outputs::new(tty.is_none().then_some(mark));
        let output = Frames::new(Stream { stream, outputs, end: None }, tty.is_some());
        let leash = |pid: &str, start: &str| self.leash(pid, start);
        let early = |output: &Frames<Stream>| self.ended_early(command, output);
        Process::start(command, &header, tty.is_some(), (output, channel), leash, early).await
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
            let opened = self.open(argv, false).await.map_err(|error| self.unreachable(error));
            let (_channel, stream) = opened?;
            let stream = Stream { stream, outputs: Outputs::new(None), end: None };
            let mut output = Frames::new(stream, false);
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
}

#[async_trait]
impl Guest for KubernetesGuest {
    async fn exec(&self, command: &Command, io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let place = format!("pod {}", self.pod);
        command.limited(async { self.spawn(command, None).await?.run(&place, io).await }).await
    }

    async fn pty(&self, command: &Command, size: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        let process = self.spawn(command, Some(size)).await?;
        let channel = process.keys.raw.clone();
        Ok(Box::new(process.terminal(format!("pod {}", self.pod), channel)))
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
        Ok(Box::new(Forwarded { stream, refused: Mutex::new(Some(Box::pin(refused))), forwarder }))
    }
}

/// A connection to a port inside.
struct Forwarded {
    stream: DuplexStream,
    /// Why it ended, if the cluster says so: the stream itself stays open then, and nothing comes any more. Locked by nobody: it only lets the whole be shared.
    refused: Mutex<Option<BoxFuture<'static, Option<String>>>>,
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
struct Channel(Sender<Upgraded>);

impl Channel {
    async fn put(&self, channel: u8, data: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(data.len() + 1);
        message.push(channel);
        message.extend_from_slice(data);
        self.0.send(message).await
    }
}

impl Raw for Channel {
    async fn send(&self, data: &[u8]) -> io::Result<()> {
        self.put(STDIN, data).await
    }
}

#[async_trait]
impl Resize for Channel {
    async fn resize(&self, size: PtyRequest) -> Result<(), GuestError> {
        let size = serde_json::json!({ "Width": size.cols, "Height": size.rows }).to_string();
        self.put(RESIZE, size.as_bytes()).await.map_err(|error| failed("resizing a terminal", error))
    }
}

/// What a command writes.
struct Stream {
    stream: SplitStream<Socket>,
    outputs: Outputs,
    /// How it ended, as the cluster tells.
    end: Option<Result<i32, String>>,
}

impl Ending for Stream {
    fn status(&self) -> Result<ExitStatus, String> {
        match (self.outputs.code(), &self.end) {
            (Some(code), _) => Ok(ExitStatus::Code(code)),
            // Without a mark, how the script ended says nothing of the command.
            (None, Some(Ok(code))) if !self.outputs.marked() => Ok(ExitStatus::Code(*code)),
            (None, Some(Err(why))) => Err(why.clone()),
            (None, _) => Err("a command was cut off".to_owned()),
        }
    }
}

impl Source for Stream {
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<Option<(Kind, usize)>> {
        loop {
            if let Some(taken) = self.outputs.take(buffer) {
                return Ok(Some(taken));
            }
            if self.end.is_some() || self.outputs.ended() {
                return Ok(None);
            }
            let message = match self.stream.next().await {
                Some(message) => message.map_err(broken)?,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            let Message::Binary(message) = message else { continue };
            let Some((channel, data)) = message.split_first() else { continue };
            match *channel {
                STDOUT => self.outputs.push(Kind::Out, data),
                STDERR => self.outputs.push(Kind::Err, data),
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

#[cfg(test)]
mod tests {
    use super::*;

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
