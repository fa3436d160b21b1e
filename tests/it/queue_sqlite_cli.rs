//! Commands on the SQLite queue: `run`, `enqueue`, `topology`, and their errors when the file can't
//! be used.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixture::add_acme;
use crate::testbed::site::Site;
use crate::testbed::until;

fn file(site: &Site) -> PathBuf {
    site.dir.path().join("queue.db")
}

/// Runs a command without blocking the servers of the test.
fn consign(site: &Site, arguments: &[&str]) -> Output {
    tokio::task::block_in_place(|| site.consign(arguments))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_waits_for_the_outcome_also_of_a_job_that_was_delivered_before() {
    let mut site = Site::embedded("again");
    let s3 = add_acme(&mut site).await;
    let worker = site.worker().await;
    let url = site.file("f", b"hello");
    let arguments = ["enqueue", "--json", "--source", &url, "--to", "acme", "--key", "k", "--id", "a", "--wait"];
    for _ in 0..2 {
        let output = consign(&site, &arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let last = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned();
        let outcome: Value = serde_json::from_str(&last).unwrap();
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1");
    }
    assert_eq!((s3.count("acme"), s3.calls("PutObject").len()), (1, 1));
    let db = Connection::open(file(&site)).unwrap();
    let row: String =
        db.query_row("SELECT job_id || ' ' || outcome || ' ' || repeats FROM outcomes", [], |row| row.get(0)).unwrap();
    assert_eq!(row, "a delivered 1");
    worker.terminate();
    assert!(worker.exit(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_creates_a_queue_logs_its_path() {
    let mut site = Site::embedded("new");
    let _s3 = add_acme(&mut site).await;
    let message = "a new, empty queue was created";
    for made in [1, 0] {
        let worker = site.worker().await;
        let log = worker.log();
        assert_eq!(log.matches(message).count(), made, "{log}");
        let line = log.lines().find(|line| line.contains(message));
        let place = file(&site).display().to_string();
        assert!(line.is_none_or(|line| line.contains(&place) && line.contains("broker.url")), "{log}");
        worker.terminate();
        assert!(worker.exit(Duration::from_secs(30)).await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_job_is_a_dead_letter_with_a_reason() {
    let mut site = Site::embedded("dead");
    let _s3 = add_acme(&mut site).await;
    let worker = site.worker().await;
    let missing = format!("file://{}/missing", site.files().display());
    let arguments = ["enqueue", "--source", &missing, "--to", "acme", "--key", "k", "--id", "a/1", "--wait"];
    let output = consign(&site, &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let db = Connection::open(file(&site)).unwrap();
    let sql = "SELECT message_id || ' ' || reason || ' ' || class || ' ' || routing_key FROM dead_letters";
    let row: String = db.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(row, "a/1 source_not_found job job.scheduled.acme");
    worker.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_ends_every_command_with_the_reason() {
    let mut site = Site::embedded("foreign");
    // Another process may use the default port.
    site.set("admin.listen", "127.0.0.1:0");
    std::fs::write(file(&site), b"some notes, and no database at all\n".repeat(100)).unwrap();
    let url = site.file("f", b"hello");
    let enqueue = ["enqueue", "--source", &url, "--to", "acme", "--key", "k"];
    for arguments in [&["run"][..], &["topology", "apply"], &enqueue] {
        let output = consign(&site, arguments);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}: {}", stderr(&output));
        let message = stderr(&output);
        assert!(
            message.contains("queue.db is not a SQLite database") && message.contains("broker"),
            "{arguments:?}: {message}"
        );
    }
    assert!(std::fs::read(file(&site)).unwrap().starts_with(b"some notes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_file_makes_a_worker_unready_and_enqueue_exit_with_69() {
    let mut site = Site::embedded("locked");
    let s3 = add_acme(&mut site).await;
    let worker = site.worker().await;
    let db = Connection::open(file(&site)).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let url = site.file("f", b"hello");
    let output = consign(&site, &["enqueue", "--source", &url, "--to", "acme", "--key", "k"]);
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains("queue.db is locked by another process"), "{}", stderr(&output));
    let message = worker.get("/readyz").await;
    assert!(message.contains("queue.db is locked by another process"), "{message}");
    db.execute_batch("COMMIT").unwrap();
    worker.ready().await;
    let output = consign(&site, &["enqueue", "--source", &url, "--to", "acme", "--key", "k", "--wait"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(s3.count("acme"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_refuses_jobs_and_keeps_those_it_has() {
    let mut site = Site::embedded("full");
    let s3 = add_acme(&mut site).await;
    let Some(small) = Mount::small(&site) else {
        println!("SKIPPED: a small file system can't be mounted here; a unit test covers the same with a page limit");
        return;
    };
    site.set("broker.url", format!("sqlite:{}", small.0.join("queue.db").display()));
    site.topology();
    let url = site.file("f", b"hello");
    let kept = consign(&site, &["enqueue", "--source", &url, "--to", "acme", "--key", "kept"]);
    assert!(kept.status.success(), "{}", stderr(&kept));
    // As much as fits.
    let filler = small.0.join("filler");
    assert!(std::fs::write(&filler, vec![0; 2 << 20]).is_err());
    let refused = consign(&site, &["enqueue", "--source", &url, "--to", "acme", "--key", "refused"]);
    assert_eq!(refused.status.code(), Some(69), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("disk is full"), "{}", stderr(&refused));
    let worker = site.starting_worker().await;
    until("readyz reports it", Duration::from_secs(60), async || {
        let message = worker.try_get("/readyz").await?;
        (message.contains("queue.db") && message.contains("disk is full")).then_some(())
    })
    .await;
    std::fs::remove_file(&filler).unwrap();
    worker.ready().await;
    until("the kept job is delivered", Duration::from_secs(60), async || (s3.count("acme") == 1).then_some(())).await;
    worker.terminate();
    assert!(worker.exit(Duration::from_secs(30)).await.success());
}

/// A file system of 1 MiB, unmounted on drop.
struct Mount(PathBuf);

impl Mount {
    fn small(site: &Site) -> Option<Self> {
        let place = site.dir.path().join("small");
        std::fs::create_dir(&place).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "consign-test"]).arg(&place).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(place))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a worker that is just being killed may still have the file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A mistyped name must not create a queue that no worker consumes.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_worker_and_topology_apply_create_the_file() {
    let site = Site::embedded("typo");
    let url = site.file("f", b"hello");
    let template = site.dir.path().join("t.json");
    let job = serde_json::json!({"version": 1, "source": {"url": url}, "destination": "acme", "key": "{date}"});
    std::fs::write(&template, job.to_string()).unwrap();
    let template = template.display().to_string();
    let day = ["--from", "2026-11-21", "--to", "2026-11-21"];
    let enqueue = ["enqueue", "--source", &url, "--to", "acme", "--key", "k"];
    for arguments in [
        &enqueue[..],
        &[&["backfill", "--template", &template][..], &day].concat(),
        &["backfill", "status", "b"],
        &["backfill", "cancel", "b"],
        &["dead", "list"],
        &["dead", "requeue", "--all"],
        &["status", "reset", "acme"],
    ] {
        let output = consign(&site, arguments);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}: {}", stderr(&output));
        let message = stderr(&output);
        assert!(
            message.contains("queue.db does not exist") && message.contains("consign topology apply"),
            "{arguments:?}: {message}"
        );
    }
    let status = consign(&site, &["status"]);
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(shown.contains("the queues can't be counted") && shown.contains("queue.db does not exist"), "{shown}");
    assert!(!file(&site).exists());
    site.topology();
    let output = consign(&site, &enqueue);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_of_a_file_is_its_tables() {
    let site = Site::embedded("tables");
    let printed = consign(&site, &["topology", "print", "--json"]);
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert!(!file(&site).exists(), "printing makes nothing");
    let applied = consign(&site, &["topology", "apply"]);
    assert!(applied.status.success(), "{}", stderr(&applied));
    assert!(String::from_utf8_lossy(&applied.stdout).contains("queue.db is ready"));
    let db = Connection::open(file(&site)).unwrap();
    for table in printed["tables"].as_object().unwrap().keys() {
        let sql = format!("SELECT count(*) FROM {table}");
        assert_eq!(db.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap(), 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_a_destination_that_is_not_configured_warns_and_is_sent() {
    let mut site = Site::embedded("unknown");
    let _s3 = add_acme(&mut site).await;
    site.topology();
    let output = consign(&site, &["status", "reset", "brokn"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let warned = "brokn is not in the configuration (configured: acme, acme-kms); sent anyway";
    assert!(stderr(&output).contains(warned), "{}", stderr(&output));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("they close the circuit breaker of brokn"), "{shown}");
    let output = consign(&site, &["status", "reset", "acme"]);
    assert!(output.status.success() && !stderr(&output).contains("not configured"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_id_is_printed() {
    let mut site = Site::embedded("made");
    let _s3 = add_acme(&mut site).await;
    site.topology();
    let url = site.file("f", b"hello");
    let enqueue = ["enqueue", "--source", &url, "--to", "acme", "--key", "k"];
    let output = consign(&site, &enqueue);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.starts_with("published cli/"), "{shown}");
    let made = |db: &Connection| -> Vec<String> {
        let mut rows = db.prepare("SELECT message_id FROM jobs ORDER BY rowid").unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let db = Connection::open(file(&site)).unwrap();
    assert_eq!(made(&db), [shown.trim_end().trim_start_matches("published ")]);
    let output = consign(&site, &[&enqueue[..], &["--wait", "--wait-timeout", "1ms"]].concat());
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    let id = made(&db).pop().unwrap();
    assert!(stderr(&output).contains(&format!("published {id}")), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_wait_reports_that_the_jobs_stay_and_exits_with_130() {
    let mut site = Site::embedded("interrupted");
    let _s3 = add_acme(&mut site).await;
    site.topology();
    let config = site.dir.path().join("wait.toml");
    std::fs::write(&config, site.toml()).unwrap();
    let url = site.file("f", b"hello");
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.args(["enqueue", "--source", &url, "--to", "acme", "--key", "k", "--id", "a", "--wait", "--config"]);
    command.arg(config).env_clear().envs(site.variables()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    tokio::task::block_in_place(|| lines.find(|line| line.as_ref().unwrap() == "published a")).unwrap().unwrap();
    // It listens for the signal just after that line.
    tokio::time::sleep(Duration::from_secs(1)).await;
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = tokio::task::block_in_place(|| child.wait_with_output()).unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(130), "{shown}");
    assert!(shown.contains("0 delivered, 1 left (interrupted; the jobs stay queued)"), "{shown}");
}
