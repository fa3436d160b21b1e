//! Answers of S3 that say less than they should, or come never: conditions, conflicts, regions,
//! time-outs, denied permissions.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{ACME, AcmeFixture, REGION, role_destination, site};
use crate::testbed::checker::Checker;
use crate::testbed::proxy::{Condition, Proxy};
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes, until};

const DENIED: Effect = Effect::Error(403, "AccessDenied", "Access Denied");

#[tokio::test]
async fn put_object_is_all_that_a_delivery_needs() {
    let fixture = AcmeFixture::start("putonly").await;
    let denied = [
        "HeadObject",
        "GetObject",
        "HeadBucket",
        "ListObjectsV2",
        "GetBucketLocation",
        "AbortMultipartUpload",
        "DeleteObject",
    ];
    for operation in denied {
        fixture.s3.on(operation).before(DENIED);
    }
    for (name, size, fields) in [
        ("small", 5, json!({})),
        ("empty", 0, json!({})),
        ("large", 20 * MIB, json!({})),
        ("keep", 5, json!({"if_exists": "keep"})),
        ("packed", 100_000, json!({"compression": "gzip"})),
    ] {
        fixture.schedule_with(name, &bytes(70, size), &fields).await;
        fixture.delivered(name).await;
    }
    for operation in denied {
        assert_eq!(fixture.s3.calls(operation).len(), 0, "{operation} was asked for, and is not granted");
    }
    fixture.close().await;
}

#[tokio::test]
async fn nothing_is_one_put_even_where_everything_is_multipart() {
    let (mut site, s3) = site("zero").await;
    site.set("upload.multipart_threshold", "5MiB");
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("a", b"").await;
    let data = fixture.delivered("a").await;
    assert_eq!((&data["bytes"], fixture.s3.calls("PutObject").len()), (&json!(0), 1));
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 0);
    fixture.close().await;
}

