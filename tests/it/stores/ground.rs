//! The stores: how each is reached, and a customer's bucket in it.

use std::collections::BTreeMap;

use aws_sdk_s3::primitives::ByteStream;
use serde_json::{Value, json};

use crate::testbed::ceph::Ceph;
use crate::testbed::ministack::{self, Ministack};
use crate::testbed::moto::{self, Key, Moto, Stored, customer_policy, s3_client, stored};
use crate::testbed::site::Site;
use crate::testbed::{exported, unique};

/// A key of no meaning where a store takes any.
const KMS_KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/5d4e3c2b-1a09-4f8e-9d7c-6b5a49382716";

/// A bucket in a store, and the ways into it.
pub struct Store {
    pub url: String,
    pub sts_url: Option<String>,
    pub region: &'static str,
    pub flavor: Option<String>,
    /// The platform's identity, where roles are assumed.
    pub identity: Option<Key>,
    pub bucket: String,
    /// Destinations by name: `role`, `role-kms`, `key`, `key-kms` as far as the store has them,
    /// `role-full` where STS refuses KMS actions in a session policy, `denied` and `denied-key`,
    /// which may not write, and `ignored-kms` where the store ignores the KMS key.
    pub destinations: BTreeMap<&'static str, Value>,
    /// True if objects are files: keys are short, and none ends in `/`.
    pub files: bool,
    /// A bucket that the platform may read.
    pub staging: Option<String>,
    /// Reads and writes everything.
    pub admin: aws_sdk_s3::Client,
    /// Ends with the store.
    #[cfg(feature = "dev")]
    cloud: Option<(consign::dev::cloud::Cloud, tempfile::TempDir)>,
}

impl Store {
    fn new(url: &str, region: &'static str, bucket: &str, admin: aws_sdk_s3::Client) -> Self {
        Self {
            url: url.to_owned(),
            sts_url: None,
            region,
            flavor: None,
            identity: None,
            bucket: bucket.to_owned(),
            destinations: BTreeMap::new(),
            files: false,
            staging: None,
            admin,
            #[cfg(feature = "dev")]
            cloud: None,
        }
    }

    /// Adds a destination that is reached so, with further keys.
    fn with(mut self, name: &'static str, auth: &Value, further: &Value) -> Self {
        let mut keys = json!({"bucket": self.bucket, "region": self.region, "prefix": "in/", "auth": auth});
        for (key, value) in further.as_object().unwrap() {
            keys[key] = value.clone();
        }
        self.destinations.insert(name, keys);
        self
    }

    /// A site with an embedded queue, so that the store is the only server.
    pub fn site(&self) -> Site {
        let mut site = Site::embedded("store");
        site.set("aws.s3_endpoint_url", self.url.as_str()).set("aws.region", self.region);
        if let Some(url) = &self.sts_url {
            site.set("aws.sts_endpoint_url", url.as_str());
        }
        if let Some(key) = &self.identity {
            site.identity(key);
        }
        if let Some(flavor) = &self.flavor {
            // What the flavor presets is left to it.
            site.unset("aws.force_path_style").set("aws.flavor", flavor.as_str());
        }
        if let Some(staging) = &self.staging {
            site.set("source.s3", json!([{"bucket": staging}]));
        }
        for (name, keys) in &self.destinations {
            site.destination(name, keys);
        }
        site.topology();
        site
    }

