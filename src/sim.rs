//! Simulation of the worker: a seeded test of the real [`Worker`](crate::worker::Worker) with a
//! simulated broker, S3, STS, source and clock.
//!
//! A [`Scenario`] is drawn from a seed: workers, jobs, faults, crashes and rolling restarts. After
//! [`Scenario::faults_end`] no new fault occurs, and every job must reach its end. The scenario
//! runs on tokio's paused clock in one thread. The same seed therefore gives the same history every
//! time, and hours of simulated time take milliseconds. [`invariants`] are checked at each step;
//! the [`oracle`] checks the workers at rest, each worker that stops, and the final state.
//!
//! * `CONSIGN_SEED=123 cargo test --lib sim::scenarios -- --nocapture` runs one seed and prints its
//!   history.
//! * `CONSIGN_SEEDS=50000` runs more seeds than the default; `CONSIGN_SEEDS=50000..90000` runs a
//!   range. Tests are built without optimisation;
//!   `cargo rustc --lib --profile test -- -C opt-level=1` builds a binary (in `target/debug/deps`)
//!   that runs five times as many seeds per second.
//!
//! Two things in the worker use real time or real randomness and do not affect a scenario:
//! delivered jobs are remembered for one hour of real time, and the status page shows the real
//! date. Everything else uses [`WorkerParts::clock`](crate::worker::WorkerParts) and tokio's clock.
#![allow(
    clippy::struct_excessive_bools,
    clippy::needless_pass_by_value,
    clippy::cast_precision_loss,
    clippy::unused_async,
    reason = "test code: a simulated process has many flags, and violations are passed by value"
)]

mod broker;
mod clock;
mod control;
mod fake_s3;
mod invariants;
mod job_plan;
mod job_record;
mod lease;
mod message;
mod multipart;
mod oracle;
mod queue;
mod rng;
mod runner;
mod scenario;
mod scripted;
mod statistics;
mod transport;
mod worker;
mod world;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use runner::ScenarioResult;
use scenario::Scenario;
use statistics::Statistics;
use world::LogMode;

/// Number of seeds in an ordinary test run.
const DEFAULT_SEEDS: u64 = 2000;
/// Seeds that found faults of the worker, which are corrected, or of an invariant (25,516).
const ONCE_BROKEN: [u64; 5] = [12_244, 20_176, 24_437, 25_516, 43_398];
/// Real time after which a scenario counts as hung.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);
const THREADS: usize = 2;

/// Runs the scenario of a seed.
fn run_seed(seed: u64, log: LogMode) -> ScenarioResult {
    run_scenario(|| Scenario::new(seed), log)
}

/// Runs one scenario. A panic outside the workers is reported as a violation.
fn run_scenario(scenario: impl FnOnce() -> Scenario, log: LogMode) -> ScenarioResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(runner::run(scenario, log))));
    result.unwrap_or_else(|_| ScenarioResult {
        violations: vec!["the simulation itself panicked".to_owned()],
        log: Vec::new(),
        statistics: Statistics::default(),
    })
}

/// Runs all seeds on [`THREADS`] threads. The first violation stops the run.
fn run_seeds(seeds: Range<u64>) -> Result<Statistics, String> {
    let queue = SeedQueue { next: AtomicU64::new(seeds.start), end: seeds.end };
    let total = Mutex::new(Statistics::default());
    let (sender, progress) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (sender, queue, total) = (sender.clone(), &queue, &total);
            scope.spawn(move || run_queued(thread, queue, total, &sender));
        }
        drop(sender);
        watch_progress(&progress)
    })?;
    Ok(total.into_inner().unwrap())
}

/// Seeds that no thread has taken yet.
struct SeedQueue {
    next: AtomicU64,
    end: u64,
}

impl SeedQueue {
    fn take(&self) -> Option<u64> {
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        (seed < self.end).then_some(seed)
    }

    fn clear(&self) {
        self.next.store(self.end, Ordering::Relaxed);
    }
}

