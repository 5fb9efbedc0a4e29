//! The one thread that owns the connection. It drains its queue into one transaction, commits once and then answers all
//! (group commit): a thousand intents begun together cost a few syncs of the disk, and none is answered before it is durable.
//!
//! Without a thread each job runs where it is submitted: in memory, so that what is simulated on it repeats exactly, and for who does one thing
//! at a time, whom a thread would only cost its start.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::Fault;
use super::file::{self, Meta};
use super::{StoreError, Timestamp};
use crate::model::OwnerId;

/// Jobs in one transaction at most, so that other processes get their turn.
const MAX_BATCH: usize = 1024;

/// Whether a job changes anything. A batch of reads takes no lock that could keep others waiting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// It only reads.
    Read,
    /// It may write what a power cut may take back: nothing is lost by that which is not found out again. Others see it at once, and the
    /// next [`Access::Write`] makes it durable along with itself.
    Note,
    /// It may write, and is answered when that is durable.
    Write,
}

/// Where jobs go.
pub(super) enum Writer {
    /// To the thread.
    Threaded(Threaded),
    /// To the connection, at once.
    Inline(Mutex<Connection>),
}

/// The queue and its thread. Dropping it finishes what is queued, closes the file and waits for that.
pub(super) struct Threaded {
    /// `None` only while dropping.
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// One request: run on the connection, or told why it cannot; what it returns is sent after the commit.
struct Job {
    access: Access,
    run: Box<Work>,
}

type Work = dyn FnOnce(Result<&Connection, StoreError>) -> Done + Send;

/// A job that ran, with its answer held back.
struct Done {
    /// The database's answer if it failed by that; its changes are undone.
    failed: Option<Option<Arc<rusqlite::Error>>>,
    /// Sends the answer, or this error instead.
    answer: Box<dyn FnOnce(Option<StoreError>) + Send>,
}

impl Writer {
    /// Opens the file on a new thread.
    pub(super) async fn open(
        path: PathBuf,
        owner: OwnerId,
        now: Timestamp,
    ) -> Result<(Self, Meta), StoreError> {
        let (queue, jobs) = channel();
        let (opened, answer) = oneshot::channel();
        let thread_path = path.clone();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || match file::open(&thread_path, &owner, now) {
                Ok((connection, meta)) => {
                    if opened.send(Ok(meta)).is_ok() {
                        serve(&connection, &jobs, &thread_path);
                    }
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            })
            .map_err(|source| StoreError::Io { doing: "start a thread for", path, source })?;
        let meta = answer.await.map_err(|_| StoreError::Closed)??;
        Ok((Self::Threaded(Threaded { queue: Some(queue), thread: Some(thread) }), meta))
    }

    /// Opens the file for whoever calls, without a thread.
    pub(super) fn here(path: &Path, owner: &OwnerId, now: Timestamp) -> Result<(Self, Meta), StoreError> {
        let (connection, meta) = file::open(path, owner, now)?;
        Ok((Self::Inline(Mutex::new(connection)), meta))
    }

    /// A store in memory.
    pub(super) fn in_memory(owner: &OwnerId, now: Timestamp) -> Result<(Self, Meta), StoreError> {
        let (connection, meta) = file::open_in_memory(owner, now)?;
        Ok((Self::Inline(Mutex::new(connection)), meta))
    }

    /// Lets others run where the jobs of a thread would: before a job and after it.
    pub(super) async fn turn(&self) {
        if let Self::Inline(_) = self {
            tokio::task::yield_now().await;
        }
    }

