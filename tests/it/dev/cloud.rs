//! The embedded S3 and STS: what they let in, what they refuse, and what their replies say.

use std::time::Duration;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketLocationConstraint, ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart,
    ServerSideEncryption,
};
use base64::Engine as _;
use consign::dev::cloud::{Cloud, CloudPlan, Customer, InjectedFault, KeyPair, Way};
use tempfile::TempDir;

use crate::testbed::{MIB, bytes};

const ROLE: &str = "arn:aws:iam::123456789012:role/export";
const EXTERNAL_ID: &str = "agreed-on";
const KMS_KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/0e7e9fb9-6aa2-4a5b-8a0a-3a2d8d6b6a11";

struct Stage {
    cloud: Cloud,
    platform: KeyPair,
    globex: KeyPair,
    viewer: KeyPair,
    folder: TempDir,
}

async fn stage(session_lives: Duration) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let (platform, globex, viewer) = (KeyPair::invented(), KeyPair::invented(), KeyPair::invented());
    let acme = Customer {
        bucket: "acme-exports".to_owned(),
        prefix: "in/".to_owned(),
        region: "eu-central-1".to_owned(),
        account: "123456789012".to_owned(),
        way: Way::Role { arn: ROLE.to_owned(), external_id: EXTERNAL_ID.to_owned() },
        kms_key_arn: Some(KMS_KEY.to_owned()),
    };
    let other = Customer {
        bucket: "globex-landing".to_owned(),
        prefix: String::new(),
        region: "us-east-1".to_owned(),
        account: "210987654321".to_owned(),
        way: Way::Key(globex.clone()),
        kms_key_arn: None,
    };
    let plan = CloudPlan {
        customers: vec![acme, other],
        platform: platform.clone(),
        viewer: viewer.clone(),
        session_lives,
        injected_fault: Some(InjectedFault { key: "in/large".to_owned(), part: 2 }),
    };
    let cloud = Cloud::start(folder.path(), plan).await.unwrap();
    Stage { cloud, platform, globex, viewer, folder }
}

impl Stage {
    fn sts(&self, pair: &KeyPair) -> aws_sdk_sts::Client {
        let key = Credentials::new(&pair.id, &pair.secret, None, None, "tests");
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .endpoint_url(self.cloud.url())
            .retry_config(aws_sdk_sts::config::retry::RetryConfig::disabled())
            .credentials_provider(key);
        aws_sdk_sts::Client::from_conf(config.build())
    }

    fn s3(&self, credentials: Credentials) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .endpoint_url(self.cloud.url())
            .force_path_style(true)
            .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .credentials_provider(credentials);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    async fn assumed(&self, policy: Option<&str>) -> Credentials {
        let request = self.sts(&self.platform).assume_role().role_arn(ROLE).role_session_name("consign-acme");
        let reply = request.external_id(EXTERNAL_ID).set_policy(policy.map(str::to_owned)).send().await.unwrap();
        let given = reply.credentials.unwrap();
        Credentials::new(given.access_key_id, given.secret_access_key, Some(given.session_token), None, "tests")
    }

    async fn session(&self) -> aws_sdk_s3::Client {
        self.s3(self.assumed(None).await)
    }

    fn of(&self, pair: &KeyPair) -> aws_sdk_s3::Client {
        self.s3(Credentials::new(&pair.id, &pair.secret, None, None, "tests"))
    }
}

/// Status and code of a refusal.
fn refused<T: std::fmt::Debug, E>(answer: Result<T, SdkError<E>>) -> (u16, String)
where
    E: ProvideErrorMetadata + std::fmt::Debug,
{
    let error = answer.unwrap_err();
    (error.raw_response().unwrap().status().as_u16(), error.code().unwrap_or_default().to_owned())
}

fn denied() -> (u16, String) {
    (403, "AccessDenied".to_owned())
}

fn crc(bytes: &[u8]) -> String {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    base64::engine::general_purpose::STANDARD.encode(crc.to_be_bytes())
}

