//! What every queue must do about its dead letters, and how it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use consign::domain::lane::Lane;
use consign::domain::outcome::RetryDelay;
use consign::queue::{DeadLetter, DeadLetters, JobPublisher, Properties, Publication, QueueError, Settlement, admin};

use super::{Fixture, headers, job, next};

/// All of it, each part on a queue of its own.
pub async fn suite<F: Fixture>(make: impl AsyncFn(&'static str) -> F) {
    reading_changes_nothing(&make("look").await).await;
    a_requeued_job_begins_a_new_run(&make("requeue").await).await;
    remaining_letters_stay_however_the_pass_ends(&make("stays").await).await;
    a_pass_does_not_return_later_letters(&make("later").await).await;
    an_imported_letter_is_the_same(&make("back").await).await;
    all_waiting_messages_are_counted(&make("depths").await).await;
}

/// Has jobs given up, each under its name and with what a worker would write.
async fn bury(queue: &dyn JobPublisher, names: &[&str]) {
    for name in names {
        queue.publish(published(name)).await.unwrap();
        let got = next(queue, Lane::Backfill).await;
        let dead = headers(&[
            ("x-error-reason", "source_not_found"),
            ("x-error-class", "job"),
            ("x-error-message", "there is no such file"),
            ("x-attempts", "3"),
            ("x-first-failure-at", "2026-01-01T00:00:00Z"),
            ("x-last-failure-at", "2026-01-02T00:00:00Z"),
        ]);
        queue.settle(got, Settlement::DeadLetter { headers: dead }, vec![]).await.unwrap();
    }
}

fn published(name: &str) -> Publication {
    Publication {
        routing_key: "job.backfill.acme".to_owned(),
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            message_id: Some(name.to_owned()),
            reply_to: Some("answers".to_owned()),
            headers: headers(&[("traceparent", "00-aa"), ("x-attempt", "2"), ("x-crashes", "1")]),
            ..Properties::default()
        },
        ..job(name)
    }
}

async fn open(fixture: &impl Fixture) -> Box<dyn DeadLetters> {
    admin(&fixture.config(), "test").dead_letters().await.unwrap()
}

async fn all(fixture: &impl Fixture) -> Vec<DeadLetter> {
    let mut letters = open(fixture).await;
    let mut seen = Vec::new();
    while let Some(letter) = letters.next().await.unwrap() {
        seen.push(letter);
    }
    assert_eq!(letters.count(), u64::try_from(seen.len()).unwrap());
    letters.close().await;
    seen
}

fn ids(letters: &[DeadLetter]) -> BTreeSet<String> {
    letters.iter().map(|letter| letter.id().to_string()).collect()
}

/// Goes on to the letter of a job.
async fn find(letters: &mut dyn DeadLetters, name: &str) -> DeadLetter {
    loop {
        let letter = letters.next().await.unwrap().expect("it is not there");
        if letter.job_id() == Some(name) {
            return letter;
        }
    }
}

async fn reading_changes_nothing(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    assert!(all(fixture).await.is_empty());
    bury(&*queue, &["a", "b", "c"]).await;
    let first = all(fixture).await;
    assert_eq!((first.len(), ids(&first).len()), (3, 3));
    assert_eq!(ids(&all(fixture).await), ids(&first), "it looks the same the second time");
    let letter = first.iter().find(|letter| letter.job_id() == Some("b")).unwrap();
    assert_eq!((letter.reason(), letter.class(), letter.attempts()), ("source_not_found", "job", 3));
    assert_eq!((letter.message(), letter.run()), ("there is no such file", 0));
    assert_eq!((letter.destination(), letter.lane()), (Some("acme"), Lane::Backfill));
    assert_eq!(letter.routing_key(), "job.backfill.acme");
    assert_eq!(letter.body(), &published("b").body);
    assert_eq!(letter.first_failure_at().unwrap().to_string(), "2026-01-01T00:00:00Z");
    assert_eq!(letter.died_at().unwrap().to_string(), "2026-01-02T00:00:00Z");
    queue.close().await;
}

async fn a_requeued_job_begins_a_new_run(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    bury(&*queue, &["a", "b"]).await;
    let mut letters = open(fixture).await;
    find(&mut *letters, "b").await;
    letters.requeue(None).await.unwrap();
    assert!(letters.requeue(None).await.is_err(), "the letter is gone");
    letters.close().await;
    let got = next(&*queue, Lane::Backfill).await;
    let sent = published("b");
    assert_eq!((&got.body, &got.routing_key), (&sent.body, &sent.routing_key));
    let (got_properties, sent_properties) = (&got.properties, &sent.properties);
    assert_eq!(got_properties.message_id, sent_properties.message_id);
    assert_eq!(got_properties.reply_to, sent_properties.reply_to);
    assert_eq!(got_properties.content_type, sent_properties.content_type);
    let kept = [("consign-run", "1"), ("traceparent", "00-aa"), ("x-begun-at", "2026-01-01T00:00:00Z")];
    assert_eq!(got_properties.headers, headers(&kept), "the history of the first run is over");
    assert_eq!(got.delivery_count, 0);
    // It fails again, and the next run is another one.
    let why = headers(&[("x-error-reason", "exhausted")]);
    queue.settle(got, Settlement::DeadLetter { headers: why }, vec![]).await.unwrap();
    let mut letters = open(fixture).await;
    assert_eq!(find(&mut *letters, "b").await.run(), 1);
    letters.requeue(None).await.unwrap();
    letters.close().await;
    let got = next(&*queue, Lane::Backfill).await;
    assert_eq!(got.properties.headers["consign-run"], "2");
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    let left = all(fixture).await;
    assert_eq!((left.len(), left[0].job_id()), (1, Some("a")));
    queue.close().await;
}

