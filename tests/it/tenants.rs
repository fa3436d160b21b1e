//! Two tenants that use the same ids are two tenants: nothing of one's job reaches the other's
//! bucket, session, circuit breaker or outcome.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{REGION, role_destination};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::until;

const LIMIT: Duration = Duration::from_secs(60);
/// Bucket and account of each tenant.
const TENANTS: [(&str, &str); 2] = [("one", "111111111111"), ("two", "222222222222")];

async fn add_tenants(site: &mut Site) -> ScriptedS3 {
    let s3 = ScriptedS3::start().await;
    for (bucket, account) in TENANTS {
        s3.bucket(bucket, REGION, account);
    }
    site.aws(&s3.url);
    s3
}

/// The job `id` of one tenant. Both call their destination `shared`.
fn job_of(site: &Site, (bucket, account): (&str, &str), id: &str) -> Value {
    let mut wanted = job(id, &site.file(&format!("{bucket}-{id}"), bucket.as_bytes()), "shared", id);
    wanted["destination"] = role_destination(bucket, account);
    wanted["destination"]["id"] = json!("shared");
    wanted["destination"]["tenant"] = json!(bucket);
    wanted
}

/// Delivered outcomes of a job: the id of each, and the bucket that it names.
async fn delivered(site: &Site, id: &str) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let outcomes = site.broker.outcomes_of(id).await;
    let delivered = outcomes.iter().filter(|outcome| outcome["type"] == "consign.transfer.delivered.v1");
    delivered.map(|outcome| (text(&outcome["id"]), text(&outcome["data"]["bucket"]))).collect()
}

