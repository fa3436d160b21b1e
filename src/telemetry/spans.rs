//! The spans of one job's way, named as OpenTelemetry names messaging and S3
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/>, <https://opentelemetry.io/docs/specs/semconv/object-stores/s3/>).
//!
//! They are made only where traces are sent somewhere, and never become log lines. No URL and no external id is in them.

use std::collections::BTreeMap;

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::domain::outcome::Failure;

/// The target of all of them; telemetry keeps them from the log by it.
pub(super) const TARGET: &str = "consign::trace";

/// A message that came: with a job to be worked on, one that is at work or was delivered already, or none.
#[derive(Debug)]
pub struct Message<'a> {
    /// `rabbitmq`, or what else the queue is.
    pub system: &'static str,
    /// The exchange it came by.
    pub exchange: &'a str,
    /// Its routing key.
    pub routing_key: &'a str,
    /// The id of the job; empty where it can't be read.
    pub job_id: &'a str,
    /// The id of the destination; empty where it can't be read.
    pub destination: &'a str,
    /// `traceparent` and `tracestate` are looked for here.
    pub headers: &'a BTreeMap<String, String>,
}

/// The place of one job in its trace.
#[derive(Debug)]
pub struct Trace {
    span: Span,
    lines: Span,
}

impl Trace {
    /// A message is about to be processed; the parent of its span is the producer's `traceparent`.
    pub fn of(message: &Message<'_>) -> Self {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(message.headers));
        let span = process(message);
        let id = if span.is_disabled() {
            parent.span().span_context().trace_id()
        } else {
            // Fails only where no exporter is.
            let _ = span.set_parent(parent);
            span.context().span().span_context().trace_id()
        };
        if id == opentelemetry::trace::TraceId::INVALID {
            return Self { span, lines: Span::none() };
        }
        // Of the highest level, so that it is there whatever the log's filter keeps.
        Self { span, lines: tracing::error_span!(target: "consign::domain::job", parent: None, "job", trace_id = %id) }
    }

    /// Runs the work on the job. Log lines from in there carry the id of the trace, with or without an exporter.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> T {
        Box::pin(work).instrument(self.span).instrument(self.lines).await
    }
}

fn process(message: &Message<'_>) -> Span {
    tracing::info_span!(
        target: TARGET,
        parent: None,
        "process",
        otel.name = format!("process {}", message.exchange),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = message.system,
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = message.exchange,
        messaging.rabbitmq.destination.routing_key = message.routing_key,
        messaging.message.id = message.job_id,
        consign.destination = message.destination,
        consign.outcome = Empty,
        error.type = Empty,
    )
}

/// How the job ended, for the span in which [`Trace::run`] runs it: call it from there.
pub fn ended(outcome: &str, failure: Option<&Failure>) {
    let span = Span::current();
    span.record("consign.outcome", outcome);
    if let Some(failure) = failure {
        fail(&span, failure.reason.as_str());
    }
}

/// The settlement of a message.
pub fn settle(system: &'static str, exchange: &str, action: &str) -> Span {
    tracing::info_span!(
        target: TARGET,
        "settle",
        otel.name = format!("settle {exchange}"),
        otel.kind = "client",
        otel.status_code = Empty,
        messaging.system = system,
        messaging.operation.name = action,
        messaging.operation.type = "settle",
        messaging.destination.name = exchange,
        error.type = Empty,
    )
}

/// Getting a session for a destination, from the cache or from STS.
pub fn session(destination: &str) -> Span {
    tracing::info_span!(
        target: TARGET,
        "session",
        consign.destination = destination,
        otel.status_code = Empty,
        error.type = Empty
    )
}

/// Opening a source.
pub fn source(scheme: &str) -> Span {
    tracing::info_span!(target: TARGET, "source", url.scheme = scheme, otel.status_code = Empty, error.type = Empty)
}

/// What a call of S3 is about.
#[derive(Debug)]
pub struct Object<'a> {
    /// The bucket.
    pub bucket: &'a str,
    /// The key, with its prefix.
    pub key: &'a str,
    /// The upload it belongs to, if any.
    pub upload_id: Option<&'a str>,
    /// The part, if it is one; 1 is the first.
    pub part: Option<u32>,
}

/// A call of S3 by its operation, repetitions included.
pub fn s3(operation: &'static str, object: &Object<'_>) -> Span {
    tracing::info_span!(
        target: TARGET,
        "s3",
        otel.name = format!("S3/{operation}"),
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system = "aws-api",
        rpc.service = "S3",
        rpc.method = operation,
        aws.s3.bucket = object.bucket,
        aws.s3.key = object.key,
        aws.s3.upload_id = object.upload_id,
        // As the layer takes numbers; unsigned ones would become text.
        aws.s3.part_number = object.part.map(i64::from),
        error.type = Empty,
    )
}

/// Runs `work` in a span, which says so when it failed.
pub async fn within<T>(span: Span, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // Boxed: the type of a whole transfer is as deep as the compiler follows.
    let ended = Box::pin(work).instrument(span.clone()).await;
    if let Err(failure) = &ended {
        fail(&span, failure.reason.as_str());
    }
    ended
}

/// Marks a span as failed, for this reason.
pub fn fail(span: &Span, reason: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", reason);
}

struct Carrier<'a>(&'a BTreeMap<String, String>);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
