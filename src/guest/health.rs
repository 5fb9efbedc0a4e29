//! Health: one probe, and waiting until a service is up.

use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::observe::look;
use super::script::{Env, SHORT, run, script};
use super::service::{ServiceDefaults, check_name, surroundings};
use crate::model::{
    HealthCheck, ObservedService, Probe, ProbeResult, ServiceSpec, ServiceStatus, with_causes,
};
use crate::provider::{Command, ExecIo, Guest, GuestError, GuestStream, Output, Sink};

/// What an `exec` probe's output adds to the reason of its failure.
const REASON_LIMIT: usize = 512;

/// Probes once. That a probe fails, or takes longer than the check allows, is a [`ProbeResult`], not an error; `env` and `defaults` are for `exec`
/// probes.
pub async fn probe(
    guest: &dyn Guest,
    check: &HealthCheck,
    env: &Env,
    defaults: ServiceDefaults<'_>,
) -> ProbeResult {
    let attempt = async {
        match &check.probe {
            Probe::Tcp(port) => dial(guest, *port).await.map(drop),
            Probe::Http { port, path } => http(guest, *port, path).await,
            Probe::Exec(argv) => exec(guest, argv, env, defaults).await,
        }
    };
    match timeout(check.timeout.into(), attempt).await {
        Ok(Ok(())) => ProbeResult::Passing,
        Ok(Err(reason)) => ProbeResult::Failing(reason),
        Err(_) => ProbeResult::Failing(format!("no answer within {}", check.timeout)),
    }
}

/// Connects to a port inside. That the sandbox could not be reached says nothing about the service, so that is tried again.
async fn dial(guest: &dyn Guest, port: u16) -> Result<Box<dyn GuestStream>, String> {
    let mut pauses = [50, 100, 200].into_iter().map(Duration::from_millis);
    loop {
        match guest.dial(port).await {
            Ok(stream) => return Ok(stream),
            Err(error) => match pauses.next().filter(|_| error.is_retryable()) {
                Some(pause) => sleep(pause).await,
                None => return Err(with_causes(&error)),
            },
        }
    }
}

async fn http(guest: &dyn Guest, port: u16, path: &str) -> Result<(), String> {
    let stream = dial(guest, port).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .map_err(|error| with_causes(&error))?;
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, format!("localhost:{port}"))
        .header(hyper::header::USER_AGENT, "pocketenv-healthcheck")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| with_causes(&error))?;
    // The connection is driven here and not in a task of its own, so that a time-out ends it.
    let (answer, connection) = (sender.send_request(request), connection);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may end with the answer already there.
        _ = &mut connection => answer.await,
    };
    match answer.map_err(|error| with_causes(&error))?.status() {
        status if status.as_u16() < 400 => Ok(()),
        status => Err(format!("GET {path} answers {status}")),
    }
}

async fn exec(
    guest: &dyn Guest,
    argv: &[String],
    env: &Env,
    defaults: ServiceDefaults<'_>,
) -> Result<(), String> {
    if argv.is_empty() {
        return Err("the check has no command".to_owned());
    }
    let mut command = Command::new(argv.iter().cloned());
    command.env = env.clone();
    command.cwd = defaults.working_dir.map(str::to_owned);
    command.user = defaults.user.map(str::to_owned);
    command.look = true;
    let mut output = super::script::Tail::new(REASON_LIMIT);
    let mut writer = Sink(|data: &[u8]| output.push(data));
    let io = ExecIo { stderr: Output::Writer(&mut writer), ..ExecIo::default() };
    let status = guest.exec(&command, io).await.map_err(|error| with_causes(&error))?;
    if status.success() {
        return Ok(());
    }
    let output = output.into_bytes();
    let output = String::from_utf8_lossy(&output);
    let output = output.trim();
    let colon = if output.is_empty() { "" } else { ": " };
    Err(format!("`{}` ended with {status}{colon}{output}", command.program()))
}

