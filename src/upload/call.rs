//! One call of S3 with its retries: transient answers, and expired credentials.
//!
//! This is the only layer that retries a request. The retries of the SDK are off, so that it is
//! known here whether an earlier try may have taken effect.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use tokio::time::timeout;

use super::aborts::BackgroundAborts;
use super::classify::{CallError, ErrorSignal, classify, unanswered};
use super::learnt::LearntStores;
use crate::aws::errors::status_label;
use crate::domain::destination::Destination;
use crate::domain::outcome::{Class, Failure, Reason};
use crate::metrics::Metrics;
use crate::runtime::retry::Retry;
use crate::session::{S3Session, Sessions};

/// Retries of one call inside the process, after the first try.
const MAX_RETRIES: u32 = 3;
/// Mean of the first retry delay. A server that asks for more than [`MAX_RETRY_DELAY`] is retried
/// by a delayed redelivery instead.
const BASE_RETRY_DELAY: Duration = Duration::from_millis(200);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);
/// Calls that every destination allows, so that their denial may be that of an expired session.
const WRITES: [&str; 4] = ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"];
/// Time-out of every call, beside the time for its bytes.
pub(super) const BASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls into one destination.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    pub(super) sessions: Arc<Sessions>,
    pub(super) destination: Arc<Destination>,
    pub(super) metrics: Arc<Metrics>,
    /// Bytes a second below which a request counts as stuck.
    pub(super) min_rate: u64,
    pub(super) learnt: LearntStores,
    /// Aborts that the calls of an upload leave behind.
    pub(super) aborts: Arc<BackgroundAborts>,
}

impl Calls {
    /// The account that must own the bucket, if one is configured.
    pub(super) fn owner(&self) -> Option<String> {
        self.destination.expected_bucket_owner.as_ref().map(|owner| owner.as_str().to_owned())
    }

    /// Time-out of a try that sends `bytes`, at [`Calls::min_rate`] or faster.
    pub(super) fn limit(&self, bytes: u64) -> Duration {
        BASE_TIMEOUT + Duration::from_secs(bytes / self.min_rate.max(1))
    }

    /// Calls until there is an answer, the retries are used up, or a retry can't help.
    ///
    /// `limit` is the time-out of each try. `ambiguous` of the error is true if any of the tries
    /// may have taken effect.
    pub(super) async fn call<T, E, F, Fut>(
        &self,
        operation: &'static str,
        limit: Duration,
        send: F,
    ) -> Result<T, CallError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        F: Fn(aws_sdk_s3::Client) -> Fut,
        Fut: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let mut retry = Retry::bounded(MAX_RETRIES, BASE_RETRY_DELAY, MAX_RETRY_DELAY);
        let (mut ambiguous, mut renewed) = (false, false);
        let mut session = self.session().await?;
        loop {
            let answer = timeout(limit, send(session.client.clone())).await;
            self.metrics.s3_request(operation, status_label(&answer));
            let mut error = match answer {
                Ok(Ok(value)) => {
                    if WRITES.contains(&operation) {
                        session.accept_write();
                    }
                    return Ok(value);
                }
                Ok(Err(error)) => classify(operation, &error, &self.destination),
                Err(_) => unanswered(operation, Reason::Timeout, "no answer in time"),
            };
            ambiguous |= error.ambiguous;
            error.ambiguous = ambiguous;
            let is_503 = error.failure.answer.as_ref().is_some_and(|answer| answer.status == 503);
            if is_503 || matches!(error.failure.reason, Reason::SlowDown | Reason::Throttled) {
                self.learnt.concurrency(&self.destination).throttled();
            }
            let refused = match error.signal {
                ErrorSignal::Credentials => true,
                ErrorSignal::Denied => WRITES.contains(&operation) && self.sessions.may_have_expired(&session),
                _ => false,
            };
            if refused && !renewed {
                renewed = true;
                session = match self.sessions.renew(&self.destination, &session).await {
                    Ok(renewed) => renewed,
                    // The denial stands: nothing says that the session had expired.
                    Err(_) if error.signal == ErrorSignal::Denied => return Err(error),
                    Err(failure) => return Err(CallError { ambiguous, ..CallError::new(failure) }),
                };
                continue;
            }
            let final_word = matches!(error.signal, ErrorSignal::NoSuchUpload | ErrorSignal::InvalidPart);
            let healable = error.failure.class() == Class::Transient && !final_word;
            let too_long = error.failure.retry_after.is_some_and(|asked| asked > MAX_RETRY_DELAY);
            match retry.next_wait(error.failure.retry_after) {
                Some(wait) if healable && !too_long => tokio::time::sleep(wait).await,
                _ => return Err(error),
            }
            if operation == "UploadPart" {
                self.metrics.part_retried();
            }
            // A long transfer outlives its session: each try asks the cache again. Without one, it stays
            // unknown if an earlier try took effect.
            session = self.session().await.map_err(|error| CallError { ambiguous, ..error })?;
        }
    }

    async fn session(&self) -> Result<Arc<S3Session>, CallError> {
        self.sessions.get(&self.destination).await.map_err(CallError::new)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        error.failure
    }
}
