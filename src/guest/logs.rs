//! Logs of services, rotated parts included; following survives rotation.

use futures::future::try_join_all;
use std::sync::Mutex;

use super::script::{Tail, script};
use super::service::check_name;
use crate::provider::{ExecIo, Guest, GuestError, Input, Output, Sink};

/// The longest line that is given on in one piece.
const LINE_LIMIT: usize = 64 * 1024;

/// What of the logs is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// Go on with what comes, until the future is dropped.
    pub follow: bool,
    /// The last so many lines; `None` for all.
    pub tail: Option<u32>,
}

/// One line of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// The service.
    pub service: &'a str,
    /// The bytes without the line break, as the service wrote them.
    pub text: &'a [u8],
}

/// Gives the log lines of services to `sink`; lines of one service in order.
///
/// # Errors
/// [`GuestError::Failed`] if a service does not exist.
pub async fn logs(
    guest: &dyn Guest,
    services: &[String],
    options: LogOptions,
    sink: &mut (dyn FnMut(LogLine<'_>) + Send),
) -> Result<(), GuestError> {
    for service in services {
        check_name(service)?;
    }
    let sink = Mutex::new(sink);
    try_join_all(services.iter().map(|service| one(guest, service, options, &sink))).await.map(drop)
}

type Shared<'a, 'b> = Mutex<&'a mut (dyn FnMut(LogLine<'_>) + Send + 'b)>;

async fn one(
    guest: &dyn Guest,
    service: &str,
    options: LogOptions,
    sink: &Shared<'_, '_>,
) -> Result<(), GuestError> {
    let tail = options.tail.map_or("all".to_owned(), |lines| lines.to_string());
    let follow = if options.follow { "1" } else { "0" };
    let command = script!("logs").command([service, &tail, follow]);
    let mut output = Splitter { service, pending: Vec::new(), sink };
    let mut stderr = Tail::new(1024);
    let io = ExecIo {
        stdin: Input::Null,
        stdout: Output::Writer(&mut Sink(|data: &[u8]| output.push(data))),
        stderr: Output::Writer(&mut Sink(|data: &[u8]| stderr.push(data))),
    };
    let status = guest.exec(&command, io).await?;
    output.finish();
    if status.success() {
        return Ok(());
    }
    Err(GuestError::Failed {
        what: format!("reading the log of service {service}"),
        status,
        output: String::from_utf8_lossy(&stderr.into_bytes()).into_owned(),
    })
}

/// Cuts a stream into lines.
struct Splitter<'a, 'b, 'c> {
    service: &'a str,
    pending: Vec<u8>,
    sink: &'a Shared<'b, 'c>,
}

impl Splitter<'_, '_, '_> {
    fn give(&self, text: &[u8]) {
        // A sink that panicked elsewhere has already ended the caller.
        let mut sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sink(LogLine { service: self.service, text });
    }

    fn finish(self) {
        if !self.pending.is_empty() {
            self.give(&self.pending);
        }
    }

    fn push(&mut self, data: &[u8]) {
        let mut rest = data;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.pending.is_empty() {
                self.give(line);
            } else {
                self.pending.extend_from_slice(line);
                let line = std::mem::take(&mut self.pending);
                self.give(&line);
            }
            rest = after;
        }
        self.pending.extend_from_slice(rest);
        while self.pending.len() > LINE_LIMIT {
            let piece: Vec<u8> = self.pending.drain(..LINE_LIMIT).collect();
            self.give(&piece);
        }
    }
}