fn body(bytes: &[u8]) -> ByteStream {
    ByteStream::from(bytes.to_vec())
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn only_the_platform_with_the_external_id_may_assume_the_role() {
    let stage = stage(HOUR).await;
    let assume = |pair: &KeyPair, role: &str, external_id: Option<&str>| {
        let request = stage.sts(pair).assume_role().role_arn(role).role_session_name("consign-acme");
        request.set_external_id(external_id.map(str::to_owned)).send()
    };
    assert!(assume(&stage.platform, ROLE, Some(EXTERNAL_ID)).await.is_ok());
    assert_eq!(refused(assume(&stage.platform, ROLE, Some("guessed")).await), denied());
    assert_eq!(refused(assume(&stage.platform, ROLE, None).await), denied());
    let other = "arn:aws:iam::123456789012:role/admin";
    assert_eq!(refused(assume(&stage.platform, other, Some(EXTERNAL_ID)).await), denied());
    assert_eq!(refused(assume(&stage.globex, ROLE, Some(EXTERNAL_ID)).await), denied());
    let unknown = refused(assume(&KeyPair::invented(), ROLE, Some(EXTERNAL_ID)).await);
    assert_eq!(unknown, (403, "InvalidClientTokenId".to_owned()));
    let forged = KeyPair { secret: "guessed".to_owned(), ..stage.platform.clone() };
    assert_eq!(refused(assume(&forged, ROLE, Some(EXTERNAL_ID)).await), (403, "SignatureDoesNotMatch".to_owned()));
    let caller = stage.sts(&stage.platform).get_caller_identity().send().await.unwrap();
    assert_eq!(caller.account(), Some("000000000000"));
}

#[tokio::test]
async fn a_customer_grants_writing_below_its_prefix_listing_there_and_its_region_and_nothing_else() {
    let stage = stage(HOUR).await;
    for (client, bucket, location) in [
        (stage.session().await, "acme-exports", Some("eu-central-1")),
        (stage.of(&stage.globex), "globex-landing", None),
    ] {
        client.put_object().bucket(bucket).key("in/a").body(body(b"x")).send().await.unwrap();
        let listed = client.list_objects_v2().bucket(bucket).prefix("in/").send().await.unwrap();
        let object = &listed.contents()[0];
        assert_eq!((object.key(), object.size(), object.e_tag().is_some()), (Some("in/a"), Some(1), true));
        let region = client.get_bucket_location().bucket(bucket).send().await.unwrap();
        assert_eq!(
            region.location_constraint().map(BucketLocationConstraint::as_str).filter(|r| !r.is_empty()),
            location
        );

        assert_eq!(refused(client.get_object().bucket(bucket).key("in/a").send().await), denied());
        assert_eq!(refused(client.head_object().bucket(bucket).key("in/a").send().await).0, 403);
        assert_eq!(refused(client.delete_object().bucket(bucket).key("in/a").send().await), denied());
        let tagged = client.put_object().bucket(bucket).key("in/b").tagging("a=b").body(body(b"x"));
        assert_eq!(refused(tagged.send().await), denied());
        let upload = client.create_multipart_upload().bucket(bucket).key("in/m").send().await.unwrap();
        let abort = client.abort_multipart_upload().bucket(bucket).key("in/m").upload_id(upload.upload_id().unwrap());
        assert_eq!(refused(abort.send().await), denied());
        assert_eq!(refused(client.list_buckets().send().await), denied());
        let foreign = client.put_object().bucket(bucket).key("in/c").expected_bucket_owner("999999999999");
        assert_eq!(refused(foreign.body(body(b"x")).send().await), denied());
    }
    let acme = stage.session().await;
    let outside = acme.put_object().bucket("acme-exports").key("elsewhere/a").body(body(b"x"));
    assert_eq!(refused(outside.send().await), denied());
    assert_eq!(refused(acme.list_objects_v2().bucket("acme-exports").send().await), denied());
    let other = acme.put_object().bucket("globex-landing").key("in/a").body(body(b"x"));
    assert_eq!(refused(other.send().await), denied());
    let nowhere = acme.put_object().bucket("nobody-here").key("in/a").body(body(b"x"));
    assert_eq!(refused(nowhere.send().await), (404, "NoSuchBucket".to_owned()));
    assert_eq!(refused(stage.of(&stage.platform).list_buckets().send().await), denied());
    assert!(!stage.folder.path().join("acme-exports/elsewhere").exists());
}

#[tokio::test]
async fn an_observer_may_read_and_not_write() {
    let stage = stage(HOUR).await;
    let writer = stage.session().await;
    let request = writer.put_object().bucket("acme-exports").key("in/a").body(body(b"hello"));
    request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(KMS_KEY).send().await.unwrap();
    let viewer = stage.of(&stage.viewer);
    let listed = viewer.list_objects_v2().bucket("acme-exports").send().await.unwrap();
    assert_eq!(listed.contents().len(), 1, "the store's own notes are not listed");
    let got = viewer.get_object().bucket("acme-exports").key("in/a").send().await.unwrap();
    assert_eq!(got.ssekms_key_id(), Some(KMS_KEY));
    assert_eq!(got.body.collect().await.unwrap().to_vec(), b"hello");
    let head = viewer.head_object().bucket("acme-exports").key("in/a").send().await.unwrap();
    assert_eq!(head.server_side_encryption(), Some(&ServerSideEncryption::AwsKms));
    let put = viewer.put_object().bucket("acme-exports").key("in/b").body(body(b"x"));
    assert_eq!(refused(put.send().await), denied());
}

#[tokio::test]
async fn a_session_policy_narrows_and_never_widens() {
    let stage = stage(HOUR).await;
    let policy = |resource: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:PutObject","s3:DeleteObject"],
                "Resource":"arn:aws:s3:::acme-exports/{resource}"}}]}}"#
        )
    };
    let put = |client: &aws_sdk_s3::Client, key: &str| {
        client.put_object().bucket("acme-exports").key(key).body(body(b"x")).send()
    };
    let narrow = stage.s3(stage.assumed(Some(&policy("in/reports/*"))).await);
    assert!(put(&narrow, "in/reports/a").await.is_ok());
    assert_eq!(refused(put(&narrow, "in/b").await), denied());
    let wide = stage.s3(stage.assumed(Some(&policy("*"))).await);
    assert_eq!(refused(put(&wide, "elsewhere/a").await), denied());
    assert_eq!(refused(wide.delete_object().bucket("acme-exports").key("in/reports/a").send().await), denied());

    let request = stage.sts(&stage.platform).assume_role().role_arn(ROLE).role_session_name("consign-acme");
    let broken = request.external_id(EXTERNAL_ID).policy("{}").send().await;
    assert_eq!(refused(broken), (400, "MalformedPolicyDocument".to_owned()));
}

