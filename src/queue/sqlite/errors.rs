//! Errors of the file, with messages that say what to do.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::queue::QueueError;

/// Free space below which the disk counts as full. SQLite's shared memory alone takes 32 KiB.
const MIN_FREE_BYTES: u64 = 64 << 10;

/// Reason why the file can't be used now.
#[derive(Debug, Clone)]
pub(super) enum FileError {
    /// The error can go away by itself, or when somebody frees space: locked, full, unreadable.
    Transient(String),
    /// A person must act: damaged, foreign, newer, read-only, no directory.
    Permanent(String),
}

impl FileError {
    /// Classifies an error that SQLite returned for `file`.
    pub(super) fn from_sqlite(file: &Path, error: &rusqlite::Error) -> Self {
        let name = file.display();
        // On a full disk SQLite can return many errors, only one of which says so.
        let code = if is_full(file) && !is_unrelated_to_space(error) {
            Some(ErrorCode::DiskFull)
        } else {
            error.sqlite_error_code()
        };
        match code {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
                Self::Transient(format!("{name} is locked by another process (a backup, a sqlite3 shell?); retrying"))
            }
            Some(ErrorCode::DiskFull) => {
                Self::Transient(format!("{name} can't grow: the disk is full; free some space; retrying"))
            }
            Some(ErrorCode::ReadOnly) => Self::Permanent(read_only_message(file)),
            Some(ErrorCode::DatabaseCorrupt) => Self::damaged(file, &error.to_string()),
            Some(ErrorCode::NotADatabase) => Self::not_a_database(file),
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Self::Permanent(format!(
                "{name} can't be opened ({error}); the file and its directory must be readable and writable for this user"
            )),
            _ => Self::Transient(format!("{name} can't be read or written ({error}); retrying")),
        }
    }

    /// The file was not written by SQLite.
    pub(super) fn not_a_database(file: &Path) -> Self {
        Self::Permanent(format!(
            "{} is not a SQLite database: it belongs to another program, or its beginning is damaged; name another \
             file, or restore this one from a backup (nothing was changed)",
            file.display()
        ))
    }

    /// The file's content is damaged. consign never repairs or replaces it.
    pub(super) fn damaged(file: &Path, detail: &str) -> Self {
        let name = file.display();
        Self::Permanent(format!(
            "{name} is damaged ({detail}); end every process that uses it, keep a copy, and restore a backup or save what can be \
             read with: sqlite3 {name} .recover (nothing was changed)"
        ))
    }

    /// Classifies an error of the system on creating `file`.
    pub(super) fn from_create(file: &Path, error: &io::Error) -> Self {
        let name = file.display();
        match error.kind() {
            io::ErrorKind::StorageFull => {
                Self::Transient(format!("{name} can't be created: the disk is full; free some space; retrying"))
            }
            io::ErrorKind::ReadOnlyFilesystem => Self::Permanent(read_only_message(file)),
            _ => Self::Permanent(format!(
                "{name} can't be created ({error}); its directory must be writable for this user"
            )),
        }
    }

    /// Converts to the error that callers of the queue get.
    pub(super) fn into_queue_error(self) -> QueueError {
        match self {
            Self::Transient(reason) => QueueError::Unavailable(reason),
            Self::Permanent(reason) => QueueError::Unusable(reason),
        }
    }
}

/// Returns true if the file system has no room for another page or two.
fn is_full(file: &Path) -> bool {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    rustix::fs::statvfs(directory).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < MIN_FREE_BYTES)
}

/// Returns true for errors that a full disk does not cause.
fn is_unrelated_to_space(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Message for a file that can only be read.
pub(super) fn read_only_message(file: &Path) -> String {
    format!(
        "{} is read-only for this process; make the file and its directory writable for this user, or name another file",
        file.display()
    )
}
