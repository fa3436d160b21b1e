//! Faults and their cost, in numbers: filled by the testbed's own parts, read by the checker.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::sync::Mutex;

static FAULTS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Counts a fault that was injected.
pub fn fault(kind: &'static str) {
    *FAULTS.lock().unwrap().entry(kind).or_default() += 1;
}

/// The sums of one test.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Jobs by how they ended; `open` is one that waits.
    pub jobs: BTreeMap<String, usize>,
    /// Injected faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Bytes of objects and parts that reached S3.
    pub bytes_sent: usize,
    /// Those beyond what the delivered objects hold.
    pub bytes_again: usize,
}

impl Ledger {
    /// The sums, with the faults of this process so far.
    pub fn new(jobs: BTreeMap<String, usize>, bytes_sent: usize, bytes_delivered: usize) -> Self {
        let faults = FAULTS.lock().unwrap().clone();
        Self { jobs, faults, bytes_sent, bytes_again: bytes_sent.saturating_sub(bytes_delivered) }
    }

    /// Appends the sums as a line of JSON to the file that `CONSIGN_TEST_LEDGER` names, if it names
    /// one.
    pub fn write(&self) {
        let Ok(file) = std::env::var("CONSIGN_TEST_LEDGER") else { return };
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        writeln!(file, "{self}").unwrap();
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let Self { jobs, faults, bytes_sent, bytes_again } = self;
        let line = serde_json::json!({
            "test": test, "jobs": jobs, "faults": faults, "bytes_sent": bytes_sent, "bytes_again": bytes_again,
        });
        line.fmt(f)
    }
}
