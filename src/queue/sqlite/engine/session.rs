//! The file, open, and this process's part in it as an owner: signs of life, and the work of the dead.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Shared;
use crate::queue::sqlite::file::Store;
use crate::queue::sqlite::jobs;
use crate::queue::sqlite::owner::{self, Owner, Watch};
use crate::queue::sqlite::trouble::Trouble;

/// How often locks of other owners are tried.
const LOOK: Duration = Duration::from_secs(1);
/// How often this owner gives a sign of life.
pub(super) const BEAT: Duration = Duration::from_secs(5);

/// The file, open, and this process's part in it.
pub(super) struct Session {
    pub(super) store: Store,
    pub(super) owner: Option<Owner>,
    watch: Watch,
    pub(super) version: i64,
    pub(super) looks_at: Instant,
    pub(super) beats_at: Instant,
    clock_ms: i64,
}

impl Session {
    /// Not yet known to others.
    pub(super) fn new(store: Store) -> Self {
        let now = Instant::now();
        let (owner, watch) = (None, Watch::default());
        // No clock is that late: the first look finds that it went back, and shortens what a clock of earlier days prolonged.
        let clock_ms = i64::MAX;
        Self { store, owner, watch, version: -1, looks_at: now, beats_at: now + BEAT, clock_ms }
    }

    /// Makes this process known under a new name.
    pub(super) fn enter(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let owner = Owner::new(&shared.file).map_err(|error| Trouble::creating(&shared.file, &error))?;
        if let Err(error) = self.store.transact(false, |db| owner.enter(db, &shared.worker_id)) {
            owner.remove_lock();
            return Err(Trouble::of(&shared.file, &error));
        }
        if let Some(old) = self.owner.replace(owner) {
            old.remove_lock();
        }
        Ok(())
    }

    /// A sign of life, and a look at everybody else. False when others have called this owner gone.
    pub(super) fn beat(&mut self) -> rusqlite::Result<bool> {
        let Some(owner) = &self.owner else { return Ok(true) };
        // A look counts with the sign of life given then: on a full disk nobody can give one, and nobody is dead for that.
        let mut watch = self.watch.clone();
        let mut released = 0;
        let alive = self.store.transact(false, |db| {
            if !owner.beat(db)? {
                return Ok(false);
            }
            for id in watch.look(db, owner.id())? {
                released += owner::forget(db, &id)?;
            }
            Ok(true)
        })?;
        self.watch = watch;
        if released > 0 {
            self.version = -1;
            tracing::warn!(
                jobs = released,
                "a process gave no sign of life for half a minute; its jobs are delivered again"
            );
        }
        Ok(alive)
    }

    /// Gives back what owners held whose processes are gone; how many jobs.
    pub(super) fn bury_the_dead(&mut self, file: &Path) -> Result<usize, Trouble> {
        let Some(owner) = &self.owner else { return Ok(0) };
        let trouble = |error| Trouble::of(file, &error);
        let dead = owner::dead(self.store.connection(), file, owner.id()).map_err(trouble)?;
        let mut released = 0;
        for dead in dead {
            released += self.store.transact(false, |db| owner::forget(db, &dead.id)).map_err(trouble)?;
            dead.remove_lock();
        }
        if released > 0 {
            tracing::info!(
                jobs = released,
                "a process has ended without giving its jobs back; they are delivered again"
            );
        }
        self.looks_at = Instant::now() + LOOK;
        Ok(released)
    }

    /// Whether the clock went back, which would make copies wait too long.
    pub(super) fn follow_the_clock(&mut self, prefix: &str) -> rusqlite::Result<bool> {
        let now = jobs::now_ms();
        let back = now < self.clock_ms.saturating_sub(1000);
        if back {
            self.store.transact(false, |db| jobs::shorten_waits(db, prefix))?;
        }
        // Only now: what could not be written is tried again.
        self.clock_ms = now;
        Ok(back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session whose commits fail, and another owner that gives no sign of life.
    fn stuck(folder: &Path) -> Session {
        let file = folder.join("queue.db");
        let mut session = Session::new(Store::open(&file).unwrap());
        let owner = Owner::new(&file).unwrap();
        let entered = session.store.transact(false, |db| {
            owner.enter(db, "this")?;
            db.execute_batch(
                "INSERT INTO owners (id, worker, pid, started_at) VALUES ('other', 'other', 1, '');
                 CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
                 CREATE TRIGGER fail_beat AFTER UPDATE ON owners BEGIN INSERT INTO child VALUES (1); END;
                 CREATE TRIGGER fail_wait AFTER UPDATE ON waiting BEGIN INSERT INTO child VALUES (1); END;",
            )
        });
        entered.unwrap();
        session.store.connection().pragma_update(None, "foreign_keys", true).unwrap();
        session.owner = Some(owner);
        session
    }

    fn mend(session: &Session) {
        session.store.connection().execute_batch("DROP TRIGGER fail_beat; DROP TRIGGER fail_wait").unwrap();
    }

    fn number(session: &Session, sql: &str) -> i64 {
        session.store.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn looks_while_nothing_can_be_written_call_nobody_dead() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = stuck(folder.path());
        for _ in 0..20 {
            assert!(session.beat().is_err());
        }
        mend(&session);
        assert!(session.beat().unwrap());
        assert_eq!(number(&session, "SELECT count(*) FROM owners WHERE id = 'other'"), 1);
    }

    #[test]
    fn a_clock_that_went_back_is_remembered_until_the_waits_are_shortened() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = stuck(folder.path());
        let far = jobs::now_ms() + 3_600_000;
        let sql = format!(
            "INSERT INTO waiting (due_ms, rung_ms, prefix, lane, routing_key, published_at, headers, body)
             VALUES ({far}, 5000, 'consign', 'scheduled', 'job.scheduled.acme', '', '{{}}', x'')"
        );
        session.store.connection().execute_batch(&sql).unwrap();
        assert!(session.follow_the_clock("consign").is_err());
        mend(&session);
        assert!(session.follow_the_clock("consign").unwrap());
        assert!(number(&session, "SELECT due_ms FROM waiting") < far);
    }
}
