//! A connection test by message: it takes a slot like a job, and its answer goes to the asker's own queue.
//!
//! The answer is the only result there is, so it is confirmed by the broker before the question is acknowledged. Whoever loses its
//! connection in between gets the question again and tests again, so an asker may see two answers with one correlation id.
//! A question that can't be tested is answered, too: somebody waits. Without a reply queue, or where it is gone, it is dead-lettered,
//! because no later try would do better.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::{CRASH_LOOP, Permits, Refusal, Worker};
use crate::check::{CheckReport, CheckStep, StepName};
use crate::domain::control::{Control, ControlCommand};
use crate::domain::destination::{Destination, DestinationId};
use crate::domain::diagnosis::Code;
use crate::domain::job::wire::read_check;
use crate::domain::outcome::{Class, Failure, Reason};
use crate::queue::{Delivery, QueueError, Reply, Settlement};

/// The AMQP `type` of a connection test, and of its answer.
pub(super) const KIND: &str = "consign.check.v1";
/// What to do about a message whose fault names its own field.
const CORRECT: &str = "correct the message; `consign schema check` describes it";
const OURS: &str = "ask whoever runs the workers: the question is in their dead letters, and their log says more";

/// Nobody is there to be answered.
fn unasked() -> Box<Refusal> {
    let message = "reply_to: is missing; a connection test without a queue for its answer has no result";
    Refusal::new(Failure::new(Reason::InvalidJob, message).hint("set the AMQP property reply_to"))
}

fn unanswerable(why: &str) -> Box<Refusal> {
    let message = format!("reply_to: the answer to the connection test can't be delivered: {why}");
    Refusal::new(Failure::new(Reason::InvalidJob, message).hint("keep the reply queue until the answer is there"))
}

impl Worker {
    /// Tests, answers, acknowledges.
    pub(super) async fn check(&self, delivery: Delivery, permits: Permits) {
        let to = delivery.properties.reply_to.clone().filter(|to| !to.is_empty());
        let (destination, to) = match (self.admit_check(&delivery), to) {
            (Ok(destination), Some(to)) => (destination, to),
            (Err(refusal), Some(to)) => return self.decline(delivery, to, refusal).await,
            (Err(refusal), None) => return self.refuse(delivery, *refusal).await,
            (Ok(_), None) => return self.refuse(delivery, *unasked()).await,
        };
        let tested = tokio::select! {
            biased;
            () = self.stop.cancel.cancelled() => Ok(None),
            tested = self.test(&destination) => tested.map(Some),
        };
        // What waits for the broker needs no slot.
        drop(permits);
        match tested {
            Ok(Some(report)) => {
                if report.verdict == crate::check::CheckVerdict::Ready {
                    self.mended(&destination.id).await;
                }
                self.answer(delivery, to, &report, None).await;
            }
            Ok(None) => drop(self.settle(delivery, Settlement::Requeue, Vec::new()).await),
            Err(failure) => self.decline(delivery, to, Refusal::new(failure)).await,
        }
    }

    /// The destination, or why there is nothing to test.
    fn admit_check(&self, delivery: &Delivery) -> Result<Arc<Destination>, Box<Refusal>> {
        if delivery.delivery_count >= CRASH_LOOP {
            let message =
                format!("the message came back {} times without an end; it ends workers", delivery.delivery_count);
            return Err(Refusal::new(Failure::new(Reason::CrashLoop, message)));
        }
        let wanted = read_check(&delivery.body).map_err(Refusal::of)?;
        self.resolve(&wanted).map_err(Refusal::new)
    }

    /// Answers a question that can't be tested.
    async fn decline(&self, delivery: Delivery, to: String, refusal: Box<Refusal>) {
        let failure = refusal.failure();
        tracing::warn!(reason = failure.reason.as_str(), message = %failure.message, "a connection test was declined");
        let ours = failure.class() == Class::Defect;
        // What ends workers may do so while it is read.
        let asked = if ours { None } else { read_check(&delivery.body).ok().map(|wanted| wanted.id().to_string()) };
        let remedy = match failure.hint.as_str() {
            _ if ours => OURS,
            "" => CORRECT,
            hint => hint,
        };
        let step = CheckStep::failed(StepName::Configuration, Code::Unexpected, failure.message.as_str(), remedy);
        let report = CheckReport::of_worker(None, (self.parts.clock)(), 0.0, vec![step]);
        self.answer(delivery, to, &CheckReport { destination: asked, ..report }, Some(refusal)).await;
    }

    /// For this worker at once, for the others by the control stream.
    async fn mended(&self, destination: &DestinationId) {
        self.reset_circuit(destination);
        let control = Control::new(ControlCommand::ResetCircuit(destination.clone()), (self.parts.clock)());
        if let Err(problem) = self.parts.queue.publish_control(control.render().into()).await {
            tracing::warn!(%destination, %problem, "the other workers were not told that a destination is ready");
        }
    }

    /// The test behind its panic boundary; it bounds its time itself.
    async fn test(&self, destination: &Arc<Destination>) -> Result<CheckReport, Failure> {
        let test = self.parts.transport.test(destination, &self.parts.egress_addresses);
        AssertUnwindSafe(test).catch_unwind().await.map_err(|_| {
            Failure::new(
                Reason::Panic,
                "the worker broke one of its own rules in this connection test; its log says where",
            )
        })
    }

    /// `declined` is why nothing was tested.
    async fn answer(&self, delivery: Delivery, to: String, report: &CheckReport, declined: Option<Box<Refusal>>) {
        let first = report.steps.iter().find(|step| step.result == crate::check::StepResult::Failed);
        tracing::info!(
            destination = report.destination,
            verdict = report.verdict.as_str(),
            seconds = report.duration_seconds,
            code = first.map(|step| step.code.as_str()),
            "a connection was tested"
        );
        let reply = Reply {
            to,
            correlation_id: delivery.properties.correlation_id.clone(),
            kind: KIND.to_owned(),
            // Texts, numbers and lists: serde_json has nothing to refuse here.
            body: Bytes::from(serde_json::to_vec(report).unwrap_or_default()),
        };
        match self.parts.queue.reply(reply).await {
            Ok(()) => match declined.filter(|refusal| refusal.failure().class() == Class::Defect) {
                // What breaks workers is kept for whoever mends them.
                Some(defect) => self.refuse(delivery, *defect).await,
                None => drop(self.settle(delivery, Settlement::Ack, Vec::new()).await),
            },
            Err(QueueError::Refused(why) | QueueError::Topology(why)) => {
                self.refuse(delivery, *declined.unwrap_or_else(|| unanswerable(&why))).await;
            }
            Err(problem) => {
                tracing::warn!(%problem, "the answer to a connection test is not confirmed; it comes again");
                self.settle(delivery, Settlement::Requeue, Vec::new()).await;
            }
        }
    }
}
