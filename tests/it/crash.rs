//! Failpoints: the worker is killed with SIGKILL at each failpoint, by each kind of job that passes
//! it. Nothing is lost, nothing is half there, nothing counts twice.

pub mod world;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use consign::runtime::failpoints::FAILPOINTS;
use futures_util::{StreamExt as _, stream};

use crate::testbed::scripted::Effect;
use crate::testbed::{MIB, bytes, unpacked, until};
use world::World;

/// Kind of a job, which decides the failpoints that it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// One PutObject.
    Small,
    /// Parts of a file.
    Parts,
    /// Parts of a file that takes long enough for a lease.
    Long,
    /// Parts of a file that is compressed on the way.
    Gzip,
    /// No source: a dead letter.
    Dead,
    /// S3 fails until the attempt is over: a copy waits.
    Retry,
    /// S3 refuses in the middle: the upload is aborted.
    Aborted,
}

/// Failpoints that each kind passes.
const VISITS: &[(Kind, &[&str])] = &[
    (Kind::Small, &["taken", "session", "put", "ended", "outcome", "settled"]),
    (Kind::Parts, &["created", "recorded", "part:3", "parts", "completed", "ended", "outcome"]),
    (Kind::Long, &["lease_written", "leased", "part:5", "completed", "ended", "settled"]),
    (Kind::Gzip, &["recorded", "part:2", "parts", "completed"]),
    (Kind::Dead, &["taken", "ended", "outcome", "copy", "settled"]),
    (Kind::Retry, &["ended", "copy", "settled"]),
    (Kind::Aborted, &["aborted", "copy"]),
];

/// Failpoints of commands, not of workers: see `dead.rs`.
const COMMANDS: [&str; 2] = ["requeued", "put_back"];

/// Failpoints that only a broker has: a file does all of it in one commit.
const BROKER_ONLY: [&str; 3] = ["lease_written", "outcome", "copy"];

fn name(point: &str) -> &str {
    point.split(':').next().unwrap()
}

#[test]
fn every_point_is_visited_and_every_visit_is_a_point() {
    let known: BTreeSet<_> = FAILPOINTS.iter().map(|(name, _)| *name).collect();
    let visited: BTreeSet<_> = VISITS.iter().flat_map(|(_, points)| points.iter().map(|point| name(point))).collect();
    assert_eq!(known, visited.into_iter().chain(COMMANDS).collect());
}

/// One crash and the recovery from it.
async fn survive(mut world: World, kind: Kind, point: &str) {
    let id = format!("{kind:?}-{}", point.replace(':', "-")).to_lowercase();
    let content = bytes(point.len() as u64, if matches!(kind, Kind::Small | Kind::Retry) { 1000 } else { 40 * MIB });
    match kind {
        Kind::Retry => {
            world.s3.on("PutObject").key(&id).first(4).before(Effect::Error(503, "SlowDown", "Reduce your rate."));
        }
        Kind::Aborted => {
            world.s3.on("UploadPart").key(&id).form("partNumber", "4").before(Effect::Error(
                400,
                "SomethingNew",
                "No.",
            ));
        }
        Kind::Long => world.s3.on("UploadPart").key(&id).before(Effect::Delay(Duration::from_millis(700))),
        _ => {}
    }
    let mut job = world.job(&id, &content);
    match kind {
        Kind::Dead => job["source"]["url"] = format!("{}-gone", job["source"]["url"].as_str().unwrap()).into(),
        Kind::Gzip => job["compression"] = "gzip".into(),
        _ => {}
    }
    world.site.environment("CONSIGN_FAILPOINT", point);
    let doomed = world.site.worker().await;
    world.publish(&job).await;
    let status = doomed.exit(Duration::from_secs(60)).await;
    assert_eq!(status.signal(), Some(9), "{id} did not come by: {}", doomed.log());
    world.site.environment("CONSIGN_FAILPOINT", "");
    let next = world.site.worker().await;
    // Where everything was done, nothing is redelivered that could be waited for.
    if name(point) != "settled" {
        world.settled_by(&next).await;
    }
    let ended = world.ended(&id).await;
    let failed = matches!(kind, Kind::Dead | Kind::Aborted);
    assert_eq!(ended.outcome, if failed { "failed" } else { "delivered" }, "{id}: {ended:?}");
    assert_eq!(world.terminal_ids(&id).await.len(), 1, "{id} has more than one outcome that counts");
    assert_eq!(world.dead_letters(&id).await, usize::from(failed), "{id}");
    if !failed {
        let object = world.s3.object("acme", &format!("in/{id}")).unwrap().bytes;
        let stored = if kind == Kind::Gzip { unpacked("gzip", &object) } else { object.to_vec() };
        assert!(stored == content, "{id}: the object is not its source");
    }
    // Only what S3 had and nobody knows of can be left: the bucket's lifecycle rule is for that.
    let allowed =
        usize::from(["created", "recorded", "part:3", "part:2", "parts"].contains(&point) && kind != Kind::Long);
    let left = world.s3.open_uploads();
    assert!(left <= allowed, "{id}: {left} uploads are left open");
    next.quiet().await;
    next.terminate();
    assert_eq!(next.exit(Duration::from_secs(30)).await.code(), Some(0), "{id}: {}", next.log());
    world.close().await;
}

