//! From a lane's queue to a [`Delivery`]: what was fetched waits here until the worker asks for it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lapin::options::BasicNackOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, BasicProperties};
use tokio::sync::Notify;

use super::headers::is_bookkeeping;
use super::settle;
use crate::domain::lane::Lane;
use crate::queue::{Delivery, DeliveryTag, Properties};

/// Puts a delivery back into its queue.
pub(super) const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

/// A delivery that the worker has not asked for yet.
#[derive(Debug)]
pub(super) struct Fetched {
    generation: u64,
    inner: lapin::message::Delivery,
}

impl Fetched {
    pub(super) fn new(generation: u64, inner: lapin::message::Delivery) -> Self {
        Self { generation, inner }
    }

    /// As it came.
    pub(super) fn message(&self) -> &lapin::message::Delivery {
        &self.inner
    }

    /// Back to the queue, untouched.
    pub(super) async fn give_back(self) {
        if let Err(error) = self.inner.acker.nack(REQUEUE).await {
            tracing::debug!(%error, "a delivery could not be given back; its channel is gone");
        }
    }

    /// What the worker sees, and what is kept to settle it.
    fn hand_out(self, lane: Lane) -> (Delivery, Loan) {
        let lapin::message::Delivery { delivery_tag, routing_key, redelivered, properties, data, acker, .. } =
            self.inner;
        let headers = properties.headers().as_ref();
        let delivery = Delivery {
            lane,
            body: Bytes::from(data),
            routing_key: settle::job_key(routing_key.as_str(), lane, headers),
            redelivered,
            delivery_count: delivery_count(headers),
            properties: visible(&properties),
            ticket: DeliveryTag { generation: self.generation, lane, tag: delivery_tag },
        };
        (delivery, Loan { acker, properties })
    }
}

/// What is kept of a delivery while the worker has it: its acker, and its properties as they came, so that a copy loses none.
#[derive(Debug)]
pub(super) struct Loan {
    pub(super) acker: Acker,
    pub(super) properties: BasicProperties,
}

#[derive(Debug, Default)]
struct Waiting {
    deliveries: VecDeque<Fetched>,
    closed: bool,
    paused: bool,
}

/// What was fetched for one lane. Bounded by the prefetch.
#[derive(Debug, Default)]
struct Backlog {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

impl Backlog {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lanes' backlogs and the deliveries on loan. Outlives the sessions.
#[derive(Debug, Default)]
pub(super) struct Intake {
    backlogs: [Backlog; 3],
    loans: Mutex<HashMap<DeliveryTag, Loan>>,
}

impl Intake {
    fn backlog(&self, lane: Lane) -> &Backlog {
        match lane {
            Lane::Continued => &self.backlogs[0],
            Lane::Scheduled => &self.backlogs[1],
            Lane::Backfill => &self.backlogs[2],
        }
    }

    fn loans(&self) -> MutexGuard<'_, HashMap<DeliveryTag, Loan>> {
        self.loans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a delivery for the worker. Closed or paused, it hands it back to the caller, who gives it back.
    pub(super) fn put(&self, lane: Lane, fetched: Fetched) -> Option<Fetched> {
        let backlog = self.backlog(lane);
        let mut waiting = backlog.lock();
        if waiting.closed || waiting.paused {
            return Some(fetched);
        }
        waiting.deliveries.push_back(fetched);
        drop(waiting);
        backlog.changed.notify_one();
        None
    }

    /// The next delivery of a lane, now on loan; `None` once closed. Cancel safe: nothing is taken before the last await.
    pub(super) async fn next(&self, lane: Lane) -> Option<Delivery> {
        let backlog = self.backlog(lane);
        loop {
            let changed = backlog.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            {
                let mut waiting = backlog.lock();
                if waiting.closed {
                    return None;
                }
                if let Some(fetched) = waiting.deliveries.pop_front() {
                    let (delivery, loan) = fetched.hand_out(lane);
                    self.loans().insert(delivery.ticket, loan);
                    return Some(delivery);
                }
            }
            changed.await;
        }
    }

    /// The properties of a delivery on loan, as they came; `None` when its session is over.
    pub(super) fn properties(&self, ticket: DeliveryTag) -> Option<BasicProperties> {
        self.loans().get(&ticket).map(|loan| loan.properties.clone())
    }

    /// Whether a delivery is on loan, and its session not over.
    pub(super) fn lends(&self, ticket: DeliveryTag) -> bool {
        self.loans().contains_key(&ticket)
    }

    /// Ends a loan; `None` when its session is over.
    pub(super) fn take(&self, ticket: DeliveryTag) -> Option<Loan> {
        self.loans().remove(&ticket)
    }

    /// The session is over: what was fetched comes again, and what is on loan can't be settled any more.
    pub(super) fn forget(&self) {
        for backlog in &self.backlogs {
            backlog.lock().deliveries.clear();
        }
        self.loans().clear();
    }

    /// No more is handed out. Returns what was fetched and not handed out.
    pub(super) fn close(&self) -> Vec<Fetched> {
        let mut left = Vec::new();
        for backlog in &self.backlogs {
            let mut waiting = backlog.lock();
            waiting.closed = true;
            left.extend(waiting.deliveries.drain(..));
            drop(waiting);
            backlog.changed.notify_waiters();
        }
        left
    }

    /// Nothing is kept until [`Intake::resume`]. Returns what was fetched and not handed out.
    pub(super) fn pause(&self) -> Vec<Fetched> {
        let mut left = Vec::new();
        for backlog in &self.backlogs {
            let mut waiting = backlog.lock();
            waiting.paused = true;
            left.extend(waiting.deliveries.drain(..));
        }
        left
    }