    /// Queues a job at once and returns where its answer arrives, after what it did is durable.
    ///
    /// Giving up on the answer does not take back the job. A job must not hold a handle of the store.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        access: Access,
        path: Arc<PathBuf>,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, StoreError>> {
        let (sender, receiver) = oneshot::channel();
        let place = Arc::clone(&path);
        let job = Job { access, run: Box::new(move |connection| run(connection, &path, work, sender)) };
        match self {
            Self::Threaded(Threaded { queue: Some(queue), .. }) => {
                // If the thread is gone the job is dropped, and its sender with it: the receiver sees that.
                let _ = queue.send(job);
            }
            Self::Threaded(_) => {}
            Self::Inline(connection) => {
                // A job that panicked has left a transaction behind at worst, and the next BEGIN says so.
                let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
                execute(&connection, vec![job], &place);
            }
        }
        receiver
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs one job's work and wraps up its answer.
fn run<T: Send + 'static>(
    connection: Result<&Connection, StoreError>,
    path: &Path,
    work: impl FnOnce(&Connection) -> Result<T, Fault>,
    sender: oneshot::Sender<Result<T, StoreError>>,
) -> Done {
    let (failed, result) = match connection.map_err(Fault::Store).and_then(work) {
        Ok(value) => (None, Ok(value)),
        Err(Fault::Store(error)) => (Some(None), Err(error)),
        Err(Fault::Sql(error)) => {
            let error = Arc::new(error);
            (Some(Some(error.clone())), Err(StoreError::database(path, error)))
        }
    };
    let answer = Box::new(move |overruled: Option<StoreError>| {
        let _ = sender.send(match overruled {
            // A job's own finding says more than the batch's.
            Some(error) => result.and(Err(error)),
            None => result,
        });
    });
    Done { failed, answer }
}

fn serve(connection: &Connection, jobs: &Receiver<Job>, path: &Path) {
    while let Some(batch) = next_batch(jobs) {
        execute(connection, batch, path);
    }
}

/// Waits for a job and takes all that wait behind it; `None` when every handle is gone and the queue is empty.
fn next_batch(jobs: &Receiver<Job>) -> Option<Vec<Job>> {
    let mut batch = vec![jobs.recv().ok()?];
    batch.extend(jobs.try_iter().take(MAX_BATCH - 1));
    Some(batch)
}

/// Runs a batch in one transaction, each job undone on its own if it fails, then answers all.
fn execute(connection: &Connection, batch: Vec<Job>, path: &Path) {
    let access = batch.iter().map(|job| job.access).max().unwrap_or(Access::Read);
    let (begin, commit) = match access {
        Access::Read => ("BEGIN", "COMMIT"),
        // In the log's own order: what is synced later syncs this too, and never the other way round.
        Access::Note => ("PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE", "COMMIT; PRAGMA synchronous = FULL"),
        Access::Write => ("PRAGMA synchronous = FULL; BEGIN IMMEDIATE", "COMMIT"),
    };
    let mut broken = connection.execute_batch(begin).err().map(Arc::new);
    let mut done = Vec::with_capacity(batch.len());
    for job in batch {
        if let Some(error) = &broken {
            done.push((job.run)(Err(StoreError::database(path, error.clone()))));
            continue;
        }
        let finished = match savepoint(connection, job.access, "SAVEPOINT job") {
            Ok(()) => (job.run)(Ok(connection)),
            Err(error) => {
                let error = Arc::new(error);
                broken = Some(error.clone());
                done.push((job.run)(Err(StoreError::database(path, error))));
                continue;
            }
        };
        let end = if finished.failed.is_some() { "ROLLBACK TO job; RELEASE job" } else { "RELEASE job" };
        // A full disk or an unreadable page may end the whole transaction, and then nothing of the batch happened.
        if connection.is_autocommit() {
            broken = Some(finished.failed.clone().flatten().unwrap_or_else(rolled_back));
        } else if let Err(error) = savepoint(connection, job.access, end) {
            broken = Some(Arc::new(error));
        }
        done.push(finished);
    }
    if broken.is_none() {
        broken = connection.execute_batch(commit).err().map(Arc::new);
    }
    if broken.is_some() && !connection.is_autocommit() {
        // If even this fails the next BEGIN says so, and nothing is acknowledged.
        let _ = connection.execute_batch("ROLLBACK");
    }
    for done in done {
        (done.answer)(broken.clone().map(|error| StoreError::database(path, error)));
    }
}

fn savepoint(connection: &Connection, access: Access, sql: &str) -> rusqlite::Result<()> {
    match access {
        Access::Read => Ok(()),
        Access::Note | Access::Write => connection.execute_batch(sql),
    }
}

fn rolled_back() -> Arc<rusqlite::Error> {
    Arc::new(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK),
        Some("the transaction was rolled back".to_owned()),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn job(
        access: Access,
        work: impl FnOnce(&Connection) -> Result<(), Fault> + Send + 'static,
    ) -> (Job, oneshot::Receiver<Result<(), StoreError>>) {
        let (sender, receiver) = oneshot::channel();
        let run = move |connection: Result<&Connection, StoreError>| {
            run(connection, "test.db".as_ref(), work, sender)
        };
        (Job { access, run: Box::new(run) }, receiver)
    }

    fn insert(n: i64) -> impl FnOnce(&Connection) -> Result<(), Fault> + Send + 'static {
        move |connection| Ok(connection.execute("INSERT INTO t VALUES (?1)", [n]).map(drop)?)
    }

