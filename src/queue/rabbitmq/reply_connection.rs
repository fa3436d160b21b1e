//! Connection of the replies to queues, opened by the first reply and replaced when it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection;
use super::context::QueueContext;
use super::health::{self, SessionHealth};
use super::publisher::Publisher;
use crate::queue::QueueError;

/// Replies in flight at once.
const MAX_CHANNELS: usize = 64;
/// Time without another try after a failed one: a broker that limits connections must not be asked
/// once for each reply.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Current connection, if any.
#[derive(Default)]
pub(super) struct ReplyConnection(Mutex<ReplyConnectionState>);

#[derive(Default)]
enum ReplyConnectionState {
    #[default]
    None,
    /// With the tasks that watch it.
    Open(Arc<Publisher>, JoinSet<()>),
    Failed(Instant, QueueError),
}

impl ReplyConnection {
    /// Returns the publisher, and connects if necessary.
    pub(super) async fn publisher(&self, context: &QueueContext) -> Result<Arc<Publisher>, QueueError> {
        let mut state = self.0.lock().await;
        match &*state {
            ReplyConnectionState::Open(publisher, _) if publisher.is_usable() => return Ok(Arc::clone(publisher)),
            ReplyConnectionState::Failed(at, problem) if at.elapsed() < CONNECT_PAUSE => return Err(problem.clone()),
            _ => {}
        }
        let connection = match context.endpoint.connect("replies").await {
            Ok(connection) => connection,
            Err(problem) => {
                *state = ReplyConnectionState::Failed(Instant::now(), problem.clone());
                return Err(problem);
            }
        };
        let (health, mut tasks) = (Arc::<SessionHealth>::default(), JoinSet::new());
        health::watch(&mut tasks, &connection, &health);
        // Not counted as unconfirmed: a reply queue that does not confirm is no fault of the broker.
        let publisher = Arc::new(Publisher::with_channels(MAX_CHANNELS, connection, health));
        *state = ReplyConnectionState::Open(Arc::clone(&publisher), tasks);
        Ok(publisher)
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        if let ReplyConnectionState::Open(publisher, mut watchers) = std::mem::take(&mut *self.0.lock().await) {
            watchers.shutdown().await;
            connection::close(&publisher.connection).await;
        }
    }
}
