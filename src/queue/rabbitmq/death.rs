//! Dead letters as they are read: those of workers, and those of the broker, which names the reason
//! in `x-death`.

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::copies;
use super::fields::{as_text, visible};
use crate::domain::headers::{ERROR_CLASS, ERROR_MESSAGE, ERROR_REASON, Headers, LAST_FAILURE_AT, PUBLISHER};
use crate::domain::job;
use crate::queue::DeadLetter;

/// Reason of the broker for a message that a worker rejected.
const REJECTED: &str = "rejected";

/// Reads a message of the queue of dead letters.
pub(super) fn read(routing_key: &str, properties: &BasicProperties, body: Vec<u8>) -> DeadLetter {
    let mut shown = visible(properties);
    // For the requeue, which reads it from the message itself.
    shown.headers.remove(PUBLISHER);
    let death = properties.headers().as_ref().and_then(BrokerDeath::of);
    if let Some(death) = death.as_ref().filter(|_| !shown.headers.contains_key(ERROR_REASON)) {
        shown.headers.extend(death.headers());
        if let Some(size) = shown.unread.filter(|_| death.reason == REJECTED) {
            shown.headers.extend(rejection(size, shown.message_id.as_deref()));
        }
    }
    let key = copies::letter_key(routing_key, properties.headers().as_ref());
    DeadLetter::new(key, Bytes::from(body), shown, death.and_then(|death| death.at))
}

/// Returns the headers for a body that was too large to be read, as a worker would write them.
fn rejection(size: u64, message_id: Option<&str>) -> Headers {
    let rejected = job::unread(size, message_id).to_failure();
    Headers::from([
        (ERROR_REASON.to_owned(), rejected.reason.as_str().to_owned()),
        (ERROR_CLASS.to_owned(), rejected.class().as_str().to_owned()),
        (ERROR_MESSAGE.to_owned(), rejected.message),
    ])
}

/// Entry of `x-death` of a message that the broker dead-lettered.
struct BrokerDeath {
    reason: String,
    queue: String,
    at: Option<Timestamp>,
}

impl BrokerDeath {
    /// Reads the newest entry, which is the first.
    fn of(headers: &FieldTable) -> Option<Self> {
        let Some(AMQPValue::FieldArray(entries)) = headers.inner().get("x-death") else { return None };
        let Some(AMQPValue::FieldTable(entry)) = entries.as_slice().first() else { return None };
        let text = |name: &str| entry.inner().get(name).and_then(as_text).unwrap_or_default();
        let at = match entry.inner().get(&ShortString::from("time")) {
            Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
            _ => None,
        };
        let at = at.and_then(|seconds| Timestamp::from_second(seconds).ok());
        Some(Self { reason: text("reason"), queue: text("queue"), at })
    }

    /// Returns the headers that a worker would have written.
    fn headers(&self) -> impl Iterator<Item = (String, String)> {
        // The id of a letter is made of its headers: this text never changes.
        let often = if self.reason == "delivery_limit" { "came back too often without an end, and " } else { "" };
        let message = format!("it {often}was given up by the broker in {} ({})", self.queue, self.reason);
        let at = self.at.map(|at| (LAST_FAILURE_AT.to_owned(), at.to_string()));
        let reason = (ERROR_REASON.to_owned(), self.reason.clone());
        [reason, (ERROR_CLASS.to_owned(), "broker".to_owned()), (ERROR_MESSAGE.to_owned(), message)]
            .into_iter()
            .chain(at)
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    #[test]
    fn a_letter_of_the_broker_has_its_reason_and_time() {
        let mut entry = FieldTable::default();
        entry.insert("reason".into(), AMQPValue::LongString("delivery_limit".into()));
        entry.insert("queue".into(), AMQPValue::LongString("consign.jobs.scheduled".into()));
        entry.insert("time".into(), AMQPValue::Timestamp(1_800_000_000));
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(entry)])));
        let properties = BasicProperties::default().with_headers(headers.clone());
        let letter = read("job.scheduled.acme", &properties, b"{}".to_vec());
        assert_eq!((letter.reason(), letter.class()), ("delivery_limit", "broker"));
        assert!(letter.message().contains("consign.jobs.scheduled"), "{}", letter.message());
        assert_eq!(letter.died_at(), Timestamp::from_second(1_800_000_000).ok());

        headers.insert("x-error-reason".into(), AMQPValue::LongString("source_not_found".into()));
        let letter = read("job.scheduled.acme", &BasicProperties::default().with_headers(headers), vec![]);
        assert_eq!(
            (letter.reason(), letter.class()),
            ("source_not_found", ""),
            "the worker's reason overrides that of the broker"
        );
    }
}