    fn database() -> (tempfile::TempDir, Connection, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let open = || Connection::open(dir.path().join("test.db")).unwrap();
        let connection = open();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY)").unwrap();
        let observer = open();
        (dir, connection, observer)
    }

    #[test]
    fn what_waits_in_the_queue_is_committed_at_once_and_answered_after() {
        let (_dir, connection, observer) = database();
        let (queue, jobs) = channel();
        let mut answers = Vec::new();
        for n in 0..1000 {
            let (job, answer) = job(Access::Write, insert(n));
            queue.send(job).unwrap();
            answers.push(answer);
        }
        let version =
            || observer.pragma_query_value::<i64, _>(None, "data_version", |row| row.get(0)).unwrap();
        let before = version();
        let batch = next_batch(&jobs).unwrap();
        assert_eq!(batch.len(), 1000);
        execute(&connection, batch, "test.db".as_ref());
        assert_eq!(version(), before + 1, "one commit");
        for mut answer in answers {
            answer.try_recv().unwrap().unwrap();
        }
        let count: i64 = observer.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1000);
    }

    #[test]
    fn only_what_must_be_durable_waits_for_the_disk() {
        let (_dir, connection, _observer) = database();
        for (accesses, full) in [
            (vec![Access::Write], true),
            (vec![Access::Note, Access::Read], false),
            (vec![Access::Note, Access::Write], true),
            (vec![Access::Write], true),
        ] {
            let jobs = accesses.into_iter().map(|access| {
                job(access, move |connection| {
                    let found: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
                    assert_eq!(found == 2, full);
                    Ok(())
                })
            });
            let (batch, answers): (Vec<_>, Vec<_>) = jobs.unzip();
            execute(&connection, batch, "test.db".as_ref());
            for mut answer in answers {
                answer.try_recv().unwrap().unwrap();
            }
        }
    }

    #[test]
    fn one_failed_job_is_undone_alone() {
        let (_dir, connection, observer) = database();
        let (first, mut first_answer) = job(Access::Write, insert(1));
        let (bad, mut bad_answer) = job(Access::Write, |connection| {
            insert(2)(connection)?;
            insert(1)(connection)
        });
        let (last, mut last_answer) = job(Access::Write, insert(3));
        execute(&connection, vec![first, bad, last], "test.db".as_ref());
        first_answer.try_recv().unwrap().unwrap();
        assert!(bad_answer.try_recv().unwrap().is_err());
        last_answer.try_recv().unwrap().unwrap();
        let all: String = observer.query_row("SELECT group_concat(n) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(all, "1,3");
    }

    #[test]
    fn nothing_is_acknowledged_when_the_transaction_is_lost() {
        let (_dir, connection, observer) = database();
        let (first, mut first_answer) = job(Access::Write, insert(1));
        // What SQLite does by itself on a full disk or an I/O error.
        let (bad, mut bad_answer) = job(Access::Write, |connection| {
            connection.execute_batch("ROLLBACK")?;
            Err(rusqlite::Error::InvalidQuery.into())
        });
        let (last, mut last_answer) = job(Access::Write, insert(3));
        execute(&connection, vec![first, bad, last], "test.db".as_ref());
        assert!(first_answer.try_recv().unwrap().is_err());
        assert!(bad_answer.try_recv().unwrap().is_err());
        assert!(last_answer.try_recv().unwrap().is_err());
        let count: i64 = observer.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 0);
        let (again, mut answer) = job(Access::Write, insert(1));
        execute(&connection, vec![again], "test.db".as_ref());
        answer.try_recv().unwrap().unwrap();
    }
}
