//! Sessions: what AssumeRole is asked, how often, and what its faults cost.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{ACME, AcmeFixture, REGION, role_destination, site};
use crate::testbed::scripted::{Call, Effect};
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes, until};

const UNAVAILABLE: Effect = Effect::Error(503, "ServiceUnavailable", "Please try again.");

fn session_policy(call: &Call) -> Value {
    serde_json::from_str(call.asked("Policy")).unwrap()
}

/// The actions of a policy's statements, with their resources.
fn grants(policy: &Value) -> BTreeSet<(String, String)> {
    let words = |value: &Value| match value {
        Value::Array(many) => many.iter().map(|one| one.as_str().unwrap().to_owned()).collect(),
        one => vec![one.as_str().unwrap().to_owned()],
    };
    let statements = policy["Statement"].as_array().unwrap().iter();
    let pairs = statements.flat_map(|statement| {
        let resources = words(&statement["Resource"]);
        words(&statement["Action"])
            .into_iter()
            .flat_map(move |a| resources.clone().into_iter().map(move |r| (a.clone(), r)))
    });
    pairs.collect()
}

#[tokio::test]
async fn a_role_is_assumed_for_an_hour_by_name_and_for_the_folder_alone() {
    let fixture = AcmeFixture::start("assumed").await;
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    let calls = fixture.s3.calls("AssumeRole");
    assert_eq!(calls.len(), 1);
    let call = &calls[0];
    assert_eq!(call.asked("DurationSeconds"), "3600", "a chained role gets no more");
    assert_eq!(call.asked("RoleSessionName"), "consign-acme");
    assert_eq!(call.region, "us-east-1", "STS of the worker's own region");
    let odd: Vec<_> = call.query.keys().filter(|name| name.starts_with("Tags") || *name == "SourceIdentity").collect();
    assert!(odd.is_empty(), "{odd:?}");
    assert!(call.asked("Policy").len() <= 2048 && !call.asked("Policy").contains(' '), "{}", call.asked("Policy"));
    let grants = grants(&session_policy(call));
    let below = |action: &str| (format!("s3:{action}"), "arn:aws:s3:::acme/in/*".to_owned());
    for action in ["PutObject", "AbortMultipartUpload", "PutObjectTagging", "DeleteObject"] {
        assert!(grants.contains(&below(action)), "{action}: {grants:?}");
    }
    let wide: Vec<_> =
        grants.iter().filter(|(a, r)| a.starts_with("s3:") && r.contains('*') && !r.contains("/in/*")).collect();
    assert!(wide.is_empty(), "{wide:?}");
    assert!(call.asked("Policy").contains("s3.*.amazonaws.com"), "the key of a bucket's default encryption");
    fixture.close().await;
}

#[tokio::test]
async fn without_a_region_of_its_own_sts_is_asked_in_the_destinations() {
    let (mut site, s3) = site("stsregion").await;
    site.unset("aws.region");
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    assert_eq!(fixture.s3.calls("AssumeRole")[0].region, REGION);
    fixture.close().await;
}

