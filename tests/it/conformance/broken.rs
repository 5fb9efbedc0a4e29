//! Providers that are broken on purpose: each breaks a promise, and the case of that promise has to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use pocketenv::app::conformance::{CaseResult, cases};
use pocketenv::model::{
    Identity, NetworkMode, ObservedProvider, ObservedSandbox, SandboxId, SandboxSpec, labels,
};
use pocketenv::provider::{
    Calls, Capabilities, Command, Detour, ExecIo, ExitStatus, Guest, GuestError, GuestStream, Input, Output,
    Owner, Provider, ProviderError, Pty, PtyRequest, Service, Snapshots, StopMeaning, Volumes,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{kit, open};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    StopDoesNothing,
    PauseDoesNothing,
    StopLosesTheDisk,
    StopKeepsTheDisk,
    StartingTwiceFails,
    TokensAreIgnored,
    OneSandboxForAll,
    ListingForgets,
    ListingKeepsTheDead,
    ListingIsUnfiltered,
    LabelsAreForgotten,
    UpdateDoesNothing,
    UpdateRestarts,
    SpecReadsWrong,
    SpecIsDropped,
    EverybodyShares,
    VolumesStay,
    SnapshotsStay,
    UnknownIsFine,
    CodesAreLost,
    StreamsAreSwapped,
    ArgumentsAreJoined,
    EnvironmentIsDropped,
    DirectoryIsIgnored,
    NoProgramIsFine,
    InputNeverEnds,
    LimitsAreIgnored,
    NothingEnds,
    OneAtATime,
    OutputIsText,
    OutputIsCut,
    OutputComesLate,
    UnreadInputFails,
    ServicesDie,
    TerminalsAreOneSize,
    KeysAreLost,
    PortsAreClosed,
    PortsAreAllOpen,
    EndpointsAreWrong,
    ExecIsSlow,
    LostListingsAreEmpty,
    LostCommandsSucceed,
    RefusalsPass,
    FailedGetsAreAbsence,
    FailedDeletionsAreDone,
    FailedCreatesPass,
    PausesAreForgotten,
    FailuresAreFinal,
    ListingsAreHasty,
    SlowOutputIsCut,
}

use Defect::*;

/// Each defect with the cases that have to find it, tried at the simulated cloud.
const OF_A_CLOUD: &[(Defect, &[&str])] = &[
    (StopDoesNothing, &["lifecycle/whole"]),
    (StartingTwiceFails, &["lifecycle/repeated"]),
    (TokensAreIgnored, &["create/same-token", "create/lost-answer"]),
    (OneSandboxForAll, &["create/many"]),
    (ListingForgets, &["list/appears", "create/many"]),
    (ListingKeepsTheDead, &["list/appears"]),
    (ListingIsUnfiltered, &["list/filtered"]),
    (LabelsAreForgotten, &["labels/round-trip"]),
    (UpdateDoesNothing, &["labels/updated", "spec/ports-live"]),
    (UpdateRestarts, &["spec/ports-live"]),
    (SpecReadsWrong, &["spec/read-back"]),
    (VolumesStay, &["volumes/kept"]),
    (UnknownIsFine, &["errors/unknown"]),
];

