//! URLs and addresses that a job may read from. A job's URL comes from outside, so it must not
//! reach what only this worker can reach: metadata services, the private network, the worker
//! itself.
//!
//! The resolver checks every address of a name, and the client connects only to checked addresses.
//! Nothing is resolved again between check and connection, so DNS rebinding has no effect.

mod addresses;

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::config::SourceConfig;
use crate::domain::outcome::{Failure, Reason};
use crate::runtime::causes::causes;
use addresses::{carried_v4, forbidden_kind, never_allowed};

/// The rules of `[source]` for URLs. Also the resolver of the http client.
#[derive(Debug, Clone)]
#[expect(clippy::struct_field_names, reason = "named as the settings")]
pub(crate) struct UrlGuard {
    /// Allows `http://`.
    pub(super) allow_http: bool,
    /// Allows every address but those that are never read from.
    pub(super) allow_private_networks: bool,
    /// Networks that are allowed though they are not public, with the same exception.
    pub(super) allow_networks: Vec<IpNet>,
}

impl UrlGuard {
    /// Takes the rules of `[source]`.
    pub(crate) fn new(config: &SourceConfig) -> Self {
        Self {
            allow_http: config.allow_http,
            allow_private_networks: config.allow_private_networks,
            allow_networks: config.allow_networks.clone(),
        }
    }

    /// Checks the URL of a job or of a redirect. Any port is allowed. An address in the URL is
    /// checked here, a name when it is resolved. Fails as `source_forbidden`.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Failure> {
        let refuse = |why: &str| Err(Failure::new(Reason::SourceForbidden, format!("{}: {why}", RedactedUrl(url))));
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return refuse("http is disabled (source.allow_http); use https"),
            _ if self.allow_http => return refuse("only https and http are followed"),
            _ => return refuse("only https is followed"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("a user name or password in the URL is not allowed; use a presigned URL");
        }
        let ip = match url.host() {
            Some(Host::Ipv4(ip)) => ip.into(),
            Some(Host::Ipv6(ip)) => ip.into(),
            Some(Host::Domain(name)) if !name.is_empty() => return Ok(()),
            _ => return refuse("the URL has no host; write https://host/path"),
        };
        self.check_address(ip).or_else(|error| refuse(&error.to_string()))
    }

    /// Checks an address, and the IPv4 addresses that it may carry: a connection to the one reaches
    /// the other.
    pub(crate) fn check_address(&self, ip: IpAddr) -> Result<(), ForbiddenAddress> {
        if let Some(kind) = never_allowed(ip) {
            return Err(ForbiddenAddress { ip, kind, setting: "which no setting allows" });
        }
        self.check_kind(ip)?;
        let carried = carried_v4(ip).try_for_each(|carried| self.check_address(carried.into()));
        carried.map_err(|inner| ForbiddenAddress { ip, ..inner })
    }

    fn check_kind(&self, ip: IpAddr) -> Result<(), ForbiddenAddress> {
        match forbidden_kind(ip) {
            Some(kind) if !self.allow_private_networks && !self.allow_networks.iter().any(|net| net.contains(&ip)) => {
                let setting = "and neither source.allow_networks nor source.allow_private_networks allows it";
                Err(ForbiddenAddress { ip, kind, setting })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a name with a single forbidden address: a name that points both outside and inside
    /// is an attack.
    fn check_addresses(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ForbiddenAddress> {
        addresses.iter().try_for_each(|address| self.check_address(address.ip()))?;
        Ok(addresses)
    }
}

impl Resolve for UrlGuard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let checked: Addrs = Box::new(guard.check_addresses(found)?.into_iter());
            Ok(checked)
        })
    }
}

/// An address that may not be read from. Travels inside the http client's error.
#[derive(Debug, thiserror::Error)]
#[error("the host is at {ip}, {kind}, {setting}")]
pub(crate) struct ForbiddenAddress {
    ip: IpAddr,
    kind: &'static str,
    setting: &'static str,
}

impl ForbiddenAddress {
    /// Returns the forbidden address that caused an error of the http client, if one did.
    pub(super) fn behind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        causes(error).find_map(|error| error.downcast_ref())
    }
}

/// Displays a URL for logs and outcomes, without the query (the query of a presigned URL is a
/// secret) and without user info.
#[derive(Debug, Clone, Copy)]
pub(super) struct RedactedUrl<'a>(pub(super) &'a Url);

impl fmt::Display for RedactedUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.0;
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: UrlGuard = UrlGuard { allow_http: false, allow_private_networks: false, allow_networks: Vec::new() };

    fn check(guard: &UrlGuard, url: &str) -> Option<String> {
        guard.check(&Url::parse(url).unwrap()).err().map(|failure| {
            assert_eq!(failure.reason, Reason::SourceForbidden, "{url}");
            failure.message
        })
    }

    #[test]
    fn forbidden_urls_are_refused_with_the_reason() {
        for (url, why) in [
            ("http://example.com/f", "allow_http"),
            ("ftp://example.com/f", "only https is followed"),
            ("https://user@example.com/f", "user name"),
            ("https://:password@example.com/f", "user name"),
            ("https://127.0.0.1/f", "loopback"),
            ("https://2130706433/f", "loopback"),
            ("https://0x7f.1/f", "loopback"),
            ("https://0251.0376.0251.0376/latest", "link-local"),
            ("https://[::ffff:10.0.0.1]:8443/f", "IPv4-mapped"),
            ("https://[fd00:ec2::254]/latest", "unique local"),
        ] {
            let message = check(&STRICT, url).unwrap_or_default();
            assert!(message.contains(why), "{url}: {message}");
        }
    }

    #[test]
    fn enabled_settings_allow_the_url() {
        let open = UrlGuard { allow_http: true, allow_private_networks: true, ..STRICT };
        assert_eq!(check(&STRICT, "https://example.com:8443/f?x"), None);
        assert_eq!(check(&STRICT, "https://8.8.8.8/f"), None);
        assert_eq!(check(&open, "http://127.0.0.1:80/f"), None);
        assert!(check(&UrlGuard { allow_private_networks: false, ..open.clone() }, "http://10.0.0.1/").is_some());
        assert!(check(&UrlGuard { allow_http: false, ..open }, "http://10.0.0.1/").is_some());
    }

    #[test]
    fn messages_hide_the_query_and_the_password() {
        let message = check(&STRICT, "https://u:hidden@example.com/f?X-Amz-Signature=hidden").unwrap();
        assert!(message.contains("https://example.com/f") && !message.contains("hidden"), "{message}");
    }

    #[test]
    fn one_forbidden_address_makes_a_name_forbidden() {
        let addresses =
            |list: &[&str]| list.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect::<Vec<_>>();
        assert!(STRICT.check_addresses(addresses(&["8.8.8.8", "10.0.0.1"])).is_err());
        assert!(STRICT.check_addresses(addresses(&["8.8.8.8", "1.1.1.1"])).is_ok());
    }

    #[tokio::test]
    async fn the_resolver_returns_checked_addresses_only() {
        let refused = STRICT.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(ForbiddenAddress::behind(refused.as_ref()).is_some(), "{refused}");
        let open = UrlGuard { allow_private_networks: true, ..STRICT };
        assert!(open.resolve("localhost".parse().unwrap()).await.unwrap().all(|address| address.ip().is_loopback()));
    }
}
