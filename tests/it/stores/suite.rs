//! The tests that every store gets, as far as it has what they need.

use std::time::Duration;

use serde_json::{Value, json};

use super::expiry::BriefSts;
use super::ground::Store;
pub use super::mixed::one_hundred_mixed_jobs;
use crate::testbed::moto::Stored;
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{KIB, MIB, bytes, unpacked, until};

/// Some parts of 5 MiB, and not a whole number of them.
const IN_PARTS: usize = 11 * MIB + 1;
/// As many as take some seconds at the limit of a destination.
const SLOW: usize = 44 * MIB + 1;

/// The smallest parts, as early as possible.
fn small_parts(site: &mut Site) {
    site.set("upload.part_size", "5MiB").set("upload.multipart_threshold", "5MiB");
}

/// A store, a site, and a running worker.
struct Run<'a> {
    store: &'a Store,
    site: Site,
    worker: Worker,
}

impl<'a> Run<'a> {
    async fn start(store: &'a Store) -> Self {
        Self::with(store, |_| ()).await
    }

    async fn with(store: &'a Store, change: impl FnOnce(&mut Site)) -> Self {
        let mut site = store.site();
        change(&mut site);
        let worker = site.worker().await;
        Self { store, site, worker }
    }

    /// Schedules a file of these bytes, with further fields of the job.
    async fn schedule(&self, name: &str, destination: &str, bytes: &[u8], fields: &Value) {
        let file = self.site.file(name, bytes);
        let mut job = job(name, &file, destination, name);
        for (field, value) in fields.as_object().unwrap() {
            job[field] = value.clone();
        }
        assert!(self.site.broker.offer("scheduled", &job).await);
    }

    async fn ended(&self, name: &str, outcome: &str) -> Value {
        let ended = self.site.broker.ended(name).await;
        assert_eq!(ended["type"], format!("consign.transfer.{outcome}.v1"), "{ended:#}");
        ended["data"].clone()
    }

    /// Delivers a file to a key of the job's name; gives the object and the outcome.
    async fn deliver(&self, name: &str, destination: &str, content: &[u8], fields: &Value) -> (Stored, Value) {
        self.schedule(name, destination, content, fields).await;
        let data = self.ended(name, "delivered").await;
        let key = fields["key"].as_str().unwrap_or(name);
        let stored = self.store.object(key).await.unwrap_or_else(|| panic!("{key} is not there: {data:#}"));
        assert_eq!(data["bytes"], stored.bytes.len(), "{data:#}");
        (stored, data)
    }

    /// Nothing is in progress, and no upload is left but those whose abort the customer denies.
    async fn close(self) {
        self.worker.quiet().await;
        let denied = self.worker.metric("consign_multipart_abort_denied_total", "").await;
        let open = self.store.open_uploads().await;
        assert!(open.is_none_or(|open| open.to_string() == denied.to_string()), "{open:?} open, {denied} denied");
    }
}

fn same(stored: &Stored, content: &[u8]) {
    assert!(stored.bytes == content, "{} bytes differ from {}", stored.bytes.len(), content.len());
}

