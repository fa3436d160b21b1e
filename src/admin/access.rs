//! Access to the endpoint: names in the Host header, and the token.
//!
//! A web page can point a name of its own at this address (DNS rebinding) and then read what a
//! browser on this network can reach. It can't choose the Host header, so only known names are
//! answered.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::{AdminConfig, read_token};

/// Paths that need no token: probes and metrics name no customer's data.
const OPEN_PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];
/// A program sends the token as it is; a browser asks for it as a password.
const CHALLENGES: [&str; 2] = ["Bearer realm=\"consign\"", "Basic realm=\"consign\", charset=\"UTF-8\""];
const TOKEN_REQUIRED: &str = "this needs the token of admin.token_file: send the header \"Authorization: Bearer TOKEN\", or give \
                              it to the browser as the password of any user\n";
const HOST_REFUSED: &str = "this worker does not accept the name in the Host header: use the worker's address, or add the name to \
     admin.hosts\n";

/// Rules of `[admin]` for requests.
#[derive(Debug, Clone, Default)]
pub struct AdminAccess {
    hosts: Arc<[String]>,
    token: Option<Arc<TokenFile>>,
}

impl AdminAccess {
    /// Builds the rules of `[admin]`.
    pub fn new(config: &AdminConfig) -> Self {
        let token = config.token_file.clone().map(|path| Arc::new(TokenFile { path, known: Mutex::default() }));
        Self { hosts: config.hosts.clone().into(), token }
    }

    /// Returns true if every name that the request calls this worker by is known.
    fn knows(&self, request: &Request, local: LocalAddress) -> bool {
        let named = |value: &axum::http::HeaderValue| {
            let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
            authority.is_some_and(|authority| self.is_known(authority.host(), local))
        };
        let target = request.uri().authority().is_none_or(|authority| self.is_known(authority.host(), local));
        target && request.headers().get_all(header::HOST).iter().all(named)
    }

    fn is_known(&self, host: &str, local: LocalAddress) -> bool {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_lowercase();
        let own = match host.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || ip == local.listen || ip.to_canonical() == local.connection.to_canonical(),
            Err(_) => host == "localhost",
        };
        own || self.hosts.contains(&host)
    }

    fn admits(&self, path: &str, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        OPEN_PATHS.contains(&path) || presented(headers).is_some_and(|given| token.is(&given))
    }
}

/// Addresses of a connection at this end.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalAddress {
    /// The address that is listened on.
    pub(super) listen: IpAddr,
    /// The address that the client has connected to.
    pub(super) connection: IpAddr,
}

/// Refuses requests under unknown names, and those that lack the token.
pub(super) async fn guard(
    State(access): State<AdminAccess>,
    Extension(local): Extension<LocalAddress>,
    request: Request,
    next: Next,
) -> Response {
    if !access.knows(&request, local) {
        return (StatusCode::MISDIRECTED_REQUEST, HOST_REFUSED).into_response();
    }
    if !access.admits(request.uri().path(), request.headers()) {
        let challenges = CHALLENGES.map(|challenge| (header::WWW_AUTHENTICATE, challenge));
        return (StatusCode::UNAUTHORIZED, axum::response::AppendHeaders(challenges), TOKEN_REQUIRED).into_response();
    }
    next.run(request).await
}

/// The token that a request presents.
fn presented(headers: &HeaderMap) -> Option<SecretString> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.into());
    }
    let decoded =
        base64::engine::general_purpose::STANDARD.decode(rest).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(password.into())
}

/// The token in a file, which is read again when it changes.
#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    known: Mutex<KnownToken>,
}

/// The stamp of the file at the last reading, and the last valid token.
#[derive(Debug, Default)]
struct KnownToken {
    stamp: Option<(u64, u64, i64, i64, i64)>,
    token: Option<SecretString>,
}

impl TokenFile {
    /// Compares in constant time.
    fn is(&self, given: &SecretString) -> bool {
        let Some(token) = self.current() else { return false };
        let digest = |secret: &SecretString| Sha256::digest(secret.expose_secret());
        bool::from(digest(&token).ct_eq(&digest(given)))
    }

