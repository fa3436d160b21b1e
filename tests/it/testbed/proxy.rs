//! A TCP proxy that breaks connections: latency, resets, a black hole, a cut after so many bytes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// What happens to the bytes that pass. A change takes effect at the next read of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// They pass.
    Fair,
    /// Each read is held back this long.
    Latency(Duration),
    /// Connections are reset.
    Reset,
    /// Connections stay open and nothing passes.
    BlackHole,
    /// A connection is closed once it has carried so many bytes towards the server.
    CutAfter(usize),
}

/// A proxy in front of one server. Ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
}

impl Proxy {
    pub async fn before(upstream: SocketAddr) -> Self {
        let (listener, address) = super::listener().await;
        let weather = Arc::new(Mutex::new(Weather::Fair));
        let proxy = Self { address, weather };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().carry(client, upstream));
            }
        });
        proxy
    }

    pub fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap()
    }

    async fn carry(self, client: TcpStream, upstream: SocketAddr) {
        if self.weather() == Weather::Reset {
            let _ = client.set_zero_linger();
            return;
        }
        let Ok(server) = TcpStream::connect(upstream).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let up = self.clone().pump(from_client, to_server, true);
        let down = self.pump(from_server, to_client, false);
        // Either end gone ends both, as a broken network would.
        tokio::select! { () = up => {}, () = down => {} }
    }

    async fn pump(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, upwards: bool) {
        let mut carried = 0;
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            carried += read;
            match self.weather() {
                Weather::Latency(delay) => tokio::time::sleep(delay).await,
                Weather::Reset => {
                    let _ = from.as_ref().set_zero_linger();
                    let _ = to.as_ref().set_zero_linger();
                    return;
                }
                Weather::BlackHole => std::future::pending().await,
                Weather::CutAfter(limit) if upwards && carried > limit => return,
                Weather::Fair | Weather::CutAfter(_) => {}
            }
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }
}
