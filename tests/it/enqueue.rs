//! `consign enqueue`: jobs from the command line, and what became of them.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::fixture::AcmeFixture;
use crate::testbed::scripted::Effect;
use crate::testbed::site::{Site, job};

/// Runs `consign enqueue --wait -` with these jobs as NDJSON.
async fn enqueue(site: &Site, jobs: &[Value]) -> Output {
    let file = site.dir.path().join("enqueue.toml");
    std::fs::write(&file, site.toml()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_consign"))
        .args(["enqueue", "--wait", "-", "--config"])
        .arg(file)
        .env_clear()
        .envs(site.variables())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    // The servers of this test live on this thread's runtime, so the wait must not block it.
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn waiting_ends_with_0_when_all_were_delivered_and_says_so_when_not() {
    let fixture = AcmeFixture::start("enqueue").await;
    let url = fixture.site.file("f", b"hello");
    let jobs: Vec<_> = (0..3).map(|n| job(&format!("job-{n}"), &url, "acme", &format!("k-{n}"))).collect();
    let output = enqueue(&fixture.site, &jobs).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fixture.s3.count("acme"), 3);

    let missing = format!("file://{}/missing", fixture.site.files().display());
    let mixed = [job("good", &url, "acme", "good"), job("bad", &missing, "acme", "bad")];
    let output = enqueue(&fixture.site, &mixed).await;
    assert_eq!(output.status.code(), Some(75), "partly done: {}", String::from_utf8_lossy(&output.stderr));
    fixture.close().await;
}

/// No outcome reports a deferred job, and while the circuit is closed only its worker does.
#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_job_is_reported_with_its_workers_last_failure() {
    let fixture = AcmeFixture::start("put-off").await;
    fixture.s3.on("PutObject").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    let url = fixture.site.file("f", b"hello");
    let enqueue = |to: &str, id: &str, limit: &str| {
        let base =
            ["enqueue", "--source", &url, "--to", to, "--key", "k", "--id", id, "--wait", "--wait-timeout", limit];
        tokio::task::block_in_place(|| {
            fixture.site.consign(&[&base[..], &["--admin", fixture.worker.admin()]].concat())
        })
    };
    let output = enqueue("acme", "denied", "12s");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(75), "{said}");
    let waits = "1 for acme waits for a retry or a free slot (access_denied: ";
    assert!(said.contains("1 left (timed out)") && said.contains(waits), "{said}");
    let meanwhile = String::from_utf8_lossy(&output.stderr);
    assert!(meanwhile.contains(&format!("waiting:\n  {waits}")) && !meanwhile.contains("not in"), "{meanwhile}");
    assert_eq!(fixture.worker.metric("consign_destination_circuit_open", "destination=\"acme\"").await, 0.0);

    let output = enqueue("nosuch", "nosuch", "60s");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nosuch is not in the configuration (configured: acme, acme-kms)"), "{said}");
    assert!(said.contains("unknown_destination"), "it was published all the same: {said}");
    fixture.close().await;
}
