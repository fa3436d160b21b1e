//! The HTTP endpoint for people, probes and Prometheus. GET only, read-only, without secrets.
//!
//! It listens on loopback by default, answers only under its own names, and may require a token for
//! the status ([`AdminAccess`]). Each connection serves one request and has a deadline. When there
//! are more than [`MAX_CONNECTIONS`], the oldest is closed: a probe takes milliseconds, so slow
//! clients never keep one out. Metrics and status are rendered on threads of their own, few at a
//! time. The status page polls, with a new connection for each request.

mod access;
mod page;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
pub use access::AdminAccess;
use access::LocalAddress;

/// Maximum of concurrent connections.
const MAX_CONNECTIONS: usize = 256;
/// Answers of `/metrics` and `/status` that are rendered at the same time.
const MAX_RENDERING: usize = 2;
/// Maximum size of a request's head, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The data behind the endpoint. The closures are called for each request. `ready` and `live` must
/// not block.
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
    /// Names and token.
    pub access: AdminAccess,
}

/// Serves requests until `stop` is cancelled, then finishes those in progress within their
/// deadline.
pub async fn serve(listener: TcpListener, state: AdminState, stop: CancellationToken) {
    let router = router(state);
    let listen = listener.local_addr().map_or(IpAddr::from(Ipv4Addr::LOCALHOST), |address| address.ip());
    let connections = tokio_util::task::TaskTracker::new();
    let mut open = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                make_room(&mut open);
                let connection = stream.local_addr().map_or(listen, |address| address.ip());
                let router = router.clone().layer(Extension(LocalAddress { listen, connection }));
                open.push_back(connections.spawn(serve_connection(stream, router, HEAD_TIMEOUT)).abort_handle());
            }
            Err(problem) => {
                // Usually "too many open files": wait for some to be closed instead of spinning.
                tracing::warn!(
                    event = "admin_accept_failed",
                    %problem,
                    next = "it tries again in 100 ms",
                    remedy = "raise the limit of open files (LimitNOFILE) where the problem names open files",
                    "the admin endpoint failed to accept a connection"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// Closes the oldest connections where there are too many.
fn make_room(open: &mut VecDeque<AbortHandle>) {
    open.retain(|connection| !connection.is_finished());
    while open.len() >= MAX_CONNECTIONS {
        open.pop_front().iter().for_each(AbortHandle::abort);
    }
}

/// Serves one connection of a client on this machine.
pub(crate) async fn serve_local(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    state: AdminState,
    head_timeout: Duration,
) {
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let local = LocalAddress { listen: address, connection: address };
    serve_connection(stream, router(state).layer(Extension(local)), head_timeout).await;
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, head_timeout: Duration) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(64)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => tracing::debug!(
            event = "admin_connection_failed",
            %problem,
            "a connection to the admin endpoint failed"
        ),
        Err(_) => tracing::debug!(event = "admin_connection_timeout", "a connection to the admin endpoint timed out"),
    }
}

fn router(state: AdminState) -> Router {
    let access = state.access.clone();
    page::routes(Router::new())
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .layer(middleware::from_fn_with_state(access, access::guard))
        .layer(middleware::map_response(page::harden))
        .with_state(EndpointState { state, rendering: Arc::new(Semaphore::new(MAX_RENDERING)) })
}

/// State of the routes.
#[derive(Clone)]
struct EndpointState {
    state: AdminState,
    rendering: Arc<Semaphore>,
}

impl EndpointState {
    /// Renders an answer on a thread of its own, so that probes do not wait for it.
    async fn render<T: Send + 'static>(self, render: impl FnOnce(&AdminState) -> T + Send + 'static) -> Option<T> {
        let permit = self.rendering.acquire_owned().await.ok()?;
        // Also where the client does not wait for it any more.
        let rendered = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            render(&self.state)
        });
        rendered.await.ok()
    }
}

async fn live(State(EndpointState { state, .. }): State<EndpointState>) -> Response {
    if (state.live)() { "ok\n".into_response() } else { unavailable("a loop of the worker is stalled") }
}

async fn ready(State(EndpointState { state, .. }): State<EndpointState>) -> Response {
    match (state.ready)() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => unavailable(&reason),
    }
}

fn unavailable(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

async fn metrics(State(endpoint): State<EndpointState>) -> Response {
    let rendered = endpoint.render(|state| state.metrics.render()).await;
    rendered.map_or_else(failed, |(content_type, text)| ([(header::CONTENT_TYPE, content_type)], text).into_response())
}

async fn status(State(endpoint): State<EndpointState>, uri: Uri) -> Response {
    let rendered = endpoint.render(move |state| (state.status)(&filter(&uri)).to_string()).await;
    rendered.map_or_else(failed, |text| ([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

fn failed() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, "this answer failed; the log has the reason\n").into_response()
}

/// Returns the value of `?destination=`, in lower case and at most as long as an id.
fn filter(uri: &Uri) -> String {
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let text = query.into_iter().find(|(name, _)| name == "destination").map(|(_, text)| text);
    text.unwrap_or_default().trim().chars().take(63).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests;
