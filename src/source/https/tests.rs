use std::process::Command;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::source::tests::scripted::{ResponseStep, ScriptedOrigin, ranged_response, response};

const OPEN: UrlGuard = UrlGuard { allow_http: true, allow_private_networks: true, allow_networks: Vec::new() };
/// The default, plus http, which the scripted origin speaks.
const STRICT: UrlGuard = UrlGuard { allow_http: true, allow_private_networks: false, allow_networks: Vec::new() };
const TEXT: &[u8] = b"0123456789";

fn limits() -> ReadLimits {
    ReadLimits { first_reopen_wait: Duration::from_millis(2), ..ReadLimits::new(0) }
}

fn http() -> HttpSource {
    HttpSource::new(OPEN, limits()).unwrap()
}

/// Returns a strict client that resolves `origin.test` to the scripted origin, as if it were on the
/// internet.
fn strict(origin: &ScriptedOrigin) -> HttpSource {
    let builder = client_builder(STRICT).resolve("origin.test", origin.address);
    HttpSource::with_builder(builder, STRICT, limits()).unwrap()
}

fn url_of(origin: &ScriptedOrigin) -> Url {
    Url::parse(&format!("http://origin.test:{}/f?sig=hidden", origin.address.port())).unwrap()
}

async fn read(http: &HttpSource, url: &Url) -> Result<Vec<u8>, Failure> {
    let chunks: Vec<_> = http.open(url).await?.chunks.try_collect().await?;
    Ok(chunks.concat())
}

/// Returns the failure of reading. Its message must not contain the query.
async fn fails(http: &HttpSource, url: &Url) -> Failure {
    let failure = read(http, url).await.unwrap_err();
    assert!(!failure.message.contains("hidden"), "{}", failure.message);
    failure
}

const RANGES: [(&str, &str); 3] = [("accept-ranges", "bytes"), ("etag", "\"v1\""), ("content-length", "10")];

/// Announces ten bytes, sends four, and closes.
fn cut(headers: &[(&str, &str)]) -> Vec<ResponseStep> {
    response(200, headers, &TEXT[..4])
}

#[tokio::test]
async fn the_whole_content_is_read_as_sent() {
    let origin = ScriptedOrigin::start(|_, _| {
        response(200, &[("content-length", "10"), ("etag", "W/\"x\""), ("content-encoding", "gzip")], TEXT)
    });
    let origin = origin.await;
    let opened = http().open(&origin.url("/a?b=c")).await.unwrap();
    assert_eq!((opened.length, opened.strong_etag()), (Some(10), None));
    assert_eq!((opened.etag.as_deref(), opened.content_encoding.as_deref()), (Some("W/\"x\""), Some("gzip")));
    assert_eq!(opened.chunks.try_collect::<Vec<_>>().await.unwrap().concat(), TEXT);
    let head = &origin.heads()[0];
    assert!(head.starts_with("GET /a?b=c HTTP/1.1") && head.contains("accept-encoding: identity"), "{head}");
}

#[tokio::test]
async fn each_status_has_its_reason() {
    let origin = ScriptedOrigin::start(|_, head| {
        let status = head[5..8].parse().unwrap();
        response(status, &[("retry-after", "7"), ("content-length", "0")], b"")
    });
    let origin = origin.await;
    for (status, reason, retry_after) in [
        (401, Reason::SourceDenied, None),
        (403, Reason::SourceDenied, None),
        (404, Reason::SourceNotFound, None),
        (429, Reason::SourceUnavailable, Some(Duration::from_secs(7))),
        (500, Reason::SourceUnavailable, Some(Duration::from_secs(7))),
    ] {
        let failure = fails(&http(), &origin.url(&format!("/{status}?sig=hidden"))).await;
        assert_eq!((failure.reason, failure.retry_after), (reason, retry_after), "{status}");
    }
    assert_eq!(origin.heads().len(), 5, "only the queue retries");
}

#[tokio::test]
async fn three_redirects_are_followed_and_a_fourth_is_refused() {
    let origin = ScriptedOrigin::start(|_, head| match head.split(' ').nth(1).unwrap() {
        "/0" => response(200, &[("content-length", "10")], TEXT),
        path => {
            let left: u32 = path[1..].parse().unwrap();
            response(302, &[("location", &format!("/{}", left - 1)), ("content-length", "0")], b"")
        }
    });
    let origin = origin.await;
    assert_eq!(read(&http(), &origin.url("/3")).await.unwrap(), TEXT);
    assert_eq!(fails(&http(), &origin.url("/4")).await.reason, Reason::Unclassified);
}

