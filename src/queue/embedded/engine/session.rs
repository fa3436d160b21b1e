//! The file, open, and this process's part in it as an owner: signs of life, and the work of the dead.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Shared;
use crate::queue::embedded::file::Store;
use crate::queue::embedded::jobs;
use crate::queue::embedded::owner::{self, Owner, Watch};
use crate::queue::embedded::trouble::Trouble;

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
        let watch = &mut self.watch;
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
        self.clock_ms = now;
        if back {
            self.store.transact(false, |db| jobs::shorten_waits(db, prefix))?;
        }
        Ok(back)
    }
}
