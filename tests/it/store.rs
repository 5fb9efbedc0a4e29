//! The store against real files, processes and a full disk.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use pocketenv::model::{
    Address, Clock, Condition, ConditionStatus, IdSource, IntentId, IntentOperation, PendingIntent, PortRef,
    RecordedSandbox, RecordedVolume, RunState, SandboxId, SandboxSpec, SpecHash, Timestamp,
};
use pocketenv::secret::{Redactor, SecretValue, digest};
use pocketenv::store::{
    Change, Event, EventKind, EventQuery, Holder, Outcome, Run, RunEnd, Store, StoreError,
};

const TTL: Duration = Duration::from_secs(60);

struct Ticker;

impl Clock for Ticker {
    fn now(&self) -> Timestamp {
        Timestamp(i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap())
    }
}

struct Uuids;

impl IdSource for Uuids {
    fn fresh(&self) -> IntentId {
        IntentId(uuid::Uuid::now_v7().to_string())
    }
}

async fn try_open(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, Arc::new(Ticker), Arc::new(Uuids)).await
}

async fn open(path: &Path) -> Store {
    try_open(path).await.unwrap()
}

fn sandbox(id: &str) -> RecordedSandbox {
    RecordedSandbox {
        provider: "local".to_owned(),
        id: SandboxId(id.to_owned()),
        spec: SandboxSpec { hostname: id.to_owned(), ..SandboxSpec::default() },
        guest: None,
        generation: 1,
        depends_on: BTreeSet::new(),
        state: RunState::Running,
        created_at: Timestamp(1_000),
    }
}

fn put(name: &str, id: &str) -> Change {
    Change::PutSandbox { name: name.to_owned(), sandbox: Box::new(sandbox(id)) }
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn create(id: &str, at: &str) -> PendingIntent {
    PendingIntent {
        id: IntentId(id.to_owned()),
        address: address(at),
        provider: "local".to_owned(),
        operation: IntentOperation::Create,
        spec_hash: Some(SpecHash("abc".to_owned())),
        begun_at: Timestamp(5),
    }
}

fn event(at: i64, to: &str, reason: &str) -> Event {
    Event {
        at: Timestamp(at),
        address: Some(address(to)),
        kind: EventKind::Normal,
        operation: "create".to_owned(),
        reason: reason.to_owned(),
        message: "a sentence".to_owned(),
        run: Some(1),
    }
}

// ---- the file ----

#[tokio::test]
async fn file_directory_and_log_are_private_and_the_owner_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/store.db");
    let store = open(&path).await;
    store.record("shop", vec![put("api", "1")]).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    assert_eq!(mode(&path.with_extension("db-shm")), 0o600);
    let (owner, key) = (store.owner().clone(), *store.digest_key());
    assert!(!format!("{store:?}").contains(&hex::encode(key)));
    drop(store);
    assert!(!path.with_extension("db-wal").exists(), "the last handle closes the file cleanly");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = open(&path).await;
    assert_eq!(mode(&path), 0o600);
    assert_eq!((store.owner(), store.digest_key()), (&owner, &key));
}

#[tokio::test]
async fn many_that_open_a_new_file_at_once_share_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let stores = join_all((0..8).map(|_| open(&path))).await;
    assert!(stores.iter().all(|store| store.owner() == stores[0].owner()));
    join_all(stores.iter().enumerate().map(|(n, store)| async move {
        store.record("shop", vec![put(&format!("s{n}"), "1")]).await.unwrap();
    }))
    .await;
    assert_eq!(stores[0].recorded("shop").await.unwrap().sandboxes.len(), 8);
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    open(&path).await.record("shop", vec![put("api", "1")]).await.unwrap();
    let whole = fs::read(&path).unwrap();
    let half = whole[..whole.len() / 2].to_vec();
    let garbage = b"this is a letter, not a database\n".repeat(300);
    for bytes in [&b""[..], &whole[..50], &whole[..4096], &half, &garbage] {
        fs::write(&path, bytes).unwrap();
        let error = try_open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{} bytes: {error:?}", bytes.len());
        assert!(error.to_string().contains("move it aside"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    fs::remove_file(&path).unwrap();
    fs::write(path.with_extension("db-wal"), "an old log").unwrap();
    assert!(matches!(try_open(&path).await.unwrap_err(), StoreError::Damaged { .. }));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_damaged_page_is_an_error_and_never_another_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path).await;
    fill(&store).await;
    store.record("shop", (0..100).map(|n| put(&format!("s{n}"), "1")).collect()).await.unwrap();
    let good = store.recorded("shop").await.unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let mut errors = 0;
    for page in 0..whole.len() / 4096 {
        let mut bytes = whole.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0xaa);
        fs::write(&path, &bytes).unwrap();
        let found = match try_open(&path).await {
            Ok(store) => store.recorded("shop").await,
            Err(error) => Err(error),
        };
        match found {
            Ok(found) => assert_eq!(found, good, "page {page}"),
            Err(error) => {
                assert!(matches!(error, StoreError::Damaged { .. }), "page {page}: {error:?}");
                errors += 1;
            }
        }
    }
    assert!(errors >= 5, "{errors}");
}

