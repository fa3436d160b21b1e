//! Runs the worker and prints every outcome as it arrives, and at
//! last where to look around.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use super::cloud::Cloud;
use super::home::Home;
use super::jobs::{ExpectedOutcomes, JobTally, SamplePublisher, next_outcome, subscribe};
use super::report::{TransferPrinter, quoted};
use super::samples::SampleJob;
use super::settings::{ACME, ACME_BUCKET, REGION, Secrets};
use super::{DevError, Ended};
use crate::app::{self, WorkerEnvironment};
use crate::config::Config;
use crate::domain::outcome::Outcome;
use crate::queue::Outcomes;

/// Everything that runs beside the worker.
pub(super) struct Stage {
    pub(super) cloud: Cloud,
    pub(super) secrets: Secrets,
    pub(super) config: Config,
    pub(super) page: SocketAddr,
    pub(super) report: TransferPrinter,
    pub(super) started: Instant,
    /// A source to try the next job with.
    pub(super) example: String,
    /// The last to go: what is in it is used by all the others.
    pub(super) home: Home,
}

impl Stage {
    /// Runs the worker and its jobs to the end.
    pub(super) async fn play(
        self,
        planned: Vec<SampleJob>,
        once: bool,
        environment: WorkerEnvironment,
    ) -> Result<Ended, DevError> {
        let broker = &self.config.broker;
        let (mut feed, mut publisher) = (subscribe(broker).await?, SamplePublisher::open(broker, planned).await?);
        let mut expected = publisher.expected();
        let drain = environment.shutdown.drain();
        if once {
            // At the end nothing answers there any more.
            self.report.say(&format!("{}\n", self.whereabouts().join("\n")));
        }
        let mut worker = std::pin::pin!(app::run_in(environment, self.config.clone(), None));
        let (ending, followed) = {
            let follow = self.follow(&mut publisher, &mut *feed, &mut expected, once);
            tokio::select! {
                ending = &mut worker => (ending, Ok(())),
                followed = follow => {
                    drain.cancel();
                    (worker.await, followed)
                }
            }
        };
        let ending = ending?;
        followed?;
        publisher.queue.close().await;
        let tally = expected.tally;
        if tally.open > 0 {
            let next = if self.home.kept { "they continue at the next start" } else { "they are discarded" };
            self.report
                .say(&format!("\nstopped early: {} of {} jobs have no outcome yet; {next}.", tally.open, tally.jobs));
        }
        if !once {
            let kept =
                || format!("\nkept in {}; the same command continues", quoted(&self.home.path.display().to_string()));
            let removed = || "\nAll data is removed. --data-dir DIR keeps it.".to_owned();
            self.report.say(&if self.home.kept { kept() } else { removed() });
        }
        Ok(Ended { ending, tally })
    }

    /// Publishes the jobs and shows every outcome: with `once` until the jobs have ended, else for
    /// ever.
    async fn follow(
        &self,
        publisher: &mut SamplePublisher,
        feed: &mut dyn Outcomes,
        expected: &mut ExpectedOutcomes,
        once: bool,
    ) -> Result<(), DevError> {
        let shown = async {
            while expected.tally.open > 0 {
                let outcome = self.show_next(feed).await?;
                let before = expected.tally.delivered;
                expected.note(&outcome);
                if (before, expected.tally.delivered) == (0, 1) {
                    let seconds = self.started.elapsed().as_secs_f64();
                    self.report.remark(&format!("the first object was delivered {seconds:.2} s after the start"));
                }
            }
            Ok(())
        };
        tokio::try_join!(publisher.publish(&self.home), shown)?;
        self.conclude(expected.tally, once);
        if once {
            return Ok(());
        }
        loop {
            self.show_next(feed).await?;
        }
    }

    async fn show_next(&self, feed: &mut dyn Outcomes) -> Result<Outcome, DevError> {
        let (outcome, raw) = next_outcome(feed).await?;
        let again = match (&outcome.data.bucket, &outcome.data.key) {
            (Some(bucket), Some(key)) => self.cloud.take_sent_again(bucket, key),
            _ => 0,
        };
        self.report.outcome(&outcome, &raw, again);
        Ok(outcome)
    }

    /// Prints the results, and how to inspect them.
    fn conclude(&self, tally: JobTally, once: bool) {
        let JobTally { jobs, delivered, surprises, .. } = tally;
        let failed = jobs - delivered;
        let meant = if surprises == 0 && failed > 0 { ", as expected" } else { "" };
        self.report.say(&format!("\n{delivered} of {jobs} delivered, {failed} failed{meant}."));
        if once && !self.home.kept {
            self.report.say("All data is removed. --data-dir DIR keeps it; without --once you can inspect it.");
            return;
        }
        let path = |path: PathBuf| quoted(&path.display().to_string());
        self.report.say(&format!("objects        {}", path(self.home.buckets())));
        if failed > 0 {
            let (program, config) = (own_program(), path(self.home.config()));
            self.report.say(&format!("dead letters   {program} dead list -c {config}"));
        }
        if !once {
            self.invite();
        }
    }

    fn invite(&self) {
        let (program, config) = (own_program(), quoted(&self.home.config().display().to_string()));
        let platform = &self.secrets.platform;
        let more = [
            format!(
                "one more job   {program} enqueue -c {config} \\\n               \
                 --source {} --to {ACME} --key one-more --wait",
                quoted(&self.example)
            ),
            format!(
                "check          AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} \\\n               \
                 {program} check -c {config} {ACME}",
                platform.id, platform.secret
            ),
            "Ctrl-C ends it.".to_owned(),
        ];
        let page = [format!("status page    {}", url(self.page, "/"))];
        self.report.say(&[&page[..], &self.whereabouts(), &more].concat().join("\n"));
    }

    /// Prints what to inspect while it runs, beside the page.
    fn whereabouts(&self) -> [String; 2] {
        let (viewer, cloud) = (&self.secrets.viewer, self.cloud.url());
        [
            format!("metrics        {}", url(self.page, "/metrics")),
            format!(
                "bucket         AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} AWS_DEFAULT_REGION={REGION} \\\n               \
                 aws s3 ls --recursive --endpoint-url {cloud} s3://{ACME_BUCKET}/",
                viewer.id, viewer.secret
            ),
        ]
    }
}

/// Path of this program, as a word of a shell.
fn own_program() -> String {
    quoted(&std::env::current_exe().map_or_else(|_| "consign".to_owned(), |path| path.display().to_string()))
}

pub(super) fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}
