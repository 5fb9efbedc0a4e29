//! What stands between a provider and its service: it passes everything on, except what it was told to refuse, delay or cut.

use std::convert::Infallible;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::provider::{Answer, Calls, Detour, Pattern, ProviderError, Upstream};

/// The longest request that is passed on.
const REQUEST: usize = 64 << 20;
/// An answer that comes slowly comes in pieces, each a byte longer than the one before up to this, with a pause between them.
const PIECE: usize = 1021;
const PAUSE: Duration = Duration::from_millis(2);
/// What refusals say.
const SAID: &str = "so the conformance kit says";

/// One kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    List,
    Get,
    Create,
    Delete,
    Exec,
}

impl Call {
    fn patterns(self, calls: &Calls) -> &'static [Pattern] {
        match self {
            Self::List => calls.list,
            Self::Get => calls.get,
            Self::Create => calls.create,
            Self::Delete => calls.delete,
            Self::Exec => calls.exec,
        }
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// The service never hears of it, and the answer is this status; perhaps with how long to wait.
    Refused(u16, Option<Duration>),
    /// The service does it, and the answer is this status.
    Failed(u16),
    /// The service never hears of it, and the connection is closed.
    Closed,
    /// The service does it, and the connection is closed.
    Lost,
    /// The service does it, and of what it answers so many bytes arrive after the head.
    Cut(usize),
    /// The service does it, and the answer arrives a little at a time.
    Slow,
    /// The service does it, and no answer comes for as long as somebody waits.
    Held,
}

/// What was told, and what came of it.
struct Told {
    call: Call,
    fault: Fault,
    /// How many calls it still happens to.
    left: usize,
    /// When such calls came, the last ones as they should.
    met: Vec<Instant>,
    held: Arc<Notify>,
}

/// Stands before a service until it is dropped.
pub(super) struct Front {
    calls: &'static Calls,
    told: Arc<Mutex<Option<Told>>>,
    /// Connections end with this.
    listeners: Mutex<JoinSet<()>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Front {
    pub(super) fn new(calls: &'static Calls) -> Self {
        Self { calls, told: Arc::default(), listeners: Mutex::default() }
    }

    /// From now on the next calls of this kind, so many, meet the fault. Told when the service has done one whose answer is held.
    pub(super) fn tell(&self, call: Call, fault: Fault, times: usize) -> Arc<Notify> {
        let held = Arc::new(Notify::new());
        let told = Told { call, fault, left: times, met: Vec::new(), held: Arc::clone(&held) };
        *locked(&self.told) = Some(told);
        held
    }

    /// Everything is passed on again; when calls of the kind came meanwhile.
    pub(super) fn relent(&self) -> Vec<Instant> {
        locked(&self.told).take().map(|told| told.met).unwrap_or_default()
    }
}

impl Detour for Front {
    fn before(&self, service: Arc<dyn Upstream>) -> Result<SocketAddr, ProviderError> {
        let failed = |error| ProviderError::permanent("nothing can listen on the loopback", error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let door = Arc::new(Door { service, calls: self.calls, told: Arc::clone(&self.told) });
        locked(&self.listeners).spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(Arc::clone(&door).serve(stream));
            }
        });
        Ok(address)
    }
}

/// One address.
struct Door {
    service: Arc<dyn Upstream>,
    calls: &'static Calls,
    told: Arc<Mutex<Option<Told>>>,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Close(String);

impl Door {
    async fn serve(self: Arc<Self>, stream: tokio::net::TcpStream) {
        // Data passed between two upgraded connections; they end with this one.
        let relays = Mutex::new(None);
        let answer = service_fn(|request| self.answer(request, &relays));
        let server = hyper::server::conn::http1::Builder::new();
        let served = server.serve_connection(TokioIo::new(stream), answer).with_upgrades().await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection to the front ended");
        }
        let relay = locked(&relays).take();
        if let Some(relay) = relay {
            relay.run().await;
        }
    }

    /// What happens to a call.
    fn meet(&self, request: &Request<Incoming>) -> Option<(Fault, Arc<Notify>)> {
        let mut told = locked(&self.told);
        let told = told.as_mut()?;
        let (method, path) = (request.method().as_str(), request.uri().path());
        if !told.call.patterns(self.calls).iter().any(|pattern| pattern.matches(method, path)) {
            return None;
        }
        told.met.push(Instant::now());
        told.left = told.left.checked_sub(1)?;
        Some((told.fault, Arc::clone(&told.held)))
    }

