//! `consign backfill` on both queues: published once however often it is interrupted, waited for,
//! cancelled, reported on.

mod again;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{ACME, add_acme, role_destination};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::Site;
use crate::testbed::{MIB, bytes, until};

const LIMIT: Duration = Duration::from_secs(120);
const DAYS: usize = 1095;
/// Publishes on their way at once: so many may be unrecorded at a kill.
const WINDOW: usize = 64;

/// A site with its S3, on either queue.
async fn sites(word: &str) -> [(Site, ScriptedS3); 2] {
    let mut embedded = Site::embedded(word);
    let mut rabbit = Site::new(word).await;
    let s3 = [add_acme(&mut embedded).await, add_acme(&mut rabbit).await];
    embedded.topology();
    let [one, other] = s3;
    [(embedded, one), (rabbit, other)]
}

/// Writes a template for acme whose sources are files of the site, one a day.
fn template(site: &Site) -> String {
    let path = site.dir.path().join("template.json");
    let url = format!("file://{}/{{name}}", site.files().display());
    let job = json!({
        "version": 1, "id": "acme/{date}", "source": {"url": url}, "destination": "acme", "key": "days/{date}.csv",
    });
    std::fs::write(&path, job.to_string()).unwrap();
    path.display().to_string()
}

/// The arguments of a backfill whose days all have the source `name`.
fn arguments<'a>(template: &'a str, from: &'a str, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["backfill", "--template", template, "--from", from, "--to", "2026-11-21", "--var", name];
    base.iter().chain(more).copied().collect()
}

