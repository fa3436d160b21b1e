//! The testbed itself: each counterpart does what the scenarios rely on.

use std::time::Duration;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::testbed::broker::Broker;
use crate::testbed::checker::Checker;
use crate::testbed::ministack::{Ministack, REGION};
use crate::testbed::moto::{Key, Moto, customer_policy, platform_policy};
use crate::testbed::proxy::{Condition, Proxy, address_of};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{MIB, bytes, unique};

fn client(url: &str, region: &'static str, key: &str) -> aws_sdk_s3::Client {
    let retries = aws_sdk_s3::config::retry::RetryConfig::disabled();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region))
        .endpoint_url(url)
        .force_path_style(true)
        .retry_config(retries)
        .credentials_provider(Credentials::new(key, "secret", None, None, "tests"))
        .request_checksum_calculation(aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

async fn put(client: &aws_sdk_s3::Client, key: &str) -> Result<(), String> {
    let sent = client.put_object().bucket("b").key(key).body(ByteStream::from_static(b"x")).send().await;
    sent.map(|_| ()).map_err(|e| aws_sdk_s3::error::DisplayErrorContext(e).to_string())
}

#[tokio::test]
async fn the_broker_takes_and_gives() {
    let broker = Broker::shared(&unique("harness"));
    let channel = broker.reachable().await;
    let exchange = broker.prefix.clone();
    let (topic, options) = (ExchangeKind::Topic, ExchangeDeclareOptions::default());
    channel.exchange_declare(exchange.as_str().into(), topic, options, FieldTable::default()).await.unwrap();
    let queue = format!("{exchange}.dead");
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(queue.as_str().into(), exchange.as_str().into(), "#".into(), bind, FieldTable::default())
        .await
        .unwrap();
    broker.publish_raw("job.scheduled.a", b"{}", BasicProperties::default().with_message_id("m".into())).await;
    let message = broker.taken("dead", "m").await;
    assert_eq!((message.routing_key.as_str(), message.body.as_slice()), ("job.scheduled.a", &b"{}"[..]));
    broker.clean().await;
}

#[tokio::test]
async fn moto_enforces_the_customers_policy() {
    let moto = Moto::shared();
    let (bucket, user) = (unique("bucket"), unique("user"));
    moto.make_bucket(&bucket).await;
    let (_, key) = moto.make_user(&user, customer_policy(&bucket)).await;
    let s3 = moto.s3_as(&key);
    s3.put_object().bucket(&bucket).key("a").body(ByteStream::from_static(b"x")).send().await.unwrap();
    assert!(s3.get_object().bucket(&bucket).key("a").send().await.is_err(), "GetObject was not granted");
    assert!(s3.delete_object().bucket(&bucket).key("a").send().await.is_err(), "DeleteObject was not granted");
    assert_eq!(moto.object(&bucket, "a").await.unwrap().bytes, "x");
}

#[tokio::test]
async fn moto_hands_out_sessions_to_those_the_role_trusts() {
    let moto = Moto::shared();
    let (bucket, user, role) = (unique("bucket"), unique("platform"), unique("role"));
    moto.make_bucket(&bucket).await;
    let (arn, key) = moto.make_user(&user, platform_policy("staging")).await;
    let role = moto.make_role(&role, &arn, "the-external-id", customer_policy(&bucket)).await;
    let sts = sts(&moto.url, &key);
    let assume = |external_id: &'static str| {
        sts.assume_role().role_arn(&role).role_session_name("consign-a").external_id(external_id).send()
    };
    assert!(assume("another").await.is_err(), "the external id was not compared");
    let session = assume("the-external-id").await.unwrap().credentials.unwrap();
    let token = Some(session.session_token.clone());
    let credentials = Credentials::new(&session.access_key_id, &session.secret_access_key, token, None, "tests");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(&moto.url)
        .force_path_style(true)
        .credentials_provider(credentials)
        .build();
    let s3 = aws_sdk_s3::Client::from_conf(config);
    s3.put_object().bucket(&bucket).key("a").body(ByteStream::from_static(b"x")).send().await.unwrap();
    assert!(s3.get_object().bucket(&bucket).key("a").send().await.is_err(), "GetObject was not granted");
}