#[tokio::test]
async fn a_redirect_into_the_private_network_is_refused() {
    for target in [
        "http://169.254.169.254/latest/meta-data?hidden",
        "http://10.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://localhost:1/",
        "http://user:hidden@origin.test/",
        "ftp://origin.test/",
        "file:///etc/passwd",
    ] {
        let origin = ScriptedOrigin::start(move |_, _| response(307, &[("location", target)], b"")).await;
        let failure = fails(&strict(&origin), &url_of(&origin)).await;
        assert_eq!(failure.reason, Reason::SourceForbidden, "{target}: {}", failure.message);
        let other = !target.starts_with("http:");
        assert_eq!(
            failure.message.contains("only https and http are followed"),
            other,
            "{target}: {}",
            failure.message
        );
        assert_eq!(origin.heads().len(), 1);
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_loopback_is_refused() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &[], TEXT)).await;
    let http = HttpSource::new(STRICT, limits()).unwrap();
    let url = Url::parse(&format!("http://localhost:{}/f", origin.address.port())).unwrap();
    let failure = fails(&http, &url).await;
    assert_eq!(failure.reason, Reason::SourceForbidden);
    assert!(failure.message.contains("loopback"), "{}", failure.message);
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn a_broken_connection_resumes_with_a_range_request() {
    let origin = ScriptedOrigin::start(|number, head| match number {
        0 => cut(&RANGES),
        1 => response(503, &[], b""),
        _ => {
            assert!(head.contains("range: bytes=4-\r\n") && head.contains("if-range: \"v1\"\r\n"), "{head}");
            let headers = [("content-range", "bytes 4-9/10"), ("etag", "\"v1\""), ("content-length", "6")];
            response(206, &headers, &TEXT[4..])
        }
    });
    let origin = origin.await;
    assert_eq!(read(&http(), &origin.url("/f")).await.unwrap(), TEXT);
    assert_eq!(origin.heads().len(), 3);
}

#[tokio::test]
async fn different_content_is_never_appended() {
    type SecondResponse = (u16, &'static [(&'static str, &'static str)], Reason);
    let seconds: [SecondResponse; 5] = [
        (200, &[("etag", "\"v2\""), ("content-length", "10")], Reason::SourceUnavailable),
        (206, &[("etag", "\"v2\""), ("content-range", "bytes 4-9/10")], Reason::SourceUnavailable),
        (206, &[("etag", "\"v1\""), ("content-range", "bytes 4-9/12")], Reason::SourceChanged),
        (206, &[("etag", "\"v1\""), ("content-range", "bytes 0-9/10")], Reason::SourceUnavailable),
        (404, &[], Reason::SourceNotFound),
    ];
    for (status, headers, reason) in seconds {
        let origin = ScriptedOrigin::start(
            move |number, _| if number == 0 { cut(&RANGES) } else { response(status, headers, TEXT) },
        );
        let origin = origin.await;
        assert_eq!(fails(&http(), &origin.url("/f")).await.reason, reason, "{status} {headers:?}");
        assert_eq!(origin.heads().len() > 2, reason == Reason::SourceUnavailable, "{status} {headers:?}");
    }
}

#[tokio::test]
async fn without_ranges_or_a_strong_tag_a_broken_connection_is_a_failure() {
    let cases: [&'static [(&str, &str)]; 4] = [
        &[("content-length", "10"), ("etag", "\"v1\"")],
        &[("content-length", "10"), ("accept-ranges", "bytes")],
        &[("content-length", "10"), ("accept-ranges", "bytes"), ("etag", "W/\"v1\"")],
        &[("content-length", "10"), ("accept-ranges", "none"), ("etag", "\"v1\"")],
    ];
    for headers in cases {
        let origin = ScriptedOrigin::start(move |_, _| cut(headers)).await;
        let failure = fails(&http(), &origin.url("/f?sig=hidden")).await;
        assert_eq!(failure.reason, Reason::SourceUnavailable, "{}", failure.message);
        assert!(failure.message.contains("after 4 bytes"), "{}", failure.message);
        assert_eq!(origin.heads().len(), 1);
    }
}

#[tokio::test]
async fn a_truncated_chunked_body_is_a_failure() {
    let origin =
        ScriptedOrigin::start(|_, _| response(200, &[("transfer-encoding", "chunked")], b"4\r\n0123\r\n")).await;
    assert_eq!(fails(&http(), &origin.url("/f")).await.reason, Reason::SourceUnavailable);
}

/// Each is all that hyper tells about the end of a body.
#[tokio::test]
async fn a_body_that_ends_with_its_connection_has_no_end_mark() {
    let raw = |head: &str, body: &[u8]| vec![ResponseStep::Send([head.as_bytes(), b"\r\n\r\n", body].concat())];
    for (head, body, marked) in [
        ("HTTP/1.0 200 OK", &TEXT[..5], false),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive", &TEXT[..5], false),
        ("HTTP/1.1 200 OK\r\nConnection: close", &TEXT[..5], false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity", &TEXT[..5], false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b"5\r\n01234\r\n0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9", b"5\r\n01234\r\n0\r\n\r\n", true),
    ] {
        let origin = ScriptedOrigin::start(move |_, _| raw(head, body)).await;
        let opened = http().open(&origin.url("/f")).await.unwrap();
        assert_eq!((opened.length, opened.end_marked), (None, marked), "{head}");
        let chunks: Vec<_> = opened.chunks.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), &TEXT[..5], "{head}");
    }
    for (head, body) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", &b"5\r\n01234\r\n"[..]),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b"5\r\n01234\r\n0\r\n"),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked", b"5\r\n01234\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10", &TEXT[..5]),
        ("HTTP/1.0 200 OK\r\nContent-Length: 10", &TEXT[..5]),
    ] {
        let origin = ScriptedOrigin::start(move |_, _| raw(head, body)).await;
        assert_eq!(fails(&http(), &origin.url("/f")).await.reason, Reason::SourceUnavailable, "{head} {body:?}");
    }
}

