use std::sync::Mutex;

use futures_util::TryStreamExt as _;

use super::*;

const TICK: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(50);

fn limits(min_rate: u64) -> Limits {
    Limits { window: WINDOW, first_wait: TICK, ..Limits::new(min_rate) }
}

/// An origin whose further answers are laid down; it notes from where they were asked for.
struct Laid {
    rests: Mutex<Vec<Result<Rest, Failure>>>,
    asked: std::sync::Arc<Mutex<Vec<u64>>>,
}

impl Origin for Laid {
    fn name(&self) -> String {
        "laid".into()
    }

    fn reopen(&self, from: u64) -> BoxFuture<'_, Result<Rest, Failure>> {
        self.asked.lock().unwrap().push(from);
        let mut rests = self.rests.lock().unwrap();
        let rest = if rests.is_empty() { Err(unavailable()) } else { rests.remove(0) };
        Box::pin(std::future::ready(rest))
    }
}

fn unavailable() -> Failure {
    Failure::new(Reason::SourceUnavailable, "unavailable")
}

/// A body of items, each after its delay.
fn body(items: Vec<(Duration, Result<&'static str, &str>)>) -> Body {
    let items: Vec<_> =
        items.into_iter().map(|(d, item)| (d, item.map(Bytes::from).map_err(ToOwned::to_owned))).collect();
    Box::pin(stream::iter(items).then(|(delay, item)| async move {
        tokio::time::sleep(delay).await;
        item
    }))
}

fn at_once(items: &[Result<&'static str, &'static str>]) -> Body {
    body(items.iter().map(|item| (Duration::ZERO, *item)).collect())
}

struct Run {
    text: String,
    ended: Option<Failure>,
    asked: Vec<u64>,
}

async fn run(first: Body, length: Option<u64>, rests: Option<Vec<Result<Rest, Failure>>>, min_rate: u64) -> Run {
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let resumable = rests.is_some();
    let origin = Laid { rests: Mutex::new(rests.unwrap_or_default()), asked: std::sync::Arc::clone(&asked) };
    let first = Rest { body: first, length };
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
    Run { text, ended, asked }
}

fn rest(items: &[Result<&'static str, &'static str>]) -> Rest {
    Rest { body: at_once(items), length: None }
}

#[tokio::test]
async fn goes_on_at_the_byte_where_it_broke() {
    let rests = vec![Ok(rest(&[Ok("c"), Err("reset")])), Err(unavailable()), Ok(rest(&[Ok("def")]))];
    let run = run(at_once(&[Ok("ab"), Err("reset")]), Some(6), Some(rests), 0).await;
    assert!(run.ended.is_none());
    assert_eq!((run.text.as_str(), run.asked), ("abcdef", vec![2, 3, 3]));
}

#[tokio::test]
async fn a_clean_end_before_the_length_is_a_break() {
    let whole = run(at_once(&[Ok("ab")]), Some(3), Some(vec![Ok(rest(&[Ok("c")]))]), 0).await;
    assert_eq!((whole.text.as_str(), whole.asked), ("abc", vec![2]));
    let broken = run(at_once(&[Ok("ab")]), Some(3), None, 0).await;
    assert_eq!(broken.ended.unwrap().reason, Reason::SourceUnavailable);
}

#[tokio::test]
async fn without_ranges_a_break_is_the_end() {
    let run = run(at_once(&[Ok("ab"), Err("connection reset")]), Some(6), None, 0).await;
    let failure = run.ended.unwrap();
    assert_eq!((failure.reason, run.asked.len()), (Reason::SourceUnavailable, 0));
    assert_eq!(failure.message, "laid broke off after 2 bytes: connection reset");
}

#[tokio::test]
async fn gives_up_after_a_few_tries() {
    let run = run(at_once(&[Err("reset")]), None, Some(Vec::new()), 0).await;
    assert_eq!(run.ended.unwrap().reason, Reason::SourceUnavailable);
    assert_eq!(run.asked.len(), REOPENINGS as usize);
}

#[tokio::test]
async fn what_time_does_not_heal_is_not_tried_again() {
    let changed = Err(Failure::new(Reason::SourceChanged, "changed"));
    let run = run(at_once(&[Err("reset")]), None, Some(vec![changed]), 0).await;
    assert_eq!((run.ended.unwrap().reason, run.asked.len()), (Reason::SourceChanged, 1));
}

#[tokio::test]
async fn a_long_wait_is_left_to_the_queue() {
    let patience = Some(LONGEST_WAIT + TICK);
    let later = Err(Failure { retry_after: patience, ..unavailable() });
    let run = run(at_once(&[Err("reset")]), None, Some(vec![later]), 0).await;
    assert_eq!((run.ended.unwrap().retry_after, run.asked.len()), (patience, 1));
}

#[tokio::test]
async fn a_length_learnt_later_counts() {
    let learnt = Rest { length: Some(3), ..rest(&[Ok("b")]) };
    let run = run(at_once(&[Ok("a"), Err("reset")]), None, Some(vec![Ok(learnt)]), 0).await;
    assert_eq!((run.text.as_str(), run.ended.unwrap().reason), ("ab", Reason::SourceUnavailable));
}

#[tokio::test]
async fn progress_renews_the_patience() {
    let long: &'static str = "x".repeat(usize::try_from(PROGRESS).unwrap()).leak();
    let rests = (0..3 * REOPENINGS).map(|_| Ok(rest(&[Ok(long), Err("reset")]))).chain([Ok(rest(&[]))]).collect();
    let run = run(at_once(&[Err("reset")]), None, Some(rests), 0).await;
    assert!(run.ended.is_none());
    assert_eq!(run.text.len() as u64, u64::from(3 * REOPENINGS) * PROGRESS);
}

#[tokio::test]
async fn dribbling_and_silence_are_slow() {
    let dribble = stream::repeat(()).then(|()| async {
        tokio::time::sleep(TICK).await;
        Ok(Bytes::from_static(b"x"))
    });
    assert_eq!(run(Box::pin(dribble), None, None, 1 << 20).await.ended.unwrap().reason, Reason::SourceSlow);
    let silence = run(Box::pin(stream::pending()), None, Some(Vec::new()), 0).await.ended.unwrap();
    assert_eq!(silence.reason, Reason::SourceSlow, "even without a least rate");
    assert!(silence.message.starts_with("laid is too slow: 0 bytes in 50ms"), "{}", silence.message);
}

/// However late the runtime is: a byte was due in every window.
#[tokio::test]
async fn at_the_least_rate_it_is_not_slow() {
    let steady = (0..8).map(|_| (WINDOW / 3, Ok("x"))).collect();
    assert!(run(body(steady), None, None, 20).await.ended.is_none());
}

#[tokio::test]
async fn time_that_the_consumer_takes_does_not_count() {
    let origin = Laid { rests: Mutex::default(), asked: std::sync::Arc::default() };
    let limits = Limits { window: Duration::from_secs(1), ..limits(1 << 20) };
    let mut chunks = chunks(Box::new(origin), rest(&[Ok("x"), Ok("y"), Ok("z")]), 0, false, limits);
    chunks.try_next().await.unwrap();
    tokio::time::sleep(limits.window + TICK).await;
    assert_eq!(chunks.try_collect::<Vec<_>>().await.unwrap().concat(), b"yz");
}
