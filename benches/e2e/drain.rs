//! A drain in the middle of one large file: how long SIGTERM takes to end the process, and how much
//! is sent again.
//!
//! ```text
//! tests/run --servers cargo bench --bench e2e -- drain               # 10 GiB (a sparse file), three drains one after another
//! ```

use std::fs::File;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::Fallible;
use crate::broker::{Broker, Message, await_delivered};
use crate::children::NullServer;
use crate::worker::{DESTINATION, LEASE_AFTER, Surroundings, Worker};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Transfer to drain.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// GiB of the file.
    #[arg(long, default_value_t = 10)]
    gib: u64,
    /// Workers that are drained, each when it has sent its share.
    #[arg(long, default_value_t = 3)]
    drains: u64,
}

/// Prints a line for each drain, and the sum.
pub async fn run(args: &DrainArgs, amqp: &str) -> Fallible<()> {
    let root = tempfile::Builder::new().prefix("consign-drain-").tempdir()?;
    let prefix = format!("consign-drain-{}", std::process::id());
    let broker = Broker::connect(amqp, &prefix).await?;
    let server = NullServer::start(None).await?;
    let around =
        Surroundings { amqp, prefix: &prefix, server: &server, root: root.path(), lease_after: LEASE_AFTER, extra: "" };
    let measured = measure(args, &broker, &around).await;
    broker.delete_topology().await?;
    measured
}

async fn measure(args: &DrainArgs, broker: &Broker, around: &Surroundings<'_>) -> Fallible<()> {
    let (path, length) = (around.root.join("large.bin"), args.gib * GIB);
    File::create(&path)?.set_len(length)?;
    let mut worker = Worker::start(around).await?;
    let mut outcomes = broker.outcomes().await?;
    let source = json!({ "url": format!("file://{}", path.display()), "size": length });
    let job = json!({ "version": 1, "id": "drain", "source": source, "destination": DESTINATION, "key": "large" });
    let to = format!("scheduled.{DESTINATION}");
    broker.publish([Message { id: "drain".to_owned(), to, body: job.to_string().into_bytes() }]).await?;
    for drain in 1..=args.drains {
        until_sent(around.server, length * drain / (args.drains + 1)).await?;
        let signalled = Instant::now();
        worker.stop().await?;
        let took = signalled.elapsed();
        let sent = around.server.counts().await?.bytes / MIB;
        println!("drain {drain}: {:.2} s from SIGTERM to the end, {sent} MiB sent so far", took.as_secs_f64());
        worker = Worker::start(around).await?;
    }
    await_delivered(&mut outcomes, 1).await?;
    let seen = around.server.counts().await?;
    worker.stop().await?;
    let again = seen.bytes.saturating_sub(length) / MIB;
    println!(
        "{} GiB delivered over {} drains: {} upload, {} parts, {} aborted, {again} MiB sent twice",
        args.gib, args.drains, seen.creates, seen.parts, seen.aborts
    );
    Ok(())
}

async fn until_sent(server: &NullServer, bytes: u64) -> Fallible<()> {
    let begun = Instant::now();
    while server.counts().await?.bytes < bytes {
        if begun.elapsed() > Duration::from_mins(5) {
            return Err("the upload does not go on".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
