//! Asking a worker's admin endpoint.

use std::error::Error as _;
use std::time::Duration;

use serde_json::Value;
use url::Url;

const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(10);
/// What `/status` may hold: its lists are bounded, at some hundred KiB.
const LONGEST: usize = 8 << 20;

/// Reads the address of a worker's admin endpoint. Without a scheme it is http.
///
/// # Errors
/// How one is written.
pub(in crate::cli) fn worker_url(text: &str) -> Result<Url, String> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&whole).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| "write a worker's HOST:PORT, or its URL, such as http://127.0.0.1:9464".to_owned())
}

/// A client of admin endpoints. No proxy, no redirects: they are near.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Asker(reqwest::Client);

impl Asker {
    /// # Errors
    /// What the system lacks.
    pub(in crate::cli) fn new() -> Result<Self, String> {
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT).timeout(ANSWER);
        let built = builder.redirect(reqwest::redirect::Policy::none()).build();
        built.map(Self).map_err(|problem| format!("workers can't be asked: {problem}"))
    }

    /// `/status` of a worker, narrowed to destinations whose id contains a text.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub(in crate::cli) async fn status(&self, worker: &Url, destination: &str) -> Result<Value, String> {
        let mut url = worker.join("status").map_err(|problem| format!("no URL of a worker: {problem}"))?;
        if !destination.is_empty() {
            url.query_pairs_mut().append_pair("destination", destination);
        }
        let mut response = match self.0.get(url.clone()).send().await {
            Ok(response) => response,
            Err(problem) => return Err(self.unanswered(&url, &problem).await),
        };
        if !response.status().is_success() {
            return Err(format!("it answers {}; is it the admin endpoint of a worker?", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|problem| cause(&problem))? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST {
                return Err("its answer is too long for that of a worker".to_owned());
            }
        }
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status["worker"].is_string() { Ok(status) } else { Err("its answer is not that of a worker".to_owned()) }
    }
}

impl Asker {
    async fn unanswered(&self, url: &Url, problem: &reqwest::Error) -> String {
        match without_tls(url) {
            Some(plain) if problem.is_connect() && self.lives(&plain).await => {
                let host = plain.host_str().unwrap_or_default();
                let port = plain.port().map_or_else(String::new, |port| format!(":{port}"));
                format!("it answers without TLS; write http://{host}{port} instead of https")
            }
            _ => cause(problem),
        }
    }

    async fn lives(&self, worker: &Url) -> bool {
        self.0.get(worker.clone()).send().await.is_ok_and(|answer| answer.status().is_success())
    }
}

/// The same address, to be asked for signs of life without TLS; without a password that was meant for TLS.
fn without_tls(url: &Url) -> Option<Url> {
    let port = url.port_or_known_default().filter(|_| url.scheme() == "https")?;
    let mut plain = Url::parse("http://worker/livez").ok()?;
    plain.set_host(url.host_str()).ok()?;
    plain.set_port(Some(port)).ok()?;
    Some(plain)
}

/// The innermost cause says most.
fn cause(problem: &reqwest::Error) -> String {
    if problem.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause = problem.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| problem.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_the_address_is_the_same_and_the_password_is_left_out() {
        let plain = |url: &str| without_tls(&worker_url(url).unwrap()).map(String::from);
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
            let said = worker_url(wrong).unwrap_err();
            assert!(said.contains("http://127.0.0.1:9464"), "{wrong}: {said}");
        }
    }
}
