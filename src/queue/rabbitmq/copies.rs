//! Copies of jobs: they keep all of the producer's headers, and none of the broker's.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery as Message;
use lapin::types::{FieldTable, ShortString};

use super::fields::{SetText, merged, retain_headers, short, text_of};
use super::names::Names;
use super::publisher::{OutgoingMessage, PERSISTENT};
use crate::domain::destination::DestinationIdentity;
use crate::domain::headers::{
    DEFERRED_SINCE, DESTINATION, Headers, LEASE_EPOCH, LEASE_OWNER, ORIGINAL_ROUTING_KEY, PUBLISHER, TURNS, WAIT,
    belongs_to_run,
};
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::domain::routing_key::{bound_lane, unaddressed};
use crate::queue::{DeadLetter, Delivery, QueueError};

/// Returns the job's own routing key. Handed-off work arrives under the key of its lease and
/// carries the job's key in a header. A job that was published straight into the queue has none: it
/// gets one of its lane, so that a waiting copy returns there.
pub(super) fn job_key(routing_key: &str, lane: Lane, headers: Option<&FieldTable>) -> String {
    if bound_lane(routing_key).is_some() {
        return routing_key.to_owned();
    }
    original_key(headers).unwrap_or_else(|| unaddressed(lane))
}

/// Returns the job's own routing key of a dead letter: the recorded one, else the one it arrived
/// under.
pub(super) fn letter_key(routing_key: &str, headers: Option<&FieldTable>) -> String {
    original_key(headers).unwrap_or_else(|| job_key(routing_key, Lane::Scheduled, None))
}

fn original_key(headers: Option<&FieldTable>) -> Option<String> {
    text_of(headers, ORIGINAL_ROUTING_KEY).filter(|key| bound_lane(key).is_some())
}

/// Copy of a job: its routing key, its content, the original's properties, and headers that
/// override those of the original.
#[derive(Debug)]
pub(super) struct JobCopy<'a> {
    pub(super) routing_key: &'a str,
    pub(super) body: &'a Bytes,
    pub(super) content_type: Option<&'a str>,
    pub(super) original: &'a BasicProperties,
    pub(super) headers: Headers,
}

impl<'a> JobCopy<'a> {
    /// Copy of a delivery, with the content that it has when it is settled.
    pub(super) fn of(delivery: &'a Delivery, original: &'a BasicProperties, headers: Headers) -> Self {
        Self {
            routing_key: &delivery.routing_key,
            body: &delivery.body,
            content_type: delivery.properties.content_type.as_deref(),
            original,
            headers,
        }
    }

    /// Copy of a message with its own headers; `body` is its data.
    fn unchanged(message: &'a Message, body: &'a Bytes) -> Self {
        Self {
            routing_key: message.routing_key.as_str(),
            body,
            content_type: message.properties.content_type().as_ref().map(ShortString::as_str),
            original: &message.properties,
            headers: Headers::new(),
        }
    }

    /// Adds the routing key as a header, for a copy that travels under another one.
    fn with_original_key(mut self) -> Self {
        self.headers.insert(ORIGINAL_ROUTING_KEY.to_owned(), self.routing_key.to_owned());
        self
    }

    fn message(mut self, exchange: String) -> Result<OutgoingMessage, QueueError> {
        // Set last, so that no size of the other headers can displace it.
        if let Some(publisher) = text_of(self.original.headers().as_ref(), PUBLISHER) {
            self.headers.insert(PUBLISHER.to_owned(), publisher);
        }
        let headers = merged(self.original.headers().as_ref(), self.headers)?;
        let mut properties = producer_properties(self.original).with_headers(headers).with_delivery_mode(PERSISTENT);
        if let Some(content_type) = self.content_type {
            properties = properties.with_content_type(short(content_type)?);
        }
        Ok(OutgoingMessage::mandatory(exchange, self.routing_key, self.body, properties))
    }
}

/// Copy that waits for `delay` and then returns to its lane.
pub(super) fn waiting(names: &Names, delay: RetryDelay, mut copy: JobCopy<'_>) -> Result<OutgoingMessage, QueueError> {
    copy.headers.insert(WAIT.to_owned(), delay.as_str().to_owned());
    copy.message(names.wait_exchange())
}

/// Returns true for a waiting copy that waits for the recovery of its destination.
pub(super) fn waits_for_recovery(properties: &BasicProperties) -> bool {
    text_of(properties.headers().as_ref(), DEFERRED_SINCE).is_some_and(|since| !since.is_empty())
}