#[tokio::test]
async fn a_206_that_covers_the_whole_is_the_whole() {
    let answer = |range: &'static str| {
        ScriptedOrigin::start(move |_, _| response(206, &[("content-range", range), ("content-length", "10")], TEXT))
    };
    assert_eq!(read(&http(), &answer("bytes 0-9/10").await.url("/f")).await.unwrap(), TEXT);
    let part = fails(&http(), &answer("bytes 0-9/20").await.url("/f")).await;
    assert_eq!(part.reason, Reason::SourceUnavailable);
}

/// Two servers behind one name with etags of their own: the one that has the content resumes.
#[tokio::test]
async fn another_etag_after_a_break_is_tried_again() {
    let origin = ScriptedOrigin::start(|number, head| match number {
        0 => cut(&RANGES),
        1 => ranged_response(head, "\"node-2\"", TEXT),
        _ => ranged_response(head, "\"v1\"", TEXT),
    });
    assert_eq!(read(&http(), &origin.await.url("/f")).await.unwrap(), TEXT);
}

/// The redirect only ends for a client that sends the cookie back. That is not supported, and said.
#[tokio::test]
async fn cookies_of_a_redirect_are_not_sent_back() {
    let origin = ScriptedOrigin::start(|_, _| {
        response(302, &[("location", "/f"), ("set-cookie", "s=hidden"), ("content-length", "0")], b"")
    });
    let origin = origin.await;
    let failure = fails(&http(), &origin.url("/f")).await;
    assert!(failure.message.contains("cookies"), "{}", failure.message);
    assert!(origin.heads().iter().all(|head| !head.contains("cookie")), "{:?}", origin.heads());
}

#[tokio::test]
async fn silence_is_detected_before_and_after_the_head() {
    let origin = ScriptedOrigin::start(|_, head| {
        let mut steps = if head.contains("/head") { Vec::new() } else { cut(&RANGES) };
        steps.push(ResponseStep::Hang);
        steps
    });
    let origin = origin.await;
    let short = Duration::from_millis(100);
    let http =
        HttpSource::new(OPEN, ReadLimits { response_timeout: short, rate_window: short, ..ReadLimits::new(1 << 20) })
            .unwrap();
    assert_eq!(fails(&http, &origin.url("/head?hidden")).await.reason, Reason::SourceUnavailable);
    assert_eq!(fails(&http, &origin.url("/body?hidden")).await.reason, Reason::SourceSlow);
}

