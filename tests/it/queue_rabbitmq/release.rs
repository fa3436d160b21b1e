//! Calling back on RabbitMQ: the suite of all queues, and what a queue that gives out from its head
//! alone makes hard.

use consign::domain::destination::DestinationIdentity;
use consign::queue::Released;

use super::*;
use crate::testbed::until;

const COUNT: usize = 3000;

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_releases_as_every_queue_must() {
    queue_conformance::release::suite(&Rabbit::new("recall").await).await;
}

/// Every hundredth is for `acme`.
fn destination(number: usize) -> &'static str {
    if number % 100 == 99 { "acme" } else { "beta" }
}

async fn release_delayed(queue: &Arc<RabbitMqQueue>) -> Released {
    queue.release_delayed([DestinationIdentity::parse("acme").unwrap()].into()).await.unwrap()
}

impl Rabbit {
    /// Puts them straight onto a delay.
    async fn park(&self, delay: &'static str) {
        for number in 0..COUNT {
            let mut headers = FieldTable::default();
            headers.insert("consign-wait".into(), AMQPValue::LongString(delay.into()));
            headers.insert("x-deferred-since".into(), AMQPValue::LongString("2026-11-22T10:00:00Z".into()));
            let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
            let (exchange, key) = (self.name("wait"), format!("job.scheduled.{}", destination(number)));
            let (options, body) = (BasicPublishOptions::default(), number.to_string());
            let sent = self.channel.basic_publish(exchange.into(), key.into(), options, body.as_bytes(), properties);
            sent.await.unwrap();
        }
        self.waiting(COUNT).await;
    }

    async fn waiting(&self, count: usize) {
        until("as many wait", LIMIT, async || {
            let waiting: u64 =
                queue::admin(&self.config, "test").depths().await.unwrap().waiting.iter().map(|(_, count)| count).sum();
            (waiting == count as u64).then_some(())
        })
        .await;
    }

    /// Takes so many from the lane: number, and whether the broker brought it at the end of its
    /// wait.
    async fn arrived(&self, count: usize) -> Vec<(usize, bool)> {
        let mut arrived = Vec::new();
        for _ in 0..count {
            let got = self.take(&self.name("jobs.scheduled")).await;
            let headers = got.properties.headers().clone().unwrap_or_default();
            let number = String::from_utf8(got.data).unwrap().parse().unwrap();
            arrived.push((number, headers.inner().contains_key("x-death")));
        }
        arrived
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_copies_of_others_keep_their_order_and_their_delay() {
    let rabbit = Rabbit::new("others").await;
    let begun = tokio::time::Instant::now();
    rabbit.park("30s").await;
    // Two at once, which only publish otherwise.
    let queues =
        [(); 2].map(|()| RabbitMqQueue::start(&rabbit.config, "worker", vec![], Arc::new(Metrics::new(10))).unwrap());
    let (one, two) = tokio::join!(release_delayed(&queues[0]), release_delayed(&queues[1]));
    assert_eq!((one.count + two.count, one.partly, two.partly), (COUNT as u64 / 100, false, false));
    let arrived = rabbit.arrived(COUNT / 100).await;
    assert!(arrived.iter().all(|(number, expired)| destination(*number) == "acme" && !expired), "{arrived:?}");
    rabbit.waiting(COUNT - COUNT / 100).await;
    let first = rabbit.arrived(1).await;
    assert!(begun.elapsed() >= Duration::from_secs(29), "{:?}", begun.elapsed());
    let arrived = [first, rabbit.arrived(COUNT - COUNT / 100 - 1).await].concat();
    assert!(arrived.iter().all(|(number, expired)| destination(*number) == "beta" && *expired));
    assert!(arrived.is_sorted(), "a time that is over counts only at the head");
    for queue in queues {
        queue.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_release_loses_nothing_and_one_beyond_the_limit_is_partial() {
    let rabbit = Rabbit::new("broken").await;
    rabbit.park("12h").await;
    let timing = Timing { max_release_consumers: 8, ..Timing::default() };
    let queue =
        RabbitMqQueue::start_with(timing, &rabbit.config, "worker", vec![], Arc::new(Metrics::new(10))).unwrap();
    queue.wait_connected(LIMIT).await.unwrap();
    for limit in [30, 60, 120] {
        let _ = tokio::time::timeout(Duration::from_millis(limit), release_delayed(&queue)).await;
    }
    let recalled = release_delayed(&queue).await;
    assert!(recalled.partly, "2,000 others can be held");
    until("those among them are in their lane", LIMIT, async || {
        let depths = queue::admin(&rabbit.config, "test").depths().await.unwrap();
        let lane = depths.lanes.iter().map(|(_, count)| count).sum::<u64>();
        let waiting = depths.waiting.iter().map(|(_, count)| count).sum::<u64>();
        // Those that were called back when it was broken off may be there twice.
        (lane >= 20 && lane + waiting >= COUNT as u64).then_some(())
    })
    .await;
    let whole = RabbitMqQueue::start(&rabbit.config, "worker", vec![], Arc::new(Metrics::new(10))).unwrap();
    assert!(!release_delayed(&whole).await.partly);
    rabbit.waiting(COUNT - COUNT / 100).await;
    let mut numbers = BTreeMap::new();
    while let Some(got) =
        rabbit.channel.basic_get(rabbit.name("jobs.scheduled").into(), BasicGetOptions { no_ack: true }).await.unwrap()
    {
        *numbers.entry(String::from_utf8(got.delivery.data).unwrap()).or_insert(0) += 1;
    }
    assert_eq!(numbers.len(), COUNT / 100, "{numbers:?}");
    for queue in [queue, whole] {
        queue.close().await;
    }
}
