//! Earlier attempts: whether an object that takes the key is this job's own. Real servers, and
//! workers that are killed: on RabbitMQ a requeue and a killed worker look the same.

use std::time::Duration;

use serde_json::{Value, json};

use crate::crash::world::World;
use crate::testbed::moto::{Moto, customer_policy};
use crate::testbed::scripted::Effect;
use crate::testbed::site::{Site, job};
use crate::testbed::{MIB, bytes, unique};

const KMS_KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/5d4e3c2b-1a09-4f8e-9d7c-6b5a49382716";
const SIZES: [(&str, usize); 2] = [("small", 1000), ("large", 20 * MIB)];

/// A customer's bucket in moto, by `plain` and by `kms`, and RabbitMQ.
struct MotoSite {
    moto: Moto,
    site: Site,
    bucket: String,
}

impl MotoSite {
    async fn new(word: &str) -> Self {
        let (moto, mut site, bucket) = (Moto::shared(), Site::new(word).await, unique(word));
        moto.make_bucket(&bucket).await;
        let (_, key) = moto.make_user(&unique("user"), customer_policy(&bucket)).await;
        let auth = json!({"method": "access_key", "access_key_id": key.id, "secret_access_key": key.secret});
        let mut destination = json!({"bucket": bucket, "region": "us-east-1", "prefix": "in", "auth": auth});
        site.identity(&key).aws(&moto.url).destination("plain", &destination);
        destination["kms_key_arn"] = json!(KMS_KEY);
        site.destination("kms", &destination);
        // One job at a time: the failpoint is passed by this one.
        site.set("worker.slots", 1).set("worker.backfill_slots", 1);
        Self { moto, site, bucket }
    }

    fn job(&self, name: &str, destination: &str, if_exists: &str, content: &[u8]) -> Value {
        let mut job = job(name, &self.site.file(name, content), destination, name);
        job["if_exists"] = if_exists.into();
        assert!(job["created_at"].is_null());
        job
    }

    /// A worker that is killed at this failpoint by the job, and the worker after it.
    async fn killed_at(&mut self, point: &str, job: &Value) -> crate::testbed::worker::Worker {
        self.site.environment("CONSIGN_FAILPOINT", point);
        let doomed = self.site.worker().await;
        self.site.broker.schedule(job).await;
        doomed.exit(Duration::from_secs(60)).await;
        self.site.environment("CONSIGN_FAILPOINT", "");
        self.site.worker().await
    }

    async fn content(&self, name: &str) -> bytes::Bytes {
        self.moto.object(&self.bucket, &format!("in/{name}")).await.unwrap().bytes
    }
}

#[tokio::test]
async fn an_object_of_a_killed_worker_is_recognised_whatever_its_age() {
    let mut world = MotoSite::new("earlierkilled").await;
    for (name, length, destination, if_exists, point) in [
        ("small-plain", 1000, "plain", "fail", "put"),
        // In moto an ETag is a digest under a key, too.
        ("small-kms", 1000, "kms", "keep", "put"),
        ("large-fail", 20 * MIB, "plain", "fail", "completed"),
        ("large-keep", 20 * MIB, "plain", "keep", "completed"),
    ] {
        let content = bytes(51, length);
        let job = world.job(name, destination, if_exists, &content);
        let next = world.killed_at(point, &job).await;
        let outcome = world.site.broker.ended(name).await;
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        assert_eq!(outcome["data"]["bytes"], length, "{outcome:#}");
        assert!(world.content(name).await == content);
        next.quiet().await;
        next.kill();
    }
    world.site.broker.clean().await;
}

/// The worker is killed before it did anything, so the broker cannot tell it from one that wrote.
#[tokio::test]
async fn a_redelivered_job_does_not_claim_a_foreign_object_of_its_size() {
    let mut world = MotoSite::new("earlierforeign").await;
    for (destination, if_exists) in [("plain", "fail"), ("kms", "fail"), ("plain", "keep")] {
        let name = format!("{destination}-{if_exists}");
        let theirs = bytes(61, 1000);
        world.moto.put(&world.bucket, &format!("in/{name}"), theirs.clone()).await;
        let job = world.job(&name, destination, if_exists, &bytes(62, 1000));
        let next = world.killed_at("taken", &job).await;
        let outcome = world.site.broker.ended(&name).await;
        if if_exists == "keep" {
            assert_eq!(outcome["type"], "consign.transfer.skipped.v1", "{outcome:#}");
        } else {
            assert_eq!(outcome["data"]["reason"], "object_exists", "{outcome:#}");
            let hint = outcome["data"]["hint"].as_str().unwrap();
            assert!(hint.contains("an earlier attempt of this job may have written it"), "{hint}");
        }
        assert!(world.content(&name).await == theirs);
        next.quiet().await;
        next.kill();
    }
    world.site.broker.clean().await;
}

/// No ETag under a KMS key is a digest: the lease, which is written as soon as the upload is open,
/// has the time of its initiation.
#[tokio::test]
async fn under_a_kms_key_an_upload_of_a_killed_worker_is_recognised_by_its_lease() {
    let mut world = World::short_leases("earlierkms").await;
    world.site.set("broker.lease_after", "10m");
    // Long enough for the lease.
    world.s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(500)));
    let content = bytes(81, 20 * MIB);
    let mut job = world.job("kms", &content);
    (job["destination"], job["if_exists"]) = ("acme-kms".into(), "fail".into());
    world.site.environment("CONSIGN_FAILPOINT", "completed");
    let doomed = world.site.worker().await;
    world.publish(&job).await;
    doomed.exit(Duration::from_secs(60)).await;
    world.site.environment("CONSIGN_FAILPOINT", "");
    let next = world.site.worker().await;
    assert_eq!(world.ended("kms").await.outcome, "delivered");
    assert!(world.s3.object("acme", "in/kms").unwrap().bytes == content);
    assert_eq!(world.s3.calls("CreateMultipartUpload").len(), 1, "it was recognised, and not sent again");
    next.quiet().await;
    world.close().await;
}

#[tokio::test]
async fn the_embedded_queue_recognises_the_object_of_a_killed_worker_too() {
    for (size, length) in SIZES {
        let mut world = World::embedded("earlierembedded").await;
        let content = bytes(71, length);
        let mut job = world.job(size, &content);
        job["if_exists"] = "fail".into();
        world.site.environment("CONSIGN_FAILPOINT", if size == "small" { "put" } else { "completed" });
        let doomed = world.site.worker().await;
        world.publish(&job).await;
        doomed.exit(Duration::from_secs(60)).await;
        world.site.environment("CONSIGN_FAILPOINT", "");
        let _next = world.site.worker().await;
        assert_eq!(world.ended(size).await.outcome, "delivered");
        assert!(world.s3.object("acme", &format!("in/{size}")).unwrap().bytes == content);
        world.close().await;
    }
}
