//! From a message to work: the job in it and its destination, or a refusal that names the field.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Worker, settlement};
use crate::domain::destination::{Destination, DestinationId};
use crate::domain::job::lease::Lease;
use crate::domain::job::{self, DestinationRef, Job, JobId, Rejected};
use crate::domain::outcome::{Failure, OutcomeKind, Reason};
use crate::queue::Delivery;
use crate::telemetry::spans;

/// A message that is work.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) job: Job,
    pub(super) destination: Arc<Destination>,
    /// What came with the job, where somebody was at it before.
    pub(super) lease: Option<Lease>,
}

/// Why a message is no work for this worker, and whatever could be read of it.
#[derive(Debug)]
pub(super) struct Refusal {
    failure: Failure,
    job: Option<Job>,
    rejected: Option<Rejected>,
    lease: Option<Lease>,
}

impl Refusal {
    pub(super) fn new(failure: Failure) -> Box<Self> {
        Box::new(Self { failure, job: None, rejected: None, lease: None })
    }

    pub(super) fn of(rejected: Rejected) -> Box<Self> {
        let failure = settlement::rejection(&rejected);
        Box::new(Self { rejected: Some(rejected), ..*Self::new(failure) })
    }

    pub(super) fn failure(&self) -> &Failure {
        &self.failure
    }

    fn identity(&self) -> (Option<&JobId>, Option<&DestinationId>) {
        match (&self.job, &self.rejected) {
            (Some(job), _) => (Some(&job.id), Some(job.destination.id())),
            (None, Some(rejected)) => (rejected.job_id.as_ref(), rejected.destination.as_ref()),
            (None, None) => (None, None),
        }
    }
}

/// A body that does not tell its destination came under the key of one: without it, nobody would be told what became of the job.
fn addressed(rejected: Rejected, delivery: &Delivery) -> Rejected {
    let key = delivery.routing_key.rsplit('.').next().unwrap_or_default();
    let destination = rejected.destination.or_else(|| DestinationId::parse(key).ok());
    Rejected { destination, ..rejected }
}

impl Worker {
    /// Reads the message and finds its destination.
    pub(super) fn admit(&self, delivery: &Delivery) -> Result<Admitted, Box<Refusal>> {
        let properties = &delivery.properties;
        let (content_type, id) = (properties.content_type.as_deref(), properties.message_id.as_deref());
        let leased = Lease::is_type(content_type);
        let lease = leased.then(|| Lease::decode(&delivery.body)).transpose().map_err(Refusal::of)?;
        let parsed = match &lease {
            Some(lease) => lease.job(id),
            None => job::parse(content_type, id, &delivery.body),
        };
        let job = match parsed {
            Ok(job) => job,
            Err(rejected) => return Err(Box::new(Refusal { lease, ..*Refusal::of(addressed(rejected, delivery)) })),
        };
        match self.resolve(&job.destination) {
            Ok(destination) => Ok(Admitted { job, destination, lease }),
            Err(failure) => Err(Box::new(Refusal { job: Some(job), lease, ..*Refusal::new(failure) })),
        }
    }

    /// The destination that a job or a question names.
    pub(super) fn resolve(&self, wanted: &DestinationRef) -> Result<Arc<Destination>, Failure> {
        let known = self.parts.destinations.borrow();
        match wanted {
            DestinationRef::Configured(id) => known.get(id).cloned().ok_or_else(|| {
                let message = format!("destination: there is no destination {id} in this worker's configuration");
                Failure::new(Reason::UnknownDestination, message).hint("configure it, or correct the message")
            }),
            DestinationRef::Inline(destination) if known.contains_key(&destination.id) => {
                let message = format!("destination.id: {} is the id of a configured destination", destination.id);
                Err(Failure::new(Reason::InvalidJob, message).hint("name that one, or give the inline one another id"))
            }
            DestinationRef::Inline(destination) => Ok(destination.clone()),
        }
    }

    /// To the dead letters, with the job as it came first.
    pub(super) async fn refuse(&self, delivery: Delivery, refusal: Refusal) {
        let trace = {
            let (job_id, destination) = refusal.identity();
            let named = job_id.map(JobId::as_str).or(delivery.properties.message_id.as_deref()).unwrap_or_default();
            self.trace_of(&delivery, named, destination.map(DestinationId::as_str).unwrap_or_default())
        };
        trace.run(self.refused(delivery, refusal)).await;
    }

    async fn refused(&self, mut delivery: Delivery, mut refusal: Refusal) {
        if let Some(lease) = refusal.lease.take() {
            (delivery.body, delivery.properties.content_type) = (lease.body, lease.content_type);
            if lease.checkpoint.is_some() {
                // Without a destination nobody can give it up.
                self.parts.metrics.multipart_orphaned();
            }
        }
        let failure = refusal.failure.clone();
        self.parts.metrics.decode_failed(delivery.lane, failure.reason);
        let (job_id, destination) = refusal.identity();
        tracing::warn!(
            job_id = job_id.map(tracing::field::display), lane = delivery.lane.as_str(),
            reason = failure.reason.as_str(), message = %failure.message, "a message was refused"
        );
        let labels: BTreeMap<_, _> = refusal.job.as_ref().map(|job| job.labels.clone()).unwrap_or_default();
        let (prefix, now) = (self.parts.prefix.as_str(), (self.parts.clock)());
        let verdict = settlement::refused((prefix, now), &delivery.properties, failure, job_id, destination, labels);
        self.board.refused(delivery.lane, &verdict, job_id, destination);
        spans::ended(OutcomeKind::Failed.as_str(), verdict.failure.as_ref());
        self.settle(delivery, verdict.settlement, verdict.event.into_iter().collect()).await;
    }
}
