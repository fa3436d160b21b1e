//! What every queue must do, whatever it is made of: one suite, run against RabbitMQ and against
//! the embedded queue.

mod control;
pub mod dead_letters;
pub mod leases;
pub mod release;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use consign::config::BrokerConfig;
use consign::domain::lane::Lane;
use consign::domain::outcome::RetryDelay;
use consign::queue::{Delivery, JobPublisher, OutcomeEvent, Properties, Publication, Queue, QueueError, Settlement};

/// Only keeps a broken queue from hanging the suite.
const LIMIT: Duration = Duration::from_secs(60);

/// A queue under test, with all three lanes consumed at a prefetch of at least 10, and eyes for
/// what the trait does not show.
pub trait Fixture: Sync {
    /// What the queue is opened with.
    fn config(&self) -> BrokerConfig;
    /// Opens the queue; several times in a row over the same messages.
    fn open(&self) -> impl Future<Output = Arc<dyn JobPublisher>> + Send;
    /// Takes one outcome off, as routing key and body, waiting for it.
    fn outcome(&self) -> impl Future<Output = (String, Vec<u8>)> + Send;
    /// Takes one dead letter off, waiting for it.
    fn dead_letter(&self) -> impl Future<Output = Letter> + Send;
    /// Opens a queue that can be cut off from its messages, as if its process were dead or out of
    /// reach.
    fn doomed(&self) -> impl Future<Output = Doomed> + Send;
    /// How long a lease that nobody keeps may take to come to others, and then some.
    fn lease_time(&self) -> Duration;
    /// How long a lease may take to have the newest message.
    fn renewal_time(&self) -> Duration;
}

