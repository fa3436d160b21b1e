//! One job of an object at a time in this worker.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::domain::generation::ObjectDigest;

/// Entries from which on those that nobody uses are dropped.
const MIN_CLEANUP: usize = 64;

/// Right to be the only job of an object in this worker.
pub(in crate::worker) type ObjectGuard = OwnedMutexGuard<()>;

/// Locks of the objects that jobs write, or wait to write. Fair: first come, first served.
#[derive(Debug, Default)]
pub(in crate::worker) struct ObjectLocks {
    locks: Mutex<HashMap<ObjectDigest, Weak<AsyncMutex<()>>>>,
}

impl ObjectLocks {
    /// Returns the guard if no other job has it.
    pub(in crate::worker) fn try_lock(&self, object: ObjectDigest) -> Option<ObjectGuard> {
        self.of(object).try_lock_owned().ok()
    }

    /// Waits for the guard.
    pub(in crate::worker) async fn lock(&self, object: ObjectDigest) -> ObjectGuard {
        self.of(object).lock_owned().await
    }

    fn of(&self, object: ObjectDigest) -> Arc<AsyncMutex<()>> {
        let mut locks = self.locks.lock();
        if let Some(lock) = locks.get(&object).and_then(Weak::upgrade) {
            return lock;
        }
        if locks.len() >= MIN_CLEANUP && locks.len() == locks.capacity() {
            locks.retain(|_, lock| lock.strong_count() > 0);
        }
        let lock = Arc::default();
        locks.insert(object, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn object(number: u128) -> ObjectDigest {
        ObjectDigest::parse(&Uuid::from_u128(number).to_string()).unwrap()
    }

    #[tokio::test]
    async fn one_job_of_an_object_has_the_guard() {
        let locks = ObjectLocks::default();
        let guard = locks.try_lock(object(1)).unwrap();
        assert!(locks.try_lock(object(1)).is_none());
        assert!(locks.try_lock(object(2)).is_some());
        drop(guard);
        drop(locks.lock(object(1)).await);
    }

    #[test]
    fn unused_locks_are_dropped() {
        let locks = ObjectLocks::default();
        for number in 0..100_000 {
            assert!(locks.try_lock(object(number)).is_some());
        }
        assert!(locks.locks.lock().capacity() < 4 * MIN_CLEANUP);
    }
}
