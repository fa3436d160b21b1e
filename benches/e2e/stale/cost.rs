//! The cost of many reports: for a worker that runs, and for one that starts after them.

use std::path::Path;
use std::time::Duration;

use consign::domain::control::{Control, ControlCommand, GenerationChange};
use consign::domain::generation::ObjectDigest;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::rounds::CONFIG;
use crate::Fallible;
use crate::broker::Broker;
use crate::children::NullServer;
use crate::measure::{cpu_seconds, rss_kib};
use crate::worker::{LEASE_AFTER, Surroundings, Worker};

/// Reports of which the cost is measured, and objects with a job that waits.
const REPORTS: u32 = 100_000;
const KEYS: u32 = 1_000_000;
/// A job that fails once makes so many reports.
const REPORTS_PER_JOB: u32 = 3;
const LOST: &str = "consign_generations_lost_total";
/// CPU time in a second below which a worker has read everything.
const IDLE: f64 = 0.03;

/// Measures [`REPORTS`] of jobs that fail once.
pub async fn announcements(amqp: &str, root: &Path) -> Fallible<()> {
    cost("announcements", reports(REPORTS), amqp, root).await
}

/// The reports of jobs that fail once: pending, writing, delivered.
pub fn reports(count: u32) -> impl ExactSizeIterator<Item = Vec<u8>> + Send {
    let report = |number: u32| {
        let (object, generation) = (number / REPORTS_PER_JOB, 1);
        let write = Uuid::from_u128(object.into());
        let change = match number % REPORTS_PER_JOB {
            0 => GenerationChange::Pending { generation },
            1 => GenerationChange::Writing { generation, run: write, write },
            _ => {
                let job = format!("acme/google_ads/{object}").into();
                GenerationChange::Delivered { generation, job, write: Some(write) }
            }
        };
        control(object, change)
    };
    (0..count).map(report)
}

/// A job of each key fails, and waits.
pub async fn memory(amqp: &str, root: &Path) -> Fallible<()> {
    let report = |number| control(number, GenerationChange::Pending { generation: 1 });
    cost("memory", (0..KEYS).map(report), amqp, root).await
}

fn control(object: u32, change: GenerationChange) -> Vec<u8> {
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, &object.to_be_bytes()).to_string();
    let render = |object| {
        let command = ControlCommand::Generation(object, change);
        Control { id: Uuid::new_v4(), at: Timestamp::now(), command }.render()
    };
    ObjectDigest::parse(&digest).map(render).unwrap_or_default()
}

async fn cost(
    name: &str,
    reports: impl ExactSizeIterator<Item = Vec<u8>> + Send,
    amqp: &str,
    root: &Path,
) -> Fallible<()> {
    let root = root.join(format!("{name}-cost"));
    std::fs::create_dir(&root)?;
    let server = NullServer::start(None).await?;
    let prefix = format!("consign-stale-{}-{name}", std::process::id());
    let lease_after = LEASE_AFTER;
    let around = Surroundings { amqp, prefix: &prefix, server: &server, root: &root, lease_after, extra: CONFIG };
    around.consign(&["topology", "apply"]).await?;
    let broker = Broker::connect(amqp, &prefix).await?;
    let running = Worker::start(&around).await?;
    started(name, "before the reports", &running).await?;
    let (count, cpu, begun) = (reports.len(), cpu_seconds(running.pid())?, Instant::now());
    broker.publish_control(reports).await?;
    let published = begun.elapsed().as_secs_f64();
    until_idle(&running).await?;
    let spent = cpu_seconds(running.pid())? - cpu;
    println!(
        "{name}: {count} reports published in {published:.1} s; a running worker read them with {spent:.2} s of CPU, \
         then {} MiB resident, lost: {:?}",
        rss_kib(running.pid())? / 1024,
        running.metric(LOST).await?
    );
    let later = Worker::start(&around).await?;
    started(name, "after the reports", &later).await?;
    println!("{name}: lost by that one: {:?}", later.metric(LOST).await?);
    running.stop().await?;
    later.stop().await?;
    broker.delete_topology().await
}

async fn started(name: &str, when: &str, worker: &Worker) -> Fallible<()> {
    let begun = Instant::now();
    until_idle(worker).await?;
    println!(
        "{name}: a worker that starts {when}: ready after {:.2} s, idle at most {:.0} s later, {:.2} s of CPU by then, {} MiB resident",
        worker.start.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        cpu_seconds(worker.pid())?,
        rss_kib(worker.pid())? / 1024
    );
    Ok(())
}

/// Waits until a worker has nothing to do.
pub async fn until_idle(worker: &Worker) -> Fallible<()> {
    let mut before = cpu_seconds(worker.pid())?;
    loop {
        sleep(Duration::from_secs(1)).await;
        let now = cpu_seconds(worker.pid())?;
        if now - before < IDLE {
            return Ok(());
        }
        before = now;
    }
}
