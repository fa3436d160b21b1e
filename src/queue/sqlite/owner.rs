//! Owners of jobs. Each queue that consumes is an owner: a row in `owners`, and a lock file beside
//! the database. The system releases the lock when the process ends, so the jobs of a crashed
//! process are redelivered within about a second.
//!
//! If the lock shows nothing (a stopped process, a file system without locks, a copied database),
//! the row does: a live owner increments `beats`. An owner whose number is the same at more than
//! [`MAX_MISSED_HEARTBEATS`] checks in a row is expired. Checks are counted and the time of day is
//! not used, so neither a clock that jumps nor a suspended machine expires an owner.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::jobs;

/// Checks without a heartbeat before an owner's jobs are requeued. With a check every five seconds
/// this is half a minute.
const MAX_MISSED_HEARTBEATS: u32 = 6;

/// An owner whose lock this process holds: this queue, or a dead one. The lock is released when it
/// is dropped.
#[derive(Debug)]
pub(super) struct Owner {
    id: String,
    lock: PathBuf,
    _locked: File,
}

impl Owner {
    /// Creates an owner and its lock file. It is not registered yet.
    pub(super) fn new(database: &Path) -> std::io::Result<Self> {
        let id = Uuid::new_v4().simple().to_string();
        let lock = lock_file(database, &id);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock)?;
        if let Err(problem) = file.try_lock() {
            tracing::warn!(
                event = "queue_locks_missing",
                %problem,
                file = %lock.display(),
                next = "a crash is detected after half a minute instead of at once",
                remedy = "put the queue on a file system with locks",
                "the file system has no file locks"
            );
        }
        Ok(Self { id, lock, _locked: file })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Registers the owner, and requeues jobs whose owner is not registered.
    pub(super) fn register(&self, db: &Connection, worker: &str) -> rusqlite::Result<()> {
        let sql = "INSERT INTO owners (id, worker, pid, started_at) VALUES (?1, ?2, ?3, ?4)";
        db.execute(sql, params![self.id, worker, std::process::id(), Timestamp::now().to_string()])?;
        jobs::requeue_orphans(db)?;
        Ok(())
    }

    /// Writes a heartbeat. Returns false if other processes have expired this owner.
    pub(super) fn heartbeat(&self, db: &Connection) -> rusqlite::Result<bool> {
        Ok(db.prepare_cached("UPDATE owners SET beats = beats + 1 WHERE id = ?1")?.execute([&self.id])? > 0)
    }

    /// Deletes the lock file: of a dead owner after its row is gone.
    pub(super) fn remove_lock(&self) {
        let _ = fs::remove_file(&self.lock);
    }
}

/// Last heartbeat of another owner, and the number of checks that have seen no newer one.
#[derive(Debug, Clone, Copy)]
struct LastHeartbeat {
    beats: i64,
    missed: u32,
}

/// Heartbeats of all other owners, as seen by this process.
#[derive(Debug, Clone, Default)]
pub(super) struct HeartbeatMonitor(HashMap<String, LastHeartbeat>);

impl HeartbeatMonitor {
    /// Counts one check of all other owners. Returns the ids of those that have expired.
    pub(super) fn check(&mut self, db: &Connection, own: &str) -> rusqlite::Result<Vec<String>> {
        let now: HashMap<_, _> = other_owners(db, own)?.into_iter().collect();
        self.0.retain(|id, _| now.contains_key(id));
        for (id, beats) in now {
            let last = self.0.entry(id).or_insert(LastHeartbeat { beats, missed: 0 });
            let missed = if last.beats == beats { last.missed + 1 } else { 0 };
            *last = LastHeartbeat { beats, missed };
        }
        let expired = self.0.iter().filter(|(_, last)| last.missed > MAX_MISSED_HEARTBEATS);
        Ok(expired.map(|(id, _)| id.clone()).collect())
    }
}

/// Returns all other owners with their heartbeat counts.
fn other_owners(db: &Connection, own: &str) -> rusqlite::Result<Vec<(String, i64)>> {
    let sql = "SELECT id, beats FROM owners WHERE id <> ?1";
    db.prepare_cached(sql)?.query_map([own], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Returns all other owners whose processes have ended: their locks were free, and are held here
/// until their jobs are requeued.
pub(super) fn dead_owners(db: &Connection, database: &Path, own: &str) -> rusqlite::Result<Vec<Owner>> {
    let others = other_owners(db, own)?.into_iter();
    Ok(others
        .filter_map(|(id, _)| {
            let lock = lock_file(database, &id);
            let locked = File::open(&lock).ok()?;
            locked.try_lock().ok()?;
            Some(Owner { id, lock, _locked: locked })
        })
        .collect())
}

/// Removes an owner and requeues its jobs. Returns the number of jobs.
pub(super) fn remove(db: &Connection, id: &str) -> rusqlite::Result<usize> {
    let requeued = jobs::requeue_all_of(db, id)?;
    db.execute("DELETE FROM owners WHERE id = ?1", [id])?;
    Ok(requeued)
}

fn lock_file(database: &Path, id: &str) -> PathBuf {
    let mut name: OsString = database.as_os_str().to_owned();
    name.push(format!("-owner-{id}"));
    PathBuf::from(name)
}