/// An STS client with somebody's key.
fn sts(url: &str, key: &Key) -> aws_sdk_sts::Client {
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
        .region(aws_sdk_sts::config::Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(Credentials::new(&key.id, &key.secret, None, None, "tests"))
        .build();
    aws_sdk_sts::Client::from_conf(config)
}

#[tokio::test]
async fn ministack_holds_roles_to_their_trust_and_sessions_to_their_policy() {
    let stack = Ministack::shared();
    let (platform, customer) = (stack.account(), stack.account());
    let document = |statement: serde_json::Value| json!({"Version": "2012-10-17", "Statement": [statement]});
    let may_assume = document(json!({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}));
    let (us, key) = platform.make_user("platform", &may_assume).await;
    let (_, stranger) = platform.make_user("stranger", &may_assume).await;
    let bucket = unique("strict");
    customer.make_bucket(&bucket).await;
    let trust = |condition: serde_json::Value| {
        let who = json!({"AWS": us});
        document(json!({"Effect": "Allow", "Principal": who, "Action": "sts:AssumeRole", "Condition": condition}))
    };
    let id = json!({"StringEquals": {"sts:ExternalId": "4711"}});
    let writes = json!({"Effect": "Allow", "Action": "s3:PutObject", "Resource": format!("arn:aws:s3:::{bucket}/*")});
    let role = customer.make_role("export", &trust(id.clone()), &document(writes)).await;

    let assume = |key: &Key| sts(&stack.url, key).assume_role().role_arn(&role).role_session_name("consign-a");
    assert!(assume(&stranger).external_id("4711").send().await.is_err(), "the principal was not compared");
    assert!(assume(&key).send().await.is_err(), "an absent external id was let through");
    assert!(assume(&key).external_id("12").send().await.is_err(), "a wrong external id was let through");
    let narrow =
        json!({"Effect": "Allow", "Action": "s3:PutObject", "Resource": format!("arn:aws:s3:::{bucket}/in/*")});
    let session = assume(&key).external_id("4711").policy(document(narrow).to_string()).send().await.unwrap();
    let session = session.credentials.unwrap();
    let token = Some(session.session_token.clone());
    let credentials = Credentials::new(&session.access_key_id, &session.secret_access_key, token, None, "tests");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(&stack.url)
        .force_path_style(true)
        .credentials_provider(credentials);
    let s3 = aws_sdk_s3::Client::from_conf(config.build());
    let put = |key: &str| s3.put_object().bucket(&bucket).key(key).body(ByteStream::from_static(b"x")).send();
    put("in/a").await.unwrap();
    assert!(put("out/a").await.is_err(), "the session policy was ignored");
    assert_eq!(customer.keys(&bucket).await, ["in/a"]);

    let nowhere = document(json!({
        "Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": format!("arn:aws:s3:::{bucket}/*"),
        "Condition": {"NotIpAddress": {"aws:SourceIp": "192.0.2.0/24"}},
    }));
    customer.set_bucket_policy(&bucket, &nowhere).await;
    assert!(put("in/b").await.is_err(), "the bucket's policy or the address was ignored");
    let mut elsewhere = id;
    elsewhere["IpAddress"] = json!({"aws:SourceIp": "192.0.2.0/24"});
    customer.set_trust("export", &trust(elsewhere)).await;
    assert!(assume(&key).external_id("4711").send().await.is_err(), "the address was not compared");
}

#[tokio::test]
async fn the_scripted_s3_assembles_parts_and_proves_them() {
    let s3 = ScriptedS3::start().await;
    s3.bucket("b", "eu-central-1", "111111111111");
    let client = client(&s3.url, "eu-central-1", "AKIATEST");
    let content = bytes(1, 6 * MIB);
    let crc = |bytes: &[u8]| {
        use base64::Engine as _;
        let value = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
        base64::engine::general_purpose::STANDARD.encode(value.to_be_bytes())
    };
    let algorithm = aws_sdk_s3::types::ChecksumAlgorithm::Crc64Nvme;
    let create = client.create_multipart_upload().bucket("b").key("k &+ü").checksum_algorithm(algorithm);
    let id = create.send().await.unwrap().upload_id.unwrap();
    let mut parts = aws_sdk_s3::types::CompletedMultipartUpload::builder();
    for (number, part) in (1..).zip(content.chunks(5 * MIB)) {
        let body = ByteStream::from(part.to_vec());
        let upload = client.upload_part().bucket("b").key("k &+ü").upload_id(&id).part_number(number);
        let sent = upload.checksum_crc64_nvme(crc(part)).body(body).send().await.unwrap();
        let part = aws_sdk_s3::types::CompletedPart::builder().part_number(number).e_tag(sent.e_tag.unwrap());
        parts = parts.parts(part.checksum_crc64_nvme(sent.checksum_crc64_nvme.unwrap()).build());
    }
    let complete = |size| {
        let complete = client.complete_multipart_upload().bucket("b").key("k &+ü").upload_id(&id).mpu_object_size(size);
        complete.checksum_crc64_nvme(crc(&content)).multipart_upload(parts.clone().build()).send()
    };
    assert!(complete(1).await.is_err(), "a wrong size was accepted");
    let done = complete(i64::try_from(content.len()).unwrap()).await.unwrap();
    assert_eq!(done.checksum_crc64_nvme, Some(crc(&content)));
    assert_eq!(s3.object("b", "k &+ü").unwrap().bytes, content);
    assert_eq!(s3.open_uploads(), 0);
    let listed = client.list_objects_v2().bucket("b").prefix("k &+ü").send().await.unwrap();
    let listed = &listed.contents()[0];
    assert!(listed.size() == Some(6 * 1024 * 1024) && listed.e_tag().unwrap().ends_with("-2\""), "{listed:?}");
}

#[tokio::test]
async fn scripted_faults_hit_the_calls_they_name() {
    let s3 = ScriptedS3::start().await;
    s3.bucket("b", "eu-central-1", "111111111111");
    let client = client(&s3.url, "eu-central-1", "AKIATEST");
    s3.on("PutObject").key("slow").first(1).before(Effect::Error(503, "SlowDown", "Please reduce your request rate."));
    s3.on("PutObject").key("lost").nth(1).after(Effect::LostReply);
    assert!(put(&client, "slow").await.unwrap_err().contains("SlowDown"));
    assert!(s3.object("b", "slow").is_none());
    put(&client, "slow").await.unwrap();
    put(&client, "lost").await.unwrap_err();
    assert!(s3.object("b", "lost").is_some(), "the call took effect before its reply was lost");
    let statuses: Vec<_> = s3.calls("PutObject").iter().map(|call| call.status).collect();
    assert_eq!(statuses, [503, 200, 0]);
}

#[tokio::test]
async fn the_scripted_s3_knows_regions_buckets_and_sessions() {
    let s3 = ScriptedS3::start().await;
    s3.bucket("b", "eu-central-1", "111111111111");
    assert!(put(&client(&s3.url, "us-east-1", "AKIATEST"), "a").await.unwrap_err().contains("PermanentRedirect"));
    assert!(
        put(&client(&s3.url, "eu-central-1", "ASIAUNKNOWN"), "a").await.unwrap_err().contains("InvalidAccessKeyId")
    );
    let sts = aws_sdk_sts::Config::builder()
        .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
        .region(aws_sdk_sts::config::Region::new("us-east-1"))
        .endpoint_url(&s3.url)
        .credentials_provider(Credentials::new("AKIAPLATFORM", "secret", None, None, "tests"))
        .build();
    let sts = aws_sdk_sts::Client::from_conf(sts);
    let assumed = sts.assume_role().role_arn("arn:aws:iam::111111111111:role/r").role_session_name("n").send();
    let session = assumed.await.unwrap().credentials.unwrap().access_key_id;
    let client = client(&s3.url, "eu-central-1", &session);
    put(&client, "a").await.unwrap();
    s3.expire_sessions();
    assert!(put(&client, "a").await.unwrap_err().contains("ExpiredToken"));
}

#[tokio::test]
async fn sources_serve_ranges_and_unknown_lengths_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let source = WebSource::https(&dir.path().join("ca.pem")).await;
    let known = source.put("known", Content::new("0123456789"));
    let unknown = source.put("unknown", Content::of_unknown_length("abc"));
    let ca = reqwest::Certificate::from_pem(&std::fs::read(dir.path().join("ca.pem")).unwrap()).unwrap();
    let web = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let part = web.get(&known).header("range", "bytes=3-5").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.text().await.unwrap().as_str()), (206, "345"));
    let chunked = web.get(&unknown).send().await.unwrap();
    assert_eq!((chunked.content_length(), chunked.text().await.unwrap().as_str()), (None, "abc"));
    assert_eq!(source.asked("known"), 1);
}

