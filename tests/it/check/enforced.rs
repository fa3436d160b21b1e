//! Broken set-ups on servers nobody here wrote, which enforce IAM: the statement of the remedy is
//! pasted where it says, and the test passes.

use serde_json::{Value, json};

use super::{check, codes, step};
use crate::testbed::ministack::{Account, Ministack, REGION};
use crate::testbed::moto::{ACCOUNT, Key, Moto, customer_policy};
use crate::testbed::site::Site;
use crate::testbed::unique;

const EXTERNAL_ID: &str = "consign-4711";
const ROLE: &str = "consign-writer";
const KEY: &str = "in/consign-connection-test";

/// The platform in one account, its customer in another, with nothing granted yet.
struct World {
    stack: Ministack,
    customer: Account,
    platform: String,
    key: Key,
    bucket: String,
}

impl World {
    async fn new(word: &str) -> Self {
        let stack = Ministack::shared();
        let (ours, customer) = (stack.account(), stack.account());
        let assume = json!({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"});
        let (platform, key) = ours.make_user("platform", &document(&[assume])).await;
        let bucket = unique(word);
        customer.make_bucket(&bucket).await;
        Self { stack, customer, platform, key, bucket }
    }

    fn trust(&self, external_id: Option<&str>) -> Value {
        let mut statement = json!({"Effect": "Allow", "Principal": {"AWS": self.platform}, "Action": "sts:AssumeRole"});
        if let Some(id) = external_id {
            statement["Condition"] = json!({"StringEquals": {"sts:ExternalId": id}});
        }
        document(&[statement])
    }

    fn allow(&self, action: &str, resource: &str) -> Value {
        let resource = format!("arn:aws:s3:::{}{resource}", self.bucket);
        json!({"Effect": "Allow", "Action": action, "Resource": resource})
    }

    /// Exactly the permissions that a delivery needs.
    fn put(&self) -> Value {
        self.allow("s3:PutObject", "/in/*")
    }

    fn site(&self) -> Site {
        let mut site = Site::embedded("enforced");
        site.aws(&self.stack.url).set("aws.region", REGION).identity(&self.key);
        site.destination("acme", &self.destination());
        site
    }

    /// The store makes a checksum of checksums where that of the whole object is asked for, so none
    /// is asked for. It knows no expected owner.
    fn destination(&self) -> Value {
        let auth = json!({"method": "iam_role", "role_arn": self.customer.role_arn(ROLE), "external_id": EXTERNAL_ID});
        json!({"bucket": self.bucket, "region": REGION, "prefix": "in/", "checksum": "none", "auth": auth})
    }

    /// At most the one object, empty, and no open upload.
    async fn nothing_more_is_left(&self) {
        let keys = self.customer.keys(&self.bucket).await;
        assert!(keys.is_empty() || keys == [KEY], "{keys:?}");
        assert_eq!(self.customer.open_uploads(&self.bucket).await, 0);
        if !keys.is_empty() {
            assert_eq!(self.customer.object(&self.bucket, KEY).await.unwrap().len(), 0);
        }
    }
}

fn document(statements: &[Value]) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// The code of a step, and the statement of its remedy.
fn remedy(answer: &Value, name: &str, code: &str) -> Value {
    let step = step(answer, name);
    assert_eq!(step["code"], code, "{answer:#}");
    step["remedy"]["statement"].clone()
}

fn ready(answer: &(Value, i32)) -> &Value {
    assert_eq!((answer.0["verdict"].as_str(), answer.1), (Some("ready"), 0), "{:#}", answer.0);
    &answer.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_set_up_from_nothing_by_pasting_what_the_remedies_say() {
    let world = World::new("pasted").await;
    let site = world.site();
    // The role is not there; its trust policy is in the remedy.
    let (answer, exit) = check(&site);
    assert_eq!(exit, 3);
    let found = step(&answer, "assume_role");
    assert!(["role_denied", "role_not_found"].contains(&found["code"].as_str().unwrap()), "{answer:#}");
    let trust = found["remedy"]["statement"].clone();
    world.customer.make_role(ROLE, &trust, &document(&[world.allow("s3:GetObject", "/nothing")])).await;

    // Now it lets us in, and may do nothing: each statement is pasted in turn, the required one first.
    let (answer, exit) = check(&site);
    assert_eq!((step(&answer, "assume_role")["result"].as_str(), exit), (Some("ok"), 3), "{answer:#}");
    assert_eq!(step(&answer, "external_id")["result"], "ok", "{answer:#}");
    let write = step(&answer, "write");
    assert!(["put_denied", "access_denied_unspecified"].contains(&write["code"].as_str().unwrap()), "{answer:#}");
    let mut statements = vec![write["remedy"]["statement"].clone()];
    world.customer.set_role_policy(ROLE, &document(&statements)).await;
    let checked = check(&site);
    let answer = ready(&checked);
    assert_eq!(
        codes(answer, "warning"),
        ["region_unchecked", "list_denied", "abort_denied", "delete_denied"],
        "{answer:#}"
    );
    assert_eq!(answer["left_behind"], true);
    world.nothing_more_is_left().await;

    for step in answer["steps"].as_array().unwrap().iter().filter(|step| step["result"] == "warning") {
        statements.push(step["remedy"]["statement"].clone());
    }
    world.customer.set_role_policy(ROLE, &document(&statements)).await;
    let checked = check(&site);
    let answer = ready(&checked);
    assert_eq!(codes(answer, "warning"), Vec::<String>::new(), "{answer:#}");
    assert_eq!(world.customer.keys(&world.bucket).await, Vec::<String>::new(), "nothing is left");
    world.nothing_more_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_policy_that_is_not_right_is_replaced_by_the_remedys() {
    let world = World::new("trusting").await;
    let site = world.site();
    world.customer.make_role(ROLE, &world.trust(Some("another")), &document(&[world.put()])).await;
    let someone = document(&[json!({
        "Effect": "Allow", "Principal": {"AWS": world.customer.role_arn("someone")}, "Action": "sts:AssumeRole",
    })]);
    for (trust, name, code) in [
        (world.trust(Some("another")), "assume_role", "role_denied"),
        (someone, "assume_role", "role_denied"),
        (world.trust(None), "external_id", "external_id_not_enforced"),
    ] {
        world.customer.set_trust(ROLE, &trust).await;
        let (answer, _) = check(&site);
        let right = remedy(&answer, name, code);
        world.customer.set_trust(ROLE, &right).await;
        let checked = check(&site);
        assert_eq!(step(ready(&checked), "external_id")["result"], "ok", "{code}");
        world.nothing_more_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_required_and_optional_permission_is_named_when_it_is_missing() {
    let world = World::new("missing").await;
    let mut site = world.site();
    world.customer.make_role(ROLE, &world.trust(Some(EXTERNAL_ID)), &document(&[world.put()])).await;
    let all = json!({"Effect": "Allow", "Action": "s3:*", "Resource": ["*"]});
    let deny = |action: &str| json!({"Effect": "Deny", "Action": action, "Resource": "*"});
    for (action, name, codes_of_it) in [
        ("s3:GetBucketLocation", "region", &["region_unchecked"][..]),
        ("s3:ListBucket", "list", &["list_denied"]),
        ("s3:AbortMultipartUpload", "multipart", &["abort_denied"]),
        ("s3:DeleteObject", "delete", &["delete_denied"]),
        (
            "s3:PutObject",
            "write",
            &["put_denied", "access_denied_unspecified", "explicit_deny_identity", "explicit_deny_unencrypted"],
        ),
    ] {
        world.customer.set_role_policy(ROLE, &document(&[all.clone(), deny(action)])).await;
        let (answer, exit) = check(&site);
        let found = step(&answer, name);
        assert!(codes_of_it.contains(&found["code"].as_str().unwrap()), "{action}: {answer:#}");
        assert_eq!(exit, if action == "s3:PutObject" { 3 } else { 0 }, "{action}: {answer:#}");
        world.nothing_more_is_left().await;
    }
    // Another folder than the one that is granted.
    let mut elsewhere = world.destination();
    elsewhere["prefix"] = json!("out/");
    world.customer.set_role_policy(ROLE, &document(&[world.put()])).await;
    site.destination("acme", &elsewhere);
    let (answer, exit) = check(&site);
    assert_eq!(exit, 3, "{answer:#}");
    let granted = step(&answer, "write")["remedy"]["statement"].clone();
    assert_eq!(granted["Resource"], format!("arn:aws:s3:::{}/out/*", world.bucket));
    world.customer.set_role_policy(ROLE, &document(&[granted])).await;
    ready(&check(&site));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_key_needs_no_more_than_put_object_on_moto() {
    let moto = Moto::shared();
    let bucket = unique("usercheck");
    moto.make_bucket(&bucket).await;
    let put = json!([{"Effect": "Allow", "Action": "s3:PutObject", "Resource": format!("arn:aws:s3:::{bucket}/in/*")}]);
    for (statements, warnings) in [
        (put, &["region_unchecked", "list_denied", "abort_denied", "delete_denied"][..]),
        (customer_policy(&bucket), &["abort_denied", "delete_denied"]),
    ] {
        let (arn, key) = moto.make_user(&unique("user"), statements).await;
        let mut site = Site::embedded("usercheck");
        let auth = json!({"method": "access_key", "access_key_id": key.id, "secret_access_key": key.secret});
        site.aws(&moto.url)
            .destination("acme", &json!({"bucket": bucket, "region": "us-east-1", "prefix": "in", "auth": auth}));
        let checked = check(&site);
        assert_eq!(codes(ready(&checked), "warning"), warnings, "{:#}", checked.0);
        assert_eq!(checked.0["principal"], arn);
        assert!(arn.contains(ACCOUNT));
        assert_eq!(moto.object(&bucket, KEY).await.unwrap().bytes.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_key_or_bucket_is_reported_on_moto() {
    let moto = Moto::shared();
    let (bucket, there) = (unique("nobucket"), unique("there"));
    moto.make_bucket(&there).await;
    let statements = json!([{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]);
    let (_, key) = moto.make_user(&unique("user"), statements).await;
    let check_as = |id: &str, secret: &str, bucket: &str, region: &str| {
        let mut site = Site::embedded("tellingmoto");
        let auth = json!({"method": "access_key", "access_key_id": id, "secret_access_key": secret});
        site.aws(&moto.url).destination("acme", &json!({"bucket": bucket, "region": region, "auth": auth}));
        check(&site)
    };
    let (answer, exit) = check_as(&key.id, &key.secret, &bucket, "us-east-1");
    assert_eq!((codes(&answer, "failed"), exit), (vec!["bucket_not_found".to_owned()], 3), "{answer:#}");
    moto.make_bucket(&bucket).await;
    ready(&check_as(&key.id, &key.secret, &bucket, "us-east-1"));
    let (answer, _) = check_as("AKIANOBODY0000000001", "x", &there, "us-east-1");
    assert_eq!(codes(&answer, "failed"), ["access_key_unknown"], "{answer:#}");
    let (answer, _) = check_as(&key.id, "anothersecret", &there, "us-east-1");
    assert_eq!(codes(&answer, "failed"), ["access_key_secret_wrong"], "{answer:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_lets_other_addresses_in_shows_ours() {
    let world = World::new("fenced").await;
    let mut site = world.site();
    world.customer.make_role(ROLE, &world.trust(Some(EXTERNAL_ID)), &document(&[world.allow("s3:*", "*")])).await;
    site.set("check.egress_addresses", vec!["127.0.0.0/8"]);
    let fence = |address: &str| {
        let all = format!("arn:aws:s3:::{}", world.bucket);
        document(&[json!({
            "Effect": "Deny", "Principal": "*", "Action": ["s3:PutObject", "s3:ListBucket", "s3:GetBucketLocation"],
            "Resource": [all, format!("{all}/*")], "Condition": {"NotIpAddress": {"aws:SourceIp": address}},
        })])
    };
    world.customer.set_bucket_policy(&world.bucket, &fence("192.0.2.0/24")).await;
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("not ready"), 3), "{answer:#}");
    let write = step(&answer, "write");
    let codes = ["explicit_deny_source_address", "access_denied_unspecified"];
    assert!(codes.contains(&write["code"].as_str().unwrap()), "{answer:#}");
    assert!(write["remedy"]["text"].as_str().unwrap().contains("127.0.0.0/8"), "{answer:#}");
    world.customer.set_bucket_policy(&world.bucket, &fence("127.0.0.0/8")).await;
    ready(&check(&site));
}
