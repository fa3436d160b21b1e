//! `consign status` over real workers on both queues.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::crash::world::World;
use crate::fixture::{ACME, REGION, role_destination};
use crate::testbed::until;

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1/";

fn status(world: &World, arguments: &[&str]) -> Output {
    let arguments = [&["status"], arguments].concat();
    tokio::task::block_in_place(|| world.site.consign(&arguments))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_queues_and_destinations_in_trouble_are_shown_together() {
    for mut world in [World::rabbitmq("status").await, World::embedded("status").await] {
        world.site.destination("broken", &role_destination("nobodys", ACME));
        let workers = [world.site.worker().await, world.site.worker().await];
        let mut lost = world.job("lost", b"x");
        std::fs::remove_file(world.site.files().join("lost")).unwrap();
        world.publish(&lost).await;
        assert_eq!(world.ended("lost").await.outcome, "failed");
        lost = world.job("deferred", b"x");
        lost["destination"] = "broken".into();
        world.publish(&lost).await;
        let admin = [workers[0].admin(), workers[1].admin()];
        let arguments = ["--json", "--admin", admin[0], "--admin", admin[1], "--admin", NOBODY];
        let data = until("the deferred job is seen", Duration::from_secs(60), async || {
            let output = status(&world, &arguments);
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
            let data: Value = serde_json::from_slice(&output.stdout).unwrap();
            let waits = data["queue"]["waiting"].as_object().unwrap().values().any(|count| count != 0);
            // Workers and queue are not looked at in the same instant.
            let seen = data["destinations"].as_array().unwrap().iter().any(|state| state["id"] == "broken");
            (waits && seen && data["queue"]["dead"] == 1).then_some(data)
        })
        .await;
        let answers: Vec<_> = data["workers"].as_array().unwrap().iter().map(|worker| &worker["answers"]).collect();
        assert_eq!(answers, [true, true, false], "{data:#}");
        assert!(data["workers"][2]["problem"].is_string() && data["workers"][0]["ready"] == true, "{data:#}");
        assert_eq!(data["queue"]["lanes"], json!({"continued": 0, "scheduled": 0, "backfill": 0}));
        let broken = data["destinations"].as_array().unwrap().iter().find(|state| state["id"] == "broken").unwrap();
        assert_eq!(broken["last_failure"]["reason"], "bucket_not_found", "{broken:#}");

        let shown = text(&status(&world, &arguments[1..]).stdout);
        for part in ["ready", "does not answer", "scheduled", "dead letters: 1 (`consign dead list`)", "broken: "] {
            assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
        }
        // Once it is said to be mended, it is no trouble any more, whether or not its job has come back already.
        world.s3.bucket("nobodys", REGION, ACME);
        let reset = status(&world, &["reset", "broken"]);
        assert!(reset.status.success(), "{}", text(&reset.stderr));
        until("the reset is shown", Duration::from_secs(20), async || {
            let data: Value = serde_json::from_slice(&status(&world, &arguments).stdout).unwrap();
            let broken = data["destinations"].as_array().unwrap().iter().find(|state| state["id"] == "broken").cloned();
            broken.is_none_or(|state| state["mended_at"].is_string()).then_some(())
        })
        .await;
        let shown = text(&status(&world, &arguments[1..]).stdout);
        assert!(!shown.contains("create the bucket"), "{shown}");
        drop(workers);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_it_ends_69_and_still_counts() {
    let mut world = World::embedded("statusnone").await;
    world.publish(&world.job("waits", b"x")).await;
    let port = crate::testbed::free_port().await;
    world.site.set("admin.listen", format!("127.0.0.1:{port}"));
    let output = status(&world, &[]);
    assert_eq!(output.status.code(), Some(69));
    let shown = text(&output.stdout);
    assert!(shown.contains("does not answer") && shown.contains(&port.to_string()), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("scheduled  1 ")), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_by_https_is_distinguished_from_one_that_is_away() {
    let world = World::embedded("statustls").await;
    let worker = world.site.worker().await;
    let https = worker.admin().replacen("http:", "https:", 1);
    let output = status(&world, &["--admin", &https]);
    assert_eq!(output.status.code(), Some(69), "{}", text(&output.stdout));
    let said = format!("does not answer: it answers without TLS; write {} instead of https", worker.admin());
    assert!(text(&output.stdout).contains(&said), "{}", text(&output.stdout));
    let output = status(&world, &["--admin", "https://127.0.0.1:1"]);
    let shown = text(&output.stdout);
    assert!(shown.contains("does not answer") && !shown.contains("TLS"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_servers_answer_is_not_taken_for_a_workers() {
    let world = World::embedded("statusother").await;
    let output = status(&world, &["--admin", &world.s3.url]);
    assert_eq!(output.status.code(), Some(69), "{}", text(&output.stdout));
}

/// Ended by its own id on drop.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_shown_again_and_again_until_a_signal() {
    let world = World::embedded("statuswatch").await;
    let worker = world.site.worker().await;
    let config = world.site.dir.path().join("watch.toml");
    std::fs::write(&config, world.site.toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.args(["status", "--watch", "--json", "--admin", worker.admin(), "--config"]).arg(config);
    command.env_clear().envs(world.site.variables()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut watching = Watching(command.spawn().unwrap());
    let lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    let seen: Vec<Value> = tokio::task::spawn_blocking(move || {
        lines.take(2).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    })
    .await
    .unwrap();
    assert!(seen.iter().all(|look| look["workers"][0]["answers"] == true), "{seen:?}");
    assert_ne!(seen[0]["time"], seen[1]["time"]);
    assert!(watching.0.try_wait().unwrap().is_none(), "it ended by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_requires_a_token_answers_commands_that_have_it() {
    let mut world = World::embedded("token").await;
    let file = world.site.dir.path().join("token");
    std::fs::write(&file, "first-marked-secret-token\n").unwrap();
    world.site.set("admin.token_file", file.display().to_string());
    let worker = world.site.worker().await;
    assert!(worker.get("/status").await.starts_with("this needs the token"));
    assert!(worker.get("/metrics").await.contains("consign_build_info"));
    let asked = status(&world, &["--json", "--admin", worker.admin()]);
    assert_eq!(asked.status.code(), Some(0), "{}", text(&asked.stderr));
    // The token is rotated; the worker needs no reload.
    std::fs::write(&file, "second-marked-secret-token\n").unwrap();
    assert_eq!(status(&world, &["--admin", worker.admin()]).status.code(), Some(0));
    let other = world.site.dir.path().join("other");
    std::fs::write(&other, "third-marked-secret-token\n").unwrap();
    world.site.set("admin.token_file", other.display().to_string());
    let wrong = status(&world, &["--admin", worker.admin()]);
    let shown = text(&wrong.stdout);
    assert!(wrong.status.code() == Some(69) && shown.contains("refuses the token of admin.token_file"), "{shown}");
    world.site.unset("admin.token_file");
    let without = text(&status(&world, &["--admin", worker.admin()]).stdout);
    assert!(without.contains("requires a token; set admin.token_file"), "{without}");
    assert!(!format!("{}{shown}{without}", worker.log()).contains("marked-secret-token"));
}
