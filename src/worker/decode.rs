//! Decodes a message: the job in it, its destination and its headers, or a rejection that names the
//! field.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::domain::destination::{Destination, DestinationId, Destinations, InlinePolicy, Invalid};
use crate::domain::generation::{ObjectDigest, ObjectGeneration};
use crate::domain::headers::JobHeaders;
use crate::domain::job::lease::{Checkpoint, Lease};
use crate::domain::job::{self, DestinationRef, Job, JobId, Rejected};
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, Reason};
use crate::domain::routing_key;
use crate::queue::{Delivery, DeliveryOrigin, Properties};

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
    /// Object and generation that the job writes; `None` if it has no generation.
    pub(super) fn written(&self) -> Option<ObjectGeneration> {
        let object = ObjectDigest::of(&self.destination.identity, self.job.key.as_str());
        self.headers.generation.map(|generation| ObjectGeneration { object, generation })
    }

    /// Unfinished upload that the delivery carried.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.lease.as_ref().and_then(|lease| lease.checkpoint.as_ref())
    }
}

/// Reason why a message is no job for this worker, and the parts of it that could be read.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) failure: Failure,
    /// Id of the job.
    pub(super) job_id: Option<JobId>,
    /// Destination under whose id the outcome is published.
    pub(super) destination: Option<DestinationId>,
    /// Text that stands for the destination in the id of the outcome. That of a forbidden job is
    /// its own: it must never pass for the outcome of a job that is not.
    pub(super) event_identity: String,
    /// Labels of the job.
    pub(super) labels: BTreeMap<String, String>,
    /// Lease of the message: the dead letter carries the job in it.
    pub(super) lease: Option<Lease>,
}

impl Rejection {
    pub(super) fn new(failure: Failure) -> Box<Self> {
        Box::new(Self {
            failure,
            job_id: None,
            destination: None,
            event_identity: String::new(),
            labels: BTreeMap::new(),
            lease: None,
        })
    }

    /// The field is named first.
    pub(super) fn of(rejected: &Rejected) -> Box<Self> {
        Self::new(rejected.to_failure())
    }

    /// Adds what could be read of the message. The routing key says whose it is, and not the body:
    /// permissions of the broker bind a producer to the keys of its own destinations.
    fn of_message(failure: Failure, delivery: &Delivery, read: Result<Job, Rejected>) -> Box<Self> {
        let (job_id, named, identity, labels) = match read {
            Ok(job) => {
                let identity = job.destination.identity();
                (Some(job.id), Some(identity.id().clone()), Some(identity), job.labels)
            }
            Err(rejected) => (rejected.job_id, rejected.destination, None, BTreeMap::new()),
        };
        let addressed = addressed(delivery);
        let destination = if is_public(delivery) { addressed } else { named.or(addressed) };
        let identity = identity.filter(|identity| Some(identity.id()) == destination.as_ref());
        let mut event_identity = identity.map(|identity| identity.to_string());
        if failure.reason == Reason::DestinationForbidden {
            let id = || destination.as_ref().map(ToString::to_string).unwrap_or_default();
            event_identity = Some(format!("{}\n{}", event_identity.unwrap_or_else(id), delivery.publisher));
        }
        let event_identity = event_identity.or(destination.as_ref().map(ToString::to_string)).unwrap_or_default();
        Box::new(Self { job_id, destination, event_identity, labels, ..*Self::new(failure) })
    }
}

/// Decodes messages against the configured destinations.
#[derive(Debug)]
pub(super) struct Decoder {
    destinations: watch::Receiver<Arc<Destinations>>,
    inline: InlinePolicy,
}

impl Decoder {
    /// `inline` has the rules for destinations that come in jobs.
    pub(super) fn new(destinations: watch::Receiver<Arc<Destinations>>, inline: InlinePolicy) -> Self {
        Self { destinations, inline }
    }

    /// Decodes a job, or the job in a lease, and finds its destination.
    pub(super) fn decode(&self, delivery: &Delivery) -> Result<DecodedJob, Box<Rejection>> {
        let (read, lease) = read(delivery);
        let admitted = match &read {
            Ok(job) => self.admit(&job.destination, delivery),
            // Who may not use the destination must not report failures of its jobs, either.
            Err(rejected) => match self.configured(addressed(delivery).as_ref()) {
                Some(destination) if !may_publish(&destination, delivery) => Err(forbidden(&destination, delivery)),
                _ => Err(rejected.to_failure()),
            },
        };
        match (read, admitted) {
            (Ok(job), Ok(destination)) => {
                let mut headers = JobHeaders::parse(&delivery.properties.headers);
                headers.generation = headers.generation.or(job.generation_or(delivery.properties.timestamp));
                Ok(DecodedJob { job, destination, lease, headers })
            }
            (read, Err(failure)) => {
                let rejection = Rejection::of_message(failure, delivery, read);
                Err(Box::new(Rejection { lease, ..*rejection }))
            }
            (Err(rejected), Ok(_)) => Err(Rejection::of(&rejected)),
        }
    }

