use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use futures_util::TryStreamExt as _;

use super::*;
use crate::source::tests::scripted::{ResponseStep, ScriptedOrigin, ranged_response, response};

const TEXT: &[u8] = b"0123456789";
const WHOLE: [(&str, &str); 2] = [("content-length", "10"), ("etag", "\"v1\"")];

pub(in crate::source) fn client(origin: &ScriptedOrigin) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::for_tests())
        .endpoint_url(format!("http://{}", origin.address))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

fn staging(origin: &ScriptedOrigin) -> S3Source {
    let limits = ReadLimits { first_reopen_wait: Duration::from_millis(2), ..ReadLimits::new(0) };
    S3Source::new(
        client(origin),
        vec![StagingPlace::parse("staging", "", None).unwrap()],
        limits,
        Arc::new(Metrics::new(1)),
    )
}

async fn read(source: &S3Source, bucket: &str) -> Result<Vec<u8>, Failure> {
    let opened = source.open(&BucketName::parse(bucket).unwrap(), "a b/c.csv", SourceReader::Inline).await?;
    let chunks: Vec<_> = opened.chunks.try_collect().await?;
    Ok(chunks.concat())
}

fn error(status: u16, code: &str) -> Vec<ResponseStep> {
    let body = format!("<Error><Code>{code}</Code><Message>m</Message><RequestId>R1</RequestId></Error>");
    response(status, &[("content-type", "application/xml"), ("x-amz-request-id", "R1")], body.as_bytes())
}

#[tokio::test]
async fn the_whole_object_is_read() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &WHOLE, TEXT)).await;
    let opened =
        staging(&origin).open(&BucketName::parse("staging").unwrap(), "a b/c.csv", SourceReader::Inline).await.unwrap();
    assert_eq!((opened.length, opened.strong_etag(), opened.resumable), (Some(10), Some("\"v1\""), true));
    assert_eq!(opened.chunks.try_collect::<Vec<_>>().await.unwrap().concat(), TEXT);
    let head = &origin.heads()[0];
    assert!(head.starts_with("GET /staging/a%20b/c.csv"), "{head}");
    assert!(!head.contains("x-amz-checksum-mode"), "{head}");
}

#[tokio::test]
async fn the_encoding_and_the_end_mark_of_an_object_are_reported() {
    let encoded = [("content-length", "10"), ("content-encoding", "gzip")];
    let chunked = b"a\r\n0123456789\r\n0\r\n\r\n";
    for (headers, body, expected) in [
        (&encoded[..], TEXT, (Some(10), false, Some("gzip"))),
        (&[("transfer-encoding", "chunked")], &chunked[..], (None, true, None)),
        (&[], TEXT, (None, false, None)),
    ] {
        let headers: &'static [(&str, &str)] = headers.to_vec().leak();
        let origin = ScriptedOrigin::start(move |_, _| response(200, headers, body)).await;
        let opened =
            staging(&origin).open(&BucketName::parse("staging").unwrap(), "k", SourceReader::Inline).await.unwrap();
        assert_eq!((opened.length, opened.end_marked, opened.content_encoding.as_deref()), expected, "{headers:?}");
        assert_eq!(opened.chunks.try_collect::<Vec<_>>().await.unwrap().concat(), TEXT);
    }
    let part = [("content-length", "10"), ("content-range", "bytes 0-9/20")];
    let origin = ScriptedOrigin::start(move |_, _| response(206, &part, TEXT)).await;
    assert_eq!(read(&staging(&origin), "staging").await.unwrap_err().reason, Reason::SourceUnavailable);
}

#[tokio::test]
async fn each_request_is_counted_by_its_status() {
    let origin = ScriptedOrigin::start(|number, _| match number {
        0 => response(200, &WHOLE, TEXT),
        1 => error(404, "NoSuchKey"),
        _ => error(503, "SlowDown"),
    });
    let origin = origin.await;
    let source = staging(&origin);
    for _ in 0..3 {
        let _ = read(&source, "staging").await;
    }
    let (_, text) = source.metrics.render();
    for status in ["2xx", "4xx", "5xx"] {
        let line = format!("consign_s3_requests_total{{operation=\"GetObject\",status=\"{status}\"}} 1\n");
        assert!(text.contains(&line), "{line}{text}");
    }
}