#[tokio::test]
async fn an_unreachable_origin_is_unavailable() {
    let gone = ScriptedOrigin::start(|_, _| Vec::new()).await.url("/f?hidden");
    tokio::task::yield_now().await;
    let failure = fails(&http(), &gone).await;
    assert_eq!(failure.reason, Reason::SourceUnavailable, "{}", failure.message);
}

/// Environment variables belong to the whole process, so a child process reads the source:
/// `reads_with_the_childs_environment`.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_come_from_ssl_cert_file_and_no_proxy_from_the_environment() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let tls = Some(TlsAcceptor::from(Arc::new(config)));
    let origin = ScriptedOrigin::serve(tls, |_, _| response(200, &[("content-length", "10")], TEXT)).await;
    let trusted = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(trusted.path(), made.cert.pem()).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let untrusted = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(untrusted.path(), other.cert.pem()).unwrap();
    for (certificates, expected) in [(&trusted, "read"), (&untrusted, "source_unavailable")] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "source::https::tests::reads_with_the_childs_environment", "--ignored"])
            .env("SSL_CERT_FILE", certificates.path())
            .env_remove("SSL_CERT_DIR")
            .envs(["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy"].map(|name| (name, "http://127.0.0.1:1")))
            .env("CHILD_PORT", origin.address.port().to_string())
            .env("CHILD_EXPECTS", expected);
        let output = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{expected}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }
}

#[tokio::test]
#[ignore = "run by the test above, which sets its environment"]
async fn reads_with_the_childs_environment() {
    let guard = UrlGuard { allow_http: false, ..OPEN };
    let http = HttpSource::new(guard, limits()).unwrap();
    let port = std::env::var("CHILD_PORT").unwrap();
    let ended = match read(&http, &Url::parse(&format!("https://localhost:{port}/")).unwrap()).await {
        Ok(bytes) if bytes == TEXT => "read".to_owned(),
        Ok(_) => "other bytes".to_owned(),
        Err(failure) => failure.reason.as_str().to_owned(),
    };
    assert_eq!(ended, std::env::var("CHILD_EXPECTS").unwrap());
}

fn mark(validator: &str, length: Option<u64>) -> SourceMark {
    SourceMark { validator: validator.into(), length }
}

/// Returns the bytes from `from` on of the content that `mark` identifies.
async fn rest(origin: &ScriptedOrigin, mark: &SourceMark, from: u64) -> Result<Option<Vec<u8>>, Failure> {
    match http().open_at(&origin.url("/f?sig=hidden"), mark, from).await? {
        Some(opened) => Ok(Some(opened.chunks.try_collect::<Vec<_>>().await?.concat())),
        None => Ok(None),
    }
}

