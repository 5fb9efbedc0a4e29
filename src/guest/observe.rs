//! Looking into a sandbox: one round trip that reads our records and what really stands against them, then the probes of health checks.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::health::probe;
use super::script::{ANSWER_LIMIT, SHORT, run, script};
use super::service::{ServiceDefaults, surroundings};
use crate::model::{
    FileState, HealthCheck, ObservedFile, ObservedGuest, ObservedRepository, ObservedService, PresetOutcome,
    Probe, ProbeResult, ServiceSpec, ServiceStatus, Timestamp,
};
use crate::provider::{Guest, GuestError};

/// What is in place inside a sandbox, checked now: content and mode of managed files, processes of services, and the health of those of `services`
/// that run and have a check. A sandbox that nothing was put into gives an empty answer. Nothing is changed.
///
/// # Errors
/// [`GuestError::Protocol`] if the answer makes no sense; whatever running a command gives.
pub async fn observe(
    guest: &dyn Guest,
    services: &BTreeMap<String, ServiceSpec>,
    defaults: ServiceDefaults<'_>,
) -> Result<ObservedGuest, GuestError> {
    let mut observed = look(guest).await?;
    let running: Vec<(&String, &ServiceSpec, &HealthCheck)> = services
        .iter()
        .filter_map(|(name, spec)| {
            let running = observed.services.get(name)?.state == ServiceStatus::Running;
            running.then_some((name, spec, spec.healthcheck.as_ref()?))
        })
        .collect();
    // Only commands need the environment, and it costs a round trip.
    let env = if running.iter().any(|(_, _, check)| matches!(check.probe, Probe::Exec(_))) {
        super::environment(guest).await?
    } else {
        BTreeMap::new()
    };
    let probes = running.iter().map(async |(_, spec, check)| {
        let (env, defaults) = surroundings(spec, &env, defaults);
        probe_again(guest, check, &env, defaults).await
    });
    let results = futures::future::join_all(probes).await;
    for ((name, _, _), result) in running.into_iter().zip(results) {
        if let Some(service) = observed.services.get_mut(name) {
            service.health = Some(result);
        }
    }
    Ok(observed)
}

/// How often one look probes, and the longest pause in between: whoever looks does not wait for a long interval.
const LOOK_PROBES: u32 = 4;
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Probes until one passes or as many in a row have failed as the check allows: one failure alone is not unhealthy.
async fn probe_again(
    guest: &dyn Guest,
    check: &HealthCheck,
    env: &BTreeMap<String, String>,
    defaults: ServiceDefaults<'_>,
) -> ProbeResult {
    let mut left = check.retries.min(LOOK_PROBES - 1);
    loop {
        match probe(guest, check, env, defaults).await {
            ProbeResult::Failing(_) if left > 0 => {
                left -= 1;
                tokio::time::sleep(LOOK_PAUSE.min(check.interval.into())).await;
            }
            result => return result,
        }
    }
}

