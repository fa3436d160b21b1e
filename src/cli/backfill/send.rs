//! Publishing a plan: what is not on record yet, newest first, no faster than asked.

use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

use super::plan::Plan;
use super::record::Record;
use crate::cli::enqueue::WINDOW;
use crate::cli::enqueue::input::Prepared;
use crate::cli::enqueue::progress::Report;
use crate::control::{BACKFILL_BEGUN_HEADER, BACKFILL_HEADER};
use crate::queue::{Publication, Queue, QueueError};

/// How fast jobs are published at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    count: NonZeroU32,
    per: Duration,
}

impl Rate {
    /// Reads `10/s`, `600/min`, `5000/h`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "write 10/s, 600/min or 5000/h".to_owned();
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let per = match unit {
            "s" => Duration::from_secs(1),
            "min" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(wrong()),
        };
        Ok(Self { count: count.parse().map_err(|_| wrong())?, per })
    }

    /// When the job of this number may be published, from the start.
    fn due(self, number: u64) -> Duration {
        self.per.mul_f64(f64::from(u32::try_from(number).unwrap_or(u32::MAX)) / f64::from(self.count.get()))
    }
}

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
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue(problem) => problem.fmt(f),
            Self::Record(problem) => f.write_str(problem),
        }
    }
}

/// What every job of a run carries beside its body.
pub(super) struct Marks<'a> {
    pub(super) begun: Timestamp,
    pub(super) reply_to: Option<&'a str>,
}

/// Publishes until the end or the first failure: the same command goes on there.
pub(super) async fn publish(
    queue: &dyn Queue,
    (plan, record): (&Plan, &mut Record),
    marks: &Marks<'_>,
    rate: Option<Rate>,
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
    let mut sending = std::pin::pin!(sending.buffer_unordered(WINDOW));
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

async fn send(queue: &dyn Queue, publication: Option<Publication>) -> Result<(), QueueError> {
    match publication {
        Some(publication) => queue.publish(publication).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_when_each_job_is_due() {
        let due = |text: &str, number| Rate::parse(text).unwrap().due(number);
        assert_eq!(due("10/s", 0), Duration::ZERO);
        assert_eq!(due("10/s", 25), Duration::from_millis(2500));
        assert_eq!(due("30/min", 1), Duration::from_secs(2));
        assert_eq!(due("1/h", 2), Duration::from_hours(2));
        for wrong in ["10", "0/s", "-1/s", "10/d", "1.5/s", "/s"] {
            assert!(Rate::parse(wrong).is_err(), "{wrong}");
        }
    }
}
