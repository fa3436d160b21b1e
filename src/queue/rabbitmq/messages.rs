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
    let properties = job_properties(letter.properties().clone())?.with_headers(headers);
    Ok(OutgoingMessage::mandatory(names.dead_exchange(), letter.routing_key(), letter.body(), properties))
}

/// Notice to the former owner's address that another worker has taken the job over. It is not a
/// job: any worker that receives it elsewhere drops it.
pub(super) fn notice(names: &Names, former: &str, key: &str, set: Headers) -> Result<OutgoingMessage, QueueError> {
    let mut headers = merged(None, set)?;
    headers.insert(LEASE_NOTICE.into(), AMQPValue::Boolean(true));
    headers.insert(LEASE_KEY.into(), AMQPValue::LongString(key.into()));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT);
    Ok(OutgoingMessage::mandatory(names.owners_exchange(), &names.owner(former), &Bytes::new(), properties))
}

/// Outcome for the outcomes exchange.
pub(super) fn outcome(names: &Names, event: &OutcomeEvent) -> Result<OutgoingMessage, QueueError> {
    let properties = event_properties(event)?;
    Ok(OutgoingMessage::mandatory(names.outcomes_exchange(), &event.routing_key, &event.body, properties))
}

/// Copy of an outcome for `reply_to`. Mandatory as a reply is.
pub(super) fn outcome_copy(event: &OutcomeEvent) -> Option<OutgoingMessage> {
    let (queue, correlation_id) = event.reply_to.as_ref()?;
    let mut properties = event_properties(event).ok()?;
    if let Some(id) = correlation_id {
        properties = properties.with_correlation_id(short(id).ok()?);
    }
    Some(to_requester(queue, &event.body, properties))
}

/// Reply to a request. Mandatory where the broker's return is meaningful: a requester that has gone
/// must be noticed.
pub(super) fn reply(reply: &Reply) -> Result<OutgoingMessage, QueueError> {
    let mut properties = json_properties().with_type(short(&reply.kind)?);
    if let Some(id) = &reply.correlation_id {
        properties = properties.with_correlation_id(short(id)?);
    }
    Ok(to_requester(&reply.to, &reply.body, properties))
}

fn to_requester(queue: &str, body: &Bytes, properties: BasicProperties) -> OutgoingMessage {
    let message = OutgoingMessage::mandatory(String::new(), queue, body, properties);
    OutgoingMessage { mandatory: !is_direct(queue), ..message }
}

/// Control message, published straight to its stream.
pub(super) fn control(names: &Names, body: &Bytes) -> OutgoingMessage {
    OutgoingMessage::mandatory(String::new(), &names.control(), body, json_properties())
}

/// Job as a producer publishes it.
pub(super) fn job(names: &Names, publication: Publication) -> Result<OutgoingMessage, QueueError> {
    let properties = job_properties(publication.properties)?;
    Ok(OutgoingMessage::mandatory(names.jobs_exchange(), &publication.routing_key, &publication.body, properties))
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
