//! The command as a whole: verdict, exit code, output, and leftovers.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use consign::check::Checker;
use consign::domain::diagnosis::{Side, Who};
use consign::metrics::Metrics;
use consign::session::{Sessions, WorkerIdentity};
use consign::upload::Uploader;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{TEST_OBJECT, by_key, by_role, check, codes, customer, run, step};
use crate::fixture::KMS_KEY;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::Site;
use crate::testbed::until;

const DENIED: Effect = Effect::Error(403, "AccessDenied", "Access Denied");

/// Everything but s3:PutObject is denied.
fn put_object_alone(s3: &ScriptedS3) {
    for operation in ["GetBucketLocation", "ListObjectsV2", "AbortMultipartUpload", "DeleteObject"] {
        s3.on(operation).before(DENIED);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_well_and_nothing_is_left() {
    for mut to in [by_role(), by_key()] {
        let (mut site, s3) = customer().await;
        to["kms_key_arn"] = json!(KMS_KEY);
        site.destination("acme", &to);
        let (answer, exit) = check(&site);
        assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
        assert_eq!(codes(&answer, "warning"), Vec::<String>::new());
        assert_eq!(answer["test_object"], "in/consign-connection-test");
        assert_eq!((&answer["left_behind"], s3.keys().len()), (&json!(false), 0));
        let puts = s3.calls("PutObject");
        assert_eq!((puts.len(), puts[0].body.len()), (1, 0));
        assert_eq!(
            puts[0].header("x-amz-server-side-encryption-aws-kms-key-id"),
            Some(KMS_KEY),
            "encrypted as a file would be"
        );
        let last = |operation: &str| {
            s3.calls(operation).iter().all(|call| call.bucket == "acme" && call.key == "in/consign-connection-test")
        };
        assert!(
            ["PutObject", "CreateMultipartUpload", "UploadPart", "AbortMultipartUpload", "DeleteObject"]
                .iter()
                .all(|o| last(o))
        );
        assert!(
            s3.calls("ListObjectsV2").iter().all(|call| call.asked("prefix").starts_with("in/")),
            "nothing outside the prefix"
        );
        assert_eq!(s3.violations(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn put_object_alone_is_enough_and_what_is_weaker_is_said() {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role());
    put_object_alone(&s3);
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
    assert_eq!(codes(&answer, "warning"), ["region_unchecked", "list_denied", "abort_denied", "delete_denied"]);
    assert_eq!(answer["weaker"].as_array().unwrap().len(), 4, "{answer:#}");
    assert_eq!(answer["left_behind"], true);
    assert_eq!(s3.keys(), [TEST_OBJECT]);
    assert_eq!(
        s3.object("acme", "in/consign-connection-test").unwrap().bytes.len(),
        0,
        "the last write is the empty one"
    );
    assert_eq!(s3.open_uploads(), 0, "what may not be aborted was completed");
    let text = run(&site, &["check", "acme"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for words in [
        "[ok]",
        "[warning]",
        "verdict: ready (warnings: 4",
        "not deleted from the bucket: in/consign-connection-test",
        "\"Sid\"",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no colour beyond a terminal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_may_not_be_aborted_and_fails_is_said_to_be_left() {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role());
    put_object_alone(&s3);
    s3.on("UploadPart").before(DENIED);
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("not ready"), 3), "{answer:#}");
    let cause = step(&answer, "multipart")["cause"].as_str().unwrap();
    assert!(cause.contains("stays in the bucket"), "{cause}");
    assert_eq!(s3.keys(), [TEST_OBJECT], "the write was tried all the same, and may not be deleted");
    assert_eq!(s3.object("acme", "in/consign-connection-test").unwrap().bytes.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_problems_show_at_once() {
    let (mut site, s3) = customer().await;
    let mut to = by_role();
    to["kms_key_arn"] = json!(KMS_KEY);
    site.destination("acme", &to);
    s3.bucket("acme", "eu-north-1", crate::fixture::ACME);
    s3.trust(None);
    let message =
        "User: u is not authorized to perform: kms:Decrypt on resource: k because no identity-based policy allows it";
    s3.on("UploadPart").before(Effect::Error(403, "AccessDenied", message));
    let (answer, exit) = check(&site);
    assert_eq!(codes(&answer, "failed"), ["wrong_region", "kms_decrypt_denied_identity"], "{answer:#}");
    assert_eq!((codes(&answer, "warning"), exit), (vec!["external_id_not_enforced".to_owned()], 3));
    assert_eq!(answer["region"], "eu-north-1", "where it was found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_answers_ends_the_test_in_bounded_time() {
    let (mut site, s3) = customer().await;
    // With an access key: the process of this test has no identity.
    site.destination("acme", &by_key());
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(300)));
    let config = consign::config::load_str(&site.toml()).unwrap().config;
    let metrics = Arc::new(Metrics::new(1));
    let identity = WorkerIdentity::load(&config.aws).await;
    let sessions = Arc::new(Sessions::new(config.session, config.aws, identity, metrics.clone()));
    let uploader = Uploader::new(config.upload, config.worker.memory_budget, sessions.clone(), metrics);
    let checker = Checker {
        sessions: &sessions,
        uploader: &uploader,
        egress: &[],
        who: Who::Command,
        limit: Duration::from_secs(3),
    };
    let destination = config.destinations.values().next().unwrap();
    let report = checker.run(destination, &|_| ()).await;
    let answer = serde_json::to_value(&report).unwrap();
    assert!(report.duration_seconds < 40.0, "{answer:#}");
    assert_eq!(step(&answer, "multipart")["code"], "timed_out", "{answer:#}");
    assert_eq!(step(&answer, "write")["code"], "not_tried");
    assert_eq!((answer["verdict"].as_str(), report.side()), (Some("not ready"), Side::Service));
    assert_eq!((s3.open_uploads(), s3.keys().len()), (0, 0), "it was aborted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_test_aborts_what_it_had_begun() {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role());
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(300)));
    let file = site.dir.path().join("interrupted.toml");
    std::fs::write(&file, site.toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.args(["check", "acme", "--config"]).arg(file).env_clear().envs(site.variables());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the upload is open", Duration::from_secs(60), async || (s3.open_uploads() == 1).then_some(())).await;
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let status = until("the end", Duration::from_secs(60), async || child.try_wait().unwrap()).await;
    assert_eq!((status.code(), s3.open_uploads()), (Some(130), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_destination_is_a_usage_error_that_names_the_known_ones() {
    let (mut site, _s3) = customer().await;
    site.destination("acme", &by_role());
    let output = run(&site, &["check", "acne", "--json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("there is no destination acne") && said.contains("acme"), "{said}");
    assert!(output.stdout.is_empty());
}

/// The answer of `consign check --json`, and its exit code.
fn check_worker(site: &Site) -> (Value, i32) {
    let output = run(site, &["check", "--json"]);
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_destination_the_worker_itself_is_tested() {
    let (mut site, s3) = crate::fixture::site("checkself").await;
    let (answer, exit) = check_worker(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
    assert_eq!(answer["principal"], "arn:aws:iam::999999999999:user/AKIAPLATFORM00000001");
    let names: Vec<_> = answer["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(names, ["configuration", "broker", "topology", "identity"]);

    site.without_identity();
    let (answer, exit) = check_worker(&site);
    assert_eq!((codes(&answer, "failed"), exit), (vec!["identity_absent".to_owned()], 77), "{answer:#}");
    site.identity(&crate::testbed::moto::Key { id: "AKIAPLATFORM00000001".into(), secret: "any".into() });

    let refused = Effect::Error(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
    s3.on("GetCallerIdentity").before(refused);
    let (answer, exit) = check_worker(&site);
    assert_eq!((codes(&answer, "failed"), exit), (vec!["identity_refused".to_owned()], 77), "{answer:#}");
    s3.calm();

    let prefix = site.broker.prefix.clone();
    site.set("broker.prefix", format!("{prefix}-other")).set("broker.declare", false);
    let (answer, exit) = check_worker(&site);
    assert_eq!((codes(&answer, "failed"), exit), (vec!["topology_missing".to_owned()], 3), "{answer:#}");
    assert!(step(&answer, "topology")["remedy"]["text"].as_str().unwrap().contains("consign topology apply"));

    site.set("broker.url", "amqp://nobody:marked-secret@127.0.0.1:1/%2f");
    let (answer, exit) = check_worker(&site);
    assert_eq!((codes(&answer, "failed"), exit), (vec!["broker_unavailable".to_owned()], 69), "{answer:#}");
    assert!(!answer.to_string().contains("marked-secret"));
    site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_queue_is_tested_and_not_made() {
    let (mut site, _s3) = customer().await;
    let (answer, exit) = check_worker(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
    let file = site.dir.path().join("queue.db");
    assert!(!file.exists(), "a test makes no file");
    std::fs::write(&file, "this is no database, and long enough to be sure about it").unwrap();
    let (answer, exit) = check_worker(&site);
    assert_eq!((codes(&answer, "failed"), exit), (vec!["broker_not_configured".to_owned()], 3), "{answer:#}");
    let nowhere = site.dir.path().join("nowhere/queue.db");
    site.set("broker.url", format!("sqlite:{}", nowhere.display()));
    let (answer, exit) = check_worker(&site);
    assert_eq!((codes(&answer, "failed"), exit), (vec!["broker_unavailable".to_owned()], 69), "{answer:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passing_check_says_whether_the_workers_were_notified() {
    let (mut site, _s3) = customer().await;
    site.destination("acme", &by_role());
    let said = |site: &Site, arguments: &[&str]| {
        let output = run(site, arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let [shown, _] = said(&site, &["check", "acme"]);
    let (_, after) = shown.split_once("verdict: ready").unwrap();
    for part in ["the workers could not be notified (", "queue.db does not exist", "with `consign status reset acme`"] {
        assert!(after.contains(part), "`{part}` is not in: {shown}");
    }
    site.topology();
    let [shown, _] = said(&site, &["check", "acme"]);
    assert!(shown.trim_end().ends_with("all workers are notified and retry the jobs that wait for acme"), "{shown}");
    let [answer, noted] = said(&site, &["check", "acme", "--json"]);
    assert!(serde_json::from_str::<Value>(&answer).is_ok(), "data alone: {answer}");
    assert!(noted.contains("all workers are notified"), "{noted}");
    site.unset("broker.url");
    let [shown, _] = said(&site, &["check", "acme"]);
    assert!(shown.contains("no worker was notified: broker.url is not set"), "{shown}");
}
