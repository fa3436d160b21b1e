//! Surroundings of the workers: a broker node of the soak's own, S3 and STS, the sources, the
//! customers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::dice::Dice;
use super::jobs::{self, Body, Draft, Kind, Origin};
use super::replies;
use super::settings::Settings;
use crate::fixture::{KMS_KEY, REGION, role_destination};
use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::proxy::Proxy;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{bytes, unique};

/// The sick customer's account, by which its rule finds it.
const SICK_ACCOUNT: &str = "100000000009";
/// An opt-in region, and the customer's account there.
pub const ABROAD_REGION: &str = "ap-east-1";
pub const ABROAD_ACCOUNT: &str = "100000000007";
/// Upper limit for the broker's own waits: a soak has no time for two minutes. The lower of policy
/// and argument counts.
const WAITS: [(&str, u32); 3] =
    [("(lease|owner[.].*)", 6000), ("wait[.](5s|30s)", 1500), ("wait[.](2m|10m|30m|2h|12h)", 3000)];
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Delay of S3's answers, so that something is in flight when a fault begins.
const ANSWER: Duration = Duration::from_millis(60);
const PART_ANSWER: Duration = Duration::from_millis(200);

pub struct Stage {
    pub site: Site,
    pub s3: ScriptedS3,
    /// `None` on the embedded queue.
    pub node: Option<Arc<Node>>,
    /// Between the workers and all http and https sources.
    pub sources: [Proxy; 2],
    web: WebSource,
    tls: WebSource,
    pool: Vec<Bytes>,
    seed: u64,
}

impl Stage {
    pub async fn build(settings: &Settings) -> Self {
        let node = (!settings.is_embedded()).then(|| Arc::new(Node::apart("soak")));
        let mut site = match &node {
            Some(node) => Site::on(Broker::at(node.url.clone(), &unique("soak"))).await,
            None => Site::embedded("soak"),
        };
        if let Some(node) = &node {
            shorten_waits(node, &site.broker.prefix);
            replies::declare(&site.broker).await;
        }
        let s3 = ScriptedS3::start().await;
        s3.thrifty();
        add_acme(&mut site, &s3);
        let ca = site.dir.path().join("ca.pem");
        let (web, tls) = (WebSource::http().await, WebSource::https(&ca).await);
        site.environment("SSL_CERT_FILE", &ca.display().to_string());
        let sources = [Proxy::before(address(&web)).await, Proxy::before(address(&tls)).await];
        let lengths = jobs::pool(settings.seed).into_iter().zip(0..);
        let pool = lengths.map(|(length, n)| bytes(settings.seed ^ (n << 40), length).into()).collect();
        let stage = Self { site, s3, node, sources, web, tls, pool, seed: settings.seed };
        stage.slow_answers();
        stage
    }

    fn slow_answers(&self) {
        self.s3.on("PutObject").named("pace").after(Effect::Delay(ANSWER));
        self.s3.on("UploadPart").named("pace").after(Effect::Delay(PART_ANSWER));
        self.s3.on("CompleteMultipartUpload").named("pace").after(Effect::Delay(ANSWER));
        self.s3.on("CreateMultipartUpload").named("pace").after(Effect::Delay(ANSWER));
        let denied = "User: arn:aws:iam::999999999999:user/platform is not authorized to perform: sts:AssumeRole";
        let denied = Effect::Error(403, "AccessDenied", denied);
        self.s3.on("AssumeRole").named("sick").form("RoleArn", SICK_ACCOUNT).before(denied);
    }

