//! Reading a response body over the network: the minimum rate, and resuming at the byte where a
//! connection broke.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, timeout};

use super::chunks::Chunks;
use super::verify;
use crate::domain::job::lease::SourceMark;
use crate::domain::outcome::{Class, Failure, Reason};
use crate::runtime::retry::Retry;

/// Attempts to reopen a source between two advances of [`RETRY_RESET_BYTES`].
const MAX_REOPENS: u32 = 5;
/// Bytes read without a break after which the attempts are counted from zero.
const RETRY_RESET_BYTES: u64 = 8 * 1024 * 1024;
/// Longest wait before a reopen. If an origin asks for a longer one, the job waits in the queue and
/// not in a slot.
const MAX_REOPEN_WAIT: Duration = Duration::from_secs(15);

/// Bytes of one response. An error describes how the connection broke.
pub(super) type ResponseBody = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// A source as described by the origin's first response.
pub(super) struct OpenedSource {
    /// Length of the whole content, if the origin reports it.
    pub(super) length: Option<u64>,
    /// Entity tag, strong or weak.
    pub(super) etag: Option<String>,
    /// Encoding of the bytes that the origin reports, such as `gzip`.
    pub(super) content_encoding: Option<String>,
    /// True if the transport marks the end of the content. See [`OriginResponse::end_marked`].
    pub(super) end_marked: bool,
    /// True if the origin supports ranges and has a strong validator.
    pub(super) resumable: bool,
    /// All bytes, or those from the requested byte on.
    pub(super) chunks: Chunks,
}

impl OpenedSource {
    /// Returns the entity tag if equal tags mean equal bytes.
    pub(super) fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| is_strong(etag))
    }

    /// Returns itself if it is the content that `checkpoint` identifies and is resumable.
    pub(super) fn matching(self, checkpoint: &SourceMark) -> Option<Self> {
        let same_tag = self.strong_etag() == Some(&checkpoint.validator);
        let same_length = self.length.is_none() || checkpoint.length.is_none() || self.length == checkpoint.length;
        (self.resumable && same_tag && same_length).then_some(self)
    }
}

/// Returns true if equal tags mean equal bytes.
pub(super) fn is_strong(etag: &str) -> bool {
    !etag.starts_with("W/")
}

/// A response with content: the whole, or a range of the same content.
pub(super) struct OriginResponse {
    /// The bytes from the requested one on.
    pub(super) body: ResponseBody,
    /// Length of the whole content, if the origin reports it.
    pub(super) length: Option<u64>,
    /// True if the transport marks the end of the body (chunks, HTTP/2): it then ends without an
    /// error only if it is complete. A body that ends with its connection has no mark.
    pub(super) end_marked: bool,
}

/// A place from which the same content can be requested again.
#[async_trait]
pub(super) trait Origin: Send + Sync {
    /// Returns the name for messages, without a query.
    fn name(&self) -> String;

    /// Requests the same content from byte `from` on. Fails as `source_changed` if the content is
    /// not the same any more, and as `source_unavailable` if that is not certain.
    async fn reopen(&self, from: u64) -> Result<OriginResponse, Failure>;
}

/// Time limits for reading from an origin.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadLimits {
    /// Minimum rate in bytes per second. A slower source counts as stuck.
    pub(super) min_rate: u64,
    /// Period over which the rate is measured. Only the time spent waiting for the source counts.
    pub(super) rate_window: Duration,
    /// Timeout for the head of a response, including the connection.
    pub(super) response_timeout: Duration,
    /// First wait before a source is reopened.
    pub(super) first_reopen_wait: Duration,
}

impl ReadLimits {
    /// Returns the limits of production.
    pub(super) fn new(min_rate: u64) -> Self {
        Self {
            min_rate,
            rate_window: Duration::from_secs(30),
            response_timeout: Duration::from_secs(60),
            first_reopen_wait: Duration::from_millis(500),
        }
    }

    /// Waits for the head of a response. Fails as `source_unavailable` after the timeout.
    pub(super) async fn in_time<T>(
        &self,
        name: impl fmt::Display,
        request: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        timeout(self.response_timeout, request).await.map_err(|_| {
            let limit = humantime::format_duration(self.response_timeout);
            Failure::new(Reason::SourceUnavailable, format!("{name} did not answer within {limit}"))
        })
    }

    fn retry(&self) -> Retry {
        Retry::bounded(MAX_REOPENS, self.first_reopen_wait, MAX_REOPEN_WAIT)
    }
}

