//! The embedded queue alone: what a job costs from publish to settlement, and how much of it is the
//! disk.
//!
//! `CONSIGN_BENCH_SHORT=1` only shows that it runs. `TMPDIR` chooses the disk.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use consign::domain::lane::Lane;
use consign::metrics::Metrics;
use consign::queue::sqlite::SqliteQueue;
use consign::queue::{JobPublisher, OutcomeEvent, Properties, Publication, Queue, Settlement};
use futures_util::stream::{self, StreamExt as _};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Of a usual job and a usual outcome.
const BODY: usize = 400;
const OUTCOME: usize = 900;

fn main() -> Fallible<()> {
    let short = std::env::var_os("CONSIGN_BENCH_SHORT").is_some() || std::env::args().any(|arg| arg == "--test");
    let count = if short { 200 } else { 10_000 };
    let dir = std::env::temp_dir().join(format!("consign-bench-queue-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(run(&dir, count, short));
    fs::remove_dir_all(&dir)?;
    done
}

async fn run(dir: &Path, count: usize, short: bool) -> Fallible<()> {
    println!("one write of 4 KiB with fdatasync takes {:?} on this disk", sync_time(dir)?);
    let lanes = vec![(Lane::Scheduled, 64)];
    let producer = start(dir, Vec::new())?;
    let few = count / 20;
    measure("publish, one after the other", few, publish(&*producer, few, 1)).await?;
    measure("publish, 64 at once", count, publish(&*producer, count, 64)).await?;
    let worker = start(dir, lanes)?;
    measure("take and settle with an outcome, one after the other", few, settle(&*worker, few, 1)).await?;
    measure("take and settle with an outcome, 32 at once", count, settle(&*worker, count, 32)).await?;
    let (rest, cpu) = (Duration::from_secs(if short { 1 } else { 10 }), cpu()?);
    tokio::time::sleep(rest).await;
    println!("idle: {:.2} % of a core", 100.0 * (self::cpu()? - cpu) / rest.as_secs_f64());
    producer.close().await;
    worker.close().await;
    Ok(())
}

fn start(dir: &Path, lanes: Vec<(Lane, u16)>) -> Fallible<Arc<SqliteQueue>> {
    Ok(SqliteQueue::start(&dir.join("queue.db"), "bench", "bench", lanes, Arc::new(Metrics::new(1)))?)
}

async fn measure(what: &str, count: usize, work: impl Future<Output = Fallible<()>>) -> Fallible<()> {
    let (started, before) = (Instant::now(), cpu()?);
    work.await?;
    let (took, cpu) = (started.elapsed().as_secs_f64(), cpu()? - before);
    let count = f64::from(u32::try_from(count)?);
    println!("{what}: {:.0} jobs/s, {:.0} us CPU a job", count / took, 1e6 * cpu / count);
    Ok(())
}

async fn publish(queue: &dyn JobPublisher, count: usize, at_once: usize) -> Fallible<()> {
    let sent = stream::iter(0..count).map(|n| {
        queue.publish(Publication {
            routing_key: "job.scheduled.acme".to_owned(),
            body: Bytes::from(vec![b'x'; BODY]),
            properties: Properties { message_id: Some(format!("bench/{n}")), ..Properties::default() },
        })
    });
    sent.buffer_unordered(at_once).map(|sent| Ok(sent?)).collect::<Vec<Fallible<()>>>().await.into_iter().collect()
}

async fn settle(queue: &dyn Queue, count: usize, at_once: usize) -> Fallible<()> {
    let padding = "x".repeat(OUTCOME);
    let settled = stream::iter(0..count).map(async |n| {
        let delivery = queue.next(Lane::Scheduled).await.ok_or("the queue has ended")?;
        let event = OutcomeEvent {
            routing_key: "transfer.delivered.acme".to_owned(),
            id: format!("{at_once}-{n}"),
            body: Bytes::from(format!("{{\"subject\":\"bench/{n}\",\"padding\":\"{padding}\"}}")),
            reply_to: None,
        };
        Ok(queue.settle(delivery, Settlement::Ack, vec![event]).await?)
    });
    settled.buffer_unordered(at_once).collect::<Vec<Fallible<()>>>().await.into_iter().collect()
}

fn sync_time(dir: &Path) -> Fallible<Duration> {
    const TIMES: u32 = 50;
    let mut file = File::create(dir.join("sync"))?;
    let started = Instant::now();
    for _ in 0..TIMES {
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
    }
    Ok(started.elapsed() / TIMES)
}

/// Seconds of processor time of this process so far.
fn cpu() -> Fallible<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