#[tokio::test]
async fn the_proxy_breaks_connections_on_demand() {
    let source = WebSource::http().await;
    let url = source.put("f", Content::new("hello"));
    let proxy = Proxy::before(address_of(&url)).await;
    let there = proxy.in_place_of(&url);
    let ask = || async {
        let web = reqwest::Client::builder().timeout(Duration::from_millis(500)).build().unwrap();
        web.get(&there).send().await.map_err(|e| e.is_timeout())?.text().await.map_err(|_| false)
    };
    assert_eq!(ask().await, Ok("hello".to_owned()));
    for (condition, times_out) in [
        (Condition::Reset, false),
        (Condition::BlackHole, true),
        (Condition::CutAfter(10), false),
        (Condition::CutReplyAfter(10), false),
        (Condition::HalfClose, false),
    ] {
        proxy.set(condition);
        assert_eq!(ask().await, Err(times_out), "{condition:?}");
    }
    proxy.set(Condition::Latency(Duration::from_millis(1)));
    assert_eq!(ask().await, Ok("hello".to_owned()));
}

#[tokio::test]
async fn a_change_of_weather_meets_connections_that_are_idle_too() {
    let (listener, address) = crate::testbed::listener().await;
    let proxy = Proxy::before(address).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    proxy.set(Condition::BlackHole);
    client.write_all(b"held").await.unwrap();
    let mut buffer = [0; 8];
    let early = tokio::time::timeout(Duration::from_millis(100), server.read(&mut buffer)).await;
    assert!(early.is_err(), "something passed: {early:?}");
    proxy.set(Condition::Normal);
    assert_eq!(server.read(&mut buffer).await.unwrap(), 4, "what was held back passes in the end");
    proxy.set(Condition::HalfClose);
    assert_eq!(client.read(&mut buffer).await.unwrap(), 0, "the client reads an end");
    client.write_all(b"swallowed").await.unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(100), server.read(&mut buffer)).await;
    assert!(silence.is_err(), "it went on to the server: {silence:?}");
    let mut idle = TcpStream::connect(proxy.address).await.unwrap();
    proxy.set(Condition::Reset);
    assert!(idle.read(&mut buffer).await.is_err(), "an idle connection is reset, not closed");
}

