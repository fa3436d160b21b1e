//! Moderation of wake-ups, as network cards moderate their interrupts: the first one after a pause
//! is immediate, and later ones come together, at most every [`INTERVAL`].
//!
//! lapin reads each connection in a thread of its own. Without this, nearly every frame of a busy
//! broker wakes that thread alone, and the thread wakes the runtime for it. Together they are
//! cheaper, and so is everything that follows from them: acknowledgements and the next deliveries
//! leave together, too.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

/// Least time between two wake-ups. An idle connection adds nothing to a job; a busy one adds this
/// much at most to each answer of the broker.
const INTERVAL: Duration = Duration::from_millis(2);

/// Wake-ups of one reader. The runtime must outlive its connection.
#[derive(Debug)]
pub(super) struct WakeModerator {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Debug)]
struct Shared {
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Waker of the last poll; `None` when it was woken.
    reader: Option<Waker>,
    /// Time of the last wake-up.
    last: Option<Instant>,
    /// True while a wake-up is due.
    is_due: bool,
}

impl WakeModerator {
    pub(super) fn new(runtime: Handle) -> Self {
        let shared = Arc::new(Shared { runtime, state: Mutex::default() });
        Self { waker: Waker::from(shared.clone()), shared }
    }

    /// Returns a context that wakes the reader of `cx`, moderated.
    pub(super) fn moderate(&self, cx: &Context<'_>) -> Context<'_> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Context::from_waker(&self.waker)
    }
}

impl Shared {
    fn wake_now(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_due = false;
        state.last = Some(Instant::now());
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_due {
            return;
        }
        let next = state.last.map(|last| last + INTERVAL).filter(|next| *next > Instant::now());
        state.is_due = next.is_some();
        drop(state);
        match next {
            None => self.wake_now(),
            Some(next) => {
                let runtime = self.runtime.clone();
                runtime.spawn(async move {
                    sleep_until(next).await;
                    self.wake_now();
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Reader(AtomicUsize);

    impl Wake for Reader {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Reader {
        fn woken(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }

        /// As a poll that returned `Pending`.
        fn poll(self: &Arc<Self>, moderator: &WakeModerator) -> Waker {
            let waker = Waker::from(self.clone());
            moderator.moderate(&Context::from_waker(&waker)).waker().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_wake_up_is_immediate_and_later_ones_come_together() {
        let (reader, moderator) = (Arc::<Reader>::default(), WakeModerator::new(Handle::current()));
        reader.poll(&moderator).wake();
        assert_eq!(reader.woken(), 1);
        for _ in 0..3 {
            reader.poll(&moderator).wake();
        }
        assert_eq!(reader.woken(), 1);
        tokio::time::sleep(INTERVAL + Duration::from_millis(1)).await;
        assert_eq!(reader.woken(), 2);
        tokio::time::sleep(INTERVAL).await;
        reader.poll(&moderator).wake();
        assert_eq!(reader.woken(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_wake_up_reaches_the_reader_of_the_last_poll() {
        let (first, second) = (Arc::<Reader>::default(), Arc::<Reader>::default());
        let moderator = WakeModerator::new(Handle::current());
        first.poll(&moderator).wake();
        first.poll(&moderator).wake();
        second.poll(&moderator);
        tokio::time::sleep(INTERVAL * 2).await;
        assert_eq!((first.woken(), second.woken()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_up_is_not_lost_when_the_reader_polls_again_before_it_is_due() {
        let (reader, moderator) = (Arc::<Reader>::default(), WakeModerator::new(Handle::current()));
        reader.poll(&moderator).wake();
        let waker = reader.poll(&moderator);
        waker.wake_by_ref();
        reader.poll(&moderator);
        waker.wake();
        tokio::time::sleep(INTERVAL * 2).await;
        assert_eq!(reader.woken(), 2);
    }
}
