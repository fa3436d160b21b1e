//! Long transfers hold every slot: what was fetched ahead must not wait with them until the broker
//! loses its patience.
//!
//! The worker itself, on a clock that is only counted on, between a queue and a transport that
//! pretend.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use consign::check::CheckReport;
use consign::domain::destination::{Destination, InlinePolicy};
use consign::domain::job::Job;
use consign::domain::job::lease::Checkpoint;
use consign::domain::lane::Lane;
use consign::domain::outcome::{Receipt, TransferResult};
use consign::metrics::Metrics;
use consign::queue::{
    ControlEvent, Delivery, DeliveryOrigin, DeliveryTag, LeaseHolder, OutcomeEvent, Properties, Queue, QueueError,
    Settlement,
};
use consign::transfer::{TransferRequest, Transport};
use consign::worker::{Worker, WorkerParts};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::testbed::site::job;

/// Events, with the seconds since the start.
type Story = Arc<Mutex<Vec<(&'static str, u64)>>>;

#[derive(Debug)]
struct Fake {
    waiting: Mutex<VecDeque<Delivery>>,
    changed: Notify,
    story: Story,
    begun: Instant,
    /// Notified when the control messages of the past are read; `None` without any.
    past: Option<Notify>,
}

impl Fake {
    fn new(seconds: &[u64], past: Option<Notify>) -> Arc<Self> {
        let waiting = seconds.iter().zip(1..).map(|(seconds, tag)| delivery(tag, *seconds)).collect();
        let (waiting, story) = (Mutex::new(waiting), Story::default());
        Arc::new(Self { waiting, changed: Notify::new(), story, begun: Instant::now(), past })
    }

    fn tell(&self, what: &'static str) {
        self.story.lock().unwrap().push((what, self.begun.elapsed().as_secs()));
    }
}

#[async_trait]
impl Queue for Fake {
    async fn wait_connected(&self, _: Duration) -> Result<(), QueueError> {
        Ok(())
    }

    async fn next(&self, lane: Lane) -> Option<Delivery> {
        loop {
            let changed = self.changed.notified();
            let next = if lane == Lane::Scheduled { self.waiting.lock().unwrap().pop_front() } else { None };
            if let Some(delivery) = next {
                self.tell("taken");
                return Some(delivery);
            }
            changed.await;
        }
    }

    async fn settle(&self, _: Delivery, _: Settlement, _: Vec<OutcomeEvent>) -> Result<(), QueueError> {
        Ok(())
    }

    async fn lease(&self, _: &Delivery, _: &str, _: Arc<dyn LeaseHolder>) -> Result<(), QueueError> {
        Ok(())
    }

    async fn stop_consuming(&self) {}

    async fn pause(&self, lane: Lane) {
        assert_eq!(lane, Lane::Scheduled, "no other lane has deliveries");
        self.tell("given back");
    }

    async fn resume(&self, _: Lane, room: u16) {
        self.tell(if room == 1 { "consumes again" } else { "has all its room" });
    }

    fn oldest_prefetched(&self) -> Option<(Lane, Instant)> {
        // All arrived when the job before them was taken, or when the lane was resumed.
        let at = match self.story.lock().unwrap().last() {
            Some(("given back", _)) => return None,
            Some((_, at)) => *at,
            None => 0,
        };
        let waits = !self.waiting.lock().unwrap().is_empty();
        waits.then(|| (Lane::Scheduled, self.begun + Duration::from_secs(at)))
    }

    async fn next_control(&self) -> Option<ControlEvent> {
        self.past.as_ref()?.notified().await;
        Some(ControlEvent::CaughtUp)
    }

    async fn close(&self) {}

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Delivers everything in so many seconds: those of the job's key.
#[derive(Debug)]
struct Slow;

impl Transport for Slow {
    fn deliver<'a>(&'a self, job: &'a Job, _: TransferRequest<'a>) -> BoxFuture<'a, TransferResult> {
        let seconds = job.key.as_str().parse().unwrap();
        async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            TransferResult::Delivered(Receipt::default())
        }
        .boxed()
    }

    fn abort_upload<'a>(&'a self, _: &'a Arc<Destination>, _: &'a Checkpoint) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn test<'a>(&'a self, _: &'a Arc<Destination>, _: &'a [String]) -> BoxFuture<'a, CheckReport> {
        std::future::pending().boxed()
    }
}

