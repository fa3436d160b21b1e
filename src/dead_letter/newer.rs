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
pub struct ReportedDeliveries {
    delivered: HashMap<ObjectDigest, NewerDelivery>,
    /// Highest generation of each object, delivered or not, assigned ones included.
    highest: HashMap<ObjectDigest, u64>,
    /// False where no control messages could be read.
    read: bool,
}

impl ReportedDeliveries {
    /// Collects the reports among control messages.
    pub fn of<'a>(messages: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut all = Self { read: true, ..Self::default() };
        messages.into_iter().filter_map(|body| Control::parse(body).ok()).for_each(|control| all.add(control.command));
        all
    }

    fn add(&mut self, command: ControlCommand) {
        let ControlCommand::Generation(object, change) = command else { return };
        match change {
            GenerationChange::Pending { generation } | GenerationChange::Writing { generation, .. } => {
                self.raise(object, generation);
            }
            GenerationChange::Delivered { generation, job, .. } => {
                self.raise(object, generation);
                if self.delivered.get(&object).is_none_or(|known| known.generation < generation) {
                    self.delivered.insert(object, NewerDelivery { generation, job });
                }
            }
            GenerationChange::Ended { .. } => {}
        }
    }

    fn raise(&mut self, object: ObjectDigest, generation: u64) {
        let highest = self.highest.entry(object).or_default();
        *highest = generation.max(*highest);
    }

    /// Returns the delivery that supersedes the job of a letter.
    pub fn superseding(&self, letter: &DeadLetter) -> Option<&NewerDelivery> {
        let job = letter.job().ok()?;
        let generation = generation(letter, &job)?;
        self.delivered.get(&object(&job)).filter(|delivered| delivered.generation > generation)
    }

    /// Returns true if the job of a letter can be given a number: the producer numbers the
    /// refreshes of some objects, and which number is the highest is known from the reports alone.
    pub fn can_assign(&self, letter: &DeadLetter) -> bool {
        self.read || letter.job().map_or(true, |job| job.generation.is_none())
    }

    /// Assigns a generation with which the job of a letter is the newest refresh of its object: the
    /// microseconds of `now`. If the producer numbers the refreshes, it is one more than the
    /// highest number that is known, so that later refreshes are newer. No generation of an object
    /// is assigned twice.
    pub fn assign_newest(&mut self, letter: &DeadLetter, now: Timestamp) -> Option<u64> {
        let now = u64::try_from(now.as_microsecond()).ok();
        let Ok(job) = letter.job() else { return now };
        let object = object(&job);
        let number = job.generation.and_then(|_| generation(letter, &job));
        let known = number.max(self.highest.get(&object).copied());
        let next = known.map(|known| known.saturating_add(1).min(MAX_GENERATION));
        let newest = if number.is_some() { next } else { now.max(next) }?;
        self.raise(object, newest);
        Some(newest)
    }
}

fn object(job: &Job) -> ObjectDigest {
    ObjectDigest::of(&job.destination.identity(), job.key.as_str())
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
        let now = Timestamp::from_microsecond(1_000).unwrap();
        let newest = |key, generation, properties| {
            reports(&[("03:00", 3)]).assign_newest(&letter(key, generation, properties), now)
        };
        let plain = Properties::default;
        assert_eq!(newest("today", None, plain()), Some(1_000));
        assert_eq!(newest("today", Some(2), plain()), Some(4), "the next refresh of the producer is as new");
        assert_eq!(newest("other", Some(7), plain()), Some(8));
        let again = Properties { headers: [(headers::GENERATION.to_owned(), "9".to_owned())].into(), ..plain() };
        assert_eq!(newest("today", Some(2), again), Some(10));
        let mut ahead = reports(&[("03:00", 5_000)]);
        let mut assign = |generation| ahead.assign_newest(&letter("today", generation, plain()), now);
        assert_eq!(assign(None), Some(5_001), "a clock was ahead");
        assert_eq!([assign(Some(5)), assign(Some(6))], [Some(5_002), Some(5_003)], "each letter has its own");
    }

    #[test]
    fn a_number_is_above_that_of_a_refresh_that_waits_and_is_not_guessed() {
        let (numbered, dated) =
            (letter("today", Some(2), Properties::default()), letter("today", None, Properties::default()));
        let object = ObjectDigest::of(&DestinationIdentity::parse("acme").unwrap(), "today");
        let waits = ControlCommand::Generation(object, GenerationChange::Pending { generation: 8 });
        let message = Control::new(waits, Timestamp::UNIX_EPOCH).render();
        let mut reported = ReportedDeliveries::of([&message[..]]);
        assert_eq!(reported.assign_newest(&numbered, Timestamp::UNIX_EPOCH), Some(9));
        assert!(reported.can_assign(&numbered));
        let unread = ReportedDeliveries::default();
        assert!(!unread.can_assign(&numbered) && unread.can_assign(&dated));
    }
}
