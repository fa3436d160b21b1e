//! One dead letter, and the headers that a new run of its job carries.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::message::{Properties, QueueError};
use crate::domain::destination::text_newtype;
use crate::domain::job::lease::Lease;
use crate::domain::job::{self, DestinationRef, Job, Rejected};
use crate::domain::lane::Lane;
use crate::domain::outcome::Reason;
use crate::domain::{headers, routing_key};

text_newtype!(
    /// Identifier of a letter: a hash of its whole content except the times at which a queue took
    /// it. So it is the same on every pass, on both brokers, and after export and import. Identical
    /// letters share it. 16 hexadecimal digits.
    LetterId
);

impl LetterId {
    fn of(routing_key: &str, body: &[u8], properties: &Properties) -> Self {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(bytes);
        };
        add(routing_key.as_bytes());
        add(body);
        if let Some(size) = properties.unread {
            add(&size.to_be_bytes());
        }
        let p = properties;
        for text in [&p.content_type, &p.message_id, &p.reply_to, &p.correlation_id, &p.kind] {
            add(text.as_deref().unwrap_or_default().as_bytes());
        }
        for (name, value) in &p.headers {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        Self(hex::encode(&hash.finalize()[..8]).into())
    }
}

/// Dead-lettered job, with the reason.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    id: LetterId,
    routing_key: String,
    body: Bytes,
    properties: Properties,
    died_at: Option<Timestamp>,
    job_id: Option<String>,
    destination: Option<String>,
    inline: bool,
}

impl DeadLetter {
    /// Builds a letter. `routing_key` is the job's own (`job.scheduled.acme`); `died_at` is the
    /// time at which a queue took it, if known.
    pub fn new(routing_key: String, body: Bytes, properties: Properties, died_at: Option<Timestamp>) -> Self {
        let id = LetterId::of(&routing_key, &body, &properties);
        let (job_id, destination, inline) = match parsed(&properties, &body) {
            Ok(job) => {
                let inline = matches!(job.destination, DestinationRef::Inline(_));
                (Some(job.id), Some(job.destination.id().clone()), inline)
            }
            Err(rejected) => (rejected.job_id, rejected.destination, false),
        };
        let by_key = || routing_key::destination(&routing_key).map(str::to_owned);
        Self {
            id,
            job_id: job_id.map(|id| id.to_string()).or_else(|| properties.message_id.clone()),
            destination: destination.map(|id| id.to_string()).or_else(by_key),
            inline,
            routing_key,
            body,
            properties,
            died_at,
        }
    }

    /// Returns the identifier.
    pub fn id(&self) -> &LetterId {
        &self.id
    }

    /// Returns the job's own routing key.
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }

    /// Returns the lane to which a requeue publishes the job.
    pub fn lane(&self) -> Lane {
        routing_key::published_lane(&self.routing_key)
    }

    /// Returns the lane that is bound to the routing key.
    ///
    /// # Errors
    /// `Refused` without one: the letter can't be requeued.
    pub fn bound_lane(&self) -> Result<Lane, QueueError> {
        routing_key::bound_lane(&self.routing_key).ok_or_else(|| {
            let (key, remedy) = (&self.routing_key, "use `job.scheduled.DEST` or `job.backfill.DEST`");
            QueueError::Refused(format!("no queue takes the routing key `{key}`; {remedy}"))
        })
    }

    /// Returns the job as it was published; nothing for a body that was too large to be read
    /// ([`Properties::unread`]). May hold secrets, such as presigned URLs.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Returns the message properties.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Returns the time of the last failure, else the time at which a queue took the letter.
    pub fn died_at(&self) -> Option<Timestamp> {
        self.last_failure_at().or(self.died_at)
    }

    /// Parses the job as a worker does.
    ///
    /// # Errors
    /// The rejection that a worker would report.
    pub fn job(&self) -> Result<Job, Rejected> {
        parsed(&self.properties, &self.body)
    }

    /// Returns the job's id, from the body, else from the message id.
    pub fn job_id(&self) -> Option<&str> {
        self.job_id.as_deref()
    }

    /// Returns the destination's id, from the body, else from the routing key.
    pub fn destination(&self) -> Option<&str> {
        self.destination.as_deref()
    }

    /// Returns true when the job contains its destination.
    pub fn is_inline(&self) -> bool {
        self.inline
    }

    /// Returns the reason: one of the contract, or the broker's own (`delivery_limit`). Empty if
    /// unknown.
    pub fn reason(&self) -> &str {
        self.header(headers::ERROR_REASON)
    }

    /// Returns the class of the reason; `broker` where the broker itself dead-lettered the job.
    pub fn class(&self) -> &str {
        self.header(headers::ERROR_CLASS)
    }

    /// Returns the message: the failure and its remedy.
    pub fn message(&self) -> &str {
        self.header(headers::ERROR_MESSAGE)
    }

    /// Returns the number of charged attempts.
    pub fn attempts(&self) -> u32 {
        self.header(headers::ATTEMPTS).parse().unwrap_or(0)
    }

    /// Returns the number of earlier requeues.
    pub fn run(&self) -> u32 {
        self.header(headers::RUN).parse().unwrap_or(0)
    }

    /// Returns the time of the first failure.
    pub fn first_failure_at(&self) -> Option<Timestamp> {
        self.instant(headers::FIRST_FAILURE_AT)
    }

    /// Returns the time of the last failure.
    pub fn last_failure_at(&self) -> Option<Timestamp> {
        self.instant(headers::LAST_FAILURE_AT)
    }

    /// Returns the headers that a new run carries in addition to those that do not
    /// [belong to a run](headers::belongs_to_run).
    ///
    /// An attempt of an earlier run may have written the object and lost the response. With
    /// `if_exists` = `keep` or `fail` a worker must know that to recognize its own object, so the
    /// start of the work is carried over. Not after `object_exists`: a worker has found that the
    /// object belongs to somebody else, and a later run, which knows less, must not claim it.
    ///
    /// `generation` replaces the job's own.
    pub(in crate::queue) fn next_run(&self, generation: Option<u64>) -> BTreeMap<String, String> {
        let before = [self.instant(headers::STARTED_AT), self.first_failure_at()];
        let begun = before.into_iter().flatten().min().or(self.died_at());
        let begun = begun.filter(|_| self.reason() != Reason::ObjectExists.as_str());
        let run = (headers::RUN.to_owned(), self.run().saturating_add(1).to_string());
        let begun = begun.map(|begun| (headers::STARTED_AT.to_owned(), begun.to_string()));
        let generation = generation.map(|generation| (headers::GENERATION.to_owned(), generation.to_string()));
        std::iter::once(run).chain(begun).chain(generation).collect()
    }

    fn header(&self, name: &str) -> &str {
        self.properties.headers.get(name).map_or("", String::as_str)
    }

    fn instant(&self, name: &str) -> Option<Timestamp> {
        self.header(name).parse().ok()
    }
}

