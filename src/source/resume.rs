//! Reading a body over the network: the least rate, and going on at the byte where a connection broke.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, timeout};

use super::Chunks;
use crate::domain::job::lease::SourceMark;
use crate::domain::outcome::{Class, Failure, Reason};
use crate::runtime::retry::Retry;

/// The bytes of one response; an error says in plain words how the connection broke.
pub(super) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// A source as its origin first answered for it.
pub(super) struct Opened {
    /// The whole length, where the origin tells it.
    pub(super) length: Option<u64>,
    /// The entity tag, weak ones too.
    pub(super) etag: Option<String>,
    /// Whether the origin has ranges and a strong validator.
    pub(super) resumable: bool,
    /// All bytes, or those from the asked byte on.
    pub(super) chunks: Chunks,
}

impl Opened {
    /// The tag, if equal tags mean equal bytes.
    pub(super) fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| is_strong(etag))
    }

    /// Itself if it is the content that `mark` names, and can be gone on with once more.
    pub(super) fn if_is(self, mark: &SourceMark) -> Option<Self> {
        let same_tag = self.strong_etag() == Some(&mark.validator);
        let same_length = self.length.is_none() || mark.length.is_none() || self.length == mark.length;
        (self.resumable && same_tag && same_length).then_some(self)
    }
}

/// Whether equal tags mean equal bytes.
pub(super) fn is_strong(etag: &str) -> bool {
    !etag.starts_with("W/")
}

/// The rest of a content that is proven to be the same.
pub(super) struct Rest {
    /// From the asked byte on.
    pub(super) body: Body,
    /// The whole length, where the origin tells it.
    pub(super) length: Option<u64>,
}

/// Where a body can be had again.
pub(super) trait Origin: Send + Sync {
    /// What it is called in messages; without a query.
    fn name(&self) -> String;

    /// The same content from byte `from` on. Fails as `source_changed` if it is not the same any more.
    fn reopen(&self, from: u64) -> BoxFuture<'_, Result<Rest, Failure>>;
}

/// The patience with an origin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes a second below which a source counts as stuck.
    pub(super) min_rate: u64,
    /// Over which time the rate is taken. Only the time spent waiting for the source counts.
    pub(super) window: Duration,
    /// Until the head of a response is there, connecting included.
    pub(super) head: Duration,
    /// The first wait before a broken connection is made again.
    pub(super) first_wait: Duration,
}

impl Limits {
    /// The usual patience.
    pub(super) fn new(min_rate: u64) -> Self {
        let seconds = Duration::from_secs;
        Self { min_rate, window: seconds(30), head: seconds(60), first_wait: Duration::from_millis(500) }
    }

    /// The head of a response, unless it takes too long: `source_unavailable`.
    pub(super) async fn in_time<T>(
        &self,
        name: impl fmt::Display,
        request: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        timeout(self.head, request).await.map_err(|_| {
            let patience = humantime::format_duration(self.head);
            Failure::new(Reason::SourceUnavailable, format!("{name} did not answer within {patience}"))
        })
    }

    fn retry(&self) -> Retry {
        Retry::bounded(REOPENINGS, self.first_wait, LONGEST_WAIT)
    }
}

/// Tries to go on without getting at least [`PROGRESS`] bytes further.
const REOPENINGS: u32 = 5;
const PROGRESS: u64 = 8 * 1024 * 1024;
/// An origin that asks for more patience than this gets it from the queue, not from a slot.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// All bytes of a response, which begins at byte `from`. Where the origin is `resumable`, a broken connection is made again
/// and read on, a few times between two stretches of progress; otherwise it fails as `source_unavailable`. Under the least
/// rate it fails as `source_slow`.
pub(super) fn chunks(origin: Box<dyn Origin>, rest: Rest, from: u64, resumable: bool, limits: Limits) -> Chunks {
    let pace = Pace { limits, waited: Duration::ZERO, bytes: 0 };
    let reading = Reading { origin, rest, resumable, offset: from, since_break: 0, retry: limits.retry(), pace };
    Box::pin(stream::try_unfold(reading, |mut reading| async move {
        Ok(reading.next().await?.map(|chunk| (chunk, reading)))
    }))
}

struct Reading {
    origin: Box<dyn Origin>,
    rest: Rest,
    resumable: bool,
    offset: u64,
    since_break: u64,
    retry: Retry,
    pace: Pace,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let item = self.pace.next(&mut self.rest.body).await.map_err(|failure| self.named(failure))?;
            let broken = match item {
                Some(Ok(chunk)) => {
                    self.advance(chunk.len() as u64);
                    return Ok(Some(chunk));
                }
                _ if self.rest.length == Some(self.offset) => return Ok(None),
                None if self.rest.length.is_none_or(|length| self.offset > length) => return Ok(None),
                None => "the connection was closed".to_owned(),
                Some(Err(cause)) => cause,
            };
            self.resume(&broken).await?;
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.offset += bytes;
        self.since_break += bytes;
        if self.since_break >= PROGRESS {
            self.retry = self.pace.limits.retry();
        }
    }

    async fn resume(&mut self, cause: &str) -> Result<(), Failure> {
        let message = format!("{} broke off after {} bytes: {cause}", self.origin.name(), self.offset);
        let mut last = Failure::new(Reason::SourceUnavailable, message);
        self.since_break = 0;
        while self.resumable && last.class() == Class::Transient && last.retry_after.is_none_or(|a| a <= LONGEST_WAIT) {
            let Some(wait) = self.retry.next_wait(last.retry_after) else { break };
            tracing::debug!(source = self.origin.name(), from = self.offset, ?wait, "source is reopened");
            tokio::time::sleep(wait).await;
            match self.origin.reopen(self.offset).await {
                Ok(rest) => {
                    self.rest = Rest { body: rest.body, length: self.rest.length.or(rest.length) };
                    return Ok(());
                }
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    fn named(&self, mut failure: Failure) -> Failure {
        failure.message = format!("{} {}", self.origin.name(), failure.message);
        failure
    }
}

/// Measures the time spent waiting for the source; while the consumer is busy no time passes here.
struct Pace {
    limits: Limits,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    async fn next(&mut self, body: &mut Body) -> Result<Option<Result<Bytes, String>>, Failure> {
        loop {
            let started = Instant::now();
            let left = self.limits.window.saturating_sub(self.waited);
            let item = timeout(left, body.next()).await;
            self.waited = if item.is_ok() { self.waited + started.elapsed() } else { self.limits.window };
            if let Ok(Some(Ok(chunk))) = &item {
                self.bytes += chunk.len() as u64;
            }
            if self.waited >= self.limits.window {
                self.end_window()?;
            }
            if let Ok(item) = item {
                return Ok(item);
            }
        }
    }

    fn end_window(&mut self) -> Result<(), Failure> {
        let Self { limits, bytes, .. } = self;
        let least = u128::from(limits.min_rate) * limits.window.as_millis() / 1000;
        if u128::from(*bytes) < least.max(1) {
            let message = format!(
                "is too slow: {bytes} bytes in {} of waiting, at least {} bytes a second are expected (upload.min_rate)",
                humantime::format_duration(limits.window),
                limits.min_rate
            );
            return Err(Failure::new(Reason::SourceSlow, message));
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
