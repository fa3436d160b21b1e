//! The reports of the past: those that were published before this worker read the control stream.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Longest time for which first attempts wait for reports that were published while the connection
/// was lost. No delivery depends on the control stream.
const MAX_INTERRUPTION: Duration = Duration::from_secs(10);

/// Reading of the reports of the past.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Time from which on all of them count as read; `None` until they were read once.
    read_from: Mutex<Option<Instant>>,
    /// True while all reports are read as they come.
    current: AtomicBool,
    changed: Notify,
}

impl Backlog {
    /// Records that all of them were read.
    pub(super) fn caught_up(&self) {
        *self.read_from.lock() = Some(Instant::now());
        self.current.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Records that some may have been missed. They count as read again after
    /// [`Backlog::caught_up`], or after [`MAX_INTERRUPTION`].
    pub(super) fn interrupted(&self) {
        self.current.store(false, Ordering::Relaxed);
        let mut read_from = self.read_from.lock();
        let now = Instant::now();
        // A connection that is lost again and again must not keep jobs waiting for ever.
        if read_from.is_none_or(|at| at <= now) {
            *read_from = Some(now + MAX_INTERRUPTION);
        }
        drop(read_from);
        self.changed.notify_waiters();
    }

    /// Returns true if all of them were read, and the connection was not lost since.
    pub(super) fn is_current(&self) -> bool {
        self.current.load(Ordering::Relaxed)
    }

    /// Returns true if all of them count as read.
    pub(super) fn is_read(&self) -> bool {
        self.read_from.lock().is_some_and(|at| at <= Instant::now())
    }

    /// Waits until all of them count as read.
    pub(super) async fn wait(&self) {
        while !self.is_read() {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let read_from = *self.read_from.lock();
            match read_from {
                Some(at) => drop(timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_read_once_the_worker_has_caught_up() {
        let backlog = Backlog::default();
        tokio::time::advance(MAX_INTERRUPTION * 2).await;
        assert!(backlog.wait().now_or_never().is_none());
        let waiting = async { tokio::join!(backlog.wait(), async { backlog.caught_up() }) };
        waiting.await;
        assert!(backlog.is_read());
    }

    #[tokio::test(start_paused = true)]
    async fn an_interruption_is_waited_for_and_ends_with_the_missed_reports_or_in_time() {
        let backlog = Backlog::default();
        backlog.caught_up();
        backlog.interrupted();
        assert!(!backlog.is_read());
        backlog.caught_up();
        assert!(backlog.wait().now_or_never().is_some());
        let lost = Instant::now();
        backlog.interrupted();
        tokio::time::advance(MAX_INTERRUPTION / 2).await;
        // A second interruption does not extend the wait.
        backlog.interrupted();
        backlog.wait().await;
        assert_eq!(lost.elapsed().as_secs(), MAX_INTERRUPTION.as_secs());
    }
}