    /// The destinations that may write, the best one first.
    pub fn usual(&self) -> Vec<&'static str> {
        let known = ["role", "key", "role-kms", "key-kms", "role-full"];
        known.into_iter().filter(|name| self.destinations.contains_key(name)).collect()
    }

    /// Key of the object that a job's key stands for.
    fn key(&self, key: &str) -> String {
        let prefix = self.destinations[self.usual()[0]]["prefix"].as_str().unwrap();
        format!("{prefix}{key}")
    }

    pub async fn object(&self, key: &str) -> Option<Stored> {
        stored(&self.admin, &self.bucket, &self.key(key)).await
    }

    /// Number of open uploads below the prefix; `None` for the store of `consign dev`, which lists none.
    pub async fn open_uploads(&self) -> Option<usize> {
        #[cfg(feature = "dev")]
        if self.cloud.is_some() {
            return None;
        }
        let listed = self.admin.list_multipart_uploads().bucket(&self.bucket).prefix(self.key("")).send();
        Some(listed.await.unwrap().uploads().len())
    }

    /// Puts a file into the staging bucket and gives its URL.
    pub async fn stage(&self, name: &str, bytes: Vec<u8>) -> Option<String> {
        let staging = self.staging.as_ref()?;
        self.admin.put_object().bucket(staging).key(name).body(ByteStream::from(bytes)).send().await.unwrap();
        Some(format!("s3://{staging}/{name}"))
    }
}

fn by_key(key: &Key) -> Value {
    json!({"method": "access_key", "access_key_id": key.id, "secret_access_key": key.secret})
}

fn by_role(arn: &str, external_id: Option<&str>) -> Value {
    let mut auth = json!({"method": "iam_role", "role_arn": arn});
    if let Some(id) = external_id {
        auth["external_id"] = json!(id);
    }
    auth
}

/// Everything of the customers' policy but the writing.
fn reading(bucket: &str) -> Value {
    customer_policy(bucket).as_array().unwrap().iter().skip(1).cloned().collect()
}

pub async fn moto() -> Store {
    let moto = Moto::shared();
    let (bucket, staging) = (unique("bucket"), unique("staging"));
    moto.make_bucket(&bucket).await;
    moto.make_bucket(&staging).await;
    let (platform, key) = moto.make_user(&unique("platform"), moto::platform_policy(&staging)).await;
    let role = moto.make_role(&unique("role"), &platform, "4711", customer_policy(&bucket)).await;
    let reader = moto.make_role(&unique("role"), &platform, "4711", reading(&bucket)).await;
    let (_, user) = moto.make_user(&unique("user"), customer_policy(&bucket)).await;
    let (_, visitor) = moto.make_user(&unique("visitor"), reading(&bucket)).await;
    let kms = json!({"kms_key_arn": KMS_KEY});
    let store = Store::new(&moto.url, "us-east-1", &bucket, moto.admin_client())
        .with("role", &by_role(&role, Some("4711")), &json!({}))
        .with("role-kms", &by_role(&role, Some("4711")), &kms)
        .with("key", &by_key(&user), &json!({}))
        .with("key-kms", &by_key(&user), &kms)
        .with("denied", &by_role(&reader, Some("4711")), &json!({}))
        .with("denied-key", &by_key(&visitor), &json!({}));
    Store { sts_url: Some(moto.url), identity: Some(key), staging: Some(staging), ..store }
}

/// It makes a checksum of checksums where that of the whole object is asked for, so none is sent.
pub async fn ministack() -> Store {
    let stack = Ministack::shared();
    let (ours, customer) = (stack.account(), stack.account());
    let document = |statements: Value| json!({"Version": "2012-10-17", "Statement": statements});
    let assume = json!([{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}]);
    let (platform, key) = ours.make_user("platform", &document(assume)).await;
    let bucket = unique("bucket");
    customer.make_bucket(&bucket).await;
    let trust = document(json!([{
        "Effect": "Allow", "Principal": {"AWS": platform}, "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": "4711"}},
    }]));
    let role = customer.make_role("writer", &trust, &document(customer_policy(&bucket))).await;
    let reader = customer.make_role("reader", &trust, &document(reading(&bucket))).await;
    let (_, user) = customer.make_user("user", &document(customer_policy(&bucket))).await;
    let plain = json!({"checksum": "none"});
    let kms_key = format!("arn:aws:kms:{}:{}:key/5d4e3c2b-1a09-4f8e-9d7c-6b5a49382716", ministack::REGION, customer.id);
    let kms = json!({"checksum": "none", "kms_key_arn": kms_key});
    let store = Store::new(&stack.url, ministack::REGION, &bucket, customer.s3.clone())
        .with("role", &by_role(&role, Some("4711")), &plain)
        .with("role-kms", &by_role(&role, Some("4711")), &kms)
        .with("key", &by_key(&user), &plain)
        .with("denied", &by_role(&reader, Some("4711")), &plain);
    Store { sts_url: Some(stack.url), identity: Some(key), ..store }
}

