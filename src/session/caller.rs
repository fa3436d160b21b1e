//! Identity of a caller, by GetCallerIdentity, which needs no permission.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_s3::config::IdentityCache;
use aws_sdk_sts::config::retry::{RetryConfig, RetryPartition};

use super::WorkerIdentity;
use super::assume::{refused, set_sts_endpoint, sts_region};
use crate::config::AwsConfig;
use crate::domain::destination::Region;
use crate::domain::outcome::{Failure, Reason};

/// Time-out of the call, its retries included.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Tries where the clock is not in question.
pub(super) const TRIES: u32 = 3;

/// Returns true if the STS of a store does not know the call, so that its answer says nothing about
/// the caller: Ceph answers 405, MinIO names an unsupported action.
pub(super) fn is_unknown_call(failure: &Failure) -> bool {
    failure.answer.as_deref().is_some_and(|answer| {
        answer.operation == "GetCallerIdentity"
            && (matches!(answer.status, 405 | 501)
                || matches!(answer.code.as_str(), "MethodNotAllowed" | "NotImplemented" | "InvalidAction")
                || answer.message.starts_with("Unsupported action"))
    })
}

/// Returns the ARN of the owner of the credentials: the worker's own, or those of `key`.
///
/// With more than one try the SDK corrects a wrong clock by the answer to the one before.
///
/// Errors: as of [`refused`]; a refusal is not judged yet.
pub(super) async fn caller(
    identity: &WorkerIdentity,
    aws: &AwsConfig,
    region: Option<&Region>,
    key: Option<Credentials>,
    tries: u32,
) -> Result<String, Failure> {
    let mut config = aws_sdk_sts::config::Builder::from(&identity.sdk)
        .retry_config(RetryConfig::standard().with_max_attempts(tries))
        // Of this call alone: the SDK keeps one for each region that a job names, for ever.
        .retry_partition(RetryPartition::custom("consign-caller").build());
    let mut asked_in = sts_region(aws, region, identity);
    if let Some(key) = key {
        // Only the partition of the bucket knows the key, and the platform's own region may be in another one.
        asked_in = region.map_or(asked_in, |region| region.as_str().to_owned());
        // The identity's own cache is of no use for somebody else's key.
        config = config.credentials_provider(key).identity_cache(IdentityCache::no_cache());
    }
    config = config.region(aws_sdk_sts::config::Region::new(asked_in));
    set_sts_endpoint(&mut config, aws);
    let asked = aws_sdk_sts::Client::from_conf(config.build()).get_caller_identity().send();
    let answer = tokio::time::timeout(TIMEOUT, asked).await.map_err(|_| {
        Failure::new(Reason::StsUnavailable, format!("STS did not answer within {} s", TIMEOUT.as_secs()))
    })?;
    let reply = answer.map_err(|error| refused("GetCallerIdentity", &error, None))?;
    reply.arn.ok_or_else(|| Failure::new(Reason::StsUnavailable, "STS answered without an ARN"))
}
