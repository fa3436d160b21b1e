//! Where spans go: OTLP over HTTP, in protobuf, from a thread of its own. Whatever happens there disturbs no work: what the
//! collector does not take is dropped.

use std::fmt;
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

/// For a connection to the collector, and for a whole request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the last spans get at the end of the program.
const FLUSH: Duration = Duration::from_secs(1);
const PATH: &str = "/v1/traces";

/// The exporter of this process.
#[derive(Debug, Clone)]
pub(super) struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Sends to the collector at `endpoint`. Whether a trace is recorded is decided by whoever began it; ours are.
    pub(super) fn to(endpoint: &Url) -> Result<Self, String> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new()?)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .with_endpoint(traces_at(endpoint))
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

    /// Sends what is left, within a second.
    pub(super) fn close(&self) {
        if let Err(problem) = self.provider.shutdown_with_timeout(FLUSH) {
            tracing::debug!(%problem, "the last spans could not be sent");
        }
    }
}

/// The collector's path for traces, below what the endpoint says.
fn traces_at(endpoint: &Url) -> String {
    let base = endpoint.as_str().trim_end_matches('/');
    if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") }
}

/// The exporter's thread drives requests by a runtime of its own: a busy worker keeps no span waiting, and the reverse.
struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    failing: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    fn new() -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
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

    /// Says once that it fails, and once that it works again.
    fn note(&self, problem: Option<String>) {
        match (problem, self.failing.load(Ordering::Relaxed)) {
            (Some(problem), false) => {
                self.failing.store(true, Ordering::Relaxed);
                tracing::warn!(problem, "log.otlp_endpoint takes no traces; they are dropped until it does");
            }
            (None, true) => {
                self.failing.store(false, Ordering::Relaxed);
                tracing::info!("log.otlp_endpoint takes traces again");
            }
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.runtime.block_on(self.send(request)).map_err(reqwest::Error::without_url);
        self.note(match &answer {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the answer is {}", response.status())),
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
        let at = |text: &str| traces_at(&text.parse().unwrap());
        assert_eq!(at("http://c:4318"), "http://c:4318/v1/traces");
        assert_eq!(at("https://c/otlp/"), "https://c/otlp/v1/traces");
        assert_eq!(at("http://c:4318/v1/traces"), "http://c:4318/v1/traces");
    }
}
