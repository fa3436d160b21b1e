//! Export of spans by OTLP over HTTP in protobuf, from a thread of its own. Failures never affect
//! the worker: spans that the collector does not accept are dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for sending the last spans at the end of the program.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const PATH: &str = "/v1/traces";

/// The exporter of this process.
#[derive(Debug, Clone)]
pub(super) struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Creates an exporter for the collector at `endpoint`. The producer of a trace decides about
    /// its sampling; traces that start in the worker are always sampled.
    pub(super) fn to(endpoint: &Url) -> Result<Self, String> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(CollectorClient::new()?)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(REQUEST_TIMEOUT)
            .with_endpoint(traces_url(endpoint))
            .build()
            .map_err(|problem| format!("log.otlp_endpoint: {problem}"))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("consign").with_attribute(version).build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self { provider })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("consign")
    }

    /// Sends the remaining spans, within [`FLUSH_TIMEOUT`].
    pub(super) fn close(&self) {
        if let Err(problem) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::debug!(event = "spans_lost", %problem, "failed to send the last spans");
        }
    }
}

fn traces_url(endpoint: &Url) -> String {
    let base = endpoint.as_str().trim_end_matches('/');
    if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") }
}

/// An HTTP client on a runtime of its own, so that a busy worker does not delay spans, nor spans
/// the worker.
#[derive(Debug)]
struct CollectorClient {
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    failing: AtomicBool,
}

impl CollectorClient {
    fn new() -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|problem| problem.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { http, runtime: runtime.map_err(|problem| problem.to_string())?, failing: AtomicBool::new(false) })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, reqwest::Error> {
        let answer = self.http.execute(request.try_into()?).await?;
        let status = answer.status();
        let mut response = Response::new(answer.bytes().await?);
        *response.status_mut() = status;
        Ok(response)
    }

    /// Logs the first failure, and the first success after it.
    fn log_change(&self, problem: Option<String>) {
        match (problem, self.failing.load(Ordering::Relaxed)) {
            (Some(problem), false) => {
                self.failing.store(true, Ordering::Relaxed);
                tracing::warn!(
                    event = "traces_dropped",
                    problem,
                    next = "traces are dropped until it does",
                    remedy = "check the collector and log.otlp_endpoint",
                    "log.otlp_endpoint does not accept traces"
                );
            }
            (None, true) => {
                self.failing.store(false, Ordering::Relaxed);
                tracing::info!(event = "traces_accepted", "log.otlp_endpoint accepts traces again");
            }
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.runtime.block_on(self.send(request)).map_err(reqwest::Error::without_url);
        self.log_change(match &answer {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the response is {}", response.status())),
            Err(problem) => Some(problem.to_string()),
        });
        Ok(answer?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_for_traces_is_added_once() {
        let at = |text: &str| traces_url(&text.parse().unwrap());
        assert_eq!(at("http://c:4318"), "http://c:4318/v1/traces");
        assert_eq!(at("https://c/otlp/"), "https://c/otlp/v1/traces");
        assert_eq!(at("http://c:4318/v1/traces"), "http://c:4318/v1/traces");
    }
}