/// Returns the identity of the destination that a waiting copy names, if it does.
pub(super) fn waits_for(properties: &BasicProperties) -> Option<DestinationIdentity> {
    DestinationIdentity::parse(&text_of(properties.headers().as_ref(), DESTINATION)?).ok()
}

/// Copy that has waited, as the broker would send it at the end of its delay.
pub(super) fn released(names: &Names, mut waiting: Message) -> Result<OutgoingMessage, QueueError> {
    let body = Bytes::from(std::mem::take(&mut waiting.data));
    let headers = wait_of(&waiting).into_iter().collect();
    JobCopy { headers, ..JobCopy::unchanged(&waiting, &body) }.message(names.jobs_exchange())
}

fn wait_of(message: &Message) -> Option<(String, String)> {
    text_of(message.properties.headers().as_ref(), WAIT).map(|wait| (WAIT.to_owned(), wait))
}

/// Copy for the dead letters, without the lease of the job.
pub(super) fn dead_letter(names: &Names, copy: JobCopy<'_>) -> Result<OutgoingMessage, QueueError> {
    let original = retain_headers(copy.original, |name| ![LEASE_EPOCH, LEASE_OWNER].contains(&name));
    JobCopy { original: &original, ..copy.with_original_key() }.message(names.dead_exchange())
}

/// Job of a dead letter, in a new run.
pub(super) fn requeued(
    names: &Names,
    letter: &DeadLetter,
    original: &BasicProperties,
    generation: Option<u64>,
) -> Result<OutgoingMessage, QueueError> {
    let copy = JobCopy {
        routing_key: letter.routing_key(),
        body: letter.body(),
        content_type: letter.properties().content_type.as_deref(),
        original: &retain_headers(original, |name| !belongs_to_run(name)),
        headers: letter.next_run(generation),
    };
    copy.message(names.jobs_exchange())
}

/// Copy for the next free worker.
pub(super) fn handed_off(names: &Names, copy: JobCopy<'_>) -> Result<OutgoingMessage, QueueError> {
    copy.with_original_key().message(names.orphans_exchange())
}

/// Lease of a job, published under the key of the lease.
pub(super) fn lease(names: &Names, key: &str, copy: JobCopy<'_>) -> Result<OutgoingMessage, QueueError> {
    JobCopy { routing_key: key, ..copy.with_original_key() }.message(names.lease_exchange())
}

/// Returned lease, forwarded unchanged to other workers.
pub(super) fn forwarded(names: &Names, lease: &Message) -> Result<OutgoingMessage, QueueError> {
    JobCopy::unchanged(lease, &Bytes::copy_from_slice(&lease.data)).message(names.orphans_exchange())
}

/// Copy that takes the place of a message in its lane, with a delivery count of zero. It counts as
/// one more deferral, which keeps it apart from the message, and shows that the job may have begun
/// before.
pub(super) fn renewed(names: &Names, lane: Lane, message: &Message) -> Result<OutgoingMessage, QueueError> {
    if lane == Lane::Continued {
        return forwarded(names, message);
    }
    let headers = message.properties.headers().as_ref();
    let turns = text_of(headers, TURNS).and_then(|turns| turns.parse().ok()).unwrap_or(0_u32);
    let turns = [(TURNS.to_owned(), turns.saturating_add(1).to_string())];
    JobCopy {
        routing_key: &job_key(message.routing_key.as_str(), lane, headers),
        headers: wait_of(message).into_iter().chain(turns).collect(),
        ..JobCopy::unchanged(message, &Bytes::copy_from_slice(&message.data))
    }
    .message(names.jobs_exchange())
}

