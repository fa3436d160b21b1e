//! Test calls that confirm an outage: a failure that many destinations share is caused by AWS, or
//! by the worker's network or identity, and not by the destinations.

use std::sync::Arc;

use aws_sdk_s3::error::SdkError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::Sessions;
use super::home::CALL_TIMEOUT;
use crate::domain::destination::{Destination, Region};
use crate::domain::outcome::{Class, Failure, Reason, Symptom};

/// Most destinations that are asked about an outage.
const MAX_ASKED: usize = 3;

impl Sessions {
    /// Returns true if calls of our own show that a failure which many destinations share is not
    /// theirs.
    ///
    /// `controls` are destinations that worked before, best of all some that do not share the
    /// failure; empty if none ever worked. What each call proves:
    ///
    /// - STS does not answer: GetCallerIdentity at home, which needs no permission. If that is
    ///   answered, the trouble is that of a region.
    /// - STS denies roles: at home it accepts us and yet denies every control's role. If it grants
    ///   one, the denials are those of their own trust policies.
    /// - S3 does not answer: an unsigned HeadBucket for each control, or ListBuckets at home. Any
    ///   answer below 500, a refusal too, proves network, TLS and the front of S3; it does not
    ///   prove that S3 can write.
    /// - S3 denies: an unsigned HeadBucket for each control. 404 for all of them is another S3 than
    ///   the one where they worked. Other answers show that the bucket is known, so the denials are
    ///   those of policies. It can't be seen from here if all policies deny our address.
    pub async fn confirm_outage(&self, symptom: Symptom, controls: &[Arc<Destination>]) -> bool {
        let controls = controls.get(..MAX_ASKED).unwrap_or(controls);
        match symptom {
            Symptom::Sts => match self.accepted_at_home_now().await {
                Err(failure) => matches!(failure.class(), Class::Transient | Class::Worker),
                Ok(_) => false,
            },
            Symptom::Denial(Reason::AssumeRoleDenied) => {
                let refused = |failure: Failure| failure.class() == Class::Worker;
                self.accepted_at_home_now().await.is_err_and(refused)
                    || self.all(controls, |control| self.denies_role(control)).await
            }
            Symptom::S3 if controls.is_empty() => {
                let Ok(home) = Region::parse(&self.home_region()) else { return false };
                is_unavailable(status(self.anonymous(&home).list_buckets().send()).await)
            }
            Symptom::S3 => self.all(controls, |control| self.head_bucket(control).map(is_unavailable)).await,
            Symptom::Denial(_) => self.all(controls, |control| self.head_bucket(control).map(is_unknown)).await,
        }
    }

    /// Returns true if `shows` is true for all controls, and there is one.
    async fn all<'a, F>(&self, controls: &'a [Arc<Destination>], shows: impl Fn(&'a Arc<Destination>) -> F) -> bool
    where
        F: Future<Output = bool>,
    {
        !controls.is_empty() && join_all(controls.iter().map(shows)).await.into_iter().all(|shown| shown)
    }

    /// Returns true if STS denies the role of a destination now, whatever is cached.
    async fn denies_role(&self, destination: &Destination) -> bool {
        let fetched = timeout(CALL_TIMEOUT, self.fetch(destination, &self.region(destination))).await;
        matches!(fetched, Ok(Err(failure)) if failure.reason == Reason::AssumeRoleDenied)
    }

    /// The status of an unsigned HeadBucket; `None` if there was no answer.
    async fn head_bucket(&self, destination: &Destination) -> Option<u16> {
        let client = self.anonymous(&self.region(destination));
        status(client.head_bucket().bucket(destination.bucket.as_str()).send()).await
    }

    /// A client whose requests are not signed.
    fn anonymous(&self, region: &Region) -> aws_sdk_s3::Client {
        let config = self.identity.s3_config(&self.aws, region).allow_no_auth();
        aws_sdk_s3::Client::from_conf(config.build())
    }
}

/// The status of the answer to a request without credentials; `None` if there was none in time.
async fn status<T, E>(request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>) -> Option<u16> {
    match timeout(CALL_TIMEOUT, request).await.ok()? {
        Ok(_) => Some(200),
        Err(error) => error.raw_response().map(|raw| raw.status().as_u16()),
    }
}

fn is_unknown(status: Option<u16>) -> bool {
    status == Some(404)
}

fn is_unavailable(status: Option<u16>) -> bool {
    status.is_none_or(|status| status >= 500)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_is_what_gives_no_answer_or_an_error_of_its_own() {
        for (status, unavailable) in
            [(None, true), (Some(500), true), (Some(503), true), (Some(403), false), (Some(404), false)]
        {
            assert_eq!((is_unavailable(status), is_unknown(status)), (unavailable, status == Some(404)), "{status:?}");
        }
    }
}