/// The same at the local engine, which has an inside.
const OF_AN_INSIDE: &[(Defect, &[&str])] = &[
    (StopDoesNothing, &["lifecycle/processes-end"]),
    (PauseDoesNothing, &["lifecycle/paused"]),
    (StopLosesTheDisk, &["lifecycle/disk-kept"]),
    (StopKeepsTheDisk, &["lifecycle/disk-lost"]),
    (EverybodyShares, &["create/apart"]),
    (SpecIsDropped, &["spec/hostname", "spec/no-network"]),
    (SnapshotsStay, &["snapshots/kept"]),
    (CodesAreLost, &["exec/codes"]),
    (StreamsAreSwapped, &["exec/streams"]),
    (ArgumentsAreJoined, &["exec/arguments"]),
    (EnvironmentIsDropped, &["exec/environment"]),
    (DirectoryIsIgnored, &["exec/directory"]),
    (NoProgramIsFine, &["exec/no-program"]),
    (InputNeverEnds, &["exec/no-input"]),
    (LimitsAreIgnored, &["exec/time-limit"]),
    (NothingEnds, &["exec/given-up"]),
    (ExecIsSlow, &["exec/left-behind"]),
    (OneAtATime, &["exec/many"]),
    (OutputIsText, &["exec/binary", "files/tree"]),
    (OutputIsCut, &["exec/large", "files/100-mib"]),
    (OutputComesLate, &["exec/conversation"]),
    (UnreadInputFails, &["exec/unread"]),
    (ServicesDie, &["services/outlive"]),
    (TerminalsAreOneSize, &["pty/terminal", "pty/resized"]),
    (KeysAreLost, &["pty/interrupt"]),
    (PortsAreClosed, &["ports/dialled"]),
    (PortsAreAllOpen, &["ports/closed"]),
    (EndpointsAreWrong, &["ports/forwarded", "ports/datagrams"]),
];

/// The same at an emulator, whose service is in trouble.
#[cfg(target_os = "linux")]
const OF_A_SERVICE: &[(Defect, &[&str])] = &[
    (RefusalsPass, &["service/unauthorised"]),
    (
        LostListingsAreEmpty,
        &[
            "service/unauthorised",
            "service/not-found",
            "service/conflict",
            "service/throttled",
            "service/fails-before",
            "service/cut",
        ],
    ),
    (FailedGetsAreAbsence, &["service/unauthorised", "service/fails-before", "service/cut"]),
    (FailedDeletionsAreDone, &["service/unauthorised", "service/fails-before"]),
    (FailedCreatesPass, &["service/not-found"]),
    (PausesAreForgotten, &["service/throttled"]),
    (FailuresAreFinal, &["service/fails-before", "service/fails-after", "service/cut"]),
    (TokensAreIgnored, &["service/fails-after", "service/cut", "service/given-up"]),
    (ListingsAreHasty, &["service/slow"]),
    (LostCommandsSucceed, &["service/output-cut", "service/command-refused"]),
    (SlowOutputIsCut, &["service/output-slow"]),
    (NothingEnds, &["service/command-given-up"]),
];

struct Broken {
    inner: Arc<dyn Provider>,
    defect: Defect,
    sheet: Capabilities,
    /// Ids in the order of their creation.
    made: Mutex<Vec<SandboxId>>,
    ghosts: Mutex<BTreeMap<SandboxId, ObservedSandbox>>,
    count: AtomicUsize,
    turn: tokio::sync::Mutex<()>,
}

impl Broken {
    fn wrap(inner: Arc<dyn Provider>, defect: Defect) -> Arc<dyn Provider> {
        let mut sheet = inner.capabilities().clone();
        if defect == StopKeepsTheDisk {
            sheet.stop = StopMeaning::Destroy;
        }
        let (made, ghosts, count, turn) = Default::default();
        Arc::new(Self { inner, defect, sheet, made, ghosts, count, turn })
    }

    fn is(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    /// Another kind of error.
    fn mistake(&self, error: ProviderError) -> ProviderError {
        match error {
            ProviderError::Unauthorised { message } if self.is(RefusalsPass) => {
                ProviderError::Transient { message, source: None }
            }
            ProviderError::Transient { message, source } if self.is(FailuresAreFinal) => {
                ProviderError::Permanent { message, source }
            }
            ProviderError::Throttled { .. } if self.is(PausesAreForgotten) => {
                ProviderError::Throttled { retry_after: None }
            }
            error => error,
        }
    }

    fn spoil(&self, sandbox: &mut ObservedSandbox) {
        if self.is(LabelsAreForgotten) {
            sandbox.labels.remove(labels::GENERATION);
        }
        if let (true, Some(spec)) = (self.is(SpecReadsWrong), &mut sandbox.spec) {
            spec.hostname.push('x');
        }
        if self.is(EndpointsAreWrong) {
            sandbox.endpoints.values_mut().for_each(|endpoint| endpoint.port ^= 1);
        }
        if self.is(UpdateRestarts) {
            let n = i64::try_from(self.count.fetch_add(1, Ordering::Relaxed)).unwrap();
            sandbox.started_at.as_mut().unwrap().0 += n;
        }
    }
}

#[async_trait]
impl Provider for Broken {
    fn capabilities(&self) -> &Capabilities {
        &self.sheet
    }