#[tokio::test]
async fn a_newer_version_and_a_foreign_database_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    drop(open(&path).await);
    let edit = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    edit("PRAGMA user_version = 99");
    let error = try_open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error:?}");
    assert!(error.to_string().contains("store.db has version 99"), "{error}");
    edit("PRAGMA user_version = 1; PRAGMA application_id = 7");
    assert!(matches!(try_open(&path).await.unwrap_err(), StoreError::NotOurs { found: 7, .. }));
}

/// What stands in every checked-in store of an older version.
async fn fill(store: &Store) {
    store.begin("shop", create("i1", "sandbox/api")).await.unwrap();
    store.begin("shop", create("i2", "sandbox/db")).await.unwrap();
    let volume = RecordedVolume { provider: "local".to_owned(), created_at: Timestamp(7) };
    let changes = vec![put("api", "1"), Change::PutVolume { name: "data".to_owned(), volume }];
    store.finish("shop", &IntentId("i1".to_owned()), Outcome::Done, changes).await.unwrap();
    let port = PortRef { sandbox: "api".to_owned(), port: 3000 };
    store.allocate_port("shop", &port, vec![4000]).await.unwrap();
    store.append("shop", vec![event(1, "sandbox/api", "Created")]).await.unwrap();
}

/// Each `tests/it/store/v<n>.db` was written by the version n. The file of a new version is made by running this with `UPDATE=1`.
#[tokio::test]
async fn a_store_of_every_version_so_far_opens_and_keeps_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    fill(&open(&path).await).await;
    let newest: u32 = rusqlite::Connection::open(&path)
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    let versions = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/store");
    let file = |version| versions.join(format!("v{version}.db"));
    if std::env::var_os("UPDATE").is_some() && !file(newest).exists() {
        fs::copy(&path, file(newest)).unwrap();
    }
    for version in 1..=newest {
        let path = dir.path().join(format!("v{version}.db"));
        fs::copy(file(version), &path).unwrap();
        let store = open(&path).await;
        assert_eq!(store.owner().0.len(), 36);
        let recorded = store.recorded("shop").await.unwrap();
        assert_eq!(recorded.sandboxes, BTreeMap::from([("api".to_owned(), sandbox("1"))]));
        assert_eq!(recorded.intents, [create("i2", "sandbox/db")]);
        assert_eq!(recorded.volumes.len(), 1);
        assert_eq!(store.ports("shop").await.unwrap().into_values().collect::<Vec<_>>(), [4000]);
        assert_eq!(store.events("shop", EventQuery::default(), 9).await.unwrap().len(), 1);
        store.record("shop", vec![put("db", "2")]).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Ok(disk) = SmallDisk::mount(dir.path()) else {
        println!("SKIPPED: mounting a small tmpfs needs root");
        return;
    };
    let path = dir.path().join("store.db");
    let store = open(&path).await;
    store.begin("shop", create("i1", "sandbox/api")).await.unwrap();
    let mut kept = 0;
    let error = loop {
        let batch =
            join_all((0..20).map(|_| store.append("shop", vec![event(1, "sandbox/api", "Again")]))).await;
        kept += batch.iter().filter(|result| result.is_ok()).count();
        if let Some(error) = batch.into_iter().find_map(Result::err) {
            break error;
        }
        assert!(kept < 100_000, "the disk never fills");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
    let count =
        async |store: &Store| store.events("shop", EventQuery::default(), 100_000).await.unwrap().len();
    assert!(kept > 0);
    assert_eq!(count(&store).await, kept, "what was acknowledged is there, and nothing else");
    drop(store);
    let store = open(&path).await;
    assert_eq!(count(&store).await, kept);
    disk.grow();
    store.finish("shop", &IntentId("i1".to_owned()), Outcome::Done, vec![put("api", "1")]).await.unwrap();
    assert_eq!(store.recorded("shop").await.unwrap().sandboxes.len(), 1);
}

/// A filesystem of one megabyte.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> rustix::io::Result<Self> {
        rustix::mount::mount("tmpfs", at, "tmpfs", rustix::mount::MountFlags::empty(), c"size=1m")
            .map(|()| Self(at))
    }

    fn grow(&self) {
        rustix::mount::mount_remount(self.0, rustix::mount::MountFlags::empty(), c"size=8m").unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn no_secret_stands_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path).await;
    let value = SecretValue::new("correct-horse-battery");
    let redactor = Redactor::new([("PW", &value)]);
    let message = redactor.redact(&format!("login failed with {}", value.expose()));
    let digest = digest(store.digest_key(), "PW", &value);
    let run = Run {
        actor: "ann@laptop".to_owned(),
        verb: "apply".to_owned(),
        manifest_digest: Some(digest.clone()),
        git_revision: None,
    };
    store.begin_run("shop", run).await.unwrap();
    store.append("shop", vec![Event { message, ..event(1, "sandbox/api", "Failed") }]).await.unwrap();
    fill(&store).await;
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(fs::read(path.with_extension("db-wal")).unwrap());
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("[secret PW]") && holds(&digest), "the search works");
    assert!(!holds(value.expose()));
}

