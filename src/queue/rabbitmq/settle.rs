//! What a settlement publishes: copies that keep everything of the producer and nothing of the broker, and outcome events.

use std::collections::BTreeMap;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::consumer::as_text;
use super::declare::short;
use super::direct::is_direct;
use super::headers::{WAIT_HEADER, keeping_headers, merged};
use super::lease::{EPOCH, KEY, NOTICE, OWNER};
use super::publish::Message;
use super::topology::Names;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::dead::is_of_the_past;
use crate::queue::{DEFERRED_SINCE, DeadLetter, Delivery, OutcomeEvent, Properties, Publication, QueueError, Reply};

const PERSISTENT: u8 = 2;
const ORIGINAL_KEY: &str = "x-original-routing-key";

/// The job's own routing key. Handed-over work comes by its former owner's key and carries the job's in a header. A job that was
/// published straight into the queue has none: it gets one of its lane, else a copy of it would wait and find no way back.
pub(super) fn job_key(routing_key: &str, lane: Lane, headers: Option<&FieldTable>) -> String {
    if leads_back(routing_key) {
        return routing_key.to_owned();
    }
    let carried = headers.and_then(|table| table.inner().get(ORIGINAL_KEY)).and_then(as_text);
    carried.filter(|key| leads_back(key)).unwrap_or_else(|| match lane {
        Lane::Backfill => "job.backfill._direct".to_owned(),
        Lane::Scheduled | Lane::Continued => "job.scheduled._direct".to_owned(),
    })
}

/// Whether the bindings of the job queues match this key: `job.<lane>.<one word>`.
fn leads_back(key: &str) -> bool {
    let word = key.strip_prefix("job.scheduled.").or_else(|| key.strip_prefix("job.backfill."));
    word.is_some_and(|word| !word.contains('.'))
}

/// What a copy carries instead of what its original came with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) body: &'a Bytes,
    pub(super) content_type: Option<&'a str>,
}

impl<'a> Content<'a> {
    /// As the delivery has it when it is settled.
    pub(super) fn of(delivery: &'a Delivery) -> Self {
        Self { body: &delivery.body, content_type: delivery.properties.content_type.as_deref() }
    }
}

/// A copy that waits on `delay` and then comes back to its lane.
pub(super) fn waiting(
    names: &Names,
    delay: RetryDelay,
    routing_key: &str,
    content: Content<'_>,
    original: &BasicProperties,
    set: BTreeMap<String, String>,
) -> Result<Message, QueueError> {
    let mut set = set;
    set.insert(WAIT_HEADER.to_owned(), delay.as_str().to_owned());
    copy(names.wait_exchange(), routing_key, content, original, set)
}

/// Whether a copy that waits does so until its destination is mended.
pub(super) fn waits_for_repair(properties: &BasicProperties) -> bool {
    let since = properties.headers().as_ref().and_then(|table| table.inner().get(DEFERRED_SINCE)).and_then(as_text);
    since.is_some_and(|since| !since.is_empty())
}

/// A copy that has waited, as the broker would send it when its wait is over.
pub(super) fn recalled(names: &Names, waiting: lapin::message::Delivery) -> Result<Message, QueueError> {
    let lapin::message::Delivery { routing_key, properties, data, .. } = waiting;
    let wait = properties.headers().as_ref().and_then(|table| table.inner().get(WAIT_HEADER)).and_then(as_text);
    let set = wait.map(|wait| (WAIT_HEADER.to_owned(), wait)).into_iter().collect();
    let (body, content_type) = (Bytes::from(data), properties.content_type().as_ref().map(ShortString::as_str));
    copy(names.jobs_exchange(), routing_key.as_str(), Content { body: &body, content_type }, &properties, set)
}

/// A copy for the dead letters. Where it was leased ends with it.
pub(super) fn dead(
    names: &Names,
    routing_key: &str,
    content: Content<'_>,
    original: &BasicProperties,
    set: BTreeMap<String, String>,
) -> Result<Message, QueueError> {
    let mut set = set;
    set.insert(ORIGINAL_KEY.to_owned(), routing_key.to_owned());
    let original = keeping_headers(original, |name| ![EPOCH, OWNER].contains(&name));
    copy(names.dead_exchange(), routing_key, content, &original, set)
}

