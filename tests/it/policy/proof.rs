//! The printed documents in force: transfers pass with them, and are refused without each of their
//! parts.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use serde_json::{Value, json};

use super::{json as parsed, text};
use crate::testbed::broker::Message;
use crate::testbed::ministack::{Account, Ministack, REGION};
use crate::testbed::moto::{Key, Moto, s3_client};
use crate::testbed::site::{Site, job};
use crate::testbed::{MIB, bytes, unique, until};

const EXTERNAL_ID: &str = "consign-4711";
/// Addresses that the tests' calls come from, and that they don't.
const HERE: &str = "127.0.0.0/8";
const ELSEWHERE: &str = "192.0.2.0/24";
/// Queues of copies that wait until the customer has fixed something, and of those that have failed
/// for good.
const WAITING: [&str; 7] = ["wait.30s", "wait.2m", "wait.10m", "wait.30m", "wait.2h", "wait.12h", "dead"];

/// The platform in one account, its customer in another, and a site between them.
struct World {
    stack: Ministack,
    customer: Account,
    platform: String,
    key: Key,
    bucket: String,
    site: Site,
}

/// Result of a job: `delivered`, or the reason it waits for.
type Ends = BTreeMap<String, String>;

impl World {
    async fn new(word: &str) -> Self {
        let stack = Ministack::shared();
        let (ours, customer) = (stack.account(), stack.account());
        let may_assume = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"},
        ]});
        let (platform, key) = ours.make_user("platform", &may_assume).await;
        let bucket = unique(word);
        customer.make_bucket(&bucket).await;
        let mut site = Site::new(word).await;
        site.aws(&stack.url).set("aws.region", REGION).identity(&key);
        // Parts are small, so that a large object need not be.
        site.set("upload.part_size", "5MiB").set("upload.multipart_threshold", "5MiB");
        Self { stack, customer, platform, key, bucket, site }
    }

    /// Configures a destination whose role is called like it; the role is yet to be made.
    fn destination(&mut self, id: &str) {
        let auth = json!({
            "method": "iam_role", "role_arn": self.customer.role_arn(id), "external_id": EXTERNAL_ID,
        });
        self.site.destination(id, &self.keys(&auth));
    }

    /// ministack makes a checksum of checksums where that of the whole object is asked for, so none
    /// is asked for.
    fn keys(&self, auth: &Value) -> Value {
        json!({"bucket": self.bucket, "region": REGION, "prefix": "in/", "checksum": "none", "auth": auth})
    }

    /// Output of `consign policy`.
    fn printed(&self, arguments: &[&str]) -> Value {
        parsed(&self.site.consign(&[&["policy"], arguments].concat()))
    }

    fn permissions(&self, id: &str, options: &[&str]) -> Value {
        self.printed(&[&["permissions", id], options].concat())
    }

    fn trust(&self, id: &str, options: &[&str]) -> Value {
        self.printed(&[&["trust", id, "--principal", &self.platform], options].concat())
    }

    /// The customer's part, done as printed: a destination with its role, each document with these
    /// options.
    async fn made(&mut self, id: &str, permissions: &[&str], trust: &[&str]) {
        self.destination(id);
        let documents = (self.trust(id, trust), self.permissions(id, permissions));
        self.customer.make_role(id, &documents.0, &documents.1).await;
    }

    /// Delivers a small and a large file to each destination, and tells what became of every one of
    /// the jobs.
    async fn deliver(&self, destinations: &[&str]) -> Ends {
        let files = [("small", self.site.file("small", b"hello")), ("large", self.site.file("large", &large()))];
        let worker = self.site.worker().await;
        for id in destinations {
            for (name, url) in &files {
                let job = job(&format!("{id}-{name}"), url, id, &format!("{id}/{name}"));
                self.site.broker.schedule(&job).await;
            }
        }
        let ends = self.ends(destinations.len() * files.len()).await;
        worker.quiet().await;
        ends
    }

    async fn ends(&self, count: usize) -> Ends {
        let mut ends = Ends::new();
        until(&format!("the ends of {count} jobs"), Duration::from_secs(90), async || {
            for queue in WAITING {
                for message in self.site.broker.take(queue).await {
                    let reason = [message.header("x-last-error-reason"), message.header("x-error-reason")].concat();
                    ends.insert(message.json()["id"].as_str().unwrap().to_owned(), reason);
                }
            }
            for outcome in self.site.broker.outcomes().await.iter().map(Message::json) {
                if outcome["type"] == "consign.transfer.delivered.v1" {
                    ends.insert(outcome["subject"].as_str().unwrap().to_owned(), "delivered".to_owned());
                }
            }
            (ends.len() == count).then_some(())
        })
        .await;
        ends
    }

    /// Both files are there as they were.
    async fn can_settle(&self, id: &str) {
        for (name, content) in [("small", b"hello".to_vec()), ("large", large())] {
            let stored = self.customer.object(&self.bucket, &format!("in/{id}/{name}")).await;
            assert!(stored.is_some_and(|stored| stored == content), "{id}: {name} is not there as it was");
        }
    }

    /// A session of a role as anybody could have it: with this session policy, or none.
    async fn session(&self, role: &str, policy: Option<String>) -> aws_sdk_s3::Client {
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
            .region(aws_sdk_sts::config::Region::new(REGION))
            .endpoint_url(&self.stack.url)
            .credentials_provider(credentials(&self.key.id, &self.key.secret, None));
        let sts = aws_sdk_sts::Client::from_conf(config.build());
        let assumed = sts.assume_role().role_arn(role).role_session_name("tests").external_id(EXTERNAL_ID);
        let session = assumed.set_policy(policy).send().await.unwrap().credentials.unwrap();
        let (id, secret, token) = (session.access_key_id, session.secret_access_key, session.session_token);
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .region(aws_sdk_s3::config::Region::new(REGION))
            .endpoint_url(&self.stack.url)
            .force_path_style(true)
            .credentials_provider(credentials(&id, &secret, Some(token)));
        aws_sdk_s3::Client::from_conf(config.build())
    }
}

