//! Duration, size and seed of a soak, from the environment variables that `tests/soak` sets;
//! without them, the short form.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// The short form: what the test suite has time for.
const SHORT: (u64, usize, usize) = (24, 260, 3);
/// In longer ones, so many jobs a second unless asked otherwise.
const PACE: u64 = 8;
/// From here on faults may last longer than what a heartbeat needs to find out, and some worker
/// lives long enough to be measured.
const LONG: Duration = Duration::from_secs(100);

/// Queue of the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Rabbitmq,
    /// A file that all workers share.
    SqliteQueue,
}

impl FromStr for Queue {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "rabbitmq" => Ok(Self::Rabbitmq),
            "embedded" => Ok(Self::SqliteQueue),
            _ => Err("it is rabbitmq or embedded"),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub seed: u64,
    pub queue: Queue,
    /// Time for which faults are injected; setup and recovery come on top.
    pub faults_for: Duration,
    pub jobs: usize,
    pub workers: usize,
    pub ledger: PathBuf,
}

impl Settings {
    pub fn from_env() -> Self {
        let seconds = given("SECONDS").unwrap_or(SHORT.0);
        let usual = if seconds == SHORT.0 { SHORT.1 } else { usize::try_from(seconds * PACE).unwrap() };
        let seed = given("SEED").unwrap_or_else(fresh_seed);
        let ledger = given("LEDGER").unwrap_or_else(|| directory().join(format!("{seed}.json")));
        Self {
            seed,
            queue: given("QUEUE").unwrap_or(Queue::Rabbitmq),
            faults_for: Duration::from_secs(seconds),
            jobs: given("JOBS").unwrap_or(usual),
            workers: given("WORKERS").unwrap_or(SHORT.2).max(1),
            ledger,
        }
    }

    pub fn is_long(&self) -> bool {
        self.faults_for >= LONG
    }

    pub fn is_embedded(&self) -> bool {
        self.queue == Queue::SqliteQueue
    }

    /// Longest recovery until every job has ended.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(if self.is_long() { 240 } else { 120 })
    }

    /// The command that does the same again.
    pub fn replay(&self) -> String {
        let Self { seed, faults_for, jobs, workers, .. } = self;
        let queue = if self.is_embedded() { " --queue embedded" } else { "" };
        format!("tests/soak --seed {seed} --seconds {} --jobs {jobs} --workers {workers}{queue}", faults_for.as_secs())
    }

    /// Folder for the logs of a failed soak.
    pub fn logs(&self) -> PathBuf {
        self.ledger.with_extension("logs")
    }
}

/// Beside the test binary's own temporary files: `target/soak`.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("soak")
}

fn given<T: FromStr<Err: std::fmt::Debug>>(name: &str) -> Option<T> {
    let text = std::env::var(format!("CONSIGN_SOAK_{name}")).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|problem| panic!("CONSIGN_SOAK_{name}={text}: {problem:?}")))
}

/// Short enough to be read out.
fn fresh_seed() -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    super::dice::Dice::new(u64::from(now.subsec_nanos()), now.as_secs()).throw() % 1_000_000_000
}
