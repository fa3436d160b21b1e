//! Equipment of the tests: the broker, moto, a scripted S3 and STS, sources, a fault proxy, the
//! worker as a process, and what is checked after every fault.

pub mod broker;
pub mod browser;
pub mod ceph;
pub mod checker;
pub mod embedded;
pub mod ledger;
pub mod ministack;
pub mod moto;
pub mod node;
pub mod proxy;
pub mod raw;
pub mod rust;
pub mod scripted;
pub mod site;
pub mod sources;
pub mod worker;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

/// Variable that `tests/run` exports; without it a test can only say how to be run.
pub fn exported(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: this test needs the servers of tests/run"))
}

/// Asks again and again until there is an answer; the limit only keeps a broken program from
/// hanging the test.
pub async fn until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A client for plain HTTP on loopback: no proxy, and no certificates to load each time it is made.
pub fn http() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]).pool_max_idle_per_host(0);
    builder.build().unwrap()
}

/// A listener on a free loopback port, below the range from which the kernel draws the ports of
/// clients.
pub async fn listener() -> (TcpListener, SocketAddr) {
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, candidate()));
        if let Ok(listener) = TcpListener::bind(address).await {
            return (listener, address);
        }
    }
}

/// A port that was free a moment ago, for a process that binds it itself.
pub async fn free_port() -> u16 {
    listener().await.1.port()
}

fn candidate() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let step = NEXT.fetch_add(1, Ordering::Relaxed);
    let mixed = std::process::id().wrapping_mul(2_654_435_761).rotate_left(9).wrapping_add(step.wrapping_mul(7919));
    u16::try_from(12_000 + mixed % 18_000).unwrap()
}

/// Bytes that look random and are the same for the same seed: what a source serves and an object
/// must equal.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Content as unpacked by `gzip` or `zstd`, the tools that customers use.
pub fn unpacked(tool: &str, bytes: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("packed");
    std::fs::write(&file, bytes).unwrap();
    let stdin = std::fs::File::open(file).unwrap();
    let output = std::process::Command::new(tool).arg("-dc").stdin(stdin).output().unwrap();
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A short word that no other test run uses: prefixes of queues, names of buckets and users.
pub fn unique(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{word}-{:x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;