    async fn list(&self, owner: &Owner) -> Result<ObservedProvider, ProviderError> {
        let all = Owner { project: None, owner: None };
        let list = self.inner.list(if self.is(ListingIsUnfiltered) { &all } else { owner });
        let patience = Duration::from_millis(if self.is(ListingsAreHasty) { 50 } else { 60_000 });
        let mut listing = match tokio::time::timeout(patience, list).await {
            Ok(Err(_)) if self.is(LostListingsAreEmpty) => ObservedProvider::default(),
            Ok(listing) => listing.map_err(|error| self.mistake(error))?,
            Err(_) => {
                return Err(ProviderError::Transient { message: "it is slow".to_owned(), source: None });
            }
        };
        listing.sandboxes.values_mut().for_each(|sandbox| self.spoil(sandbox));
        if let (true, Some(last)) = (self.is(ListingForgets), self.made.lock().unwrap().last()) {
            listing.sandboxes.remove(last);
        }
        if self.is(ListingKeepsTheDead) {
            let mut ghosts = self.ghosts.lock().unwrap();
            ghosts.extend(listing.sandboxes.clone());
            listing.sandboxes.extend(ghosts.clone());
        }
        Ok(listing)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<ObservedSandbox>, ProviderError> {
        let mut found = match self.inner.get(id).await {
            Err(_) if self.is(FailedGetsAreAbsence) => None,
            found => found.map_err(|error| self.mistake(error))?,
        };
        found.iter_mut().for_each(|sandbox| self.spoil(sandbox));
        Ok(found)
    }

    async fn create(&self, spec: &SandboxSpec, identity: &Identity) -> Result<SandboxId, ProviderError> {
        let (mut spec, mut identity) = (spec.clone(), identity.clone());
        if self.is(TokensAreIgnored) {
            let n = self.count.fetch_add(1, Ordering::Relaxed);
            identity.intent.0.push_str(&format!("-{n}"));
        }
        if self.is(SpecIsDropped) {
            spec.hostname = "another".to_owned();
            spec.network.mode = NetworkMode::Host;
        }
        // One after the other, so that every one but the first finds it.
        let turn = self.turn.lock().await;
        if let (true, Some(first)) = (self.is(OneSandboxForAll), self.made.lock().unwrap().first()) {
            return Ok(first.clone());
        }
        if !self.is(OneSandboxForAll) {
            drop(turn);
        }
        let id = match self.inner.create(&spec, &identity).await {
            Err(error) if self.is(FailedCreatesPass) => {
                return Err(ProviderError::Transient { message: error.to_string(), source: None });
            }
            made => made.map_err(|error| self.mistake(error))?,
        };
        self.made.lock().unwrap().push(id.clone());
        Ok(id)
    }

    async fn update(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        identity: &Identity,
    ) -> Result<(), ProviderError> {
        if self.is(UpdateDoesNothing) {
            return Ok(());
        }
        self.inner.update(id, spec, identity).await
    }

    async fn start(&self, id: &SandboxId) -> Result<(), ProviderError> {
        match self.inner.start(id).await {
            Err(ProviderError::NotFound { .. }) if self.is(UnknownIsFine) => return Ok(()),
            other => other?,
        }
        if self.is(StartingTwiceFails) {
            return Err(ProviderError::Permanent { message: "it runs already".to_owned(), source: None });
        }
        if self.is(StopLosesTheDisk) {
            let guest = self.inner.guest(id).await?;
            let command = Command::new(["sh", "-c", "rm -f /var/tmp/*"]);
            guest.exec(&command, ExecIo::default()).await.unwrap();
        }
        Ok(())
    }

    async fn pause(&self, id: &SandboxId) -> Result<(), ProviderError> {
        if self.is(PauseDoesNothing) { Ok(()) } else { self.inner.pause(id).await }
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), ProviderError> {
        if self.is(StopDoesNothing) { Ok(()) } else { self.inner.stop(id).await }
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), ProviderError> {
        match self.inner.delete(id).await {
            Err(_) if self.is(FailedDeletionsAreDone) => Ok(()),
            done => done.map_err(|error| self.mistake(error)),
        }
    }

    async fn guest(&self, id: &SandboxId) -> Result<Box<dyn Guest>, ProviderError> {
        let first = self.made.lock().unwrap().first().cloned();
        let id = if self.is(EverybodyShares) { first.unwrap_or_else(|| id.clone()) } else { id.clone() };
        let inner = Arc::from(self.inner.guest(&id).await?);
        Ok(Box::new(BrokenGuest { inner, defect: self.defect, under_way: AtomicUsize::new(0) }))
    }

    fn volumes(&self) -> Option<&dyn Volumes> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.inner.snapshots().map(|_| self as &dyn Snapshots)
    }

