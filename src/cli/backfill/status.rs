//! `consign backfill status`: what became of a backfill's jobs, from the outcomes that were kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;

use super::record::Told;
use crate::cli::enqueue::seen::{Seen, SeenData};
use crate::cli::enqueue::wait::Tally;
use crate::cli::left::{self, Heard, Left, Open};
use crate::domain::control::{BackfillId, Control, ControlCommand};
use crate::domain::outcome::OutcomeKind;

/// Jobs that failed (or wait for another try) for one reason.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Trouble {
    jobs: usize,
    /// One of them.
    example: String,
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// How a backfill goes.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    backfill: String,
    /// Of the whole plan; known where it was published from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelled_at: Option<Timestamp>,
    outcomes: Tally,
    /// Why jobs have not ended.
    #[serde(skip_serializing_if = "Left::is_empty")]
    waiting_for: Left,
    failures: BTreeMap<String, Trouble>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_outcome_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_outcome_at: Option<Timestamp>,
}

/// What the outcomes say, job by job.
#[derive(Debug, Default)]
pub(super) struct Digest {
    jobs: HashMap<String, (OutcomeKind, Option<SeenData>)>,
    since: Option<Timestamp>,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

impl Digest {
    /// Leaves out what an earlier try came to, before `since`, unless it was delivered.
    pub(super) fn since(since: Option<Timestamp>) -> Self {
        Self { since, ..Self::default() }
    }

    /// Reads one outcome. Delivered beats every other, and what is terminal beats `retrying`.
    pub(super) fn note(&mut self, body: &[u8]) {
        let Ok(seen) = serde_json::from_slice::<Seen>(body) else { return };
        let Some(kind) = seen.kind().filter(|_| seen.counts(self.since)) else { return };
        self.first = Some(self.first.map_or(seen.time, |first| first.min(seen.time)));
        self.last = self.last.max(Some(seen.time));
        let known = self.jobs.get(&seen.subject).map(|(kind, _)| *kind);
        let beaten =
            known == Some(OutcomeKind::Delivered) || known.is_some_and(OutcomeKind::is_terminal) && !kind.is_terminal();
        if !beaten {
            let data = seen.data.reason.is_some().then_some(seen.data);
            self.jobs.insert(seen.subject, (kind, data));
        }
    }

    /// What has not ended: what is tried again, and what was published and has no outcome.
    fn open<'a>(&'a self, told: Option<&'a Told>) -> impl Iterator<Item = Open<'a>> {
        let retrying = self.jobs.values().filter(|(kind, _)| !kind.is_terminal()).map(|(_, data)| {
            let destination = data.as_ref().and_then(|data| data.destination.as_deref());
            Open { jobs: 1, destination, last: data.as_ref() }
        });
        let destination = told.and_then(|told| told.head.as_ref()?.destination.as_deref());
        retrying.chain([Open { jobs: self.silent(told), destination, last: None }])
    }

    /// How many were published and have no outcome.
    fn silent(&self, told: Option<&Told>) -> usize {
        told.map_or(0, |told| told.published.len().saturating_sub(self.jobs.len()))
    }

    /// Where jobs go that have not ended.
    pub(super) fn destinations<'a>(&'a self, told: Option<&'a Told>) -> BTreeSet<&'a str> {
        self.open(told).filter(|open| open.jobs > 0).filter_map(|open| open.destination).collect()
    }

