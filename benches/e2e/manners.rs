//! Behaviour of the null server when it is not to answer all clients at once.

use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::{Instant, sleep, sleep_until};

/// Path that repairs the server: the missing bucket then exists, and held requests are answered.
pub const FIX_PATH: &str = "/__fix";
/// Factor of the slow bucket: it runs at 1 % of the others' speed.
const SLOWER: u32 = 100;

/// Requests that a server does not answer until it is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Held {
    /// `UploadPart` of every part but the first.
    Parts,
    /// `PutObject` of an older refresh. The body is read, and nothing is stored yet.
    Puts,
    /// `PutObject` of a newer refresh. The object is stored, but no response is sent.
    Responses,
}

/// Start options of a server.
#[derive(Debug, Clone, Default, Args)]
pub struct Manners {
    /// Milliseconds before each answer about an object.
    #[arg(long, default_value_t = 0)]
    pub latency: u64,
    /// Bytes per second of each connection (0: no limit).
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
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
    /// Keeps the versions of every object.
    #[arg(long)]
    pub versions: bool,
    /// With --versions: requests that wait until the server is fixed.
    #[arg(long)]
    pub held: Option<Held>,
}

impl Manners {
    /// The same, as arguments of a process.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for (name, bucket) in [("--slow", &self.slow), ("--missing", &self.missing)] {
            arguments.extend(bucket.iter().flat_map(|bucket| [name.to_owned(), bucket.clone()]));
        }
        let numbers = [
            ("--latency", self.latency),
            ("--rate", self.rate),
            ("--refused", self.refused),
            ("--unanswered", self.unanswered),
        ];
        for (name, number) in numbers {
            arguments.extend([name.to_owned(), number.to_string()]);
        }
        for (name, given) in [("--ledger", self.ledger), ("--versions", self.versions)] {
            arguments.extend(given.then(|| name.to_owned()));
        }
        let held = self.held.and_then(|held| held.to_possible_value());
        arguments.extend(held.into_iter().flat_map(|held| ["--held".to_owned(), held.get_name().to_owned()]));
        arguments
    }

    /// Waits until a connection at `rate` could have carried `bytes` since `since`.
    pub async fn carry(&self, since: Instant, bytes: u64) {
        if let Some(micros) = (bytes * 1_000_000).checked_div(self.rate) {
            sleep_until(since + Duration::from_micros(micros)).await;
        }
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
