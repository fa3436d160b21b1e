//! A TCP proxy that breaks connections: latency, resets, a black hole, a cut after so many bytes, a
//! half close.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::ledger;

/// Condition of every connection, from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// They pass.
    Normal,
    /// Each read is held back this long.
    Latency(Duration),
    /// Connections are reset, those that are idle as well.
    Reset,
    /// Connections stay open and nothing passes; what was held back passes when the condition
    /// changes.
    BlackHole,
    /// A connection is closed once it has carried so many bytes towards the server.
    CutAfter(usize),
    /// A connection is closed once it has carried so many bytes towards the client.
    CutReplyAfter(usize),
    /// The server's end shuts its write half and keeps reading: the client reads an end, and can
    /// still write.
    HalfClose,
}

impl Condition {
    fn kind(self) -> Option<&'static str> {
        Some(match self {
            Self::Normal => return None,
            Self::Latency(_) => "latency",
            Self::Reset => "connections reset",
            Self::BlackHole => "black hole",
            Self::CutAfter(_) | Self::CutReplyAfter(_) => "connections cut",
            Self::HalfClose => "half close",
        })
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

/// A proxy in front of one server. Ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    condition: watch::Sender<Condition>,
}

impl Proxy {
    pub async fn before(upstream: SocketAddr) -> Self {
        let (listener, address) = super::listener().await;
        let proxy = Self { address, condition: watch::Sender::new(Condition::Normal) };
        let condition = proxy.condition.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(condition.subscribe(), client, upstream));
            }
        });
        proxy
    }

    pub fn set(&self, condition: Condition) {
        if let Some(kind) = condition.kind() {
            ledger::fault(kind);
        }
        self.condition.send_replace(condition);
    }

    /// The URL with this proxy in place of its host and port.
    pub fn in_place_of(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_host(Some(&self.address.ip().to_string())).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.to_string()
    }
}

/// The address of an URL whose host is one.
pub fn address_of(url: &str) -> SocketAddr {
    let url = url::Url::parse(url).unwrap();
    format!("{}:{}", url.host_str().unwrap(), url.port().unwrap()).parse().unwrap()
}

async fn carry(condition: watch::Receiver<Condition>, client: TcpStream, upstream: SocketAddr) {
    if *condition.borrow() == Condition::Reset {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = pump(condition.clone(), from_client, to_server, Way::ToServer);
    let down = pump(condition, from_server, to_client, Way::ToClient);
    // Either end gone ends both, as a broken network would.
    tokio::select! { () = up => {}, () = down => {} }
}

async fn pump(mut condition: watch::Receiver<Condition>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way) {
    let mut carried = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            biased;
            interruption = interruption(&mut condition) => Err(interruption),
            read = from.read(&mut buffer) => Ok(read),
        };
        let read = match read {
            Ok(read) => read,
            Err(Condition::HalfClose) => return half_close(&mut from, to, way).await,
            Err(_) => {
                let _ = from.as_ref().set_zero_linger();
                let _ = to.as_ref().set_zero_linger();
                return;
            }
        };
        let Ok(read @ 1..) = read else { return };
        carried += read;
        let now = *condition.borrow();
        match now {
            Condition::Latency(delay) => tokio::time::sleep(delay).await,
            Condition::BlackHole => drop(condition.wait_for(|now| *now != Condition::BlackHole).await),
            Condition::CutAfter(limit) if way == Way::ToServer && carried > limit => return,
            Condition::CutReplyAfter(limit) if way == Way::ToClient && carried > limit => return,
            _ => {}
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Waits for what meets idle connections, too.
async fn interruption(condition: &mut watch::Receiver<Condition>) -> Condition {
    let interruption = condition.wait_for(|now| matches!(now, Condition::Reset | Condition::HalfClose)).await;
    interruption.map_or(Condition::Reset, |now| *now)
}

/// Towards the client: an end. Towards the server: everything is swallowed until the client hangs
/// up.
async fn half_close(from: &mut OwnedReadHalf, mut to: OwnedWriteHalf, way: Way) {
    match way {
        Way::ToClient => {
            let _ = to.shutdown().await;
            std::future::pending::<()>().await;
        }
        Way::ToServer => {
            let mut swallowed = vec![0; 16 * 1024];
            while let Ok(1..) = from.read(&mut swallowed).await {}
        }
    }
}
