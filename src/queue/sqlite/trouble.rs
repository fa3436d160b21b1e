//! What can be wrong with the file, in words that say what to do.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::queue::QueueError;

/// Less room than this is none: SQLite's shared memory alone takes 32 KiB.
const ROOM: u64 = 64 << 10;

/// Why the file can't be worked with at the moment.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// It may pass by itself, or when somebody makes room: locked, full, unreadable for now.
    Passing(String),
    /// A person must act: damaged, foreign, newer, read-only, no directory.
    Lasting(String),
}

impl Trouble {
    /// From what SQLite said about `file`.
    pub(super) fn of(file: &Path, error: &rusqlite::Error) -> Self {
        let name = file.display();
        // Without room, SQLite can fail in many ways, of which only one is called so.
        let code = if is_full(file) && !is_someone_elses(error) {
            Some(ErrorCode::DiskFull)
        } else {
            error.sqlite_error_code()
        };
        match code {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
                Self::Passing(format!(
                    "{name} is locked by another process (a backup, a sqlite3 shell?); it is tried again and again"
                ))
            }
            Some(ErrorCode::DiskFull) => {
                Self::Passing(format!("{name} can't grow: the disk is full; free some space, it is tried again"))
            }
            Some(ErrorCode::ReadOnly) => Self::Lasting(read_only(file)),
            Some(ErrorCode::DatabaseCorrupt) => Self::damaged(file, &error.to_string()),
            Some(ErrorCode::NotADatabase) => Self::foreign(file),
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Self::Lasting(format!(
                "{name} can't be opened ({error}); the file and its directory must be readable and writable for this user"
            )),
            _ => Self::Passing(format!("{name} can't be read or written ({error}); it is tried again")),
        }
    }

    /// The file was not written by SQLite.
    pub(super) fn foreign(file: &Path) -> Self {
        Self::Lasting(format!(
            "{} is no SQLite database: it belongs to another program, or its beginning is damaged; name another file, or restore \
             this one from a backup (nothing was changed)",
            file.display()
        ))
    }

    /// The file is not what it was written as. It is never repaired or replaced by consign itself.
    pub(super) fn damaged(file: &Path, detail: &str) -> Self {
        let name = file.display();
        Self::Lasting(format!(
            "{name} is damaged ({detail}); end every process that uses it, keep a copy, and restore a backup or save what can be \
             read with: sqlite3 {name} .recover (nothing was changed)"
        ))
    }

    /// From what the system said about creating `file`.
    pub(super) fn creating(file: &Path, error: &io::Error) -> Self {
        let name = file.display();
        match error.kind() {
            io::ErrorKind::StorageFull => {
                Self::Passing(format!("{name} can't be created: the disk is full; free some space, it is tried again"))
            }
            io::ErrorKind::ReadOnlyFilesystem => Self::Lasting(read_only(file)),
            _ => Self::Lasting(format!(
                "{name} can't be created ({error}); its directory must be writable for this user"
            )),
        }
    }

    /// What a caller of the queue gets.
    pub(super) fn into_error(self) -> QueueError {
        match self {
            Self::Passing(why) => QueueError::Unavailable(why),
            Self::Lasting(why) => QueueError::Unusable(why),
        }
    }
}

/// Whether the file system has no room for another page or two.
fn is_full(file: &Path) -> bool {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    rustix::fs::statvfs(directory).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM)
}

/// Troubles that have nothing to do with room.
fn is_someone_elses(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// What is said of a file that can only be read.
pub(super) fn read_only(file: &Path) -> String {
    format!(
        "{} is read-only for this process; make the file and its directory writable for this user, or name another file",
        file.display()
    )
}
