//! Opening the file: created for its owner alone, and refused where it is not ours, newer or damaged.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, MAIN_DB, OpenFlags, Transaction, TransactionBehavior};

use super::schema::{APPLICATION_ID, TABLES, UPGRADES, VERSION};
use super::trouble::{Trouble, read_only};

/// How long a statement waits for another process's transaction. Longer ones make the queue say that it is not ready.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// The log is cut back to this after a checkpoint.
const LOG_LIMIT: i64 = 16 << 20;
/// Every SQLite file is at least this long, or empty. SQLite itself takes a shorter one for empty, and writes over it.
const SHORTEST: u64 = 512;
/// Smaller files are looked through at the start; in larger ones damage is found when it is met.
const CHECKED: u64 = 16 << 20;

/// The file, open.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    durable: bool,
    inode: (u64, u64),
}

/// An open file descriptor of ours on the database, when closed, would drop the locks of every SQLite connection that this process
/// has on it (so are POSIX locks). Hence the file is only ever opened by SQLite, but for its creation, which this lock keeps apart.
static CREATION: Mutex<()> = Mutex::new(());

impl Store {
    /// Opens the file and makes it a queue if it is new or empty.
    ///
    /// Blocks, for milliseconds as a rule and for [`LOCK_PATIENCE`] where another process holds a lock.
    pub(super) fn open(file: &Path) -> Result<Self, Trouble> {
        create(file)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags).map_err(|error| Trouble::of(file, &error))?;
        let mut store = Self { connection, durable: false, inode: inode(file).unwrap_or_default() };
        match store.prepare(file) {
            Ok(Ok(())) => Ok(store),
            Ok(Err(trouble)) => Err(trouble),
            Err(error) => Err(Trouble::of(file, &error)),
        }
    }

    fn prepare(&mut self, file: &Path) -> rusqlite::Result<Result<(), Trouble>> {
        let connection = &mut self.connection;
        connection.busy_timeout(LOCK_PATIENCE)?;
        connection.set_prepared_statement_cache_capacity(64);
        if connection.is_readonly(MAIN_DB)? {
            return Ok(Err(Trouble::Lasting(read_only(file))));
        }
        if let Err(trouble) = check_identity(connection, file)? {
            return Ok(Err(trouble));
        }
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            let name = file.display();
            return Ok(Err(Trouble::Lasting(format!(
                "{name} lies on a file system that can't share memory between processes; put it on a local disk"
            ))));
        }
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update_and_check(None, "journal_size_limit", LOG_LIMIT, |_| Ok(()))?;
        make_tables(connection)?;
        look_through(connection, file)
    }

    /// One transaction. With `durable`, it is on the disk when this returns; without, it survives the end of this process, though
    /// not a power failure.
    pub(super) fn transact<T>(
        &mut self,
        durable: bool,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        if self.durable != durable {
            self.connection.pragma_update(None, "synchronous", if durable { "full" } else { "normal" })?;
            self.durable = durable;
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }

    /// For reading.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Changes whenever another connection has committed.
    pub(super) fn version(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
    }

    /// Whether the path still leads to this file.
    pub(super) fn is_in_place(&self, file: &Path) -> bool {
        inode(file) == Some(self.inode)
    }

    /// Bounds the file, as a full disk would.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: i64) {
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    }
}

fn inode(file: &Path) -> Option<(u64, u64)> {
    fs::metadata(file).ok().map(|found| (found.dev(), found.ino()))
}

/// Jobs may hold presigned URLs: the file is for its owner alone. SQLite gives its two companions the same mode.
fn create(file: &Path) -> Result<(), Trouble> {
    let _alone = CREATION.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if file.is_dir() {
        return Err(Trouble::Lasting(format!("{} is a directory; name a file in it", file.display())));
    }
    if !directory.is_dir() {
        let (file, directory) = (file.display(), directory.display());
        return Err(Trouble::Lasting(format!(
            "{file} can't be created: there is no directory {directory}; create it or name another file"
        )));
    }
    match fs::metadata(file) {
        Ok(found) if (1..SHORTEST).contains(&found.len()) => return Err(Trouble::foreign(file)),
        Ok(_) => return Ok(()),
        Err(_) => {}
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(Trouble::creating(file, &error)),
        // Another process was faster, and says so.
        Err(_) => {}
        Ok(_) => say_that_it_is_new(file),
    }
    Ok(())
}

/// A name that is mistyped must not pass for a queue in which nothing is to be done.
fn say_that_it_is_new(file: &Path) {
    let whole = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    tracing::info!(
        file = %whole.display(),
        "there was no such file: a new, empty queue was made. Where one was there before, `broker.url` is mistyped"
    );
}

/// Nothing is written before this has said yes.
fn check_identity(connection: &Connection, file: &Path) -> rusqlite::Result<Result<(), Trouble>> {
    let name = file.display();
    // One view of it: another process may be making its tables just now.
    let _view = connection.unchecked_transaction()?;
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let empty = application == 0 && version == 0 && tables(connection)? == 0;
    if application != APPLICATION_ID && !empty {
        return Ok(Err(Trouble::Lasting(format!(
            "{name} is a database of another program; name another file (nothing was changed)"
        ))));
    }
    if version > VERSION {
        return Ok(Err(Trouble::Lasting(format!(
            "{name} was written by a newer version of consign (format {version}, this one knows {VERSION}); use that version \
             (nothing was changed)"
        ))));
    }
    Ok(Ok(()))
}

fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Makes the tables of a new file, or brings those of an older version up to date.
fn make_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    if version(connection)? == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if tables(&transaction)? == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", 1)?;
    }
    // Another process may have been faster.
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

fn look_through(connection: &Connection, file: &Path) -> rusqlite::Result<Result<(), Trouble>> {
    if fs::metadata(file).is_ok_and(|found| found.len() > CHECKED) {
        return Ok(Ok(()));
    }
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok(if found == "ok" { Ok(()) } else { Err(Trouble::damaged(file, &found)) })
}
