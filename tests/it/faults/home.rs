//! Who is at fault, by what STS says at home: a region, a role or a customer that fails costs its
//! own jobs, and never the worker.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{ACME, AcmeFixture, REGION, role_destination, site};
use crate::testbed::broker::Message;
use crate::testbed::checker::Checker;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::until;
use crate::testbed::worker::Worker;

/// An opt-in region that is off in the worker's own account.
const OPT_IN: &str = "ap-east-1";
const LONG: Duration = Duration::from_secs(120);
const UNKNOWN_TOKEN: Effect =
    Effect::Error(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
const DENIED: Effect = Effect::Error(403, "AccessDenied", "User: u is not authorized to perform: sts:AssumeRole on r");

/// Another customer, with a bucket of the same name.
fn customer(site: &mut Site, s3: &ScriptedS3, name: &str, number: usize) {
    let account = format!("{:012}", 222_222_000_000 + number);
    s3.bucket(name, REGION, &account);
    site.destination(name, &role_destination(name, &account));
}

async fn schedule(site: &Site, destination: &str, names: impl Iterator<Item = String>) {
    let url = site.file("hello", b"hello");
    for name in names {
        site.broker.schedule(&job(&name, &url, destination, &name)).await;
    }
}

fn named(word: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{word}-{n}"))
}

async fn all_delivered(site: &Site, names: impl Iterator<Item = String>) {
    for name in names {
        let outcome = site.broker.ended(&name).await;
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        assert_eq!(outcome["data"]["attempts"], 1, "{outcome:#}");
    }
}

/// No worker paused, and none saw a fault of its own or an outage.
async fn nobody_is_sick(workers: &[Worker]) {
    for worker in workers {
        assert_eq!(worker.metric("consign_transfer_failures_total", "class=\"worker\"").await, 0.0);
        assert!(!worker.log().contains("worker_fault"), "{}", worker.log());
        worker.ready().await;
    }
}

/// The job waits uncharged, for this reason.
fn waits_for(waiting: &Message, reason: &str) {
    assert_eq!(waiting.header("x-last-error-reason"), reason, "{:?}", waiting.headers);
    assert_eq!(waiting.header("x-attempt"), "0", "{:?}", waiting.headers);
}

/// So many jobs wait, each for the denial of its own role.
async fn denied_one_by_one(site: &Site, count: usize) {
    let mut waiting = Vec::new();
    until("all of them wait", LONG, async || {
        waiting.extend(site.broker.take("wait.2m").await);
        (waiting.len() >= count).then_some(())
    })
    .await;
    waiting.iter().for_each(|message| waits_for(message, "assume_role_denied"));
}

async fn failures(worker: &Worker, reason: &str) -> f64 {
    worker.metric("consign_transfer_failures_total", &format!("reason=\"{reason}\"")).await
}

#[tokio::test]
async fn a_region_without_our_token_costs_its_own_job_and_no_worker() {
    let (mut site, s3) = site("tokenregion").await;
    site.unset("aws.region");
    s3.bucket("odd", OPT_IN, "222222222222");
    let mut odd = role_destination("odd", "222222222222");
    odd["region"] = json!(OPT_IN);
    site.destination("odd", &odd);
    for operation in ["AssumeRole", "GetCallerIdentity"] {
        s3.on(operation).region(OPT_IN).before(UNKNOWN_TOKEN);
    }
    // Nobody has worked yet when the first of them is tried.
    schedule(&site, "odd", named("odd", 1)).await;
    schedule(&site, "acme", named("a", 180)).await;
    let workers = [site.worker().await, site.worker().await];
    all_delivered(&site, named("a", 180)).await;
    let waiting = site.broker.taken("wait.2m", "odd-0").await;
    waits_for(&waiting, "wrong_region");
    nobody_is_sick(&workers).await;
    let asked: Vec<_> = s3.calls("GetCallerIdentity").into_iter().map(|call| call.region).collect();
    assert!((1..=2).contains(&asked.len()) && !asked.iter().any(|region| region == OPT_IN), "{asked:?}");
    Checker::new(&site, &s3).worker(&workers[0]).worker(&workers[1]).check().await;
    site.broker.clean().await;
}

/// The region that accepted the worker last refuses it now.
#[tokio::test]
async fn a_region_that_is_switched_off_costs_its_own_job_and_no_worker() {
    let (mut site, s3) = site("switchedoff").await;
    site.unset("aws.region");
    s3.bucket("odd", OPT_IN, "222222222222");
    let mut odd = role_destination("odd", "222222222222");
    odd["region"] = json!(OPT_IN);
    site.destination("odd", &odd);
    let worker = site.worker().await;
    schedule(&site, "odd", named("before", 1)).await;
    all_delivered(&site, named("before", 1)).await;
    for operation in ["AssumeRole", "GetCallerIdentity"] {
        s3.on(operation).region(OPT_IN).before(UNKNOWN_TOKEN);
    }
    s3.expire_sessions();
    schedule(&site, "odd", named("odd", 1)).await;
    waits_for(&site.broker.taken("wait.2m", "odd-0").await, "wrong_region");
    schedule(&site, "acme", named("a", 20)).await;
    all_delivered(&site, named("a", 20)).await;
    nobody_is_sick(std::slice::from_ref(&worker)).await;
    Checker::new(&site, &s3).worker(&worker).check().await;
    site.broker.clean().await;
}

/// A moment ago STS at home accepted the worker, which now is refused everywhere.
#[tokio::test]
async fn an_acceptance_from_before_a_refusal_blames_no_region() {
    let (mut site, s3) = site("stalehome").await;
    // Home is then where STS accepted the worker.
    site.unset("aws.region");
    s3.bucket("odd", OPT_IN, "222222222222");
    let mut odd = role_destination("odd", "222222222222");
    odd["region"] = json!(OPT_IN);
    let mut first = role_destination("acme", ACME);
    first["prefix"] = json!("first/");
    site.destination("odd", &odd).destination("first", &first);
    s3.on("AssumeRole").region(OPT_IN).before(UNKNOWN_TOKEN);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule_with("first", b"hello", &json!({"destination": "first"})).await;
    fixture.delivered("first").await;
    schedule(&fixture.site, "odd", named("odd", 1)).await;
    waits_for(&fixture.site.broker.taken("wait.2m", "odd-0").await, "wrong_region");
    for operation in ["AssumeRole", "GetCallerIdentity"] {
        fixture.s3.on(operation).before(UNKNOWN_TOKEN);
    }
    fixture.schedule("a", b"hello").await;
    fixture.unready(&["identity_denied"]).await;
    assert_eq!(failures(&fixture.worker, "wrong_region").await, 1.0, "only that of the odd one");
    fixture.s3.calm();
    assert_eq!(fixture.delivered("a").await["attempts"], 1, "no attempt was charged");
    fixture.close().await;
}

#[tokio::test]
async fn while_home_does_not_answer_a_refusal_is_nobodys_fault() {
    let (mut site, s3) = site("homeaway").await;
    site.unset("aws.region").environment("AWS_REGION", "us-east-1");
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.s3.on("AssumeRole").first(1).before(UNKNOWN_TOKEN);
    fixture.s3.on("GetCallerIdentity").before(Effect::Error(503, "ServiceUnavailable", "Please try again."));
    fixture.schedule("a", b"hello").await;
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    assert_eq!(fixture.failures("sts_unavailable").await, 1.0);
    let asked: Vec<_> = fixture.s3.calls("GetCallerIdentity").into_iter().map(|call| call.region).collect();
    assert_eq!(asked, ["us-east-1", "us-east-1"]);
    nobody_is_sick(std::slice::from_ref(&fixture.worker)).await;
    fixture.close().await;
}

#[tokio::test]
async fn made_up_roles_cost_their_own_jobs_and_are_no_outage() {
    let (mut site, s3) = site("madeup").await;
    for n in 0..25 {
        customer(&mut site, &s3, &format!("bogus-{n}"), n);
    }
    for n in 0..4 {
        customer(&mut site, &s3, &format!("good-{n}"), 100 + n);
    }
    // The accounts of the made-up ones.
    s3.on("AssumeRole").form("RoleArn", "::2222220000").before(DENIED);
    let bogus = |n: usize| format!("bogus-{n}");
    for n in 0..25 {
        schedule(&site, &bogus(n), std::iter::once(bogus(n))).await;
    }
    for n in 0..4 {
        schedule(&site, &format!("good-{n}"), named(&format!("g-{n}"), 75)).await;
    }
    let workers = [site.worker().await, site.worker().await];
    for n in 0..4 {
        all_delivered(&site, named(&format!("g-{n}"), 75)).await;
    }
    nobody_is_sick(&workers).await;
    denied_one_by_one(&site, 25).await;
    nobody_is_sick(&workers).await;
    Checker::new(&site, &s3).worker(&workers[0]).worker(&workers[1]).check().await;
    site.broker.clean().await;
}

/// Four customers that have worked, and whose sessions are over.
async fn worked(word: &str) -> AcmeFixture {
    let (mut site, s3) = site(word).await;
    for n in 0..4 {
        customer(&mut site, &s3, &format!("c-{n}"), n);
    }
    let worker = site.worker().await;
    for n in 0..4 {
        schedule(&site, &format!("c-{n}"), std::iter::once(format!("first-{n}"))).await;
        site.broker.ended(&format!("first-{n}")).await;
    }
    s3.expire_sessions();
    AcmeFixture { site, s3, worker }
}

#[tokio::test]
async fn denials_beside_a_role_that_is_granted_are_those_of_the_customers() {
    let fixture = worked("theirdenials").await;
    for account in ["::222222000000", "::222222000001", "::222222000002"] {
        fixture.s3.on("AssumeRole").form("RoleArn", account).before(DENIED);
    }
    let before = fixture.s3.calls("AssumeRole").len();
    for n in 0..3 {
        schedule(&fixture.site, &format!("c-{n}"), std::iter::once(format!("second-{n}"))).await;
    }
    denied_one_by_one(&fixture.site, 3).await;
    assert_eq!(failures(&fixture.worker, "outage").await, 0.0);
    let asked: Vec<_> = fixture.s3.calls("AssumeRole").split_off(before);
    assert!(asked.iter().any(|call| call.asked("RoleArn").contains("222222000003")), "nobody else was asked");
    assert!(!fixture.s3.calls("GetCallerIdentity").is_empty());
    fixture.worker.ready().await;
    fixture.close().await;
}

#[tokio::test]
async fn denials_of_every_role_are_an_outage_that_nobody_is_charged_for() {
    let fixture = worked("ourdenials").await;
    fixture.s3.on("AssumeRole").before(DENIED);
    for n in 0..4 {
        schedule(&fixture.site, &format!("c-{n}"), std::iter::once(format!("second-{n}"))).await;
    }
    fixture.unready(&["outage"]).await;
    let status: Value = serde_json::from_str(&fixture.worker.get("/status").await).unwrap();
    assert!(!status["destination_states"].to_string().contains("\"circuit_open\":true"), "{status:#}");
    fixture.s3.calm();
    // The others began before there was evidence, and wait for two minutes.
    let ended = fixture.site.broker.all_ended(4 + 2, LONG).await;
    let second = ended.iter().filter(|(name, _)| name.starts_with("second"));
    for (_, outcome) in second {
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        assert_eq!(outcome["data"]["attempts"], 1, "{outcome:#}");
    }
    fixture.close().await;
}

/// A worker that has just started, and whose first jobs meet an S3 that is out of order.
async fn out_of_order(word: &str, home: Option<Effect>) -> AcmeFixture {
    let (mut site, s3) = site(word).await;
    s3.on("PutObject").before(Effect::Error(503, "ServiceUnavailable", "Please try again."));
    if let Some(effect) = home {
        s3.on("ListBuckets").before(effect);
    }
    for n in 0..3 {
        customer(&mut site, &s3, &format!("c-{n}"), n);
        schedule(&site, &format!("c-{n}"), std::iter::once(format!("job-{n}"))).await;
    }
    let worker = site.worker().await;
    AcmeFixture { site, s3, worker }
}

#[tokio::test]
async fn after_a_start_an_s3_that_answers_us_leaves_each_failure_to_its_destination() {
    let fixture = out_of_order("s3answers", None).await;
    until("each has failed and was charged", LONG, async || {
        let charged = fixture.worker.metric("consign_transfer_retries_total", "reason=\"s3_unavailable\"").await;
        (charged >= 3.0).then_some(())
    })
    .await;
    assert_eq!(fixture.s3.calls("ListBuckets").len(), 1, "it was asked once");
    nobody_is_sick(std::slice::from_ref(&fixture.worker)).await;
    fixture.s3.calm();
    fixture.close().await;
}

#[tokio::test]
async fn after_a_start_an_s3_that_does_not_answer_us_either_is_an_outage() {
    let fixture = out_of_order("s3silent", Some(Effect::LostReply)).await;
    fixture.unready(&["outage"]).await;
    fixture.s3.calm();
    for n in 0..3 {
        let outcome = fixture.site.broker.ended(&format!("job-{n}")).await;
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_role_of_another_partition_is_not_asked_for_once_ours_is_known() {
    let (mut site, s3) = site("partition").await;
    let mut gov = role_destination("gov", "222222222222");
    gov["region"] = json!("us-gov-west-1");
    gov["auth"]["role_arn"] = json!("arn:aws-us-gov:iam::222222222222:role/consign");
    site.destination("gov", &gov);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    fixture.schedule_with("g", b"hello", &json!({"destination": "gov"})).await;
    let waiting = fixture.site.broker.taken("wait.30s", "\"g\"").await;
    waits_for(&waiting, "wrong_region");
    let asked = fixture.s3.calls("AssumeRole");
    assert!(asked.iter().all(|call| call.asked("RoleArn").contains(ACME)), "{asked:?}");
    fixture.worker.ready().await;
    fixture.close().await;
}

#[tokio::test]
async fn session_tags_that_are_denied_are_ours_to_fix_and_stop_nobody_else() {
    let (mut site, s3) = site("tags").await;
    customer(&mut site, &s3, "beta", 0);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    let message = "User: arn:aws:sts::999999999999:assumed-role/consign/eks is not authorized to perform: sts:TagSession on \
                   resource: arn:aws:iam::222222000000:role/consign";
    fixture.s3.on("AssumeRole").form("RoleArn", "::222222000000").before(Effect::Error(403, "AccessDenied", message));
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    fixture.schedule_with("b", b"hello", &json!({"destination": "beta"})).await;
    let waiting = fixture.site.broker.taken("wait.30s", "\"b\"").await;
    waits_for(&waiting, "identity_denied");
    assert!(waiting.header("x-last-error-message").contains("sts:TagSession"), "{:?}", waiting.headers);
    fixture.worker.ready().await;
    fixture.schedule("again", b"hello").await;
    fixture.delivered("again").await;
    assert!(!fixture.worker.log().contains("worker_fault"));
    fixture.close().await;
}

#[tokio::test]
async fn a_session_policy_beside_large_tags_becomes_smaller_once_and_stays_so() {
    let fixture = AcmeFixture::start("packed").await;
    let message = "Serialized token too large for session";
    fixture.s3.on("AssumeRole").form("Policy", "s3:ListBucket").before(Effect::Error(
        400,
        "PackedPolicyTooLarge",
        message,
    ));
    fixture.schedule("a", b"hello").await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    fixture.s3.expire_sessions();
    fixture.schedule("b", b"hello").await;
    assert_eq!(fixture.delivered("b").await["attempts"], 1);
    let listed: Vec<_> =
        fixture.s3.calls("AssumeRole").iter().map(|call| call.asked("Policy").contains("s3:ListBucket")).collect();
    assert_eq!(listed, [true, false, false], "it is remembered");
    fixture.close().await;
}

/// Ceph's STS answers 400 and nothing else to a policy with actions that it does not know.
#[tokio::test]
async fn a_session_policy_with_kms_that_sts_refuses_goes_without_it_and_stays_so() {
    for refusal in [Effect::Error(400, "", ""), Effect::Error(400, "MalformedPolicyDocument", "unknown action")] {
        let fixture = AcmeFixture::start("ceph").await;
        fixture.s3.on("AssumeRole").form("Policy", "kms:").before(refusal);
        fixture.schedule("a", b"hello").await;
        assert_eq!(fixture.delivered("a").await["attempts"], 1);
        fixture.s3.expire_sessions();
        fixture.schedule("b", b"hello").await;
        assert_eq!(fixture.delivered("b").await["attempts"], 1);
        let calls = fixture.s3.calls("AssumeRole");
        let policies: Vec<_> = calls.iter().map(|call| call.asked("Policy")).collect();
        let keys: Vec<_> = policies.iter().map(|policy| policy.contains("kms:")).collect();
        assert_eq!(keys, [true, false, false], "it is remembered");
        assert!(policies.iter().all(|policy| policy.contains("s3:PutObject")), "{policies:?}");
        assert!(fixture.worker.log().contains("session.policy = \\\"s3\\\""), "it is reported");
        fixture.close().await;
    }
}

#[tokio::test]
async fn the_session_policy_is_the_configured_one() {
    let (mut site, s3) = site("sessionpolicy").await;
    site.set("session.policy", "s3");
    for (id, mode) in [("acme-full", "full"), ("acme-none", "none")] {
        let mut destination = role_destination("acme", ACME);
        destination["session_policy"] = json!(mode);
        site.destination(id, &destination);
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for (id, policy, kms) in [("acme", true, false), ("acme-full", true, true), ("acme-none", false, false)] {
        fixture.schedule_with(id, b"hello", &json!({"destination": id})).await;
        fixture.delivered(id).await;
        let call = fixture.s3.calls("AssumeRole").pop().unwrap();
        let sent = call.asked("Policy");
        assert_eq!((sent.contains("s3:PutObject"), sent.contains("kms:")), (policy, kms), "{id}");
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_clock_that_one_service_refuses_and_sts_at_home_accepts_is_not_ours() {
    let fixture = AcmeFixture::start("theirclock").await;
    let message = "The difference between the request time and the current time is too large.";
    fixture.s3.on("PutObject").first(1).before(Effect::Error(403, "RequestTimeTooSkewed", message));
    fixture.schedule("a", b"hello").await;
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    assert_eq!(fixture.failures("s3_unavailable").await, 1.0);
    let message = "Signature expired: 20261122T000000Z is now earlier than 20261123T000000Z";
    fixture.s3.expire_sessions();
    fixture.s3.on("AssumeRole").first(1).before(Effect::Error(403, "SignatureDoesNotMatch", message));
    fixture.schedule("b", b"hello").await;
    assert_eq!(fixture.delivered("b").await["attempts"], 2);
    assert_eq!(fixture.failures("sts_unavailable").await, 1.0);
    nobody_is_sick(std::slice::from_ref(&fixture.worker)).await;
    fixture.close().await;
}