/// Each crash has a world of its own: what an earlier one left behind must not end the next worker.
/// Two at a time, as most of each is waiting.
async fn survive_all(world: impl AsyncFn() -> World, kinds: &[Kind], skipped: &[&str]) {
    let visits = VISITS.iter().filter(|(kind, _)| kinds.contains(kind));
    let visits = visits.flat_map(|(kind, points)| points.iter().map(move |point| (*kind, *point)));
    let crashes = visits.filter(|(_, point)| !skipped.contains(&name(point))).map(async |(kind, point)| {
        let began = Instant::now();
        survive(world().await, kind, point).await;
        println!("{kind:?} at {point}: {:?}", began.elapsed());
    });
    let survived = stream::iter(crashes).buffer_unordered(2).count().await;
    println!("{survived} crashes survived: {kinds:?}");
}

#[tokio::test]
async fn rabbitmq_small_jobs() {
    let kinds = [Kind::Small, Kind::Dead, Kind::Retry];
    survive_all(async || World::rabbitmq("crashsmall").await, &kinds, &[]).await;
}

#[tokio::test]
async fn rabbitmq_uploads_in_parts() {
    survive_all(async || World::rabbitmq("crashparts").await, &[Kind::Parts], &[]).await;
}

#[tokio::test]
async fn rabbitmq_compressed_and_aborted_uploads() {
    survive_all(async || World::rabbitmq("crashgzip").await, &[Kind::Gzip, Kind::Aborted], &[]).await;
}

#[tokio::test]
async fn rabbitmq_jobs_under_a_lease() {
    survive_all(async || World::short_leases("crashlease").await, &[Kind::Long], &[]).await;
}

#[tokio::test]
async fn embedded_small_jobs() {
    let kinds = [Kind::Small, Kind::Dead, Kind::Retry];
    survive_all(async || World::embedded("crashsmall").await, &kinds, &BROKER_ONLY).await;
}

#[tokio::test]
async fn embedded_uploads_in_parts() {
    survive_all(async || World::embedded("crashparts").await, &[Kind::Parts], &BROKER_ONLY).await;
}

#[tokio::test]
async fn embedded_compressed_and_aborted_uploads() {
    survive_all(async || World::embedded("crashgzip").await, &[Kind::Gzip, Kind::Aborted], &BROKER_ONLY).await;
}

#[tokio::test]
async fn embedded_jobs_under_a_lease() {
    survive_all(async || World::embedded("crashlease").await, &[Kind::Long], &BROKER_ONLY).await;
}

/// Every worker that puts the poisoned object dies of it, while others of its jobs are half done.
#[tokio::test]
async fn a_job_that_ends_workers_is_distinguished_from_its_neighbours() {
    const NEIGHBOURS: usize = 6;
    let world = World::embedded("poison").await;
    world.s3.on("PutObject").key("poison").before(Effect::Delay(Duration::from_secs(30)));
    world.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(2)));
    world.publish(&world.job("poison", b"deadly")).await;
    for n in 0..NEIGHBOURS {
        world.publish(&world.job(&format!("neighbour-{n}"), b"harmless")).await;
    }
    let mut killed = 0;
    let last = loop {
        let worker = world.site.worker().await;
        let seen = world.s3.calls("PutObject").iter().filter(|call| call.key.ends_with("poison")).count();
        let again = until("the poison is taken, or dead-lettered", Duration::from_secs(90), async || {
            let calls = world.s3.calls("PutObject");
            let taken = calls.iter().filter(|call| call.key.ends_with("poison")).count() > seen;
            if taken { Some(true) } else { (world.dead_letters("poison").await > 0).then_some(false) }
        })
        .await;
        if !again {
            break worker;
        }
        worker.kill();
        worker.exit(Duration::from_secs(10)).await;
        killed += 1;
        assert!(killed < 12, "nobody finds out");
    };
    assert!(killed >= 4, "after {killed} kills nobody can know");
    let reason = world.reason("poison").await;
    assert_eq!(reason, "crash_loop");
    for n in 0..NEIGHBOURS {
        assert_eq!(world.ended(&format!("neighbour-{n}")).await.outcome, "delivered");
    }
    last.quiet().await;
    println!("found out after {killed} workers");
}
