//! Control messages: commands of an operator for every worker of a fleet, and what the workers
//! report to each other, published to the stream `consign.control` alone.
//!
//! Every worker reads the messages of the last 7 days and then live ones. It may read one more than
//! once, so performing a command must be idempotent. All workers read them in the same order.

mod wire;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

pub use super::backfill_id::BackfillId;
use super::generation::ObjectDigest;
use crate::domain::destination::DestinationIdentity;
use crate::domain::outcome::Failure;
pub use wire::{VERSION, schema};

/// Days for which messages are kept, and for which their commands hold.
pub const KEPT_DAYS: u64 = 7;

/// Cancellations of a backfill that were published before a command started. They do not cover the
/// jobs that it publishes, and every other cancellation does, whatever any clock says.
///
/// As text, in a header and in the record: their ids with spaces between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EarlierCancellations(Vec<Uuid>);

impl EarlierCancellations {
    /// Collects those of `backfill` from control messages.
    pub fn of<'a>(backfill: &BackfillId, messages: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let messages = messages.into_iter().filter_map(|body| Control::parse(body).ok());
        let ours = messages.filter(|control| control.cancels(backfill));
        Self(ours.map(|control| control.id).collect())
    }

    /// Returns true for the id of one of them.
    pub fn contains(&self, id: Uuid) -> bool {
        self.0.contains(&id)
    }
}

impl std::fmt::Display for EarlierCancellations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.iter().map(Uuid::to_string).collect::<Vec<_>>().join(" "))
    }
}

impl std::str::FromStr for EarlierCancellations {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_whitespace().map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Command for every worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlCommand {
    /// Ends the jobs of this backfill that have not started as `skipped`.
    CancelBackfill(BackfillId),
    /// Closes the circuit breaker of this destination, and releases its delayed jobs. A bare id
    /// stands for all destinations of that id ([`DestinationIdentity::covers`]).
    ResetCircuit(DestinationIdentity),
    /// A worker with this address reads control messages from here on.
    WorkerStarted(String),
    /// The worker with this address stops.
    WorkerStopped(String),
    /// The run with this digest was delivered, and its message or lease may be redelivered.
    JobDelivered(Uuid),
    /// A worker observed this of a destination.
    Circuit(DestinationIdentity, CircuitChange),
    /// A worker writes, or may write late, a generation of this object.
    Generation(ObjectDigest, GenerationChange),
}

/// Report about a generation of an object. See `worker/generations.rs` for the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationChange {
    /// A job of this generation failed, was deferred, leased, handed off or requeued, and may write
    /// the object late. A worker that delivered, or delivers, a higher one reports that.
    Pending {
        /// Generation.
        generation: u64,
    },
    /// An attempt is about to write the object. Of those that write, the first in the stream's
    /// order does, and the others wait.
    Writing {
        /// Generation.
        generation: u64,
        /// Digest of the job's run.
        run: Uuid,
        /// Id of the write.
        write: Uuid,
    },
    /// A write ended, and nothing was delivered.
    Ended {
        /// Id of the write.
        write: Uuid,
    },
    /// A job of this generation was delivered. Lower ones are superseded.
    Delivered {
        /// Generation.
        generation: u64,
        /// Id of the job.
        job: Arc<str>,
        /// Id of the write that ended so, if it was reported.
        write: Option<Uuid>,
    },
}

/// Observation of one worker that the circuit breakers of all others share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CircuitChange {
    /// The destination denied a job. That is evidence, and not yet enough of it.
    Denied {
        /// Denial.
        failure: Box<Failure>,
        /// Key of the denied object, below the destination's prefix.
        key: String,
    },
    /// The breaker opened, or its probe ended.
    Opened {
        /// Last failure.
        failure: Box<Failure>,
        /// Failed probes so far.
        probes: u32,
        /// Time until the next probe.
        next_probe: Duration,
    },
    /// A worker claims the probe that is due. The first claim in the stream's order has it.
    Probing,
    /// The breaker closed: the destination accepted data.
    Closed,
}

/// Control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Unique id; the same when the message is read again.
    pub id: Uuid,
    /// Time of the request.
    pub at: Timestamp,
    /// Command.
    pub command: ControlCommand,
}

impl Control {
    /// Creates a message with a new id.
    pub fn new(command: ControlCommand, at: Timestamp) -> Self {
        Self { id: Uuid::new_v4(), at, command }
    }

    /// Returns true for a cancellation of this backfill.
    pub fn cancels(&self, backfill: &BackfillId) -> bool {
        matches!(&self.command, ControlCommand::CancelBackfill(id) if id == backfill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_cancellations_are_those_of_the_backfill_and_survive_as_text() {
        let cancel = |id: &str| {
            let command = ControlCommand::CancelBackfill(BackfillId::parse(id).unwrap());
            Control::new(command, Timestamp::UNIX_EPOCH)
        };
        let (first, other, second) = (cancel("b"), cancel("c"), cancel("b"));
        let messages = [first.render(), other.render(), b"no message".to_vec(), second.render()];
        let earlier = EarlierCancellations::of(&BackfillId::parse("b").unwrap(), messages.iter().map(Vec::as_slice));
        assert_eq!([first.id, other.id, second.id].map(|id| earlier.contains(id)), [true, false, true]);
        assert_eq!(earlier.to_string().parse(), Ok(earlier));
        assert_eq!("".parse(), Ok(EarlierCancellations::default()));
        assert!("b".parse::<EarlierCancellations>().is_err());
    }
}
