//! The main promise on servers nobody here wrote: 300 mixed jobs end as objects equal to their
//! sources.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::testbed::moto::{ACCOUNT, Moto, Stored, customer_policy, platform_policy};
use crate::testbed::site::Site;
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::worker::Worker;
use crate::testbed::{KIB, MIB, bytes, unique};

const JOBS: usize = 300;
const KMS_KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/5d4e3c2b-1a09-4f8e-9d7c-6b5a49382716";

/// A customer: how its destination is called, and whether it is reached by a role and encrypts with
/// its own key.
const CUSTOMERS: [(&str, bool, bool); 4] =
    [("role-plain", true, false), ("role-kms", true, true), ("key-plain", false, false), ("key-kms", false, true)];

/// One of the 300: everything follows from its number.
struct Case {
    number: usize,
    size: usize,
    customer: (&'static str, bool, bool),
    scheme: &'static str,
    gzip: bool,
    unknown_length: bool,
}

impl Case {
    fn new(number: usize) -> Self {
        // Three of the largest, one for each scheme; a few dozen around the borders; the rest small or empty.
        let size = match number {
            0..=2 => 100 * MIB,
            3..=14 => 16 * MIB,
            15..=38 => 5 * MIB - 1,
            _ if number.is_multiple_of(4) => 0,
            _ => KIB,
        };
        let scheme = ["file", "https", "s3"][number % 3];
        Self {
            number,
            size,
            customer: CUSTOMERS[number / 3 % 4],
            scheme,
            gzip: number % 10 == 7,
            unknown_length: scheme == "https" && number.is_multiple_of(2),
        }
    }

    fn id(&self) -> String {
        format!("job-{}", self.number)
    }

    fn bytes(&self) -> Vec<u8> {
        bytes(u64::try_from(self.number).unwrap() + 1000, self.size)
    }

    fn job(&self, url: &str) -> Value {
        let mut job = json!({
            "version": 1, "id": self.id(), "source": {"url": url}, "destination": self.customer.0,
            "key": format!("day/{}.csv", self.number), "content_type": "text/csv", "labels": {"n": self.number.to_string()},
        });
        if self.gzip {
            job["compression"] = json!("gzip");
        }
        job
    }

    /// The customer's object must equal the source, encrypted as asked.
    async fn check(&self, stored: Stored, outcome: &Value) {
        let (id, data) = (self.id(), &outcome["data"]);
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        assert_eq!(data["bytes"], stored.bytes.len(), "{id}");
        assert_eq!(data["source_bytes"], self.size, "{id}");
        assert_eq!(data["key"], format!("in/day/{}.csv", self.number), "{id}");
        assert_eq!(data["labels"]["n"], self.number.to_string(), "{id}");
        let kms = self.customer.2;
        assert_eq!(stored.encryption.as_deref(), kms.then_some("aws:kms"), "{id}");
        assert_eq!(stored.kms_key.as_deref(), kms.then_some(KMS_KEY), "{id}");
        assert_eq!(stored.content_type.as_deref(), Some("text/csv"), "{id}");
        assert_eq!(stored.content_encoding.as_deref(), self.gzip.then_some("gzip"), "{id}");
        let mut plain = stored.bytes.to_vec();
        if self.gzip {
            plain = Vec::new();
            GzipDecoder::new(Cursor::new(&stored.bytes)).read_to_end(&mut plain).await.unwrap();
        }
        assert!(plain == self.bytes(), "{id}: {} bytes differ from the source's {}", plain.len(), self.size);
    }
}

/// The platform and its four customers on moto.
struct World {
    moto: Moto,
    site: Site,
    web: WebSource,
    staging: String,
    buckets: BTreeMap<&'static str, String>,
}

impl World {
    async fn build() -> Self {
        let moto = Moto::shared();
        let mut site = Site::new("delivery").await;
        let staging = unique("staging");
        moto.make_bucket(&staging).await;
        let (platform, key) = moto.make_user(&unique("platform"), platform_policy(&staging)).await;
        let ca = site.dir.path().join("ca.pem");
        let web = WebSource::https(&ca).await;
        site.identity(&key).environment("SSL_CERT_FILE", &ca.display().to_string()).aws(&moto.url);
        site.set("source.s3", json!([{"bucket": staging}]));
        site.set("worker.slots", 100).set("worker.backfill_slots", 50).set("worker.destination_slots", 100);
        let mut buckets = BTreeMap::new();
        for customer in CUSTOMERS {
            let bucket = unique(customer.0);
            moto.make_bucket(&bucket).await;
            let auth = auth(&moto, customer.1, &bucket, &platform).await;
            let mut keys = json!({"bucket": bucket, "region": "us-east-1", "prefix": "in", "auth": auth});
            if customer.2 {
                keys["kms_key_arn"] = json!(KMS_KEY);
            }
            site.destination(customer.0, &keys);
            buckets.insert(customer.0, bucket);
        }
        Self { moto, site, web, staging, buckets }
    }

