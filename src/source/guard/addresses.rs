//! Addresses that no job may read from: everything that is not the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A network and the kind of its addresses.
type NetworkKind = (IpNet, &'static str);

const fn v4(address: Ipv4Addr, length: u8, kind: &'static str) -> NetworkKind {
    (IpNet::V4(Ipv4Net::new_assert(address, length)), kind)
}

const fn v6(address: Ipv6Addr, length: u8, kind: &'static str) -> NetworkKind {
    (IpNet::V6(Ipv6Net::new_assert(address, length)), kind)
}

/// Networks that are not the public internet (IANA's special-purpose registry), and those inside
/// `2000::/3` that carry an IPv4 address. Everything outside of `2000::/3` is refused; those IPv6
/// networks are listed only for the message.
const NON_PUBLIC: [NetworkKind; 33] = [
    v4(Ipv4Addr::UNSPECIFIED, 8, "an unspecified address"),
    v4(Ipv4Addr::new(10, 0, 0, 0), 8, "a private address"),
    v4(Ipv4Addr::new(100, 64, 0, 0), 10, "a carrier-grade NAT address"),
    v4(Ipv4Addr::new(127, 0, 0, 0), 8, "a loopback address"),
    v4(Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local address"),
    v4(Ipv4Addr::new(172, 16, 0, 0), 12, "a private address"),
    v4(Ipv4Addr::new(192, 0, 0, 0), 24, "a protocol assignment address"),
    v4(Ipv4Addr::new(192, 0, 2, 0), 24, "a documentation address"),
    v4(Ipv4Addr::new(192, 31, 196, 0), 24, "a reserved address"),
    v4(Ipv4Addr::new(192, 52, 193, 0), 24, "a reserved address"),
    v4(Ipv4Addr::new(192, 88, 99, 0), 24, "a 6to4 relay address"),
    v4(Ipv4Addr::new(192, 168, 0, 0), 16, "a private address"),
    v4(Ipv4Addr::new(198, 18, 0, 0), 15, "a benchmark address"),
    v4(Ipv4Addr::new(198, 51, 100, 0), 24, "a documentation address"),
    v4(Ipv4Addr::new(203, 0, 113, 0), 24, "a documentation address"),
    v4(Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast address"),
    v4(Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved address"),
    v6(Ipv6Addr::UNSPECIFIED, 128, "an unspecified address"),
    v6(Ipv6Addr::LOCALHOST, 128, "a loopback address"),
    v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "an IPv4-mapped address"),
    v6(Ipv6Addr::UNSPECIFIED, 96, "an IPv4-compatible address"),
    v6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, "a NAT64 address"),
    v6(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "a NAT64 address"),
    v6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, "a discard address"),
    v6(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, "a Teredo address"),
    v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "a documentation address"),
    v6(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a protocol assignment address"),
    v6(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "a 6to4 address"),
    v6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "a documentation address"),
    v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "a unique local address"),
    v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "a link-local address"),
    v6(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "a site-local address"),
    v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "a multicast address"),
];

/// Networks that no setting opens: services of the cloud that hand out credentials, link-local
/// neighbours, and addresses that are no single host.
const NEVER: [NetworkKind; 12] = [
    v4(Ipv4Addr::UNSPECIFIED, 8, "an unspecified address"),
    v4(Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local address"),
    v4(Ipv4Addr::new(100, 100, 100, 200), 32, "a cloud metadata address"),
    v4(Ipv4Addr::new(168, 63, 129, 16), 32, "a cloud metadata address"),
    v4(Ipv4Addr::new(192, 0, 0, 192), 32, "a cloud metadata address"),
    v4(Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast address"),
    v4(Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved address"),
    v6(Ipv6Addr::UNSPECIFIED, 128, "an unspecified address"),
    v6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32, "a cloud metadata (unique local) address"),
    v6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0), 64, "a cloud metadata (unique local) address"),
    v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "a link-local address"),
    v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "a multicast address"),
];

fn listed(networks: &[NetworkKind], ip: IpAddr) -> Option<&'static str> {
    networks.iter().find(|(network, _)| network.contains(&ip)).map(|(_, kind)| *kind)
}

/// Returns the kind of an address that is forbidden whatever the settings say.
pub(super) fn never_allowed(ip: IpAddr) -> Option<&'static str> {
    listed(&NEVER, ip).or_else(|| nat64_never_allowed(ip))
}

/// The local-use prefix of NAT64 may be cut anywhere (RFC 8215), and the IPv4 address follows the
/// cut, around the bits 64 to 71 (RFC 6052). Returns the kind of a service that would be reached.
fn nat64_never_allowed(ip: IpAddr) -> Option<&'static str> {
    let IpAddr::V6(ip) = ip else { return None };
    let octets = ip.octets();
    if !matches!(ip.segments(), [0x64, 0xff9b, 1, ..]) {
        return None;
    }
    let carried = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12]].map(|at| Ipv4Addr::from(at.map(|at| octets[at])));
    // What looks unspecified or reserved may be the rest of a longer prefix.
    let services = |kind: &&str| kind.contains("metadata") || kind.contains("link-local");
    carried.into_iter().filter_map(|ip| never_allowed(ip.into())).find(services)
}

/// Returns the IPv4 addresses that an IPv6 address carries: mapped, compatible, NAT64 or ISATAP at
/// the end, and those of 6to4 and Teredo, whose interface may be ISATAP.
pub(super) fn carried_v4(ip: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
    let segments = match ip {
        IpAddr::V6(ip) if !ip.is_loopback() && !ip.is_unspecified() => ip.segments(),
        _ => return [None, None].into_iter().flatten(),
    };
    let pair = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let at_the_end = match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, .., high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(pair(high, low)),
        _ => None,
    };
    let in_the_prefix = match segments {
        [0x2001, 0, .., high, low] => Some(pair(!high, !low)),
        [0x2002, high, low, ..] => Some(pair(high, low)),
        _ => None,
    };
    [at_the_end, in_the_prefix].into_iter().flatten()
}

/// Returns the kind of a forbidden address; `None` for an address of the public internet.
pub(super) fn forbidden_kind(ip: IpAddr) -> Option<&'static str> {
    let beyond = || {
        let IpAddr::V6(ip) = ip else { return None };
        match ip.segments() {
            // ISATAP: an interface id of 0:5efe or 200:5efe carries an IPv4 address in its last 32 bits.
            [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Some("an ISATAP address"),
            [0x2000..=0x3fff, ..] => None,
            _ => Some("a reserved address"),
        }
    };
    listed(&NON_PUBLIC, ip).or_else(beyond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_outside_the_public_internet_are_forbidden_kind() {
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
            let found = forbidden_kind(address.parse().unwrap()).unwrap_or("public");
            assert!(found.contains(kind), "{address} is {found}, not {kind}");
        }
    }

    #[test]
    fn services_behind_a_local_nat64_prefix_are_never_allowed() {
        for address in ["64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:a9:fe:a9fe::", "64:ff9b:1:0:a9:fea9:fe00:0"] {
            assert!(never_allowed(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in ["64:ff9b:1::808:808", "64:ff9b:1::a00:1", "64:ff9b:2:a9fe:a9:fe00::"] {
            assert_eq!(never_allowed(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn public_addresses_are_allowed() {
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
            assert_eq!(forbidden_kind(address.parse().unwrap()), None, "{address}");
        }
    }
}
