//! Multipart upload: create or resume, bounded parallel parts, complete. On every failure after
//! create it is aborted, or left open with its checkpoint in the [`super::OpenUpload`] if another
//! attempt can resume it.

mod abort;
mod date;
mod open;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};

use super::call::Calls;
use super::concurrency::{PartConcurrency, PartPermit};
use super::part::Part;
use super::{Target, UploadControl, Uploaded};
use crate::domain::job::lease::{PartDone, PartSizes, SourceMark};
use crate::domain::outcome::{Class, Failure, Reason};
use crate::telemetry::spans;
pub(super) use abort::{Aborted, abort_upload, log_foreign_checkpoint};
pub(super) use open::MultipartUpload;

/// Time that parts in flight get when the upload is handed off.
const HAND_OFF_TIMEOUT: Duration = Duration::from_secs(3);

/// Data that another worker needs to resume, beside the upload itself.
#[derive(Debug, Clone)]
pub(super) struct UploadRecord {
    pub(super) sizes: PartSizes,
    pub(super) source: SourceMark,
}

/// Parts to send.
pub(super) struct PartStream<S> {
    /// Parts that S3 does not have yet, in order.
    pub(super) parts: S,
    /// Most parts in flight: a limit for parts in memory, `usize::MAX` for parts of a file.
    pub(super) most: usize,
    /// Record of a resumable upload; `None` if nobody could resume it.
    pub(super) record: Option<UploadRecord>,
}

/// Uploads `parts_to_send` as one object, or as the rest of one. `prove` runs once all parts are
/// accepted and before the object becomes visible; its error fails the upload.
pub(super) async fn upload<S, P>(
    calls: &Calls,
    target: &Target<'_>,
    parts_to_send: PartStream<S>,
    control: UploadControl<'_>,
    prove: P,
) -> Result<Uploaded, Failure>
where
    S: Stream<Item = Result<Part, Failure>>,
    P: AsyncFnOnce(u64) -> Result<(), Failure>,
{
    let continuable = parts_to_send.record.is_some();
    let mut open = match control.resume {
        Some(checkpoint) => MultipartUpload::again(calls, control.open_upload, checkpoint),
        // Nothing is begun any more that would only be handed over.
        None if continuable && control.stop.hand_off.is_cancelled() => return Err(draining()),
        None => {
            let created =
                MultipartUpload::create(calls, target, Some((control.open_upload, parts_to_send.record.as_ref())));
            spans::within(target.span("CreateMultipartUpload"), created).await?
        }
    };
    target.progress.had(open.done().iter().map(|part| part.length).sum(), count(open.done()));
    let stop = control.stop;
    let hasty = async {
        stop.hand_off.cancelled().await;
        tokio::time::sleep(HAND_OFF_TIMEOUT).await;
    };
    let sending = async {
        let concurrency = calls.learnt.concurrency(&calls.destination);
        let sent = send_all(&open, target, parts_to_send, stop, &concurrency).await?;
        prove(sent.iter().map(|part| part.length).sum()).await?;
        target.enter_gate().await?;
        Ok::<_, Failure>(sent)
    };
    let sent = tokio::select! {
        biased;
        () = stop.cancel.cancelled() => Err(draining()),
        () = hasty, if continuable => Err(draining()),
        sent = sending => sent,
    };
    let ended = match sent {
        Ok(sent) => {
            let span = open.span("CompleteMultipartUpload", None);
            tokio::select! {
                biased;
                // S3 may take minutes; the next attempt completes again, and finds the object if it was completed meanwhile.
                () = stop.cancel.cancelled(), if continuable => Err(draining()),
                ended = spans::within(span, open.complete(target, sent)) => ended,
            }
        }
        Err(_) if open.is_gone() => open.missing(target).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &ended {
        open.end(waits(failure)).await;
    }
    ended
}

fn draining() -> Failure {
    Failure::new(Reason::Shutdown, "the worker is draining")
}

fn count(parts: &[PartDone]) -> u32 {
    u32::try_from(parts.len()).unwrap_or(u32::MAX)
}

/// Returns true if a later attempt may succeed with the same bytes.
fn waits(failure: &Failure) -> bool {
    match failure.class() {
        Class::Transient | Class::Session | Class::Destination | Class::Interrupted | Class::Worker => true,
        Class::Job | Class::Defect => false,
    }
}

async fn send(
    open: &MultipartUpload<'_>,
    target: &Target<'_>,
    part: Part,
    _permit: Option<PartPermit>,
) -> Result<PartDone, Failure> {
    let span = open.span("UploadPart", Some(part.number));
    let sent = spans::within(span, open.send(&part)).await?;
    target.progress.add(sent.length, 1);
    Ok(sent)
}

/// Sends the missing parts and returns all parts in order, those of earlier attempts included.
/// Interrupted by a hand-off, it fails as `shutdown` once the parts in flight have ended.
async fn send_all<S>(
    open: &MultipartUpload<'_>,
    target: &Target<'_>,
    parts_to_send: PartStream<S>,
    stop: &super::StopSignals,
    concurrency: &PartConcurrency,
) -> Result<Vec<PartDone>, Failure>
where
    S: Stream<Item = Result<Part, Failure>>,
{
    let cut_short = AtomicBool::new(false);
    let hand_off = async {
        if parts_to_send.record.is_none() {
            return std::future::pending().await;
        }
        stop.hand_off.cancelled().await;
        cut_short.store(true, Ordering::Relaxed);
    };
    let mut parts = std::pin::pin!(parts_to_send.parts.take_until(hand_off));
    let (mut all, mut in_flight) = (open.done().to_vec(), FuturesUnordered::new());
    let (mut more, mut permit) = (true, None);
    concurrency.upload_begins();
    loop {
        // Kept until a part has come: a source that is not read meanwhile would count as slow.
        if permit.is_none() && more && in_flight.len() < parts_to_send.most {
            permit = concurrency.try_start(in_flight.len());
        }
        tokio::select! {
            biased;
            Some(sent) = in_flight.next() => {
                let sent: PartDone = sent?;
                if more {
                    concurrency.accepted(sent.length, in_flight.len() + 1);
                }
                all.push(sent);
            }
            part = parts.next(), if permit.is_some() => {
                let permit = permit.take();
                more = part.is_some();
                in_flight.extend(part.transpose()?.map(|part| send(open, target, part, permit)));
            }
            else => break,
        }
    }
    all.sort_unstable_by_key(|part| part.number);
    let whole = open.has_all(count(&all));
    if cut_short.load(Ordering::Relaxed) && !whole { Err(draining()) } else { Ok(all) }
}