/// Returns all properties but `content_type` (it belongs to the body), `expiration` (it would end
/// the wait early), `user_id` (the broker compares it with the login) and `cluster_id`.
fn producer_properties(original: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default();
    let texts: [(&Option<ShortString>, SetText); 6] = [
        (original.content_encoding(), BasicProperties::with_content_encoding),
        (original.correlation_id(), BasicProperties::with_correlation_id),
        (original.reply_to(), BasicProperties::with_reply_to),
        (original.message_id(), BasicProperties::with_message_id),
        (original.kind(), BasicProperties::with_type),
        (original.app_id(), BasicProperties::with_app_id),
    ];
    for (value, with) in texts {
        if let Some(value) = value {
            copy = with(copy, value.clone());
        }
    }
    if let Some(priority) = *original.priority() {
        copy = copy.with_priority(priority);
    }
    if let Some(timestamp) = *original.timestamp() {
        copy = copy.with_timestamp(timestamp);
    }
    copy
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, FieldArray};

    use super::*;
    use crate::domain::headers::LEASE_SEQ;

    fn original() -> BasicProperties {
        let mut headers = FieldTable::default();
        for name in ["x-death", "x-first-death-queue", "x-last-death-reason", "CC", "BCC", "x-delivery-count"] {
            headers.insert(name.into(), AMQPValue::LongString("broker".into()));
        }
        headers.insert("consign-wait".into(), AMQPValue::LongString("30s".into()));
        headers.insert("x-attempt".into(), AMQPValue::LongString("1".into()));
        headers.insert("list".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongInt(1)])));
        headers.insert("raw".into(), AMQPValue::ByteArray(vec![0xff].into()));
        BasicProperties::default()
            .with_headers(headers)
            .with_content_type("application/json".into())
            .with_message_id("a/1".into())
            .with_reply_to("answers".into())
            .with_correlation_id("c".into())
            .with_type("consign.check.v1".into())
            .with_app_id("scheduler".into())
            .with_expiration("1".into())
            .with_user_id("guest".into())
            .with_delivery_mode(1)
    }

    fn names() -> Names {
        Names::new("p")
    }

    static EMPTY: Bytes = Bytes::new();

    fn empty<'a>(routing_key: &'a str, original: &'a BasicProperties) -> JobCopy<'a> {
        JobCopy { routing_key, body: &EMPTY, content_type: None, original, headers: Headers::new() }
    }

    fn leased() -> BasicProperties {
        let mut headers = original().headers().clone().unwrap();
        for name in [LEASE_EPOCH, LEASE_OWNER, LEASE_SEQ] {
            headers.insert(name.into(), AMQPValue::LongString("3".into()));
        }
        original().with_headers(headers)
    }

    #[test]
    fn a_renewed_message_stays_in_its_lane_without_its_delivery_count() {
        let message = |key: &str, properties: BasicProperties| lapin::message::Delivery {
            properties,
            ..lapin::message::Delivery::mock(1, "p".into(), key.into(), true, b"{}".to_vec())
        };
        for (lane, key, exchange, sent) in [
            (Lane::Scheduled, "job.scheduled.a", "p", "job.scheduled.a"),
            (Lane::Backfill, "odd", "p", unaddressed(Lane::Backfill).as_str()),
            (Lane::Continued, "key-of-a-lease", "p.orphans", "key-of-a-lease"),
        ] {
            let copy = renewed(&names(), lane, &message(key, leased())).unwrap();
            assert_eq!(
                (copy.exchange.as_str(), copy.routing_key.as_str(), &copy.body[..]),
                (exchange, sent, &b"{}"[..])
            );
            let headers = copy.properties.headers().as_ref();
            assert_eq!(text_of(headers, "x-delivery-count"), None);
            assert_eq!(text_of(headers, "x-attempt").as_deref(), Some("1"));
            assert_eq!(text_of(headers, TURNS).as_deref(), (lane != Lane::Continued).then_some("1"));
            assert_eq!(copy.properties.message_id().as_ref().map(ShortString::as_str), Some("a/1"));
            assert!(copy.mandatory);
        }
    }

    #[test]
    fn a_waiting_copy_keeps_the_producers_part_and_strips_the_brokers() {
        let headers = Headers::from([("x-attempt".to_owned(), "2".to_owned())]);
        let (original, content_type) = (original(), Some("application/vnd.other"));
        let copy = JobCopy { content_type, headers, ..empty("job.scheduled.a", &original) };
        let copy = waiting(&names(), RetryDelay::M2, copy).unwrap();
        assert_eq!((copy.exchange.as_str(), copy.routing_key.as_str()), ("p.wait", "job.scheduled.a"));
        let headers = copy.properties.headers().as_ref().unwrap().inner();
        let kept: Vec<_> = headers.keys().map(ShortString::as_str).collect();
        assert_eq!(kept, ["consign-wait", "list", "raw", "x-attempt"]);
        assert_eq!(headers["consign-wait"], AMQPValue::LongString("2m".into()));
        assert_eq!(headers["x-attempt"], AMQPValue::LongString("2".into()));
        assert_eq!(headers["raw"], AMQPValue::ByteArray(vec![0xff].into()));
        let kept = &copy.properties;
        assert_eq!(*kept.delivery_mode(), Some(2));
        assert_eq!((kept.expiration(), kept.user_id()), (&None, &None));
        for (is, was) in [
            (kept.message_id(), "a/1"),
            (kept.content_type(), "application/vnd.other"),
            (kept.reply_to(), "answers"),
            (kept.correlation_id(), "c"),
            (kept.kind(), "consign.check.v1"),
            (kept.app_id(), "scheduler"),
        ] {
            assert_eq!(is.as_ref().map(ShortString::as_str), Some(was));
        }
    }

    #[test]
    fn a_released_copy_equals_the_one_that_the_broker_would_send() {
        let key = "job.backfill.a";
        let mut came = lapin::message::Delivery::mock(1, "p.wait".into(), key.into(), true, b"{}".to_vec());
        came.properties = original();
        let copy = released(&names(), came).unwrap();
        assert_eq!((copy.exchange.as_str(), copy.routing_key.as_str(), &copy.body[..]), ("p", key, &b"{}"[..]));
        let headers = copy.properties.headers().as_ref().unwrap().inner();
        let kept: Vec<_> = headers.keys().map(ShortString::as_str).collect();
        assert_eq!(
            kept,
            ["consign-wait", "list", "raw", "x-attempt"],
            "and nothing that makes it look like a crash loop"
        );
        assert_eq!(headers["consign-wait"], AMQPValue::LongString("30s".into()));
        let kept = &copy.properties;
        assert_eq!((kept.expiration(), kept.user_id(), *kept.delivery_mode()), (&None, &None, Some(2)));
        assert_eq!(kept.content_type().as_ref().map(ShortString::as_str), Some("application/json"));
        assert_eq!(kept.message_id().as_ref().map(ShortString::as_str), Some("a/1"));
    }

    #[test]
    fn a_dead_letter_carries_its_original_routing_key() {
        let copy = dead_letter(&names(), empty("job.backfill.a", &original())).unwrap();
        assert_eq!(copy.exchange, "p.dlx");
        let headers = copy.properties.headers().as_ref().unwrap().inner();
        assert_eq!(headers["x-original-routing-key"], AMQPValue::LongString("job.backfill.a".into()));
        assert!(!headers.contains_key("consign-wait"));
    }

    #[test]
    fn copies_of_leased_jobs_name_the_owner_and_have_no_sequence_number() {
        let names_of = |copy: &OutgoingMessage| {
            let headers = copy.properties.headers().as_ref().unwrap().inner();
            let lease = headers.keys().map(ShortString::as_str).filter(|name| name.starts_with("consign-lease"));
            lease.map(str::to_owned).collect::<Vec<_>>()
        };
        let copy = waiting(&names(), RetryDelay::S5, empty("job.scheduled.a", &leased())).unwrap();
        assert_eq!(names_of(&copy), [LEASE_EPOCH, LEASE_OWNER]);
        assert_eq!(copy.properties.content_type(), &None, "the media type belongs to the body");
        let copy = handed_off(&names(), empty("job.scheduled.a", &leased())).unwrap();
        assert_eq!(
            (copy.exchange.as_str(), names_of(&copy)),
            ("p.orphans", vec![LEASE_EPOCH.to_owned(), LEASE_OWNER.to_owned()])
        );
        let headers = copy.properties.headers().as_ref().unwrap().inner();
        assert_eq!(headers[ORIGINAL_ROUTING_KEY], AMQPValue::LongString("job.scheduled.a".into()));
        let copy = dead_letter(&names(), empty("job.scheduled.a", &leased())).unwrap();
        assert_eq!(names_of(&copy), Vec::<String>::new());
    }

    #[test]
    fn handed_off_work_keeps_the_jobs_own_key() {
        let mut headers = FieldTable::default();
        headers.insert(ORIGINAL_ROUTING_KEY.into(), AMQPValue::LongString("job.backfill.a".into()));
        assert_eq!(job_key("worker-7", Lane::Continued, Some(&headers)), "job.backfill.a");
        assert_eq!(job_key("job.scheduled.b", Lane::Scheduled, Some(&headers)), "job.scheduled.b");
        assert_eq!(job_key("worker-7", Lane::Continued, None), "job.scheduled._direct");
        assert_eq!(job_key("consign.jobs.backfill", Lane::Backfill, None), "job.backfill._direct");
        assert_eq!(job_key("job.scheduled.a.b", Lane::Scheduled, None), "job.scheduled._direct");
    }

    #[test]
    fn a_name_too_long_for_amqp_is_refused_and_does_not_panic() {
        let headers = Headers::from([("x".repeat(256), String::new())]);
        assert!(waiting(&names(), RetryDelay::S5, JobCopy { headers, ..empty("k", &original()) }).is_err());
    }
}
