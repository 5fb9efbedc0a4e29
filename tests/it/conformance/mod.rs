//! The conformance kit against every provider that can be had here, and against providers that are broken on purpose.
#![allow(clippy::unwrap_used)]

mod broken;
#[cfg(target_os = "linux")]
pub mod daytona;
#[cfg(target_os = "linux")]
mod docker;
#[cfg(target_os = "linux")]
pub mod e2b;
#[cfg(target_os = "linux")]
pub mod kubernetes;
#[cfg(target_os = "linux")]
mod local;
mod sim;
#[cfg(target_os = "linux")]
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pocketenv::app::conformance::{CaseResult, Conformance, ConformanceOptions, run};
use pocketenv::app::{SystemClock, UuidIds};
use pocketenv::model::Image;
use pocketenv::provider::{Provider, ProviderContext, Registry};
use pocketenv::secret::SecretValue;
use tokio_util::sync::CancellationToken;

/// The program: beside a copy of these tests it is another one.
fn program() -> PathBuf {
    std::env::var_os("POCKETENV_TEST_EXE").unwrap_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into()).into()
}

/// The provider, with these settings.
pub async fn open(name: &str, dir: &Path, settings: &[(&str, &str)]) -> Arc<dyn Provider> {
    open_as(name, dir, settings, BTreeMap::new()).await
}

/// The same, with a key that emulators take.
pub async fn open_with_key(name: &str, dir: &Path, settings: &[(&str, &str)]) -> Arc<dyn Provider> {
    let key = BTreeMap::from([("api_key".to_owned(), SecretValue::new("local"))]);
    open_as(name, dir, settings, key).await
}

async fn open_as(
    name: &str,
    dir: &Path,
    settings: &[(&str, &str)],
    credentials: BTreeMap<String, SecretValue>,
) -> Arc<dyn Provider> {
    let settings: BTreeMap<_, _> = settings.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let context = ProviderContext {
        data_dir: dir.join("data"),
        runtime_dir: dir.join("run"),
        executable: program(),
        vars: BTreeMap::new(),
        credentials: BTreeMap::from([(name.to_owned(), credentials)]),
        settings: BTreeMap::from([(name.to_owned(), settings)]),
    };
    let registry = Registry::open([name], &context).await.unwrap_or_else(|(_, error)| panic!("{error}"));
    Arc::clone(registry.get(name).unwrap())
}

/// Tries the cases whose name contains the pattern.
async fn kit(provider: Arc<dyn Provider>, pattern: Option<&str>) -> Conformance {
    kit_with(provider, Image::Host, pattern).await
}

/// The same in sandboxes from an image.
async fn kit_with(provider: Arc<dyn Provider>, image: Image, pattern: Option<&str>) -> Conformance {
    let options = ConformanceOptions { pattern: pattern.map(str::to_owned), image };
    let mut told = |report: &pocketenv::app::conformance::CaseReport| {
        let evidence = report.evidence.as_deref().unwrap_or_default();
        eprintln!("{:>6} ms {:?} {} {evidence}", report.elapsed_ms, report.result, report.name);
    };
    let cancel = CancellationToken::new();
    run(provider, &options, Arc::new(SystemClock), Arc::new(UuidIds), &cancel, &mut told).await
}

/// Every promise has to be kept, and as many as the sheet offers have to be tried.
async fn passes(provider: Arc<dyn Provider>, tried_at_least: usize) {
    passes_with(provider, Image::Host, tried_at_least).await;
}

/// The same in sandboxes from an image.
async fn passes_with(provider: Arc<dyn Provider>, image: Image, tried_at_least: usize) {
    let report = kit_with(provider, image, None).await;
    let tried = report.cases.iter().filter(|case| case.result == CaseResult::Passed).count();
    let wrong: Vec<_> = report.cases.iter().filter(|case| case.result == CaseResult::Failed).collect();
    assert!(report.passed, "{wrong:#?}\nleft: {:?}", report.left);
    assert!(tried >= tried_at_least, "only {tried} cases were tried");
}
