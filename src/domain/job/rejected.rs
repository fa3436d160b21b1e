//! Rejection of a message that is no job.

use super::{Invalid, JobId};
use crate::domain::destination::DestinationId;
use crate::domain::outcome::{Failure, Reason};

/// Message that is no job: the field, the reason, and the identity as far as it could be read.
///
/// Nothing in it is taken from a value of the message: neither an external id nor the query of a
/// URL can leak through it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Rejected {
    /// `invalid_job`, `schema_version`, `invalid_key` or `source_forbidden`.
    pub reason: Reason,
    /// The field as the sender wrote it, dotted (`destination.auth.role_arn`); `body` where there
    /// are no fields yet.
    pub field: String,
    /// The reason and the remedy.
    pub message: String,
    /// The job's id, where it could be read: the outcome of the dead letter is sent under it.
    pub job_id: Option<JobId>,
    /// The destination's id, where it could be read.
    pub destination: Option<DestinationId>,
}

impl Rejected {
    /// A refusal of `problem.field`, without an identity yet. Field names come from outside, so
    /// they are cut and cleaned.
    pub fn new(reason: Reason, problem: Invalid) -> Self {
        let field = problem.field.chars().take(160).map(|c| if c.is_control() { '?' } else { c }).collect();
        Self { reason, field, message: problem.problem, job_id: None, destination: None }
    }

    /// A refusal with reason `invalid_job`.
    pub(super) fn job(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Reason::InvalidJob, Invalid::new(field, problem))
    }

    /// Adds the identity that was found; what is known already stays.
    #[must_use]
    pub(super) fn identified(mut self, identity: JobIdentity) -> Self {
        self.job_id = self.job_id.or(identity.job_id);
        self.destination = self.destination.or(identity.destination);
        self
    }

    /// The same refusal as the failure of an attempt.
    pub fn to_failure(&self) -> Failure {
        Failure::new(self.reason, self.to_string())
    }
}

impl From<Invalid> for Rejected {
    fn from(problem: Invalid) -> Self {
        Self::new(Reason::InvalidJob, problem)
    }
}

/// Whom a message is about, read without judging the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct JobIdentity {
    pub(super) job_id: Option<JobId>,
    pub(super) destination: Option<DestinationId>,
}

impl JobIdentity {
    pub(super) fn of(job_id: Option<&str>, destination: Option<&str>) -> Self {
        Self {
            job_id: job_id.and_then(|id| JobId::parse(id).ok()),
            destination: destination.and_then(|id| DestinationId::parse(id).ok()),
        }
    }
}
