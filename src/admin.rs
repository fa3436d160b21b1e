//! The HTTP endpoint for people, probes and Prometheus. GET only, read-only, without secrets.
//!
//! It has no authentication, so it listens on loopback by default. Each connection serves one
//! request and has a deadline, so slow clients hold at most [`MAX_CONNECTIONS`] connections for at
//! most [`CONNECTION_TIMEOUT`]. The status page polls, with a new connection for each request.

mod page;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Maximum of concurrent connections; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;
/// Maximum size of a request's head, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The data behind the endpoint. The closures are called for each request and must not block.
#[derive(Clone)]
pub struct AdminState {
    /// Content of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Readiness for `/readyz`, with the reason if not ready.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Liveness for `/livez`: false when a loop of the worker is stalled.
    pub live: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Content of `/status`, for destinations whose id contains the text.
    pub status: Arc<dyn Fn(&str) -> serde_json::Value + Send + Sync>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").finish_non_exhaustive()
    }
}

/// Serves requests until `stop` is cancelled, then finishes those in progress within their
/// deadline.
pub async fn serve(listener: TcpListener, state: AdminState, stop: CancellationToken) {
    let router = router(state);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let next = async { (permits.clone().acquire_owned().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    serve_connection(stream, router, HEAD_TIMEOUT).await;
                    drop(permit);
                });
            }
            Err(problem) => {
                // Usually "too many open files": wait for some to be closed instead of spinning.
                tracing::warn!(%problem, "the admin endpoint failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn serve_connection(stream: TcpStream, router: Router, head_timeout: Duration) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(64)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => tracing::debug!(%problem, "a connection to the admin endpoint failed"),
        Err(_) => tracing::debug!("a connection to the admin endpoint timed out"),
    }
}

fn router(state: AdminState) -> Router {
    page::routes(Router::new())
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .layer(middleware::map_response(page::harden))
        .with_state(state)
}

async fn live(State(state): State<AdminState>) -> Response {
    if (state.live)() { "ok\n".into_response() } else { unavailable("a loop of the worker is stalled") }
}

async fn ready(State(state): State<AdminState>) -> Response {
    match (state.ready)() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => unavailable(&reason),
    }
}

fn unavailable(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let (content_type, text) = state.metrics.render();
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

async fn status(State(state): State<AdminState>, uri: Uri) -> Response {
    axum::Json((state.status)(&filter(&uri))).into_response()
}

/// Returns the value of `?destination=`, in lower case and at most as long as an id.
fn filter(uri: &Uri) -> String {
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let text = query.into_iter().find(|(name, _)| name == "destination").map(|(_, text)| text);
    text.unwrap_or_default().trim().chars().take(63).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests;
