//! One round: the reference, then `consign`, then another build of it if one is given, on the same
//! files and the same server.

use std::path::Path;
use std::time::{Duration, Instant};

use lapin::Consumer;
use serde_json::json;

use crate::Fallible;
use crate::broker::{Broker, Message, await_delivered};
use crate::children::{NullServer, check, run_raw};
use crate::counts::Counts;
use crate::measure::{self, Spent, Switches};
use crate::scenario::{Scenario, file_name};
use crate::worker::{DESTINATION, Surroundings, Worker, program};

/// Runs of one round.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub raw: Spent,
    pub consign: Spent,
    /// The baseline build, if one is given.
    pub baseline: Option<Spent>,
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
    /// Path of the baseline build.
    pub baseline: Option<&'a Path>,
    /// Part of the ids of its jobs: a worker remembers jobs that others have delivered.
    pub scheme: &'static str,
}

impl Bench<'_> {
    /// Measures one round; `round` makes the ids of the jobs unique.
    pub async fn pair(&self, scenario: &Scenario, folder: &Path, round: usize) -> Fallible<Pair> {
        let raw = run_raw(self.server, scenario, folder).await?;
        let (consign, seen, start) = self.worker(&program(), scenario, folder, &round.to_string()).await?;
        let baseline = match self.baseline {
            Some(other) => Some(self.worker(other, scenario, folder, &format!("{round}b")).await?.0),
            None => None,
        };
        Ok(Pair { raw, consign, baseline, seen, start })
    }

    async fn worker(
        &self,
        program: &Path,
        scenario: &Scenario,
        folder: &Path,
        round: &str,
    ) -> Fallible<(Spent, Counts, Duration)> {
        let worker = Worker::start_build(program, &self.around).await?;
        match self.consign(&worker, scenario, folder, round).await {
            Ok((spent, seen)) => {
                let start = worker.start;
                worker.stop().await?;
                Ok((spent, seen, start))
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
        round: &str,
    ) -> Fallible<(Spent, Counts)> {
        let mut outcomes = self.broker.outcomes().await?;
        let messages = jobs(scenario, folder, &format!("{}/{round}", self.scheme));
        let (before, switches) = (self.server.counts().await?, measure::context_switches(worker.pid())?);
        let (cpu, started) = (measure::cpu_seconds(worker.pid())?, Instant::now());
        self.transfer(messages, &mut outcomes, scenario.files).await?;
        let spent = Spent {
            seconds: started.elapsed().as_secs_f64(),
            cpu_seconds: measure::cpu_seconds(worker.pid())? - cpu,
            peak_rss_kib: measure::peak_rss_kib(worker.pid())?,
            switches: switches_since(&switches, worker.pid(), scenario.files)?,
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

/// Prints the context switches per job since `before` for each thread name, and returns their sum.
fn switches_since(before: &Switches, pid: u32, jobs: u64) -> Fallible<u64> {
    let mut sum = 0;
    for (thread, after) in measure::context_switches(pid)? {
        let switches = after.saturating_sub(before.get(&thread).copied().unwrap_or_default());
        eprintln!("e2e: context switches of {thread}: {}.{} a job", switches / jobs, switches * 10 / jobs % 10);
        sum += switches;
    }
    Ok(sum)
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