    /// The token, or the last valid one while the file can't be read.
    fn current(&self) -> Option<SecretString> {
        let mut known = self.known.lock();
        let stamp = std::fs::metadata(&self.path).ok();
        let stamp = stamp.map(|s| (s.ino(), s.size(), s.mtime(), s.mtime_nsec(), s.ctime_nsec()));
        if known.token.is_none() || stamp != known.stamp {
            known.stamp = stamp;
            match read_token(&self.path) {
                Ok(token) => known.token = Some(token),
                Err(problem) => tracing::warn!(
                    event = "admin_token_unreadable",
                    problem,
                    next = "the last valid token stays in effect",
                    remedy = "fix the file",
                    "admin.token_file can't be read"
                ),
            }
        }
        known.token.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(hosts: &[&str], listen: &str, connection: &str, host: &str) -> bool {
        let access = AdminAccess { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), token: None };
        let local = LocalAddress { listen: listen.parse().unwrap(), connection: connection.parse().unwrap() };
        let request = Request::builder().header(header::HOST, host).body(axum::body::Body::empty()).unwrap();
        access.knows(&request, local)
    }

    #[test]
    fn names_of_this_machine_and_configured_ones_are_known() {
        for host in
            ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "127.9.9.9", "[::1]:9464", "10.1.2.3:9464", "0.0.0.0"]
        {
            assert!(known(&[], "0.0.0.0", "10.1.2.3", host), "{host}");
        }
        assert!(known(&[], "::", "::ffff:10.1.2.3", "10.1.2.3"), "a socket of both families");
        assert!(known(&[], "::", "2001:db8::1", "[2001:db8::1]:9464"));
        assert!(known(&["consign", "10.9.9.9"], "0.0.0.0", "10.1.2.3", "Consign.:9464"));
        assert!(known(&["consign", "10.9.9.9"], "0.0.0.0", "10.1.2.3", "10.9.9.9"));
    }

    #[test]
    fn other_names_are_not() {
        for host in
            ["evil.example", "localhost.evil.example", "10.1.2.4", "consign", "", "a b", "169.254.169.254", "user@evil"]
        {
            assert!(!known(&[], "0.0.0.0", "10.1.2.3", host), "{host}");
        }
        assert!(!known(&["consign"], "0.0.0.0", "10.1.2.3", "xconsign"));
    }

    #[test]
    fn the_target_of_a_request_counts_as_well_as_its_header() {
        let local = LocalAddress { listen: IpAddr::from([127, 0, 0, 1]), connection: IpAddr::from([127, 0, 0, 1]) };
        let request = |uri: &str, hosts: &[&str]| {
            let request = hosts.iter().fold(Request::builder().uri(uri), |request, host| request.header("host", *host));
            AdminAccess::default().knows(&request.body(axum::body::Body::empty()).unwrap(), local)
        };
        assert!(request("http://localhost/status", &["localhost"]) && request("/status", &[]));
        assert!(!request("http://evil.example/status", &["localhost"]));
        assert!(!request("/status", &["localhost", "evil.example"]));
    }

    #[test]
    fn a_changed_token_replaces_the_old_one_and_a_broken_file_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "first-token-0123456789\n").unwrap();
        let config =
            AdminConfig { token_file: Some(path.clone()), ..crate::config::load_str("").unwrap().config.admin };
        let access = AdminAccess::new(&config);
        let admitted = |authorization: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, authorization.parse().unwrap())]);
            access.admits("/status", &headers)
        };
        assert!(admitted("Bearer first-token-0123456789") && admitted("bearer  first-token-0123456789"));
        let basic = base64::engine::general_purpose::STANDARD.encode("me:first-token-0123456789");
        assert!(admitted(&format!("Basic {basic}")));
        for wrong in
            ["Bearer", "Bearer ", "Bearer first-token-012345678", "Token first-token-0123456789", "Basic x", &basic]
        {
            assert!(!admitted(wrong), "{wrong}");
        }
        assert!(!access.admits("/status", &HeaderMap::new()) && !access.admits("/", &HeaderMap::new()));
        assert!(!access.admits("/livez/", &HeaderMap::new()));
        assert!(OPEN_PATHS.iter().all(|path| access.admits(path, &HeaderMap::new())));

        std::fs::write(&path, "short").unwrap();
        assert!(admitted("Bearer first-token-0123456789") && !admitted("Bearer short"));
        std::fs::write(&path, "second-token-0123456789").unwrap();
        assert!(admitted("Bearer second-token-0123456789") && !admitted("Bearer first-token-0123456789"));
    }
}
