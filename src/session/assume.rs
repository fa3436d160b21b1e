//! One call of AssumeRole, and what its refusals mean.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_sts::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_sts::operation::RequestId as _;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use tokio::time::Instant;

use super::{Identity, endpoint};
use crate::config::AwsConfig;
use crate::destination::{Destination, ExternalId, Region, RoleArn};
use crate::metrics::Metrics;
use crate::outcome::{Class, Failure, Reason};
use crate::policy;

/// An assumed role that assumes another one gets an hour at most
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining>).
const SESSION_SECONDS: i32 = 3600;
/// The longest an AssumeRole may take, its repetitions included.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The longest role session name STS takes.
const NAME_LIMIT: usize = 64;

pub(super) struct Role<'a> {
    pub(super) arn: &'a RoleArn,
    pub(super) external_id: Option<&'a ExternalId>,
    pub(super) destination: &'a Destination,
    pub(super) region: &'a Region,
}

/// Assumes the role with a session policy that allows no more than this destination needs.
pub(super) async fn assume(
    identity: &Identity,
    aws: &AwsConfig,
    role: &Role<'_>,
    metrics: &Metrics,
) -> Result<Credentials, Failure> {
    let started = Instant::now();
    let result = tokio::time::timeout(TIMEOUT, request(identity, aws, role)).await.unwrap_or_else(|_| {
        Err(Failure::new(Reason::StsUnavailable, format!("STS did not answer within {} s", TIMEOUT.as_secs())))
    });
    let label = match &result {
        Ok(_) => "ok",
        Err(failure) if failure.class() == Class::Destination => "denied",
        Err(_) => "error",
    };
    metrics.assume_role(label, started.elapsed());
    result
}

async fn request(identity: &Identity, aws: &AwsConfig, role: &Role<'_>) -> Result<Credentials, Failure> {
    let session_name: String = format!("consign-{}", role.destination.id).chars().take(NAME_LIMIT).collect();
    let request = client(identity, aws, role)
        .assume_role()
        .role_arn(role.arn.as_str())
        .role_session_name(session_name)
        .set_external_id(role.external_id.map(|id| id.expose().to_owned()))
        .duration_seconds(SESSION_SECONDS)
        .policy(policy::session_policy(role.destination));
    let reply = request.send().await.map_err(|error| classify(&error, role))?;
    let given =
        reply.credentials.ok_or_else(|| Failure::new(Reason::StsUnavailable, "STS answered without credentials"))?;
    let expires = std::time::SystemTime::try_from(given.expiration).ok();
    let (id, secret, token) = (given.access_key_id, given.secret_access_key, given.session_token);
    Ok(Credentials::new(id, secret, Some(token), expires, "consign assumed role"))
}

/// A client for this one call. Its retry budget is the destination's own: the SDK shares one per region by default, and a sick
/// tenant would starve the others.
fn client(identity: &Identity, aws: &AwsConfig, role: &Role<'_>) -> aws_sdk_sts::Client {
    let region = aws.region.as_ref().unwrap_or(role.region);
    let mut config = aws_sdk_sts::config::Builder::from(identity.sdk())
        .region(aws_sdk_sts::config::Region::new(region.as_str().to_owned()))
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .retry_partition(RetryPartition::new(format!("consign-{}", role.destination.id)));
    config.set_endpoint_url(aws.sts_endpoint_url.as_ref().map(endpoint));
    aws_sdk_sts::Client::from_conf(config.build())
}

/// STS's answers. Whose fault is it: the customer's trust policy, our own identity, or nobody's?
fn classify(error: &SdkError<AssumeRoleError>, role: &Role<'_>) -> Failure {
    let mut failure = match error.code() {
        Some(code) => by_code(code, error, role),
        None if own_credentials_failed(error) => {
            Failure::new(Reason::IdentityDenied, "the worker has no AWS credentials of its own")
                .hint("give the worker a role or a key in the standard AWS way; the customer need not do anything")
        }
        None => Failure::new(Reason::StsUnavailable, "STS could not be reached, or answered without a reason"),
    };
    failure.aws_request_id = error.request_id().map(str::to_owned);
    failure
}

fn by_code(code: &str, error: &SdkError<AssumeRoleError>, role: &Role<'_>) -> Failure {
    let said = error.message().unwrap_or("no reason given");
    let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
    match code {
        "AccessDenied" | "AccessDeniedException" => denied(role),
        // The token or key that signed this call is the worker's own.
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "MissingAuthenticationToken"
        | "InvalidAccessKeyId"
        | "IncompleteSignature" => {
            Failure::new(Reason::IdentityDenied, format!("STS refuses the worker's own credentials ({code})"))
        }
        "RequestTimeTooSkewed" | "RequestExpired" => {
            Failure::new(Reason::ClockSkew, format!("the worker's clock is off ({code})"))
        }
        "SignatureDoesNotMatch" => Failure::new(
            Reason::IdentityDenied,
            "the worker's own secret key does not match its key id, or its clock is off",
        ),
        "RegionDisabledException" => Failure::new(
            Reason::AssumeRoleDenied,
            format!("STS is not enabled in {} for the account of the role", role.region),
        )
        .hint("activate STS in that region in the account settings of IAM"),
        "PackedPolicyTooLarge" | "PackedPolicyTooLargeException" | "MalformedPolicyDocument" | "ValidationError" => {
            Failure::new(Reason::AssumeRoleDenied, format!("STS refuses the request for the role: {said}"))
                .hint("shorten the prefix, or correct the role's ARN")
        }
        code if code.contains("Throttl") || status == 429 => {
            Failure::new(Reason::Throttled, "STS throttles AssumeRole")
        }
        _ if status >= 500 || status == 0 => {
            Failure::new(Reason::StsUnavailable, format!("STS answered {status} {code}"))
        }
        _ => Failure::new(Reason::AssumeRoleDenied, format!("STS refuses the role: {code}")),
    }
}

fn denied(role: &Role<'_>) -> Failure {
    let id = if role.external_id.is_some() { " with the external id agreed on" } else { "" };
    Failure::new(Reason::AssumeRoleDenied, format!("the role {} does not let us in", role.arn.as_str())).hint(format!(
        "the role's trust policy must allow sts:AssumeRole to our principal{id}; check that the role exists, too"
    ))
}

fn own_credentials_failed(error: &SdkError<AssumeRoleError>) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if current.downcast_ref::<CredentialsError>().is_some() {
            return true;
        }
        cause = current.source();
    }
    false
}
