//! Behaviour of the null server when it is not to answer all clients at once.

use std::time::Duration;

use clap::Args;
use tokio::time::sleep;

/// Asked for once the missing bucket is to exist.
pub const FIX_PATH: &str = "/__fix";
/// Factor of the slow bucket: it runs at 1 % of the others' speed.
const SLOWER: u32 = 100;

/// Start options of a server.
#[derive(Debug, Clone, Default, Args)]
pub struct Manners {
    /// Milliseconds before each answer about an object.
    #[arg(long, default_value_t = 0)]
    pub latency: u64,
    /// A bucket whose answers take a hundred times as long.
    #[arg(long)]
    pub slow: Option<String>,
    /// A bucket that does not exist, until it is fixed.
    #[arg(long)]
    pub missing: Option<String>,
    /// Keeps an account of every object.
    #[arg(long)]
    pub ledger: bool,
    /// One of so many requests for an object is answered with 503 (0: none).
    #[arg(long, default_value_t = 0)]
    pub refused: u64,
    /// One of so many objects is stored without an answer (0: none).
    #[arg(long, default_value_t = 0)]
    pub unanswered: u64,
}

impl Manners {
    /// The same, as arguments of a process.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--latency".to_owned(), self.latency.to_string()];
        for (name, bucket) in [("--slow", &self.slow), ("--missing", &self.missing)] {
            arguments.extend(bucket.iter().flat_map(|bucket| [name.to_owned(), bucket.clone()]));
        }
        for (name, of) in [("--refused", self.refused), ("--unanswered", self.unanswered)] {
            arguments.extend([name.to_owned(), of.to_string()]);
        }
        arguments.extend(self.ledger.then(|| "--ledger".to_owned()));
        arguments
    }

    /// Waits as long as a bucket makes its callers wait.
    pub async fn wait(&self, bucket: &str) {
        let latency = Duration::from_millis(self.latency);
        let factor = if self.slow.as_deref() == Some(bucket) { SLOWER } else { 1 };
        if !latency.is_zero() {
            sleep(latency * factor).await;
        }
    }
}