/// Progress of a thread: the seed that it starts, or the report of a violation.
struct SeedProgress {
    thread: usize,
    state: Result<u64, String>,
}

/// Runs seeds on one thread until the queue is empty or a seed breaks an invariant.
fn run_queued(thread: usize, queue: &SeedQueue, total: &Mutex<Statistics>, progress: &Sender<SeedProgress>) {
    while let Some(seed) = queue.take() {
        if progress.send(SeedProgress { thread, state: Ok(seed) }).is_err() {
            return;
        }
        let result = run_seed(seed, LogMode::Off);
        total.lock().unwrap().add(&result.statistics);
        if !result.violations.is_empty() {
            // The other threads stop after their current seed.
            queue.clear();
            let _ = progress.send(SeedProgress { thread, state: Err(report(seed, &result.violations)) });
            return;
        }
    }
}

/// Follows the threads until all have stopped. A hung scenario can't be cancelled, so it aborts the
/// process.
fn watch_progress(progress: &Receiver<SeedProgress>) -> Result<(), String> {
    let mut current = [None; THREADS];
    let mut outcome = Ok(());
    loop {
        match progress.recv_timeout(Duration::from_secs(1)) {
            Ok(SeedProgress { thread, state: Ok(seed) }) => current[thread] = Some((seed, Instant::now())),
            Ok(SeedProgress { state: Err(report), .. }) => outcome = outcome.and(Err(report)),
            Err(RecvTimeoutError::Disconnected) => return outcome,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let hung = current.iter().flatten().find(|(_, since)| since.elapsed() > HANG_TIMEOUT);
        if let Some((seed, _)) = hung {
            eprintln!("{}", report(*seed, &["it hangs".to_owned()]));
            std::process::abort();
        }
    }
}

fn report(seed: u64, violations: &[String]) -> String {
    let first: Vec<_> = violations.iter().take(10).map(|violation| format!("  {violation}")).collect();
    format!(
        "seed {seed} breaks {} invariants:\n{}\nreplay it with\n  CONSIGN_SEED={seed} cargo test --lib sim::scenarios -- --nocapture",
        violations.len(),
        first.join("\n")
    )
}

fn seeds() -> Range<u64> {
    let Ok(range) = std::env::var("CONSIGN_SEEDS") else { return 0..DEFAULT_SEEDS };
    let number = |text: &str| text.trim().parse().expect("CONSIGN_SEEDS is a number, or a range like 5000..9000");
    match range.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&range),
    }
}

#[test]
fn scenarios_keep_every_invariant() {
    if let Ok(seed) = std::env::var("CONSIGN_SEED") {
        let seed = seed.parse().expect("CONSIGN_SEED is a number");
        let lines = tracing_subscriber::fmt().without_time().with_writer(std::io::stdout).with_ansi(false).finish();
        let result = tracing::subscriber::with_default(lines, || run_seed(seed, LogMode::Printed));
        assert!(result.violations.is_empty(), "{}", report(seed, &result.violations));
        return println!("{}", result.statistics);
    }
    let start = Instant::now();
    let seeds = seeds();
    let count = seeds.end.saturating_sub(seeds.start);
    match run_seeds(seeds) {
        Ok(statistics) => {
            let took = start.elapsed().as_secs_f64();
            println!("{count} seeds in {took:.1} s, {:.0} per second\n{statistics}", count as f64 / took);
        }
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn seeds_that_once_broke_an_invariant_keep_it() {
    for seed in ONCE_BROKEN {
        let violations = run_seed(seed, LogMode::Off).violations;
        assert!(violations.is_empty(), "{}", report(seed, &violations));
    }
}

#[test]
fn a_seed_gives_the_same_history_every_time() {
    for seed in 0..60 {
        let [first, second] = [0, 1].map(|_| run_seed(seed, LogMode::Collected(Vec::new())).log);
        assert!(first.len() > 20, "seed {seed}: nothing happens in it");
        let differs = first.iter().zip(&second).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