#[tokio::test]
async fn a_session_needs_its_token_and_ends() {
    let stage = stage(Duration::from_secs(2)).await;
    let credentials = stage.assumed(None).await;
    let put = |credentials: Credentials| {
        let client = stage.s3(credentials);
        async move { client.put_object().bucket("acme-exports").key("in/a").body(body(b"x")).send().await }
    };
    let with = |token: Option<&str>| {
        let (id, secret) = (credentials.access_key_id(), credentials.secret_access_key());
        Credentials::new(id, secret, token.map(str::to_owned), None, "tests")
    };
    assert_eq!(refused(put(with(None)).await), (403, "InvalidAccessKeyId".to_owned()));
    assert_eq!(refused(put(with(Some("guessed"))).await), (400, "InvalidToken".to_owned()));
    let expired = crate::testbed::until("the session ends", Duration::from_secs(60), async || {
        put(credentials.clone()).await.err()
    });
    assert_eq!(refused::<(), _>(Err(expired.await)), (400, "ExpiredToken".to_owned()));
    let forged = Credentials::new(&stage.globex.id, "guessed", None, None, "tests");
    assert_eq!(refused(put(forged).await), (403, "SignatureDoesNotMatch".to_owned()));
}

#[tokio::test]
async fn replies_name_the_encryption_that_was_asked_for_and_the_checksum_of_the_bytes() {
    let stage = stage(HOUR).await;
    let client = stage.session().await;
    let put = |key: &str| client.put_object().bucket("acme-exports").key(key);
    let plain = put("in/plain").body(body(b"hello")).checksum_crc64_nvme(crc(b"hello")).send().await.unwrap();
    assert_eq!(plain.server_side_encryption(), Some(&ServerSideEncryption::Aes256));
    assert_eq!(plain.checksum_crc64_nvme(), Some(crc(b"hello").as_str()));
    let empty = put("in/empty").body(body(b"")).checksum_crc64_nvme(crc(b"")).send().await.unwrap();
    assert_eq!(empty.checksum_crc64_nvme(), Some(crc(b"").as_str()));

    let kms = put("in/kms").server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(KMS_KEY);
    let kms = kms.bucket_key_enabled(true).body(body(b"hello")).send().await.unwrap();
    assert_eq!((kms.ssekms_key_id(), kms.bucket_key_enabled()), (Some(KMS_KEY), Some(true)));
    let unknown = put("in/other").server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id("arn:aws:kms:x");
    assert_eq!(refused(unknown.body(body(b"x")).send().await), (400, "KMS.NotFoundException".to_owned()));

    let wrong = put("in/wrong").body(body(b"hello")).checksum_crc64_nvme(crc(b"other")).send().await;
    assert_eq!(refused(wrong), (400, "BadDigest".to_owned()));
    assert!(!stage.folder.path().join("acme-exports/in/wrong").exists(), "nothing of it is kept");
    let taken = put("in/plain").if_none_match("*").body(body(b"again")).send().await;
    assert_eq!(refused(taken), (412, "PreconditionFailed".to_owned()));
    let long = put(&format!("in/{}", "k".repeat(900))).body(body(b"x")).send().await;
    assert_eq!(refused(long).1, "KeyTooLongError");
}

