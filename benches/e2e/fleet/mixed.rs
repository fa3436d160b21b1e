//! All kinds of customers at once, with an acknowledgement timeout of a minute.

use std::env;
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Fleet, stop};
use crate::worker::Worker;
use crate::world::{CRAWLING, DEAD, SLOW, World};
use crate::{Fallible, process};

/// Scheduled jobs a second for the healthy customers, and backfills that wait behind the long ones.
const JOBS_PER_SECOND: u32 = 20;
const BACKFILLS: u32 = 2_000;
/// Jobs of the customers with something wrong.
const ODD: u32 = 200;
const RECONNECTS: &str = "consign_broker_reconnects_total";
const SETTLEMENTS: &str = "consign_broker_settlements_total";

impl Fleet<'_> {
    pub(super) async fn mixed(&self) -> Fallible<()> {
        let server = self.server().await?;
        let mut world = self.world("mixed", &server).await?;
        world.lease_after = "20s";
        set_timeout(60_000, 1_000).await?;
        let measured = self.hour(&world).await;
        set_timeout(1_800_000, 60_000).await?;
        measured
    }

    async fn hour(&self, world: &World<'_>) -> Fallible<()> {
        let workers = self.workers(world).await?;
        let long = (0..CRAWLING).map(|n| world.job("backfill", &format!("crawling-{n}"), &format!("long/{n}")));
        world.broker.publish(long).await?;
        world.publish_backfill(BACKFILLS).await?;
        for customer in [DEAD, SLOW] {
            let jobs = (0..ODD).map(|n| world.job("scheduled", customer, &format!("{customer}/{n}")));
            world.broker.publish(jobs).await?;
        }
        let begun = Instant::now();
        let due = |n: u32| begun + Duration::from_secs(1) * n / JOBS_PER_SECOND;
        let ids: Vec<_> = (0..JOBS_PER_SECOND * 60 * self.args.minutes).map(|n| format!("steady/{n}")).collect();
        let steady = ids.iter().zip(0..).map(|(id, n)| (due(n), world.scheduled(id, n)));
        let watch = async {
            for minute in 1..=self.args.minutes {
                sleep(Duration::from_mins(1)).await;
                look(world, &workers, minute).await?;
            }
            Ok(())
        };
        futures_util::try_join!(world.broker.publish_on_time(steady), watch)?;
        world.arrivals.all(&ids).await?;
        look(world, &workers, self.args.minutes).await?;
        println!("mixed: all {} steady jobs were delivered; {} reported twice", ids.len(), world.arrivals.doubled());
        stop(world, workers).await
    }
}

async fn look(world: &World<'_>, workers: &[Worker], minute: u32) -> Fallible<()> {
    let (mut reconnects, mut returned) = (0.0, 0.0);
    for worker in workers {
        reconnects += worker.total(RECONNECTS).await?;
        returned += worker.metric(SETTLEMENTS).await?.get("return").copied().unwrap_or_default();
    }
    let [steady, long, backfills] = ["steady/", "long/", "backfill/"].map(|begin| world.arrivals.count(begin));
    println!(
        "mixed, {} workers, minute {minute}: {reconnects} reconnects, {returned} requeued; delivered: {steady} steady, \
         {long} long, {backfills} backfills",
        workers.len()
    );
    Ok(())
}

/// Sets the acknowledgement timeout of the shared node, for channels that are opened from now on.
async fn set_timeout(milliseconds: u32, tick: u32) -> Fallible<()> {
    let run = env::var("CONSIGN_TEST_RUN").map_err(|_| "mixed needs the node of `tests/run --servers`")?;
    let node = env::var("CONSIGN_TEST_NODE")?.replace("/node", "/broker");
    for (name, value) in [("consumer_timeout", milliseconds), ("channel_tick_interval", tick)] {
        let mut command = Command::new(&run);
        command.args(["--node", &node, "ctl", "eval", &format!("application:set_env(rabbit, {name}, {value}).")]);
        let output = process::output(command).await?;
        if !output.status.success() {
            return Err(format!("rabbitmqctl ended with {}", output.status).into());
        }
    }
    Ok(())
}
