//! AMQP fields: short strings, header values as text, and the headers of a copy.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::domain::headers::{DELIVERY_COUNT, Headers, LEASE_SEQ, LEFT_OUT, WAIT, is_broker_bookkeeping};
use crate::queue::{Properties, QueueError};

/// Setter of a text property.
pub(super) type SetText = fn(BasicProperties, ShortString) -> BasicProperties;

/// Size of all headers of a copy, in bytes. They share one frame with the other properties (14
/// texts of at most 255 bytes), and a broker allows 128 KiB by default: it closes the connection of
/// a client that sends more, and with it the work of all jobs.
const MAX_HEADER_BYTES: usize = 96 * 1024;
/// Length of the list of omitted headers, in bytes, beyond which no name is added.
const MAX_LEFT_OUT_BYTES: usize = 1024;
/// Beginning of the `cluster_id` of a message whose body was too large to be read; the size
/// follows. The filter of the socket sets it, and lets none from outside pass. No copy has a
/// `cluster_id`.
pub(super) const UNREAD_MARK: &str = "consign-unread:";
/// Bytes of a header in addition to name and value, at most: the length of the name, the type and
/// the length of the value.
const OVERHEAD: usize = 6;

/// Returns an AMQP short string.
///
/// # Errors
/// `Refused` beyond 255 bytes, where lapin's own conversion panics.
pub(super) fn short(text: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(text)
        .map_err(|_| QueueError::Refused(format!("a name of {} bytes; AMQP takes 255", text.len())))
}

/// Returns the value of a header as text; `None` for lists, tables and binary values, which copies
/// keep all the same.
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

/// Returns one header as text.
pub(super) fn text_of(headers: Option<&FieldTable>, name: &str) -> Option<String> {
    headers?.inner().get(name).and_then(as_text)
}

/// Returns the properties that the rest of the program sees: text headers, no broker bookkeeping.
pub(super) fn visible(properties: &BasicProperties) -> Properties {
    let owned = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string);
    Properties {
        content_type: owned(properties.content_type()),
        message_id: owned(properties.message_id()),
        reply_to: owned(properties.reply_to()),
        correlation_id: owned(properties.correlation_id()),
        kind: owned(properties.kind()),
        timestamp: *properties.timestamp(),
        headers: properties.headers().as_ref().map(text_headers).unwrap_or_default(),
        unread: unread(properties),
    }
}

/// Returns the size of a body that was too large to be read.
pub(super) fn unread(properties: &BasicProperties) -> Option<u64> {
    properties.cluster_id().as_ref()?.as_str().strip_prefix(UNREAD_MARK)?.parse().ok()
}

fn text_headers(table: &FieldTable) -> Headers {
    let own = table.into_iter().filter(|(name, _)| !is_broker_bookkeeping(name.as_str()));
    own.filter_map(|(name, value)| Some((name.to_string(), as_text(value)?))).collect()
}

