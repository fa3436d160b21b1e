//! Answers of S3, STS and staging buckets that are no success, as the SDK reads them.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::{Arc, LazyLock, Mutex};

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region as SdkRegion};
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use consign::config;
use consign::domain::destination::{Destination, Region};
use consign::domain::outcome::{Class, Failure, Reason};
use consign::fuzzing;
use http::{HeaderName, HeaderValue, Response};
use tokio::runtime::{Builder, Runtime};

const DESTINATIONS: &str = r#"
[destinations.role]
bucket = "bucket"
region = "eu-west-1"
auth = { method = "iam_role", role_arn = "arn:aws:iam::123456789012:role/r", external_id = "x-1" }
[destinations.key]
bucket = "bucket"
region = "eu-west-1"
auth = { method = "access_key", access_key_id = "AKIAIOSFODNN7EXAMPLE", secret_access_key = "k" }
"#;

static WITH_ROLE: LazyLock<Destination> = LazyLock::new(|| destination("role"));
static WITH_KEY: LazyLock<Destination> = LazyLock::new(|| destination("key"));

fn destination(id: &str) -> Destination {
    let loaded = config::load_str(DESTINATIONS).expect("two destinations");
    let found = loaded.config.destinations.values().find(|destination| destination.id.as_str() == id);
    Destination::clone(found.expect("a destination"))
}

/// A connection that has one answer.
#[derive(Debug, Clone, Default)]
struct Scripted(Arc<Mutex<Option<HttpResponse>>>);

impl HttpConnector for Scripted {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.lock().expect("nobody panicked").take();
        HttpConnectorFuture::ready(Ok(answer.expect("one request, one answer")))
    }
}

impl HttpClient for Scripted {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

/// The clients, and what they are answered.
struct Bench {
    script: Scripted,
    s3: aws_sdk_s3::Client,
    sts: aws_sdk_sts::Client,
    runtime: Runtime,
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(bench());
}

fn bench() -> Bench {
    let script = Scripted::default();
    let credentials = Credentials::new("AKIAIOSFODNN7EXAMPLE", "k", None, None, "oracle");
    let s3 = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(SdkRegion::new("eu-west-1"))
        .credentials_provider(credentials.clone())
        .http_client(script.clone())
        .timeout_config(TimeoutConfig::disabled())
        .retry_config(RetryConfig::disabled());
    let sts = aws_sdk_sts::Config::builder()
        .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
        .region(aws_sdk_sts::config::Region::new("eu-west-1"))
        .credentials_provider(credentials)
        .http_client(script.clone())
        .timeout_config(TimeoutConfig::disabled())
        .retry_config(RetryConfig::disabled());
    Bench {
        script,
        s3: aws_sdk_s3::Client::from_conf(s3.build()),
        sts: aws_sdk_sts::Client::from_conf(sts.build()),
        runtime: Builder::new_current_thread().enable_time().build().expect("a runtime"),
    }
}

/// The first byte chooses the call, two are the status; lines of headers, an empty line and the
/// body follow.
pub fn aws_errors(bytes: &[u8]) {
    let Some((&[call, high, low], text)) = bytes.split_first_chunk::<3>() else { return };
    let status = 200 + u16::from_be_bytes([high, low]) % 400;
    let (head, body) = text.split_at(text.windows(2).position(|two| two == b"\n\n").map_or(text.len(), |at| at + 2));
    let mut answer = Response::builder().status(status);
    for line in head.split(|b| *b == b'\n') {
        let mut sides = line.splitn(2, |b| *b == b':');
        let name = HeaderName::from_bytes(sides.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(sides.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            answer = answer.header(name, value);
        }
    }
    let answer = answer.body(SdkBody::from(body)).expect("a response");
    // The SDK takes no header that is not UTF-8.
    let Ok(answer) = HttpResponse::try_from(answer) else { return };
    BENCH.with_borrow(|bench| {
        *bench.script.0.lock().expect("nobody panicked") = Some(answer);
        let destination = if call & 4 == 0 { &*WITH_ROLE } else { &*WITH_KEY };
        bench.runtime.block_on(async {
            match call & 3 {
                0 => put(bench, destination, status).await,
                1 => complete(bench, destination, status).await,
                2 => staged(bench).await,
                _ => assume(bench).await,
            }
        });
    });
}

async fn put(bench: &Bench, destination: &Destination, status: u16) {
    let ended = bench.s3.put_object().bucket("bucket").key("key").body(SdkBody::from("x").into()).send().await;
    let Err(error) = ended else { return };
    s3(fuzzing::classify_s3("PutObject", &error, destination), status);
}

async fn complete(bench: &Bench, destination: &Destination, status: u16) {
    let ended = bench.s3.complete_multipart_upload().bucket("bucket").key("key").upload_id("u").send().await;
    let Err(error) = ended else { return };
    s3(fuzzing::classify_s3("CompleteMultipartUpload", &error, destination), status);
}

fn s3((failure, ambiguous): (Failure, bool), status: u16) {
    readable(&failure);
    // What was not refused may have taken effect.
    assert!(ambiguous || (300..500).contains(&status) || status == 501, "{failure:?}");
    assert!(failure.learnt_region.is_none() || failure.reason == Reason::WrongRegion, "{failure:?}");
    if let Some(region) = &failure.learnt_region {
        assert!(Region::parse(region.as_str()).is_ok(), "{region:?}");
    }
    // No answer of a store is a fault of the worker's identity, or of consign.
    let not_theirs = [Class::Defect, Class::Interrupted].contains(&failure.class());
    assert!(!not_theirs && failure.reason != Reason::IdentityDenied, "{failure:?}");
}

async fn staged(bench: &Bench) {
    let Err(error) = bench.s3.get_object().bucket("staging").key("key").send().await else { return };
    let failure = fuzzing::classify_staging(&error);
    readable(&failure);
    // No customer is at fault for the platform's own bucket.
    assert_ne!(failure.class(), Class::Destination, "{failure:?}");
}

async fn assume(bench: &Bench) {
    let call = bench.sts.assume_role().role_arn("arn:aws:iam::123456789012:role/r").role_session_name("oracle");
    let Err(error) = call.send().await else { return };
    let failure = fuzzing::classify_sts(&error, &WITH_ROLE).expect("a destination with a role");
    readable(&failure);
    assert!(fuzzing::classify_sts(&error, &WITH_KEY).is_none());
    let theirs = [
        Reason::AssumeRoleDenied,
        Reason::IdentityDenied,
        Reason::ClockSkew,
        Reason::Throttled,
        Reason::StsUnavailable,
    ];
    assert!(theirs.contains(&failure.reason), "{failure:?}");
}

/// What a person reads is bounded, and on one line: it goes to logs, headers and outcomes.
fn readable(failure: &Failure) {
    for text in [&failure.message, &failure.hint].into_iter().chain(&failure.aws_request_id) {
        assert!(
            text.chars().count() <= 3000,
            "{} characters: {}",
            text.len(),
            &text.chars().take(200).collect::<String>()
        );
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}
