//! Connection test by message: it takes a slot like a job, and its answer goes to the requester's
//! reply queue.
//!
//! The answer is the only result, so the broker confirms it before the request is acknowledged. A
//! worker that loses its connection in between receives the request again and tests again, so a
//! requester may see two answers with one correlation id. A request that can't be tested is
//! answered, too. Without a reply queue, or when the answer can't be delivered within its time
//! limit, the request is dead-lettered: it never circulates, and no later try would do better.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Permit};
use super::decode::{Decoder, Rejection, require_body};
use super::parts::WorkerParts;
use super::settle::JobSettler;
use crate::check::{CheckReport, CheckStep, StepName};
use crate::domain::control::{Control, ControlCommand};
use crate::domain::destination::{Destination, DestinationIdentity};
use crate::domain::diagnosis::Code;
use crate::domain::job::wire::read_check;
use crate::domain::outcome::{Class, Failure, Reason};
use crate::queue::{Delivery, QueueError, Reply, Settlement};

/// AMQP `type` of a connection test, and of its answer.
pub(super) const CHECK_TYPE: &str = "consign.check.v1";
/// Redeliveries from which on a request is taken for one that crashes workers. The queue replaces
/// messages that were redelivered still more often.
const MAX_REDELIVERIES: u64 = 400;
/// Remedy for a message whose error names its own field.
const CORRECT_MESSAGE: &str = "correct the message; `consign schema check` describes it";
/// Remedy for a defect of the workers.
const ASK_OPERATOR: &str =
    "ask the operator of the workers: the request is in the dead letters, and the log has the details";

/// Performs connection tests.
#[derive(Debug)]
pub(super) struct Checks {
    pub(super) parts: Arc<WorkerParts>,
    pub(super) decoder: Arc<Decoder>,
    pub(super) admission: Arc<Admission>,
    pub(super) settler: Arc<JobSettler>,
    /// Ends a running test; its request is requeued.
    pub(super) cancel: CancellationToken,
}

impl Checks {
    /// Tests, answers, acknowledges.
    pub(super) async fn run(&self, delivery: Delivery, permit: Permit) {
        let to = delivery.properties.reply_to.clone().filter(|to| !to.is_empty());
        let (destination, to) = match (self.decode(&delivery), to) {
            (Ok(destination), Some(to)) => (destination, to),
            (Err(rejection), Some(to)) => return self.decline(delivery, to, rejection).await,
            (Err(rejection), None) => return self.settler.reject(delivery, *rejection).await,
            (Ok(_), None) => return self.settler.reject(delivery, *without_reply_queue()).await,
        };
        let tested = self.cancel.run_until_cancelled(self.test(&destination)).await;
        // Waiting for the broker needs no slot.
        drop(permit);
        match tested {
            Some(Ok(report)) => {
                if report.verdict == crate::check::CheckVerdict::Ready {
                    self.reset(&destination.identity).await;
                }
                self.answer(delivery, to, &report, None).await;
            }
            None => drop(self.settler.settle(delivery, Settlement::Requeue, Vec::new()).await),
            Some(Err(failure)) => self.decline(delivery, to, Rejection::new(failure)).await,
        }
    }

    fn decode(&self, delivery: &Delivery) -> Result<Arc<Destination>, Box<Rejection>> {
        if delivery.delivery_count >= MAX_REDELIVERIES {
            let count = delivery.delivery_count;
            let message = format!("the message was redelivered {count} times and never settled; it crashes workers");
            return Err(Rejection::new(Failure::new(Reason::CrashLoop, message)));
        }
        require_body(&delivery.properties).map_err(|rejected| Rejection::of(&rejected))?;
        let wanted = read_check(&delivery.body).map_err(|rejected| Rejection::of(&rejected))?;
        self.decoder.admit(&wanted, delivery).map_err(Rejection::new)
    }

