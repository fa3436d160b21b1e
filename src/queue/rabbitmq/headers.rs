//! The headers of a copy: the producer's, without what the broker wrote, and what is set; as many as fit into a frame.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::declare::short;
use super::lease::SEQ;
use crate::queue::QueueError;

/// The rung of the wait ladder.
pub(super) const WAIT_HEADER: &str = "consign-wait";
/// Names what of the producer's headers a copy does without.
pub(super) const LEFT_OUT: &str = "x-headers-left-out";

/// Bytes of all headers of a copy. They go in one frame with the other properties (14 texts of at most 255 bytes), and a broker
/// allows 128 KiB unless it is told otherwise: it ends the connection of whoever sends more, and with it everybody's work.
const MOST: usize = 96 * 1024;

/// Headers that the broker wrote, or that would make it route or drop a copy. Kept in a copy, `x-death` makes it a cycle.
pub(super) fn is_bookkeeping(name: &str) -> bool {
    matches!(name, "x-death" | "x-delivery-count" | "CC" | "BCC")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// `original` with `set`, which wins. What of the original is too much for one frame is left out, the largest first, and named.
pub(super) fn merged(original: Option<&FieldTable>, set: BTreeMap<String, String>) -> Result<FieldTable, QueueError> {
    let mut kept: BTreeMap<_, _> = original.into_iter().flatten().collect();
    // The number of a lease belongs to that very message.
    kept.retain(|name, _| !is_bookkeeping(name.as_str()) && ![WAIT_HEADER, SEQ].contains(&name.as_str()));
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
        tracing::warn!(headers = left_out, "a copy of a message does without headers that do not fit into a frame");
        table.insert(LEFT_OUT.into(), AMQPValue::LongString(left_out.into()));
    }
    Ok(table)
}

/// Only the headers whose names are wanted.
pub(super) fn keeping_headers(original: &BasicProperties, wanted: impl Fn(&str) -> bool) -> BasicProperties {
    let kept = original.headers().iter().flatten().filter(|(name, _)| wanted(name.as_str()));
    let kept: BTreeMap<_, _> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    original.clone().with_headers(FieldTable::from(kept))
}

/// The names of what had to go to make room beside `others` bytes, as a text that is itself bounded.
fn leave_out(kept: &mut BTreeMap<&ShortString, &AMQPValue>, others: usize) -> String {
    let mut weights: Vec<_> =
        kept.iter().map(|(name, value)| (!is_ours(name.as_str()), weight(name.as_str(), value), *name)).collect();
    let mut total = others + weights.iter().map(|(_, weight, _)| weight).sum::<usize>();
    weights.sort_unstable();
    let mut names = String::new();
    while total > MOST
        && let Some((_, weight, name)) = weights.pop()
    {
        kept.remove(name);
        total -= weight;
        note(&mut names, name.as_str());
    }
    names
}

/// Adds the name of a header that was left out, while there is room for names.
pub(super) fn note(names: &mut String, name: &str) {
    if names.len() < 1024 {
        names.push_str(if names.is_empty() { "" } else { ", " });
        names.push_str(name);
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("x-") || name.starts_with("consign-")
}

/// Bytes beside name and value, at most: the name's length, the value's type and its length.
const OVERHEAD: usize = 6;

/// Bytes of a header in a frame, rather too many than too few.
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
    fn what_does_not_fit_into_a_frame_is_left_out_the_largest_of_the_producers_first() {
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
    fn what_fits_stays_to_the_last_byte() {
        let mut original = FieldTable::default();
        original.insert("a".into(), text(MOST - OVERHEAD - 1));
        assert_eq!(names(&merged(Some(&original), BTreeMap::new()).unwrap()), ["a"]);
        original.insert("a".into(), text(MOST - OVERHEAD));
        assert_eq!(names(&merged(Some(&original), BTreeMap::new()).unwrap()), [LEFT_OUT]);
    }

    #[test]
    fn tables_and_lists_count_with_what_is_in_them() {
        let mut inner = FieldTable::default();
        inner.insert("key".into(), text(100));
        assert_eq!(size(&AMQPValue::FieldTable(inner)), 3 + OVERHEAD + 100);
        let list = vec![text(50), AMQPValue::LongInt(1)];
        assert_eq!(size(&AMQPValue::FieldArray(list.into())), OVERHEAD + 50 + OVERHEAD + 8);
    }
}
