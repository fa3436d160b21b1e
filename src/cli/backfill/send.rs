//! Publishing a plan: what is not on record yet, newest first, no faster than asked.

use std::future::Future;
use std::sync::OnceLock;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

use super::plan::Plan;
use super::record::Record;
use crate::cli::enqueue::WINDOW;
use crate::cli::enqueue::input::Prepared;
use crate::cli::enqueue::progress::Report;
use crate::cli::rate::Rate;
use crate::domain::control::{BACKFILL_BEGUN_HEADER, BACKFILL_HEADER};
use crate::queue::{JobPublisher, Publication, QueueError};

/// How publishing went.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) published: u64,
    /// By an earlier run.
    pub(super) before: u64,
    /// Why it ended early, if it did.
    pub(super) stopped: Option<Stopped>,
}

#[derive(Debug)]
pub(super) enum Stopped {
    Queue(QueueError),
    Record(String),
    /// Somebody cancelled it, then.
    Cancelled(Timestamp),
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue(problem) => problem.fmt(f),
            Self::Record(problem) => f.write_str(problem),
            Self::Cancelled(at) => write!(f, "was cancelled at {at:.0}"),
        }
    }
}

/// What every job of a run carries beside its body.
pub(super) struct Marks<'a> {
    pub(super) begun: Timestamp,
    pub(super) reply_to: Option<&'a str>,
}

/// Publishes until the end or the first failure, where the same command goes on; or until it is cancelled, which goes on record.
pub(super) async fn publish(
    queue: &dyn JobPublisher,
    (plan, record): (&Plan, &mut Record),
    marks: &Marks<'_>,
    (rate, cancelled): (Option<Rate>, impl Future<Output = Timestamp>),
    report: &Report,
) -> Sent {
    let mut sent = Sent::default();
    let known: Vec<_> = plan.jobs().filter_map(Result::ok).map(|job| record.has(&job.prepared.id)).collect();
    sent.before = u64::try_from(known.iter().filter(|known| **known).count()).unwrap_or(u64::MAX);
    report.already(sent.before);
    let started = Instant::now();
    let numbers = known.into_iter().enumerate().filter(|(_, known)| !known).map(|(number, _)| number);
    let jobs = stream::iter((0..).zip(numbers)).then(|(nth, number)| async move {
        if let Some(rate) = rate {
            tokio::time::sleep_until(started + rate.due(nth)).await;
        }
        plan.job(number)
    });
    let sending = jobs.filter_map(|job| std::future::ready(job.ok())).map(|job| {
        let publication = marked(plan, job.prepared.publication.clone(), marks);
        async move { (send(queue, publication).await, job.prepared) }
    });
    let cancelled_at = OnceLock::new();
    let stop = async {
        let _ = cancelled_at.set(cancelled.await);
    };
    let mut sending = std::pin::pin!(sending.buffer_unordered(WINDOW).take_until(stop));
    while let Some((result, job)) = sending.next().await {
        let noted = match result {
            Ok(()) => record.published(&job.id).map_err(Stopped::Record),
            Err(problem) => Err(Stopped::Queue(problem)),
        };
        match noted {
            Ok(()) => told(&mut sent, &job, report),
            Err(stopped) => {
                report.not_published(&job, &stopped.to_string());
                sent.stopped = Some(stopped);
                break;
            }
        }
    }
    if let Some(at) = cancelled_at.get() {
        sent.stopped.get_or_insert(Stopped::Cancelled(*at));
        if let Err(problem) = record.cancelled(*at) {
            report.say(&format!("the cancellation is not on record: {problem}"));
        }
    }
    if let Err(problem) = record.force() {
        sent.stopped.get_or_insert(Stopped::Record(problem));
    }
    sent
}

fn told(sent: &mut Sent, job: &Prepared, report: &Report) {
    sent.published += 1;
    report.published(job);
}

fn marked(plan: &Plan, publication: Option<Publication>, marks: &Marks<'_>) -> Option<Publication> {
    let mut publication = publication?;
    let properties = &mut publication.properties;
    properties.reply_to = marks.reply_to.map(str::to_owned);
    properties.headers.insert(BACKFILL_HEADER.to_owned(), plan.backfill.to_string());
    properties.headers.insert(BACKFILL_BEGUN_HEADER.to_owned(), marks.begun.to_string());
    Some(publication)
}

