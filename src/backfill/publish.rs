//! Publishing of a plan: jobs that are not in the journal, newest first, at a limited rate.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::plan::BackfillPlan;
use crate::domain::control::EarlierCancellations;
use crate::domain::headers::{BACKFILL, BACKFILL_CANCELLATIONS, BACKFILL_STARTED_AT, GENERATION, RUN};
use crate::producer::CONFIRM_WINDOW;
use crate::producer::job::PreparedJob;
use crate::queue::{Admin, Publication, QueueError};
use crate::runtime::output::Output;
use crate::runtime::rate::PublishRate;

/// Wait for the jobs in flight after a failure. A broker that is blocked confirms none.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(10);

/// Result of a run.
#[derive(Debug, Default)]
pub struct BackfillResult {
    /// Jobs that this run published.
    pub published: u64,
    /// Jobs that earlier runs published.
    pub published_before: u64,
    /// Cause of an early end.
    pub stopped: Option<StopCause>,
}

impl BackfillResult {
    /// Keeps the cause, and returns true if this error is it.
    fn stop(&mut self, error: &QueueError) -> bool {
        let is_cause = match &self.stopped {
            None => true,
            Some(StopCause::Queue(known)) => error.is_cause_of(known),
            Some(_) => false,
        };
        if is_cause {
            self.stopped = Some(StopCause::Queue(error.clone()));
        }
        is_cause
    }
}

/// Cause of the early end of a run.
#[derive(Debug, thiserror::Error)]
pub enum StopCause {
    /// The broker.
    #[error("{0}")]
    Queue(QueueError),
    /// The journal.
    #[error("{0}")]
    Journal(String),
    /// A cancellation, at this time.
    #[error("was cancelled at {0:.0}")]
    Cancelled(Timestamp),
}

/// Publishes one message, confirmed.
pub type PublishFn<'a> = &'a (dyn Fn(Publication) -> BoxFuture<'a, Result<(), QueueError>> + Sync);

/// Everything that publishing a plan needs.
pub struct BackfillPublisher<'a> {
    /// Jobs.
    pub plan: &'a BackfillPlan,
    /// Broker.
    pub publish: PublishFn<'a>,
    /// Start of the run, which every job carries.
    pub started_at: Timestamp,
    /// Cancellations that were published before the run, which every job carries, too.
    pub earlier: Option<&'a EarlierCancellations>,
    /// Start of the first command of the run: the generation of jobs that have none.
    pub generation_of: Timestamp,
    /// Run of the jobs, where they are delivered again.
    pub run: Option<u32>,
    /// Address of the retained outcomes.
    pub reply_to: Option<&'a str>,
    /// Upper bound of the rate.
    pub rate: Option<PublishRate>,
    /// Receiver of progress, notices and events.
    pub output: &'a dyn Output,
}

/// Prepares that outcomes with this `reply_to` are retained. Returns false where the broker refuses
/// that: jobs are delivered all the same.
///
/// # Errors
/// The broker is lost.
pub async fn retain_outcomes(admin: &dyn Admin, address: &str, output: &dyn Output) -> Result<bool, QueueError> {
    match admin.retain(address).await {
        Ok(()) => Ok(true),
        Err(QueueError::Topology(cause) | QueueError::Refused(cause) | QueueError::Denied(cause)) => {
            output.notice(&format!("`consign backfill status` will not show the outcomes of this run: {cause}"));
            Ok(false)
        }
        Err(problem) => Err(problem),
    }
}

