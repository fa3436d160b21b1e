//! Answers to askers that have no queue of their own. The broker takes a name that somebody made up for an error of the whole
//! connection by which the answer comes, so these have one to themselves: it must not end anybody's work.

use std::time::Duration;

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::Mutex;

use super::connection::{self, Endpoint, Line, call};
use super::publish::{self, Message, Problem};
use crate::queue::QueueError;

/// How the names of such askers begin. The broker hands such an answer over and yet returns it as unroutable if it is mandatory
/// (<https://www.rabbitmq.com/docs/direct-reply-to>).
const NAME: &str = "amq.rabbitmq.reply-to.";
/// A broker that does not confirm within this time takes no answers at the moment.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether who is to be answered has no queue.
pub(super) fn is_direct(to: &str) -> bool {
    to.starts_with(NAME)
}

/// The way to them, opened by the first answer. One goes at a time: then it is known which one ended the connection.
#[derive(Default)]
pub(super) struct Direct(Mutex<Option<Open>>);

struct Open {
    line: Line,
    channel: Channel,
}

impl Open {
    async fn new(endpoint: &Endpoint) -> Result<Self, QueueError> {
        let line = Line::connect(endpoint, "replies").await?;
        let channel = line.open_channel().await?;
        call("switching confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self { line, channel })
    }
}

impl Direct {
    /// Publishes and awaits the confirm.
    ///
    /// # Errors
    /// `Refused` when the broker can't do with the name, `Unavailable` when it is not to be had.
    pub(super) async fn publish(&self, endpoint: &Endpoint, message: &Message) -> Result<(), QueueError> {
        let mut held = self.0.lock().await;
        let open = match held.take().filter(|open| open.channel.status().connected()) {
            Some(open) => open,
            None => Open::new(endpoint).await?,
        };
        let problem = match tokio::time::timeout(CONFIRM_TIMEOUT, publish::send(&open.channel, message)).await {
            Ok(Ok(confirmation)) => {
                *held = Some(open);
                return publish::verdict(confirmation);
            }
            Ok(Err(Problem::Name(problem))) => problem,
            Ok(Err(Problem::Broker(error))) if connection::blames(&error) => {
                QueueError::Refused(connection::text(&error))
            }
            Ok(Err(Problem::Broker(error))) => connection::unavailable(&error),
            Err(_) => QueueError::Unavailable(format!("no confirm within {} s", CONFIRM_TIMEOUT.as_secs())),
        };
        open.line.close().await;
        Err(problem)
    }

    /// Says goodbye.
    pub(super) async fn close(&self) {
        if let Some(open) = self.0.lock().await.take() {
            open.line.close().await;
        }
    }
}