#[tokio::test]
async fn the_owner_is_named_on_every_call() {
    let fixture = AcmeFixture::start("owner").await;
    fixture.s3.on("CompleteMultipartUpload").key("lost").nth(1).after(Effect::LostReply);
    fixture.s3.on("UploadPart").key("broken").before(Effect::Error(400, "SomethingNew", "Nobody foresaw this."));
    fixture.schedule("small", b"hello").await;
    fixture.schedule("lost", &bytes(71, 20 * MIB)).await;
    fixture.schedule("broken", &bytes(72, 20 * MIB)).await;
    fixture.delivered("small").await;
    fixture.delivered("lost").await;
    fixture.failed("broken", "unclassified").await;
    let operations = [
        "PutObject",
        "CreateMultipartUpload",
        "UploadPart",
        "CompleteMultipartUpload",
        "AbortMultipartUpload",
        "ListObjectsV2",
    ];
    for operation in operations {
        let calls = fixture.s3.calls(operation);
        let named = calls.iter().all(|call| call.header("x-amz-expected-bucket-owner") == Some(ACME));
        assert!(!calls.is_empty() && named, "{operation}: {} calls", calls.len());
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_bucket_of_another_owner_gets_nothing() {
    let (mut site, s3) = site("wrongowner").await;
    s3.bucket("theirs", REGION, "999999999999");
    let mut destination = role_destination("theirs", ACME);
    destination["prefix"] = json!("");
    site.destination("theirs", &destination);
    let worker = site.worker().await;
    for (name, size) in [("small", 5), ("large", 20 * MIB)] {
        let url = site.file(name, &bytes(73, size));
        site.broker.schedule(&job(name, &url, "theirs", name)).await;
        site.broker.taken("wait.30s", &format!("\"{name}\"")).await;
    }
    assert_eq!((s3.count("theirs"), s3.open_uploads()), (0, 0));
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn checksums_are_on_create_and_complete_or_on_neither() {
    let (mut site, s3) = site("crcs").await;
    let mut plain = role_destination("acme", ACME);
    plain["checksum"] = json!("none");
    site.destination("plain", &plain);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("with", &bytes(74, 20 * MIB)).await;
    fixture.schedule_with("without", &bytes(75, 20 * MIB), &json!({"destination": "plain"})).await;
    fixture.delivered("with").await;
    fixture.delivered("without").await;
    for (operation, header) in [
        ("CreateMultipartUpload", "x-amz-checksum-algorithm"),
        ("CompleteMultipartUpload", "x-amz-checksum-crc64nvme"),
        ("CompleteMultipartUpload", "x-amz-mp-object-size"),
    ] {
        for call in fixture.s3.calls(operation) {
            assert_eq!(call.header(header).is_some(), call.key == "in/with", "{operation} {header} {}", call.key);
        }
    }
    for part in fixture.s3.calls("UploadPart") {
        assert_eq!(part.proves_its_body(), part.key == "in/with", "{}", part.key);
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_region_can_not_point_the_endpoint_elsewhere() {
    let fixture = AcmeFixture::start("evilregion").await;
    for (n, region) in ["x@127.0.0.1/#", "eu-central-1.example.com", "eu-central-1:80", "../x"].into_iter().enumerate()
    {
        let mut inline = role_destination("acme", ACME);
        inline["id"] = json!("inline");
        inline["region"] = json!(region);
        let name = format!("job-{n}");
        fixture.schedule_with(&name, b"hello", &json!({"destination": inline})).await;
        let data = fixture.failed(&name, "invalid_job").await;
        assert!(data["message"].as_str().unwrap().contains("destination.region"), "{data:#}");
    }
    assert_eq!(fixture.s3.calls("Any").len(), 0);
    fixture.close().await;
}

#[tokio::test]
async fn every_way_to_say_another_region_is_learnt_from_once() {
    let (mut site, s3) = site("regions").await;
    let text = "The authorization header is malformed; the region 'eu-central-1' is wrong; expecting 'us-west-2'";
    let ways = [
        ("moved", Effect::Error(301, "PermanentRedirect", "The bucket is elsewhere.")),
        ("away", Effect::Error(307, "TemporaryRedirect", "The bucket is elsewhere.")),
        ("malformed", Effect::Error(400, "AuthorizationHeaderMalformed", text)),
    ];
    for (name, _) in &ways {
        s3.bucket(name, "us-west-2", ACME);
        site.destination(name, &role_destination(name, ACME));
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for (name, effect) in ways {
        fixture.s3.on("PutObject").bucket(name).first(1).before(effect);
        fixture.s3.on("PutObject").bucket(name).first(1).after(Effect::Header("x-amz-bucket-region", "us-west-2"));
        for n in 0..2 {
            let id = format!("{name}-{n}");
            fixture.schedule_with(&id, b"hello", &json!({"destination": name})).await;
            assert_eq!(fixture.delivered(&id).await["attempts"], 1, "{name}");
        }
        let calls: Vec<_> = fixture.s3.calls("PutObject").into_iter().filter(|call| call.bucket == name).collect();
        let regions: Vec<_> = calls.iter().map(|call| call.region.as_str()).collect();
        assert_eq!(regions, [REGION, "us-west-2", "us-west-2"], "{name}");
    }
    assert!(fixture.worker.log().contains("the bucket is in another region"), "the operator is warned");
    fixture.close().await;
}

#[tokio::test]
async fn each_missing_permission_of_a_kms_key_is_named() {
    let (mut site, s3) = site("kmsnames").await;
    // One customer each: a refused key of KMS opens the circuit.
    for name in ["first", "second", "third"] {
        let mut keys = role_destination("acme", crate::fixture::ACME);
        keys["kms_key_arn"] = json!(crate::fixture::KMS_KEY);
        site.destination(name, &keys);
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    let denied = |action: &'static str| {
        let message = match action {
            "kms:GenerateDataKey" => {
                "User: arn:aws:sts::111111111111:assumed-role/consign/consign-acme-kms is not authorized to perform: \
                 kms:GenerateDataKey on the resource associated with this ciphertext"
            }
            _ => {
                "User: arn:aws:sts::111111111111:assumed-role/consign/consign-acme-kms is not authorized to perform: \
                 kms:Decrypt on the resource associated with this ciphertext"
            }
        };
        Effect::Error(403, "AccessDenied", message)
    };
    fixture.s3.on("CreateMultipartUpload").key("first").before(denied("kms:GenerateDataKey"));
    fixture.s3.on("UploadPart").key("second").before(denied("kms:Decrypt"));
    fixture.s3.on("CompleteMultipartUpload").key("third").before(denied("kms:Decrypt"));
    for (name, action) in [("first", "kms:GenerateDataKey"), ("second", "kms:Decrypt"), ("third", "kms:Decrypt")] {
        fixture.schedule_with(name, &bytes(76, 20 * MIB), &json!({"destination": name})).await;
        fixture.site.broker.taken("wait.30s", &format!("\"{name}\"")).await;
        let log = fixture.worker.log();
        let line = log.lines().find(|line| line.contains("transfer ended") && line.contains(&format!("\"{name}\"")));
        let line = line.unwrap_or_default();
        for part in ["kms_denied", action, "\"event\":\"transfer_ended\"", "\"remedy\":", "the job is deferred"] {
            assert!(line.contains(part), "{name}: `{part}` is not in {line}");
        }
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_conflict_on_complete_restarts_the_upload() {
    let fixture = AcmeFixture::start("conflict").await;
    let conflict = Effect::Error(409, "ConditionalRequestConflict", "A conflicting operation is in progress.");
    fixture.s3.on("CompleteMultipartUpload").nth(1).before(conflict);
    // AWS does not know the upload after that.
    fixture.s3.on("CompleteMultipartUpload").nth(2).before(Effect::UploadGone);
    let content = bytes(77, 20 * MIB);
    fixture.schedule_with("a", &content, &json!({"if_exists": "fail"})).await;
    fixture.delivered("a").await;
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 2);
    fixture.close().await;
}

#[tokio::test]
async fn a_conflict_on_put_is_tried_again() {
    let fixture = AcmeFixture::start("putconflict").await;
    let conflict = Effect::Error(409, "ConditionalRequestConflict", "A conflicting operation is in progress.");
    fixture.s3.on("PutObject").nth(1).before(conflict);
    fixture.schedule_with("a", b"hello", &json!({"if_exists": "fail"})).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    fixture.close().await;
}

#[tokio::test]
async fn an_upload_that_disappeared_is_restarted() {
    let fixture = AcmeFixture::start("vanished").await;
    fixture.s3.on("CompleteMultipartUpload").nth(1).before(Effect::UploadGone);
    // Somebody else's object of the same length is there: it is not ours.
    fixture.s3.put("acme", "in/a", bytes(1, 20 * MIB));
    let content = bytes(78, 20 * MIB);
    fixture.schedule("a", &content).await;
    fixture.delivered("a").await;
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 2);
    fixture.close().await;
}

#[tokio::test]
async fn after_a_crash_our_own_object_is_not_taken_for_somebody_elses() {
    let (site, s3) = site("ownobject").await;
    s3.on("PutObject").nth(1).after(Effect::Delay(Duration::from_secs(120)));
    s3.on("CompleteMultipartUpload").nth(1).after(Effect::Delay(Duration::from_secs(120)));
    let worker = site.worker().await;
    for (name, size) in [("small", 5), ("large", 20 * MIB)] {
        let mut wanted = job(name, &site.file(name, &bytes(79, size)), "acme", name);
        wanted["if_exists"] = json!("fail");
        wanted["created_at"] = json!(jiff::Timestamp::now().to_string());
        site.broker.schedule(&wanted).await;
    }
    until("both objects are there, and nobody knows", Duration::from_secs(60), async || {
        (s3.count("acme") == 2).then_some(())
    })
    .await;
    worker.kill();
    let second = site.worker().await;
    for name in ["small", "large"] {
        assert_eq!(site.broker.ended(name).await["type"], "consign.transfer.delivered.v1", "{name}");
    }
    Checker::new(&site, &s3).worker(&second).after_a_crash().check().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn no_answer_at_all_costs_one_try_and_not_the_job() {
    let (mut site, s3) = site("noanswer").await;
    // The time-out of a part follows from its length and this rate.
    site.set("upload.min_rate", "8MiB");
    s3.on("PutObject").nth(1).before(Effect::Delay(Duration::from_secs(300)));
    s3.on("UploadPart").nth(2).before(Effect::Delay(Duration::from_secs(300)));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("small", b"hello").await;
    fixture.schedule("large", &bytes(80, 20 * MIB)).await;
    assert_eq!(fixture.delivered("small").await["attempts"], 1);
    assert_eq!(fixture.delivered("large").await["attempts"], 1);
    assert!(fixture.worker.metric("consign_s3_requests_total", "status=\"timeout\"").await >= 2.0);
    assert_eq!((fixture.s3.calls("PutObject").len(), fixture.s3.calls("UploadPart").len()), (2, 4));
    fixture.close().await;
}

#[tokio::test]
async fn silence_and_resets_on_the_way_to_s3_are_survived() {
    let (mut site, s3) = site("s3wire").await;
    site.set("upload.min_rate", "8MiB");
    let proxy = Proxy::before(s3.address).await;
    site.set("aws.s3_endpoint_url", format!("http://{}", proxy.address));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for (round, condition) in [
        Condition::Reset,
        Condition::HalfClose,
        Condition::CutReplyAfter(100),
        Condition::Latency(Duration::from_millis(2)),
        Condition::BlackHole,
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("job-{round}");
        proxy.set(condition);
        fixture.schedule(&name, &bytes(81 + round as u64, 20 * MIB)).await;
        // Long enough to break something, shorter than the tries take together.
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.set(Condition::Normal);
        fixture.delivered(&name).await;
        assert_eq!(fixture.object(&name).unwrap().bytes, bytes(81 + round as u64, 20 * MIB), "{condition:?}");
    }
    Checker::new(&fixture.site, &fixture.s3).worker(&fixture.worker).over_a_broken_wire().check().await;
    fixture.site.broker.clean().await;
}

#[tokio::test]
async fn a_request_is_signed_when_it_is_sent() {
    let (mut site, s3) = site("signed").await;
    site.set("worker.slots", 4).set("upload.part_concurrency", 1);
    s3.on("PutObject").before(Effect::Delay(Duration::from_millis(300)));
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(1500)));
    s3.on("UploadPart").nth(3).before(Effect::Error(503, "SlowDown", "Please reduce your request rate."));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("large", &bytes(90, 36 * MIB)).await;
    fixture.schedule_many("job", 40).await;
    fixture.site.broker.all_ended(41, Duration::from_secs(60)).await;
    for call in fixture.s3.calls("Any") {
        let waited = call.arrived.duration_since(call.signed().unwrap());
        assert!(
            waited <= jiff::SignedDuration::from_secs(4),
            "{} {} was signed {waited:#} before",
            call.operation,
            call.key
        );
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_tag_is_whatever_s3_says() {
    let fixture = AcmeFixture::start("opaque").await;
    fixture.s3.on("PutObject").after(Effect::Header("etag", "\"not a digest\""));
    fixture.schedule("a", b"hello").await;
    assert_eq!(fixture.delivered("a").await["etag"], "\"not a digest\"");
    fixture.close().await;
}