/// The same without probes: one round trip.
pub(super) async fn look(guest: &dyn Guest) -> Result<ObservedGuest, GuestError> {
    let mut command = script!("observe").command::<_, String>([]);
    command.timeout = Some(SHORT);
    command.look = true;
    let output = run(guest, "looking into the sandbox", &command, ANSWER_LIMIT).await?;
    if output.truncated {
        return Err(protocol("the answer is too long"));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn protocol(message: impl Into<String>) -> GuestError {
    GuestError::Protocol { what: "looking into the sandbox".to_owned(), message: message.into() }
}

/// A file's record, to be held against what is there.
struct Record<'a> {
    secret: bool,
    digest: &'a str,
    sha256: &'a str,
    mode: &'a str,
    path: &'a str,
}

fn parse(text: &str) -> Result<ObservedGuest, GuestError> {
    let mut lines = text.lines();
    match lines.next() {
        Some("pocketenv\t1") => {}
        other => return Err(protocol(format!("it starts with {other:?}"))),
    }
    let mut observed = ObservedGuest::default();
    let mut records: Vec<Record> = Vec::new();
    let mut env = None;
    let mut hashes: HashMap<String, &str> = HashMap::new();
    let mut modes: HashMap<&str, &str> = HashMap::new();
    let mut target_modes: HashMap<&str, &str> = HashMap::new();
    for line in lines {
        if let Some((path, sha256)) = hash_line(line) {
            hashes.insert(path, sha256);
            continue;
        }
        // Paths stand last, so that splitting never cuts them.
        let (word, rest) = line.split_once('\t').ok_or_else(|| protocol(format!("the line {line:?}")))?;
        let bad = || protocol(format!("the line {line:?}"));
        match word {
            "env" => env = Some(fields::<3>(rest).ok_or_else(bad)?),
            "file" => {
                let [kind, digest, sha256, mode, path] = fields(rest).ok_or_else(bad)?;
                records.push(Record { secret: kind == "S", digest, sha256, mode, path });
            }
            "tree" => {
                let [digest, state, path] = fields(rest).ok_or_else(bad)?;
                let state = match state {
                    "ok" => FileState::InPlace,
                    "modified" => FileState::Modified,
                    "missing" => FileState::Missing,
                    _ => return Err(bad()),
                };
                observed.files.insert(path.to_owned(), observed_file(digest, state));
            }
            "mode" => {
                let [mode, path] = fields(rest).ok_or_else(bad)?;
                modes.insert(path, mode);
            }
            "target" => {
                let [mode, path] = fields(rest).ok_or_else(bad)?;
                target_modes.insert(path, mode);
            }
            "repository" => {
                let [digest, state, path] = fields(rest).ok_or_else(bad)?;
                let repository =
                    ObservedRepository { digest: digest.to_owned(), present: state == "present" };
                observed.repositories.insert(path.to_owned(), repository);
            }
            "step" => {
                let [id, outcome] = fields(rest).ok_or_else(bad)?;
                let outcome = match outcome {
                    "done" => PresetOutcome::Done,
                    "failed" => PresetOutcome::FailedAllowed,
                    _ => return Err(bad()),
                };
                observed.presets.insert(id.to_owned(), outcome);
            }
            "service" => {
                let (name, service) = service(rest).ok_or_else(bad)?;
                observed.services.insert(name, service);
            }
            _ => return Err(bad()),
        }
    }
    for record in records {
        let is_there = modes.get(record.path);
        // A secret may be reached through a link into memory.
        let mode = if record.secret { target_modes.get(record.path) } else { is_there };
        let state = match (is_there, mode) {
            (None, _) => FileState::Missing,
            // The link is left and what it led to went away with the memory.
            (Some(_), None) => FileState::Missing,
            (Some(_), Some(mode)) => {
                let as_written = *mode == record.mode && hashes.get(record.path) == Some(&record.sha256);
                if as_written { FileState::InPlace } else { FileState::Modified }
            }
        };
        observed.files.insert(record.path.to_owned(), observed_file(record.digest, state));
    }
    observed.env = env
        .filter(|[_, sha256, path]| hashes.get(*path) == Some(sha256))
        .map(|[digest, _, _]| digest.to_owned());
    Ok(observed)
}

/// A record with the digest `-` was begun and not finished.
fn observed_file(digest: &str, state: FileState) -> ObservedFile {
    match digest {
        "-" if state == FileState::InPlace => {
            ObservedFile { digest: String::new(), state: FileState::Modified }
        }
        "-" => ObservedFile { digest: String::new(), state },
        _ => ObservedFile { digest: digest.to_owned(), state },
    }
}

fn service(rest: &str) -> Option<(String, ObservedService)> {
    let [name, digest, state, supervised, exit_code, restarts, since] = fields(rest)?;
    let state = match (state, supervised) {
        ("stopped", _) => ServiceStatus::Stopped,
        ("failed", _) => ServiceStatus::Failed,
        ("completed", _) => ServiceStatus::Completed,
        ("running" | "backoff", "gone") => ServiceStatus::Dead,
        ("running", _) => ServiceStatus::Running,
        ("backoff", _) => ServiceStatus::Backoff,
        _ => return None,
    };
    let service = ObservedService {
        digest: digest.to_owned(),
        state,
        health: None,
        restarts: restarts.parse().ok()?,
        exit_code: if exit_code == "-" { None } else { Some(exit_code.parse().ok()?) },
        since: since.parse::<i64>().ok().map(|seconds| Timestamp(seconds.saturating_mul(1000))),
    };
    Some((name.to_owned(), service))
}

/// The fields of a line; the last one takes the rest.
fn fields<const N: usize>(rest: &str) -> Option<[&str; N]> {
    let mut parts = rest.splitn(N, '\t');
    let mut fields = [""; N];
    for field in &mut fields {
        *field = parts.next()?;
    }
    Some(fields)
}

/// Reads a line of `sha256sum`: hash, two blanks, path. A backslash before it means that backslashes of the path are doubled.
fn hash_line(line: &str) -> Option<(String, &str)> {
    let (escaped, line) = line.strip_prefix('\\').map_or((false, line), |line| (true, line));
    let hash = line.get(..64).filter(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    let path = line.get(64..)?.strip_prefix("  ")?;
    Some((if escaped { path.replace("\\\\", "\\") } else { path.to_owned() }, hash))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_sandbox_is_an_empty_answer() {
        assert_eq!(parse("pocketenv\t1\n").unwrap(), ObservedGuest::default());
    }

    #[test]
    fn nonsense_is_an_error_and_not_an_empty_sandbox() {
        for text in ["", "hello", "pocketenv\t2\n", "pocketenv\t1\nfile\tF\n", "pocketenv\t1\nwhat\tever\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_path_with_blanks_and_backslashes_is_found_again() {
        let hash = "a".repeat(64);
        let text = format!(
            "pocketenv\t1\nfile\tF\td1\t{hash}\t81a4\t/a b\\c\nmode\t81a4\t/a b\\c\n\\{hash}  /a b\\\\c\n"
        );
        assert_eq!(parse(&text).unwrap().files["/a b\\c"].state, FileState::InPlace);
    }

    #[test]
    fn a_running_service_without_supervisor_is_dead() {
        let text = "pocketenv\t1\nservice\tweb\td\trunning\tgone\t-\t0\t7\n";
        assert_eq!(parse(text).unwrap().services["web"].state, ServiceStatus::Dead);
    }
}
