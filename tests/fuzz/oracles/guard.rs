//! URLs and addresses of sources, against a classification that is written down here once more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use consign::config::{self, SourceConfig, parse_network};
use consign::domain::job::Location;
use consign::fuzzing;
use ipnet::IpNet;
use url::{Host, Url};

/// Stands for the signature of a presigned URL.
const CANARY: &str = "cAnArY";
/// Not public, beyond what the standard library knows: IANA's special-purpose registries.
static SPECIAL: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    networks(
        "0.0.0.0/8 100.64.0.0/10 192.0.0.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 198.18.0.0/15 240.0.0.0/4 \
         ::/3 2001::/23 2001:db8::/32 2002::/16 3fff::/20 4000::/2 8000::/1",
    )
});
/// What no setting opens.
static NEVER: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    networks(
        "0.0.0.0/8 169.254.0.0/16 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32 224.0.0.0/3 \
         ::/128 fd00:ec2::/32 fd20:ce::/64 fe80::/10 ff00::/8",
    )
});
/// Rules that a platform may choose; the first has the defaults.
static RULES: LazyLock<[SourceConfig; 4]> = LazyLock::new(|| {
    let strict = config::load_str("").expect("the defaults are valid").config.source;
    let opened = |names: &str| SourceConfig { allow_networks: networks(names), ..strict.clone() };
    [
        strict.clone(),
        SourceConfig { allow_http: true, allow_private_networks: true, ..strict.clone() },
        opened("10.0.0.0/8 127.0.0.0/8 fd00::/8 64:ff9b::/32 ::ffff:0:0/96"),
        opened("0.0.0.0/0 ::/0"),
    ]
});

fn networks(names: &str) -> Vec<IpNet> {
    names.split_whitespace().map(|name| parse_network(name).expect("a network")).collect()
}

/// The first byte chooses the rules, the rest is an address or the URL of a job.
pub fn guard(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let rules = &RULES[usize::from(first % 4)];
    if let Ok(octets) = <[u8; 16]>::try_from(rest) {
        address(rules, Ipv6Addr::from(octets).into());
    }
    if let Ok(octets) = <[u8; 4]>::try_from(rest) {
        address(rules, Ipv4Addr::from(octets).into());
    }
    if let Ok(Ok(Location::Http(at))) = std::str::from_utf8(rest).map(Location::parse) {
        url(rules, &at);
    }
}

fn address(rules: &SourceConfig, ip: IpAddr) {
    assert_eq!(fuzzing::permits_address(rules, ip), may_be_read(rules, ip), "{ip} {rules:?}");
}

/// Also for the target of a redirect.
pub(super) fn url_is_checked(at: &Url) {
    RULES.iter().for_each(|rules| url(rules, at));
}

fn url(rules: &SourceConfig, at: &Url) {
    match fuzzing::check_url(rules, at) {
        Ok(()) => {
            assert!(at.scheme() == "https" || rules.allow_http && at.scheme() == "http", "{at}");
            assert!(at.username().is_empty() && at.password().is_none(), "{at}");
            match at.host().expect("a host") {
                Host::Ipv4(ip) => assert!(may_be_read(rules, ip.into()), "{at}"),
                Host::Ipv6(ip) => assert!(may_be_read(rules, ip.into()), "{at}"),
                Host::Domain(name) => assert!(!is_number(name), "{at}"),
            }
        }
        Err(failure) => {
            let is_secret = at.query().is_some_and(|query| query.contains(CANARY));
            let is_shown = at[..url::Position::AfterPath].to_lowercase().contains(&CANARY.to_lowercase());
            assert!(!is_secret || is_shown || !failure.message.contains(CANARY), "{}", failure.message);
        }
    }
}

/// Resolvers read such names as IPv4 addresses: `127.1`, `0x7f.1`, `2130706433`.
fn is_number(name: &str) -> bool {
    // A name with an empty label is none that can be resolved.
    let last = name.strip_suffix('.').unwrap_or(name).rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    !last.is_empty()
        && (last.bytes().all(|b| b.is_ascii_digit())
            || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())))
}

fn may_be_read(rules: &SourceConfig, ip: IpAddr) -> bool {
    let within = |list: &[IpNet]| list.iter().any(|network| network.contains(&ip));
    let opened = rules.allow_private_networks || within(&rules.allow_networks);
    !within(&NEVER)
        && (opened || is_public(ip))
        && carried(ip).into_iter().all(|inner| may_be_read(rules, inner.into()))
}

fn is_public(ip: IpAddr) -> bool {
    let special = SPECIAL.iter().any(|network| network.contains(&ip));
    !special
        && match ip {
            IpAddr::V4(ip) => {
                !(ip.is_private()
                    || ip.is_loopback()
                    || ip.is_link_local()
                    || ip.is_documentation()
                    || ip.is_multicast())
            }
            IpAddr::V6(ip) => ip.to_bits() >> 32 & 0xfdff_ffff != 0x5efe,
        }
}

/// IPv4 addresses that a gateway, a relay or this machine makes of an IPv6 address.
fn carried(ip: IpAddr) -> Vec<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return Vec::new() };
    let bits = ip.to_bits();
    let v4 = |shift: u32| Ipv4Addr::from_bits((bits >> shift & 0xffff_ffff) as u32);
    let mut found = Vec::new();
    // Mapped, compatible, NAT64 and ISATAP end with it.
    let ends = bits >> 32 == 0 && bits > 1 || bits >> 32 == 0xffff || bits >> 32 == 0x0064_ff9b << 64;
    if ends || bits >> 32 & 0xfdff_ffff == 0x5efe {
        found.push(v4(0));
    }
    match bits >> 96 {
        0x2001_0000 => found.push(Ipv4Addr::from_bits(!v4(0).to_bits())),
        top if top >> 16 == 0x2002 => found.push(v4(80)),
        _ => {}
    }
    if bits >> 80 == 0x0064_ff9b_0001 {
        found.push(v4(0));
        let is_service =
            |ip: &Ipv4Addr| ip.is_link_local() || NEVER[2..5].iter().any(|net| net.contains(&IpAddr::V4(*ip)));
        found.extend(nat64(bits).into_iter().filter(is_service));
    }
    found
}

/// The address in a NAT64 prefix of 48, 56 or 64 bits (RFC 6052): it goes around the bits 64 to 71.
fn nat64(bits: u128) -> [Ipv4Addr; 3] {
    let octets = bits.to_be_bytes();
    let without: Vec<u8> = octets.iter().enumerate().filter(|(at, _)| *at != 8).map(|(_, octet)| *octet).collect();
    [6, 7, 8].map(|from| Ipv4Addr::new(without[from], without[from + 1], without[from + 2], without[from + 3]))
}