impl BackfillPublisher<'_> {
    /// Publishes until the end, the first failure, or the cancellation, which goes into the
    /// journal. After a refused or lost job, those in flight are awaited for ten seconds at most.
    /// Run again, the same command continues.
    pub async fn run(&self, journal: &mut Journal, cancelled: impl Future<Output = Timestamp>) -> BackfillResult {
        let mut result = BackfillResult::default();
        let plan = self.plan;
        let known: Vec<_> = plan.jobs().filter_map(Result::ok).map(|job| journal.contains(&job.prepared.id)).collect();
        result.published_before = u64::try_from(known.iter().filter(|known| **known).count()).unwrap_or(u64::MAX);
        self.output.advance(result.published_before);
        let started = Instant::now();
        let numbers = known.into_iter().enumerate().filter(|(_, known)| !known).map(|(number, _)| number);
        let failed = CancellationToken::new();
        let jobs = stream::iter((0..).zip(numbers)).then(|(nth, number)| async move {
            if let Some(rate) = self.rate {
                tokio::time::sleep_until(started + rate.due(nth)).await;
            }
            plan.job(number)
        });
        let jobs = jobs.filter_map(|job| std::future::ready(job.ok())).take_until(failed.cancelled());
        let publishing = jobs.map(|job| {
            let PreparedJob { id, destination, publication, .. } = job.prepared;
            let published = (self.publish)(self.with_headers(publication));
            async move { (published.await, id, destination) }
        });
        let cancelled_at = OnceLock::new();
        let stop = async {
            tokio::select! {
                at = cancelled => drop(cancelled_at.set(at)),
                () = async { failed.cancelled().await; tokio::time::sleep(IN_FLIGHT_TIMEOUT).await } => {}
            }
        };
        let mut publishing = std::pin::pin!(publishing.buffer_unordered(CONFIRM_WINDOW).take_until(stop));
        while let Some((confirm, id, destination)) = publishing.next().await {
            match confirm {
                Ok(()) => {
                    if let Err(problem) = journal.record_published(&id) {
                        self.report_failure(&id, &destination, &problem, true);
                        result.stopped.get_or_insert(StopCause::Journal(problem));
                        // A line after one that was written in part would make the journal invalid.
                        break;
                    }
                    result.published += 1;
                    self.output.advance(1);
                    self.output.event(&json!({ "id": id, "destination": destination, "published": true }));
                }
                Err(problem) => {
                    failed.cancel();
                    let is_cause = result.stop(&problem);
                    self.report_failure(&id, &destination, &problem.to_string(), is_cause);
                }
            }
        }
        self.finish(&mut result, journal, cancelled_at.get().copied());
        result
    }

    fn report_failure(&self, id: &str, destination: &str, error: &str, is_cause: bool) {
        if is_cause {
            self.output.notice(&format!("{id}: {error}"));
        }
        let event = json!({ "id": id, "destination": destination, "published": false, "error": error });
        self.output.event(&event);
    }

    fn finish(&self, result: &mut BackfillResult, journal: &mut Journal, cancelled_at: Option<Timestamp>) {
        if let Some(at) = cancelled_at {
            result.stopped = Some(StopCause::Cancelled(at));
            if let Err(problem) = journal.record_cancelled(at) {
                self.output.notice(&format!("the cancellation could not be recorded: {problem}"));
            }
        }
        if let Err(problem) = journal.sync() {
            result.stopped.get_or_insert(StopCause::Journal(problem));
        }
    }

    /// Header with the generation of the run, unless the template gives one.
    fn generation(&self) -> Option<(String, String)> {
        let generation = u64::try_from(self.generation_of.as_microsecond()).ok()?;
        (!self.plan.template.gives_generation).then(|| (GENERATION.to_owned(), generation.to_string()))
    }

    fn with_headers(&self, mut publication: Publication) -> Publication {
        let properties = &mut publication.properties;
        properties.reply_to = self.reply_to.map(str::to_owned);
        properties.headers.insert(BACKFILL.to_owned(), self.plan.backfill.to_string());
        properties.headers.insert(BACKFILL_STARTED_AT.to_owned(), self.started_at.to_string());
        let earlier = self.earlier.map(|earlier| (BACKFILL_CANCELLATIONS.to_owned(), earlier.to_string()));
        let run = self.run.map(|run| (RUN.to_owned(), run.to_string()));
        properties.headers.extend(earlier.into_iter().chain(run).chain(self.generation()));
        publication
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::journal::JournalHeader;
    use super::super::plan::tests::plan;
    use super::*;
    use crate::runtime::output::NoOutput;

    const JOB: &str = r#"{"version": 1, "id": "a/{date}", "source": {"url": "file:///{date}"}, "destination": "acme",
        "key": "k/{date}"}"#;

    /// Broker that takes a limited number of jobs.
    #[derive(Debug)]
    struct FakeBroker {
        taken: Mutex<Vec<(Publication, Instant)>>,
        limit: usize,
    }

    impl FakeBroker {
        fn new(limit: usize) -> Self {
            Self { taken: Mutex::default(), limit }
        }

        fn publish(&self, job: Publication) -> Result<(), QueueError> {
            let mut taken = self.taken.lock().unwrap();
            if taken.len() >= self.limit {
                return Err(QueueError::Unavailable("gone".to_owned()));
            }
            taken.push((job, Instant::now()));
            Ok(())
        }

        fn ids(&self) -> Vec<String> {
            self.taken.lock().unwrap().iter().map(|(job, _)| job.properties.message_id.clone().unwrap()).collect()
        }
    }

    async fn run(broker: &FakeBroker, folder: &tempfile::TempDir, rate: Option<&str>) -> BackfillResult {
        run_until(broker, folder, rate, std::future::pending()).await
    }

    async fn run_until(
        broker: &FakeBroker,
        folder: &tempfile::TempDir,
        rate: Option<&str>,
        cancelled: impl Future<Output = Timestamp>,
    ) -> BackfillResult {
        let publish = |job: Publication| -> BoxFuture<'_, Result<(), QueueError>> {
            Box::pin(async move { broker.publish(job) })
        };
        run_with(publish, folder, rate, cancelled).await
    }

    async fn run_with<'a>(
        publish: impl Fn(Publication) -> BoxFuture<'a, Result<(), QueueError>> + Sync,
        folder: &tempfile::TempDir,
        rate: Option<&str>,
        cancelled: impl Future<Output = Timestamp>,
    ) -> BackfillResult {
        let plan = plan(JOB, "2026-01-01", "2026-01-10").unwrap();
        let started_at = Timestamp::UNIX_EPOCH;
        let header = JournalHeader {
            backfill: "b".to_owned(),
            digest: "d".to_owned(),
            jobs: 10,
            destination: None,
            started_at,
            again: true,
            cancellations: None,
        };
        let mut journal = Journal::open(&folder.path().join("b.ndjson"), &header, false).unwrap();
        // Its futures may live shorter than 'a: as long as the plan.
        let publish = |job: Publication| -> BoxFuture<'_, Result<(), QueueError>> { publish(job) };
        let publisher = BackfillPublisher {
            plan: &plan,
            publish: &publish,
            started_at,
            earlier: Some(&EarlierCancellations::default()),
            generation_of: journal.header.started_at,
            run: journal.header.run(),
            reply_to: Some("kept"),
            rate: rate.map(|rate| PublishRate::parse(rate).unwrap()),
            output: &NoOutput,
        };
        publisher.run(&mut journal, cancelled).await
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_are_published_newest_first_at_the_given_rate() {
        let (broker, folder, started) = (FakeBroker::new(99), tempfile::tempdir().unwrap(), Instant::now());
        let result = run(&broker, &folder, Some("2/s")).await;
        assert_eq!((result.published, result.published_before), (10, 0));
        assert_eq!(broker.ids()[..2], ["a/2026-01-10", "a/2026-01-09"]);
        let taken = broker.taken.lock().unwrap();
        for (nth, (_, at)) in (0..).zip(taken.iter()) {
            assert!(*at - started >= Duration::from_millis(500 * nth), "number {nth} was early");
        }
        let properties = &taken[0].0.properties;
        assert_eq!(properties.headers["consign-backfill-at"], "1970-01-01T00:00:00Z");
        assert_eq!(properties.headers["consign-backfill-cancelled"], "", "it knows that there are none");
        assert_eq!(properties.headers["consign-run"], "0", "the second in which it started");
        assert_eq!(properties.headers["consign-generation"], "0", "the microsecond");
        assert_eq!((properties.headers["consign-backfill"].len(), properties.reply_to.as_deref()), (12, Some("kept")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancellation_ends_a_run_and_is_recorded() {
        let (broker, folder) = (FakeBroker::new(99), tempfile::tempdir().unwrap());
        let cancelled = async {
            tokio::time::sleep(Duration::from_millis(1750)).await;
            Timestamp::UNIX_EPOCH
        };
        let result = run_until(&broker, &folder, Some("2/s"), cancelled).await;
        assert_eq!((result.published, broker.ids().len()), (4, 4));
        assert!(matches!(result.stopped, Some(StopCause::Cancelled(at)) if at == Timestamp::UNIX_EPOCH), "{result:?}");
        let text = std::fs::read_to_string(folder.path().join("b.ndjson")).unwrap();
        assert!(text.ends_with("{\"cancelled_at\":\"1970-01-01T00:00:00Z\"}\n"), "{text}");
    }

    #[tokio::test]
    async fn the_first_failure_ends_a_run_and_the_next_run_publishes_the_rest() {
        let (broker, folder) = (FakeBroker::new(4), tempfile::tempdir().unwrap());
        let result = run(&broker, &folder, None).await;
        assert_eq!(result.published, 4);
        assert!(matches!(result.stopped, Some(StopCause::Queue(QueueError::Unavailable(_)))));
        let rest = FakeBroker::new(99);
        let result = run(&rest, &folder, None).await;
        assert_eq!((result.published, result.published_before, result.stopped.is_none()), (6, 4, true));
        assert_eq!(rest.ids(), ["06", "05", "04", "03", "02", "01"].map(|day| format!("a/2026-01-{day}")));
    }

    /// Runs at two jobs a second. The first three end after so many milliseconds; a fourth must not
    /// be published.
    async fn run_with_ends(
        ends: [(u64, Result<(), QueueError>); 3],
        cancelled: impl Future<Output = Timestamp>,
    ) -> (BackfillResult, String) {
        let (folder, ends) = (tempfile::tempdir().unwrap(), Mutex::new(ends.into_iter()));
        let publish = |job: Publication| -> BoxFuture<'_, Result<(), QueueError>> {
            let Some((millis, end)) = ends.lock().unwrap().next() else {
                panic!("{:?} was published after the failure", job.properties.message_id)
            };
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                end
            })
        };
        let result = run_with(publish, &folder, Some("2/s"), cancelled).await;
        (result, std::fs::read_to_string(folder.path().join("b.ndjson")).unwrap())
    }

    fn lost() -> Result<(), QueueError> {
        Err(QueueError::Unavailable("the connection is closed".to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_awaits_the_jobs_in_flight_and_a_refusal_is_the_cause() {
        for refusal in [QueueError::Denied("no write".to_owned()), QueueError::Topology("no exchange".to_owned())] {
            let ends = [(1250, lost()), (3000, Err(refusal.clone())), (4000, Ok(()))];
            let (result, journal) = run_with_ends(ends, std::future::pending()).await;
            assert_eq!(result.published, 1, "the job in flight is published, and counted");
            assert_eq!(result.stopped.unwrap().to_string(), refusal.to_string());
            assert!(journal.contains("a/2026-01-08") && !journal.contains("a/2026-01-09"), "{journal}");
        }
        let refused = QueueError::Refused("full".to_owned());
        let (result, _) =
            run_with_ends([(1250, Err(refused.clone())), (3000, lost()), (4000, lost())], std::future::pending()).await;
        assert_eq!(result.stopped.unwrap().to_string(), refused.to_string(), "a lost connection explains nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_in_flight_are_awaited_for_a_limited_time() {
        let started = Instant::now();
        let ends = [(1250, lost()), (3_600_000, Ok(())), (4000, Ok(()))];
        let (result, journal) = run_with_ends(ends, std::future::pending()).await;
        assert_eq!(started.elapsed(), Duration::from_millis(1250) + IN_FLIGHT_TIMEOUT);
        assert!(result.published == 1 && journal.contains("a/2026-01-08"), "{journal}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancellation_ends_the_wait_for_the_jobs_in_flight() {
        let cancelled = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Timestamp::UNIX_EPOCH
        };
        let (result, journal) = run_with_ends([(1250, lost()), (3000, Ok(())), (4000, Ok(()))], cancelled).await;
        assert!(matches!(result.stopped, Some(StopCause::Cancelled(_))), "the same command can't continue: {result:?}");
        assert!(journal.contains("cancelled_at"), "{journal}");
    }
}