/// The store of `consign dev`, which is made of s3s. It grants writing below the prefix alone.
#[cfg(feature = "dev")]
pub async fn s3s() -> Store {
    use consign::dev::cloud::{Cloud, CloudPlan, Customer, KeyPair, Way};
    const ROLE: &str = "arn:aws:iam::123456789012:role/export";
    let key = |pair: &KeyPair| Key { id: pair.id.clone(), secret: pair.secret.clone() };
    let (platform, viewer) = (KeyPair::invented(), KeyPair::invented());
    let customer = Customer {
        bucket: "acme-exports".to_owned(),
        prefix: "in/".to_owned(),
        region: "us-east-1".to_owned(),
        account: "123456789012".to_owned(),
        way: Way::Role { arn: ROLE.to_owned(), external_id: "4711".to_owned() },
        kms_key_arn: Some(KMS_KEY.to_owned()),
    };
    let plan = CloudPlan {
        customers: vec![customer],
        platform: platform.clone(),
        viewer: viewer.clone(),
        session_lives: std::time::Duration::from_secs(3600),
        injected_fault: None,
    };
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(folder.path(), plan).await.unwrap();
    let url = cloud.url();
    let admin = s3_client(&url, &key(&viewer), "us-east-1");
    let store = Store::new(&url, "us-east-1", "acme-exports", admin)
        .with("role", &by_role(ROLE, Some("4711")), &json!({}))
        .with("role-kms", &by_role(ROLE, Some("4711")), &json!({"kms_key_arn": KMS_KEY}))
        .with("denied", &by_role(ROLE, Some("4711")), &json!({"prefix": "out/"}));
    let (sts_url, identity, cloud) = (Some(url), Some(key(&platform)), Some((cloud, folder)));
    Store { sts_url, identity, files: true, cloud, ..store }
}

/// An account is a tenant here. A trust policy with an external id never lets anybody in.
pub async fn ceph() -> Store {
    let ceph = Ceph::shared();
    let (bucket, staging) = (unique("bucket"), unique("staging"));
    ceph.make_bucket(&bucket, &[("writer", customer_policy(&bucket)), ("reader", reading(&bucket))]).await;
    ceph.make_bucket(&staging, &[("platform", moto::platform_policy(&staging))]).await;
    let role = ceph.make_role(&unique("role"), &customer_policy(&bucket)).await;
    let reader = ceph.make_role(&unique("role"), &reading(&bucket)).await;
    let kms = json!({"kms_key_arn": ceph.kms_key});
    let store = Store::new(&ceph.url, "us-east-1", &bucket, ceph.s3.clone())
        .with("role", &by_role(&role, None), &json!({}))
        .with("role-kms", &by_role(&role, None), &kms)
        // The flavor presets "s3": this one has to find out that STS takes no KMS actions.
        .with("role-full", &by_role(&role, None), &json!({"session_policy": "full"}))
        .with("key", &by_key(&ceph.writer), &json!({}))
        .with("key-kms", &by_key(&ceph.writer), &kms)
        .with("denied", &by_role(&reader, None), &json!({}))
        .with("denied-key", &by_key(&ceph.reader), &json!({}));
    let (sts_url, flavor) = (Some(ceph.url.clone()), Some("ceph".to_owned()));
    Store { sts_url, flavor, identity: Some(ceph.platform), staging: Some(staging), ..store }
}