// ---- inventory, ports, journal ----

#[tokio::test]
async fn the_inventory_reads_back_and_each_change_moves_the_serial() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path).await;
    assert_eq!(store.recorded("shop").await.unwrap(), Default::default());
    let volume = RecordedVolume { provider: "local".to_owned(), created_at: Timestamp(7) };
    let data = Change::PutVolume { name: "data".to_owned(), volume: volume.clone() };
    let first = store.record("shop", vec![put("api", "1"), data]).await.unwrap();
    let second = store.record("shop", vec![put("api", "2"), put("db", "3")]).await.unwrap();
    assert!(second > first);
    store.record("other", vec![put("api", "4")]).await.unwrap();
    drop(store);
    let store = open(&path).await;
    let recorded = store.recorded("shop").await.unwrap();
    assert_eq!(recorded.serial, second);
    let expected = BTreeMap::from([("api".to_owned(), sandbox("2")), ("db".to_owned(), sandbox("3"))]);
    assert_eq!(recorded.sandboxes, expected);
    assert_eq!(recorded.volumes, BTreeMap::from([("data".to_owned(), volume)]));

    store.set_manifest("shop", "d1", vec!["/work/pocketenv.yaml".into()]).await.unwrap();
    let projects = store.projects().await.unwrap();
    assert_eq!(projects.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["other", "shop"]);
    assert_eq!((projects[1].serial, projects[1].manifest_digest.as_deref()), (second, Some("d1")));
}

#[tokio::test]
async fn a_host_port_is_kept_until_forgotten_and_given_to_one_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db")).await;
    let port = |sandbox: &str, port| PortRef { sandbox: sandbox.to_owned(), port };
    let (api, db) = (port("api", 3000), port("db", 5432));
    assert_eq!(store.allocate_port("shop", &api, vec![4000, 4001]).await.unwrap(), 4000);
    assert_eq!(store.allocate_port("shop", &api, vec![5000]).await.unwrap(), 4000, "kept");
    assert_eq!(store.allocate_port("other", &api, vec![4000, 4001]).await.unwrap(), 4001, "over projects");
    let error = store.allocate_port("shop", &db, vec![4000, 4001]).await.unwrap_err();
    assert!(matches!(error, StoreError::NoFreePort { .. }));
    store.record("shop", vec![put("api", "1"), Change::Remove(address("sandbox/api"))]).await.unwrap();
    assert_eq!(
        store.ports("shop").await.unwrap(),
        BTreeMap::from([(api.clone(), 4000)]),
        "kept over a recreate"
    );
    store.record("shop", vec![Change::Forget(address("sandbox/api"))]).await.unwrap();
    assert_eq!(store.ports("shop").await.unwrap(), BTreeMap::new());
    assert_eq!(store.allocate_port("shop", &db, vec![4000]).await.unwrap(), 4000);
    store.release_port("shop", &db).await.unwrap();
    assert_eq!(store.ports("shop").await.unwrap(), BTreeMap::new());
}

