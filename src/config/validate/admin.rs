//! Validation of `[admin]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::findings::Findings;
use crate::config::files::read_token;
use crate::config::raw::RawAdminConfig;
use crate::config::sections::AdminConfig;

/// Replaces an address that does not parse, until the problems are reported.
const PLACEHOLDER_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

pub(super) fn admin(raw: RawAdminConfig, findings: &mut Findings) -> AdminConfig {
    let listen = raw.listen.parse::<SocketAddr>();
    let problem = "is not an address with a port; write for example \"127.0.0.1:9464\" or \"[::1]:9464\"";
    findings.require(listen.is_ok(), "admin.listen", problem);
    let problem =
        "has an entry that is not a host name; give names or addresses without a port, such as \"consign.example\"";
    findings.require(raw.hosts.iter().all(|host| is_host(host)), "admin.hosts", problem);
    if let Some(Err(problem)) = raw.token_file.as_deref().map(read_token) {
        findings.add("admin.token_file", problem);
    }
    AdminConfig {
        listen: listen.unwrap_or(PLACEHOLDER_ADDRESS),
        hosts: raw.hosts.iter().map(|host| host.to_lowercase()).collect(),
        token_file: raw.token_file,
    }
}

fn is_host(host: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    let name = (1..=253).contains(&host.len()) && host.bytes().all(inner);
    name || host.parse::<IpAddr>().is_ok()
}
