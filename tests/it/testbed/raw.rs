//! AMQP 0-9-1 by hand: messages that no client library would write, and that a broker takes all the
//! same.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::broker::Broker;

/// A content header with nothing but headers.
pub fn with_headers(table: &[u8]) -> Vec<u8> {
    [&(1_u16 << 13).to_be_bytes()[..], &long(table)].concat()
}

/// A header without a value.
pub fn void(name: &[u8]) -> Vec<u8> {
    [&short(name)[..], b"V"].concat()
}

/// A header with a text.
pub fn text(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&short(name)[..], b"S", &long(value)].concat()
}

/// A header of so many lists (`A`) or tables (`F`) in each other.
pub fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let name: &[u8] = if kind == b'F' { &[0] } else { &[] };
    let wrap = |value: Vec<u8>| [&[kind][..], &long(&[name, &value].concat())].concat();
    let value = (0..levels).fold(b"V".to_vec(), |value, _| wrap(value));
    [short(b"nested"), value].concat()
}

/// A short string.
pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// Publishes to the jobs of a prefix, confirmed. `properties`: the flags and what they announce.
pub async fn publish(broker: &Broker, key: &[u8], properties: &[u8], body: &[u8]) {
    let mut line = Line::to(broker).await;
    line.call((1, 85, 10), &[0]).await;
    line.send((1, 60, 40), &[vec![0, 0], short(broker.prefix.as_bytes()), short(key), vec![0]].concat()).await;
    let head = [&[0, 60, 0, 0][..], &u64::try_from(body.len()).unwrap().to_be_bytes(), properties].concat();
    line.frame(2, 1, &head).await;
    line.frame(3, 1, body).await;
    assert_eq!(line.answer().await[..4], [0, 60, 0, 80], "the broker takes it");
}

/// Gets a message off a queue of this prefix and disconnects, so that it is redelivered.
pub async fn get_and_leave(broker: &Broker, queue: &str) {
    let mut line = Line::to(broker).await;
    let queue = format!("{}.{queue}", broker.prefix);
    line.send((1, 60, 70), &[vec![0, 0], short(queue.as_bytes()), vec![0]].concat()).await;
    assert_eq!(line.answer().await[..4], [0, 60, 0, 71], "there is one");
}

struct Line(TcpStream);

impl Line {
    /// A channel on a connection of its own.
    async fn to(broker: &Broker) -> Self {
        let url: url::Url = broker.url.parse().unwrap();
        let mut line = Self(TcpStream::connect((url.host_str().unwrap(), url.port().unwrap())).await.unwrap());
        line.0.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
        line.answer().await;
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap());
        let start = [long(b""), short(b"PLAIN"), long(login.as_bytes()), short(b"en_US")].concat();
        line.call((0, 10, 11), &start).await;
        line.send((0, 10, 31), &[&2047_u16.to_be_bytes()[..], &131_072_u32.to_be_bytes(), &[0, 0]].concat()).await;
        line.call((0, 10, 40), &[short(b"/"), short(b""), vec![0]].concat()).await;
        line.call((1, 20, 10), &short(b"")).await;
        line
    }

    async fn call(&mut self, method: (u8, u8, u8), arguments: &[u8]) {
        self.send(method, arguments).await;
        self.answer().await;
    }

    async fn send(&mut self, (channel, class, method): (u8, u8, u8), arguments: &[u8]) {
        self.frame(1, channel, &[&[0, class, 0, method][..], arguments].concat()).await;
    }

    async fn frame(&mut self, kind: u8, channel: u8, content: &[u8]) {
        let frame = [&[kind, 0, channel][..], &long(content), &[0xce]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    async fn answer(&mut self) -> Vec<u8> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await.unwrap();
        let size = u32::from_be_bytes(head[3..].try_into().unwrap());
        let mut content = vec![0; usize::try_from(size).unwrap() + 1];
        self.0.read_exact(&mut content).await.unwrap();
        content
    }
}
