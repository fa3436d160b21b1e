//! Killed at any moment, a command loses no letter, and doubles nothing that counts.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{end, worlds};
use crate::crash::world::World;
use crate::testbed::until;

/// Kills the command at a point.
fn killed(world: &mut World, point: &str, arguments: &[&str]) {
    world.site.environment("CONSIGN_FAILPOINT", point);
    let output = world.dead(arguments);
    assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    world.site.environment("CONSIGN_FAILPOINT", "");
}

/// Waits until nobody holds letters any more, and so many are there.
async fn there_are(world: &World, count: usize) {
    until(&format!("{count} letters"), Duration::from_secs(30), async || {
        (world.listed(&[]).len() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_job_and_letter_ends_as_one_object_and_one_outcome() {
    for (mut world, left) in worlds("deadkill").await.into_iter().zip([3, 2]) {
        world.bury(&["a", "b", "c"]).await;
        ["a", "b", "c"].iter().for_each(|name| world.restore_source(name));
        killed(&mut world, "requeued", &["requeue", "--all", "--force"]);
        // On RabbitMQ the job and its letter are both there; a file does both in one commit.
        there_are(&world, left).await;
        world.dead_ends(0, &["requeue", "--all", "--force"]);
        there_are(&world, 0).await;
        let worker = world.site.worker().await;
        until("all are delivered", Duration::from_secs(60), async || {
            let settled = worker.metric("consign_broker_settlements_total", "action=\"ack\"").await;
            let expected = if left == 3 { 4.0 } else { 3.0 };
            (settled >= expected).then_some(())
        })
        .await;
        for name in ["a", "b", "c"] {
            // The failure of the first run, and the delivery of the second.
            assert_eq!(world.terminal_ids(name).await.len(), 2, "{name}");
        }
        assert_eq!((world.s3.count("acme"), world.s3.calls("PutObject").len()), (3, 3), "one was uploaded twice");
        end(worker).await;
        world.close().await;
    }
}

/// Kills a command after a while; true if it had ended well before.
async fn survived(world: &World, arguments: &[&str], after: Duration) -> bool {
    let config = world.site.dir.path().join("killed.toml");
    std::fs::write(&config, world.site.toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.arg("dead").args(arguments).arg("--config").arg(config).env_clear().envs(world.site.variables());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    tokio::time::sleep(after).await;
    child.kill().unwrap();
    child.wait().unwrap().success()
}

/// Beside a worker that delivers at once what comes back.
#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_at_any_moment_it_loses_and_doubles_nothing() {
    const JOBS: usize = 25;
    for world in worlds("deadany").await {
        let names: Vec<_> = (0..JOBS).map(|n| format!("job-{n}")).collect();
        world.bury(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        names.iter().for_each(|name| world.restore_source(name));
        let worker = world.site.worker().await;
        let (mut kills, mut milliseconds) = (0, 20);
        // Each time it gets a little further before it is killed.
        while !survived(
            &world,
            &["requeue", "--all", "--force", "--rate", "100/s"],
            Duration::from_millis(milliseconds),
        )
        .await
        {
            (kills, milliseconds) = (kills + 1, milliseconds + 7 + kills % 5);
            assert!(kills < 400, "it never ends");
        }
        there_are(&world, 0).await;
        until("all are delivered", Duration::from_secs(60), async || (world.s3.count("acme") == JOBS).then_some(()))
            .await;
        end(worker).await;
        for name in &names {
            assert_eq!(world.terminal_ids(name).await.len(), 2, "{name}");
        }
        let puts = world.s3.calls("PutObject").len();
        println!("{kills} kills, {JOBS} jobs, {puts} uploads");
        assert_eq!(puts, JOBS, "one was uploaded twice");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_it_says_how_far_it_came() {
    let world = World::rabbitmq("deadint").await;
    world.bury(&["a", "b", "c"]).await;
    let config = world.site.dir.path().join("interrupted.toml");
    std::fs::write(&config, world.site.toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.args(["dead", "requeue", "--all", "--force", "--rate", "1/m", "--json", "--config"]).arg(config);
    command.env_clear().envs(world.site.variables()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first one goes at once, the second one only after a minute.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let said = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{line}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    });
    let said = said.await.unwrap();
    assert!(said.contains("1 requeued before the interruption"), "{said}");
    there_are(&world, 2).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_is_begun_again_and_doubles_nothing() {
    for mut world in worlds("deadimport").await {
        world.bury(&["a", "b", "c"]).await;
        let file = world.site.dir.path().join("letters.ndjson");
        let path = file.to_str().unwrap();
        world.dead_ends(0, &["export", path]);
        world.dead_ends(0, &["discard", "--all", "--yes"]);
        killed(&mut world, "put_back:2", &["import", path]);
        there_are(&world, 2).await;
        assert!(world.dead_ends(0, &["import", path]).contains("1 imported, 2 exist already"));
        assert_eq!(world.listed(&[]).len(), 3);
        world.close().await;
    }
}

/// A worker of another run wrote the object and lost the answer; then the job ran out of attempts.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_an_earlier_run_is_recognised_and_somebody_elses_is_not() {
    let world = World::rabbitmq("deadours").await;
    let earlier = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(3600);
    let earlier = earlier.to_string();
    for name in ["ours", "theirs"] {
        world.s3.put("acme", &format!("in/{name}"), "hello");
        let mut job = world.job(name, b"hello");
        job["if_exists"] = "fail".into();
        let reason = if name == "ours" { "exhausted" } else { "object_exists" };
        let headers = [
            ("x-error-reason", reason),
            ("x-first-failure-at", earlier.as_str()),
            ("x-original-routing-key", "job.scheduled.acme"),
        ];
        world.site.broker.put_into("dead", job.to_string().as_bytes(), &headers).await;
    }
    there_are(&world, 2).await;
    assert!(world.dead_ends(0, &["requeue", "--all", "--force"]).contains("2 requeued"));
    let worker = world.site.worker().await;
    assert_eq!(world.ended("ours").await.outcome, "delivered");
    assert_eq!(world.ended("theirs").await.outcome, "failed");
    end(worker).await;
    world.close().await;
}
