//! ministack: S3, STS and IAM by somebody else again, with several accounts and stricter than moto:
//! the principal a role trusts, an absent external id, session policies, `aws:SourceIp`, policies
//! of buckets (their own account's alone). It knows no policy variables (`${*}`) and neither
//! permissions of KMS nor the expected owner of a bucket, and it takes no CRC-64/NVME of a whole
//! object in parts, so destinations here say `checksum = "none"`.

use std::sync::atomic::{AtomicU32, Ordering};

use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use serde_json::Value;

use super::exported;
use super::moto::{Key, element, iam, s3_client};

/// The region of every bucket here.
pub const REGION: &str = "eu-central-1";

/// The server.
#[derive(Debug, Clone)]
pub struct Ministack {
    pub url: String,
}

/// An account and its administrator's hands. Names are unique in an account, so every test has its
/// own accounts.
#[derive(Debug, Clone)]
pub struct Account {
    pub id: String,
    url: String,
    root: Key,
    pub s3: aws_sdk_s3::Client,
}

impl Ministack {
    pub fn shared() -> Self {
        Self { url: exported("CONSIGN_TEST_MINISTACK_URL") }
    }

    /// An account nobody else uses.
    pub fn account(&self) -> Account {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id() % 10_000_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let id = format!("7{process:07}{number:04}");
        // Here, an account's number is the access key of its root.
        let root = Key { id: id.clone(), secret: "test".to_owned() };
        Account { s3: s3_client(&self.url, &root, REGION), url: self.url.clone(), root, id }
    }
}

impl Account {
    pub async fn make_bucket(&self, name: &str) {
        let place = BucketLocationConstraint::from(REGION);
        let place = CreateBucketConfiguration::builder().location_constraint(place).build();
        self.s3.create_bucket().bucket(name).create_bucket_configuration(place).send().await.unwrap();
    }

    /// A user with this policy document; gives its ARN and key.
    pub async fn make_user(&self, name: &str, policy: &Value) -> (String, Key) {
        self.iam(&[("Action", "CreateUser"), ("UserName", name)]).await;
        self.set_user_policy(name, policy).await;
        let made = self.iam(&[("Action", "CreateAccessKey"), ("UserName", name)]).await;
        let key = Key { id: element(&made, "AccessKeyId"), secret: element(&made, "SecretAccessKey") };
        (format!("arn:aws:iam::{}:user/{name}", self.id), key)
    }

    pub async fn set_user_policy(&self, name: &str, policy: &Value) {
        let policy = policy.to_string();
        let put = [("Action", "PutUserPolicy"), ("UserName", name), ("PolicyName", "p"), ("PolicyDocument", &policy)];
        self.iam(&put).await;
    }

    /// A role with these documents; gives its ARN.
    pub async fn make_role(&self, name: &str, trust: &Value, permissions: &Value) -> String {
        let trust = trust.to_string();
        self.iam(&[("Action", "CreateRole"), ("RoleName", name), ("AssumeRolePolicyDocument", &trust)]).await;
        self.set_role_policy(name, permissions).await;
        self.role_arn(name)
    }

    /// The ARN of a role of this account, there or not.
    pub fn role_arn(&self, name: &str) -> String {
        format!("arn:aws:iam::{}:role/{name}", self.id)
    }

    pub async fn set_role_policy(&self, name: &str, policy: &Value) {
        let policy = policy.to_string();
        let put = [("Action", "PutRolePolicy"), ("RoleName", name), ("PolicyName", "p"), ("PolicyDocument", &policy)];
        self.iam(&put).await;
    }

    pub async fn set_trust(&self, name: &str, trust: &Value) {
        let trust = trust.to_string();
        let put = [("Action", "UpdateAssumeRolePolicy"), ("RoleName", name), ("PolicyDocument", &trust)];
        self.iam(&put).await;
    }

    pub async fn set_bucket_policy(&self, bucket: &str, policy: &Value) {
        self.s3.put_bucket_policy().bucket(bucket).policy(policy.to_string()).send().await.unwrap();
    }

    /// The keys of a bucket, in their order.
    pub async fn keys(&self, bucket: &str) -> Vec<String> {
        let listed = self.s3.list_objects_v2().bucket(bucket).send().await.unwrap();
        listed.contents().iter().filter_map(|object| object.key()).map(str::to_owned).collect()
    }

    /// An object's bytes as the administrator finds them; `None` when there is none.
    pub async fn object(&self, bucket: &str, key: &str) -> Option<bytes::Bytes> {
        let object = self.s3.get_object().bucket(bucket).key(key).send().await.ok()?;
        Some(object.body.collect().await.unwrap().into_bytes())
    }

    /// Number of open multipart uploads.
    pub async fn open_uploads(&self, bucket: &str) -> usize {
        self.s3.list_multipart_uploads().bucket(bucket).send().await.unwrap().uploads().len()
    }

    async fn iam(&self, form: &[(&str, &str)]) -> String {
        iam(&self.url, &self.root, form).await
    }
}
