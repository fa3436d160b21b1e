//! One dead letter, and what of it a new run of its job carries on.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::domain::job::lease::Lease;
use crate::domain::job::{self, DestinationRef, Job, Rejected};
use crate::domain::lane::Lane;
use crate::domain::outcome::Reason;
use crate::queue::Properties;

/// The headers of dead letters that this module reads or writes.
pub(in crate::queue) mod names {
    pub(in crate::queue) const REASON: &str = "x-error-reason";
    pub(in crate::queue) const CLASS: &str = "x-error-class";
    pub(in crate::queue) const MESSAGE: &str = "x-error-message";
    pub(in crate::queue) const ATTEMPTS: &str = "x-attempts";
    pub(in crate::queue) const FIRST_FAILURE: &str = "x-first-failure-at";
    pub(in crate::queue) const LAST_FAILURE: &str = "x-last-failure-at";
    pub(in crate::queue) const ORIGINAL_KEY: &str = "x-original-routing-key";
    pub(in crate::queue) const RUN: &str = "consign-run";
    pub(in crate::queue) const BEGUN: &str = "x-begun-at";
}

/// The history of the run that ended here. A new run begins without it.
const PAST: [&str; 16] = [
    names::REASON,
    names::CLASS,
    names::MESSAGE,
    names::ATTEMPTS,
    names::FIRST_FAILURE,
    names::LAST_FAILURE,
    names::ORIGINAL_KEY,
    names::RUN,
    names::BEGUN,
    "x-attempt",
    "x-deferrals",
    "x-defects",
    "x-turns",
    "x-deferred-since",
    "x-last-error-reason",
    "x-last-error-message",
];

/// Whether a header belongs to the run that ended, and so not to the next one.
pub(crate) fn is_of_the_past(name: &str) -> bool {
    PAST.contains(&name) || matches!(name, "x-crashes" | "consign-wait") || name.starts_with("consign-lease")
}

/// What a letter is called: made of everything in it but the times at which a queue took it. So it is the same on every look, on both
/// kinds of queue, and after export and import. Letters that are the same in everything share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LetterId(String);

impl LetterId {
    /// 16 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of(routing_key: &str, body: &[u8], properties: &Properties) -> Self {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(bytes);
        };
        add(routing_key.as_bytes());
        add(body);
        let p = properties;
        for text in [&p.content_type, &p.message_id, &p.reply_to, &p.correlation_id, &p.kind] {
            add(text.as_deref().unwrap_or_default().as_bytes());
        }
        for (name, value) in &p.headers {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        Self(hex::encode(hash.finalize()).chars().take(16).collect())
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A job that was given up, with the reason.
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
    /// A letter of these parts. `routing_key` is the job's own (`job.scheduled.acme`); `died_at` is when a queue took it, where that
    /// is known.
    pub fn new(routing_key: String, body: Bytes, properties: Properties, died_at: Option<Timestamp>) -> Self {
        let id = LetterId::of(&routing_key, &body, &properties);
        let (job_id, destination, inline) = match parsed(&properties, &body) {
            Ok(job) => {
                let inline = matches!(job.destination, DestinationRef::Inline(_));
                (Some(job.id.to_string()), Some(job.destination.id().to_string()), inline)
            }
            Err(rejected) => {
                let (job_id, destination) = (rejected.job_id, rejected.destination);
                (job_id.map(|id| id.to_string()), destination.map(|id| id.to_string()), false)
            }
        };
        let by_key = || routing_key.rsplit('.').next().filter(|word| *word != "_direct").map(str::to_owned);
        Self {
            id,
            job_id: job_id.or_else(|| properties.message_id.clone()),
            destination: destination.or_else(by_key),
            inline,
            routing_key,
            body,
            properties,
            died_at,
        }
    }

    /// What the letter is called.
    pub fn id(&self) -> &LetterId {
        &self.id
    }

    /// The job's own routing key.
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }

    /// The lane that the job goes to when it is requeued.
    pub fn lane(&self) -> Lane {
        if self.routing_key.starts_with("job.backfill.") { Lane::Backfill } else { Lane::Scheduled }
    }

    /// Whether the routing key leads to a lane.
    pub fn can_be_requeued(&self) -> bool {
        let lanes = ["job.scheduled.", "job.backfill."];
        let word = lanes.iter().find_map(|lead| self.routing_key.strip_prefix(lead));
        word.is_some_and(|word| !word.contains('.'))
    }

    /// The job as it was published. May hold secrets, such as presigned URLs.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// What came with it.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// When it was given up: the last failure, or when a queue took it.
    pub fn died_at(&self) -> Option<Timestamp> {
        self.last_failure_at().or(self.died_at)
    }

    /// Reads the job again, as a worker would.
    ///
    /// # Errors
    /// What a worker would say of it.
    pub fn job(&self) -> Result<Job, Rejected> {
        parsed(&self.properties, &self.body)
    }

    /// The job's id, from the body, else from the message id.
    pub fn job_id(&self) -> Option<&str> {
        self.job_id.as_deref()
    }

    /// The destination's id, from the body, else from the routing key.
    pub fn destination(&self) -> Option<&str> {
        self.destination.as_deref()
    }

    /// Whether the job brought its destination along.
    pub fn is_inline(&self) -> bool {
        self.inline
    }

    /// Why the job was given up: a reason of the contract, or the broker's own (`delivery_limit`). Empty where nobody said.
    pub fn reason(&self) -> &str {
        self.header(names::REASON)
    }

    /// The class of the reason; `broker` where the broker itself gave the job up.
    pub fn class(&self) -> &str {
        self.header(names::CLASS)
    }

    /// What happened, with what can be done about it.
    pub fn message(&self) -> &str {
        self.header(names::MESSAGE)
    }

    /// Charged attempts.
    pub fn attempts(&self) -> u32 {
        self.header(names::ATTEMPTS).parse().unwrap_or(0)
    }

    /// How often the job was requeued before.
    pub fn run(&self) -> u32 {
        self.header(names::RUN).parse().unwrap_or(0)
    }

    /// When the first attempt failed.
    pub fn first_failure_at(&self) -> Option<Timestamp> {
        self.instant(names::FIRST_FAILURE)
    }

    /// When the last attempt failed.
    pub fn last_failure_at(&self) -> Option<Timestamp> {
        self.instant(names::LAST_FAILURE)
    }

    /// What a new run carries beside the headers that are not [of the past](is_of_the_past).
    ///
    /// An attempt of an earlier run may have written the object and lost the answer. With `if_exists` = `keep` or `fail` a worker must
    /// know that to tell its own object from somebody else's, so when the work began travels on. Not after `object_exists`: then a
    /// worker has judged that the object is somebody else's, and a second look, which knows less, must not take it for ours.
    pub(in crate::queue) fn next_run(&self) -> BTreeMap<String, String> {
        let before = [self.instant(names::BEGUN), self.first_failure_at()];
        let begun = before.into_iter().flatten().min().or(self.died_at());
        let begun = begun.filter(|_| self.reason() != Reason::ObjectExists.as_str());
        let run = (names::RUN.to_owned(), self.run().saturating_add(1).to_string());
        let begun = begun.map(|begun| (names::BEGUN.to_owned(), begun.to_string()));
        std::iter::once(run).chain(begun).collect()
    }

    fn header(&self, name: &str) -> &str {
        self.properties.headers.get(name).map_or("", String::as_str)
    }

    fn instant(&self, name: &str) -> Option<Timestamp> {
        self.header(name).parse().ok()
    }
}

