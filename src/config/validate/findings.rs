//! The problems found so far, and the checks that several sections share.

use std::path::Path;

use ipnet::IpNet;

use crate::domain::destination::Invalid;

/// Problems of the values, each with its key, reason and remedy.
#[derive(Default)]
pub(super) struct Findings(pub(super) Vec<Invalid>);

impl Findings {
    pub(super) fn add(&mut self, key: &str, problem: impl Into<String>) {
        self.0.push(Invalid::new(key, problem));
    }

    pub(super) fn require(&mut self, holds: bool, key: &str, problem: &str) {
        if !holds {
            self.add(key, problem);
        }
    }

    /// Returns the value, or adds the problem under `key`.
    pub(super) fn parsed<T>(&mut self, key: &str, parsed: Option<Result<T, Invalid>>) -> Option<T> {
        match parsed? {
            Ok(value) => Some(value),
            Err(invalid) => {
                self.add(key, invalid.problem);
                None
            }
        }
    }

    /// The path is not quoted: it may be a secret that belongs to another key.
    pub(super) fn require_readable(&mut self, key: &str, file: Option<&Path>) {
        let Some(file) = file else { return };
        if let Err(problem) = std::fs::File::open(file) {
            self.add(key, format!("names a file that can't be read: {problem}; give the path of a readable file"));
        }
    }

    /// Returns the networks, or adds a problem.
    pub(super) fn networks(&mut self, key: &str, texts: &[String]) -> Vec<IpNet> {
        let parsed: Result<Vec<_>, _> = texts.iter().map(|text| super::parse_network(text)).collect();
        parsed.unwrap_or_else(|problem| {
            self.add(key, format!("has an entry that {problem}"));
            Vec::new()
        })
    }

    pub(super) fn endpoint(&mut self, key: &str, text: Option<&str>) -> Option<url::Url> {
        let url = url::Url::parse(text?).ok().filter(|url| {
            let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
            matches!(url.scheme(), "http" | "https") && url.has_host() && bare
        });
        if url.is_none() {
            self.add(key, "is not an endpoint; give a URL such as \"https://s3.example.com\" without user and query");
        }
        url
    }
}