#[tokio::test]
async fn only_ranges_and_a_strong_tag_are_resumable() {
    let cases: [(&'static [(&str, &str)], bool); 5] = [
        (&RANGES, true),
        (&[("accept-ranges", "bytes"), ("etag", "\"v1\"")], true),
        (&[("content-length", "10"), ("etag", "\"v1\"")], false),
        (&[("content-length", "10"), ("accept-ranges", "bytes")], false),
        (&[("content-length", "10"), ("accept-ranges", "bytes"), ("etag", "W/\"v1\"")], false),
    ];
    for (headers, resumable) in cases {
        let origin = ScriptedOrigin::start(move |_, _| response(200, headers, TEXT)).await;
        assert_eq!(http().open(&origin.url("/f")).await.unwrap().resumable, resumable, "{headers:?}");
        let again = rest(&origin, &mark("\"v1\"", Some(10)), 0).await.unwrap();
        assert_eq!(again.as_deref(), resumable.then_some(TEXT), "{headers:?}");
    }
}

#[tokio::test]
async fn the_same_content_resumes_at_the_byte() {
    let origin = ScriptedOrigin::start(|_, head| ranged_response(head, "\"v1\"", TEXT)).await;
    for length in [Some(10), None] {
        for from in 0..10 {
            let opened = http().open_at(&origin.url("/f"), &mark("\"v1\"", length), from).await.unwrap().unwrap();
            assert_eq!((opened.length, opened.strong_etag()), (Some(10), Some("\"v1\"")));
            let read = opened.chunks.try_collect::<Vec<_>>().await.unwrap().concat();
            assert_eq!(read, &TEXT[usize::try_from(from).unwrap()..], "from {from}");
        }
    }
    let head = &origin.heads()[4];
    assert!(head.contains("range: bytes=4-\r\n") && head.contains("if-range: \"v1\"\r\n"), "{head}");
}

#[tokio::test]
async fn different_content_is_not_resumed() {
    type RangeAnswer = (u16, &'static [(&'static str, &'static str)]);
    let answers: [RangeAnswer; 8] = [
        (200, &[("etag", "\"v2\""), ("content-length", "10"), ("accept-ranges", "bytes")]),
        (206, &[("etag", "\"v2\""), ("content-range", "bytes 4-9/10")]),
        (206, &[("etag", "W/\"v1\""), ("content-range", "bytes 4-9/10")]),
        (206, &[("content-range", "bytes 4-9/10")]),
        (206, &[("etag", "\"v1\""), ("content-range", "bytes 4-11/12")]),
        (206, &[("etag", "\"v1\""), ("content-range", "bytes 0-9/10")]),
        (412, &[("content-length", "0")]),
        (416, &[("content-range", "bytes */3"), ("content-length", "0")]),
    ];
    for (status, headers) in answers {
        let origin = ScriptedOrigin::start(move |_, _| response(status, headers, &TEXT[4..])).await;
        assert_eq!(rest(&origin, &mark("\"v1\"", Some(10)), 4).await.unwrap(), None, "{status} {headers:?}");
        assert_eq!(origin.heads().len(), 1);
    }
    let origin = ScriptedOrigin::start(|_, head| ranged_response(head, "\"v1\"", TEXT)).await;
    for (mark, from) in [(mark("\"v2\"", Some(10)), 0), (mark("\"v1\"", Some(9)), 0), (mark("\"v2\"", Some(10)), 4)] {
        assert_eq!(rest(&origin, &mark, from).await.unwrap(), None, "{mark:?} from {from}");
    }
}

#[tokio::test]
async fn a_refused_range_is_a_failure() {
    for (status, reason) in [
        (404, Reason::SourceNotFound),
        (403, Reason::SourceDenied),
        (503, Reason::SourceUnavailable),
        (418, Reason::Unclassified),
    ] {
        let origin = ScriptedOrigin::start(move |_, _| response(status, &[("content-length", "0")], b"")).await;
        for from in [0, 4] {
            let failure = rest(&origin, &mark("\"v1\"", Some(10)), from).await.unwrap_err();
            assert_eq!(failure.reason, reason, "{status}");
            assert!(!failure.message.contains("hidden"), "{}", failure.message);
        }
    }
}

#[tokio::test]
async fn redirects_of_a_range_request_are_checked() {
    let origin = ScriptedOrigin::start(|_, _| response(302, &[("location", "http://10.0.0.1/")], b"")).await;
    let refused = strict(&origin).open_at(&url_of(&origin), &mark("\"v1\"", Some(10)), 4).await;
    assert_eq!(refused.err().map(|failure| failure.reason), Some(Reason::SourceForbidden));
    let origin = ScriptedOrigin::start(|_, head| match head.split(' ').nth(1).unwrap() {
        "/to" => ranged_response(head, "\"v1\"", TEXT),
        _ => response(307, &[("location", "/to"), ("content-length", "0")], b""),
    });
    assert_eq!(rest(&origin.await, &mark("\"v1\"", Some(10)), 4).await.unwrap().unwrap(), &TEXT[4..]);
}

#[tokio::test]
async fn a_broken_range_resumes_too() {
    let origin = ScriptedOrigin::start(|number, head| {
        let mut steps = ranged_response(head, "\"v1\"", TEXT);
        if let (0, Some(ResponseStep::Send(body))) = (number, steps.last_mut()) {
            body.truncate(3);
        }
        steps
    });
    let origin = origin.await;
    assert_eq!(rest(&origin, &mark("\"v1\"", Some(10)), 4).await.unwrap().unwrap(), &TEXT[4..]);
    assert!(origin.heads()[1].contains("range: bytes=7-\r\n"), "{}", origin.heads()[1]);
}
