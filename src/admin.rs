//! The HTTP endpoint for people, probes and Prometheus. GET only, read only, no secrets, bounded in every direction.
//!
//! It is not authenticated, so it listens on loopback by default. One request a connection and a deadline for the whole of
//! it: nobody can hold more than [`CONNECTIONS`] for longer than [`DEADLINE`], however slowly he sends or reads. So the
//! status page polls: each look is a connection of its own.

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

/// Connections at once; more wait in the listener's backlog.
const CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Until a request's head is complete.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the answer has been read.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the endpoint shows. Each closure is called for each request and must not block.
#[derive(Clone)]
pub struct AdminState {
    /// `/metrics`.
    pub metrics: Arc<Metrics>,
    /// `/readyz`: why not, if not.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// `/livez`: whether the loops turn.
    pub live: Arc<dyn Fn() -> bool + Send + Sync>,
    /// `/status`, for destinations whose id contains the text.
    pub status: Arc<dyn Fn(&str) -> serde_json::Value + Send + Sync>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").finish_non_exhaustive()
    }
}

/// Serves until `stop`; requests that are being answered then are answered, within their deadline.
pub async fn serve(listener: TcpListener, state: AdminState, stop: CancellationToken) {
    let router = router(state);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let next = async { (places.clone().acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    answer(stream, router, HEAD_TIMEOUT).await;
                    drop(place);
                });
            }
            Err(problem) => {
                // Most often "too many open files": wait for some to be closed instead of turning at full speed.
                tracing::warn!(%problem, "the admin endpoint could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn answer(stream: TcpStream, router: Router, head_timeout: Duration) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD)
        .max_headers(64)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => tracing::debug!(%problem, "a connection to the admin endpoint broke off"),
        Err(_) => tracing::debug!("a connection to the admin endpoint took too long"),
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
    if (state.live)() { "ok\n".into_response() } else { unavailable("a loop of the worker stands still") }
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

/// The text of `?destination=`; ids are in small letters, and none is longer than this.
fn filter(uri: &Uri) -> String {
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let text = query.into_iter().find(|(name, _)| name == "destination").map(|(_, text)| text);
    text.unwrap_or_default().trim().chars().take(63).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests;
