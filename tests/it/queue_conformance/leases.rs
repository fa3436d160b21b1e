//! Leases, whatever the queue is made of: work that goes on is nobody else's, and work that is gone
//! is somebody's at once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use consign::queue::{LeaseHolder, LeaseMessage};

use super::*;

/// Work that a test moves on by hand.
#[derive(Debug, Default)]
pub struct Steps {
    step: Mutex<String>,
    asked: AtomicUsize,
    lost: AtomicUsize,
    outdated: Mutex<Vec<Bytes>>,
}

impl Steps {
    pub fn at(step: &str) -> Arc<Self> {
        let steps = Arc::<Self>::default();
        steps.go(step);
        steps
    }

    pub fn go(&self, step: &str) {
        step.clone_into(&mut self.step.lock().unwrap());
    }

    /// How often a lease was written.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    /// Leases of others that were out of date.
    pub fn outdated(&self) -> Vec<Bytes> {
        self.outdated.lock().unwrap().clone()
    }

    pub async fn is_lost(&self) {
        let end = tokio::time::Instant::now() + LIMIT;
        while self.lost() == 0 {
            assert!(tokio::time::Instant::now() < end, "the work was not told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl LeaseHolder for Steps {
    fn message(&self) -> LeaseMessage {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let headers = headers(&[("at-step", &self.step.lock().unwrap())]);
        LeaseMessage { body: body(&self.step.lock().unwrap()), content_type: LEASE.to_owned(), headers }
    }

    fn lost(&self) {
        self.lost.fetch_add(1, Ordering::SeqCst);
    }

    fn outdated(&self, lease: Bytes) {
        self.outdated.lock().unwrap().push(lease);
    }
}

pub const LEASE: &str = "application/vnd.test.lease";

/// What a lease at a step carries.
pub fn body(step: &str) -> Bytes {
    format!("lease {step}").into()
}

/// All of it at once (it is mostly waiting), each part on a queue of its own.
pub async fn suite<F: Fixture>(make: impl AsyncFn(&'static str) -> F) {
    tokio::join!(
        async { a_leased_job_has_one_owner_and_is_gone_once_settled(&make("leased").await).await },
        async { an_unrenewed_lease_goes_to_another_worker_with_the_newest_message(&make("orphaned").await).await },
        async { leasing_again_renews(&make("again").await).await },
        async { a_handed_off_job_goes_to_another_worker_at_once(&make("handed").await).await },
        async { a_requeued_leased_job_goes_to_another_worker(&make("back").await).await },
        async { copies_of_leased_jobs_have_the_content_of_the_delivery(&make("copies").await).await },
        async { a_lost_delivery_can_not_be_leased(&make("late").await).await },
        async { an_interrupted_lease_harms_nothing(&make("broken").await).await },
        async { closing_notifies_the_holder_and_hands_the_job_off(&make("closing").await).await },
    );
}

pub async fn a_leased_job_has_one_owner_and_is_gone_once_settled(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    queue.publish(job("long")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    let steps = Steps::at("1");
    queue.lease(&got, "run-1", steps.clone()).await.unwrap();
    let other = fixture.open().await;
    nothing_arrives(&*other, fixture.lease_time()).await;
    queue.settle(got, Settlement::Ack, vec![event("delivered", "e")]).await.unwrap();
    assert_eq!(fixture.outcome().await.0, "transfer.delivered.acme");
    nothing_arrives(&*other, fixture.lease_time()).await;
    queue.close().await;
    nothing_arrives(&*other, fixture.lease_time()).await;
    assert_eq!(steps.lost(), 0);
    other.close().await;
}

pub async fn an_unrenewed_lease_goes_to_another_worker_with_the_newest_message(fixture: &impl Fixture) {
    let Doomed { queue, cut, mend } = fixture.doomed().await;
    let mut sent = job("orphan");
    sent.properties.message_id = Some("orphan".to_owned());
    sent.properties.headers = headers(&[("mine", "kept")]);
    queue.publish(sent.clone()).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    let steps = Steps::at("1");
    queue.lease(&got, "run-2", steps.clone()).await.unwrap();
    steps.go("2");
    tokio::time::sleep(fixture.renewal_time()).await;
    let other = fixture.open().await;
    cut();
    let taken = next(&*other, Lane::Continued).await;
    assert_eq!((&taken.body, taken.properties.content_type.as_deref()), (&body("2"), Some(LEASE)));
    assert_eq!(taken.routing_key, "job.scheduled.acme");
    assert_eq!(taken.properties.message_id, sent.properties.message_id);
    for (name, value) in [("mine", "kept"), ("at-step", "2")] {
        assert_eq!(taken.properties.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    let theirs = Steps::at("3");
    other.lease(&taken, "run-2", theirs.clone()).await.unwrap();
    mend();
    steps.is_lost().await;
    let retry = Settlement::Retry { delay: RetryDelay::S5, headers: BTreeMap::new() };
    assert!(matches!(queue.settle(got, retry, vec![]).await, Err(QueueError::Lost)));
    nothing_arrives(&*queue, fixture.lease_time() + Duration::from_secs(6)).await;
    assert_eq!((steps.lost(), theirs.lost()), (1, 0));
    other.settle(taken, Settlement::Ack, vec![]).await.unwrap();
    other.close().await;
    nothing_arrives(&*queue, fixture.lease_time()).await;
    queue.close().await;
}

pub async fn leasing_again_renews(fixture: &impl Fixture) {
    let Doomed { queue, cut, .. } = fixture.doomed().await;
    queue.publish(job("twice")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    queue.lease(&got, "run-3", Steps::at("1")).await.unwrap();
    queue.lease(&got, "run-3", Steps::at("2")).await.unwrap();
    let other = fixture.open().await;
    cut();
    let taken = next(&*other, Lane::Continued).await;
    let taken = if taken.body == body("1") { next(&*other, Lane::Continued).await } else { taken };
    assert_eq!(taken.body, body("2"));
    other.close().await;
}

pub async fn a_handed_off_job_goes_to_another_worker_at_once(fixture: &impl Fixture) {
    let (queue, other) = (fixture.open().await, fixture.open().await);
    for leased in [true, false] {
        let mut sent = job("drained");
        sent.properties.headers = headers(&[("mine", "kept"), ("x-attempt", "1")]);
        queue.publish(sent).await.unwrap();
        let (mut got, holder, taker) = tokio::select! {
            got = queue.next(Lane::Scheduled) => (got.unwrap(), &queue, &other),
            got = other.next(Lane::Scheduled) => (got.unwrap(), &other, &queue),
        };
        let steps = Steps::at("1");
        if leased {
            holder.lease(&got, "run-4", steps.clone()).await.unwrap();
        }
        pause(&**holder).await;
        got.body = body("half");
        got.properties.content_type = Some(LEASE.to_owned());
        let set = headers(&[("x-attempt", "2")]);
        let begun = tokio::time::Instant::now();
        holder.settle(got, Settlement::HandOff { headers: set }, vec![]).await.unwrap();
        let taken = next(&**taker, Lane::Continued).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
        assert_eq!((&taken.body, taken.properties.content_type.as_deref()), (&body("half"), Some(LEASE)));
        assert_eq!((taken.routing_key.as_str(), taken.redelivered), ("job.scheduled.acme", false));
        for (name, value) in [("mine", "kept"), ("x-attempt", "2")] {
            assert_eq!(taken.properties.headers.get(name).map(String::as_str), Some(value), "{name}");
        }
        let theirs = Steps::at("3");
        taker.lease(&taken, "run-4", theirs.clone()).await.unwrap();
        resume(&**holder).await;
        nothing_arrives(&**holder, fixture.lease_time()).await;
        assert_eq!((steps.lost(), theirs.lost()), (0, 0), "it was given, not taken");
        taker.settle(taken, Settlement::Ack, vec![]).await.unwrap();
        nothing_arrives(&**holder, fixture.lease_time()).await;
    }
    queue.close().await;
    other.close().await;
}

pub async fn a_requeued_leased_job_goes_to_another_worker(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    queue.publish(job("returned")).await.unwrap();
    let mut got = next(&*queue, Lane::Scheduled).await;
    queue.lease(&got, "run-5", Steps::at("1")).await.unwrap();
    got.body = body("2");
    got.properties.content_type = Some(LEASE.to_owned());
    queue.settle(got, Settlement::Requeue, vec![]).await.unwrap();
    let again = next(&*queue, Lane::Continued).await;
    assert_eq!((&again.body, again.properties.content_type.as_deref()), (&body("2"), Some(LEASE)));
    assert_eq!(again.routing_key, "job.scheduled.acme");
    // Without a lease of its own, it is returned as any other.
    queue.settle(again, Settlement::Requeue, vec![]).await.unwrap();
    let again = next(&*queue, Lane::Continued).await;
    assert_eq!((&again.body, again.redelivered, again.delivery_count), (&body("2"), true, 1));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    nothing_arrives(&*queue, fixture.lease_time()).await;
    queue.close().await;
}

pub async fn copies_of_leased_jobs_have_the_content_of_the_delivery(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let mut sent = Publication { routing_key: "job.backfill.acme".to_owned(), ..job("copied") };
    sent.properties.content_type = Some("application/json".to_owned());
    queue.publish(sent.clone()).await.unwrap();
    let mut got = next(&*queue, Lane::Backfill).await;
    queue.lease(&got, "run-6", Steps::at("1")).await.unwrap();
    got.body = body("2");
    got.properties.content_type = Some(LEASE.to_owned());
    let retry = Settlement::Retry { delay: RetryDelay::S5, headers: headers(&[("x-attempt", "2")]) };
    queue.settle(got, retry, vec![]).await.unwrap();
    let mut got = next(&*queue, Lane::Backfill).await;
    assert_eq!((&got.body, got.properties.content_type.as_deref()), (&body("2"), Some(LEASE)));
    assert_eq!(got.properties.headers.get("x-attempt").map(String::as_str), Some("2"));
    queue.lease(&got, "run-6", Steps::at("3")).await.unwrap();
    got.body = sent.body.clone();
    got.properties.content_type = sent.properties.content_type.clone();
    queue
        .settle(got, Settlement::DeadLetter { headers: headers(&[("x-error-reason", "exhausted")]) }, vec![])
        .await
        .unwrap();
    let letter = fixture.dead_letter().await;
    assert_eq!((letter.body, letter.content_type.as_deref()), (sent.body.to_vec(), Some("application/json")));
    assert_eq!(letter.headers.get("x-original-routing-key").map(String::as_str), Some("job.backfill.acme"));
    assert_eq!(letter.headers.get("x-attempt").map(String::as_str), Some("2"));
    let lease: Vec<_> = letter.headers.keys().filter(|name| name.starts_with("consign-lease")).collect();
    assert!(lease.is_empty(), "{lease:?}");
    nothing_arrives(&*queue, fixture.lease_time()).await;
    queue.close().await;
}

pub async fn a_lost_delivery_can_not_be_leased(fixture: &impl Fixture) {
    let Doomed { queue, cut, mend } = fixture.doomed().await;
    queue.publish(job("late")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    let other = fixture.open().await;
    cut();
    let again = next(&*other, Lane::Scheduled).await;
    mend();
    let late = queue.lease(&got, "run-7", Steps::at("1")).await;
    assert!(matches!(late, Err(QueueError::Lost)), "{late:?}");
    other.settle(again, Settlement::Ack, vec![]).await.unwrap();
    nothing_arrives(&*other, fixture.lease_time()).await;
    queue.close().await;
    other.close().await;
}

pub async fn an_interrupted_lease_harms_nothing(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    let mut all = Vec::new();
    for round in 0..20 {
        queue.publish(job(&format!("{round}"))).await.unwrap();
        let (got, steps) = (next(&*queue, Lane::Scheduled).await, Steps::at("1"));
        // Dropped at whatever point it has reached.
        let (run, limit) = (format!("run-9-{round}"), Duration::from_micros(round * 500));
        let _ = tokio::time::timeout(limit, queue.lease(&got, &run, steps.clone())).await;
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
        all.push(steps);
    }
    nothing_arrives(&*queue, fixture.lease_time()).await;
    let asked: Vec<_> = all.iter().map(|steps| steps.asked()).collect();
    nothing_arrives(&*queue, fixture.lease_time()).await;
    assert_eq!(all.iter().map(|steps| steps.asked()).collect::<Vec<_>>(), asked, "what is settled is renewed");
    queue.close().await;
}

pub async fn closing_notifies_the_holder_and_hands_the_job_off(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    queue.publish(job("closed")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    let steps = Steps::at("1");
    queue.lease(&got, "run-8", steps.clone()).await.unwrap();
    queue.close().await;
    assert_eq!(steps.lost(), 1);
    let other = fixture.open().await;
    let taken = next(&*other, Lane::Continued).await;
    assert_eq!(taken.body, body("1"));
    other.settle(taken, Settlement::Ack, vec![]).await.unwrap();
    other.close().await;
}

/// On no lane, for so long.
pub async fn nothing_arrives(queue: &dyn Queue, time: Duration) {
    let came = tokio::select! {
        () = tokio::time::sleep(time) => None,
        got = queue.next(Lane::Continued) => got,
        got = queue.next(Lane::Scheduled) => got,
        got = queue.next(Lane::Backfill) => got,
    };
    if let Some(got) = came {
        panic!("{got:?} came");
    }
}
