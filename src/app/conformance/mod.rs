//! The conformance kit: what every provider promises, tried out at the provider itself.
//!
//! A [`Case`] says which entries of the capability sheet it needs; what a sheet does not offer is not tried, and the report says so. `pocketenv provider
//! test NAME` runs the kit against a user's account, `tests/it/conformance` against every provider that can be had here. A run works in a project
//! of its own, and removes what it made whatever happens.

mod bench;
mod control;
mod front;
mod inside;
mod ports;
mod streams;
mod trouble;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::model::{Clock, IdSource, Image};
use crate::provider::{Capabilities, ChangeClass, FieldSupport, Provider, StopMeaning, Support};

use bench::{Bench, Failure};

/// What a case answers.
type Verdict = Result<(), Failure>;

/// How long one case may take: a cloud may need half a minute for each of its sandboxes.
const CASE: Duration = Duration::from_secs(300);
/// How long cleaning up may take.
const SWEEP: Duration = Duration::from_secs(120);

/// One promise, and how it is tried.
pub struct Case {
    /// Its name, `GROUP/NAME`.
    pub name: &'static str,
    /// What is promised.
    pub promise: &'static str,
    /// What the sheet has to offer for it.
    pub needs: &'static [Need],
    attempt: for<'a> fn(&'a Bench) -> BoxFuture<'a, Verdict>,
}

/// An entry of the capability sheet that a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// What runs inside is real.
    Processes,
    /// Input reaches a command while it runs.
    Interactive,
    /// Commands on a terminal.
    Pty,
    /// Ports inside can be dialled.
    Dial,
    /// Ports are forwarded from this host.
    HostPorts,
    /// Creating twice with one token makes one sandbox.
    IdempotentCreate,
    /// A stop keeps the disk.
    KeepsDisk,
    /// A stop loses the disk.
    LosesDisk,
    /// Sandboxes can be paused.
    Pause,
    /// The field is honoured, with this value if one is given.
    Field(&'static str, Option<&'static str>),
    /// The field is changed while the sandbox runs.
    Live(&'static str),
    /// Some change of a sandbox is no new sandbox.
    Updates,
    /// There is a service that somebody can stand in front of.
    Service,
}

impl Need {
    /// What the sheet lacks, as it follows "not offered:"; `None` if it offers this.
    pub fn lacking(self, sheet: &Capabilities) -> Option<String> {
        let path = |text: &'static str| text.split('.').collect::<Vec<_>>();
        let (offered, what) = match self {
            Self::Processes => (sheet.processes, "real processes inside".to_owned()),
            Self::Interactive => (sheet.interactive, "input while a command runs".to_owned()),
            Self::Pty => (sheet.pty, "terminals".to_owned()),
            Self::Dial => (sheet.dial, "dialling ports inside".to_owned()),
            Self::HostPorts => (sheet.forwards_from_host, "ports forwarded from this host".to_owned()),
            Self::IdempotentCreate => (sheet.idempotent_create, "an idempotent create".to_owned()),
            Self::KeepsDisk => (sheet.stop == StopMeaning::Suspend, "a stop that keeps the disk".to_owned()),
            Self::LosesDisk => (sheet.stop == StopMeaning::Destroy, "a stop that loses the disk".to_owned()),
            Self::Pause => (sheet.pause, "a pause".to_owned()),
            Self::Field(field, value) => {
                let shown = value.map_or_else(|| field.to_owned(), |value| format!("{field}: {value}"));
                (sheet.honours(&path(field), value), format!("`{shown}`"))
            }
            Self::Live(field) => {
                let live = sheet.field(&path(field), None) == Some(&Support::Honoured(ChangeClass::Live));
                (live, format!("changing `{field}` while the sandbox runs"))
            }
            Self::Service => (sheet.service, "a service over HTTP".to_owned()),
            Self::Updates => {
                // `sync` is brought inside, whatever the provider does.
                let kept = |row: &FieldSupport| {
                    row.path != "sync"
                        && matches!(row.support, Support::Honoured(ChangeClass::Live | ChangeClass::Restart))
                };
                (sheet.fields.iter().any(kept), "changing a sandbox that exists".to_owned())
            }
        };
        (!offered).then_some(what)
    }
}

/// What to try, and with what.
#[derive(Clone, Debug)]
pub struct ConformanceOptions {
    /// Only cases whose name contains this.
    pub pattern: Option<String>,
    /// The image of every sandbox.
    pub image: Image,
}

