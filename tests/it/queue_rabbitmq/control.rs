//! Control messages on RabbitMQ: a stream that is read over reconnections, and done without where
//! it is missing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use consign::queue::ControlEvent;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::leases::url_of;
use super::*;
use crate::testbed;

/// Messages of a backlog: more than the reader buffers, and than the broker sends ahead.
const BACKLOG: usize = 1_000;
/// Longer than the reader waits for the broker.
const SLOW: Duration = Duration::from_secs(6);

impl Rabbit {
    /// The next control message, leaving out those that were `seen`.
    async fn control(queue: &dyn Queue, seen: &[&'static str]) -> ControlEvent {
        loop {
            let next = tokio::time::timeout(LIMIT, queue.next_control()).await.expect("nothing came").expect("closed");
            match &next {
                ControlEvent::Message(body) if seen.iter().any(|seen| body == seen) => {}
                ControlEvent::Fleet(_) | ControlEvent::Interrupted | ControlEvent::Unreadable => {}
                _ => return next,
            }
        }
    }
}

fn message(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnection_loses_no_control_message() {
    let rabbit = Rabbit::new("again").await;
    let other = rabbit.open().await;
    let Doomed { queue, cut, mend } = rabbit.doomed().await;
    other.publish_control(message("a")).await.unwrap();
    assert_eq!(Rabbit::control(&*queue, &["a"]).await, ControlEvent::CaughtUp);
    other.publish_control(message("b")).await.unwrap();
    assert_eq!(Rabbit::control(&*queue, &["a"]).await, ControlEvent::Message(message("b")));
    cut();
    other.publish_control(message("c")).await.unwrap();
    other.publish_control(message("d")).await.unwrap();
    mend();
    assert_eq!(Rabbit::control(&*queue, &["a", "b"]).await, ControlEvent::Message(message("c")));
    assert_eq!(Rabbit::control(&*queue, &["a", "b", "c"]).await, ControlEvent::Message(message("d")));
    queue.close().await;
    other.close().await;
}

/// Until it has read what it missed, a worker does not count as knowing it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_reported_before_the_messages_that_were_missed() {
    let rabbit = Rabbit::new("interrupted").await;
    let other = rabbit.open().await;
    let Doomed { queue, cut, mend } = rabbit.doomed().await;
    assert_eq!(Rabbit::control(&*queue, &[]).await, ControlEvent::CaughtUp);
    cut();
    other.publish_control(message("a")).await.unwrap();
    mend();
    let mut events = Vec::new();
    while events.last() != Some(&ControlEvent::CaughtUp) {
        let next = tokio::time::timeout(LIMIT, queue.next_control()).await.unwrap().unwrap();
        events.extend(Some(next).filter(|event| !matches!(event, ControlEvent::Fleet(_))));
    }
    assert_eq!(events, [ControlEvent::Interrupted, ControlEvent::Message(message("a")), ControlEvent::CaughtUp]);
    queue.close().await;
    other.close().await;
}

/// A worker that is slow to take a long backlog must not be believed to know it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_caught_up_only_when_it_has_read_a_long_backlog() {
    let rabbit = Rabbit::new("backlog").await;
    let other = rabbit.open().await;
    for _ in 0..BACKLOG {
        other.publish_control(message("a")).await.unwrap();
    }
    let queue = rabbit.start();
    queue.wait_connected(LIMIT).await.unwrap();
    tokio::time::sleep(SLOW).await;
    let mut read = 0;
    while tokio::time::timeout(LIMIT, queue.next_control()).await.unwrap().unwrap() != ControlEvent::CaughtUp {
        read += 1;
    }
    assert!(read >= BACKLOG, "{read} messages before CaughtUp");
    queue.close().await;
    other.close().await;
}

/// Passes everything on to the broker, but ends the first connection by which a stream is read.
async fn ending_the_first_reader(config: &BrokerConfig) -> BrokerConfig {
    /// Argument of the consumer of a stream.
    const READS: &[u8] = b"x-stream-offset";
    let mut url: url::Url = url_of(config).parse().unwrap();
    let upstream = SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()));
    let (listener, address) = testbed::listener().await;
    url.set_port(Some(address.port())).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = TcpStream::connect(upstream).await.unwrap().into_split();
            let ended = Arc::clone(&ended);
            let answers = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                    let reads = bytes[..count].windows(READS.len()).any(|window| window == READS);
                    if reads && !ended.swap(true, Ordering::SeqCst)
                        || to_server.write_all(&bytes[..count]).await.is_err()
                    {
                        break;
                    }
                }
                answers.abort();
            });
        }
    });
    BrokerConfig { url: Some(url.to_string().into()), ..config.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_could_not_begin_to_read_has_not_caught_up() {
    let rabbit = Rabbit::new("unread").await;
    let other = rabbit.open().await;
    other.publish_control(message("a")).await.unwrap();
    let queue = rabbit.start_named("worker", &ending_the_first_reader(&rabbit.config).await);
    assert_eq!(Rabbit::control(&*queue, &[]).await, ControlEvent::Message(message("a")));
    assert_eq!(Rabbit::control(&*queue, &[]).await, ControlEvent::CaughtUp);
    queue.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_stream_a_worker_has_caught_up_and_reads_it_once_it_exists() {
    let rabbit = Rabbit::new("missing-stream").await;
    rabbit.delete("control").await;
    let queue = rabbit.start();
    queue.wait_connected(LIMIT).await.unwrap();
    let first = tokio::time::timeout(LIMIT, queue.next_control()).await.unwrap();
    assert_eq!(first, Some(ControlEvent::Unreadable));
    assert_eq!(Rabbit::control(&*queue, &[]).await, ControlEvent::CaughtUp);
    let refused = queue.publish_control(message("a")).await.unwrap_err().to_string();
    assert!(refused.contains(&rabbit.name("control")) && refused.contains("consign topology apply"), "{refused}");
    assert!(queue.ready().is_ok());
    queue::admin(&rabbit.config, "test").apply_topology().await.unwrap();
    queue.publish_control(message("b")).await.unwrap();
    assert_eq!(Rabbit::control(&*queue, &[]).await, ControlEvent::Message(message("b")));
    // Another stream by the same name has offsets of its own.
    rabbit.delete("control").await;
    queue::admin(&rabbit.config, "test").apply_topology().await.unwrap();
    queue.publish_control(message("c")).await.unwrap();
    assert_eq!(Rabbit::control(&*queue, &["b"]).await, ControlEvent::Message(message("c")));
    queue.close().await;
}

/// Waits until a queue reports a fleet of this size. Returns its place in it.
async fn place_among(queue: &dyn Queue, workers: u32) -> u32 {
    loop {
        let next = tokio::time::timeout(LIMIT, queue.next_control()).await.expect("the fleet does not change");
        match next.expect("closed") {
            ControlEvent::Fleet(share) if share.workers.get() == workers => return share.index,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_know_how_many_they_are_and_their_places() {
    let rabbit = Rabbit::new("fleet").await;
    let first = rabbit.open().await;
    assert_eq!(place_among(&*first, 1).await, 0);
    let second = rabbit.open().await;
    let Doomed { queue: third, cut, .. } = rabbit.doomed().await;
    let mut places = [place_among(&*first, 3).await, place_among(&*second, 3).await, place_among(&*third, 3).await];
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2]);
    second.close().await;
    place_among(&*first, 2).await;
    // It says nothing any more; the broker knows.
    cut();
    assert_eq!(place_among(&*first, 1).await, 0);
    first.close().await;
}