/// A terminal outcome as a worker would publish it.
fn outcome_body(id: &str, job: &str, kind: &str, reason: Option<&str>) -> Vec<u8> {
    let data = json!({"bucket": "acme", "key": format!("in/{job}"), "bytes": 5, "reason": reason});
    let outcome = json!({"id": id, "type": format!("consign.transfer.{kind}.v1"), "subject": job, "data": data});
    serde_json::to_vec(&outcome).unwrap()
}

/// Jobs of which one is lost, one half delivered, one reported twice, one dead-lettered too early,
/// and more.
async fn wrong_ends(site: &Site, s3: &ScriptedS3) {
    let url = site.file("f", b"hello");
    let job = |name: &str| job(name, &url, "acme", name);
    for name in ["lost", "half", "gone", "silent", "early", "twice", "untold"] {
        site.broker.schedule(&job(name)).await;
    }
    site.broker.take("jobs.scheduled").await;
    site.broker.forget_taken();
    s3.put("acme", "in/half", "hell");
    s3.put("acme", "in/twice", "hello");
    s3.put("acme", "in/untold", "hello");
    for outcome in [
        outcome_body("1", "half", "delivered", None),
        outcome_body("2", "gone", "delivered", None),
        outcome_body("3", "silent", "failed", Some("exhausted")),
        outcome_body("4", "early", "failed", Some("access_denied")),
        outcome_body("5", "twice", "delivered", None),
        outcome_body("6", "twice", "delivered", None),
    ] {
        site.broker.put_into("test.outcomes", &outcome, &[]).await;
    }
    let early = [
        ("x-error-reason", "access_denied"),
        ("x-error-class", "destination"),
        ("x-first-failure-at", "2026-01-01T00:00:00Z"),
        ("x-last-failure-at", "2026-01-01T23:59:00Z"),
    ];
    site.broker.put_into("dead", &serde_json::to_vec(&job("early")).unwrap(), &early).await;
    site.broker.put_into("jobs.scheduled", &serde_json::to_vec(&job("half")).unwrap(), &[]).await;
}

