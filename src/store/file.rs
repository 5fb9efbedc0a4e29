//! The file: made once and whole, private to its user, of a known version, or refused with what to do.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use super::StoreError;
use crate::model::{OwnerId, Timestamp};

/// `pkte`: marks a SQLite file as a store of Pocketenv.
const APPLICATION_ID: i32 = 0x706b_7465;

/// The step from each version to the next; the first makes version 1 of an empty file. Never edit one that was released.
///
/// Run by hand in one transaction that also looks at the version: two processes that open an old file at once must not both migrate it.
const MIGRATIONS: [&str; 7] = [
    include_str!("schema-1.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
    include_str!("schema-6.sql"),
    include_str!("schema-7.sql"),
];

/// How long a transaction waits for one of another process. Transactions take milliseconds; this is for a machine on its knees.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes kept in the write-ahead log file after a checkpoint.
const LOG_SIZE_LIMIT: i64 = 4 << 20;

/// What the store knows about itself.
pub(super) struct Meta {
    pub(super) owner: OwnerId,
    pub(super) digest_key: [u8; 32],
    pub(super) created_at: Timestamp,
}

/// Opens the store at `path`, making it first if there is none; `owner` and `now` are used only then.
pub(super) fn open(path: &Path, owner: &OwnerId, now: Timestamp) -> Result<(Connection, Meta), StoreError> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { doing, path, source }
    };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make the directory", dir))?;
    // The log is looked for before the file: a log of a live store never exists without its file.
    let log = sibling(path, "-wal");
    let log_exists = log.try_exists().map_err(io("look at", &log))?;
    match fs::metadata(path) {
        Ok(metadata) => check_file(path, &metadata)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && log_exists => {
            // A new file would be overwritten with the pages of the old log.
            let detail = format!("the file is gone and its log {} is still there", log.display());
            return Err(StoreError::Damaged { path: path.to_owned(), detail });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, dir, owner, now)?,
        Err(error) => return Err(io("look at", path)(error)),
    }
    let sql = |error| StoreError::database(path, Arc::new(error));
    let mut connection = connect(path).map_err(sql)?;
    check_identity(&connection, path)?;
    migrate(&mut connection, path)?;
    // Stores are made so; one that was copied by other tools may not be.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    let meta = read_meta(&connection, path)?;
    Ok((connection, meta))
}

/// A store in memory, gone with its connection.
pub(super) fn open_in_memory(owner: &OwnerId, now: Timestamp) -> Result<(Connection, Meta), StoreError> {
    let path = Path::new(":memory:");
    let mut connection = Connection::open_in_memory()
        .and_then(|connection| set_up(&connection).map(|()| connection))
        .map_err(|error| StoreError::database(path, Arc::new(error)))?;
    fill(&mut connection, path, owner, now)?;
    let meta = read_meta(&connection, path)?;
    Ok((connection, meta))
}

fn read_meta(connection: &Connection, path: &Path) -> Result<Meta, StoreError> {
    connection
        .query_row("SELECT owner, digest_key, created_at FROM meta", [], |row| {
            Ok(Meta {
                owner: OwnerId(row.get(0)?),
                digest_key: row.get(1)?,
                created_at: Timestamp(row.get(2)?),
            })
        })
        .map_err(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => StoreError::Damaged {
                path: path.to_owned(),
                detail: "it does not say who owns it".to_owned(),
            },
            error => StoreError::database(path, Arc::new(error)),
        })
}

/// Refuses what cannot be a store before the database gets to touch it, and takes away what others may do with it.
fn check_file(path: &Path, metadata: &fs::Metadata) -> Result<(), StoreError> {
    if !metadata.is_file() {
        return Err(StoreError::Damaged { path: path.to_owned(), detail: "it is not a file".to_owned() });
    }
    // Stores come into being whole, so an empty file was cut off; the database would take it for a new one.
    if metadata.len() == 0 {
        return Err(StoreError::Damaged { path: path.to_owned(), detail: "it is empty".to_owned() });
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|source| StoreError::Io {
            doing: "make private",
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Makes a whole store under a temporary name and links it into place, so that no process ever sees half a store. If another
/// process was faster its store stays.
fn create(path: &Path, dir: &Path, owner: &OwnerId, now: Timestamp) -> Result<(), StoreError> {
    let io = |doing| move |source| StoreError::Io { doing, path: path.to_owned(), source };
    let file = tempfile::Builder::new().prefix(".new-store-").tempfile_in(dir).map_err(io("make"))?;
    let file = file.into_temp_path();
    let sql = |error| StoreError::database(path, Arc::new(error));
    let mut connection = connect(&file).map_err(sql)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    fill(&mut connection, path, owner, now)?;
    // Closing moves the log into the file and syncs it.
    connection.close().map_err(|(_, error)| sql(error))?;
    match file.persist_noclobber(path) {
        Ok(()) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(io("make")(error.error)),
    }
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory of"))
}

/// Makes an empty database a store.
fn fill(connection: &mut Connection, path: &Path, owner: &OwnerId, now: Timestamp) -> Result<(), StoreError> {
    let sql = |error| StoreError::database(path, Arc::new(error));
    let mut digest_key = [0; 32];
    getrandom::fill(&mut digest_key).map_err(|error| StoreError::Io {
        doing: "draw random bytes for",
        path: path.to_owned(),
        source: io::Error::other(error.to_string()),
    })?;
    connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
    migrate(connection, path)?;
    connection
        .execute(
            "INSERT INTO meta (one, owner, digest_key, created_at) VALUES (1, ?1, ?2, ?3)",
            params![owner.0, digest_key, now.0],
        )
        .map_err(sql)?;
    Ok(())
}

/// Opens an existing file and sets what holds per connection. The log and shared-memory files get the mode of the file.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_EXRESCODE,
    )?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", LOG_SIZE_LIMIT)?;
    set_up(&connection)?;
    Ok(connection)
}

/// Sets what every connection needs.
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn check_identity(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| StoreError::database(path, Arc::new(error)))?;
    if found != APPLICATION_ID {
        return Err(StoreError::NotOurs { path: path.to_owned(), found });
    }
    Ok(())
}

/// Brings the file to the newest version, or refuses one that is newer.
fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let sql = |error| StoreError::database(path, Arc::new(error));
    let supported = MIGRATIONS.len();
    // The usual case takes no lock.
    if version(connection, path)? == supported {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    for step in &MIGRATIONS[version(&transaction, path)?..] {
        transaction.execute_batch(step).map_err(sql)?;
    }
    transaction.pragma_update(None, "user_version", supported as i64).map_err(sql)?;
    transaction.commit().map_err(sql)
}

/// The version of the file, at most the newest known.
fn version(connection: &Connection, path: &Path) -> Result<usize, StoreError> {
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| StoreError::database(path, Arc::new(error)))?;
    let supported = MIGRATIONS.len();
    match usize::try_from(found) {
        Ok(version) if version <= supported => Ok(version),
        Ok(_) => Err(StoreError::Newer { path: path.to_owned(), found, supported: supported as i64 }),
        Err(_) => {
            Err(StoreError::Damaged { path: path.to_owned(), detail: format!("its version is {found}") })
        }
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
