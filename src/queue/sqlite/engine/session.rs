//! The open file, and this process's registration in it as an owner: heartbeats, and the jobs of
//! owners that are gone.

use std::path::Path;
use std::time::{Duration, Instant};

use super::EngineShared;
use crate::queue::sqlite::connection::Store;
use crate::queue::sqlite::errors::FileError;
use crate::queue::sqlite::jobs;
use crate::queue::sqlite::owner::{self, HeartbeatMonitor, Owner};
use crate::queue::sqlite::release;

/// Interval at which the locks of other owners are tried.
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of this owner's heartbeats.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The open file, and this process's registration in it.
pub(super) struct FileSession {
    pub(super) store: Store,
    pub(super) owner: Option<Owner>,
    monitor: HeartbeatMonitor,
    pub(super) version: i64,
    pub(super) lock_check_at: Instant,
    pub(super) heartbeat_at: Instant,
    clock_ms: i64,
}

impl FileSession {
    /// A session without an owner.
    pub(super) fn new(store: Store) -> Self {
        let now = Instant::now();
        Self {
            store,
            owner: None,
            monitor: HeartbeatMonitor::default(),
            version: -1,
            lock_check_at: now,
            heartbeat_at: now + HEARTBEAT_INTERVAL,
            // Later than any clock: the first check caps waits that an earlier, wrong clock made long.
            clock_ms: i64::MAX,
        }
    }

    /// Registers this process as a new owner.
    pub(super) fn register(&mut self, shared: &EngineShared) -> Result<(), FileError> {
        let owner = Owner::new(&shared.file).map_err(|error| FileError::from_create(&shared.file, &error))?;
        if let Err(error) = self.store.transact(false, |db| owner.register(db, &shared.worker_id)) {
            owner.remove_lock();
            return Err(error);
        }
        if let Some(old) = self.owner.replace(owner) {
            old.remove_lock();
        }
        Ok(())
    }

    /// Writes a heartbeat and checks those of all other owners. Returns false if other processes
    /// have expired this owner.
    pub(super) fn heartbeat(&mut self) -> Result<bool, FileError> {
        let Some(owner) = &self.owner else { return Ok(true) };
        // A check counts only together with the heartbeat written in the same transaction: on a
        // full disk no owner can write one, and none must expire for that.
        let mut monitor = self.monitor.clone();
        let mut requeued = 0;
        let alive = self.store.transact(false, |db| {
            if !owner.heartbeat(db)? {
                return Ok(false);
            }
            for id in monitor.check(db, owner.id())? {
                requeued += owner::remove(db, &id)?;
            }
            Ok(true)
        })?;
        self.monitor = monitor;
        if requeued > 0 {
            self.version = -1;
            tracing::warn!(
                event = "queue_owner_expired",
                jobs = requeued,
                next = "its jobs are delivered again",
                remedy = "check that process",
                "a process wrote no heartbeat for half a minute"
            );
        }
        Ok(alive)
    }

    /// Requeues the jobs of owners whose processes have ended. Returns the number of jobs.
    pub(super) fn release_dead_owners(&mut self, file: &Path) -> Result<usize, FileError> {
        let Some(owner) = &self.owner else { return Ok(0) };
        let dead = self.store.read(|db| owner::dead_owners(db, file, owner.id()))?;
        let mut requeued = 0;
        for dead in dead {
            requeued += self.store.transact(false, |db| owner::remove(db, dead.id()))?;
            dead.remove_lock();
        }
        if requeued > 0 {
            tracing::info!(
                event = "queue_owner_released",
                jobs = requeued,
                "the jobs of a process that ended are delivered again"
            );
        }
        self.lock_check_at = Instant::now() + LOCK_CHECK_INTERVAL;
        Ok(requeued)
    }

    /// Returns true if the clock was set back. That would make copies wait too long, so their waits
    /// are capped.
    pub(super) fn check_clock(&mut self, prefix: &str) -> Result<bool, FileError> {
        let now = jobs::now_ms();
        let set_back = now < self.clock_ms.saturating_sub(1000);
        if set_back {
            self.store.transact(false, |db| release::cap_waits(db, prefix))?;
        }
        // Only now: a failed write is retried.
        self.clock_ms = now;
        Ok(set_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session whose commits fail, and another owner without heartbeats.
    fn session_with_failing_commits(folder: &Path) -> FileSession {
        let file = folder.join("queue.db");
        let mut session = FileSession::new(Store::open(&file).unwrap());
        let owner = Owner::new(&file).unwrap();
        let registered = session.store.transact(false, |db| {
            owner.register(db, "this")?;
            db.execute_batch(
                "INSERT INTO owners (id, worker, pid, started_at) VALUES ('other', 'other', 1, '');
                 CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
                 CREATE TRIGGER fail_beat AFTER UPDATE ON owners BEGIN INSERT INTO child VALUES (1); END;
                 CREATE TRIGGER fail_wait AFTER UPDATE ON waiting BEGIN INSERT INTO child VALUES (1); END;",
            )
        });
        registered.unwrap();
        session.store.connection.pragma_update(None, "foreign_keys", true).unwrap();
        session.owner = Some(owner);
        session
    }

    fn remove_triggers(session: &FileSession) {
        session.store.connection.execute_batch("DROP TRIGGER fail_beat; DROP TRIGGER fail_wait").unwrap();
    }

    fn number(session: &FileSession, sql: &str) -> i64 {
        session.store.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn no_owner_expires_while_nothing_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = session_with_failing_commits(folder.path());
        for _ in 0..20 {
            assert!(session.heartbeat().is_err());
        }
        remove_triggers(&session);
        assert!(session.heartbeat().unwrap());
        assert_eq!(number(&session, "SELECT count(*) FROM owners WHERE id = 'other'"), 1);
    }

    #[test]
    fn a_clock_set_back_is_remembered_until_the_waits_are_capped() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = session_with_failing_commits(folder.path());
        let far = jobs::now_ms() + 3_600_000;
        let sql = format!(
            "INSERT INTO waiting (due_ms, rung_ms, prefix, lane, routing_key, published_at, headers, body)
             VALUES ({far}, 5000, 'consign', 'scheduled', 'job.scheduled.acme', '', '{{}}', x'')"
        );
        session.store.connection.execute_batch(&sql).unwrap();
        assert!(session.check_clock("consign").is_err());
        remove_triggers(&session);
        assert!(session.check_clock("consign").unwrap());
        assert!(number(&session, "SELECT due_ms FROM waiting") < far);
    }
}
