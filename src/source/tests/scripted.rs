//! A scripted http origin for tests. Its responses can break off, hang or never end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// One step of a response. After the last one the connection is closed.
#[derive(Debug, Clone)]
pub(in crate::source) enum ResponseStep {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends bytes until the client closes the connection.
    Endless,
    /// Sends nothing more and keeps the connection open.
    Hang,
}

/// Returns the steps of a response with this head and body.
pub(in crate::source) fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<ResponseStep> {
    let mut head = format!("HTTP/1.1 {status} Scripted\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    vec![ResponseStep::Send((head + "\r\n").into_bytes()), ResponseStep::Send(body.to_vec())]
}

/// Returns the response of an origin with ranges and a strong tag to this request head: the whole
/// or the requested range; for another tag the whole (`If-Range`) or 412 (`If-Match`).
pub(in crate::source) fn ranged_response(head: &str, etag: &str, content: &[u8]) -> Vec<ResponseStep> {
    let named = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let whole = [("accept-ranges", "bytes"), ("etag", etag), ("content-length", &content.len().to_string())];
    if named("if-match: ").is_some_and(|wanted| wanted != etag) {
        return response(412, &[("content-length", "0")], b"");
    }
    let same = named("if-range: ").is_none_or(|wanted| wanted == etag);
    let Some(range) = named("range: bytes=").filter(|_| same) else { return response(200, &whole, content) };
    let from: usize = range.trim_end_matches('-').parse().unwrap();
    let (last, length) = (content.len() - 1, content.len());
    if from >= length {
        return response(416, &[("content-range", &format!("bytes */{length}")), ("content-length", "0")], b"");
    }
    let part = [
        ("etag", etag),
        ("content-range", &format!("bytes {from}-{last}/{length}")),
        ("content-length", &(length - from).to_string()),
    ];
    response(206, &part, &content[from..])
}

/// A server that runs until it is dropped.
pub(in crate::source) struct ScriptedOrigin {
    pub(in crate::source) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl ScriptedOrigin {
    /// Starts a server without TLS. `script` gets the number of the request (from 0) and its head.
    pub(in crate::source) async fn start(
        script: impl Fn(usize, &str) -> Vec<ResponseStep> + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, script).await
    }

    pub(in crate::source) async fn serve(
        tls: Option<TlsAcceptor>,
        script: impl Fn(usize, &str) -> Vec<ResponseStep> + Send + Sync + 'static,
    ) -> Self {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            let script = Arc::new(script);
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, seen, tls) = (Arc::clone(&script), Arc::clone(&seen), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve_connection(stream, &*script, &seen).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve_connection(stream, &*script, &seen).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address, heads, task }
    }

    /// Returns the heads of all requests so far.
    pub(in crate::source) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub(in crate::source) fn url(&self, path: &str) -> url::Url {
        url::Url::parse(&format!("http://{}{path}", self.address)).unwrap()
    }
}

impl Drop for ScriptedOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_connection(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &(impl Fn(usize, &str) -> Vec<ResponseStep> + Sync),
    seen: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(head.clone());
        seen.len() - 1
    };
    for step in script(number, &head) {
        match step {
            ResponseStep::Send(bytes) => stream.write_all(&bytes).await.ok()?,
            ResponseStep::Endless => loop {
                stream.write_all(&[b'x'; 16 * 1024]).await.ok()?;
            },
            ResponseStep::Hang => std::future::pending().await,
        }
        stream.flush().await.ok()?;
    }
    stream.shutdown().await.ok()
}

/// Listens on a port below the ephemeral range, which outgoing connections use.
async fn listen() -> TcpListener {
    for _ in 0..1000 {
        let drawn = uuid::Uuid::new_v4().as_u128() % 12_000;
        let port = 20_000 + u16::try_from(drawn).unwrap();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener;
        }
    }
    panic!("no free port");
}