/// The job's own routing key of a dead letter: the one that the worker noted, else the one it came by.
pub(super) fn letter_key(routing_key: &str, headers: Option<&FieldTable>) -> String {
    let noted = headers.and_then(|table| table.inner().get(ORIGINAL_KEY)).and_then(as_text);
    noted.filter(|key| leads_back(key)).unwrap_or_else(|| job_key(routing_key, Lane::Scheduled, None))
}

/// A dead letter as a job again, in a run of its own.
pub(super) fn requeued(names: &Names, letter: &DeadLetter, original: &BasicProperties) -> Result<Message, QueueError> {
    let original = keeping_headers(original, |name| !is_of_the_past(name));
    let content = Content { body: letter.body(), content_type: letter.properties().content_type.as_deref() };
    copy(names.jobs_exchange(), letter.routing_key(), content, &original, letter.next_run())
}

/// A dead letter that was exported, back among the others. With every header: it is known by them.
pub(super) fn put_back(names: &Names, letter: &DeadLetter) -> Result<Message, QueueError> {
    let mut headers = FieldTable::default();
    for (name, value) in &letter.properties().headers {
        headers.insert(short(name)?, AMQPValue::LongString(value.as_str().into()));
    }
    Ok(Message {
        exchange: names.dead_exchange(),
        routing_key: letter.routing_key().to_owned(),
        body: letter.body().clone(),
        properties: job_properties(letter.properties().clone())?.with_headers(headers),
        mandatory: true,
    })
}

/// A copy for whoever is free next: by the job's own key, which it also carries.
pub(super) fn handed_over(
    names: &Names,
    job_key: &str,
    content: Content<'_>,
    original: &BasicProperties,
    set: BTreeMap<String, String>,
) -> Result<Message, QueueError> {
    let mut set = set;
    set.insert(ORIGINAL_KEY.to_owned(), job_key.to_owned());
    copy(names.orphans_exchange(), job_key, content, original, set)
}

/// The message that keeps a job, under the key of its lease. The job's own key travels in a header.
pub(super) fn lease(
    names: &Names,
    (key, job_key): (&str, &str),
    content: Content<'_>,
    original: &BasicProperties,
    set: BTreeMap<String, String>,
) -> Result<Message, QueueError> {
    let mut set = set;
    set.insert(ORIGINAL_KEY.to_owned(), job_key.to_owned());
    copy(names.lease_exchange(), key, content, original, set)
}

/// A lease that came back and is for others, as it is.
pub(super) fn passed_on(names: &Names, returned: &lapin::message::Delivery) -> Result<Message, QueueError> {
    let body = Bytes::copy_from_slice(&returned.data);
    let content_type = returned.properties.content_type().as_ref().map(ShortString::as_str);
    let content = Content { body: &body, content_type };
    copy(names.orphans_exchange(), returned.routing_key.as_str(), content, &returned.properties, BTreeMap::new())
}

/// Tells a former owner, by its address, that a job is another's. It is no work: whoever meets it elsewhere drops it.
pub(super) fn notice(
    names: &Names,
    former: &str,
    key: &str,
    set: BTreeMap<String, String>,
) -> Result<Message, QueueError> {
    let mut headers = merged(None, set)?;
    headers.insert(NOTICE.into(), AMQPValue::Boolean(true));
    headers.insert(KEY.into(), AMQPValue::LongString(key.into()));
    Ok(Message {
        exchange: names.owners_exchange(),
        routing_key: names.owner(former),
        body: Bytes::new(),
        properties: BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT),
        mandatory: true,
    })
}

fn copy(
    exchange: String,
    routing_key: &str,
    content: Content<'_>,
    original: &BasicProperties,
    set: BTreeMap<String, String>,
) -> Result<Message, QueueError> {
    let headers = merged(original.headers().as_ref(), set)?;
    let mut properties = without_broker_fields(original).with_headers(headers).with_delivery_mode(PERSISTENT);
    if let Some(content_type) = content.content_type {
        properties = properties.with_content_type(short(content_type)?);
    }
    Ok(Message {
        exchange,
        routing_key: routing_key.to_owned(),
        body: content.body.clone(),
        properties,
        mandatory: true,
    })
}

