//! Plan of a backfill: every job of it, validated before the first is published.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::calendar::{CalendarRange, CalendarStep};
use super::template::Template;
use crate::domain::control::BackfillId;
use crate::domain::job::wire;
use crate::domain::lane::Lane;
use crate::producer::job::{PreparedJob, PublishFormat};

const FORMAT: PublishFormat = PublishFormat { lane: Lane::Backfill, compact: false, created_at: None };
/// Upper bound of the problems that are listed.
const MAX_SHOWN_PROBLEMS: usize = 20;

/// A template over a range.
#[derive(Debug)]
pub struct BackfillPlan {
    /// Id of the backfill.
    pub backfill: BackfillId,
    /// Digest of template, variables and range.
    pub digest: String,
    pub(super) template: Template,
    steps: Vec<CalendarStep>,
}

/// One job of a plan.
#[derive(Debug)]
pub struct PlannedJob {
    /// The job in JSON.
    pub body: Vec<u8>,
    /// URL of the source.
    pub source: String,
    /// Key of the object.
    pub key: String,
    /// The job, ready to be published.
    pub prepared: PreparedJob,
}

impl BackfillPlan {
    /// Validates every job as the worker will, and checks that no two jobs share an id or a key.
    /// Without an id the backfill is named after its digest.
    ///
    /// # Errors
    /// All problems; of many the first, and the number of the others.
    pub fn new(
        template: Template,
        range: &CalendarRange,
        variables: &str,
        backfill: Option<BackfillId>,
    ) -> Result<Self, Vec<String>> {
        let steps = range.steps().map_err(|problem| vec![problem])?;
        let zone = range.zone.iana_name().unwrap_or("UTC");
        let CalendarRange { from, to, every, .. } = range;
        let identity = [template.canonical.as_str(), variables, &format!("{from} {to} {every} {zone}")].join("\n");
        let digest = hex::encode(Sha256::digest(identity.as_bytes()));
        let derived = || BackfillId::parse(&digest[..12]).map_err(|problem| vec![problem.to_string()]);
        let backfill = backfill.map_or_else(derived, Ok)?;
        let plan = Self { backfill, digest, template, steps };
        plan.check()?;
        Ok(plan)
    }

    /// Returns the number of jobs.
    pub fn job_count(&self) -> usize {
        self.steps.len()
    }

    /// Returns the destination, if all jobs have the same.
    pub fn destination(&self) -> Option<String> {
        let mut all = self.jobs().map(|job| job.map(|job| job.prepared.destination).ok());
        let first = all.next()??;
        all.all(|next| next.as_ref() == Some(&first)).then_some(first)
    }

    /// Returns job `number`; 0 is the newest.
    ///
    /// # Errors
    /// The problem of the job, with its step and field.
    pub fn job(&self, number: usize) -> Result<PlannedJob, String> {
        let step = self.steps.get(number).ok_or("there is no such step")?;
        let at = |problem: String| format!("{}: {problem}", step.stamp());
        let raw = self.template.fill(step, &self.backfill).map_err(at)?;
        let body = wire::render(&raw);
        let prepared = PreparedJob::new(FORMAT, &body).map_err(at)?;
        Ok(PlannedJob { body, source: raw.source.url, key: raw.key, prepared })
    }

    /// Returns all jobs, newest first. Each is made on demand.
    pub fn jobs(&self) -> impl Iterator<Item = Result<PlannedJob, String>> {
        (0..self.job_count()).map(|number| self.job(number))
    }

    fn check(&self) -> Result<(), Vec<String>> {
        let (mut ids, mut keys) = (HashMap::new(), HashMap::new());
        let (mut problems, mut more) = (Vec::new(), 0_usize);
        let mut add =
            |problem: String| if problems.len() < MAX_SHOWN_PROBLEMS { problems.push(problem) } else { more += 1 };
        for (number, job) in self.jobs().enumerate() {
            let job = match job {
                Ok(job) => job,
                Err(problem) => {
                    add(problem);
                    continue;
                }
            };
            if let Some(other) = ids.insert(job.prepared.id.clone(), number) {
                let steps = self.both(other, number);
                add(format!("id: {steps} have the same id, {}; add {{date}} or {{stamp}} to it", job.prepared.id));
            }
            if let Some(other) = keys.insert((job.prepared.destination, job.key.clone()), number) {
                let steps = self.both(other, number);
                add(format!(
                    "key: {steps} have the same key, {}; one object would replace the other, so add {{date}} \
                    or {{stamp}} to it",
                    job.key
                ));
            }
        }
        if more > 0 {
            problems.push(format!("... and {more} more"));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn both(&self, one: usize, other: usize) -> String {
        format!("the steps {} and {}", self.steps[one].stamp(), self.steps[other].stamp())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::super::calendar::tests::range;
    use super::*;

    const JOB: &str = r#"{"version": 1, "id": "acme/{date}", "source": {"url": "https://e.example/{date}.csv"},
        "destination": "acme", "key": "{year}/{date}.csv"}"#;

    pub(crate) fn plan(template: &str, from: &str, to: &str) -> Result<BackfillPlan, Vec<String>> {
        let template = Template::parse(template, &BTreeMap::new()).unwrap();
        BackfillPlan::new(template, &range(from, to, "1d", "UTC"), "", None)
    }

    #[test]
    fn the_same_command_is_the_same_backfill() {
        let id = |from| plan(JOB, from, "2026-01-31").unwrap().backfill;
        assert_eq!(id("2026-01-01"), id("2026-01-01"));
        assert_ne!(id("2026-01-01"), id("2026-01-02"));
        assert_eq!(id("2026-01-01").as_str().len(), 12);
    }

    #[test]
    fn a_job_is_what_enqueue_would_publish_and_no_more() {
        let plan = plan(JOB, "2026-01-01", "2026-01-03").unwrap();
        let job = plan.job(0).unwrap();
        let publication = job.prepared.publication;
        assert_eq!(publication.routing_key, "job.backfill.acme");
        assert_eq!(publication.properties.message_id.as_deref(), Some("acme/2026-01-03"));
        let body: serde_json::Value = serde_json::from_slice(&publication.body).unwrap();
        let fields: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["destination", "id", "key", "source", "version"]);
        assert_eq!(
            (job.key.as_str(), job.source.as_str()),
            ("2026/2026-01-03.csv", "https://e.example/2026-01-03.csv")
        );
        assert!(plan.job(3).is_err());
    }

    #[test]
    fn conflicting_jobs_are_rejected_before_anything_is_published() {
        let rejected =
            |from: &str, to: &str| plan(&JOB.replace(from, to), "2026-01-01", "2026-02-28").unwrap_err().join("\n");
        let found = rejected("acme/{date}", "acme/{month}");
        assert!(found.contains("id: the steps 2026-02-28 and 2026-02-27 have the same id, acme/02"), "{found}");
        assert!(found.contains("... and 37 more"), "{found}");
        let found = rejected("{year}/{date}.csv", "{year}.csv");
        assert!(found.contains("key: the steps 2026-02-28 and 2026-02-27 have the same key, 2026.csv"), "{found}");
        let found = rejected("{year}/{date}.csv", "../{date}.csv");
        assert!(found.starts_with("2026-02-28: key"), "{found}");
        let found = rejected("https://e.example", "ftp://e.example");
        assert!(found.starts_with("2026-02-28: source.url"), "{found}");
    }
}
