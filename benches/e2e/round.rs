//! One pair of runs: the reference, then `consign`, on the same files and the same server.

use std::path::Path;
use std::time::{Duration, Instant};

use lapin::Consumer;
use serde_json::json;

use crate::Fallible;
use crate::broker::{Broker, Message, await_delivered};
use crate::children::{NullServer, check, run_raw};
use crate::counts::Counts;
use crate::measure::{self, Spent};
use crate::scenario::{Scenario, file_name};
use crate::worker::{DESTINATION, Surroundings, Worker};

/// Both sides of one round.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub raw: Spent,
    pub consign: Spent,
    /// Counts of the null server for `consign`.
    pub seen: Counts,
    /// From the start of the worker's process to its readiness.
    pub start: Duration,
}

/// State that all rounds of a run share.
pub struct Bench<'a> {
    pub server: &'a NullServer,
    pub broker: &'a Broker,
    pub around: Surroundings<'a>,
    /// Part of the ids of its jobs: a worker remembers jobs that others have delivered.
    pub scheme: &'static str,
}

impl Bench<'_> {
    /// Measures one pair; `round` keeps the ids of the jobs apart.
    pub async fn pair(&self, scenario: &Scenario, folder: &Path, round: usize) -> Fallible<Pair> {
        let raw = run_raw(self.server, scenario, folder).await?;
        let worker = Worker::start(&self.around).await?;
        match self.consign(&worker, scenario, folder, round).await {
            Ok((consign, seen)) => {
                let start = worker.start;
                worker.stop().await?;
                Ok(Pair { raw, consign, seen, start })
            }
            Err(error) => Err(format!("{error}\n{}", worker.log_tail()).into()),
        }
    }

    /// From the first publish to the last outcome, with the outcome's own confirm behind it.
    async fn consign(
        &self,
        worker: &Worker,
        scenario: &Scenario,
        folder: &Path,
        round: usize,
    ) -> Fallible<(Spent, Counts)> {
        let mut outcomes = self.broker.outcomes().await?;
        let messages = jobs(scenario, folder, &format!("{}/{round}", self.scheme));
        let (before, cpu, started) = (self.server.counts().await?, measure::cpu_seconds(worker.pid())?, Instant::now());
        self.transfer(messages, &mut outcomes, scenario.files).await?;
        let spent = Spent {
            seconds: started.elapsed().as_secs_f64(),
            cpu_seconds: measure::cpu_seconds(worker.pid())? - cpu,
            peak_rss_kib: measure::peak_rss_kib(worker.pid())?,
        };
        let seen = self.server.counts().await?.since(before);
        check(scenario, seen)?;
        Ok((spent, seen))
    }

    async fn transfer(&self, messages: Vec<Message>, outcomes: &mut Consumer, files: u64) -> Fallible<()> {
        let published = self.broker.publish(messages);
        futures_util::try_join!(published, await_delivered(outcomes, files)).map(drop)
    }
}

fn jobs(scenario: &Scenario, folder: &Path, round: &str) -> Vec<Message> {
    let target = scenario.target;
    let job = |index| {
        let name = file_name(index);
        let id = format!("{target}/{round}/{name}");
        let source = json!({ "url": format!("file://{}/{name}", folder.display()), "size": scenario.size });
        let key = format!("{target}/{name}");
        let job = json!({ "version": 1, "id": id, "source": source, "destination": DESTINATION, "key": key });
        Message { body: job.to_string().into_bytes(), to: format!("scheduled.{DESTINATION}"), id }
    };
    (0..scenario.files).map(job).collect()
}
