//! Calling back what waits: for some destinations now and untouched, for the others at its own
//! time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use consign::domain::destination::DestinationIdentity;
use consign::domain::lane::Lane;
use consign::domain::outcome::RetryDelay;
use consign::queue::{DEFERRED_SINCE, Delivery, JobPublisher, Properties, Publication, Released, Settlement};
use tokio::time::Instant;

use super::{Fixture, headers, next};

const COUNT: usize = 1000;
const SINCE: &str = "2026-11-22T10:00:00Z";

pub async fn suite(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    park(&queue, RetryDelay::M10, 0..COUNT / 2).await;
    let parked = Instant::now();
    park(&queue, RetryDelay::S30, COUNT / 2..COUNT).await;
    assert_eq!(release_delayed(&queue, &["nobody"]).await, Released::default(), "nothing waits for it");

    let recalled = release_delayed(&queue, &["acme", "nobody"]).await;
    assert_eq!(recalled, Released { count: COUNT as u64 / 2, partly: false });
    let mut seen = BTreeSet::new();
    for lane in [Lane::Scheduled, Lane::Backfill] {
        for _ in (0..COUNT).filter(|n| of(*n).0 == "acme" && of(*n).1 == lane) {
            let got = next(&*queue, lane).await;
            let number = untouched(&got);
            assert!(of(number) == ("acme", lane) && seen.insert(number), "{got:?}");
            queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
        }
    }
    assert_eq!(release_delayed(&queue, &["acme"]).await, Released::default(), "they are called back once");

    let others = (COUNT / 2..COUNT).filter(|n| of(*n).0 == "beta");
    let (mut seen, expected) = (BTreeSet::new(), others.collect::<BTreeSet<_>>());
    while seen.len() < expected.len() {
        let got = next(&*queue, Lane::Scheduled).await;
        assert!(parked.elapsed() >= Duration::from_secs(29), "it came back before its time: {got:?}");
        seen.insert(untouched(&got));
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
    assert_eq!(seen, expected, "those that wait for longer still do");
    assert_eq!(release_delayed(&queue, &["beta"]).await.count, COUNT as u64 / 4, "they are still there");
    for waits_no_more in ["", "absent"] {
        queue.publish(sent(0)).await.unwrap();
        let got = next(&*queue, Lane::Scheduled).await;
        let set =
            [(DEFERRED_SINCE, waits_no_more)].into_iter().filter(|(_, since)| since.is_empty()).collect::<Vec<_>>();
        queue.settle(got, Settlement::Retry { delay: RetryDelay::M10, headers: headers(&set) }, vec![]).await.unwrap();
    }
    assert_eq!(release_delayed(&queue, &["acme"]).await, Released::default(), "a retry waits for something else");
    one_of_two_with_an_id(&queue).await;
    queue.close().await;
}

/// Copies name the destination that they wait for: others of the same id keep waiting.
async fn one_of_two_with_an_id(queue: &Arc<dyn JobPublisher>) {
    let digests = ["0".repeat(32), "1".repeat(32)];
    let ids = digests.each_ref().map(|digest| format!("acme~{digest}"));
    for (number, id) in [2, 6].into_iter().zip(&ids) {
        queue.publish(sent(number)).await.unwrap();
        let got = next(&**queue, Lane::Backfill).await;
        let headers = headers(&[(DEFERRED_SINCE, SINCE), ("consign-destination", id)]);
        queue.settle(got, Settlement::Defer { delay: RetryDelay::M10, headers }, vec![]).await.unwrap();
    }
    release_one(queue, &ids[1]).await;
    let got = next(&**queue, Lane::Backfill).await;
    assert_eq!(got.properties.message_id.as_deref(), Some("6"));
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    // A bare id is that of all.
    release_one(queue, "acme").await;
    queue.settle(next(&**queue, Lane::Backfill).await, Settlement::Ack, vec![]).await.unwrap();
}

/// Releases the one copy that waits for this destination. A broker's count of what waits may be late.
async fn release_one(queue: &Arc<dyn JobPublisher>, destination: &str) {
    let released = crate::testbed::until("a copy is released", Duration::from_secs(30), async || {
        Some(release_delayed(queue, &[destination]).await.count).filter(|count| *count > 0)
    });
    assert_eq!(released.await, 1, "{destination}");
}

/// The destination and the lane of a number.
fn of(number: usize) -> (&'static str, Lane) {
    match number % 4 {
        0 => ("acme", Lane::Scheduled),
        2 => ("acme", Lane::Backfill),
        _ => ("beta", Lane::Scheduled),
    }
}

fn sent(number: usize) -> Publication {
    let (destination, lane) = of(number);
    Publication {
        routing_key: format!("job.{}.{destination}", lane.as_str()),
        body: Bytes::from(format!("{number} \u{fffd}")),
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            message_id: Some(number.to_string()),
            reply_to: Some("answers".to_owned()),
            correlation_id: Some(format!("c-{number}")),
            kind: Some("kind".to_owned()),
            headers: headers(&[("mine", "1"), ("x-attempt", "1")]),
            ..Properties::default()
        },
    }
}

/// The number of one that has waited, after a look at all of it.
fn untouched(got: &Delivery) -> usize {
    let number: usize = got.properties.message_id.as_ref().unwrap().parse().unwrap();
    let Publication { routing_key, body, mut properties } = sent(number);
    let delay = if number < COUNT / 2 { "10m" } else { "30s" };
    properties.headers.extend(headers(&[("consign-wait", delay), ("x-attempt", "2"), (DEFERRED_SINCE, SINCE)]));
    assert_eq!((&got.routing_key, &got.body, &got.properties), (&routing_key, &body, &properties));
    assert!(got.delivery_count <= counted_releases(number), "it looks as if it ended workers: {got:?}");
    assert_eq!(got.redelivered, got.delivery_count > 0, "{got:?}");
    number
}

/// Deliveries that a copy may count although no worker had it. RabbitMQ 4 counts them where a copy
/// waits, at each release that leaves it there, and keeps the count when the wait is over.
fn counted_releases(number: usize) -> u64 {
    let left_waiting = of(number).0 == "beta" && std::env::var("CONSIGN_TEST_RABBITMQ").as_deref() == Ok("4");
    if left_waiting { 3 } else { 0 }
}

/// Publishes them, takes them, and lets them wait.
async fn park(queue: &Arc<dyn JobPublisher>, delay: RetryDelay, numbers: std::ops::Range<usize>) {
    let mut tasks = Vec::new();
    for number in numbers.clone() {
        let queue = Arc::clone(queue);
        tasks.push(tokio::spawn(async move { queue.publish(sent(number)).await.unwrap() }));
    }
    for lane in [Lane::Scheduled, Lane::Backfill] {
        for _ in numbers.clone().filter(|number| of(*number).1 == lane) {
            let (got, queue) = (next(&**queue, lane).await, Arc::clone(queue));
            let settlement =
                Settlement::Defer { delay, headers: headers(&[("x-attempt", "2"), (DEFERRED_SINCE, SINCE)]) };
            tasks.push(tokio::spawn(async move { queue.settle(got, settlement, vec![]).await.unwrap() }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn release_delayed(queue: &Arc<dyn JobPublisher>, destinations: &[&str]) -> Released {
    let destinations = destinations.iter().map(|id| DestinationIdentity::parse(id).unwrap()).collect();
    queue.release_delayed(destinations).await.unwrap()
}