/// A job that reached the delivery limit may still be under a lease.
fn parsed(properties: &Properties, body: &[u8]) -> Result<Job, Rejected> {
    let (content_type, id) = (properties.content_type.as_deref(), properties.message_id.as_deref());
    if let Some(size) = properties.unread {
        return Err(job::unread(size, id));
    }
    if Lease::is_type(content_type) { Lease::decode(body)?.job(id) } else { job::parse(content_type, id, body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"{"version":1,"id":"a/1","source":{"url":"file:///f"},"destination":"acme","key":"k"}"#;

    fn letter(body: &str, headers: &[(&str, &str)]) -> DeadLetter {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let properties = Properties { headers, ..Properties::default() };
        DeadLetter::new("job.backfill.other".to_owned(), Bytes::from(body.to_owned()), properties, None)
    }

    #[test]
    fn the_body_names_job_and_destination_else_the_message_does() {
        let good = letter(JOB, &[]);
        assert_eq!((good.job_id(), good.destination()), (Some("a/1"), Some("acme")));
        let bad = letter("no job", &[]);
        assert_eq!((bad.job_id(), bad.destination(), bad.lane()), (None, Some("other"), Lane::Backfill));
        let properties = Properties { message_id: Some("b".to_owned()), ..Properties::default() };
        let direct = DeadLetter::new("job.scheduled._direct".to_owned(), Bytes::new(), properties, None);
        assert_eq!((direct.job_id(), direct.destination()), (Some("b"), None));
    }

    #[test]
    fn a_job_that_was_dead_lettered_under_a_lease_is_read_from_the_lease() {
        let body = Bytes::from_static(JOB.as_bytes());
        let lease = Lease { body, content_type: None, lane: Lane::Scheduled, checkpoint: None }.encode().unwrap();
        let content_type = Some(crate::domain::job::lease::CONTENT_TYPE.to_owned());
        let properties = Properties { content_type, ..Properties::default() };
        let letter = DeadLetter::new("job.scheduled.acme".to_owned(), lease, properties, None);
        assert_eq!((letter.job_id(), letter.destination()), (Some("a/1"), Some("acme")));
    }

    #[test]
    fn the_id_depends_on_the_whole_content_and_not_on_the_time() {
        let plain = letter(JOB, &[("a", "b")]);
        let (key, body) = (plain.routing_key.clone(), plain.body.clone());
        let later = DeadLetter::new(key, body, plain.properties.clone(), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(plain.id(), later.id());
        for other in [letter(JOB, &[("a", "c")]), letter(JOB, &[("ab", "")]), letter("no job", &[("a", "b")])] {
            assert_ne!(plain.id(), other.id());
        }
        assert_eq!(plain.id().as_str().len(), 16);
    }

    #[test]
    fn the_next_run_carries_the_start_of_the_work() {
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let next = |headers: &[(&str, &str)]| letter(JOB, headers).next_run(None);
        let run = next(&[("consign-run", "2"), ("x-begun-at", early), ("x-first-failure-at", late)]);
        assert_eq!(run["consign-run"], "3");
        assert_eq!(run["x-begun-at"], early);
        assert_eq!(next(&[("x-first-failure-at", late)])["x-begun-at"], late);
        let taken = next(&[("x-error-reason", "object_exists"), ("x-begun-at", early)]);
        assert!(!taken.contains_key("x-begun-at"), "a foreign object would be taken for ours");
        let unknown = next(&[]);
        assert_eq!((unknown["consign-run"].as_str(), unknown.contains_key("x-begun-at")), ("1", false));
    }

    #[test]
    fn a_new_run_keeps_the_headers_of_the_producer() {
        for name in ["traceparent", "mine", "x-tenant", "x-last-mile"] {
            assert!(!headers::belongs_to_run(name), "{name}");
        }
        for name in ["x-attempt", "x-crashes", "consign-lease-epoch", "x-error-reason", "x-last-error-reason"] {
            assert!(headers::belongs_to_run(name), "{name}");
        }
    }
}
