//! Throughput against the number of workers.

use tokio::time::Instant;

use super::{Fleet, stop};
use crate::table::median;
use crate::worker::Worker;
use crate::world::World;
use crate::{Fallible, measure};

impl Fleet<'_> {
    /// Median of the rounds, in jobs a second.
    pub(super) async fn scaling(&self) -> Fallible<f64> {
        let server = self.server().await?;
        let world = self.world("scaling", &server).await?;
        let workers = self.workers(&world).await?;
        let mut rates = Vec::new();
        for round in 1..=self.args.rounds {
            rates.push(self.round(&world, &workers, round).await?);
        }
        stop(&world, workers).await?;
        Ok(median(&rates))
    }

    async fn round(&self, world: &World<'_>, workers: &[Worker], round: u32) -> Fallible<f64> {
        let (count, jobs) = (self.count, self.args.jobs * self.count);
        let ids: Vec<_> = (0..jobs).map(|n| format!("scaling{round}/{n}")).collect();
        let (begun, before) = (Instant::now(), cpu_seconds(workers)?);
        let messages = ids.iter().zip(0..).map(|(id, n)| world.scheduled(id, n));
        let ((), came) = futures_util::try_join!(world.broker.publish(messages), world.arrivals.all(&ids))?;
        let seconds = came.into_iter().max().unwrap_or(begun).duration_since(begun).as_secs_f64();
        let (rate, cpu) = (f64::from(jobs) / seconds, cpu_seconds(workers)? - before);
        let (cores, each) = (cpu / seconds, cpu / f64::from(jobs) * 1e6);
        println!(
            "scaling, {count} workers, round {round}: {rate:.0} jobs/s, {cores:.2} cores, {each:.0} us of CPU a job"
        );
        Ok(rate)
    }
}

fn cpu_seconds(workers: &[Worker]) -> Fallible<f64> {
    workers.iter().map(|worker| measure::cpu_seconds(worker.pid())).sum()
}
