//! One call of AssumeRole, and the classification of its errors.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::RequestId;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use tokio::time::Instant;

use super::identity::{WorkerIdentity, endpoint};
use crate::aws::errors::{AssumedRole, error_response, is_web_page, sts_table};
use crate::config::AwsConfig;
use crate::domain::destination::{Auth, Destination, ExternalId, Region, RoleArn, home_region_of};
use crate::domain::diagnosis;
use crate::domain::outcome::{AwsError, Class, Failure, Reason};
use crate::metrics::Metrics;
use crate::runtime::causes::{causes, innermost};

/// An assumed role that assumes another one gets an hour at most
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining>).
const SESSION_DURATION_SECONDS: i32 = 3600;
/// Time-out of AssumeRole, its retries included.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest role session name that STS accepts.
const MAX_SESSION_NAME_LENGTH: usize = 64;

pub(super) struct RoleRequest<'a> {
    pub(super) arn: &'a RoleArn,
    pub(super) external_id: Option<&'a ExternalId>,
    pub(super) destination: &'a Destination,
    pub(super) region: &'a Region,
    /// Session policy, unless none is wanted.
    pub(super) policy: Option<String>,
    /// Retry budget of the destination.
    pub(super) retries: RetryPartition,
}

/// Assumes the role with a session policy that allows no more than this destination needs.
pub(super) async fn assume(
    identity: &WorkerIdentity,
    aws: &AwsConfig,
    role: &RoleRequest<'_>,
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

pub(super) async fn request(
    identity: &WorkerIdentity,
    aws: &AwsConfig,
    role: &RoleRequest<'_>,
) -> Result<Credentials, Failure> {
    let session_name: String =
        format!("consign-{}", role.destination.id).chars().take(MAX_SESSION_NAME_LENGTH).collect();
    let request = client(identity, aws, role)
        .assume_role()
        .role_arn(role.arn.as_str())
        .role_session_name(session_name)
        .set_external_id(role.external_id.map(|id| id.expose().to_owned()))
        .duration_seconds(SESSION_DURATION_SECONDS)
        .set_policy(role.policy.clone());
    let reply = request.send().await.map_err(|error| refused("AssumeRole", &error, Some(role)))?;
    let given =
        reply.credentials.ok_or_else(|| Failure::new(Reason::StsUnavailable, "STS answered without credentials"))?;
    let expires = std::time::SystemTime::try_from(given.expiration).ok();
    let (id, secret, token) = (given.access_key_id, given.secret_access_key, given.session_token);
    Ok(Credentials::new(id, secret, Some(token), expires, "consign assumed role"))
}

/// Returns true if the session policy and the tags of the session are too large together.
pub(super) fn is_policy_too_large(failure: &Failure) -> bool {
    failure.answer.as_deref().is_some_and(|answer| answer.code.starts_with("PackedPolicyTooLarge"))
}

/// Returns the region in which STS is called: the platform's, else that of the environment, else
/// the home of the identity's partition where that is known, else the destination's.
pub(super) fn sts_region(aws: &AwsConfig, of_destination: Option<&Region>, identity: &WorkerIdentity) -> String {
    let ours = || identity.sdk.region().map(|region| region.as_ref().to_owned());
    let home = || aws.identity_role_arn.as_ref().map(|role| home_region_of(role.partition()).to_owned());
    let theirs = || of_destination.map(|region| region.as_str().to_owned());
    let named = aws.region.as_ref().map(|region| region.as_str().to_owned());
    named.or_else(ours).or_else(home).or_else(theirs).unwrap_or_else(|| "us-east-1".to_owned())
}

/// Returns a client for this one call. Its retry budget is the destination's own: the SDK shares
/// one per region by default, so that one failing tenant would starve the others.
fn client(identity: &WorkerIdentity, aws: &AwsConfig, role: &RoleRequest<'_>) -> aws_sdk_sts::Client {
    let mut config = aws_sdk_sts::config::Builder::from(&identity.sdk)
        .region(aws_sdk_sts::config::Region::new(sts_region(aws, Some(role.region), identity)))
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .retry_partition(role.retries.clone());
    set_sts_endpoint(&mut config, aws);
    aws_sdk_sts::Client::from_conf(config.build())
}

/// Sets the configured endpoint. The SDK combines none with FIPS or dual-stack endpoints.
pub(super) fn set_sts_endpoint(config: &mut aws_sdk_sts::config::Builder, aws: &AwsConfig) {
    if let Some(url) = &aws.sts_endpoint_url {
        config.set_endpoint_url(Some(endpoint(url))).set_use_fips(Some(false)).set_use_dual_stack(Some(false));
    }
}

/// Failed AssumeRole.
pub(crate) type AssumeRoleRefusal = SdkError<AssumeRoleError>;

/// Classifies an error of AssumeRole as a session does; `None` for a destination without a role.
pub(crate) fn classify_refusal(error: &AssumeRoleRefusal, destination: &Destination) -> Option<Failure> {
    let Auth::IamRole { role_arn, external_id } = &destination.auth else { return None };
    let role = RoleRequest {
        arn: role_arn,
        external_id: external_id.as_ref(),
        destination,
        region: &destination.region,
        policy: None,
        retries: RetryPartition::new("fuzzing"),
    };
    Some(refused("AssumeRole", error, Some(&role)))
}

/// Classifies an error of STS: the fault of the trust policy, of the worker's identity, or of STS.
pub(super) fn refused<E>(operation: &'static str, error: &SdkError<E>, role: Option<&RoleRequest<'_>>) -> Failure
where
    E: ProvideErrorMetadata + std::error::Error + RequestId + 'static,
{
    let mut answer = error_response(operation, error);
    if answer.code.is_empty() {
        answer.code = written(error, "Code").filter(|code| AwsError::is_code(code)).unwrap_or_default();
    }
    let mut failure = match &answer {
        _ if error.raw_response().is_some_and(is_web_page) => {
            let message = format!("a proxy or web server answered instead of STS, with a web page ({})", answer.status);
            Failure::new(Reason::StsUnavailable, message)
                .hint("let the worker reach STS directly (it uses no proxy), and check aws.sts_endpoint_url")
        }
        // Ceph refuses a session policy in this way.
        AwsError { code, status: 400, .. } if code.is_empty() && role.is_some() => {
            let reason = Reason::AssumeRoleDenied;
            let hint = role.map(|role| diagnosis::hint(reason, &answer, role.destination)).unwrap_or_default();
            let message = "STS refuses the request for the role without a reason (400)";
            Failure { answer: Some(Box::new(answer)), ..Failure::new(reason, message).hint(hint) }
        }
        AwsError { code, status, .. } if !code.is_empty() || matches!(status, 401 | 403 | 429) => {
            if error.message().is_none() {
                let message = written(error, "Message");
                answer = AwsError::new(operation, answer.status, Some(&answer.code), message.as_deref());
            }
            let assumed = role.map(|role| AssumedRole { arn: role.arn, region: role.region });
            let (reason, message) = sts_table(&answer, assumed);
            let hint = role.map(|role| diagnosis::hint(reason, &answer, role.destination)).unwrap_or_default();
            Failure { answer: Some(Box::new(answer)), ..Failure::new(reason, message).hint(hint) }
        }
        _ if causes(error).any(<dyn std::error::Error>::is::<CredentialsError>) => {
            let message = format!("the worker has no AWS credentials of its own: {}", credentials_problem(error));
            Failure::new(Reason::IdentityDenied, message)
                .hint("give the worker a role or a key in the standard AWS way; no action is needed from the customer")
        }
        _ => Failure::new(Reason::StsUnavailable, "STS could not be reached, or answered without a reason"),
    };
    failure.aws_request_id = AwsError::request_id(error.request_id());
    failure
}

/// Returns an element of the error body. Some servers wrap code and message differently from AWS,
/// and the SDK finds neither.
fn written<E>(error: &SdkError<E>, element: &str) -> Option<String> {
    let body = std::str::from_utf8(error.raw_response()?.body().bytes()?).ok()?;
    let (_, rest) = body.split_once(&format!("<{element}>"))?;
    rest.split_once(&format!("</{element}>")).map(|(text, _)| text.trim().to_owned())
}

/// Returns what the SDK says about credentials that it can't load: the answer of STS to the
/// AssumeRole of the identity, or the innermost cause.
fn credentials_problem(error: &(dyn std::error::Error + 'static)) -> String {
    let refused = causes(error).find_map(|cause| cause.downcast_ref::<AssumeRoleError>());
    let Some(refused) = refused else { return innermost(error).to_string() };
    let (code, message) = (refused.code().unwrap_or("an error"), refused.message().unwrap_or_default());
    format!("STS answers {code} to the AssumeRole of its role: {message}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use aws_sdk_sts::operation::get_caller_identity::GetCallerIdentityError;
    use aws_smithy_runtime_api::client::http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
    use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
    use aws_smithy_types::body::SdkBody;

    use super::*;
    use crate::domain::destination::DestinationId;
    use crate::domain::destination::raw::{RawAuth, RawDestination};
    use crate::session::caller::caller;

    /// Remembers the hosts that are called, and lets nobody in.
    #[derive(Debug, Clone, Default)]
    struct ClosedSts(Arc<Mutex<Vec<String>>>);

    impl HttpConnector for ClosedSts {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let url = url::Url::parse(request.uri()).unwrap();
            self.0.lock().unwrap().push(url.host_str().unwrap().to_owned());
            let denial = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>";
            HttpConnectorFuture::ready(Ok(HttpResponse::new(403.try_into().unwrap(), SdkBody::from(denial))))
        }
    }

    impl HttpClient for ClosedSts {
        fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
            SharedHttpConnector::new(self.clone())
        }
    }

    /// The hosts that AssumeRole and GetCallerIdentity go to.
    async fn hosts(aws: &AwsConfig, fips: bool, dual_stack: bool) -> Vec<String> {
        let sts = ClosedSts::default();
        let mut identity = WorkerIdentity::fixed("AKIA", "secret", &Region::parse("us-east-1").unwrap());
        let sdk = identity.sdk.into_builder().http_client(sts.clone());
        identity.sdk = sdk.use_fips(fips).use_dual_stack(dual_stack).build();
        let auth = RawAuth { role_arn: Some("arn:aws:iam::123456789012:role/r".into()), ..RawAuth::default() };
        let raw =
            RawDestination { bucket: "acme".into(), region: "us-east-1".into(), auth, ..RawDestination::default() };
        let destination = raw.validate(DestinationId::parse("acme").unwrap()).unwrap();
        let Auth::IamRole { role_arn, .. } = &destination.auth else { panic!("{:?}", destination.auth) };
        let role = RoleRequest {
            arn: role_arn,
            external_id: None,
            destination: &destination,
            region: &destination.region,
            policy: None,
            retries: RetryPartition::new("test"),
        };
        assert!(request(&identity, aws, &role).await.is_err());
        assert!(caller(&identity, aws, None, None, 1).await.is_err());
        let asked = sts.0.lock().unwrap();
        asked.clone()
    }

    #[tokio::test]
    async fn fips_and_dual_stack_hold_for_sts_unless_an_endpoint_is_set() {
        let url = url::Url::parse("https://sts.store.example").ok();
        let store = AwsConfig { sts_endpoint_url: url, ..AwsConfig::default() };
        for (fips, dual_stack, host) in [
            (false, false, "sts.us-east-1.amazonaws.com"),
            (true, false, "sts-fips.us-east-1.amazonaws.com"),
            (false, true, "sts.us-east-1.api.aws"),
            (true, true, "sts-fips.us-east-1.api.aws"),
        ] {
            assert_eq!(hosts(&AwsConfig::default(), fips, dual_stack).await, [host, host]);
            assert_eq!(hosts(&store, fips, dual_stack).await, ["sts.store.example", "sts.store.example"]);
        }
    }

    /// The reason for an answer in whose body the SDK found no code.
    fn reason(status: u16, body: &str) -> Reason {
        let raw = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
        let error = SdkError::service_error(GetCallerIdentityError::unhandled("no code"), raw);
        refused("GetCallerIdentity", &error, None).reason
    }

    #[test]
    fn a_code_that_is_wrapped_otherwise_is_found() {
        let wrapped = |code| {
            let said = "<Message>Signature expired: it was made long ago</Message>";
            reason(
                403,
                &format!("<ErrorResponse><Errors><Error><Code>{code}</Code>{said}</Error></Errors></ErrorResponse>"),
            )
        };
        assert_eq!(wrapped("InvalidClientTokenId"), Reason::IdentityDenied);
        assert_eq!(wrapped("SignatureDoesNotMatch"), Reason::ClockSkew);
        assert_eq!(wrapped("Throttling"), Reason::Throttled);
        assert_eq!(wrapped("<script>"), Reason::IdentityDenied, "no code: the status says it");
    }

    #[test]
    fn a_web_page_is_not_an_answer_of_sts() {
        let mut raw = HttpResponse::new(403.try_into().unwrap(), SdkBody::from("<html>"));
        raw.headers_mut().insert("content-type", "text/html");
        let error = SdkError::service_error(GetCallerIdentityError::unhandled("no code"), raw);
        let failure = refused("AssumeRole", &error, None);
        assert_eq!(failure.reason, Reason::StsUnavailable);
        assert!(failure.message.contains("proxy"), "{}", failure.message);
    }

    #[test]
    fn without_a_code_the_status_says_it() {
        assert_eq!(reason(403, ""), Reason::IdentityDenied);
        assert_eq!(reason(401, "denied"), Reason::IdentityDenied);
        assert_eq!(reason(429, ""), Reason::Throttled);
        assert_eq!(reason(503, "<html>"), Reason::StsUnavailable);
        assert_eq!(reason(404, "<html>"), Reason::StsUnavailable);
    }
}
