//! Starting point of most scenarios: one customer, `acme`, on the scripted S3, and one worker.

use std::time::Duration;

use serde_json::{Value, json};

use crate::testbed::checker::Checker;
use crate::testbed::scripted::{Object, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::until;
use crate::testbed::worker::Worker;

/// The customer's account.
pub const ACME: &str = "111111111111";
pub const REGION: &str = "eu-central-1";
pub const KMS_KEY: &str = "arn:aws:kms:eu-central-1:111111111111:key/0e7e9fb9-6aa2-4a5b-8a0a-3a2d8d6b6a11";

/// A site, its S3, and a running worker.
pub struct AcmeFixture {
    pub site: Site,
    pub s3: ScriptedS3,
    pub worker: Worker,
}

/// The keys of a role destination of an account; its objects lie below `in/`.
pub fn role_destination(bucket: &str, account: &str) -> Value {
    let auth = json!({
        "method": "iam_role",
        "role_arn": format!("arn:aws:iam::{account}:role/consign"),
        "external_id": "marked-secret-external-id",
    });
    json!({"bucket": bucket, "region": REGION, "prefix": "in/", "auth": auth})
}

/// A site with `acme` (and `acme-kms`, the same bucket with a KMS key), not yet running.
pub async fn site(word: &str) -> (Site, ScriptedS3) {
    let mut site = Site::new(word).await;
    let s3 = add_acme(&mut site).await;
    (site, s3)
}

/// Gives a site its S3 and its customer.
pub async fn add_acme(site: &mut Site) -> ScriptedS3 {
    let s3 = ScriptedS3::start().await;
    s3.bucket("acme", REGION, ACME);
    site.aws(&s3.url).destination("acme", &role_destination("acme", ACME));
    let mut kms = role_destination("acme", ACME);
    kms["kms_key_arn"] = json!(KMS_KEY);
    site.destination("acme-kms", &kms);
    s3
}

impl AcmeFixture {
    pub async fn start(word: &str) -> Self {
        let (site, s3) = site(word).await;
        let worker = site.worker().await;
        Self { site, s3, worker }
    }

    /// Schedules a file of these bytes for `acme`; job id, file and key have one name.
    pub async fn schedule(&self, name: &str, bytes: &[u8]) {
        self.schedule_with(name, bytes, &json!({})).await;
    }

    /// As [`AcmeFixture::schedule`], with further or other fields of the job.
    pub async fn schedule_with(&self, name: &str, bytes: &[u8], fields: &Value) {
        let mut job = job(name, &self.site.file(name, bytes), "acme", name);
        for (field, value) in fields.as_object().unwrap() {
            job[field] = value.clone();
        }
        self.site.broker.schedule(&job).await;
    }

    /// Waits for the terminal outcome, which must be `delivered`; gives its data.
    pub async fn delivered(&self, name: &str) -> Value {
        let outcome = self.site.broker.ended(name).await;
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        outcome["data"].clone()
    }

    /// Waits for the terminal outcome, which must be `failed` with this reason, and for the dead
    /// letter that says the same.
    pub async fn failed(&self, name: &str, reason: &str) -> Value {
        let outcome = self.site.broker.ended(name).await;
        assert_eq!(outcome["type"], "consign.transfer.failed.v1", "{outcome:#}");
        assert_eq!(outcome["data"]["reason"], reason, "{outcome:#}");
        let dead = self.site.broker.taken("dead", name).await;
        assert_eq!(dead.header("x-error-reason"), reason, "{:?}", dead.headers);
        outcome["data"].clone()
    }

    pub fn object(&self, name: &str) -> Option<Object> {
        self.s3.object("acme", &format!("in/{name}"))
    }

    /// Failed attempts counted for a reason.
    pub async fn failures(&self, reason: &str) -> f64 {
        self.worker.metric("consign_transfer_failures_total", &format!("reason=\"{reason}\"")).await
    }

    /// Schedules so many small jobs, `<word>-0` and on.
    pub async fn schedule_many(&self, word: &str, count: usize) {
        let url = self.site.file("many", b"hello");
        for n in 0..count {
            let name = format!("{word}-{n}");
            self.site.broker.schedule(&job(&name, &url, "acme", &name)).await;
        }
    }

    /// Waits until so many transfers run.
    pub async fn running(&self, count: f64) {
        until(&format!("{count} transfers run"), Duration::from_secs(30), async || {
            (self.worker.metric("consign_transfers_in_flight", "").await >= count).then_some(())
        })
        .await;
    }

    /// Waits until so many redeliveries have joined the transfers that run.
    pub async fn joined(&self, count: usize) {
        until(&format!("{count} redeliveries joined"), Duration::from_secs(60), async || {
            (self.worker.log().matches("\"job_joined\"").count() >= count).then_some(())
        })
        .await;
    }

    /// Waits until there are so many objects.
    pub async fn objects(&self, count: usize) {
        until(&format!("{count} objects"), Duration::from_secs(60), async || {
            (self.s3.count("acme") >= count).then_some(())
        })
        .await;
    }

    /// Waits until the worker is not ready, for a reason that contains one of these words; gives
    /// the reason.
    pub async fn unready(&self, words: &[&str]) -> String {
        until(&format!("not ready because of {words:?}"), Duration::from_secs(90), async || {
            let said = self.worker.try_get("/readyz").await?;
            words.iter().any(|word| said.contains(word)).then_some(said)
        })
        .await
    }

    /// Checks the invariants (see [`Checker`]), ends the worker, and deletes the queues.
    pub async fn close(self) {
        Checker::new(&self.site, &self.s3).worker(&self.worker).check().await;
        self.site.broker.clean().await;
    }
}