#[tokio::test]
async fn an_intent_is_pending_until_it_ends_together_with_its_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db")).await;
    let (one, two) = (create("i1", "sandbox/api"), create("i2", "volume/data"));
    store.begin("shop", one.clone()).await.unwrap();
    store.begin("shop", two.clone()).await.unwrap();
    let reused = store.begin("shop", one.clone()).await.unwrap_err();
    assert!(matches!(reused, StoreError::IntentReused { .. }), "{reused:?}");
    assert_eq!(store.pending("shop").await.unwrap(), [one.clone(), two.clone()]);

    let serial = store.finish("shop", &one.id, Outcome::Done, vec![put("api", "1")]).await.unwrap();
    let recorded = store.recorded("shop").await.unwrap();
    assert_eq!((recorded.serial, recorded.intents), (serial, vec![two.clone()]));
    assert!(recorded.sandboxes.contains_key("api"));

    let again = store.finish("shop", &one.id, Outcome::Done, vec![put("db", "2")]).await.unwrap_err();
    assert!(matches!(again, StoreError::NoSuchIntent { .. }));
    assert!(!store.recorded("shop").await.unwrap().sandboxes.contains_key("db"), "nothing was changed");

    let failed = Outcome::Failed { kind: "Invalid".to_owned(), message: "no such image".to_owned() };
    assert_eq!(store.finish("shop", &two.id, failed.clone(), vec![]).await.unwrap(), serial);
    let journal = store.journal("shop", 10).await.unwrap();
    assert_eq!(journal[1].intent, two);
    assert_eq!(journal[1].ended.as_ref().unwrap().1, failed);
}

#[tokio::test]
async fn a_thousand_intents_begun_together_are_all_durable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path).await;
    let started = Instant::now();
    let results = join_all((0..1000).map(|n| {
        let store = store.clone();
        async move {
            let id = format!("i{n}");
            store.begin("shop", create(&id, &format!("sandbox/s{n}"))).await?;
            store.finish("shop", &IntentId(id), Outcome::Done, vec![put(&format!("s{n}"), "1")]).await
        }
    }))
    .await;
    println!("1,000 × (begin, finish) took {:?}", started.elapsed());
    for result in results {
        result.unwrap();
    }
    // Another connection, while the first is still open: nothing waits in memory.
    let recorded = open(&path).await.recorded("shop").await.unwrap();
    assert_eq!((recorded.sandboxes.len(), recorded.intents.len()), (1000, 0));
}

// ---- events, runs, conditions, forgetting ----

