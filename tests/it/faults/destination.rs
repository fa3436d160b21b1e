//! The customer must fix something: the job waits, uncharged, and the others pay nothing.

use serde_json::json;

use crate::fixture::{ACME, AcmeFixture, KMS_KEY, REGION, role_destination, site};
use crate::testbed::broker::Message;
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes};

const DENIED: Effect = Effect::Error(403, "AccessDenied", "Access Denied");

/// The waiting copy of an uncharged deferral, and no outcome in the customer's queue.
async fn deferred(fixture: &AcmeFixture, delay: &str, reason: &str) -> Message {
    let waiting = fixture.site.broker.taken(&format!("wait.{delay}"), "\"a\"").await;
    assert_eq!(waiting.header("x-deferrals"), "1", "{:?}", waiting.headers);
    assert!(["", "0"].contains(&waiting.header("x-attempt")), "an attempt was charged: {:?}", waiting.headers);
    assert!(waiting.header("x-first-failure-at").starts_with("20"), "{:?}", waiting.headers);
    assert_eq!(fixture.failures(reason).await, 1.0, "{reason}");
    assert_eq!(fixture.worker.metric("consign_broker_settlements_total", "action=\"defer\"").await, 1.0);
    assert_eq!(fixture.site.broker.outcomes_of("a").await.len(), 0, "deferrals are not reported");
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0);
    waiting
}

#[tokio::test]
async fn a_role_that_does_not_let_us_in_is_asked_once_a_minute() {
    let fixture = AcmeFixture::start("roledenied").await;
    let message = "User is not authorized to perform: sts:AssumeRole on resource";
    fixture.s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", message));
    fixture.schedule("a", b"hello").await;
    deferred(&fixture, "2m", "assume_role_denied").await;
    fixture.schedule("b", b"hello").await;
    fixture.site.broker.taken("wait.30s", "\"b\"").await;
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 1, "the refusal is remembered");
    assert_eq!(fixture.worker.metric("consign_deferred_total", "cause=\"circuit\"").await, 2.0, "both of them");
    fixture.close().await;
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_waited_for() {
    let (mut site, s3) = site("nobucket").await;
    site.destination("acme", &role_destination("no-such-bucket", crate::fixture::ACME));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("a", b"hello").await;
    deferred(&fixture, "30s", "bucket_not_found").await;
    fixture.close().await;
}

#[tokio::test]
async fn a_refused_put_is_waited_out() {
    let fixture = AcmeFixture::start("putdenied").await;
    fixture.s3.on("PutObject").before(DENIED);
    fixture.schedule("a", b"hello").await;
    deferred(&fixture, "30s", "access_denied").await;
    fixture.close().await;
}

#[tokio::test]
async fn a_bucket_in_another_region_heals_itself() {
    let fixture = AcmeFixture::start("region").await;
    fixture.s3.bucket("acme", "us-west-2", crate::fixture::ACME);
    fixture.schedule("a", b"hello").await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    fixture.schedule("b", &bytes(20, 20 * MIB)).await;
    fixture.delivered("b").await;
    let wrong = |call: &crate::testbed::scripted::Call| call.region == REGION;
    assert_eq!(fixture.s3.calls("PutObject").iter().filter(|call| wrong(call)).count(), 1, "learnt once");
    assert_eq!(
        fixture.s3.calls("CreateMultipartUpload").iter().filter(|call| wrong(call)).count(),
        0,
        "and remembered"
    );
    assert!(fixture.worker.log().contains("us-west-2"), "the operator is warned");
    fixture.close().await;
}