    /// Together with what is on record here, with the control messages, and with what workers know.
    pub(super) fn status(
        self,
        backfill: &BackfillId,
        told: Option<&Told>,
        control: &[bytes::Bytes],
        heard: &Heard,
    ) -> Status {
        let cancelled_at = cancelled(backfill, control).max(told.and_then(|told| told.cancelled_at));
        // What was cancelled before it was begun anew is not cancelled now.
        let cancelled_at = cancelled_at.filter(|at| self.since.is_none_or(|since| *at >= since));
        let (mut outcomes, waiting_for) = (Tally::default(), left::grouped(self.open(told), heard));
        *outcomes.of(None) = self.silent(told);
        let mut failures: BTreeMap<String, Trouble> = BTreeMap::new();
        for (id, (kind, data)) in self.jobs {
            *outcomes.of(Some(kind)) += 1;
            let Some(SeenData { reason: Some(reason), message, hint, .. }) = data else { continue };
            let trouble = failures.entry(reason).or_default();
            trouble.jobs += 1;
            if trouble.example.is_empty() || id < trouble.example {
                (trouble.example, trouble.message, trouble.hint) = (id, message, hint);
            }
        }
        Status {
            backfill: backfill.to_string(),
            jobs: told.and_then(|told| told.head.as_ref()).map(|head| head.jobs),
            published: told.map(|told| told.published.len()),
            cancelled_at,
            outcomes,
            waiting_for,
            failures,
            first_outcome_at: self.first,
            last_outcome_at: self.last,
        }
    }
}

fn cancelled(backfill: &BackfillId, control: &[bytes::Bytes]) -> Option<Timestamp> {
    let messages = control.iter().filter_map(|body| Control::parse(body).ok());
    let ours = messages.filter(|control| control.command == ControlCommand::CancelBackfill(backfill.clone()));
    ours.map(|control| control.at).max()
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "backfill   {}", self.backfill)?;
        match (self.published, self.jobs) {
            (Some(published), Some(jobs)) => write!(f, "\npublished  {published} of {jobs}")?,
            _ => write!(f, "\npublished  not from here, so nobody knows how many are left")?,
        }
        if let Some(at) = self.cancelled_at {
            write!(f, "\ncancelled  {at:.0}")?;
        }
        write!(f, "\noutcomes   {}{}", self.outcomes, self.waiting_for.lines())?;
        if let (Some(first), Some(last)) = (self.first_outcome_at, self.last_outcome_at) {
            write!(f, "\nfrom       {first:.0}\nto         {last:.0}")?;
        }
        for (reason, Trouble { jobs, example, message, hint }) in &self.failures {
            let texts = [message, hint].into_iter().flatten().map(|text| format!("\n           {text}"));
            write!(f, "\n{reason}: {jobs}, such as {example}{}", texts.collect::<String>())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(job: &str, kind: &str, second: i64, reason: Option<&str>) -> Vec<u8> {
        let time = Timestamp::new(1_800_000_000 + second, 123_456_789).unwrap();
        let data =
            serde_json::json!({"destination": "acme", "reason": reason, "message": "it broke", "hint": "mend it"});
        let event = serde_json::json!({
            "subject": job, "type": format!("consign.transfer.{kind}.v1"), "time": time, "data": data,
        });
        serde_json::to_vec(&event).unwrap()
    }

    fn digest(outcomes: &[(&str, &str, Option<&str>)]) -> Digest {
        let mut digest = Digest::default();
        for (second, (job, kind, reason)) in (0..).zip(outcomes) {
            digest.note(&outcome(job, kind, second, *reason));
        }
        digest.note(b"no outcome");
        digest
    }

    #[test]
    fn each_job_counts_once_however_often_it_was_told() {
        let digest = digest(&[
            ("a", "retrying", Some("slow_down")),
            ("a", "delivered", None),
            ("a", "delivered", None),
            ("b", "delivered", None),
            ("b", "failed", Some("timeout")),
            ("c", "failed", Some("kms_denied")),
            ("c", "retrying", Some("slow_down")),
            ("d", "failed", Some("kms_denied")),
            ("e", "skipped", None),
            ("f", "retrying", Some("slow_down")),
        ]);
        let told = Told { published: ('a'..='h').map(String::from).collect(), ..Told::default() };
        let id = BackfillId::parse("b").unwrap();
        let at = Timestamp::new(1_800_000_100, 123_456_789).unwrap();
        let cancel = Control::new(ControlCommand::CancelBackfill(id.clone()), at).render().into();
        let other = Control::new(ControlCommand::CancelBackfill(BackfillId::parse("c").unwrap()), Timestamp::MAX)
            .render()
            .into();
        let status = digest.status(&id, Some(&told), &[cancel, other], &Heard::default());
        let expected = Tally { delivered: 2, skipped: 1, failed: 2, expired: 0, retrying: 1, left: 2 };
        assert_eq!((status.outcomes, status.cancelled_at), (expected, Some(at)));
        let reasons: Vec<_> = status.failures.iter().map(|(reason, trouble)| (reason.as_str(), trouble.jobs)).collect();
        assert_eq!(reasons, [("kms_denied", 2), ("slow_down", 1)]);
        assert_eq!(status.failures["kms_denied"].example, "c");
        let text = status.to_string();
        assert!(
            text.contains("\ncancelled  2027-01-15T08:01:40Z\n")
                && text.contains("\nto         2027-01-15T08:00:09Z\n"),
            "{text}"
        );
        assert!(text.contains("kms_denied: 2, such as c\n           it broke\n           mend it"), "{text}");
        assert!(
            text.contains("2 delivered, 1 skipped, 2 failed, 1 retrying, 2 left\n  2 are queued or at work\n"),
            "{text}"
        );
        assert!(text.contains("\n  1 for acme is tried again (slow_down: mend it)"), "{text}");
    }

    #[test]
    fn without_a_record_nobody_knows_how_many_are_left() {
        let status = digest(&[("a", "delivered", None)]);
        let status = status.status(&BackfillId::parse("b").unwrap(), None, &[], &Heard::default());
        assert_eq!(status.outcomes.left, 0);
        assert!(status.to_string().contains("nobody knows how many are left"));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["outcomes"]["delivered"], 1);
        assert!(json.get("published").is_none());
    }
}
