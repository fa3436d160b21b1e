//! The embedded queue: one SQLite file, for one machine. The only place that imports rusqlite.

use std::path::Path;
use std::sync::Arc;

use crate::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::amqp::Amqp;
use crate::queue::{OutcomeMessage, QueueError};

/// The embedded queue.
#[derive(Debug)]
pub struct Embedded;

impl Embedded {
    /// Opens the file.
    ///
    /// # Errors
    /// Not yet there.
    pub fn start(
        file: &Path,
        _prefix: &str,
        _worker_id: &str,
        _lanes: Vec<(Lane, u16)>,
        _metrics: Arc<Metrics>,
    ) -> Result<Arc<Amqp>, QueueError> {
        Err(not_yet(file))
    }
}

/// A subscription to the outcomes in the file.
#[derive(Debug)]
pub struct Outcomes;

impl Outcomes {
    /// Subscribes.
    ///
    /// # Errors
    /// Not yet there.
    pub async fn subscribe(file: &Path, _prefix: &str) -> Result<Self, QueueError> {
        Err(not_yet(file))
    }

    /// The next outcome.
    ///
    /// # Errors
    /// Not yet there.
    pub async fn next(&mut self) -> Result<OutcomeMessage, QueueError> {
        std::future::pending().await
    }
}

fn not_yet(file: &Path) -> QueueError {
    QueueError::Unusable(format!("{}: the embedded queue is being built", file.display()))
}
