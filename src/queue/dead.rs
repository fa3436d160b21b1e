//! Dead letters, whichever queue they are on: looked at one by one, requeued, discarded, exported and put back.
//!
//! Nothing here is lost to a kill: a letter is removed only after what replaces it is confirmed. A kill between the two leaves
//! the letter, and requeuing it again gives its job the same run number: the same outcome, which counts once.

mod letter;

use super::{QueueError, rabbitmq, sqlite};
use crate::config::BrokerConfig;

pub(in crate::queue) use letter::is_of_the_past;
pub(in crate::queue) use letter::names;
pub use letter::{DeadLetter, LetterId};

/// One pass over the dead letters of one `broker.prefix`.
///
/// The pass sees each letter that was there when it was opened once, and none that came later: a job that is requeued and fails
/// again at once does not come round. On RabbitMQ a quorum queue can't be peeked, so the pass holds what it has seen until it is
/// closed; meanwhile a second pass is refused, and the order may differ from one pass to the next. On the embedded queue letters
/// come oldest first, and passes do not hinder each other.
///
/// [`DeadLetters::requeue`] and [`DeadLetters::discard`] act on the letter that [`DeadLetters::next`] gave last. Every other one
/// stays, also when this is dropped.
pub struct DeadLetters(Source);

enum Source {
    RabbitMqQueue(Box<rabbitmq::DeadLetters>),
    SqliteQueue(Box<sqlite::DeadLetters>),
}

impl DeadLetters {
    /// Begins a pass. `name` names the connection.
    ///
    /// # Errors
    /// `Busy` while another pass is under way on RabbitMQ; `Topology` without the queue of dead letters; `Unavailable` when the broker
    /// can't be reached; `Unusable` as [`super::start`].
    pub async fn open(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        Ok(Self(match config.embedded_file() {
            Some(file) => Source::SqliteQueue(Box::new(sqlite::DeadLetters::open(&file, &config.prefix).await?)),
            None => Source::RabbitMqQueue(Box::new(rabbitmq::DeadLetters::open(config, name).await?)),
        }))
    }

    /// How many letters there were when the pass began.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Source::RabbitMqQueue(letters) => letters.count(),
            Source::SqliteQueue(letters) => letters.count(),
        }
    }

    /// The next letter; `None` when all were seen.
    ///
    /// # Errors
    /// `Unavailable` when the broker is lost. Nothing is lost with it.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        match &mut self.0 {
            Source::RabbitMqQueue(letters) => letters.next().await,
            Source::SqliteQueue(letters) => letters.next().await,
        }
    }

    /// Puts the job of the last letter back into its lane as a new run: the same identity, `consign-run` raised by one, no attempt
    /// charged. Then the letter is removed.
    ///
    /// # Errors
    /// The letter stays. After `Lost` or `Unavailable` the job may be in its lane nevertheless.
    pub async fn requeue(&mut self) -> Result<(), QueueError> {
        match &mut self.0 {
            Source::RabbitMqQueue(letters) => letters.requeue().await,
            Source::SqliteQueue(letters) => letters.requeue().await,
        }
    }

    /// Removes the last letter for good.
    ///
    /// # Errors
    /// The letter stays, or nobody knows.
    pub async fn discard(&mut self) -> Result<(), QueueError> {
        match &mut self.0 {
            Source::RabbitMqQueue(letters) => letters.discard().await,
            Source::SqliteQueue(letters) => letters.discard().await,
        }
    }

    /// Puts a letter among the dead letters, confirmed. Whether it is there already is for the caller to know.
    ///
    /// # Errors
    /// `Refused` also for a routing key that leads to no lane: the letter could never be requeued. `Unavailable`.
    pub async fn put(&mut self, letter: &DeadLetter) -> Result<(), QueueError> {
        if !letter.can_be_requeued() {
            let key = letter.routing_key();
            let remedy = "use `job.scheduled.DEST` or `job.backfill.DEST`";
            return Err(QueueError::Refused(format!("no queue takes the routing key `{key}`; {remedy}")));
        }
        match &mut self.0 {
            Source::RabbitMqQueue(letters) => letters.put(letter).await,
            Source::SqliteQueue(letters) => letters.put(letter).await,
        }
    }

    /// Ends the pass: what was not removed is there for everybody again when this returns.
    pub async fn close(self) {
        match self.0 {
            Source::RabbitMqQueue(letters) => letters.close().await,
            Source::SqliteQueue(letters) => drop(letters),
        }
    }
}