#[tokio::test]
async fn other_buckets_are_forbidden_without_a_request() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &WHOLE, TEXT)).await;
    let refused = read(&staging(&origin), "customer").await.unwrap_err();
    assert_eq!((refused.reason, refused.hint.as_str()), (Reason::SourceForbidden, "add customer to [[source.s3]]"));
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn a_broken_connection_resumes_with_a_range_of_the_same_object() {
    let origin = ScriptedOrigin::start(|number, head| {
        if number == 0 {
            return response(200, &WHOLE, &TEXT[..4]);
        }
        assert!(head.contains("range: bytes=4-\r\n") && head.contains("if-match: \"v1\"\r\n"), "{head}");
        response(206, &[("content-length", "6"), ("content-range", "bytes 4-9/10"), ("etag", "\"v1\"")], &TEXT[4..])
    });
    let origin = origin.await;
    assert_eq!(read(&staging(&origin), "staging").await.unwrap(), TEXT);
    assert_eq!(origin.heads().len(), 2);
}

#[tokio::test]
async fn a_different_object_is_never_appended() {
    for (status, code, reason) in [
        (412, "PreconditionFailed", Reason::SourceChanged),
        (416, "InvalidRange", Reason::SourceChanged),
        (404, "NoSuchKey", Reason::SourceNotFound),
    ] {
        let script =
            move |number, _: &str| if number == 0 { response(200, &WHOLE, &TEXT[..4]) } else { error(status, code) };
        let origin = ScriptedOrigin::start(script).await;
        assert_eq!(read(&staging(&origin), "staging").await.unwrap_err().reason, reason, "{code}");
    }
    let whole_again = ScriptedOrigin::start(|_, _| response(200, &WHOLE, &TEXT[..4])).await;
    assert_eq!(read(&staging(&whole_again), "staging").await.unwrap_err().reason, Reason::SourceUnavailable);
}

#[tokio::test]
async fn each_refusal_has_its_reason() {
    for (status, code, reason) in [
        (404, "NoSuchKey", Reason::SourceNotFound),
        (404, "NoSuchBucket", Reason::SourceNotFound),
        (404, "", Reason::SourceNotFound),
        (403, "AccessDenied", Reason::SourceDenied),
        (403, "", Reason::SourceDenied),
        (403, "InvalidObjectState", Reason::SourceDenied),
        (403, "RequestTimeTooSkewed", Reason::ClockSkew),
        (403, "InvalidAccessKeyId", Reason::IdentityDenied),
        (400, "ExpiredToken", Reason::SourceUnavailable),
        (400, "ThrottlingException", Reason::SourceUnavailable),
        (400, "SomethingNew", Reason::Unclassified),
        (429, "", Reason::SourceUnavailable),
        (500, "InternalError", Reason::SourceUnavailable),
        (503, "SlowDown", Reason::SourceUnavailable),
    ] {
        let origin =
            ScriptedOrigin::start(
                move |_, _| if code.is_empty() { response(status, &[], b"") } else { error(status, code) },
            );
        let origin = origin.await;
        let failure = read(&staging(&origin), "staging").await.unwrap_err();
        assert_eq!(failure.reason, reason, "{status} {code}: {}", failure.message);
        assert!(failure.message.starts_with("s3://staging/a b/c.csv "), "{}", failure.message);
        assert_eq!(failure.aws_request_id.is_some(), !code.is_empty());
    }
}

#[tokio::test]
async fn a_web_page_of_a_proxy_is_not_a_refusal() {
    let html = [("content-type", "text/html"), ("content-length", "0")];
    let origin = ScriptedOrigin::start(move |_, _| response(403, &html, b"")).await;
    assert_eq!(read(&staging(&origin), "staging").await.unwrap_err().reason, Reason::SourceUnavailable);
}

#[tokio::test]
async fn an_unreachable_store_is_unavailable() {
    let gone = staging(&ScriptedOrigin::start(|_, _| Vec::new()).await);
    tokio::task::yield_now().await;
    let failure = read(&gone, "staging").await.unwrap_err();
    assert_eq!(failure.reason, Reason::SourceUnavailable, "{}", failure.message);
}

fn mark(validator: &str, length: Option<u64>) -> SourceMark {
    SourceMark { validator: validator.into(), length }
}

/// Returns the bytes from `from` on of the object that `mark` identifies.
async fn rest(origin: &ScriptedOrigin, mark: &SourceMark, from: u64) -> Result<Option<Vec<u8>>, Failure> {
    match staging(origin).open_at(&BucketName::parse("staging").unwrap(), "k", SourceReader::Inline, mark, from).await?
    {
        Some(opened) => Ok(Some(opened.chunks.try_collect::<Vec<_>>().await?.concat())),
        None => Ok(None),
    }
}

