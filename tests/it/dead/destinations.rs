//! Jobs go back only to destinations that are fit for them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{text, worlds};
use crate::crash::world::World;
use crate::fixture::{ACME, role_destination};
use crate::page::stub::{Stub, idle};
use crate::testbed::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_whose_connection_test_fails_keeps_its_letters_unless_forced() {
    for mut world in worlds("deadgate").await {
        world.bury(&["a", "b"]).await;
        world.site.destination("acme", &role_destination("nobodys", ACME));
        let said = world.dead_ends(0, &["requeue", "--all", "--dry-run"]);
        let untested = "acme: the connection was not tested (dry run)";
        assert!(said.matches(untested).count() == 1 && said.contains("2 would be requeued"), "{said}");
        let said = world.dead_ends(3, &["requeue", "--all"]);
        assert!(said.contains("acme: its connection test fails at `") && said.contains("2 refused"), "{said}");
        assert_eq!(said.matches("its connection test fails").count(), 1, "it is tested, and said, once: {said}");
        assert_eq!(world.listed(&[]).len(), 2);
        world.site.without_identity();
        let said = world.dead_ends(3, &["requeue", "--all"]);
        for part in ["`own AWS identity`", "this command found no AWS credentials", "--force requeues them anyway"] {
            assert!(said.contains(part) && !said.contains("this worker"), "`{part}` is not in: {said}");
        }
        world.site.without_destination("acme");
        for more in [&["--dry-run"][..], &[]] {
            let said = world.dead_ends(3, &[&["requeue", "--all"], more].concat());
            assert!(said.contains("acme: it is not in this configuration") && said.contains("2 refused"), "{said}");
        }
        let forced = world.dead_ends(0, &["requeue", "--all", "--force"]);
        assert!(forced.contains("2 requeued"), "{forced}");
        assert!(world.listed(&[]).is_empty());
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_asked_for_open_circuits() {
    let world = World::embedded("deadcircuit").await;
    world.bury(&["a"]).await;
    let mut status = idle();
    let states = |open: bool| json!({ "shown": [{"id": "acme", "circuit_open": open}], "matching": 1, "filter": "" });
    status["destination_states"] = states(true);
    let stub = Stub::start(status.clone()).await;
    let said = world.dead_ends(3, &["requeue", "--all", "--admin", &stub.url]);
    assert!(said.contains("acme: its circuit breaker is open at the worker"), "{said}");
    assert_eq!(stub.filters(), ["acme"]);
    let said = world.dead_ends(3, &["requeue", "--all", "--admin", "http://127.0.0.1:1"]);
    assert!(said.contains("can't be queried"), "nobody knows: {said}");
    status["destination_states"] = states(false);
    stub.say(status);
    let said = world.dead_ends(0, &["requeue", "--all", "--admin", &stub.url]);
    assert!(said.contains("1 requeued"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inline_destination_is_not_tested_and_that_is_said() {
    let world = World::embedded("deadinline").await;
    let worker = world.site.worker().await;
    let mut job = world.job("a", b"hello");
    let mut inline = role_destination("acme", ACME);
    inline["id"] = "brought".into();
    job["destination"] = inline;
    std::fs::remove_file(world.site.files().join("a")).unwrap();
    world.publish(&job).await;
    assert_eq!(world.ended("a").await.outcome, "failed");
    super::end(worker).await;
    let output = world.dead(&["requeue", "--all", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("brought: is defined in its job"), "{}", text(&output.stderr));
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&line["requeued"], &line["run"], &line["job_id"]), (&json!(true), &json!(1), &json!("a")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_past_its_time_keeps_its_letter_unless_forced() {
    let world = World::rabbitmq("deadlate").await;
    let mut job = world.job("a", b"hello");
    job["expires_at"] = "2026-01-01T00:00:00Z".into();
    let headers = [("x-error-reason", "exhausted"), ("x-original-routing-key", "job.scheduled.acme")];
    world.site.broker.put_into("dead", job.to_string().as_bytes(), &headers).await;
    until("it is there", Duration::from_secs(30), async || (world.listed(&[]).len() == 1).then_some(())).await;
    let said = world.dead_ends(3, &["requeue", "--all"]);
    assert!(said.contains("a: its expires_at (2026-01-01T00:00:00Z) has passed"), "{said}");
    world.dead_ends(0, &["requeue", "--all", "--force"]);
    let worker = world.site.worker().await;
    assert_eq!(world.ended("a").await.outcome, "expired");
    super::end(worker).await;
    world.close().await;
}

/// Three jobs at four a second are under way for half a second at the least.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_spreads_the_jobs() {
    let world = World::embedded("deadrate").await;
    world.bury(&["a", "b", "c"]).await;
    let begun = Instant::now();
    world.dead_ends(0, &["requeue", "--all", "--force", "--rate", "4/s"]);
    assert!(begun.elapsed() >= Duration::from_millis(500), "they went at once");
}
