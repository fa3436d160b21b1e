//! The worker against a model of all that it works with: broker, S3, STS, source and clock.
//!
//! A story is drawn from a seed: workers, jobs, faults, crashes, rolling restarts; then a calm in which all must come to an end.
//! It is played by the real [`Worker`](crate::worker::Worker) on tokio's paused clock, in one thread, so that a seed is the same story every
//! time, and hours take milliseconds. Rules are checked at every step ([`rules`]), at rest, and at the end ([`check`]).
//!
//! * `CONSIGN_SEED=123 cargo test --lib model::stories -- --nocapture` plays one story and prints what happens.
//! * `CONSIGN_SEEDS=50000` plays more than the usual ones; `CONSIGN_SEEDS=50000..90000` others. The crate is not optimised for tests;
//!   `cargo rustc --lib --profile test -- -C opt-level=1` makes a binary (in `target/debug/deps`) that plays five times as many a second.
//!
//! What is real time or chance in the worker, and harmless here: delivered jobs are forgotten after an hour of real time, and the
//! status page shows the real date. Everything else goes by [`WorkerParts::clock`](crate::worker::WorkerParts) and tokio's clock.
#![allow(
    clippy::struct_excessive_bools,
    clippy::needless_pass_by_value,
    clippy::cast_precision_loss,
    clippy::unused_async,
    reason = "a model for tests: a process has many states, and a broken rule is told by value"
)]

mod broker;
mod bucket;
mod check;
mod clock;
mod cloud;
mod dice;
mod held;
mod link;
mod member;
mod message;
mod parts;
mod plan;
mod play;
mod record;
mod rules;
mod scripted;
mod story;
mod tally;
mod world;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use play::Ending;
use story::Story;
use tally::Tally;
use world::Log;

/// So many stories are played in every run of the tests.
const USUAL: u64 = 2000;
/// A story that takes longer than this, in real time, hangs.
const STUCK: Duration = Duration::from_secs(60);
const THREADS: usize = 2;

/// Plays the story of a seed.
fn tell(seed: u64, log: Log) -> Ending {
    perform(|| Story::new(seed), log)
}

/// Plays one story.
fn perform(story: impl FnOnce() -> Story, log: Log) -> Ending {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ending = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(play::play(story, log))));
    ending.unwrap_or_else(|_| Ending {
        wrong: vec!["the model itself panicked".to_owned()],
        log: Vec::new(),
        tally: Tally::default(),
    })
}

/// Plays all of them on a few threads; the first that breaks a rule ends it.
fn tell_all(seeds: Range<u64>) -> Result<Tally, String> {
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Tally::default());
    let (begun, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (begun, next, total, end) = (begun.clone(), &next, &total, seeds.end);
            scope.spawn(move || tell_some(thread, (next, end), total, &begun));
        }
        drop(begun);
        listen(&heard)
    })?;
    Ok(total.into_inner().unwrap())
}

/// What a thread says of its work: the seed it begins, or what was wrong with one.
type Word = (usize, Result<u64, String>);

fn tell_some(thread: usize, (next, end): (&AtomicU64, u64), total: &Mutex<Tally>, say: &Sender<Word>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || say.send((thread, Ok(seed))).is_err() {
            return;
        }
        let ending = tell(seed, Log::Off);
        total.lock().unwrap().add(&ending.tally);
        if !ending.wrong.is_empty() {
            // The others stop, too.
            next.store(end, Ordering::Relaxed);
            let _ = say.send((thread, Err(report(seed, &ending.wrong))));
            return;
        }
    }
}

/// Hears what the threads say, until all have ended. A story that does not end can't be ended: then the process is.
fn listen(heard: &mpsc::Receiver<Word>) -> Result<(), String> {
    let mut at_work = [None; THREADS];
    let mut wrong = Ok(());
    loop {
        match heard.recv_timeout(Duration::from_secs(1)) {
            Ok((thread, Ok(seed))) => at_work[thread] = Some((seed, Instant::now())),
            Ok((_, Err(report))) => wrong = wrong.and(Err(report)),
            Err(mpsc::RecvTimeoutError::Disconnected) => return wrong,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let stuck = at_work.iter().flatten().find(|(_, since)| since.elapsed() > STUCK);
        if let Some((seed, _)) = stuck {
            eprintln!("{}", report(*seed, &["it does not end".to_owned()]));
            std::process::abort();
        }
    }
}

fn report(seed: u64, wrong: &[String]) -> String {
    let first: Vec<_> = wrong.iter().take(10).map(|what| format!("  {what}")).collect();
    format!(
        "seed {seed} breaks {} rules:\n{}\nreplay it with\n  CONSIGN_SEED={seed} cargo test --lib model::stories -- --nocapture",
        wrong.len(),
        first.join("\n")
    )
}

fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("CONSIGN_SEEDS") else { return 0..USUAL };
    let number = |text: &str| text.trim().parse().expect("CONSIGN_SEEDS is a number, or a range like 5000..9000");
    match asked.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&asked),
    }
}

#[test]
fn stories_end_well() {
    if let Ok(seed) = std::env::var("CONSIGN_SEED") {
        let seed = seed.parse().expect("CONSIGN_SEED is a number");
        let lines = tracing_subscriber::fmt().without_time().with_writer(std::io::stdout).with_ansi(false).finish();
        let ending = tracing::subscriber::with_default(lines, || tell(seed, Log::Printed));
        assert!(ending.wrong.is_empty(), "{}", report(seed, &ending.wrong));
        return println!("{}", ending.tally);
    }
    let begun = Instant::now();
    let seeds = seeds();
    let count = seeds.end.saturating_sub(seeds.start);
    match tell_all(seeds) {
        Ok(tally) => {
            let took = begun.elapsed().as_secs_f64();
            println!("{count} seeds in {took:.1} s, {:.0} a second\n{tally}", count as f64 / took);
        }
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn a_seed_is_the_same_story_every_time() {
    for seed in 0..60 {
        let [first, second] = [0, 1].map(|_| tell(seed, Log::BackfillOutcomes(Vec::new())).log);
        assert!(first.len() > 20, "seed {seed}: nothing happens in it");
        let differs = first.iter().zip(&second).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