async fn remaining_letters_stay_however_the_pass_ends(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    bury(&*queue, &["a", "b", "c", "d"]).await;
    let mut letters = open(fixture).await;
    find(&mut *letters, "c").await;
    letters.discard().await.unwrap();
    letters.next().await.unwrap();
    // As a process that is killed.
    drop(letters);
    let left = crate::testbed::until("all of them are back", super::LIMIT, async || {
        let letters = admin(&fixture.config(), "test").dead_letters().await.ok()?;
        let whole = letters.count() == 3;
        letters.close().await;
        if whole { Some(all(fixture).await) } else { None }
    })
    .await;
    let names: BTreeSet<_> = left.iter().filter_map(DeadLetter::job_id).collect();
    assert_eq!(names, BTreeSet::from(["a", "b", "d"]));
    queue.close().await;
}

async fn a_pass_does_not_return_later_letters(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    bury(&*queue, &["a", "b"]).await;
    let mut letters = open(fixture).await;
    let mut seen = 0;
    while letters.next().await.unwrap().is_some() {
        letters.requeue(None).await.unwrap();
        seen += 1;
        // The job fails at once.
        let got = next(&*queue, Lane::Backfill).await;
        queue.settle(got, Settlement::DeadLetter { headers: BTreeMap::new() }, vec![]).await.unwrap();
        assert!(seen <= 2, "it goes round in circles");
    }
    letters.close().await;
    let left = all(fixture).await;
    assert_eq!(left.iter().map(DeadLetter::run).collect::<Vec<_>>(), [1, 1]);
    queue.close().await;
}

async fn an_imported_letter_is_the_same(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    bury(&*queue, &["a"]).await;
    let mut letters = open(fixture).await;
    let letter = letters.next().await.unwrap().unwrap();
    letters.discard().await.unwrap();
    letters.put(&letter).await.unwrap();
    letters.close().await;
    let back = all(fixture).await;
    let again = &back[0];
    assert_eq!((back.len(), again.id()), (1, letter.id()));
    assert_eq!((again.died_at(), again.properties()), (letter.died_at(), letter.properties()));
    let mut letters = open(fixture).await;
    letters.next().await.unwrap();
    letters.requeue(None).await.unwrap();
    letters.close().await;
    let got = next(&*queue, Lane::Backfill).await;
    assert_eq!((got.body.clone(), got.properties.headers["consign-run"].as_str()), (published("a").body, "1"));
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    let mut letters = open(fixture).await;
    let lost = DeadLetter::new("job.nowhere".to_owned(), Bytes::new(), Properties::default(), None);
    assert!(matches!(letters.put(&lost).await, Err(QueueError::Refused(_))), "nobody could requeue it");
    letters.close().await;
    queue.close().await;
}

async fn all_waiting_messages_are_counted(fixture: &impl Fixture) {
    let queue = fixture.open().await;
    bury(&*queue, &["a", "b"]).await;
    queue.publish(job("waits")).await.unwrap();
    let got = next(&*queue, Lane::Scheduled).await;
    let delay = Settlement::Defer { delay: RetryDelay::H2, headers: BTreeMap::new() };
    queue.settle(got, delay, vec![]).await.unwrap();
    queue.close().await;
    let config = fixture.config();
    let counted = admin(&config, "test").depths().await.unwrap();
    assert!(counted.lanes.iter().all(|(_, count)| *count == 0), "{counted:?}");
    assert_eq!(counted.waiting.iter().find(|(_, count)| *count > 0), Some(&(RetryDelay::H2, 1)));
    assert_eq!((counted.waiting.len(), counted.dead), (RetryDelay::ALL.len(), 2));
    // Nobody consumes any more.
    let publisher =
        consign::queue::start(&config, "test", vec![], std::sync::Arc::new(consign::metrics::Metrics::new(1)));
    let publisher = publisher.unwrap();
    publisher.wait_connected(Duration::from_secs(60)).await.unwrap();
    for name in ["x", "y", "z"] {
        publisher.publish(published(name)).await.unwrap();
    }
    publisher.close().await;
    let counted = admin(&config, "test").depths().await.unwrap();
    assert_eq!(counted.lanes.iter().find(|(_, count)| *count > 0), Some(&(Lane::Backfill, 3)));
}