#[tokio::test]
async fn events_are_found_by_resource_time_and_number_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db")).await;
    let events = vec![
        event(1, "sandbox/api", "Created"),
        event(2, "sandbox/api/service/web", "Started"),
        event(3, "sandbox/api2", "Created"),
        event(4, "sandbox/api", "Ready"),
    ];
    assert_eq!(store.append("shop", events.clone()).await.unwrap(), 4);
    store.append("other", vec![event(1, "sandbox/api", "Created")]).await.unwrap();
    let seqs = async |query: EventQuery, limit| {
        store.events("shop", query, limit).await.unwrap().iter().map(|e| e.seq).collect::<Vec<_>>()
    };
    assert_eq!(store.events("shop", EventQuery::default(), 9).await.unwrap()[1].event, events[1]);
    assert_eq!(seqs(EventQuery::default(), 2).await, [3, 4], "the newest");
    assert_eq!(seqs(EventQuery { after: Some(1), ..Default::default() }, 2).await, [2, 3], "to follow");
    assert_eq!(
        seqs(EventQuery { address: Some(address("sandbox/api")), ..Default::default() }, 9).await,
        [1, 2, 4]
    );
    assert_eq!(seqs(EventQuery { since: Some(Timestamp(3)), ..Default::default() }, 9).await, [3, 4]);

    let many = (0..10_050).map(|n| event(n, "sandbox/api", "Again")).collect();
    assert_eq!(store.append("shop", many).await.unwrap(), 10_054);
    assert_eq!(seqs(EventQuery::default(), 100_000).await.len(), 10_000);
    assert_eq!(store.events("other", EventQuery::default(), 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn runs_are_numbered_and_an_open_one_shows() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db")).await;
    let run = Run {
        actor: "ann@laptop".to_owned(),
        verb: "apply".to_owned(),
        manifest_digest: Some("d".to_owned()),
        git_revision: None,
    };
    assert_eq!(store.begin_run("shop", run.clone()).await.unwrap(), 1);
    let end = RunEnd {
        changes: BTreeMap::from([("create".to_owned(), 3)]),
        outcome: "partly_done".to_owned(),
        exit_code: 4,
    };
    store.end_run("shop", 1, end.clone()).await.unwrap();
    assert!(matches!(store.end_run("shop", 1, end.clone()).await, Err(StoreError::NoSuchRun { .. })));
    assert_eq!(store.begin_run("shop", run.clone()).await.unwrap(), 2);
    let revisions = store.revisions("shop", 10).await.unwrap();
    assert_eq!(revisions.iter().map(|r| r.revision).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((&revisions[1].run, &revisions[0].ended), (&run, &None));
    assert_eq!(revisions[1].ended.as_ref().unwrap().1, end);
}

#[tokio::test]
async fn a_condition_keeps_the_time_of_its_last_change_and_a_forgotten_project_only_its_history() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db")).await;
    let ready = |status| {
        let condition = Condition {
            kind: "Ready".to_owned(),
            status,
            reason: "AsDesired".to_owned(),
            message: String::new(),
            last_transition: None,
            observed_generation: 1,
        };
        vec![(address("sandbox/api/service/web"), condition)]
    };
    let stamp = async |status, now| {
        store.stamp("shop", ready(status), Timestamp(now)).await.unwrap()[0].1.last_transition.unwrap().0
    };
    assert_eq!(stamp(ConditionStatus::True, 1).await, 1);
    assert!(store.projects().await.unwrap().is_empty(), "looking leaves no trace");
    store.record("shop", vec![put("api", "1")]).await.unwrap();
    assert_eq!(stamp(ConditionStatus::False, 10).await, 10);
    assert_eq!(stamp(ConditionStatus::False, 20).await, 10);
    assert_eq!(stamp(ConditionStatus::True, 30).await, 30);
    store.append("shop", vec![event(1, "sandbox/api", "Deleted")]).await.unwrap();
    assert!(!store.forget_project("shop").await.unwrap(), "a sandbox is left");
    let before = store.record("shop", vec![Change::Forget(address("sandbox/api"))]).await.unwrap();
    assert_eq!(stamp(ConditionStatus::True, 40).await, 40, "forgotten with its sandbox");
    assert!(store.forget_project("shop").await.unwrap());
    assert!(store.projects().await.unwrap().is_empty());
    assert_eq!(store.events("shop", EventQuery::default(), 9).await.unwrap().len(), 1);
    let after = store.record("shop", vec![put("api", "1")]).await.unwrap();
    assert!(after > before, "a serial is never used twice");
}

// ---- several processes ----

/// What a helper process is told to do; [`helper_process`] does it.
const ROLE: &str = "POCKETENV_TEST_STORE_ROLE";

fn helper(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::helper_process", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .env("POCKETENV_TEST_STORE_PATH", path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads the helper's output until a line ends with `word`.
fn wait_for(child: &mut Child, word: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with(word)), "the helper ended without `{word}`");
}

#[tokio::test]
#[ignore = "not a test: other tests run it as a process of their own"]
async fn helper_process() {
    let role = std::env::var(ROLE).unwrap();
    let path = std::path::PathBuf::from(std::env::var_os("POCKETENV_TEST_STORE_PATH").unwrap());
    let store = open(&path).await;
    match role.as_str() {
        "begin" => {
            store.begin("shop", create("i1", "sandbox/api")).await.unwrap();
            println!("begun");
            std::future::pending().await
        }
        "storm" => {
            let begin = |n: u64| {
                let store = &store;
                async move {
                    let id = format!("i{n}");
                    store.begin("shop", create(&id, "sandbox/api")).await.unwrap();
                    println!("\n{id} is begun");
                }
            };
            futures::stream::iter(0..).map(begin).buffer_unordered(32).for_each(|()| async {}).await;
        }
        "hold" => {
            let _guard = store.acquire("shop", Holder::current("helper"), TTL, Duration::ZERO).await.unwrap();
            println!("held");
            std::future::pending().await
        }
        "count" => {
            for _ in 0..20 {
                let guard = store.acquire("shop", Holder::current("helper"), TTL, TTL).await.unwrap();
                let file = path.with_extension("count");
                let count: u32 = fs::read_to_string(&file).unwrap().parse().unwrap();
                tokio::task::yield_now().await;
                fs::write(&file, (count + 1).to_string()).unwrap();
                guard.release().await.unwrap();
            }
        }
        other => panic!("no role {other}"),
    }
}

#[tokio::test]
async fn an_intent_survives_kill_9_between_begin_and_finish() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut child = helper("begin", &path);
    wait_for(&mut child, "begun");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(open(&path).await.pending("shop").await.unwrap(), [create("i1", "sandbox/api")]);
}