    async fn publish(&self, case: &Case) {
        let (name, bytes) = (format!("source-{}", case.number), case.bytes());
        let url = match case.scheme {
            "file" => self.site.file(&name, &bytes),
            "https" if case.unknown_length => self.web.put(&name, Content::of_unknown_length(bytes)),
            "https" => self.web.put(&name, Content::new(bytes)),
            _ => {
                self.moto.put(&self.staging, &name, bytes).await;
                format!("s3://{}/{name}", self.staging)
            }
        };
        let lane = if case.number.is_multiple_of(7) { "backfill" } else { "scheduled" };
        self.site.broker.publish(lane, &case.job(&url)).await;
    }

    async fn check(&self, case: &Case, outcome: &Value) {
        let bucket = &self.buckets[case.customer.0];
        let stored = self.moto.object(bucket, &format!("in/day/{}.csv", case.number)).await;
        case.check(stored.unwrap_or_else(|| panic!("{} is not there: {outcome:#}", case.id())), outcome).await;
    }
}

/// Exactly the customers' policy, on a role or on a user.
async fn auth(moto: &Moto, role: bool, bucket: &str, platform: &str) -> Value {
    if role {
        let external_id = unique("external");
        let arn = moto.make_role(&unique("role"), platform, &external_id, customer_policy(bucket)).await;
        assert!(arn.contains(ACCOUNT));
        return json!({"method": "iam_role", "role_arn": arn, "external_id": external_id});
    }
    let (_, key) = moto.make_user(&unique("user"), customer_policy(bucket)).await;
    json!({"method": "access_key", "access_key_id": key.id, "secret_access_key": key.secret})
}

/// Two role destinations, so two calls of STS, however many jobs came at once.
async fn assumed_once_each(worker: &Worker) {
    assert_eq!(worker.metric("consign_sts_assume_role_total", "result=\"ok\"").await, 2.0);
    assert_eq!(worker.metric("consign_sts_assume_role_total", "").await, 2.0);
    let misses = worker.metric("consign_session_requests_total", "result=\"miss\"").await;
    assert_eq!(misses, 4.0, "one for each customer, by role or by key");
    let asked = worker.metric("consign_session_requests_total", "").await;
    assert!(asked >= 300.0, "{asked} requests for 300 transfers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_mixed_jobs_end_as_objects_equal_to_their_sources() {
    let world = World::build().await;
    let cases: Vec<_> = (0..JOBS).map(Case::new).collect();
    for case in &cases {
        world.publish(case).await;
    }
    // Everything is in the queue: the first hundred begin at once, without a session.
    let worker = world.site.worker().await;
    let ended = world.site.broker.all_ended(JOBS, Duration::from_secs(200)).await;
    for case in &cases {
        world.check(case, &ended[&case.id()]).await;
    }
    assumed_once_each(&worker).await;
    assert_eq!(worker.metric("consign_transfers_total", "outcome=\"delivered\"").await, 300.0);
    assert_eq!(worker.metric("consign_transfers_total", "lane=\"backfill\"").await, 43.0);
    assert_eq!(world.site.broker.take("dead").await.len(), 0);
    worker.quiet().await;
    world.site.broker.clean().await;
}
