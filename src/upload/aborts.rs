//! Tasks that abort unfinished uploads in the background.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Aborts that run in the background.
#[derive(Debug, Default)]
pub(super) struct BackgroundAborts {
    tasks: TaskTracker,
    finishing: CancellationToken,
}

impl BackgroundAborts {
    /// Gives every abort that waits its last try, at once, and returns when all have ended, or
    /// after `limit`. For a worker that exits: what is open then may stay in the bucket.
    pub(super) async fn finish(&self, limit: Duration) {
        self.finishing.cancel();
        self.tasks.close();
        if timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                event = "aborts_unfinished",
                uploads = self.tasks.len(),
                next = "the worker exits; parts of these uploads may stay in their buckets",
                remedy = "give the buckets a lifecycle rule for incomplete uploads",
                "some uploads could not be aborted before the worker exits"
            );
        }
    }

    /// Returns the result of `wait`, or `None` as soon as aborts have to finish.
    pub(super) async fn unless_finishing<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.finishing.run_until_cancelled(wait).await
    }

    /// Runs an abort in the background.
    pub(super) fn spawn(&self, abort: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime, the process exits.
        if let Ok(runtime) = Handle::try_current() {
            self.tasks.spawn_on(abort, &runtime);
        }
    }
}
