//! Scheduled jobs all at once: how long until the last has ended, alone and beside others.

use tokio::time::Instant;

use super::FairArgs;
use crate::Fallible;
use crate::measure;
use crate::table::median;
use crate::world::{HEALTHY, SLOW, World};

/// Throughput of the worker with no other load, in jobs a second.
pub async fn calibrate(args: &FairArgs, alone: &World<'_>) -> Fallible<f64> {
    round(args, alone, "calibration", false).await.map(|(rate, _)| rate)
}

pub async fn run(args: &FairArgs, alone: &World<'_>, beside: &World<'_>) -> Fallible<()> {
    let mut ratios = Vec::new();
    for n in 1..=args.rounds {
        let (a, cpu) = round(args, alone, &format!("closed{n}"), false).await?;
        println!("closed {n} A (alone):  {a:6.1} jobs/s, {cpu:.2} cores");
        let before = beside.arrivals.count("backfill/");
        let (b, cpu) = round(args, beside, &format!("closed{n}"), !args.no_slow).await?;
        let backfilled = beside.arrivals.count("backfill/") - before;
        let left = beside.broker.depth("jobs.backfill").await?;
        println!(
            "closed {n} B (beside): {b:6.1} jobs/s, {cpu:.2} cores; {backfilled} backfills beside it, {left} left"
        );
        ratios.push(b / a);
    }
    let median = median(&ratios);
    println!("closed B/A, median of {} pairs: rate {median:.3} (target at least 0.95)", ratios.len());
    Ok(())
}

async fn round(args: &FairArgs, world: &World<'_>, tag: &str, slow: bool) -> Fallible<(f64, f64)> {
    let worker = world.worker(tag).await?;
    let ids: Vec<_> = (0..args.jobs).map(|n| format!("{tag}/{n}")).collect();
    let healthy = ids.iter().zip(0..).map(|(id, n)| world.scheduled(id, n));
    let slowly = (0..if slow { args.jobs / HEALTHY } else { 0 })
        .map(|n| world.job("scheduled", SLOW, &format!("slow/{tag}/{n}")));
    let (begun, cpu) = (Instant::now(), measure::cpu_seconds(worker.pid())?);
    let published = (world.broker.publish(slowly), world.broker.publish(healthy));
    let done = futures_util::try_join!(published.0, published.1, world.arrivals.all(&ids));
    let ((), (), came) = done.map_err(|error| format!("{error}\n{}", worker.log_tail()))?;
    let seconds = came.into_iter().max().unwrap_or(begun).duration_since(begun).as_secs_f64();
    let cpu = (measure::cpu_seconds(worker.pid())? - cpu) / seconds;
    worker.stop().await?;
    Ok((f64::from(args.jobs) / seconds, cpu))
}
