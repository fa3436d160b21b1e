//! `consign enqueue`: jobs from the command line, and what became of them.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::shop::Shop;
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
    let shop = Shop::open("enqueue").await;
    let url = shop.site.file("f", b"hello");
    let jobs: Vec<_> = (0..3).map(|n| job(&format!("job-{n}"), &url, "acme", &format!("k-{n}"))).collect();
    let output = enqueue(&shop.site, &jobs).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(shop.s3.count("acme"), 3);

    let missing = format!("file://{}/missing", shop.site.files().display());
    let mixed = [job("good", &url, "acme", "good"), job("bad", &missing, "acme", "bad")];
    let output = enqueue(&shop.site, &mixed).await;
    assert_eq!(output.status.code(), Some(75), "partly done: {}", String::from_utf8_lossy(&output.stderr));
    shop.close().await;
}
