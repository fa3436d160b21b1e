//! Jobs that are ready to be published.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;

use crate::domain::job::wire;
use crate::domain::job::{DestinationRef, Invalid, compact};
use crate::domain::lane::Lane;
use crate::domain::routing_key;
use crate::queue::{Properties, Publication};

/// Lane and encoding of published jobs.
#[derive(Debug, Clone, Copy)]
pub struct PublishFormat {
    /// Lane that the jobs are published to.
    pub lane: Lane,
    /// True for the compact binary form.
    pub compact: bool,
    /// `created_at` of jobs without one and without a generation.
    pub created_at: Option<Timestamp>,
}

/// Job that a worker will accept.
#[derive(Debug)]
pub struct PreparedJob {
    /// Id of the job.
    pub id: String,
    /// Id of its destination.
    pub destination: String,
    /// True if the destination comes with the job.
    pub is_inline: bool,
    /// Message to publish.
    pub publication: Publication,
}

impl PreparedJob {
    /// Validates a job in JSON as the worker will.
    ///
    /// # Errors
    /// The problem, with the name of the field.
    pub fn new(format: PublishFormat, body: &[u8]) -> Result<Self, String> {
        let mut raw = wire::read(body).map_err(|rejected| rejected.to_string())?;
        let mut json = Cow::Borrowed(body);
        if let Some(at) = format.created_at.filter(|_| raw.created_at.is_none() && raw.generation.is_none()) {
            raw.created_at = Some(at.to_string());
            json = Cow::Owned(wire::render(&raw));
        }
        let compact = if format.compact {
            Some(compact::encode(&raw).map_err(|Invalid { field, problem }| format!("{field}: {problem}"))?)
        } else {
            None
        };
        let job = raw.validate().map_err(|rejected| rejected.to_string())?;
        let (id, destination) = (job.id.to_string(), job.destination.id().to_string());
        let is_inline = matches!(job.destination, DestinationRef::Inline(_));
        let content_type = if compact.is_some() { compact::CONTENT_TYPE } else { "application/json" };
        let publication = Publication {
            routing_key: routing_key::job(format.lane, &destination),
            body: compact.map_or_else(|| Bytes::from(json.into_owned()), Bytes::from),
            properties: Properties {
                content_type: Some(content_type.to_owned()),
                message_id: Some(id.clone()),
                ..Properties::default()
            },
        };
        Ok(Self { id, destination, is_inline, publication })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compact_form_is_marked_by_its_content_type() {
        let job = r#"{"version":1,"id":"a","source":{"url":"file:///a"},"destination":"acme","key":"k"}"#;
        let format = PublishFormat { lane: Lane::Backfill, compact: true, created_at: None };
        let publication = PreparedJob::new(format, job.as_bytes()).unwrap().publication;
        assert_eq!(publication.routing_key, "job.backfill.acme");
        assert_eq!(publication.properties.content_type.as_deref(), Some(compact::CONTENT_TYPE));
        assert_eq!(compact::parse(&publication.body).unwrap().id.as_str(), "a");
    }

    #[test]
    fn a_job_without_an_order_gets_the_time_of_its_creation() {
        let created_at = Some(Timestamp::from_microsecond(1_800_000_000_000_007).unwrap());
        let format = PublishFormat { lane: Lane::Scheduled, compact: false, created_at };
        let job = |more: &str| {
            format!(r#"{{"version":1,"id":"a","source":{{"url":"file:///a"}},"destination":"acme","key":"k"{more}}}"#)
        };
        let generation = |more: &str| {
            let publication = PreparedJob::new(format, job(more).as_bytes()).unwrap().publication;
            wire::parse(&publication.body).unwrap().generation_or(None)
        };
        assert_eq!(generation(""), Some(1_800_000_000_000_007));
        assert_eq!(generation(r#","generation":5"#), Some(5));
        assert_eq!(generation(r#","created_at":"1970-01-01T00:00:01Z""#), Some(1_000_000));
    }
}
