//! HTTP client of the admin endpoints of workers.

use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use url::Url;

use crate::config::read_token;
use crate::runtime::causes::innermost;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Upper bound of the bytes of `/status`. Its lists are bounded, at some hundred KiB.
const MAX_STATUS_BYTES: usize = 8 << 20;

/// Parses the address of a worker's admin endpoint. Without a scheme it is http.
///
/// # Errors
/// A description of the format.
pub(in crate::cli) fn worker_url(text: &str) -> Result<Url, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&full).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| "write a worker's HOST:PORT, or its URL, such as http://127.0.0.1:9464".to_owned())
}

/// Client without proxy and redirects, as workers are in the same network.
#[derive(Debug, Clone)]
pub(in crate::cli) struct StatusClient {
    client: reqwest::Client,
    token: Option<SecretString>,
}

impl StatusClient {
    /// Builds a client that sends the token of `token_file`, if there is one.
    ///
    /// # Errors
    /// A missing feature of the system, or a file without a token.
    pub(in crate::cli) fn new(token_file: Option<&Path>) -> Result<Self, String> {
        let token = token_file.map(read_token).transpose().map_err(|problem| format!("admin.token_file: {problem}"))?;
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
        let built = builder.redirect(reqwest::redirect::Policy::none()).build();
        let client = built.map_err(|problem| format!("workers can't be queried: {problem}"))?;
        Ok(Self { client, token })
    }

    /// Returns `/status` of a worker, filtered to destinations whose id contains `destination`.
    ///
    /// # Errors
    /// The cause, for people.
    pub(in crate::cli) async fn status(&self, worker: &Url, destination: &str) -> Result<Value, String> {
        let mut url = worker.join("status").map_err(|problem| format!("not the URL of a worker: {problem}"))?;
        if !destination.is_empty() {
            url.query_pairs_mut().append_pair("destination", destination);
        }
        let request = self.client.get(url.clone());
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        };
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(problem) => return Err(self.explain(&url, &problem).await),
        };
        let refusal = match response.status() {
            status if status.is_success() => None,
            StatusCode::UNAUTHORIZED if self.token.is_some() => {
                Some("it refuses the token of admin.token_file; give the file with that worker's token")
            }
            StatusCode::UNAUTHORIZED => {
                Some("it requires a token; set admin.token_file to the file with that worker's token")
            }
            StatusCode::MISDIRECTED_REQUEST => {
                Some("it does not know this name; use its address, or add the name to its admin.hosts")
            }
            status => return Err(format!("it answers {status}; is it the admin endpoint of a worker?")),
        };
        if let Some(refusal) = refusal {
            return Err(refusal.to_owned());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|problem| root_cause(&problem))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_STATUS_BYTES {
                return Err("its answer is too long for that of a worker".to_owned());
            }
        }
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status["worker"].is_string() { Ok(status) } else { Err("its answer is not that of a worker".to_owned()) }
    }

    async fn explain(&self, url: &Url, problem: &reqwest::Error) -> String {
        match livez_without_tls(url) {
            Some(plain) if problem.is_connect() && self.is_live(&plain).await => {
                let host = plain.host_str().unwrap_or_default();
                let port = plain.port().map_or_else(String::new, |port| format!(":{port}"));
                format!("it answers without TLS; write http://{host}{port} instead of https")
            }
            _ => root_cause(problem),
        }
    }

    async fn is_live(&self, worker: &Url) -> bool {
        self.client.get(worker.clone()).send().await.is_ok_and(|answer| answer.status().is_success())
    }
}

/// Returns `/livez` at the same address without TLS, and without the password that was meant for
/// TLS.
fn livez_without_tls(url: &Url) -> Option<Url> {
    let port = url.port_or_known_default().filter(|_| url.scheme() == "https")?;
    let mut plain = Url::parse("http://worker/livez").ok()?;
    plain.set_host(url.host_str()).ok()?;
    plain.set_port(Some(port)).ok()?;
    Some(plain)
}

/// Innermost cause, which is the most specific one.
fn root_cause(problem: &reqwest::Error) -> String {
    if problem.is_timeout() {
        return "no answer in time".to_owned();
    }
    innermost(problem).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_the_address_is_the_same_and_the_password_is_left_out() {
        let plain = |url: &str| livez_without_tls(&worker_url(url).unwrap()).map(String::from);
        assert_eq!(plain("https://me:pw@[::1]:9464/status?x").unwrap(), "http://[::1]:9464/livez");
        assert_eq!(plain("https://w.example/").unwrap(), "http://w.example:443/livez");
        assert_eq!(plain("http://w.example/"), None);
    }

    #[test]
    fn an_address_without_a_scheme_is_http() {
        for (text, url) in [
            ("localhost:9464", "http://localhost:9464/"),
            ("10.0.0.1:9464", "http://10.0.0.1:9464/"),
            ("worker-1", "http://worker-1/"),
            ("[::1]:9464", "http://[::1]:9464/"),
            ("https://w.example/", "https://w.example/"),
        ] {
            assert_eq!(worker_url(text).unwrap().as_str(), url);
        }
        for wrong in ["", "ftp://host", "unix:///run/consign", "host:port", "http://"] {
            let error = worker_url(wrong).unwrap_err();
            assert!(error.contains("http://127.0.0.1:9464"), "{wrong}: {error}");
        }
    }
}