    fn service(&self) -> Option<&dyn Service> {
        self.inner.service().map(|_| self as &dyn Service)
    }
}

#[async_trait]
impl Snapshots for Broken {
    async fn create_snapshot(
        &self,
        of: &SandboxId,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        self.inner.snapshots().unwrap().create_snapshot(of, name, labels).await
    }

    async fn delete_snapshot(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        if self.is(SnapshotsStay) {
            return Ok(());
        }
        self.inner.snapshots().unwrap().delete_snapshot(project, name).await
    }
}

impl Service for Broken {
    fn calls(&self) -> &'static Calls {
        self.inner.service().unwrap().calls()
    }

    fn behind(&self, detour: Arc<dyn Detour>) -> Result<Arc<dyn Provider>, ProviderError> {
        Ok(Self::wrap(self.inner.service().unwrap().behind(detour)?, self.defect))
    }
}

#[async_trait]
impl Volumes for Broken {
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        self.inner.volumes().unwrap().create_volume(name, labels).await
    }

    async fn delete_volume(&self, project: &str, name: &str) -> Result<(), ProviderError> {
        if self.is(VolumesStay) {
            return Ok(());
        }
        self.inner.volumes().unwrap().delete_volume(project, name).await
    }
}

struct BrokenGuest {
    inner: Arc<dyn Guest>,
    defect: Defect,
    under_way: AtomicUsize,
}

/// The same stream for a shorter time.
fn input<'s>(input: &'s mut Input<'_>) -> Input<'s> {
    match input {
        Input::Null => Input::Null,
        Input::Inherit => Input::Inherit,
        Input::Reader(reader) => Input::Reader(&mut **reader),
    }
}

/// The same stream for a shorter time.
fn output<'s>(output: &'s mut Output<'_>) -> Output<'s> {
    match output {
        Output::Null => Output::Null,
        Output::Inherit => Output::Inherit,
        Output::Writer(writer) => Output::Writer(&mut **writer),
    }
}

impl BrokenGuest {
    /// Runs a command and gives its output when it has ended, changed.
    async fn at_the_end(
        &self,
        command: &Command,
        mut io: ExecIo<'_>,
        change: impl Fn(Vec<u8>) -> Vec<u8>,
    ) -> Result<ExitStatus, GuestError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let inner = ExecIo {
            stdin: input(&mut io.stdin),
            stdout: Output::Writer(&mut out),
            stderr: Output::Writer(&mut err),
        };
        let status = self.inner.exec(command, inner).await?;
        for (bytes, to) in [(out, io.stdout), (err, io.stderr)] {
            if let Output::Writer(writer) = to {
                writer.write_all(&change(bytes)).await.unwrap();
            }
        }
        Ok(status)
    }
}