/// A job whose deliveries the broker counted out may be under a lease still.
fn parsed(properties: &Properties, body: &[u8]) -> Result<Job, Rejected> {
    let (content_type, id) = (properties.content_type.as_deref(), properties.message_id.as_deref());
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
    fn a_job_that_was_counted_out_under_a_lease_is_read_out_of_it() {
        let body = Bytes::from_static(JOB.as_bytes());
        let lease = Lease { body, content_type: None, lane: Lane::Scheduled, checkpoint: None }.encode().unwrap();
        let content_type = Some(crate::domain::job::lease::CONTENT_TYPE.to_owned());
        let properties = Properties { content_type, ..Properties::default() };
        let letter = DeadLetter::new("job.scheduled.acme".to_owned(), lease, properties, None);
        assert_eq!((letter.job_id(), letter.destination()), (Some("a/1"), Some("acme")));
    }

    #[test]
    fn every_part_makes_the_name_and_the_time_of_the_queue_does_not() {
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
    fn the_next_run_knows_when_the_work_began() {
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let next = |headers: &[(&str, &str)]| letter(JOB, headers).next_run();
        let run = next(&[("consign-run", "2"), ("x-begun-at", early), ("x-first-failure-at", late)]);
        assert_eq!(run["consign-run"], "3");
        assert_eq!(run["x-begun-at"], early);
        assert_eq!(next(&[("x-first-failure-at", late)])["x-begun-at"], late);
        let taken = next(&[("x-error-reason", "object_exists"), ("x-begun-at", early)]);
        assert!(!taken.contains_key("x-begun-at"), "somebody else's object would pass for ours");
        let unknown = next(&[]);
        assert_eq!((unknown["consign-run"].as_str(), unknown.contains_key("x-begun-at")), ("1", false));
    }

    #[test]
    fn the_producers_headers_are_not_of_the_past() {
        for name in ["traceparent", "mine", "x-tenant", "x-last-mile"] {
            assert!(!is_of_the_past(name), "{name}");
        }
        for name in ["x-attempt", "x-crashes", "consign-lease-epoch", "x-error-reason", "x-last-error-reason"] {
            assert!(is_of_the_past(name), "{name}");
        }
    }
}