async fn both_delivered(site: &Site, s3: &ScriptedS3, id: &str) {
    let outcomes = until("an outcome of each tenant", LIMIT, async || {
        let outcomes = delivered(site, id).await;
        (outcomes.len() == 2).then_some(outcomes)
    })
    .await;
    let ids: BTreeSet<_> = outcomes.iter().map(|(id, _)| id).collect();
    let buckets: Vec<_> =
        outcomes.iter().map(|(_, bucket)| bucket.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!((ids.len(), buckets), (2, vec!["one", "two"]), "{outcomes:?}");
    for (bucket, _) in TENANTS {
        assert_eq!(s3.object(bucket, &format!("in/{id}")).unwrap().bytes, bucket, "the bytes of its own tenant");
    }
    assert_eq!(s3.foreign_calls(), Vec::<String>::new());
}

/// At once and one after the other, on any queue.
async fn the_same_ids_are_two_jobs(site: Site, s3: ScriptedS3) {
    s3.on("PutObject").key("at-once").before(Effect::Delay(Duration::from_millis(700)));
    let worker = site.worker().await;
    for tenant in TENANTS {
        let wanted = job_of(&site, tenant, "at-once");
        assert!(site.broker.offer("scheduled", &wanted).await);
    }
    both_delivered(&site, &s3, "at-once").await;
    for (done, tenant) in TENANTS.into_iter().enumerate() {
        let wanted = job_of(&site, tenant, "in-turn");
        assert!(site.broker.offer("scheduled", &wanted).await);
        until("its own outcome", LIMIT, async || (delivered(&site, "in-turn").await.len() == done + 1).then_some(()))
            .await;
    }
    both_delivered(&site, &s3, "in-turn").await;
    // The memory of delivered jobs holds for each of them.
    assert!(site.broker.offer("scheduled", &job_of(&site, TENANTS[1], "in-turn")).await);
    until("the duplicate is acknowledged", LIMIT, async || {
        (worker.metric("consign_broker_settlements_total", "action=\"ack\"").await == 5.0).then_some(())
    })
    .await;
    assert_eq!(s3.calls("PutObject").len(), 4, "the duplicate was not uploaded");
    assert_eq!(delivered(&site, "in-turn").await.len(), 2, "and has the outcome of its own tenant");
    worker.terminate();
    assert!(worker.exit(LIMIT).await.success());
}

#[tokio::test]
async fn the_same_inline_id_and_job_id_of_two_tenants_are_two_jobs() {
    let mut site = Site::new("tenants").await;
    let s3 = add_tenants(&mut site).await;
    the_same_ids_are_two_jobs(site, s3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_inline_id_and_job_id_of_two_tenants_are_two_jobs_on_the_embedded_queue() {
    let mut site = Site::embedded("tenants");
    let s3 = add_tenants(&mut site).await;
    site.topology();
    the_same_ids_are_two_jobs(site, s3).await;
}

/// A fleet of two: the breaker of one tenant is open in both workers, and the other's jobs run.
#[tokio::test]
async fn the_circuit_breaker_of_one_tenant_holds_no_job_of_another_with_the_same_id() {
    let mut site = Site::new("tenantbreaker").await;
    let s3 = add_tenants(&mut site).await;
    s3.on("PutObject").bucket("one").before(Effect::Error(404, "NoSuchBucket", "The specified bucket does not exist"));
    let workers = [site.worker().await, site.worker().await];
    site.broker.schedule(&job_of(&site, TENANTS[0], "broken")).await;
    for worker in &workers {
        until("both workers know of the open breaker", LIMIT, async || {
            let open = worker.metric("consign_destination_circuit_open", "destination=\"shared\"").await;
            (open == 1.0).then_some(())
        })
        .await;
    }
    for n in 0..4 {
        let name = format!("sound-{n}");
        site.broker.schedule(&job_of(&site, TENANTS[1], &name)).await;
        let outcome = site.broker.ended(&name).await;
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
    }
    for worker in &workers {
        let open = worker.metric("consign_destination_circuit_open", "destination=\"shared\"").await;
        assert_eq!(open, 1.0, "what the other tenant accepts closes nothing");
    }
    // People know the id alone: their reset is for all tenants that use it.
    s3.calm();
    let reset = tokio::task::spawn_blocking({
        let output = site.consign(&["status", "reset", "shared"]);
        move || output
    });
    assert!(reset.await.unwrap().status.success());
    let outcome = site.broker.ended("broken").await;
    assert_eq!(
        (&outcome["type"], &outcome["data"]["bucket"]),
        (&json!("consign.transfer.delivered.v1"), &json!("one"))
    );
    site.broker.clean().await;
}

/// Whatever an inline destination says of itself, it has no more slots than the worker gives one.
#[tokio::test]
async fn an_inline_destination_only_lowers_the_limits_of_the_worker() {
    let mut site = Site::new("inlinelimit").await;
    let s3 = add_tenants(&mut site).await;
    site.set("worker.slots", 8).set("worker.destination_slots", 2).set("worker.memory_budget", "96MiB");
    s3.on("PutObject").bucket("one").before(Effect::Delay(Duration::from_secs(4)));
    let worker = site.worker().await;
    for n in 0..8 {
        let mut greedy = job_of(&site, TENANTS[0], &format!("greedy-{n}"));
        greedy["destination"]["max_concurrency"] = json!(1000);
        site.broker.schedule(&greedy).await;
    }
    until("its jobs run", LIMIT, async || {
        (worker.metric("consign_transfers_in_flight", "").await >= 2.0).then_some(())
    })
    .await;
    site.broker.schedule(&job_of(&site, TENANTS[1], "other")).await;
    site.broker.ended("other").await;
    let ended = site.broker.outcomes().await.len();
    assert!(ended <= 3, "{ended}: the other tenant waited for a slot");
    assert!(s3.calls("PutObject").iter().filter(|call| call.key.contains("greedy")).count() <= 4);
    worker.kill();
    site.broker.clean().await;
}

#[tokio::test]
async fn an_inline_destination_is_refused_by_the_rules_that_the_answer_names() {
    let mut site = Site::new("inlinerules").await;
    let s3 = add_tenants(&mut site).await;
    site.unset("inline.enabled");
    let refused = async |site: &Site, name: &str, words: &str| {
        let worker = site.worker().await;
        site.broker.schedule(&job_of(site, TENANTS[0], name)).await;
        let outcome = site.broker.ended(name).await;
        assert_eq!(
            (&outcome["data"]["reason"], &outcome["data"]["class"]),
            (&json!("destination_forbidden"), &json!("job"))
        );
        let dead = site.broker.taken("dead", name).await;
        assert_eq!(dead.header("x-error-reason"), "destination_forbidden");
        assert!(dead.header("x-error-message").contains(words), "{}", dead.header("x-error-message"));
        worker.terminate();
        assert!(worker.exit(LIMIT).await.success());
    };
    refused(&site, "off", "inline.enabled = true").await;
    site.set("inline.enabled", true).set("inline.role_arns", json!(["arn:aws:iam::*:role/consign-{tenant}"]));
    refused(&site, "role", "inline.role_arns").await;
    site.unset("inline.role_arns").set("inline.accounts", json!(["333333333333"]));
    refused(&site, "account", "inline.accounts").await;
    assert_eq!(s3.calls("Any").len(), 0, "nothing was called");

    site.set("inline.accounts", json!(["111111111111"])).set("inline.prefix_pattern", "*/");
    let worker = site.worker().await;
    let answers = site.broker.own("reply.answers").await;
    let mut wanted = job_of(&site, TENANTS[1], "x")["destination"].take();
    let ask = async |destination: &Value| {
        let kind = lapin::BasicProperties::default().with_type("consign.check.v1".into());
        let body = json!({"version": 1, "destination": destination}).to_string();
        site.broker
            .publish_raw("job.scheduled.shared", body.as_bytes(), kind.with_reply_to(answers.as_str().into()))
            .await;
        until("an answer", LIMIT, async || site.broker.take("reply.answers").await.pop()).await.json()
    };
    let answer = ask(&wanted).await;
    assert!(answer.to_string().contains("inline.accounts"), "{answer:#}");
    wanted = job_of(&site, TENANTS[0], "y")["destination"].take();
    let answer = ask(&wanted).await;
    assert_eq!(answer["verdict"], "ready", "{answer:#}");
    site.broker.schedule(&job_of(&site, TENANTS[0], "fine")).await;
    assert_eq!(site.broker.ended("fine").await["type"], "consign.transfer.delivered.v1");
    worker.quiet().await;
    site.broker.clean().await;
}
