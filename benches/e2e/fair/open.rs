//! Scheduled jobs at a fixed rate: how late their outcomes come, alone and beside others.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::FairArgs;
use crate::Fallible;
use crate::arrivals::quantile;
use crate::measure;
use crate::table::median;
use crate::worker::Worker;
use crate::world::{HEALTHY, SLOW, World};

/// Not counted: until the backfills and the slow customer have what they get.
const SETTLING: Duration = Duration::from_secs(5);

/// One round.
struct Round {
    p50: f64,
    p99: f64,
    /// Jobs a second that ended while others were published.
    rate: f64,
    /// Of the worker, in cores.
    cpu: f64,
    /// Median and p99 of: until the attempt began, the attempt, from its end to the outcome.
    stages: [(f64, f64); 3],
}

pub async fn run(args: &FairArgs, alone: &World<'_>, beside: &World<'_>, rate: f64) -> Fallible<()> {
    println!("open: {rate:.0} jobs/s for {HEALTHY} destinations, {} s a round", args.seconds);
    let mut ratios = Vec::new();
    for n in 1..=args.rounds {
        let a = round(args, alone, &format!("open{n}"), rate, false).await?;
        println!("open {n} A (alone):  {a}");
        let before = beside.arrivals.count("backfill/");
        let b = round(args, beside, &format!("open{n}"), rate, !args.no_slow).await?;
        let backfilled = beside.arrivals.count("backfill/") - before;
        let left = beside.broker.depth("jobs.backfill").await?;
        println!("open {n} B (beside): {b}; {backfilled} backfills beside it, {left} left");
        ratios.push([b.p50 / a.p50, b.p99 / a.p99, b.rate / a.rate]);
    }
    let median = |which: usize| median(&ratios.iter().map(|ratio| ratio[which]).collect::<Vec<_>>());
    let doubled = alone.arrivals.doubled() + beside.arrivals.doubled();
    println!(
        "open B/A, median of {} pairs: p50 {:.3}, p99 {:.3} (target at most 1.10), rate {:.3} (target at least 0.95); {doubled} doubled",
        ratios.len(),
        median(0),
        median(1),
        median(2)
    );
    Ok(())
}

async fn round(args: &FairArgs, world: &World<'_>, tag: &str, rate: f64, slow: bool) -> Fallible<Round> {
    let worker = world.worker(tag).await?;
    match published(args, world, &worker, tag, rate, slow).await {
        Ok(round) => worker.stop().await.map(|()| round),
        Err(error) => Err(format!("{error}\n{}", worker.log_tail()).into()),
    }
}

async fn published(
    args: &FairArgs,
    world: &World<'_>,
    worker: &Worker,
    tag: &str,
    rate: f64,
    slow: bool,
) -> Fallible<Round> {
    let span = Duration::from_secs(u64::from(args.seconds));
    let begun = Instant::now() + Duration::from_millis(100);
    let times = |rate: f64| {
        let due = move |n: u32| begun + Duration::from_secs_f64(f64::from(n) / rate);
        (0u32..).map(due).take_while(move |due| *due < begun + SETTLING + span)
    };
    let due: Vec<_> = times(rate).collect();
    let ids: Vec<_> = (0..due.len()).map(|n| format!("{tag}/{n}")).collect();
    let healthy = due.clone().into_iter().zip(&ids).zip(0..).map(|((due, id), n)| (due, world.scheduled(id, n)));
    let slow_rate = if slow { rate / f64::from(HEALTHY) } else { f64::MIN_POSITIVE };
    let slowly = times(slow_rate).take(if slow { usize::MAX } else { 0 }).zip(0..);
    let slowly = slowly.map(|(due, n)| (due, world.job("scheduled", SLOW, &format!("slow/{tag}/{n}"))));
    let cpu = async {
        sleep_until(begun + SETTLING).await;
        let before = measure::cpu_seconds(worker.pid())?;
        sleep_until(begun + SETTLING + span).await;
        Ok((measure::cpu_seconds(worker.pid())? - before) / span.as_secs_f64())
    };
    let published = (world.broker.publish_on_time(healthy), world.broker.publish_on_time(slowly));
    let ((), (), cpu) = futures_util::try_join!(published.0, published.1, cpu)?;
    let came = world.arrivals.each(&ids).await?;
    let counted: Vec<_> = due.into_iter().zip(came).filter(|(due, _)| *due >= begun + SETTLING).collect();
    let late: Vec<_> = counted.iter().map(|(due, came)| came.at.duration_since(*due).as_secs_f64() * 1e3).collect();
    let within = counted.iter().filter(|(_, came)| came.at < begun + SETTLING + span).count();
    let rate = f64::from(u32::try_from(within)?) / span.as_secs_f64();
    let stages = counted.iter().map(|(due, came)| came.stages(*due)).collect::<Vec<_>>();
    let stages = [0, 1, 2].map(|which| {
        let values: Vec<_> = stages.iter().map(|stages| stages[which]).collect();
        (quantile(&values, 0.5), quantile(&values, 0.99))
    });
    Ok(Round { p50: quantile(&late, 0.5), p99: quantile(&late, 0.99), rate, cpu, stages })
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p99, rate, cpu, stages: [queued, tried, reported] } = self;
        write!(f, "p50 {p50:6.1} ms, p99 {p99:6.1} ms, {rate:6.1} jobs/s, {cpu:.2} cores")?;
        write!(f, "; p50/p99 queued {:.1}/{:.1}, ", queued.0, queued.1)?;
        write!(f, "tried {:.1}/{:.1}, reported {:.1}/{:.1}", tried.0, tried.1, reported.0, reported.1)
    }
}
