//! Control messages: read by everybody, from the start and live, in order.

use std::sync::Arc;

use bytes::Bytes;
use consign::queue::{ControlEvent, JobPublisher};

use super::{Fixture, LIMIT};

pub async fn suite(fixture: &impl Fixture) {
    let first = fixture.open().await;
    assert_eq!(next(&first).await, ControlEvent::CaughtUp, "there is nothing yet");
    for name in ["a", "b", "c"] {
        first.publish_control(message(name)).await.unwrap();
    }
    for name in ["a", "b", "c"] {
        assert_eq!(next(&first).await, ControlEvent::Message(message(name)));
    }
    // One that starts later sees them all, before it is up to date, and then what comes.
    let second = fixture.open().await;
    for name in ["a", "b", "c"] {
        assert_eq!(next(&second).await, ControlEvent::Message(message(name)));
    }
    assert_eq!(next(&second).await, ControlEvent::CaughtUp);
    // One that is dropped before anything has come loses nothing.
    assert!(futures_util::FutureExt::now_or_never(second.next_control()).is_none());
    second.publish_control(message("d")).await.unwrap();
    first.publish_control(message("e")).await.unwrap();
    for queue in [&first, &second] {
        for name in ["d", "e"] {
            assert_eq!(next(queue).await, ControlEvent::Message(message(name)));
        }
    }
    first.close().await;
    assert_eq!(first.next_control().await, None, "it is closed");
    second.close().await;
}

fn message(name: &str) -> Bytes {
    format!("{{\"name\": \"{name}\"}}").into()
}

/// The next event about messages: the size of the fleet is another matter.
async fn next(queue: &Arc<dyn JobPublisher>) -> ControlEvent {
    loop {
        let next = tokio::time::timeout(LIMIT, queue.next_control()).await.expect("nothing came");
        match next.expect("the queue is closed") {
            ControlEvent::Fleet(_) => {}
            event => return event,
        }
    }
}
