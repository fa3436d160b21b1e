//! Traces: a collector gets the way of a job, below its producer's span; and without one nothing
//! changes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes, free_port, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const LIMIT: Duration = Duration::from_secs(30);
const ERROR: i32 = 2;

/// An OTLP receiver that keeps what it gets.
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    raw: Arc<Mutex<Vec<u8>>>,
    url: String,
}

impl Collector {
    async fn start() -> Self {
        let (spans, raw) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (kept, bytes) = (spans.clone(), raw.clone());
        let take = post(async move |body: Bytes| {
            bytes.lock().unwrap().extend_from_slice(&body);
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            kept.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", take)).await });
        Self { spans, raw, url }
    }

    /// The spans of so many messages with this job, once they have come.
    async fn messages(&self, job_id: &str, count: usize) -> Vec<Span> {
        until(&format!("{count} spans of {job_id} come"), LIMIT, async || {
            let spans = self.spans.lock().unwrap();
            let of = |span: &&Span| text(span, "messaging.message.id") == job_id;
            let found: Vec<_> = spans.iter().filter(of).cloned().collect();
            (found.len() >= count).then_some(found)
        })
        .await
    }

    /// The spans of a job, once its own has come: the one that ends last.
    async fn of(&self, job_id: &str) -> Vec<Span> {
        let root = until(&format!("the span of {job_id} comes"), LIMIT, async || {
            let spans = self.spans.lock().unwrap();
            spans.iter().find(|span| text(span, "messaging.message.id") == job_id).cloned()
        })
        .await;
        let spans = self.spans.lock().unwrap();
        let below = spans.iter().filter(|span| span.parent_span_id == root.span_id && span.trace_id == root.trace_id);
        std::iter::once(root.clone()).chain(below.cloned()).collect()
    }
}

fn value<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()
}

fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    match value(span, key) {
        Some(Value::StringValue(text)) => text,
        _ => "",
    }
}

fn number(span: &Span, key: &str) -> Option<i64> {
    match value(span, key)? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn traceparent(flags: &str) -> [(&'static str, String); 1] {
    [("traceparent", format!("00-{TRACE}-{PARENT}-{flags}"))]
}

async fn fixture(word: &str, endpoint: &str) -> AcmeFixture {
    let (mut site, s3) = site(word).await;
    site.set("log.otlp_endpoint", endpoint).environment("OTEL_BSP_SCHEDULE_DELAY", "200");
    let worker = site.worker().await;
    AcmeFixture { site, s3, worker }
}

#[tokio::test]
async fn a_collector_gets_the_way_of_a_job() {
    let collector = Collector::start().await;
    let fixture = fixture("traces", &collector.url).await;
    let prefix = fixture.site.broker.prefix.clone();
    let url = fixture.site.file("big", &bytes(1, 20 * MIB));
    let query = fixture.site.file("small", b"hello");
    fixture.site.broker.schedule_with_headers(&job("big", &url, "acme", "big"), &traceparent("01")).await;
    let parts = fixture.delivered("big").await["parts"].as_i64().unwrap();
    assert!(parts >= 3, "{parts}");
    let spans = collector.of("big").await;

    let root = &spans[0];
    assert_eq!(hex::encode(&root.trace_id), TRACE);
    assert_eq!((hex::encode(&root.parent_span_id).as_str(), root.kind), (PARENT, SpanKind::Consumer as i32));
    assert_eq!(root.name, format!("process {prefix}"));
    let said = ["messaging.system", "messaging.operation.type", "messaging.destination.name", "consign.outcome"];
    assert_eq!(said.map(|key| text(root, key)), ["rabbitmq", "process", prefix.as_str(), "delivered"]);
    assert_eq!(text(root, "messaging.rabbitmq.destination.routing_key"), "job.scheduled.acme");

    let sent = named(&spans, "S3/UploadPart");
    let mut numbers: Vec<_> = sent.iter().filter_map(|span| number(span, "aws.s3.part_number")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=parts).collect::<Vec<_>>(), "one span for each part");
    let complete = named(&spans, "S3/CompleteMultipartUpload")[0];
    for span in &sent {
        assert_eq!((text(span, "aws.s3.bucket"), text(span, "aws.s3.key")), ("acme", "in/big"));
        let id = text(span, "aws.s3.upload_id");
        assert!(!id.is_empty() && id == text(complete, "aws.s3.upload_id"), "{span:?}");
        assert_eq!(span.kind, SpanKind::Client as i32);
    }
    for (name, how_many) in [("session", 1), ("source", 1), ("S3/CreateMultipartUpload", 1)] {
        assert_eq!(named(&spans, name).len(), how_many, "{name}");
    }
    assert_eq!(text(named(&spans, "source")[0], "url.scheme"), "file");
    let settle = named(&spans, &format!("settle {prefix}"));
    assert_eq!(settle.iter().map(|span| text(span, "messaging.operation.type")).collect::<Vec<_>>(), ["settle"]);

    // One that fails says so, and the trace of one without a parent begins here.
    fixture.site.broker.schedule(&job("gone", &format!("{query}-gone"), "acme", "gone")).await;
    fixture.failed("gone", "source_not_found").await;
    let spans = collector.of("gone").await;
    assert!(spans[0].parent_span_id.is_empty() && hex::encode(&spans[0].trace_id) != TRACE);
    let source = named(&spans, "source")[0];
    for span in [&spans[0], source] {
        assert_eq!((span.status.as_ref().unwrap().code, text(span, "error.type")), (ERROR, "source_not_found"));
    }

    // Who began the trace decided that it is not recorded.
    fixture.site.broker.schedule_with_headers(&job("unsampled", &query, "acme", "unsampled"), &traceparent("00")).await;
    fixture.delivered("unsampled").await;
    fixture.site.broker.schedule_with_headers(&job("last", &query, "acme", "last"), &traceparent("01")).await;
    fixture.delivered("last").await;
    let spans = collector.of("last").await;
    assert_eq!(named(&spans, "S3/PutObject").len(), 1);
    let all = collector.spans.lock().unwrap().clone();
    assert!(!all.iter().any(|span| text(span, "messaging.message.id") == "unsampled"));
    assert!(!String::from_utf8_lossy(&collector.raw.lock().unwrap()).contains("marked-secret"));

    // From the log to the trace: every line of the job carries it.
    let log = fixture.worker.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines: Vec<_> = lines.filter(|line| line["job_id"] == "big").collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line["span"]["trace_id"] == TRACE), "{lines:?}");
    fixture.close().await;
}