fn consign(site: &Site, arguments: &[&str]) -> Output {
    tokio::task::block_in_place(|| site.consign(arguments))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn exits(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", String::from_utf8_lossy(&output.stdout), said(output));
}

fn status(site: &Site, id: &str) -> Value {
    let output = consign(site, &["backfill", "status", id, "--json"]);
    exits(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until the outcomes of a backfill are these.
async fn becomes(site: &Site, id: &str, expected: &Value) {
    let mut last = Value::Null;
    let end = tokio::time::Instant::now() + LIMIT;
    while last["outcomes"] != *expected {
        assert!(tokio::time::Instant::now() < end, "not {expected}: {last:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        last = status(site, id);
    }
}

fn outcomes(delivered: usize, skipped: usize, failed: usize, left: usize) -> Value {
    json!({"delivered": delivered, "skipped": skipped, "failed": failed, "expired": 0, "retrying": 0, "left": left})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_the_jobs_and_needs_no_broker() {
    let mut site = Site::embedded("dry");
    let template = template(&site);
    site.unset("broker.url");
    let arguments = arguments(&template, "2026-11-01", "name=f", &["--dry-run"]);
    let output = consign(&site, &arguments);
    exits(&output, 0);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("... 8 more ...") && table.contains("21 jobs of backfill "), "{table}");
    let output = consign(&site, &[&arguments[..], &["--json"]].concat());
    exits(&output, 0);
    let lines = String::from_utf8(output.stdout).unwrap();
    let jobs: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (jobs.len(), &jobs[0]["id"], &jobs[20]["key"]),
        (21, &json!("acme/2026-11-21"), &json!("days/2026-11-01.csv"))
    );
    let output = consign(&site, &arguments[..arguments.len() - 1]);
    exits(&output, 78);
    assert!(said(&output).contains("broker.url: is required by this command"));
}

/// The command takes the options that the page shows.
#[test]
fn the_pages_backfill_can_be_run() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/docs/backfills.md")).unwrap();
    let template = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ads.json"), template).unwrap();
    let commands =
        page.lines().filter_map(|line| line.strip_prefix("    consign ")).map(|line| line.split('#').next().unwrap());
    let mut shown = 0;
    for command in commands {
        let publishes = command.contains("--template") && !command.contains("--dry-run");
        // Without a broker: what is refused then is not the command line.
        let output = Command::new(env!("CARGO_BIN_EXE_consign"))
            .args(command.split_whitespace())
            .current_dir(dir.path())
            .env_clear()
            .output()
            .unwrap();
        let dry = command.contains("--dry-run");
        exits(&output, if dry { 0 } else { 78 });
        assert!(!dry || String::from_utf8_lossy(&output.stdout).contains("1095 jobs of backfill ads"), "{output:?}");
        shown += usize::from(dry || publishes);
    }
    assert_eq!(shown, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_is_waited_for_and_the_same_command_again_publishes_nothing() {
    for (site, s3) in sites("wait").await {
        let worker = site.worker().await;
        site.file("f", b"hello");
        let template = template(&site);
        let arguments = arguments(&template, "2026-10-23", "name=f", &["--id", "days", "--wait", "--json"]);
        for published in [30, 0] {
            let output = consign(&site, &arguments);
            exits(&output, 0);
            assert!(said(&output).contains("30 delivered"), "{}", said(&output));
            let lines = String::from_utf8(output.stdout).unwrap();
            assert_eq!(lines.matches("\"published\":true").count(), published, "{lines}");
            assert!(!lines.lines().any(|line| serde_json::from_str::<Value>(line).is_err()), "{lines}");
        }
        assert_eq!((s3.count("acme"), s3.calls("PutObject").len()), (30, 30));
        let status = status(&site, "days");
        assert_eq!((&status["outcomes"], &status["published"]), (&outcomes(30, 0, 0, 0), &json!(30)), "{status:#}");
        worker.quiet().await;
        site.broker_clean().await;
    }
}

/// A stream has no end where one is always written to.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_running_backfill_does_not_wait_for_its_end() {
    let mut site = Site::new("goeson").await;
    let _s3 = add_acme(&mut site).await;
    let worker = site.worker().await;
    site.file("f", b"hello");
    let template = template(&site);
    exits(&consign(&site, &arguments(&template, "2026-11-20", "name=f", &["--id", "days", "--wait"])), 0);
    let going_on = async {
        for _ in 0..200 {
            site.broker.put_into("backfill.days", b"an outcome", &[]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let ended = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut asking =
            spawned(&site, &["backfill", "status", "days", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        until("it reports", LIMIT, async || asking.try_wait().unwrap()).await;
        asking.wait_with_output().unwrap()
    };
    let reported = tokio::select! {
        () = going_on => panic!("the status came only when there were no more outcomes"),
        reported = ended => reported,
    };
    exits(&reported, 0);
    let reported: Value = serde_json::from_slice(&reported.stdout).unwrap();
    assert_eq!(reported["outcomes"], outcomes(2, 0, 0, 0), "{reported:#}");
    worker.quiet().await;
    site.broker_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn days_that_fail_end_the_wait_with_75_and_are_reported_with_their_reason() {
    for (site, s3) in sites("fail").await {
        let _worker = site.worker().await;
        let path = site.dir.path().join("template.json");
        let url = format!("file://{}/{{date}}", site.files().display());
        let job = json!({"version": 1, "source": {"url": url}, "destination": "acme", "key": "{date}"});
        std::fs::write(&path, job.to_string()).unwrap();
        for day in ["2026-11-18", "2026-11-19", "2026-11-21"] {
            site.file(day, b"hello");
        }
        let template = path.display().to_string();
        let base = ["backfill", "--template", &template, "--from", "2026-11-17", "--to", "2026-11-21", "--id", "some"];
        let output = consign(&site, &[&base[..], &["--wait"]].concat());
        exits(&output, 75);
        assert!(String::from_utf8_lossy(&output.stdout).contains("3 delivered, 2 failed"), "{output:?}");
        assert!(said(&output).contains("some/2026-11-20: failed: source_not_found"), "{}", said(&output));
        let status = status(&site, "some");
        assert_eq!(status["outcomes"], outcomes(3, 0, 2, 0), "{status:#}");
        let trouble = &status["failures"]["source_not_found"];
        assert_eq!((&trouble["jobs"], &trouble["example"]), (&json!(2), &json!("some/2026-11-17")), "{status:#}");
        assert_eq!(s3.count("acme"), 3);
        let output = consign(&site, &["backfill", "status", "nobody"]);
        exits(&output, 1);
        assert!(said(&output).contains("check the spelling"), "{}", said(&output));
        let output = consign(&site, &["backfill", "cancel", "nobody"]);
        exits(&output, 0);
        assert!(said(&output).contains("no local record of a backfill nobody"), "{}", said(&output));
        let output = consign(&site, &["backfill", "cancel", "some"]);
        exits(&output, 0);
        assert!(!said(&output).contains("no local record"), "it is on record: {}", said(&output));
        let elsewhere = site.dir.path().join("none.ndjson").display().to_string();
        let output = consign(&site, &["backfill", "cancel", "some", "--record", &elsewhere]);
        exits(&output, 0);
        assert!(!said(&output).contains("no local record"), "its outcomes are kept: {}", said(&output));
        site.broker_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_left_are_reported_with_what_they_wait_for() {
    for (mut site, _s3) in sites("left").await {
        site.destination("beta", &role_destination("nobodys", ACME));
        let worker = site.worker().await;
        site.file("f", b"hello");
        let template = template(&site);
        std::fs::write(&template, std::fs::read_to_string(&template).unwrap().replace("\"acme\"", "\"beta\"")).unwrap();
        let (from, name) = ("2026-11-12", "name=f");
        let admin = worker.admin().trim_start_matches("http://").trim_end_matches('/').to_owned();
        let base = arguments(&template, from, name, &["--id", "left", "--admin", &admin, "--wait", "--wait-timeout"]);
        let waits = "10 wait for beta, whose circuit breaker is open (bucket_not_found: create the bucket nobodys";
        let output = consign(&site, &[&base[..], &["20s"]].concat());
        exits(&output, 75);
        let summary = String::from_utf8_lossy(&output.stdout);
        assert!(summary.contains("10 left (timed out)") && summary.contains(waits), "{summary}");
        let meanwhile = said(&output);
        assert_eq!(meanwhile.matches(&format!("waiting:\n  {waits}")).count(), 1, "once, as it stays so: {meanwhile}");
        let output = consign(&site, &[&base[..], &["1s", "--json"]].concat());
        exits(&output, 75);
        let lines = String::from_utf8(output.stdout).unwrap();
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        let waiting = &last["waiting_for"][0];
        let reported = ["jobs", "destination", "state", "reason"].map(|field| waiting[field].clone());
        assert_eq!(reported, [json!(10), json!("beta"), json!("circuit_open"), json!("bucket_not_found")], "{last:#}");
        let output = consign(&site, &["backfill", "status", "left", "--admin", &admin]);
        assert!(String::from_utf8_lossy(&output.stdout).contains(waits), "{output:?}");
        let nobody = ["backfill", "status", "left", "--admin", "127.0.0.1:1"];
        let output = String::from_utf8(consign(&site, &nobody).stdout).unwrap();
        assert!(
            output.contains("\n  no worker of this queue answers at http://127.0.0.1:1; name one with --admin URL"),
            "{output}"
        );
        let output = consign(&site, &[&nobody[..], &["--json"]].concat());
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            status["waiting_for"],
            json!([{"jobs": 10, "destination": "beta", "state": "queued"}]),
            "{status:#}"
        );
        site.broker_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_skips_what_waits_and_lets_what_runs_finish() {
    for (mut site, s3) in sites("cancel").await {
        site.set("worker.slots", 1).set("worker.backfill_slots", 1);
        let worker = site.worker().await;
        site.file("f", b"hello");
        let template = template(&site);
        s3.on("PutObject").nth(1).before(Effect::Delay(Duration::from_secs(10)));
        exits(&consign(&site, &arguments(&template, "2026-11-02", "name=f", &["--id", "days"])), 0);
        until("one runs", LIMIT, async || {
            (worker.metric("consign_transfers_in_flight", "lane=\"backfill\"").await >= 1.0).then_some(())
        })
        .await;
        assert_eq!(s3.count("acme"), 0, "it is at work");
        let output = consign(&site, &["backfill", "cancel", "days", "--json"]);
        exits(&output, 0);
        let control: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&control["kind"], &control["backfill"]), (&json!("cancel_backfill"), &json!("days")));
        becomes(&site, "days", &outcomes(1, 19, 0, 0)).await;
        assert_eq!((s3.count("acme"), s3.calls("PutObject").len()), (1, 1));
        assert!(status(&site, "days")["cancelled_at"].is_string());
        // The record knows, too: nothing goes on by accident.
        let again = arguments(&template, "2026-11-02", "name=f", &["--id", "days"]);
        let output = consign(&site, &again);
        exits(&output, 1);
        assert!(said(&output).contains("was cancelled at"), "{}", said(&output));
        // On purpose it does: the cancellation was for what was published before it.
        let output = consign(&site, &[&again[..], &["--again", "--wait"]].concat());
        exits(&output, 0);
        assert_eq!(s3.count("acme"), 20, "{}", said(&output));
        // The one that was delivered before the cancellation is remembered, and delivered again.
        assert_eq!(s3.calls("PutObject").len(), 21, "{}", said(&output));
        assert!(status(&site, "days")["cancelled_at"].is_null(), "it was cancelled before it was begun anew");
        worker.quiet().await;
        site.broker_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_after_the_cancellation_knows_it_and_does_other_work() {
    for (site, s3) in sites("later").await {
        site.file("f", b"hello");
        let template = template(&site);
        for id in ["gone", "stays"] {
            let name = format!("{}.json", site.dir.path().join(id).display());
            let text = std::fs::read_to_string(&template).unwrap().replace("acme/{date}", &format!("{id}/{{date}}"));
            std::fs::write(&name, text.replace("days/", &format!("{id}/"))).unwrap();
            exits(&consign(&site, &arguments(&name, "2026-11-12", "name=f", &["--id", id])), 0);
        }
        exits(&consign(&site, &["backfill", "cancel", "gone"]), 0);
        let _workers = (site.worker().await, site.worker().await);
        becomes(&site, "gone", &outcomes(0, 10, 0, 0)).await;
        becomes(&site, "stays", &outcomes(10, 0, 0, 0)).await;
        assert_eq!((s3.count("acme"), s3.calls("PutObject").len()), (10, 10));
        site.broker_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_half_done_upload_of_a_cancelled_job_is_aborted() {
    for (mut site, s3) in sites("half").await {
        site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 1).set("worker.drain_timeout", "20s");
        s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(300)));
        let first = site.worker().await;
        site.file("f", &bytes(1, 60 * MIB));
        let template = template(&site);
        exits(&consign(&site, &arguments(&template, "2026-11-21", "name=f", &["--id", "half"])), 0);
        until("some parts", LIMIT, async || (s3.calls("UploadPart").len() >= 3).then_some(())).await;
        first.terminate();
        first.exit(Duration::from_secs(30)).await;
        assert_eq!((s3.open_uploads(), s3.count("acme")), (1, 0), "it was handed over half done");
        exits(&consign(&site, &["backfill", "cancel", "half"]), 0);
        let parts = s3.calls("UploadPart").len();
        let _second = site.worker().await;
        becomes(&site, "half", &outcomes(0, 1, 0, 0)).await;
        until("the upload is given up", LIMIT, async || (s3.open_uploads() == 0).then_some(())).await;
        assert_eq!((s3.calls("UploadPart").len(), s3.count("acme")), (parts, 0));
        site.broker_clean().await;
    }
}

/// A run beside the test.
fn spawned(site: &Site, arguments: &[&str]) -> Command {
    let file = site.dir.path().join("backfill.toml");
    std::fs::write(&file, site.toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.args(arguments).arg("--config").arg(file).env_clear().envs(site.variables());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_publishes_stops_when_it_is_cancelled_from_elsewhere() {
    for (site, _s3) in sites("stops").await {
        let template = template(&site);
        let record = site.dir.path().join("record.ndjson");
        let place = record.display().to_string();
        let base = arguments(&template, "2023-11-23", "name=f", &["--id", "stops", "--record", &place]);
        let mut command = spawned(&site, &[&base[..], &["--rate", "4/s", "--wait"]].concat());
        let run = command.stderr(Stdio::piped()).spawn().unwrap();
        until("it has published some", LIMIT, async || (recorded(&record) >= 3).then_some(())).await;
        // The command gets another record: nothing but the control message can stop it.
        let elsewhere = site.dir.path().join("none.ndjson").display().to_string();
        exits(&consign(&site, &["backfill", "cancel", "stops", "--record", &elsewhere]), 0);
        let output = tokio::task::block_in_place(|| run.wait_with_output()).unwrap();
        exits(&output, 75);
        let published = recorded(&record);
        let counts = format!("{published} published, {} not", DAYS - published);
        let said_it = said(&output);
        assert!(said_it.contains("backfill stops was cancelled at") && said_it.contains(&counts), "{said_it}");
        assert!(!said_it.contains("ERROR"), "{said_it}");
        let output = consign(&site, &base);
        exits(&output, 1);
        assert!(said(&output).contains("was cancelled at"), "it is on record: {}", said(&output));
        site.broker_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_could_not_hear_of_its_cancellation_says_so_and_publishes() {
    let mut site = Site::new("deaf").await;
    let _s3 = add_acme(&mut site).await;
    site.broker.disown("control").await;
    let template = template(&site);
    let record = site.dir.path().join("record.ndjson");
    let place = record.display().to_string();
    let slowly = [
        &arguments(&template, "2023-11-23", "name=f", &["--id", "stops", "--record", &place])[..],
        &["--rate", "30/h"],
    ];
    let mut run = spawned(&site, &slowly.concat()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(run.stderr.take().unwrap()).lines();
    let said_it = tokio::task::block_in_place(|| {
        lines.map_while(Result::ok).find(|line| line.contains("are not received while"))
    });
    until("it publishes all the same", LIMIT, async || (recorded(&record) == 1).then_some(())).await;
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(said_it.unwrap().contains("control"));
    site.broker_clean().await;
}

/// A run that is killed as soon as it has recorded so many confirms.
async fn killed(site: &Site, arguments: &[&str], record: &PathBuf, confirms: usize) {
    let mut child: Child = spawned(site, arguments).spawn().unwrap();
    until("it has published some", LIMIT, async || (recorded(record) >= confirms).then_some(())).await;
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(recorded(record) < DAYS, "it was killed too late to show anything");
}

fn recorded(record: &PathBuf) -> usize {
    std::fs::read_to_string(record).unwrap_or_default().matches("\"published\"").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_of_1095_days_that_is_killed_twice_ends_with_each_day_once() {
    for (site, s3) in sites("killed").await {
        site.file("f", b"hello");
        let template = template(&site);
        let record = site.dir.path().join("record.ndjson");
        let place = record.display().to_string();
        let base = arguments(&template, "2023-11-23", "name=f", &["--id", "years", "--record", &place]);
        let slowly = [&base[..], &["--rate", "400/s"]].concat();
        let worker = site.worker().await;
        killed(&site, &slowly, &record, 300).await;
        killed(&site, &slowly, &record, 700).await;
        let before = recorded(&record);
        let output = consign(&site, &[&base[..], &["--wait", "--json"]].concat());
        exits(&output, 0);
        assert!(said(&output).contains(&format!("{DAYS} delivered")), "{}", said(&output));
        let published = String::from_utf8_lossy(&output.stdout).matches("\"published\":true").count();
        assert_eq!(published + before, DAYS, "what was confirmed is not published again");
        assert_eq!((recorded(&record), s3.count("acme")), (DAYS, DAYS));
        // Each day was uploaded once, although what was on its way at a kill was published twice.
        assert_eq!(s3.calls("PutObject").len(), DAYS);
        if site.broker.url.starts_with("sqlite:") {
            let db = rusqlite::Connection::open(site.dir.path().join("queue.db")).unwrap();
            let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'jobs'";
            let published: u32 = db.query_row(sql, [], |row| row.get(0)).unwrap();
            let published = usize::try_from(published).unwrap();
            assert!((DAYS..=DAYS + 2 * WINDOW).contains(&published), "{published} were published");
        }
        let output = consign(&site, &["backfill", "status", "years", "--json", "--record", &place]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["outcomes"], outcomes(DAYS, 0, 0, 0), "{status:#}");
        worker.quiet().await;
        site.broker_clean().await;
    }
}

impl Site {
    /// Deletes what is left on the broker, where there is one, the streams of the backfills
    /// included.
    async fn broker_clean(&self) {
        if self.broker.url.starts_with("sqlite:") {
            return;
        }
        for id in ["days", "some", "gone", "stays", "half", "years", "left", "stops", "again", "skewed"] {
            self.broker.disown(&format!("backfill.{id}")).await;
        }
        self.broker.clean().await;
    }
}