#[tokio::test]
async fn the_same_object_resumes_at_the_byte() {
    let origin = ScriptedOrigin::start(|_, head| ranged_response(head, "\"v1\"", TEXT)).await;
    for length in [Some(10), None] {
        for from in 0..10 {
            let read = rest(&origin, &mark("\"v1\"", length), from).await.unwrap().unwrap();
            assert_eq!(read, &TEXT[usize::try_from(from).unwrap()..], "from {from}");
        }
    }
    let head = &origin.heads()[4];
    assert!(head.contains("range: bytes=4-\r\n") && head.contains("if-match: \"v1\"\r\n"), "{head}");
}

#[tokio::test]
async fn a_different_object_is_not_resumed() {
    let part = |etag, range| [("content-length", "6"), ("etag", etag), ("content-range", range)];
    let responses = [
        error(412, "PreconditionFailed"),
        error(416, "InvalidRange"),
        response(200, &WHOLE, TEXT),
        response(206, &part("\"v2\"", "bytes 4-9/10"), &TEXT[4..]),
        response(206, &part("\"v1\"", "bytes 4-9/12"), &TEXT[4..]),
        response(206, &part("\"v1\"", "bytes 3-9/10"), &TEXT[4..]),
        response(206, &[("content-length", "6"), ("content-range", "bytes 4-9/10")], &TEXT[4..]),
    ];
    for steps in responses {
        let shown = format!("{steps:?}");
        let origin = ScriptedOrigin::start(move |_, _| steps.clone()).await;
        assert_eq!(rest(&origin, &mark("\"v1\"", Some(10)), 4).await.unwrap(), None, "{shown}");
    }
    let origin = ScriptedOrigin::start(|_, head| ranged_response(head, "\"v1\"", TEXT)).await;
    for (mark, from) in [(mark("\"v2\"", Some(10)), 0), (mark("\"v1\"", Some(9)), 0), (mark("\"v2\"", Some(10)), 4)] {
        assert_eq!(rest(&origin, &mark, from).await.unwrap(), None, "{mark:?} from {from}");
    }
    let tagless = ScriptedOrigin::start(|_, _| response(200, &[("content-length", "10")], TEXT)).await;
    assert_eq!(rest(&tagless, &mark("\"v1\"", Some(10)), 0).await.unwrap(), None);
}

#[tokio::test]
async fn a_refused_range_is_a_failure() {
    for (status, code, reason) in [
        (404, "NoSuchKey", Reason::SourceNotFound),
        (403, "AccessDenied", Reason::SourceDenied),
        (503, "SlowDown", Reason::SourceUnavailable),
    ] {
        let origin = ScriptedOrigin::start(move |_, _| error(status, code)).await;
        assert_eq!(rest(&origin, &mark("\"v1\"", Some(10)), 4).await.unwrap_err().reason, reason, "{code}");
    }
    let origin = ScriptedOrigin::start(|_, head| ranged_response(head, "\"v1\"", TEXT)).await;
    let other = BucketName::parse("customer").unwrap();
    let refused = staging(&origin).open_at(&other, "k", SourceReader::Inline, &mark("\"v1\"", Some(10)), 4).await;
    assert_eq!(refused.err().map(|failure| failure.reason), Some(Reason::SourceForbidden));
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn a_broken_range_resumes_with_the_same_object_only() {
    for (second, expected) in [("\"v1\"", Ok(Some(TEXT[4..].to_vec()))), ("\"v2\"", Err(Reason::SourceChanged))] {
        // Like a store that ignores If-Match: the tag in the response differs.
        let origin = ScriptedOrigin::start(move |number, head| {
            let etag = if number == 0 { "\"v1\"" } else { second };
            let mut steps = ranged_response(&head.replace("if-match", "unknown"), etag, TEXT);
            if let (0, Some(ResponseStep::Send(body))) = (number, steps.last_mut()) {
                body.truncate(3);
            }
            steps
        });
        let origin = origin.await;
        let read = rest(&origin, &mark("\"v1\"", Some(10)), 4).await.map_err(|failure| failure.reason);
        assert_eq!(read, expected);
        assert!(origin.heads()[1].contains("range: bytes=7-\r\n"), "{}", origin.heads()[1]);
    }
}
