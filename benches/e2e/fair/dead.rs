//! A bucket that does not exist, with thousands of jobs for it: how often it is asked, and how soon
//! all flow once it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::FairArgs;
use crate::Fallible;
use crate::measure;
use crate::worker::Worker;
use crate::world::{DEAD, World};

/// Scheduled jobs a second for the others meanwhile.
const OTHERS: u32 = 20;
const SETTLEMENTS: &str = "consign_broker_settlements_total";

/// Counters; the differences are printed.
struct Look {
    refused: u64,
    settled: BTreeMap<String, f64>,
    cpu: f64,
}

pub async fn run(args: &FairArgs, world: &World<'_>) -> Fallible<()> {
    let worker = world.worker("dead").await?;
    match story(args, world, &worker).await {
        Ok(()) => worker.stop().await,
        Err(error) => Err(format!("{error}\n{}", worker.log_tail()).into()),
    }
}

async fn story(args: &FairArgs, world: &World<'_>, worker: &Worker) -> Fallible<()> {
    println!("dead: {} jobs for a bucket that does not exist, {OTHERS} jobs/s for others", args.dead);
    let ids: Vec<_> = (0..args.dead).map(|n| format!("dead/{n}")).collect();
    let begun = Instant::now();
    let mut before = look(world, worker).await?;
    let others: Vec<_> = (0..OTHERS * 60 * args.minutes).map(|n| format!("beside/{n}")).collect();
    let due = |n: u32| begun + Duration::from_secs(1) * n / OTHERS;
    let steady = others.iter().zip(0..).map(|(id, n)| (due(n), world.scheduled(id, n)));
    let watch = async {
        for minute in 1..=args.minutes {
            sleep_until(begun + Duration::from_secs(60) * minute).await;
            let now = look(world, worker).await?;
            println!("dead, minute {minute}: {}", now.since(&before));
            before = now;
        }
        Ok(())
    };
    let dead = world.broker.publish(ids.iter().map(|id| world.job("scheduled", DEAD, id)));
    futures_util::try_join!(dead, world.broker.publish_on_time(steady), watch)?;
    world.arrivals.all(&others).await?;
    println!("dead: all {} jobs of the others were delivered meanwhile", others.len());
    fixed(args, world, worker, &ids).await
}

async fn fixed(args: &FairArgs, world: &World<'_>, worker: &Worker, ids: &[String]) -> Fallible<()> {
    let before = look(world, worker).await?;
    world.server.fix().await?;
    let begun = Instant::now();
    if !args.no_reset {
        world.around().consign(&["status", "reset", DEAD]).await?;
        println!("dead: fixed, and reset within {:.1} s", begun.elapsed().as_secs_f64());
    }
    let mut came = world.arrivals.all(ids).await?;
    came.sort_unstable();
    let after = |share: usize| came[(came.len() - 1) * share / 100].saturating_duration_since(begun).as_secs_f64();
    println!(
        "dead: after the repair the first was delivered in {:.1} s, half in {:.1} s, 99 % in {:.1} s, all {} in {:.1} s; {} reported twice",
        after(0),
        after(50),
        after(99),
        came.len(),
        after(100),
        world.arrivals.doubled()
    );
    println!("dead, since the repair: {}", look(world, worker).await?.since(&before));
    Ok(())
}

async fn look(world: &World<'_>, worker: &Worker) -> Fallible<Look> {
    let refused = world.server.counts().await?.refused;
    Ok(Look { refused, settled: worker.metric(SETTLEMENTS).await?, cpu: measure::cpu_seconds(worker.pid())? })
}

impl Look {
    fn since(&self, before: &Self) -> String {
        let difference = |(action, count): (&String, &f64)| {
            let count = count - before.settled.get(action).copied().unwrap_or_default();
            (count > 0.0).then(|| format!("{action} {count}"))
        };
        let settled: Vec<_> = self.settled.iter().filter_map(difference).collect();
        let (refused, cpu) = (self.refused - before.refused, self.cpu - before.cpu);
        format!("{refused} requests refused; settled: {}; {cpu:.1} s of CPU", settled.join(", "))
    }
}
