//! What may be read at all: URLs and addresses. A job's URL comes from elsewhere, so it must not reach what only this worker
//! can reach: metadata services, the private network, itself.
//!
//! Every address that a name resolves to is checked, and only checked ones are connected to: between check and connection
//! nothing is resolved again, so a name that changes its address (rebinding) gains nothing.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::domain::outcome::{Failure, Reason};

/// Why no job may read from this address; `None` for an address of the public internet.
pub fn forbidden(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => forbidden_v4(ip),
        IpAddr::V6(ip) => forbidden_v6(ip),
    }
}

/// IPv4 networks that are not the public internet (IANA's special-purpose registry): network, prefix length, name.
const V4: [(Ipv4Addr, u32, &str); 17] = [
    (Ipv4Addr::UNSPECIFIED, 8, "an unspecified address"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private address"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a carrier-grade NAT address"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "a loopback address"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local address"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private address"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "a protocol assignment address"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "a documentation address"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "a reserved address"),
    (Ipv4Addr::new(192, 52, 193, 0), 24, "a reserved address"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a 6to4 relay address"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private address"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "a benchmark address"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "a documentation address"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "a documentation address"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast address"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved address"),
];

/// IPv6 networks inside `2000::/3` that are not the public internet, or that carry an IPv4 address. What lies outside of
/// `2000::/3` is refused as a whole; its parts are named for the message only.
const V6: [(Ipv6Addr, u32, &str); 16] = [
    (Ipv6Addr::UNSPECIFIED, 128, "an unspecified address"),
    (Ipv6Addr::LOCALHOST, 128, "a loopback address"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "an IPv4-mapped address"),
    (Ipv6Addr::UNSPECIFIED, 96, "an IPv4-compatible address"),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, "a NAT64 address"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "a NAT64 address"),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, "a discard address"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, "a Teredo address"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "a documentation address"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a protocol assignment address"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "a 6to4 address"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "a documentation address"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "a unique local address"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "a link-local address"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "a site-local address"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "a multicast address"),
];

fn forbidden_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let inside = |net: &Ipv4Addr, length: u32| (ip.to_bits() ^ net.to_bits()) >> (32 - length) == 0;
    V4.iter().find(|(net, length, _)| inside(net, *length)).map(|(.., name)| *name)
}

fn forbidden_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let inside = |net: &Ipv6Addr, length: u32| (ip.to_bits() ^ net.to_bits()) >> (128 - length) == 0;
    let named = V6.iter().find(|(net, length, _)| inside(net, *length)).map(|(.., name)| *name);
    let global = inside(&Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
    // ISATAP: an interface id of 0:5efe or 200:5efe carries an IPv4 address in its last 32 bits.
    let isatap = matches!(ip.segments(), [_, _, _, _, 0 | 0x200, 0x5efe, ..]);
    named.or_else(|| isatap.then_some("an ISATAP address")).or_else(|| (!global).then_some("a reserved address"))
}

/// The rules of `[source]` for URLs. Cheap to copy; also the resolver of the http client.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// `http://` may be read.
    pub allow_http: bool,
    /// No address is refused.
    pub allow_private_networks: bool,
}

impl Guard {
    /// Checks a URL of a job or of a redirect. Any port is allowed. A host that is an address is checked here, a name when it
    /// is resolved. Fails as `source_forbidden`.
    pub fn check(self, url: &Url) -> Result<(), Failure> {
        let refuse = |why: &str| Err(Failure::new(Reason::SourceForbidden, format!("{}: {why}", Shown(url))));
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return refuse("http is off here (source.allow_http); use https"),
            _ if self.allow_http => return refuse("only https and http are followed"),
            _ => return refuse("only https is followed"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("a user name or password in the URL is refused");
        }
        let ip = match url.host() {
            Some(Host::Ipv4(ip)) => ip.into(),
            Some(Host::Ipv6(ip)) => ip.into(),
            Some(Host::Domain(name)) if !name.is_empty() => return Ok(()),
            _ => return refuse("there is no host in the URL"),
        };
        self.admit(ip).or_else(|error| refuse(&error.to_string()))
    }

    fn admit(self, ip: IpAddr) -> Result<(), Refused> {
        match forbidden(ip) {
            Some(kind) if !self.allow_private_networks => Err(Refused { ip, kind }),
            _ => Ok(()),
        }
    }

    /// One address that may not be reached spoils them all: a name that points both outside and inside is an attack.
    fn admit_all(self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        addresses.iter().try_for_each(|address| self.admit(address.ip()))?;
        Ok(addresses)
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = *self;
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let admitted: Addrs = Box::new(guard.admit_all(found)?.into_iter());
            Ok(admitted)
        })
    }
}

/// An address that may not be reached. Travels inside the http client's error.
#[derive(Debug)]
pub struct Refused {
    ip: IpAddr,
    kind: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host is at {}, {}, and source.allow_private_networks is off", self.ip, self.kind)
    }
}