#[tokio::test]
async fn an_upload_is_completed_over_a_hiccup_and_a_renewed_session_and_only_when_it_adds_up() {
    let stage = stage(HOUR).await;
    let client = stage.session().await;
    let whole = bytes(7, 13 * MIB);
    let parts: Vec<&[u8]> = whole.chunks(6 * MIB).collect();
    let create = client.create_multipart_upload().bucket("acme-exports").key("in/large");
    let create = create.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(KMS_KEY);
    let create = create.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).checksum_type(ChecksumType::FullObject);
    let created = create.send().await.unwrap();
    assert_eq!(created.ssekms_key_id(), Some(KMS_KEY));
    let id = created.upload_id().unwrap();
    let send = |client: aws_sdk_s3::Client, number: i32, crc: String| {
        let part = client.upload_part().bucket("acme-exports").key("in/large").upload_id(id).part_number(number);
        let bytes = parts[usize::try_from(number).unwrap() - 1];
        part.checksum_crc64_nvme(crc).body(body(bytes)).send()
    };
    let mut sent = Vec::new();
    for number in 1..=3 {
        // Another session in the middle: an upload outlives the one it was begun with.
        let client = if number == 3 { stage.session().await } else { client.clone() };
        let sum = crc(parts[usize::try_from(number).unwrap() - 1]);
        let answer = match send(client.clone(), number, sum.clone()).await {
            Err(error) => {
                assert_eq!((number, refused::<(), _>(Err(error))), (2, (503, "SlowDown".to_owned())));
                send(client, number, sum.clone()).await.unwrap()
            }
            Ok(answer) => answer,
        };
        assert_eq!(answer.checksum_crc64_nvme(), Some(sum.as_str()));
        let part = CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).checksum_crc64_nvme(sum);
        sent.push(part.build());
    }
    assert_eq!(refused(send(client.clone(), 1, crc(b"other")).await), (400, "BadDigest".to_owned()));

    let complete = |parts: &[CompletedPart], sum: String, size: usize| {
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec())).build();
        let request = client.complete_multipart_upload().bucket("acme-exports").key("in/large").upload_id(id);
        let request = request.multipart_upload(list).checksum_crc64_nvme(sum).checksum_type(ChecksumType::FullObject);
        request.mpu_object_size(i64::try_from(size).unwrap()).send()
    };
    assert_eq!(refused(complete(&sent, crc(b"other"), whole.len()).await).1, "BadDigest");
    assert_eq!(refused(complete(&sent, crc(&whole), 1).await).1, "InvalidRequest");
    assert_eq!(refused(complete(&[], crc(&whole), whole.len()).await).1, "InvalidPart");
    assert_eq!(stage.cloud.take_sent_again("acme-exports", "in/large"), 0, "not complete yet");

    let done = complete(&sent, crc(&whole), whole.len()).await.unwrap();
    assert_eq!(done.checksum_crc64_nvme(), Some(crc(&whole).as_str()));
    assert_eq!(
        (done.server_side_encryption(), done.ssekms_key_id()),
        (Some(&ServerSideEncryption::AwsKms), Some(KMS_KEY))
    );
    assert!(done.e_tag().unwrap().trim_matches('"').ends_with("-3"));
    assert_eq!(std::fs::read(stage.folder.path().join("acme-exports/in/large")).unwrap(), whole);
    assert_eq!(stage.cloud.take_sent_again("acme-exports", "in/large"), 2, "the injected_fault and the bad digest");
    assert_eq!(refused(complete(&sent, crc(&whole), whole.len()).await), (404, "NoSuchUpload".to_owned()));
}

#[tokio::test]
async fn an_upload_whose_client_went_while_it_was_completed_is_none_any_more() {
    let stage = stage(Duration::from_secs(600)).await;
    let client = stage.session().await;
    let created = client.create_multipart_upload().bucket("acme-exports").key("in/half").send().await.unwrap();
    let id = created.upload_id().unwrap();
    let send = || {
        let part = client.upload_part().bucket("acme-exports").key("in/half").upload_id(id).part_number(1);
        part.body(body(b"one part")).send()
    };
    let e_tag = send().await.unwrap().e_tag;
    // What the store behind does first.
    std::fs::remove_file(stage.folder.path().join(format!(".upload-{id}.json"))).unwrap();
    let part = CompletedPart::builder().part_number(1).set_e_tag(e_tag).build();
    let complete = client.complete_multipart_upload().bucket("acme-exports").key("in/half").upload_id(id);
    let complete = complete.multipart_upload(CompletedMultipartUpload::builder().parts(part).build());
    let gone = (404, "NoSuchUpload".to_owned());
    assert_eq!(refused(complete.send().await), gone);
    assert_eq!(refused(send().await), gone);
}
