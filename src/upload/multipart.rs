//! A multipart upload: create or go on, bounded parallel parts, complete; on every failing path after create it is aborted, or left
//! with its checkpoint in the journal where another attempt can continue it.

mod abort;
mod date;
mod open;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};

use super::call::Calls;
use super::part::Part;
use super::{Course, Target, Uploaded};
use crate::domain::job::lease::{PartDone, PartSizes, SourceMark};
use crate::domain::outcome::{Class, Failure, Reason};
use crate::telemetry::spans;
pub(super) use abort::{Aborted, abort_upload};
pub(super) use open::Open;

/// How long parts in flight may still take when the upload is handed over.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);

/// What another worker needs to know beside the upload itself.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) sizes: PartSizes,
    pub(super) source: SourceMark,
}

/// The parts to be sent, and how.
pub(super) struct Pieces<S> {
    /// Those that S3 does not have yet, in order.
    pub(super) parts: S,
    /// The most in flight.
    pub(super) concurrency: usize,
    /// What makes the upload one that can be continued; `None` where nobody could.
    pub(super) record: Option<Record>,
}

/// Uploads `pieces` as one object, or the rest of one. `prove` runs when all parts are there and before anything becomes
/// visible: its error is the upload's.
pub(super) async fn upload<S, P>(
    calls: &Calls,
    target: &Target<'_>,
    pieces: Pieces<S>,
    course: Course<'_>,
    prove: P,
) -> Result<Uploaded, Failure>
where
    S: Stream<Item = Result<Part, Failure>>,
    P: AsyncFnOnce(u64) -> Result<(), Failure>,
{
    let continuable = pieces.record.is_some();
    let mut open = match course.resume {
        Some(checkpoint) => Open::again(calls, course.journal, checkpoint),
        // Nothing is begun any more that would only be handed over.
        None if continuable && course.stop.hand_off.is_cancelled() => return Err(draining()),
        None => {
            let created = Open::create(calls, target, Some((course.journal, pieces.record.as_ref())));
            spans::within(target.span("CreateMultipartUpload"), created).await?
        }
    };
    target.progress.had(open.done().iter().map(|part| part.length).sum(), count(open.done()));
    let stop = course.stop;
    let hasty = async {
        stop.hand_off.cancelled().await;
        tokio::time::sleep(HAND_OVER_PATIENCE).await;
    };
    let sending = async {
        let sent = send_all(&open, target, pieces, stop).await?;
        prove(sent.iter().map(|part| part.length).sum()).await?;
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
                // S3 may take minutes; whoever goes on asks again, and finds the object where it was completed meanwhile.
                () = stop.cancel.cancelled(), if continuable => Err(draining()),
                ended = spans::within(span, open.complete(target, sent)) => ended,
            }
        }
        Err(_) if open.is_gone() => open.vanished(target).await,
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

/// Whether a later attempt may still do better with the same bytes.
fn waits(failure: &Failure) -> bool {
    match failure.class() {
        Class::Transient | Class::Session | Class::Destination | Class::Interrupted | Class::Worker => true,
        Class::Job | Class::Defect => false,
    }
}

/// Sends what is missing; answers with all parts in order, those of earlier attempts included. Cut short by a hand-over, it fails
/// as `shutdown` once the parts in flight have ended.
async fn send_all<S>(
    open: &Open<'_>,
    target: &Target<'_>,
    pieces: Pieces<S>,
    stop: &super::StopSignals,
) -> Result<Vec<PartDone>, Failure>
where
    S: Stream<Item = Result<Part, Failure>>,
{
    let cut_short = AtomicBool::new(false);
    let hand_off = async {
        if pieces.record.is_none() {
            return std::future::pending().await;
        }
        stop.hand_off.cancelled().await;
        cut_short.store(true, Ordering::Relaxed);
    };
    let sent: Vec<PartDone> = pieces
        .parts
        .take_until(hand_off)
        .map(|part| async move {
            let part = part?;
            let span = open.span("UploadPart", Some(part.number));
            let sent = spans::within(span, open.send(&part)).await?;
            target.progress.add(sent.length, 1);
            Ok::<_, Failure>(sent)
        })
        .buffer_unordered(pieces.concurrency)
        .try_collect()
        .await?;
    let mut all = open.done().to_vec();
    all.extend(sent);
    all.sort_unstable_by_key(|part| part.number);
    let whole = open.has_all(count(&all));
    if cut_short.load(Ordering::Relaxed) && !whole { Err(draining()) } else { Ok(all) }
}