/// A dead letter.
pub struct Letter {
    pub headers: BTreeMap<String, String>,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

/// A queue that can be cut off and may come back.
pub struct Doomed {
    pub queue: Arc<dyn JobPublisher>,
    pub cut: Box<dyn Fn() + Send + Sync>,
    pub mend: Box<dyn Fn() + Send + Sync>,
}

/// All of it, each part on a queue of its own.
pub async fn suite<F: Fixture>(make: impl AsyncFn(&'static str) -> F) {
    all_properties_of_the_producer_arrive(&make("arrives").await).await;
    an_acknowledged_message_is_gone(&make("acked").await).await;
    a_retry_returns_to_its_lane_with_new_headers(&make("retry").await).await;
    a_dead_letter_keeps_the_body_and_has_a_reason(&make("dead").await).await;
    a_requeued_message_is_redelivered(&make("returned").await).await;
    an_unsettled_message_is_redelivered(&make("unsettled").await).await;
    a_dropped_next_loses_nothing(&make("dropped").await).await;
    outcomes_are_published_when_the_settlement_is_done(&make("outcomes").await).await;
    a_stopped_queue_requeues_and_still_settles(&make("stopping").await).await;
    a_paused_lane_leaves_its_jobs_to_others(&make("pause").await).await;
    a_resumed_lane_fetches_no_more_than_its_room(&make("room").await).await;
    an_unroutable_job_is_refused(&make("nowhere").await).await;
    a_name_too_long_is_refused(&make("long").await).await;
    copies_return_to_their_lanes_in_order(&make("order").await).await;
    two_queues_share_the_work(&make("share").await).await;
    many_settle_at_once_and_none_is_lost_or_doubled(&make("many").await).await;
    control::suite(&make("control").await).await;
}

pub async fn all_properties_of_the_producer_arrive(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let sent = Publication {
        routing_key: "job.backfill.acme".to_owned(),
        body: Bytes::from_static(b"{\"any\": \"bytes \xff\"}"),
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            message_id: Some("acme/1".to_owned()),
            reply_to: Some("answers".to_owned()),
            correlation_id: Some("c-1".to_owned()),
            kind: Some("consign.check.v1".to_owned()),
            headers: headers(&[("traceparent", "00-aa"), ("mine", "1")]),
        },
    };
    queue.publish(sent.clone()).await.unwrap();
    let got = next(&*queue, Lane::Backfill).await;
    assert_eq!(got.lane, Lane::Backfill);
    assert_eq!(got.body, sent.body);
    assert_eq!(got.properties, sent.properties);
    assert_eq!(got.routing_key, "job.backfill.acme");
    assert!(!got.redelivered);
    assert_eq!(got.delivery_count, 0);
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

pub async fn an_acknowledged_message_is_gone(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    queue.publish(job("a")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    let queue = fixture.open().await;
    queue.publish(job("b")).await.unwrap();
    assert_eq!(next(&*queue, Lane::Scheduled).await.body, job("b").body);
    queue.close().await;
}

pub async fn a_retry_returns_to_its_lane_with_new_headers(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let mut sent = job("again");
    sent.properties.headers = headers(&[("mine", "kept"), ("x-attempt", "1")]);
    sent.properties.message_id = Some("again".to_owned());
    queue.publish(sent.clone()).await.unwrap();
    for (attempt, deferred) in [("2", false), ("2", true)] {
        let got = next(&*queue, Lane::Scheduled).await;
        let (delay, headers) = (RetryDelay::S5, headers(&[("x-attempt", attempt)]));
        let settlement =
            if deferred { Settlement::Defer { delay, headers } } else { Settlement::Retry { delay, headers } };
        queue.settle(got, settlement, vec![]).await.unwrap();
    }
    let got = next(&*queue, Lane::Scheduled).await;
    assert_eq!(got.body, sent.body);
    assert_eq!(got.routing_key, sent.routing_key);
    assert_eq!(got.properties.message_id.as_deref(), Some("again"));
    assert_eq!(got.properties.headers.get("mine").map(String::as_str), Some("kept"));
    assert_eq!(got.properties.headers.get("x-attempt").map(String::as_str), Some("2"));
    assert_eq!(got.delivery_count, 0);
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

pub async fn a_dead_letter_keeps_the_body_and_has_a_reason(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let mut sent = job("bad");
    sent.body = Bytes::from_static(b"\x00 no job at all");
    sent.properties.headers = headers(&[("mine", "kept")]);
    queue.publish(sent.clone()).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    let why = headers(&[("x-error-reason", "invalid_job"), ("x-error-message", "not JSON")]);
    queue.settle(got, Settlement::DeadLetter { headers: why }, vec![]).await.unwrap();
    let Letter { headers, body, .. } = fixture.dead_letter().await;
    assert_eq!(body, sent.body);
    for (name, value) in [
        ("x-error-reason", "invalid_job"),
        ("x-error-message", "not JSON"),
        ("x-original-routing-key", "job.scheduled.acme"),
        ("mine", "kept"),
    ] {
        assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    queue.close().await;
}

pub async fn a_requeued_message_is_redelivered(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    queue.publish(job("back")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    queue.settle(got, Settlement::Requeue, vec![]).await.unwrap();
    let again = next(&*queue, Lane::Scheduled).await;
    assert_eq!(again.body, job("back").body);
    assert!(again.redelivered);
    assert_eq!(again.delivery_count, 1);
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

pub async fn an_unsettled_message_is_redelivered(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    queue.publish(job("held")).await.unwrap();
    drop(next(&*queue, Lane::Scheduled).await);
    queue.close().await;
    let queue = fixture.open().await;
    let again = next(&*queue, Lane::Scheduled).await;
    assert_eq!(again.body, job("held").body);
    assert!(again.redelivered);
    assert_eq!(again.delivery_count, 1);
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

pub async fn a_dropped_next_loses_nothing(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let mut seen = BTreeSet::new();
    for round in 0..20 {
        queue.publish(job(&format!("{round}"))).await.unwrap();
        // Dropped at whatever point it has reached.
        let _ = tokio::time::timeout(Duration::from_millis(round % 4), async {
            let got = queue.next(Lane::Scheduled).await.unwrap();
            seen.insert(got.body.clone());
            queue.settle(got, Settlement::Requeue, vec![]).await.unwrap();
        })
        .await;
    }
    queue.close().await;
    let queue = fixture.open().await;
    let mut left = BTreeSet::new();
    while left.len() < 20 {
        let got = next(&*queue, Lane::Scheduled).await;
        left.insert(got.body.clone());
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
    queue.close().await;
}

pub async fn outcomes_are_published_when_the_settlement_is_done(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    queue.publish(job("told")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    let events = vec![event("retrying", "e-1"), event("delivered", "e-2")];
    queue.settle(got, Settlement::Ack, events).await.unwrap();
    for word in ["retrying", "delivered"] {
        let (key, body) = fixture.outcome().await;
        assert_eq!(key, format!("transfer.{word}.acme"));
        assert_eq!(body, event(word, "").body);
    }
    queue.close().await;
}

pub async fn a_stopped_queue_requeues_and_still_settles(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    for name in ["first", "second", "third"] {
        queue.publish(job(name)).await.unwrap();
    }
    let first = next(&*queue, Lane::Scheduled).await;
    queue.stop_consuming().await;
    assert!(queue.next(Lane::Scheduled).await.is_none());
    assert!(queue.next(Lane::Continued).await.is_none());
    assert!(queue.ready().is_err());
    let settled = first.body.clone();
    queue.settle(first, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    let queue = fixture.open().await;
    let mut left = BTreeSet::new();
    for _ in 0..2 {
        let got = next(&*queue, Lane::Scheduled).await;
        left.insert(got.body.clone());
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
    assert_eq!(left.len(), 2);
    assert!(!left.contains(&settled));
    queue.close().await;
}

pub async fn a_paused_lane_leaves_its_jobs_to_others(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    for name in ["first", "second", "third"] {
        queue.publish(job(name)).await.unwrap();
    }
    let first = next(&*queue, Lane::Scheduled).await;
    let fetched = tokio::time::Instant::now();
    while queue.oldest_prefetched().is_none() {
        assert!(fetched.elapsed() < LIMIT, "nothing is fetched ahead");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(queue.oldest_prefetched().is_some_and(|(lane, _)| lane == Lane::Scheduled));
    queue.pause(Lane::Scheduled).await;
    assert_eq!(queue.oldest_prefetched(), None);
    queue.settle(first, Settlement::Ack, vec![]).await.unwrap();
    let other = fixture.open().await;
    for _ in 0..2 {
        let got = next(&*other, Lane::Scheduled).await;
        other.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
    other.close().await;
    queue.publish(job("fourth")).await.unwrap();
    queue.publish(Publication { routing_key: "job.backfill.acme".to_owned(), ..job("fifth") }).await.unwrap();
    let backfill = next(&*queue, Lane::Backfill).await;
    queue.settle(backfill, Settlement::Ack, vec![]).await.unwrap();
    assert!(queue.ready().is_ok(), "another lane is consumed");
    assert_eq!(queue.oldest_prefetched(), None, "the paused one is not");
    queue.resume(Lane::Scheduled, 5).await;
    let got = next(&*queue, Lane::Scheduled).await;
    assert!(got.body.windows(6).any(|word| word == b"fourth"));
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

pub async fn a_resumed_lane_fetches_no_more_than_its_room(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    for n in 0..8 {
        queue.publish(job(&n.to_string())).await.unwrap();
    }
    // Two are unsettled and stay so: they take no room.
    let held = [next(&*queue, Lane::Scheduled).await, next(&*queue, Lane::Scheduled).await];
    queue.pause(Lane::Scheduled).await;
    queue.resume(Lane::Scheduled, 1).await;
    let one = next(&*queue, Lane::Scheduled).await;
    let more = tokio::time::timeout(Duration::from_secs(1), queue.next(Lane::Scheduled)).await;
    assert!(more.is_err(), "more than one beside those that were unsettled");
    // Room for more, while the first is still unsettled.
    queue.resume(Lane::Scheduled, 2).await;
    let two = [next(&*queue, Lane::Scheduled).await, next(&*queue, Lane::Scheduled).await];
    let more = tokio::time::timeout(Duration::from_secs(1), queue.next(Lane::Scheduled)).await;
    assert!(more.is_err(), "more than two beside those that were unsettled");
    queue.resume(Lane::Scheduled, u16::MAX).await;
    let mut all: Vec<_> = held.into_iter().chain([one]).chain(two).collect();
    for _ in 0..3 {
        all.push(next(&*queue, Lane::Scheduled).await);
    }
    let bodies: BTreeSet<_> = all.iter().map(|got| got.body.clone()).collect();
    assert_eq!(bodies.len(), 8, "each came once");
    for got in all {
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
    queue.close().await;
}

pub async fn an_unroutable_job_is_refused(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let lost = Publication { routing_key: "job.nowhere.acme".to_owned(), ..job("x") };
    assert!(matches!(queue.publish(lost).await, Err(QueueError::Refused(_))));
    queue.publish(job("y")).await.unwrap();
    queue.close().await;
}

pub async fn a_name_too_long_is_refused(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let long = "x".repeat(256);
    let properties = Properties { message_id: Some(long.clone()), ..Properties::default() };
    assert!(matches!(queue.publish(Publication { properties, ..job("x") }).await, Err(QueueError::Refused(_))));
    let properties = Properties { headers: headers(&[(&long, "")]), ..Properties::default() };
    assert!(matches!(queue.publish(Publication { properties, ..job("x") }).await, Err(QueueError::Refused(_))));
    queue.close().await;
}

pub async fn copies_return_to_their_lanes_in_order(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    for n in 0..4 {
        let word = if n % 2 == 0 { "scheduled" } else { "backfill" };
        queue.publish(Publication { routing_key: format!("job.{word}.acme"), ..job(&n.to_string()) }).await.unwrap();
    }
    for lane in [Lane::Scheduled, Lane::Backfill] {
        for _ in 0..2 {
            let got = next(&*queue, lane).await;
            let defer = Settlement::Defer { delay: RetryDelay::S5, headers: BTreeMap::new() };
            queue.settle(got, defer, vec![]).await.unwrap();
        }
    }
    let deferred = tokio::time::Instant::now();
    for (lane, expected) in [(Lane::Scheduled, ["0", "2"]), (Lane::Backfill, ["1", "3"])] {
        for name in expected {
            let got = next(&*queue, lane).await;
            assert_eq!(got.body, job(name).body);
            assert_eq!(got.properties.headers.get("consign-wait").map(String::as_str), Some("5s"));
            queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
        }
    }
    assert!(deferred.elapsed() > Duration::from_secs(3), "they came back before their time");
    queue.close().await;
}

pub async fn two_queues_share_the_work(fixture: &impl Fixture) {
    const COUNT: usize = 100;
    let queues = [fixture.open().await, fixture.open().await];
    for n in 0..COUNT {
        queues[0].publish(job(&n.to_string())).await.unwrap();
    }
    let mut seen = [Vec::new(), Vec::new()];
    while seen.iter().map(Vec::len).sum::<usize>() < COUNT {
        for (queue, seen) in queues.iter().zip(&mut seen) {
            // Whoever has nothing at the moment leaves the rest to the other.
            let next = tokio::time::timeout(Duration::from_secs(1), queue.next(Lane::Scheduled)).await;
            if let Ok(Some(got)) = next {
                seen.push(got.body.clone());
                queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
            }
        }
    }
    assert!(seen.iter().all(|seen| !seen.is_empty()), "one did all the work");
    let all: BTreeSet<_> = seen.into_iter().flatten().collect();
    assert_eq!(all.len(), COUNT);
    for queue in queues {
        queue.close().await;
    }
}

pub async fn many_settle_at_once_and_none_is_lost_or_doubled(fixture: &impl Fixture) {
    const COUNT: usize = 200;
    let queue = fixture.open().await;
    let sent: BTreeSet<_> = (0..COUNT).map(|n| job(&n.to_string()).body).collect();
    let publishing: Vec<_> = (0..COUNT)
        .map(|n| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.publish(job(&n.to_string())).await.unwrap() })
        })
        .collect();
    let mut settling = Vec::new();
    let mut seen = Vec::new();
    for n in 0..COUNT {
        let got = next(&*queue, Lane::Scheduled).await;
        seen.push(got.body.clone());
        let queue = Arc::clone(&queue);
        let event = event("delivered", &n.to_string());
        settling.push(tokio::spawn(async move { queue.settle(got, Settlement::Ack, vec![event]).await.unwrap() }));
    }
    for task in publishing.into_iter().chain(settling) {
        task.await.unwrap();
    }
    assert_eq!(seen.len(), COUNT);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), sent);
    for _ in 0..COUNT {
        fixture.outcome().await;
    }
    queue.close().await;
}

/// Pauses every lane.
pub async fn pause(queue: &dyn Queue) {
    for lane in Lane::ALL {
        queue.pause(lane).await;
    }
}

/// Resumes every lane with all the prefetch that it is configured with.
pub async fn resume(queue: &dyn Queue) {
    for lane in Lane::ALL {
        queue.resume(lane, u16::MAX).await;
    }
}

async fn next(queue: &dyn Queue, lane: Lane) -> Delivery {
    tokio::time::timeout(LIMIT, queue.next(lane)).await.expect("nothing came").expect("the queue was stopped")
}

fn job(name: &str) -> Publication {
    Publication {
        routing_key: "job.scheduled.acme".to_owned(),
        body: format!("{{\"id\": \"{name}\"}}").into(),
        properties: Properties::default(),
    }
}

fn event(word: &str, id: &str) -> OutcomeEvent {
    OutcomeEvent {
        routing_key: format!("transfer.{word}.acme"),
        id: id.to_owned(),
        body: format!("{{\"type\": \"{word}\"}}").into(),
        reply_to: None,
    }
}

fn headers(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
