//! What a backfill will publish: every job of it, checked before the first is published.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::range::{Range, Step};
use super::template::Template;
use crate::cli::enqueue::input::{Form, Prepared, SHOWN, prepare};
use crate::domain::control::BackfillId;
use crate::domain::job::wire;
use crate::domain::lane::Lane;

const FORM: Form = Form { lane: Lane::Backfill, compact: false };

/// A template over a range.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) backfill: BackfillId,
    /// The same for the same template, variables and range.
    pub(super) digest: String,
    template: Template,
    steps: Vec<Step>,
}

/// One job, as bytes and as people see it.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) body: Vec<u8>,
    pub(super) source: String,
    pub(super) key: String,
    pub(super) prepared: Prepared,
}

impl Plan {
    /// Checks every job as the worker will, and that no two of them are in each other's way.
    ///
    /// # Errors
    /// All problems, the first of many in words.
    pub(super) fn make(
        template: Template,
        range: &Range,
        variables: &str,
        backfill: Option<BackfillId>,
    ) -> Result<Self, Vec<String>> {
        let steps = range.steps().map_err(|problem| vec![problem])?;
        let zone = range.zone.iana_name().unwrap_or("UTC");
        let Range { from, to, every, .. } = range;
        let whole = [template.canonical(), variables, &format!("{from} {to} {every} {zone}")].join("\n");
        let digest = hex::encode(Sha256::digest(whole.as_bytes()));
        let derived = || BackfillId::parse(&digest[..12]).map_err(|problem| vec![problem.to_string()]);
        let backfill = backfill.map_or_else(derived, Ok)?;
        let plan = Self { backfill, digest, template, steps };
        plan.check()?;
        Ok(plan)
    }

    /// How many jobs there are.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Where all jobs go, where that is one destination.
    pub(super) fn destination(&self) -> Option<String> {
        let mut all = self.jobs().map(|job| job.map(|job| job.prepared.destination).ok());
        let first = all.next()??;
        all.all(|next| next.as_ref() == Some(&first)).then_some(first)
    }

    /// The job of this number; 0 is the newest.
    ///
    /// # Errors
    /// Why it is none, with its field and its step.
    pub(super) fn job(&self, number: usize) -> Result<Planned, String> {
        let step = self.steps.get(number).ok_or("there is no such step")?;
        let at = |problem: String| format!("{}: {problem}", step.stamp());
        let raw = self.template.fill(step, &self.backfill).map_err(at)?;
        let body = wire::render(&raw);
        let prepared = prepare(FORM, &body, None).map_err(|refusal| at(refusal.to_string()))?;
        Ok(Planned { body, source: raw.source.url, key: raw.key, prepared })
    }

    /// All jobs, newest first. They are made as they are asked for.
    pub(super) fn jobs(&self) -> impl Iterator<Item = Result<Planned, String>> {
        (0..self.len()).map(|number| self.job(number))
    }

    fn check(&self) -> Result<(), Vec<String>> {
        let (mut ids, mut keys) = (HashMap::new(), HashMap::new());
        let (mut problems, mut more) = (Vec::new(), 0_usize);
        let mut note = |problem: String| if problems.len() < SHOWN { problems.push(problem) } else { more += 1 };
        for (number, job) in self.jobs().enumerate() {
            let job = match job {
                Ok(job) => job,
                Err(problem) => {
                    note(problem);
                    continue;
                }
            };
            if let Some(other) = ids.insert(job.prepared.id.clone(), number) {
                let steps = self.both(other, number);
                note(format!("id: {steps} have the same, {}; put {{date}} into it, or {{stamp}}", job.prepared.id));
            }
            if let Some(other) = keys.insert((job.prepared.destination, job.key.clone()), number) {
                let steps = self.both(other, number);
                note(format!("key: {steps} have the same, {}; one object would replace the other", job.key));
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
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::super::range::tests::range;
    use super::*;

    const JOB: &str = r#"{"version": 1, "id": "acme/{date}", "source": {"url": "https://e.example/{date}.csv"},
        "destination": "acme", "key": "{year}/{date}.csv"}"#;

    pub(in crate::cli::backfill) fn plan(template: &str, from: &str, to: &str) -> Result<Plan, Vec<String>> {
        let template = Template::parse(template, &BTreeMap::new()).unwrap();
        Plan::make(template, &range(from, to, "1d", "UTC"), "", None)
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
        let publication = job.prepared.publication.unwrap();
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
    fn jobs_that_are_in_each_others_way_are_refused_before_anything_is_published() {
        let refused =
            |from: &str, to: &str| plan(&JOB.replace(from, to), "2026-01-01", "2026-02-28").unwrap_err().join("\n");
        let said = refused("acme/{date}", "acme/{month}");
        assert!(said.contains("id: the steps 2026-02-28 and 2026-02-27 have the same, acme/02"), "{said}");
        assert!(said.contains("... and 37 more"), "{said}");
        let said = refused("{year}/{date}.csv", "{year}.csv");
        assert!(said.contains("key: the steps 2026-02-28 and 2026-02-27 have the same, 2026.csv"), "{said}");
        let said = refused("{year}/{date}.csv", "../{date}.csv");
        assert!(said.starts_with("2026-02-28: key"), "{said}");
        let said = refused("https://e.example", "ftp://e.example");
        assert!(said.starts_with("2026-02-28: source.url"), "{said}");
    }
}