/// Somebody else's key completes an upload without a checksum, and leaves another open.
async fn wrong_calls(s3: &ScriptedS3) {
    let stranger = client(&s3.url, "eu-central-1", "AKIASTRANGER");
    let begun = stranger.create_multipart_upload().bucket("acme").key("stray").send().await.unwrap();
    let id = begun.upload_id.unwrap();
    let sent = stranger.upload_part().bucket("acme").key("stray").upload_id(&id).part_number(1);
    let tag = sent.body(ByteStream::from_static(b"x")).send().await.unwrap().e_tag.unwrap();
    let part = aws_sdk_s3::types::CompletedPart::builder().part_number(1).e_tag(tag).build();
    let parts = aws_sdk_s3::types::CompletedMultipartUpload::builder().parts(part).build();
    let complete = stranger.complete_multipart_upload().bucket("acme").key("stray").upload_id(&id);
    complete.multipart_upload(parts).mpu_object_size(1).send().await.unwrap();
    stranger.create_multipart_upload().bucket("acme").key("open").send().await.unwrap();
}

#[tokio::test]
async fn the_checker_finds_whatever_is_wrong() {
    let (site, s3) = crate::fixture::site("checker").await;
    wrong_ends(&site, &s3).await;
    wrong_calls(&s3).await;
    let (problems, ledger) = Checker::new(&site, &s3).judge().await;
    for expected in [
        "I1: lost is lost",
        "I1: untold is lost",
        "I1: the object of half",
        "I1: gone counts as delivered",
        "I1: silent failed as exhausted, and no dead letter",
        "I2: objects that no job asked for: acme/stray",
        "I2: (\"twice\", ",
        "I3: stray was completed with [true, false]",
        "I4: CreateMultipartUpload acme/open by AKIASTRANGER",
        "I5: open and never aborted: upload-",
        "I6: Some(\"half\") has ended and is still in jobs.scheduled",
        "I7: Some(\"early\") was given up",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:#?}");
    }
    assert_eq!(ledger.jobs["open"], 2, "{ledger}");
    site.broker.clean().await;
}
