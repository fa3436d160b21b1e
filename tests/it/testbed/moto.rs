//! moto: S3, STS and IAM by somebody else, with IAM enforced. `tests/run` made one administrator
//! before it closed the door.

use std::time::SystemTime;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, ResponseChecksumValidation};
use aws_sdk_s3::primitives::ByteStream;
use aws_sigv4::http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{exported, http};

/// The account that everything in moto belongs to.
pub const ACCOUNT: &str = "123456789012";

/// A long-lived access key.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: String,
    pub secret: String,
}

/// An object as the customer finds it.
#[derive(Debug, Clone)]
pub struct Stored {
    pub bytes: Bytes,
    pub encryption: Option<String>,
    pub kms_key: Option<String>,
    pub content_encoding: Option<String>,
    pub content_type: Option<String>,
}

/// The server, and the administrator's hands.
#[derive(Debug, Clone)]
pub struct Moto {
    pub url: String,
    admin: Key,
    s3: aws_sdk_s3::Client,
}

impl Moto {
    pub fn shared() -> Self {
        let url = exported("CONSIGN_TEST_MOTO_URL");
        let admin = Key { id: exported("CONSIGN_TEST_MOTO_KEY_ID"), secret: exported("CONSIGN_TEST_MOTO_SECRET") };
        let s3 = s3_client(&url, &admin, "us-east-1");
        Self { url, admin, s3 }
    }

    /// An S3 client with somebody's key.
    pub fn s3_as(&self, key: &Key) -> aws_sdk_s3::Client {
        s3_client(&self.url, key, "us-east-1")
    }

    pub async fn make_bucket(&self, name: &str) {
        self.s3.create_bucket().bucket(name).send().await.unwrap();
    }

    /// A user who may do what `statements` say; gives its ARN and key.
    pub async fn make_user(&self, name: &str, statements: Value) -> (String, Key) {
        self.iam(&[("Action", "CreateUser"), ("UserName", name)]).await;
        let policy = document(&statements);
        let put = [("Action", "PutUserPolicy"), ("UserName", name), ("PolicyName", "p"), ("PolicyDocument", &policy)];
        self.iam(&put).await;
        let made = self.iam(&[("Action", "CreateAccessKey"), ("UserName", name)]).await;
        let key = Key { id: element(&made, "AccessKeyId"), secret: element(&made, "SecretAccessKey") };
        (format!("arn:aws:iam::{ACCOUNT}:user/{name}"), key)
    }

    /// A role that `principal` may assume with this external id, and that may do what `statements`
    /// say; gives its ARN.
    pub async fn make_role(&self, name: &str, principal: &str, external_id: &str, statements: Value) -> String {
        let trust = document(&json!([{
            "Effect": "Allow", "Principal": {"AWS": principal}, "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
        }]));
        self.iam(&[("Action", "CreateRole"), ("RoleName", name), ("AssumeRolePolicyDocument", &trust)]).await;
        let policy = document(&statements);
        let put = [("Action", "PutRolePolicy"), ("RoleName", name), ("PolicyName", "p"), ("PolicyDocument", &policy)];
        self.iam(&put).await;
        format!("arn:aws:iam::{ACCOUNT}:role/{name}")
    }

    /// Puts a file into a bucket as the administrator.
    pub async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.s3.put_object().bucket(bucket).key(key).body(ByteStream::from(bytes)).send().await.unwrap();
    }

    /// Reads an object back as the administrator; `None` when there is none.
    pub async fn object(&self, bucket: &str, key: &str) -> Option<Stored> {
        stored(&self.s3, bucket, key).await
    }

    /// An S3 client of the administrator.
    pub fn admin_client(&self) -> aws_sdk_s3::Client {
        self.s3.clone()
    }

    async fn iam(&self, form: &[(&str, &str)]) -> String {
        iam(&self.url, &self.admin, form).await
    }
}

/// Reads an object back; `None` when there is none.
pub async fn stored(s3: &aws_sdk_s3::Client, bucket: &str, key: &str) -> Option<Stored> {
    let object = s3.get_object().bucket(bucket).key(key).send().await.ok()?;
    let encryption = object.server_side_encryption().map(|algorithm| algorithm.as_str().to_owned());
    Some(Stored {
        encryption,
        kms_key: object.ssekms_key_id().map(str::to_owned),
        content_encoding: object.content_encoding().map(str::to_owned),
        content_type: object.content_type().map(str::to_owned),
        bytes: object.body.collect().await.unwrap().into_bytes(),
    })
}

/// A call of IAM, signed by hand: there is no SDK of IAM among our dependencies.
pub(super) async fn iam(url: &str, admin: &Key, form: &[(&str, &str)]) -> String {
    let form = form.iter().chain(&[("Version", "2010-05-08")]);
    let body: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let url = format!("{url}/");
    // moto does not rebuild the body of a form faithfully, so it must be told its checksum.
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let identity = Credentials::new(&admin.id, &admin.secret, None, None, "tests").into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("iam")
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let kind = ("content-type", "application/x-www-form-urlencoded");
    let signable =
        SignableRequest::new("POST", &url, [kind].into_iter(), SignableBody::Bytes(body.as_bytes())).unwrap();
    let (signed, _) = sign(signable, &parameters).unwrap().into_parts();
    let mut request = http().post(&url).header(kind.0, kind.1).body(body);
    for (name, value) in signed.headers() {
        request = request.header(name, value);
    }
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "IAM: {status} {text}");
    text
}

pub fn s3_client(url: &str, key: &Key, region: &'static str) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region))
        .endpoint_url(url)
        .force_path_style(true)
        // Without awscrt, moto answers a CRC-32 where the CRC-64/NVME of a multipart object is asked for.
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .credentials_provider(Credentials::new(&key.id, &key.secret, None, None, "tests"))
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// Exactly what customers grant: the three actions, and nothing else.
pub fn customer_policy(bucket: &str) -> Value {
    json!([
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": format!("arn:aws:s3:::{bucket}/*")},
        {"Effect": "Allow", "Action": ["s3:GetBucketLocation", "s3:ListBucket"], "Resource": format!("arn:aws:s3:::{bucket}")},
    ])
}

/// Policy of the platform's own identity: assume roles, and read its staging bucket.
pub fn platform_policy(staging: &str) -> Value {
    json!([
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": format!("arn:aws:s3:::{staging}/*")},
    ])
}

fn document(statements: &Value) -> String {
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

pub(super) fn element(xml: &str, name: &str) -> String {
    let rest = xml.split(&format!("<{name}>")).nth(1).unwrap_or_else(|| panic!("no {name} in {xml}"));
    rest.split("</").next().unwrap().replace("&amp;", "&")
}