/// It has no roles and no policies: a key may read, write or own a bucket.
pub async fn garage() -> Store {
    let variable = |name: &str| exported(&format!("CONSIGN_TEST_GARAGE_{name}"));
    let key = |name: &str| {
        let (id, secret) =
            variable(name).split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned())).unwrap();
        Key { id, secret }
    };
    let (url, bucket) = (variable("URL"), unique("bucket"));
    let admin = s3_client(&url, &key("ADMIN"), "garage");
    let garage = |arguments: &[&str]| {
        let mut garage = std::process::Command::new(variable("PROGRAM"));
        let output = garage.args(["-c", &variable("CONFIG"), "bucket"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    // A bucket that a key creates through S3 has its name for this key alone.
    garage(&["create", &bucket]);
    for (name, rights) in
        [("ADMIN", &["--owner", "--read", "--write"][..]), ("WRITER", &["--read", "--write"]), ("READER", &["--read"])]
    {
        garage(&[&["allow", &bucket, "--key", &key(name).id], rights].concat());
    }
    let (writer, reader) = (by_key(&key("WRITER")), by_key(&key("READER")));
    let store = Store::new(&url, "garage", &bucket, admin)
        .with("key", &writer, &json!({}))
        .with("ignored-kms", &writer, &json!({"kms_key_arn": KMS_KEY.replace("us-east-1", "garage")}))
        .with("denied", &reader, &json!({}));
    Store { flavor: Some("garage".to_owned()), ..store }
}

/// Its S3 alone: any key lets everybody in.
pub async fn localstack() -> Store {
    let url = exported("CONSIGN_TEST_LOCALSTACK_URL");
    let key = Key { id: "test".to_owned(), secret: "test".to_owned() };
    let admin = s3_client(&url, &key, "us-east-1");
    let bucket = unique("bucket");
    admin.create_bucket().bucket(&bucket).send().await.unwrap();
    Store::new(&url, "us-east-1", &bucket, admin).with("key", &by_key(&key), &json!({}))
}

/// A bucket of one's own, by variables that begin with `CONSIGN_TEST_ACCOUNT_`:
///
/// - `BUCKET` and `REGION`, `PREFIX` (a folder that the tests may fill, ending in `/`);
/// - `KEY_ID` and `SECRET`: reads and writes the bucket; with `ROLE_ARN` (and `EXTERNAL_ID`) also
///   the identity that assumes the role, else the destination's own key;
/// - `S3_URL`, `STS_URL` and `FLAVOR` for another store than AWS S3;
/// - `KMS_KEY_ARN`, without which the test of the encryption says that it is missing.
pub async fn account() -> Store {
    let optional = |name: &str| std::env::var(format!("CONSIGN_TEST_ACCOUNT_{name}")).ok();
    let required = |name: &str| exported(&format!("CONSIGN_TEST_ACCOUNT_{name}"));
    let region: &'static str = Box::leak(required("REGION").into_boxed_str());
    let url = optional("S3_URL").unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let key = Key { id: required("KEY_ID"), secret: required("SECRET") };
    let admin = s3_client(&url, &key, region);
    let role = optional("ROLE_ARN");
    let auth = match &role {
        Some(arn) => by_role(arn, optional("EXTERNAL_ID").as_deref()),
        None => by_key(&key),
    };
    let prefix = format!("{}{}/", optional("PREFIX").unwrap_or_default(), unique("consign"));
    let names = if role.is_some() { ["role", "role-kms"] } else { ["key", "key-kms"] };
    let mut store =
        Store::new(&url, region, &required("BUCKET"), admin).with(names[0], &auth, &json!({"prefix": prefix}));
    if let Some(arn) = optional("KMS_KEY_ARN") {
        store = store.with(names[1], &auth, &json!({"prefix": prefix, "kms_key_arn": arn}));
    }
    let sts_url = optional("STS_URL").filter(|_| role.is_some());
    Store { sts_url, flavor: optional("FLAVOR"), identity: role.map(|_| key), ..store }
}
