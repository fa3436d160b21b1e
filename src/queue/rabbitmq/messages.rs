//! Messages that consign publishes beside copies of jobs: outcomes, replies, control messages, jobs
//! of commands, imported dead letters, and notices of a take-over.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::direct_reply::is_direct;
use super::fields::{SetText, merged, short};
use super::names::Names;
use super::publisher::{OutgoingMessage, PERSISTENT};
use crate::domain::headers::{Headers, LEASE_KEY, LEASE_NOTICE};
use crate::queue::{DeadLetter, OutcomeEvent, Properties, Publication, QueueError, Reply};

/// Exported dead letter, to publish to the dead letters again. Keeps every header: they identify
/// it.
pub(super) fn imported(names: &Names, letter: &DeadLetter) -> Result<OutgoingMessage, QueueError> {
    let mut headers = FieldTable::default();
    for (name, value) in &letter.properties().headers {
        headers.insert(short(name)?, AMQPValue::LongString(value.as_str().into()));
    }
    Ok(OutgoingMessage {
        exchange: names.dead_exchange(),
        routing_key: letter.routing_key().to_owned(),
        body: letter.body().clone(),
        properties: job_properties(letter.properties().clone())?.with_headers(headers),
        mandatory: true,
    })
}

/// Notice to the former owner's address that another worker has taken the job over. It is not a
/// job: any worker that receives it elsewhere drops it.
pub(super) fn notice(names: &Names, former: &str, key: &str, set: Headers) -> Result<OutgoingMessage, QueueError> {
    let mut headers = merged(None, set)?;
    headers.insert(LEASE_NOTICE.into(), AMQPValue::Boolean(true));
    headers.insert(LEASE_KEY.into(), AMQPValue::LongString(key.into()));
    Ok(OutgoingMessage {
        exchange: names.owners_exchange(),
        routing_key: names.owner(former),
        body: Bytes::new(),
        properties: BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT),
        mandatory: true,
    })
}

/// Outcome for the outcomes exchange.
pub(super) fn outcome(names: &Names, event: &OutcomeEvent) -> Result<OutgoingMessage, QueueError> {
    Ok(OutgoingMessage {
        exchange: names.outcomes_exchange(),
        routing_key: event.routing_key.clone(),
        body: event.body.clone(),
        properties: event_properties(event)?,
        mandatory: true,
    })
}

/// Copy of an outcome for `reply_to`. Mandatory as a reply is.
pub(super) fn outcome_copy(event: &OutcomeEvent) -> Option<OutgoingMessage> {
    let (queue, correlation_id) = event.reply_to.as_ref()?;
    let mut properties = event_properties(event).ok()?;
    if let Some(id) = correlation_id {
        properties = properties.with_correlation_id(short(id).ok()?);
    }
    let mandatory = !is_direct(queue);
    let (exchange, routing_key, body) = (String::new(), queue.clone(), event.body.clone());
    Some(OutgoingMessage { exchange, routing_key, body, properties, mandatory })
}

/// Reply to a request. Mandatory where the broker's return is meaningful: a requester that has gone
/// must be noticed.
pub(super) fn reply(reply: Reply) -> Result<OutgoingMessage, QueueError> {
    let mut properties = json_properties().with_type(short(&reply.kind)?);
    if let Some(id) = &reply.correlation_id {
        properties = properties.with_correlation_id(short(id)?);
    }
    let mandatory = !is_direct(&reply.to);
    let (exchange, routing_key, body) = (String::new(), reply.to, reply.body);
    Ok(OutgoingMessage { exchange, routing_key, body, properties, mandatory })
}

/// Control message, published straight to its stream.
pub(super) fn control(names: &Names, body: Bytes) -> OutgoingMessage {
    let (exchange, routing_key) = (String::new(), names.control());
    OutgoingMessage { exchange, routing_key, body, properties: json_properties(), mandatory: true }
}

/// Job as a producer publishes it.
pub(super) fn job(names: &Names, publication: Publication) -> Result<OutgoingMessage, QueueError> {
    let Publication { routing_key, body, properties } = publication;
    let (exchange, properties) = (names.jobs_exchange(), job_properties(properties)?);
    Ok(OutgoingMessage { exchange, routing_key, body, properties, mandatory: true })
}

fn json_properties() -> BasicProperties {
    BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(PERSISTENT)
}

fn event_properties(event: &OutcomeEvent) -> Result<BasicProperties, QueueError> {
    Ok(BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_message_id(short(&event.id)?)
        .with_delivery_mode(PERSISTENT))
}

fn job_properties(from: Properties) -> Result<BasicProperties, QueueError> {
    let texts: [(_, SetText); 5] = [
        (from.content_type, BasicProperties::with_content_type),
        (from.message_id, BasicProperties::with_message_id),
        (from.reply_to, BasicProperties::with_reply_to),
        (from.correlation_id, BasicProperties::with_correlation_id),
        (from.kind, BasicProperties::with_type),
    ];
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    for (text, with) in texts {
        if let Some(text) = text {
            properties = with(properties, short(&text)?);
        }
    }
    if let Some(timestamp) = from.timestamp {
        properties = properties.with_timestamp(timestamp);
    }
    if !from.headers.is_empty() {
        properties = properties.with_headers(merged(None, from.headers)?);
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_too_long_for_amqp_is_refused_and_does_not_panic() {
        let long = "x".repeat(256);
        let event = OutcomeEvent { routing_key: "k".to_owned(), id: long.clone(), body: Bytes::new(), reply_to: None };
        assert!(matches!(outcome(&Names::new("p"), &event), Err(QueueError::Refused(_))));
        let event = OutcomeEvent { id: "i".to_owned(), reply_to: Some(("q".to_owned(), Some(long))), ..event };
        assert!(outcome_copy(&event).is_none());
    }
}