/// Returns all bytes of a response that begins at byte `from`.
///
/// If the origin is `resumable` and the connection breaks, the source is reopened at that byte, a
/// few times between two advances; otherwise the stream fails as `source_unavailable`. Below the
/// minimum rate it fails as `source_slow`.
pub(super) fn chunks(
    origin: Box<dyn Origin>,
    response: OriginResponse,
    from: u64,
    resumable: bool,
    limits: ReadLimits,
) -> Chunks {
    let throughput = ThroughputMonitor { limits, waited: Duration::ZERO, bytes: 0 };
    let retry = limits.retry();
    let reader = ResumingReader { origin, response, resumable, offset: from, since_break: 0, retry, throughput };
    Box::pin(stream::try_unfold(
        reader,
        |mut reader| async move { Ok(reader.next().await?.map(|chunk| (chunk, reader))) },
    ))
}

struct ResumingReader {
    origin: Box<dyn Origin>,
    response: OriginResponse,
    resumable: bool,
    offset: u64,
    since_break: u64,
    retry: Retry,
    throughput: ThroughputMonitor,
}

impl ResumingReader {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let item = self.throughput.next(&mut self.response.body).await;
            let named = |failure: &Failure| format!("{} {}", self.origin.name(), failure.message);
            let item = item.map_err(|failure| Failure { message: named(&failure), ..failure })?;
            let cause = match item {
                Some(Ok(chunk)) => {
                    self.advance(chunk.len() as u64);
                    return Ok(Some(chunk));
                }
                _ if self.response.length == Some(self.offset) => return Ok(None),
                None if self.response.length.is_none_or(|length| self.offset > length) => return Ok(None),
                None => "the connection was closed".to_owned(),
                Some(Err(cause)) => cause,
            };
            self.reopen(&cause).await?;
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.offset += bytes;
        self.since_break += bytes;
        if self.since_break >= RETRY_RESET_BYTES {
            self.retry = self.throughput.limits.retry();
        }
    }

    async fn reopen(&mut self, cause: &str) -> Result<(), Failure> {
        let message = format!("{} disconnected after {} bytes: {cause}", self.origin.name(), self.offset);
        let mut last = Failure::new(Reason::SourceUnavailable, message);
        self.since_break = 0;
        while self.resumable && may_reopen(&last) {
            let Some(wait) = self.retry.next_wait(last.retry_after) else { break };
            tracing::debug!(
                event = "source_reopened",
                source = self.origin.name(),
                from = self.offset,
                ?wait,
                "reopening the source"
            );
            tokio::time::sleep(wait).await;
            match self.origin.reopen(self.offset).await {
                Ok(OriginResponse { body, length, end_marked }) => {
                    let length = self.response.length.or(length);
                    if length.is_none() && self.response.end_marked && !end_marked {
                        last = verify::unproven_length();
                        continue;
                    }
                    self.response = OriginResponse { body, length, end_marked };
                    return Ok(());
                }
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }
}

fn may_reopen(failure: &Failure) -> bool {
    failure.class() == Class::Transient && failure.retry_after.is_none_or(|wait| wait <= MAX_REOPEN_WAIT)
}

/// Measures the rate of a source over the time spent waiting for it. No time passes here while the
/// consumer is busy.
struct ThroughputMonitor {
    limits: ReadLimits,
    waited: Duration,
    bytes: u64,
}

impl ThroughputMonitor {
    async fn next(&mut self, body: &mut ResponseBody) -> Result<Option<Result<Bytes, String>>, Failure> {
        loop {
            let started = Instant::now();
            let left = self.limits.rate_window.saturating_sub(self.waited);
            let item = timeout(left, body.next()).await;
            self.waited = if item.is_ok() { self.waited + started.elapsed() } else { self.limits.rate_window };
            if let Ok(Some(Ok(chunk))) = &item {
                self.bytes += chunk.len() as u64;
            }
            if self.waited >= self.limits.rate_window {
                self.end_window()?;
            }
            if let Ok(item) = item {
                return Ok(item);
            }
        }
    }

    fn end_window(&mut self) -> Result<(), Failure> {
        let ReadLimits { min_rate, rate_window, .. } = self.limits;
        let bytes = self.bytes;
        let minimum = u128::from(min_rate) * rate_window.as_millis() / 1000;
        if u128::from(bytes) < minimum.max(1) {
            let window = humantime::format_duration(rate_window);
            let message = format!(
                "is too slow: {bytes} bytes in {window} of waiting, the minimum is {min_rate} bytes per second \
                 (upload.min_rate)"
            );
            return Err(Failure::new(Reason::SourceSlow, message));
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
