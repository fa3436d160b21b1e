//! Stores, networks and endpoints that are odd and yet let a delivery through, and what a test
//! leaves when an answer is lost.

use std::sync::Arc;
use std::time::Duration;

use consign::check::{CheckReport, Checker};
use consign::domain::diagnosis::Who;
use consign::metrics::Metrics;
use consign::session::{Sessions, WorkerIdentity};
use consign::upload::Uploader;
use serde_json::{Value, json};

use super::{TEST_OBJECT, by_key, by_role, check, codes, customer, run, step};
use crate::fixture::REGION;
use crate::testbed::scripted::Effect;
use crate::testbed::site::Site;

const DENIED: Effect = Effect::Error(403, "AccessDenied", "Access Denied");

/// A test of the one destination within so many seconds, in this process. With an access key: it
/// has no identity.
async fn within(site: &Site, seconds: u64) -> CheckReport {
    let config = consign::config::load_str(&site.toml()).unwrap().config;
    let metrics = Arc::new(Metrics::new(1));
    let identity = WorkerIdentity::load(&config.aws).await;
    let sessions = Arc::new(Sessions::new(config.session, config.aws, identity, metrics.clone()));
    let uploader = Uploader::new(config.upload, config.worker.memory_budget, sessions.clone(), metrics);
    let limit = Duration::from_secs(seconds);
    let checker = Checker { sessions: &sessions, uploader: &uploader, egress: &[], who: Who::Worker, limit };
    checker.run(config.destinations.values().next().unwrap(), &|_| ()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborting_an_upload_takes_bounded_time_too() {
    let silent = async |denied: Option<&'static str>, silent: &'static str| {
        let (mut site, s3) = customer().await;
        site.destination("acme", &by_key());
        if let Some(operation) = denied {
            s3.on(operation).before(DENIED);
        }
        s3.on(silent).before(Effect::Delay(Duration::from_secs(600)));
        let report = within(&site, 4).await;
        let answer = serde_json::to_value(&report).unwrap();
        assert!(report.duration_seconds < 40.0, "{silent}: {answer:#}");
        assert_eq!(
            (answer["verdict"].as_str(), &answer["left_behind"]),
            (Some("not ready"), &json!(true)),
            "{answer:#}"
        );
    };
    let abort = "AbortMultipartUpload";
    tokio::join!(silent(None, abort), silent(Some(abort), "CompleteMultipartUpload"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_upload_is_left_behind_though_the_file_is_deleted() {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role());
    s3.on("AbortMultipartUpload").before(DENIED);
    s3.on("UploadPart").before(DENIED);
    let (answer, _) = check(&site);
    assert_eq!((step(&answer, "delete")["result"].as_str(), s3.keys().len()), (Some("ok"), 0), "{answer:#}");
    assert_eq!((s3.open_uploads(), &answer["left_behind"]), (1, &json!(true)), "{answer:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_reply_was_lost_is_deleted_or_said_to_be_left() {
    for deletes in [true, false] {
        let (mut site, s3) = customer().await;
        site.destination("acme", &by_role());
        s3.on("PutObject").after(Effect::LostReply);
        if !deletes {
            s3.on("DeleteObject").before(DENIED);
        }
        let (answer, exit) = check(&site);
        assert_eq!((answer["verdict"].as_str(), exit), (Some("not ready"), 69), "{answer:#}");
        let expected: &[&str] = if deletes { &[] } else { &[TEST_OBJECT] };
        assert_eq!(s3.keys(), expected, "{answer:#}");
        assert_eq!(answer["left_behind"], !deletes, "{answer:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_may_call_the_place_of_a_bucket_as_it_likes() {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role());
    s3.on("GetBucketLocation").after(Effect::Body("<LocationConstraint>default</LocationConstraint>"));
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
    assert_eq!(answer["region"], REGION);
    assert!(s3.calls("PutObject").iter().all(|call| call.region == REGION), "requests go where they went");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_the_calls_that_only_read_takes_deliveries() {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role());
    for operation in ["GetBucketLocation", "ListObjectsV2"] {
        s3.on(operation).before(Effect::Error(501, "NotImplemented", "not here"));
    }
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
    assert_eq!(codes(&answer, "warning"), ["region_unchecked", "list_denied"], "{answer:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sts_that_does_not_say_who_calls_is_judged_by_the_role() {
    for (status, code, message) in
        [(405, "MethodNotAllowed", ""), (400, "InvalidParameterValue", "Unsupported action GetCallerIdentity")]
    {
        let (mut site, s3) = customer().await;
        s3.on("GetCallerIdentity").before(Effect::Error(status, code, message));
        site.destination("acme", &by_role());
        let (answer, exit) = check(&site);
        assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
        assert_eq!(step(&answer, "identity")["result"], "skipped", "{answer:#}");
        let report = run(&site, &["check", "--json"]);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        assert_eq!(step(&report, "identity")["result"], "skipped", "{report:#}");
        s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", ""));
        let (answer, exit) = check(&site);
        assert_eq!((step(&answer, "assume_role")["result"].as_str(), exit), (Some("failed"), 3), "{answer:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sts_that_refuses_kms_actions_is_no_obstacle_and_is_reported() {
    for refusal in [Effect::Error(400, "", ""), Effect::Error(400, "MalformedPolicyDocument", "unknown action")] {
        let (mut site, s3) = customer().await;
        site.destination("acme", &by_role());
        s3.on("AssumeRole").form("Policy", "kms:").before(refusal);
        let (answer, exit) = check(&site);
        assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
        assert_eq!(codes(&answer, "warning"), Vec::<String>::new(), "{answer:#}");
        let assumed = step(&answer, "assume_role");
        assert_eq!(assumed["result"], "ok", "{answer:#}");
        for words in ["STS refuses KMS actions", "session.policy = \"s3\""] {
            assert!(assumed["cause"].as_str().unwrap().contains(words), "{words}: {answer:#}");
        }
        let kms: Vec<_> = s3.calls("AssumeRole").iter().map(|call| call.asked("Policy").contains("kms:")).collect();
        assert!(kms[0] && !kms[1..].contains(&true), "only the first asked for it: {kms:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_judged_in_its_buckets_region_and_by_clear_words_alone() {
    let (mut site, s3) = customer().await;
    // The platform is at home elsewhere, perhaps in another partition.
    site.set("aws.region", "us-west-2").destination("acme", &by_key());
    assert_eq!(check(&site).0["verdict"], "ready");
    assert!(s3.calls("GetCallerIdentity").iter().all(|call| call.region == REGION));
    for (status, code, message) in [
        (
            403,
            "AccessDenied",
            "User is not authorized to perform: sts:GetCallerIdentity with an explicit deny in a VPC endpoint policy",
        ),
        (403, "RegionDisabledException", "STS is not activated in this region for account:111111111111."),
    ] {
        s3.on("GetCallerIdentity").before(Effect::Error(status, code, message));
        let (answer, exit) = check(&site);
        assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{code}: {answer:#}");
        assert_eq!(step(&answer, "access_key")["result"], "skipped", "{code}");
        s3.calm();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_policy_to_paste_keeps_others_out_as_the_printed_one_does() {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role()).set("check.egress_addresses", vec!["192.0.2.17"]);
    s3.trust(None);
    let (answer, _) = check(&site);
    let pasted = &step(&answer, "external_id")["remedy"]["statement"];
    let condition: &Value = &pasted["Statement"][0]["Condition"];
    assert_eq!(condition["IpAddress"]["aws:SourceIp"], json!(["192.0.2.17"]), "{answer:#}");
}

/// Without a region from anywhere, the role that customers trust is assumed at the home of its
/// partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_role_needs_no_region() {
    let (mut site, s3) = customer().await;
    s3.trust(None);
    site.destination("acme", &by_role());
    site.unset("aws.region").set("aws.identity_role_arn", "arn:aws:iam::999999999999:role/consign");
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
    let asked = s3.calls("AssumeRole");
    assert_eq!(asked[0].asked("RoleArn"), "arn:aws:iam::999999999999:role/consign");
    assert!(asked.iter().all(|call| call.region == "us-east-1"));
    s3.trust(Some("another"));
    let (answer, _) = check(&site);
    let cause = step(&answer, "identity")["cause"].as_str().unwrap();
    assert!(cause.contains("STS answers AccessDenied to the AssumeRole of its role"), "{answer:#}");
}

/// A site whose identity is a profile of the shared configuration files.
async fn with_profile(profile: &str) -> (crate::testbed::site::Site, crate::testbed::scripted::ScriptedS3) {
    let (mut site, s3) = customer().await;
    site.destination("acme", &by_role()).without_identity();
    let config = site.dir.path().join("aws-config");
    std::fs::write(&config, profile).unwrap();
    let home = site.dir.path().display().to_string();
    site.environment("AWS_CONFIG_FILE", &config.display().to_string()).environment("AWS_PROFILE", "work");
    site.environment("PATH", "/usr/bin:/bin").environment("HOME", &home);
    (site, s3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_with_a_credential_process_is_an_identity() {
    let credentials =
        r#"{"Version": 1, "AccessKeyId": "AKIAPLATFORM00000001", "SecretAccessKey": "marked-secret-platform-key"}"#;
    let (site, _s3) = with_profile(&format!("[profile work]\ncredential_process = echo '{credentials}'\n")).await;
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{answer:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sdk_says_about_missing_credentials_is_shown() {
    let sso = "[profile work]\nsso_session = corp\nsso_account_id = 999999999999\nsso_role_name = deliver\n\
               [sso-session corp]\nsso_region = eu-central-1\nsso_start_url = https://corp.awsapps.com/start\n";
    for (profile, said) in [
        (sso, "token"),
        ("[profile work]\ncredential_process = echo sorry >&2; exit 3\n", "external process"),
        ("[profile other]\nregion = eu-central-1\n", "work"),
    ] {
        let (site, _s3) = with_profile(profile).await;
        let (answer, exit) = check(&site);
        assert_eq!(exit, 77, "{answer:#}");
        let identity = step(&answer, "identity");
        assert_eq!(identity["code"], "identity_absent", "{answer:#}");
        assert!(identity["cause"].as_str().unwrap().contains(said), "{said}: {answer:#}");
        assert!(!identity["cause"].as_str().unwrap().contains("cargo"), "{answer:#}");
    }
}