    /// A file has no policies: what waits in it is looked after.
    pub async fn shorten_waits_in_a_file(&self) {
        while let Some(file) = &self.site.broker.file {
            file.shorten_waits(LONGEST_WAIT);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The sick customer corrects the trust policy. Its circuit breaker and that of the one abroad
    /// are reset: the next probe may be ten minutes away, however often workers were replaced.
    pub fn fix_trust_policy(&self) {
        self.s3.lift("sick");
        for customer in [jobs::SICK, jobs::ABROAD] {
            let reset = self.site.consign(&["status", "reset", customer]);
            assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
        }
    }

    /// The id of its job.
    pub fn id(draft: &Draft) -> String {
        format!("soak/{:05}/{}", draft.number, draft.kind.name())
    }

    /// The job of a draft, its source put up.
    pub fn job(&self, draft: &Draft) -> Value {
        let key = format!("{}/{:05}", draft.kind.name(), draft.number);
        let contents = match draft.body {
            Body::Own(size) => bytes(self.seed ^ (u64::try_from(draft.number).unwrap() << 20), size).into(),
            Body::Pool(n) => self.pool[n].clone(),
        };
        let mut job = job(&Self::id(draft), &self.source(draft, &contents), draft.tenant, &key);
        if draft.kind == Kind::Inline {
            job["destination"] = role_destination("inline", "100000000008");
            job["destination"]["id"] = json!("inline");
        }
        if draft.sized {
            job["source"]["size"] = json!(contents.len());
        }
        self.flavour(draft, &contents, &key, &mut job);
        job
    }

    fn flavour(&self, draft: &Draft, contents: &Bytes, key: &str, job: &mut Value) {
        let soon = |seconds: i64| json!(Timestamp::now() + jiff::SignedDuration::from_secs(seconds));
        job["created_at"] = soon(0);
        match draft.kind {
            Kind::Gzip => job["compression"] = json!("gzip"),
            Kind::Zstd => job["compression"] = json!("zstd"),
            Kind::KeepFree | Kind::KeepTaken => job["if_exists"] = json!("keep"),
            Kind::FailFree | Kind::FailTaken => job["if_exists"] = json!("fail"),
            Kind::WrongSize => job["source"]["size"] = json!(contents.len() + 1),
            Kind::WrongDigest => job["source"]["sha256"] = json!("0".repeat(64)),
            Kind::Expired => job["expires_at"] = soon(-60),
            Kind::ExpiresSoon | Kind::SickExpires => job["expires_at"] = soon(4),
            _ => {}
        }
        if matches!(draft.kind, Kind::KeepTaken | Kind::FailTaken) {
            self.s3.put(draft.tenant, &format!("in/{key}"), "somebody else's");
        }
    }

    /// Puts the source up, tells the checker what it holds, and gives its URL.
    fn source(&self, draft: &Draft, contents: &Bytes) -> String {
        let name = match draft.body {
            Body::Own(_) => format!("own-{}-{:?}", draft.number, draft.origin),
            Body::Pool(n) => format!("pool-{n}-{:?}-{}", draft.origin, draft.kind == Kind::Slow),
        };
        let there = draft.kind != Kind::Missing;
        let url = match draft.origin {
            Origin::File if there => return self.file(&name, contents),
            Origin::File => format!("file://{}/nowhere", self.site.files().display()),
            Origin::S3 => {
                if there {
                    self.s3.put("staging", &name, contents.clone());
                }
                format!("s3://staging/{name}")
            }
            Origin::Https => self.sources[1].in_place_of(&self.tls.put(&name, web_content(draft, contents))),
            _ => self.sources[0].in_place_of(&self.web.put(&name, web_content(draft, contents))),
        };
        self.site.can_settle(url, contents.clone())
    }

    /// Written once: other jobs may be reading it.
    fn file(&self, name: &str, contents: &Bytes) -> String {
        let path = self.site.files().join(name);
        if path.exists() { format!("file://{}", path.display()) } else { self.site.file(name, contents) }
    }
}

fn web_content(draft: &Draft, contents: &Bytes) -> Content {
    let bytes = contents.clone();
    let content = match draft.origin {
        _ if draft.kind == Kind::Missing => Content::refused(404),
        Origin::HttpWhole => Content::new(bytes).without_ranges(),
        Origin::HttpEndless => Content::of_unknown_length(bytes),
        _ => Content::new(bytes),
    };
    if draft.kind != Kind::Slow {
        return content;
    }
    // Two to eight seconds for a file of the pool.
    let piece = contents.len() / Dice::new(u64::try_from(draft.number).unwrap(), 3).between(40, 160);
    content.slowly(piece, Duration::from_millis(50))
}

fn address(source: &WebSource) -> SocketAddr {
    let url = url::Url::parse(&source.put("nothing", Content::refused(404))).unwrap();
    SocketAddr::from((Ipv4Addr::LOCALHOST, url.port().unwrap()))
}

fn shorten_waits(node: &Node, prefix: &str) {
    for (n, (pattern, millis)) in WAITS.iter().enumerate() {
        let set = format!(
            "rabbit_policy:parse_set(<<\"/\">>, <<\"soak-{n}\">>, <<\"^{prefix}[.]{pattern}$\">>, \
             <<\"{{\\\"message-ttl\\\":{millis}}}\">>, 0, <<\"queues\">>, <<\"soak\">>)."
        );
        let answer = node.ctl(&["eval", &set]);
        assert_eq!(answer, "ok", "{set}");
    }
}

fn add_acme(site: &mut Site, s3: &ScriptedS3) {
    site.set("worker.slots", 8).set("worker.backfill_slots", 4).set("worker.memory_budget", "96MiB");
    site.set("worker.drain_timeout", "8s").set("worker.max_attempts", 200);
    site.set("upload.part_size", "5MiB").set("upload.multipart_threshold", "5MiB").set("upload.part_concurrency", 2);
    site.set("upload.min_rate", "256KiB").set("session.denied_for", "2s").set("broker.lease_after", "1s");
    site.set("source.allow_http", true).set("source.s3", json!([{"bucket": "staging"}]));
    site.set("log.filter", "info,consign=debug");
    s3.bucket("staging", "us-east-1", "999999999999");
    // STS is asked where each customer is; home is where it accepted the worker.
    site.unset("aws.region");
    let others = [jobs::SICK, "inline", jobs::ABROAD];
    for (tenant, account) in jobs::TENANTS.into_iter().chain(others).zip([1, 2, 3, 4, 9, 8, 7]) {
        let account = format!("10000000000{account}");
        let region = if tenant == jobs::ABROAD { ABROAD_REGION } else { REGION };
        s3.bucket(tenant, region, &account);
        let mut keys = role_destination(tenant, &account);
        keys["region"] = json!(region);
        match tenant {
            "kms" => keys["kms_key_arn"] = json!(KMS_KEY.replace("111111111111", &account)),
            "bare" => keys["checksum"] = json!("none"),
            "keyed" => {
                keys["auth"] = json!({
                    "method": "access_key", "access_key_id": "AKIAKEYED00000000001", "secret_access_key": "marked-secret-key",
                });
            }
            _ => {}
        }
        if tenant != "inline" {
            site.destination(tenant, &keys);
        }
    }
}