fn credentials(id: &str, secret: &str, token: Option<String>) -> aws_sdk_s3::config::Credentials {
    aws_sdk_s3::config::Credentials::new(id, secret, token, None, "tests")
}

fn large() -> Vec<u8> {
    bytes(4, 11 * MIB)
}

/// True if the client may write this key.
async fn writes(s3: &aws_sdk_s3::Client, bucket: &str, key: &str) -> bool {
    s3.put_object().bucket(bucket).key(key).body(ByteStream::from_static(b"x")).send().await.is_ok()
}

fn ends(pairs: &[(&str, &str)]) -> Ends {
    let both = |(id, end): &(&str, &str)| ["small", "large"].map(|name| (format!("{id}-{name}"), (*end).to_owned()));
    pairs.iter().flat_map(both).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_pass_with_what_is_printed_and_nothing_more() {
    let mut world = World::new("proof").await;
    world.made("minimal", &["--minimal"], &[]).await;
    world.made("whole", &[], &[]).await;
    world.made("from-here", &["--minimal", "--source-address", HERE], &["--source-address", HERE]).await;
    let all = ["minimal", "whole", "from-here"];
    assert_eq!(world.deliver(&all).await, ends(&all.map(|id| (id, "delivered"))));
    for id in all {
        world.can_settle(id).await;
        // Even without our session policy, the role reaches nothing else.
        let s3 = world.session(&world.customer.role_arn(id), None).await;
        assert!(writes(&s3, &world.bucket, "in/other").await, "{id}");
        assert!(!writes(&s3, &world.bucket, "out/other").await, "{id} writes outside the prefix");
        assert!(s3.get_object().bucket(&world.bucket).key("in/other").send().await.is_err(), "{id} reads");
    }
    assert_eq!(world.customer.open_uploads(&world.bucket).await, 0);
    world.site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_are_refused_without_each_part_of_what_is_printed() {
    let mut world = World::new("without").await;
    // The permission to write is not there, or only from somewhere else.
    world.made("no-write", &[], &[]).await;
    let mut without = world.permissions("no-write", &[]);
    without["Statement"].as_array_mut().unwrap().retain(|statement| statement["Sid"] != "ConsignWrite");
    world.customer.set_role_policy("no-write", &without).await;
    world.made("write-elsewhere", &["--source-address", ELSEWHERE], &[]).await;
    // The trust names somebody else, another external id, or another place.
    let id = EXTERNAL_ID;
    world.made("trust-elsewhere", &[], &["--source-address", ELSEWHERE]).await;
    for (name, from, to) in [
        ("trust-stranger", world.platform.clone(), world.platform.replace(":user/", ":role/")),
        ("trust-other-id", id.to_owned(), format!("{id}-of-another")),
    ] {
        world.made(name, &[], &[]).await;
        let trust = world.trust(name, &[]).to_string().replace(&from, &to);
        world.customer.set_trust(name, &serde_json::from_str(&trust).unwrap()).await;
    }
    // There is no role at all.
    world.destination("no-role");
    // One neighbour is well, so that nobody takes the refusals for an outage of the worker's own.
    world.made("good", &[], &[]).await;
    let expected = [
        ("good", "delivered"),
        ("no-write", "access_denied"),
        ("write-elsewhere", "access_denied"),
        ("trust-elsewhere", "assume_role_denied"),
        ("trust-stranger", "assume_role_denied"),
        ("trust-other-id", "assume_role_denied"),
        ("no-role", "assume_role_denied"),
    ];
    assert_eq!(world.deliver(&expected.map(|(id, _)| id)).await, ends(&expected));
    let found = world.customer.keys(&world.bucket).await;
    assert_eq!(found, ["in/good/large", "in/good/small"], "something else was written");
    world.site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_the_external_id_is_not_let_in() {
    let mut world = World::new("noid").await;
    world.made("acme", &[], &[]).await;
    let auth = json!({"method": "iam_role", "role_arn": world.customer.role_arn("acme")});
    let mut keys = world.keys(&auth);
    world.site.destination("acme", &keys);
    assert_eq!(world.deliver(&["acme"]).await, ends(&[("acme", "assume_role_denied")]));
    // The same role with the id agreed on.
    keys["auth"]["external_id"] = json!(EXTERNAL_ID);
    world.site.destination("again", &keys);
    assert_eq!(world.deliver(&["again"]).await, ends(&[("again", "delivered")]));
    world.site.broker.clean().await;
}

#[tokio::test]
async fn the_session_policy_keeps_a_mighty_role_below_the_prefix() {
    let mut world = World::new("mighty").await;
    world.made("acme", &[], &[]).await;
    let everything = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
    ]});
    world.customer.set_role_policy("acme", &everything).await;
    let other = unique("other");
    world.customer.make_bucket(&other).await;
    let loaded = consign::config::load_str(&world.site.toml()).unwrap().config;
    let destination = loaded.destinations.values().next().unwrap();
    let role = world.customer.role_arn("acme");
    let mighty = world.session(&role, None).await;
    assert!(writes(&mighty, &other, "in/a").await && writes(&mighty, &world.bucket, "out/a").await);
    let kept = world.session(&role, Some(consign::domain::policy::session_policy(destination))).await;
    assert!(writes(&kept, &world.bucket, "in/a").await);
    assert!(!writes(&kept, &world.bucket, "out/a").await, "outside the prefix");
    assert!(!writes(&kept, &other, "in/a").await, "in another bucket");
    assert!(kept.get_object().bucket(&world.bucket).key("in/a").send().await.is_err(), "reading");
    let listed = |prefix: &'static str| kept.list_objects_v2().bucket(&world.bucket).prefix(prefix).send();
    assert!(listed("in/").await.is_ok() && listed("out/").await.is_err());
    assert!(kept.get_bucket_location().bucket(&world.bucket).send().await.is_ok());
    world.site.broker.clean().await;
}