    /// Finds the destination that a job or a connection test names, if its publisher may use it.
    pub(super) fn admit(&self, wanted: &DestinationRef, delivery: &Delivery) -> Result<Arc<Destination>, Failure> {
        require_routing_key(wanted.id(), delivery)?;
        let destination = self.resolve(wanted)?;
        if may_publish(&destination, delivery) { Ok(destination) } else { Err(forbidden(&destination, delivery)) }
    }

    fn configured(&self, id: Option<&DestinationId>) -> Option<Arc<Destination>> {
        self.destinations.borrow().get(id?).cloned()
    }

    fn resolve(&self, wanted: &DestinationRef) -> Result<Arc<Destination>, Failure> {
        match (wanted, self.configured(Some(wanted.id()))) {
            (DestinationRef::Configured(_), Some(destination)) => Ok(destination),
            (DestinationRef::Configured(id), None) => {
                let message = format!("destination: there is no destination {id} in this worker's configuration");
                Err(Failure::new(Reason::UnknownDestination, message)
                    .hint("correct the id in the job, or add the destination to the configuration"))
            }
            (DestinationRef::Inline(inline), Some(_)) => {
                let message = format!("destination.id: {} is the id of a configured destination", inline.id);
                Err(Failure::new(Reason::InvalidJob, message)
                    .hint("use the configured destination, or give the inline one another id"))
            }
            (DestinationRef::Inline(inline), None) => match self.inline.check(inline) {
                Ok(()) => Ok(inline.clone()),
                Err(problem) => Err(Failure::new(Reason::DestinationForbidden, inline_refusal(&problem))),
            },
        }
    }
}

fn inline_refusal(problem: &Invalid) -> String {
    let field = if problem.field.is_empty() { String::new() } else { format!(".{}", problem.field) };
    format!("destination{field}: {}", problem.problem)
}

/// Reads the job of a message, and the lease that it is in.
fn read(delivery: &Delivery) -> (Result<Job, Rejected>, Option<Lease>) {
    let Properties { content_type, message_id, .. } = &delivery.properties;
    let (content_type, id) = (content_type.as_deref(), message_id.as_deref());
    if let Err(rejected) = require_body(&delivery.properties) {
        return (Err(rejected), None);
    }
    if !Lease::is_type(content_type) {
        return (job::parse(content_type, id, &delivery.body), None);
    }
    if delivery.origin == DeliveryOrigin::Producer {
        return (Err(job::forged_lease(id)), None);
    }
    match Lease::decode(&delivery.body) {
        Ok(lease) => {
            // Where nobody knows who wrote it, the checkpoint is left out.
            let trusted = delivery.origin == DeliveryOrigin::Worker;
            let checkpoint = lease.checkpoint.clone().filter(|_| trusted);
            (lease.job(id), Some(Lease { checkpoint, ..lease }))
        }
        Err(rejected) => (Err(rejected), None),
    }
}

/// Returns true for a message of a lane that producers publish to.
fn is_public(delivery: &Delivery) -> bool {
    delivery.lane != Lane::Continued
}

/// Destination that the routing key names.
fn addressed(delivery: &Delivery) -> Option<DestinationId> {
    DestinationId::parse(routing_key::destination(&delivery.routing_key)?).ok()
}

/// The last word of the routing key is the destination: permissions of the broker on routing keys
/// bind a producer to its destinations.
fn require_routing_key(wanted: &DestinationId, delivery: &Delivery) -> Result<(), Failure> {
    if !is_public(delivery) || addressed(delivery).as_ref() == Some(wanted) {
        return Ok(());
    }
    let key = routing_key::job(routing_key::published_lane(&delivery.routing_key), wanted);
    let message = format!("routing_key: does not end in the job's destination; publish this job as {key}");
    Err(Failure::new(Reason::InvalidJob, message))
}

fn may_publish(destination: &Destination, delivery: &Delivery) -> bool {
    destination.publishers.is_empty() || destination.publishers.contains(&delivery.publisher)
}

fn forbidden(destination: &Destination, delivery: &Delivery) -> Failure {
    let id = &destination.id;
    let who = match delivery.publisher.as_str() {
        "" => "a message without the AMQP property user_id".to_owned(),
        user => format!("the broker's user {user}"),
    };
    let message =
        format!("destination: {who} may not publish jobs for {id}; destinations.{id}.publishers names who may");
    let hint = "publish with the login of one of them and user_id set to it, or add the user there";
    Failure::new(Reason::DestinationForbidden, message).hint(hint)
}

/// Rejects a message whose body was too large to be read.
pub(super) fn require_body(properties: &Properties) -> Result<(), Rejected> {
    properties.unread.map_or(Ok(()), |size| Err(job::unread(size, properties.message_id.as_deref())))
}

#[cfg(test)]
mod tests;