#[tokio::test]
async fn a_kms_key_goes_with_every_object_that_asks_for_it() {
    let fixture = AcmeFixture::start("kms").await;
    fixture.schedule_with("small", b"hello", &json!({"destination": "acme-kms"})).await;
    fixture.schedule_with("large", &bytes(22, 20 * MIB), &json!({"destination": "acme-kms"})).await;
    for name in ["small", "large"] {
        let data = fixture.delivered(name).await;
        assert_eq!(data["encryption"], json!({"algorithm": "aws:kms", "kms_key_arn": KMS_KEY}));
        let object = fixture.object(name).unwrap();
        assert_eq!(object.header("x-amz-server-side-encryption"), Some("aws:kms"));
        assert_eq!(object.header("x-amz-server-side-encryption-aws-kms-key-id"), Some(KMS_KEY));
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_kms_key_that_may_not_be_used_is_named() {
    let fixture = AcmeFixture::start("kmsdenied").await;
    let message = "User: arn:aws:sts::111111111111:assumed-role/consign/consign-acme-kms is not authorized to perform: \
                   kms:GenerateDataKey on the resource associated with this ciphertext";
    fixture.s3.on("PutObject").before(Effect::Error(403, "AccessDenied", message));
    fixture.schedule_with("a", b"hello", &json!({"destination": "acme-kms"})).await;
    deferred(&fixture, "30s", "kms_denied").await;
    assert!(fixture.worker.log().contains("kms:GenerateDataKey"), "the missing permission is named");
    fixture.close().await;
}

#[tokio::test]
async fn a_disabled_kms_key_is_waited_for() {
    let fixture = AcmeFixture::start("kmsdisabled").await;
    let effect = Effect::Error(400, "KMS.DisabledException", "The key is disabled.");
    fixture.s3.on("PutObject").before(effect);
    fixture.schedule_with("a", b"hello", &json!({"destination": "acme-kms"})).await;
    deferred(&fixture, "30s", "kms_unavailable").await;
    fixture.close().await;
}

#[tokio::test]
async fn another_encryption_than_asked_is_never_a_success() {
    let fixture = AcmeFixture::start("sse").await;
    fixture.s3.on("PutObject").after(Effect::WrongEncryption);
    fixture.schedule_with("a", b"hello", &json!({"destination": "acme-kms"})).await;
    deferred(&fixture, "30s", "encryption_mismatch").await;
    fixture.close().await;
}

/// A bucket whose policy demands the header is served by asking for S3's own keys.
#[tokio::test]
async fn the_encryption_that_is_configured_is_asked_for_and_compared() {
    let (mut site, s3) = site("ssealgorithm").await;
    for (id, algorithm) in [("acme-s3", "AES256"), ("acme-aws-kms", "aws:kms"), ("acme-dsse", "aws:kms:dsse")] {
        let mut destination = role_destination("acme", ACME);
        destination["encryption"] = json!(algorithm);
        site.destination(id, &destination);
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for (id, algorithm) in [("acme-s3", "AES256"), ("acme-aws-kms", "aws:kms"), ("acme-dsse", "aws:kms:dsse")] {
        for (size, content) in [("small", bytes(22, 1000)), ("large", bytes(22, 20 * MIB))] {
            let name = format!("{size}-{id}");
            fixture.schedule_with(&name, &content, &json!({"destination": id})).await;
            assert_eq!(fixture.delivered(&name).await["encryption"]["algorithm"], algorithm);
            let headers = fixture.object(&name).unwrap().headers;
            assert_eq!(headers.get("x-amz-server-side-encryption").map(String::as_str), Some(algorithm), "{name}");
            assert!(!headers.contains_key("x-amz-server-side-encryption-aws-kms-key-id"), "{name}");
        }
    }
    fixture.close().await;
}

/// Some stores know CRC-64/NVME of parts alone, and some no such header at all.
#[tokio::test]
async fn a_store_without_the_checksum_is_the_destinations_and_the_setting_is_named() {
    for (operation, effect) in [
        ("CompleteMultipartUpload", Effect::Error(400, "BadDigest", "The checksum did not match.")),
        ("CreateMultipartUpload", Effect::Error(501, "NotImplemented", "A header is not implemented.")),
    ] {
        let fixture = AcmeFixture::start("unsupported").await;
        fixture.s3.on(operation).before(effect);
        fixture.schedule("a", &bytes(23, 20 * MIB)).await;
        let waiting = deferred(&fixture, "30s", "access_denied").await;
        let message = waiting.header("x-last-error-message");
        assert!(message.contains("S3 answered") && message.contains("checksum = \"none\""), "{message}");
        assert_eq!(fixture.s3.calls(operation).len(), 1, "no other try gets another answer");
        fixture.close().await;
    }
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_not_a_missing_permission() {
    let fixture = AcmeFixture::start("quota").await;
    fixture.s3.on("PutObject").before(Effect::Error(403, "QuotaExceeded", ""));
    fixture.schedule("a", b"hello").await;
    let waiting = deferred(&fixture, "30s", "access_denied").await;
    let message = waiting.header("x-last-error-message");
    assert!(message.contains("raise the quota") && !message.contains("s3:PutObject"), "{message}");
    fixture.close().await;
}

/// R2's rule: all parts but the last have one length.
#[tokio::test]
async fn equal_parts_are_learnt_from_the_refusal_that_says_so() {
    let fixture = AcmeFixture::start("equalparts").await;
    let rule = "All non-trailing parts must have the same length.";
    fixture.s3.on("CompleteMultipartUpload").first(1).before(Effect::Error(400, "InvalidPart", rule));
    let content = bytes(24, 40 * MIB);
    fixture.schedule_with("a", &content, &json!({"compression": "gzip"})).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    let lengths = part_lengths(&fixture);
    assert_eq!(lengths.iter().map(|lengths| equal(lengths)).collect::<Vec<_>>(), [false, true], "{lengths:?}");
    assert!(fixture.worker.log().contains("equal_parts = true"), "it is reported");
    fixture.close().await;
}

/// The setting alone: there is no refusal to learn from, and the destination has checksums.
#[tokio::test]
async fn equal_parts_are_sent_where_the_destination_says_so() {
    let (mut site, s3) = site("equalset").await;
    let mut destination = role_destination("acme", ACME);
    destination["equal_parts"] = json!(true);
    site.destination("acme", &destination);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule_with("a", &bytes(25, 40 * MIB), &json!({"compression": "gzip"})).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    let lengths = part_lengths(&fixture);
    assert!(lengths.len() == 1 && lengths[0].len() > 2 && equal(&lengths[0]), "{lengths:?}");
    fixture.close().await;
}

/// True if all parts but the last have one length.
fn equal(lengths: &[usize]) -> bool {
    lengths[..lengths.len() - 1].iter().all(|length| *length == lengths[0])
}

/// The lengths of the parts of each upload, in the order of the uploads.
fn part_lengths(fixture: &AcmeFixture) -> Vec<Vec<usize>> {
    let mut uploads: Vec<(String, Vec<(u32, usize)>)> = Vec::new();
    for call in fixture.s3.calls("UploadPart") {
        let (id, number) = (call.asked("uploadId").to_string(), call.asked("partNumber").parse().unwrap());
        let part = (number, call.body.len());
        match uploads.iter_mut().find(|(known, _)| *known == id) {
            Some((_, parts)) => parts.push(part),
            None => uploads.push((id, vec![part])),
        }
    }
    let sorted = |mut parts: Vec<(u32, usize)>| {
        parts.sort_unstable();
        parts.into_iter().map(|(_, length)| length).collect()
    };
    uploads.into_iter().map(|(_, parts)| sorted(parts)).collect()
}

#[tokio::test]
async fn another_encryption_is_noticed_before_the_first_part() {
    let fixture = AcmeFixture::start("ssemulti").await;
    fixture.s3.on("CreateMultipartUpload").after(Effect::WrongEncryption);
    fixture.schedule_with("a", &bytes(21, 20 * MIB), &json!({"destination": "acme-kms"})).await;
    deferred(&fixture, "30s", "encryption_mismatch").await;
    assert_eq!(fixture.s3.calls("CompleteMultipartUpload").len(), 0);
    assert!(fixture.object("a").is_none());
    assert_eq!(fixture.s3.open_uploads(), 0, "it can still be aborted");
    fixture.close().await;
}

#[tokio::test]
async fn a_broken_customer_costs_the_others_nothing() {
    let (mut site, s3) = site("neighbours").await;
    s3.bucket("beta", REGION, "222222222222");
    site.destination("beta", &role_destination("beta", "222222222222"));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.s3.on("PutObject").key("bad").before(DENIED);
    let url = fixture.site.file("f", b"hello");
    for n in 0..20 {
        fixture.site.broker.schedule(&job(&format!("bad-{n}"), &url, "acme", &format!("bad-{n}"))).await;
        fixture.site.broker.schedule(&job(&format!("good-{n}"), &url, "beta", &format!("good-{n}"))).await;
    }
    for n in 0..20 {
        fixture.delivered(&format!("good-{n}")).await;
    }
    assert_eq!(fixture.s3.count("beta"), 20);
    assert_eq!(fixture.s3.count("acme"), 0);
    assert_eq!(fixture.s3.foreign_calls(), Vec::<String>::new(), "each customer is served with its own session");
    fixture.close().await;
}

#[tokio::test]
async fn a_worker_that_may_assume_no_roles_refuses_them_for_good() {
    let (mut site, s3) = site("roleless").await;
    site.set("session.role_auth", false);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for name in ["a", "b"] {
        fixture.schedule(name, b"hello").await;
        let data = fixture.failed(name, "role_auth_off").await;
        assert!(data["hint"].as_str().unwrap().contains("session.role_auth"), "{data:#}");
    }
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 0);
    assert_eq!(fixture.worker.metric("consign_destination_circuit_open", "destination=\"acme\"").await, 0.0);
    fixture.close().await;
}
