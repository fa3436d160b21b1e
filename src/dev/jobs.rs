//! The jobs of one start on their way: published one after the other, and counted as they end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::DevError;
use super::home::Home;
use super::samples::SampleJob;
use crate::config::BrokerConfig;
use crate::domain::job::wire;
use crate::domain::outcome::{Outcome, OutcomeKind};
use crate::metrics::Metrics;
use crate::queue::{self, JobPublisher, Outcomes, Properties, Publication};

/// The queue is a file beside us: it is there, or something is wrong.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// The name the two ends of the queue are opened under.
const NAME: &str = "consign dev";

/// Results of the jobs of this start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobTally {
    /// All of them.
    pub jobs: usize,
    /// Delivered (or there already).
    pub delivered: usize,
    /// Ended otherwise than they were to end.
    pub surprises: usize,
    /// Without a terminal outcome yet.
    pub open: usize,
}

/// Puts the jobs into the queue.
pub(super) struct SamplePublisher {
    pub(super) queue: Arc<dyn JobPublisher>,
    planned: Vec<SampleJob>,
}

impl SamplePublisher {
    pub(super) async fn open(broker: &BrokerConfig, planned: Vec<SampleJob>) -> Result<Self, DevError> {
        let queue = queue::start(broker, NAME, Vec::new(), Arc::new(Metrics::new(1)))?;
        queue.wait_connected(CONNECT_LIMIT).await?;
        Ok(Self { queue, planned })
    }

    /// Expected result of each job, by its id.
    pub(super) fn expected(&self) -> ExpectedOutcomes {
        ExpectedOutcomes {
            open: self.planned.iter().map(|planned| (planned.job.id.clone(), planned.delivered)).collect(),
            tally: JobTally { jobs: self.planned.len(), open: self.planned.len(), ..JobTally::default() },
        }
    }

    /// Makes each source and publishes its job.
    pub(super) async fn publish(&mut self, home: &Home) -> Result<(), DevError> {
        for planned in std::mem::take(&mut self.planned) {
            let publication = publication(&planned);
            let prepared = tokio::task::spawn_blocking(move || planned.prepare()).await;
            let prepared = prepared.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)));
            prepared.map_err(|problem| DevError::Sample { path: home.path.display().to_string(), problem })?;
            self.queue.publish(publication).await?;
        }
        Ok(())
    }
}

fn publication(planned: &SampleJob) -> Publication {
    Publication {
        routing_key: format!("job.scheduled.{}", planned.destination()),
        body: Bytes::from(wire::render(&planned.job)),
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            message_id: Some(planned.job.id.clone()),
            ..Properties::default()
        },
    }
}

/// Subscribes to the outcomes of every job in the queue.
pub(super) async fn subscribe(broker: &BrokerConfig) -> Result<Box<dyn Outcomes>, DevError> {
    Ok(queue::admin(broker, NAME).subscribe().await?)
}

/// The next outcome, read and as it is.
pub(super) async fn next_outcome(feed: &mut dyn Outcomes) -> Result<(Outcome, Vec<u8>), DevError> {
    loop {
        let body = feed.next().await?.body;
        // What is no outcome was not made by this program.
        if let Ok(outcome) = serde_json::from_slice(&body) {
            return Ok((outcome, body));
        }
    }
}

/// Expected results of the jobs of this start, and the number that has ended.
#[derive(Debug)]
pub(super) struct ExpectedOutcomes {
    /// Jobs without a terminal outcome, each with true where it is to be delivered.
    open: BTreeMap<String, bool>,
    pub(super) tally: JobTally,
}

impl ExpectedOutcomes {
    /// Counts the first terminal outcome of a job of ours.
    pub(super) fn note(&mut self, outcome: &Outcome) {
        let of_kind = |kind: OutcomeKind| outcome.kind == kind.event_type();
        if of_kind(OutcomeKind::Retrying) {
            return;
        }
        let Some(deliver) = self.open.remove(&outcome.subject) else { return };
        let delivered = of_kind(OutcomeKind::Delivered) || of_kind(OutcomeKind::Skipped);
        self.tally.open -= 1;
        self.tally.delivered += usize::from(delivered);
        self.tally.surprises += usize::from(delivered != deliver);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::domain::outcome::{OutcomeData, render};

    fn outcome(job: &str, kind: OutcomeKind) -> Outcome {
        let data = OutcomeData { job_id: job.to_owned(), ..OutcomeData::default() };
        serde_json::from_slice(&render("p", kind, "id".to_owned(), Timestamp::now(), None, data)).unwrap()
    }

    #[test]
    fn each_job_counts_once_and_a_failure_may_be_what_was_expected() {
        let jobs = [("good", true), ("bad", false), ("unlucky", true)];
        let open = jobs.map(|(id, deliver)| (id.to_owned(), deliver)).into();
        let mut expected = ExpectedOutcomes { open, tally: JobTally { jobs: 3, open: 3, ..JobTally::default() } };
        expected.note(&outcome("somebody's", OutcomeKind::Delivered));
        expected.note(&outcome("good", OutcomeKind::Retrying));
        assert_eq!(expected.tally.open, 3);
        for _ in 0..2 {
            expected.note(&outcome("good", OutcomeKind::Delivered));
            expected.note(&outcome("bad", OutcomeKind::Failed));
        }
        assert_eq!(expected.tally, JobTally { jobs: 3, delivered: 1, surprises: 0, open: 1 });
        expected.note(&outcome("unlucky", OutcomeKind::Failed));
        assert_eq!(expected.tally, JobTally { jobs: 3, delivered: 1, surprises: 1, open: 0 });
    }
}