fn delivery(tag: u64, seconds: u64) -> Delivery {
    let body = job(&format!("job-{tag}"), "file:///f", "acme", &seconds.to_string());
    Delivery {
        lane: Lane::Scheduled,
        body: Bytes::from(serde_json::to_vec(&body).unwrap()),
        properties: Properties::default(),
        routing_key: "job.scheduled.acme".to_owned(),
        origin: DeliveryOrigin::Worker,
        publisher: String::new(),
        redelivered: false,
        delivery_count: 0,
        ticket: DeliveryTag { generation: 1, lane: Lane::Scheduled, tag },
    }
}

const CONFIG: &str = r#"
broker.url = "sqlite:unused"
worker.slots = 1
worker.backfill_slots = 1
source.file_root = "/"
aws.region = "us-east-1"
[destinations.acme]
bucket = "acme"
region = "us-east-1"
auth = { method = "iam_role", role_arn = "arn:aws:iam::111111111111:role/consign" }
"#;

/// A worker of one slot that runs until the token is cancelled.
fn run(queue: Arc<Fake>) -> (Arc<Worker>, JoinHandle<bool>, CancellationToken) {
    let config = consign::config::load_str(CONFIG).unwrap().config;
    let (_keep, destinations) = watch::channel(config.destinations);
    let worker = Worker::new(WorkerParts {
        config: config.worker,
        prefix: "consign".to_owned(),
        lease_after: Duration::from_hours(1),
        denied_for: Duration::from_secs(60),
        egress_addresses: Vec::new(),
        inline: InlinePolicy::default(),
        queue,
        transport: Arc::new(Slow),
        clock: jiff::Timestamp::now,
        destinations,
        metrics: Arc::new(Metrics::new(10)),
    });
    let drain = CancellationToken::new();
    let running = tokio::spawn({
        let (worker, drain) = (worker.clone(), drain.clone());
        async move { worker.run(drain).await }
    });
    (worker, running, drain)
}

/// Lets a worker of one slot work on jobs that take so many seconds each.
async fn story(seconds: &[u64]) -> Vec<(&'static str, u64)> {
    let queue = Fake::new(seconds, None);
    let (_worker, running, drain) = run(queue.clone());
    tokio::time::sleep(Duration::from_secs(seconds.iter().sum::<u64>() + 5)).await;
    drain.cancel();
    assert!(running.await.unwrap());
    queue.story.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_ready_once_it_has_read_the_control_messages_of_the_past() {
    let queue = Fake::new(&[1], Some(Notify::new()));
    let (worker, running, drain) = run(queue.clone());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(worker.ready().unwrap_err().contains("control messages"));
    assert_eq!(queue.story.lock().unwrap().len(), 0, "it takes nothing yet");
    queue.past.as_ref().unwrap().notify_one();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(worker.ready(), Ok(()));
    assert_eq!(queue.story.lock().unwrap().len(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    drain.cancel();
    assert!(running.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn after_a_minute_without_a_slot_what_was_fetched_goes_back() {
    let seen = story(&[200, 1]).await;
    let expected =
        [("taken", 0), ("given back", 60), ("consumes again", 200), ("taken", 200), ("has all its room", 201)];
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_slot_within_the_minute_is_waited_for() {
    let seen = story(&[59, 59, 1]).await;
    assert_eq!(seen, [("taken", 0), ("taken", 59), ("taken", 118)]);
}
