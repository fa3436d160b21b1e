use std::sync::Mutex;

use futures_util::TryStreamExt as _;

use super::*;

const TICK: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(50);

fn limits(min_rate: u64) -> ReadLimits {
    ReadLimits { rate_window: WINDOW, first_reopen_wait: TICK, ..ReadLimits::new(min_rate) }
}

/// An origin with fixed further responses. It records the offsets that were requested.
struct FixedOrigin {
    responses: Mutex<Vec<Result<OriginResponse, Failure>>>,
    asked: std::sync::Arc<Mutex<Vec<u64>>>,
}

#[async_trait]
impl Origin for FixedOrigin {
    fn name(&self) -> String {
        "origin".into()
    }

    async fn reopen(&self, from: u64) -> Result<OriginResponse, Failure> {
        self.asked.lock().unwrap().push(from);
        let mut responses = self.responses.lock().unwrap();
        if responses.is_empty() { Err(unavailable()) } else { responses.remove(0) }
    }
}

fn unavailable() -> Failure {
    Failure::new(Reason::SourceUnavailable, "unavailable")
}

/// Returns a body that yields each item after its delay.
fn body(items: Vec<(Duration, Result<&'static str, &str>)>) -> ResponseBody {
    let items: Vec<_> =
        items.into_iter().map(|(d, item)| (d, item.map(Bytes::from).map_err(ToOwned::to_owned))).collect();
    Box::pin(stream::iter(items).then(|(delay, item)| async move {
        tokio::time::sleep(delay).await;
        item
    }))
}

fn at_once(items: &[Result<&'static str, &'static str>]) -> ResponseBody {
    body(items.iter().map(|item| (Duration::ZERO, *item)).collect())
}

struct ReadResult {
    text: String,
    ended: Option<Failure>,
    asked: Vec<u64>,
}

async fn run(
    first: ResponseBody,
    length: Option<u64>,
    responses: Option<Vec<Result<OriginResponse, Failure>>>,
    min_rate: u64,
) -> ReadResult {
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let resumable = responses.is_some();
    let origin =
        FixedOrigin { responses: Mutex::new(responses.unwrap_or_default()), asked: std::sync::Arc::clone(&asked) };
    let first = OriginResponse { body: first, length, end_marked: true };
    let mut chunks = chunks(Box::new(origin), first, 0, resumable, limits(min_rate));
    let mut text = String::new();
    let ended = loop {
        match chunks.try_next().await {
            Ok(Some(chunk)) => text += std::str::from_utf8(&chunk).unwrap(),
            Ok(None) => break None,
            Err(failure) => break Some(failure),
        }
    };
    let asked = asked.lock().unwrap().clone();
    ReadResult { text, ended, asked }
}

fn rest(items: &[Result<&'static str, &'static str>]) -> OriginResponse {
    OriginResponse { body: at_once(items), length: None, end_marked: true }
}

#[tokio::test]
async fn resumes_at_the_byte_where_the_connection_broke() {
    let rests = vec![Ok(rest(&[Ok("c"), Err("reset")])), Err(unavailable()), Ok(rest(&[Ok("def")]))];
    let run = run(at_once(&[Ok("ab"), Err("reset")]), Some(6), Some(rests), 0).await;
    assert!(run.ended.is_none());
    assert_eq!((run.text.as_str(), run.asked), ("abcdef", vec![2, 3, 3]));
}

#[tokio::test]
async fn a_clean_end_before_the_length_counts_as_a_broken_connection() {
    let whole = run(at_once(&[Ok("ab")]), Some(3), Some(vec![Ok(rest(&[Ok("c")]))]), 0).await;
    assert_eq!((whole.text.as_str(), whole.asked), ("abc", vec![2]));
    let broken = run(at_once(&[Ok("ab")]), Some(3), None, 0).await;
    assert_eq!(broken.ended.unwrap().reason, Reason::SourceUnavailable);
}

#[tokio::test]
async fn without_ranges_a_broken_connection_is_a_failure() {
    let run = run(at_once(&[Ok("ab"), Err("connection reset")]), Some(6), None, 0).await;
    let failure = run.ended.unwrap();
    assert_eq!((failure.reason, run.asked.len()), (Reason::SourceUnavailable, 0));
    assert_eq!(failure.message, "origin disconnected after 2 bytes: connection reset");
}

#[tokio::test]
async fn fails_after_the_last_reopen() {
    let run = run(at_once(&[Err("reset")]), None, Some(Vec::new()), 0).await;
    assert_eq!(run.ended.unwrap().reason, Reason::SourceUnavailable);
    assert_eq!(run.asked.len(), MAX_REOPENS as usize);
}

#[tokio::test]
async fn a_permanent_failure_is_not_retried() {
    let changed = Err(Failure::new(Reason::SourceChanged, "changed"));
    let run = run(at_once(&[Err("reset")]), None, Some(vec![changed]), 0).await;
    assert_eq!((run.ended.unwrap().reason, run.asked.len()), (Reason::SourceChanged, 1));
}

#[tokio::test]
async fn a_long_retry_after_is_left_to_the_queue() {
    let retry_after = Some(MAX_REOPEN_WAIT + TICK);
    let later = Err(Failure { retry_after, ..unavailable() });
    let run = run(at_once(&[Err("reset")]), None, Some(vec![later]), 0).await;
    assert_eq!((run.ended.unwrap().retry_after, run.asked.len()), (retry_after, 1));
}

#[tokio::test]
async fn a_length_reported_later_is_enforced() {
    let learnt = OriginResponse { length: Some(3), ..rest(&[Ok("b")]) };
    let run = run(at_once(&[Ok("a"), Err("reset")]), None, Some(vec![Ok(learnt)]), 0).await;
    assert_eq!((run.text.as_str(), run.ended.unwrap().reason), ("ab", Reason::SourceUnavailable));
}

#[tokio::test]
async fn a_range_whose_end_proves_nothing_is_not_appended() {
    let unmarked = OriginResponse { end_marked: false, ..rest(&[Ok("b")]) };
    let run = run(at_once(&[Ok("a"), Err("reset")]), None, Some(vec![Ok(unmarked), Ok(rest(&[Ok("bc")]))]), 0).await;
    assert_eq!((run.text.as_str(), run.asked, run.ended), ("abc", vec![1, 1], None));
}

#[tokio::test]
async fn progress_resets_the_retry_count() {
    let long: &'static str = "x".repeat(usize::try_from(RETRY_RESET_BYTES).unwrap()).leak();
    let rests = (0..3 * MAX_REOPENS).map(|_| Ok(rest(&[Ok(long), Err("reset")]))).chain([Ok(rest(&[]))]).collect();
    let run = run(at_once(&[Err("reset")]), None, Some(rests), 0).await;
    assert!(run.ended.is_none());
    assert_eq!(run.text.len() as u64, u64::from(3 * MAX_REOPENS) * RETRY_RESET_BYTES);
}

#[tokio::test]
async fn a_trickle_and_silence_are_too_slow() {
    let dribble = stream::repeat(()).then(|()| async {
        tokio::time::sleep(TICK).await;
        Ok(Bytes::from_static(b"x"))
    });
    assert_eq!(run(Box::pin(dribble), None, None, 1 << 20).await.ended.unwrap().reason, Reason::SourceSlow);
    let silence = run(Box::pin(stream::pending()), None, Some(Vec::new()), 0).await.ended.unwrap();
    assert_eq!(silence.reason, Reason::SourceSlow, "even without a minimum rate");
    assert!(silence.message.starts_with("origin is too slow: 0 bytes in 50ms"), "{}", silence.message);
}

/// A byte is due in every window, however late the runtime is.
#[tokio::test]
async fn a_source_at_the_minimum_rate_is_not_too_slow() {
    let steady = (0..8).map(|_| (WINDOW / 3, Ok("x"))).collect();
    assert!(run(body(steady), None, None, 20).await.ended.is_none());
}

#[tokio::test]
async fn the_time_of_the_consumer_does_not_count() {
    let origin = FixedOrigin { responses: Mutex::default(), asked: std::sync::Arc::default() };
    let limits = ReadLimits { rate_window: Duration::from_secs(1), ..limits(1 << 20) };
    let mut chunks = chunks(Box::new(origin), rest(&[Ok("x"), Ok("y"), Ok("z")]), 0, false, limits);
    chunks.try_next().await.unwrap();
    tokio::time::sleep(limits.rate_window + TICK).await;
    assert_eq!(chunks.try_collect::<Vec<_>>().await.unwrap().concat(), b"yz");
}
