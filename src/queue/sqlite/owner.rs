//! Who works on what. Each queue that consumes is an owner: a row in `owners`, and a small file beside the database whose lock
//! goes with the process, however it ends. So what a dead process held comes again at once.
//!
//! Where the lock can't tell (a process that is stopped, a file system without locks, a copied database), the row does: a live
//! owner raises `beats`. Who sees the same number at [`LOOKS`] looks of his own calls that owner gone. Looks are counted, not the
//! time of day: a clock that jumps, or a machine that slept, costs nobody his work.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::jobs;

/// Looks at an owner without a sign of life before its work is given to others; with a look every five seconds, half a minute.
const LOOKS: u32 = 6;

/// This queue as an owner. Its lock ends with it.
#[derive(Debug)]
pub(super) struct Owner {
    id: String,
    lock: PathBuf,
    _locked: File,
}

impl Owner {
    /// A new owner with its lock; not yet known to others.
    pub(super) fn new(database: &Path) -> std::io::Result<Self> {
        let id = Uuid::new_v4().simple().to_string();
        let lock = lock_file(database, &id);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock)?;
        if let Err(problem) = file.try_lock() {
            tracing::warn!(%problem, file = %lock.display(), "no file locks here; a crash is noticed after half a minute");
        }
        Ok(Self { id, lock, _locked: file })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Makes it known. What nobody holds any more is free from then on.
    pub(super) fn enter(&self, db: &Connection, worker: &str) -> rusqlite::Result<()> {
        let sql = "INSERT INTO owners (id, worker, pid, started_at) VALUES (?1, ?2, ?3, ?4)";
        db.execute(sql, params![self.id, worker, std::process::id(), Timestamp::now().to_string()])?;
        jobs::release_orphans(db)?;
        Ok(())
    }

    /// A sign of life. False when others have called it gone.
    pub(super) fn beat(&self, db: &Connection) -> rusqlite::Result<bool> {
        Ok(db.prepare_cached("UPDATE owners SET beats = beats + 1 WHERE id = ?1")?.execute([&self.id])? > 0)
    }

    /// Takes the lock's file away.
    pub(super) fn remove_lock(&self) {
        let _ = fs::remove_file(&self.lock);
    }
}

/// Another owner's last known number of beats, and at how many looks it was that.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch(HashMap<String, (i64, u32)>);

impl Watch {
    /// Counts a look at everybody else; those without a sign of life for too long.
    pub(super) fn look(&mut self, db: &Connection, own: &str) -> rusqlite::Result<Vec<String>> {
        let now: HashMap<_, _> = others(db, own)?.into_iter().collect();
        self.0.retain(|id, _| now.contains_key(id));
        for (id, beats) in now {
            let seen = self.0.entry(id).or_insert((beats, 0));
            *seen = if seen.0 == beats { (beats, seen.1 + 1) } else { (beats, 0) };
        }
        Ok(self.0.iter().filter(|(_, (_, looks))| *looks > LOOKS).map(|(id, _)| id.clone()).collect())
    }
}

/// Everybody else, with their beats.
fn others(db: &Connection, own: &str) -> rusqlite::Result<Vec<(String, i64)>> {
    let mut statement = db.prepare_cached("SELECT id, beats FROM owners WHERE id <> ?1")?;
    statement.query_map([own], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// An owner whose process is gone: its lock is free, and held here until its work is given back.
#[derive(Debug)]
pub(super) struct Dead {
    pub(super) id: String,
    lock: PathBuf,
    _held: File,
}

impl Dead {
    /// Takes the lock's file away, when the row is gone.
    pub(super) fn remove_lock(&self) {
        let _ = fs::remove_file(&self.lock);
    }
}

/// Everybody else whose lock is free.
pub(super) fn dead(db: &Connection, database: &Path, own: &str) -> rusqlite::Result<Vec<Dead>> {
    let others = others(db, own)?.into_iter();
    Ok(others
        .filter_map(|(id, _)| {
            let lock = lock_file(database, &id);
            let held = File::open(&lock).ok()?;
            held.try_lock().ok()?;
            Some(Dead { id, lock, _held: held })
        })
        .collect())
}

/// Forgets an owner and gives back what it held; how many jobs.
pub(super) fn forget(db: &Connection, id: &str) -> rusqlite::Result<usize> {
    let released = jobs::release_all_of(db, id)?;
    db.execute("DELETE FROM owners WHERE id = ?1", [id])?;
    Ok(released)
}

fn lock_file(database: &Path, id: &str) -> PathBuf {
    let mut name: OsString = database.as_os_str().to_owned();
    name.push(format!("-owner-{id}"));
    PathBuf::from(name)
}