    /// Answers a request that can't be tested.
    async fn decline(&self, delivery: Delivery, to: String, rejection: Box<Rejection>) {
        let failure = &rejection.failure;
        tracing::warn!(
            event = "connection_test_declined",
            reason = failure.reason.as_str(),
            cause = %failure.message,
            next = "the answer names the problem; nothing is tested",
            remedy = "correct the request",
            "connection test declined"
        );
        let defect = failure.class() == Class::Defect;
        // A message that crashes workers may do so while it is read.
        let requested =
            if defect { None } else { read_check(&delivery.body).ok().map(|wanted| wanted.id().to_string()) };
        let remedy = match failure.hint.as_str() {
            _ if defect => ASK_OPERATOR,
            "" => CORRECT_MESSAGE,
            hint => hint,
        };
        let step = CheckStep::failed(StepName::Configuration, Code::Unexpected, failure.message.as_str(), remedy);
        let report = CheckReport::of_worker(None, self.parts.now(), 0.0, vec![step]);
        self.answer(delivery, to, &CheckReport { destination: requested, ..report }, Some(rejection)).await;
    }

    /// Resets the destination in this worker at once, and in the others through the control stream.
    async fn reset(&self, destination: &DestinationIdentity) {
        self.admission.recovery.reset(destination);
        let control = Control::new(ControlCommand::ResetCircuit(destination.clone()), self.parts.now());
        if let Err(error) = self.parts.queue.publish_control(control.render().into()).await {
            tracing::warn!(
                event = "reset_not_published",
                destination = %destination.id(),
                %error,
                next = "they find out with their own probes",
                remedy = "run `consign status reset DEST`",
                "other workers were not notified of a recovered destination"
            );
        }
    }

    /// Runs the test behind its panic boundary. It bounds its time itself.
    async fn test(&self, destination: &Arc<Destination>) -> Result<CheckReport, Failure> {
        let test = self.parts.transport.test(destination, &self.parts.egress_addresses);
        AssertUnwindSafe(test).catch_unwind().await.map_err(|_| {
            let message =
                "the connection test panicked, which is a defect of consign; the log of the worker has the place";
            Failure::new(Reason::Panic, message)
        })
    }

    /// Publishes the answer and settles the request. `declined` is why nothing was tested.
    async fn answer(&self, delivery: Delivery, to: String, report: &CheckReport, declined: Option<Box<Rejection>>) {
        let failed = report.steps.iter().find(|step| step.result == crate::check::StepResult::Failed);
        tracing::info!(
            event = "connection_tested",
            destination = report.destination,
            verdict = report.verdict.as_str(),
            seconds = report.duration_seconds,
            code = failed.map(|step| step.code.as_str()),
            "connection tested"
        );
        let reply = Reply {
            to,
            correlation_id: delivery.properties.correlation_id.clone(),
            kind: CHECK_TYPE.to_owned(),
            // Texts, numbers and lists: serde_json always serializes them.
            body: Bytes::from(serde_json::to_vec(report).unwrap_or_default()),
        };
        match self.cancel.run_until_cancelled(self.parts.queue.reply(reply)).await {
            Some(Ok(())) => match declined.filter(|rejection| rejection.failure.class() == Class::Defect) {
                // A message that crashes workers is kept for their developers.
                Some(defect) => self.settler.reject(delivery, *defect).await,
                None => drop(self.settler.settle(delivery, Settlement::Ack, Vec::new()).await),
            },
            Some(Err(problem)) if self.parts.queue.can_settle(delivery.ticket) => {
                tracing::warn!(
                    event = "connection_test_unanswered",
                    %problem,
                    next = "the request is dead-lettered",
                    remedy = "name a reply queue that broker.reply_to permits, and keep it until the answer arrives",
                    "the answer to a connection test can't be delivered"
                );
                self.settler.reject(delivery, *declined.unwrap_or_else(|| undeliverable(problem))).await;
            }
            // A drain interrupts it, or the request is redelivered anyway.
            Some(Err(_)) | None => drop(self.settler.settle(delivery, Settlement::Requeue, Vec::new()).await),
        }
    }
}

fn without_reply_queue() -> Box<Rejection> {
    let message = "reply_to: is missing; without it the connection test can't answer";
    Rejection::new(Failure::new(Reason::InvalidJob, message).hint("set the AMQP property reply_to"))
}

fn undeliverable(problem: QueueError) -> Box<Rejection> {
    let why = match problem {
        QueueError::Refused(why) | QueueError::Topology(why) | QueueError::Unavailable(why) => why,
        problem => problem.to_string(),
    };
    let message = format!("reply_to: the answer to the connection test can't be delivered: {why}");
    Rejection::new(
        Failure::new(Reason::InvalidJob, message)
            .hint("name a reply queue that broker.reply_to permits, and keep it until the answer is there"),
    )
}