/// How a text is put into properties.
type With = fn(BasicProperties, ShortString) -> BasicProperties;

/// All but `content_type` (it goes with the body), `expiration` (it would end the wait early), `user_id` (the broker compares it
/// with the login) and `cluster_id`.
fn without_broker_fields(original: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default();
    let texts: [(&Option<ShortString>, With); 6] = [
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

/// An outcome for the outcomes exchange.
pub(super) fn outcome(names: &Names, event: &OutcomeEvent) -> Result<Message, QueueError> {
    Ok(Message {
        exchange: names.outcomes_exchange(),
        routing_key: event.routing_key.clone(),
        body: event.body.clone(),
        properties: event_properties(event)?,
        mandatory: true,
    })
}

/// The copy of an outcome for `reply_to`. Not mandatory: the one who asked may be gone.
pub(super) fn reply(event: &OutcomeEvent) -> Option<Message> {
    let (queue, correlation_id) = event.reply_to.as_ref()?;
    let mut properties = event_properties(event).ok()?;
    if let Some(id) = correlation_id {
        properties = properties.with_correlation_id(short(id).ok()?);
    }
    Some(Message {
        exchange: String::new(),
        routing_key: queue.clone(),
        body: event.body.clone(),
        properties,
        mandatory: false,
    })
}

/// The answer to a question. Mandatory where that says anything: an asker that is gone is to be noticed.
pub(super) fn answer(reply: Reply) -> Result<Message, QueueError> {
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_type(short(&reply.kind)?)
        .with_delivery_mode(PERSISTENT);
    if let Some(id) = &reply.correlation_id {
        properties = properties.with_correlation_id(short(id)?);
    }
    let mandatory = !is_direct(&reply.to);
    Ok(Message { exchange: String::new(), routing_key: reply.to, body: reply.body, properties, mandatory })
}

/// A control message, straight to its stream.
pub(super) fn control(names: &Names, body: Bytes) -> Message {
    let properties =
        BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(PERSISTENT);
    Message { exchange: String::new(), routing_key: names.control(), body, properties, mandatory: true }
}

fn event_properties(event: &OutcomeEvent) -> Result<BasicProperties, QueueError> {
    Ok(BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_message_id(short(&event.id)?)
        .with_delivery_mode(PERSISTENT))
}

/// A job as a producer publishes it.
pub(super) fn job(names: &Names, publication: Publication) -> Result<Message, QueueError> {
    let Publication { routing_key, body, properties } = publication;
    Ok(Message {
        exchange: names.jobs_exchange(),
        routing_key,
        body,
        properties: job_properties(properties)?,
        mandatory: true,
    })
}

fn job_properties(from: Properties) -> Result<BasicProperties, QueueError> {
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(text) = from.content_type {
        properties = properties.with_content_type(short(&text)?);
    }
    if let Some(text) = from.message_id {
        properties = properties.with_message_id(short(&text)?);
    }
    if let Some(text) = from.reply_to {
        properties = properties.with_reply_to(short(&text)?);
    }
    if let Some(text) = from.correlation_id {
        properties = properties.with_correlation_id(short(&text)?);
    }
    if let Some(text) = from.kind {
        properties = properties.with_type(short(&text)?);
    }
    if !from.headers.is_empty() {
        properties = properties.with_headers(merged(None, from.headers)?);
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::super::lease::SEQ;
    use super::*;

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
    static NOTHING: Content<'static> = Content { body: &EMPTY, content_type: None };

    fn leased() -> BasicProperties {
        let mut headers = original().headers().clone().unwrap();
        for name in [EPOCH, OWNER, SEQ] {
            headers.insert(name.into(), AMQPValue::LongString("3".into()));
        }
        original().with_headers(headers)
    }

    #[test]
    fn a_waiting_copy_keeps_the_producers_part_and_strips_the_brokers() {
        let set = BTreeMap::from([("x-attempt".to_owned(), "2".to_owned())]);
        let body = Bytes::from_static(b"{}");
        let content = Content { body: &body, content_type: Some("application/vnd.other") };
        let copy = waiting(&names(), RetryDelay::M2, "job.scheduled.a", content, &original(), set).unwrap();
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
    fn a_recalled_copy_is_what_the_broker_would_send() {
        let key = "job.backfill.a";
        let mut came = lapin::message::Delivery::mock(1, "p.wait".into(), key.into(), true, b"{}".to_vec());
        came.properties = original();
        let copy = recalled(&names(), came).unwrap();
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
    fn a_dead_letter_says_where_it_came_from() {
        let copy = dead(&names(), "job.backfill.a", NOTHING, &original(), BTreeMap::new()).unwrap();
        assert_eq!(copy.exchange, "p.dlx");
        let headers = copy.properties.headers().as_ref().unwrap().inner();
        assert_eq!(headers["x-original-routing-key"], AMQPValue::LongString("job.backfill.a".into()));
        assert!(!headers.contains_key("consign-wait"));
    }

    #[test]
    fn copies_of_leased_work_say_whose_it_was_and_have_no_number() {
        let names_of = |copy: &Message| {
            let headers = copy.properties.headers().as_ref().unwrap().inner();
            let lease = headers.keys().map(ShortString::as_str).filter(|name| name.starts_with("consign-lease"));
            lease.map(str::to_owned).collect::<Vec<_>>()
        };
        let copy = waiting(&names(), RetryDelay::S5, "job.scheduled.a", NOTHING, &leased(), BTreeMap::new()).unwrap();
        assert_eq!(names_of(&copy), [EPOCH, OWNER]);
        assert_eq!(copy.properties.content_type(), &None, "the type goes with the body");
        let copy = handed_over(&names(), "job.scheduled.a", NOTHING, &leased(), BTreeMap::new()).unwrap();
        assert_eq!((copy.exchange.as_str(), names_of(&copy)), ("p.orphans", vec![EPOCH.to_owned(), OWNER.to_owned()]));
        let headers = copy.properties.headers().as_ref().unwrap().inner();
        assert_eq!(headers[ORIGINAL_KEY], AMQPValue::LongString("job.scheduled.a".into()));
        let copy = dead(&names(), "job.scheduled.a", NOTHING, &leased(), BTreeMap::new()).unwrap();
        assert_eq!(names_of(&copy), Vec::<String>::new());
    }

    #[test]
    fn handed_over_work_keeps_the_jobs_own_key() {
        let mut headers = FieldTable::default();
        headers.insert(ORIGINAL_KEY.into(), AMQPValue::LongString("job.backfill.a".into()));
        assert_eq!(job_key("worker-7", Lane::Continued, Some(&headers)), "job.backfill.a");
        assert_eq!(job_key("job.scheduled.b", Lane::Scheduled, Some(&headers)), "job.scheduled.b");
        assert_eq!(job_key("worker-7", Lane::Continued, None), "job.scheduled._direct");
        assert_eq!(job_key("consign.jobs.backfill", Lane::Backfill, None), "job.backfill._direct");
        assert_eq!(job_key("job.scheduled.a.b", Lane::Scheduled, None), "job.scheduled._direct");
    }

    #[test]
    fn a_name_too_long_for_amqp_is_refused_and_does_not_panic() {
        let long = "x".repeat(256);
        let event = OutcomeEvent { routing_key: "k".to_owned(), id: long.clone(), body: Bytes::new(), reply_to: None };
        assert!(matches!(outcome(&names(), &event), Err(QueueError::Refused(_))));
        let set = BTreeMap::from([(long.clone(), String::new())]);
        assert!(waiting(&names(), RetryDelay::S5, "k", NOTHING, &original(), set).is_err());
        let event = OutcomeEvent { id: "i".to_owned(), reply_to: Some(("q".to_owned(), Some(long))), ..event };
        assert!(reply(&event).is_none());
    }
}
