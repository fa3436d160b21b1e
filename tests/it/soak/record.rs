//! Events of a soak, as they happened.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// A fault that struck.
#[derive(Debug, Clone)]
pub struct Struck {
    pub kind: &'static str,
    pub what: String,
    pub at: Duration,
    pub lasted: Duration,
}

/// End of a worker's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferResult {
    Killed,
    /// After SIGTERM, with this exit code.
    Drained(i32),
    /// Nobody asked it to.
    ByItself,
}

/// Resources of a process at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub at: Duration,
    pub rss_kib: u64,
    pub descriptors: u64,
}

/// One process of a worker, from start to end.
#[derive(Debug, Clone)]
pub struct Life {
    pub slot: usize,
    /// The access key id by which S3 knows it.
    pub identity: String,
    pub begun: Duration,
    pub ended: Option<(Duration, TransferResult)>,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Default)]
pub struct Notes {
    pub struck: Vec<Struck>,
    pub lives: Vec<Life>,
    /// Identities that were refused for a while.
    pub sick: BTreeSet<String>,
    /// Times at which the broker could be used again after it was down.
    pub returns: Vec<Timestamp>,
    /// From SIGTERM to the end of the process.
    pub drains: Vec<Duration>,
    /// End of the last fault.
    pub calm: Option<Duration>,
    /// From then until the last job had ended and the queues were empty.
    pub drained_in: Option<Duration>,
    pub problems: Vec<String>,
}

#[derive(Debug)]
pub struct Record {
    begun: Instant,
    notes: Mutex<Notes>,
}

impl Record {
    pub fn new() -> Self {
        Self { begun: Instant::now(), notes: Mutex::default() }
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn note<T>(&self, note: impl FnOnce(&mut Notes) -> T) -> T {
        note(&mut self.notes.lock().unwrap())
    }

    pub fn problem(&self, problem: String) {
        self.say(&format!("PROBLEM {problem}"));
        self.note(|notes| notes.problems.push(problem));
    }

    /// A line of progress.
    pub fn say(&self, line: &str) {
        eprintln!("[{:6.1} s] {line}", self.now().as_secs_f64());
    }
}
