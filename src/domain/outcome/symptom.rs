//! Symptom of an outage: a failure that has one cause when many destinations have it at once.

use super::Reason;

/// Failure that has one cause when many destinations have it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symptom {
    /// S3 is unreachable or answers with errors only.
    S3,
    /// STS is unreachable or answers with errors only.
    Sts,
    /// The same denial for every destination.
    Denial(Reason),
}

impl Symptom {
    /// Returns the symptom that a failure with this reason is, if it is one.
    pub fn of(reason: Reason) -> Option<Self> {
        match reason {
            Reason::S3Unavailable | Reason::Connection | Reason::Timeout => Some(Self::S3),
            Reason::StsUnavailable => Some(Self::Sts),
            Reason::AssumeRoleDenied | Reason::AccessDenied | Reason::BucketNotFound | Reason::AccessKeyInvalid => {
                Some(Self::Denial(reason))
            }
            _ => None,
        }
    }

    /// Returns true when sessions from before hide it.
    pub fn is_of_sts(self) -> bool {
        matches!(self, Self::Sts | Self::Denial(Reason::AssumeRoleDenied))
    }

    /// Remedy for the operator.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::S3 => "check this worker's network, aws.s3_endpoint_url and the state of S3",
            Self::Sts => "check this worker's network, aws.sts_endpoint_url and the state of STS",
            Self::Denial(Reason::AssumeRoleDenied) => {
                "check that this worker's own role still allows sts:AssumeRole and is the one that customers trust"
            }
            Self::Denial(_) => "check aws.s3_endpoint_url, and whether this worker talks to the right S3",
        }
    }
}
