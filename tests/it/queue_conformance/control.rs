//! Control messages: read by everybody, from the start and live, in order.

use std::sync::Arc;

use bytes::Bytes;
use consign::queue::{Announced, Queue};

use super::{Fixture, LIMIT};

pub async fn suite(fixture: &impl Fixture) {
    let first = fixture.open().await;
    assert_eq!(next(&first).await, Announced::UpToDate, "there is nothing yet");
    for name in ["a", "b", "c"] {
        first.announce(message(name)).await.unwrap();
    }
    for name in ["a", "b", "c"] {
        assert_eq!(next(&first).await, Announced::Message(message(name)));
    }
    // One that starts later sees them all, before it is up to date, and then what comes.
    let second = fixture.open().await;
    for name in ["a", "b", "c"] {
        assert_eq!(next(&second).await, Announced::Message(message(name)));
    }
    assert_eq!(next(&second).await, Announced::UpToDate);
    // One that is dropped before anything has come loses nothing.
    assert!(futures_util::FutureExt::now_or_never(second.next_control()).is_none());
    second.announce(message("d")).await.unwrap();
    first.announce(message("e")).await.unwrap();
    for queue in [&first, &second] {
        for name in ["d", "e"] {
            assert_eq!(next(queue).await, Announced::Message(message(name)));
        }
    }
    first.close().await;
    assert_eq!(first.next_control().await, None, "it is closed");
    second.close().await;
}

fn message(name: &str) -> Bytes {
    format!("{{\"name\": \"{name}\"}}").into()
}

async fn next(queue: &Arc<dyn Queue>) -> Announced {
    tokio::time::timeout(LIMIT, queue.next_control()).await.expect("nothing came").expect("the queue is closed")
}
