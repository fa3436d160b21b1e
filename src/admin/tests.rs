use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn server(ready: Result<(), String>, live: bool) -> Server {
    guarded(ready, live, crate::config::load_str("").unwrap().config.admin).await
}

async fn guarded(ready: Result<(), String>, live: bool, config: crate::config::AdminConfig) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let state = AdminState {
        metrics: Arc::new(Metrics::new(3)),
        ready: Arc::new(move || ready.clone()),
        live: Arc::new(move || live),
        status: Arc::new(|filter| serde_json::json!({"in_flight": 2, "filter": filter})),
        access: AdminAccess::new(&config),
    };
    let task = tokio::spawn(serve(listener, state, stop.clone()));
    Server { address, stop, task }
}

impl Server {
    async fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        // A server that refuses may reset the connection after its reply.
        let _ = stream.read_to_end(&mut reply).await;
        String::from_utf8(reply).unwrap()
    }

    async fn get(&self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn has(reply: &str, status: u16, content_type: &str) {
    assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
    assert!(reply.contains(&format!("content-type: {content_type}\r\n")), "{reply}");
}

#[tokio::test]
async fn every_page_has_its_content_type() {
    let server = server(Ok(()), true).await;
    has(&server.get("/").await, 200, "text/html; charset=utf-8");
    has(&server.get("/livez").await, 200, "text/plain; charset=utf-8");
    has(&server.get("/readyz").await, 200, "text/plain; charset=utf-8");
    let metrics = server.get("/metrics").await;
    has(&metrics, 200, "text/plain; version=0.0.4");
    assert!(metrics.contains("\nconsign_draining 0\n"), "{metrics}");
    let status = server.get("/status").await;
    has(&status, 200, "application/json");
    assert!(status.ends_with("{\"filter\":\"\",\"in_flight\":2}"), "{status}");
}

#[tokio::test]
async fn all_files_are_served_and_every_response_has_the_security_headers() {
    let server = server(Ok(()), true).await;
    let page = server.get("/").await;
    let named = |attribute| page.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    let files: Vec<_> = named("src=\"").chain(named("<link rel=\"stylesheet\" href=\"")).collect();
    assert_eq!(files, ["page.js", "icon.svg", "page.css"]);
    for (path, kind) in [
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/sections.js", "text/javascript; charset=utf-8"),
        ("/view.js", "text/javascript; charset=utf-8"),
        ("/chart.js", "text/javascript; charset=utf-8"),
        ("/format.js", "text/javascript; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        has(&server.get(path).await, 200, kind);
    }
    for path in ["/", "/page.js", "/status", "/metrics", "/nothing"] {
        let reply = server.get(path).await;
        for header in [
            "content-security-policy: default-src 'none'; ",
            "x-content-type-options: nosniff\r\n",
            "cache-control: no-store\r\n",
        ] {
            assert!(reply.contains(header), "{path} lacks {header}: {reply}");
        }
    }
}

/// The content security policy would block inline code.
#[tokio::test]
async fn the_page_has_no_inline_code_and_inserts_nothing_as_markup() {
    let server = server(Ok(()), true).await;
    let page = server.get("/").await;
    for inline in [" style=", "<style", " onclick=", "javascript:", "http://", "https://"] {
        assert!(!page.contains(inline), "{inline}");
    }
    for script in ["/page.js", "/sections.js", "/view.js", "/chart.js", "/format.js"] {
        let script = server.get(script).await;
        for sink in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"]
        {
            assert!(!script.contains(sink), "{sink}");
        }
    }
}

#[tokio::test]
async fn the_filter_of_destinations_is_cleaned_and_bounded() {
    let server = server(Ok(()), true).await;
    let filtered = server.get("/status?x=1&destination=%20AC%22m%3Ce").await;
    assert!(filtered.ends_with(r#"{"filter":"ac\"m<e","in_flight":2}"#), "{filtered}");
    let long = server.get(&format!("/status?destination={}", "a".repeat(1000))).await;
    assert!(long.contains(&format!("\"filter\":\"{}\"", "a".repeat(63))), "{long}");
}

#[tokio::test]
async fn not_ready_and_not_live_are_503_with_the_reason() {
    let server = server(Err("draining".to_owned()), false).await;
    let ready = server.get("/readyz").await;
    has(&ready, 503, "text/plain; charset=utf-8");
    assert!(ready.ends_with("draining\n"), "{ready}");
    has(&server.get("/livez").await, 503, "text/plain; charset=utf-8");
}

#[tokio::test]
async fn only_get_and_only_known_paths() {
    let server = server(Ok(()), true).await;
    let post = server.send("POST /metrics HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    assert!(server.get("/secrets").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn a_long_head_is_refused() {
    let server = server(Ok(()), true).await;
    let reply = server
        .send(&format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(2 * MAX_HEAD_BYTES)))
        .await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431 "), "{reply}");
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_disconnected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    client.write_all(b"GET / HTT").await.unwrap();
    serve_connection(stream, Router::new(), Duration::from_millis(10)).await;
    let mut reply = String::new();
    let _ = client.read_to_string(&mut reply).await;
    assert!(!reply.contains(" 200 "), "{reply}");
}

#[tokio::test]
async fn it_stops_on_cancellation() {
    let mut server = server(Ok(()), true).await;
    server.get("/livez").await;
    server.stop.cancel();
    (&mut server.task).await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn only_known_names_are_answered() {
    let config = crate::config::load_str("[admin]\nhosts = [\"Consign.example\"]").unwrap().config.admin;
    let server = guarded(Ok(()), true, config).await;
    let named = async |host: &str| server.send(&format!("GET /livez HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    for host in ["localhost", "127.0.0.1:9464", "[::1]", "consign.example:80"] {
        assert!(named(host).await.starts_with("HTTP/1.1 200 "), "{host}");
    }
    for path in ["/", "/status", "/metrics", "/livez", "/page.js", "/nothing"] {
        let reply = server.send(&format!("GET {path} HTTP/1.1\r\nhost: rebound.example\r\n\r\n")).await;
        has(&reply, 421, "text/plain; charset=utf-8");
        assert!(reply.contains("admin.hosts") && reply.contains("x-content-type-options: nosniff"), "{reply}");
    }
    let absolute = server.send("GET http://rebound.example/status HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(absolute.starts_with("HTTP/1.1 421 "), "{absolute}");
    let old = server.send("GET /livez HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "a probe without a name: {old}");
}

#[tokio::test]
async fn the_status_needs_the_token_and_probes_do_not() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef").unwrap();
    let text = format!("[admin]\ntoken_file = {:?}", file.path().display().to_string());
    let server = guarded(Ok(()), true, crate::config::load_str(&text).unwrap().config.admin).await;
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(server.get(path).await.starts_with("HTTP/1.1 200 "), "{path}");
    }
    for path in ["/", "/status", "/page.js", "/nothing"] {
        let refused = server.get(path).await;
        has(&refused, 401, "text/plain; charset=utf-8");
        assert!(
            refused.contains("www-authenticate: Bearer ") && refused.contains("www-authenticate: Basic "),
            "{refused}"
        );
        assert!(!refused.contains("in_flight") && !refused.contains("<html"), "{refused}");
    }
    let with = async |token: &str| {
        server.send(&format!("GET /status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n")).await
    };
    has(&with("0123456789abcdef").await, 200, "application/json");
    assert!(with("0123456789abcdeF").await.starts_with("HTTP/1.1 401 "));
}

/// Some send half a head, some ask for the status and never read it.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_slow_clients_keep_no_probe_out() {
    let server = server(Ok(()), true).await;
    let mut clients = Vec::new();
    for number in 0..500 {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        let sent = ["GET /livez HTT", "GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n", "\0\0", ""][number % 4];
        client.write_all(sent.as_bytes()).await.unwrap();
        clients.push(client);
    }
    for _ in 0..20 {
        let live = tokio::time::timeout(HEAD_TIMEOUT / 2, server.get("/livez")).await.expect("a probe waits");
        assert!(live.starts_with("HTTP/1.1 200 "), "{live}");
    }
    assert_eq!(clients.len(), 500);
}

/// Answers that take long do not delay those that do not.
#[tokio::test]
async fn a_status_that_takes_long_delays_no_probe() {
    let (entered, (open, gate)) = (Arc::new(Semaphore::new(0)), std::sync::mpsc::channel::<()>());
    let gate = std::sync::Mutex::new(gate);
    let mut server = server(Ok(()), true).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    server.address = listener.local_addr().unwrap();
    let inside = entered.clone();
    let state = AdminState {
        metrics: Arc::new(Metrics::new(1)),
        ready: Arc::new(|| Ok(())),
        live: Arc::new(|| true),
        status: Arc::new(move |_| {
            inside.add_permits(1);
            // Until the sender is dropped.
            let _ = gate.lock().unwrap().recv();
            serde_json::json!({})
        }),
        access: AdminAccess::default(),
    };
    tokio::spawn(serve(listener, state, server.stop.clone()));
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    entered.acquire_many(u32::try_from(MAX_RENDERING).unwrap()).await.unwrap().forget();
    assert!(server.get("/livez").await.starts_with("HTTP/1.1 200 "));
    drop(open);
    let mut reply = String::new();
    clients[49].read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

/// Clients that leave must not make the worker render more at a time.
#[tokio::test]
async fn an_answer_counts_until_it_is_rendered_though_its_client_has_left() {
    let rendering = Arc::new(Semaphore::new(1));
    let state = AdminState {
        metrics: Arc::new(Metrics::new(1)),
        ready: Arc::new(|| Ok(())),
        live: Arc::new(|| true),
        status: Arc::new(|_| serde_json::json!({})),
        access: AdminAccess::default(),
    };
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let endpoint = EndpointState { state, rendering: rendering.clone() };
    let client = tokio::spawn(endpoint.render(move |_| gate.recv().is_ok()));
    while rendering.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    assert_eq!(rendering.available_permits(), 0);
    drop(release);
    assert!(rendering.acquire().await.is_ok());
}