impl Error for Refused {}

impl Refused {
    /// The refusal behind an error of the http client, if that is what stopped it.
    pub fn behind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref() {
                return Some(refused);
            }
            cause = error.source();
        }
        None
    }
}

/// A URL fit for logs and outcomes: the query of a presigned URL is a secret, and so is userinfo.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a Url);

impl fmt::Display for Shown<'_> {
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

    const STRICT: Guard = Guard { allow_http: false, allow_private_networks: false };

    #[test]
    fn what_is_not_the_public_internet_is_forbidden() {
        let table = [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.0.0.0", "private"),
            ("10.255.255.255", "private"),
            ("100.64.0.1", "carrier"),
            ("100.127.255.255", "carrier"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("169.254.169.254", "link-local"),
            ("169.254.170.2", "link-local"),
            ("169.254.170.23", "link-local"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.8", "protocol"),
            ("192.0.2.1", "documentation"),
            ("192.88.99.1", "6to4"),
            ("192.168.0.1", "private"),
            ("192.168.255.255", "private"),
            ("198.18.0.1", "benchmark"),
            ("198.19.255.255", "benchmark"),
            ("198.51.100.7", "documentation"),
            ("203.0.113.9", "documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:169.254.169.254", "IPv4-mapped"),
            ("::ffff:8.8.8.8", "IPv4-mapped"),
            ("::127.0.0.1", "IPv4-compatible"),
            ("64:ff9b::a9fe:a9fe", "NAT64"),
            ("64:ff9b:1::a00:1", "NAT64"),
            ("100::1", "discard"),
            ("2001::1", "Teredo"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
            ("2001:10::1", "protocol"),
            ("2001:db8::1", "documentation"),
            ("2002:a9fe:a9fe::1", "6to4"),
            ("2002:7f00:1::", "6to4"),
            ("2600:1f18::200:5efe:a00:1", "ISATAP"),
            ("3fff:1::1", "documentation"),
            ("4000::1", "reserved"),
            ("fc00::1", "unique local"),
            ("fd00:ec2::254", "unique local"),
            ("fd00:ec2::23", "unique local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
        ];
        for (address, kind) in table {
            let found = forbidden(address.parse().unwrap()).unwrap_or("public");
            assert!(found.contains(kind), "{address} is {found}, not {kind}");
        }
    }

    #[test]
    fn the_public_internet_is_allowed() {
        let table = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "52.218.0.1",
            "100.63.255.255",
            "100.128.0.0",
            "126.0.0.1",
            "128.0.0.1",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2600:1f18::1",
            "2606:4700::1111",
            "2a00:1450:4001::200e",
            "2001:4860:4860::8888",
            "2003::1",
        ];
        for address in table {
            assert_eq!(forbidden(address.parse().unwrap()), None, "{address}");
        }
    }

    fn check(guard: Guard, url: &str) -> Option<String> {
        guard.check(&Url::parse(url).unwrap()).err().map(|failure| {
            assert_eq!(failure.reason, Reason::SourceForbidden, "{url}");
            failure.message
        })
    }

    #[test]
    fn urls_are_refused_for_a_stated_reason() {
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
            let message = check(STRICT, url).unwrap_or_default();
            assert!(message.contains(why), "{url}: {message}");
        }
    }

    #[test]
    fn what_is_switched_on_is_allowed() {
        let open = Guard { allow_http: true, allow_private_networks: true };
        assert_eq!(check(STRICT, "https://example.com:8443/f?x"), None);
        assert_eq!(check(STRICT, "https://8.8.8.8/f"), None);
        assert_eq!(check(open, "http://127.0.0.1:80/f"), None);
        assert!(check(Guard { allow_private_networks: false, ..open }, "http://10.0.0.1/").is_some());
        assert!(check(Guard { allow_http: false, ..open }, "http://10.0.0.1/").is_some());
    }

    #[test]
    fn messages_keep_the_query_and_the_password_back() {
        let message = check(STRICT, "https://u:hidden@example.com/f?X-Amz-Signature=hidden").unwrap();
        assert!(message.contains("https://example.com/f") && !message.contains("hidden"), "{message}");
    }

    #[test]
    fn one_bad_address_spoils_a_name() {
        let addresses =
            |list: &[&str]| list.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect::<Vec<_>>();
        assert!(STRICT.admit_all(addresses(&["8.8.8.8", "10.0.0.1"])).is_err());
        assert!(STRICT.admit_all(addresses(&["8.8.8.8", "1.1.1.1"])).is_ok());
    }

    #[tokio::test]
    async fn the_resolver_hands_out_checked_addresses_only() {
        let refused = STRICT.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(Refused::behind(refused.as_ref()).is_some(), "{refused}");
        let open = Guard { allow_private_networks: true, ..STRICT };
        assert!(open.resolve("localhost".parse().unwrap()).await.unwrap().all(|address| address.ip().is_loopback()));
    }
}
