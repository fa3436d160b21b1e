//! Heads of requests to the admin endpoint, which has a token and one name besides its own.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use consign::admin::{AdminAccess, AdminState};
use consign::config::AdminConfig;
use consign::fuzzing;
use consign::metrics::Metrics;
use tokio::runtime::{Builder, Runtime};

const TOKEN: &str = "t0ken-of-the-oracle";
const SECRET_STATUS: &str = "cAnArYstatus";

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_all().max_blocking_threads(1).build().expect("a runtime"));
}

static STATE: LazyLock<AdminState> = LazyLock::new(|| {
    let token = std::env::temp_dir().join(format!("consign-fuzz-token-{}", std::process::id()));
    std::fs::write(&token, TOKEN).expect("a file for the token");
    let config = AdminConfig {
        listen: (Ipv4Addr::LOCALHOST, 9464).into(),
        hosts: vec!["admin.example".to_owned()],
        token_file: Some(token.clone()),
    };
    let state = AdminState {
        metrics: Arc::new(Metrics::new(1)),
        ready: Arc::new(|| Ok(())),
        live: Arc::new(|| true),
        status: Arc::new(|_| SECRET_STATUS.into()),
        access: AdminAccess::new(&config),
    };
    // The token is known from the first request on; a file that is gone leaves it in force.
    let asked = format!("GET /status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    let answer =
        RUNTIME.with_borrow(|runtime| runtime.block_on(fuzzing::answer_admin(state.clone(), asked.as_bytes())));
    assert!(String::from_utf8_lossy(&answer).contains(SECRET_STATUS), "the oracle is not let in");
    std::fs::remove_file(token).expect("the file of the token");
    state
});

/// Whatever is asked, the status needs the token, and everything a known name.
pub fn admin_head(bytes: &[u8]) {
    let state = STATE.clone();
    let answer = RUNTIME.with_borrow(|runtime| runtime.block_on(fuzzing::answer_admin(state, bytes)));
    let text = String::from_utf8_lossy(&answer);
    assert!(text.is_empty() || text.starts_with("HTTP/1."), "{text}");
    let shown = text.split("\r\n\r\n").next().unwrap_or_default();
    if !shown.contains(" 200 OK") {
        assert!(!text.contains(SECRET_STATUS) && !text.contains("consign_draining"), "{text}");
        return;
    }
    assert!(shown.contains("x-content-type-options: nosniff") && shown.contains("cache-control: no-store"), "{text}");
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(bytes).expect("only a request is answered");
    assert!(["GET", "HEAD"].contains(&request.method.expect("a method")), "{text}");
    let hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    hosts.for_each(|field| assert!(is_known(field.value), "{:?}", String::from_utf8_lossy(field.value)));
    if text.contains(SECRET_STATUS) {
        assert!(presents_token(request.headers), "{:?}", String::from_utf8_lossy(bytes));
    }
}

fn is_known(host: &[u8]) -> bool {
    let host = String::from_utf8_lossy(host).trim().to_lowercase();
    // A browser sends no user name here.
    let host = host.rsplit('@').next().unwrap_or_default().to_owned();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.trim_end_matches('.');
    let loopback = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    loopback || ["localhost", "admin.example"].contains(&name)
}

fn presents_token(fields: &[httparse::Header<'_>]) -> bool {
    let first = fields.iter().find(|field| field.name.eq_ignore_ascii_case("authorization"));
    let value = first.map(|field| String::from_utf8_lossy(field.value).into_owned()).unwrap_or_default();
    let (scheme, rest) = value.split_once(' ').unwrap_or_default();
    match scheme.to_lowercase().as_str() {
        "bearer" => rest.trim() == TOKEN,
        "basic" => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).unwrap_or_default();
            decoded.splitn(2, |b| *b == b':').nth(1).is_some_and(|password| password == TOKEN.as_bytes())
        }
        _ => false,
    }
}