/// Returns the number of earlier deliveries, which quorum queues write.
pub(super) fn delivery_count(headers: Option<&FieldTable>) -> u64 {
    text_of(headers, DELIVERY_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Returns `original` with `set`, which overrides. Headers of the original that do not fit into one
/// frame are omitted, the largest first, and listed in a header.
pub(super) fn merged(original: Option<&FieldTable>, set: Headers) -> Result<FieldTable, QueueError> {
    let mut kept: BTreeMap<_, _> = original.into_iter().flatten().collect();
    // The sequence number of a lease belongs to that very message.
    kept.retain(|name, _| !is_broker_bookkeeping(name.as_str()) && ![WAIT, LEASE_SEQ].contains(&name.as_str()));
    kept.retain(|name, _| !set.contains_key(name.as_str()));
    let left_out = leave_out(&mut kept, set.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD).sum());
    let mut table = FieldTable::default();
    for (name, value) in kept {
        table.insert(name.clone(), value.clone());
    }
    for (name, value) in set {
        table.insert(short(&name)?, AMQPValue::LongString(value.into()));
    }
    if !left_out.is_empty() {
        tracing::warn!(
            event = "headers_omitted",
            headers = left_out,
            next = "the copy of the message omits these headers",
            remedy = "publish jobs with fewer or shorter headers",
            "headers of a message do not fit into a frame"
        );
        table.insert(LEFT_OUT.into(), AMQPValue::LongString(left_out.into()));
    }
    Ok(table)
}

/// Returns the properties with only the headers that `wanted` accepts.
pub(super) fn retain_headers(original: &BasicProperties, wanted: impl Fn(&str) -> bool) -> BasicProperties {
    let kept = original.headers().iter().flatten().filter(|(name, _)| wanted(name.as_str()));
    let kept: BTreeMap<_, _> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    original.clone().with_headers(FieldTable::from(kept))
}

/// Removes headers until the rest fits beside `others` bytes. Returns their names as a bounded
/// text.
fn leave_out(kept: &mut BTreeMap<&ShortString, &AMQPValue>, others: usize) -> String {
    let mut weights: Vec<_> =
        kept.iter().map(|(name, value)| (!is_ours(name.as_str()), weight(name.as_str(), value), *name)).collect();
    let mut total = others + weights.iter().map(|(_, weight, _)| weight).sum::<usize>();
    weights.sort_unstable();
    let mut names = String::new();
    while total > MAX_HEADER_BYTES
        && let Some((_, weight, name)) = weights.pop()
    {
        kept.remove(name);
        total -= weight;
        append_left_out(&mut names, name.as_str());
    }
    names
}

/// Appends the name of an omitted header, while there is room for names.
pub(super) fn append_left_out(names: &mut String, name: &str) {
    if names.len() < MAX_LEFT_OUT_BYTES {
        names.push_str(if names.is_empty() { "" } else { ", " });
        names.push_str(name);
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("x-") || name.starts_with("consign-")
}

/// Upper bound of the bytes of a header in a frame.
fn weight(name: &str, value: &AMQPValue) -> usize {
    name.len() + OVERHEAD + size(value)
}

fn size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(|value| OVERHEAD + size(value)).sum(),
        AMQPValue::FieldTable(table) => table.into_iter().map(|(name, value)| weight(name.as_str(), value)).sum(),
        // Numbers, at most a 64-bit one.
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> AMQPValue {
        AMQPValue::LongString("x".repeat(length).into())
    }

    fn names(table: &FieldTable) -> Vec<&str> {
        table.inner().keys().map(ShortString::as_str).collect()
    }

    #[test]
    fn headers_beyond_a_frame_are_left_out_the_largest_of_the_producer_first() {
        let mut original = FieldTable::default();
        original.insert("large".into(), text(60_000));
        original.insert("larger".into(), text(70_000));
        original.insert("small".into(), text(10));
        original.insert("x-deferred-since".into(), text(80_000));
        let set = BTreeMap::from([("x-attempt".to_owned(), "2".to_owned())]);
        let table = merged(Some(&original), set).unwrap();
        assert_eq!(names(&table), ["small", "x-attempt", "x-deferred-since", LEFT_OUT]);
        assert_eq!(table.inner()[LEFT_OUT], AMQPValue::LongString("larger, large".into()));
    }

    #[test]
    fn headers_that_fit_stay_to_the_last_byte() {
        let mut original = FieldTable::default();
        original.insert("a".into(), text(MAX_HEADER_BYTES - OVERHEAD - 1));
        assert_eq!(names(&merged(Some(&original), BTreeMap::new()).unwrap()), ["a"]);
        original.insert("a".into(), text(MAX_HEADER_BYTES - OVERHEAD));
        assert_eq!(names(&merged(Some(&original), BTreeMap::new()).unwrap()), [LEFT_OUT]);
    }

    #[test]
    fn tables_and_lists_count_with_their_content() {
        let mut inner = FieldTable::default();
        inner.insert("key".into(), text(100));
        assert_eq!(size(&AMQPValue::FieldTable(inner)), 3 + OVERHEAD + 100);
        let list = vec![text(50), AMQPValue::LongInt(1)];
        assert_eq!(size(&AMQPValue::FieldArray(list.into())), OVERHEAD + 50 + OVERHEAD + 8);
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