/// The answer of `consign check`, and its exit code.
fn check(site: &Site, destination: &str) -> (Value, i32) {
    let output = tokio::task::block_in_place(|| site.consign(&["check", destination, "--json"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (answer, output.status.code().unwrap())
}

fn step<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let steps = answer["steps"].as_array().unwrap();
    steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no step {name}: {answer:#}"))
}

/// Each destination passes, and its test writes and uploads in parts.
pub async fn check_passes(store: Store) {
    let site = store.site();
    for destination in store.usual() {
        let (answer, exit) = check(&site, destination);
        assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{destination}: {answer:#}");
        assert_eq!(step(&answer, "write")["result"], "ok", "{destination}: {answer:#}");
        assert!(["ok", "warning"].contains(&step(&answer, "multipart")["result"].as_str().unwrap()), "{answer:#}");
        let steps = answer["steps"].as_array().unwrap().iter();
        let warned: Vec<_> = steps.filter(|step| step["result"] == "warning").map(|step| &step["code"]).collect();
        eprintln!("{destination}: warnings of the check: {warned:?}");
    }
    assert_eq!(store.open_uploads().await.unwrap_or(0), 0);
}

pub async fn small_and_empty_objects(store: Store) {
    let run = Run::start(&store).await;
    for destination in store.usual() {
        for size in [0, 1, KIB] {
            let content = bytes(7, size);
            let fields = json!({"content_type": "text/csv", "metadata": {"origin": "tests"}});
            let (stored, _) = run.deliver(&format!("{destination}-{size}"), destination, &content, &fields).await;
            same(&stored, &content);
            assert_eq!(stored.content_type.as_deref(), Some("text/csv"));
        }
    }
    run.close().await;
}

/// From a file, in parts that are read beside each other; and as a stream of unknown length.
pub async fn objects_in_parts(store: Store) {
    let run = Run::with(&store, small_parts).await;
    let content = bytes(8, IN_PARTS);
    let (stored, data) = run.deliver("parts", store.usual()[0], &content, &json!({})).await;
    same(&stored, &content);
    assert_eq!(data["parts"], 3, "{data:#}");
    let (stored, data) = run.deliver("packed", store.usual()[0], &content, &json!({"compression": "gzip"})).await;
    assert!(data["parts"].as_u64().unwrap() > 1, "{data:#}");
    assert!(unpacked("gzip", &stored.bytes) == content);
    run.close().await;
}

/// Characters that clients and servers encode in several ways, and a key near the longest.
pub async fn odd_keys(store: Store) {
    let run = Run::start(&store).await;
    let long = ["l", "o", "n", "g"].map(|word| word.repeat(if store.files { 24 } else { 199 })).join("/");
    let mut keys = vec![
        "a b+c&d=e.csv",
        "100%/%2B.csv",
        "?query#fragment",
        "ümläut/日本語/🦀",
        "'quoted'(\"twice\")!*~;:@,$",
        "a//b",
        " blank ",
        &long,
    ];
    if !store.files {
        keys.push("ends/with/");
    }
    for (number, key) in keys.into_iter().enumerate() {
        let content = bytes(number as u64, 100 + number);
        let (stored, data) =
            run.deliver(&format!("odd-{number}"), store.usual()[0], &content, &json!({"key": key})).await;
        same(&stored, &content);
        assert!(data["key"].as_str().unwrap().ends_with(key), "{data:#}");
    }
    run.close().await;
}

pub async fn gzip(store: Store) {
    let run = Run::start(&store).await;
    let content = "date,cost\n2026-11-29,1.25\n".repeat(5000).into_bytes();
    let (stored, data) = run.deliver("cost.csv.gz", store.usual()[0], &content, &json!({"compression": "gzip"})).await;
    assert!(unpacked("gzip", &stored.bytes) == content);
    assert_eq!(stored.content_encoding.as_deref(), Some("gzip"));
    assert_eq!(data["source_bytes"], content.len());
    run.close().await;
}

/// Under the customer's own key, in one and in several parts, and the outcome says so.
pub async fn encryption_with_a_key(store: Store) {
    let run = Run::with(&store, small_parts).await;
    let encrypted: Vec<_> = store.usual().into_iter().filter(|name| name.ends_with("-kms")).collect();
    assert!(!encrypted.is_empty(), "this store has no destination with a key");
    for destination in encrypted {
        let key = &store.destinations[destination]["kms_key_arn"];
        for size in [KIB, IN_PARTS] {
            let content = bytes(9, size);
            let name = format!("{destination}-{size}");
            let (stored, data) = run.deliver(&name, destination, &content, &json!({})).await;
            same(&stored, &content);
            assert_eq!(data["encryption"], json!({"algorithm": "aws:kms", "kms_key_arn": key}), "{data:#}");
            assert_eq!((stored.encryption.as_deref(), &json!(stored.kms_key)), (Some("aws:kms"), key));
        }
    }
    run.close().await;
}

/// Nothing that is there is replaced where the job forbids it, in one part and in several.
pub async fn existing_objects(store: Store) {
    let run = Run::with(&store, small_parts).await;
    let destination = store.usual()[0];
    for size in [KIB, IN_PARTS] {
        let (theirs, ours) = (bytes(10, size), bytes(11, size));
        let key = format!("taken-{size}");
        run.deliver(&key, destination, &theirs, &json!({})).await;
        for (if_exists, outcome) in [("keep", "skipped"), ("fail", "failed")] {
            let name = format!("{if_exists}-{size}");
            run.schedule(&name, destination, &ours, &json!({"key": key, "if_exists": if_exists})).await;
            let data = run.ended(&name, outcome).await;
            assert!(outcome == "skipped" || data["reason"] == "object_exists", "{data:#}");
            same(&store.object(&key).await.unwrap(), &theirs);
            let fresh = format!("fresh-{name}");
            let (stored, _) = run.deliver(&fresh, destination, &ours, &json!({"if_exists": if_exists})).await;
            same(&stored, &ours);
        }
        let (stored, _) = run.deliver(&format!("new-{size}"), destination, &ours, &json!({"key": key})).await;
        same(&stored, &ours);
    }
    run.close().await;
}

/// An object that is not encrypted as demanded is no delivery.
pub async fn an_ignored_encryption_is_named(store: Store) {
    let (answer, exit) = check(&store.site(), "ignored-kms");
    assert_eq!((answer["verdict"].as_str(), exit), (Some("not ready"), 3), "{answer:#}");
    let steps = answer["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["code"] == "encryption_mismatch"), "{answer:#}");
    for (name, size) in [("small", KIB), ("parts", IN_PARTS)] {
        // A worker of its own: the first mismatch opens the circuit breaker.
        let run = Run::with(&store, small_parts).await;
        run.schedule(name, "ignored-kms", &bytes(9, size), &json!({})).await;
        until("the mismatch is counted", Duration::from_secs(60), async || {
            let metric = "consign_transfer_failures_total";
            (run.worker.metric(metric, "reason=\"encryption_mismatch\"").await >= 1.0).then_some(())
        })
        .await;
        assert_eq!(run.site.broker.outcomes().await.len(), 0, "the job waits for the customer");
        run.close().await;
    }
}

/// A drained worker hands a half-done upload over, and the next one continues it.
pub async fn an_upload_resumes(store: Store) {
    let destination = store.usual()[0];
    let run = Run::with(&store, |site| {
        let slow = format!("destinations.{destination}.max_bytes_per_second");
        site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 2).set(&slow, 10 * MIB);
    })
    .await;
    let content = bytes(12, SLOW);
    run.schedule("resumed", destination, &content, &json!({})).await;
    until("two parts", Duration::from_secs(60), async || {
        (run.worker.metric("consign_parts_total", "result=\"ok\"").await >= 2.0).then_some(())
    })
    .await;
    run.worker.terminate();
    let status = run.worker.exit(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(0), "{}", run.worker.log());
    let run = Run { worker: run.site.worker().await, ..run };
    let data = run.ended("resumed", "delivered").await;
    assert_eq!((&data["resumed"], &data["attempts"]), (&json!(true), &json!(1)), "{data:#}");
    same(&store.object("resumed").await.unwrap(), &content);
    run.close().await;
}

/// The session ends in the middle of a transfer, earlier than STS said: as one that was revoked.
pub async fn an_expired_session_is_renewed(store: Store) {
    let sts = BriefSts::before(&store, Duration::from_secs(3)).await;
    let run = Run::with(&store, |site| {
        site.set("aws.sts_endpoint_url", sts.url.as_str()).set("upload.part_size", "5MiB");
        site.set("upload.part_concurrency", 1).set("destinations.role.max_bytes_per_second", 8 * MIB);
    })
    .await;
    let content = bytes(13, SLOW);
    let (stored, data) = run.deliver("expired", "role", &content, &json!({})).await;
    same(&stored, &content);
    assert!(sts.assumed() > 1, "the session outlived the transfer: {data:#}");
    run.close().await;
}

/// A role, or a key, that may not write: the check and the failed attempt name what is missing, and
/// the job waits.
pub async fn a_lost_permission_is_named(store: Store) {
    let run = Run::start(&store).await;
    for (count, destination) in ["denied", "denied-key"].into_iter().enumerate() {
        if store.destinations.contains_key(destination) {
            denied(&run, destination, count + 1).await;
        }
    }
    let (_, data) = run.deliver("beside", store.usual()[0], b"x", &json!({})).await;
    assert_eq!(data["attempts"], 1, "{data:#}");
    run.close().await;
}

async fn denied(run: &Run<'_>, destination: &str, count: usize) {
    let (answer, exit) = check(&run.site, destination);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("not ready"), 3), "{answer:#}");
    let failed = answer["steps"].as_array().unwrap().iter().filter(|step| step["result"] == "failed");
    let codes: Vec<_> = failed.map(|step| step["code"].as_str().unwrap()).collect();
    assert!(
        !codes.is_empty() && codes.iter().all(|code| ["put_denied", "access_denied_unspecified"].contains(code)),
        "{answer:#}"
    );
    assert!(answer.to_string().contains("s3:PutObject"), "{answer:#}");
    run.schedule(destination, destination, b"x", &json!({})).await;
    until("the denial is counted", Duration::from_secs(60), async || {
        let denied = run.worker.metric("consign_transfer_failures_total", "reason=\"access_denied\"").await;
        (denied.to_string() == count.to_string()).then_some(())
    })
    .await;
    assert_eq!(run.site.broker.outcomes().await.len(), 0, "the job waits for the customer");
}