#[tokio::test]
async fn a_message_that_is_refused_joined_or_answered_from_memory_has_a_span_of_its_own() {
    let collector = Collector::start().await;
    let fixture = fixture("traces-short", &collector.url).await;
    let url = fixture.site.file("f", b"hello");
    fixture.site.broker.schedule_with_headers(&job("bad", &url, "nobody", "k"), &traceparent("01")).await;
    let refused = collector.messages("bad", 1).await.remove(0);
    assert_eq!(
        (hex::encode(&refused.trace_id).as_str(), hex::encode(&refused.parent_span_id).as_str()),
        (TRACE, PARENT)
    );
    assert_eq!((refused.status.as_ref().unwrap().code, text(&refused, "consign.outcome")), (ERROR, "failed"));
    let said = ["error.type", "consign.destination"].map(|key| text(&refused, key));
    assert_eq!(said, ["unknown_destination", "nobody"]);
    let settled = collector.of("bad").await;
    assert_eq!(named(&settled, &format!("settle {}", fixture.site.broker.prefix)).len(), 1);

    fixture.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(2)));
    for _ in 0..2 {
        fixture.site.broker.schedule_with_headers(&job("twice", &url, "acme", "twice"), &traceparent("01")).await;
    }
    let outcomes = |spans: &[Span]| {
        let mut outcomes: Vec<_> = spans.iter().map(|span| text(span, "consign.outcome").to_owned()).collect();
        outcomes.sort_unstable();
        outcomes
    };
    assert_eq!(outcomes(&collector.messages("twice", 2).await), ["delivered", "joined"]);
    fixture.site.broker.schedule_with_headers(&job("twice", &url, "acme", "twice"), &traceparent("01")).await;
    assert_eq!(outcomes(&collector.messages("twice", 3).await), ["delivered", "delivered", "joined"]);
    assert_eq!(fixture.s3.calls("PutObject").len(), 1);
    fixture.close().await;
}

#[tokio::test]
async fn the_last_spans_are_sent_when_the_worker_ends() {
    let collector = Collector::start().await;
    let (mut site, s3) = site("traces-end").await;
    // Longer than the test: what comes, comes at the end.
    site.set("log.otlp_endpoint", collector.url.as_str()).environment("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("one", b"hello").await;
    fixture.delivered("one").await;
    assert!(collector.spans.lock().unwrap().is_empty());
    fixture.worker.terminate();
    assert!(fixture.worker.exit(LIMIT).await.success());
    assert_eq!(named(&collector.of("one").await, "S3/PutObject").len(), 1);
}

#[tokio::test]
async fn a_dead_collector_changes_nothing() {
    let fixture = fixture("traces-dead", &format!("http://127.0.0.1:{}", free_port().await)).await;
    let url = fixture.site.file("f", b"hello");
    fixture.site.broker.schedule_with_headers(&job("one", &url, "acme", "one"), &traceparent("01")).await;
    fixture.delivered("one").await;
    until("the log says it", LIMIT, async || {
        fixture.worker.log().contains("log.otlp_endpoint does not accept traces").then_some(())
    })
    .await;
    fixture.site.broker.schedule_with_headers(&job("two", &url, "acme", "two"), &traceparent("01")).await;
    fixture.delivered("two").await;
    let warnings = fixture.worker.log().matches("log.otlp_endpoint does not accept traces").count();
    assert_eq!(warnings, 1, "it is said once");
    fixture.close().await;
}
