//! Connection to the file, which is created with mode 0600, and refused if it is foreign, newer or
//! damaged.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, MAIN_DB, OpenFlags, Transaction, TransactionBehavior};

use super::errors::{FileError, read_only_message};
use super::schema::{APPLICATION_ID, UPGRADES, VERSION, VERSION_1};

/// Time for which a statement waits for another process's transaction. After that the queue is not
/// ready.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Size to which the write-ahead log is truncated after a checkpoint.
const WAL_SIZE_LIMIT: i64 = 16 << 20;
/// Minimum size of a SQLite file that is not empty. SQLite itself treats a shorter file as empty
/// and overwrites it.
const MIN_DATABASE_SIZE: u64 = 512;
/// Maximum size of a file that is checked as a whole on opening. In a larger one, damage is found
/// when a damaged page is read.
const MAX_CHECKED_SIZE: u64 = 16 << 20;

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
    /// Connection to the open file.
    pub(super) connection: Connection,
    durable: bool,
    inode: (u64, u64),
}

/// Serializes the creation of files. Closing any file descriptor of the database drops the POSIX
/// locks of all SQLite connections that this process has on it. Therefore only SQLite opens the
/// file, except to create it.
static CREATION_LOCK: Mutex<()> = Mutex::new(());

impl Store {
    /// Opens the file, and creates the tables if it is new or empty.
    ///
    /// Blocks, usually for milliseconds, and for [`BUSY_TIMEOUT`] if another process holds a lock.
    pub(super) fn open(file: &Path) -> Result<Self, FileError> {
        create(file)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(file, flags).map_err(|error| FileError::from_sqlite(file, &error))?;
        let inode = inode(file).unwrap_or_default();
        let mut store = Self { file: file.to_owned(), connection, durable: false, inode };
        match store.prepare(file) {
            Ok(Ok(())) => Ok(store),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(store.error(&error)),
        }
    }

    fn prepare(&mut self, file: &Path) -> rusqlite::Result<Result<(), FileError>> {
        let connection = &mut self.connection;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(64);
        if connection.is_readonly(MAIN_DB)? {
            return Ok(Err(FileError::Permanent(read_only_message(file))));
        }
        if let Err(error) = check_identity(connection, file)? {
            return Ok(Err(error));
        }
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            let name = file.display();
            return Ok(Err(FileError::Permanent(format!(
                "{name} is on a file system that can't share memory between processes; move it to a local disk"
            ))));
        }
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update_and_check(None, "journal_size_limit", WAL_SIZE_LIMIT, |_| Ok(()))?;
        create_tables(connection)?;
        check_integrity(connection, file)
    }

    fn error(&self, error: &rusqlite::Error) -> FileError {
        FileError::from_sqlite(&self.file, error)
    }

    /// Reads.
    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, FileError> {
        query(&self.connection).map_err(|error| self.error(&error))
    }

    /// Runs one transaction. With `durable` it is on the disk when this returns. Without, it
    /// survives the end of this process but not a power failure.
    pub(super) fn transact<T>(
        &mut self,
        durable: bool,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, FileError> {
        let transact = || {
            if self.durable != durable {
                self.connection.pragma_update(None, "synchronous", if durable { "full" } else { "normal" })?;
                self.durable = durable;
            }
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        let result = transact();
        result.map_err(|error| self.error(&error))
    }

    /// Returns a number that changes when another connection has committed.
    pub(super) fn version(&self) -> Result<i64, FileError> {
        self.read(|db| db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0)))
    }

    /// Returns true if the path still leads to this file.
    pub(super) fn is_in_place(&self) -> bool {
        inode(&self.file) == Some(self.inode)
    }

    /// Limits the size of the file, as a full disk would.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: i64) {
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    }
}

fn inode(file: &Path) -> Option<(u64, u64)> {
    fs::metadata(file).ok().map(|found| (found.dev(), found.ino()))
}

/// Creates the file unless it exists. Jobs may hold presigned URLs, so its mode is 0600. SQLite
/// gives its two companion files the same mode.
fn create(file: &Path) -> Result<(), FileError> {
    let _guard = CREATION_LOCK.lock();
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if file.is_dir() {
        return Err(FileError::Permanent(format!("{} is a directory; name a file in it", file.display())));
    }
    if !directory.is_dir() {
        let (file, directory) = (file.display(), directory.display());
        return Err(FileError::Permanent(format!(
            "{file} can't be created: there is no directory {directory}; create it or name another file"
        )));
    }
    match fs::metadata(file) {
        Ok(found) if (1..MIN_DATABASE_SIZE).contains(&found.len()) => return Err(FileError::not_a_database(file)),
        Ok(_) => return Ok(()),
        Err(_) => {}
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(FileError::from_create(file, &error));
        }
        // Another process created it first, and warned.
        Err(_) => {}
        Ok(_) => log_creation(file),
    }
    Ok(())
}

/// Logs the creation: a mistyped name must not pass for an empty queue.
fn log_creation(file: &Path) {
    let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    tracing::info!(
        event = "queue_created",
        file = %path.display(),
        remedy = "check broker.url if there was a queue before",
        "a new, empty queue was created"
    );
}

/// Checks that the file is a queue of ours. Nothing is written before.
fn check_identity(connection: &Connection, file: &Path) -> rusqlite::Result<Result<(), FileError>> {
    let name = file.display();
    // A single snapshot: another process may be creating the tables.
    let _snapshot = connection.unchecked_transaction()?;
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let empty = application == 0 && version == 0 && tables(connection)? == 0;
    if application != APPLICATION_ID && !empty {
        return Ok(Err(FileError::Permanent(format!(
            "{name} is a database of another program; name another file (nothing was changed)"
        ))));
    }
    if version > VERSION {
        return Ok(Err(FileError::Permanent(format!(
            "{name} was written by a newer version of consign (format {version}, this one knows {VERSION}); use that version \
             (nothing was changed)"
        ))));
    }
    Ok(Ok(()))
}

fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Creates the tables of a new file, or upgrades those of an older version.
fn create_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    if version(connection)? == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if tables(&transaction)? == 0 {
        transaction.execute_batch(VERSION_1)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", 1)?;
    }
    // Another process may have done it meanwhile.
    let found = usize::try_from(version(&transaction)?).unwrap_or(usize::MAX);
    for upgrade in UPGRADES.iter().skip(found.saturating_sub(1)) {
        transaction.execute_batch(upgrade)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

fn version(connection: &Connection) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn check_integrity(connection: &Connection, file: &Path) -> rusqlite::Result<Result<(), FileError>> {
    if fs::metadata(file).is_ok_and(|found| found.len() > MAX_CHECKED_SIZE) {
        return Ok(Ok(()));
    }
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok(if found == "ok" { Ok(()) } else { Err(FileError::damaged(file, &found)) })
}