async fn send(queue: &dyn JobPublisher, publication: Option<Publication>) -> Result<(), QueueError> {
    match publication {
        Some(publication) => queue.publish(publication).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::super::plan::tests::plan;
    use super::super::record::Head;
    use super::*;
    use crate::cli::enqueue::progress::Shown;
    use crate::domain::lane::Lane;
    use crate::queue::{BoxFuture, Delivery, LeaseHolder, OutcomeEvent, Queue, Settlement};

    const JOB: &str = r#"{"version": 1, "id": "a/{date}", "source": {"url": "file:///{date}"}, "destination": "acme",
        "key": "k/{date}"}"#;

    /// Takes jobs, up to a number, and when.
    #[derive(Debug)]
    struct Fake {
        taken: Mutex<Vec<(Publication, Instant)>>,
        most: usize,
    }

    impl Fake {
        fn new(most: usize) -> Self {
            Self { taken: Mutex::default(), most }
        }

        fn ids(&self) -> Vec<String> {
            self.taken.lock().unwrap().iter().map(|(job, _)| job.properties.message_id.clone().unwrap()).collect()
        }
    }

    impl Queue for Fake {
        fn wait_connected(&self, _: Duration) -> BoxFuture<'_, Result<(), QueueError>> {
            Box::pin(async { Ok(()) })
        }

        fn next(&self, _: Lane) -> BoxFuture<'_, Option<Delivery>> {
            Box::pin(async { None })
        }

        fn settle(&self, _: Delivery, _: Settlement, _: Vec<OutcomeEvent>) -> BoxFuture<'_, Result<(), QueueError>> {
            Box::pin(async { Ok(()) })
        }

        fn lease<'a>(
            &'a self,
            _: &'a Delivery,
            _: &'a str,
            _: Arc<dyn LeaseHolder>,
        ) -> BoxFuture<'a, Result<(), QueueError>> {
            Box::pin(async { Ok(()) })
        }

        fn stop_consuming(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }

        fn pause(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }

        fn resume(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }

        fn close(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }

        fn ready(&self) -> Result<(), String> {
            Ok(())
        }
    }

    impl JobPublisher for Fake {
        fn publish(&self, job: Publication) -> BoxFuture<'_, Result<(), QueueError>> {
            Box::pin(async move {
                let mut taken = self.taken.lock().unwrap();
                if taken.len() >= self.most {
                    return Err(QueueError::Unavailable("gone".to_owned()));
                }
                taken.push((job, Instant::now()));
                Ok(())
            })
        }
    }

    async fn run(queue: &Fake, folder: &tempfile::TempDir, rate: Option<&str>) -> Sent {
        run_until(queue, folder, rate, std::future::pending()).await
    }

    async fn run_until(
        queue: &Fake,
        folder: &tempfile::TempDir,
        rate: Option<&str>,
        cancelled: impl Future<Output = Timestamp>,
    ) -> Sent {
        let plan = plan(JOB, "2026-01-01", "2026-01-10").unwrap();
        let begun = Timestamp::UNIX_EPOCH;
        let head = Head {
            backfill: "b".to_owned(),
            digest: "d".to_owned(),
            jobs: 10,
            destination: None,
            begun_at: begun,
            again: false,
        };
        let mut record = Record::open(&folder.path().join("b.ndjson"), &head, false).unwrap();
        let (marks, report) = (Marks { begun, reply_to: Some("kept") }, Report::new(Some(1), false, Shown::All));
        let rate = rate.map(|rate| Rate::parse(rate).unwrap());
        publish(queue, (&plan, &mut record), &marks, (rate, cancelled), &report).await
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_go_out_newest_first_no_faster_than_asked() {
        let (queue, folder, started) = (Fake::new(99), tempfile::tempdir().unwrap(), Instant::now());
        let sent = run(&queue, &folder, Some("2/s")).await;
        assert_eq!((sent.published, sent.before), (10, 0));
        assert_eq!(queue.ids()[..2], ["a/2026-01-10", "a/2026-01-09"]);
        let taken = queue.taken.lock().unwrap();
        for (nth, (_, at)) in (0..).zip(taken.iter()) {
            assert!(*at - started >= Duration::from_millis(500 * nth), "number {nth} was early");
        }
        let properties = &taken[0].0.properties;
        assert_eq!(properties.headers["consign-backfill-at"], "1970-01-01T00:00:00Z");
        assert_eq!((properties.headers["consign-backfill"].len(), properties.reply_to.as_deref()), (12, Some("kept")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancellation_ends_a_run_and_is_on_record() {
        let (queue, folder) = (Fake::new(99), tempfile::tempdir().unwrap());
        let cancelled = async {
            tokio::time::sleep(Duration::from_millis(1750)).await;
            Timestamp::UNIX_EPOCH
        };
        let sent = run_until(&queue, &folder, Some("2/s"), cancelled).await;
        assert_eq!((sent.published, queue.ids().len()), (4, 4));
        assert!(matches!(sent.stopped, Some(Stopped::Cancelled(at)) if at == Timestamp::UNIX_EPOCH), "{sent:?}");
        let text = std::fs::read_to_string(folder.path().join("b.ndjson")).unwrap();
        assert!(text.ends_with("{\"cancelled_at\":\"1970-01-01T00:00:00Z\"}\n"), "{text}");
    }

    #[tokio::test]
    async fn the_first_failure_ends_a_run_and_the_next_one_does_the_rest() {
        let (queue, folder) = (Fake::new(4), tempfile::tempdir().unwrap());
        let sent = run(&queue, &folder, None).await;
        assert_eq!(sent.published, 4);
        assert!(matches!(sent.stopped, Some(Stopped::Queue(QueueError::Unavailable(_)))));
        let rest = Fake::new(99);
        let sent = run(&rest, &folder, None).await;
        assert_eq!((sent.published, sent.before, sent.stopped.is_none()), (6, 4, true));
        assert_eq!(rest.ids(), ["06", "05", "04", "03", "02", "01"].map(|day| format!("a/2026-01-{day}")));
    }
}