#[async_trait]
impl Guest for BrokenGuest {
    async fn exec(&self, command: &Command, mut io: ExecIo<'_>) -> Result<ExitStatus, GuestError> {
        let mut command = command.clone();
        let inner = &self.inner;
        match self.defect {
            CodesAreLost => inner.exec(&command, io).await.map(|_| ExitStatus::Code(0)),
            StreamsAreSwapped => {
                let io = ExecIo { stdin: io.stdin, stdout: io.stderr, stderr: io.stdout };
                inner.exec(&command, io).await
            }
            ArgumentsAreJoined => {
                command.argv = vec!["sh".to_owned(), "-c".to_owned(), command.argv.join(" ")];
                inner.exec(&command, io).await
            }
            EnvironmentIsDropped => {
                command.env.clear();
                inner.exec(&command, io).await
            }
            DirectoryIsIgnored => {
                command.cwd = None;
                inner.exec(&command, io).await
            }
            NoProgramIsFine => match inner.exec(&command, io).await {
                Err(GuestError::NotExecutable { .. }) => Ok(ExitStatus::Code(0)),
                other => other,
            },
            InputNeverEnds => {
                let (_open, mut never) = tokio::io::duplex(1);
                let stdin = Input::Reader(&mut never);
                let io = ExecIo { stdin, stdout: output(&mut io.stdout), stderr: output(&mut io.stderr) };
                inner.exec(&command, io).await
            }
            LimitsAreIgnored => {
                command.timeout = None;
                inner.exec(&command, io).await
            }
            NothingEnds if command.argv.iter().any(|part| part.contains("sleep 1000")) => {
                let inner = Arc::clone(inner);
                let run = async move { inner.exec(&command, ExecIo::default()).await };
                tokio::spawn(run).await.unwrap()
            }
            OneAtATime => {
                let others = self.under_way.fetch_add(1, Ordering::SeqCst);
                let ended = inner.exec(&command, io).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.under_way.fetch_sub(1, Ordering::SeqCst);
                if others > 0 { Ok(ExitStatus::Code(99)) } else { ended }
            }
            OutputIsText => {
                let lossy = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned().into_bytes();
                self.at_the_end(&command, io, lossy).await
            }
            OutputIsCut => {
                let cut = |mut bytes: Vec<u8>| {
                    bytes.truncate(1 << 20);
                    bytes
                };
                self.at_the_end(&command, io, cut).await
            }
            SlowOutputIsCut => {
                let begun = std::time::Instant::now();
                let cut = |mut bytes: Vec<u8>| {
                    bytes.truncate(if begun.elapsed() > Duration::from_millis(500) {
                        1000
                    } else {
                        usize::MAX
                    });
                    bytes
                };
                self.at_the_end(&command, io, cut).await
            }
            OutputComesLate => self.at_the_end(&command, io, |bytes| bytes).await,
            UnreadInputFails => {
                let fed = matches!(io.stdin, Input::Reader(_));
                let status = inner.exec(&command, io).await?;
                if fed && command.argv.iter().any(|part| part == "exit 5") {
                    let source = std::io::ErrorKind::BrokenPipe.into();
                    return Err(GuestError::Io { what: "cannot pass the input on".to_owned(), source });
                }
                Ok(status)
            }
            ServicesDie => {
                let kill = Command::new(["sh", "-c", "rm -rf /run/pocketenv/services"]);
                let ended = inner.exec(&command, io).await;
                inner.exec(&kill, ExecIo::default()).await?;
                ended
            }
            ExecIsSlow if command.argv.iter().any(|part| part.contains("sleep 100 ")) => {
                tokio::time::sleep(Duration::from_secs(40)).await;
                inner.exec(&command, io).await
            }
            LostCommandsSucceed => match inner.exec(&command, io).await {
                Err(GuestError::Unreachable { .. } | GuestError::Protocol { .. }) => Ok(ExitStatus::Code(0)),
                other => other,
            },
            _ => inner.exec(&command, io).await,
        }
    }