#[tokio::test]
async fn however_many_ask_at_once_sts_is_asked_once() {
    let (mut site, s3) = site("single").await;
    site.set("worker.slots", 50);
    s3.on("AssumeRole").before(Effect::Delay(Duration::from_secs(1)));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule_many("job", 50).await;
    fixture.site.broker.all_ended(50, Duration::from_secs(60)).await;
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 1);
    assert!(fixture.worker.metric("consign_session_requests_total", "result=\"coalesced\"").await >= 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn sessions_differ_by_tenant_role_external_id_region_and_folder() {
    let (mut site, s3) = site("apart").await;
    let other = |change: &dyn Fn(&mut Value)| {
        let mut destination = role_destination("acme", ACME);
        change(&mut destination);
        destination
    };
    site.destination("tenant", &other(&|d| d["tenant"] = json!("t2")));
    site.destination("role", &other(&|d| d["auth"]["role_arn"] = json!(format!("arn:aws:iam::{ACME}:role/other"))));
    site.destination("external", &other(&|d| d["auth"]["external_id"] = json!("marked-secret-other")));
    site.destination("folder", &other(&|d| d["prefix"] = json!("out/")));
    site.destination("key", &other(&|d| d["kms_key_arn"] = json!(crate::fixture::KMS_KEY)));
    site.destination("same", &other(&|_| ()));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for id in ["acme", "tenant", "role", "external", "folder", "key", "same"] {
        fixture.schedule_with(id, b"hello", &json!({"destination": id})).await;
        fixture.delivered(id).await;
    }
    let assumed = fixture.s3.calls("AssumeRole");
    assert_eq!(assumed.len(), 6, "all differ from the first, but for `same`");
    let folders = assumed.iter().filter(|call| call.asked("Policy").contains("acme/out/*")).count();
    assert_eq!(folders, 1, "each folder's session reaches that folder alone");
    fixture.close().await;
}

#[tokio::test]
async fn a_hundred_customers_keep_a_hundred_sessions() {
    let (mut site, s3) = site("hundred").await;
    for n in 0..100 {
        let (id, bucket, account) =
            (format!("c{n}"), format!("bucket-{n}"), format!("{:012}", 200_000_000_000_u64 + n));
        s3.bucket(&bucket, REGION, &account);
        site.destination(&id, &role_destination(&bucket, &account));
    }
    let worker = site.worker().await;
    let url = site.file("f", b"hello");
    for round in 0..2 {
        for n in 0..100 {
            site.broker.schedule(&job(&format!("{round}-{n}"), &url, &format!("c{n}"), &format!("k-{round}"))).await;
        }
        site.broker.all_ended((round + 1) * 100, Duration::from_secs(90)).await;
    }
    assert_eq!(s3.calls("AssumeRole").len(), 100, "none was forgotten for another");
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test]
async fn a_hiccup_of_sts_is_healed_in_the_process_and_a_longer_one_by_waiting() {
    let fixture = AcmeFixture::start("hiccup").await;
    fixture.s3.on("AssumeRole").nth(1).before(UNAVAILABLE);
    fixture.s3.on("AssumeRole").nth(2).after(Effect::LostReply);
    fixture.schedule("a", b"hello").await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 3);
    fixture.s3.expire_sessions();
    fixture.s3.on("AssumeRole").before(UNAVAILABLE);
    fixture.schedule("b", b"hello").await;
    let waiting = fixture.site.broker.taken("wait.5s", "\"b\"").await;
    assert_eq!(waiting.header("x-attempt"), "1");
    assert_eq!(fixture.failures("sts_unavailable").await, 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn one_customers_throttled_sts_takes_no_retry_from_another() {
    let (mut site, s3) = site("retries").await;
    s3.bucket("beta", REGION, "222222222222");
    site.destination("beta", &role_destination("beta", "222222222222"));
    // Each refused call would take from a bucket of retries, were it everybody's.
    for n in 0..40 {
        let mut sick = role_destination("acme", ACME);
        sick["auth"]["role_arn"] = json!(format!("arn:aws:iam::{ACME}:role/sick-{n}"));
        site.destination(&format!("sick-{n}"), &sick);
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.s3.on("AssumeRole").form("RoleArn", "sick").before(Effect::Error(400, "Throttling", "Rate exceeded"));
    fixture.s3.on("AssumeRole").form("RoleArn", "222222222222").first(2).before(UNAVAILABLE);
    let url = fixture.site.file("f", b"hello");
    for n in 0..40 {
        fixture
            .site
            .broker
            .schedule(&job(&format!("sick-{n}"), &url, &format!("sick-{n}"), &format!("sick-{n}")))
            .await;
    }
    until("all of them failed once", Duration::from_secs(60), async || {
        (fixture.failures("throttled").await >= 40.0).then_some(())
    })
    .await;
    fixture.site.broker.schedule(&job("good", &url, "beta", "good")).await;
    assert_eq!(fixture.delivered("good").await["attempts"], 1, "its retries were gone");
    assert_eq!(fixture.s3.foreign_calls(), Vec::<String>::new());
    fixture.s3.calm();
    fixture.close().await;
}

#[tokio::test]
async fn every_word_for_a_session_that_is_over_is_one_refresh() {
    let fixture = AcmeFixture::start("words").await;
    for (n, code) in ["ExpiredToken", "TokenRefreshRequired", "InvalidToken"].into_iter().enumerate() {
        let name = format!("job-{n}");
        fixture.s3.on("UploadPart").key(&name).nth(2).before(Effect::Error(400, code, "The token is over."));
        fixture.schedule(&name, &bytes(60 + n as u64, 20 * MIB)).await;
        assert_eq!(fixture.delivered(&name).await["attempts"], 1, "{code}");
        assert_eq!(fixture.s3.calls("AssumeRole").len(), n + 2, "{code}");
    }
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 3, "the uploads went on");
    fixture.close().await;
}

#[tokio::test]
async fn a_refusal_without_a_code_is_a_refusal_and_charges_nothing() {
    let fixture = AcmeFixture::start("codeless").await;
    fixture.s3.on("AssumeRole").before(Effect::Error(403, "", ""));
    fixture.schedule("a", b"hello").await;
    let waiting = fixture.site.broker.taken("wait.2m", "\"a\"").await;
    assert_eq!(waiting.header("x-last-error-reason"), "assume_role_denied");
    assert_eq!(waiting.header("x-attempt"), "0");
    fixture.s3.calm();
    fixture.close().await;
}

/// The answer of Ceph to a session that has expired, and to one that may not write.
const DENIED: Effect = Effect::Error(403, "AccessDenied", "");

async fn denials(fixture: &AcmeFixture, count: u32) {
    until("the denial is counted", Duration::from_secs(60), async || {
        (fixture.failures("access_denied").await >= f64::from(count)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn on_ceph_the_denial_of_a_session_that_could_write_is_one_refresh() {
    let (mut site, s3) = site("cephexpiry").await;
    site.set("aws.flavor", "ceph");
    let fixture = AcmeFixture { worker: site.worker().await, site, s3 };
    fixture.s3.on("UploadPart").nth(2).before(DENIED);
    fixture.schedule("a", &bytes(63, 20 * MIB)).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 2);
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 1, "the upload continued");
    // The permission is lost: the new session could never write, so its denial is believed.
    fixture.s3.on("PutObject").before(DENIED);
    for denied in 1..=2 {
        fixture.schedule(&format!("denied-{denied}"), b"hello").await;
        denials(&fixture, denied).await;
        assert_eq!(fixture.s3.calls("AssumeRole").len(), 3, "one refresh for all denials");
    }
    fixture.s3.calm();
    fixture.close().await;
}

/// STS can't tell whether the session had expired, so the answer of the store counts: the customer's
/// failure is not charged as one of STS.
#[tokio::test]
async fn on_ceph_a_denial_stands_while_sts_is_away() {
    let (mut site, s3) = site("cephaway").await;
    site.set("aws.flavor", "ceph");
    let fixture = AcmeFixture { worker: site.worker().await, site, s3 };
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    fixture.s3.on("AssumeRole").before(Effect::Error(503, "ServiceUnavailable", ""));
    fixture.s3.on("PutObject").before(DENIED);
    fixture.schedule("denied", b"hello").await;
    denials(&fixture, 1).await;
    assert!(fixture.s3.calls("AssumeRole").len() > 1, "it was asked");
    fixture.s3.calm();
    fixture.close().await;
}

#[tokio::test]
async fn elsewhere_a_denial_is_no_word_for_a_session_that_is_over() {
    let fixture = AcmeFixture::start("nocephexpiry").await;
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    fixture.s3.on("PutObject").before(DENIED);
    fixture.schedule("denied", b"hello").await;
    denials(&fixture, 1).await;
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 1);
    fixture.s3.calm();
    fixture.close().await;
}
