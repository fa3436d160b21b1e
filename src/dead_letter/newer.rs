//! Newer deliveries that workers reported: a requeued job is skipped if its generation is lower.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::domain::control::{Control, ControlCommand, GenerationChange};
use crate::domain::generation::{NewerDelivery, ObjectDigest};
use crate::domain::headers::JobHeaders;
use crate::domain::job::Job;
use crate::domain::job::wire::MAX_GENERATION;
use crate::queue::DeadLetter;

/// Highest delivered generation of each object, from the control messages of the last 7 days.
///
/// It is a part of what workers know: they report a delivery only if an older generation of the
/// object was pending.
#[derive(Debug, Default)]
pub struct ReportedDeliveries(HashMap<ObjectDigest, NewerDelivery>);

impl ReportedDeliveries {
    /// Collects the reports among control messages.
    pub fn of<'a>(messages: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut all = Self::default();
        messages.into_iter().filter_map(|body| Control::parse(body).ok()).for_each(|control| all.add(control.command));
        all
    }

    fn add(&mut self, command: ControlCommand) {
        let ControlCommand::Generation(object, GenerationChange::Delivered { generation, job, .. }) = command else {
            return;
        };
        if self.0.get(&object).is_none_or(|known| known.generation < generation) {
            self.0.insert(object, NewerDelivery { generation, job });
        }
    }

    /// Returns the delivery that supersedes the job of a letter.
    pub fn superseding(&self, letter: &DeadLetter) -> Option<&NewerDelivery> {
        let job = letter.job().ok()?;
        let generation = generation(letter, &job)?;
        self.of_object(&job).filter(|delivered| delivered.generation > generation)
    }

    /// Returns a generation with which the job of a letter is the newest refresh of its object: the
    /// microseconds of `now`. If the producer numbers the refreshes, it is one more than the
    /// highest number that is known, so that later refreshes are newer.
    pub fn newest(&self, letter: &DeadLetter, now: Timestamp) -> Option<u64> {
        let now = u64::try_from(now.as_microsecond()).ok();
        let Ok(job) = letter.job() else { return now };
        let delivered = self.of_object(&job).map(|delivered| delivered.generation);
        let number = job.generation.and_then(|_| generation(letter, &job));
        let known = number.max(delivered).map(|known| known.saturating_add(1).min(MAX_GENERATION));
        if number.is_some() { known } else { now.max(known) }
    }

    fn of_object(&self, job: &Job) -> Option<&NewerDelivery> {
        self.0.get(&ObjectDigest::of(&job.destination.identity(), job.key.as_str()))
    }
}

/// Returns the generation of a job, as a worker decides it.
fn generation(letter: &DeadLetter, job: &Job) -> Option<u64> {
    let properties = letter.properties();
    JobHeaders::parse(&properties.headers).generation.or(job.generation_or(properties.timestamp))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::domain::destination::DestinationIdentity;
    use crate::domain::headers;
    use crate::queue::Properties;

    fn reports(deliveries: &[(&str, u64)]) -> ReportedDeliveries {
        let message = |(job, generation): &(&str, u64)| {
            let object = ObjectDigest::of(&DestinationIdentity::parse("acme").unwrap(), "today");
            let change = GenerationChange::Delivered { generation: *generation, job: (*job).into(), write: None };
            Control::new(ControlCommand::Generation(object, change), Timestamp::UNIX_EPOCH).render()
        };
        let messages: Vec<_> = deliveries.iter().map(message).collect();
        ReportedDeliveries::of(messages.iter().map(Vec::as_slice).chain([&b"not a control message"[..]]))
    }

    fn letter(key: &str, generation: Option<u64>, properties: Properties) -> DeadLetter {
        let mut job = json!({
            "version": 1, "id": "a", "source": { "url": "https://x.example/y" }, "destination": "acme", "key": key,
        });
        if let Some(generation) = generation {
            job["generation"] = generation.into();
        }
        DeadLetter::new("job.scheduled.acme".to_owned(), Bytes::from(job.to_string()), properties, None)
    }

    #[test]
    fn only_an_older_generation_of_the_same_object_is_superseded() {
        let delivered = reports(&[("02:00", 2), ("03:00", 3), ("01:00", 1)]);
        let by = |letter: &DeadLetter| delivered.superseding(letter).map(|newer| newer.job.to_string());
        let plain = Properties::default;
        assert_eq!(by(&letter("today", Some(2), plain())).as_deref(), Some("03:00"));
        assert_eq!(by(&letter("today", Some(3), plain())), None, "the same generation is a duplicate");
        assert_eq!(by(&letter("other", Some(2), plain())), None, "another object");
        assert_eq!(by(&letter("today", None, plain())), None, "a job without a generation is not ordered");
        let dated = Properties { timestamp: Some(0), ..plain() };
        assert!(by(&letter("today", None, dated)).is_some(), "the time of the message is its generation");
        let as_new = Properties { headers: [(headers::GENERATION.to_owned(), "4".to_owned())].into(), ..plain() };
        assert_eq!(by(&letter("today", Some(2), as_new)), None, "the header replaces the job's own");
    }

    #[test]
    fn the_newest_generation_is_the_time_or_the_next_number_of_the_producer() {
        let delivered = reports(&[("03:00", 3)]);
        let now = Timestamp::from_microsecond(1_000).unwrap();
        let newest = |key, generation, properties| delivered.newest(&letter(key, generation, properties), now);
        let plain = Properties::default;
        assert_eq!(newest("today", None, plain()), Some(1_000));
        assert_eq!(newest("today", Some(2), plain()), Some(4), "the next refresh of the producer is as new");
        assert_eq!(newest("other", Some(7), plain()), Some(8));
        let again = Properties { headers: [(headers::GENERATION.to_owned(), "9".to_owned())].into(), ..plain() };
        assert_eq!(newest("today", Some(2), again), Some(10));
        let ahead = reports(&[("03:00", 5_000)]);
        assert_eq!(ahead.newest(&letter("today", None, plain()), now), Some(5_001), "a clock was ahead");
    }
}