/// Waits until the service's process runs and has started up, as far as that is seen from outside, or has ended as it should.
///
/// # Errors
/// [`GuestError::NotReady`] with the last lines of its log if it has failed, keeps ending, is dead, stopped or gone.
pub async fn wait_started(guest: &dyn Guest, name: &str, limit: Duration) -> Result<(), GuestError> {
    check_name(name)?;
    let deadline = Instant::now() + limit;
    let mut settle = script!("settle").command([name]);
    settle.timeout = Some(SHORT);
    loop {
        let said = run(guest, &format!("waiting for service {name}"), &settle, 0).await?;
        if said.stdout.trim_ascii() == b"settled" {
            return Ok(());
        }
        let service = look(guest).await?.services.remove(name);
        match service.as_ref().map(|service| service.state) {
            Some(ServiceStatus::Completed | ServiceStatus::Running) => return Ok(()),
            Some(ServiceStatus::Backoff) if Instant::now() < deadline => {}
            _ => return Err(ended(guest, name, service.as_ref(), "did not stay up").await),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the service's health check passes once; without a check, as [`wait_started`]. Failures within the check's start period do not count;
/// after it, more than `retries` in a row are too many. Never longer than `limit`.
///
/// # Errors
/// [`GuestError::NotReady`] with the last probe's reason and the last lines of the service's log, at once if it has failed, completed, died or was
/// stopped.
pub async fn wait_healthy(
    guest: &dyn Guest,
    name: &str,
    spec: &ServiceSpec,
    env: &Env,
    defaults: ServiceDefaults<'_>,
    limit: Duration,
) -> Result<(), GuestError> {
    let Some(check) = &spec.healthcheck else { return wait_started(guest, name, limit).await };
    check_name(name)?;
    let (env, defaults) = surroundings(spec, env, defaults);
    let begun = Instant::now();
    // It is asked more often than the interval says, because somebody waits; a failure counts once an interval all the same.
    let mut failures = 0;
    let mut counted: Option<Instant> = None;
    let mut pause = Duration::from_millis(5).min(check.interval.into());
    loop {
        let result = probe(guest, check, &env, defaults).await;
        // Something else may answer on the port of a service that is not there.
        let service = look(guest).await?.services.remove(name);
        let state = service.as_ref().map(|service| service.state);
        let last = match (result, state) {
            (ProbeResult::Passing, Some(ServiceStatus::Running)) => return Ok(()),
            (ProbeResult::Passing, _) => "its process does not run".to_owned(),
            (ProbeResult::Failing(reason), _) => reason,
        };
        if !matches!(state, Some(ServiceStatus::Running | ServiceStatus::Backoff)) {
            return Err(ended(guest, name, service.as_ref(), &last).await);
        }
        let due = counted.is_none_or(|at| at.elapsed() >= Duration::from(check.interval));
        if begun.elapsed() >= Duration::from(check.start_period) && due {
            failures += 1;
            counted = Some(Instant::now());
        }
        if failures > check.retries || begun.elapsed() >= limit {
            return Err(ended(guest, name, service.as_ref(), &format!("is not healthy: {last}")).await);
        }
        sleep(pause.min(limit.saturating_sub(begun.elapsed()))).await;
        pause = (pause * 2).min(check.interval.into());
    }
}

/// Why a service is not up, with the end of its log.
async fn ended(guest: &dyn Guest, name: &str, service: Option<&ObservedService>, why: &str) -> GuestError {
    let state = match service.map(|service| service.state) {
        None => "does not exist".to_owned(),
        Some(ServiceStatus::Running) => why.to_owned(),
        Some(ServiceStatus::Backoff) => format!("keeps ending; {why}"),
        Some(ServiceStatus::Failed) => "has failed".to_owned(),
        Some(ServiceStatus::Completed) => "has completed".to_owned(),
        Some(ServiceStatus::Stopped) => "is stopped".to_owned(),
        Some(ServiceStatus::Dead) => "has lost its supervisor".to_owned(),
    };
    let mut last = Vec::new();
    let options = super::logs::LogOptions { follow: false, tail: Some(10) };
    // The log is an addition to the error; that it cannot be read does not replace it.
    let _ = super::logs::logs(guest, &[name.to_owned()], options, &mut |line| {
        last.push(String::from_utf8_lossy(line.text).into_owned());
    })
    .await;
    let code = service.and_then(|service| service.exit_code);
    let code = code.map_or(String::new(), |code| format!(" (exit code {code})"));
    GuestError::NotReady { what: format!("service {name} {state}{code}"), output: last.join("\n") }
}
