//! Workers that commands query: their admin endpoints, and what they report of destinations.

mod client;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use url::Url;

pub(super) use client::{StatusClient, worker_url};

use crate::config::Config;
use crate::producer::pending::{WorkerReports, issues};

/// Time-out of one query about pending jobs. A slower worker is left out.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Workers of this queue that can explain why jobs are pending.
#[derive(Debug)]
pub(super) struct Workers {
    urls: Vec<Url>,
    prefix: String,
    token_file: Option<PathBuf>,
}

impl Workers {
    /// The workers in `named`, or else the worker of this configuration.
    pub(super) fn new(config: &Config, named: Vec<Url>) -> Self {
        let token_file = config.admin.token_file.clone();
        Self { urls: worker_urls(config, named), prefix: config.broker.prefix.clone(), token_file }
    }

    /// Returns the issues of `destinations`, as far as workers of this queue answer. Without
    /// destinations no worker is queried.
    pub(super) async fn reports(&self, destinations: &BTreeSet<&str>) -> WorkerReports {
        let (Some(first), Ok(client)) = (destinations.first(), StatusClient::new(self.token_file.as_deref())) else {
            return WorkerReports::default();
        };
        // Without a filter the failing ones come first.
        let filter = if destinations.len() == 1 { first } else { "" };
        let queries =
            self.urls.iter().map(async |url| tokio::time::timeout(QUERY_TIMEOUT, client.status(url, filter)).await);
        let answers = join_all(queries).await.into_iter().filter_map(|answer| answer.ok()?.ok());
        let ours: Vec<_> = answers.filter(|status| status["prefix"] == self.prefix.as_str()).collect();
        WorkerReports { issues: issues(&ours, destinations), unanswered: ours.is_empty().then(|| self.addresses()) }
    }

    /// Addresses without the user names and passwords that a URL may contain.
    fn addresses(&self) -> String {
        let addresses: Vec<_> = self.urls.iter().map(|url| url.origin().ascii_serialization()).collect();
        addresses.join(", ")
    }
}

/// Returns the URLs in `named`, or else that of the worker of this configuration.
pub(super) fn worker_urls(config: &Config, named: Vec<Url>) -> Vec<Url> {
    if named.is_empty() { own_url(config.admin.listen) } else { named }
}

/// Returns the URL at which the worker of this configuration listens. A worker that listens on all
/// addresses is reachable on loopback.
fn own_url(listen: SocketAddr) -> Vec<Url> {
    let mut address = listen;
    match address {
        SocketAddr::V4(_) if address.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(_) if address.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Url::parse(&format!("http://{address}/")).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_listens_on_all_addresses_is_queried_on_loopback() {
        let url = |text: &str| own_url(text.parse().unwrap())[0].to_string();
        assert_eq!(url("0.0.0.0:9464"), "http://127.0.0.1:9464/");
        assert_eq!(url("[::]:9464"), "http://[::1]:9464/");
        assert_eq!(url("10.0.0.1:1"), "http://10.0.0.1:1/");
    }

    #[test]
    fn a_password_is_not_part_of_an_address() {
        let urls = ["http://me:pw@w.example:9464/", "https://[::1]/"].map(|url| Url::parse(url).unwrap()).to_vec();
        let workers = Workers { urls, prefix: String::new(), token_file: None };
        assert_eq!(workers.addresses(), "http://w.example:9464, https://[::1]");
    }
}