    async fn pty(&self, command: &Command, request: PtyRequest) -> Result<Box<dyn Pty>, GuestError> {
        let size =
            if self.defect == TerminalsAreOneSize { PtyRequest { rows: 24, cols: 80 } } else { request };
        let inner = self.inner.pty(command, size).await?;
        Ok(Box::new(BrokenPty { inner, defect: self.defect }))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn GuestStream>, GuestError> {
        match self.defect {
            PortsAreClosed => {
                let source = std::io::ErrorKind::ConnectionRefused.into();
                Err(GuestError::Io { what: format!("port {port}"), source })
            }
            PortsAreAllOpen => {
                let (ours, theirs) = tokio::io::duplex(4096);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(theirs);
                    tokio::io::copy(&mut read, &mut write).await
                });
                Ok(Box::new(ours))
            }
            _ => self.inner.dial(port).await,
        }
    }
}

struct BrokenPty {
    inner: Box<dyn Pty>,
    defect: Defect,
}

#[async_trait]
impl Pty for BrokenPty {
    fn reader(&mut self) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
        self.inner.reader()
    }

    fn writer(&mut self) -> Option<Box<dyn AsyncWrite + Send + Unpin>> {
        let writer = self.inner.writer();
        if self.defect == KeysAreLost { Some(Box::new(tokio::io::sink())) } else { writer }
    }

    async fn resize(&self, request: PtyRequest) -> Result<(), GuestError> {
        if self.defect == TerminalsAreOneSize { Ok(()) } else { self.inner.resize(request).await }
    }

    async fn wait(&mut self) -> Result<ExitStatus, GuestError> {
        self.inner.wait().await
    }
}

/// Tries each defect; those whose case does not fail are told.
async fn are_found(provider: Arc<dyn Provider>, defects: &[(Defect, &'static str)]) {
    let tried = defects.iter().map(|(defect, case)| {
        let provider = Broken::wrap(Arc::clone(&provider), *defect);
        async move {
            let report = kit(provider, Some(case)).await;
            let result = report.cases.iter().find(|report| report.name == *case).unwrap();
            (result.result != CaseResult::Failed).then(|| format!("{defect:?}: {result:?}"))
        }
    });
    // Some only fail by running out of time: they wait together.
    let missed: Vec<String> =
        futures::stream::iter(tried).buffer_unordered(12).filter_map(async |missed| missed).collect().await;
    assert!(missed.is_empty(), "{missed:#?}");
}

fn pairs(table: &[(Defect, &'static [&'static str])]) -> Vec<(Defect, &'static str)> {
    table.iter().flat_map(|(defect, cases)| cases.iter().map(|case| (*defect, *case))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cloud_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let sim = crate::sim::world::Sim::start(dir.path(), 1, "calm", &[]);
    are_found(open("sim", dir.path(), &[("url", &sim.url)]).await, &pairs(OF_A_CLOUD)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_inside_is_found_out() {
    let dir = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    are_found(open("local", dir.path(), &[]).await, &pairs(OF_AN_INSIDE)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_wrongly_of_trouble_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let emulator = crate::emulate::sdk::Emulator::start("e2b", dir.path(), &[]);
    are_found(super::e2b::open(dir.path(), &emulator.url).await, &pairs(OF_A_SERVICE)).await;
    emulator.stop();
}

#[cfg(target_os = "linux")]
#[test]
fn every_case_can_fail() {
    let broken: BTreeSet<&str> =
        [OF_A_CLOUD, OF_AN_INSIDE, OF_A_SERVICE].into_iter().flat_map(pairs).map(|p| p.1).collect();
    let all: BTreeSet<&str> = cases().map(|case| case.name).collect();
    assert_eq!(broken, all);
}