#[tokio::test]
async fn no_acknowledged_intent_is_lost_by_kill_9_in_the_middle_of_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut child = helper("storm", &path);
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(id) = line.unwrap().strip_suffix(" is begun") {
            acknowledged.push(id.to_owned());
        }
        if acknowledged.len() == 500 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= 500);
    let pending = open(&path).await.pending("shop").await.unwrap();
    let pending: BTreeSet<_> = pending.into_iter().map(|intent| intent.id.0).collect();
    assert!(acknowledged.iter().all(|id| pending.contains(id)));
}

#[tokio::test]
async fn two_processes_never_hold_one_lease_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    fs::write(path.with_extension("count"), "0").unwrap();
    let mut children = [helper("count", &path), helper("count", &path)];
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(fs::read_to_string(path.with_extension("count")).unwrap(), "40");
    assert!(open(&path).await.leases().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_is_stolen_from_a_dead_process_and_not_from_a_live_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut child = helper("hold", &path);
    wait_for(&mut child, "held");
    let store = open(&path).await;
    let me = || Holder::current("test");
    // Not while it lives, and also not when it has let its lease expire.
    let expire = || {
        rusqlite::Connection::open(&path).unwrap().execute("UPDATE leases SET expires_at = 1", []).unwrap();
    };
    for round in 0..2 {
        let Err(error) = store.acquire("shop", me(), TTL, Duration::from_millis(50)).await else {
            panic!("stolen from a live process")
        };
        assert!(error.to_string().contains(&format!("helper (process {}", child.id())), "{error}");
        assert!(matches!(store.unlock("shop", false).await, Err(StoreError::Locked { .. })));
        if round == 0 {
            expire();
        }
    }
    assert!(!store.leases().await.unwrap()[0].stale);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(store.leases().await.unwrap()[0].stale);
    let guard = store.acquire("shop", me(), TTL, Duration::ZERO).await.unwrap();
    assert_eq!(store.leases().await.unwrap()[0].holder.pid, std::process::id());
    drop(guard);
    assert!(store.leases().await.unwrap().is_empty(), "given back on drop");
}

#[tokio::test]
async fn a_holder_that_cannot_be_seen_keeps_its_lease_until_it_expires() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path).await;
    let me = || Holder::current("test");
    let elsewhere = Holder { pid_namespace: Some("pid:[1]".to_owned()), ..me() };
    let guard = store.acquire("shop", elsewhere, TTL, Duration::ZERO).await.unwrap();
    let locked = store.acquire("shop", me(), TTL, Duration::ZERO).await.err();
    assert!(matches!(locked, Some(StoreError::Locked { .. })), "{locked:?}");
    rusqlite::Connection::open(&path).unwrap().execute("UPDATE leases SET expires_at = 1", []).unwrap();
    let taken = store.acquire("shop", me(), TTL, Duration::ZERO).await.unwrap();
    drop(guard);
    taken.release().await.unwrap();
    assert!(store.leases().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_taken_by_force_is_noticed_and_one_that_waits_gets_it_when_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db")).await;
    let me = || Holder::current("test");
    let short = Duration::from_millis(90);
    let guard = store.acquire("shop", me(), short, Duration::ZERO).await.unwrap();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.acquire("shop", me(), TTL, TTL).await }
    });
    // It is renewed: its expiry moves past the one it began with.
    let first = store.leases().await.unwrap()[0].expires_at;
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.leases().await.unwrap()[0].expires_at <= first {
        assert!(Instant::now() < deadline, "never renewed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!waiting.is_finished());
    assert_eq!(store.unlock("shop", true).await.unwrap().unwrap().holder.pid, std::process::id());
    tokio::time::timeout(Duration::from_secs(10), guard.lost().cancelled()).await.expect("noticed");
    let second = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap().unwrap();
    drop(guard);
    assert_eq!(
        store.leases().await.unwrap().len(),
        1,
        "the lost guard does not give back what is not its own"
    );
    second.release().await.unwrap();
}

#[tokio::test]
async fn giving_up_on_a_lease_leaves_none_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db")).await;
    // Polled once, so that its request is queued, and then dropped.
    let mut acquire = Box::pin(store.acquire("shop", Holder::current("test"), TTL, TTL));
    assert!(futures::poll!(acquire.as_mut()).is_pending());
    drop(acquire);
    assert!(store.leases().await.unwrap().is_empty());
}