    /// Deliveries are kept again.
    pub(super) fn resume(&self) {
        for backlog in &self.backlogs {
            backlog.lock().paused = false;
        }
    }

    /// Whether deliveries are wanted: neither closed nor paused.
    pub(super) fn takes(&self) -> bool {
        let waiting = self.backlogs[0].lock();
        !waiting.closed && !waiting.paused
    }

    /// Whether [`Intake::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.backlogs[0].lock().closed
    }
}

fn delivery_count(headers: Option<&FieldTable>) -> u64 {
    let text = headers.and_then(|table| table.inner().get("x-delivery-count")).and_then(as_text);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(super) fn visible(properties: &BasicProperties) -> Properties {
    let owned = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string);
    Properties {
        content_type: owned(properties.content_type()),
        message_id: owned(properties.message_id()),
        reply_to: owned(properties.reply_to()),
        correlation_id: owned(properties.correlation_id()),
        kind: owned(properties.kind()),
        headers: properties.headers().as_ref().map(text_headers).unwrap_or_default(),
    }
}

fn text_headers(table: &FieldTable) -> BTreeMap<String, String> {
    let own = table.into_iter().filter(|(name, _)| !is_bookkeeping(name.as_str()));
    own.filter_map(|(name, value)| Some((name.to_string(), as_text(value)?))).collect()
}

/// A header as text; lists, tables and binary values have none (copies keep them all the same).
pub(super) fn as_text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::Boolean(v) => v.to_string(),
        AMQPValue::ShortShortInt(v) => v.to_string(),
        AMQPValue::ShortShortUInt(v) => v.to_string(),
        AMQPValue::ShortInt(v) => v.to_string(),
        AMQPValue::ShortUInt(v) => v.to_string(),
        AMQPValue::LongInt(v) => v.to_string(),
        AMQPValue::LongUInt(v) => v.to_string(),
        AMQPValue::LongLongInt(v) => v.to_string(),
        AMQPValue::Float(v) => v.to_string(),
        AMQPValue::Double(v) => v.to_string(),
        AMQPValue::Timestamp(v) => v.to_string(),
        AMQPValue::ShortString(v) => v.to_string(),
        AMQPValue::LongString(v) => std::str::from_utf8(v.as_bytes()).ok()?.to_owned(),
        AMQPValue::DecimalValue(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::ByteArray(_)
        | AMQPValue::Void => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn fetched(generation: u64, tag: u64) -> Fetched {
        let inner =
            lapin::message::Delivery::mock(tag, "consign".into(), "job.scheduled.a".into(), false, b"{}".to_vec());
        Fetched::new(generation, inner)
    }

    #[tokio::test]
    async fn a_dropped_next_loses_nothing() {
        let intake = Intake::default();
        for _ in 0..3 {
            let next = intake.next(Lane::Scheduled);
            assert!(tokio::time::timeout(std::time::Duration::from_millis(1), next).await.is_err());
        }
        assert!(intake.put(Lane::Scheduled, fetched(1, 7)).is_none());
        assert_eq!(intake.next(Lane::Scheduled).await.unwrap().ticket.tag, 7);
    }

    #[tokio::test]
    async fn several_waiters_each_get_one() {
        let intake = Arc::new(Intake::default());
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let intake = Arc::clone(&intake);
                tokio::spawn(async move { intake.next(Lane::Backfill).await.map(|d| d.ticket.tag) })
            })
            .collect();
        tokio::task::yield_now().await;
        for tag in 1..=4 {
            intake.put(Lane::Backfill, fetched(1, tag));
        }
        let mut tags = Vec::new();
        for waiter in waiters {
            tags.push(waiter.await.unwrap().unwrap());
        }
        tags.sort_unstable();
        assert_eq!(tags, [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_new_session_forgets_what_the_old_one_fetched_and_lent() {
        let intake = Intake::default();
        intake.put(Lane::Scheduled, fetched(1, 1));
        intake.put(Lane::Scheduled, fetched(1, 2));
        let lent = intake.next(Lane::Scheduled).await.unwrap();
        intake.forget();
        intake.put(Lane::Scheduled, fetched(2, 1));
        assert!(intake.take(lent.ticket).is_none());
        let next = intake.next(Lane::Scheduled).await.unwrap();
        assert_eq!((next.ticket.generation, next.ticket.tag), (2, 1));
        assert!(intake.take(next.ticket).is_some());
    }

    #[tokio::test]
    async fn closing_ends_the_waiting_and_returns_what_is_left() {
        let intake = Arc::new(Intake::default());
        intake.put(Lane::Scheduled, fetched(1, 1));
        let waiting = tokio::spawn({
            let intake = Arc::clone(&intake);
            async move { intake.next(Lane::Continued).await.is_none() }
        });
        tokio::task::yield_now().await;
        assert_eq!(intake.close().len(), 1);
        assert!(waiting.await.unwrap());
        assert!(intake.next(Lane::Scheduled).await.is_none());
        assert!(intake.put(Lane::Scheduled, fetched(1, 2)).is_some());
    }

    #[test]
    fn headers_become_text_without_the_brokers_bookkeeping() {
        let mut table = FieldTable::default();
        table.insert("x-attempt".into(), AMQPValue::LongInt(3));
        table.insert("traceparent".into(), AMQPValue::LongString("00-a".into()));
        table.insert("flag".into(), AMQPValue::Boolean(true));
        table.insert("binary".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
        table.insert("x-death".into(), AMQPValue::LongString("x".into()));
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(4));
        let headers = text_headers(&table);
        let expected = [("flag", "true"), ("traceparent", "00-a"), ("x-attempt", "3")];
        assert_eq!(headers, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(delivery_count(Some(&table)), 4);
        assert_eq!(delivery_count(None), 0);
    }
}
