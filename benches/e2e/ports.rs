//! Loopback ports below the ephemeral range, so that no outgoing connection can sit on one.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;

const FIRST: u16 = 27_100;
const LAST: u16 = 27_999;

/// The first free one from a place on that depends on the process, bound: two benches at once then
/// rarely take the same port.
pub async fn listen() -> io::Result<TcpListener> {
    let ports = LAST - FIRST + 1;
    let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(ports)).unwrap_or_default();
    for port in (0..ports).map(|index| FIRST + (start + index) % ports) {
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            return Ok(listener);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free port of {FIRST}-{LAST} on 127.0.0.1")))
}

/// A port that was free a moment ago, for a process that binds it itself.
pub async fn free() -> io::Result<SocketAddr> {
    listen().await?.local_addr()
}