/// How one case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: &'static str,
    /// What is promised.
    pub promise: &'static str,
    /// How it ended.
    pub result: CaseResult,
    /// What was seen, what the sheet lacks, or what there is nothing to try with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseResult {
    /// The promise was kept.
    Passed,
    /// The sheet does not offer it.
    NotOffered,
    /// It could not be tried in this image.
    Skipped,
    /// The promise was broken.
    Failed,
    /// It was called off.
    Interrupted,
}

/// How all of them ended.
#[derive(Clone, Debug, Serialize)]
pub struct Conformance {
    /// The provider.
    pub provider: &'static str,
    /// The project that everything was made in.
    pub project: String,
    /// No promise was broken, nothing was called off, and nothing is left.
    pub passed: bool,
    /// Every case.
    pub cases: Vec<CaseReport>,
    /// What could not be removed.
    pub left: Vec<String>,
}

/// Every case, in the order in which they are tried.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    [control::CASES, inside::CASES, streams::CASES, ports::CASES, trouble::CASES].into_iter().flatten()
}

/// Tries every case that is asked for, one after the other; `told` hears of each when it has ended. Once `cancel` is cancelled the running case is given
/// up, no other is begun, and what was made is removed.
pub async fn run(
    provider: Arc<dyn Provider>,
    options: &ConformanceOptions,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    cancel: &CancellationToken,
    told: &mut (dyn FnMut(&CaseReport) + Send),
) -> Conformance {
    let bench = Bench::new(provider, options.image.clone(), clock, ids);
    let mut reports = Vec::new();
    for case in cases() {
        let asked = options.pattern.as_ref().is_none_or(|pattern| case.name.contains(pattern.as_str()));
        if !asked || cancel.is_cancelled() {
            continue;
        }
        // What the case before has left goes meanwhile: a cloud may take half a minute to remove a sandbox.
        let (report, ()) = tokio::join!(one(&bench, case, cancel), bench.tidy(bench.made()));
        told(&report);
        reports.push(report);
    }
    let left = tokio::time::timeout(SWEEP, bench.sweep())
        .await
        .unwrap_or_else(|_| vec![format!("cleaning up took longer than {} s", SWEEP.as_secs())]);
    let good = |report: &CaseReport| !matches!(report.result, CaseResult::Failed | CaseResult::Interrupted);
    Conformance {
        provider: bench.sheet().provider,
        project: bench.project().to_owned(),
        passed: reports.iter().all(good) && left.is_empty() && !cancel.is_cancelled(),
        cases: reports,
        left,
    }
}

async fn one(bench: &Bench, case: &Case, cancel: &CancellationToken) -> CaseReport {
    let begun = Instant::now();
    let lacking = case.needs.iter().find_map(|need| need.lacking(bench.sheet()));
    let (result, evidence) = match lacking {
        Some(lacking) => (CaseResult::NotOffered, Some(lacking)),
        None => {
            tokio::select! {
                biased;
                () = cancel.cancelled() => (CaseResult::Interrupted, None),
                ended = tokio::time::timeout(CASE, (case.attempt)(bench)) => match ended {
                    Ok(Ok(())) => (CaseResult::Passed, None),
                    Ok(Err(Failure::Nothing(why))) => (CaseResult::Skipped, Some(why)),
                    Ok(Err(Failure::Broken(what))) => (CaseResult::Failed, Some(what)),
                    Err(_) => {
                        (CaseResult::Failed, Some(format!("it did not end within {} s", CASE.as_secs())))
                    }
                },
            }
        }
    };
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    CaseReport { name: case.name, promise: case.promise, result, evidence, elapsed_ms }
}

/// Declares the cases of one group.
macro_rules! group {
    ($($name:literal: $promise:literal, [$($need:expr),*], $attempt:path;)*) => {
        pub(super) static CASES: &[$crate::app::conformance::Case] = &[$(
            $crate::app::conformance::Case {
                name: $name,
                promise: $promise,
                needs: &[$($need),*],
                attempt: |bench| Box::pin($attempt(bench)),
            },
        )*];
    };
}
use group;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_a_need_is_read_from_the_sheet() {
        let names: BTreeSet<&str> = cases().map(|case| case.name).collect();
        assert_eq!(names.len(), cases().count());
        assert!(names.iter().all(|name| name.contains('/')));
        let lacking = Need::Pty.lacking(&Capabilities::NOTHING);
        assert_eq!(lacking.as_deref(), Some("terminals"));
        assert_eq!(Need::LosesDisk.lacking(&Capabilities::NOTHING), None);
        let field = Need::Field("network.mode", Some("none"));
        assert_eq!(field.lacking(&Capabilities::NOTHING).as_deref(), Some("`network.mode: none`"));
    }
}