#[tokio::test]
async fn the_fence_in_the_buckets_policy_keeps_out_the_role_alone() {
    let mut world = World::new("fence").await;
    world.made("acme", &[], &[]).await;
    world.made("neighbour", &[], &[]).await;
    let loaded = consign::config::load_str(&world.site.toml()).unwrap().config;
    let destination = loaded.destinations.values().next().unwrap();
    let role = consign::domain::policy::Principal::parse(&world.customer.role_arn("acme")).unwrap();
    let s3 = world.session(role.as_str(), None).await;
    let neighbour = world.session(&world.customer.role_arn("neighbour"), None).await;
    for (address, allowed) in [(HERE, true), (ELSEWHERE, false)] {
        let fence = consign::domain::policy::bucket_policy_fence(destination, &role, &[address.to_owned()]);
        world.customer.set_bucket_policy(&world.bucket, &consign::domain::policy::document(&[fence])).await;
        assert_eq!(writes(&s3, &world.bucket, "in/a").await, allowed, "{address}");
        assert!(writes(&neighbour, &world.bucket, "in/b").await, "{address}: somebody else is shut out");
    }
    world.site.broker.clean().await;
}

/// moto is another implementation of the same rules, and the only one that goes by access keys with
/// a prefix of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_key_delivers_with_what_is_printed_and_nothing_more() {
    let moto = Moto::shared();
    let (bucket, user) = (unique("keyed"), unique("user"));
    moto.make_bucket(&bucket).await;
    let mut site = Site::new("keyed").await;
    site.aws(&moto.url);
    let described =
        ["policy", "permissions", "--bucket", &bucket, "--region", "us-east-1", "--prefix", "in", "--minimal"];
    let statements = parsed(&site.consign(&described))["Statement"].clone();
    let (_, key) = moto.make_user(&user, statements).await;
    let (_, powerless) =
        moto.make_user(&unique("powerless"), json!([{"Effect": "Deny", "Action": "*", "Resource": "*"}])).await;
    for (id, key) in [("acme", &key), ("powerless", &powerless)] {
        let auth = json!({"method": "access_key", "access_key_id": key.id, "secret_access_key": key.secret});
        let keys = json!({"bucket": bucket, "region": "us-east-1", "prefix": "in", "auth": auth});
        site.destination(id, &keys);
    }
    let configured = text(&site.consign(&["policy", "permissions", "acme", "--minimal"]));
    assert_eq!(configured, text(&site.consign(&described)), "the same by flags and by name");
    let worker = site.worker().await;
    let url = site.file("f", &bytes(5, 17 * MIB));
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    site.broker.schedule(&job("b", &url, "powerless", "b")).await;
    assert_eq!(site.broker.ended("a").await["type"], "consign.transfer.delivered.v1");
    let refused = site.broker.taken("wait.30s", "\"b\"").await;
    assert_eq!(refused.header("x-last-error-reason"), "access_denied", "{:?}", refused.headers);
    let s3 = s3_client(&moto.url, &key, "us-east-1");
    assert!(writes(&s3, &bucket, "in/x").await);
    assert!(!writes(&s3, &bucket, "out/x").await, "outside the prefix");
    worker.quiet().await;
    site.broker.clean().await;
}
