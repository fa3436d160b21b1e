//! The spans of a job, named by the OpenTelemetry conventions for messaging and S3
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/>,
//! <https://opentelemetry.io/docs/specs/semconv/object-stores/s3/>).
//!
//! They exist only if traces are exported, and never become log lines. They contain no URL and no
//! external id.

use std::collections::BTreeMap;

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::domain::outcome::Failure;

/// The target of all spans; telemetry excludes it from the log.
pub(super) const TARGET: &str = "consign::trace";

/// The attributes of a received message. It may hold a new job, a duplicate, or no valid job.
#[derive(Debug)]
pub struct MessageAttributes<'a> {
    /// Messaging system, such as `rabbitmq`.
    pub system: &'static str,
    /// Exchange of the message.
    pub exchange: &'a str,
    /// Routing key of the message.
    pub routing_key: &'a str,
    /// Id of the job; empty if it can't be read.
    pub job_id: &'a str,
    /// Id of the destination; empty if it can't be read.
    pub destination: &'a str,
    /// Headers of the message, with `traceparent` and `tracestate`.
    pub headers: &'a BTreeMap<String, String>,
}

/// The spans of one job: the exported one, and the one that adds the trace id to log lines.
#[derive(Debug)]
pub struct Trace {
    span: Span,
    log_span: Span,
}

impl Trace {
    /// Starts the span of a message. Its parent is the producer's `traceparent`.
    pub fn of(message: &MessageAttributes<'_>) -> Self {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderCarrier(message.headers));
        let span = process(message);
        let id = if span.is_disabled() {
            parent.span().span_context().trace_id()
        } else {
            // Fails only without an exporter.
            let _ = span.set_parent(parent);
            span.context().span().span_context().trace_id()
        };
        if id == opentelemetry::trace::TraceId::INVALID {
            return Self { span, log_span: Span::none() };
        }
        // At the highest level, so that every log filter keeps it.
        Self { span, log_span: tracing::error_span!(target: "consign::job", parent: None, "job", trace_id = %id) }
    }

    /// Runs `work` in the span. Log lines of it carry the trace id, with or without an exporter.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> T {
        Box::pin(work).instrument(self.span).instrument(self.log_span).await
    }
}

fn process(message: &MessageAttributes<'_>) -> Span {
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

/// Records the outcome of the job on the current span. Call it within [`Trace::run`].
pub fn ended(outcome: &str, failure: Option<&Failure>) {
    let span = Span::current();
    span.record("consign.outcome", outcome);
    if let Some(failure) = failure {
        fail(&span, failure.reason.as_str());
    }
}

/// Creates the span of settling a message.
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

/// Creates the span of getting a session for a destination, from the cache or from STS.
pub fn session(destination: &str) -> Span {
    tracing::info_span!(
        target: TARGET,
        "session",
        consign.destination = destination,
        otel.status_code = Empty,
        error.type = Empty
    )
}

/// Creates the span of opening a source.
pub fn source(scheme: &str) -> Span {
    tracing::info_span!(target: TARGET, "source", url.scheme = scheme, otel.status_code = Empty, error.type = Empty)
}

/// Creates the span of an S3 request, including its retries. `upload` is the id of a multipart
/// upload, `part` the number of a part, starting at 1; `key` includes the prefix.
pub fn s3(operation: &'static str, bucket: &str, key: &str, upload: Option<&str>, part: Option<u32>) -> Span {
    tracing::info_span!(
        target: TARGET,
        "s3",
        otel.name = format!("S3/{operation}"),
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system = "aws-api",
        rpc.service = "S3",
        rpc.method = operation,
        aws.s3.bucket = bucket,
        aws.s3.key = key,
        aws.s3.upload_id = upload,
        // Signed, because the layer would record an unsigned number as text.
        aws.s3.part_number = part.map(i64::from),
        error.type = Empty,
    )
}

/// Runs `work` in a span and marks the span if it fails.
pub async fn within<T>(span: Span, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // Boxed: the nested future type of a transfer reaches the compiler's limit.
    let result = Box::pin(work).instrument(span.clone()).await;
    if let Err(failure) = &result {
        fail(&span, failure.reason.as_str());
    }
    result
}

/// Marks a span as failed with a reason.
pub fn fail(span: &Span, reason: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", reason);
}

struct HeaderCarrier<'a>(&'a BTreeMap<String, String>);

impl Extractor for HeaderCarrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