    fn refusal(&self, status: u16, after: Option<Duration>) -> Result<Answer, Close> {
        let body = Full::new(Bytes::from((self.calls.refusal)(status, SAID, after)));
        let mut answer = Response::new(body.map_err(|never: Infallible| match never {}).boxed_unsync());
        *answer.status_mut() = StatusCode::from_u16(status).map_err(|error| Close(error.to_string()))?;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        Ok(answer)
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        relay: &Mutex<Option<Relay>>,
    ) -> Result<Answer, Close> {
        let (fault, held) = self.meet(&request).unzip();
        let client = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let whole = Limited::new(body, REQUEST).collect().await.map_err(|error| Close(error.to_string()))?;
        match fault {
            Some(Fault::Refused(status, after)) => return self.refusal(status, after),
            Some(Fault::Closed) => return Err(Close("as it was told, before".to_owned())),
            _ => {}
        }
        parts.headers.remove(HOST);
        let passed = self.service.pass(Request::from_parts(parts, whole.to_bytes())).await;
        let mut answer = passed.map_err(|error| Close(format!("the service does not answer: {error}")))?;
        match fault {
            Some(Fault::Failed(status)) => return self.refusal(status, None),
            Some(Fault::Lost) => return Err(Close("as it was told, after".to_owned())),
            Some(Fault::Held) => {
                held.iter().for_each(|held| held.notify_one());
                pending::<()>().await;
            }
            _ => {}
        }
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let service = hyper::upgrade::on(&mut answer);
            *locked(relay) = Some(Relay { client, service, fault });
            return Ok(answer);
        }
        answer.headers_mut().remove(CONNECTION);
        Ok(answer.map(|body| body.into_data_stream()).map(|data| match fault {
            Some(Fault::Cut(kept)) => {
                let cut = stream::unfold((data, kept), |(mut data, left)| async move {
                    let more = if left > 0 { data.next().await? } else { return None };
                    let more = more.map(|more| more.slice(..more.len().min(left)));
                    let left = left - more.as_ref().map_or(left, Bytes::len);
                    Some((more, (data, left)))
                });
                // However long it is, it has no end. What stands before is sent first.
                let end = stream::once(async {
                    sleep(PAUSE * 10).await;
                    Err(Close("as it was told, in the middle".to_owned()).into())
                });
                StreamBody::new(cut.chain(end).map(|data| data.map(Frame::data))).boxed_unsync()
            }
            Some(Fault::Slow) => {
                let mut size = 0;
                let slow = data.flat_map(move |data| {
                    let mut pieces = Vec::new();
                    match data {
                        Ok(mut data) => {
                            while !data.is_empty() {
                                size = PIECE.min(size + 1);
                                pieces.push(Ok(data.split_to(size.min(data.len()))));
                            }
                        }
                        Err(error) => pieces.push(Err(error)),
                    }
                    stream::iter(pieces).then(|piece| async {
                        sleep(PAUSE).await;
                        piece
                    })
                });
                StreamBody::new(slow.map(|data| data.map(Frame::data))).boxed_unsync()
            }
            _ => StreamBody::new(data.map(|data| data.map(Frame::data))).boxed_unsync(),
        }))
    }
}

/// Two connections that speak something else than HTTP now.
struct Relay {
    client: OnUpgrade,
    service: OnUpgrade,
    fault: Option<Fault>,
}

impl Relay {
    async fn run(self) {
        let fault = self.fault;
        let (Ok(client), Ok(service)) = tokio::join!(self.client, self.service) else { return };
        if let Err(error) = relay(client, service, fault).await {
            tracing::debug!(%error, "a relayed connection ended");
        }
    }
}

async fn relay(client: Upgraded, service: Upgraded, fault: Option<Fault>) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let (from_service, mut to_service) = tokio::io::split(TokioIo::new(service));
    let there = async {
        tokio::io::copy(&mut from_client, &mut to_service).await?;
        to_service.shutdown().await
    };
    let back = async {
        let limit = if let Some(Fault::Cut(kept)) = fault { kept as u64 } else { u64::MAX };
        let mut from_service = from_service.take(limit);
        if fault == Some(Fault::Slow) {
            let (mut buffer, mut size) = ([0; PIECE], 1);
            while let read @ 1.. = from_service.read(&mut buffer[..size]).await? {
                to_client.write_all(&buffer[..read]).await?;
                to_client.flush().await?;
                size = PIECE.min(size + 1);
                sleep(PAUSE).await;
            }
        } else {
            tokio::io::copy(&mut from_service, &mut to_client).await?;
        }
        to_client.shutdown().await
    };
    tokio::pin!(there, back);
    // What the service says decides when it is over.
    tokio::select! {
        said = &mut back => said,
        sent = &mut there => { sent?; back.await }
    }
}
