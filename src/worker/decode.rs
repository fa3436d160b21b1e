//! Decodes a message: the job in it, its destination and its headers, or a rejection that names the
//! field.

use std::sync::Arc;

use tokio::sync::watch;

use crate::domain::destination::{Destination, DestinationId, Destinations};
use crate::domain::headers::JobHeaders;
use crate::domain::job::lease::{Checkpoint, Lease};
use crate::domain::job::{self, DestinationRef, Job, JobId, Rejected};
use crate::domain::outcome::{Failure, Reason};
use crate::domain::routing_key;
use crate::queue::{Delivery, Properties};

/// Job of a delivery, with everything that came with it.
#[derive(Debug)]
pub(super) struct DecodedJob {
    pub(super) job: Job,
    pub(super) destination: Arc<Destination>,
    /// Lease that the delivery carried, when another worker or attempt started the transfer.
    pub(super) lease: Option<Lease>,
    pub(super) headers: JobHeaders,
}

impl DecodedJob {
    /// Unfinished upload that the delivery carried.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.lease.as_ref().and_then(|lease| lease.checkpoint.as_ref())
    }
}

/// Reason why a message is no job for this worker, and the parts of it that could be read.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) failure: Failure,
    job: Option<Job>,
    rejected: Option<Rejected>,
    /// Lease of the message: the dead letter carries the job in it.
    pub(super) lease: Option<Lease>,
}

impl Rejection {
    pub(super) fn new(failure: Failure) -> Box<Self> {
        Box::new(Self { failure, job: None, rejected: None, lease: None })
    }

    /// The field is named first.
    pub(super) fn of(rejected: Rejected) -> Box<Self> {
        let failure = Failure::new(rejected.reason, format!("{}: {}", rejected.field, rejected.message));
        Box::new(Self { rejected: Some(rejected), ..*Self::new(failure) })
    }

    /// Id and destination of the job, as far as they could be read.
    pub(super) fn identity(&self) -> (Option<&JobId>, Option<&DestinationId>) {
        match (&self.job, &self.rejected) {
            (Some(job), _) => (Some(&job.id), Some(job.destination.id())),
            (None, Some(rejected)) => (rejected.job_id.as_ref(), rejected.destination.as_ref()),
            (None, None) => (None, None),
        }
    }

    /// Job that was read, when only its destination is wrong.
    pub(super) fn job(&self) -> Option<&Job> {
        self.job.as_ref()
    }
}

/// Decodes messages against the configured destinations.
#[derive(Debug)]
pub(super) struct Decoder {
    destinations: watch::Receiver<Arc<Destinations>>,
}

impl Decoder {
    pub(super) fn new(destinations: watch::Receiver<Arc<Destinations>>) -> Self {
        Self { destinations }
    }

    /// Decodes a job, or the job in a lease, and finds its destination.
    pub(super) fn decode(&self, delivery: &Delivery) -> Result<DecodedJob, Box<Rejection>> {
        let properties = &delivery.properties;
        let (content_type, id) = (properties.content_type.as_deref(), properties.message_id.as_deref());
        require_body(properties).map_err(|rejected| Rejection::of(with_destination(rejected, delivery)))?;
        let leased = Lease::is_type(content_type);
        let lease = leased.then(|| Lease::decode(&delivery.body)).transpose().map_err(Rejection::of)?;
        let parsed = match &lease {
            Some(lease) => lease.job(id),
            None => job::parse(content_type, id, &delivery.body),
        };
        let job = match parsed {
            Ok(job) => job,
            Err(rejected) => {
                let rejection = Rejection::of(with_destination(rejected, delivery));
                return Err(Box::new(Rejection { lease, ..*rejection }));
            }
        };
        match self.resolve(&job.destination) {
            Ok(destination) => {
                Ok(DecodedJob { job, destination, lease, headers: JobHeaders::parse(&properties.headers) })
            }
            Err(failure) => Err(Box::new(Rejection { job: Some(job), lease, ..*Rejection::new(failure) })),
        }
    }

    /// Finds the destination that a job or a connection test names.
    pub(super) fn resolve(&self, wanted: &DestinationRef) -> Result<Arc<Destination>, Failure> {
        let configured = self.destinations.borrow();
        match wanted {
            DestinationRef::Configured(id) => configured.get(id).cloned().ok_or_else(|| {
                let message = format!("destination: there is no destination {id} in this worker's configuration");
                Failure::new(Reason::UnknownDestination, message).hint("configure it, or correct the message")
            }),
            DestinationRef::Inline(destination) if configured.contains_key(&destination.id) => {
                let message = format!("destination.id: {} is the id of a configured destination", destination.id);
                Err(Failure::new(Reason::InvalidJob, message).hint("name that one, or give the inline one another id"))
            }
            DestinationRef::Inline(destination) => Ok(destination.clone()),
        }
    }
}

/// Rejects a message whose body was too large to be read.
pub(super) fn require_body(properties: &Properties) -> Result<(), Rejected> {
    properties.unread.map_or(Ok(()), |size| Err(job::unread(size, properties.message_id.as_deref())))
}

/// Takes the destination from the routing key when the body does not tell it: without one, nobody
/// would be notified of the job's end.
fn with_destination(rejected: Rejected, delivery: &Delivery) -> Rejected {
    let by_key = || DestinationId::parse(routing_key::destination(&delivery.routing_key)?).ok();
    let destination = rejected.destination.or_else(by_key);
    Rejected { destination, ..rejected }
}
