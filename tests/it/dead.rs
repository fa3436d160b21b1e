//! `consign dead` as a process, on both queues: looked at, requeued, discarded, exported and put
//! back; and killed on the way.

mod destinations;
mod kills;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};

use crate::crash::world::World;
use crate::testbed::until;
use crate::testbed::worker::Worker;

/// A world for each kind of queue.
async fn worlds(word: &str) -> [World; 2] {
    [World::rabbitmq(word).await, World::embedded(word).await]
}

impl World {
    /// Runs `consign dead`, without blocking the servers of the test.
    fn dead(&self, arguments: &[&str]) -> Output {
        let arguments = [&["dead"], arguments].concat();
        tokio::task::block_in_place(|| self.site.consign(&arguments))
    }

    /// As [`World::dead`], which must end with this code; gives its output, errors last.
    fn dead_ends(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.dead(arguments);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    /// Listed letters, by the job's id.
    fn listed(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.dead(&[&["list", "--json"], arguments].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut letters: Vec<Value> =
            text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        letters.sort_by_key(|letter| letter["job_id"].to_string());
        letters
    }

    /// A worker gives jobs of these names up, because their sources are not there; then it ends.
    async fn bury(&self, names: &[&str]) {
        let worker = self.site.worker().await;
        for name in names {
            self.lose(name).await;
        }
        for name in names {
            assert_eq!(self.ended(name).await.outcome, "failed");
        }
        end(worker).await;
    }

    /// Publishes a job whose source is not there.
    async fn lose(&self, name: &str) {
        let mut job = self.job(name, b"hello");
        job["labels"] = json!({ "report": "https://host/r?token=marked-secret-query" });
        std::fs::remove_file(self.site.files().join(name)).unwrap();
        self.publish(&job).await;
    }

    /// Puts the source back.
    fn restore_source(&self, name: &str) {
        self.site.file(name, b"hello");
    }
}

async fn end(worker: Worker) {
    worker.quiet().await;
    worker.terminate();
    assert_eq!(worker.exit(Duration::from_secs(30)).await.code(), Some(0));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_listed_shown_and_its_job_delivered_once_it_is_requeued() {
    for world in worlds("deadshow").await {
        let worker = world.site.worker().await;
        world.lose("a").await;
        assert_eq!(world.ended("a").await.outcome, "failed");
        let listed = until("it is listed", Duration::from_secs(30), async || world.listed(&[]).pop()).await;
        assert_eq!((&listed["reason"], &listed["class"]), (&json!("source_not_found"), &json!("job")));
        assert_eq!((&listed["attempts"], &listed["destination"]), (&json!(1), &json!("acme")));
        assert!(listed["age_seconds"].as_u64().unwrap() < 600);
        let table = world.dead_ends(0, &["list"]);
        assert!(table.contains("LETTER") && table.contains("1 dead letter: source_not_found 1"), "{table}");

        let name = listed["letter"].as_str().unwrap();
        for id in [&name[..6], "a"] {
            let shown = world.dead_ends(0, &["show", id]);
            assert!(shown.contains("source_not_found (class job)") && shown.contains("\"key\": \"a\""), "{shown}");
            assert!(shown.contains("https://host/r?***") && !shown.contains("marked-secret"), "{shown}");
        }
        assert!(world.dead_ends(1, &["show", "other"]).contains("there is no dead letter other"));
        let shown: Value = serde_json::from_slice(&world.dead(&["show", name, "--json"]).stdout).unwrap();
        assert!(shown["headers"]["x-begun-at"].is_string(), "a new run must know when the work began: {shown:#}");

        world.restore_source("a");
        let said = world.dead_ends(0, &["requeue", "--job", "a"]);
        assert!(said.contains("1 requeued"), "{said}");
        until("it is delivered", Duration::from_secs(60), async || {
            (world.terminal_ids("a").await.len() == 2).then_some(())
        })
        .await;
        assert_eq!(world.s3.object("acme", "in/a").unwrap().bytes, "hello");
        assert!(world.listed(&[]).is_empty());
        assert!(world.dead_ends(0, &["list"]).contains("there are no dead letters"));
        end(worker).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_without_a_choice_and_a_dry_run_does_nothing() {
    for world in worlds("deaddry").await {
        world.bury(&["a", "b"]).await;
        for command in ["requeue", "discard"] {
            let said = world.dead_ends(2, &[command, "--limit", "1"]);
            assert!(said.contains("--all selects all of them"), "{said}");
        }
        let said = world.dead_ends(2, &["discard", "--all"]);
        assert!(said.contains("confirm with --yes"), "{said}");
        for command in ["requeue", "discard"] {
            let said = world.dead_ends(0, &[command, "--all", "--dry-run"]);
            assert!(said.contains("2 would be"), "{said}");
        }
        assert!(world.dead_ends(2, &["requeue", "--reason", "typo"]).contains("there is no such reason"));
        assert_eq!(world.listed(&[]).len(), 2);
        assert_eq!(world.listed(&["--job", "b"]).len(), 1);
        assert_eq!(world.listed(&["--limit", "1"]).len(), 1);
        assert!(world.listed(&["--class", "destination"]).is_empty());
        for command in [&["list"][..], &["requeue"], &["requeue", "--dry-run"], &["discard", "--yes"]] {
            let said = world.dead_ends(0, &[command, &["--job", "nobody"]].concat());
            assert!(said.contains("no dead letter matches"), "{command:?}: {said}");
        }
        let said = world.dead_ends(0, &["discard", "--job", "a", "--yes"]);
        assert!(said.contains("1 discarded"), "{said}");
        assert_eq!(world.listed(&[])[0]["job_id"], "b");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_discarded_and_imported_letters_are_what_they_were() {
    for world in worlds("deadtrip").await {
        world.bury(&["a", "b", "c"]).await;
        let before = world.listed(&[]);
        let file = world.site.dir.path().join("letters.ndjson");
        let path = file.to_str().unwrap();
        assert!(world.dead_ends(0, &["export", path]).contains("3 exported"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "it holds presigned URLs");
        assert!(world.dead_ends(1, &["export", path]).contains("exists already"));
        let piped = world.dead(&["export", "-", "--job", "b"]);
        assert_eq!(text(&piped.stdout).lines().count(), 1, "{}", text(&piped.stderr));
        assert!(world.dead_ends(0, &["discard", "--all", "--yes"]).contains("3 discarded"));
        assert!(world.listed(&[]).is_empty());

        let good = std::fs::read_to_string(&file).unwrap();
        let bad = world.site.dir.path().join("bad.ndjson");
        std::fs::write(&bad, format!("{good}\nno letter\n")).unwrap();
        let said = world.dead_ends(1, &["import", bad.to_str().unwrap()]);
        assert!(said.contains("nothing was imported") && said.contains("line 5: "), "{said}");
        assert!(world.listed(&[]).is_empty());

        assert!(world.dead_ends(0, &["import", path]).contains("3 imported, 0 exist already"));
        assert!(world.dead_ends(0, &["import", path]).contains("0 imported, 3 exist already"));
        let names = |letters: &[Value]| letters.iter().map(|letter| letter["letter"].to_string()).collect::<Vec<_>>();
        let after = world.listed(&[]);
        assert_eq!(names(&after), names(&before));
        for field in ["died_at", "first_failure_at", "attempts", "message", "lane"] {
            assert_eq!(after[0][field], before[0][field], "{field}");
        }
        world.restore_source("b");
        assert!(world.dead_ends(0, &["requeue", "--job", "b"]).contains("1 requeued"));
        let worker = world.site.worker().await;
        until("it is delivered", Duration::from_secs(60), async || (world.s3.count("acme") == 1).then_some(())).await;
        end(worker).await;
        world.close().await;
    }
}

/// The commands of the page, in its order.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_do_what_they_say() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/docs/dead-letters.md")).unwrap();
    let lines = page.lines().filter_map(|line| line.strip_prefix("    consign dead "));
    let commands: Vec<_> = lines.map(|line| line.split('#').next().unwrap().replace('\'', "")).collect();
    assert!(commands.len() >= 6, "{commands:?}");
    let world = World::rabbitmq("deadreadme").await;
    let worker = world.site.worker().await;
    let mut job = world.job("a", b"hello");
    job["id"] = "acme/google_ads/2026-11-22".into();
    std::fs::remove_file(world.site.files().join("a")).unwrap();
    world.publish(&job).await;
    assert_eq!(world.ended("acme/google_ads/2026-11-22").await.outcome, "failed");
    end(worker).await;
    let file = world.site.dir.path().join("letters.ndjson").display().to_string();
    for command in commands {
        let command = command.replace("letters.ndjson", &file);
        world.dead_ends(0, &command.split_whitespace().collect::<Vec<_>>());
    }
    assert_eq!(world.listed(&[]).len(), 1, "the import put back what was exported");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_every_command_says_so_and_makes_none() {
    let mut world = World::embedded("deadnone").await;
    let file = world.site.dir.path().join("queue.db");
    std::fs::remove_file(&file).unwrap();
    let said = world.dead_ends(78, &["list"]);
    assert!(said.contains("queue.db does not exist"), "{said}");
    assert!(!file.exists());
    world.site.unset("broker.url");
    assert!(world.dead_ends(78, &["list"]).contains("broker.url"));
    world.site.set("broker.url", "amqp://127.0.0.1:1");
    world.dead_ends(69, &["list"]);
}
