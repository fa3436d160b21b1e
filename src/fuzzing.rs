//! Entry points for the oracles in `tests/fuzz` to parsers that are private to their modules.
//! Nothing in the program calls them.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use http::{HeaderMap, StatusCode, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

use crate::admin::{self, AdminState};
use crate::aws::errors::{StagedReadError, staging_failure};
use crate::config::SourceConfig;
use crate::domain::destination::Destination;
use crate::domain::outcome::Failure;
use crate::source::guard::UrlGuard;
use crate::source::https::response;
use crate::upload::classify::{CallError, classify};
use crate::{queue, session};

/// Longest wait for the rest of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_millis(30);

/// Returns the bytes that lapin reads when these arrive from the broker. `frame_max` is the frame
/// size that the client proposes, in bytes; 0 without a limit.
pub fn sanitized_frames<'a>(frame_max: u32, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    queue::rabbitmq::sanitized(frame_max, chunks)
}

/// Checks the URL of a job or a redirect as before a request.
pub fn check_url(config: &SourceConfig, url: &Url) -> Result<(), Failure> {
    UrlGuard::new(config).check(url)
}

/// Returns true if a name may resolve to this address.
pub fn permits_address(config: &SourceConfig, ip: IpAddr) -> bool {
    UrlGuard::new(config).check_address(ip).is_ok()
}

/// Head of the response of an http source.
#[derive(Debug, Clone)]
pub struct SourceHead {
    /// Status code.
    pub status: StatusCode,
    /// HTTP version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
}

/// Range of a source that was requested.
#[derive(Debug, Clone, Copy)]
pub struct RequestedRange<'a> {
    /// First byte.
    pub from: u64,
    /// Entity tag of the content.
    pub etag: &'a str,
    /// Length of the content, where it is known.
    pub length: Option<u64>,
}

impl SourceHead {
    /// Returns the target of a redirect of `at`; `None` for every other response.
    pub fn redirect_target(&self, at: &Url) -> Result<Option<Url>, Failure> {
        response::redirect_target(at, self.status, &self.headers)
    }

    /// Checks that the response is the whole content.
    pub fn check_whole(&self, at: &Url) -> Result<(), Failure> {
        response::check_whole(at, self.status, &self.headers)
    }

    /// Checks that the response is the requested range; returns the length of the whole content.
    pub fn check_range(&self, at: &Url, range: RequestedRange<'_>) -> Result<Option<u64>, Failure> {
        response::check_range(at, self.status, &self.headers, range.from, range.etag, range.length)
    }

    /// Returns true if the end of a body without a length is marked.
    pub fn marks_its_end(&self) -> bool {
        response::marks_its_end(self.version, &self.headers)
    }
}

/// Classifies an error of S3. Returns true with it if the request may have taken effect.
pub fn classify_s3<E>(
    operation: &'static str,
    error: &SdkError<E, HttpResponse>,
    destination: &Destination,
) -> (Failure, bool)
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let CallError { failure, ambiguous, .. } = classify(operation, error, destination);
    (failure, ambiguous)
}

/// Classifies an error of AssumeRole for a destination with a role.
pub fn classify_sts(error: &session::AssumeRoleRefusal, destination: &Destination) -> Option<Failure> {
    session::classify_refusal(error, destination)
}

/// Classifies an error of a staging bucket.
pub fn classify_staging(error: &StagedReadError) -> Failure {
    staging_failure("s3://staging/key", error)
}

/// Answers the request of a client that sends these bytes, as the admin endpoint on loopback does.
/// The client closes its side after a head that has no end. Cancel safe: nothing outlives it.
pub async fn answer_admin(state: AdminState, request: &[u8]) -> Vec<u8> {
    // Both directions fit, so neither side waits for the other.
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let served = admin::serve_local(server, state, HEAD_TIMEOUT);
    let exchange = async {
        // A server that has answered no longer reads.
        let _ = client.write_all(request).await;
        if !request.windows(2).any(|two| two == b"\n\n") && !request.windows(4).any(|four| four == b"\r\n\r\n") {
            let _ = client.shutdown().await;
        }
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        answer
    };
    let ((), answer) = tokio::join!(served, exchange);
    answer
}

/// Request to a policy of `consign dev`.
#[cfg(feature = "dev")]
#[derive(Debug, Clone, Copy)]
pub struct DevPolicyRequest<'a> {
    /// Action, such as `s3:PutObject`.
    pub action: &'a str,
    /// ARN of the bucket or the object.
    pub resource: &'a str,
    /// Prefix of a listing.
    pub prefix: Option<&'a str>,
}

/// Returns true if the document allows the request in `consign dev`, an error if it is no policy.
#[cfg(feature = "dev")]
pub fn dev_policy_allows(document: &str, request: DevPolicyRequest<'_>) -> Result<bool, String> {
    use crate::dev::cloud::policy::{Asked, Policy};
    let DevPolicyRequest { action, resource, prefix } = request;
    Policy::parse(document).map(|policy| policy.allows(&Asked { action, resource, prefix }))
}
